//! Bookings of an app that a tenant has bound to a booking provider: the tenant's feed is closed to it, the lists of the
//! named providers are not. One list after the other, by ascending id, which new records do not disturb; each is read as
//! any other ([`interpret`]).
//!
//! These lists do not tell whether a booking is active; what has left them is found by a sweep, and asked for by its id.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::feed::{ask_list, learn_zone};
use super::{BUCKETS, SPEC, said, streams, tenant};
use crate::domain::failure::Failure;
use crate::domain::spec::{Changes, ListSpec, Paging, Read, StreamSpec};
use crate::domain::step::{Options, Page, Position, Reply, Request, Step, StepContext};
use crate::providers::interpret;

pub const PURPOSE: &str = "provider_bookings";
/// The column that tells which provider a row is of.
pub const PLACE: &str = "booking_provider_id";
/// The fact that keeps which providers' bookings were last read.
const OF: &str = "booking_providers";
/// Booking providers in the settings.
const PROVIDERS_MAX: usize = 50;
/// The parameter that stands for one of them in the path.
const PROVIDER: &str = "booking_provider";

/// The list of one provider. There is no upper bound on changes: a record that changes meanwhile stays in the list and
/// pushes no other out of sight.
static OF_ONE: StreamSpec = StreamSpec {
    name: PURPOSE,
    read: Read::List(ListSpec {
        path: "/crm/v2/tenant/{tenant_id}/booking-provider/{booking_provider}/bookings",
        records: "/data",
        // Without being asked it does not count, and only the count tells that a booking has left pages that are read.
        query: &[("sort", "+Id"), ("includeTotal", "true")],
        paging: Paging::Numbered { param: "page", more: "/hasMore", total: "/totalCount" },
        size: streams::PAGE_SIZE,
        changes: Changes::Window { from: "modifiedOnOrAfter", to: None },
        buckets: BUCKETS,
    }),
    ..streams::BOOKINGS
};

/// Where a walk stands. `provider` counts within the settings' list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct At {
    /// The providers that the walk is about: it starts again when the settings name others.
    of: Vec<String>,
    provider: usize,
    /// Where this provider's list stands.
    list: Value,
    /// Why not all bookings of some providers were shown.
    lost: Vec<String>,
    /// Whether the walk has noted which providers it is about.
    noted: bool,
}

/// The booking providers that the settings name.
pub fn ids(options: &Options) -> Vec<String> {
    let named = options.get("booking_provider_ids").and_then(Value::as_array).into_iter().flatten();
    let number = |id: &Value| match id {
        Value::Number(number) => number.as_u64().map(|id| id.to_string()),
        Value::String(text) => text.parse::<u64>().ok().map(|id| id.to_string()),
        _ => None,
    };
    named.filter_map(number).take(PROVIDERS_MAX).collect()
}

pub fn step(cx: &StepContext<'_>, at: &Position, mut replies: Vec<Reply>) -> Result<Step, Failure> {
    let mut here: At = at.read();
    let of = ids(cx.options);
    if here.of != of {
        here = At { of, ..At::default() };
    }
    while let Some(provider) = here.of.get(here.provider) {
        let replies = std::mem::take(&mut replies);
        if let Some(refusal) = replies.first().filter(|reply| matches!(reply.status, 403 | 404)) {
            let why = said(refusal);
            let why =
                format!("ServiceTitan does not show the bookings of booking provider {provider} ({why})");
            here.lost.push(why);
            here.next_provider();
            let mut page = Page::default();
            here.note(cx, &mut page);
            return Ok(Step::Emit { page, at: Position::of(&here) });
        }
        replies.first().map_or(Ok(()), check)?;
        let mut params = cx.params.clone();
        params.insert(PROVIDER.to_owned(), provider.clone());
        let of_one = StepContext { stream: &OF_ONE, params: &params, ..*cx };
        let list = Position { version: at.version, at: here.list.take() };
        match interpret::step(&SPEC, &of_one, &list, replies)? {
            Step::Send { requests, at } => {
                here.list = at.at;
                return Ok(Step::Send { requests, at: Position::of(&here) });
            }
            Step::Emit { mut page, at } => {
                here.list = at.at;
                learn_zone(cx, &mut page);
                here.note(cx, &mut page);
                return Ok(Step::Emit { page, at: Position::of(&here) });
            }
            Step::Done => here.next_provider(),
            // The lists after it are none the worse for it.
            Step::Partial { why } => {
                here.lost.push(format!("booking provider {provider}: {why}"));
                here.next_provider();
            }
        }
    }
    if here.lost.is_empty() { Ok(Step::Done) } else { Ok(Step::Partial { why: here.lost.join("; ") }) }
}

/// A list that does not tell its end, or tells it and has more, is not taken for read.
fn check(reply: &Reply) -> Result<(), Failure> {
    if reply.status >= 400 {
        return Ok(());
    }
    let body = reply.json();
    let more = body.and_then(|body| body.get("hasMore")).and_then(Value::as_bool);
    let none = body.and_then(|body| body.get("data")?.as_array()).is_some_and(Vec::is_empty);
    match more {
        None => Err(Failure::changed("ServiceTitan's list of bookings has no `hasMore`")),
        Some(true) if none => {
            Err(Failure::changed("ServiceTitan's list of bookings has more and shows none"))
        }
        Some(_) => Ok(()),
    }
}

/// Asks the list of the rows' provider, which takes ids. What is of none that the settings name is not asked for.
pub fn probe(cx: &StepContext<'_>, place: Option<&str>, ids: &[String]) -> Option<(Request, usize)> {
    let provider = place.filter(|place| self::ids(cx.options).iter().any(|named| named == place))?;
    let tenant = tenant(cx.params).ok()?;
    Some(ask_list(format!("/crm/v2/tenant/{tenant}/booking-provider/{provider}/bookings"), false, ids))
}

/// Learns whose bookings are read, those of all providers where none is named, and has everything read again where some
/// were not before: no walk over changes brings what changed earlier.
pub fn learn(cx: &StepContext<'_>, page: &mut Page) {
    let of: BTreeSet<String> = ids(cx.options).into_iter().collect();
    let before =
        cx.facts.get(OF).and_then(|fact| BTreeSet::<String>::deserialize(fact).ok()).unwrap_or_default();
    if of == before {
        return;
    }
    if !before.is_empty() && (of.is_empty() || !of.is_subset(&before)) {
        page.renews.push(cx.stream.name);
    }
    page.facts.insert(OF.to_owned(), json!(of));
}

impl At {
    /// Once a walk: a page that learns anew what is known already would ask for everything once more.
    fn note(&mut self, cx: &StepContext<'_>, page: &mut Page) {
        if !self.noted {
            learn(cx, page);
            self.noted = true;
        }
    }

    fn next_provider(&mut self) {
        self.provider += 1;
        self.list = Value::Null;
    }
}
