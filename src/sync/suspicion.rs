//! What looks like success and is none. A stream that meets it stands still and says so; its rows stay. Pure.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::watermark;
use crate::domain::step::Position;

/// Rows from which on a list that shows none of them is not believed: a small account may have emptied. Whether these are
/// gone is for a sweep to prove, and for an admin to allow.
const MANY: i64 = 10;

/// Whether a list that shows something as long as there is anything is empty although the mirror holds many rows.
pub fn is_empty_where_many_were(read: usize, living: i64) -> bool {
    read == 0 && living > MANY
}

/// Whether changes would be asked for from a moment that has not come yet: the clock ran ahead when the watermark was set,
/// and until then nothing would be found.
pub fn lies_in_future(covered_to: DateTime<Utc>, overlap: Duration, now: DateTime<Utc>) -> bool {
    watermark::from(covered_to, overlap) > now
}

/// Finds out when a walk comes back to a place where it has been. It remembers one place, and takes another after twice
/// as many steps (Brent's way), so that a circle of any length is found.
#[derive(Debug, Default)]
pub struct Circle {
    mark: Option<Position>,
    steps: u64,
}

impl Circle {
    /// Whether the walk has been at `place` before.
    pub fn closes(&mut self, place: &Position) -> bool {
        if self.mark.as_ref() == Some(place) {
            return true;
        }
        self.steps += 1;
        if self.steps.is_power_of_two() {
            self.mark = Some(place.clone());
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_where_many_were() {
        for (read, living, suspicious) in
            [(0, 0, false), (0, 1, false), (0, 10, false), (0, 11, true), (1, 1_000, false)]
        {
            assert_eq!(is_empty_where_many_were(read, living), suspicious, "{read} of {living}");
        }
    }

    #[test]
    fn a_watermark_in_the_future() {
        let at = |second| DateTime::from_timestamp(second, 0).unwrap();
        let overlap = Duration::from_mins(5);
        for (covered_to, future) in [(900, false), (1_000, false), (1_300, false), (1_301, true)] {
            assert_eq!(lies_in_future(at(covered_to), overlap, at(1_000)), future, "{covered_to}");
        }
    }

    #[test]
    fn circles_of_any_length() {
        for (before, length) in [(0, 1), (0, 2), (5, 3), (100, 7), (3, 100)] {
            let mut circle = Circle::default();
            let place = |step: usize| {
                Position::of(&if step < before { step } else { before + (step - before) % length })
            };
            let closed = (0..1_000).find(|step| circle.closes(&place(*step)));
            assert!(closed.is_some_and(|step| step >= before + length), "{before} {length}: {closed:?}");
        }
        let mut straight = Circle::default();
        assert!((0..1_000).all(|step| !straight.closes(&Position::of(&step))));
    }
}
