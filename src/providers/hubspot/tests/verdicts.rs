//! What replies of the API mean, by status and body.

use serde_json::json;

use super::*;

const OWN_WAIT: Option<u64> = None;

fn list() -> Request {
    get("/crm/objects/2026-03/tickets".to_owned(), "list", &[("limit", "100")])
}

fn next_page() -> Request {
    get("/crm/objects/2026-03/tickets".to_owned(), "list", &[("limit", "100"), ("after", "c2")])
}

fn posted(purpose: &'static str, buckets: &'static [&'static str]) -> Request {
    Request::post("/p".to_owned(), json!({}), purpose, buckets)
}

/// One word a verdict, and its kind of failure.
fn word(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Throttled { bucket, wait_ms } => format!("throttled {bucket} {wait_ms:?}"),
        Verdict::Retry { wait_ms, .. } => format!("retry {wait_ms:?}"),
        Verdict::RefreshToken => "refresh".to_owned(),
        Verdict::RestartPaging { .. } => "restart".to_owned(),
        Verdict::Fail(failure) => format!("fail {}", failure.kind.label()),
    }
}

#[track_caller]
fn check(request: &Request, status: u16, body: Body, expected: &str) {
    let verdict = HubSpot.judge(request, &reply(status, body.clone()));
    assert_eq!(word(&verdict), expected, "`{}` {status} {body:?}: {verdict:?}", request.purpose);
}

#[test]
fn every_status_of_the_documents() {
    let said = |category: &str| json(json!({"status": "error", "category": category, "message": "m"}));
    for (status, body, expected) in [
        (200, json(json!({"results": []})), "accept"),
        (207, json(json!({"results": [], "errors": []})), "accept"),
        (200, html(), "retry None"),
        (200, Body::Text("{\"results\":[{\"id\"".to_owned()), "retry None"),
        (204, Body::Text(String::new()), "retry None"),
        (302, html(), "fail provider_changed"),
        (400, said("VALIDATION_ERROR"), "fail our_bug"),
        (401, said("EXPIRED_AUTHENTICATION"), "refresh"),
        (401, said("INVALID_AUTHENTICATION"), "refresh"),
        (403, said("MISSING_SCOPES"), "fail forbidden"),
        (403, html(), "fail forbidden"),
        (404, said("OBJECT_NOT_FOUND"), "fail our_bug"),
        (414, html(), "fail our_bug"),
        (423, said("LOCKED"), "retry Some(2000)"),
        (477, said("MIGRATION_IN_PROGRESS"), "throttled all Some(600000)"),
        (477, html(), "throttled all Some(600000)"),
        (500, said("INTERNAL_ERROR"), "retry None"),
        (502, html(), "retry None"),
        (503, html(), "retry None"),
        (504, html(), "retry None"),
        (521, html(), "retry None"),
        (522, html(), "retry None"),
        (523, html(), "retry None"),
        (524, html(), "retry None"),
        (530, html(), "refresh"),
    ] {
        check(&list(), status, body, expected);
    }
}

#[test]
fn a_refused_cursor_starts_the_walk_again() {
    let body = || {
        json(json!({"message": "Cannot deserialize value of type `long`", "category": "VALIDATION_ERROR"}))
    };
    check(&next_page(), 400, body(), "restart");
    check(&next_page(), 400, html(), "restart");
    check(&list(), 400, body(), "fail our_bug");
    check(&posted("search", &[SEARCH]), 400, body(), "fail our_bug");
}

#[test]
fn refusals_pause_the_bucket_that_the_request_waits_for() {
    let search = posted("search", &[SEARCH]);
    let linked = posted("associations", &[ASSOCIATIONS]);
    let ten = json!({"status": "error", "message": "You have reached your ten_secondly_rolling limit.",
        "errorType": "RATE_LIMIT", "policyName": "TEN_SECONDLY_ROLLING"});
    let secondly = json!({"message": "You have reached your secondly limit.", "policyName": "SECONDLY"});
    let unnamed = json!({"message": "You have reached your secondly limit."});
    let newer =
        json!({"message": "You have reached your ten_secondly_rolling limit.", "category": "RATE_LIMITS"});
    let daily = json!({"message": "You have reached your daily limit.", "policyName": "DAILY"});
    let newer_daily = json!({"message": "You have reached your daily limit.", "category": "RATE_LIMITS"});
    for (request, body, bucket, wait) in [
        (list(), &ten, TEN_SECONDLY, OWN_WAIT),
        (list(), &newer, TEN_SECONDLY, OWN_WAIT),
        (list(), &secondly, TEN_SECONDLY, OWN_WAIT),
        (list(), &daily, EVERY_BUCKET, Some(3_600_000)),
        (list(), &newer_daily, EVERY_BUCKET, Some(3_600_000)),
        (search.clone(), &secondly, SEARCH, OWN_WAIT),
        (search.clone(), &unnamed, SEARCH, OWN_WAIT),
        (search.clone(), &ten, SEARCH, OWN_WAIT),
        (search.clone(), &daily, EVERY_BUCKET, Some(3_600_000)),
        (linked.clone(), &ten, ASSOCIATIONS, OWN_WAIT),
        (linked, &daily, EVERY_BUCKET, Some(3_600_000)),
    ] {
        check(&request, 429, json(body.clone()), &format!("throttled {bucket} {wait:?}"));
    }
    check(&list(), 429, html(), "throttled ten_secondly None");
    check(&search, 477, html(), "throttled all Some(600000)");
}

/// The header is read by whoever sends; the verdict carries what holds without it.
#[test]
fn retry_after_changes_no_verdict() {
    for status in [429, 477] {
        let mut asked = reply(status, html());
        let without = HubSpot.judge(&list(), &asked);
        asked.headers.insert("retry-after".to_owned(), "7200".to_owned());
        assert_eq!(HubSpot.judge(&list(), &asked), without, "{status}");
        let hours = if status == 477 { 24 } else { 1 };
        assert_eq!(HubSpot.wait_max(&asked), Duration::from_hours(hours), "no more is believed of {status}");
    }
}

#[test]
fn missing_scopes_are_named() {
    let check = |body: Value, expected: Option<&str>| {
        let verdict = HubSpot.judge(&list(), &reply(403, json(body.clone())));
        let Verdict::Fail(failure) = verdict else { panic!("{body}: {verdict:?}") };
        assert_eq!(failure.kind, FailureKind::Forbidden { scope: expected.map(str::to_owned) }, "{body}");
        assert!(expected.is_none_or(|scope| failure.message.contains(scope)), "{}", failure.message);
    };
    let owners = "crm.objects.owners.read";
    check(
        json!({"category": "MISSING_SCOPES", "message": "m",
               "errors": [{"message": "m", "context": {"requiredGranularScopes": [owners]}}]}),
        Some(owners),
    );
    check(
        json!({"category": "MISSING_SCOPES", "errors": [
            {"message": "first, without context"},
            {"context": {"requiredScopes": ["tickets", "contacts"]}},
        ]}),
        Some("contacts tickets"),
    );
    check(json!({"category": "MISSING_SCOPES", "context": {"requiredScopes": [owners]}}), Some(owners));
    check(json!({"category": "MISSING_SCOPES", "errors": [{"context": {"requiredScopes": []}}]}), None);
    check(json!({"message": "The feature is not part of this subscription"}), None);
    check(json!({"errors": "none"}), None);
}

#[test]
fn limits_are_read_where_they_are_sent() {
    let mut told = reply(200, json(json!({})));
    assert_eq!(HubSpot.limits(&list(), &told), None);
    for (name, value) in [("max", "190"), ("remaining", "17"), ("interval-milliseconds", "10000")] {
        told.headers.insert(format!("x-hubspot-ratelimit-{name}"), value.to_owned());
    }
    let limit = Limit {
        bucket: TEN_SECONDLY,
        max: Some(190),
        remaining: Some(17),
        per_ms: Some(10_000),
        charged: None,
    };
    assert_eq!(HubSpot.limits(&list(), &told), Some(limit));
    assert_eq!(HubSpot.limits(&posted("search", &[SEARCH]), &told), None);
    told.headers.insert("x-hubspot-ratelimit-max".to_owned(), "many".to_owned());
    assert_eq!(HubSpot.limits(&list(), &told), None);
}

#[test]
fn a_day_s_quota_is_read_where_it_is_sent() {
    let mut told = reply(200, json(json!({})));
    for (name, value) in [("daily", "250000"), ("daily-remaining", "17")] {
        assert_eq!(HubSpot.quota(&list(), &told), None);
        told.headers.insert(format!("x-hubspot-ratelimit-{name}"), value.to_owned());
    }
    let quota = Quota { bucket: EVERY_BUCKET, max: 250_000, remaining: 17, again_ms: 3_600_000 };
    assert_eq!(HubSpot.quota(&list(), &told), Some(quota));
    told.headers.insert("x-hubspot-ratelimit-daily".to_owned(), "0".to_owned());
    assert_eq!(HubSpot.quota(&list(), &told), None);
}

/// Whatever is sent takes from a bucket: a request without one would be sent again at once after a refusal.
#[test]
fn every_bucket_is_described() {
    for bucket in [TEN_SECONDLY, SEARCH, ASSOCIATIONS] {
        assert!(SPEC.buckets.iter().any(|spec| spec.name == bucket), "{bucket}");
    }
}
