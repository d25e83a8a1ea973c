//! What a store keeps and hands out.
//!
//! The serialised types are the store's format: a new field needs `#[serde(default)]`, a changed meaning a new
//! format version (see `embedded::format`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::event::Attributes;
use crate::model::ids::{DeliveryName, EventUid, Namespace, WebhookRef, WebhookUid};
use crate::model::time::UnixMillis;

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
}

impl Delivery {
    /// Attempts after the first.
    pub fn retry_count(&self) -> usize {
        self.attempts.len().saturating_sub(1)
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
        }
    }

    /// Takes an outcome into account. `test` and `bytes` are of its delivery and event.
    pub fn apply(&mut self, outcome: &Outcome, test: bool, bytes: u64) {
        let at = outcome.attempt.as_ref().map(|attempt| attempt.at);
        if test {
            self.test_sent |= at.is_some();
            return;
        }
        self.last_triggered = self.last_triggered.max(at);
        let ended = match &outcome.next {
            Next::Success => {
                self.success_count += 1;
                self.consecutive_failures = 0;
                self.failed_since_success = false;
                self.failing_since = None;
                self.last_success = self.last_success.max(at);
                true
            }
            Next::Retry(_) => {
                self.attempt_failed(at);
                false
            }
            Next::Failed(_) => {
                self.failure_count += 1;
                self.failed_since_success |= at.is_some();
                self.attempt_failed(at);
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

    fn attempt_failed(&mut self, at: Option<UnixMillis>) {
        if let Some(at) = at {
            self.consecutive_failures += 1;
            self.failing_since = self.failing_since.or(Some(at));
        }
    }
}
