//! A clock that is set: back, when it was ahead, and forward.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{Engine, LEASE, RETENTION, TICK, WINDOW, World, names, webhook};
use crate::model::ids::{DeliveryName, ReplayId, WebhookRef};
use crate::model::time::UnixMillis;
use crate::store::records::{DisableReason, Disabled, Redelivered, Redelivery, State};
use crate::store::{Appended, Change, NewReplay, Next, Query, SLACK, Selection};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
/// An attempt takes so long here, and is recorded at its beginning.
const TAKES: Duration = Duration::from_millis(12);

/// How far the clock is ahead, and whether it is set right in a pause of the process.
const SETTINGS: [(Duration, bool); 6] = [
    (SECOND.saturating_mul(5), false),
    (MINUTE, true),
    (HOUR, false),
    (DAY, true),
    (DAY.saturating_mul(2), false),
    (DAY, false),
];

impl World<'_> {
    /// The clock, which was ahead, is set right a moment later.
    async fn set_right(&mut self, ahead: Duration, restarts: bool) {
        self.pass(TICK);
        self.now = self.now - ahead;
        if restarts {
            self.reopen().await;
        }
        self.store.redate(self.now).await.unwrap();
    }

    async fn ask(&self, hook: &WebhookRef, name: DeliveryName) -> Redelivered {
        let namespace = hook.namespace.clone();
        let asked = Redelivery { name, namespace, by: "jane".into(), at: self.now };
        self.store.redeliver(vec![asked]).await.unwrap()[0]
    }

    async fn sees(&self, name: DeliveryName) -> crate::store::Delivery {
        self.store.delivery(name).await.unwrap().unwrap()
    }
}

pub(in crate::store) async fn a_retry_waits_no_longer_than_it_was_to(mut world: World<'_>) {
    for (number, (ahead, restarts)) in (1..).zip(SETTINGS) {
        let (hook, what) = (webhook("team-a", number), format!("{ahead:?} ahead, restarts: {restarts}"));
        world.pass(ahead);
        let appended = [world.accept(&[&hook]).await, world.accept(&[&hook]).await].concat();
        world.claim(&hook, 2).await;
        world.retry(&hook, appended[0], 10 * SECOND).await;
        world.retry(&hook, appended[1], HOUR).await;
        world.store.work().take();
        world.set_right(ahead, restarts).await;
        assert!(world.store.work().take().contains(&hook.uid), "{what}: it is woken");
        let claims = world.claims(&hook, 10).await;
        let due = Some(world.now + 10 * SECOND - TAKES);
        assert_eq!((names(&claims), claims.next_due), (vec![], due), "{what}");
        assert_eq!(world.store.oldest_due(hook.uid), due, "{what}");
        world.pass(10 * SECOND);
        assert_eq!(world.claim(&hook, 10).await, appended[..1], "{what}");
        world.pass(HOUR);
        world.succeed(&hook, appended[0]).await;
        assert_eq!(world.claim(&hook, 10).await, appended[1..], "{what}");
        world.succeed(&hook, appended[1]).await;
    }
}

pub(in crate::store) async fn a_retry_of_the_right_clock_stays_where_it_was(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    world.retry(&hook, appended[0], DAY).await;
    let due = Some(world.now + DAY);
    world.pass(HOUR);
    world.accept(&[&webhook("team-a", 2)]).await;
    world.set_right(MINUTE, false).await;
    assert_eq!(world.sees(appended[0]).await.due, due);
    assert_eq!(world.claims(&hook, 10).await.next_due, due);
}

pub(in crate::store) async fn a_clock_set_back_during_an_attempt_or_ahead_does_not_lengthen_the_wait(
    mut world: World<'_>,
) {
    let hook = webhook("team-a", 1);
    // It jumps ahead during the attempt, and is set right later.
    let name = world.accept(&[&hook]).await[0];
    world.claim(&hook, 1).await;
    let mut outcome = world.outcome(&hook, name, Next::Success);
    world.pass(DAY);
    (outcome.at, outcome.next) = (world.now, Next::Retry(world.now + MINUTE));
    world.store.record(vec![outcome]).await.unwrap();
    world.set_right(DAY, true).await;
    assert_eq!(world.claims(&hook, 1).await.next_due, Some(world.now + MINUTE));
    // It is ahead when the attempt begins, and right when it ends.
    world.pass(MINUTE);
    world.claim(&hook, 1).await;
    let mut outcome = world.outcome(&hook, name, Next::Retry(world.now + HOUR));
    outcome.attempt.as_mut().unwrap().at = world.now + DAY;
    world.store.record(vec![outcome]).await.unwrap();
    assert_eq!(world.claims(&hook, 1).await.next_due, Some(world.now + HOUR));
    assert!(world.sees(name).await.attempts.iter().all(|attempt| attempt.at <= world.now));
}

pub(in crate::store) async fn first_attempts_of_a_clock_that_was_ahead_have_their_turn(mut world: World<'_>) {
    for (number, (ahead, restarts)) in (1..).zip(SETTINGS) {
        let (hook, what) = (webhook("team-a", number), format!("{ahead:?} ahead, restarts: {restarts}"));
        world.pass(ahead);
        let mut expected = [world.accept(&[&hook]).await, world.accept(&[&hook]).await].concat();
        world.set_right(ahead, restarts).await;
        let right = world.now;
        assert_eq!(world.store.oldest_due(hook.uid), Some(right), "{what}: it is late from now on");
        world.pass(SECOND);
        let retried = world.accept(&[&hook]).await[0];
        world.retry(&hook, retried, SECOND).await;
        world.pass(MINUTE);
        expected.push(retried);
        expected.extend(world.accept(&[&hook]).await);
        assert_eq!(world.store.oldest_due(hook.uid), Some(right), "{what}");
        assert_eq!(world.claim(&hook, 10).await, expected, "{what}: whoever came first");
        assert_eq!(world.store.oldest_due(hook.uid), Some(right), "{what}: claimed");
        let listed = world.find(Query { webhook: Some(hook.uid), limit: 2, ..Query::default() }).await;
        let mut newest_first: Vec<_> = listed.clone();
        newest_first.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(listed, newest_first, "{what}");
        let mut lines = Vec::new();
        for name in &listed {
            lines.push((world.sees(*name).await.accepted_at, *name));
        }
        assert!(lines.is_sorted_by(|a, b| a > b), "{what}: by (acceptedAt, name), {lines:?}");
        assert!(lines.iter().all(|(accepted, _)| *accepted <= world.now), "{what}");
        for name in expected {
            world.succeed(&hook, name).await;
        }
    }
}

pub(in crate::store) async fn a_claim_holds_no_longer_than_its_lease_from_then(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    world.pass(DAY);
    let appended = world.accept(&[&hook]).await;
    assert_eq!(world.claim(&hook, 1).await, appended);
    world.set_right(DAY, false).await;
    world.pass(LEASE.saturating_sub(TICK));
    assert_eq!(world.claim(&hook, 1).await, [], "it is under way, once only");
    world.pass(TICK);
    assert_eq!(world.claim(&hook, 1).await, appended);
}

pub(in crate::store) async fn an_attempt_under_way_is_recorded_and_nothing_waits_twice(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    world.pass(DAY);
    let appended = [world.accept(&[&hook]).await, world.accept(&[&hook]).await].concat();
    world.retry(&hook, appended[1], MINUTE).await;
    world.pass(MINUTE);
    assert_eq!(world.claim(&hook, 10).await, appended, "both are under way");
    world.set_right(DAY, false).await;
    assert_eq!(world.claim(&hook, 10).await, []);
    world.retry(&hook, appended[0], MINUTE).await;
    world.succeed(&hook, appended[1]).await;
    world.pass(MINUTE);
    assert_eq!(world.claim(&hook, 10).await, appended[..1]);
    world.succeed(&hook, appended[0]).await;
    world.reopen().await;
    world.pass(DAY * 3);
    assert_eq!(world.claims(&hook, 10).await.next_due, None, "nothing is left in the queue");
    assert_eq!(world.store.summary(hook.uid).unwrap().pending, 0);
}

pub(in crate::store) async fn what_ended_by_a_clock_that_was_ahead_is_redelivered_at_once(
    mut world: World<'_>,
) {
    for (number, (ahead, restarts)) in (1..).zip(SETTINGS) {
        let hook = webhook("team-a", number);
        world.pass(ahead);
        let asked_before = world.accept(&[&hook]).await[0];
        let asked_after = world.accept(&[&hook]).await[0];
        world.fail(&hook, asked_before).await;
        world.fail(&hook, asked_after).await;
        assert_eq!(world.ask(&hook, asked_before).await, Redelivered::Queued);
        world.set_right(ahead, restarts).await;
        assert_eq!(world.claim(&hook, 10).await, [asked_before], "{ahead:?}");
        assert_eq!(world.ask(&hook, asked_after).await, Redelivered::Queued);
        assert_eq!(world.claim(&hook, 10).await, [asked_after], "{ahead:?}");
        let line = world.sees(asked_before).await;
        assert!(line.redelivery.unwrap().asked.at <= world.now);
        world.succeed(&hook, asked_before).await;
        world.succeed(&hook, asked_after).await;
    }
}

pub(in crate::store) async fn a_replay_goes_on_and_takes_by_the_time_of_acceptance(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let begin = |world: &World<'_>, number: u8, from, to| {
        let (states, namespace) = (vec![State::Failed], hook.namespace.clone());
        let selection = Selection { namespace, states, from, to, event_types: vec![], as_of: world.now };
        let id = ReplayId::from_bytes([number; 16]);
        (
            id,
            NewReplay { id, name: "night".into(), digest: vec![number], selection, webhooks: vec![hook.uid] },
        )
    };
    world.pass(DAY);
    let failed = [world.accept(&[&hook]).await, world.accept(&[&hook]).await].concat();
    for name in &failed {
        world.fail(&hook, *name).await;
    }
    world.pass(SECOND);
    let (id, new) = begin(&world, 1, world.now - DAY, world.now + DAY);
    world.store.begin_replay(new).await.unwrap();
    assert_eq!(world.store.advance_replay(id, hook.uid, vec![world.now]).await.unwrap(), 1);
    world.set_right(DAY, true).await;
    let right = world.now;
    assert_eq!(world.claim(&hook, 10).await, failed[..1], "what was put is due");
    world.fail(&hook, failed[0]).await;
    assert_eq!(world.store.replay(id).unwrap().selection.as_of, right);

    // Names go on in the future; what counts is when they were accepted.
    world.pass(HOUR);
    let later = world.accept(&[&hook]).await[0];
    assert!(later.accepted_at() > world.now);
    world.fail(&hook, later).await;
    world.pass(HOUR);
    let latest = world.accept(&[&hook]).await[0];
    world.fail(&hook, latest).await;
    world.pass(SECOND);
    for (number, from, to, selected) in [
        (2, right + MINUTE, right + HOUR + MINUTE, 1),
        (3, right - MINUTE, right + MINUTE, 2),
        (4, right + MINUTE, right + DAY, 2),
        (5, right + DAY, right + DAY * 2, 0),
    ] {
        let (id, new) = begin(&world, number, from, to);
        world.store.begin_replay(new).await.unwrap();
        assert_eq!(world.store.replay(id).unwrap().counts().selected, selected, "{number}");
    }
}

pub(in crate::store) async fn a_duplicate_is_known_for_the_window_from_then(mut world: World<'_>) {
    for (key, (ahead, restarts)) in (1..).zip(SETTINGS) {
        let hook = webhook("team-a", key);
        world.pass(ahead);
        let first = world.keyed(key, &[&hook]);
        let uid = first.uid;
        world.store.append(vec![first]).await.unwrap();
        world.set_right(ahead, restarts).await;
        world.pass(WINDOW.saturating_sub(SLACK));
        let again = world.store.append(vec![world.keyed(key, &[&hook])]).await.unwrap();
        assert_eq!(again, [Appended::Duplicate(uid)], "{ahead:?}");
        world.pass(SLACK);
        let new = world.store.append(vec![world.keyed(key, &[&hook])]).await.unwrap();
        assert_eq!(new, [Appended::New], "{ahead:?}, restarts: {restarts}");
        // So that the next begins with nothing.
        world.pass(WINDOW * 3);
    }
}

pub(in crate::store) async fn what_ended_by_a_clock_that_was_ahead_is_kept_for_its_time_from_then(
    mut world: World<'_>,
) {
    for (number, (ahead, restarts)) in (1..).zip(SETTINGS) {
        let hook = webhook("team-a", number);
        let before = world.accept(&[&hook]).await[0];
        world.pass(ahead);
        let meanwhile = world.accept(&[&hook]).await[0];
        world.succeed(&hook, before).await;
        world.succeed(&hook, meanwhile).await;
        // It was looked at while the clock was ahead, and is known to be young.
        world.store.retain(world.now).await.unwrap();
        world.set_right(ahead, restarts).await;
        world.pass(MINUTE);
        let after = world.accept(&[&hook]).await[0];
        world.succeed(&hook, after).await;
        assert_eq!(world.store.retain(world.now).await.unwrap(), 0, "{ahead:?}");
        world.pass(RETENTION.max_age.saturating_sub(MINUTE) + SECOND);
        assert_eq!(world.store.retain(world.now).await.unwrap(), 2, "{ahead:?}, restarts: {restarts}");
        world.pass(MINUTE);
        assert_eq!(world.store.retain(world.now).await.unwrap(), 1, "{ahead:?}");
    }
}

pub(in crate::store) async fn the_numbers_of_a_webhook_have_no_time_in_the_future(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    for (ahead, restarts) in SETTINGS {
        world.pass(ahead);
        let appended = [world.accept(&[&hook]).await, world.accept(&[&hook]).await].concat();
        world.succeed(&hook, appended[0]).await;
        world.fail(&hook, appended[1]).await;
        let disabled = Disabled { generation: 3, at: world.now, reason: DisableReason::Failing };
        world.store.update(hook.uid, Change::Disable(disabled)).await.unwrap();
        world.set_right(ahead, restarts).await;
        let now = Some(world.now);
        let summary = world.store.summary(hook.uid).unwrap();
        assert_eq!((summary.last_triggered, summary.last_success, summary.failing_since), (now, now, now));
        assert_eq!(summary.disabled.as_ref().map(|disabled| disabled.at), now, "{ahead:?}");
        world.pass(SECOND);
        let next = world.accept(&[&hook]).await[0];
        world.succeed(&hook, next).await;
        assert_eq!(world.store.summary(hook.uid).unwrap().last_success, Some(world.now), "{ahead:?}");
        world.pass(DAY * 3);
    }
}

pub(in crate::store) async fn a_clock_that_is_right_or_goes_forward_changes_nothing(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = [world.accept(&[&hook]).await, world.accept(&[&hook]).await].concat();
    world.retry(&hook, appended[1], HOUR).await;
    world.store.redate(world.now).await.unwrap();
    let before = [world.sees(appended[0]).await, world.sees(appended[1]).await];
    for step in [TICK, SECOND, 10 * MINUTE] {
        world.now = world.now - step.min(SECOND);
        world.store.redate(world.now).await.unwrap();
        world.pass(step.min(SECOND));
        world.store.redate(world.now).await.unwrap();
        world.pass(step);
        world.store.redate(world.now).await.unwrap();
    }
    assert_eq!([world.sees(appended[0]).await, world.sees(appended[1]).await], before);
    assert_eq!(world.claim(&hook, 10).await, appended[..1]);
    world.pass(DAY * 2);
    world.store.redate(world.now).await.unwrap();
    assert_eq!(world.claim(&hook, 10).await, appended, "a clock set forward makes it due");
}

pub(in crate::store) async fn more_than_one_step_of_it_is_set_right_while_others_go_on(mut world: World<'_>) {
    let [many, other] = [webhook("team-a", 1), webhook("team-b", 2)];
    world.pass(DAY);
    let mut appended = Vec::new();
    for _ in 0..10 {
        let events: Vec<_> = (0..100).map(|_| world.event(&[&many])).collect();
        appended.extend(events.iter().map(|event| event.deliveries[0].name));
        world.store.append(events).await.unwrap();
    }
    let retried = appended.iter().step_by(2).copied().collect::<Vec<_>>();
    let retry = |name: &DeliveryName| world.outcome(&many, *name, Next::Retry(world.now + MINUTE));
    world.store.record(retried.iter().map(retry).collect()).await.unwrap();
    world.now = world.now - DAY;
    let store = world.store.clone();
    let (redated, accepted) = tokio::join!(store.redate(world.now), async {
        let name = world.accept(&[&other]).await;
        world.claim(&other, 1).await;
        world.succeed(&other, name[0]).await;
        name
    });
    redated.unwrap();
    assert_eq!(accepted.len(), 1);
    let fresh: Vec<_> = appended.iter().skip(1).step_by(2).copied().collect();
    let mut claimed = Vec::new();
    while let Some(more) = Some(world.claim(&many, 70).await).filter(|more| !more.is_empty()) {
        claimed.extend(more);
    }
    assert_eq!(claimed, fresh);
    world.pass(MINUTE.saturating_sub(TAKES + TICK));
    assert_eq!(world.claim(&many, 70).await, []);
    world.pass(SECOND);
    // The claims of the first attempts have ended, too.
    let mut all = world.claim(&many, usize::MAX).await;
    all.sort_unstable();
    assert_eq!(all, appended);
}

#[derive(Clone, Debug)]
enum Op {
    Accept,
    Retry(usize, u64),
    Finish(usize),
    Redeliver(usize),
    Claim(usize),
    /// By so many seconds, in a pause of the process or not.
    Jump(i64, bool),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let second = prop_oneof![Just(1_i64), Just(3), Just(60), Just(3600), Just(86_400), Just(172_800)];
    let jump = (second, any::<bool>(), any::<bool>());
    prop_oneof![
        3 => Just(Op::Accept),
        4 => (any::<usize>(), 1..7200_u64).prop_map(|(which, wait)| Op::Retry(which, wait)),
        1 => any::<usize>().prop_map(Op::Finish),
        1 => any::<usize>().prop_map(Op::Redeliver),
        1 => (0..4_usize).prop_map(Op::Claim),
        3 => jump.prop_map(|(by, back, restarts)| Op::Jump(if back { -by } else { by }, restarts)),
        3 => prop_oneof![1..10_u64, 1000..9000_u64].prop_map(Op::Pass),
    ]
}

/// Of one that waits: for how long it was to, and until when it may, by a clock that never jumps.
#[derive(Clone, Copy, Debug)]
struct Wait {
    wait: Duration,
    until: Duration,
}

struct Run<'a> {
    world: World<'a>,
    hook: WebhookRef,
    steady: Duration,
    waiting: HashMap<DeliveryName, Wait>,
    ended: Vec<DeliveryName>,
}

impl Run<'_> {
    fn pick(&self, which: usize) -> Option<DeliveryName> {
        let mut names: Vec<_> = self.waiting.keys().copied().collect();
        names.sort_unstable();
        names.get(which.checked_rem(names.len())?).copied()
    }

    fn waits(&mut self, name: DeliveryName, wait: Duration) {
        self.waiting.insert(name, Wait { wait, until: self.steady + wait });
    }

    async fn step(&mut self, op: Op) {
        match op {
            Op::Accept => {
                let name = self.world.accept(&[&self.hook]).await[0];
                self.waits(name, Duration::ZERO);
            }
            Op::Retry(which, seconds) => {
                let Some(name) = self.pick(which) else { return };
                let wait = Duration::from_secs(seconds);
                let is_redelivery = self.world.sees(name).await.redelivery.is_some();
                self.world.retry(&self.hook, name, wait).await;
                if is_redelivery {
                    self.waiting.remove(&name);
                    self.ended.push(name);
                } else {
                    self.waits(name, wait);
                }
            }
            Op::Finish(which) => {
                let Some(name) = self.pick(which) else { return };
                self.world.fail(&self.hook, name).await;
                self.waiting.remove(&name);
                self.ended.push(name);
            }
            Op::Redeliver(which) => {
                let Some(which) = which.checked_rem(self.ended.len()) else { return };
                let name = self.ended.swap_remove(which);
                assert_eq!(self.world.ask(&self.hook, name).await, Redelivered::Queued);
                self.waits(name, Duration::ZERO);
            }
            Op::Claim(limit) => drop(self.world.claim(&self.hook, limit).await),
            Op::Jump(by, restarts) => {
                self.world.now = UnixMillis::from_millis(self.world.now.as_millis() + by * 1000);
                if restarts {
                    self.world.reopen().await;
                }
                self.world.store.redate(self.world.now).await.unwrap();
                for wait in self.waiting.values_mut().filter(|_| by < 0) {
                    wait.until = wait.until.max(self.steady + wait.wait);
                }
            }
            Op::Pass(seconds) => {
                let time = Duration::from_secs(seconds);
                self.world.pass(time);
                self.steady += time;
            }
        }
        self.look().await;
    }

    /// What may wait no longer can be claimed, or is claimed.
    async fn look(&self) {
        // On disk the newest time is a second older at most.
        let late = |wait: &Wait| wait.until + SLACK + SECOND <= self.steady;
        let mut claimed = Vec::new();
        for (name, wait) in &self.waiting {
            if late(wait) {
                assert!(self.world.store.oldest_due(self.hook.uid) <= Some(self.world.now), "{wait:?}");
                claimed.push(*name);
            }
        }
        let mut request = self.world.request(&self.hook, usize::MAX);
        // What was claimed before is free again.
        request.now = request.now + LEASE;
        let early = names(&self.world.store.claim(request).await.unwrap());
        for name in claimed {
            assert!(early.contains(&name), "{name} {:?}", self.waiting[&name]);
        }
        let claims = early.into_iter().map(|name| (self.hook.uid, name)).collect();
        self.world.store.release(claims).await.unwrap();
    }
}

/// Whatever the clock does, and when: nothing waits for longer than it was to, counted from when it was set.
pub(in crate::store) fn no_jump_of_the_clock_lengthens_a_wait<E: Engine>(engine: impl Fn() -> E) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&prop::collection::vec(op(), 1..40), |ops| {
        let engine = engine();
        runtime.block_on(async {
            let (world, hook) = (World::new(&engine), webhook("team-a", 1));
            let (steady, waiting, ended) = (Duration::ZERO, HashMap::new(), Vec::new());
            let mut run = Run { world, hook, steady, waiting, ended };
            for op in ops {
                run.step(op).await;
            }
            run.step(Op::Pass(2 * 7200)).await;
            run.world.store.close().await.unwrap();
        });
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}
