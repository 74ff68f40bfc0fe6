//! What a poll costs when nothing has changed, at all providers at once: requests, and writes.

use fieldmirror::daemon::postgres::PrivateServer;
use fieldmirror::db::{Db, migrations};
use serde_json::{Value, json};

use crate::support::app::{TestApp, small};
use crate::support::postgres::{options, short_folder};

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
        _ => 1,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_of_any_provider_costs_a_request_and_no_write() {
    // A server of its own: no other test writes to its log.
    let folder = short_folder("unchanged");
    let options = options(&folder);
    let started = tokio::task::spawn_blocking(move || PrivateServer::start_blocking(options).unwrap());
    let server = started.await.unwrap();
    migrations::run(&server.url()).await.unwrap();
    let db = Db::connect(&server.url(), 2).unwrap();
    let app =
        TestApp::over(small(40), &[("providers.servicetitan.poll_interval", "1s")], server.url(), db, None)
            .await;
    let daemon = app.daemon().await;
    app.connect_all().await;
    app.wait_until("everything has been read once", ALL_READ).await;
    daemon.stop().await;
    // The sandbox's words that nobody knows are there on purpose.
    let drift = app.rows("SELECT * FROM mirror.drift WHERE kind <> 'unknown_value'").await;
    assert_eq!(drift, Vec::<Value>::new(), "all else is foreseen");

    for statement in QUIET {
        app.execute(statement).await;
    }
    app.execute(BEGIN).await;
    let daemon = app.daemon().await;
    app.wait_until("three polls of everything", POLLED).await;
    let prices = app.rows(PRICES).await;
    daemon.stop().await;
    app.execute(END).await;

    let locations = app.number("SELECT count(*) FROM mirror.housecallpro_locations").await;
    let locations = u64::try_from(locations).unwrap();
    let expected = prices.iter().map(|row| {
        let stream = row["stream"].as_str().unwrap();
        json!({"stream": stream, "requests": price(stream, locations)})
    });
    assert_eq!(prices, expected.collect::<Vec<_>>());
    assert_eq!(prices.len(), 27);
    assert_eq!(app.rows(MIRROR_RECORDS).await, Vec::<Value>::new(), "nothing was written to the mirror");
    assert!(app.number("SELECT count(*) FROM public.records").await > 0, "the log is read");
    app.execute(BEGIN).await;
    app.execute("UPDATE mirror.oncehub_bookings SET subject = 'changed'").await;
    app.execute(END).await;
    let written = app.rows(MIRROR_RECORDS).await;
    assert_eq!(written[0]["relation"], "mirror.oncehub_bookings", "a write is seen: {written:?}");
    app.db.close();
    server.stop().await;
    let _ = std::fs::remove_dir_all(folder);
}

/// Against what Postgres writes by itself: pages that are tidied up when they are read, hints, statistics.
const QUIET: [&str; 6] = [
    "CREATE EXTENSION pg_walinspect",
    "ALTER SYSTEM SET autovacuum = off",
    // A checkpoint removes what is older than the one before it, and so the beginning.
    "ALTER SYSTEM SET wal_keep_size = '1GB'",
    "SELECT pg_reload_conf()",
    "VACUUM (FREEZE, ANALYZE)",
    "CREATE TABLE public.log (began pg_lsn); INSERT INTO public.log VALUES (NULL)",
];
const BEGIN: &str = "CHECKPOINT; UPDATE public.log SET began = pg_current_wal_flush_lsn()";

/// Keeps the records of the write-ahead log since [`BEGIN`] that changed a page of this database, by the file of the page.
const END: &str = "CHECKPOINT;
    DROP TABLE IF EXISTS public.records;
    CREATE TABLE public.records AS
        SELECT file[1]::oid AS file, count(*) AS records, sum(record_length) AS bytes
        FROM public.log, pg_get_wal_records_info(began, pg_current_wal_flush_lsn()) record,
             regexp_matches(record.block_ref, 'rel [0-9]+/' || (SELECT oid FROM pg_database WHERE datname = current_database()) || '/([0-9]+)', 'g') file
        GROUP BY 1";

/// Of those the ones of tables of the mirror, their indexes, and what does not fit into a page.
const MIRROR_RECORDS: &str = "WITH tables AS (
        SELECT oid, reltoastrelid FROM pg_class WHERE relnamespace = 'mirror'::regnamespace AND relkind IN ('r', 'm', 'S')),
    relations AS (
        SELECT oid AS of, oid FROM tables
        UNION ALL SELECT oid, reltoastrelid FROM tables WHERE reltoastrelid <> 0
        UNION ALL SELECT tables.oid, indexrelid FROM tables JOIN pg_index ON indrelid IN (tables.oid, reltoastrelid))
    SELECT 'mirror.' || relname AS relation, sum(records) AS records, sum(bytes) AS bytes
    FROM relations JOIN public.records ON file = pg_relation_filenode(relations.oid) JOIN pg_class ON pg_class.oid = of
    GROUP BY 1 ORDER BY 1";
