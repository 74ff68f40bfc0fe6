//! Requests to rotate the vault key: the one kind that concerns no connection.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::asks::Asked;
use super::error::DbError;
use super::queue::{self, JobState};
use super::requests;

/// The word for the request, its job and its lines in the audit log.
pub const KIND: &str = "rotate_key";

/// An open request.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct Rotation {
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    #[diesel(sql_type = Timestamptz)]
    pub requested_at: DateTime<Utc>,
}

/// Puts a request on record, with its job, in the caller's transaction.
pub fn ask(conn: &mut PgConnection) -> Result<Asked, DbError> {
    let job = queue::enqueue(conn, KIND, None, None)?;
    let request = Uuid::now_v7();
    sql_query("INSERT INTO fieldmirror.requests (id, kind, job_id) VALUES ($1, $2, $3)")
        .bind::<SqlUuid, _>(request)
        .bind::<Text, _>(KIND)
        .bind::<BigInt, _>(job.job_id.0)
        .execute(conn)?;
    requests::wake(conn)?;
    Ok(Asked { request, job: job.job_id, parked: job.state == JobState::Parked })
}

/// Open requests, oldest first.
pub fn open(conn: &mut PgConnection) -> Result<Vec<Rotation>, DbError> {
    let query = "SELECT id, requested_at FROM fieldmirror.requests WHERE kind = $1 AND done_at IS NULL \
         AND connection_id IS NULL ORDER BY requested_at, id";
    Ok(sql_query(query).bind::<Text, _>(KIND).load(conn)?)
}
