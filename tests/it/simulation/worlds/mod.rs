//! The five providers as the oracle and the script see them: what there is, what happens to it, what can go wrong.

mod housecallpro;
mod hubspot;
mod jobber;
mod oncehub;
mod servicetitan;

use std::collections::BTreeMap;

use chrono::DateTime;
use fieldmirror::providers;
use fieldmirror::sandbox::Sandbox;
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde_json::Value;

/// A stream and an id in it.
pub type Key = (&'static str, String);

/// Whether a record can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Alive,
    /// In no list, and not gone: nothing is demanded of its row but that it is not called gone.
    Hidden,
    Gone,
}

/// A record as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Real {
    pub standing: Standing,
    /// Its change marker, in microseconds since 1970; `None`: the stream has none.
    pub marker: Option<i64>,
    /// What a row of the mirror has to say.
    pub content: Value,
    /// What it shows of other records, which change without it.
    pub ties: Value,
    /// The record that it was merged into, the one that this was merged into, and so on.
    pub merged_into: Vec<String>,
    /// Since when it is gone, in microseconds since 1970, where the provider tells.
    pub gone_at: Option<i64>,
}

impl Real {
    pub fn new(standing: Standing, marker: Option<i64>, [content, ties]: [Value; 2]) -> Self {
        Self { standing, marker, content, ties, merged_into: Vec::new(), gone_at: None }
    }
}

pub type Truth = BTreeMap<Key, Real>;

/// One provider's account.
pub trait World {
    /// Every record there is or was. What is missing here and was there before is gone.
    fn truth(&self, sandbox: &Sandbox) -> Truth;

    /// Makes something happen to one or more records, and says what.
    fn change(&mut self, sandbox: &Sandbox, truth: &Truth, dice: &mut StdRng) -> String;

    /// What of a row's `raw` has to be [`Real::content`], and what [`Real::ties`].
    fn split(&self, _stream: &str, raw: Value) -> [Value; 2] {
        [raw, Value::Null]
    }

    /// Whether that is all of it that could be asked for before more was known of the account.
    fn is_part(&self, _stream: &str, _told: &Value, _real: &Value) -> bool {
        false
    }

    /// The smallest unit of the change marker, in microseconds.
    fn marker_unit(&self) -> i64 {
        1_000
    }

    /// Whether the change marker tells of deletions as well.
    fn marks_deletions(&self) -> bool {
        false
    }

    /// Faults to draw from; `#` stands for a chance.
    fn faults(&self) -> &'static [&'static str];

    /// Whether the order in a page means nothing to the walk, or is known to be checked by it.
    fn shuffles(&self) -> bool {
        true
    }
}

/// The providers, by the last digit of a seed that is taken by five.
pub const PROVIDERS: [&str; 5] = ["hubspot", "jobber", "housecallpro", "servicetitan", "oncehub"];

/// Whose world a seed is.
pub fn provider_of(seed: u64) -> &'static str {
    PROVIDERS[usize::try_from(seed % 5).expect("a small number")]
}

pub fn world(provider: &str) -> Box<dyn World> {
    match provider {
        "hubspot" => Box::<hubspot::World>::default(),
        "jobber" => Box::<jobber::World>::default(),
        "housecallpro" => Box::<housecallpro::World>::default(),
        "servicetitan" => Box::<servicetitan::World>::default(),
        _ => Box::<oncehub::World>::default(),
    }
}

/// What may be done only so often: things that a sweep has to find, which the brake would stop if they were many.
#[derive(Debug, Default)]
pub struct Purse(u32);

impl Purse {
    const MAX: u32 = 8;

    pub fn pays(&mut self) -> bool {
        self.0 += 1;
        self.0 <= Self::MAX
    }
}

/// One record of these streams with this standing.
pub fn one<'a>(
    truth: &'a Truth,
    streams: &[&str],
    standing: Standing,
    dice: &mut StdRng,
) -> Option<(&'static str, &'a str)> {
    let fits: Vec<&'a Key> = truth
        .iter()
        .filter(|((stream, _), real)| streams.contains(stream) && real.standing == standing)
        .map(|(key, _)| key)
        .collect();
    fits.choose(dice).map(|(stream, id)| (*stream, id.as_str()))
}

/// A text that was never there before.
pub fn fresh(dice: &mut StdRng) -> String {
    format!("changed {:08x}", dice.random::<u32>())
}

/// A time as microseconds since 1970.
pub fn micros(value: &Value) -> Option<i64> {
    let text = value.as_str()?;
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros())
}

pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A record without what its stream does not keep.
pub fn trimmed(provider: &str, stream: &str, mut record: Value) -> Value {
    let spec = providers::provider(provider).and_then(|provider| provider.spec().stream(stream));
    let spec = spec.expect("a stream of ours");
    for pointer in spec.omit {
        omit(&mut record, pointer);
    }
    if let Some(fields) = record.as_object_mut().filter(|_| !spec.keep_only.is_empty()) {
        fields.retain(|name, _| spec.keep_only.contains(&name.as_str()));
    }
    record
}

fn omit(value: &mut Value, pointer: &str) {
    if let Some((list, of_each)) = pointer.split_once("/*") {
        for item in value.pointer_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            omit(item, of_each);
        }
        return;
    }
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    if let Some(fields) = value.pointer_mut(parent).and_then(Value::as_object_mut) {
        fields.remove(name);
    }
}

/// Takes fields out of an object.
pub fn without(mut value: Value, names: &[&str]) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| !names.contains(&name.as_str()));
    }
    value
}
