//! When an endpoint gets its next attempts: the state of one endpoint, and what to do now. Pure.
//!
//! While nothing holds the Webhook, what is due flows, up to `maxInFlight`, `rateLimit` and the endpoint's window. While
//! its attempts are spaced, one at a time looks whether it is well again, each at its time: one that was never tried
//! and one that has failed before, in turn. Once one has arrived, the window rises again from one, and when nothing is
//! due, those that failed meanwhile are tried before their time.

use std::time::Duration;

use super::congestion::{Took, Window};
use super::inbox::{Record, Ticket};
use crate::model::rate::{Meter, RateLimit};
use crate::model::time::UnixMillis;
use crate::routes::hold::Hold;
use crate::store::{Order, Tried};

/// Deliveries claimed in one call at most: enough to fill the slots of a fast endpoint, and what a claim that
/// meets the largest events may hold in memory.
pub(super) const MAX_CLAIM: usize = 32;

/// Outcomes of one endpoint that may wait for the store, beside twice its attempts under way.
const SPARE_UNRECORDED: usize = 64;

/// A window that nobody used for so long is forgotten.
const WINDOW_FORGOTTEN: Duration = Duration::from_mins(1);

/// What is known of an endpoint that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Since when.
    pub(super) since: UnixMillis,
    /// It has failed so often that a window of one is enough to begin with.
    pub(super) is_grave: bool,
    /// While attempts are spaced: when the next may begin.
    pub(super) next: UnixMillis,
    /// While attempts are spaced: because the receiver asked for it, and for no other reason.
    pub(super) is_asked: bool,
}

/// First attempts that fail in a row, before retries succeed, until it is known that they are bound to.
const FIRSTS: u32 = 8;

/// Retries that fail in a row until it is no longer believed that they succeed.
const RETRIES: u32 = 3;

/// It is believed for so long after the last that did: retries come when their backoff is over.
const BELIEVED: Duration = Duration::from_mins(10);

/// Whether first attempts are bound to fail where retries succeed: then they say nothing of how the endpoint is.
#[derive(Clone, Copy, Debug, Default)]
struct Firsts {
    failed: u32,
    retries_failed: u32,
    last_retry: Option<UnixMillis>,
}

impl Firsts {
    fn ended(&mut self, tried: Tried, took: Took, now: UnixMillis) {
        match (tried, took) {
            (Tried::Never, Took::Yes) => (self.failed, self.last_retry) = (0, None),
            (Tried::Never, Took::No) => self.failed = self.failed.saturating_add(1),
            (Tried::Before, Took::Yes) => {
                self.retries_failed = 0;
                self.last_retry = (self.failed >= FIRSTS).then_some(now);
            }
            (Tried::Before, Took::No) => {
                self.retries_failed = self.retries_failed.saturating_add(1);
                self.last_retry = self.last_retry.filter(|_| self.retries_failed < RETRIES);
            }
            (Tried::Never | Tried::Before, Took::Unsaid) => {}
        }
    }

    fn are_bound_to_fail(&self, now: UnixMillis) -> bool {
        self.last_retry.is_some_and(|last| last <= now && now.since(last) < BELIEVED)
    }
}

/// What is true at the moment of a decision.
#[derive(Clone, Debug)]
pub(super) struct View<'a> {
    /// Why the Webhook's deliveries wait, if they do.
    pub(super) hold: Option<Hold>,
    /// Attempts that may be under way at once.
    pub(super) max_in_flight: usize,
    /// Attempts that may start in a time.
    pub(super) rate_limit: Option<&'a RateLimit>,
    /// What the store knows of the endpoint's failures.
    pub(super) trouble: Option<Trouble>,
    /// Now.
    pub(super) now: UnixMillis,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Claim at most so many. [`Schedule::claimed`] follows.
    Claim {
        /// At most.
        limit: usize,
        /// Which.
        order: Order,
    },
    /// Nothing before this time, unless something happens.
    Wait(UnixMillis),
    /// Nothing until something happens.
    Rest,
    /// Nothing is under way, nothing waits for a time, and nothing of this state is needed again.
    Done,
}

/// How an attempt ended, as far as the schedule is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It arrived.
    Success,
    /// It did not.
    Failure {
        /// The failure speaks of the endpoint, not of the event.
        is_of_endpoint: bool,
        /// When this delivery is due again; none: it has ended.
        retry: Option<UnixMillis>,
    },
    /// Nothing is known to be recorded: the claim was given back, or will expire.
    Unknown,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Waiting {
    /// Ask the store.
    #[default]
    Unknown,
    /// Nothing is due before.
    From(UnixMillis),
    /// Nothing waits that is not claimed.
    Nothing,
}

/// What a claim brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claimed {
    /// So many were asked for.
    pub(super) asked: usize,
    /// By this order.
    pub(super) order: Order,
    /// So many begin.
    pub(super) started: usize,
    /// Of which kind the last of them is.
    pub(super) last: Option<Tried>,
    /// When the next that is not claimed is due; none: nothing else waits. When the store could not be asked: now.
    pub(super) next_due: Option<UnixMillis>,
}

/// The state of one endpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Schedule {
    in_flight: usize,
    unrecorded: usize,
    waiting: Waiting,
    meter: Meter,
    window: Window,
    /// Of which kind the last attempt was.
    last: Tried,
    firsts: Firsts,
    /// While attempts are spaced: why.
    spaced: Option<Trouble>,
    /// After that, until none is left: those whose last attempt was between these times are tried early.
    early: Option<(UnixMillis, UnixMillis)>,
    last_end: UnixMillis,
}

impl Schedule {
    /// Of an endpoint of which the store knows this.
    pub(super) fn new(trouble: Option<Trouble>) -> Self {
        let mut new = Self::default();
        if trouble.is_some_and(|trouble| trouble.is_grave) {
            new.window.restart(0);
        }
        new
    }

    /// What to do now.
    pub(super) fn step(&mut self, view: &View<'_>) -> Step {
        match view.hold {
            None => {
                if let Some(trouble) = self.spaced.take() {
                    self.waiting = Waiting::Unknown;
                    if !trouble.is_asked {
                        self.window.restart(self.in_flight);
                        self.early = Some((trouble.since, view.now));
                    }
                }
                self.flow(view)
            }
            Some(Hold::EndpointUnhealthy) => self.look(view),
            Some(Hold::Paused | Hold::Disabled(_) | Hold::NotReady) => {
                self.waiting = Waiting::Unknown;
                self.idle(view)
            }
        }
    }

    fn flow(&mut self, view: &View<'_>) -> Step {
        let most = self.window.size(view.max_in_flight);
        let unrecorded = (2 * view.max_in_flight + SPARE_UNRECORDED).saturating_sub(self.under_way());
        let room = most.saturating_sub(self.in_flight).min(unrecorded).min(MAX_CLAIM);
        if room == 0 {
            return Step::Rest;
        }
        let order = if self.window.is_limited() {
            Order::InTurn { first: self.last.other() }
        } else {
            Order::LongestDue
        };
        match (self.waiting, self.early) {
            (Waiting::Nothing, _) => self.idle(view),
            (Waiting::From(at), Some((from, to))) if at > view.now => {
                self.claim(view, room, Order::Early { from, to })
            }
            (Waiting::From(at), None) if at > view.now => Step::Wait(at),
            (Waiting::From(_) | Waiting::Unknown, _) => self.claim(view, room, order),
        }
    }

    fn look(&mut self, view: &View<'_>) -> Step {
        let Some(trouble) = view.trouble else { return self.idle(view) };
        if self.spaced.replace(trouble).is_none() {
            self.waiting = Waiting::Unknown;
        }
        self.early = None;
        if self.under_way() > 0 {
            return Step::Rest;
        }
        match self.waiting {
            Waiting::Nothing => self.idle(view),
            _ if trouble.next > view.now => Step::Wait(trouble.next),
            Waiting::From(at) if at > view.now => Step::Wait(at),
            Waiting::From(_) | Waiting::Unknown => {
                self.claim(view, 1, Order::Look { first: self.last.other() })
            }
        }
    }

    fn claim(&mut self, view: &View<'_>, limit: usize, order: Order) -> Step {
        let Some(rate) = view.rate_limit else { return Step::Claim { limit, order } };
        match self.meter.take(rate, view.now, limit) {
            (0, next) => Step::Wait(next.unwrap_or(view.now + rate.per)),
            (limit, _) => Step::Claim { limit, order },
        }
    }

    fn idle(&self, view: &View<'_>) -> Step {
        let rested = self.rested_at(view);
        match self.under_way() {
            0 if rested <= view.now => Step::Done,
            0 => Step::Wait(rested),
            _ => Step::Rest,
        }
    }

    /// From when on this state may be forgotten without a limit being exceeded.
    fn rested_at(&self, view: &View<'_>) -> UnixMillis {
        let meter = view.rate_limit.map(|_| self.meter.rested_at());
        // An end that is to come was said by a clock that has been set since.
        let is_kept = self.window.is_limited() && self.spaced.is_none() && self.last_end <= view.now;
        meter.max(is_kept.then(|| self.last_end + WINDOW_FORGOTTEN)).unwrap_or_default()
    }

    /// What to do when nothing is to be claimed any more.
    pub(super) fn finish(&self) -> Step {
        if self.under_way() > 0 { Step::Rest } else { Step::Done }
    }

    /// Attempts and outcomes that have not come to their end.
    pub(super) fn under_way(&self) -> usize {
        self.in_flight + self.unrecorded
    }

    /// Attempts whose slots are taken.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether attempts are spaced.
    pub(super) fn is_spaced(&self) -> bool {
        self.spaced.is_some()
    }

    /// How many attempts may be under way at once.
    pub(super) fn window(&self, view: &View<'_>) -> usize {
        if self.is_spaced() { 1 } else { self.window.size(view.max_in_flight) }
    }

    /// Something may wait that was not there before.
    pub(super) fn woken(&mut self) {
        self.waiting = Waiting::Unknown;
    }

    /// Another spec is in force: what the endpoint of the old one did says nothing about this one.
    pub(super) fn spec_changed(&mut self) {
        self.window.forget(self.in_flight);
        (self.firsts, self.early) = (Firsts::default(), None);
        self.waiting = Waiting::Unknown;
    }

    /// The answer to [`Step::Claim`]. Nothing started: also when the store could not be asked. The round of those
    /// that begin.
    pub(super) fn claimed(&mut self, view: &View<'_>, claimed: Claimed) -> u64 {
        let Claimed { asked, order, started, last, next_due } = claimed;
        if let Some(rate) = view.rate_limit {
            self.meter.give_back(rate, asked.saturating_sub(started));
        }
        self.in_flight += started;
        self.last = last.unwrap_or(self.last);
        self.waiting = next_due.map_or(Waiting::Nothing, Waiting::From);
        match order {
            Order::Early { .. } if started == 0 && next_due != Some(view.now) => self.early = None,
            // What is not due may be claimed all the same.
            Order::Look { .. } if started > 0 => self.waiting = Waiting::Unknown,
            _ => {}
        }
        self.window.began(self.in_flight)
    }

    /// Whether a failure of the next attempt would say nothing of how the endpoint is.
    pub(super) fn is_bound_to_fail(&self, tried: Tried, now: UnixMillis) -> bool {
        tried == Tried::Never && self.firsts.are_bound_to_fail(now)
    }

    /// An attempt arrived: its slot is free before its outcome is recorded.
    pub(super) fn arrived(&mut self, ticket: Ticket, view: &View<'_>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.unrecorded += 1;
        self.end(ticket, Took::Yes, view);
    }

    /// An outcome is in the store, or will never be. That of a failure frees the slot only now, since it may
    /// change what may be sent: attempts are spaced, or it was a 410.
    pub(super) fn recorded(&mut self, record: &Record, view: &View<'_>) {
        if record.had_arrived {
            self.unrecorded = self.unrecorded.saturating_sub(1);
        } else {
            let took = match record.ended {
                Ended::Failure { is_of_endpoint: true, .. } => Took::No,
                Ended::Success | Ended::Failure { .. } | Ended::Unknown => Took::Unsaid,
            };
            self.in_flight = self.in_flight.saturating_sub(1);
            self.end(record.ticket, took, view);
        }
        match record.ended {
            Ended::Failure { retry: Some(at), .. } => {
                self.waiting = match self.waiting {
                    Waiting::From(other) => Waiting::From(at.min(other)),
                    Waiting::Nothing => Waiting::From(at),
                    Waiting::Unknown => Waiting::Unknown,
                };
            }
            Ended::Success | Ended::Failure { retry: None, .. } => {}
            Ended::Unknown => self.waiting = Waiting::Unknown,
        }
        if self.is_spaced() {
            self.waiting = Waiting::Unknown;
        }
    }

    fn end(&mut self, ticket: Ticket, took: Took, view: &View<'_>) {
        let Ticket { round, tried } = ticket;
        self.last_end = view.now;
        self.firsts.ended(tried, took, view.now);
        let is_usual = took == Took::No && self.is_bound_to_fail(tried, view.now);
        // While attempts are spaced there is no load to speak of.
        let took = if is_usual || self.is_spaced() { Took::Unsaid } else { took };
        self.window.ended(round, took, self.in_flight, view.max_in_flight, view.now);
    }
}
