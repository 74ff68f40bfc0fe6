//! What a worker does with jobs: claim, end, give back. (Heartbeats run on a session of their own: see `session`.)
//!
//! A claim makes (owner, attempt) the only pair that may write the row's end; everybody else's end is refused.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Nullable, Text, Uuid as SqlUuid};
use uuid::Uuid;

use super::{CHANNEL_DONE, CHANNEL_JOBS, CHANNEL_TICK, JobId, JobState};
use crate::db::DbError;
use crate::domain::ids::ConnectionId;

/// The most characters of an error that a row keeps.
const ERROR_CHARS_MAX: usize = 2_000;

/// How a claim is made.
#[derive(Debug, Clone, Copy)]
pub struct ClaimLimits {
    /// How long the jobs belong to the claimer unless a heartbeat extends it.
    pub lease: Duration,
    /// A job that has crashed this often is parked instead of handed out.
    pub crashes_max: u32,
}

/// The right to end a job: which, who, which run of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    pub job: JobId,
    pub owner: Uuid,
    pub attempt: i32,
}

/// A job taken by a claim.
#[derive(Debug, Clone, Copy)]
pub struct Claimed {
    pub job: JobId,
    pub connection: Option<ConnectionId>,
    pub attempt: i32,
    pub crashes: i32,
    /// Not handed out: the claim found it crashed once too often and parked it.
    pub parked: bool,
}

/// What a claim brought.
#[derive(Debug)]
pub struct Claim {
    pub jobs: Vec<Claimed>,
    /// How long until the next job of the kind is due; none when there is none.
    pub next_in: Option<Duration>,
}

#[derive(QueryableByName)]
struct ClaimedRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    connection_id: Option<i64>,
    #[diesel(sql_type = Integer)]
    attempt: i32,
    #[diesel(sql_type = Integer)]
    crashes: i32,
    #[diesel(sql_type = Bool)]
    parked: bool,
}

/// Takes at most `count` due jobs of a kind for `owner`. Rows whose lease has lapsed are due as well: that is a crash of
/// whoever held them. `held` are the owner's own running jobs, which it must not take from itself after an outage
/// that was longer than the lease.
pub fn claim(
    conn: &mut PgConnection,
    kind: &str,
    owner: Uuid,
    held: &[JobId],
    count: usize,
    limits: ClaimLimits,
) -> Result<Claim, DbError> {
    let held: Vec<i64> = held.iter().map(|job| job.0).collect();
    let rows: Vec<ClaimedRow> = sql_query(CLAIM)
        .bind::<Text, _>(kind)
        .bind::<SqlUuid, _>(owner)
        .bind::<Array<BigInt>, _>(&held)
        .bind::<BigInt, _>(i64::try_from(count).unwrap_or(i64::MAX))
        .bind::<Double, _>(limits.lease.as_secs_f64())
        .bind::<BigInt, _>(i64::from(limits.crashes_max))
        .load(conn)?;
    let jobs: Vec<Claimed> = rows.into_iter().map(claimed).collect();
    let next_in = if jobs.len() < count { next_due(conn, kind, &held)? } else { Some(Duration::ZERO) };
    Ok(Claim { jobs, next_in })
}

// A lapsed row of our own that is not in $3 is a claim whose answer never reached us, or a run whose end could not be
// written: the job did not crash us.
const CLAIM: &str = "
    WITH due AS (
        SELECT id, state = 'running' AND owner IS DISTINCT FROM $2 AS crashed
        FROM fieldmirror.jobs
        WHERE kind = $1 AND state IN ('pending', 'running') AND coalesce(lease_until, run_at) <= now() AND id <> ALL ($3)
        ORDER BY coalesce(lease_until, run_at) LIMIT $4 FOR UPDATE SKIP LOCKED
    ), judged AS (
        SELECT due.id, due.crashed, due.crashed AND j.crashes + 1 >= $6 AS parked
        FROM due JOIN fieldmirror.jobs j USING (id)
    )
    UPDATE fieldmirror.jobs j SET
        state = CASE WHEN parked THEN 'parked' ELSE 'running' END,
        owner = CASE WHEN NOT parked THEN $2 END,
        lease_until = CASE WHEN NOT parked THEN now() + make_interval(secs => $5) END,
        attempt = attempt + CASE WHEN parked THEN 0 ELSE 1 END,
        crashes = crashes + CASE WHEN crashed THEN 1 ELSE 0 END,
        started_at = CASE WHEN parked THEN started_at ELSE now() END,
        last_error = CASE WHEN crashed THEN 'the lease of daemon ' || owner || ' lapsed' ELSE last_error END
    FROM judged WHERE j.id = judged.id
    RETURNING j.id, j.connection_id, j.attempt, j.crashes, parked";

fn claimed(row: ClaimedRow) -> Claimed {
    Claimed {
        job: JobId(row.id),
        connection: row.connection_id.map(ConnectionId),
        attempt: row.attempt,
        crashes: row.crashes,
        parked: row.parked,
    }
}

#[derive(QueryableByName)]
struct NextRow {
    #[diesel(sql_type = Double)]
    seconds: f64,
}

fn next_due(conn: &mut PgConnection, kind: &str, held: &[i64]) -> Result<Option<Duration>, DbError> {
    let next: Option<NextRow> = sql_query(
        "SELECT extract(epoch FROM coalesce(lease_until, run_at) - clock_timestamp())::float8 AS seconds
         FROM fieldmirror.jobs WHERE kind = $1 AND state IN ('pending', 'running') AND id <> ALL ($2)
         ORDER BY coalesce(lease_until, run_at) LIMIT 1",
    )
    .bind::<Text, _>(kind)
    .bind::<Array<BigInt>, _>(held)
    .get_result(conn)
    .optional()?;
    Ok(next.map(|row| Duration::try_from_secs_f64(row.seconds.max(0.0)).unwrap_or(Duration::MAX)))
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    Done,
    /// The same row, pending again.
    RunAgainIn(Duration),
    /// The reason, for people; never a secret or customer data.
    Failed(String),
    /// Ended without an outcome. Runs again after `pause`, or is parked at `crashes_max` crashes in a row.
    Crashed {
        reason: String,
        pause: Duration,
        crashes_max: u32,
    },
}

impl Ending {
    /// The word for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::RunAgainIn(_) => "again",
            Self::Failed(_) => "failed",
            Self::Crashed { .. } => "crashed",
        }
    }
}

#[derive(QueryableByName)]
struct StateRow {
    #[diesel(sql_type = Text)]
    state: String,
}

/// Writes the end of a run, and tells those who wait. None: refused, the job is no longer the caller's.
pub fn finish(
    conn: &mut PgConnection,
    holding: Holding,
    ending: &Ending,
) -> Result<Option<JobState>, DbError> {
    let (state, error, pause, crashes_max) = match ending {
        Ending::Done => ("done", None, None, None),
        Ending::RunAgainIn(pause) => ("pending", None, Some(pause.as_secs_f64()), None),
        Ending::Failed(reason) => ("failed", Some(cut(reason)), None, None),
        Ending::Crashed { reason, pause, crashes_max } => {
            ("pending", Some(cut(reason)), Some(pause.as_secs_f64()), Some(i64::from(*crashes_max)))
        }
    };
    let row: Option<StateRow> = sql_query(FINISH)
        .bind::<BigInt, _>(holding.job.0)
        .bind::<SqlUuid, _>(holding.owner)
        .bind::<Integer, _>(holding.attempt)
        .bind::<Text, _>(state)
        .bind::<Nullable<Text>, _>(error)
        .bind::<Nullable<Double>, _>(pause)
        .bind::<Nullable<BigInt>, _>(crashes_max)
        .bind::<Text, _>(CHANNEL_DONE)
        .bind::<Text, _>(CHANNEL_TICK)
        .bind::<Text, _>(CHANNEL_JOBS)
        .get_result(conn)
        .optional()?;
    Ok(row.map(|row| super::state_of(&row.state)).transpose()?)
}

// $7 is null unless the run crashed: any outcome, good or bad, ends the series of crashes. One statement, because every run
// pays for it: a transaction with its notifications would take five times the round trips. It does not wait for the disk:
// commits that notify queue up behind each other, and an end that a crash of the server takes back is only run again.
const FINISH: &str = "
    WITH ended AS (
        UPDATE fieldmirror.jobs SET
            state = CASE WHEN crashes + 1 >= $7 THEN 'parked' ELSE $4 END,
            run_at = coalesce(now() + make_interval(secs => $6), run_at),
            owner = NULL, lease_until = NULL,
            ended_at = CASE WHEN $4 IN ('done', 'failed') THEN now() END,
            crashes = CASE WHEN $7 IS NULL THEN 0 ELSE crashes + 1 END,
            last_error = $5
        WHERE id = $1 AND owner = $2 AND attempt = $3 AND state = 'running'
        RETURNING id, kind, state, state = 'pending' AND run_at <= now() AS due
    )
    SELECT state, pg_notify($8, id::text)::text AS told_waiters, pg_notify($9, '')::text AS told_schedulers,
        CASE WHEN due THEN pg_notify($10, kind)::text END AS told_workers,
        set_config('synchronous_commit', 'off', true) AS unhurried
    FROM ended";

fn cut(reason: &str) -> String {
    reason.chars().take(ERROR_CHARS_MAX).collect()
}

/// Ends the series of crashes of a running job: its runs got somewhere before they were cut off. False: refused, the
/// job is no longer the caller's.
pub fn forgive(conn: &mut PgConnection, holding: Holding) -> Result<bool, DbError> {
    let updated = sql_query(
        "UPDATE fieldmirror.jobs SET crashes = 0 WHERE id = $1 AND owner = $2 AND attempt = $3 AND state = 'running'",
    )
    .bind::<BigInt, _>(holding.job.0)
    .bind::<SqlUuid, _>(holding.owner)
    .bind::<Integer, _>(holding.attempt)
    .execute(conn)?;
    Ok(updated == 1)
}

/// Puts a job back as it was, due at once and without a crash counted. One that had not started does not count as an
/// attempt either. False: refused, the job is no longer the caller's.
pub fn give_back(conn: &mut PgConnection, holding: Holding, started: bool) -> Result<bool, DbError> {
    let row: Option<StateRow> = sql_query(GIVE_BACK)
        .bind::<BigInt, _>(holding.job.0)
        .bind::<SqlUuid, _>(holding.owner)
        .bind::<Integer, _>(holding.attempt)
        .bind::<Bool, _>(started)
        .bind::<Text, _>(CHANNEL_JOBS)
        .get_result(conn)
        .optional()?;
    Ok(row.is_some())
}

const GIVE_BACK: &str = "
    WITH back AS (
        UPDATE fieldmirror.jobs SET state = 'pending', owner = NULL, lease_until = NULL,
            attempt = attempt - CASE WHEN $4 THEN 0 ELSE 1 END
        WHERE id = $1 AND owner = $2 AND attempt = $3 AND state = 'running' RETURNING kind, state
    )
    SELECT state, pg_notify($5, kind)::text AS told_workers FROM back";
