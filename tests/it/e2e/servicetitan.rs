//! ServiceTitan from end to end: credentials that an admin types, feeds, and everything that the sandbox's tenant has,
//! held against the tables and the unified views.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use chrono::DateTime;
use fieldmirror::sandbox::SandboxOptions;
use fieldmirror::sandbox::servicetitan::{APP_KEY, Kind, Pause, ServiceTitan, TENANT_FIRST as TENANT};
use serde_json::{Value, json};

use crate::support::app::{PATIENCE, Ran, TestApp, get, small};
use crate::support::truth::{no_column_is_left_out, not_compared, says_what_it_said};

/// Changes are wanted at once here, and all polls are quick.
const QUICK: [(&str, &str); 3] = [
    ("providers.servicetitan.poll_interval", "1s"),
    ("providers.servicetitan.include_recent_changes", "true"),
    ("providers.servicetitan.timezone", "America/Chicago"),
];

async fn app(records: usize, settings: &[(&str, &str)]) -> TestApp {
    TestApp::new(small(records), &[&QUICK[..], settings].concat()).await
}

/// The command that connects with these credentials; secrets are in files.
fn line(app: &TestApp, tenant: &str, client: &str, secret: &str, key: &str) -> String {
    let file = |name: &str, value: &str| {
        let path = app.folder.join(name);
        std::fs::write(&path, value).unwrap();
        format!("--secret {name}=@{}", path.display())
    };
    format!(
        "enqueue --connect servicetitan --name acme --param tenant_id={tenant} --param client_id={client} {} {} --json",
        file("client_secret", secret),
        file("app_key", key)
    )
}

fn good_line(app: &TestApp) -> String {
    good_line_of(app, TENANT)
}

fn good_line_of(app: &TestApp, tenant: u64) -> String {
    let (client, secret) = (ServiceTitan::client_id(tenant), ServiceTitan::client_secret(tenant));
    line(app, &tenant.to_string(), &client, &secret, APP_KEY)
}

async fn connect(app: &TestApp) -> Value {
    let connected = app.run(&good_line(app)).await.done().last();
    assert_eq!(connected["state"], "connected", "{connected}");
    connected
}

const ALL_READ: &str =
    "SELECT count(*) = 10 AND bool_and(backfill_done AND state = 'idle') FROM mirror.freshness";

#[track_caller]
fn change(app: &TestApp, change: Value) -> Vec<u64> {
    let change = serde_json::from_value(change).expect("a change");
    app.sandbox.control().servicetitan().change(TENANT, &change).unwrap()
}

/// The records of the sandbox, by kind and id.
struct Truth(BTreeMap<(String, String), Value>);

impl Truth {
    fn of(app: &TestApp) -> Self {
        let lines = app.sandbox.control().servicetitan().truth(TENANT).unwrap();
        let key = |line: &Value| {
            let id = line["record"]["id"].as_u64().or(line["id"].as_u64()).unwrap();
            (line["kind"].as_str().unwrap().to_owned(), id.to_string())
        };
        Self(lines.into_iter().map(|line| (key(&line), line)).collect())
    }

    fn record(&self, kind: &str, id: &Value) -> Option<&Value> {
        let line = self.0.get(&(kind.to_owned(), id.as_u64()?.to_string()))?;
        Some(&line["record"]).filter(|record| !record.is_null())
    }

    fn active(&self, kind: &str) -> impl Iterator<Item = &Value> {
        let kind = kind.to_owned();
        let of_kind = self.0.iter().filter(move |((of, _), line)| *of == kind && line["state"] == "active");
        of_kind.map(|(_, line)| &line["record"])
    }

    /// Who goes on for a customer: at the end of a chain of merges; in a circle nobody does.
    fn survivor(&self, customer: &Value) -> Value {
        let mut passed = BTreeSet::new();
        let mut at = customer.clone();
        while passed.insert(at.to_string()) {
            match self.record("customers", &at).map(|customer| &customer["mergedToId"]) {
                Some(next) if !next.is_null() => at = next.clone(),
                _ => return at,
            }
        }
        customer.clone()
    }

    /// Who was sent, and from when to when.
    fn visits(&self, job: &Value) -> (Value, Value, Value) {
        let appointments: Vec<&Value> =
            self.active("appointments").filter(|visit| visit["jobId"] == *job).collect();
        let ids: Vec<&Value> = appointments.iter().map(|visit| &visit["id"]).collect();
        let sent = self.active("appointment_assignments");
        let sent = sent.filter(|sent| sent["jobId"] == *job && ids.contains(&&sent["appointmentId"]));
        let names: BTreeSet<String> = sent
            .map(|sent| {
                self.record("technicians", &sent["technicianId"]).unwrap()["name"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        let names = if names.is_empty() { Value::Null } else { json!(names) };
        let times = |name: &str| appointments.iter().map(|visit| micros(&visit[name])).collect::<Vec<_>>();
        let first = times("start").into_iter().min_by_key(Value::as_i64).unwrap_or_default();
        let last = times("end").into_iter().max_by_key(Value::as_i64).unwrap_or_default();
        (first, last, names)
    }
}

/// Microseconds since 1970.
fn micros(time: &Value) -> Value {
    json!(time.as_str().map(|text| DateTime::parse_from_rfc3339(text).expect("a time").timestamp_micros()))
}

fn text(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.to_string()),
        Value::String(text) if text.is_empty() => Value::Null,
        other => other.clone(),
    }
}

fn address(address: &Value) -> Value {
    let part = |name: &str| address[name].as_str().filter(|part| !part.is_empty());
    let last: Vec<&str> = ["state", "zip"].into_iter().filter_map(part).collect();
    let last = last.join(" ");
    let first = ["street", "unit", "city"].into_iter().filter_map(part);
    let parts: Vec<&str> = first.chain(Some(last.as_str()).filter(|last| !last.is_empty())).collect();
    if parts.is_empty() { Value::Null } else { json!(parts.join(", ")) }
}

fn job(truth: &Truth, record: &Value) -> Value {
    let status = match record["jobStatus"].as_str().unwrap_or_default() {
        "Scheduled" if record["appointmentCount"] == 0 => "unscheduled",
        "Scheduled" | "Dispatched" => "scheduled",
        "InProgress" | "Hold" => "in_progress",
        "Completed" => "completed",
        "Canceled" => "cancelled",
        _ => "other",
    };
    let customer = truth.survivor(&record["customerId"]);
    let called_off = truth.active("job_canceled_logs").filter(|log| log["jobId"] == record["id"]);
    let called_off = called_off.map(|log| micros(&log["createdOn"])).max_by_key(Value::as_i64);
    let (first, last, names) = truth.visits(&record["id"]);
    let of = |kind, id: &Value| truth.record(kind, id).cloned().unwrap_or_default();
    json!({
        "number": record["jobNumber"], "title": of("job_types", &record["jobTypeId"])["name"], "status": status,
        "provider_status": record["jobStatus"], "customer_id": text(&customer),
        "customer_name": of("customers", &customer)["name"],
        "address": address(&of("locations", &record["locationId"])["address"]), "scheduled_start": first,
        "scheduled_end": last, "started_at": null, "completed_at": micros(&record["completedOn"]),
        "cancelled_at": called_off.filter(|_| status == "cancelled").unwrap_or_default(),
        "total_amount": text(&record["total"]), "outstanding_amount": null, "assigned_to": names, "url": null,
    })
}

fn booking(_: &Truth, record: &Value) -> Value {
    let status = match record["status"].as_str().unwrap_or_default() {
        "New" => "requested",
        "Accepted" => "scheduled",
        "Converted" => "converted",
        "Dismissed" => "dismissed",
        _ => "other",
    };
    json!({
        "subject": record["summary"], "status": status, "provider_status": record["status"],
        "customer_name": record["name"], "customer_email": null, "customer_phone": null,
        "starts_at": micros(&record["start"]), "ends_at": null, "timezone": "America/Chicago", "owner_id": null,
        "owner_name": null, "location": address(&record["address"]), "job_id": text(&record["jobId"]),
        "cancelled_at": null, "cancel_reason": null, "url": null,
    })
}

const JOBS: &str = "SELECT id, connection_id > 0 AS ours,
        synced_at BETWEEN now() - interval '1 hour' AND now() + interval '1 minute' AS synced, provider, connection_name, raw, number, title, status, provider_status, customer_id,
        customer_name, address, (extract(epoch FROM scheduled_start) * 1000000)::bigint AS scheduled_start,
        (extract(epoch FROM scheduled_end) * 1000000)::bigint AS scheduled_end, started_at,
        (extract(epoch FROM completed_at) * 1000000)::bigint AS completed_at,
        (extract(epoch FROM cancelled_at) * 1000000)::bigint AS cancelled_at, total_amount::text, outstanding_amount,
        assigned_to, url, (extract(epoch FROM created_at) * 1000000)::bigint AS created,
        (extract(epoch FROM updated_at) * 1000000)::bigint AS updated,
        (extract(epoch FROM deleted_at) * 1000000)::bigint AS deleted FROM mirror.jobs";
const BOOKINGS: &str = "SELECT id, connection_id > 0 AS ours,
        synced_at BETWEEN now() - interval '1 hour' AND now() + interval '1 minute' AS synced, provider, connection_name, raw, subject, status, provider_status, customer_name,
        customer_email, customer_phone, (extract(epoch FROM starts_at) * 1000000)::bigint AS starts_at, ends_at, timezone,
        owner_id, owner_name, location, job_id, cancelled_at, cancel_reason, url,
        (extract(epoch FROM created_at) * 1000000)::bigint AS created,
        (extract(epoch FROM updated_at) * 1000000)::bigint AS updated,
        (extract(epoch FROM deleted_at) * 1000000)::bigint AS deleted FROM mirror.bookings";
/// Every row of every table: kind, id, whether it is gone.
const ROWS: &str = "SELECT 'jobs' AS kind, id, deleted_at IS NOT NULL AS gone FROM mirror.servicetitan_jobs
    UNION ALL SELECT 'bookings', id, deleted_at IS NOT NULL FROM mirror.servicetitan_bookings
    UNION ALL SELECT 'appointments', id, deleted_at IS NOT NULL FROM mirror.servicetitan_appointments
    UNION ALL SELECT 'appointment_assignments', id, deleted_at IS NOT NULL FROM mirror.servicetitan_appointment_assignments
    UNION ALL SELECT 'job_canceled_logs', id, deleted_at IS NOT NULL FROM mirror.servicetitan_job_canceled_logs
    UNION ALL SELECT 'customers', id, deleted_at IS NOT NULL FROM mirror.servicetitan_customers
    UNION ALL SELECT 'locations', id, deleted_at IS NOT NULL FROM mirror.servicetitan_locations
    UNION ALL SELECT 'technicians', id, deleted_at IS NOT NULL AND raw->>'active' <> 'false'
        FROM mirror.servicetitan_technicians
    UNION ALL SELECT 'business_units', id, raw->>'active' = 'false' FROM mirror.servicetitan_business_units
    UNION ALL SELECT 'job_types', id, raw->>'active' = 'false' FROM mirror.servicetitan_job_types";

/// Holds every record and every unified column against the mirror.
async fn differences(app: &TestApp) -> Vec<String> {
    let truth = Truth::of(app);
    let mut found = Vec::new();
    for (kind, sql, expected) in
        [("jobs", JOBS, job as fn(&Truth, &Value) -> Value), ("bookings", BOOKINGS, booking)]
    {
        no_column_is_left_out(app, kind, sql).await;
        for row in app.rows(sql).await {
            let id = row["id"].as_str().unwrap();
            let Some(line) = truth.0.get(&(kind.to_owned(), id.to_owned())) else {
                found.push(format!("{kind} {id} is in the mirror only"));
                continue;
            };
            if line["state"] == "removed" {
                continue;
            }
            let record = &line["record"];
            let mut wanted = expected(&truth, record);
            wanted["provider"] = json!("servicetitan");
            wanted["connection_name"] = json!("acme");
            wanted["raw"] = record.clone();
            wanted["ours"] = json!(true);
            wanted["synced"] = json!(true);
            wanted["created"] = micros(&record["createdOn"]);
            wanted["updated"] = micros(&record["modifiedOn"]);
            wanted["deleted"] =
                if line["state"] == "active" { Value::Null } else { micros(&record["modifiedOn"]) };
            assert_eq!(not_compared(&row, &wanted), [] as [&str; 0], "{kind}");
            for (column, wanted) in wanted.as_object().unwrap() {
                // Postgres rounds the seventh digit, or cuts it.
                let near = |a: &Value, b: &Value| {
                    a.as_i64().zip(b.as_i64()).is_some_and(|(a, b)| (a - b).abs() <= 1)
                };
                if row[column] != *wanted && !near(&row[column], wanted) {
                    found.push(format!("{kind} {id}, {column}: {wanted}, and in the mirror {}", row[column]));
                }
            }
        }
    }
    let mut rows: BTreeMap<(String, String), Value> = app
        .rows(ROWS)
        .await
        .into_iter()
        .map(|row| ((row["kind"].as_str().unwrap().to_owned(), row["id"].as_str().unwrap().to_owned()), row))
        .collect();
    for (key, line) in &truth.0 {
        let gone = line["state"] != "active";
        match rows.remove(key) {
            Some(row) if row["gone"] == gone || key.0 == "technicians" => {}
            Some(row) => found.push(format!("{key:?} is {}, and in the mirror {row}", line["state"])),
            // What went before it was ever read leaves no row.
            None if line["state"] == "removed" => {}
            None => found.push(format!("{key:?} is not in the mirror")),
        }
    }
    found.extend(rows.into_keys().map(|key| format!("{key:?} is in the mirror only")));
    found
}

async fn hold_against_mirror(app: &TestApp) {
    let began = Instant::now();
    let mut found = differences(app).await;
    // A walk writes page by page: what is on its way may take a moment.
    while !found.is_empty() && began.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(250)).await;
        found = differences(app).await;
    }
    if found.is_empty() {
        return;
    }
    let shown: Vec<&String> = found.iter().take(10).collect();
    panic!("{} differences, the first: {shown:#?}", found.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_mirrored_and_then_what_changes() {
    let app = app(560, &[("sync.overlap", "0s")]).await;
    let daemon = app.daemon().await;
    let connected = connect(&app).await;
    assert_eq!(
        (&connected["account_id"], &connected["account_name"], &connected["grant"]),
        (&json!(TENANT.to_string()), &json!("Acme Home Services 1"), &json!("client_credentials"))
    );
    app.wait_until("everything has been read once", ALL_READ).await;
    hold_against_mirror(&app).await;
    let counters = app.sandbox.control().counters();
    assert_eq!((&counters["unauthorised"], &counters["throttled"]), (&json!(0), &json!(0)), "{counters}");
    // What is private was never stored.
    let private =
        "SELECT count(*) FROM mirror.servicetitan_technicians WHERE raw ?| array['hourlyRate', 'burdenRate',
        'commissionRate', 'soldByRate', 'home', 'location', 'status', 'appoitmentId']";
    assert_eq!(app.number(private).await, 0);
    assert_eq!(app.number("SELECT count(*) FROM mirror.servicetitan_technicians").await, 9);

    app.sandbox.control().ledger().reset();
    change(
        &app,
        json!({"do": "set", "kind": "jobs", "id": 7_000_001, "fields": {"jobStatus": "Dispatched", "total": 9.10}}),
    );
    change(&app, json!({"do": "cancel", "id": 7_000_002}));
    change(
        &app,
        json!({"do": "create", "kind": "bookings", "fields": {"name": "Zoë", "status": "New", "bookingProviderId": 71}}),
    );
    change(&app, json!({"do": "set", "kind": "bookings", "id": 660_001, "fields": {"active": false}}));
    change(
        &app,
        json!({"do": "set", "kind": "customers", "id": 30_010, "fields": {"active": false, "mergedToId": 30_011}}),
    );
    change(&app, json!({"do": "set", "kind": "appointments", "id": 8_000_001, "fields": {"active": false}}));
    change(
        &app,
        json!({"do": "set", "kind": "technicians", "id": 502, "fields": {"name": "Ben Adler-Ruiz", "payGrade": 7}}),
    );
    hold_against_mirror(&app).await;
    let graded = "SELECT count(*) FROM mirror.servicetitan_technicians WHERE raw ? 'payGrade'";
    assert_eq!(app.number(graded).await, 0, "what nobody has looked at is not kept of a person");
    // Polls go on meanwhile: each is on record before it asks.
    let asked = app.asked("export_jobs");
    let polls = app.number("SELECT count(*) FROM mirror.sync_runs WHERE stream = 'jobs'").await;
    assert!(
        asked <= u64::try_from(polls).unwrap() + 2,
        "only what is new: {asked} requests in {polls} polls"
    );
    assert_eq!(
        app.number("SELECT count(*) FROM mirror.sync_runs WHERE mode = 'backfill' AND stream = 'jobs'").await,
        1
    );

    app.none_refused(429);

    // Places in feeds that are not known any more: the walks go on from a date.
    change(&app, json!({"do": "forget_feeds"}));
    change(
        &app,
        json!({"do": "set", "kind": "jobs", "id": 7_000_003, "fields": {"summary": "<b>after</b>"}}),
    );
    hold_against_mirror(&app).await;

    // What leaves no trace is found by reading everything again.
    let before = app.rows(JOBS).await;
    change(&app, json!({"do": "remove", "kind": "jobs", "id": 7_000_009}));
    let swept = app.run("enqueue --resync acme --stream jobs --full --wait --json").await.done().last();
    assert_eq!(swept["requests"][0]["outcome"], "done", "{swept}");
    hold_against_mirror(&app).await;
    assert_eq!(
        app.one("SELECT deleted_at IS NOT NULL FROM mirror.jobs WHERE id = '7000009'").await,
        json!(true)
    );
    let gone = says_what_it_said(&before, &app.rows(JOBS).await, &["deleted"]);
    assert!(gone.contains(&"7000009".to_owned()), "{gone:?}");
    // A short list that shows somebody no more is asked for them by name.
    change(&app, json!({"do": "remove", "kind": "technicians", "id": 503}));
    let gone = "SELECT deleted_evidence LIKE '%asked for by its id%' FROM mirror.servicetitan_technicians
        WHERE id = '503' AND deleted_at IS NOT NULL";
    app.wait_until("the technician is gone", gone).await;
    daemon.stop().await;
}

/// A feed shows changes a quarter of an hour late, unless it is asked for recent ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_feeds_are_waited_for_and_the_setting_can_be_switched() {
    let app = app(40, &[("providers.servicetitan.include_recent_changes", "false")]).await;
    let daemon = app.daemon().await;
    connect(&app).await;
    app.wait_until("everything has been read once", ALL_READ).await;
    let ago = |minutes: i64| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
        i64::try_from(now).unwrap() - minutes * 60_000
    };
    let set = |id: u64, minutes| json!({"do": "set", "kind": "jobs", "id": id, "fields": {"jobNumber": "late"}, "modified_ms": ago(minutes)});
    change(&app, set(7_000_001, 16));
    app.wait_until("an older change", "SELECT count(*) = 1 FROM mirror.jobs WHERE number = 'late'").await;
    change(&app, set(7_000_002, 5));
    let complete =
        "SELECT bool_and(complete_to < now() - interval '14 minutes 50 seconds') FROM mirror.freshness
        WHERE stream IN ('jobs', 'bookings')";
    app.wait_until("two more polls", "SELECT count(*) > 4 FROM mirror.sync_runs WHERE stream = 'jobs'").await;
    assert_eq!(app.one(complete).await, true);
    assert_eq!(
        app.number("SELECT count(*) FROM mirror.jobs WHERE number = 'late'").await,
        1,
        "not shown yet"
    );
    daemon.stop().await;

    let app = app.with("providers.servicetitan.include_recent_changes", "true");
    let daemon = app.daemon().await;
    app.wait_until("the newer change", "SELECT count(*) = 2 FROM mirror.jobs WHERE number = 'late'").await;
    assert_eq!(app.one("SELECT facts->'feed/jobs'->'recent' FROM fieldmirror.connections").await, true);
    assert_eq!(
        app.sandbox.control().ledger().of_status(400),
        0,
        "no place was used for another kind of reading"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_asked_for_again_and_a_disabled_app_is_reported() {
    let app = app(30, &[]).await;
    let daemon = app.daemon().await;
    connect(&app).await;
    app.wait_until("everything has been read once", ALL_READ).await;
    let (before, generation) = (app.asked("token"), "SELECT generation FROM fieldmirror.tokens");
    assert_eq!((before, app.number(generation).await), (1, 1), "one token for everything");
    assert!(app.sandbox.control().servicetitan().expire_tokens() > 0);
    change(&app, json!({"do": "set", "kind": "jobs", "id": 7_000_001, "fields": {"jobNumber": "fresh"}}));
    app.wait_until("it goes on", "SELECT count(*) = 1 FROM mirror.jobs WHERE number = 'fresh'").await;
    assert_eq!((app.asked("token"), app.number(generation).await), (2, 2));
    app.run("enqueue --refresh acme --wait --json").await.done();
    assert_eq!(app.number(generation).await, 3);

    // One list answers 401 and everything else goes on: that is no matter of the credentials.
    app.faults(&["invalid_auth=on:list_technicians"]);
    app.wait_until(
        "the stream is off",
        "SELECT state = 'forbidden' AND stalled_reason LIKE '%401%' FROM mirror.freshness WHERE stream = 'technicians'",
    )
    .await;
    assert_eq!(app.one("SELECT state FROM mirror.connections").await, "connected");
    // A list that is refused is asked for three times, and whose the token is once: two questions, which count as well.
    let refused =
        "SELECT min(requests) FROM mirror.sync_runs WHERE stream = 'technicians' AND outcome = 'failed'";
    assert_eq!(app.number(refused).await, 5);
    // The app key dies: the token endpoint knows nothing of that.
    app.faults(&["invalid_auth=on:servicetitan"]);
    app.wait_until("it is noticed", "SELECT state = 'needs_reauth' FROM mirror.connections").await;
    let connection = app.run("status --check --json").await.last()["connections"][0].clone();
    assert!(connection["reason"].as_str().unwrap_or_default().contains("app_key"), "{connection}");
    assert!(
        connection["next_action"].as_str().unwrap_or_default().contains("--reconnect acme"),
        "{connection}"
    );
    assert_eq!(connection["token"]["state"], "rejected", "{connection}");
    assert_eq!(app.run("enqueue --refresh acme --wait --json").await.code, 2, "a new token helps nothing");
    let idle = "SELECT count(*) = 0 FROM fieldmirror.jobs WHERE state = 'running'";
    app.wait_until("what had begun before has ended", idle).await;
    let (tokens, polled) = (app.asked("token"), app.asked("export_jobs"));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!((app.asked("token"), app.asked("export_jobs")), (tokens, polled), "it is left alone");
    app.faults(&[]);
    app.run("enqueue --refresh acme --wait --json").await.done();
    assert_eq!(app.one("SELECT state FROM mirror.connections").await, "connected");
    app.run("enqueue --resync acme --wait --json").await.done();
    app.wait_until("all is well", ALL_READ).await;

    change(&app, json!({"do": "disable"}));
    app.wait_until("it is noticed", "SELECT state = 'needs_reauth' FROM mirror.connections").await;
    let ran = app.run("status --check --json").await;
    assert_eq!(ran.code, 1);
    let connection = ran.last()["connections"][0].clone();
    let reason = connection["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("client id and secret") && reason.contains("disabled"), "{connection}");
    assert!(connection["next_action"].as_str().unwrap_or_default().contains("acme"), "{connection}");
    assert_eq!(app.number("SELECT count(*) FROM mirror.jobs").await, 30, "what is mirrored stays");
    change(&app, json!({"do": "enable"}));
    let files =
        ["client_secret", "app_key"].map(|name| format!("--secret {name}=@{}/{name}", app.folder.display()));
    app.run(&format!("enqueue --reconnect acme {} --json", files.join(" "))).await.done();
    app.wait_until("it is connected again", "SELECT state = 'connected' FROM mirror.connections").await;
    change(&app, json!({"do": "set", "kind": "jobs", "id": 7_000_002, "fields": {"jobNumber": "healed"}}));
    app.wait_until("it goes on", "SELECT count(*) = 1 FROM mirror.jobs WHERE number = 'healed'").await;
    hold_against_mirror(&app).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_loses_nothing_and_pauses_are_kept() {
    const CLOCKS_DIFFER_MS: i64 = 20;
    let app = app(300, &[]).await;
    let daemon = app.daemon().await;
    let weather = [
        "throttle_storm=4x,on:export_jobs",
        "http_503=2x,on:export_bookings",
        "http_500=1x,on:export_customers",
        "torn=1x,on:export_locations",
        "drop=1x,on:list_technicians",
        "http_524=2x,on:list_job_types",
    ];
    app.faults(&weather);
    connect(&app).await;
    app.wait_until("everything has been read once", ALL_READ).await;
    hold_against_mirror(&app).await;
    daemon.stop().await;
    let refused = app.sandbox.control().ledger().of_status(429);
    assert_eq!(refused, 4);
    let counted = app.number("SELECT sum(throttled)::bigint FROM mirror.sync_runs").await;
    assert_eq!(counted, 4, "every refusal of a walk was counted");
    // In all the forms that there are: seconds, a fraction, a date, a sentence. Each is kept.
    let pauses = app.sandbox.control().servicetitan().pauses().clone();
    assert_eq!([pauses[0].asked_ms, pauses[1].asked_ms, pauses[3].asked_ms], [1_000, 700, 1_000]);
    let kept = |pause: &Pause| pause.kept_ms.is_some_and(|kept| kept + CLOCKS_DIFFER_MS >= pause.asked_ms);
    assert!(pauses.len() == 4 && pauses.iter().all(kept), "{pauses:?}");
}

/// An answer may take 100 seconds, which is longer than a turn works: it is waited for, and asked for once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_outlasts_its_turn_is_waited_for() {
    let app = app(20, &[("sync.turn_limit", "1s")]).await;
    let daemon = app.daemon().await;
    app.faults(&["slow=2500,1x,on:export_jobs"]);
    connect(&app).await;
    app.wait_until("everything has been read once", ALL_READ).await;
    hold_against_mirror(&app).await;
    daemon.stop().await;
    let long = "SELECT count(*) FROM mirror.sync_runs
        WHERE stream = 'jobs' AND mode = 'backfill' AND ended_at - started_at > interval '2.4 seconds'";
    // On a slow machine others may have been as long.
    assert!(app.number(long).await >= 1);
    let again = "SELECT sum(requests - pages)::bigint FROM mirror.sync_runs WHERE stream = 'jobs' AND mode = 'backfill'";
    assert_eq!(app.number(again).await, 0, "what came was taken");
    assert_eq!(app.number("SELECT count(*) FROM mirror.sync_runs WHERE outcome = 'failed'").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_trouble_leaves_the_others_alone() {
    let app = app(60, &[]).await;
    let daemon = app.daemon().await;
    change(&app, json!({"do": "lose_scopes", "scopes": ["tn.jpm.appointments:r"]}));
    app.faults(&["malformed=/data/*/id,on:export_customers"]);
    connect(&app).await;
    app.wait_until(
        "two are off, the others are read",
        "SELECT jsonb_object_agg(stream, state) @> '{\"appointments\": \"forbidden\", \"customers\": \"stalled\"}'
            AND bool_and(backfill_done) FILTER (WHERE stream NOT IN ('appointments', 'customers')) FROM mirror.freshness",
    )
    .await;
    app.wait_until(
        "jobs go on",
        "SELECT count(*) > 2 FROM mirror.sync_runs WHERE stream = 'jobs' AND mode = 'incremental' AND outcome = 'closed'",
    )
    .await;
    assert_eq!(app.number("SELECT count(*) FROM mirror.jobs").await, 60);
    let reason = "SELECT string_agg(stalled_reason, ' / ' ORDER BY stream) FROM mirror.freshness";
    let reason = app.one(reason).await.as_str().unwrap().to_owned();
    assert!(reason.contains("tn.jpm.appointments:r") && reason.contains("without `id`"), "{reason}");
    app.faults(&[]);
    change(&app, json!({"do": "lose_scopes", "scopes": []}));
    app.run("enqueue --refresh acme --wait --json").await.done();
    app.run("enqueue --resync acme --full --wait --json").await.done();
    app.wait_until("everything is read", ALL_READ).await;
    hold_against_mirror(&app).await;
    daemon.stop().await;
}

/// So many requests in a second to one tenant as the setting says, less the reserve: nothing is refused, and what is left
/// is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_a_second_is_kept_and_used() {
    const SPAN: Duration = Duration::from_secs(3);
    // Two of each of two tenants, few enough that a slow machine sends as many.
    const LEFT: f64 = 4.0;
    let limit = [("providers.servicetitan.requests_per_second", "3")];
    let options = SandboxOptions { feed_page: 1, accounts: 2, ..small(600) };
    let app = TestApp::new(options, &[&QUICK[..], &limit].concat()).await;
    let daemon = app.daemon().await;
    connect(&app).await;
    let (second, named) = (good_line_of(&app, TENANT + 1), "--name beta");
    let second = app.run(&second.replace("--name acme", named)).await.done().last();
    assert_eq!(second["state"], "connected", "{second}");
    let asked = || {
        let all = Kind::all().flat_map(|kind| [kind.list_purpose(), kind.feed_purpose()]);
        let all: u64 = all.filter(|purpose| !purpose.is_empty()).map(|purpose| app.asked(purpose)).sum();
        f64::from(u32::try_from(all).unwrap())
    };
    let (began, first, mut seen) = (Instant::now(), asked(), VecDeque::new());
    // So many in some three seconds: a machine that stands still for a while does not count.
    loop {
        seen.push_back((Instant::now(), asked()));
        while seen.len() > 1 && seen[1].0.elapsed() >= SPAN {
            seen.pop_front();
        }
        let (since, before): (Instant, f64) = seen[0];
        if since.elapsed() >= SPAN && asked() - before >= 0.9 * LEFT * since.elapsed().as_secs_f64() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{} requests in {:?}", asked() - first, began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (more, span) = (asked() - first, began.elapsed().as_secs_f64());
    assert!(more <= LEFT * (span + 2.0), "{more} requests in {span} s");
    let pending = "SELECT count(DISTINCT connection_name) FROM mirror.freshness WHERE NOT backfill_done";
    assert_eq!(app.number(pending).await, 2, "there was more to read all the time");
    app.none_refused(429);
    daemon.stop().await;
}

fn refused(ran: &Ran, words: &[&str]) {
    assert_ne!(ran.code, 0, "{ran:?}");
    for word in words {
        assert!(ran.stdout.contains(word), "`{word}` in {}", ran.stdout);
    }
}

/// With the sandbox as ServiceTitan's other environment, and nothing set about the one that customers work in.
fn in_integration(mut app: TestApp) -> TestApp {
    for key in ["AUTHORIZE_URL", "TOKEN_URL", "API_BASE"] {
        let section = "FIELDMIRROR_PROVIDERS__SERVICETITAN__";
        let address = app.environment.remove(&format!("{section}{key}")).expect("the sandbox's address");
        app.environment.insert(format!("{section}INTEGRATION_{key}"), address);
    }
    app.with("providers.servicetitan.environment", "integration")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_verified_before_they_count() {
    let app = app(20, &[("providers.servicetitan.token_tenant_param", "true")]).await;
    let app = in_integration(app);
    let daemon = app.daemon().await;
    let (tenant, id, secret) =
        (TENANT.to_string(), ServiceTitan::client_id(TENANT), ServiceTitan::client_secret(TENANT));
    let hub = (ServiceTitan::HUB_CLIENT_ID, ServiceTitan::HUB_CLIENT_SECRET);
    for (tenant, id, secret, key, word) in [
        (tenant.as_str(), id.as_str(), "cs1.other", APP_KEY, "invalid_client"),
        (&tenant, &id, &secret, "ak1.other", "app_key"),
        ("41", hub.0, hub.1, APP_KEY, "invalid_client"),
        ("four", &id, &secret, APP_KEY, "invalid_client"),
    ] {
        refused(&app.run(&line(&app, tenant, id, secret, key)).await, &[word, "environment"]);
    }
    let connected = app.run(&line(&app, &tenant, hub.0, hub.1, APP_KEY)).await.done().last();
    assert_eq!((&connected["state"], &connected["account_id"]), (&json!("connected"), &json!(tenant)));
    assert_eq!(app.number("SELECT count(*) FROM mirror.connections WHERE state = 'connected'").await, 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_is_bound_to_a_booking_provider() {
    let app = app(80, &[]).await;
    let daemon = app.daemon().await;
    change(&app, json!({"do": "bind", "booking_provider": 71}));
    refused(&app.run(&good_line(&app)).await, &["No Restriction", "booking_provider_ids"]);
    daemon.stop().await;

    let app = app.with("providers.servicetitan.booking_provider_ids", "[\"71\", \"72\"]");
    let daemon = app.daemon().await;
    connect(&app).await;
    let seen =
        "SELECT count(*) = 20 AND bool_and(booking_provider_id = '71') FROM mirror.servicetitan_bookings";
    app.wait_until("the bookings of one provider", seen).await;
    app.wait_until(
        "what is missing is said",
        "SELECT stalled_reason LIKE '%booking provider 72%' FROM mirror.freshness WHERE stream = 'bookings'",
    )
    .await;
    assert_eq!(app.asked("export_bookings"), 1, "the tenant's bookings are left alone");
    change(&app, json!({"do": "bind", "booking_provider": null}));
    app.run("enqueue --resync acme --full --wait --json").await.done();
    app.wait_until("all bookings", "SELECT count(*) = 40 FROM mirror.servicetitan_bookings").await;
    app.wait_until("everything is read", ALL_READ).await;
    change(
        &app,
        json!({"do": "set", "kind": "bookings", "id": 660_002, "fields": {"summary": "by its list"}}),
    );
    app.wait_until("a change", "SELECT count(*) = 1 FROM mirror.bookings WHERE subject = 'by its list'")
        .await;
    change(&app, json!({"do": "remove", "kind": "bookings", "id": 660_003}));
    app.run("enqueue --resync acme --stream bookings --full --wait --json").await.done();
    app.wait_until("what has left", "SELECT deleted_at IS NOT NULL FROM mirror.bookings WHERE id = '660003'")
        .await;
    let evidence = "SELECT deleted_evidence FROM mirror.servicetitan_bookings WHERE id = '660003'";
    assert!(app.one(evidence).await.as_str().unwrap_or_default().contains("asked for by its id"));
    daemon.stop().await;

    // A provider that is not asked any more: its bookings are not met, and nothing is proven of them.
    let app = app.with("providers.servicetitan.booking_provider_ids", "[\"71\"]");
    let daemon = app.daemon().await;
    let allowed = "enqueue --resync acme --stream bookings --full --allow-mass-delete --wait --json";
    let ran = app.run(allowed).await;
    assert!(ran.code == 2 && ran.stdout.contains("`booking_provider_id`"), "it is not complete: {ran:?}");
    let living = "SELECT count(*) FROM mirror.bookings WHERE deleted_at IS NULL";
    assert_eq!(app.number(living).await, 39, "they stay");
    daemon.stop().await;
}

/// What an app has to ask for by the code grant, which tells nothing by itself.
fn all_scopes() -> String {
    let scopes = Kind::all().map(|kind| format!("\"{}\"", kind.scope()));
    format!("[{}, \"offline_access\"]", scopes.collect::<Vec<_>>().join(", "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_code_grant_of_older_guides() {
    let app = app(40, &[("providers.servicetitan.scopes", &all_scopes())]).await;
    let daemon = app.daemon().await;
    let key = app.folder.join("app_key");
    std::fs::write(&key, APP_KEY).unwrap();
    let line = format!(
        "enqueue --connect servicetitan --name acme --grant authorization_code --param tenant_id={TENANT} \
         --secret app_key=@{}",
        key.display()
    );
    // Where the vendor does not offer it, it is said what to do instead, and the code is not sent again.
    for fault in ["no_code_grant", "html_ok=on:token"] {
        let asked = app.run(&format!("{line} --no-wait --json")).await.done().last();
        let back = app.approve(&asked).await;
        app.faults(&[fault]);
        let (status, _, page) = get(&back).await;
        assert_eq!(status, 502, "{page}");
        let said =
            app.one("SELECT message FROM fieldmirror.requests ORDER BY requested_at DESC LIMIT 1").await;
        assert!(said.as_str().unwrap_or_default().contains("--grant client_credentials"), "{said}");
        app.faults(&[]);
    }
    assert_eq!(app.asked("token"), 2);

    app.consent(&line).await;
    app.wait_until("everything has been read once", ALL_READ).await;
    hold_against_mirror(&app).await;
    app.sandbox.control().servicetitan().expire_tokens();
    change(&app, json!({"do": "set", "kind": "jobs", "id": 7_000_001, "fields": {"jobNumber": "fresh"}}));
    app.wait_until("it goes on", "SELECT count(*) = 1 FROM mirror.jobs WHERE number = 'fresh'").await;
    let redeemed = app.sandbox.control().counters()["refresh_tokens"]["servicetitan"].clone();
    let redeemed = redeemed.as_array().unwrap();
    assert!(redeemed.iter().any(|token| token["redeemed"] == 1), "{redeemed:?}");
    change(&app, json!({"do": "disable"}));
    app.wait_until("it is noticed", "SELECT state = 'needs_reauth' FROM mirror.connections").await;
    let status = app.run("status --json").await.last();
    let next = status["connections"][0]["next_action"].as_str().unwrap_or_default().to_owned();
    assert!(next.contains("--reconnect acme"), "{status}");
    daemon.stop().await;
}
