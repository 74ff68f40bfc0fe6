//! Every ticket that the sandbox has or had, held against every row that the mirror has. What a row should say is
//! worked out here by hand from the sandbox's own records, not by the code under test.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::DateTime;
use serde_json::{Value, json};

use super::app::{PATIENCE, TestApp};

/// Pipeline, stage, their names, closed.
const STAGES: [(&str, &str, &str, &str, bool); 9] = [
    ("0", "1", "Support Pipeline", "New", false),
    ("0", "2", "Support Pipeline", "Waiting on contact", false),
    ("0", "3", "Support Pipeline", "Waiting on us", false),
    ("0", "4", "Support Pipeline", "Closed", true),
    ("74112201", "148220011", "Field Service", "Requested", false),
    ("74112201", "148220012", "Field Service", "Scheduled", false),
    ("74112201", "4", "Field Service", "On site", false),
    ("74112201", "148220014", "Field Service", "Done", true),
    ("74112201", "148220015", "Field Service", "Called off", true),
];

/// The first 13 owners, who are those that tickets name; ids go up by 7.
const OWNERS: [&str; 13] = [
    "Dispatch Queue",
    "Ana Ruiz",
    "Ben Adler",
    "Chloé Martin",
    "Dev Shah",
    "Ella Novak",
    "Finn Larsen",
    "Gita Rao",
    "Hugo Blanc",
    "Iris Meyer",
    "Jack O'Neil",
    "Kim Park",
    "Leo Gone",
];
const OWNER_FIRST: u64 = 5_100_200;

pub const MIRRORED: &str = "SELECT h.id, h.subject, h.content, h.pipeline_id, h.stage_id, h.priority, h.category, h.owner_id,
        h.merged_into, h.company_ids, h.contact_ids, h.raw->'properties' AS properties,
        t.subject AS t_subject, t.description, t.status, t.provider_status, t.pipeline, t.owner_name, t.customer_id,
        t.priority AS t_priority, t.category AS t_category,
        (extract(epoch FROM t.created_at) * 1000)::bigint AS created, (extract(epoch FROM t.updated_at) * 1000)::bigint AS updated,
        (extract(epoch FROM t.deleted_at) * 1000)::bigint AS deleted, h.deleted_at IS NOT DISTINCT FROM t.deleted_at AS same_end,
        t.source, t.owner_id AS t_owner_id, t.merged_into AS t_merged_into, t.url, t.provider, t.raw = h.raw AS same_raw,
        (extract(epoch FROM t.closed_at) * 1000)::bigint AS closed,
        t.synced_at BETWEEN now() - interval '1 hour' AND now() + interval '1 minute' AS synced,
        t.connection_name = (SELECT name FROM mirror.connections c WHERE c.id = t.connection_id) AS named
     FROM mirror.hubspot_tickets h JOIN mirror.tickets t USING (connection_id, id)";

/// Every column of a unified view stands in the query that a comparison is made by.
pub async fn no_column_is_left_out(app: &TestApp, view: &'static str, query: &str) {
    let columns = match view {
        "jobs" => {
            "SELECT column_name AS name FROM information_schema.columns WHERE (table_schema, table_name) = ('mirror', 'jobs')"
        }
        "bookings" => {
            "SELECT column_name AS name FROM information_schema.columns WHERE (table_schema, table_name) = ('mirror', 'bookings')"
        }
        _ => {
            "SELECT column_name AS name FROM information_schema.columns WHERE (table_schema, table_name) = ('mirror', 'tickets')"
        }
    };
    let named =
        |name: &str| query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).any(|word| word == name);
    let all = app.rows(columns).await;
    assert!(all.len() > 20, "{view} has {} columns", all.len());
    let left: Vec<String> = all.iter().map(|row| text(&row["name"])).filter(|name| !named(name)).collect();
    assert_eq!(left, [] as [&str; 0], "columns of `{view}` that are not compared");
}

/// The columns of a row that nothing was expected of.
pub fn not_compared(row: &Value, expected: &Value) -> Vec<String> {
    let known = |name: &String| name == "id" || expected.get(name).is_some();
    row.as_object().into_iter().flat_map(|row| row.keys()).filter(|name| !known(name)).cloned().collect()
}

/// Rows that are newly gone say what they said before, in every column but those that `tell` it. Returns their ids.
#[track_caller]
pub fn says_what_it_said(before: &[Value], after: &[Value], tell: &[&str]) -> Vec<String> {
    let [was_gone, mut is_gone] = [before, after].map(|rows| {
        let gone = rows.iter().filter(|row| !row["deleted"].is_null());
        gone.map(|row| text(&row["id"])).collect::<Vec<_>>()
    });
    is_gone.retain(|id| !was_gone.contains(id));
    let of = |rows: &[Value], id: &String| {
        let mut row = rows.iter().find(|row| text(&row["id"]) == *id).cloned().unwrap_or_default();
        row.as_object_mut().into_iter().for_each(|row| row.retain(|name, _| !tell.contains(&name.as_str())));
        row
    };
    for id in &is_gone {
        assert_eq!(of(after, id), of(before, id), "{id} is gone");
    }
    is_gone
}

/// Holds all tickets against all rows, and the counts of `mirror.freshness` against what can be counted.
pub async fn hold_against_mirror(app: &TestApp) {
    no_column_is_left_out(app, "tickets", MIRRORED).await;
    // A walk writes page by page: something may be on its way.
    let began = Instant::now();
    let mut differences = differences(app).await;
    while !differences.is_empty() && began.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(250)).await;
        differences = self::differences(app).await;
    }
    let shown: Vec<&String> = differences.iter().take(10).collect();
    assert!(differences.is_empty(), "{} differences, the first: {shown:#?}", differences.len());
}

async fn differences(app: &TestApp) -> Vec<String> {
    let mut rows: BTreeMap<String, Value> =
        app.rows(MIRRORED).await.into_iter().map(|row| (text(&row["id"]), row)).collect();
    let mut found = Vec::new();
    for ticket in app.truth().await {
        let id = text(&ticket["record"]["id"]);
        match rows.remove(&id) {
            Some(row) => compare(&id, &ticket, &row, &mut found),
            None => found.push(format!("{id}, {}, is not in the mirror", ticket["state"])),
        }
    }
    found.extend(rows.into_keys().map(|id| format!("{id} is in the mirror only")));
    for row in app.rows(COUNTS).await {
        if row["rows"] != row["counted"] || row["deleted_rows"] != row["counted_deleted"] {
            found.push(row.to_string());
        }
    }
    found
}

const COUNTS: &str = "SELECT f.stream, f.rows, f.deleted_rows, c.counted, c.counted_deleted FROM mirror.freshness f
    JOIN (SELECT 'tickets' AS stream, count(*) FILTER (WHERE deleted_at IS NULL) AS counted,
              count(deleted_at) AS counted_deleted FROM mirror.hubspot_tickets
          UNION ALL SELECT 'pipeline_stages', count(*) FILTER (WHERE deleted_at IS NULL), count(deleted_at)
              FROM mirror.hubspot_pipeline_stages
          UNION ALL SELECT 'owners', count(*) FILTER (WHERE deleted_at IS NULL), count(deleted_at) FROM mirror.hubspot_owners
          UNION ALL SELECT 'properties', count(*) FILTER (WHERE deleted_at IS NULL), count(deleted_at)
              FROM mirror.hubspot_properties) c USING (stream)";

fn compare(id: &str, ticket: &Value, row: &Value, found: &mut Vec<String>) {
    let mut differs = |what: &str, expected: Value, mirrored: &Value| {
        if expected != *mirrored {
            found.push(format!(
                "{what} of {id}, {}: {expected}, and in the mirror {mirrored}",
                ticket["state"]
            ));
        }
    };
    let state = ticket["state"].as_str().unwrap_or_default();
    for column in ["merged_into", "t_merged_into"] {
        differs(column, ticket["merged_into"].clone(), &row[column]);
    }
    differs("provider", json!("hubspot"), &row["provider"]);
    for column in ["same_end", "same_raw", "synced", "named"] {
        differs(column, json!(true), &row[column]);
    }
    if matches!(state, "deleted" | "merged") {
        // What such a ticket said last is the provider's secret; that it is gone is not.
        differs("whether it is gone", json!(true), &json!(row["deleted"].is_number()));
        return;
    }
    let record = &ticket["record"];
    let properties = &record["properties"];
    differs("properties", properties.clone(), &row["properties"]);
    for (property, columns) in [
        ("subject", ["subject", "t_subject"]),
        ("content", ["content", "description"]),
        ("hs_pipeline", ["pipeline_id", "pipeline_id"]),
        ("hs_pipeline_stage", ["stage_id", "stage_id"]),
        ("hs_ticket_priority", ["priority", "t_priority"]),
        ("hs_ticket_category", ["category", "t_category"]),
        ("hubspot_owner_id", ["owner_id", "t_owner_id"]),
        ("source_type", ["source", "source"]),
    ] {
        for column in columns {
            // HubSpot clears a value by the empty text.
            let value = Some(&properties[property]).filter(|value| **value != "");
            differs(column, value.cloned().unwrap_or_default(), &row[column]);
        }
    }
    differs("created_at", millis(&record["createdAt"]), &row["created"]);
    differs("updated_at", millis(&record["updatedAt"]), &row["updated"]);
    differs("deleted_at", millis(&record["archivedAt"]), &row["deleted"]);
    differs("url", record["url"].clone(), &row["url"]);
    let closed = Some(&properties["closed_date"]).filter(|date| **date != "");
    differs("closed_at", closed.map(millis).unwrap_or_default(), &row["closed"]);
    let stands = [text(&properties["hs_pipeline"]), text(&properties["hs_pipeline_stage"])];
    let known = STAGES.iter().find(|known| [known.0, known.1] == stands).expect("a known stage");
    differs("pipeline", json!(known.2), &row["pipeline"]);
    differs("provider_status", json!(known.3), &row["provider_status"]);
    differs("status", json!(if known.4 { "closed" } else { "open" }), &row["status"]);
    let owner: Option<u64> = text(&properties["hubspot_owner_id"]).parse().ok();
    let owner = owner.map(|id| OWNERS[usize::try_from((id - OWNER_FIRST) / 7).expect("a small number")]);
    differs("owner_name", json!(owner), &row["owner_name"]);
    // Associations of archived tickets are not told.
    if state == "live" {
        let (companies, contacts) =
            (&ticket["associations"]["companies"], &ticket["associations"]["contacts"]);
        let customer = if companies[0].is_null() { &contacts[0] } else { &companies[0] };
        differs("customer_id", customer.clone(), &row["customer_id"]);
        differs("company_ids", companies.clone(), &row["company_ids"]);
        differs("contact_ids", contacts.clone(), &row["contact_ids"]);
    }
}

/// Milliseconds since 1970 of a time, or null.
fn millis(time: &Value) -> Value {
    let time = time.as_str().map(|time| DateTime::parse_from_rfc3339(time).expect("a time"));
    json!(time.map(|time| time.timestamp_millis()))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
