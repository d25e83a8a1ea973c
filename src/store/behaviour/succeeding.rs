//! Webhooks and namespaces that are gone, and those that come after them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{QUOTA, World, names, webhook};
use crate::model::ids::{NamespaceUid, ReplayId, WebhookRef, WebhookUid};
use crate::store::records::{
    DisableReason, Disabled, Expunge, Expunged, NewEvent, Next, Redelivered, Redelivery, Summary, Usage,
};
use crate::store::{Appended, Change, NewReplay, Query, Selection, State, Tried};

const SECOND: Duration = Duration::from_secs(1);

/// A Webhook called `orders` in `team-a`.
fn orders(number: u8) -> WebhookRef {
    WebhookRef { name: "orders".into(), ..webhook("team-a", number) }
}

fn namespace(number: u8) -> NamespaceUid {
    NamespaceUid::from_bytes([number; 16])
}

impl World<'_> {
    async fn adopt_in(&self, hook: &WebhookRef, number: u8) {
        let namespace_uid = Some(namespace(number));
        self.store.adopt(Summary { namespace_uid, ..Summary::new(hook.clone()) }).await.unwrap();
    }

    /// One delivery of each kind: waiting, to be retried, arrived, failed.
    async fn fill(&self, hook: &WebhookRef) -> Vec<crate::model::ids::DeliveryName> {
        let mut all = Vec::new();
        for next in [None, Some(Next::Retry(self.now + SECOND)), Some(Next::Success)] {
            let name = self.accept(&[hook]).await[0];
            if let Some(next) = next {
                self.record(hook, name, next).await;
            }
            all.push(name);
        }
        let failed = self.accept(&[hook]).await[0];
        self.fail(hook, failed).await;
        all.push(failed);
        all
    }

    async fn log(&self) -> Vec<crate::store::Delivery> {
        self.store.query(Query { limit: 1000, ..Query::default() }).await.unwrap().deliveries
    }

    fn everything(&self) -> Selection {
        Selection {
            namespace: "team-a".into(),
            states: vec![State::Failed, State::Success],
            from: self.now + Duration::ZERO,
            to: self.now + Duration::from_hours(1),
            event_types: vec![],
            as_of: self.now + Duration::from_hours(1),
        }
    }

    async fn asks(&self, name: crate::model::ids::DeliveryName) -> (Redelivered, Expunged) {
        let redelivery = Redelivery { name, namespace: "team-a".into(), by: "jane".into(), at: self.now };
        let redelivered = self.store.redeliver(vec![redelivery]).await.unwrap()[0];
        let expunge = Expunge { name, namespace: "team-a".into(), by: "jane".into(), at: self.now };
        (redelivered, self.store.expunge(expunge).await.unwrap())
    }
}

pub(in crate::store) async fn what_is_gone_is_shown_sent_and_counted_for_nobody(mut world: World<'_>) {
    let (gone, other) = (orders(1), webhook("team-a", 2));
    for hook in [&gone, &other] {
        world.adopt_in(hook, 1).await;
    }
    let all = world.fill(&gone).await;
    let kept = world.fill(&other).await;
    let selection = world.everything();
    let under_way = world.claim(&gone, 1).await;
    world.pass(SECOND * 9);
    let (log, used) = (world.log().await, world.store.usage("team-a"));

    world.store.set_gone(gone.uid, true);
    let shown: Vec<_> = world.log().await.into_iter().map(|line| line.name).collect();
    assert!(shown.iter().all(|name| kept.contains(name)) && shown.len() == 4, "{shown:?}");
    for query in [
        Query { webhook: Some(gone.uid), ..Query::default() },
        Query { event_id: Some(log[7].event_id.clone()), ..Query::default() },
        Query { namespace: Some("team-a".into()), before: Some(kept[0]), ..Query::default() },
    ] {
        assert_eq!(world.find(Query { limit: 9, ..query }).await, []);
    }
    for name in &all {
        assert_eq!(world.store.delivery(*name).await.unwrap(), None);
        assert_eq!(world.asks(*name).await, (Redelivered::NotFound, Expunged::NotFound));
        assert_eq!(world.look(&gone, Tried::Before).await, [], "{name}");
    }
    assert_eq!(world.claim(&gone, 9).await, []);
    assert_eq!(world.store.oldest_due(gone.uid), None);
    assert_eq!(world.store.count_replay(selection.clone(), vec![gone.uid]).await.unwrap(), 0);
    assert_eq!(world.store.usage("team-a").pending_bytes, used.pending_bytes / 2);
    assert_eq!(world.store.known().len(), 2, "to be erased");

    // It is there again: nothing was lost, and what was under way has come to its end meanwhile.
    world.succeed(&gone, under_way[0]).await;
    world.store.set_gone(gone.uid, false);
    assert_eq!(world.log().await.len(), 8);
    assert_eq!(world.store.delivery(under_way[0]).await.unwrap().unwrap().state, State::Success);
    assert_eq!(world.store.count_replay(selection, vec![gone.uid]).await.unwrap(), 3);
    assert_eq!(world.claim(&gone, 9).await, [all[1]]);
}

pub(in crate::store) async fn what_waits_for_the_gone_takes_nobodys_quota(world: World<'_>) {
    let (gone, other) = (orders(1), webhook("team-a", 2));
    for hook in [&gone, &other] {
        world.adopt_in(hook, 1).await;
    }
    let large = Bytes::from(vec![0; usize::try_from(QUOTA).unwrap()]);
    world.store.append(vec![NewEvent { data: large, ..world.event(&[&gone]) }]).await.unwrap();
    world.store.append(vec![world.event(&[&other])]).await.unwrap_err();
    world.store.set_gone(gone.uid, true);
    world.accept(&[&other]).await;
    world.store.set_gone(gone.uid, false);
    world.store.append(vec![world.event(&[&other])]).await.unwrap_err();
}

pub(in crate::store) async fn a_namespace_made_anew_knows_nothing_of_the_former(mut world: World<'_>) {
    let [former, heir] = [1, 2].map(orders);
    world.adopt_in(&former, 1).await;
    world.fill(&former).await;
    let keyed = world.keyed(7, &[&former]);
    let (first, key) = (keyed.uid, keyed.dedup.unwrap());
    world.store.append(vec![keyed]).await.unwrap();
    let id = ReplayId::from_bytes([9; 16]);
    let selection =
        Selection { states: vec![State::Success], from: world.now + SECOND, ..world.everything() };
    let new = NewReplay { id, name: "night".into(), digest: vec![1], selection, webhooks: vec![former.uid] };
    world.store.begin_replay(new).await.unwrap();
    world.store.finish_replay(id, world.now).await.unwrap();
    assert_eq!(world.store.replays().len(), 1);
    let used = world.store.usage("team-a");

    for reopened in [false, true] {
        world.store.set_gone(former.uid, true);
        world.adopt_in(&heir, 2).await;
        assert_eq!(
            *world.store.summary(heir.uid).unwrap(),
            Summary { namespace_uid: Some(namespace(2)), ..Summary::new(heir.clone()) }
        );
        assert_eq!((world.log().await, world.store.usage("team-a")), (vec![], Usage::default()));
        assert_eq!(world.claim(&heir, 9).await, []);
        assert_eq!(world.store.duplicate_of("team-a", key, world.now).unwrap(), None);
        assert_eq!(world.store.replays(), []);
        if !reopened {
            world.reopen().await;
        }
    }
    let again = world.keyed(7, &[&heir]);
    let (uid, name) = (again.uid, again.deliveries[0].name);
    assert_eq!(world.store.append(vec![again]).await.unwrap(), [Appended::New]);
    assert_eq!(world.claim(&heir, 9).await, [name]);
    let again = [world.keyed(7, &[&heir]), world.keyed(7, &[])].to_vec();
    assert_eq!(world.store.append(again).await.unwrap(), [Appended::Duplicate(uid); 2]);
    assert_eq!(world.store.usage("team-a").deliveries, 1);
    assert_eq!(world.store.purge(former.uid).await.unwrap(), 3);
    assert_eq!(world.store.usage("team-a").deliveries, 1);
    assert_eq!(world.log().await.len(), 1);
    assert_eq!(world.store.event(first).await.unwrap(), None);
    assert!(used.deliveries == 5 && used.pending_bytes > 0, "{used:?}");
}

pub(in crate::store) async fn a_webhook_made_anew_goes_on_with_what_the_former_left(mut world: World<'_>) {
    let [former, heir, next] = [1, 2, 3].map(orders);
    world.adopt_in(&former, 1).await;
    let all = world.fill(&former).await;
    let mut waiting = vec![all[0]];
    for _ in 0..100 {
        waiting.extend(world.accept(&[&former]).await);
    }
    let under_way = world.claim(&former, 1).await;
    let disabled = Disabled { generation: 3, at: world.now, reason: DisableReason::Gone };
    world.store.update(former.uid, Change::Disable(disabled)).await.unwrap();
    let (before, used) = (world.store.summary(former.uid).unwrap(), world.store.usage("team-a"));

    for heir in [&heir, &next] {
        let former = world.store.known()[0].clone();
        world.store.set_gone(former.uid, true);
        world.adopt_in(heir, 1).await;
        assert_eq!(world.store.summary(former.uid), None);
        let summary = world.store.summary(heir.uid).unwrap();
        assert_eq!((&summary.webhook, &summary.disabled), (heir, &None), "as if the spec had changed");
        assert_eq!(
            (summary.pending, summary.failure_count, summary.success_count),
            (before.pending, before.failure_count, before.success_count)
        );
        let log = world.log().await;
        assert_eq!(log.len(), 104);
        assert!(log.iter().all(|line| line.webhook == *heir));
        let found = world.find(Query { webhook: Some(heir.uid), limit: 7, ..Query::default() }).await;
        assert_eq!(found.len(), 104);
        assert_eq!(world.store.usage("team-a"), used);
        assert_eq!(world.store.purge(former.uid).await.unwrap(), 0, "it is another's now");
        assert_eq!(world.store.known(), std::slice::from_ref(heir));
        assert_eq!(world.claim(&former, 9).await, []);
    }
    assert!(names(&world.claims(&next, 200).await).starts_with(&waiting[1..9]), "one is under way");
    world.succeed(&former, under_way[0]).await;
    assert_eq!(world.store.delivery(under_way[0]).await.unwrap().unwrap().state, State::Success);
    for reopened in [false, true] {
        assert_eq!(world.store.summary(next.uid).unwrap().pending, before.pending - 1);
        assert_eq!(world.log().await.len(), 104);
        if !reopened {
            world.reopen().await;
        }
    }
    world.pass(SECOND * 9);
    assert_eq!(world.claim(&next, 200).await.len(), 101);
    let fresh = world.accept(&[&next]).await;
    assert_eq!(world.claim(&next, 200).await, fresh);
    world.succeed(&next, fresh[0]).await;
    assert_eq!(world.store.purge(next.uid).await.unwrap(), before.pending - 1);
    assert_eq!((world.log().await, world.store.usage("team-a")), (vec![], Usage::default()));
    world.reopen().await;
    assert_eq!(world.store.known(), []);
}

pub(in crate::store) async fn what_began_before_several_replacements_still_counts(mut world: World<'_>) {
    let line: Vec<_> = (1..=5).map(orders).collect();
    world.adopt_in(&line[0], 1).await;
    let mut began = Vec::new();
    for (former, heir) in line.iter().zip(&line[1..]) {
        world.accept(&[former]).await;
        world.accept(&[former]).await;
        let claimed = world.claim(former, 2).await;
        assert_eq!(claimed.len(), 2);
        began.push((former, claimed));
        world.store.set_gone(former.uid, true);
        world.adopt_in(heir, 1).await;
    }
    let last = &line[4];
    for (former, claimed) in &began {
        assert!(world.store.is_under_way(former.uid, claimed[0]));
        world.succeed(former, claimed[0]).await;
        let done = world.store.delivery(claimed[0]).await.unwrap().unwrap();
        assert_eq!((done.state, &done.webhook), (State::Success, last));
        world.store.work().take();
        world.store.release(vec![(former.uid, claimed[1])]).await.unwrap();
        assert_eq!(world.store.work().take(), [last.uid], "who can claim it now");
        assert_eq!(world.claim(last, 9).await, [claimed[1]]);
        // It was matched before; and a late word of it.
        let late = world.accept(&[former]).await;
        world.adopt_in(former, 1).await;
        assert_eq!(world.claim(last, 9).await, late);
    }
    for reopened in [false, true] {
        assert_eq!(world.store.known(), std::slice::from_ref(last));
        let summary = world.store.summary(last.uid).unwrap();
        assert_eq!((summary.pending, summary.success_count), (8, 4));
        if !reopened {
            world.reopen().await;
        }
    }
    assert_eq!(world.store.purge(last.uid).await.unwrap(), 8);
    // Nothing of those that came before is remembered.
    world.adopt_in(&line[2], 1).await;
    assert_eq!(world.store.known(), std::slice::from_ref(&line[2]));
    assert_eq!(world.store.usage("team-a"), Usage::default());
}

pub(in crate::store) async fn an_event_for_two_owners_is_a_duplicate_for_each(mut world: World<'_>) {
    // The namespace is replaced while a Webhook of the former one is still listed.
    let [former, heir] = [1, 2].map(|number| webhook("team-a", number));
    world.adopt_in(&former, 1).await;
    world.adopt_in(&heir, 2).await;
    let both = world.keyed(7, &[&former, &heir]);
    let first = both.uid;
    assert_eq!(world.store.append(vec![both]).await.unwrap(), [Appended::New]);
    let second = world.keyed(8, &[&heir]);
    let known = second.uid;
    world.store.append(vec![second]).await.unwrap();
    for reopened in [false, true] {
        for (key, hooks, expected) in [
            (7, vec![&former], first),
            (7, vec![&heir], first),
            (7, vec![&heir, &former], first),
            (8, vec![&former, &heir], known),
        ] {
            let again = world.keyed(key, &hooks);
            assert_eq!(world.store.append(vec![again]).await.unwrap(), [Appended::Duplicate(expected)]);
        }
        if !reopened {
            world.reopen().await;
        }
    }
}

pub(in crate::store) async fn nobody_else_takes_over_what_is_gone(world: World<'_>) {
    let gone = orders(1);
    world.adopt_in(&gone, 1).await;
    world.fill(&gone).await;
    let unseen = orders(2);
    world.adopt_in(&unseen, 1).await;
    assert_eq!(world.store.summary(unseen.uid).unwrap().pending, 0, "the other is not gone");
    world.store.purge(unseen.uid).await.unwrap();
    world.store.set_gone(gone.uid, true);
    let other_name = WebhookRef { name: "invoices".into(), ..orders(3) };
    world.adopt_in(&other_name, 1).await;
    world.adopt_in(&orders(4), 2).await;
    world.store.adopt(Summary::new(orders(5))).await.unwrap();
    world
        .store
        .adopt(Summary { namespace_uid: Some(namespace(1)), ..Summary::new(webhook("team-b", 6)) })
        .await
        .unwrap();
    let pending = |hook: WebhookUid| world.store.summary(hook).unwrap().pending;
    for number in 3..=6 {
        assert_eq!(pending(WebhookUid::from_bytes([number; 16])), 0, "{number}");
    }
    world.adopt_in(&orders(7), 1).await;
    assert_eq!(pending(orders(7).uid), 2);
}

pub(in crate::store) async fn a_replay_goes_on_at_the_webhook_that_was_made_anew(mut world: World<'_>) {
    let [former, heir] = [1, 2].map(orders);
    world.adopt_in(&former, 1).await;
    let all = world.fill(&former).await;
    let id = ReplayId::from_bytes([9; 16]);
    let selection = world.everything();
    let new = NewReplay { id, name: "night".into(), digest: vec![1], selection, webhooks: vec![former.uid] };
    world.store.begin_replay(new).await.unwrap();
    world.pass(SECOND);
    assert_eq!(world.store.advance_replay(id, former.uid, vec![world.now]).await.unwrap(), 1);
    world.store.set_gone(former.uid, true);
    assert_eq!(world.store.advance_replay(id, former.uid, vec![world.now]).await.unwrap(), 0);
    world.adopt_in(&heir, 1).await;
    let parts = |world: &World<'_>| world.store.replay(id).unwrap().parts.clone();
    assert_eq!(parts(&world).keys().copied().collect::<Vec<_>>(), [heir.uid]);
    assert_eq!(world.store.advance_replay(id, heir.uid, vec![world.now; 9]).await.unwrap(), 1);
    world.claim(&heir, 9).await;
    for name in &all[2..] {
        world.succeed(&heir, *name).await;
    }
    world.store.finish_replay(id, world.now).await.unwrap();
    let replay = Arc::clone(&world.store.replays()[0]);
    assert_eq!((replay.counts().succeeded, replay.finished_at.is_some()), (2, true));
}

pub(in crate::store) async fn what_a_purge_has_begun_to_erase_is_nobodys(mut world: World<'_>) {
    let [former, heir] = [1, 2].map(orders);
    world.adopt_in(&former, 1).await;
    let events: Vec<_> = (0..1000).map(|_| world.event(&[&former])).collect();
    world.store.append(events).await.unwrap();
    world.store.set_gone(former.uid, true);
    let store = Arc::clone(&world.store);
    let (purged, ()) = tokio::join!(store.purge(former.uid), async {
        while world.store.summary(former.uid).is_some_and(|summary| !summary.erasing) {
            tokio::task::yield_now().await;
        }
        world.adopt_in(&heir, 1).await;
    });
    assert_eq!(purged.unwrap(), 1000);
    drop(store);
    for reopened in [false, true] {
        assert_eq!(world.store.summary(heir.uid).unwrap().pending, 0);
        assert_eq!((world.log().await, world.claim(&heir, 9).await), (vec![], vec![]));
        if !reopened {
            world.reopen().await;
        }
    }
}
