//! The Kubernetes kinds of `hookwright.dev/v1alpha1`: types, rules and names. No client, no behaviour.

pub mod conditions;
pub mod delivery;
pub mod rules;
mod schema;
pub mod webhook;
pub mod webhook_replay;
mod webhook_status;
pub mod webhook_test;

pub use schema::{crds, crds_yaml, explained};
pub use webhook::{Webhook, WebhookSpec, WebhookStatus};
pub use webhook_replay::{WebhookReplay, WebhookReplaySpec, WebhookReplayStatus};
pub use webhook_test::{WebhookTest, WebhookTestSpec, WebhookTestStatus};

/// API group of the custom resources.
pub const GROUP: &str = "hookwright.dev";
/// Version of the custom resources.
pub const VERSION: &str = "v1alpha1";
/// API group of the aggregated API.
pub const DELIVERY_GROUP: &str = "delivery.hookwright.dev";
/// Version of the aggregated API.
pub const DELIVERY_VERSION: &str = "v1alpha1";
/// Label (value `true`) that a Secret must carry before Hookwright reads it.
pub const USE_LABEL: &str = "hookwright.dev/use";
/// Annotation that asks for a reconcile and enables a disabled Webhook; echoed in
/// `status.lastHandledReconcileAt`.
pub const REQUESTED_AT: &str = "hookwright.dev/requestedAt";
