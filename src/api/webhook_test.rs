//! `WebhookTest`: one test delivery, on demand.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What to test.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "hookwright.dev",
    version = "v1alpha1",
    kind = "WebhookTest",
    namespaced,
    status = "WebhookTestStatus",
    derive = "PartialEq",
    shortname = "hooktest",
    category = "hookwright"
)]
pub struct WebhookTestSpec {
    /// The Webhook, of the same namespace.
    pub webhook_ref: WebhookName,
    /// The event's type.
    #[serde(default = "default_event_type")]
    pub event_type: String,
    /// The event's data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<serde_json::Value>,
    /// Delete this object so many seconds after it has finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<i32>,
}

fn default_event_type() -> String {
    "webhook.test".to_owned()
}

/// A Webhook of the same namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookName {
    /// The Webhook's name.
    pub name: String,
}

/// What came of it.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WebhookTestStatus {
    /// The generation that this status speaks of; -1 before the first look.
    pub observed_generation: i64,
    /// Conditions, keyed by type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The delivery's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery_id: Option<String>,
    /// HTTP status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<i32>,
    /// Bytes of the answer's body, as far as it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_length: Option<i64>,
    /// Content type of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_content_type: Option<String>,
    /// Duration of the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<i64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// Start of the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// End of the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
}
