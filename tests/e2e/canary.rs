//! Nothing leaks: what is secret is in no status, Event, log line or metric, also when a receiver echoes it.

use hookwright_harness::receiver::Answer;
use serde_json::json;

use crate::world::{SOON, Team, newest};

#[tokio::test]
async fn a_canary_is_nowhere_but_at_the_receiver() -> anyhow::Result<()> {
    let team = Team::new("canary").await?;
    let key = "whsec_Y2FuYXJ5LWtleS1jYW5hcnkta2V5LWNhbmFyeS1rZXk=";
    let secret = json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "secrets", "namespace": team.namespace, "labels": {"hookwright.dev/use": "true"}},
        "stringData": {"key": key, "header": "Bearer canary-header-value"}});
    team.kubectl.apply(&secret.to_string()).await?;
    team.receiver.set_script(
        "/orders",
        vec![Answer::status(500).echo(), Answer::status(410).echo()],
        Answer::ok().echo(),
    );
    let spec = json!({
        "signing": {"secretRefs": [{"name": "secrets", "key": "key"}]},
        "headers": [
            {"name": "Authorization", "valueFrom": {"secretKeyRef": {"name": "secrets", "key": "header"}}},
            {"name": "X-Plain", "value": "canary-plain-value"},
        ],
    });
    team.webhook("orders", spec).await?;
    team.publish("order.created", &json!({"payload": "canary-payload"})).await?;
    let requests = team.receiver.await_requests("/orders", 2, SOON).await?;
    assert_eq!(requests[0].header("authorization"), Some("Bearer canary-header-value"));
    assert_eq!(requests[0].json()?, json!({"payload": "canary-payload"}));
    team.await_webhook("orders", "Failed", |webhook| newest(webhook)["state"] == "Failed").await?;

    let test = json!({"apiVersion": "hookwright.dev/v1alpha1", "kind": "WebhookTest",
        "metadata": {"name": "try", "namespace": team.namespace},
        "spec": {"webhookRef": {"name": "orders"}, "payload": {"payload": "canary-payload"}}});
    team.kubectl.apply(&test.to_string()).await?;
    team.kubectl.wait("hooktest/try", &team.namespace, "condition=Succeeded").await?;

    let replay = json!({"apiVersion": "hookwright.dev/v1alpha1", "kind": "WebhookReplay",
        "metadata": {"name": "again", "namespace": team.namespace},
        "spec": {"select": {"from": "2000-01-01T00:00:00Z", "to": "2100-01-01T00:00:00Z"}}});
    team.kubectl.apply(&replay.to_string()).await?;
    // The 410 has disabled it.
    team.kubectl
        .ok(&["annotate", "-n", &team.namespace, "hook/orders", "hookwright.dev/requestedAt=1"])
        .await?;
    team.kubectl.wait("hookreplay/again", &team.namespace, "condition=Succeeded").await?;

    let operator = team.world.operator.lock().await;
    let mut places = vec![("log", operator.log()), ("metrics", operator.metrics().await?)];
    drop(operator);
    let events = ["get", "events.events.k8s.io", "-n", &team.namespace, "-o", "yaml"];
    places.push(("Events", team.kubectl.ok(&events).await?));
    for kind in ["webhooks.hookwright.dev", "webhooktests.hookwright.dev", "webhookreplays.hookwright.dev"] {
        let jsonpath = ["get", kind, "-n", &team.namespace, "-o", "jsonpath={.items[*].status}"];
        places.push((kind, team.kubectl.ok(&jsonpath).await?));
    }
    let signatures: Vec<_> = team
        .receiver
        .requests("/orders")
        .iter()
        .filter_map(|all| all.header("webhook-signature").map(str::to_owned))
        .collect();
    let mut canaries = vec![
        key.to_owned(),
        key.trim_start_matches("whsec_").to_owned(),
        "canary-key".to_owned(),
        "canary-header-value".to_owned(),
        "canary-plain-value".to_owned(),
        "canary-payload".to_owned(),
    ];
    canaries.extend(
        signatures
            .iter()
            .flat_map(|all| all.split([' ', ',']))
            .filter(|part| part.len() > 10)
            .map(str::to_owned),
    );
    assert!(canaries.len() > 8, "{canaries:?}");
    for (place, text) in &places {
        assert!(!text.trim().is_empty(), "{place} is empty");
        for canary in &canaries {
            assert!(!text.contains(canary.as_str()), "{canary} is in {place}:\n{text}");
        }
    }
    Ok(())
}
