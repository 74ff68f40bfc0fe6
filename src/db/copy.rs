//! COPY into a table whose name only the running program knows, in the text format.
//!
//! Diesel copies into tables that it was told of when it was compiled, and asks the type of the target for its name. So
//! the name is left where the type finds it.

use std::cell::RefCell;
use std::io::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use diesel::pg::{CopyTarget, Pg, PgConnection};
use diesel::query_builder::AstPass;
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_types::Text;
use diesel::{ExecuteCopyFromDsl, QueryResult};

/// Bytes that are handed over at once.
const CHUNK: usize = 64 * 1024;

diesel::table! {
    /// Stands for any table.
    any (id) {
        id -> Text,
    }
}

thread_local! {
    /// Table and columns of the statement that this thread is about to send.
    static TARGET: RefCell<String> = const { RefCell::new(String::new()) };
}

struct Target;

impl CopyTarget for Target {
    type Table = any::table;
    type SqlType = Text;

    fn walk_target(mut pass: AstPass<'_, '_, Pg>) -> QueryResult<()> {
        TARGET.with_borrow(|target| pass.push_sql(target));
        Ok(())
    }
}

/// Copies `rows` into `target`, which is `table (column, …)`; `line` writes the fields of a row.
pub fn copy<R>(
    connection: &mut PgConnection,
    target: String,
    rows: &[R],
    line: impl Fn(&mut Line, &R),
) -> QueryResult<()> {
    TARGET.set(target);
    let send = |sink: &mut dyn Write| {
        let mut lines = Line::default();
        for row in rows {
            line(&mut lines, row);
            lines.end();
            if lines.text.len() >= CHUNK {
                sink.write_all(lines.text.as_bytes()).map_err(broken)?;
                lines.text.clear();
            }
        }
        sink.write_all(lines.text.as_bytes()).map_err(broken)
    };
    diesel::copy_from(any::table).from_raw_data(Target, send).execute(connection)?;
    Ok(())
}

fn broken(error: std::io::Error) -> Error {
    Error::DatabaseError(DatabaseErrorKind::Unknown, Box::new(error.to_string()))
}

/// A row in the making: fields divided by tabs.
#[derive(Debug, Default)]
pub struct Line {
    text: String,
}

impl Line {
    pub fn field(&mut self, field: Option<&str>) {
        let Some(mut rest) = field else { return self.text.push_str("\\N\t") };
        while let Some(at) = rest.bytes().position(|byte| matches!(byte, b'\\' | b'\n' | b'\r' | b'\t')) {
            self.text.push_str(&rest[..at]);
            self.text.push_str(match rest.as_bytes()[at] {
                b'\n' => "\\n",
                b'\r' => "\\r",
                b'\t' => "\\t",
                _ => "\\\\",
            });
            rest = &rest[at + 1..];
        }
        self.text.push_str(rest);
        self.text.push('\t');
    }

    pub fn time(&mut self, time: Option<DateTime<Utc>>) {
        self.field(time.map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, true)).as_deref());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.text.push_str("\\\\x");
        for byte in bytes {
            for digit in [byte >> 4, byte & 15] {
                self.text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        self.text.push('\t');
    }

    fn end(&mut self) {
        self.text.pop();
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_escaped() {
        let mut line = Line::default();
        for field in [Some("a"), None, Some(""), Some("\\N"), Some("tab\t, line\n, ü\r"), Some("x\\")] {
            line.field(field);
        }
        line.end();
        assert_eq!(line.text, "a\t\\N\t\t\\\\N\ttab\\t, line\\n, ü\\r\tx\\\\\n");
    }
}
