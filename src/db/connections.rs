//! Connections: one company account authorised at one provider.
//!
//! States change here and nowhere else. What a change means for tokens is `auth`'s business.

use chrono::{DateTime, Utc};
use diesel::connection::Connection as _;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use serde_json::Value;
use uuid::Uuid;

use super::error::DbError;
use super::{rows, views};
use crate::domain::ids::{ConnectionId, ConnectionName};
use crate::domain::spec::GrantKind;
use crate::domain::step::Params;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    AwaitingConsent,
    Verifying,
    Connected,
    NeedsReauth,
    Disconnected,
    Failed,
}

impl ConnectionState {
    const ALL: [Self; 6] = [
        Self::AwaitingConsent,
        Self::Verifying,
        Self::Connected,
        Self::NeedsReauth,
        Self::Disconnected,
        Self::Failed,
    ];

    /// The word in the tables and in `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AwaitingConsent => "awaiting_consent",
            Self::Verifying => "verifying",
            Self::Connected => "connected",
            Self::NeedsReauth => "needs_reauth",
            Self::Disconnected => "disconnected",
            Self::Failed => "failed",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether it has not yet led to an account: its name may be asked for again.
    pub fn is_pending(self) -> bool {
        matches!(self, Self::AwaitingConsent | Self::Verifying | Self::Failed)
    }
}

/// A row of `connections`.
#[derive(Debug, Clone, PartialEq)]
pub struct Connection {
    pub id: ConnectionId,
    pub name: String,
    pub provider: String,
    pub grant: GrantKind,
    /// Of the grant in force; `None` before the first and after a disconnect.
    pub grant_id: Option<Uuid>,
    pub state: ConnectionState,
    pub reason: Option<String>,
    pub account_id: Option<String>,
    pub account_name: Option<String>,
    /// What the admin gave with `--param`.
    pub params: Params,
    pub connected_at: Option<DateTime<Utc>>,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    provider: String,
    #[diesel(sql_type = Text)]
    grant_kind: String,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    grant_id: Option<Uuid>,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Nullable<Text>)]
    reason: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    account_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    account_name: Option<String>,
    #[diesel(sql_type = Jsonb)]
    params: Value,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    connected_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for Connection {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        let unknown =
            |what: &str, word: &str| DbError::Row(format!("connection {}: {what} `{word}`", row.id));
        Ok(Self {
            id: ConnectionId(row.id),
            grant: GrantKind::parse(&row.grant_kind).ok_or_else(|| unknown("grant", &row.grant_kind))?,
            state: ConnectionState::parse(&row.state).ok_or_else(|| unknown("state", &row.state))?,
            name: row.name,
            provider: row.provider,
            grant_id: row.grant_id,
            reason: row.reason,
            account_id: row.account_id,
            account_name: row.account_name,
            params: texts(&row.params),
            connected_at: row.connected_at,
        })
    }
}

/// The texts of an object.
fn texts(value: &Value) -> Params {
    let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
    value.as_object().into_iter().flatten().filter_map(text).collect()
}

const COLUMNS: &str = "SELECT id, name, provider, grant_kind, grant_id, state, reason, account_id, account_name, params, \
     connected_at FROM fieldmirror.connections";

/// A connection that is asked for.
#[derive(Debug, Clone)]
pub struct NewConnection {
    pub name: ConnectionName,
    pub provider: String,
    pub grant: GrantKind,
    /// An object of texts.
    pub params: Value,
}

/// What asking for a name came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Pending {
    Created(Connection),
    /// The name was pending already: the row is taken over, with the new grant and parameters.
    Renewed(Connection),
    /// The name belongs to a connection that has been established, or to another provider's.
    Taken(Connection),
}

/// Puts a connection on record that has no account yet.
pub fn create_pending(conn: &mut PgConnection, new: &NewConnection) -> Result<Pending, DbError> {
    let state =
        if new.grant.needs_consent() { ConnectionState::AwaitingConsent } else { ConnectionState::Verifying };
    conn.transaction(|conn| {
        let inserted = sql_query(
            "INSERT INTO fieldmirror.connections (name, provider, grant_kind, state, params) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO NOTHING RETURNING id AS value",
        )
        .bind::<Text, _>(new.name.as_str())
        .bind::<Text, _>(&new.provider)
        .bind::<Text, _>(new.grant.as_str())
        .bind::<Text, _>(state.as_str())
        .bind::<Jsonb, _>(&new.params);
        if let Some(id) = rows::optional::<BigInt, i64, _>(conn, inserted)? {
            return Ok(Pending::Created(get(conn, ConnectionId(id))?));
        }
        let query = sql_query(format!("{COLUMNS} WHERE name = $1 FOR NO KEY UPDATE"));
        let there: Connection =
            query.bind::<Text, _>(new.name.as_str()).get_result::<Row>(conn)?.try_into()?;
        if !there.state.is_pending() || there.account_id.is_some() || there.provider != new.provider {
            return Ok(Pending::Taken(there));
        }
        sql_query(
            "UPDATE fieldmirror.connections SET grant_kind = $2, state = $3, reason = NULL, params = $4 WHERE id = $1",
        )
        .bind::<BigInt, _>(there.id.0)
        .bind::<Text, _>(new.grant.as_str())
        .bind::<Text, _>(state.as_str())
        .bind::<Jsonb, _>(&new.params)
        .execute(conn)?;
        Ok(Pending::Renewed(get(conn, there.id)?))
    })
}

/// The connection of that id; its absence is an error.
pub fn get(conn: &mut PgConnection, id: ConnectionId) -> Result<Connection, DbError> {
    sql_query(format!("{COLUMNS} WHERE id = $1")).bind::<BigInt, _>(id.0).get_result::<Row>(conn)?.try_into()
}

/// [`get`], and nobody else changes it before the transaction ends. Whoever changes tokens or attempts as well takes
/// this lock first: one order for all.
pub fn lock(conn: &mut PgConnection, id: ConnectionId) -> Result<Connection, DbError> {
    sql_query(format!("{COLUMNS} WHERE id = $1 FOR NO KEY UPDATE"))
        .bind::<BigInt, _>(id.0)
        .get_result::<Row>(conn)?
        .try_into()
}

/// The connection that `word` names: a name, or else an id.
pub fn find(conn: &mut PgConnection, word: &str) -> Result<Option<Connection>, DbError> {
    let query = sql_query(format!("{COLUMNS} WHERE name = $1 OR id = $2 ORDER BY name = $1 DESC LIMIT 1"))
        .bind::<Text, _>(word)
        .bind::<Nullable<BigInt>, _>(word.parse::<i64>().ok());
    query.get_result::<Row>(conn).optional()?.map(TryInto::try_into).transpose()
}

/// All of them, by name.
pub fn list(conn: &mut PgConnection) -> Result<Vec<Connection>, DbError> {
    let rows = sql_query(format!("{COLUMNS} ORDER BY name")).load::<Row>(conn)?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Moves the connection to `state`. `reason` is a sentence for people, without secrets.
pub fn set_state(
    conn: &mut PgConnection,
    id: ConnectionId,
    state: ConnectionState,
    reason: Option<&str>,
) -> Result<(), DbError> {
    sql_query("UPDATE fieldmirror.connections SET state = $2, reason = $3 WHERE id = $1")
        .bind::<BigInt, _>(id.0)
        .bind::<Text, _>(state.as_str())
        .bind::<Nullable<Text>, _>(reason)
        .execute(conn)?;
    Ok(())
}

/// Moves a connection that has never had an account to `failed`; leaves every other one as it is, whose grant in
/// force is not touched by a consent that failed.
pub fn fail_pending(conn: &mut PgConnection, id: ConnectionId, reason: &str) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.connections SET state = 'failed', reason = $2 \
         WHERE id = $1 AND state IN ('awaiting_consent', 'verifying', 'failed')",
    )
    .bind::<BigInt, _>(id.0)
    .bind::<Text, _>(reason)
    .execute(conn)?;
    Ok(())
}

/// Says what a connection is waiting for that has never had an account, or has none now.
pub fn note_pending(conn: &mut PgConnection, id: ConnectionId, reason: &str) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.connections SET reason = $2 \
         WHERE id = $1 AND state IN ('awaiting_consent', 'verifying', 'failed', 'disconnected')",
    )
    .bind::<BigInt, _>(id.0)
    .bind::<Text, _>(reason)
    .execute(conn)?;
    Ok(())
}

/// Another connection holds the account already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountTaken {
    /// The name of the first connection.
    pub by: String,
}

/// Establishes the connection: account, new grant, `connected`. Inside a savepoint: a conflict leaves the
/// surrounding transaction usable.
pub fn complete(
    conn: &mut PgConnection,
    id: ConnectionId,
    account_id: &str,
    account_name: Option<&str>,
    grant_id: Uuid,
) -> Result<Result<(), AccountTaken>, DbError> {
    let done = conn.transaction::<_, DbError, _>(|conn| {
        sql_query(
            "UPDATE fieldmirror.connections SET state = 'connected', reason = NULL, account_id = $2, \
             account_name = coalesce($3, account_name), grant_id = $4, connected_at = now() WHERE id = $1",
        )
        .bind::<BigInt, _>(id.0)
        .bind::<Text, _>(account_id)
        .bind::<Nullable<Text>, _>(account_name)
        .bind::<SqlUuid, _>(grant_id)
        .execute(conn)?;
        Ok(())
    });
    match done {
        Ok(()) => Ok(Ok(())),
        Err(error) if error.is_unique_violation("connections_one_per_account") => {
            let by = holder(conn, id, account_id)?.unwrap_or_else(|| "another connection".to_owned());
            Ok(Err(AccountTaken { by }))
        }
        Err(error) => Err(error),
    }
}

/// The other connection of the same provider that holds `account_id`.
pub fn holder(
    conn: &mut PgConnection,
    id: ConnectionId,
    account_id: &str,
) -> Result<Option<String>, DbError> {
    let query = sql_query(
        "SELECT other.name AS value FROM fieldmirror.connections mine JOIN fieldmirror.connections other \
         ON other.provider = mine.provider AND other.id <> mine.id \
         WHERE mine.id = $1 AND other.account_id = $2 AND other.state IN ('connected', 'needs_reauth')",
    );
    rows::optional::<Text, String, _>(conn, query.bind::<BigInt, _>(id.0).bind::<Text, _>(account_id))
}

/// Forgets the grant in force. With `forget_account`, also whose account it was and what was learned about it, so
/// that the next consent may be for any account.
pub fn disconnect(conn: &mut PgConnection, id: ConnectionId, forget_account: bool) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.connections SET state = 'disconnected', reason = NULL, grant_id = NULL, \
         account_id = CASE WHEN $2 THEN NULL ELSE account_id END, \
         account_name = CASE WHEN $2 THEN NULL ELSE account_name END, \
         facts = CASE WHEN $2 THEN '{}' ELSE facts END, pacing = '{}' WHERE id = $1",
    )
    .bind::<BigInt, _>(id.0)
    .bind::<diesel::sql_types::Bool, _>(forget_account)
    .execute(conn)?;
    Ok(())
}

/// Deletes the rows that the connection has in these tables of schema `mirror`, where the tables exist, and where
/// its walks stand. Returns how many mirrored rows went. Table names come from provider specs, never from outside.
pub fn purge(conn: &mut PgConnection, id: ConnectionId, tables: &[&'static str]) -> Result<u64, DbError> {
    // A large mirror takes its time.
    sql_query("SET LOCAL statement_timeout = '1h'").execute(conn)?;
    let mut gone = 0;
    for table in tables {
        let query = sql_query("SELECT to_regclass('mirror.' || quote_ident($1)) IS NOT NULL AS value");
        if !rows::value::<diesel::sql_types::Bool, bool, _>(conn, query.bind::<Text, _>(table))? {
            continue;
        }
        // The view of this one account, where there is one. What an analyst built on it keeps it, without rows: tokens and
        // rows must not stay for its sake.
        conn.transaction(|conn| views::drop(conn, id, table)).ok();
        gone += sql_query(format!("DELETE FROM mirror.{table} WHERE connection_id = $1"))
            .bind::<BigInt, _>(id.0)
            .execute(conn)? as u64;
    }
    // Positions and seen ids go with the walks.
    for table in ["walks", "stream_state", "sync_runs", "verifications"] {
        sql_query(format!("DELETE FROM fieldmirror.{table} WHERE connection_id = $1"))
            .bind::<BigInt, _>(id.0)
            .execute(conn)?;
    }
    // What the mirror still had to read again is gone.
    sql_query(
        "UPDATE fieldmirror.requests SET done_at = now(), outcome = 'superseded', message = 'the connection was purged' \
         WHERE connection_id = $1 AND kind = 'sync' AND done_at IS NULL",
    )
    .bind::<BigInt, _>(id.0)
    .execute(conn)?;
    Ok(gone)
}
