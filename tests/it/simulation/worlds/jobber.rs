//! Jobber: jobs and clients with a change marker, visits without. Nothing that is deleted leaves a trace.

use fieldmirror::sandbox::Sandbox;
use fieldmirror::sandbox::jobber::Change;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::{Purse, Real, Standing, Truth, fresh, micros, one, text, trimmed, without};

#[derive(Default)]
pub struct World {
    purse: Purse,
}

fn account(sandbox: &Sandbox) -> String {
    sandbox.jobber().account_ids().remove(0)
}

impl super::World for World {
    fn truth(&self, sandbox: &Sandbox) -> Truth {
        let mut truth = Truth::new();
        for line in sandbox.jobber().truth(&account(sandbox)).expect("the account is there") {
            let standing = if line["state"] == "live" { Standing::Alive } else { Standing::Gone };
            let record = &line["record"];
            let content = self.split("jobs", trimmed("jobber", "jobs", record.clone()));
            let real = Real::new(standing, micros(&record["updatedAt"]), content);
            truth.insert(("jobs", text(&record["id"])), real);
            for visit in line["visits"].as_array().into_iter().flatten() {
                let content = self.split("visits", trimmed("jobber", "visits", visit.clone()));
                let real = Real::new(Standing::Alive, None, content);
                truth.insert(("visits", text(&visit["id"])), real);
            }
        }
        for client in sandbox.jobber().clients(&account(sandbox)).expect("the account is there") {
            let (id, marker) = (text(&client["id"]), micros(&client["updatedAt"]));
            let content = self.split("clients", trimmed("jobber", "clients", client));
            truth.insert(("clients", id), Real::new(Standing::Alive, marker, content));
        }
        truth
    }

    fn change(&mut self, sandbox: &Sandbox, truth: &Truth, dice: &mut StdRng) -> String {
        let change = self.draw(truth, dice);
        let change: Change = serde_json::from_value(change).expect("a change");
        let done = sandbox.jobber().change(&account(sandbox), &change);
        format!("{change:?}: {done:?}")
    }

    /// A job shows its client, whose changes are not the job's; some states are only a matter of the time of asking. Of
    /// users no more is asked for than their whole names.
    fn split(&self, stream: &str, mut raw: Value) -> [Value; 2] {
        match stream {
            "jobs" => {
                raw["jobStatus"] = json!(raw["jobStatus"] == "archived");
                let client = raw["client"].as_object();
                let client = client.map(|client| json!({"id": client["id"], "name": client["name"]}));
                [without(raw, &["client"]), json!(client)]
            }
            "visits" => {
                raw["visitStatus"] = json!(raw["visitStatus"] == "COMPLETED");
                let users = raw["assignedUsers"].get("nodes").unwrap_or(&raw["assignedUsers"]).as_array();
                let users = users.into_iter().flatten();
                let users = users.map(|user| json!([user["id"], user["name"]["full"]])).collect();
                raw["assignedUsers"] = users;
                [raw, Value::Null]
            }
            _ => [raw, Value::Null],
        }
    }

    fn faults(&self) -> &'static [&'static str] {
        &[
            "drop=#,on:jobs",
            "torn=#,on:visits",
            "torn=#,on:clients",
            "http_502=#,on:jobs",
            "http_500=#,on:visits",
            "http_503=#,on:clients",
            "throttle_storm=#,on:jobs",
            "throttle_storm=#,on:visits",
            "html_ok=#,on:jobs",
            "partial_data=#,on:jobs",
            "partial_data=#,on:visits",
            "unavailable=1x,on:jobs",
            "hang=1x,on:visits",
            "slow=9000,#",
            "stuck_cursor=#,on:jobs",
            "stuck_cursor=#,on:visits",
            "refused_cursor=#,on:jobs",
            "refused_cursor=#,on:clients",
            "record_cursors",
            "points_max=900",
            "old_version",
            "malformed=/data/jobs/nodes/*/id,#,on:jobs",
            "malformed=/data/visits/pageInfo,#,on:visits",
            "expired_auth=1x,on:jobs",
            "date_skew=-5,#",
        ]
    }
}

impl World {
    fn draw(&mut self, truth: &Truth, dice: &mut StdRng) -> Value {
        let title = fresh(dice);
        let at = 1_800_000_000_000 + dice.random_range(0..10_000_000_i64) * 1_000;
        let alive = Standing::Alive;
        let Some((_, id)) = one(truth, &["jobs"], alive, dice) else {
            return json!({"do": "create", "title": title});
        };
        let client = one(truth, &["clients"], alive, dice).map(|(_, id)| id);
        let visit = one(truth, &["visits"], alive, dice).map(|(_, id)| id);
        match (dice.random_range(0..100), visit, client) {
            (35..38, ..) => json!({"do": "change", "id": id, "title": title, "quiet": true}),
            (38..55, ..) => json!({"do": "create", "title": title}),
            (55..62, ..) => json!({"do": "schedule", "id": id, "start_ms": at, "end_ms": at + 3_600_000}),
            (62..66, ..) => json!({"do": "complete", "id": id}),
            (66..69, ..) => json!({"do": "archive", "id": id}),
            (69..74, ..) if self.purse.pays() => json!({"do": "delete", "id": id}),
            (74..80, _, Some(client)) => json!({"do": "rename_client", "id": client, "name": title}),
            (80..85, ..) => json!({"do": "add_visit", "job": id, "start_ms": at}),
            (85..89, Some(visit), _) => json!({"do": "move_visit", "id": visit, "start_ms": at}),
            (89..92, Some(visit), _) => {
                json!({"do": "assign_visit", "id": visit, "user": dice.random_range(1..6)})
            }
            (92..96, Some(visit), _) => json!({"do": "complete_visit", "id": visit}),
            (96..98, Some(visit), _) if self.purse.pays() => {
                json!({"do": "delete_visit", "id": visit})
            }
            _ => json!({"do": "change", "id": id, "title": title}),
        }
    }
}
