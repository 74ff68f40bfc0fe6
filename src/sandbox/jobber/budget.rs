//! Points: a leaky bucket for each app and account. A query is admitted by what it asks for at most, and charged what
//! it came to.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

pub struct Budget {
    max: i64,
    restored_secondly: i64,
    /// What is left in thousandths of a point, and when that was.
    accounts: Mutex<HashMap<String, (i64, i64)>>,
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
        Self { max, restored_secondly, accounts: Mutex::default() }
    }

    /// What is left; `max` stands in for the bucket's own size.
    pub fn left(&self, key: &str, max: Option<i64>, now_ms: i64) -> Left {
        self.charge(key, max, 0, now_ms)
    }

    /// Takes points that were spent, and tells what is left.
    pub fn charge(&self, key: &str, max: Option<i64>, points: i64, now_ms: i64) -> Left {
        let max = max.unwrap_or(self.max);
        let mut all = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry(key.to_owned()).or_insert((max * 1000, now_ms));
        let restored = (now_ms - entry.1).max(0).saturating_mul(self.restored_secondly);
        *entry = ((entry.0.saturating_add(restored)).min(max * 1000) - points * 1000, now_ms);
        Left { max, points: (entry.0 / 1000).max(0), restored_secondly: self.restored_secondly }
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
}
