//! Rolling-window rate limits, one window per key. Time is handed in.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// At most `max` requests in any `length_ms` for each key.
pub struct RollingWindow {
    max: usize,
    length_ms: i64,
    taken: Mutex<HashMap<String, VecDeque<i64>>>,
}

impl RollingWindow {
    pub fn new(max: usize, length_ms: i64) -> Self {
        Self { max, length_ms, taken: Mutex::default() }
    }

    pub fn max(&self) -> usize {
        self.max
    }

    pub fn length_ms(&self) -> i64 {
        self.length_ms
    }

    /// Takes one place. `Ok`: how many are left now. `Err`: milliseconds until the next place is free.
    /// A refused request takes none.
    pub fn take(&self, key: &str, now_ms: i64) -> Result<usize, i64> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(window) = taken.get_mut(key) else {
            taken.insert(key.to_owned(), VecDeque::from([now_ms]));
            return Ok(self.max.saturating_sub(1));
        };
        self.forget(window, now_ms);
        if window.len() >= self.max {
            let oldest = window.front().copied().unwrap_or(now_ms);
            return Err((oldest + self.length_ms - now_ms).max(1));
        }
        window.push_back(now_ms);
        Ok(self.max - window.len())
    }

    /// How many places are left, without taking one.
    pub fn left(&self, key: &str, now_ms: i64) -> usize {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.get_mut(key).map_or(self.max, |window| {
            self.forget(window, now_ms);
            self.max.saturating_sub(window.len())
        })
    }

    /// Drops what has left the window, and what lies ahead because a test moved the clock back.
    fn forget(&self, window: &mut VecDeque<i64>, now_ms: i64) {
        while window.front().is_some_and(|&at| at <= now_ms - self.length_ms || at > now_ms) {
            window.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RollingWindow;

    #[test]
    fn rolls() {
        let window = RollingWindow::new(2, 1000);
        let takes = [(0, Ok(1)), (400, Ok(0)), (900, Err(100)), (1000, Ok(0)), (1399, Err(1)), (1400, Ok(0))];
        for (now, expected) in takes {
            assert_eq!(window.take("a", now), expected, "at {now}");
        }
        assert_eq!((window.left("a", 1400), window.left("a", 9000), window.left("b", 0)), (0, 2, 2));
        assert_eq!(window.take("b", 1400), Ok(1), "keys do not share");
    }

    #[test]
    fn a_clock_that_goes_back_frees_places() {
        let window = RollingWindow::new(1, 1000);
        assert_eq!(window.take("a", 50_000), Ok(0));
        assert_eq!(window.take("a", 10_000), Ok(0));
    }
}
