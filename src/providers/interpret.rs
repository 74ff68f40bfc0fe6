//! Reads the streams that are regular: lists that their [`ListSpec`] describes whole. Pure, like every `step`.
//!
//! One walk is one list, page by page. In the modes that read everything the list is asked for everything; for changes
//! it is asked for a window of modification times or, where the API has no such filter, for the last modified first, up
//! to the first page that lies whole below the bound.
//!
//! A page that takes too long, where the provider lets that be known here, is asked for again with half as many records;
//! after some that came in time there are twice as many again, up to what the settings say. Walks that come later begin
//! with what was found out: it is kept as the fact `page_size/{stream}`.
//!
//! Where a page ends among records that share a place in the order, their pages are read until all have been seen: [`ties`].
//!
//! A page that repeats the one before it, where the list cannot have moved so, or says that it is another than was asked
//! for, and a cursor that does not move, end the walk with `ProviderChanged`: going on would never end, and stopping would
//! leave a hole that nobody sees.

mod ties;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use ties::Tie;

use crate::domain::failure::Failure;
use crate::domain::record::Record;
use crate::domain::spec::{Changes, ListSpec, Mode, Paging, ProviderSpec, Read};
use crate::domain::step::{Body, Page, Position, Reply, Request, Step, StepContext};
use crate::domain::values;

/// Where a walk over a list stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct At {
    /// The next page, where pages are numbered; 0 and 1 are the first.
    page: u64,
    /// Records in a page, as when the walk began, where pages are numbered: among pages of another size a number means
    /// nothing. 0: as many as the settings say.
    #[serde(skip_serializing_if = "is_zero")]
    size: u32,
    /// What `size` is to become again, while it is less; and how many pages came in time since.
    #[serde(skip_serializing_if = "is_zero")]
    most: u32,
    #[serde(skip_serializing_if = "is_zero")]
    in_time: u32,
    /// The next page, where it is named by an id or a cursor.
    after: Option<String>,
    /// The ends of the page before, by which a repetition is known.
    seen: Option<(String, String)>,
    /// The newest modification on the page before.
    newest: Option<DateTime<Utc>>,
    /// The order does not hold, so the walk does not stop early.
    unordered: bool,
    /// How many records there were, where the list tells.
    total: Option<u64>,
    /// Records that pages have shown, some perhaps twice, where the list tells how many there are. A walk that another
    /// program has begun does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    shown: Option<u64>,
    /// What a pass over a whole list has to come to, where it can be told whether it moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    tally: Option<Tally>,
    /// Records that share a place in the order, at the end of what was read; and how often their pages were looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    tie: Option<Tie>,
    #[serde(skip_serializing_if = "is_zero")]
    looks: u32,
    /// Whether everything is read in an order in which no records share a place: among pages of another order a number
    /// means nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unique: bool,
    /// Why not all that the walk had to cover was shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    short: Option<String>,
    ended: bool,
}

/// Whether a list has moved while it was read, where new records come last: every one that was taken out behind the place
/// that was read pulls one that was not to a page that was. Not all of that shows from one page to the next, since others
/// are added meanwhile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Tally {
    /// When the pass began, by the provider's clock.
    began: DateTime<Utc>,
    /// How many records there will be at the end, if none is taken out.
    expected: u64,
    /// Passes before this one.
    passes: u32,
}

/// Passes over a list that goes on moving: what one of them misses lies at the end of a page, and is elsewhere in the next.
/// A list that has moved under the last one as well has not been read whole.
const PASSES_MAX: u32 = 3;
/// How much older than an answer's own time a record may be that has come after it: its seconds are whole, and take a while.
const STAMPED_WITHIN: TimeDelta = TimeDelta::seconds(2);
/// The same where the answer tells no time, and our own clock may be wrong.
const CLOCK_WRONG_MAX: TimeDelta = TimeDelta::minutes(2);

/// Pages are not made smaller than this.
const SIZE_MIN: u32 = 25;
/// Pages in a row that have to come in time before they grow again.
const IN_TIME_MIN: u32 = 4;

/// Whether the request, which says in `size` how many records it wants, can be made for half as many.
pub fn may_shrink(request: &Request, size: &str) -> bool {
    let asked = request.query.iter().find(|(name, _)| *name == size);
    asked.and_then(|(_, number)| number.parse::<u32>().ok()).is_some_and(|number| number / 2 >= SIZE_MIN)
}

/// How many records an earlier walk has found a page to bear, where that is less than the settings say.
fn kept_size(cx: &StepContext<'_>) -> Option<u32> {
    let kept = cx.facts.get(&size_fact(cx))?.as_u64()?;
    u32::try_from(kept).ok().filter(|kept| (1..cx.page_size).contains(kept))
}

fn size_fact(cx: &StepContext<'_>) -> String {
    format!("page_size/{}", cx.stream.name)
}

/// A walk may be broken off and begin afresh, so what it finds out about the size of pages is kept at once.
fn learn_size(cx: &StepContext<'_>, here: &At, next: &At, page: &mut Page) {
    if (next.size, next.most) != (here.size, here.most) {
        let kept = (next.most > 0).then_some(next.size);
        page.facts.insert(size_fact(cx), Value::from(kept));
    }
}

impl At {
    /// The same place among pages of another size: what was read before it stays read, and of the rest some may come
    /// twice.
    fn resized(&self, size: u32) -> Self {
        // A tie is followed from its beginning.
        let (page, shown) = self.tie.as_ref().map_or((self.page.max(1), self.shown), Tie::begins);
        let read = (page - 1) * u64::from(self.size);
        Self {
            page: read / u64::from(size.max(1)) + 1,
            size,
            in_time: 0,
            seen: None,
            newest: None,
            shown,
            tie: None,
            ..self.clone()
        }
    }

    fn halved(&self) -> Self {
        Self { most: self.most.max(self.size), ..self.resized((self.size / 2).max(1)) }
    }

    /// At the end of the last pass: how many records there should be, and how many there are, where some were taken out that
    /// no page has made good. More than there should be have only come back, which passes over none.
    fn left_out(&self) -> Option<(u64, u64)> {
        let (tally, total) = self.tally.as_ref().zip(self.total)?;
        (tally.expected > total).then_some((tally.expected, total))
    }

    /// After a page that came in time.
    fn grown(self) -> Self {
        match self.most {
            0 => self,
            _ if self.in_time + 1 < IN_TIME_MIN => Self { in_time: self.in_time + 1, ..self },
            most if self.size.saturating_mul(2) >= most => Self { most: 0, ..self.resized(most) },
            _ => self.resized(self.size * 2),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Whether a list that was read to its end has shown so much less than it counts that rows must have been left out: more
/// than a few that went while it was read.
fn falls_short(shown: u64, total: u64) -> bool {
    const ALWAYS: u64 = 10;
    const SHARE: u64 = 20;
    total.saturating_sub(shown) > ALWAYS.max(total / SHARE)
}

/// The next step of a walk over a regular list.
pub fn step(
    spec: &'static ProviderSpec,
    cx: &StepContext<'_>,
    at: &Position,
    replies: Vec<Reply>,
) -> Result<Step, Failure> {
    let Read::List(list) = &cx.stream.read else {
        return Err(Failure::bug(format!("{} does not say how to read `{}`", spec.name, cx.stream.name)));
    };
    let mut here: At = at.read();
    if here.ended {
        let moved = here.left_out().map(|(expected, total)| {
            format!(
                "`{}` moved under each of {PASSES_MAX} reads: it counts {total} records where {expected} should be left, so \
                 some may have been passed over",
                cx.stream.name
            )
        });
        let why = moved.or(here.short);
        return Ok(why.map_or(Step::Done, |why| Step::Partial { why: format!("{}'s {why}", spec.title) }));
    }
    let unique = matches!(list.changes, Changes::NewestFirst { full_is_unique: true, .. });
    if here.page > 1 && here.unique != unique {
        here = At::default();
    }
    here.unique = unique;
    if here.size == 0 && matches!(list.paging, Paging::Numbered { .. }) {
        let most = cx.page_size.max(1);
        (here.size, here.most) = kept_size(cx).map_or((most, 0), |kept| (kept, most));
    }
    match replies.into_iter().next() {
        None => Ok(Step::Send { requests: vec![request(cx, list, &here)?], at: Position::of(&here) }),
        Some(reply) if is_slow(reply.status) => {
            let (mut page, next) = (Page::default(), here.halved());
            learn_size(cx, &here, &next, &mut page);
            Ok(Step::Emit { page, at: Position::of(&next) })
        }
        Some(mut reply) => {
            let (mut page, next) = take(spec, cx, list, &here, &mut reply)?;
            learn_size(cx, &here, &next, &mut page);
            Ok(Step::Emit { page, at: Position::of(&next) })
        }
    }
}

/// Whether a reply, which the provider lets arrive here, says that a page took too long.
fn is_slow(status: u16) -> bool {
    status >= 400
}

fn request(cx: &StepContext<'_>, list: &ListSpec, here: &At) -> Result<Request, Failure> {
    let mut request = Request::get(path(cx, list.path)?, cx.stream.name, list.buckets);
    let owned = |(name, value): &(&'static str, &str)| (*name, (*value).to_owned());
    request.query.extend(list.query.iter().map(owned));
    if !list.size.is_empty() {
        let size = if here.size == 0 { cx.page_size.max(1) } else { here.size };
        request.query.push((list.size, size.to_string()));
    }
    match (list.changes, cx.walk.mode, cx.walk.from) {
        (Changes::Window { from, to }, Mode::Incremental, Some(bound)) => {
            request.query.push((from, rfc3339(bound)));
            // A closed window can only lose records while it is walked: those that change meanwhile are the next walk's.
            request.query.extend(to.map(|to| (to, rfc3339(cx.walk.started_at))));
        }
        (Changes::NewestFirst { newest, .. }, Mode::Incremental, _) => {
            request.query.extend(newest.iter().map(owned));
        }
        (Changes::NewestFirst { full, .. }, ..) => request.query.extend(full.iter().map(owned)),
        _ => {}
    }
    match list.paging {
        Paging::Single => {}
        Paging::Numbered { param, .. } => request.query.push((param, here.page.max(1).to_string())),
        Paging::LastId { param, .. } | Paging::Cursor { param, .. } => {
            request.query.extend(here.after.clone().map(|after| (param, after)));
        }
    }
    Ok(request)
}

/// The path with its slots filled. A value that could change what the path means is refused.
fn path(cx: &StepContext<'_>, template: &str) -> Result<String, Failure> {
    let mut path = String::new();
    let mut rest = template;
    while let Some((before, slot)) = rest.split_once('{') {
        let (name, after) = slot.split_once('}').ok_or_else(|| Failure::bug("a path has half a slot"))?;
        let value = cx.params.get(name).map(String::as_str).unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if value.is_empty() || !value.chars().all(plain) {
            let text = format!("the parameter `{name}` of the connection cannot stand in a path");
            return Err(Failure::new(crate::domain::failure::FailureKind::Misconfigured, text));
        }
        path.push_str(before);
        path.push_str(value);
        rest = after;
    }
    path.push_str(rest);
    Ok(path)
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Reads a page: what it brings, and where the walk stands after it.
fn take(
    spec: &'static ProviderSpec,
    cx: &StepContext<'_>,
    list: &ListSpec,
    here: &At,
    reply: &mut Reply,
) -> Result<(Page, At), Failure> {
    let (title, name, sent_at) = (spec.title, cx.stream.name, reply.sent_at);
    let rows = match &mut reply.body {
        Body::Json(body) => body.pointer_mut(list.records).and_then(Value::as_array_mut).map(std::mem::take),
        Body::Text(_) => None,
    };
    let rows = rows.ok_or_else(|| {
        Failure::changed(format!("{title}'s answer to `{name}` has no list at `{}`", list.records))
    })?;
    let mut records = Vec::with_capacity(rows.len());
    for raw in rows {
        let id = values::at(&raw, cx.stream.id).and_then(values::text).filter(|id| !id.is_empty());
        let id = id.map(std::borrow::Cow::into_owned);
        let id =
            id.ok_or_else(|| Failure::changed(format!("{title}'s `{name}` holds a record without an id")))?;
        records.push(Record { id, raw, sent_at, deleted: None, without: Vec::new() });
    }
    let body = reply.json().unwrap_or(&Value::Null);
    if let Some(other) = other_page(list, here, body) {
        let asked = here.page.max(1);
        return Err(Failure::changed(format!(
            "{title}'s `{name}` answers page {other} when asked for page {asked}"
        )));
    }
    let ends = records.first().zip(records.last()).map(|(first, last)| (first.id.clone(), last.id.clone()));
    let more = next(list, here, body, reply, ends.as_ref().map(|(_, last)| last.as_str()));
    let stands_still = matches!(&more, Some(Place::After(after)) if here.after.as_deref() == Some(after));
    // A page may show the same again where changes have moved the list by as much as a page holds, also long ago: then it
    // is the list's own word that this is the page that was asked for. Of a list that is read whole it shows in the count.
    let moves = matches!(list.changes, Changes::NewestFirst { .. }) && cx.walk.mode == Mode::Incremental;
    let settled =
        if moves { more.is_some() && !tells_page(list, body) } else { total(list, body) == here.total };
    if stands_still || (settled && ends.is_some() && ends == here.seen) {
        return Err(Failure::changed(format!("{title}'s `{name}` repeats a page")));
    }
    let mut next = At { seen: ends, tie: None, ..here.clone() };
    let below = below(cx, list, &mut next, &records);
    match more {
        Some(place) if !below => place.put(&mut next),
        _ => next.ended = true,
    }
    let stepped_back = step_back(list, here, body, records.len(), &mut next);
    let before = if here.seen.is_none() && here.page <= 1 { Some(0) } else { here.shown };
    next.shown = before.filter(|_| next.total.is_some()).map(|before| before + records.len() as u64);
    let why = match (stepped_back, below) {
        (true, _) => None,
        (false, true) => ties::leave(cx, here, &mut next),
        (false, false) => ties::follow(cx, list, here, &records, &mut next),
    };
    next.short = next.short.or(why);
    let stamp = reply.header("date").and_then(|date| DateTime::parse_from_rfc2822(date).ok());
    let now = stamp.map_or(sent_at - CLOCK_WRONG_MAX, |stamp| stamp.to_utc() - STAMPED_WITHIN);
    settle(cx, list, here, now, &records, &mut next);
    recount(cx, &mut next);
    next = if next.ended { next } else { next.grown() };
    if let Some((shown, total)) = next.shown.zip(next.total)
        && next.ended
        && !below
        && falls_short(shown, total)
    {
        return Err(Failure::changed(format!(
            "{title}'s `{name}` counts {total} records and has shown {shown}"
        )));
    }
    let progress = progress(list, here, body, next.ended);
    Ok((Page { records, progress, ..Page::default() }, next))
}

/// The number of a page that is not the one that was asked for, where the list tells numbers at all.
fn other_page(list: &ListSpec, here: &At, body: &Value) -> Option<u64> {
    let Paging::Numbered { param, .. } = list.paging else { return None };
    body.get(param)?.as_u64().filter(|told| *told != here.page.max(1))
}

/// Whether the list tells the number of a page. That it is the one that was asked for, [`other_page`] sees to.
fn tells_page(list: &ListSpec, body: &Value) -> bool {
    matches!(list.paging, Paging::Numbered { param, .. } if body.get(param).is_some_and(Value::is_u64))
}

/// Where the next page is.
enum Place {
    Page(u64),
    After(String),
}

impl Place {
    fn put(self, at: &mut At) {
        match self {
            Self::Page(page) => at.page = page,
            Self::After(after) => at.after = Some(after),
        }
    }
}

/// Where the next page is, if there is one. An empty page is the last, whatever it promises.
fn next(list: &ListSpec, here: &At, body: &Value, reply: &Reply, end: Option<&str>) -> Option<Place> {
    match list.paging {
        Paging::Single => None,
        Paging::Numbered { more, .. } => {
            let page = here.page.max(1);
            let further = match values::at(body, more) {
                Some(Value::Bool(flag)) => *flag,
                Some(Value::Number(pages)) => pages.as_u64().is_some_and(|pages| page < pages),
                // It does not tell: only an empty page is the end.
                _ => true,
            };
            (further && end.is_some()).then_some(Place::Page(page + 1))
        }
        Paging::LastId { more, .. } => {
            // The link's address is never followed, it only says that there is more: its host comes from outside.
            let linked = || reply.header("link").is_some_and(|link| link.contains("rel=\"next\""));
            let further = values::at(body, more).and_then(Value::as_bool).unwrap_or(false) || linked();
            end.filter(|_| further).map(|id| Place::After(id.to_owned()))
        }
        Paging::Cursor { next, .. } => {
            let cursor = values::at(body, next).and_then(values::text).filter(|text| !text.is_empty());
            cursor.map(|cursor| Place::After(cursor.into_owned()))
        }
    }
}

/// Whether a newest-first walk has reached its end: this page lies whole below the bound. Where the order does not hold,
/// only the list's own end counts.
fn below(cx: &StepContext<'_>, list: &ListSpec, at: &mut At, records: &[Record]) -> bool {
    let (Changes::NewestFirst { .. }, Mode::Incremental, Some(bound)) =
        (list.changes, cx.walk.mode, cx.walk.from)
    else {
        return false;
    };
    let modified =
        |record: &Record| values::at(&record.raw, cx.stream.updated_at).and_then(values::timestamp);
    // What has no time of modification stands before or after all that has one, and is found by a sweep.
    let times: Vec<DateTime<Utc>> = records.iter().filter_map(modified).collect();
    // Records that change during the walk jump to the top and push others to the next page: those come twice, so only a
    // page that begins above the one before it is out of order.
    at.unordered |= !times.is_sorted_by(|one, next| one >= next);
    at.unordered |= times.first().zip(at.newest).is_some_and(|(first, before)| *first > before);
    at.newest = times.first().copied().or(at.newest);
    !at.unordered && times.first().is_some_and(|newest| *newest < bound)
}

/// Steps back where the list has become shorter since the last page: what follows has moved up, and some of it is on pages
/// that are read already.
fn step_back(list: &ListSpec, here: &At, body: &Value, size: usize, next: &mut At) -> bool {
    let Paging::Numbered { .. } = list.paging else { return false };
    next.total = total(list, body);
    let gone = here.total.zip(next.total).map_or(0, |(before, now)| before.saturating_sub(now));
    if gone > 0 && here.page > 1 {
        let pages = gone.div_ceil(u64::try_from(size.max(1)).unwrap_or(u64::MAX));
        let tied = here.tie.as_ref().map_or(here.page, |tie| tie.begins().0);
        next.page = here.page.saturating_sub(pages).min(tied).max(1);
        next.ended = false;
        return true;
    }
    false
}

/// Goes through the list once more if it has moved under a pass in a way that nothing has made good.
fn settle(
    cx: &StepContext<'_>,
    list: &ListSpec,
    here: &At,
    now: DateTime<Utc>,
    records: &[Record],
    next: &mut At,
) {
    let in_order = matches!(list.changes, Changes::NewestFirst { .. } | Changes::Window { .. });
    let is_whole = in_order && cx.walk.mode != Mode::Incremental || matches!(list.changes, Changes::None);
    let Some(total) = next.total.filter(|_| is_whole && !cx.stream.created_at.is_empty()) else { return };
    let passes = here.tally.as_ref().map_or(0, |tally| tally.passes);
    let mut tally = match &here.tally {
        Some(tally) if here.page > 1 => tally.clone(),
        _ if here.page <= 1 => Tally { began: now, expected: total, passes },
        // The pass was begun by a program that did not count.
        _ => return,
    };
    if here.page > 1 {
        let created =
            |record: &Record| values::at(&record.raw, cx.stream.created_at).and_then(values::timestamp);
        let new = records.iter().filter_map(created).filter(|created| *created >= tally.began).count();
        let gone = here.total.map_or(0, |before| before.saturating_sub(total));
        tally.expected = tally.expected.saturating_sub(gone) + u64::try_from(new).unwrap_or(u64::MAX);
    }
    tally.expected = next.tie.as_ref().and_then(Tie::expected_again).unwrap_or(tally.expected);
    // More than there should be were added before the place that was read, or have come back there: that hides none.
    let moved = next.ended && tally.expected > total && passes + 1 < PASSES_MAX;
    *next = if moved {
        let tally = Tally { passes: passes + 1, ..tally };
        At { size: next.size, most: next.most, tally: Some(tally), ..At::default() }
    } else {
        At { tally: Some(tally), ..std::mem::take(next) }
    };
}

/// Goes through a whole list once more if a pass has shown fewer records than there are, and at last says so.
fn recount(cx: &StepContext<'_>, next: &mut At) {
    let (Some(tally), Some((shown, total))) = (&next.tally, next.shown.zip(next.total)) else { return };
    if !next.ended || shown >= total {
        return;
    }
    if tally.passes + 1 < PASSES_MAX {
        let tally = Tally { passes: tally.passes + 1, ..tally.clone() };
        *next = At { size: next.size, most: next.most, tally: Some(tally), ..At::default() };
    } else if next.short.is_none() {
        let name = cx.stream.name;
        next.short = Some(format!("`{name}` counts {total} records and has shown {shown}"));
    }
}

/// How many records there are, where the list tells.
fn total(list: &ListSpec, body: &Value) -> Option<u64> {
    match list.paging {
        Paging::Numbered { total, .. } if !total.is_empty() => {
            values::at(body, total).and_then(Value::as_u64)
        }
        _ => None,
    }
}

/// How much of the walk is behind us, where pages are counted.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn progress(list: &ListSpec, here: &At, body: &Value, ended: bool) -> Option<f32> {
    let Paging::Numbered { more, .. } = list.paging else { return None };
    let pages = values::at(body, more)?.as_u64().filter(|pages| *pages > 0)?;
    Some(if ended { 1.0 } else { (here.page.max(1) as f32 / pages as f32).min(1.0) })
}

#[cfg(test)]
mod tests;
