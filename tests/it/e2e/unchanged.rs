//! What a poll costs when nothing has changed, at all providers at once: requests, and writes.

use serde_json::{Value, json};

use crate::support::app::{TestApp, small};

/// Every stream of every account has been read once, archived records included, and stands.
const ALL_READ: &str = "SELECT count(DISTINCT provider) = 5 AND bool_and(backfill_done AND state = 'idle')
    AND (SELECT bool_and(closed_at IS NOT NULL) FROM fieldmirror.walks WHERE mode IN ('archived', 'incremental'))
  FROM mirror.freshness";

/// Each stream has been asked for changes as often as it takes.
const POLLED: &str = "SELECT bool_and(polls >= 3) FROM (
    SELECT count(r.id) AS polls FROM fieldmirror.stream_state s
    LEFT JOIN fieldmirror.sync_runs r ON (r.connection_id, r.stream) = (s.connection_id, s.stream)
        AND r.outcome = 'closed' AND r.mode IN ('incremental', 'snapshot')
        AND r.started_at > (SELECT started_at FROM fieldmirror.daemons)
    GROUP BY s.connection_id, s.stream) streams";

/// The most requests of a poll, by stream.
const PRICES: &str =
    "SELECT provider || '.' || stream AS stream, max(requests) AS requests FROM mirror.sync_runs
    WHERE outcome = 'closed' AND mode IN ('incremental', 'snapshot')
        AND started_at > (SELECT started_at FROM fieldmirror.daemons)
    GROUP BY 1 ORDER BY 1";

/// Streams that a request does not do for, and what it takes.
fn price(stream: &str, locations: u64) -> u64 {
    match stream {
        // The active ones and the archived ones are two lists.
        "hubspot.owners" => 2,
        // A header names the location that a list is of.
        "housecallpro.jobs" | "housecallpro.customers" | "housecallpro.employees" => locations,
        // They tell no modification: those of jobs that changed, new ones and those of these days are three lists.
        "jobber.visits" => 3,
        _ => 1,
    }
}

/// Connects the first account of everything that the sandbox plays.
async fn connect_all(app: &TestApp) {
    for stand_in in app.sandbox.control().stand_ins() {
        let (name, connect) = (stand_in.name(), stand_in.connects().remove(0));
        let mut line = format!("enqueue --connect {name} --name {name}");
        for (param, value) in &connect.params {
            line.extend([" --param ", param, "=", value]);
        }
        for (secret, value) in &connect.secrets {
            let file = app.folder.join(format!("{name}.{secret}"));
            std::fs::write(&file, value).unwrap();
            line.extend([" --secret ", secret, "=@", &file.display().to_string()]);
        }
        if connect.grant == "authorization_code" {
            app.consent(&line).await;
        } else {
            app.run(&format!("{line} --no-wait --json")).await.done();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_of_any_provider_costs_a_request_and_no_write() {
    let app = TestApp::new(small(40), &[("providers.servicetitan.poll_interval", "1s")]).await;
    let daemon = app.daemon().await;
    connect_all(&app).await;
    app.wait_until("everything has been read once", ALL_READ).await;
    daemon.stop().await;
    // The sandbox's words that nobody knows are there on purpose.
    let drift = app.rows("SELECT * FROM mirror.drift WHERE kind <> 'unknown_value'").await;
    assert_eq!(drift, Vec::<Value>::new(), "all else is foreseen");

    let before = places(&app).await;
    let daemon = app.daemon().await;
    app.wait_until("three polls of everything", POLLED).await;
    let prices = app.rows(PRICES).await;
    daemon.stop().await;

    let locations = app.number("SELECT count(*) FROM mirror.housecallpro_locations").await;
    let locations = u64::try_from(locations).unwrap();
    let expected = prices.iter().map(|row| {
        let stream = row["stream"].as_str().unwrap();
        json!({"stream": stream, "requests": price(stream, locations)})
    });
    assert_eq!(prices, expected.collect::<Vec<_>>());
    assert_eq!(prices.len(), 25);
    assert_eq!(places(&app).await, before, "no row was written");
    app.execute("UPDATE mirror.oncehub_bookings SET subject = 'changed'").await;
    assert_ne!(places(&app).await, before, "a write would have been seen");
}

/// Where every row of the mirror is, physically: a row that is written anew moves.
async fn places(app: &TestApp) -> Value {
    let tables = "SELECT relname FROM pg_class WHERE relnamespace = 'mirror'::regnamespace AND relkind = 'r'";
    let tables = app.rows(tables).await;
    assert!(tables.len() > 20, "{tables:?}");
    let of = |table: &Value| {
        let name = table["relname"].as_str().unwrap();
        format!("SELECT '{name} ' || ctid || ' ' || xmin AS place FROM mirror.{name}")
    };
    let all = tables.iter().map(of).collect::<Vec<_>>().join(" UNION ALL ");
    app.one(format!("SELECT md5(string_agg(place, ',' ORDER BY place)) FROM ({all}) places").leak()).await
}
