//! Something of which each namespace has its own, so that none waits for another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::model::ids::Namespace;

/// Namespaces that are remembered before idle ones are forgotten.
const REMEMBERED: usize = 256;

/// A semaphore for each namespace, made when it is asked for.
#[derive(Debug)]
pub(crate) struct PerNamespace {
    permits: usize,
    each: Mutex<HashMap<Namespace, Arc<Semaphore>>>,
}

impl PerNamespace {
    /// Each with so many permits.
    pub(crate) fn new(permits: usize) -> Self {
        Self { permits, each: Mutex::default() }
    }

    /// The one of a namespace.
    pub(crate) fn of(&self, namespace: &Namespace) -> Arc<Semaphore> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        if each.len() > REMEMBERED {
            // Who holds a permit, or waits for one, holds the semaphore, too.
            each.retain(|_, own| Arc::strong_count(own) > 1);
        }
        let new = || Arc::new(Semaphore::new(self.permits));
        Arc::clone(each.entry(Arc::clone(namespace)).or_insert_with(new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_namespaces_are_forgotten_and_busy_ones_are_not() {
        let turns = PerNamespace::new(1);
        let kept = turns.of(&"kept".into()).try_acquire_owned().unwrap();
        for number in 0..10 * REMEMBERED {
            drop(turns.of(&format!("ns-{number}").into()).try_acquire_owned().unwrap());
        }
        assert!(turns.each.lock().unwrap().len() <= REMEMBERED + 1);
        assert!(turns.of(&"kept".into()).try_acquire_owned().is_err());
        drop(kept);
        assert!(turns.of(&"kept".into()).try_acquire_owned().is_ok());
    }
}
