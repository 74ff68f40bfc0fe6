//! A day in virtual time: the product's own rate limiting against a model of each provider's limiter.
//!
//! What is real: each provider's description, what it reads about limits out of answers, the pacer with the line of those who
//! wait and what it saves between turns, and the decision about permits that all daemons behind an address share. What is played here: the
//! provider, which counts by its documents and refuses what is too much; the way there and back; a daemon that is killed;
//! and turns, of which each takes over what the last one left, and in which streams share the slots for requests under way,
//! those first from which others learn what to ask for. What must hold: nothing is ever refused, and while a first
//! read is pending, nearly all of what the reserve leaves is used.

mod limiter;
mod world;

use fieldmirror::domain::spec::Mode;
use fieldmirror::domain::step::{Facts, Options, Params, Position, Request, Step, StepContext, Walk};
use fieldmirror::http::pace::less_reserve;
use fieldmirror::providers::{Provider, provider};

use limiter::Limiter;
use world::{Account, Plan, Tells, World};

/// What is left to the customer's other apps.
const RESERVE: f64 = 0.1;
/// The least that must be used of what the reserve leaves.
const USED_MIN: f64 = 0.9;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

fn named(name: &str) -> &'static dyn Provider {
    provider(name).expect("a provider")
}

/// One request for each, that takes from these buckets.
fn requests(buckets: &[&'static [&'static str]]) -> Vec<Request> {
    buckets.iter().map(|buckets| Request::get("/".to_owned(), "page", buckets)).collect()
}

/// A first read in the morning, and another in the evening, of so many minutes each.
fn twice(minutes: i64, polls: u32) -> Plan {
    let span = |from: i64| (from, from + minutes * MINUTE);
    Plan { pending: vec![span(0), span(18 * HOUR)], polls, crash_at: minutes * MINUTE / 2 }
}

fn all_day(polls: u32) -> Plan {
    Plan { pending: vec![(0, DAY)], polls, crash_at: 5 * HOUR }
}

/// Two accounts.
fn two(name: &str, demand: &[Request], plan: &Plan, counts: &'static str, tells: Tells) -> World {
    let account = || Account::new(named(name), demand.to_vec(), plan.clone(), counts).telling(tells);
    World::new(vec![account(), account()])
}

/// What the reserve leaves two accounts of `limit` in `per_ms`, over what is pending by `plan`.
#[expect(clippy::cast_precision_loss, reason = "a day's numbers")]
fn left_to_two(limit: u32, per_ms: i64, plan: &Plan) -> f64 {
    let pending: i64 = plan.pending.iter().map(|(from, to)| to - from).sum();
    2.0 * f64::from(less_reserve(limit, RESERVE)) * pending as f64 / per_ms as f64
}

#[track_caller]
fn check(name: &str, world: World, left: f64) {
    let day = world.run();
    assert_eq!(day.refused, 0, "{name}: so many of {} requests were refused", day.asked);
    let share = day.used / left;
    eprintln!("{name}: {} requests, {:.1} % of what the reserve leaves", day.asked, share * 100.0);
    assert!((USED_MIN..1.01).contains(&share), "{name}: {:.1} % of what the reserve leaves", share * 100.0);
}

/// 110 requests in ten seconds to one account, which answers tell; associations are exempt.
#[test]
fn hubspot_by_consent() {
    let plan = twice(10, 5);
    let demand = requests(&[&["ten_secondly"], &["ten_secondly"], &["associations"], &["associations"]]);
    let world = two("hubspot", &demand, &plan, "ten_secondly", Tells::Headers);
    let world = world.each(Some("ten_secondly"), || Limiter::windows(110, 10_000));
    check("hubspot by consent", world, left_to_two(110, 10_000, &plan));
}

/// Five searches in a second to one account: how a bulk change is found.
#[test]
fn hubspot_search() {
    let plan = twice(20, 5);
    let world = two("hubspot", &requests(&[&["search"]]), &plan, "search", Tells::Nothing);
    let world = world.each(Some("search"), || Limiter::windows(5, 1_000));
    check("hubspot search", world, left_to_two(5, 1_000, &plan));
}

/// A private app of the smallest plan: 100 requests in ten seconds, and 250,000 until midnight of the account.
#[test]
fn hubspot_by_token() {
    let plan = all_day(5);
    let demand = requests(&[&["ten_secondly"]]);
    let world = two("hubspot", &demand, &plan, "ten_secondly", Tells::Headers)
        .each(Some("ten_secondly"), || Limiter::windows(100, 10_000))
        .each(None, || Limiter::day(250_000, 0));
    check("hubspot by token", world, left_to_two(250_000, DAY, &plan));
}

/// Points come back evenly, 500 in a second; and no more than 2,500 requests in five minutes.
#[test]
fn jobber() {
    let provider = named("jobber");
    let walk = Walk {
        mode: Mode::Backfill,
        started_at: chrono::DateTime::UNIX_EPOCH,
        from: None,
        facts_as_of: None,
    };
    let (facts, params, options) = (Facts::new(), Params::new(), Options::new());
    let first_pages = provider.spec().streams.iter().flat_map(|stream| {
        let (api_version, page_size) = ("", provider.spec().page_size);
        let cx = StepContext {
            stream,
            walk: &walk,
            api_version,
            page_size,
            facts: &facts,
            params: &params,
            options: &options,
        };
        match provider.step(&cx, &Position::start(), Vec::new()) {
            Ok(Step::Send { requests, .. }) => requests,
            other => panic!("{other:?}"),
        }
    });
    let plan = twice(4 * 60, 3);
    let world = two("jobber", &first_pages.collect::<Vec<_>>(), &plan, "points", Tells::Cost);
    let world =
        world.each(None, || Limiter::points(10_000, 500)).each(None, || Limiter::windows(2_500, 5 * MINUTE));
    check("jobber", world, left_to_two(500, 1_000, &plan));
}

/// No limit is published: a pace of our own, one request in a second and one at a time.
#[test]
fn housecall_pro() {
    let plan = twice(3 * 60, 4);
    let world = two("housecallpro", &requests(&[&["requests"]]), &plan, "requests", Tells::Nothing);
    let world = world.each(None, || Limiter::windows(1, 1_000));
    check("housecallpro", world, left_to_two(1, 1_000, &plan));
}

/// 60 requests in a second to one tenant.
#[test]
fn servicetitan() {
    let plan = twice(6, 10);
    let world = two("servicetitan", &requests(&[&["secondly"]]), &plan, "secondly", Tells::Nothing);
    let world = world.each(None, || Limiter::windows(60, 1_000));
    check("servicetitan", world, left_to_two(60, 1_000, &plan));
}

/// Five requests in a second to one account, and 200 in five minutes from one address, behind which two daemons
/// work.
#[test]
fn oncehub_behind_one_address() {
    let plan = all_day(4);
    let world = two("oncehub", &requests(&[&["account", "address"]]), &plan, "address", Tells::Nothing);
    let world = world
        .each(Some("account"), || Limiter::windows(5, 1_000))
        .together("address", Limiter::windows(200, 5 * MINUTE));
    check("oncehub", world, left_to_two(200, 5 * MINUTE, &plan) / 2.0);
}
