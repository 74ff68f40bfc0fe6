//! Fills an account with tickets, from a seed.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::account::Account;
use super::properties::{CATEGORIES, Catalogue, Draft, PRIORITIES, RESOLUTIONS, SOURCES, SYSTEMS};
use super::reference::{OWNERS_LIVE, PIPELINES, owner_id};
use super::ticket::{Link, LinkKind, Making, Standing, Ticket, Version};
use crate::sandbox::world::{ServiceCall, created_ms, iso, modified_ms, pick, service_call};

/// Ids of one account straddle this number, where they get one digit longer: text order is not number order.
const ID_MIDDLE: u64 = 10_000_000_000;
/// The widest step from one id to the next.
const ID_STEP_MAX: u64 = 15;
/// Where the ids of companies, contacts and deals begin.
pub const COMPANY_FIRST: u64 = 9_300_000_000;
pub const CONTACT_FIRST: u64 = 51_000_000_000;

/// A ticket's life so far.
struct Life {
    created_ms: i64,
    updated_ms: i64,
    closed: bool,
}

/// Puts `count` tickets into an account that has none.
pub fn fill(account: &mut Account, count: usize, seed: u64, end: DateTime<Utc>) {
    let mut dice = StdRng::seed_from_u64(seed ^ account.hub_id.rotate_left(17));
    let mut id = ID_MIDDLE.saturating_sub(count as u64 * ID_STEP_MAX / 4);
    account.tickets.reserve_exact(count);
    let mut draft = Draft::empty(&account.catalogue);
    for index in 0..count {
        id += dice.random_range(1..=ID_STEP_MAX);
        let created_ms = created_ms(&mut dice, index, count, end);
        draft.clear();
        let ticket = ticket(account, id, created_ms, &mut draft, &mut dice, end);
        if matches!(ticket.version.standing, Standing::Archived { .. }) {
            account.archived.insert(id);
        }
        account.tickets.push(ticket);
    }
    account.next_id = id + 1;
    account.dice = dice;
}

fn ticket(
    account: &Account,
    id: u64,
    created_ms: i64,
    draft: &mut Draft,
    dice: &mut StdRng,
    end: DateTime<Utc>,
) -> Ticket {
    let (catalogue, hub_id) = (&account.catalogue, account.hub_id);
    let call = service_call(dice);
    let updated_ms = modified_ms(dice, created_ms, end);
    let life = Life { created_ms, updated_ms, closed: dice.random_bool(0.6) };
    describe(draft, catalogue, &call, dice);
    place(draft, catalogue, &life, dice);
    trace(draft, catalogue, id, &life, dice);
    customise(draft, catalogue, &call, &life, dice);
    // About one in fifty lies in the recycle bin; archiving leaves the modified date as it was.
    let standing = if dice.random_bool(0.02) {
        Standing::Archived { at_ms: modified_ms(dice, updated_ms, end) }
    } else {
        Standing::Live
    };
    let making = Making { hub_id, id, standing, created_ms, updated_ms, draft };
    Ticket { id, version: Version::render(catalogue, making).into(), links: links(dice) }
}

/// A ticket that an app makes now: the same kinds of values, without a past.
pub fn fresh_draft(catalogue: &Catalogue, id: u64, now_ms: i64, dice: &mut StdRng) -> Draft {
    let life = Life { created_ms: now_ms, updated_ms: now_ms, closed: false };
    let call = service_call(dice);
    let mut draft = Draft::empty(catalogue);
    describe(&mut draft, catalogue, &call, dice);
    place(&mut draft, catalogue, &life, dice);
    trace(&mut draft, catalogue, id, &life, dice);
    draft
}

/// What the call is about.
fn describe(draft: &mut Draft, catalogue: &Catalogue, call: &ServiceCall, dice: &mut StdRng) {
    draft.set(catalogue, "subject", call.subject.clone());
    draft.set(catalogue, "content", call.description.clone());
    if dice.random_bool(0.9) {
        draft.set(catalogue, "hs_ticket_priority", PRIORITIES[usize::from(call.urgency)]);
    }
    match dice.random_range(0..10) {
        0..2 => {}
        // Several values of a checkbox property are joined by semicolons.
        2 => draft.set(
            catalogue,
            "hs_ticket_category",
            format!("{};{}", CATEGORIES[0], pick(dice, &CATEGORIES[1..])),
        ),
        3 => draft.set(catalogue, "hs_ticket_category", ""),
        _ => draft.set(catalogue, "hs_ticket_category", pick(dice, CATEGORIES)),
    }
    draft.set(catalogue, "source_type", pick(dice, SOURCES));
}

/// Where it stands and whose it is.
fn place(draft: &mut Draft, catalogue: &Catalogue, life: &Life, dice: &mut StdRng) {
    let pipeline = &PIPELINES[usize::from(dice.random_bool(0.3))];
    let stages: Vec<_> = pipeline.stages.iter().filter(|stage| stage.closed == life.closed).collect();
    draft.set(catalogue, "hs_pipeline", pipeline.id);
    draft.set(catalogue, "hs_pipeline_stage", stages[dice.random_range(0..stages.len())].id);
    draft.set(catalogue, "hs_v2_date_entered_1", iso(life.created_ms));
    if life.closed {
        draft.set(catalogue, "closed_date", iso(life.updated_ms));
        draft.set(catalogue, "hs_v2_date_entered_4", iso(life.updated_ms));
        draft.set(catalogue, "time_to_close", (life.updated_ms - life.created_ms).to_string());
        draft.set(catalogue, "hs_resolution", pick(dice, RESOLUTIONS));
    }
    if dice.random_bool(0.85) {
        // One owner in the list after the live ones has left the company.
        let owner = owner_id(dice.random_range(0..=OWNERS_LIVE)).to_string();
        draft.set(catalogue, "hs_all_owner_ids", owner.clone());
        draft.set(catalogue, "hubspot_owner_id", owner);
        draft.set(catalogue, "hubspot_owner_assigneddate", iso(life.created_ms + 1));
    }
}

/// What HubSpot itself notes down.
fn trace(draft: &mut Draft, catalogue: &Catalogue, id: u64, life: &Life, dice: &mut StdRng) {
    draft.set(catalogue, "hs_ticket_id", id.to_string());
    draft.set(catalogue, "hs_object_source", "CRM_UI");
    draft.set(catalogue, "hs_object_source_id", format!("userId:{}", dice.random_range(700..720)));
    draft.set(catalogue, "hs_object_source_label", "CRM_UI");
    draft.set(catalogue, "hs_is_visible_in_help_desk", if dice.random_bool(0.5) { "true" } else { "false" });
    draft.set(catalogue, "hs_num_times_contacted", dice.random_range(0..9).to_string());
    draft.set(catalogue, "num_notes", dice.random_range(0..30).to_string());
    draft.set(catalogue, "notes_last_updated", iso(life.updated_ms));
    if dice.random_bool(0.4) {
        draft.set(catalogue, "first_agent_reply_date", iso(life.created_ms + 600_000));
        draft.set(catalogue, "time_to_first_agent_reply", "600000");
        draft.set(catalogue, "last_reply_date", iso(life.updated_ms));
    }
}

/// What the account added for itself, with the oddities that such values have.
fn customise(draft: &mut Draft, catalogue: &Catalogue, call: &ServiceCall, life: &Life, dice: &mut StdRng) {
    draft.set(catalogue, "site_address", call.address.clone());
    draft.set(catalogue, "under_warranty", if dice.random_bool(0.3) { "true" } else { "false" });
    let cents: u32 = dice.random_range(4_900..990_000);
    draft.set(catalogue, "quoted_amount", format!("{}.{:02}", cents / 100, cents % 100));
    // A number property may hold text that is none.
    let reading =
        if dice.random_bool(0.05) { "n/a".to_owned() } else { dice.random_range(0..99_999).to_string() };
    draft.set(catalogue, "meter_reading", reading);
    let later = life.created_ms + dice.random_range(0..20) * 86_400_000;
    draft.set(catalogue, "preferred_date", iso(later).split_at(10).0.to_owned());
    let promised = match dice.random_range(0..4) {
        0 => later.to_string(),
        1 => format!("{later}.0"),
        _ => iso(later),
    };
    draft.set(catalogue, "promised_by", promised);
    let first = dice.random_range(0..SYSTEMS.len());
    let systems: BTreeSet<&str> = [SYSTEMS[first], pick(dice, SYSTEMS)].into();
    draft.set(catalogue, "affected_systems", systems.into_iter().collect::<Vec<_>>().join(";"));
    draft.set(catalogue, "callback_number", format!("+1 555 01{:02}", dice.random_range(0..100)));
    if dice.random_bool(0.3) {
        draft.set(catalogue, "second_visit_2024", if dice.random_bool(0.5) { "yes" } else { "" });
    }
}

/// Mostly one contact and one company; some tickets have none, some several.
fn links(dice: &mut StdRng) -> Vec<Link> {
    let (companies, contacts) = match dice.random_range(0..20) {
        0..2 => (0, 0),
        2..6 => (0, 1),
        6..17 => (1, 1),
        17..19 => (1, 2),
        _ => (2, 4),
    };
    let mut links: Vec<Link> = Vec::with_capacity(companies + contacts);
    for _ in 0..companies {
        links.push(Link { kind: LinkKind::Company, to: COMPANY_FIRST + dice.random_range(0..5_000) });
    }
    for _ in 0..contacts {
        links.push(Link { kind: LinkKind::Contact, to: CONTACT_FIRST + dice.random_range(0..60_000) });
    }
    links.sort_unstable();
    links.dedup();
    links
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    fn account(seed: u64) -> Account {
        let end = Utc.with_ymd_and_hms(2026, 11, 1, 0, 0, 0).unwrap();
        let mut account = Account::new(41_000_001, "hub.example");
        fill(&mut account, 1000, seed, end);
        account
    }

    fn bytes(account: &Account) -> Vec<u8> {
        let mut out = Vec::new();
        for ticket in &account.tickets {
            ticket.version.write(&mut out, &account.catalogue, &super::super::properties::Selection::All);
        }
        out
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        assert_eq!(bytes(&account(5)), bytes(&account(5)));
        assert_ne!(bytes(&account(5)), bytes(&account(6)));
    }

    #[test]
    fn the_world_has_its_corners() {
        let account = account(5);
        assert!(account.tickets.is_sorted_by(|a, b| a.id < b.id));
        assert!(account.tickets[0].id < ID_MIDDLE && account.tickets[999].id > ID_MIDDLE);
        assert!((5..60).contains(&account.archived.len()), "{}", account.archived.len());
        let links =
            |count: usize| account.tickets.iter().filter(|ticket| ticket.links.len() == count).count();
        assert!(links(0) > 0 && links(2) > 0 && links(6) > 0);
        let has = |name: &str, wanted: &dyn Fn(&str) -> bool| {
            let index = account.catalogue.index(name).unwrap();
            account.tickets.iter().any(|ticket| ticket.version.text(index).is_some_and(|text| wanted(&text)))
        };
        assert!(has("meter_reading", &|text| text == "n/a"));
        assert!(has("promised_by", &|text| text.ends_with(".0")));
        assert!(has("affected_systems", &|text| text.contains(';')));
        assert!(has("hs_pipeline", &|text| text == PIPELINES[1].id));
    }
}
