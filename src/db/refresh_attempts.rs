//! The open refresh of a connection: mutual exclusion, proof that the database takes writes, evidence after a crash.
//!
//! Callers hold the lock of the connection ([`super::connections::lock`]) in the same transaction.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::error::DbError;
use super::session;
use crate::domain::ids::ConnectionId;

/// How long an open refresh keeps others out at most, by the database's clock.
pub const BLOCKED_FOR: Duration = Duration::from_mins(1);

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

/// Who opens refreshes.
#[derive(Debug, Clone, Copy)]
pub struct Refresher<'a> {
    pub daemon: Uuid,
    pub host: &'a str,
    /// The folder where a reply of its is kept; `None` when there is none.
    pub spills: Option<Uuid>,
}

/// How long an open refresh keeps others out.
#[derive(Debug, Clone, Copy)]
pub struct Exclusion {
    /// Everybody, since it may be under way.
    pub blocked_for: Duration,
    /// After that, those who cannot look into its folder of spills: its reply may be there.
    pub spill_grace: Duration,
}

#[derive(QueryableByName)]
struct Opened {
    #[diesel(sql_type = Timestamptz)]
    started_at: DateTime<Utc>,
}

/// Whether the time of the open refresh `held` has passed for one whose folder of spills is `$spills`.
macro_rules! passed {
    ($spills:literal, $grace:literal) => {
        concat!(
            "(held.blocked_until <= clock_timestamp() AND (held.spills IS NULL OR held.spills IS NOT DISTINCT FROM ",
            $spills,
            " OR held.blocked_until <= clock_timestamp() - make_interval(secs => ",
            $grace,
            ")))"
        )
    };
}

/// Opens a refresh of that generation of a grant, unless another one is open and its time has not passed. The
/// transaction's commit waits for the disk: a server that forgets it in a crash would let another one begin meanwhile.
pub fn open(
    conn: &mut PgConnection,
    connection: ConnectionId,
    (grant_id, generation): (Uuid, i64),
    by: &Refresher<'_>,
    exclusion: Exclusion,
) -> Result<Option<RefreshAttempt>, DbError> {
    session::commit_durably(conn)?;
    bound(conn, connection)?;
    let opened = sql_query(concat!(
        "INSERT INTO fieldmirror.refresh_attempts AS held \
             (connection_id, grant_id, generation, daemon_id, host, spills, started_at, blocked_until) \
         VALUES ($1, $2, $3, $4, $5, $7, clock_timestamp(), clock_timestamp() + make_interval(secs => $6)) \
         ON CONFLICT (connection_id) DO UPDATE SET grant_id = excluded.grant_id, generation = excluded.generation, \
             daemon_id = excluded.daemon_id, host = excluded.host, spills = excluded.spills, \
             started_at = excluded.started_at, blocked_until = excluded.blocked_until \
         WHERE ",
        passed!("$7", "$8"),
        " RETURNING started_at"
    ))
    .bind::<BigInt, _>(connection.0)
    .bind::<SqlUuid, _>(grant_id)
    .bind::<BigInt, _>(generation)
    .bind::<SqlUuid, _>(by.daemon)
    .bind::<Text, _>(by.host)
    .bind::<Double, _>(exclusion.blocked_for.as_secs_f64())
    .bind::<Nullable<SqlUuid>, _>(by.spills)
    .bind::<Double, _>(exclusion.spill_grace.as_secs_f64())
    .get_result::<Opened>(conn)
    .optional()?;
    Ok(opened.map(|opened| RefreshAttempt {
        connection,
        grant_id,
        generation,
        daemon: by.daemon,
        started_at: opened.started_at,
    }))
}

/// Nobody keeps others out for longer than [`BLOCKED_FOR`] from now. An attempt that seems to was opened before the
/// database's clock was set back; one that is under way has ended by then all the same.
fn bound(conn: &mut PgConnection, connection: ConnectionId) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.refresh_attempts SET blocked_until = clock_timestamp() + make_interval(secs => $2) \
         WHERE connection_id = $1 AND blocked_until > clock_timestamp() + make_interval(secs => $2)",
    )
    .bind::<BigInt, _>(connection.0)
    .bind::<Double, _>(BLOCKED_FOR.as_secs_f64())
    .execute(conn)?;
    Ok(())
}

/// Keeps others out of an open refresh for `blocked_for` more, if it still is ours.
pub fn hold(conn: &mut PgConnection, attempt: &RefreshAttempt, blocked_for: Duration) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.refresh_attempts \
         SET blocked_until = greatest(blocked_until, clock_timestamp() + make_interval(secs => $6)) \
         WHERE connection_id = $1 AND grant_id = $2 AND generation = $3 AND daemon_id = $4 AND started_at = $5",
    )
    .bind::<BigInt, _>(attempt.connection.0)
    .bind::<SqlUuid, _>(attempt.grant_id)
    .bind::<BigInt, _>(attempt.generation)
    .bind::<SqlUuid, _>(attempt.daemon)
    .bind::<Timestamptz, _>(attempt.started_at)
    .bind::<Double, _>(blocked_for.as_secs_f64())
    .execute(conn)?;
    Ok(())
}

/// A refresh that is open, or was left open by a daemon that died.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
pub struct Standing {
    #[diesel(sql_type = SqlUuid)]
    pub grant_id: Uuid,
    #[diesel(sql_type = BigInt)]
    pub generation: i64,
    #[diesel(sql_type = Text)]
    pub host: String,
    #[diesel(sql_type = Timestamptz)]
    pub started_at: DateTime<Utc>,
    #[diesel(sql_type = Double)]
    blocked_s: f64,
    #[diesel(sql_type = Bool)]
    passed: bool,
    #[diesel(sql_type = Double)]
    grace_s: f64,
}

impl Standing {
    /// How long it still keeps everybody out: it may be under way.
    pub fn blocked_for(&self) -> Option<Duration> {
        positive(self.blocked_s)
    }

    /// How long it still keeps those out who cannot look into its folder of spills.
    pub fn grace(&self) -> Option<Duration> {
        if self.passed { None } else { positive(self.grace_s) }
    }
}

fn positive(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok().filter(|left| !left.is_zero())
}

/// The refresh of a connection that is not closed, as one sees it whose folder is `spills`.
pub fn standing(
    conn: &mut PgConnection,
    connection: ConnectionId,
    spills: Option<Uuid>,
    spill_grace: Duration,
) -> Result<Option<Standing>, DbError> {
    bound(conn, connection)?;
    let query = sql_query(concat!(
        "SELECT grant_id, generation, host, started_at, \
             extract(epoch FROM blocked_until - clock_timestamp())::float8 AS blocked_s, ",
        passed!("$2", "$3"),
        " AS passed, extract(epoch FROM blocked_until - clock_timestamp())::float8 + $3 AS grace_s \
         FROM fieldmirror.refresh_attempts held WHERE connection_id = $1"
    ));
    Ok(query
        .bind::<BigInt, _>(connection.0)
        .bind::<Nullable<SqlUuid>, _>(spills)
        .bind::<Double, _>(spill_grace.as_secs_f64())
        .get_result(conn)
        .optional()?)
}

/// Closes whatever refresh set out from that generation: its reply has been found.
pub fn settle(
    conn: &mut PgConnection,
    connection: ConnectionId,
    grant: Uuid,
    generation: i64,
) -> Result<(), DbError> {
    sql_query(
        "DELETE FROM fieldmirror.refresh_attempts WHERE connection_id = $1 AND grant_id = $2 AND generation = $3",
    )
    .bind::<BigInt, _>(connection.0)
    .bind::<SqlUuid, _>(grant)
    .bind::<BigInt, _>(generation)
    .execute(conn)?;
    Ok(())
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
