//! Erasing deliveries, and events that no other needs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::disk::{Disk, place};
use super::format::References;
use super::hooks::Hooks;
use super::keys;
use super::lane::LaneId;
use super::usage::Deltas;
use crate::model::ids::EventUid;
use crate::store::Result;
use crate::store::records::Delivery;

/// What goes in one commit.
pub(super) struct Erasure<'a> {
    disk: &'a Disk,
    hooks: &'a Hooks,
    /// The commit.
    pub batch: fjall::OwnedWriteBatch,
    /// What it does to the namespaces.
    pub deltas: Deltas,
    references: HashMap<EventUid, References>,
}

impl<'a> Erasure<'a> {
    pub(super) fn new(disk: &'a Disk, hooks: &'a Hooks, batch: fjall::OwnedWriteBatch) -> Self {
        Self { disk, hooks, batch, deltas: Deltas::default(), references: HashMap::new() }
    }

    /// Erases a delivery but for its key in the index.
    pub(super) fn line(&mut self, delivery: &Delivery) -> Result<()> {
        let disk = self.disk;
        self.batch.remove(&disk.log, *delivery.name.as_bytes());
        for term in keys::terms(delivery) {
            self.batch.remove(&disk.terms, term);
        }
        if let Some((LaneId::Retry, slot)) = place(delivery) {
            self.batch.remove(&disk.retries, keys::retry(delivery.webhook.uid, slot));
        }
        if delivery.test && !delivery.state.is_final() {
            self.batch.remove(&disk.meta, keys::meta::test(delivery.name));
        }
        if let Some(put) = delivery.put_by() {
            self.batch.remove(&disk.meta, keys::meta::replayed(put.id, delivery.name));
        }
        self.deltas.line_gone(&self.hooks.owner_of(delivery), delivery);
        self.forget_reference(delivery)
    }

    /// One delivery less needs its event. One that has no count is needed by one.
    fn forget_reference(&mut self, delivery: &Delivery) -> Result<()> {
        let references = match self.references.entry(delivery.event) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let stored = self.disk.references(delivery.event)?;
                entry.insert(stored.unwrap_or(References { left: 1, names: vec![] }))
            }
        };
        references.left = references.left.saturating_sub(1);
        if references.left == 0
            && let Some(bytes) = self.disk.event_size(delivery.event)?
        {
            self.batch.remove(&self.disk.events, *delivery.event.as_bytes());
            self.deltas.event_gone(&self.hooks.owner_of(delivery), bytes);
        }
        Ok(())
    }

    /// The commit, but for what namespaces use.
    pub(super) fn finish(self) -> (fjall::OwnedWriteBatch, Deltas) {
        let Self { disk, hooks: _, mut batch, deltas, references } = self;
        for (event, references) in references {
            let key = keys::meta::references(event);
            if references.left > 1 {
                batch.insert(&disk.meta, key, references.encode());
            } else {
                batch.remove(&disk.meta, key);
            }
        }
        (batch, deltas)
    }
}
