//! OnceHub end to end: by key and by consent, what is mirrored, what changes and goes, and what goes wrong.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta};
use fieldmirror::sandbox::SandboxOptions;
use fieldmirror::sandbox::oncehub::{Change, OnceHub};
use serde_json::{Value, json};

use crate::support::app::{PATIENCE, TestApp, small};
use crate::support::truth::no_column_is_left_out;

/// No poll but those that a test asks for: the limit of an address is small.
const SETTINGS: &[(&str, &str)] = &[("providers.oncehub.poll_interval", "1h")];

const ALL_READ: &str =
    "SELECT count(*) = 6 AND bool_and(backfill_done AND state = 'idle') AND NOT EXISTS (
         SELECT FROM fieldmirror.walks WHERE mode = 'incremental' AND closed_at IS NULL) FROM mirror.freshness";

const BOOKINGS: &str = "SELECT id, subject, status, provider_status, customer_name, customer_email, customer_phone,
    timezone, owner_id, owner_name, location, cancel_reason, job_id, cancelled_at, url, connection_name, provider,
    (extract(epoch FROM created_at) * 1000)::bigint AS created,
    (extract(epoch FROM updated_at) * 1000)::bigint AS updated,
    (extract(epoch FROM starts_at) * 1000)::bigint AS starts,
    (extract(epoch FROM ends_at) * 1000)::bigint AS ends, deleted_at IS NOT NULL AS deleted,
    raw, connection_id > 0 AS ours, synced_at BETWEEN now() - interval '1 hour' AND now() + interval '1 minute' AS synced
  FROM mirror.bookings ORDER BY id";

fn account(app: &TestApp) -> String {
    app.sandbox.control().oncehub().account_ids().remove(0)
}

fn change(app: &TestApp, change: &Change) -> Vec<String> {
    app.sandbox.control().oncehub().change(&account(app), change).expect("a booking")
}

/// Connects by API key, handed over in a file.
async fn connect(app: &TestApp, name: &str, key: &str) -> crate::support::app::Ran {
    let file = app.folder.join("oncehub.key");
    std::fs::write(&file, key).unwrap();
    app.run(&format!("enqueue --connect oncehub --name {name} --secret api_key=@{} --json", file.display()))
        .await
}

async fn mirrored(app: &TestApp) {
    let object = connect(app, "acme", &OnceHub::api_key(&account(app))).await.done().last();
    assert_eq!(object["state"], "connected");
    assert_eq!(object["account_id"], account(app).as_str());
    app.wait_until("everything has been read once", ALL_READ).await;
}

async fn resync(app: &TestApp) {
    app.run("enqueue --resync acme --wait").await.done();
}

/// What `mirror.bookings` should say, worked out by hand from the sandbox's records.
async fn hold_against_truth(app: &TestApp) {
    no_column_is_left_out(app, "bookings", BOOKINGS).await;
    let users = app.sandbox.control().oncehub().users(&account(app)).unwrap();
    let users: BTreeMap<String, Value> =
        users.into_iter().map(|user| (user["id"].as_str().unwrap().to_owned(), user)).collect();
    let mut truth = app.sandbox.control().oncehub().truth(&account(app)).unwrap();
    truth.sort_by_key(|line| line["id"].as_str().unwrap().to_owned());
    let expected: Vec<Value> = truth.iter().map(|line| expected(line, &users)).collect();
    let found = app.rows(BOOKINGS).await;
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
}

fn expected(line: &Value, users: &BTreeMap<String, Value>) -> Value {
    let booking = &line["booking"];
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let ms = |name: &str| {
        DateTime::parse_from_rfc3339(booking[name].as_str().unwrap()).unwrap().timestamp_millis()
    };
    let form = &booking["form_submission"];
    let owner = text(&booking["owner"]).or_else(|| text(&booking["owner"]["id"])).unwrap();
    let user = &users[&owner];
    let names: Vec<String> =
        ["first_name", "last_name"].iter().filter_map(|name| text(&user[name])).collect();
    let owner_name = if names.is_empty() { text(&user["email"]) } else { Some(names.join(" ")) };
    let calendar = text(&booking["booking_calendar"]).map(|id| match id.chars().last() {
        Some('1') => "Boiler service visit",
        Some('2') => "Roof inspection visit",
        _ => "Emergency visit",
    });
    let event_type =
        text(&booking["event_type"]).map(|id| if id.ends_with('1') { "Consultation" } else { "Follow-up" });
    let page = text(&booking["booking_page"]).map(|_| "Book: Home visits");
    let subject = text(&booking["subject"]);
    let status = booking["status"].as_str().unwrap();
    let mut raw = booking.clone();
    for link in ["cancel_url", "reschedule_url", "cancel_reschedule_url", "ics_url"] {
        raw.as_object_mut().unwrap().remove(link);
    }
    if let Some(conference) = raw["virtual_conferencing"].as_object_mut() {
        conference.remove("join_url");
    }
    let starts = ms("starting_time");
    json!({
        "id": booking["id"], "provider": "oncehub", "connection_name": "acme",
        "subject": subject.as_deref().or(calendar).or(event_type).or(page),
        "status": match status { "canceled" => "cancelled", "waitlisted" => "other", known => known },
        "provider_status": status,
        "customer_name": form["name"], "customer_email": form["email"],
        "customer_phone": text(&form["mobile_phone"]).or_else(|| text(&form["phone"])),
        "timezone": booking["customer_timezone"], "owner_id": owner, "owner_name": owner_name,
        "location": booking["location_description"], "job_id": null, "cancelled_at": null, "url": null,
        "cancel_reason": (status == "canceled").then(|| booking["cancel_reschedule_information"]["reason"].clone()),
        "created": ms("creation_time"), "updated": ms("last_updated_time"), "starts": starts,
        "ends": starts + TimeDelta::minutes(booking["duration_minutes"].as_i64().unwrap()).num_milliseconds(),
        "deleted": line["deleted"], "raw": raw, "ours": true, "synced": true,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookings_are_mirrored_by_key_and_follow_what_happens() {
    let app = TestApp::new(small(240), SETTINGS).await;
    let daemon = app.daemon().await;
    mirrored(&app).await;
    hold_against_truth(&app).await;
    let kept = "SELECT count(*) FROM mirror.oncehub_bookings WHERE raw::text ~ 'join_url|cancel_url|reschedule_url|ics_url'";
    assert_eq!(app.number(kept).await, 0, "links that act are not stored");

    let ids: Vec<String> = app
        .sandbox
        .control()
        .oncehub()
        .truth(&account(&app))
        .unwrap()
        .iter()
        .map(|line| line["id"].as_str().unwrap().to_owned())
        .collect();
    let asked = app.asked("bookings");
    change(&app, &Change::Cancel { id: ids[3].clone(), reason: "ill".to_owned() });
    let fields = json!({"subject": "Moved", "in_trash": true, "new_field": {"n": 9_007_199_254_740_993_u64}});
    change(&app, &Change::Set { id: ids[4].clone(), fields: fields.as_object().unwrap().clone() });
    change(&app, &Change::Create { count: 2 });
    resync(&app).await;
    hold_against_truth(&app).await;
    assert_eq!(app.asked("bookings") - asked, 1, "a poll is one request");

    // Deleted for good: only a sweep can tell, and it asks for each by its id.
    change(&app, &Change::Delete { id: ids[0].clone(), gone: false });
    change(&app, &Change::Delete { id: ids[1].clone(), gone: true });
    app.execute("UPDATE fieldmirror.walks SET due_at = now() WHERE mode = 'sweep'").await;
    app.wait_until(
        "the sweep has closed",
        "SELECT count(*) = 1 FROM mirror.sync_runs WHERE mode = 'sweep' AND outcome = 'closed'",
    )
    .await;
    hold_against_truth(&app).await;
    assert_eq!(app.asked("one"), 2);
    let evidence = app.rows("SELECT deleted_evidence FROM mirror.oncehub_bookings WHERE deleted_at IS NOT NULL ORDER BY id DESC").await;
    assert_eq!(
        evidence,
        [
            json!({"deleted_evidence": "OnceHub shows it as `deleted`"}),
            json!({"deleted_evidence": "OnceHub answers 404 for its id"})
        ]
    );
    app.none_refused(429);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_verified_and_one_that_is_deleted_is_noticed() {
    let app = TestApp::new(small(20), SETTINGS).await;
    let daemon = app.daemon().await;
    let refused = connect(&app, "acme", "wrong").await;
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    assert!(refused.stdout.contains("not accepted"), "{}", refused.stdout);
    app.faults(&["no_scope=any"]);
    let forbidden = connect(&app, "acme", &OnceHub::api_key(&account(&app))).await;
    assert_ne!(forbidden.code, 0);
    assert!(forbidden.stdout.contains("matter of the plan"), "{}", forbidden.stdout);
    app.faults(&[]);
    mirrored(&app).await;
    let again = connect(&app, "other", &OnceHub::api_key(&account(&app))).await;
    assert_eq!(again.code, 1, "one connection for an account: {}", again.stdout);
    app.none_refused(429);

    app.sandbox.control().oncehub().revoke(&account(&app));
    app.run("enqueue --resync acme").await.done();
    app.wait_until(
        "the key is known to be dead",
        "SELECT state = 'needs_reauth' FROM mirror.connections WHERE name = 'acme'",
    )
    .await;
    let status = app.run("status acme").await;
    assert!(
        status.stdout.contains("needs_reauth") && status.stdout.contains("not accepted"),
        "{}",
        status.stdout
    );
    assert_eq!(app.number("SELECT count(*) FROM mirror.bookings WHERE deleted_at IS NULL").await, 20);
    daemon.stop().await;
}

/// No turn is under way, which would save what it knows of pauses.
async fn nothing_runs(app: &TestApp) {
    let nothing_runs =
        "SELECT NOT EXISTS (SELECT FROM fieldmirror.jobs WHERE kind = 'sync' AND state = 'running')";
    app.wait_until("no turn is under way", nothing_runs).await;
}

/// A little more than five minutes pass for all that is written down of pauses, and nothing of it is forgotten.
async fn five_minutes_pass(app: &TestApp) {
    nothing_runs(app).await;
    app.execute(
        "UPDATE fieldmirror.stream_state SET not_before = not_before - interval '330 s';
         UPDATE fieldmirror.rate_budget SET taken_until = taken_until - interval '330 s',
             touched_at = touched_at - interval '330 s';
         UPDATE fieldmirror.walks SET due_at = due_at - interval '330 s';
         UPDATE fieldmirror.connections SET pacing = jsonb_set(pacing, '{at}', to_jsonb((pacing ->> 'at')::bigint - 330000))
         WHERE pacing ? 'at'",
    )
    .await;
}

/// Everything is due, and nothing is known of what was spent.
async fn the_span_is_over(app: &TestApp) {
    nothing_runs(app).await;
    app.execute(
        "UPDATE fieldmirror.stream_state SET not_before = NULL; DELETE FROM fieldmirror.rate_budget;
         UPDATE fieldmirror.connections SET pacing = '{}'; UPDATE fieldmirror.walks SET due_at = now() WHERE mode <> 'sweep'",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_is_waited_out_and_a_broken_list_stands_alone() {
    let app = TestApp::new(small(230), SETTINGS).await;
    let daemon = app.daemon().await;
    // Who meets the limit at connect tells all that leave from the address.
    app.faults(&["throttle_storm=1,on:test"]);
    let refused = connect(&app, "acme", &OnceHub::api_key(&account(&app))).await;
    assert!(refused.code == 2 && refused.stdout.contains("too many requests"), "{}", refused.stdout);
    assert_eq!(app.sandbox.control().ledger().of_status(429), 2);
    let paused = "SELECT count(*) FROM fieldmirror.rate_budget WHERE bucket = 'address' AND taken_until > now() + interval '4 minutes'";
    assert_eq!(app.number(paused).await, 1);
    the_span_is_over(&app).await;

    // An answer without users names no owner, and is not taken for one that has none.
    app.faults(&["throttle_storm=1,on:bookings", "malformed=/data,1x,on:users"]);
    let object = connect(&app, "acme", &OnceHub::api_key(&account(&app))).await.done().last();
    assert_eq!((&object["state"], &object["account_id"]), (&json!("connected"), &json!(account(&app))));
    // What is refused again after a short pause waits for the whole span of the address.
    app.wait_until("the limit is waited for", "SELECT coalesce(bool_or(state = 'backing_off'
        AND not_before > now() + interval '4 minutes'), false) FROM fieldmirror.stream_state WHERE stream = 'bookings'").await;
    app.wait_until(
        "and so it is by all that were not read before",
        "SELECT bool_and(backfill_done
        OR not_before > now()) FROM fieldmirror.stream_state",
    )
    .await;
    let refused = app.sandbox.control().ledger().of_status(429);
    assert!(refused <= 2 + 3, "{refused} refusals");

    // The pause ends by itself, and what it has held up is read.
    app.faults(&[]);
    five_minutes_pass(&app).await;
    app.wait_until("everything has been read once", ALL_READ).await;
    hold_against_truth(&app).await;
    assert_eq!(app.sandbox.control().ledger().of_status(429), refused);

    app.faults(&["malformed=/data,on:event_types"]);
    the_span_is_over(&app).await;
    app.wait_until(
        "the others stand as they should",
        "SELECT string_agg(stream || ' ' || state, ', ' ORDER BY stream)
        = 'booking_calendars idle, booking_pages idle, bookings idle, event_types stalled, master_pages idle, users idle' FROM mirror.freshness",
    )
    .await;

    app.faults(&[]);
    the_span_is_over(&app).await;
    app.wait_until("everything has been read once", ALL_READ).await;
    hold_against_truth(&app).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_consent_is_kept_fresh() {
    let options = SandboxOptions { access_token_life: Duration::from_secs(8), ..small(20) };
    let app = TestApp::new(options, SETTINGS).await;
    let daemon = app.daemon().await;
    app.consent("enqueue --connect oncehub --name acme --grant authorization_code").await;
    app.wait_until("everything has been read once", ALL_READ).await;
    app.wait_until("the token was renewed", "SELECT generation >= 2 FROM fieldmirror.tokens").await;
    resync(&app).await;
    hold_against_truth(&app).await;
    app.none_refused(401);

    // The grant is taken back, at the token endpoint as well.
    app.sandbox.control().oncehub().revoke(&account(&app));
    app.wait_until("it is noticed", "SELECT state = 'needs_reauth' FROM mirror.connections").await;
    let ran = app.run("status --check --json").await;
    let connection = ran.last()["connections"][0].clone();
    let text = |name: &str| connection[name].as_str().unwrap_or_default();
    assert!(ran.code == 1 && text("next_action").contains("--reconnect acme"), "{connection}");
    assert!(text("reason").contains("OnceHub") && text("reason").contains("invalid_grant"), "{connection}");
    assert_eq!(app.number("SELECT count(*) FROM mirror.bookings WHERE deleted_at IS NULL").await, 20);
    daemon.stop().await;
}

/// Two daemons behind one address, two accounts, polling as often as they can: OnceHub refuses nothing, and what may
/// be asked is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_daemons_share_the_limit_of_their_address() {
    // Of 200 requests in five minutes the reserve leaves 180: nine at once, and the others evenly.
    const AT_ONCE: f64 = 9.0;
    const EACH_S: f64 = 300.0 / 171.0;
    let options = SandboxOptions { accounts: 2, ..small(300) };
    let settings = [("providers.oncehub.poll_interval", "1s"), ("daemon.egress_group", "office")];
    let app = TestApp::new(options, &settings).await;
    let daemon = app.daemon().await;
    let mut other = app.environment.clone();
    other.insert("FIELDMIRROR_CALLBACK__LISTEN".to_owned(), "127.0.0.1:0".to_owned());
    let second = app.daemon_with(&other).await;
    let asked = || -> f64 {
        let purposes = [
            "bookings",
            "users",
            "booking_calendars",
            "booking_pages",
            "master_pages",
            "event_types",
            "test",
        ];
        purposes.iter().map(|of| f64::from(u32::try_from(app.asked(of)).unwrap())).sum()
    };
    let began = Instant::now();
    for (name, account) in ["acme", "beta"].into_iter().zip(app.sandbox.control().oncehub().account_ids()) {
        connect(&app, name, &OnceHub::api_key(&account)).await.done();
    }
    let connected = Instant::now();
    let allowed = |since: Instant| AT_ONCE + since.elapsed().as_secs_f64() / EACH_S;
    while connected.elapsed() < Duration::from_secs(5) || asked() < 0.9 * allowed(connected) {
        assert!(connected.elapsed() < PATIENCE, "{} requests of {}", asked(), allowed(connected));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (asked, allowed) = (asked(), allowed(began));
    assert!(asked <= allowed + 1.0, "{asked} requests where {allowed} are allowed");
    app.none_refused(429);
    daemon.stop().await;
    second.stop().await;
}
