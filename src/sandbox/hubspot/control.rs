//! Changing an account from outside of its API, and the truth about it to compare a mirror with.

use std::sync::PoisonError;

use axum::body::{Body, Bytes};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Hubspot;
use super::account::{Account, ChangeError, Moment, Values};
use super::properties::Selection;
use super::reference;
use super::refusals::Refusal;
use super::route::link_kind;
use super::ticket::{Link, LinkKind, Standing, Ticket};
use crate::sandbox::faults::{FaultName, Spot};

/// Truth lines written while the account is locked for reading.
const TRUTH_LINES: usize = 500;
/// The most tickets that one bulk creation makes.
const BULK_MAX: u32 = 1_000_000;

/// Something that happens to an account. As JSON: `{"do": "archive", "id": 9001}`. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Properties of a live ticket; `null` unsets, `""` clears. `modified_ms` defaults to now.
    Change {
        id: u64,
        properties: Values,
        #[serde(default)]
        modified_ms: Option<i64>,
    },
    /// A ticket of invented values under the given ones; the id must be above all there are.
    Create {
        #[serde(default)]
        id: Option<u64>,
        #[serde(default)]
        properties: Values,
        #[serde(default)]
        modified_ms: Option<i64>,
    },
    /// Many tickets, all with the same create and modified time.
    BulkCreate {
        count: u32,
        #[serde(default)]
        properties: Values,
        #[serde(default)]
        modified_ms: Option<i64>,
    },
    /// One write to each of many live tickets: all from an id on, at most `count`, with the same modified time.
    BulkChange {
        #[serde(default)]
        from_id: u64,
        count: usize,
        properties: Values,
        #[serde(default)]
        modified_ms: Option<i64>,
    },
    Archive {
        id: u64,
    },
    Restore {
        id: u64,
    },
    /// For good.
    Delete {
        id: u64,
    },
    /// `new_id` (the default): the survivor is a third ticket; else it is the primary one.
    Merge {
        primary: u64,
        other: u64,
        #[serde(default = "yes")]
        new_id: bool,
    },
    /// `to`: `companies`, `contacts` or `deals`.
    Associate {
        id: u64,
        to: String,
        to_id: u64,
    },
    Disassociate {
        id: u64,
        to: String,
        to_id: u64,
    },
    /// `kind`: HubSpot's type, for example `string`.
    AddProperty {
        name: String,
        kind: String,
    },
}

fn yes() -> bool {
    true
}

/// What a change did: the ids it made or touched; of a bulk creation the first and the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    pub ids: Vec<u64>,
    /// How many tickets.
    pub count: usize,
}

/// Why the control endpoint did nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ControlError {
    #[error("there is no account {0}")]
    NoAccount(u64),
    #[error("there is no association with `{0}`")]
    NoKind(String),
    #[error("{0} tickets are more than {BULK_MAX}")]
    TooMany(u32),
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl Hubspot {
    /// Makes something happen, now. Search sees it after the lag that is in force.
    pub fn change(&self, hub_id: u64, change: &Change) -> Result<Changed, ControlError> {
        let now_ms = self.shared.now_ms();
        let moment = Moment { now_ms, seen_ms: now_ms.saturating_add(self.search_lag_ms()) };
        let account = self.accounts.get(&hub_id).ok_or(ControlError::NoAccount(hub_id))?;
        let mut account = account.write().unwrap_or_else(PoisonError::into_inner);
        apply(&mut account, change, moment)
    }

    fn search_lag_ms(&self) -> i64 {
        let spot = Spot { provider: super::NAME, purpose: "search" };
        let set = i64::try_from(self.shared.options.search_lag.as_millis()).unwrap_or(i64::MAX);
        self.shared.faults.number(FaultName::SearchLag, spot).unwrap_or(set).max(0)
    }

    /// Every ticket there is or was, one JSON object per line:
    /// `{"account", "state": "live|archived|deleted|merged", "merged_into", "record", "associations"}`.
    pub fn truth(self: &std::sync::Arc<Self>, hub_id: u64) -> Result<Body, ControlError> {
        if !self.accounts.contains_key(&hub_id) {
            return Err(ControlError::NoAccount(hub_id));
        }
        let hubspot = self.clone();
        let chunks = stream::iter((0..).step_by(TRUTH_LINES).map_while(move |from| {
            let chunk = hubspot.truth_lines(hub_id, from);
            (!chunk.is_empty()).then(|| Ok::<_, std::io::Error>(Bytes::from(chunk)))
        }));
        Ok(Body::from_stream(chunks))
    }

    /// What tickets refer to, as lists show it: `{"kind": "owners|pipelines|properties", "record"}`.
    pub fn reference(&self, hub_id: u64) -> Result<Vec<Value>, ControlError> {
        let account = self.accounts.get(&hub_id).ok_or(ControlError::NoAccount(hub_id))?;
        let account = account.read().unwrap_or_else(PoisonError::into_inner);
        let pipelines = reference::PIPELINES.iter().filter_map(|known| reference::pipeline_of(known.id));
        let owners = [false, true].into_iter().flat_map(reference::owner_range);
        let owners = owners.map(|index| reference::owner(index, &account.domain));
        let properties = account.catalogue.all().iter().map(super::properties::Property::to_json);
        let line = |kind: &'static str| move |record: Value| json!({"kind": kind, "record": record});
        let lines = owners.map(line("owners")).chain(pipelines.map(line("pipelines")));
        Ok(lines.chain(properties.map(line("properties"))).collect())
    }

    /// The lines of [`TRUTH_LINES`] tickets from an index on.
    fn truth_lines(&self, hub_id: u64, from: usize) -> Vec<u8> {
        let Some(account) = self.accounts.get(&hub_id) else { return Vec::new() };
        let account = account.read().unwrap_or_else(PoisonError::into_inner);
        let mut out = Vec::new();
        for ticket in account.tickets.iter().skip(from).take(TRUTH_LINES) {
            write_truth(&mut out, &account, ticket);
        }
        out
    }

    /// How many tickets an account has in each state.
    pub fn counts(&self, hub_id: u64) -> Option<Value> {
        let account = self.accounts.get(&hub_id)?.read().unwrap_or_else(PoisonError::into_inner);
        let count = |state| account.tickets.iter().filter(|ticket| state_of(ticket).0 == state).count();
        let (live, archived, deleted, merged) =
            (count("live"), count("archived"), count("deleted"), count("merged"));
        Some(json!({"live": live, "archived": archived, "deleted": deleted, "merged": merged}))
    }
}

fn apply(account: &mut Account, change: &Change, at: Moment) -> Result<Changed, ControlError> {
    let one = |id: u64| Ok(Changed { ids: vec![id], count: 1 });
    match change {
        Change::Change { id, properties, modified_ms } => {
            account.change(*id, properties, *modified_ms, at)?;
            one(*id)
        }
        Change::Create { id, properties, modified_ms } => {
            one(account.create(*id, properties, *modified_ms, at)?)
        }
        Change::BulkCreate { count, properties, modified_ms } => {
            bulk_create(account, *count, properties, modified_ms.unwrap_or(at.now_ms), at)
        }
        Change::BulkChange { from_id, count, properties, modified_ms } => {
            bulk_change(account, (*from_id, *count), properties, modified_ms.unwrap_or(at.now_ms), at)
        }
        Change::Archive { id } => account.archive(*id, at).map_err(Into::into).and_then(|()| one(*id)),
        Change::Restore { id } => account.restore(*id, at).map_err(Into::into).and_then(|()| one(*id)),
        Change::Delete { id } => account.delete(*id, at).map_err(Into::into).and_then(|()| one(*id)),
        Change::Merge { primary, other, new_id } => one(account.merge(*primary, *other, *new_id, at)?),
        Change::Associate { id, to, to_id } => {
            account.associate(*id, link(to, *to_id)?)?;
            one(*id)
        }
        Change::Disassociate { id, to, to_id } => {
            account.disassociate(*id, link(to, *to_id)?)?;
            one(*id)
        }
        Change::AddProperty { name, kind } => {
            account.add_property(name, kind, at)?;
            Ok(Changed { ids: Vec::new(), count: 0 })
        }
    }
}

fn link(to: &str, to_id: u64) -> Result<Link, ControlError> {
    let kind = link_kind(to).ok_or_else(|| ControlError::NoKind(to.to_owned()))?;
    Ok(Link { kind, to: to_id })
}

fn bulk_create(
    account: &mut Account,
    count: u32,
    properties: &Values,
    modified_ms: i64,
    at: Moment,
) -> Result<Changed, ControlError> {
    if count > BULK_MAX {
        return Err(ControlError::TooMany(count));
    }
    let first = account.next_id;
    for _ in 0..count {
        account.create(None, properties, Some(modified_ms), at)?;
    }
    let ids = if count == 0 { Vec::new() } else { vec![first, account.next_id - 1] };
    Ok(Changed { ids, count: count as usize })
}

fn bulk_change(
    account: &mut Account,
    (from_id, count): (u64, usize),
    properties: &Values,
    modified_ms: i64,
    at: Moment,
) -> Result<Changed, ControlError> {
    let live = account.tickets.iter().filter(|ticket| ticket.version.standing == Standing::Live);
    let ids: Vec<u64> = live.map(|ticket| ticket.id).filter(|id| *id >= from_id).take(count).collect();
    for &id in &ids {
        account.change(id, properties, Some(modified_ms), at)?;
    }
    Ok(Changed { count: ids.len(), ids })
}

fn state_of(ticket: &Ticket) -> (&'static str, Option<u64>) {
    match ticket.version.standing {
        Standing::Live => ("live", None),
        Standing::Archived { .. } => ("archived", None),
        Standing::Deleted => ("deleted", None),
        Standing::Merged { into } => ("merged", Some(into)),
    }
}

fn write_truth(out: &mut Vec<u8>, account: &Account, ticket: &Ticket) {
    let ties = |kind| Account::links(ticket, kind).map(|to| to.to_string()).collect::<Vec<_>>();
    let (state, into) = state_of(ticket);
    let facts = json!({
        "account": account.hub_id.to_string(), "state": state, "merged_into": into.map(|id| id.to_string()),
        "associations": {
            "companies": ties(LinkKind::Company), "contacts": ties(LinkKind::Contact), "deals": ties(LinkKind::Deal),
        },
    });
    let facts = facts.to_string();
    // The record is rendered already; it goes in before the closing brace of the facts.
    out.extend_from_slice(&facts.as_bytes()[..facts.len() - 1]);
    out.extend_from_slice(b",\"record\":");
    ticket.version.write(out, &account.catalogue, &Selection::All);
    out.extend_from_slice(b"}}\n");
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        Self::invalid(&error.to_string())
    }
}
