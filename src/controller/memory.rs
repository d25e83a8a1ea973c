//! What the controller remembers of an object between two reconciles: when it wrote, what it wrote, how often it
//! failed.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Longest wait after a failed reconcile.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// How often a status is written: `burst` times at once after a pause, then once in an `interval`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cadence {
    pub(super) interval: Duration,
    pub(super) burst: u32,
}

/// Where one object stands in its pace. Pure: the time is given.
#[derive(Clone, Copy, Debug, Default)]
struct Pacer {
    /// When the next write would be on schedule, if none came early.
    due: Option<Instant>,
}

impl Pacer {
    /// How long the next write has to wait.
    fn wait(self, cadence: Cadence, now: Instant) -> Option<Duration> {
        let early = cadence.interval * cadence.burst.saturating_sub(1);
        let wait = self.due?.saturating_duration_since(now).saturating_sub(early);
        (!wait.is_zero()).then_some(wait)
    }

    /// A write was made.
    fn count(&mut self, cadence: Cadence, now: Instant) {
        self.due = Some(self.due.map_or(now, |due| due.max(now)) + cadence.interval);
    }
}

/// Remembers objects by their identity `K`, with the last written status `S` of each.
#[derive(Debug)]
pub(super) struct Memory<K, S> {
    cadence: Cadence,
    known: Mutex<HashMap<K, Known<S>>>,
}

#[derive(Debug)]
struct Known<S> {
    since: Instant,
    pacer: Pacer,
    /// Resource version and status of the last write, until the watch has told of it.
    written: Option<(u64, S)>,
    failures: u32,
}

impl<K: Eq + Hash, S: Clone> Memory<K, S> {
    /// Of objects whose statuses are written at this pace.
    pub(super) fn new(cadence: Cadence) -> Self {
        Self { cadence, known: Mutex::default() }
    }

    fn with<T>(&self, key: K, act: impl FnOnce(&mut Known<S>) -> T) -> T {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Known { since: Instant::now(), pacer: Pacer::default(), written: None, failures: 0 };
        act(all.entry(key).or_insert_with(new))
    }

    /// For how long it is known, at least.
    pub(super) fn known_for(&self, key: K) -> Duration {
        self.with(key, |known| known.since.elapsed())
    }

    /// How long the next write has to wait.
    pub(super) fn wait(&self, key: K, now: Instant) -> Option<Duration> {
        self.with(key, |known| known.pacer.wait(self.cadence, now))
    }

    /// A write was made that counts for the pace.
    pub(super) fn count(&self, key: K, now: Instant) {
        self.with(key, |known| known.pacer.count(self.cadence, now));
    }

    /// It was written, and the apiserver gave it this version.
    pub(super) fn wrote(&self, key: K, version: Option<&str>, status: S) {
        let version = version.and_then(|version| version.parse().ok());
        self.with(key, |known| {
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
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn cadence(burst: u32) -> Cadence {
        Cadence { interval: Duration::from_secs(5), burst }
    }

    /// The seconds at which one writes that always has something to say, in this many seconds.
    fn writes(cadence: Cadence, rests_until: u64, seconds: u64) -> Vec<u64> {
        let (start, mut pacer, mut at) = (Instant::now(), Pacer::default(), Vec::new());
        let mut now = rests_until;
        while now < seconds {
            let moment = start + Duration::from_secs(now);
            if let Some(wait) = pacer.wait(cadence, moment) {
                now += wait.as_secs();
            } else {
                pacer.count(cadence, moment);
                at.push(now);
            }
        }
        at
    }

    #[tokio::test(start_paused = true)]
    async fn two_may_come_at_once_and_then_one_in_an_interval() {
        assert_eq!(writes(cadence(2), 0, 16), [0, 0, 5, 10, 15]);
        assert_eq!(writes(cadence(2), 100, 111), [100, 100, 105, 110], "a long rest saves up no more");
        assert_eq!(writes(cadence(1), 0, 11), [0, 5, 10]);
        assert!(writes(cadence(2), 0, 3600).len() <= 721, "about one in 5 s");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_early_is_waited_for_after_a_short_rest() {
        let (start, mut pacer) = (Instant::now(), Pacer::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        pacer.count(cadence(2), at(0));
        pacer.count(cadence(2), at(1));
        assert_eq!(pacer.wait(cadence(2), at(1)), Some(Duration::from_secs(4)));
        assert_eq!(pacer.wait(cadence(2), at(7)), None);
        pacer.count(cadence(2), at(7));
        assert_eq!(pacer.wait(cadence(2), at(8)), Some(Duration::from_secs(2)), "only 8 s after the first");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_write_is_at_once_and_the_next_after_the_interval() {
        let memory = Memory::<u8, u8>::new(cadence(1));
        let wait = |key| memory.wait(key, Instant::now());
        assert_eq!(wait(1), None);
        memory.count(1, Instant::now());
        memory.wrote(1, Some("7"), 0);
        assert_eq!(wait(1), Some(Duration::from_secs(5)));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(wait(1), Some(Duration::from_secs(3)));
        assert_eq!(wait(2), None, "another does not wait");
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(wait(1), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_counts_until_the_watch_has_told_of_it() {
        let memory = Memory::<u8, &str>::new(cadence(1));
        memory.wrote(1, Some("9"), "written");
        assert_eq!(memory.newer_than(1, Some("8")), Some("written"));
        assert_eq!(memory.newer_than(1, Some("9")), None);
        assert_eq!(memory.newer_than(1, Some("8")), None, "then it is forgotten");
        memory.wrote(1, Some("not a number"), "written");
        assert_eq!(memory.newer_than(1, Some("8")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_is_known_from_the_first_look_until_it_is_forgotten() {
        let memory = Memory::<u8, u8>::new(cadence(1));
        assert_eq!(memory.known_for(1), Duration::ZERO);
        let a_while = Duration::from_secs(5);
        tokio::time::advance(a_while).await;
        assert_eq!((memory.known_for(1), memory.known_for(2)), (a_while, Duration::ZERO));
        memory.forget(&1);
        assert_eq!(memory.known_for(1), Duration::ZERO);
    }

    #[test]
    fn failures_wait_longer_each_time_and_are_forgotten_after_a_success() {
        let memory = Memory::<u8, u8>::new(cadence(1));
        let waits: Vec<u64> = (0..8).map(|_| memory.failed(1).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        memory.succeeded(1);
        assert_eq!(memory.failed(1).as_secs(), 1);
        memory.forget(&1);
        assert!(memory.known.lock().unwrap().is_empty());
    }
}
