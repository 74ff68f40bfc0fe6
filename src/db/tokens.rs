//! Live tokens, the secrets behind them, and the open refresh of a connection. Values arrive and leave sealed.
//!
//! Callers hold the lock of the connection ([`super::connections::lock`]) in the same transaction, so that there is one
//! order of locks.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{
    Array, BigInt, Bool, Bytea, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid,
};
use std::time::Duration;
use uuid::Uuid;

use super::error::DbError;
use super::{requests, rows};
use crate::domain::ids::ConnectionId;
use crate::domain::spec::GrantKind;

/// The word for a token of that grant in the tables and in `status`.
pub fn kind(grant: GrantKind) -> &'static str {
    match grant {
        GrantKind::AuthorizationCode => "oauth",
        GrantKind::ClientCredentials => "client_credentials",
        GrantKind::ApiKey => "api_key",
        GrantKind::BearerToken => "bearer",
    }
}

/// A row of `tokens`.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct Token {
    #[diesel(sql_type = SqlUuid)]
    pub grant_id: Uuid,
    /// Moved by one with every refresh; starts at 1 with every grant.
    #[diesel(sql_type = BigInt)]
    pub generation: i64,
    #[diesel(sql_type = Bytea)]
    pub access_sealed: Vec<u8>,
    #[diesel(sql_type = Nullable<Bytea>)]
    pub refresh_sealed: Option<Vec<u8>>,
    #[diesel(sql_type = Array<Text>)]
    pub scopes: Vec<String>,
    /// When the request that brought it was sent.
    #[diesel(sql_type = Timestamptz)]
    pub issued_at: DateTime<Utc>,
    /// `None`: unknown, or it does not expire.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub expires_at: Option<DateTime<Utc>>,
    /// When a refresh, or for keys a probe, is to be tried next.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub refresh_due_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_refresh_at: Option<DateTime<Utc>>,
    /// Refreshes that failed in a row.
    #[diesel(sql_type = Integer)]
    pub failures: i32,
    #[diesel(sql_type = Nullable<Text>)]
    pub last_error: Option<String>,
    /// When the provider first said that the grant is dead; cleared by a success.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub rejected_at: Option<DateTime<Utc>>,
}

const COLUMNS: &str = "SELECT grant_id, generation, access_sealed, refresh_sealed, scopes, issued_at, expires_at, \
     refresh_due_at, last_refresh_at, failures, last_error, rejected_at FROM fieldmirror.tokens";

/// The live token of a connection.
pub fn load(conn: &mut PgConnection, id: ConnectionId) -> Result<Option<Token>, DbError> {
    let query = sql_query(format!("{COLUMNS} WHERE connection_id = $1")).bind::<BigInt, _>(id.0);
    Ok(query.get_result(conn).optional()?)
}

/// A token that was granted.
#[derive(Debug, Clone)]
pub struct NewToken {
    pub connection: ConnectionId,
    pub grant_id: Uuid,
    pub access_sealed: Vec<u8>,
    pub refresh_sealed: Option<Vec<u8>>,
    pub scopes: Vec<String>,
    pub issued_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub refresh_due_at: Option<DateTime<Utc>>,
}

/// Makes `new` the token of its connection, as the first of a new grant. An open refresh of the grant before is void.
pub fn store_first(conn: &mut PgConnection, new: &NewToken, grant: GrantKind) -> Result<(), DbError> {
    sql_query(
        "INSERT INTO fieldmirror.tokens (connection_id, grant_id, kind, access_sealed, refresh_sealed, scopes, \
             issued_at, expires_at, refresh_due_at, last_refresh_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now()) \
         ON CONFLICT (connection_id) DO UPDATE SET grant_id = excluded.grant_id, kind = excluded.kind, generation = 1, \
             access_sealed = excluded.access_sealed, refresh_sealed = excluded.refresh_sealed, \
             scopes = excluded.scopes, issued_at = excluded.issued_at, expires_at = excluded.expires_at, \
             refresh_due_at = excluded.refresh_due_at, last_refresh_at = excluded.last_refresh_at, failures = 0, \
             last_error = NULL, rejected_at = NULL",
    )
    .bind::<BigInt, _>(new.connection.0)
    .bind::<SqlUuid, _>(new.grant_id)
    .bind::<Text, _>(kind(grant))
    .bind::<Bytea, _>(&new.access_sealed)
    .bind::<Nullable<Bytea>, _>(new.refresh_sealed.as_deref())
    .bind::<Array<Text>, _>(&new.scopes)
    .bind::<Timestamptz, _>(new.issued_at)
    .bind::<Nullable<Timestamptz>, _>(new.expires_at)
    .bind::<Nullable<Timestamptz>, _>(new.refresh_due_at)
    .execute(conn)?;
    sql_query("DELETE FROM fieldmirror.refresh_attempts WHERE connection_id = $1")
        .bind::<BigInt, _>(new.connection.0)
        .execute(conn)?;
    Ok(())
}

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
pub fn open_attempt(
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
pub fn close_attempt(conn: &mut PgConnection, attempt: &RefreshAttempt) -> Result<(), DbError> {
    sql_query(
        "DELETE FROM fieldmirror.refresh_attempts WHERE connection_id = $1 AND daemon_id = $2 AND started_at = $3",
    )
    .bind::<BigInt, _>(attempt.connection.0)
    .bind::<SqlUuid, _>(attempt.daemon)
    .bind::<Timestamptz, _>(attempt.started_at)
    .execute(conn)?;
    Ok(())
}

/// What a refresh brought.
#[derive(Debug, Clone)]
pub struct Renewal {
    pub access_sealed: Vec<u8>,
    /// `None`: the one in hand stays.
    pub refresh_sealed: Option<Vec<u8>>,
    /// Empty: as before.
    pub scopes: Vec<String>,
    pub issued_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub refresh_due_at: DateTime<Utc>,
}

/// Commits a refresh by compare-and-swap on grant and generation, and closes its attempt. False: the token has moved
/// on meanwhile, and nothing was written to it. The transaction's commit waits for the disk whatever the server's
/// default.
pub fn renew(conn: &mut PgConnection, attempt: &RefreshAttempt, new: &Renewal) -> Result<bool, DbError> {
    sql_query("SET LOCAL synchronous_commit = on").execute(conn)?;
    let swapped = sql_query(
        "UPDATE fieldmirror.tokens SET generation = generation + 1, access_sealed = $4, \
             refresh_sealed = coalesce($5, refresh_sealed), \
             scopes = CASE WHEN cardinality($6) = 0 THEN scopes ELSE $6 END, \
             issued_at = $7, expires_at = $8, refresh_due_at = $9, last_refresh_at = now(), failures = 0, \
             last_error = NULL, rejected_at = NULL \
         WHERE connection_id = $1 AND grant_id = $2 AND generation = $3",
    )
    .bind::<BigInt, _>(attempt.connection.0)
    .bind::<SqlUuid, _>(attempt.grant_id)
    .bind::<BigInt, _>(attempt.generation)
    .bind::<Bytea, _>(&new.access_sealed)
    .bind::<Nullable<Bytea>, _>(new.refresh_sealed.as_deref())
    .bind::<Array<Text>, _>(&new.scopes)
    .bind::<Timestamptz, _>(new.issued_at)
    .bind::<Nullable<Timestamptz>, _>(new.expires_at)
    .bind::<Timestamptz, _>(new.refresh_due_at)
    .execute(conn)?;
    close_attempt(conn, attempt)?;
    Ok(swapped == 1)
}

/// A refresh that did not work.
#[derive(Debug, Clone)]
pub struct Setback {
    pub last_error: String,
    pub refresh_due_at: DateTime<Utc>,
    /// Set when the provider said that the grant is dead. The first such moment is kept.
    pub rejected_at: Option<DateTime<Utc>>,
}

/// Counts a failed refresh and closes its attempt. False: the token has moved on meanwhile, and the failure says
/// nothing about the present one.
pub fn set_back(
    conn: &mut PgConnection,
    attempt: &RefreshAttempt,
    setback: &Setback,
) -> Result<bool, DbError> {
    let counted = sql_query(
        "UPDATE fieldmirror.tokens SET failures = failures + 1, last_error = $4, refresh_due_at = $5, \
             rejected_at = CASE WHEN $6 IS NULL THEN rejected_at ELSE coalesce(rejected_at, $6) END \
         WHERE connection_id = $1 AND grant_id = $2 AND generation = $3",
    )
    .bind::<BigInt, _>(attempt.connection.0)
    .bind::<SqlUuid, _>(attempt.grant_id)
    .bind::<BigInt, _>(attempt.generation)
    .bind::<Text, _>(&setback.last_error)
    .bind::<Timestamptz, _>(setback.refresh_due_at)
    .bind::<Nullable<Timestamptz>, _>(setback.rejected_at)
    .execute(conn)?;
    close_attempt(conn, attempt)?;
    Ok(counted == 1)
}

/// Moves the next refresh to `due`, whatever it was.
pub fn postpone(conn: &mut PgConnection, id: ConnectionId, due: DateTime<Utc>) -> Result<(), DbError> {
    sql_query("UPDATE fieldmirror.tokens SET refresh_due_at = $2 WHERE connection_id = $1")
        .bind::<BigInt, _>(id.0)
        .bind::<Timestamptz, _>(due)
        .execute(conn)?;
    Ok(())
}

/// A key was probed and works: the next probe is due at `due`.
pub fn probed(
    conn: &mut PgConnection,
    attempt: &RefreshAttempt,
    due: DateTime<Utc>,
) -> Result<bool, DbError> {
    let counted = sql_query(
        "UPDATE fieldmirror.tokens SET refresh_due_at = $4, last_refresh_at = now(), failures = 0, last_error = NULL, \
             rejected_at = NULL WHERE connection_id = $1 AND grant_id = $2 AND generation = $3",
    )
    .bind::<BigInt, _>(attempt.connection.0)
    .bind::<SqlUuid, _>(attempt.grant_id)
    .bind::<BigInt, _>(attempt.generation)
    .bind::<Timestamptz, _>(due)
    .execute(conn)?;
    close_attempt(conn, attempt)?;
    Ok(counted == 1)
}

/// Makes a refresh due at once and wakes the schedulers. A token whose last refresh failed keeps its pause.
pub fn make_due(conn: &mut PgConnection, id: ConnectionId, now: DateTime<Utc>) -> Result<(), DbError> {
    let moved = sql_query(
        "UPDATE fieldmirror.tokens SET refresh_due_at = $2 WHERE connection_id = $1 AND failures = 0 \
             AND (refresh_due_at IS NULL OR refresh_due_at > $2)",
    )
    .bind::<BigInt, _>(id.0)
    .bind::<Timestamptz, _>(now)
    .execute(conn)?;
    if moved > 0 {
        requests::wake(conn)?;
    }
    Ok(())
}

/// Connections whose token is to be refreshed or probed now, the longest due first, at most `limit`. Those with an
/// open refresh are not among them.
pub fn due(conn: &mut PgConnection, now: DateTime<Utc>, limit: u32) -> Result<Vec<ConnectionId>, DbError> {
    let query = sql_query(
        "SELECT t.connection_id AS value FROM fieldmirror.tokens t \
         JOIN fieldmirror.connections c ON c.id = t.connection_id \
         LEFT JOIN fieldmirror.refresh_attempts a \
             ON a.connection_id = t.connection_id AND a.blocked_until > clock_timestamp() \
         WHERE t.refresh_due_at <= $1 AND c.state IN ('connected', 'needs_reauth') AND a.connection_id IS NULL \
         ORDER BY t.refresh_due_at LIMIT $2",
    )
    .bind::<Timestamptz, _>(now)
    .bind::<BigInt, _>(i64::from(limit));
    Ok(rows::values::<BigInt, i64, _>(conn, query)?.into_iter().map(ConnectionId).collect())
}

/// When the next token after `now` falls due.
pub fn next_due(conn: &mut PgConnection, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, DbError> {
    let query = sql_query(
        "SELECT min(t.refresh_due_at) AS value FROM fieldmirror.tokens t \
         JOIN fieldmirror.connections c ON c.id = t.connection_id \
         WHERE t.refresh_due_at > $1 AND c.state IN ('connected', 'needs_reauth')",
    );
    rows::value::<Nullable<Timestamptz>, Option<DateTime<Utc>>, _>(conn, query.bind::<Timestamptz, _>(now))
}

/// How the tokens of one client fare: whether deaths are the accounts' or the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, QueryableByName)]
pub struct Fate {
    #[diesel(sql_type = BigInt, column_name = connection_id)]
    connection_id: i64,
    /// When the provider first said that the grant is dead.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub rejected_at: Option<DateTime<Utc>>,
    /// The last success.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_refresh_at: Option<DateTime<Utc>>,
}

impl Fate {
    pub fn new(
        connection: ConnectionId,
        rejected_at: Option<DateTime<Utc>>,
        last_refresh_at: Option<DateTime<Utc>>,
    ) -> Self {
        Self { connection_id: connection.0, rejected_at, last_refresh_at }
    }

    pub fn connection(&self) -> ConnectionId {
        ConnectionId(self.connection_id)
    }
}

/// The fates of all OAuth tokens at one provider: they share our client id.
pub fn fates(conn: &mut PgConnection, provider: &str) -> Result<Vec<Fate>, DbError> {
    Ok(sql_query(
        "SELECT t.connection_id, t.rejected_at, t.last_refresh_at FROM fieldmirror.tokens t \
         JOIN fieldmirror.connections c ON c.id = t.connection_id \
         WHERE c.provider = $1 AND t.kind = 'oauth' AND c.state IN ('connected', 'needs_reauth')",
    )
    .bind::<Text, _>(provider)
    .load(conn)?)
}

/// Takes back the death of these connections: it was not theirs. They are tried again at `due`. Returns how many.
pub fn acquit(
    conn: &mut PgConnection,
    ids: &[ConnectionId],
    reason: &str,
    due: DateTime<Utc>,
) -> Result<usize, DbError> {
    let mut ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    // One order of locks for all.
    ids.sort_unstable();
    let mut acquitted = 0;
    for id in ids {
        let moved = sql_query(
            "UPDATE fieldmirror.connections SET state = 'connected', reason = $2 \
             WHERE id = $1 AND state = 'needs_reauth'",
        )
        .bind::<BigInt, _>(id)
        .bind::<Text, _>(reason)
        .execute(conn)?;
        if moved > 0 {
            sql_query("UPDATE fieldmirror.tokens SET refresh_due_at = least(refresh_due_at, $2) WHERE connection_id = $1")
                .bind::<BigInt, _>(id)
                .bind::<Timestamptz, _>(due)
                .execute(conn)?;
        }
        acquitted += moved;
    }
    Ok(acquitted)
}

/// A secret that an admin handed over, sealed.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct SealedSecret {
    #[diesel(sql_type = Text)]
    pub name: String,
    #[diesel(sql_type = SqlUuid)]
    pub grant_id: Uuid,
    #[diesel(sql_type = Bytea)]
    pub sealed: Vec<u8>,
}

/// Replaces all secrets of a connection.
pub fn set_secrets(
    conn: &mut PgConnection,
    id: ConnectionId,
    secrets: &[SealedSecret],
) -> Result<(), DbError> {
    sql_query("DELETE FROM fieldmirror.secrets WHERE connection_id = $1")
        .bind::<BigInt, _>(id.0)
        .execute(conn)?;
    for secret in secrets {
        sql_query(
            "INSERT INTO fieldmirror.secrets (connection_id, name, grant_id, sealed) VALUES ($1, $2, $3, $4)",
        )
        .bind::<BigInt, _>(id.0)
        .bind::<Text, _>(&secret.name)
        .bind::<SqlUuid, _>(secret.grant_id)
        .bind::<Bytea, _>(&secret.sealed)
        .execute(conn)?;
    }
    Ok(())
}

/// The secrets of a connection.
pub fn secrets(conn: &mut PgConnection, id: ConnectionId) -> Result<Vec<SealedSecret>, DbError> {
    Ok(sql_query("SELECT name, grant_id, sealed FROM fieldmirror.secrets WHERE connection_id = $1")
        .bind::<BigInt, _>(id.0)
        .load(conn)?)
}

/// Wipes whatever is sealed for a connection: token, secrets, verifiers, and with them any open refresh.
pub fn wipe(conn: &mut PgConnection, id: ConnectionId) -> Result<(), DbError> {
    for table in ["refresh_attempts", "tokens", "secrets"] {
        sql_query(format!("DELETE FROM fieldmirror.{table} WHERE connection_id = $1"))
            .bind::<BigInt, _>(id.0)
            .execute(conn)?;
    }
    sql_query(
        "UPDATE fieldmirror.authorization_attempts SET verifier_sealed = NULL WHERE authorization_id IN \
         (SELECT id FROM fieldmirror.authorizations WHERE connection_id = $1)",
    )
    .bind::<BigInt, _>(id.0)
    .execute(conn)?;
    Ok(())
}

/// Whether the database takes writes and commits reach the disk: for `readyz`.
pub fn is_writable(conn: &mut PgConnection) -> Result<bool, DbError> {
    rows::value::<Bool, bool, _>(conn, sql_query("SELECT NOT pg_is_in_recovery() AS value"))
}
