//! Reading tickets: list, one, batch.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::account::Account;
use super::links::{InlineLinks, write_inline};
use super::properties::Selection;
use super::refusals::Refusal;
use super::ticket::{Standing, Ticket};
use crate::sandbox::world::iso;

/// The most records on a list page, and in a batch.
const PAGE_MAX: usize = 100;
/// The records on a list page when no limit is given.
const PAGE_DEFAULT: usize = 10;
/// Bytes to set aside for one record with all properties.
const RECORD_BYTES: usize = 2700;

/// A query string's fields.
pub struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    pub fn new(text: &'a str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_ref())
    }

    /// All values of a comma list, which may be given several times.
    pub fn list<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s str> {
        let values = self.0.iter().filter(move |(key, _)| key == name);
        values.flat_map(|(_, value)| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
    }

    pub fn archived(&self) -> bool {
        self.get("archived") == Some("true")
    }

    /// The page size asked for, which may be from 1 to `max`.
    pub fn limit(&self, default: usize, max: usize) -> Result<usize, Refusal> {
        let Some(text) = self.get("limit") else { return Ok(default) };
        let limit: usize = text.parse().map_err(|_| Refusal::invalid("limit is not a valid integer"))?;
        if (1..=max).contains(&limit) {
            Ok(limit)
        } else {
            Err(Refusal::invalid(&format!("Invalid input: limit must be between 1 and {max}, was {limit}")))
        }
    }
}

/// How a list is to be answered.
pub struct Listing<'a> {
    pub query: Query<'a>,
    /// Ties of one kind on a record before they are paged.
    pub links_page: usize,
    /// The fault: the next page is this one again.
    pub stuck: bool,
    /// The fault: there is nothing.
    pub empty: bool,
}

/// `GET …/tickets`: by id, live ones or archived ones.
pub fn list(account: &Account, listing: &Listing<'_>) -> Result<Vec<u8>, Refusal> {
    let query = &listing.query;
    no_history(query.get("propertiesWithHistory").is_some())?;
    let limit = query.limit(PAGE_DEFAULT, PAGE_MAX)?;
    let from = query.get("after").filter(|after| !after.is_empty()).map_or(Ok(0), read_cursor)?;
    let selection = account.catalogue.select(query.list("properties"));
    let inline = InlineLinks::asked(query.list("associations"), listing.links_page);
    // One more than the page holds tells whether there is a next one.
    let mut page = page_of(account, query.archived(), from, if listing.empty { 0 } else { limit + 1 });
    let next = (page.len() > limit).then(|| page.pop()).flatten().map(|ticket| ticket.id);
    let mut out = opened(page.len());
    for ticket in page {
        write_ticket(&mut out, account, ticket, &selection, &inline);
    }
    close_results(&mut out);
    if let Some(next) = next {
        let after = write_cursor(if listing.stuck { from } else { next });
        let link = format!("https://api.hubapi.com/crm/v3/objects/tickets?limit={limit}&after={after}");
        out.extend_from_slice(
            format!(",\"paging\":{}", json!({"next": {"after": after, "link": link}})).as_bytes(),
        );
    }
    out.push(b'}');
    Ok(out)
}

fn page_of(account: &Account, archived: bool, from: u64, count: usize) -> Vec<&Ticket> {
    if archived {
        return account.archived.range(from..).take(count).filter_map(|&id| account.find(id)).collect();
    }
    let start = account.position(from).unwrap_or_else(|index| index);
    let live = account.tickets[start..].iter().filter(|ticket| ticket.version.standing == Standing::Live);
    live.take(count).collect()
}

/// The list's cursor says nothing to its reader; it is not the number that search takes.
fn write_cursor(id: u64) -> String {
    URL_SAFE_NO_PAD.encode(format!("tickets|{id}"))
}

fn read_cursor(after: &str) -> Result<u64, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(after).ok();
    let id = bytes
        .as_deref()
        .and_then(|bytes| std::str::from_utf8(bytes).ok()?.strip_prefix("tickets|")?.parse().ok());
    id.ok_or_else(|| {
        Refusal::invalid(&format!("Cannot deserialize value of type `PagingCursor` from String \"{after}\""))
    })
}

fn opened(records: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 + records * RECORD_BYTES);
    out.extend_from_slice(b"{\"results\":[");
    out
}

fn write_ticket(
    out: &mut Vec<u8>,
    account: &Account,
    ticket: &Ticket,
    selection: &Selection,
    inline: &InlineLinks,
) {
    ticket.version.write(out, &account.catalogue, selection);
    write_inline(out, account, ticket, inline);
    out.extend_from_slice(b"},");
}

/// Ends the array that [`write_ticket`] left with a comma.
pub fn close_results(out: &mut Vec<u8>) {
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.push(b']');
}

fn no_history(asked: bool) -> Result<(), Refusal> {
    if asked { Err(Refusal::invalid("propertiesWithHistory is not served by this sandbox")) } else { Ok(()) }
}

/// `GET …/tickets/{id}`. The id of a merged-away ticket is answered with its survivor.
pub fn one(account: &Account, id: &str, query: &Query<'_>, links_page: usize) -> Result<Vec<u8>, Refusal> {
    no_history(query.get("propertiesWithHistory").is_some())?;
    let ticket = id.parse().ok().and_then(|id| account.resolve(id));
    let ticket = ticket.filter(|ticket| is_shown(ticket, query.archived())).ok_or_else(Refusal::not_found)?;
    let selection = account.catalogue.select(query.list("properties"));
    let inline = InlineLinks::asked(query.list("associations"), links_page);
    let mut out = Vec::with_capacity(RECORD_BYTES);
    ticket.version.write(&mut out, &account.catalogue, &selection);
    write_inline(&mut out, account, ticket, &inline);
    out.push(b'}');
    Ok(out)
}

fn is_shown(ticket: &Ticket, archived: bool) -> bool {
    match ticket.version.standing {
        Standing::Live => !archived,
        Standing::Archived { .. } => archived,
        Standing::Deleted | Standing::Merged { .. } => false,
    }
}

/// The body of a batch read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BatchRead<'a> {
    #[serde(borrow, default)]
    properties: Vec<Cow<'a, str>>,
    #[serde(default)]
    properties_with_history: Vec<Cow<'a, str>>,
    #[serde(default)]
    id_property: Option<Cow<'a, str>>,
    inputs: Vec<Input<'a>>,
}

#[derive(Deserialize)]
struct Input<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// What the faults change about a batch read.
#[derive(Debug, Clone, Copy, Default)]
pub struct BatchManners {
    /// Missing ids are left out without a word.
    pub silent: bool,
    /// A merged-away id is answered with its survivor.
    pub resolves: bool,
}

/// `POST …/tickets/batch/read`: the status, 200 or 207, and the body.
pub fn batch_read(
    account: &Account,
    archived: bool,
    body: &[u8],
    manners: BatchManners,
    now_ms: i64,
) -> Result<(u16, Vec<u8>), Refusal> {
    let asked: BatchRead<'_> = read_json(body)?;
    no_history(!asked.properties_with_history.is_empty())?;
    if asked.inputs.len() > PAGE_MAX {
        let message = format!("Invalid input: the maximum number of inputs is {PAGE_MAX}");
        return Err(Refusal::invalid(&message));
    }
    if asked.id_property.is_some_and(|name| name != "hs_object_id") {
        return Err(Refusal::invalid("idProperty is not a unique property"));
    }
    let selection = account.catalogue.select(asked.properties.iter().map(AsRef::as_ref));
    let mut out = opened(asked.inputs.len());
    let mut missing = Vec::new();
    for input in &asked.inputs {
        let id = input.id.parse().ok();
        let found = id.and_then(|id| if manners.resolves { account.resolve(id) } else { account.find(id) });
        match found.filter(|ticket| is_shown(ticket, archived)) {
            Some(ticket) => {
                ticket.version.write(&mut out, &account.catalogue, &selection);
                out.extend_from_slice(b"},");
            }
            None => missing.push(input.id.as_ref()),
        }
    }
    close_results(&mut out);
    let now = iso(now_ms);
    let rest = json!({"status": "COMPLETE", "startedAt": now, "completedAt": now});
    Ok(end_batch(out, rest, &missing, manners.silent))
}

fn end_batch(mut out: Vec<u8>, mut rest: Value, missing: &[&str], silent: bool) -> (u16, Vec<u8>) {
    let complete = missing.is_empty() || silent;
    if !complete {
        rest["numErrors"] = json!(1);
        rest["errors"] = json!([{
            "status": "error", "category": "OBJECT_NOT_FOUND",
            "message": "Could not get some TICKET objects, they may be deleted or not exist. Check that ids are valid.",
            "context": {"ids": missing},
        }]);
    }
    // `rest` is an object of its own: its brace becomes the comma between the two halves.
    out.push(b',');
    out.extend_from_slice(&rest.to_string().as_bytes()[1..]);
    (if complete { 200 } else { 207 }, out)
}

/// Reads a JSON body, or says where it breaks.
pub fn read_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Refusal::invalid(&format!("Invalid input JSON on line {line}, column {column}: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::{read_cursor, write_cursor};

    #[test]
    fn cursors() {
        assert_eq!(read_cursor(&write_cursor(10_000_000_001)).unwrap(), 10_000_000_001);
        for foreign in ["200", "10000000001", "?", "dGlja2V0c3xh"] {
            assert_eq!(read_cursor(foreign).unwrap_err().status, 400, "{foreign}");
        }
    }
}
