//! Asking for records by their ids: whether those that a list has not shown are gone.
//!
//! Records are asked for beside the account: `null` is also what an id of another account gives.

use serde_json::{Value, json};

use super::document::Records;
use super::learned::{self, Learned};
use super::trouble::{self, Flaw, Trouble};
use super::{TITLE, ask, people, walk};
use crate::domain::failure::Failure;
use crate::domain::step::{Facts, Presence, Reply, Request, StepContext};

/// Records that one request asks for at most.
pub(super) const PROBED_MAX: usize = 20;

pub(super) fn probe(cx: &StepContext<'_>, ids: &[String]) -> Option<(Request, usize)> {
    let records = walk::records_of(cx.stream.name).ok()?;
    let learned = learned::of(cx);
    let mut taken = ids.len().min(most(cx, &learned));
    loop {
        let document = records.some(&ids[..taken], &learned.without);
        let request = ask(cx.options, "probe", document, json!({}));
        if taken <= 1 || request.points <= learned.points_max / walk::SHARE {
            return Some((request, taken));
        }
        taken /= 2;
    }
}

fn most(cx: &StepContext<'_>, learned: &Learned) -> usize {
    let page = learned.probed.unwrap_or(u32::MAX).min(learned.page(cx));
    usize::try_from(page).map_or(PROBED_MAX, |page| page.clamp(1, PROBED_MAX))
}

/// A request that is too dear is made for half as many, and what is refused is left out of the next one, if it is a part
/// that a query can do without. Where one id is not taken the others are asked for one by one: an answer about it is no
/// reason to do without all of them.
pub(super) fn taught(cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Option<Facts> {
    let records = walk::records_of(cx.stream.name).ok()?;
    let mut learned = learned::of(cx);
    match trouble::of(reply)? {
        Trouble::TooDear { max, .. } if ids.len() > 1 => {
            learned.probed = u32::try_from(ids.len() / 2).ok();
            learned.points_max = u32::try_from(max).unwrap_or(learned.points_max);
        }
        Trouble::Refused(refused) => match records.part_of(&refused.names, &learned.without) {
            Some(part) => learned.leave_out(vec![part.to_owned()], &refused.said),
            None if refused.flaw == Flaw::Argument && ids.len() > 1 => learned.probed = Some(1),
            None => return None,
        },
        _ => return None,
    }
    Some(learned::facts(cx, reply, None, Some(&learned)))
}

pub(super) fn probed(cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Result<Vec<Presence>, Failure> {
    let records = walk::records_of(cx.stream.name)?;
    match trouble::of(reply) {
        // A version without that field leaves the complete list as the proof.
        Some(Trouble::Refused(refused))
            if refused.flaw == Flaw::Lacking && refused.names.first().is_some_and(|of| of == records.one) =>
        {
            let evidence = format!("not among all {} that {TITLE} lists", records.list);
            return Ok(vec![Presence::Gone { evidence }; ids.len()]);
        }
        // Nor is an id gone that is not taken.
        Some(Trouble::Refused(refused)) if refused.flaw == Flaw::Argument => {
            return Ok(vec![Presence::Unknown; ids.len()]);
        }
        Some(Trouble::Refused(refused)) => return Err(walk::refusal(records, &refused)),
        Some(Trouble::TooDear { requested, max }) => return Err(walk::too_dear(cx, requested, max)),
        Some(_) => return Ok(vec![Presence::Unknown; ids.len()]),
        None => {}
    }
    if !learned::is_our_account(cx, reply) {
        return Ok(vec![Presence::Unknown; ids.len()]);
    }
    let without = &learned::of(cx).without;
    let shown = |(place, _): (usize, &String)| shown(records, reply, place, without);
    ids.iter().enumerate().map(shown).collect()
}

fn shown(records: &Records, reply: &Reply, place: usize, without: &[String]) -> Result<Presence, Failure> {
    match reply.json().and_then(|body| body.pointer(&format!("/data/r{place}"))) {
        Some(Value::Null) => {
            let evidence = format!("{TITLE} knows no {} of this id", records.one);
            Ok(Presence::Gone { evidence })
        }
        // Not everybody who is assigned is in it.
        Some(node) if people::open(node).is_some() => Ok(Presence::Here(None)),
        Some(node) => Ok(Presence::Here(Some(Box::new(records.record(node, reply.sent_at, without)?)))),
        None => Ok(Presence::Unknown),
    }
}
