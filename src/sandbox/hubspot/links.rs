//! Associations: to which companies, contacts and deals a ticket is tied.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Value, json};

use super::account::Account;
use super::objects::{Query, read_json};
use super::refusals::Refusal;
use super::route::link_kind;
use super::ticket::{LinkKind, Standing, Ticket};
use crate::sandbox::world::iso;

/// The most ids in one batch, and the most ties on a page of one ticket.
const INPUTS_MAX: usize = 1000;
const PAGE_MAX: usize = 500;

/// One sort of tie as the two wires tell it: the inline name, and the type of the batch answer.
struct Sort {
    inline: &'static str,
    type_id: u16,
    label: Option<&'static str>,
}

/// The plural name, the sort that the first of its kind has besides, and the sort that all have.
fn sorts(kind: LinkKind) -> (&'static str, Option<Sort>, Sort) {
    let sort = |inline, type_id, label| Sort { inline, type_id, label };
    match kind {
        LinkKind::Company => (
            "companies",
            Some(sort("ticket_to_company", 26, Some("Primary"))),
            sort("ticket_to_company_unlabeled", 339, None),
        ),
        LinkKind::Contact => ("contacts", None, sort("ticket_to_contact", 16, None)),
        LinkKind::Deal => ("deals", None, sort("ticket_to_deal", 28, None)),
    }
}

/// The sorts of the tie at one place in the list.
fn sorts_at(kind: LinkKind, place: usize) -> impl Iterator<Item = Sort> {
    let (_, primary, all) = sorts(kind);
    primary.filter(|_| place == 0).into_iter().chain([all])
}

/// A ticket's ties of one kind from a cursor on, with their places, and the cursor of the next page.
fn page(ticket: &Ticket, kind: LinkKind, after: u64, limit: usize) -> (Vec<(usize, u64)>, Option<u64>) {
    let all = Account::links(ticket, kind).enumerate();
    let mut rest: Vec<(usize, u64)> = all.filter(|&(_, to)| to >= after).take(limit + 1).collect();
    let next = (rest.len() > limit).then(|| rest.pop()).flatten().map(|(_, to)| to);
    (rest, next)
}

/// The ties to be told with every record of a list.
pub struct InlineLinks {
    kinds: Vec<LinkKind>,
    page: usize,
}

impl InlineLinks {
    pub fn asked<'a>(names: impl Iterator<Item = &'a str>, page: usize) -> Self {
        Self { kinds: names.filter_map(link_kind).collect(), page }
    }
}

/// Writes `,"associations":{…}` when there are any of the kinds asked for.
pub fn write_inline(out: &mut Vec<u8>, account: &Account, ticket: &Ticket, inline: &InlineLinks) {
    let mut told = serde_json::Map::new();
    for &kind in &inline.kinds {
        let (ties, next) = page(ticket, kind, 0, inline.page);
        if ties.is_empty() {
            continue;
        }
        // A tie of several sorts is told once per sort.
        let rows = ties.iter().flat_map(|&(place, to)| {
            sorts_at(kind, place).map(move |sort| json!({"id": to.to_string(), "type": sort.inline}))
        });
        let mut value = json!({"results": rows.collect::<Vec<_>>()});
        if let Some(next) = next {
            value["paging"] = paging(account, ticket, kind, next);
        }
        told.insert(sorts(kind).0.to_owned(), value);
    }
    if !told.is_empty() {
        out.extend_from_slice(format!(",\"associations\":{}", Value::Object(told)).as_bytes());
    }
}

fn paging(account: &Account, ticket: &Ticket, kind: LinkKind, next: u64) -> Value {
    let link = format!(
        "https://api.hubapi.com/crm/v4/objects/tickets/{}/associations/{}?after={next}&portalId={}",
        ticket.id,
        sorts(kind).0,
        account.hub_id
    );
    json!({"next": {"after": next.to_string(), "link": link}})
}

/// Rows of `{toObjectId, associationTypes}`.
fn rows(kind: LinkKind, ties: &[(usize, u64)], numeric: bool) -> Vec<Value> {
    let row = |&(place, to): &(usize, u64)| {
        let types = sorts_at(kind, place)
            .map(|sort| json!({"category": "HUBSPOT_DEFINED", "typeId": sort.type_id, "label": sort.label}));
        let to = if numeric { json!(to) } else { json!(to.to_string()) };
        json!({"toObjectId": to, "associationTypes": types.collect::<Vec<_>>()})
    };
    ties.iter().map(row).collect()
}

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    inputs: Vec<BatchInput<'a>>,
}

#[derive(Deserialize)]
struct BatchInput<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, default)]
    after: Option<Cow<'a, str>>,
}

/// How ties are told.
#[derive(Debug, Clone, Copy)]
pub struct LinkManners {
    pub kind: LinkKind,
    /// Ids of the other side are numbers rather than text.
    pub numeric: bool,
    /// Ties of one ticket before they are paged.
    pub page: usize,
}

/// `POST …/associations/…/batch/read`: tickets without ties are reported as errors, and make it a 207.
pub fn batch(
    account: &Account,
    body: &[u8],
    manners: LinkManners,
    now_ms: i64,
) -> Result<(u16, Value), Refusal> {
    let asked: Batch<'_> = read_json(body)?;
    if asked.inputs.len() > INPUTS_MAX {
        let message = format!("Invalid input: the maximum number of inputs is {INPUTS_MAX}");
        return Err(Refusal::invalid(&message));
    }
    let kind = manners.kind;
    let (mut results, mut errors) = (Vec::new(), Vec::new());
    for input in &asked.inputs {
        let after = read_after(input.after.as_deref())?;
        let ticket = input.id.parse().ok().and_then(|id| account.find(id)).filter(|ticket| is_live(ticket));
        let (ties, next) =
            ticket.map_or((Vec::new(), None), |ticket| page(ticket, kind, after, manners.page));
        let Some(ticket) = ticket.filter(|_| !ties.is_empty()) else {
            errors.push(without_ties(&input.id, kind));
            continue;
        };
        let mut row = json!({"from": {"id": input.id}, "to": rows(kind, &ties, manners.numeric)});
        if let Some(next) = next {
            row["paging"] = paging(account, ticket, kind, next);
        }
        results.push(row);
    }
    let now = iso(now_ms);
    let mut answer = json!({"status": "COMPLETE", "results": results, "startedAt": now, "completedAt": now});
    if errors.is_empty() {
        return Ok((200, answer));
    }
    answer["numErrors"] = json!(errors.len());
    answer["errors"] = Value::Array(errors);
    Ok((207, answer))
}

fn without_ties(id: &str, kind: LinkKind) -> Value {
    let to = sorts(kind).0;
    json!({
        "status": "error", "category": "OBJECT_NOT_FOUND", "subCategory": "crm.associations.NO_ASSOCIATIONS_FOUND",
        "message": format!("No {to} is associated with ticket {id}."),
        "context": {"fromObjectId": [id], "fromObjectType": ["ticket"], "toObjectType": [to]},
    })
}

fn is_live(ticket: &Ticket) -> bool {
    ticket.version.standing == Standing::Live
}

fn read_after(after: Option<&str>) -> Result<u64, Refusal> {
    let Some(text) = after.filter(|text| !text.is_empty()) else { return Ok(0) };
    text.parse().map_err(|_| {
        Refusal::invalid(&format!("Cannot deserialize value of type `long` from String \"{text}\""))
    })
}

/// `GET …/tickets/{id}/associations/{to}`.
pub fn of_one(
    account: &Account,
    id: &str,
    query: &Query<'_>,
    manners: LinkManners,
) -> Result<Value, Refusal> {
    let limit = query.limit(PAGE_MAX, PAGE_MAX)?.min(manners.page);
    let after = read_after(query.get("after"))?;
    let ticket = id.parse().ok().and_then(|id| account.find(id)).filter(|ticket| is_live(ticket));
    let ticket = ticket.ok_or_else(Refusal::not_found)?;
    let (ties, next) = page(ticket, manners.kind, after, limit);
    let mut answer = json!({"results": rows(manners.kind, &ties, manners.numeric)});
    if let Some(next) = next {
        answer["paging"] = paging(account, ticket, manners.kind, next);
    }
    Ok(answer)
}
