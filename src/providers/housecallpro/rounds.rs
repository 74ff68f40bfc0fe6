//! One walk over a list of every location, one location after the other. Each list is read as any other
//! ([`interpret`]); here is only whose turn it is.
//!
//! A location that answers 403 is passed over. The walk then ends as a partial one: nothing counts as gone, and the
//! stream says which location it was.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::locations::Known;
use super::{SPEC, streams};
use crate::domain::failure::Failure;
use crate::domain::step::{Page, Position, Reply, Step, StepContext};
use crate::providers::interpret;

/// Names the location that a request is about. (`location_ids[]` is older, and ignored where this is sent.)
pub(super) const LOCATION_HEADER: &str = "x-company-id";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Round {
    /// The location whose turn it is; empty: the first one's.
    location: String,
    /// Where its list stands.
    list: Value,
    /// Locations that answered 403.
    closed: Vec<String>,
    /// Why not all was shown of the lists of others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    short: Vec<String>,
}

/// The next step of a walk over a located list.
pub(super) fn step(cx: &StepContext<'_>, at: &Position, mut replies: Vec<Reply>) -> Result<Step, Failure> {
    let known = Known::of(cx.facts);
    let locations: Vec<String> = known.to_read(cx.options).into_iter().collect();
    let mut round: Round = at.read();
    // In the order of their ids, so that a walk can be taken up when some have come or gone meanwhile.
    let rest = locations.iter().enumerate().skip_while(|(_, location)| **location < round.location);
    for (index, location) in rest.collect::<Vec<_>>() {
        if *location != round.location {
            (round.location, round.list) = (location.clone(), Value::Null);
        }
        let replies = std::mem::take(&mut replies);
        if replies.first().is_some_and(|reply| reply.status == 403) {
            round.closed.push(location.clone());
            continue;
        }
        let list = Position { version: at.version, at: round.list.take() };
        match interpret::step(&SPEC, cx, &list, replies)? {
            Step::Send { mut requests, at } => {
                if !known.is_own(location) {
                    for request in &mut requests {
                        request.headers.push((LOCATION_HEADER, location.clone()));
                    }
                }
                round.list = at.at;
                return Ok(Step::Send { requests, at: Position::of(&round) });
            }
            Step::Emit { page, at } => {
                round.list = at.at;
                let page = of_all(cx, page, index, locations.len());
                return Ok(Step::Emit { page, at: Position::of(&round) });
            }
            Step::Done => {}
            Step::Partial { why } => round.short.push(why),
        }
    }
    Ok(end(&round))
}

/// A page of one location as a page of the whole.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn of_all(cx: &StepContext<'_>, mut page: Page, index: usize, count: usize) -> Page {
    page.records.iter_mut().for_each(|record| streams::keep_private(cx.stream.name, &mut record.raw));
    page.progress = page.progress.map(|share| (index as f32 + share) / count.max(1) as f32);
    page
}

fn end(Round { closed, short, .. }: &Round) -> Step {
    if !closed.is_empty() {
        let why = format!(
            "Housecall Pro answered 403 for the location `{}`: its rows stay as they are. Ask the account's owner for \
             access, or name the locations to read in `providers.housecallpro.location_ids`",
            closed.join("`, `")
        );
        return Step::Partial { why };
    }
    if let Some(why) = short.first() {
        return Step::Partial { why: why.clone() };
    }
    Step::Done
}
