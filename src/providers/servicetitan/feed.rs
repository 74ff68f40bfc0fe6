//! Export feeds: everything from the first record on, and then what changed, by a token that says where one is.
//!
//! The token of a feed outlives the walk, as the fact `feed/{stream}`, with the kind of reading that it was made by:
//! mixing `includeRecentChanges` with a stored token is documented nowhere. Where a token is missing, of another kind,
//! or refused, a walk begins at a date instead. Delivery is at least once, in an order that is usual and not promised;
//! which version of a record wins is decided where it is written.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{BUCKETS, booking_provider, flag, said, streams, tenant};
use crate::domain::failure::Failure;
use crate::domain::record::{Deletion, Record};
use crate::domain::spec::{Mode, Read};
use crate::domain::step::{Body, Page, Position, Presence, Reply, Request, Step, StepContext};
use crate::domain::values;

/// How far a walk that begins at a date reaches back behind what is known.
const REACH_BACK: TimeDelta = TimeDelta::days(1);
/// How often the tokens of one walk may be refused before that is no passing matter.
const ANEW_MAX: u32 = 3;
/// Ids that a list takes at once.
const IDS_MAX: usize = 50;

/// Where a walk over a feed stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct At {
    /// How the feed is read; a place is good for one kind of reading.
    recent: Option<bool>,
    /// The next page.
    token: Option<String>,
    /// In place of a token, the time of modification to begin at.
    since: Option<DateTime<Utc>>,
    /// The newest modification that was met.
    newest: Option<DateTime<Utc>>,
    /// Pages read, and one of their tokens: a feed that leads back to it goes round in a circle.
    pages: u64,
    mark: Option<String>,
    /// How often a token was refused.
    #[serde(skip_serializing_if = "is_none")]
    anew: u32,
    ended: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_none(count: &u32) -> bool {
    *count == 0
}

/// What is kept of a feed between walks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    token: Option<String>,
    recent: bool,
    newest: Option<DateTime<Utc>>,
}

/// Whether a request with this purpose, or a stream of this name, is a feed.
pub fn is_feed(name: &str) -> bool {
    streams::feed(name).is_some()
}

pub fn step(cx: &StepContext<'_>, at: &Position, replies: Vec<Reply>) -> Result<Step, Failure> {
    let mut here: At = at.read();
    if here.ended {
        return Ok(Step::Done);
    }
    let recent = flag(cx.options, "include_recent_changes");
    if here.recent != Some(recent) {
        here = begin(cx, recent, &here);
    }
    match replies.into_iter().next() {
        Some(reply) if reply.status != 400 => {
            let (page, next) = take(cx, &here, reply)?;
            Ok(Step::Emit { page, at: Position::of(&next) })
        }
        Some(refusal) if here.token.is_none() => Err(Failure::bug(format!(
            "ServiceTitan refused the beginning of the feed `{}`: {}",
            cx.stream.name,
            said(&refusal)
        ))),
        Some(refusal) if here.anew >= ANEW_MAX => Err(Failure::changed(format!(
            "ServiceTitan refuses the tokens of the feed `{}` again and again: {}",
            cx.stream.name,
            said(&refusal)
        ))),
        Some(_) => send(cx, &again(cx, recent, &here)),
        None => send(cx, &here),
    }
}

fn send(cx: &StepContext<'_>, here: &At) -> Result<Step, Failure> {
    let feed = streams::feed(cx.stream.name)
        .ok_or_else(|| Failure::bug(format!("servicetitan has no feed `{}`", cx.stream.name)))?;
    let path = format!("/{}/v2/tenant/{}/export/{}", feed.module, tenant(cx.params)?, feed.path);
    let mut request = Request::get(path, cx.stream.name, BUCKETS);
    let since = here.since.map(date);
    request.query.extend(here.token.clone().or(since).map(|from| ("from", from)));
    let recent = here.recent == Some(true);
    request.query.push(("includeRecentChanges", recent.to_string()));
    Ok(Step::Send { requests: vec![request], at: Position::of(here) })
}

/// Where a walk begins, and where it goes on when the kind of reading was changed.
fn begin(cx: &StepContext<'_>, recent: bool, before: &At) -> At {
    if before.recent.is_some() {
        return again(cx, recent, before);
    }
    if cx.walk.mode != Mode::Incremental {
        return At { recent: Some(recent), since: cx.walk.from, ..At::default() };
    }
    let kept = cx.facts.get(&fact(cx)).and_then(|fact| Kept::deserialize(fact).ok()).unwrap_or_default();
    match kept.token {
        Some(token) if kept.recent == recent => {
            At { recent: Some(recent), token: Some(token), newest: kept.newest, ..At::default() }
        }
        _ => dated(cx, recent, kept.newest),
    }
}

/// Where a walk goes on whose place is no longer good. One over everything begins anew: the order of a feed is not promised,
/// so what it has met says nothing of what it has not.
fn again(cx: &StepContext<'_>, recent: bool, before: &At) -> At {
    let anew = before.anew + u32::from(before.recent == Some(recent));
    let at = if cx.walk.mode == Mode::Incremental {
        dated(cx, recent, before.newest)
    } else {
        At { recent: Some(recent), since: cx.walk.from, ..At::default() }
    };
    At { anew, ..at }
}

/// Begins at a date: a day behind the newest modification that was met. What is covered for sure counts as well, so
/// that one odd date in the future cannot hide changes.
fn dated(cx: &StepContext<'_>, recent: bool, newest: Option<DateTime<Utc>>) -> At {
    let bound = match (newest, cx.walk.from) {
        (Some(newest), Some(from)) => Some(newest.min(from)),
        (newest, from) => newest.or(from),
    };
    At { recent: Some(recent), since: bound.map(|bound| bound - REACH_BACK), newest, ..At::default() }
}

/// A walk from the lower bound of changes, wherever the feed's token stands.
pub fn since(cx: &StepContext<'_>) -> Position {
    let recent = flag(cx.options, "include_recent_changes");
    Position::of(&At { recent: Some(recent), since: cx.walk.from, ..At::default() })
}

fn fact(cx: &StepContext<'_>) -> String {
    format!("feed/{}", cx.stream.name)
}

/// Reads a page: what it brings, and where the walk stands after it.
fn take(cx: &StepContext<'_>, here: &At, mut reply: Reply) -> Result<(Page, At), Failure> {
    let name = cx.stream.name;
    let more = reply.json().and_then(|body| body.get("hasMore")).and_then(Value::as_bool);
    let more =
        more.ok_or_else(|| Failure::changed(format!("ServiceTitan's feed `{name}` has no `hasMore`")))?;
    // At the end of a feed the next token may be new, the same, empty, null or missing: the last good one is kept.
    let told = reply.text_at("/continueFrom").filter(|token| !token.is_empty());
    let stands_still = |token: &&str| here.token.as_deref() == Some(*token) || is_date(here, token);
    let token = told.filter(|token| !stands_still(token)).map(str::to_owned);
    if more && token.is_none() {
        return Err(Failure::changed(format!(
            "ServiceTitan's feed `{name}` has more and names no other page"
        )));
    }
    if more && token == here.mark {
        return Err(Failure::changed(format!("ServiceTitan's feed `{name}` goes round in a circle")));
    }
    let mut next = At { pages: here.pages + 1, ended: !more, ..here.clone() };
    if next.pages.is_power_of_two() {
        next.mark.clone_from(&token);
    }
    if token.is_some() {
        next.since = None;
        next.token = token;
    }
    let mut page = Page { records: records(name, &mut reply)?, ..Page::default() };
    let modified =
        |record: &Record| values::at(&record.raw, cx.stream.updated_at).and_then(values::timestamp);
    let newest = page.records.iter().filter_map(modified).max();
    // No change can be newer than the moment of asking.
    next.newest = next.newest.max(newest.map(|newest| newest.min(reply.sent_at)));
    if next.ended {
        let kept = Kept { token: next.token.clone(), recent: next.recent == Some(true), newest: next.newest };
        learn(cx, &mut page, fact(cx), json!(kept));
        learn_zone(cx, &mut page);
        if name == "bookings" {
            booking_provider::learn(cx, &mut page);
        }
    }
    Ok((page, next))
}

fn is_date(here: &At, token: &str) -> bool {
    here.token.is_none() && here.since.is_some_and(|since| date(since) == *token)
}

/// A moment as feeds are asked to begin at it.
pub fn date(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// What the unified view of bookings shows and only the settings know.
pub fn learn_zone(cx: &StepContext<'_>, page: &mut Page) {
    if cx.stream.name == "bookings" {
        let zone = cx.options.get("timezone").and_then(Value::as_str).filter(|zone| !zone.is_empty());
        learn(cx, page, "timezone".to_owned(), json!(zone));
    }
}

/// What is known already is not written again.
fn learn(cx: &StepContext<'_>, page: &mut Page, name: String, value: Value) {
    if cx.facts.get(&name).unwrap_or(&Value::Null) != &value {
        page.facts.insert(name, value);
    }
}

/// The records of a page, of a feed or of a list.
pub fn records(name: &str, reply: &mut Reply) -> Result<Vec<Record>, Failure> {
    let sent_at = reply.sent_at;
    let rows = match &mut reply.body {
        Body::Json(body) => body.get_mut("data").and_then(Value::as_array_mut).map(std::mem::take),
        Body::Text(_) => None,
    };
    let rows = rows.ok_or_else(|| Failure::changed(format!("ServiceTitan's `{name}` has no list `data`")))?;
    rows.into_iter()
        .map(|raw| {
            let id = raw.get("id").and_then(values::text).filter(|id| !id.is_empty());
            let id = id.map(std::borrow::Cow::into_owned);
            let id = id.ok_or_else(|| {
                Failure::changed(format!("ServiceTitan's `{name}` has a record without `id`"))
            })?;
            let deleted = deletion(&raw, sent_at);
            Ok(Record { id, raw, sent_at, deleted, without: Vec::new() })
        })
        .collect()
}

/// ServiceTitan deletes by `active`. A customer or location that is not active was most often merged into another.
fn deletion(raw: &Value, sent_at: DateTime<Utc>) -> Option<Deletion> {
    if raw.get("active") != Some(&Value::Bool(false)) {
        return None;
    }
    let changed = ["modifiedOn", "createdOn"].into_iter().find_map(|name| values::timestamp(raw.get(name)?));
    let into = raw.get("mergedToId").and_then(values::text);
    let evidence = match into {
        Some(into) => format!("the record says `active`: false and `mergedToId`: {into}"),
        None => "the record says `active`: false".to_owned(),
    };
    Some(Deletion { at: changed.unwrap_or(sent_at), told: changed.is_some(), evidence })
}

/// Asks the list, which takes ids, for rows that a walk over everything has not met.
pub fn probe(cx: &StepContext<'_>, ids: &[String]) -> Option<(Request, usize)> {
    let tenant = tenant(cx.params).ok()?;
    if let Read::List(list) = &cx.stream.read {
        return Some(ask_list(list.path.replace("{tenant_id}", tenant), true, ids));
    }
    let feed = streams::feed(cx.stream.name).filter(|feed| feed.has_list)?;
    let path = format!("/{}/v2/tenant/{tenant}/{}", feed.module, feed.path);
    Some(ask_list(path, feed.lists_active, ids))
}

/// Asks a list for as many of these ids as it takes.
pub fn ask_list(path: String, lists_active: bool, ids: &[String]) -> (Request, usize) {
    let asked = &ids[..ids.len().min(IDS_MAX)];
    let mut request = Request::get(path, "probe", BUCKETS);
    request.query.extend([("ids", asked.join(",")), ("pageSize", IDS_MAX.to_string())]);
    if lists_active {
        request.query.push(("active", "Any".to_owned()));
    }
    (request, asked.len())
}

/// Who is in a list of some ids. The records of a stream that is read by its feed lack here what only the feed tells, so
/// they prove presence and nothing else. A list that goes on, or shows what nobody asked for, did not go by the ids: whom
/// it lacks may be there.
pub fn probed(cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Result<Vec<Presence>, Failure> {
    let rows = reply.json().and_then(|body| body.get("data")).and_then(Value::as_array);
    let rows = rows.ok_or_else(|| Failure::changed("ServiceTitan's list of some ids has no list `data`"))?;
    let more = reply.json().and_then(|body| body.get("hasMore")).and_then(Value::as_bool) == Some(true);
    let is = |row: &Value, id: &str| row.get("id").and_then(values::text).is_some_and(|text| text == id);
    let was_asked_for = |row: &Value| ids.iter().any(|id| is(row, id));
    let is_theirs = !more && rows.iter().all(was_asked_for);
    let whole = matches!(cx.stream.read, Read::List(_));
    let presence = |id: &String| {
        let Some(raw) = rows.iter().find(|row| is(row, id)) else {
            if !is_theirs {
                return Presence::Unknown;
            }
            let began = cx.walk.started_at.to_rfc3339();
            let evidence = format!(
                "absent from a complete read that began at {began}, and from the list when asked for by its id"
            );
            return Presence::Gone { evidence };
        };
        let record = Record {
            id: id.clone(),
            raw: raw.clone(),
            sent_at: reply.sent_at,
            deleted: None,
            without: Vec::new(),
        };
        Presence::Here(whole.then(|| Box::new(record)))
    };
    Ok(ids.iter().map(presence).collect())
}
