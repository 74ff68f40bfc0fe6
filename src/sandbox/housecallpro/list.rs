//! The lists: numbered pages over what is there at this moment, so that rows move between pages while one turns them.

use std::cmp::Ordering;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Value, json};
use url::form_urlencoded;

use super::account::{Account, Facts, Kind, Record, filtered};
use super::refusals::Refusal;
use super::render;

/// What a list gives when nobody says how much.
const PAGE_SIZE: usize = 10;
/// The most a page has, whatever is asked for. Not documented; integrators get these.
const JOBS_PAGE_MAX: usize = 200;
const EMPLOYEES_PAGE_MAX: usize = 100;

/// The query of a list. Of a bare name that is repeated the last one counts; `name[]` gathers.
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn new(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        let gathered: Vec<&str> = self
            .0
            .iter()
            .filter(|(key, _)| key.strip_suffix("[]") == Some(name))
            .map(|(_, value)| value.as_str())
            .collect();
        if gathered.is_empty() { self.get(name).into_iter().collect() } else { gathered }
    }

    pub fn expands(&self, what: &str) -> bool {
        self.all("expand").contains(&what)
    }

    fn number(&self, name: &str, default: usize) -> Result<usize, Refusal> {
        let given = self
            .get(name)
            .map_or(Ok(default), |text| text.parse().map_err(|_| Refusal::bad_request(name)))?;
        if given == 0 { Err(Refusal::bad_request(name)) } else { Ok(given) }
    }
}

#[derive(Clone, Copy)]
enum Sort {
    Created,
    Updated,
    Id,
    Number,
}

impl Sort {
    fn read(kind: Kind, query: &Query) -> Result<Self, Refusal> {
        match (query.get("sort_by").unwrap_or("created_at"), kind) {
            ("updated_at", Kind::Job | Kind::Customer) => Ok(Self::Updated),
            ("id", Kind::Job) => Ok(Self::Id),
            ("invoice_number", Kind::Job) => Ok(Self::Number),
            // Any word is taken for customers, and employees know no other order.
            ("created_at", Kind::Job) | (_, Kind::Customer | Kind::Employee) => Ok(Self::Created),
            (_, Kind::Job) => Err(Refusal::invalid("sort_by")),
        }
    }

    fn compare(self, a: &Record, b: &Record, shuffle: Option<u64>) -> Ordering {
        let order = match self {
            Self::Created => a.created_s.cmp(&b.created_s),
            Self::Updated => a.updated_s.cmp(&b.updated_s),
            Self::Id => Ordering::Equal,
            Self::Number => number(a).cmp(&number(b)),
        };
        let place = |record: &Record| {
            let mut hasher = DefaultHasher::new();
            (shuffle, &record.id).hash(&mut hasher);
            hasher.finish()
        };
        match (self, shuffle) {
            (Self::Created | Self::Updated, Some(_)) => order.then_with(|| place(a).cmp(&place(b))),
            _ => order.then(a.id.cmp(&b.id)),
        }
    }
}

fn number(record: &Record) -> u32 {
    if let Facts::Job { number, .. } = record.facts { number } else { 0 }
}

/// What faults change about a list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manners {
    /// Every page is the first one.
    pub stuck: bool,
    pub empty: bool,
    /// Records of one second come in the order that this number gives them.
    pub shuffle: Option<u64>,
}

/// `GET /jobs`, `/customers`, `/employees` of these locations.
pub fn list(
    account: &Account,
    kind: Kind,
    places: &[usize],
    query: &Query,
    manners: Manners,
) -> Result<Value, Refusal> {
    let most = if kind == Kind::Employee { EMPLOYEES_PAGE_MAX } else { JOBS_PAGE_MAX };
    let size = query.number("page_size", PAGE_SIZE)?.min(most);
    let page = if manners.stuck { 1 } else { query.number("page", 1)? };
    let sort = Sort::read(kind, query)?;
    let ascending = match query.get("sort_direction").unwrap_or("desc") {
        "asc" => true,
        "desc" => false,
        _ => return Err(Refusal::invalid("sort_direction")),
    };
    let mut rows: Vec<&Record> = account.table(kind).iter().filter(|row| render::is_listed(row)).collect();
    rows.retain(|row| {
        !manners.empty && places.contains(&row.company) && is_wanted(account, kind, row, query)
    });
    let shuffle = manners.shuffle;
    rows.sort_unstable_by(
        |a, b| {
            if ascending { sort.compare(a, b, shuffle) } else { sort.compare(b, a, shuffle) }
        },
    );
    let shown = rows.iter().skip((page - 1).saturating_mul(size)).take(size);
    let expand = query.expands("appointments");
    let shown: Vec<Value> = shown.map(|row| render::record(account, kind, row, expand)).collect();
    Ok(json!({
        "page": page, "page_size": size, "total_pages": rows.len().div_ceil(size), "total_items": rows.len(),
        kind.plural(): shown,
    }))
}

fn is_wanted(account: &Account, kind: Kind, row: &Record, query: &Query) -> bool {
    let statuses = query.all("work_status");
    if kind != Kind::Job || statuses.iter().all(|word| word.is_empty()) {
        return true;
    }
    let shown = render::record(account, kind, row, false);
    statuses.iter().flat_map(|word| filtered(word)).any(|word| shown["work_status"] == *word)
}
