//! Which locations there are: the company that the credential belongs to, and those below it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{BUCKETS, streams};
use crate::domain::failure::Failure;
use crate::domain::record::Record;
use crate::domain::step::{Facts, Options, Page, Position, Reply, Request, Step, StepContext};

/// What setting names the only locations to read.
const ONLY: &str = "location_ids";

/// What an account's locations are, kept as a fact. None that was ever seen is forgotten: one that is no longer shown has
/// been lost, not emptied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Known {
    /// The company's own id.
    own: String,
    /// The ids of what was ever shown below it.
    below: BTreeSet<String>,
    /// The ids of what was ever read.
    read: BTreeSet<String>,
    /// The ids of what was to be read when this was last learned.
    last: BTreeSet<String>,
}

impl Known {
    pub(super) fn of(facts: &Facts) -> Self {
        facts.get(streams::LOCATIONS_FACT).and_then(|fact| Self::deserialize(fact).ok()).unwrap_or_default()
    }

    /// The locations to read, in an order that stays. The settings are those of all accounts, so an account takes what
    /// is its own of them; where nothing is, the setting is taken at its word.
    pub(super) fn to_read(&self, options: &Options) -> BTreeSet<String> {
        let all: BTreeSet<String> = self.below.iter().cloned().chain([self.own.clone()]).collect();
        let only = only(options);
        if only.is_empty() {
            return all;
        }
        let own: BTreeSet<String> = all.intersection(&only).cloned().collect();
        if own.is_empty() { only } else { own }
    }

    /// Whether it has to read what it did not before: it may have changed long ago, and no walk over changes brings that.
    pub(super) fn is_more(&self, to_read: &BTreeSet<String>) -> bool {
        // An older program noted only what was ever read, and one before it nothing.
        let before = if self.last.is_empty() { &self.read } else { &self.last };
        !before.is_empty() && !to_read.is_subset(before)
    }

    /// What was read once and is not any more: its rows are in the mirror, and no list shows them.
    pub(super) fn left(&self, options: &Options) -> Vec<String> {
        self.read.difference(&self.to_read(options)).cloned().collect()
    }

    /// Whether this is the company itself, which no header has to name.
    pub(super) fn is_own(&self, location: &str) -> bool {
        self.own == location
    }
}

fn only(options: &Options) -> BTreeSet<String> {
    let given = options.get(ONLY).and_then(Value::as_array).into_iter().flatten();
    given.filter_map(Value::as_str).map(|id| id.trim().to_owned()).filter(|id| !id.is_empty()).collect()
}

pub(super) fn request() -> Request {
    Request::get("/company".to_owned(), "company", BUCKETS)
}

/// The walk over locations: one answer has them all.
pub(super) fn step(cx: &StepContext<'_>, at: &Position, mut replies: Vec<Reply>) -> Result<Step, Failure> {
    if at.read::<bool>() {
        return Ok(Step::Done);
    }
    let Some(reply) = replies.pop() else {
        return Ok(Step::Send { requests: vec![request()], at: at.clone() });
    };
    let page = page(cx, reply)?;
    Ok(Step::Emit { page, at: Position::of(&true) })
}

fn page(cx: &StepContext<'_>, reply: Reply) -> Result<Page, Failure> {
    let changed = |what: &str| Failure::changed(format!("Housecall Pro's answer to `company` {what}"));
    let mut company = reply.json().cloned().ok_or_else(|| changed("is no JSON"))?;
    let below = company.as_object_mut().and_then(|fields| fields.remove("locations"));
    let below = match below {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(below)) => below,
        Some(_) => return Err(changed("has no list at `/locations`")),
    };
    let mut records = Vec::with_capacity(below.len() + 1);
    for raw in [company].into_iter().chain(below) {
        let id = raw.get("id").and_then(Value::as_str).filter(|id| !id.is_empty()).map(str::to_owned);
        let id = id.ok_or_else(|| changed("holds a location without an id"))?;
        records.push(Record { id, raw, sent_at: reply.sent_at, deleted: None, without: Vec::new() });
    }
    let mut known = Known::of(cx.facts);
    let mut ids = records.iter().map(|record| record.id.clone());
    known.own = ids.next().unwrap_or_default();
    known.below.extend(ids.filter(|id| *id != known.own));
    let to_read = known.to_read(cx.options);
    let renews = if known.is_more(&to_read) { streams::LOCATED.to_vec() } else { Vec::new() };
    known.read.extend(to_read.iter().cloned());
    known.last = to_read;
    let fact = serde_json::to_value(known).expect("plain data with text keys");
    let facts = Facts::from([(streams::LOCATIONS_FACT.to_owned(), fact)]);
    Ok(Page { records, facts, renews, ..Page::default() })
}
