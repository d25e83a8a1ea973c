//! One attempt more for what is finished.

use std::sync::Arc;
use std::time::Duration;

use super::{World, webhook};
use crate::model::ids::{DeliveryName, WebhookRef};
use crate::store::records::{EndReason, Expunge, Next, Redelivered, Redelivery, State};
use crate::store::{Order, Query, Summary, Tried};

const SECOND: Duration = Duration::from_secs(1);

impl World<'_> {
    pub(super) async fn redeliver(&self, hook: &WebhookRef, name: DeliveryName) -> Redelivered {
        let namespace = Arc::clone(&hook.namespace);
        let asked = Redelivery { name, namespace, by: "jane".into(), at: self.now };
        self.store.redeliver(vec![asked]).await.unwrap()[0]
    }

    fn numbers(&self, hook: &WebhookRef) -> (u64, u64, u64, u64) {
        let summary = self.store.summary(hook.uid).unwrap();
        let Summary { pending, success_count, failure_count, consecutive_failures, .. } = *summary;
        (pending, success_count, failure_count, consecutive_failures)
    }

    async fn finished(&self, hook: &WebhookRef, next: Next) -> DeliveryName {
        let name = self.accept(&[hook]).await[0];
        assert_eq!(self.claim(hook, 1).await, [name]);
        self.record(hook, name, next).await;
        name
    }
}

const FAILED: Next = Next::Failed(EndReason::RetriesExhausted);

pub(in crate::store) async fn a_finished_delivery_is_attempted_once_more_under_its_name(
    mut world: World<'_>,
) {
    let hook = webhook("team-a", 1);
    for next in [Next::Success, FAILED] {
        let name = world.finished(&hook, next).await;
        world.pass(SECOND);
        world.store.work().take();
        assert_eq!(world.redeliver(&hook, name).await, Redelivered::Queued);
        assert_eq!(world.store.work().take(), [hook.uid]);
        let waiting = world.store.delivery(name).await.unwrap().unwrap();
        assert_eq!((waiting.state, waiting.due, waiting.reason), (State::Pending, Some(world.now), None));
        assert_eq!(world.store.oldest_due(hook.uid), Some(world.now));
        assert_eq!(world.claim(&hook, 9).await, [name]);
        world.succeed(&hook, name).await;
        let done = world.store.delivery(name).await.unwrap().unwrap();
        assert_eq!((done.state, done.due, done.redelivery), (State::Success, None, None));
        let asked: Vec<_> = done.attempts.iter().map(|attempt| attempt.asked_by.as_deref()).collect();
        assert_eq!(asked, [None, Some("jane")]);
        assert_eq!(world.claim(&hook, 9).await, []);
    }
}

pub(in crate::store) async fn a_redelivery_is_due_when_asked_for_and_is_never_retried(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let name = world.finished(&hook, FAILED).await;
    let (namespace, at) = (Arc::clone(&hook.namespace), world.now + SECOND);
    let asked = Redelivery { name, namespace, by: "jane".into(), at };
    world.store.redeliver(vec![asked]).await.unwrap();
    let claims = world.claims(&hook, 1).await;
    assert_eq!((claims.deliveries.len(), claims.next_due), (0, Some(at)));
    world.pass(SECOND);
    assert_eq!(world.claim(&hook, 1).await, [name]);
    world.retry(&hook, name, SECOND).await;
    let failed = world.store.delivery(name).await.unwrap().unwrap();
    assert_eq!((failed.state, failed.reason), (State::Failed, Some(EndReason::RedeliveryFailed)));
    assert_eq!((failed.attempts.len(), failed.retry_count()), (2, 0), "what was asked for is no retry");
    world.pass(2 * SECOND);
    assert_eq!(world.claim(&hook, 1).await, []);
}

pub(in crate::store) async fn a_redelivery_counts_no_failure_again_and_a_success_once(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let name = world.finished(&hook, FAILED).await;
    assert_eq!(world.numbers(&hook), (0, 0, 1, 1));
    for (next, numbers) in [
        (FAILED, (0, 0, 1, 2)),
        (Next::Success, (0, 1, 1, 0)),
        (FAILED, (0, 1, 1, 1)),
        (Next::Success, (0, 1, 1, 0)),
    ] {
        world.redeliver(&hook, name).await;
        assert_eq!(world.numbers(&hook).0, 1, "it is pending");
        assert!(world.store.summary(hook.uid).unwrap().pending_bytes > 0);
        world.claim(&hook, 1).await;
        world.record(&hook, name, next).await;
        assert_eq!(world.numbers(&hook), numbers);
        assert_eq!(world.store.summary(hook.uid).unwrap().pending_bytes, 0);
    }
}

pub(in crate::store) async fn what_cannot_be_redelivered_is_told_apart(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let finished = world.finished(&hook, FAILED).await;
    let expunged = world.finished(&hook, Next::Retry(world.now)).await;
    let expunge = Expunge { name: expunged, namespace: "team-a".into(), by: "jane".into(), at: world.now };
    world.store.expunge(expunge).await.unwrap();
    let pending = world.accept(&[&hook]).await[0];
    let test = world.accept_test(&hook).await;
    world.succeed(&hook, test).await;
    let unknown = world.minter.delivery(world.now);
    for (name, answer) in [
        (finished, Redelivered::Queued),
        (finished, Redelivered::NotFinished),
        (pending, Redelivered::NotFinished),
        (test, Redelivered::Test),
        (expunged, Redelivered::Expunged),
        (unknown, Redelivered::NotFound),
    ] {
        assert_eq!(world.redeliver(&hook, name).await, answer, "{name}");
    }
    assert_eq!(world.redeliver(&webhook("team-b", 1), finished).await, Redelivered::NotFound);
}

pub(in crate::store) async fn a_redelivery_survives_reopening_with_who_asked(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let name = world.finished(&hook, FAILED).await;
    world.redeliver(&hook, name).await;
    world.claim(&hook, 1).await;
    world.reopen().await;
    assert_eq!(world.numbers(&hook).0, 1);
    assert_eq!(world.look(&hook, Tried::Before).await, [name]);
    world.fail(&hook, name).await;
    let failed = world.store.delivery(name).await.unwrap().unwrap();
    assert_eq!(failed.attempts[1].asked_by.as_deref(), Some("jane"));
    world.reopen().await;
    assert_eq!(world.claim(&hook, 1).await, []);
    assert_eq!(world.numbers(&hook), (0, 0, 1, 2));
}

pub(in crate::store) async fn a_redelivery_is_found_as_pending(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let name = world.finished(&hook, FAILED).await;
    let waiting = world.accept(&[&hook]).await[0];
    world.redeliver(&hook, name).await;
    let query = |states| Query { webhook: Some(hook.uid), states, limit: 1, ..Query::default() };
    for _ in 0..2 {
        assert_eq!(world.find(query(vec![State::Pending])).await, [waiting, name]);
        assert_eq!(world.find(query(vec![State::Failed])).await, []);
        assert_eq!(world.find(query(vec![])).await, [waiting, name]);
        world.reopen().await;
    }
}

pub(in crate::store) async fn nothing_that_somebody_asked_for_is_claimed_early(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let name = world.finished(&hook, FAILED).await;
    let from = world.now - Duration::from_hours(1);
    world.now = world.now + SECOND;
    world.redeliver(&hook, name).await;
    world.now = world.now - SECOND;
    let early = Order::Early { from, to: world.now + SECOND };
    assert_eq!(world.ordered(&hook, 1, early).await, []);
    assert_eq!(world.look(&hook, Tried::Before).await, []);
    world.pass(SECOND);
    assert_eq!(world.look(&hook, Tried::Before).await, [name], "at its time");
}
