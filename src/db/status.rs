//! Everything that `status` shows, as of one moment: one read-only snapshot, so that no two parts of it contradict.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::alerts::{self, Alert, HookTrouble};
use super::connections::{self, Connection};
use super::error::DbError;
use super::rows;
use crate::domain::forecast::forecast;
use crate::domain::ids::ConnectionId;

/// What there is, by the database's clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub as_of: DateTime<Utc>,
    pub daemons: Vec<DaemonStatus>,
    /// By name.
    pub connections: Vec<ConnectionStatus>,
    /// Those that hold, oldest first.
    pub alerts: Vec<Alert>,
    pub hook: Option<HookTrouble>,
}

#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct DaemonStatus {
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    #[diesel(sql_type = Text)]
    pub host: String,
    #[diesel(sql_type = Text)]
    pub version: String,
    #[diesel(sql_type = Timestamptz)]
    pub last_seen_at: DateTime<Utc>,
    /// Seen within the window that was asked for.
    #[diesel(sql_type = Bool)]
    pub live: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ConnectionStatus {
    pub connection: Connection,
    pub token: Option<TokenStatus>,
    /// Those that have a row, by name; a provider's other streams have not begun.
    pub streams: Vec<StreamStatus>,
    /// What the provider wants people to know: a word to a sentence.
    pub notices: BTreeMap<String, String>,
}

#[derive(QueryableByName)]
struct Notice {
    #[diesel(sql_type = BigInt)]
    connection_id: i64,
    #[diesel(sql_type = Text)]
    code: String,
    #[diesel(sql_type = Text)]
    sentence: String,
}

#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct TokenStatus {
    #[diesel(sql_type = BigInt)]
    pub connection_id: i64,
    #[diesel(sql_type = Text)]
    pub kind: String,
    #[diesel(sql_type = BigInt)]
    pub generation: i64,
    #[diesel(sql_type = Timestamptz)]
    pub issued_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub refresh_due_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_refresh_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Integer)]
    pub failures: i32,
    #[diesel(sql_type = Nullable<Text>)]
    pub last_error: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub rejected_at: Option<DateTime<Utc>>,
}

/// A stream, its partitions taken together.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
pub struct StreamStatus {
    #[diesel(sql_type = BigInt)]
    pub connection_id: i64,
    #[diesel(sql_type = Text)]
    pub stream: String,
    /// Of the partition that is worst off.
    #[diesel(sql_type = Text)]
    pub state: String,
    /// Reached by every partition.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub complete_to: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub swept_to: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    pub backfill_done: bool,
    /// From 0 to 1; `None` when a partition does not know.
    #[diesel(sql_type = Nullable<Double>)]
    pub backfill_progress: Option<f64>,
    /// When the read of everything began that is under way.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub backfill_started_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = BigInt)]
    pub rows: i64,
    #[diesel(sql_type = BigInt)]
    pub deleted_rows: i64,
    #[diesel(sql_type = Nullable<Text>)]
    pub stalled_reason: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub last_error: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_success_at: Option<DateTime<Utc>>,
    /// In a row.
    #[diesel(sql_type = Integer)]
    pub failures: i32,
    /// Until when the provider's limits let nothing of it be read.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub paused_until: Option<DateTime<Utc>>,
    /// For how much longer, in seconds.
    #[diesel(sql_type = Nullable<Double>)]
    pub paused_s: Option<f64>,
    /// What `stalled_reason` was recorded for: the kind of the failure, or the state.
    #[diesel(sql_type = Nullable<Text>)]
    pub stalled_kind: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub next_due_at: Option<DateTime<Utc>>,
    /// When a comparison with the provider last agreed.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub verified_at: Option<DateTime<Utc>>,
    /// Rows of `mirror.drift` that were noticed of late.
    #[diesel(sql_type = BigInt)]
    pub drift: i64,
}

const DAEMONS: &str = "
    SELECT id, host, version, last_seen_at, last_seen_at > now() - make_interval(secs => $1) AS live
    FROM fieldmirror.daemons ORDER BY started_at";

const TOKENS: &str = "
    SELECT connection_id, kind, generation, issued_at, expires_at, refresh_due_at, last_refresh_at, failures, last_error,
        rejected_at
    FROM fieldmirror.tokens WHERE $1 IS NULL OR connection_id = $1";

// Of the fact `notices`, and of those that streams keep beside it: `notices.jobs`.
const NOTICES: &str = "
    SELECT c.id AS connection_id, n.key AS code, n.value AS sentence
    FROM fieldmirror.connections c
    CROSS JOIN jsonb_each(c.facts) f
    CROSS JOIN jsonb_each_text(CASE jsonb_typeof(f.value) WHEN 'object' THEN f.value ELSE '{}' END) n
    WHERE ($1 IS NULL OR c.id = $1) AND (f.key = 'notices' OR f.key LIKE 'notices.%') AND n.value IS NOT NULL
        AND c.state <> 'disconnected'";

// A watermark that one partition lacks is not reached by the stream. The words of state are in the order of how much they
// call for attention.
const STREAMS: &str = "
    WITH due AS (
        SELECT connection_id, stream, min(due_at) AS due_at,
            min(started_at) FILTER (WHERE mode = 'backfill') AS backfill_started_at
        FROM fieldmirror.walks
        WHERE $1 IS NULL OR connection_id = $1 GROUP BY connection_id, stream
    )
    SELECT s.connection_id, s.stream,
        (array_agg(s.state ORDER BY array_position(
            ARRAY['idle', 'pending', 'syncing', 'backfilling', 'backing_off', 'forbidden', 'stalled'], s.state) DESC))[1] AS state,
        CASE WHEN bool_and(s.complete_to IS NOT NULL) THEN min(s.complete_to) END AS complete_to,
        CASE WHEN bool_and(s.swept_to IS NOT NULL) THEN min(s.swept_to) END AS swept_to,
        bool_and(s.backfill_done) AS backfill_done,
        CASE WHEN bool_and(s.backfill_done) THEN 1
            WHEN bool_and(s.backfill_progress IS NOT NULL) THEN round(avg(s.backfill_progress)::numeric, 4)::float8
        END AS backfill_progress,
        min(d.backfill_started_at) AS backfill_started_at,
        sum(s.rows)::bigint AS rows, sum(s.deleted_rows)::bigint AS deleted_rows,
        (array_agg(s.stalled_reason
            ORDER BY (s.failure_kind = 'held') DESC NULLS LAST, s.partition) FILTER (WHERE s.stalled_reason IS NOT NULL))[1] AS stalled_reason,
        (array_agg(coalesce(s.failure_kind, s.state)
            ORDER BY (s.failure_kind = 'held') DESC NULLS LAST, s.partition) FILTER (WHERE s.stalled_reason IS NOT NULL))[1] AS stalled_kind,
        max(s.last_error) AS last_error,
        max(s.last_success_at) AS last_success_at, max(s.failures) AS failures,
        max(s.not_before) FILTER (WHERE s.failure_kind = 'throttled' AND s.not_before > now()) AS paused_until,
        extract(epoch FROM max(s.not_before) FILTER (WHERE s.failure_kind = 'throttled' AND s.not_before > now())
            - now())::float8 AS paused_s,
        greatest(max(s.not_before), min(d.due_at)) AS next_due_at,
        (SELECT max(v.ended_at) FROM fieldmirror.verifications v
         WHERE v.connection_id = s.connection_id AND v.stream = s.stream AND v.agrees) AS verified_at,
        (SELECT count(*) FROM mirror.drift n WHERE n.connection_id = s.connection_id AND n.stream = s.stream
            AND n.last_seen_at > now() - interval '7 days') AS drift
    FROM fieldmirror.stream_state s LEFT JOIN due d USING (connection_id, stream)
    WHERE $1 IS NULL OR s.connection_id = $1
    GROUP BY s.connection_id, s.stream ORDER BY s.stream";

/// What there is of all connections, or of one. Daemons seen within `live_window` count as live.
/// Begins a transaction of its own: the caller must not be in one.
pub fn read(
    conn: &mut PgConnection,
    only: Option<ConnectionId>,
    live_window: Duration,
) -> Result<Snapshot, DbError> {
    conn.build_transaction().repeatable_read().read_only().run(|conn| read_within(conn, only, live_window))
}

/// [`read`] inside the caller's transaction, which should be a snapshot.
pub(super) fn read_within(
    conn: &mut PgConnection,
    only: Option<ConnectionId>,
    live_window: Duration,
) -> Result<Snapshot, DbError> {
    let as_of = rows::value::<Timestamptz, DateTime<Utc>, _>(conn, sql_query("SELECT now() AS value"))?;
    let daemons = sql_query(DAEMONS).bind::<Double, _>(live_window.as_secs_f64()).load(conn)?;
    let connections = match only {
        Some(id) => vec![connections::get(conn, id)?],
        None => connections::list(conn)?,
    };
    let id = only.map(|id| id.0);
    let mut tokens: HashMap<i64, TokenStatus> =
        tokens(conn, only)?.into_iter().map(|token| (token.connection_id, token)).collect();
    let mut streams: HashMap<i64, Vec<StreamStatus>> = HashMap::new();
    for stream in sql_query(STREAMS).bind::<Nullable<BigInt>, _>(id).load::<StreamStatus>(conn)? {
        streams.entry(stream.connection_id).or_default().push(stream);
    }
    let mut notices: HashMap<i64, BTreeMap<String, String>> = HashMap::new();
    for notice in sql_query(NOTICES).bind::<Nullable<BigInt>, _>(id).load::<Notice>(conn)? {
        notices.entry(notice.connection_id).or_default().insert(notice.code, notice.sentence);
    }
    let providers: Vec<String> = connections.iter().map(|one| one.provider.clone()).collect();
    let connections = connections.into_iter().map(|connection| ConnectionStatus {
        notices: notices.remove(&connection.id.0).unwrap_or_default(),
        token: tokens.remove(&connection.id.0),
        streams: streams.remove(&connection.id.0).unwrap_or_default(),
        connection,
    });
    // What stops a provider stops each of its connections.
    let about = |alert: &Alert| match alert.of.connection_id {
        Some(of) => id.is_none_or(|id| id == of),
        None => id.is_none() || providers.iter().any(|name| Some(name) == alert.of.provider.as_ref()),
    };
    let alerts = alerts::open(conn)?.into_iter().filter(about).collect();
    let hook = alerts::hook_trouble(conn, live_window)?;
    Ok(Snapshot { as_of, daemons, connections: connections.collect(), alerts, hook })
}

/// How the tokens of all connections stand, or that of one.
pub fn tokens(conn: &mut PgConnection, only: Option<ConnectionId>) -> Result<Vec<TokenStatus>, DbError> {
    Ok(sql_query(TOKENS).bind::<Nullable<BigInt>, _>(only.map(|id| id.0)).load(conn)?)
}

impl StreamStatus {
    /// When the first read of everything will be done, at the pace that it has had so far.
    pub fn forecast_at(&self, as_of: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let (began, share) = (self.backfill_started_at?, self.backfill_progress?);
        if self.backfill_done { None } else { forecast(began, 0.0, as_of, share) }
    }

    /// A stream that no turn has seen yet.
    pub fn not_begun(connection: ConnectionId, stream: &str) -> Self {
        Self {
            connection_id: connection.0,
            stream: stream.to_owned(),
            state: "pending".to_owned(),
            complete_to: None,
            swept_to: None,
            backfill_done: false,
            backfill_progress: None,
            backfill_started_at: None,
            rows: 0,
            deleted_rows: 0,
            stalled_reason: None,
            last_error: None,
            last_success_at: None,
            failures: 0,
            paused_until: None,
            paused_s: None,
            stalled_kind: None,
            next_due_at: None,
            verified_at: None,
            drift: 0,
        }
    }
}

impl TokenStatus {
    /// For tests of those who judge it: a token of that kind that never expires.
    pub fn example(kind: &str) -> Self {
        Self {
            connection_id: 1,
            kind: kind.to_owned(),
            generation: 1,
            issued_at: DateTime::UNIX_EPOCH,
            expires_at: None,
            refresh_due_at: None,
            last_refresh_at: None,
            failures: 0,
            last_error: None,
            rejected_at: None,
        }
    }
}
