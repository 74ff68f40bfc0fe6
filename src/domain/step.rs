//! The vocabulary between a provider's pure state machine and the engine that sends, waits, retries and writes.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::failure::Failure;
use super::record::{Record, Tombstone};
use super::spec::{Mode, StreamSpec};

/// Where a walk stands: JSON that only the provider reads, with the version of its meaning. A position of another
/// version is not understood and the walk starts again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Position {
    pub version: u32,
    pub at: Value,
}

impl Position {
    /// Of the meaning of all positions. To be moved when one of them changes its meaning.
    pub const VERSION: u32 = 1;

    /// The start of a walk.
    pub fn start() -> Self {
        Self { version: Self::VERSION, at: Value::Null }
    }

    /// A position that says `at`.
    pub fn of<T: Serialize>(at: &T) -> Self {
        let at = serde_json::to_value(at).expect("positions are plain data with text keys");
        Self { version: Self::VERSION, at }
    }

    /// What the position says. The start of a walk, and what an older or newer program has left, read as
    /// `T::default()`: such a walk starts again.
    pub fn read<T: Default + for<'de> Deserialize<'de>>(&self) -> T {
        if self.at.is_null() || self.version != Self::VERSION {
            return T::default();
        }
        T::deserialize(&self.at).unwrap_or_default()
    }
}

/// One walk over a stream: what it has to cover. It keeps these bounds when it is resumed.
#[derive(Debug, Clone, PartialEq)]
pub struct Walk {
    pub mode: Mode,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// Changes from here on are wanted (inclusive); `None`: all there is.
    pub from: Option<DateTime<Utc>>,
    /// As of when the facts of the account are known: those that it needs, or those that it has taught before.
    pub facts_as_of: Option<DateTime<Utc>>,
}

/// What a provider's state machine may know.
#[derive(Debug, Clone, Copy)]
pub struct StepContext<'a> {
    pub stream: &'static StreamSpec,
    pub walk: &'a Walk,
    /// The version of the API that paths name.
    pub api_version: &'a str,
    /// Records to ask for in a page.
    pub page_size: u32,
    /// What other streams of the connection have learned, by name.
    pub facts: &'a Facts,
    /// What the admin gave with `--param`.
    pub params: &'a Params,
    pub options: &'a Options,
}

#[cfg(test)]
impl<'a> StepContext<'a> {
    /// Nothing is known, given or set.
    pub fn bare(stream: &'static StreamSpec, walk: &'a Walk) -> Self {
        static NOTHING: (Facts, Params, Options) = (Facts::new(), Params::new(), Options::new());
        let (facts, params, options) = &NOTHING;
        Self { stream, walk, api_version: "", page_size: 100, facts, params, options }
    }
}

/// What has been learned about an account: names to JSON. It outlives walks, and is written with the page that brings
/// it. The fact [`NOTICES`] is for people.
pub type Facts = BTreeMap<String, Value>;

/// What the provider wants people to know of the account: an object of words to sentences, shown by `status`.
pub const NOTICES: &str = "notices";

/// What an admin gave with `--param`: names to values.
pub type Params = BTreeMap<String, String>;

/// The settings that only this provider has, each of the type of its built-in value.
pub type Options = BTreeMap<String, Value>;

/// The next thing a walk wants.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Send these, at once if the pacer lets us, and come back with a reply for each, in this order.
    Send { requests: Vec<Request>, at: Position },
    /// Write this page; its position is saved in the same transaction. Nothing else saves a position.
    Emit { page: Page, at: Position },
    /// The walk is closed: everything it had to cover has been emitted.
    Done,
    /// The walk is at its end, and a part of what it had to cover cannot be read, such as a location that the account
    /// may not see. No watermark moves and nothing counts as gone; the stream says why.
    Partial { why: String },
}

/// What one `Emit` carries.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    pub records: Vec<Record>,
    /// Ids that a sweep has met without their records; those of `records` are met as well.
    pub met: Vec<String>,
    pub tombstones: Vec<Tombstone>,
    pub facts: Facts,
    /// Streams of the provider whose records may now show more than they did, whenever they last changed: everything of
    /// them has to be read again.
    pub renews: Vec<&'static str>,
    /// How much of the walk is behind us, 0 to 1, where the provider lets us know.
    pub progress: Option<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
}

/// A request to a provider's API. Host, credential and headers common to all are added when it is sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub method: Method,
    /// Path below the API base, with a leading slash.
    pub path: String,
    pub query: Vec<(&'static str, String)>,
    /// Further headers, none of them secret.
    pub headers: Vec<(&'static str, String)>,
    pub body: Option<Value>,
    /// What the request is for: a word for logs, metrics and for telling replies apart, such as `search`.
    pub purpose: &'static str,
    /// The limits that it counts against.
    pub buckets: &'static [&'static str],
    /// What it takes from those that count points.
    pub points: u32,
}

impl Request {
    pub fn get(path: String, purpose: &'static str, buckets: &'static [&'static str]) -> Self {
        let (query, headers) = (Vec::new(), Vec::new());
        Self { method: Method::Get, path, query, headers, body: None, purpose, buckets, points: 1 }
    }

    pub fn post(path: String, body: Value, purpose: &'static str, buckets: &'static [&'static str]) -> Self {
        Self { method: Method::Post, body: Some(body), ..Self::get(path, purpose, buckets) }
    }
}

/// What asking for a record by its id has shown, after a sweep that did not meet it.
#[derive(Debug, Clone, PartialEq)]
pub enum Presence {
    /// It is there, with its newest version where that came along.
    Here(Option<Box<Record>>),
    /// It is gone, and why that is known: a sentence for `deleted_evidence`.
    Gone { evidence: String },
    /// Nothing is proven: the row stays as it is.
    Unknown,
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Body,
    /// When the request left.
    pub sent_at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    Json(Value),
    /// Not JSON: an HTML page of a proxy, or nothing at all. At most a few hundred characters are kept.
    Text(String),
}

impl Reply {
    pub fn json(&self) -> Option<&Value> {
        match &self.body {
            Body::Json(value) => Some(value),
            Body::Text(_) => None,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The text at a JSON pointer, where there is one.
    pub fn text_at(&self, pointer: &str) -> Option<&str> {
        self.json()?.pointer(pointer)?.as_str()
    }
}

/// What a reply means, before the state machine sees it.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// For the state machine.
    Accept,
    /// Too many requests. `bucket` is the limit that was hit, `wait_ms` how long the provider said to wait;
    /// without it the engine waits longer each time.
    Throttled { bucket: &'static str, wait_ms: Option<u64> },
    /// Passing trouble at the provider.
    Retry { wait_ms: Option<u64>, why: String },
    /// The access token was refused: refresh once, send again.
    RefreshToken,
    /// The position was refused: the walk starts again, for this reason.
    RestartPaging { why: String },
    /// No use in sending it again.
    Fail(Failure),
}
