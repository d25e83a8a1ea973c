//! `WebhookReplay`: what failed goes out again under its own names, and both logs say who asked.

use std::collections::HashSet;

use hookwright_harness::receiver::Answer;
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};

use crate::world::{SOON, Team};

async fn lines(team: &Team) -> Result<Vec<Value>, String> {
    let get = ["get", "dlv", "-n", &team.namespace, "-o", "json"];
    let list = team.kubectl.ok(&get).await.map_err(|error| error.to_string())?;
    let list: Value = serde_json::from_str(&list).map_err(|error| error.to_string())?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

#[tokio::test]
async fn what_failed_is_sent_again_by_type_and_says_who_asked() -> anyhow::Result<()> {
    let team = Team::new("replaying").await?;
    team.receiver.answer("/orders", Answer::status(503));
    team.webhook("orders", json!({"maxRetries": 0})).await?;
    for kind in ["invoice.paid", "invoice.sent", "order.created"] {
        team.publish(kind, &json!({"kind": kind})).await?;
    }
    eventually(SOON, "all to have failed", async || {
        let lines = lines(&team).await?;
        let failed = lines.iter().filter(|line| line["status"]["state"] == "Failed").count();
        if failed == 3 { Ok(()) } else { Err(format!("{failed} failed")) }
    })
    .await?;

    team.receiver.answer("/orders", Answer::ok());
    let select =
        json!({"from": "2000-01-01T00:00:00Z", "to": "2100-01-01T00:00:00Z", "eventTypes": ["invoice.*"]});
    let replay = json!({"apiVersion": "hookwright.dev/v1alpha1", "kind": "WebhookReplay",
        "metadata": {"name": "mended", "namespace": team.namespace}, "spec": {"select": select}});
    team.kubectl.apply(&replay.to_string()).await?;
    team.kubectl.wait("hookreplay/mended", &team.namespace, "condition=Succeeded").await?;

    let requests = team.receiver.requests("/orders");
    assert_eq!(requests.len(), 5, "three attempts before, two again");
    let names: HashSet<_> = requests.iter().filter_map(|request| request.header("webhook-id")).collect();
    assert_eq!(names.len(), 3, "under the names that they had");
    assert!(
        requests[3..]
            .iter()
            .all(|request| request.header("ce-type").is_some_and(|kind| kind.starts_with("invoice.")))
    );
    let lines = lines(&team).await.map_err(anyhow::Error::msg)?;
    for line in &lines {
        let is_invoice = line["spec"]["eventType"].as_str().is_some_and(|kind| kind.starts_with("invoice."));
        let expected =
            if is_invoice { ("Success", json!("WebhookReplay/mended")) } else { ("Failed", Value::Null) };
        let asked = &line["status"]["attempts"][1]["requestedBy"];
        assert_eq!((line["status"]["state"].as_str(), asked), (Some(expected.0), &expected.1), "{line:#}");
    }
    let table = team.kubectl.ok(&["get", "hookreplay", "mended", "-n", &team.namespace]).await?;
    let row: Vec<_> = table.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(row[..row.len() - 1], ["mended", "True", "2", "2", "0"], "{table}");
    let arrived = |webhook: &Value| {
        webhook["status"]["lastSuccess"].is_string() && webhook["status"]["pendingDeliveries"] == 0
    };
    let webhook = team.await_webhook("orders", "what came of the replay", arrived).await?;
    assert_eq!(webhook["status"]["failureCount"], 3, "what arrives late had failed all the same");
    Ok(())
}
