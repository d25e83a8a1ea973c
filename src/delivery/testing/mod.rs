//! Builders for the tests of this room.

pub(crate) mod attempts;
pub(crate) mod frames;
pub(crate) mod lines;
pub(crate) mod name_server;
pub(crate) mod receiver;
pub(crate) mod store;
pub(crate) mod world;

use std::sync::Arc;
use std::time::Duration;

use crate::model::event::Attributes;
use crate::model::ids::{EventUid, WebhookRef, WebhookUid};
use crate::model::retry;
use crate::model::signature::{Signer, SigningKey};
use crate::model::target::Target;
use crate::model::text::Masks;
use crate::model::time::UnixMillis;
use crate::routes::{Endpoint, TlsMaterial};
use crate::store::Event;

pub(crate) const START: UnixMillis = UnixMillis::from_millis(1_700_000_000_000);

/// A Webhook whose uid follows from its name.
pub(crate) fn webhook(name: &str) -> WebhookRef {
    let mut uid = [0; 16];
    for (at, byte) in name.bytes().enumerate() {
        uid[at % 16] ^= byte;
    }
    WebhookRef { uid: WebhookUid::from_bytes(uid), namespace: "team-a".into(), name: name.into() }
}

pub(crate) fn endpoint(url: &str) -> Endpoint {
    Endpoint {
        target: Target::parse(url).unwrap(),
        timeout: Duration::from_secs(15),
        max_in_flight: 64,
        rate_limit: None,
        retry: retry::Policy {
            max_retries: 3,
            initial: Duration::from_secs(10),
            factor: 6,
            max: Duration::from_hours(24),
        },
        headers: Vec::new(),
        signer: Signer::new(SigningKey::derive(&[7; 32], "team-a", "orders"), Vec::new()),
        tls: TlsMaterial::default(),
        masks: Masks::default(),
        denied: None,
    }
}

pub(crate) fn event(data: &'static [u8]) -> Event {
    Event {
        uid: EventUid::from_bytes([1; 16]),
        namespace: "team-a".into(),
        accepted_at: START,
        attributes: Arc::new(Attributes {
            id: "1".into(),
            source: "/tests".into(),
            event_type: "order.created".into(),
            data_content_type: Some("application/json".into()),
            data_schema: None,
            subject: None,
            time: None,
            extensions: Vec::new(),
        }),
        data: bytes::Bytes::from_static(data),
    }
}
