//! What a turn takes over from the one before, and leaves to the next: rate limits and learned facts.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Jsonb, Nullable, Text, Timestamptz};
use serde_json::Value;

use super::error::DbError;
use super::rows;
use crate::domain::ids::ConnectionId;
use crate::domain::step::Facts;

/// Whether the connection is still there; nobody else changes it before the transaction ends.
pub fn lock(connection: &mut PgConnection, of: ConnectionId) -> Result<bool, DbError> {
    let query = diesel::sql_query("SELECT true AS value FROM connections WHERE id = $1 FOR NO KEY UPDATE")
        .bind::<BigInt, _>(of.0);
    Ok(rows::optional::<Bool, bool, _>(connection, query)?.unwrap_or(false))
}

/// Takes what the last turn left of the rate limits. `None`: it did not come to its end, and nothing counts as left.
pub fn take_pacing(connection: &mut PgConnection, of: ConnectionId) -> Result<Option<Value>, DbError> {
    let query = diesel::sql_query(
        "UPDATE connections c SET pacing = NULL
         FROM connections before WHERE before.id = c.id AND c.id = $1 RETURNING before.pacing AS value",
    )
    .bind::<BigInt, _>(of.0);
    rows::value::<Nullable<Jsonb>, Option<Value>, _>(connection, query)
}

/// Leaves the rate limits to the next turn, unless that has begun already.
pub fn save_pacing(
    connection: &mut PgConnection,
    of: ConnectionId,
    epoch: i64,
    pacing: &Value,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE connections SET pacing = $3, pacing_at = $4
         WHERE id = $1 AND $2 = (SELECT max(turn_epoch) FROM stream_state WHERE connection_id = $1)",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<BigInt, _>(epoch)
    .bind::<Jsonb, _>(pacing)
    .bind::<Timestamptz, _>(now)
    .execute(connection)?;
    Ok(())
}

/// Leaves to the next turn what connecting has used of the rate limits. What a turn has used that is cut off by it nobody
/// knows: nothing counts as left then.
pub fn leave_pacing(connection: &mut PgConnection, of: ConnectionId, pacing: &Value) -> Result<(), DbError> {
    diesel::sql_query("UPDATE connections SET pacing = $2 WHERE id = $1 AND pacing IS NOT NULL")
        .bind::<BigInt, _>(of.0)
        .bind::<Jsonb, _>(pacing)
        .execute(connection)?;
    Ok(())
}

/// Whether the turn still owns the connection's streams; they are not taken from it before the transaction ends.
pub fn owns(connection: &mut PgConnection, of: ConnectionId, epoch: i64) -> Result<bool, DbError> {
    if !lock(connection, of)? {
        return Ok(false);
    }
    let query = diesel::sql_query(
        "SELECT coalesce(max(turn_epoch) = $2, false) AS value FROM stream_state WHERE connection_id = $1",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<BigInt, _>(epoch);
    rows::value::<Bool, bool, _>(connection, query)
}

/// What is known about the account.
pub fn facts(connection: &mut PgConnection, of: ConnectionId) -> Result<Facts, DbError> {
    let query =
        diesel::sql_query("SELECT facts AS value FROM connections WHERE id = $1").bind::<BigInt, _>(of.0);
    let facts: Value = rows::value::<Jsonb, Value, _>(connection, query)?;
    Ok(facts.as_object().into_iter().flatten().map(|(name, fact)| (name.clone(), fact.clone())).collect())
}

/// Adds to what is known about the account; what is known already costs no write.
pub fn learn(connection: &mut PgConnection, of: ConnectionId, facts: &Facts) -> Result<(), DbError> {
    let facts = serde_json::to_value(facts).map_err(|error| DbError::Row(error.to_string()))?;
    diesel::sql_query(
        "UPDATE connections SET facts = facts || $2 WHERE id = $1 AND facts IS DISTINCT FROM facts || $2",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Jsonb, _>(&facts)
    .execute(connection)?;
    Ok(())
}

/// Facts of these names are what a grant has taught, such as fields that it may not see: another grant may see them.
const OF_GRANT: &str = "learned.%";

/// There is a new grant: what the one before it has taught is forgotten.
pub fn forget_learned(connection: &mut PgConnection, of: ConnectionId) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE connections SET facts = facts - ARRAY(SELECT key FROM jsonb_object_keys(facts) key WHERE key LIKE $2) \
         WHERE id = $1",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Text, _>(OF_GRANT)
    .execute(connection)?;
    Ok(())
}

/// Notes that the walks which a request asks for have been made due.
pub fn mark_applied(
    connection: &mut PgConnection,
    request: uuid::Uuid,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    diesel::sql_query("UPDATE requests SET applied_at = $2 WHERE id = $1")
        .bind::<diesel::sql_types::Uuid, _>(request)
        .bind::<Timestamptz, _>(now)
        .execute(connection)?;
    Ok(())
}

/// An open `sync` request.
#[derive(Debug, Clone, QueryableByName)]
pub struct SyncRequest {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    pub id: uuid::Uuid,
    #[diesel(sql_type = Jsonb)]
    pub args: Value,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub applied_at: Option<DateTime<Utc>>,
}

/// The open `sync` requests of a connection, oldest first.
pub fn sync_requests(connection: &mut PgConnection, of: ConnectionId) -> Result<Vec<SyncRequest>, DbError> {
    Ok(diesel::sql_query(
        "SELECT id, args, applied_at FROM requests
         WHERE connection_id = $1 AND kind = $2 AND done_at IS NULL ORDER BY requested_at, id",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Text, _>("sync")
    .load(connection)?)
}
