//! The open refresh of a connection: mutual exclusion, proof that the database takes writes, evidence after a crash.
//!
//! Callers hold the lock of the connection ([`super::connections::lock`]) in the same transaction.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Double, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::error::DbError;
use super::rows;
use super::tokens::Token;
use crate::domain::ids::ConnectionId;

/// An open refresh: held by one daemon until it is closed or its time has passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshAttempt {
    pub connection: ConnectionId,
    pub grant_id: Uuid,
    /// The generation that it sets out from.
    pub generation: i64,
    pub daemon: Uuid,
    /// When it was opened, by the database's clock: tells it from a later one of the same daemon.
    pub started_at: DateTime<Utc>,
}

#[derive(QueryableByName)]
struct Opened {
    #[diesel(sql_type = Timestamptz)]
    started_at: DateTime<Utc>,
}

/// Opens a refresh of `token`, unless another one is open and its time has not passed.
pub fn open(
    conn: &mut PgConnection,
    connection: ConnectionId,
    token: &Token,
    daemon: Uuid,
    host: &str,
    blocked_for: Duration,
) -> Result<Option<RefreshAttempt>, DbError> {
    let opened = sql_query(
        "INSERT INTO fieldmirror.refresh_attempts AS held \
             (connection_id, grant_id, generation, daemon_id, host, started_at, blocked_until) \
         VALUES ($1, $2, $3, $4, $5, clock_timestamp(), clock_timestamp() + make_interval(secs => $6)) \
         ON CONFLICT (connection_id) DO UPDATE SET grant_id = excluded.grant_id, generation = excluded.generation, \
             daemon_id = excluded.daemon_id, host = excluded.host, started_at = excluded.started_at, \
             blocked_until = excluded.blocked_until \
         WHERE held.blocked_until <= clock_timestamp() RETURNING started_at",
    )
    .bind::<BigInt, _>(connection.0)
    .bind::<SqlUuid, _>(token.grant_id)
    .bind::<BigInt, _>(token.generation)
    .bind::<SqlUuid, _>(daemon)
    .bind::<Text, _>(host)
    .bind::<Double, _>(blocked_for.as_secs_f64())
    .get_result::<Opened>(conn)
    .optional()?;
    Ok(opened.map(|opened| RefreshAttempt {
        connection,
        grant_id: token.grant_id,
        generation: token.generation,
        daemon,
        started_at: opened.started_at,
    }))
}

/// How long the open refresh of a connection still keeps others out; `None` when none is open or its time has passed.
pub fn blocked_for(conn: &mut PgConnection, connection: ConnectionId) -> Result<Option<Duration>, DbError> {
    let query = sql_query(
        "SELECT extract(epoch FROM blocked_until - clock_timestamp())::float8 AS value \
         FROM fieldmirror.refresh_attempts WHERE connection_id = $1 AND blocked_until > clock_timestamp()",
    );
    let left_s = rows::optional::<Double, f64, _>(conn, query.bind::<BigInt, _>(connection.0))?;
    Ok(left_s.map(|left_s| Duration::try_from_secs_f64(left_s).unwrap_or(Duration::ZERO)))
}

/// Closes the refresh, if it is still this one that is open.
pub fn close(conn: &mut PgConnection, attempt: &RefreshAttempt) -> Result<(), DbError> {
    sql_query(
        "DELETE FROM fieldmirror.refresh_attempts WHERE connection_id = $1 AND daemon_id = $2 AND started_at = $3",
    )
    .bind::<BigInt, _>(attempt.connection.0)
    .bind::<SqlUuid, _>(attempt.daemon)
    .bind::<Timestamptz, _>(attempt.started_at)
    .execute(conn)?;
    Ok(())
}
