//! Views of one account: a typed column for everything that only this account has.

use std::fmt::Write as _;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;

use super::error::DbError;
use super::{analysts, rows};
use crate::domain::ids::ConnectionId;
use crate::domain::view::{AccountView, ViewColumn, ViewType};

/// Columns of a view; Postgres ends at 1,664, and sooner for wide rows.
const COLUMNS_MAX: usize = 1500;
/// Bytes of a name in Postgres.
const NAME_MAX: usize = 63;
/// An analyst's query is not waited for longer, as whoever asks next would wait behind us.
const PATIENCE: &str = "SET LOCAL lock_timeout = '2s';";
/// Columns that come first in every such view.
const FIRST: [&str; 5] = ["connection_id", "id", "source_created_at", "source_updated_at", "deleted_at"];

/// The view's name in schema `mirror`.
pub fn name(of: ConnectionId, view: &AccountView) -> String {
    format!("{}_c{of}", view.table)
}

/// Whether the view is there with these columns, of these types. Only the server knows: a turn that learned of other
/// columns may have died before it made the view anew.
pub fn is_current(
    connection: &mut PgConnection,
    of: ConnectionId,
    view: &AccountView,
) -> Result<bool, DbError> {
    let query = diesel::sql_query(
        "SELECT attname || ' ' || coalesce(col_description(attrelid, attnum), '') AS value FROM pg_attribute
         WHERE attrelid = to_regclass('mirror.' || $1) AND attnum > 0 ORDER BY attnum",
    );
    let there = rows::values::<Text, String, _>(connection, query.bind::<Text, _>(name(of, view)))?;
    let first = FIRST.iter().map(|called| format!("{called} {}", comment_of_first(view.table)));
    let own = columns(view).map(|(called, column)| format!("{called} {}", comment(column)));
    Ok(there.into_iter().eq(first.chain(own)))
}

/// Makes the view, or makes it anew. When other views stand on it and its columns cannot be kept in their places, it
/// stays as it is and the error says so.
pub fn create(connection: &mut PgConnection, of: ConnectionId, view: &AccountView) -> Result<(), DbError> {
    let create = definition(of, view);
    let begin = format!("{PATIENCE} {}", analysts::held_off());
    let replace = format!("{begin} {create}");
    let replaced = connection.transaction(|connection| connection.batch_execute(&replace));
    if replaced.is_err() {
        let drop = format!("{begin} DROP VIEW IF EXISTS mirror.{}; {create}", name(of, view));
        connection.transaction(|connection| connection.batch_execute(&drop))?;
    }
    Ok(())
}

pub fn drop(connection: &mut PgConnection, of: ConnectionId, view: &str) -> Result<(), DbError> {
    connection.batch_execute(&format!("DROP VIEW IF EXISTS mirror.{view}_c{of}"))?;
    Ok(())
}

fn definition(of: ConnectionId, view: &AccountView) -> String {
    let table = view.table;
    let name = name(of, view);
    let mut shown = String::new();
    let mut comments = format!(
        "COMMENT ON VIEW mirror.{name} IS {};",
        literal(&format!("mirror.{table} of connection {of}, one column for each property of the account"))
    );
    for column in FIRST {
        let comment = literal(&comment_of_first(table));
        let _ = write!(comments, "COMMENT ON COLUMN mirror.{name}.{column} IS {comment};");
    }
    for (called, column) in columns(view) {
        let path = column.path.iter().map(|key| literal(key)).collect::<Vec<_>>().join(", ");
        let text = format!("jsonb_extract_path_text(raw, {path})");
        let _ = write!(shown, ", {} AS {}", cast(column.kind, &text), identifier(&called));
        let comment = literal(&comment(column));
        let _ = write!(comments, "COMMENT ON COLUMN mirror.{name}.{} IS {comment};", identifier(&called));
    }
    let first = FIRST.join(", ");
    format!(
        "CREATE OR REPLACE VIEW mirror.{name} AS SELECT {first}{shown} FROM mirror.{table}
         WHERE connection_id = {of}; {comments}"
    )
}

/// The view's own columns, as they are called there.
fn columns(view: &AccountView) -> impl Iterator<Item = (String, &ViewColumn)> {
    let mut taken: Vec<String> = FIRST.iter().map(|&column| column.to_owned()).collect();
    view.columns.iter().take(COLUMNS_MAX).map(move |column| {
        let called = free_name(&column.name, &taken);
        taken.push(called.clone());
        (called, column)
    })
}

fn comment_of_first(table: &str) -> String {
    format!("As in mirror.{table}")
}

fn comment(column: &ViewColumn) -> String {
    format!("{} ({})", column.comment, column.kind.word())
}

/// A cast that does not raise. An empty text is a value that was cleared.
fn cast(kind: ViewType, text: &str) -> String {
    match kind {
        ViewType::Text => format!("nullif({text}, '')"),
        ViewType::Numeric => format!("mirror.as_numeric({text})"),
        ViewType::Boolean => format!("mirror.as_boolean({text})"),
        ViewType::Timestamptz => format!("mirror.as_timestamptz({text})"),
        ViewType::Date => format!("mirror.as_date({text})"),
    }
}

/// The name itself, or with a number behind it where that is taken; never longer than Postgres keeps.
fn free_name(wanted: &str, taken: &[String]) -> String {
    let cut = |room: usize| {
        let end = (0..=wanted.len().min(room)).rev().find(|&end| wanted.is_char_boundary(end)).unwrap_or(0);
        wanted[..end].to_owned()
    };
    let mut name = cut(NAME_MAX);
    let mut number = 2;
    while name.is_empty() || taken.contains(&name) {
        name = format!("{}_{number}", cut(NAME_MAX - 6));
        number += 1;
    }
    name
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('\0', "").replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    let text = text.replace('\0', "").replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", text.replace('\\', "\\\\")) } else { format!("'{text}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_and_kept_apart() {
        let long = "p".repeat(80);
        let first = free_name(&long, &[]);
        assert_eq!(first.len(), NAME_MAX);
        assert_ne!(free_name(&long, std::slice::from_ref(&first)), first);
        assert_eq!(free_name("id", &["id".to_owned()]), "id_2");
        assert_eq!(free_name(&"é".repeat(40), &[]).len(), 62);
    }

    #[test]
    fn quoting() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\b"), r"E'a\\b'");
    }
}
