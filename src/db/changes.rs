//! What rows of the mirror were before they changed: `mirror.changes`. It is only ever added to, and pruned by age.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double};
use serde_json::{Map, Value};

use super::copy;
use super::error::DbError;
use crate::domain::ids::ConnectionId;

/// Changes that one call of [`prune`] deletes at most.
const PRUNED_MAX: i64 = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Update,
    Delete,
    Restore,
}

impl Op {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Restore => "restore",
        }
    }
}

/// One change of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub record_id: String,
    pub op: Op,
    /// Of the version that made the change; a proof of deletion is no version.
    pub source_updated_at: Option<DateTime<Utc>>,
    /// Of what changed, as it was.
    pub before: Map<String, Value>,
}

/// Adds changes, in their order.
pub fn write(
    connection: &mut PgConnection,
    of: ConnectionId,
    stream: &str,
    changes: &[Change],
    run: i64,
) -> Result<(), DbError> {
    if changes.is_empty() {
        return Ok(());
    }
    let target =
        "mirror.changes (connection_id, stream, sync_run_id, record_id, op, source_updated_at, before)";
    let (of, run) = (of.to_string(), run.to_string());
    copy::copy(connection, target.to_owned(), changes, |line, change| {
        line.field(Some(&of));
        line.field(Some(stream));
        line.field(Some(&run));
        line.field(Some(&change.record_id));
        line.field(Some(change.op.as_str()));
        line.time(change.source_updated_at);
        let before = serde_json::to_string(&change.before).expect("JSON is written as text without fail");
        line.field(Some(&before));
    })?;
    Ok(())
}

/// Deletes changes that are older than `kept`, the oldest first. Returns how many; when as many as one call may, there
/// may be more.
pub fn prune(connection: &mut PgConnection, kept: Duration) -> Result<usize, DbError> {
    // By number, which is the order of time: the oldest one tells, without a look at the others, that there is nothing to
    // do.
    Ok(diesel::sql_query(
        "WITH bound AS (SELECT now() - make_interval(secs => $1) AS moment),
              oldest AS (SELECT id, observed_at FROM mirror.changes
                  WHERE (SELECT observed_at FROM mirror.changes ORDER BY id LIMIT 1) < (SELECT moment FROM bound)
                  ORDER BY id LIMIT $2)
         DELETE FROM mirror.changes
         WHERE id IN (SELECT id FROM oldest WHERE observed_at < (SELECT moment FROM bound))",
    )
    .bind::<Double, _>(kept.as_secs_f64())
    .bind::<BigInt, _>(PRUNED_MAX)
    .execute(connection)?)
}
