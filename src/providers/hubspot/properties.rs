//! The account's ticket properties: what there is to ask for, and the types of the per-account view.
//! `GET /properties/tickets` is not paged.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::tickets::TICKETS_NAME;
use super::{StreamSpec, crm_path, get, take_results};
use crate::domain::failure::Failure;
use crate::domain::record::Record;
use crate::domain::spec::ColumnType::{Boolean, Text, Timestamptz};
use crate::domain::spec::{Fact, Mode, Read, col};
use crate::domain::step::{Facts, Page, Position, Reply, Step, StepContext};
use crate::domain::values;
use crate::domain::view::{AccountView, ViewColumn, ViewType};

/// The fact that this stream learns: `[[name, type], …]` of every ticket property.
pub const TICKET_PROPERTIES: &str = "ticket_properties";

pub const FACT: Fact = Fact { name: TICKET_PROPERTIES, taught_by: "properties" };

pub const STREAM: StreamSpec = StreamSpec {
    name: "properties",
    table: "hubspot_properties",
    modes: &[Mode::Snapshot],
    needs_facts: &[],
    id: "/name",
    created_at: "/createdAt",
    updated_at: "/updatedAt",
    columns: &[
        col("label", Text, "/label"),
        col("type", Text, "/type"),
        col("field_type", Text, "/fieldType"),
        col("group_name", Text, "/groupName"),
        col("description", Text, "/description"),
        col("calculated", Boolean, "/calculated"),
        col("hubspot_defined", Boolean, "/hubspotDefined"),
        col("archived", Boolean, "/archived"),
        col("archived_at", Timestamptz, "/archivedAt"),
    ],
    merges: false,
    keep_only: &[],
    omit: &[],
    read: Read::Own,
};

pub fn step(cx: &StepContext<'_>, at: &Position, replies: Vec<Reply>) -> Result<Step, Failure> {
    if at.at == json!("read") {
        return Ok(Step::Done);
    }
    let Some(mut reply) = replies.into_iter().next() else {
        let request = get(crm_path(cx.api_version, "properties", "tickets"), "properties", &[]);
        return Ok(Step::Send { requests: vec![request], at: at.clone() });
    };
    let mut page = Page { progress: Some(1.0), ..Page::default() };
    let mut known = Vec::new();
    let asked_for: Option<BTreeSet<&str>> = cx.facts.get(TICKET_PROPERTIES).map(|fact| names(fact).collect());
    let mut shows_old = false;
    for property in take_results(&mut reply, "properties")? {
        let Some(name) = property.get("name").and_then(Value::as_str).map(str::to_owned) else {
            return Err(Failure::changed("HubSpot lists a ticket property without a `name`"));
        };
        let is_new = asked_for.as_ref().is_some_and(|known| !known.contains(name.as_str()));
        shows_old |= is_new && may_be_set(&property, cx.walk.facts_as_of);
        known.push(json!([name, property.get("type").and_then(Value::as_str).unwrap_or("string")]));
        page.records.push(Record {
            id: name,
            raw: property,
            sent_at: reply.sent_at,
            deleted: None,
            without: Vec::new(),
        });
    }
    if known.is_empty() {
        return Err(Failure::changed("HubSpot lists no ticket properties at all"));
    }
    page.facts = Facts::from([(TICKET_PROPERTIES.to_owned(), Value::Array(known))]);
    if shows_old {
        page.renews.push(TICKETS_NAME);
    }
    Ok(Step::Emit { page, at: Position { at: json!("read"), ..at.clone() } })
}

/// The names of the properties that a fact tells of.
pub fn names(fact: &Value) -> impl Iterator<Item = &str> {
    fact.as_array().into_iter().flatten().filter_map(|property| property.get(0)?.as_str())
}

/// Whether tickets may have a value of a property that is seen for the first time which no change of theirs will bring. One
/// that was created since the list was last read has none: whoever sets it moves `hs_lastmodifieddate`. Others were
/// archived, or not to be seen by this app, or come from HubSpot itself.
fn may_be_set(property: &Value, last_read: Option<DateTime<Utc>>) -> bool {
    let created = property.get("createdAt").and_then(values::timestamp);
    created.zip(last_read).is_none_or(|(created, last_read)| created < last_read)
}

/// One typed column for each property. Dates of HubSpot are days, datetimes moments; enumerations are text, several
/// values separated by `;`.
pub fn view(facts: &Facts) -> Option<AccountView> {
    let known = facts.get(TICKET_PROPERTIES)?.as_array()?;
    let column = |property: &Value| {
        let name = property.get(0)?.as_str()?.to_owned();
        let kind = match property.get(1)?.as_str()? {
            "number" => ViewType::Numeric,
            "bool" => ViewType::Boolean,
            "datetime" => ViewType::Timestamptz,
            "date" => ViewType::Date,
            _ => ViewType::Text,
        };
        let comment = format!("Ticket property {name}");
        Some(ViewColumn { path: vec!["properties".to_owned(), name.clone()], name, kind, comment })
    };
    Some(AccountView { table: "hubspot_tickets", columns: known.iter().filter_map(column).collect() })
}
