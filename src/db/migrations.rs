//! The schema's versions: applying them, and refusing databases that this binary does not fit.
//!
//! Each migration runs in its own transaction, on a direct session under an advisory lock, so daemons that start
//! together take turns and the second finds nothing left to do. Versions are recorded in
//! `fieldmirror.__diesel_schema_migrations`. Down migrations are for the tests and for people; the daemon never runs one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::migration::{Migration as _, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_types::{BigInt, Bool, Integer, Text};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::error::DbError;
use super::{rows, session};
use crate::domain::failure::FailureKind;
use crate::domain::secret::Secret;

const EMBEDDED: EmbeddedMigrations = embed_migrations!("migrations");
/// The oldest major version of Postgres that we run on.
pub const POSTGRES_MAJOR_MIN: u32 = 15;
/// The advisory lock that migrating takes: `fieldmir` in ASCII.
const LOCK: i64 = i64::from_be_bytes(*b"fieldmir");
const LOCK_WAIT_MAX: Duration = Duration::from_mins(5);
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// One version of the schema, and whether this database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The digits of the folder's name, which order versions.
    pub version: String,
    /// The folder's name under `migrations/`; the version alone when this binary does not know it.
    pub name: String,
    pub applied: bool,
    /// False for a version that a newer fieldmirror has applied.
    pub known: bool,
}

/// Applies what is pending; gives the names of what was applied.
///
/// # Errors
/// Refuses a server older than [`POSTGRES_MAJOR_MIN`] and a schema newer than this binary, and changes nothing then.
pub async fn run(url: &Secret) -> Result<Vec<String>, DbError> {
    let url = url.clone();
    blocking(move || run_blocking(&url)).await
}

/// [`run`], for callers that are not async.
pub fn run_blocking(url: &Secret) -> Result<Vec<String>, DbError> {
    locked(url, |connection| {
        // With `search_path` as it is, diesel's table and anything unqualified lands in our schema.
        connection.batch_execute("CREATE SCHEMA IF NOT EXISTS fieldmirror")?;
        refuse_newer(&versions(connection)?)?;
        let pending = connection.pending_migrations(EMBEDDED).map_err(|error| failed("?", &*error))?;
        let mut applied = Vec::with_capacity(pending.len());
        for migration in &pending {
            let name = migration.name().to_string();
            connection.run_migration(migration).map_err(|error| failed(&name, &*error))?;
            applied.push(name);
        }
        Ok(applied)
    })
}

/// Takes back every version, newest first: mirror and all. For tests of the down scripts.
pub fn revert_all_blocking(url: &Secret) -> Result<Vec<String>, DbError> {
    locked(url, |connection| {
        let mut known = embedded()?;
        known.sort_by_key(|migration| std::cmp::Reverse(migration.name().version().to_string()));
        let applied = applied(connection)?;
        let mut reverted = Vec::with_capacity(applied.len());
        for migration in known.iter().filter(|m| applied.contains(&m.name().version().to_string())) {
            let name = migration.name().to_string();
            connection.revert_migration(migration).map_err(|error| failed(&name, &*error))?;
            reverted.push(name);
        }
        Ok(reverted)
    })
}

/// Every version that this binary or the database knows, oldest first. Changes nothing.
pub async fn status(url: &Secret) -> Result<Vec<Version>, DbError> {
    let url = url.clone();
    blocking(move || versions(&mut session::open(&url)?)).await
}

/// Whether this binary and the database's schema fit together: for commands, which never migrate by themselves.
///
/// # Errors
/// [`DbError::ServerTooOld`], [`DbError::SchemaNewer`] or [`DbError::SchemaBehind`].
pub fn check(connection: &mut PgConnection) -> Result<(), DbError> {
    refuse_old_server(connection)?;
    let versions = versions(connection)?;
    refuse_newer(&versions)?;
    match versions.into_iter().find(|version| !version.applied) {
        Some(missing) => Err(DbError::SchemaBehind { version: missing.version }),
        None => Ok(()),
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DbError> + Send + 'static,
) -> Result<T, DbError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(DbError::Closed),
        },
    }
}

/// Runs `work` on a session of its own that holds the lock. Closing the session gives it back, whatever happens.
pub(super) fn locked<T>(
    url: &Secret,
    work: impl FnOnce(&mut PgConnection) -> Result<T, DbError>,
) -> Result<T, DbError> {
    let mut connection = session::open(url)?;
    refuse_old_server(&mut connection)?;
    take_lock(&mut connection, LOCK_WAIT_MAX)?;
    // An index on a large mirror may take its time; waiting for somebody else's lock may not.
    connection.batch_execute("SET statement_timeout = 0")?;
    work(&mut connection)
}

/// Asks again and again instead of waiting inside Postgres: a session that waits in a query holds a snapshot, and an
/// index that is being built concurrently would wait for that in turn.
fn take_lock(connection: &mut PgConnection, wait_max: Duration) -> Result<(), DbError> {
    let started = Instant::now();
    loop {
        let query = diesel::sql_query("SELECT pg_try_advisory_lock($1) AS value").bind::<BigInt, _>(LOCK);
        if rows::value::<Bool, bool, _>(connection, query)? {
            return Ok(());
        }
        if started.elapsed() >= wait_max {
            return Err(DbError::MigrationLock { seconds: wait_max.as_secs() });
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

fn refuse_old_server(connection: &mut PgConnection) -> Result<(), DbError> {
    let number = "SELECT current_setting('server_version_num')::int4 AS value";
    let number = rows::value::<Integer, i32, _>(connection, diesel::sql_query(number))?;
    supported(u32::try_from(number).unwrap_or(0))
}

/// `number` as in `server_version_num`: 150018 is 15.18, 90624 is 9.6.24.
fn supported(number: u32) -> Result<(), DbError> {
    if number / 10_000 >= POSTGRES_MAJOR_MIN {
        return Ok(());
    }
    let found = format!(
        "{}.{}",
        number / 10_000,
        if number < 100_000 { number / 100 % 100 } else { number % 10_000 }
    );
    Err(DbError::ServerTooOld { found, needed: POSTGRES_MAJOR_MIN })
}

fn refuse_newer(versions: &[Version]) -> Result<(), DbError> {
    match versions.iter().rev().find(|version| !version.known) {
        Some(newer) => Err(DbError::SchemaNewer { version: newer.version.clone() }),
        None => Ok(()),
    }
}

fn versions(connection: &mut PgConnection) -> Result<Vec<Version>, DbError> {
    let mut applied = applied(connection)?;
    let mut versions: Vec<Version> = embedded()?
        .iter()
        .map(|migration| {
            let version = migration.name().version().to_string();
            let applied = applied.remove(&version);
            Version { version, name: migration.name().to_string(), applied, known: true }
        })
        .collect();
    let unknown = applied.into_iter();
    versions.extend(unknown.map(|version| Version {
        name: version.clone(),
        version,
        applied: true,
        known: false,
    }));
    versions.sort_by(|a, b| a.version.cmp(&b.version));
    Ok(versions)
}

/// Reads without creating anything, unlike diesel's own question.
fn applied(connection: &mut PgConnection) -> Result<BTreeSet<String>, DbError> {
    let there = "SELECT to_regclass('fieldmirror.__diesel_schema_migrations') IS NOT NULL AS value";
    if !rows::value::<Bool, bool, _>(connection, diesel::sql_query(there))? {
        return Ok(BTreeSet::new());
    }
    let query = diesel::sql_query("SELECT version AS value FROM fieldmirror.__diesel_schema_migrations");
    Ok(rows::values::<Text, String, _>(connection, query)?.into_iter().collect())
}

fn embedded() -> Result<Vec<Box<dyn diesel::migration::Migration<Pg>>>, DbError> {
    MigrationSource::<Pg>::migrations(&EMBEDDED).map_err(|error| failed("?", &*error))
}

/// Diesel boxes an error of a type that it does not export: its text is all there is to tell the kind by.
fn failed(name: &str, error: &dyn std::error::Error) -> DbError {
    let message = error.to_string();
    let kind = super::error::kind_of_text(&message).unwrap_or(FailureKind::OurBug);
    DbError::Migrate { version: name.to_owned(), message, kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers() {
        assert!(supported(150_000).is_ok());
        assert!(supported(180_003).is_ok());
        assert_eq!(
            supported(140_011).unwrap_err().to_string(),
            "Postgres 14.11 is too old: fieldmirror needs Postgres 15 or newer"
        );
        assert!(supported(90_624).unwrap_err().to_string().contains("9.6 "));
    }

    #[test]
    fn folders_have_versions_that_order_as_text() {
        let names: Vec<_> = embedded().unwrap().iter().map(|m| m.name().to_string()).collect();
        assert!(!names.is_empty());
        for name in names {
            let digits = name.split('_').next().unwrap().replace('-', "");
            assert_eq!(digits.len(), 14, "`{name}`: expected `YYYY-MM-DD-NNNNNN_name`");
        }
    }
}
