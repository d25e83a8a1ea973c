//! When what was erased goes from the files of the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::store::Store;

/// Between two looks whether something is to go, at most.
const LOOK: Duration = Duration::from_mins(1);

/// When to begin, so that all is gone in time.
#[derive(Debug)]
struct Schedule {
    within: Duration,
    /// Since when something is owed; none: nothing is.
    since: Option<Instant>,
}

impl Schedule {
    /// Whether it is time, at `now`. Half of the time is for those that come later, half for the work and another try.
    fn is_due(&mut self, owes: bool, now: Instant) -> bool {
        if !owes {
            self.since = None;
            return false;
        }
        now.duration_since(*self.since.get_or_insert(now)) >= (self.within / 2).saturating_sub(self.look())
    }

    /// Between two looks.
    fn look(&self) -> Duration {
        LOOK.min(self.within / 8)
    }
}

/// Makes what was expunged or purged go from the files within a time, until told to stop. What an earlier process left
/// goes at once: nobody knows since when it is owed.
pub(crate) async fn erase(store: Arc<dyn Store>, within: Duration, stop: CancellationToken) {
    let mut schedule = Schedule { within, since: None };
    let mut is_left = store.owes_erasure();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(schedule.look()) => {}
        }
        if !schedule.is_due(store.owes_erasure(), Instant::now()) && !is_left {
            continue;
        }
        let began = Instant::now();
        let erased = tokio::select! {
            () = stop.cancelled() => return,
            erased = store.erase() => erased,
        };
        match erased {
            Ok(()) => {
                (schedule.since, is_left) = (None, false);
                info!(took = ?began.elapsed(), "what was expunged or purged has gone from the files");
            }
            Err(error) => {
                warn!(error = crate::cli::chain(&error), "what was expunged or purged still stands in files");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_paid_in_half_of_the_time() {
        let begin = Instant::now();
        for within in [Duration::from_secs(2), Duration::from_hours(1), Duration::from_hours(168)] {
            let mut schedule = Schedule { within, since: None };
            let (mut now, look) = (begin, schedule.look());
            assert!(!schedule.is_due(false, now + within), "nothing is owed");
            assert!(!schedule.is_due(true, now));
            while !schedule.is_due(true, now) {
                now += look;
            }
            // A look may come late by one.
            assert!(now + look - begin <= within / 2 + look, "{within:?}: {:?}", now - begin);
            assert!(now - begin >= within / 4, "{within:?}: what comes soon after goes with it");
            assert!(!schedule.is_due(false, now));
            assert!(!schedule.is_due(true, now), "something else, later");
        }
    }
}
