//! Fills a tenant with records, from a seed. Every few records carry what integrators have met: nulls in "required"
//! fields, unknown fields and enum values, ids beyond 2^53, merged customers.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Number, Value, json};

use super::kinds::Kind;
use super::table::{Row, TICKS_PER_MS, Table, write_ticks};
use crate::sandbox::world::{self, pick, service_call};

/// Beyond what a double can tell apart.
pub const BEYOND_DOUBLES: u64 = 9_007_199_254_740_993;
/// Who drives out; assignments tell the same names. The last has an id that a double cannot hold.
const TECHNICIANS: [&str; 9] = [
    "Ana Ruiz",
    "Ben Adler",
    "Chloé Martin",
    "Dev Shah",
    "Ella Novak",
    "Finn Larsen",
    "Gita Rao",
    "Hugo Gone",
    "Iris Meyer",
];
const TECHNICIAN_FIRST: u64 = 501;
const USER_FIRST: u64 = 601;
const CUSTOMER_FIRST: u64 = 30_001;
const LOCATION_FIRST: u64 = 40_001;
const JOB_FIRST: u64 = 7_000_001;
const APPOINTMENT_FIRST: u64 = 8_000_001;
const ASSIGNMENT_FIRST: u64 = 8_500_001;
const LOG_FIRST: u64 = 9_500_001;
const BOOKING_FIRST: u64 = 660_001;
/// The tags that booking providers have.
pub const BOOKING_PROVIDERS: [u64; 2] = [71, 72];
const BUSINESS_UNITS: [(u64, &str); 4] =
    [(11, "HVAC Service"), (12, "Plumbing"), (13, "Electrical"), (14, "Garage Doors (closed)")];
#[rustfmt::skip]
const JOB_TYPES: [(u64, &str); 6] =
    [(21, "No Heat"), (22, "Leak"), (23, "Tune-Up"), (24, "Estimate"), (25, "Recall"), (26, "Fax Machine Repair")];
const STATUSES: [&str; 8] =
    ["Scheduled", "Dispatched", "InProgress", "Hold", "Completed", "Completed", "Completed", "Canceled"];

/// Rows of all kinds while they are being made.
struct Draft {
    dice: StdRng,
    end: DateTime<Utc>,
    rows: BTreeMap<Kind, Vec<Row>>,
    ids: BTreeMap<Kind, u64>,
}

/// The tables of a tenant with `count` jobs, and the dice as they lie then.
pub fn fill(
    tenant: u64,
    name: &str,
    count: usize,
    seed: u64,
    end: DateTime<Utc>,
) -> (BTreeMap<Kind, Table>, StdRng) {
    let dice = StdRng::seed_from_u64(seed ^ tenant.rotate_left(21));
    let mut draft = Draft { dice, end, rows: BTreeMap::new(), ids: BTreeMap::new() };
    draft.settings(tenant, name);
    let people = (count / 3).max(12);
    draft.people(people);
    for index in 0..count {
        draft.job(index, count, people);
    }
    for index in 0..count.div_ceil(2) {
        draft.booking(index, count.div_ceil(2));
    }
    let tables = Kind::all().map(|kind| (kind, Table::seeded(draft.rows.remove(&kind).unwrap_or_default())));
    (tables.collect(), draft.dice)
}

/// A row of these fields. `active` goes last, where lists that do not know it can leave it out.
pub fn row(id: u64, fields: &Map<String, Value>, modified: i64, changed_ms: i64) -> Row {
    let active = fields.get("active") != Some(&Value::Bool(false));
    let own = fields.iter().filter(|(name, _)| *name != "active" && *name != "id");
    let mut members = vec![format!("\"id\":{id}")];
    members.extend(own.map(|(name, value)| format!("{}:{value}", Value::from(name.as_str()))));
    members.push(format!("\"active\":{active}"));
    Row { id, place: 0, changed_ms, modified, active, body: format!("{{{}}}", members.join(",")).into() }
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

impl Draft {
    fn id(&mut self, kind: Kind, first: u64) -> u64 {
        let next = self.ids.entry(kind).or_insert(first);
        *next += 1;
        *next - 1
    }

    /// A moment within the millisecond, to the last tick.
    fn ticks(&mut self, at_ms: i64) -> i64 {
        at_ms * TICKS_PER_MS + self.dice.random_range(0..TICKS_PER_MS)
    }

    fn put(&mut self, kind: Kind, id: u64, value: Value, (created_ms, modified_ms): (i64, i64)) {
        let modified = self.ticks(modified_ms);
        let created = self.ticks(created_ms).min(modified);
        let mut value = fields(value);
        value.insert("createdOn".to_owned(), json!(write_ticks(created)));
        if kind != Kind::JobCanceledLogs {
            value.insert("modifiedOn".to_owned(), json!(write_ticks(modified)));
        }
        let made = row(id, &value, modified, modified_ms);
        self.rows.entry(kind).or_default().push(made);
    }

    fn times(&mut self, index: usize, count: usize) -> (i64, i64) {
        let created_ms = world::created_ms(&mut self.dice, index, count, self.end);
        (created_ms, world::modified_ms(&mut self.dice, created_ms, self.end))
    }

    fn settings(&mut self, tenant: u64, name: &str) {
        for (index, (id, unit)) in BUSINESS_UNITS.into_iter().enumerate() {
            let times = self.times(index, 100);
            let unit = json!({
                "name": unit, "officialName": null, "email": format!("office@{tenant}.example"), "currency": "USD",
                "address": null, "trade": {"id": 1, "name": "HVAC"}, "division": null, "tagTypeIds": [],
                "tenant": {"id": tenant, "name": name}, "active": id != 14,
            });
            self.put(Kind::BusinessUnits, id, unit, times);
        }
        for (index, (id, label)) in JOB_TYPES.into_iter().enumerate() {
            let times = self.times(index, 100);
            let kind = json!({"name": label, "businessUnitIds": [11], "skills": [], "priority": "Normal", "active": id != 26});
            self.put(Kind::JobTypes, id, kind, times);
        }
        for (index, name) in TECHNICIANS.into_iter().enumerate() {
            let times = self.times(index, 100);
            let id = technician_id(index);
            let technician = json!({
                "userId": USER_FIRST + index as u64, "name": name, "roleIds": [3], "businessUnitId": 11,
                "email": format!("tech{index}@{tenant}.example"), "phoneNumber": "5550100", "loginName": null,
                "home": {"street": "1 Private Way", "city": "Springfield", "zip": "00001"}, "team": "North",
                "hourlyRate": 31.5, "burdenRate": 12.25, "commissionRate": 0.05, "soldByRate": 0.01,
                "status": "Idle", "location": {"latitude": 41.1, "longitude": -87.1}, "appoitmentId": null,
                "permissions": null, "active": index != 7,
            });
            self.put(Kind::Technicians, id, technician, times);
        }
    }

    fn people(&mut self, count: usize) {
        for index in 0..count {
            let times = self.times(index, count);
            let [first, last] = world::person(&mut self.dice);
            let (id, place) = (CUSTOMER_FIRST + index as u64, LOCATION_FIRST + index as u64);
            let address = self.address(index);
            // A chain of two steps, and a circle: both are made in ServiceTitan's own pages.
            let merged: Option<u64> = match index {
                2 => Some(CUSTOMER_FIRST + 3),
                3 => Some(CUSTOMER_FIRST + 4),
                6 => Some(CUSTOMER_FIRST + 7),
                7 => Some(CUSTOMER_FIRST + 6),
                _ => None,
            };
            let customer = json!({
                "name": format!("{first} {last}"), "type": if index.is_multiple_of(4) { "Commercial" } else { "Residential" },
                "address": address, "customFields": [], "balance": money(i64::try_from(index).unwrap_or(0) * 1017),
                "taxExempt": false, "tagTypeIds": [], "doNotMail": false, "doNotService": false, "nationalAccount": false,
                "createdById": USER_FIRST, "mergedToId": merged, "paymentTermId": null, "creditLimit": null,
                "externalData": null, "active": merged.is_none(),
            });
            self.put(Kind::Customers, id, customer, times);
            let location = json!({
                "customerId": id, "name": format!("{last} residence"), "address": address, "customFields": [],
                "createdById": USER_FIRST, "mergedToId": null, "zoneId": null, "taxZoneId": null, "taxExempt": false,
                "tagTypeIds": [], "externalData": null, "active": true,
            });
            self.put(Kind::Locations, place, location, times);
        }
    }

    /// "Required" is not "non-null": every so often a part of an address is, or all of it.
    fn address(&mut self, index: usize) -> Value {
        let text = world::address(&mut self.dice);
        let (street, city) = text.split_once(", ").unwrap_or((&text, ""));
        match index % 11 {
            5 => {
                json!({"street": street, "unit": null, "city": null, "state": null, "zip": null, "country": null})
            }
            8 => {
                json!({"street": null, "unit": null, "city": null, "state": null, "zip": null, "country": null})
            }
            _ => json!({
                "street": street, "unit": index.is_multiple_of(3).then(|| format!("#{index}")), "city": city, "state": "IL",
                "zip": format!("6{:04}", index % 10_000), "country": "USA", "latitude": 41.5, "longitude": -87.5,
            }),
        }
    }

    fn job(&mut self, index: usize, count: usize, people: usize) {
        let id = match count - index {
            left @ 1..=2 if count > 10 => BEYOND_DOUBLES + 2 - left as u64,
            _ => self.id(Kind::Jobs, JOB_FIRST),
        };
        let times = self.times(index, count);
        let call = service_call(&mut self.dice);
        let who = self.dice.random_range(0..people) as u64;
        let status = if index % 50 == 3 { "AwaitingParts" } else { pick(&mut self.dice, &STATUSES) };
        let visits = self.appointments(id, index, status, CUSTOMER_FIRST + who, times);
        if status == "Canceled" {
            let log = self.id(Kind::JobCanceledLogs, LOG_FIRST);
            let entry = json!({"jobId": id, "reasonId": 301, "memo": "called off", "createdById": USER_FIRST, "active": true});
            self.put(Kind::JobCanceledLogs, log, entry, (times.1, times.1));
        }
        let (job_type, _) = pick(&mut self.dice, &JOB_TYPES);
        let cents = self.dice.random_range(0..250_000_i64);
        let completed = (status == "Completed").then(|| world::iso(times.1));
        let mut job = json!({
            "jobNumber": id.to_string(), "projectId": null, "customerId": CUSTOMER_FIRST + who,
            "locationId": LOCATION_FIRST + who, "jobStatus": status, "completedOn": completed, "businessUnitId": 11 + index % 3,
            "jobTypeId": job_type, "priority": (["Low", "Normal", "High", "Urgent"])[usize::from(call.urgency) % 4],
            "campaignId": 2, "appointmentCount": visits.len(), "firstAppointmentId": visits.first(),
            "lastAppointmentId": visits.last(), "recallForId": null, "warrantyId": null, "jobGeneratedLeadSource": null,
            "noCharge": false, "notificationsEnabled": true, "createdById": USER_FIRST, "tagTypeIds": [], "leadCallId": null,
            "partnerLeadCallId": null, "bookingId": null, "soldById": null, "customerPo": "", "invoiceId": 9_100_000 + index,
            "membershipId": null, "createdFromEstimateId": null, "estimateIds": [], "total": money(cents),
            "summary": format!("<p>{}</p>", call.description), "customFields": [], "externalData": [], "equipmentIds": [],
            "isAutoDispatched": false, "active": index % 60 != 17,
        });
        match index % 40 {
            5 => {
                for name in [
                    "jobTypeId",
                    "businessUnitId",
                    "campaignId",
                    "total",
                    "summary",
                    "locationId",
                    "customerPo",
                ] {
                    job[name] = Value::Null;
                }
            }
            9 => job["fieldOfTomorrow"] = json!({"nested": [1, "two", null]}),
            _ => {}
        }
        self.put(Kind::Jobs, id, job, times);
    }

    /// The live appointments of a job, with the technicians who were sent. One in thirty was deleted.
    fn appointments(
        &mut self,
        job: u64,
        index: usize,
        status: &str,
        customer: u64,
        (created_ms, modified_ms): (i64, i64),
    ) -> Vec<u64> {
        const HOUR_MS: i64 = 3_600_000;
        let count = if self.dice.random_bool(0.2) { 2 } else { 1 };
        let mut live = Vec::new();
        for visit in 0..count {
            let id = self.id(Kind::Appointments, APPOINTMENT_FIRST);
            let begins = (created_ms / HOUR_MS + 24 + 30 * visit) * HOUR_MS;
            let deleted = visit == 1 && index.is_multiple_of(15);
            let appointment = json!({
                "jobId": job, "appointmentNumber": format!("{job}-{}", visit + 1), "start": world::iso(begins),
                "end": world::iso(begins + 2 * HOUR_MS), "arrivalWindowStart": world::iso(begins),
                "arrivalWindowEnd": null, "status": appointment_status(status), "specialInstructions": null,
                "customerId": customer, "unused": false, "createdById": USER_FIRST, "isConfirmed": true,
                "appointmentSummaries": [], "active": !deleted,
            });
            self.put(Kind::Appointments, id, appointment, (created_ms, modified_ms));
            if !deleted {
                live.push(id);
            }
            for _ in 0..self.dice.random_range(0..=2) {
                self.assignment(job, id, (created_ms, modified_ms));
            }
        }
        live
    }

    fn assignment(&mut self, job: u64, appointment: u64, times: (i64, i64)) {
        let id = self.id(Kind::AppointmentAssignments, ASSIGNMENT_FIRST);
        let technician = self.dice.random_range(0..TECHNICIANS.len());
        let assignment = json!({
            "technicianId": technician_id(technician), "technicianName": TECHNICIANS[technician],
            "assignedById": USER_FIRST, "assignedOn": world::iso(times.0), "status": "Scheduled", "isPaused": false,
            "jobId": job, "appointmentId": appointment, "active": id % 10 != 4,
        });
        self.put(Kind::AppointmentAssignments, id, assignment, times);
    }

    fn booking(&mut self, index: usize, count: usize) {
        const STATUSES: [&str; 5] = ["New", "Converted", "Converted", "Dismissed", "Accepted"];
        let id = if index == 2 { BEYOND_DOUBLES } else { self.id(Kind::Bookings, BOOKING_FIRST) };
        let times = self.times(index, count);
        let call = service_call(&mut self.dice);
        let status = if index % 50 == 4 { "Parked" } else { pick(&mut self.dice, &STATUSES) };
        let mut booking = json!({
            "source": "Website", "name": call.customer, "address": self.address(index), "customerType": "Residential",
            "start": world::iso(times.0 + 86_400_000), "summary": call.subject, "campaignId": null, "businessUnitId": 11,
            "isFirstTimeClient": index.is_multiple_of(2), "isSendConfirmationEmail": null, "uploadedImages": [], "status": status,
            "dismissingReasonId": (status == "Dismissed").then_some(401),
            "jobId": (status == "Converted").then(|| JOB_FIRST + index as u64), "externalId": format!("web-{index}"),
            "jobTypeId": 21, "priority": "Normal", "bookingProviderId": BOOKING_PROVIDERS[index % 2],
            "active": index % 45 != 11,
        });
        if index % 20 == 6 {
            for name in ["address", "start", "name", "source", "summary", "priority", "uploadedImages"] {
                booking[name] = Value::Null;
            }
        }
        self.put(Kind::Bookings, id, booking, times);
    }
}

fn technician_id(index: usize) -> u64 {
    if index + 1 == TECHNICIANS.len() { BEYOND_DOUBLES } else { TECHNICIAN_FIRST + index as u64 }
}

fn appointment_status(job: &str) -> &'static str {
    match job {
        "Dispatched" => "Dispatched",
        "InProgress" => "Working",
        "Hold" => "Hold",
        "Completed" => "Done",
        "Canceled" => "Canceled",
        _ => "Scheduled",
    }
}

/// A JSON number with the digits of the cents, as a decimal type writes it.
fn money(cents: i64) -> Value {
    let text = format!("{}.{:02}", cents / 100, cents % 100);
    text.parse::<Number>().map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_makes_one_tenant() {
        let end = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        let bodies = |seed| {
            let (tables, _) = fill(1, "a", 60, seed, end);
            Kind::all()
                .flat_map(|kind| tables[&kind].rows().map(|row| row.body.clone()).collect::<Vec<_>>())
                .collect()
        };
        let (one, other): (Vec<_>, Vec<_>) = (bodies(1), bodies(1));
        assert_eq!(one, other);
        assert_ne!(one, bodies(2));
    }

    #[test]
    fn what_integrators_have_met_is_there() {
        let end = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        let (tables, _) = fill(1, "a", 60, 1, end);
        let any =
            |kind: Kind, met: &dyn Fn(&Value) -> bool| tables[&kind].rows().any(|row| met(&row.value()));
        assert!(any(Kind::Jobs, &|job| job["jobStatus"] == "AwaitingParts"));
        assert!(any(Kind::Jobs, &|job| job["jobTypeId"].is_null() && job["total"].is_null()));
        assert!(any(Kind::Jobs, &|job| job["fieldOfTomorrow"].is_object()));
        assert!(any(Kind::Jobs, &|job| job["id"] == json!(BEYOND_DOUBLES)));
        assert!(any(Kind::Jobs, &|job| job["modifiedOn"].as_str().unwrap().len() == 28), "seven digits");
        assert!(any(Kind::Bookings, &|booking| booking["start"].is_null() && booking["address"].is_null()));
        assert!(any(Kind::Customers, &|customer| customer["address"]["country"].is_null()));
        for kind in [Kind::Jobs, Kind::Bookings, Kind::Customers, Kind::Technicians, Kind::BusinessUnits] {
            assert!(any(kind, &|record| record["active"] == false), "{kind:?}");
        }
        let merged = |id: u64| tables[&Kind::Customers].get(id).unwrap().value()["mergedToId"].as_u64();
        let chain = (merged(CUSTOMER_FIRST + 2), merged(CUSTOMER_FIRST + 3), merged(CUSTOMER_FIRST + 4));
        assert_eq!(chain, (Some(CUSTOMER_FIRST + 3), Some(CUSTOMER_FIRST + 4), None));
        assert_eq!(merged(merged(CUSTOMER_FIRST + 6).unwrap()), Some(CUSTOMER_FIRST + 6), "a circle");
    }
}
