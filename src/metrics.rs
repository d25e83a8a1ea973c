//! Every metric, named once. No label has an unbounded number of values.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// `result` of `hookwright_events_received_total`: `accepted`, `duplicate`, `invalid`, `unauthenticated`,
/// `forbidden`, `too_large`, `throttled`, `unavailable`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Received {
    /// What became of it.
    pub result: &'static str,
}

/// `result` of `hookwright_forwarded_requests_total`, of a front: `answered`, or why the pod with the store did not:
/// `away`, `lost`, `late`, `unknown`, `busy`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Forwarded {
    /// What became of it.
    pub result: &'static str,
}

/// `outcome` of `hookwright_deliveries_total`: `success`, or the reason of a failure.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ended {
    /// How it ended.
    pub outcome: &'static str,
}

/// `verdict` of `hookwright_attempts_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Attempted {
    /// [`crate::model::verdict::Verdict::as_str`].
    pub verdict: &'static str,
}

/// `waits_for` of `hookwright_oldest_pending_seconds`: `turn`, or `receiver` behind the probe of an unhealthy endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Waiting {
    /// What the delivery waits for.
    pub waits_for: &'static str,
}

/// `kind` of the reconcile metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// `Webhook`, `WebhookTest` or `WebhookReplay`.
    pub kind: &'static str,
}

/// `kind` and `category` of `hookwright_reconcile_errors_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindError {
    /// `Webhook`, `WebhookTest` or `WebhookReplay`.
    pub kind: &'static str,
    /// Of the error.
    pub category: &'static str,
}

/// `kind` of `hookwright_watches_failing`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Watched {
    /// Of the Kubernetes objects that are watched: a handful.
    pub kind: String,
}

type Buckets = std::iter::Copied<std::slice::Iter<'static, f64>>;

/// HTTP client durations, by the OpenTelemetry semantic conventions.
const HTTP: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0];
const LATENCY: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0, 600.0, 3600.0, 86_400.0];
const COMMIT: &[f64] = &[0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0];

/// The metrics of one process, each an `Arc` inside: cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Events received by the publishing door.
    pub events_received: Family<Received, Counter>,
    /// Requests that a front passed on.
    pub forwarded: Family<Forwarded, Counter>,
    /// Deliveries that ended.
    pub deliveries: Family<Ended, Counter>,
    /// Attempts made.
    pub attempts: Family<Attempted, Counter>,
    /// Duration of attempts.
    pub attempt_duration: Histogram,
    /// From acceptance to success.
    pub delivery_latency: Histogram,
    /// Deliveries that wait or are under way.
    pub pending_deliveries: Gauge,
    /// Deliveries that waited for a Webhook which was deleted, and that nobody took over.
    pub discarded_deliveries: Counter,
    /// For how long the longest due deliveries have been due; held ones count only behind a probe.
    pub oldest_pending: Family<Waiting, Gauge<f64, AtomicU64>>,
    /// Duration of a synced commit.
    pub store_commit_duration: Histogram,
    /// Bytes of events and log lines, of all namespaces.
    pub store_bytes: Gauge,
    /// Namespaces that are to be served and are not.
    pub namespaces_unserved: Gauge,
    /// Watches of the Kubernetes API that fail.
    pub watches_failing: Family<Watched, Gauge>,
    /// Status writes.
    pub status_writes: Family<Kind, Counter>,
    /// Reconciles.
    pub reconciles: Family<Kind, Counter>,
    /// Reconciles that failed.
    pub reconcile_errors: Family<KindError, Counter>,
    /// Attempts of deliveries whose address was denied.
    pub egress_denied: Counter,
}

fn histogram(buckets: &'static [f64]) -> Histogram {
    let buckets: Buckets = buckets.iter().copied();
    Histogram::new(buckets)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Arc::new(Registry::default()),
            events_received: Family::default(),
            forwarded: Family::default(),
            deliveries: Family::default(),
            attempts: Family::default(),
            attempt_duration: histogram(HTTP),
            delivery_latency: histogram(LATENCY),
            pending_deliveries: Gauge::default(),
            discarded_deliveries: Counter::default(),
            oldest_pending: Family::default(),
            store_commit_duration: histogram(COMMIT),
            store_bytes: Gauge::default(),
            namespaces_unserved: Gauge::default(),
            watches_failing: Family::default(),
            status_writes: Family::default(),
            reconciles: Family::default(),
            reconcile_errors: Family::default(),
            egress_denied: Counter::default(),
        };
        metrics.registry = Arc::new(metrics.register());
        metrics
    }
}

impl Metrics {
    fn register(&self) -> Registry {
        let mut all = Registry::with_prefix("hookwright");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        all.register("build", "Which program this is", build);
        all.register(
            "events_received",
            "Events received, by what became of them",
            self.events_received.clone(),
        );
        all.register(
            "forwarded_requests",
            "Requests that this front passed on, by what became of them",
            self.forwarded.clone(),
        );
        all.register("deliveries", "Deliveries that ended, by how", self.deliveries.clone());
        all.register("attempts", "Attempts made, by verdict", self.attempts.clone());
        all.register_with_unit(
            "attempt_duration",
            "Duration of one attempt, from connecting to the end of the answer",
            Unit::Seconds,
            self.attempt_duration.clone(),
        );
        all.register_with_unit(
            "delivery_latency",
            "From acceptance to success",
            Unit::Seconds,
            self.delivery_latency.clone(),
        );
        all.register(
            "pending_deliveries",
            "Deliveries that wait or are under way",
            self.pending_deliveries.clone(),
        );
        all.register(
            "discarded_deliveries",
            "Deliveries that waited for a Webhook which was deleted and not made again",
            self.discarded_deliveries.clone(),
        );
        all.register_with_unit(
            "oldest_pending",
            "How long the longest due delivery has been due, by what it waits for: its turn, or an unhealthy receiver",
            Unit::Seconds,
            self.oldest_pending.clone(),
        );
        all.register_with_unit(
            "store_commit_duration",
            "Duration of one synced group commit",
            Unit::Seconds,
            self.store_commit_duration.clone(),
        );
        all.register_with_unit(
            "store",
            "Events and log lines that are kept, before compression",
            Unit::Bytes,
            self.store_bytes.clone(),
        );
        all.register(
            "namespaces_unserved",
            "Namespaces that are to be served and whose Webhooks cannot be read",
            self.namespaces_unserved.clone(),
        );
        all.register(
            "watches_failing",
            "Watches of the Kubernetes API that fail, by kind",
            self.watches_failing.clone(),
        );
        all.register("status_writes", "Writes of a status", self.status_writes.clone());
        all.register("reconciles", "Reconciles", self.reconciles.clone());
        all.register("reconcile_errors", "Reconciles that failed", self.reconcile_errors.clone());
        all.register("egress_denied", "Attempts whose address the guard denied", self.egress_denied.clone());
        all
    }

    /// The text of `/metrics` (OpenMetrics 1.0).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            let _ = write!(text, "# cannot encode: {error}\n# EOF\n");
        }
        text
    }

    /// Counts a commit.
    pub fn committed(&self, took: Duration) {
        self.store_commit_duration.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_documents() {
        let metrics = Metrics::default();
        metrics.events_received.get_or_create(&Received { result: "accepted" }).inc();
        metrics.forwarded.get_or_create(&Forwarded { result: "answered" }).inc();
        metrics.deliveries.get_or_create(&Ended { outcome: "success" }).inc();
        metrics.attempts.get_or_create(&Attempted { verdict: "delivered" }).inc();
        metrics.oldest_pending.get_or_create(&Waiting { waits_for: "turn" }).set(0.0);
        metrics.watches_failing.get_or_create(&Watched { kind: "Secret".to_owned() }).set(0);
        metrics.status_writes.get_or_create(&Kind { kind: "Webhook" }).inc();
        metrics.reconciles.get_or_create(&Kind { kind: "Webhook" }).inc();
        metrics.reconcile_errors.get_or_create(&KindError { kind: "Webhook", category: "api" }).inc();
        let text = metrics.encode();
        for name in [
            "events_received_total",
            "forwarded_requests_total",
            "deliveries_total",
            "attempts_total",
            "attempt_duration_seconds_bucket",
            "delivery_latency_seconds_bucket",
            "pending_deliveries",
            "discarded_deliveries_total",
            "oldest_pending_seconds",
            "store_commit_duration_seconds_bucket",
            "store_bytes",
            "namespaces_unserved",
            "watches_failing",
            "status_writes_total",
            "reconciles_total",
            "reconcile_errors_total",
            "egress_denied_total",
            "build_info",
        ] {
            assert!(text.contains(&format!("hookwright_{name}")), "{name} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
