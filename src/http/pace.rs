//! When the next request to an account may leave: only when the provider can be expected to accept it.
//!
//! A [`Pacer`] holds the buckets of one account at one provider; a request takes a permit from each bucket that it
//! names. Those that share an account take theirs in the order in which they have come ([`mod@line`]). It is plain: `now`
//! is handed in, nothing sleeps here. Limits that cross accounts or daemons (an address, a token endpoint, a day's quota)
//! are not its business; they are kept in the database.
//!
//! `now` is wall-clock time, so that what was sent can be saved with a turn and counted by the next one. A clock that
//! goes back does no harm: see [`Pacer::settle`]. One that leaps forward looks like idle time; a caller who wants to
//! be safe from that as well reads the clock once for a turn and adds monotonic time to it.

mod bucket;
mod line;
mod saved;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

use self::bucket::Bucket;
use self::line::{Line, Place};
use super::retry::RETRY_AFTER_MAX;
use crate::domain::spec::{BucketSpec, EVERY_BUCKET, Scope};

/// Tasks that ask one after the other may hand in times that are a little out of order; what is further back than
/// this is a clock that was set back.
const OUT_OF_ORDER_MAX: TimeDelta = TimeDelta::milliseconds(500);
/// [`Pacer::assume_spent`] holds no bucket longer: quotas of longer spans are in the database, not forgotten.
const ASSUMED_SPENT_MAX: Duration = Duration::from_mins(5);

/// The budget of one account.
#[derive(Debug, Clone)]
pub struct Pacer {
    buckets: Vec<Bucket>,
    /// The latest time that was handed in.
    seen: DateTime<Utc>,
    /// Those who wait.
    line: Line,
}

/// What an answer's headers say about a bucket, such as `X-HubSpot-RateLimit-Max`, `-Remaining` and
/// `-Interval-Milliseconds`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observed {
    /// Requests allowed in one interval.
    pub limit: Option<u32>,
    /// Requests left in it.
    pub remaining: Option<u32>,
    /// The interval. When it is not the bucket's own, `limit` is of another policy and not looked at; where points
    /// count, how long all of them take to come back.
    pub per: Option<Duration>,
    /// Points of this request that were taken and not charged.
    pub unspent: u32,
}

impl Pacer {
    /// Full buckets. `reserve` is the share of each limit, 0 to below 1, that is left to the customer's other apps; a
    /// bucket always lets at least one request through.
    pub fn new(specs: &[BucketSpec], reserve: f64) -> Self {
        let buckets = specs.iter().map(|spec| Bucket::new(*spec, reserve)).collect();
        Self { buckets, seen: DateTime::<Utc>::MIN_UTC, line: Line::default() }
    }

    /// The limits among `specs` that are an account's own.
    pub fn of_account(specs: &[BucketSpec], reserve: f64) -> Self {
        let own: Vec<BucketSpec> =
            specs.iter().filter(|spec| spec.scope == Scope::Account).copied().collect();
        Self::new(&own, reserve)
    }

    /// How long until one request that takes from `buckets` may leave; zero: now. The longest of the buckets decides.
    ///
    /// No buckets: it is not paced. [`EVERY_BUCKET`] means all; another name that is none of the account's, the first.
    pub fn ready_in(&mut self, now: DateTime<Utc>, buckets: &[&str], points: u32) -> Duration {
        let now = self.settle(now);
        let waits = self.chosen(buckets).map(|bucket| bucket.ready_in(now, points, std::iter::empty()));
        waits.max().unwrap_or_default()
    }

    /// Which of `buckets` is waited for the longest, in words.
    pub fn in_the_way(
        &mut self,
        now: DateTime<Utc>,
        of: Option<&str>,
        buckets: &[&str],
        points: u32,
    ) -> Option<String> {
        let now = self.settle(now);
        self.longest(now, of, buckets, points).map(|(_, bucket)| bucket.in_words(now))
    }

    /// Takes a permit from each of `buckets`, for one request that leaves now, or `points` where a bucket counts those.
    /// When any is not ready none is touched, and the error is how long to wait before asking again.
    pub fn take(&mut self, now: DateTime<Utc>, buckets: &[&str], points: u32) -> Result<(), Duration> {
        let wait = self.ready_in(now, buckets, points);
        if !wait.is_zero() {
            return Err(wait);
        }
        let now = self.seen;
        self.chosen(buckets).for_each(|bucket| bucket.take(now, points));
        Ok(())
    }

    /// Takes as [`Pacer::take`] does, and leaves to those who came before what they wait for, if they can go or it is saved
    /// for them. `of` keeps its place until it can go, from one turn to the next as well; who has no name comes last and
    /// keeps none.
    pub fn take_in_line(
        &mut self,
        now: DateTime<Utc>,
        of: Option<&str>,
        buckets: &[&str],
        points: u32,
    ) -> Result<(), Duration> {
        let now = self.settle(now);
        let wait = self.longest(now, of, buckets, points).map(|(wait, _)| wait).unwrap_or_default();
        if !wait.is_zero() {
            self.wait(now, of, buckets, points, wait);
            return Err(wait);
        }
        if let Some(of) = of {
            self.line.leave(of);
        }
        self.chosen(buckets).for_each(|bucket| bucket.take(now, points));
        Ok(())
    }

    /// These can go as soon as they may, and no others.
    pub fn come<'a>(&mut self, here: impl Iterator<Item = &'a str>) {
        self.line.come(here.map(str::to_owned).collect());
    }

    /// `of` does not go on for now. It keeps a place only if it still `waits` for what that is for.
    pub fn go(&mut self, of: &str, waits: bool) {
        self.line.go(of, waits);
    }

    /// Keeps a place for `of`, which cannot go before `wait` has passed.
    pub fn wait(
        &mut self,
        now: DateTime<Utc>,
        of: Option<&str>,
        buckets: &[&str],
        points: u32,
        wait: Duration,
    ) {
        let (kept_until, Some(of)) = (self.settle(now), of) else { return };
        let buckets: Vec<String> = self.chosen(buckets).map(|bucket| bucket.name().to_owned()).collect();
        if !buckets.is_empty() {
            self.line.wait(Place { of: of.to_owned(), buckets, points, kept_until }, wait);
        }
    }

    /// The provider refused a request for `bucket`'s limit: pauses it for `wait`, or, when it did not say, for longer
    /// with each refusal in a row. Refusals that arrive while it pauses are of the same burst and count once. Returns
    /// how long the bucket pauses from now.
    pub fn refused(&mut self, now: DateTime<Utc>, bucket: &str, wait: Option<Duration>) -> Duration {
        let now = self.settle(now);
        self.chosen(&[bucket]).map(|bucket| bucket.refused(now, wait)).max().unwrap_or_default()
    }

    /// A request that took from `buckets` was accepted: their next refusal counts as the first again. Answers to what
    /// had left before a refusal do not count.
    pub fn succeeded(&mut self, now: DateTime<Utc>, buckets: &[&str]) {
        let now = self.settle(now);
        self.chosen(buckets).for_each(|bucket| bucket.succeeded(now));
    }

    /// Keeps `bucket` from sending for `wait` (at most [`RETRY_AFTER_MAX`]), without counting it as a refusal.
    pub fn hold(&mut self, now: DateTime<Utc>, bucket: &str, wait: Duration) {
        let now = self.settle(now);
        self.chosen(&[bucket]).for_each(|bucket| bucket.hold(now, wait));
    }

    /// Learns from an answer's headers: a limit below the described one is obeyed (less the reserve), and nothing is
    /// sent for an interval once nothing is left.
    pub fn observe(&mut self, now: DateTime<Utc>, bucket: &str, observed: Observed) {
        let now = self.settle(now);
        self.chosen(&[bucket]).for_each(|bucket| bucket.observe(now, observed));
    }

    /// Learns from an answer what is left of a quota over a long span, such as a day's: when that is the reserve, `bucket`
    /// sends nothing for the time `again`.
    pub fn quota(&mut self, now: DateTime<Utc>, bucket: &str, max: u32, remaining: u32, again: Duration) {
        let now = self.settle(now);
        self.chosen(&[bucket]).for_each(|bucket| bucket.quota(now, max, remaining, again));
    }

    /// Somebody doubts that long pauses are still right: none lasts longer than its bucket's own span from
    /// now.
    pub fn question_pauses(&mut self, now: DateTime<Utc>) {
        let now = self.settle(now);
        self.buckets.iter_mut().for_each(|bucket| bucket.question_pause(now));
    }

    /// After a crash nobody knows what was sent last: nothing is left in any bucket until a whole span has passed.
    pub fn assume_spent(&mut self, now: DateTime<Utc>) {
        let now = self.settle(now);
        for bucket in &mut self.buckets {
            bucket.hold(now, bucket.window().min(ASSUMED_SPENT_MAX));
        }
    }

    /// What has to be remembered after `now`, as small JSON: what was sent within each bucket's span, pauses, and
    /// limits that the provider told.
    pub fn to_saved(&mut self, now: DateTime<Utc>) -> Value {
        let now = self.settle(now);
        saved::write(&mut self.buckets, &self.line, now)
    }

    /// The pacer that [`Pacer::to_saved`] wrote, whatever the specs are by now. What cannot be read counts as spent.
    pub fn from_saved(specs: &[BucketSpec], reserve: f64, saved: &Value, now: DateTime<Utc>) -> Self {
        let mut pacer = Self::new(specs, reserve);
        match saved::read(&mut pacer.buckets, &mut pacer.line, saved) {
            Some(saved_at) => {
                pacer.seen = saved_at;
                pacer.settle(now);
            }
            None => pacer.assume_spent(now),
        }
        pacer
    }

    /// The time to reckon with. It never goes back: a little disorder is read as the latest time seen, and when the
    /// clock was set back, all that is remembered moves back with it, as if no time had passed meanwhile. So nothing
    /// is forgotten early (no burst), and nothing waits for the clock to come round again (no endless wait).
    fn settle(&mut self, now: DateTime<Utc>) -> DateTime<Utc> {
        let back = self.seen.signed_duration_since(now);
        if back > OUT_OF_ORDER_MAX {
            self.buckets.iter_mut().for_each(|bucket| bucket.move_back(back));
            self.line.move_back(back);
            self.seen = now;
        }
        self.seen = self.seen.max(now);
        self.line.forget(self.seen);
        self.seen
    }

    /// Who waits, in their order.
    pub fn line(&self) -> impl Iterator<Item = &str> {
        self.line.places.iter().map(|place| place.of.as_str())
    }

    /// Which of `buckets` lets `of` go last, behind those who came before, and after how long.
    fn longest<'a>(
        &'a mut self,
        now: DateTime<Utc>,
        of: Option<&'a str>,
        buckets: &'a [&'a str],
        points: u32,
    ) -> Option<(Duration, &'a mut Bucket)> {
        let line = &self.line;
        let waits = chosen(&mut self.buckets, buckets).map(|bucket| {
            let ahead = line.ahead(of, bucket.name(), bucket.saves().then_some(now));
            (bucket.ready_in(now, points, ahead), bucket)
        });
        waits.max_by_key(|(wait, _)| *wait)
    }

    fn chosen<'a>(&'a mut self, names: &'a [&'a str]) -> impl Iterator<Item = &'a mut Bucket> {
        chosen(&mut self.buckets, names)
    }
}

/// Those of `buckets` that a request takes from which names these.
fn chosen<'a>(buckets: &'a mut [Bucket], names: &'a [&'a str]) -> impl Iterator<Item = &'a mut Bucket> {
    let all = names.contains(&EVERY_BUCKET);
    let known = |name: &str| buckets.iter().any(|bucket| bucket.name() == name);
    let with_first = names.iter().any(|name| !known(name));
    let takes = move |index: usize, bucket: &Bucket| {
        all || (with_first && index == 0) || names.contains(&bucket.name())
    };
    buckets
        .iter_mut()
        .enumerate()
        .filter(move |(index, bucket)| takes(*index, bucket))
        .map(|(_, bucket)| bucket)
}

/// A limit without the share that is left to others; one at the least.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "floats are cut at 0 and at u32::MAX"
)]
pub fn less_reserve(limit: u32, reserve: f64) -> u32 {
    let share = 1.0 - reserve.clamp(0.0, 1.0);
    ((f64::from(limit) * share).floor() as u32).max(1)
}

/// The longest pause of a bucket, whoever asks for it.
const PAUSE_MAX: Duration = RETRY_AFTER_MAX;

#[cfg(test)]
mod tests;
