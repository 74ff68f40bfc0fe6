//! Time that passes only while somebody waits for it: tokio's own, paused, read as a wall clock.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use fieldmirror::domain::time::{Clock, delta};
use tokio::time::Instant;

/// When the simulation begins: the same for a seed whenever it is played, and ahead of the database's clock, so that what
/// is due by the one is due by the other.
const BEGINS: &str = "2040-03-01T09:00:00Z";

/// A wall clock that may be wrong by a constant.
pub struct VirtualClock {
    base: DateTime<Utc>,
    began: Instant,
}

impl VirtualClock {
    /// The clock of the provider and one that is `skew` ahead of it.
    pub fn pair(skew: TimeDelta) -> (Arc<Self>, Arc<Self>) {
        let (base, began) = (BEGINS.parse().expect("a time"), Instant::now());
        (Arc::new(Self { base, began }), Arc::new(Self { base: base + skew, began }))
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> DateTime<Utc> {
        self.base + delta(self.began.elapsed())
    }
}
