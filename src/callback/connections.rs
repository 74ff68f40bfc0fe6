//! Which connections are open, and which of them has to go when there are too many.
//!
//! Who opens connections and sends nothing, or a byte every few seconds, must not keep others out. So there is always
//! room: the one that has been open for longest without a request being worked on is shed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// Connections open at once.
pub(super) const CONNECTIONS_MAX: usize = 256;

/// One connection, as its task and the listener see it.
#[derive(Debug, Default)]
pub(super) struct Standing {
    pub is_worked_on: AtomicBool,
    /// It is to go at once.
    pub shed: CancellationToken,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Connections {
    /// By the number that was drawn when it was opened.
    open: Arc<Mutex<BTreeMap<u64, Arc<Standing>>>>,
    /// The next number. None is drawn twice: a place that was shed must not take another's along.
    next: Arc<AtomicU64>,
}

/// A place among the open ones, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    connections: Connections,
    number: u64,
    pub standing: Arc<Standing>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.with(|open| open.remove(&self.number));
    }
}

impl Connections {
    /// A place for one more. None when requests are being worked on at all of them.
    pub(super) fn enter(&self) -> Option<Place> {
        let standing = Arc::new(Standing::default());
        let number = self.with(|open| {
            if open.len() >= CONNECTIONS_MAX {
                let idle = |standing: &Standing| !standing.is_worked_on.load(Ordering::Relaxed);
                let oldest = open.iter().find(|(_, standing)| idle(standing)).map(|(number, _)| *number)?;
                open.remove(&oldest)?.shed.cancel();
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            open.insert(number, Arc::clone(&standing));
            Some(number)
        })?;
        Some(Place { connections: self.clone(), number, standing })
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<u64, Arc<Standing>>) -> T) -> T {
        work(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_does_nothing_makes_room() {
        let connections = Connections::default();
        let mut places: Vec<_> = (0..CONNECTIONS_MAX).filter_map(|_| connections.enter()).collect();
        assert_eq!(places.len(), CONNECTIONS_MAX);
        places[0].standing.is_worked_on.store(true, Ordering::Relaxed);
        let one_more = connections.enter().expect("there is always room");
        let shed: Vec<_> = places.iter().filter(|place| place.standing.shed.is_cancelled()).collect();
        assert_eq!(shed.iter().map(|place| place.number).collect::<Vec<_>>(), [1]);
        // The place of one that was shed is not another's.
        drop(places.remove(1));
        assert_eq!(connections.with(|open| open.len()), CONNECTIONS_MAX);
        for place in places.iter().chain([&one_more]) {
            place.standing.is_worked_on.store(true, Ordering::Relaxed);
        }
        assert!(connections.enter().is_none());
        drop(places.pop());
        assert!(connections.enter().is_some());
    }
}
