//! What a command asks for: a request and the job that will see to it, in one transaction, and how far it has come.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Double, Nullable, Text, Uuid as SqlUuid};
use uuid::Uuid;

use super::error::DbError;
use super::queue::{self, JobId, JobState};
use super::requests::{self, NewRequest, RequestOutcome};
use super::rows;
use crate::domain::ids::ConnectionId;

/// A request that has been put on record, with its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub request: Uuid,
    pub job: JobId,
    /// The job crashed too often: nothing happens before an admin has it retried.
    pub parked: bool,
}

/// Puts a request on record and makes sure that a job of `job_kind` is live for its connection, in the caller's
/// transaction.
pub fn ask(conn: &mut PgConnection, new: &NewRequest, job_kind: &str) -> Result<Asked, DbError> {
    let request = requests::create(conn, new)?;
    let enqueued = queue::enqueue(conn, job_kind, Some(new.connection), None)?;
    sql_query("UPDATE fieldmirror.requests SET job_id = $2 WHERE id = $1")
        .bind::<SqlUuid, _>(request)
        .bind::<BigInt, _>(enqueued.job_id.0)
        .execute(conn)?;
    Ok(Asked { request, job: enqueued.job_id, parked: enqueued.state == JobState::Parked })
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub request: Uuid,
    pub outcome: RequestOutcome,
    /// A sentence for people, without secrets.
    pub message: Option<String>,
}

#[derive(QueryableByName)]
struct EndedRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    outcome: String,
    #[diesel(sql_type = Nullable<Text>)]
    message: Option<String>,
}

/// Those of `asked` that have ended. A request whose connection was purged meanwhile is gone, and is not among them.
pub fn ended(conn: &mut PgConnection, asked: &[Uuid]) -> Result<Vec<Ended>, DbError> {
    let rows: Vec<EndedRow> = sql_query(
        "SELECT id, coalesce(outcome, 'failed') AS outcome, message FROM fieldmirror.requests \
         WHERE id = ANY($1) AND done_at IS NOT NULL",
    )
    .bind::<Array<SqlUuid>, _>(asked)
    .load(conn)?;
    let ended = |row: EndedRow| {
        let outcome = RequestOutcome::parse(&row.outcome)
            .ok_or_else(|| DbError::Row(format!("request {}: outcome `{}`", row.id, row.outcome)))?;
        Ok(Ended { request: row.id, outcome, message: row.message })
    };
    rows.into_iter().map(ended).collect()
}

/// How far the streams of some connections have come.
#[derive(Debug, Clone, Copy, PartialEq, QueryableByName)]
pub struct Progress {
    /// From 0 to 1, over streams that are being read as a whole; 1 when none is.
    #[diesel(sql_type = Double)]
    pub share: f64,
    /// Rows in the mirror.
    #[diesel(sql_type = BigInt)]
    pub rows: i64,
}

pub fn progress(conn: &mut PgConnection, connections: &[ConnectionId]) -> Result<Progress, DbError> {
    let ids: Vec<i64> = connections.iter().map(|id| id.0).collect();
    Ok(sql_query(
        "SELECT coalesce(avg(least(greatest(coalesce(backfill_progress, backfill_done::int), 0), 1)), 1)::float8 AS share, \
         coalesce(sum(rows), 0)::bigint AS rows FROM fieldmirror.stream_state WHERE connection_id = ANY($1)",
    )
    .bind::<Array<BigInt>, _>(ids)
    .get_result(conn)?)
}

/// How many of `asked` are still open.
pub fn open(conn: &mut PgConnection, asked: &[Uuid]) -> Result<i64, DbError> {
    let query = sql_query(
        "SELECT count(*) AS value FROM fieldmirror.requests WHERE id = ANY($1) AND done_at IS NULL",
    );
    rows::value::<BigInt, i64, _>(conn, query.bind::<Array<SqlUuid>, _>(asked))
}
