//! What only the operator can judge, and how it heals.

use serde_json::{Value, json};

use crate::world::{SOON, Team, condition};

fn secret(team: &Team, labelled: bool, value: &str) -> String {
    let labels = if labelled { json!({"hookwright.dev/use": "true"}) } else { json!({}) };
    json!({"apiVersion": "v1", "kind": "Secret",
           "metadata": {"name": "signing", "namespace": team.namespace, "labels": labels},
           "stringData": {"key": value}})
    .to_string()
}

async fn await_reason(team: &Team, reason: &str) -> anyhow::Result<Value> {
    team.await_webhook("orders", reason, |webhook| {
        condition(webhook, "Ready")["status"] == "False" && condition(webhook, "Ready")["reason"] == reason
    })
    .await
}

#[tokio::test]
async fn a_secret_that_is_missing_unlabelled_or_malformed_is_named_and_heals_by_itself() -> anyhow::Result<()>
{
    let team = Team::new("heal").await?;
    team.apply("orders", json!({"signing": {"secretRefs": [{"name": "signing", "key": "key"}]}})).await?;
    let webhook = await_reason(&team, "SecretNotFound").await?;
    let message = condition(&webhook, "Ready")["message"].as_str().unwrap_or_default();
    assert!(message.contains("kubectl") && message.contains("signing"), "{message}");

    // Accepted while it is not ready: held, and sent once it is.
    let receipt = team.publish("order.created", &json!({"n": 1})).await?;
    assert_eq!(receipt["matched"], 1);

    team.kubectl.apply(&secret(&team, false, "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX")).await?;
    let webhook = await_reason(&team, "SecretNotLabelled").await?;
    let message = condition(&webhook, "Ready")["message"].as_str().unwrap_or_default();
    assert!(message.contains("kubectl") && message.contains("hookwright.dev/use=true"), "{message}");

    team.kubectl.apply(&secret(&team, true, "whsec_canarycanary")).await?;
    let webhook = await_reason(&team, "SecretMalformed").await?;
    let message = condition(&webhook, "Ready")["message"].as_str().unwrap_or_default();
    assert!(!message.contains("canary"), "{message}");
    assert_eq!(team.receiver.count("/orders"), 0);

    team.kubectl.apply(&secret(&team, true, "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX")).await?;
    team.receiver.await_requests("/orders", 1, SOON).await?;
    team.await_webhook("orders", "Ready", |webhook| condition(webhook, "Ready")["status"] == "True").await?;
    Ok(())
}

#[tokio::test]
async fn a_header_comes_from_a_labelled_secret_and_follows_it() -> anyhow::Result<()> {
    let team = Team::new("header").await?;
    let header = json!([{"name": "Authorization",
                         "valueFrom": {"secretKeyRef": {"name": "signing", "key": "key"}}}]);
    team.kubectl.apply(&secret(&team, true, "Bearer one")).await?;
    team.webhook("orders", json!({"headers": header})).await?;
    team.publish("order.created", &json!({})).await?;
    let first = team.receiver.await_requests("/orders", 1, SOON).await?.remove(0);
    assert_eq!(first.header("authorization"), Some("Bearer one"));

    team.kubectl.apply(&secret(&team, true, "Bearer two")).await?;
    hookwright_harness::wait::eventually(SOON, "the new value to be sent", async || {
        let sent = team.receiver.count("/orders");
        team.publish("order.created", &json!({})).await.map_err(|error| error.to_string())?;
        let requests = team
            .receiver
            .await_requests("/orders", sent + 1, SOON)
            .await
            .map_err(|error| error.to_string())?;
        match requests.last().and_then(|request| request.header("authorization")) {
            Some("Bearer two") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}
