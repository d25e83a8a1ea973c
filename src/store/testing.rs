//! Builders for tests of this room and of those above.

use std::sync::Arc;

use bytes::Bytes;

use super::{NewDelivery, NewEvent};
use crate::model::event::Attributes;
use crate::model::ids::{Minter, WebhookRef};
use crate::model::time::UnixMillis;

/// An event of `team-a`, accepted then, with one delivery a Webhook.
pub(crate) fn event(minter: &Minter, now: UnixMillis, hooks: &[&WebhookRef]) -> NewEvent {
    NewEvent {
        uid: minter.event(now),
        namespace: "team-a".into(),
        attributes: Arc::new(Attributes {
            id: "1".into(),
            source: "/shop".into(),
            event_type: "order.created".into(),
            data_content_type: None,
            data_schema: None,
            subject: None,
            time: None,
            extensions: vec![],
        }),
        data: Bytes::from_static(b"{}"),
        accepted_at: now,
        dedup: None,
        deliveries: hooks
            .iter()
            .map(|hook| NewDelivery { name: minter.delivery(now), webhook: (*hook).clone(), test: false })
            .collect(),
    }
}
