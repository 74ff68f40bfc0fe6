//! What is left to chance so that many do not do the same thing at once: pauses, and when a token is renewed. Never for
//! secrets.
//!
//! A thread may be told its chances in advance, so that what happened there can be made to happen again.

use std::cell::RefCell;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

thread_local! {
    static FORESEEN: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// An even draw from 0 up to 1, 1 excluded.
pub fn share() -> f64 {
    FORESEEN.with_borrow_mut(|foreseen| foreseen.as_mut().map_or_else(rand::random, Rng::random))
}

/// From now on this thread draws what the seed says.
pub fn foresee(seed: u64) {
    FORESEEN.set(Some(StdRng::seed_from_u64(seed)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_seed_says_is_drawn_again_and_by_this_thread_only() {
        let draws = || (0..20).map(|_| share()).collect::<Vec<_>>();
        let all = std::thread::spawn(move || {
            foresee(7);
            let first = draws();
            foresee(7);
            (first, draws(), std::thread::spawn(draws).join().unwrap())
        });
        let (first, again, elsewhere) = all.join().unwrap();
        assert_eq!(first, again);
        assert_ne!(first, elsewhere);
        assert!(first.iter().all(|share| (0.0..1.0).contains(share)));
    }
}
