//! Verdicts, accounts and probes.

use std::collections::BTreeMap;

use chrono::DateTime;
use serde_json::json;

use super::*;
use crate::domain::step::{Body, Options, Params, Walk};

fn reply(status: u16, body: Value) -> Reply {
    let sent_at = DateTime::from_timestamp(1_000, 0).unwrap();
    Reply { status, headers: BTreeMap::new(), body: Body::Json(body), sent_at }
}

fn identity(test: Value, users: Value) -> Result<Account, Failure> {
    let (params, options) = (Params::new(), Options::new());
    OnceHub.identity(&Clues {
        grant: GrantKind::ApiKey,
        granted: &Value::Null,
        introspected: None,
        claims: None,
        params: &params,
        options: &options,
        replies: &[reply(200, test), reply(200, users)],
    })
}

#[test]
fn accounts_are_known_by_their_owner() {
    let test = json!({"message": "The API key is valid for account: boss@firm.example"});
    let owner = json!({"id": "USR-2", "email": "owner@firm.example", "role_name": "Account Owner"});
    let member = json!({"id": "USR-1", "email": "m@firm.example", "role_name": "Member"});
    let account = |id: &str, name: &str| Account { id: id.into(), name: Some(name.into()) };
    assert_eq!(
        identity(test.clone(), json!({"data": [member, owner]})),
        Ok(account("USR-2", "owner@firm.example"))
    );
    assert_eq!(
        identity(test, json!({"data": [member]})),
        Ok(account("boss@firm.example", "boss@firm.example"))
    );
    let failure = identity(json!({"message": "valid"}), json!({"data": []})).unwrap_err();
    assert_eq!(failure.kind, FailureKind::ProviderChanged);
}

#[test]
fn verdicts() {
    let list = Request::get("/bookings".to_owned(), "bookings", BUCKETS);
    let next = Request { query: vec![("after", "BKNG-1".to_owned())], ..list.clone() };
    let probe = Request::get("/bookings/BKNG-1".to_owned(), PROBE, BUCKETS);
    let word =
        |request: &Request, status: u16, body: Value| match OnceHub.judge(request, &reply(status, body)) {
            Verdict::Accept => "accept".to_owned(),
            Verdict::Throttled { bucket, wait_ms } => format!("throttled {bucket} {wait_ms:?}"),
            Verdict::Retry { .. } => "retry".to_owned(),
            Verdict::RefreshToken => "refresh".to_owned(),
            Verdict::RestartPaging { .. } => "restart".to_owned(),
            Verdict::Fail(failure) => failure.kind.label().to_owned(),
        };
    let error = |kind: &str, message: &str| json!({"type": kind, "message": message});
    assert_eq!(word(&list, 200, json!({"object": "list", "data": []})), "accept");
    assert_eq!(word(&list, 401, error("authentication_error", "Invalid API key.")), "refresh");
    assert_eq!(word(&list, 403, error("authentication_error", "Please upgrade your plan")), "forbidden");
    assert_eq!(word(&list, 402, error("authentication_error", "Payment required")), "forbidden");
    assert_eq!(
        word(&list, 429, error("rate_limit_error", "Request rate limit exceeded")),
        "throttled address None"
    );
    assert_eq!(word(&list, 500, error("api_error", "x")), "retry");
    assert_eq!(word(&list, 400, error("invalid_request_error", "bad limit")), "our_bug");
    assert_eq!(word(&next, 400, error("invalid_request_error", "bad cursor")), "restart");
    assert_eq!(word(&next, 404, error("invalid_request_error", "no such object")), "restart");
    assert_eq!(word(&probe, 404, error("invalid_request_error", "no such object")), "accept");
    assert_eq!(word(&list, 404, error("invalid_request_error", "no such object")), "our_bug");
}

#[test]
fn probes() {
    let walk = Walk {
        mode: Mode::Sweep,
        started_at: DateTime::from_timestamp(1_000, 0).unwrap(),
        from: None,
        facts_as_of: None,
    };
    let cx = StepContext::bare(&BOOKINGS, &walk);
    let ids = ["BKNG/1".to_owned(), "BKNG-2".to_owned()];
    let (request, taken) = OnceHub.probe(&cx, &ids).expect("bookings can be asked for");
    assert_eq!((request.path.as_str(), taken), ("/bookings/BKNG%2F1", 1));
    let users = StepContext { stream: &USERS, ..cx };
    assert!(OnceHub.probe(&users, &ids).is_none());

    let shown = |status, body| OnceHub.probed(&cx, &ids[1..], &reply(status, body)).unwrap().remove(0);
    assert!(matches!(
        shown(404, json!({"type": "invalid_request_error", "param": "id"})),
        Presence::Gone { .. }
    ));
    assert!(matches!(
        shown(200, json!({"id": "BKNG-2", "object": "booking", "deleted": true})),
        Presence::Gone { .. }
    ));
    assert!(matches!(shown(200, json!({"id": "BKNG-2", "object": "booking"})), Presence::Here(Some(_))));
    assert_eq!(shown(200, json!({"id": "BKNG-9", "deleted": true})), Presence::Unknown);
    assert_eq!(shown(200, json!([])), Presence::Unknown);
    // Not what the API says of an object that is not there.
    for body in [
        json!({"id": "BKNG-2", "deleted": true}),
        json!({"message": "no route"}),
        json!({"type": "invalid_request_error", "message": "no such path"}),
        json!({"type": "invalid_request_error", "param": "expand"}),
        json!({"type": "api_error", "param": "id"}),
        Value::Null,
    ] {
        assert_eq!(shown(404, body.clone()), Presence::Unknown, "{body}");
    }
    let html = Reply { body: Body::Text("<html>404 Not Found</html>".to_owned()), ..reply(404, Value::Null) };
    assert_eq!(OnceHub.probed(&cx, &ids[1..], &html).unwrap(), [Presence::Unknown]);
}
