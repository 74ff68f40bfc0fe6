//! Start links, and the consents that were begun with them. Tickets and states are kept as hashes only.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Bytea, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::error::DbError;
use super::{audit, connections, requests, rows};
use crate::domain::ids::ConnectionId;

/// Connections whose start links one tick closes.
const EXPIRE_MAX: i64 = 200;
/// How long ended attempts are kept, for telling a replay from a forgery, and for a consent that is concluded late.
pub const ATTEMPTS_KEPT: TimeDelta = TimeDelta::days(7);
const EXPIRED: &str = "nobody consented before the start link expired";

/// A start link: good for many starts until it expires, is superseded or has led to a connection.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct Authorization {
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    #[diesel(sql_type = BigInt, column_name = connection_id)]
    connection_id: i64,
    #[diesel(sql_type = SqlUuid)]
    pub request_id: Uuid,
    #[diesel(sql_type = Text)]
    pub redirect_uri: String,
    #[diesel(sql_type = Timestamptz)]
    pub expires_at: DateTime<Utc>,
    /// Neither closed nor expired, by the clock of the caller.
    #[diesel(sql_type = Bool)]
    pub is_open: bool,
}

impl Authorization {
    pub fn connection(&self) -> ConnectionId {
        ConnectionId(self.connection_id)
    }
}

/// A start link that is made.
#[derive(Debug, Clone)]
pub struct NewAuthorization {
    pub id: Uuid,
    pub connection: ConnectionId,
    pub request: Uuid,
    pub ticket_hash: [u8; 32],
    pub redirect_uri: String,
    pub expires_at: DateTime<Utc>,
}

const COLUMNS: &str = "SELECT id, connection_id, request_id, redirect_uri, expires_at, \
     (closed_at IS NULL AND expires_at > $2) AS is_open FROM fieldmirror.authorizations";

pub fn create(conn: &mut PgConnection, new: &NewAuthorization) -> Result<(), DbError> {
    sql_query(
        "INSERT INTO fieldmirror.authorizations (id, connection_id, request_id, ticket_hash, redirect_uri, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind::<SqlUuid, _>(new.id)
    .bind::<BigInt, _>(new.connection.0)
    .bind::<SqlUuid, _>(new.request)
    .bind::<Bytea, _>(new.ticket_hash.as_slice())
    .bind::<Text, _>(&new.redirect_uri)
    .bind::<Timestamptz, _>(new.expires_at)
    .execute(conn)?;
    Ok(())
}

/// The start link with that ticket.
pub fn by_ticket(
    conn: &mut PgConnection,
    ticket_hash: &[u8; 32],
    now: DateTime<Utc>,
) -> Result<Option<Authorization>, DbError> {
    let query = sql_query(format!("{COLUMNS} WHERE ticket_hash = $1"))
        .bind::<Bytea, _>(ticket_hash.as_slice())
        .bind::<Timestamptz, _>(now);
    Ok(query.get_result(conn).optional()?)
}

/// The start link of that id.
pub fn get(conn: &mut PgConnection, id: Uuid, now: DateTime<Utc>) -> Result<Option<Authorization>, DbError> {
    let query =
        sql_query(format!("{COLUMNS} WHERE id = $1")).bind::<SqlUuid, _>(id).bind::<Timestamptz, _>(now);
    Ok(query.get_result(conn).optional()?)
}

/// A connection whose owner may be following a start link.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct LinkOut {
    #[diesel(sql_type = Text)]
    pub connection: String,
    #[diesel(sql_type = Text)]
    pub provider: String,
    #[diesel(sql_type = Text)]
    pub redirect_uri: String,
}

/// Start links that are good, by the database's clock.
pub fn out(conn: &mut PgConnection) -> Result<Vec<LinkOut>, DbError> {
    let query = sql_query(
        "SELECT c.name AS connection, c.provider, a.redirect_uri FROM fieldmirror.authorizations a \
         JOIN fieldmirror.connections c ON c.id = a.connection_id \
         WHERE a.closed_at IS NULL AND a.expires_at > now() ORDER BY c.name",
    );
    Ok(query.load(conn)?)
}

/// Whether something has taken the place of the request's start link: a later one, or its connection's beginning or end.
/// One that merely expired has not been replaced: a consent that was given in time still counts.
pub fn is_replaced(conn: &mut PgConnection, request: Uuid) -> Result<bool, DbError> {
    let query = sql_query(
        "SELECT bool_or(replaced_at IS NOT NULL) IS TRUE AS value FROM fieldmirror.authorizations WHERE request_id = $1",
    );
    rows::value::<Bool, bool, _>(conn, query.bind::<SqlUuid, _>(request))
}

/// Closes every start link of the connection for good: superseded, connected or disconnected. What expired requests have
/// kept for a consent that was given in time is wiped.
pub fn close_all(conn: &mut PgConnection, connection: ConnectionId) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.requests SET sealed = NULL \
         WHERE connection_id = $1 AND done_at IS NOT NULL AND sealed IS NOT NULL",
    )
    .bind::<BigInt, _>(connection.0)
    .execute(conn)?;
    sql_query(
        "UPDATE fieldmirror.authorizations SET closed_at = coalesce(closed_at, now()), replaced_at = now() \
         WHERE connection_id = $1 AND replaced_at IS NULL",
    )
    .bind::<BigInt, _>(connection.0)
    .execute(conn)?;
    Ok(())
}

/// Closes start links whose time has passed: their requests end as expired, and a connection that never came about
/// has failed. Deletes attempts that ended long ago. Returns how many links it closed. For every tick of the scheduler;
/// inside a transaction.
pub fn expire(conn: &mut PgConnection, now: DateTime<Utc>, daemon: Uuid) -> Result<usize, DbError> {
    let query = sql_query(
        "SELECT DISTINCT connection_id AS value FROM fieldmirror.authorizations \
         WHERE closed_at IS NULL AND expires_at <= $1 ORDER BY connection_id LIMIT $2",
    );
    let query = query.bind::<Timestamptz, _>(now).bind::<BigInt, _>(EXPIRE_MAX);
    let mut closed = 0;
    for id in rows::values::<BigInt, i64, _>(conn, query)? {
        // The connection first, as everywhere.
        connections::lock(conn, ConnectionId(id))?;
        closed += expire_of(conn, ConnectionId(id), now, daemon)?;
    }
    sql_query("DELETE FROM fieldmirror.authorization_attempts WHERE expires_at < $1")
        .bind::<Timestamptz, _>(now - ATTEMPTS_KEPT)
        .execute(conn)?;
    Ok(closed)
}

fn expire_of(
    conn: &mut PgConnection,
    id: ConnectionId,
    now: DateTime<Utc>,
    daemon: Uuid,
) -> Result<usize, DbError> {
    let query = sql_query(
        "UPDATE fieldmirror.authorizations SET closed_at = now() \
         WHERE connection_id = $1 AND closed_at IS NULL AND expires_at <= $2 RETURNING request_id AS value",
    );
    let query = query.bind::<BigInt, _>(id.0).bind::<Timestamptz, _>(now);
    let waited_for = rows::values::<SqlUuid, Uuid, _>(conn, query)?;
    for request in &waited_for {
        // A request that had ended before has left its own reason.
        if requests::finish(conn, *request, requests::RequestOutcome::Expired, Some(EXPIRED))? {
            connections::fail_pending(conn, id, EXPIRED)?;
            let (event, outcome) = ("connect", requests::RequestOutcome::Expired.as_str());
            let entry = audit::Entry { connection: Some(id), event, outcome, detail: Some(EXPIRED), daemon };
            audit::write(conn, &entry)?;
        }
    }
    Ok(waited_for.len())
}

/// One start of a consent.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct Attempt {
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    pub authorization_id: Uuid,
    #[diesel(sql_type = Text)]
    pub provider: String,
    #[diesel(sql_type = Nullable<Bytea>)]
    pub verifier_sealed: Option<Vec<u8>>,
    #[diesel(sql_type = Text)]
    pub redirect_uri: String,
    #[diesel(sql_type = Timestamptz)]
    pub expires_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub used_at: Option<DateTime<Utc>>,
}

/// A start of a consent that is made.
#[derive(Debug, Clone)]
pub struct NewAttempt {
    pub id: Uuid,
    pub authorization: Uuid,
    pub provider: String,
    pub state_hash: [u8; 32],
    pub verifier_sealed: Option<Vec<u8>>,
    pub redirect_uri: String,
    pub expires_at: DateTime<Utc>,
}

const ATTEMPT_COLUMNS: &str = "SELECT id, authorization_id, provider, verifier_sealed, redirect_uri, expires_at, used_at \
     FROM fieldmirror.authorization_attempts";

pub fn create_attempt(conn: &mut PgConnection, new: &NewAttempt) -> Result<(), DbError> {
    sql_query(
        "INSERT INTO fieldmirror.authorization_attempts \
         (id, authorization_id, provider, state_hash, verifier_sealed, redirect_uri, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind::<SqlUuid, _>(new.id)
    .bind::<SqlUuid, _>(new.authorization)
    .bind::<Text, _>(&new.provider)
    .bind::<Bytea, _>(new.state_hash.as_slice())
    .bind::<Nullable<Bytea>, _>(new.verifier_sealed.as_deref())
    .bind::<Text, _>(&new.redirect_uri)
    .bind::<Timestamptz, _>(new.expires_at)
    .execute(conn)?;
    Ok(())
}

/// The attempt of that state, locked: who marks it used first has it.
pub fn attempt_by_state(conn: &mut PgConnection, state_hash: &[u8; 32]) -> Result<Option<Attempt>, DbError> {
    let query = sql_query(format!("{ATTEMPT_COLUMNS} WHERE state_hash = $1 FOR UPDATE"));
    Ok(query.bind::<Bytea, _>(state_hash.as_slice()).get_result(conn).optional()?)
}

/// The attempt of that id, locked.
pub fn attempt(conn: &mut PgConnection, id: Uuid) -> Result<Option<Attempt>, DbError> {
    let query = sql_query(format!("{ATTEMPT_COLUMNS} WHERE id = $1 FOR UPDATE"));
    Ok(query.bind::<SqlUuid, _>(id).get_result(conn).optional()?)
}

/// Whether a browser that began these attempts is in the middle of other links' consents only. What has ended is nothing
/// that it is in the middle of.
pub fn is_elsewhere(conn: &mut PgConnection, attempts: &[Uuid], link: Uuid) -> Result<bool, DbError> {
    let query = sql_query(
        "SELECT coalesce(bool_or(t.used_at IS NULL AND a.closed_at IS NULL) \
             AND NOT bool_or(a.id = $2), false) AS value \
         FROM fieldmirror.authorization_attempts t \
         JOIN fieldmirror.authorizations a ON a.id = t.authorization_id WHERE t.id = ANY($1)",
    );
    rows::value::<Bool, bool, _>(conn, query.bind::<Array<SqlUuid>, _>(attempts).bind::<SqlUuid, _>(link))
}

/// Whether the consent of attempt `this` was given after that of `other`. Not, where either is no consent on record.
pub fn came_later(conn: &mut PgConnection, this: Uuid, other: Uuid) -> Result<bool, DbError> {
    let query = sql_query(
        "SELECT EXISTS (SELECT FROM fieldmirror.authorization_attempts t, fieldmirror.authorization_attempts o \
         WHERE t.id = $1 AND o.id = $2 AND t.used_at > o.used_at) AS value",
    );
    rows::value::<Bool, bool, _>(conn, query.bind::<SqlUuid, _>(this).bind::<SqlUuid, _>(other))
}

/// Uses the attempt up. What was sealed in it goes: it is of no use any more.
pub fn use_attempt(conn: &mut PgConnection, id: Uuid) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.authorization_attempts SET used_at = now(), verifier_sealed = NULL WHERE id = $1",
    )
    .bind::<SqlUuid, _>(id)
    .execute(conn)?;
    Ok(())
}

/// How the attempt ended: a word.
pub fn end_attempt(conn: &mut PgConnection, id: Uuid, outcome: &str) -> Result<(), DbError> {
    sql_query("UPDATE fieldmirror.authorization_attempts SET outcome = $2 WHERE id = $1")
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(outcome)
        .execute(conn)?;
    Ok(())
}

/// Which connection a consent with that state is for: what `callback URL` asks before it makes its request.
pub fn connection_of_state(
    conn: &mut PgConnection,
    state_hash: &[u8; 32],
) -> Result<Option<ConnectionId>, DbError> {
    let query = sql_query(
        "SELECT a.connection_id AS value FROM fieldmirror.authorization_attempts t \
         JOIN fieldmirror.authorizations a ON a.id = t.authorization_id WHERE t.state_hash = $1",
    );
    Ok(rows::optional::<BigInt, i64, _>(conn, query.bind::<Bytea, _>(state_hash.as_slice()))?
        .map(ConnectionId))
}
