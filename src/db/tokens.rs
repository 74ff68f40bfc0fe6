//! Live tokens. Values arrive and leave sealed.
//!
//! Callers hold the lock of the connection ([`super::connections::lock`]) in the same transaction, so that there is one
//! order of locks.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{
    Array, BigInt, Bool, Bytea, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid,
};
use uuid::Uuid;

use super::connections::ConnectionState;
use super::error::DbError;
use super::refresh_attempts::{self, RefreshAttempt};
use super::{requests, rows, session};
use crate::domain::ids::ConnectionId;
use crate::domain::spec::GrantKind;
use crate::domain::time::delta;

/// Refreshes of one provider that have jobs which could run: more than its endpoint is asked in a second.
const READY_MAX: i64 = 40;

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
    /// Moved by one with every refresh; starts at 1 with every grant, counting the refreshes before it was written down.
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
    /// When it was the API that first said so; cleared when the API takes a token again.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub refused_at: Option<DateTime<Utc>>,
}

const COLUMNS: &str = "SELECT grant_id, generation, access_sealed, refresh_sealed, scopes, issued_at, expires_at, \
     refresh_due_at, last_refresh_at, failures, last_error, rejected_at, refused_at FROM fieldmirror.tokens";

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
    pub generation: i64,
    pub access_sealed: Vec<u8>,
    pub refresh_sealed: Option<Vec<u8>>,
    pub scopes: Vec<String>,
    pub issued_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub refresh_due_at: Option<DateTime<Utc>>,
}

/// Makes `new` the token of its connection, as the first of a new grant. An open refresh of the grant before is void.
pub fn store_first(conn: &mut PgConnection, new: &NewToken, grant: GrantKind) -> Result<(), DbError> {
    session::commit_durably(conn)?;
    sql_query(
        "INSERT INTO fieldmirror.tokens (connection_id, grant_id, kind, access_sealed, refresh_sealed, scopes, \
             issued_at, expires_at, refresh_due_at, generation, last_refresh_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, now()) \
         ON CONFLICT (connection_id) DO UPDATE SET grant_id = excluded.grant_id, kind = excluded.kind, \
             generation = excluded.generation, \
             access_sealed = excluded.access_sealed, refresh_sealed = excluded.refresh_sealed, \
             scopes = excluded.scopes, issued_at = excluded.issued_at, expires_at = excluded.expires_at, \
             refresh_due_at = excluded.refresh_due_at, last_refresh_at = excluded.last_refresh_at, failures = 0, \
             last_error = NULL, failure_kind = NULL, rejected_at = NULL, refused_at = NULL",
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
    .bind::<BigInt, _>(new.generation)
    .execute(conn)?;
    sql_query("DELETE FROM fieldmirror.refresh_attempts WHERE connection_id = $1")
        .bind::<BigInt, _>(new.connection.0)
        .execute(conn)?;
    Ok(())
}

/// What a refresh brought.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// What the token's generation becomes: one more than the generation of the refresh token that was traded.
    pub generation: i64,
    /// When the token whose place it takes was issued: after a database was restored, another one may have its generation.
    pub replaces: DateTime<Utc>,
    /// When its trade began, by the database's clock, where it is written down later; `None`: now.
    pub begun_at: Option<DateTime<Utc>>,
    pub access_sealed: Vec<u8>,
    /// `None`: the one in hand stays.
    pub refresh_sealed: Option<Vec<u8>>,
    /// Empty: as before.
    pub scopes: Vec<String>,
    pub issued_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub refresh_due_at: DateTime<Utc>,
}

/// What became of a refresh that was to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    Done,
    /// It is written, but the API has refused the token before: whether it takes the new one is not known yet.
    Doubtful,
    /// The token has moved on meanwhile, and nothing was written to it.
    Overtaken,
}

/// How long after a refresh the next one is tried at the latest when the API has refused the token before, in case that it
/// is not found out at once whether it takes the new one.
const DOUBTFUL_MAX: Duration = Duration::from_mins(15);

/// Commits a refresh by compare-and-swap on grant, generation and time of issue, and closes its attempt. The transaction's
/// commit waits for the disk whatever the server's default.
pub fn renew(conn: &mut PgConnection, attempt: &RefreshAttempt, new: &Renewal) -> Result<Renewed, DbError> {
    session::commit_durably(conn)?;
    let query = sql_query(
        "UPDATE fieldmirror.tokens SET generation = $10, access_sealed = $4, \
             refresh_sealed = coalesce($5, refresh_sealed), \
             scopes = CASE WHEN cardinality($6) = 0 THEN scopes ELSE $6 END, \
             issued_at = $7, expires_at = $8, last_refresh_at = coalesce($13, now()), \
             refresh_due_at = CASE WHEN refused_at IS NULL THEN $9 ELSE least($9, $11) END, \
             failures = CASE WHEN refused_at IS NULL THEN 0 ELSE failures END, \
             last_error = CASE WHEN refused_at IS NULL THEN NULL ELSE last_error END, \
             failure_kind = CASE WHEN refused_at IS NULL THEN NULL ELSE failure_kind END, rejected_at = refused_at \
         WHERE connection_id = $1 AND grant_id = $2 AND generation = $3 AND issued_at = $12 \
         RETURNING refused_at IS NOT NULL AS value",
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
    .bind::<BigInt, _>(new.generation)
    .bind::<Timestamptz, _>(new.issued_at + delta(DOUBTFUL_MAX))
    .bind::<Timestamptz, _>(new.replaces)
    .bind::<Nullable<Timestamptz>, _>(new.begun_at);
    let refused = rows::optional::<Bool, bool, _>(conn, query)?;
    refresh_attempts::close(conn, attempt)?;
    Ok(match refused {
        Some(false) => Renewed::Done,
        Some(true) => Renewed::Doubtful,
        None => Renewed::Overtaken,
    })
}

/// The API takes the token: what it said before is over. False: the token has moved on meanwhile.
pub fn taken(
    conn: &mut PgConnection,
    id: ConnectionId,
    (grant_id, generation): (Uuid, i64),
    due: DateTime<Utc>,
) -> Result<bool, DbError> {
    let cleared = sql_query(
        "UPDATE fieldmirror.tokens SET failures = 0, last_error = NULL, failure_kind = NULL, rejected_at = NULL, \
             refused_at = NULL, refresh_due_at = $4 WHERE connection_id = $1 AND grant_id = $2 AND generation = $3",
    )
    .bind::<BigInt, _>(id.0)
    .bind::<SqlUuid, _>(grant_id)
    .bind::<BigInt, _>(generation)
    .bind::<Timestamptz, _>(due)
    .execute(conn)?;
    Ok(cleared == 1)
}

/// Whether the reply that `new` came from is written down already: the answer to its commit was lost, or another daemon
/// found it in the folder of spills. Replies are told apart by when their requests were sent.
pub fn is_renewed(conn: &mut PgConnection, attempt: &RefreshAttempt, new: &Renewal) -> Result<bool, DbError> {
    let query = sql_query(
        "SELECT EXISTS (SELECT FROM fieldmirror.tokens \
             WHERE connection_id = $1 AND grant_id = $2 AND generation = $3 AND issued_at = $4) AS value",
    );
    let query = query
        .bind::<BigInt, _>(attempt.connection.0)
        .bind::<SqlUuid, _>(attempt.grant_id)
        .bind::<BigInt, _>(new.generation)
        .bind::<Timestamptz, _>(new.issued_at);
    rows::value::<Bool, bool, _>(conn, query)
}

/// A refresh that did not work.
#[derive(Debug, Clone)]
pub struct Setback {
    pub last_error: String,
    /// The label of the failure's kind.
    pub kind: &'static str,
    pub refresh_due_at: DateTime<Utc>,
    /// The provider said that the grant is dead. The first such moment is kept, by the database's clock: it is compared
    /// with those of others.
    pub is_dead: bool,
    /// It was its API that said so. The first such moment is kept as well.
    pub by_api: bool,
}

/// Counts a failed refresh and closes its attempt. False: the token has moved on meanwhile, and the failure says
/// nothing about the present one. An endpoint that is out of order does not acquit a client that it has refused: what is
/// said of the client stays until it is answered otherwise.
pub fn set_back(
    conn: &mut PgConnection,
    attempt: &RefreshAttempt,
    setback: &Setback,
) -> Result<bool, DbError> {
    let counted = sql_query(
        "UPDATE fieldmirror.tokens SET failures = failures + 1, refresh_due_at = $5, \
             last_error = CASE WHEN failure_kind = 'misconfigured' AND $7 IN ('transient', 'throttled') THEN last_error ELSE $4 END, \
             failure_kind = CASE WHEN failure_kind = 'misconfigured' AND $7 IN ('transient', 'throttled') THEN failure_kind ELSE $7 END, \
             rejected_at = CASE WHEN $6 THEN coalesce(rejected_at, now()) ELSE rejected_at END, \
             refused_at = CASE WHEN $8 THEN coalesce(refused_at, now()) ELSE refused_at END \
         WHERE connection_id = $1 AND grant_id = $2 AND generation = $3",
    )
    .bind::<BigInt, _>(attempt.connection.0)
    .bind::<SqlUuid, _>(attempt.grant_id)
    .bind::<BigInt, _>(attempt.generation)
    .bind::<Text, _>(&setback.last_error)
    .bind::<Timestamptz, _>(setback.refresh_due_at)
    .bind::<Bool, _>(setback.is_dead)
    .bind::<Text, _>(setback.kind)
    .bind::<Bool, _>(setback.by_api)
    .execute(conn)?;
    refresh_attempts::close(conn, attempt)?;
    Ok(counted == 1)
}

/// The failure just counted is our client's, not the account's: the next refresh is due at `due`.
pub fn blame_client(conn: &mut PgConnection, id: ConnectionId, due: DateTime<Utc>) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.tokens SET refresh_due_at = $2, failure_kind = 'misconfigured' WHERE connection_id = $1",
    )
        .bind::<BigInt, _>(id.0)
        .bind::<Timestamptz, _>(due)
        .execute(conn)?;
    Ok(())
}

/// The token in hand does not open: that is noted, unless it was before. Returns whether this was news.
pub fn unusable(
    conn: &mut PgConnection,
    id: ConnectionId,
    (grant_id, generation): (Uuid, i64),
    reason: &str,
    kind: &str,
) -> Result<bool, DbError> {
    let noted = sql_query(
        "UPDATE fieldmirror.tokens SET last_error = $4, failure_kind = $5 \
         WHERE connection_id = $1 AND grant_id = $2 AND generation = $3 AND failure_kind IS DISTINCT FROM $5",
    )
    .bind::<BigInt, _>(id.0)
    .bind::<SqlUuid, _>(grant_id)
    .bind::<BigInt, _>(generation)
    .bind::<Text, _>(reason)
    .bind::<Text, _>(kind)
    .execute(conn)?;
    Ok(noted > 0)
}

/// A key was probed and works: the next probe is due at `due`.
pub fn probed(
    conn: &mut PgConnection,
    attempt: &RefreshAttempt,
    due: DateTime<Utc>,
) -> Result<bool, DbError> {
    let counted = sql_query(
        "UPDATE fieldmirror.tokens SET refresh_due_at = $4, last_refresh_at = now(), failures = 0, last_error = NULL, \
             failure_kind = NULL, rejected_at = NULL, refused_at = NULL \
         WHERE connection_id = $1 AND grant_id = $2 AND generation = $3",
    )
    .bind::<BigInt, _>(attempt.connection.0)
    .bind::<SqlUuid, _>(attempt.grant_id)
    .bind::<BigInt, _>(attempt.generation)
    .bind::<Timestamptz, _>(due)
    .execute(conn)?;
    refresh_attempts::close(conn, attempt)?;
    Ok(counted == 1)
}

/// Makes a refresh of this generation due at once and wakes the schedulers. A token whose last refresh failed keeps its
/// pause.
pub fn make_due(
    conn: &mut PgConnection,
    id: ConnectionId,
    generation: i64,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    let moved = sql_query(
        "UPDATE fieldmirror.tokens SET refresh_due_at = $2 WHERE connection_id = $1 AND generation = $3 \
             AND failures = 0 AND (refresh_due_at IS NULL OR refresh_due_at > $2)",
    )
    .bind::<BigInt, _>(id.0)
    .bind::<Timestamptz, _>(now)
    .bind::<BigInt, _>(generation)
    .execute(conn)?;
    if moved > 0 {
        requests::wake(conn)?;
    }
    Ok(())
}

/// Connections whose token is to be refreshed or probed now, at most `limit`, the most endangered first: by the end of the
/// access token. Keys come after them, since they do not run out, and last what the provider called dead. Not among them
/// are those with an open refresh, with one whose reply may be found in a folder of spills that is not `spills`, for
/// `spill_grace`, and those whose job waits already, so that the next ones get theirs. A refresh that seems to keep others
/// out for longer than it can is no reason: the clock was set back. No provider gets more than [`READY_MAX`] ahead: where one
/// does not answer, the others' are not behind all of its own.
pub fn due(
    conn: &mut PgConnection,
    providers: &[String],
    now: DateTime<Utc>,
    limit: u32,
    (spills, spill_grace): (Option<Uuid>, Duration),
) -> Result<Vec<ConnectionId>, DbError> {
    let query = sql_query(
        "WITH ready AS (\
             SELECT c.provider, count(*) AS jobs FROM fieldmirror.jobs j \
             JOIN fieldmirror.connections c ON c.id = j.connection_id \
             WHERE j.kind = 'refresh_token' AND (j.state = 'running' OR j.state = 'pending' AND j.run_at <= now()) \
             GROUP BY c.provider\
         ), due AS (\
             SELECT t.connection_id, c.provider, t.rejected_at IS NOT NULL AS is_dead, \
                 t.kind IN ('api_key', 'bearer') AS is_key, coalesce(t.expires_at, t.refresh_due_at) AS ends_at \
             FROM fieldmirror.tokens t \
             JOIN fieldmirror.connections c ON c.id = t.connection_id \
             LEFT JOIN fieldmirror.refresh_attempts a \
                 ON a.connection_id = t.connection_id AND a.blocked_until > clock_timestamp() \
                    - CASE WHEN a.spills <> $4 OR $4 IS NULL AND a.spills IS NOT NULL \
                           THEN make_interval(secs => $5) ELSE interval '0' END \
                    AND a.blocked_until <= clock_timestamp() + make_interval(secs => $7) \
             WHERE t.refresh_due_at <= $1 AND c.state IN ('connected', 'needs_reauth') AND a.connection_id IS NULL \
               AND c.provider = ANY ($3) \
               AND NOT EXISTS (SELECT FROM fieldmirror.jobs j WHERE j.kind = 'refresh_token' \
                   AND j.connection_id = t.connection_id AND j.state IN ('pending', 'running', 'parked'))\
         ), placed AS (\
             SELECT *, row_number() OVER (PARTITION BY provider ORDER BY is_dead, is_key, ends_at) AS place FROM due\
         ) \
         SELECT p.connection_id AS value FROM placed p LEFT JOIN ready r ON r.provider = p.provider \
         WHERE p.place <= $6 - coalesce(r.jobs, 0) ORDER BY p.is_dead, p.is_key, p.ends_at LIMIT $2",
    )
    .bind::<Timestamptz, _>(now)
    .bind::<BigInt, _>(i64::from(limit))
    .bind::<Array<Text>, _>(providers)
    .bind::<Nullable<SqlUuid>, _>(spills)
    .bind::<Double, _>(spill_grace.as_secs_f64())
    .bind::<BigInt, _>(READY_MAX)
    .bind::<Double, _>(refresh_attempts::BLOCKED_FOR.as_secs_f64());
    Ok(rows::values::<BigInt, i64, _>(conn, query)?.into_iter().map(ConnectionId).collect())
}

/// When the next token after `now` falls due.
pub fn next_due(
    conn: &mut PgConnection,
    providers: &[String],
    now: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, DbError> {
    let query = sql_query(
        "SELECT t.refresh_due_at AS value FROM fieldmirror.tokens t \
         JOIN fieldmirror.connections c ON c.id = t.connection_id \
         WHERE t.refresh_due_at > $1 AND c.state IN ('connected', 'needs_reauth') AND c.provider = ANY ($2) \
         ORDER BY t.refresh_due_at LIMIT 1",
    );
    let query = query.bind::<Timestamptz, _>(now).bind::<Array<Text>, _>(providers);
    rows::optional::<Timestamptz, DateTime<Utc>, _>(conn, query)
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

/// The fates of all OAuth tokens at one provider's token endpoint: they share our client id. Where there is no refresh
/// token, none is asked.
pub fn fates(conn: &mut PgConnection, provider: &str) -> Result<Vec<Fate>, DbError> {
    Ok(sql_query(
        "SELECT t.connection_id, CASE WHEN t.refused_at IS NULL AND t.refresh_sealed IS NOT NULL THEN t.rejected_at END AS rejected_at, \
             t.last_refresh_at \
         FROM fieldmirror.tokens t JOIN fieldmirror.connections c ON c.id = t.connection_id \
         WHERE c.provider = $1 AND t.kind = 'oauth' AND c.state IN ('connected', 'needs_reauth')",
    )
    .bind::<Text, _>(provider)
    .load(conn)?)
}

/// The fates of all tokens and keys at one provider's API: a walk that has closed is a success there. Its time is that of
/// the daemon, whose clock may be ahead, and then proves nothing about later deaths.
pub fn fates_at_api(conn: &mut PgConnection, provider: &str) -> Result<Vec<Fate>, DbError> {
    Ok(sql_query(
        "SELECT t.connection_id, t.refused_at AS rejected_at, (SELECT max(CASE WHEN s.last_success_at > now() \
             THEN now() ELSE s.last_success_at END) FROM fieldmirror.stream_state s WHERE s.connection_id = t.connection_id) AS last_refresh_at \
         FROM fieldmirror.tokens t JOIN fieldmirror.connections c ON c.id = t.connection_id \
         WHERE c.provider = $1 AND c.state IN ('connected', 'needs_reauth')",
    )
    .bind::<Text, _>(provider)
    .load(conn)?)
}

/// The client of a provider is in order again: refreshes that failed for its sake are due at once. Rows that somebody else
/// is writing are left to him.
pub fn retry_blamed(conn: &mut PgConnection, provider: &str, now: DateTime<Utc>) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.tokens SET refresh_due_at = least(refresh_due_at, $2) WHERE connection_id IN (\
             SELECT t.connection_id FROM fieldmirror.tokens t JOIN fieldmirror.connections c ON c.id = t.connection_id \
             WHERE c.provider = $1 AND t.kind = 'oauth' AND t.failure_kind = 'misconfigured' \
             FOR UPDATE OF t SKIP LOCKED)",
    )
    .bind::<Text, _>(provider)
    .bind::<Timestamptz, _>(now)
    .execute(conn)?;
    Ok(())
}

/// Takes back the death of these connections: it was not theirs. They are tried again at `due`. Returns which.
pub fn acquit(
    conn: &mut PgConnection,
    ids: &[ConnectionId],
    reason: &str,
    due: DateTime<Utc>,
) -> Result<Vec<ConnectionId>, DbError> {
    let mut ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    // One order of locks for all.
    ids.sort_unstable();
    let mut acquitted = Vec::new();
    for id in ids {
        let moved = sql_query(
            "UPDATE fieldmirror.connections SET state = 'connected', reason = $2 \
             WHERE id = $1 AND state = 'needs_reauth'",
        )
        .bind::<BigInt, _>(id)
        .bind::<Text, _>(reason)
        .execute(conn)?;
        if moved > 0 {
            sql_query(
                "UPDATE fieldmirror.tokens SET refresh_due_at = least(refresh_due_at, $2), \
                     failure_kind = 'misconfigured' WHERE connection_id = $1",
            )
            .bind::<BigInt, _>(id)
            .bind::<Timestamptz, _>(due)
            .execute(conn)?;
            acquitted.push(ConnectionId(id));
        }
    }
    Ok(acquitted)
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

/// What is on record of a connection, for whoever has a spill of its.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct OnRecord {
    #[diesel(sql_type = BigInt, column_name = connection_id)]
    connection_id: i64,
    #[diesel(sql_type = Text)]
    pub state: String,
    /// When somebody last consented, or handed over a key.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub connected_at: Option<DateTime<Utc>>,
    /// `None`: there is no token.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub grant_id: Option<Uuid>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub generation: Option<i64>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub issued_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_refresh_at: Option<DateTime<Utc>>,
    /// The last refresh failed, and its pause is not over at the caller's time.
    #[diesel(sql_type = Bool)]
    pub pauses: bool,
    /// The provider has called the grant dead.
    #[diesel(sql_type = Bool)]
    pub is_dead: bool,
    /// When it was last disconnected; of connections that are, as far as that is still known.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub disconnected_at: Option<DateTime<Utc>>,
}

impl OnRecord {
    /// For tests of those who compare with it.
    pub fn example(connection_id: i64, state: &str, token: Option<(Uuid, i64)>) -> Self {
        let (grant_id, generation) = token.unzip();
        Self {
            connection_id,
            state: state.to_owned(),
            connected_at: None,
            grant_id,
            generation,
            issued_at: None,
            last_refresh_at: None,
            pauses: false,
            is_dead: false,
            disconnected_at: None,
        }
    }

    pub fn connection(&self) -> ConnectionId {
        ConnectionId(self.connection_id)
    }

    /// Whether the connection has a grant, be it one that the provider calls dead.
    pub fn is_in_force(&self) -> bool {
        [ConnectionState::Connected, ConnectionState::NeedsReauth]
            .iter()
            .any(|state| state.as_str() == self.state)
    }
}

/// What is on record of these connections.
pub fn on_record(
    conn: &mut PgConnection,
    ids: &[ConnectionId],
    now: DateTime<Utc>,
) -> Result<Vec<OnRecord>, DbError> {
    let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    Ok(sql_query(
        "SELECT c.id AS connection_id, c.state, c.connected_at, t.grant_id, t.generation, t.issued_at, t.last_refresh_at, \
             coalesce(t.failures > 0 AND t.refresh_due_at > $2, false) AS pauses, \
             t.rejected_at IS NOT NULL AS is_dead, \
             CASE WHEN c.state = 'disconnected' THEN (SELECT max(at) FROM fieldmirror.audit_log a \
                 WHERE a.connection_id = c.id AND a.event = 'disconnect') END AS disconnected_at \
         FROM fieldmirror.connections c LEFT JOIN fieldmirror.tokens t ON t.connection_id = c.id \
         WHERE c.id = ANY ($1)",
    )
    .bind::<Array<BigInt>, _>(ids)
    .bind::<Timestamptz, _>(now)
    .load(conn)?)
}

/// The sealed access token that was issued last, of any connection: to see which key seals.
pub fn newest_sealed(conn: &mut PgConnection) -> Result<Option<Vec<u8>>, DbError> {
    let query =
        sql_query("SELECT access_sealed AS value FROM fieldmirror.tokens ORDER BY issued_at DESC LIMIT 1");
    rows::optional::<Bytea, Vec<u8>, _>(conn, query)
}
