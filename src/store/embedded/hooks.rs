//! What memory knows of each Webhook: its numbers and its queue.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use arc_swap::ArcSwap;

use super::newest::Newest;
use super::queue::{Budgets, Queue};
use super::replays::Replays;
use super::usage::{Owner, Usages};
use crate::model::ids::{Namespace, WebhookRef, WebhookUid};
use crate::store::records::{Delivery, Summary, Usage};

/// One Webhook.
#[derive(Debug)]
pub(super) struct Hook {
    /// Under what all of it is kept: its uid, or that of the first of those from whom it took over.
    key: WebhookUid,
    summary: ArcSwap<Summary>,
    queue: Mutex<Queue>,
    gone: AtomicBool,
    counted: Mutex<Counted>,
    /// One refill of its queue is read at a time.
    pub refilling: Arc<tokio::sync::Mutex<()>>,
}

/// What waits, as far as it is counted for its namespace.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    deliveries: u64,
    bytes: u64,
}

impl Hook {
    fn new(key: WebhookUid, summary: Summary, queue: Queue) -> Self {
        Self {
            key,
            summary: ArcSwap::from_pointee(summary),
            queue: Mutex::new(queue),
            gone: AtomicBool::new(false),
            counted: Mutex::default(),
            refilling: Arc::default(),
        }
    }

    /// Under what all of it is kept.
    pub(super) const fn key(&self) -> WebhookUid {
        self.key
    }

    /// Its numbers, as of the last commit.
    pub(super) fn summary(&self) -> Arc<Summary> {
        self.summary.load_full()
    }

    /// Its queue; held for moments only, never while something is read.
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing of it is shown, sent or counted any more.
    pub(super) fn is_hidden(&self) -> bool {
        self.gone.load(Ordering::SeqCst) || self.summary.load().erasing
    }

    /// A line as others know it: what was kept for a predecessor is this one's.
    pub(super) fn as_known(&self, line: &mut Delivery) {
        let summary = self.summary.load();
        if summary.webhook.uid != self.key {
            line.webhook = summary.webhook.clone();
        }
    }

    fn waits(&self) -> Counted {
        if self.is_hidden() {
            return Counted::default();
        }
        let summary = self.summary.load();
        Counted { deliveries: summary.pending, bytes: summary.pending_bytes }
    }
}

/// The Webhooks under one namespace's name.
#[derive(Debug, Default)]
struct Place {
    hooks: HashMap<WebhookUid, Arc<Hook>>,
    /// Of those that are not gone.
    owners: Vec<Owner>,
}

/// Webhooks by what they are kept under, and by namespace.
#[derive(Debug, Default)]
struct Known {
    by_key: HashMap<WebhookUid, Arc<Hook>>,
    /// What those that took over are kept under, also after others took over from them: what began for any of them
    /// still names it.
    keys: HashMap<WebhookUid, WebhookUid>,
    by_namespace: HashMap<Namespace, Place>,
}

impl Known {
    fn insert(&mut self, hook: Arc<Hook>) {
        let webhook = hook.summary().webhook.clone();
        self.by_namespace.entry(webhook.namespace).or_default().hooks.insert(hook.key, Arc::clone(&hook));
        if webhook.uid != hook.key {
            self.keys.insert(webhook.uid, hook.key);
        }
        self.by_key.insert(hook.key, hook);
    }

    fn remove(&mut self, key: WebhookUid) -> Option<Arc<Hook>> {
        self.keys.retain(|_, kept_under| *kept_under != key);
        self.take(key)
    }

    /// Takes one out, to be inserted again.
    fn take(&mut self, key: WebhookUid) -> Option<Arc<Hook>> {
        let hook = self.by_key.remove(&key)?;
        let summary = hook.summary();
        let namespace = &summary.webhook.namespace;
        if let Some(place) = self.by_namespace.get_mut(namespace) {
            place.hooks.remove(&key);
            if place.hooks.is_empty() {
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
    /// What the store knows at its opening, each under its key.
    pub(super) fn new(
        summaries: impl IntoIterator<Item = (WebhookUid, Summary)>,
        budgets: Budgets,
        usages: Usages,
        replays: Replays,
        newest: Newest,
    ) -> Self {
        let hooks = Self { known: RwLock::default(), budgets, usages, replays, newest };
        for (key, summary) in summaries {
            let queue = if summary.pending == 0 { Queue::empty } else { Queue::on_disk };
            hooks.add(Hook::new(key, summary, queue(&hooks.budgets)));
        }
        hooks
    }

    fn add(&self, hook: Hook) -> (Arc<Hook>, i64) {
        let hook = Arc::new(hook);
        self.write().insert(Arc::clone(&hook));
        self.sum_up(&hook.summary().webhook.namespace);
        let more = self.count(&hook);
        (hook, more)
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what waits for a Webhook as it is now; answers by how many deliveries it is more than before.
    fn count(&self, hook: &Hook) -> i64 {
        let mut counted = hook.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *counted, hook.waits());
        self.usages.waits(&self.owner(&hook.summary()), before.bytes, counted.bytes);
        counted.deliveries.cast_signed() - before.deliveries.cast_signed()
    }

    /// Says anew whose Webhooks there are under a namespace's name.
    fn sum_up(&self, namespace: &str) {
        let mut known = self.write();
        let Some(place) = known.by_namespace.get_mut(namespace) else { return };
        let seen = place.hooks.values().filter(|hook| !hook.is_hidden());
        let owners: HashSet<Owner> = seen.map(|hook| self.owner(&hook.summary())).collect();
        place.owners = owners.into_iter().collect();
    }

    /// How many deliveries wait, as far as they are counted.
    pub(super) fn waiting(&self) -> u64 {
        let counted =
            |hook: &Arc<Hook>| hook.counted.lock().unwrap_or_else(PoisonError::into_inner).deliveries;
        self.read().by_key.values().map(counted).sum()
    }

    /// What a Webhook is kept under, given its uid or that of one from whom it took over.
    pub(super) fn key(&self, webhook: WebhookUid) -> WebhookUid {
        self.read().keys.get(&webhook).copied().unwrap_or(webhook)
    }

    /// The uid by which others know the Webhook that is kept under a key.
    pub(super) fn uid(&self, key: WebhookUid) -> WebhookUid {
        self.get(key).map_or(key, |hook| hook.summary.load().webhook.uid)
    }

    /// The uids by which others know the Webhooks that are kept under these keys.
    pub(super) fn uids(&self, keys: impl IntoIterator<Item = WebhookUid>) -> Vec<WebhookUid> {
        keys.into_iter().map(|key| self.uid(key)).collect()
    }

    /// One Webhook, by its key or its uid.
    pub(super) fn get(&self, webhook: WebhookUid) -> Option<Arc<Hook>> {
        let known = self.read();
        let key = known.keys.get(&webhook).unwrap_or(&webhook);
        known.by_key.get(key).cloned()
    }

    /// The Webhook that has this uid now, gone or not.
    pub(super) fn known_as(&self, webhook: WebhookUid) -> Option<Arc<Hook>> {
        self.get(webhook).filter(|hook| hook.summary.load().webhook.uid == webhook)
    }

    /// The Webhook that has this uid now and is not gone.
    pub(super) fn seen(&self, webhook: WebhookUid) -> Option<Arc<Hook>> {
        self.known_as(webhook).filter(|hook| !hook.is_hidden())
    }

    /// Whether a line is shown; and if so, as others know it. One of a Webhook that is not known is not: it was erased
    /// meanwhile, or is about to be.
    pub(super) fn show(&self, line: &mut Delivery) -> bool {
        let Some(hook) = self.get(line.webhook.uid) else { return false };
        hook.as_known(line);
        !hook.is_hidden()
    }

    /// Those of a namespace that are not gone.
    pub(super) fn of_namespace(&self, namespace: &str) -> Vec<Arc<Hook>> {
        self.in_place(namespace, |hook| !hook.is_hidden())
    }

    /// Those of an owner, gone or not.
    pub(super) fn of_owner(&self, owner: &Owner) -> Vec<Arc<Hook>> {
        self.in_place(&owner.namespace, |hook| self.owner(&hook.summary()) == *owner)
    }

    fn in_place(&self, namespace: &str, wanted: impl Fn(&Arc<Hook>) -> bool) -> Vec<Arc<Hook>> {
        let known = self.read();
        let hooks = known.by_namespace.get(namespace).map(|place| place.hooks.values());
        hooks.into_iter().flatten().filter(|hook| wanted(hook)).cloned().collect()
    }

    /// The Webhook from whom this one takes over: one that is gone, of the same name in the very same namespace.
    pub(super) fn predecessor(&self, summary: &Summary) -> Option<Arc<Hook>> {
        let uid = summary.namespace_uid?;
        let left = |hook: &Arc<Hook>| {
            let known = hook.summary();
            known.webhook.name == summary.webhook.name
                && known.namespace_uid == Some(uid)
                && hook.gone.load(Ordering::SeqCst)
                && !known.erasing
                && !hook.queue().purging()
        };
        let left = self.in_place(&summary.webhook.namespace, left);
        left.into_iter().max_by_key(|hook| (hook.summary().pending, hook.summary().last_triggered))
    }

    /// Namespaces that have a Webhook.
    pub(super) fn namespaces(&self) -> Vec<Namespace> {
        self.read().by_namespace.keys().cloned().collect()
    }

    /// Whose a Webhook with these numbers is.
    pub(super) fn owner(&self, summary: &Summary) -> Owner {
        self.usages.owner(&summary.webhook.namespace, summary.namespace_uid)
    }

    /// Whose a line is.
    pub(super) fn owner_of(&self, line: &Delivery) -> Owner {
        let unknown = || Owner { namespace: Arc::clone(&line.webhook.namespace), uid: None };
        self.get(line.webhook.uid).map_or_else(unknown, |hook| self.owner(&hook.summary()))
    }

    /// Whose the Webhooks under a namespace's name are that are not gone: one, but for moments.
    pub(super) fn owners(&self, namespace: &str) -> Vec<Owner> {
        self.read().by_namespace.get(namespace).map(|place| place.owners.clone()).unwrap_or_default()
    }

    /// What is used under a namespace's name by those that are not gone.
    pub(super) fn usage(&self, namespace: &str) -> Usage {
        let known = self.read();
        let owners = known.by_namespace.get(namespace).into_iter().flat_map(|place| &place.owners);
        let each = owners.map(|owner| self.usages.get(owner));
        each.fold(Usage::default(), |sum, one| Usage {
            bytes: sum.bytes + one.bytes,
            deliveries: sum.deliveries + one.deliveries,
            pending_bytes: sum.pending_bytes + one.pending_bytes,
        })
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

    /// Sets the numbers of the Webhook that is kept under a key, which is new if it was not known. Answers by how many
    /// deliveries more wait.
    pub(super) fn set(&self, key: WebhookUid, summary: Summary) -> (Arc<Hook>, i64) {
        let Some(hook) = self.get(key) else {
            return self.add(Hook::new(key, summary, Queue::empty(&self.budgets)));
        };
        let before = hook.summary();
        let is_another = before.webhook != summary.webhook
            || before.namespace_uid != summary.namespace_uid
            || before.erasing != summary.erasing;
        if !is_another {
            hook.summary.store(Arc::new(summary));
            let more = self.count(&hook);
            return (hook, more);
        }
        if before.webhook.uid != summary.webhook.uid {
            hook.gone.store(false, Ordering::SeqCst);
        }
        let mut known = self.write();
        let taken = known.take(key);
        hook.summary.store(Arc::new(summary));
        if let Some(hook) = taken {
            known.insert(hook);
        }
        drop(known);
        for namespace in [&before.webhook.namespace, &hook.summary().webhook.namespace] {
            self.sum_up(namespace);
        }
        let more = self.count(&hook);
        (hook, more)
    }

    /// Says whether a Webhook is gone; answers by how many deliveries more are counted.
    pub(super) fn set_gone(&self, webhook: WebhookUid, is_gone: bool) -> i64 {
        let Some(hook) = self.known_as(webhook) else { return 0 };
        if hook.gone.swap(is_gone, Ordering::SeqCst) == is_gone {
            return 0;
        }
        self.sum_up(&hook.summary().webhook.namespace);
        self.count(&hook)
    }

    /// Forgets a Webhook; answers by how many deliveries more wait.
    pub(super) fn remove(&self, key: WebhookUid) -> i64 {
        let Some(hook) = self.write().remove(key) else { return 0 };
        hook.gone.store(true, Ordering::SeqCst);
        self.sum_up(&hook.summary().webhook.namespace);
        self.count(&hook)
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
        self.read().by_key.values().cloned().collect()
    }

    /// Names of all.
    pub(super) fn known(&self) -> Vec<WebhookRef> {
        self.pick(|summary| Some(summary.webhook.clone()))
    }

    /// What `pick` takes of the numbers of each.
    pub(super) fn pick<T>(&self, pick: impl Fn(&Summary) -> Option<T>) -> Vec<T> {
        self.read().by_key.values().filter_map(|hook| pick(&hook.summary.load())).collect()
    }
}
