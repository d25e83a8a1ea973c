//! The limits that a chart's values set are in force, and are seen beside what is used of them.

use hookwright_harness::publisher::Event;
use serde_json::{Value, json};

use crate::world::{Team, World};

async fn usage(team: &Team) -> anyhow::Result<Value> {
    let path = format!("/apis/delivery.hookwright.dev/v1alpha1/namespaces/{}/usages/current", team.namespace);
    Ok(serde_json::from_str(&team.kubectl.ok(&["get", "--raw", &path]).await?)?)
}

#[tokio::test]
async fn who_is_over_a_limit_of_the_chart_is_told_and_can_see_it() -> anyhow::Result<()> {
    // As plain numbers, too, which Helm may write with an exponent.
    let values = json!({
        "quota": {"pendingBytes": 2_000_000, "eventsPerSecond": 3_000_000},
        "retention": {"bytes": "1.5Gi", "age": "90m"},
    });
    let team = Team::of(&World::with_values(values).await?, "limits").await?;
    team.through_kube_apiserver().await?;
    team.webhook("first", json!({"active": false})).await?;
    team.webhook("second", json!({"active": false})).await?;
    let before = usage(&team).await?;
    let limits = json!({
        "quota": {"pendingBytes": 2_000_000, "eventsPerSecond": 3_000_000},
        "retention": {"bytes": 1_610_612_736, "age": "1h30m"},
    });
    assert_eq!(before["spec"], limits);
    assert_eq!(before["status"], json!({"pendingBytes": 0, "logBytes": 0, "deliveries": 0}));

    // Each counts for both Webhooks: the second of these is the last that has room.
    let event = |id: &str| Event::new(id, "order.created", json!("x".repeat(700_000)));
    for id in ["1", "2"] {
        team.publisher.publish_binary(&team.namespace, &event(id)).await?.accepted()?;
    }
    let refused = team.publisher.publish_binary(&team.namespace, &event("3")).await?;
    assert_eq!((refused.status, &refused.json()["reason"]), (429, &json!("TooManyRequests")));
    assert!(refused.headers.contains_key("retry-after"), "{:?}", refused.headers);
    let used = usage(&team).await?["status"].clone();
    let (pending, log) = (used["pendingBytes"].as_u64(), used["logBytes"].as_u64());
    assert_eq!(used["deliveries"], 4);
    assert!(pending.is_some_and(|bytes| (2_800_000..2_900_000).contains(&bytes)), "twice two events: {used}");
    assert!(log.is_some_and(|bytes| (1_400_000..1_500_000).contains(&bytes)), "each is kept once: {used}");
    let row = team.kubectl.ok(&["get", "usages", "-n", &team.namespace, "--no-headers"]).await?;
    let row: Vec<_> = row.split_whitespace().collect();
    assert_eq!(row, ["current", "2.6Mi/1.9Mi", "3000000/s", "1.3Mi/1.5Gi", "4", "1h30m"]);

    // Mended, the space is free again.
    team.patch("first", json!({"active": true})).await?;
    team.patch("second", json!({"active": true})).await?;
    hookwright_harness::wait::eventually(crate::world::SOON, "nothing to wait any more", async || {
        let used = usage(&team).await.map_err(|error| error.to_string())?["status"].clone();
        if used["pendingBytes"] == 0 { Ok(()) } else { Err(used.to_string()) }
    })
    .await?;
    team.publisher.publish_binary(&team.namespace, &event("3")).await?.accepted()?;
    Ok(())
}
