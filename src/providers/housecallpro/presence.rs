//! Whether a job or customer that a sweep has not met is gone. Absence alone proves nothing: a list moves while it is read,
//! and whether it shows jobs that the company has deleted is not documented. So each is asked for by its id, at the
//! location that its row is of: a header says which location a request is about, and what another has is not found. One
//! that is not there may have moved, so the other locations are asked as well.

use serde_json::Value;

use super::locations::Known;
use super::rounds::LOCATION_HEADER;
use super::{BUCKETS, streams};
use crate::domain::record::Record;
use crate::domain::step::{Body, Presence, Reply, Request, StepContext};

const JOB: &str = "job";
const CUSTOMER: &str = "customer";

/// The column that tells a row's location.
pub(super) const PLACE: &str = "company_id";

pub(super) fn can_ask(stream: &str) -> bool {
    matches!(stream, streams::JOBS_NAME | streams::CUSTOMERS_NAME)
}

/// Whether a request with this purpose is one of these.
pub(super) fn is_probe(purpose: &str) -> bool {
    matches!(purpose, JOB | CUSTOMER)
}

/// Asks for one record at its location; at any, where its row names none and so may be at none that is left out. One whose
/// location is none that is read is not asked for.
pub(super) fn probe(cx: &StepContext<'_>, place: Option<&str>, ids: &[String]) -> Option<(Request, usize)> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let id = ids.first().filter(|_| can_ask(cx.stream.name))?;
    // What could change the meaning of the path is no id of theirs, and finds nothing.
    let id: String = id.chars().filter(|c| plain(*c)).collect();
    let known = Known::of(cx.facts);
    let read = known.to_read(cx.options);
    let location = match place {
        Some(place) => read.get(place),
        None => read.first().filter(|_| known.left(cx.options).is_empty()),
    }?;
    let mut request = match cx.stream.name {
        streams::JOBS_NAME => Request::get(format!("/jobs/{id}"), JOB, BUCKETS),
        _ => Request::get(format!("/customers/{id}"), CUSTOMER, BUCKETS),
    };
    if cx.stream.name == streams::JOBS_NAME {
        request.query.push(("expand[]", "appointments".to_owned()));
    }
    if !known.is_own(location) {
        request.headers.push((LOCATION_HEADER, location.clone()));
    }
    Some((request, 1))
}

/// The locations that are read besides the one at which [`probe`] asks.
pub(super) fn elsewhere(cx: &StepContext<'_>, place: Option<&str>) -> Vec<String> {
    let mut read = Known::of(cx.facts).to_read(cx.options);
    let asked = place.map(str::to_owned).or_else(|| read.first().cloned());
    read.retain(|location| asked.as_ref() != Some(location));
    read.into_iter().collect()
}

/// Whether a refusal has a shape that the API gives to them: JSON of one of its five shapes or an empty object, XML, or
/// nothing with the time that it took. A page of HTML, and nothing at all, may come from somewhere before it, which knows
/// nothing of records.
fn is_of_api(reply: &Reply) -> bool {
    match &reply.body {
        Body::Json(Value::Object(body)) => {
            body.is_empty() || ["message", "error", "errors"].iter().any(|name| body.contains_key(*name))
        }
        Body::Json(_) => false,
        Body::Text(text) => {
            let text = text.trim_start().to_ascii_lowercase();
            text.is_empty() && reply.header("x-runtime").is_some()
                || text.starts_with("<?xml") && !text.contains("<html")
        }
    }
}

/// Whether a refusal says so, in whichever of its shapes. Seen in one of them, and on writes.
fn is_archived(reply: &Reply) -> bool {
    reply.json().is_some_and(says_archived)
}

fn says_archived(body: &Value) -> bool {
    match body {
        Value::String(text) => text.to_ascii_lowercase().contains("archived job"),
        Value::Array(items) => items.iter().any(says_archived),
        Value::Object(fields) => fields.values().any(says_archived),
        _ => false,
    }
}

pub(super) fn probed(cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Vec<Presence> {
    let gone = |said: &str| Presence::Gone {
        evidence: format!(
            "absent from a complete read that began at {}, and a read by its id answered {said}",
            cx.walk.started_at.to_rfc3339()
        ),
    };
    let presence = match reply.status {
        200..=299 => here(cx, ids, reply),
        404 | 410 if is_of_api(reply) => gone(&reply.status.to_string()),
        400 if is_archived(reply) => gone("400 `Archived job`"),
        _ => Presence::Unknown,
    };
    vec![presence]
}

fn here(cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Presence {
    let asked = ids.first().map(String::as_str);
    match reply.json() {
        Some(raw) if raw.pointer(cx.stream.id).and_then(Value::as_str) == asked => {
            let (id, mut raw) = (asked.unwrap_or_default().to_owned(), raw.clone());
            streams::keep_private(cx.stream.name, &mut raw);
            Presence::Here(Some(Box::new(Record {
                id,
                raw,
                sent_at: reply.sent_at,
                deleted: None,
                without: Vec::new(),
            })))
        }
        _ => Presence::Unknown,
    }
}
