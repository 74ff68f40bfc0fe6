//! One Jobber account: its clients, users, jobs and visits, and how the API shows them.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::sandbox::world::iso;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// What happened to a job or a visit that is no more stays here for the truth.
#[derive(Debug, Clone)]
pub struct Job {
    pub n: u64,
    pub number: u64,
    pub title: Option<String>,
    pub instructions: Option<String>,
    pub client: u64,
    /// Street, city, province, postal code, country; `None`: the job has no property.
    pub address: Option<[Option<String>; 5]>,
    pub recurring: bool,
    pub created_ms: i64,
    pub updated_ms: i64,
    pub start_ms: Option<i64>,
    pub end_ms: Option<i64>,
    pub completed_ms: Option<i64>,
    pub archived: bool,
    pub total_cents: i64,
    pub outstanding_cents: Option<i64>,
    /// A status that the documentation does not know.
    pub odd_status: Option<&'static str>,
    pub deleted: bool,
}

#[derive(Debug, Clone)]
pub struct Visit {
    pub n: u64,
    pub job: u64,
    pub title: String,
    pub created_ms: i64,
    pub start_ms: Option<i64>,
    pub end_ms: Option<i64>,
    pub completed: bool,
    pub users: Vec<u64>,
    pub deleted: bool,
}

#[derive(Debug, Clone)]
pub struct Client {
    pub n: u64,
    pub name: String,
    pub company: bool,
    pub archived: bool,
    pub created_ms: i64,
    pub updated_ms: i64,
}

#[derive(Debug, Clone)]
pub struct User {
    pub n: u64,
    pub name: [&'static str; 2],
}

pub struct Account {
    pub n: u64,
    pub name: String,
    pub clients: BTreeMap<u64, Client>,
    pub users: BTreeMap<u64, User>,
    pub jobs: BTreeMap<u64, Job>,
    pub visits: BTreeMap<u64, Visit>,
    /// Jobs that live, by their last modification.
    pub by_update: BTreeSet<(i64, u64)>,
    pub next: u64,
    pub dice: StdRng,
}

/// Base64 of `gid://Jobber/Type/n`. Jobber's own ids come with padding and without; here every other one does.
pub fn encoded(kind: &str, n: u64) -> String {
    let text = STANDARD.encode(format!("gid://Jobber/{kind}/{n}"));
    if n.is_multiple_of(2) { text.trim_end_matches('=').to_owned() } else { text }
}

/// The number behind an id, where it is one of `kind` and written as it was sent.
pub fn decoded(kind: &str, id: &str) -> Option<u64> {
    let padded = format!("{}{}", id, "=".repeat((4 - id.len() % 4) % 4));
    let text = String::from_utf8(STANDARD.decode(padded).ok()?).ok()?;
    let n = text.strip_prefix(&format!("gid://Jobber/{kind}/"))?.parse().ok()?;
    (encoded(kind, n) == id).then_some(n)
}

impl Account {
    pub fn id(&self) -> String {
        encoded("Account", self.n)
    }

    pub fn live_job(&self, id: &str) -> Option<&Job> {
        self.jobs.get(&decoded("Job", id)?).filter(|job| !job.deleted)
    }

    /// Puts a job in, or its new version in place of the old one.
    pub fn put(&mut self, job: Job) {
        if let Some(old) = self.jobs.get(&job.n) {
            self.by_update.remove(&(old.updated_ms, old.n));
        }
        if !job.deleted {
            self.by_update.insert((job.updated_ms, job.n));
        }
        self.jobs.insert(job.n, job);
    }

    /// A job with every field of the schema.
    pub fn job(&self, job: &Job, now_ms: i64) -> Value {
        let number = |cents: i64| json!(amount(cents));
        json!({
            "id": encoded("Job", job.n), "jobNumber": job.number, "title": job.title, "instructions": job.instructions,
            "jobStatus": status(job, now_ms), "jobType": if job.recurring { "RECURRING" } else { "ONE_OFF" },
            "billingType": "FIXED_PRICE", "startAt": job.start_ms.map(iso), "endAt": job.end_ms.map(iso),
            "completedAt": job.completed_ms.map(iso), "createdAt": iso(job.created_ms), "updatedAt": iso(job.updated_ms),
            "total": number(job.total_cents),
            "jobBalanceTotals": job.outstanding_cents.map(|cents| {
                json!({"totalAmount": number(job.total_cents), "outstandingAmount": number(cents)})
            }),
            "jobberWebUri": format!("https://secure.getjobber.com/jobs/{}", job.n),
            "client": self.clients.get(&job.client).map(client),
            "property": job.address.as_ref().map(|address| property(job.n, address)),
        })
    }

    pub fn visit(&self, visit: &Visit, now_ms: i64) -> Value {
        let users = visit.users.iter().filter_map(|n| self.users.get(n)).map(user);
        json!({
            "id": encoded("Visit", visit.n), "title": visit.title, "createdAt": iso(visit.created_ms),
            "startAt": visit.start_ms.map(iso), "endAt": visit.end_ms.map(iso),
            "visitStatus": visit_status(visit, now_ms),
            "job": self.jobs.get(&visit.job).map(|job| json!({"id": encoded("Job", job.n)})),
            "assignedUsers": users.collect::<Vec<_>>(),
        })
    }

    pub fn account(&self) -> Value {
        json!({"id": self.id(), "name": self.name})
    }
}

pub fn client(client: &Client) -> Value {
    let mut words = client.name.splitn(2, ' ');
    json!({
        "id": encoded("Client", client.n), "name": client.name,
        "firstName": if client.company { None } else { words.next() },
        "lastName": if client.company { None } else { words.next() },
        "companyName": client.company.then_some(&client.name), "isCompany": client.company, "isLead": false,
        "isArchived": client.archived, "createdAt": iso(client.created_ms), "updatedAt": iso(client.updated_ms),
    })
}

pub fn user(user: &User) -> Value {
    let [first, last] = user.name;
    json!({"id": encoded("User", user.n), "name": {"first": first, "last": last, "full": user.name.join(" ")}})
}

fn property(job: u64, [street, city, province, postal_code, country]: &[Option<String>; 5]) -> Value {
    json!({
        "id": encoded("Property", job),
        "address": {
            "street": street, "city": city, "province": province, "postalCode": postal_code, "country": country,
        },
    })
}

/// Money is a `Float` in units of the account's currency.
#[expect(clippy::cast_precision_loss, reason = "amounts of a service call are far below 2^53 cents")]
fn amount(cents: i64) -> f64 {
    cents as f64 / 100.0
}

/// The bucket of the dashboard, which moves with the clock.
fn status(job: &Job, now_ms: i64) -> &'static str {
    let day = |ms: i64| ms.div_euclid(DAY_MS);
    match (job.odd_status, job.start_ms) {
        (Some(odd), _) => odd,
        _ if job.archived => "archived",
        _ if job.completed_ms.is_some() => "requires_invoicing",
        (None, None) => "unscheduled",
        (None, Some(start)) if day(start) == day(now_ms) => "today",
        (None, Some(start)) if start < now_ms && job.recurring => "active",
        (None, Some(start)) if start < now_ms => "late",
        _ => "upcoming",
    }
}

fn visit_status(visit: &Visit, now_ms: i64) -> &'static str {
    let day = |ms: i64| ms.div_euclid(DAY_MS);
    match visit.start_ms {
        _ if visit.completed => "COMPLETED",
        None => "UNSCHEDULED",
        Some(start) if day(start) == day(now_ms) => "TODAY",
        Some(start) if start < now_ms => "LATE",
        Some(_) => "UPCOMING",
    }
}

#[cfg(test)]
mod tests {
    use super::{decoded, encoded};

    #[test]
    fn ids_are_taken_as_they_were_sent() {
        for n in [1, 2, 10, 11, 123_456_789] {
            assert_eq!(decoded("Job", &encoded("Job", n)), Some(n));
            assert_eq!(decoded("Visit", &encoded("Job", n)), None);
        }
        let [padded, bare] = [encoded("Job", 11), encoded("Job", 10)];
        assert!(padded.ends_with('=') && !bare.ends_with('='), "{padded} {bare}");
        assert_eq!(decoded("Job", padded.trim_end_matches('=')), None, "not re-encoded");
        assert_eq!(decoded("Job", "MQ=="), None);
    }
}
