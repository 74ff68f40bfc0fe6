use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use url::{Url, form_urlencoded};

use super::*;
use crate::domain::time::SystemClock;
use crate::http::HttpLimits;
use crate::http::testing::{Says, Server};

const REFRESH: &str = "RT-old-0123456789";
const CLIENT_SECRET: &str = "CS-0123456789";
const DATE: &str = "date: Sun, 06 Nov 1994 08:49:30 GMT\r\n";

fn client() -> Client {
    Client::new(&HttpLimits::default()).expect("it builds")
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_mins(1))
}

async fn refresh_at(url: &Url, change: impl FnOnce(&mut TokenEndpoint<'_>)) -> Result<Granted, TokenFailure> {
    let secret = Secret::new(CLIENT_SECRET);
    let mut endpoint = TokenEndpoint {
        url,
        client_id: "cid",
        client_secret: Some(&secret),
        extra: &[("tenant", "7".to_owned())],
        body: BodyStyle::Form,
        reads_jwt: true,
    };
    change(&mut endpoint);
    let got = refresh(&client(), &endpoint, &Secret::new(REFRESH), soon(), &SystemClock).await;
    for shown in [format!("{got:?}"), got.as_ref().err().map(ToString::to_string).unwrap_or_default()] {
        assert!(!["RT-", "CS-", "AT-"].iter().any(|secret| shown.contains(secret)), "{shown}");
    }
    got
}

async fn refreshed(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Result<Granted, TokenFailure> {
    refresh_at(&Server::answering(status, headers, body).await.url, |_| ()).await
}

fn form(request: &str) -> HashMap<String, String> {
    let body = request.split_once("\r\n\r\n").unwrap().1;
    form_urlencoded::parse(body.as_bytes()).into_owned().collect()
}

fn pairs(expected: &[(&str, &str)]) -> HashMap<String, String> {
    expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn authorize_urls() {
    let verifier = Secret::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
    let consent = Consent {
        authorize_url: &Url::parse("https://app.example/oauth/authorize?keep=1").unwrap(),
        client_id: "cid",
        redirect_uri: "http://127.0.0.1:8787/oauth/callback/hubspot",
        scopes: &["oauth".to_owned(), "a+b".to_owned()],
        state: &Secret::new("st"),
        pkce_verifier: Some(&verifier),
        extra: &[("optional_scope", "x y")],
    };
    let url = authorize_url(&consent).unwrap();
    let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
    // The challenge is that of RFC 7636, appendix B.
    let expected = pairs(&[
        ("keep", "1"),
        ("response_type", "code"),
        ("client_id", "cid"),
        ("redirect_uri", "http://127.0.0.1:8787/oauth/callback/hubspot"),
        ("scope", "oauth a+b"),
        ("state", "st"),
        ("code_challenge", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"),
        ("code_challenge_method", "S256"),
        ("optional_scope", "x y"),
    ]);
    assert_eq!(query, expected);
    assert!(url.as_str().contains("scope=oauth%20a%2Bb"), "{url}");

    let bare = authorize_url(&Consent { scopes: &[], pkce_verifier: None, extra: &[], ..consent }).unwrap();
    assert!(!bare.as_str().contains("scope") && !bare.as_str().contains("code_challenge"), "{bare}");
    assert!(authorize_url(&Consent { redirect_uri: "nowhere", ..consent }).is_err());
    assert!(authorize_url(&Consent { pkce_verifier: Some(&Secret::new("short")), ..consent }).is_err());
}

#[test]
fn verifiers_are_fresh_and_long_enough() {
    let (one, other) = (pkce_verifier(), pkce_verifier());
    assert_ne!(one, other);
    assert_eq!(one.expose().len(), 43);
}

#[tokio::test]
async fn what_is_warned_of_is_told_without_secrets_and_short() {
    let answer = json!({"access_token": "AT", "warning": ""});
    let server = Server::answering("200 OK", "", answer.to_string()).await;
    let granted = refresh_at(&server.url, |_| ()).await.unwrap();
    for (said, expected) in [
        (json!(""), None),
        (json!(7), None),
        (json!("It was redeemed twice."), Some("It was redeemed twice.".to_owned())),
        (json!("It was Bearer abcdefghijklmnopqrstuvwxyz012345"), Some("It was Bearer [secret]".to_owned())),
        (json!("é".repeat(1_000)), Some("é".repeat(200))),
    ] {
        let granted = Granted { extra: json!({"warning": said}), ..granted.clone() };
        assert_eq!(granted.warning(), expected);
    }
    assert_eq!(Granted { extra: json!({}), ..granted }.warning(), None);
}

#[tokio::test]
async fn a_refresh_as_the_rfc_has_it() {
    let long = format!("AT-{}", "x".repeat(3000));
    let body = json!({"access_token": long, "refresh_token": "RT-new", "token_type": "Bearer", "expires_in": 1800,
        "hub_id": 1_234_567, "scopes": ["oauth", "tickets"], "warning": "w", "id_token": "eyJ.a.b"});
    let server = Server::answering("200 OK", "", body.to_string()).await;
    let granted = refresh_at(&server.url, |_| ()).await.unwrap();
    assert_eq!(granted.warning().as_deref(), Some("w"));
    assert_eq!(granted.tokens.access_token.expose(), long);
    assert_eq!(granted.tokens.refresh_token.unwrap().expose(), "RT-new");
    assert_eq!(granted.tokens.expires_in, Some(Duration::from_mins(30)));
    assert_eq!(granted.tokens.scopes, ["oauth", "tickets"]);
    assert_eq!(
        granted.extra,
        json!({"token_type": "Bearer", "expires_in": 1800, "hub_id": 1_234_567, "scopes": ["oauth", "tickets"],
            "warning": "w"})
    );
    let heard = server.heard().remove(0);
    assert_eq!(
        form(&heard),
        pairs(&[
            ("grant_type", "refresh_token"),
            ("refresh_token", REFRESH),
            ("client_id", "cid"),
            ("client_secret", CLIENT_SECRET),
            ("tenant", "7"),
        ])
    );
    assert!(heard.contains("content-type: application/x-www-form-urlencoded\r\n"), "{heard}");
    assert!(!heard.contains("authorization:"), "{heard}");
}

#[tokio::test]
async fn codes_and_client_credentials() {
    let server = Server::answering("200 OK", "", r#"{"access_token":"AT-1"}"#).await;
    let secret = Secret::new(CLIENT_SECRET);
    let endpoint = TokenEndpoint {
        url: &server.url,
        client_id: "cid",
        client_secret: Some(&secret),
        extra: &[],
        body: BodyStyle::Json,
        reads_jwt: false,
    };
    let (verifier, redirect) = (pkce_verifier(), "http://127.0.0.1:8787/oauth/callback/jobber?x=1");
    exchange_code(&client(), &endpoint, &"c+/=".into(), redirect, Some(&verifier), soon(), &SystemClock)
        .await
        .unwrap();
    let scopes = ["a".to_owned(), "b".to_owned()];
    client_credentials(&client(), &endpoint, &scopes, soon(), &SystemClock).await.unwrap();
    let bodies: Vec<Value> = server
        .heard()
        .iter()
        .map(|request| serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap())
        .collect();
    assert_eq!(
        bodies,
        [
            json!({"grant_type": "authorization_code", "code": "c+/=", "redirect_uri": redirect, "client_id": "cid",
                "client_secret": CLIENT_SECRET, "code_verifier": verifier.expose()}),
            json!({"grant_type": "client_credentials", "scope": "a b", "client_id": "cid",
                "client_secret": CLIENT_SECRET}),
        ]
    );
    assert!(server.heard()[0].contains("content-type: application/json\r\n"));
}

#[tokio::test]
async fn revocation() {
    let secret = Secret::new(CLIENT_SECRET);
    for (status, body, expected) in [
        ("204 No Content", "", true),
        ("200 OK", "", true),
        ("400 Bad Request", r#"{"error":"unsupported_token_type"}"#, false),
        ("500 Oops", "", false),
    ] {
        let server = Server::answering(status, "", body).await;
        let endpoint = TokenEndpoint {
            url: &server.url,
            client_id: "cid",
            client_secret: Some(&secret),
            extra: &[],
            body: BodyStyle::Form,
            reads_jwt: false,
        };
        let done = revoke(&client(), &endpoint, &REFRESH.into(), soon(), &SystemClock).await;
        assert_eq!(done.is_ok(), expected, "{status}");
        let sent = form(&server.heard()[0]);
        assert_eq!((sent["token"].as_str(), sent["token_type_hint"].as_str()), (REFRESH, "refresh_token"));
        assert_eq!((sent["client_id"].as_str(), sent["client_secret"].as_str()), ("cid", CLIENT_SECRET));
    }
}

#[tokio::test]
async fn dialects_of_life() {
    let jwt = |claims: Value| format!("e30.{}.sig", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
    // 06 Nov 1994 08:49:30 GMT, the answer's Date, is 784111770.
    for (fields, life) in [
        (json!({"expires_in": 1800}), Some(1800)),
        (json!({"expires_in": "1800"}), Some(1800)),
        (json!({"expires_in": 1800.9}), Some(1800)),
        (json!({"expires_in": 0}), None),
        (json!({"expires_in": -5}), None),
        (json!({"expires_in": null}), None),
        (json!({"expires_in": "soon"}), None),
        (json!({"expires_in": 1e30}), None),
        (json!({"expires_in": 1800, "created_at": 784_111_170}), Some(1200)),
        (json!({"expires_in": 1800, "created_at": "784111170"}), Some(1200)),
        (json!({"expires_in": 1800, "created_at": 784_112_370}), Some(1800)),
        (json!({"expires_in": 1800, "created_at": 0}), Some(1800)),
        (json!({"expires_in": 1800, "created_at": "today"}), Some(1800)),
        (json!({}), None),
        (json!({"expires_in": 0, "expires_at": "1994-11-06 09:49:30 UTC"}), Some(3600)),
        (json!({"expires_at": "1994-11-06T09:49:30Z"}), Some(3600)),
        (json!({"expires_at": 784_115_370}), Some(3600)),
        (json!({"expires_at": "1984-11-06T09:49:30Z"}), None),
        (json!({"access_token": jwt(json!({"exp": 784_115_370}))}), Some(3600)),
        (json!({"access_token": jwt(json!({"sub": "x"}))}), None),
        (json!({"access_token": "a.%.c"}), None),
    ] {
        let mut body = json!({"access_token": "AT-1"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let granted = refreshed("200 OK", DATE, body.to_string()).await.unwrap();
        assert_eq!(granted.tokens.expires_in, life.map(Duration::from_secs), "{fields}");
    }
    let body = json!({"access_token": jwt(json!({"exp": 784_115_370}))}).to_string();
    let server = Server::answering("200 OK", DATE, body).await;
    let opaque = refresh_at(&server.url, |endpoint| endpoint.reads_jwt = false).await.unwrap();
    assert_eq!(opaque.tokens.expires_in, None);
}

#[tokio::test]
async fn other_dialects_of_a_grant() {
    for (fields, scopes) in [
        (json!({"scope": "a b"}), vec!["a", "b"]),
        (json!({"scope": "a, b"}), vec!["a", "b"]),
        (json!({"scope": ["a", "b"], "scopes": []}), vec!["a", "b"]),
        (json!({"refresh_token": "", "scope": null}), vec![]),
        (json!({"error": null, "refresh_token": null, "token_type": 7, "scope": ""}), vec![]),
    ] {
        let mut body = json!({"access_token": "AT-1"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let granted = refreshed("201 Created", "", body.to_string()).await.unwrap();
        assert_eq!(granted.tokens.scopes, scopes, "{fields}");
        assert_eq!(granted.tokens.refresh_token, None, "{fields}");
    }
}

#[tokio::test]
async fn refusals_are_told_with_status_and_body_but_without_tokens() {
    let body = json!({"error": "invalid_grant", "status": "BAD_REFRESH_TOKEN", "token": REFRESH,
        "message": "missing or invalid refresh token"});
    let refused = refreshed("400 Bad Request", "", body.to_string()).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "refused (status 400): invalid_grant, missing or invalid refresh token, BAD_REFRESH_TOKEN"
    );
    let mut masked = body;
    masked["token"] = "[secret]".into();
    assert_eq!(refused, TokenFailure::Refused { status: 400, body: Body::Json(masked) });

    for (status, body, expected) in [
        ("200 OK", r#"{"error":"invalid_grant"}"#, "refused (status 200): invalid_grant"),
        ("401 Unauthorized", "", "refused (status 401)"),
        (
            "403 Forbidden",
            "The provided refresh token is not valid.",
            "refused (status 403): The provided refresh token is not valid.",
        ),
        (
            "400 Bad Request",
            "refresh_token=RT-old was bad",
            "refused (status 400): refresh_token=[secret] was bad",
        ),
    ] {
        let failure = refreshed(status, "", body).await.unwrap_err();
        assert!(matches!(failure, TokenFailure::Refused { .. }), "{status}");
        assert_eq!(failure.to_string(), expected);
    }
}

#[tokio::test]
async fn waits_are_read() {
    for (status, headers, wait) in [
        ("429 Too Many Requests", "retry-after: 7\r\n", Some(7.0)),
        ("429 Too Many Requests", "retry-after: 1.5\r\n", Some(1.5)),
        ("429 Too Many Requests", "", None),
        ("503 Unavailable", "retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n", Some(7.0)),
    ] {
        let failure =
            refreshed(status, &format!("{DATE}{headers}"), r#"{"error":"slow_down"}"#).await.unwrap_err();
        assert_eq!(failure, TokenFailure::Throttled { wait: wait.map(Duration::from_secs_f64) }, "{status}");
    }
}

#[tokio::test]
async fn what_is_no_verdict_is_never_a_refusal() {
    for (status, headers, body) in [
        ("500 Oops", "", r#"{"error":"invalid_grant"}"#),
        ("502 Bad Gateway", "", "<html>busy</html>"),
        ("503 Unavailable", "", ""),
        ("403 Forbidden", "", "<!DOCTYPE html><p>blocked</p>"),
        ("403 Forbidden", "content-type: text/html\r\n", "blocked"),
        ("408 Request Timeout", "", ""),
        ("302 Found", "location: http://127.0.0.1:1/\r\n", ""),
        ("200 OK", "", ""),
        ("200 OK", "", "[]"),
        ("200 OK", "", "{\"access_token\":"),
        ("200 OK", "", r#"{"access_token":""}"#),
        ("200 OK", "", r#"{"token_type":"bearer"}"#),
        ("200 OK", "", "<html>login</html>"),
    ] {
        let failure = refreshed(status, headers, body).await.unwrap_err();
        assert!(
            matches!(failure, TokenFailure::Unavailable { sent: true, .. }),
            "{status} {body}: {failure:?}"
        );
    }
    let huge = format!("{{\"access_token\":\"{}\"}}", "x".repeat(300_000));
    let failure = refreshed("200 OK", "", huge).await.unwrap_err();
    assert!(matches!(failure, TokenFailure::Unavailable { sent: true, .. }), "{failure:?}");
}

#[tokio::test]
async fn whether_it_left_is_known() {
    let nobody = Url::parse("http://127.0.0.1:1/").unwrap();
    let failure = refresh_at(&nobody, |_| ()).await.unwrap_err();
    assert!(matches!(failure, TokenFailure::Unavailable { sent: false, .. }), "{failure:?}");

    let server = Server::start(Says::BytesThenSilence(b"HTTP/1.1 200 OK\r\n".to_vec())).await;
    let endpoint = TokenEndpoint {
        url: &server.url,
        client_id: "cid",
        client_secret: None,
        extra: &[],
        body: BodyStyle::Form,
        reads_jwt: false,
    };
    let left_within = async |wait: Duration| {
        let (client, secret) = (client(), REFRESH.into());
        let asked = refresh(&client, &endpoint, &secret, Deadline::after(wait), &SystemClock);
        match asked.await.expect_err("silence") {
            TokenFailure::Unavailable { sent, .. } => sent,
            failure => panic!("{failure:?}"),
        }
    };
    // A machine that stands still may have sent nothing in a second.
    let waits = [1, 5, 50].map(Duration::from_secs);
    let mut left = false;
    for wait in waits {
        left = left || left_within(wait).await;
    }
    assert!(left, "it left");
    let heard = server.heard().len();
    assert!(!left_within(Duration::ZERO).await);
    assert_eq!(server.heard().len(), heard, "nothing leaves after the deadline");
}

#[tokio::test]
async fn an_exchange_can_run_in_a_task_of_its_own() {
    let server = Server::answering("200 OK", "", r#"{"access_token":"AT-1"}"#).await;
    let url = server.url.clone();
    let task = tokio::spawn(async move { refresh_at(&url, |_| ()).await });
    assert!(task.await.unwrap().is_ok());
}
