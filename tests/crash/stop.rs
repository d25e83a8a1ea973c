//! SIGTERM: nothing new is begun, what is under way ends and is recorded, the process exits in time.

use std::time::{Duration, Instant};

use hookwright_harness::receiver::Answer;
use serde_json::json;

use crate::world::{SOON, Team, World, newest};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_ends_and_what_waits_goes_out_after_the_restart() -> anyhow::Result<()> {
    let world = World::alone(&[]).await?;
    let team = Team::of(&world, "stop").await?;
    team.receiver.answer("/orders", Answer::ok().after(Duration::from_secs(2)));
    team.webhook("orders", json!({"maxInFlight": 1})).await?;
    team.publish("order.created", &json!({"n": 1})).await?;
    team.publish("order.created", &json!({"n": 2})).await?;
    team.receiver.await_requests("/orders", 1, SOON).await?;

    let asked = Instant::now();
    let status = world.operator.lock().await.sigterm().await?;
    assert!(status.success(), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert_eq!(team.receiver.count("/orders"), 1, "no new claims");

    world.operator.lock().await.start_process().await?;
    let requests = team.receiver.await_requests("/orders", 2, SOON).await?;
    assert_ne!(requests[0].header("webhook-id"), requests[1].header("webhook-id"), "the first was recorded");
    team.await_webhook("orders", "both Success", |webhook| {
        newest(webhook)["state"] == "Success" && webhook["status"]["pendingDeliveries"] == 0
    })
    .await?;
    assert_eq!(team.receiver.count("/orders"), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_outlasts_the_grace_is_made_again_with_the_same_id() -> anyhow::Result<()> {
    let world = World::alone(&["--shutdown-grace=1s"]).await?;
    let team = Team::of(&world, "grace").await?;
    team.receiver.set_script("/orders", vec![Answer::hang()], Answer::ok());
    team.webhook("orders", json!({"timeout": "60s"})).await?;
    team.publish("order.created", &json!({"n": 1})).await?;
    team.receiver.await_requests("/orders", 1, SOON).await?;
    let asked = Instant::now();
    let status = world.operator.lock().await.sigterm().await?;
    assert!(status.success(), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());

    world.operator.lock().await.start_process().await?;
    let requests = team.receiver.await_requests("/orders", 2, SOON).await?;
    assert_eq!(requests[0].header("webhook-id"), requests[1].header("webhook-id"));
    Ok(())
}
