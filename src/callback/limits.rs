//! How much is worked on at once, and how often. Only what is genuine by its MAC takes a permit: a flood of anything else
//! keeps nobody out.
//!
//! Behind a proxy every request comes from one address, so no address is told from another. A link or a consent is: who
//! has one and floods with it slows down themselves, and with them one in [`SLOTS`] of the others.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests that are worked on at once, the slow exchanges included.
const WORKED_ON_MAX: usize = 64;
/// For the whole listener: so many may come at once, and one more each time the pause has passed.
const ALL: Pace = Pace { burst: 60, pause: Duration::from_millis(50) };
/// For one start link or one consent. A mail scanner and an impatient owner are far below it.
const EACH: Pace = Pace { burst: 20, pause: Duration::from_secs(3) };
/// What is counted apart, by a byte that is random. Its memory is all that floods can fill.
const SLOTS: usize = 256;

#[derive(Debug, Clone, Copy)]
struct Pace {
    burst: u32,
    pause: Duration,
}

/// The moment until which the permits taken of a pace reach (GCRA).
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    until: Option<Instant>,
}

impl Taken {
    /// With one more permit taken, if there is one at `now`.
    fn and_one(self, Pace { burst, pause }: Pace, now: Instant) -> Option<Self> {
        let from = self.until.map_or(now, |until| until.max(now));
        (from <= now + pause * (burst - 1)).then(|| Self { until: Some(from + pause) })
    }
}

#[derive(Debug)]
struct Rate {
    all: Taken,
    each: [Taken; SLOTS],
}

impl Rate {
    /// Takes a permit for what has this slot, if there is one at `now`.
    fn take(&mut self, slot: u8, now: Instant) -> bool {
        let each = &mut self.each[usize::from(slot)];
        // Its own first: what comes too often does not take what others could have.
        let Some((own, all)) = each.and_one(EACH, now).zip(self.all.and_one(ALL, now)) else { return false };
        (*each, self.all) = (own, all);
        true
    }
}

/// Why something has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Busy {
    TooOften,
    TooMany,
}

#[derive(Debug, Clone)]
pub(super) struct Limits {
    rate: Arc<Mutex<Rate>>,
    worked_on: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        let rate = Rate { all: Taken::default(), each: [Taken::default(); SLOTS] };
        Self { rate: Arc::new(Mutex::new(rate)), worked_on: Arc::new(Semaphore::new(WORKED_ON_MAX)) }
    }
}

impl Limits {
    /// Admits a request about what is `known_by` random bytes, for as long as the permit is held.
    pub(super) fn admit(&self, known_by: &[u8], now: Instant) -> Result<OwnedSemaphorePermit, Busy> {
        let slot = known_by.first().copied().unwrap_or_default();
        if !self.rate.lock().unwrap_or_else(PoisonError::into_inner).take(slot, now) {
            return Err(Busy::TooOften);
        }
        Arc::clone(&self.worked_on).try_acquire_owned().map_err(|_| Busy::TooMany)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate() -> Rate {
        Rate { all: Taken::default(), each: [Taken::default(); SLOTS] }
    }

    #[test]
    fn a_burst_then_a_steady_rate() {
        let (mut rate, start) = (rate(), Instant::now());
        let spread = |rate: &mut Rate, now| (0..=255).filter(|slot| rate.take(*slot, now)).count();
        assert_eq!(spread(&mut rate, start), ALL.burst as usize);
        assert!(!rate.take(255, start));
        assert!(rate.take(255, start + ALL.pause));
        assert!(!rate.take(254, start + ALL.pause));
        assert_eq!(spread(&mut rate, start + Duration::from_hours(1)), ALL.burst as usize);
    }

    #[test]
    fn one_that_comes_too_often_leaves_the_others_theirs() {
        let (mut rate, start) = (rate(), Instant::now());
        assert_eq!((0..1000).filter(|_| rate.take(7, start)).count(), EACH.burst as usize);
        let left = (ALL.burst - EACH.burst) as usize;
        assert_eq!((8..=255).filter(|slot| rate.take(*slot, start)).count(), left);
        let later = start + EACH.pause;
        assert_eq!((0..1000).filter(|_| rate.take(7, later)).count(), 1);
    }

    #[test]
    fn so_many_are_worked_on_at_once() {
        let (limits, now) = (Limits::default(), Instant::now());
        let far_apart = |number: u8| now + Duration::from_hours(u64::from(number));
        let number = |count: usize| u8::try_from(count).expect("few are worked on at once");
        let held: Vec<_> = (0..number(WORKED_ON_MAX)).map(|n| limits.admit(&[n], far_apart(n))).collect();
        assert!(held.iter().all(Result::is_ok));
        let late = far_apart(number(WORKED_ON_MAX));
        assert_eq!(limits.admit(&[0], late).err(), Some(Busy::TooMany));
        drop(held);
        assert!(limits.admit(&[0], late).is_ok());
    }
}
