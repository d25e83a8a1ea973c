//! What was said to be stored, beside what is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hookwright::clock::Clock;
use hookwright::model::ids::{DeliveryName, EventUid};
use hookwright::store::embedded::Embedded;
use hookwright::store::records::Delivery;
use hookwright::store::{EndReason, State, Store};

use super::{PURGED, body, everything, key, webhook};

/// What was said of one delivery.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub hook: u8,
    event: EventUid,
    test: bool,
    acknowledged: bool,
    /// Of attempts that were acknowledged.
    pub recorded: Vec<char>,
    /// Of attempts that may have been recorded.
    tried: Vec<char>,
}

/// What the load has said.
#[derive(Default)]
pub(super) struct Ledger {
    pub deliveries: BTreeMap<DeliveryName, Known>,
    /// First event of a key: acknowledged or perhaps.
    keys: HashMap<u64, EventUid>,
    tried_keys: HashMap<u64, BTreeSet<EventUid>>,
    /// A purge may have happened since.
    purging: bool,
    pub acknowledged: usize,
}

impl Ledger {
    /// Takes up what the load said.
    pub(super) fn read(&mut self, lines: &[String]) {
        for line in lines {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["a", name, hook, event, test] => {
                    let known = Known {
                        hook: hook.parse().unwrap(),
                        event: event.parse().unwrap(),
                        test: test == "1",
                        acknowledged: false,
                        recorded: vec![],
                        tried: vec![],
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
                ["p", _] => self.purging = true,
                ["P", _] => {}
                _ => panic!("{line}"),
            }
        }
    }

    /// Checks what is there against what was said, and takes it as known from now on.
    pub(super) async fn check(&mut self, store: &Embedded) {
        let lines = everything(store).await;
        for (name, known) in &self.deliveries {
            let purged = known.hook == PURGED && self.purging;
            if let Some(line) = lines.get(name) {
                check_line(known, line);
            } else {
                assert!(purged || !known.acknowledged, "{name} was acknowledged and is lost: {known:?}");
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
            let first = store.duplicate_of(key(key_number), now).unwrap();
            if let Some(known) = self.keys.get(&key_number) {
                assert_eq!(first, Some(*known));
            } else {
                assert!(first.is_none_or(|first| tried.contains(&first)));
                self.keys.extend(first.map(|first| (key_number, first)));
            }
        }
        self.purging = false;
    }
}

/// A delivery is in a state that what was said allows.
pub(super) fn check_line(known: &Known, line: &Delivery) {
    let name = line.name;
    assert_eq!((line.webhook.uid, line.event, line.test), (webhook(known.hook).uid, known.event, known.test));
    let attempts = line.attempts.len();
    assert!(
        (known.recorded.len()..=known.tried.len()).contains(&attempts),
        "{name}: {attempts} of {known:?}"
    );
    let last = attempts.checked_sub(1).map(|last| known.tried[last]);
    let expected = match last {
        Some('s') => State::Success,
        Some('f') => State::Failed,
        Some(_) => State::Retrying,
        None if known.test => State::Failed,
        None => State::Pending,
    };
    assert_eq!(line.state, expected, "{name}: {known:?}");
    if known.test && attempts == 0 {
        assert_eq!(line.reason, Some(EndReason::Interrupted));
    }
}
