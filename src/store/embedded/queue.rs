//! What one Webhook has to claim, as far as memory knows it: pure state, no disk. See [`super::lane`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::keys::Slot;
use super::lane::{Beyond, Budget, Found, Lane, LaneId, Loaded, Refill};
use crate::model::ids::DeliveryName;
use crate::model::time::UnixMillis;
use crate::store::records::{Claimed, Delivery};
use crate::store::{Order, Tried};

/// Before and after every time that is kept.
const NEVER: UnixMillis = UnixMillis::from_millis(i64::MIN);
const ANY_TIME: UnixMillis = UnixMillis::from_millis(i64::MAX);

#[derive(Debug)]
struct Claim {
    lane: LaneId,
    slot: Slot,
    until: UnixMillis,
    lease: Duration,
    /// None while it is being read.
    loaded: Option<Arc<Loaded>>,
}

impl Claim {
    /// Since when it is due.
    fn due(&self) -> UnixMillis {
        let due = self.loaded.as_ref().and_then(|loaded| loaded.delivery.due);
        self.slot.since(due).due
    }
}

/// Memory for the windows of all Webhooks.
#[derive(Clone, Debug)]
pub(super) struct Budgets {
    fresh: Arc<Budget>,
    retry: Arc<Budget>,
}

impl Budgets {
    /// Bytes for first attempts and for retries. Apart, so that the retries of dead endpoints do not push the
    /// fresh deliveries of the others out of memory.
    pub(super) fn new(fresh: usize, retry: usize) -> Self {
        Self { fresh: Budget::new(fresh), retry: Budget::new(retry) }
    }

    /// Bytes of each half.
    #[cfg(test)]
    pub(super) fn used(&self) -> [(LaneId, usize); 2] {
        [(LaneId::Fresh, self.fresh.used()), (LaneId::Retry, self.retry.used())]
    }

    /// Whether a window was cut for want of memory since this was last asked.
    pub(super) fn were_short(&self) -> bool {
        let fresh = self.fresh.was_short();
        self.retry.was_short() || fresh
    }
}

/// One Webhook's queue.
#[derive(Debug)]
pub(super) struct Queue {
    fresh: Lane,
    retry: Lane,
    claims: HashMap<DeliveryName, Claim>,
    /// No claim expires before.
    expiry: Option<UnixMillis>,
    /// Tests under way, which are never claimed.
    tests: HashMap<DeliveryName, Arc<Loaded>>,
    /// It is being erased: nothing can be claimed. And whether something was added since the last look.
    purging: Option<bool>,
    /// Something was claimed since the last look.
    used: bool,
}

impl Queue {
    /// Of a Webhook that has nothing on disk.
    pub(super) fn empty(budgets: &Budgets) -> Self {
        Self::with(Beyond::Nothing, budgets)
    }

    /// Of a Webhook whose queue is on disk.
    pub(super) fn on_disk(budgets: &Budgets) -> Self {
        Self::with(Beyond::Unknown(Slot::FIRST), budgets)
    }

    fn with(beyond: Beyond, budgets: &Budgets) -> Self {
        Self {
            fresh: Lane::new(LaneId::Fresh, beyond, Arc::clone(&budgets.fresh)),
            retry: Lane::new(LaneId::Retry, beyond, Arc::clone(&budgets.retry)),
            claims: HashMap::new(),
            expiry: None,
            tests: HashMap::new(),
            purging: None,
            used: false,
        }
    }

    fn lane(&self, id: LaneId) -> &Lane {
        match id {
            LaneId::Fresh => &self.fresh,
            LaneId::Retry => &self.retry,
        }
    }

    fn lane_mut(&mut self, id: LaneId) -> &mut Lane {
        match id {
            LaneId::Fresh => &mut self.fresh,
            LaneId::Retry => &mut self.retry,
        }
    }

    /// Takes up what was committed as waiting at `slot`.
    pub(super) fn add(&mut self, id: LaneId, slot: Slot, loaded: Arc<Loaded>) {
        if let Some(added) = &mut self.purging {
            *added = true;
        } else if !attach(&mut self.claims, id, slot, &loaded) {
            self.lane_mut(id).add(slot, loaded);
        }
    }

    /// Forgets what no longer waits at `slot`, and its claim.
    pub(super) fn remove(&mut self, id: LaneId, slot: Slot) {
        self.claims.remove(&slot.name);
        self.lane_mut(id).remove(slot);
    }

    /// Which part of the queue must be read before `limit` deliveries can be claimed at `now`.
    pub(super) fn needs(&mut self, now: UnixMillis, limit: usize, order: Order) -> Option<Refill> {
        self.expire(now);
        if self.purging() {
            return None;
        }
        match order {
            Order::LongestDue | Order::InTurn { .. } => {
                self.fresh.needs(now, limit).or_else(|| self.retry.needs(now, limit))
            }
            Order::Look { .. } => self.fresh.needs(now, limit).or_else(|| self.retry.needs(ANY_TIME, limit)),
            Order::Early { .. } => self.retry.needs(ANY_TIME, limit),
        }
    }

    /// Which part of the queue is worth reading before a claim needs it: first attempts, which are due at any time.
    pub(super) fn ahead(&self) -> Option<Refill> {
        if self.purging() { None } else { self.fresh.ahead() }
    }

    /// See [`Lane::kept_aside`].
    #[cfg(test)]
    pub(super) fn kept_aside(&self, id: LaneId) -> usize {
        self.lane(id).kept_aside()
    }

    /// Marks a refill as being read, until [`Queue::refilled`] or [`Queue::gave_up`]. One at a time.
    pub(super) fn reading(&mut self, refill: Refill) {
        self.lane_mut(refill.lane).reading(refill);
    }

    /// A refill could not be read.
    pub(super) fn gave_up(&mut self, refill: Refill) {
        self.lane_mut(refill.lane).gave_up();
    }

    /// Takes up what was read for a refill, and what happened meanwhile.
    pub(super) fn refilled(&mut self, refill: Refill, found: Found) {
        let Self { fresh, retry, claims, purging, .. } = self;
        let lane = match refill.lane {
            LaneId::Fresh => fresh,
            LaneId::Retry => retry,
        };
        lane.refilled(refill, found, |slot, loaded| {
            purging.is_some() || attach(claims, refill.lane, slot, loaded)
        });
    }

    /// Claims up to `limit` of those that are in memory, in this order.
    pub(super) fn claim(
        &mut self,
        now: UnixMillis,
        limit: usize,
        order: Order,
        lease: Duration,
    ) -> Vec<Claimed> {
        let (mut claimed, mut order) = (Vec::new(), order);
        self.used = true;
        while claimed.len() < limit {
            let Some((id, slot)) = self.next(now, order) else { break };
            let Some(loaded) = self.lane_mut(id).take(slot) else { break };
            if attach(&mut self.claims, id, slot, &loaded) {
                continue;
            }
            let Loaded { delivery, event, .. } = &*loaded;
            claimed.push(Claimed { delivery: delivery.clone(), event: Arc::clone(event) });
            self.hold(id, slot, (now, lease), Some(loaded));
            if let Order::InTurn { first } | Order::Look { first } = &mut order {
                *first = id.tried().other();
            }
        }
        claimed
    }

    /// Which is claimed next.
    fn next(&self, now: UnixMillis, order: Order) -> Option<(LaneId, Slot)> {
        let fresh = || self.fresh.first_due(now).map(|slot| (LaneId::Fresh, slot));
        let retry = || self.retry.first_due(now).map(|slot| (LaneId::Retry, slot));
        let early = |from, to| self.retry.early(from, to, now).map(|slot| (LaneId::Retry, slot));
        match order {
            Order::LongestDue => match (fresh(), retry()) {
                (Some((_, first)), Some(retry))
                    if self.fresh.since(first).is_some_and(|first| retry.1 < first) =>
                {
                    Some(retry)
                }
                (fresh, retry) => fresh.or(retry),
            },
            Order::InTurn { first: Tried::Never } => fresh().or_else(retry),
            Order::InTurn { first: Tried::Before } => retry().or_else(fresh),
            Order::Look { first: Tried::Never } => fresh().or_else(retry).or_else(|| early(NEVER, ANY_TIME)),
            Order::Look { first: Tried::Before } => retry().or_else(|| early(NEVER, ANY_TIME)).or_else(fresh),
            Order::Early { from, to } => early(from, to),
        }
    }

    fn hold(
        &mut self,
        lane: LaneId,
        slot: Slot,
        (now, lease): (UnixMillis, Duration),
        loaded: Option<Arc<Loaded>>,
    ) {
        let until = now + lease;
        self.expiry = Some(self.expiry.map_or(until, |earliest| earliest.min(until)));
        self.claims.insert(slot.name, Claim { lane, slot, until, lease, loaded });
    }

    /// When the next that is not claimed is due; `now` where that is not known. Exact after [`Queue::needs`]
    /// has nothing to say.
    pub(super) fn next_due(&self, now: UnixMillis) -> Option<UnixMillis> {
        let fresh = self.fresh.first().map_or(Some(now), |slot| slot.map(|slot| slot.due.min(now)));
        let retry = self.retry.first().map_or(Some(now), |slot| slot.map(|slot| slot.due));
        fresh.into_iter().chain(retry).min()
    }

    /// Claims one by its name, wherever it is, without handing it out. False: it cannot be claimed now.
    pub(super) fn single_out(&mut self, name: DeliveryName, now: UnixMillis, lease: Duration) -> bool {
        self.expire(now);
        if self.purging() || self.claims.contains_key(&name) || self.tests.contains_key(&name) {
            return false;
        }
        self.hold(LaneId::Fresh, Slot::fresh(name), (now, lease), None);
        true
    }

    /// Gives a claim back unused.
    pub(super) fn release(&mut self, name: DeliveryName) -> bool {
        let Some(Claim { lane, slot, loaded, .. }) = self.claims.remove(&name) else { return false };
        if let Some(loaded) = loaded {
            self.add(lane, slot, loaded);
        }
        true
    }

    /// Frees the claims that have expired.
    fn expire(&mut self, now: UnixMillis) {
        if self.expiry.is_none_or(|earliest| now < earliest) {
            return;
        }
        let expired: Vec<_> =
            self.claims.iter().filter(|(_, claim)| claim.until <= now).map(|(name, _)| *name).collect();
        for name in expired {
            self.release(name);
        }
        self.expiry = self.claims.values().map(|claim| claim.until).min();
    }

    /// The log line of a claimed delivery or of a test under way, with its event.
    pub(super) fn held(&self, name: DeliveryName) -> Option<Arc<Loaded>> {
        self.claims
            .get(&name)
            .and_then(|claim| claim.loaded.clone())
            .or_else(|| self.tests.get(&name).cloned())
    }

    /// Whether a delivery is claimed, or a test under way.
    pub(super) fn is_under_way(&self, name: DeliveryName) -> bool {
        self.claims.contains_key(&name) || self.tests.contains_key(&name)
    }

    /// Every delivery that waits for its first attempt, claimed ones and tests too, and perhaps some that were
    /// attempted; none if not all of them are in memory.
    pub(super) fn pending(&self) -> Option<Vec<DeliveryName>> {
        let waiting = self.fresh.all()?.map(|slot| slot.name);
        Some(waiting.chain(self.claims.keys().copied()).chain(self.tests.keys().copied()).collect())
    }

    /// Remembers a test under way.
    pub(super) fn begin_test(&mut self, loaded: Arc<Loaded>) {
        if let Some(added) = &mut self.purging {
            *added = true;
        }
        self.tests.insert(loaded.delivery.name, loaded);
    }

    /// Forgets a test that has ended.
    pub(super) fn end_test(&mut self, name: DeliveryName) {
        self.tests.remove(&name);
    }

    /// The clock was set back: no claim holds for longer than its lease from now.
    pub(super) fn redate_claims(&mut self, now: UnixMillis) {
        for claim in self.claims.values_mut() {
            claim.until = claim.until.min(now + claim.lease);
        }
        self.expiry = self.claims.values().map(|claim| claim.until).min();
    }

    /// Takes up that a delivery, which has not ended, was committed with other times; it waits at this place now. What
    /// is not claimed is left to the disk.
    pub(super) fn redated(&mut self, place: Option<(LaneId, Slot)>, delivery: Delivery) {
        let name = delivery.name;
        if let Some(test) = self.tests.get_mut(&name) {
            *test = test.with(delivery);
            return;
        }
        if let (Some(claim), Some((lane, slot))) = (self.claims.get_mut(&name), place) {
            match claim.loaded.as_ref().map(|loaded| loaded.with(delivery)) {
                Some(loaded) => (claim.lane, claim.slot, claim.loaded) = (lane, slot, Some(loaded)),
                // What is being read may be what it was before.
                None => drop(self.claims.remove(&name)),
            }
        }
        self.fresh.reread();
        self.retry.reread();
    }

    /// Gives memory back, unless something was claimed since this was last called.
    pub(super) fn rest(&mut self) {
        if !std::mem::take(&mut self.used) {
            self.fresh.unload();
            self.retry.unload();
        }
    }

    /// Begins to erase or goes on: nothing is handed out any more, nothing is remembered. Whether something was
    /// added since it was last called.
    pub(super) fn purge(&mut self) -> bool {
        let added = self.purging.replace(false).unwrap_or(false);
        self.claims.clear();
        self.tests.clear();
        self.fresh.clear();
        self.retry.clear();
        added
    }

    /// Whether it is being erased.
    pub(super) fn purging(&self) -> bool {
        self.purging.is_some()
    }

    /// Earliest due time of what is claimed.
    pub(super) fn oldest_claim(&self) -> Option<UnixMillis> {
        self.claims.values().map(Claim::due).min()
    }

    /// See [`Lane::first`].
    pub(super) fn first(&self, id: LaneId) -> Result<Option<Slot>, Slot> {
        self.lane(id).first()
    }

    /// See [`Lane::since`].
    pub(super) fn since(&self, id: LaneId, slot: Slot) -> Option<Slot> {
        self.lane(id).since(slot)
    }

    /// See [`Lane::looked_up`].
    pub(super) fn looked_up(&mut self, id: LaneId, slot: Slot, since: Slot) {
        self.lane_mut(id).looked_up(slot, since);
    }

    /// See [`Lane::found_first`].
    pub(super) fn found_first(&mut self, id: LaneId, from: Slot, first: Option<Slot>) {
        self.lane_mut(id).found_first(from, first);
    }
}

/// Whether a delivery is claimed; the claim then knows what it holds.
fn attach(claims: &mut HashMap<DeliveryName, Claim>, id: LaneId, slot: Slot, loaded: &Arc<Loaded>) -> bool {
    let Some(claim) = claims.get_mut(&slot.name) else { return false };
    if claim.loaded.is_none() {
        (claim.lane, claim.slot, claim.loaded) = (id, slot, Some(Arc::clone(loaded)));
    }
    true
}
