//! Builders for the tests of this room.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{Webhook, WebhookReplay, WebhookTest};
use crate::model::address::Policy;
use crate::model::ids::{DeliveryName, EventUid, ReplayId, WebhookRef, WebhookUid};
use crate::model::time::UnixMillis;
use crate::routes::Route;
use crate::routes::compile::{Compiler, MasterKey};
use crate::routes::references::References;
use crate::store::records::{Attempt, Delivery, EndReason, State};
use crate::store::replays::{NewReplay, Part, Replay, Selection};

pub(super) const UID: &str = "7d9f4d0e-5c1b-4d3e-9b53-6d2f5f2c0a11";

/// 2026-11-24T10:00:00Z and so many seconds.
pub(super) fn at(secs: i64) -> UnixMillis {
    UnixMillis::from_millis(1_795_514_400_000 + secs * 1000)
}

pub(super) fn webhook_ref() -> WebhookRef {
    WebhookRef { uid: uid(), namespace: "team-a".into(), name: "orders".into() }
}

pub(super) fn uid() -> WebhookUid {
    UID.parse().unwrap()
}

/// A Webhook whose simple spec has these changes.
pub(super) fn webhook(changes: &Value) -> Webhook {
    let mut spec = json!({ "url": "https://hooks.example.com/orders", "eventTypes": ["order.created"] });
    for (key, value) in changes.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "hookwright.dev/v1alpha1",
        "kind": "Webhook",
        "metadata": { "name": "orders", "namespace": "team-a", "uid": UID, "generation": 3 },
        "spec": spec,
    }))
    .unwrap()
}

/// Its route, with nothing found at its references.
pub(super) fn route(changes: &Value) -> Route {
    compiler().compile(&webhook(changes), &References::default()).unwrap()
}

pub(super) fn compiler() -> Compiler {
    Compiler::new(MasterKey::new([7; 32]), Policy::default())
}

/// A spec that misses its Secret.
pub(super) fn unready() -> Value {
    json!({ "signing": { "secretRefs": [{ "name": "orders-signing", "key": "secret" }] } })
}

/// A delivery: the last of its attempts (each a status and a start) decides its state unless told otherwise.
pub(super) fn delivery(number: u8, state: State, attempts: &[(u16, i64)]) -> Delivery {
    let attempts = attempts.iter().map(|(status, secs)| Attempt {
        at: at(*secs),
        duration: Duration::from_millis(12),
        status: Some(*status),
        body: Some("canary-body".to_owned()),
        content_type: None,
        body_length: 11,
        error: (*status != 200).then(|| format!("answered {status}")),
        asked_by: None,
        probe: false,
        retry_after: None,
    });
    let mut name = [0; 16];
    name[15] = number;
    Delivery {
        name: DeliveryName::from_bytes(name),
        webhook: webhook_ref(),
        event: EventUid::from_bytes([1; 16]),
        event_id: format!("event-{number}").into(),
        event_type: "order.created".into(),
        test: false,
        accepted_at: at(0),
        state,
        due: (!state.is_final()).then(|| at(10)),
        reason: (state == State::Failed).then_some(EndReason::RetriesExhausted),
        attempts: attempts.collect(),
        ended_at: None,
        redelivery: None,
        expunged: None,
        event_source: None,
    }
}

/// A test of `orders`.
pub(super) fn webhook_test(name: &str, created: i64, status: &Value) -> Arc<WebhookTest> {
    let uid = format!(
        "7d9f4d0e-5c1b-4d3e-9b53-{:0>12x}",
        name.bytes().fold(0_u64, |sum, byte| sum * 7 + u64::from(byte))
    );
    Arc::new(
        serde_json::from_value(json!({
            "apiVersion": "hookwright.dev/v1alpha1",
            "kind": "WebhookTest",
            "metadata": { "name": name, "namespace": "team-a", "uid": uid, "generation": 1,
                "creationTimestamp": format!("{:.0}", at(created).to_jiff()), "resourceVersion": "1" },
            "spec": { "webhookRef": { "name": "orders" }, "ttlSecondsAfterFinished": 60 },
            "status": status,
        }))
        .unwrap(),
    )
}

/// A replay of what failed at `orders`, whose spec has these changes.
pub(super) fn webhook_replay(name: &str, changes: &Value, status: &Value) -> WebhookReplay {
    let mut spec = json!({ "webhookRef": { "name": "orders" },
        "select": { "from": "2026-11-24T09:00:00Z", "to": "2026-11-24T10:00:00Z" } });
    for (key, value) in changes.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "hookwright.dev/v1alpha1",
        "kind": "WebhookReplay",
        "metadata": { "name": name, "namespace": "team-a", "uid": UID, "generation": 1,
            "creationTimestamp": format!("{:.0}", at(0).to_jiff()), "resourceVersion": "1" },
        "spec": spec,
        "status": status,
    }))
    .unwrap()
}

/// What the store keeps of a replay that began at 0.
pub(super) fn replay_record<const N: usize>(parts: [(WebhookUid, Part); N]) -> Replay {
    let selection = Selection {
        namespace: "team-a".into(),
        states: vec![State::Failed],
        from: at(-3600),
        to: at(0),
        event_types: vec![],
        as_of: at(0),
    };
    let new = NewReplay {
        id: ReplayId::from_bytes([1; 16]),
        name: "night".into(),
        digest: vec![],
        selection,
        webhooks: vec![],
    };
    Replay::new(new, parts.into())
}
