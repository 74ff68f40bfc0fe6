//! OnceHub: bookings, newest first, in windows of modification times. What is deleted leaves the lists without a trace.

use fieldmirror::sandbox::Sandbox;
use fieldmirror::sandbox::oncehub::Change;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::{Purse, Real, Standing, Truth, fresh, micros, one, text};

#[derive(Default)]
pub struct World {
    purse: Purse,
}

fn account(sandbox: &Sandbox) -> String {
    sandbox.oncehub().account_ids().remove(0)
}

impl super::World for World {
    fn truth(&self, sandbox: &Sandbox) -> Truth {
        let lines = sandbox.oncehub().truth(&account(sandbox)).expect("the account is there");
        lines
            .into_iter()
            .map(|line| {
                let standing = if line["deleted"] == true { Standing::Gone } else { Standing::Alive };
                let booking = &line["booking"];
                let real = Real {
                    standing,
                    marker: micros(&booking["last_updated_time"]),
                    content: booking.clone(),
                };
                (("bookings", text(&line["id"])), real)
            })
            .collect()
    }

    fn change(&mut self, sandbox: &Sandbox, truth: &Truth, dice: &mut StdRng) -> String {
        let change = self.draw(truth, dice);
        let change: Change = serde_json::from_value(change).expect("a change");
        let done = sandbox.oncehub().change(&account(sandbox), &change);
        format!("{change:?}: {}", done.unwrap_or_default().join(" "))
    }

    fn kept(&self, _stream: &str, raw: Value) -> Value {
        raw
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
        match dice.random_range(0..100) {
            50..62 => json!({"do": "create", "count": dice.random_range(1..4)}),
            // More of one millisecond than a page holds.
            62..68 => json!({"do": "create", "count": dice.random_range(5..60)}),
            68..80 => json!({"do": "cancel", "id": id, "reason": words}),
            80..92 if self.purse.pays() => json!({"do": "delete", "id": id, "gone": dice.random_bool(0.5)}),
            _ => json!({"do": "set", "id": id, "fields": {"subject": words}}),
        }
    }
}
