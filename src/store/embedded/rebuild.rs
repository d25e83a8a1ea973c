//! Writing what can be read of a store to another one, and what follows from log and events anew.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use fjall::{Keyspace, UserKey, UserValue};

use super::disk::{Disk, engine, place};
use super::format::{self, References};
use super::keys::{self, Tag, meta};
use super::lane::LaneId;
use super::usage::{Owner, Usages};
use crate::model::ids::{DeliveryName, EventUid, WebhookUid};
use crate::model::time::UnixMillis;
use crate::store::Result;
use crate::store::records::{Asked, Delivery, EndReason, State, Summary, Usage};

/// Entries of one commit.
const STEP: usize = 1024;
/// Who is said to have erased what is lost.
const REPAIR: &str = "hookwright repair";

/// What was lost, by when it was accepted, and what was saved.
#[derive(Debug, Default)]
pub(super) struct Lost {
    pub deliveries: Vec<UnixMillis>,
    pub payloads: Vec<UnixMillis>,
    /// Names of keyspaces that could be read in parts only.
    pub keyspaces: Vec<String>,
    pub saved: u64,
    pub waiting: u64,
}

/// A commit that goes when it is full.
struct Batch<'a> {
    disk: &'a Disk,
    batch: fjall::OwnedWriteBatch,
}

impl<'a> Batch<'a> {
    fn new(disk: &'a Disk) -> Self {
        Self { disk, batch: disk.db.batch() }
    }

    fn full(&mut self) -> Result<()> {
        if self.batch.len() < STEP {
            return Ok(());
        }
        self.commit()
    }

    fn commit(&mut self) -> Result<()> {
        let batch = std::mem::replace(&mut self.batch, self.disk.db.batch());
        self.disk.commit(batch).map_err(engine("commit"))
    }
}

/// Fills an empty store with what can be read of another.
pub(super) fn rebuild(old: &Disk, new: &Disk, now: UnixMillis) -> Result<Lost> {
    let mut lost = Lost::default();
    for (from, to) in [(&old.log, &new.log), (&old.meta, &new.meta)] {
        copy(from, to, new, &mut lost)?;
    }
    if !lost.keyspaces.is_empty() {
        fetch_lines(old, new)?;
        fetch_of_lines(old, new)?;
    }
    if !new.meta.contains_key(meta::FORMAT).map_err(engine("read from the store"))? {
        let mut batch = Batch::new(new);
        batch.batch.insert(&new.meta, meta::FORMAT, format::VERSION.to_be_bytes());
        batch.commit()?;
    }
    for (from, to) in old.dedup.iter().zip(&new.dedup) {
        copy(from, to, new, &mut lost)?;
    }
    copy_events(old, new, &mut lost)?;
    forget_derived(new)?;
    let lines = Lines::default().derive(new, &mut lost, now)?;
    references(new, &lines.events)?;
    lines.summaries(new)?;
    let mut batch = Batch::new(new);
    for (owner, usage) in used(new)? {
        batch.batch.insert(&new.meta, meta::usage(&owner), format::encode(&usage)?);
    }
    batch.batch.insert(&new.meta, meta::DEBT, b"");
    batch.commit()?;
    find_lost(old, new, &mut lost)?;
    Ok(lost)
}

/// Calls with all that can be read, from both ends: between them is what cannot. Whether anything is missing.
fn each(keyspace: &Keyspace, mut each: impl FnMut(UserKey) -> Result<()>) -> Result<bool> {
    let mut last = None;
    for entry in keyspace.iter() {
        let Ok(key) = entry.key() else {
            for entry in keyspace.iter().rev() {
                match entry.key() {
                    Ok(key) if last.as_ref().is_none_or(|last| key > *last) => each(key)?,
                    _ => break,
                }
            }
            return Ok(true);
        };
        last = Some(key.clone());
        each(key)?;
    }
    Ok(false)
}

fn copy(from: &Keyspace, to: &Keyspace, new: &Disk, lost: &mut Lost) -> Result<()> {
    let (mut batch, mut unread) = (Batch::new(new), false);
    let is_cut = each(from, |key| {
        match from.get(&key) {
            Ok(Some(value)) => batch.batch.insert(to, key, value),
            Ok(None) => {}
            Err(_) => unread = true,
        }
        batch.full()
    })?;
    batch.commit()?;
    if is_cut || unread {
        lost.keyspaces.push(from.name().to_string());
    }
    Ok(())
}

/// What others name is read by its key: between two places that cannot be read, a walk from both ends finds nothing.
fn fetch(from: &Keyspace, to: &Keyspace, batch: &mut Batch<'_>, key: &[u8]) -> Result<()> {
    if !to.contains_key(key).map_err(engine("read from the store"))?
        && let Ok(Some(value)) = from.get(key)
    {
        batch.batch.insert(to, key, value);
    }
    batch.full()
}

/// Reads a delivery's name out of an entry's key.
type NameIn = fn(&[u8]) -> Option<DeliveryName>;

/// Lines that an index names.
fn fetch_lines(old: &Disk, new: &Disk) -> Result<()> {
    let mut batch = Batch::new(new);
    let names: [(&Keyspace, NameIn); 2] =
        [(&old.index, keys::name_in_index), (&old.terms, keys::name_in_terms)];
    for (index, name) in names {
        each(index, |key| match name(&key) {
            Some(name) => fetch(&old.log, &new.log, &mut batch, name.as_bytes()),
            None => Ok(()),
        })?;
        batch.commit()?;
    }
    Ok(())
}

/// The numbers of the Webhooks of lines, and which lines need their events.
fn fetch_of_lines(old: &Disk, new: &Disk) -> Result<()> {
    let mut batch = Batch::new(new);
    each(&new.log, |key| {
        let Some(line) = line(new, &key) else { return Ok(()) };
        for key in [meta::summary(line.webhook.uid), meta::references(line.event)] {
            fetch(&old.meta, &new.meta, &mut batch, &key)?;
        }
        Ok(())
    })?;
    batch.commit()
}

/// Those that the log needs; found by it also where the tree cannot be walked.
fn copy_events(old: &Disk, new: &Disk, lost: &mut Lost) -> Result<()> {
    let (mut batch, mut bytes) = (Batch::new(new), 0);
    let is_cut = each(&new.log, |key| {
        if let Some(uid) = line(new, &key).map(|line| line.event)
            && let Ok(Some(event)) = old.event(uid)
            && let Ok(Some(value)) = old.events.get(uid.as_bytes())
        {
            bytes += event.data.len();
            batch.batch.insert(&new.events, *uid.as_bytes(), value);
        }
        if std::mem::take(&mut bytes) > 1 << 20 { batch.commit() } else { batch.full() }
    })?;
    batch.commit()?;
    lost.keyspaces.extend(is_cut.then(|| "events".to_owned()));
    Ok(())
}

fn line(disk: &Disk, key: &[u8]) -> Option<Delivery> {
    disk.delivery(keys::name_in_log(key)?).ok().flatten()
}

/// What is made anew.
fn forget_derived(new: &Disk) -> Result<()> {
    let mut batch = Batch::new(new);
    for prefix in [meta::USAGES, meta::TESTS, meta::REPLAYED] {
        for entry in new.meta.prefix(prefix) {
            batch.batch.remove(&new.meta, entry.key().map_err(engine("read from the store"))?);
            batch.full()?;
        }
    }
    batch.commit()
}

/// What follows from the log.
#[derive(Default)]
struct Lines {
    events: HashSet<EventUid>,
    /// What waits, by what Webhooks are kept under.
    hooks: HashMap<WebhookUid, Summary>,
}

impl Lines {
    fn derive(mut self, new: &Disk, lost: &mut Lost, now: UnixMillis) -> Result<Self> {
        let mut batch = Batch::new(new);
        each(&new.log, |key| {
            let Some(name) = keys::name_in_log(&key) else { return Ok(()) };
            if let Some(line) = line(new, &key) {
                self.line(&mut batch, new, line, lost, now)?;
            } else {
                lost.deliveries.push(name.accepted_at());
                batch.batch.remove(&new.log, key);
            }
            batch.full()
        })?;
        batch.commit()?;
        Ok(self)
    }

    fn line(
        &mut self,
        batch: &mut Batch<'_>,
        new: &Disk,
        mut line: Delivery,
        lost: &mut Lost,
        now: UnixMillis,
    ) -> Result<()> {
        let event = new.event(line.event)?;
        let has_ended = event.is_none() && line.expunged.is_none();
        if has_ended {
            lost.payloads.push(line.accepted_at);
            line = without_payload(line, now);
            batch.batch.insert(&new.log, *line.name.as_bytes(), format::encode(&line)?);
        }
        let (uid, batch) = (line.webhook.uid, &mut batch.batch);
        let value = if line.test { keys::TEST } else { b"" };
        batch.insert(&new.index, keys::index(uid, Tag::of(&line), line.name), value);
        keys::terms(&line).for_each(|term| batch.insert(&new.terms, term, b""));
        if !line.test
            && let Some((LaneId::Retry, slot)) = place(&line)
        {
            batch.insert(&new.retries, keys::retry(uid, slot), b"");
        }
        if line.test && !line.state.is_final() {
            batch.insert(&new.meta, meta::test(line.name), *uid.as_bytes());
        }
        if let Some(put) = line.put_by() {
            batch.insert(&new.meta, meta::replayed(put.id, line.name), b"");
        }
        lost.saved += 1;
        let summary = self.hooks.entry(uid).or_insert_with(|| Summary::new(line.webhook.clone()));
        if !line.test {
            match line.state {
                State::Success => summary.success_count += 1,
                State::Failed => summary.failure_count += 1,
                State::Pending | State::Retrying => {
                    lost.waiting += 1;
                    summary.pending += 1;
                    summary.pending_bytes += event.as_ref().map_or(0, |event| event.data.len() as u64);
                }
            }
        }
        self.events.extend(event.map(|event| event.uid));
        Ok(())
    }

    /// The numbers of Webhooks as they were, but for what waits.
    fn summaries(self, new: &Disk) -> Result<()> {
        let mut batch = Batch::new(new);
        let mut of_hooks = self.hooks;
        for entry in new.meta.prefix(meta::SUMMARIES) {
            let (key, value) = entry.into_inner().map_err(engine("read from the store"))?;
            let Ok(before) = format::decode::<Summary>("a Webhook's numbers", &value) else {
                batch.batch.remove(&new.meta, key);
                continue;
            };
            // Lines name the first uid, the numbers that of the last who took over.
            let counted = meta::summary_of(&key).and_then(|kept_under| of_hooks.remove(&kept_under));
            let counted = counted.unwrap_or_else(|| Summary::new(before.webhook.clone()));
            let after = Summary {
                pending: counted.pending,
                pending_bytes: counted.pending_bytes,
                success_count: before.success_count.max(counted.success_count),
                failure_count: before.failure_count.max(counted.failure_count),
                ..before
            };
            batch.batch.insert(&new.meta, key, format::encode(&after)?);
        }
        for (uid, counted) in of_hooks {
            batch.batch.insert(&new.meta, meta::summary(uid), format::encode(&counted)?);
        }
        batch.commit()
    }
}

/// What namespaces use.
fn used(new: &Disk) -> Result<HashMap<Owner, Usage>> {
    let usages = Usages::load(new)?;
    let mut owners = HashMap::new();
    for entry in new.meta.prefix(meta::SUMMARIES) {
        let (key, value) = entry.into_inner().map_err(engine("read from the store"))?;
        let summary = format::decode::<Summary>("a Webhook's numbers", &value)?;
        let owner = usages.owner(&summary.webhook.namespace, summary.namespace_uid);
        owners.insert(meta::summary_of(&key).unwrap_or(summary.webhook.uid), owner);
    }
    let (mut used, mut counted) = (HashMap::<Owner, Usage>::new(), HashSet::new());
    each(&new.log, |key| {
        let Some(line) = line(new, &key) else { return Ok(()) };
        let Some(owner) = owners.get(&line.webhook.uid) else { return Ok(()) };
        let usage = used.entry(owner.clone()).or_default();
        usage.bytes += line.weight();
        usage.deliveries += 1;
        if counted.insert(line.event) {
            usage.bytes += new.event_size(line.event)?.unwrap_or(0);
        }
        Ok(())
    })?;
    Ok(used)
}

/// As if somebody had it erased: it is shown, and never sent.
fn without_payload(line: Delivery, now: UnixMillis) -> Delivery {
    let expunged = Some(Asked { by: Arc::from(REPAIR), at: now });
    if line.state.is_final() {
        return Delivery { expunged, ..line };
    }
    Delivery {
        state: State::Failed,
        due: None,
        reason: Some(EndReason::Expunged),
        ended_at: Some(now),
        redelivery: None,
        expunged,
        ..line
    }
}

/// Which deliveries need an event, of those that are left; events that none needs go.
fn references(new: &Disk, needed: &HashSet<EventUid>) -> Result<()> {
    let mut batch = Batch::new(new);
    let prefix: &[u8] = b"r:";
    for entry in new.meta.prefix(prefix) {
        let (key, value): (UserKey, UserValue) = entry.into_inner().map_err(engine("read from the store"))?;
        let names = References::decode(&value).map(|references| references.names).unwrap_or_default();
        let is_there = |name: &DeliveryName| new.log.contains_key(name.as_bytes()).unwrap_or(false);
        let left = u32::try_from(names.iter().filter(|name| is_there(name)).count()).unwrap_or(u32::MAX);
        if left > 1 {
            batch.batch.insert(&new.meta, key, References { left, names }.encode());
        } else if !names.is_empty() {
            batch.batch.remove(&new.meta, key);
        }
        batch.full()?;
    }
    each(&new.events, |key| {
        let uid = key.as_ref().try_into().map(EventUid::from_bytes);
        if uid.is_ok_and(|uid| !needed.contains(&uid)) {
            batch.batch.remove(&new.events, key);
        }
        batch.full()
    })?;
    batch.commit()
}

/// Deliveries that others name and that are not there.
fn find_lost(old: &Disk, new: &Disk, lost: &mut Lost) -> Result<()> {
    each(&old.index, |key| {
        if let Some(name) = keys::name_in_index(&key)
            && !new.log.contains_key(name.as_bytes()).map_err(engine("read from the store"))?
        {
            lost.deliveries.push(name.accepted_at());
        }
        Ok(())
    })?;
    Ok(())
}
