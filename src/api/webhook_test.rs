//! `WebhookTest`: one test delivery, on demand.

#![expect(clippy::duplicated_attributes, reason = "clippy takes the columns of a kind for one attribute")]
#![expect(clippy::doc_markdown, reason = "these comments are what kubectl explain shows")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{rules, schema};

/// What to test. It cannot be changed: create another WebhookTest.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::immutable()))]
#[kube(
    group = "hookwright.dev",
    version = "v1alpha1",
    kind = "WebhookTest",
    doc = "A WebhookTest sends one test event to one Webhook, in exactly one attempt, through the same client, \
           address guard and signatures as a real delivery, also to a Webhook that is paused or disabled, and is \
           marked as a test everywhere. At most 5 a minute are sent to one Webhook; more wait their turn.",
    namespaced,
    status = "WebhookTestStatus",
    derive = "PartialEq",
    shortname = "hooktest",
    category = "hookwright",
    printcolumn(
        name = "WEBHOOK",
        type_ = "string",
        json_path = ".spec.webhookRef.name",
        description = "The Webhook that is tested"
    ),
    printcolumn(
        name = "SUCCEEDED",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Succeeded")].status"#,
        description = "Whether the test arrived; Unknown while it waits or is under way"
    ),
    printcolumn(
        name = "CODE",
        type_ = "integer",
        json_path = ".status.responseStatus",
        description = "HTTP status of the answer"
    ),
    printcolumn(
        name = "AGE",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Since it was created"
    ),
    printcolumn(
        name = "MESSAGE",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Succeeded")].message"#,
        description = "What came of it",
        priority = 1
    ),
    printcolumn(
        name = "DELIVERY",
        type_ = "string",
        json_path = ".status.deliveryId",
        description = "Its name in the delivery log",
        priority = 1
    )
)]
pub struct WebhookTestSpec {
    /// The Webhook to test. One that does not exist, or is not ready, within 5 minutes fails the test.
    pub webhook_ref: WebhookName,

    /// The type of the test event. It need not be one that the Webhook subscribes to.
    #[serde(default = "default_event_type")]
    #[schemars(length(min = 1, max = 256), extend("x-kubernetes-validations" = rules::event_type()))]
    pub event_type: String,

    /// The data of the test event, any JSON; a sample by default. It is stored in this object: no secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
    pub payload: Option<serde_json::Value>,

    /// Delete this object so many seconds after the test has finished, 0 to 2592000 (30 days). There is no default:
    /// GitOps would create a deleted test anew, and send it again, for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_592_000))]
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
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = rules::name()))]
    pub name: String,
}

/// What came of it. The answer's body is not here: it is in the delivery log, for those who may read payloads.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WebhookTestStatus {
    /// The generation of the spec that this status speaks of; -1 before the first look.
    #[schemars(range(min = -1))]
    pub observed_generation: i64,

    /// Succeeded: Unknown while the test waits or is under way, then True (a 2xx answer) or False, for good; its
    /// reason and message say why. Ready: the same as Succeeded. Present only while True: Reconciling (reason
    /// RateLimited while it waits its turn), Stalled (the test failed).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,

    /// The test's name in the delivery log, and the webhook-id header that the receiver saw. Set before the attempt:
    /// a test with a name is never sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub delivery_id: Option<String>,

    /// HTTP status of the answer, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 999))]
    pub response_status: Option<i32>,

    /// Bytes of the answer's body, as far as they were read (at most 64 KiB).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub response_length: Option<i64>,

    /// Content type of the answer, cut to 128 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub response_content_type: Option<String>,

    /// Duration of the attempt, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub duration_ms: Option<i64>,

    /// Why it failed, cut to 512 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub error_message: Option<String>,

    /// When the attempt was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub started_at: Option<String>,

    /// When the test was finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub completed_at: Option<String>,
}

impl Default for WebhookTestStatus {
    fn default() -> Self {
        Self {
            observed_generation: -1,
            conditions: Vec::new(),
            delivery_id: None,
            response_status: None,
            response_length: None,
            response_content_type: None,
            duration_ms: None,
            error_message: None,
            started_at: None,
            completed_at: None,
        }
    }
}
