//! The status of a `Webhook`.

#![expect(clippy::doc_markdown, reason = "these comments are what kubectl explain shows")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// What Hookwright saw. Written at most about once in 5 seconds, at once when it first changes; at most 8 KiB.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WebhookStatus {
    /// The generation of the spec that this status speaks of; -1 before the first look.
    #[schemars(range(min = -1))]
    pub observed_generation: i64,

    /// What is done with its deliveries now: Active (they are sent), Paused (spec.active is false), Disabled (see the
    /// condition), NotReady (see the condition Ready) or Probing (its endpoint fails, and is tried from time to time). All
    /// but Active hold deliveries back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<WebhookState>,

    /// Ready: the spec is accepted, its references are found, the route is live; it does not follow the endpoint's
    /// health. EndpointHealthy: the recent outcome of deliveries; Unknown before the first, False from five failed
    /// attempts in a row on or when a delivery was given up, True again with the next success. Present only while
    /// True: Reconciling; Stalled (only a change of the spec or of what it refers to can help); Disabled (the
    /// endpoint answered 410 Gone, or failed without a break for too long: nothing is sent until the spec is
    /// changed or the annotation hookwright.dev/requestedAt is set anew).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,

    /// Deliveries that ended as Failed. Tests are not counted.
    #[schemars(range(min = 0))]
    pub failure_count: i64,

    /// Failed attempts in a row, over all deliveries. A success sets it to 0. Tests are not counted.
    #[schemars(range(min = 0))]
    pub consecutive_failures: i64,

    /// Deliveries that wait or are under way, those that are Held among them.
    #[schemars(range(min = 0))]
    pub pending_deliveries: i64,

    /// Of the pending ones, those that are Held: the Webhook is paused, disabled or not ready, or nothing
    /// arrives at its endpoint, and one attempt at a time looks whether it is well again.
    #[schemars(range(min = 0))]
    pub held_deliveries: i64,

    /// What maxRetries and backoff add up to: for how long a delivery is tried. Waiting while it is Held, the
    /// attempts themselves and the random part of the backoff are not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub gives_up_after: Option<String>,

    /// Start of the last attempt of a real event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub last_triggered: Option<String>,

    /// Start of the last attempt of a real event that succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub last_success: Option<String>,

    /// Whether a test was ever sent (see WebhookTest).
    pub test_payload_sent: bool,

    /// The ed25519 public key (whpk_ and base64) that verifies the v1a signature of every request. It is this
    /// Webhook's own, and a Webhook of the same namespace and name that is created anew keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub public_key: Option<String>,

    /// The value of the annotation hookwright.dev/requestedAt that was acted on last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub last_handled_reconcile_at: Option<String>,

    /// The newest deliveries, newest first, at most historyLimit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 25), extend("x-kubernetes-list-type" = "atomic"))]
    pub deliveries: Vec<DeliverySummary>,
}

impl Default for WebhookStatus {
    fn default() -> Self {
        Self {
            observed_generation: -1,
            state: None,
            conditions: Vec::new(),
            failure_count: 0,
            consecutive_failures: 0,
            pending_deliveries: 0,
            held_deliveries: 0,
            gives_up_after: None,
            last_triggered: None,
            last_success: None,
            test_payload_sent: false,
            public_key: None,
            last_handled_reconcile_at: None,
            deliveries: Vec::new(),
        }
    }
}

/// What is done with the deliveries of a Webhook.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WebhookState {
    /// They are sent.
    Active,
    /// They are Held: spec.active is false.
    Paused,
    /// They are Held: it is disabled.
    Disabled,
    /// They are Held: the spec, or what it refers to, cannot be used.
    NotReady,
    /// Its endpoint fails: it is tried from time to time, and what is due meanwhile is Held.
    Probing,
}

/// One delivery: one event for this Webhook.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliverySummary {
    /// Its name in the delivery log, and the webhook-id header of every attempt.
    #[schemars(length(max = 36))]
    pub id: String,
    /// The CloudEvents id of its event, cut to 64 characters; what cannot be seen in it is written as `\u{...}`.
    #[schemars(length(max = 64))]
    pub event_id: String,
    /// The CloudEvents type of its event, cut and written in the same way.
    #[schemars(length(max = 64))]
    pub event_type: String,
    /// Pending (waits for its first attempt, or is in it), Retrying (failed at least once, waits for the next
    /// attempt), Held (waits for the Webhook), Success (arrived) or Failed (given up).
    pub state: DeliveryState,
    /// Whether it is a test.
    pub test: bool,
    /// HTTP status of the last attempt, if there was an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 999))]
    pub response_status: Option<i32>,
    /// Attempts after the first, without those that somebody asked for.
    #[schemars(range(min = 0))]
    pub retry_count: i32,
    /// When the next attempt is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub next_retry_at: Option<String>,
    /// Why the last attempt failed, or why it is Held, cut to 160 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 160))]
    pub error_message: Option<String>,
    /// Start of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub started_at: Option<String>,
    /// Duration of the last attempt, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub duration_ms: Option<i64>,
}

/// Where a delivery stands. `Held` is derived from the Webhook, never stored.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DeliveryState {
    /// Waits for its first attempt, or is in it.
    Pending,
    /// Failed at least once, waits for the next attempt.
    Retrying,
    /// Waits for the Webhook: paused, disabled, not ready or probing.
    Held,
    /// Arrived.
    Success,
    /// Given up.
    Failed,
}
