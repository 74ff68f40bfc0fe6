//! Walks over Jobber's lists, which are all read page by page behind a cursor.
//!
//! Jobs know no filter on their modification: the newest come first, and a walk over changes stops below its bound.
//! Visits know no modification at all: a walk over changes reads those of the jobs that changed, those that were made
//! since, and those that take place about now; what else becomes of a visit is found when all are read again.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::document::{CHANGED_JOBS, CLIENTS, CREATED, JOBS, Records, VISITS, quoted};
use super::learned::{self, Learned};
use super::list::{Listed, Place, Taken, id_of};
use super::people;
use super::trouble::{self, Flaw, Refused, Trouble};
use super::{TITLE, ask};
use crate::domain::failure::{Failure, FailureKind};
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
pub(super) const SHARE: u32 = 2;
/// Stands among the parts to do without for the filter that finds visits by their jobs.
const JOB_IDS: &str = "jobIds";

/// One list that a walk has to read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    All,
    /// Newest first, until below the bound.
    Newest,
    UpdatedSince,
    /// The first pages of the next three, in one request: mostly they are the last ones too.
    Recent,
    /// Jobs that changed, and the visits of each lot of them.
    OfChangedJobs,
    /// Visits of the days around now.
    Window,
    CreatedSince,
}

/// Where a walk stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Here {
    /// The number of the stage. It had another name when stages were others: such a walk begins anew.
    #[serde(rename = "reading")]
    stage: usize,
    /// What has been learned about asking.
    learned: Option<Learned>,
    /// The modification of the first record of the page before.
    first: Option<DateTime<Utc>>,
    /// The list is not in the order that it was asked for in: it has to be read to its end.
    disordered: bool,
    /// Changed jobs whose visits are being read, and whether they are the last.
    jobs: Vec<String>,
    jobs_end: bool,
    /// The lists that are read: that of changed jobs, of recent visits by either filter, and any other.
    changed: Place,
    window: Place,
    created: Place,
    list: Place,
    /// A list was read as it came.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unsteady: bool,
    /// A page that waits for people who did not come along with it. Such a place is never saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<Waiting>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Waiting {
    sent_at: DateTime<Utc>,
    nodes: Vec<Value>,
}

impl Here {
    /// The list that the stage reads now.
    fn place(&mut self, stage: Stage) -> &mut Place {
        match stage {
            Stage::OfChangedJobs if self.jobs.is_empty() => &mut self.changed,
            Stage::Window => &mut self.window,
            Stage::CreatedSince => &mut self.created,
            _ => &mut self.list,
        }
    }
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
        (Mode::Incremental, Some(_), _) => {
            &[Stage::Recent, Stage::OfChangedJobs, Stage::Window, Stage::CreatedSince]
        }
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
    // A page that waits may be the last one.
    let stages = stages(cx);
    let stage = stages.get(here.stage).or(stages.last().filter(|_| here.waiting.is_some()));
    match (stage, replies.first()) {
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
            let request = match &here.waiting {
                Some(waiting) => self.ask_people(&waiting.nodes, &learned),
                None => self.request(stage, &mut here, &learned),
            };
            let size = learned.page(self.cx);
            if size == 1 || request.points <= learned.points_max / SHARE {
                break request;
            }
            learned.page = Some(size / 2);
        };
        here.learned = Some(learned);
        Step::Send { requests: vec![request], at: Position::of(&here) }
    }

    fn request(&self, stage: Stage, here: &mut Here, learned: &Learned) -> Request {
        let size = learned.page(self.cx);
        let options = self.cx.options;
        let few = size.min(FIRST_LOOK);
        if stage == Stage::Recent {
            let [window, created] = [Stage::Window, Stage::CreatedSince]
                .map(|stage| self.filter(stage, here).expect("both lists are narrowed"));
            let document = self.records.recent(&learned.without, &window, &created);
            return ask(options, self.records.list, document, json!({"n": size, "few": few}));
        }
        if stage == Stage::OfChangedJobs && here.jobs.is_empty() {
            let variables = json!({"n": size.min(CHANGED_MAX), "after": here.changed.after});
            return ask(options, "changed", CHANGED_JOBS.to_owned(), variables);
        }
        let filter = self.filter(stage, here);
        let after = &here.place(stage).after;
        let size = if stage == Stage::Newest && after.is_none() { few } else { size };
        let document = self.records.page(&learned.without, filter.as_deref());
        ask(options, self.records.list, document, json!({"n": size, "after": after}))
    }

    /// Asks for the further people of as many visits as the budget lets.
    fn ask_people(&self, nodes: &[Value], learned: &Learned) -> Request {
        let mut open: Vec<(&str, &str)> = nodes.iter().filter_map(people::open).collect();
        loop {
            let document = self.records.people(&open);
            let request = ask(self.cx.options, "people", document, json!({"people": learned.page(self.cx)}));
            if open.len() <= 1 || request.points <= learned.points_max / SHARE {
                return request;
            }
            open.truncate(open.len() / 2);
        }
    }

    /// Both ends of a range are inclusive.
    fn filter(&self, stage: Stage, here: &Here) -> Option<String> {
        let started = self.cx.walk.started_at;
        let time = |at: DateTime<Utc>| quoted(&at.to_rfc3339_opts(SecondsFormat::Secs, true));
        let from = || time(self.cx.walk.from.unwrap_or(started));
        match stage {
            Stage::All | Stage::Newest | Stage::Recent => None,
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
        if let Some(waiting) = here.waiting.take() {
            let nodes = people::joined(waiting.nodes, reply)?;
            return self.emit(stage, here, Waiting { nodes, ..waiting }, reply, account);
        }
        if stage == Stage::Recent {
            return self.recent(here, reply, account);
        }
        let changed = stage == Stage::OfChangedJobs && here.jobs.is_empty();
        let name = if changed { JOBS.list } else { self.records.list };
        let list = Listed::read(reply, name)?;
        if here.place(stage).take(&list, name)? == Taken::Shifted {
            here.first = None;
            return Ok(self.send(stage, here));
        }
        here.unsteady |= here.place(stage).is_unsteady();
        if changed {
            self.changed_jobs(&mut here, &list)?;
            return Ok(self.resume(here));
        }
        let below = stage == Stage::Newest && self.is_below(&mut here, &list.nodes);
        if below || here.place(stage).after.is_none() {
            end_of_list(stage, &mut here);
        }
        self.emit(stage, here, Waiting { sent_at: reply.sent_at, nodes: list.nodes }, reply, account)
    }

    /// The first pages of three lists.
    fn recent(&self, mut here: Here, reply: &Reply, account: Option<String>) -> Result<Step, Failure> {
        let changed = Listed::read(reply, JOBS.list)?;
        let mut window = Listed::read(reply, self.records.list)?;
        let created = Listed::read(reply, CREATED)?;
        here.changed.take(&changed, JOBS.list)?;
        here.window.take(&window, self.records.list)?;
        here.created.take(&created, CREATED)?;
        here.stage += 1;
        self.changed_jobs(&mut here, &changed)?;
        window.nodes.extend(created.nodes);
        let page = Waiting { sent_at: reply.sent_at, nodes: window.nodes };
        self.emit(Stage::Recent, here, page, reply, account)
    }

    /// The page as it is written, once everybody is on it.
    fn emit(
        &self,
        stage: Stage,
        mut here: Here,
        page: Waiting,
        reply: &Reply,
        account: Option<String>,
    ) -> Result<Step, Failure> {
        if page.nodes.iter().any(|node| people::open(node).is_some()) {
            here.waiting = Some(page);
            return Ok(self.send(stage, here));
        }
        let without = here.learned.as_ref().map(|known| known.without.as_slice()).unwrap_or_default();
        let record = |node: &Value| self.records.record(node, page.sent_at, without);
        let records = page.nodes.iter().map(record).collect::<Result<_, _>>()?;
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

    fn changed_jobs(&self, here: &mut Here, list: &Listed) -> Result<(), Failure> {
        let below = self.is_below(here, &list.nodes);
        let changed =
            list.nodes.iter().filter(|node| modified(node).is_none_or(|at| Some(at) >= self.cx.walk.from));
        here.jobs = changed.map(id_of).collect::<Result<_, _>>()?;
        here.jobs_end = below || here.changed.after.is_none();
        Ok(())
    }

    /// Asks for the next page, where there is one.
    fn resume(&self, mut here: Here) -> Step {
        while let Some(stage) = stages(self.cx).get(here.stage) {
            let is_over = match stage {
                Stage::OfChangedJobs => {
                    (here.jobs.is_empty() && here.jobs_end)
                        || here.learned.as_ref().is_some_and(|known| known.does_without(JOB_IDS))
                }
                // Their first pages came with the recent ones.
                Stage::Window => here.window.after.is_none(),
                Stage::CreatedSince => here.created.after.is_none(),
                Stage::All | Stage::Newest | Stage::UpdatedSince | Stage::Recent => false,
            };
            if !is_over {
                return self.send(*stage, here);
            }
            here.stage += 1;
        }
        if here.unsteady {
            let list = self.records.list;
            let why =
                format!("the pages of {TITLE}'s `{list}` never held still: some of them may be missing");
            return Step::Partial { why };
        }
        Step::Done
    }

    fn halve(&self, stage: Stage, mut here: Here, requested: u64, max: u64) -> Result<Step, Failure> {
        let mut learned = here.learned.take().unwrap_or_default();
        let size = learned.page(self.cx);
        if size == 1 {
            return Err(too_dear(self.cx, requested, max));
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
            here.learned = Some(learned);
            return Ok(self.resume(here));
        }
        let also = self.records.also_without(&refused.names, &learned.without);
        let of_jobs_alone = stage == Stage::OfChangedJobs && here.jobs.is_empty();
        if also.is_empty() || of_jobs_alone || here.waiting.is_some() {
            return Err(refusal(self.records, &refused));
        }
        learned.leave_out(also, &refused.said);
        here.learned = Some(learned);
        Ok(self.send(stage, here))
    }
}

/// A request that asks for one record is not to be made smaller.
pub(super) fn too_dear(cx: &StepContext<'_>, requested: u64, max: u64) -> Failure {
    Failure::changed(format!(
        "one record of `{}` costs {requested} points, and {TITLE}'s budget never holds more than {max}",
        cx.stream.name
    ))
}

/// A refusal that no leaving out helps against.
pub(super) fn refusal(records: &Records, refused: &Refused) -> Failure {
    let said = &refused.said;
    if refused.flaw == Flaw::Hidden {
        let kind = FailureKind::Forbidden { scope: records.scope.map(str::to_owned) };
        let hint = records.scope.map_or_else(String::new, |scope| format!(" (scope `{scope}`)"));
        return Failure::new(kind, format!("{TITLE} does not show `{}`{hint}: {said}", records.list));
    }
    Failure::changed(format!("{TITLE} does not take the query for `{}`: {said}", records.list))
}

fn end_of_list(stage: Stage, here: &mut Here) {
    here.list = Place::default();
    here.jobs = Vec::new();
    if stage != Stage::OfChangedJobs || here.jobs_end {
        here.stage += 1;
        here.first = None;
        here.disordered = false;
    }
}

fn modified(node: &Value) -> Option<DateTime<Utc>> {
    values::timestamp(node.get("updatedAt")?)
}
