//! One walk: drives a stream's state machine, sending on one side and writing on the other.
//!
//! The two sides run side by side: the next requests are on their way while the last pages are being written. Between
//! them stands a short queue, so that memory does not grow with the account; what has gathered in it is written in one
//! transaction.

use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::try_join_all;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::commit::{self, Ready, Source};
use super::confirm::{self, Confirmed};
use super::send::{Halt, Sender, Tally};
use super::suspicion::{self, Advance};
use super::watermark;
use crate::config::SyncSettings;
use crate::db::streams::{Closing, StreamKey, StreamWrite, WalkRow};
use crate::db::sync_runs::Counts;
use crate::db::{Db, DbError, mirror, streams, sync_runs};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::measure;
use crate::domain::record::{Deletion, Tombstone};
use crate::domain::spec::{Mode, PAUSE_MAX, Rhythm, StreamSpec};
use crate::domain::step::{Facts, Options, Params, Position, Step, StepContext, Walk};
use crate::domain::time::delta;

/// Pages that wait to be written, and pages that go into one transaction.
const PAGES_WAITING_MAX: usize = 6;
/// How long a page waits for others to be written with it: what a transaction costs besides its rows is paid once.
const GATHERING_MAX: Duration = Duration::from_millis(250);
/// Records that are read by their ids at once.
const READ_BACK_MAX: usize = 200;
/// A place that is refused this often is not a passing matter.
const RESTARTS_MAX: i32 = 3;
/// A page that has been begun is read to its end, though the turn is over by then, if that takes no longer than this:
/// broken off, it would begin anew in the next turn, which need not be longer.
pub(super) const PAGE_OUTLASTS_MAX: Duration = Duration::from_secs(30);
/// A snapshot that is broken off starts again, so it may outlast the turn by this factor.
const SNAPSHOT_PATIENCE: u32 = 10;

/// How long a first read that could not read everything waits before it begins again.
const PARTIAL_BACKFILL_PAUSE: Duration = PAUSE_MAX;

/// What a walk needs of its turn.
pub struct Drive<'a> {
    pub db: &'a Db,
    pub sender: &'a Sender<'a>,
    pub settings: &'a SyncSettings,
    pub rhythm: Rhythm,
    pub api_version: &'a str,
    pub page_size: u32,
    pub params: &'a Params,
    pub options: &'a Options,
    pub facts: &'a Facts,
    pub began: Instant,
}

/// What a walk has fetched besides its pages.
#[derive(Default)]
pub(super) struct Fetched {
    /// The ids that a snapshot has met.
    pub(super) met: Vec<String>,
    /// Records and deletions that pages have brought.
    read: usize,
    /// Why not all of what it had to cover could be read.
    pub(super) lost: Option<String>,
}

/// A walk that is open.
pub(super) struct Open {
    pub(super) source: Source,
    pub(super) walk: Walk,
    /// What it reads of changes is whole up to this moment: when it began, or what it needs to know is of.
    reads_as_of: DateTime<Utc>,
    start: Position,
    pub(super) mass_delete_allowed: bool,
    /// How often the walk has started again.
    restarts: i32,
    /// Whether it looks once more for what it has not met.
    pub(super) looks_again: bool,
    /// By how much our clock ran ahead of the provider's in earlier runs of the walk.
    ahead_ms: i64,
    /// The same in the walk of its kind that closed last, if one has.
    before_ahead: Option<TimeDelta>,
    pub(super) deadline: Instant,
}

impl Drive<'_> {
    /// Works on a walk until it closes or something halts it. Whatever was written stays written. Says as well how many
    /// requests it has sent.
    pub async fn walk(
        &self,
        key: StreamKey,
        spec: &'static StreamSpec,
        row: &WalkRow,
        mode: Mode,
        complete_to: Option<DateTime<Utc>>,
    ) -> (Result<(), Halt>, i64) {
        let mut open = match self.open(key, spec, row, mode).await {
            Ok(open) => open,
            Err(halt) => return (Err(halt), 0),
        };
        let hold_back = self.hold_back(spec);
        let ahead = TimeDelta::milliseconds(row.closed_ahead_ms.unwrap_or_default());
        let closed = row.closed_started_at.map(|began| watermark::covered(mode, began, ahead, hold_back));
        let reaches_back = watermark::reaches_back(mode, row.covered_to, closed, complete_to);
        // What the provider keeps of where the last walk came to is not where such a one begins.
        if reaches_back && open.start == Position::start() {
            let window = self.sender.provider.window(&self.context(&open));
            open.start = window.map_or(open.start, |window| window.at);
        }
        let tally = Tally::of(spec.name, open.ahead_ms);
        let mut counts = Counts::default();
        let result = self.work(&open, &tally, &mut counts).await;
        self.end_run(&open.source, &result, &tally, counts).await;
        (result, tally.requests.load(Ordering::Relaxed))
    }

    async fn open(
        &self,
        key: StreamKey,
        spec: &'static StreamSpec,
        row: &WalkRow,
        mode: Mode,
    ) -> Result<Open, Halt> {
        let now = self.now();
        // A snapshot proves what is gone by what it has met, which it keeps in memory: it starts afresh every time.
        // So does what has begun at a time that has not come yet, by a clock that ran ahead.
        let resumed = row.started_at.filter(|started_at| mode != Mode::Snapshot && *started_at <= now);
        let started_at = resumed.unwrap_or(now);
        let from = match resumed {
            Some(_) => row.from_time,
            None => row.covered_to.map(|covered_to| watermark::from(covered_to, self.settings.overlap)),
        };
        let from = from.filter(|_| matches!(mode, Mode::Incremental | Mode::Archived));
        let relies = from.is_some() || mode == Mode::Snapshot;
        if let Some(covered_to) = row.covered_to.filter(|_| resumed.is_none() && relies)
            && suspicion::lies_in_future(covered_to, self.settings.overlap, now)
        {
            return Err(Halt::Failed(watermark_in_future(key, covered_to)));
        }
        let needed = row.facts_as_of.filter(|_| !spec.needs_facts.is_empty());
        let reads_as_of = needed.map_or(started_at, |as_of| as_of.min(started_at));
        let needs = (!spec.needs_facts.is_empty()).then_some(reads_as_of);
        let hold_back = delta(self.hold_back(spec));
        let state = if mode == Mode::Backfill { "backfilling" } else { "syncing" };
        let known = is_sweeping(row, mode);
        let opened = self
            .db
            .transaction(move |connection| {
                if streams::lock(connection, key)? == StreamWrite::Lost {
                    return Ok(None);
                }
                let mut sweeping = known;
                if resumed.is_none() {
                    streams::open_walk(connection, key, mode, started_at, from, needs)?;
                    // A first read of everything may have begun before, and have left rows that are gone since.
                    if mode == Mode::Backfill && !known {
                        let living = mirror::living_any(connection, spec, key.connection)?;
                        streams::sweep_along(connection, key, living)?;
                        sweeping = living;
                    }
                    if sweeping || mode == Mode::Snapshot {
                        mirror::date_back(connection, spec, key.connection, started_at)?;
                    }
                }
                if mode == Mode::Backfill {
                    streams::begin_watermark(connection, key, reads_as_of - hold_back)?;
                }
                let _owned = streams::set_state(connection, key, state)?;
                let run = sync_runs::begin(connection, key.connection, key.stream, mode, now)?;
                Ok(Some((run, sweeping)))
            })
            .await;
        let (run, sweeping) = opened.map_err(halt)?.ok_or(Halt::Lost)?;
        let saved = row.position.clone().filter(|_| resumed.is_some());
        let start =
            saved.and_then(|saved| serde_json::from_value(saved).ok()).unwrap_or_else(Position::start);
        let limit = self.settings.turn_limit * if mode == Mode::Snapshot { SNAPSHOT_PATIENCE } else { 1 };
        Ok(Open {
            source: Source {
                key,
                spec,
                mode,
                run,
                opened_at: now,
                sweeping,
                history: self.settings.keeps_history(self.sender.provider.spec().name, spec.name),
            },
            walk: Walk { mode, started_at, from, facts_as_of: row.facts_as_of },
            reads_as_of,
            start,
            mass_delete_allowed: row.mass_delete_allowed,
            restarts: row.restarts,
            looks_again: resumed.is_some() && row.restart_reason.as_deref() == Some(confirm::LOOKS_AGAIN),
            ahead_ms: resumed.map_or(0, |_| row.ahead_ms),
            before_ahead: row.closed_ahead_ms.map(TimeDelta::milliseconds),
            deadline: self.began + limit,
        })
    }

    /// Reads the walk to its end. One that the provider sends back begins again, wherever it was; not without end.
    async fn work(&self, open: &Open, tally: &Tally, counts: &mut Counts) -> Result<(), Halt> {
        let why = match self.read(open, tally, counts).await {
            Err(Halt::Restart(why)) => why,
            other => return other,
        };
        self.restart(&open.source, &why).await?;
        if open.restarts >= RESTARTS_MAX {
            let message = format!("the walk started again {} times, and again: {why}", open.restarts);
            return Err(Halt::Failed(Failure::changed(message)));
        }
        Err(Halt::Restart(why))
    }

    async fn read(&self, open: &Open, tally: &Tally, counts: &mut Counts) -> Result<(), Halt> {
        let (queue, pages) = mpsc::channel(PAGES_WAITING_MAX);
        let fetching = self.fetch(open, open.start.clone(), tally, queue);
        let writing = self.write(open, pages, tally, counts);
        let (fetched, written) = tokio::join!(fetching, writing);
        written?;
        match fetched {
            Ok(Fetched { lost: Some(why), .. }) => self.close_partly(open, why).await,
            Ok(Fetched { met, read, lost: None }) => {
                let met = self.spare(open, met, tally, counts).await?;
                self.doubt(open, read).await?;
                self.recover(open, tally, counts).await?;
                let closed = match self.confirm(open, met, tally, counts).await {
                    Ok(Confirmed { unproven: Some(why), .. }) => self.close_unproven(open, why).await,
                    Ok(Confirmed { met, unproven: None }) => self.close(open, &met, tally, counts).await,
                    Err(halt) => Err(halt),
                };
                if let Err(Halt::Failed(Failure { kind: FailureKind::Held, .. })) = closed {
                    // What was seen may have been a passing whim of the provider: the next time it is looked at anew.
                    self.forget(&open.source).await?;
                }
                closed
            }
            Err(halt) => Err(halt),
        }
    }

    /// Does not believe that nothing is left of many rows. What a sweep has not met is for the brake.
    async fn doubt(&self, open: &Open, read: usize) -> Result<(), Halt> {
        let Source { key, spec, mode, .. } = open.source;
        let whole = open.start == Position::start() && mode == Mode::Incremental;
        if read > 0 || !whole || open.mass_delete_allowed || !self.sender.provider.shows_unchanged(spec) {
            return Ok(());
        }
        let living = self.db.run(move |connection| mirror::living(connection, spec, key.connection));
        let living = living.await.map_err(halt)?;
        if suspicion::is_empty_where_many_were(read, living) {
            let living = usize::try_from(living).unwrap_or(0);
            return Err(Halt::Failed(confirm::brake_holds(&open.source, living, living)));
        }
        Ok(())
    }

    /// Steps through the state machine to its end.
    async fn fetch(
        &self,
        open: &Open,
        start: Position,
        tally: &Tally,
        queue: mpsc::Sender<(Ready, Position)>,
    ) -> Result<Fetched, Halt> {
        let cx = self.context(open);
        let mut at = start;
        let mut replies = Vec::new();
        let mut fetched = Fetched::default();
        let mut advance = Advance::default();
        let name = open.source.spec.name;
        let stuck = |how| Halt::Failed(Failure::changed(format!("the walk over `{name}` {how}")));
        let mut deadline = open.deadline;
        loop {
            match self.sender.provider.step(&cx, &at, std::mem::take(&mut replies)).map_err(Halt::Failed)? {
                Step::Send { requests, at: next } => {
                    advance.sends(requests.len()).map_err(stuck)?;
                    let sending = requests.iter().map(|request| self.sender.send(request, deadline, tally));
                    replies = try_join_all(sending).await?;
                    at = next;
                    deadline = open.deadline + PAGE_OUTLASTS_MAX;
                }
                Step::Emit { page, at: next } => {
                    advance.emits(&at, &next).map_err(stuck)?;
                    if open.walk.mode == Mode::Snapshot {
                        fetched.met.extend(page.records.iter().map(|record| record.id.clone()));
                    }
                    fetched.read += page.records.len() + page.met.len() + page.tombstones.len();
                    let ready = Ready::of(open.source.spec, page);
                    // The writer has gone: it says why.
                    if queue.send((ready, next.clone())).await.is_err() {
                        return Ok(fetched);
                    }
                    at = next;
                    deadline = open.deadline;
                }
                Step::Done => return Ok(fetched),
                Step::Partial { why } => return Ok(Fetched { lost: Some(why), ..fetched }),
            }
        }
    }

    pub(super) fn context<'a>(&'a self, open: &'a Open) -> StepContext<'a> {
        StepContext {
            stream: open.source.spec,
            walk: &open.walk,
            api_version: self.api_version,
            page_size: self.page_size,
            facts: self.facts,
            params: self.params,
            options: self.options,
        }
    }

    /// How long a change may take to become visible.
    fn hold_back(&self, spec: &StreamSpec) -> Duration {
        self.settings.hold_back.max(self.sender.provider.visibility_lag(spec, self.options))
    }

    /// Writes what has gathered, one transaction at a time, until the other side is done.
    async fn write(
        &self,
        open: &Open,
        mut pages: mpsc::Receiver<(Ready, Position)>,
        tally: &Tally,
        counts: &mut Counts,
    ) -> Result<(), Halt> {
        let (source, mut noted_ms) = (open.source, open.ahead_ms);
        loop {
            let batch = gather(&mut pages).await;
            if batch.is_empty() {
                return Ok(());
            }
            let mut so_far = with_requests(*counts, tally);
            let ahead_ms = tally.ahead_ms.load(Ordering::Relaxed);
            let ahead = Some(ahead_ms).filter(|ahead_ms| *ahead_ms > noted_ms);
            let write = self.db.transaction(move |connection| {
                let owned = commit::pages(connection, &source, batch, &mut so_far)?;
                if let (Some(ahead_ms), StreamWrite::Done) = (ahead, owned) {
                    streams::note_ahead(connection, source.key, source.mode, ahead_ms)?;
                }
                Ok((owned, so_far))
            });
            let (owned, so_far) = write.await.map_err(halt)?;
            if owned == StreamWrite::Lost {
                return Err(Halt::Lost);
            }
            noted_ms = noted_ms.max(ahead_ms);
            *counts = so_far;
        }
    }

    /// Reads the records that a sweep has met by their ids alone, and that the mirror lacks or holds as gone: coming back
    /// need not move a record's modification, so nothing else would ever bring it.
    async fn recover(&self, open: &Open, tally: &Tally, counts: &mut Counts) -> Result<(), Halt> {
        let (source, provider) = (open.source, self.sender.provider);
        let cx = self.context(open);
        if source.mode != Mode::Sweep || provider.reread(&cx, &[]).is_none() {
            return Ok(());
        }
        let (spec, of) = (source.spec, source.key.connection);
        let back = self.db.run(move |connection| mirror::met_not_living(connection, spec, of, source.mode));
        for ids in back.await.map_err(halt)?.chunks(READ_BACK_MAX) {
            let Some(start) = provider.reread(&cx, ids) else { return Ok(()) };
            self.fetch_aside(open, start, tally, counts).await?;
        }
        Ok(())
    }

    /// Writes what was asked for beside the walk's own pages.
    pub(super) async fn write_aside(
        &self,
        source: Source,
        page: Ready,
        tally: &Tally,
        counts: &mut Counts,
    ) -> Result<(), Halt> {
        let mut so_far = with_requests(*counts, tally);
        let written = self.db.transaction(move |connection| {
            let owned = commit::aside(connection, &source, page, &mut so_far)?;
            Ok((owned, so_far))
        });
        let (owned, so_far) = written.await.map_err(halt)?;
        if owned == StreamWrite::Lost {
            return Err(Halt::Lost);
        }
        *counts = so_far;
        Ok(())
    }

    /// Walks beside the walk, and writes what that brings.
    pub(super) async fn fetch_aside(
        &self,
        open: &Open,
        start: Position,
        tally: &Tally,
        counts: &mut Counts,
    ) -> Result<Fetched, Halt> {
        let (queue, mut pages) = mpsc::channel(PAGES_WAITING_MAX);
        let writing = async {
            let mut written = Ok(());
            while let Some((page, _)) = pages.recv().await {
                // What comes after a failure is taken all the same: the other side waits until it is.
                if written.is_ok() {
                    written = self.write_aside(open.source, page, tally, counts).await;
                }
            }
            written
        };
        let (fetched, written) = tokio::join!(self.fetch(open, start, tally, queue), writing);
        written?;
        fetched
    }

    /// Throws away where the walk stands and what it has met.
    async fn forget(&self, source: &Source) -> Result<(), Halt> {
        let (key, mode) = (source.key, source.mode);
        let ended = self.db.transaction(move |connection| {
            let owned = streams::lock(connection, key)?;
            if owned == StreamWrite::Done {
                streams::end_walk(connection, key, mode)?;
            }
            Ok(owned)
        });
        if ended.await.map_err(halt)? == StreamWrite::Lost { Err(Halt::Lost) } else { Ok(()) }
    }

    /// Ends a walk that could not read all of what it had to: it starts again when it is due, and moves nothing.
    async fn close_partly(&self, open: &Open, why: String) -> Result<(), Halt> {
        let mode = open.source.mode;
        self.forget(&open.source).await?;
        let pause = self.rhythm.of(mode).unwrap_or(PARTIAL_BACKFILL_PAUSE);
        Err(Halt::Partial { why, due_at: self.now() + delta(pause) })
    }

    /// The same where all was read, and only the absence of some rows could not be proved.
    async fn close_unproven(&self, open: &Open, why: String) -> Result<(), Halt> {
        if open.source.mode == Mode::Backfill {
            let key = open.source.key;
            let noted = self.db.transaction(move |connection| {
                let owned = streams::lock(connection, key)?;
                if owned == StreamWrite::Done {
                    streams::read_whole(connection, key)?;
                }
                Ok(owned)
            });
            if noted.await.map_err(halt)? == StreamWrite::Lost {
                return Err(Halt::Lost);
            }
        }
        self.close_partly(open, why).await
    }

    /// Closes the walk: what it proves to be gone is marked, and the watermarks move.
    async fn close(
        &self,
        open: &Open,
        met: &[String],
        tally: &Tally,
        counts: &mut Counts,
    ) -> Result<(), Halt> {
        let now = self.now();
        let source = open.source;
        let mut closing = self.closing(open, tally, now);
        let again_from = self.again_from(open, tally);
        if again_from.is_some() {
            closing.due_at = Some(now);
        }
        let ahead_ms = tally.ahead_ms.load(Ordering::Relaxed);
        let (started_at, allowed) = (open.walk.started_at, open.mass_delete_allowed);
        // What the next walk over changes reaches back for anyway needs no correction once one has closed.
        let clock_ahead = tally.ahead() > delta(self.settings.overlap);
        let met = met.to_vec();
        let mut so_far = with_requests(*counts, tally);
        let closed = self.db.transaction(move |connection| {
            if streams::lock(connection, source.key)? == StreamWrite::Lost {
                return Ok(Err(Halt::Lost));
            }
            let gone = confirm::unmet(connection, &source, &met, started_at)?;
            if let Some(holds) = confirm::brake(connection, &source, gone.len(), allowed)? {
                return Ok(Err(Halt::Failed(holds)));
            }
            let proven = gone.into_iter().map(|id| absent(id, started_at)).collect();
            commit::bury(connection, &source, proven, &mut so_far)?;
            // The first lower bound of changes was set before anything was known of the provider's clock.
            if source.mode == Mode::Backfill {
                streams::lower_watermark(connection, source.key, closing.covered_to, clock_ahead)?;
            }
            streams::note_ahead(connection, source.key, source.mode, ahead_ms)?;
            let owned = streams::close_walk(connection, source.key, &closing)?;
            if let Some(again_from) = again_from {
                streams::lower_watermark(connection, source.key, again_from, true)?;
            }
            Ok(if owned == StreamWrite::Lost { Err(Halt::Lost) } else { Ok(so_far) })
        });
        *counts = closed.await.map_err(halt)??;
        Ok(())
    }

    /// From where on a walk over changes has to be walked again, since the provider's clock was set back meanwhile.
    fn again_from(&self, open: &Open, tally: &Tally) -> Option<DateTime<Utc>> {
        if open.walk.mode != Mode::Incremental {
            return None;
        }
        watermark::set_back(open.walk.from?, open.before_ahead?, tally.ahead(), self.settings.overlap)
    }

    fn closing(&self, open: &Open, tally: &Tally, now: DateTime<Utc>) -> Closing {
        let mode = open.walk.mode;
        let started_at = open.walk.started_at;
        let (spec, ahead) = (open.source.spec, tally.ahead());
        let lag = self.sender.provider.visibility_lag(spec, self.options);
        Closing {
            mode,
            covered_to: watermark::covered(mode, open.reads_as_of, ahead, self.hold_back(spec)),
            swept_to: watermark::swept(mode, started_at, lag),
            reads_all: matches!(mode, Mode::Snapshot | Mode::Backfill),
            sweeps: mode == Mode::Backfill && open.source.sweeping,
            due_at: self.rhythm.of(mode).map(|interval| (started_at + delta(interval)).max(now)),
            sweep_due_at: now + delta(self.settings.sweep_interval),
            closed_at: now,
        }
    }

    async fn restart(&self, source: &Source, why: &str) -> Result<(), Halt> {
        let (key, mode, why) = (source.key, source.mode, why.to_owned());
        let restarted = self.db.transaction(move |connection| {
            if streams::lock(connection, key)? == StreamWrite::Done {
                streams::restart_walk(connection, key, mode, &why)?;
            }
            Ok(())
        });
        restarted.await.map_err(halt)
    }

    /// One line a run, in the log and in the table.
    async fn end_run(&self, source: &Source, result: &Result<(), Halt>, tally: &Tally, counts: Counts) {
        let (outcome, error) = match result {
            Ok(()) => ("closed", None),
            Err(Halt::TurnOver | Halt::Waits { .. } | Halt::Stopped) => ("yielded", None),
            Err(Halt::Restart(why)) => ("yielded", Some(format!("the walk starts again: {why}"))),
            Err(Halt::Lost) => ("lost", None),
            Err(Halt::Partial { why, .. } | Halt::Refused(why) | Halt::Unread(why)) => {
                ("failed", Some(why.clone()))
            }
            Err(Halt::Failed(failure)) => ("failed", Some(failure.message.clone())),
        };
        let counts = with_requests(counts, tally);
        let (run, now, logged) = (source.run, self.now(), error.clone());
        let ended = self.db.transaction(move |connection| {
            sync_runs::count(connection, run, &counts)?;
            sync_runs::end(connection, run, outcome, error.as_deref(), now)
        });
        // Whoever comes next ends what is left open, so a failure here is only said.
        let recorded = ended.await.is_ok();
        let (stream, mode) = (source.spec.name, source.mode.as_str());
        let provider = self.sender.provider.spec().name;
        measure::run(provider, stream, outcome, counts.measured());
        if let Some(error) = logged {
            warn!(
                connection.id = source.key.connection.0,
                provider,
                stream,
                run.id = run,
                run.mode = mode,
                run.outcome = outcome,
                run.recorded = recorded,
                run.pages = counts.pages,
                run.requests = counts.requests,
                run.throttled = counts.throttled,
                run.records = counts.records,
                run.rows_written = counts.rows_written,
                run.rows_deleted = counts.rows_deleted,
                error,
                "Run {run} ({mode} of `{stream}`) {outcome}: {error}",
            );
            return;
        }
        info!(
            connection.id = source.key.connection.0,
            provider,
            stream,
            run.id = run,
            run.mode = mode,
            run.outcome = outcome,
            run.recorded = recorded,
            run.pages = counts.pages,
            run.requests = counts.requests,
            run.throttled = counts.throttled,
            run.records = counts.records,
            run.rows_written = counts.rows_written,
            run.rows_deleted = counts.rows_deleted,
            "Run {run} ({mode} of `{stream}`) {outcome}: {} rows written, {} requests",
            counts.rows_written,
            counts.requests,
        );
    }

    fn now(&self) -> DateTime<Utc> {
        super::extract::microseconds(self.sender.clock.now())
    }
}

/// The next pages to be written; none when the other side is done.
async fn gather(pages: &mut mpsc::Receiver<(Ready, Position)>) -> Vec<(Ready, Position)> {
    let mut batch: Vec<_> = pages.recv().await.into_iter().collect();
    let until = Instant::now() + GATHERING_MAX;
    while !batch.is_empty() && batch.len() < PAGES_WAITING_MAX {
        match timeout_at(until, pages.recv()).await {
            Ok(Some(page)) => batch.push(page),
            Ok(None) | Err(_) => break,
        }
    }
    batch
}

/// A walk that notes what it meets, and proves by its end what is gone.
fn is_sweeping(row: &WalkRow, mode: Mode) -> bool {
    mode == Mode::Sweep || (row.sweeping && mode == Mode::Backfill)
}

fn with_requests(counts: Counts, tally: &Tally) -> Counts {
    Counts {
        requests: tally.requests.load(Ordering::Relaxed),
        throttled: tally.throttled.load(Ordering::Relaxed),
        ..counts
    }
}

fn absent(id: String, started_at: DateTime<Utc>) -> Tombstone {
    let evidence = format!("absent from a complete read that began at {}", started_at.to_rfc3339());
    let deletion = Deletion { at: started_at, told: false, evidence };
    Tombstone { id, deletion, merged_into: None, sent_at: started_at }
}

fn watermark_in_future(key: StreamKey, covered_to: DateTime<Utc>) -> Failure {
    let (stream, connection) = (key.stream, key.connection);
    Failure::new(
        FailureKind::Misconfigured,
        format!(
            "`{stream}` was read up to {covered_to}, which lies in the future: a clock ran ahead. Nothing is read before then. \
             See to the clock, and run `fieldmirror enqueue --resync {connection} --stream {stream} --since` with a \
             moment before it went wrong"
        ),
    )
}

/// A failure of the database, as the walk sees it.
pub fn halt(error: DbError) -> Halt {
    Halt::Failed(Failure::from(&error))
}
