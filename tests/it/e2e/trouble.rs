//! What goes wrong at the provider: nothing is lost, what is not concerned goes on, and it is said what to do.

use std::path::PathBuf;

use fieldmirror::db::vault_use;
use serde_json::{Value, json};

use crate::auth::spill::spills;
use crate::support::app::{HUB, TestApp, small};
use crate::support::truth::hold_against_mirror;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_loses_nothing() {
    let app = TestApp::new(small(400), &[]).await;
    // A refusal empties a bucket for ten seconds, so a few are enough.
    app.faults(&[
        "throttle_storm=1x,on:owners",
        "throttle_storm=1x,on:pipelines",
        "throttle_storm=1x,on:properties",
        "throttle_storm=1x,on:batch_read",
        "http_502=1x,on:list",
        "html_ok=1x,on:list",
        "torn=1x,on:associations",
        "drop=1x,on:batch_read",
    ]);
    let daemon = app.daemon().await;
    app.mirrored("acme").await;
    assert!(app.sandbox.control().ledger().of_status(429) >= 4, "there was a storm");
    hold_against_mirror(&app).await;
    // A run that is still open is not counted to its end.
    daemon.stop().await;
    let refused = app.sandbox.control().ledger().of_status(429);
    let counted = app.number("SELECT sum(throttled)::bigint FROM mirror.sync_runs").await;
    assert_eq!(u64::try_from(counted).unwrap(), refused, "every refusal was counted");
    // No answer says how long to wait: a limit of ten seconds rests for ten, in this turn or beyond its end.
    let short = "SELECT stream, mode, outcome FROM mirror.sync_runs
        WHERE throttled > 0 AND outcome <> 'yielded' AND ended_at - started_at < interval '10 seconds'";
    assert_eq!(app.rows(short).await, Vec::<Value>::new());
}

fn stream<'a>(status: &'a Value, name: &str) -> &'a Value {
    let streams = status["connections"][0]["streams"].as_array().unwrap();
    streams.iter().find(|stream| stream["name"] == name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_trouble_leaves_the_others_alone() {
    let app = TestApp::new(small(120), &[]).await;
    app.faults(&["no_scope=crm.objects.owners.read", "malformed=/results/*/id,on:pipelines"]);
    let daemon = app.daemon().await;
    app.connect("acme").await;
    app.wait_until(
        "tickets are read, owners forbidden, stages stalled",
        "SELECT jsonb_object_agg(stream, state) @> '{\"owners\": \"forbidden\", \"pipeline_stages\": \"stalled\"}'
            AND bool_and(backfill_done) FILTER (WHERE stream IN ('tickets', 'properties')) FROM mirror.freshness",
    )
    .await;
    app.wait_until(
        "tickets go on",
        "SELECT count(*) > 2 FROM mirror.sync_runs WHERE stream = 'tickets' AND mode = 'incremental' AND outcome = 'closed'",
    )
    .await;
    assert_eq!(app.number("SELECT count(*) FROM mirror.tickets").await, 120);
    assert_eq!(app.number("SELECT count(*) FROM mirror.hubspot_owners").await, 0);
    let ran = app.run("status --check --json").await;
    assert_eq!(ran.code, 1, "a stalled stream is no good health");
    let status = ran.last();
    let reason = stream(&status, "owners")["stalled_reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("crm.objects.owners.read"), "{reason}");
    let next = status["connections"][0]["next_action"].as_str().unwrap_or_default();
    assert!(!next.is_empty(), "{status}");
    assert!(stream(&status, "pipeline_stages")["stalled_reason"].is_string(), "{status}");
    assert_eq!(stream(&status, "tickets")["stalled_reason"], Value::Null);

    let asked = app.run("enqueue --resync acme --stream owners --wait --json").await;
    assert_eq!(asked.code, 2, "nothing of it may be read: {}", asked.stdout);
    let said = asked.last()["requests"][0]["message"].to_string();
    assert!(said.contains("`owners` is forbidden: ") && said.contains("crm.objects.owners.read"), "{said}");

    // When the trouble is over, an admin's word is enough.
    app.faults(&[]);
    let swept = app.run("enqueue --resync acme --wait --json").await.done().last();
    assert_eq!(swept["requests"][0]["outcome"], "done");
    app.all_read().await;
    hold_against_mirror(&app).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_grant_is_reported_and_healed() {
    let app = TestApp::new(small(80), &[]).await;
    let daemon = app.daemon().await;
    app.mirrored("acme").await;
    assert_eq!(app.sandbox.control().hubspot().auth().revoke_account(&HUB.to_string()), 1);
    // By the next poll: the token itself would be renewed much later.
    app.wait_until("it is noticed", "SELECT state = 'needs_reauth' FROM mirror.connections").await;
    let ran = app.run("status --check --json").await;
    assert_eq!(ran.code, 1);
    let connection = ran.last()["connections"][0].clone();
    let next = connection["next_action"].as_str().unwrap_or_default();
    assert!(next.contains("--reconnect acme"), "{connection}");
    assert!(connection["reason"].as_str().is_some_and(|why| !why.is_empty()), "{connection}");
    let before = app.number("SELECT count(*) FROM mirror.tickets").await;
    assert_eq!(before, 80, "what is mirrored stays");

    app.change(json!({"do": "create", "properties": {"subject": "meanwhile"}}));
    app.consent("enqueue --reconnect acme").await;
    app.wait_until("it is connected again", "SELECT state = 'connected' FROM mirror.connections").await;
    app.wait_until("it goes on", "SELECT count(*) = 1 FROM mirror.tickets WHERE subject = 'meanwhile'").await;
    hold_against_mirror(&app).await;
    app.wait_until(
        "and is in good health",
        "SELECT bool_and(state IN ('idle', 'syncing')) FROM mirror.freshness",
    )
    .await;
    assert_eq!(app.number("SELECT count(*) FROM mirror.connections").await, 1, "it is the same connection");

    // The end, on purpose: nothing is left that could be used, here or there.
    app.run("enqueue --refresh acme").await.done();
    app.wait_until("a second reply", "SELECT generation = 2 FROM fieldmirror.tokens").await;
    let kept = || spills(&app.folder.join("state"));
    assert_eq!(kept().len(), 1, "the newest reply is kept: {:?}", kept());
    assert!(!app.db.run(vault_use::counts).await.unwrap().is_empty());
    let gone = app.run("enqueue --disconnect acme --wait --json").await.done().last();
    assert_eq!(gone["requests"][0]["outcome"], "done", "{gone}");
    assert_eq!(kept(), Vec::<PathBuf>::new(), "no spill");
    assert_eq!(app.db.run(vault_use::counts).await.unwrap(), vault_use::Counts::new(), "nothing sealed");
    assert_eq!(app.asked("revoke"), 1);
    assert_eq!(
        app.sandbox.control().hubspot().auth().revoke_account(&HUB.to_string()),
        0,
        "no grant is left"
    );
    assert_eq!(app.number("SELECT count(*) FROM mirror.tickets").await, 81, "rows are kept");
    assert_eq!(app.one("SELECT state FROM mirror.connections").await, "disconnected");
    daemon.stop().await;
}
