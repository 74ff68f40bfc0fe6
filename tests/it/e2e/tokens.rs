//! Tokens that live for some seconds, and daemons that share them: nobody is refused, and no token is spent twice.

use std::time::Duration;

use fieldmirror::sandbox::SandboxOptions;
use serde_json::Value;

use crate::support::app::{TestApp, small};
use crate::support::truth::hold_against_mirror;

fn short_lived(records: usize, seconds: u64) -> SandboxOptions {
    SandboxOptions { access_token_life: Duration::from_secs(seconds), ..small(records) }
}

/// Turns of one stream that ran at the same time.
const OVERLAPS: &str =
    "SELECT a.id, b.id AS other, a.stream, a.started_at, a.ended_at, b.started_at AS other_started_at
    FROM mirror.sync_runs a JOIN mirror.sync_runs b
      ON a.connection_id = b.connection_id AND a.stream = b.stream AND a.id < b.id
     AND b.started_at < coalesce(a.ended_at, 'infinity')";

/// The longest time without a closed walk over changes.
const LONGEST_GAP: &str = "SELECT max(extract(epoch FROM gap))::float8 FROM (
        SELECT ended_at - lag(ended_at) OVER (ORDER BY ended_at) AS gap FROM mirror.sync_runs
        WHERE stream = 'tickets' AND mode = 'incremental' AND outcome = 'closed') gaps";

/// What the sandbox knows about the use of refresh tokens, against the generations that the database counts.
async fn check_refreshes(app: &TestApp, rotated: bool) {
    let counters = app.sandbox.control().counters();
    app.none_refused(401);
    let generation = app.number("SELECT generation FROM fieldmirror.tokens").await;
    assert!(generation > 3, "refreshed several times: {generation}");
    let tokens = counters["refresh_tokens"]["hubspot"].as_array().unwrap();
    let sum = |key: &str| tokens.iter().map(|token| token[key].as_i64().unwrap()).sum::<i64>();
    assert_eq!(sum("redeemed"), generation - 1, "one refresh a generation: {counters}");
    assert_eq!(app.asked("token_refresh"), u64::try_from(generation - 1).unwrap());
    assert_eq!(sum("replays"), 0, "{counters}");
    if rotated {
        assert!(tokens.iter().all(|token| token["redeemed"].as_i64().unwrap() <= 1), "{counters}");
    }
    assert_eq!(app.number("SELECT count(*) FROM mirror.sync_runs WHERE outcome = 'failed'").await, 0);
    assert_eq!(app.rows(OVERLAPS).await, Vec::<Value>::new());
}

async fn watch_tokens(faults: &[&str]) {
    let app = TestApp::new(short_lived(60, 10), &[]).await;
    app.faults(faults);
    let daemon = app.daemon().await;
    app.mirrored("acme").await;
    app.wait_until("several refreshes", "SELECT generation > 4 FROM fieldmirror.tokens").await;
    daemon.stop().await;
    let gap = app.one(LONGEST_GAP).await.as_f64().unwrap();
    // Who had to wait for a token waits for a failure's pause, or for another's attempt to run out: for a minute.
    assert!(gap < 60.0, "syncing went on: {gap} s without");
    let failed = "SELECT count(*) FROM fieldmirror.audit_log WHERE event = 'refresh' AND outcome <> 'done'";
    assert_eq!(app.number(failed).await, 0, "and no refresh failed");
    check_refreshes(&app, !faults.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_lived_tokens_are_renewed_in_time() {
    tokio::join!(watch_tokens(&[]), watch_tokens(&["rotate"]));
}

/// `scripts/torture daemons` does it for as long as one likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_daemons_share_a_database() {
    let app = TestApp::new(short_lived(400, 5), &[]).await;
    app.faults(&["rotate", "revoke_replayed"]);
    let mut daemons = vec![app.daemon().await];
    for number in 1..4 {
        // The others listen elsewhere, as on other machines; two of them have a folder of their own.
        let mut other = app.environment.clone();
        other.insert("FIELDMIRROR_CALLBACK__LISTEN".to_owned(), "127.0.0.1:0".to_owned());
        if number > 1 {
            let state = app.folder.join(format!("state-{number}")).display().to_string();
            other.insert("FIELDMIRROR_DAEMON__STATE_DIR".to_owned(), state);
        }
        daemons.push(app.daemon_with(&other).await);
    }
    assert_eq!(app.number("SELECT count(*) FROM fieldmirror.daemons").await, 4);
    app.mirrored("acme").await;
    // Half a minute of it.
    app.wait_until("several refreshes", "SELECT generation > 8 FROM fieldmirror.tokens").await;
    hold_against_mirror(&app).await;
    daemons.remove(0).stop().await;
    // Those that are left go on.
    app.execute("CREATE TABLE public.mark AS SELECT max(id) AS run FROM mirror.sync_runs").await;
    app.wait_until(
        "the other daemons poll",
        "SELECT count(*) > 2 FROM mirror.sync_runs, public.mark WHERE id > run AND mode = 'incremental' AND outcome = 'closed'",
    )
    .await;
    for daemon in daemons {
        daemon.stop().await;
    }
    check_refreshes(&app, true).await;
    assert_eq!(app.number("SELECT count(*) FROM fieldmirror.daemons").await, 0);
}
