//! Comparing the mirror with the provider, as an admin asked: a random sample of rows by their ids, and what changed in a
//! random span of time.
//!
//! It comes last in a turn, after every walk that was due, and goes on in later turns: what it has seen so far is saved
//! with each answer. What differs is looked at once more before it counts. Rows of the mirror stay as they are; that they
//! are read again is left to the walks, which are asked as an admin would ask them.

mod compare;
mod ending;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use self::compare::{Finding, Known, not_listed};
use self::read::{Next, Seen};
use super::drive::halt;
use super::send::{Halt, Sender, Tally};
use super::{Engine, Turn};
use crate::db::requests::{self, Request, RequestKind};
use crate::db::streams::{self, Demand, StreamRow};
use crate::db::verifications::{self, Open, Span};
use crate::db::{DbError, PgConnection, turns};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::spec::{Mode, StreamSpec};
use crate::domain::step::{Facts, Position, StepContext, Walk};
use crate::domain::verification::{Difference, Part, Report, SAMPLE, SAMPLE_MAX};

/// Rows that are gone are at most this part of a sample, and at most so many.
const GONE_SHARE: u32 = 10;
const GONE_MAX: u32 = 10;
/// Ids that are asked for before what they show is saved.
const CHUNK: usize = 100;
/// Rows that a span of time is to hold.
const SPAN_ROWS: i64 = 100;
/// The span of a stream without a row that has a time.
const SPAN_OF_NONE: TimeDelta = TimeDelta::days(30);
/// Rows of a list that are looked at: a span of time may hold a bulk change.
const LISTED_MAX: usize = 5_000;
/// How often the provider may refuse the place of a list before that is no passing matter.
const RESTARTS_MAX: u32 = 3;
/// A longer wait for the provider's quota is not for a comparison.
const WAIT_MAX: TimeDelta = TimeDelta::minutes(5);

/// The arguments of a `verify` request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Args {
    /// `None`: all streams.
    streams: Option<Vec<String>>,
    sample: Option<u32>,
}

/// How far the comparison of a stream has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Progress {
    stage: Stage,
    /// Ids that are still to be asked for, and how often a turn was too short for as many as are asked for at once.
    todo: Vec<String>,
    too_many: u32,
    span: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// Where the list of changes stands, and what it has named.
    at: Option<Position>,
    met: BTreeSet<String>,
    restarts: u32,
    /// Rows that seem to differ, and whether they are of the sample.
    suspects: BTreeMap<String, bool>,
    /// Those of them that the list of changes did not name.
    unlisted: BTreeSet<String>,
    /// The stream has to be read from here on before suspects are looked at again.
    waits_from: Option<DateTime<Utc>>,
    /// Suspects that differ still.
    found: BTreeMap<String, Vec<Difference>>,
    /// The oldest modification among them, and whether one of them has none.
    oldest: Option<DateTime<Utc>>,
    undated: bool,
    gone: bool,
    report: Report,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    #[default]
    Draw,
    Sample,
    Window,
    /// Suspects may have to wait until the stream has been read once more.
    Wait,
    /// Suspects by their ids, and then those of the list that ids do not show whole.
    Again,
    WindowAgain,
    End,
}

/// Whether there is more to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goes {
    On,
    Waits,
}

/// What comparisons need of their turn.
struct Verifying<'a> {
    engine: &'a Engine,
    turn: &'a Turn,
    sender: &'a Sender<'a>,
    deadline: Instant,
    tally: Tally,
}

/// One stream that is compared.
struct Subject {
    open: Open,
    spec: &'static StreamSpec,
    /// What is known of the account: the turn's walks may have learned it, or a probe.
    facts: Facts,
    progress: Progress,
}

impl Engine {
    /// Works on what admins asked to have compared, in what is left of the turn.
    pub(super) async fn verify(
        &self,
        turn: &Turn,
        sender: &Sender<'_>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let verifying = Verifying { engine: self, turn, sender, deadline, tally: Tally::default() };
        let asked = verifying.asked().await.map_err(|error| Failure::from(&error))?;
        for request in asked {
            match verifying.request(&request).await {
                Ok(()) => {}
                Err(Halt::Failed(failure)) => return Err(failure),
                // The next turn goes on.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }
}

impl Verifying<'_> {
    /// The open requests, each with a comparison for every stream that it is about.
    async fn asked(&self) -> Result<Vec<Request>, DbError> {
        let (of, epoch, now) = (self.turn.connection.id, self.turn.epoch, self.engine.clock.now());
        let spec = self.turn.provider.spec();
        let begin = move |connection: &mut PgConnection| {
            let asked = requests::open(connection, of, RequestKind::Verify)?;
            if asked.is_empty() || !turns::owns(connection, of, epoch)? {
                return Ok(Vec::new());
            }
            for request in &asked {
                let args = Args::deserialize(&request.args).unwrap_or_default();
                let asked =
                    |name: &str| args.streams.as_ref().is_none_or(|all| all.iter().any(|one| one == name));
                for stream in spec.streams.iter().filter(|stream| asked(stream.name)) {
                    verifications::begin(connection, of, stream.name, request.id, now)?;
                }
                turns::mark_applied(connection, request.id, now)?;
            }
            Ok(asked)
        };
        self.engine.db.transaction(begin).await
    }

    async fn request(&self, request: &Request) -> Result<(), Halt> {
        let (id, spec) = (request.id, self.turn.provider.spec());
        let args = Args::deserialize(&request.args).unwrap_or_default();
        let of = self.turn.connection.id;
        let read = move |connection: &mut PgConnection| {
            Ok((verifications::open(connection, id)?, turns::facts(connection, of)?))
        };
        let (open, facts) = self.engine.db.run(read).await.map_err(halt)?;
        let mut waits = false;
        for open in open {
            let Some(stream) = spec.stream(&open.stream) else { continue };
            let progress = Progress::deserialize(&open.progress).unwrap_or_default();
            let mut subject = Subject { open, spec: stream, facts: facts.clone(), progress };
            match self.compare(&mut subject, &args).await {
                Ok(Goes::On) => self.end(subject).await?,
                Ok(Goes::Waits) => waits = true,
                Err(Halt::Failed(failure)) => self.fail(&subject, &failure).await?,
                Err(Halt::Refused(why) | Halt::Unread(why)) => {
                    self.fail(&subject, &Failure::transient(why)).await?;
                }
                Err(Halt::Waits { until, .. }) if until - self.engine.clock.now() > WAIT_MAX => {
                    let title = spec.title;
                    let kind = FailureKind::Throttled { until: Some(until) };
                    let failure =
                        Failure::new(kind, format!("{title}'s quota leaves nothing to spare until {until}"));
                    self.fail(&subject, &failure).await?;
                }
                Err(other) => return Err(other),
            }
        }
        if waits { Ok(()) } else { self.settle(request).await }
    }

    /// Goes on with the comparison of a stream, to its end or until it has to wait.
    async fn compare(&self, subject: &mut Subject, args: &Args) -> Result<Goes, Halt> {
        let (asked, mut moved) = (|| self.tally.requests.load(Ordering::Relaxed), false);
        loop {
            let before = asked();
            let by_id = matches!(subject.progress.stage, Stage::Sample | Stage::Again);
            let goes = match subject.progress.stage {
                Stage::Draw => self.draw(subject, args).await,
                Stage::Sample => self.sample(subject).await,
                Stage::Window => self.window(subject, false).await,
                Stage::Wait => self.wait(subject).await,
                Stage::Again => self.again(subject).await,
                Stage::WindowAgain => self.window(subject, true).await,
                Stage::End => return Ok(Goes::On),
            };
            if by_id && matches!(&goes, Err(halt) if halt.is_over()) && !moved && asked() > before {
                // The turn was too short for what was asked for, and the next one may be as short.
                subject.progress.too_many += 1;
                self.save(subject).await?;
            }
            let goes = goes?;
            self.save(subject).await?;
            moved = true;
            if goes == Goes::Waits {
                return Ok(Goes::Waits);
            }
        }
    }

    /// Draws the sample and the span of time.
    async fn draw(&self, subject: &mut Subject, args: &Args) -> Result<Goes, Halt> {
        let (spec, of) = (subject.spec, self.turn.connection.id);
        let row = self.stream_row(spec).await?;
        let complete_to = row.as_ref().filter(|row| row.backfill_done).and_then(|row| row.complete_to);
        let Some(complete_to) = complete_to else {
            let text = format!("`{}` has not been read as a whole yet", spec.name);
            return Err(Halt::Failed(Failure::new(FailureKind::Held, text)));
        };
        let sample = args.sample.unwrap_or(SAMPLE).min(SAMPLE_MAX);
        let gone = if sample == 0 { 0 } else { (sample / GONE_SHARE).clamp(1, GONE_MAX) };
        let walk = walk_of(Mode::Incremental, complete_to, None);
        let window = self.turn.provider.window(&self.context(spec, &walk, &subject.facts));
        let drawn = self.engine.db.run(move |connection| {
            let ids = verifications::draw(connection, spec, of, i64::from(sample), i64::from(gone))?;
            let span = match &window {
                Some(window) => {
                    let (rows, at_end) = (SPAN_ROWS, !window.ends);
                    let drawn = verifications::draw_span(connection, spec, of, rows, complete_to, at_end)?;
                    Some(drawn.unwrap_or(Span { from: complete_to - SPAN_OF_NONE, to: complete_to }))
                }
                None => None,
            };
            Ok((ids, span, verifications::deletions_to(connection, spec, of)?))
        });
        let (ids, span, deletions_to) = drawn.await.map_err(halt)?;
        let progress = &mut subject.progress;
        progress.report.complete_to = Some(complete_to);
        progress.report.deletions_to = deletions_to;
        progress.todo = ids;
        progress.span = span.map(|Span { from, to }| (from, to));
        (progress.report.window.from, progress.report.window.to) = progress.span.unzip();
        progress.stage = Stage::Sample;
        Ok(Goes::On)
    }

    /// Some more of the sample.
    async fn sample(&self, subject: &mut Subject) -> Result<Goes, Halt> {
        if subject.progress.todo.is_empty() {
            subject.progress.stage = Stage::Window;
            return Ok(Goes::On);
        }
        let Some(seen) = self.by_id(subject).await? else {
            let title = self.turn.provider.spec().title;
            let note = format!("{title} is not asked for `{}` by id: no sample", subject.spec.name);
            subject.progress.report.sample.note = Some(note);
            subject.progress.todo.clear();
            return Ok(Goes::On);
        };
        let partly = seen.iter().any(Seen::is_presence_only);
        if partly && subject.progress.report.sample.note.is_none() {
            let title = self.turn.provider.spec().title;
            let note =
                format!("asked for by its id, {title} shows that a record is there, and not all of it");
            subject.progress.report.sample.note = Some(note);
        }
        for (id, finding, _) in self.judge(subject, seen).await? {
            subject.progress.first_look(id, finding, true);
        }
        Ok(Goes::On)
    }

    /// A page of the list of changes, or of all where a list is short; the second time for suspects alone.
    async fn window(&self, subject: &mut Subject, again: bool) -> Result<Goes, Halt> {
        let Some((walk, at)) = self.place(subject) else {
            let title = self.turn.provider.spec().title;
            let note = format!("{title} lists no changes of `{}`", subject.spec.name);
            subject.progress.report.window.note = Some(note);
            subject.progress.stage = Stage::Wait;
            return Ok(Goes::On);
        };
        let next =
            match self.next(&self.context(subject.spec, &walk, &subject.facts), at, self.deadline).await {
                Err(Halt::Restart(why)) if subject.progress.restarts < RESTARTS_MAX => {
                    subject.progress.restarts += 1;
                    subject.progress.begin_list();
                    tracing::debug!(
                        stream = subject.spec.name,
                        error = why,
                        "A list that is compared starts again"
                    );
                    return Ok(Goes::On);
                }
                Err(Halt::Restart(why)) => return Err(Halt::Failed(Failure::changed(why))),
                other => other?,
            };
        match next {
            Next::Page(page, at) => {
                subject.progress.at = Some(at);
                self.take(subject, page, again).await?;
                if subject.progress.met.len() > LISTED_MAX {
                    let note = format!("stopped after {LISTED_MAX} rows");
                    subject.progress.report.window.note = Some(note);
                    subject.progress.end_list(again);
                }
            }
            Next::End => {
                self.close(subject, again).await?;
                subject.progress.end_list(again);
            }
            Next::Partial(why) => {
                subject.progress.report.window.note = Some(why);
                subject.progress.end_list(again);
            }
        }
        Ok(Goes::On)
    }

    async fn take(&self, subject: &mut Subject, page: Vec<Seen>, again: bool) -> Result<(), Halt> {
        let progress = &mut subject.progress;
        let page: Vec<Seen> = page.into_iter().filter(|seen| progress.met.insert(seen.id.clone())).collect();
        let wanted = |seen: &Seen| progress.suspects.contains_key(&seen.id) == again;
        let page: Vec<Seen> = page.into_iter().filter(wanted).collect();
        for (id, finding, updated_at) in self.judge(subject, page).await? {
            if again {
                subject.progress.second_look(&id, finding, updated_at);
            } else {
                subject.progress.first_look(id, finding, false);
            }
        }
        Ok(())
    }

    /// The list has come to its end: rows of the mirror that it did not name seem not to be there.
    async fn close(&self, subject: &mut Subject, again: bool) -> Result<(), Halt> {
        let (spec, of) = (subject.spec, self.turn.connection.id);
        let span = subject.progress.span.map(|(from, to)| Span { from, to });
        let limit = i64::try_from(LISTED_MAX).unwrap_or(i64::MAX);
        let living = self
            .engine
            .db
            .run(move |connection| verifications::living_within(connection, spec, of, span, limit));
        let living: BTreeSet<String> = living.await.map_err(halt)?.into_iter().collect();
        let progress = &mut subject.progress;
        if again {
            let left: Vec<String> = progress.suspects.keys().cloned().collect();
            for id in left {
                let missed = living.contains(&id) && !progress.met.contains(&id);
                let finding = if missed { not_listed(&id) } else { Finding::ChangedSince };
                progress.second_look(&id, finding, None);
            }
            return Ok(());
        }
        let unmet: Vec<String> = living.difference(&progress.met).cloned().collect();
        for id in unmet {
            if !progress.suspects.contains_key(&id) {
                let missed = not_listed(&id);
                progress.unlisted.insert(id.clone());
                progress.first_look(id, missed, false);
            }
        }
        Ok(())
    }

    /// Where a record does not tell by itself that it changed after what the mirror is to know, has the stream read once
    /// more, before what seems to differ is looked at again.
    async fn wait(&self, subject: &mut Subject) -> Result<Goes, Halt> {
        if subject.progress.suspects.is_empty() {
            subject.progress.stage = Stage::End;
            return Ok(Goes::On);
        }
        if subject.spec.modes.contains(&Mode::Incremental) && !subject.spec.updated_at.is_empty() {
            subject.progress.look_again();
            return Ok(Goes::On);
        }
        let (spec, of, epoch, now) =
            (subject.spec, self.turn.connection.id, self.turn.epoch, self.engine.clock.now());
        let Some(waits_from) = subject.progress.waits_from else {
            let demand = Demand { stream: spec.name, ..Demand::default() };
            let asked = self.engine.db.transaction(move |connection| {
                if turns::owns(connection, of, epoch)? {
                    streams::demand(connection, of, &demand, now)?;
                }
                Ok(())
            });
            asked.await.map_err(halt)?;
            subject.progress.waits_from = Some(now);
            return Ok(Goes::Waits);
        };
        let walks =
            self.engine.db.run(move |connection| streams::walks(connection, of)).await.map_err(halt)?;
        let read = walks.iter().filter(|walk| walk.stream == spec.name).any(|walk| {
            matches!(Mode::parse(&walk.mode), Some(Mode::Incremental | Mode::Snapshot))
                && walk.closed_started_at.is_some_and(|started_at| started_at >= waits_from)
        });
        if read {
            subject.progress.look_again();
            return Ok(Goes::On);
        }
        match self.stream_row(spec).await? {
            Some(ref row @ StreamRow { ref state, stalled_reason: Some(ref why), .. })
                if state != "syncing" && !row.is_behind() =>
            {
                let text = format!(
                    "`{}` is {state}, so what seems to differ cannot be looked at again: {why}",
                    spec.name
                );
                Err(Halt::Failed(Failure::new(FailureKind::Held, text)))
            }
            _ => Ok(Goes::Waits),
        }
    }

    /// Suspects once more, by their ids.
    async fn again(&self, subject: &mut Subject) -> Result<Goes, Halt> {
        let seen = if subject.progress.todo.is_empty() { None } else { self.by_id(subject).await? };
        let Some(seen) = seen else {
            subject.progress.todo.clear();
            let left = !subject.progress.suspects.is_empty();
            subject.progress.stage = if left { Stage::WindowAgain } else { Stage::End };
            subject.progress.begin_list();
            return Ok(Goes::On);
        };
        let seen: Vec<Seen> =
            seen.into_iter().filter(|seen| !subject.progress.leaves_to_list(seen)).collect();
        for (id, finding, updated_at) in self.judge(subject, seen).await? {
            subject.progress.second_look(&id, finding, updated_at);
        }
        Ok(Goes::On)
    }

    async fn stream_row(&self, spec: &'static StreamSpec) -> Result<Option<StreamRow>, Halt> {
        let of = self.turn.connection.id;
        let rows =
            self.engine.db.run(move |connection| streams::streams(connection, of)).await.map_err(halt)?;
        Ok(rows.into_iter().find(|row| row.stream == spec.name))
    }

    async fn save(&self, subject: &Subject) -> Result<(), Halt> {
        let (of, epoch, id) = (self.turn.connection.id, self.turn.epoch, subject.open.id);
        let progress = serde_json::to_value(&subject.progress).unwrap_or(Value::Null);
        let saved = self.engine.db.transaction(move |connection| {
            let owned = turns::owns(connection, of, epoch)?;
            if owned {
                verifications::save(connection, id, &progress)?;
            }
            Ok(owned)
        });
        if saved.await.map_err(halt)? { Ok(()) } else { Err(Halt::Lost) }
    }

    fn context<'b>(
        &'b self,
        stream: &'static StreamSpec,
        walk: &'b Walk,
        facts: &'b Facts,
    ) -> StepContext<'b> {
        StepContext {
            stream,
            walk,
            api_version: &self.turn.provider_settings.api_version,
            page_size: self.turn.page_size(),
            facts,
            params: &self.turn.params,
            options: &self.turn.provider_settings.extra,
        }
    }

    /// The list to be read, and where it stands: changes of the span, or all of a short list.
    fn place(&self, subject: &Subject) -> Option<(Walk, Position)> {
        let progress = &subject.progress;
        if subject.spec.modes.contains(&Mode::Snapshot) {
            let walk = walk_of(Mode::Snapshot, subject.open.started_at, None);
            return Some((walk, progress.at.clone().unwrap_or_else(Position::start)));
        }
        let (from, to) = progress.span?;
        let walk = walk_of(Mode::Incremental, to, Some(from));
        let window = self.turn.provider.window(&self.context(subject.spec, &walk, &subject.facts))?;
        Some((walk, progress.at.clone().unwrap_or(window.at)))
    }
}

fn walk_of(mode: Mode, started_at: DateTime<Utc>, from: Option<DateTime<Utc>>) -> Walk {
    Walk { mode, started_at, from, facts_as_of: None }
}

impl Progress {
    /// Ids that are asked for at once.
    fn chunk(&self) -> usize {
        CHUNK.checked_shr(self.too_many).unwrap_or(0).max(1)
    }

    fn known(&self) -> Known {
        let complete_to = self.report.complete_to.unwrap_or(DateTime::<Utc>::MIN_UTC);
        Known { complete_to, deletions_to: self.report.deletions_to }
    }

    fn part(&mut self, of_sample: bool) -> &mut Part {
        if of_sample { &mut self.report.sample } else { &mut self.report.window }
    }

    /// Counts a row. One that seems to differ is counted when it has been looked at again.
    fn first_look(&mut self, id: String, finding: Finding, of_sample: bool) {
        let part = self.part(of_sample);
        part.rows += 1;
        match finding {
            Finding::Agrees => part.agree += 1,
            Finding::ChangedSince => part.changed_since += 1,
            Finding::Unknown => part.unknown += 1,
            Finding::Differs(_) | Finding::Gone(_) => {
                self.suspects.insert(id, of_sample);
            }
        }
    }

    fn second_look(&mut self, id: &str, finding: Finding, updated_at: Option<DateTime<Utc>>) {
        let Some(of_sample) = self.suspects.remove(id) else { return };
        let part = self.part(of_sample);
        match finding {
            // The mirror has it by now, or need not.
            Finding::Agrees | Finding::ChangedSince => part.changed_since += 1,
            Finding::Unknown => part.unknown += 1,
            Finding::Differs(differences) => {
                part.differ += 1;
                match updated_at {
                    Some(at) => self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at))),
                    None => self.undated = true,
                }
                self.found.insert(id.to_owned(), differences);
            }
            Finding::Gone(difference) => {
                part.differ += 1;
                self.gone = true;
                self.found.insert(id.to_owned(), vec![difference]);
            }
        }
    }

    /// Of a record that the list has shown whole, neither that it is there nor an answer that proves nothing tells more: the
    /// list is asked once more.
    fn leaves_to_list(&self, seen: &Seen) -> bool {
        let listed = self.suspects.get(&seen.id) == Some(&false);
        let silent = seen.is_silent() && !self.unlisted.contains(&seen.id);
        listed && (seen.is_presence_only() || silent)
    }

    fn look_again(&mut self) {
        self.todo = self.suspects.keys().cloned().collect();
        self.stage = Stage::Again;
    }

    fn begin_list(&mut self) {
        self.at = None;
        self.met.clear();
    }

    fn end_list(&mut self, again: bool) {
        self.begin_list();
        self.restarts = 0;
        if again {
            // Whatever was not met again proves nothing.
            let left: Vec<String> = self.suspects.keys().cloned().collect();
            for id in left {
                self.second_look(&id, Finding::Unknown, None);
            }
        }
        self.stage = if again { Stage::End } else { Stage::Wait };
    }
}
