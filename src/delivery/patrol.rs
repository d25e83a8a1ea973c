//! The look that the engine takes every few seconds: at its workers, the clock and the oldest due delivery.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::engine::Shared;
use super::inbox::Happening;
use super::quiet::Line;
use crate::metrics::Waiting;
use crate::model::causes::chain;
use crate::model::ids::WebhookUid;
use crate::model::time::UnixMillis;
use crate::routes::hold::{Hold, hold};

/// How often.
pub(super) const PATROL: Duration = Duration::from_secs(5);

/// The wall clock was set when it and the monotonic one differ by more than this between two looks.
const CLOCK_SET: Duration = Duration::from_secs(2);

/// Webhooks of which nothing is known to be pending, that one look asks about all the same.
const AT_RANDOM: usize = 64;

/// Whom the next look asks about: Webhooks that were woken and have something pending, and in turn a few of the others,
/// in case a wake was lost. So a look costs nothing for Webhooks that are idle, however many there are.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    pending: HashSet<WebhookUid>,
    others: Vec<WebhookUid>,
}

impl Rounds {
    /// There may be something pending.
    pub(super) fn woken(&mut self, webhook: WebhookUid) {
        self.pending.insert(webhook);
    }

    /// Of whom something may be pending.
    pub(super) fn pending(&self) -> Vec<WebhookUid> {
        self.pending.iter().copied().collect()
    }

    /// Whom to ask about now; `all` once all of them had their turn.
    fn next(&mut self, all: impl FnOnce() -> Vec<WebhookUid>) -> Vec<WebhookUid> {
        if self.others.is_empty() {
            self.others = all();
        }
        let from = self.others.len().saturating_sub(AT_RANDOM);
        let mut next = self.others.split_off(from);
        next.retain(|webhook| !self.pending.contains(webhook));
        next.extend(&self.pending);
        next
    }

    /// What the store said.
    fn found(&mut self, webhook: WebhookUid, is_pending: bool) {
        if is_pending {
            self.pending.insert(webhook);
        } else {
            self.pending.remove(&webhook);
        }
    }
}

/// For how long the longest due deliveries have been due.
#[derive(Clone, Copy, Debug, Default)]
struct Oldest {
    /// That wait for nothing but their turn.
    turn: Duration,
    /// That wait behind the probe of an unhealthy endpoint.
    receiver: Duration,
}

impl Shared {
    pub(super) fn rounds(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the store the time, measures the oldest due deliveries, wakes whoever should be at work and is not, and
    /// everybody when the wall clock was set: their timers follow the other one.
    pub(super) fn look(self: &Arc<Self>, clocks: &mut (UnixMillis, Instant)) {
        let (now, instant) = (self.clock.now(), Instant::now());
        self.looked.store(self.millis(instant).max(1), Ordering::Relaxed);
        if was_set(*clocks, (now, instant)) {
            if let Some(unlogged) = self.quiet.may_speak(Line::ClockSet, None) {
                info!(unlogged, "the wall clock was set; everything that waits for a time looks again");
            }
            self.workers().values().for_each(|inbox| inbox.push(Happening::Woken));
        }
        *clocks = (now, instant);
        self.redate(now);
        let all = || self.table.webhooks().into_iter().map(|webhook| webhook.uid).collect();
        let asked = self.rounds().next(all);
        let mut oldest = Oldest::default();
        for webhook in asked {
            let due = self.store.oldest_due(webhook);
            // What cannot be read is pending all the same.
            let is_pending = due.is_some() || self.store.summary(webhook).is_some_and(|it| it.pending > 0);
            self.rounds().found(webhook, is_pending);
            if let Some(due) = due.filter(|due| *due <= now) {
                self.look_after(webhook, now.since(due), &mut oldest);
            }
        }
        let gauge = |waits_for| self.metrics.oldest_pending.get_or_create(&Waiting { waits_for });
        gauge("turn").set(oldest.turn.as_secs_f64());
        gauge("receiver").set(oldest.receiver.as_secs_f64());
    }

    /// Beside the look, since it takes long when the clock was set back. The store wakes whom it concerns.
    fn redate(self: &Arc<Self>, now: UnixMillis) {
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let redated = shared.stop.run_until_cancelled(shared.store.redate(now)).await;
            if let Some(Err(error)) = redated
                && let Some(unlogged) = shared.quiet.may_speak(Line::NotRedated, None)
            {
                warn!(
                    error = chain(&error),
                    unlogged, "times of a clock that was ahead are not set right yet"
                );
            }
        });
    }

    /// Of a Webhook with a delivery that has been due for so long.
    fn look_after(self: &Arc<Self>, webhook: WebhookUid, age: Duration, oldest: &mut Oldest) {
        let Some(route) = self.table.get(webhook) else { return };
        match hold(&route, self.store.summary(webhook).as_deref()) {
            None => oldest.turn = oldest.turn.max(age),
            Some(Hold::EndpointUnhealthy) => oldest.receiver = oldest.receiver.max(age),
            Some(Hold::Paused | Hold::Disabled(_) | Hold::NotReady) => return,
        }
        if !self.workers().contains_key(&webhook) {
            self.wake(webhook);
        }
    }
}

fn was_set(before: (UnixMillis, Instant), after: (UnixMillis, Instant)) -> bool {
    let passed = after.1.duration_since(before.1);
    let expected = before.0 + passed;
    expected.since(after.0).max(after.0.since(expected)) > CLOCK_SET
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uids(numbers: std::ops::Range<u128>) -> Vec<WebhookUid> {
        numbers.map(|number| WebhookUid::from_bytes(number.to_be_bytes())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_is_set_is_noticed_and_one_that_drifts_is_not() {
        let start = (UnixMillis::from_millis(1_000_000), Instant::now());
        let later = start.1 + Duration::from_secs(5);
        for (wall, set) in
            [(5000, false), (6900, false), (3100, false), (7100, true), (2900, true), (-90_000, true)]
        {
            let after = (UnixMillis::from_millis(1_000_000 + wall), later);
            assert_eq!(was_set(start, after), set, "{wall}");
        }
    }

    #[test]
    fn all_have_their_turn_and_those_with_something_pending_have_it_each_time() {
        let all = uids(0..1000);
        let mut rounds = Rounds::default();
        let [busy, idle] = uids(7..9)[..] else { panic!() };
        rounds.woken(busy);
        rounds.woken(idle);
        rounds.found(idle, false);
        let mut seen = HashSet::new();
        for _ in 0..all.len().div_ceil(AT_RANDOM) {
            let next = rounds.next(|| all.clone());
            assert!(next.len() <= AT_RANDOM + 1, "{}", next.len());
            assert_eq!(next.iter().filter(|other| **other == busy).count(), 1);
            seen.extend(next);
        }
        assert_eq!(seen.len(), all.len());
        rounds.found(busy, false);
        assert_eq!(rounds.next(Vec::new), []);
    }
}
