//! One half of a Webhook's queue, as far as memory knows it: a window on its beginning.
//!
//! Everything on disk before the end of the window is in the window or claimed. What is added before the end
//! enters the window, what is added behind it stays on disk until the window is refilled from its end on. So a
//! claim right after an append reads nothing from disk, a refill never walks over what was delivered, and a
//! million waiting deliveries cost no memory.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::keys::Slot;
use crate::model::time::UnixMillis;
use crate::store::Tried;
use crate::store::records::{Delivery, Event};

/// Which half of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum LaneId {
    /// First attempts, sorted by acceptance; always due.
    Fresh,
    /// Retries, sorted by when they are due.
    Retry,
}

impl LaneId {
    pub(super) const ALL: [Self; 2] = [Self::Fresh, Self::Retry];

    /// What it holds.
    pub(super) const fn tried(self) -> Tried {
        match self {
            Self::Fresh => Tried::Never,
            Self::Retry => Tried::Before,
        }
    }

    /// Most entries of one window, however small they are.
    pub(super) const fn window(self) -> usize {
        match self {
            Self::Fresh => 1024,
            Self::Retry => 128,
        }
    }
}

/// A waiting delivery with all that an attempt needs.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The log line.
    pub delivery: Delivery,
    /// What to send.
    pub event: Arc<Event>,
    /// Bytes of memory that it is counted with.
    pub cost: usize,
}

impl Loaded {
    /// Memory of one without the event's data: log line, names, map entries.
    const OVERHEAD: usize = 768;

    /// `sharers` deliveries hold the same event.
    pub(super) fn new(delivery: Delivery, event: Arc<Event>, sharers: usize) -> Self {
        let cost = Self::OVERHEAD + event.data.len() / sharers.max(1);
        Self { delivery, event, cost }
    }
}

/// Memory that the windows of all Webhooks may use together, for one half of their queues.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    /// A window was cut for want of memory.
    short: AtomicBool,
    limit: usize,
}

impl Budget {
    /// So many bytes.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), short: AtomicBool::new(false), limit })
    }

    fn exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit
    }

    fn is_half_empty(&self) -> bool {
        self.used.load(Ordering::Relaxed) <= self.limit / 2
    }

    /// Whether a window was cut for want of memory since this was last asked.
    pub(super) fn was_short(&self) -> bool {
        self.short.swap(false, Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// What is on disk behind the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beyond {
    /// Nothing.
    Nothing,
    /// Perhaps something, at this place or later.
    Unknown(Slot),
    /// Something at this place, nothing before.
    Next(Slot),
}

impl Beyond {
    fn end(self) -> Option<Slot> {
        match self {
            Self::Nothing => None,
            Self::Unknown(slot) | Self::Next(slot) => Some(slot),
        }
    }
}

/// What to read from disk before a claim can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refill {
    /// Of which half.
    pub lane: LaneId,
    /// From this place on.
    pub from: Slot,
    /// At least so many.
    pub need: usize,
    /// So many, while their events are not more than [`AHEAD_BYTES`].
    pub want: usize,
}

impl Refill {
    /// Whether what was read is enough: so many deliveries, with so many bytes.
    pub(super) fn is_enough(&self, count: usize, bytes: usize) -> bool {
        count >= self.want || (count >= self.need && bytes >= AHEAD_BYTES)
    }
}

/// What was read for a [`Refill`].
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In order.
    pub loaded: Vec<(Slot, Arc<Loaded>)>,
    /// The first place that was not read; none: there is nothing more.
    pub next: Option<Slot>,
}

/// A refill that is being read.
#[derive(Debug)]
struct Underway {
    /// Added meanwhile, behind the end of the window.
    added: BTreeMap<Slot, Arc<Loaded>>,
    /// Ended meanwhile.
    gone: HashSet<Slot>,
    /// The first that was added and not kept, for want of room: it is on disk.
    left: Option<Slot>,
    /// Where the read begins.
    from: Slot,
    /// Bytes of what was added.
    bytes: usize,
}

/// Bytes that are kept aside at most while one refill is read.
const MOST_ASIDE: usize = 2 << 20;

impl Underway {
    fn new(from: Slot) -> Self {
        Self { added: BTreeMap::new(), gone: HashSet::new(), left: None, from, bytes: 0 }
    }

    /// Keeps what comes first, as much as a window holds: a read that takes long must not hold all that comes.
    fn add(&mut self, slot: Slot, loaded: Arc<Loaded>, most: usize) {
        self.bytes += loaded.cost;
        if let Some(old) = self.added.insert(slot, loaded) {
            self.bytes -= old.cost;
        }
        while (self.added.len() > most || self.bytes > MOST_ASIDE)
            && let Some((last, loaded)) = self.added.pop_last()
        {
            self.bytes -= loaded.cost;
            self.left = Some(self.left.map_or(last, |left| left.min(last)));
        }
    }

    fn remove(&mut self, slot: Slot) {
        if let Some(loaded) = self.added.remove(&slot) {
            self.bytes -= loaded.cost;
        }
        if slot >= self.from {
            self.gone.insert(slot);
        }
    }
}

/// Entries to read at once, when memory allows, since beginning to read costs most.
const READ_AHEAD: usize = 256;

/// Of large events fewer are read than [`READ_AHEAD`].
const AHEAD_BYTES: usize = 512 << 10;

/// A window that is shorter is filled while what it has is sent: more than one endpoint has under way at once.
const LOW: usize = 128;

/// One half of a queue.
#[derive(Debug)]
pub(super) struct Lane {
    id: LaneId,
    window: BTreeMap<Slot, Arc<Loaded>>,
    beyond: Beyond,
    underway: Option<Underway>,
    /// Since when what waits at a place on disk is due, by the last look.
    looked_up: Option<(Slot, Slot)>,
    budget: Arc<Budget>,
}

impl Lane {
    pub(super) fn new(id: LaneId, beyond: Beyond, budget: Arc<Budget>) -> Self {
        Self { id, window: BTreeMap::new(), beyond, underway: None, looked_up: None, budget }
    }

    fn covers(&self, slot: Slot) -> bool {
        self.beyond.end().is_none_or(|end| slot < end)
    }

    /// Whether what waits at `slot` may be claimed at `now`.
    fn due(&self, slot: Slot, now: UnixMillis) -> bool {
        match self.id {
            LaneId::Fresh => true,
            LaneId::Retry => slot.due <= now,
        }
    }

    /// The first in memory that is due at `now`.
    pub(super) fn first_due(&self, now: UnixMillis) -> Option<Slot> {
        self.window.first_key_value().map(|(slot, _)| *slot).filter(|slot| self.due(*slot, now))
    }

    /// In memory, the one whose last attempt is longest ago, of those with one between these times. None that
    /// somebody asked for: it makes one attempt only. None whose receiver asks for more time.
    pub(super) fn early(&self, from: UnixMillis, to: UnixMillis, now: UnixMillis) -> Option<Slot> {
        let last = |loaded: &Loaded| {
            let last = loaded.delivery.attempts.last().filter(|_| loaded.delivery.redelivery.is_none())?;
            (last.at >= from && last.at < to && last.allows_another_at(now)).then_some(last.at)
        };
        let candidates = self.window.iter().filter_map(|(slot, loaded)| Some((last(loaded)?, *slot)));
        candidates.min().map(|(_, slot)| slot)
    }

    /// A place, by when what waits there is due: the time in a name may be later. None: its line must be looked up.
    pub(super) fn since(&self, slot: Slot) -> Option<Slot> {
        match (self.id, self.window.get(&slot)) {
            (LaneId::Retry, _) => Some(slot),
            (LaneId::Fresh, Some(loaded)) => Some(slot.since(loaded.delivery.due)),
            (LaneId::Fresh, None) => self.looked_up.filter(|(of, _)| *of == slot).map(|(_, since)| since),
        }
    }

    /// What was looked up.
    pub(super) fn looked_up(&mut self, slot: Slot, since: Slot) {
        self.looked_up = Some((slot, since));
    }

    /// The first that is not claimed. Err: it must be looked up on disk, from this place on.
    pub(super) fn first(&self) -> Result<Option<Slot>, Slot> {
        match (self.window.first_key_value(), self.beyond) {
            (Some((slot, _)), _) => Ok(Some(*slot)),
            (None, Beyond::Next(slot)) => Ok(Some(slot)),
            (None, Beyond::Unknown(slot)) => Err(slot),
            (None, Beyond::Nothing) => Ok(None),
        }
    }

    /// All that waits and is not claimed, if all of it is in memory.
    pub(super) fn all(&self) -> Option<impl Iterator<Item = Slot>> {
        (self.beyond == Beyond::Nothing).then(|| self.window.keys().copied())
    }

    /// Takes up what was committed as waiting at `slot`.
    pub(super) fn add(&mut self, slot: Slot, loaded: Arc<Loaded>) {
        if self.covers(slot) {
            self.enter(slot, loaded);
            self.evict(0);
            return;
        }
        if let Some(underway) = &mut self.underway {
            underway.add(slot, loaded, self.id.window());
        }
    }

    fn enter(&mut self, slot: Slot, loaded: Arc<Loaded>) {
        self.budget.used.fetch_add(loaded.cost, Ordering::Relaxed);
        if let Some(old) = self.window.insert(slot, loaded) {
            self.budget.used.fetch_sub(old.cost, Ordering::Relaxed);
        }
    }

    /// Takes from the window.
    pub(super) fn take(&mut self, slot: Slot) -> Option<Arc<Loaded>> {
        let loaded = self.window.remove(&slot)?;
        self.budget.used.fetch_sub(loaded.cost, Ordering::Relaxed);
        Some(loaded)
    }

    /// Leaves the end of the window to the disk, until it is within its limits or so short.
    fn evict(&mut self, keep: usize) {
        loop {
            let short = self.budget.exceeded();
            let long = self.window.len() > self.id.window();
            if !(short || long) || self.window.len() <= keep {
                return;
            }
            self.budget.short.fetch_or(short, Ordering::Relaxed);
            let Some((slot, loaded)) = self.window.pop_last() else { return };
            self.budget.used.fetch_sub(loaded.cost, Ordering::Relaxed);
            self.beyond = Beyond::Next(slot);
        }
    }

    /// Forgets what no longer waits at `slot`.
    pub(super) fn remove(&mut self, slot: Slot) {
        self.take(slot);
        if let Some(underway) = &mut self.underway {
            underway.remove(slot);
        }
        if self.beyond == Beyond::Next(slot) {
            self.beyond = Beyond::Unknown(slot);
        }
    }

    /// Leaves the whole window to the disk.
    pub(super) fn unload(&mut self) {
        if let Some((slot, _)) = self.window.first_key_value() {
            self.beyond = Beyond::Next(*slot);
            self.clear();
        }
    }

    /// Leaves everything to the disk, also what is being read: places there are others.
    pub(super) fn reread(&mut self) {
        self.clear();
        (self.underway, self.looked_up) = (None, None);
        self.beyond = Beyond::Unknown(Slot::FIRST);
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        while let Some((_, loaded)) = self.window.pop_first() {
            self.budget.used.fetch_sub(loaded.cost, Ordering::Relaxed);
        }
    }

    /// What must be read before `limit` deliveries that are due at `now` can be taken.
    pub(super) fn needs(&self, now: UnixMillis, limit: usize) -> Option<Refill> {
        let missing = limit.saturating_sub(self.window.len());
        let rest_is_later = self.window.last_key_value().is_some_and(|(last, _)| !self.due(*last, now));
        let from = match self.beyond {
            Beyond::Nothing => return None,
            Beyond::Next(next) if !self.due(next, now) => return None,
            Beyond::Unknown(slot) | Beyond::Next(slot) => slot,
        };
        // No more than will be kept.
        let room = self.id.window().saturating_sub(self.window.len());
        let want = if self.budget.is_half_empty() { missing.max(READ_AHEAD.min(room)) } else { missing };
        (missing > 0 && !rest_is_later).then_some(Refill { lane: self.id, from, need: missing, want })
    }

    /// What may be read before it is needed; nothing when memory may soon be short, or it would be read in vain.
    pub(super) fn ahead(&self) -> Option<Refill> {
        let Beyond::Next(from) = self.beyond else { return None };
        let is_low = self.window.len() < LOW && self.budget.is_half_empty();
        is_low.then_some(Refill { lane: self.id, from, need: 0, want: READ_AHEAD })
    }

    /// What was added and is kept for a refill that is being read.
    #[cfg(test)]
    pub(super) fn kept_aside(&self) -> usize {
        self.underway.as_ref().map_or(0, |underway| underway.added.len())
    }

    /// A refill begins to be read. One at a time.
    pub(super) fn reading(&mut self, refill: Refill) {
        self.underway = Some(Underway::new(refill.from));
    }

    /// The refill could not be read.
    pub(super) fn gave_up(&mut self) {
        self.underway = None;
    }

    /// Takes up what was read for a refill and what happened meanwhile; `claimed` tells what is not to enter.
    pub(super) fn refilled(
        &mut self,
        refill: Refill,
        found: Found,
        mut claimed: impl FnMut(Slot, &Arc<Loaded>) -> bool,
    ) {
        let Some(Underway { added, gone, left, .. }) = self.underway.take() else { return };
        if self.beyond.end() != Some(refill.from) {
            // The window's end has moved towards its beginning: what was read would leave a gap.
            return;
        }
        // What was asked for can be taken even when memory is short; what was added meanwhile is to find room.
        let keep = self.window.len() + refill.need;
        let next = found.next.into_iter().chain(left).min();
        self.beyond = match next {
            None => Beyond::Nothing,
            Some(next) if gone.contains(&next) => Beyond::Unknown(next),
            Some(next) => Beyond::Next(next),
        };
        let found = found.loaded.into_iter().filter(|(slot, _)| !gone.contains(slot));
        for (slot, loaded) in found.chain(added) {
            if claimed(slot, &loaded) {
                continue;
            }
            if self.covers(slot) {
                self.enter(slot, loaded);
            }
        }
        self.evict(keep);
    }

    /// Takes up the first that is on disk at or after `from`, where nothing was known. It must have been looked
    /// up without letting go of the queue, or what was added meanwhile would be missed.
    pub(super) fn found_first(&mut self, from: Slot, first: Option<Slot>) {
        if self.beyond == Beyond::Unknown(from) && self.underway.is_none() {
            self.beyond = first.map_or(Beyond::Nothing, Beyond::Next);
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.clear();
    }
}
