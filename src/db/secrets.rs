//! What an admin handed over for a connection (API keys, client secrets), by name. Values arrive and leave sealed.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bytea, Text, Uuid as SqlUuid};
use uuid::Uuid;

use super::error::DbError;
use crate::domain::ids::ConnectionId;

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
pub fn replace(conn: &mut PgConnection, id: ConnectionId, secrets: &[SealedSecret]) -> Result<(), DbError> {
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
pub fn list(conn: &mut PgConnection, id: ConnectionId) -> Result<Vec<SealedSecret>, DbError> {
    Ok(sql_query("SELECT name, grant_id, sealed FROM fieldmirror.secrets WHERE connection_id = $1")
        .bind::<BigInt, _>(id.0)
        .load(conn)?)
}
