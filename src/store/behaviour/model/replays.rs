//! Replays, in the plain model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{HOOKS, Line, Run};
use crate::model::ids::{DeliveryName, ReplayId};
use crate::model::time::UnixMillis;
use crate::store::records::{EndReason, State};
use crate::store::replays::{Counts, Part};
use crate::store::{NewReplay, Selection};

/// Replays that there are at once.
const REPLAYS: u8 = 3;

#[derive(Clone, Debug)]
pub(super) enum Op {
    Begin { number: u8, second: bool, states: Vec<State> },
    Advance { number: u8, hook: usize, count: usize },
    Finish { number: u8 },
    Cancel { number: u8 },
}

/// Steps of replays of both namespaces.
pub(super) fn op() -> impl Strategy<Value = Op> {
    steps(any::<bool>().boxed(), (0..HOOKS).boxed())
}

fn steps(second: BoxedStrategy<bool>, hook: BoxedStrategy<usize>) -> impl Strategy<Value = Op> {
    let number = || 0..REPLAYS;
    let states = prop_oneof![
        Just(vec![State::Failed]),
        Just(vec![State::Success]),
        Just(vec![State::Failed, State::Success]),
    ];
    let begin = (number(), second, states);
    let advance = (number(), hook, 0..5_usize);
    prop_oneof![
        3 => begin.prop_map(|(number, second, states)| Op::Begin { number, second, states }),
        6 => advance.prop_map(|(number, hook, count)| Op::Advance { number, hook, count }),
        2 => number().prop_map(|number| Op::Finish { number }),
        2 => number().prop_map(|number| Op::Cancel { number }),
    ]
}

/// Calls among which those of replays are many, with much to send again.
pub(super) fn busy() -> impl Strategy<Value = super::Op> {
    use super::{New, Op as Any, Verdict};
    let new = Just(New { hooks: [true, false, true, false], key: None, test: false });
    let verdict = prop_oneof![Just(Verdict::Success), Just(Verdict::Failed), Just(Verdict::Expired)];
    let hook = || prop_oneof![Just(0_usize), Just(2)];
    prop_oneof![
        3 => prop::collection::vec(new, 1..4).prop_map(Any::Append),
        6 => prop::collection::vec((any::<usize>(), verdict), 1..12).prop_map(Any::Record),
        5 => (hook(), 1..4_usize).prop_map(|(hook, limit)| Any::Claim { hook, limit }),
        12 => steps(Just(false).boxed(), hook().boxed()).prop_map(Any::Replay),
        1 => any::<usize>().prop_map(|which| Any::Release { which }),
        2 => prop::collection::vec((any::<usize>(), 0..2_u64), 1..4).prop_map(Any::Redeliver),
        2 => any::<usize>().prop_map(|which| Any::Expunge { which }),
        3 => (1..40_u64).prop_map(Any::Pass),
        1 => hook().prop_map(|hook| Any::Purge { hook }),
        1 => Just(Any::Reopen),
    ]
}

/// What a line was before a replay put it among those that wait.
#[derive(Clone)]
pub(super) struct Put {
    number: u8,
    state: State,
    reason: Option<EndReason>,
}

#[derive(Clone, Default)]
pub(super) struct Replays(BTreeMap<u8, Replay>);

#[derive(Clone)]
struct Replay {
    second: bool,
    states: Vec<State>,
    as_of: UnixMillis,
    cancelled: bool,
    finished: bool,
    parts: BTreeMap<usize, Part>,
}

impl Replay {
    fn takes(&self, line: &Line) -> bool {
        !line.test && self.states.contains(&line.state) && line.ended <= self.as_of
    }

    fn runs(&self) -> bool {
        !self.cancelled && !self.finished
    }

    fn is_over(&self) -> bool {
        self.parts.values().all(|part| part.walked && part.counts.waiting() == 0)
    }
}

impl Replays {
    fn part(&mut self, put: &Put, hook: usize) -> Option<&mut Counts> {
        let part = self.0.get_mut(&put.number)?.parts.get_mut(&hook)?;
        Some(&mut part.counts)
    }

    /// The attempt of what was put was made, or will never be.
    pub(super) fn ended(&mut self, put: &Put, hook: usize, attempted: bool, arrived: bool) {
        let counts = self.part(put, hook).unwrap();
        counts.sent += u64::from(attempted);
        *(if arrived { &mut counts.succeeded } else { &mut counts.failed }) += 1;
    }

    /// What was put does not wait any more, without an outcome.
    pub(super) fn recalled(&mut self, put: &Put, hook: usize) {
        self.part(put, hook).unwrap().put -= 1;
    }

    /// A Webhook is purged; `alone`: it was known, and the last of its namespace.
    pub(super) fn purged(&mut self, hook: usize, alone: bool) {
        self.0.retain(|_, replay| !(replay.finished && alone && usize::from(replay.second) == hook % 2));
        for replay in self.0.values_mut().filter(|replay| !replay.finished) {
            if let Some(part) = replay.parts.get_mut(&hook) {
                part.walked = true;
                part.counts.put -= part.counts.waiting();
            }
        }
    }
}

fn id(number: u8) -> ReplayId {
    ReplayId::from_bytes([number; 16])
}

impl Run<'_> {
    pub(super) async fn replay(&mut self, op: Op) {
        match op {
            Op::Begin { number, second, states } => self.begin(number, second, states).await,
            Op::Advance { number, hook, count } => self.advance(number, hook, count).await,
            Op::Finish { number } => self.finish(number).await,
            Op::Cancel { number } => self.cancel(number).await,
        }
    }

    async fn begin(&mut self, number: u8, second: bool, states: Vec<State>) {
        let as_of = self.world.now;
        let hooks: Vec<_> = (0..HOOKS).filter(|hook| hook % 2 == usize::from(second)).collect();
        let selection = Selection {
            namespace: ["team-a", "team-b"][usize::from(second)].into(),
            states: states.clone(),
            from: UnixMillis::default(),
            to: as_of + std::time::Duration::from_hours(1),
            event_types: vec![],
            as_of,
        };
        let webhooks = hooks.iter().map(|hook| self.hooks[*hook].uid).collect();
        let new = NewReplay { id: id(number), name: "night".into(), digest: vec![], selection, webhooks };
        self.world.store.begin_replay(new).await.unwrap();
        let mut replay =
            Replay { second, states, as_of, cancelled: false, finished: false, parts: BTreeMap::new() };
        for hook in hooks {
            let taken = self.model.lines.values().filter(|line| line.hook == hook && replay.takes(line));
            let selected = taken.count() as u64;
            let counts = Counts { selected, ..Counts::default() };
            replay.parts.insert(hook, Part { cursor: None, walked: selected == 0, counts });
        }
        self.model.replays.0.entry(number).or_insert(replay);
    }

    async fn advance(&mut self, number: u8, hook: usize, count: usize) {
        let (webhook, now) = (self.hooks[hook].uid, self.world.now);
        let put = self.world.store.advance_replay(id(number), webhook, vec![now; count]).await.unwrap();
        let Some(replay) = self.model.replays.0.get_mut(&number).filter(|replay| replay.runs()) else {
            return assert_eq!(put, 0);
        };
        let Some(mut part) = replay.parts.get(&hook).copied().filter(|part| !part.walked && count > 0) else {
            return assert_eq!(put, 0);
        };
        let mut found = Vec::new();
        part.walked = true;
        for (name, line) in &self.model.lines {
            let is_next = part.cursor.is_none_or(|cursor| *name > cursor);
            if line.hook != hook || !replay.states.contains(&line.state) || !is_next {
                continue;
            }
            part.cursor = Some(*name);
            found.extend((replay.takes(line) && !line.expunged).then_some(*name));
            if found.len() == count {
                part.walked = false;
                break;
            }
        }
        assert_eq!(put, found.len());
        part.counts.put += put as u64;
        part.counts.selected = part.counts.selected.max(part.counts.put);
        replay.parts.insert(hook, part);
        for name in found {
            let line = self.model.lines.get_mut(&name).unwrap();
            line.put = Some(Put { number, state: line.state, reason: line.reason });
            (line.state, line.due, line.reason) = (State::Pending, Some(now), None);
            line.redelivered = true;
            self.model.summaries.get_mut(&hook).unwrap().redelivers(line.bytes);
        }
    }

    async fn finish(&mut self, number: u8) {
        self.world.store.finish_replay(id(number), self.world.now).await.unwrap();
        if let Some(replay) = self.model.replays.0.get_mut(&number).filter(|replay| replay.runs()) {
            replay.finished = replay.is_over();
        }
    }

    async fn cancel(&mut self, number: u8) {
        let now = self.world.now;
        self.world.store.cancel_replay(id(number), now).await.unwrap();
        if self.model.replays.0.get(&number).is_none_or(|replay| replay.finished) {
            return;
        }
        let is_free = |line: &Line| line.claimed.is_none_or(|until| until <= now);
        for line in self.model.lines.values_mut().filter(|line| is_free(line)) {
            let Some(put) = line.put.take_if(|put| put.number == number) else { continue };
            (line.state, line.reason, line.due) = (put.state, put.reason, None);
            (line.redelivered, line.claimed) = (false, None);
            self.model.summaries.get_mut(&line.hook).unwrap().recalls(line.bytes);
            self.model.replays.recalled(&put, line.hook);
        }
        let replay = self.model.replays.0.get_mut(&number).unwrap();
        replay.cancelled = true;
        if replay.parts.values().all(|part| part.counts.waiting() == 0) {
            self.model.replays.0.remove(&number);
        }
    }

    /// Every replay is as the model has it.
    pub(super) fn compare_replays(&self) {
        for number in 0..REPLAYS {
            let found = self.world.store.replay(id(number));
            let found = found.map(|replay| {
                (replay.cancelled, replay.finished_at.is_some(), replay.counts(), replay.skipped())
            });
            let expected = self.model.replays.0.get(&number).map(|replay| {
                let parts = || replay.parts.values();
                let counts = parts().fold(Counts::default(), |sum, part| sum.plus(part.counts));
                (replay.cancelled, replay.finished, counts, parts().map(Part::skipped).sum())
            });
            assert_eq!(found, expected, "replay {number}");
        }
        let waiting = |(name, line): (&DeliveryName, &Line)| line.put.as_ref().map(|put| (put.number, *name));
        let waiting: Vec<_> = self.model.lines.iter().filter_map(waiting).collect();
        for (number, _) in &waiting {
            assert!(self.model.replays.0.contains_key(number), "one that something waits for is known");
        }
    }
}
