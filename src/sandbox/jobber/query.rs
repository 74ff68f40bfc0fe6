//! Answers GraphQL queries about an account: checks them against the part of Jobber's schema that readers of jobs ask
//! for, reckons what they cost, and picks what they select.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::DateTime;
use serde_json::{Map, Value, json};

use super::account::{Account, Job, Visit, client, decoded, encoded, user};
use crate::domain::graphql::{Field, Operation};

/// A connection without `first` counts, and is cut, as if it had this.
const FIRST_DEFAULT: u64 = 100;

/// Fields by type: a scalar (empty), an object of a type, or a connection of a type in brackets.
const TYPES: &[(&str, &[(&str, &str)])] = &[
    (
        "Query",
        &[
            ("account", "Account"),
            ("jobs", "[Job]"),
            ("job", "Job"),
            ("visits", "[Visit]"),
            ("visit", "Visit"),
            ("clients", "[Client]"),
            ("client", "Client"),
            ("users", "[User]"),
        ],
    ),
    ("Mutation", &[("appDisconnect", "AppDisconnectPayload")]),
    ("AppDisconnectPayload", &[("app", "Application"), ("userErrors", "MutationErrors")]),
    ("Application", &[("name", "")]),
    ("MutationErrors", &[("message", ""), ("path", "")]),
    ("Account", &[("id", ""), ("name", "")]),
    (
        "Job",
        &[
            ("id", ""),
            ("jobNumber", ""),
            ("title", ""),
            ("instructions", ""),
            ("jobStatus", ""),
            ("jobType", ""),
            ("billingType", ""),
            ("startAt", ""),
            ("endAt", ""),
            ("completedAt", ""),
            ("createdAt", ""),
            ("updatedAt", ""),
            ("total", ""),
            ("jobBalanceTotals", "JobBalanceTotals"),
            ("jobberWebUri", ""),
            ("client", "Client"),
            ("property", "Property"),
        ],
    ),
    ("JobBalanceTotals", &[("totalAmount", ""), ("outstandingAmount", "")]),
    ("Property", &[("id", ""), ("address", "PropertyAddress")]),
    (
        "PropertyAddress",
        &[("street", ""), ("city", ""), ("province", ""), ("postalCode", ""), ("country", "")],
    ),
    (
        "Client",
        &[
            ("id", ""),
            ("name", ""),
            ("firstName", ""),
            ("lastName", ""),
            ("companyName", ""),
            ("isCompany", ""),
            ("isLead", ""),
            ("isArchived", ""),
            ("createdAt", ""),
            ("updatedAt", ""),
        ],
    ),
    (
        "Visit",
        &[
            ("id", ""),
            ("title", ""),
            ("createdAt", ""),
            ("startAt", ""),
            ("endAt", ""),
            ("visitStatus", ""),
            ("job", "Job"),
            ("assignedUsers", "[User]"),
        ],
    ),
    ("User", &[("id", ""), ("name", "Name")]),
    ("Name", &[("first", ""), ("last", ""), ("full", "")]),
    ("PageInfo", &[("hasNextPage", ""), ("hasPreviousPage", ""), ("startCursor", ""), ("endCursor", "")]),
];

/// What a root list may be narrowed by.
const FILTERS: &[(&str, &[&str])] = &[
    (
        "jobs",
        &["status", "jobType", "createdAt", "startAt", "endAt", "completedAt", "includeUnscheduled", "ids"],
    ),
    ("visits", &["createdAt", "startAt", "endAt", "jobIds"]),
    ("clients", &["createdAt", "updatedAt"]),
    ("users", &["status"]),
];

/// What a query goes through besides its own text.
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
#[derive(Default)]
pub struct Manners {
    /// `Type.field` that the schema does not have, for once; `jobs.filter.ids` for a filter.
    pub unknown: Vec<String>,
    /// `Type.field` that the app's scopes do not cover.
    pub hidden: Vec<String>,
    /// Lists name their own page as the next one.
    pub stuck: bool,
    /// Cursors are not known any more.
    pub refused: bool,
    /// Lists are empty.
    pub empty: bool,
    /// Lists come in an order of their own.
    pub unsorted: bool,
    /// Cursors stand for records, and not for places.
    pub by_record: bool,
    pub now_ms: i64,
}

/// A query that is as it should be.
pub struct Query<'a> {
    pub operation: &'a Operation,
    pub variables: &'a Value,
    pub manners: &'a Manners,
}

/// A page of a connection.
struct Listed {
    nodes: Vec<Value>,
    offset: usize,
    more: bool,
}

impl Query<'_> {
    /// What is wrong with it, as one of Jobber's errors.
    pub fn check(&self) -> Result<(), Value> {
        for field in &self.operation.fields {
            self.check_filter(field)?;
        }
        self.check_fields(self.root(), &self.operation.fields)
    }

    fn root(&self) -> &'static str {
        if self.operation.kind == "mutation" { "Mutation" } else { "Query" }
    }

    fn check_fields(&self, of: &str, fields: &[Field]) -> Result<(), Value> {
        for field in fields {
            let named = format!("{of}.{}", field.name);
            let kind = kind(of, &field.name).filter(|_| !self.manners.unknown.contains(&named));
            let Some(kind) = kind else {
                return Err(json!({
                    "message": format!("Field '{}' doesn't exist on type '{of}'", field.name),
                    "locations": [{"line": 1, "column": 1}], "path": ["query", field.name],
                    "extensions": {"code": "undefinedField", "typeName": of, "fieldName": field.name},
                }));
            };
            match kind.strip_prefix('[') {
                None if kind.is_empty() => {}
                None => self.check_fields(kind, &field.fields)?,
                Some(node) => self.check_connection(node.trim_end_matches(']'), field)?,
            }
        }
        Ok(())
    }

    fn check_connection(&self, node: &str, field: &Field) -> Result<(), Value> {
        for part in &field.fields {
            match part.name.as_str() {
                "nodes" => self.check_fields(node, &part.fields)?,
                "edges" => part
                    .fields
                    .iter()
                    .filter(|part| part.name == "node")
                    .try_for_each(|part| self.check_fields(node, &part.fields))?,
                "pageInfo" => self.check_fields("PageInfo", &part.fields)?,
                "totalCount" => {}
                _ => self.check_fields(&format!("{node}Connection"), std::slice::from_ref(part))?,
            }
        }
        Ok(())
    }

    fn check_filter(&self, field: &Field) -> Result<(), Value> {
        let known = FILTERS.iter().find(|(name, _)| *name == field.name).map_or(&[][..], |(_, keys)| keys);
        let filter = field.argument("filter").map(|filter| filter.value(self.variables)).unwrap_or_default();
        for key in filter.as_object().into_iter().flat_map(Map::keys) {
            let named = format!("{}.filter.{key}", field.name);
            if !known.contains(&key.as_str()) || self.manners.unknown.contains(&named) {
                let problem = json!({"path": [key], "explanation": "Field is not defined on the filter"});
                return Err(json!({
                    "message": format!("Variable $filter was provided invalid value for {key} (Field is not defined)"),
                    "locations": [{"line": 1, "column": 1}],
                    "extensions": {"value": filter, "problems": [problem]},
                }));
            }
        }
        if field.name == "users" && filter.get("status").is_none() {
            return Err(
                json!({"message": "Field 'users' is missing required arguments: filter", "extensions": {
                "code": "missingRequiredArguments"}}),
            );
        }
        Ok(())
    }

    /// A field that the app's scopes do not cover, as one of Jobber's errors.
    pub fn hidden(&self) -> Option<Value> {
        let (of, name) =
            self.manners.hidden.iter().filter_map(|hidden| hidden.split_once('.')).find(|(of, name)| {
                let mut path = vec![(self.root(), &self.operation.fields)];
                while let Some((at, fields)) = path.pop() {
                    for field in fields {
                        if at == *of && field.name == *name {
                            return true;
                        }
                        let kind = kind(at, &field.name).unwrap_or(at);
                        let kind = if kind.is_empty() { at } else { kind.trim_matches(['[', ']']) };
                        path.push((kind, &field.fields));
                    }
                }
                false
            })?;
        Some(json!({
            "message": format!("The field {name} on an object of type {of} was hidden due to permissions"),
            "locations": [{"line": 1, "column": 1}], "path": [name],
        }))
    }

    /// What is asked for at most: 1 a field, a connection as often as it has places.
    pub fn requested(&self) -> u64 {
        self.cost(&self.operation.fields)
    }

    fn cost(&self, fields: &[Field]) -> u64 {
        let one = |field: &Field| match field.name.as_str() {
            "nodes" | "edges" | "node" => self.cost(&field.fields),
            _ if is_connection(field) => {
                let (page, rest): (Vec<Field>, Vec<Field>) =
                    field.fields.iter().cloned().partition(|part| part.name == "pageInfo");
                1 + self.first(field) * self.cost(&rest) + self.cost(&page)
            }
            _ => 1 + self.cost(&field.fields),
        };
        fields.iter().map(one).sum()
    }

    fn first(&self, field: &Field) -> u64 {
        field
            .argument("first")
            .and_then(|first| first.value(self.variables).as_u64())
            .unwrap_or(FIRST_DEFAULT)
    }

    /// The answer's `data`, and what it cost.
    pub fn answer(&self, account: &Account) -> Result<(Value, u64), Value> {
        let mut data = Map::new();
        let mut spent = 0;
        for field in &self.operation.fields {
            let value = self.root_value(account, field, &mut spent)?;
            data.insert(field.key().to_owned(), value);
        }
        Ok((Value::Object(data), spent))
    }

    fn root_value(&self, account: &Account, field: &Field, spent: &mut u64) -> Result<Value, Value> {
        let now_ms = self.manners.now_ms;
        let id = || {
            field.argument("id").map(|id| id.value(self.variables).as_str().unwrap_or_default().to_owned())
        };
        let id = id().unwrap_or_default();
        *spent += 1;
        let one = match field.name.as_str() {
            "account" => Some(account.account()),
            "job" => account.live_job(&id).map(|job| account.job(job, now_ms)),
            "visit" => decoded("Visit", &id)
                .and_then(|n| account.visits.get(&n))
                .filter(|visit| !visit.deleted)
                .map(|visit| account.visit(visit, now_ms)),
            "client" => decoded("Client", &id).and_then(|n| account.clients.get(&n)).map(client),
            "appDisconnect" => Some(json!({"app": {"name": "fieldmirror"}, "userErrors": []})),
            _ => {
                let listed = self.listed(account, field)?;
                let node = kind("Query", &field.name).unwrap_or_default().trim_matches(['[', ']']);
                return Ok(self.connection(listed, node, &field.fields, spent));
            }
        };
        let kind = kind(self.root(), &field.name).unwrap_or_default();
        Ok(one.map_or(Value::Null, |one| self.picked(&one, kind, &field.fields, spent)))
    }

    fn listed(&self, account: &Account, field: &Field) -> Result<Listed, Value> {
        let now_ms = self.manners.now_ms;
        let filter = field.argument("filter").map(|filter| filter.value(self.variables)).unwrap_or_default();
        let page = |nodes: &mut dyn Iterator<Item = Value>| self.page(field, nodes);
        let job = |job: &Job| account.job(job, now_ms);
        match field.name.as_str() {
            "jobs" if self.manners.unsorted => {
                page(&mut account.jobs.values().filter(|one| !one.deleted).map(job))
            }
            "jobs" => {
                let ids = filter.get("ids").and_then(Value::as_array);
                let newest = account.by_update.iter().rev().filter_map(|(_, n)| account.jobs.get(n));
                let wanted = newest.filter(|job| {
                    within(filter.get("createdAt"), Some(job.created_ms))
                        && within(filter.get("startAt"), job.start_ms)
                        && ids.is_none_or(|ids| ids.iter().any(|id| *id == encoded("Job", job.n)))
                });
                if self.ascending(field) {
                    return page(&mut wanted.collect::<Vec<_>>().into_iter().rev().map(job));
                }
                page(&mut wanted.map(job))
            }
            "visits" => {
                let jobs = filter.get("jobIds").and_then(Value::as_array);
                let wanted = |visit: &&Visit| {
                    !visit.deleted
                        && within(filter.get("createdAt"), Some(visit.created_ms))
                        && within(filter.get("startAt"), visit.start_ms)
                        && jobs.is_none_or(|jobs| jobs.iter().any(|id| *id == encoded("Job", visit.job)))
                };
                page(&mut account.visits.values().filter(wanted).map(|visit| account.visit(visit, now_ms)))
            }
            "clients" => {
                let wanted = account.clients.values().filter(|client| {
                    within(filter.get("updatedAt"), Some(client.updated_ms))
                        && within(filter.get("createdAt"), Some(client.created_ms))
                });
                page(&mut wanted.map(client))
            }
            _ => page(&mut account.users.values().map(user)),
        }
    }

    /// Cursors are places in the list, as a GraphQL library of Rails has them, so a list that changes meanwhile shifts
    /// under them; or they stand for records, as the Relay specification would have them. The documentation says neither.
    fn page(&self, field: &Field, nodes: &mut dyn Iterator<Item = Value>) -> Result<Listed, Value> {
        let refused = || {
            json!({"message": format!("Invalid cursor for argument 'after' on Field '{}'.", field.name),
                "path": [field.name], "extensions": {"code": "argumentLiteralsIncompatible"}})
        };
        let offset = self.skip_to(field, nodes).ok_or_else(refused)?;
        if self.manners.empty {
            return Ok(Listed { nodes: Vec::new(), offset: 0, more: false });
        }
        let size = usize::try_from(self.first(field)).unwrap_or(usize::MAX);
        let mut nodes: Vec<Value> = nodes.take(size.saturating_add(1)).collect();
        let more = nodes.len() > size || self.manners.stuck;
        nodes.truncate(size);
        let offset = if self.manners.stuck { offset.saturating_sub(nodes.len()) } else { offset };
        Ok(Listed { nodes, offset, more })
    }

    /// Passes over what comes before the cursor. Returns how many they are.
    fn skip_to(&self, field: &Field, mut nodes: &mut dyn Iterator<Item = Value>) -> Option<usize> {
        let after = field.argument("after").map(|after| after.value(self.variables)).unwrap_or_default();
        if after.is_null() {
            return Some(0);
        }
        let behind = behind(after.as_str().filter(|_| !self.manners.refused)?)?;
        if self.manners.by_record {
            let place = Iterator::position(&mut nodes, |node| node["id"] == behind.as_str());
            return place.map(|place| place + 1);
        }
        let place = behind.parse().ok()?;
        Some(nodes.take(place).count())
    }

    /// The cursor of the record at a place.
    fn cursor(&self, place: usize, node: &Value) -> String {
        let place = if self.manners.by_record {
            node["id"].as_str().unwrap_or_default().to_owned()
        } else {
            place.to_string()
        };
        URL_SAFE_NO_PAD.encode(place)
    }

    fn ascending(&self, field: &Field) -> bool {
        let sort = field.argument("sort").map(|sort| sort.value(self.variables)).unwrap_or_default();
        sort.pointer("/0/direction").and_then(Value::as_str) == Some("ASCENDING")
    }

    fn connection(&self, listed: Listed, node: &str, fields: &[Field], spent: &mut u64) -> Value {
        let Listed { nodes, offset, more } = listed;
        let mut answer = Map::new();
        for field in fields {
            let value = match field.name.as_str() {
                "nodes" => nodes.iter().map(|value| self.picked(value, node, &field.fields, spent)).collect(),
                "edges" => {
                    let of = field.field("node").map(|node| node.fields.as_slice()).unwrap_or_default();
                    let edges = nodes.iter().enumerate().map(|(index, value)| {
                        json!({"cursor": self.cursor(offset + index + 1, value), "node": self.picked(value, node, of, spent)})
                    });
                    edges.collect()
                }
                "pageInfo" => {
                    let end = nodes.last().map(|last| self.cursor(offset + nodes.len(), last));
                    let start = nodes.first().map(|first| self.cursor(offset + 1, first));
                    let info = json!({"hasNextPage": more, "hasPreviousPage": offset > 0, "endCursor": end,
                        "startCursor": start});
                    *spent += 1;
                    self.picked(&info, "PageInfo", &field.fields, spent)
                }
                _ => json!(offset + nodes.len()),
            };
            answer.insert(field.key().to_owned(), value);
        }
        Value::Object(answer)
    }

    /// What is selected of a value with every field.
    fn picked(&self, value: &Value, of: &str, fields: &[Field], spent: &mut u64) -> Value {
        if let Value::Array(items) = value {
            return items.iter().map(|item| self.picked(item, of, fields, spent)).collect();
        }
        let mut answer = Map::new();
        for field in fields {
            let found = value.get(&field.name).cloned().unwrap_or_default();
            *spent += 1;
            let found = match kind(of, &field.name).unwrap_or_default() {
                _ if found.is_null() => found,
                "" => found,
                connection if connection.starts_with('[') => {
                    let first = usize::try_from(self.first(field)).unwrap_or(usize::MAX);
                    let all = found.as_array().cloned().unwrap_or_default();
                    let mut rest = all.into_iter();
                    let offset = self.skip_to(field, &mut rest).unwrap_or(0);
                    let nodes: Vec<Value> = rest.by_ref().take(first).collect();
                    let listed = Listed { nodes, offset, more: rest.next().is_some() };
                    self.connection(listed, connection.trim_matches(['[', ']']), &field.fields, spent)
                }
                object => self.picked(&found, object, &field.fields, spent),
            };
            answer.insert(field.key().to_owned(), found);
        }
        Value::Object(answer)
    }
}

fn kind(of: &str, name: &str) -> Option<&'static str> {
    if name == "__typename" {
        return Some("");
    }
    let (_, fields) = TYPES.iter().find(|(known, _)| *known == of)?;
    fields.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
}

fn is_connection(field: &Field) -> bool {
    field.field("nodes").is_some() || field.field("edges").is_some()
}

/// `Iso8601DateTimeRangeInput`, both ends inclusive. What has no time is in no range.
fn within(range: Option<&Value>, at_ms: Option<i64>) -> bool {
    let Some(range) = range.filter(|range| !range.is_null()) else { return true };
    let end = |name: &str| {
        let text = range.get(name)?.as_str()?;
        DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_millis())
    };
    at_ms.is_some_and(|at| {
        end("after").is_none_or(|from| at >= from) && end("before").is_none_or(|to| at <= to)
    })
}

fn behind(cursor: &str) -> Option<String> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()
}
