//! What people and gauges do with jobs: look, run again, count, prune.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::{CHANNEL_JOBS, JobId, JobState};
use crate::db::DbError;
use crate::domain::ids::ConnectionId;

/// A job as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    pub id: JobId,
    pub kind: String,
    pub connection: Option<ConnectionId>,
    pub connection_name: Option<String>,
    pub state: JobState,
    pub run_at: DateTime<Utc>,
    /// The daemon that holds it.
    pub owner: Option<Uuid>,
    pub lease_until: Option<DateTime<Utc>>,
    /// How often it has been started.
    pub attempt: i32,
    pub crashes: i32,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub last_error: Option<String>,
}

#[derive(QueryableByName)]
struct RawJob {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    connection_id: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    connection_name: Option<String>,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Timestamptz)]
    run_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    owner: Option<Uuid>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    lease_until: Option<DateTime<Utc>>,
    #[diesel(sql_type = Integer)]
    attempt: i32,
    #[diesel(sql_type = Integer)]
    crashes: i32,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    started_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    ended_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    last_error: Option<String>,
}

const JOBS: &str = "
    SELECT j.id, j.kind, j.connection_id, c.name AS connection_name, j.state, j.run_at, j.owner, j.lease_until,
        j.attempt, j.crashes, j.created_at, j.started_at, j.ended_at, j.last_error
    FROM fieldmirror.jobs j LEFT JOIN fieldmirror.connections c ON c.id = j.connection_id";

/// The newest `limit` jobs, newest first; of one state, if given.
pub fn list(conn: &mut PgConnection, state: Option<JobState>, limit: u32) -> Result<Vec<JobRow>, DbError> {
    let rows: Vec<RawJob> =
        sql_query(format!("{JOBS} WHERE $1 IS NULL OR j.state = $1 ORDER BY j.id DESC LIMIT $2"))
            .bind::<Nullable<Text>, _>(state.map(JobState::as_str))
            .bind::<BigInt, _>(i64::from(limit))
            .load(conn)?;
    rows.into_iter().map(job_row).collect()
}

/// Jobs of a connection that are live, and the last that failed, newest first.
pub fn of_connection(conn: &mut PgConnection, of: ConnectionId) -> Result<Vec<JobRow>, DbError> {
    let rows: Vec<RawJob> = sql_query(format!(
        "{JOBS} WHERE j.connection_id = $1 AND (j.state IN ('pending', 'running', 'parked') OR j.id =
             (SELECT max(f.id) FROM fieldmirror.jobs f WHERE f.connection_id = $1 AND f.state = 'failed'))
         ORDER BY j.id DESC"
    ))
    .bind::<BigInt, _>(of.0)
    .load(conn)?;
    rows.into_iter().map(job_row).collect()
}

fn job_row(raw: RawJob) -> Result<JobRow, DbError> {
    Ok(JobRow {
        id: JobId(raw.id),
        kind: raw.kind,
        connection: raw.connection_id.map(ConnectionId),
        connection_name: raw.connection_name,
        state: super::state_of(&raw.state)?,
        run_at: raw.run_at,
        owner: raw.owner,
        lease_until: raw.lease_until,
        attempt: raw.attempt,
        crashes: raw.crashes,
        created_at: raw.created_at,
        started_at: raw.started_at,
        ended_at: raw.ended_at,
        last_error: raw.last_error,
    })
}

/// What came of asking for a job to be run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    /// It is pending and due now, with no crashes counted.
    Due,
    /// There is no such job; it may have been pruned.
    Unknown,
    /// It runs, or it has ended well.
    Refused(JobState),
    /// It has failed, and another job of the same kind and connection is live already.
    Replaced(JobId),
}

#[derive(QueryableByName)]
struct RetryRow {
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    live: Option<i64>,
}

/// Makes a parked, failed or pending job due now and forgets its crashes.
pub fn retry(conn: &mut PgConnection, job: JobId) -> Result<Retried, DbError> {
    conn.transaction(|conn| {
        let found: Option<RetryRow> = sql_query(
            "SELECT j.kind, j.state, (SELECT l.id FROM fieldmirror.jobs l
                 WHERE l.kind = j.kind AND l.connection_id IS NOT DISTINCT FROM j.connection_id AND l.id <> j.id
                   AND l.state IN ('pending', 'running', 'parked')) AS live
             FROM fieldmirror.jobs j WHERE j.id = $1 FOR UPDATE OF j",
        )
        .bind::<BigInt, _>(job.0)
        .get_result(conn)
        .optional()?;
        let Some(row) = found else { return Ok(Retried::Unknown) };
        match (super::state_of(&row.state)?, row.live) {
            (state @ (JobState::Running | JobState::Done), _) => Ok(Retried::Refused(state)),
            (JobState::Failed, Some(live)) => Ok(Retried::Replaced(JobId(live))),
            (JobState::Failed | JobState::Pending | JobState::Parked, _) => make_due(conn, job, &row.kind),
        }
    })
}

fn make_due(conn: &mut PgConnection, job: JobId, kind: &str) -> Result<Retried, DbError> {
    sql_query(
        "UPDATE fieldmirror.jobs SET state = 'pending', run_at = now(), crashes = 0, ended_at = NULL WHERE id = $1",
    )
    .bind::<BigInt, _>(job.0)
    .execute(conn)?;
    super::notify(conn, CHANNEL_JOBS, kind)?;
    Ok(Retried::Due)
}

/// How many jobs of a kind are in a live state, and how late the latest is.
#[derive(Debug, Clone, PartialEq)]
pub struct Depth {
    pub kind: String,
    pub state: JobState,
    pub jobs: u64,
    /// How long the one that waits longest has been due; zero when none is due. Running jobs: since the oldest start.
    pub oldest: Duration,
}

#[derive(QueryableByName)]
struct DepthRow {
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = BigInt)]
    jobs: i64,
    #[diesel(sql_type = Double)]
    oldest_s: f64,
}

/// The figures of every kind that has live jobs, by kind and state.
pub fn depth(conn: &mut PgConnection) -> Result<Vec<Depth>, DbError> {
    let rows: Vec<DepthRow> = sql_query(
        "SELECT kind, state, count(*) AS jobs,
             greatest(0, extract(epoch FROM now() - min(CASE state WHEN 'running' THEN started_at ELSE run_at END)))::float8
                 AS oldest_s
         FROM fieldmirror.jobs WHERE state IN ('pending', 'running', 'parked') GROUP BY kind, state ORDER BY kind, state",
    )
    .load(conn)?;
    let depth = |row: DepthRow| {
        Ok(Depth {
            state: super::state_of(&row.state)?,
            kind: row.kind,
            jobs: u64::try_from(row.jobs).unwrap_or(0),
            oldest: Duration::try_from_secs_f64(row.oldest_s).unwrap_or(Duration::MAX),
        })
    };
    rows.into_iter().map(depth).collect()
}

/// Deletes at most `limit` jobs that ended more than `keep` ago, and says how many.
pub fn prune(conn: &mut PgConnection, keep: Duration, limit: u32) -> Result<usize, DbError> {
    let deleted = sql_query(
        "DELETE FROM fieldmirror.jobs WHERE id IN (
             SELECT id FROM fieldmirror.jobs
             WHERE state IN ('done', 'failed') AND ended_at < now() - make_interval(secs => $1)
             ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind::<Double, _>(keep.as_secs_f64())
    .bind::<BigInt, _>(i64::from(limit))
    .execute(conn)?;
    Ok(deleted)
}
