//! All five providers in one mirror: its watermarks, and what comparing it with the providers finds, mends and leaves alone.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::app::{Ran, TestApp, small};

/// No walk but those that are asked for: what a comparison finds is then what was done here.
const SETTINGS: [(&str, &str); 5] = [
    ("sync.poll_interval", "1h"),
    ("sync.archived_interval", "1h"),
    ("sync.quota_reserve", "0"),
    ("providers.housecallpro.requests_per_minute", "6000"),
    ("providers.servicetitan.include_recent_changes", "true"),
];
const ALL_READ: &str = "SELECT count(*) = 27 AND bool_and(backfill_done AND state = 'idle' AND complete_to IS NOT NULL)
    AND NOT EXISTS (SELECT FROM fieldmirror.walks WHERE mode = 'incremental' AND closed_at IS NULL) FROM mirror.freshness";
const FIVE: [&str; 5] = ["hubspot", "jobber", "housecallpro", "servicetitan", "oncehub"];

/// OnceHub's limit for an address would spread this test over minutes.
const TIME_PASSES: &str = "UPDATE fieldmirror.rate_budget SET taken_until = now()";

/// A comparison that has begun, and a request whose walks are due, are looked at every few seconds.
const LOOKS_AGAIN: &str = "UPDATE fieldmirror.connections SET pacing_at = pacing_at - interval '5 seconds'";

/// Waits for what is looked at again and again, for longer than this test has time.
async fn hurried<T>(app: &TestApp, waits: impl Future<Output = T>) -> T {
    let mut waits = std::pin::pin!(waits);
    loop {
        tokio::select! {
            done = &mut waits => return done,
            () = tokio::time::sleep(Duration::from_millis(200)) => app.execute(LOOKS_AGAIN).await,
        }
    }
}

/// Compares all five at once.
async fn verify(app: &TestApp, sample: u32) -> Vec<Ran> {
    app.execute(TIME_PASSES).await;
    let lines = FIVE.map(|name| format!("verify {name} --sample {sample} --json"));
    let ran = lines.iter().map(|line| app.run(line));
    hurried(app, futures_util::future::join_all(ran)).await
}

fn differences<'a>(of: &'a Value, stream: &str) -> &'a Vec<Value> {
    let streams = of["streams"].as_array().unwrap();
    let stream = streams.iter().find(|one| one["name"] == stream).unwrap_or_else(|| panic!("{of}"));
    stream["differences"].as_array().unwrap()
}

/// What `status` says of each stream is what analysts read.
async fn hold_watermarks(app: &TestApp) {
    let status = app.run("status --json").await.done().last();
    let told = app
        .rows("SELECT connection_name, stream, state, complete_to, swept_to, backfill_done, rows, deleted_rows, stalled_reason,
                   last_success_at, next_due_at FROM mirror.freshness")
        .await;
    assert_eq!(told.len(), 27);
    for mut row in told {
        let connections = status["connections"].as_array().unwrap();
        let of = connections.iter().find(|of| of["name"] == row["connection_name"]).unwrap();
        let stream =
            of["streams"].as_array().unwrap().iter().find(|one| one["name"] == row["stream"]).unwrap();
        row.as_object_mut().unwrap().retain(|name, _| !matches!(name.as_str(), "connection_name" | "stream"));
        for (name, value) in row.as_object().unwrap() {
            let time = |value: &Value| {
                value.as_str().and_then(|text| text.parse::<chrono::DateTime<chrono::Utc>>().ok())
            };
            let same = value == &stream[name] || time(value).is_some() && time(value) == time(&stream[name]);
            assert!(same, "{name} of {stream}: {value}");
        }
    }
    let ahead = "SELECT count(*) FROM mirror.freshness WHERE complete_to > now() OR swept_to > now() OR swept_to IS NULL";
    assert_eq!(app.number(ahead).await, 0);
    // Every run that counts as one that closed has closed a walk, and every walk that closed has such a run.
    let unclosed = "SELECT count(*) FROM mirror.sync_runs r WHERE outcome = 'closed' AND NOT EXISTS (
        SELECT FROM fieldmirror.walks w WHERE (w.connection_id, w.stream, w.mode) = (r.connection_id, r.stream, r.mode)
          AND w.closed_at IS NOT NULL)";
    assert_eq!(app.number(unclosed).await, 0);
    let untold = "SELECT count(*) FROM fieldmirror.walks w WHERE closed_at IS NOT NULL AND NOT EXISTS (
        SELECT FROM mirror.sync_runs r WHERE (w.connection_id, w.stream, w.mode) = (r.connection_id, r.stream, r.mode)
          AND r.outcome = 'closed')";
    assert_eq!(app.number(untold).await, 0);
}

/// Rows that are lost without a trace: reading changes from far back brings them again.
const LOSE: &str = "
    DELETE FROM mirror.hubspot_tickets WHERE id = (SELECT min(id) FROM mirror.hubspot_tickets WHERE deleted_at IS NULL);
    DELETE FROM mirror.jobber_jobs WHERE id = (SELECT min(id) FROM mirror.jobber_jobs WHERE deleted_at IS NULL);
    DELETE FROM mirror.housecallpro_jobs WHERE id = (SELECT min(id) FROM mirror.housecallpro_jobs WHERE deleted_at IS NULL);
    DELETE FROM mirror.servicetitan_jobs WHERE id = (SELECT min(id) FROM mirror.servicetitan_jobs WHERE deleted_at IS NULL);
    DELETE FROM mirror.oncehub_bookings WHERE id = (SELECT min(id) FROM mirror.oncehub_bookings WHERE deleted_at IS NULL)";
const KEPT: &str = "SELECT (SELECT count(*) FROM mirror.hubspot_tickets) || ' ' || (SELECT count(*) FROM mirror.jobber_jobs)
    || ' ' || (SELECT count(*) FROM mirror.housecallpro_jobs) || ' ' || (SELECT count(*) FROM mirror.servicetitan_jobs)
    || ' ' || (SELECT count(*) FROM mirror.oncehub_bookings)";

/// Every form of asking for news, over all five.
async fn hold_resyncs(app: &TestApp) {
    app.execute("CREATE TABLE public.mark AS SELECT max(id) AS run FROM mirror.sync_runs").await;
    let ran =
        app.run("enqueue --resync --all --stream jobs --stream tickets --wait --json").await.done().last();
    let of: Vec<&str> =
        ran["requests"].as_array().unwrap().iter().map(|one| one["connection"].as_str().unwrap()).collect();
    assert_eq!(of.len(), 4, "those that have such a stream: {of:?}");
    assert!(ran["requests"].as_array().unwrap().iter().all(|one| one["outcome"] == "done"), "{ran}");
    let others = "SELECT count(*) FROM mirror.sync_runs, public.mark
        WHERE id > run AND mode = 'incremental' AND stream NOT IN ('jobs', 'tickets')";
    assert_eq!(app.number(others).await, 0);
    let before = app.one(KEPT).await;
    app.execute(LOSE).await;
    assert_ne!(app.one(KEPT).await, before);
    app.execute(TIME_PASSES).await;
    app.run("enqueue --resync --all --since 2001-01-01T00:00:00Z --wait").await.done();
    assert_eq!(app.one(KEPT).await, before, "changes since long ago are all changes");
    app.execute(TIME_PASSES).await;
    let refused = app.run("enqueue --resync hubspot --since 2999-01-01T00:00:00Z").await;
    assert!(refused.code == 1 && refused.stderr.contains("lies in the future"), "{refused:?}");
}

/// A value, a deletion that never was, a record's inside, a row that is lost, and one that was made up.
const TAMPER: &str = "
    UPDATE mirror.hubspot_tickets SET subject = 'tampered'
        WHERE id = (SELECT id FROM mirror.hubspot_tickets WHERE deleted_at IS NULL ORDER BY id LIMIT 1);
    UPDATE mirror.jobber_jobs SET deleted_at = now(), deleted_evidence = 'tampered'
        WHERE id = (SELECT id FROM mirror.jobber_jobs WHERE deleted_at IS NULL ORDER BY id LIMIT 1);
    UPDATE mirror.housecallpro_jobs SET raw = jsonb_set(raw, '{schedule}', '\"tampered\"')
        WHERE id = (SELECT id FROM mirror.housecallpro_jobs WHERE deleted_at IS NULL ORDER BY id LIMIT 1);
    DELETE FROM mirror.servicetitan_customers
        WHERE id = (SELECT id FROM mirror.servicetitan_customers WHERE deleted_at IS NULL
                    ORDER BY source_updated_at DESC, id LIMIT 1);
    CREATE TABLE public.made_up AS SELECT * FROM mirror.oncehub_bookings ORDER BY id LIMIT 1;
    UPDATE public.made_up SET id = 'BKNG-MADEUP0', deleted_at = NULL, deleted_evidence = NULL;
    INSERT INTO mirror.oncehub_bookings SELECT * FROM public.made_up";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_all_five_is_compared_and_mended() {
    let app = TestApp::new(small(6), &SETTINGS).await;
    let daemon = app.daemon().await;
    app.connect_all().await;
    app.wait_until("everything has been read once", ALL_READ).await;
    hold_watermarks(&app).await;
    hold_resyncs(&app).await;
    let unknown = app.run("verify hubspot --stream sprockets").await;
    assert!(unknown.code == 1 && unknown.stderr.contains("has no stream `sprockets`"), "{unknown:?}");
    app.execute(TAMPER).await;
    let found = verify(&app, 30).await;
    let found: Vec<Value> = found
        .into_iter()
        .map(|ran| {
            assert_eq!(ran.code, 1, "{ran:?}");
            ran.last()
        })
        .collect();
    let [tickets, jobs, hcp, customers, bookings] =
        [(0, "tickets"), (1, "jobs"), (2, "jobs"), (3, "customers"), (4, "bookings")]
            .map(|(place, stream)| differences(&found[place], stream));
    for (found, column, mirror) in [
        (tickets, "subject", json!("tampered")),
        (hcp, "raw/schedule", json!("tampered")),
        (customers, "row", Value::Null),
        (bookings, "deleted_at", Value::Null),
    ] {
        assert!(found.iter().any(|one| one["column"] == column && one["mirror"] == mirror), "{found:?}");
    }
    assert!(jobs.iter().any(|one| one["column"] == "deleted_at" && one["provider"].is_null()), "{jobs:?}");
    assert_eq!(found.iter().map(|one| one["streams"].as_array().unwrap().len()).sum::<usize>(), 27);

    // What differs was asked for again.
    app.execute(TIME_PASSES).await;
    let read = app.wait_until(
        "all is read again",
        "SELECT count(*) = 0 FROM fieldmirror.requests WHERE done_at IS NULL",
    );
    hurried(&app, read).await;
    for ran in verify(&app, 30).await {
        let result = ran.done().last();
        assert_eq!(result["agrees"], true, "{result}");
        for stream in result["streams"].as_array().unwrap() {
            let compared = ["sample", "window"].map(|part| stream[part]["agree"].as_u64().unwrap());
            // A list of changes may have none to show.
            assert!(compared[0] + compared[1] > 0 || !stream["window"]["from"].is_null(), "{stream}");
        }
    }
    let why = app.run("why hubspot tickets --json").await.done().last();
    assert!(why.to_string().contains("verifications"), "{why}");
    let status = app.run("status hubspot --json").await.done().last();
    assert!(status.to_string().contains("\"verified_at\":\"2"), "{status}");
    hold_watermarks(&app).await;
    daemon.stop().await;
}
