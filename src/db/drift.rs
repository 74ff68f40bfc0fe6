//! What came and was not foreseen: `mirror.drift`, and what is known of the fields of each stream.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Double, Jsonb, Nullable, Text};
use serde_json::Value;

use super::error::DbError;
use super::streams::StreamKey;
use crate::domain::drift::{Drift, DriftKind};

/// Rows of one kind that a stream may have: of what is beyond them, the known ones are counted on and no new ones listed.
pub const LISTED_MAX: i64 = 50;

/// How often, and in which record among others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub drift: Drift,
    pub count: u64,
    pub record_id: String,
}

/// What is known of a stream's fields.
#[derive(Debug, Clone, QueryableByName)]
pub struct Fields {
    /// Something is read for the first time: all there is, the archived records, or what has changed since.
    #[diesel(sql_type = Bool)]
    pub learning: bool,
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub known: Option<Value>,
}

/// The caller holds the stream's row locked.
pub fn fields(connection: &mut PgConnection, key: StreamKey) -> Result<Fields, DbError> {
    Ok(diesel::sql_query(
        "SELECT NOT s.backfill_done OR EXISTS (SELECT FROM walks w
                    WHERE (w.connection_id, w.stream, w.partition) = (s.connection_id, s.stream, s.partition)
                      AND w.mode <> 'sweep' AND w.closed_at IS NULL) AS learning,
                f.known
         FROM stream_state s LEFT JOIN stream_fields f USING (connection_id, stream, partition)
         WHERE s.connection_id = $1 AND s.stream = $2 AND s.partition = ''",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .get_result(connection)?)
}

pub fn save_fields(connection: &mut PgConnection, key: StreamKey, known: &Value) -> Result<(), DbError> {
    diesel::sql_query(
        "INSERT INTO stream_fields (connection_id, stream, known) VALUES ($1, $2, $3)
         ON CONFLICT (connection_id, stream, partition) DO UPDATE SET known = excluded.known",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Jsonb, _>(known)
    .execute(connection)?;
    Ok(())
}

/// Lists what was found, each kind, field and word once; what is listed already is counted on.
pub fn list(connection: &mut PgConnection, key: StreamKey, found: &[Found], run: i64) -> Result<(), DbError> {
    if found.is_empty() {
        return Ok(());
    }
    let texts = |of: fn(&Drift) -> &str| found.iter().map(|one| of(&one.drift)).collect::<Vec<_>>();
    let maybe = |of: fn(&Drift) -> Option<&str>| found.iter().map(|one| of(&one.drift)).collect::<Vec<_>>();
    let counts: Vec<i64> = found.iter().map(|one| i64::try_from(one.count).unwrap_or(i64::MAX)).collect();
    let records: Vec<&str> = found.iter().map(|one| one.record_id.as_str()).collect();
    diesel::sql_query(
        "INSERT INTO mirror.drift AS listed
             (connection_id, stream, kind, field, column_name, value, count, example, record_id, sync_run_id)
         SELECT $1, $2, found.kind, found.field, found.column_name, found.value, found.count, found.example,
                found.record_id, $3
         FROM (SELECT f.*, row_number() OVER (PARTITION BY f.kind ORDER BY f.count DESC, f.field, f.value) AS place
               FROM unnest($4, $5, $6, $7, $8, $9, $10)
                   AS f (kind, field, column_name, value, count, example, record_id)) found
         WHERE EXISTS (SELECT FROM mirror.drift d WHERE (d.connection_id, d.stream, d.kind, d.field, d.value)
                           = ($1, $2, found.kind, found.field, found.value))
            OR found.place + (SELECT count(*) FROM mirror.drift d
                              WHERE (d.connection_id, d.stream, d.kind) = ($1, $2, found.kind)) <= $11
         ON CONFLICT (connection_id, stream, kind, field, value) DO UPDATE
         SET last_seen_at = excluded.last_seen_at, example = excluded.example, record_id = excluded.record_id,
             sync_run_id = excluded.sync_run_id,
             count = CASE WHEN listed.kind = 'vanished_field' THEN 0 ELSE listed.count END + excluded.count",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<BigInt, _>(run)
    .bind::<Array<Text>, _>(texts(|drift| drift.kind.as_str()))
    .bind::<Array<Text>, _>(texts(|drift| &drift.field))
    .bind::<Array<Nullable<Text>>, _>(maybe(|drift| drift.column))
    .bind::<Array<Text>, _>(texts(|drift| &drift.value))
    .bind::<Array<BigInt>, _>(counts)
    .bind::<Array<Nullable<Text>>, _>(maybe(|drift| drift.example.as_deref()))
    .bind::<Array<Text>, _>(records)
    .bind::<BigInt, _>(LISTED_MAX)
    .execute(connection)?;
    Ok(())
}

/// Takes off the list what had vanished and is back.
pub fn returned(connection: &mut PgConnection, key: StreamKey, fields: &[String]) -> Result<(), DbError> {
    if fields.is_empty() {
        return Ok(());
    }
    diesel::sql_query(
        "DELETE FROM mirror.drift WHERE connection_id = $1 AND stream = $2 AND kind = $3 AND field = ANY ($4)",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Text, _>(DriftKind::VanishedField.as_str())
    .bind::<Array<Text>, _>(fields)
    .execute(connection)?;
    Ok(())
}

/// Deletes what has not been seen for `kept`.
pub fn prune(connection: &mut PgConnection, kept: Duration) -> Result<usize, DbError> {
    Ok(diesel::sql_query("DELETE FROM mirror.drift WHERE last_seen_at < now() - make_interval(secs => $1)")
        .bind::<Double, _>(kept.as_secs_f64())
        .execute(connection)?)
}
