//! What the provider shows: of records by their ids, and of a list page by page. Nothing is written.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::time::Instant;

use super::compare::{self, Finding, Held, Shown};
use super::{Subject, Verifying, walk_of};
use crate::db::mirror::{self, Row};
use crate::db::turns;
use crate::db::verifications::{self, Compared};
use crate::domain::failure::Failure;
use crate::domain::record::{Deletion, Record, Tombstone};
use crate::domain::spec::{Mode, StreamSpec};
use crate::domain::step::{Facts, Page, Position, Presence, Step, StepContext};
use crate::sync::drive::{PAGE_OUTLASTS_MAX, halt};
use crate::sync::extract;
use crate::sync::probe::{asks_by_id, probe};
use crate::sync::send::Halt;

/// Steps without a request or a page before a list is taken to be stuck.
const IDLE_STEPS_MAX: u32 = 3;

/// What the provider shows of one id.
#[derive(Debug)]
pub struct Seen {
    pub id: String,
    shown: Shown,
    /// As it would be written.
    row: Option<Row>,
    /// Fields that were not asked for: nothing is said of them.
    without: Vec<String>,
}

impl Seen {
    pub fn is_presence_only(&self) -> bool {
        self.shown == Shown::Present
    }

    /// The answer proves nothing.
    pub fn is_silent(&self) -> bool {
        self.shown == Shown::Nothing
    }
}

/// What comes next of a list.
pub enum Next {
    Page(Vec<Seen>, Position),
    End,
    /// A part of it cannot be read.
    Partial(String),
}

impl Verifying<'_> {
    /// Asks for some of what is to be asked for, and takes them off the list. `None`: this cannot be asked for by id.
    pub(super) async fn by_id(&self, subject: &mut Subject) -> Result<Option<Vec<Seen>>, Halt> {
        let Subject { spec, facts, progress, open, .. } = subject;
        let chunk = progress.chunk();
        let (spec, todo) = (*spec, &mut progress.todo);
        let ids = &todo[..todo.len().min(chunk)];
        let walk = walk_of(Mode::Backfill, open.started_at, None);
        let cx = self.context(spec, &walk, facts);
        if let Some(at) = self.turn.provider.reread(&cx, ids) {
            let ids = ids.to_vec();
            let seen = self.whole(&cx, &ids, at).await?;
            todo.drain(..ids.len());
            return Ok(Some(seen));
        }
        if ids.is_empty() || !asks_by_id(self.turn.provider, &cx) {
            return Ok(None);
        }
        let (place, ids) = self.of_one_place(&cx, ids).await?;
        let asked = probe(self.sender, &cx, place.as_deref(), &ids, self.deadline, &self.tally).await?;
        let (ids, shown) = if let Some(probed) = asked {
            self.learn(&probed.learned).await?;
            facts.extend(probed.learned);
            (ids[..probed.taken].to_vec(), probed.shown)
        } else {
            let nothing = vec![Presence::Unknown; ids.len()];
            (ids, nothing)
        };
        todo.retain(|id| !ids.contains(id));
        Ok(Some(ids.into_iter().zip(shown).map(|(id, presence)| of_presence(spec, id, presence)).collect()))
    }

    /// Keeps what was learned on the way for the walks.
    async fn learn(&self, learned: &Facts) -> Result<(), Halt> {
        let (of, epoch, learned) = (self.turn.connection.id, self.turn.epoch, learned.clone());
        if learned.is_empty() {
            return Ok(());
        }
        let kept = self.engine.db.transaction(move |connection| {
            let owned = turns::owns(connection, of, epoch)?;
            if owned {
                turns::learn(connection, of, &learned)?;
            }
            Ok(owned)
        });
        if kept.await.map_err(halt)? { Ok(()) } else { Err(Halt::Lost) }
    }

    /// Those of some ids whose rows are in one place, where a request has to say which.
    async fn of_one_place(
        &self,
        cx: &StepContext<'_>,
        ids: &[String],
    ) -> Result<(Option<String>, Vec<String>), Halt> {
        let Some(column) = self.turn.provider.place_column(cx) else { return Ok((None, ids.to_vec())) };
        let (spec, of, asked) = (cx.stream, self.turn.connection.id, ids.to_vec());
        let places =
            self.engine.db.run(move |connection| mirror::places(connection, spec, of, column, &asked));
        let places = places.await.map_err(halt)?;
        let place_of = |id: &String| places.get(id).cloned().flatten();
        let place = ids.first().and_then(place_of);
        let there = ids.iter().filter(|id| place_of(id) == place).cloned().collect();
        Ok((place, there))
    }

    /// Reads records whole, from a place that names them.
    async fn whole(&self, cx: &StepContext<'_>, ids: &[String], at: Position) -> Result<Vec<Seen>, Halt> {
        let mut found: HashMap<String, Seen> = HashMap::new();
        let (mut at, mut deadline) = (at, self.deadline);
        loop {
            match self.next(cx, at, deadline).await? {
                Next::Page(page, next) => {
                    found.extend(page.into_iter().map(|seen| (seen.id.clone(), seen)));
                    at = next;
                    deadline = self.deadline + PAGE_OUTLASTS_MAX;
                }
                Next::End => break,
                Next::Partial(why) => return Err(Halt::Failed(Failure::transient(why))),
            }
        }
        let nothing =
            |id: &String| Seen { id: id.clone(), shown: Shown::Nothing, row: None, without: Vec::new() };
        Ok(ids.iter().map(|id| found.remove(id).unwrap_or_else(|| nothing(id))).collect())
    }

    /// Steps through the state machine to its next page, which is begun before `deadline`.
    pub(super) async fn next(
        &self,
        cx: &StepContext<'_>,
        at: Position,
        deadline: Instant,
    ) -> Result<Next, Halt> {
        let (mut at, mut replies, mut idle, mut deadline) = (at, Vec::new(), 0, deadline);
        while idle <= IDLE_STEPS_MAX {
            match self.sender.provider.step(cx, &at, replies).map_err(Halt::Failed)? {
                Step::Send { requests, at: next } => {
                    idle = if requests.is_empty() { idle + 1 } else { 0 };
                    let sending =
                        requests.iter().map(|request| self.sender.send(request, deadline, &self.tally));
                    replies = try_join_all(sending).await?;
                    deadline = self.deadline + PAGE_OUTLASTS_MAX;
                    at = next;
                }
                Step::Emit { page, at: next } => return Ok(Next::Page(of_page(cx.stream, page), next)),
                Step::Done => return Ok(Next::End),
                Step::Partial { why } => return Ok(Next::Partial(why)),
            }
        }
        let message = format!("the list of `{}` does not advance", cx.stream.name);
        Err(Halt::Failed(Failure::changed(message)))
    }

    /// Holds what was seen against what the mirror has: id, finding, and the provider's time of modification.
    pub(super) async fn judge(
        &self,
        subject: &Subject,
        seen: Vec<Seen>,
    ) -> Result<Vec<(String, Finding, Option<DateTime<Utc>>)>, Halt> {
        let (spec, of) = (subject.spec, self.turn.connection.id);
        let rows: Vec<Row> = seen.iter().filter_map(|seen| seen.row.clone()).collect();
        let bare: Vec<String> =
            seen.iter().filter(|seen| seen.row.is_none()).map(|seen| seen.id.clone()).collect();
        let compared = self.engine.db.run(move |connection| {
            let bare: Vec<&str> = bare.iter().map(String::as_str).collect();
            let mut compared = verifications::compare(connection, spec, of, &rows)?;
            compared.extend(verifications::held(connection, spec, of, &bare)?);
            Ok(compared)
        });
        let mut compared: HashMap<String, Compared> = compared.await.map_err(halt)?.into_iter().collect();
        let known = subject.progress.known();
        let judged = seen.into_iter().map(|seen| {
            let held = compared.remove(&seen.id);
            let held = held.map_or(Held::Absent, |compared| held_of(spec, &seen, compared));
            let updated_at = seen.row.as_ref().and_then(|row| row.source_updated_at);
            let finding = compare::judge(&seen.id, held, seen.shown, known);
            (seen.id, finding, updated_at)
        });
        Ok(judged.collect())
    }
}

fn held_of(spec: &StreamSpec, seen: &Seen, compared: Compared) -> Held {
    match compared {
        Compared { held: false, .. } => Held::Absent,
        Compared { deleted_at: Some(at), .. } => Held::Gone(at),
        Compared { mut columns, mut raw, .. } => {
            let theirs = seen.row.as_ref().and_then(|row| serde_json::from_str(&row.raw).ok());
            let pointer = |column: &str| match column {
                "source_created_at" => Some(spec.created_at),
                "source_updated_at" => Some(spec.updated_at),
                _ => spec.columns.iter().find(|of| of.name == column).map(|of| of.at),
            };
            columns.retain(|(column, ..)| !pointer(column).is_some_and(|at| is_within(at, &seen.without)));
            if let Some(Value::Object(fields)) = &mut raw {
                fields.retain(|name, _| !seen.without.contains(name));
            }
            let raws = raw.as_ref().zip(theirs.as_ref());
            Held::Living(compare::differences(&seen.id, columns, raws, pointer))
        }
    }
}

/// Whether a pointer leads into one of these top-level fields.
fn is_within(pointer: &str, fields: &[String]) -> bool {
    fields.iter().any(|field| pointer.split('/').nth(1) == Some(field))
}

fn of_page(spec: &StreamSpec, page: Page) -> Vec<Seen> {
    let tombstone = |tombstone: Tombstone| {
        let Tombstone { id, deletion, sent_at, .. } = tombstone;
        Seen {
            id,
            shown: Shown::Gone((deletion.at != sent_at).then_some(deletion.at)),
            row: None,
            without: Vec::new(),
        }
    };
    let records = page.records.into_iter().map(|record| of_record(spec, record));
    records.chain(page.tombstones.into_iter().map(tombstone)).collect()
}

/// A deletion that bears the time of the request has none of its own.
fn of_record(spec: &StreamSpec, mut record: Record) -> Seen {
    extract::trim(spec, &mut record.raw);
    let (row, _misfits) = extract::row(spec, &record);
    let shown = match &record.deleted {
        Some(deletion) if is_marked(spec, deletion, &row) => Shown::MarkedGone(deletion.at),
        Some(deletion) => Shown::Gone((deletion.at != record.sent_at).then_some(deletion.at)),
        None => Shown::Record(row.source_updated_at),
    };
    Seen { id: record.id, shown, row: Some(row), without: record.without }
}

/// Whether the walk over changes shows that a record is gone: going moved its modification, and no list of its own is where
/// such records are.
fn is_marked(spec: &StreamSpec, deletion: &Deletion, row: &Row) -> bool {
    let at = Some(extract::microseconds(deletion.at));
    deletion.told && row.source_updated_at == at && !spec.modes.contains(&Mode::Archived)
}

fn of_presence(spec: &StreamSpec, id: String, presence: Presence) -> Seen {
    match presence {
        Presence::Here(Some(record)) => Seen { id, ..of_record(spec, *record) },
        Presence::Here(None) => Seen { id, shown: Shown::Present, row: None, without: Vec::new() },
        Presence::Gone { .. } => Seen { id, shown: Shown::Gone(None), row: None, without: Vec::new() },
        Presence::Unknown => Seen { id, shown: Shown::Nothing, row: None, without: Vec::new() },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_that_is_marked_as_gone_is_held_against_changes() {
        let of = |provider: &str, stream: &str| {
            crate::providers::provider(provider).unwrap().spec().stream(stream).unwrap()
        };
        let (at, later) = (DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH + chrono::TimeDelta::days(1));
        for (spec, field, deleted_at, told, expected) in [
            (of("servicetitan", "customers"), "modifiedOn", at, true, Shown::MarkedGone(at)),
            (of("servicetitan", "customers"), "modifiedOn", later, false, Shown::Gone(None)),
            (of("hubspot", "tickets"), "updatedAt", at, true, Shown::Gone(Some(at))),
        ] {
            let deletion = Deletion { at: deleted_at, told, evidence: "it says so".to_owned() };
            let raw = json!({"id": "7", field: at.to_rfc3339()});
            let record = Record {
                id: "7".to_owned(),
                raw,
                sent_at: later,
                deleted: Some(deletion),
                without: Vec::new(),
            };
            assert_eq!(of_record(spec, record).shown, expected, "{} {told}", spec.name);
        }
    }

    #[test]
    fn what_a_list_has_shown_is_left_to_it() {
        let mut progress = super::super::Progress::default();
        for (id, of_sample) in [("drawn", true), ("listed", false), ("unlisted", false)] {
            progress.suspects.insert(id.to_owned(), of_sample);
        }
        progress.unlisted.insert("unlisted".to_owned());
        for (id, shown, left) in [
            ("drawn", Shown::Nothing, false),
            ("drawn", Shown::Present, false),
            ("listed", Shown::Nothing, true),
            ("listed", Shown::Present, true),
            ("listed", Shown::Gone(None), false),
            ("unlisted", Shown::Nothing, false),
            ("unlisted", Shown::Present, true),
        ] {
            let seen = Seen { id: id.to_owned(), shown, row: None, without: Vec::new() };
            assert_eq!(progress.leaves_to_list(&seen), left, "{id} {shown:?}");
        }
    }

    #[test]
    fn of_what_was_not_asked_for_nothing_differs() {
        let spec = crate::providers::provider("jobber").unwrap().spec().stream("jobs").unwrap();
        let record = Record {
            id: "7".to_owned(),
            raw: json!({"id": "7", "title": "new"}),
            sent_at: DateTime::UNIX_EPOCH,
            deleted: None,
            without: vec!["total".to_owned(), "client".to_owned()],
        };
        let column = |name: &str, ours: &str| (name.to_owned(), Some(ours.to_owned()), None);
        let compared = Compared {
            held: true,
            deleted_at: None,
            columns: vec![
                column("title", "old"),
                column("total", "12.5"),
                column("client_name", "Ana"),
                column("city", "Oslo"),
            ],
            raw: Some(json!({"id": "7", "title": "old", "total": 12.5, "client": {"name": "Ana"}})),
        };
        let Held::Living(differences) = held_of(spec, &of_record(spec, record), compared) else {
            panic!("it lives")
        };
        let columns: Vec<&str> = differences.iter().map(|one| one.column.as_str()).collect();
        assert_eq!(columns, ["title", "city"]);
    }
}
