//! Fills an account with jobs and their visits, from a seed.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::account::{Account, Client, Job, User, Visit};
use crate::sandbox::world::{created_ms, modified_ms, person, pick, service_call};

const HOUR_MS: i64 = 60 * 60 * 1000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// More than the people that come along with a visit.
const USERS: u64 = 14;
/// Jobs for each client, about.
const JOBS_PER_CLIENT: usize = 3;
/// A job's total, in cents.
const CENTS: std::ops::Range<i64> = 4_900..990_000;

pub fn account(n: u64, name: String, count: usize, seed: u64, end: DateTime<Utc>) -> Account {
    let mut account = Account {
        n,
        name,
        clients: BTreeMap::new(),
        users: BTreeMap::new(),
        jobs: BTreeMap::new(),
        visits: BTreeMap::new(),
        by_update: BTreeSet::new(),
        next: 1_000,
        dice: StdRng::seed_from_u64(seed ^ n.rotate_left(17)),
    };
    for n in 1..=USERS {
        let name = person(&mut account.dice);
        account.users.insert(n, User { n, name });
    }
    for index in 0..count.div_ceil(JOBS_PER_CLIENT).max(1) {
        put_client(&mut account, index, count.max(1), end);
    }
    for index in 0..count {
        let created = created_ms(&mut account.dice, index, count, end);
        let updated = modified_ms(&mut account.dice, created, end);
        let job = job(&mut account, created, updated, end);
        put_visits(&mut account, &job, end);
        account.put(job);
    }
    account
}

fn put_client(account: &mut Account, index: usize, count: usize, end: DateTime<Utc>) {
    let dice = &mut account.dice;
    let n = 1 + index as u64;
    let company = dice.random_bool(0.3);
    let name = person(dice);
    let name = match index {
        // A required text may be empty.
        7 => String::new(),
        _ if company => format!("{} & Sons", name[1]),
        _ => name.join(" "),
    };
    let created_ms = created_ms(dice, index, count, end);
    let updated_ms = modified_ms(dice, created_ms, end);
    account
        .clients
        .insert(n, Client { n, name, company, archived: dice.random_bool(0.05), created_ms, updated_ms });
}

/// A job of invented values. It is not put in yet.
pub fn job(account: &mut Account, created: i64, updated: i64, end: DateTime<Utc>) -> Job {
    let clients = account.clients.len() as u64;
    let dice = &mut account.dice;
    let n = account.next;
    account.next += 1;
    let call = service_call(dice);
    let start = dice.random_bool(0.9).then(|| created + dice.random_range(0..40) * DAY_MS + 9 * HOUR_MS);
    let over = end.timestamp_millis();
    let completed = start.filter(|start| *start < over).filter(|_| dice.random_bool(0.8));
    let total = dice.random_range(CENTS);
    let address = dice.random_bool(0.97).then(|| address(&call.address, dice));
    Job {
        n,
        number: n - 999,
        // Titles are optional, and some are empty.
        title: match dice.random_range(0..20) {
            0 => None,
            1 => Some(String::new()),
            _ => Some(call.subject),
        },
        instructions: dice.random_bool(0.6).then_some(call.description),
        client: dice.random_range(1..=clients),
        address,
        recurring: dice.random_bool(0.2),
        created_ms: created,
        updated_ms: updated,
        start_ms: start,
        end_ms: start.filter(|_| dice.random_bool(0.9)).map(|start| start + 3 * HOUR_MS),
        completed_ms: completed.map(|start| (start + 3 * HOUR_MS).min(over)),
        archived: completed.is_some() && dice.random_bool(0.5) || dice.random_bool(0.03),
        total_cents: total,
        outstanding_cents: match dice.random_range(0..4) {
            0 => None,
            1 => Some(total),
            _ => Some(0),
        },
        odd_status: dice.random_bool(0.02).then_some("awaiting_parts"),
        deleted: false,
    }
}

/// The town's addresses are `street, city`; the rest is made up, with gaps.
fn address(text: &str, dice: &mut StdRng) -> [Option<String>; 5] {
    let (street, city) = text.split_once(", ").unwrap_or((text, ""));
    [
        Some(street.to_owned()),
        Some(city.to_owned()),
        dice.random_bool(0.8).then(|| pick(dice, &["Alberta", "Ontario", "Ohio"]).to_owned()),
        dice.random_bool(0.8).then(|| pick(dice, &["T5J 0N3", "43004", ""]).to_owned()),
        dice.random_bool(0.5).then(|| pick(dice, &["Canada", "United States"]).to_owned()),
    ]
}

/// One visit for most jobs, several for recurring ones, some without a time, some with nobody assigned.
pub fn put_visits(account: &mut Account, job: &Job, end: DateTime<Utc>) {
    let visits = match account.dice.random_range(0..10) {
        0 => 0,
        _ if job.recurring => account.dice.random_range(2..6),
        _ => 1,
    };
    for index in 0..visits {
        let dice = &mut account.dice;
        let start = job.start_ms.filter(|_| dice.random_bool(0.95)).map(|start| start + index * 7 * DAY_MS);
        let first = dice.random_range(1..=USERS);
        let mut users = match dice.random_range(0..10) {
            0 => vec![],
            1..4 => vec![first, 1 + first % USERS],
            4 if dice.random_bool(0.3) => (1..=USERS).collect(),
            _ => vec![first],
        };
        users.dedup();
        let n = account.next;
        account.next += 1;
        let visit = Visit {
            n,
            job: job.n,
            title: format!("Visit {}", index + 1),
            created_ms: job.created_ms,
            start_ms: start,
            end_ms: start.map(|start| start + 2 * HOUR_MS),
            completed: start.is_some_and(|start| start < end.timestamp_millis())
                && (job.completed_ms.is_some() || dice.random_bool(0.5)),
            users,
            deleted: false,
        };
        account.visits.insert(n, visit);
    }
}
