//! One Housecall Pro account: a company, the locations below it, and what they have: jobs, customers, employees.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use uuid::Uuid;

use super::render;
use super::seed;

/// What a list shows. The order is that of the account's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Job,
    Customer,
    Employee,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Job, Self::Customer, Self::Employee];

    /// The word in paths and envelopes.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Job => "jobs",
            Self::Customer => "customers",
            Self::Employee => "employees",
        }
    }

    pub fn prefix(self) -> &'static str {
        match self {
            Self::Job => "job_",
            Self::Customer => "cus_",
            Self::Employee => "pro_",
        }
    }
}

/// Where a record can still be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Listed,
    /// Out of the lists; a read by id answers.
    Hidden,
    /// Out of the lists; a read by id answers 400 "Archived job".
    Archived,
    /// Nowhere.
    Gone,
}

impl Standing {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Listed => "listed",
            Self::Hidden => "hidden",
            Self::Archived => "archived",
            Self::Gone => "gone",
        }
    }
}

/// A location, or the company above all of them, which is the first.
pub struct Company {
    pub id: Uuid,
    pub name: String,
    /// The consenting user and the key may not look into it any more.
    pub lost: bool,
}

/// What was changed from outside: values by JSON pointer, and pointers to what answers leave out.
#[derive(Debug, Clone, Default)]
pub struct Patch {
    pub fields: BTreeMap<String, Value>,
    pub omit: BTreeSet<String>,
}

/// What a record is about; what follows from `seed` is made when it is shown.
pub enum Facts {
    Job { number: u32, status: Status, customer: usize, employees: [Option<usize>; 2], ended_s: Option<i64> },
    Customer { name: [&'static str; 2], firm: bool },
    Employee { name: [&'static str; 2] },
}

/// A job's `work_status`, as answers spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    NeedsScheduling,
    Scheduled,
    InProgress,
    CompleteRated,
    CompleteUnrated,
    UserCanceled,
    ProCanceled,
    /// A word that no documentation knows.
    OnHold,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeedsScheduling => "needs scheduling",
            Self::Scheduled => "scheduled",
            Self::InProgress => "in progress",
            Self::CompleteRated => "complete rated",
            Self::CompleteUnrated => "complete unrated",
            Self::UserCanceled => "user canceled",
            Self::ProCanceled => "pro canceled",
            Self::OnHold => "on hold",
        }
    }
}

/// The answer's words for a word of the `work_status` filter. An answer's word is no filter and finds nothing.
pub fn filtered(word: &str) -> &'static [&'static str] {
    match word {
        "unscheduled" => &["needs scheduling"],
        "scheduled" => &["scheduled"],
        "in_progress" => &["in progress"],
        "completed" => &["complete rated", "complete unrated"],
        "canceled" => &["user canceled", "pro canceled"],
        _ => &[],
    }
}

pub struct Record {
    pub id: u128,
    /// Index of its location.
    pub company: usize,
    pub created_s: i64,
    pub updated_s: i64,
    pub standing: Standing,
    pub seed: u64,
    pub facts: Facts,
    pub patch: Option<Box<Patch>>,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChangeError {
    #[error("there is no record `{0}` that this can be done to")]
    Record(String),
    #[error("there is no location `{0}`")]
    Location(String),
    #[error("`{0}` is no JSON pointer")]
    Pointer(String),
}

pub struct Account {
    pub companies: Vec<Company>,
    pub jobs: Vec<Record>,
    pub customers: Vec<Record>,
    pub employees: Vec<Record>,
    /// Whether the API key has been deleted.
    pub key_dead: bool,
    pub dice: StdRng,
    by_id: HashMap<u128, usize>,
}

impl Account {
    /// With `locations` below its company, and nothing in them.
    pub fn new(number: u64, locations: usize, seed: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed ^ number.rotate_left(17));
        let companies = (0..=locations).map(|index| seed::company(&mut dice, number, index)).collect();
        Self {
            companies,
            jobs: Vec::new(),
            customers: Vec::new(),
            employees: Vec::new(),
            key_dead: false,
            dice,
            by_id: HashMap::new(),
        }
    }

    /// The company's id, by which the account is known.
    pub fn id(&self) -> String {
        self.companies[0].id.to_string()
    }

    pub fn table(&self, kind: Kind) -> &[Record] {
        match kind {
            Kind::Job => &self.jobs,
            Kind::Customer => &self.customers,
            Kind::Employee => &self.employees,
        }
    }

    fn table_mut(&mut self, kind: Kind) -> &mut Vec<Record> {
        match kind {
            Kind::Job => &mut self.jobs,
            Kind::Customer => &mut self.customers,
            Kind::Employee => &mut self.employees,
        }
    }

    pub fn push(&mut self, kind: Kind, record: Record) {
        self.by_id.insert(record.id, self.table(kind).len());
        self.table_mut(kind).push(record);
    }

    /// What an id such as `job_…` leads to.
    pub fn find(&self, id: &str) -> Option<(Kind, usize)> {
        let kind = Kind::ALL.into_iter().find(|kind| id.starts_with(kind.prefix()))?;
        let number = u128::from_str_radix(id.strip_prefix(kind.prefix())?, 16).ok()?;
        let index = *self.by_id.get(&number)?;
        self.table(kind).get(index).filter(|record| record.id == number).map(|_| (kind, index))
    }

    pub fn location(&self, id: &str) -> Option<usize> {
        self.companies.iter().position(|company| company.id.to_string() == id)
    }

    fn record_mut(&mut self, id: &str) -> Result<&mut Record, ChangeError> {
        let (kind, index) = self.find(id).ok_or_else(|| ChangeError::Record(id.to_owned()))?;
        Ok(&mut self.table_mut(kind)[index])
    }

    /// Puts values in place, or takes fields away; `updated_s` is when, unless nobody is to see that.
    pub fn change(&mut self, id: &str, patch: &Patch, updated_s: Option<i64>) -> Result<(), ChangeError> {
        let pointers = patch.fields.keys().chain(&patch.omit);
        if let Some(bad) = pointers.into_iter().find(|pointer| !pointer.starts_with('/')) {
            return Err(ChangeError::Pointer(bad.clone()));
        }
        let record = self.record_mut(id)?;
        let own = record.patch.get_or_insert_default();
        own.fields.extend(patch.fields.clone());
        own.omit.extend(patch.omit.iter().cloned());
        record.updated_s = updated_s.unwrap_or(record.updated_s);
        Ok(())
    }

    /// The customer's or the company's own cancellation: the row stays in the lists.
    pub fn cancel(&mut self, id: &str, by_user: bool, now_s: i64) -> Result<(), ChangeError> {
        let record = self.record_mut(id)?;
        let Facts::Job { status, ended_s, .. } = &mut record.facts else {
            return Err(ChangeError::Record(id.to_owned()));
        };
        *status = if by_user { Status::UserCanceled } else { Status::ProCanceled };
        *ended_s = Some(now_s);
        record.updated_s = now_s;
        Ok(())
    }

    pub fn stand(&mut self, id: &str, standing: Standing) -> Result<(), ChangeError> {
        self.record_mut(id)?.standing = standing;
        Ok(())
    }

    /// To another location; nothing else of it changes.
    pub fn shift(&mut self, id: &str, company: usize) -> Result<(), ChangeError> {
        self.record_mut(id)?.company = company;
        Ok(())
    }

    /// A new job of invented values. Returns its id.
    pub fn create(&mut self, company: usize, now_s: i64) -> String {
        let number = u32::try_from(self.jobs.len()).unwrap_or(u32::MAX) + seed::NUMBER_FIRST;
        let mut dice = self.dice.clone();
        let record = seed::job(&mut dice, self, number, company, now_s, now_s);
        self.dice = dice;
        let id = render::id(Kind::Job, record.id);
        self.push(Kind::Job, record);
        id
    }
}
