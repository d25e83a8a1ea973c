//! What memory knows of each Webhook: its numbers and its queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use arc_swap::ArcSwap;

use super::queue::{Budgets, Queue};
use super::replays::Replays;
use super::usage::Usages;
use crate::model::ids::{WebhookRef, WebhookUid};
use crate::store::records::Summary;

/// One Webhook.
#[derive(Debug)]
pub(super) struct Hook {
    summary: ArcSwap<Summary>,
    queue: Mutex<Queue>,
    /// One refill of its queue is read at a time.
    pub refilling: Arc<tokio::sync::Mutex<()>>,
}

impl Hook {
    fn new(summary: Summary, queue: Queue) -> Self {
        Self { summary: ArcSwap::from_pointee(summary), queue: Mutex::new(queue), refilling: Arc::default() }
    }

    /// Its numbers, as of the last commit.
    pub(super) fn summary(&self) -> Arc<Summary> {
        self.summary.load_full()
    }

    /// Its queue; held for moments only, never while something is read.
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every known Webhook.
#[derive(Debug)]
pub(super) struct Hooks {
    map: RwLock<HashMap<WebhookUid, Arc<Hook>>>,
    budgets: Budgets,
    usages: Usages,
    replays: Replays,
}

impl Hooks {
    /// What the store knows at its opening.
    pub(super) fn new(
        summaries: impl IntoIterator<Item = Summary>,
        budgets: Budgets,
        usages: Usages,
        replays: Replays,
    ) -> Self {
        let hook = |summary: Summary| {
            usages.waits(&summary.webhook.namespace, 0, summary.pending_bytes);
            let queue = if summary.pending == 0 { Queue::empty } else { Queue::on_disk };
            (summary.webhook.uid, Arc::new(Hook::new(summary, queue(&budgets))))
        };
        let map = summaries.into_iter().map(hook).collect();
        Self { map: RwLock::new(map), budgets, usages, replays }
    }

    /// One Webhook.
    pub(super) fn get(&self, webhook: WebhookUid) -> Option<Arc<Hook>> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).get(&webhook).cloned()
    }

    /// What namespaces use.
    pub(super) fn usages(&self) -> &Usages {
        &self.usages
    }

    /// Every replay.
    pub(super) fn replays(&self) -> &Replays {
        &self.replays
    }

    /// Sets the numbers of a Webhook, which is new if it was not known.
    pub(super) fn set(&self, summary: Summary) -> Arc<Hook> {
        let uid = summary.webhook.uid;
        let known = self.get(uid);
        let before = known.as_ref().map_or(0, |hook| hook.summary().pending_bytes);
        self.usages.waits(&summary.webhook.namespace, before, summary.pending_bytes);
        if let Some(hook) = known {
            hook.summary.store(Arc::new(summary));
            return hook;
        }
        let hook = Arc::new(Hook::new(summary, Queue::empty(&self.budgets)));
        self.map.write().unwrap_or_else(PoisonError::into_inner).insert(uid, Arc::clone(&hook));
        hook
    }

    /// Forgets a Webhook.
    pub(super) fn remove(&self, webhook: WebhookUid) {
        let gone = self.map.write().unwrap_or_else(PoisonError::into_inner).remove(&webhook);
        if let Some(summary) = gone.map(|hook| hook.summary()) {
            self.usages.waits(&summary.webhook.namespace, summary.pending_bytes, 0);
        }
    }

    /// When memory for windows was short, those that nobody has claimed from since the last time give theirs
    /// back: what waits for a paused Webhook must not keep the others out of memory.
    pub(super) fn share_memory(&self) {
        if self.budgets.were_short() {
            for hook in self.pick(|hook, _| Some(Arc::clone(hook))) {
                hook.queue().rest();
            }
        }
    }

    /// Names of all.
    pub(super) fn known(&self) -> Vec<WebhookRef> {
        self.pick(|_, summary| Some(summary.webhook.clone()))
    }

    /// What `pick` takes of each.
    pub(super) fn pick<T>(&self, pick: impl Fn(&Arc<Hook>, &Summary) -> Option<T>) -> Vec<T> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.values().filter_map(|hook| pick(hook, &hook.summary.load())).collect()
    }
}
