//! Asking for records by their ids: what a walk over everything has not met, and what is compared.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::send::{Halt, Sender, Tally};
use crate::domain::failure::Failure;
use crate::domain::step::{Facts, Presence, StepContext};
use crate::providers::Provider;

/// How often in a row an answer may teach how to ask instead of showing something.
const LESSONS_MAX: usize = 32;

/// What is asked about one record is asked to its end: it may outlast the turn by this much.
const ROUND_MAX: Duration = Duration::from_mins(5);

/// What a probe has come to.
pub struct Probed {
    /// How many of the ids were asked for.
    pub taken: usize,
    /// What it has shown of those, in their order.
    pub shown: Vec<Presence>,
    pub sent_at: DateTime<Utc>,
    /// What was learned on the way.
    pub learned: Facts,
}

/// Whether records of the stream can be asked for by their ids.
pub fn asks_by_id(provider: &dyn Provider, cx: &StepContext<'_>) -> bool {
    provider.place_column(cx).is_some() || provider.probe(cx, &[String::new()]).is_some()
}

/// Asks for as many of `ids` as one request can name, at `place`; what is not there is asked for at every other place where
/// it may be. `None`: they cannot be asked for.
pub async fn probe(
    sender: &Sender<'_>,
    cx: &StepContext<'_>,
    place: Option<&str>,
    ids: &[String],
    deadline: Instant,
    tally: &Tally,
) -> Result<Option<Probed>, Halt> {
    let Some(mut probed) = probe_there(sender, cx, place, ids, deadline, tally).await? else {
        return Ok(None);
    };
    let elsewhere = sender.provider.elsewhere(cx, place);
    for (id, presence) in ids.iter().zip(&mut probed.shown).filter(|_| !elsewhere.is_empty()) {
        let Presence::Gone { evidence } = presence else { continue };
        let evidence = format!("{evidence}, and so at {} other places", elsewhere.len());
        *presence = Presence::Gone { evidence };
        for place in &elsewhere {
            let (one, until) = (std::slice::from_ref(id), deadline + ROUND_MAX);
            let found = probe_there(sender, cx, Some(place), one, until, tally).await?;
            let shown = found.and_then(|mut found| found.shown.pop()).unwrap_or(Presence::Unknown);
            if !matches!(shown, Presence::Gone { .. }) {
                *presence = shown;
                break;
            }
        }
    }
    Ok(Some(probed))
}

/// Asks for as many of `ids` as one request can name, at `place` alone.
async fn probe_there(
    sender: &Sender<'_>,
    cx: &StepContext<'_>,
    place: Option<&str>,
    ids: &[String],
    deadline: Instant,
    tally: &Tally,
) -> Result<Option<Probed>, Halt> {
    let (provider, mut facts, mut learned) = (sender.provider, cx.facts.clone(), Facts::new());
    for _ in 0..=LESSONS_MAX {
        let cx = StepContext { facts: &facts, ..*cx };
        let Some((request, taken)) = provider.probe_at(&cx, place, ids) else { return Ok(None) };
        let ids = &ids[..taken.clamp(1, ids.len())];
        let reply = sender.send(&request, deadline, tally).await?;
        let Some(news) = provider.taught(&cx, ids, &reply) else {
            let shown = provider.probed(&cx, ids, &reply).map_err(Halt::Failed)?;
            return Ok(Some(Probed { taken: ids.len(), shown, sent_at: reply.sent_at, learned }));
        };
        learned.extend(news.clone());
        facts.extend(news);
    }
    let (title, stream) = (provider.spec().title, cx.stream.name);
    Err(Halt::Failed(Failure::changed(format!("{title} refuses every way of asking for `{stream}` by id"))))
}
