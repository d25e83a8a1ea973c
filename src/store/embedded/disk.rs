//! The keyspaces on disk, and how the engine is set up.

use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use fjall::compaction::Leveled;
use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry,
    PinningPolicy,
};
use fjall::{
    AbstractTree as _, CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions,
    OwnedWriteBatch, PersistMode, Readable, Snapshot,
};

use super::format::{self, References};
use super::keys::{self, Slot};
use super::lane::{Found, LaneId, Loaded, Refill};
use crate::model::causes::chain;
use crate::model::ids::{DeliveryName, EventUid, WebhookUid};
use crate::model::time::UnixMillis;
use crate::process::stepped_back;
use crate::store::records::{DedupKey, Delivery, Event, State};
use crate::store::{Error, Result};

const MIB: u64 = 1 << 20;

/// An opened store.
pub(super) struct Disk {
    pub db: Database,
    pub meta: Keyspace,
    pub events: Keyspace,
    pub log: Keyspace,
    pub index: Keyspace,
    pub retries: Keyspace,
    pub terms: Keyspace,
    /// Two generations of dedup keys, each as long as the window. The older one is emptied at once when the
    /// newer one is full of time, so that expiry costs nothing for each key.
    pub dedup: [Keyspace; 2],
    /// Size of tables; memtables are smaller.
    pub memtable: u64,
    /// The store is being closed: who waits for the engine gives up.
    pub stopping: AtomicBool,
    /// The sequence number of the last commit; 0: not known.
    last: Mutex<u64>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

/// Names the attempt when the engine fails.
pub(super) fn engine(what: &'static str) -> impl FnOnce(fjall::Error) -> Error {
    move |source| match source {
        fjall::Error::Poisoned => Error::Poisoned,
        other => Error::Engine { what, source: other.into() },
    }
}

/// More journals than this are too many to replay at the next opening.
pub(super) const JOURNALS: usize = 4;

const READ: &str = "read from the store";

/// What a store has had from the beginning.
const FORMAT_1: [&str; 7] = ["meta", "events", "log", "index", "retries", "dedup-0", "dedup-1"];

/// For 2 cores and little memory:
/// - one worker: with more, the first keeps itself free for flushes and spins as long as another compacts, which
///   is half of the machine. Compactions are kept short instead (small tables), so that flushes come in time. It steps
///   back when others want the cores: who publishes waits for it when tables are too far behind. It may then hold a
///   lock that the writer wants for longer, which costs less than it gives;
/// - 24 MiB of block cache: what is claimed is in memory anyway, the cache serves indexes, filters and queries;
/// - at most 128 MiB of sealed journals: all of them are replayed at opening, which must take few seconds.
fn database(path: &Path) -> fjall::Result<Database> {
    let builder =
        Database::builder(path).worker_threads(1).cache_size(24 * MIB).max_journaling_size(128 * MIB);
    stepped_back(|| builder.open())?
}

/// How a keyspace is set up when the store is made; later openings find it so.
struct Layout {
    /// Size of tables.
    memtable: u64,
}

impl Layout {
    /// Tables are small, so that one compaction moves tens of megabytes and takes a fraction of a second. Their
    /// filters and indexes are in the block cache, not beside it: a table that is moved down as it is would keep
    /// them in memory until the next opening, and there are as many as the log is long.
    ///
    /// Memtables are sealed by the writer, and never by the engine: that would ask for it in the bounded queue of its
    /// one worker, at every commit while the worker is busy, and stand still when the queue is full.
    fn keyspace(&self) -> KeyspaceCreateOptions {
        KeyspaceCreateOptions::default()
            .max_memtable_size(u64::MAX)
            .filter_block_pinning_policy(PinningPolicy::all(false))
            .index_block_pinning_policy(PinningPolicy::all(false))
            .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(self.memtable)))
            .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(
                10.0,
            ))))
    }

    /// Bodies are written to the journal once and to a blob file once, and never again by compactions. A file
    /// half of which is erased is rewritten: at most a byte is copied for each that is given back.
    fn events(&self) -> KeyspaceCreateOptions {
        let apart = KvSeparationOptions::default()
            .separation_threshold(512)
            .file_target_size(32 * MIB)
            .staleness_threshold(0.5)
            .age_cutoff(1.0)
            .compression(CompressionType::None);
        self.keyspace().with_kv_separation(Some(apart)).expect_point_read_hits(true)
    }

    /// Log lines of a page lie side by side and are alike: larger blocks, always compressed.
    fn log(&self) -> KeyspaceCreateOptions {
        self.keyspace()
            .data_block_size_policy(BlockSizePolicy::all(8 << 10))
            .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
            .expect_point_read_hits(true)
    }
}

impl Disk {
    /// Opens the keyspaces. The directory must be this process's alone, and was looked at: `last` is the number of its
    /// last commit.
    pub(super) fn open(path: &Path, memtable: u64, last: u64) -> Result<Self> {
        let db = database(path).map_err(engine("open the store"))?;
        let missing: Vec<_> = FORMAT_1.into_iter().filter(|name| !db.keyspace_exists(name)).collect();
        match missing.len() {
            0 => Self::open_or_make(db, memtable, last),
            7 => Err(Error::Unusable(
                "the data directory has no format version: it is not a store of this program".to_owned(),
            )),
            _ => Err(Error::Unusable(format!(
                "the store in {} lacks {}: restore a backup",
                path.display(),
                missing.join(", ")
            ))),
        }
    }

    /// Makes an empty store.
    pub(super) fn make(path: &Path, memtable: u64) -> Result<Self> {
        let db = database(path).map_err(engine("make the store"))?;
        Self::open_or_make(db, memtable, 0)
    }

    fn open_or_make(db: Database, memtable: u64, last: u64) -> Result<Self> {
        let layout = Layout { memtable };
        let keyspace = |name, options: fn(&Layout) -> KeyspaceCreateOptions| {
            db.keyspace(name, || options(&layout)).map_err(engine("open a keyspace"))
        };
        Ok(Self {
            meta: keyspace("meta", Layout::keyspace)?,
            events: keyspace("events", Layout::events)?,
            log: keyspace("log", Layout::log)?,
            index: keyspace("index", Layout::keyspace)?,
            retries: keyspace("retries", Layout::keyspace)?,
            terms: keyspace("terms", Layout::keyspace)?,
            dedup: [keyspace("dedup-0", Layout::keyspace)?, keyspace("dedup-1", Layout::keyspace)?],
            memtable,
            stopping: AtomicBool::new(false),
            last: Mutex::new(last),
            db,
        })
    }

    /// Commits, synced. Each commit names the one before, and is the only one that is not on disk yet: so what cannot be
    /// read is a torn tail only where nothing follows it, and a number that was changed is noticed.
    pub(super) fn commit(&self, mut batch: OwnedWriteBatch) -> fjall::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        batch.insert(&self.meta, keys::meta::BEFORE, last.to_be_bytes());
        batch.durability(Some(PersistMode::SyncData)).commit()?;
        *last = self.meta.tree.active_memtable().get_highest_seqno().unwrap_or(0);
        Ok(())
    }

    /// Whether the engine still takes writes.
    pub(super) fn check(&self) -> Result<()> {
        self.db.persist(PersistMode::Buffer).map_err(engine("write"))
    }

    pub(super) fn keyspaces(&self) -> [&Keyspace; 8] {
        let [first, second] = &self.dedup;
        [&self.meta, &self.events, &self.log, &self.index, &self.retries, &self.terms, first, second]
    }

    /// Flushes every keyspace in the background. Each gets a key that means nothing, since one whose data was
    /// all removed by compactions is not known to be flushed, and would hold old journals back for ever.
    pub(super) fn flush_all(&self) -> Result<()> {
        let mut batch = self.db.batch();
        for keyspace in self.keyspaces() {
            batch.insert(keyspace, keys::TOUCH, b"");
        }
        self.commit(batch).map_err(engine("write"))?;
        self.keyspaces()
            .into_iter()
            .try_for_each(|keyspace| keyspace.rotate_memtable().map(drop))
            .map_err(engine("flush"))
    }

    /// Gives the space of erased events back. A file of bodies goes when all of its events are known to have gone,
    /// which is known where the marks of erasure meet what they erase: at the bottom of the tree, where in time
    /// they would get by themselves. This rewrites the tree, some 60 bytes an event, then once more with the files
    /// that turned out to be mostly dead. Blocks for seconds when there are millions.
    pub(super) fn give_back(&self) -> Result<()> {
        self.rewrite_events()?;
        if self.events.fragmented_blob_bytes() > 0 {
            self.rewrite(&self.events)?;
        }
        // The files of the trees before go with the next flush, and so do old journals.
        self.flush_all()
    }

    /// A log line.
    pub(super) fn delivery(&self, name: DeliveryName) -> Result<Option<Delivery>> {
        decode_delivery(name, self.log.get(name.as_bytes()))
    }

    /// The last name in the log.
    pub(super) fn newest_name(&self) -> Result<Option<DeliveryName>> {
        for entry in self.log.iter().rev() {
            let key = entry.key().map_err(engine(READ))?;
            if let Some(name) = keys::name_in_log(&key) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// An event with its data.
    pub(super) fn event(&self, uid: EventUid) -> Result<Option<Event>> {
        decode_event(uid, self.events.get(uid.as_bytes()))
    }

    /// Bytes of an event's value; none: it is not there.
    pub(super) fn event_size(&self, uid: EventUid) -> Result<Option<u64>> {
        Ok(self.events.size_of(uid.as_bytes()).map_err(engine(READ))?.map(u64::from))
    }

    /// Which deliveries need an event; none: one only.
    pub(super) fn references(&self, event: EventUid) -> Result<Option<References>> {
        let value = self.meta.get(keys::meta::references(event)).map_err(engine(READ))?;
        Ok(value.and_then(|value| References::decode(&value)))
    }

    /// All deliveries of the event of one; some may be gone. Where a program of format 1 wrote it, the log is
    /// walked.
    pub(super) fn deliveries_of(&self, delivery: &Delivery) -> Result<Vec<DeliveryName>> {
        match self.references(delivery.event)? {
            None => Ok(vec![delivery.name]),
            Some(references) if !references.names.is_empty() => Ok(references.names),
            Some(_) => self.walk_for(delivery.event),
        }
    }

    fn walk_for(&self, event: EventUid) -> Result<Vec<DeliveryName>> {
        let mut names = Vec::new();
        for entry in self.log.iter() {
            let (key, value) = entry.into_inner().map_err(engine(READ))?;
            let Some(name) = keys::name_in_log(&key) else { continue };
            // One that cannot be read can neither be shown nor sent.
            let line = format::decode::<Delivery>("a delivery", &value);
            names.extend(line.is_ok_and(|line| line.event == event).then_some(name));
        }
        Ok(names)
    }

    /// The first event under a dedup key, of those that are younger than `window` at `now`.
    pub(super) fn seen(
        &self,
        key: DedupKey,
        now: UnixMillis,
        window: std::time::Duration,
    ) -> Result<Option<EventUid>> {
        for generation in &self.dedup {
            if let Some(value) = generation.get(key.0).map_err(engine(READ))? {
                let (uid, at) = format::decode_seen(key, &value)?;
                if now.since(at) < window {
                    return Ok(Some(uid));
                }
            }
        }
        Ok(None)
    }

    /// Reads a part of a Webhook's queue. What cannot be decoded is logged and left out.
    pub(super) fn refill(&self, webhook: WebhookUid, refill: Refill) -> Result<Found> {
        let snapshot = self.db.snapshot();
        let (mut found, mut bytes) = (Found::default(), 0);
        for entry in self.queued(&snapshot, webhook, refill.lane, refill.from) {
            let Some(slot) = entry? else { continue };
            if refill.is_enough(found.loaded.len(), bytes) {
                found.next = Some(slot);
                break;
            }
            match load(self, &snapshot, slot.name) {
                Ok(Some(loaded)) => {
                    bytes += loaded.cost;
                    found.loaded.push((slot, loaded.into()));
                }
                Ok(None) => {
                    tracing::error!(%webhook, delivery = %slot.name, "a queued delivery has no record; left out");
                }
                Err(error @ Error::Corrupt { .. }) => {
                    tracing::error!(%webhook, delivery = %slot.name, error = %chain(&error),
                        "a queued delivery cannot be read; left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// The first place of a Webhook's queue that is taken, from `from` on.
    pub(super) fn next_queued(&self, webhook: WebhookUid, lane: LaneId, from: Slot) -> Result<Option<Slot>> {
        let snapshot = self.db.snapshot();
        self.queued(&snapshot, webhook, lane, from).find_map(Result::transpose).transpose()
    }

    /// Walks a queue; none for what is not to be claimed.
    fn queued(
        &self,
        snapshot: &Snapshot,
        webhook: WebhookUid,
        lane: LaneId,
        from: Slot,
    ) -> impl Iterator<Item = Result<Option<Slot>>> + use<> {
        let (keyspace, from, end) = match lane {
            LaneId::Fresh => {
                let from = keys::index(webhook, State::Pending, from.name).to_vec();
                (&self.index, from, keys::index_in(webhook, State::Retrying).to_vec())
            }
            LaneId::Retry => {
                let last = Slot {
                    due: UnixMillis::from_millis(i64::MAX),
                    name: DeliveryName::from_bytes([0xff; 16]),
                };
                (&self.retries, keys::retry(webhook, from).to_vec(), keys::retry(webhook, last).to_vec())
            }
        };
        snapshot.range(keyspace, (Bound::Included(from), Bound::Excluded(end))).map(move |entry| {
            let (key, value) = entry.into_inner().map_err(engine(READ))?;
            Ok(match lane {
                LaneId::Fresh if &*value == keys::TEST => None,
                LaneId::Fresh => keys::name_in_index(&key).map(Slot::fresh),
                LaneId::Retry => keys::slot_of_retry(&key),
            })
        })
    }

    /// Some names of a Webhook, from the one after a key on, with their keys.
    pub(super) fn names(
        &self,
        webhook: WebhookUid,
        after: Option<&[u8]>,
        count: usize,
    ) -> Result<Vec<(fjall::UserKey, DeliveryName)>> {
        let from = after.map_or_else(
            || Bound::Included(keys::index_of(webhook).to_vec()),
            |after| Bound::Excluded(after.to_vec()),
        );
        let mut names = Vec::new();
        for entry in self.index.range((from, Bound::Unbounded)).take(count) {
            let key = entry.key().map_err(engine(READ))?;
            match keys::name_in_index(&key) {
                Some(name) if key.starts_with(webhook.as_bytes()) => names.push((key, name)),
                _ => break,
            }
        }
        Ok(names)
    }
}

/// Where a delivery waits, if it does.
pub(super) fn place(delivery: &Delivery) -> Option<(LaneId, Slot)> {
    match delivery.state {
        State::Pending if delivery.redelivery.is_some() => {
            let due = delivery.due.unwrap_or(delivery.accepted_at);
            Some((LaneId::Retry, Slot { due, name: delivery.name }))
        }
        State::Pending => Some((LaneId::Fresh, Slot::fresh(delivery.name))),
        State::Retrying => {
            let due = delivery.due.unwrap_or(delivery.accepted_at);
            Some((LaneId::Retry, Slot { due, name: delivery.name }))
        }
        State::Success | State::Failed => None,
    }
}

fn load(disk: &Disk, snapshot: &Snapshot, name: DeliveryName) -> Result<Option<Loaded>> {
    let Some(delivery) = decode_delivery(name, snapshot.get(&disk.log, name.as_bytes()))? else {
        return Ok(None);
    };
    let event = decode_event(delivery.event, snapshot.get(&disk.events, delivery.event.as_bytes()))?;
    Ok(event.map(|event| Loaded::new(delivery, event.into(), 1)))
}

pub(super) fn decode_delivery(
    name: DeliveryName,
    value: fjall::Result<Option<fjall::Slice>>,
) -> Result<Option<Delivery>> {
    let value = value.map_err(engine(READ))?;
    value.map(|value| format::decode(&format!("delivery {name}"), &value)).transpose()
}

fn decode_event(uid: EventUid, value: fjall::Result<Option<fjall::Slice>>) -> Result<Option<Event>> {
    let value = value.map_err(engine(READ))?;
    value.map(|value| format::decode_event(uid, &value)).transpose()
}
