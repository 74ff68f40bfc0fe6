//! One Postgres session as we like it: opened with time limits, set up before anybody uses it.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::Timestamptz;
use diesel::{PgConnection, QueryResult, sql_query};

use super::error::DbError;
use super::{address, rows};
use crate::domain::secret::Secret;

/// What every session is told first. `search_path` holds `fieldmirror` alone: names of ours need no schema, names of the
/// mirror need theirs, and `public` is never looked at. Messages are asked for in English where that is ours to ask (a
/// superuser's right), since some kinds of failure are known by their text alone. `statement_timeout` bounds a query that
/// waits for a lock or goes wrong; a caller with a longer one says `SET LOCAL`.
const SETTINGS: &str = "
    SET search_path = fieldmirror;
    SET application_name = 'fieldmirror';
    SET TIME ZONE 'UTC';
    SET client_min_messages = warning;
    SET statement_timeout = '5min';
    SET lock_timeout = '1min';
    SET idle_in_transaction_session_timeout = '1min';
    SELECT set_config('lc_messages', 'C', false) WHERE current_setting('is_superuser') = 'on';
";

pub(super) fn prepare(connection: &mut PgConnection) -> QueryResult<()> {
    diesel::connection::SimpleConnection::batch_execute(connection, SETTINGS)
}

/// Makes this transaction's commit wait for the disk, whatever the server's default: for what a provider is to act upon,
/// or has acted upon.
pub(super) fn commit_durably(connection: &mut PgConnection) -> Result<(), DbError> {
    diesel::connection::SimpleConnection::batch_execute(connection, "SET LOCAL synchronous_commit = on")?;
    Ok(())
}

/// Lets this transaction commit without waiting for the disk. For what is read again when it is lost.
pub fn commit_lazily(connection: &mut PgConnection) -> Result<(), DbError> {
    diesel::connection::SimpleConnection::batch_execute(connection, "SET LOCAL synchronous_commit = off")?;
    Ok(())
}

/// The database's time, as of the transaction's beginning: moments on record are compared by one clock.
pub fn now(connection: &mut PgConnection) -> Result<DateTime<Utc>, DbError> {
    rows::value::<Timestamptz, DateTime<Utc>, _>(connection, sql_query("SELECT now() AS value"))
}

/// A session outside the pool, for what must not share one: migrations and LISTEN. Blocks for at most the address'
/// `connect_timeout` per host.
pub fn open(url: &Secret) -> Result<PgConnection, DbError> {
    let address = address::complete(url).map_err(DbError::Address)?;
    let mut connection = PgConnection::establish(address.expose()).map_err(DbError::connect)?;
    prepare(&mut connection).map_err(DbError::Session)?;
    Ok(connection)
}
