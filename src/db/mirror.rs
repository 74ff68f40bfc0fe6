//! Rows of the mirror: what is held, and writing a page by COPY.
//!
//! Which version wins is not decided here (`sync::merge` does); these functions write what they are told. The caller
//! holds the stream's row locked, so nobody else writes the same rows meanwhile.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Nullable, Text, Timestamptz};

use super::copy;
use super::error::DbError;
use super::rows;
use crate::domain::ids::ConnectionId;
use crate::domain::record::Tombstone;
use crate::domain::spec::{Mode, StreamSpec};

/// What the mirror holds of a record, as far as deciding between versions goes.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
pub struct Held {
    #[diesel(sql_type = Text)]
    pub id: String,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub source_updated_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Timestamptz)]
    pub synced_at: DateTime<Utc>,
    #[diesel(sql_type = Binary)]
    pub content_hash: Vec<u8>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub deleted_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    pub merged: bool,
    /// The run that wrote it last.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub sync_run_id: Option<i64>,
}

/// A row to be written: a version that won.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub id: String,
    pub source_created_at: Option<DateTime<Utc>>,
    pub source_updated_at: Option<DateTime<Utc>>,
    /// JSON text without U+0000.
    pub raw: String,
    pub content_hash: [u8; 32],
    pub synced_at: DateTime<Utc>,
    pub deleted_at: Option<DateTime<Utc>>,
    pub deleted_evidence: Option<String>,
    /// One for each column of the stream's spec, as text that its type reads; arrays as Postgres array literals.
    pub cells: Vec<Option<String>>,
}

/// What the mirror holds of these records.
pub fn held(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    ids: &[&str],
) -> Result<HashMap<String, Held>, DbError> {
    let merged = if stream.merges { "merged_into IS NOT NULL" } else { "false" };
    // One look into the primary key for each id: of a table that is growing, statistics know too little to tell that
    // reading all rows of the connection takes longer.
    let query = format!(
        "SELECT row.* FROM unnest($2) AS asked (id) CROSS JOIN LATERAL (
             SELECT id, source_updated_at, synced_at, content_hash, deleted_at, {merged} AS merged, sync_run_id
             FROM mirror.{} WHERE connection_id = $1 AND id = asked.id LIMIT 1
         ) AS row",
        stream.table
    );
    let found: Vec<Held> =
        diesel::sql_query(query).bind::<BigInt, _>(of.0).bind::<Array<Text>, _>(ids).load(connection)?;
    Ok(found.into_iter().map(|row| (row.id.clone(), row)).collect())
}

/// The records that the mirror holds of these ids, as JSON text.
pub fn raws(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    ids: &[String],
) -> Result<HashMap<String, String>, DbError> {
    let query = format!(
        "SELECT id, raw::text AS raw FROM mirror.{} WHERE connection_id = $1 AND id = ANY ($2)",
        stream.table
    );
    let found: Vec<Whole> =
        diesel::sql_query(query).bind::<BigInt, _>(of.0).bind::<Array<Text>, _>(ids).load(connection)?;
    Ok(found.into_iter().map(|row| (row.id, row.raw)).collect())
}

#[derive(QueryableByName)]
struct Whole {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    raw: String,
}

/// What a row was that made room for a newer version.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
pub struct Replaced {
    #[diesel(sql_type = Timestamptz)]
    pub first_seen_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub source_updated_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub deleted_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    pub deleted_evidence: Option<String>,
    /// JSON text; empty where it was not asked for.
    #[diesel(sql_type = Text)]
    pub raw: String,
}

/// Writes rows, each id once: those of `replaced` are held and make room. Returns what they were, `with_raw` or without.
///
/// The names of the columns come from the stream's description, so no stream needs a table or a statement of its own. A
/// value goes to the server as text once and is stored (and compressed) once.
pub fn write(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    rows: &[Row],
    replaced: &[&str],
    with_raw: bool,
    run: i64,
) -> Result<HashMap<String, Replaced>, DbError> {
    if rows.is_empty() {
        return Ok(HashMap::new());
    }
    let replaced = make_room(connection, stream, of, replaced, with_raw)?;
    let (of, run) = (of.to_string(), run.to_string());
    copy::copy(connection, copy_target(stream), rows, |line, row| {
        let first_seen_at = replaced.get(&row.id).map_or(row.synced_at, |was| was.first_seen_at);
        line.field(Some(&of));
        line.field(Some(&run));
        line.field(Some(&row.id));
        line.field(Some(&row.raw));
        line.bytes(&row.content_hash);
        line.time(Some(first_seen_at));
        line.time(Some(row.synced_at));
        line.time(row.source_created_at);
        line.time(row.source_updated_at);
        line.time(row.deleted_at);
        line.field(row.deleted_evidence.as_deref());
        for cell in &row.cells {
            line.field(cell.as_deref());
        }
    })?;
    Ok(replaced)
}

/// The columns of every table that [`write()`] fills, in its order; the stream's own come after them.
const BASE_COLUMNS: &str = "connection_id, sync_run_id, id, raw, content_hash, first_seen_at, synced_at, \
     source_created_at, source_updated_at, deleted_at, deleted_evidence";

fn copy_target(stream: &StreamSpec) -> String {
    let own: String = stream.columns.iter().flat_map(|column| [", ", column.name]).collect();
    format!("mirror.{} ({BASE_COLUMNS}{own})", stream.table)
}

/// Removes what is held of these records, and tells what it was: COPY only adds. Nobody sees the gap, as it is filled in
/// the same transaction; and an update would leave no less behind in the table.
fn make_room(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    ids: &[&str],
    with_raw: bool,
) -> Result<HashMap<String, Replaced>, DbError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let raw = if with_raw { "raw::text" } else { "''" };
    let query = format!(
        "DELETE FROM mirror.{} WHERE connection_id = $1 AND id = ANY ($2)
         RETURNING id, first_seen_at, source_updated_at, deleted_at, deleted_evidence, {raw} AS raw",
        stream.table
    );
    let removed: Vec<Removed> =
        diesel::sql_query(query).bind::<BigInt, _>(of.0).bind::<Array<Text>, _>(ids).load(connection)?;
    Ok(removed.into_iter().map(|row| (row.id, row.was)).collect())
}

#[derive(QueryableByName)]
struct Removed {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(embed)]
    was: Replaced,
}

/// Marks rows as gone, since the time that is known or that the provider tells; they keep what they last held.
pub fn bury(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    tombstones: &[Tombstone],
    run: i64,
) -> Result<(), DbError> {
    if tombstones.is_empty() {
        return Ok(());
    }
    let merged =
        if stream.merges { ", merged_into = coalesce(gone.merged_into, row.merged_into)" } else { "" };
    let query = format!(
        "UPDATE mirror.{} row
         SET deleted_at = CASE WHEN gone.told THEN gone.deleted_at ELSE coalesce(row.deleted_at, gone.deleted_at) END,
             deleted_evidence = gone.evidence,
             synced_at = gone.synced_at, sync_run_id = $2{merged}
         FROM unnest($3, $4, $5, $6, $7, $8) AS gone (id, deleted_at, evidence, synced_at, merged_into, told)
         WHERE row.connection_id = $1 AND row.id = gone.id",
        stream.table
    );
    let texts = |of: fn(&Tombstone) -> &str| tombstones.iter().map(of).collect::<Vec<_>>();
    let merged_into: Vec<Option<&str>> = tombstones.iter().map(|t| t.merged_into.as_deref()).collect();
    diesel::sql_query(query)
        .bind::<BigInt, _>(of.0)
        .bind::<BigInt, _>(run)
        .bind::<Array<Text>, _>(texts(|t| &t.id))
        .bind::<Array<Timestamptz>, _>(tombstones.iter().map(|t| t.deletion.at).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(texts(|t| &t.deletion.evidence))
        .bind::<Array<Timestamptz>, _>(tombstones.iter().map(|t| t.sent_at).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(merged_into)
        .bind::<Array<Bool>, _>(tombstones.iter().map(|t| t.deletion.told).collect::<Vec<_>>())
        .execute(connection)?;
    Ok(())
}

/// Dates rows back that a clock has written which ran ahead: whoever owns the stream knows that all of them were there
/// before `now`.
pub fn date_back(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    let query = format!(
        "UPDATE mirror.{} SET synced_at = least(synced_at, $3), first_seen_at = least(first_seen_at, $3)
         WHERE connection_id = $1 AND (synced_at > $2 OR first_seen_at > $2)",
        stream.table
    );
    diesel::sql_query(query)
        .bind::<BigInt, _>(of.0)
        .bind::<Timestamptz, _>(now)
        .bind::<Timestamptz, _>(now - TimeDelta::microseconds(1))
        .execute(connection)?;
    Ok(())
}

/// How many rows of a stream live.
pub fn living(connection: &mut PgConnection, stream: &StreamSpec, of: ConnectionId) -> Result<i64, DbError> {
    let query = format!(
        "SELECT count(*) AS value FROM mirror.{} WHERE connection_id = $1 AND deleted_at IS NULL",
        stream.table
    );
    rows::value::<BigInt, i64, _>(connection, diesel::sql_query(query).bind::<BigInt, _>(of.0))
}

/// Whether any row of a stream lives.
pub fn living_any(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
) -> Result<bool, DbError> {
    let query = format!(
        "SELECT EXISTS (SELECT FROM mirror.{} WHERE connection_id = $1 AND deleted_at IS NULL) AS value",
        stream.table
    );
    rows::value::<Bool, bool, _>(connection, diesel::sql_query(query).bind::<BigInt, _>(of.0))
}

/// Living rows that none of `seen` names, first seen before `before`, in the order of their ids.
pub fn living_but(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    seen: &[String],
    before: DateTime<Utc>,
) -> Result<Vec<String>, DbError> {
    let query = format!(
        "SELECT id AS value FROM mirror.{} row
         WHERE connection_id = $1 AND deleted_at IS NULL AND first_seen_at < $3
           AND NOT EXISTS (SELECT FROM unnest($2) AS seen (id) WHERE seen.id = row.id) ORDER BY 1",
        stream.table
    );
    let query = diesel::sql_query(query)
        .bind::<BigInt, _>(of.0)
        .bind::<Array<Text>, _>(seen)
        .bind::<Timestamptz, _>(before);
    rows::values::<Text, String, _>(connection, query)
}

/// Living rows whose ids a sweeping walk has not met, first seen before `before`, in their order.
pub fn living_unmet(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    mode: Mode,
    before: DateTime<Utc>,
) -> Result<Vec<String>, DbError> {
    let query = format!(
        "SELECT id AS value FROM mirror.{} row
         WHERE connection_id = $1 AND deleted_at IS NULL AND first_seen_at < $4
           AND NOT EXISTS (SELECT FROM walk_seen seen
                           WHERE seen.connection_id = $1 AND seen.stream = $2 AND seen.partition = ''
                             AND seen.mode = $3 AND seen.record_id = row.id) ORDER BY 1",
        stream.table
    );
    let query = diesel::sql_query(query)
        .bind::<BigInt, _>(of.0)
        .bind::<Text, _>(stream.name)
        .bind::<Text, _>(mode.as_str())
        .bind::<Timestamptz, _>(before);
    rows::values::<Text, String, _>(connection, query)
}

/// Living rows of which a column says one of these, or with `unknown` nothing, in the order of their ids.
pub fn living_at(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    column: &str,
    places: &[String],
    unknown: bool,
) -> Result<Vec<String>, DbError> {
    let query = format!(
        "SELECT id AS value FROM mirror.{} WHERE connection_id = $1 AND deleted_at IS NULL
           AND ({column} = ANY ($2) OR $3 AND {column} IS NULL) ORDER BY 1",
        stream.table
    );
    let query = diesel::sql_query(query)
        .bind::<BigInt, _>(of.0)
        .bind::<Array<Text>, _>(places)
        .bind::<Bool, _>(unknown);
    rows::values::<Text, String, _>(connection, query)
}

/// What a column says of these rows, by their ids.
pub fn places(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    column: &str,
    ids: &[String],
) -> Result<HashMap<String, Option<String>>, DbError> {
    let query = format!(
        "SELECT id, {column} AS place FROM mirror.{} WHERE connection_id = $1 AND id = ANY ($2)",
        stream.table
    );
    let found: Vec<Placed> =
        diesel::sql_query(query).bind::<BigInt, _>(of.0).bind::<Array<Text>, _>(ids).load(connection)?;
    Ok(found.into_iter().map(|row| (row.id, row.place)).collect())
}

#[derive(QueryableByName)]
struct Placed {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Nullable<Text>)]
    place: Option<String>,
}

/// Ids that a sweeping walk has met, and whose rows are not there or marked as gone; what was merged away stays so.
pub fn met_not_living(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    mode: Mode,
) -> Result<Vec<String>, DbError> {
    let merged = if stream.merges { "AND row.merged_into IS NULL" } else { "" };
    let query = format!(
        "SELECT seen.record_id AS value FROM walk_seen seen
         LEFT JOIN mirror.{} row ON (row.connection_id, row.id) = (seen.connection_id, seen.record_id)
         WHERE seen.connection_id = $1 AND seen.stream = $2 AND seen.partition = '' AND seen.mode = $3
           AND (row.id IS NULL OR row.deleted_at IS NOT NULL {merged}) ORDER BY 1",
        stream.table
    );
    let query = diesel::sql_query(query)
        .bind::<BigInt, _>(of.0)
        .bind::<Text, _>(stream.name)
        .bind::<Text, _>(mode.as_str());
    rows::values::<Text, String, _>(connection, query)
}

/// An array literal of Postgres, every element quoted.
pub fn array_literal<'a>(elements: impl Iterator<Item = Option<&'a str>>) -> String {
    let mut literal = String::from("{");
    for (index, element) in elements.enumerate() {
        if index > 0 {
            literal.push(',');
        }
        match element {
            None => literal.push_str("NULL"),
            Some(text) => {
                literal.push('"');
                for c in text.chars() {
                    if matches!(c, '"' | '\\') {
                        literal.push('\\');
                    }
                    literal.push(c);
                }
                literal.push('"');
            }
        }
    }
    literal.push('}');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_literals_quote_everything() {
        let elements = [Some("a"), None, Some(""), Some("NULL"), Some(r#"q"b\s{},"#)];
        assert_eq!(array_literal(elements.into_iter()), r#"{"a",NULL,"","NULL","q\"b\\s{},"}"#);
    }
}
