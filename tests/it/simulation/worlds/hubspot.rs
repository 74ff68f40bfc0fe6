//! HubSpot: tickets. Archiving, restoring and merging leave the change marker as it is; search sees changes late.

use std::cell::RefCell;
use std::collections::HashMap;

use fieldmirror::sandbox::Sandbox;
use fieldmirror::sandbox::hubspot::{Change, HUB_ID_FIRST};
use futures_util::FutureExt as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::{Purse, Real, Standing, Truth, fresh, micros, one, text};

const TICKETS: &[&str] = &["tickets"];

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
        lines.map(real).map(|(id, real)| (("tickets", id), real)).collect()
    }

    fn change(&mut self, sandbox: &Sandbox, truth: &Truth, dice: &mut StdRng) -> String {
        let change = self.draw(truth, dice);
        let change: Change = serde_json::from_value(change).expect("a change");
        let done = sandbox.hubspot().change(HUB_ID_FIRST, &change);
        format!("{change:?}: {done:?}")
    }

    fn kept(&self, _stream: &str, raw: Value) -> Value {
        told(&raw)
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
            "http_477=1x,on:search",
            "hang=1x,on:batch_read",
            "slow=9000,#",
            "stuck_cursor=#,on:list",
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
        let subject = json!({"subject": fresh(dice)});
        let mut ticket =
            |standing| one(truth, TICKETS, standing, dice).and_then(|(_, id)| id.parse::<u64>().ok());
        let (Some(id), other, gone) =
            (ticket(Standing::Alive), ticket(Standing::Alive), ticket(Standing::Gone))
        else {
            return json!({"do": "create", "properties": subject});
        };
        match dice.random_range(0..100) {
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
    let standing = if line["state"] == "live" { Standing::Alive } else { Standing::Gone };
    let record = &line["record"];
    let real = Real { standing, marker: micros(&record["updatedAt"]), content: told(record) };
    (text(&record["id"]), real)
}

fn told(record: &Value) -> Value {
    json!({"properties": record["properties"], "createdAt": record["createdAt"], "updatedAt": record["updatedAt"]})
}
