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

/// Steps that a walk may take without asking for anything or coming to another place, and pages that it may have without
/// coming to another place, before it is taken to be stuck.
const IDLE_MAX: u32 = 3;
const STUCK: &str = "does not advance";

/// Finds out when a walk gets nowhere; what it then says follows the walk's name.
#[derive(Debug, Default)]
pub struct Advance {
    idle: u32,
    /// Pages in a row after which the walk stood where it had stood before.
    still: u32,
    circle: Circle,
}

impl Advance {
    /// The walk asks for so many things.
    pub fn sends(&mut self, requests: usize) -> Result<(), &'static str> {
        self.step(requests > 0)
    }

    /// The walk has a page, and stands at `next` after it.
    pub fn emits(&mut self, at: &Position, next: &Position) -> Result<(), &'static str> {
        let moves = next != at;
        if moves && self.circle.closes(next) {
            return Err("goes round in a circle");
        }
        self.still = if moves { 0 } else { self.still + 1 };
        if self.still > IDLE_MAX {
            return Err(STUCK);
        }
        self.step(moves)
    }

    fn step(&mut self, moves: bool) -> Result<(), &'static str> {
        self.idle = if moves { 0 } else { self.idle + 1 };
        if self.idle > IDLE_MAX { Err(STUCK) } else { Ok(()) }
    }
}

/// Finds out when a walk comes back to a place where it has been. It remembers one place, and takes another after twice
/// as many steps (Brent's way), so that a circle of any length is found.
#[derive(Debug, Default)]
struct Circle {
    mark: Option<Position>,
    steps: u64,
}

impl Circle {
    /// Whether the walk has been at `place` before.
    fn closes(&mut self, place: &Position) -> bool {
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
    fn a_walk_that_gets_nowhere() {
        let place = |number: i32| Position::of(&number);
        // Places after each page; `None`: a step that asks for nothing.
        let check = |steps: &[Option<i32>], expected: Option<&str>| {
            let (mut advance, mut at) = (Advance::default(), Position::start());
            let stuck = steps.iter().find_map(|step| match step {
                None => advance.sends(0).err(),
                Some(number) => {
                    let stuck = advance.emits(&at, &place(*number)).err();
                    at = place(*number);
                    stuck
                }
            });
            assert_eq!(stuck, expected, "{steps:?}");
        };
        check(&[Some(1), None, None, None, Some(2), None, None, None, Some(3)], None);
        check(&[Some(1), Some(1), Some(1), Some(1), Some(2)], None);
        check(&[Some(1), Some(1), Some(1), Some(1), Some(1)], Some("does not advance"));
        check(&[None, None, None, None], Some("does not advance"));
        check(&[Some(1), None, Some(1), None, Some(1)], Some("does not advance"));
        check(&[Some(1), Some(2), Some(1), Some(2), Some(1), Some(2)], Some("goes round in a circle"));
        let mut advance = Advance::default();
        assert!((0..100).all(|_| advance.sends(1).is_ok()), "whoever asks is not stuck yet");
        // Asking for the same page again and again gets nowhere either.
        let pages = (0..10).map(|_| advance.sends(1).and_then(|()| advance.emits(&place(1), &place(1))));
        assert_eq!(pages.take_while(Result::is_ok).count(), 3);
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
