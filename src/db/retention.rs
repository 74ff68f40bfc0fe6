//! History that is kept for people, and for how long: requests that have ended, closed start links, the audit log.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Timestamptz};

use super::error::DbError;

/// Rows of one table that are deleted in one go. More than ten thousand connections write in the minute until the next.
const ROWS_MAX: i64 = 2000;

/// Deletes what was asked for and ended before `before`, a little at a time. What is open stays, whatever its age.
pub fn prune_requests(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<usize, DbError> {
    let links = prune(conn, "authorizations", "closed_at", before)?;
    Ok(links + prune(conn, "requests", "done_at", before)?)
}

/// Wipes what was sealed in requests that ended before `before`: by then nothing can be concluded with it.
pub fn wipe_requests(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<usize, DbError> {
    let wipe = "UPDATE fieldmirror.requests SET sealed = NULL WHERE done_at < $1 AND sealed IS NOT NULL";
    Ok(sql_query(wipe).bind::<Timestamptz, _>(before).execute(conn)?)
}

/// Deletes lines of the audit log from before `before`, a little at a time.
pub fn prune_audit_log(conn: &mut PgConnection, before: DateTime<Utc>) -> Result<usize, DbError> {
    prune(conn, "audit_log", "at", before)
}

fn prune(
    conn: &mut PgConnection,
    table: &str,
    moment: &str,
    before: DateTime<Utc>,
) -> Result<usize, DbError> {
    let oldest = format!("SELECT id FROM fieldmirror.{table} WHERE {moment} < $1 ORDER BY {moment} LIMIT $2");
    Ok(sql_query(format!("DELETE FROM fieldmirror.{table} WHERE id IN ({oldest})"))
        .bind::<Timestamptz, _>(before)
        .bind::<BigInt, _>(ROWS_MAX)
        .execute(conn)?)
}
