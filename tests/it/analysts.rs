//! `grant-analyst`: a role reads everything in `mirror`, what comes later too, and does nothing else.

use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::sql_types::Text;
use diesel::{Connection as _, PgConnection};
use fieldmirror::db::{DbError, admin, rows, views};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::secret::Secret;
use fieldmirror::domain::view::AccountView;
use serde_json::{Value, json};

use crate::support::postgres::{TestDb, short_folder};

const PATIENCE: Duration = Duration::from_mins(3);

/// Whatever of `mirror` can be read.
const RELATIONS: &str = "SELECT relname::text AS value FROM pg_class
     WHERE relnamespace = 'mirror'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY 1";

/// A row in every table that records are mirrored to, so that views have something to work on.
const A_ROW_EVERYWHERE: &str = "
    INSERT INTO fieldmirror.connections (name, provider, grant_kind, state)
    VALUES ('acme', 'hubspot', 'bearer_token', 'connected');
    DO $$ DECLARE stream record; BEGIN
        FOR stream IN SELECT table_name FROM information_schema.columns
                      WHERE table_schema = 'mirror' AND column_name = 'content_hash' LOOP
            EXECUTE format($f$INSERT INTO mirror.%I (connection_id, id, raw, first_seen_at, synced_at, content_hash)
                              SELECT 1, '7', '{}', now(), now(), '\\x01'$f$, stream.table_name);
        END LOOP;
    END $$;";

pub fn session(url: &Secret) -> PgConnection {
    PgConnection::establish(url.expose()).expect("the server lets it in")
}

/// The same database, as that role.
pub fn url_as(url: &Secret, role: &str) -> Secret {
    let role = role.bytes().fold(String::new(), |text, byte| text + &format!("%{byte:02x}"));
    Secret::new(url.expose().replace("user=fieldmirror", &format!("user={role}")))
}

/// Reads every row and column of every relation of `mirror` as whoever `analyst` comes as; how many rows each has.
pub fn read_all(analyst: &mut PgConnection) -> Vec<(String, usize)> {
    let relations = rows::values::<Text, String, _>(analyst, diesel::sql_query(RELATIONS)).unwrap();
    let mut read = Vec::new();
    for relation in relations {
        let query =
            diesel::sql_query(format!("SELECT to_jsonb(q)::text AS value FROM mirror.\"{relation}\" q"));
        let found = rows::values::<Text, String, _>(analyst, query);
        read.push((relation.clone(), found.unwrap_or_else(|error| panic!("{relation}: {error:?}")).len()));
    }
    read
}

/// That the server refuses that, for want of a right.
#[track_caller]
pub fn refused(analyst: &mut PgConnection, statement: &str) {
    let error = analyst.batch_execute(statement).expect_err(statement).to_string();
    // A view over several tables is changed by nobody.
    let words = ["permission denied", "must be owner", "cannot delete from view"];
    assert!(words.iter().any(|words| error.contains(words)), "{statement}: {error}");
}

/// That it may neither look into our own schema nor change anything.
#[track_caller]
pub fn may_nothing_else(analyst: &mut PgConnection) {
    let ours = "SELECT format('%s', oid::regclass) AS value FROM pg_class
                WHERE relnamespace = 'fieldmirror'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')";
    let ours = rows::values::<Text, String, _>(analyst, diesel::sql_query(ours)).unwrap();
    assert!(ours.len() > 10, "{ours:?}");
    for relation in ours {
        refused(analyst, &format!("SELECT FROM {relation} LIMIT 1"));
    }
    let calls = "SELECT format('%s %s.%I(%s)', CASE prokind WHEN 'p' THEN 'CALL' ELSE 'SELECT' END,
                     pronamespace::regnamespace, proname, array_to_string(ARRAY(
                         SELECT format('NULL::%s', format_type(of, NULL)) FROM unnest(proargtypes) AS of), ', ')) AS value
                 FROM pg_proc WHERE pronamespace = 'fieldmirror'::regnamespace";
    let calls = rows::values::<Text, String, _>(analyst, diesel::sql_query(calls)).unwrap();
    assert!(calls.len() > 3, "{calls:?}");
    for call in calls {
        refused(analyst, &call);
    }
    for relation in rows::values::<Text, String, _>(analyst, diesel::sql_query(RELATIONS)).unwrap() {
        refused(analyst, &format!("DELETE FROM mirror.\"{relation}\""));
    }
    for statement in [
        "CREATE TABLE mirror.mine (id text)",
        "CREATE TABLE fieldmirror.mine (id text)",
        "CREATE FUNCTION mirror.mine() RETURNS text LANGUAGE sql AS 'SELECT 1::text'",
        "INSERT INTO mirror.hubspot_tickets (connection_id, id) VALUES (1, '8')",
        "UPDATE mirror.hubspot_tickets SET subject = 'x'",
        "UPDATE mirror.connections SET name = 'x'",
        "TRUNCATE mirror.changes",
        "DROP VIEW mirror.tickets",
        "COMMENT ON SCHEMA mirror IS 'mine'",
    ] {
        refused(analyst, statement);
    }
}

/// What the command did: its exit code, and the object on stdout.
fn grant(url: &Secret, role: &str) -> (i32, Value) {
    let folder = short_folder("analysts");
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldmirror"));
    command.env_clear().env("HOME", &folder).env("FIELDMIRROR_DATABASE__URL", url.expose());
    let ran = command.args(["grant-analyst", "--json", "--", role]).stdin(Stdio::null()).output().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "", "{role}");
    let object = serde_json::from_slice(&ran.stdout).expect("one object");
    (ran.status.code().expect("it ends by itself"), object)
}

async fn sql(database: &TestDb, statements: &'static str) {
    database.db.run(move |conn| conn.batch_execute(statements).map_err(DbError::from)).await.unwrap();
}

/// Whoever reads, whatever it is called and could do before; twice, which changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_analyst_reads_mirror_and_nothing_else() {
    const ROLE: &str = "Анна \"x\"; DROP SCHEMA mirror --";
    let database = TestDb::new();
    sql(&database, A_ROW_EVERYWHERE).await;
    let role = admin::quoted(ROLE);
    let before = format!(
        "CREATE ROLE {role} LOGIN;
         GRANT ALL ON SCHEMA fieldmirror, mirror TO {role};
         GRANT ALL ON ALL TABLES IN SCHEMA fieldmirror, mirror TO {role};
         GRANT SELECT (access_sealed), UPDATE (access_sealed) ON fieldmirror.tokens TO {role};
         ALTER DEFAULT PRIVILEGES IN SCHEMA fieldmirror GRANT ALL ON TABLES TO {role};
         ALTER DEFAULT PRIVILEGES IN SCHEMA mirror GRANT ALL ON TABLES TO {role};
         ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {role};"
    );
    database.db.run(move |conn| Ok(conn.batch_execute(&before)?)).await.unwrap();
    let first = grant(&database.url, ROLE);
    let relations = first.1["relations"].as_u64().expect("a number");
    let expected = json!({
        "role": ROLE, "schema": "mirror", "relations": relations, "can_login": true, "later_of": ["fieldmirror"],
    });
    assert_eq!(first, (0, expected.clone()));
    assert_eq!(grant(&database.url, ROLE), (0, expected));

    let mut analyst = session(&url_as(&database.url, ROLE));
    let read = read_all(&mut analyst);
    assert_eq!(read.len() as u64, relations);
    for filled in ["tickets", "jobs", "bookings", "connections", "servicetitan_jobs"] {
        assert!(read.iter().any(|(name, count)| name == filled && *count > 0), "{filled}: {read:?}");
    }
    may_nothing_else(&mut analyst);

    // What comes later: of a migration, and of the daemon, made anew.
    sql(
        &database,
        "CREATE TABLE fieldmirror.later (secret text);
         INSERT INTO fieldmirror.later VALUES ('s');
         CREATE TABLE mirror.later_table (id text);
         CREATE VIEW mirror.later_view AS SELECT secret FROM fieldmirror.later;
         DROP VIEW mirror.later_view;
         CREATE VIEW mirror.later_view AS SELECT secret AS other FROM fieldmirror.later;",
    )
    .await;
    let later: Vec<_> =
        read_all(&mut analyst).into_iter().filter(|(name, _)| name.starts_with("later")).collect();
    assert_eq!(later, [("later_table".to_owned(), 0), ("later_view".to_owned(), 1)]);
    may_nothing_else(&mut analyst);

    let log = "SELECT event, outcome, detail, daemon_id, connection_id FROM fieldmirror.audit_log";
    let log = database.db.run(|conn| rows::objects(conn, log)).await.unwrap();
    let detail = format!("role {ROLE} may read schema mirror");
    let line = json!({
        "event": "grant_analyst", "outcome": "done", "detail": detail, "daemon_id": null, "connection_id": null,
    });
    assert_eq!(log, [line.clone(), line]);
}

/// A view whose transaction is open has neither been there nor come later.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_is_being_made_is_read_too() {
    let database = TestDb::new();
    sql(&database, A_ROW_EVERYWHERE).await;
    sql(&database, "CREATE ROLE ga_early LOGIN").await;
    let (made, release) = (mpsc::channel(), mpsc::channel::<()>());
    let db = database.db.clone();
    let making = tokio::spawn(async move {
        let making = db.transaction(move |conn| {
            views::create(
                conn,
                ConnectionId(1),
                &AccountView { table: "hubspot_tickets", columns: Vec::new() },
            )?;
            made.0.send(()).unwrap();
            release.1.recv_timeout(PATIENCE).unwrap();
            Ok(())
        });
        making.await.unwrap();
    });
    made.1.recv_timeout(PATIENCE).unwrap();
    let url = database.url.clone();
    let granting = std::thread::spawn(move || grant(&url, "ga_early"));
    let waits = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    while database.db.run(|conn| rows::objects(conn, waits)).await.unwrap().is_empty() {
        assert!(!granting.is_finished(), "rights were given while a view was being made");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    release.0.send(()).unwrap();
    making.await.unwrap();
    assert_eq!(granting.join().unwrap().0, 0);
    let read = read_all(&mut session(&url_as(&database.url, "ga_early")));
    assert!(read.contains(&("hubspot_tickets_c1".to_owned(), 1)), "{read:?}");
}

/// No function of ours runs with the rights of its owner, and no view with those of its reader.
#[tokio::test]
async fn rights_are_those_of_the_owner_of_a_view_and_of_the_caller_of_a_function() {
    let database = TestDb::new();
    let odd = "SELECT proname FROM pg_proc
               WHERE pronamespace IN ('mirror'::regnamespace, 'fieldmirror'::regnamespace) AND prosecdef
               UNION ALL
               SELECT relname FROM pg_class
               WHERE relnamespace IN ('mirror'::regnamespace, 'fieldmirror'::regnamespace) AND relkind = 'v'
                 AND 'security_invoker=true' = ANY (reloptions)";
    assert_eq!(database.db.run(|conn| rows::objects(conn, odd)).await.unwrap(), Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_would_do_more_or_less_is_given_nothing() {
    let database = TestDb::new();
    sql(
        &database,
        "CREATE ROLE ga_reader LOGIN; CREATE ROLE ga_group; CREATE ROLE ga_super SUPERUSER;
         CREATE ROLE ga_copier REPLICATION; CREATE ROLE ga_maker CREATEROLE;
         CREATE ROLE ga_member LOGIN IN ROLE pg_read_all_data, ga_group; CREATE ROLE ga_stranger LOGIN;
         CREATE ROLE ga_sleeper LOGIN NOINHERIT IN ROLE ga_super;
         CREATE ROLE ga_owner LOGIN;
         GRANT USAGE ON SCHEMA fieldmirror TO ga_stranger;
         GRANT SELECT ON fieldmirror.__diesel_schema_migrations TO ga_stranger;",
    )
    .await;
    let check = |url: &Secret, role: &str, kind: &str, found: &str, remedy: &str| {
        let (code, object) = grant(url, role);
        let error = &object["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        assert_eq!((code, text("kind").as_str()), (1, kind), "{role}: {object:#}");
        assert!(text("message").contains(found), "`{found}` is not in {object:#}");
        assert!(text("hint").contains(remedy), "`{remedy}` is not in {object:#}");
    };
    let url = &database.url;
    check(url, "zoe", "unknown_name", "there is no role `zoe`", "`CREATE ROLE \"zoe\" LOGIN`");
    check(url, "Ga_reader", "unknown_name", "there is no role `Ga_reader`", "did you mean `ga_reader`?");
    check(url, "public", "bad_request", "everybody", "--help");
    let role = "`CREATE ROLE analyst LOGIN`";
    check(url, "ga_super", "bad_request", "is a superuser", role);
    check(url, "ga_copier", "bad_request", "replicate", role);
    check(url, "ga_maker", "bad_request", "may make roles", role);
    check(url, "pg_monitor", "bad_request", "Postgres' own", role);
    check(url, "fieldmirror", "bad_request", "owns what is in `mirror`", role);
    let revoke = "`REVOKE \"ga_group\", \"pg_read_all_data\" FROM \"ga_member\"`";
    check(url, "ga_member", "bad_request", "USAGE on schema fieldmirror", revoke);
    let revoke = "`REVOKE \"ga_super\" FROM \"ga_sleeper\"`";
    check(url, "ga_sleeper", "bad_request", "on schema fieldmirror", revoke);
    for owner in ["ga_owner", "fieldmirror"] {
        let given = format!(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO {owner}', current_database()); END $$"
        );
        database.db.run(move |conn| Ok(conn.batch_execute(&given)?)).await.unwrap();
        if owner == "ga_owner" {
            check(url, owner, "bad_request", "owns the database", role);
        }
    }
    let stranger = url_as(url, "ga_stranger");
    check(
        &stranger,
        "ga_reader",
        "configuration",
        "may not give rights for `fieldmirror`",
        "comes as `fieldmirror`",
    );

    let given = "SELECT relname FROM pg_class, aclexplode(relacl) AS may
                 WHERE relnamespace = 'mirror'::regnamespace AND may.grantee <> relowner
                 UNION ALL SELECT 'default' FROM pg_default_acl UNION ALL SELECT event FROM fieldmirror.audit_log";
    assert_eq!(database.db.run(|conn| rows::objects(conn, given)).await.unwrap(), Vec::<Value>::new());

    sql(&database, "GRANT SELECT ON fieldmirror.tokens TO PUBLIC").await;
    check(url, "ga_reader", "bad_request", "SELECT on fieldmirror.tokens", "FROM PUBLIC");
    sql(&database, "REVOKE ALL ON fieldmirror.tokens FROM PUBLIC").await;
    // A group is as good as a role that logs in. A database that was closed is opened to it.
    sql(
        &database,
        "DO $$ BEGIN EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database()); END $$",
    )
    .await;
    let (code, granted) = grant(url, "ga_reader");
    assert_eq!((code, &granted["can_login"]), (0, &Value::Bool(true)), "{granted}");
    read_all(&mut session(&url_as(url, "ga_reader")));
}
