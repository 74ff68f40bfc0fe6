//! Export feeds and lists: what a query asks for, and the page that answers it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use url::form_urlencoded;

use super::kinds::{Ending, Served};
use super::refusals::Refusal;
use super::table::{Row, Table, read_ticks};

/// Rows of a feed in one page. The real number is not published.
pub const FEED_PAGE: usize = 250;
/// How late a feed shows a change, unless it is asked for recent ones.
const FEED_LAG_MS: i64 = 15 * 60 * 1000;
/// Makes tokens that have to be percent-encoded.
const TOKEN_PREFIX: [u8; 6] = [0xfb, 0xef, 0xbe, 0xff, 0xff, 0xff];
const LIST_PAGE: usize = 50;
const LIST_PAGE_MAX: usize = 5_000;
const IDS_MAX: usize = 50;

/// A query string's fields.
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn new(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str, default: usize) -> Result<usize, Refusal> {
        let number = self.get(name).map_or(Ok(default), str::parse);
        number.ok().filter(|number| *number > 0).ok_or_else(|| Refusal::parameter(name))
    }

    fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.get(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Refusal::parameter(name)),
        }
    }

    fn ticks(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.get(name).map(|text| read_ticks(text).ok_or_else(|| Refusal::parameter(name))).transpose()
    }
}

/// How a feed is seen: the tokens that are good, and the moment.
pub struct Sight {
    /// Tokens of an earlier epoch are refused.
    pub epoch: u32,
    pub now_ms: i64,
    /// A page points to itself as the next one.
    pub stuck: bool,
    /// Rows in a page.
    pub length: usize,
}

/// A page of a feed. It begins with the last row of the page before: delivery is at least once.
pub fn export(table: &Table, served: &Served, query: &Query, sight: &Sight) -> Result<Vec<u8>, Refusal> {
    let recent = query.flag("includeRecentChanges")?;
    let from = query.get("from").unwrap_or_default();
    let start = match from {
        "" => 0,
        text => match read_ticks(text) {
            Some(ticks) => table.place_of(ticks),
            None => {
                read_token(text, served, recent, sight.epoch).ok_or_else(|| Refusal::parameter("from"))?
            }
        },
    };
    let seen = |row: &&Row| recent || row.changed_ms + FEED_LAG_MS <= sight.now_ms;
    let mut rows = table.feed_from(start).take_while(seen);
    let page: Vec<&Row> = rows.by_ref().take(sight.length).collect();
    let more = rows.next().is_some() || sight.stuck;
    let next = page.last().map_or(start, |row| row.place);
    let next = token(served, recent, sight.epoch, next);
    let next = match served.ending {
        _ if sight.stuck => Some(json!(from)),
        _ if more => Some(json!(next)),
        Ending::New => Some(json!(next)),
        Ending::Unchanged => Some(json!(from)),
        Ending::Null => Some(json!(null)),
        Ending::Empty => Some(json!("")),
        Ending::Missing => None,
    };
    let next = next.map_or_else(String::new, |next| format!("\"continueFrom\":{next},"));
    Ok(enveloped(&format!("{{\"hasMore\":{more},{next}"), page.iter().map(|row| row.body.to_string())))
}

fn enveloped(head: &str, rows: impl Iterator<Item = String>) -> Vec<u8> {
    let mut out = format!("{head}\"data\":[").into_bytes();
    for (index, row) in rows.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(row.as_bytes());
    }
    out.extend_from_slice(b"]}");
    out
}

fn token(served: &Served, recent: bool, epoch: u32, place: u64) -> String {
    let told = format!("{epoch}/{}/{recent}/{place}", served.path);
    STANDARD.encode([TOKEN_PREFIX.as_slice(), told.as_bytes()].concat())
}

/// The place that a token means. It is good for the feed and the kind of reading that it was made for.
fn read_token(text: &str, served: &Served, recent: bool, epoch: u32) -> Option<u64> {
    let bytes = STANDARD.decode(text).ok()?;
    let told = std::str::from_utf8(bytes.strip_prefix(&TOKEN_PREFIX)?).ok()?;
    told.strip_prefix(&format!("{epoch}/{}/{recent}/", served.path))?.parse().ok()
}

/// A page of a list. `of_provider`: bookings of this booking provider only.
pub fn list(
    table: &Table,
    served: &Served,
    query: &Query,
    of_provider: Option<u64>,
) -> Result<Vec<u8>, Refusal> {
    let size = query.number("pageSize", LIST_PAGE)?;
    let page = query.number("page", 1)?;
    let ids = ids(query)?;
    let (from, before) = (query.ticks("modifiedOnOrAfter")?, query.ticks("modifiedBefore")?);
    let active = wanted_activity(query, served)?;
    let fits = |row: &&Row| {
        ids.as_ref().is_none_or(|ids| ids.contains(&row.id))
            && from.is_none_or(|from| row.modified >= from)
            && before.is_none_or(|before| row.modified < before)
            && active.is_none_or(|active| row.active == active)
            && of_provider.is_none_or(|provider| row.value()["bookingProviderId"] == json!(provider))
    };
    let mut rows: Vec<&Row> = table.rows().filter(fits).collect();
    sort(&mut rows, query.get("sort").unwrap_or("+Id"))?;
    let total = if query.flag("includeTotal")? { json!(rows.len()) } else { json!(null) };
    // What is asked for beyond the most is cut without a word.
    let length = size.min(LIST_PAGE_MAX);
    let start = (page - 1).saturating_mul(length);
    let more = rows.len() > start.saturating_add(length);
    let head = format!("{{\"page\":{page},\"pageSize\":{size},\"hasMore\":{more},\"totalCount\":{total},");
    let bodies = rows.iter().skip(start).take(length).map(|row| row.listed(served.lists_active));
    Ok(enveloped(&head, bodies))
}

fn ids(query: &Query) -> Result<Option<Vec<u64>>, Refusal> {
    let Some(text) = query.get("ids") else { return Ok(None) };
    let ids: Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
    ids.ok().filter(|ids| ids.len() <= IDS_MAX).map(Some).ok_or_else(|| Refusal::parameter("ids"))
}

/// `None`: both states. A list that knows no `active` shows both.
fn wanted_activity(query: &Query, served: &Served) -> Result<Option<bool>, Refusal> {
    if !served.lists_active {
        return Ok(None);
    }
    match query.get("active").unwrap_or("True") {
        "True" => Ok(Some(true)),
        "False" => Ok(Some(false)),
        "Any" => Ok(None),
        _ => Err(Refusal::parameter("active")),
    }
}

/// `+Id` reaches us as that only if the client wrote `%2BId`: a bare plus is a blank.
fn sort(rows: &mut [&Row], order: &str) -> Result<(), Refusal> {
    match order {
        "+Id" => {}
        "-Id" => rows.reverse(),
        "+ModifiedOn" => rows.sort_by_key(|row| row.modified),
        "-ModifiedOn" => rows.sort_by_key(|row| std::cmp::Reverse(row.modified)),
        _ => return Err(Refusal::parameter("sort")),
    }
    Ok(())
}
