//! The tickets themselves: three walks over one machine.
//!
//! A walk alternates between *listing* ids and *reading* what was listed. The listing differs by mode, and the reading
//! is the same: `batch/read` with every property in the body, the associations of the same ids, and, in the same
//! breath, the next listing. So one round trip a page is enough, and a page holds what the listing before it named.
//!
//! | mode | listing | why so |
//! | --- | --- | --- |
//! | backfill | `GET` list by cursor | ordered by id, no filter |
//! | incremental | `POST` search by window | restarted at `hs_object_id GT last` on every page: offsets end at 10,000, and they skip a row whenever one leaves the window |
//! | archived | `GET` list `archived=true` | archiving does not move `hs_lastmodifieddate`, so search never shows it |

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    ASSOCIATIONS, SEARCH, StreamSpec, TEN_SECONDLY, crm_path, get, id_text, next_after, properties, results,
    take_results,
};
use crate::domain::failure::Failure;
use crate::domain::record::{Deletion, Record, Tombstone};
use crate::domain::spec::ColumnType::{Text, TextArray, Timestamptz};
use crate::domain::spec::{Mode, Read, col};
use crate::domain::step::{Page, Position, Presence, Reply, Request, Step, StepContext};
use crate::domain::values;

pub const TICKETS_NAME: &str = "tickets";

pub const STREAM: StreamSpec = StreamSpec {
    name: TICKETS_NAME,
    table: "hubspot_tickets",
    modes: &[Mode::Incremental, Mode::Backfill, Mode::Archived, Mode::Sweep],
    needs_facts: &[properties::FACT],
    id: "/id",
    created_at: "/createdAt",
    updated_at: "/updatedAt",
    columns: &[
        col("subject", Text, "/properties/subject"),
        col("content", Text, "/properties/content"),
        col("pipeline_id", Text, "/properties/hs_pipeline"),
        col("stage_id", Text, "/properties/hs_pipeline_stage"),
        col("priority", Text, "/properties/hs_ticket_priority"),
        col("category", Text, "/properties/hs_ticket_category"),
        col("source_type", Text, "/properties/source_type"),
        col("owner_id", Text, "/properties/hubspot_owner_id"),
        col("closed_at", Timestamptz, "/properties/closed_date"),
        col("company_ids", TextArray, "/associations/companies"),
        col("contact_ids", TextArray, "/associations/contacts"),
        col("url", Text, "/url"),
    ],
    merges: true,
    keep_only: &[],
    omit: &[],
    read: Read::Own,
};

/// Ids in one `batch/read`, and in a page of the list.
const BATCH_MAX: usize = 100;
/// Hits in a page of search.
const SEARCH_MAX: u32 = 200;
/// Associated objects whose ids a ticket carries.
const ASSOCIATED: [&str; 2] = ["companies", "contacts"];
/// How often the associations of one page are asked for further pages before the answer is taken to be circular.
const ASSOCIATION_ROUNDS_MAX: u32 = 50;
/// Tickets of one page that may all have vanished between being named and being read. More are not believed.
const GONE_AT_ONCE_MAX: usize = 10;
/// Property of a survivor that names the tickets merged into it, separated by `;`.
const MERGED_IDS: &str = "hs_merged_object_ids";

/// Where a walk stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct At {
    /// Where the listing goes on: the list's cursor, or the last id that search named.
    #[serde(default)]
    after: Option<String>,
    /// Listed, and to be read next.
    #[serde(default)]
    ids: Vec<String>,
    /// The listing has come to its end.
    #[serde(default)]
    listed_all: bool,
    /// What the replies at hand answer. Never part of a saved position: replies do not outlive the process.
    #[serde(default, skip_serializing_if = "Asked::is_nothing")]
    asked: Asked,
    /// Read so far of the page at hand, while something about it is still being asked.
    #[serde(default, skip_serializing_if = "Draft::is_empty")]
    draft: Draft,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
enum Asked {
    #[default]
    Nothing,
    /// A listing alone: the first request of a walk.
    Listing,
    /// Batch reads, then one associations request per kind, then the next listing unless the last one was final.
    Reading { batches: usize },
    /// Further associations of single tickets, one request per kind in this order.
    Associations { kinds: Vec<String>, round: u32 },
    /// Ids that the batch read did not return, asked for on the other side: among the archived, or the living.
    Missing,
}

impl Asked {
    fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }
}

/// A page in the making.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Draft {
    records: Vec<Value>,
    sent_at: Option<DateTime<Utc>>,
    /// Associated ids by kind and ticket.
    associations: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    missing: Vec<String>,
    tombstones: Vec<Tombstone>,
    /// What the next listing brought, kept until the page is out.
    next: Option<Box<At>>,
}

impl Draft {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

pub fn step(cx: &StepContext<'_>, at: &Position, replies: Vec<Reply>) -> Result<Step, Failure> {
    let mut here: At = at.read();
    if replies.is_empty() {
        here.asked = Asked::Nothing;
        here.draft = Draft::default();
    }
    match std::mem::take(&mut here.asked) {
        Asked::Nothing if !here.ids.is_empty() => Ok(send_reading(cx, here)),
        Asked::Nothing if here.listed_all => Ok(Step::Done),
        Asked::Nothing => Ok(send_listing(cx, here)),
        Asked::Listing => listed(cx, &here, &replies[0]),
        Asked::Reading { batches } => read(cx, here, batches, replies),
        Asked::Associations { kinds, round } => more_associations(cx, here, &kinds, round, &replies),
        Asked::Missing => missing_read(cx, here, replies),
    }
}

// ---- listing

fn send_listing(cx: &StepContext<'_>, here: At) -> Step {
    let request = listing(cx, &here);
    Step::Send { requests: vec![request], at: Position::of(&At { asked: Asked::Listing, ..here }) }
}

fn listing(cx: &StepContext<'_>, here: &At) -> Request {
    match cx.walk.mode {
        Mode::Incremental => search(cx, here.after.as_deref()),
        mode => {
            let limit = cx.page_size.clamp(1, 100).to_string();
            let archived = if mode == Mode::Archived { "true" } else { "false" };
            let mut query = vec![("limit", limit.as_str()), ("archived", archived)];
            // Without a word about properties the list sends six of them, content among them.
            query.push(("properties", "hs_lastmodifieddate"));
            query.extend(here.after.as_deref().map(|after| ("after", after)));
            let purpose = if mode == Mode::Archived { "list_archived" } else { "list" };
            get(crm_path(cx.api_version, "objects", "tickets"), purpose, &query)
        }
    }
}

/// Everything modified in `[from, started_at)`, above `last_id`. Only ids are asked for: a search body is limited to
/// 3,000 characters, which all property names would exceed.
fn search(cx: &StepContext<'_>, last_id: Option<&str>) -> Request {
    let modified = |operator: &str, time: DateTime<Utc>| {
        json!({"propertyName": "hs_lastmodifieddate", "operator": operator,
               "value": time.timestamp_millis().to_string()})
    };
    let mut filters: Vec<Value> = cx.walk.from.map(|from| modified("GTE", from)).into_iter().collect();
    filters.push(modified("LT", cx.walk.started_at));
    filters.extend(last_id.map(|id| json!({"propertyName": "hs_object_id", "operator": "GT", "value": id})));
    let body = json!({
        "filterGroups": [{"filters": filters}],
        "sorts": [{"propertyName": "hs_object_id", "direction": "ASCENDING"}],
        "properties": ["hs_lastmodifieddate"],
        "limit": cx.page_size.clamp(1, SEARCH_MAX),
    });
    post(cx, "objects", "tickets/search", "search", body, &[SEARCH])
}

fn post(
    cx: &StepContext<'_>,
    area: &str,
    rest: &str,
    purpose: &'static str,
    body: Value,
    buckets: &'static [&'static str],
) -> Request {
    let path = crm_path(cx.api_version, area, rest);
    Request::post(path, body, purpose, buckets)
}

/// The walk after a listing alone. An archived ticket that went before this walk's bound is known from the walk
/// before, so its tombstone is enough and nothing is read.
fn listed(cx: &StepContext<'_>, here: &At, reply: &Reply) -> Result<Step, Failure> {
    let (mut next, tombstones) = take_listing(cx, here, reply)?;
    if cx.walk.mode == Mode::Sweep {
        // That they are listed is all that is asked.
        let met = std::mem::take(&mut next.ids);
        return Ok(Step::Emit { page: Page { met, ..Page::default() }, at: Position::of(&next) });
    }
    if tombstones.is_empty() && !(next.ids.is_empty() && next.listed_all) {
        return step(cx, &Position::of(&next), Vec::new());
    }
    Ok(Step::Emit { page: Page { tombstones, ..Page::default() }, at: Position::of(&next) })
}

/// Reads a listing: where the walk goes on, and what it proves by itself.
fn take_listing(cx: &StepContext<'_>, here: &At, reply: &Reply) -> Result<(At, Vec<Tombstone>), Failure> {
    let purpose = if cx.walk.mode == Mode::Incremental { "search" } else { "list" };
    let mut next = At { after: here.after.clone(), ..At::default() };
    let mut tombstones = Vec::new();
    for entry in results(reply, purpose)? {
        let id = entry.get("id").and_then(id_text).ok_or_else(|| {
            Failure::changed(format!("HubSpot's `{purpose}` names a ticket without an `id`"))
        })?;
        // That it stands in this list proves nothing: the record's own flag counts. Without one it is read.
        if cx.walk.mode == Mode::Archived && is_archived(entry) {
            let tombstone = archived_tombstone(&id, entry, reply);
            let known = cx.walk.from.is_some_and(|from| tombstone.deletion.at < from);
            tombstones.push(tombstone);
            if known {
                continue;
            }
        }
        next.ids.push(id);
    }
    let more = next_after(reply, purpose)?;
    next.listed_all = more.is_none();
    if cx.walk.mode == Mode::Incremental {
        next.after = last_of_ascending(here.after.as_deref(), &next.ids)?;
        let total = reply.json().and_then(|body| body.get("total")?.as_u64());
        if let Some(left) = total.filter(|total| more.is_none() && *total > next.ids.len() as u64) {
            return Err(Failure::changed(format!(
                "HubSpot's search counts {left} tickets, shows {} and names no further page",
                next.ids.len()
            )));
        }
        if more.is_some() && next.ids.is_empty() {
            return Err(Failure::changed("HubSpot's search promises another page after an empty one"));
        }
    } else if more.is_some() {
        if more == here.after || (!next.ids.is_empty() && next.ids == here.ids) {
            return Err(Failure::changed("HubSpot's ticket list repeats a page"));
        }
        next.after = more;
    }
    Ok((next, tombstones))
}

/// The last of ids that must ascend from `last`. Anything else means that pages by id would skip tickets.
fn last_of_ascending(last: Option<&str>, ids: &[String]) -> Result<Option<String>, Failure> {
    let mut last = last.map(str::to_owned);
    for id in ids {
        if last.as_deref().is_some_and(|last| numeric_key(id) <= numeric_key(last)) {
            return Err(Failure::changed(
                "HubSpot's search is not in ascending order of `hs_object_id`, so it cannot be paged safely",
            ));
        }
        last = Some(id.clone());
    }
    Ok(last)
}

/// Orders decimal ids of any length as numbers.
fn numeric_key(id: &str) -> (usize, &str) {
    let digits = id.trim_start_matches('0');
    (digits.len(), digits)
}

/// What a record says of itself.
fn is_archived(record: &Value) -> bool {
    record.get("archived").and_then(Value::as_bool).unwrap_or_else(|| archived_at(record).is_some())
}

fn archived_at(record: &Value) -> Option<DateTime<Utc>> {
    record.get("archivedAt").and_then(values::timestamp)
}

fn archived(record: &Value, sent_at: DateTime<Utc>) -> Deletion {
    let told = archived_at(record);
    Deletion {
        at: told.unwrap_or(sent_at),
        told: told.is_some(),
        evidence: "the record's own `archived` flag".to_owned(),
    }
}

fn archived_tombstone(id: &str, entry: &Value, reply: &Reply) -> Tombstone {
    Tombstone {
        id: id.to_owned(),
        deletion: archived(entry, reply.sent_at),
        merged_into: None,
        sent_at: reply.sent_at,
    }
}

// ---- reading

fn send_reading(cx: &StepContext<'_>, here: At) -> Step {
    let archived = cx.walk.mode == Mode::Archived;
    let batches: Vec<Request> = here.ids.chunks(BATCH_MAX).map(|ids| batch_read(cx, ids, archived)).collect();
    let asked = Asked::Reading { batches: batches.len() };
    let mut requests = batches;
    let inputs: Vec<Value> = here.ids.iter().map(|id| json!({"id": id})).collect();
    requests.extend(ASSOCIATED.iter().map(|kind| associations(cx, kind, &inputs)));
    if !here.listed_all {
        requests.push(listing(cx, &here));
    }
    Step::Send { requests, at: Position::of(&At { asked, ..here }) }
}

/// Asks for tickets that a sweep has not met.
pub fn probe(cx: &StepContext<'_>, ids: &[String]) -> (Request, usize) {
    let ids = &ids[..ids.len().min(BATCH_MAX)];
    let inputs: Vec<Value> = ids.iter().map(|id| json!({"id": id})).collect();
    let body = json!({"properties": [MERGED_IDS], "inputs": inputs});
    let mut request = post(cx, "objects", "tickets/batch/read", "probe", body, &[TEN_SECONDLY]);
    request.query.push(("archived", "false".to_owned()));
    (request, ids.len())
}

/// A ticket that is returned is there, whatever the list said; one that was archived or merged is gone all the same.
pub fn probed(ids: &[String], reply: &Reply) -> Result<Vec<Presence>, Failure> {
    let living: BTreeSet<String> =
        results(reply, "probe")?.iter().map(record_id).collect::<Result<_, _>>()?;
    let presence = |id: &String| {
        if living.contains(id) {
            return Presence::Here(None);
        }
        Presence::Gone { evidence: "not listed, and not returned when asked for by id".to_owned() }
    };
    Ok(ids.iter().map(presence).collect())
}

/// A walk that has listed these tickets and nothing else.
pub fn reread(ids: &[String]) -> Position {
    Position::of(&At { ids: ids.to_vec(), listed_all: true, ..At::default() })
}

fn batch_read(cx: &StepContext<'_>, ids: &[String], archived: bool) -> Request {
    let known = cx.facts.get(properties::TICKET_PROPERTIES).into_iter().flat_map(properties::names);
    // Without this one merged tickets would only be missing. Names that an account lacks are ignored.
    let mut names: Vec<&str> = known.filter(|name| *name != MERGED_IDS).collect();
    names.push(MERGED_IDS);
    let inputs: Vec<Value> = ids.iter().map(|id| json!({"id": id})).collect();
    let body = json!({"properties": names, "inputs": inputs});
    let purpose = if archived { "batch_read_archived" } else { "batch_read" };
    let mut request = post(cx, "objects", "tickets/batch/read", purpose, body, &[TEN_SECONDLY]);
    request.query.push(("archived", archived.to_string()));
    request
}

fn associations(cx: &StepContext<'_>, kind: &str, inputs: &[Value]) -> Request {
    let rest = format!("tickets/{kind}/batch/read");
    post(cx, "associations", &rest, "associations", json!({"inputs": inputs}), &[ASSOCIATIONS])
}

fn read(
    cx: &StepContext<'_>,
    mut here: At,
    batches: usize,
    mut replies: Vec<Reply>,
) -> Result<Step, Failure> {
    let mut draft = Draft::default();
    for reply in &mut replies[..batches] {
        take_records(&mut draft, &here.ids, reply)?;
    }
    draft.missing = missing_ids(&here.ids, &draft.records);
    let mut overflow = Vec::new();
    for (kind, reply) in ASSOCIATED.iter().zip(&replies[batches..]) {
        overflow.push(((*kind).to_owned(), take_associations(&mut draft, kind, reply)?));
    }
    if !here.listed_all {
        let listing = replies.get(batches + ASSOCIATED.len());
        let listing = listing.ok_or_else(|| Failure::bug("the reply to a listing is missing"))?;
        let (next, tombstones) = take_listing(cx, &here, listing)?;
        draft.next = Some(Box::new(next));
        draft.tombstones.extend(tombstones);
    }
    here.draft = draft;
    follow_up(cx, here, overflow, 0)
}

/// Keeps the records that were asked for, each once. The id of a ticket that was merged away may be answered with its survivor:
/// that one tells who went into it, and comes with its own associations when it is listed itself.
fn take_records(draft: &mut Draft, asked: &[String], reply: &mut Reply) -> Result<(), Failure> {
    let asked: BTreeSet<&str> = asked.iter().map(String::as_str).collect();
    let mut read: BTreeSet<String> =
        draft.records.iter().filter_map(|record| id_text(record.get("id")?)).collect();
    for record in take_results(reply, "batch_read")? {
        let id = record_id(&record)?;
        if !asked.contains(id.as_str()) {
            draft.tombstones.extend(merged_away(&record, reply.sent_at));
        } else if read.insert(id) {
            draft.records.push(record);
        }
    }
    draft.sent_at = Some(draft.sent_at.map_or(reply.sent_at, |sent_at| sent_at.min(reply.sent_at)));
    Ok(())
}

fn record_id(record: &Value) -> Result<String, Failure> {
    let id = record.get("id").and_then(id_text);
    id.ok_or_else(|| Failure::changed("HubSpot's `batch_read` returns a ticket without an `id`"))
}

fn missing_ids(asked: &[String], records: &[Value]) -> Vec<String> {
    let found: BTreeSet<String> = records.iter().filter_map(|record| id_text(record.get("id")?)).collect();
    asked.iter().filter(|id| !found.contains(*id)).cloned().collect()
}

/// Takes associated ids, primary ones first. Returns the tickets that have more of them, with the cursor.
fn take_associations(draft: &mut Draft, kind: &str, reply: &Reply) -> Result<Vec<Value>, Failure> {
    let mut overflow = Vec::new();
    let by_ticket = draft.associations.entry(kind.to_owned()).or_default();
    for row in results(reply, "associations")? {
        let Some(ticket) = row.pointer("/from/id").and_then(id_text) else {
            return Err(Failure::changed("HubSpot's associations name no ticket in `from`"));
        };
        let ids = by_ticket.entry(ticket.clone()).or_default();
        for to in associated(row)? {
            // A string in the dated version, a number in v4.
            let id = to.get("toObjectId").and_then(id_text);
            let id = id.ok_or_else(|| Failure::changed("HubSpot's associations lack `toObjectId`"))?;
            insert_associated(ids, id, is_primary(to));
        }
        if let Some(after) = row.pointer("/paging/next/after").and_then(id_text) {
            overflow.push(json!({"id": ticket, "after": after}));
        }
    }
    Ok(overflow)
}

fn associated(row: &Value) -> Result<&[Value], Failure> {
    match row.get("to") {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(to)) => Ok(to),
        Some(_) => Err(Failure::changed("HubSpot's associations have a `to` that is no list")),
    }
}

/// An id may come several times, once for each of its labels; any of them may be the one that makes it primary.
fn insert_associated(ids: &mut Vec<String>, id: String, primary: bool) {
    match ids.iter().position(|known| *known == id) {
        Some(at) if primary => ids[..=at].rotate_right(1),
        Some(_) => {}
        None if primary => ids.insert(0, id),
        None => ids.push(id),
    }
}

/// The type of a ticket's primary company, as HubSpot defines it.
const PRIMARY_COMPANY_TYPE: u64 = 26;

fn is_primary(to: &Value) -> bool {
    let types = to.get("associationTypes").and_then(Value::as_array);
    types.into_iter().flatten().any(|kind| {
        kind.get("category").and_then(Value::as_str) == Some("HUBSPOT_DEFINED")
            && kind.get("typeId").and_then(Value::as_u64) == Some(PRIMARY_COMPANY_TYPE)
    })
}

/// Asks what is still open about a page; nothing open: the page goes out.
fn follow_up(
    cx: &StepContext<'_>,
    mut here: At,
    overflow: Vec<(String, Vec<Value>)>,
    round: u32,
) -> Result<Step, Failure> {
    let overflow: Vec<_> = overflow.into_iter().filter(|(_, inputs)| !inputs.is_empty()).collect();
    if !overflow.is_empty() {
        if round >= ASSOCIATION_ROUNDS_MAX {
            return Err(Failure::changed("HubSpot's associations of one ticket do not come to an end"));
        }
        let requests = overflow.iter().map(|(kind, inputs)| associations(cx, kind, inputs)).collect();
        here.asked = Asked::Associations {
            kinds: overflow.into_iter().map(|(kind, _)| kind).collect(),
            round: round + 1,
        };
        return Ok(Step::Send { requests, at: Position::of(&here) });
    }
    // What a live listing named and a live read does not return has been archived, deleted or merged in between; what
    // was archived has been restored or deleted. Restoring need not move `hs_lastmodifieddate`, so it is read now.
    if !here.draft.missing.is_empty() {
        let archived = cx.walk.mode != Mode::Archived;
        let requests =
            here.draft.missing.chunks(BATCH_MAX).map(|ids| batch_read(cx, ids, archived)).collect();
        here.asked = Asked::Missing;
        return Ok(Step::Send { requests, at: Position::of(&here) });
    }
    Ok(emit(cx, here))
}

fn more_associations(
    cx: &StepContext<'_>,
    mut here: At,
    kinds: &[String],
    round: u32,
    replies: &[Reply],
) -> Result<Step, Failure> {
    let mut overflow = Vec::new();
    for (kind, reply) in kinds.iter().zip(replies) {
        overflow.push((kind.clone(), take_associations(&mut here.draft, kind, reply)?));
    }
    follow_up(cx, here, overflow, round)
}

/// Sorts the missing into archived, live after all, merged and gone.
fn missing_read(cx: &StepContext<'_>, mut here: At, mut replies: Vec<Reply>) -> Result<Step, Failure> {
    let mut missing: BTreeSet<String> = here.draft.missing.drain(..).collect();
    for reply in &mut replies {
        for entry in take_results(reply, "batch_read")? {
            let id = record_id(&entry)?;
            if !missing.remove(&id) {
                here.draft.tombstones.extend(merged_away(&entry, reply.sent_at));
            } else if is_archived(&entry) {
                here.draft.tombstones.push(archived_tombstone(&id, &entry, reply));
            } else {
                here.draft.records.push(entry);
            }
        }
    }
    for merged in here.draft.tombstones.iter().filter(|tombstone| tombstone.merged_into.is_some()) {
        missing.remove(&merged.id);
    }
    if missing.len() > GONE_AT_ONCE_MAX && missing.len() == here.ids.len() {
        return Err(Failure::changed(format!(
            "HubSpot names {} tickets and returns none of them, neither as live nor as archived",
            missing.len()
        )));
    }
    let sent_at = replies[0].sent_at;
    here.draft.tombstones.extend(missing.into_iter().map(|id| Tombstone {
        id,
        deletion: Deletion {
            at: sent_at,
            told: false,
            evidence: "HubSpot returns it neither as live nor as archived when asked by id".to_owned(),
        },
        merged_into: None,
        sent_at,
    }));
    Ok(emit(cx, here))
}

// ---- writing

fn emit(cx: &StepContext<'_>, mut here: At) -> Step {
    let draft = std::mem::take(&mut here.draft);
    let sent_at = draft.sent_at.unwrap_or(cx.walk.started_at);
    let mut page = Page { tombstones: draft.tombstones, ..Page::default() };
    for raw in draft.records {
        page.tombstones.extend(merged_away(&raw, sent_at));
        page.records.extend(record(raw, &draft.associations, sent_at));
    }
    let next = match draft.next {
        Some(next) => *next,
        None => At { after: here.after, listed_all: true, ..At::default() },
    };
    Step::Emit { page, at: Position::of(&next) }
}

fn record(
    mut raw: Value,
    associations: &BTreeMap<String, BTreeMap<String, Vec<String>>>,
    sent_at: DateTime<Utc>,
) -> Option<Record> {
    let id = id_text(raw.get("id")?)?;
    let mut found = serde_json::Map::new();
    for (kind, by_ticket) in associations {
        let ids = by_ticket.get(&id).cloned().unwrap_or_default();
        found.insert(kind.clone(), ids.into());
    }
    raw.as_object_mut()?.insert("associations".to_owned(), Value::Object(found));
    let deleted = is_archived(&raw).then(|| archived(&raw, sent_at));
    Some(Record { id, raw, sent_at, deleted, without: Vec::new() })
}

/// A survivor names those merged into it; they are neither live nor archived any more.
fn merged_away(survivor: &Value, sent_at: DateTime<Utc>) -> Vec<Tombstone> {
    let Some(into) = survivor.get("id").and_then(id_text) else { return Vec::new() };
    let merged = survivor.pointer(&format!("/properties/{MERGED_IDS}")).and_then(Value::as_str);
    let ids = merged.unwrap_or_default().split(';').map(str::trim);
    ids.filter(|id| !id.is_empty() && *id != into)
        .map(|id| Tombstone {
            id: id.to_owned(),
            deletion: Deletion { at: sent_at, told: false, evidence: format!("merged into {into}") },
            merged_into: Some(into.clone()),
            sent_at,
        })
        .collect()
}
