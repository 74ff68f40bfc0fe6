//! Everything on record about one connection, as of one moment: what `why` explains the present state from. It reads
//! what others have written down, and judges nothing.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz};

use super::alerts::{self, Alert};
use super::connections::{self, Connection};
use super::error::DbError;
use super::queue::{self, JobRow};
use super::status::TokenStatus;
use super::verifications::{self, Last};
use super::{daemons, rows, status};
use crate::domain::ids::ConnectionId;

/// Lines of the audit log that are read, newest first.
const AUDIT_MAX: i64 = 30;
/// Runs that are read of each stream, newest first.
const RUNS_MAX: i64 = 5;

/// What there is, by the database's clock.
#[derive(Debug, Clone)]
pub struct Evidence {
    pub as_of: DateTime<Utc>,
    pub connection: Connection,
    /// A daemon lives.
    pub daemon_lives: bool,
    pub token: Option<TokenStatus>,
    /// Of `token`: the label of the last failure's kind.
    pub token_failure_kind: Option<String>,
    pub refresh: Option<OpenRefresh>,
    /// When the token endpoint takes another request of this client, if not now.
    pub token_permits_at: Option<DateTime<Utc>>,
    /// Newest first, as all lists here.
    pub audit: Vec<AuditLine>,
    pub streams: Vec<StreamEvidence>,
    pub walks: Vec<WalkEvidence>,
    pub runs: Vec<RunEvidence>,
    pub jobs: Vec<JobRow>,
    /// Those that are open, and the last that ended badly.
    pub requests: Vec<RequestEvidence>,
    /// The last comparison of each stream with the provider.
    pub verifications: Vec<Last>,
    /// Open ones of the connection, and of its provider as a whole.
    pub alerts: Vec<Alert>,
}

/// A refresh that is under way, or whose daemon has died.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct OpenRefresh {
    #[diesel(sql_type = Text)]
    pub host: String,
    #[diesel(sql_type = Timestamptz)]
    pub started_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    pub blocked_until: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct AuditLine {
    #[diesel(sql_type = Timestamptz)]
    pub at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    pub event: String,
    #[diesel(sql_type = Text)]
    pub outcome: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub detail: Option<String>,
}

/// One partition of a stream.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
pub struct StreamEvidence {
    #[diesel(sql_type = Text)]
    pub stream: String,
    #[diesel(sql_type = Text)]
    pub partition: String,
    #[diesel(sql_type = Text)]
    pub state: String,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub complete_to: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    pub backfill_done: bool,
    #[diesel(sql_type = Nullable<diesel::sql_types::Float>)]
    pub backfill_progress: Option<f32>,
    #[diesel(sql_type = Nullable<Text>)]
    pub stalled_reason: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub last_error: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub failure_kind: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_success_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Integer)]
    pub failures: i32,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub not_before: Option<DateTime<Utc>>,
    /// What is waited for until then, in words, where that is no failure.
    #[diesel(sql_type = Nullable<Text>)]
    pub waits_for: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct WalkEvidence {
    #[diesel(sql_type = Text)]
    pub stream: String,
    #[diesel(sql_type = Text)]
    pub mode: String,
    /// An open walk.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub started_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub due_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Integer)]
    pub restarts: i32,
    #[diesel(sql_type = Nullable<Text>)]
    pub restart_reason: Option<String>,
    #[diesel(sql_type = Integer)]
    pub failures: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct RunEvidence {
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    #[diesel(sql_type = Text)]
    pub stream: String,
    #[diesel(sql_type = Text)]
    pub mode: String,
    #[diesel(sql_type = Timestamptz)]
    pub started_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub ended_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    pub outcome: Option<String>,
    #[diesel(sql_type = BigInt)]
    pub requests: i64,
    #[diesel(sql_type = BigInt)]
    pub throttled: i64,
    #[diesel(sql_type = Nullable<Text>)]
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct RequestEvidence {
    #[diesel(sql_type = Text)]
    pub kind: String,
    #[diesel(sql_type = Timestamptz)]
    pub requested_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub done_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    pub outcome: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub message: Option<String>,
}

/// Reads it all in one snapshot. Begins a transaction of its own.
pub fn read(conn: &mut PgConnection, of: ConnectionId, live_window: Duration) -> Result<Evidence, DbError> {
    conn.build_transaction().repeatable_read().read_only().run(|conn| {
        let connection = connections::get(conn, of)?;
        Ok(Evidence {
            as_of: rows::value::<Timestamptz, DateTime<Utc>, _>(conn, sql_query("SELECT now() AS value"))?,
            daemon_lives: !daemons::live(conn, live_window)?.is_empty(),
            token: status::tokens(conn, Some(of))?.pop(),
            token_failure_kind: token_failure_kind(conn, of)?,
            refresh: sql_query(REFRESH).bind::<BigInt, _>(of.0).get_result(conn).optional()?,
            token_permits_at: token_permits_at(conn, &connection)?,
            audit: sql_query(AUDIT).bind::<BigInt, _>(of.0).bind::<BigInt, _>(AUDIT_MAX).load(conn)?,
            streams: sql_query(STREAMS).bind::<BigInt, _>(of.0).load(conn)?,
            walks: sql_query(WALKS).bind::<BigInt, _>(of.0).load(conn)?,
            runs: sql_query(RUNS).bind::<BigInt, _>(of.0).bind::<BigInt, _>(RUNS_MAX).load(conn)?,
            jobs: queue::of_connection(conn, of)?,
            requests: sql_query(REQUESTS).bind::<BigInt, _>(of.0).load(conn)?,
            verifications: verifications::last(conn, Some(of))?,
            alerts: open_alerts(conn, &connection)?,
            connection,
        })
    })
}

const REFRESH: &str =
    "SELECT host, started_at, blocked_until FROM fieldmirror.refresh_attempts WHERE connection_id = $1";

const AUDIT: &str = "
    SELECT at, event, outcome, detail FROM fieldmirror.audit_log WHERE connection_id = $1 ORDER BY id DESC LIMIT $2";

const STREAMS: &str = "
    SELECT stream, partition, state, complete_to, backfill_done, backfill_progress, stalled_reason, last_error, failure_kind,
        last_success_at, failures, not_before, waits_for
    FROM fieldmirror.stream_state WHERE connection_id = $1 ORDER BY stream, partition";

const WALKS: &str = "
    SELECT stream, mode, started_at, due_at, restarts, restart_reason, failures
    FROM fieldmirror.walks WHERE connection_id = $1 ORDER BY stream, partition, mode";

const RUNS: &str = "
    SELECT id, stream, mode, started_at, ended_at, outcome, requests, throttled, error
    FROM (SELECT *, row_number() OVER (PARTITION BY stream ORDER BY id DESC) AS place
          FROM fieldmirror.sync_runs WHERE connection_id = $1) r
    WHERE place <= $2 ORDER BY id DESC";

const REQUESTS: &str = "
    SELECT kind, requested_at, done_at, outcome, message FROM fieldmirror.requests
    WHERE connection_id = $1 AND done_at IS NULL
       OR id = (SELECT id FROM fieldmirror.requests
                WHERE connection_id = $1 AND done_at IS NOT NULL ORDER BY done_at DESC LIMIT 1) AND outcome <> 'done'
    ORDER BY requested_at DESC";

fn token_failure_kind(conn: &mut PgConnection, of: ConnectionId) -> Result<Option<String>, DbError> {
    let query = sql_query("SELECT failure_kind AS value FROM fieldmirror.tokens WHERE connection_id = $1")
        .bind::<BigInt, _>(of.0);
    Ok(rows::optional::<Nullable<Text>, Option<String>, _>(conn, query)?.flatten())
}

/// The scope is that of whoever asks the endpoint: the account's own client, or the one that is nobody's own.
fn token_permits_at(
    conn: &mut PgConnection,
    connection: &Connection,
) -> Result<Option<DateTime<Utc>>, DbError> {
    let query = sql_query(
        "SELECT max(b.taken_until) AS value FROM fieldmirror.rate_budget b
         WHERE b.taken_until > now() AND b.scope LIKE $1 || '/%' AND b.scope NOT LIKE $1 || '/egress/%'
           AND CASE WHEN $2 IS NOT NULL THEN b.scope = $1 || '/' || $2
               ELSE NOT EXISTS (SELECT FROM fieldmirror.connections c
                   WHERE c.provider = $1 AND b.scope = $1 || '/' || (c.params ->> 'client_id')) END",
    );
    let own = connection.params.get("client_id").map(String::as_str);
    let query = query.bind::<Text, _>(&connection.provider).bind::<Nullable<Text>, _>(own);
    rows::value::<Nullable<Timestamptz>, Option<DateTime<Utc>>, _>(conn, query)
}

fn open_alerts(conn: &mut PgConnection, of: &Connection) -> Result<Vec<Alert>, DbError> {
    let concerns = |alert: &Alert| match alert.of.connection_id {
        Some(id) => id == of.id.0,
        None => alert.of.provider.as_deref() == Some(&of.provider),
    };
    Ok(alerts::open(conn)?.into_iter().filter(concerns).collect())
}
