//! Refusals of the token endpoint.

use serde_json::json;

use super::*;

#[derive(Debug, PartialEq)]
enum Is {
    Dead,
    Misconfigured,
    Retry,
}

#[track_caller]
fn check(status: u16, body: Body, expected: Is) {
    let is = match HubSpot.judge_token(status, &body) {
        TokenVerdict::Dead(_) => Is::Dead,
        TokenVerdict::Misconfigured(_) => Is::Misconfigured,
        TokenVerdict::Retry(_) => Is::Retry,
    };
    assert_eq!(is, expected, "{status} {body:?}");
}

#[test]
fn grants_that_are_dead() {
    for body in [
        json!({"error": "invalid_grant", "error_description": "d", "status": "BAD_REFRESH_TOKEN", "message": "m"}),
        json!({"error": "invalid_grant", "status": "BAD_AUTH_CODE", "message": "m"}),
        json!({"error": "invalid_request", "status": "BAD_AUTH_CODE", "message": "m"}),
        json!({"status": "BAD_REFRESH_TOKEN", "message": "missing or invalid refresh token"}),
        json!({"status": "BAD_AUTH_CODE", "message": "m"}),
        json!({"error": "invalid_grant"}),
        json!({"status": "BAD_REFRESH_TOKEN", "message": "refresh token was not issued to this client"}),
    ] {
        check(400, json(body), Is::Dead);
    }
}

#[test]
fn faults_that_concern_every_account() {
    for body in [
        json!({"error": "invalid_client"}),
        json!({"error": "unauthorized_client"}),
        json!({"error": "invalid_client", "status": "BAD_REFRESH_TOKEN", "message": "m"}),
        json!({"status": "BAD_CLIENT_ID", "message": "m"}),
        json!({"status": "BAD_CLIENT_SECRET"}),
        json!({"error": "invalid_grant", "status": "BAD_REDIRECT_URI"}),
        json!({"status": "BAD_GRANT_TYPE", "message": "missing or unknown grant type"}),
    ] {
        check(400, json(body), Is::Misconfigured);
    }
}

#[test]
fn trouble_that_proves_nothing() {
    let bad = json!({"error": "invalid_grant", "status": "BAD_REFRESH_TOKEN", "message": "m"});
    for (status, body) in [
        (400, json(json!({"message": "internal"}))),
        (400, json(json!({}))),
        (400, json(json!(["BAD_REFRESH_TOKEN"]))),
        (400, html()),
        (429, json(json!({"status": "error", "policyName": "TEN_SECONDLY_ROLLING"}))),
        (500, json(json!({"status": "error", "message": "internal error"}))),
        (502, html()),
        (429, json(bad.clone())),
        (503, json(bad)),
        (503, json(json!({"error": "invalid_client"}))),
    ] {
        check(status, body, Is::Retry);
    }
}

#[test]
fn the_sentence_names_the_reason_and_is_short() {
    let body = json(json!({"status": "BAD_REFRESH_TOKEN", "message": "m".repeat(5_000)}));
    let TokenVerdict::Dead(said) = HubSpot.judge_token(400, &body) else { panic!("not dead") };
    assert!(said.starts_with("BAD_REFRESH_TOKEN: m"), "{said}");
    assert!(said.chars().count() < 250, "{} characters", said.chars().count());
}
