//! Making Webhooks known to the store that it does not know, or not which namespace they are in.
//!
//! Their numbers are those of their status: an empty volume, a restored cluster. Their namespace is asked for after they
//! were seen, so that no answer is about a former one of the same name.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tracing::{debug, error, info, warn};

use crate::api::conditions::{DISABLED, ENDPOINT_HEALTHY};
use crate::api::{Webhook, WebhookStatus};
use crate::cli::chain;
use crate::model::ids::{WebhookRef, WebhookUid};
use crate::model::time::UnixMillis;
use crate::routes::namespaces::{Found, Namespaces};
use crate::store::records::{DisableReason, Disabled};
use crate::store::{Result, Store, Summary};

/// That a namespace cannot be read is said once: it is mostly so of all of them.
static SAID: AtomicBool = AtomicBool::new(false);

/// Between two questions, when one was not answered.
const PAUSE: Duration = Duration::from_secs(1);

/// One that is to be made known.
pub(super) struct Unknown {
    created: UnixMillis,
    summary: Summary,
    /// The store has it already, and lacks its namespace's uid.
    is_known: bool,
}

impl Unknown {
    /// This Webhook, unless the store knows it and where it is. One that is being erased is not known: it was gone, and
    /// is there again.
    pub(super) fn of(webhook: WebhookRef, object: &Webhook, store: &dyn Store) -> Option<Self> {
        let known = store.summary(webhook.uid).filter(|known| !known.erasing);
        if known.as_ref().is_some_and(|known| known.namespace_uid.is_some()) {
            return None;
        }
        let created = object.metadata.creation_timestamp.as_ref();
        let created = created.map_or_else(UnixMillis::default, |at| UnixMillis::from_jiff(at.0));
        let summary = summary(webhook, object.status.as_ref());
        Some(Self { created, summary, is_known: known.is_some() })
    }

    /// Its namespace.
    pub(super) fn webhook(&self) -> &WebhookRef {
        &self.summary.webhook
    }
}

/// Makes Webhooks of one namespace known to the store. Answers for which the namespace is to be asked for again: there
/// was no answer, `tries` times where it matters. One that may have to go on with what a former Webhook has left is then
/// not made known yet, since it could not take over later.
pub(super) async fn adopt(
    store: &dyn Store,
    namespaces: &Namespaces,
    unknown: Vec<Unknown>,
    tries: u32,
) -> Vec<WebhookUid> {
    let Some(first) = unknown.first() else { return vec![] };
    let namespace = first.webhook().namespace.clone();
    let found = ask(store, namespaces, &unknown, tries).await;
    let unanswered = matches!(found, Found::NoAnswer(_));
    if let Found::Unreadable(why) = &found
        && !SAID.swap(true, Ordering::Relaxed)
    {
        warn!(
            namespace = &*namespace,
            why,
            "cannot tell this namespace from others of the same name: a Webhook that is replaced there loses what waits \
             for it"
        );
    }
    let adoptions = unknown.into_iter().map(|Unknown { created, summary, is_known }| {
        let webhook = summary.webhook.clone();
        let summary = Summary { namespace_uid: found.uid_of(created), ..summary };
        let again = unanswered.then_some(webhook.uid);
        async move {
            if unanswered && !is_known && has_former(store, &webhook) {
                warn!(%webhook, "not in force yet: the Kubernetes API does not say which namespace it is in");
                return again;
            }
            if let Err(error) = make_known(store, summary).await {
                error!(%webhook, error = chain(&error), "cannot make a Webhook known to the store");
                return again;
            }
            let waiting = store.summary(webhook.uid).map_or(0, |summary| summary.pending);
            if waiting > 0 && !is_known {
                info!(%webhook, waiting, "made anew, it goes on with what the former Webhook of this name left");
            }
            again
        }
    });
    futures::future::join_all(adoptions).await.into_iter().flatten().collect()
}

/// Asks which namespace it is, up to `tries` times if what a former Webhook has left depends on it.
async fn ask(store: &dyn Store, namespaces: &Namespaces, unknown: &[Unknown], tries: u32) -> Found {
    let matters = || unknown.iter().any(|one| !one.is_known && has_former(store, one.webhook()));
    let namespace = unknown.first().map(|one| &*one.webhook().namespace).unwrap_or_default();
    let mut left = tries;
    loop {
        let found = namespaces.read(namespace).await;
        left = left.saturating_sub(1);
        let Found::NoAnswer(why) = &found else { return found };
        debug!(namespace, why, "no answer which namespace of this name it is");
        if left == 0 || !matters() {
            return found;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether the store has something of a former Webhook of this name, which may have been in the same namespace.
fn has_former(store: &dyn Store, webhook: &WebhookRef) -> bool {
    let has_left = |uid: WebhookUid| {
        store.summary(uid).is_some_and(|known| known.namespace_uid.is_some() && !known.erasing)
    };
    store.known().into_iter().any(|known| {
        let is_former = known.uid != webhook.uid;
        is_former && known.namespace == webhook.namespace && known.name == webhook.name && has_left(known.uid)
    })
}

/// What an interrupted erasing has left of it is erased first: it would stay hidden, and with it all that comes.
async fn make_known(store: &dyn Store, summary: Summary) -> Result<()> {
    let uid = summary.webhook.uid;
    if store.summary(uid).is_some_and(|known| known.erasing) {
        let discarded = store.purge(uid).await?;
        info!(webhook = %summary.webhook, discarded, "it is there again, after its data began to be erased: erased the rest");
    }
    store.adopt(summary).await
}

/// Counters that go on where the status has them, so that none goes backwards.
fn summary(webhook: WebhookRef, status: Option<&WebhookStatus>) -> Summary {
    let mut summary = Summary::new(webhook);
    let Some(status) = status else { return summary };
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    let is_true = |kind: &str| condition(status, kind).filter(|condition| condition.status == "True");
    summary.failure_count = count(status.failure_count);
    summary.consecutive_failures = count(status.consecutive_failures);
    summary.failed_since_success =
        condition(status, ENDPOINT_HEALTHY).is_some_and(|condition| condition.status == "False");
    summary.last_triggered = time(status.last_triggered.as_deref());
    summary.last_success = time(status.last_success.as_deref());
    summary.failing_since = summary.last_triggered.filter(|_| summary.consecutive_failures > 0);
    summary.test_sent = status.test_payload_sent;
    summary.disabled = is_true(DISABLED).map(|condition| Disabled {
        generation: condition.observed_generation.unwrap_or(status.observed_generation),
        at: UnixMillis::from_jiff(condition.last_transition_time.0),
        reason: if condition.reason == "Gone" { DisableReason::Gone } else { DisableReason::Failing },
    });
    summary
}

fn condition<'a>(status: &'a WebhookStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == kind)
}

fn time(text: Option<&str>) -> Option<UnixMillis> {
    text.and_then(|text| text.parse().ok()).map(UnixMillis::from_jiff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::WebhookUid;

    fn webhook() -> WebhookRef {
        WebhookRef { uid: WebhookUid::from_bytes([7; 16]), namespace: "team-a".into(), name: "orders".into() }
    }

    #[test]
    fn an_empty_store_goes_on_with_the_numbers_of_the_status() {
        let status: WebhookStatus = serde_json::from_value(serde_json::json!({
            "observedGeneration": 3,
            "conditions": [
                { "type": "EndpointHealthy", "status": "False", "reason": "Failing", "message": "m",
                  "lastTransitionTime": "2026-11-24T10:00:00Z", "observedGeneration": 3 },
                { "type": "Disabled", "status": "True", "reason": "Gone", "message": "m",
                  "lastTransitionTime": "2026-11-24T10:00:01Z", "observedGeneration": 3 },
            ],
            "failureCount": 2,
            "consecutiveFailures": 9,
            "pendingDeliveries": 5,
            "lastTriggered": "2026-11-24T10:00:00Z",
            "lastSuccess": "2026-11-23T10:00:00Z",
            "testPayloadSent": true,
        }))
        .unwrap();
        let summary = summary(webhook(), Some(&status));
        assert_eq!((summary.failure_count, summary.consecutive_failures, summary.pending), (2, 9, 0));
        assert!(summary.failed_since_success && summary.test_sent);
        assert_eq!(summary.last_triggered.unwrap().to_string(), "2026-11-24T10:00:00.000Z");
        assert_eq!(summary.last_success.unwrap().to_string(), "2026-11-23T10:00:00.000Z");
        let disabled = summary.disabled.unwrap();
        assert_eq!((disabled.generation, disabled.reason), (3, DisableReason::Gone));
        assert_eq!(disabled.at.as_secs() - summary.last_triggered.unwrap().as_secs(), 1);
    }

    #[test]
    fn a_new_webhook_begins_with_nothing() {
        let born = WebhookStatus::default();
        assert_eq!(summary(webhook(), Some(&born)), Summary::new(webhook()));
        assert_eq!(summary(webhook(), None), Summary::new(webhook()));
    }
}
