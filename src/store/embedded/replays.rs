//! Replays, in memory and on disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use super::disk::{Disk, engine};
use super::format;
use super::hooks::Hooks;
use super::keys::meta;
use super::usage::Owner;
use crate::model::ids::{DeliveryName, ReplayId, WebhookUid};
use crate::store::Result;
use crate::store::replays::{Part, REMEMBERED, Replay};

const READ: &str = "read from the store";

/// Every replay that is known.
#[derive(Debug, Default)]
pub(super) struct Replays(RwLock<HashMap<ReplayId, Arc<Replay>>>);

impl Replays {
    /// As they were left.
    pub(super) fn load(disk: &Disk) -> Result<Self> {
        let mut all = HashMap::new();
        for entry in disk.meta.prefix(meta::REPLAYS) {
            let (_, value) = entry.into_inner().map_err(engine(READ))?;
            let replay: Replay = format::decode("a replay", &value)?;
            all.insert(replay.id, replay);
        }
        for entry in disk.meta.prefix(meta::REPLAY_PARTS) {
            let (key, value) = entry.into_inner().map_err(engine(READ))?;
            let Some((id, webhook)) = ids(&key) else { continue };
            if let Some(replay) = all.get_mut(&id) {
                replay.parts.insert(webhook, format::decode("where a replay stands", &value)?);
            }
        }
        for replay in all.values_mut() {
            mend(disk, replay)?;
        }
        let all = all.into_iter().map(|(id, replay)| (id, Arc::new(replay)));
        Ok(Self(RwLock::new(all.collect())))
    }

    fn read<T>(&self, read: impl FnOnce(&HashMap<ReplayId, Arc<Replay>>) -> T) -> T {
        read(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// One.
    pub(super) fn get(&self, id: ReplayId) -> Option<Arc<Replay>> {
        self.read(|all| all.get(&id).cloned())
    }

    /// All.
    pub(super) fn all(&self) -> Vec<Arc<Replay>> {
        self.read(|all| all.values().cloned().collect())
    }

    /// The oldest finished ones of the namespace of one, beyond those that are remembered with one more.
    fn beyond(&self, of: &Replay) -> Vec<ReplayId> {
        let is_other = |other: &&Arc<Replay>| {
            other.selection.namespace == of.selection.namespace && other.namespace_uid == of.namespace_uid
        };
        let mut finished: Vec<_> = self.read(|all| {
            all.values()
                .filter(is_other)
                .filter_map(|replay| Some((replay.finished_at?, replay.id)))
                .collect()
        });
        finished.sort_unstable();
        let beyond = (finished.len() + 1).saturating_sub(REMEMBERED);
        finished.into_iter().take(beyond).map(|(_, id)| id).collect()
    }
}

/// Whose a replay is.
pub(super) fn owner(hooks: &Hooks, replay: &Replay) -> Owner {
    hooks.usages().owner(&replay.selection.namespace, replay.namespace_uid)
}

/// Lets a replay wait only for what does wait. It differs where a log line cannot be read any more, or was written by
/// a program that knows nothing of replays: nobody would ever tell how that ended.
fn mend(disk: &Disk, replay: &mut Replay) -> Result<()> {
    if replay.parts.values().all(|part| part.counts.waiting() == 0) {
        return Ok(());
    }
    let mut waiting: HashMap<WebhookUid, u64> = HashMap::new();
    for name in waiting_for(disk, replay.id)? {
        let line = disk.delivery(name).ok().flatten();
        if let Some(line) = line.filter(|line| line.put_by().is_some_and(|put| put.id == replay.id)) {
            *waiting.entry(line.webhook.uid).or_default() += 1;
        }
    }
    for (webhook, part) in &mut replay.parts {
        let missing = part.counts.waiting().saturating_sub(waiting.get(webhook).copied().unwrap_or(0));
        if missing > 0 {
            tracing::warn!(replay = %replay.name, %webhook, missing, "a replay does not wait for what is not there");
            part.counts.put -= missing;
        }
    }
    Ok(())
}

/// The names of all that a replay has put among those that wait.
pub(super) fn waiting_for(disk: &Disk, id: ReplayId) -> Result<Vec<DeliveryName>> {
    let prefix = meta::replayed_by(id);
    let mut names = Vec::new();
    for entry in disk.meta.prefix(&prefix) {
        let key = entry.key().map_err(engine(READ))?;
        let name = key.get(prefix.len()..).and_then(|name| name.try_into().ok());
        names.extend(name.map(DeliveryName::from_bytes));
    }
    Ok(names)
}

/// The two ids of the key of a part.
fn ids(key: &[u8]) -> Option<(ReplayId, WebhookUid)> {
    let (id, webhook) = key.strip_prefix(meta::REPLAY_PARTS)?.split_first_chunk()?;
    Some((ReplayId::from_bytes(*id), WebhookUid::from_bytes(webhook.try_into().ok()?)))
}

/// Changes of replays, to be committed together with what causes them. None: it goes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    replays: HashMap<ReplayId, Option<Replay>>,
    parts: BTreeMap<(ReplayId, WebhookUid), Option<Part>>,
}

impl Changes {
    /// A replay, as these changes leave it; its parts may have changed further.
    pub(super) fn get(&self, known: &Replays, id: ReplayId) -> Option<Replay> {
        match self.replays.get(&id) {
            Some(staged) => staged.clone(),
            None => known.get(id).map(|replay| (*replay).clone()),
        }
    }

    /// Where a replay stands at a Webhook, as these changes leave it.
    pub(super) fn part(&self, known: &Replays, id: ReplayId, webhook: WebhookUid) -> Option<Part> {
        match self.parts.get(&(id, webhook)) {
            Some(staged) => *staged,
            None => known.get(id)?.parts.get(&webhook).copied(),
        }
    }

    /// Changes where a replay stands at a Webhook, if it is known there.
    pub(super) fn change(
        &mut self,
        known: &Replays,
        id: ReplayId,
        webhook: WebhookUid,
        change: impl FnOnce(&mut Part),
    ) {
        if let Some(mut part) = self.part(known, id, webhook) {
            change(&mut part);
            self.parts.insert((id, webhook), Some(part));
        }
    }

    /// A replay begins.
    pub(super) fn begin(&mut self, replay: Replay) {
        for (webhook, part) in &replay.parts {
            self.parts.insert((replay.id, *webhook), Some(*part));
        }
        self.replays.insert(replay.id, Some(Replay { parts: BTreeMap::new(), ..replay }));
    }

    /// A replay is another than before, but for its parts.
    pub(super) fn set(&mut self, replay: Replay) {
        self.replays.insert(replay.id, Some(replay));
    }

    /// A replay goes, with its parts.
    pub(super) fn forget(&mut self, known: &Replays, id: ReplayId) {
        self.forget_parts(known, id);
        self.replays.insert(id, None);
    }

    /// Parts as these changes leave them.
    pub(super) fn parts(&self, known: &Replays, id: ReplayId) -> BTreeMap<WebhookUid, Part> {
        let mut parts = known.get(id).map(|replay| replay.parts.clone()).unwrap_or_default();
        for ((of, webhook), part) in &self.parts {
            match part {
                Some(part) if *of == id => drop(parts.insert(*webhook, *part)),
                None if *of == id => drop(parts.remove(webhook)),
                _ => {}
            }
        }
        parts
    }

    fn forget_parts(&mut self, known: &Replays, id: ReplayId) {
        for webhook in self.parts(known, id).into_keys() {
            self.parts.insert((id, webhook), None);
        }
    }

    /// A replay is finished: its parts are added up, and the oldest that are too many are forgotten.
    pub(super) fn finish(&mut self, known: &Replays, mut replay: Replay) {
        for part in self.parts(known, replay.id).into_values() {
            replay.rest = replay.rest.plus(part.counts);
        }
        self.forget_parts(known, replay.id);
        for beyond in known.beyond(&replay) {
            self.forget(known, beyond);
        }
        self.set(replay);
    }

    /// A Webhook is gone with all that waited for it; it was the last of this namespace, if of any.
    pub(super) fn webhook_gone(&mut self, hooks: &Hooks, webhook: WebhookUid, last_of: Option<&Owner>) {
        let known = hooks.replays();
        for replay in known.all() {
            if replay.finished_at.is_some() && last_of == Some(&owner(hooks, &replay)) {
                self.forget(known, replay.id);
                continue;
            }
            self.change(known, replay.id, webhook, |part| {
                part.walked = true;
                part.counts.put = part.counts.put.saturating_sub(part.counts.waiting());
            });
        }
    }

    /// Adds itself to a commit.
    pub(super) fn save(&self, disk: &Disk, batch: &mut fjall::OwnedWriteBatch) -> Result<()> {
        for (id, replay) in &self.replays {
            match replay {
                Some(replay) => batch.insert(&disk.meta, meta::replay(*id), format::encode(replay)?),
                None => batch.remove(&disk.meta, meta::replay(*id)),
            }
        }
        for ((id, webhook), part) in &self.parts {
            let key = meta::replay_part(*id, *webhook);
            match part {
                Some(part) => batch.insert(&disk.meta, key, format::encode(part)?),
                None => batch.remove(&disk.meta, key),
            }
        }
        Ok(())
    }

    /// The commit was made.
    pub(super) fn apply(&mut self, known: &Replays) {
        let Self { replays, parts } = std::mem::take(self);
        if replays.is_empty() && parts.is_empty() {
            return;
        }
        let mut all = known.0.write().unwrap_or_else(PoisonError::into_inner);
        for (id, replay) in replays {
            let Some(replay) = replay else {
                all.remove(&id);
                continue;
            };
            let parts = all.get(&id).map(|before| before.parts.clone()).unwrap_or_default();
            all.insert(id, Arc::new(Replay { parts, ..replay }));
        }
        for ((id, webhook), part) in parts {
            let Some(replay) = all.get_mut(&id).map(Arc::make_mut) else { continue };
            match part {
                Some(part) => drop(replay.parts.insert(webhook, part)),
                None => drop(replay.parts.remove(&webhook)),
            }
        }
    }
}
