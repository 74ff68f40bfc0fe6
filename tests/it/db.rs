//! The pool and its sessions, against a real server.

use std::sync::mpsc;
use std::time::Duration;

use diesel::RunQueryDsl;
use diesel::sql_types::{BigInt, Integer, Text};
use fieldmirror::db::{Db, DbError, rows, session};
use fieldmirror::domain::failure::FailureKind;

use crate::support::postgres::{TestDb, server};

const INSERT: &str = "INSERT INTO connections (name, provider, grant_kind, state) VALUES ('acme', 'hubspot', 'api_key', 'failed')";

async fn text(db: &Db, query: &'static str) -> Result<String, DbError> {
    db.run(move |connection| rows::value::<Text, String, _>(connection, diesel::sql_query(query))).await
}

async fn connections(db: &Db) -> i64 {
    let query = "SELECT count(*) AS value FROM connections";
    db.run(move |connection| rows::value::<BigInt, i64, _>(connection, diesel::sql_query(query)))
        .await
        .unwrap()
}

#[tokio::test]
async fn every_session_is_set_up() {
    let database = TestDb::new();
    let settings = "SELECT concat_ws(', ', current_setting('search_path'), current_setting('application_name'), \
                    current_setting('TimeZone'), current_setting('statement_timeout'), \
                    current_setting('lock_timeout')) AS value";
    let expected = "fieldmirror, fieldmirror, UTC, 5min, 1min";
    assert_eq!(text(&database.db, settings).await.unwrap(), expected);
    let mut direct = session::open(&database.url).unwrap();
    let direct = rows::value::<Text, String, _>(&mut direct, diesel::sql_query(settings)).unwrap();
    assert_eq!(direct, expected);
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing() {
    let database = TestDb::new();
    let twice = database.db.transaction(|connection| {
        diesel::sql_query(INSERT).execute(connection)?;
        Ok(diesel::sql_query(INSERT).execute(connection)?)
    });
    let error = twice.await.unwrap_err();
    assert!(error.is_unique_violation("connections_name_key"), "{error:?}");
    assert!(!error.is_unique_violation("connections_pkey"), "{error:?}");
    assert_eq!(connections(&database.db).await, 0);

    database.db.transaction(|connection| Ok(diesel::sql_query(INSERT).execute(connection)?)).await.unwrap();
    assert_eq!(connections(&database.db).await, 1);
}

#[tokio::test]
async fn values_rows_and_none() {
    let database = TestDb::new();
    let series = "SELECT n AS value FROM generate_series(1, 3) n ORDER BY n";
    let none = "SELECT 1 AS value WHERE false";
    let (all, first, absent, error) = database
        .db
        .run(move |connection| {
            let all = rows::values::<Integer, i32, _>(connection, diesel::sql_query(series))?;
            let first = rows::optional::<Integer, i32, _>(connection, diesel::sql_query(series))?;
            let absent = rows::optional::<Integer, i32, _>(connection, diesel::sql_query(none))?;
            let error = rows::value::<Integer, i32, _>(connection, diesel::sql_query(none)).unwrap_err();
            Ok((all, first, absent, error))
        })
        .await
        .unwrap();
    assert_eq!((all, first, absent), (vec![1, 2, 3], Some(1), None));
    assert!(error.is_not_found(), "{error:?}");
}

#[tokio::test]
async fn a_session_that_the_server_ended_is_replaced() {
    let database = TestDb::new();
    let pid = "SELECT pg_backend_pid()::text AS value";
    let first = text(&database.db, pid).await.unwrap();
    let ended = text(&database.db, "SELECT pg_terminate_backend(pg_backend_pid())::text AS value").await;
    assert_eq!(ended.unwrap_err().kind(), FailureKind::Transient);
    assert_ne!(text(&database.db, pid).await.unwrap(), first);
}

#[tokio::test]
async fn a_query_over_its_time_is_transient() {
    let database = TestDb::new();
    let slow = "SELECT set_config('statement_timeout', '50ms', false), pg_sleep(0) ; SELECT pg_sleep(5)";
    let error = database
        .db
        .run(move |connection| {
            for statement in slow.split(';') {
                diesel::sql_query(statement).execute(connection)?;
            }
            Ok(())
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), FailureKind::Transient, "{error:?}");
}

/// The connection of a cancelled caller is not handed out while its work goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_caller_leaves_no_busy_connection_behind() {
    let database = TestDb::new();
    let db = Db::connect(&database.url, 1).unwrap();
    let (begun, begins) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel::<()>();
    let other = db.clone();
    let caller = tokio::spawn(async move {
        let work = other.transaction(move |connection| {
            begun.send(()).expect("the test waits");
            goes_on.recv().expect("the test lets it go on");
            Ok(diesel::sql_query(INSERT).execute(connection)?)
        });
        work.await
    });
    begins.recv().unwrap();
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());

    let next = tokio::spawn(async move { connections(&db).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!next.is_finished(), "the only connection was handed out while it was busy");
    go_on.send(()).unwrap();
    assert_eq!(next.await.unwrap(), 1, "what was begun was also finished");
}

#[tokio::test]
async fn a_panic_goes_on_in_the_caller_and_costs_one_connection() {
    let database = TestDb::new();
    let db = Db::connect(&database.url, 1).unwrap();
    let pid = "SELECT pg_backend_pid()::text AS value";
    let first = text(&db, pid).await.unwrap();
    let other = db.clone();
    let panicked = tokio::spawn(async move { other.run::<()>(|_| panic!("on purpose")).await }).await;
    assert!(panicked.unwrap_err().is_panic());
    assert_ne!(text(&db, pid).await.unwrap(), first);
}

#[tokio::test]
async fn a_refused_address_and_an_absent_database_say_so() {
    let secret = "postgres://me:hunter2@h/x@y".into();
    let refusal = Db::connect(&secret, 1).unwrap_err();
    assert!(!format!("{refusal} {refusal:?}").contains("hunter2"));
    let absent = Db::connect(&server().url_of("absent"), 1).unwrap();
    let error = text(&absent, "SELECT '' AS value").await.unwrap_err();
    assert!(error.to_string().contains("database \"absent\" does not exist"), "{error}");
    assert_eq!(error.kind(), FailureKind::Misconfigured);
}

#[tokio::test]
async fn debug_output_holds_no_address() {
    let db = Db::connect(&"postgresql://me:hunter2@h/d".into(), 3).unwrap();
    let debug = format!("{db:?}");
    assert!(debug.starts_with("Db") && !debug.contains("hunter2"), "{debug}");
}

#[tokio::test]
async fn history_is_deleted_by_age_and_open_requests_stay() {
    use fieldmirror::db::retention::{prune_audit_log, prune_requests};
    use fieldmirror::db::sync_runs;
    use fieldmirror::domain::time::{Clock as _, SystemClock};

    let database = TestDb::new();
    let left = || {
        text(
            &database.db,
            "SELECT concat_ws(' ', (SELECT string_agg(message, ',' ORDER BY message) FROM requests),
                (SELECT string_agg(event, ',' ORDER BY event) FROM audit_log),
                (SELECT count(*) FROM authorizations), (SELECT count(*) FROM authorization_attempts),
                (SELECT string_agg(stream, ',' ORDER BY stream) FROM sync_runs)) AS value",
        )
    };
    let filled = database.db.run(|connection| {
        diesel::sql_query(INSERT).execute(connection)?;
        diesel::sql_query(
            "INSERT INTO requests (id, connection_id, kind, requested_at, done_at, outcome, message)
             SELECT gen_random_uuid(), c.id, 'sync', now() - interval '1 year', now() - age, 'done', word
             FROM connections c, (VALUES ('old', interval '91 days'), ('new', interval '89 days'), ('open', NULL)) v (word, age)",
        )
        .execute(connection)?;
        diesel::sql_query(
            "INSERT INTO audit_log (at, event, outcome)
             VALUES (now() - interval '91 days', 'old', 'done'), (now() - interval '89 days', 'new', 'done')",
        )
        .execute(connection)?;
        diesel::sql_query(
            "WITH link AS (
                INSERT INTO authorizations (id, connection_id, request_id, ticket_hash, redirect_uri, expires_at, closed_at)
                SELECT gen_random_uuid(), c.id, gen_random_uuid(), sha256(word::bytea), 'x', now(), now() - age
                FROM connections c, (VALUES ('old', interval '91 days'), ('open', NULL)) v (word, age) RETURNING id)
             INSERT INTO authorization_attempts (id, authorization_id, provider, state_hash, redirect_uri, expires_at)
             SELECT gen_random_uuid(), id, 'hubspot', sha256(id::text::bytea), 'x', now() FROM link",
        )
        .execute(connection)?;
        diesel::sql_query(
            "INSERT INTO sync_runs (connection_id, stream, mode, started_at, ended_at, outcome)
             SELECT c.id, word, 'backfill', now() - interval '1 year', now() - age, 'closed'
             FROM connections c, (VALUES ('old', interval '91 days'), ('new', interval '89 days'), ('open', NULL)) v (word, age)",
        )
        .execute(connection)?;
        Ok(())
    });
    filled.await.unwrap();
    assert_eq!(left().await.unwrap(), "new,old,open new,old 2 2 new,old,open");
    let prune = |days: i64| {
        database.db.run(move |connection| {
            let before = SystemClock.now() - chrono::TimeDelta::days(days);
            let (asked, told) = (prune_requests(connection, before)?, prune_audit_log(connection, before)?);
            Ok((asked, told, sync_runs::prune(connection, before)?))
        })
    };
    assert_eq!(prune(100).await.unwrap(), (0, 0, 0));
    assert_eq!(prune(90).await.unwrap(), (2, 1, 1));
    assert_eq!(left().await.unwrap(), "new,open new 1 1 new,open");
}
