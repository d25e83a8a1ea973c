//! The kinds of `delivery.hookwright.dev/v1alpha1`, which no CRD carries: Hookwright serves them itself.

#![expect(clippy::doc_markdown, reason = "these comments are what kubectl explain shows")]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::webhook::DeliveryState;

/// One event for one Webhook.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "delivery.hookwright.dev",
    version = "v1alpha1",
    kind = "Delivery",
    plural = "deliveries",
    doc = "A Delivery is a line of the delivery log: one event for one Webhook, and every attempt to send it. Its name \
           is the webhook-id header of every attempt. The log is read-only, and is sorted newest first.",
    namespaced,
    status = "DeliveryStatus",
    derive = "PartialEq",
    shortname = "dlv"
)]
pub struct DeliverySpec {
    /// The Webhook that it is for.
    pub webhook_ref: DeliveryWebhook,
    /// The CloudEvents id of the event. With the event's source it names the event across Webhooks.
    #[schemars(length(max = 1024))]
    pub event_id: String,
    /// The CloudEvents source of the event. Not there when it was erased, or when the event was accepted by a version of
    /// Hookwright that did not keep it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub event_source: Option<String>,
    /// The CloudEvents type of the event.
    #[schemars(length(max = 256))]
    pub event_type: String,
    /// Whether it is a test (see WebhookTest).
    pub test: bool,
}

/// A Webhook of the same namespace, by name and identity.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryWebhook {
    /// The Webhook's name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its uid: a Webhook of the same name that is created anew has another.
    #[schemars(length(max = 36))]
    pub uid: String,
}

/// What became of it so far.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryStatus {
    /// Pending (waits for its first attempt, or is in it), Retrying (failed at least once, waits for the next
    /// attempt), Held (waits for the Webhook), Success (arrived) or Failed (given up).
    pub state: DeliveryState,
    /// Why it is Held (Paused, Disabled, NotReady, EndpointUnhealthy) or Failed (RetriesExhausted, Gone,
    /// AddressDenied, Expired, TestFailed, Interrupted, Expunged, RedeliveryFailed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// Attempts after the first, without those that somebody asked for.
    #[schemars(range(min = 0))]
    pub retry_count: i32,
    /// When the next attempt is due, while there is one to come. A Held delivery waits for the Webhook as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub next_retry_at: Option<String>,
    /// HTTP status of the last attempt, if there was an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub last_response_status: Option<i32>,
    /// Every attempt, oldest first. Bodies are in the subresource payload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "atomic"))]
    pub attempts: Vec<DeliveryAttempt>,
    /// That somebody asked for one attempt more, while it waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redelivery: Option<DeliveryRedelivery>,
    /// That somebody had the event's payload and the answers erased: it cannot be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expunged: Option<DeliveryExpunged>,
}

/// Who asked for one attempt more, and when.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryRedelivery {
    /// A user, or WebhookReplay/ and a name.
    #[schemars(length(max = 1024))]
    pub requested_by: String,
    /// When.
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub requested_at: String,
}

/// Who had the payload erased, and when.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryExpunged {
    /// A user.
    #[schemars(length(max = 1024))]
    pub by: String,
    /// When.
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub at: String,
}

/// One attempt.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryAttempt {
    /// When it started.
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub started_at: String,
    /// How long it took, in milliseconds.
    #[schemars(range(min = 0))]
    pub duration_ms: i64,
    /// HTTP status, if there was an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub response_status: Option<i32>,
    /// Why it failed, or what became of an answer whose status had arrived (cut, late, reset).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub error_message: Option<String>,
    /// Bytes of the answer that were read, at most 65536; not there when there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub response_length: Option<i64>,
    /// Content type of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub content_type: Option<String>,
    /// Who asked for it, when it was made outside the retry budget: a user, or WebhookReplay/ and a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub requested_by: Option<String>,
    /// Made before its time, to see whether the endpoint is well again: not one of the retries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probe: bool,
}
