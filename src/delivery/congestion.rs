//! How many attempts an endpoint takes at once: a window, as congestion control has it. Pure.
//!
//! Nothing is known against an endpoint at first: as many may be under way as its Webhook allows. A round of attempts
//! is those that were under way together. When more of a round fails than usual, the window is cut, once for all of
//! them: to the largest that is known to do no harm, but not below a half, or to a quarter when nothing arrives at all.
//! When nothing more fails than usual and the window was full, it grows: fast, up to half-way to the smallest that is
//! known to do harm, and beyond that in small steps from time to time.
//!
//! What is usual is learned: if a cut does not help, and as large a part of the next round fails, the failures have
//! nothing to do with the load. The cut is taken back, and that part is usual from then on, until less fails. If nearly
//! everything fails, that is no chance, and the window falls to one.

use std::time::Duration;

use crate::model::time::UnixMillis;

/// Attempts that a judgement needs: if all of them fail, and otherwise.
const SAMPLE: (u64, u64) = (8, 16);

/// A cut has not helped if about as many fail after it as before; so many failures are needed to tell.
const TELLING: u64 = 5;

/// A window that did harm is tried again after so long, longer each time that it does, up to this.
const HOLD: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(2));

/// What became of an attempt, as far as its endpoint is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Took {
    /// It arrived.
    Yes,
    /// A failure that speaks of the endpoint.
    No,
    /// It says nothing of the endpoint.
    Unsaid,
}

/// So many of so many failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    failed: u64,
    of: u64,
}

impl Share {
    fn count(&mut self, failed: bool) {
        self.failed += u64::from(failed);
        self.of += 1;
    }

    /// Whether there are enough of them to tell.
    fn is_enough(self) -> bool {
        let (all, some) = SAMPLE;
        self.of >= if self.failed == self.of { all } else { some }
    }

    /// Nearly everything: seven of eight.
    fn is_nearly_all(self) -> bool {
        self.is_enough() && 8 * self.failed >= 7 * self.of
    }

    /// More than chance makes of what is usual: three standard deviations, and two.
    fn exceeds(self, usual: Self) -> bool {
        let [failed, of, usual_failed, usual_of] =
            [self.failed, self.of, usual.failed, usual.of.max(1)].map(u128::from);
        let expected = of * usual_failed + 2 * usual_of;
        let Some(more) = (failed * usual_of).checked_sub(expected) else { return false };
        more > 0 && more * more > 9 * of * usual_failed * usual_of.saturating_sub(usual_failed)
    }

    /// Whether it is at least half as large a part as the other.
    fn is_half_of(self, other: Self) -> bool {
        2 * self.failed * other.of >= other.failed * self.of
    }

    fn and(self, other: Self) -> Self {
        Self { failed: self.failed + other.failed, of: self.of + other.of }
    }

    /// What it counts for when there is something newer.
    fn aged(self) -> Self {
        Self { failed: self.failed * 7 / 8, of: self.of * 7 / 8 }
    }
}

/// A cut of which is not known yet whether it helps.
#[derive(Clone, Copy, Debug)]
struct Trial {
    before: Option<usize>,
    failed: Share,
}

/// The window of one endpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    /// None: nothing is known against it.
    limit: Option<usize>,
    /// By how much it grows next.
    step: usize,
    /// The largest of which is known that it does no harm; zero: none.
    good: usize,
    /// The smallest of which is known that it does, and since when.
    bad: Option<(usize, UnixMillis)>,
    /// How often a window that was tried again has done harm again.
    again: u32,
    /// What fails whatever the load.
    usual: Share,
    trial: Option<Trial>,
    /// Nearly all of the last round failed.
    was_down: bool,
    /// Counts rounds. Attempts of rounds before `cut` have been punished.
    round: u64,
    cut: u64,
    /// Attempts under way that began before this round.
    older: usize,
    /// Most attempts under way together in this round.
    peak: usize,
    seen: Share,
}

impl Window {
    /// How many attempts may be under way, of so many that the Webhook allows.
    pub(super) fn size(&self, most: usize) -> usize {
        self.limit.map_or(most, |limit| limit.min(most))
    }

    /// Whether it is smaller than the Webhook allows.
    pub(super) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Begins from one, with so many under way that say nothing of what is to come.
    pub(super) fn restart(&mut self, in_flight: usize) {
        let Self { usual, round, .. } = *self;
        *self = Self { limit: Some(1), step: 1, usual, round: round + 1, cut: round + 1, ..Self::default() };
        self.older = in_flight;
    }

    /// Knows nothing of its endpoint any more, nor do the so many under way say anything of it.
    pub(super) fn forget(&mut self, in_flight: usize) {
        let round = self.round + 1;
        *self = Self { round, cut: round, older: in_flight, ..Self::default() };
    }

    /// An attempt begins, and so many are under way with it; the round that it belongs to.
    pub(super) fn began(&mut self, in_flight: usize) -> u64 {
        self.peak = self.peak.max(in_flight);
        self.round
    }

    /// An attempt of a round has ended, and so many are still under way.
    pub(super) fn ended(&mut self, round: u64, took: Took, in_flight: usize, most: usize, now: UnixMillis) {
        if round < self.round {
            self.older = self.older.saturating_sub(1);
        }
        if round >= self.cut && took != Took::Unsaid {
            self.seen.count(took == Took::No);
        }
        if took == Took::No && round >= self.cut && self.does_harm(most) {
            self.shrink(in_flight, most, now);
        } else if self.older == 0 && self.is_enough(most) {
            self.judge(most, now);
            self.next_round(in_flight);
        }
    }

    fn does_harm(&self, most: usize) -> bool {
        let (few, _) = SAMPLE;
        let is_unusual = self.trial.is_none() && self.seen.of >= few && self.seen.exceeds(self.usual);
        self.size(most) > 1 && (is_unusual || self.seen.is_nearly_all())
    }

    fn shrink(&mut self, in_flight: usize, most: usize, now: UnixMillis) {
        let size = self.size(most).min(self.peak.max(1));
        let is_down = self.seen.is_nearly_all();
        self.again = if size <= self.good + 1 { self.again.saturating_add(1) } else { 0 };
        self.bad = Some((size, now));
        self.good = if self.good < size { self.good } else { 0 };
        self.trial = (!is_down).then(|| Trial { before: self.limit, failed: self.seen.and(self.usual) });
        self.limit = Some(if is_down { size / 4 } else { self.good.max(size / 2) }.max(1));
        if is_down {
            self.is_down();
        }
        self.step = 1;
        self.next_round(in_flight);
        self.cut = self.round;
    }

    /// Nearly all of a round has failed. A second one says that it has nothing to do with the size: the endpoint is
    /// down, and what it takes is to be found out when it is up.
    fn is_down(&mut self) {
        if std::mem::replace(&mut self.was_down, true) {
            (self.good, self.bad, self.again) = (0, None, 0);
        }
    }

    /// Whether the round tells something: without any failure its end does.
    fn is_enough(&self, most: usize) -> bool {
        let Some(Trial { failed, .. }) = self.trial else {
            return self.seen.is_enough() || self.seen.failed == 0 && self.seen.of > 0;
        };
        let size = u64::try_from(self.size(most)).unwrap_or(u64::MAX);
        self.seen.is_enough() && self.seen.of >= size.max(TELLING * failed.of / failed.failed.max(1))
    }

    fn judge(&mut self, most: usize, now: UnixMillis) {
        if let Some(Trial { before, failed }) = self.trial.take() {
            self.usual = self.seen.and(failed.aged());
            self.was_down = false;
            if self.seen.is_half_of(failed) {
                (self.limit, self.bad) = (before, None);
            } else {
                self.good = self.size(most);
            }
            return;
        }
        if self.seen.is_nearly_all() {
            return self.is_down();
        }
        self.was_down = false;
        self.usual = self.seen.and(self.usual.aged());
        let Some(limit) = self.limit.filter(|limit| self.peak >= *limit) else { return };
        self.good = self.good.max(limit);
        self.grow(limit, most, now);
    }

    fn grow(&mut self, limit: usize, most: usize, now: UnixMillis) {
        let larger = match self.bad {
            Some((bad, _)) if limit + 1 < bad => limit.saturating_add(self.step).min(limit.midpoint(bad)),
            Some((_, since)) if since <= now && now.since(since) < self.hold() => return,
            Some(_) => {
                (self.bad, self.step) = (None, 1);
                limit + 1
            }
            None => limit.saturating_add(self.step),
        };
        self.step = self.step.saturating_mul(2);
        if larger < most {
            self.limit = Some(larger);
        } else {
            (self.limit, self.good, self.bad, self.again) = (None, 0, None, 0);
        }
    }

    fn hold(&self) -> Duration {
        let (shortest, longest) = HOLD;
        shortest.saturating_mul(1 << self.again.min(8)).min(longest)
    }

    fn next_round(&mut self, in_flight: usize) {
        self.round += 1;
        self.older = in_flight;
        self.peak = in_flight;
        self.seen = Share::default();
    }
}
