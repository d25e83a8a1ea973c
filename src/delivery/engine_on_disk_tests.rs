//! The engine with the embedded store, in tokio's paused time.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::engine::Settings;
use super::testing::world::{Does, World};
use super::testing::{START, endpoint, webhook};
use crate::clock::Clock;
use crate::model::ids::DeliveryName;
use crate::routes::Endpoint;
use crate::store::embedded::{Embedded, Options};
use crate::store::{Change, Delivery, EndReason, Query, State, Store};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

fn open(dir: &TempDir) -> Arc<dyn Store> {
    Embedded::open(Options::new(dir.path())).unwrap()
}

fn start(dir: &TempDir, clock: &Clock) -> World {
    World::start_on(open(dir), Settings::default(), clock.clone())
}

async fn end(mut world: World) {
    world.stop().await;
    world.store.close().await.unwrap();
}

async fn get(world: &World, name: DeliveryName) -> Delivery {
    world.store.delivery(name).await.unwrap().unwrap()
}

async fn all(world: &World) -> Vec<Delivery> {
    world.store.query(Query { limit: 1000, ..Query::default() }).await.unwrap().deliveries
}

#[tokio::test(start_paused = true)]
async fn retries_go_on_where_they_were_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::following_tokio(START);
    let world = start(&dir, &clock);
    world.route("a");
    world.does("a", |_| Does::Status(503));
    let [name] = world.publish("a", 1).await[..] else { panic!() };
    world.pass(15 * SECOND).await;
    assert_eq!(world.seconds("a").len(), 2);
    end(world).await;

    let world = start(&dir, &clock);
    world.route("a");
    world.pass(2 * MINUTE).await;
    let [third] = world.seconds("a")[..] else { panic!("{:?}", world.seen("a")) };
    assert!((70..=78).contains(&third), "{third}");
    let delivery = get(&world, name).await;
    assert_eq!((delivery.state, delivery.retry_count()), (State::Success, 2));
    end(world).await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_through_a_restart_and_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::following_tokio(START);
    let world = start(&dir, &clock);
    let mut route = world.route_to("a", Endpoint { max_in_flight: 1, ..endpoint("https://a.localhost/") });
    route.active = false;
    world.table.upsert(route.clone());
    let names = world.publish("a", 100).await;
    world.pass(HOUR).await;
    end(world).await;

    let world = start(&dir, &clock);
    world.table.upsert(route.clone());
    world.pass(HOUR).await;
    assert!(world.seen("a").is_empty());
    route.active = true;
    world.table.upsert(route);
    world.pass(10 * SECOND).await;
    let sent: Vec<_> = world.seen("a").into_iter().map(|seen| seen.name).collect();
    assert_eq!(sent, names);
    assert!(all(&world).await.iter().all(|delivery| delivery.attempts.len() == 1));
    end(world).await;
}

#[tokio::test(start_paused = true)]
async fn an_unhealthy_endpoint_is_looked_after_and_then_gets_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::following_tokio(START);
    let world = start(&dir, &clock);
    world.route_to("a", Endpoint { max_in_flight: 8, ..endpoint("https://a.localhost/") });
    world.does("a", |_| Does::Slowly(503, SECOND));
    world.publish("a", 8).await;
    world.pass(2 * SECOND).await;
    world.publish("a", 92).await;
    world.pass(10 * SECOND).await;
    world.forget_peak("a");
    world.pass(3 * MINUTE).await;
    assert_eq!(world.peak("a"), 1);
    let tried = all(&world).await.iter().filter(|delivery| !delivery.attempts.is_empty()).count();
    assert!(tried <= 25, "{tried}");
    end(world).await;

    // After a restart the store still knows.
    let world = start(&dir, &clock);
    world.route_to("a", Endpoint { max_in_flight: 8, ..endpoint("https://a.localhost/") });
    world.does("a", |count| if count == 0 { Does::Slowly(503, SECOND) } else { Does::Slowly(200, SECOND) });
    world.pass(2 * SECOND).await;
    assert!(world.seen("a").is_empty(), "the time between two looks holds through a restart");
    world.pass(59 * SECOND).await;
    assert_eq!(world.peak("a"), 1);
    world.pass(10 * MINUTE).await;
    assert_eq!(world.peak("a"), 8);
    let left = all(&world).await.iter().filter(|delivery| !delivery.state.is_final()).count();
    assert_eq!(left, 0);
    assert_eq!(world.store.summary(webhook("a").uid).unwrap().consecutive_failures, 0);
    end(world).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_held_for_too_long_expires() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::following_tokio(START);
    let settings = Settings { held_limit: HOUR, ..Settings::default() };
    let world = World::start_on(open(&dir), settings, clock.clone());
    let mut route = world.route("a");
    route.active = false;
    world.table.upsert(route);
    let old = world.publish("a", 200).await;
    world.pass(HOUR / 2).await;
    let young = world.publish("a", 1).await;
    world.pass(40 * MINUTE).await;
    for name in old {
        assert_eq!(get(&world, name).await.reason, Some(EndReason::Expired));
    }
    assert_eq!(get(&world, young[0]).await.state, State::Pending);
    end(world).await;
}

#[tokio::test(start_paused = true)]
async fn a_disabled_webhook_that_is_enabled_goes_on_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::following_tokio(START);
    let world = start(&dir, &clock);
    world.route_to("a", Endpoint { max_in_flight: 1, ..endpoint("https://a.localhost/") });
    world.does("a", |count| Does::Status(if count == 0 { 410 } else { 200 }));
    world.publish("a", 2).await;
    world.pass(MINUTE).await;
    assert_eq!(world.seen("a").len(), 1);
    world.store.update(webhook("a").uid, Change::Enable).await.unwrap();
    world.pass(SECOND).await;
    assert_eq!(world.seen("a").len(), 2);
    end(world).await;
}
