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
    /// An earlier process left something, which goes at once: nobody knows since when it is owed.
    is_left: bool,
    /// After a failure: how long to wait, and until when.
    rest: Option<(Duration, Instant)>,
}

impl Schedule {
    fn new(within: Duration, is_left: bool) -> Self {
        Self { within, since: None, is_left, rest: None }
    }

    /// Whether it is time, at `now`. Half of the time is for those that come later, half for the work and another try.
    fn is_due(&mut self, owes: bool, now: Instant) -> bool {
        if !owes {
            self.paid();
            return false;
        }
        let waited = now.duration_since(*self.since.get_or_insert(now));
        match self.rest {
            Some((_, until)) => now >= until,
            None => self.is_left || waited >= (self.within / 2).saturating_sub(self.look()),
        }
    }

    /// All has gone.
    fn paid(&mut self) {
        *self = Self::new(self.within, false);
    }

    /// It failed at `now`. Each failure in a row doubles the wait, up to the whole time: another try writes much, too.
    fn failed(&mut self, now: Instant) -> Duration {
        let wait = self.rest.map_or_else(|| self.look(), |(wait, _)| wait.saturating_mul(2).min(self.within));
        self.rest = Some((wait, now + wait));
        wait
    }

    /// Between two looks.
    fn look(&self) -> Duration {
        LOOK.min(self.within / 8)
    }
}

/// Makes what was expunged or purged go from the files within a time, until told to stop.
pub(crate) async fn erase(store: Arc<dyn Store>, within: Duration, stop: CancellationToken) {
    let mut schedule = Schedule::new(within, store.owes_erasure());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(schedule.look()) => {}
        }
        if !schedule.is_due(store.owes_erasure(), Instant::now()) {
            continue;
        }
        let began = Instant::now();
        let erased = tokio::select! {
            () = stop.cancelled() => return,
            erased = store.erase() => erased,
        };
        match erased {
            Ok(()) => {
                schedule.paid();
                info!(took = ?began.elapsed(), "what was expunged or purged has gone from the files");
            }
            Err(error) => {
                let again_in = schedule.failed(Instant::now());
                warn!(
                    error = crate::cli::chain(&error),
                    ?again_in,
                    "what was expunged or purged still stands in files"
                );
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
            let mut schedule = Schedule::new(within, false);
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
    #[test]
    fn a_failing_erasure_is_tried_ever_more_rarely() {
        let within = Duration::from_hours(1);
        let mut schedule = Schedule::new(within, true);
        let mut now = Instant::now();
        assert!(schedule.is_due(true, now), "what an earlier process left goes at once");
        let mut waits = Vec::new();
        for _ in 0..8 {
            let wait = schedule.failed(now);
            assert!(!schedule.is_due(true, now + wait - Duration::from_millis(1)));
            now += wait;
            assert!(schedule.is_due(true, now));
            waits.push(wait.as_secs() / 60);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        schedule.paid();
        assert!(!schedule.is_due(true, now), "something else, later");
        assert_eq!(schedule.failed(now), Duration::from_mins(1));
    }
}
