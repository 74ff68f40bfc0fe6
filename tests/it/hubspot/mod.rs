//! HubSpot's ticket walks against a small model of HubSpot that changes under them.
//!
//! The model keeps HubSpot's documented limits and refuses whatever breaks one. What must hold: nothing that stood
//! still in a walk's bounds is missed, nothing comes twice unless the walk was taken up again, nothing alive is called
//! gone, and every walk ends.

mod model;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use fieldmirror::domain::spec::Mode;
use fieldmirror::domain::step::{Facts, Options, Page, Params, Position, Step, StepContext, Walk};
use fieldmirror::providers::provider;
use model::{Change, Ticket, World};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

/// Steps that a walk of this size may take: far more than it needs.
const STEPS_MAX: usize = 4_000;
const POSITION_MAX: usize = 16 * 1024;
/// What a saved position may say: no replies, no page in the making.
const POSITION_KEYS: [&str; 3] = ["after", "ids", "listed_all"];

/// A walk and what befalls it.
#[derive(Debug, Clone)]
struct Plan {
    mode: Mode,
    bounded: bool,
    page_size: u32,
    world: World,
    /// Before the request of that number, counted over the whole walk.
    changes: Vec<(usize, Index, Change)>,
    /// After the page of that number the process dies; the walk is taken up from one of the positions saved so far.
    deaths: BTreeMap<usize, Index>,
}

fn started_at() -> DateTime<Utc> {
    DateTime::from_timestamp(1_777_881_600, 0).expect("a time")
}

fn from() -> DateTime<Utc> {
    started_at() - TimeDelta::minutes(10)
}

fn ticket() -> impl Strategy<Value = Ticket> {
    // Most share two moments, as after an import; the bounds themselves are among the rest.
    let minutes = prop_oneof![4 => Just(3), 2 => Just(7), 1 => 0..14_i64, 1 => Just(10), 1 => Just(0)];
    let archived = prop_oneof![4 => Just(None), 1 => (0..14_i64).prop_map(Some)];
    (minutes, archived, 0..6_usize).prop_map(|(minutes, archived, companies)| {
        let ago = |minutes| started_at() - TimeDelta::minutes(minutes);
        Ticket {
            modified: ago(minutes),
            archived: archived.map(ago),
            gone: false,
            companies,
            merged: Vec::new(),
        }
    })
}

fn world() -> impl Strategy<Value = World> {
    // Ids around a change of length, and where doubles end.
    let first = prop_oneof![Just(1_u64), Just(95), Just((1 << 53) - 100), Just(9_999_999_950)];
    let tickets = prop_oneof![
        2 => proptest::collection::vec((1..4_u64, ticket()), 0..12),
        2 => proptest::collection::vec((1..4_u64, ticket()), 0..700),
    ];
    (first, tickets).prop_map(|(first, tickets)| {
        let mut id = first;
        let mut all = BTreeMap::new();
        for (gap, ticket) in tickets {
            all.insert(id, ticket);
            id += gap;
        }
        World::new(all, started_at())
    })
}

fn plan() -> impl Strategy<Value = Plan> {
    let change = prop_oneof![
        3 => Just(Change::Touch),
        2 => Just(Change::Archive),
        2 => Just(Change::Restore),
        2 => Just(Change::Delete),
        2 => Just(Change::Merge),
        1 => Just(Change::Create),
    ];
    (
        prop_oneof![2 => Just(Mode::Incremental), 1 => Just(Mode::Backfill), 1 => Just(Mode::Archived)],
        any::<bool>(),
        prop_oneof![Just(1), Just(2), 3..40_u32, Just(100), Just(199), Just(200), Just(1_000)],
        world(),
        proptest::collection::vec((0..40_usize, any::<Index>(), change), 0..40),
        proptest::collection::btree_map(0..12_usize, any::<Index>(), 0..4),
    )
        .prop_map(|(mode, bounded, page_size, world, changes, deaths)| Plan {
            mode,
            // Changes are never walked without a lower bound, everything never with one.
            bounded: mode == Mode::Incremental || (mode == Mode::Archived && bounded),
            page_size,
            world,
            changes,
            deaths,
        })
}

/// What a walk brought.
#[derive(Debug, Default)]
struct Brought {
    records: BTreeMap<String, usize>,
    tombstones: BTreeSet<String>,
    resumed: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn walks_miss_nothing_and_invent_nothing(plan in plan()) {
        let before = plan.world.clone();
        let walk = Walk { mode: plan.mode, started_at: started_at(), from: plan.bounded.then(from), facts_as_of: None };
        let (brought, world) = run(plan, &walk);
        for (id, ticket) in before.untouched(&world) {
            let id = id.to_string();
            let met = brought.records.contains_key(&id);
            match expected(&walk, ticket) {
                Expected::Record => prop_assert!(met, "{id} is missed: {ticket:?}"),
                Expected::Tombstone => prop_assert!(brought.tombstones.contains(&id), "{id} is missed"),
                Expected::Nothing => prop_assert!(!met, "{id} is out of bounds: {ticket:?}"),
            }
        }
        for (id, times) in &brought.records {
            prop_assert!(*times == 1 || brought.resumed, "{id} comes {times} times");
        }
        for id in &brought.tombstones {
            let id = id.parse().expect("ids are numbers");
            prop_assert!(world.was_ever_gone(id), "{id} is called gone and never was");
        }
    }
}

enum Expected {
    Record,
    Tombstone,
    Nothing,
}

/// What must come of a ticket that stands still throughout a walk.
fn expected(walk: &Walk, ticket: &Ticket) -> Expected {
    let in_window = walk.from.is_none_or(|from| ticket.modified >= from) && ticket.modified < walk.started_at;
    match (walk.mode, ticket.archived) {
        (Mode::Backfill, None) => Expected::Record,
        (Mode::Incremental, None) if in_window => Expected::Record,
        (Mode::Archived, Some(at)) if walk.from.is_none_or(|from| at >= from) => Expected::Record,
        (Mode::Archived, Some(_)) => Expected::Tombstone,
        _ => Expected::Nothing,
    }
}

fn run(plan: Plan, walk: &Walk) -> (Brought, World) {
    let hubspot = provider("hubspot").expect("it is registered");
    let facts = facts();
    let (params, options) = (Params::new(), Options::new());
    let cx = StepContext {
        stream: hubspot.spec().stream("tickets").expect("it is described"),
        walk,
        api_version: hubspot.spec().api_version,
        page_size: plan.page_size,
        facts: &facts,
        params: &params,
        options: &options,
    };
    let mut world = plan.world;
    let mut changes = plan.changes;
    changes.sort_by_key(|(before, ..)| *before);
    changes.reverse();
    let mut brought = Brought::default();
    let mut saved = vec![Position::start()];
    let mut at = Position::start();
    let mut replies = Vec::new();
    let mut sent = 0;
    for _ in 0..STEPS_MAX {
        match hubspot.step(&cx, &at, std::mem::take(&mut replies)).expect("the model answers as documented") {
            Step::Send { requests, at: next } => {
                assert!(!requests.is_empty(), "a step that sends nothing");
                for request in &requests {
                    while changes.last().is_some_and(|(before, ..)| *before <= sent) {
                        let (_, whom, change) = changes.pop().expect("it is there");
                        world.change(whom, change);
                    }
                    sent += 1;
                    replies.push(world.answer(request));
                }
                at = next;
            }
            Step::Emit { page, at: next } => {
                take(&mut brought, &page, &world);
                check_position(&next);
                saved.push(next.clone());
                at = next;
                if let Some(which) = plan.deaths.get(&(saved.len() - 2)).filter(|_| saved.len() < 20) {
                    at = which.get(&saved).clone();
                    brought.resumed = true;
                }
            }
            Step::Done => return (brought, world),
            Step::Partial { why } => panic!("no part of an account is lost: {why}"),
        }
    }
    panic!("no end after {STEPS_MAX} steps")
}

/// Enough properties to overflow a search, were they asked for there.
fn facts() -> Facts {
    let properties: Vec<Value> = (0..400).map(|n| json!([format!("property_{n}"), "string"])).collect();
    Facts::from([("ticket_properties".to_owned(), Value::Array(properties))])
}

fn take(brought: &mut Brought, page: &Page, world: &World) {
    for record in &page.records {
        *brought.records.entry(record.id.clone()).or_default() += 1;
        let id = record.id.parse().expect("ids are numbers");
        let companies = record.raw.pointer("/associations/companies").expect("associations are written");
        assert_eq!(*companies, json!(world.companies(id)), "associations of {id}");
        assert!(record.deleted.is_none() || world.was_ever_gone(id), "{id} is called archived and never was");
    }
    brought.tombstones.extend(page.tombstones.iter().map(|tombstone| tombstone.id.clone()));
}

fn check_position(at: &Position) {
    let text = serde_json::to_string(at).expect("positions are plain data");
    assert!(text.len() <= POSITION_MAX, "a position of {} bytes", text.len());
    let keys = at.at.as_object().expect("a position is an object").keys();
    for key in keys {
        assert!(POSITION_KEYS.contains(&key.as_str()), "`{key}` is in a saved position");
    }
}
