//! Where the time comes from. Plain rules are handed `now`; only shells ask a [`Clock`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// The wall clock. Two implementations: the system's, and one that a test moves.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> DateTime<Utc>;
}

/// The machine's own clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one home of the wall clock")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

/// The machine's clock, moved by an offset that may change at any moment: a clock jump on demand.
#[derive(Debug, Default)]
pub struct ShiftedClock {
    offset_ms: AtomicI64,
    stopped_at: OnceLock<DateTime<Utc>>,
}

impl ShiftedClock {
    /// From now on it moves only when it is moved, however long the machine takes.
    pub fn stop(&self) {
        self.stopped_at.get_or_init(|| SystemClock.now());
    }

    pub fn shift(&self, by: TimeDelta) {
        self.offset_ms.fetch_add(by.num_milliseconds(), Ordering::SeqCst);
    }
}

impl Clock for ShiftedClock {
    fn now(&self) -> DateTime<Utc> {
        let now = self.stopped_at.get().copied().unwrap_or_else(|| SystemClock.now());
        now + TimeDelta::milliseconds(self.offset_ms.load(Ordering::SeqCst))
    }
}

/// `Duration` to the signed kind that dates are moved by. Durations of more than 100 years are cut to that.
pub fn delta(duration: Duration) -> TimeDelta {
    const CENTURY: TimeDelta = TimeDelta::days(36_525);
    TimeDelta::from_std(duration).unwrap_or(CENTURY).min(CENTURY)
}

/// The time left until `then`; zero when it has passed.
pub fn until(then: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (then - now).to_std().unwrap_or(Duration::ZERO)
}
