//! What failures say of an endpoint, and when its attempts are spaced. Pure; the store applies it in the order in
//! which outcomes are recorded.
//!
//! Attempts are spaced once the endpoint's window is one (see `delivery::congestion`) and nothing has succeeded over
//! several deliveries and for some time. Between two of them, each called a look, lies the endpoint's own backoff:
//! `backoff.initial`, doubling to a minute. A success ends it. A rejection is about its event and counts for nothing.

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::DeliveryName;
use super::time::UnixMillis;
use super::verdict::Fault;

/// Failed attempts in a row that it takes: about a round of a window that has just been larger than one.
const FAILURES: u32 = 8;

/// Different deliveries among them.
const DELIVERIES: usize = 3;

/// The first and the last of them are at least so far apart, unless the attempts had just been spaced.
const TIME: Duration = Duration::from_secs(5);

/// After so many successes an endpoint whose attempts were spaced is as any other.
const WELL_AFTER: u32 = 8;

/// Shortest and longest time between two looks.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// What kind of failure an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// No connection, no TLS, or it broke before an answer.
    Unreachable,
    /// No answer within the endpoint's time, or 408.
    TimesOut,
    /// 5xx or 429, or what is no answer to a request.
    ServerErrors,
    /// An answer that refuses this event: any other status.
    Rejects,
}

impl Kind {
    /// Of a fault.
    pub const fn of(fault: Fault) -> Self {
        match fault {
            Fault::Unreachable | Fault::Denied => Self::Unreachable,
            Fault::TimedOut => Self::TimesOut,
            Fault::ServerError | Fault::Throttled => Self::ServerErrors,
            // What is Hookwright's own fault says nothing of the endpoint either.
            Fault::Rejected | Fault::Internal => Self::Rejects,
        }
    }

    /// CamelCase, for conditions.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "Unreachable",
            Self::TimesOut => "TimesOut",
            Self::ServerErrors => "ServerErrors",
            Self::Rejects => "Rejects",
        }
    }

    /// Whether it speaks of the endpoint, and not of the event.
    pub const fn is_of_endpoint(self) -> bool {
        !matches!(self, Self::Rejects)
    }
}

/// The last failed attempt, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailure {
    /// Of which kind.
    #[serde(rename = "k")]
    pub kind: Kind,
    /// Why it failed, as the attempt has it.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a failed attempt tells, beside what is kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// Of which kind.
    pub kind: Kind,
    /// Generation of the spec that it was made by.
    pub generation: i64,
    /// How many attempts might be under way when it began.
    pub window: u32,
    /// It was made as a look, at its time.
    pub is_look: bool,
    /// It was a first attempt, at an endpoint where those fail and retries succeed.
    pub is_usual: bool,
    /// What a 429 or 503 asked for.
    pub retry_after: Option<Duration>,
    /// The Webhook's `backoff.initial`.
    pub initial: Duration,
    /// For jitter: 0..=255.
    pub dice: u8,
}

/// That attempts are spaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spaced {
    /// When the next may begin. Look at [`Spaced::next`].
    #[serde(rename = "a")]
    at: UnixMillis,
    /// How long before that it was decided.
    #[serde(rename = "w")]
    wait: Duration,
    /// The endpoint's backoff without jitter; zero while only the receiver's wish is followed.
    #[serde(rename = "i")]
    interval: Duration,
}

impl Spaced {
    /// When the next may begin. What lies further ahead than the rule allows was said by a clock that has been set
    /// since, and binds nobody.
    pub fn next(&self, now: UnixMillis) -> UnixMillis {
        if self.at > now + self.wait { now } else { self.at }
    }

    /// Whether it was decided after an attempt began, which then says nothing of what is to come.
    fn is_younger_than(&self, began: UnixMillis, ended: UnixMillis) -> bool {
        let decided = self.at - self.wait;
        began < decided && decided <= ended
    }

    /// Whether the receiver asked for it, and there is no other reason.
    pub fn is_asked(&self) -> bool {
        self.interval.is_zero()
    }

    /// How long it waits in all.
    pub fn wait(&self) -> Duration {
        self.wait
    }
}

/// That attempts were spaced until a success came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Relapse {
    #[serde(rename = "i")]
    interval: Duration,
    #[serde(rename = "s")]
    successes: u32,
}

/// Failures that speak of an endpoint, since its last success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Of which generation of the spec; a newer one starts afresh.
    #[serde(rename = "g")]
    pub generation: i64,
    /// When the first of them began.
    #[serde(rename = "s")]
    since: UnixMillis,
    /// Since when the endpoint has not been well, a few successes aside.
    #[serde(rename = "l")]
    pub ill_since: UnixMillis,
    /// How many.
    #[serde(rename = "n")]
    pub failures: u32,
    /// How many attempts might be under way when the last of them began.
    #[serde(rename = "w")]
    pub window: u32,
    /// Of which kind the last of them is.
    #[serde(rename = "k")]
    kind: Kind,
    #[serde(rename = "d", default, skip_serializing_if = "Vec::is_empty")]
    deliveries: Vec<DeliveryName>,
    /// While attempts are spaced.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub spaced: Option<Spaced>,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    relapse: Option<Relapse>,
}

/// One failed attempt.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// Of which delivery.
    pub name: DeliveryName,
    /// When it began.
    pub began: UnixMillis,
    /// When its outcome became known.
    pub ended: UnixMillis,
    /// When the last success began.
    pub last_success: Option<UnixMillis>,
    /// What it tells.
    pub says: &'a Failing,
}

impl Trouble {
    /// Whether one attempt at a time is enough to begin with, for who knows nothing else of the endpoint.
    pub fn is_grave(&self) -> bool {
        self.spaced.is_some() || self.relapse.is_some() || self.failures >= FAILURES
    }

    /// What is known of an endpoint after one failure more.
    #[must_use]
    pub fn after_failure(before: Option<Self>, failure: &Failure<'_>) -> Option<Self> {
        let says = failure.says;
        if !says.kind.is_of_endpoint() || says.is_usual {
            return before.map(|trouble| trouble.rejected(failure));
        }
        match before {
            Some(trouble) if trouble.generation > says.generation => Some(trouble),
            Some(trouble) if trouble.generation == says.generation => Some(trouble.failed(failure)),
            Some(_) | None => Some(Self::new(says.generation, failure.began).failed(failure)),
        }
    }

    /// What is known of it after a success, which began and became known at these times.
    #[must_use]
    pub fn after_success(self, began: UnixMillis, ended: UnixMillis) -> Option<Self> {
        if self.spaced.as_ref().is_some_and(|spaced| spaced.is_younger_than(began, ended)) {
            return Some(self);
        }
        let since = Self { failures: 0, deliveries: Vec::new(), spaced: None, relapse: None, ..self };
        let relapse =
            |interval, successes| Some(Self { relapse: Some(Relapse { interval, successes }), ..since });
        match (self.spaced, self.relapse) {
            (Some(spaced), _) if !spaced.interval.is_zero() => relapse(spaced.interval, 1),
            (_, Some(Relapse { interval, successes })) if successes + 1 < WELL_AFTER => {
                relapse(interval, successes + 1)
            }
            (Some(_) | None, Some(_) | None) => None,
        }
    }

    /// The same with no time later than `now`, and the next attempt no later than after its own wait from now.
    #[must_use]
    pub fn redated(mut self, now: UnixMillis) -> Self {
        (self.since, self.ill_since) = (self.since.min(now), self.ill_since.min(now));
        if let Some(spaced) = &mut self.spaced {
            spaced.at = spaced.at.min(now + spaced.wait);
        }
        self
    }

    fn new(generation: i64, since: UnixMillis) -> Self {
        Self {
            generation,
            since,
            ill_since: since,
            failures: 0,
            window: 1,
            kind: Kind::Unreachable,
            deliveries: Vec::new(),
            spaced: None,
            relapse: None,
        }
    }

    /// What says nothing of the endpoint holds nobody back: the next look need not wait.
    fn rejected(mut self, failure: &Failure<'_>) -> Self {
        if let Some(spaced) = self.spaced.as_mut().filter(|_| failure.says.is_look) {
            (spaced.at, spaced.wait) = (failure.ended, Duration::ZERO);
        }
        self
    }

    fn failed(mut self, failure: &Failure<'_>) -> Self {
        let Failure { name, began, ended, says, .. } = *failure;
        self.since = if self.failures == 0 { began } else { self.since.min(began) };
        self.ill_since = self.ill_since.min(began);
        self.failures = self.failures.saturating_add(1);
        // Who answers again may soon do more than that.
        let has_come_up = says.kind == Kind::ServerErrors && self.kind != Kind::ServerErrors;
        (self.window, self.kind) = (says.window, says.kind);
        if self.deliveries.len() < DELIVERIES && !self.deliveries.contains(&name) {
            self.deliveries.push(name);
        }
        let interval = self.spaced.as_ref().map_or(Duration::ZERO, |spaced| spaced.interval);
        let is_clear = says.is_look || says.window <= 1 || self.failures >= FAILURES;
        if let Some(asked) = failure.asked().filter(|_| is_clear) {
            let wait = asked.max(interval);
            if says.is_look || self.spaced.as_ref().is_none_or(|spaced| spaced.at < ended + wait) {
                self.spaced = Some(Spaced { at: ended + wait, wait, interval });
            }
        } else if self.spaced.is_some() {
            if says.is_look {
                let again = if interval.is_zero() || has_come_up { says.initial } else { interval * 2 };
                self.spaced = Some(says.spaced(again, ended));
            }
        } else if let Some(interval) = self.begins_to_space(failure) {
            self.spaced = Some(says.spaced(interval, ended));
        }
        self
    }

    fn begins_to_space(&self, failure: &Failure<'_>) -> Option<Duration> {
        let is_long = self.relapse.is_some() || failure.ended.since(self.since) >= TIME;
        let is_enough = self.failures >= FAILURES && self.deliveries.len() >= DELIVERIES;
        let says = failure.says;
        let interval = || self.relapse.as_ref().map_or(says.initial, |relapse| relapse.interval * 2);
        (is_long && is_enough && says.window <= 1).then(interval)
    }
}

impl Failing {
    fn spaced(&self, interval: Duration, now: UnixMillis) -> Spaced {
        let (shortest, longest) = WAIT;
        let interval = interval.clamp(shortest, longest);
        // Jitter takes away, so that it is never more than a minute.
        let wait = interval.saturating_sub(interval / 10 * u32::from(self.dice) / 255);
        Spaced { at: now + wait, wait, interval }
    }
}

impl Failure<'_> {
    /// For how long the receiver asks to be left alone, at most a minute: one event must not keep the others for
    /// longer. Not if another attempt has succeeded since this one began.
    fn asked(&self) -> Option<Duration> {
        let has_succeeded = self.last_success.is_some_and(|at| at >= self.began && at <= self.ended);
        let (shortest, longest) = WAIT;
        let asked = self.says.retry_after.filter(|asked| !asked.is_zero() && !has_succeeded);
        asked.map(|asked| asked.clamp(shortest, longest))
    }
}
