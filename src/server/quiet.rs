//! Keeps a warning from filling the log when its cause repeats.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lets one warning of a kind through in a time, and counts the others.
#[derive(Debug)]
pub(crate) struct Quiet {
    every: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Quiet {
    /// One in `every`.
    pub(crate) const fn new(every: Duration) -> Self {
        Self { every, state: Mutex::new((None, 0)) }
    }

    /// Whether to speak now; then also how many were kept silent since the last.
    pub(crate) fn speak(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, silent) = *state;
        if last.is_some_and(|last| last.elapsed() < self.every) {
            state.1 += 1;
            return None;
        }
        *state = (Some(Instant::now()), 0);
        Some(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_in_a_time_speaks_and_tells_how_many_did_not() {
        let quiet = Quiet::new(Duration::from_mins(1));
        assert_eq!([quiet.speak(), quiet.speak(), quiet.speak()], [Some(0), None, None]);
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!([quiet.speak(), quiet.speak()], [Some(2), None]);
    }
}
