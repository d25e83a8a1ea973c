//! `Webhook`: where the events of a namespace go.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a Webhook should do.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "hookwright.dev",
    version = "v1alpha1",
    kind = "Webhook",
    namespaced,
    status = "WebhookStatus",
    derive = "PartialEq",
    shortname = "hook",
    category = "hookwright",
    selectable = ".spec.active"
)]
pub struct WebhookSpec {
    /// Where to POST.
    pub url: String,
    /// Which event types.
    pub event_types: Vec<String>,
    /// Headers sent along.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
    /// false is a pause.
    #[serde(default = "defaults::active")]
    pub active: bool,
    /// Retries after the first attempt.
    #[serde(default = "defaults::max_retries")]
    pub max_retries: i32,
    /// How the time between attempts grows.
    #[serde(default)]
    pub backoff: Backoff,
    /// For one attempt.
    #[serde(default = "defaults::timeout")]
    pub timeout: String,
    /// Attempts under way at once.
    #[serde(default = "defaults::max_in_flight")]
    pub max_in_flight: i32,
    /// At most so many attempts in a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// HMAC signatures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<Signing>,
    /// Trust and identity towards the receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Deliveries kept in status.
    #[serde(default = "defaults::history_limit")]
    pub history_limit: i32,
}

/// A header with a value, or with a reference to one.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// The header's name.
    pub name: String,
    /// The value itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where the value is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<HeaderSource>,
}

/// Where a header's value is.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderSource {
    /// A key of a Secret of the same namespace.
    pub secret_key_ref: SecretKeyRef,
}

/// A key of a Secret of the same namespace; the Secret carries the label `hookwright.dev/use: "true"`.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    pub name: String,
    /// The key in its data.
    pub key: String,
}

/// How the time between attempts grows.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    /// Before the first retry.
    #[serde(default = "defaults::initial")]
    pub initial: String,
    /// Each next wait is so many times the one before.
    #[serde(default = "defaults::factor")]
    pub factor: i32,
    /// No wait is longer.
    #[serde(default = "defaults::max")]
    pub max: String,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: defaults::initial(), factor: defaults::factor(), max: defaults::max() }
    }
}

/// At most so many attempts in a time.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Attempts.
    pub requests: i32,
    /// In this time.
    #[serde(default = "defaults::per")]
    pub per: String,
    /// So many at once after a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<i32>,
}

/// HMAC signatures by Standard Webhooks.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Signing {
    /// Every key signs.
    pub secret_refs: Vec<SecretKeyRef>,
}

/// Trust and identity towards the receiver.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// The CA of the receiver's certificate, in place of the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,
    /// A `kubernetes.io/tls` Secret shown to the receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_ref: Option<SecretRef>,
}

/// Where a CA bundle is.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaRef {
    /// ConfigMap or Secret.
    pub kind: CaKind,
    /// Its name.
    pub name: String,
    /// The key with PEM certificates.
    #[serde(default = "defaults::ca_key")]
    pub key: String,
}

/// What holds a CA bundle.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CaKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret with the label.
    Secret,
}

/// A Secret of the same namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// The Secret's name.
    pub name: String,
}

/// What Hookwright saw.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WebhookStatus {
    /// The generation that this status speaks of; -1 before the first look.
    pub observed_generation: i64,
    /// Conditions, keyed by type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Deliveries that ended as Failed.
    pub failure_count: i64,
    /// Failed attempts in a row, over all deliveries.
    pub consecutive_failures: i64,
    /// Deliveries that wait or are under way.
    pub pending_deliveries: i64,
    /// Those of them that are held.
    pub held_deliveries: i64,
    /// What maxRetries and backoff add up to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gives_up_after: Option<String>,
    /// Last attempt of a real event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_triggered: Option<String>,
    /// Last attempt that succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_success: Option<String>,
    /// Whether a test was sent.
    pub test_payload_sent: bool,
    /// Of the ed25519 key that signs every delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// The value of the annotation `hookwright.dev/requestedAt` that was acted on last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
    /// Newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deliveries: Vec<DeliverySummary>,
}

/// One delivery, as the status shows it.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliverySummary {
    /// Its name, and the `webhook-id` of every attempt.
    pub id: String,
    /// The CloudEvents id.
    pub event_id: String,
    /// The CloudEvents type.
    pub event_type: String,
    /// Where it stands.
    pub state: DeliveryState,
    /// Whether it is a test.
    pub test: bool,
    /// HTTP status of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_status: Option<i32>,
    /// Retries made.
    pub retry_count: i32,
    /// When the next attempt is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_retry_at: Option<String>,
    /// Why it failed, or is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// Start of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

pub(crate) mod defaults {
    pub(crate) fn active() -> bool {
        true
    }
    pub(crate) fn max_retries() -> i32 {
        3
    }
    pub(crate) fn initial() -> String {
        "10s".to_owned()
    }
    pub(crate) fn factor() -> i32 {
        6
    }
    pub(crate) fn max() -> String {
        "24h".to_owned()
    }
    pub(crate) fn timeout() -> String {
        "15s".to_owned()
    }
    pub(crate) fn max_in_flight() -> i32 {
        64
    }
    pub(crate) fn per() -> String {
        "1s".to_owned()
    }
    pub(crate) fn history_limit() -> i32 {
        10
    }
    pub(crate) fn ca_key() -> String {
        "ca.crt".to_owned()
    }
}
