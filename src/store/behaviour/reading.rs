//! The log.

use std::time::Duration;

use bytes::Bytes;

use super::{World, webhook};
use crate::model::ids::{DeliveryName, EventUid};
use crate::store::records::{Event, State};
use crate::store::{Page, Query};

pub(in crate::store) async fn a_delivery_and_its_event_are_read_as_they_were_written(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let bodies = [Bytes::new(), Bytes::from_static(b"\0\xff"), vec![7; 100].into(), vec![8; 1 << 20].into()];
    let mut written = Vec::new();
    for data in bodies {
        let event = crate::store::NewEvent { data, ..world.event(&[&hook]) };
        world.store.append(vec![event.clone()]).await.unwrap();
        written.push(event);
    }
    for reopened in [false, true] {
        for event in &written {
            let read = world.store.event(event.uid).await.unwrap().unwrap();
            let expected = Event {
                uid: event.uid,
                namespace: event.namespace.clone(),
                accepted_at: event.accepted_at,
                attributes: event.attributes.clone(),
                data: event.data.clone(),
            };
            assert!(*read == expected);
            let delivery = world.store.delivery(event.deliveries[0].name).await.unwrap().unwrap();
            assert_eq!((&delivery.webhook, delivery.event), (&hook, event.uid));
            assert_eq!(
                (&delivery.event_id, &delivery.event_type),
                (&event.attributes.id, &event.attributes.event_type)
            );
            assert_eq!((delivery.state, delivery.accepted_at), (State::Pending, event.accepted_at));
        }
        if !reopened {
            world.reopen().await;
        }
    }
    assert_eq!(world.store.delivery(DeliveryName::from_bytes([1; 16])).await.unwrap(), None);
    assert_eq!(world.store.event(EventUid::from_bytes([1; 16])).await.unwrap(), None);
}

pub(in crate::store) async fn pages_go_from_the_newest_to_the_oldest(mut world: World<'_>) {
    let [a, b] = [webhook("team-a", 1), webhook("team-b", 2)];
    let mut all = Vec::new();
    for _ in 0..10 {
        all.extend(world.accept(&[&a]).await);
        all.extend(world.accept(&[&b]).await);
        world.pass(Duration::from_secs(1));
    }
    all.reverse();
    for limit in [1, 3, 20, 100] {
        assert_eq!(world.find(Query { limit, ..Query::default() }).await, all);
        let of_a = Query { limit, namespace: Some("team-a".into()), ..Query::default() };
        let expected: Vec<_> = all.iter().skip(1).step_by(2).copied().collect();
        assert_eq!(world.find(of_a).await, expected);
    }
    let page = world.store.query(Query { limit: 5, before: Some(all[4]), ..Query::default() }).await.unwrap();
    let names: Vec<_> = page.deliveries.iter().map(|delivery| delivery.name).collect();
    assert_eq!((names, page.next), (all[5..10].to_vec(), Some(all[9])));
}

pub(in crate::store) async fn deliveries_are_found_by_the_id_of_their_event(mut world: World<'_>) {
    let [a, b, other] = [webhook("team-a", 1), webhook("team-a", 2), webhook("team-b", 3)];
    let with_id = |world: &World<'_>, id: &str, hooks: &[&crate::model::ids::WebhookRef]| {
        let mut event = world.event(hooks);
        let attributes = crate::model::event::Attributes { id: id.into(), ..(*event.attributes).clone() };
        event.attributes = std::sync::Arc::new(attributes);
        event
    };
    let (mut expected, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..4 {
        let events = [("1", vec![&a, &b]), ("2", vec![&a]), ("1", vec![&other]), ("", vec![&a])];
        for (id, hooks) in events {
            let event = with_id(&world, id, &hooks);
            let names = event.deliveries.iter().map(|delivery| delivery.name);
            match (id, hooks.len()) {
                ("1", 2) => expected.extend(names),
                ("1", 1) => theirs.extend(names),
                _ => {}
            }
            world.store.append(vec![event]).await.unwrap();
        }
        if round == 1 {
            world.succeed(&a, expected[0]).await;
            world.reopen().await;
        }
        world.pass(Duration::from_secs(1));
    }
    let newest_first = |names: &[DeliveryName]| names.iter().rev().copied().collect::<Vec<_>>();
    let query = Query { event_id: Some("1".into()), limit: 3, ..Query::default() };
    let here = Query { namespace: Some("team-a".into()), ..query.clone() };
    assert_eq!(world.find(here.clone()).await, newest_first(&expected));
    let everywhere =
        [expected.clone(), theirs].concat().into_iter().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(world.find(query.clone()).await, newest_first(&everywhere.into_iter().collect::<Vec<_>>()));
    let done = Query { states: vec![State::Success], ..here.clone() };
    assert_eq!(world.find(done).await, [expected[0]]);
    let of_b = Query { webhook: Some(b.uid), ..here.clone() };
    assert_eq!(world.find(of_b).await, newest_first(&[expected[1], expected[3], expected[5], expected[7]]));
    world.store.purge(b.uid).await.unwrap();
    assert_eq!(world.find(here).await.len(), 4);
    assert_eq!(world.find(Query { event_id: Some("3".into()), ..query }).await, []);
}

pub(in crate::store) async fn a_query_of_something_unknown_is_an_empty_page(world: World<'_>) {
    let hook = webhook("team-a", 1);
    world.accept(&[&hook]).await;
    let nothing = |page: Page| page.deliveries.is_empty() && page.next.is_none();
    for query in [
        Query { namespace: Some("team-b".into()), ..Query::default() },
        Query { webhook: Some(webhook("team-a", 2).uid), ..Query::default() },
        Query { namespace: Some("team-b".into()), webhook: Some(hook.uid), ..Query::default() },
        Query { states: vec![State::Failed], ..Query::default() },
        Query { before: Some(DeliveryName::from_bytes([0; 16])), ..Query::default() },
    ] {
        assert!(nothing(world.store.query(Query { limit: 10, ..query.clone() }).await.unwrap()), "{query:?}");
    }
}

pub(in crate::store) async fn every_call_that_returned_is_seen(world: World<'_>) {
    let hook = webhook("team-a", 1);
    for count in 1..=20 {
        let name = world.accept(&[&hook]).await[0];
        assert_eq!(world.store.summary(hook.uid).unwrap().pending, 1);
        let pending = Query { limit: 100, states: vec![State::Pending], ..Query::default() };
        assert_eq!(world.find(pending.clone()).await, [name]);
        assert_eq!(world.claim(&hook, 1).await, [name]);
        world.succeed(&hook, name).await;
        assert_eq!(world.store.summary(hook.uid).unwrap().success_count, count);
        assert_eq!(world.find(pending).await, []);
        let done = Query { limit: 100, states: vec![State::Success], ..Query::default() };
        assert_eq!(world.find(done).await[0], name);
    }
}
