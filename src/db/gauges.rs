//! What the Prometheus page shows of the tables, as of one moment.

use std::time::Duration;

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Double, Text};

use super::error::DbError;
use super::status::{self, Snapshot};

/// What there is.
#[derive(Debug, Clone, PartialEq)]
pub struct Gauges {
    pub snapshot: Snapshot,
    /// By kind; kinds without a live job are left out.
    pub queue: Vec<QueueDepth>,
    /// By kind; kinds without an open request are left out.
    pub requests: Vec<OpenRequests>,
}

/// The live jobs of a kind.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
pub struct QueueDepth {
    #[diesel(sql_type = Text)]
    pub kind: String,
    #[diesel(sql_type = BigInt)]
    pub pending: i64,
    #[diesel(sql_type = BigInt)]
    pub running: i64,
    #[diesel(sql_type = BigInt)]
    pub parked: i64,
    /// How long the one that waits longest has been due, a job whose lease has lapsed included.
    #[diesel(sql_type = Double)]
    pub oldest_due_seconds: f64,
}

/// What admins have asked for and not got yet.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
pub struct OpenRequests {
    #[diesel(sql_type = Text)]
    pub kind: String,
    #[diesel(sql_type = BigInt)]
    pub open: i64,
    #[diesel(sql_type = Double)]
    pub oldest_seconds: f64,
}

const QUEUE: &str = "
    SELECT kind,
        count(*) FILTER (WHERE state = 'pending') AS pending,
        count(*) FILTER (WHERE state = 'running') AS running,
        count(*) FILTER (WHERE state = 'parked') AS parked,
        coalesce(greatest(0, extract(epoch FROM max(now() - coalesce(lease_until, run_at))
            FILTER (WHERE state IN ('pending', 'running')))), 0)::float8 AS oldest_due_seconds
    FROM fieldmirror.jobs WHERE state IN ('pending', 'running', 'parked') GROUP BY kind ORDER BY kind";

const REQUESTS: &str = "
    SELECT kind, count(*) AS open, greatest(0, extract(epoch FROM now() - min(requested_at)))::float8 AS oldest_seconds
    FROM fieldmirror.requests WHERE done_at IS NULL GROUP BY kind ORDER BY kind";

/// Reads all of it, in at most `limit` for each question. Daemons seen within `live_window` count as live.
/// Begins a transaction of its own: the caller must not be in one.
pub fn read(conn: &mut PgConnection, live_window: Duration, limit: Duration) -> Result<Gauges, DbError> {
    conn.build_transaction().repeatable_read().read_only().run(|conn| {
        conn.batch_execute(&format!("SET LOCAL statement_timeout = {}", limit.as_millis()))?;
        Ok(Gauges {
            snapshot: status::read_within(conn, None, live_window)?,
            queue: sql_query(QUEUE).load(conn)?,
            requests: sql_query(REQUESTS).load(conn)?,
        })
    })
}
