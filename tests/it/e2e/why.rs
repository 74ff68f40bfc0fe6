//! `why` explains what happened from what was written down when it happened, by the daemon and nobody else.

use serde_json::Value;

use crate::support::app::{HUB, TestApp, small};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cause_is_on_record() {
    let app = TestApp::new(small(60), &[]).await;
    let odd = ["no_scope=crm.objects.owners.read", "malformed=/results/*/id,on:pipelines"];
    app.faults(&odd);
    let daemon = app.daemon().await;
    app.connect("acme").await;
    app.wait_until(
        "tickets are read, owners forbidden, stages stalled",
        "SELECT jsonb_object_agg(stream, state) @> '{\"owners\": \"forbidden\", \"pipeline_stages\": \"stalled\"}'
            AND bool_and(backfill_done) FILTER (WHERE stream = 'tickets') FROM mirror.freshness",
    )
    .await;
    app.faults(&[odd[0], odd[1], "daily_limit=on:search"]);
    app.wait_until(
        "tickets wait for the daily quota",
        "SELECT state = 'backing_off' AND failure_kind = 'throttled' FROM fieldmirror.stream_state WHERE stream = 'tickets'",
    )
    .await;
    app.execute(
        "INSERT INTO fieldmirror.jobs (kind, connection_id, state, crashes, attempt, started_at, last_error)
         SELECT 'connect', id, 'parked', 3, 3, now(), 'the lease of daemon x lapsed' FROM fieldmirror.connections",
    )
    .await;

    let why = app.run("why acme --json").await.done().last();
    assert_eq!((&why["connection"], &why["healthy"]), (&"acme".into(), &false.into()));
    let forbidden = cause(&why, "stream_forbidden", Some("owners"));
    assert!(forbidden["summary"].as_str().unwrap().contains("crm.objects.owners.read"), "{forbidden:#}");
    assert!(forbidden["until"].is_string() && forbidden["next_action"].is_string(), "{forbidden:#}");
    proven(forbidden, "sync_runs", "failed");
    let stalled = cause(&why, "stream_stalled", Some("pipeline_stages"));
    proven(stalled, "stream_state", "not read as a whole yet");
    proven(stalled, "sync_runs", "failed");
    let quota = cause(&why, "waits_for_quota", Some("tickets"));
    assert!(quota["until"].is_string(), "{quota:#}");
    proven(quota, "stream_state", "complete up to");
    proven(quota, "sync_runs", "were refused with 429");
    let parked = cause(&why, "job_parked", None);
    proven(parked, "jobs", "the lease of daemon x lapsed");
    assert!(parked["next_action"].as_str().unwrap().starts_with("fieldmirror jobs retry "), "{parked:#}");

    assert_eq!(app.sandbox.control().hubspot().auth().revoke_account(&HUB.to_string()), 1);
    app.run("enqueue --refresh acme --wait").await;
    app.wait_until("it is noticed", "SELECT state = 'needs_reauth' FROM mirror.connections").await;
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
    assert_eq!(
        (&one["stream"], &one["causes"][2]["stream"]),
        (&"properties".into(), &"properties".into()),
        "{one:#}"
    );
    daemon.stop().await;
}
