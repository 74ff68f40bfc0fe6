//! Pages into the mirror: rows, tombstones, history, drift, facts, position and counts in one transaction.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use super::drift::{Known, Shapes};
use super::merge::{Balance, Fold, Held, Version, Write};
use super::{extract, history};
use crate::db::drift::Found;
use crate::db::requests::{self, NewRequest, RequestKind};
use crate::db::streams::{PageEffect, StreamKey, StreamWrite};
use crate::db::sync_runs::Counts;
use crate::db::{
    DbError, PgConnection, changes, drift as listing, mirror, session, streams, sync_runs, turns,
};
use crate::domain::drift::{Drift, DriftKind};
use crate::domain::record::{Deletion, Record, Tombstone};
use crate::domain::spec::{Mode, StreamSpec};
use crate::domain::step::{Facts, Page, Position};

/// The walk that pages come from.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    pub key: StreamKey,
    pub spec: &'static StreamSpec,
    pub mode: Mode,
    pub run: i64,
    /// When the run began.
    pub opened_at: DateTime<Utc>,
    /// The walk notes every id that it meets.
    pub sweeping: bool,
    /// What rows were before they changed is kept.
    pub history: bool,
}

/// A page as it is written: rows in place of JSON trees, which take several times the memory of their text.
#[derive(Debug, Default)]
pub struct Ready {
    rows: Vec<Incoming>,
    shapes: Shapes,
    met: Vec<String>,
    tombstones: Vec<Tombstone>,
    facts: Facts,
    renews: Vec<&'static str>,
    progress: Option<f32>,
}

/// A version of a record on its way into the mirror.
#[derive(Debug)]
struct Incoming {
    row: mirror::Row,
    deletion: Option<Deletion>,
    /// The number of its fields' set among the page's.
    shape: usize,
    drift: Vec<Drift>,
    /// The record, where it was asked for without some of its fields.
    partial: Option<Box<Record>>,
}

impl Ready {
    pub fn of(spec: &StreamSpec, page: Page) -> Self {
        let mut shapes = Shapes::default();
        let incoming = |mut record: Record| {
            let shape = extract::trim_named(spec, &mut record.raw, |raw| shapes.of(spec, raw));
            let (row, drift) = extract::row(spec, &record);
            let deletion = record.deleted.clone();
            let partial = (!record.without.is_empty()).then(|| Box::new(record));
            Incoming { row, deletion, shape, drift, partial }
        };
        Self {
            rows: page.records.into_iter().map(incoming).collect(),
            shapes,
            met: page.met,
            tombstones: page.tombstones,
            facts: page.facts,
            renews: page.renews,
            progress: page.progress,
        }
    }

    fn append(&mut self, page: Self) {
        let before = self.shapes.append(page.shapes);
        let moved =
            |incoming: Incoming| Incoming { shape: incoming.shape.saturating_add(before), ..incoming };
        self.rows.extend(page.rows.into_iter().map(moved));
        self.met.extend(page.met);
        self.tombstones.extend(page.tombstones);
        self.facts.extend(page.facts);
        self.renews.extend(page.renews);
    }
}

/// Writes pages in their order, and the position after the last. `counts` gets what they did added.
///
/// Call it inside a transaction. Nothing is written when the turn has lost the stream.
pub fn pages(
    connection: &mut PgConnection,
    source: &Source,
    pages: Vec<(Ready, Position)>,
    counts: &mut Counts,
) -> Result<StreamWrite, DbError> {
    // In the order in which turns begin and connections end: the other way round, two could wait for each other.
    if pages.iter().any(|(page, _)| !page.facts.is_empty()) {
        turns::lock(connection, source.key.connection)?;
    }
    if streams::lock(connection, source.key)? == StreamWrite::Lost {
        return Ok(StreamWrite::Lost);
    }
    // A crash may lose the last pages, and their position with them: they are read again. Waiting for the disk at every
    // page would only make it slower.
    session::commit_lazily(connection)?;
    let Some(last) = pages.last() else { return Ok(StreamWrite::Done) };
    let (position, progress) = (last.1.clone(), last.0.progress);
    counts.pages += i64::try_from(pages.len()).unwrap_or(i64::MAX);
    let mut all = Ready::default();
    for (page, _) in pages {
        all.append(page);
    }
    meet(connection, source, &all)?;
    if !all.facts.is_empty() {
        turns::learn(connection, source.key.connection, &all.facts)?;
        // What needs facts itself learns only what concerns it alone, such as how large its pages may be.
        if source.spec.needs_facts.is_empty() {
            streams::taught(connection, source.key, source.mode)?;
        }
    }
    renew(connection, source, &all.renews)?;
    let balance = write(connection, source, all, counts)?;
    let effect = PageEffect { rows: balance.living, deleted_rows: balance.deleted, progress };
    let owned = streams::save_page(connection, source.key, source.mode, &position, effect)?;
    sync_runs::count(connection, source.run, counts)?;
    Ok(owned)
}

/// Writes what was asked for by id, beside the walk's pages: its position stays.
///
/// Call it inside a transaction. Nothing is written when the turn has lost the stream.
pub fn aside(
    connection: &mut PgConnection,
    source: &Source,
    shown: Ready,
    counts: &mut Counts,
) -> Result<StreamWrite, DbError> {
    if !shown.facts.is_empty() {
        turns::lock(connection, source.key.connection)?;
    }
    if streams::lock(connection, source.key)? == StreamWrite::Lost {
        return Ok(StreamWrite::Lost);
    }
    meet(connection, source, &shown)?;
    if !shown.facts.is_empty() {
        turns::learn(connection, source.key.connection, &shown.facts)?;
    }
    renew(connection, source, &shown.renews)?;
    let balance = write(connection, source, shown, counts)?;
    streams::adjust(connection, source.key, balance.living, balance.deleted)?;
    sync_runs::count(connection, source.run, counts)?;
    Ok(StreamWrite::Done)
}

/// Asks for everything of other streams to be read again, as an admin would ask, but that no pause is doubted.
fn renew(connection: &mut PgConnection, source: &Source, streams: &[&'static str]) -> Result<(), DbError> {
    if streams.is_empty() {
        return Ok(());
    }
    let args = json!({"streams": streams, "full": true, "own": true});
    let of = source.key.connection;
    requests::create(
        connection,
        &NewRequest { connection: of, kind: RequestKind::Sync, args, sealed: None },
    )?;
    Ok(())
}

/// Notes what a sweeping walk has met.
fn meet(connection: &mut PgConnection, source: &Source, ready: &Ready) -> Result<(), DbError> {
    if !source.sweeping {
        return Ok(());
    }
    let ids = ready.rows.iter().map(|incoming| incoming.row.id.as_str());
    let met: Vec<&str> = ids.chain(ready.met.iter().map(String::as_str)).collect();
    streams::meet(connection, source.key, source.mode, &met)
}

/// Marks rows as gone because a closed walk has proven it.
pub fn bury(
    connection: &mut PgConnection,
    source: &Source,
    gone: Vec<Tombstone>,
    counts: &mut Counts,
) -> Result<(), DbError> {
    let page = Ready { tombstones: gone, ..Ready::default() };
    let balance = write(connection, source, page, counts)?;
    streams::adjust(connection, source.key, balance.living, balance.deleted)?;
    sync_runs::count(connection, source.run, counts)
}

/// Decides about each event against what is held, and writes what won.
fn write(
    connection: &mut PgConnection,
    source: &Source,
    mut page: Ready,
    counts: &mut Counts,
) -> Result<Balance, DbError> {
    complete(connection, source, &mut page)?;
    let ids: Vec<&str> = page
        .rows
        .iter()
        .map(|incoming| incoming.row.id.as_str())
        .chain(page.tombstones.iter().map(|tombstone| tombstone.id.as_str()))
        .collect();
    if ids.is_empty() {
        return Ok(Balance::default());
    }
    counts.records += i64::try_from(ids.len()).unwrap_or(i64::MAX);
    let held = mirror::held(connection, source.spec, source.key.connection, &ids)?;
    let mut fold = Fold::new(held.iter().map(|(id, row)| (id.clone(), holding(source, row))).collect());
    for mut incoming in page.rows {
        let id = incoming.row.id.clone();
        let version = Version {
            updated_at: incoming.row.source_updated_at,
            sent_at: incoming.row.synced_at,
            hash: incoming.row.content_hash,
            deletion: incoming.deletion.take().map(storable),
        };
        fold.record(&id, version, incoming);
    }
    for tombstone in page.tombstones {
        let sent_at = extract::microseconds(tombstone.sent_at);
        fold.tombstone(Tombstone { sent_at, deletion: storable(tombstone.deletion), ..tombstone });
    }
    let (writes, balance) = fold.finish();
    let mut won = Won { rows: Vec::with_capacity(writes.len()), ..Won::default() };
    for write in writes {
        match write {
            Write::Row(incoming, deletion) => won.take(incoming, deletion),
            Write::Burial(tombstone) => won.burials.push(tombstone),
        }
    }
    let replaced: Vec<&str> =
        won.rows.iter().map(|row| row.id.as_str()).filter(|id| held.contains_key(*id)).collect();
    let (spec, of, run) = (source.spec, source.key.connection, source.run);
    let was = mirror::write(connection, spec, of, &won.rows, &replaced, source.history, run)?;
    mirror::bury(connection, spec, of, &won.burials, run)?;
    if source.history {
        changes::write(connection, of, spec.name, &won.changes(spec, &held, &was), run)?;
    }
    note_drift(connection, source, &page.shapes, &won)?;
    counts.rows_written += i64::try_from(won.rows.len()).unwrap_or(i64::MAX);
    counts.rows_deleted += balance.newly_deleted;
    Ok(balance)
}

/// Gives records that were asked for without some of their fields what is known of these: a column that was not asked for
/// is not emptied.
fn complete(connection: &mut PgConnection, source: &Source, page: &mut Ready) -> Result<(), DbError> {
    let partial = page.rows.iter().filter(|incoming| incoming.partial.is_some());
    let ids: Vec<String> = partial.map(|incoming| incoming.row.id.clone()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let mut known = mirror::raws(connection, source.spec, source.key.connection, &ids)?;
    for incoming in &mut page.rows {
        let Some(mut record) = incoming.partial.take() else {
            // A page of the same transaction may have shown it whole.
            if let Some(raw) = known.get_mut(&incoming.row.id) {
                raw.clone_from(&incoming.row.raw);
            }
            continue;
        };
        let Some(raw) = known.get(&record.id) else { continue };
        let raw = serde_json::from_str(raw).map_err(|error| DbError::Row(error.to_string()))?;
        extract::fill_in(&mut record, &raw);
        (incoming.row, incoming.drift) = extract::row(source.spec, &record);
        incoming.shape = page.shapes.of(source.spec, &record.raw);
    }
    Ok(())
}

/// What won of some pages.
#[derive(Default)]
struct Won {
    rows: Vec<mirror::Row>,
    burials: Vec<Tombstone>,
    /// Of each row the number of its fields' set.
    shapes: Vec<usize>,
    /// What was not foreseen, and in which row.
    drift: Vec<(usize, Drift)>,
}

impl Won {
    fn take(&mut self, Incoming { mut row, shape, drift, .. }: Incoming, deletion: Option<Deletion>) {
        row.deleted_at = deletion.as_ref().map(|deletion| deletion.at);
        row.deleted_evidence = deletion.map(|deletion| deletion.evidence);
        let place = self.rows.len();
        self.drift.extend(drift.into_iter().map(|drift| (place, drift)));
        self.shapes.push(shape);
        self.rows.push(row);
    }

    /// What rows that were held have been before, in the order of writing. What comes into the mirror was nothing before.
    fn changes(
        &self,
        spec: &StreamSpec,
        held: &HashMap<String, mirror::Held>,
        was: &HashMap<String, mirror::Replaced>,
    ) -> Vec<changes::Change> {
        let mut changes = Vec::new();
        // Of each row that was replaced and is then buried: what it was in between.
        let mut in_between = HashMap::new();
        for row in &self.rows {
            let (Some(held), Some(was)) = (held.get(&row.id), was.get(&row.id)) else { continue };
            in_between.insert(&row.id, row.deleted_at);
            changes.extend(history::of_row(spec, held, was, row));
        }
        for tombstone in &self.burials {
            let Some(held) = held.get(&tombstone.id) else { continue };
            let was = in_between.get(&tombstone.id).copied().unwrap_or(held.deleted_at);
            changes.push(history::of_burial(tombstone, was));
        }
        changes
    }
}

/// Learns the fields of rows that were written, and lists what was not foreseen.
fn note_drift(
    connection: &mut PgConnection,
    source: &Source,
    shapes: &Shapes,
    won: &Won,
) -> Result<(), DbError> {
    if won.rows.is_empty() {
        return Ok(());
    }
    let stored = listing::fields(connection, source.key)?;
    // What an older or newer program has left and cannot be read is learned anew.
    let known: Option<Known> = stored.known.and_then(|known| serde_json::from_value(known).ok());
    let learning = stored.learning || known.is_none();
    let mut known = known.unwrap_or_default();
    let ids = won.rows.iter().map(|row| row.id.as_str());
    let written: Vec<(usize, &str)> = won.shapes.iter().copied().zip(ids).collect();
    let news = known.take(source.spec, shapes, &written, learning);
    let known = serde_json::to_value(&known).map_err(|error| DbError::Row(error.to_string()))?;
    listing::save_fields(connection, source.key, &known)?;
    let of_fields = news.drift.into_iter().map(|(count, drift, record_id)| Found { drift, count, record_id });
    let found: Vec<Found> = gathered(won).into_iter().chain(of_fields).collect();
    listing::list(connection, source.key, &found, source.run)?;
    listing::returned(connection, source.key, &news.returned)
}

/// The same thing in many rows is listed once.
fn gathered(won: &Won) -> Vec<Found> {
    let mut gathered: BTreeMap<(DriftKind, &str, &str), Found> = BTreeMap::new();
    for (place, drift) in &won.drift {
        let found = gathered.entry((drift.kind, &drift.field, &drift.value)).or_insert_with(|| {
            let record_id = won.rows[*place].id.clone();
            Found { drift: drift.clone(), count: 0, record_id }
        });
        found.count += 1;
    }
    gathered.into_values().collect()
}

/// As the database keeps it, so that what comes again is known again.
fn storable(deletion: Deletion) -> Deletion {
    Deletion { at: extract::microseconds(deletion.at), ..deletion }
}

fn holding(source: &Source, row: &mirror::Held) -> Held {
    // A hash of another length is of another time, or was forgotten because the row is not what the provider shows: the
    // next read is written, whatever time of modification the row bears.
    let hash = row.content_hash.as_slice().try_into().ok();
    // The turn owns the stream: what another run wrote was asked for before this one began, whatever clock it went by.
    let before = source.opened_at - TimeDelta::microseconds(1);
    let other = row.sync_run_id != Some(source.run);
    Held {
        updated_at: row.source_updated_at.filter(|_| hash.is_some()),
        sent_at: if other { row.synced_at.min(before) } else { row.synced_at },
        hash: hash.unwrap_or([0; 32]),
        deleted_at: row.deleted_at,
        merged: row.merged,
    }
}
