//! Answers of the Kubernetes API, kept for seconds.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A bounded map whose entries are forgotten after a time.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    keep: Duration,
    most: usize,
    entries: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// Keeps at most so many entries, each for this long.
    pub(super) fn new(keep: Duration, most: usize) -> Self {
        Self { keep, most, entries: Mutex::default() }
    }

    /// What was put under this key, if it is young enough.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (put, value) = entries.get(key)?;
        (put.elapsed() < self.keep).then(|| value.clone())
    }

    /// Puts an entry. When there is no room, those that are too old go, and if none is, all do: a flood of keys
    /// costs questions asked anew, not memory.
    pub(super) fn put(&self, key: K, value: V) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.most {
            entries.retain(|_, (put, _)| put.elapsed() < self.keep);
        }
        if entries.len() >= self.most {
            entries.clear();
        }
        entries.insert(key, (Instant::now(), value));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_entry_is_forgotten_after_its_time_and_the_cache_stays_bounded() {
        let cache = Cache::new(Duration::from_secs(10), 3);
        cache.put("a", 1);
        advance(Duration::from_secs(9)).await;
        cache.put("b", 2);
        cache.put("c", 3);
        assert_eq!((cache.get(&"a"), cache.get(&"b"), cache.get(&"x")), (Some(1), Some(2), None));
        advance(Duration::from_secs(1)).await;
        assert_eq!((cache.get(&"a"), cache.get(&"b")), (None, Some(2)));
        cache.put("d", 4);
        assert_eq!((cache.get(&"b"), cache.get(&"d")), (Some(2), Some(4)), "the old one made room");
        cache.put("e", 5);
        assert_eq!((cache.get(&"b"), cache.get(&"e")), (None, Some(5)), "all made room");
        assert!(cache.entries.lock().unwrap().len() <= 3);
    }
}
