//! What tickets refer to: pipelines and stages, owners, the account itself.

use serde_json::{Value, json};

use super::account::Account;

/// Owners who are there, and owners who have left.
pub const OWNERS_LIVE: usize = 12;
pub const OWNERS_ARCHIVED: usize = 3;
/// The most owners on a page, and how many without a limit.
pub const OWNERS_PAGE_MAX: usize = 500;
pub const OWNERS_PAGE: usize = 100;

pub struct Stage {
    pub id: &'static str,
    pub label: &'static str,
    pub closed: bool,
}

pub struct Pipeline {
    pub id: &'static str,
    pub label: &'static str,
    pub stages: &'static [Stage],
}

const fn stage(id: &'static str, label: &'static str, closed: bool) -> Stage {
    Stage { id, label, closed }
}

/// Stage `4` is in both, closed in one and open in the other: a stage is known by pipeline *and* stage.
pub const PIPELINES: &[Pipeline] = &[
    Pipeline {
        id: "0",
        label: "Support Pipeline",
        stages: &[
            stage("1", "New", false),
            stage("2", "Waiting on contact", false),
            stage("3", "Waiting on us", false),
            stage("4", "Closed", true),
        ],
    },
    Pipeline {
        id: "74112201",
        label: "Field Service",
        stages: &[
            stage("148220011", "Requested", false),
            stage("148220012", "Scheduled", false),
            stage("4", "On site", false),
            stage("148220014", "Done", true),
            stage("148220015", "Called off", true),
        ],
    },
];

const SINCE: &str = "2024-01-15T08:00:00Z";

/// All pipelines, not paged.
pub fn pipelines() -> Value {
    json!({"results": (0..PIPELINES.len()).map(pipeline).collect::<Vec<_>>()})
}

/// One pipeline by id.
pub fn pipeline_of(id: &str) -> Option<Value> {
    PIPELINES.iter().position(|known| known.id == id).map(pipeline)
}

fn pipeline(order: usize) -> Value {
    let known = &PIPELINES[order];
    let stages = known.stages.iter().enumerate().map(|(order, stage)| {
        let state = if stage.closed { "CLOSED" } else { "OPEN" };
        json!({
            "id": stage.id, "label": stage.label, "displayOrder": order, "archived": false,
            "metadata": {"ticketState": state, "isClosed": stage.closed.to_string()},
            "createdAt": SINCE, "updatedAt": SINCE, "writePermissions": "CRM_PERMISSIONS_ENFORCEMENT",
        })
    });
    json!({
        "id": known.id, "label": known.label, "displayOrder": order, "archived": false,
        "createdAt": SINCE, "updatedAt": SINCE, "stages": stages.collect::<Vec<_>>(),
    })
}

/// The id of the `index`th owner, which is not the id of their user.
pub fn owner_id(index: usize) -> u64 {
    5_100_200 + 7 * index as u64
}

/// The `index`th owner: the first [`OWNERS_LIVE`] are there, the others have left; the first is a queue.
pub fn owner(index: usize, domain: &str) -> Value {
    #[rustfmt::skip]
    const NAMES: [(&str, &str); OWNERS_LIVE + OWNERS_ARCHIVED] = [
        ("Dispatch", "Queue"), ("Ana", "Ruiz"), ("Ben", "Adler"), ("Chloé", "Martin"), ("Dev", "Shah"), ("Ella", "Novak"),
        ("Finn", "Larsen"), ("Gita", "Rao"), ("Hugo", "Blanc"), ("Iris", "Meyer"), ("Jack", "O'Neil"), ("Kim", "Park"),
        ("Leo", "Gone"), ("Mona", "Left"), ("Nils", "Former"),
    ];
    let (first, last) = NAMES[index % NAMES.len()];
    let archived = index >= OWNERS_LIVE;
    let user = 700 + index;
    json!({
        "id": owner_id(index).to_string(), "email": format!("{}@{domain}", first.to_lowercase().replace('é', "e")),
        "type": if index == 0 { "QUEUE" } else { "PERSON" }, "firstName": first, "lastName": last,
        "userId": if archived { Value::Null } else { json!(user) }, "userIdIncludingInactive": user,
        "createdAt": SINCE, "updatedAt": SINCE, "archived": archived,
        "teams": if index % 3 == 1 { json!([{"id": "31", "name": "North", "primary": true}]) } else { json!([]) },
    })
}

/// Where the owners of one kind are.
pub fn owner_range(archived: bool) -> std::ops::Range<usize> {
    if archived { OWNERS_LIVE..OWNERS_LIVE + OWNERS_ARCHIVED } else { 0..OWNERS_LIVE }
}

/// `/account-info/…/details`; there is no name of the account in it.
pub fn details(account: &Account) -> Value {
    json!({
        "portalId": account.hub_id, "accountType": "STANDARD", "timeZone": "US/Eastern", "utcOffset": "-05:00",
        "utcOffsetMilliseconds": -18_000_000, "companyCurrency": "USD", "additionalCurrencies": [],
        "uiDomain": "app.hubspot.com", "dataHostingLocation": "na1",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_live_or_gone() {
        let states: Vec<bool> = (0..OWNERS_LIVE + OWNERS_ARCHIVED)
            .map(|index| owner(index, "x.example")["archived"].as_bool().unwrap())
            .collect();
        assert_eq!(states.iter().filter(|archived| **archived).count(), OWNERS_ARCHIVED);
        assert!(owner_range(true).all(|index| states[index]));
        assert_ne!(owner(1, "x.example")["id"], owner(1, "x.example")["userId"].to_string());
    }

    #[test]
    fn pipelines_have_open_and_closed_stages() {
        for pipeline in pipelines()["results"].as_array().unwrap() {
            let stages = pipeline["stages"].as_array().unwrap();
            for state in ["OPEN", "CLOSED"] {
                assert!(stages.iter().any(|stage| stage["metadata"]["ticketState"] == state));
            }
        }
        assert!(pipeline_of("0").is_some() && pipeline_of("9").is_none());
    }
}
