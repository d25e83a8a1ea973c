//! The numbers of a Webhook.

use std::time::Duration;

use super::{LEASE, World, webhook};
use crate::model::ids::DeliveryName;
use crate::store::Change;
use crate::store::records::{DisableReason, Disabled, EndReason, Next, State, Summary};

pub(in crate::store) async fn numbers_follow_outcomes_and_survive_reopening(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let mut appended = Vec::new();
    for _ in 0..4 {
        appended.extend(world.accept(&[&hook]).await);
    }
    let bytes = world.event(&[&hook]).data.len() as u64;
    world.claim(&hook, 3).await;
    world.pass(Duration::from_secs(1));
    let succeeded = world.now;
    world.succeed(&hook, appended[0]).await;
    world.pass(Duration::from_secs(1));
    let failing = world.now;
    world.retry(&hook, appended[1], Duration::from_secs(9)).await;
    world.pass(Duration::from_secs(1));
    world.fail(&hook, appended[2]).await;
    let expected = Summary {
        pending: 2,
        pending_bytes: 2 * bytes,
        failure_count: 1,
        success_count: 1,
        consecutive_failures: 2,
        failed_since_success: true,
        failing_since: Some(failing),
        last_triggered: Some(world.now),
        last_success: Some(succeeded),
        ..Summary::new(hook.clone())
    };
    assert_eq!(*world.store.summary(hook.uid).unwrap(), expected);
    world.reopen().await;
    assert_eq!(*world.store.summary(hook.uid).unwrap(), expected);
    assert_eq!(world.store.known(), [hook]);
}

pub(in crate::store) async fn an_outcome_recorded_twice_counts_once(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    world.claim(&hook, 1).await;
    world.fail(&hook, appended[0]).await;
    let once = world.store.summary(hook.uid);
    world.fail(&hook, appended[0]).await;
    world.succeed(&hook, appended[0]).await;
    assert_eq!(world.store.summary(hook.uid), once);
    let delivery = world.store.delivery(appended[0]).await.unwrap().unwrap();
    assert_eq!((delivery.state, delivery.attempts.len()), (State::Failed, 1));
}

pub(in crate::store) async fn the_same_outcome_twice_in_one_call_counts_once(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    world.claim(&hook, 1).await;
    let success = world.outcome(&hook, appended[0], Next::Success);
    world.store.record(vec![success.clone(), success]).await.unwrap();
    let summary = world.store.summary(hook.uid).unwrap();
    assert_eq!((summary.success_count, summary.pending), (1, 0));
}

pub(in crate::store) async fn an_outcome_of_an_unknown_delivery_or_webhook_is_dropped(world: World<'_>) {
    let [hook, other] = [1, 2].map(|number| webhook("team-a", number));
    let appended = world.accept(&[&hook]).await;
    let before = world.store.summary(hook.uid);
    world.succeed(&hook, DeliveryName::from_bytes([9; 16])).await;
    world.succeed(&other, appended[0]).await;
    assert_eq!(world.store.summary(hook.uid), before);
    assert_eq!(world.store.summary(other.uid), None);
    assert_eq!(world.claim(&hook, 1).await, appended);
}

pub(in crate::store) async fn a_claim_that_expired_can_still_be_recorded(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    world.claim(&hook, 1).await;
    world.pass(LEASE);
    assert_eq!(world.claim(&hook, 0).await, []);
    world.succeed(&hook, appended[0]).await;
    assert_eq!(world.claim(&hook, 1).await, []);
    assert_eq!(world.store.summary(hook.uid).unwrap().success_count, 1);
    let unclaimed = world.accept(&[&hook]).await;
    world.reopen().await;
    world.succeed(&hook, unclaimed[0]).await;
    assert_eq!(world.claim(&hook, 1).await, []);
    let summary = world.store.summary(hook.uid).unwrap();
    assert_eq!((summary.success_count, summary.pending, summary.pending_bytes), (2, 0, 0));
}

pub(in crate::store) async fn tests_are_not_counted_but_seen(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let failed = world.accept_test(&hook).await;
    assert_eq!(world.store.summary(hook.uid).unwrap().pending, 0);
    world.record(&hook, failed, Next::Failed(EndReason::TestFailed)).await;
    let succeeded = world.accept_test(&hook).await;
    world.succeed(&hook, succeeded).await;
    let expected = Summary { test_sent: true, ..Summary::new(hook.clone()) };
    assert_eq!(*world.store.summary(hook.uid).unwrap(), expected);
    world.reopen().await;
    for (name, state) in [(failed, State::Failed), (succeeded, State::Success)] {
        let delivery = world.store.delivery(name).await.unwrap().unwrap();
        assert_eq!((delivery.test, delivery.state, delivery.attempts.len()), (true, state, 1));
    }
}

pub(in crate::store) async fn a_test_interrupted_by_the_end_of_the_process_is_failed_at_opening(
    mut world: World<'_>,
) {
    let hook = webhook("team-a", 1);
    let test = world.accept_test(&hook).await;
    for _ in 0..2 {
        world.reopen().await;
        let delivery = world.store.delivery(test).await.unwrap().unwrap();
        assert_eq!((delivery.state, delivery.reason), (State::Failed, Some(EndReason::Interrupted)));
        assert!(delivery.attempts.is_empty());
        assert!(!world.store.summary(hook.uid).unwrap().test_sent, "nobody knows whether it was");
    }
    world.succeed(&hook, test).await;
    assert_eq!(world.store.delivery(test).await.unwrap().unwrap().state, State::Failed);
}

pub(in crate::store) async fn a_webhook_is_adopted_with_its_numbers_once(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let seed = Summary { failure_count: 7, success_count: 3, pending: 5, ..Summary::new(hook.clone()) };
    world.store.adopt(seed.clone()).await.unwrap();
    let adopted = Summary { pending: 0, ..seed.clone() };
    assert_eq!(*world.store.summary(hook.uid).unwrap(), adopted, "nothing is pending that was not appended");
    world.store.adopt(Summary { failure_count: 100, ..seed.clone() }).await.unwrap();
    world.reopen().await;
    assert_eq!(*world.store.summary(hook.uid).unwrap(), adopted);
    let renamed = crate::model::ids::WebhookRef { name: "other".into(), ..hook.clone() };
    world.store.adopt(Summary::new(renamed.clone())).await.unwrap();
    world.reopen().await;
    assert_eq!(*world.store.summary(hook.uid).unwrap(), Summary { webhook: renamed, ..adopted });
}

pub(in crate::store) async fn a_webhook_is_disabled_and_enabled(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    world.claim(&hook, 1).await;
    world.fail(&hook, appended[0]).await;
    let disabled = Disabled { generation: 4, at: world.now, reason: DisableReason::Failing };
    world.store.update(hook.uid, Change::Disable(disabled.clone())).await.unwrap();
    world.reopen().await;
    assert_eq!(world.store.summary(hook.uid).unwrap().disabled, Some(disabled));
    world.store.update(hook.uid, Change::Enable).await.unwrap();
    world.reopen().await;
    let summary = world.store.summary(hook.uid).unwrap();
    assert_eq!((&summary.disabled, summary.consecutive_failures, summary.failing_since), (&None, 0, None));
    assert_eq!(summary.failure_count, 1, "what happened stays counted");
    assert!(summary.failed_since_success, "only a success says that the endpoint is well");
    world.store.update(webhook("team-a", 9).uid, Change::Enable).await.unwrap();
    assert_eq!(world.store.known().len(), 1);
}

pub(in crate::store) async fn what_only_ever_retried_is_not_well_once_enabled(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    world.claim(&hook, 1).await;
    world.retry(&hook, appended[0], Duration::from_secs(1)).await;
    assert!(!world.store.summary(hook.uid).unwrap().failed_since_success);
    world.store.update(hook.uid, Change::Enable).await.unwrap();
    world.reopen().await;
    let summary = world.store.summary(hook.uid).unwrap();
    assert_eq!((summary.consecutive_failures, summary.failed_since_success), (0, true));
}

pub(in crate::store) async fn an_outcome_can_disable(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    world.claim(&hook, 1).await;
    let disabled = Disabled { generation: 1, at: world.now, reason: DisableReason::Gone };
    let mut gone = world.outcome(&hook, appended[0], Next::Failed(EndReason::Gone));
    gone.disable = Some(disabled.clone());
    world.store.record(vec![gone]).await.unwrap();
    assert_eq!(world.store.summary(hook.uid).unwrap().disabled, Some(disabled));
    assert_eq!(world.store.delivery(appended[0]).await.unwrap().unwrap().reason, Some(EndReason::Gone));
}

pub(in crate::store) async fn the_last_fifty_attempts_are_kept(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    let began = world.now;
    for _ in 0..60 {
        assert_eq!(world.claim(&hook, 1).await, appended);
        world.retry(&hook, appended[0], Duration::from_secs(1)).await;
        world.pass(Duration::from_secs(1));
    }
    let attempts = world.store.delivery(appended[0]).await.unwrap().unwrap().attempts;
    assert_eq!(attempts.len(), 50);
    assert_eq!(attempts[0].at, began + Duration::from_secs(10));
    assert_eq!(attempts[49].at, began + Duration::from_secs(59));
}
