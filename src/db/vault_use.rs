//! Which vault keys have sealed what is stored. The key's id stands in clear at the head of every sealed value, so this
//! needs no key: `key status` shows it, and a rotation proves by it that an old key is no longer used.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz};

use super::error::DbError;

/// The tables that hold sealed values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SealedIn {
    Tokens,
    Secrets,
    AuthorizationAttempts,
}

impl SealedIn {
    pub const ALL: [Self; 3] = [Self::Tokens, Self::Secrets, Self::AuthorizationAttempts];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Secrets => "secrets",
            Self::AuthorizationAttempts => "authorization_attempts",
        }
    }

    pub fn heading(self) -> &'static str {
        match self {
            Self::Tokens => "TOKENS",
            Self::Secrets => "SECRETS",
            Self::AuthorizationAttempts => "CONSENTS",
        }
    }
}

/// A vault key, and what it has sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    /// `None`: values that are not of the shape that the vault writes.
    pub key_id: Option<String>,
    /// The latest that was published: what commands seal to.
    pub active: bool,
    pub published_at: Option<DateTime<Utc>>,
    pub counts: Vec<(SealedIn, i64)>,
}

impl KeyUse {
    /// How many values in that table it has sealed.
    pub fn sealed(&self, place: SealedIn) -> i64 {
        self.counts.iter().filter(|(other, _)| *other == place).map(|(_, count)| count).sum()
    }
}

#[derive(QueryableByName)]
struct Published {
    #[diesel(sql_type = Text)]
    key_id: String,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
    #[diesel(sql_type = Bool)]
    active: bool,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = Text)]
    place: String,
    #[diesel(sql_type = Nullable<Text>)]
    key_id: Option<String>,
    #[diesel(sql_type = BigInt)]
    sealed: i64,
}

// Byte 0 is the layout's version, byte 1 the length of the key id, which follows. Only ids of that shape are shown: hex
// digits, nothing else.
const COUNT: &str = "
    WITH sealed (place, value) AS (
        SELECT 'tokens', access_sealed FROM fieldmirror.tokens
        UNION ALL SELECT 'tokens', refresh_sealed FROM fieldmirror.tokens WHERE refresh_sealed IS NOT NULL
        UNION ALL SELECT 'secrets', sealed FROM fieldmirror.secrets
        UNION ALL SELECT 'authorization_attempts', verifier_sealed FROM fieldmirror.authorization_attempts
            WHERE verifier_sealed IS NOT NULL
    ), headed (place, id) AS (
        SELECT place, CASE WHEN length(value) > 2 AND get_byte(value, 0) = 1
            THEN encode(substring(value FROM 3 FOR get_byte(value, 1)), 'escape') END
        FROM sealed
    )
    SELECT place, CASE WHEN id ~ '^[0-9a-f]+$' THEN id END AS key_id, count(*) AS sealed FROM headed GROUP BY 1, 2";

/// Every key that was published or has sealed something: the active one first, then by publication, newest first.
pub fn keys(conn: &mut PgConnection) -> Result<Vec<KeyUse>, DbError> {
    let published: Vec<Published> = sql_query(
        "SELECT key_id, published_at AS at, rank() OVER (ORDER BY published_at DESC) = 1 AS active \
         FROM fieldmirror.vault_keys ORDER BY published_at DESC",
    )
    .load(conn)?;
    let mut keys: Vec<KeyUse> = published
        .into_iter()
        .map(|row| KeyUse {
            key_id: Some(row.key_id),
            active: row.active,
            published_at: Some(row.at),
            counts: Vec::new(),
        })
        .collect();
    let mut counts: BTreeMap<Option<String>, Vec<(SealedIn, i64)>> = BTreeMap::new();
    for row in sql_query(COUNT).load::<Count>(conn)? {
        let place = SealedIn::ALL.into_iter().find(|place| place.as_str() == row.place);
        let place = place.ok_or_else(|| DbError::Row(format!("sealed values in `{}`", row.place)))?;
        counts.entry(row.key_id).or_default().push((place, row.sealed));
    }
    for key in &mut keys {
        key.counts = counts.remove(&key.key_id).unwrap_or_default();
    }
    let others = counts.into_iter();
    keys.extend(others.map(|(key_id, counts)| KeyUse { key_id, active: false, published_at: None, counts }));
    Ok(keys)
}
