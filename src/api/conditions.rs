//! Condition types and reasons: each name once.

/// `Ready`: spec accepted, references found, route live. Does not follow the endpoint's health.
pub const READY: &str = "Ready";
/// `Reconciling`: present only while True.
pub const RECONCILING: &str = "Reconciling";
/// `Stalled`: present only while True; only a change of the spec or of a reference can help.
pub const STALLED: &str = "Stalled";
/// `EndpointHealthy`: the recent outcome of deliveries.
pub const ENDPOINT_HEALTHY: &str = "EndpointHealthy";
/// `Disabled`: present when True.
pub const DISABLED: &str = "Disabled";
/// `Succeeded`, of what is carried out once: a WebhookTest, a WebhookReplay.
pub const SUCCEEDED: &str = "Succeeded";
