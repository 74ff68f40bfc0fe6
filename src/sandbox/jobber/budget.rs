//! Points: a leaky bucket for each app and account. A query is admitted by what it asks for at most, and charged what
//! it came to.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

/// By how much the caller's clock may run ahead of ours.
const CLOCKS_DIFFER_MS: i64 = 20;

pub struct Budget {
    max: i64,
    restored_secondly: i64,
    /// What is left in thousandths of a point, and when that was.
    accounts: Mutex<HashMap<String, (i64, i64)>>,
    refusals: Mutex<Refusals>,
    spent: AtomicI64,
}

/// What was refused for lack of points, and who did not wait for them.
#[derive(Default)]
struct Refusals {
    /// When there are points enough, by account and by what was asked for.
    until_ms: HashMap<(String, &'static str), i64>,
    early: u64,
}

/// What is left for one caller, as answers tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    pub max: i64,
    pub points: i64,
    pub restored_secondly: i64,
}

impl Left {
    pub fn to_json(self) -> Value {
        json!({
            "maximumAvailable": self.max, "currentlyAvailable": self.points, "restoreRate": self.restored_secondly,
        })
    }
}

impl Budget {
    pub fn new(max: i64, restored_secondly: i64) -> Self {
        Self {
            max,
            restored_secondly,
            accounts: Mutex::default(),
            refusals: Mutex::default(),
            spent: AtomicI64::new(0),
        }
    }

    /// What is left; `max` stands in for the bucket's own size.
    pub fn left(&self, key: &str, max: Option<i64>, now_ms: i64) -> Left {
        self.charge(key, max, 0, now_ms)
    }

    /// Takes points that were spent, and tells what is left.
    pub fn charge(&self, key: &str, max: Option<i64>, points: i64, now_ms: i64) -> Left {
        self.spent.fetch_add(points, Ordering::Relaxed);
        let max = max.unwrap_or(self.max);
        let mut all = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry(key.to_owned()).or_insert((max * 1000, now_ms));
        let restored = (now_ms - entry.1).max(0).saturating_mul(self.restored_secondly);
        *entry = ((entry.0.saturating_add(restored)).min(max * 1000) - points * 1000, now_ms);
        Left { max, points: (entry.0 / 1000).max(0), restored_secondly: self.restored_secondly }
    }

    /// Somebody asks: it counts as early when the same was refused, and the points cannot have come back by now.
    pub fn asks(&self, key: &str, purpose: &'static str, now_ms: i64) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let until = refusals.until_ms.remove(&(key.to_owned(), purpose));
        refusals.early += u64::from(until.is_some_and(|until| now_ms + CLOCKS_DIFFER_MS < until));
    }

    /// A refusal was told, with what is left.
    pub fn refused(&self, key: &str, purpose: &'static str, requested: u64, left: Left, now_ms: i64) {
        let missing = i64::try_from(requested).unwrap_or(i64::MAX).saturating_sub(left.points).max(0);
        let wait_ms = missing.saturating_mul(1000) / left.restored_secondly.max(1);
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.until_ms.insert((key.to_owned(), purpose), now_ms.saturating_add(wait_ms));
    }

    /// The points that all have spent.
    pub fn spent(&self) -> i64 {
        self.spent.load(Ordering::Relaxed)
    }

    /// How many asked again before there could be points enough.
    pub fn came_early(&self) -> u64 {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).early
    }
}

#[cfg(test)]
mod tests {
    use super::Budget;

    #[test]
    fn leaks_evenly() {
        let budget = Budget::new(1000, 50);
        let left = |key, points, at| budget.charge(key, None, points, at).points;
        assert_eq!(left("a", 0, 0), 1000);
        assert_eq!(left("a", 900, 0), 100);
        assert_eq!(left("a", 0, 1000), 150);
        assert_eq!(left("a", 0, 60_000), 1000);
        assert_eq!(left("b", 10, 60_000), 990, "accounts do not share");
        assert_eq!(budget.left("a", Some(200), 61_000).points, 200);
    }

    #[test]
    fn knows_who_does_not_wait() {
        let budget = Budget::new(1000, 50);
        let left = budget.charge("a", None, 900, 0);
        budget.refused("a", "jobs", 200, left, 0);
        for (key, purpose, at, early) in
            [("a", "visits", 100, 0), ("b", "jobs", 100, 0), ("a", "jobs", 1_970, 1), ("a", "jobs", 1_971, 1)]
        {
            budget.asks(key, purpose, at);
            assert_eq!(budget.came_early(), early, "{key} {purpose} at {at}");
        }
        budget.refused("a", "jobs", 200, left, 5_000);
        budget.asks("a", "jobs", 7_000);
        assert_eq!(budget.came_early(), 1, "two seconds bring a hundred points");
    }
}
