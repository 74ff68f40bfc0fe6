//! Changing an account from outside of its API, and the truth about it to compare a mirror with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Housecallpro;
use super::account::{Account, ChangeError, Kind, Patch, Standing};
use super::refusals::Refusal;
use super::render::{self, seconds};

/// The most jobs that one creation makes.
const CREATE_MAX: u32 = 100_000;

/// Something that happens to an account. As JSON: `{"do": "cancel", "id": "job_…", "by": "user"}`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Values of a job, customer or employee by JSON pointer, and pointers to what answers shall leave out. Its
    /// `updated_at` becomes now, or stays with `silent`.
    Change {
        id: String,
        #[serde(default)]
        fields: BTreeMap<String, Value>,
        #[serde(default)]
        omit: BTreeSet<String>,
        #[serde(default)]
        silent: bool,
    },
    /// Jobs of invented values under the given ones, at one location or at the company itself.
    Create {
        #[serde(default)]
        location: Option<String>,
        #[serde(default = "one")]
        count: u32,
        #[serde(default)]
        fields: BTreeMap<String, Value>,
    },
    /// By the customer (`user`) or by the company (`pro`). The job stays in the lists.
    Cancel { id: String, by: By },
    /// Out of the lists. `left`: what a read by its id answers from now on.
    Delete {
        id: String,
        #[serde(default)]
        left: Left,
    },
    /// Back in the lists.
    Restore { id: String },
    /// A record goes to another location, or to the company itself.
    Move {
        id: String,
        #[serde(default)]
        location: Option<String>,
    },
    /// Whether the callers may look into a location.
    Location { location: String, lost: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    User,
    Pro,
}

/// What is left of a deleted record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Left {
    /// 404.
    #[default]
    Nothing,
    /// 400 "Archived job".
    Archive,
    /// 200, the record as before: it was never deleted.
    Record,
}

fn one() -> u32 {
    1
}

/// Why the control endpoint did nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ControlError {
    #[error("there is no account `{0}`")]
    NoAccount(String),
    #[error("{0} jobs are more than {CREATE_MAX}")]
    TooMany(u32),
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        Self::control(&error.to_string())
    }
}

impl Housecallpro {
    /// Makes something happen, now. Returns the ids of the jobs it made or the record it touched.
    pub fn change(&self, account: &str, change: &Change) -> Result<Vec<String>, ControlError> {
        let now_s = seconds(self.shared.now_ms());
        let account = self.account(account).ok_or_else(|| ControlError::NoAccount(account.to_owned()))?;
        let mut account = account.write().unwrap_or_else(PoisonError::into_inner);
        apply(&mut account, change, now_s)
    }

    /// Everything there is or was: jobs, customers, employees.
    pub fn truth(&self, account: &str) -> Result<Vec<Value>, ControlError> {
        let account = self.account(account).ok_or_else(|| ControlError::NoAccount(account.to_owned()))?;
        let account = &*account.read().unwrap_or_else(PoisonError::into_inner);
        let of_kind =
            |kind: Kind| account.table(kind).iter().map(move |record| render::truth(account, kind, record));
        Ok(Kind::ALL.into_iter().flat_map(of_kind).collect())
    }

    /// The company and the locations below it, as `GET /company` shows each of them.
    pub fn companies(&self, account: &str) -> Result<Vec<Value>, ControlError> {
        let account = self.account(account).ok_or_else(|| ControlError::NoAccount(account.to_owned()))?;
        let account = account.read().unwrap_or_else(PoisonError::into_inner);
        Ok(account.companies.iter().map(render::company).collect())
    }

    /// What `GET /control/housecallpro/accounts` tells of one.
    pub(super) fn describe(&self, account: &Account) -> Value {
        let locations = account.companies.iter().skip(1);
        let count = |kind| account.table(kind).iter().filter(|record| render::is_listed(record)).count();
        json!({
            "account": account.id(), "name": account.companies[0].name, "api_key": Self::api_key(&account.id()),
            "locations": locations.map(|place| json!({"id": place.id.to_string(), "name": place.name})).collect::<Vec<_>>(),
            "jobs": count(Kind::Job), "customers": count(Kind::Customer), "employees": count(Kind::Employee),
            "most_at_once": self.most_at_once(&account.id()), "came_early": self.came_early(&account.id()),
        })
    }
}

fn apply(account: &mut Account, change: &Change, now_s: i64) -> Result<Vec<String>, ControlError> {
    let id = match change {
        Change::Change { id, fields, omit, silent } => {
            let patch = Patch { fields: fields.clone(), omit: omit.clone() };
            account.change(id, &patch, (!silent).then_some(now_s))?;
            id
        }
        Change::Create { location, count, fields } => {
            return create(account, location.as_deref(), *count, fields, now_s);
        }
        Change::Cancel { id, by } => {
            account.cancel(id, *by == By::User, now_s)?;
            id
        }
        Change::Delete { id, left } => {
            let standing = match left {
                Left::Nothing => Standing::Gone,
                Left::Archive => Standing::Archived,
                Left::Record => Standing::Hidden,
            };
            account.stand(id, standing)?;
            id
        }
        Change::Restore { id } => {
            account.stand(id, Standing::Listed)?;
            id
        }
        Change::Move { id, location } => {
            let company = location.as_deref().map_or(Ok(0), |id| find_location(account, id))?;
            account.shift(id, company)?;
            id
        }
        Change::Location { location, lost } => {
            let index = find_location(account, location)?;
            account.companies[index].lost = *lost;
            return Ok(Vec::new());
        }
    };
    Ok(vec![id.clone()])
}

fn create(
    account: &mut Account,
    location: Option<&str>,
    count: u32,
    fields: &BTreeMap<String, Value>,
    now_s: i64,
) -> Result<Vec<String>, ControlError> {
    if count > CREATE_MAX {
        return Err(ControlError::TooMany(count));
    }
    let company = location.map_or(Ok(0), |id| find_location(account, id))?;
    let patch = Patch { fields: fields.clone(), omit: BTreeSet::new() };
    let mut made = Vec::new();
    for _ in 0..count {
        let id = account.create(company, now_s);
        if !fields.is_empty() {
            account.change(&id, &patch, None)?;
        }
        made.push(id);
    }
    Ok(made)
}

fn find_location(account: &Account, id: &str) -> Result<usize, ChangeError> {
    account.location(id).ok_or_else(|| ChangeError::Location(id.to_owned()))
}
