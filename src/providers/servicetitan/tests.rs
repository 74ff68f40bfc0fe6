//! What answers mean, and which account they are of. Walks are tested by the conversations in `tests/fixtures`.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::*;
use crate::domain::spec::Mode;
use crate::domain::step::{Facts, Walk};

fn reply(status: u16, body: Value) -> Reply {
    let body = match body {
        Value::String(text) => Body::Text(text),
        json => Body::Json(json),
    };
    Reply {
        status,
        headers: BTreeMap::new(),
        body,
        sent_at: DateTime::<Utc>::UNIX_EPOCH + TimeDelta::days(1),
    }
}

fn request(purpose: &'static str, query: &[(&'static str, &str)]) -> Request {
    let mut request = Request::get("/".to_owned(), purpose, BUCKETS);
    request.query.extend(query.iter().map(|(name, value)| (*name, (*value).to_owned())));
    request
}

#[track_caller]
fn failed(verdict: Verdict) -> Failure {
    match verdict {
        Verdict::Fail(failure) => failure,
        other => panic!("no failure: {other:?}"),
    }
}

fn problem(status: u16) -> Value {
    json!({"type": "x", "title": "Validation failed", "status": status, "traceId": "00-abc-01",
        "errors": {"from": ["Value is not valid."]}, "data": {}})
}

#[test]
fn haste_is_answered_with_a_pause_in_the_header_or_in_words() {
    let judge =
        |message: &str| ServiceTitan.judge(&request("jobs", &[]), &reply(429, json!({"message": message})));
    for (message, wait_ms) in [
        ("Rate limit is exceeded. Try again in 7 seconds.", Some(7_000)),
        ("Rate limit is exceeded.", None),
        ("Try again in a while", None),
        ("Try again in 99999999999999999999 seconds", None),
        ("Try again in 18446744073709551615 seconds", None),
    ] {
        assert_eq!(judge(message), Verdict::Throttled { bucket: SECONDLY, wait_ms }, "{message}");
    }
    let bare = ServiceTitan.judge(&request("jobs", &[]), &reply(429, json!("slow down")));
    assert_eq!(bare, Verdict::Throttled { bucket: SECONDLY, wait_ms: None });
}

#[test]
fn refusals_say_what_to_do() {
    let judge = |purpose, query: &[_], status| {
        ServiceTitan.judge(&request(purpose, query), &reply(status, problem(status)))
    };
    assert_eq!(judge("jobs", &[("from", "token")], 400), Verdict::Accept, "the walk knows what to do");
    let refused = failed(judge("job_types", &[], 400));
    assert_eq!(refused.kind, FailureKind::OurBug);
    assert!(refused.message.contains("Validation failed, about from, trace 00-abc-01"), "{refused}");
    assert_eq!(judge("jobs", &[], 401), Verdict::RefreshToken);
    let forbidden = failed(judge("appointments", &[], 403));
    assert_eq!(forbidden.kind, FailureKind::Forbidden { scope: Some("tn.jpm.appointments:r".to_owned()) });
    for status in [403, 404] {
        let bound = failed(judge("bookings", &[], status));
        assert_eq!(bound.kind, FailureKind::Forbidden { scope: None });
        assert!(bound.message.contains("No Restriction") && bound.message.contains("booking_provider_ids"));
    }
    let unknown = failed(judge("jobs", &[], 404));
    assert_eq!(unknown.kind, FailureKind::Misconfigured);
    assert!(unknown.message.contains("tenant_id"), "{unknown}");
    for status in [409, 500, 502, 503, 504] {
        assert!(matches!(judge("jobs", &[], status), Verdict::Retry { .. }), "{status}");
    }
    let page = reply(503, json!("<html><body>Service Unavailable</body></html>"));
    assert!(
        matches!(ServiceTitan.judge(&request("jobs", &[]), &page), Verdict::Retry { .. }),
        "no JSON there"
    );
    let key = failed(judge(WHO, &[], 401));
    assert_eq!(key.kind, FailureKind::NeedsReauth);
    assert!(key.message.contains("app_key"), "{key}");
}

#[test]
fn refusals_of_the_token_endpoint() {
    let judge = |status, error: &str| ServiceTitan.judge_token(status, &Body::Json(json!({"error": error})));
    for (error, hint) in [
        ("invalid_client", "disabled the app"),
        ("unauthorized_client", "client_credentials"),
        ("unsupported_grant_type", "client_credentials"),
        ("unsupported_response_type", "client_credentials"),
    ] {
        for status in [400, 401] {
            let TokenVerdict::Misconfigured(said) = judge(status, error) else { panic!("{error}") };
            assert!(said.contains(error) && said.contains(hint), "{said}");
        }
        assert!(matches!(judge(503, error), TokenVerdict::Retry(_)), "trouble of its own proves nothing");
    }
    assert!(matches!(judge(400, "invalid_grant"), TokenVerdict::Dead(_)));
    let page = Body::Text("<html>".to_owned());
    assert!(matches!(ServiceTitan.judge_token(400, &page), TokenVerdict::Retry(_)));
}

fn params(tenant: &str) -> Params {
    Params::from([("tenant_id".to_owned(), tenant.to_owned())])
}

fn options(pairs: &[(&str, Value)]) -> Options {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

#[track_caller]
fn identity(claims: Option<Value>, replies: &[Reply]) -> Result<Account, Failure> {
    let (params, options) = (params("41"), Options::new());
    ServiceTitan.identity(&Clues {
        grant: GrantKind::ClientCredentials,
        granted: &json!({"scope": "tn.crm.bookings:r"}),
        introspected: None,
        claims: claims.as_ref(),
        params: &params,
        options: &options,
        known: None,
        replies,
    })
}

#[test]
fn the_tenant_is_who_was_named_and_nobody_else() {
    let units = |tenant: u64| {
        reply(200, json!({"hasMore": false, "data": [{"id": 1, "tenant": {"id": tenant, "name": "Acme"}}]}))
    };
    let feed = reply(200, json!({"hasMore": false, "data": []}));
    let claims = |tenant: &str, scope: Value| Some(json!({"tenant": tenant, "scope": scope}));
    let all = json!(["tn.crm.bookings:r", "tn.jpm.jobs:r"]);
    let good = identity(claims("41", all.clone()), &[units(41), feed.clone()]).unwrap();
    assert_eq!(good, Account { id: "41".into(), name: Some("Acme".into()) });
    let nameless = identity(None, &[reply(200, json!({"data": []})), feed.clone()]).unwrap();
    assert_eq!(nameless.name, None, "a tenant may have no business unit, and a token may be opaque");
    for replies in [[units(41), feed.clone()], [units(42), feed.clone()]] {
        let other = if replies[0] == units(41) { "43" } else { "42" };
        let wrong =
            identity(claims(if other == "43" { "43" } else { "41" }, all.clone()), &replies).unwrap_err();
        assert!(wrong.message.contains(&format!("tenant {other}, not of tenant 41")), "{wrong}");
    }
    // Without the scope for business units, the token says whose it is.
    let closed = reply(403, problem(403));
    assert!(identity(claims("41", all.clone()), &[closed.clone(), feed.clone()]).is_ok());
    assert!(identity(None, &[closed.clone(), feed.clone()]).unwrap_err().message.contains("403"));
    assert!(identity(claims("41", all.clone()), &[reply(404, problem(404)), feed]).is_err());
    // Bookings refused: the app is bound to a booking provider, unless it never had the scope.
    let bound = identity(claims("41", all), &[units(41), closed.clone()]).unwrap_err();
    assert!(bound.message.contains("No Restriction"), "{bound}");
    assert!(identity(claims("41", json!("tn.jpm.jobs:r")), &[units(41), closed.clone()]).is_ok());
    assert!(identity(None, &[units(41), closed]).is_err(), "the token answer names the scope");
}

#[test]
fn what_is_no_number_is_no_tenant() {
    for bad in ["", "4/1", "../5", "41a", "99999999999999999999"] {
        assert!(tenant(&params(bad)).is_err(), "{bad}");
    }
    let (params, options) = (params("4/../1"), Options::new());
    let of = AccountContext {
        grant: GrantKind::ClientCredentials,
        api_version: "",
        params: &params,
        options: &options,
        known: None,
        now: DateTime::<Utc>::UNIX_EPOCH,
    };
    assert!(ServiceTitan.identity_requests(&of).iter().all(|request| request.path.contains("/tenant/0/")));
}

#[test]
fn settings_change_what_is_asked() {
    let params = params("41");
    let asked = |step, pairs: &[(&str, Value)]| {
        let options = options(pairs);
        let of = TokenContext { step, redirect_uri: "", params: &params, options: &options };
        ServiceTitan.token_fields(&of)
    };
    assert_eq!(
        asked(TokenStep::ClientCredentials, &[("token_tenant_param", json!(true))]),
        [("tenant", "41".to_owned())]
    );
    assert_eq!(asked(TokenStep::ClientCredentials, &[("token_tenant_param", json!(false))]), []);
    assert_eq!(asked(TokenStep::Code, &[("token_tenant_param", json!(true))]), []);

    for (given, limit) in [(None, 60), (Some(json!(5)), 5), (Some(json!(0)), 1), (Some(json!(-5)), 60)] {
        let set: Vec<_> = given.iter().map(|given| (PER_SECOND, given.clone())).collect();
        assert_eq!(ServiceTitan.buckets(&options(&set))[0].limit, limit, "{given:?}");
    }

    let lag = |stream: &str, pairs: &[(&str, Value)]| {
        ServiceTitan.visibility_lag(SPEC.stream(stream).unwrap(), &options(pairs)).as_secs()
    };
    assert_eq!(lag("jobs", &[]), 900);
    assert_eq!(lag("jobs", &[("include_recent_changes", json!(true))]), 0);
    assert_eq!(lag("technicians", &[]), 0, "a list shows changes at once");
    let providers = ("booking_provider_ids", json!(["71", 72, "x", -3]));
    assert_eq!(lag("bookings", std::slice::from_ref(&providers)), 0);
    assert_eq!(lag("jobs", std::slice::from_ref(&providers)), 900);
    assert_eq!(booking_provider::ids(&options(std::slice::from_ref(&providers))), ["71", "72"]);
    let options = options(&[providers]);
    let of = AccountContext {
        grant: GrantKind::ClientCredentials,
        api_version: "",
        params: &params,
        options: &options,
        known: None,
        now: DateTime::<Utc>::UNIX_EPOCH,
    };
    assert_eq!(ServiceTitan.identity_requests(&of).len(), 1, "the tenant's bookings are not asked for");
}

#[test]
fn every_stream_has_a_scope_and_nothing_personal() {
    for stream in streams::ALL {
        assert!(streams::scope(stream.name).is_some(), "{}", stream.name);
    }
    let technicians = SPEC.stream("technicians").unwrap();
    for private in
        ["hourlyRate", "burdenRate", "commissionRate", "soldByRate", "home", "location", "newlyAdded"]
    {
        assert!(!technicians.keep_only.contains(&private), "{private}");
    }
}

#[test]
fn a_page_that_takes_too_long_is_asked_for_with_less_in_it() {
    let judge = |purpose, size: &[(&'static str, &str)], status| {
        ServiceTitan.judge(&request(purpose, size), &reply(status, json!("<html>Gateway Timeout</html>")))
    };
    for status in [408, 504, 524] {
        for list in ["technicians", "business_units", "job_types", booking_provider::PURPOSE] {
            assert_eq!(judge(list, &[("pageSize", "500")], status), Verdict::Accept, "{list} {status}");
        }
        for (purpose, size) in [("technicians", "49"), ("probe", "50"), (WHO, "1"), ("jobs", "500")] {
            let verdict = judge(purpose, &[("pageSize", size)], status);
            assert!(matches!(verdict, Verdict::Retry { .. }), "{purpose} {status}: {verdict:?}");
        }
    }
    let busy = judge("technicians", &[("pageSize", "500")], 503);
    assert!(matches!(busy, Verdict::Retry { .. }), "out of order is not slow");
}

#[test]
fn pages_are_no_larger_than_the_lists_let_them_be() {
    let params = params("41");
    let walk =
        Walk { mode: Mode::Snapshot, started_at: DateTime::<Utc>::UNIX_EPOCH, from: None, facts_as_of: None };
    let bound = options(&[("booking_provider_ids", json!([71]))]);
    for (stream, set, asked) in
        [("technicians", 500, "500"), ("technicians", 9_000, "5000"), ("bookings", 9_000, "5000")]
    {
        let cx = StepContext::bare(SPEC.stream(stream).unwrap(), &walk);
        let cx = StepContext { page_size: set, params: &params, options: &bound, ..cx };
        let step = ServiceTitan.step(&cx, &Position::start(), Vec::new());
        let Ok(Step::Send { requests, .. }) = step else { panic!("{step:?}") };
        assert!(requests[0].query.contains(&("pageSize", asked.to_owned())), "{stream} {set}: {requests:?}");
    }
}

/// No walk over changes brings what changed before its provider was named.
#[test]
fn bookings_of_more_providers_than_before_have_everything_read_again() {
    let (params, stream) = (params("41"), SPEC.stream("bookings").unwrap());
    let walk = Walk {
        mode: Mode::Incremental,
        started_at: DateTime::<Utc>::UNIX_EPOCH,
        from: None,
        facts_as_of: None,
    };
    for (before, now, noted, renews) in [
        (json!(null), json!([71]), json!(["71"]), false),
        (json!(["71"]), json!([71, "72"]), json!(["71", "72"]), true),
        (json!(["71", "72"]), json!([73, 72]), json!(["72", "73"]), true),
        (json!(["71", "72"]), json!([72]), json!(["72"]), false),
        (json!(["71"]), json!([71]), json!(null), false),
        // From the feed, which has those of all, and back to it.
        (json!([]), json!([71]), json!(["71"]), false),
        (json!(["71"]), json!([]), json!([]), true),
        (json!(null), json!([]), json!(null), false),
    ] {
        let facts = Facts::from([("booking_providers".to_owned(), before.clone())]);
        let options = options(&[("booking_provider_ids", now.clone())]);
        let cx = StepContext {
            stream,
            walk: &walk,
            api_version: "",
            page_size: 500,
            facts: &facts,
            params: &params,
            options: &options,
        };
        let (mut at, mut replies, mut pages) = (Position::start(), Vec::new(), Vec::new());
        loop {
            match ServiceTitan.step(&cx, &at, std::mem::take(&mut replies)).unwrap() {
                Step::Send { at: next, .. } => {
                    replies.push(reply(200, json!({"hasMore": false, "totalCount": 0, "data": []})));
                    at = next;
                }
                Step::Emit { page, at: next } => {
                    pages.push(page);
                    at = next;
                }
                Step::Done => break,
                Step::Partial { why } => panic!("{why}"),
            }
        }
        let learned = pages.iter().filter_map(|page| page.facts.get("booking_providers").cloned());
        assert_eq!(
            learned.collect::<Vec<_>>(),
            [noted].into_iter().filter(|noted| !noted.is_null()).collect::<Vec<_>>()
        );
        let asked: Vec<_> = pages.iter().flat_map(|page| page.renews.iter().copied()).collect();
        assert_eq!(asked, ["bookings"].into_iter().filter(|_| renews).collect::<Vec<_>>(), "{before} {now}");
    }
}

#[test]
fn a_list_of_ids_proves_who_is_there() {
    let params = params("41");
    let walk =
        Walk { mode: Mode::Sweep, started_at: DateTime::<Utc>::UNIX_EPOCH, from: None, facts_as_of: None };
    let check = |stream: &str, options: &Options, place: Option<&str>, line: Option<&str>| {
        let cx = StepContext::bare(SPEC.stream(stream).unwrap(), &walk);
        let cx = StepContext { params: &params, options, ..cx };
        let ids = ["1", "9007199254740993", "3"].map(str::to_owned);
        let asked = ServiceTitan.probe_at(&cx, place, &ids);
        assert_eq!(asked.as_ref().map(|(request, _)| request.path.as_str()), line, "{stream} {place:?}");
        let Some((request, taken)) = asked else { return };
        assert_eq!((taken, &request.query[0].1), (3, &"1,9007199254740993,3".to_owned()));
        let list = |text: &str| reply(200, serde_json::from_str(text).unwrap());
        let listed = list(r#"{"hasMore": false, "data": [{"id": 9007199254740993}, {"id": 1}]}"#);
        let shown = ServiceTitan.probed(&cx, &ids, &listed).unwrap();
        let [Presence::Here(first), Presence::Here(_), Presence::Gone { .. }] = shown.as_slice() else {
            panic!("{stream}: {shown:?}")
        };
        assert_eq!(first.is_some(), stream == "technicians", "the list has all that there is of these");
        assert!(ServiceTitan.probed(&cx, &ids, &reply(200, json!({}))).is_err());
        for of_others in [
            r#"{"hasMore": true, "data": [{"id": 9007199254740993}, {"id": 1}]}"#,
            r#"{"hasMore": false, "data": [{"id": 9007199254740993}, {"id": 1}, {"id": 4}]}"#,
            r#"{"data": [{"id": 9007199254740993}, {"id": 1}, {}]}"#,
        ] {
            let shown = ServiceTitan.probed(&cx, &ids, &list(of_others)).unwrap();
            let [Presence::Here(_), Presence::Here(_), Presence::Unknown] = shown.as_slice() else {
                panic!("{stream}: {of_others} proves nobody's absence: {shown:?}")
            };
        }
    };
    let (none, some) = (Options::new(), options(&[("booking_provider_ids", json!([71]))]));
    check("jobs", &none, None, Some("/jpm/v2/tenant/41/jobs"));
    check("technicians", &none, None, Some("/settings/v2/tenant/41/technicians"));
    check("bookings", &none, None, Some("/crm/v2/tenant/41/bookings"));
    check("job_canceled_logs", &none, None, None);
    check("bookings", &some, Some("71"), Some("/crm/v2/tenant/41/booking-provider/71/bookings"));
    for elsewhere in [Some("72"), None] {
        check("bookings", &some, elsewhere, None);
    }
}
