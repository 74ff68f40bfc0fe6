//! Rows of the mirror: what is held, and writing a page in one statement.
//!
//! Which version wins is not decided here (`sync::merge` does); these functions write what they are told. The caller
//! holds the stream's row locked, so nobody else writes the same rows meanwhile.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Nullable, Text, Timestamptz};

use super::error::DbError;
use super::rows;
use crate::domain::ids::ConnectionId;
use crate::domain::record::Tombstone;
use crate::domain::spec::{Column, ColumnType, Mode, StreamSpec};

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
    #[diesel(sql_type = Bool)]
    pub deleted: bool,
    #[diesel(sql_type = Bool)]
    pub merged: bool,
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
             SELECT id, source_updated_at, synced_at, content_hash, deleted_at IS NOT NULL AS deleted,
                    {merged} AS merged
             FROM mirror.{} WHERE connection_id = $1 AND id = asked.id LIMIT 1
         ) AS row",
        stream.table
    );
    let found: Vec<Held> =
        diesel::sql_query(query).bind::<BigInt, _>(of.0).bind::<Array<Text>, _>(ids).load(connection)?;
    Ok(found.into_iter().map(|row| (row.id.clone(), row)).collect())
}

/// Writes rows, each id once: inserted, or replacing what is held.
///
/// A column of the page is one array, whose elements are cast on their way in. So no stream needs a table or a statement
/// of its own, and a value is stored (and compressed) once.
pub fn write(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    rows: &[Row],
    run: i64,
) -> Result<(), DbError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut query = diesel::sql_query(merge_sql(stream))
        .into_boxed::<Pg>()
        .bind::<BigInt, _>(of.0)
        .bind::<BigInt, _>(run)
        .bind::<Array<Text>, _>(column(rows, |row| row.id.as_str()))
        .bind::<Array<Nullable<Timestamptz>>, _>(column(rows, |row| row.source_created_at))
        .bind::<Array<Nullable<Timestamptz>>, _>(column(rows, |row| row.source_updated_at))
        .bind::<Array<Text>, _>(column(rows, |row| row.raw.as_str()))
        .bind::<Array<Binary>, _>(column(rows, |row| row.content_hash.as_slice()))
        .bind::<Array<Timestamptz>, _>(column(rows, |row| row.synced_at))
        .bind::<Array<Nullable<Timestamptz>>, _>(column(rows, |row| row.deleted_at))
        .bind::<Array<Nullable<Text>>, _>(column(rows, |row| row.deleted_evidence.as_deref()));
    for index in 0..stream.columns.len() {
        let cells = column(rows, |row| row.cells.get(index).and_then(Option::as_deref));
        query = query.bind::<Array<Nullable<Text>>, _>(cells);
    }
    query.execute(connection)?;
    Ok(())
}

fn column<'a, T>(rows: &'a [Row], of: impl Fn(&'a Row) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}

/// The columns of every table that come from a row, in the order in which [`write()`] binds them after the connection and
/// the run.
const BASE_COLUMNS: [&str; 8] = [
    "id",
    "source_created_at",
    "source_updated_at",
    "raw",
    "content_hash",
    "synced_at",
    "deleted_at",
    "deleted_evidence",
];

fn merge_sql(stream: &StreamSpec) -> String {
    let typed = stream.columns.iter().map(|column| column.name);
    let names: Vec<&str> = BASE_COLUMNS.into_iter().chain(typed).collect();
    let arrays: Vec<String> = (0..names.len()).map(|index| format!("${}", index + 3)).collect();
    let base = BASE_COLUMNS
        .iter()
        .map(|name| if *name == "raw" { "raw::jsonb".to_owned() } else { (*name).to_owned() });
    let values: Vec<String> = base.chain(stream.columns.iter().map(cell_sql)).collect();
    let updates = names.iter().skip(1).map(|name| format!(", {name} = excluded.{name}"));
    let names = names.join(", ");
    format!(
        "INSERT INTO mirror.{} (connection_id, sync_run_id, first_seen_at, {names})
         SELECT $1, $2, synced_at, {} FROM unnest({}) AS page ({names})
         ON CONFLICT (connection_id, id) DO UPDATE SET sync_run_id = excluded.sync_run_id{}",
        stream.table,
        values.join(", "),
        arrays.join(", "),
        updates.collect::<String>()
    )
}

fn cell_sql(column: &Column) -> String {
    match column.kind {
        ColumnType::Text | ColumnType::Reference => column.name.to_owned(),
        kind => format!("{}::{}", column.name, kind.sql()),
    }
}

/// Marks rows as gone; they keep what they last held.
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
         SET deleted_at = coalesce(row.deleted_at, gone.deleted_at), deleted_evidence = gone.evidence,
             synced_at = gone.synced_at, sync_run_id = $2{merged}
         FROM unnest($3, $4, $5, $6, $7) AS gone (id, deleted_at, evidence, synced_at, merged_into)
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

/// Living rows that none of `seen` names, first seen before `before`.
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
           AND NOT EXISTS (SELECT FROM unnest($2) AS seen (id) WHERE seen.id = row.id)",
        stream.table
    );
    let query = diesel::sql_query(query)
        .bind::<BigInt, _>(of.0)
        .bind::<Array<Text>, _>(seen)
        .bind::<Timestamptz, _>(before);
    rows::values::<Text, String, _>(connection, query)
}

/// Living rows whose ids a sweeping walk has not met, first seen before `before`.
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
                             AND seen.mode = $3 AND seen.record_id = row.id)",
        stream.table
    );
    let query = diesel::sql_query(query)
        .bind::<BigInt, _>(of.0)
        .bind::<Text, _>(stream.name)
        .bind::<Text, _>(mode.as_str())
        .bind::<Timestamptz, _>(before);
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
