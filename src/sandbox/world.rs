//! The invented town that all stand-ins draw from: field-service calls, people, firms, streets, and when things
//! happened. Everything here is a function of the dice that it is handed, so one seed always tells one story.
//!
//! What a call looks like at a provider (fields, ids, statuses) is the provider's part's business.

use chrono::{DateTime, Datelike, NaiveTime, TimeDelta, TimeZone, Timelike, Utc};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// How far back a world's history reaches.
const HISTORY_DAYS: i64 = 730;

#[rustfmt::skip]
const TRADES: &[Trade] = &[
    Trade { name: "HVAC", subjects: &["No heat upstairs", "AC blowing warm air", "Furnace short cycling", "Thermostat screen is blank", "Annual furnace tune-up", "Heat pump icing over", "Strange smell from the vents", "Condenser fan not spinning"] },
    Trade { name: "Plumbing", subjects: &["Kitchen sink backs up", "Water heater leaking at the base", "Low pressure in both showers", "Running toilet wastes water", "Burst pipe in the crawl space", "Garbage disposal is jammed", "Sump pump alarm going off", "Quote for tankless water heater"] },
    Trade { name: "Electrical", subjects: &["Breaker trips every evening", "Outlet sparks when used", "Install EV charger in garage", "Half the house lost power", "Flickering lights after the storm", "Panel upgrade estimate", "Smoke detectors chirping", "Doorbell transformer hums"] },
    Trade { name: "Garage doors", subjects: &["Garage door stuck half open", "Broken torsion spring", "Opener remote not pairing", "Door reverses before closing"] },
    Trade { name: "Appliances", subjects: &["Dryer takes two cycles", "Fridge not cooling, freezer fine", "Dishwasher leaves standing water", "Oven will not hold temperature"] },
];
#[rustfmt::skip]
const DETAILS: &[&str] = &[
    "Started last night and got worse this morning.", "Customer already reset the breaker twice, no change.",
    "Gate code is on file; please call on the way.", "Dog in the yard, friendly but loud.",
    "Unit is about 12 years old, model plate is on the left side.", "Tenant will be home after 3 pm.",
    "Last technician left a part on order: \"waiting for supplier\".", "Photos attached by e-mail.",
    "They would like a quote for replacement as well.", "Access through the back door; spare key with Zoë next door.",
    "Under warranty until next spring, serial number to be confirmed.", "Second visit for the same problem – please escalate.",
    "Water is shut off at the main for now.", "Prefers a text over a call.",
];
#[rustfmt::skip]
const FIRST: &[&str] = &["Maria", "James", "Linh", "Omar", "Grace", "Peter", "Aisha", "Tom", "Renée", "Carlos", "Ingrid", "Sam", "Priya", "Jon", "Beth", "Viktor"];
#[rustfmt::skip]
const LAST: &[&str] = &["Alvarez", "Becker", "Chen", "Dubois", "Edwards", "Fischer", "Garcia", "Hughes", "Ito", "Jensen", "Kowalski", "Lopez", "Murphy", "Nguyen", "O'Brien", "Patel"];
#[rustfmt::skip]
const STREETS: &[&str] = &["Maple Ave", "2nd Street", "Orchard Lane", "Quarry Rd", "Harbor View", "Old Mill Road", "Sycamore Ct", "County Road 9"];
#[rustfmt::skip]
const TOWNS: &[&str] = &["Springfield", "Riverton", "Oak Hill", "Lakeview", "Georgetown", "St. Mary's"];

#[derive(Clone, Copy)]
struct Trade {
    name: &'static str,
    subjects: &'static [&'static str],
}

/// A request for service, before any provider's words for it.
#[derive(Debug, Clone)]
pub struct ServiceCall {
    pub trade: &'static str,
    pub subject: String,
    pub description: String,
    pub customer: String,
    pub address: String,
    /// 0 (can wait) to 3 (today).
    pub urgency: u8,
}

/// Tells of one call.
pub fn service_call(dice: &mut StdRng) -> ServiceCall {
    let trade = pick(dice, TRADES);
    let customer = person(dice).join(" ");
    let address = address(dice);
    let subject = format!("{} - {customer}", pick(dice, trade.subjects));
    let mut description = format!("{customer}, {address}.");
    for _ in 0..dice.random_range(1..=5) {
        description.push(if dice.random_bool(0.2) { '\n' } else { ' ' });
        description.push_str(pick(dice, DETAILS));
    }
    let urgency = dice.random_range(0..=3);
    ServiceCall { trade: trade.name, subject, description, customer, address, urgency }
}

/// A first and a last name.
pub fn person(dice: &mut StdRng) -> [&'static str; 2] {
    [pick(dice, FIRST), pick(dice, LAST)]
}

pub fn address(dice: &mut StdRng) -> String {
    format!("{} {}, {}", dice.random_range(1..2400), pick(dice, STREETS), pick(dice, TOWNS))
}

/// One of the list, which is never empty.
pub fn pick<T: Copy>(dice: &mut StdRng, list: &[T]) -> T {
    *list.choose(dice).expect("the lists of this sandbox are constants with entries")
}

/// The moment at which a world's history ends: fixed, so that a seed gives the same bytes on any day, unless the
/// clock is behind it; then this day's midnight, so that nothing lies in the future.
pub fn history_end(now: DateTime<Utc>) -> DateTime<Utc> {
    let fixed = Utc.with_ymd_and_hms(2026, 11, 1, 0, 0, 0).single().expect("a date of the calendar");
    fixed.min(now.with_time(NaiveTime::MIN).single().unwrap_or(now))
}

/// When the `index`th of `count` records came to be, in milliseconds: later records later, over two years.
pub fn created_ms(dice: &mut StdRng, index: usize, count: usize, end: DateTime<Utc>) -> i64 {
    let span = TimeDelta::days(HISTORY_DAYS).num_milliseconds();
    let slot = span / i64::try_from(count.max(1)).unwrap_or(i64::MAX);
    let start = end.timestamp_millis() - span + slot * i64::try_from(index).unwrap_or(0);
    start + dice.random_range(0..slot.max(1))
}

/// When a record was last changed: mostly within days of its beginning, sometimes much later, never after the end.
pub fn modified_ms(dice: &mut StdRng, created_ms: i64, end: DateTime<Utc>) -> i64 {
    let room = (end.timestamp_millis() - created_ms).max(1);
    let usual = TimeDelta::days(9).num_milliseconds().min(room);
    created_ms + if dice.random_bool(0.85) { dice.random_range(0..usual) } else { dice.random_range(0..room) }
}

/// Writes `2026-01-05T09:00:00Z`, with milliseconds when there are any. Much quicker than the general formatter,
/// which a hundred thousand records would notice.
pub fn write_iso(out: &mut String, at_ms: i64) {
    let at = DateTime::from_timestamp_millis(at_ms).unwrap_or_default();
    let mut digits = |number: u32, width: u32, before: &str| {
        out.push_str(before);
        for place in (0..width).rev() {
            let digit = u8::try_from(number / 10_u32.pow(place) % 10).unwrap_or(0);
            out.push(char::from(b'0' + digit));
        }
    };
    digits(u32::try_from(at.year()).unwrap_or(0), 4, "");
    digits(at.month(), 2, "-");
    digits(at.day(), 2, "-");
    digits(at.hour(), 2, "T");
    digits(at.minute(), 2, ":");
    digits(at.second(), 2, ":");
    if at.timestamp_subsec_millis() > 0 {
        digits(at.timestamp_subsec_millis(), 3, ".");
    }
    out.push('Z');
}

/// As [`write_iso`], in a text of its own.
pub fn iso(at_ms: i64) -> String {
    let mut out = String::with_capacity(24);
    write_iso(&mut out, at_ms);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn one_seed_tells_one_story() {
        let tell = |seed| {
            let mut dice = StdRng::seed_from_u64(seed);
            (0..20).map(|_| service_call(&mut dice).description).collect::<Vec<_>>()
        };
        assert_eq!(tell(1), tell(1));
        assert_ne!(tell(1), tell(2));
    }

    #[test]
    fn times_read_as_they_should() {
        for at_ms in [0, 1_767_603_600_000, 1_767_603_600_123, 951_782_399_009, 4_102_444_799_999] {
            let written = DateTime::parse_from_rfc3339(&iso(at_ms)).unwrap();
            assert_eq!(written.timestamp_millis(), at_ms);
        }
        assert_eq!(iso(1_767_603_600_000), "2026-01-05T09:00:00Z");
        assert_eq!(iso(1_767_603_601_023), "2026-01-05T09:00:01.023Z");
    }

    #[test]
    fn history_keeps_its_order_and_its_end() {
        let mut dice = StdRng::seed_from_u64(3);
        let end = history_end(Utc.with_ymd_and_hms(2026, 3, 4, 5, 6, 7).unwrap());
        assert_eq!(end, Utc.with_ymd_and_hms(2026, 3, 4, 0, 0, 0).unwrap());
        let created: Vec<i64> = (0..500).map(|index| created_ms(&mut dice, index, 500, end)).collect();
        assert!(created.is_sorted());
        for at in created {
            let modified = modified_ms(&mut dice, at, end);
            assert!(at <= modified && modified <= end.timestamp_millis());
        }
        assert_eq!(history_end(Utc.with_ymd_and_hms(2030, 1, 1, 1, 1, 1).unwrap()).year(), 2026);
    }
}
