//! What memory knows of each Webhook: its numbers and its queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use arc_swap::ArcSwap;

use super::newest::Newest;
use super::queue::{Budgets, Queue};
use super::replays::Replays;
use super::usage::Usages;
use crate::model::ids::{Namespace, WebhookRef, WebhookUid};
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

/// Webhooks by identity and by namespace.
#[derive(Debug, Default)]
struct Known {
    by_uid: HashMap<WebhookUid, Arc<Hook>>,
    by_namespace: HashMap<Namespace, HashMap<WebhookUid, Arc<Hook>>>,
}

impl Known {
    fn insert(&mut self, hook: Arc<Hook>) {
        let webhook = hook.summary().webhook.clone();
        self.by_namespace.entry(webhook.namespace).or_default().insert(webhook.uid, Arc::clone(&hook));
        self.by_uid.insert(webhook.uid, hook);
    }

    fn remove(&mut self, webhook: WebhookUid) -> Option<Arc<Hook>> {
        let hook = self.by_uid.remove(&webhook)?;
        let namespace = &hook.summary().webhook.namespace;
        if let Some(others) = self.by_namespace.get_mut(namespace) {
            others.remove(&webhook);
            if others.is_empty() {
                self.by_namespace.remove(namespace);
            }
        }
        Some(hook)
    }
}

/// Every known Webhook.
#[derive(Debug)]
pub(super) struct Hooks {
    known: RwLock<Known>,
    budgets: Budgets,
    usages: Usages,
    replays: Replays,
    newest: Newest,
}

impl Hooks {
    /// What the store knows at its opening.
    pub(super) fn new(
        summaries: impl IntoIterator<Item = Summary>,
        budgets: Budgets,
        usages: Usages,
        replays: Replays,
        newest: Newest,
    ) -> Self {
        let mut known = Known::default();
        for summary in summaries {
            usages.waits(&summary.webhook.namespace, 0, summary.pending_bytes);
            let queue = if summary.pending == 0 { Queue::empty } else { Queue::on_disk };
            known.insert(Arc::new(Hook::new(summary, queue(&budgets))));
        }
        Self { known: RwLock::new(known), budgets, usages, replays, newest }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// One Webhook.
    pub(super) fn get(&self, webhook: WebhookUid) -> Option<Arc<Hook>> {
        self.read().by_uid.get(&webhook).cloned()
    }

    /// Those of a namespace.
    pub(super) fn of_namespace(&self, namespace: &str) -> Vec<Arc<Hook>> {
        let of_namespace =
            |known: &Known| Some(known.by_namespace.get(namespace)?.values().cloned().collect());
        of_namespace(&self.read()).unwrap_or_default()
    }

    /// Namespaces that have a Webhook.
    pub(super) fn namespaces(&self) -> Vec<Namespace> {
        self.read().by_namespace.keys().cloned().collect()
    }

    /// What namespaces use.
    pub(super) fn usages(&self) -> &Usages {
        &self.usages
    }

    /// Every replay.
    pub(super) fn replays(&self) -> &Replays {
        &self.replays
    }

    /// The newest time that was written.
    pub(super) fn newest(&self) -> &Newest {
        &self.newest
    }

    /// Sets the numbers of a Webhook, which is new if it was not known.
    pub(super) fn set(&self, summary: Summary) -> Arc<Hook> {
        let uid = summary.webhook.uid;
        let known = self.get(uid);
        let before = known.as_ref().map_or(0, |hook| hook.summary().pending_bytes);
        self.usages.waits(&summary.webhook.namespace, before, summary.pending_bytes);
        if let Some(hook) = known {
            let moves = hook.summary().webhook.namespace != summary.webhook.namespace;
            let gone = if moves { self.write().remove(uid) } else { None };
            hook.summary.store(Arc::new(summary));
            if let Some(hook) = gone {
                self.write().insert(hook);
            }
            return hook;
        }
        let hook = Arc::new(Hook::new(summary, Queue::empty(&self.budgets)));
        self.write().insert(Arc::clone(&hook));
        hook
    }

    /// Forgets a Webhook.
    pub(super) fn remove(&self, webhook: WebhookUid) {
        let gone = self.write().remove(webhook);
        if let Some(summary) = gone.map(|hook| hook.summary()) {
            self.usages.waits(&summary.webhook.namespace, summary.pending_bytes, 0);
        }
    }

    /// When memory for windows was short, those that nobody has claimed from since the last time give theirs
    /// back: what waits for a paused Webhook must not keep the others out of memory.
    pub(super) fn share_memory(&self) {
        if self.budgets.were_short() {
            for hook in self.all() {
                hook.queue().rest();
            }
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Hook>> {
        self.read().by_uid.values().cloned().collect()
    }

    /// Names of all.
    pub(super) fn known(&self) -> Vec<WebhookRef> {
        self.pick(|summary| Some(summary.webhook.clone()))
    }

    /// What `pick` takes of the numbers of each.
    pub(super) fn pick<T>(&self, pick: impl Fn(&Summary) -> Option<T>) -> Vec<T> {
        self.read().by_uid.values().filter_map(|hook| pick(&hook.summary.load())).collect()
    }
}
