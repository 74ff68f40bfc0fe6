//! Providers against written conversations: every folder below `tests/fixtures/<provider>` is one case, and no
//! provider needs code here.
//!
//! `case.json` holds a stream, the walk's bounds, the facts, and the replies in the order in which they are asked for,
//! each with the `purpose` of the request it answers. `transcript.snap` holds what came of it: requests, rows,
//! tombstones, facts, and how the walk ended. After a change on purpose, `INSTA_UPDATE=always cargo test --test it
//! fixtures` writes the transcripts anew, to be read in the diff.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use fieldmirror::domain::drift::DriftKind;
use fieldmirror::domain::record::Record;
use fieldmirror::domain::spec::{Mode, StreamSpec};
use fieldmirror::domain::step::{
    Body, Facts, Method, Options, Page, Params, Position, Reply, Request, Step, StepContext, Verdict, Walk,
};
use fieldmirror::providers::{Provider, REGISTRY};
use fieldmirror::sync::extract;
use serde::Deserialize;
use serde_json::{Value, json};

/// Steps that a case may take.
const STEPS_MAX: usize = 200;
/// Bytes of a saved position: it is written with every page.
const POSITION_MAX: usize = 16 * 1024;
const CASE: &str = "case.json";
const TRANSCRIPT: &str = "transcript.snap";

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What it shows, for readers.
    about: String,
    stream: String,
    mode: String,
    started_at: DateTime<Utc>,
    #[serde(default)]
    from: Option<DateTime<Utc>>,
    /// `None`: the provider's own.
    #[serde(default)]
    api_version: Option<String>,
    #[serde(default)]
    page_size: Option<u32>,
    #[serde(default)]
    facts: Facts,
    #[serde(default)]
    params: Params,
    /// Settings that only this provider has; absent ones are not set.
    #[serde(default)]
    options: Options,
    /// The saved position that the walk is taken up from; absent: its start.
    #[serde(default)]
    at: Option<Position>,
    replies: Vec<Answer>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    /// The purpose of the request that it answers.
    to: String,
    #[serde(default = "ok")]
    status: u16,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// JSON as it is; `text` in its place for what is none.
    #[serde(default)]
    json: Value,
    #[serde(default)]
    text: Option<String>,
}

fn ok() -> u16 {
    200
}

#[test]
fn every_conversation_goes_as_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let known: BTreeSet<&str> = REGISTRY.iter().map(|provider| provider.spec().name).collect();
    for folder in children(&root) {
        assert!(known.contains(name(&folder)), "`{}` belongs to no provider", folder.display());
    }
    for provider in REGISTRY {
        let mut streams_unseen: BTreeSet<&str> = provider.spec().streams.iter().map(|s| s.name).collect();
        for folder in children(&root.join(provider.spec().name)) {
            let case = read_case(&folder);
            streams_unseen.remove(case.stream.as_str());
            check(*provider, &case, &folder);
            // Afterwards, since a passing snapshot takes away what an earlier run proposed in its place.
            for file in children(&folder) {
                assert!([CASE, TRANSCRIPT].contains(&name(&file)), "nothing reads `{}`", file.display());
            }
        }
        assert!(streams_unseen.is_empty(), "{}: no case for {streams_unseen:?}", provider.spec().name);
    }
}

/// A conversation that can be spoken again, with other words in the answers.
#[derive(Clone)]
pub struct Spoken {
    pub stream: &'static StreamSpec,
    pub mode: Mode,
    pub folder: PathBuf,
    provider: &'static dyn Provider,
    case: Case,
}

/// What came of one.
#[derive(Debug, PartialEq)]
pub struct Told {
    pub records: Vec<Record>,
    /// What a walk says at its end, or the kind of failure.
    pub end: Value,
    /// What was asked.
    pub asked: usize,
}

impl Spoken {
    pub fn all(provider: &'static dyn Provider) -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(provider.spec().name);
        let spoken = |folder: PathBuf| {
            let case = read_case(&folder);
            let Conversation { stream, walk, .. } = Conversation::new(provider, &case, &folder);
            Self { stream, mode: walk.mode, folder, provider, case }
        };
        children(&root).into_iter().map(spoken).collect()
    }

    /// What is answered, and where the walk is taken up.
    pub fn words(&mut self) -> impl Iterator<Item = &mut Value> {
        let at = self.case.at.iter_mut().map(|at| &mut at.at);
        self.case.replies.iter_mut().map(|answer| &mut answer.json).chain(at)
    }

    /// The same conversation with each of its answers as `change` makes it.
    pub fn changed(&self, change: impl Fn(&mut Value)) -> Self {
        let mut changed = Self { case: self.case.clone(), folder: self.folder.clone(), ..*self };
        changed.case.replies.iter_mut().for_each(|answer| change(&mut answer.json));
        changed
    }

    pub fn told(&self) -> Told {
        let Conversation { records, transcript, answered, .. } =
            Conversation::new(self.provider, &self.case, &self.folder).run();
        let end = transcript.last().expect("something happened");
        Told { records, end: end.get("failure").unwrap_or(end).clone(), asked: answered }
    }
}

/// Every record that a provider's conversations bring, with its stream. `change` alters what is answered, which must
/// bring the same records and end in the same way.
pub fn records(
    provider: &'static dyn Provider,
    change: impl Fn(&mut Value),
) -> Vec<(&'static StreamSpec, Record)> {
    let mut found = Vec::new();
    for spoken in Spoken::all(provider) {
        let (plain, changed) = (spoken.told(), spoken.changed(&change).told());
        assert_eq!(changed.outcome(), plain.outcome(), "{}", spoken.folder.display());
        found.extend(changed.records.into_iter().map(|record| (spoken.stream, record)));
    }
    found
}

impl Told {
    fn outcome(&self) -> (Vec<&str>, &Value) {
        (self.records.iter().map(|record| record.id.as_str()).collect(), &self.end)
    }
}

/// What a folder holds, sorted; the folder must be there.
fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("`{}`: {error}", folder.display()));
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("a folder can be listed").path()).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("names of fixtures are plain")
}

fn read_case(folder: &Path) -> Case {
    let path = folder.join(CASE);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("`{}`: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("`{}`: {error}", path.display()))
}

fn check(provider: &'static dyn Provider, case: &Case, folder: &Path) {
    let transcript = Conversation::new(provider, case, folder).run().transcript;
    let text = serde_json::to_string_pretty(&transcript).expect("JSON can be written");
    insta::with_settings!({
        snapshot_path => folder,
        prepend_module_to_snapshot => false,
        omit_expression => true,
        description => case.about.as_str(),
    }, {
        insta::assert_snapshot!(TRANSCRIPT.trim_end_matches(".snap"), text);
    });
}

struct Conversation<'a> {
    provider: &'static dyn Provider,
    case: &'a Case,
    /// For messages.
    folder: &'a Path,
    stream: &'static StreamSpec,
    walk: Walk,
    answered: usize,
    transcript: Vec<Value>,
    records: Vec<Record>,
}

impl<'a> Conversation<'a> {
    fn new(provider: &'static dyn Provider, case: &'a Case, folder: &'a Path) -> Self {
        let stream = provider.spec().stream(&case.stream);
        let stream = stream.unwrap_or_else(|| panic!("{}: no stream `{}`", folder.display(), case.stream));
        let mode = Mode::parse(&case.mode).filter(|mode| stream.modes.contains(mode));
        let mode = mode.unwrap_or_else(|| panic!("{}: no walk `{}`", folder.display(), case.mode));
        for fact in stream.needs_facts {
            assert!(
                case.facts.contains_key(fact.name),
                "{}: `{}` must be known",
                folder.display(),
                fact.name
            );
        }
        let walk = Walk { mode, started_at: case.started_at, from: case.from, facts_as_of: None };
        Self {
            provider,
            case,
            folder,
            stream,
            walk,
            answered: 0,
            transcript: Vec::new(),
            records: Vec::new(),
        }
    }

    /// Speaks it to its end.
    fn run(mut self) -> Self {
        let spec = self.provider.spec();
        let walk = self.walk.clone();
        let cx = StepContext {
            stream: self.stream,
            walk: &walk,
            api_version: self.case.api_version.as_deref().unwrap_or(spec.api_version),
            page_size: self.case.page_size.unwrap_or(spec.page_size),
            facts: &self.case.facts,
            params: &self.case.params,
            options: &self.case.options,
        };
        let mut at = self.case.at.clone().unwrap_or_else(Position::start);
        let mut replies = Vec::new();
        for _ in 0..STEPS_MAX {
            match self.provider.step(&cx, &at, std::mem::take(&mut replies)) {
                Ok(Step::Send { requests, at: next }) => {
                    at = next;
                    match self.answer(&requests) {
                        Some(answers) => replies = answers,
                        None => return self.end(),
                    }
                }
                Ok(Step::Emit { page, at: next }) => {
                    self.note(json!({"emit": self.page(&page), "position": next.at}));
                    self.records.extend(page.records);
                    at = saved(&next);
                }
                Ok(Step::Done) => {
                    self.note(json!("done"));
                    return self.end();
                }
                Ok(Step::Partial { why }) => {
                    self.note(json!({"partial": why}));
                    return self.end();
                }
                Err(failure) => {
                    self.note(json!({"failure": failure.kind.label(), "message": failure.message}));
                    return self.end();
                }
            }
        }
        panic!("{}: no end after {STEPS_MAX} steps", self.folder.display())
    }

    fn note(&mut self, event: Value) {
        self.transcript.push(event);
    }

    fn end(self) -> Self {
        let folder = self.folder.display();
        assert_eq!(self.answered, self.case.replies.len(), "{folder}: replies that nothing asked for");
        self
    }

    /// The next replies, one for each request; `None` when one of them is not for the state machine.
    fn answer(&mut self, requests: &[Request]) -> Option<Vec<Reply>> {
        self.note(json!({"send": requests.iter().map(|request| self.request(request)).collect::<Vec<_>>()}));
        assert!(!requests.is_empty(), "{}: nothing is sent", self.folder.display());
        let mut accepted = Vec::new();
        for request in requests {
            let folder = self.folder.display();
            let answer = self.case.replies.get(self.answered);
            let answer = answer.unwrap_or_else(|| panic!("{folder}: no reply to {}", self.request(request)));
            assert_eq!(answer.to, request.purpose, "{folder}: reply {} answers another", self.answered);
            self.answered += 1;
            let reply = self.reply(answer);
            let verdict = self.provider.judge(request, &reply);
            if verdict != Verdict::Accept {
                self.note(json!({"verdict": format!("{verdict:?}"), "on": request.purpose}));
                return None;
            }
            accepted.push(reply);
        }
        Some(accepted)
    }

    /// Requests leave a second apart, the first a second after the walk began.
    fn reply(&self, answer: &Answer) -> Reply {
        let seconds = i64::try_from(self.answered).expect("a case is short");
        let body = match &answer.text {
            Some(text) => Body::Text(text.clone()),
            None => Body::Json(answer.json.clone()),
        };
        Reply {
            status: answer.status,
            headers: answer.headers.clone(),
            body,
            sent_at: self.walk.started_at + TimeDelta::seconds(seconds),
        }
    }

    fn request(&self, request: &Request) -> Value {
        let spec = self.provider.spec();
        for bucket in request.buckets {
            let known = spec.buckets.iter().any(|spec| spec.name == *bucket);
            assert!(known, "{}: `{bucket}` is no bucket", self.folder.display());
        }
        let method = match request.method {
            Method::Get => "GET",
            Method::Post => "POST",
        };
        let query: Vec<String> =
            request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let mut shown = json!({"line": format!("{method} {}{query}", request.path), "for": request.purpose,
            "buckets": request.buckets});
        if !request.headers.is_empty() {
            let line = |(name, value): &(&str, String)| format!("{name}: {value}");
            shown["headers"] = request.headers.iter().map(line).collect();
        }
        if let Some(body) = &request.body {
            shown["body"] = body.clone();
        }
        if request.points != 1 {
            shown["points"] = request.points.into();
        }
        shown
    }

    fn page(&self, page: &Page) -> Value {
        let mut shown =
            json!({"rows": page.records.iter().map(|record| self.row(record)).collect::<Vec<_>>()});
        if !page.met.is_empty() {
            shown["met"] = json!(page.met);
        }
        if !page.tombstones.is_empty() {
            shown["tombstones"] = serde_json::to_value(&page.tombstones).expect("tombstones are plain");
        }
        if !page.facts.is_empty() {
            shown["facts"] = json!(page.facts);
        }
        if page.progress.is_some() {
            shown["progress"] = json!(page.progress);
        }
        shown
    }

    /// The row as it is written; columns that are null are left out.
    fn row(&self, record: &Record) -> Value {
        let mut record = record.clone();
        extract::trim(self.stream, &mut record.raw);
        let (row, drift) = extract::row(self.stream, &record);
        let misfits = drift.iter().filter(|one| one.kind == DriftKind::Misfit).count();
        let cells: BTreeMap<&str, String> = self
            .stream
            .columns
            .iter()
            .zip(row.cells)
            .filter_map(|(column, cell)| Some((column.name, cell?)))
            .collect();
        let raw: Value = serde_json::from_str(&row.raw).expect("raw is JSON");
        json!({
            "id": row.id, "created_at": row.source_created_at, "updated_at": row.source_updated_at,
            "synced_at": row.synced_at, "deleted_at": row.deleted_at, "deleted_evidence": row.deleted_evidence,
            "misfits": misfits, "cells": cells, "raw": raw,
        })
    }
}

/// The position as a later process finds it.
fn saved(at: &Position) -> Position {
    let text = serde_json::to_string(at).expect("positions are plain data");
    assert!(text.len() <= POSITION_MAX, "a position of {} bytes", text.len());
    serde_json::from_str(&text).expect("what was written can be read")
}
