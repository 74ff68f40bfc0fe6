//! Walks over Jobber's lists, which are all read page by page behind a cursor.
//!
//! Jobs know no filter on their modification: the newest come first, and a walk over changes stops below its bound.
//! Visits know no modification at all: a walk over changes reads those of the jobs that changed, those that were made
//! since, and those that take place about now; what else becomes of a visit is found when all are read again.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::document::{CHANGED_JOBS, CLIENTS, JOBS, Records, VISITS, quoted};
use super::learned::{self, Learned};
use super::trouble::{self, Refused, Trouble};
use super::{TITLE, ask};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::record::Record;
use crate::domain::spec::Mode;
use crate::domain::step::{Page, Position, Reply, Request, Step, StepContext};
use crate::domain::values;

/// The first page of a walk over changes: mostly it is the last one too, and every record in it is paid for.
const FIRST_LOOK: u32 = 10;
/// Ids of changed jobs asked for at once; their visits are then read in one list.
const CHANGED_MAX: u32 = 50;
/// Visits of these days are read again in every walk over changes.
const WINDOW_BACK: TimeDelta = TimeDelta::days(2);
const WINDOW_AHEAD: TimeDelta = TimeDelta::days(14);
/// A query takes no more than this part of what the budget holds, so that others get their turn.
const SHARE: u32 = 2;
/// Stands among the parts to do without for the filter that finds visits by their jobs.
const JOB_IDS: &str = "jobIds";

/// One list that a walk has to read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    All,
    /// Newest first, until below the bound.
    Newest,
    /// Visits of jobs that changed.
    OfChangedJobs,
    UpdatedSince,
    CreatedSince,
    /// Visits of the days around now.
    Window,
}

/// Where a walk stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Here {
    stage: usize,
    after: Option<String>,
    /// What has been learned about asking.
    learned: Option<Learned>,
    /// The modification of the first record of the page before.
    first: Option<DateTime<Utc>>,
    /// The list is not in the order that it was asked for in: it has to be read to its end.
    disordered: bool,
    /// Changed jobs whose visits are being read, and the cursor behind them.
    jobs: Vec<String>,
    jobs_after: Option<String>,
    jobs_end: bool,
}

pub(super) fn records_of(stream: &str) -> Result<&'static Records, Failure> {
    match stream {
        "jobs" => Ok(&JOBS),
        "visits" => Ok(&VISITS),
        "clients" => Ok(&CLIENTS),
        other => Err(Failure::bug(format!("jobber has no stream `{other}`"))),
    }
}

fn stages(cx: &StepContext<'_>) -> &'static [Stage] {
    match (cx.walk.mode, cx.walk.from, cx.stream.name) {
        (Mode::Incremental, Some(_), "jobs") => &[Stage::Newest],
        (Mode::Incremental, Some(_), "clients") => &[Stage::UpdatedSince],
        (Mode::Incremental, Some(_), _) => &[Stage::OfChangedJobs, Stage::CreatedSince, Stage::Window],
        _ => &[Stage::All],
    }
}

pub(super) fn step(cx: &StepContext<'_>, at: &Position, replies: &[Reply]) -> Result<Step, Failure> {
    let records = records_of(cx.stream.name)?;
    let mut here: Here = at.read();
    if here.learned.is_none() {
        here.learned = Some(learned::of(cx));
    }
    let walk = Walking { cx, records };
    match (stages(cx).get(here.stage), replies.first()) {
        (Some(stage), Some(reply)) => walk.take(*stage, here, reply),
        _ => Ok(walk.resume(here)),
    }
}

struct Walking<'a> {
    cx: &'a StepContext<'a>,
    records: &'static Records,
}

impl Walking<'_> {
    fn send(&self, stage: Stage, mut here: Here) -> Step {
        let mut learned = here.learned.take().unwrap_or_default();
        let request = loop {
            let request = self.request(stage, &here, &learned);
            let size = learned.page(self.cx);
            if size == 1 || request.points <= learned.points_max / SHARE {
                break request;
            }
            learned.page = Some(size / 2);
        };
        here.learned = Some(learned);
        Step::Send { requests: vec![request], at: Position::of(&here) }
    }

    fn request(&self, stage: Stage, here: &Here, learned: &Learned) -> Request {
        let size = learned.page(self.cx);
        if stage == Stage::OfChangedJobs && here.jobs.is_empty() {
            let variables = json!({"n": size.min(CHANGED_MAX), "after": here.jobs_after});
            return ask(self.cx.options, "changed", CHANGED_JOBS.to_owned(), variables);
        }
        let first_look = stage == Stage::Newest && here.after.is_none();
        let size = if first_look { size.min(FIRST_LOOK) } else { size };
        let filter = self.filter(stage, here);
        let document = self.records.page(&learned.without, filter.as_deref());
        ask(self.cx.options, self.records.list, document, json!({"n": size, "after": here.after}))
    }

    /// Both ends of a range are inclusive.
    fn filter(&self, stage: Stage, here: &Here) -> Option<String> {
        let started = self.cx.walk.started_at;
        let time = |at: DateTime<Utc>| quoted(&at.to_rfc3339_opts(SecondsFormat::Secs, true));
        let from = || time(self.cx.walk.from.unwrap_or(started));
        match stage {
            Stage::All | Stage::Newest => None,
            Stage::UpdatedSince => Some(format!("{{updatedAt: {{after: {}}}}}", from())),
            Stage::CreatedSince => Some(format!("{{createdAt: {{after: {}}}}}", from())),
            Stage::Window => Some(format!(
                "{{startAt: {{after: {}, before: {}}}}}",
                time(started - WINDOW_BACK),
                time(started + WINDOW_AHEAD)
            )),
            Stage::OfChangedJobs => {
                let ids: Vec<String> = here.jobs.iter().map(|id| quoted(id)).collect();
                Some(format!("{{{JOB_IDS}: [{}]}}", ids.join(", ")))
            }
        }
    }

    fn take(&self, stage: Stage, mut here: Here, reply: &Reply) -> Result<Step, Failure> {
        match trouble::of(reply) {
            None => {}
            Some(Trouble::TooDear { requested, max }) => return self.halve(stage, here, requested, max),
            Some(Trouble::Refused(refused)) => return self.do_without(stage, here, refused),
            Some(other) => return Err(Failure::bug(format!("{TITLE}'s answer was accepted: {other:?}"))),
        }
        let account = learned::account(self.cx, reply)?;
        let changed = stage == Stage::OfChangedJobs && here.jobs.is_empty();
        let list = if changed { JOBS.list } else { self.records.list };
        let asked_after = if changed { &here.jobs_after } else { &here.after };
        let list = Listed::read(reply, list, asked_after.as_deref())?;
        if changed {
            return self.changed_jobs(here, &list);
        }
        let below = stage == Stage::Newest && self.is_below(&mut here, &list.nodes);
        let records = list.nodes.iter().map(|node| record(node, reply)).collect::<Result<_, _>>()?;
        match list.next.filter(|_| !below) {
            Some(next) => here.after = Some(next),
            None => end_of_list(stage, &mut here),
        }
        let facts = learned::facts(self.cx, reply, account, here.learned.as_ref());
        let page = Page { records, facts, ..Page::default() };
        Ok(Step::Emit { page, at: Position::of(&here) })
    }

    /// Whether a page of a list with the newest first lies wholly below the walk's bound. A list that turns out not to
    /// be in that order has no such page.
    fn is_below(&self, here: &mut Here, nodes: &[Value]) -> bool {
        let times: Vec<Option<DateTime<Utc>>> = nodes.iter().map(modified).collect();
        let Some(first) = times.first().copied() else { return false };
        // What changes meanwhile goes to the top and moves the rest down: a page may repeat the one before, but not
        // begin above it.
        let rises =
            times.windows(2).any(|pair| pair[1] > pair[0]) || (here.first.is_some() && first > here.first);
        here.disordered |= rises || times.contains(&None);
        here.first = first.or(here.first);
        !here.disordered && times.iter().all(|time| *time < self.cx.walk.from)
    }

    fn changed_jobs(&self, mut here: Here, list: &Listed) -> Result<Step, Failure> {
        let below = self.is_below(&mut here, &list.nodes);
        let changed =
            list.nodes.iter().filter(|node| modified(node).is_none_or(|at| Some(at) >= self.cx.walk.from));
        here.jobs = changed.map(id_of).collect::<Result<_, _>>()?;
        here.jobs_end = below || list.next.is_none();
        here.jobs_after.clone_from(&list.next);
        if here.jobs.is_empty() && here.jobs_end {
            end_of_list(Stage::OfChangedJobs, &mut here);
        }
        Ok(self.resume(here))
    }

    /// Asks for the next page, where there is one.
    fn resume(&self, mut here: Here) -> Step {
        let stages = stages(self.cx);
        let learned = here.learned.as_ref();
        if stages.get(here.stage) == Some(&Stage::OfChangedJobs)
            && learned.is_some_and(|known| known.does_without(JOB_IDS))
        {
            here.stage += 1;
        }
        match stages.get(here.stage) {
            Some(stage) => self.send(*stage, here),
            None => Step::Done,
        }
    }

    fn halve(&self, stage: Stage, mut here: Here, requested: u64, max: u64) -> Result<Step, Failure> {
        let mut learned = here.learned.take().unwrap_or_default();
        let size = learned.page(self.cx);
        if size == 1 {
            return Err(Failure::changed(format!(
                "one record of `{}` costs {requested} points, and {TITLE}'s budget never holds more than {max}",
                self.cx.stream.name
            )));
        }
        learned.page = Some(size / 2);
        learned.points_max = u32::try_from(max).unwrap_or(learned.points_max);
        here.learned = Some(learned);
        Ok(self.send(stage, here))
    }

    fn do_without(&self, stage: Stage, mut here: Here, refused: Refused) -> Result<Step, Failure> {
        let mut learned = here.learned.take().unwrap_or_default();
        if stage == Stage::OfChangedJobs && !here.jobs.is_empty() && refused.said.contains(JOB_IDS) {
            learned.leave_out(vec![JOB_IDS.to_owned()], &refused.said);
            here = Here { stage: here.stage, learned: Some(learned), ..Here::default() };
            return Ok(self.resume(here));
        }
        let also = self.records.also_without(&refused.names, &learned.without);
        if also.is_empty() || (stage == Stage::OfChangedJobs && here.jobs.is_empty()) {
            return Err(refusal(self.records, &refused));
        }
        learned.leave_out(also, &refused.said);
        here.learned = Some(learned);
        Ok(self.send(stage, here))
    }
}

/// A refusal that no leaving out helps against.
pub(super) fn refusal(records: &Records, refused: &Refused) -> Failure {
    let said = &refused.said;
    if refused.hidden {
        let kind = FailureKind::Forbidden { scope: records.scope.map(str::to_owned) };
        let hint = records.scope.map_or_else(String::new, |scope| format!(" (scope `{scope}`)"));
        return Failure::new(kind, format!("{TITLE} does not show `{}`{hint}: {said}", records.list));
    }
    Failure::changed(format!("{TITLE} does not take the query for `{}`: {said}", records.list))
}

fn end_of_list(stage: Stage, here: &mut Here) {
    here.after = None;
    here.jobs = Vec::new();
    if stage != Stage::OfChangedJobs || here.jobs_end {
        here.stage += 1;
        here.first = None;
        here.disordered = false;
    }
}

/// A page of a connection.
struct Listed {
    nodes: Vec<Value>,
    /// The cursor of the next page.
    next: Option<String>,
}

impl Listed {
    fn read(reply: &Reply, name: &str, asked_after: Option<&str>) -> Result<Self, Failure> {
        let list = reply.json().and_then(|body| body.pointer("/data")?.get(name));
        let lacks = |what: &str| Failure::changed(format!("{TITLE}'s answer to `{name}` has no {what}"));
        let nodes =
            list.and_then(|list| list.get("nodes")?.as_array()).ok_or_else(|| lacks("`nodes` list"))?;
        let info = list.and_then(|list| list.get("pageInfo"));
        let more = info.and_then(|info| info.get("hasNextPage")?.as_bool());
        if !more.ok_or_else(|| lacks("`pageInfo.hasNextPage`"))? {
            return Ok(Self { nodes: nodes.clone(), next: None });
        }
        let cursor =
            info.and_then(|info| info.get("endCursor")?.as_str()).filter(|cursor| !cursor.is_empty());
        let cursor = cursor.ok_or_else(|| lacks("`endCursor`"))?;
        if asked_after == Some(cursor) {
            return Err(Failure::changed(format!(
                "a page of {TITLE}'s `{name}` names itself as the next one"
            )));
        }
        Ok(Self { nodes: nodes.clone(), next: Some(cursor.to_owned()) })
    }
}

pub(super) fn record(node: &Value, reply: &Reply) -> Result<Record, Failure> {
    Ok(Record { id: id_of(node)?, raw: node.clone(), sent_at: reply.sent_at, deleted: None })
}

/// Ids are kept as they were sent: some are padded, some are not.
fn id_of(node: &Value) -> Result<String, Failure> {
    let id = node.get("id").and_then(Value::as_str).filter(|id| !id.is_empty());
    id.map(str::to_owned).ok_or_else(|| Failure::changed(format!("{TITLE} sent a record without an id")))
}

fn modified(node: &Value) -> Option<DateTime<Utc>> {
    values::timestamp(node.get("updatedAt")?)
}
