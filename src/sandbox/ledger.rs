//! What was asked for and how it was answered, counted.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::faults::Spot;

/// Answers by provider, purpose and status. Status 0 stands for a connection closed without an answer.
#[derive(Default)]
pub struct Ledger {
    counts: Mutex<BTreeMap<(Spot, u16), u64>>,
}

impl Ledger {
    pub fn count(&self, spot: Spot, status: u16) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry((spot, status)).or_default() += 1;
    }

    pub fn reset(&self) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Answers of one purpose, whatever their status.
    pub fn of_purpose(&self, purpose: &str) -> u64 {
        self.sum(|spot, _| spot.purpose == purpose)
    }

    /// Answers with one status, whatever their purpose.
    pub fn of_status(&self, status: u16) -> u64 {
        self.sum(|_, counted| counted == status)
    }

    fn sum(&self, wanted: impl Fn(Spot, u16) -> bool) -> u64 {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().filter(|((spot, status), _)| wanted(*spot, *status)).map(|(_, count)| count).sum()
    }

    /// `{"hubspot": {"list": {"200": 5}}}`
    pub fn to_json(&self) -> Value {
        let mut providers = Map::new();
        for ((spot, status), count) in self.counts.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let purposes = providers.entry(spot.provider).or_insert_with(|| json!({}));
            purposes[spot.purpose][status.to_string()] = json!(count);
        }
        Value::Object(providers)
    }
}

#[cfg(test)]
mod tests {
    use super::{Ledger, Spot};
    use serde_json::json;

    #[test]
    fn counts_and_forgets() {
        let ledger = Ledger::default();
        let spot = |purpose| Spot { provider: "hubspot", purpose };
        for (purpose, status) in [("list", 200), ("list", 200), ("list", 429), ("search", 429)] {
            ledger.count(spot(purpose), status);
        }
        assert_eq!(
            ledger.to_json(),
            json!({"hubspot": {"list": {"200": 2, "429": 1}, "search": {"429": 1}}})
        );
        assert_eq!((ledger.of_purpose("list"), ledger.of_status(429)), (3, 2));
        ledger.reset();
        assert_eq!(ledger.to_json(), json!({}));
    }
}
