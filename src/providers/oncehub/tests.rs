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

fn identity(known: Option<&str>, replies: &[Reply]) -> Result<Account, Failure> {
    let (params, options) = (Params::new(), Options::new());
    OnceHub.identity(&Clues {
        grant: GrantKind::ApiKey,
        granted: &Value::Null,
        introspected: None,
        claims: None,
        params: &params,
        options: &options,
        known,
        replies,
    })
}

/// The id that the next users are asked for after.
fn next(known: Option<&str>, replies: &[Reply]) -> Option<String> {
    let (params, options) = (Params::new(), Options::new());
    let now = DateTime::UNIX_EPOCH;
    let grant = GrantKind::ApiKey;
    let of = AccountContext { grant, api_version: "", params: &params, options: &options, known, now };
    let request = OnceHub.identity_next(&of, replies)?;
    request.query.into_iter().find_map(|(name, value)| (name == "after").then_some(value))
}

fn test_of(address: &str) -> Reply {
    reply(200, json!({"message": format!("The API key is valid for account: {address}")}))
}

/// A page of users: ids and roles.
fn users(of: &[(&str, &str)], more: bool) -> Reply {
    let user = |(id, role): &(&str, &str)| json!({"id": id, "email": format!("{id}@firm.example"), "role_name": role});
    let data: Vec<Value> = of.iter().map(user).collect();
    reply(200, json!({"object": "list", "data": data, "has_more": more}))
}

const OWNS: &str = "Account Owner";

#[test]
fn accounts_are_known_by_their_owner() {
    let account = |id: &str, name: &str| Ok(Account { id: id.into(), name: Some(name.into()) });
    let page = users(&[("USR-1", "Member"), ("USR-2", OWNS)], true);
    let told = [test_of("boss@firm.example"), page];
    assert_eq!(identity(None, &told), account("USR-2", "USR-2@firm.example"));
    assert_eq!(next(None, &told), None);
    let told = [test_of("boss@firm.example"), users(&[("USR-1", "Member")], false)];
    assert_eq!(identity(None, &told), account("boss@firm.example", "boss@firm.example"));
    assert_eq!(next(None, &told), None);
    let nothing = [reply(200, json!({"message": "valid"})), users(&[], false)];
    assert_eq!(identity(None, &nothing).unwrap_err().kind, FailureKind::ProviderChanged);
}

#[test]
fn an_owner_is_looked_for_on_every_page() {
    let mut told = vec![test_of("boss@firm.example"), users(&[("USR-9", "Member"), ("USR-8", "")], true)];
    assert_eq!(next(None, &told).as_deref(), Some("USR-8"));
    let linked = users(&[("USR-7", "Member")], false);
    let link = ("link".to_owned(), "<https://other.example/users?after=x>; rel=\"next\"".to_owned());
    told.push(Reply { headers: [link].into(), ..linked });
    assert_eq!(next(None, &told).as_deref(), Some("USR-7"));
    // What shows the same end once more has no other.
    assert_eq!(next(None, &[&told[..], &told[2..]].concat()), None);
    told.push(users(&[("USR-1", OWNS)], true));
    assert_eq!(next(None, &told), None);
    assert_eq!(identity(None, &told).unwrap().id, "USR-1");
    let pages = (0..).map(|n| users(&[(format!("USR-{n}").as_str(), "Member")], true));
    let endless: Vec<Reply> = [test_of("")].into_iter().chain(pages.take(OWNER_PAGES_MAX)).collect();
    assert!(next(None, &endless[..OWNER_PAGES_MAX]).is_some());
    assert_eq!(next(None, &endless), None);
}

#[test]
fn a_mark_that_an_account_is_known_by_stays_good() {
    let known = |known: &str, replies: &[Reply]| identity(Some(known), replies).unwrap().id;
    // The account has changed hands, and who owned it is further back.
    let mut told = vec![test_of("boss@firm.example"), users(&[("USR-9", OWNS)], true)];
    assert_eq!(next(Some("USR-1"), &told).as_deref(), Some("USR-9"));
    told.push(users(&[("USR-1", "Member")], true));
    assert_eq!(next(Some("USR-1"), &told), None);
    assert_eq!(known("USR-1", &told), "USR-1");
    // It was known by its address when no owner was shown.
    assert_eq!(next(Some("boss@firm.example"), &told), None);
    assert_eq!(known("boss@firm.example", &told), "boss@firm.example");
    // Another account's.
    assert_eq!(known("USR-5", &told), "USR-9");
    for (known, found, same) in [
        ("USR-1", "USR-1", Some(true)),
        ("USR-1", "USR-9", Some(false)),
        ("a@firm.example", "b@firm.example", Some(false)),
        ("USR-1", "boss@firm.example", None),
        ("boss@firm.example", "USR-1", None),
    ] {
        assert_eq!(OnceHub.is_account(known, found), same, "{known} {found}");
    }
}

#[test]
fn an_answer_without_users_is_asked_for_again() {
    let first = users_after(None);
    for nothing in [json!({"object": "list"}), json!({"data": {}}), json!({"data": null}), json!([])] {
        let verdict = OnceHub.judge(&first, &reply(200, nothing.clone()));
        assert!(matches!(verdict, Verdict::Retry { .. }), "{nothing}");
    }
    assert_eq!(OnceHub.judge(&first, &users(&[], false)), Verdict::Accept);
    let further = OnceHub.judge(&users_after(Some("USR-1".to_owned())), &reply(404, json!({})));
    assert!(matches!(further, Verdict::Retry { .. }), "the walk is nobody's to begin again");
    let broken =
        Reply { headers: [("request-id".to_owned(), "req_7".to_owned())].into(), ..reply(500, json!({})) };
    let Verdict::Retry { why, .. } = OnceHub.judge(&first, &broken) else { panic!("it passes") };
    assert_eq!(why, "OnceHub answered 500 (request req_7)");
    // Of the stream of that list it is a failure, which its walk tells.
    let of_stream = Request::get("/users".to_owned(), "users", BUCKETS);
    assert_eq!(OnceHub.judge(&of_stream, &reply(200, json!({"data": {}}))), Verdict::Accept);
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
