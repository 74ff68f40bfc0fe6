//! Streams and their walks: who owns them, where they stand, when they are due.
//!
//! A turn owns the streams of a connection by a number that it drew when it began. Every write here names that number
//! and finds no row once another turn has drawn the next: [`Lost`](StreamWrite::Lost) means roll back and stop.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Double, Float, Integer, Jsonb, Nullable, Text, Timestamptz};
use serde_json::Value;

use super::error::DbError;
use super::rows;
use crate::domain::ids::ConnectionId;
use crate::domain::spec::{AHEAD_MAX, Mode, PAUSE_MAX, Rhythm, StreamSpec};
use crate::domain::step::Position;
use crate::domain::time::delta;

/// Which stream of which connection, and the turn that owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamKey {
    pub connection: ConnectionId,
    pub stream: &'static str,
    pub epoch: i64,
}

/// Whether the turn still owned the stream that it wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum StreamWrite {
    Done,
    Lost,
}

impl StreamWrite {
    fn of(rows: usize) -> Self {
        if rows == 0 { Self::Lost } else { Self::Done }
    }
}

#[derive(Debug, Clone, QueryableByName)]
pub struct StreamRow {
    #[diesel(sql_type = Text)]
    pub stream: String,
    #[diesel(sql_type = Text)]
    pub state: String,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub complete_to: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    pub backfill_done: bool,
    #[diesel(sql_type = BigInt)]
    pub rows: i64,
    #[diesel(sql_type = Integer)]
    pub failures: i32,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub not_before: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    pub stalled_reason: Option<String>,
    /// What is behind the reason, or behind the last failure.
    #[diesel(sql_type = Nullable<Text>)]
    pub failure_kind: Option<String>,
}

impl StreamRow {
    /// Whether it is read, and only its watermark waits.
    pub fn is_behind(&self) -> bool {
        self.failure_kind.as_deref() == Some(BEHIND)
    }
}

#[derive(Debug, Clone, QueryableByName)]
pub struct WalkRow {
    #[diesel(sql_type = Text)]
    pub stream: String,
    #[diesel(sql_type = Text)]
    pub mode: String,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub started_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub from_time: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub position: Option<Value>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub covered_to: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub closed_started_at: Option<DateTime<Utc>>,
    /// `None`: not by itself.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub due_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    pub sweeping: bool,
    #[diesel(sql_type = Bool)]
    pub mass_delete_allowed: bool,
    #[diesel(sql_type = Integer)]
    pub restarts: i32,
    /// Why the open walk began again the last time.
    #[diesel(sql_type = Nullable<Text>)]
    pub restart_reason: Option<String>,
    /// By how much our clock ran ahead of the provider's, at the most that the open walk has seen.
    #[diesel(sql_type = BigInt)]
    pub ahead_ms: i64,
    /// The same of the walk that closed last.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub closed_ahead_ms: Option<i64>,
    /// Turns in a row in which it failed.
    #[diesel(sql_type = Integer)]
    pub failures: i32,
    /// Turns in a row that 401 has ended although the token was good.
    #[diesel(sql_type = Integer)]
    pub refusals: i32,
    /// Turns in a row that answers without JSON have ended.
    #[diesel(sql_type = Integer)]
    pub unread: i32,
    /// As of when the facts of the account are known: those that the open walk needs, or those that this one has taught.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub facts_as_of: Option<DateTime<Utc>>,
}

/// Makes sure that every stream of the provider has its rows, and draws the number of a new turn.
/// The connection's row must be locked by the caller.
pub fn take(
    connection: &mut PgConnection,
    of: ConnectionId,
    streams: &'static [StreamSpec],
) -> Result<i64, DbError> {
    ensure(connection, of, streams)?;
    bump(connection, of)
}

/// Moves every stream of a connection to the next number: whoever worked on them has lost them.
pub fn bump(connection: &mut PgConnection, of: ConnectionId) -> Result<i64, DbError> {
    let query = diesel::sql_query(
        "WITH next AS (SELECT coalesce(max(turn_epoch), 0) + 1 AS epoch FROM stream_state WHERE connection_id = $1),
              bumped AS (UPDATE stream_state SET turn_epoch = next.epoch FROM next WHERE connection_id = $1)
         SELECT epoch AS value FROM next",
    )
    .bind::<BigInt, _>(of.0);
    rows::value::<BigInt, i64, _>(connection, query)
}

/// What was refused or had to wait is tried at once, and refusals are counted anew: there is a new grant.
pub fn try_again(connection: &mut PgConnection, of: ConnectionId) -> Result<(), DbError> {
    diesel::sql_query("UPDATE stream_state SET not_before = NULL WHERE connection_id = $1")
        .bind::<BigInt, _>(of.0)
        .execute(connection)?;
    diesel::sql_query(
        "UPDATE walks SET due_at = least(due_at, now()), refusals = 0, unread = 0
         WHERE connection_id = $1 AND failures > 0 AND due_at IS NOT NULL",
    )
    .bind::<BigInt, _>(of.0)
    .execute(connection)?;
    Ok(())
}

/// Makes sure that every stream of the provider has its rows: due at once where they are new.
pub fn ensure(
    connection: &mut PgConnection,
    of: ConnectionId,
    streams: &'static [StreamSpec],
) -> Result<(), DbError> {
    let names: Vec<&str> = streams.iter().map(|stream| stream.name).collect();
    diesel::sql_query(
        "INSERT INTO stream_state (connection_id, stream) SELECT $1, unnest($2) ON CONFLICT DO NOTHING",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Array<Text>, _>(&names)
    .execute(connection)?;
    let walks: Vec<(&str, &str)> = streams
        .iter()
        .flat_map(|stream| stream.modes.iter().map(|mode| (stream.name, mode.as_str())))
        .collect();
    // There is nothing to sweep before the first read of everything is done: its end makes sweeps due.
    diesel::sql_query(
        "INSERT INTO walks (connection_id, stream, mode, due_at)
         SELECT $1, w.stream, w.mode, CASE WHEN w.mode <> 'sweep' OR s.backfill_done THEN now() END
         FROM unnest($2, $3) AS w (stream, mode)
         JOIN stream_state s ON (s.connection_id, s.stream, s.partition) = ($1, w.stream, '')
         ON CONFLICT DO NOTHING",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Array<Text>, _>(walks.iter().map(|walk| walk.0).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(walks.iter().map(|walk| walk.1).collect::<Vec<_>>())
    .execute(connection)?;
    Ok(())
}

pub fn streams(connection: &mut PgConnection, of: ConnectionId) -> Result<Vec<StreamRow>, DbError> {
    Ok(diesel::sql_query(
        "SELECT stream, state, complete_to, backfill_done, rows, failures, not_before, stalled_reason, failure_kind
         FROM stream_state WHERE connection_id = $1 ORDER BY stream",
    )
    .bind::<BigInt, _>(of.0)
    .load(connection)?)
}

pub fn walks(connection: &mut PgConnection, of: ConnectionId) -> Result<Vec<WalkRow>, DbError> {
    Ok(diesel::sql_query(
        "SELECT stream, mode, started_at, from_time, position, covered_to, closed_started_at, due_at, sweeping,
                mass_delete_allowed, restarts, restart_reason, ahead_ms, closed_ahead_ms, failures, refusals, unread,
                facts_as_of
         FROM walks WHERE connection_id = $1 ORDER BY stream, mode",
    )
    .bind::<BigInt, _>(of.0)
    .load(connection)?)
}

/// Locks the stream's row for this transaction if the turn still owns it.
pub fn lock(connection: &mut PgConnection, key: StreamKey) -> Result<StreamWrite, DbError> {
    let query = diesel::sql_query(
        "SELECT 1::bigint AS value FROM stream_state
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND turn_epoch = $3 FOR UPDATE",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<BigInt, _>(key.epoch);
    let found = rows::optional::<BigInt, i64, _>(connection, query)?;
    Ok(if found.is_some() { StreamWrite::Done } else { StreamWrite::Lost })
}

/// Opens a walk. `from` is its lower bound; `facts_as_of` tells as of when the facts are known that it needs, if it does.
pub fn open_walk(
    connection: &mut PgConnection,
    key: StreamKey,
    mode: Mode,
    started_at: DateTime<Utc>,
    from: Option<DateTime<Utc>>,
    facts_as_of: Option<DateTime<Utc>>,
) -> Result<(), DbError> {
    diesel::sql_query(
        // A snapshot that is broken off is opened anew: its restarts count on until it closes.
        "UPDATE walks SET started_at = $4, from_time = $5, position = NULL, ahead_ms = 0,
             restarts = CASE WHEN mode = 'snapshot' THEN restarts ELSE 0 END,
             restart_reason = CASE WHEN mode = 'snapshot' THEN restart_reason END,
             facts_as_of = coalesce($6, facts_as_of)
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = $3",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Text, _>(mode.as_str())
    .bind::<Timestamptz, _>(started_at)
    .bind::<Nullable<Timestamptz>, _>(from)
    .bind::<Nullable<Timestamptz>, _>(facts_as_of)
    .execute(connection)?;
    forget_met(connection, key, mode)
}

/// Whether an open read of everything notes what it meets, and proves by its end what is gone.
pub fn sweep_along(connection: &mut PgConnection, key: StreamKey, sweeping: bool) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE walks SET sweeping = $3
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = 'backfill'",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Bool, _>(sweeping)
    .execute(connection)?;
    Ok(())
}

/// An open walk has taught what others need to know: as of when it began.
pub fn taught(connection: &mut PgConnection, key: StreamKey, mode: Mode) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE walks SET facts_as_of = started_at
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = $3",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Text, _>(mode.as_str())
    .execute(connection)?;
    Ok(())
}

/// Gives the incremental walk its first lower bound: the moment at which the first read of everything begins.
pub fn begin_watermark(
    connection: &mut PgConnection,
    key: StreamKey,
    covered_to: DateTime<Utc>,
) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE walks SET covered_to = $3
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = 'incremental' AND covered_to IS NULL",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Timestamptz, _>(covered_to)
    .execute(connection)?;
    Ok(())
}

/// Makes the next walk over changes begin no later than at `covered_to`, and claims no more to be covered: where none has
/// closed yet, or in any case.
pub fn lower_watermark(
    connection: &mut PgConnection,
    key: StreamKey,
    covered_to: DateTime<Utc>,
    in_any_case: bool,
) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE walks SET covered_to = least(covered_to, $3)
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = 'incremental'
           AND ($4 OR closed_at IS NULL)",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Timestamptz, _>(covered_to)
    .bind::<Bool, _>(in_any_case)
    .execute(connection)?;
    Ok(())
}

/// Keeps with an open walk by how much our clock runs ahead of the provider's.
pub fn note_ahead(
    connection: &mut PgConnection,
    key: StreamKey,
    mode: Mode,
    ahead_ms: i64,
) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE walks SET ahead_ms = greatest(ahead_ms, $4)
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = $3",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Text, _>(mode.as_str())
    .bind::<BigInt, _>(ahead_ms)
    .execute(connection)?;
    Ok(())
}

/// What a page changes about its stream.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PageEffect {
    pub rows: i64,
    pub deleted_rows: i64,
    pub progress: Option<f32>,
}

/// Saves where a walk stands, and what the page did to the counts.
pub fn save_page(
    connection: &mut PgConnection,
    key: StreamKey,
    mode: Mode,
    position: &Position,
    effect: PageEffect,
) -> Result<StreamWrite, DbError> {
    let owned = diesel::sql_query(
        "UPDATE stream_state
         SET rows = rows + $4, deleted_rows = deleted_rows + $5, backfill_progress = coalesce($6, backfill_progress)
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND turn_epoch = $3",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<BigInt, _>(key.epoch)
    .bind::<BigInt, _>(effect.rows)
    .bind::<BigInt, _>(effect.deleted_rows)
    .bind::<Nullable<Float>, _>(effect.progress)
    .execute(connection)?;
    diesel::sql_query(
        "UPDATE walks SET position = $4, refusals = 0, unread = 0
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = $3",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Text, _>(mode.as_str())
    .bind::<Jsonb, _>(serde_json::to_value(position).map_err(|error| DbError::Row(error.to_string()))?)
    .execute(connection)?;
    Ok(StreamWrite::of(owned))
}

/// Notes ids that a sweeping walk has met.
pub fn meet(connection: &mut PgConnection, key: StreamKey, mode: Mode, ids: &[&str]) -> Result<(), DbError> {
    note_seen(connection, key, mode, ids, false)
}

/// Notes ids that a sweeping walk has not met, and of which nothing is proven.
pub fn leave(connection: &mut PgConnection, key: StreamKey, mode: Mode, ids: &[&str]) -> Result<(), DbError> {
    note_seen(connection, key, mode, ids, true)
}

fn note_seen(
    connection: &mut PgConnection,
    key: StreamKey,
    mode: Mode,
    ids: &[&str],
    unproven: bool,
) -> Result<(), DbError> {
    diesel::sql_query(
        "INSERT INTO walk_seen (connection_id, stream, partition, mode, record_id, unproven)
         SELECT $1, $2, '', $3, unnest($4), $5 ON CONFLICT DO NOTHING",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Text, _>(mode.as_str())
    .bind::<Array<Text>, _>(ids)
    .bind::<Bool, _>(unproven)
    .execute(connection)?;
    Ok(())
}

/// The ids of which an open walk has proven nothing.
pub fn unproven(connection: &mut PgConnection, key: StreamKey, mode: Mode) -> Result<Vec<String>, DbError> {
    let query = diesel::sql_query(
        "SELECT record_id AS value FROM walk_seen
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = $3 AND unproven ORDER BY 1",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Text, _>(mode.as_str());
    rows::values::<Text, String, _>(connection, query)
}

fn forget_met(connection: &mut PgConnection, key: StreamKey, mode: Mode) -> Result<(), DbError> {
    diesel::sql_query(
        "DELETE FROM walk_seen WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = $3",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Text, _>(mode.as_str())
    .execute(connection)?;
    Ok(())
}

/// Adds to the counts of living and deleted rows.
pub fn adjust(connection: &mut PgConnection, key: StreamKey, rows: i64, deleted: i64) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE stream_state SET rows = rows + $4, deleted_rows = deleted_rows + $5
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND turn_epoch = $3",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<BigInt, _>(key.epoch)
    .bind::<BigInt, _>(rows)
    .bind::<BigInt, _>(deleted)
    .execute(connection)?;
    Ok(())
}

/// What a closed walk establishes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Closing {
    pub mode: Mode,
    /// Every change that the provider exposes up to here has been read.
    pub covered_to: DateTime<Utc>,
    /// The same with deletions, where the walk proves them.
    pub swept_to: Option<DateTime<Utc>>,
    /// Whether everything has been read once by now.
    pub reads_all: bool,
    /// Whether it proved what is gone beside being a read of everything: a sweep that waits has nothing left to find.
    pub sweeps: bool,
    /// When the walk is due again; `None`: not by itself.
    pub due_at: Option<DateTime<Utc>>,
    /// When the first sweep is due, once everything has been read.
    pub sweep_due_at: DateTime<Utc>,
    pub closed_at: DateTime<Utc>,
}

/// Whether the mirror has asked itself for everything of stream `$2` of connection `$1`, and has not read it yet.
const OWN_READ_OPEN: &str = "EXISTS (
    SELECT FROM requests r
    JOIN walks b ON (b.connection_id, b.stream, b.partition, b.mode) = (r.connection_id, $2, '', 'backfill')
    WHERE r.connection_id = $1 AND r.kind = 'sync' AND r.done_at IS NULL
      AND r.args @> jsonb_build_object('own', true, 'full', true, 'streams', jsonb_build_array($2::text))
      AND coalesce(b.closed_started_at < r.applied_at, true))";
/// What is said meanwhile.
const OWN_READ_SAID: &str =
    "changes are read, and none are relied upon before everything has been read again";

/// Closes a walk and moves the watermarks, never backwards. The first lower bound of changes is no watermark: it gives way
/// to what the first walk over them has covered. A walk that began before an admin asked for news is due again at once.
/// While the mirror asks itself for everything again, since there is more to read than there was, nothing is claimed.
pub fn close_walk(
    connection: &mut PgConnection,
    key: StreamKey,
    closing: &Closing,
) -> Result<StreamWrite, DbError> {
    diesel::sql_query(
        "UPDATE walks
         SET closed_at = $6, closed_started_at = started_at, started_at = NULL, from_time = NULL, position = NULL,
             failures = 0, refusals = 0, unread = 0, closed_ahead_ms = ahead_ms,
             covered_to = CASE WHEN mode = 'incremental' AND closed_at IS NULL THEN $4 ELSE greatest(covered_to, $4) END, due_at = CASE WHEN $5 IS NOT NULL AND EXISTS (
                 SELECT FROM requests r WHERE r.connection_id = $1 AND r.kind = 'sync' AND r.done_at IS NULL
                   AND r.applied_at > walks.started_at) THEN $6 ELSE $5 END, sweeping = false,
             mass_delete_allowed = false, restarts = 0, restart_reason = NULL
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = $3",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Text, _>(closing.mode.as_str())
    .bind::<Timestamptz, _>(closing.covered_to)
    .bind::<Nullable<Timestamptz>, _>(closing.due_at)
    .bind::<Timestamptz, _>(closing.closed_at)
    .execute(connection)?;
    forget_met(connection, key, closing.mode)?;
    if closing.reads_all {
        diesel::sql_query(
            "UPDATE walks SET due_at = $3
             WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = 'sweep' AND due_at IS NULL",
        )
        .bind::<BigInt, _>(key.connection.0)
        .bind::<Text, _>(key.stream)
        .bind::<Timestamptz, _>(closing.sweep_due_at)
        .execute(connection)?;
    }
    if closing.sweeps {
        diesel::sql_query(
            "UPDATE walks SET failures = 0, started_at = NULL, from_time = NULL, position = NULL, due_at = $3
             WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = 'sweep' AND failures > 0",
        )
        .bind::<BigInt, _>(key.connection.0)
        .bind::<Text, _>(key.stream)
        .bind::<Timestamptz, _>(closing.sweep_due_at)
        .execute(connection)?;
    }
    let owned = diesel::sql_query(format!(
        "UPDATE stream_state state
         SET backfill_done = state.backfill_done OR $5 AND NOT more.waits,
             backfill_progress = CASE WHEN state.backfill_done OR $5 THEN 1 ELSE backfill_progress END,
             complete_to = CASE WHEN (state.backfill_done OR $5) AND NOT more.waits THEN greatest(complete_to,
                 (SELECT max(covered_to) FROM walks w
                  WHERE w.connection_id = $1 AND w.stream = $2 AND w.partition = '' AND w.mode IN ('incremental', 'snapshot')))
                 ELSE complete_to END,
             swept_to = CASE WHEN more.waits THEN swept_to ELSE greatest(swept_to, $4) END, last_success_at = $6
         FROM (SELECT {OWN_READ_OPEN} AS waits) more
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND turn_epoch = $3"
    ))
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<BigInt, _>(key.epoch)
    .bind::<Nullable<Timestamptz>, _>(closing.swept_to)
    .bind::<Bool, _>(closing.reads_all)
    .bind::<Timestamptz, _>(closing.closed_at)
    .execute(connection)?;
    Ok(StreamWrite::of(owned))
}

/// Ends a walk that has not read all of what it had to. It moves no watermark, and what an admin has allowed it is over.
pub fn end_walk(connection: &mut PgConnection, key: StreamKey, mode: Mode) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE walks SET started_at = NULL, from_time = NULL, position = NULL, mass_delete_allowed = false
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = $3",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Text, _>(mode.as_str())
    .execute(connection)?;
    forget_met(connection, key, mode)
}

/// Everything has been read, though not every absence could be proved: who waits for the reading alone need not wait on.
/// Deletions (`swept_to`) do.
pub fn read_whole(connection: &mut PgConnection, key: StreamKey) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE walks SET closed_started_at = started_at
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = 'backfill' AND started_at IS NOT NULL",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .execute(connection)?;
    diesel::sql_query(
        "UPDATE stream_state SET backfill_done = true, backfill_progress = 1
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND turn_epoch = $3",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<BigInt, _>(key.epoch)
    .execute(connection)?;
    Ok(())
}

/// Nobody allows deletions by the many any more, but for these streams.
pub fn disallow(connection: &mut PgConnection, of: ConnectionId, but: &[&str]) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE walks SET mass_delete_allowed = false
         WHERE connection_id = $1 AND mass_delete_allowed AND stream <> ALL ($2)",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Array<Text>, _>(but)
    .execute(connection)?;
    Ok(())
}

/// Throws a walk's place away, so that it starts again, and says why.
pub fn restart_walk(
    connection: &mut PgConnection,
    key: StreamKey,
    mode: Mode,
    why: &str,
) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE walks SET position = NULL, restarts = restarts + 1, restart_reason = $4
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = $3",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<Text, _>(mode.as_str())
    .bind::<Text, _>(why)
    .execute(connection)?;
    Ok(())
}

/// The state of a stream that something holds.
const HELD_STATE: &str = "CASE failure_kind WHEN 'forbidden' THEN 'forbidden' ELSE 'stalled' END";

/// Where a stream stands between turns, when a walk of it did not close.
#[derive(Debug, Clone, PartialEq)]
pub struct Setback {
    pub state: &'static str,
    /// The label of the failure's kind.
    pub kind: &'static str,
    pub stalled_reason: Option<String>,
    pub last_error: Option<String>,
    pub not_before: Option<DateTime<Utc>>,
    /// Nothing of the stream is tried before; otherwise only the walk that failed waits.
    pub whole_stream: bool,
    /// What is counted, since it is passing trouble unless it stays.
    pub strange: Option<Strange>,
}

/// Answers of which it counts how many of one kind come in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strange {
    /// 401, although the token is good.
    Refused,
    /// No JSON.
    Unread,
}

/// Writes a setback down. One that passes by itself does not lift what holds the stream until a walk has proved
/// otherwise: neither its reason nor the words for it change, only the pause.
pub fn set_back(
    connection: &mut PgConnection,
    key: StreamKey,
    mode: Option<Mode>,
    setback: &Setback,
) -> Result<StreamWrite, DbError> {
    let owned = diesel::sql_query(format!(
        "UPDATE stream_state
         SET state = CASE WHEN $5 IS NULL AND stalled_reason IS NOT NULL THEN {HELD_STATE} ELSE $4 END,
             stalled_reason = coalesce($5, stalled_reason), last_error = $6, failures = failures + 1,
             failure_kind = CASE WHEN $5 IS NULL AND stalled_reason IS NOT NULL THEN failure_kind ELSE $9 END,
             not_before = CASE WHEN $8 THEN $7 ELSE not_before END, waits_for = NULL
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND turn_epoch = $3"
    ))
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<BigInt, _>(key.epoch)
    .bind::<Text, _>(setback.state)
    .bind::<Nullable<Text>, _>(setback.stalled_reason.as_deref())
    .bind::<Nullable<Text>, _>(setback.last_error.as_deref())
    .bind::<Nullable<Timestamptz>, _>(setback.not_before)
    .bind::<Bool, _>(setback.whole_stream)
    .bind::<Text, _>(setback.kind)
    .execute(connection)?;
    if let (Some(mode), 1) = (mode, owned) {
        diesel::sql_query(
            "UPDATE walks SET failures = failures + 1, due_at = coalesce($4, due_at),
                 refusals = CASE WHEN $5 THEN refusals + 1 WHEN $6 THEN 0 ELSE refusals END,
                 unread = CASE WHEN $6 THEN unread + 1 WHEN $5 THEN 0 ELSE unread END
             WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = $3",
        )
        .bind::<BigInt, _>(key.connection.0)
        .bind::<Text, _>(key.stream)
        .bind::<Text, _>(mode.as_str())
        .bind::<Nullable<Timestamptz>, _>(setback.not_before)
        .bind::<Bool, _>(setback.strange == Some(Strange::Refused))
        .bind::<Bool, _>(setback.strange == Some(Strange::Unread))
        .execute(connection)?;
    }
    Ok(StreamWrite::of(owned))
}

/// Nothing of the stream can be done before `until`: what it waits for says so.
pub fn postpone(
    connection: &mut PgConnection,
    key: StreamKey,
    until: DateTime<Utc>,
    waits_for: &str,
    shows: bool,
) -> Result<StreamWrite, DbError> {
    let owned = diesel::sql_query(format!(
        "UPDATE stream_state
         SET not_before = $4, waits_for = $6,
             state = CASE WHEN NOT $5 THEN state WHEN stalled_reason IS NULL THEN 'backing_off' ELSE {HELD_STATE} END,
             last_error = CASE WHEN $5 THEN 'waits for the provider''s rate limit' ELSE last_error END,
             failure_kind = CASE WHEN $5 AND stalled_reason IS NULL THEN 'throttled' ELSE failure_kind END
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND turn_epoch = $3"
    ))
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<BigInt, _>(key.epoch)
    .bind::<Timestamptz, _>(until)
    .bind::<Bool, _>(shows)
    .bind::<Text, _>(waits_for)
    .execute(connection)?;
    Ok(StreamWrite::of(owned))
}

/// The kind under which it is kept that a stream is read and not relied upon yet: it waits for another to be read, or for
/// everything of its own.
pub const BEHIND: &str = "behind";

/// Says of streams of which the mirror reads everything again why their watermarks stand, unless more is said of them.
pub fn stand_until_read(
    connection: &mut PgConnection,
    of: ConnectionId,
    streams: &[&str],
) -> Result<(), DbError> {
    diesel::sql_query(
        "UPDATE stream_state SET stalled_reason = $3, failure_kind = $4
         WHERE connection_id = $1 AND stream = ANY ($2) AND backfill_done AND stalled_reason IS NULL",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Array<Text>, _>(streams)
    .bind::<Text, _>(OWN_READ_SAID)
    .bind::<Text, _>(BEHIND)
    .execute(connection)?;
    Ok(())
}

/// Of a stream that needs to know of the account what another learns: how old that may be, and what is said when it is
/// older, in front of the time since when it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Needs {
    pub age_max: Duration,
    pub said: String,
}

/// Says that all walks of a turn over this stream have closed. What is said of a walk that failed earlier, and was not due
/// now, stays. Walks that cover no more than what is known of the account, which is older than it may be, have moved
/// nothing, and neither have those that came before everything is read again: that is said in place of nothing.
pub fn settle(
    connection: &mut PgConnection,
    key: StreamKey,
    needs: Option<&Needs>,
) -> Result<StreamWrite, DbError> {
    let owned = diesel::sql_query(format!(
        "UPDATE stream_state s
         SET state = CASE WHEN found.stays THEN {HELD_STATE} WHEN found.behind IS NOT NULL THEN 'stalled'
                          WHEN found.bad THEN 'backing_off' WHEN s.backfill_done THEN 'idle' ELSE 'backfilling' END,
             stalled_reason = CASE WHEN found.stays THEN stalled_reason ELSE found.behind END,
             failure_kind = CASE WHEN found.stays THEN failure_kind WHEN found.behind IS NOT NULL THEN '{BEHIND}'
                                 WHEN found.bad THEN nullif(failure_kind, '{BEHIND}') END,
             last_error = CASE WHEN found.bad THEN last_error END,
             failures = CASE WHEN found.bad THEN failures ELSE 0 END, not_before = NULL, waits_for = NULL
         FROM (SELECT w.bad, w.bad AND o.stalled_reason IS NOT NULL AND o.failure_kind IS DISTINCT FROM '{BEHIND}' AS stays,
                   CASE WHEN NOT o.backfill_done THEN NULL WHEN {OWN_READ_OPEN} THEN '{OWN_READ_SAID}'
                       ELSE $4 || to_char(w.known_to AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS \"UTC\"') END AS behind
               FROM stream_state o
               CROSS JOIN (SELECT coalesce(bool_or(failures > 0), false) AS bad,
                       max(facts_as_of) FILTER (WHERE mode IN ('incremental', 'snapshot') AND started_at IS NULL
                           AND facts_as_of < closed_started_at - make_interval(secs => $5)) AS known_to
                   FROM walks WHERE connection_id = $1 AND stream = $2 AND partition = '') w
               WHERE o.connection_id = $1 AND o.stream = $2 AND o.partition = '') found
         WHERE s.connection_id = $1 AND s.stream = $2 AND s.partition = '' AND s.turn_epoch = $3"
    ))
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<BigInt, _>(key.epoch)
    .bind::<Nullable<Text>, _>(needs.map(|needs| needs.said.as_str()))
    .bind::<Double, _>(needs.map_or(0.0, |needs| needs.age_max.as_secs_f64()))
    .execute(connection)?;
    Ok(StreamWrite::of(owned))
}

/// Says what a stream is doing.
pub fn set_state(
    connection: &mut PgConnection,
    key: StreamKey,
    state: &'static str,
) -> Result<StreamWrite, DbError> {
    let owned = diesel::sql_query(
        "UPDATE stream_state SET state = $4
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND turn_epoch = $3",
    )
    .bind::<BigInt, _>(key.connection.0)
    .bind::<Text, _>(key.stream)
    .bind::<BigInt, _>(key.epoch)
    .bind::<Text, _>(state)
    .execute(connection)?;
    Ok(StreamWrite::of(owned))
}

/// What an admin's request does to the walks of a stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Demand<'a> {
    pub stream: &'a str,
    /// Read everything again and prove what is gone.
    pub full: bool,
    /// Read changes from here on again.
    pub since: Option<DateTime<Utc>>,
    pub mass_delete_allowed: bool,
    /// Walk every id, to find what is gone.
    pub sweep: bool,
}

impl Demand<'_> {
    /// Who allows deletions wants them to be found; reading everything finds them, too.
    pub fn sweeps(&self) -> bool {
        self.sweep || (self.mass_delete_allowed && !self.full)
    }
}

/// Makes the walks of a stream due now, as an admin asked.
pub fn demand(
    connection: &mut PgConnection,
    of: ConnectionId,
    demand: &Demand<'_>,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    // An open walk has its lower bound already and would close over the earlier one: it starts again. Where nothing is
    // covered yet, the first read of everything sets the bound.
    diesel::sql_query(
        "UPDATE walks
         SET due_at = least(due_at, $3), covered_to = CASE WHEN covered_to IS NOT NULL THEN least(covered_to, $4) END,
             started_at = CASE WHEN $4 < covered_to THEN NULL ELSE started_at END,
             from_time = CASE WHEN $4 < covered_to THEN NULL ELSE from_time END,
             position = CASE WHEN $4 < covered_to THEN NULL ELSE position END
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode IN ('incremental', 'snapshot')",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Text, _>(demand.stream)
    .bind::<Timestamptz, _>(now)
    .bind::<Nullable<Timestamptz>, _>(demand.since)
    .execute(connection)?;
    // So what a walk has closed that began in the future is no answer.
    diesel::sql_query(
        "UPDATE walks SET closed_started_at = NULL
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND closed_started_at > $3",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Text, _>(demand.stream)
    .bind::<Timestamptz, _>(now)
    .execute(connection)?;
    // A watermark that lies in the future was set by a clock that ran ahead: it is true of nothing.
    diesel::sql_query(
        "UPDATE walks SET covered_to = CASE WHEN mode <> 'archived' THEN $4 END, due_at = least(due_at, $3)
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode IN ('archived', 'sweep') AND covered_to > $3
           AND $4 IS NOT NULL",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Text, _>(demand.stream)
    .bind::<Timestamptz, _>(now)
    .bind::<Nullable<Timestamptz>, _>(demand.since)
    .execute(connection)?;
    diesel::sql_query(
        "UPDATE stream_state SET not_before = NULL,
             complete_to = CASE WHEN complete_to > $3 THEN least(complete_to, $4) ELSE complete_to END,
             swept_to = CASE WHEN swept_to > $3 THEN least(swept_to, $4) ELSE swept_to END
         WHERE connection_id = $1 AND stream = $2 AND partition = ''",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Text, _>(demand.stream)
    .bind::<Timestamptz, _>(now)
    .bind::<Nullable<Timestamptz>, _>(demand.since)
    .execute(connection)?;
    // A first read of everything that waits after a failure is tried again, too: the trouble may be over.
    diesel::sql_query(
        "UPDATE walks w SET due_at = least(w.due_at, $3), mass_delete_allowed = w.mass_delete_allowed OR $4
         FROM stream_state s
         WHERE (s.connection_id, s.stream, s.partition) = (w.connection_id, w.stream, w.partition)
           AND w.connection_id = $1 AND w.stream = $2 AND w.partition = '' AND w.mode = 'backfill' AND NOT s.backfill_done",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Text, _>(demand.stream)
    .bind::<Timestamptz, _>(now)
    .bind::<Bool, _>(demand.mass_delete_allowed)
    .execute(connection)?;
    if demand.sweeps() || demand.mass_delete_allowed {
        diesel::sql_query(
            "UPDATE walks SET due_at = least(due_at, $3), mass_delete_allowed = mass_delete_allowed OR $4
             WHERE connection_id = $1 AND stream = $2 AND partition = '' AND due_at IS NOT NULL
               AND (mode = 'snapshot' OR mode = 'sweep' AND $5)",
        )
        .bind::<BigInt, _>(of.0)
        .bind::<Text, _>(demand.stream)
        .bind::<Timestamptz, _>(now)
        .bind::<Bool, _>(demand.mass_delete_allowed)
        .bind::<Bool, _>(demand.sweeps())
        .execute(connection)?;
    }
    if !demand.full {
        return Ok(());
    }
    // A first backfill that is under way goes on, and another comes after it: see `demand_after_first`.
    diesel::sql_query(
        "UPDATE walks w
         SET due_at = least(w.due_at, $3), started_at = NULL, position = NULL, from_time = NULL,
             covered_to = CASE WHEN w.mode = 'archived' THEN NULL ELSE w.covered_to END,
             sweeping = w.mode = 'backfill',
             mass_delete_allowed = $4 OR w.mass_delete_allowed AND w.due_at IS NOT NULL
         FROM stream_state s
         WHERE (s.connection_id, s.stream, s.partition) = (w.connection_id, w.stream, w.partition)
           AND w.connection_id = $1 AND w.stream = $2 AND w.partition = ''
           AND (s.backfill_done OR w.mode = 'archived') AND w.mode IN ('backfill', 'archived')",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Text, _>(demand.stream)
    .bind::<Timestamptz, _>(now)
    .bind::<Bool, _>(demand.mass_delete_allowed)
    .execute(connection)?;
    Ok(())
}

/// Makes the read of everything due that an admin asked for at `asked_at`, once the first one, which had begun by then, has
/// closed.
pub fn demand_after_first(
    connection: &mut PgConnection,
    of: ConnectionId,
    demand: &Demand<'_>,
    asked_at: DateTime<Utc>,
) -> Result<(), DbError> {
    if !demand.full {
        return Ok(());
    }
    diesel::sql_query(
        "UPDATE walks SET due_at = coalesce(due_at, $3), sweeping = true, mass_delete_allowed = mass_delete_allowed AND due_at IS NOT NULL OR $4
         WHERE connection_id = $1 AND stream = $2 AND partition = '' AND mode = 'backfill'
           AND closed_started_at < $3 AND started_at IS NULL AND (due_at IS NULL OR $4)",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Text, _>(demand.stream)
    .bind::<Timestamptz, _>(asked_at)
    .bind::<Bool, _>(demand.mass_delete_allowed)
    .execute(connection)?;
    Ok(())
}

/// A turn that left something due is followed by the next only after this pause, so that work that cannot be done does
/// not spin.
const BETWEEN_TURNS: Duration = Duration::from_millis(200);

/// Connected accounts of these providers with a walk that is due (also one of which a clock that ran ahead says otherwise: see
/// `sync::plan`), and those that no turn has looked at yet. An account that needs a new consent is read for as long as its
/// access token lives, unless the API has refused that.
pub fn due(
    connection: &mut PgConnection,
    providers: &[(String, Rhythm)],
    now: DateTime<Utc>,
) -> Result<Vec<ConnectionId>, DbError> {
    let within = |rhythm: &Rhythm, mode, fails| delta(rhythm.due_within(mode, fails)).num_milliseconds();
    let (mut names, mut modes, mut calm, mut failing) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, rhythm) in providers {
        for mode in Mode::ALL {
            names.push(name.as_str());
            modes.push(mode.as_str());
            calm.push(within(rhythm, mode, false));
            failing.push(within(rhythm, mode, true));
        }
    }
    let query = diesel::sql_query(
        "SELECT DISTINCT c.id AS value FROM connections c
         JOIN stream_state s ON s.connection_id = c.id
         JOIN walks w ON (w.connection_id, w.stream, w.partition) = (s.connection_id, s.stream, s.partition)
         JOIN unnest($2, $4, $5, $6) AS r (provider, mode, calm_ms, failing_ms)
           ON (r.provider, r.mode) = (c.provider, w.mode)
         LEFT JOIN tokens t ON t.connection_id = c.id
         WHERE (c.state = 'connected'
                OR c.state = 'needs_reauth' AND t.refused_at IS NULL AND t.expires_at > $1 + interval '1 minute')
           AND (coalesce(c.pacing_at, '-infinity') <= $3 OR c.pacing_at > $1 + interval '1 minute')
           AND (w.due_at <= $1
                OR w.due_at > $1 + CASE WHEN w.failures > 0 THEN failing_ms ELSE calm_ms END * interval '1 millisecond'
                OR w.mode IN ('incremental', 'snapshot') AND w.covered_to > $7)
           AND (coalesce(s.not_before, $1) <= $1 OR s.not_before > $8)
         UNION
         SELECT c.id FROM connections c
         WHERE c.state = 'connected' AND c.provider = ANY ($2)
           AND NOT EXISTS (SELECT FROM stream_state s WHERE s.connection_id = c.id)",
    )
    .bind::<Timestamptz, _>(now)
    .bind::<Array<Text>, _>(names)
    .bind::<Timestamptz, _>(now - delta(BETWEEN_TURNS))
    .bind::<Array<Text>, _>(modes)
    .bind::<Array<BigInt>, _>(calm)
    .bind::<Array<BigInt>, _>(failing)
    .bind::<Timestamptz, _>(now + delta(AHEAD_MAX))
    .bind::<Timestamptz, _>(now + delta(PAUSE_MAX + AHEAD_MAX));
    Ok(rows::values::<BigInt, i64, _>(connection, query)?.into_iter().map(ConnectionId).collect())
}

/// When the next walk of such an account is due, if that is after `now`; just after it, when a turn has left work.
pub fn next_due(
    connection: &mut PgConnection,
    providers: &[String],
    now: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, DbError> {
    let query = diesel::sql_query(
        "SELECT min(greatest(w.due_at, s.not_before, c.pacing_at + $3 * interval '1 millisecond')) AS value
         FROM connections c
         JOIN stream_state s ON s.connection_id = c.id
         JOIN walks w ON (w.connection_id, w.stream, w.partition) = (s.connection_id, s.stream, s.partition)
         WHERE c.state = 'connected' AND c.provider = ANY ($2) AND w.due_at IS NOT NULL
           AND greatest(w.due_at, s.not_before, c.pacing_at + $3 * interval '1 millisecond') > $1",
    )
    .bind::<Timestamptz, _>(now)
    .bind::<Array<Text>, _>(providers)
    .bind::<BigInt, _>(delta(BETWEEN_TURNS).num_milliseconds());
    rows::value::<Nullable<Timestamptz>, Option<DateTime<Utc>>, _>(connection, query)
}
