//! Erasing a Webhook, in bounded steps, so that the commits of others go between.

use super::disk::{Disk, engine};
use super::erase::Erasure;
use super::format;
use super::hooks::Hooks;
use super::keys;
use super::replays::Changes;
use super::usage::Owner;
use crate::model::causes::chain;
use crate::model::ids::{DeliveryName, WebhookUid};
use crate::store::records::Summary;
use crate::store::{Error, Result};

/// Deliveries that are erased in one step.
const STEP: usize = 256;

/// What a step did.
pub(super) struct Step {
    /// Deliveries that waited, which nobody gets now: told by the last step.
    pub discarded: u64,
    /// By how many more deliveries are counted as waiting.
    pub more: i64,
    /// Where to go on; none: nothing of the Webhook is left.
    pub next: Option<Cursor>,
}

/// Where a purge stands. What was erased is not walked over again.
#[derive(Clone, Debug, Default)]
pub(super) struct Cursor {
    after: Option<fjall::UserKey>,
    /// Something was added meanwhile, perhaps behind it.
    again: bool,
    /// A step was made: the Webhook is marked, unless it was not known.
    begun: bool,
}

/// Erases a part of a Webhook, synced. The first step discards what waits, and marks the Webhook, so that nobody takes
/// over what is left; the last one erases the summary, so that after a crash in between the Webhook is still known and
/// can be purged again. Until then the summary keeps how much waited, so that it is told though the process ends in
/// between.
pub(super) fn step(disk: &Disk, hooks: &Hooks, webhook: WebhookUid, cursor: &Cursor) -> Result<Step> {
    let hook = hooks.known_as(webhook);
    let is_another = match &hook {
        // Another purge has come to its end meanwhile, and it was made known anew.
        Some(hook) => cursor.begun && !hook.summary().erasing,
        // Another has taken over.
        None => hooks.get(webhook).is_some(),
    };
    if is_another {
        return Ok(Step { discarded: 0, more: 0, next: None });
    }
    let key = hook.as_ref().map_or(webhook, |hook| hook.key());
    // Before it is looked what there is: what is added from now on is noticed by the queue.
    let added = hook.as_ref().is_some_and(|hook| hook.queue().purge());
    let again = cursor.again || added;
    let names = disk.names(key, cursor.after.as_deref(), STEP)?;
    let mut erasure =
        Erasure::new(disk, hooks, disk.db.batch().durability(Some(fjall::PersistMode::SyncData)));
    erase(&mut erasure, disk, &names)?;
    let (mut batch, mut deltas) = erasure.finish();

    let last = names.last().filter(|_| names.len() == STEP).map(|(key, _)| key.clone());
    let before = hook.map(|hook| hook.summary());
    let next = match last {
        Some(last) => Some(Cursor { after: Some(last), again, begun: true }),
        None if again => Some(Cursor { begun: true, ..Cursor::default() }),
        None => None,
    };
    let waited = before.as_ref().map_or(0, |summary| summary.pending);
    let discarded = if next.is_none() { waited } else { 0 };
    let after = before.map(|before| Summary { erasing: true, ..Summary::clone(&before) });
    match &after {
        _ if next.is_none() => batch.remove(&disk.meta, keys::meta::summary(key)),
        Some(summary) => batch.insert(&disk.meta, keys::meta::summary(key), format::encode(summary)?),
        None => {}
    }
    let (mut replays, mut last_of) = (Changes::default(), None);
    if next.is_none() {
        let owner = after.as_ref().map(|summary| hooks.owner(summary));
        last_of = owner.filter(|owner| hooks.of_owner(owner).iter().all(|hook| hook.key() == key));
        replays.webhook_gone(hooks, key, last_of.as_ref());
        if let Some(Owner { namespace, uid: None }) = &last_of {
            batch.remove(&disk.meta, keys::meta::heir(namespace));
        }
    }
    deltas.save(disk, hooks.usages(), &mut batch)?;
    replays.save(disk, &mut batch)?;
    batch.insert(&disk.meta, keys::meta::DEBT, b"");
    disk.commit(batch).map_err(engine("commit"))?;
    deltas.apply(hooks.usages());
    replays.apply(hooks.replays());
    let more = match after {
        _ if next.is_none() => hooks.remove(key),
        Some(summary) => hooks.set(key, summary).1,
        None => 0,
    };
    if let Some(Owner { namespace, uid: None }) = &last_of {
        hooks.usages().set_heir(namespace, None);
    }
    Ok(Step { discarded, more, next })
}

fn erase(erasure: &mut Erasure<'_>, disk: &Disk, names: &[(fjall::UserKey, DeliveryName)]) -> Result<()> {
    for (key, name) in names {
        erasure.batch.remove(&disk.index, key.clone());
        match disk.delivery(*name) {
            Ok(Some(delivery)) => erasure.line(&delivery)?,
            Ok(None) => {}
            // It must not keep the rest; its event stays.
            Err(error @ Error::Corrupt { .. }) => {
                tracing::error!(delivery = %name, error = %chain(&error), "erased unread");
                erasure.batch.remove(&disk.log, *name.as_bytes());
            }
            Err(other) => return Err(other),
        }
    }
    Ok(())
}
