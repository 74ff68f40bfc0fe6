//! A value that is replaced as a whole while others work with it: they keep the one that they took.

use std::sync::{Arc, PoisonError, RwLock};

#[derive(Debug)]
pub struct Current<T>(RwLock<Arc<T>>);

impl<T> Current<T> {
    pub fn new(value: T) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(value))))
    }

    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_took_one_keeps_it() {
        let current = Current::new(1);
        let taken = current.get();
        current.set(2);
        assert_eq!((*taken, *current.get()), (1, 2));
    }
}
