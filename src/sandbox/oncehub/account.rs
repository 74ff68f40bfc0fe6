//! One OnceHub account: its users, booking calendars, pages, event types and bookings, and what happens to them.

use chrono::{DateTime, TimeDelta, Utc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::sandbox::world::{created_ms, iso, modified_ms, person, pick, service_call};

const USERS: usize = 6;
const CALENDARS: &[&str] = &["Boiler service", "Roof inspection", "Emergency"];
const EVENT_TYPES: &[&str] = &["Consultation", "Follow-up"];
const BOOKING_PAGES: &[&str] = &["Home visits"];
const MASTER_PAGES: &[&str] = &["All services"];
const ZONES: &[&str] = &["Europe/Oslo", "America/New_York", "Asia/Kolkata", "Pacific/Auckland"];
/// How often each status is met.
const STATUSES: &[&str] = &[
    "requested",
    "scheduled",
    "scheduled",
    "rescheduled",
    "completed",
    "completed",
    "completed",
    "canceled",
    "canceled",
    "no_show",
    "waitlisted",
];

/// How many kinds of list there are.
const KINDS: usize = 6;

/// What a list shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Booking,
    User,
    BookingCalendar,
    BookingPage,
    MasterPage,
    EventType,
}

impl Kind {
    const ALL: [Self; KINDS] = [
        Self::Booking,
        Self::User,
        Self::BookingCalendar,
        Self::BookingPage,
        Self::MasterPage,
        Self::EventType,
    ];

    /// The word in paths.
    pub fn path(self) -> &'static str {
        match self {
            Self::Booking => "bookings",
            Self::User => "users",
            Self::BookingCalendar => "booking-calendars",
            Self::BookingPage => "booking-pages",
            Self::MasterPage => "master-pages",
            Self::EventType => "event-types",
        }
    }

    pub fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.path() == path)
    }

    /// What its requests are counted as: the name of the stream.
    pub fn purpose(self) -> &'static str {
        match self {
            Self::Booking => "bookings",
            Self::User => "users",
            Self::BookingCalendar => "booking_calendars",
            Self::BookingPage => "booking_pages",
            Self::MasterPage => "master_pages",
            Self::EventType => "event_types",
        }
    }
}

/// Where an object can still be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Listed,
    /// Out of the lists; asked for by id, nothing is left of it but the id.
    Redacted,
    /// Nowhere.
    Gone,
}

pub struct Object {
    pub id: String,
    pub value: Value,
    pub standing: Standing,
    pub updated_ms: i64,
}

pub struct Account {
    number: u64,
    /// The API key was deleted.
    pub key_dead: bool,
    /// By [`Kind`], newest first.
    tables: [Vec<Object>; KINDS],
    dice: StdRng,
}

/// What can happen to an account.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// So many more bookings.
    Create {
        count: usize,
    },
    /// Fields of a booking, or of what bookings refer to, get other values.
    Set {
        id: String,
        fields: Map<String, Value>,
    },
    Cancel {
        id: String,
        reason: String,
    },
    /// Deleted for good: redacted when asked for by id, or, with `gone`, 404.
    Delete {
        id: String,
        #[serde(default)]
        gone: bool,
    },
}

impl Account {
    pub fn new(number: u64, count: usize, seed: u64, end: DateTime<Utc>) -> Self {
        let dice = StdRng::seed_from_u64(seed ^ (number << 32) ^ 0x0ce4_0b00);
        let mut account = Self { number, key_dead: false, tables: [const { Vec::new() }; KINDS], dice };
        account.settle(end.timestamp_millis());
        for index in 0..count {
            let created = created_ms(&mut account.dice, index, count, end);
            let updated = modified_ms(&mut account.dice, created, end);
            account.book(created, updated);
        }
        account
    }

    /// The id of its owner, by which it is known.
    pub fn id(&self) -> String {
        format!("USR-SB{:02}0001", self.number)
    }

    /// Its owner's e-mail address.
    pub fn address(&self) -> String {
        format!("owner{}@firm.example", self.number)
    }

    pub fn table(&self, kind: Kind) -> &[Object] {
        &self.tables[kind as usize]
    }

    /// Users, calendars, event types and pages.
    fn settle(&mut self, at_ms: i64) {
        for index in 0..USERS {
            let [first, last] = person(&mut self.dice);
            let (role, email) = match index {
                0 => ("Account Owner", self.address()),
                1 => ("Administrator", format!("admin{}@firm.example", self.number)),
                _ => ("Member", format!("member{index}.{}@firm.example", self.number)),
            };
            let id = format!("USR-SB{:02}{:04}", self.number, index + 1);
            let user = json!({
                "object": "user", "id": id, "email": email, "role_name": role, "timezone": pick(&mut self.dice, ZONES),
                "status": if index + 1 == USERS { "invited" } else { "active" }, "teams": [],
                // Who was only invited has told no name.
                "first_name": if index + 1 == USERS { Value::Null } else { first.into() },
                "last_name": if index + 1 == USERS { json!("") } else { last.into() },
            });
            self.push(Kind::User, id, user, at_ms);
        }
        for (index, name) in CALENDARS.iter().enumerate() {
            let id = format!("BKC-SB{:02}{:04}", self.number, index + 1);
            let calendar = json!({
                "object": "booking_calendar", "id": id, "host": self.user(index), "name": name,
                "subject": format!("{name} visit"), "url": format!("https://go.oncehub.example/{index}"),
                "published": true, "duration_minutes": 45,
            });
            self.push(Kind::BookingCalendar, id, calendar, at_ms);
        }
        for (index, name) in EVENT_TYPES.iter().enumerate() {
            let id = format!("ET-SB{:02}{:04}", self.number, index + 1);
            let event_type =
                json!({"object": "event_type", "id": id, "name": name, "description": null, "label": name});
            self.push(Kind::EventType, id, event_type, at_ms);
        }
        self.settle_pages(at_ms);
    }

    /// Pages of the classic product.
    fn settle_pages(&mut self, at_ms: i64) {
        let kinds = [
            (Kind::BookingPage, "BP", "booking_page", BOOKING_PAGES),
            (Kind::MasterPage, "MP", "master_page", MASTER_PAGES),
        ];
        for (kind, prefix, object, names) in kinds {
            for (index, name) in names.iter().enumerate() {
                let id = format!("{prefix}-SB{:02}{:04}", self.number, index + 1);
                let mut page = json!({
                    "object": object, "id": id, "name": name, "label": format!("Book: {name}"), "active": true,
                    "url": format!("https://go.oncehub.example/{object}{index}"),
                });
                if kind == Kind::BookingPage {
                    page["timezone"] = pick(&mut self.dice, ZONES).into();
                }
                self.push(kind, id, page, at_ms);
            }
        }
    }

    fn user(&self, index: usize) -> String {
        format!("USR-SB{:02}{:04}", self.number, index % USERS + 1)
    }

    fn push(&mut self, kind: Kind, id: String, value: Value, updated_ms: i64) {
        let object = Object { id, value, standing: Standing::Listed, updated_ms };
        self.tables[kind as usize].insert(0, object);
    }

    /// One more booking, with all the ways of saying that there is nothing.
    fn book(&mut self, created_ms: i64, updated_ms: i64) -> String {
        let number = self.tables[Kind::Booking as usize].len() + 1;
        let id = format!("BKNG-SB{:02}{number:08}", self.number);
        let call = service_call(&mut self.dice);
        let dice = &mut self.dice;
        let status = pick(dice, STATUSES);
        let starts_ms = created_ms + TimeDelta::hours(dice.random_range(2..400)).num_milliseconds();
        let classic = dice.random_bool(0.2);
        let expanded = dice.random_bool(0.05);
        let (owner, calendar, event_type) = (
            dice.random_range(0..USERS),
            dice.random_range(0..CALENDARS.len()),
            dice.random_range(0..EVENT_TYPES.len()),
        );
        let nothing = [Value::Null, json!("")][dice.random_range(0..2)].clone();
        let canceled = status == "canceled";
        let owner_id = format!("USR-SB{:02}{:04}", self.number, owner + 1);
        let minutes = pick(dice, &[15, 30, 45, 60, 90]);
        let mut booking = json!({
            "object": "booking", "id": id, "tracking_id": format!("SB{number:06}"), "status": status, "in_trash": false,
            "subject": if dice.random_bool(0.05) { nothing.clone() } else { call.subject.into() },
            "creation_time": iso(created_ms), "starting_time": iso(starts_ms / 60_000 * 60_000),
            "last_updated_time": iso(updated_ms), "customer_timezone": pick(dice, ZONES), "duration_minutes": minutes,
            "owner": if expanded { json!({"object": "user", "id": owner_id, "first_name": "X"}) } else { owner_id.into() },
            "contact": format!("CTC-SB{number:06}"), "conversation": null,
            "virtual_conferencing": {"join_url": format!("https://meet.example/{number}")},
            "location_description": call.address, "rescheduled_booking_id": "",
            "cancel_reschedule_information": {
                "reason": if canceled { "No longer needed" } else { "" },
                "actioned_by": if canceled { "customer" } else { "" }, "user_id": "",
            },
            "cancel_url": format!("https://go.oncehub.example/cancel/{number}"),
            "reschedule_url": format!("https://go.oncehub.example/move/{number}"),
            "ics_url": format!("https://go.oncehub.example/ics/{number}"),
            "attendees": [format!("customer{number}@example.com")],
            "form_submission": {
                "name": call.customer, "email": format!("customer{number}@example.com"), "phone": "+1 555 0100",
                "mobile_phone": if dice.random_bool(0.5) { nothing } else { format!("+1 555 {number:06}").into() },
                "note": call.description, "guests": [], "custom_fields": [],
            },
            "external_calendar": {"type": "none"}, "payment_information": null, "utm_params": null, "custom_fields": [],
        });
        if classic {
            booking["booking_page"] = format!("BP-SB{:02}0001", self.number).into();
            booking["master_page"] = if number.is_multiple_of(2) {
                Value::Null
            } else {
                format!("MP-SB{:02}0001", self.number).into()
            };
            // A page that offers but one kind of visit names none.
            if !number.is_multiple_of(3) {
                booking["event_type"] = format!("ET-SB{:02}{:04}", self.number, event_type + 1).into();
            }
        } else {
            booking["booking_calendar"] = format!("BKC-SB{:02}{:04}", self.number, calendar + 1).into();
        }
        self.push(Kind::Booking, id.clone(), booking, updated_ms);
        id
    }

    fn object(&mut self, id: &str) -> Option<&mut Object> {
        self.tables.iter_mut().flatten().find(|object| object.id == id)
    }

    /// Makes it happen. `None`: there is no such object.
    pub fn change(&mut self, change: &Change, now_ms: i64) -> Option<Vec<String>> {
        let (id, fields) = match change {
            Change::Create { count } => {
                return Some((0..*count).map(|_| self.book(now_ms, now_ms)).collect());
            }
            Change::Delete { id, gone } => {
                let standing = if *gone { Standing::Gone } else { Standing::Redacted };
                self.object(id)?.standing = standing;
                return Some(vec![id.clone()]);
            }
            Change::Set { id, fields } => (id, fields.clone()),
            Change::Cancel { id, reason } => {
                let fields = json!({
                    "status": "canceled",
                    "cancel_reschedule_information": {"reason": reason, "actioned_by": "user", "user_id": ""},
                });
                (id, fields.as_object().cloned().unwrap_or_default())
            }
        };
        let object = self.object(id)?;
        object.value.as_object_mut()?.extend(fields);
        if let Some(told) = object.value.get_mut("last_updated_time") {
            *told = iso(now_ms).into();
        }
        object.updated_ms = now_ms;
        Some(vec![id.clone()])
    }

    pub fn users(&self) -> Vec<Value> {
        self.table(Kind::User).iter().map(|object| object.value.clone()).collect()
    }

    pub fn truth(&self) -> Vec<Value> {
        let line = |object: &Object| json!({"id": object.id, "deleted": object.standing != Standing::Listed, "booking": object.value});
        self.table(Kind::Booking).iter().map(line).collect()
    }

    /// What bookings refer to.
    pub fn reference(&self) -> Vec<Value> {
        let kinds = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Booking);
        let lines =
            kinds.flat_map(|kind| self.table(kind).iter().map(move |object| (kind.purpose(), object)));
        lines
            .map(|(kind, object)| json!({"kind": kind, "deleted": object.standing != Standing::Listed, "record": object.value}))
            .collect()
    }
}
