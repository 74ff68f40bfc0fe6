//! Tables: what statuses, refusals and clues mean. Conversations are in `tests/fixtures/hubspot`.

mod account;
mod properties_list;
mod tokens;
mod verdicts;
mod views;

use chrono::DateTime;
use serde_json::Value;

use super::*;

#[test]
fn paths_of_both_schemes() {
    assert_eq!(crm_path("2026-03", "objects", "tickets"), "/crm/objects/2026-03/tickets");
    assert_eq!(crm_path("v3", "objects", "tickets/search"), "/crm/v3/objects/tickets/search");
    assert_eq!(crm_path("v3", "owners", ""), "/crm/v3/owners");
    assert_eq!(crm_path("2026-03", "owners", ""), "/crm/owners/2026-03");
    assert_eq!(
        crm_path("v3", "associations", "tickets/contacts/batch/read"),
        "/crm/v4/associations/tickets/contacts/batch/read"
    );
    assert_eq!(
        crm_path("2026-03", "associations", "tickets/contacts/batch/read"),
        "/crm/associations/2026-03/tickets/contacts/batch/read"
    );
}

#[test]
fn only_the_last_page_names_no_next_one() {
    for (paging, expected) in [
        (serde_json::json!({"next": {"after": "7", "link": "https://elsewhere.example"}}), Ok(Some("7"))),
        (serde_json::json!({"next": {"after": 7}}), Ok(Some("7"))),
        (Value::Null, Ok(None)),
        (serde_json::json!({}), Ok(None)),
        (serde_json::json!({"prev": {"before": "3"}}), Ok(None)),
        (serde_json::json!({"next": null}), Ok(None)),
        (serde_json::json!({"next": {"cursor": "7"}}), Err(())),
        (serde_json::json!({"next": {"after": {}}}), Err(())),
        (serde_json::json!({"following": {"after": "7"}}), Err(())),
        (serde_json::json!([{"after": "7"}]), Err(())),
    ] {
        let told =
            next_after(&reply(200, json(serde_json::json!({"results": [], "paging": paging}))), "list");
        let told = told.map_err(|failure| assert_eq!(failure.kind, FailureKind::ProviderChanged));
        assert_eq!(told, expected.map(|after| after.map(str::to_owned)), "{paging}");
    }
    assert_eq!(next_after(&reply(200, json(serde_json::json!({"results": []}))), "list").unwrap(), None);
}

#[test]
fn what_an_answer_lacks_is_gone_only_if_it_is_complete() {
    let ids = ["1".to_owned(), "2".to_owned()];
    let found = serde_json::json!([{"id": "1"}]);
    let absent = serde_json::json!([{"category": "OBJECT_NOT_FOUND", "context": {"ids": ["2"]}}]);
    let other = serde_json::json!([{"category": "INTERNAL_ERROR", "context": {"ids": ["2"]}}]);
    for (status, body, expected) in [
        (200, serde_json::json!({"status": "COMPLETE", "results": found}), Some([true, false])),
        (200, serde_json::json!({"results": found}), Some([true, false])),
        (
            207,
            serde_json::json!({"status": "COMPLETE", "results": found, "errors": absent}),
            Some([true, false]),
        ),
        (207, serde_json::json!({"status": "COMPLETE", "results": found, "errors": other}), None),
        (200, serde_json::json!({"status": "PROCESSING", "results": found}), None),
        (200, serde_json::json!({"status": "CANCELED", "results": []}), None),
        (200, serde_json::json!({"message": "hello"}), None),
    ] {
        let shown = tickets::probed(&ids, &reply(status, json(body.clone()))).ok();
        let here =
            shown.map(|shown| shown.iter().map(|one| *one == Presence::Here(None)).collect::<Vec<_>>());
        assert_eq!(here, expected.map(Vec::from), "{body}");
    }
}

fn reply(status: u16, body: Body) -> Reply {
    Reply { status, headers: [].into(), body, sent_at: DateTime::UNIX_EPOCH }
}

fn json(body: Value) -> Body {
    Body::Json(body)
}

fn html() -> Body {
    Body::Text("<html><body><h1>502 Bad Gateway</h1></body></html>".to_owned())
}
