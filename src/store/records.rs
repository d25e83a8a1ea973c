//! What a store keeps and hands out.
//!
//! The serialised types are the store's format: a new field needs `#[serde(default)]`, a changed meaning a new
//! format version (see `embedded::format`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::event::Attributes;
use crate::model::ids::{DeliveryName, EventUid, Namespace, NamespaceUid, ReplayId, WebhookRef, WebhookUid};
use crate::model::time::UnixMillis;
use crate::model::trouble::{Failing, Failure, LastFailure, Trouble};

/// First 16 bytes of the SHA-256 of namespace, `source` and `id` (each with its length): what makes two
/// publications the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DedupKey(pub [u8; 16]);

/// An event to store.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Made by the caller.
    pub uid: EventUid,
    /// Whose it is.
    pub namespace: Namespace,
    /// The context attributes.
    pub attributes: Arc<Attributes>,
    /// The data, byte for byte as it will be sent.
    pub data: Bytes,
    /// When it was accepted; deliveries are due from then on.
    pub accepted_at: UnixMillis,
    /// None: never a duplicate (tests).
    pub dedup: Option<DedupKey>,
    /// One for each Webhook that matches; may be empty.
    pub deliveries: Vec<NewDelivery>,
}

/// One delivery of a [`NewEvent`].
#[derive(Clone, Debug)]
pub struct NewDelivery {
    /// Made by the caller.
    pub name: DeliveryName,
    /// For which Webhook.
    pub webhook: WebhookRef,
    /// A test: not queued; whoever appends it makes its one attempt. After a crash in between, opening the
    /// store ends it as Failed, [`EndReason::Interrupted`].
    pub test: bool,
}

/// A stored event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Ours.
    pub uid: EventUid,
    /// Whose it is.
    pub namespace: Namespace,
    /// When it was accepted.
    pub accepted_at: UnixMillis,
    /// The context attributes.
    pub attributes: Arc<Attributes>,
    /// The data, byte for byte.
    pub data: Bytes,
}

/// Attempts of one delivery that are kept; beyond, the oldest go.
const ATTEMPTS_KEPT: usize = 50;

/// Probes among them.
const PROBES_KEPT: usize = 8;

/// The states that are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum State {
    /// Waits for its first attempt.
    Pending = 0,
    /// Failed at least once, has attempts left.
    Retrying = 1,
    /// Arrived.
    Success = 2,
    /// Given up.
    Failed = 3,
}

impl State {
    /// Every state, for lists and merges.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Retrying, Self::Success, Self::Failed];

    /// Whether nothing is to come.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Failed)
    }
}

/// Why a delivery ended as Failed, or an attempt was the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EndReason {
    /// No attempts left.
    RetriesExhausted,
    /// The endpoint answered 410.
    Gone,
    /// The guard denied the address; nothing was sent.
    AddressDenied,
    /// Held for longer than the installation's limit.
    Expired,
    /// A test's single attempt failed.
    TestFailed,
    /// The process ended during a test's attempt; it may have been sent.
    Interrupted,
    /// The payload was erased.
    Expunged,
    /// The one attempt that somebody asked for, outside the retries, failed.
    RedeliveryFailed,
}

impl EndReason {
    /// CamelCase, for status, Events and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RetriesExhausted => "RetriesExhausted",
            Self::Gone => "Gone",
            Self::AddressDenied => "AddressDenied",
            Self::Expired => "Expired",
            Self::TestFailed => "TestFailed",
            Self::Interrupted => "Interrupted",
            Self::Expunged => "Expunged",
            Self::RedeliveryFailed => "RedeliveryFailed",
        }
    }
}

/// One attempt, as it is kept. Every Secret value and signature is already masked in `body` and `error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its start.
    #[serde(rename = "a")]
    pub at: UnixMillis,
    /// How long it took.
    #[serde(rename = "d")]
    pub duration: Duration,
    /// HTTP status, if there was an answer.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// First 500 characters of the answer.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Content type of the answer.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Bytes of the answer that were read.
    #[serde(rename = "l", default)]
    pub body_length: u64,
    /// Why it failed, as a person reads it; never any part of a body or header.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Who asked for it, when it was made outside the retry budget. The store fills it in.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<Arc<str>>,
    /// Made before the delivery's own time, to see whether the endpoint is well again: not one of its retries.
    #[serde(rename = "p", default, skip_serializing_if = "std::ops::Not::not")]
    pub probe: bool,
    /// For how long the receiver asked to be left alone.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Duration>,
}

impl Attempt {
    /// Whether its delivery may be attempted before its own time, as far as the receiver's wish goes.
    pub fn allows_another_at(&self, now: UnixMillis) -> bool {
        self.retry_after.is_none_or(|asked| self.at + self.duration + asked <= now)
    }
}

/// That somebody asked for something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// A user, or `WebhookReplay/` and a name.
    #[serde(rename = "b")]
    pub by: Arc<str>,
    /// When.
    #[serde(rename = "a")]
    pub at: UnixMillis,
}

/// That a finished delivery waits for one attempt more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Who asked, and when.
    #[serde(rename = "k")]
    pub asked: Asked,
    /// Whether it had arrived before: it is not counted as arrived again.
    #[serde(rename = "s", default)]
    pub had_arrived: bool,
    /// Set when a replay put it here.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<PutByReplay>,
}

/// Which replay put a delivery among those that wait, and what it was before: what it is again when the replay is
/// cancelled first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutByReplay {
    /// Which.
    #[serde(rename = "i")]
    pub id: ReplayId,
    /// Success or Failed.
    #[serde(rename = "s")]
    pub state: State,
    /// Why it was Failed.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<EndReason>,
    /// When it had become final.
    #[serde(rename = "z", default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<UnixMillis>,
}

/// What a delivery's outcome counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A real event.
    Event,
    /// A test: seen, never counted.
    Test,
    /// A redelivery: a failure is not counted again, nor is a success if it had arrived before.
    Redelivery {
        /// It had arrived before.
        had_arrived: bool,
    },
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its name; sorts by acceptance.
    #[serde(rename = "n")]
    pub name: DeliveryName,
    /// For which Webhook.
    #[serde(rename = "w")]
    pub webhook: WebhookRef,
    /// Which event.
    #[serde(rename = "u")]
    pub event: EventUid,
    /// The `CloudEvents` id.
    #[serde(rename = "i")]
    pub event_id: Arc<str>,
    /// The `CloudEvents` type.
    #[serde(rename = "y")]
    pub event_type: Arc<str>,
    /// Whether it is a test.
    #[serde(rename = "t", default)]
    pub test: bool,
    /// When the event was accepted.
    #[serde(rename = "a")]
    pub accepted_at: UnixMillis,
    /// Where it stands.
    #[serde(rename = "s")]
    pub state: State,
    /// When the next attempt is due, while not final.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub due: Option<UnixMillis>,
    /// Why it is Failed.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<EndReason>,
    /// Every attempt, oldest first.
    #[serde(rename = "x", default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// When it became final; none while it is not, or when a program wrote it that did not keep this.
    #[serde(rename = "z", default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<UnixMillis>,
    /// Set while it waits for an attempt that somebody asked for; its state is then Pending.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub redelivery: Option<Waiting>,
    /// Who had the event's payload and the answers erased, and when.
    #[serde(rename = "g", default, skip_serializing_if = "Option::is_none")]
    pub expunged: Option<Asked>,
    /// The `CloudEvents` source; none when it was erased, or when a program wrote it that did not keep this.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub event_source: Option<Arc<str>>,
}

impl Delivery {
    /// Attempts after the first, without probes and without those that somebody asked for.
    pub fn retry_count(&self) -> usize {
        let counts = |attempt: &&Attempt| attempt.asked_by.is_none() && !attempt.probe;
        self.attempts.iter().filter(counts).count().saturating_sub(1)
    }

    /// Attempts without probes.
    pub fn attempts_made(&self) -> usize {
        self.attempts.iter().filter(|attempt| !attempt.probe).count()
    }

    /// Takes up an attempt. Of probes the last few are kept, since an outage may take many; of all, the newest.
    pub fn attempted(&mut self, attempt: Attempt) {
        let is_probe = |attempt: &Attempt| attempt.probe;
        if attempt.probe
            && self.attempts.iter().filter(|attempt| attempt.probe).count() >= PROBES_KEPT
            && let Some(oldest) = self.attempts.iter().position(is_probe)
        {
            self.attempts.remove(oldest);
        }
        if self.attempts.len() >= ATTEMPTS_KEPT {
            self.attempts.drain(..=self.attempts.len() - ATTEMPTS_KEPT);
        }
        self.attempts.push(attempt);
    }

    /// Whether it has arrived, as far as the attempts that are kept tell.
    pub fn has_arrived(&self) -> bool {
        let arrived = |attempt: &Attempt| attempt.status.is_some_and(|status| (200..300).contains(&status));
        self.state == State::Success || self.attempts.iter().any(arrived)
    }

    /// The replay that put it among those that wait, while it waits.
    pub fn put_by(&self) -> Option<&PutByReplay> {
        self.redelivery.as_ref().and_then(|waiting| waiting.replay.as_ref())
    }

    /// What its next outcome counts as.
    pub fn purpose(&self) -> Purpose {
        match &self.redelivery {
            _ if self.test => Purpose::Test,
            Some(waiting) => Purpose::Redelivery { had_arrived: waiting.had_arrived },
            None => Purpose::Event,
        }
    }

    /// Since when nothing happens any more: what retention by age counts from.
    pub fn quiet_since(&self) -> UnixMillis {
        let last = self.attempts.last().map(|attempt| attempt.at + attempt.duration);
        self.ended_at.max(last).unwrap_or(self.accepted_at).max(self.accepted_at)
    }

    /// Bytes that it is counted with in [`Usage`], without its event: an estimate that follows from what it
    /// holds, so that the same number is taken away when it goes. Another formula needs a new format version.
    pub fn weight(&self) -> u64 {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let attempt =
            |attempt: &Attempt| 48 + text(&attempt.body) + text(&attempt.content_type) + text(&attempt.error);
        let attempts: usize = self.attempts.iter().map(attempt).sum();
        (320 + self.event_id.len() + self.event_type.len() + attempts) as u64
    }
}

/// A delivery that may be attempted now, by the claimant only.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The log line as it stands.
    pub delivery: Delivery,
    /// What to send.
    pub event: Arc<Event>,
}

/// What follows from an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Done.
    Success,
    /// Try again then.
    Retry(UnixMillis),
    /// Given up.
    Failed(EndReason),
}

/// The end of a claim, or of a test's attempt.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which delivery.
    pub name: DeliveryName,
    /// Of which Webhook.
    pub webhook: WebhookUid,
    /// None: it ended without an attempt (expired, interrupted).
    pub attempt: Option<Attempt>,
    /// What follows.
    pub next: Next,
    /// Set when this attempt disables the Webhook: 410, or it has failed for too long.
    pub disable: Option<Disabled>,
    /// Of a failed attempt: what it says of the endpoint.
    pub failing: Option<Failing>,
    /// When this became known.
    pub at: UnixMillis,
}

/// Asks for one attempt more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redelivery {
    /// Of which delivery.
    pub name: DeliveryName,
    /// It must be of this namespace.
    pub namespace: Namespace,
    /// Who asks: a user, or `WebhookReplay/` and a name.
    pub by: Arc<str>,
    /// When it is due.
    pub at: UnixMillis,
}

/// What became of a [`Redelivery`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redelivered {
    /// It waits for its attempt.
    Queued,
    /// It is Pending or Retrying: it is attempted anyway.
    NotFinished,
    /// There is no such delivery in this namespace.
    NotFound,
    /// Its payload was erased.
    Expunged,
    /// It is a test, which makes one attempt only.
    Test,
}

/// Asks for an event's payload and answers to be erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expunge {
    /// Any delivery of the event.
    pub name: DeliveryName,
    /// It must be of this namespace.
    pub namespace: Namespace,
    /// Who asks.
    pub by: Arc<str>,
    /// When.
    pub at: UnixMillis,
}

/// What became of an [`Expunge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expunged {
    /// The payload and all answers of the event are erased.
    Done {
        /// Deliveries of the event that were not erased before.
        deliveries: usize,
        /// Those of them that were unfinished and ended by it.
        ended: usize,
    },
    /// There is no such delivery in this namespace.
    NotFound,
}

/// What a namespace uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of events and log lines, before compression and without what the engine needs beside them.
    #[serde(rename = "b", default)]
    pub bytes: u64,
    /// Log lines.
    #[serde(rename = "d", default)]
    pub deliveries: u64,
    /// Bytes of the events of what waits, counted for each delivery; see [`Summary::pending_bytes`].
    #[serde(skip)]
    pub pending_bytes: u64,
}

/// What is kept of the log. What waits is always kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// A finished delivery goes so long after its end.
    pub max_age: Duration,
    /// While a namespace uses more, its oldest finished deliveries go.
    pub max_bytes: u64,
}

impl Retention {
    /// Everything is kept.
    pub const FOREVER: Self = Self { max_age: Duration::MAX, max_bytes: u64::MAX };
}

/// That a Webhook is disabled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disabled {
    /// Of which generation of the spec; a newer one is not disabled.
    #[serde(rename = "g")]
    pub generation: i64,
    /// Since when.
    #[serde(rename = "a")]
    pub at: UnixMillis,
    /// Why.
    #[serde(rename = "r")]
    pub reason: DisableReason,
}

/// Why a Webhook is disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DisableReason {
    /// The endpoint answered 410.
    Gone,
    /// It failed without a break for the configured time.
    Failing,
}

/// The numbers of one Webhook, kept with every commit, so that status never needs a scan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Which Webhook.
    #[serde(rename = "w")]
    pub webhook: WebhookRef,
    /// Deliveries in Pending or Retrying (tests not counted).
    #[serde(rename = "p", default)]
    pub pending: u64,
    /// Their events' bytes.
    #[serde(rename = "pb", default)]
    pub pending_bytes: u64,
    /// Deliveries that ended as Failed (tests not counted).
    #[serde(rename = "f", default)]
    pub failure_count: u64,
    /// Deliveries that ended as Success (tests not counted).
    #[serde(rename = "sc", default)]
    pub success_count: u64,
    /// Failed attempts in a row (tests not counted).
    #[serde(rename = "c", default)]
    pub consecutive_failures: u64,
    /// Whether a delivery has ended as Failed since the last success, or attempts had failed when the Webhook was
    /// enabled again: only a success says that the endpoint is well.
    #[serde(rename = "fe", default)]
    pub failed_since_success: bool,
    /// First failed attempt since the last success.
    #[serde(rename = "fs", default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<UnixMillis>,
    /// Last attempt of a real event.
    #[serde(rename = "lt", default, skip_serializing_if = "Option::is_none")]
    pub last_triggered: Option<UnixMillis>,
    /// Last success of a real event.
    #[serde(rename = "ls", default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<UnixMillis>,
    /// Whether a test was sent.
    #[serde(rename = "ts", default)]
    pub test_sent: bool,
    /// Whether and since when it is disabled.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<Disabled>,
    /// Failures of the endpoint since its last success, and whether attempts are spaced.
    #[serde(rename = "tr", default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Box<Trouble>>,
    /// The last failed attempt since the last success.
    #[serde(rename = "lf", default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Box<LastFailure>>,
    /// Which namespace it is in; none: not known.
    #[serde(rename = "nu", default, skip_serializing_if = "Option::is_none")]
    pub namespace_uid: Option<NamespaceUid>,
    /// Erasing it has begun: nobody takes over what is left.
    #[serde(rename = "er", default, skip_serializing_if = "std::ops::Not::not")]
    pub erasing: bool,
}

impl Summary {
    /// A Webhook that nothing has happened to.
    pub fn new(webhook: WebhookRef) -> Self {
        Self {
            webhook,
            pending: 0,
            pending_bytes: 0,
            failure_count: 0,
            success_count: 0,
            consecutive_failures: 0,
            failed_since_success: false,
            failing_since: None,
            last_triggered: None,
            last_success: None,
            test_sent: false,
            disabled: None,
            trouble: None,
            last_failure: None,
            namespace_uid: None,
            erasing: false,
        }
    }

    /// Takes an outcome into account. `purpose` and `bytes` are of its delivery and event.
    pub fn apply(&mut self, outcome: &Outcome, purpose: Purpose, bytes: u64) {
        let at = outcome.attempt.as_ref().map(|attempt| attempt.at);
        let (arrives, fails) = match purpose {
            Purpose::Test => {
                self.test_sent |= at.is_some();
                return;
            }
            Purpose::Event => (1, 1),
            Purpose::Redelivery { had_arrived } => (u64::from(!had_arrived), 0),
        };
        self.last_triggered = self.last_triggered.max(at);
        let ended = match &outcome.next {
            Next::Success => {
                self.success_count += arrives;
                self.consecutive_failures = 0;
                self.failed_since_success = false;
                self.failing_since = None;
                self.last_success = self.last_success.max(at);
                self.last_failure = None;
                if let (Some(trouble), Some(at)) = (self.trouble.take(), at) {
                    self.trouble = trouble.after_success(at, outcome.at).map(Box::new);
                }
                true
            }
            Next::Retry(_) => {
                self.attempt_failed(outcome);
                false
            }
            Next::Failed(_) => {
                self.failure_count += fails;
                self.failed_since_success |= at.is_some();
                self.attempt_failed(outcome);
                true
            }
        };
        if ended {
            self.pending = self.pending.saturating_sub(1);
            self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
        }
        if let Some(disabled) = &outcome.disable {
            self.disabled = Some(disabled.clone());
        }
    }

    /// Takes into account that a finished delivery waits for one attempt more.
    pub fn redelivers(&mut self, bytes: u64) {
        self.pending += 1;
        self.pending_bytes += bytes;
    }

    /// Takes into account that such a delivery is what it was before, without an attempt.
    pub fn recalls(&mut self, bytes: u64) {
        self.pending = self.pending.saturating_sub(1);
        self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
    }

    /// Takes into account that it is enabled again: its failures in a row are forgotten.
    pub fn enable(&mut self) {
        self.disabled = None;
        self.failed_since_success |= self.consecutive_failures > 0;
        self.consecutive_failures = 0;
        self.failing_since = None;
        self.trouble = None;
    }

    /// Takes into account that a Webhook of the same namespace and name, made anew, goes on with what this one left,
    /// as if the spec had changed.
    pub fn succeed_to(&mut self, webhook: WebhookRef) {
        self.webhook = webhook;
        self.trouble = None;
        if self.disabled.is_some() {
            self.enable();
        }
    }

    /// Takes into account that nothing waits any more.
    #[must_use]
    pub fn discarded(&self) -> Self {
        Self { pending: 0, pending_bytes: 0, ..self.clone() }
    }

    fn attempt_failed(&mut self, outcome: &Outcome) {
        let Some(attempt) = &outcome.attempt else { return };
        self.consecutive_failures += 1;
        self.failing_since = self.failing_since.or(Some(attempt.at));
        let Some(says) = &outcome.failing else { return };
        self.last_failure = Some(Box::new(LastFailure { kind: says.kind, error: attempt.error.clone() }));
        let failure = Failure {
            name: outcome.name,
            began: attempt.at,
            ended: outcome.at,
            last_success: self.last_success,
            says,
        };
        self.trouble =
            Trouble::after_failure(self.trouble.take().map(|trouble| *trouble), &failure).map(Box::new);
    }
}
