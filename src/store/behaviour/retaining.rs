//! What is kept, and for how long.

use std::time::Duration;

use bytes::Bytes;

use super::{QUOTA, RETENTION, World, webhook};
use crate::model::ids::{DeliveryName, WebhookRef};
use crate::store::records::{EndReason, NewEvent, Next, Redelivered, State, Usage};
use crate::store::{Appended, Error, Query};

const MINUTE: Duration = Duration::from_mins(1);

impl World<'_> {
    async fn retain(&self) -> u64 {
        self.store.retain(self.now).await.unwrap()
    }

    async fn all(&self) -> Vec<DeliveryName> {
        let mut all = self.find(Query { limit: 100, ..Query::default() }).await;
        all.reverse();
        all
    }

    async fn succeeded(&self, hook: &WebhookRef) -> DeliveryName {
        let name = self.accept(&[hook]).await[0];
        self.succeed(hook, name).await;
        name
    }
}

pub(in crate::store) async fn what_is_old_goes_and_what_waits_or_ended_late_stays(mut world: World<'_>) {
    let hooks = [webhook("team-a", 1), webhook("team-a", 2), webhook("team-b", 3)];
    let mut old = Vec::new();
    for hook in &hooks {
        for next in [Next::Success, Next::Failed(EndReason::RetriesExhausted)] {
            let name = world.accept(&[hook]).await[0];
            world.record(hook, name, next).await;
            old.push(name);
        }
    }
    let pending = world.accept(&[&hooks[0]]).await[0];
    let retrying = world.accept(&[&hooks[1]]).await[0];
    world.retry(&hooks[1], retrying, MINUTE).await;
    let late = world.accept(&[&hooks[1]]).await[0];
    world.pass(MINUTE);
    let young = world.succeeded(&hooks[0]).await;
    let mut outcome = world.outcome(&hooks[1], late, Next::Failed(EndReason::Expired));
    outcome.attempt = None;
    world.store.record(vec![outcome]).await.unwrap();
    assert_eq!(world.retain().await, 0);
    world.pass(RETENTION.max_age.saturating_sub(MINUTE) + Duration::from_secs(1));
    assert_eq!(world.retain().await, old.len() as u64);
    assert_eq!(world.all().await, [pending, retrying, late, young]);
    assert_eq!(world.retain().await, 0);
    world.pass(MINUTE);
    assert_eq!(world.retain().await, 2);
    world.reopen().await;
    assert_eq!(world.all().await, [pending, retrying]);
    assert_eq!(world.claim(&hooks[0], 1).await, [pending]);
    assert_eq!(world.claim(&hooks[1], 1).await, [retrying]);
}

pub(in crate::store) async fn the_oldest_go_first_while_a_namespace_uses_too_much(world: World<'_>) {
    let [many, few] = [webhook("team-a", 1), webhook("team-b", 2)];
    let pending = world.accept(&[&many]).await[0];
    let kept = world.succeeded(&few).await;
    let mut names = Vec::new();
    for _ in 0..100 {
        let event = NewEvent { data: Bytes::from(vec![0; 4096]), ..world.event(&[&many]) };
        let name = event.deliveries[0].name;
        world.store.append(vec![event]).await.unwrap();
        world.succeed(&many, name).await;
        names.push(name);
    }
    assert!(world.store.usage("team-a").bytes > RETENTION.max_bytes);
    let gone = usize::try_from(world.retain().await).unwrap();
    let usage = world.store.usage("team-a");
    assert!(usage.bytes <= RETENTION.max_bytes && usage.bytes > RETENTION.max_bytes * 3 / 4, "{usage:?}");
    let expected: Vec<_> = [pending, kept].iter().chain(&names[gone..]).copied().collect();
    assert_eq!(world.all().await, expected);
    assert_eq!(world.claim(&many, 1).await, [pending]);
}

pub(in crate::store) async fn a_shared_event_stays_until_its_last_delivery_goes(mut world: World<'_>) {
    let hooks = [1, 2].map(|number| webhook("team-a", number));
    let event = world.event(&[&hooks[0], &hooks[1]]);
    let (uid, names) = (event.uid, [event.deliveries[0].name, event.deliveries[1].name]);
    world.store.append(vec![event]).await.unwrap();
    world.succeed(&hooks[0], names[0]).await;
    world.pass(RETENTION.max_age);
    world.pass(MINUTE);
    assert_eq!(world.retain().await, 1);
    assert!(world.store.event(uid).await.unwrap().is_some());
    assert_eq!(world.claim(&hooks[1], 1).await, [names[1]]);
    world.succeed(&hooks[1], names[1]).await;
    world.pass(RETENTION.max_age);
    world.pass(MINUTE);
    assert_eq!(world.retain().await, 1);
    assert_eq!(world.store.event(uid).await.unwrap(), None);
    assert_eq!(world.store.usage("team-a"), Usage::default());
}

pub(in crate::store) async fn what_became_old_behind_the_last_look_goes_too(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let first = world.succeeded(&hook).await;
    let pending = world.accept(&[&hook]).await[0];
    world.pass(MINUTE);
    let redelivered = world.succeeded(&hook).await;
    let last = world.succeeded(&hook).await;
    world.pass(RETENTION.max_age.saturating_sub(Duration::from_secs(1)));
    assert_eq!(world.retain().await, 1);
    assert_eq!(world.store.delivery(first).await.unwrap(), None);
    assert_eq!(world.redeliver(&hook, redelivered).await, Redelivered::Queued);
    world.pass(MINUTE);
    assert_eq!(world.retain().await, 1, "the last");
    assert_eq!(world.store.delivery(last).await.unwrap(), None);
    world.succeed(&hook, redelivered).await;
    world.succeed(&hook, pending).await;
    world.pass(RETENTION.max_age + MINUTE);
    assert_eq!(world.retain().await, 2);
    assert_eq!(world.all().await, []);
    assert_eq!(world.store.usage("team-a"), Usage::default());
}

pub(in crate::store) async fn a_duplicate_is_known_after_its_delivery_has_gone(mut world: World<'_>) {
    let hook = webhook("team-a", 1);
    let first = world.keyed(1, &[&hook]);
    let (uid, name) = (first.uid, first.deliveries[0].name);
    world.store.append(vec![NewEvent { data: Bytes::from(vec![0; 300 << 10]), ..first }]).await.unwrap();
    world.succeed(&hook, name).await;
    assert_eq!(world.retain().await, 1);
    world.pass(MINUTE);
    let again = world.keyed(1, &[&hook]);
    assert_eq!(world.store.append(vec![again]).await.unwrap(), [Appended::Duplicate(uid)]);
}

pub(in crate::store) async fn usage_is_known_and_survives_reopening(mut world: World<'_>) {
    let [hook, other] = [webhook("team-a", 1), webhook("team-b", 2)];
    assert_eq!(world.store.usage("team-a"), Usage::default());
    let name = world.accept(&[&hook]).await[0];
    let accepted = world.store.usage("team-a");
    assert!(accepted.bytes > 100 && accepted.deliveries == 1 && accepted.pending_bytes > 0, "{accepted:?}");
    world.succeed(&hook, name).await;
    let done = world.store.usage("team-a");
    assert!(done.bytes > accepted.bytes, "the attempt is counted");
    assert_eq!((done.deliveries, done.pending_bytes), (1, 0));
    world.accept(&[&other]).await;
    let before = [world.store.usage("team-a"), world.store.usage("team-b")];
    world.reopen().await;
    assert_eq!([world.store.usage("team-a"), world.store.usage("team-b")], before);
    world.store.purge(hook.uid).await.unwrap();
    assert_eq!(world.store.usage("team-a"), Usage::default());
}

pub(in crate::store) async fn a_namespace_over_its_quota_is_refused_and_no_other(mut world: World<'_>) {
    let [hook, other] = [webhook("team-a", 1), webhook("team-b", 2)];
    let half = Bytes::from(vec![0; usize::try_from(QUOTA / 2).unwrap()]);
    let mut names = Vec::new();
    for _ in 0..2 {
        let event = NewEvent { data: half.clone(), ..world.event(&[&hook]) };
        names.push(event.deliveries[0].name);
        world.store.append(vec![event]).await.unwrap();
    }
    for _ in 0..2 {
        let refused = world.store.append(vec![world.event(&[&hook])]).await.unwrap_err();
        assert!(
            matches!(&refused, Error::OverQuota { namespace, .. } if &**namespace == "team-a"),
            "{refused}"
        );
        world.reopen().await;
    }
    let test = world.accept_test(&hook).await;
    world.succeed(&hook, test).await;
    world.accept(&[&other]).await;
    world.succeed(&hook, names[0]).await;
    world.accept(&[&hook]).await;
    let done = world.store.delivery(names[0]).await.unwrap().unwrap();
    assert_eq!(done.state, State::Success);
}
