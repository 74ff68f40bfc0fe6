//! The job queue's statements.
//!
//! A job is a kind and perhaps a connection; at most one per pair is live, and the database holds us to it. Everything
//! here takes a connection, so that a job can be enqueued in the transaction that makes it necessary. Who runs the jobs,
//! and how, is not known here: see `jobs`.
//!
//! Time is the database's. Several daemons share the table, and their clocks need not agree.

mod admin;
mod session;
mod work;

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz};

pub use admin::{Depth, JobRow, Retried, depth, list, of_connection, prune, retry};
pub use session::{Heard, Session, SessionError, prove_listening};
pub use work::{Claim, ClaimLimits, Claimed, Ending, Holding, claim, finish, forgive, give_back};

use super::{DbError, rows};
use crate::domain::ids::ConnectionId;

/// Heard by the workers of every daemon; the payload is the kind that has become due.
pub const CHANNEL_JOBS: &str = "fieldmirror_jobs";
/// Heard by the schedulers: look at the tables again.
pub const CHANNEL_TICK: &str = "fieldmirror_tick";
/// Heard by whoever waits for an end; the payload is a job's id.
pub const CHANNEL_DONE: &str = "fieldmirror_done";

/// The number of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub i64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobState {
    /// Waits for its `run_at` and for a free worker.
    Pending,
    /// A daemon holds it under a lease.
    Running,
    Done,
    Failed,
    /// Crashed too often: runs again only when an admin says so.
    Parked,
}

impl JobState {
    pub const ALL: [Self; 5] = [Self::Pending, Self::Running, Self::Done, Self::Failed, Self::Parked];

    /// The word of the contract and of the column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Parked => "parked",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is not a job state.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a job state: expected `pending`, `running`, `done`, `failed` or `parked`")]
pub struct BadJobState(String);

impl FromStr for JobState {
    type Err = BadJobState;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let state = Self::ALL.into_iter().find(|state| state.as_str() == word);
        state.ok_or_else(|| BadJobState(word.to_owned()))
    }
}

/// The state in a row. The column's CHECK admits no other words, so a stranger is a schema newer than this program.
fn state_of(word: &str) -> QueryResult<JobState> {
    word.parse().map_err(|error: BadJobState| diesel::result::Error::DeserializationError(Box::new(error)))
}

/// What an enqueue found or made: the one live job of its kind and connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    pub job_id: JobId,
    pub connection: Option<ConnectionId>,
    /// False when the job was live already.
    pub new: bool,
    /// `Pending`, `Running` or `Parked`. A parked job stays parked: tell whoever asked.
    pub state: JobState,
}

#[derive(QueryableByName)]
struct EnqueuedRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    connection_id: Option<i64>,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Bool)]
    new: bool,
}

/// Makes sure that a job is live and runs at `run_at` (none: now) or earlier, in the caller's transaction.
///
/// A pending job moves forward if `run_at` is earlier, and does not start before the caller commits. A running one is left
/// alone: when it ends, the schedulers look again, and what an admin asked for is a row of its own. A parked one stays parked.
pub fn enqueue(
    conn: &mut PgConnection,
    kind: &str,
    connection: Option<ConnectionId>,
    run_at: Option<DateTime<Utc>>,
) -> Result<Enqueued, DbError> {
    let rows = enqueue_many(conn, kind, &[(connection, run_at)])?;
    Ok(rows.into_iter().next().ok_or(diesel::result::Error::NotFound)?)
}

/// [`enqueue`] for many connections in one statement; a connection named twice counts once, with the earlier time. Those
/// without a time run in the order given. The answer has one entry per connection, in no particular order.
pub fn enqueue_many(
    conn: &mut PgConnection,
    kind: &str,
    asked: &[(Option<ConnectionId>, Option<DateTime<Utc>>)],
) -> Result<Vec<Enqueued>, DbError> {
    let connections: Vec<Option<i64>> =
        asked.iter().map(|(connection, _)| connection.map(|id| id.0)).collect();
    let times: Vec<Option<DateTime<Utc>>> = asked.iter().map(|(_, run_at)| *run_at).collect();
    let rows: Vec<EnqueuedRow> = sql_query(ENQUEUE)
        .bind::<Text, _>(kind)
        .bind::<Array<Nullable<BigInt>>, _>(connections)
        .bind::<Array<Nullable<Timestamptz>>, _>(times)
        .bind::<Text, _>(CHANNEL_JOBS)
        .load(conn)?;
    rows.into_iter().map(enqueued).collect()
}

/// Makes sure that a job is live for each connection, and leaves those that are live as they are: one that waits after a
/// failure keeps its pause, however often what it is for is found due.
pub fn ensure_many(
    conn: &mut PgConnection,
    kind: &str,
    connections: &[ConnectionId],
) -> Result<Vec<Enqueued>, DbError> {
    let ids: Vec<i64> = connections.iter().map(|id| id.0).collect();
    let query = sql_query(
        "SELECT asked.id AS value FROM unnest($2) WITH ORDINALITY AS asked (id, place) \
         WHERE NOT EXISTS (SELECT FROM fieldmirror.jobs j \
             WHERE j.kind = $1 AND j.connection_id = asked.id AND j.state IN ('pending', 'running', 'parked')) \
         ORDER BY asked.place",
    )
    .bind::<Text, _>(kind)
    .bind::<Array<BigInt>, _>(ids);
    let missing = rows::values::<BigInt, i64, _>(conn, query)?;
    let asked: Vec<_> = missing.into_iter().map(|id| (Some(ConnectionId(id)), None)).collect();
    if asked.is_empty() { Ok(Vec::new()) } else { enqueue_many(conn, kind, &asked) }
}

/// [`ensure_many`] for a job that concerns no connection.
pub fn ensure(conn: &mut PgConnection, kind: &str) -> Result<(), DbError> {
    let query = sql_query(
        "SELECT EXISTS (SELECT FROM fieldmirror.jobs WHERE kind = $1 AND connection_id IS NULL \
         AND state IN ('pending', 'running', 'parked')) AS value",
    );
    if !rows::value::<Bool, bool, _>(conn, query.bind::<Text, _>(kind))? {
        enqueue(conn, kind, None, None)?;
    }
    Ok(())
}

// Running and parked rows are looked at without a lock: an upsert would lock them until the caller commits, and with them
// the heartbeat of whoever runs the job. Pending rows are locked on purpose: what the caller wrote is seen by the run.
// Sorted, so that two callers with the same connections cannot deadlock.
const ENQUEUE: &str = "
    WITH asked AS (
        SELECT connection_id,
            min(coalesce(run_at, now() + (place - cardinality($3)) * interval '1 microsecond')) AS run_at
        FROM unnest($2, $3) WITH ORDINALITY AS a (connection_id, run_at, place) GROUP BY connection_id
    ), busy AS (
        SELECT j.id, j.connection_id, j.state FROM fieldmirror.jobs j JOIN asked a
            ON j.connection_id = a.connection_id OR (j.connection_id IS NULL AND a.connection_id IS NULL)
        WHERE j.kind = $1 AND j.state IN ('running', 'parked')
    ), put AS (
        INSERT INTO fieldmirror.jobs AS j (kind, connection_id, run_at)
        SELECT $1, a.connection_id, a.run_at FROM asked a
        WHERE NOT EXISTS (SELECT FROM busy b WHERE b.connection_id IS NOT DISTINCT FROM a.connection_id)
        ORDER BY a.connection_id
        ON CONFLICT (kind, connection_id) WHERE state IN ('pending', 'running', 'parked')
        DO UPDATE SET run_at = CASE WHEN j.state = 'pending' THEN least(j.run_at, excluded.run_at) ELSE j.run_at END
        RETURNING j.id, j.connection_id, j.state, j.xmax = 0 AS new, j.state = 'pending' AND j.run_at <= now() AS due
    ), told AS (
        SELECT pg_notify($4, $1)::text AS said FROM put WHERE due LIMIT 1
    )
    SELECT id, connection_id, state, new, (SELECT count(said) FROM told) AS told FROM put
    UNION ALL SELECT id, connection_id, state, false, 0 FROM busy";

fn enqueued(row: EnqueuedRow) -> Result<Enqueued, DbError> {
    Ok(Enqueued {
        job_id: JobId(row.id),
        connection: row.connection_id.map(ConnectionId),
        new: row.new,
        state: state_of(&row.state)?,
    })
}

/// Tells whoever listens on `channel`, when the caller's transaction commits. Equal messages of one transaction are one.
pub fn notify(conn: &mut PgConnection, channel: &str, payload: &str) -> Result<(), DbError> {
    sql_query("SELECT pg_notify($1, $2)").bind::<Text, _>(channel).bind::<Text, _>(payload).execute(conn)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{BadJobState, JobState};

    #[test]
    fn every_state_is_its_own_word() {
        for state in JobState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert_eq!("queued".parse::<JobState>(), Err(BadJobState("queued".to_owned())));
    }
}
