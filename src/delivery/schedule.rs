//! When an endpoint gets its next attempts: the state of one endpoint, and what to do now. Pure.
//!
//! While nothing holds the Webhook, what is due flows, up to `maxInFlight` and `rateLimit`. While its endpoint is
//! unhealthy, one delivery at a time probes it: the longest due one, on its own retries until it ends, then the
//! next. Once a probe has arrived, the attempts under way rise again from one, doubling with each round of
//! successes.

use std::time::Duration;

use super::inbox::Record;
use crate::model::ids::DeliveryName;
use crate::model::rate::{Meter, RateLimit};
use crate::model::time::UnixMillis;
use crate::routes::hold::Hold;

/// Deliveries claimed in one call at most: enough to fill the slots of a fast endpoint, and what a claim that
/// meets the largest events may hold in memory.
pub(super) const MAX_CLAIM: usize = 32;

/// Outcomes of one endpoint that may wait for the store, beside twice its attempts under way.
const SPARE_UNRECORDED: usize = 64;

/// A rise that nobody used for so long is forgotten.
const RISE_FORGOTTEN: Duration = Duration::from_mins(1);

/// What is true at the moment of a decision.
#[derive(Clone, Debug)]
pub(super) struct View<'a> {
    /// Why the Webhook's deliveries wait, if they do.
    pub(super) hold: Option<Hold>,
    /// Attempts that may be under way at once.
    pub(super) max_in_flight: usize,
    /// Attempts that may start in a time.
    pub(super) rate_limit: Option<&'a RateLimit>,
    /// Now.
    pub(super) now: UnixMillis,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Claim at most so many that are due, or only this one. [`Schedule::claimed`] follows.
    Claim {
        /// At most.
        limit: usize,
        /// The probe.
        only: Option<DeliveryName>,
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
        /// While probing: no attempt before this.
        pace: UnixMillis,
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

#[derive(Clone, Copy, Debug)]
struct Rise {
    limit: usize,
    successes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Probe {
    /// The delivery that probes, once one does.
    name: Option<DeliveryName>,
}

/// The state of one endpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Schedule {
    in_flight: usize,
    unrecorded: usize,
    waiting: Waiting,
    meter: Meter,
    /// While probing.
    probe: Option<Probe>,
    /// While probing, no attempt before this.
    pace: UnixMillis,
    rise: Option<Rise>,
    last_end: UnixMillis,
}

impl Schedule {
    /// What to do now.
    pub(super) fn step(&mut self, view: &View<'_>) -> Step {
        match view.hold {
            None => {
                if self.probe.take().is_some() {
                    self.rise = Some(Rise { limit: 1, successes: 0 });
                    self.waiting = Waiting::Unknown;
                }
                self.flow(view)
            }
            Some(Hold::EndpointUnhealthy) => self.probe(view),
            Some(Hold::Paused | Hold::Disabled(_) | Hold::NotReady) => {
                self.waiting = Waiting::Unknown;
                self.idle(view)
            }
        }
    }

    fn flow(&mut self, view: &View<'_>) -> Step {
        let most = self.rise.map_or(view.max_in_flight, |rise| rise.limit.min(view.max_in_flight));
        let unrecorded = (2 * view.max_in_flight + SPARE_UNRECORDED).saturating_sub(self.under_way());
        let room = most.saturating_sub(self.in_flight).min(unrecorded).min(MAX_CLAIM);
        if room == 0 {
            return Step::Rest;
        }
        match self.waiting {
            Waiting::Nothing => self.idle(view),
            Waiting::From(at) if at > view.now => Step::Wait(at),
            Waiting::From(_) | Waiting::Unknown => self.claim(view, room, None),
        }
    }

    fn probe(&mut self, view: &View<'_>) -> Step {
        self.rise = None;
        let Probe { name } = *self.probe.get_or_insert_default();
        if self.under_way() > 0 {
            return Step::Rest;
        }
        if self.pace > view.now {
            return Step::Wait(self.pace);
        }
        match (name, self.waiting) {
            (None, Waiting::Nothing) => self.idle(view),
            (None, Waiting::From(at)) if at > view.now => Step::Wait(at),
            _ => self.claim(view, 1, name),
        }
    }

    fn claim(&mut self, view: &View<'_>, limit: usize, only: Option<DeliveryName>) -> Step {
        let Some(rate) = view.rate_limit else { return Step::Claim { limit, only } };
        match self.meter.take(rate, view.now, limit) {
            (0, next) => Step::Wait(next.unwrap_or(view.now + rate.per)),
            (limit, _) => Step::Claim { limit, only },
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
        let rise = self.rise.map(|_| self.last_end + RISE_FORGOTTEN);
        let pace = self.probe.map(|_| self.pace);
        meter.max(rise).max(pace).unwrap_or_default()
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

    /// Whether one delivery at a time probes.
    pub(super) fn is_probing(&self) -> bool {
        self.probe.is_some()
    }

    /// Something may wait that was not there before.
    pub(super) fn woken(&mut self) {
        self.waiting = Waiting::Unknown;
    }

    /// Another spec is in force: what was wrong with the old one says nothing about it, so the next probe may
    /// start at once.
    pub(super) fn spec_changed(&mut self) {
        self.pace = UnixMillis::default();
    }

    /// The answer to [`Step::Claim`]: what starts now, of how many that were asked for. Nothing: also when the
    /// store could not be asked (then `next_due` is now).
    pub(super) fn claimed(
        &mut self,
        view: &View<'_>,
        asked: usize,
        only: Option<DeliveryName>,
        started: &[DeliveryName],
        next_due: Option<UnixMillis>,
    ) {
        if let Some(rate) = view.rate_limit {
            self.meter.give_back(rate, asked.saturating_sub(started.len()));
        }
        self.in_flight += started.len();
        self.waiting = match (only, next_due) {
            // Speaks of the one that was asked for.
            (Some(_), _) => Waiting::Unknown,
            (None, Some(at)) => Waiting::From(at),
            (None, None) => Waiting::Nothing,
        };
        if let Some(probe) = &mut self.probe {
            probe.name = started.first().copied();
        }
    }

    /// An attempt arrived: its slot is free before its outcome is recorded.
    pub(super) fn arrived(&mut self, view: &View<'_>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.unrecorded += 1;
        self.end(true, view);
    }

    /// An outcome is in the store, or will never be. That of a failure frees the slot only now, since it may
    /// change what may be sent: the fifth in a row, or a 410.
    pub(super) fn recorded(&mut self, record: &Record, view: &View<'_>) {
        if record.had_arrived {
            self.unrecorded = self.unrecorded.saturating_sub(1);
        } else {
            self.in_flight = self.in_flight.saturating_sub(1);
            self.end(false, view);
        }
        match record.ended {
            Ended::Success => {}
            Ended::Failure { pace, retry } => {
                self.pace = self.pace.max(pace);
                self.failed(record.name, retry);
            }
            Ended::Unknown => self.waiting = Waiting::Unknown,
        }
    }

    fn end(&mut self, success: bool, view: &View<'_>) {
        self.last_end = view.now;
        self.rise = self.rise.and_then(|rise| rise.after(success, view.max_in_flight));
    }

    fn failed(&mut self, name: DeliveryName, retry: Option<UnixMillis>) {
        if let Some(at) = retry {
            self.waiting = match self.waiting {
                Waiting::From(other) => Waiting::From(at.min(other)),
                Waiting::Nothing => Waiting::From(at),
                Waiting::Unknown => Waiting::Unknown,
            };
        } else if self.probe == Some(Probe { name: Some(name) }) {
            self.probe = Some(Probe::default());
        }
    }
}

impl Rise {
    /// None: it has reached the limit.
    fn after(self, success: bool, max_in_flight: usize) -> Option<Self> {
        if !success {
            return Some(Self { limit: (self.limit / 2).max(1), successes: 0 });
        }
        let successes = self.successes + 1;
        if successes < self.limit {
            return Some(Self { successes, ..self });
        }
        let limit = self.limit * 2;
        (limit < max_in_flight).then_some(Self { limit, successes: 0 })
    }
}
