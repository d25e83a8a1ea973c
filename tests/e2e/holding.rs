//! What waits is shown, and goes out in order.

use std::time::Duration;

use hookwright_harness::publisher::Event;
use hookwright_harness::receiver::Answer;
use serde_json::{Value, json};

use crate::world::{SOON, Team, condition};

fn states(webhook: &Value) -> Vec<&str> {
    let list = webhook["status"]["deliveries"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|delivery| delivery["state"].as_str()).collect()
}

#[tokio::test]
async fn what_is_published_to_a_paused_webhook_is_held_and_arrives_on_resume_in_order() -> anyhow::Result<()>
{
    let team = Team::new("paused").await?;
    team.webhook("orders", json!({"active": false, "maxInFlight": 1})).await?;
    for n in 1..=3 {
        team.publish("order.created", &json!({ "n": n })).await?;
    }
    team.await_webhook("orders", "three Held", |webhook| {
        states(webhook) == ["Held", "Held", "Held"]
            && webhook["status"]["heldDeliveries"] == 3
            && webhook["status"]["pendingDeliveries"] == 3
    })
    .await?;
    assert_eq!(team.receiver.count("/orders"), 0);

    team.patch("orders", json!({"active": true})).await?;
    let requests = team.receiver.await_requests("/orders", 3, SOON).await?;
    let order: Vec<_> = requests.iter().map(|request| request.json().map(|body| body["n"].clone())).collect();
    let order = order.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    assert_eq!(order, [1, 2, 3]);
    let webhook = team
        .await_webhook("orders", "three Success", |webhook| {
            states(webhook) == ["Success"; 3] && webhook["status"]["heldDeliveries"] == 0
        })
        .await?;
    assert!(
        webhook["status"]["deliveries"]
            .as_array()
            .is_some_and(|all| { all.iter().all(|delivery| delivery["retryCount"] == 0) })
    );
    Ok(())
}

#[tokio::test]
async fn a_dead_endpoint_is_looked_after_and_then_gets_everything() -> anyhow::Result<()> {
    let team = Team::new("probe").await?;
    team.receiver.answer("/orders", Answer::status(503));
    team.webhook("orders", json!({"maxRetries": 20, "maxInFlight": 1, "historyLimit": 25})).await?;
    for n in 0..20 {
        team.publish("order.created", &json!({ "n": n })).await?;
    }
    let webhook = team
        .await_webhook("orders", "unhealthy, the rest Held", |webhook| {
            let healthy = condition(webhook, "EndpointHealthy");
            healthy["reason"] == "ServerErrors" && states(webhook).contains(&"Held")
        })
        .await?;
    let message = condition(&webhook, "EndpointHealthy")["message"].to_string();
    for said in ["answered 503", "20 deliveries wait", "one attempt at a time, the next at "] {
        assert!(message.contains(said), "{said} in {message}");
    }
    assert_eq!(condition(&webhook, "Ready")["status"], "True");
    let before = team.receiver.count("/orders");
    // While it is down somebody knocks once in each backoff: 1 s here at first, then longer.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let looks = team.receiver.count("/orders") - before;
    assert!((0..=3).contains(&looks), "{looks} attempts in 3 s");
    // Nothing of this is Hookwright's own fault, which a restart would mend.
    let live = team.world.operator.lock().await.get("/livez?verbose").await?;
    assert_eq!(live.status(), 200);
    let live = live.text().await?;
    assert!(live.lines().any(|line| line == "[+]deliveries ok"), "{live}");

    team.receiver.answer("/orders", Answer::ok());
    team.await_webhook("orders", "all Success", |webhook| {
        states(webhook) == ["Success"; 20] && condition(webhook, "EndpointHealthy")["status"] == "True"
    })
    .await?;
    team.await_one_event("EndpointUnhealthy").await?;
    team.await_one_event("EndpointHealthy").await
}

#[tokio::test]
async fn refused_events_keep_no_good_one_waiting() -> anyhow::Result<()> {
    let team = Team::new("refused").await?;
    team.receiver.answer("/bad", Answer::status(400));
    team.webhook("bad", json!({"maxRetries": 8, "eventTypes": ["order.bad"]})).await?;
    for n in 0..20 {
        team.publish("order.bad", &json!({ "n": n })).await?;
    }
    team.await_webhook("bad", "told to be unhealthy, and why", |webhook| {
        let healthy = condition(webhook, "EndpointHealthy");
        healthy["status"] == "False" && healthy["reason"] == "Rejects" && !states(webhook).contains(&"Held")
    })
    .await?;
    // From now on its receiver takes what comes: nobody has to wait for what was refused.
    team.receiver.answer("/bad", Answer::ok());
    let before = team.receiver.count("/bad");
    team.publish("order.bad", &json!({"n": 20})).await?;
    team.receiver.await_requests("/bad", before + 1, Duration::from_secs(2)).await?;
    Ok(())
}

#[tokio::test]
async fn a_receiver_that_fails_each_first_attempt_gets_every_event() -> anyhow::Result<()> {
    const COUNT: usize = 200;
    let team = Team::new("firsts").await?;
    team.receiver.answer("/orders", Answer::ok().but_first(503));
    let backoff = json!({"initial": "1s", "factor": 2, "max": "1m"});
    team.webhook("orders", json!({"maxRetries": 8, "backoff": backoff})).await?;
    publish_many(&team, "order.created", COUNT).await?;
    let requests = team.receiver.await_requests("/orders", 2 * COUNT, SOON).await?;
    let mut attempts = std::collections::HashMap::<_, usize>::new();
    for request in &requests {
        *attempts.entry(request.header("webhook-id")).or_default() += 1;
    }
    assert_eq!(attempts.len(), COUNT);
    assert!(attempts.values().all(|count| *count == 2), "{attempts:?}");
    Ok(())
}

/// Publishes so many events of this type, a hundred in a batch.
async fn publish_many(team: &Team, event_type: &str, count: usize) -> anyhow::Result<()> {
    for batch in 0..count / 100 {
        let events: Vec<_> = (0..100)
            .map(|n| Event::new(format!("{event_type}-{batch}-{n}"), event_type, json!({ "n": n })))
            .collect();
        team.batch(&events).await?;
    }
    Ok(())
}

#[tokio::test]
async fn max_in_flight_is_reached_and_never_exceeded_under_load() -> anyhow::Result<()> {
    let team = Team::new("in-flight").await?;
    team.receiver.answer("/orders", Answer::ok().after(Duration::from_millis(5)));
    team.webhook("orders", json!({"maxInFlight": 16})).await?;
    publish_many(&team, "order.created", 2000).await?;
    team.receiver.await_requests("/orders", 2000, SOON).await?;
    assert_eq!(team.receiver.peak_in_flight("/orders"), 16);
    Ok(())
}

#[tokio::test]
async fn a_rate_limit_is_reached_and_never_exceeded_under_load() -> anyhow::Result<()> {
    const COUNT: usize = 800;
    const RATE: usize = 200;
    const BURST: usize = 20;
    /// As fast as they may.
    const EXACT: Duration = Duration::from_millis(((COUNT - BURST) * 1000 / RATE) as u64);
    /// Requests that start in time may arrive together, when the machine was busy for half of a second.
    const JITTER: usize = RATE / 2;
    let team = Team::new("metered").await?;
    let limit = json!({"requests": RATE, "per": "1s", "burst": BURST});
    team.webhook("orders", json!({"rateLimit": limit, "active": false})).await?;
    publish_many(&team, "order.created", COUNT).await?;
    team.patch("orders", json!({"active": true})).await?;
    let requests = team.receiver.await_requests("/orders", COUNT, SOON).await?;
    let mut times: Vec<_> = requests.iter().map(|request| request.at).collect();
    times.sort_unstable();

    let second = Duration::from_secs(1);
    let in_a_second = |from: usize| times[from..].partition_point(|at| *at - times[from] < second);
    let most = (0..COUNT).map(in_a_second).max().unwrap_or_default();
    assert!(most <= RATE + BURST + JITTER, "{most} in one second");
    let took = times[COUNT - 1] - times[0];
    assert!(took >= EXACT.saturating_sub(second / 2), "{COUNT} took {took:?}, and may take {EXACT:?}");
    assert!(took <= EXACT * 2, "{COUNT} took {took:?}, and the limit allows {EXACT:?}");
    Ok(())
}
