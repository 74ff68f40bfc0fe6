//! Which vault keys are in use: by what is stored, by what waits, and by the daemons that live. A key's id stands in
//! clear at the head of every sealed value, so this needs no key: `key status` shows it, and a rotation proves by it that
//! an old key is no longer used.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz};

use super::daemons::{self, Daemon};
use super::error::DbError;
use super::sealed::{KEY_ID, SealedColumn};

/// The tables that hold sealed values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SealedIn {
    Tokens,
    Secrets,
    AuthorizationAttempts,
    /// What came with requests that are still open, or that a consent may still need.
    Requests,
}

impl SealedIn {
    pub const ALL: [Self; 4] = [Self::Tokens, Self::Secrets, Self::AuthorizationAttempts, Self::Requests];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Secrets => "secrets",
            Self::AuthorizationAttempts => "authorization_attempts",
            Self::Requests => "requests",
        }
    }

    pub fn heading(self) -> &'static str {
        match self {
            Self::Tokens => "TOKENS",
            Self::Secrets => "SECRETS",
            Self::AuthorizationAttempts => "CONSENTS",
            Self::Requests => "REQUESTS",
        }
    }
}

/// A vault key, and what it has sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    /// `None`: values that are not of the shape that the vault writes, or whose key was not noted.
    pub key_id: Option<String>,
    /// The latest that was published: what commands seal to.
    pub active: bool,
    pub published_at: Option<DateTime<Utc>>,
    pub counts: Vec<(SealedIn, i64)>,
    /// Names of connections with values that it has sealed, the first few of them; empty for the active one.
    pub connections: Vec<String>,
}

impl KeyUse {
    /// How many values in that table it has sealed.
    pub fn sealed(&self, place: SealedIn) -> i64 {
        self.counts.iter().filter(|(other, _)| *other == place).map(|(_, count)| count).sum()
    }

    pub fn total(&self) -> i64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }
}

/// All keys, and what besides sealed values may need one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysInUse {
    /// The active one first, then by publication, newest first.
    pub keys: Vec<KeyUse>,
    pub daemons: Vec<Daemon>,
    /// Of hosts where none lives.
    pub silent: Vec<Daemon>,
    /// Until when a start link is good that was made before the active key was published: an older key vouches for it.
    pub links_until: Option<DateTime<Utc>>,
}

impl KeysInUse {
    /// Why the file of a key must stay; empty: nothing needs it any more.
    pub fn needs(&self, key: &KeyUse) -> Vec<String> {
        let mut needs = Vec::new();
        let Some(id) = key.key_id.as_deref() else { return needs };
        if key.total() > 0 {
            let remedy = if key.active { "" } else { ", which `fieldmirror key rotate` changes" };
            needs.push(format!("{} values are sealed with it{remedy}", key.total()));
        }
        let hosts: BTreeSet<&str> = self
            .daemons
            .iter()
            .filter(|daemon| daemon.seals_with.as_deref() == Some(id))
            .map(|daemon| daemon.host.as_str())
            .collect();
        needs.extend(hosts.iter().map(|host| format!("the daemon on `{host}` seals with it")));
        let daemons = self.daemons.iter().chain(&self.silent);
        let kept = daemons.filter(|daemon| daemon.spill_keys.iter().flatten().any(|key| key == id));
        let kept: BTreeSet<&str> = kept.map(|daemon| daemon.host.as_str()).collect();
        needs.extend(kept.iter().map(|host| format!("replies kept on `{host}` are sealed with it")));
        if key.active && hosts.is_empty() {
            needs.push("commands seal to it".to_owned());
        }
        if let Some(until) = self.links_until.filter(|_| !key.active) {
            let until = until.format("%Y-%m-%d %H:%M UTC");
            needs.push(format!("start links that it may vouch for are good until {until}"));
        }
        needs
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

#[derive(QueryableByName)]
struct UsedFor {
    #[diesel(sql_type = Nullable<Text>)]
    key_id: Option<String>,
    #[diesel(sql_type = Text)]
    name: String,
}

/// Names of connections that are told of a key.
const NAMES_MAX: i64 = 20;

/// Every sealed value there is, with its table and the id of its key.
fn all_values() -> String {
    let columns = SealedColumn::ALL.map(|column| {
        let (table, values) = (column.table(), column.values());
        format!("SELECT '{table}' AS place, connection_id, {KEY_ID} AS key_id FROM ({values}) v")
    });
    columns.join(" UNION ALL ")
        + " UNION ALL SELECT 'requests', connection_id, sealed_to FROM fieldmirror.requests \
           WHERE sealed IS NOT NULL"
}

/// Every key that was published, has sealed something, or that a daemon seen within `window` has.
pub fn keys(conn: &mut PgConnection, window: Duration) -> Result<KeysInUse, DbError> {
    let mut keys: Vec<KeyUse> =
        published(conn)?.into_iter().map(|row| key_use(Some(row.key_id), row.active, Some(row.at))).collect();
    let daemons = daemons::live(conn, window)?;
    let counts = counts(conn)?;
    let held = daemons.iter().flat_map(|daemon| &daemon.opens_with).map(|id| Some(id.clone()));
    for key_id in counts.keys().cloned().chain(held).collect::<BTreeSet<_>>() {
        if keys.iter().all(|key| key.key_id != key_id) {
            keys.push(key_use(key_id, false, None));
        }
    }
    let named = named(conn, keys.iter().find(|key| key.active).and_then(|key| key.key_id.as_deref()))?;
    for key in &mut keys {
        key.counts = counts.get(&key.key_id).cloned().unwrap_or_default();
        let of = named.iter().filter(|used| used.key_id == key.key_id);
        key.connections = of.map(|used| used.name.clone()).collect();
    }
    Ok(KeysInUse { keys, daemons, silent: daemons::silent(conn, window)?, links_until: links_until(conn)? })
}

fn key_use(key_id: Option<String>, active: bool, published_at: Option<DateTime<Utc>>) -> KeyUse {
    KeyUse { key_id, active, published_at, counts: Vec::new(), connections: Vec::new() }
}

fn published(conn: &mut PgConnection) -> Result<Vec<Published>, DbError> {
    let query = "SELECT key_id, published_at AS at, rank() OVER (ORDER BY published_at DESC) = 1 AS active \
         FROM fieldmirror.vault_keys ORDER BY published_at DESC";
    Ok(sql_query(query).load(conn)?)
}

/// Of each key, how many values it has sealed in which table. `None`: as [`KeyUse::key_id`].
pub type Counts = BTreeMap<Option<String>, Vec<(SealedIn, i64)>>;

/// How many values each key has sealed, by table.
pub fn counts(conn: &mut PgConnection) -> Result<Counts, DbError> {
    let query = format!(
        "SELECT place, key_id, count(*) AS sealed FROM ({}) v GROUP BY 1, 2 ORDER BY 1",
        all_values()
    );
    let mut counts = Counts::new();
    for row in sql_query(query).load::<Count>(conn)? {
        let place = SealedIn::ALL.into_iter().find(|place| place.as_str() == row.place);
        let place = place.ok_or_else(|| DbError::Row(format!("sealed values in `{}`", row.place)))?;
        counts.entry(row.key_id).or_default().push((place, row.sealed));
    }
    Ok(counts)
}

/// Connections that other keys than the active one are used for.
fn named(conn: &mut PgConnection, active: Option<&str>) -> Result<Vec<UsedFor>, DbError> {
    let query = format!(
        "SELECT key_id, name FROM (SELECT v.key_id, c.name, row_number() OVER (PARTITION BY v.key_id ORDER BY c.name) AS place \
             FROM (SELECT DISTINCT connection_id, key_id FROM ({}) v WHERE key_id IS DISTINCT FROM $1) v \
             JOIN fieldmirror.connections c ON c.id = v.connection_id) n \
         WHERE place <= $2 ORDER BY name",
        all_values()
    );
    Ok(sql_query(query).bind::<Nullable<Text>, _>(active).bind::<BigInt, _>(NAMES_MAX).load(conn)?)
}

/// Until when the last start link is good that was made before the active key was published.
fn links_until(conn: &mut PgConnection) -> Result<Option<DateTime<Utc>>, DbError> {
    let query = sql_query(
        "SELECT max(expires_at) AS value FROM fieldmirror.authorizations WHERE closed_at IS NULL AND expires_at > now() \
         AND created_at < (SELECT max(published_at) FROM fieldmirror.vault_keys)",
    );
    super::rows::value::<Nullable<Timestamptz>, Option<DateTime<Utc>>, _>(conn, query)
}
