//! What the controller remembers of an object between two reconciles: when it wrote, what it wrote, how often it
//! failed.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Longest wait after a failed reconcile.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Remembers objects by their identity `K`, with the last written status `S` of each.
#[derive(Debug)]
pub(super) struct Memory<K, S>(Mutex<HashMap<K, Known<S>>>);

#[derive(Debug)]
struct Known<S> {
    since: Instant,
    written_at: Option<Instant>,
    /// Resource version and status of the last write, until the watch has told of it.
    written: Option<(u64, S)>,
    failures: u32,
}

impl<K: Eq + Hash, S: Clone> Memory<K, S> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn with<T>(&self, key: K, act: impl FnOnce(&mut Known<S>) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Known { since: Instant::now(), written_at: None, written: None, failures: 0 };
        act(all.entry(key).or_insert_with(new))
    }

    /// For how long it is known, at least.
    pub(super) fn known_for(&self, key: K) -> Duration {
        self.with(key, |known| known.since.elapsed())
    }

    /// How long the next write has to wait, if `interval` lies between two.
    pub(super) fn wait(&self, key: K, interval: Duration, now: Instant) -> Option<Duration> {
        let written_at = self.with(key, |known| known.written_at)?;
        let wait = (written_at + interval).saturating_duration_since(now);
        (!wait.is_zero()).then_some(wait)
    }

    /// It was written, and the apiserver gave it this version.
    pub(super) fn wrote(&self, key: K, now: Instant, version: Option<&str>, status: S) {
        let version = version.and_then(|version| version.parse().ok());
        self.with(key, |known| {
            known.written_at = Some(now);
            known.written = version.map(|version| (version, status));
        });
    }

    /// The status that was written, if the object with this version is older than it.
    pub(super) fn newer_than(&self, key: K, version: Option<&str>) -> Option<S> {
        let seen: Option<u64> = version.and_then(|version| version.parse().ok());
        self.with(key, |known| {
            let newer = known.written.take_if(|(written, _)| seen.is_some_and(|seen| seen >= *written));
            drop(newer);
            known.written.as_ref().map(|(_, status)| status.clone())
        })
    }

    /// It failed: how long to wait before it is tried again. Doubles from a second to a minute.
    pub(super) fn failed(&self, key: K) -> Duration {
        self.with(key, |known| {
            let wait = Duration::from_secs(1 << known.failures.min(6)).min(LONGEST_WAIT);
            known.failures = known.failures.saturating_add(1);
            wait
        })
    }

    /// It went well.
    pub(super) fn succeeded(&self, key: K) {
        self.with(key, |known| known.failures = 0);
    }

    /// It is gone.
    pub(super) fn forget(&self, key: &K) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn the_first_write_is_at_once_and_the_next_after_the_interval() {
        let memory = Memory::<u8, u8>::new();
        assert_eq!(memory.wait(1, INTERVAL, Instant::now()), None);
        memory.wrote(1, Instant::now(), Some("7"), 0);
        assert_eq!(memory.wait(1, INTERVAL, Instant::now()), Some(INTERVAL));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(memory.wait(1, INTERVAL, Instant::now()), Some(Duration::from_secs(3)));
        assert_eq!(memory.wait(2, INTERVAL, Instant::now()), None, "another does not wait");
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(memory.wait(1, INTERVAL, Instant::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_counts_until_the_watch_has_told_of_it() {
        let memory = Memory::<u8, &str>::new();
        memory.wrote(1, Instant::now(), Some("9"), "written");
        assert_eq!(memory.newer_than(1, Some("8")), Some("written"));
        assert_eq!(memory.newer_than(1, Some("9")), None);
        assert_eq!(memory.newer_than(1, Some("8")), None, "then it is forgotten");
        memory.wrote(1, Instant::now(), Some("not a number"), "written");
        assert_eq!(memory.newer_than(1, Some("8")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_is_known_from_the_first_look_until_it_is_forgotten() {
        let memory = Memory::<u8, u8>::new();
        assert_eq!(memory.known_for(1), Duration::ZERO);
        tokio::time::advance(INTERVAL).await;
        assert_eq!((memory.known_for(1), memory.known_for(2)), (INTERVAL, Duration::ZERO));
        memory.forget(&1);
        assert_eq!(memory.known_for(1), Duration::ZERO);
    }

    #[test]
    fn failures_wait_longer_each_time_and_are_forgotten_after_a_success() {
        let memory = Memory::<u8, u8>::new();
        let waits: Vec<u64> = (0..8).map(|_| memory.failed(1).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        memory.succeeded(1);
        assert_eq!(memory.failed(1).as_secs(), 1);
        memory.forget(&1);
        assert!(memory.0.lock().unwrap().is_empty());
    }
}
