//! Erasing a Webhook, in bounded steps, so that the commits of others go between.

use std::collections::HashMap;

use super::disk::{Disk, engine, place};
use super::format;
use super::hooks::Hooks;
use super::keys;
use super::lane::LaneId;
use crate::model::ids::{DeliveryName, EventUid, WebhookUid};
use crate::store::Result;
use crate::store::records::{Delivery, Summary};

/// Deliveries that are erased in one step.
const STEP: usize = 256;

/// What a step did.
pub(super) struct Step {
    /// Deliveries that no longer wait.
    pub discarded: u64,
    /// Where to go on; none: nothing of the Webhook is left.
    pub next: Option<Cursor>,
}

/// Where a purge stands. What was erased is not walked over again.
#[derive(Clone, Debug, Default)]
pub(super) struct Cursor {
    after: Option<fjall::UserKey>,
    /// Something was added meanwhile, perhaps behind it.
    again: bool,
}

/// Erases a part of a Webhook, synced. The first step discards what waits; the last one erases the summary, so
/// that after a crash in between the Webhook is still known and can be purged again.
pub(super) fn step(disk: &Disk, hooks: &Hooks, webhook: WebhookUid, cursor: &Cursor) -> Result<Step> {
    let hook = hooks.get(webhook);
    // Before it is looked what there is: what is added from now on is noticed by the queue.
    let added = hook.as_ref().is_some_and(|hook| hook.queue().purge());
    let again = cursor.again || added;
    let names = disk.names(webhook, cursor.after.as_deref(), STEP)?;
    let mut batch = disk.db.batch().durability(Some(fjall::PersistMode::SyncData));
    erase(disk, webhook, &names, &mut batch)?;

    let last = names.last().filter(|_| names.len() == STEP).map(|(key, _)| key.clone());
    let before = hook.map(|hook| hook.summary());
    let discarded = before.as_ref().map_or(0, |summary| summary.pending);
    let next = match last {
        Some(last) => Some(Cursor { after: Some(last), again }),
        None if again => Some(Cursor::default()),
        None => None,
    };
    let after = before.map(|before| Summary { pending: 0, pending_bytes: 0, ..(*before).clone() });
    match &after {
        _ if next.is_none() => batch.remove(&disk.meta, keys::meta::summary(webhook)),
        Some(summary) => batch.insert(&disk.meta, keys::meta::summary(webhook), format::encode(summary)?),
        None => {}
    }
    batch.commit().map_err(engine("commit"))?;
    match after {
        _ if next.is_none() => hooks.remove(webhook),
        Some(summary) => drop(hooks.set(summary)),
        None => {}
    }
    Ok(Step { discarded, next })
}

fn erase(
    disk: &Disk,
    webhook: WebhookUid,
    names: &[(fjall::UserKey, DeliveryName)],
    batch: &mut fjall::OwnedWriteBatch,
) -> Result<()> {
    let mut references = HashMap::new();
    for (key, name) in names {
        batch.remove(&disk.index, key.clone());
        let Some(delivery) = disk.delivery(*name)? else { continue };
        batch.remove(&disk.log, *name.as_bytes());
        if let Some((LaneId::Retry, slot)) = place(&delivery) {
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
    Ok(())
}

/// One delivery less needs its event. One that has no count is needed by one.
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
