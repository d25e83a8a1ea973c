//! When to try again: an exponential backoff that can be resumed at any attempt.

use std::time::Duration;

/// How often and when a failed delivery is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Retries after the first attempt.
    pub max_retries: u32,
    /// Before the first retry.
    pub initial: Duration,
    /// Each next wait is so many times the one before.
    pub factor: u32,
    /// No wait is longer, whatever the receiver asks for.
    pub max: Duration,
}

impl Policy {
    /// The waits that are still to come after `attempts` attempts (the first one counted), without jitter.
    pub fn delays_after(&self, attempts: u32) -> impl Iterator<Item = Duration> + '_ {
        (attempts.max(1)..=self.max_retries).map(|attempt| self.delay(attempt))
    }

    /// The wait after attempt number `attempt` (from 1), without jitter.
    pub fn delay(&self, attempt: u32) -> Duration {
        let growth = self.factor.max(1).checked_pow(attempt.saturating_sub(1));
        growth.and_then(|growth| self.initial.checked_mul(growth)).map_or(self.max, |wait| wait.min(self.max))
    }

    /// All waits together: for how long a delivery is tried, attempts themselves and jitter not counted.
    pub fn gives_up_after(&self) -> Duration {
        self.delays_after(1).fold(Duration::ZERO, Duration::saturating_add)
    }

    /// The wait before the next attempt: backoff with 0 to 10 % jitter, or what the receiver asked for
    /// (`Retry-After`, at most [`Policy::max`]) when that is later. None: no attempts left.
    ///
    /// `dice` is a random number in 0..=255.
    pub fn next(&self, attempts: u32, retry_after: Option<Duration>, dice: u8) -> Option<Duration> {
        let wait = self.delays_after(attempts).next()?;
        let jittered = wait.saturating_add(wait / 10 * u32::from(dice) / 255);
        Some(retry_after.map_or(jittered, |asked| jittered.max(asked.min(self.max))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Policy {
        Policy { max_retries: 3, initial: Duration::from_secs(10), factor: 6, max: Duration::from_hours(24) }
    }

    #[test]
    fn the_default_backoff_is_that_of_the_documents() {
        let waits: Vec<u64> =
            Policy { max_retries: 8, ..defaults() }.delays_after(0).map(|wait| wait.as_secs()).collect();
        assert_eq!(waits, [10, 60, 360, 2160, 12_960, 77_760, 86_400, 86_400]);
        assert_eq!(defaults().gives_up_after(), Duration::from_secs(430));
    }

    #[test]
    fn a_restart_goes_on_where_it_was() {
        let policy = defaults();
        assert_eq!(policy.delays_after(2).next(), Some(Duration::from_mins(1)));
        assert_eq!(policy.delays_after(3).next(), Some(Duration::from_mins(6)));
        assert_eq!(policy.delays_after(4).next(), None);
    }

    #[test]
    fn jitter_adds_up_to_a_tenth_and_retry_after_wins_when_later() {
        let policy = defaults();
        assert_eq!(policy.next(1, None, 0), Some(Duration::from_secs(10)));
        assert_eq!(policy.next(1, None, 255), Some(Duration::from_secs(11)));
        assert_eq!(policy.next(1, Some(Duration::from_secs(5)), 0), Some(Duration::from_secs(10)));
        assert_eq!(policy.next(1, Some(Duration::from_secs(50)), 255), Some(Duration::from_secs(50)));
        assert_eq!(policy.next(1, Some(Duration::MAX), 0), Some(policy.max));
        assert_eq!(policy.next(4, Some(Duration::from_secs(1)), 0), None);
    }

    #[test]
    fn extremes_neither_overflow_nor_wait_longer_than_max() {
        let policy = Policy { max_retries: 20, initial: Duration::from_hours(24), factor: 100, ..defaults() };
        assert!(policy.delays_after(1).all(|wait| wait == policy.max));
        assert_eq!(Policy { max_retries: 0, ..defaults() }.next(1, None, 0), None);
    }
}
