//! What answers say about a record: its facts, the invented details that its seed gives, and what was changed since.

use chrono::DateTime;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use super::account::{Account, Company, Facts, Kind, Patch, Record, Standing, Status};
use crate::sandbox::world::{iso, pick, service_call};

const HOUR_S: i64 = 3600;
const DAY_S: i64 = 24 * HOUR_S;
#[rustfmt::skip]
const LEAD_SOURCES: &[&str] = &["Google", "Referral", "Yard sign", "Repeat customer"];

/// What some answers lack.
const LEFT_OUT: &[&str] = &["tags", "lead_source", "outstanding_balance", "job_fields"];

pub fn id(kind: Kind, number: u128) -> String {
    format!("{}{number:032x}", kind.prefix())
}

/// What the API tells about one record. `appointments`: whether they were asked for.
pub fn record(account: &Account, kind: Kind, record: &Record, appointments: bool) -> Value {
    let mut shown = match &record.facts {
        Facts::Job { .. } => job(account, record, appointments),
        Facts::Customer { .. } => customer(account, record),
        Facts::Employee { .. } => employee(account, record),
    };
    shown["id"] = json!(id(kind, record.id));
    if let Some(patch) = &record.patch {
        apply(&mut shown, patch);
    }
    shown
}

fn apply(shown: &mut Value, patch: &Patch) {
    for (pointer, value) in &patch.fields {
        put(shown, pointer, Some(value));
    }
    for pointer in &patch.omit {
        put(shown, pointer, None);
    }
}

/// Sets or removes what a pointer leads to; objects on the way are made.
fn put(shown: &mut Value, pointer: &str, value: Option<&Value>) {
    let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
    let mut at = shown;
    for step in parent.split('/').skip(1) {
        if !at[step].is_object() {
            at[step] = json!({});
        }
        at = &mut at[step];
    }
    let Some(fields) = at.as_object_mut() else { return };
    match value {
        Some(value) => fields.insert(name.to_owned(), value.clone()),
        None => fields.remove(name),
    };
}

pub fn time(at_s: i64) -> String {
    iso(at_s * 1000)
}

/// `GET /company`, or one of its locations.
pub fn company(company: &Company) -> Value {
    json!({
        "id": company.id.to_string(), "name": company.name, "support_email": "office@acme.example",
        "phone_number": "5550100", "logo_url": null, "website": "https://acme.example", "default_arrival_window": 60,
        "time_zone": "America/Los_Angeles",
        "address": {"street": "1 Depot Rd", "street_line_2": null, "city": "Riverton", "state": "CA", "zip": "90001"},
    })
}

fn employee(account: &Account, record: &Record) -> Value {
    let Facts::Employee { name: [first, last] } = record.facts else { return Value::Null };
    let company = &account.companies[record.company];
    json!({
        "first_name": first, "last_name": last, "email": format!("{}@acme.example", last.to_lowercase()),
        "mobile_number": "5550111", "color_hex": "00a0dc", "avatar_url": null, "role": "field tech", "tags": [],
        "permissions": {"is_admin": false, "can_see_pay": true, "show_company_setup": false},
        "company_name": company.name, "company_id": company.id.to_string(),
    })
}

fn customer(account: &Account, record: &Record) -> Value {
    let Facts::Customer { name: [first, last], firm } = record.facts else { return Value::Null };
    let mut dice = StdRng::seed_from_u64(record.seed);
    let company = &account.companies[record.company];
    let firm = firm.then(|| format!("{last} & Sons LLC"));
    // Firms have no person's name now and then.
    let (first, last) = if firm.is_some() && dice.random_bool(0.5) {
        (Value::Null, json!(""))
    } else {
        (json!(first), json!(last))
    };
    json!({
        "first_name": first, "last_name": last, "company": firm, "email": "customer@town.example",
        "mobile_number": "5550122", "home_number": null, "work_number": null, "notifications_enabled": true,
        "lead_source": lead_source(&mut dice), "notes": "", "tags": [], "kind": "homeowner",
        "created_at": time(record.created_s), "updated_at": time(record.updated_s),
        "company_name": company.name, "company_id": company.id.to_string(),
    })
}

fn lead_source(dice: &mut StdRng) -> Value {
    if dice.random_bool(0.5) { json!(pick(dice, LEAD_SOURCES)) } else { Value::Null }
}

/// When a job is to be done and was done, as far as its status has it.
struct Times {
    start_s: i64,
    end_s: i64,
}

fn job(account: &Account, record: &Record, appointments: bool) -> Value {
    let Facts::Job { number, status, customer, employees, ended_s } = &record.facts else {
        return Value::Null;
    };
    let mut dice = StdRng::seed_from_u64(record.seed);
    let call = service_call(&mut dice);
    let company = &account.companies[record.company];
    let start_s = record.created_s - record.created_s.rem_euclid(HOUR_S) + dice.random_range(1..20) * DAY_S;
    let times = Times { start_s, end_s: start_s + dice.random_range(1..5) * HOUR_S };
    let customer = &account.customers[*customer];
    let crew: Vec<&Record> = employees.iter().flatten().map(|index| &account.employees[*index]).collect();
    let cents: u64 = if dice.random_bool(0.005) { (1 << 53) + 1 } else { dice.random_range(4_900..990_000) };
    let open = !matches!(status, Status::CompleteRated | Status::CompleteUnrated) || dice.random_bool(0.2);
    let ended = |wanted: Status| ended_s.filter(|_| *status == wanted).map(time);
    let mut shown = json!({
        "invoice_number": number.to_string(),
        "description": if dice.random_bool(0.04) { "" } else { call.subject.as_str() },
        "customer": self::record(account, Kind::Customer, customer, false),
        "address": address(&mut dice, &call.address),
        "notes": [{"id": format!("nte_{:032x}", record.id ^ 1), "content": call.description}],
        "work_status": status.as_str(),
        "work_timestamps": work_timestamps(*status, &times),
        "schedule": schedule(record, *status, &times, &crew, appointments),
        "total_amount": cents, "subtotal": cents, "outstanding_balance": if open { cents } else { 0 },
        "assigned_employees":
            crew.iter().map(|worker| self::record(account, Kind::Employee, worker, false)).collect::<Vec<_>>(),
        "tags": [call.trade], "original_estimate_id": null, "original_estimate_uuids": [],
        "lead_source": lead_source(&mut dice), "job_fields": {"job_type": null, "business_unit": null},
        "locked_at": null, "created_at": time(record.created_s), "updated_at": time(record.updated_s),
        "canceled_at": ended(Status::UserCanceled), "deleted_at": ended(Status::ProCanceled),
        "recurrence_number": null, "recurrence_rule": null,
        "company_name": company.name, "company_id": company.id.to_string(),
    });
    distort(&mut shown, &mut dice);
    shown
}

/// What answers do now and then: fields nobody knows, fields left out, notes of another type, times without a zone.
fn distort(shown: &mut Value, dice: &mut StdRng) {
    if dice.random_bool(0.1) {
        shown["ai_dispatch"] = json!({"score": 0.25, "of": [1, 2]});
    }
    if dice.random_bool(0.05) {
        shown["customer"]["notes"] = json!([{"id": "nte_0", "content": "Knock loudly"}]);
    }
    if dice.random_bool(0.05)
        && let Some(fields) = shown.as_object_mut()
    {
        fields.retain(|name, _| !LEFT_OUT.contains(&name.as_str()));
    }
    if dice.random_bool(0.05) {
        for name in ["created_at", "updated_at"] {
            shown[name] = json!(shown[name].as_str().map(|text| text.trim_end_matches('Z')));
        }
    }
}

/// Any part may be null, the id included.
fn address(dice: &mut StdRng, line: &str) -> Value {
    let (street, city) = line.split_once(", ").unwrap_or((line, ""));
    match dice.random_range(0..12) {
        0 => ["id", "type", "street", "street_line_2", "city", "state", "zip", "country"]
            .iter()
            .map(|name| ((*name).to_owned(), Value::Null))
            .collect::<Map<_, _>>()
            .into(),
        odd => json!({
            "id": format!("adr_{:032x}", dice.random::<u128>()), "type": "service", "street": street, "city": city,
            "street_line_2": if odd == 1 { "Unit 4" } else { "" }, "state": "CA", "zip": "90001", "country": "US",
        }),
    }
}

fn work_timestamps(status: Status, times: &Times) -> Value {
    let done = matches!(status, Status::CompleteRated | Status::CompleteUnrated);
    let begun = done || status == Status::InProgress;
    json!({
        "on_my_way_at": begun.then(|| time(times.start_s - 900)),
        "started_at": begun.then(|| time(times.start_s + 60)),
        "completed_at": done.then(|| time(times.end_s)),
    })
}

fn schedule(record: &Record, status: Status, times: &Times, crew: &[&Record], appointments: bool) -> Value {
    let planned = status != Status::NeedsScheduling;
    let ids: Vec<String> = crew.iter().map(|worker| id(Kind::Employee, worker.id)).collect();
    let visits = if appointments && planned {
        json!([{
            "id": format!("appt_{:032x}", record.id), "start_time": time(times.start_s), "end_time": time(times.end_s),
            "anytime": false, "arrival_window_minutes": 60, "dispatched_employees_ids": ids,
        }])
    } else {
        json!([])
    };
    json!({
        "scheduled_start": planned.then(|| time(times.start_s)), "scheduled_end": planned.then(|| time(times.end_s)),
        "arrival_window": 60, "appointments": visits,
    })
}

/// One line of the truth.
pub fn truth(account: &Account, kind: Kind, of: &Record) -> Value {
    let company = &account.companies[of.company];
    json!({
        "kind": kind.plural(), "account": account.id(), "company_id": company.id.to_string(),
        "state": of.standing.as_str(), "record": record(account, kind, of, true),
    })
}

/// Whether lists show it.
pub fn is_listed(record: &Record) -> bool {
    record.standing == Standing::Listed
}

/// The moment in whole seconds.
pub fn seconds(now_ms: i64) -> i64 {
    DateTime::from_timestamp_millis(now_ms).map_or(0, |now| now.timestamp())
}
