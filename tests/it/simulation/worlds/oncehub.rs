//! OnceHub: bookings, newest first, in windows of modification times, and short lists of what they refer to. What is
//! deleted leaves the lists without a trace.

use fieldmirror::sandbox::Sandbox;
use fieldmirror::sandbox::oncehub::Change;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::{Purse, Real, Standing, Truth, fresh, micros, one, text, trimmed};

const CALENDARS: &str = "booking_calendars";
/// Short lists.
const LISTS: [&str; 5] = ["users", CALENDARS, "booking_pages", "master_pages", "event_types"];

#[derive(Default)]
pub struct World {
    purse: Purse,
}

fn account(sandbox: &Sandbox) -> String {
    sandbox.oncehub().account_ids().remove(0)
}

impl super::World for World {
    fn truth(&self, sandbox: &Sandbox) -> Truth {
        let of = account(sandbox);
        let bookings = sandbox.oncehub().truth(&of).expect("the account is there");
        let lists = sandbox.oncehub().reference(&of).expect("the account is there");
        let bookings = bookings.iter().map(|line| ("bookings", &line["booking"], &line["deleted"]));
        let listed = |line: &Value| LISTS.into_iter().find(|name| line["kind"] == *name).expect("a stream");
        let lists = lists.iter().map(|line| (listed(line), &line["record"], &line["deleted"]));
        bookings
            .chain(lists)
            .map(|(stream, record, deleted)| {
                let standing = if *deleted == true { Standing::Gone } else { Standing::Alive };
                let marker = micros(&record["last_updated_time"]);
                let content = trimmed("oncehub", stream, record.clone());
                let real = Real::new(standing, marker, self.split(stream, content));
                ((stream, text(&record["id"])), real)
            })
            .collect()
    }

    fn change(&mut self, sandbox: &Sandbox, truth: &Truth, dice: &mut StdRng) -> String {
        let change = self.draw(truth, dice);
        let change: Change = serde_json::from_value(change).expect("a change");
        let done = sandbox.oncehub().change(&account(sandbox), &change);
        format!("{change:?}: {}", done.unwrap_or_default().join(" "))
    }

    /// The next page begins after the last record of a page, so their order is what a walk stands on.
    fn shuffles(&self) -> bool {
        false
    }

    fn faults(&self) -> &'static [&'static str] {
        &[
            "drop=#,on:bookings",
            "torn=#,on:bookings",
            "http_502=#,on:bookings",
            "http_500=#,on:bookings",
            "http_503=#,on:users",
            "http_524=#,on:bookings",
            "throttle_storm=#,on:bookings",
            "throttle_storm=2x,on:bookings",
            "html_ok=#,on:bookings",
            "hang=1x,on:bookings",
            "slow=9000,#",
            "stuck_cursor=#,on:bookings",
            "refused_cursor=#,on:bookings",
            "empty_list=1x,on:users",
            "empty_list=1x,on:event_types",
            "torn=#,on:booking_calendars",
            "http_500=#,on:master_pages",
            "malformed=/data/*/id,#,on:bookings",
            "malformed=/data,#,on:bookings",
            "malformed=/has_more,#,on:users",
            "drop=#,on:one",
            "http_502=#,on:one",
            "date_skew=-5,#",
        ]
    }
}

impl World {
    fn draw(&mut self, truth: &Truth, dice: &mut StdRng) -> Value {
        let words = fresh(dice);
        let Some((_, id)) = one(truth, &["bookings"], Standing::Alive, dice) else {
            return json!({"do": "create", "count": 3});
        };
        let calendar = one(truth, &[CALENDARS], Standing::Alive, dice).map(|(_, id)| id);
        match dice.random_range(0..100) {
            50..62 => json!({"do": "create", "count": dice.random_range(1..4)}),
            // More of one millisecond than a page holds.
            62..68 => json!({"do": "create", "count": dice.random_range(5..60)}),
            68..80 => json!({"do": "cancel", "id": id, "reason": words}),
            44..50 => {
                let (stream, id) = one(truth, &LISTS, Standing::Alive, dice).expect("something lives");
                let field = if stream == "users" { "first_name" } else { "name" };
                json!({"do": "set", "id": id, "fields": {field: words}})
            }
            92..94 if calendar.is_some() && self.purse.pays() => {
                json!({"do": "delete", "id": calendar, "gone": true})
            }
            80..92 if self.purse.pays() => json!({"do": "delete", "id": id, "gone": dice.random_bool(0.5)}),
            _ => json!({"do": "set", "id": id, "fields": {"subject": words}}),
        }
    }
}
