//! The engine in tokio's paused time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::engine::Settings;
use super::testing::world::{Does, World};
use super::testing::{START, endpoint, webhook};
use crate::clock::Clock;
use crate::model::rate::RateLimit;
use crate::model::retry;
use crate::routes::{Endpoint, Unready};
use crate::store::records::DisableReason;
use crate::store::{Change, EndReason, Redelivery, State};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

fn to(name: &str) -> Endpoint {
    endpoint(&format!("https://{name}.localhost/"))
}

fn retries(max_retries: u32) -> retry::Policy {
    retry::Policy { max_retries, ..endpoint("https://x.localhost/").retry }
}

#[tokio::test(start_paused = true)]
async fn two_failures_and_a_success_are_three_attempts_with_the_waits_of_the_backoff() {
    let world = World::start();
    world.route("a");
    world.does("a", |count| Does::Status(if count < 2 { 503 } else { 200 }));
    let [name] = world.publish("a", 1).await[..] else { panic!() };
    world.pass(2 * MINUTE).await;
    let seen = world.seen("a");
    assert!(seen.iter().all(|seen| seen.name == name), "{seen:?}");
    let waits: Vec<_> = seen.windows(2).map(|pair| pair[1].at.saturating_sub(pair[0].at)).collect();
    assert_eq!(waits.len(), 2, "{seen:?}");
    for (wait, expected) in waits.into_iter().zip([10 * SECOND, MINUTE]) {
        assert!(wait >= expected && wait <= expected + expected / 10 + SECOND / 100, "{wait:?}");
    }
    let delivery = world.get(name);
    assert_eq!((delivery.state, delivery.retry_count()), (State::Success, 2));
}

#[tokio::test(start_paused = true)]
async fn retries_end_and_the_delivery_with_them() {
    let world = World::start();
    world.route("a");
    world.does("a", |_| Does::Status(500));
    let [name] = world.publish("a", 1).await[..] else { panic!() };
    world.pass(HOUR).await;
    let delivery = world.get(name);
    assert_eq!((delivery.state, delivery.reason), (State::Failed, Some(EndReason::RetriesExhausted)));
    assert_eq!(delivery.attempts.len(), 4);
    assert_eq!(world.store.summary(webhook("a").uid).unwrap().failure_count, 1);
    let metrics = world.metrics.encode();
    assert!(metrics.contains("hookwright_deliveries_total{outcome=\"RetriesExhausted\"} 1"), "{metrics}");
    assert!(metrics.contains("hookwright_attempts_total{verdict=\"retry\"} 4"), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn what_is_redelivered_is_attempted_once_and_not_counted_again() {
    let world = World::start();
    world.route("a");
    world.does("a", |count| Does::Status(if count < 5 { 500 } else { 200 }));
    let [name] = world.publish("a", 1).await[..] else { panic!() };
    world.pass(HOUR).await;
    for (attempts, state) in [(5, State::Failed), (6, State::Success)] {
        let asked = Redelivery { name, namespace: "team-a".into(), by: "jane".into(), at: world.now() };
        world.store.redeliver(vec![asked]).await.unwrap();
        world.pass(HOUR).await;
        let delivery = world.get(name);
        assert_eq!((delivery.state, delivery.attempts.len()), (state, attempts));
        let summary = world.store.summary(webhook("a").uid).unwrap();
        assert_eq!((summary.failure_count, summary.pending), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_asks_for_time_gets_it() {
    let world = World::start();
    world.route("a");
    world.does("a", |count| if count == 0 { Does::Asks(429, 2 * MINUTE) } else { Does::Status(200) });
    world.publish("a", 1).await;
    world.pass(HOUR).await;
    assert_eq!(world.seconds("a"), [0, 120]);
}

#[tokio::test(start_paused = true)]
async fn a_denied_address_is_retried_like_every_failure() {
    let world = World::start();
    world.route("a");
    world.does("a", |_| Does::IsDenied);
    let [name] = world.publish("a", 1).await[..] else { panic!() };
    world.pass(HOUR).await;
    assert_eq!(world.get(name).reason, Some(EndReason::AddressDenied));
    assert_eq!(world.seen("a").len(), 4);
    assert!(world.metrics.encode().contains("hookwright_egress_denied_total 4"));
}

#[tokio::test(start_paused = true)]
async fn max_in_flight_is_used_and_never_exceeded() {
    let world = World::start();
    world.route_to("a", Endpoint { max_in_flight: 4, ..to("a") });
    world.does("a", |_| Does::Slowly(200, SECOND));
    world.fake.record_takes(SECOND / 10);
    world.publish("a", 100).await;
    world.pass(24 * SECOND + SECOND / 2).await;
    assert_eq!(world.peak("a"), 4);
    assert_eq!(world.seen("a").len(), 100, "a slot is free when the answer is in, not when it is recorded");
    world.pass(10 * SECOND).await;
    assert!(world.fake.all().iter().all(|delivery| delivery.state == State::Success));
}

#[tokio::test(start_paused = true)]
async fn the_rate_limit_is_used_and_never_exceeded() {
    let world = World::start();
    let rate_limit = Some(RateLimit { requests: 10, per: SECOND, burst: 3 });
    world.route_to("a", Endpoint { rate_limit, ..to("a") });
    for _ in 0..50 {
        world.publish("a", 2).await;
        world.pass(SECOND / 20).await;
    }
    world.pass(10 * SECOND).await;
    let seen = world.seen("a");
    assert_eq!(seen.len(), 100);
    for window in seen.windows(14) {
        assert!(
            window[13].at.saturating_sub(window[0].at) >= SECOND,
            "more than a burst and ten in a second: {window:?}"
        );
    }
    assert!(seen[99].at <= 10 * SECOND, "{:?}", seen[99]);
}

#[tokio::test(start_paused = true)]
async fn a_pause_between_single_events_does_not_buy_a_burst() {
    let world = World::start();
    let rate_limit = Some(RateLimit { requests: 1, per: 10 * SECOND, burst: 1 });
    world.route_to("a", Endpoint { rate_limit, ..to("a") });
    for _ in 0..4 {
        world.publish("a", 1).await;
        world.pass(SECOND).await;
    }
    world.pass(MINUTE).await;
    assert_eq!(world.seconds("a"), [0, 10, 20, 30]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_a_pause_goes_out_oldest_first_and_uses_no_attempt() {
    let world = World::start();
    let mut route = world.route_to("a", Endpoint { max_in_flight: 1, ..to("a") });
    route.active = false;
    world.table.upsert(route.clone());
    let mut names = world.publish("a", 2).await;
    world.pass(HOUR).await;
    names.extend(world.publish("a", 1).await);
    world.pass(HOUR).await;
    assert!(world.seen("a").is_empty());
    route.active = true;
    world.table.upsert(route);
    world.settle().await;
    let sent: Vec<_> = world.seen("a").into_iter().map(|seen| seen.name).collect();
    assert_eq!(sent, names);
    assert!(names.iter().all(|name| world.get(*name).attempts.len() == 1));
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_is_not_ready_is_held_too() {
    let world = World::start();
    let mut route = world.route("a");
    let ready = route.endpoint.clone();
    route.endpoint = Err(Unready { reason: "SecretNotFound", message: String::new(), stalled: false });
    world.table.upsert(route.clone());
    world.publish("a", 1).await;
    world.pass(MINUTE).await;
    assert!(world.seen("a").is_empty());
    route.endpoint = ready;
    world.table.upsert(route);
    world.settle().await;
    assert_eq!(world.seen("a").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_changed_url_applies_to_what_waits() {
    let world = World::start();
    world.route("a");
    world.does("a", |_| Does::Status(500));
    let [name] = world.publish("a", 1).await[..] else { panic!() };
    world.pass(SECOND).await;
    world.route_to("a", to("b"));
    world.pass(MINUTE).await;
    assert_eq!((world.seen("a").len(), world.seen("b").len()), (1, 1));
    assert_eq!(world.get(name).state, State::Success);
}

#[tokio::test(start_paused = true)]
async fn a_removed_webhook_ends_what_is_under_way_and_starts_nothing() {
    let world = World::start();
    world.route_to("a", Endpoint { max_in_flight: 1, ..to("a") });
    world.does("a", |_| Does::Slowly(200, 2 * SECOND));
    let names = world.publish("a", 2).await;
    world.pass(SECOND).await;
    world.table.remove(webhook("a").uid);
    world.pass(MINUTE).await;
    let states: Vec<_> = names.iter().map(|name| world.get(*name).state).collect();
    assert_eq!(states, [State::Success, State::Pending]);
    assert!(format!("{:?}", world.engine).contains("workers: 0"));
}

#[tokio::test(start_paused = true)]
async fn where_nothing_arrives_attempts_are_spaced_until_one_does() {
    let world = World::start();
    world.route_to("a", Endpoint { max_in_flight: 16, retry: retries(8), ..to("a") });
    world.does("a", |_| Does::Slowly(503, SECOND));
    let waiting = world.publish("a", 200).await;
    world.pass(15 * SECOND).await;
    let before = world.seen("a").len();
    assert!(before <= 16 + 16 + 10, "{before}");
    world.forget_peak("a");
    world.pass(30 * MINUTE).await;
    assert_eq!(world.peak("a"), 1, "one at a time");
    let looks: Vec<_> = world.seen("a").into_iter().skip(before).collect();
    let pauses: Vec<_> =
        looks.windows(2).map(|pair| pair[1].at.saturating_sub(pair[0].at).as_secs()).collect();
    assert!(pauses.iter().all(|pause| (18..=61).contains(pause)), "{pauses:?}");
    assert!((30..=36).contains(&looks.len()), "{}", looks.len());
    let used: usize = waiting.iter().map(|name| world.get(*name).attempts.len()).sum();
    assert_eq!(used, before + looks.len());
    let fresh = looks.iter().filter(|look| world.get(look.name).attempts.len() == 1).count();
    assert!(fresh * 2 >= looks.len() - 1, "one in two had never been tried: {fresh}");

    world.does("a", |_| Does::Slowly(200, SECOND));
    world.pass(2 * MINUTE).await;
    let seen: Vec<_> = world.seen("a").into_iter().skip(before + looks.len()).collect();
    let mut rounds: Vec<usize> = Vec::new();
    for window in seen.chunk_by(|a, b| b.at.saturating_sub(a.at) < SECOND / 2) {
        rounds.push(window.len());
    }
    assert_eq!(rounds[..7], [1, 1, 2, 4, 8, 16, 16], "{rounds:?}");
    assert!(waiting.iter().all(|name| world.get(*name).state == State::Success));
}

#[tokio::test(start_paused = true)]
async fn a_look_that_gives_up_leaves_the_next_its_turn_at_the_same_pace() {
    let world = World::start();
    world.route_to("a", Endpoint { retry: retries(0), max_in_flight: 1, ..to("a") });
    world.does("a", |_| Does::Slowly(500, SECOND));
    world.publish("a", 15).await;
    world.pass(2 * MINUTE).await;
    let seconds = world.seconds("a");
    assert_eq!(seconds[..8], [0, 1, 2, 3, 4, 5, 6, 7]);
    let looks: Vec<_> = seconds[7..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(matches!(looks[..], [10..=11, 19..=21, 37..=41]), "{looks:?}");
}

#[tokio::test(start_paused = true)]
async fn gone_disables_until_the_spec_changes() {
    let world = World::start();
    let mut route = world.route_to("a", Endpoint { max_in_flight: 1, ..to("a") });
    world.does("a", |count| Does::Status(if count == 0 { 410 } else { 200 }));
    let names = world.publish("a", 2).await;
    world.pass(HOUR).await;
    assert_eq!(world.get(names[0]).reason, Some(EndReason::Gone));
    assert_eq!(world.seen("a").len(), 1, "disabled");
    let disabled = world.store.summary(webhook("a").uid).unwrap().disabled.clone().unwrap();
    assert_eq!((disabled.generation, disabled.reason), (1, DisableReason::Gone));
    route.generation = 2;
    world.table.upsert(route);
    world.settle().await;
    assert_eq!(world.get(names[1]).state, State::Success);
}

#[tokio::test(start_paused = true)]
async fn five_days_without_an_answer_disable_and_enabling_resumes() {
    let world = World::start();
    world.route_to("a", Endpoint { retry: retries(1), ..to("a") });
    world.does("a", |_| Does::Status(500));
    let disabled = || world.store.summary(webhook("a").uid)?.disabled.clone();
    for _ in 0..5 * 12 {
        assert_eq!(disabled(), None);
        world.publish("a", 1).await;
        world.pass(2 * HOUR).await;
    }
    world.publish("a", 1).await;
    world.settle().await;
    assert_eq!(disabled().unwrap().reason, DisableReason::Failing);
    let seen = world.seen("a").len();
    world.publish("a", 1).await;
    world.pass(HOUR).await;
    assert_eq!(world.seen("a").len(), seen, "held");
    world.does("a", |_| Does::Status(200));
    world.store.update(webhook("a").uid, Change::Enable).await.unwrap();
    world.settle().await;
    assert!(world.seen("a").len() > seen);
}

#[tokio::test(start_paused = true)]
async fn a_new_spec_begins_the_five_days_anew() {
    let world = World::start();
    let mut route = world.route_to("a", Endpoint { retry: retries(0), ..to("a") });
    world.does("a", |_| Does::Status(500));
    let disabled = || world.store.summary(webhook("a").uid)?.disabled.clone();
    for _ in 0..=5 * 12 {
        world.publish("a", 1).await;
        world.pass(2 * HOUR).await;
    }
    assert_eq!(disabled().unwrap().generation, 1);
    let seen = world.seen("a").len();
    world.publish("a", 2).await;
    route.generation = 2;
    world.table.upsert(route);
    world.pass(HOUR).await;
    assert_eq!(world.seen("a").len(), seen + 2);
    assert_eq!(disabled(), None, "one failure by the new spec is not five days of them");
}

#[tokio::test(start_paused = true)]
async fn what_is_held_for_too_long_expires_oldest_first_and_nothing_else() {
    let world = World::start();
    let mut route = world.route("a");
    route.active = false;
    world.table.upsert(route);
    let old = world.publish("a", 300).await;
    world.pass(3 * DAY).await;
    let young = world.publish("a", 1).await;
    world.pass(3 * DAY + 23 * HOUR).await;
    assert!(old.iter().all(|name| world.get(*name).state == State::Pending));
    world.pass(2 * HOUR).await;
    assert!(old.iter().all(|name| world.get(*name).reason == Some(EndReason::Expired)));
    assert!(world.get(old[0]).attempts.is_empty());
    assert_eq!(world.get(young[0]).state, State::Pending);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_ends_a_great_many_expired_deliveries_does_not_stand_still() {
    let world = World::start();
    let mut route = world.route("a");
    route.active = false;
    world.table.upsert(route);
    // Between two sweeps, so that it is the worker that finds them.
    world.pass(HOUR / 2).await;
    let old = world.publish("a", 640).await;
    world.pass(7 * DAY + 10 * MINUTE).await;
    world.fake.record_takes(50 * SECOND);
    world.publish("a", 1).await;
    for _ in 0..10 {
        world.pass(30 * SECOND).await;
        assert_eq!(world.engine.progress(), Ok(()));
    }
    assert!(old.iter().all(|name| world.get(*name).reason == Some(EndReason::Expired)));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_receiver_for_too_long_expires_too() {
    let settings = Settings { held_limit: 2 * HOUR, ..Settings::default() };
    let world = World::start_with(settings, Clock::following_tokio(START));
    world.route_to("a", Endpoint { retry: retries(20), ..to("a") });
    world.does("a", |_| Does::Slowly(500, SECOND));
    let waiting = world.publish("a", 300).await;
    world.pass(HOUR + HOUR / 2).await;
    let expired =
        || waiting.iter().filter(|name| world.get(**name).reason == Some(EndReason::Expired)).count();
    assert_eq!(expired(), 0);
    world.pass(4 * HOUR).await;
    assert!(expired() > 150, "{}", expired());
}

#[tokio::test(start_paused = true)]
async fn one_hanging_endpoint_of_ten_costs_the_others_nothing() {
    let world = World::start();
    for number in 0..10 {
        let name = format!("e{number}");
        world.route_to(&name, Endpoint { max_in_flight: 8, ..to(&name) });
        world.does(&name, move |_| if number == 0 { Does::Hangs } else { Does::Slowly(200, SECOND / 10) });
        world.publish(&name, 800).await;
    }
    world.pass(10 * SECOND).await;
    for number in 1..10 {
        assert_eq!(world.seen(&format!("e{number}")).len(), 800, "{number}");
    }
    assert_eq!(world.seen("e0").len(), 8);
}

#[tokio::test(start_paused = true)]
async fn stopping_claims_nothing_more_and_records_what_ends_within_the_grace() {
    let mut world = World::start();
    world.route_to("quick", Endpoint { max_in_flight: 1, ..to("quick") });
    world.does("quick", |_| Does::Slowly(200, 5 * SECOND));
    world.route_to("hangs", Endpoint { max_in_flight: 1, timeout: MINUTE, ..to("hangs") });
    world.does("hangs", |_| Does::Hangs);
    let quick = world.publish("quick", 3).await;
    let hangs = world.publish("hangs", 3).await;
    world.settle().await;
    let began = tokio::time::Instant::now();
    world.stop().await;
    assert_eq!(began.elapsed().as_secs(), 20, "the grace");
    let states = |names: &[_]| names.iter().map(|name| world.get(*name).state).collect::<Vec<_>>();
    assert_eq!(states(&quick), [State::Success, State::Pending, State::Pending]);
    assert_eq!(states(&hangs), [State::Pending; 3]);
    assert_eq!(world.fake.released(), [hangs[0]]);
    assert!(world.get(hangs[0]).attempts.is_empty());
}

#[tokio::test(start_paused = true)]
async fn stopping_with_nothing_under_way_is_immediate() {
    let mut world = World::start();
    world.route("a");
    world.does("a", |_| Does::Status(500));
    world.publish("a", 1).await;
    world.settle().await;
    let began = tokio::time::Instant::now();
    world.stop().await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_is_asked_again_without_spinning_and_liveness_says_so() {
    let world = World::start();
    world.route("a");
    world.fake.refuses_claims.store(true, Ordering::SeqCst);
    let [name] = world.publish("a", 1).await[..] else { panic!() };
    world.pass(50 * SECOND).await;
    assert_eq!(world.engine.progress(), Ok(()));
    world.pass(MINUTE).await;
    assert!(world.engine.progress().unwrap_err().to_string().contains("the store gave no work for"));
    world.fake.refuses_claims.store(false, Ordering::SeqCst);
    world.pass(10 * SECOND).await;
    assert_eq!((world.get(name).state, world.engine.progress()), (State::Success, Ok(())));
    assert!(world.fake.claims() < 5);
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_is_refused_is_recorded_later_and_the_slot_is_free_meanwhile() {
    let world = World::start();
    world.route_to("a", Endpoint { max_in_flight: 1, ..to("a") });
    world.fake.refuses_records.store(true, Ordering::SeqCst);
    let names = world.publish("a", 3).await;
    world.pass(10 * SECOND).await;
    assert_eq!(world.seen("a").len(), 3);
    world.fake.refuses_records.store(false, Ordering::SeqCst);
    world.pass(10 * SECOND).await;
    assert!(names.iter().all(|name| world.get(*name).attempts.len() == 1), "none was sent twice");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_an_attempt_is_a_failure_and_keeps_no_slot() {
    let world = World::start();
    world.route_to("a", Endpoint { max_in_flight: 1, ..to("a") });
    world.does("a", |count| if count < 2 { Does::Panics } else { Does::Status(200) });
    let names = world.publish("a", 3).await;
    world.pass(MINUTE).await;
    assert!(names.iter().all(|name| world.get(*name).state == State::Success));
    assert_eq!(world.get(names[0]).attempts.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_set_forward_wakes_what_waits() {
    let (clock, hand) = Clock::manual(START);
    let world = World::start_with(Settings::default(), clock);
    world.route("a");
    world.does("a", |count| Does::Status(if count == 0 { 500 } else { 200 }));
    let [name] = world.publish("a", 1).await[..] else { panic!() };
    world.settle().await;
    assert_eq!(world.get(name).state, State::Retrying);
    hand.advance(HOUR);
    world.pass(6 * SECOND).await;
    assert_eq!(world.get(name).state, State::Success);
}

#[tokio::test(start_paused = true)]
async fn a_process_of_few_files_shares_them_and_none_waits_for_those_that_hang() {
    let settings = Settings { max_attempts: 64, ..Settings::default() };
    let world = World::start_with(settings, Clock::following_tokio(START));
    let names: Vec<_> = (0..200).map(|number| format!("e{number}")).collect();
    for name in &names {
        world.route_to(name, Endpoint { max_in_flight: 1000, timeout: MINUTE, ..to(name) });
        world.does(name, |_| Does::Hangs);
        world.publish(name, 100).await;
        world.settle().await;
    }
    let peaks: Vec<_> = names.iter().map(|name| world.peak(name)).collect();
    assert_eq!(peaks[..8], [64, 32, 16, 8, 4, 2, 1, 1]);
    assert_eq!(peaks.iter().sum::<usize>(), 127 + 193, "twice the whole, and one for each beyond");
    world.route("quick");
    world.does("quick", |_| Does::Slowly(200, SECOND / 10));
    let quick = world.publish("quick", 100).await;
    world.settle().await;
    assert_eq!(world.seen("quick").len(), 1);
    world.pass(11 * SECOND).await;
    assert!(quick.iter().all(|name| world.get(*name).state == State::Success));
}
