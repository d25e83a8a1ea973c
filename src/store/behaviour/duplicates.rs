//! The same event twice.

use super::{TICK, WINDOW, World, webhook};
use crate::store::{Appended, Query};

pub(in crate::store) async fn a_duplicate_is_answered_with_the_first_id_and_stores_nothing(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let first = world.keyed(7, &[&hook]);
    let (uid, key) = (first.uid, first.dedup.unwrap());
    assert_eq!(world.store.duplicate_of("team-a", key, world.now).unwrap(), None);
    world.store.append(vec![first]).await.unwrap();
    assert_eq!(world.store.duplicate_of("team-a", key, world.now).unwrap(), Some(uid));
    let answer = world.store.append(vec![world.keyed(7, &[&hook]), world.keyed(8, &[&hook])]).await.unwrap();
    assert_eq!(answer, [Appended::Duplicate(uid), Appended::New]);
    assert_eq!(world.find(Query { limit: 10, ..Query::default() }).await.len(), 2);
    assert_eq!(world.store.summary(hook.uid).unwrap().pending, 2);
}

pub(in crate::store) async fn a_duplicate_in_the_same_call_is_one_of_the_first_in_it(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let first = world.keyed(7, &[&hook]);
    let uid = first.uid;
    let answer =
        world.store.append(vec![first, world.keyed(7, &[&hook]), world.event(&[&hook])]).await.unwrap();
    assert_eq!(answer, [Appended::New, Appended::Duplicate(uid), Appended::New]);
    assert_eq!(world.store.summary(hook.uid).unwrap().pending, 2);
}

pub(in crate::store) async fn of_many_at_once_one_is_new(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let calls = (0..50).map(|_| world.store.append(vec![world.keyed(7, &[&hook])]));
    let answers = futures::future::try_join_all(calls).await.unwrap().concat();
    let new = answers.iter().filter(|answer| **answer == Appended::New).count();
    let first = answers.iter().find_map(|answer| match answer {
        Appended::Duplicate(uid) => Some(*uid),
        Appended::New => None,
    });
    assert_eq!(new, 1);
    assert!(
        answers
            .iter()
            .all(|answer| *answer == Appended::New || *answer == Appended::Duplicate(first.unwrap()))
    );
    assert_eq!(world.store.summary(hook.uid).unwrap().pending, 1);
}

pub(in crate::store) async fn a_duplicate_is_known_after_reopening(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let first = world.keyed(7, &[&hook]);
    let uid = first.uid;
    world.store.append(vec![first]).await.unwrap();
    world.reopen().await;
    world.pass(WINDOW.saturating_sub(TICK));
    assert_eq!(world.store.append(vec![world.keyed(7, &[&hook])]).await.unwrap(), [Appended::Duplicate(uid)]);
}

pub(in crate::store) async fn the_same_key_after_the_window_is_new(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    for _ in 0..6 {
        let first = world.keyed(7, &[&hook]);
        let uid = first.uid;
        assert_eq!(world.store.append(vec![first]).await.unwrap(), [Appended::New]);
        world.pass(WINDOW.saturating_sub(TICK));
        // Others, so that whatever forgets old keys has reason to.
        assert_eq!(world.store.append(vec![world.keyed(9, &[&hook])]).await.unwrap().len(), 1);
        assert_eq!(
            world.store.append(vec![world.keyed(7, &[&hook])]).await.unwrap(),
            [Appended::Duplicate(uid)]
        );
        world.pass(TICK);
        assert_eq!(world.store.duplicate_of("team-a", super::DedupKey([7; 16]), world.now).unwrap(), None);
    }
}

pub(in crate::store) async fn an_event_that_nobody_wants_leaves_nothing(mut world: World<'_>) {
    let unwanted = world.keyed(7, &[]);
    let (uid, key) = (unwanted.uid, unwanted.dedup.unwrap());
    assert_eq!(world.store.append(vec![unwanted, world.keyed(7, &[])]).await.unwrap(), [Appended::New; 2]);
    world.reopen().await;
    assert_eq!(world.store.event(uid).await.unwrap(), None);
    let hook = webhook("team-a", 1);
    world.accept(&[&hook]).await;
    assert_eq!(world.store.duplicate_of("team-a", key, world.now).unwrap(), None);
    let wanted = world.keyed(7, &[&hook]);
    let first = wanted.uid;
    let all = vec![world.keyed(7, &[]), wanted, world.keyed(7, &[]), world.keyed(7, &[&hook])];
    let [unwanted, wanted, again @ ..] = &world.store.append(all).await.unwrap()[..] else { unreachable!() };
    assert_eq!([unwanted, wanted], [&Appended::New; 2], "it is somebody's first");
    assert_eq!(again, [Appended::Duplicate(first); 2]);
}
