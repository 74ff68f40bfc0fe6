//! HubSpot in memory: lists, search by window and id, batch reads, associations, archiving. It holds requests to the
//! documented limits.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use fieldmirror::domain::step::{Body, Reply, Request};
use proptest::sample::Index;
use serde_json::{Value, json};

const LIST_MAX: usize = 100;
const SEARCH_MAX: usize = 200;
const BATCH_MAX: usize = 100;
const ASSOCIATION_INPUTS_MAX: usize = 1_000;
const SEARCH_BODY_MAX: usize = 3_000;
const FILTERS_MAX: usize = 3;
/// Associations of one ticket in one answer: few, so that pages are walked.
const ASSOCIATIONS_IN_PAGE: usize = 2;

#[derive(Debug, Clone, PartialEq)]
pub struct Ticket {
    pub modified: DateTime<Utc>,
    pub archived: Option<DateTime<Utc>>,
    /// Deleted for good.
    pub gone: bool,
    /// How many companies it is associated with.
    pub companies: usize,
    /// Tickets that went into this one.
    pub merged: Vec<u64>,
}

#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// Modifies a living ticket.
    Touch,
    Archive,
    /// Leaves the modification time alone, as archiving does.
    Restore,
    Delete,
    /// Into the next living ticket, which is modified.
    Merge,
    Create,
}

#[derive(Debug, Clone)]
pub struct World {
    tickets: BTreeMap<u64, Ticket>,
    now: DateTime<Utc>,
    ever_gone: BTreeSet<u64>,
}

impl World {
    pub fn new(tickets: BTreeMap<u64, Ticket>, now: DateTime<Utc>) -> Self {
        let ever_gone = tickets.iter().filter(|(_, t)| t.archived.is_some()).map(|(id, _)| *id).collect();
        Self { tickets, now, ever_gone }
    }

    /// Tickets that are the same in both.
    pub fn untouched<'a>(&'a self, later: &Self) -> impl Iterator<Item = (u64, &'a Ticket)> {
        let changed = |id: &u64| {
            // Archived and restored in between is not standing still.
            self.tickets[id] != later.tickets[id]
                || self.ever_gone.contains(id) != later.ever_gone.contains(id)
        };
        let same: Vec<u64> = self.tickets.keys().copied().filter(|id| !changed(id)).collect();
        same.into_iter().map(|id| (id, &self.tickets[&id]))
    }

    /// Whether it was archived or deleted at any time.
    pub fn was_ever_gone(&self, id: u64) -> bool {
        self.ever_gone.contains(&id)
    }

    /// Ids of its companies, the last of which is the primary one.
    pub fn companies(&self, id: u64) -> Vec<String> {
        let mut companies: Vec<String> =
            (0..self.tickets[&id].companies).map(|n| format!("{id}{n}")).collect();
        if !companies.is_empty() {
            companies.rotate_right(1);
        }
        companies
    }

    pub fn change(&mut self, whom: Index, change: Change) {
        self.now += TimeDelta::milliseconds(700);
        if let Change::Create = change {
            let id = self.tickets.last_key_value().map_or(1, |(last, _)| last + 1);
            let ticket =
                Ticket { modified: self.now, archived: None, gone: false, companies: 1, merged: Vec::new() };
            self.tickets.insert(id, ticket);
            return;
        }
        if self.tickets.is_empty() {
            return;
        }
        let ids: Vec<u64> = self.tickets.keys().copied().collect();
        let id = *whom.get(&ids);
        if let Change::Merge = change {
            return self.merge(id);
        }
        let ticket = self.tickets.get_mut(&id).expect("it is there");
        match change {
            Change::Touch if ticket.archived.is_none() => ticket.modified = self.now,
            Change::Archive if ticket.archived.is_none() => ticket.archived = Some(self.now),
            Change::Restore if ticket.archived.is_some() && !ticket.gone => ticket.archived = None,
            Change::Delete => ticket.gone = true,
            _ => {}
        }
        if ticket.gone || ticket.archived.is_some() {
            self.ever_gone.insert(id);
        }
    }

    fn merge(&mut self, id: u64) {
        let living: Vec<u64> = self.there(false).map(|(id, _)| id).collect();
        let Some(&into) = living.iter().find(|other| **other > id).filter(|_| living.contains(&id)) else {
            return;
        };
        let survivor = self.tickets.get_mut(&into).expect("it is there");
        survivor.merged.push(id);
        survivor.modified = self.now;
        self.tickets.get_mut(&id).expect("it is there").gone = true;
        self.ever_gone.insert(id);
    }

    pub fn answer(&mut self, request: &Request) -> Reply {
        let sent_at = self.now;
        self.now += TimeDelta::milliseconds(300);
        let (status, body) = match request.purpose {
            "list" => (200, self.list(request, false)),
            "list_archived" => (200, self.list(request, true)),
            "search" => (200, self.search(request)),
            "batch_read" => self.batch_read(request, false),
            "batch_read_archived" => self.batch_read(request, true),
            "associations" => (200, self.associations(request)),
            other => panic!("nobody answers `{other}`"),
        };
        Reply { status, headers: BTreeMap::new(), body: Body::Json(body), sent_at }
    }

    fn there(&self, archived: bool) -> impl Iterator<Item = (u64, &Ticket)> {
        let standing = move |ticket: &&Ticket| !ticket.gone && ticket.archived.is_some() == archived;
        self.tickets.iter().map(|(id, ticket)| (*id, ticket)).filter(move |(_, ticket)| standing(ticket))
    }

    fn list(&self, request: &Request, archived: bool) -> Value {
        let asked = |name: &str| request.query.iter().find(|(key, _)| *key == name).map(|(_, v)| v.as_str());
        assert_eq!(asked("archived"), Some(if archived { "true" } else { "false" }));
        let limit: usize = asked("limit").expect("a limit").parse().expect("a number");
        assert!((1..=LIST_MAX).contains(&limit), "a list of {limit}");
        // The cursor is the id that comes next, as HubSpot's is in fact.
        let after: u64 = asked("after").map_or(0, |after| after.parse().expect("our own cursor"));
        let mut rest = self.there(archived).filter(|(id, _)| *id >= after);
        let page: Vec<Value> = rest.by_ref().take(limit).map(|(id, ticket)| shown(id, ticket)).collect();
        let mut body = json!({"results": page});
        if let Some((next, _)) = rest.next() {
            body["paging"] =
                json!({"next": {"after": next.to_string(), "link": "https://elsewhere.example"}});
        }
        body
    }

    fn search(&self, request: &Request) -> Value {
        let body = request.body.as_ref().expect("a search has a body");
        assert!(body.to_string().chars().count() <= SEARCH_BODY_MAX, "a search of {body}");
        assert!(body.get("after").is_none(), "an offset in a search");
        let limit = usize::try_from(body["limit"].as_u64().expect("a limit")).expect("a small one");
        assert!((1..=SEARCH_MAX).contains(&limit), "a search for {limit}");
        assert_eq!(body["sorts"], json!([{"propertyName": "hs_object_id", "direction": "ASCENDING"}]));
        let groups = body["filterGroups"].as_array().expect("filters");
        assert_eq!(groups.len(), 1);
        let filters = groups[0]["filters"].as_array().expect("filters");
        assert!(filters.len() <= FILTERS_MAX, "{} filters", filters.len());
        let fits = |id: u64, ticket: &Ticket| filters.iter().all(|filter| passes(filter, id, ticket));
        let hits: Vec<(u64, &Ticket)> = self.there(false).filter(|(id, ticket)| fits(*id, ticket)).collect();
        let page: Vec<Value> = hits.iter().take(limit).map(|(id, ticket)| shown(*id, ticket)).collect();
        let mut answer = json!({"total": hits.len(), "results": page});
        if hits.len() > limit {
            answer["paging"] = json!({"next": {"after": limit.to_string()}});
        }
        answer
    }

    fn batch_read(&self, request: &Request, archived: bool) -> (u16, Value) {
        assert_eq!(request.query, [("archived", archived.to_string())]);
        let body = request.body.as_ref().expect("a batch has a body");
        let properties = body["properties"].as_array().expect("properties");
        assert!(properties.contains(&json!("hs_merged_object_ids")), "merged ids are always asked for");
        let asked = ids(body, BATCH_MAX);
        let found: BTreeMap<u64, &Ticket> =
            self.there(archived).filter(|(id, _)| asked.contains(id)).collect();
        // Not in the order in which they were asked for; ids that were merged away are answered with their survivors.
        let mut results: Vec<Value> = found.iter().rev().map(|(id, ticket)| shown(*id, ticket)).collect();
        let survivors =
            self.there(archived).filter(|(_, ticket)| ticket.merged.iter().any(|id| asked.contains(id)));
        results.extend(survivors.map(|(id, ticket)| shown(id, ticket)));
        let missing: Vec<String> =
            asked.iter().filter(|id| !found.contains_key(id)).map(u64::to_string).collect();
        let mut answer = json!({"status": "COMPLETE", "results": results});
        if missing.is_empty() {
            return (200, answer);
        }
        answer["numErrors"] = json!(1);
        answer["errors"] = json!([{"category": "OBJECT_NOT_FOUND", "context": {"ids": missing}}]);
        (207, answer)
    }

    fn associations(&self, request: &Request) -> Value {
        let body = request.body.as_ref().expect("a batch has a body");
        let _limit = ids(body, ASSOCIATION_INPUTS_MAX);
        let of_companies = request.path.contains("/companies/");
        let inputs = body["inputs"].as_array().expect("inputs");
        let rows = inputs.iter().filter_map(|input| {
            let id: u64 = input["id"].as_str().expect("an id").parse().expect("a number");
            let from: usize =
                input["after"].as_str().map_or(0, |after| after.parse().expect("our own cursor"));
            let count = if of_companies { self.tickets[&id].companies } else { 0 };
            (count > 0).then(|| association_row(id, from, count))
        });
        json!({"status": "COMPLETE", "results": rows.collect::<Vec<_>>()})
    }
}

fn shown(id: u64, ticket: &Ticket) -> Value {
    let merged = ticket.merged.iter().map(u64::to_string).collect::<Vec<_>>().join(";");
    let properties = json!({"hs_object_id": id.to_string(), "hs_merged_object_ids": merged});
    json!({"id": id.to_string(), "properties": properties, "updatedAt": ticket.modified,
        "archived": ticket.archived.is_some(), "archivedAt": ticket.archived})
}

/// The ids that a batch names, each once.
fn ids(body: &Value, max: usize) -> BTreeSet<u64> {
    let inputs = body["inputs"].as_array().expect("inputs");
    assert!((1..=max).contains(&inputs.len()), "a batch of {}", inputs.len());
    let ids: BTreeSet<u64> =
        inputs.iter().map(|input| input["id"].as_str().expect("an id").parse().expect("a number")).collect();
    assert_eq!(ids.len(), inputs.len(), "an id twice in one batch");
    ids
}

fn passes(filter: &Value, id: u64, ticket: &Ticket) -> bool {
    let value: i128 = filter["value"].as_str().expect("a value").parse().expect("a number");
    let modified = i128::from(ticket.modified.timestamp_millis());
    match (filter["propertyName"].as_str(), filter["operator"].as_str()) {
        (Some("hs_lastmodifieddate"), Some("GTE")) => modified >= value,
        (Some("hs_lastmodifieddate"), Some("LT")) => modified < value,
        (Some("hs_object_id"), Some("GT")) => i128::from(id) > value,
        other => panic!("no such filter: {other:?}"),
    }
}

/// Ids alternate between text and number, as versions of the API do; the last one is the primary company.
fn association_row(id: u64, from: usize, count: usize) -> Value {
    let to: Vec<Value> = (from..count)
        .take(ASSOCIATIONS_IN_PAGE)
        .map(|n| {
            let company = format!("{id}{n}");
            let company = match n % 2 {
                0 => json!(company),
                _ => serde_json::from_str(&company).expect("digits are a number"),
            };
            let primary = if n + 1 == count { 26 } else { 339 };
            json!({"toObjectId": company, "associationTypes": [{"category": "HUBSPOT_DEFINED", "typeId": primary}]})
        })
        .collect();
    let mut row = json!({"from": {"id": id.to_string()}, "to": to});
    let next = from + ASSOCIATIONS_IN_PAGE;
    if next < count {
        row["paging"] = json!({"next": {"after": next.to_string()}});
    }
    row
}
