//! How much is taken from outside at once: a plain rate for the whole listener. Behind a proxy every request comes from
//! one address, so no address is told from another.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many requests may come at once,
const BURST: u32 = 60;
/// and one more each time this has passed.
const EACH: Duration = Duration::from_millis(50);

/// A bucket of permits (GCRA): the moment until which the permits taken reach.
#[derive(Debug, Default)]
pub(super) struct Rate {
    taken_until: Mutex<Option<Instant>>,
}

impl Rate {
    /// Takes a permit, if there is one at `now`.
    pub(super) fn take(&self, now: Instant) -> bool {
        let mut taken_until = self.taken_until.lock().unwrap_or_else(PoisonError::into_inner);
        let from = taken_until.map_or(now, |until| until.max(now));
        if from > now + EACH * (BURST - 1) {
            return false;
        }
        *taken_until = Some(from + EACH);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_steady_rate() {
        let (rate, start) = (Rate::default(), Instant::now());
        assert_eq!((0..BURST * 2).filter(|_| rate.take(start)).count(), BURST as usize);
        assert!(!rate.take(start));
        assert!(rate.take(start + EACH));
        assert!(!rate.take(start + EACH));
        let later = start + Duration::from_hours(1);
        assert_eq!((0..BURST * 2).filter(|_| rate.take(later)).count(), BURST as usize);
    }
}
