//! Erasing an event's payload and answers.

use super::{World, webhook};
use crate::model::ids::DeliveryName;
use crate::store::Tried;
use crate::store::records::{EndReason, Expunge, Expunged, Next, State};

impl World<'_> {
    async fn expunge(&self, namespace: &str, name: DeliveryName) -> Expunged {
        let expunge = Expunge { name, namespace: namespace.into(), by: "jane".into(), at: self.now };
        self.store.expunge(expunge).await.unwrap()
    }
}

pub(in crate::store) async fn an_expunged_event_is_gone_with_all_its_answers(mut world: World<'_>) {
    let hooks = [1, 2, 3].map(|number| webhook("team-a", number));
    let event = world.event(&[&hooks[0], &hooks[1], &hooks[2]]);
    let (uid, names) = (event.uid, event.deliveries.iter().map(|new| new.name).collect::<Vec<_>>());
    let other = world.accept(&[&hooks[0]]).await[0];
    world.store.append(vec![event]).await.unwrap();
    for (hook, name) in hooks.iter().zip(&names) {
        world.fail(hook, *name).await;
    }
    assert_eq!(world.expunge("team-a", names[1]).await, Expunged::Done { deliveries: 3, ended: 0 });
    for _ in 0..2 {
        assert_eq!(world.store.event(uid).await.unwrap(), None);
        for name in &names {
            let line = world.store.delivery(*name).await.unwrap().unwrap();
            let asked = line.expunged.unwrap();
            assert_eq!((&*asked.by, asked.at), ("jane", world.now));
            assert_eq!((line.state, line.reason), (State::Failed, Some(EndReason::RetriesExhausted)));
            assert_eq!((line.attempts[0].status, &line.attempts[0].body), (Some(503), &None));
            assert_eq!(line.event_source, None, "it goes with the event");
        }
        let other = world.store.delivery(other).await.unwrap().unwrap();
        assert_eq!((other.expunged, other.event_source.as_deref()), (None, Some("/shop")));
        world.reopen().await;
    }
    assert_eq!(world.expunge("team-a", names[0]).await, Expunged::Done { deliveries: 0, ended: 0 });
}

pub(in crate::store) async fn what_is_unfinished_ends_and_is_never_sent(mut world: World<'_>) {
    let hooks = [1, 2, 3].map(|number| webhook("team-a", number));
    let names = world.accept(&[&hooks[0], &hooks[1], &hooks[2]]).await;
    world.claim(&hooks[0], 1).await;
    world.claim(&hooks[1], 1).await;
    world.record(&hooks[1], names[1], Next::Retry(world.now)).await;
    let test = world.accept_test(&hooks[0]).await;
    assert_eq!(world.expunge("team-a", names[0]).await, Expunged::Done { deliveries: 3, ended: 3 });
    assert_eq!(world.expunge("team-a", test).await, Expunged::Done { deliveries: 1, ended: 1 });
    // The attempt that was under way comes to its end.
    world.succeed(&hooks[0], names[0]).await;
    world.succeed(&hooks[0], test).await;
    world.store.release(vec![(hooks[0].uid, names[0])]).await.unwrap();
    for _ in 0..2 {
        for (hook, name) in hooks.iter().zip(&names) {
            assert_eq!(world.claim(hook, 1).await, []);
            assert_eq!(world.look(hook, Tried::Before).await, []);
            let line = world.store.delivery(*name).await.unwrap().unwrap();
            assert_eq!((line.state, line.reason, line.due), (State::Failed, Some(EndReason::Expunged), None));
            let summary = world.store.summary(hook.uid).unwrap();
            assert_eq!((summary.pending, summary.pending_bytes, summary.failure_count), (0, 0, 1));
            assert_eq!(world.store.oldest_due(hook.uid), None);
        }
        let test = world.store.delivery(test).await.unwrap().unwrap();
        assert_eq!((test.state, test.reason), (State::Failed, Some(EndReason::Expunged)));
        world.reopen().await;
    }
}

pub(in crate::store) async fn only_those_of_the_namespace_can_expunge(world: World<'_>) {
    let hook = webhook("team-a", 1);
    let name = world.accept(&[&hook]).await[0];
    assert_eq!(world.expunge("team-b", name).await, Expunged::NotFound);
    assert_eq!(world.expunge("team-a", world.minter.delivery(world.now)).await, Expunged::NotFound);
    assert_eq!(world.claim(&hook, 1).await, [name]);
}
