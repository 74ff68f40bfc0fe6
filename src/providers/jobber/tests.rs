//! What answers mean, what requests look like, and what a probe shows.

use chrono::DateTime;
use serde_json::{Value, json};

use super::*;
use crate::domain::step::{Facts, Params, Walk};

fn reply(status: u16, body: Value) -> Reply {
    Reply { status, headers: [].into(), body: Body::Json(body), sent_at: DateTime::UNIX_EPOCH }
}

fn asked(purpose: &'static str, after: Value) -> Request {
    ask(&Options::new(), purpose, document::ACCOUNT.to_owned(), json!({"n": 50, "after": after}))
}

fn error(message: &str, extensions: Value) -> Value {
    json!({"errors": [{"message": message, "extensions": extensions}], "data": null})
}

fn throttled(requested: u64, left: u64, max: u64) -> Value {
    let mut body = error("Throttled", json!({"code": "THROTTLED"}));
    body["extensions"] = json!({"cost": {"requestedQueryCost": requested, "actualQueryCost": 0,
        "throttleStatus": {"maximumAvailable": max, "currentlyAvailable": left, "restoreRate": 500}}});
    body
}

/// The verdict in a word, with what it waits for.
fn verdict(request: &Request, reply: &Reply) -> String {
    match Jobber.judge(request, reply) {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Throttled { bucket, wait_ms } => format!("throttled {bucket} {wait_ms:?}"),
        Verdict::Retry { wait_ms, .. } => format!("retry {wait_ms:?}"),
        Verdict::RefreshToken => "refresh".to_owned(),
        Verdict::RestartPaging { .. } => "restart".to_owned(),
        Verdict::Fail(failure) => failure.kind.label().to_owned(),
    }
}

#[test]
fn what_answers_mean() {
    let jobs = || asked("jobs", Value::Null);
    let later = || asked("jobs", json!("Mg"));
    let account = || asked("account", Value::Null);
    let unknown = || error("Field 'x' doesn't exist on type 'Job'", json!({"code": "undefinedField"}));
    let hidden = || error("The field x on an object of type Job was hidden due to permissions", Value::Null);
    let gone =
        || json!({"message": "User has disconnected this app from their account. Please delete this token"});
    let cursor = || error("Invalid cursor for argument 'after'", Value::Null);
    let mut partial = json!({"data": {"jobs": {"nodes": [{"id": "1", "client": null}]}}});
    partial["errors"] =
        json!([{"message": "An unexpected error occurred", "path": ["jobs", "nodes", 0, "client"]}]);
    for (request, status, body, expected) in [
        (jobs(), 200, json!({"data": {}}), "accept"),
        (jobs(), 200, json!({"data": null}), "provider_changed"),
        (jobs(), 200, json!({"message": "moved"}), "provider_changed"),
        (jobs(), 200, json!([]), "provider_changed"),
        (jobs(), 200, partial, "retry None"),
        (jobs(), 200, throttled(1_400, 400, 10_000), "throttled points Some(3000)"),
        (jobs(), 429, throttled(1_400, 400, 10_000), "throttled points Some(3000)"),
        (jobs(), 200, throttled(1_400, 1_400, 10_000), "throttled points Some(1000)"),
        (jobs(), 200, throttled(20_000, 9_000, 10_000), "accept"),
        (jobs(), 429, throttled(20_000, 9_000, 10_000), "accept"),
        (jobs(), 400, throttled(20_000, 9_000, 10_000), "accept"),
        (jobs(), 503, throttled(20_000, 9_000, 10_000), "accept"),
        (jobs(), 403, throttled(1_400, 400, 10_000), "throttled points Some(3000)"),
        (account(), 200, throttled(20_000, 9_000, 10_000), "provider_changed"),
        (account(), 429, throttled(20_000, 9_000, 10_000), "provider_changed"),
        (jobs(), 200, error("Throttled", Value::Null), "throttled points None"),
        (jobs(), 429, json!("Too Many Requests"), "throttled requests None"),
        (jobs(), 200, error("no", json!({"code": "UNAUTHENTICATED"})), "refresh"),
        (jobs(), 401, json!({"message": "Access token expired"}), "refresh"),
        (jobs(), 200, gone(), "needs_reauth"),
        (jobs(), 401, gone(), "needs_reauth"),
        (account(), 403, gone(), "needs_reauth"),
        (jobs(), 200, json!({"error": {"message": "This account is not active"}}), "needs_reauth"),
        (jobs(), 200, json!({"message": "Service temporarily unavailable"}), "retry Some(60000)"),
        (jobs(), 503, json!({"message": "Service temporarily unavailable"}), "retry Some(60000)"),
        (jobs(), 502, json!({}), "retry None"),
        (jobs(), 200, unknown(), "accept"),
        (account(), 200, unknown(), "provider_changed"),
        (jobs(), 200, hidden(), "accept"),
        (account(), 200, hidden(), "forbidden"),
        (jobs(), 403, json!({}), "forbidden"),
        (jobs(), 404, json!({}), "our_bug"),
        (later(), 200, cursor(), "restart"),
        (jobs(), 200, cursor(), "retry None"),
        (
            account(),
            200,
            json!({"data": {"appDisconnect": {"userErrors": [{"message": "no"}]}}}),
            "provider_changed",
        ),
        (account(), 200, json!({"data": {"appDisconnect": {"userErrors": []}}}), "accept"),
    ] {
        assert_eq!(verdict(&request, &reply(status, body.clone())), expected, "{status} {body}");
    }
    let html = Reply { body: Body::Text("<html>".to_owned()), ..reply(200, Value::Null) };
    assert_eq!(verdict(&jobs(), &html), "retry None");
}

#[test]
fn what_the_token_endpoint_says() {
    let not_valid = || json!({"message": "The provided refresh token is not valid."});
    for (status, body, expected) in [
        (400, not_valid(), "dead"),
        (401, not_valid(), "dead"),
        (403, json!({}), "dead"),
        (401, json!({"error": "invalid_grant"}), "dead"),
        (401, json!({"error": "invalid_client"}), "misconfigured"),
        (404, not_valid(), "retry"),
        (429, not_valid(), "retry"),
        (500, not_valid(), "retry"),
        (503, json!({"error": "invalid_grant"}), "retry"),
    ] {
        let verdict = match Jobber.judge_token(status, &Body::Json(body.clone())) {
            TokenVerdict::Dead(said) => {
                assert!(!said.is_empty(), "{body}");
                "dead"
            }
            TokenVerdict::Misconfigured(_) => "misconfigured",
            TokenVerdict::Retry(_) => "retry",
        };
        assert_eq!(verdict, expected, "{status} {body}");
    }
}

#[test]
fn what_is_left_of_the_budget() {
    let status = json!({"maximumAvailable": 10000.0, "currentlyAvailable": 9380, "restoreRate": 500.0});
    let told =
        reply(200, json!({"extensions": {"cost": {"actualQueryCost": 620, "throttleStatus": status}}}));
    let limit = Jobber.limits(&asked("jobs", Value::Null), &told).unwrap();
    assert_eq!((limit.bucket, limit.max, limit.remaining), (POINTS, Some(10_000), Some(9_380)));
    assert_eq!((limit.per_ms, limit.charged), (Some(20_000), Some(620)));
    assert_eq!(Jobber.limits(&asked("jobs", Value::Null), &reply(200, json!({"data": {}}))), None);
}

#[test]
fn requests_name_the_version_and_what_they_cost() {
    let options: Options = [("graphql_version".to_owned(), json!("2026-05-12"))].into();
    let page = document::JOBS.page(&[], None);
    let request = ask(&options, "jobs", page, json!({"n": 50, "after": null}));
    assert_eq!(request.headers, [("x-jobber-graphql-version", "2026-05-12".to_owned())]);
    assert_eq!((request.path.as_str(), request.buckets), ("/graphql", BUCKETS));
    // The account and its id, the list, 50 times 28 fields and a cursor, the page's three.
    assert_eq!(request.points, 2 + 1 + 50 * 29 + 3);
    assert_eq!(asked("account", Value::Null).headers[0].1, VERSION, "where nothing is set");
}

/// Does something in a sweep of jobs.
fn in_sweep<T>(facts: &Facts, then: impl FnOnce(&StepContext<'_>) -> T) -> T {
    let walk = Walk { mode: Mode::Sweep, started_at: DateTime::UNIX_EPOCH, from: None, facts_as_of: None };
    let stream = SPEC.stream("jobs").unwrap();
    then(&StepContext { page_size: 50, facts, ..StepContext::bare(stream, &walk) })
}

/// Otherwise what it did not meet would count as gone.
#[test]
fn a_list_that_never_held_still_is_not_read_as_a_whole() {
    for (unsteady, whole) in [(false, true), (true, false)] {
        let at = Position::of(&json!({"reading": 1, "unsteady": unsteady}));
        let step = in_sweep(&Facts::new(), |cx| walk::step(cx, &at, &[])).unwrap();
        assert_eq!(step == Step::Done, whole, "{step:?}");
        assert_eq!(matches!(&step, Step::Partial { why } if why.contains("never held still")), !whole);
    }
}

fn ids(count: u32) -> Vec<String> {
    (0..count).map(|n| format!("J{n}")).collect()
}

#[test]
fn a_probe_learns_what_it_may_cost_and_ask_for() {
    let mut facts = Facts::new();
    // The points that the next probe asks for, and the records.
    let asked = |facts: &Facts| {
        in_sweep(facts, |cx| {
            let (request, taken) = Jobber.probe(cx, &ids(30)).unwrap();
            (request.points, taken)
        })
    };
    let teach = |facts: &mut Facts, of: u32, body: Value| {
        let news = in_sweep(facts, |cx| Jobber.taught(cx, &ids(of), &reply(200, body)));
        facts.extend(news.expect("there is something to learn"));
    };
    assert_eq!(asked(&facts), (2 + 20 * 29, 20));
    // By what the budget holds; and where a field costs more than we reckon, by half of what was asked for.
    teach(&mut facts, 20, throttled(582, 400, 400));
    assert_eq!(asked(&facts), (2 + 5 * 29, 5));
    teach(&mut facts, 5, throttled(500, 400, 400));
    assert_eq!(asked(&facts), (2 + 2 * 29, 2));
    let hidden = error("The field total on an object of type Job was hidden due to permissions", Value::Null);
    teach(&mut facts, 2, hidden.clone());
    assert_eq!(asked(&facts), (2 + 2 * 28, 2));
    let unknown = error(
        "Field 'outstandingAmount' doesn't exist on type 'JobBalanceTotals'",
        json!({"code": "undefinedField", "fieldName": "outstandingAmount"}),
    );
    teach(&mut facts, 2, unknown);
    assert_eq!(asked(&facts), (2 + 2 * 25, 2));

    // Where an id is not taken each is asked for by itself.
    let invalid = error(
        "Argument 'id' on Field 'job' has an invalid value ('x'). Expected type 'EncodedId!'.",
        json!({"code": "argumentLiteralsIncompatible", "typeName": "Field", "argumentName": "id"}),
    );
    let mut alone = facts.clone();
    teach(&mut alone, 2, invalid.clone());
    assert_eq!(asked(&alone).1, 1);

    // What is no lesson: one record that is too dear or whose id is not taken, a part that is left out already, what no
    // query can do without, and an answer.
    let needed =
        error("The field jobNumber on an object of type Job was hidden due to permissions", Value::Null);
    for (of, body) in [
        (1, throttled(500, 400, 400)),
        (1, invalid),
        (2, hidden),
        (2, needed),
        (2, throttled(100, 50, 400)),
        (2, json!({"data": {"account": {"id": "A"}}})),
    ] {
        let taught = in_sweep(&facts, |cx| Jobber.taught(cx, &ids(of), &reply(200, body.clone())));
        assert_eq!(taught, None, "{body}");
    }
    let dear = |cx: &StepContext<'_>| Jobber.probed(cx, &ids(1), &reply(200, throttled(500, 400, 400)));
    assert_eq!(in_sweep(&facts, dear).unwrap_err().kind, FailureKind::ProviderChanged);
}

/// What a probe for two jobs shows, as words.
fn probed(facts: &Facts, body: Value) -> Result<Vec<String>, Failure> {
    let shown = in_sweep(facts, |cx| Jobber.probed(cx, &ids(2), &reply(200, body)))?;
    Ok(shown
        .into_iter()
        .map(|presence| match presence {
            Presence::Here(record) => format!("here {}", record.unwrap().id),
            Presence::Gone { evidence } => evidence,
            Presence::Unknown => "unknown".to_owned(),
        })
        .collect())
}

#[test]
fn what_is_gone_is_proven() {
    let ours: Facts = [("account_id".to_owned(), json!("A"))].into();
    let data = json!({"data": {"account": {"id": "A"}, "r0": {"id": "J0"}, "r1": null}});
    assert_eq!(probed(&ours, data.clone()).unwrap(), ["here J0", "Jobber knows no job of this id"]);
    let nothing = ["unknown"; 2];
    assert_eq!(probed(&Facts::new(), data).unwrap(), nothing, "whose answer it is has to be known");
    let other = json!({"data": {"account": {"id": "B"}, "r0": null, "r1": null}});
    assert_eq!(probed(&ours, other).unwrap(), nothing);
    assert_eq!(probed(&ours, json!({"data": {"account": {"id": "A"}}})).unwrap(), nothing);
    let lacks = error(
        "Field 'job' doesn't exist on type 'Query'",
        json!({"code": "undefinedField", "fieldName": "job"}),
    );
    assert_eq!(probed(&ours, lacks).unwrap(), ["not among all jobs that Jobber lists"; 2]);
    for not_taken in [
        error("Argument 'id' on Field 'job' has an invalid value (x).", Value::Null),
        error("Field 'job' doesn't accept argument 'id'", json!({"code": "argumentNotAccepted"})),
        error("Variable $id was provided invalid value", json!({"problems": []})),
    ] {
        assert_eq!(probed(&ours, not_taken.clone()).unwrap(), nothing, "{not_taken}");
    }
    let wrong = error("Field must have selections (job)", json!({"code": "selectionMismatch"}));
    assert!(probed(&ours, wrong).is_err(), "nor is anything gone where the query is wrong");
    let hidden = error("The field job on an object of type Query was hidden due to permissions", Value::Null);
    assert_eq!(probed(&ours, hidden).unwrap_err().kind.label(), "forbidden");
}

#[test]
fn whose_account_it_is() {
    let told = |body| {
        let clues = Clues {
            grant: GrantKind::AuthorizationCode,
            granted: &Value::Null,
            introspected: None,
            claims: None,
            params: &Params::new(),
            options: &Options::new(),
            known: None,
            replies: &[reply(200, body)],
        };
        Jobber.identity(&clues)
    };
    let account = told(json!({"data": {"account": {"id": "A", "name": "Acme"}}})).unwrap();
    assert_eq!((account.id.as_str(), account.name.as_deref()), ("A", Some("Acme")));
    assert_eq!(told(json!({"data": {"account": {"id": "A", "name": ""}}})).unwrap().name, None);
    assert_eq!(told(json!({"data": {"account": null}})).unwrap_err().kind, FailureKind::ProviderChanged);
}
