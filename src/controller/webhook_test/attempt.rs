//! The one attempt of a test: claim, append, send, record, tell.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;
use tracing::{info, warn};

use super::{Context, status};
use crate::api::WebhookTest;
use crate::cli::chain;
use crate::controller::{Deps, Error};
use crate::delivery::{Job, Sent};
use crate::metrics::Kind;
use crate::model::event::Attributes;
use crate::model::ids::{DeliveryName, EventUid};
use crate::model::time::UnixMillis;
use crate::model::verdict::{Fault, Verdict};
use crate::routes::{Endpoint, Route};
use crate::store::{Delivery, EndReason, Event, NewDelivery, NewEvent, Next, Outcome, State};

pub(super) const KIND: Kind = Kind { kind: "WebhookTest" };

/// How an attempt ended, as far as its turn is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Used {
    /// The attempt was begun.
    Yes,
    /// The object has changed or is gone: nothing was begun.
    No,
}

/// Makes the attempt. From the moment that the status names the delivery, it is never made again: after a crash the
/// store, or its silence, says what became of it.
pub(super) async fn make(
    context: &Context,
    test: &WebhookTest,
    route: &Route,
    endpoint: Arc<Endpoint>,
) -> Result<Used, Error> {
    let deps = &context.deps;
    let now = deps.clock.now();
    let (delivery, event) = (deps.minter.delivery(now), deps.minter.event(now));
    let claim = status::begun(test, delivery, now);
    if !context.apply(test, claim.clone(), test.resource_version().as_deref()).await? {
        return Ok(Used::No);
    }
    // What follows goes on from the claim, so that transition times are kept.
    let begun = WebhookTest { status: Some(claim), ..test.clone() };
    let stored = event_of(test, route, event, now);
    let result = match append(deps, route, &stored, delivery).await {
        Ok(()) => {
            let log = attempt(deps, route, endpoint, Arc::new(stored), delivery).await;
            status::ended(&begun, &log, deps.clock.now())
        }
        Err(error) => {
            let message = format!("the test event could not be stored, so it was not sent: {error}");
            status::failed(&begun, "NotStored", &message, deps.clock.now())
        }
    };
    // If this can't be written, the next reconcile takes it from the store.
    context.apply(test, result, None).await?;
    Ok(Used::Yes)
}

async fn append(deps: &Deps, route: &Route, event: &Event, name: DeliveryName) -> crate::store::Result<()> {
    let event = NewEvent {
        uid: event.uid,
        namespace: Arc::clone(&event.namespace),
        attributes: Arc::clone(&event.attributes),
        data: event.data.clone(),
        accepted_at: event.accepted_at,
        dedup: None,
        deliveries: vec![NewDelivery { name, webhook: route.webhook.clone(), test: true }],
    };
    deps.store.append(vec![event]).await.map(drop)
}

/// Sends, and records what came of it; the record is returned as the log will have it.
async fn attempt(
    deps: &Deps,
    route: &Route,
    endpoint: Arc<Endpoint>,
    event: Arc<Event>,
    name: DeliveryName,
) -> Delivery {
    let job = Job { name, webhook: route.webhook.clone(), endpoint, event: Arc::clone(&event), test: true };
    let Sent { attempt, verdict } = deps.sender.send(job).await;
    info!(webhook = %route.webhook, delivery = %name, status = attempt.status, verdict = verdict.as_str(), "test sent");
    let (state, reason) = match verdict {
        Verdict::Delivered => (State::Success, None),
        Verdict::Retry { fault: Fault::Denied, .. } => (State::Failed, Some(EndReason::AddressDenied)),
        Verdict::Retry { .. } | Verdict::Gone => (State::Failed, Some(EndReason::TestFailed)),
    };
    let ended_at = deps.clock.now();
    let outcome = Outcome {
        name,
        webhook: route.webhook.uid,
        attempt: Some(attempt.clone()),
        next: reason.map_or(Next::Success, Next::Failed),
        disable: None,
        failing: None,
        at: ended_at,
    };
    if let Err(error) = deps.store.record(vec![outcome]).await {
        warn!(webhook = %route.webhook, delivery = %name, error = chain(&error), "cannot record a test");
    }
    Delivery {
        name,
        webhook: route.webhook.clone(),
        event: event.uid,
        event_id: Arc::clone(&event.attributes.id),
        event_type: Arc::clone(&event.attributes.event_type),
        test: true,
        accepted_at: event.accepted_at,
        state,
        due: None,
        reason,
        attempts: vec![attempt],
        ended_at: Some(ended_at),
        redelivery: None,
        expunged: None,
        event_source: None,
    }
}

/// The test event. Its id is the test's own, so that a receiver can tell one test from another.
fn event_of(test: &WebhookTest, route: &Route, uid: EventUid, now: UnixMillis) -> Event {
    let namespace = &route.webhook.namespace;
    let name = test.meta().name.as_deref().unwrap_or_default();
    let source = format!("/apis/hookwright.dev/v1alpha1/namespaces/{namespace}/webhooktests/{name}");
    let data = test.spec.payload.clone().unwrap_or_else(|| {
        json!({
            "message": "This is a test event. It was sent on request, by a WebhookTest.",
            "webhook": { "namespace": namespace, "name": route.webhook.name },
            "test": name,
        })
    });
    Event {
        uid,
        namespace: Arc::clone(namespace),
        accepted_at: now,
        attributes: Arc::new(Attributes {
            id: test.uid().unwrap_or_else(|| uid.to_string()).into(),
            source: source.into(),
            event_type: test.spec.event_type.as_str().into(),
            data_content_type: Some("application/json".into()),
            data_schema: None,
            subject: None,
            time: Some(now.to_string().into()),
            extensions: Vec::new(),
        }),
        data: Bytes::from(data.to_string()),
    }
}

/// On stop, tests under way get this long at least.
pub(super) const SHORTEST_GRACE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::fixtures::{at, route, webhook_test};

    #[test]
    fn a_test_event_is_json_that_says_whose_test_it_is() {
        let (test, route) = (webhook_test("orders-1", 0, &json!({})), route(&json!({})));
        let event = event_of(&test, &route, EventUid::from_bytes([1; 16]), at(0));
        let data: serde_json::Value = serde_json::from_slice(&event.data).unwrap();
        assert_eq!(data["webhook"], json!({ "namespace": "team-a", "name": "orders" }));
        assert_eq!(&*event.attributes.event_type, "webhook.test");
        assert_eq!(&*event.attributes.id, test.metadata.uid.as_deref().unwrap());
        assert_eq!(event.attributes.time.as_deref(), Some("2026-11-24T10:00:00.000Z"));
        assert!(event.attributes.source.ends_with("/namespaces/team-a/webhooktests/orders-1"));
    }

    #[test]
    fn the_payload_of_the_test_is_sent_as_it_is() {
        let mut test = (*webhook_test("orders-1", 0, &json!({}))).clone();
        test.spec.payload = Some(json!([1, "a", null]));
        let event = event_of(&test, &route(&json!({})), EventUid::from_bytes([1; 16]), at(0));
        assert_eq!(&event.data[..], br#"[1,"a",null]"#);
    }
}
