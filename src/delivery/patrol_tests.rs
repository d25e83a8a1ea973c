//! What the engine measures and looks after, in tokio's paused time.

use std::time::Duration;

use super::testing::world::{Does, World};
use super::testing::{endpoint, webhook};
use crate::model::rate::RateLimit;
use crate::model::retry;
use crate::routes::{Endpoint, Unready};
use crate::store::State;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

fn to(name: &str) -> Endpoint {
    endpoint(&format!("https://{name}.localhost/"))
}

/// What brings the Webhook `a` with one event into a state.
type Setting = fn(&World);

fn unready(world: &World) {
    let mut route = world.route("a");
    route.endpoint = Err(Unready { reason: "SecretNotFound", message: String::new(), stalled: false });
    world.table.upsert(route);
}

fn paused(world: &World) {
    let mut route = world.route("a");
    route.active = false;
    world.table.upsert(route);
}

/// The first answer disables, so that of two events one is held.
fn disabled(world: &World) {
    world.route_to("a", Endpoint { max_in_flight: 1, ..to("a") });
    world.does("a", |_| Does::Status(410));
}

/// Nothing arrives; most events wait for it.
fn down(world: &World) {
    world.route_to("a", Endpoint { max_in_flight: 5, ..to("a") });
    world.does("a", |_| Does::Slowly(503, SECOND));
}

fn failing(world: &World) {
    world.route("a");
    world.does("a", |_| Does::Asks(503, HOUR));
}

fn hanging(world: &World) {
    world.route_to("a", Endpoint { timeout: MINUTE, ..to("a") });
    world.does("a", |_| Does::Hangs);
}

fn limited(world: &World) {
    let rate_limit = Some(RateLimit { requests: 1, per: MINUTE, burst: 1 });
    world.route_to("a", Endpoint { rate_limit, ..to("a") });
}

#[tokio::test(start_paused = true)]
async fn the_oldest_pending_delivery_is_measured_by_what_it_waits_for() {
    // Setting, events, and whether half a minute later something waits for its turn or for its receiver.
    let table: [(&str, Setting, usize, bool, bool); 7] = [
        ("paused", paused, 1, false, false),
        ("not ready", unready, 1, false, false),
        ("disabled", disabled, 2, false, false),
        ("receiver down", down, 40, false, true),
        ("its retry is not due", failing, 1, false, false),
        ("claimed, and its receiver hangs", hanging, 1, true, false),
        ("rate limited", limited, 2, true, false),
    ];
    for (what, set, events, turn, receiver) in table {
        let world = World::start();
        set(&world);
        world.publish("a", events).await;
        world.pass(33 * SECOND).await;
        assert!(world.store.summary(webhook("a").uid).unwrap().pending > 0, "{what}");
        for (waits_for, expected) in [("turn", turn), ("receiver", receiver)] {
            let oldest = world.oldest(waits_for);
            let range = if expected { 25.0..=33.0 } else { 0.0..=0.0 };
            assert!(range.contains(&oldest), "{what}: {oldest} s for {waits_for}");
        }
        assert_eq!(world.engine.progress(), Ok(()), "{what}");
        // What is gone waits for nothing, whatever it was.
        world.table.remove(webhook("a").uid);
        world.pass(6 * SECOND).await;
        assert_eq!((world.oldest("turn"), world.oldest("receiver")), (0.0, 0.0), "{what}, removed");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_seen_as_long_as_it_takes_and_no_longer() {
    let world = World::start();
    down(&world);
    world.publish("a", 40).await;
    world.pass(HOUR / 2).await;
    assert!(world.oldest("receiver") > 1790.0, "{}", world.oldest("receiver"));
    world.does("a", |_| Does::Status(200));
    world.pass(3 * MINUTE).await;
    assert_eq!((world.oldest("turn"), world.oldest("receiver")), (0.0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn a_lost_wake_is_found() {
    let world = World::start();
    world.route("a");
    world.pass(SECOND).await;
    let [name] = world.publish("a", 1).await[..] else { panic!() };
    // Somebody else took the wake.
    drop(world.store.work().take());
    world.pass(6 * SECOND).await;
    assert_eq!(world.get(name).state, State::Success);
}

#[tokio::test(start_paused = true)]
async fn a_webhook_without_work_has_no_worker_and_costs_no_look() {
    let world = World::start();
    for number in 0..10_000 {
        world.route(&format!("idle{number}"));
    }
    let policy = retry::Policy { initial: 2 * HOUR, ..to("a").retry };
    world.route_to("a", Endpoint { retry: policy, ..to("a") });
    world.does("a", |count| Does::Status(if count == 0 { 500 } else { 200 }));
    let [name] = world.publish("a", 1).await[..] else { panic!() };
    world.pass(MINUTE).await;
    assert_eq!(world.get(name).state, State::Retrying);
    assert!(format!("{:?}", world.engine).contains("workers: 1"), "{:?}", world.engine);
    let (claims, looks) = (world.fake.claims(), world.fake.looks());
    world.pass(HOUR).await;
    assert_eq!(world.fake.claims(), claims);
    // Each of 720 looks asks about the one that waits and 64 others, the hourly sweep about the one.
    let looks = world.fake.looks() - looks;
    assert!((720..=721 * 65 + 1).contains(&looks), "{looks}");
    world.pass(2 * HOUR).await;
    assert_eq!((world.seen("a").len(), world.get(name).state), (2, State::Success));
    assert!(format!("{:?}", world.engine).contains("workers: 0"), "{:?}", world.engine);
}

#[tokio::test(start_paused = true)]
async fn of_many_webhooks_each_lost_wake_is_found_too() {
    let world = World::start();
    for number in 0..1000 {
        world.route(&format!("w{number}"));
    }
    world.pass(MINUTE).await;
    let mut names = Vec::new();
    for number in [0, 499, 999] {
        names.extend(world.publish(&format!("w{number}"), 1).await);
    }
    drop(world.store.work().take());
    world.pass(2 * MINUTE).await;
    assert!(names.iter().all(|name| world.get(*name).state == State::Success));
}
