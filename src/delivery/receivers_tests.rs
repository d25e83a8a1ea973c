//! How the load follows receivers of many kinds: the engine in tokio's paused time, 100 events a second for each
//! receiver, `maxInFlight` 64 and `maxRetries` 8.

use std::time::Duration;

use super::engine::Settings;
use super::testing::world::{Does, Try, World, number};
use super::testing::{START, endpoint, webhook};
use crate::clock::Clock;
use crate::model::ids::DeliveryName;
use crate::model::rate::RateLimit;
use crate::model::retry;
use crate::routes::Endpoint;
use crate::routes::hold::{Hold, hold};
use crate::store::{Delivery, EndReason, State};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// How long an answer takes, unless the receiver does something else.
const TAKES: Duration = Duration::from_millis(100);

fn policy() -> retry::Policy {
    retry::Policy { max_retries: 8, ..endpoint("https://x.localhost/").retry }
}

fn world(does: impl Fn(&Try) -> Does + Send + Sync + 'static) -> World {
    let world = World::start();
    world.route_to("a", Endpoint { retry: policy(), ..endpoint("https://a.localhost/") });
    world.does_by("a", does);
    world
}

/// Publishes 100 events a second for so many seconds.
async fn offer(world: &World, seconds: u32) -> Vec<DeliveryName> {
    offer_times(world, 1, seconds).await
}

/// Publishes so many hundred events a second.
async fn offer_times(world: &World, hundreds: usize, seconds: u32) -> Vec<DeliveryName> {
    let mut names = Vec::new();
    for _ in 0..seconds * 20 {
        names.extend(world.publish("a", 5 * hundreds).await);
        world.pass(50 * MILLI).await;
    }
    names
}

fn is_held(world: &World) -> bool {
    let route = world.table.get(webhook("a").uid).unwrap();
    hold(&route, world.store.summary(webhook("a").uid).as_deref()) == Some(Hold::EndpointUnhealthy)
}

/// How long after its acceptance it arrived.
fn waited(delivery: &Delivery) -> Option<Duration> {
    let last = delivery.attempts.last().filter(|_| delivery.state == State::Success)?;
    Some((last.at + last.duration).since(delivery.accepted_at))
}

/// From its first attempt to its last.
fn lived(delivery: &Delivery) -> Duration {
    let attempts = &delivery.attempts;
    attempts.last().unwrap().at.since(attempts.first().unwrap().at)
}

fn get(world: &World, names: &[DeliveryName]) -> Vec<Delivery> {
    names.iter().map(|name| world.get(*name)).collect()
}

fn arrived(deliveries: &[Delivery]) -> usize {
    deliveries.iter().filter(|delivery| delivery.state == State::Success).count()
}

/// Those that failed used all their retries, at their own times.
fn assert_none_failed_early(deliveries: &[Delivery]) {
    for delivery in deliveries.iter().filter(|delivery| delivery.state == State::Failed) {
        assert_eq!(delivery.reason, Some(EndReason::RetriesExhausted));
        assert_eq!(delivery.attempts_made(), 9, "{delivery:?}");
        assert!(lived(delivery) >= policy().gives_up_after(), "{delivery:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_type_that_is_refused_costs_the_others_nothing() {
    let poison = |name: DeliveryName| number(name).is_multiple_of(20);
    let world = world(move |one| Does::Slowly(if poison(one.name) { 400 } else { 200 }, TAKES));
    let names = offer(&world, 60).await;
    assert!(!is_held(&world));
    world.pass(SECOND).await;
    for delivery in get(&world, &names).iter().filter(|delivery| !poison(delivery.name)) {
        assert_eq!(waited(delivery), Some(TAKES), "{delivery:?}");
    }
    world.pass(4 * DAY).await;
    let refused: Vec<_> = get(&world, &names).into_iter().filter(|delivery| poison(delivery.name)).collect();
    assert_eq!(refused.len(), 300);
    assert!(refused.iter().all(|delivery| delivery.state == State::Failed));
    assert_none_failed_early(&refused);
    let longest = policy().gives_up_after() + policy().gives_up_after() / 10 + MINUTE;
    assert!(refused.iter().all(|delivery| lived(delivery) <= longest), "nor do they wait for others");
}

#[tokio::test(start_paused = true)]
async fn a_minute_of_refused_events_keeps_no_good_one() {
    let world = world(|one| Does::Slowly(if one.number() <= 6000 { 400 } else { 200 }, TAKES));
    offer(&world, 60).await;
    let mut good = Vec::new();
    for _ in 0..60 {
        assert!(!is_held(&world));
        good.extend(world.publish("a", 1).await);
        world.pass(SECOND).await;
    }
    world.pass(SECOND).await;
    for delivery in get(&world, &good) {
        assert!(waited(&delivery).is_some_and(|waited| waited <= 2 * SECOND), "{delivery:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_fails_first_attempts_gets_every_event() {
    for (hundreds, takes) in [(1, TAKES), (4, 20 * MILLI)] {
        let world = world(move |one| Does::Slowly(if one.again == 0 { 503 } else { 200 }, takes));
        let names = offer_times(&world, hundreds, 40).await;
        // A retry comes 10 to 11 s after the first attempt: until now, of what was published in the first 28 s.
        let (now, allowed) = (arrived(&get(&world, &names)), hundreds * 2800);
        assert!(now * 10 >= allowed * 8, "{now} of {allowed}");
        world.pass(25 * SECOND).await;
        let all = get(&world, &names);
        assert_eq!(arrived(&all), names.len(), "25 s after the last was published");
        assert!(all.iter().all(|delivery| delivery.retry_count() == 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_fails_by_chance_gets_what_its_chance_allows() {
    for per_mille in [100, 300, 500] {
        let world = world(move |one| Does::Slowly(if one.chance() < per_mille { 503 } else { 200 }, TAKES));
        let mut names = offer(&world, 60).await;
        let before = arrived(&get(&world, &names));
        names.extend(offer(&world, 60).await);
        let more = arrived(&get(&world, &names)) - before;
        let allowed = 6000 * (1000 - per_mille) / 1000;
        assert!(more as u64 * 10 >= allowed * 8, "{per_mille}: {more} of {allowed}");
        assert!(!is_held(&world));
        world.pass(4 * DAY).await;
        let all = get(&world, &names);
        assert!(all.iter().all(|delivery| delivery.state.is_final()));
        assert_none_failed_early(&all);
        let failed = all.len() - arrived(&all);
        assert!(failed <= if per_mille == 500 { 60 } else { 3 }, "{per_mille}: {failed}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_99_of_100_fail_attempts_are_spaced() {
    let world = world(|one| Does::Slowly(if one.chance() < 990 { 503 } else { 200 }, TAKES));
    let names = offer(&world, 120).await;
    let before = (world.seen("a").len(), arrived(&get(&world, &names)));
    assert!(before.0 < 600, "{before:?}");
    world.pass(8 * HOUR).await;
    let all = get(&world, &names);
    let (seen, more) = (world.seen("a").len() - before.0, arrived(&all) - before.1);
    // One each minute; and a few after each that arrived, until it is clear that it was an exception.
    assert!(seen <= 8 * 60 * 60 / 54 + 24 * (more + 1), "{seen} attempts, {more} arrived");
    assert!(seen >= 8 * 60, "{seen}");
    assert_none_failed_early(&all);
    world.does("a", |_| Does::Slowly(200, TAKES));
    world.pass(5 * MINUTE).await;
    assert_eq!(arrived(&get(&world, &names)), names.len());
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_down_for_a_minute_gets_all_soon_after() {
    for does in [Does::IsDown, Does::Slowly(503, TAKES)] {
        let down = 30 * SECOND..90 * SECOND;
        let world = world(move |one| if down.contains(&one.at) { does } else { Does::Slowly(200, TAKES) });
        let names = offer(&world, 180).await;
        let during: Vec<_> =
            world.seen("a").into_iter().filter(|seen| (40..90).contains(&seen.at.as_secs())).collect();
        assert!((2..=4).contains(&during.len()), "{does:?}: {during:?}");
        world.pass(30 * SECOND).await;
        let all = get(&world, &names);
        assert_eq!(arrived(&all), names.len());
        let longest = all.iter().filter_map(waited).max().unwrap();
        assert!(longest <= 2 * MINUTE, "{does:?}: {longest:?}");
        assert!(world.peak("a") <= 64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_night_costs_no_event_and_its_end_is_followed_by_all() {
    for (waiting, soon) in [(3, 3), (50, 3), (100_000, 15)] {
        let world = World::start();
        let rate_limit = Some(RateLimit { requests: 200, per: SECOND, burst: 10 });
        world.route_to("a", Endpoint { retry: policy(), rate_limit, ..endpoint("https://a.localhost/") });
        world.does("a", |_| Does::IsDown);
        let names = world.publish("a", waiting).await;
        world.pass(8 * HOUR).await;
        let seen = world.seen("a");
        let night: Vec<_> = seen.iter().filter(|seen| seen.at >= HOUR).collect();
        for pair in night.windows(2) {
            let pause = pair[1].at.saturating_sub(pair[0].at);
            assert!(pause >= 54 * SECOND, "{waiting}: {pair:?}");
        }
        let all = get(&world, &names);
        assert!(all.iter().all(|delivery| !delivery.state.is_final()), "{waiting}");
        world.forget_peak("a");
        world.does("a", |_| Does::Slowly(200, TAKES));
        let began = world.now().since(START);
        world.pass(soon * MINUTE).await;
        let all = get(&world, &names);
        assert_eq!(arrived(&all), waiting, "{waiting}");
        assert!(world.peak("a") <= 64);
        let after: Vec<_> = world.seen("a").into_iter().filter(|seen| seen.at >= began).collect();
        assert_eq!(
            after.iter().map(|seen| seen.name).collect::<std::collections::HashSet<_>>().len(),
            waiting
        );
        let first = after[0].at;
        let soon = after.iter().filter(|seen| seen.at < first + 2 * TAKES).count();
        assert!(soon <= 3, "{waiting}: it rises, {soon}");
        for window in after.windows(211 + 10) {
            assert!(window[220].at.saturating_sub(window[0].at) >= SECOND, "the rate limit");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_down_for_good_keeps_events_for_as_long_as_they_have() {
    let world = world(|_| Does::IsDown);
    let names = world.publish("a", 50).await;
    world.pass(4 * DAY + 12 * HOUR).await;
    let all = get(&world, &names);
    assert!(all.iter().any(|delivery| delivery.state == State::Failed));
    assert_none_failed_early(&all);
    let probes = |delivery: &Delivery| delivery.attempts.iter().filter(|attempt| attempt.probe).count();
    assert!(all.iter().any(|delivery| probes(delivery) > 0));
    assert!(all.iter().all(|delivery| probes(delivery) <= 8), "the last few are kept");
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_takes_eight_gets_eight() {
    for does in [Does::Hangs, Does::Status(503), Does::Asks(429, SECOND)] {
        // Who takes an attempt is free again after its time: eight places, each with the time when it is free.
        let places = std::sync::Mutex::new([Duration::ZERO; 8]);
        let world = world(move |one| {
            let mut places = places.lock().unwrap();
            let Some(free) = places.iter_mut().find(|until| **until <= one.at) else { return does };
            *free = one.at + TAKES;
            Does::Slowly(200, TAKES)
        });
        offer(&world, 120).await;
        let (before, seen) = (world.store.summary(webhook("a").uid).unwrap(), world.seen("a").len());
        offer(&world, 300).await;
        let after = world.store.summary(webhook("a").uid).unwrap();
        let arrived = after.success_count - before.success_count;
        let failed = (world.seen("a").len() - seen) as u64 - arrived;
        assert!(arrived >= 300 * 80 * 8 / 10, "{does:?}: {arrived}");
        assert!(failed <= arrived / 50, "{does:?}: {failed} of {arrived}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_asks_for_time_is_asked_at_each_end_of_it() {
    let asks = 20 * SECOND..80 * SECOND;
    let world =
        world(
            move |one| {
                if asks.contains(&one.at) { Does::Asks(429, 5 * SECOND) } else { Does::Slowly(200, TAKES) }
            },
        );
    let mut names = offer(&world, 90).await;
    let looks: Vec<_> = world
        .seen("a")
        .into_iter()
        .map(|seen| seen.at)
        .filter(|at| (21..80).contains(&at.as_secs()))
        .collect();
    assert!((11..=12).contains(&looks.len()), "{looks:?}");
    for pair in looks.windows(2) {
        let pause = pair[1].saturating_sub(pair[0]);
        assert!(pause >= 5 * SECOND && pause < 6 * SECOND, "{looks:?}");
    }
    let later = offer(&world, 20).await;
    world.pass(SECOND).await;
    for delivery in &get(&world, &later)[1000..] {
        assert_eq!(waited(delivery), Some(TAKES), "as before");
    }
    world.pass(MINUTE).await;
    names.extend(later);
    let all = get(&world, &names);
    assert_eq!(arrived(&all), names.len());
    assert!(all.iter().all(|delivery| delivery.attempts_made() <= 3));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_breaks_its_receiver_keeps_nobody_for_long() {
    let poison = |one: &Try| Does::Slowly(if one.number() <= 20 { 500 } else { 200 }, TAKES);
    let world = world(poison);
    world.publish("a", 20).await;
    world.pass(10 * MINUTE).await;
    assert!(is_held(&world));
    for _ in 0..5 {
        let names = world.publish("a", 100).await;
        world.pass(MINUTE + 10 * SECOND).await;
        assert_eq!(arrived(&get(&world, &names)), 100);
        world.pass(5 * MINUTE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_redelivery_that_waits_for_its_receiver_makes_its_one_attempt() {
    use crate::store::Redelivery;
    let world = world(|one| Does::Slowly(if one.number() == 1 { 200 } else { 503 }, TAKES));
    let done = world.publish("a", 1).await[0];
    world.pass(SECOND).await;
    world.publish("a", 50).await;
    world.pass(2 * MINUTE).await;
    assert!(is_held(&world));
    world.does("a", |_| Does::Slowly(503, TAKES));
    let at = world.now() + HOUR;
    let asked = Redelivery { name: done, namespace: "team-a".into(), by: "jane".into(), at };
    world.store.redeliver(vec![asked]).await.unwrap();
    world.pass(59 * MINUTE).await;
    assert_eq!(world.get(done).attempts.len(), 1, "never before its time");
    world.does("a", |_| Does::Slowly(200, TAKES));
    world.pass(5 * MINUTE).await;
    let delivery = world.get(done);
    assert_eq!((delivery.state, delivery.attempts.len()), (State::Success, 2));
    assert!(delivery.attempts.iter().all(|attempt| !attempt.probe));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_fifty_dead_endpoints_are_not_looked_after_at_once() {
    let clock = Clock::following_tokio(START);
    let mut world = World::start_with(Settings::default(), clock.clone());
    let names: Vec<_> = (0..50).map(|number| format!("e{number}")).collect();
    let route = |world: &World| {
        for name in &names {
            let url = format!("https://{name}.localhost/");
            world.route_to(name, Endpoint { retry: policy(), ..endpoint(&url) });
            world.does(name, |_| Does::IsDown);
        }
    };
    route(&world);
    for name in &names {
        world.publish(name, 20).await;
    }
    world.pass(10 * MINUTE).await;
    world.stop().await;
    world.pass(HOUR).await;
    let began = world.now().since(START);
    let again = World::start_on(world.store.clone(), Settings::default(), clock);
    route(&again);
    again.pass(3 * MINUTE).await;
    let mut seen: Vec<_> = names.iter().flat_map(|name| again.seen(name)).map(|seen| seen.at).collect();
    seen.sort_unstable();
    assert!((150..=220).contains(&seen.len()), "{}", seen.len());
    for second in 0..180 {
        let within = seen.iter().filter(|at| at.saturating_sub(began).as_secs() == second).count();
        assert!(within <= 6, "{within} within a second");
    }
    let first = names.iter().map(|name| again.seen(name)[0].at.saturating_sub(began)).max().unwrap();
    assert!(first <= MINUTE, "{first:?}");
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_of_poison_chance_and_outages_cost_no_good_event() {
    let world = World::start();
    let retry = retry::Policy { max_retries: 20, initial: SECOND, factor: 2, max: 5 * SECOND };
    world.route_to("a", Endpoint { retry, ..endpoint("https://a.localhost/") });
    let poison = |name: DeliveryName| number(name).is_multiple_of(20);
    world.does_by("a", move |one| match one.at.as_secs() {
        120..180 | 300..360 | 480..540 => Does::IsDown,
        _ if poison(one.name) => Does::Slowly(400, TAKES),
        _ if one.chance() < 200 => Does::Slowly(503, TAKES),
        _ => Does::Slowly(200, TAKES),
    });
    let names = offer(&world, 600).await;
    world.pass(3 * MINUTE).await;
    let all = get(&world, &names);
    let good: Vec<_> = all.into_iter().filter(|delivery| !poison(delivery.name)).collect();
    let left: Vec<_> = good.iter().filter(|delivery| delivery.state != State::Success).collect();
    assert!(left.is_empty(), "{} of {}, such as {:?}", left.len(), good.len(), left[0]);
    let longest = good.iter().max_by_key(|delivery| waited(delivery)).unwrap();
    assert!(waited(longest) <= Some(2 * MINUTE), "an outage and a minute: {longest:?}");
}
