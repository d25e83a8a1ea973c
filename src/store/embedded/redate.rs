//! Setting right what a clock that was ahead has left: what has a time in the future is looked for beside the writer,
//! and written in bounded steps, so that the commits of others go between.
//!
//! What waits for a retry is looked for first, by its place in the queue; then the whole log, and the dedup keys. Each
//! step can be made again: after a crash all is looked through once more.

use std::ops::Bound;
use std::sync::Arc;

use fjall::UserKey;

use super::Embedded;
use super::disk::{Disk, engine, place};
use super::format;
use super::group::{Effect, Group};
use super::keys;
use super::lane::{LaneId, Loaded};
use super::writer::Command;
use crate::model::causes::chain;
use crate::model::ids::DeliveryName;
use crate::model::time::UnixMillis;
use crate::store::records::{DedupKey, Delivery};
use crate::store::{Error, Result};

/// What one step looks at, and writes, at most.
const LOOKS: usize = 4096;
const WRITES: usize = 256;

const READ: &str = "read from the store";

/// What is looked through, and from where on.
#[derive(Clone, Debug)]
enum Position {
    Retries(Bound<UserKey>),
    Log(Bound<UserKey>),
    Dedup(usize, Bound<UserKey>),
}

/// What is written in one step.
#[derive(Debug)]
pub(super) enum Step {
    /// These log lines, with their places in queues.
    Lines(Vec<DeliveryName>),
    /// These keys of one generation.
    Keys(usize, Vec<DedupKey>),
    /// The numbers of Webhooks and replays, and that all is done.
    Rest,
}

impl Embedded {
    /// See [`crate::store::Store::redate`].
    pub(super) async fn redate_all(&self, now: UnixMillis) -> Result<()> {
        let newest = self.shared.hooks.newest();
        let Ok(_one) = self.shared.redating.try_lock() else { return Ok(()) };
        if !newest.is_ahead_of(now) {
            return Ok(());
        }
        let before = newest.begin(now);
        for hook in self.shared.hooks.all() {
            hook.queue().redate_claims(now);
        }
        match self.redate_stored(now).await {
            Ok(0) => Ok(()),
            Ok(changed) => {
                tracing::info!(
                    changed,
                    "the clock was set back: what was kept with a later time is set right"
                );
                Ok(())
            }
            Err(error) => {
                newest.saw(before);
                Err(error)
            }
        }
    }

    async fn redate_stored(&self, now: UnixMillis) -> Result<usize> {
        let (mut position, mut changed) = (Some(Position::Retries(Bound::Unbounded)), 0);
        while let Some(from) = position {
            let (step, next) = self.read(move |_, disk| look(disk, from, now)).await?;
            if let Some(step) = step {
                changed += step.len();
                self.ask(|reply| Command::Redate(step, now, reply)).await?;
            }
            position = next;
        }
        self.ask(|reply| Command::Redate(Step::Rest, now, reply)).await?;
        // When the first is too old was reckoned with times that are others now.
        self.shared.hooks.usages().look_again();
        Ok(changed)
    }
}

impl Step {
    fn len(&self) -> usize {
        match self {
            Self::Lines(names) => names.len(),
            Self::Keys(_, keys) => keys.len(),
            Self::Rest => 0,
        }
    }
}

/// Looks at the next part: what is to be written, and where to go on.
fn look(disk: &Disk, position: Position, now: UnixMillis) -> Result<(Option<Step>, Option<Position>)> {
    let some = |names: Vec<_>| (!names.is_empty()).then_some(Step::Lines(names));
    match position {
        Position::Retries(from) => {
            let of_entry = |key: &[u8], _: &[u8]| {
                let later = keys::slot_of_retry(key).filter(|slot| slot.due > now);
                later.map_or(Ok(None), |slot| is_to_redate(disk.delivery(slot.name), slot.name, now))
            };
            let (names, next) = walk(&disk.retries, from, of_entry)?;
            Ok((some(names), Some(next.map_or(Position::Log(Bound::Unbounded), Position::Retries))))
        }
        Position::Log(from) => {
            let of_entry = |key: &[u8], value: &[u8]| {
                let Some(name) = keys::name_in_log(key) else { return Ok(None) };
                is_to_redate(format::decode(&format!("delivery {name}"), value).map(Some), name, now)
            };
            let (names, next) = walk(&disk.log, from, of_entry)?;
            Ok((some(names), Some(next.map_or(Position::Dedup(0, Bound::Unbounded), Position::Log))))
        }
        Position::Dedup(which, from) => {
            let Some(generation) = disk.dedup.get(which) else { return Ok((None, None)) };
            let of_entry = |key: &[u8], value: &[u8]| Ok(is_later(key, value, now));
            let (keys, next) = walk(generation, from, of_entry)?;
            let step = (!keys.is_empty()).then_some(Step::Keys(which, keys));
            let next = next.map(|next| Position::Dedup(which, next));
            Ok((step, Some(next.unwrap_or(Position::Dedup(which + 1, Bound::Unbounded)))))
        }
    }
}

/// What is found among the next entries, and where to go on; none: this was the end.
fn walk<T>(
    keyspace: &fjall::Keyspace,
    from: Bound<UserKey>,
    mut find: impl FnMut(&[u8], &[u8]) -> Result<Option<T>>,
) -> Result<(Vec<T>, Option<Bound<UserKey>>)> {
    let mut found = Vec::new();
    for (looked, entry) in keyspace.range((from, Bound::Unbounded)).enumerate() {
        let (key, value) = entry.into_inner().map_err(engine(READ))?;
        found.extend(find(&key, &value)?);
        if found.len() == WRITES || looked + 1 == LOOKS {
            return Ok((found, Some(Bound::Excluded(key))));
        }
    }
    Ok((found, None))
}

/// Whether a line is to be written anew. One that cannot be decoded is logged and stays.
fn is_to_redate(
    line: Result<Option<Delivery>>,
    name: DeliveryName,
    now: UnixMillis,
) -> Result<Option<DeliveryName>> {
    match line {
        Ok(line) => Ok(line.and_then(|line| line.redated(now)).map(|_| name)),
        Err(error @ Error::Corrupt { .. }) => {
            tracing::error!(delivery = %name, error = %chain(&error), "its times cannot be set right");
            Ok(None)
        }
        Err(other) => Err(other),
    }
}

fn is_later(key: &[u8], value: &[u8], now: UnixMillis) -> Option<DedupKey> {
    let key = DedupKey(key.try_into().ok()?);
    let (_, at) = format::decode_seen(key, value).ok()?;
    (at > now).then_some(key)
}

impl Group<'_> {
    /// Stages a step. It must be the only one of its group.
    pub(super) fn redate(&mut self, step: Step, now: UnixMillis) -> Result<()> {
        match step {
            Step::Lines(names) => names.into_iter().try_for_each(|name| self.redate_line(name, now)),
            Step::Keys(which, keys) => keys.into_iter().try_for_each(|key| self.redate_key(which, key, now)),
            Step::Rest => {
                self.redate_rest(now);
                Ok(())
            }
        }
    }

    fn redate_line(&mut self, name: DeliveryName, now: UnixMillis) -> Result<()> {
        // Also of a Webhook that is gone: another may take it over.
        let Some(before) = self.any_line(name)? else { return Ok(()) };
        let Some(after) = before.redated(now) else { return Ok(()) };
        let uid = after.webhook.uid;
        if self.summary(uid).is_none() {
            return Ok(());
        }
        self.batch.insert(&self.disk.log, *name.as_bytes(), format::encode(&after)?);
        let (old, new) = (place(&before), place(&after));
        if old != new {
            if let Some((LaneId::Retry, slot)) = old {
                self.batch.remove(&self.disk.retries, keys::retry(uid, slot));
            }
            if let Some((LaneId::Retry, slot)) = new {
                self.batch.insert(&self.disk.retries, keys::retry(uid, slot), b"");
            }
        }
        if !after.state.is_final() {
            self.effect(uid, Effect::Redated(new, Box::new(after)));
            self.woken.insert(uid);
        }
        Ok(())
    }

    fn redate_key(&mut self, which: usize, key: DedupKey, now: UnixMillis) -> Result<()> {
        let Some(generation) = self.disk.dedup.get(which) else { return Ok(()) };
        let Some(value) = generation.get(key.0).map_err(engine(READ))? else { return Ok(()) };
        let (uid, at) = format::decode_seen(key, &value)?;
        if at > now {
            self.batch.insert(generation, key.0, format::encode_seen(uid, now));
        }
        Ok(())
    }

    fn redate_rest(&mut self, now: UnixMillis) {
        for hook in self.hooks.all() {
            let uid = hook.key();
            if let Some(after) = hook.summary().redated(now)
                && let Some(summary) = self.summary(uid)
            {
                *summary = after;
            }
        }
        for replay in self.hooks.replays().all() {
            if let Some(after) = replay.redated(now) {
                self.replays.set(after);
            }
        }
        self.generations.redate(now);
        self.hooks.newest().save(self.disk, &mut self.batch);
    }
}

impl Loaded {
    /// The same with another log line.
    pub(super) fn with(&self, delivery: Delivery) -> Arc<Self> {
        Arc::new(Self { delivery, event: Arc::clone(&self.event), cost: self.cost })
    }
}
