//! `WebhookReplay`: what was delivered or failed, sent once more, in bulk.

#![expect(clippy::duplicated_attributes, reason = "clippy takes the columns of a kind for one attribute")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::webhook::RateLimit;
use super::webhook_test::WebhookName;
use super::{rules, schema};

/// What to send again. It cannot be changed: create another WebhookReplay.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::immutable()))]
#[kube(
    group = "hookwright.dev",
    version = "v1alpha1",
    kind = "WebhookReplay",
    plural = "webhookreplays",
    doc = "A WebhookReplay sends many finished deliveries once more, such as all that failed while a receiver was \
           down: each in one attempt outside its retries, with the webhook-id that it had, oldest first. What it \
           takes is fixed when it begins; it goes on after a crash, and deleting it stops it within a second. One \
           that was completed is remembered by its name and spec: created anew, it sends nothing again.",
    namespaced,
    status = "WebhookReplayStatus",
    derive = "PartialEq",
    shortname = "hookreplay",
    category = "hookwright",
    printcolumn(
        name = "WEBHOOK",
        type_ = "string",
        json_path = ".spec.webhookRef.name",
        description = "The Webhook whose deliveries are sent again; empty: all of the namespace"
    ),
    printcolumn(
        name = "SUCCEEDED",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Succeeded")].status"#,
        description = "Whether all arrived; Unknown while it waits or is under way"
    ),
    printcolumn(
        name = "SELECTED",
        type_ = "integer",
        json_path = ".status.selected",
        description = "Deliveries that it takes"
    ),
    printcolumn(
        name = "SENT",
        type_ = "integer",
        json_path = ".status.sent",
        description = "Of those: sent again so far"
    ),
    printcolumn(
        name = "FAILED",
        type_ = "integer",
        json_path = ".status.failed",
        description = "Of those: failed again so far"
    ),
    printcolumn(
        name = "AGE",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Since it was created"
    ),
    printcolumn(
        name = "SKIPPED",
        type_ = "integer",
        json_path = ".status.skipped",
        description = "Of those: could not be sent again",
        priority = 1
    ),
    printcolumn(
        name = "DRY RUN",
        type_ = "boolean",
        json_path = ".spec.dryRun",
        description = "Whether it only counts",
        priority = 1
    ),
    printcolumn(
        name = "MESSAGE",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Succeeded")].message"#,
        description = "Where it stands, or what came of it",
        priority = 1
    )
)]
pub struct WebhookReplaySpec {
    /// The Webhook whose deliveries are sent again; without it, those of every Webhook that the namespace has when
    /// the replay begins. One that does not exist within 5 minutes fails the replay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_ref: Option<WebhookName>,

    /// Which deliveries. They are chosen by how they stand when the replay begins. Tests are never chosen.
    pub select: ReplaySelect,

    /// `true`: only counts what would be sent again.
    #[serde(default)]
    pub dry_run: bool,

    /// How many may be sent again in a time, all Webhooks of the replay together, beside each Webhook's own limits.
    /// Without it there is no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,

    /// Delete this object so many seconds after the replay has finished, 0 to 2592000 (30 days). Without it the object
    /// stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_592_000))]
    pub ttl_seconds_after_finished: Option<i32>,
}

/// Which deliveries.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::replay_times()))]
pub struct ReplaySelect {
    /// Those that ended so: `Failed`, `Success` or both. What is not finished is attempted anyway.
    #[serde(default = "default_states")]
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub states: Vec<ReplayState>,

    /// Those whose event was accepted at this time (RFC 3339, such as 2026-11-24T22:00:00Z) or later.
    #[schemars(
        length(max = 40),
        extend("x-kubernetes-validations" = rules::time(
            "from must be a time that exists, in RFC 3339, such as 2026-11-24T22:00:00Z or 2026-11-24T23:00:00.5+01:00"
        ))
    )]
    pub from: String,

    /// Those whose event was accepted before this time. What is accepted after the replay has begun is never chosen.
    #[schemars(
        length(max = 40),
        extend("x-kubernetes-validations" = rules::time(
            "to must be a time that exists, in RFC 3339, such as 2026-11-25T06:00:00Z or 2026-11-25T07:00:00.5+01:00"
        ))
    )]
    pub to: String,

    /// Those of these event types, 1 to 64: exact (`order.created`), a prefix (`invoice.*`), or `*` for all. Without it:
    /// of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 256)),
        extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = rules::event_type_patterns())
    )]
    pub event_types: Option<Vec<String>>,
}

fn default_states() -> Vec<ReplayState> {
    vec![ReplayState::Failed]
}

/// How a delivery ended.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplayState {
    /// It was given up.
    Failed,
    /// It arrived.
    Success,
}

/// How far it is, and what came of it.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WebhookReplayStatus {
    /// The generation of the spec that this status speaks of; -1 before the first look.
    #[schemars(range(min = -1))]
    pub observed_generation: i64,

    /// Succeeded: Unknown while the replay waits (reason Held while its Webhooks hold all deliveries back) or is under
    /// way, then True (none failed again) or False (some did, or none could be sent again), for good; its reason and message say why. Ready: the same as
    /// Succeeded. Present only while True: Reconciling, Stalled (the replay failed).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,

    /// Deliveries that it takes, counted when it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub selected: Option<i64>,

    /// Of those: sent again so far. After a crash one may have been sent twice; it counts once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub sent: Option<i64>,

    /// Of those: arrived so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub succeeded: Option<i64>,

    /// Of those: failed again so far, or ended without being sent (held for too long).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub failed: Option<i64>,

    /// Of those: not sent again, since when it was their turn they were gone from the log, their payload was erased,
    /// somebody else had them sent again, or their Webhook was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub skipped: Option<i64>,

    /// When it began: what it takes was fixed then.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub started_at: Option<String>,

    /// When it was finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub completed_at: Option<String>,
}

impl Default for WebhookReplayStatus {
    fn default() -> Self {
        Self {
            observed_generation: -1,
            conditions: Vec::new(),
            selected: None,
            sent: None,
            succeeded: None,
            failed: None,
            skipped: None,
            started_at: None,
            completed_at: None,
        }
    }
}
