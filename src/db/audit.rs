//! The audit log: every connect, refresh, failure, disconnect and change of key. Never a secret.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Nullable, Text, Uuid as SqlUuid};
use uuid::Uuid;

use super::error::DbError;
use crate::domain::ids::ConnectionId;

/// One line of the log.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// `None`: it concerns no connection in particular.
    pub connection: Option<ConnectionId>,
    /// What was tried: a word of docs/OPERATIONS.md.
    pub event: &'static str,
    /// How it ended: `done`, `failed`, `dead` and the like.
    pub outcome: &'static str,
    /// A sentence that has been masked already.
    pub detail: Option<&'a str>,
    pub daemon: Uuid,
}

/// Writes `entry`, with the connection's present name.
pub fn write(conn: &mut PgConnection, entry: &Entry<'_>) -> Result<(), DbError> {
    sql_query(
        "INSERT INTO fieldmirror.audit_log (connection_id, connection_name, event, outcome, detail, daemon_id) \
         VALUES ($1, (SELECT name FROM fieldmirror.connections WHERE id = $1), $2, $3, $4, $5)",
    )
    .bind::<Nullable<BigInt>, _>(entry.connection.map(|id| id.0))
    .bind::<Text, _>(entry.event)
    .bind::<Text, _>(entry.outcome)
    .bind::<Nullable<Text>, _>(entry.detail)
    .bind::<SqlUuid, _>(entry.daemon)
    .execute(conn)?;
    Ok(())
}

/// Writes what a command did by itself, without a daemon.
pub fn write_of_command(conn: &mut PgConnection, event: &str, detail: &str) -> Result<(), DbError> {
    sql_query("INSERT INTO fieldmirror.audit_log (event, outcome, detail) VALUES ($1, 'done', $2)")
        .bind::<Text, _>(event)
        .bind::<Text, _>(detail)
        .execute(conn)?;
    Ok(())
}
