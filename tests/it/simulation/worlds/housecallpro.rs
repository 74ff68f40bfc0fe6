//! Housecall Pro: a company and its locations, and their jobs, customers and employees, in lists that move while they are
//! read.

use fieldmirror::sandbox::Sandbox;
use fieldmirror::sandbox::housecallpro::Change;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::{Purse, Real, Standing, Truth, fresh, micros, one, text, trimmed, without};

/// What is kept of those who are sent to a job.
const OF_CREW: [&str; 6] = ["id", "first_name", "last_name", "company_id", "created_at", "updated_at"];

#[derive(Default)]
pub struct World {
    purse: Purse,
}

fn account(sandbox: &Sandbox) -> String {
    sandbox.housecallpro().account_ids().remove(0)
}

fn stream(kind: &Value) -> &'static str {
    match kind.as_str().unwrap_or_default() {
        "jobs" => "jobs",
        "customers" => "customers",
        _ => "employees",
    }
}

/// A record as it may be kept.
fn kept(stream: &str, record: &Value) -> Value {
    let mut kept = trimmed("housecallpro", stream, record.clone());
    let crew = kept.get_mut("assigned_employees").and_then(Value::as_array_mut);
    for employee in crew.into_iter().flatten() {
        let fields = employee.as_object_mut().expect("an employee has fields");
        fields.retain(|name, _| OF_CREW.contains(&name.as_str()));
    }
    kept
}

impl super::World for World {
    fn truth(&self, sandbox: &Sandbox) -> Truth {
        let of = account(sandbox);
        let lines = sandbox.housecallpro().truth(&of).expect("the account is there");
        let companies = sandbox.housecallpro().companies(&of).expect("the account is there");
        let companies = companies.into_iter().map(|company| {
            let content = self.split("locations", kept("locations", &company));
            (("locations", text(&company["id"])), Real::new(Standing::Alive, None, content))
        });
        lines
            .into_iter()
            .map(|line| {
                let (stream, record) = (stream(&line["kind"]), &line["record"]);
                let standing = match line["state"].as_str().unwrap_or_default() {
                    "listed" => Standing::Alive,
                    "hidden" if stream == "jobs" => Standing::Hidden,
                    _ => Standing::Gone,
                };
                let marker = micros(&record["updated_at"]).filter(|_| stream != "employees");
                let real = Real::new(standing, marker, self.split(stream, kept(stream, record)));
                ((stream, text(&record["id"])), real)
            })
            .chain(companies)
            .collect()
    }

    fn change(&mut self, sandbox: &Sandbox, truth: &Truth, dice: &mut StdRng) -> String {
        let change = self.draw(truth, dice);
        let change: Change = serde_json::from_value(change).expect("a change");
        let done = sandbox.housecallpro().change(&account(sandbox), &change);
        format!("{change:?}: {}", done.map_or_else(|error| error.to_string(), |ids| ids.join(" ")))
    }

    /// A job shows its customer, whose changes are not the job's.
    fn split(&self, stream: &str, raw: Value) -> [Value; 2] {
        if stream == "jobs" {
            let customer = raw["customer"].clone();
            [without(raw, &["customer"]), customer]
        } else {
            [raw, Value::Null]
        }
    }

    fn marker_unit(&self) -> i64 {
        1_000_000
    }

    fn faults(&self) -> &'static [&'static str] {
        &[
            "drop=#,on:housecallpro.jobs",
            "torn=#,on:housecallpro.jobs",
            "torn=#,on:customers",
            "http_502=#,on:housecallpro.jobs",
            "http_500=#,on:customers",
            "http_503=#,on:employees",
            "http_524=#,on:housecallpro.jobs",
            "throttle_storm=#,on:housecallpro.jobs",
            "throttle_storm=#,on:customers",
            "retry_after",
            "html_ok=#,on:housecallpro.jobs",
            "html_ok=#,on:company",
            "hang=1x,on:customers",
            "slow=9000,#",
            "stuck_cursor=#,on:housecallpro.jobs",
            "stuck_cursor=#,on:customers",
            "shuffled_ties",
            "malformed=/jobs/*/id,#,on:housecallpro.jobs",
            "malformed=/total_pages,#,on:customers",
            "drop=#,on:job",
            "http_502=#,on:company",
            "date_skew=-5,#",
        ]
    }
}

impl World {
    fn draw(&mut self, truth: &Truth, dice: &mut StdRng) -> Value {
        let words = fresh(dice);
        let mut some = |stream, standing| one(truth, &[stream], standing, dice).map(|(_, id)| id.to_owned());
        let (job, gone) = (some("jobs", Standing::Alive), some("jobs", Standing::Gone));
        let (hidden, customer) = (some("jobs", Standing::Hidden), some("customers", Standing::Alive));
        let lost = some("customers", Standing::Gone);
        let employee = some("employees", Standing::Alive);
        let Some(id) = job else { return json!({"do": "create", "count": 3}) };
        let change = |id: String| json!({"do": "change", "id": id, "fields": {"/description": words}});
        match dice.random_range(0..100) {
            35..38 => json!({"do": "change", "id": id, "fields": {"/description": words}, "silent": true}),
            38..50 => json!({"do": "create", "count": dice.random_range(1..4)}),
            // More of one second than a page holds.
            50..54 => json!({"do": "create", "count": dice.random_range(5..40)}),
            54..62 => {
                json!({"do": "cancel", "id": id, "by": if dice.random_bool(0.5) { "user" } else { "pro" }})
            }
            62..66 if self.purse.pays() => json!({"do": "delete", "id": id}),
            66..69 if self.purse.pays() => json!({"do": "delete", "id": id, "left": "archive"}),
            69..72 => json!({"do": "delete", "id": id, "left": "record"}),
            72..78 if gone.is_some() => json!({"do": "restore", "id": gone}),
            78..81 if hidden.is_some() => json!({"do": "restore", "id": hidden}),
            81..90 if customer.is_some() => {
                json!({"do": "change", "id": customer, "fields": {"/first_name": words}})
            }
            90..92 if customer.is_some() && self.purse.pays() => json!({"do": "delete", "id": customer}),
            92..94 if lost.is_some() => json!({"do": "restore", "id": lost}),
            94..97 if employee.is_some() => {
                json!({"do": "change", "id": employee, "fields": {"/first_name": words}})
            }
            _ => change(id),
        }
    }
}
