use serde_json::json;

use super::*;

#[test]
fn paths_of_both_schemes() {
    assert_eq!(crm_path("2026-03", "objects", "tickets"), "/crm/objects/2026-03/tickets");
    assert_eq!(crm_path("v3", "objects", "tickets/search"), "/crm/v3/objects/tickets/search");
    assert_eq!(crm_path("v3", "owners", ""), "/crm/v3/owners");
    assert_eq!(
        crm_path("v3", "associations", "tickets/contacts/batch/read"),
        "/crm/v4/associations/tickets/contacts/batch/read"
    );
}

#[test]
fn token_refusals() {
    let check = |body: Value, expected: fn(String) -> TokenVerdict| {
        let verdict = HubSpot.judge_token(400, &Body::Json(body.clone()));
        assert_eq!(
            std::mem::discriminant(&verdict),
            std::mem::discriminant(&expected(String::new())),
            "{body}"
        );
    };
    check(
        json!({"error": "invalid_grant", "status": "BAD_REFRESH_TOKEN", "message": "m"}),
        TokenVerdict::Dead,
    );
    check(json!({"status": "BAD_AUTH_CODE", "message": "m"}), TokenVerdict::Dead);
    check(json!({"error": "invalid_grant"}), TokenVerdict::Dead);
    check(json!({"error": "invalid_client"}), TokenVerdict::Misconfigured);
    check(json!({"status": "BAD_CLIENT_SECRET"}), TokenVerdict::Misconfigured);
    check(json!({"message": "internal"}), TokenVerdict::Retry);
}
