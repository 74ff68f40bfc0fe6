//! One limit. Where requests count, an exact log of what was sent within its span: it can, unlike a refilling bucket,
//! neither burst over a rolling window nor over a fixed one, wherever the provider's begins. Where points count, the
//! provider's own leaky bucket, followed from here: what is spent flows back evenly.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Observed, PAUSE_MAX, less_reserve};
use crate::domain::spec::{BucketSpec, Counts, PAUSE_DOUBTED};
use crate::domain::time::{delta, until};

/// Pauses from here on are of no limit that counts requests in seconds.
const LONG: Duration = Duration::from_mins(10);
/// Requests arrive at the provider a little later than they leave, and not all equally late: a span is watched
/// longer by this much, so that a slow request followed by a quick one does not fall into one span over there.
/// A twentieth of the span, within these bounds. What a reserve leaves unused forgives some lateness as well; without
/// one nothing does.
const ARRIVAL_JITTER_MIN: Duration = Duration::from_millis(75);
const ARRIVAL_JITTER_MIN_BARE: Duration = Duration::from_millis(110);
const ARRIVAL_JITTER_MAX: Duration = Duration::from_millis(500);

/// Pauses after refusals without a wait grow by the bucket's span each time, as HubSpot's own client does (10 s for
/// ten-second buckets, 1 s for secondly ones), up to this.
const REFUSED_PAUSE_MAX: Duration = Duration::from_mins(15);
/// Where no limit is published they double, since a step means nothing, up to this.
const UNPUBLISHED_PAUSE_MAX: Duration = Duration::from_mins(5);
const DOUBLINGS_MAX: u32 = 16;
/// The shortest pause after a refusal: a `Retry-After: 0` must not become a hot loop.
const REFUSED_PAUSE_MIN: Duration = Duration::from_secs(1);

/// A limit that nobody has used for this long after all of it was there again is everybody's: those ahead could have gone.
const UNCLAIMED: Duration = Duration::from_secs(1);

/// Requests that may be under way while an answer tells what is left of a quota.
const UNDER_WAY_MAX: u32 = 32;

#[derive(Debug, Clone)]
pub(super) struct Bucket {
    spec: BucketSpec,
    reserve: f64,
    /// The limit that the provider told for this account: its plan may allow more or less than the spec plans with.
    pub(super) told: Option<u32>,
    /// When requests left, oldest first; none older than the window.
    pub(super) sent: VecDeque<DateTime<Utc>>,
    pub(super) paused_until: Option<DateTime<Utc>>,
    /// Refusals in a row.
    pub(super) refusals: u32,
    /// Points spent as of `spent_at`, where the limit counts points.
    pub(super) spent: f64,
    pub(super) spent_at: DateTime<Utc>,
    /// How long the whole budget takes to come back, as the provider told.
    per_told: Option<Duration>,
}

impl Bucket {
    pub(super) fn new(spec: BucketSpec, reserve: f64) -> Self {
        let (sent, spent_at) = (VecDeque::new(), DateTime::<Utc>::MIN_UTC);
        let (told, paused_until, per_told) = (None, None, None);
        Self { spec, reserve, told, sent, paused_until, refusals: 0, spent: 0.0, spent_at, per_told }
    }

    pub(super) fn name(&self) -> &'static str {
        self.spec.name
    }

    /// Whether what nobody takes now is there later.
    pub(super) fn saves(&self) -> bool {
        self.spec.counts == Counts::Points
    }

    /// The most requests within one window.
    pub(super) fn allowed(&self) -> usize {
        less_reserve(self.limit(), self.reserve) as usize
    }

    /// What the provider allows within its span.
    fn limit(&self) -> u32 {
        self.told.unwrap_or(self.spec.limit)
    }

    /// The most requests that the log ever holds.
    pub(super) fn sent_max(&self) -> usize {
        self.spec.limit.max(self.told.unwrap_or(0)).max(1) as usize
    }

    /// The span in which no more than that leave: the spec's, and the margin for arrival.
    pub(super) fn window(&self) -> Duration {
        let bare = self.spec.published && self.allowed() >= self.limit() as usize;
        let least = if bare { ARRIVAL_JITTER_MIN_BARE } else { ARRIVAL_JITTER_MIN };
        let margin = (self.spec.per / 20).clamp(least, ARRIVAL_JITTER_MAX);
        self.spec.per.saturating_add(margin)
    }

    /// How long until a request of so many points may leave, once those `ahead` have left: the points of each.
    pub(super) fn ready_in(
        &mut self,
        now: DateTime<Utc>,
        points: u32,
        ahead: impl Iterator<Item = u32>,
    ) -> Duration {
        self.forget(now);
        let paused = self.paused_until.map_or(Duration::ZERO, |then| until(then, now));
        if self.spec.counts == Counts::Points {
            return paused.max(self.points_in(points, ahead));
        }
        // With `allowed` or more in the log, the one to wait for is that many from the end. Those ahead have not left yet.
        let in_the_way = (self.sent.len() + ahead.count()).checked_sub(self.allowed());
        let freed_in = |sent: &DateTime<Utc>| until(*sent + delta(self.window()), now);
        let full = match (in_the_way, self.sent.back()) {
            (Some(index), Some(last)) => {
                self.sent.get(index).map_or_else(|| freed_in(last) + UNCLAIMED, freed_in)
            }
            _ => Duration::ZERO,
        };
        paused.max(full)
    }

    /// The limit and what holds it, for people: what is written down of a wait for it.
    pub(super) fn in_words(&self, now: DateTime<Utc>) -> String {
        let (limit, ours) = (self.limit(), self.allowed());
        let points = if self.spec.counts == Counts::Points { " points" } else { "" };
        let per = humantime::format_duration(self.spec.per);
        let ours = if ours < limit as usize { format!(", {ours} of them ours") } else { String::new() };
        let held = match self.refusals {
            _ if !self.paused(now) => "is used up".to_owned(),
            _ if self.paused_until.is_some_and(|then| until(then, now) > LONG) => {
                "rests for long, as the provider wants it, such as for a day's quota".to_owned()
            }
            0 => "is used up, as the provider says".to_owned(),
            refusals => format!("pauses, refused with 429 {refusals} times in a row"),
        };
        format!("`{}` ({limit}{points} in {per}{ours}), which {held}", self.name())
    }

    /// How long until so many points are there. A request dearer than the whole budget leaves when all of it is there:
    /// the provider's answer says more than our waiting.
    #[expect(clippy::cast_precision_loss, reason = "budgets are small numbers")]
    fn points_in(&self, points: u32, ahead: impl Iterator<Item = u32>) -> Duration {
        let budget = self.allowed() as f64;
        let taken = |points: u32| f64::from(points).min(budget);
        let missing = self.spent + ahead.map(taken).sum::<f64>() + taken(points) - budget;
        let back_in = |points: f64| Duration::from_secs_f64(points / self.per_second());
        // A hair of a point is rounding.
        match self.spent {
            _ if missing <= 0.001 => Duration::ZERO,
            spent if missing <= spent + 0.001 => back_in(missing),
            spent if spent > 0.001 => back_in(spent) + UNCLAIMED,
            _ => Duration::ZERO,
        }
    }

    /// Points that come back in a second, less the reserve.
    #[expect(clippy::cast_precision_loss, reason = "budgets are small numbers")]
    fn per_second(&self) -> f64 {
        let per = self.per_told.unwrap_or(self.spec.per).max(Duration::from_millis(1));
        self.allowed() as f64 / per.as_secs_f64()
    }

    pub(super) fn take(&mut self, now: DateTime<Utc>, points: u32) {
        match self.spec.counts {
            Counts::Requests => self.sent.push_back(now),
            Counts::Points => self.spent += f64::from(points),
        }
    }

    pub(super) fn refused(&mut self, now: DateTime<Utc>, wait: Option<Duration>) -> Duration {
        if !self.paused(now) {
            self.refusals = self.refusals.saturating_add(1);
        }
        self.hold(now, wait.unwrap_or_else(|| self.grown()).max(REFUSED_PAUSE_MIN));
        self.paused_until.map_or(Duration::ZERO, |then| until(then, now))
    }

    /// The pause after so many refusals in a row.
    fn grown(&self) -> Duration {
        let step = self.spec.per.max(REFUSED_PAUSE_MIN);
        if self.spec.published {
            return step.saturating_mul(self.refusals.max(1)).min(REFUSED_PAUSE_MAX);
        }
        let doublings = self.refusals.saturating_sub(1).min(DOUBLINGS_MAX);
        step.saturating_mul(1 << doublings).min(UNPUBLISHED_PAUSE_MAX)
    }

    pub(super) fn succeeded(&mut self, now: DateTime<Utc>) {
        if !self.paused(now) {
            self.refusals = 0;
        }
    }

    /// Pauses until `wait` from now, or longer if it pauses longer already.
    pub(super) fn hold(&mut self, now: DateTime<Utc>, wait: Duration) {
        let then = now + delta(wait.min(PAUSE_MAX));
        self.paused_until = Some(self.paused_until.map_or(then, |known| known.max(then)));
    }

    pub(super) fn question_pause(&mut self, now: DateTime<Utc>) {
        let (doubted, most) = (now + delta(PAUSE_DOUBTED), now + delta(self.window()));
        self.paused_until = self.paused_until.map(|then| if then > doubted { most } else { then });
    }

    pub(super) fn observe(&mut self, now: DateTime<Utc>, observed: Observed) {
        if self.spec.counts == Counts::Points {
            self.forget(now);
            return self.observe_points(observed);
        }
        let Observed { limit, remaining, per, .. } = observed;
        let per = per.unwrap_or(self.spec.per);
        if let Some(limit) = limit.filter(|_| per == self.spec.per) {
            self.told = Some(limit);
        }
        if remaining == Some(0) {
            self.hold(now, per);
        }
    }

    pub(super) fn quota(&mut self, now: DateTime<Utc>, max: u32, remaining: u32, again: Duration) {
        let reserved = max - less_reserve(max, self.reserve).min(max);
        if remaining <= reserved.max(UNDER_WAY_MAX) {
            self.hold(now, again);
        }
    }

    /// What was not charged comes back; what others have spent counts as spent.
    fn observe_points(&mut self, observed: Observed) {
        self.told = observed.limit.or(self.told);
        self.per_told = observed.per.or(self.per_told);
        self.spent = (self.spent - f64::from(observed.unspent)).max(0.0);
        let told = self.told.unwrap_or(self.spec.limit);
        // A budget that has shrunk never lacks more than it holds.
        self.spent = self.spent.min(f64::from(told));
        if let Some(remaining) = observed.remaining {
            self.spent = self.spent.max(f64::from(told.saturating_sub(remaining)));
        }
    }

    pub(super) fn move_back(&mut self, by: chrono::TimeDelta) {
        let moved = |time: DateTime<Utc>| time.checked_sub_signed(by).unwrap_or(DateTime::<Utc>::MIN_UTC);
        self.sent.iter_mut().for_each(|time| *time = moved(*time));
        self.paused_until = self.paused_until.map(moved);
        self.spent_at = moved(self.spent_at);
    }

    /// Drops what no longer counts.
    pub(super) fn forget(&mut self, now: DateTime<Utc>) {
        let window = delta(self.window());
        while self.sent.front().is_some_and(|sent| now.signed_duration_since(*sent) >= window) {
            self.sent.pop_front();
        }
        self.paused_until = self.paused_until.filter(|then| *then > now);
        if self.spec.counts == Counts::Points {
            let passed = until(now, self.spent_at).as_secs_f64();
            self.spent = (self.spent - passed * self.per_second()).max(0.0);
            self.spent_at = self.spent_at.max(now);
        }
    }

    fn paused(&self, now: DateTime<Utc>) -> bool {
        self.paused_until.is_some_and(|then| then > now)
    }
}
