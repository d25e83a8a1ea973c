//! What is kept of a time that a clock gave which was ahead, and has been set back since. Pure.
//!
//! Nothing that is kept happened later than now. And a wait that began by the other clock begins anew: it is never
//! longer than it was meant to be, counted from now.

use super::records::{Delivery, State, Summary};
use super::replays::Replay;
use crate::model::time::UnixMillis;

impl Delivery {
    /// The same with no time later than `now`, and due no later than after its own wait from now; none: it is so
    /// already. Its name stays, whatever time is in it.
    pub(super) fn redated(&self, now: UnixMillis) -> Option<Self> {
        let mut after = self.clone();
        after.accepted_at = self.accepted_at.min(now);
        for attempt in &mut after.attempts {
            attempt.at = attempt.at.min(now - attempt.duration);
        }
        after.due = self.due.map(|due| self.due_at(due, now));
        after.ended_at = self.ended_at.map(|at| at.min(now));
        if let Some(waiting) = &mut after.redelivery {
            waiting.asked.at = waiting.asked.at.min(now);
            if let Some(put) = &mut waiting.replay {
                put.ended_at = put.ended_at.map(|at| at.min(now));
            }
        }
        if let Some(asked) = &mut after.expunged {
            asked.at = asked.at.min(now);
        }
        (after != *self).then_some(after)
    }

    /// A first attempt and one that somebody asks for are due at once; a retry is due some time after the attempt
    /// before it.
    fn due_at(&self, due: UnixMillis, now: UnixMillis) -> UnixMillis {
        if self.state != State::Retrying {
            return due.min(now);
        }
        let began = self.attempts.last().map_or(self.accepted_at, |last| last.at + last.duration);
        if began > now && due > began { due.min(now + due.since(began)) } else { due }
    }
}

impl Summary {
    /// The same with no time later than `now`; none: it is so already.
    pub(super) fn redated(&self, now: UnixMillis) -> Option<Self> {
        let by_now = |at: Option<UnixMillis>| at.map(|at| at.min(now));
        let mut after = self.clone();
        after.failing_since = by_now(self.failing_since);
        after.last_triggered = by_now(self.last_triggered);
        after.last_success = by_now(self.last_success);
        if let Some(disabled) = &mut after.disabled {
            disabled.at = disabled.at.min(now);
        }
        after.trouble = self.trouble.clone().map(|trouble| Box::new(trouble.redated(now)));
        (after != *self).then_some(after)
    }
}

impl Replay {
    /// The same, begun and finished no later than `now`; none: it is so already.
    pub(super) fn redated(&self, now: UnixMillis) -> Option<Self> {
        let mut after = self.clone();
        after.selection.as_of = self.selection.as_of.min(now);
        after.finished_at = self.finished_at.map(|at| at.min(now));
        (after != *self).then_some(after)
    }
}
