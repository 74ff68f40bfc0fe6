//! How far a closed walk lets a stream be relied upon. Pure.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::domain::time::delta;

/// The lower bound of the next walk over changes: inclusive, and earlier than what is covered by `overlap`, since a
/// provider may index a change later than it stamps it.
pub fn from(covered_to: DateTime<Utc>, overlap: Duration) -> DateTime<Utc> {
    covered_to - delta(overlap)
}

/// Up to where a walk that began at `started_at` has read every change. `ahead` is by how much our clock runs ahead of
/// the provider's, whose stamps count; `hold_back` is how long a change may take to become visible.
pub fn covered(started_at: DateTime<Utc>, ahead: TimeDelta, hold_back: Duration) -> DateTime<Utc> {
    started_at - ahead.max(TimeDelta::zero()) - delta(hold_back)
}

/// Whether marking so many rows as gone passes the brake: at most max(10, 5 %) of what lives, and never all of it.
pub fn brake_lets_pass(gone: usize, living: usize) -> bool {
    const ALWAYS: usize = 10;
    const SHARE: usize = 20;
    gone == 0 || (gone < living && gone <= ALWAYS.max(living / SHARE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).unwrap()
    }

    #[test]
    fn the_slower_clock_counts() {
        let hold = Duration::from_secs(90);
        assert_eq!(covered(at(1000), TimeDelta::zero(), hold), at(910));
        assert_eq!(covered(at(1000), TimeDelta::seconds(-3), hold), at(910));
        assert_eq!(covered(at(1000), TimeDelta::seconds(600), hold), at(310));
        assert_eq!(from(at(910), Duration::from_mins(5)), at(610));
    }

    #[test]
    fn brake() {
        for (gone, living, passes) in [
            (0, 0, true),
            (1, 1, false),
            (10, 10, false),
            (10, 11, true),
            (11, 12, false),
            (11, 1000, true),
            (50, 1000, true),
            (51, 1000, false),
        ] {
            assert_eq!(brake_lets_pass(gone, living), passes, "{gone} of {living}");
        }
    }
}
