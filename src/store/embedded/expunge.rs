//! Staging that an event is erased.

use std::sync::Arc;

use bytes::Bytes;

use super::group::{Group, settled};
use super::lane::Loaded;
use crate::model::event::Attributes;
use crate::model::ids::DeliveryName;
use crate::store::Result;
use crate::store::records::{Asked, Delivery, EndReason, Event, Expunge, Expunged, Next, Outcome};

impl Group<'_> {
    /// Stages that an event is erased, of which these are the deliveries; see [`crate::store::Store::expunge`].
    pub(super) fn expunge(&mut self, asked: &Expunge, names: &[DeliveryName]) -> Result<Expunged> {
        let one = self.line(asked.name)?;
        let Some(one) = one.filter(|line| line.webhook.namespace == asked.namespace) else {
            return Ok(Expunged::NotFound);
        };
        let (mut deliveries, mut ended) = (0, 0);
        let bytes = self.event(one.event)?.map_or(0, |event| event.data.len() as u64);
        for name in names {
            // Those of a Webhook that is gone, too: another may take over what it left.
            let Some(line) = self.any_line(*name)? else { continue };
            if line.event == one.event && line.expunged.is_none() {
                deliveries += 1;
                ended += usize::from(!line.state.is_final());
                self.expunge_one(&line, asked, bytes)?;
            }
        }
        if deliveries > 0 {
            self.owe_erasure();
            self.erase_event(&one)?;
        }
        Ok(Expunged::Done { deliveries, ended })
    }

    fn expunge_one(&mut self, before: &Delivery, asked: &Expunge, bytes: u64) -> Result<()> {
        let by = Asked { by: Arc::clone(&asked.by), at: asked.at };
        let mut after = Delivery { expunged: Some(by), event_source: None, ..before.clone() };
        for attempt in &mut after.attempts {
            attempt.body = None;
        }
        if !before.state.is_final() {
            let outcome = Outcome {
                name: before.name,
                webhook: before.webhook.uid,
                attempt: None,
                next: Next::Failed(EndReason::Expunged),
                disable: None,
                failing: None,
                at: asked.at,
            };
            if let Some(summary) = self.summary(before.webhook.uid) {
                summary.apply(&outcome, before.purpose(), bytes);
            }
            if let Some(put) = before.put_by() {
                self.recall(put.id, before);
            }
            after = settled(after, outcome);
        }
        let nothing = Arc::new(nothing_of(before));
        self.put(before, Arc::new(Loaded::new(after, nothing, 1)))
    }
}

/// What remains of an event.
pub(super) fn nothing_of(line: &Delivery) -> Event {
    Event {
        uid: line.event,
        namespace: Arc::clone(&line.webhook.namespace),
        accepted_at: line.accepted_at,
        attributes: Arc::new(Attributes {
            id: Arc::clone(&line.event_id),
            source: "".into(),
            event_type: Arc::clone(&line.event_type),
            data_content_type: None,
            data_schema: None,
            subject: None,
            time: None,
            extensions: vec![],
        }),
        data: Bytes::new(),
    }
}
