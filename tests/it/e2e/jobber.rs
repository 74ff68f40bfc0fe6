//! Jobber: the mirror against the sandbox's truth, and what its API is peculiar about.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::DateTime;
use fieldmirror::domain::time::{Clock as _, SystemClock};
use fieldmirror::sandbox::SandboxOptions;
use fieldmirror::sandbox::jobber::{Change, Jobber};
use serde_json::{Value, json};
use url::Url;

use crate::support::app::{TestApp, get_with_cookie, small};
use crate::support::truth::no_column_is_left_out;

/// A walk writes page by page: what is on its way may take this long.
const SETTLES_IN: Duration = Duration::from_mins(3);

const ALL_READ: &str =
    "SELECT count(*) = 3 AND bool_and(backfill_done AND state = 'idle') AS done FROM mirror.freshness";

const MIRRORED: &str = "SELECT u.id, u.number, u.title, u.status, u.provider_status, u.customer_id, u.customer_name, u.address,
        u.assigned_to, u.url, u.started_at, u.cancelled_at, u.provider, u.connection_name, u.raw = j.raw AS same_raw,
        (u.total_amount * 100)::bigint AS total, (u.outstanding_amount * 100)::bigint AS outstanding,
        (extract(epoch FROM u.created_at) * 1000)::bigint AS created, (extract(epoch FROM u.updated_at) * 1000)::bigint AS updated,
        (extract(epoch FROM u.scheduled_start) * 1000)::bigint AS starts, (extract(epoch FROM u.scheduled_end) * 1000)::bigint AS ends,
        (extract(epoch FROM u.completed_at) * 1000)::bigint AS completed, u.deleted_at IS NOT NULL AS gone,
        u.synced_at IS NOT NULL AS synced
     FROM mirror.jobs u JOIN mirror.jobber_jobs j USING (connection_id, id)";

/// The app with its first account.
struct Rig {
    app: TestApp,
    account: String,
}

impl Rig {
    async fn new(options: SandboxOptions, settings: &[(&str, &str)]) -> Self {
        let app = TestApp::new(options, settings).await;
        let account = app.sandbox.control().jobber().account_ids()[0].clone();
        Self { app, account }
    }

    fn jobber(&self) -> &Jobber {
        self.app.sandbox.control().jobber()
    }

    async fn mirrored(&self) {
        self.app.consent("enqueue --connect jobber --name acme").await;
        self.all_read().await;
    }

    async fn all_read(&self) {
        self.app.wait_until("everything has been read once", ALL_READ).await;
    }

    #[track_caller]
    fn change(&self, change: Value) -> String {
        let change: Change = serde_json::from_value(change).expect("a change");
        self.jobber().change(&self.account, &change).unwrap()
    }

    fn truth(&self) -> Vec<Value> {
        self.jobber().truth(&self.account).unwrap()
    }

    /// Ids of jobs that live, of those that `wanted` picks.
    fn jobs(&self, wanted: impl Fn(&Value) -> bool) -> Vec<String> {
        let truth = self.truth();
        let live = truth.iter().filter(|job| job["state"] == "live" && wanted(job));
        live.map(|job| text(&job["record"]["id"])).collect()
    }

    /// Holds every job against every row.
    async fn hold_against_mirror(&self) {
        let began = Instant::now();
        let mut differences = self.differences().await;
        while !differences.is_empty() && began.elapsed() < SETTLES_IN {
            tokio::time::sleep(Duration::from_millis(250)).await;
            differences = self.differences().await;
        }
        let shown: Vec<&String> = differences.iter().take(10).collect();
        assert!(differences.is_empty(), "{} differences, the first: {shown:#?}", differences.len());
    }

    async fn differences(&self) -> Vec<String> {
        no_column_is_left_out(&self.app, "jobs", MIRRORED).await;
        let rows = self.app.rows(MIRRORED).await.into_iter().map(|row| (text(&row["id"]), row));
        let mut rows: BTreeMap<String, Value> = rows.collect();
        let mut found = Vec::new();
        for job in self.truth() {
            let id = text(&job["record"]["id"]);
            match rows.remove(&id) {
                Some(row) => compare(&job, row, &mut found),
                // What came and went between two walks was never seen.
                None if job["state"] == "deleted" => {}
                None => found.push(format!("{id} is not in the mirror")),
            }
        }
        found.extend(rows.into_keys().map(|id| format!("{id} is in the mirror only")));
        found
    }
}

fn compare(job: &Value, mut row: Value, found: &mut Vec<String>) {
    let mut expected = expected(job);
    if let (Some(names), Some(mirrored)) = (expected["assigned_to"].as_array(), row["assigned_to"].as_array())
    {
        // The order is the collation's.
        let sorted = |names: &[Value]| {
            let mut names = names.to_vec();
            names.sort_by_key(text);
            names
        };
        let (names, mirrored) = (sorted(names), sorted(mirrored));
        (expected["assigned_to"], row["assigned_to"]) = (names.into(), mirrored.into());
    }
    for (column, value) in expected.as_object().expect("an object") {
        if row[column] != *value {
            found.push(format!("{column} of {}: {value}, and in the mirror {}", row["id"], row[column]));
        }
    }
    if row.as_object().map(serde_json::Map::len) != expected.as_object().map(serde_json::Map::len) {
        found.push("not every column is compared".to_owned());
    }
}

/// What a row should say, worked out by hand from the record and its visits; of a job that was deleted, as it was before,
/// without the visits that went with it.
fn expected(job: &Value) -> Value {
    let record = &job["record"];
    let visits = job["visits"].as_array().cloned().unwrap_or_default();
    let times = |key: &str| visits.iter().filter_map(|visit| millis(&visit[key])).collect::<Vec<_>>();
    let starts = millis(&record["startAt"]).or(times("startAt").into_iter().min());
    let ends = millis(&record["endAt"]).or(times("endAt").into_iter().max());
    let status = match () {
        () if !record["completedAt"].is_null() => "completed",
        () if record["jobStatus"] == "archived" => "archived",
        () if record["jobStatus"] == "awaiting_parts" => "other",
        () if visits.iter().any(|visit| visit["visitStatus"] == "COMPLETED") => "in_progress",
        () if starts.is_some() => "scheduled",
        () => "unscheduled",
    };
    let mut names: Vec<String> = visits
        .iter()
        .flat_map(|visit| {
            visit["assignedUsers"].as_array().unwrap().iter().map(|user| text(&user["name"]["full"]))
        })
        .collect();
    names.sort();
    names.dedup();
    let address = &record["property"]["address"];
    let parts = ["street", "city", "province", "postalCode", "country"].map(|key| text(&address[key]));
    let address = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
    let filled = |value: Value| if value == "" { Value::Null } else { value };
    let cents = |value: &Value| value.as_f64().map(|amount| (amount * 100.0).round());
    #[expect(clippy::cast_possible_truncation, reason = "amounts are small")]
    let cents = |value: &Value| cents(value).map(|cents| cents as i64);
    json!({
        "id": record["id"], "number": record["jobNumber"].to_string(), "title": filled(record["title"].clone()), "status": status,
        "provider_status": record["jobStatus"], "customer_id": record["client"]["id"],
        "customer_name": filled(record["client"]["name"].clone()), "address": filled(address.into()),
        "assigned_to": if names.is_empty() { Value::Null } else { json!(names) }, "url": record["jobberWebUri"],
        "started_at": null, "cancelled_at": null, "provider": "jobber", "connection_name": "acme", "same_raw": true,
        "total": cents(&record["total"]), "outstanding": cents(&record["jobBalanceTotals"]["outstandingAmount"]),
        "created": millis(&record["createdAt"]), "updated": millis(&record["updatedAt"]), "starts": starts, "ends": ends,
        "completed": millis(&record["completedAt"]), "gone": job["state"] == "deleted", "synced": true,
    })
}

fn millis(time: &Value) -> Option<i64> {
    let time = time.as_str().map(|time| DateTime::parse_from_rfc3339(time).expect("a time"));
    time.map(|time| time.timestamp_millis())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_and_follows() {
    let rig = Rig::new(small(150), &[]).await;
    let app = &rig.app;
    let daemon = app.daemon().await;
    rig.mirrored().await;
    rig.hold_against_mirror().await;
    let status = app.run("status --json").await.done().last();
    let notice = &status["connections"][0]["notices"]["api_version"];
    assert_eq!(notice, "Jobber serves version 2025-04-16 of its API", "{status}");
    assert_eq!(status["connections"][0]["account_id"], json!(rig.account));
    assert_eq!(status["connections"][0]["account_name"], "Acme Field Services 1");
    assert!(app.run("status").await.done().stdout.contains("note: Jobber serves version 2025-04-16"));

    // What jobs tell by their modification, newest first.
    let open = rig.jobs(|job| job["record"]["completedAt"].is_null() && job["visits"].is_array());
    rig.change(json!({"do": "change", "id": open[0], "title": "changed from outside"}));
    rig.change(json!({"do": "complete", "id": open[1]}));
    rig.change(json!({"do": "archive", "id": open[2]}));
    rig.change(json!({"do": "schedule", "id": open[3], "start_ms": null, "end_ms": null}));
    rig.change(json!({"do": "create", "title": "made from outside"}));
    // What becomes of visits: of changed jobs, new ones, and those about now.
    let now = SystemClock.now().timestamp_millis();
    let visit = rig.change(json!({"do": "add_visit", "job": open[4], "start_ms": now + 3_600_000}));
    app.wait_until(
        "the new job and the new visit",
        "SELECT count(*) = 1 AND (SELECT count(*) = 1 FROM mirror.jobber_visits WHERE title = 'Added')
         FROM mirror.jobs WHERE title = 'made from outside'",
    )
    .await;
    let swept = "SELECT count(*) FROM mirror.sync_runs WHERE mode = 'sweep'";
    assert_eq!(app.number(swept).await, 0, "some polls, and no sweep");
    rig.change(json!({"do": "assign_visit", "id": visit, "user": 5}));
    rig.change(json!({"do": "complete_visit", "id": visit}));
    let client = text(&rig.truth()[0]["record"]["client"]["id"]);
    rig.change(json!({"do": "rename_client", "id": client, "name": "Renamed & Daughters"}));
    app.wait_until(
        "the new name",
        "SELECT count(*) > 0 FROM mirror.jobs WHERE customer_name = 'Renamed & Daughters'",
    )
    .await;
    rig.app
        .wait_until(
            "the visit is done",
            "SELECT visit_status = 'COMPLETED' FROM mirror.jobber_visits WHERE title = 'Added'",
        )
        .await;
    let raw = "SELECT count(*) FROM mirror.sync_runs WHERE mode = 'backfill'";
    assert_eq!(app.number(raw).await, 3, "nothing was read whole again");

    // What leaves no trace is found when all is read again.
    rig.change(json!({"do": "delete", "id": open[5]}));
    rig.change(json!({"do": "change", "id": open[6], "title": "quietly", "quiet": true}));
    let swept = app.run("enqueue --resync acme --full --wait --json").await.done().last();
    assert_eq!(swept["requests"][0]["outcome"], "done", "{swept}");
    rig.hold_against_mirror().await;
    let evidence =
        app.one("SELECT deleted_evidence FROM mirror.jobber_jobs WHERE deleted_at IS NOT NULL").await;
    assert!(text(&evidence).contains("knows no job"), "{evidence}");
    daemon.stop().await;
    assert_eq!(
        app.number("SELECT sum(throttled)::bigint FROM mirror.sync_runs").await,
        0,
        "nothing was refused"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consents_that_come_back_in_odd_ways() {
    let rig = Rig::new(small(5), &[]).await;
    let app = &rig.app;
    let daemon = app.daemon().await;
    let asked = app.run("enqueue --connect jobber --name acme --no-wait --json").await.done().last();
    let start = Url::parse(asked["start_url"].as_str().unwrap()).unwrap();
    let began = get_with_cookie(&start, None).await;
    let cookie = began.cookie.expect("a cookie");
    let with_answer = |page: &str, auto: &str| {
        let mut page = Url::parse(page).unwrap();
        page.query_pairs_mut().append_pair("auto", auto);
        page
    };
    // From the marketplace: a code that nobody asked for is not redeemed, the consent starts once more.
    let page = with_answer(&began.location.unwrap(), "marketplace");
    let back = get_with_cookie(&page, None).await.location.unwrap();
    assert!(back.contains("code=") && !back.contains("state="), "{back}");
    let back = Url::parse(&back).unwrap();
    assert_eq!(get_with_cookie(&back, None).await.status, 400, "nobody's");
    let again = get_with_cookie(&back, Some(&cookie)).await;
    assert_eq!(again.status, 302, "{}", again.body);
    assert_eq!(app.asked("token_exchange"), 0);
    // Declined: there is nothing in the address but the cookie tells.
    let page = with_answer(&again.location.unwrap(), "deny");
    let back = get_with_cookie(&page, None).await.location.unwrap();
    assert!(!back.contains('?'), "{back}");
    let back = Url::parse(&back).unwrap();
    let cookie = again.cookie.expect("a cookie");
    assert_eq!(get_with_cookie(&back, None).await.status, 400);
    let declined = get_with_cookie(&back, Some(&cookie)).await;
    assert!(declined.status == 400 && declined.body.contains("declined at Jobber"), "{}", declined.body);
    let outcome = app.one("SELECT outcome FROM fieldmirror.requests").await;
    assert_eq!(outcome, "denied");
    // The link is still good.
    let began = get_with_cookie(&start, None).await;
    let page = with_answer(&began.location.unwrap(), "approve");
    let back = Url::parse(&get_with_cookie(&page, None).await.location.unwrap()).unwrap();
    let connected = get_with_cookie(&back, Some(&began.cookie.unwrap())).await;
    assert_eq!(connected.status, 200, "{}", connected.body);
    rig.all_read().await;
    rig.hold_against_mirror().await;

    // The other end: the app is removed from the account, and only then forgotten.
    let gone = app.run("enqueue --disconnect acme --wait --json").await.done().last();
    assert_eq!(gone["requests"][0]["outcome"], "done", "{gone}");
    assert_eq!(app.asked("disconnect"), 1);
    assert_eq!(rig.jobber().disconnect(&rig.account), 0, "nothing was left to revoke");
    assert_eq!(app.number("SELECT count(*) FROM mirror.jobs").await, 5);
    daemon.stop().await;
}

/// Neither `expires_in` nor `token_type`: the JWT tells, or a date in a form of its own. Each refresh token dies when it
/// is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rotate_and_are_renewed_in_time() {
    let watch = async |faults: &[&str]| {
        let options = SandboxOptions { access_token_life: Duration::from_secs(8), ..small(20) };
        let rig = Rig::new(options, &[]).await;
        rig.app.faults(faults);
        let daemon = rig.app.daemon().await;
        rig.mirrored().await;
        rig.app.wait_until("two refreshes", "SELECT generation > 2 FROM fieldmirror.tokens").await;
        daemon.stop().await;
        let counters = rig.app.sandbox.control().counters();
        let tokens = counters["refresh_tokens"]["jobber"].as_array().unwrap();
        assert!(
            tokens.iter().all(|token| token["redeemed"].as_i64() <= Some(1) && token["replays"] == 0),
            "{counters}"
        );
        rig.app.none_refused(401);
        assert_eq!(rig.app.number("SELECT count(*) FROM mirror.sync_runs WHERE outcome = 'failed'").await, 0);
    };
    tokio::join!(watch(&[]), watch(&["expires_at", "opaque_tokens"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_was_removed_is_reported_and_healed() {
    let rig = Rig::new(small(30), &[]).await;
    let app = &rig.app;
    let daemon = app.daemon().await;
    rig.mirrored().await;
    assert_eq!(rig.jobber().disconnect(&rig.account), 1);
    app.wait_until("it is noticed", "SELECT state = 'needs_reauth' FROM mirror.connections").await;
    let ran = app.run("status --check --json").await;
    assert_eq!(ran.code, 1);
    let connection = ran.last()["connections"][0].clone();
    assert!(text(&connection["next_action"]).contains("--reconnect acme"), "{connection}");
    assert!(text(&connection["reason"]).contains("disconnected the app"), "{connection}");
    assert_eq!(app.number("SELECT count(*) FROM mirror.jobs").await, 30, "what is mirrored stays");
    rig.change(json!({"do": "create", "title": "meanwhile"}));
    app.consent("enqueue --reconnect acme").await;
    app.wait_until("it goes on", "SELECT count(*) = 1 FROM mirror.jobs WHERE title = 'meanwhile'").await;
    rig.hold_against_mirror().await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_loses_nothing() {
    let rig = Rig::new(small(120), &[]).await;
    let app = &rig.app;
    app.faults(&[
        "throttle_storm=1x,on:jobs",
        "throttle_storm=1x,on:visits",
        "partial_data=1x,on:jobs",
        "partial_data=1x,on:visits",
        "http_502=1x,on:clients",
        "html_ok=1x,on:clients",
        "torn=1x,on:clients",
        "drop=1x,on:visits",
        "expired_auth=1x,on:visits",
    ]);
    let daemon = app.daemon().await;
    rig.mirrored().await;
    rig.hold_against_mirror().await;
    daemon.stop().await;
    assert_eq!(
        app.number("SELECT sum(throttled)::bigint FROM mirror.sync_runs").await,
        2,
        "each was counted"
    );
    assert_eq!(rig.jobber().came_early(), 0, "what was refused waits until its points are back");
}

/// While everything is read for the first time, what the reserve leaves of the points is used, and none is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_points_are_used_and_none_is_refused() {
    // Of 10,000 points, and 500 more in each second, a tenth is left to others.
    const AT_ONCE: f64 = 9_000.0;
    const EACH_S: f64 = 450.0;
    const LEAST: Duration = Duration::from_secs(5);
    let rig = Rig::new(small(2_000), &[]).await;
    let daemon = rig.app.daemon().await;
    let spent = || f64::from(i32::try_from(rig.jobber().points_spent()).unwrap());
    rig.app.consent("enqueue --connect jobber --name acme").await;
    let before = Instant::now();
    while rig.app.asked("jobs") == 0 {
        assert!(before.elapsed() < SETTLES_IN, "nothing is asked");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let began = Instant::now();
    let left = || AT_ONCE + EACH_S * began.elapsed().as_secs_f64();
    while began.elapsed() < LEAST || spent() < 0.9 * left() {
        assert!(began.elapsed() < SETTLES_IN, "{} points of {}", spent(), left());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let pending = "SELECT count(*) FROM mirror.freshness WHERE NOT backfill_done";
    assert!(rig.app.number(pending).await > 0, "there was more to read all the time");
    daemon.stop().await;
    let refused = "SELECT coalesce(sum(throttled), 0)::bigint FROM mirror.sync_runs";
    rig.app.metronome.none("refused", rig.app.number(refused).await.unsigned_abs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_trouble_leaves_the_others_alone() {
    let rig = Rig::new(small(40), &[]).await;
    let app = &rig.app;
    app.faults(&[
        "malformed=/data/clients/nodes/*/id,on:clients",
        "hidden_field=Visit.assignedUsers",
        "unknown_field=Job.jobBalanceTotals",
        "old_version",
        // A page of jobs as it is set costs more than this.
        "points_max=800",
    ]);
    let daemon = app.daemon().await;
    app.consent("enqueue --connect jobber --name acme").await;
    app.wait_until(
        "clients are stalled, the others are read",
        "SELECT jsonb_object_agg(stream, state) @> '{\"clients\": \"stalled\"}'
            AND bool_and(backfill_done) FILTER (WHERE stream <> 'clients') FROM mirror.freshness",
    )
    .await;
    app.wait_until(
        "jobs go on",
        "SELECT count(*) > 1 FROM mirror.sync_runs WHERE stream = 'jobs' AND mode = 'incremental' AND outcome = 'closed'",
    )
    .await;
    assert_eq!(app.number("SELECT count(*) FROM mirror.jobs").await, 40);
    assert_eq!(app.number("SELECT count(outstanding_amount) + count(assigned_to) FROM mirror.jobs").await, 0);
    assert!(app.number("SELECT count(customer_name) FROM mirror.jobs").await > 30, "jobs show names");
    let status = app.run("status --json").await.done().last();
    let notices = &status["connections"][0]["notices"];
    assert!(text(&notices["api_version"]).contains("though 2025-04-16 is asked for; it says"), "{notices}");
    assert!(text(&notices["without.jobs"]).contains("without jobBalanceTotals"), "{notices}");
    assert!(text(&notices["without.visits"]).contains("without assignedUsers"), "{notices}");

    // What a turn has just learned holds for the probes of that turn: a field that is hidden by now, and a budget that ten
    // jobs are too dear for.
    let faults = "malformed=/data/clients/nodes/*/id,on:clients unknown_field=Job.jobBalanceTotals \
                  hidden_field=Visit.assignedUsers hidden_field=Job.instructions points_max=200";
    app.faults(&faults.split_whitespace().collect::<Vec<_>>());
    for job in rig.jobs(|_| true).iter().take(10) {
        rig.change(json!({"do": "delete", "id": job}));
    }
    let swept = app.run("enqueue --resync acme --stream jobs --full --wait --json").await.done().last();
    assert_eq!(swept["requests"][0]["outcome"], "done", "{swept}");
    let gone = "SELECT count(*) FROM mirror.jobber_jobs WHERE deleted_evidence LIKE '%knows no job%'";
    assert_eq!(app.number(gone).await, 10);
    daemon.stop().await;
}
