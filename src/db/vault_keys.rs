//! The public keys that commands seal secrets and pasted codes to.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Bytea, Text};

use super::error::DbError;
use super::rows;

/// Publishes the public half of the active vault key. It becomes the latest one, even when it was published before; where
/// it is the latest already, that stays as it is. Returns whether this was news.
pub fn publish(conn: &mut PgConnection, key_id: &str, public_key: &[u8; 32]) -> Result<bool, DbError> {
    let published = sql_query(
        "INSERT INTO fieldmirror.vault_keys (key_id, public_key) VALUES ($1, $2) \
         ON CONFLICT (key_id) DO UPDATE SET public_key = excluded.public_key, published_at = now() \
         WHERE vault_keys.published_at < (SELECT max(published_at) FROM fieldmirror.vault_keys)",
    )
    .bind::<Text, _>(key_id)
    .bind::<Bytea, _>(public_key.as_slice())
    .execute(conn)?;
    Ok(published > 0)
}

/// The id of the key whose public half is published; `None` before the first daemon has run.
pub fn latest_id(conn: &mut PgConnection) -> Result<Option<String>, DbError> {
    let query =
        sql_query("SELECT key_id AS value FROM fieldmirror.vault_keys ORDER BY published_at DESC LIMIT 1");
    rows::optional::<Text, String, _>(conn, query)
}

/// The public key to seal to; `None` before the first daemon has run.
pub fn latest(conn: &mut PgConnection) -> Result<Option<[u8; 32]>, DbError> {
    let query = sql_query(
        "SELECT public_key AS value FROM fieldmirror.vault_keys ORDER BY published_at DESC LIMIT 1",
    );
    let key = rows::optional::<Bytea, Vec<u8>, _>(conn, query)?;
    key.map(|key| {
        <[u8; 32]>::try_from(key).map_err(|_| DbError::Row("a vault key of another length".to_owned()))
    })
    .transpose()
}

/// Takes all others off the record: nothing is to be sealed to them any more.
pub fn withdraw_others(conn: &mut PgConnection, key_id: &str) -> Result<(), DbError> {
    sql_query("DELETE FROM fieldmirror.vault_keys WHERE key_id <> $1")
        .bind::<Text, _>(key_id)
        .execute(conn)?;
    Ok(())
}
