//! However many deliveries, a Webhook is reconciled and its status written rarely, and that stays small.
#![allow(clippy::indexing_slicing, reason = "a JSON value that is missing is null, and the test fails")]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use hookwright_harness::publisher::Event;
use serde_json::json;

#[path = "e2e/world.rs"]
#[allow(dead_code, reason = "the same ground as the other tests, of which this uses a part")]
mod world;

use world::{SOON, Team, World};

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_deliveries_in_a_minute_are_at_most_thirteen_writes() -> anyhow::Result<()> {
    let world = World::alone(&[]).await?;
    let team = Team::of(&world, "calm").await?;
    team.webhook("orders", json!({"historyLimit": 25, "maxInFlight": 256})).await?;
    team.receiver.keep_requests(false);

    let mut versions = HashSet::new();
    let mut largest = 0;
    let reconciles = async || {
        let operator = world.operator.lock().await;
        let all = operator.metric("hookwright_reconciles_total", &["kind=\"Webhook\""]).await?;
        anyhow::Ok((all, operator.metric("hookwright_reconcile_errors_total", &[]).await?))
    };
    let (before, errors_before) = reconciles().await?;
    let begun = Instant::now();
    let object = ("webhooks.hookwright.dev", &*team.namespace, "orders");
    let minute = Duration::from_mins(1);
    let watching = team.kubectl.wait_for(object, minute + SOON, "the end of the minute", |webhook| {
        if begun.elapsed() < minute {
            versions.insert(webhook["metadata"]["resourceVersion"].to_string());
        }
        largest = largest.max(webhook["status"].to_string().len());
        begun.elapsed() >= minute && webhook["status"]["pendingDeliveries"] == 0
    });
    let publishing = async {
        // 100 batches of 100, spread over the minute, so that there is something new to say all the time.
        let mut tick = tokio::time::interval(Duration::from_millis(590));
        for batch in 0..100 {
            tick.tick().await;
            let events: Vec<_> = (0..100)
                .map(|n| Event::new(format!("{batch}-{n}"), "order.created", json!({ "n": n })))
                .collect();
            team.batch(&events).await?;
        }
        // One more after the minute, so that the watch sees a change then.
        tokio::time::sleep(minute.saturating_sub(begun.elapsed())).await;
        let (after, errors) = reconciles().await?;
        let time = begun.elapsed().as_secs_f64();
        team.publish("order.created", &json!({"last": true})).await?;
        anyhow::Ok((after - before, errors - errors_before, time))
    };
    let (watched, published) = tokio::join!(watching, publishing);
    watched?;
    let (looks, errors, time) = published?;
    // The store's changes are looked at five times a second, each write is seen by the watch, and what comes too soon
    // after one is looked at again when it is time.
    let most = 5.0 * time + 2.0 * 13.0;
    assert!(looks <= most, "{looks} reconciles in {time} s, of one Webhook");
    assert!(looks >= 2.0, "they are counted: {looks}");
    assert!(errors == 0.0, "{errors} reconciles failed");
    team.receiver
        .await_requests("/orders", 10_001, SOON)
        .await
        .map(drop)
        .or_else(|error| if team.receiver.count("/orders") >= 10_001 { Ok(()) } else { Err(error) })?;
    // The first version seen was there before.
    let writes = versions.len() - 1;
    assert!(writes <= 13, "{writes} writes in a minute");
    assert!(writes >= 2, "the status follows: {writes} writes");
    assert!(largest < 8192, "{largest} bytes of status");
    Ok(())
}
