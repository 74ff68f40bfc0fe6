//! The schema's versions, against a real server.

use diesel::RunQueryDsl;
use diesel::sql_types::Text;
use fieldmirror::db::sealed::SealedColumn;
use fieldmirror::db::{DbError, migrations, rows};

use crate::support::postgres::TestDb;

/// Everything that a migration can make, by name: two schemas that print alike are alike.
const OBJECTS: &str = "
    SELECT format('%s.%s %s %s %s', n.nspname, c.relname, c.relkind, a.attname, format_type(a.atttypid, a.atttypmod))
        AS value
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE n.nspname IN ('fieldmirror', 'mirror') AND c.relname NOT LIKE '%diesel_schema_migrations%'
    UNION ALL
    SELECT format('%s.%s function', n.nspname, p.oid::regprocedure)
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname IN ('fieldmirror', 'mirror')
    UNION ALL
    SELECT format('%s.%s type', n.nspname, t.typname)
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE n.nspname IN ('fieldmirror', 'mirror') AND t.typname NOT LIKE '%diesel_schema_migrations%'
    UNION ALL
    SELECT format('schema %s', nspname) FROM pg_namespace WHERE nspname = 'mirror'
    ORDER BY 1";

async fn texts(database: &TestDb, query: &'static str) -> Vec<String> {
    database
        .db
        .run(move |connection| rows::values::<Text, String, _>(connection, diesel::sql_query(query)))
        .await
        .unwrap()
}

#[tokio::test]
async fn up_down_up() {
    let database = TestDb::empty();
    let up = migrations::run(&database.url).await.unwrap();
    let first = texts(&database, OBJECTS).await;
    assert!(first.iter().any(|object| object.starts_with("fieldmirror.connections ")), "{first:?}");

    let mut down = migrations::revert_all_blocking(&database.url).unwrap();
    down.reverse();
    assert_eq!(down, up);
    assert_eq!(texts(&database, OBJECTS).await, Vec::<String>::new(), "left behind by the down scripts");

    assert_eq!(migrations::run(&database.url).await.unwrap(), up);
    assert_eq!(texts(&database, OBJECTS).await, first);
    database.db.run(migrations::check).await.unwrap();
}

/// A rotation of the vault key reaches every column that holds sealed values. Boxes, which are sealed to somebody's public
/// key, end with their request.
#[tokio::test]
async fn every_sealed_column_is_known() {
    let database = TestDb::new();
    let query = "SELECT format('%s.%s', table_name, column_name) AS value FROM information_schema.columns \
         WHERE table_schema = 'fieldmirror' AND data_type = 'bytea' AND column_name LIKE '%sealed%' ORDER BY 1";
    let mut known: Vec<String> = SealedColumn::ALL
        .iter()
        .map(|column| format!("{}.{}", column.table(), column.column()))
        .chain(["requests.reply_sealed", "requests.sealed"].map(ToOwned::to_owned))
        .collect();
    known.sort();
    assert_eq!(texts(&database, query).await, known);
}

#[tokio::test]
async fn two_at_once_take_turns() {
    let database = TestDb::empty();
    let (one, other) = tokio::join!(migrations::run(&database.url), migrations::run(&database.url));
    let (one, other) = (one.unwrap(), other.unwrap());
    let known = migrations::status(&database.url).await.unwrap();
    assert_eq!(one.len() + other.len(), known.len(), "{one:?} {other:?}");
    assert!(one.is_empty() || other.is_empty(), "{one:?} {other:?}");
    assert!(known.iter().all(|version| version.applied && version.known));
}

#[tokio::test]
async fn a_newer_schema_is_refused_untouched() {
    let database = TestDb::new();
    let insert = "INSERT INTO __diesel_schema_migrations (version) VALUES ('29991231000000')";
    database.db.run(move |connection| Ok(diesel::sql_query(insert).execute(connection)?)).await.unwrap();

    for refusal in [
        migrations::run(&database.url).await.map(drop).unwrap_err(),
        database.db.run(migrations::check).await.unwrap_err(),
    ] {
        assert!(
            matches!(&refusal, DbError::SchemaNewer { version } if version == "29991231000000"),
            "{refusal:?}"
        );
        assert!(refusal.to_string().contains("upgrade fieldmirror"), "{refusal}");
    }
    let newest = migrations::status(&database.url).await.unwrap().pop().unwrap();
    assert!(newest.applied && !newest.known, "{newest:?}");
}

#[tokio::test]
async fn a_missing_version_is_named() {
    let database = TestDb::empty();
    let refusal = database.db.run(migrations::check).await.unwrap_err();
    let oldest = &migrations::status(&database.url).await.unwrap()[0];
    assert!(!oldest.applied);
    assert!(
        matches!(&refusal, DbError::SchemaBehind { version } if *version == oldest.version),
        "{refusal:?}"
    );
}

#[tokio::test]
async fn what_analysts_see_is_commented() {
    let database = TestDb::new();
    let missing = "
        SELECT format('column %s.%s', c.relname, a.attname) AS value
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relnamespace = 'mirror'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
          AND col_description(c.oid, a.attnum) IS NULL
        UNION ALL
        SELECT format('relation %s', c.relname) FROM pg_class c
        WHERE c.relnamespace = 'mirror'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
          AND obj_description(c.oid, 'pg_class') IS NULL
        UNION ALL
        SELECT format('schema %s', nspname) FROM pg_namespace
        WHERE nspname IN ('mirror', 'fieldmirror') AND obj_description(oid, 'pg_namespace') IS NULL
        ORDER BY 1";
    assert_eq!(texts(&database, missing).await, Vec::<String>::new(), "without a comment");

    // And that the question finds what it asks for.
    let bare = "CREATE TABLE mirror.bare (id text)";
    database.db.run(move |connection| Ok(diesel::sql_query(bare).execute(connection)?)).await.unwrap();
    assert_eq!(texts(&database, missing).await, ["column bare.id", "relation bare"]);
}

/// What is deleted or looked for by age, every minute or at every tick, in tables that grow with the years.
#[tokio::test]
async fn what_is_sought_by_age_has_an_index() {
    let database = TestDb::new();
    let led = "SELECT DISTINCT format('%s.%s', i.indrelid::regclass, a.attname) AS value
               FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
               JOIN pg_type t ON t.oid = a.atttypid
               WHERE t.typname = 'timestamptz' AND i.indrelid IN (SELECT oid FROM pg_class
                   WHERE relnamespace IN ('fieldmirror'::regnamespace, 'mirror'::regnamespace)) ORDER BY 1";
    let led = texts(&database, led).await;
    for sought in [
        "sync_runs.ended_at",
        "verifications.started_at",
        "requests.done_at",
        "authorizations.closed_at",
        "authorizations.expires_at",
        "authorization_attempts.expires_at",
        "audit_log.at",
        "jobs.ended_at",
        "alerts.resolved_at",
        "mirror.drift.last_seen_at",
        "mirror.changes.observed_at",
    ] {
        assert!(led.iter().any(|there| there.ends_with(sought)), "{sought}: {led:?}");
    }
}
