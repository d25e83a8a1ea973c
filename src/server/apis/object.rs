//! A line of the log as an object of Kubernetes.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::labels::Labels;
use super::{API_VERSION, set};
use crate::api::delivery::{
    Delivery as Object, DeliveryAttempt, DeliveryExpunged, DeliveryRedelivery, DeliverySpec, DeliveryStatus,
    DeliveryWebhook,
};
use crate::api::webhook::DeliveryState;
use crate::model::time::UnixMillis;
use crate::routes::hold::{Hold, shown};
use crate::store::records::{Attempt, Delivery, EndReason, Event};

const WEBHOOK_LABEL: &str = "hookwright.dev/webhook";
const EVENT_TYPE_LABEL: &str = "hookwright.dev/event-type";

/// How it stands with a delivery at this moment, beside what is stored.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    /// Why its Webhook lets nothing be sent.
    pub(super) hold: Option<Hold>,
    /// Its Webhook does not exist any more.
    pub(super) is_gone: bool,
    /// An attempt of it is under way.
    pub(super) is_sending: bool,
}

/// A line of the log with what is derived at this moment.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) delivery: Delivery,
    pub(super) state: DeliveryState,
    pub(super) labels: Labels,
    standing: Standing,
}

impl Line {
    pub(super) fn new(delivery: Delivery, standing: Standing, now: UnixMillis) -> Self {
        // What is being sent waits for nobody.
        let hold = standing.hold.filter(|_| !standing.is_sending);
        let state = shown(&delivery, hold, now);
        let labels = labels(&delivery);
        Self { delivery, state, labels, standing: Standing { hold, ..standing } }
    }

    /// Whether an attempt is under way.
    pub(super) fn is_sending(&self) -> bool {
        self.standing.is_sending && !self.delivery.state.is_final()
    }

    /// Why it waits for its Webhook.
    pub(super) fn held(&self) -> Option<Hold> {
        self.standing.hold.filter(|_| self.state == DeliveryState::Held)
    }

    /// Why it is Held or Failed.
    pub(super) fn reason(&self) -> Option<&'static str> {
        self.held().map(Hold::as_str).or_else(|| self.delivery.reason.map(EndReason::as_str))
    }

    /// When it is due, unless it is done, or nobody is left to send it to.
    pub(super) fn due(&self) -> Option<UnixMillis> {
        self.delivery.due.filter(|_| !self.delivery.state.is_final() && !self.standing.is_gone)
    }

    pub(super) fn metadata(&self) -> ObjectMeta {
        let delivery = &self.delivery;
        ObjectMeta {
            name: Some(delivery.name.to_string()),
            namespace: Some(delivery.webhook.namespace.to_string()),
            uid: Some(delivery.name.to_string()),
            resource_version: Some(changed_at(delivery).as_millis().to_string()),
            creation_timestamp: Some(Time(delivery.accepted_at.to_jiff())),
            labels: (!self.labels.is_empty()).then(|| self.labels.clone()),
            ..ObjectMeta::default()
        }
    }

    pub(super) fn object(&self) -> Object {
        let delivery = &self.delivery;
        let spec = DeliverySpec {
            webhook_ref: DeliveryWebhook {
                name: delivery.webhook.name.to_string(),
                uid: delivery.webhook.uid.to_string(),
            },
            event_id: delivery.event_id.to_string(),
            event_source: delivery.event_source.as_deref().map(ToOwned::to_owned),
            event_type: delivery.event_type.to_string(),
            test: delivery.test,
        };
        let status = DeliveryStatus {
            state: self.state,
            reason: self.reason().map(ToOwned::to_owned),
            retry_count: i32::try_from(delivery.retry_count()).unwrap_or(i32::MAX),
            next_retry_at: self.due().map(|due| due.to_string()),
            last_response_status: delivery.attempts.last().and_then(|last| last.status).map(i32::from),
            attempts: delivery.attempts.iter().map(attempt).collect(),
            redelivery: delivery.redelivery.as_ref().map(|waiting| DeliveryRedelivery {
                requested_by: waiting.asked.by.to_string(),
                requested_at: waiting.asked.at.to_string(),
            }),
            expunged: delivery
                .expunged
                .as_ref()
                .map(|asked| DeliveryExpunged { by: asked.by.to_string(), at: asked.at.to_string() }),
        };
        Object { metadata: self.metadata(), spec, status: Some(status) }
    }
}

/// When a line last became another.
fn changed_at(delivery: &Delivery) -> UnixMillis {
    let waiting = delivery.redelivery.as_ref().map(|waiting| waiting.asked.at);
    let erased = delivery.expunged.as_ref().map(|asked| asked.at);
    delivery.quiet_since().max(waiting.max(erased).unwrap_or(delivery.accepted_at))
}

fn attempt(attempt: &Attempt) -> DeliveryAttempt {
    DeliveryAttempt {
        started_at: attempt.at.to_string(),
        duration_ms: i64::try_from(attempt.duration.as_millis()).unwrap_or(i64::MAX),
        response_status: attempt.status.map(i32::from),
        error_message: attempt.error.clone(),
        response_length: attempt.status.map(|_| i64::try_from(attempt.body_length).unwrap_or(i64::MAX)),
        content_type: attempt.content_type.clone(),
        requested_by: attempt.asked_by.as_deref().map(ToOwned::to_owned),
        probe: attempt.probe,
    }
}

/// Characters of a text that cannot be a label's value which its label keeps, before a dash and as many hexadecimal digits
/// of its SHA-256.
const KEPT: (usize, usize) = (52, 10);

/// What can be selected by label: Webhook and event type.
fn labels(delivery: &Delivery) -> Labels {
    [(WEBHOOK_LABEL, &delivery.webhook.name), (EVENT_TYPE_LABEL, &delivery.event_type)]
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(key, text)| (key.to_owned(), label_value(text)))
        .collect()
}

/// A text as the value of a label: as it is, where it can be one; else its beginning, with `_` for each character that
/// no value has, and a part of its hash. The same text has the same label for ever.
fn label_value(text: &str) -> String {
    if is_label_value(text) {
        return text.to_owned();
    }
    let (kept, digits) = KEPT;
    let fine = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let beginning: String = text.chars().take(kept).map(fine).collect();
    let beginning = beginning.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let hash = digest(&SHA256, text.as_bytes());
    let number = hash.as_ref().iter().take(digits / 2).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let hash = format!("{number:0digits$x}");
    if beginning.is_empty() { hash } else { format!("{beginning}-{hash}") }
}

fn is_label_value(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let outer = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63 && bytes.iter().copied().all(inner) && outer(bytes.first()) && outer(bytes.last())
}

/// What was sent and what came back: for those who may read it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Payload {
    api_version: &'static str,
    kind: &'static str,
    metadata: ObjectMeta,
    #[serde(skip_serializing_if = "Map::is_empty")]
    attributes: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
    answers: Vec<Value>,
}

impl Payload {
    /// Of a line and its event, if that is still there.
    pub(super) fn new(line: &Line, event: Option<&Event>) -> Self {
        let (data, data_base64) = match event.map(|event| std::str::from_utf8(&event.data)) {
            None => (None, None),
            Some(Ok(text)) => (Some(text.to_owned()), None),
            Some(Err(_)) => (None, event.map(|event| STANDARD.encode(&event.data))),
        };
        let content_type = event.and_then(|event| event.attributes.data_content_type.as_deref());
        Self {
            api_version: API_VERSION,
            kind: "DeliveryPayload",
            metadata: line.metadata(),
            attributes: event.map(attributes).unwrap_or_default(),
            content_type: content_type.map(ToOwned::to_owned),
            data,
            data_base64,
            answers: line.delivery.attempts.iter().map(answer).collect(),
        }
    }
}

fn attributes(event: &Event) -> Map<String, Value> {
    let of = &event.attributes;
    let known = [
        ("specversion", Some("1.0")),
        ("id", Some(&*of.id)),
        ("source", Some(&*of.source)),
        ("type", Some(&*of.event_type)),
        ("datacontenttype", of.data_content_type.as_deref()),
        ("dataschema", of.data_schema.as_deref()),
        ("subject", of.subject.as_deref()),
        ("time", of.time.as_deref()),
    ];
    let known = known.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let more = of.extensions.iter().map(|(key, value)| (&**key, &**value));
    known.chain(more).map(|(key, value)| (key.to_owned(), Value::from(value))).collect()
}

fn answer(attempt: &Attempt) -> Value {
    let mut answer = json!({"startedAt": attempt.at.to_string()});
    let parts = [
        ("responseStatus", attempt.status.map(Value::from)),
        ("contentType", attempt.content_type.clone().map(Value::from)),
        ("body", attempt.body.clone().map(Value::from)),
    ];
    for (key, value) in parts {
        if let Some(value) = value {
            set(&mut answer, key, value);
        }
    }
    answer
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::model::event::Attributes;
    use crate::model::ids::{DeliveryName, EventUid, WebhookRef, WebhookUid};
    use crate::store::records::{Asked, State, Waiting};

    pub(in crate::server) const START: UnixMillis = UnixMillis::from_millis(1_800_000_000_000);

    /// A delivery that waits for its first attempt; the larger `n`, the newer.
    pub(in crate::server) fn delivery(namespace: &str, webhook: &str, n: u8) -> Delivery {
        let mut uid = [0; 16];
        uid.iter_mut().zip(namespace.bytes().chain(webhook.bytes())).for_each(|(to, from)| *to = from);
        Delivery {
            name: DeliveryName::from_bytes([n; 16]),
            webhook: WebhookRef {
                uid: WebhookUid::from_bytes(uid),
                namespace: namespace.into(),
                name: webhook.into(),
            },
            event: EventUid::from_bytes([n; 16]),
            event_id: format!("{n},=\\").into(),
            event_type: "order.created".into(),
            test: false,
            accepted_at: START,
            state: State::Pending,
            due: Some(START),
            reason: None,
            attempts: Vec::new(),
            ended_at: None,
            redelivery: None,
            expunged: None,
            event_source: Some("/shop".into()),
        }
    }

    pub(in crate::server) fn failed(mut delivery: Delivery) -> Delivery {
        let at = |secs| START + Duration::from_secs(secs);
        let attempt = |secs, status: Option<u16>, error: &str| Attempt {
            at: at(secs),
            duration: Duration::from_millis(12),
            status,
            body: status.map(|_| "canary-body".to_owned()),
            content_type: status.map(|_| "text/plain".to_owned()),
            body_length: 11,
            error: Some(error.to_owned()),
            asked_by: None,
            probe: false,
            retry_after: None,
        };
        delivery.state = State::Failed;
        delivery.reason = Some(EndReason::RetriesExhausted);
        delivery.attempts =
            vec![attempt(0, None, "connection refused"), attempt(10, Some(503), "the endpoint answered 503")];
        delivery
    }

    fn line(delivery: Delivery, hold: Option<Hold>) -> Line {
        Line::new(delivery, Standing { hold, ..Standing::default() }, START)
    }

    #[test]
    fn an_object_has_all_but_bodies() {
        let line = line(failed(delivery("team-a", "orders", 7)), None);
        let name = "07070707-0707-0707-0707-070707070707";
        assert_eq!(
            serde_json::to_value(line.object()).unwrap(),
            json!({
                "apiVersion": "delivery.hookwright.dev/v1alpha1",
                "kind": "Delivery",
                "metadata": {
                    "name": name, "namespace": "team-a", "uid": name,
                    "resourceVersion": "1800000010012",
                    "creationTimestamp": "2027-01-15T08:00:00Z",
                    "labels": {
                        "hookwright.dev/webhook": "orders", "hookwright.dev/event-type": "order.created",
                    },
                },
                "spec": {
                    "webhookRef": {"name": "orders", "uid": line.delivery.webhook.uid.to_string()},
                    "eventId": "7,=\\", "eventSource": "/shop", "eventType": "order.created", "test": false,
                },
                "status": {
                    "state": "Failed", "reason": "RetriesExhausted", "retryCount": 1, "lastResponseStatus": 503,
                    "attempts": [
                        {
                            "startedAt": "2027-01-15T08:00:00.000Z", "durationMs": 12,
                            "errorMessage": "connection refused",
                        },
                        {
                            "startedAt": "2027-01-15T08:00:10.000Z", "durationMs": 12, "responseStatus": 503,
                            "errorMessage": "the endpoint answered 503", "responseLength": 11,
                            "contentType": "text/plain",
                        },
                    ],
                },
            })
        );
    }

    #[test]
    fn what_somebody_asked_for_is_shown_with_who_and_when_and_is_another_version() {
        let at = |secs| START + Duration::from_secs(secs);
        let asked = |secs| Asked { by: "jane".into(), at: at(secs) };
        let mut delivery = failed(delivery("team-a", "orders", 7));
        let shown =
            |delivery: &Delivery| serde_json::to_value(line(delivery.clone(), None).object()).unwrap();
        let version = |shown: &Value| shown["metadata"]["resourceVersion"].as_str().map(ToOwned::to_owned);
        let before = shown(&delivery);
        assert_eq!((before["status"].get("redelivery"), before["status"].get("expunged")), (None, None));

        delivery.state = State::Pending;
        delivery.redelivery = Some(Waiting { asked: asked(60), had_arrived: false, replay: None });
        let waiting = shown(&delivery);
        let expected = json!({"requestedBy": "jane", "requestedAt": "2027-01-15T08:01:00.000Z"});
        assert_eq!(waiting["status"]["redelivery"], expected);

        delivery.state = State::Success;
        delivery.redelivery = None;
        let last = delivery.attempts[1].clone();
        delivery.attempts.push(Attempt { at: at(61), asked_by: Some("jane".into()), ..last });
        let done = shown(&delivery);
        assert_eq!(done["status"]["attempts"][2]["requestedBy"], "jane");
        assert_eq!(done["status"]["attempts"][1].get("requestedBy"), None);

        delivery.expunged = Some(asked(90));
        let erased = shown(&delivery);
        assert_eq!(erased["status"]["expunged"], json!({"by": "jane", "at": "2027-01-15T08:01:30.000Z"}));
        let versions: Vec<_> = [before, waiting, done, erased].iter().filter_map(version).collect();
        assert_eq!(versions, ["1800000010012", "1800000060000", "1800000061012", "1800000090000"]);
    }

    #[test]
    fn a_held_one_says_why_and_when_it_would_be_due() {
        let status = line(delivery("team-a", "orders", 7), Some(Hold::Paused)).object().status.unwrap();
        assert_eq!((status.state, status.reason.as_deref()), (DeliveryState::Held, Some("Paused")));
        assert_eq!(status.next_retry_at.as_deref(), Some("2027-01-15T08:00:00.000Z"));
        let done = line(failed(delivery("team-a", "orders", 7)), Some(Hold::Paused));
        assert_eq!((done.reason(), done.held(), done.due()), (Some("RetriesExhausted"), None, None));
    }

    #[test]
    fn what_cannot_be_a_label_has_one_made_of_its_beginning_and_hash() {
        let (just, long) = ("x".repeat(63), "orders.".repeat(36));
        for (text, label) in [
            ("order.created", "order.created".to_owned()),
            (&*just, just.clone()),
            (&*long, format!("{}ord-7560f021b3", "orders.".repeat(7))),
            ("a/b", "a_b-c14cddc033".to_owned()),
            ("a-", "a--9baf440720".to_owned()),
            ("/\u{202e}", "8477c6da08".to_owned()),
        ] {
            let made = label_value(text);
            assert!(is_label_value(&made), "{made}");
            assert_eq!(made, label, "{text}");
            let line = Delivery { event_type: text.into(), ..delivery("team-a", text, 7) };
            let labels = labels(&line);
            assert_eq!((&labels[WEBHOOK_LABEL], &labels[EVENT_TYPE_LABEL]), (&label, &label));
        }
        let other = label_value(&("orders.".repeat(35) + "orders-"));
        assert_ne!(other, label_value(&long), "two that begin alike are told apart");
        let without = Delivery { event_type: "".into(), ..delivery("team-a", "orders", 7) };
        assert!(!labels(&without).contains_key(EVENT_TYPE_LABEL));
    }

    #[test]
    fn what_somebody_asked_for_is_no_retry() {
        let mut line = failed(delivery("team-a", "orders", 7));
        let last = line.attempts[1].clone();
        line.attempts.extend([1, 2].map(|_| Attempt { asked_by: Some("jane".into()), ..last.clone() }));
        assert_eq!(line.retry_count(), 1);
    }

    #[test]
    fn a_payload_has_the_data_as_text_or_base64_and_each_answer() {
        let line = line(failed(delivery("team-a", "orders", 7)), None);
        let event = |data: &'static [u8]| Event {
            uid: line.delivery.event,
            namespace: "team-a".into(),
            accepted_at: START,
            attributes: Arc::new(Attributes {
                id: "7".into(),
                source: "/shop".into(),
                event_type: "order.created".into(),
                data_content_type: Some("application/json".into()),
                data_schema: None,
                subject: None,
                time: None,
                extensions: vec![("traceparent".into(), "00".into())],
            }),
            data: Bytes::from_static(data),
        };
        let shown = |event: Option<&Event>| serde_json::to_value(Payload::new(&line, event)).unwrap();
        let text = shown(Some(&event(b"{\"n\":1}")));
        assert_eq!((&text["data"], &text["contentType"]), (&json!("{\"n\":1}"), &json!("application/json")));
        assert_eq!(text["attributes"]["traceparent"], "00");
        assert_eq!(
            text["answers"],
            json!([
                {"startedAt": "2027-01-15T08:00:00.000Z"},
                {
                    "startedAt": "2027-01-15T08:00:10.000Z", "responseStatus": 503, "contentType": "text/plain",
                    "body": "canary-body",
                },
            ])
        );
        let bytes = shown(Some(&event(b"\xff\x00")));
        assert_eq!((&bytes["dataBase64"], bytes.get("data")), (&json!("/wA="), None));
        let gone = shown(None);
        assert_eq!((gone.get("data"), gone.get("attributes")), (None, None));
    }
}
