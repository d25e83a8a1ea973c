//! Random calls, beside a plain model.

mod replays;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{Crashing, Engine, LEASE, RETENTION, WINDOW, World, webhook};
use crate::model::event::Attributes;
use crate::model::ids::{DeliveryName, EventUid, WebhookRef};
use crate::model::time::UnixMillis;
use crate::store::records::{
    DedupKey, Delivery, EndReason, Expunge, Expunged, Next, Outcome, Purpose, Redelivered, Redelivery, State,
    Summary,
};
use crate::store::{Appended, NewEvent, Query, Tried};

const HOOKS: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Append(Vec<New>),
    Claim {
        hook: usize,
        limit: usize,
    },
    Look {
        hook: usize,
        first: Tried,
    },
    Record(Vec<(usize, Verdict)>),
    Release {
        which: usize,
    },
    Redeliver(Vec<(usize, u64)>),
    Expunge {
        which: usize,
    },
    Replay(replays::Op),
    Retain,
    Pass(u64),
    Purge {
        hook: usize,
    },
    Query {
        namespace: Option<bool>,
        hook: Option<usize>,
        states: [bool; 4],
        limit: usize,
        before: Option<usize>,
        event: Option<usize>,
        paid: Option<bool>,
        test: Option<bool>,
    },
    Reopen,
}

#[derive(Clone, Debug)]
struct New {
    hooks: [bool; HOOKS],
    key: Option<u8>,
    test: bool,
}

#[derive(Clone, Copy, Debug)]
enum Verdict {
    Success,
    Retry(u64),
    Failed,
    Expired,
}

fn op() -> impl Strategy<Value = Op> {
    let new = (any::<[bool; HOOKS]>(), prop::option::weighted(0.4, 0..3_u8), prop::bool::weighted(0.15))
        .prop_map(|(hooks, key, test)| New { hooks, key, test });
    let verdict = prop_oneof![
        3 => Just(Verdict::Success),
        3 => (0..60_u64).prop_map(Verdict::Retry),
        2 => Just(Verdict::Failed),
        1 => Just(Verdict::Expired),
    ];
    let before = prop::option::of(any::<usize>());
    let event = prop::option::weighted(0.3, any::<usize>());
    let hook = prop::option::of(0..HOOKS);
    let [paid, test] = [0.3, 0.2].map(|share| prop::option::weighted(share, any::<bool>()));
    let terms = (event, paid, test);
    let query = (prop::option::of(any::<bool>()), hook, any::<[bool; 4]>(), 1..8_usize, before, terms);
    prop_oneof![
        6 => prop::collection::vec(new, 1..4).prop_map(Op::Append),
        6 => (0..HOOKS, 0..5_usize).prop_map(|(hook, limit)| Op::Claim { hook, limit }),
        2 => (0..HOOKS, prop_oneof![Just(Tried::Never), Just(Tried::Before)])
            .prop_map(|(hook, first)| Op::Look { hook, first }),
        6 => prop::collection::vec((any::<usize>(), verdict), 1..5).prop_map(Op::Record),
        1 => any::<usize>().prop_map(|which| Op::Release { which }),
        3 => prop::collection::vec((any::<usize>(), 0..60_u64), 1..4).prop_map(Op::Redeliver),
        1 => any::<usize>().prop_map(|which| Op::Expunge { which }),
        6 => replays::op().prop_map(Op::Replay),
        1 => Just(Op::Retain),
        2 => prop_oneof![3 => 1..40_u64, 1 => 1000..4000_u64].prop_map(Op::Pass),
        1 => (0..HOOKS).prop_map(|hook| Op::Purge { hook }),
        4 => query.prop_map(|(namespace, hook, states, limit, before, (event, paid, test))| Op::Query {
            namespace, hook, states, limit, before, event, paid, test,
        }),
        1 => Just(Op::Reopen),
    ]
}

#[derive(Clone)]
#[expect(clippy::struct_excessive_bools, reason = "a plain model")]
struct Line {
    hook: usize,
    event: EventUid,
    event_type: Arc<str>,
    bytes: u64,
    test: bool,
    state: State,
    due: Option<UnixMillis>,
    reason: Option<EndReason>,
    attempts: usize,
    claimed: Option<UnixMillis>,
    accepted: UnixMillis,
    ended: UnixMillis,
    arrived: bool,
    redelivered: bool,
    expunged: bool,
    put: Option<replays::Put>,
}

impl Line {
    fn purpose(&self) -> Purpose {
        match (self.test, self.redelivered) {
            (true, _) => Purpose::Test,
            (false, false) => Purpose::Event,
            (false, true) => Purpose::Redelivery { had_arrived: self.arrived },
        }
    }

    fn waits(&self) -> bool {
        !self.test && !self.state.is_final()
    }
}

#[derive(Clone, Default)]
struct Model {
    lines: BTreeMap<DeliveryName, Line>,
    summaries: BTreeMap<usize, Summary>,
    seen: HashMap<u8, (EventUid, UnixMillis)>,
    events: BTreeSet<EventUid>,
    replays: replays::Replays,
}

impl Model {
    /// What opening a store does.
    fn opened(&mut self) {
        for line in self.lines.values_mut() {
            line.claimed = None;
            if line.test && !line.state.is_final() {
                (line.state, line.due, line.reason) = (State::Failed, None, Some(EndReason::Interrupted));
                line.ended = line.accepted;
            }
        }
    }
}

struct Run<'a> {
    world: World<'a>,
    model: Model,
    hooks: Vec<WebhookRef>,
}

impl Run<'_> {
    async fn step(&mut self, op: Op) {
        match op {
            Op::Append(events) => self.append(&events).await,
            Op::Claim { hook, limit } => self.claim(hook, limit).await,
            Op::Look { hook, first } => self.look(hook, first).await,
            Op::Record(outcomes) => self.record(&outcomes).await,
            Op::Release { which } => {
                if let Some((name, hook)) = self.pick(which) {
                    self.world.store.release(vec![(self.hooks[hook].uid, name)]).await.unwrap();
                    self.model.lines.get_mut(&name).unwrap().claimed = None;
                }
            }
            Op::Redeliver(which) => self.redeliver(&which).await,
            Op::Expunge { which } => self.expunge(which).await,
            Op::Replay(op) => self.replay(op).await,
            Op::Retain => self.retain().await,
            Op::Pass(seconds) => self.world.pass(Duration::from_secs(seconds)),
            Op::Purge { hook } => self.purge(hook).await,
            Op::Query { namespace, hook, states, limit, before, event, paid, test } => {
                let namespace = namespace.map(|second| if second { "team-b" } else { "team-a" }.into());
                let query = Query {
                    namespace,
                    webhook: hook.map(|hook| self.hooks[hook].uid),
                    states: State::ALL.into_iter().filter(|state| states[*state as usize]).collect(),
                    event_id: event.and_then(|which| self.event_id(which)),
                    event_type: paid.map(|paid| if paid { "order.paid" } else { "order.created" }.into()),
                    test,
                    before: before.and_then(|which| self.pick(which)).map(|(name, _)| name),
                    limit,
                };
                self.query(query).await;
            }
            Op::Reopen => self.reopen().await,
        }
    }

    fn pick(&self, which: usize) -> Option<(DeliveryName, usize)> {
        let count = self.model.lines.len();
        let (name, line) = self.model.lines.iter().nth(which.checked_rem(count)?)?;
        Some((*name, line.hook))
    }

    async fn append(&mut self, news: &[New]) {
        let mut events = Vec::new();
        let mut expected = Vec::new();
        for new in news {
            let hooks: Vec<_> = (0..HOOKS).filter(|hook| new.hooks[*hook]).collect();
            // All of one namespace.
            let first = hooks.first().copied().unwrap_or(0);
            let hooks: Vec<_> = hooks.into_iter().filter(|hook| hook % 2 == first % 2).collect();
            let wanted: Vec<_> = hooks.iter().map(|hook| &self.hooks[*hook]).collect();
            let mut event = self.world.event(&wanted);
            event.dedup = new.key.map(|key| DedupKey([key; 16]));
            if new.key.is_some() {
                let attributes =
                    Attributes { event_type: "order.paid".into(), ..(*event.attributes).clone() };
                event.attributes = Arc::new(attributes);
            }
            for delivery in &mut event.deliveries {
                delivery.test = new.test;
            }
            expected.push(self.accept(&event, new.key, &hooks));
            events.push(event);
        }
        assert_eq!(self.world.store.append(events).await.unwrap(), expected);
    }

    fn accept(&mut self, event: &NewEvent, key: Option<u8>, hooks: &[usize]) -> Appended {
        let now = self.world.now;
        if let Some(key) = key {
            // Whose an event is that nobody wants is told by the Webhooks of its namespace.
            let is_ours = !hooks.is_empty() || self.model.summaries.keys().any(|hook| hook % 2 == 0);
            if let Some((first, at)) = self.model.seen.get(&key).filter(|_| is_ours)
                && now.since(*at) < WINDOW
            {
                return Appended::Duplicate(*first);
            }
            if !hooks.is_empty() {
                self.model.seen.insert(key, (event.uid, now));
            }
        }
        let bytes = event.data.len() as u64;
        for (delivery, hook) in event.deliveries.iter().zip(hooks) {
            let line = Line {
                hook: *hook,
                event: event.uid,
                event_type: Arc::clone(&event.attributes.event_type),
                bytes,
                test: delivery.test,
                state: State::Pending,
                due: Some(now),
                reason: None,
                attempts: 0,
                claimed: None,
                accepted: now,
                ended: now,
                arrived: false,
                redelivered: false,
                expunged: false,
                put: None,
            };
            self.model.lines.insert(delivery.name, line);
            self.model.events.insert(event.uid);
            let reference = self.hooks[*hook].clone();
            let summary = self.model.summaries.entry(*hook).or_insert_with(|| Summary::new(reference));
            if !delivery.test {
                summary.pending += 1;
                summary.pending_bytes += bytes;
            }
        }
        Appended::New
    }

    /// What waits for a Webhook and is not claimed: when it is due, whether it was tried, whether somebody asked.
    fn open(&mut self, hook: usize) -> Vec<(UnixMillis, DeliveryName, Tried, bool)> {
        let now = self.world.now;
        let mut open = Vec::new();
        for (name, line) in &mut self.model.lines {
            if line.claimed.is_some_and(|until| until <= now) {
                line.claimed = None;
            }
            if line.hook != hook || !line.waits() || line.claimed.is_some() {
                continue;
            }
            if line.state == State::Pending && !line.redelivered {
                // Due at once, also by a clock that was set back.
                open.push((name.accepted_at(), *name, Tried::Never, false));
            } else {
                open.push((line.due.unwrap(), *name, Tried::Before, line.redelivered));
            }
        }
        open.sort_unstable_by_key(|(at, name, ..)| (*at, *name));
        open
    }

    async fn claim(&mut self, hook: usize, limit: usize) {
        let now = self.world.now;
        let open = self.open(hook);
        let is_due = |(at, _, tried, _): &&(UnixMillis, DeliveryName, Tried, bool)| {
            *tried == Tried::Never || *at <= now
        };
        let names: Vec<_> = open.iter().filter(is_due).take(limit).map(|(_, name, ..)| *name).collect();
        let claims = self.world.claims(&self.hooks[hook], limit).await;
        assert_eq!(super::names(&claims), names);
        if limit > 0 {
            let rest = open.iter().filter(|(_, name, ..)| !names.contains(name));
            assert_eq!(claims.next_due, rest.map(|(at, ..)| *at).min());
        }
        self.hold(&names);
    }

    fn hold(&mut self, names: &[DeliveryName]) {
        for name in names {
            self.model.lines.get_mut(name).unwrap().claimed = Some(self.world.now + LEASE);
        }
    }

    async fn look(&mut self, hook: usize, first: Tried) {
        let now = self.world.now;
        let open = self.open(hook);
        let looked = self.world.look(&self.hooks[hook], first).await;
        let due = |kind| {
            let due = open
                .iter()
                .filter(move |(at, _, tried, _)| *tried == kind && (*tried == Tried::Never || *at <= now));
            due.map(|(_, name, ..)| vec![*name]).next()
        };
        let early =
            open.iter().filter(|(at, _, tried, asked)| *tried == Tried::Before && *at > now && !asked);
        let early: Vec<_> = early.map(|(_, name, ..)| *name).collect();
        let is_early = |looked: &[DeliveryName]| matches!(looked, [name] if early.contains(name));
        // Behind what somebody asked for, memory may hold none that can be claimed early.
        let may_miss = open.iter().any(|(.., asked)| *asked);
        match (first, due(first), due(first.other())) {
            (_, Some(expected), _) | (Tried::Never, None, Some(expected)) => assert_eq!(looked, expected),
            (_, None, rest) if early.is_empty() || may_miss && !is_early(&looked) => {
                assert_eq!(looked, rest.unwrap_or_default());
            }
            (_, None, _) => assert!(is_early(&looked), "{looked:?}"),
        }
        self.hold(&looked);
    }

    async fn record(&mut self, verdicts: &[(usize, Verdict)]) {
        let mut outcomes = Vec::new();
        for (which, verdict) in verdicts {
            let Some((name, hook)) = self.pick(*which) else { return };
            let next = match verdict {
                Verdict::Success => Next::Success,
                Verdict::Retry(after) => Next::Retry(self.world.now + Duration::from_secs(*after)),
                Verdict::Failed => Next::Failed(EndReason::RetriesExhausted),
                Verdict::Expired => Next::Failed(EndReason::Expired),
            };
            let mut outcome = self.world.outcome(&self.hooks[hook], name, next);
            if matches!(verdict, Verdict::Expired) {
                outcome.attempt = None;
            }
            let line = self.model.lines.get_mut(&name).unwrap();
            if line.test && matches!(outcome.next, Next::Retry(_)) {
                outcome.next = Next::Failed(EndReason::TestFailed);
            }
            if line.redelivered && matches!(outcome.next, Next::Retry(_)) {
                outcome.next = Next::Failed(EndReason::RedeliveryFailed);
            }
            if !line.state.is_final() {
                line.claimed = None;
                line.attempts += usize::from(outcome.attempt.is_some());
                (line.state, line.due, line.reason) = match outcome.next {
                    Next::Success => (State::Success, None, None),
                    Next::Retry(at) => (State::Retrying, Some(at), None),
                    Next::Failed(reason) => (State::Failed, None, Some(reason)),
                };
                self.model.summaries.get_mut(&hook).unwrap().apply(&outcome, line.purpose(), line.bytes);
                line.redelivered = false;
                line.arrived |= line.state == State::Success;
                let ended = outcome.attempt.as_ref().map_or(self.world.now, |made| made.at + made.duration);
                line.ended = line.ended.max(ended);
                if let Some(put) = line.put.take() {
                    let (attempted, arrived) = (outcome.attempt.is_some(), line.state == State::Success);
                    self.model.replays.ended(&put, hook, attempted, arrived);
                }
            }
            outcomes.push(outcome);
        }
        self.world.store.record(outcomes).await.unwrap();
    }

    async fn redeliver(&mut self, which: &[(usize, u64)]) {
        let (mut asked, mut expected) = (Vec::new(), Vec::new());
        for (which, after) in which {
            let Some((name, hook)) = self.pick(*which) else { return };
            let at = self.world.now + Duration::from_secs(*after);
            let namespace = Arc::clone(&self.hooks[hook].namespace);
            asked.push(Redelivery { name, namespace, by: "jane".into(), at });
            let line = self.model.lines.get_mut(&name).unwrap();
            expected.push(match line {
                line if line.expunged => Redelivered::Expunged,
                line if line.test => Redelivered::Test,
                line if !line.state.is_final() => Redelivered::NotFinished,
                line => {
                    (line.state, line.due, line.reason) = (State::Pending, Some(at), None);
                    line.redelivered = true;
                    self.model.summaries.get_mut(&hook).unwrap().redelivers(line.bytes);
                    Redelivered::Queued
                }
            });
        }
        assert_eq!(self.world.store.redeliver(asked).await.unwrap(), expected);
    }

    async fn expunge(&mut self, which: usize) {
        let Some((name, hook)) = self.pick(which) else { return };
        let (event, now) = (self.model.lines[&name].event, self.world.now);
        let (mut deliveries, mut ended) = (0, 0);
        for (name, line) in &mut self.model.lines {
            if line.event != event || line.expunged {
                continue;
            }
            deliveries += 1;
            line.expunged = true;
            if line.state.is_final() {
                continue;
            }
            ended += 1;
            let next = Next::Failed(EndReason::Expunged);
            let webhook = self.hooks[line.hook].uid;
            let outcome =
                Outcome { name: *name, webhook, attempt: None, next, disable: None, failing: None, at: now };
            self.model.summaries.get_mut(&line.hook).unwrap().apply(&outcome, line.purpose(), line.bytes);
            (line.state, line.due, line.reason) = (State::Failed, None, Some(EndReason::Expunged));
            (line.claimed, line.redelivered, line.ended) = (None, false, line.ended.max(now));
            if let Some(put) = line.put.take() {
                self.model.replays.recalled(&put, line.hook);
            }
        }
        self.model.events.remove(&event);
        let namespace = Arc::clone(&self.hooks[hook].namespace);
        let expunge = Expunge { name, namespace, by: "jane".into(), at: now };
        let expunged = self.world.store.expunge(expunge).await.unwrap();
        assert_eq!(expunged, Expunged::Done { deliveries, ended });
    }

    async fn retain(&mut self) {
        let oldest = self.world.now - RETENTION.max_age;
        let before = self.model.lines.len();
        self.model.lines.retain(|_, line| !line.state.is_final() || line.ended > oldest);
        let gone = (before - self.model.lines.len()) as u64;
        assert_eq!(self.world.store.retain(self.world.now).await.unwrap(), gone);
        self.forget_events();
    }

    fn forget_events(&mut self) {
        let kept = self.model.lines.values().filter(|line| !line.expunged);
        self.model.events = kept.map(|line| line.event).collect();
    }

    async fn purge(&mut self, hook: usize) {
        self.world.store.purge(self.hooks[hook].uid).await.unwrap();
        self.model.lines.retain(|_, line| line.hook != hook);
        let was_known = self.model.summaries.remove(&hook).is_some();
        let alone = was_known && self.model.summaries.keys().all(|other| other % 2 != hook % 2);
        self.model.replays.purged(hook, alone);
        self.forget_events();
    }

    fn event_id(&self, which: usize) -> Option<Arc<str>> {
        let (name, _) = self.pick(which)?;
        // The id of an event is its uid here.
        Some(self.model.lines[&name].event.to_string().into())
    }

    async fn query(&self, query: Query) {
        let wanted = |(name, line): &(&DeliveryName, &Line)| {
            query.namespace.as_ref().is_none_or(|namespace| self.hooks[line.hook].namespace == *namespace)
                && query.webhook.is_none_or(|webhook| self.hooks[line.hook].uid == webhook)
                && (query.states.is_empty() || query.states.contains(&line.state))
                && query.event_type.as_ref().is_none_or(|event_type| line.event_type == *event_type)
                && query.test.is_none_or(|test| line.test == test)
                && query.event_id.as_ref().is_none_or(|id| **id == line.event.to_string())
                && query.before.is_none_or(|before| **name < before)
        };
        let expected: Vec<_> = self.model.lines.iter().rev().filter(wanted).map(|(name, _)| *name).collect();
        assert_eq!(self.world.find(query.clone()).await, expected, "{query:?}");
    }

    async fn reopen(&mut self) {
        self.world.reopen().await;
        self.model.opened();
    }

    /// Everything is as the model has it.
    async fn compare(&self) {
        self.compare_replays();
        let store = &self.world.store;
        for (hook, reference) in self.hooks.iter().enumerate() {
            assert_eq!(store.summary(reference.uid).as_deref(), self.model.summaries.get(&hook));
            let waiting = self.model.lines.iter().filter(|(_, line)| line.hook == hook && line.waits());
            let oldest = waiting.clone().filter_map(|(_, line)| line.due).min();
            assert_eq!(store.oldest_due(reference.uid), oldest);
            let pending = store.summary(reference.uid).map_or(0, |summary| summary.pending);
            assert_eq!(usize::try_from(pending).unwrap(), waiting.count(), "recount");
        }
        for (name, line) in &self.model.lines {
            let Some(found) = store.delivery(*name).await.unwrap() else { panic!("{name} is missing") };
            let Delivery { webhook, event, state, due, reason, attempts, test, redelivery, expunged, .. } =
                found;
            assert_eq!((redelivery.is_some(), expunged.is_some()), (line.redelivered, line.expunged));
            assert!(!line.expunged || attempts.iter().all(|attempt| attempt.body.is_none()));
            assert_eq!((&webhook, event, test), (&self.hooks[line.hook], line.event, line.test));
            assert_eq!(
                (state, due, reason, attempts.len()),
                (line.state, line.due, line.reason, line.attempts)
            );
        }
        for event in self.model.lines.values().map(|line| line.event) {
            assert_eq!(store.event(event).await.unwrap().is_some(), self.model.events.contains(&event));
        }
        for namespace in ["team-a", "team-b"] {
            let of_namespace = |hook: usize| &*self.hooks[hook].namespace == namespace;
            let usage = store.usage(namespace);
            let lines = self.model.lines.values().filter(|line| of_namespace(line.hook));
            assert_eq!(usage.deliveries, lines.count() as u64);
            let waits = self.model.summaries.iter().filter(|(hook, _)| of_namespace(**hook));
            assert_eq!(usage.pending_bytes, waits.map(|(_, summary)| summary.pending_bytes).sum::<u64>());
            assert_eq!(usage.bytes == 0, usage.deliveries == 0, "{usage:?}");
        }
    }
}

fn hooks() -> Vec<WebhookRef> {
    let hook = |hook| webhook(["team-a", "team-b"][hook % 2], u8::try_from(hook).unwrap() + 1);
    (0..HOOKS).map(hook).collect()
}

async fn run(engine: &dyn Engine, ops: Vec<Op>) {
    let mut run = Run { world: World::new(engine), model: Model::default(), hooks: hooks() };
    for op in ops {
        run.step(op).await;
    }
    run.compare().await;
    let usage = ["team-a", "team-b"].map(|namespace| run.world.store.usage(namespace));
    run.reopen().await;
    run.compare().await;
    assert_eq!(["team-a", "team-b"].map(|namespace| run.world.store.usage(namespace)), usage, "persisted");
    for hook in 0..HOOKS {
        run.purge(hook).await;
    }
    run.compare().await;
    run.world.store.close().await.unwrap();
}

/// Random calls on fresh engines do what they do on a plain model.
pub(in crate::store) fn a_plain_model_agrees<E: Engine>(engine: impl Fn() -> E) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    let ops = prop_oneof![
        2 => prop::collection::vec(op(), 1..60),
        1 => prop::collection::vec(replays::busy(), 1..80),
    ];
    let outcome = TestRunner::new(config).run(&ops, |ops| {
        runtime.block_on(run(&engine(), ops));
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

impl Run<'_> {
    /// What can be claimed is what is not done, each once.
    async fn claim_everything(&mut self) {
        self.world.pass(Duration::from_hours(10_000));
        for (hook, reference) in self.hooks.iter().enumerate() {
            let waiting = self.model.lines.iter().filter(|(_, line)| line.hook == hook && line.waits());
            let mut claimed = self.world.claim(reference, usize::MAX).await;
            claimed.sort_unstable();
            assert_eq!(claimed, waiting.map(|(name, _)| *name).collect::<Vec<_>>());
        }
    }
}

/// A store that was opened after a crash is what the model was.
async fn crashed(engine: &dyn Engine, model: &Model, now: UnixMillis) {
    let mut world = World::new(engine);
    world.now = now;
    let mut run = Run { world, model: model.clone(), hooks: hooks() };
    run.model.opened();
    run.compare().await;
    run.claim_everything().await;
    run.world.store.close().await.unwrap();
}

/// How many crashes were looked at.
async fn crash_everywhere(engine: &dyn Crashing, ops: Vec<(Op, u64)>) -> usize {
    let mut looked_at = 0;
    let mut run = Run { world: World::new(engine), model: Model::default(), hooks: hooks() };
    for (op, cut) in ops {
        // These are made in several commits, or open the store.
        let is_one = !matches!(op, Op::Purge { .. } | Op::Retain | Op::Replay(_) | Op::Reopen);
        let (before, model, now) = (engine.written(), run.model.clone(), run.world.now);
        run.step(op).await;
        let written = engine.written() - before;
        if is_one && written > 0 {
            crashed(&*engine.crash(Some(before + cut % written)), &model, now).await;
            looked_at += 1;
        }
        if written > 0 {
            crashed(&*engine.crash(None), &run.model, run.world.now).await;
            looked_at += 1;
        }
    }
    looked_at
}

/// After each of some random calls, and in the middle of each, a crash leaves what a plain model has.
pub(in crate::store) fn every_crash_leaves_what_the_model_has<E: Crashing>(engine: impl Fn() -> E) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
    let writes = op().prop_filter("opens the store", |op| !matches!(op, Op::Reopen | Op::Query { .. }));
    let ops = prop::collection::vec((writes, any::<u64>()), 1..40);
    let looked_at = std::sync::atomic::AtomicUsize::new(0);
    let outcome = TestRunner::new(config).run(&ops, |ops| {
        let more = runtime.block_on(crash_everywhere(&engine(), ops));
        looked_at.fetch_add(more, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    let looked_at = looked_at.into_inner();
    assert!(looked_at > 100, "only {looked_at} crashes");
}
