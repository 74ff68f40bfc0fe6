//! Time that passes only while somebody waits for it: tokio's own, paused, read as a wall clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use fieldmirror::domain::time::{Clock, delta};
use tokio::time::Instant;

/// When the simulation begins: the same for a seed whenever it is played, and ahead of the database's clock, so that what
/// is due by the one is due by the other.
const BEGINS: &str = "2040-03-01T09:00:00Z";

/// A wall clock that may be wrong, and be set.
pub struct VirtualClock {
    base: DateTime<Utc>,
    began: Instant,
    set_by_ms: AtomicI64,
}

impl VirtualClock {
    /// The clock of the provider and one that is `skew` ahead of it.
    pub fn pair(skew: TimeDelta) -> (Arc<Self>, Arc<Self>) {
        let (base, began) = (BEGINS.parse().expect("a time"), Instant::now());
        let clock = |base| Arc::new(Self { base, began, set_by_ms: AtomicI64::new(0) });
        (clock(base), clock(base + skew))
    }

    /// Sets it forward, or back.
    pub fn set_by(&self, by: TimeDelta) {
        self.set_by_ms.fetch_add(by.num_milliseconds(), Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> DateTime<Utc> {
        self.base
            + delta(self.began.elapsed())
            + TimeDelta::milliseconds(self.set_by_ms.load(Ordering::Relaxed))
    }
}
