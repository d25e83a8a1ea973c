//! Claiming.

use std::collections::HashSet;
use std::time::Duration;

use super::{LEASE, TICK, World, names, webhook};
use crate::model::ids::DeliveryName;
use crate::store::records::{Claimed, State};
use crate::store::{ClaimRequest, Error, Order, Tried};

const SECOND: Duration = Duration::from_secs(1);

pub(in crate::store) async fn what_is_appended_is_claimed_oldest_first(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let mut appended = Vec::new();
    for _ in 0..5 {
        appended.extend(world.accept(&[&hook]).await);
        world.pass(SECOND);
    }
    let first = world.claims(&hook, 3).await;
    assert_eq!(names(&first), appended[..3]);
    assert_eq!(first.next_due, Some(appended[3].accepted_at()), "the limit cut the list");
    let rest = world.claims(&hook, 3).await;
    assert_eq!(names(&rest), appended[3..]);
    assert_eq!(rest.next_due, None, "nothing else waits");
}

pub(in crate::store) async fn an_event_goes_to_each_of_its_webhooks_and_to_no_other(world: World<'_>) {
    let [a, b, c] = [1, 2, 3].map(|number| webhook("team-a", number));
    let event = world.event(&[&a, &b]);
    let expected: Vec<_> = event.deliveries.iter().map(|delivery| delivery.name).collect();
    world.store.append(vec![event.clone()]).await.unwrap();
    for (hook, name) in [&a, &b].into_iter().zip(expected) {
        let claims = world.claims(hook, 10).await;
        let [Claimed { delivery, event: sent }] = &claims.deliveries[..] else { panic!("{claims:?}") };
        assert_eq!((delivery.name, &delivery.webhook), (name, hook));
        assert_eq!((delivery.state, delivery.due), (State::Pending, Some(world.now)));
        assert_eq!((&sent.data, &sent.attributes, sent.uid), (&event.data, &event.attributes, event.uid));
    }
    assert_eq!(world.claim(&c, 10).await, []);
}

pub(in crate::store) async fn a_delivery_is_claimed_by_one_only(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    assert_eq!(world.claim(&hook, 10).await, appended);
    assert_eq!(world.claim(&hook, 10).await, []);
    assert_eq!(world.look(&hook, Tried::Never).await, []);
}

pub(in crate::store) async fn what_is_claimed_or_tested_is_under_way(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let name = world.accept(&[&hook]).await[0];
    let is_under_way = |name| world.store.is_under_way(hook.uid, name);
    assert!(!is_under_way(name), "it waits");
    world.claim(&hook, 1).await;
    assert!(is_under_way(name));
    world.retry(&hook, name, Duration::ZERO).await;
    assert!(!is_under_way(name), "it waits again");
    assert_eq!(world.look(&hook, Tried::Never).await, [name]);
    assert!(is_under_way(name), "singled out");
    world.store.release(vec![(hook.uid, name)]).await.unwrap();
    assert!(!is_under_way(name), "given back");
    let test = world.accept_test(&hook).await;
    assert!(is_under_way(test));
    world.succeed(&hook, test).await;
    assert!(!is_under_way(test));
}

pub(in crate::store) async fn concurrent_claimants_never_share_a_delivery(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let events: Vec<_> = (0..500).map(|_| world.event(&[&hook])).collect();
    world.store.append(events).await.unwrap();
    let claimants =
        (0..20).map(|_| async { [world.claim(&hook, 7).await, world.claim(&hook, 30).await].concat() });
    let claimed = futures::future::join_all(claimants).await.concat();
    let distinct: HashSet<_> = claimed.iter().collect();
    assert_eq!((claimed.len(), distinct.len()), (500, 500));
}

pub(in crate::store) async fn a_claim_that_expires_is_free_again(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    world.claim(&hook, 1).await;
    world.pass(LEASE.saturating_sub(TICK));
    assert_eq!(world.claim(&hook, 1).await, []);
    world.pass(TICK);
    assert_eq!(world.claim(&hook, 1).await, appended);
    assert_eq!(world.claim(&hook, 1).await, []);
}

pub(in crate::store) async fn a_claim_that_is_released_is_free_again_and_wakes(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    world.claim(&hook, 1).await;
    world.store.work().take();
    world.store.release(vec![(hook.uid, appended[0])]).await.unwrap();
    assert_eq!(world.store.work().take(), [hook.uid]);
    assert_eq!(world.claim(&hook, 1).await, appended);
}

pub(in crate::store) async fn opening_releases_earlier_claims(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    world.claim(&hook, 1).await;
    world.reopen().await;
    assert_eq!(world.store.work().take(), [hook.uid]);
    assert_eq!(world.claim(&hook, 1).await, appended);
}

pub(in crate::store) async fn a_retry_is_claimed_when_it_is_due_and_not_before(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    world.claim(&hook, 1).await;
    world.retry(&hook, appended[0], 10 * SECOND).await;
    for reopened in [false, true] {
        if reopened {
            world.reopen().await;
        }
        let early = world.claims(&hook, 10).await;
        assert_eq!((names(&early), early.next_due), (vec![], Some(appended[0].accepted_at() + 10 * SECOND)));
        world.pass(5 * SECOND);
    }
    let claims = world.claims(&hook, 10).await;
    assert_eq!(names(&claims), appended);
    let delivery = &claims.deliveries[0].delivery;
    assert_eq!((delivery.state, delivery.retry_count(), delivery.attempts.len()), (State::Retrying, 0, 1));
    assert_eq!(delivery.attempts[0].status, Some(503));
}

pub(in crate::store) async fn what_is_due_longest_goes_first_retries_and_first_attempts_alike(
    mut world: World<'_>,
) {
    let hook = webhook("team-a", 1);
    let mut appended = Vec::new();
    for _ in 0..3 {
        appended.extend(world.accept(&[&hook]).await);
    }
    world.claim(&hook, 3).await;
    for (name, after) in appended.iter().zip([30, 10, 20]) {
        world.retry(&hook, *name, after * SECOND).await;
    }
    world.pass(15 * SECOND);
    let fresh = world.accept(&[&hook]).await;
    world.pass(60 * SECOND);
    let expected = [appended[1], fresh[0], appended[2], appended[0]];
    assert_eq!(world.claim(&hook, 10).await, expected);
    world.reopen().await;
    assert_eq!(world.claim(&hook, 10).await, expected);
}

pub(in crate::store) async fn more_than_memory_holds_is_claimed_in_order_all_the_same(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let mut appended = Vec::new();
    for round in 0..6 {
        let events: Vec<_> = (0..500).map(|_| world.event(&[&hook])).collect();
        appended.extend(events.iter().map(|event| event.deliveries[0].name));
        world.store.append(events).await.unwrap();
        if round == 2 {
            world.reopen().await;
        }
    }
    let mut claimed: Vec<DeliveryName> = Vec::new();
    loop {
        let some = world.claim(&hook, 77).await;
        if some.is_empty() {
            break;
        }
        if claimed.len() < 1000 {
            let (done, back) = some.split_at(some.len() / 2);
            let outcomes = done.iter().map(|name| world.outcome(&hook, *name, crate::store::Next::Success));
            world.store.record(outcomes.collect()).await.unwrap();
            world.store.release(back.iter().map(|name| (hook.uid, *name)).collect()).await.unwrap();
            claimed.extend(done);
        } else {
            claimed.extend(some);
        }
    }
    assert_eq!(claimed.len(), appended.len());
    assert_eq!(claimed, appended);
}

/// Of six, three are to be tried again after so many seconds; the names of all.
async fn some_tried(world: &mut World<'_>, after: u32) -> Vec<DeliveryName> {
    let hook = webhook("team-a", 1);
    let mut appended = Vec::new();
    for _ in 0..6 {
        appended.extend(world.accept(&[&hook]).await);
        world.pass(TICK);
    }
    assert_eq!(world.claim(&hook, 3).await, appended[..3]);
    for name in &appended[..3] {
        world.retry(&hook, *name, after * SECOND).await;
        world.pass(TICK);
    }
    appended
}

pub(in crate::store) async fn first_attempts_and_retries_are_claimed_in_turn(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let all = some_tried(&mut world, 5).await;
    let (tried, fresh) = all.split_at(3);
    let pick = |order: &[(bool, usize)]| -> Vec<DeliveryName> {
        order.iter().map(|(was_tried, at)| if *was_tried { tried[*at] } else { fresh[*at] }).collect()
    };
    let give_back = async |world: &World<'_>| {
        world.store.release(all.iter().map(|name| (hook.uid, *name)).collect()).await.unwrap();
    };
    for (seconds, first, expected) in [
        (0_u32, Tried::Before, fresh.to_vec()),
        (0, Tried::Never, fresh.to_vec()),
        (10, Tried::Before, pick(&[(true, 0), (false, 0), (true, 1), (false, 1), (true, 2)])),
        (0, Tried::Never, pick(&[(false, 0), (true, 0), (false, 1), (true, 1), (false, 2)])),
    ] {
        world.pass(seconds * SECOND);
        for _ in 0..2 {
            assert_eq!(world.ordered(&hook, 5, Order::InTurn { first }).await, expected);
            give_back(&world).await;
            world.reopen().await;
        }
    }
}

pub(in crate::store) async fn a_look_takes_one_before_its_time_when_none_is_due(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let all = some_tried(&mut world, 60).await;
    let [x, y, _, a, _, _] = all[..] else { panic!("{all:?}") };
    for _ in 0..2 {
        assert_eq!(world.look(&hook, Tried::Never).await, [a]);
        world.store.release(vec![(hook.uid, a)]).await.unwrap();
        assert_eq!(world.look(&hook, Tried::Before).await, [x], "its last attempt is longest ago");
        world.store.release(vec![(hook.uid, x)]).await.unwrap();
        world.reopen().await;
    }
    assert_eq!(world.look(&hook, Tried::Before).await, [x]);
    world.pass(SECOND);
    world.retry(&hook, x, 30 * SECOND).await;
    assert_eq!(world.look(&hook, Tried::Before).await, [y], "not the same again, though it is due sooner");
    world.store.release(vec![(hook.uid, y)]).await.unwrap();
    world.pass(31 * SECOND);
    assert_eq!(world.look(&hook, Tried::Before).await, [x], "what is due goes first");
    let rest = [world.claim(&hook, 10).await, world.look(&hook, Tried::Never).await].concat();
    assert_eq!(rest.len(), 4, "the look takes one that was tried, when no other is left");
    assert_eq!(world.look(&webhook("team-a", 2), Tried::Before).await, [], "of another Webhook");
}

pub(in crate::store) async fn what_failed_between_two_times_is_claimed_early_once(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let from = world.now;
    let all = some_tried(&mut world, 3600).await;
    let order = Order::Early { from, to: world.now };
    assert_eq!(world.ordered(&hook, 2, order).await, all[..2]);
    for name in &all[..2] {
        world.retry(&hook, *name, 3600 * SECOND).await;
    }
    assert_eq!(world.ordered(&hook, 2, order).await, all[2..3]);
    assert_eq!(world.ordered(&hook, 2, order).await, [], "each once, and none that was never tried");
    let later = Order::Early { from: world.now, to: world.now + SECOND };
    assert_eq!(world.ordered(&hook, 9, later).await, all[..2]);
}

pub(in crate::store) async fn the_oldest_due_is_known_whether_claimed_or_not(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    assert_eq!(world.store.oldest_due(hook.uid), None);
    let began = world.now;
    let first = world.accept(&[&hook]).await;
    world.pass(5 * SECOND);
    world.accept(&[&hook]).await;
    assert_eq!(world.store.oldest_due(hook.uid), Some(began));
    world.claim(&hook, 1).await;
    assert_eq!(world.store.oldest_due(hook.uid), Some(began), "claimed");
    world.reopen().await;
    assert_eq!(world.store.oldest_due(hook.uid), Some(began), "from disk");
    world.retry(&hook, first[0], 60 * SECOND).await;
    assert_eq!(world.store.oldest_due(hook.uid), Some(began + 5 * SECOND));
    let second = world.claim(&hook, 1).await;
    world.succeed(&hook, second[0]).await;
    assert_eq!(world.store.oldest_due(hook.uid), Some(began + 65 * SECOND));
    world.fail(&hook, first[0]).await;
    assert_eq!(world.store.oldest_due(hook.uid), None);
}

pub(in crate::store) async fn work_names_the_webhooks_that_may_have_something_to_claim(mut world: World<'_>) {
    let [a, b] = [1, 2].map(|number| webhook("team-a", number));
    let appended = world.accept(&[&a, &b]).await;
    let woken: HashSet<_> = world.store.work().take().into_iter().collect();
    assert_eq!(woken, HashSet::from([a.uid, b.uid]));
    world.claim(&a, 1).await;
    world.retry(&a, appended[0], SECOND).await;
    assert_eq!(world.store.work().take(), [a.uid]);
    world.claim(&b, 1).await;
    world.succeed(&b, appended[1]).await;
    assert_eq!(world.store.work().take(), []);
    world.reopen().await;
    assert_eq!(world.store.work().take(), [a.uid]);
    let changed = || world.store.changes().take();
    changed();
    world.accept(&[&b]).await;
    assert_eq!(changed(), [b.uid]);
}

pub(in crate::store) async fn a_clock_that_is_set_back_hides_no_first_attempt(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let mut appended = world.accept(&[&hook]).await;
    world.now = world.now - 3600 * SECOND;
    appended.extend(world.accept(&[&hook]).await);
    assert_eq!(world.claim(&hook, 10).await, appended);
    world.reopen().await;
    let claims = world.claims(&hook, 1).await;
    assert_eq!(names(&claims), appended[..1]);
    assert!(claims.next_due.unwrap() <= world.now);
}

pub(in crate::store) async fn tests_are_never_claimed(world: World<'_>) {
    let hook = webhook("team-a", 1);
    world.accept_test(&hook).await;
    let real = world.accept(&[&hook]).await;
    let all = ClaimRequest { limit: 10, ..world.request(&hook, 10) };
    assert_eq!(names(&world.store.claim(all).await.unwrap()), real);
    assert_eq!(world.look(&hook, Tried::Before).await, []);
}

pub(in crate::store) async fn a_closed_store_refuses_and_an_opened_one_has_everything(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let appended = world.accept(&[&hook]).await;
    let closed = std::sync::Arc::clone(&world.store);
    world.reopen().await;
    assert!(matches!(closed.append(vec![world.event(&[&hook])]).await, Err(Error::Closed)));
    assert!(matches!(closed.accepting(), Err(Error::Closed)));
    assert!(matches!(closed.claim(world.request(&hook, 1)).await, Err(Error::Closed)));
    assert!(matches!(closed.delivery(appended[0]).await, Err(Error::Closed)));
    assert!(matches!(closed.record(vec![]).await, Err(Error::Closed)));
    assert!(matches!(closed.close().await, Err(Error::Closed)));
    world.store.accepting().unwrap();
    assert_eq!(world.claim(&hook, 10).await, appended);
}
