//! Tables: what statuses, refusals and clues mean. Conversations are in `tests/fixtures/hubspot`.

mod account;
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

fn reply(status: u16, body: Body) -> Reply {
    Reply { status, headers: [].into(), body, sent_at: DateTime::UNIX_EPOCH }
}

fn json(body: Value) -> Body {
    Body::Json(body)
}

fn html() -> Body {
    Body::Text("<html><body><h1>502 Bad Gateway</h1></body></html>".to_owned())
}
