//! What an account's answers have taught us about asking it, kept as facts: a smaller page, parts that a query has to
//! do without, what people should know.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{TITLE, clip, version};
use crate::domain::failure::Failure;
use crate::domain::step::{Facts, Reply, StepContext};

/// Documented: what a page holds at most when nothing is said.
const PAGE_MAX: u32 = 100;
/// What was refused is asked for again after this: scopes are added, versions pass.
const VALID: TimeDelta = TimeDelta::hours(24);
/// Documented sample value of what the budget of points holds.
pub(super) const POINTS_MAX: u32 = 10_000;
/// The account that the connection's answers are about.
const ACCOUNT: &str = "account_id";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Learned {
    /// Records that a page may have; `None`: as set.
    pub(super) page: Option<u32>,
    /// Records that a request for ids may name; `None`: as many as it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) probed: Option<u32>,
    /// Parts of the query that are refused.
    pub(super) without: Vec<String>,
    /// What was said to that.
    why: Option<String>,
    pub(super) points_max: u32,
    since: Option<DateTime<Utc>>,
}

impl Default for Learned {
    fn default() -> Self {
        Self { page: None, probed: None, without: Vec::new(), why: None, points_max: POINTS_MAX, since: None }
    }
}

impl Learned {
    pub(super) fn page(&self, cx: &StepContext<'_>) -> u32 {
        self.page.unwrap_or(cx.page_size).clamp(1, PAGE_MAX)
    }

    pub(super) fn does_without(&self, part: &str) -> bool {
        self.without.iter().any(|gone| gone == part)
    }

    pub(super) fn leave_out(&mut self, parts: Vec<String>, why: &str) {
        self.without.extend(parts);
        self.why = Some(why.to_owned());
    }
}

fn fact(cx: &StepContext<'_>) -> String {
    format!("learned.{}", cx.stream.name)
}

/// What earlier walks have learned, while it is valid.
pub(super) fn of(cx: &StepContext<'_>) -> Learned {
    let known = cx.facts.get(&fact(cx)).and_then(|fact| Learned::deserialize(fact).ok()).unwrap_or_default();
    let valid = known.since.is_some_and(|since| cx.walk.started_at - since < VALID);
    if valid { known } else { Learned::default() }
}

/// The account that an answer is about: rows of two accounts under one connection could never be told apart again.
pub(super) fn account(cx: &StepContext<'_>, reply: &Reply) -> Result<Option<String>, Failure> {
    let account = reply.text_at("/data/account/id");
    match (account, cx.facts.get(ACCOUNT).and_then(Value::as_str)) {
        (Some(now), Some(known)) if now != known => {
            Err(Failure::changed(format!("{TITLE} answers about the account {now}, and not about {known}")))
        }
        _ => Ok(account.map(str::to_owned)),
    }
}

/// Whether an answer is surely about the account of the connection.
pub(super) fn is_our_account(cx: &StepContext<'_>, reply: &Reply) -> bool {
    let known = cx.facts.get(ACCOUNT).and_then(Value::as_str);
    known.is_some() && reply.text_at("/data/account/id") == known
}

/// What a page's answer adds to the facts that are known.
pub(super) fn facts(
    cx: &StepContext<'_>,
    reply: &Reply,
    account: Option<String>,
    learned: Option<&Learned>,
) -> Facts {
    let mut learned = learned.cloned().unwrap_or_default();
    let plain = Learned { since: None, ..learned.clone() } == Learned::default();
    learned.since = if plain { None } else { learned.since.or(Some(cx.walk.started_at)) };
    let notices = notices(cx, reply, &learned);
    let all = [
        (ACCOUNT.to_owned(), account.map(Value::from)),
        (fact(cx), Some(json!(learned)).filter(|_| !plain || cx.facts.contains_key(&fact(cx)))),
        // Streams run side by side: each has notices of its own.
        (format!("notices.{}", cx.stream.name), Some(notices)),
    ];
    let told = all.into_iter().filter_map(|(name, value)| Some((name, value?)));
    told.filter(|(name, value)| cx.facts.get(name) != Some(value)).collect()
}

fn notices(cx: &StepContext<'_>, reply: &Reply, learned: &Learned) -> Value {
    let mut notices = Map::new();
    let asked = version(cx.options);
    if let Some(served) = reply.text_at("/extensions/versioning/version") {
        let but = if served == asked { String::new() } else { format!(", though {asked} is asked for") };
        let warning = reply.text_at("/extensions/versioning/warning").map(clip);
        let says = warning.map_or_else(String::new, |warning| format!("; it says: {warning}"));
        notices.insert(
            "api_version".to_owned(),
            json!(format!("{TITLE} serves version {served} of its API{but}{says}")),
        );
    }
    if let Some(why) = &learned.why {
        let parts = learned.without.join(", ");
        let sentence = format!("`{}` are read without {parts}, which {TITLE} refuses: {why}", cx.stream.name);
        notices.insert(format!("without.{}", cx.stream.name), json!(sentence));
    }
    Value::Object(notices)
}
