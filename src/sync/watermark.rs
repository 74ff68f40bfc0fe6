//! How far a closed walk lets a stream be relied upon. Pure.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::domain::spec::Mode;
use crate::domain::time::delta;

/// The lower bound of the next walk over changes: inclusive, and earlier than what is covered by `overlap`, since a
/// provider may index a change later than it stamps it.
pub fn from(covered_to: DateTime<Utc>, overlap: Duration) -> DateTime<Utc> {
    covered_to - delta(overlap)
}

/// Up to where a walk that began at `started_at`, or knew of the account what was true then, has read every change. `ahead`
/// is by how much our clock runs ahead of the provider's, whose stamps count; `hold_back` is how long a change may take to
/// become visible. What a provider lists by itself needs no index to have caught up.
pub fn covered(
    mode: Mode,
    started_at: DateTime<Utc>,
    ahead: TimeDelta,
    hold_back: Duration,
) -> DateTime<Utc> {
    let by_their_clock = started_at - ahead.max(TimeDelta::zero());
    match mode {
        Mode::Snapshot | Mode::Sweep => started_at,
        Mode::Archived => by_their_clock,
        Mode::Incremental | Mode::Backfill => by_their_clock - delta(hold_back),
    }
}

/// Whether a walk over changes has a lower bound that was moved back. It lies below what the last such walk has covered,
/// `closed`, or below what is claimed: a claim that is held or taken back says nothing of the bound.
pub fn reaches_back(
    mode: Mode,
    covered_to: Option<DateTime<Utc>>,
    closed: Option<DateTime<Utc>>,
    complete_to: Option<DateTime<Utc>>,
) -> bool {
    let known = closed.max(complete_to);
    mode == Mode::Incremental && covered_to.zip(known).is_some_and(|(covered, known)| covered < known)
}

/// From where on changes have to be read once more, when a walk over them found that the provider's clock has been set back:
/// what changed since then is stamped earlier than the bound of the walk, `from`. `before` is by how much our clock was
/// ahead of it in the walk that closed last. What the overlap reaches back for needs nothing more.
pub fn set_back(
    from: DateTime<Utc>,
    before: TimeDelta,
    ahead: TimeDelta,
    overlap: Duration,
) -> Option<DateTime<Utc>> {
    let further = ahead - before.max(TimeDelta::zero());
    (further > delta(overlap)).then(|| from + delta(overlap) - further)
}

/// Up to where a walk that began at `started_at` proves what is gone, by our clock: deletions bear no time of the
/// provider's. Where a provider marks them, it shows them as late as any change, by `lag`.
pub fn swept(mode: Mode, started_at: DateTime<Utc>, lag: Duration) -> Option<DateTime<Utc>> {
    matches!(mode, Mode::Snapshot | Mode::Backfill | Mode::Sweep).then(|| started_at - delta(lag))
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
        for (mode, ahead, covered_to) in [
            (Mode::Incremental, 0, 910),
            (Mode::Incremental, -3, 910),
            (Mode::Incremental, 600, 310),
            (Mode::Backfill, 0, 910),
            (Mode::Backfill, 600, 310),
            (Mode::Archived, -3, 1000),
            (Mode::Archived, 600, 400),
            (Mode::Snapshot, 600, 1000),
            (Mode::Sweep, 600, 1000),
        ] {
            let covered_to = at(covered_to);
            assert_eq!(
                covered(mode, at(1000), TimeDelta::seconds(ahead), hold),
                covered_to,
                "{mode:?} {ahead}"
            );
        }
        assert_eq!(from(at(910), Duration::from_mins(5)), at(610));
    }

    #[test]
    fn a_bound_that_was_moved_back_is_seen_whatever_is_claimed() {
        use Mode::{Incremental, Sweep};
        for (mode, covered_to, closed, complete_to, expected) in [
            (Incremental, Some(910), Some(910), Some(910), false),
            (Incremental, Some(500), Some(910), Some(910), true),
            (Incremental, Some(500), Some(910), None, true),
            (Incremental, Some(500), Some(910), Some(400), true),
            (Incremental, Some(910), Some(910), Some(400), false),
            (Incremental, Some(500), None, Some(910), true),
            (Incremental, Some(500), None, None, false),
            (Incremental, None, Some(910), Some(910), false),
            (Sweep, Some(500), Some(910), Some(910), false),
        ] {
            let found = reaches_back(mode, covered_to.map(at), closed.map(at), complete_to.map(at));
            assert_eq!(found, expected, "{mode:?} {covered_to:?} {closed:?} {complete_to:?}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_is_followed() {
        let overlap = Duration::from_mins(5);
        for (before, ahead, again_from) in [
            (0, 300, None),
            (0, 301, Some(699)),
            (-5, 900, Some(100)),
            (900, 900, None),
            (900, 0, None),
            (900, 1_201, Some(699)),
        ] {
            let found = set_back(at(700), TimeDelta::seconds(before), TimeDelta::seconds(ahead), overlap);
            assert_eq!(found, again_from.map(at), "{before} {ahead}");
        }
    }

    #[test]
    fn deletions_are_proved_by_reads_of_everything_as_late_as_they_are_shown() {
        for (mode, lag, swept_to) in [
            (Mode::Incremental, 0, None),
            (Mode::Archived, 0, None),
            (Mode::Backfill, 0, Some(1000)),
            (Mode::Backfill, 900, Some(100)),
            (Mode::Sweep, 0, Some(1000)),
            (Mode::Sweep, 900, Some(100)),
            (Mode::Snapshot, 900, Some(100)),
        ] {
            let swept = swept(mode, at(1000), Duration::from_secs(lag));
            assert_eq!(swept, swept_to.map(at), "{mode:?} {lag}");
        }
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
