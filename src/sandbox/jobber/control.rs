//! Changing an account from outside of its API, and the truth about it to compare a mirror with.

use std::collections::HashMap;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Jobber;
use super::account::{Account, Visit, decoded, encoded};
use super::seed;
use crate::sandbox::world::history_end;

/// Something that happens to an account. As JSON: `{"do": "complete", "id": "Z2lk…"}`. Ids are as the API sends them,
/// times milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// A job of invented values, with its visits.
    Create {
        #[serde(default)]
        title: Option<String>,
    },
    /// `quiet`: it counts as no meaningful change, and `updatedAt` stays.
    Change {
        id: String,
        title: String,
        #[serde(default)]
        quiet: bool,
    },
    /// `null`: unscheduled.
    Schedule {
        id: String,
        start_ms: Option<i64>,
        end_ms: Option<i64>,
    },
    Complete {
        id: String,
    },
    Archive {
        id: String,
    },
    /// For good, with its visits.
    Delete {
        id: String,
    },
    /// The client of a job gets another name; the job does not change by that.
    RenameClient {
        id: String,
        name: String,
    },
    AddVisit {
        job: String,
        start_ms: Option<i64>,
    },
    /// Jobs do not change by that.
    MoveVisit {
        id: String,
        start_ms: Option<i64>,
    },
    AssignVisit {
        id: String,
        user: u64,
    },
    CompleteVisit {
        id: String,
    },
    DeleteVisit {
        id: String,
    },
}

/// Why the control endpoint did nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ControlError {
    #[error("there is no account `{0}`")]
    NoAccount(String),
    #[error("there is no job, visit or client `{0}` that this can be done to")]
    NoRecord(String),
}

impl Jobber {
    /// Makes something happen, now. Returns the id of what it happened to.
    pub fn change(&self, account: &str, change: &Change) -> Result<String, ControlError> {
        let now_ms = self.shared.now_ms();
        let world = self.accounts.get(account).ok_or_else(|| ControlError::NoAccount(account.to_owned()))?;
        let mut world = world.write().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Create { title } => {
                let end = history_end(self.shared.now());
                let mut job = seed::job(&mut world, now_ms, now_ms, end);
                job.title = title.clone().or(job.title);
                seed::put_visits(&mut world, &job, end);
                let id = encoded("Job", job.n);
                world.put(job);
                Ok(id)
            }
            Change::AddVisit { job, start_ms } => {
                let job = known("Job", job)?;
                let n = world.next;
                world.next += 1;
                let (title, users) = ("Added".to_owned(), vec![1]);
                let (created_ms, start_ms, end_ms) = (now_ms, *start_ms, None);
                let visit = Visit {
                    n,
                    job,
                    title,
                    created_ms,
                    start_ms,
                    end_ms,
                    completed: false,
                    users,
                    deleted: false,
                };
                world.visits.insert(n, visit);
                Ok(encoded("Visit", n))
            }
            Change::Change { id, .. }
            | Change::Schedule { id, .. }
            | Change::Complete { id }
            | Change::Archive { id }
            | Change::Delete { id } => job(&mut world, id, change, now_ms),
            Change::RenameClient { id, name } => {
                let client = known("Client", id)?;
                let client = world.clients.get_mut(&client).ok_or(ControlError::NoRecord(id.clone()))?;
                client.name.clone_from(name);
                client.updated_ms = now_ms;
                Ok(id.clone())
            }
            Change::MoveVisit { id, .. }
            | Change::AssignVisit { id, .. }
            | Change::CompleteVisit { id }
            | Change::DeleteVisit { id } => visit(&mut world, id, change),
        }
    }

    /// Every client there is, with all fields of the API.
    pub fn clients(&self, account: &str) -> Result<Vec<Value>, ControlError> {
        let world = self.accounts.get(account).ok_or_else(|| ControlError::NoAccount(account.to_owned()))?;
        let world = world.read().unwrap_or_else(PoisonError::into_inner);
        Ok(world.clients.values().map(super::account::client).collect())
    }

    /// Every job there is or was, one object each: `{"state": "live|deleted", "record", "visits"}`, records with all
    /// fields of the API.
    pub fn truth(&self, account: &str) -> Result<Vec<Value>, ControlError> {
        let now_ms = self.shared.now_ms();
        let world = self.accounts.get(account).ok_or_else(|| ControlError::NoAccount(account.to_owned()))?;
        let world = world.read().unwrap_or_else(PoisonError::into_inner);
        let mut visits: HashMap<u64, Vec<Value>> = HashMap::new();
        for visit in world.visits.values().filter(|visit| !visit.deleted) {
            visits.entry(visit.job).or_default().push(world.visit(visit, now_ms));
        }
        let line = |job: &super::account::Job| {
            let state = if job.deleted { "deleted" } else { "live" };
            json!({"state": state, "record": world.job(job, now_ms), "visits": visits.remove(&job.n)})
        };
        Ok(world.jobs.values().map(line).collect())
    }
}

fn known(kind: &str, id: &str) -> Result<u64, ControlError> {
    decoded(kind, id).ok_or_else(|| ControlError::NoRecord(id.to_owned()))
}

fn job(world: &mut Account, id: &str, change: &Change, now_ms: i64) -> Result<String, ControlError> {
    let mut job = world.live_job(id).cloned().ok_or_else(|| ControlError::NoRecord(id.to_owned()))?;
    match change {
        Change::Change { title, quiet, .. } => {
            job.title = Some(title.clone());
            job.updated_ms = if *quiet { job.updated_ms } else { now_ms };
        }
        Change::Schedule { start_ms, end_ms, .. } => {
            (job.start_ms, job.end_ms, job.updated_ms) = (*start_ms, *end_ms, now_ms);
        }
        Change::Complete { .. } => (job.completed_ms, job.updated_ms) = (Some(now_ms), now_ms),
        Change::Archive { .. } => (job.archived, job.updated_ms) = (true, now_ms),
        _ => {
            job.deleted = true;
            world
                .visits
                .values_mut()
                .filter(|visit| visit.job == job.n)
                .for_each(|visit| visit.deleted = true);
        }
    }
    world.put(job);
    Ok(id.to_owned())
}

fn visit(world: &mut Account, id: &str, change: &Change) -> Result<String, ControlError> {
    let visit = known("Visit", id)?;
    let visit = world.visits.get_mut(&visit).filter(|visit| !visit.deleted);
    let visit = visit.ok_or_else(|| ControlError::NoRecord(id.to_owned()))?;
    match change {
        Change::MoveVisit { start_ms, .. } => (visit.start_ms, visit.end_ms) = (*start_ms, *start_ms),
        // Who is on a visit is a set.
        Change::AssignVisit { user, .. } if visit.users.contains(user) => {}
        Change::AssignVisit { user, .. } => visit.users.push(*user),
        Change::CompleteVisit { .. } => visit.completed = true,
        _ => visit.deleted = true,
    }
    Ok(id.to_owned())
}
