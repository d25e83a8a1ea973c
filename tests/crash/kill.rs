//! `kill -9` at random moments under load: what was acknowledged arrives or ends as a recorded failure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hookwright_harness::publisher::Event;
use hookwright_harness::receiver::Answer;
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::world::{SOON, Team, World};

const KILLS: usize = 50;

/// A small generator of our own: the same in every run, so that a failure can be repeated; SEED=n explores others.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Few are bad.
fn kind_of(number: usize) -> &'static str {
    match number {
        _ if number.is_multiple_of(50) => "bad",
        _ if number.is_multiple_of(2) => "good",
        _ => "flaky",
    }
}

/// Publishes until told to end; answers the ids that were acknowledged.
async fn publish_until(
    team: &Team,
    end: &AtomicBool,
    acknowledged: &AtomicU64,
) -> anyhow::Result<HashSet<String>> {
    let mut ids = HashSet::new();
    let mut number = 0_usize;
    while !end.load(Ordering::SeqCst) {
        let batch: Vec<_> = (0..5)
            .map(|_| {
                number += 1;
                let kind = kind_of(number);
                Event::new(format!("{kind}{number}"), kind, json!({ "n": number }))
            })
            .collect();
        // A batch is sent again until it is answered: the same ids, so at least once and never lost.
        loop {
            match team.batch(&batch).await {
                Ok(receipts) => {
                    assert_eq!(receipts.len(), batch.len());
                    break;
                }
                Err(_) if end.load(Ordering::SeqCst) => return Ok(ids),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        ids.extend(batch.into_iter().map(|event| event.id));
        acknowledged.store(ids.len() as u64, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(ids)
}

/// Watches counters of a Webhook; answers every step back that it saw.
async fn steps_back(team: &Team, name: &str, end: &AtomicBool) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut last: HashMap<&str, i64> = HashMap::new();
    let mut last_triggered = String::new();
    let object = ("webhooks.hookwright.dev", &*team.namespace, name);
    let timeout = Duration::from_mins(15);
    team.kubectl
        .wait_for(object, timeout, "the end of the test", |webhook| {
            let number = webhook["status"]["failureCount"].as_i64().unwrap_or(0);
            let before = last.insert("failureCount", number).unwrap_or(0);
            if number < before {
                found.push(format!("failureCount from {before} to {number}"));
            }
            let triggered = webhook["status"]["lastTriggered"].as_str().unwrap_or_default().to_owned();
            if triggered < last_triggered {
                found.push(format!("lastTriggered from {last_triggered} to {triggered}"));
            }
            last_triggered = triggered;
            end.load(Ordering::SeqCst)
        })
        .await?;
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_under_load_lose_nothing_and_turn_nothing_back() -> anyhow::Result<()> {
    let world = World::alone(&[]).await?;
    let team = Arc::new(Team::of(&world, "kill").await?);
    let seed = std::env::var("PROPTEST_RNG_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or(20_261_125) | 1;
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    eprintln!("seed {seed}");

    team.receiver.answer("/good", Answer::ok().after(Duration::from_millis(5)));
    // Every other attempt, so that the endpoint is seldom thought dead and retries wait all the time.
    let flaky = (0..2000).map(|n| if n % 2 == 0 { Answer::status(503) } else { Answer::ok() });
    team.receiver.set_script("/flaky", flaky.collect(), Answer::ok());
    team.receiver.answer("/bad", Answer::status(400));
    let backoff = json!({"initial": "1s", "factor": 1, "max": "60s"});
    for (name, retries) in [("good", 20), ("flaky", 20), ("bad", 0)] {
        team.webhook(name, json!({"eventTypes": [name], "maxRetries": retries, "backoff": backoff})).await?;
    }

    let tasks = TaskTracker::new();
    let end = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let publishing = {
        let (team, end, acknowledged) = (Arc::clone(&team), Arc::clone(&end), Arc::clone(&acknowledged));
        tasks.spawn(async move { publish_until(&team, &end, &acknowledged).await })
    };
    let watching_end = Arc::new(AtomicBool::new(false));
    let watching = {
        let (team, end) = (Arc::clone(&team), Arc::clone(&watching_end));
        tasks.spawn(async move { steps_back(&team, "bad", &end).await })
    };
    for kill in 0..KILLS {
        // Each life has acknowledged something, however long it took to begin.
        let before = acknowledged.load(Ordering::SeqCst);
        eventually(SOON, "something to be acknowledged", async || {
            let now = acknowledged.load(Ordering::SeqCst);
            if now > before { Ok(()) } else { Err(now.to_string()) }
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(dice.below(500))).await;
        let mut operator = world.operator.lock().await;
        operator.kill9();
        operator.start_process().await?;
        drop(operator);
        if kill % 10 == 9 {
            eprintln!("{} kills, {} acknowledged", kill + 1, acknowledged.load(Ordering::SeqCst));
        }
    }
    end.store(true, Ordering::SeqCst);
    let ids = publishing.await??;
    assert!(ids.len() > KILLS, "the load was real: {} acknowledged", ids.len());

    // All of it ends: nothing pending at any of the three.
    let mut failed = 0;
    for name in ["good", "flaky", "bad"] {
        let webhook = await_drained(&team, name).await?;
        failed += webhook["status"]["failureCount"].as_i64().unwrap_or(0);
    }
    let mut arrived = HashSet::new();
    let mut copies: HashMap<String, HashSet<String>> = HashMap::new();
    for path in ["/good", "/flaky", "/bad"] {
        for request in team.receiver.requests(path) {
            let id = request.header("ce-id").unwrap_or_default().to_owned();
            let name = request.header("webhook-id").unwrap_or_default().to_owned();
            copies.entry(id.clone()).or_default().insert(name);
            arrived.insert(id);
        }
    }
    let lost: Vec<_> = ids.difference(&arrived).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged never arrived: {lost:?}", lost.len(), ids.len());
    let renamed: Vec<_> = copies.iter().filter(|(_, names)| names.len() > 1).collect();
    assert!(renamed.is_empty(), "one webhook-id for each delivery, on every attempt: {renamed:?}");
    let bad = copies.keys().filter(|id| id.starts_with("bad")).count();
    assert_eq!(
        failed,
        i64::try_from(bad)?,
        "each delivery that could not arrive is a recorded failure, once"
    );

    watching_end.store(true, Ordering::SeqCst);
    team.kubectl.ok(&["annotate", "-n", &team.namespace, "hook/bad", "test/end=1"]).await?;
    let back = watching.await??;
    assert!(back.is_empty(), "{back:?}");
    Ok(())
}

async fn await_drained(team: &Team, name: &str) -> anyhow::Result<Value> {
    let object = ("webhooks.hookwright.dev", &*team.namespace, name);
    let timeout = Duration::from_mins(10);
    team.kubectl
        .wait_for(object, timeout, "nothing pending", |webhook| {
            webhook["status"]["pendingDeliveries"] == 0 && webhook["status"]["lastTriggered"].is_string()
        })
        .await
}
