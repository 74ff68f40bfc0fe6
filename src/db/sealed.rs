//! Every column that holds values sealed with a vault key, in one place: what `key status` counts and `key rotate` seals
//! anew. A column that is added to the schema is added to [`SealedColumn::ALL`]; a test asks the catalogue.
//!
//! Boxes in `requests` are sealed to the public half of a key instead, and only as long as their request is open.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bytea, Text, Uuid as SqlUuid};
use uuid::Uuid;

use super::error::DbError;
use crate::domain::ids::ConnectionId;

/// A column that holds sealed values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SealedColumn {
    Access,
    Refresh,
    Secret,
    Verifier,
}

impl SealedColumn {
    pub const ALL: [Self; 4] = [Self::Access, Self::Refresh, Self::Secret, Self::Verifier];

    pub fn table(self) -> &'static str {
        match self {
            Self::Access | Self::Refresh => "tokens",
            Self::Secret => "secrets",
            Self::Verifier => "authorization_attempts",
        }
    }

    pub fn column(self) -> &'static str {
        match self {
            Self::Access => "access_sealed",
            Self::Refresh => "refresh_sealed",
            Self::Secret => "sealed",
            Self::Verifier => "verifier_sealed",
        }
    }

    /// Its values with what they are bound to: connection, grant, and the name that tells them from others of both.
    pub(super) fn values(self) -> &'static str {
        match self {
            Self::Access => {
                "SELECT connection_id, grant_id, '' AS name, access_sealed AS sealed FROM fieldmirror.tokens"
            }
            Self::Refresh => {
                "SELECT connection_id, grant_id, '' AS name, refresh_sealed AS sealed FROM fieldmirror.tokens \
                 WHERE refresh_sealed IS NOT NULL"
            }
            Self::Secret => "SELECT connection_id, grant_id, name, sealed FROM fieldmirror.secrets",
            Self::Verifier => {
                "SELECT a.connection_id, t.id AS grant_id, t.id::text AS name, t.verifier_sealed AS sealed \
                 FROM fieldmirror.authorization_attempts t \
                 JOIN fieldmirror.authorizations a ON a.id = t.authorization_id WHERE t.verifier_sealed IS NOT NULL"
            }
        }
    }

    /// Puts `$5` in the place of `$4` in the row of connection `$1`, grant `$2` and name `$3`.
    fn swap(self) -> &'static str {
        match self {
            Self::Access => {
                "UPDATE fieldmirror.tokens SET access_sealed = $5 \
                 WHERE connection_id = $1 AND grant_id = $2 AND $3 = '' AND access_sealed = $4"
            }
            Self::Refresh => {
                "UPDATE fieldmirror.tokens SET refresh_sealed = $5 \
                 WHERE connection_id = $1 AND grant_id = $2 AND $3 = '' AND refresh_sealed = $4"
            }
            Self::Secret => {
                "UPDATE fieldmirror.secrets SET sealed = $5 \
                 WHERE connection_id = $1 AND grant_id = $2 AND name = $3 AND sealed = $4"
            }
            Self::Verifier => {
                "UPDATE fieldmirror.authorization_attempts t SET verifier_sealed = $5 \
                 FROM fieldmirror.authorizations a WHERE a.id = t.authorization_id AND a.connection_id = $1 \
                 AND t.id = $2 AND t.id::text = $3 AND t.verifier_sealed = $4"
            }
        }
    }
}

// Byte 0 is the layout's version, byte 1 the length of the key id, which follows. Only ids of that shape are shown: hex
// digits, nothing else.
/// The id of the key that sealed `sealed`; null when it is not of the shape that the vault writes.
pub(super) const KEY_ID: &str = "CASE WHEN length(sealed) > 2 AND get_byte(sealed, 0) = 1 \
     THEN substring(encode(substring(sealed FROM 3 FOR get_byte(sealed, 1)), 'escape') FROM '^[0-9a-f]+$') END";

/// A sealed value, with what it is bound to.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct SealedValue {
    #[diesel(sql_type = BigInt)]
    connection_id: i64,
    #[diesel(sql_type = SqlUuid)]
    pub grant: Uuid,
    /// Of a secret: what it is called. Of others it only tells rows apart.
    #[diesel(sql_type = Text)]
    pub name: String,
    #[diesel(sql_type = Bytea)]
    pub sealed: Vec<u8>,
}

impl SealedValue {
    pub fn connection(&self) -> ConnectionId {
        ConnectionId(self.connection_id)
    }

    /// Where the next page begins.
    pub fn place(&self) -> (i64, String) {
        (self.connection_id, self.name.clone())
    }
}

/// The transaction's commit does not wait for the disk.
pub fn unhurried(conn: &mut PgConnection) -> Result<(), DbError> {
    sql_query("SET LOCAL synchronous_commit = off").execute(conn)?;
    Ok(())
}

/// Values of a column that another key than `key_id` has sealed, behind `after`, in the order of connections.
pub fn not_by(
    conn: &mut PgConnection,
    column: SealedColumn,
    key_id: &str,
    after: &(i64, String),
    limit: u32,
) -> Result<Vec<SealedValue>, DbError> {
    let query = format!(
        "SELECT connection_id, grant_id AS grant, name, sealed FROM ({}) v \
         WHERE ({KEY_ID}) IS DISTINCT FROM $1 AND (connection_id, name) > ($2, $3) \
         ORDER BY connection_id, name LIMIT $4",
        column.values()
    );
    Ok(sql_query(query)
        .bind::<Text, _>(key_id)
        .bind::<BigInt, _>(after.0)
        .bind::<Text, _>(&after.1)
        .bind::<BigInt, _>(i64::from(limit))
        .load(conn)?)
}

/// Puts the same value, sealed anew, in the place of the old one. False: the row has moved on, and is left alone.
pub fn swap(
    conn: &mut PgConnection,
    column: SealedColumn,
    old: &SealedValue,
    new: &[u8],
) -> Result<bool, DbError> {
    let swapped = sql_query(column.swap())
        .bind::<BigInt, _>(old.connection_id)
        .bind::<SqlUuid, _>(old.grant)
        .bind::<Text, _>(&old.name)
        .bind::<Bytea, _>(&old.sealed)
        .bind::<Bytea, _>(new)
        .execute(conn)?;
    Ok(swapped == 1)
}

/// What an admin handed over with a request, sealed to a public key.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct SealedBox {
    #[diesel(sql_type = SqlUuid)]
    pub request: Uuid,
    #[diesel(sql_type = Bytea)]
    pub sealed: Vec<u8>,
}

/// The boxes that are kept: of open requests, and of those that a consent may still need.
pub fn boxes(conn: &mut PgConnection, limit: u32) -> Result<Vec<SealedBox>, DbError> {
    let query = "SELECT id AS request, sealed FROM fieldmirror.requests \
         WHERE sealed IS NOT NULL ORDER BY id LIMIT $1";
    Ok(sql_query(query).bind::<BigInt, _>(i64::from(limit)).load(conn)?)
}

/// Puts a box that key `key_id` opens in the place of the old one. False: the request has another, or none any more.
pub fn swap_box(conn: &mut PgConnection, old: &SealedBox, new: &[u8], key_id: &str) -> Result<bool, DbError> {
    let swapped = sql_query(
        "UPDATE fieldmirror.requests SET sealed = $3, sealed_to = $4 WHERE id = $1 AND sealed = $2",
    )
    .bind::<SqlUuid, _>(old.request)
    .bind::<Bytea, _>(&old.sealed)
    .bind::<Bytea, _>(new)
    .bind::<Text, _>(key_id)
    .execute(conn)?;
    Ok(swapped == 1)
}
