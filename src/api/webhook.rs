//! `Webhook`: where the events of a namespace go.

#![expect(clippy::duplicated_attributes, reason = "clippy takes the columns of a kind for one attribute")]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;
pub use super::webhook_status::{DeliveryState, DeliverySummary, WebhookState, WebhookStatus};

/// What is sent where, and how.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "hookwright.dev",
    version = "v1alpha1",
    kind = "Webhook",
    doc = "A Webhook is a place that wants events: Hookwright delivers every event that is published to the \
           Webhook's namespace and whose type it subscribes to, over HTTPS, signed, at least once, with retries. \
           Other programs have a kind of this name too: say webhooks.hookwright.dev or hook.",
    namespaced,
    status = "WebhookStatus",
    derive = "PartialEq",
    shortname = "hook",
    category = "hookwright",
    selectable = ".spec.active",
    printcolumn(name = "URL", type_ = "string", json_path = ".spec.url", description = "Where events go"),
    printcolumn(
        name = "READY",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the spec is accepted, its references are found and the route is live"
    ),
    printcolumn(
        name = "STATE",
        type_ = "string",
        json_path = ".status.state",
        description = "Active, Paused, Disabled, NotReady or Probing: whether deliveries are sent, or why not"
    ),
    printcolumn(
        name = "HEALTHY",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="EndpointHealthy")].status"#,
        description = "Whether deliveries arrive; Unknown before the first"
    ),
    printcolumn(
        name = "FAILURES",
        type_ = "integer",
        json_path = ".status.failureCount",
        description = "Deliveries that ended as Failed"
    ),
    printcolumn(
        name = "LAST TRIGGERED",
        type_ = "date",
        json_path = ".status.lastTriggered",
        description = "Since the last attempt of a real event"
    ),
    printcolumn(
        name = "AGE",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Since it was created"
    ),
    printcolumn(
        name = "EVENT TYPES",
        type_ = "string",
        json_path = ".spec.eventTypes",
        description = "Which events it gets",
        priority = 1
    ),
    printcolumn(
        name = "PENDING",
        type_ = "integer",
        json_path = ".status.pendingDeliveries",
        description = "Deliveries that wait or are under way",
        priority = 1
    ),
    printcolumn(
        name = "STATUS",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        description = "What is well, or what is wrong and how to mend it",
        priority = 1
    )
)]
pub struct WebhookSpec {
    /// Where to POST: an https URL of at most 2048 characters, without user information (credentials belong into
    /// headers from Secrets). Redirects are not followed. Addresses that belong to the cluster, to private
    /// networks or to cloud metadata are refused, however they are spelled or resolved, unless the platform team
    /// allowed them. A change is in force within a second, also for deliveries that wait for a retry.
    #[schemars(length(min = 1, max = 2048), extend("x-kubernetes-validations" = rules::url()))]
    pub url: String,

    /// The event types it gets, 1 to 64: exact (`order.created`), a prefix (`invoice.*` is `invoice.paid` and
    /// `invoice.a.b`, not `invoice`), or `*` for all.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 256)),
        extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = rules::event_type_patterns())
    )]
    pub event_types: Vec<String>,

    /// Headers sent along with every request, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"],
            "x-kubernetes-validations" = rules::headers()
        )
    )]
    pub headers: Vec<Header>,

    /// `false` is a pause: events are still accepted, their deliveries are Held, and go out, oldest first, once
    /// it is `true` again.
    #[serde(default = "defaults::active")]
    pub active: bool,

    /// Retries after the first attempt, 0 to 20. `status.givesUpAfter` says what they add up to.
    #[serde(default = "defaults::max_retries")]
    #[schemars(range(min = 0, max = 20))]
    pub max_retries: i32,

    /// How long it waits before each retry. By default 10s, 1m, 6m, 36m, 3.6h, 21.6h, then always 24h; 0 to 10 %
    /// are added at random. A later time in the receiver's `Retry-After` is honoured, up to `max`.
    #[serde(default)]
    pub backoff: Backoff,

    /// Time for one attempt, from connecting to the end of the answer: 1s to 60s.
    #[serde(default = "defaults::timeout")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-validations" =
            rules::duration("1s", "60s", "timeout must be a duration from 1s to 60s, such as 15s"))
    )]
    pub timeout: String,

    /// Attempts under way at the same time, 1 to 1024.
    #[serde(default = "defaults::max_in_flight")]
    #[schemars(range(min = 1, max = 1024))]
    pub max_in_flight: i32,

    /// How many attempts may be started in a time. Without it there is no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,

    /// HMAC-SHA256 signatures by Standard Webhooks (`v1`), beside the ed25519 signature (`v1a`) that every request
    /// carries and that `status.publicKey` verifies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<Signing>,

    /// Trust in and identity towards the receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,

    /// How many of the newest deliveries `status.deliveries` shows, 0 to 25; fewer when they would not fit into
    /// 8 KiB of status.
    #[serde(default = "defaults::history_limit")]
    #[schemars(range(min = 0, max = 25))]
    pub history_limit: i32,
}

/// A header with its value, or with the place where its value is.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::header()))]
pub struct Header {
    /// The header's name, at most 128 characters. Names that Hookwright or HTTP sets itself are refused (Host,
    /// Content-Type, User-Agent, Webhook-*, Ce-*, ...). Upper and lower case are the same.
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-validations" = rules::header_name()))]
    pub name: String,
    /// The value itself: printable ASCII, at most 4096 characters. For what must stay secret use `valueFrom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096), extend("x-kubernetes-validations" = rules::header_value()))]
    pub value: Option<String>,
    /// Where the value is. It appears in no status, log or Event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<HeaderSource>,
}

/// Where a header's value is.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderSource {
    /// A key of a Secret of the same namespace. The value is printable ASCII of at most 4096 bytes; white space at
    /// its ends, such as a final line break, is not sent.
    pub secret_key_ref: SecretKeyRef,
}

/// A key of a Secret of the same namespace. The Secret must carry the label `hookwright.dev/use: "true"`.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = rules::name()))]
    pub name: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = rules::key()))]
    pub key: String,
}

/// How the time between attempts grows.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::backoff()))]
pub struct Backoff {
    /// The wait before the first retry, 100ms to 24h.
    #[serde(default = "defaults::initial")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-validations" =
            rules::duration("100ms", "24h", "initial must be a duration from 100ms to 24h, such as 10s"))
    )]
    pub initial: String,
    /// Each further wait is so many times the one before, 1 to 100.
    #[serde(default = "defaults::factor")]
    #[schemars(range(min = 1, max = 100))]
    pub factor: i32,
    /// No wait is longer, whatever the receiver asks for: 100ms to 168h, and not shorter than `initial`.
    #[serde(default = "defaults::max")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-validations" =
            rules::duration("100ms", "168h", "max must be a duration from 100ms to 168h, such as 24h"))
    )]
    pub max: String,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: defaults::initial(), factor: defaults::factor(), max: defaults::max() }
    }
}

/// At most `requests` attempts are started in each `per`, evenly spread, and `burst` of them at once after a pause.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Attempts, 1 to 100000.
    #[schemars(range(min = 1, max = 100_000))]
    pub requests: i32,
    /// In this time, 1s to 24h.
    #[serde(default = "defaults::per")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-validations" =
            rules::duration("1s", "24h", "per must be a duration from 1s to 24h, such as 1m"))
    )]
    pub per: String,
    /// How many may start at once after a pause, 1 to 100000. With 1 they are evenly spread from the first on.
    #[serde(default = "defaults::burst")]
    #[schemars(range(min = 1, max = 100_000))]
    pub burst: i32,
}

/// HMAC signatures by Standard Webhooks.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Signing {
    /// Where the keys are, 1 to 8: each value is `whsec_` and the base64 of 24 to 64 random bytes. Every key signs
    /// every request, so a key is rotated by listing the new one beside the old one for a while.
    #[schemars(
        length(min = 1, max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name", "key"])
    )]
    pub secret_refs: Vec<SecretKeyRef>,
}

/// Trust in and identity towards the receiver.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// The CA certificates that sign the receiver's certificate, in place of the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,
    /// A Secret of type kubernetes.io/tls whose certificate is shown to the receiver (mutual TLS). The Secret must
    /// carry the label `hookwright.dev/use: "true"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_ref: Option<SecretRef>,
}

/// Where CA certificates are.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaRef {
    /// ConfigMap, or Secret (which must carry the label `hookwright.dev/use: "true"`).
    pub kind: CaKind,
    /// Its name, in the same namespace.
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = rules::name()))]
    pub name: String,
    /// The key in its data, whose value is one or more certificates in PEM, at most 1 MiB.
    #[serde(default = "defaults::ca_key")]
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = rules::key()))]
    pub key: String,
}

/// What holds CA certificates.
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
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = rules::name()))]
    pub name: String,
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
    pub(crate) fn burst() -> i32 {
        1
    }
    pub(crate) fn history_limit() -> i32 {
        10
    }
    pub(crate) fn ca_key() -> String {
        "ca.crt".to_owned()
    }
}
