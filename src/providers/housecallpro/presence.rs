//! Whether a job that a sweep has not met is gone. Absence alone proves nothing: a list moves while it is read, and
//! whether it shows jobs that the company has deleted is not documented. So each is asked for by its id.

use serde_json::Value;

use super::{BUCKETS, streams};
use crate::domain::record::Record;
use crate::domain::step::{Presence, Reply, Request, StepContext};

pub(super) const PURPOSE: &str = "job";

/// Asks for one job.
pub(super) fn probe(cx: &StepContext<'_>, ids: &[String]) -> Option<(Request, usize)> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let id = ids.first().filter(|_| cx.stream.name == streams::JOBS_NAME)?;
    // What could change the meaning of the path is no id of theirs, and finds nothing.
    let id: String = id.chars().filter(|c| plain(*c)).collect();
    let mut request = Request::get(format!("/jobs/{id}"), PURPOSE, BUCKETS);
    request.query.push(("expand[]", "appointments".to_owned()));
    Some((request, 1))
}

/// Whether a refusal of a read by id is an answer: of a 400 only that the job is archived.
pub(super) fn is_answer(reply: &Reply) -> bool {
    reply.status != 400 || is_archived(reply)
}

fn is_archived(reply: &Reply) -> bool {
    reply.text_at("/error/message").is_some_and(|text| text.eq_ignore_ascii_case("archived job"))
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
        404 | 410 => gone(&reply.status.to_string()),
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
