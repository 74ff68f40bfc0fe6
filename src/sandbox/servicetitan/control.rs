//! Changing a tenant from outside of its API, and the truth about it to compare a mirror with.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::kinds::Kind;
use super::seed;
use super::table::{TICKS_PER_MS, write_ticks};
use super::{ServiceTitan, Tenant};

/// Something that happens to a tenant. As JSON: `{"do": "set", "kind": "jobs", "id": 7000001, "fields": {…}}`.
/// Times are milliseconds since 1970 and default to now.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Fields of a record. `modified_ms` is also the moment that the feed's lag is counted from.
    Set {
        kind: Kind,
        id: u64,
        fields: Map<String, Value>,
        #[serde(default)]
        modified_ms: Option<i64>,
    },
    /// A record of these fields under an id above all there are.
    Create {
        kind: Kind,
        fields: Map<String, Value>,
        #[serde(default)]
        modified_ms: Option<i64>,
    },
    /// `jobStatus` becomes `Canceled`, with an entry in the log of cancellations.
    Cancel {
        id: u64,
    },
    /// A record goes without a trace: its feed never tells.
    Remove {
        kind: Kind,
        id: u64,
    },
    /// The app is bound to this booking provider, or to none.
    Bind {
        booking_provider: Option<u64>,
    },
    /// The admin disables the app: its tokens die, its credentials buy none.
    Disable,
    Enable,
    /// The app loses these scopes, in tokens that are asked for from now on, and gets back all others.
    LoseScopes {
        scopes: BTreeSet<String>,
    },
    /// Every `continueFrom` that was given out is refused from now on.
    ForgetFeeds,
}

/// Why the control endpoint did nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ControlError {
    #[error("there is no tenant {0}")]
    NoTenant(u64),
    #[error("there is no record {id} of the kind `{kind}`")]
    NoRecord { kind: String, id: u64 },
}

impl ServiceTitan {
    /// Makes something happen, now. Returns the ids that it made or touched.
    pub fn change(&self, tenant: u64, change: &Change) -> Result<Vec<u64>, ControlError> {
        let now_ms = self.shared.now_ms();
        let held = self.tenants.get(&tenant).ok_or(ControlError::NoTenant(tenant))?;
        let mut door = held.door.lock().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Bind { booking_provider } => door.bound_to = *booking_provider,
            Change::Disable => {
                door.disabled = true;
                self.tokens.end(Some(tenant), now_ms);
                self.auth.revoke_account(&tenant.to_string());
            }
            Change::Enable => door.disabled = false,
            Change::LoseScopes { scopes } => door.lost_scopes.clone_from(scopes),
            Change::ForgetFeeds => door.epoch += 1,
            record => {
                drop(door);
                let mut tenant = self.world(held, tenant).write().unwrap_or_else(PoisonError::into_inner);
                return tenant.change(record, now_ms);
            }
        }
        Ok(Vec::new())
    }

    /// Every record there is or was, one JSON object per line: `{"kind", "state": "active|inactive", "record"}`, and
    /// `{"kind", "state": "removed", "id"}`.
    pub fn truth(&self, tenant: u64) -> Result<Vec<Value>, ControlError> {
        let held = self.tenants.get(&tenant).ok_or(ControlError::NoTenant(tenant))?;
        let world = self.world(held, tenant).read().unwrap_or_else(PoisonError::into_inner);
        let mut lines = Vec::new();
        for (kind, table) in &world.tables {
            for row in table.rows() {
                let state = if row.active { "active" } else { "inactive" };
                lines.push(json!({"kind": kind, "state": state, "record": row.value()}));
            }
            for id in &table.removed {
                lines.push(json!({"kind": kind, "state": "removed", "id": id}));
            }
        }
        Ok(lines)
    }
}

impl Tenant {
    fn change(&mut self, change: &Change, now_ms: i64) -> Result<Vec<u64>, ControlError> {
        match change {
            Change::Set { kind, id, fields, modified_ms } => {
                self.set(*kind, *id, fields, modified_ms.unwrap_or(now_ms))?;
                Ok(vec![*id])
            }
            Change::Create { kind, fields, modified_ms } => {
                Ok(vec![self.create(*kind, fields, modified_ms.unwrap_or(now_ms))])
            }
            Change::Cancel { id } => {
                let fields = Map::from_iter([("jobStatus".to_owned(), json!("Canceled"))]);
                self.set(Kind::Jobs, *id, &fields, now_ms)?;
                let entry = json!({"jobId": id, "reasonId": 301, "memo": null, "createdById": 601});
                let entry = entry.as_object().cloned().unwrap_or_default();
                Ok(vec![*id, self.create(Kind::JobCanceledLogs, &entry, now_ms)])
            }
            Change::Remove { kind, id } => {
                let removed = self.tables.get_mut(kind).is_some_and(|table| table.remove(*id));
                let missing = || ControlError::NoRecord { kind: kind.word(), id: *id };
                if removed { Ok(vec![*id]) } else { Err(missing()) }
            }
            _ => Ok(Vec::new()),
        }
    }

    fn set(
        &mut self,
        kind: Kind,
        id: u64,
        fields: &Map<String, Value>,
        at_ms: i64,
    ) -> Result<(), ControlError> {
        let missing = || ControlError::NoRecord { kind: kind.word(), id };
        let row = self.tables.get(&kind).and_then(|table| table.get(id)).ok_or_else(missing)?;
        let mut whole = row.value().as_object().cloned().unwrap_or_default();
        whole.extend(fields.clone());
        self.put(kind, id, whole, at_ms);
        Ok(())
    }

    fn create(&mut self, kind: Kind, fields: &Map<String, Value>, at_ms: i64) -> u64 {
        let id = self.tables.get(&kind).map_or(0, super::table::Table::last_id) + 1;
        let mut whole = fields.clone();
        whole.insert("createdOn".to_owned(), json!(write_ticks(at_ms * TICKS_PER_MS)));
        self.put(kind, id, whole, at_ms);
        id
    }

    /// Times of changes have all seven digits too.
    fn put(&mut self, kind: Kind, id: u64, mut fields: Map<String, Value>, at_ms: i64) {
        self.changes += 1;
        let modified = at_ms * TICKS_PER_MS + self.changes % TICKS_PER_MS;
        if kind != Kind::JobCanceledLogs {
            fields.insert("modifiedOn".to_owned(), json!(write_ticks(modified)));
        }
        let row = seed::row(id, &fields, modified, at_ms);
        self.tables.entry(kind).or_default().put(row);
    }
}
