//! Erasing a Webhook, in bounded steps, so that the commits of others go between.

use std::collections::HashMap;

use super::disk::{Disk, engine};
use super::format;
use super::hooks::Hooks;
use super::keys;
use super::lane::LaneId;
use crate::model::ids::{EventUid, WebhookUid};
use crate::store::Result;
use crate::store::records::{Delivery, Summary};

/// Deliveries that are erased in one step.
const STEP: usize = 256;

/// What a step did.
pub(super) struct Step {
    /// Deliveries that no longer wait.
    pub discarded: u64,
    /// Nothing of the Webhook is left.
    pub done: bool,
}

/// Erases a part of a Webhook, synced. The first step discards what waits; the last one erases the summary, so
/// that after a crash in between the Webhook is still known and can be purged again.
pub(super) fn step(disk: &Disk, hooks: &Hooks, webhook: WebhookUid) -> Result<Step> {
    let mut batch = disk.db.batch().durability(Some(fjall::PersistMode::SyncData));
    let names = names(disk, webhook)?;
    let mut references = HashMap::new();
    for (key, name) in &names {
        batch.remove(&disk.index, key.clone());
        let Some(delivery) = disk.delivery(*name)? else { continue };
        batch.remove(&disk.log, *name.as_bytes());
        if let Some((LaneId::Retry, slot)) = super::disk::place(&delivery) {
            batch.remove(&disk.retries, keys::retry(webhook, slot));
        }
        if delivery.test && !delivery.state.is_final() {
            batch.remove(&disk.meta, keys::meta::test(*name));
        }
        forget_reference(disk, &delivery, &mut references)?;
    }
    for (event, left) in references {
        match left {
            0 => batch.remove(&disk.events, *event.as_bytes()),
            1 => {}
            more => {
                batch.insert(&disk.meta, keys::meta::references(event), more.to_be_bytes());
                continue;
            }
        }
        batch.remove(&disk.meta, keys::meta::references(event));
    }
    let done = names.len() < STEP;
    let hook = hooks.get(webhook);
    let before = hook.as_ref().map(|hook| hook.summary());
    let discarded = before.as_ref().map_or(0, |summary| summary.pending);
    let after = before.map(|before| Summary { pending: 0, pending_bytes: 0, ..(*before).clone() });
    match &after {
        _ if done => batch.remove(&disk.meta, keys::meta::summary(webhook)),
        Some(summary) => batch.insert(&disk.meta, keys::meta::summary(webhook), format::encode(summary)?),
        None => {}
    }
    if let Some(hook) = &hook {
        hook.queue().purge();
    }
    batch.commit().map_err(engine("commit"))?;
    if done {
        hooks.remove(webhook);
    } else if let Some(summary) = after {
        hooks.set(summary);
    }
    Ok(Step { discarded, done })
}

type Named = (fjall::UserKey, crate::model::ids::DeliveryName);

fn names(disk: &Disk, webhook: WebhookUid) -> Result<Vec<Named>> {
    let mut names = Vec::new();
    for entry in disk.index.prefix(keys::index_of(webhook)).take(STEP) {
        let key = entry.key().map_err(engine("read from the store"))?;
        if let Some(name) = keys::name_in_index(&key) {
            names.push((key, name));
        }
    }
    Ok(names)
}

fn forget_reference(disk: &Disk, delivery: &Delivery, left: &mut HashMap<EventUid, u32>) -> Result<()> {
    use std::collections::hash_map::Entry;
    let count = match left.entry(delivery.event) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            let stored = disk.meta.get(keys::meta::references(delivery.event));
            let stored = stored.map_err(engine("read from the store"))?;
            let count = stored.and_then(|value| value.as_ref().try_into().ok()).map_or(1, u32::from_be_bytes);
            entry.insert(count)
        }
    };
    *count = count.saturating_sub(1);
    Ok(())
}
