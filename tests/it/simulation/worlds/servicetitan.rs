//! ServiceTitan: feeds that show changes late and deliver at least once, and three short lists. What is deleted by
//! `active` leaves its mark in the feed; what is removed leaves none.

use fieldmirror::sandbox::Sandbox;
use fieldmirror::sandbox::servicetitan::{Change, TENANT_FIRST};
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::{Purse, Real, Standing, Truth, fresh, micros, one, text, trimmed};

/// Streams, their records' words for a change.
const KINDS: [(&str, &str); 10] = [
    ("jobs", "summary"),
    ("bookings", "summary"),
    ("appointments", "specialInstructions"),
    ("appointment_assignments", "technicianName"),
    ("job_canceled_logs", "memo"),
    ("customers", "name"),
    ("locations", "name"),
    ("technicians", "name"),
    ("business_units", "name"),
    ("job_types", "name"),
];
/// Those that are read by their feeds, and have a time of modification.
const FEEDS: &[&str] =
    &["jobs", "bookings", "appointments", "appointment_assignments", "customers", "locations"];
const LISTS: &[&str] = &["technicians", "business_units", "job_types"];

#[derive(Default)]
pub struct World {
    purse: Purse,
}

fn kind(word: &str) -> (&'static str, &'static str) {
    *KINDS.iter().find(|(name, _)| *name == word).expect("a kind that is mirrored")
}

impl super::World for World {
    fn truth(&self, sandbox: &Sandbox) -> Truth {
        let lines = sandbox.servicetitan().truth(TENANT_FIRST).expect("the tenant is there");
        // What was removed is missing here.
        let lines = lines.into_iter().filter(|line| line["state"] != "removed");
        lines
            .map(|line| {
                let (stream, _) = kind(line["kind"].as_str().unwrap_or_default());
                let record = &line["record"];
                let flagged = line["state"] == "inactive" && !LISTS.contains(&stream);
                let standing = if flagged { Standing::Gone } else { Standing::Alive };
                let field = if stream == "job_canceled_logs" { "createdOn" } else { "modifiedOn" };
                let marker = micros(&record[field]).filter(|_| !LISTS.contains(&stream));
                let content = self.split(stream, trimmed("servicetitan", stream, record.clone()));
                let gone_at = marker.filter(|_| flagged);
                ((stream, text(&record["id"])), Real { gone_at, ..Real::new(standing, marker, content) })
            })
            .collect()
    }

    fn change(&mut self, sandbox: &Sandbox, truth: &Truth, dice: &mut StdRng) -> String {
        if dice.random_bool(0.02) {
            return format!("{} tokens expired", sandbox.servicetitan().expire_tokens());
        }
        let change = self.draw(truth, dice);
        let change: Change = serde_json::from_value(change).expect("a change");
        let done = sandbox.servicetitan().change(TENANT_FIRST, &change);
        format!("{change:?}: {done:?}")
    }

    fn marks_deletions(&self) -> bool {
        true
    }

    fn faults(&self) -> &'static [&'static str] {
        &[
            "drop=#,on:export_jobs",
            "torn=#,on:export_bookings",
            "torn=#,on:export_customers",
            "http_502=#,on:export_jobs",
            "http_500=#,on:export_appointments",
            "http_503=#,on:export_locations",
            "http_530=#,on:export_jobs",
            "throttle_storm=#,on:export_jobs",
            "throttle_storm=#,on:export_bookings",
            "html_ok=#,on:export_customers",
            "hang=1x,on:export_jobs",
            "slow=9000,#",
            "stuck_cursor=#,on:export_jobs",
            "stuck_cursor=#,on:export_bookings",
            "malformed=/data/*/id,#,on:export_jobs",
            "malformed=/hasMore,#,on:export_bookings",
            "malformed=/data,#,on:list_technicians",
            "http_502=#,on:list_jobs",
            "http_500=#,on:list_technicians",
            "drop=#,on:list_bookings",
            "expired_auth=1x,on:export_jobs",
            "date_skew=-5,#",
        ]
    }
}

impl World {
    fn draw(&mut self, truth: &Truth, dice: &mut StdRng) -> Value {
        let words = fresh(dice);
        let set = |(stream, id): (&str, &str), fields: Value| {
            let id: u64 = id.parse().expect("a number");
            json!({"do": "set", "kind": stream, "id": id, "fields": fields})
        };
        let some = one(truth, FEEDS, Standing::Alive, dice).expect("something lives");
        let gone = one(truth, FEEDS, Standing::Gone, dice);
        let listed = one(truth, LISTS, Standing::Alive, dice).expect("something lives");
        let job = one(truth, &["jobs"], Standing::Alive, dice);
        let text = |(stream, id): (&'static str, &str)| set((stream, id), json!({kind(stream).1: words}));
        match dice.random_range(0..100) {
            45..60 => {
                let stream = if dice.random_bool(0.5) { "jobs" } else { "bookings" };
                json!({"do": "create", "kind": stream, "fields": {"summary": words, "name": "Zoë"}})
            }
            60..68 => set(some, json!({"active": false})),
            68..74 if gone.is_some() => set(gone.unwrap_or(some), json!({"active": true})),
            74..80 if job.is_some() => {
                json!({"do": "cancel", "id": job.and_then(|(_, id)| id.parse::<u64>().ok())})
            }
            80..87 if self.purse.pays() => {
                json!({"do": "remove", "kind": some.0, "id": some.1.parse::<u64>().ok()})
            }
            87..93 => text(listed),
            93..96 => json!({"do": "forget_feeds"}),
            _ => text(some),
        }
    }
}
