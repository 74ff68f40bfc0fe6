//! What ran: one row for each piece of a walk that a turn worked on.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz};

use super::error::DbError;
use super::rows;
use crate::domain::ids::ConnectionId;
use crate::domain::measure::RunCounts;
use crate::domain::spec::Mode;

/// Runs that are deleted in one go. Ten thousand connections with four streams end 8,000 in the minute until the next.
const PRUNED_MAX: i64 = 20_000;

/// What is counted while a run works.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub pages: i64,
    pub requests: i64,
    pub throttled: i64,
    pub records: i64,
    pub rows_written: i64,
    pub rows_deleted: i64,
}

impl Counts {
    /// Those that are shown as metrics.
    pub fn measured(&self) -> RunCounts {
        RunCounts {
            pages: self.pages,
            records: self.records,
            rows_written: self.rows_written,
            rows_deleted: self.rows_deleted,
        }
    }
}

pub fn begin(
    connection: &mut PgConnection,
    of: ConnectionId,
    stream: &str,
    mode: Mode,
    now: DateTime<Utc>,
) -> Result<i64, DbError> {
    let query = diesel::sql_query(
        "INSERT INTO sync_runs (connection_id, stream, mode, started_at) VALUES ($1, $2, $3, $4) RETURNING id AS value",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Text, _>(stream)
    .bind::<Text, _>(mode.as_str())
    .bind::<Timestamptz, _>(now);
    rows::value::<BigInt, i64, _>(connection, query)
}

/// Sets the figures of a run; within a page's transaction they agree with what is in the tables.
pub fn count(connection: &mut PgConnection, run: i64, counts: &Counts) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE sync_runs SET pages = $2, requests = $3, throttled = $4, records = $5, rows_written = $6,
             rows_deleted = $7 WHERE id = $1",
    )
    .bind::<BigInt, _>(run)
    .bind::<BigInt, _>(counts.pages)
    .bind::<BigInt, _>(counts.requests)
    .bind::<BigInt, _>(counts.throttled)
    .bind::<BigInt, _>(counts.records)
    .bind::<BigInt, _>(counts.rows_written)
    .bind::<BigInt, _>(counts.rows_deleted)
    .execute(connection)?;
    Ok(())
}

/// Ends a run: `closed`, `yielded`, `failed` or `lost`. One that the next turn has ended meanwhile stays lost, unless it had
/// closed its walk before that.
pub fn end(
    connection: &mut PgConnection,
    run: i64,
    outcome: &str,
    error: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE sync_runs SET ended_at = coalesce(ended_at, $2), error = $4,
             outcome = CASE WHEN outcome IS NULL OR $3 = 'closed' THEN $3 ELSE outcome END
         WHERE id = $1",
    )
    .bind::<BigInt, _>(run)
    .bind::<Timestamptz, _>(now)
    .bind::<Text, _>(outcome)
    .bind::<Nullable<Text>, _>(error)
    .execute(connection)?;
    Ok(())
}

/// Whether a dead turn of this connection left a run open that had got somewhere: pages whose position was saved. A
/// snapshot starts afresh every time, so its pages do not count.
pub fn abandoned_midway(connection: &mut PgConnection, of: ConnectionId) -> Result<bool, DbError> {
    let query = diesel::sql_query(
        "SELECT EXISTS (SELECT FROM sync_runs
             WHERE connection_id = $1 AND ended_at IS NULL AND pages > 0 AND mode <> 'snapshot') AS value",
    );
    rows::value::<Bool, bool, _>(connection, query.bind::<BigInt, _>(of.0))
}

/// Ends what a dead turn of this connection left open.
pub fn end_abandoned(
    connection: &mut PgConnection,
    of: ConnectionId,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE sync_runs SET ended_at = $2, outcome = 'lost', error = 'the turn did not come to its end'
         WHERE connection_id = $1 AND ended_at IS NULL",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Timestamptz, _>(now)
    .execute(connection)?;
    Ok(())
}

/// Deletes runs that ended before `before`, a little at a time.
pub fn prune(connection: &mut PgConnection, before: DateTime<Utc>) -> Result<usize, DbError> {
    Ok(diesel::sql_query(
        "DELETE FROM sync_runs WHERE id IN
             (SELECT id FROM sync_runs WHERE ended_at < $1 ORDER BY ended_at LIMIT $2)",
    )
    .bind::<Timestamptz, _>(before)
    .bind::<BigInt, _>(PRUNED_MAX)
    .execute(connection)?)
}
