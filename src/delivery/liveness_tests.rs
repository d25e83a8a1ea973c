//! What the liveness probe says, in tokio's paused time.

use std::time::Duration;

use super::engine::Stalled;
use super::testing::world::{Does, World};
use super::testing::{endpoint, webhook};
use crate::model::rate::RateLimit;
use crate::model::retry;
use crate::routes::{Endpoint, Unready};
use crate::store::State;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// An attempt must have ended when its claim ends: after the time-out and two minutes; a minute more is a standstill.
const STALLS_AFTER: Duration = Duration::from_secs(15 + 120 + 60);

fn to(name: &str) -> Endpoint {
    endpoint(&format!("https://{name}.localhost/"))
}

/// Ten seconds at a time, each with an event for each of these, as long as it is alive; when it was no longer, and why.
async fn until_it_stalls(world: &World, webhooks: &[&str]) -> (Duration, Stalled) {
    let began = tokio::time::Instant::now();
    loop {
        for webhook in webhooks {
            world.publish(webhook, 1).await;
        }
        world.pass(10 * SECOND).await;
        if let Err(stalled) = world.engine.progress() {
            return (began.elapsed(), stalled);
        }
        assert!(began.elapsed() < HOUR, "it does not notice");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_never_returns_is_a_standstill() {
    let world = World::start();
    world.route("a");
    world.does("a", |_| Does::IsLost);
    world.publish("a", 1).await;
    let (after, stalled) = until_it_stalls(&world, &[]).await;
    assert_eq!(stalled.what, "a worker has not moved");
    assert!(after >= STALLS_AFTER && after <= STALLS_AFTER + 20 * SECOND, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn one_attempt_that_never_returns_is_noticed_though_the_others_do() {
    let world = World::start();
    world.route("a");
    world.does("a", |count| if count == 5 { Does::IsLost } else { Does::Slowly(200, SECOND) });
    let (after, stalled) = until_it_stalls(&world, &["a", "b"]).await;
    assert_eq!(stalled.what, "a worker has not moved");
    assert!(after <= STALLS_AFTER + 2 * MINUTE, "{after:?}");
    assert!(world.seen("a").len() > 15, "{}", world.seen("a").len());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_to_a_record_is_a_standstill() {
    for busy in [&[][..], &["a"]] {
        let world = World::start();
        world.route("a");
        world.fake.record_takes(DAY);
        world.publish("a", 1).await;
        let (after, stalled) = until_it_stalls(&world, busy).await;
        assert_eq!(stalled.what, "a worker has not moved");
        assert!(after <= STALLS_AFTER + 20 * SECOND, "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dispatcher_that_stands_still_is_a_standstill_with_and_without_work() {
    for webhooks in [&[][..], &["a"]] {
        let world = World::start();
        world.route("a");
        world.pass(HOUR).await;
        assert_eq!(world.engine.progress(), Ok(()));
        world.freeze();
        let (after, stalled) = until_it_stalls(&world, webhooks).await;
        assert_eq!(stalled.what, "the dispatcher has not looked");
        assert!(
            stalled.to_string().starts_with("deliveries stand still: the dispatcher has not looked for ")
        );
        assert!(after >= 50 * SECOND && after <= MINUTE + 20 * SECOND, "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_day_for_a_reason_is_no_standstill() {
    let world = World::start();
    let mut paused = world.route("paused");
    paused.active = false;
    world.table.upsert(paused);
    let mut unready = world.route("unready");
    unready.endpoint = Err(Unready { reason: "SecretNotFound", message: String::new(), stalled: false });
    world.table.upsert(unready);
    world.route_to("gone", Endpoint { max_in_flight: 1, ..to("gone") });
    world.does("gone", |_| Does::Status(410));
    let patient = retry::Policy { max_retries: 20, ..to("down").retry };
    world.route_to("down", Endpoint { retry: patient, ..to("down") });
    world.does("down", |count| if count % 2 == 0 { Does::Hangs } else { Does::Asks(503, HOUR / 2) });
    world.route("asks");
    world.does("asks", |_| Does::Asks(429, 20 * HOUR));
    let rate_limit = Some(RateLimit { requests: 1, per: 3 * HOUR, burst: 1 });
    world.route_to("slow", Endpoint { rate_limit, ..to("slow") });
    for name in ["paused", "unready", "gone", "down", "asks", "slow"] {
        world.publish(name, 10).await;
    }
    for _ in 0..24 * 12 {
        world.pass(5 * MINUTE).await;
        assert_eq!(world.engine.progress(), Ok(()), "at {:?}", world.now());
    }
    let waits = |name: &str| world.store.summary(webhook(name).uid).unwrap().pending > 0;
    for name in ["paused", "unready", "gone", "down", "slow"] {
        assert!(waits(name), "{name}");
    }
    assert!(world.store.summary(webhook("gone").uid).unwrap().disabled.is_some());
    assert!(world.store.summary(webhook("down").uid).unwrap().consecutive_failures > 50);
    assert!(world.fake.all().iter().any(|delivery| delivery.state == State::Retrying));
}
