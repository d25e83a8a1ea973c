//! Erasing a Webhook.

use std::time::Duration;

use super::{World, webhook};
use crate::store::records::{Next, Summary};
use crate::store::{Appended, Query};

const SECOND: Duration = Duration::from_secs(1);

pub(in crate::store) async fn a_purge_leaves_nothing_and_others_untouched(mut world: World<'_>) {
    let [gone, other] = [1, 2].map(|number| webhook("team-a", number));
    let mut events = Vec::new();
    let mut kept = Vec::new();
    for hook in [&gone, &other] {
        for outcome in [None, Some(Next::Success), Some(Next::Retry(world.now + SECOND))] {
            let event = world.event(&[hook]);
            let name = event.deliveries[0].name;
            events.push((event.uid, hook.uid));
            world.store.append(vec![event]).await.unwrap();
            if let Some(next) = outcome {
                world.record(hook, name, next).await;
            }
            kept.push((name, hook.uid));
        }
        world.accept_test(hook).await;
    }
    let before = world.store.summary(other.uid);
    world.store.purge(gone.uid).await.unwrap();
    for reopened in [false, true] {
        assert_eq!(world.store.summary(gone.uid), None);
        assert_eq!(world.store.known(), std::slice::from_ref(&other));
        assert_eq!(world.store.summary(other.uid), before);
        assert_eq!(world.store.oldest_due(gone.uid), None);
        for (event, hook) in &events {
            assert_eq!(world.store.event(*event).await.unwrap().is_some(), *hook == other.uid);
        }
        for (name, hook) in &kept {
            assert_eq!(world.store.delivery(*name).await.unwrap().is_some(), *hook == other.uid);
        }
        let all = world.store.query(Query { limit: 100, ..Query::default() }).await.unwrap();
        assert_eq!(all.deliveries.len(), 4);
        assert_eq!(world.claim(&gone, 10).await, []);
        if !reopened {
            world.reopen().await;
        }
    }
    world.pass(SECOND);
    assert_eq!(world.claim(&other, 10).await.len(), 2);
}

pub(in crate::store) async fn a_shared_event_lives_until_its_last_delivery_is_purged(world: World<'_>) {
    let hooks = [1, 2, 3].map(|number| webhook("team-a", number));
    let event = world.event(&[&hooks[0], &hooks[1], &hooks[2]]);
    let uid = event.uid;
    world.store.append(vec![event]).await.unwrap();
    for hook in &hooks {
        assert!(world.store.event(uid).await.unwrap().is_some());
        world.store.purge(hook.uid).await.unwrap();
    }
    assert_eq!(world.store.event(uid).await.unwrap(), None);
}

pub(in crate::store) async fn a_claimed_delivery_that_is_purged_is_not_recorded(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    world.claim(&hook, 1).await;
    world.store.purge(hook.uid).await.unwrap();
    world.succeed(&hook, appended[0]).await;
    world.store.release(vec![(hook.uid, appended[0])]).await.unwrap();
    assert_eq!(world.store.delivery(appended[0]).await.unwrap(), None);
    assert_eq!(world.store.known(), []);
    world.store.purge(hook.uid).await.unwrap();
}

pub(in crate::store) async fn a_purge_of_many_lets_others_go_between(world: World<'_>) {
    let [many, other] = [1, 2].map(|number| webhook("team-a", number));
    let events: Vec<_> = (0..3000).map(|_| world.event(&[&many])).collect();
    world.store.append(events).await.unwrap();
    let appended = async {
        let mut names = Vec::new();
        for _ in 0..20 {
            names.extend(world.accept(&[&other]).await);
        }
        names
    };
    let (purged, names) = tokio::join!(world.store.purge(many.uid), appended);
    purged.unwrap();
    assert_eq!(world.store.known(), std::slice::from_ref(&other));
    assert_eq!(world.find(Query { limit: 7, ..Query::default() }).await.len(), 20);
    assert_eq!(world.claim(&other, 100).await, names);
}

pub(in crate::store) async fn a_purged_webhook_can_come_back_and_starts_from_nothing(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let old = world.accept(&[&hook]).await;
    world.claim(&hook, 1).await;
    world.fail(&hook, old[0]).await;
    world.store.purge(hook.uid).await.unwrap();
    let event = world.event(&[&hook]);
    let (name, bytes) = (event.deliveries[0].name, event.data.len() as u64);
    assert_eq!(world.store.append(vec![event]).await.unwrap(), [Appended::New]);
    let expected = Summary { pending: 1, pending_bytes: bytes, ..Summary::new(hook.clone()) };
    assert_eq!(*world.store.summary(hook.uid).unwrap(), expected);
    assert_eq!(world.claim(&hook, 10).await, [name]);
    world.reopen().await;
    assert_eq!(world.claim(&hook, 10).await, [name]);
    assert_eq!(world.find(Query { limit: 7, ..Query::default() }).await, [name]);
}
