//! What happens in a day, event by event: turns, requests on their way, answers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use fieldmirror::db::rate_budget::{Lease, Spread};
use fieldmirror::domain::spec::{BucketSpec, Scope};
use fieldmirror::domain::step::{Body, Options, Reply, Request};
use fieldmirror::http::pace::{Observed, Pacer, less_reserve};
use fieldmirror::providers::Provider;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::limiter::Limiter;
use super::{DAY, MINUTE, RESERVE};

/// A turn works so long at most, and the next begins so much later: the queue's pause, and what it takes to be noticed.
const TURN: i64 = 30_000;
const BETWEEN_TURNS: std::ops::Range<i64> = 200..400;
/// The way to the provider, and from there back: quick, so that limits are what holds requests up.
const THERE: std::ops::Range<i64> = 2..40;
const BACK: std::ops::Range<i64> = 3..30;
/// Polls begin this often.
const POLL: i64 = 5 * MINUTE;
/// How long it takes until another daemon takes over after a crash.
const TAKEN_OVER: i64 = 10_000;

const INTERVAL: &str = "x-hubspot-ratelimit-interval-milliseconds";

/// What an account has to do in a day.
#[derive(Clone)]
pub struct Plan {
    /// When reading everything is pending: as much is asked as may be. At other times there are polls.
    pub pending: Vec<(i64, i64)>,
    /// Requests of a poll.
    pub polls: u32,
    /// When its daemon is killed.
    pub crash_at: i64,
}

/// What answers tell about limits.
#[derive(Clone, Copy, PartialEq)]
pub enum Tells {
    Nothing,
    /// Headers of a window, and of a day where the account has a quota for that.
    Headers,
    /// The cost of a query, and what is left. Some queries come to less than they might have.
    Cost,
}

pub struct Account {
    provider: &'static dyn Provider,
    demand: Vec<Request>,
    plan: Plan,
    tells: Tells,
    /// Limits of its own, and of all accounts together, by the bucket whose requests they count; none: all requests.
    limiters: Vec<(Option<&'static str>, usize)>,
    /// The bucket that is held against what the reserve leaves; a point is one where points count.
    counts: &'static str,
    specs: Vec<BucketSpec>,
    /// `None`: between turns, with what the last one saved.
    pacer: Option<Pacer>,
    saved: Option<Value>,
    turn: u32,
    deadline: i64,
    /// One for each stream.
    workers: Vec<Worker>,
    /// Requests that may be under way at once, those that are, and who waits for one of them to come back.
    slots: usize,
    under_way: usize,
    queue: VecDeque<usize>,
    asked: usize,
    polls_left: u32,
    next_poll: i64,
    /// The last answer; the next one is told over it.
    reply: Reply,
}

/// A stream: it has one request at a time.
#[derive(Clone, Default)]
struct Worker {
    name: &'static str,
    /// It comes before those that learn from it what to ask for, and asks once.
    first: bool,
    request: Option<usize>,
    slot: bool,
    admitted: bool,
    charged: u32,
    /// It has nothing to do before this time, in this turn no more.
    until: Option<i64>,
}

impl Account {
    pub fn new(
        provider: &'static dyn Provider,
        demand: Vec<Request>,
        plan: Plan,
        counts: &'static str,
    ) -> Self {
        let options = Options::new();
        let specs = provider.buckets(&options);
        for request in &demand {
            let known = |name: &&str| specs.iter().any(|spec| spec.name == *name);
            assert!(
                !request.buckets.is_empty() && request.buckets.iter().all(known),
                "{:?}",
                request.buckets
            );
        }
        let streams = provider.spec().streams;
        let taught = streams.iter().flat_map(|stream| stream.needs_facts).map(|fact| fact.taught_by);
        let teachers: BTreeSet<&str> = taught.collect();
        let worker = |name| Worker { name, first: teachers.contains(name), ..Worker::default() };
        Self {
            provider,
            demand,
            plan,
            tells: Tells::Nothing,
            limiters: Vec::new(),
            counts,
            pacer: None,
            saved: Some(json!(null)),
            turn: 0,
            deadline: 0,
            workers: streams.iter().map(|stream| worker(stream.name)).collect(),
            slots: provider.in_flight_max(&options),
            under_way: 0,
            queue: VecDeque::new(),
            asked: 0,
            polls_left: 0,
            next_poll: 0,
            reply: Reply {
                status: 200,
                headers: BTreeMap::from([(INTERVAL.to_owned(), "10000".to_owned())]),
                body: Body::Json(json!({})),
                sent_at: date(0),
            },
            specs,
        }
    }

    pub fn telling(self, tells: Tells) -> Self {
        Self { tells, ..self }
    }

    fn pending(&self, at: i64) -> bool {
        self.plan.pending.iter().any(|(from, to)| (*from..*to).contains(&at))
    }

    /// Whether there is something to ask for now; if not, when there is.
    fn wants(&mut self, now: i64) -> Result<(), i64> {
        if self.pending(now) {
            return Ok(());
        }
        if now >= self.next_poll {
            self.polls_left = self.plan.polls;
            self.next_poll = now - now % POLL + POLL;
        }
        if self.polls_left == 0 {
            let begins = self.plan.pending.iter().map(|(from, _)| *from).filter(|from| *from > now).min();
            return Err(begins.map_or(self.next_poll, |from| from.min(self.next_poll)));
        }
        self.polls_left -= 1;
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Turn,
    Crash,
    Try,
    Leave,
    Arrive,
    Answer,
}

/// The earliest comes first, of equal ones the one that was noted first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: i64,
    number: u64,
    what: What,
    account: usize,
    worker: usize,
    /// The turn that it belongs to.
    turn: u32,
}

/// What came of a day.
pub struct Day {
    pub used: f64,
    pub asked: usize,
    pub refused: usize,
}

pub struct World {
    accounts: Vec<Account>,
    limiters: Vec<Limiter>,
    /// Until when the permits of the address that were taken reach, in seconds of the day.
    taken_until: f64,
    events: BinaryHeap<Reverse<Event>>,
    number: u64,
    random: StdRng,
    day: Day,
}

impl World {
    pub fn new(accounts: Vec<Account>) -> Self {
        let day = Day { used: 0.0, asked: 0, refused: 0 };
        let (limiters, events) = (Vec::new(), BinaryHeap::new());
        Self {
            accounts,
            limiters,
            taken_until: 0.0,
            events,
            number: 0,
            random: StdRng::seed_from_u64(11),
            day,
        }
    }

    /// Every account is limited so, each for itself.
    pub fn each(mut self, bucket: Option<&'static str>, limiter: impl Fn() -> Limiter) -> Self {
        for account in &mut self.accounts {
            account.limiters.push((bucket, self.limiters.len()));
            self.limiters.push(limiter());
        }
        self
    }

    /// All accounts are limited so together.
    pub fn together(mut self, bucket: &'static str, limiter: Limiter) -> Self {
        for account in &mut self.accounts {
            account.limiters.push((Some(bucket), self.limiters.len()));
        }
        self.limiters.push(limiter);
        self
    }

    pub fn run(mut self) -> Day {
        for account in 0..self.accounts.len() {
            let begins = self.random.random_range(0..1000);
            self.at(begins, What::Turn, account, 0);
            self.at(self.accounts[account].plan.crash_at, What::Crash, account, 0);
        }
        while let Some(Reverse(Event { at: now, what, account, worker, turn, .. })) = self.events.pop() {
            if now >= DAY {
                break;
            }
            let stale = turn != self.accounts[account].turn;
            match what {
                What::Crash => self.crash(now, account),
                // Who arrives has left: it counts over there, whatever has become of the daemon.
                What::Arrive => self.arrive(now, account, worker, turn),
                _ if stale => {}
                What::Turn => self.begin(now, account),
                What::Try => self.attempt(now, account, worker),
                What::Leave => self.leave(now, account, worker),
                What::Answer => self.answer(now, account, worker),
            }
        }
        self.day
    }

    /// Something of the turn that is under way.
    fn at(&mut self, time: i64, what: What, account: usize, worker: usize) {
        self.push(time, what, account, worker, self.accounts[account].turn);
    }

    fn push(&mut self, at: i64, what: What, account: usize, worker: usize, turn: u32) {
        self.number += 1;
        self.events.push(Reverse(Event { at, number: self.number, what, account, worker, turn }));
    }

    // ---- turns

    fn begin(&mut self, now: i64, account: usize) {
        let of = &mut self.accounts[account];
        of.turn += 1;
        let own: Vec<BucketSpec> =
            of.specs.iter().filter(|spec| spec.scope == Scope::Account).copied().collect();
        of.pacer = Some(match of.saved.take() {
            Some(Value::Null) => Pacer::new(&own, RESERVE),
            Some(saved) => Pacer::from_saved(&own, RESERVE, &saved, date(now)),
            None => {
                let mut pacer = Pacer::new(&own, RESERVE);
                pacer.assume_spent(date(now));
                pacer
            }
        });
        of.deadline = now + TURN;
        of.under_way = 0;
        of.queue.clear();
        for worker in &mut of.workers {
            if worker.until.is_none_or(|until| until <= now) {
                *worker = worker.idle(None);
            }
        }
        self.wave(now, account, true);
    }

    /// Those who come first are alone, then come the others: who has a place in the line before who has none.
    fn wave(&mut self, now: i64, account: usize, first: bool) {
        let of = &mut self.accounts[account];
        let here = |worker: &&Worker| worker.first == first && worker.until.is_none();
        let names: Vec<&str> = of.workers.iter().filter(here).map(|worker| worker.name).collect();
        if names.is_empty() && first {
            return self.wave(now, account, false);
        }
        let pacer = of.pacer.as_mut().expect("a turn is under way");
        pacer.come(names.iter().copied());
        let line: Vec<String> = pacer.line().map(str::to_owned).collect();
        let place = |name: &&str| line.iter().position(|known| known == name).unwrap_or(line.len());
        let mut in_order = names;
        in_order.sort_by_key(place);
        let number = |name: &str| of.workers.iter().position(|worker| worker.name == name);
        let workers: Vec<usize> = in_order.into_iter().filter_map(number).collect();
        for worker in workers {
            self.at(now, What::Try, account, worker);
        }
    }

    /// A stream has nothing to do in this turn any more, or `waits` for more than is left of it; the turn ends with the last
    /// of them.
    fn halt(&mut self, now: i64, account: usize, worker: usize, until: i64, waits: bool) {
        self.release(now, account, worker);
        let of = &mut self.accounts[account];
        let halted = of.workers[worker].idle(Some(until));
        of.pacer.as_mut().expect("a turn is under way").go(halted.name, waits);
        let was_first = halted.first;
        of.workers[worker] = halted;
        let Some(next) = of.workers.iter().map(|worker| worker.until).collect::<Option<Vec<_>>>() else {
            if was_first && of.workers.iter().all(|worker| !worker.first || worker.until.is_some()) {
                self.wave(now, account, false);
            }
            return;
        };
        let mut pacer = of.pacer.take().expect("a turn is under way");
        of.saved = Some(pacer.to_saved(date(now)));
        let earliest = next.into_iter().min().unwrap_or(now);
        let begins = earliest.max(now + self.random.random_range(BETWEEN_TURNS));
        self.at(begins, What::Turn, account, 0);
    }

    fn crash(&mut self, now: i64, account: usize) {
        let of = &mut self.accounts[account];
        of.turn += 1;
        of.pacer = None;
        of.saved = None;
        of.workers.iter_mut().for_each(|worker| worker.until = None);
        self.at(now + TAKEN_OVER, What::Turn, account, 0);
    }

    // ---- requests

    fn attempt(&mut self, now: i64, account: usize, worker: usize) {
        let of = &mut self.accounts[account];
        if of.workers[worker].request.is_none() {
            if let Err(until) = of.wants(now) {
                return self.halt(now, account, worker, until, false);
            }
            of.workers[worker].request = Some(of.asked % of.demand.len());
            of.asked += 1;
        }
        if of.under_way == of.slots {
            return of.queue.push_back(worker);
        }
        let name = Some(of.workers[worker].name);
        let request = of.workers[worker].of(&of.demand);
        let pacer = of.pacer.as_mut().expect("a turn is under way");
        if now >= of.deadline {
            pacer.wait(date(now), name, request.buckets, request.points, Duration::ZERO);
            return self.halt(now, account, worker, now, true);
        }
        if let Err(wait) = pacer.take_in_line(date(now), name, request.buckets, request.points) {
            // It holds no slot while it waits.
            self.wake(now, account);
            return self.sleep(now, wait, What::Try, account, worker);
        }
        of.under_way += 1;
        of.workers[worker].slot = true;
        let request = of.workers[worker].of(&of.demand);
        let mut egress = of.specs.iter().filter(|spec| spec.scope == Scope::Egress);
        let Some(egress) = egress.find(|spec| request.buckets.contains(&spec.name)) else {
            return self.leave(now, account, worker);
        };
        let bucket = BucketSpec { limit: less_reserve(egress.limit, RESERVE), ..*egress };
        let patience = Duration::from_millis(u64::try_from(of.deadline - now).unwrap_or(0));
        let (further, lease) = Spread::of(&bucket).lease(self.taken_until - seconds(now), 1, patience);
        self.taken_until += further;
        match lease {
            Lease::Granted { wait } => self.sleep(now, wait, What::Leave, account, worker),
            Lease::Full { wait } => self.halt(now, account, worker, now + whole_ms(wait), true),
        }
    }

    /// Whoever has waited the longest for a slot tries again.
    fn wake(&mut self, now: i64, account: usize) {
        if let Some(next) = self.accounts[account].queue.pop_front() {
            self.at(now, What::Try, account, next);
        }
    }

    fn release(&mut self, now: i64, account: usize, worker: usize) {
        let of = &mut self.accounts[account];
        if std::mem::take(&mut of.workers[worker].slot) {
            of.under_way -= 1;
        }
        self.wake(now, account);
    }

    /// Waits, unless that would outlast the turn.
    fn sleep(&mut self, now: i64, wait: Duration, then: What, account: usize, worker: usize) {
        let until = now + whole_ms(wait);
        if until > self.accounts[account].deadline {
            return self.halt(now, account, worker, until, true);
        }
        self.at(until, then, account, worker);
    }

    fn leave(&mut self, now: i64, account: usize, worker: usize) {
        let there = self.random.random_range(THERE);
        self.at(now + there, What::Arrive, account, worker);
    }

    fn arrive(&mut self, now: i64, account: usize, worker: usize, turn: u32) {
        let of = &mut self.accounts[account];
        let request = of.workers[worker].of(&of.demand);
        let charged = match of.tells {
            Tells::Cost => self.random.random_range(request.points / 3..=request.points),
            _ => request.points,
        };
        let mut admitted = true;
        for (bucket, limiter) in &of.limiters {
            if bucket.is_none_or(|name| request.buckets.contains(&name)) {
                admitted &= self.limiters[*limiter].admits(now, request.points);
                self.limiters[*limiter].charge(charged);
            }
        }
        self.day.asked += 1;
        self.day.refused += usize::from(!admitted);
        if admitted && request.buckets.contains(&of.counts) && of.pending(now) {
            self.day.used += f64::from(charged);
        }
        (of.workers[worker].admitted, of.workers[worker].charged) = (admitted, charged);
        let back = self.random.random_range(BACK);
        self.push(now + back, What::Answer, account, worker, turn);
    }

    fn answer(&mut self, now: i64, account: usize, worker: usize) {
        let of = &mut self.accounts[account];
        let Worker { admitted, charged, .. } = of.workers[worker];
        let request = of.workers[worker].of(&of.demand);
        let pacer = of.pacer.as_mut().expect("a turn is under way");
        if !admitted {
            pacer.refused(date(now), request.buckets[0], None);
        } else if of.tells == Tells::Nothing {
            pacer.succeeded(date(now), request.buckets);
        } else {
            let mut stands = of.limiters.iter().map(|(_, limiter)| self.limiters[*limiter].stand());
            match of.tells {
                Tells::Cost => tell_cost(&mut of.reply, request, charged, stands.next()),
                _ => tell_headers(&mut of.reply, stands),
            }
            of.reply.sent_at = date(now);
            learn(pacer, of.provider, request, &of.reply);
        }
        let asks_once = of.workers[worker].first;
        self.release(now, account, worker);
        if asks_once {
            return self.halt(now, account, worker, now + POLL, false);
        }
        let of = &mut self.accounts[account];
        of.workers[worker] = of.workers[worker].idle(None);
        self.attempt(now, account, worker);
    }
}

impl Worker {
    /// The stream without a request.
    fn idle(&self, until: Option<i64>) -> Self {
        Self { name: self.name, first: self.first, until, ..Self::default() }
    }

    fn of<'a>(&self, demand: &'a [Request]) -> &'a Request {
        &demand[self.request.expect("a request is under way")]
    }
}

/// As the product's sender learns from an answer that is no refusal.
fn learn(pacer: &mut Pacer, provider: &dyn Provider, request: &Request, reply: &Reply) {
    let at = reply.sent_at;
    pacer.succeeded(at, request.buckets);
    if let Some(limit) = provider.limits(request, reply) {
        let per = limit.per_ms.map(Duration::from_millis);
        let unspent = limit.charged.map_or(0, |charged| request.points.saturating_sub(charged));
        let observed = Observed { limit: limit.max, remaining: limit.remaining, per, unspent };
        pacer.observe(at, limit.bucket, observed);
    }
    if let Some(quota) = provider.quota(request, reply) {
        pacer.quota(at, quota.bucket, quota.max, quota.remaining, Duration::from_millis(quota.again_ms));
    }
}

/// Headers of a window, and of a day's quota where there is one.
fn tell_headers(reply: &mut Reply, stands: impl Iterator<Item = (u32, u32)>) {
    for (stand, [max, left]) in stands.zip(TOLD) {
        for (name, number) in [(max, stand.0), (left, stand.1)] {
            reply.headers.entry(name.to_owned()).or_default().clear();
            write!(reply.headers.get_mut(name).expect("it is there"), "{number}")
                .expect("text takes numbers");
        }
    }
}

const TOLD: [[&str; 2]; 2] = [
    ["x-hubspot-ratelimit-max", "x-hubspot-ratelimit-remaining"],
    ["x-hubspot-ratelimit-daily", "x-hubspot-ratelimit-daily-remaining"],
];

/// What a query has cost, and what the budget holds after it.
fn tell_cost(reply: &mut Reply, request: &Request, charged: u32, stand: Option<(u32, u32)>) {
    let (max, left) = stand.expect("points are limited");
    let status = json!({"maximumAvailable": max, "currentlyAvailable": left, "restoreRate": max / 20});
    let cost =
        json!({"requestedQueryCost": request.points, "actualQueryCost": charged, "throttleStatus": status});
    reply.body = Body::Json(json!({"data": {}, "extensions": {"cost": cost}}));
}

fn date(ms: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::milliseconds(ms)
}

/// A wait as timers know it.
fn whole_ms(wait: Duration) -> i64 {
    i64::try_from(wait.as_micros().div_ceil(1000)).expect("less than a day")
}

#[expect(clippy::cast_precision_loss, reason = "a day's milliseconds")]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}
