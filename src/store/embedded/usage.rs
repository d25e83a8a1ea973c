//! What each namespace uses, in memory and on disk, and how far its log has been looked through for what is old.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::disk::{Disk, engine};
use super::format;
use super::keys::{self, meta};
use crate::model::ids::{DeliveryName, EventUid, Namespace, NamespaceUid};
use crate::model::time::UnixMillis;
use crate::store::records::{DedupKey, Delivery, Retention, Usage};
use crate::store::{Error, Result};

const READ: &str = "read from the store";

/// Bytes of erased events for which files are not rewritten yet.
const MUCH: u64 = 64 << 20;

/// Whose something is: a namespace that lives or lived.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    /// Its name, which others may have had before, or have now.
    pub namespace: Namespace,
    /// None: it is not known, or this is the heir (see [`Usages::set_heir`]).
    pub uid: Option<NamespaceUid>,
}

impl Owner {
    /// A dedup key of its own: no other's with the same `source` and `id` is equal.
    pub(super) fn dedup_key(&self, DedupKey(mut key): DedupKey) -> DedupKey {
        let uid = self.uid.map_or([0; 16], |uid| *uid.as_bytes());
        key.iter_mut().zip(uid).for_each(|(byte, of_uid)| *byte ^= of_uid);
        DedupKey(key)
    }
}

/// One namespace.
#[derive(Debug, Default)]
struct Entry {
    usage: Usage,
    /// No finished delivery has a name before this.
    oldest: Option<DeliveryName>,
    /// The first that has become final since a look through the log began.
    late: Option<DeliveryName>,
    /// Nothing becomes too old before this; none: not known.
    rests_until: Option<UnixMillis>,
}

/// Every namespace that has something here.
#[derive(Debug, Default)]
pub(super) struct Usages {
    map: RwLock<HashMap<Owner, Entry>>,
    /// To whom belongs what was stored before namespaces were told apart, by name.
    heirs: RwLock<HashMap<Namespace, NamespaceUid>>,
    total: AtomicI64,
    /// Bytes of events that were erased since the disk's files were last rewritten.
    gone: AtomicU64,
}

impl Usages {
    /// As they were left.
    pub(super) fn load(disk: &Disk) -> Result<Self> {
        let usages = Self::default();
        for entry in disk.meta.prefix(meta::USAGES) {
            let (key, value) = entry.into_inner().map_err(engine(READ))?;
            let owner = meta::owner(key.get(meta::USAGES.len()..).unwrap_or_default());
            let usage: Usage = format::decode(&format!("what namespace {} uses", owner.namespace), &value)?;
            usages.total.fetch_add(usage.bytes.cast_signed(), Ordering::Relaxed);
            usages.change(&owner, |entry| entry.usage = usage);
        }
        for entry in disk.meta.prefix(meta::HEIRS) {
            let (key, value) = entry.into_inner().map_err(engine(READ))?;
            let Owner { namespace, .. } = meta::owner(key.get(meta::HEIRS.len()..).unwrap_or_default());
            if let Ok(uid) = value.as_ref().try_into() {
                usages.set_heir(&namespace, Some(NamespaceUid::from_bytes(uid)));
            }
        }
        Ok(usages)
    }

    fn change<T>(&self, owner: &Owner, change: impl FnOnce(&mut Entry) -> T) -> T {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        change(map.entry(owner.clone()).or_default())
    }

    /// Who somebody is here.
    pub(super) fn owner(&self, namespace: &Namespace, uid: Option<NamespaceUid>) -> Owner {
        let uid = uid.filter(|uid| self.heir(namespace) != Some(*uid));
        Owner { namespace: Arc::clone(namespace), uid }
    }

    /// To whom belongs what was stored under a namespace's name before namespaces were told apart; none: nobody has
    /// shown yet.
    pub(super) fn heir(&self, namespace: &str) -> Option<NamespaceUid> {
        self.heirs.read().unwrap_or_else(PoisonError::into_inner).get(namespace).copied()
    }

    /// Sets the heir. A Webhook that was stored before and lives in this namespace has shown it; nothing has been
    /// stored for the namespace by its uid.
    pub(super) fn set_heir(&self, namespace: &Namespace, uid: Option<NamespaceUid>) {
        let mut heirs = self.heirs.write().unwrap_or_else(PoisonError::into_inner);
        match uid {
            Some(uid) => heirs.insert(Arc::clone(namespace), uid),
            None => heirs.remove(namespace),
        };
    }

    /// Of one namespace.
    pub(super) fn get(&self, owner: &Owner) -> Usage {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.get(owner).map(|entry| entry.usage).unwrap_or_default()
    }

    /// Whether so much has gone that files are worth rewriting for it. Begins to count anew, if so.
    pub(super) fn much_is_gone(&self) -> bool {
        let (gone, left) = (self.gone.load(Ordering::Relaxed), u64::try_from(self.total()).unwrap_or(0));
        let much = gone >= MUCH && gone >= left / 4;
        if much {
            self.gone.fetch_sub(gone, Ordering::Relaxed);
        }
        much
    }

    /// Bytes of the namespace that uses most.
    pub(super) fn largest(&self) -> u64 {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.values().map(|entry| entry.usage.bytes).max().unwrap_or(0)
    }

    /// Bytes of all.
    pub(super) fn total(&self) -> i64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Forgets a namespace of which nothing is left.
    fn forget_idle(&self, owner: &Owner) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if map.get(owner).is_some_and(|entry| entry.usage == Usage::default()) {
            map.remove(owner);
        }
    }

    /// What waits for a Webhook of a namespace has changed.
    pub(super) fn waits(&self, owner: &Owner, before: u64, after: u64) {
        if before != after {
            self.change(owner, |entry| {
                let pending = &mut entry.usage.pending_bytes;
                *pending = pending.saturating_sub(before).saturating_add(after);
            });
        }
    }

    /// Namespaces that may have something to let go.
    pub(super) fn to_look_at(&self, retention: &Retention, now: UnixMillis) -> Vec<Owner> {
        let is_due = |entry: &Entry| {
            let is_old = |until: UnixMillis| now >= until || until.since(now) > retention.max_age;
            entry.usage.bytes > retention.max_bytes || entry.rests_until.is_none_or(is_old)
        };
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.iter().filter(|(_, entry)| is_due(entry)).map(|(owner, _)| owner.clone()).collect()
    }

    /// All namespaces may have something to let go.
    pub(super) fn look_again(&self) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.values_mut().for_each(|entry| entry.rests_until = None);
    }

    /// A look through the log begins, at the answer.
    pub(super) fn begin_look(&self, owner: &Owner) -> Option<DeliveryName> {
        self.change(owner, |entry| {
            entry.late = None;
            entry.oldest
        })
    }

    /// A look through the log has ended: no finished delivery has a name before this, but for those that have
    /// become final meanwhile, and nothing becomes too old before `until`.
    pub(super) fn end_look(&self, owner: &Owner, oldest: Option<DeliveryName>, until: UnixMillis) {
        self.change(owner, |entry| {
            entry.oldest = oldest.map(|oldest| entry.late.map_or(oldest, |late| late.min(oldest)));
            entry.rests_until = Some(until);
        });
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Delta {
    bytes: i64,
    deliveries: i64,
    /// The first delivery that became final.
    finished: Option<DeliveryName>,
    /// Bytes of events that are erased.
    gone: u64,
}

impl Delta {
    fn applied_to(self, before: Usage) -> Usage {
        Usage {
            bytes: before.bytes.saturating_add_signed(self.bytes),
            deliveries: before.deliveries.saturating_add_signed(self.deliveries),
            ..before
        }
    }
}

/// Changes of what namespaces use, to be committed together with what causes them.
#[derive(Debug, Default)]
pub(super) struct Deltas(HashMap<Owner, Delta>);

impl Deltas {
    fn of(&mut self, owner: &Owner) -> &mut Delta {
        self.0.entry(owner.clone()).or_default()
    }

    /// An event has come, with so many bytes.
    pub(super) fn event(&mut self, owner: &Owner, bytes: u64) {
        self.of(owner).bytes += bytes.cast_signed();
    }

    /// An event has gone.
    pub(super) fn event_gone(&mut self, owner: &Owner, bytes: u64) {
        let delta = self.of(owner);
        delta.bytes -= bytes.cast_signed();
        delta.gone += bytes;
    }

    /// A log line has come.
    pub(super) fn line(&mut self, owner: &Owner, line: &Delivery) {
        let delta = self.of(owner);
        delta.bytes += line.weight().cast_signed();
        delta.deliveries += 1;
    }

    /// A log line has gone.
    pub(super) fn line_gone(&mut self, owner: &Owner, line: &Delivery) {
        let delta = self.of(owner);
        delta.bytes -= line.weight().cast_signed();
        delta.deliveries -= 1;
    }

    /// A log line has changed.
    pub(super) fn line_changed(&mut self, owner: &Owner, before: &Delivery, after: &Delivery) {
        let delta = self.of(owner);
        delta.bytes += after.weight().cast_signed() - before.weight().cast_signed();
        if after.state.is_final() && !before.state.is_final() {
            delta.finished = Some(delta.finished.map_or(after.name, |first| first.min(after.name)));
        }
    }

    /// By how much the bytes of a namespace change.
    pub(super) fn bytes(&self, owner: &Owner) -> i64 {
        self.0.get(owner).map_or(0, |delta| delta.bytes)
    }

    /// Adds itself to a commit.
    pub(super) fn save(
        &self,
        disk: &Disk,
        usages: &Usages,
        batch: &mut fjall::OwnedWriteBatch,
    ) -> Result<()> {
        for (owner, delta) in &self.0 {
            let usage = delta.applied_to(usages.get(owner));
            if usage.bytes == 0 && usage.deliveries == 0 {
                batch.remove(&disk.meta, meta::usage(owner));
            } else {
                batch.insert(&disk.meta, meta::usage(owner), format::encode(&usage)?);
            }
        }
        Ok(())
    }

    /// The commit was made.
    pub(super) fn apply(&mut self, usages: &Usages) {
        for (owner, delta) in self.0.drain() {
            usages.gone.fetch_add(delta.gone, Ordering::Relaxed);
            usages.change(&owner, |entry| {
                let before = entry.usage;
                entry.usage = delta.applied_to(before);
                let more = entry.usage.bytes.cast_signed() - before.bytes.cast_signed();
                usages.total.fetch_add(more, Ordering::Relaxed);
                if let Some(name) = delta.finished {
                    entry.oldest = entry.oldest.map(|oldest| oldest.min(name));
                    entry.late = Some(entry.late.map_or(name, |late| late.min(name)));
                }
            });
            usages.forget_idle(&owner);
        }
    }
}

/// What namespaces use by their names, from all that there is. What cannot be read is not counted.
pub(super) fn recount(disk: &Disk) -> Result<HashMap<Namespace, Usage>> {
    let mut usages: HashMap<Namespace, Usage> = HashMap::new();
    for entry in disk.log.iter() {
        let (key, value) = entry.into_inner().map_err(engine(READ))?;
        let Some(name) = keys::name_in_log(&key) else { continue };
        if let Some(line) = readable(format::decode::<Delivery>(&format!("delivery {name}"), &value)) {
            let usage = usages.entry(Arc::clone(&line.webhook.namespace)).or_default();
            usage.bytes += line.weight();
            usage.deliveries += 1;
        }
    }
    for entry in disk.events.iter() {
        let (key, value) = entry.into_inner().map_err(engine(READ))?;
        let Ok(uid) = key.as_ref().try_into() else { continue };
        if let Some(event) = readable(format::decode_event(EventUid::from_bytes(uid), &value)) {
            usages.entry(event.namespace).or_default().bytes += value.len() as u64;
        }
    }
    Ok(usages)
}

fn readable<T>(result: Result<T>) -> Option<T> {
    result.inspect_err(|error: &Error| tracing::error!(%error, "not counted")).ok()
}
