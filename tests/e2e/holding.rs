//! What waits is shown, and goes out in order.

use std::time::Duration;

use anyhow::Context as _;
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
async fn a_failing_endpoint_is_probed_by_one_and_then_gets_everything() -> anyhow::Result<()> {
    let team = Team::new("probe").await?;
    team.receiver.answer("/orders", Answer::status(503));
    team.webhook("orders", json!({"maxRetries": 20, "maxInFlight": 1, "historyLimit": 25})).await?;
    for n in 0..20 {
        team.publish("order.created", &json!({ "n": n })).await?;
    }
    let webhook = team
        .await_webhook("orders", "probing, the rest Held", |webhook| {
            condition(webhook, "EndpointHealthy")["status"] == "False" && states(webhook).contains(&"Held")
        })
        .await?;
    assert_eq!(condition(&webhook, "Ready")["status"], "True");
    let before = team.receiver.count("/orders");
    // While it is down only the probe knocks, once in each backoff (1 s here).
    tokio::time::sleep(Duration::from_secs(3)).await;
    let probes = team.receiver.count("/orders") - before;
    assert!((1..=5).contains(&probes), "{probes} probes in 3 s");

    team.receiver.answer("/orders", Answer::ok());
    let webhook = team
        .await_webhook("orders", "all Success", |webhook| {
            states(webhook) == ["Success"; 20] && condition(webhook, "EndpointHealthy")["status"] == "True"
        })
        .await?;
    let retried = webhook["status"]["deliveries"].as_array().map(Vec::as_slice).unwrap_or_default();
    let waited = retried.iter().filter(|delivery| delivery["retryCount"] == 0).count();
    // Five failures open the probe; one more may be under way then, and one take over as the probe.
    assert!(waited >= 20 - 7, "waiting behind the probe uses up no attempt: {webhook:#}");
    team.await_one_event("EndpointUnhealthy").await?;
    team.await_one_event("EndpointHealthy").await
}

#[tokio::test]
async fn limits_of_a_webhook_are_kept() -> anyhow::Result<()> {
    let team = Team::new("limits").await?;
    let limit = json!({"requests": 5, "per": "1s", "burst": 1});
    team.receiver.answer("/slow", Answer::ok().after(Duration::from_millis(200)));
    team.webhook("slow", json!({"maxInFlight": 2, "eventTypes": ["slow"]})).await?;
    team.webhook("metered", json!({"rateLimit": limit, "eventTypes": ["metered"]})).await?;
    for n in 0..10 {
        team.publish("slow", &json!({ "n": n })).await?;
        team.publish("metered", &json!({ "n": n })).await?;
    }
    let metered =
        team.await_webhook("metered", "all Success", |webhook| states(webhook) == ["Success"; 10]).await?;
    team.receiver.await_requests("/slow", 10, SOON).await?;
    assert!(team.receiver.peak_in_flight("/slow") <= 2, "{}", team.receiver.peak_in_flight("/slow"));
    // When each attempt began: arrivals would have the first one's handshake in them.
    let begun = metered["status"]["deliveries"].as_array().context("deliveries")?.iter().map(|delivery| {
        Ok(delivery["startedAt"].as_str().context("startedAt")?.parse::<jiff::Timestamp>()?)
    });
    let begun = begun.collect::<anyhow::Result<Vec<_>>>()?;
    let (first, last) = (begun.iter().min().context("first")?, begun.iter().max().context("last")?);
    let took = last.duration_since(*first);
    assert!(took.as_millis() >= 1700, "9 intervals of 200 ms took {took:?}");
    Ok(())
}
