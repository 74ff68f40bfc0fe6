//! Bookings of an app that a tenant has bound to a booking provider: the tenant's feed is closed to it, the lists of the
//! named providers are not. One list after the other, by ascending id, which new records do not disturb.
//!
//! These lists do not tell whether a booking is active; what has left them is found by a sweep.

use chrono::SecondsFormat;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::feed::{learn_settings, records};
use super::{BUCKETS, said, tenant};
use crate::domain::failure::Failure;
use crate::domain::spec::Mode;
use crate::domain::step::{Options, Page, Position, Reply, Request, Step, StepContext};

pub const PURPOSE: &str = "provider_bookings";
/// Booking providers in the settings.
const PROVIDERS_MAX: usize = 50;

/// Where a walk stands. `provider` counts within the settings' list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct At {
    /// The providers that the walk is about: it starts again when the settings name others.
    of: Vec<String>,
    provider: usize,
    /// Pages of this provider that are read, and the last id on them.
    pages: u32,
    last: Option<String>,
    /// Providers whose bookings were refused, with the reason.
    lost: Vec<String>,
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

pub fn step(cx: &StepContext<'_>, at: &Position, replies: Vec<Reply>) -> Result<Step, Failure> {
    let mut here: At = at.read();
    let of = ids(cx.options);
    if here.of != of {
        here = At { of, ..At::default() };
    }
    match (replies.into_iter().next(), here.of.get(here.provider)) {
        (_, None) if here.lost.is_empty() => Ok(Step::Done),
        (_, None) => Ok(Step::Partial { why: here.lost.join("; ") }),
        (None, Some(provider)) => {
            let request = request(cx, provider, here.pages + 1)?;
            Ok(Step::Send { requests: vec![request], at: Position::of(&here) })
        }
        (Some(reply), Some(provider)) if reply.status >= 400 => {
            let why = format!(
                "ServiceTitan does not show the bookings of booking provider {provider} ({})",
                said(&reply)
            );
            here.lost.push(why);
            here.next_provider();
            Ok(Step::Emit { page: Page::default(), at: Position::of(&here) })
        }
        (Some(reply), Some(_)) => take(cx, here, reply),
    }
}

fn request(cx: &StepContext<'_>, provider: &str, page: u32) -> Result<Request, Failure> {
    let tenant = tenant(cx.params)?;
    let path = format!("/crm/v2/tenant/{tenant}/booking-provider/{provider}/bookings");
    let mut request = Request::get(path, PURPOSE, BUCKETS);
    let size = cx.page_size.max(1).to_string();
    request.query.extend([("page", page.to_string()), ("pageSize", size), ("sort", "+Id".to_owned())]);
    if let (Mode::Incremental, Some(from)) = (cx.walk.mode, cx.walk.from) {
        // Without an upper bound: a record that changes meanwhile stays in the list and pushes no other out of sight.
        request.query.push(("modifiedOnOrAfter", from.to_rfc3339_opts(SecondsFormat::Millis, true)));
    }
    Ok(request)
}

fn take(cx: &StepContext<'_>, mut here: At, mut reply: Reply) -> Result<Step, Failure> {
    let more = reply.json().and_then(|body| body.get("hasMore")).and_then(Value::as_bool);
    let more = more.ok_or_else(|| Failure::changed("ServiceTitan's list of bookings has no `hasMore`"))?;
    let mut page = Page { records: records(cx.stream.name, &mut reply)?, ..Page::default() };
    if more && page.records.is_empty() {
        return Err(Failure::changed("ServiceTitan's list of bookings has more and shows none"));
    }
    let last = page.records.last().map(|record| record.id.clone());
    if more && last == here.last {
        return Err(Failure::changed("ServiceTitan's list of bookings repeats a page"));
    }
    if more {
        here.last = last;
        here.pages += 1;
    } else {
        here.next_provider();
    }
    learn_settings(cx, &mut page);
    Ok(Step::Emit { page, at: Position::of(&here) })
}

impl At {
    fn next_provider(&mut self) {
        self.provider += 1;
        self.pages = 0;
        self.last = None;
    }
}
