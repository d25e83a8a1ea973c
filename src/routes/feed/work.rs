//! What is to be read, one reading of a Webhook at a time, and what is to be read again later.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::routes::watch::Key;

/// Shortest time between two readings of what is not watched.
const PACE: Duration = Duration::from_secs(10);

/// Webhooks whose references are to be read.
#[derive(Debug, Default)]
pub(super) struct Work {
    waiting: VecDeque<Key>,
    queued: HashSet<Key>,
    running: HashSet<Key>,
    again: HashSet<Key>,
    later: HashMap<Key, Instant>,
    failures: HashMap<Key, u32>,
}

impl Work {
    /// Read this one, and once more if it is being read: what came in between may not be in it.
    pub(super) fn add(&mut self, key: &Key) {
        self.later.remove(key);
        if self.running.contains(key) {
            self.again.insert(key.clone());
        } else if self.queued.insert(key.clone()) {
            self.waiting.push_back(key.clone());
        }
    }

    /// The next to read, while fewer than `limit` are being read.
    pub(super) fn start(&mut self, limit: usize) -> Option<Key> {
        if self.running.len() >= limit {
            return None;
        }
        let key = self.waiting.pop_front()?;
        self.queued.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    /// It was read. False: it must be read once more, and what was read may be old.
    pub(super) fn done(&mut self, key: &Key) -> bool {
        self.running.remove(key);
        let again = self.again.remove(key);
        if again {
            self.add(key);
        }
        !again
    }

    /// It failed, or lacks something: read it again, after waits that double up to [`Work::pace`].
    pub(super) fn retry(&mut self, key: &Key, now: Instant) {
        let pace = self.pace();
        let failures = self.failures.entry(key.clone()).or_default();
        let wait = Duration::from_secs(1 << (*failures).min(16)).min(pace);
        *failures = failures.saturating_add(1);
        self.later.insert(key.clone(), now + wait);
    }

    /// The time between two readings of what is not watched: 10 seconds, and more when there is so much of it that
    /// it would be more than 20 readings a second.
    fn pace(&self) -> Duration {
        let many = u32::try_from(self.later.len()).unwrap_or(u32::MAX);
        PACE.max(Duration::from_millis(50).saturating_mul(many))
    }

    /// It was read whole; it is read again from time to time if something in it is not watched.
    pub(super) fn well(&mut self, key: &Key, now: Instant, polls: bool) {
        self.failures.remove(key);
        if polls {
            let at = now + self.pace();
            self.later.insert(key.clone(), at);
        }
    }

    /// Adds what is due.
    pub(super) fn tick(&mut self, now: Instant) {
        let due: Vec<Key> =
            self.later.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.add(&key);
        }
    }

    /// It is gone.
    pub(super) fn remove(&mut self, key: &Key) {
        self.later.remove(key);
        self.failures.remove(key);
        self.again.remove(key);
        if self.queued.remove(key) {
            self.waiting.retain(|waiting| waiting != key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "team-a".into(), name: name.into() }
    }

    #[test]
    fn one_reading_at_a_time_and_one_more_for_what_came_in_between() {
        let mut work = Work::default();
        work.add(&key("a"));
        work.add(&key("a"));
        work.add(&key("b"));
        assert_eq!(work.start(2), Some(key("a")));
        assert_eq!(work.start(1), None, "the limit");
        work.add(&key("a"));
        work.add(&key("a"));
        assert_eq!(work.start(2), Some(key("b")));
        assert!(work.done(&key("b")));
        assert!(!work.done(&key("a")));
        assert_eq!(work.start(2), Some(key("a")));
        assert!(work.done(&key("a")));
        assert_eq!(work.start(2), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_comes_again_after_growing_waits() {
        let mut work = Work::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let begin = Instant::now();
            work.retry(&key("a"), begin);
            while work.start(1).is_none() {
                tokio::time::advance(Duration::from_secs(1)).await;
                work.tick(Instant::now());
            }
            assert!(work.done(&key("a")));
            waits.push(begin.elapsed().as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10, 10, 10]);
        work.well(&key("a"), Instant::now(), false);
        work.retry(&key("a"), Instant::now());
        tokio::time::advance(Duration::from_secs(1)).await;
        work.tick(Instant::now());
        assert_eq!(work.start(1), Some(key("a")), "after a success it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_watched_is_read_less_often_when_there_is_much_of_it() {
        let mut work = Work::default();
        for name in 0..1000 {
            work.well(&key(&name.to_string()), Instant::now(), true);
        }
        let mut read = 0;
        for _ in 0..60 {
            tokio::time::advance(Duration::from_secs(1)).await;
            work.tick(Instant::now());
            while let Some(key) = work.start(1) {
                assert!(work.done(&key));
                work.well(&key, Instant::now(), true);
                read += 1;
            }
        }
        assert!((1000..=60 * 40).contains(&read), "{read}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gone_is_not_read() {
        let mut work = Work::default();
        work.add(&key("a"));
        work.well(&key("b"), Instant::now(), true);
        work.remove(&key("a"));
        work.remove(&key("b"));
        tokio::time::advance(Duration::from_mins(1)).await;
        work.tick(Instant::now());
        assert_eq!(work.start(9), None);
    }
}
