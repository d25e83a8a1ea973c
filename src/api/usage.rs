//! What a namespace uses, as `delivery.hookwright.dev/v1alpha1` shows it.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The limits, which are the same for each namespace.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "delivery.hookwright.dev",
    version = "v1alpha1",
    kind = "Usage",
    plural = "usages",
    doc = "A Usage says what a namespace uses of its limits. Each namespace with a Webhook has one, called current. It \
           is read-only: whoever runs Hookwright sets the limits.",
    namespaced,
    status = "UsageStatus",
    derive = "PartialEq"
)]
pub struct UsageSpec {
    /// What may be published; beyond, publishing is a 429.
    pub quota: UsageQuota,
    /// What is kept of the delivery log. What waits is always kept.
    pub retention: UsageRetention,
}

/// What may be published.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageQuota {
    /// Most bytes of events that wait. An event counts once for each Webhook that it waits for.
    pub pending_bytes: i64,
    /// Events that may be published in a second; ten times as many at once after a pause.
    pub events_per_second: i64,
}

/// What is kept.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageRetention {
    /// While events and log have more bytes, the oldest finished deliveries go.
    pub bytes: i64,
    /// A finished delivery goes so long after its end.
    #[schemars(length(max = 64))]
    pub age: String,
}

/// What is used at this moment.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageStatus {
    /// Bytes of events that wait, counted once for each Webhook.
    pub pending_bytes: i64,
    /// Bytes of events and log, before compression.
    pub log_bytes: i64,
    /// Deliveries in the log, waiting and finished.
    pub deliveries: i64,
}
