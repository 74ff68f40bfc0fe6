//! What admins asked of a connection's streams: applied when a turn begins, settled when the walks that it made due
//! have closed. A request is a row, so none is swallowed by a job that is already live.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::db::requests::{self, RequestKind, RequestOutcome};
use crate::db::streams::{Demand, StreamRow, WalkRow};
use crate::db::turns::{self, SyncRequest};
use crate::db::{DbError, PgConnection, streams};
use crate::domain::ids::ConnectionId;
use crate::domain::spec::{Mode, ProviderSpec};

/// The arguments of a `sync` request.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "the shape of the request on record")]
struct Args {
    /// `None`: all streams.
    streams: Option<Vec<String>>,
    full: bool,
    since: Option<DateTime<Utc>>,
    allow_mass_delete: bool,
    /// Find what was deleted, without reading everything again.
    sweep: bool,
    /// The mirror asks it of itself.
    own: bool,
}

impl Args {
    fn of(request: &SyncRequest) -> Self {
        Self::deserialize(&request.args).unwrap_or_default()
    }

    fn demand<'a>(&self, stream: &'a str) -> Demand<'a> {
        Demand {
            stream,
            full: self.full,
            since: self.since,
            mass_delete_allowed: self.allow_mass_delete,
            sweep: self.sweep,
        }
    }

    fn covers(&self, stream: &str) -> bool {
        self.streams.as_ref().is_none_or(|streams| streams.iter().any(|name| name == stream))
    }
}

/// Makes the walks due that open requests ask for, once for each request. A first read of everything that was under way
/// when all was asked for goes on, and what was asked for comes after it. Returns whether a person asked for any that is new.
pub fn apply(
    connection: &mut PgConnection,
    of: ConnectionId,
    spec: &'static ProviderSpec,
    now: DateTime<Utc>,
) -> Result<bool, DbError> {
    let mut news = false;
    for request in turns::sync_requests(connection, of)? {
        let args = Args::of(&request);
        let asked: Vec<_> = spec.streams.iter().filter(|stream| args.covers(stream.name)).collect();
        // They cover no change that is younger than what they know, so what they need to know is asked for as well.
        let needed = asked.iter().flat_map(|stream| stream.needs_facts).map(|fact| fact.taught_by);
        let teachers: BTreeSet<&str> = needed.filter(|teacher| !args.covers(teacher)).collect();
        for stream in teachers.into_iter().filter(|_| request.applied_at.is_none()) {
            streams::demand(connection, of, &Demand { stream, ..Demand::default() }, now)?;
        }
        for stream in &asked {
            let demand = args.demand(stream.name);
            match request.applied_at {
                None => streams::demand(connection, of, &demand, now)?,
                Some(applied_at) => streams::demand_after_first(connection, of, &demand, applied_at)?,
            }
        }
        if request.applied_at.is_none() {
            if args.own && args.full {
                let names: Vec<&str> = asked.iter().map(|stream| stream.name).collect();
                streams::stand_until_read(connection, of, &names)?;
            }
            turns::mark_applied(connection, request.id, now)?;
            news |= !args.own;
        }
    }
    Ok(news)
}

/// Ends the requests whose walks have closed. Only the tables say so, so a turn that another has overtaken may do it as well.
pub fn settle(
    connection: &mut PgConnection,
    of: ConnectionId,
    spec: &'static ProviderSpec,
) -> Result<(), DbError> {
    let open = turns::sync_requests(connection, of)?;
    if open.is_empty() {
        return Ok(());
    }
    let rows = streams::streams(connection, of)?;
    let walks = streams::walks(connection, of)?;
    let mut ended = false;
    for request in open {
        let Some(applied_at) = request.applied_at else { continue };
        let args = Args::of(&request);
        let asked = spec.streams.iter().filter(|stream| args.covers(stream.name));
        let stands: Vec<Standing> =
            asked.map(|stream| standing(stream.name, &args, applied_at, &rows, &walks)).collect();
        if stands.contains(&Standing::Open) {
            continue;
        }
        let failed: Vec<&str> = stands
            .iter()
            .filter_map(|standing| match standing {
                Standing::Failed(why) => Some(why.as_str()),
                _ => None,
            })
            .collect();
        if args.own && !failed.is_empty() {
            // Its walks stay due, and what is claimed waits for them: nobody else would ask again.
            continue;
        }
        ended = true;
        if failed.is_empty() {
            requests::finish(connection, request.id, RequestOutcome::Done, None)?;
        } else {
            requests::finish(connection, request.id, RequestOutcome::Failed, Some(&failed.join("; ")))?;
        }
    }
    if ended { disallow(connection, of, spec) } else { Ok(()) }
}

/// What a request has allowed is over with it.
fn disallow(
    connection: &mut PgConnection,
    of: ConnectionId,
    spec: &'static ProviderSpec,
) -> Result<(), DbError> {
    let open = turns::sync_requests(connection, of)?;
    let allowing: Vec<Args> = open.iter().map(Args::of).filter(|args| args.allow_mass_delete).collect();
    let allowed = |stream: &&str| allowing.iter().any(|args| args.covers(stream));
    let allowed: Vec<&str> = spec.streams.iter().map(|stream| stream.name).filter(allowed).collect();
    streams::disallow(connection, of, &allowed)
}

#[derive(Debug, Clone, PartialEq)]
enum Standing {
    Closed,
    Open,
    Failed(String),
}

/// Whether the walks of a stream that a request asked for have closed since it was applied.
fn standing(
    stream: &str,
    args: &Args,
    applied_at: DateTime<Utc>,
    rows: &[StreamRow],
    walks: &[WalkRow],
) -> Standing {
    let wanted = |walk: &&WalkRow| {
        walk.stream == stream
            && match Mode::parse(&walk.mode) {
                Some(Mode::Backfill | Mode::Archived) => args.full,
                Some(Mode::Incremental | Mode::Snapshot) => true,
                // Before the first read of everything is done there is nothing to sweep, and it is never due.
                Some(Mode::Sweep) => args.demand(stream).sweeps() && walk.due_at.is_some(),
                None => false,
            }
    };
    // A read of everything that leaves deletions unproved (`streams::read_whole`) is put off, and does for the mirror's own.
    let whole = |walk: &WalkRow| args.own || walk.mode != Mode::Backfill.as_str() || walk.failures == 0;
    let closed = |walk: &WalkRow| walk.closed_started_at.is_some_and(|at| at >= applied_at) && whole(walk);
    let row = rows.iter().find(|row| row.stream == stream);
    if walks.iter().filter(wanted).all(closed) {
        // Another walk of it was not allowed, which keeps the stream from being read.
        let forbidden = row.filter(|row| row.state == "forbidden");
        return forbidden.map_or(Standing::Closed, |row| Standing::Failed(stands_still(row)));
    }
    // What is said of a stream stays until a walk has proved otherwise: only a walk that was put off since the request came
    // has failed it.
    let put_off = |walk: &WalkRow| !closed(walk) && walk.due_at.is_some_and(|due_at| due_at > applied_at);
    let failed = walks.iter().filter(wanted).any(put_off);
    match row {
        Some(row) if failed && !row.is_behind() && matches!(row.state.as_str(), "stalled" | "forbidden") => {
            Standing::Failed(stands_still(row))
        }
        _ => Standing::Open,
    }
}

fn stands_still(row: &StreamRow) -> String {
    let why = row.stalled_reason.as_deref().unwrap_or("see `fieldmirror status`");
    format!("`{}` is {}: {why}", row.stream, row.state)
}

/// Ends requests on a connection that cannot be synced.
pub fn give_up(connection: &mut PgConnection, of: ConnectionId, why: &str) -> Result<(), DbError> {
    for kind in [RequestKind::Sync, RequestKind::Verify] {
        requests::finish_open(connection, of, kind, RequestOutcome::Failed, Some(why))?;
    }
    streams::disallow(connection, of, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).unwrap()
    }

    fn row() -> StreamRow {
        StreamRow {
            stream: "tickets".to_owned(),
            state: "idle".to_owned(),
            complete_to: None,
            backfill_done: true,
            rows: 0,
            failures: 0,
            not_before: None,
            stalled_reason: None,
            failure_kind: None,
        }
    }

    fn walk(mode: Mode, closed_started_at: Option<i64>, due_at: Option<i64>) -> WalkRow {
        WalkRow {
            stream: "tickets".to_owned(),
            mode: mode.as_str().to_owned(),
            started_at: None,
            from_time: None,
            position: None,
            covered_to: None,
            closed_started_at: closed_started_at.map(at),
            due_at: due_at.map(at),
            sweeping: false,
            mass_delete_allowed: false,
            restarts: 0,
            restart_reason: None,
            ahead_ms: 0,
            failures: 0,
            refusals: 0,
            unread: 0,
            closed_ahead_ms: None,
            facts_as_of: None,
        }
    }

    #[test]
    fn a_request_is_over_when_what_it_asked_for_has_closed() {
        let applied_at = at(100);
        let check = |full: bool, backfill: WalkRow, incremental: Option<i64>, expected: Standing| {
            let walks = [backfill, walk(Mode::Incremental, incremental, Some(400))];
            let args = Args { full, ..Args::default() };
            assert_eq!(standing("tickets", &args, applied_at, &[], &walks), expected, "{walks:?}");
        };
        check(false, walk(Mode::Backfill, None, Some(0)), Some(100), Standing::Closed);
        check(false, walk(Mode::Backfill, None, Some(0)), Some(99), Standing::Open);
        // Made due by the request, not yet walked again; then walked.
        check(true, walk(Mode::Backfill, Some(50), Some(100)), Some(101), Standing::Open);
        check(true, walk(Mode::Backfill, Some(101), None), Some(101), Standing::Closed);
        // What an earlier walk has said of the stream is not the answer; what one says since then is.
        let row = StreamRow { state: "stalled".into(), stalled_reason: Some("no list".into()), ..row() };
        let stands = |due_at| {
            let walks = [walk(Mode::Incremental, Some(50), Some(due_at))];
            standing("tickets", &Args::default(), applied_at, std::slice::from_ref(&row), &walks)
        };
        assert_eq!(stands(100), Standing::Open);
        assert_eq!(stands(160), Standing::Failed("`tickets` is stalled: no list".into()));
        // One that was not asked for is not allowed: what was asked for has closed, and the stream is not read all the same.
        let row = StreamRow { state: "forbidden".into(), stalled_reason: Some("no scope".into()), ..row };
        let walks = [walk(Mode::Incremental, Some(101), Some(400)), walk(Mode::Backfill, None, Some(86_500))];
        let stands = standing("tickets", &Args::default(), applied_at, &[row], &walks);
        assert_eq!(stands, Standing::Failed("`tickets` is forbidden: no scope".into()));
        // The first one was under way when the request came: it goes on, and what was asked for comes after it.
        check(true, walk(Mode::Backfill, None, Some(0)), Some(101), Standing::Open);
        check(true, walk(Mode::Backfill, Some(50), Some(100)), Some(101), Standing::Open);
        check(true, walk(Mode::Backfill, Some(101), None), Some(99), Standing::Open);
    }
}
