//! Rows of the mirror: what is held, and writing a page by COPY and merge.
//!
//! Which version wins is not decided here (`sync::merge` does); these functions write what they are told. The caller
//! holds the stream's row locked, so nobody else writes the same rows meanwhile.

use std::collections::HashMap;
use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use diesel::connection::SimpleConnection;
use diesel::pg::CopyFormat;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Nullable, Text, Timestamptz};

use super::error::DbError;
use super::rows;
use crate::domain::ids::ConnectionId;
use crate::domain::record::Tombstone;
use crate::domain::spec::{Column, ColumnType, StreamSpec};

diesel::table! {
    /// Where a page lands first: one temporary table a session, the same for every stream. Typed columns come as text
    /// and are cast on their way on, so that no stream needs a staging table of its own.
    page_stage (id) {
        id -> Text,
        source_created_at -> Nullable<Timestamptz>,
        source_updated_at -> Nullable<Timestamptz>,
        raw -> Jsonb,
        content_hash -> Binary,
        synced_at -> Timestamptz,
        deleted_at -> Nullable<Timestamptz>,
        deleted_evidence -> Nullable<Text>,
        cells -> Array<Nullable<Text>>,
    }
}

const STAGE: &str = "
    CREATE TEMPORARY TABLE IF NOT EXISTS page_stage (
        id text NOT NULL, source_created_at timestamptz, source_updated_at timestamptz, raw jsonb NOT NULL,
        content_hash bytea NOT NULL, synced_at timestamptz NOT NULL, deleted_at timestamptz, deleted_evidence text,
        cells text[] NOT NULL
    ) ON COMMIT DELETE ROWS";

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
    let query = format!(
        "SELECT id, source_updated_at, synced_at, content_hash, deleted_at IS NOT NULL AS deleted, {merged} AS merged
         FROM mirror.{} WHERE connection_id = $1 AND id = ANY ($2)",
        stream.table
    );
    let found: Vec<Held> =
        diesel::sql_query(query).bind::<BigInt, _>(of.0).bind::<Array<Text>, _>(ids).load(connection)?;
    Ok(found.into_iter().map(|row| (row.id.clone(), row)).collect())
}

/// Writes rows, each id once: inserted, or replacing what is held.
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
    connection.batch_execute(STAGE)?;
    let text = copy_text(rows);
    diesel::copy_from(page_stage::table)
        .from_raw_data(page_stage::table, move |copy| {
            copy.write_all(text.as_bytes())
                .map_err(|error| diesel::result::Error::SerializationError(Box::new(error)))
        })
        .with_format(CopyFormat::Text)
        .execute(connection)?;
    diesel::sql_query(merge_sql(stream))
        .bind::<BigInt, _>(of.0)
        .bind::<BigInt, _>(run)
        .execute(connection)?;
    Ok(())
}

const BASE_COLUMNS: &str =
    "source_created_at, source_updated_at, raw, content_hash, synced_at, deleted_at, deleted_evidence";

fn merge_sql(stream: &StreamSpec) -> String {
    let mut names = String::new();
    let mut values = String::new();
    let mut updates = String::new();
    for (index, column) in stream.columns.iter().enumerate() {
        let _ = write!(names, ", {}", column.name);
        let _ = write!(values, ", {}", cell_sql(index, column));
        let _ = write!(updates, ", {0} = excluded.{0}", column.name);
    }
    for base in BASE_COLUMNS.split(", ") {
        let _ = write!(updates, ", {base} = excluded.{base}");
    }
    format!(
        "INSERT INTO mirror.{} (connection_id, id, sync_run_id, first_seen_at, {BASE_COLUMNS}{names})
         SELECT $1, id, $2, synced_at, {BASE_COLUMNS}{values} FROM page_stage
         ON CONFLICT (connection_id, id) DO UPDATE SET sync_run_id = excluded.sync_run_id{updates}",
        stream.table
    )
}

fn cell_sql(index: usize, column: &Column) -> String {
    let cell = format!("cells[{}]", index + 1);
    match column.kind {
        ColumnType::Text => cell,
        kind => format!("{cell}::{}", kind.sql()),
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
    let column = |of: fn(&Tombstone) -> &str| tombstones.iter().map(of).collect::<Vec<_>>();
    let merged_into: Vec<Option<&str>> = tombstones.iter().map(|t| t.merged_into.as_deref()).collect();
    diesel::sql_query(query)
        .bind::<BigInt, _>(of.0)
        .bind::<BigInt, _>(run)
        .bind::<Array<Text>, _>(column(|t| &t.id))
        .bind::<Array<Timestamptz>, _>(tombstones.iter().map(|t| t.deletion.at).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(column(|t| &t.deletion.evidence))
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
    partition: &str,
    before: DateTime<Utc>,
) -> Result<Vec<String>, DbError> {
    let query = format!(
        "SELECT id AS value FROM mirror.{} row
         WHERE connection_id = $1 AND deleted_at IS NULL AND first_seen_at < $4
           AND NOT EXISTS (SELECT FROM walk_seen seen
                           WHERE seen.connection_id = $1 AND seen.stream = $2 AND seen.partition = $3
                             AND seen.mode = 'backfill' AND seen.record_id = row.id)",
        stream.table
    );
    let query = diesel::sql_query(query)
        .bind::<BigInt, _>(of.0)
        .bind::<Text, _>(stream.name)
        .bind::<Text, _>(partition)
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

/// The rows in COPY's text format, columns as in [`page_stage`].
fn copy_text(rows: &[Row]) -> String {
    let mut text = String::with_capacity(rows.iter().map(|row| row.raw.len() * 2 + 200).sum());
    for row in rows {
        push_field(&mut text, Some(&row.id));
        push_time(&mut text, row.source_created_at);
        push_time(&mut text, row.source_updated_at);
        push_field(&mut text, Some(&row.raw));
        text.push_str(r"\\x");
        for byte in row.content_hash {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\t');
        push_time(&mut text, Some(row.synced_at));
        push_time(&mut text, row.deleted_at);
        push_field(&mut text, row.deleted_evidence.as_deref());
        push_field(&mut text, Some(&array_literal(row.cells.iter().map(Option::as_deref))));
        text.pop();
        text.push('\n');
    }
    text
}

fn push_field(text: &mut String, field: Option<&str>) {
    match field {
        None => text.push_str(r"\N"),
        Some(field) => push_escaped(text, field),
    }
    text.push('\t');
}

/// Copies runs that need no escape in one go: they are nearly all of the text.
fn push_escaped(text: &mut String, field: &str) {
    let mut rest = field;
    while let Some(at) = rest.find(['\\', '\n', '\r', '\t']) {
        text.push_str(&rest[..at]);
        text.push_str(match rest.as_bytes()[at] {
            b'\\' => r"\\",
            b'\n' => r"\n",
            b'\r' => r"\r",
            _ => r"\t",
        });
        rest = &rest[at + 1..];
    }
    text.push_str(rest);
}

fn push_time(text: &mut String, time: Option<DateTime<Utc>>) {
    push_field(text, time.map(|time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true)).as_deref());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_literals_quote_everything() {
        let elements = [Some("a"), None, Some(""), Some("NULL"), Some(r#"q"b\s{},"#)];
        assert_eq!(array_literal(elements.into_iter()), r#"{"a",NULL,"","NULL","q\"b\\s{},"}"#);
    }

    #[test]
    fn copy_escapes_what_ends_fields() {
        let mut text = String::new();
        push_escaped(&mut text, "a\tb\\c\nd\re");
        assert_eq!(text, r"a\tb\\c\nd\re");
    }
}
