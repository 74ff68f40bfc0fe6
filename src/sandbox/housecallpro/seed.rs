//! Fills an account with employees, customers and jobs, from a seed.

use chrono::{DateTime, Utc};
use rand::Rng;
use rand::rngs::StdRng;
use uuid::Uuid;

use super::account::{Account, Company, Facts, Kind, Record, Standing, Status};
use crate::sandbox::world::{created_ms, modified_ms, person, pick};

/// The number of the first job.
pub const NUMBER_FIRST: u32 = 1001;
/// Employees of each location; the last one has left.
const EMPLOYEES: usize = 6;
/// Jobs for each customer, about.
const JOBS_PER_CUSTOMER: usize = 3;
const LOCATIONS: &[&str] = &["North", "Lakeside", "County"];

/// How often each status is met.
#[rustfmt::skip]
const STATUSES: &[Status] = &[
    Status::NeedsScheduling, Status::Scheduled, Status::Scheduled, Status::InProgress, Status::CompleteRated,
    Status::CompleteUnrated, Status::CompleteUnrated, Status::CompleteUnrated, Status::UserCanceled, Status::ProCanceled,
];

pub fn company(dice: &mut StdRng, number: u64, index: usize) -> Company {
    let place = index.checked_sub(1).map(|index| LOCATIONS[index % LOCATIONS.len()]);
    let name = match place {
        None => format!("Acme Home Services {number}"),
        Some(place) => format!("Acme Home Services {number} - {place}"),
    };
    Company { id: uuid(dice), name, lost: false }
}

fn uuid(dice: &mut StdRng) -> Uuid {
    uuid::Builder::from_random_bytes(dice.random()).into_uuid()
}

/// Puts `count` jobs, and what they name, into an account that has none.
pub fn fill(account: &mut Account, count: usize, end: DateTime<Utc>) {
    let mut dice = account.dice.clone();
    for company in 0..account.companies.len() {
        for index in 0..EMPLOYEES {
            let at = created_ms(&mut dice, 0, 24, end) / 1000;
            let mut record = record(&mut dice, company, at, at, Facts::Employee { name: [""; 2] });
            record.facts = Facts::Employee { name: person(&mut dice) };
            record.standing = if index + 1 == EMPLOYEES { Standing::Gone } else { Standing::Listed };
            account.push(Kind::Employee, record);
        }
    }
    let customers = count.div_ceil(JOBS_PER_CUSTOMER).max(account.companies.len());
    for index in 0..customers {
        let (created, updated) = times(&mut dice, index, customers, end);
        let facts = Facts::Customer { name: person(&mut dice), firm: dice.random_bool(0.15) };
        // Every location has customers.
        let company = if index < account.companies.len() { index } else { location(&mut dice, account) };
        account.push(Kind::Customer, record(&mut dice, company, created, updated, facts));
    }
    for index in 0..count {
        let (created, updated) = times(&mut dice, index, count, end);
        let number = NUMBER_FIRST + u32::try_from(index).unwrap_or(0);
        let company = location(&mut dice, account);
        let job = job(&mut dice, account, number, company, created, updated);
        account.push(Kind::Job, job);
    }
    account.dice = dice;
}

/// Most of what there is belongs to the company itself.
fn location(dice: &mut StdRng, account: &Account) -> usize {
    let below = account.companies.len() - 1;
    if below > 0 && dice.random_bool(0.3) { dice.random_range(1..=below) } else { 0 }
}

/// Whole seconds, as all times of this provider.
fn times(dice: &mut StdRng, index: usize, count: usize, end: DateTime<Utc>) -> (i64, i64) {
    let created = created_ms(dice, index, count, end);
    (created.div_euclid(1000), modified_ms(dice, created, end).div_euclid(1000))
}

fn record(dice: &mut StdRng, company: usize, created_s: i64, updated_s: i64, facts: Facts) -> Record {
    let (id, seed) = (dice.random(), dice.random());
    Record { id, company, created_s, updated_s, standing: Standing::Listed, seed, facts, patch: None }
}

/// A job of one location, for one of its customers.
pub fn job(
    dice: &mut StdRng,
    account: &Account,
    number: u32,
    company: usize,
    created_s: i64,
    updated_s: i64,
) -> Record {
    let of_company = |records: &[Record], from: usize| {
        let (before, after) = records.split_at(from);
        let found = after.iter().position(|record| record.company == company).map(|index| index + from);
        found.or_else(|| before.iter().position(|record| record.company == company)).unwrap_or(0)
    };
    let customer = of_company(&account.customers, dice.random_range(0..account.customers.len().max(1)));
    let first = company * EMPLOYEES;
    let mut crew = [None; 2];
    for place in crew.iter_mut().take(dice.random_range(0..=2)) {
        *place = Some(first + dice.random_range(0..EMPLOYEES));
    }
    if crew[0] == crew[1] {
        crew[1] = None;
    }
    let status = if dice.random_bool(0.01) { Status::OnHold } else { pick(dice, STATUSES) };
    let cancelled = matches!(status, Status::UserCanceled | Status::ProCanceled);
    let facts =
        Facts::Job { number, status, customer, employees: crew, ended_s: cancelled.then_some(updated_s) };
    record(dice, company, created_s, updated_s, facts)
}
