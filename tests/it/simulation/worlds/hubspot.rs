//! HubSpot: tickets, and what they refer to. Archiving, restoring and tying leave the change marker as it is; search sees
//! changes late.

use std::cell::RefCell;
use std::collections::HashMap;

use fieldmirror::sandbox::Sandbox;
use fieldmirror::sandbox::hubspot::{Change, HUB_ID_FIRST};
use futures_util::FutureExt as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::super::oracle::agrees;
use super::{Key, Purse, Real, Standing, Truth, fresh, micros, one, text, without};

const TICKETS: &[&str] = &["tickets"];
/// What the names of properties begin with that are added while the mirror is at work.
const ADDED: &str = "sim_";

#[derive(Default)]
pub struct World {
    purse: Purse,
    /// Lines of the truth that were read before.
    read: RefCell<HashMap<Vec<u8>, (String, Real)>>,
}

impl super::World for World {
    fn truth(&self, sandbox: &Sandbox) -> Truth {
        let body = sandbox.hubspot().truth(HUB_ID_FIRST).expect("the account is there");
        let lines = axum::body::to_bytes(body, usize::MAX).now_or_never().expect("it is all there");
        let lines = lines.expect("it cannot break off");
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let mut known = self.read.borrow_mut();
        let real = |line: &[u8]| known.entry(line.to_vec()).or_insert_with(|| read(line)).clone();
        let mut truth: Truth = lines.map(real).map(|(id, real)| (("tickets", id), real)).collect();
        follow_merges(&mut truth);
        let lists = sandbox.hubspot().reference(HUB_ID_FIRST).expect("the account is there");
        truth.extend(lists.iter().flat_map(listed));
        truth
    }

    fn change(&mut self, sandbox: &Sandbox, truth: &Truth, dice: &mut StdRng) -> String {
        let change = self.draw(truth, dice);
        let change: Change = serde_json::from_value(change).expect("a change");
        let done = sandbox.hubspot().change(HUB_ID_FIRST, &change);
        format!("{change:?}: {done:?}")
    }

    fn split(&self, stream: &str, raw: Value) -> [Value; 2] {
        if stream == "tickets" { split(raw) } else { [raw, Value::Null] }
    }

    /// A property is asked for by its name, which is not known before the list of properties is read again.
    fn is_part(&self, stream: &str, told: &Value, real: &Value) -> bool {
        let (told_of, mut real) = (&told["properties"], real.clone());
        if let Some(properties) = real["properties"].as_object_mut() {
            properties.retain(|name, _| !name.starts_with(ADDED) || told_of.get(name).is_some());
        }
        stream == "tickets" && agrees(told, &real)
    }

    fn faults(&self) -> &'static [&'static str] {
        &[
            "drop=#,on:search",
            "torn=#,on:batch_read",
            "http_502=#,on:list",
            "http_500=#,on:batch_read",
            "http_503=#,on:associations",
            "http_524=#,on:search",
            "throttle_storm=#,on:search",
            "throttle_storm=#,on:batch_read",
            "retry_after",
            "no_policy_name=#",
            "html_ok=#,on:batch_read",
            "html_ok=#,on:list",
            "http_423=#,on:batch_read",
            "http_500=#,on:owners",
            "torn=#,on:properties",
            "html_ok=#,on:pipelines",
            "http_477=1x,on:search",
            "hang=1x,on:batch_read",
            "slow=9000,#",
            "stuck_cursor=#,on:list",
            // As ten thousand is of those that are changed at once in a real account.
            "results_max=100",
            "refused_cursor=#,on:list",
            "silent_missing",
            "resolve_merged",
            "numeric_ids",
            "malformed=/results/*/id,#,on:batch_read",
            "malformed=/results,#,on:search",
            "malformed=/paging,#,on:list",
            "expired_auth=1x,on:search",
            "date_skew=-5,#",
        ]
    }
}

impl World {
    fn draw(&mut self, truth: &Truth, dice: &mut StdRng) -> Value {
        let mut subject = json!({"subject": fresh(dice)});
        let added = truth.range(("properties", ADDED.to_owned())..).next();
        if let Some(((_, name), _)) = added.filter(|((_, name), _)| name.starts_with(ADDED)) {
            subject[name] = json!(fresh(dice));
        }
        let tie = json!({"to": if dice.random_bool(0.5) { "companies" } else { "contacts" }, "to_id": dice.random_range(1..9)});
        let mut ticket =
            |standing| one(truth, TICKETS, standing, dice).and_then(|(_, id)| id.parse::<u64>().ok());
        let (Some(id), other, gone) =
            (ticket(Standing::Alive), ticket(Standing::Alive), ticket(Standing::Gone))
        else {
            return json!({"do": "create", "properties": subject});
        };
        match dice.random_range(0..100) {
            36..38 => {
                json!({"do": "add_property", "name": format!("{ADDED}{}", truth.len()), "kind": "string"})
            }
            38..43 => json!({"do": "associate", "id": id, "to": tie["to"], "to_id": tie["to_id"]}),
            43..45 => json!({"do": "disassociate", "id": id, "to": tie["to"], "to_id": tie["to_id"]}),
            45..60 => json!({"do": "create", "properties": subject}),
            60..66 => json!({"do": "bulk_create", "count": dice.random_range(2..30), "properties": subject}),
            66..74 => {
                // More of one millisecond than a page of anything holds.
                let count = dice.random_range(5..150);
                json!({"do": "bulk_change", "count": count, "properties": subject})
            }
            74..84 if self.purse.pays() => json!({"do": "archive", "id": id}),
            84..92 if gone.is_some() => json!({"do": "restore", "id": gone}),
            92..95 if self.purse.pays() => json!({"do": "delete", "id": id}),
            95..98 if other.is_some_and(|other| other != id) && self.purse.pays() => {
                json!({"do": "merge", "primary": id, "other": other, "new_id": dice.random_bool(0.5)})
            }
            _ => json!({"do": "change", "id": id, "properties": subject}),
        }
    }
}

/// A line of the truth.
fn read(line: &[u8]) -> (String, Real) {
    let line: Value = serde_json::from_slice(line).expect("a JSON object per line");
    let is_live = line["state"] == "live";
    let standing = if is_live { Standing::Alive } else { Standing::Gone };
    let mut record = line["record"].clone();
    // What is not live shows no ties.
    let ties = |kind: &str| if is_live { line["associations"][kind].clone() } else { json!([]) };
    record["associations"] = json!({"companies": ties("companies"), "contacts": ties("contacts")});
    let (id, marker, gone_at) =
        (text(&record["id"]), micros(&record["updatedAt"]), micros(&record["archivedAt"]));
    let merged_into = line["merged_into"].as_str().map(str::to_owned).into_iter().collect();
    (id, Real { merged_into, gone_at, ..Real::new(standing, marker, split(record)) })
}

/// A property without a value is as good as none, for one that is new. Whether a ticket is archived is told of the row.
/// What it is tied to is asked for kind by kind.
fn split(mut raw: Value) -> [Value; 2] {
    if let Some(properties) = raw["properties"].as_object_mut() {
        properties.retain(|_, value| !value.is_null());
    }
    let kinds = raw["associations"].as_object().into_iter().flatten();
    let ties = kinds.map(|(kind, ids)| json!({kind: ids})).collect();
    [without(raw, &["archived", "archivedAt", "associations"]), ties]
}

/// From where a ticket went on to where it is in the end.
fn follow_merges(truth: &mut Truth) {
    let next = |(key, real): (&Key, &Real)| Some((key.1.clone(), real.merged_into.first()?.clone()));
    let next: HashMap<String, String> = truth.iter().filter_map(next).collect();
    for real in truth.values_mut() {
        while let Some(further) = real.merged_into.last().and_then(|last| next.get(last)) {
            real.merged_into.push(further.clone());
        }
    }
}

/// A line of what tickets refer to, as records of its stream.
fn listed(line: &Value) -> Vec<(Key, Real)> {
    let record = &line["record"];
    let one = |stream: &'static str, id: String, record: Value| {
        ((stream, id), Real::new(Standing::Alive, None, [record, Value::Null]))
    };
    match line["kind"].as_str().unwrap_or_default() {
        "owners" => vec![one("owners", text(&record["id"]), record.clone())],
        "properties" => vec![one("properties", text(&record["name"]), record.clone())],
        _ => {
            let stages = record["stages"].as_array().into_iter().flatten();
            let row = |stage: &Value| {
                let key = format!("{}/{}", text(&record["id"]), text(&stage["id"]));
                let mut row = stage.clone();
                row["key"] = json!(key);
                row["pipeline"] = without(record.clone(), &["stages"]);
                one("pipeline_stages", key, row)
            };
            stages.map(row).collect()
        }
    }
}
