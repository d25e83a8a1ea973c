//! Many finished deliveries sent once more.

use std::sync::Arc;
use std::time::Duration;

use super::{World, webhook};
use crate::model::ids::{DeliveryName, ReplayId, WebhookRef};
use crate::store::records::{Expunge, Redelivered, State};
use crate::store::replays::{Counts, REMEMBERED};
use crate::store::{NewReplay, Replay, Selection, Summary};

const SECOND: Duration = Duration::from_secs(1);

fn id(number: u8) -> ReplayId {
    ReplayId::from_bytes([number; 16])
}

impl World<'_> {
    /// All that failed so far.
    fn selection(&self) -> Selection {
        Selection {
            namespace: "team-a".into(),
            states: vec![State::Failed],
            from: self.now - Duration::from_hours(1),
            to: self.now + Duration::from_hours(1),
            event_types: vec![],
            as_of: self.now,
        }
    }

    async fn begin(&self, number: u8, hooks: &[&WebhookRef], selection: Selection) {
        let webhooks = hooks.iter().map(|hook| hook.uid).collect();
        let new =
            NewReplay { id: id(number), name: "night".into(), digest: vec![number], selection, webhooks };
        self.store.begin_replay(new).await.unwrap();
    }

    async fn advance(&self, number: u8, hook: &WebhookRef, count: usize) {
        self.store.advance_replay(id(number), hook.uid, vec![self.now; count]).await.unwrap();
    }

    async fn cancel(&self, number: u8) {
        self.store.cancel_replay(id(number), self.now).await.unwrap();
    }

    fn replay(&self, number: u8) -> Option<Arc<Replay>> {
        self.store.replay(id(number))
    }

    /// Selected, put, sent, succeeded, failed, skipped.
    fn counts(&self, number: u8) -> [u64; 6] {
        let replay = self.replay(number).unwrap();
        let Counts { selected, put, sent, succeeded, failed } = replay.counts();
        [selected, put, sent, succeeded, failed, replay.skipped()]
    }

    async fn failed(&mut self, hook: &WebhookRef, count: usize) -> Vec<DeliveryName> {
        let mut names = Vec::new();
        for _ in 0..count {
            let name = self.accept(&[hook]).await[0];
            self.claim(hook, 1).await;
            self.fail(hook, name).await;
            self.pass(SECOND);
            names.push(name);
        }
        names
    }

    fn pending(&self, hook: &WebhookRef) -> (u64, u64) {
        let summary = self.store.summary(hook.uid).unwrap();
        let Summary { pending, pending_bytes, .. } = *summary;
        (pending, pending_bytes)
    }

    async fn states(&self, names: &[DeliveryName]) -> Vec<State> {
        let mut states = Vec::new();
        for name in names {
            states.push(self.store.delivery(*name).await.unwrap().unwrap().state);
        }
        states
    }
}

pub(in crate::store) async fn a_replay_sends_what_had_ended_before_it_once_more_and_counts(
    mut world: World<'_>,
) {
    let hook = webhook("team-a", 1);
    let names = world.failed(&hook, 5).await;
    assert_eq!(world.store.count_replay(world.selection(), vec![hook.uid]).await.unwrap(), 5);
    world.begin(1, &[&hook], world.selection()).await;
    world.begin(1, &[], world.selection()).await;
    assert_eq!(world.counts(1), [5, 0, 0, 0, 0, 0], "begun once");
    assert_eq!(world.claim(&hook, 9).await, [], "nothing is put yet");

    world.store.work().take();
    world.advance(1, &hook, 2).await;
    assert_eq!(world.store.work().take(), [hook.uid]);
    assert_eq!(world.counts(1), [5, 2, 0, 0, 0, 0]);
    assert_eq!(world.claim(&hook, 9).await, names[..2], "oldest first");
    world.pass(SECOND);
    world.succeed(&hook, names[0]).await;
    world.retry(&hook, names[1], SECOND).await;
    assert_eq!(world.counts(1), [5, 2, 2, 1, 1, 0], "one attempt each");
    let line = world.store.delivery(names[0]).await.unwrap().unwrap();
    assert_eq!(line.attempts[1].asked_by.as_deref(), Some("WebhookReplay/night"));
    assert_eq!((line.state, line.redelivery), (State::Success, None));

    world.advance(1, &hook, 9).await;
    assert_eq!(world.claim(&hook, 9).await, names[2..], "each once");
    for name in &names[2..] {
        assert!(!world.replay(1).unwrap().is_over());
        world.fail(&hook, *name).await;
    }
    assert!(world.replay(1).unwrap().is_over());
    assert_eq!(world.counts(1), [5, 5, 5, 1, 4, 0]);
    world.advance(1, &hook, 9).await;
    assert_eq!(world.claim(&hook, 9).await, [], "what it failed with itself is not taken again");
}

pub(in crate::store) async fn a_replay_takes_by_time_state_type_and_webhook(mut world: World<'_>) {
    let [a, b] = [1, 2].map(|number| webhook("team-a", number));
    let early = world.failed(&a, 2).await;
    let between = world.now;
    let late = world.failed(&a, 2).await;
    let other = world.failed(&b, 1).await;
    let arrived = world.accept(&[&a]).await;
    world.claim(&a, 1).await;
    world.succeed(&a, arrived[0]).await;
    let test = world.accept_test(&a).await;
    world.fail(&a, test).await;
    world.pass(SECOND);
    world.accept(&[&a]).await;
    let all = world.selection();
    let both = vec![State::Failed, State::Success];
    for (sentence, selection, hooks, taken) in [
        ("all failed ones", all.clone(), vec![&a, &b], 5),
        ("of one Webhook", all.clone(), vec![&b], 1),
        ("arrived ones too", Selection { states: both.clone(), ..all.clone() }, vec![&a], 5),
        ("from a time on", Selection { from: between, ..all.clone() }, vec![&a], 2),
        ("before a time", Selection { to: between, ..all.clone() }, vec![&a], 2),
        ("of a type", Selection { event_types: vec!["order.*".into()], ..all.clone() }, vec![&a], 4),
        ("of another type", Selection { event_types: vec!["invoice.*".into()], ..all.clone() }, vec![&a], 0),
        ("as of a time", Selection { as_of: between, ..all.clone() }, vec![&a], 2),
        ("of another namespace", Selection { namespace: "team-b".into(), ..all.clone() }, vec![&a], 0),
    ] {
        let webhooks = hooks.iter().map(|hook| hook.uid).collect();
        assert_eq!(world.store.count_replay(selection, webhooks).await.unwrap(), taken, "{sentence}");
    }
    world.begin(1, &[&a, &b], Selection { from: between, states: both, ..all }).await;
    for hook in [&a, &b] {
        world.advance(1, hook, 9).await;
    }
    let pending = world.claim(&a, 9).await;
    let mut expected = [late, arrived].concat();
    expected.sort_unstable();
    assert_eq!(pending.iter().filter(|name| expected.contains(name)).count(), 3);
    assert_eq!(world.claim(&b, 9).await, other);
    assert_eq!(world.states(&early).await, [State::Failed; 2]);
}

pub(in crate::store) async fn a_replay_goes_on_after_reopening_and_repeats_nothing(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let names = world.failed(&hook, 6).await;
    world.begin(1, &[&hook], world.selection()).await;
    world.pass(SECOND);
    world.advance(1, &hook, 3).await;
    world.claim(&hook, 2).await;
    world.fail(&hook, names[0]).await;
    let before = world.replay(1);
    world.reopen().await;
    assert_eq!(world.replay(1), before);
    assert_eq!(world.store.replays().len(), 1);
    assert_eq!(world.claim(&hook, 9).await, names[1..3], "claims are released, nothing is put twice");
    world.advance(1, &hook, 9).await;
    assert_eq!(world.claim(&hook, 9).await, names[3..]);
    for name in &names[1..] {
        world.succeed(&hook, *name).await;
    }
    assert_eq!(world.counts(1), [6, 6, 6, 5, 1, 0]);
}

pub(in crate::store) async fn what_ended_after_the_start_or_waits_already_is_skipped(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let names = world.failed(&hook, 4).await;
    world.begin(1, &[&hook], world.selection()).await;
    world.pass(SECOND);
    let later = world.failed(&hook, 1).await;
    for name in &names[..2] {
        assert_eq!(world.redeliver(&hook, *name).await, Redelivered::Queued);
    }
    assert_eq!(world.claim(&hook, 1).await, names[..1]);
    world.fail(&hook, names[0]).await;
    let expunge = Expunge { name: names[2], namespace: "team-a".into(), by: "jane".into(), at: world.now };
    world.store.expunge(expunge).await.unwrap();
    world.advance(1, &hook, 9).await;
    assert_eq!(world.claim(&hook, 9).await, [names[1], names[3]], "asked for by jane, and by the replay");
    world.succeed(&hook, names[1]).await;
    assert_eq!(world.counts(1), [4, 1, 0, 0, 0, 3]);
    world.succeed(&hook, names[3]).await;
    assert_eq!(world.counts(1), [4, 1, 1, 1, 0, 3]);
    assert_eq!(world.states(&later).await, [State::Failed]);
}

pub(in crate::store) async fn a_cancelled_replay_leaves_what_was_not_sent_as_it_was(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let names = world.failed(&hook, 700).await;
    let before = world.store.delivery(names[1]).await.unwrap();
    let idle = world.pending(&hook);
    world.begin(1, &[&hook], world.selection()).await;
    world.pass(SECOND);
    world.advance(1, &hook, 650).await;
    assert_eq!(world.claim(&hook, 1).await, names[..1]);
    world.succeed(&hook, names[0]).await;
    for reopened in [false, true] {
        if reopened {
            world.reopen().await;
        }
        world.cancel(1).await;
        assert_eq!(world.replay(1), None, "it is forgotten");
        assert_eq!(world.pending(&hook), idle);
        assert_eq!(world.claim(&hook, 9).await, []);
        assert_eq!(world.store.oldest_due(hook.uid), None);
        assert_eq!(world.store.delivery(names[1]).await.unwrap(), before);
        world.advance(1, &hook, 9).await;
        assert_eq!(world.claim(&hook, 9).await, [], "nothing more is put");
    }
    world.begin(2, &[&hook], world.selection()).await;
    assert_eq!(world.counts(2)[0], 699, "another takes them all the same");
}

pub(in crate::store) async fn an_attempt_under_way_outlives_the_cancellation(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let names = world.failed(&hook, 3).await;
    world.begin(1, &[&hook], world.selection()).await;
    world.pass(SECOND);
    world.advance(1, &hook, 3).await;
    assert_eq!(world.claim(&hook, 1).await, names[..1]);
    world.cancel(1).await;
    assert!(world.replay(1).unwrap().cancelled);
    assert_eq!(world.states(&names).await, [State::Pending, State::Failed, State::Failed]);
    world.reopen().await;
    assert!(world.replay(1).unwrap().cancelled, "also after a crash");
    assert_eq!(world.claim(&hook, 9).await, names[..1]);
    world.succeed(&hook, names[0]).await;
    assert_eq!(world.states(&names[..1]).await, [State::Success]);
    world.cancel(1).await;
    assert_eq!(world.replay(1), None);
}

pub(in crate::store) async fn a_finished_replay_is_remembered_with_its_numbers(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let names = world.failed(&hook, 2).await;
    world.begin(1, &[&hook], world.selection()).await;
    world.pass(SECOND);
    world.advance(1, &hook, 9).await;
    world.store.finish_replay(id(1), world.now).await.unwrap();
    assert_eq!(world.replay(1).unwrap().finished_at, None, "it is not over");
    world.claim(&hook, 9).await;
    world.succeed(&hook, names[0]).await;
    world.fail(&hook, names[1]).await;
    let end = world.now;
    world.store.finish_replay(id(1), end).await.unwrap();
    world.pass(SECOND);
    world.store.finish_replay(id(1), world.now).await.unwrap();
    for _ in 0..2 {
        assert_eq!(world.replay(1).unwrap().finished_at, Some(end));
        assert_eq!(world.counts(1), [2, 2, 2, 1, 1, 0]);
        world.cancel(1).await;
        world.advance(1, &hook, 9).await;
        assert_eq!(world.claim(&hook, 9).await, []);
        world.reopen().await;
    }
    for number in 0..REMEMBERED {
        world.pass(SECOND);
        let id = ReplayId::from_bytes((1_000_000 + number as u128).to_be_bytes());
        let (selection, webhooks) = (world.selection(), vec![]);
        let new = NewReplay { id, name: "more".into(), digest: vec![], selection, webhooks };
        world.store.begin_replay(new).await.unwrap();
        world.store.finish_replay(id, world.now).await.unwrap();
    }
    assert_eq!(world.store.replays().len(), REMEMBERED, "the oldest goes");
    assert_eq!(world.replay(1), None);
    world.store.purge(hook.uid).await.unwrap();
    assert_eq!(world.store.replays(), [], "with the last Webhook, nothing is left to be sent again");
}

pub(in crate::store) async fn what_is_expunged_or_purged_does_not_hold_a_replay_up(mut world: World<'_>) {
    let [a, b] = [1, 2].map(|number| webhook("team-a", number));
    let first = world.failed(&a, 2).await;
    let second = world.failed(&b, 3).await;
    world.begin(1, &[&a, &b], world.selection()).await;
    world.pass(SECOND);
    world.advance(1, &a, 9).await;
    world.advance(1, &b, 2).await;
    let expunge = Expunge { name: first[0], namespace: "team-a".into(), by: "jane".into(), at: world.now };
    world.store.expunge(expunge).await.unwrap();
    assert_eq!(world.counts(1), [5, 3, 0, 0, 0, 1]);
    world.claim(&b, 1).await;
    world.succeed(&b, second[0]).await;
    world.store.purge(b.uid).await.unwrap();
    assert_eq!(world.counts(1), [5, 2, 1, 1, 0, 3]);
    world.claim(&a, 9).await;
    world.fail(&a, first[1]).await;
    for _ in 0..2 {
        assert!(world.replay(1).unwrap().is_over());
        assert_eq!(world.counts(1), [5, 2, 2, 1, 1, 3]);
        world.reopen().await;
    }
}
