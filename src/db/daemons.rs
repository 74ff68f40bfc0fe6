//! The daemons that share this database.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use std::time::Duration;
use uuid::Uuid;

use super::error::DbError;

/// A daemon that has not been seen for this long counts as gone, by the database's clock.
pub const DAEMON_LIVES: Duration = Duration::from_secs(15);

/// A daemon, as it registered itself.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct Daemon {
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    #[diesel(sql_type = Text)]
    pub host: String,
    #[diesel(sql_type = Integer)]
    pub pid: i32,
    #[diesel(sql_type = Text)]
    pub version: String,
    #[diesel(sql_type = Timestamptz)]
    pub last_seen_at: DateTime<Utc>,
    /// The vault key that it seals with; `None`: it does not say.
    #[diesel(sql_type = Nullable<Text>)]
    pub seals_with: Option<String>,
    /// All keys that it opens with.
    #[diesel(sql_type = Array<Text>)]
    pub opens_with: Vec<String>,
    /// The keys that its spills are sealed with; `None`: it has not looked yet.
    #[diesel(sql_type = Nullable<Array<Text>>)]
    pub spill_keys: Option<Vec<String>>,
}

/// A daemon that was not seen for longer has been away: suspended, or without the database.
const GAP_MAX: Duration = Duration::from_mins(1);

/// Puts this daemon on record, or says that it still lives.
pub fn beat(conn: &mut PgConnection, id: Uuid, host: &str, pid: i32, version: &str) -> Result<(), DbError> {
    sql_query(
        "INSERT INTO fieldmirror.daemons (id, host, pid, version) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (id) DO UPDATE SET last_seen_at = now(), steady_since = CASE \
             WHEN daemons.last_seen_at < now() - make_interval(secs => $5) THEN now() ELSE daemons.steady_since END",
    )
    .bind::<SqlUuid, _>(id)
    .bind::<Text, _>(host)
    .bind::<Integer, _>(pid)
    .bind::<Text, _>(version)
    .bind::<Double, _>(GAP_MAX.as_secs_f64())
    .execute(conn)?;
    Ok(())
}

/// Says which vault keys this daemon has: `seals_with` is among `opens_with`.
pub fn tell_keys(
    conn: &mut PgConnection,
    id: Uuid,
    seals_with: &str,
    opens_with: &[String],
) -> Result<(), DbError> {
    sql_query("UPDATE fieldmirror.daemons SET seals_with = $2, opens_with = $3 WHERE id = $1")
        .bind::<SqlUuid, _>(id)
        .bind::<Text, _>(seals_with)
        .bind::<Array<Text>, _>(opens_with)
        .execute(conn)?;
    Ok(())
}

/// A daemon's folder of spills, and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpillFolder {
    pub id: Option<Uuid>,
    pub fault: Option<String>,
    /// The ids of the vault keys that have sealed what is in it; `None` before it was looked at.
    pub keys: Option<Vec<String>>,
}

/// Puts on record how the daemon's folder of spills is doing.
pub fn tell_spills(conn: &mut PgConnection, id: Uuid, spills: &SpillFolder) -> Result<(), DbError> {
    sql_query("UPDATE fieldmirror.daemons SET spills = $2, spill_fault = $3, spill_keys = $4 WHERE id = $1")
        .bind::<SqlUuid, _>(id)
        .bind::<Nullable<SqlUuid>, _>(spills.id)
        .bind::<Nullable<Text>, _>(spills.fault.as_deref())
        .bind::<Nullable<Array<Text>>, _>(spills.keys.as_deref())
        .execute(conn)?;
    Ok(())
}

/// Takes this daemon off the record: it stops in order.
pub fn remove(conn: &mut PgConnection, id: Uuid) -> Result<(), DbError> {
    sql_query("DELETE FROM fieldmirror.daemons WHERE id = $1").bind::<SqlUuid, _>(id).execute(conn)?;
    Ok(())
}

/// Daemons seen within `window`, by the database's clock.
pub fn live(conn: &mut PgConnection, window: Duration) -> Result<Vec<Daemon>, DbError> {
    Ok(sql_query(
        "SELECT id, host, pid, version, last_seen_at, seals_with, coalesce(opens_with, '{}') AS opens_with, spill_keys \
         FROM fieldmirror.daemons \
         WHERE last_seen_at > now() - make_interval(secs => $1) ORDER BY started_at",
    )
    .bind::<Double, _>(window.as_secs_f64())
    .load(conn)?)
}

/// The last daemon of each folder of spills where none has been seen within `window`: what lies there is sealed as it said.
pub fn silent(conn: &mut PgConnection, window: Duration) -> Result<Vec<Daemon>, DbError> {
    Ok(sql_query(
        "SELECT * FROM (SELECT DISTINCT ON (coalesce(spills::text, host)) id, host, pid, version, last_seen_at, seals_with, \
             coalesce(opens_with, '{}') AS opens_with, spill_keys \
         FROM fieldmirror.daemons ORDER BY coalesce(spills::text, host), last_seen_at DESC) d \
         WHERE last_seen_at <= now() - make_interval(secs => $1) ORDER BY host",
    )
    .bind::<Double, _>(window.as_secs_f64())
    .load(conn)?)
}

/// Removes daemons that have not been seen for `window`. Returns how many.
pub fn forget_lost(conn: &mut PgConnection, window: Duration) -> Result<usize, DbError> {
    Ok(sql_query("DELETE FROM fieldmirror.daemons WHERE last_seen_at < now() - make_interval(secs => $1)")
        .bind::<Double, _>(window.as_secs_f64())
        .execute(conn)?)
}
