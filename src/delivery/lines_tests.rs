//! What an hour of trouble costs in log lines, in tokio's paused time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::testing::endpoint;
use super::testing::lines::Lines;
use super::testing::world::{Does, World};
use crate::model::retry;
use crate::routes::Endpoint;

/// An hour of `trouble`: of one Webhook with an event a second, or of several with one a minute each; what was written.
async fn an_hour(webhooks: usize, trouble: impl FnOnce(&World)) -> Vec<String> {
    let lines = Lines::capture();
    let world = World::start();
    let names: Vec<_> = (0..webhooks).map(|number| format!("w{number}")).collect();
    for name in &names {
        let endpoint = endpoint(&format!("https://{name}.localhost/"));
        world.route_to(name, Endpoint { max_in_flight: 8, ..endpoint });
    }
    trouble(&world);
    let pause = Duration::from_secs(if webhooks == 1 { 1 } else { 60 });
    for _ in 0..3600 / pause.as_secs() {
        for name in &names {
            world.publish(name, 1).await;
        }
        world.pass(pause).await;
    }
    lines.all()
}

fn expect(lines: &[String], at_most: usize, said: &[&str]) {
    let count = lines.len();
    assert!(count < at_most, "{count} lines, among them\n{}", lines[..count.min(120)].join("\n"));
    for words in said {
        assert!(lines.iter().any(|line| line.contains(words)), "{words} in\n{}", lines.join("\n"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_a_dead_receiver() {
    let lines = an_hour(1, |world| world.does("w0", |_| Does::Status(503))).await;
    expect(&lines, 50, &["attempt failed", "status=503", "team-a/w0", "unhealthy: one attempt at a time"]);
    let untold = lines.iter().filter(|line| !line.contains("unlogged=0")).count();
    assert!(untold > 0, "they say how many were not written");
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_many_webhooks_of_one_dead_receiver() {
    let dead = |world: &World| {
        for number in 0..30 {
            world.does(&format!("w{number}"), |_| Does::Status(503));
        }
    };
    expect(&an_hour(30, dead).await, 150, &["attempt failed", "unhealthy: one attempt at a time"]);
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_a_flapping_receiver() {
    let flaps = |count| Does::Status(if count % 12 == 11 { 200 } else { 503 });
    let lines = an_hour(1, |world| world.does("w0", flaps)).await;
    expect(&lines, 100, &["attempt failed", "unhealthy: one attempt at a time", "healthy again"]);
    let said = |words: &str| lines.iter().filter(|line| line.contains(words)).count();
    let (ill, well) = (said(" unhealthy: "), said(" healthy again: "));
    assert!(well == ill || well + 1 == ill, "each is taken back: {ill} and {well}");
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_a_store_that_refuses_records() {
    let refuses = |world: &World| world.fake.refuses_records.store(true, Ordering::SeqCst);
    let lines = an_hour(1, refuses).await;
    expect(&lines, 100, &["an outcome is recorded later", "cannot record: told to fail"]);
    expect(&lines, 100, &["an outcome was not recorded; the attempt is repeated"]);
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_a_store_that_refuses_claims() {
    let refuses = |world: &World| world.fake.refuses_claims.store(true, Ordering::SeqCst);
    expect(&an_hour(1, refuses).await, 100, &["cannot claim; trying again", "cannot claim: told to fail"]);
    expect(&an_hour(30, refuses).await, 100, &["cannot claim; trying again"]);
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_attempts_that_panic() {
    let panics = |world: &World| world.does("w0", |_| Does::Panics);
    expect(&an_hour(1, panics).await, 100, &["an attempt panicked", "w0"]);
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_one_failing_event_after_the_other_of_which_each_gives_up() {
    let lines = Lines::capture();
    let world = World::start();
    let retry = retry::Policy { max_retries: 0, ..endpoint("https://x.localhost/").retry };
    world.route_to("w0", Endpoint { retry, ..endpoint("https://w0.localhost/") });
    world.does("w0", |_| Does::Status(500));
    for _ in 0..120 {
        world.publish("w0", 1).await;
        world.pass(Duration::from_secs(30)).await;
    }
    // Its worker ends between two of them, and knows nothing of what another has said.
    expect(&lines.all(), 50, &["delivery failed", "unhealthy: one attempt at a time"]);
}
