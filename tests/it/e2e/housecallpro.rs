//! Housecall Pro: the mirror against the sandbox's truth, and what its API is peculiar about.

use std::collections::{BTreeMap, VecDeque};
use std::process::Stdio;
use std::time::{Duration, Instant};

use chrono::{DateTime, NaiveDateTime};
use fieldmirror::domain::time::{Clock as _, SystemClock};
use fieldmirror::sandbox::SandboxOptions;
use fieldmirror::sandbox::housecallpro::{Change, Housecallpro};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::support::app::{PATIENCE, TestApp, small};
use crate::support::not_checked;
use crate::support::truth::{no_column_is_left_out, not_compared};

/// A walk writes page by page: what is on its way may take this long.
const SETTLES_IN: Duration = Duration::from_mins(3);

const ALL_READ: &str =
    "SELECT count(*) = 4 AND bool_and(backfill_done AND state = 'idle') AS done FROM mirror.freshness";

const MIRRORED: &str = "SELECT u.id, u.number, u.title, u.status, u.provider_status, u.customer_id, u.customer_name, u.address,
        u.assigned_to, u.url, u.provider, u.connection_name, j.company_id, j.raw - 'customer' AS raw, u.raw = j.raw AS same_raw,
        (u.total_amount * 100)::bigint AS total, (u.outstanding_amount * 100)::bigint AS outstanding,
        extract(epoch FROM u.created_at)::bigint AS created, extract(epoch FROM u.updated_at)::bigint AS updated,
        extract(epoch FROM u.scheduled_start)::bigint AS starts, extract(epoch FROM u.scheduled_end)::bigint AS ends,
        extract(epoch FROM u.started_at)::bigint AS started, extract(epoch FROM u.completed_at)::bigint AS completed,
        extract(epoch FROM u.cancelled_at)::bigint AS cancelled, u.deleted_at IS NOT NULL AS gone,
        u.synced_at BETWEEN now() - interval '1 hour' AND now() + interval '1 minute' AS synced
     FROM mirror.jobs u JOIN mirror.housecallpro_jobs j USING (connection_id, id)";

const CUSTOMERS: &str = "SELECT id, first_name, last_name, company, email, company_id,
        extract(epoch FROM source_updated_at)::bigint AS updated, deleted_at IS NOT NULL AS gone
     FROM mirror.housecallpro_customers";

const EMPLOYEES: &str =
    "SELECT id, first_name, last_name, raw FROM mirror.housecallpro_employees WHERE deleted_at IS NULL";

/// The app with its first account.
struct Rig {
    app: TestApp,
    account: String,
}

impl Rig {
    async fn new(options: SandboxOptions, settings: &[(&str, &str)]) -> Self {
        let app = TestApp::new(options, settings).await;
        let account = app.sandbox.control().housecallpro().account_ids()[0].clone();
        Self { app, account }
    }

    fn part(&self) -> &Housecallpro {
        self.app.sandbox.control().housecallpro()
    }

    async fn all_read(&self) {
        self.app.wait_until("everything has been read once", ALL_READ).await;
    }

    async fn mirrored(&self) {
        self.app.consent("enqueue --connect housecallpro --name acme").await;
        self.all_read().await;
    }

    /// Connects by the company's key, which no argument shows.
    async fn mirrored_by_key(&self) {
        let file = self.app.folder.join("key.txt");
        std::fs::write(&file, Housecallpro::api_key(&self.account)).unwrap();
        let line = "enqueue --connect housecallpro --name acme --grant api_key --json --secret api_key=@";
        let connected = self.app.run(&format!("{line}{}", file.display())).await.done().last();
        assert_eq!(
            (&connected["state"], &connected["account_id"]),
            (&json!("connected"), &json!(self.account))
        );
        self.all_read().await;
    }

    #[track_caller]
    fn change(&self, change: Value) -> Vec<String> {
        let change: Change = serde_json::from_value(change).expect("a change");
        self.part().change(&self.account, &change).unwrap()
    }

    fn truth(&self, kind: &str) -> Vec<Value> {
        let all = self.part().truth(&self.account).unwrap();
        all.into_iter().filter(|line| line["kind"] == kind).collect()
    }

    /// Ids of listed jobs at the company itself.
    fn own_jobs(&self) -> Vec<String> {
        self.jobs_at(&self.account)
    }

    /// Ids of listed jobs at a location.
    fn jobs_at(&self, location: &str) -> Vec<String> {
        let there = |line: &Value| line["state"] == "listed" && line["company_id"] == *location;
        self.truth("jobs").iter().filter(|line| there(line)).map(|line| text(&line["record"]["id"])).collect()
    }

    /// Holds everything there is against every row.
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
        let mut found = Vec::new();
        self.hold("jobs", MIRRORED, job, &mut found).await;
        self.hold("customers", CUSTOMERS, customer, &mut found).await;
        self.hold("employees", EMPLOYEES, employee, &mut found).await;
        found
    }

    async fn hold(&self, kind: &str, sql: &'static str, expected: Expected, found: &mut Vec<String>) {
        let rows = self.app.rows(sql).await.into_iter().map(|row| (text(&row["id"]), row));
        let mut rows: BTreeMap<String, Value> = rows.collect();
        for line in self.truth(kind) {
            let id = text(&line["record"]["id"]);
            match (rows.remove(&id), expected(&line)) {
                (None, Value::Null) => {}
                (Some(row), Value::Object(fields)) => {
                    assert_eq!(not_compared(&row, &json!(fields)), [] as [&str; 0], "{kind}");
                    for (name, value) in fields.iter().filter(|(name, value)| row[*name] != **value) {
                        found.push(format!("{name} of {id}: {value}, and in the mirror {}", row[name]));
                    }
                }
                (row, expected) => found.push(format!("{id}: {expected}, and in the mirror {row:?}")),
            }
        }
        found.extend(rows.into_keys().map(|id| format!("{id} is in the mirror only")));
    }
}

/// What a row should say, worked out by hand from a line of the truth; null: there should be none. One that is gone says what
/// it said before.
type Expected = fn(&Value) -> Value;

/// A hidden job is not listed, and not gone.
fn is_gone(line: &Value) -> bool {
    matches!(line["state"].as_str(), Some("gone" | "archived"))
}

fn job(line: &Value) -> Value {
    let record = &line["record"];
    let status = match record["work_status"].as_str().unwrap_or_default() {
        "user canceled" | "pro canceled" => "cancelled",
        "needs scheduling" => "unscheduled",
        "scheduled" => "scheduled",
        "in progress" => "in_progress",
        "complete rated" | "complete unrated" => "completed",
        _ => "other",
    };
    let place = &record["address"];
    let region = joined(" ", &[&place["state"], &place["zip"]]);
    let address = joined(", ", &[&place["street"], &place["street_line_2"], &place["city"], &region]);
    let crew = record["assigned_employees"].as_array().expect("a crew");
    let named = |worker: &Value| joined(" ", &[&worker["first_name"], &worker["last_name"]]);
    let mut raw = record.clone();
    raw["assigned_employees"] = crew.iter().map(kept).collect();
    raw.as_object_mut().expect("an object").remove("customer");
    let (schedule, done) = (&record["schedule"], &record["work_timestamps"]);
    let cancelled = [&record["canceled_at"], &record["deleted_at"]].into_iter().find(|at| !at.is_null());
    json!({
        "provider": "housecallpro", "connection_name": "acme", "gone": is_gone(line), "synced": true, "url": null, "same_raw": true,
        "number": record["invoice_number"], "title": filled(&record["description"]), "status": status,
        "provider_status": record["work_status"], "customer_id": record["customer"]["id"],
        "customer_name": customer_name(&record["customer"]), "address": address,
        "assigned_to": if crew.is_empty() { Value::Null } else { crew.iter().map(named).collect() },
        "company_id": line["company_id"], "raw": raw, "total": record["total_amount"],
        "outstanding": record["outstanding_balance"], "created": seconds(&record["created_at"]),
        "updated": seconds(&record["updated_at"]), "starts": seconds(&schedule["scheduled_start"]),
        "ends": seconds(&schedule["scheduled_end"]), "started": seconds(&done["started_at"]),
        "completed": seconds(&done["completed_at"]), "cancelled": cancelled.map_or(Value::Null, seconds),
    })
}

fn customer_name(customer: &Value) -> Value {
    match joined(" ", &[&customer["first_name"], &customer["last_name"]]) {
        Value::Null => filled(&customer["company"]),
        name => name,
    }
}

fn customer(line: &Value) -> Value {
    let record = &line["record"];
    json!({
        "gone": is_gone(line), "first_name": filled(&record["first_name"]), "last_name": filled(&record["last_name"]),
        "company": record["company"], "email": record["email"], "company_id": line["company_id"],
        "updated": seconds(&record["updated_at"]),
    })
}

fn employee(line: &Value) -> Value {
    let record = &line["record"];
    if line["state"] != "listed" {
        return Value::Null;
    }
    json!({"first_name": record["first_name"], "last_name": record["last_name"], "raw": kept(record)})
}

/// What is kept of an employee.
fn kept(worker: &Value) -> Value {
    let fields = ["id", "first_name", "last_name", "company_id"];
    fields.iter().map(|name| ((*name).to_owned(), worker[*name].clone())).collect()
}

/// The filled ones, joined; null where there is none.
fn joined(between: &str, parts: &[&Value]) -> Value {
    let parts: Vec<&str> =
        parts.iter().filter_map(|part| part.as_str()).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { Value::Null } else { parts.join(between).into() }
}

fn filled(value: &Value) -> Value {
    if value == "" { Value::Null } else { value.clone() }
}

/// Seconds since 1970; a time without a zone is in UTC.
fn seconds(time: &Value) -> Value {
    let read = |text: &str| {
        let zoned = DateTime::parse_from_rfc3339(text).map(|time| time.timestamp());
        zoned
            .or_else(|_| text.parse::<NaiveDateTime>().map(|time| time.and_utc().timestamp()))
            .expect("a time")
    };
    json!(time.as_str().map(read))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_arrive_after_a_consent_and_through_a_refresh() {
    let rig = Rig::new(small(450), &[]).await;
    let daemon = rig.app.daemon().await;
    rig.mirrored().await;
    rig.hold_against_mirror().await;
    assert_eq!(rig.app.one("SELECT account_id FROM mirror.connections").await, json!(rig.account));
    assert_eq!(rig.part().most_at_once(&rig.account), 1, "one request at a time");

    let jobs = rig.own_jobs();
    rig.change(json!({"do": "change", "id": jobs[0], "fields": {"/description": "changed from outside"}}));
    rig.change(json!({"do": "change", "id": jobs[1], "fields": {"/work_status": "teleported"}}));
    rig.change(json!({"do": "cancel", "id": jobs[2], "by": "user"}));
    rig.change(json!({"do": "cancel", "id": jobs[3], "by": "pro"}));
    rig.change(json!({"do": "create", "count": 3, "fields": {"/total_amount": 100}}));
    // A customer's new name leaves no trace in the jobs themselves.
    let customer = text(&rig.truth("jobs")[0]["record"]["customer"]["id"]);
    rig.change(json!({"do": "change", "id": customer, "fields": {"/first_name": "Renamed"}}));
    rig.hold_against_mirror().await;
    // More than a page holds change within a second, and come in another order whenever they are asked for.
    rig.app.faults(&["shuffled_ties"]);
    rig.change(json!({"do": "create", "count": 210}));
    rig.hold_against_mirror().await;
    rig.app.faults(&[]);
    let read = "SELECT count(*) FROM mirror.sync_runs WHERE stream = 'jobs' AND mode = 'backfill'";
    assert_eq!(rig.app.number(read).await, 1, "not everything was read again");

    // Every access token dies; the refresh token buys another once, and the mirror goes on.
    let now_ms = SystemClock.now().timestamp_millis();
    assert_eq!(rig.part().auth().expire_access_tokens(now_ms), 1);
    rig.change(json!({"do": "change", "id": jobs[4], "fields": {"/description": "after the refresh"}}));
    rig.hold_against_mirror().await;
    assert_eq!(rig.app.number("SELECT generation FROM fieldmirror.tokens").await, 2);
    let life = "SELECT extract(day FROM expires_at - now())::int FROM fieldmirror.tokens";
    assert!((29..=30).contains(&rig.app.number(life).await), "a month, less the token's age");
    let redeemed = rig.part().auth().redemptions();
    let once = redeemed.as_array().unwrap().iter().all(|token| token["replays"] == 0);
    assert!(once && redeemed[0]["redeemed"] == 1, "{redeemed}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_gone_is_proven_one_by_one() {
    let rig = Rig::new(small(300), &[]).await;
    let daemon = rig.app.daemon().await;
    rig.mirrored_by_key().await;
    rig.hold_against_mirror().await;
    let jobs = rig.own_jobs();
    rig.change(json!({"do": "delete", "id": jobs[0]}));
    rig.change(json!({"do": "delete", "id": jobs[1], "left": "archive"}));
    rig.change(json!({"do": "delete", "id": jobs[2], "left": "record"}));
    // What a location has is found at that location only.
    let north = rig.part().locations(&rig.account)[0].clone();
    let there = rig.jobs_at(&north);
    rig.change(json!({"do": "delete", "id": there[0], "left": "record"}));
    rig.change(json!({"do": "delete", "id": there[1]}));
    let employee = text(&rig.truth("employees")[0]["record"]["id"]);
    rig.change(json!({"do": "delete", "id": employee}));
    let swept = rig.app.run("enqueue --resync acme --full --wait --json").await.done().last();
    assert_eq!(swept["requests"][0]["outcome"], "done", "{swept}");
    rig.hold_against_mirror().await;
    assert_eq!(
        rig.app.asked("job"),
        11,
        "each is asked for by its id; what is not there, at the other two locations"
    );
    let evidence = rig
        .app
        .rows("SELECT deleted_evidence AS why FROM mirror.housecallpro_jobs WHERE deleted_at IS NOT NULL ORDER BY 1")
        .await;
    let said: Vec<String> = evidence.iter().map(|row| text(&row["why"])).collect();
    assert!(
        said.len() == 3 && said.iter().any(|why| why.contains("answered 404, and so at 2 other")),
        "{said:?}"
    );
    assert!(
        said.iter().any(|why| why.contains("answered 400 `Archived job`, and so at 2 other")),
        "{said:?}"
    );
    // What comes back is there again.
    rig.change(json!({"do": "restore", "id": jobs[1]}));
    rig.change(json!({"do": "change", "id": jobs[1], "fields": {"/description": "back"}}));
    rig.hold_against_mirror().await;

    // The sweep that comes by itself does the same.
    rig.change(json!({"do": "delete", "id": jobs[3]}));
    rig.change(json!({"do": "delete", "id": jobs[4], "left": "record"}));
    rig.app.execute("UPDATE fieldmirror.walks SET due_at = now() WHERE mode = 'sweep'").await;
    rig.app
        .wait_until(
            "the sweeps have closed",
            "SELECT count(*) = 2 FROM mirror.sync_runs WHERE mode = 'sweep' AND outcome = 'closed'",
        )
        .await;
    rig.hold_against_mirror().await;
    let gone = rig.app.number("SELECT count(*) FROM mirror.jobs WHERE deleted_at IS NOT NULL").await;
    assert_eq!((gone, rig.app.asked("job")), (3, 17), "each that was not met is asked for");

    // A short list that is empty by mistake is read once more before anybody counts as gone.
    let polls = "SELECT count(*) FROM mirror.sync_runs WHERE stream = 'employees' AND outcome = 'closed'";
    let buried = "SELECT sum(rows_deleted)::bigint FROM mirror.sync_runs WHERE stream = 'employees'";
    let (before, buried_before) = (rig.app.number(polls).await, rig.app.number(buried).await);
    rig.app.faults(&["empty_list=1x,on:housecallpro.employees"]);
    while rig.app.number(polls).await < before + 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(rig.app.number(buried).await, buried_before, "nobody left");
    rig.hold_against_mirror().await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_location_is_named_and_the_others_go_on() {
    let rig = Rig::new(small(200), &[]).await;
    let daemon = rig.app.daemon().await;
    rig.mirrored_by_key().await;
    let [north, south] = rig.part().locations(&rig.account).try_into().unwrap();
    let before = rig.app.number("SELECT count(*) FROM mirror.jobs WHERE deleted_at IS NULL").await;
    rig.change(json!({"do": "location", "location": north, "lost": true}));
    rig.app
        .wait_until(
            "the streams say so",
            "SELECT count(*) = 3 FROM mirror.freshness WHERE stalled_reason LIKE '%answered 403 for the location%'",
        )
        .await;
    let told = rig.app.one("SELECT stalled_reason FROM mirror.freshness WHERE stream = 'jobs'").await;
    assert!(text(&told).contains(&north) && text(&told).contains("location_ids"), "{told}");
    let id = rig.own_jobs()[0].clone();
    rig.change(json!({"do": "change", "id": id, "fields": {"/description": "meanwhile"}}));
    rig.app
        .wait_until("the others go on", "SELECT count(*) = 1 FROM mirror.jobs WHERE title = 'meanwhile'")
        .await;
    let swept = rig.app.run("enqueue --resync acme --stream jobs --full --wait --json").await;
    assert_eq!(swept.code, 2, "not everything could be read: {swept:?}");
    let after = rig.app.number("SELECT count(*) FROM mirror.jobs WHERE deleted_at IS NULL").await;
    assert_eq!(after, before, "nothing counts as gone");
    daemon.stop().await;

    // Its rows are left alone where the settings leave it out, and the others are read whole.
    let mut named = rig.app.environment.clone();
    let ids = format!("{},{south}", rig.account);
    named.insert("FIELDMIRROR_PROVIDERS__HOUSECALLPRO__LOCATION_IDS".to_owned(), ids);
    let daemon = rig.app.daemon_with(&named).await;
    let (gone, stays) = (rig.own_jobs()[1].clone(), rig.jobs_at(&north)[0].clone());
    rig.change(json!({"do": "delete", "id": gone}));
    rig.change(json!({"do": "delete", "id": stays}));
    let swept = rig.app.run("enqueue --resync acme --full --wait --json").await.done().last();
    assert_eq!(swept["requests"][0]["outcome"], "done", "{swept}");
    rig.app.wait_until("all is well", "SELECT bool_and(stalled_reason IS NULL) FROM mirror.freshness").await;
    let buried = "SELECT string_agg(id, ',') FROM mirror.housecallpro_jobs WHERE deleted_at IS NOT NULL";
    assert_eq!(rig.app.one(buried).await, json!(gone), "what is left out stays");
    let left = "SELECT count(*) FROM mirror.housecallpro_employees WHERE deleted_at IS NOT NULL";
    assert_eq!(rig.app.number(left).await, 0);
    daemon.stop().await;

    let daemon = rig.app.daemon().await;
    rig.change(json!({"do": "location", "location": north, "lost": false}));
    // What a full read has said stays until another one has read everything.
    let swept = rig.app.run("enqueue --resync acme --stream jobs --full --wait --json").await.done().last();
    assert_eq!(swept["requests"][0]["outcome"], "done", "{swept}");
    rig.app.wait_until("all is well", "SELECT bool_and(stalled_reason IS NULL) FROM mirror.freshness").await;
    rig.hold_against_mirror().await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_loses_nothing_and_pauses_are_kept() {
    let rig = Rig::new(small(300), &[]).await;
    rig.app.faults(&[
        "throttle_storm=2x,on:housecallpro.jobs",
        "throttle_storm=1x,on:housecallpro.customers",
        "retry_after=3x,on:housecallpro",
        "http_502=1x,on:housecallpro.customers",
        "html_ok=1x,on:housecallpro.jobs",
        "drop=1x,on:housecallpro.employees",
        "torn=1x,on:housecallpro.employees",
    ]);
    let daemon = rig.app.daemon().await;
    rig.mirrored().await;
    assert_eq!(rig.app.sandbox.control().ledger().of_status(429), 3);
    assert_eq!(rig.part().came_early(&rig.account), 0, "Retry-After is obeyed");
    rig.hold_against_mirror().await;
    daemon.stop().await;
    let counted = rig.app.number("SELECT sum(throttled)::bigint FROM mirror.sync_runs").await;
    assert!(counted >= 2, "refusals of walks are counted: {counted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_list_stalls_its_stream_alone() {
    let rig = Rig::new(small(90), &[]).await;
    let daemon = rig.app.daemon().await;
    rig.mirrored().await;
    rig.app.faults(&["malformed=/customers,on:housecallpro.customers"]);
    rig.app
        .wait_until(
            "customers are stalled",
            "SELECT state = 'stalled' FROM mirror.freshness WHERE stream = 'customers'",
        )
        .await;
    let told = rig.app.one("SELECT stalled_reason FROM mirror.freshness WHERE stream = 'customers'").await;
    assert!(text(&told).contains("no list at `/customers`"), "{told}");
    let id = rig.own_jobs()[0].clone();
    rig.change(json!({"do": "change", "id": id, "fields": {"/description": "meanwhile"}}));
    rig.app.wait_until("jobs go on", "SELECT count(*) = 1 FROM mirror.jobs WHERE title = 'meanwhile'").await;
    rig.app.faults(&[]);
    let again = rig.app.run("enqueue --resync acme --wait --json").await.done().last();
    assert_eq!(again["requests"][0]["outcome"], "done");
    rig.hold_against_mirror().await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_or_key_that_is_gone_is_reported() {
    for by_key in [false, true] {
        let rig = Rig::new(small(30), &[]).await;
        let daemon = rig.app.daemon().await;
        if by_key {
            rig.mirrored_by_key().await;
        } else {
            rig.mirrored().await;
            // Access is taken back, and the token endpoint goes on handing out tokens.
            rig.app.faults(&["invalid_auth=on:housecallpro"]);
            let noticed =
                "SELECT state = 'needs_reauth' AND reason LIKE '%401 although%' FROM fieldmirror.connections";
            rig.app.wait_until("it is noticed", noticed).await;
            assert_eq!(rig.app.number("SELECT generation FROM fieldmirror.tokens").await, 2, "one refresh");
            rig.app.faults(&[]);
            rig.app.run("enqueue --refresh acme --wait --json").await.done();
            assert_eq!(rig.app.one("SELECT state FROM mirror.connections").await, "connected");
        }
        rig.part().revoke(&rig.account);
        rig.app.wait_until("it is noticed", "SELECT state = 'needs_reauth' FROM mirror.connections").await;
        let ran = rig.app.run("status --check --json").await;
        assert_eq!(ran.code, 1);
        let connection = ran.last()["connections"][0].clone();
        let next = text(&connection["next_action"]);
        assert!(next.contains("--reconnect acme"), "{connection}");
        assert!(!text(&connection["reason"]).is_empty(), "{connection}");
        let rows = rig.app.number("SELECT count(*) FROM mirror.jobs").await;
        assert_eq!(rows, 30, "what is mirrored stays");
        daemon.stop().await;
    }
}

/// Says that something holds until a person agrees, and that nothing was touched.
async fn holds(rig: &Rig, what: &str, living: i64) {
    rig.app
        .wait_until(
            what,
            "SELECT count(*) = 1 FROM fieldmirror.alerts WHERE kind = 'mass_delete_held' AND resolved_at IS NULL",
        )
        .await;
    let status = rig.app.run("status --check --json").await;
    assert_eq!(status.code, 1);
    let status = status.last();
    let alert = status["alerts"].as_array().unwrap().iter().find(|alert| alert["kind"] == "mass_delete_held");
    assert!(text(&alert.unwrap()["next_action"]).contains("--allow-mass-delete"), "{status}");
    let streams = status["connections"][0]["streams"].as_array().unwrap();
    let jobs = streams.iter().find(|stream| stream["name"] == "jobs").unwrap();
    // While it stands, changes go on being read.
    assert!(["stalled", "syncing"].contains(&text(&jobs["state"]).as_str()), "{jobs}");
    assert!(text(&jobs["stalled_reason"]).contains("--allow-mass-delete"), "{jobs}");
    let rows = "SELECT count(*) FROM mirror.jobs WHERE deleted_at IS NULL";
    assert_eq!(rig.app.number(rows).await, living, "nothing counts as gone");
}

const CALM: &str = "SELECT bool_and(stalled_reason IS NULL) AND NOT EXISTS (
    SELECT FROM fieldmirror.alerts WHERE resolved_at IS NULL) FROM mirror.freshness";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_not_believed() {
    let rig = Rig::new(
        small(50),
        &[("providers.housecallpro.requests_per_minute", "6000"), ("providers.housecallpro.page_size", "3")],
    )
    .await;
    let daemon = rig.app.daemon().await;
    rig.mirrored_by_key().await;
    let before = rig.app.one("SELECT complete_to FROM mirror.freshness WHERE stream = 'jobs'").await;
    let rows = "SELECT count(*) FROM mirror.jobs WHERE deleted_at IS NULL";
    let living = rig.app.number(rows).await;

    // A list that is never empty as long as there is anything shows nothing at all.
    rig.app.faults(&["empty_list=on:housecallpro.jobs"]);
    holds(&rig, "an empty list is not believed", living).await;
    let after = rig.app.one("SELECT complete_to FROM mirror.freshness WHERE stream = 'jobs'").await;
    rig.app.faults(&[]);
    rig.app.run("enqueue --resync acme --stream jobs --wait").await.done();
    rig.app.wait_until("it passes by itself", CALM).await;
    assert!(text(&after) >= text(&before), "{before} {after}");
    rig.hold_against_mirror().await;

    // 40 % are gone at once: a sweep finds that, and stops.
    let deleted: Vec<String> = rig.own_jobs().into_iter().take(20).collect();
    for id in &deleted {
        rig.change(json!({"do": "delete", "id": id}));
    }
    rig.app
        .execute("UPDATE fieldmirror.walks SET due_at = now() WHERE stream = 'jobs' AND mode = 'sweep'")
        .await;
    holds(&rig, "the brake holds", living).await;
    let allowed =
        rig.app.run("enqueue --resync acme --stream jobs --allow-mass-delete --wait --json").await.done();
    assert_eq!(allowed.last()["requests"][0]["outcome"], "done");
    rig.app.wait_until("it is over", CALM).await;
    assert_eq!(rig.app.number(rows).await, living - i64::try_from(deleted.len()).unwrap());
    rig.hold_against_mirror().await;

    // A page that repeats instead of the next would be read for ever.
    rig.app.faults(&["stuck_cursor=on:housecallpro.employees"]);
    rig.app
        .wait_until(
            "it is said",
            "SELECT state = 'stalled' AND stalled_reason LIKE '%answers page 1 when asked for page 2%' FROM mirror.freshness WHERE stream = 'employees'",
        )
        .await;
    rig.app.faults(&[]);
    rig.app.run("enqueue --resync acme --stream employees --wait").await.done();

    // A clock that ran ahead has left a watermark that has not come yet.
    rig.app
        .execute(
            "UPDATE fieldmirror.walks SET covered_to = now() + interval '1 day', due_at = now() + interval '1 day'
                 WHERE (stream, mode) = ('jobs', 'incremental');
             UPDATE fieldmirror.stream_state SET complete_to = now() + interval '1 day' WHERE stream = 'jobs'",
        )
        .await;
    rig.app
        .wait_until(
            "it is said",
            "SELECT stalled_reason LIKE '%lies in the future%' FROM mirror.freshness WHERE stream = 'jobs'",
        )
        .await;
    rig.app.run("enqueue --resync acme --stream jobs --since 2020-01-01T00:00:00Z --wait").await.done();
    rig.app.wait_until("it is over", CALM).await;
    let future = "SELECT count(*) FROM mirror.freshness WHERE complete_to > now()";
    assert_eq!(rig.app.number(future).await, 0);
    rig.hold_against_mirror().await;
    daemon.stop().await;
}

/// Who waits at a terminal sees how far it is, and when it will be done.
async fn a_wait_at_a_terminal(app: &TestApp) {
    let line = format!("{} enqueue --resync acme --full --wait", env!("CARGO_BIN_EXE_fieldmirror"));
    let mut script = tokio::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env_clear().envs(&app.environment);
    script.env("HOME", &app.folder).env("PATH", "/usr/bin:/bin").env("TERM", "xterm");
    script.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let Ok(mut waiting) = script.spawn() else {
        return not_checked("the progress bar, since there is no `script` to play the terminal");
    };
    let (mut shown, mut terminal) = (Vec::new(), waiting.stdout.take().expect("it is read"));
    let looking = async {
        while !String::from_utf8_lossy(&shown).contains(" rows, done in about ") {
            let read = terminal.read_buf(&mut shown).await.unwrap();
            assert!(read > 0, "it ended before: {}", String::from_utf8_lossy(&shown));
        }
    };
    let seen = tokio::time::timeout(PATIENCE, looking).await.is_ok();
    let shown = String::from_utf8_lossy(&shown);
    assert!(seen && shown.contains('█') && shown.contains(" %  "), "{shown}");
}

/// Nobody publishes a limit: the pace is ours, one request in a second, and it is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_own_pace_is_kept_and_used() {
    const SPAN: Duration = Duration::from_secs(5);
    let slow = [("requests_per_minute", "60"), ("page_size", "10")];
    let slow = slow.map(|(key, value)| (format!("providers.housecallpro.{key}"), value));
    let rig = Rig::new(small(300), &slow.each_ref().map(|(key, value)| (key.as_str(), *value))).await;
    let daemon = rig.app.daemon().await;
    rig.app.consent("enqueue --connect housecallpro --name acme").await;
    let asked = || {
        ["company", "jobs", "customers", "employees", "job"].map(|of| rig.app.asked(of)).iter().sum::<u64>()
    };
    let (began, first) = (Instant::now(), asked());
    let mut seen = VecDeque::new();
    // Five in some five seconds: a machine that stands still for a while does not count.
    loop {
        seen.push_back((Instant::now(), asked()));
        while seen.len() > 1 && seen[1].0.elapsed() >= SPAN {
            seen.pop_front();
        }
        let (since, before) = seen[0];
        let more = f64::from(u32::try_from(asked() - before).unwrap());
        if since.elapsed() >= SPAN && more >= 0.9 * since.elapsed().as_secs_f64() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{} requests in {:?}", asked() - first, began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (more, span) = (asked() - first, began.elapsed().as_secs());
    assert!(more <= span + 2, "{more} requests in {span} s");
    assert_eq!(rig.app.sandbox.control().ledger().of_status(429), 0);
    a_wait_at_a_terminal(&rig.app).await;
    daemon.stop().await;
}
