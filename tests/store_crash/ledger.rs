//! What is known of the load, and whether a store has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use hookwright::clock::Clock;
use hookwright::model::ids::{DeliveryName, EventUid, ReplayId, WebhookUid};
use hookwright::store::embedded::Embedded;
use hookwright::store::records::Delivery;
use hookwright::store::{ClaimRequest, EndReason, Order, Query, Replays as _, State, Store as _};

use super::{LEASE, PURGED, body, key, size, webhook};

#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) hook: u8,
    pub(super) event: EventUid,
    pub(super) test: bool,
    pub(super) acknowledged: bool,
    /// Of attempts that were acknowledged.
    pub(super) recorded: Vec<char>,
    /// Of attempts that may have been recorded.
    pub(super) tried: Vec<char>,
    /// Attempts after which a redelivery may have been asked for, and after which one was acknowledged.
    pub(super) asked: BTreeSet<usize>,
    pub(super) queued: Option<usize>,
}

#[derive(Default)]
pub(super) struct Ledger {
    pub(super) deliveries: BTreeMap<DeliveryName, Known>,
    /// First event of a key: acknowledged or perhaps.
    keys: HashMap<u64, EventUid>,
    tried_keys: HashMap<u64, BTreeSet<EventUid>>,
    /// A purge may have happened since.
    purging: bool,
    /// Finished ones may have been let go since.
    retaining: bool,
    /// Replays, and whether each must be there.
    replays: BTreeMap<ReplayId, bool>,
    pub(super) redeliveries: usize,
    pub(super) acknowledged: usize,
}

impl Ledger {
    pub(super) fn read(&mut self, lines: &[String]) {
        for line in lines {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                // What others say: the engine, and the test as which the load runs.
                [other, ..] if other.len() != 1 => {}
                ["a", name, hook, event, test] => {
                    let known = Known {
                        hook: hook.parse().unwrap(),
                        event: event.parse().unwrap(),
                        test: test == "1",
                        acknowledged: false,
                        recorded: vec![],
                        tried: vec![],
                        asked: BTreeSet::new(),
                        queued: None,
                    };
                    self.deliveries.insert(name.parse().unwrap(), known);
                }
                ["A", name, ..] => {
                    self.deliveries.get_mut(&name.parse().unwrap()).unwrap().acknowledged = true;
                    self.acknowledged += 1;
                }
                ["k", key, event] => {
                    let tried = self.tried_keys.entry(key.parse().unwrap()).or_default();
                    tried.insert(event.parse().unwrap());
                }
                ["K", key, event] => {
                    let (key, event) = (key.parse().unwrap(), event.parse().unwrap());
                    let first = *self.keys.entry(key).or_insert(event);
                    assert_eq!(first, event, "two events are the first of a key");
                    self.acknowledged += 1;
                }
                ["r", name, verdict] => {
                    if let Some(known) = self.deliveries.get_mut(&name.parse().unwrap()) {
                        known.tried.extend(verdict.chars());
                    }
                }
                ["R", name, verdict] => {
                    if let Some(known) = self.deliveries.get_mut(&name.parse().unwrap()) {
                        known.recorded.extend(verdict.chars());
                    }
                    self.acknowledged += 1;
                }
                ["d", name] => {
                    if let Some(known) = self.deliveries.get_mut(&name.parse().unwrap()) {
                        known.asked.insert(known.tried.len());
                    }
                }
                ["D", name] => {
                    if let Some(known) = self.deliveries.get_mut(&name.parse().unwrap()) {
                        known.queued = Some(known.tried.len());
                        self.redeliveries += 1;
                    }
                }
                ["p", _] => self.purging = true,
                ["t"] => self.retaining = true,
                ["Y", id] => drop(self.replays.insert(id.parse().unwrap(), true)),
                ["c", id] => drop(self.replays.insert(id.parse().unwrap(), false)),
                ["P" | "y", _] => {}
                _ => panic!("{line}"),
            }
        }
    }

    /// Checks what is there against what was said, and takes it as known from now on.
    pub(super) async fn check(&mut self, store: &Embedded) {
        let lines = everything(store).await;
        for (name, known) in &self.deliveries {
            let purged = known.hook == PURGED && self.purging;
            // A test that was cut off has ended without an attempt.
            let has_ended = known.test || known.tried.iter().any(|verdict| *verdict != 't');
            let let_go = self.retaining && has_ended;
            if let Some(line) = lines.get(name) {
                check_line(known, line);
            } else {
                assert!(
                    purged || let_go || !known.acknowledged,
                    "{name} was acknowledged and is lost: {known:?}"
                );
            }
        }
        for (name, line) in &lines {
            assert!(self.deliveries.contains_key(name), "{name} is invented");
            let event = store.event(line.event).await.unwrap().unwrap();
            assert_eq!(event.data, body(line.event));
        }
        self.deliveries.retain(|name, _| lines.contains_key(name));
        for (name, known) in &mut self.deliveries {
            known.acknowledged = true;
            // What was tried in vain may have been recorded without being acknowledged.
            let attempts = lines[name].attempts.len();
            known.tried.truncate(attempts);
            known.recorded = known.tried.clone();
        }
        let now = Clock::system().now();
        for (key_number, tried) in std::mem::take(&mut self.tried_keys) {
            let first = store.duplicate_of("team", key(key_number), now).unwrap();
            if let Some(known) = self.keys.get(&key_number) {
                assert_eq!(first, Some(*known));
            } else {
                assert!(first.is_none_or(|first| tried.contains(&first)));
                self.keys.extend(first.map(|first| (key_number, first)));
            }
        }
        for (id, must_be_there) in &self.replays {
            assert!(!must_be_there || store.replay(*id).is_some(), "replay {id} is lost");
        }
        (self.purging, self.retaining) = (false, false);
    }
}

pub(super) fn check_line(known: &Known, line: &Delivery) {
    let name = line.name;
    assert_eq!((line.webhook.uid, line.event, line.test), (webhook(known.hook).uid, known.event, known.test));
    let attempts = line.attempts.len();
    assert!(
        (known.recorded.len()..=known.tried.len()).contains(&attempts),
        "{name}: {attempts} of {known:?}"
    );
    assert!(
        line.redelivery.is_some() || known.queued != Some(attempts),
        "{name}: its redelivery is lost: {known:?}"
    );
    if line.redelivery.is_some() {
        assert!(known.asked.contains(&attempts), "{name}: nobody asked for it: {known:?}");
        assert_eq!(line.state, State::Pending, "{name}");
        return;
    }
    let last = attempts.checked_sub(1).map(|last| known.tried[last]);
    let was_asked_for = line.attempts.last().is_some_and(|last| last.asked_by.is_some());
    let expected = match last {
        Some('s') => State::Success,
        Some('f') => State::Failed,
        Some('t') if was_asked_for => State::Failed,
        Some(_) => State::Retrying,
        None if known.test => State::Failed,
        None => State::Pending,
    };
    assert_eq!(line.state, expected, "{name}: {known:?}");
    if known.test && attempts == 0 {
        assert_eq!(line.reason, Some(EndReason::Interrupted));
    }
}

async fn page_through(store: &Embedded, query: Query) -> Vec<Delivery> {
    let mut query = Query { limit: 200, ..query };
    let mut lines = Vec::new();
    loop {
        let page = store.query(query.clone()).await.unwrap();
        lines.extend(page.deliveries);
        match page.next {
            Some(next) => query.before = Some(next),
            None => return lines,
        }
    }
}

pub(super) async fn everything(store: &Embedded) -> BTreeMap<DeliveryName, Delivery> {
    page_through(store, Query::default()).await.into_iter().map(|line| (line.name, line)).collect()
}

/// What the log no longer has beside what was purged, though it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    Nothing,
    /// Finished ones may have been let go.
    Perhaps,
}

impl Gone {
    fn check(self, counted: u64, there: u64) {
        assert!(
            counted == there || self == Self::Perhaps && counted > there,
            "{counted} counted, {there} there"
        );
    }
}

/// Log, index, queue and numbers say the same. Claims everything.
pub(super) async fn check_agreement(store: &Embedded, gone: Gone) {
    let lines = everything(store).await;
    for state in State::ALL {
        let by_state = page_through(store, Query { states: vec![state], ..Query::default() }).await;
        let expected: Vec<_> = lines.values().rev().filter(|line| line.state == state).cloned().collect();
        assert_eq!(by_state, expected, "{state:?}");
    }
    assert_eq!(store.usage("team").deliveries, lines.len() as u64);
    check_usage(store, &lines);
    for reference in store.known() {
        let uid = reference.uid;
        let of_hook: Vec<_> = lines.values().filter(|line| line.webhook.uid == uid && !line.test).collect();
        let waiting: BTreeSet<_> =
            of_hook.iter().filter(|line| !line.state.is_final()).map(|line| line.name).collect();
        let claimed = claim_everything(store, uid).await;
        assert_eq!(claimed, waiting, "what can be claimed is what is not done");
        let summary = store.summary(uid).unwrap();
        let count = |state| of_hook.iter().filter(|line| line.state == state).count() as u64;
        assert_eq!(summary.pending, waiting.len() as u64);
        gone.check(summary.success_count, count(State::Success));
        // One that has failed and was asked for again stays counted, once.
        let has_failed = |line: &&&Delivery| {
            let asked = line.attempts.iter().any(|attempt| attempt.asked_by.is_some());
            line.state == State::Failed || line.redelivery.is_some() || asked
        };
        gone.check(summary.failure_count, of_hook.iter().filter(has_failed).count() as u64);
        let mut bytes = 0;
        for line in of_hook.iter().filter(|line| !line.state.is_final()) {
            bytes += size(line.event) as u64;
        }
        assert_eq!(summary.pending_bytes, bytes);
    }
}

/// What is used is what log lines and events have, and what is stored beside an event's data.
fn check_usage(store: &Embedded, lines: &BTreeMap<DeliveryName, Delivery>) {
    let events: BTreeSet<_> = lines.values().map(|line| line.event).collect();
    let of_lines: u64 = lines.values().map(Delivery::weight).sum();
    let of_events: u64 = events.iter().map(|event| size(*event) as u64).sum();
    let used = store.usage("team").bytes;
    let beside = used.checked_sub(of_lines + of_events).unwrap();
    // The same for each event here: its namespace, its time and its attributes.
    let of_each = beside.checked_div(events.len() as u64).unwrap_or(50);
    assert!((50..400).contains(&of_each), "{of_each} bytes beside the data of each event");
    assert_eq!(beside, of_each * events.len() as u64, "of {} events", events.len());
}

async fn claim_everything(store: &Embedded, webhook: WebhookUid) -> BTreeSet<DeliveryName> {
    let now = Clock::system().now() + Duration::from_mins(1);
    let mut all = BTreeSet::new();
    loop {
        let request = ClaimRequest { webhook, now, limit: 50, order: Order::LongestDue, lease: LEASE };
        let claimed = store.claim(request).await.unwrap().deliveries;
        if claimed.is_empty() {
            return all;
        }
        for claimed in claimed {
            assert_eq!(claimed.event.data, body(claimed.delivery.event));
            assert!(all.insert(claimed.delivery.name), "{} is claimed twice", claimed.delivery.name);
        }
    }
}
