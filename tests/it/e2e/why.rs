//! `why` explains what happened from what was written down when it happened, by the daemon and nobody else.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use fieldmirror::sandbox::oncehub::OnceHub;
use serde_json::{Value, json};

use super::service::terminate;
use crate::support::app::{HUB, PATIENCE, TestApp, small};

fn cause<'a>(why: &'a Value, kind: &str, stream: Option<&str>) -> &'a Value {
    let causes = why["causes"].as_array().expect("a list of causes");
    let found = causes.iter().find(|cause| cause["kind"] == kind && cause["stream"].as_str() == stream);
    found.unwrap_or_else(|| panic!("no `{kind}` of {stream:?} in {why:#}"))
}

/// That the cause rests on a line of that table which says so.
#[track_caller]
fn proven(cause: &Value, source: &str, says: &str) {
    let evidence = cause["evidence"].as_array().expect("a list of evidence");
    let found = evidence
        .iter()
        .any(|proof| proof["source"] == source && proof["text"].as_str().unwrap_or_default().contains(says));
    assert!(found, "nothing of `{source}` says `{says}`: {cause:#}");
}

/// A few requests in ten seconds, and turns that do not wait so long: what is left waits for the account's own limit.
const SLOWLY: [(&str, &str); 3] =
    [("sync.quota_reserve", "0.9"), ("sync.turn_limit", "2s"), ("providers.hubspot.page_size", "2")];
const WAITS_FOR_PERMITS: &str =
    "SELECT coalesce(bool_or(not_before > now() + interval '2 s' AND failure_kind IS NULL), false)
     FROM fieldmirror.stream_state WHERE stream = 'tickets'";
/// What the pause would do.
const PAUSE_PASSES: &str = "UPDATE fieldmirror.stream_state SET not_before = NULL;
    UPDATE fieldmirror.connections SET pacing = '{}'";
const WAITS_FOR_THE_ADDRESS: &str =
    "SELECT s.stream FROM fieldmirror.stream_state s JOIN mirror.connections c ON c.id = s.connection_id
     WHERE c.provider = 'oncehub' AND s.not_before > now() + interval '2 s'";
/// Kills after which a job is parked at the latest, one that had got somewhere included.
const KILLS_MAX: u32 = 8;

/// An app whose alerts are written to a file.
async fn app_with_alerts(settings: &[(&str, &str)]) -> TestApp {
    let app = TestApp::new(small(60), settings).await;
    let hook = app.folder.join("hook");
    std::fs::write(&hook, format!("#!/bin/sh\nexec cat >> {}\n", app.folder.join("told").display())).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let exec = json!([hook.display().to_string()]).to_string();
    app.with("alerts.exec", &exec)
}

/// Waits until the alert program has been told so of a kind of alert. Returns what it was told.
async fn told(app: &TestApp, kind: &str, state: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(app.folder.join("told")).unwrap_or_default();
        // The last line may be half written.
        let mut objects = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        if let Some(object) = objects.find(|object| object["kind"] == kind && object["state"] == state) {
            return object;
        }
        assert!(Instant::now() < deadline, "not told of `{kind}` {state}: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What is asked while the account's own limit is waited for.
async fn a_wait_for_permits(app: &TestApp) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        app.wait_until("tickets wait for permits", WAITS_FOR_PERMITS).await;
        let why = app.run("why acme tickets --json").await.done().last();
        let causes = why["causes"].as_array().expect("a list of causes");
        // On a slow machine the wait may be over by now.
        let at_rest = |cause: &Value| cause["evidence"].to_string().contains("nothing before ");
        if causes.iter().any(|cause| cause["kind"] == "waits_for_quota" && at_rest(cause)) {
            let quota = cause(&why, "waits_for_quota", Some("tickets"));
            assert!(quota["until"].is_string() && quota["ill"] == false, "{quota:#}");
            proven(quota, "stream_state", "waits for HubSpot's limit `ten_secondly` (");
            let refused = "SELECT coalesce(sum(throttled), 0)::bigint FROM mirror.sync_runs";
            assert_eq!(app.number(refused).await, 0, "nobody had to refuse anything");
            return;
        }
        assert!(Instant::now() < deadline, "{why:#}");
    }
}

/// The same of a limit that all accounts share which leave from one address.
async fn a_wait_for_the_address(app: &TestApp) {
    let key = app.folder.join("oncehub.key");
    std::fs::write(&key, OnceHub::api_key(&app.sandbox.control().oncehub().account_ids()[0])).unwrap();
    let line = format!("enqueue --connect oncehub --name once --secret api_key=@{}", key.display());
    app.run(&line).await.done();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let waiting = app.rows(WAITS_FOR_THE_ADDRESS).await;
        let stream = waiting.first().and_then(|row| row["stream"].as_str()).unwrap_or("bookings");
        let why = app.run(&format!("why once {stream} --json")).await.done().last();
        let quota = &why["causes"][0];
        // On a slow machine the wait may be over by now.
        if quota["summary"].as_str().is_some_and(|text| text.contains("`oncehub/egress/")) {
            assert_eq!(quota["kind"], "waits_for_quota");
            let limit = "waits for OnceHub's limit `address` of our address (";
            proven(quota, "stream_state", limit);
            break;
        }
        assert!(Instant::now() < deadline, "{why:#}");
    }
    app.run("enqueue --disconnect once --wait").await.done();
}

/// Kills the daemon whenever its turn hangs, until the job is left alone. Returns the daemon that found it so.
async fn park(app: &TestApp, mut daemon: tokio::process::Child) -> tokio::process::Child {
    app.faults(&["hang"]);
    for _ in 0..KILLS_MAX {
        app.wait_until(
            "a turn hangs, or is left alone",
            "SELECT bool_or(state = 'parked' OR state = 'running' AND lease_until > clock_timestamp())
             FROM fieldmirror.jobs WHERE kind = 'sync'",
        )
        .await;
        if app.one("SELECT bool_or(state = 'parked') FROM fieldmirror.jobs WHERE kind = 'sync'").await == true
        {
            return daemon;
        }
        daemon.kill().await.unwrap();
        app.execute("UPDATE fieldmirror.jobs SET lease_until = now() WHERE state = 'running'").await;
        daemon = app.spawn_daemon("");
    }
    panic!("the job is not parked");
}

/// Whatever is explained has come about by what the program met, and was written down by it. What the test puts into its
/// tables only makes time pass: pauses and leases end. Alerts tell of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cause_is_on_record() {
    let app = app_with_alerts(&SLOWLY).await;
    app.faults(&["no_scope=crm.objects.owners.read,on:hubspot"]);
    let mut daemon = app.spawn_daemon("");
    app.connect("acme").await;
    a_wait_for_permits(&app).await;
    a_wait_for_the_address(&app).await;
    terminate(&mut daemon).await;
    let app =
        app.without("sync.turn_limit").without("providers.hubspot.page_size").with("sync.quota_reserve", "0");
    app.execute(PAUSE_PASSES).await;
    let mut daemon = app.spawn_daemon("");
    app.wait_until(
        "everything is read once, and owners are forbidden",
        "SELECT bool_and(state = 'forbidden' OR stream <> 'owners')
            AND bool_and(backfill_done AND complete_to IS NOT NULL OR stream = 'owners')
         FROM mirror.freshness WHERE provider = 'hubspot'",
    )
    .await;
    app.faults(&["no_scope=crm.objects.owners.read,on:hubspot", "malformed=/results/*/id,on:pipelines"]);
    app.wait_until(
        "stages are stalled",
        "SELECT state = 'stalled' FROM fieldmirror.stream_state WHERE stream = 'pipeline_stages'",
    )
    .await;
    daemon = park(&app, daemon).await;

    let why = app.run("why acme --json").await.done().last();
    assert_eq!((&why["connection"], &why["healthy"]), (&"acme".into(), &false.into()));
    let forbidden = cause(&why, "stream_forbidden", Some("owners"));
    assert!(forbidden["summary"].as_str().unwrap().contains("crm.objects.owners.read"), "{forbidden:#}");
    assert!(forbidden["until"].is_string() && forbidden["next_action"].is_string(), "{forbidden:#}");
    proven(forbidden, "sync_runs", "failed");
    let stalled = cause(&why, "stream_stalled", Some("pipeline_stages"));
    proven(stalled, "stream_state", "stalled, complete up to ");
    proven(stalled, "sync_runs", "failed");
    let parked = cause(&why, "job_parked", None);
    proven(parked, "jobs", "the last crash: the lease of daemon ");
    let retry = parked["next_action"].as_str().unwrap().strip_prefix("fieldmirror ").expect("a command");
    assert!(retry.starts_with("jobs retry "), "{parked:#}");
    assert_eq!(told(&app, "job_parked", "firing").await["connection"], "acme");
    app.faults(&["no_scope=crm.objects.owners.read,on:hubspot"]);
    app.run(retry).await.done();
    told(&app, "job_parked", "resolved").await;

    app.faults(&["no_scope=crm.objects.owners.read,on:hubspot", "daily_limit=on:search"]);
    app.wait_until(
        "tickets wait for the daily quota, and what is due as well for all else",
        "SELECT bool_and(state = 'backing_off' AND failure_kind = 'throttled') FILTER (WHERE stream = 'tickets')
            AND bool_and(not_before > now() + interval '30 minutes') FILTER (WHERE stream = 'properties')
         FROM fieldmirror.stream_state",
    )
    .await;
    let why = app.run("why acme --json").await.done().last();
    let quota = cause(&why, "waits_for_quota", Some("tickets"));
    assert!(quota["until"].is_string(), "{quota:#}");
    assert_eq!(quota["next_action"], "fieldmirror enqueue --resync acme", "it can be doubted");
    proven(quota, "stream_state", "complete up to");
    proven(quota, "sync_runs", "were refused with 429");

    assert_eq!(app.sandbox.control().hubspot().auth().revoke_account(&HUB.to_string()), 1);
    app.run("enqueue --refresh acme --wait").await;
    app.wait_until(
        "it is noticed",
        "SELECT state = 'needs_reauth' FROM mirror.connections WHERE name = 'acme'",
    )
    .await;
    let why = app.run("why acme --json").await.done().last();
    let refused = cause(&why, "token_refused", None);
    proven(refused, "audit_log", "refresh dead");
    proven(refused, "audit_log", "connect done");
    assert!(refused["since"].is_string() && refused["until"].is_string(), "{refused:#}");
    assert_eq!(refused["next_action"], "fieldmirror enqueue --reconnect acme");
    assert_eq!(why["causes"][0]["kind"], "token_refused", "causes come first: {why:#}");

    // For people the same; for one stream also what is well.
    let text = app.run("why acme").await.done().stdout;
    assert!(
        text.contains("1. ill: HubSpot refused the token: ") && text.contains("audit_log: refresh dead"),
        "{text}"
    );
    let one = app.run("why acme properties --json").await.done().last();
    assert_eq!(one["stream"], "properties");
    let of_stream = one["causes"].as_array().unwrap().iter().filter(|cause| cause["stream"] == "properties");
    assert_eq!(of_stream.count(), 1, "{one:#}");
    // The alert begins and ends with what it is about.
    let firing = told(&app, "needs_reauth", "firing").await;
    assert_eq!(firing["next_action"], "fieldmirror enqueue --reconnect acme");
    app.consent("enqueue --reconnect acme").await;
    let resolved = told(&app, "needs_reauth", "resolved").await;
    assert_eq!(resolved["alert_id"], firing["alert_id"]);
    daemon.kill().await.unwrap();
}
