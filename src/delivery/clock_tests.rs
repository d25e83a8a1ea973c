//! A wall clock that is set while the engine works, or while it does not: with the embedded store, in tokio's paused
//! time.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::engine::Settings;
use super::testing::world::{Does, World};
use super::testing::{START, endpoint, webhook};
use crate::clock::{Clock, Hand};
use crate::model::ids::{DeliveryName, Namespace};
use crate::model::retry::Policy;
use crate::routes::Endpoint;
use crate::store::embedded::{Embedded, Options};
use crate::store::{Delivery, EndReason, Redelivered, Redelivery, State, Store};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// By how much the clock is ahead, and whether it is set right while the engine is away.
const AHEAD: [(Duration, bool); 6] = [
    (SECOND, false),
    (MINUTE, true),
    (DAY, false),
    (DAY, true),
    (DAY.saturating_mul(2), false),
    (DAY.saturating_mul(2), true),
];

struct Clocked {
    world: World,
    dir: TempDir,
    clock: Clock,
    hand: Hand,
}

impl Clocked {
    fn start(ahead: Duration) -> Self {
        let (clock, hand) = Clock::following_tokio(START).that_can_be_set();
        hand.advance(ahead);
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Embedded::open(Options::new(dir.path())).unwrap();
        let world = World::start_on(store, Settings::default(), clock.clone());
        Self { world, dir, clock, hand }
    }

    /// Sets the clock back, in a pause of the engine or not.
    async fn set_back(self, by: Duration, restarts: bool) -> Self {
        let Self { mut world, dir, clock, hand } = self;
        if !restarts {
            hand.set_back(by);
            return Self { world, dir, clock, hand };
        }
        world.stop().await;
        world.store.close().await.unwrap();
        hand.set_back(by);
        let store: Arc<dyn Store> = Embedded::open(Options::new(dir.path())).unwrap();
        let world = World::start_on(store, Settings::default(), clock.clone());
        Self { world, dir, clock, hand }
    }

    async fn get(&self, name: DeliveryName) -> Delivery {
        self.world.store.delivery(name).await.unwrap().unwrap()
    }
}

fn to_a() -> Endpoint {
    let retry = Policy { max_retries: 8, initial: 10 * SECOND, factor: 6, max: DAY };
    Endpoint { retry, ..endpoint("https://a.localhost/") }
}

/// The receiver was down, and is well when the clock is set right: all arrives by its own backoff from then.
#[tokio::test(start_paused = true)]
async fn what_failed_while_the_clock_was_ahead_arrives_by_its_own_backoff() {
    for (ahead, restarts) in AHEAD {
        let what = format!("{ahead:?} ahead, restarts: {restarts}");
        let clocked = Clocked::start(ahead);
        clocked.world.route_to("a", to_a());
        clocked.world.does("a", |_| Does::Status(503));
        let names = clocked.world.publish("a", if restarts { 20 } else { 3 }).await;
        clocked.world.pass(if restarts { 5 * MINUTE } else { 5 * SECOND }).await;
        let clocked = clocked.set_back(ahead, restarts).await;
        clocked.world.route_to("a", to_a());
        clocked.world.does("a", |_| Does::Status(200));
        let later = clocked.world.publish("a", 1).await;
        // The wait after the third attempt is 6 minutes, with a tenth more.
        clocked.world.pass(8 * MINUTE).await;
        for name in names.iter().chain(&later) {
            let line = clocked.get(*name).await;
            assert_eq!(line.state, State::Success, "{what}: {line:?}");
            assert!(line.attempts.iter().all(|attempt| attempt.at <= clocked.world.now()), "{what}");
        }
        assert_eq!(clocked.world.engine.progress(), Ok(()), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_late_is_measured_by_the_right_clock() {
    for (ahead, restarts) in AHEAD {
        let what = format!("{ahead:?} ahead, restarts: {restarts}");
        let clocked = Clocked::start(ahead);
        let hangs = || Endpoint { timeout: 10 * MINUTE, max_in_flight: 1, ..to_a() };
        clocked.world.route_to("a", hangs());
        clocked.world.does("a", |_| Does::Hangs);
        clocked.world.publish("a", 2).await;
        clocked.world.pass(MINUTE).await;
        let clocked = clocked.set_back(ahead, restarts).await;
        clocked.world.route_to("a", hangs());
        clocked.world.does("a", |_| Does::Hangs);
        clocked.world.pass(31 * SECOND).await;
        let oldest = clocked.world.oldest("turn");
        assert!((24.0..=100.0).contains(&oldest), "{what}: {oldest}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_ended_while_the_clock_was_ahead_is_redelivered_at_once() {
    for (ahead, restarts) in AHEAD {
        let clocked = Clocked::start(ahead);
        clocked.world.route_to("a", Endpoint { retry: Policy { max_retries: 0, ..to_a().retry }, ..to_a() });
        clocked.world.does("a", |_| Does::Status(500));
        let [name] = clocked.world.publish("a", 1).await[..] else { panic!() };
        clocked.world.pass(SECOND).await;
        assert_eq!(clocked.get(name).await.reason, Some(EndReason::RetriesExhausted));
        let clocked = clocked.set_back(ahead, restarts).await;
        clocked.world.route_to("a", to_a());
        let namespace = Namespace::clone(&webhook("a").namespace);
        let asked = Redelivery { name, namespace, by: "jane".into(), at: clocked.world.now() };
        clocked.world.does("a", |_| Does::Status(200));
        let redelivered = clocked.world.store.redeliver(vec![asked]).await.unwrap();
        assert_eq!(redelivered, [Redelivered::Queued], "{ahead:?}");
        clocked.world.pass(10 * SECOND).await;
        assert_eq!(clocked.get(name).await.state, State::Success, "{ahead:?}, restarts: {restarts}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_forward_makes_nothing_wait() {
    for (by, restarts) in AHEAD {
        let clocked = Clocked::start(Duration::ZERO);
        clocked.world.route_to("a", to_a());
        clocked.world.does("a", |_| Does::Status(503));
        let names = clocked.world.publish("a", 3).await;
        clocked.world.pass(MINUTE / 2).await;
        let clocked = clocked.set_back(Duration::ZERO, restarts).await;
        clocked.hand.advance(by);
        clocked.world.route_to("a", to_a());
        clocked.world.does("a", |_| Does::Status(200));
        clocked.world.pass(2 * MINUTE).await;
        for name in &names {
            assert_eq!(clocked.get(*name).await.state, State::Success, "{by:?}, restarts: {restarts}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_to_and_fro_all_the_time_stops_nothing() {
    let clocked = Clocked::start(Duration::ZERO);
    clocked.world.route_to("a", to_a());
    clocked.world.does("a", |count| {
        Does::Status(if ((count * 2_654_435_761) >> 9).is_multiple_of(4) { 503 } else { 200 })
    });
    let mut names = Vec::new();
    for round in 0..60_u32 {
        names.extend(clocked.world.publish("a", 1).await);
        let by = [SECOND, HOUR, DAY, 2 * DAY][usize::try_from(round).unwrap() % 4];
        if round % 3 == 0 {
            clocked.hand.advance(by);
        } else {
            clocked.hand.set_back(by / 2);
        }
        clocked.world.pass(7 * SECOND).await;
    }
    clocked.world.pass(10 * MINUTE).await;
    for name in names {
        let line = clocked.get(name).await;
        assert_eq!(line.state, State::Success, "{line:?}");
    }
}
