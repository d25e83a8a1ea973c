//! Deleting never waits for the operator, and what was deleted meanwhile is purged when it is back.

use hookwright::store::Store as _;
use hookwright::store::embedded::{Embedded, Options};
use hookwright_harness::wait::eventually;
use serde_json::json;

use crate::world::{SOON, Team, World, newest};

const API_SERVICE: &str = "apiservice/v1alpha1.delivery.hookwright.dev";

#[tokio::test(flavor = "multi_thread")]
async fn with_the_operator_gone_deletion_finishes_and_with_it_back_the_data_is_purged() -> anyhow::Result<()>
{
    let world = World::alone(&["--purge-grace=1s"]).await?;
    let (team, other) = (Team::of(&world, "purge").await?, Team::of(&world, "whole").await?);
    team.webhook("orders", json!({})).await?;
    team.webhook("kept", json!({})).await?;
    other.webhook("orders", json!({})).await?;
    for team in [&team, &other] {
        team.publish("order.created", &json!({})).await?;
        let done = |webhook: &serde_json::Value| newest(webhook)["state"] == "Success";
        team.await_webhook("orders", "Success", done).await?;
    }
    world.operator.lock().await.kill9();
    team.kubectl.ok(&["delete", "hook/orders", "-n", &team.namespace, "--timeout=20s"]).await?;
    // Whoever takes the operator away takes its APIService with it: kube-apiserver deletes no namespace while
    // an API does not answer, and notices within half a minute that this one doesn't.
    team.kubectl.ok(&["delete", API_SERVICE]).await?;
    team.kubectl.ok(&["delete", "namespace", &other.namespace, "--timeout=60s"]).await?;

    world.operator.lock().await.start_process().await?;
    eventually(SOON, "both purged, as the log says", async || {
        let log = world.operator.lock().await.log();
        let purged = log.lines().filter(|line| line.contains("erased the data")).count();
        if purged >= 2 { Ok(()) } else { Err(format!("{purged} purged")) }
    })
    .await?;
    team.publish("order.created", &json!({})).await?;
    team.await_webhook("kept", "still works", |webhook| newest(webhook)["state"] == "Success").await?;
    assert!(world.operator.lock().await.sigterm().await?.success());

    // The directory itself: of the three only the one that still exists is known.
    let store = Embedded::open(Options::new(world.operator.lock().await.data_dir()))?;
    let known: Vec<_> = store.known().iter().map(ToString::to_string).collect();
    assert_eq!(known, [format!("{}/kept", team.namespace)]);
    let page = store.query(hookwright::store::Query { limit: 100, ..Default::default() }).await?;
    assert_eq!(page.deliveries.len(), 2, "{:?}", page.deliveries);
    assert!(page.deliveries.iter().all(|delivery| &*delivery.webhook.name == "kept"));
    store.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_of_the_same_name_made_later_starts_from_nothing() -> anyhow::Result<()> {
    let world = World::alone(&["--purge-grace=1h"]).await?;
    let team = Team::of(&world, "again").await?;
    team.webhook("orders", json!({})).await?;
    team.publish("order.created", &json!({})).await?;
    let before =
        team.await_webhook("orders", "Success", |webhook| newest(webhook)["state"] == "Success").await?;
    team.kubectl.delete("hook", &team.namespace, "orders").await?;
    team.webhook("orders", json!({})).await?;
    let after = team.kubectl.get_json("hook", &team.namespace, "orders").await?;
    assert!(newest(&after).is_null(), "{after:#}");
    assert!(after["status"]["lastTriggered"].is_null());
    assert_eq!(before["status"]["publicKey"], after["status"]["publicKey"], "receivers know this key");
    Ok(())
}
