//! What replies mean, which locations are read, and how fast. Walks are in `tests/fixtures/housecallpro`.

use std::collections::BTreeMap;

use chrono::DateTime;
use serde_json::json;

use super::locations::Known;
use super::*;
use crate::domain::spec::Mode;
use crate::domain::step::{Body, Facts, Params, Walk};

fn reply(status: u16, body: Body) -> Reply {
    let sent_at = DateTime::from_timestamp(1_777_881_600, 0).unwrap();
    Reply { status, headers: BTreeMap::new(), body, sent_at }
}

fn html() -> Body {
    Body::Text("<html>".to_owned())
}

fn list(location: Option<&str>) -> Request {
    let mut request = Request::get("/jobs".to_owned(), "jobs", BUCKETS);
    request.headers.extend(location.map(|id| (rounds::LOCATION_HEADER, id.to_owned())));
    request
}

fn by_id() -> Request {
    Request::get("/jobs/job_1".to_owned(), "job", BUCKETS)
}

fn word(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Throttled { bucket, wait_ms } => format!("throttled {bucket} {wait_ms:?}"),
        Verdict::Retry { .. } => "retry".to_owned(),
        Verdict::RefreshToken => "refresh".to_owned(),
        Verdict::RestartPaging { .. } => "restart".to_owned(),
        Verdict::Fail(failure) => format!("{}: {}", failure.kind.label(), failure.message),
    }
}

#[test]
fn every_status_of_the_documents() {
    let json = |value: Value| Body::Json(value);
    let archived = || json(json!({"error": {"message": "Archived job"}}));
    let refused = |what: &str| format!("our_bug: Housecall Pro refused {what}");
    for (request, status, body, expected) in [
        (list(None), 200, json(json!({"jobs": []})), "accept".to_owned()),
        (list(None), 200, html(), "retry".to_owned()),
        (list(None), 204, Body::Text(String::new()), "retry".to_owned()),
        (list(None), 401, json(json!({"message": "Unauthorized"})), "refresh".to_owned()),
        (list(Some("x")), 403, html(), "accept".to_owned()),
        (
            list(None),
            403,
            html(),
            "forbidden: Housecall Pro does not allow `jobs`: no reason given".to_owned(),
        ),
        (list(None), 404, json(json!({"error": "not found"})), refused("`jobs` with 404: not found")),
        (list(None), 400, archived(), refused("`jobs` with 400: Archived job")),
        (list(None), 404, Body::Text("<xml/>".to_owned()), refused("`jobs` with 404: no reason given")),
        (list(None), 404, json(json!({})), refused("`jobs` with 404: no reason given")),
        (
            list(None),
            422,
            json(json!({"errors": {"page": ["is Ina Frey's"]}})),
            refused("`jobs` with 422: page"),
        ),
        (
            list(None),
            400,
            json(json!({"message": "Bad request", "page": ["is invalid"]})),
            refused("`jobs` with 400: Bad request: page"),
        ),
        (list(None), 429, html(), "throttled requests None".to_owned()),
        (list(None), 500, json(json!({"message": "x"})), "retry".to_owned()),
        (list(None), 502, html(), "retry".to_owned()),
        (by_id(), 200, json(json!({"id": "job_1"})), "accept".to_owned()),
        (by_id(), 400, archived(), "accept".to_owned()),
        (by_id(), 400, json(json!({"message": "Bad request"})), "accept".to_owned()),
        (by_id(), 422, json(json!({"message": "Bad request"})), refused("`job` with 422: Bad request")),
        (by_id(), 403, html(), "accept".to_owned()),
        (by_id(), 404, html(), "accept".to_owned()),
        (by_id(), 410, json(json!({})), "accept".to_owned()),
        (by_id(), 401, json(json!({"message": "Unauthorized"})), "refresh".to_owned()),
    ] {
        let verdict = HousecallPro.judge(&request, &reply(status, body.clone()));
        assert_eq!(word(&verdict), expected, "`{}` {status} {body:?}", request.purpose);
    }
}

#[test]
fn token_answers() {
    let refused = |error: &str| Body::Json(json!({"error": error, "error_description": "Some sentence."}));
    for (status, body, expected) in [
        (400, refused("invalid_grant"), "Dead"),
        (401, refused("invalid_grant"), "Dead"),
        (200, refused("invalid_grant"), "Dead"),
        (401, refused("invalid_client"), "Misconfigured"),
        (400, refused("invalid_request"), "Retry"),
        (429, html(), "Retry"),
        (500, refused("invalid_grant"), "Retry"),
        (502, html(), "Retry"),
    ] {
        let verdict = format!("{:?}", HousecallPro.judge_token(status, &body));
        assert!(verdict.starts_with(expected), "{status} {body:?}: {verdict}");
    }
}

#[test]
fn a_refresh_names_the_redirect_again() {
    let fields = |step| {
        let (params, options) = (Params::new(), Options::new());
        let of =
            TokenContext { step, redirect_uri: "https://a.example/cb", params: &params, options: &options };
        HousecallPro.token_fields(&of)
    };
    assert_eq!(fields(TokenStep::Refresh), [("redirect_uri", "https://a.example/cb".to_owned())]);
    assert!(fields(TokenStep::Code).is_empty());
}

#[test]
fn the_account_is_the_company() {
    let identity = |body: Value| {
        let (params, options) = (Params::new(), Options::new());
        HousecallPro.identity(&Clues {
            grant: GrantKind::ApiKey,
            granted: &Value::Null,
            introspected: None,
            claims: None,
            params: &params,
            options: &options,
            known: None,
            replies: &[reply(200, Body::Json(body))],
        })
    };
    let account = |id: &str, name: Option<&str>| Account { id: id.to_owned(), name: name.map(str::to_owned) };
    assert_eq!(identity(json!({"id": "c1", "name": "Acme"})), Ok(account("c1", Some("Acme"))));
    assert_eq!(identity(json!({"id": "c1", "name": ""})), Ok(account("c1", None)));
    for nothing in [json!({}), json!({"id": ""}), json!({"id": 7}), json!([])] {
        assert!(identity(nothing.clone()).is_err(), "{nothing}");
    }
}

#[test]
fn the_pace_is_a_setting() {
    for (setting, limit, per) in [
        (None, 1, Duration::from_secs(1)),
        (Some(json!(60)), 1, Duration::from_secs(1)),
        (Some(json!(20)), 1, Duration::from_secs(3)),
        (Some(json!(0)), 1, Duration::from_mins(1)),
        (Some(json!(60)), 1, Duration::from_secs(1)),
        (Some(json!(120)), 20, Duration::from_secs(10)),
        (Some(json!(600)), 100, Duration::from_secs(10)),
        (Some(json!(-5)), 1, Duration::from_secs(1)),
    ] {
        let options: Options = setting.iter().map(|value| (PER_MINUTE.to_owned(), value.clone())).collect();
        let [bucket] = HousecallPro.buckets(&options).try_into().unwrap();
        assert_eq!((bucket.limit, bucket.per), (limit, per), "{setting:?}");
    }
}

#[test]
fn how_many_requests_are_under_way_is_a_setting() {
    for (setting, expected) in [(None, 1), (Some(json!(3)), 3), (Some(json!(0)), 1), (Some(json!(900)), 16)] {
        let options: Options = setting.iter().map(|value| (AT_ONCE.to_owned(), value.clone())).collect();
        assert_eq!(HousecallPro.in_flight_max(&options), expected, "{setting:?}");
    }
}

fn known(below: &[&str], read: &[&str]) -> Facts {
    Facts::from([(streams::LOCATIONS_FACT.to_owned(), json!({"own": "o", "below": below, "read": read}))])
}

fn only(ids: &[&str]) -> Options {
    Options::from([("location_ids".to_owned(), json!(ids))])
}

#[test]
fn which_locations_are_read() {
    for (setting, below, expected) in [
        (&[][..], &["a", "b"][..], &["a", "b", "o"][..]),
        (&[], &[], &["o"]),
        (&["b", "x"], &["a", "b"], &["b"]),
        (&["o"], &["a"], &["o"]),
        (&[" a ", ""], &["a"], &["a"]),
        (&["x", "y"], &["a"], &["x", "y"]),
    ] {
        let read = Known::of(&known(below, &[])).to_read(&only(setting));
        assert_eq!(read.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{setting:?} of {below:?}");
    }
    assert_eq!(Known::of(&known(&["a"], &["a", "o"])).left(&only(&["o"])), ["a"]);
    assert!(Known::of(&known(&["a"], &["o"])).left(&only(&["o"])).is_empty(), "never read");
}

#[test]
fn a_location_that_was_not_read_before_has_everything_read_again() {
    let last = |below: &[&str], read: &[&str], last: &[&str]| {
        let fact = json!({"own": "o", "below": below, "read": read, "last": last});
        Facts::from([(streams::LOCATIONS_FACT.to_owned(), fact)])
    };
    for (facts, setting, expected) in [
        (Facts::new(), &[][..], &[][..]),
        (known(&["a"], &["a", "b", "o"]), &[], &[]),
        (known(&["a"], &["a", "o"]), &[], streams::LOCATED),
        (known(&["a"], &["a", "o"]), &["a"], &[]),
        (known(&["a", "b"], &["a"]), &["a", "b"], streams::LOCATED),
        // Of an older program, which did not note what it read.
        (known(&["a"], &[]), &[], &[]),
        // Left out by the settings, and back in them.
        (last(&["a"], &["a", "b", "o"], &["a", "b", "o"]), &["o"], &[]),
        (last(&["a"], &["a", "b", "o"], &["o"]), &["o"], &[]),
        (last(&["a"], &["a", "b", "o"], &["o"]), &["a", "o"], streams::LOCATED),
        (last(&["a"], &["a", "b", "o"], &["o"]), &[], streams::LOCATED),
    ] {
        let options = only(setting);
        let started_at = DateTime::UNIX_EPOCH;
        let walk = Walk { mode: Mode::Snapshot, started_at, from: None, facts_as_of: None };
        let stream = SPEC.stream(streams::LOCATIONS_NAME).unwrap();
        let cx = StepContext { facts: &facts, options: &options, ..StepContext::bare(stream, &walk) };
        let company = json!({"id": "o", "locations": [{"id": "a"}, {"id": "b"}]});
        let replies = vec![reply(200, Body::Json(company))];
        let Step::Emit { page, .. } = locations::step(&cx, &Position::start(), replies).unwrap() else {
            panic!("one answer has them all")
        };
        assert_eq!(page.renews, expected, "{setting:?} {facts:?}");
        let of_page = Known::of(&page.facts);
        assert!(!of_page.is_more(&of_page.to_read(&options)), "what is read now is noted");
    }
}

#[test]
fn what_a_read_by_id_proves() {
    let facts = known(&["north"], &["o", "north"]);
    let started_at = DateTime::from_timestamp(1_777_881_600, 0).unwrap();
    let walk = Walk { mode: Mode::Sweep, started_at, from: None, facts_as_of: None };
    let context =
        |stream| StepContext { facts: &facts, ..StepContext::bare(SPEC.stream(stream).unwrap(), &walk) };
    let ids = ["job_1".to_owned(), "job_2".to_owned()];
    let cx = context("jobs");
    let (request, taken) = HousecallPro.probe_at(&cx, Some("o"), &ids).unwrap();
    assert_eq!((request.path.as_str(), taken), ("/jobs/job_1", 1));
    assert_eq!(request.headers, [], "the company itself");
    let (request, _) = HousecallPro.probe_at(&cx, Some("north"), &ids).unwrap();
    assert_eq!(request.headers, [(rounds::LOCATION_HEADER, "north".to_owned())]);
    let (request, _) = HousecallPro.probe_at(&cx, Some("o"), &["../employees?x".to_owned()]).unwrap();
    assert_eq!(request.path, "/jobs/employeesx");
    assert!(HousecallPro.probe_at(&cx, Some("south"), &ids).is_none(), "nobody knows where");
    let (request, _) = HousecallPro.probe_at(&cx, None, &ids).unwrap();
    assert_eq!(request.headers, [(rounds::LOCATION_HEADER, "north".to_owned())], "at any");
    let left = only(&["o"]);
    let left = StepContext { options: &left, ..context("jobs") };
    assert!(HousecallPro.probe_at(&left, None, &ids).is_none(), "it may be where nobody asks");
    for (asked, others) in [(Some("o"), ["north"]), (Some("north"), ["o"]), (None, ["o"])] {
        assert_eq!(HousecallPro.elsewhere(&cx, asked), others, "{asked:?}");
    }
    let (request, _) = HousecallPro.probe_at(&context("customers"), Some("o"), &ids).unwrap();
    assert_eq!(request.path, "/customers/job_1");
    for never in ["employees", "locations"] {
        assert_eq!(HousecallPro.place_column(&context(never)), None, "{never} have no read by id");
    }

    let crew = json!([{"id": "pro_1", "permissions": {}}]);
    for (status, body, expected) in [
        (200, json!({"id": "job_1", "assigned_employees": crew}), "here job_1"),
        (200, json!({"id": "job_2"}), "unknown"),
        (404, json!({"error": "not found"}), "gone 404"),
        (404, json!({"message": "Not Found"}), "gone 404"),
        (404, json!({"errors": {"id": ["is invalid"]}}), "gone 404"),
        (404, json!({"path": "/jobs/job_1"}), "unknown"),
        (404, json!("<?xml version=\"1.0\"?><error/>"), "gone 404"),
        (404, json!("<html><body>Not Found</body></html>"), "unknown"),
        (404, json!("<?xml version=\"1.0\"?><html/>"), "unknown"),
        (404, json!(""), "unknown"),
        (410, json!({}), "gone 410"),
        (410, json!("gone"), "unknown"),
        (400, json!({"error": {"message": "Archived job"}}), "gone 400 `Archived job`"),
        (400, json!({"error": "Archived job."}), "gone 400 `Archived job`"),
        (400, json!({"message": "archived job"}), "gone 400 `Archived job`"),
        (400, json!({"errors": {"job": ["Archived job"]}}), "gone 400 `Archived job`"),
        (400, json!({"message": "Bad request", "id": ["is an Archived Job"]}), "gone 400 `Archived job`"),
        (400, json!({"message": "Bad request", "id": ["is invalid"]}), "unknown"),
        (400, json!("<html>Bad Request</html>"), "unknown"),
        (403, json!({}), "unknown"),
    ] {
        let body = match body {
            Value::String(text) => Body::Text(text),
            json => Body::Json(json),
        };
        let [presence] =
            HousecallPro.probed(&cx, &ids[..1], &reply(status, body)).unwrap().try_into().unwrap();
        let shown = match presence {
            Presence::Here(record) => {
                let record = record.expect("the record is passed on");
                assert_eq!(record.raw["assigned_employees"], json!([{"id": "pro_1"}]));
                format!("here {}", record.id)
            }
            Presence::Gone { evidence } => format!("gone {}", evidence.rsplit_once("answered ").unwrap().1),
            Presence::Unknown => "unknown".to_owned(),
        };
        assert_eq!(shown, expected);
    }
    // Nothing at all: who has taken the time to look is the API.
    let mut nothing = reply(404, Body::Text(String::new()));
    nothing.headers.insert("x-runtime".to_owned(), "0.012".to_owned());
    let shown = HousecallPro.probed(&cx, &ids[..1], &nothing).unwrap();
    assert!(matches!(&shown[..], [Presence::Gone { .. }]), "{shown:?}");
}
