//! The queue beside a plain model of the disk, in every order of events that the writer, claimants and refills
//! can bring about.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::keys::Slot;
use super::lane::{Found, LaneId, Loaded, Refill};
use super::queue::{Budgets, Queue};
use crate::model::event::Attributes;
use crate::model::ids::{DeliveryName, EventUid, WebhookRef, WebhookUid};
use crate::model::time::UnixMillis;
use crate::store::records::{Attempt, Delivery, Event, State};
use crate::store::{Order, Tried};

const LEASE: Duration = Duration::from_secs(20);

fn loaded(name: DeliveryName) -> Arc<Loaded> {
    let event = Event {
        uid: EventUid::from_bytes([0; 16]),
        namespace: "a".into(),
        accepted_at: name.accepted_at(),
        attributes: Arc::new(Attributes {
            id: "1".into(),
            source: "/".into(),
            event_type: "t".into(),
            data_content_type: None,
            data_schema: None,
            subject: None,
            time: None,
            extensions: vec![],
        }),
        data: Bytes::from_static(&[0; 232]),
    };
    let webhook =
        WebhookRef { uid: WebhookUid::from_bytes([1; 16]), namespace: "a".into(), name: "hook".into() };
    // Those that wait for their first attempt are never claimed by what was before.
    let attempt = Attempt {
        at: name.accepted_at(),
        duration: Duration::ZERO,
        status: None,
        body: None,
        content_type: None,
        body_length: 0,
        error: None,
        asked_by: None,
        probe: false,
        retry_after: None,
    };
    let delivery = Delivery {
        name,
        webhook,
        event: event.uid,
        event_id: "1".into(),
        event_type: "t".into(),
        test: false,
        accepted_at: name.accepted_at(),
        state: State::Pending,
        due: None,
        reason: None,
        attempts: vec![attempt],
        ended_at: None,
        redelivery: None,
        expunged: None,
        event_source: None,
    };
    let loaded = Loaded::new(delivery, event.into(), 1);
    assert_eq!(loaded.cost, COST);
    Arc::new(loaded)
}

/// Bytes that each of them is counted with.
const COST: usize = 1000;

/// Bytes of both halves.
fn used(budgets: &Budgets) -> usize {
    budgets.used().iter().map(|(_, bytes)| bytes).sum()
}

/// Time and count as a name: sorts like those that are minted.
fn name(at: UnixMillis, count: u64) -> DeliveryName {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&at.as_millis().to_be_bytes()[2..]);
    bytes[8..].copy_from_slice(&count.to_be_bytes());
    DeliveryName::from_bytes(bytes)
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Append { count: usize, late: bool },
    Claim(usize),
    Succeed(usize),
    Retry(usize, u64),
    Release(usize),
    Look(bool),
    Pass(u64),
    Apply,
    Read,
    ReadAhead,
    Absorb,
    Rest,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1..6_usize, prop::bool::weighted(0.1)).prop_map(|(count, late)| Op::Append { count, late }),
        4 => (1..6_usize).prop_map(Op::Claim),
        3 => any::<usize>().prop_map(Op::Succeed),
        3 => (any::<usize>(), 0..40_u64).prop_map(|(which, after)| Op::Retry(which, after)),
        1 => any::<usize>().prop_map(Op::Release),
        1 => any::<bool>().prop_map(Op::Look),
        2 => (1..15_u64).prop_map(Op::Pass),
        3 => Just(Op::Apply),
        3 => Just(Op::Read),
        2 => Just(Op::ReadAhead),
        3 => Just(Op::Absorb),
        1 => Just(Op::Rest),
    ]
}

/// What the writer has committed, but not yet told the queue.
#[derive(Debug)]
enum Effect {
    Waits(LaneId, Slot),
    Left(LaneId, Slot),
}

struct World {
    queue: Queue,
    /// What waits, by name: the truth.
    waiting: BTreeMap<DeliveryName, (LaneId, Slot)>,
    effects: Vec<Effect>,
    claimed: HashMap<DeliveryName, UnixMillis>,
    reading: Option<(Refill, Found)>,
    now: UnixMillis,
    count: u64,
}

impl World {
    fn new(budgets: &Budgets, on_disk: usize) -> Self {
        let now = UnixMillis::from_millis(1_000_000);
        let queue = if on_disk == 0 { Queue::empty(budgets) } else { Queue::on_disk(budgets) };
        let mut world = Self {
            queue,
            waiting: BTreeMap::new(),
            effects: vec![],
            claimed: HashMap::new(),
            reading: None,
            now,
            count: 0,
        };
        for _ in 0..on_disk {
            let name = world.mint(false);
            world.waiting.insert(name, (LaneId::Fresh, Slot::fresh(name)));
        }
        world
    }

    fn mint(&mut self, late: bool) -> DeliveryName {
        self.count += 1;
        let at = if late { self.now - Duration::from_secs(5) } else { self.now };
        name(at, self.count)
    }

    fn read(&self, refill: Refill) -> Found {
        let wanted = |(lane, slot): &(LaneId, Slot)| *lane == refill.lane && *slot >= refill.from;
        let slots: BTreeSet<_> =
            self.waiting.values().filter(|at| wanted(at)).map(|(_, slot)| *slot).collect();
        let mut slots = slots.into_iter();
        let loaded = slots.by_ref().take(refill.want).map(|slot| (slot, loaded(slot.name))).collect();
        Found { loaded, next: slots.next() }
    }

    fn apply(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Waits(lane, slot) => self.queue.add(lane, slot, loaded(slot.name)),
                Effect::Left(lane, slot) => {
                    self.queue.remove(lane, slot);
                    // A claim that ran out just when its outcome was committed may have been made anew before the
                    // queue was told: it goes with the slot, and a retry is handed out again (at least once).
                    self.claimed.remove(&slot.name);
                }
            }
        }
    }

    fn some_claim(&self, which: usize) -> Option<DeliveryName> {
        let mut names: Vec<_> = self.claimed.keys().copied().collect();
        names.sort_unstable();
        (!names.is_empty()).then(|| names[which % names.len()])
    }

    fn expire(&mut self) {
        let now = self.now;
        self.claimed.retain(|_, until| *until > now);
    }

    /// Whoever is claimed waited, was due, and was nobody else's.
    fn hold(&mut self, names: &[DeliveryName], may_be_early: bool) {
        self.expire();
        for name in names {
            // What has just been committed as ended may still be handed out: its outcome will be dropped.
            let ending = self
                .effects
                .iter()
                .any(|effect| matches!(effect, Effect::Left(_, slot) if slot.name == *name));
            let waits = self.waiting.get(name);
            assert!(waits.is_some() || ending, "{name} does not wait");
            if let Some((LaneId::Retry, slot)) = waits.filter(|_| !ending && !may_be_early) {
                assert!(slot.due <= self.now, "{name} is not due");
            }
            assert!(self.claimed.insert(*name, self.now + LEASE).is_none(), "{name} is claimed twice");
        }
    }

    fn claim(&mut self, limit: usize) -> bool {
        if self.queue.needs(self.now, limit, Order::LongestDue).is_some() {
            return false;
        }
        let names: Vec<_> = self
            .queue
            .claim(self.now, limit, Order::LongestDue, LEASE)
            .into_iter()
            .map(|claimed| claimed.delivery.name)
            .collect();
        self.hold(&names, false);
        true
    }

    /// What waits is claimed, one at most, due or not.
    fn look(&mut self, first: Tried) {
        let order = Order::Look { first };
        if self.queue.needs(self.now, 1, order).is_none() {
            let claimed = self.queue.claim(self.now, 1, order, LEASE);
            let names: Vec<_> = claimed.into_iter().map(|claimed| claimed.delivery.name).collect();
            let open = self.waiting.keys().filter(|name| !self.claimed.contains_key(name)).count();
            assert!(
                names.len() == 1 || names.is_empty() && open <= self.effects.len(),
                "{names:?} of {open}"
            );
            self.hold(&names, true);
        }
    }

    fn end(&mut self, name: DeliveryName, retry: Option<UnixMillis>) {
        // The writer tells one commit before it makes the next.
        self.apply();
        self.claimed.remove(&name);
        let Some((lane, slot)) = self.waiting.remove(&name) else { return };
        self.effects.push(Effect::Left(lane, slot));
        if let Some(due) = retry {
            let slot = Slot { due, name };
            self.waiting.insert(name, (LaneId::Retry, slot));
            self.effects.push(Effect::Waits(LaneId::Retry, slot));
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Append { count, late } => {
                self.apply();
                for _ in 0..count {
                    let name = self.mint(late);
                    self.waiting.insert(name, (LaneId::Fresh, Slot::fresh(name)));
                    self.effects.push(Effect::Waits(LaneId::Fresh, Slot::fresh(name)));
                }
            }
            Op::Claim(limit) => drop(self.claim(limit)),
            Op::Succeed(which) => {
                if let Some(name) = self.some_claim(which) {
                    self.end(name, None);
                }
            }
            Op::Retry(which, after) => {
                if let Some(name) = self.some_claim(which) {
                    self.end(name, Some(self.now + Duration::from_secs(after)));
                }
            }
            Op::Release(which) => {
                if let Some(name) = self.some_claim(which) {
                    self.queue.release(name);
                    self.claimed.remove(&name);
                }
            }
            Op::Look(fresh_first) => self.look(if fresh_first { Tried::Never } else { Tried::Before }),
            Op::Pass(seconds) => self.now = self.now + Duration::from_secs(seconds),
            Op::Apply => self.apply(),
            Op::Read | Op::ReadAhead => {
                let refill = match op {
                    Op::Read => self.queue.needs(self.now, 4, Order::LongestDue),
                    _ => self.queue.ahead(),
                };
                if self.reading.is_none()
                    && let Some(refill) = refill
                {
                    self.queue.reading(refill);
                    self.reading = Some((refill, self.read(refill)));
                }
            }
            Op::Absorb => {
                if let Some((refill, found)) = self.reading.take() {
                    self.queue.refilled(refill, found);
                }
            }
            Op::Rest => self.queue.rest(),
        }
        self.expire();
    }

    /// Runs an operation: memory grows beyond its limit by nothing but what was read to be claimed.
    fn run_within(&mut self, op: Op, budgets: &Budgets, limits: [(LaneId, usize); 2]) {
        let before = budgets.used();
        let read = self.reading.as_ref().filter(|_| matches!(op, Op::Absorb)).map(|(refill, _)| *refill);
        self.run(op);
        for (((lane, before), (_, after)), (_, limit)) in before.into_iter().zip(budgets.used()).zip(limits) {
            let more = read.filter(|refill| refill.lane == lane).map_or(0, |refill| refill.need * COST);
            let most = limit.max(before + more);
            assert!(after <= most, "{op:?}: {lane:?} has {after} bytes, not {most}");
        }
    }

    /// Everything that waits can be claimed in the end, in order, and nothing else.
    fn drain(&mut self) {
        self.apply();
        self.run(Op::Absorb);
        self.now = self.now + Duration::from_secs(1000);
        self.claimed.clear();
        let mut all: Vec<Slot> = Vec::new();
        for _ in 0..10_000 {
            if !self.claim(3) {
                self.run(Op::Read);
                self.run(Op::Absorb);
                continue;
            }
            if self.claimed.is_empty() {
                assert_eq!(self.queue.next_due(self.now), None);
                assert!(self.waiting.is_empty(), "left behind: {:?}", self.waiting);
                return assert!(all.is_sorted(), "{all:?}");
            }
            let mut some: Vec<_> = self.claimed.keys().map(|name| self.waiting[name].1).collect();
            some.sort_unstable();
            all.extend(&some);
            for slot in some {
                self.end(slot.name, None);
            }
            self.apply();
        }
        panic!("no end");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_each_delivery_is_claimed_by_one_and_none_is_forgotten(
        on_disk in 0..20_usize,
        memory in 0..12_usize,
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let limits = [(LaneId::Fresh, memory * COST), (LaneId::Retry, memory * COST / 2)];
        let budgets = Budgets::new(limits[0].1, limits[1].1);
        let mut world = World::new(&budgets, on_disk);
        for op in ops {
            world.run_within(op, &budgets, limits);
        }
        world.drain();
        drop(world);
        prop_assert_eq!(used(&budgets), 0);
    }
}

#[test]
fn a_window_that_nobody_claims_from_gives_its_memory_back_when_memory_is_short() {
    let budgets = Budgets::new(10_000, 10_000);
    let (mut idle, mut busy) = (World::new(&budgets, 0), World::new(&budgets, 0));
    for _ in 0..12 {
        idle.run(Op::Append { count: 1, late: false });
        idle.apply();
    }
    assert!(budgets.were_short());
    assert!(used(&budgets) >= 9_000, "{}", used(&budgets));
    busy.run(Op::Append { count: 1, late: false });
    busy.apply();
    assert!(busy.queue.needs(busy.now, 1, Order::LongestDue).is_some(), "no memory for it");
    assert!(budgets.were_short());
    for world in [&mut idle, &mut busy] {
        world.queue.rest();
    }
    assert_eq!(used(&budgets), 0);
    busy.run(Op::Append { count: 3, late: false });
    busy.drain();
    idle.drain();
}

#[test]
fn what_comes_while_a_read_takes_long_is_kept_as_far_as_a_window_goes_and_none_is_forgotten() {
    for on_disk in [3, 2000] {
        let budgets = Budgets::new(usize::MAX, usize::MAX);
        let mut world = World::new(&budgets, on_disk);
        world.run(Op::Read);
        assert!(world.reading.is_some());
        for _ in 0..3 {
            world.run(Op::Append { count: 700, late: false });
            world.run(Op::Apply);
        }
        assert_eq!(world.queue.kept_aside(LaneId::Fresh), LaneId::Fresh.window());
        world.run(Op::Absorb);
        world.drain();
    }
}

#[test]
fn no_more_is_read_than_is_kept() {
    let budgets = Budgets::new(usize::MAX, usize::MAX);
    let mut queue = Queue::on_disk(&budgets);
    let now = UnixMillis::from_millis(1);
    let fresh = queue.needs(now, 32, Order::LongestDue).unwrap();
    assert_eq!((fresh.lane, fresh.need, fresh.want), (LaneId::Fresh, 32, 256));
    queue.reading(fresh);
    queue.refilled(fresh, Found::default());
    let retry = queue.needs(now, 32, Order::LongestDue).unwrap();
    assert_eq!((retry.lane, retry.need, retry.want), (LaneId::Retry, 32, LaneId::Retry.window()));

    // With memory more than half in use, only what is asked for.
    let budgets = Budgets::new(2 * COST, 0);
    let mut busy = World::new(&budgets, 0);
    busy.run(Op::Append { count: 2, late: false });
    busy.apply();
    let mut queue = Queue::on_disk(&budgets);
    assert_eq!(queue.needs(now, 32, Order::LongestDue).unwrap().want, 32);
    assert!(queue.ahead().is_none());
}

#[test]
fn a_hundred_thousand_new_ones_and_as_many_retries_take_no_more_memory_than_the_limits() {
    const MANY: u64 = 100_000;
    let entries = |lane: LaneId| lane.window() * COST;
    // By the number of entries, and by bytes.
    for (fresh, retry) in [(usize::MAX, usize::MAX), (500 * COST, 50 * COST)] {
        let budgets = Budgets::new(fresh, retry);
        let most = [
            (LaneId::Fresh, fresh.min(entries(LaneId::Fresh))),
            (LaneId::Retry, retry.min(entries(LaneId::Retry))),
        ];
        let mut world = World::new(&budgets, 0);
        // A refill is being read for a part of the time, and what comes meanwhile is kept for it.
        let reading = 30_000..40_000;
        for count in 0..MANY {
            let name = world.mint(false);
            // Each second one is due before all others.
            let due = if count % 2 == 0 { count } else { 2 * MANY - count };
            let slot = Slot { due: world.now + Duration::from_millis(due), name };
            for (lane, slot) in [(LaneId::Fresh, Slot::fresh(name)), (LaneId::Retry, slot)] {
                world.queue.add(lane, slot, loaded(name));
            }
            if count == reading.start {
                let _ = world.queue.claim(world.now, usize::MAX, Order::LongestDue, LEASE);
                let refill = world.queue.needs(world.now, 4, Order::LongestDue).unwrap();
                world.queue.reading(refill);
                world.reading = Some((refill, Found::default()));
            }
            if count == reading.end {
                let (refill, found) = world.reading.take().unwrap();
                world.queue.refilled(refill, found);
            }
            for ((lane, used), (_, most)) in budgets.used().into_iter().zip(most) {
                assert!(used <= most, "{lane:?} has {used} bytes after {count}");
            }
        }
        for ((lane, used), (_, most)) in budgets.used().into_iter().zip(most) {
            assert!(used >= most / 2, "{lane:?} has only {used} bytes");
        }
    }
}
