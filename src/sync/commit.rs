//! Pages into the mirror: rows, tombstones, facts, position and counts in one transaction.

use super::extract;
use super::merge::{Balance, Fold, Held, Version, Write};
use crate::db::streams::{PageEffect, StreamKey, StreamWrite};
use crate::db::sync_runs::Counts;
use crate::db::{DbError, PgConnection, mirror, session, streams, sync_runs, turns};
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
    /// The walk notes every id that it meets.
    pub sweeping: bool,
}

/// A page as it is written: rows in place of JSON trees, which take several times the memory of their text.
#[derive(Debug, Default)]
pub struct Ready {
    rows: Vec<(mirror::Row, Option<Deletion>)>,
    met: Vec<String>,
    tombstones: Vec<Tombstone>,
    facts: Facts,
    progress: Option<f32>,
}

impl Ready {
    pub fn of(spec: &StreamSpec, page: Page) -> Self {
        let row = |mut record: Record| {
            extract::trim(spec, &mut record.raw);
            let (row, _misfits) = extract::row(spec, &record);
            (row, record.deleted)
        };
        Self {
            rows: page.records.into_iter().map(row).collect(),
            met: page.met,
            tombstones: page.tombstones,
            facts: page.facts,
            progress: page.progress,
        }
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
        all.rows.extend(page.rows);
        all.met.extend(page.met);
        all.tombstones.extend(page.tombstones);
        all.facts.extend(page.facts);
    }
    meet(connection, source, &all)?;
    if !all.facts.is_empty() {
        turns::learn(connection, source.key.connection, &all.facts)?;
    }
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
    if streams::lock(connection, source.key)? == StreamWrite::Lost {
        return Ok(StreamWrite::Lost);
    }
    meet(connection, source, &shown)?;
    let balance = write(connection, source, shown, counts)?;
    streams::adjust(connection, source.key, balance.living, balance.deleted)?;
    sync_runs::count(connection, source.run, counts)?;
    Ok(StreamWrite::Done)
}

/// Notes what a sweeping walk has met.
fn meet(connection: &mut PgConnection, source: &Source, ready: &Ready) -> Result<(), DbError> {
    if !source.sweeping {
        return Ok(());
    }
    let ids = ready.rows.iter().map(|(row, _)| row.id.as_str());
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
    page: Ready,
    counts: &mut Counts,
) -> Result<Balance, DbError> {
    let ids: Vec<&str> = page
        .rows
        .iter()
        .map(|(row, _)| row.id.as_str())
        .chain(page.tombstones.iter().map(|tombstone| tombstone.id.as_str()))
        .collect();
    if ids.is_empty() {
        return Ok(Balance::default());
    }
    counts.records += i64::try_from(ids.len()).unwrap_or(i64::MAX);
    let held = mirror::held(connection, source.spec, source.key.connection, &ids)?;
    let mut fold = Fold::new(held.iter().map(|(id, row)| (id.clone(), holding(row))).collect());
    for (row, deletion) in page.rows {
        let id = row.id.clone();
        let version = Version {
            updated_at: row.source_updated_at,
            sent_at: row.synced_at,
            hash: row.content_hash,
            deletion,
        };
        fold.record(&id, version, row);
    }
    for tombstone in page.tombstones {
        let sent_at = extract::microseconds(tombstone.sent_at);
        fold.tombstone(Tombstone { sent_at, ..tombstone });
    }
    let (writes, balance) = fold.finish();
    let mut rows = Vec::with_capacity(writes.len());
    let mut burials = Vec::new();
    for write in writes {
        match write {
            Write::Row(mut row, deletion) => {
                row.deleted_at = deletion.as_ref().map(|deletion| deletion.at);
                row.deleted_evidence = deletion.map(|deletion| deletion.evidence);
                rows.push(row);
            }
            Write::Burial(tombstone) => burials.push(tombstone),
        }
    }
    let replaced: Vec<&str> =
        rows.iter().map(|row| row.id.as_str()).filter(|id| held.contains_key(*id)).collect();
    mirror::write(connection, source.spec, source.key.connection, &rows, &replaced, source.run)?;
    mirror::bury(connection, source.spec, source.key.connection, &burials, source.run)?;
    counts.rows_written += i64::try_from(rows.len()).unwrap_or(i64::MAX);
    counts.rows_deleted += balance.newly_deleted;
    Ok(balance)
}

fn holding(row: &mirror::Held) -> Held {
    // A hash of another length is of another time, or was forgotten because the row is not what the provider shows: the
    // next read is written, whatever time of modification the row bears.
    let hash = row.content_hash.as_slice().try_into().ok();
    Held {
        updated_at: row.source_updated_at.filter(|_| hash.is_some()),
        sent_at: row.synced_at,
        hash: hash.unwrap_or([0; 32]),
        deleted: row.deleted,
        merged: row.merged,
    }
}
