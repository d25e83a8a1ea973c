//! What each namespace uses, in memory and on disk, and how far its log has been looked through for what is old.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::disk::{Disk, engine};
use super::format;
use super::keys::{self, meta};
use crate::model::ids::{DeliveryName, EventUid, Namespace};
use crate::model::time::UnixMillis;
use crate::store::records::{Delivery, Retention, Usage};
use crate::store::{Error, Result};

const READ: &str = "read from the store";

/// Bytes of erased events for which files are not rewritten yet.
const MUCH: u64 = 64 << 20;

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
    map: RwLock<HashMap<Namespace, Entry>>,
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
            let namespace = key.get(meta::USAGES.len()..).unwrap_or_default();
            let namespace = Namespace::from(String::from_utf8_lossy(namespace));
            let usage: Usage = format::decode(&format!("what namespace {namespace} uses"), &value)?;
            usages.total.fetch_add(usage.bytes.cast_signed(), Ordering::Relaxed);
            usages.change(&namespace, |entry| entry.usage = usage);
        }
        Ok(usages)
    }

    fn change<T>(&self, namespace: &Namespace, change: impl FnOnce(&mut Entry) -> T) -> T {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        change(map.entry(Arc::clone(namespace)).or_default())
    }

    fn read<T>(&self, namespace: &str, read: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).get(namespace).map(read)
    }

    /// Of one namespace.
    pub(super) fn get(&self, namespace: &str) -> Usage {
        self.read(namespace, |entry| entry.usage).unwrap_or_default()
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

    /// What waits for a Webhook of a namespace has changed.
    pub(super) fn waits(&self, namespace: &Namespace, before: u64, after: u64) {
        if before != after {
            self.change(namespace, |entry| {
                let pending = &mut entry.usage.pending_bytes;
                *pending = pending.saturating_sub(before).saturating_add(after);
            });
        }
    }

    /// Namespaces that may have something to let go.
    pub(super) fn to_look_at(&self, retention: &Retention, now: UnixMillis) -> Vec<Namespace> {
        let is_due = |entry: &Entry| {
            let is_old = |until: UnixMillis| now >= until || until.since(now) > retention.max_age;
            entry.usage.bytes > retention.max_bytes || entry.rests_until.is_none_or(is_old)
        };
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.iter().filter(|(_, entry)| is_due(entry)).map(|(namespace, _)| Arc::clone(namespace)).collect()
    }

    /// All namespaces may have something to let go.
    pub(super) fn look_again(&self) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.values_mut().for_each(|entry| entry.rests_until = None);
    }

    /// A look through the log begins, at the answer.
    pub(super) fn begin_look(&self, namespace: &Namespace) -> Option<DeliveryName> {
        self.change(namespace, |entry| {
            entry.late = None;
            entry.oldest
        })
    }

    /// A look through the log has ended: no finished delivery has a name before this, but for those that have
    /// become final meanwhile, and nothing becomes too old before `until`.
    pub(super) fn end_look(&self, namespace: &Namespace, oldest: Option<DeliveryName>, until: UnixMillis) {
        self.change(namespace, |entry| {
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
pub(super) struct Deltas(HashMap<Namespace, Delta>);

impl Deltas {
    fn of(&mut self, namespace: &Namespace) -> &mut Delta {
        self.0.entry(Arc::clone(namespace)).or_default()
    }

    /// An event has come, with so many bytes.
    pub(super) fn event(&mut self, namespace: &Namespace, bytes: u64) {
        self.of(namespace).bytes += bytes.cast_signed();
    }

    /// An event has gone.
    pub(super) fn event_gone(&mut self, namespace: &Namespace, bytes: u64) {
        let delta = self.of(namespace);
        delta.bytes -= bytes.cast_signed();
        delta.gone += bytes;
    }

    /// A log line has come.
    pub(super) fn line(&mut self, line: &Delivery) {
        let delta = self.of(&line.webhook.namespace);
        delta.bytes += line.weight().cast_signed();
        delta.deliveries += 1;
    }

    /// A log line has gone.
    pub(super) fn line_gone(&mut self, line: &Delivery) {
        let delta = self.of(&line.webhook.namespace);
        delta.bytes -= line.weight().cast_signed();
        delta.deliveries -= 1;
    }

    /// A log line has changed.
    pub(super) fn line_changed(&mut self, before: &Delivery, after: &Delivery) {
        let delta = self.of(&after.webhook.namespace);
        delta.bytes += after.weight().cast_signed() - before.weight().cast_signed();
        if after.state.is_final() && !before.state.is_final() {
            delta.finished = Some(delta.finished.map_or(after.name, |first| first.min(after.name)));
        }
    }

    /// By how much the bytes of a namespace change.
    pub(super) fn bytes(&self, namespace: &str) -> i64 {
        self.0.get(namespace).map_or(0, |delta| delta.bytes)
    }

    /// Adds itself to a commit.
    pub(super) fn save(
        &self,
        disk: &Disk,
        usages: &Usages,
        batch: &mut fjall::OwnedWriteBatch,
    ) -> Result<()> {
        for (namespace, delta) in &self.0 {
            let usage = delta.applied_to(usages.get(namespace));
            if usage.bytes == 0 && usage.deliveries == 0 {
                batch.remove(&disk.meta, meta::usage(namespace));
            } else {
                batch.insert(&disk.meta, meta::usage(namespace), format::encode(&usage)?);
            }
        }
        Ok(())
    }

    /// The commit was made.
    pub(super) fn apply(&mut self, usages: &Usages) {
        for (namespace, delta) in self.0.drain() {
            usages.gone.fetch_add(delta.gone, Ordering::Relaxed);
            usages.change(&namespace, |entry| {
                let before = entry.usage;
                entry.usage = delta.applied_to(before);
                let more = entry.usage.bytes.cast_signed() - before.bytes.cast_signed();
                usages.total.fetch_add(more, Ordering::Relaxed);
                if let Some(name) = delta.finished {
                    entry.oldest = entry.oldest.map(|oldest| oldest.min(name));
                    entry.late = Some(entry.late.map_or(name, |late| late.min(name)));
                }
            });
        }
    }
}

/// What namespaces use, from all that there is. What cannot be read is not counted.
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
