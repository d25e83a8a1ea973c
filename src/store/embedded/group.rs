//! A group of calls that become one synced commit.
//!
//! Staging reads what is on disk and what the group itself has staged, and changes neither disk nor memory. Only
//! after the commit the effects are applied to memory, and the callers are answered.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use fjall::Slice;

use super::dedup::Generations;
use super::disk::{Disk, place};
use super::format::{self, References};
use super::hooks::Hooks;
use super::keys::{self, Slot, Tag};
use super::lane::{LaneId, Loaded};
use super::replays::Changes;
use super::usage::{Deltas, Owner};
use crate::model::causes::chain;
use crate::model::ids::{DeliveryName, EventUid, Namespace, NamespaceUid, WebhookRef, WebhookUid};
use crate::model::time::UnixMillis;
use crate::store::records::{
    Attempt, DedupKey, Delivery, EndReason, Event, NewEvent, Next, Outcome, Purpose, State, Summary, Usage,
};
use crate::store::{Appended, Change, Error, Result, SLACK};

/// An event that the caller's thread has encoded.
#[derive(Debug)]
pub(super) struct Prepared {
    uid: EventUid,
    namespace: Namespace,
    accepted_at: UnixMillis,
    dedup: Option<DedupKey>,
    /// None: nobody wants it, nothing is stored.
    value: Option<Slice>,
    deliveries: Vec<(Arc<Loaded>, Vec<u8>)>,
}

impl Prepared {
    /// Encodes an event and its log lines.
    pub(super) fn new(mut event: NewEvent) -> Result<Self> {
        let wanted = std::mem::take(&mut event.deliveries);
        let (uid, accepted_at, dedup) = (event.uid, event.accepted_at, event.dedup);
        let namespace = Arc::clone(&event.namespace);
        if wanted.is_empty() {
            return Ok(Self { uid, namespace, accepted_at, dedup, value: None, deliveries: vec![] });
        }
        let (value, event) = format::encode_event(event)?;
        let event = Arc::new(event);
        let sharers = wanted.len();
        let deliveries = wanted.into_iter().map(|new| {
            let delivery = Delivery {
                name: new.name,
                webhook: new.webhook,
                event: uid,
                event_id: Arc::clone(&event.attributes.id),
                event_type: Arc::clone(&event.attributes.event_type),
                test: new.test,
                accepted_at,
                state: State::Pending,
                due: Some(accepted_at),
                reason: None,
                attempts: vec![],
                ended_at: None,
                redelivery: None,
                expunged: None,
                event_source: Some(Arc::clone(&event.attributes.source)),
            };
            let line = format::encode(&delivery)?;
            Ok((Arc::new(Loaded::new(delivery, Arc::clone(&event), sharers)), line))
        });
        let deliveries = deliveries.collect::<Result<_>>()?;
        Ok(Self { uid, namespace, accepted_at, dedup, value: Some(value), deliveries })
    }

    /// Bytes that it adds to a commit, roughly.
    pub(super) fn weight(&self) -> usize {
        self.value.as_ref().map_or(0, |value| value.len()) + 64 + 512 * self.deliveries.len()
    }
}

/// What memory takes up after the commit.
#[derive(Debug)]
pub(super) enum Effect {
    Waits(LaneId, Slot, Arc<Loaded>),
    Left(LaneId, Slot),
    TestBegun(Arc<Loaded>),
    TestEnded(DeliveryName),
    /// Its times are others; where it waits now.
    Redated(Option<(LaneId, Slot)>, Box<Delivery>),
}

/// Calls that are committed together.
pub(super) struct Group<'a> {
    pub(super) disk: &'a Disk,
    pub(super) hooks: &'a Hooks,
    window: Duration,
    pub(super) batch: fjall::OwnedWriteBatch,
    summaries: HashMap<WebhookUid, Summary>,
    lines: HashMap<DeliveryName, Arc<Loaded>>,
    seen: HashMap<DedupKey, (EventUid, UnixMillis)>,
    effects: HashMap<WebhookUid, Vec<Effect>>,
    deltas: Deltas,
    pub(super) replays: Changes,
    pub(super) woken: HashSet<WebhookUid>,
    pub(super) generations: &'a mut Generations,
    /// The newest time in what is staged.
    newest: Option<UnixMillis>,
}

/// What follows from a commit.
#[derive(Debug)]
pub(super) struct Committed {
    summaries: HashMap<WebhookUid, Summary>,
    effects: HashMap<WebhookUid, Vec<Effect>>,
    deltas: Deltas,
    replays: Changes,
    /// What the Webhooks are kept under that may have something to claim.
    pub woken: HashSet<WebhookUid>,
}

impl<'a> Group<'a> {
    pub(super) fn new(
        disk: &'a Disk,
        hooks: &'a Hooks,
        window: Duration,
        generations: &'a mut Generations,
    ) -> Self {
        Self {
            disk,
            hooks,
            window,
            batch: disk.db.batch().durability(Some(fjall::PersistMode::SyncData)),
            summaries: HashMap::new(),
            lines: HashMap::new(),
            seen: HashMap::new(),
            effects: HashMap::new(),
            deltas: Deltas::default(),
            replays: Changes::default(),
            woken: HashSet::new(),
            generations,
            newest: None,
        }
    }

    /// Takes into account that what is staged has this time in it.
    pub(super) fn saw(&mut self, at: UnixMillis) {
        self.newest = self.newest.max(Some(at));
    }

    /// The numbers of a known Webhook, to be changed.
    pub(super) fn summary(&mut self, webhook: WebhookUid) -> Option<&mut Summary> {
        use std::collections::hash_map::Entry;
        match self.summaries.entry(webhook) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) => {
                let hook = self.hooks.get(webhook)?;
                Some(entry.insert(Summary::clone(&hook.summary())))
            }
        }
    }

    fn summary_or_new(&mut self, webhook: &WebhookRef) -> &mut Summary {
        let hooks = self.hooks;
        self.summaries.entry(webhook.uid).or_insert_with(|| {
            hooks
                .get(webhook.uid)
                .map_or_else(|| Summary::new(webhook.clone()), |hook| (*hook.summary()).clone())
        })
    }

    /// Whose something of a Webhook is, as the group leaves it so far.
    fn owner_of(&self, webhook: &WebhookRef) -> Owner {
        let known = || self.hooks.get(webhook.uid).map(|hook| self.hooks.owner(&hook.summary()));
        let staged = self.summaries.get(&webhook.uid).map(|summary| self.hooks.owner(summary));
        staged.or_else(known).unwrap_or_else(|| self.hooks.owner(&Summary::new(webhook.clone())))
    }

    pub(super) fn effect(&mut self, webhook: WebhookUid, effect: Effect) {
        self.effects.entry(webhook).or_default().push(effect);
    }

    /// Stages events; see [`crate::store::Store::append`].
    pub(super) fn append(&mut self, events: Vec<Prepared>) -> Result<Vec<Appended>> {
        events.into_iter().map(|event| self.append_one(event)).collect()
    }

    fn append_one(&mut self, event: Prepared) -> Result<Appended> {
        let Prepared { uid, namespace, accepted_at, dedup, value, deliveries } = event;
        self.saw(accepted_at);
        let owners = self.owners_of(&deliveries);
        let Some((value, owner)) = value.zip(owners.first()) else {
            return self.unwanted(&namespace, dedup, accepted_at);
        };
        // While a namespace is replaced, its Webhooks have different owners: each of them may have seen it.
        let keys = dedup.map(|key| owners.iter().map(|owner| owner.dedup_key(key)).collect::<Vec<_>>());
        let keys = keys.unwrap_or_default();
        for key in &keys {
            if let Some(first) = self.first_of(*key, accepted_at)? {
                return Ok(Appended::Duplicate(first));
            }
        }
        for key in keys {
            self.seen.insert(key, (uid, accepted_at));
            let current = self.generations.current(self.disk, accepted_at, self.window)?;
            self.batch.insert(current, key.0, format::encode_seen(uid, accepted_at));
        }
        // The order within a commit is the order in which it becomes visible: first what is pointed at.
        self.deltas.event(owner, value.len() as u64);
        self.batch.insert(&self.disk.events, *uid.as_bytes(), value);
        if deliveries.len() > 1 {
            let left = u32::try_from(deliveries.len()).unwrap_or(u32::MAX);
            let names = deliveries.iter().map(|(loaded, _)| loaded.delivery.name).collect();
            let references = References { left, names };
            self.batch.insert(&self.disk.meta, keys::meta::references(uid), references.encode());
        }
        for (loaded, line) in deliveries {
            self.append_delivery(loaded, line);
        }
        Ok(Appended::New)
    }

    /// Whose the deliveries of an event are, each once: that of the first one first.
    fn owners_of(&self, deliveries: &[(Arc<Loaded>, Vec<u8>)]) -> Vec<Owner> {
        let mut owners: Vec<Owner> = Vec::with_capacity(1);
        for (loaded, _) in deliveries {
            let owner = self.owner_of(&loaded.delivery.webhook);
            if !owners.contains(&owner) {
                owners.push(owner);
            }
        }
        owners
    }

    /// An event that goes to nobody leaves nothing, so that it can come again once somebody wants it.
    fn unwanted(&self, namespace: &str, dedup: Option<DedupKey>, now: UnixMillis) -> Result<Appended> {
        let Some(key) = dedup else { return Ok(Appended::New) };
        let staged = self.summaries.values().filter(|summary| *summary.webhook.namespace == *namespace);
        let staged: Vec<_> = staged.map(|summary| self.hooks.owner(summary)).collect();
        for owner in self.hooks.owners(namespace).into_iter().chain(staged) {
            if let Some(first) = self.first_of(owner.dedup_key(key), now)? {
                return Ok(Appended::Duplicate(first));
            }
        }
        Ok(Appended::New)
    }

    fn first_of(&self, key: DedupKey, now: UnixMillis) -> Result<Option<EventUid>> {
        match self.seen.get(&key) {
            Some((uid, at)) if now.since(*at) < self.window => Ok(Some(*uid)),
            _ => self.disk.seen(key, now, self.window),
        }
    }

    fn append_delivery(&mut self, loaded: Arc<Loaded>, line: Vec<u8>) {
        let Delivery { name, test, ref webhook, .. } = loaded.delivery;
        let uid = webhook.uid;
        let bytes = loaded.event.data.len() as u64;
        let hooks = self.hooks;
        let summary = self.summary_or_new(webhook);
        if !test {
            summary.pending += 1;
            summary.pending_bytes += bytes;
        }
        let owner = hooks.owner(summary);
        self.batch.insert(&self.disk.log, *name.as_bytes(), line);
        for term in keys::terms(&loaded.delivery) {
            self.batch.insert(&self.disk.terms, term, b"");
        }
        self.deltas.line(&owner, &loaded.delivery);
        let index = keys::index(uid, State::Pending, name);
        if test {
            self.batch.insert(&self.disk.index, index, keys::TEST);
            self.batch.insert(&self.disk.meta, keys::meta::test(name), *uid.as_bytes());
            self.effect(uid, Effect::TestBegun(loaded));
        } else {
            self.batch.insert(&self.disk.index, index, b"");
            self.effect(uid, Effect::Waits(LaneId::Fresh, Slot::fresh(name), loaded));
            self.woken.insert(uid);
        }
    }

    /// Stages outcomes; see [`crate::store::Store::record`].
    pub(super) fn record(&mut self, outcomes: Vec<Outcome>) -> Result<()> {
        outcomes.into_iter().try_for_each(|outcome| self.record_one(outcome))
    }

    fn record_one(&mut self, mut outcome: Outcome) -> Result<()> {
        let (name, uid) = (outcome.name, outcome.webhook);
        self.saw(outcome.at);
        if let Some(attempt) = &mut outcome.attempt {
            attempt.at = dated(attempt, outcome.at);
        }
        let Some(before) = self.unfinished(uid, name)? else { return Ok(()) };
        let purpose = before.delivery.purpose();
        if let Next::Retry(_) = outcome.next {
            match purpose {
                Purpose::Event => {}
                Purpose::Test => outcome.next = Next::Failed(EndReason::TestFailed),
                Purpose::Redelivery { .. } => outcome.next = Next::Failed(EndReason::RedeliveryFailed),
            }
        }
        let bytes = before.event.data.len() as u64;
        let Some(summary) = self.summary(uid) else { return Ok(()) };
        summary.apply(&outcome, purpose, bytes);
        if let Some(put) = before.delivery.put_by() {
            self.replayed(put.id, &before.delivery, &outcome);
        }
        let after = settled(before.delivery.clone(), outcome);
        let event = Arc::clone(&before.event);
        self.put(&before.delivery, Arc::new(Loaded { delivery: after, event, cost: before.cost }))
    }

    /// Stages that a log line becomes another, and moves it where that belongs.
    pub(super) fn put(&mut self, before: &Delivery, after: Arc<Loaded>) -> Result<()> {
        let (name, uid) = (before.name, before.webhook.uid);
        self.batch.insert(&self.disk.log, *name.as_bytes(), format::encode(&after.delivery)?);
        self.deltas.line_changed(&self.owner_of(&before.webhook), before, &after.delivery);
        self.move_in_index(before, &after.delivery);
        if !before.test {
            self.move_in_queue(uid, before, &after);
        } else if !before.state.is_final() {
            self.batch.remove(&self.disk.meta, keys::meta::test(name));
            self.effect(uid, Effect::TestEnded(name));
        }
        // What changes is not only in the numbers: those who show the log are told too.
        self.summary(uid);
        self.lines.insert(name, after);
        Ok(())
    }

    /// A log line, as the group leaves it so far; none: it is gone, or its Webhook is.
    pub(super) fn line(&self, name: DeliveryName) -> Result<Option<Delivery>> {
        let is_seen =
            |line: &Delivery| self.hooks.get(line.webhook.uid).is_some_and(|hook| !hook.is_hidden());
        Ok(self.any_line(name)?.filter(is_seen))
    }

    /// The same, though its Webhook is gone, as long as it is not being erased.
    pub(super) fn any_line(&self, name: DeliveryName) -> Result<Option<Delivery>> {
        let line = match self.lines.get(&name) {
            Some(staged) => Some(staged.delivery.clone()),
            None => self.disk.delivery(name).or_else(unless_corrupt(name))?,
        };
        let is_known = |line: &Delivery| {
            let hook = self.hooks.get(line.webhook.uid);
            hook.is_some_and(|hook| !hook.queue().purging())
        };
        Ok(line.filter(is_known))
    }

    /// An event that was committed.
    pub(super) fn event(&self, uid: EventUid) -> Result<Option<Arc<Event>>> {
        Ok(self.disk.event(uid)?.map(Arc::new))
    }

    /// Stages that what is erased is yet to go from the files.
    pub(super) fn owe_erasure(&mut self) {
        self.batch.insert(&self.disk.meta, keys::meta::DEBT, b"");
    }

    /// Stages that the event of a line goes. Once only: it counts what is committed.
    pub(super) fn erase_event(&mut self, line: &Delivery) -> Result<()> {
        if let Some(bytes) = self.disk.event_size(line.event)? {
            self.batch.remove(&self.disk.events, *line.event.as_bytes());
            self.deltas.event_gone(&self.owner_of(&line.webhook), bytes);
        }
        Ok(())
    }

    /// A delivery that is neither gone nor final, as the group leaves it so far.
    fn unfinished(&self, webhook: WebhookUid, name: DeliveryName) -> Result<Option<Arc<Loaded>>> {
        let Some(hook) = self.hooks.get(webhook) else { return Ok(None) };
        let staged = self.lines.get(&name).map(Arc::clone);
        let held = || {
            let queue = hook.queue();
            if queue.purging() { None } else { Some(queue.held(name)) }
        };
        let Some(held) = staged.map(Some).or_else(held) else { return Ok(None) };
        let loaded = held.map_or_else(|| self.on_disk(name), |held| Ok(Some(held)))?;
        Ok(loaded
            .filter(|loaded| loaded.delivery.webhook.uid == webhook && !loaded.delivery.state.is_final()))
    }

    fn on_disk(&self, name: DeliveryName) -> Result<Option<Arc<Loaded>>> {
        let read = || {
            let Some(delivery) = self.disk.delivery(name)? else { return Ok(None) };
            let event = self.disk.event(delivery.event)?;
            Ok(event.map(|event| Arc::new(Loaded::new(delivery, event.into(), 1))))
        };
        read().or_else(unless_corrupt(name))
    }

    fn move_in_index(&mut self, before: &Delivery, after: &Delivery) {
        let (old, new) = (Tag::of(before), Tag::of(after));
        if old == new {
            return;
        }
        let value = if after.test { keys::TEST } else { b"" };
        let index = &self.disk.index;
        self.batch.insert(index, keys::index(after.webhook.uid, new, after.name), value);
        let is_first = old == State::Pending.into();
        let old = keys::index(before.webhook.uid, old, before.name);
        let first = before.attempts.is_empty() && before.due == Some(before.accepted_at);
        if is_first && first {
            // Written once and removed once in its life: a weak tombstone and what it removes vanish together
            // when they meet, mostly before they reach a table.
            self.batch.remove_weak(index, old);
        } else {
            self.batch.remove(index, old);
        }
    }

    fn move_in_queue(&mut self, webhook: WebhookUid, before: &Delivery, after: &Arc<Loaded>) {
        let (old, new) = (place(before), place(&after.delivery));
        if old != new {
            if let Some((LaneId::Retry, slot)) = old {
                self.batch.remove(&self.disk.retries, keys::retry(webhook, slot));
            }
            if let Some((LaneId::Retry, slot)) = new {
                self.batch.insert(&self.disk.retries, keys::retry(webhook, slot), b"");
            }
        }
        if let Some((lane, slot)) = old {
            self.effect(webhook, Effect::Left(lane, slot));
        }
        if let Some((lane, slot)) = new {
            self.effect(webhook, Effect::Waits(lane, slot, Arc::clone(after)));
            self.woken.insert(webhook);
        }
    }

    /// Stages a Webhook to be known; see [`crate::store::Store::adopt`].
    pub(super) fn adopt(&mut self, seed: Summary) {
        let uid = seed.webhook.uid;
        let staged = self.summaries.iter().find(|(_, summary)| summary.webhook.uid == uid);
        let known = staged.map(|(key, _)| *key).or_else(|| Some(self.hooks.known_as(uid)?.key()));
        if let Some(key) = known {
            return self.adopt_again(key, seed);
        }
        if self.summaries.contains_key(&uid) || self.hooks.get(uid).is_some() {
            // Another has taken over from it already.
            return;
        }
        match self.predecessor(&seed) {
            Some(key) => {
                self.woken.insert(key);
                if let Some(summary) = self.summary(key) {
                    summary.succeed_to(seed.webhook);
                }
            }
            // What is pending is counted by who has it: a Webhook that is not known here has nothing here.
            None => drop(self.summaries.insert(uid, seed.discarded())),
        }
    }

    /// From whom a Webhook takes over that is not known, and from whom nobody else in the group has.
    fn predecessor(&self, seed: &Summary) -> Option<WebhookUid> {
        let left = self.hooks.predecessor(seed)?;
        let staged = self.summaries.get(&left.key());
        let is_free = staged.is_none_or(|staged| staged.webhook == left.summary().webhook);
        is_free.then(|| left.key())
    }

    fn adopt_again(&mut self, key: WebhookUid, seed: Summary) {
        let Some(known) = self.summary(key).cloned() else { return };
        if known.webhook != seed.webhook
            && let Some(summary) = self.summary(key)
        {
            summary.webhook = seed.webhook;
        }
        if let (None, Some(uid)) = (known.namespace_uid, seed.namespace_uid) {
            self.found_in(key, &known.webhook.namespace, uid);
        }
    }

    /// Stages that a Webhook is in this namespace, which was not known when it was stored. All that was stored without
    /// a namespace's uid under that name is then this namespace's: its heir is told by the first Webhook that
    /// still lives.
    fn found_in(&mut self, key: WebhookUid, namespace: &Namespace, uid: NamespaceUid) {
        let usages = self.hooks.usages();
        match usages.heir(namespace) {
            None => {
                let own = Owner { namespace: Arc::clone(namespace), uid: Some(uid) };
                if usages.get(&own) != Usage::default() {
                    return;
                }
                self.batch.insert(&self.disk.meta, keys::meta::heir(namespace), *uid.as_bytes());
                // At once: what the rest of the group stages is counted for the heir.
                usages.set_heir(namespace, Some(uid));
            }
            Some(heir) if heir != uid => return,
            Some(_) => {}
        }
        if let Some(summary) = self.summary(key) {
            summary.namespace_uid = Some(uid);
        }
    }

    /// Stages a change of a Webhook; see [`crate::store::Store::update`].
    pub(super) fn update(&mut self, webhook: WebhookUid, change: Change) {
        let Some(summary) = self.summary(webhook) else { return };
        match change {
            Change::Enable => summary.enable(),
            Change::Disable(disabled) => summary.disabled = Some(disabled),
        }
        self.woken.insert(webhook);
    }

    /// Writes everything, synced. A failure poisons the store: what is on disk is then known to nobody.
    pub(super) fn commit(self) -> Result<Committed> {
        let Self {
            disk,
            hooks,
            mut batch,
            summaries,
            effects,
            deltas,
            replays,
            woken,
            generations,
            newest,
            ..
        } = self;
        for (webhook, summary) in &summaries {
            batch.insert(&disk.meta, keys::meta::summary(*webhook), format::encode(summary)?);
        }
        deltas.save(disk, hooks.usages(), &mut batch)?;
        replays.save(disk, &mut batch)?;
        generations.save(disk, &mut batch);
        if let Some(newest) = newest {
            hooks.newest().add(newest, disk, &mut batch);
        }
        if !batch.is_empty() {
            disk.commit(batch).map_err(super::disk::engine("commit"))?;
        }
        generations.saved();
        Ok(Committed { summaries, effects, deltas, replays, woken })
    }
}

impl Committed {
    /// Brings memory to where the disk is. Answers what the Webhooks are kept under whose numbers or log have changed,
    /// and by how much the number of pending deliveries has.
    pub(super) fn apply(&mut self, hooks: &Hooks) -> (Vec<WebhookUid>, i64) {
        let mut more = 0;
        self.deltas.apply(hooks.usages());
        self.replays.apply(hooks.replays());
        let mut changed = Vec::with_capacity(self.summaries.len());
        for (key, summary) in self.summaries.drain() {
            let (hook, waits) = hooks.set(key, summary);
            more += waits;
            changed.push(key);
            let Some(effects) = self.effects.remove(&key) else { continue };
            let mut queue = hook.queue();
            for effect in effects {
                match effect {
                    Effect::Waits(lane, slot, loaded) => queue.add(lane, slot, loaded),
                    Effect::Left(lane, slot) => queue.remove(lane, slot),
                    Effect::TestBegun(loaded) => queue.begin_test(loaded),
                    Effect::TestEnded(name) => queue.end_test(name),
                    Effect::Redated(place, delivery) => queue.redated(place, *delivery),
                }
            }
        }
        (changed, more)
    }
}

/// A delivery after an outcome.
pub(super) fn settled(mut delivery: Delivery, outcome: Outcome) -> Delivery {
    let asked_by = delivery.redelivery.take().map(|waiting| waiting.asked.by);
    if let Some(attempt) = outcome.attempt {
        delivery.attempted(Attempt { asked_by, ..attempt });
    }
    (delivery.state, delivery.due, delivery.reason) = match outcome.next {
        Next::Success => (State::Success, None, None),
        Next::Retry(at) => (State::Retrying, Some(at), None),
        Next::Failed(reason) => (State::Failed, None, Some(reason)),
    };
    delivery.ended_at = delivery.state.is_final().then_some(outcome.at);
    delivery
}

/// When an attempt began that has ended at `end`. If the clock was set meanwhile, the time at its end counts: what
/// follows is reckoned from it.
fn dated(attempt: &Attempt, end: UnixMillis) -> UnixMillis {
    let ended = attempt.at + attempt.duration;
    let is_other = ended.since(end).max(end.since(ended)) > SLACK;
    if is_other { end - attempt.duration } else { attempt.at }
}

/// What cannot be decoded is logged, and is as if it were not there.
fn unless_corrupt<T>(name: DeliveryName) -> impl FnOnce(Error) -> Result<Option<T>> {
    move |error| match error {
        Error::Corrupt { .. } => {
            tracing::error!(delivery = %name, error = %chain(&error), "cannot be read; what was asked is dropped");
            Ok(None)
        }
        other => Err(other),
    }
}
