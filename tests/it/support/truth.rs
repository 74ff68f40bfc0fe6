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

const MIRRORED: &str = "SELECT h.id, h.subject, h.content, h.pipeline_id, h.stage_id, h.priority, h.category, h.owner_id,
        h.merged_into, h.company_ids, h.contact_ids, h.raw->'properties' AS properties,
        t.subject AS t_subject, t.description, t.status, t.provider_status, t.pipeline, t.owner_name, t.customer_id,
        t.priority AS t_priority, t.category AS t_category,
        (extract(epoch FROM t.created_at) * 1000)::bigint AS created, (extract(epoch FROM t.updated_at) * 1000)::bigint AS updated,
        (extract(epoch FROM t.deleted_at) * 1000)::bigint AS deleted, h.deleted_at = t.deleted_at AS same_end
     FROM mirror.hubspot_tickets h JOIN mirror.tickets t USING (connection_id, id)";

/// Holds all tickets against all rows, and the counts of `mirror.freshness` against what can be counted.
pub async fn hold_against_mirror(app: &TestApp) {
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
    differs("merged_into", ticket["merged_into"].clone(), &row["merged_into"]);
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
        ("hubspot_owner_id", ["owner_id", "owner_id"]),
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
