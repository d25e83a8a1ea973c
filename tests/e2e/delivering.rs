//! What arrives, how it is signed, and what follows from each answer.

use std::time::Duration;

use anyhow::Context as _;
use hookwright_harness::receiver::{Answer, Request};
use hookwright_harness::signature::{verify_v1, verify_v1a};
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};

use crate::world::{SOON, Team, condition, newest};

const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

#[tokio::test]
async fn an_event_reaches_exactly_those_who_want_it_byte_for_byte_and_signed() -> anyhow::Result<()> {
    let team = Team::new("exactly").await?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "signing", "namespace": team.namespace, "labels": {"hookwright.dev/use": "true"}},
        "stringData": {"key": SECRET}});
    team.kubectl.apply(&secret.to_string()).await?;
    let signing = json!({"secretRefs": [{"name": "signing", "key": "key"}]});
    team.webhook("exact", json!({"eventTypes": ["order.created"], "signing": signing})).await?;
    team.webhook("prefix", json!({"eventTypes": ["order.*"], "headers": [{"name": "X-Team", "value": "a"}]}))
        .await?;
    team.webhook("other", json!({"eventTypes": ["invoice.*"]})).await?;

    // Spaces, escapes and key order that a re-encoding would lose.
    let body = "{ \"z\" : 1.0,\t\"a\":\"\\u00e9é\" }\n";
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "id%201"),
        ("ce-source", "/e2e"),
        ("ce-type", "order.created"),
        ("content-type", "application/json"),
    ];
    let receipt = team.publisher.publish(&team.namespace, &headers, body).await?.accepted()?;
    assert_eq!(receipt["matched"], 2, "{receipt}");

    let exact = team.receiver.await_requests("/exact", 1, SOON).await?.remove(0);
    let prefix = team.receiver.await_requests("/prefix", 1, SOON).await?.remove(0);
    for request in [&exact, &prefix] {
        assert_eq!(request.method, "POST");
        assert_eq!(request.body, body.as_bytes());
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!(request.header("ce-specversion"), Some("1.0"));
        assert_eq!(request.header("ce-id"), Some("id%201"));
        assert_eq!(request.header("ce-type"), Some("order.created"));
        assert!(request.header("ce-source").is_some());
        let agent = format!("Hookwright/{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(request.header("user-agent"), Some(&*agent));
        assert_eq!(request.header("hookwright-test"), None);
    }
    assert_eq!(prefix.header("x-team"), Some("a"));
    assert_ne!(exact.header("webhook-id"), prefix.header("webhook-id"), "one id for each Webhook");

    for (name, request) in [("exact", &exact), ("prefix", &prefix)] {
        let webhook = team
            .await_webhook(name, "a Success in its history", |webhook| {
                newest(webhook)["state"] == "Success"
                    && condition(webhook, "EndpointHealthy")["status"] == "True"
            })
            .await?;
        assert_eq!(newest(&webhook)["id"], request.header("webhook-id").unwrap_or_default());
        verify_v1a(request, webhook["status"]["publicKey"].as_str().context("publicKey")?)?;
    }
    verify_v1(&exact, SECRET)?;
    assert!(verify_v1(&exact, "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=").is_err());
    assert_eq!(prefix.header("webhook-signature").map(|all| all.split(' ').count()), Some(1));

    // Everything that was accepted has ended, so nothing more can come.
    assert_eq!(team.receiver.count("/exact") + team.receiver.count("/prefix"), 2);
    assert_eq!(team.receiver.count("/other"), 0);
    Ok(())
}

#[tokio::test]
async fn two_failures_then_success_are_three_attempts_with_one_id_and_backoff() -> anyhow::Result<()> {
    let team = Team::new("retry").await?;
    let script = vec![Answer::status(503), Answer::status(503)];
    team.receiver.set_script("/orders", script, Answer::ok());
    team.webhook("orders", json!({"backoff": {"initial": "1s", "factor": 2, "max": "60s"}})).await?;
    team.publish("order.created", &json!({"n": 1})).await?;

    let requests = team.receiver.await_requests("/orders", 3, SOON).await?;
    let ids: Vec<_> = requests.iter().map(|request| request.header("webhook-id")).collect();
    assert!(ids.iter().all(|id| id.is_some() && *id == ids[0]), "{ids:?}");
    let waits: Vec<_> = requests.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    assert!(waits[0] >= Duration::from_secs(1), "{waits:?}");
    assert!(waits[1] >= Duration::from_secs(2), "{waits:?}");
    let stamp = |request: &Request| request.header("webhook-timestamp").and_then(|at| at.parse::<u64>().ok());
    assert!(stamp(&requests[2]) > stamp(&requests[0]), "each attempt has its own timestamp");

    // A status shows numbers and history as of its writing, which may be between two commits.
    let webhook = team
        .await_webhook("orders", "Success, and nothing more to do", |webhook| {
            let status = &webhook["status"];
            newest(webhook)["state"] == "Success"
                && status["consecutiveFailures"] == 0
                && status["pendingDeliveries"] == 0
        })
        .await?;
    let delivery = newest(&webhook);
    assert_eq!(delivery["retryCount"], 2, "{delivery}");
    assert_eq!(delivery["responseStatus"], 200);
    assert_eq!(webhook["status"]["failureCount"], 0);
    Ok(())
}

#[tokio::test]
async fn what_always_fails_is_given_up_and_counted_once() -> anyhow::Result<()> {
    let team = Team::new("fails").await?;
    team.receiver.answer("/orders", Answer::status(500));
    team.webhook("orders", json!({"maxRetries": 2})).await?;
    team.publish("order.created", &json!({"n": 1})).await?;

    let webhook = team
        .await_webhook("orders", "Failed, once, after three failures", |webhook| {
            newest(webhook)["state"] == "Failed"
                && webhook["status"]["failureCount"] == 1
                && webhook["status"]["consecutiveFailures"] == 3
                && condition(webhook, "EndpointHealthy")["status"] == "False"
        })
        .await?;
    assert_eq!(team.receiver.count("/orders"), 3);
    assert_eq!(newest(&webhook)["retryCount"], 2);
    assert_eq!(condition(&webhook, "Ready")["status"], "True", "Ready does not follow the endpoint");
    team.await_one_event("EndpointUnhealthy").await
}

#[tokio::test]
async fn a_url_changed_while_a_retry_waits_gets_the_retry() -> anyhow::Result<()> {
    let team = Team::new("moved").await?;
    team.receiver.answer("/old", Answer::status(503));
    team.webhook("old", json!({"backoff": {"initial": "10s", "factor": 1, "max": "60s"}})).await?;
    team.publish("order.created", &json!({"n": 1})).await?;
    let first = team.receiver.await_requests("/old", 1, SOON).await?.remove(0);

    team.patch("old", json!({"url": team.receiver.url("hooks", "/new")})).await?;
    team.await_webhook("old", "in force", |webhook| {
        webhook["metadata"]["generation"] == webhook["status"]["observedGeneration"]
    })
    .await?;
    let before = team.receiver.count("/old");
    let second = team.receiver.await_requests("/new", 1, SOON).await?.remove(0);
    assert_eq!(first.header("webhook-id"), second.header("webhook-id"));
    assert_eq!(team.receiver.count("/old"), before);
    Ok(())
}

#[tokio::test]
async fn a_changed_webhook_is_in_force_within_a_second() -> anyhow::Result<()> {
    let team = Team::new("inforce").await?;
    team.webhook("orders", json!({"eventTypes": ["a"]})).await?;
    // A machine that is busy may hold up one of them.
    let mut took = Vec::new();
    for event_type in ["b", "c", "d"] {
        let before = team.dry_run(event_type).await?;
        assert_eq!(before["matched"], 0, "{before}");
        team.patch("orders", json!({"eventTypes": [event_type]})).await?;
        let applied = std::time::Instant::now();
        eventually(SOON, "the new event type to match", async || {
            let answer = team.dry_run(event_type).await.map_err(|error| error.to_string())?;
            if answer["matched"] == 1 { Ok(()) } else { Err(answer.to_string()) }
        })
        .await?;
        took.push(applied.elapsed());
    }
    assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn retry_after_wins_when_it_is_later() -> anyhow::Result<()> {
    let team = Team::new("later").await?;
    team.receiver.set_script("/orders", vec![Answer::status(429).retry_after(3)], Answer::ok());
    team.webhook("orders", json!({})).await?;
    team.publish("order.created", &json!({})).await?;
    let requests = team.receiver.await_requests("/orders", 2, SOON).await?;
    let wait = requests[1].at - requests[0].at;
    assert!(wait >= Duration::from_secs(3), "{wait:?}");
    Ok(())
}

#[tokio::test]
async fn gone_disables_until_the_spec_changes_or_somebody_asks() -> anyhow::Result<()> {
    let team = Team::new("gone").await?;
    team.receiver.set_script("/orders", vec![Answer::status(410)], Answer::ok());
    team.webhook("orders", json!({})).await?;
    team.publish("order.created", &json!({"n": 1})).await?;
    let disabled = |webhook: &Value| condition(webhook, "Disabled")["status"] == "True";
    let webhook = team.await_webhook("orders", "Disabled", disabled).await?;
    assert_eq!(condition(&webhook, "Ready")["status"], "True");
    assert!(condition(&webhook, "Stalled").is_null());

    team.publish("order.created", &json!({"n": 2})).await?;
    team.await_webhook("orders", "the second one Held", |webhook| newest(webhook)["state"] == "Held").await?;
    assert_eq!(team.receiver.count("/orders"), 1);

    let annotation = "hookwright.dev/requestedAt=now";
    team.kubectl.ok(&["annotate", "-n", &team.namespace, "hook/orders", annotation]).await?;
    team.receiver.await_requests("/orders", 2, SOON).await?;
    let webhook = team
        .await_webhook("orders", "enabled and echoed", |webhook| {
            webhook["status"]["lastHandledReconcileAt"] == "now" && newest(webhook)["state"] == "Success"
        })
        .await?;
    assert!(condition(&webhook, "Disabled").is_null());

    // The status line decides, also when the connection ends in the middle of the body.
    team.receiver.set_script("/orders", vec![Answer::status(410).cut_after("half")], Answer::ok());
    team.publish("order.created", &json!({"n": 3})).await?;
    team.await_webhook("orders", "Disabled again", disabled).await?;
    team.patch("orders", json!({"maxRetries": 4})).await?;
    team.await_webhook("orders", "enabled by the new spec", |webhook| !disabled(webhook)).await?;
    Ok(())
}

#[tokio::test]
async fn an_address_that_is_not_allowed_is_never_reached() -> anyhow::Result<()> {
    let team = Team::new("denied").await?;
    team.apply("literal", json!({"url": "https://169.254.169.254/latest", "maxRetries": 0})).await?;
    let webhook = team
        .await_webhook("literal", "Stalled", |webhook| condition(webhook, "Stalled")["status"] == "True")
        .await?;
    let ready = condition(&webhook, "Ready");
    assert_eq!(ready["reason"], "AddressDenied");
    let remedy = "to allow exactly this address (--allow-cidr 169.254.169.254/32): no wider range opens it";
    assert!(ready["message"].as_str().is_some_and(|message| message.contains(remedy)), "{ready}");

    // Its attempts are made, and fail by the same rule as those for a name that resolves to it.
    team.publish("order.created", &json!({})).await?;
    let webhook =
        team.await_webhook("literal", "failed", |webhook| newest(webhook)["state"] == "Failed").await?;
    let error = &newest(&webhook)["errorMessage"];
    assert_eq!(error, "AddressDenied: address 169.254.169.254 is a cloud's metadata service");
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_cut_is_a_success_by_its_status() -> anyhow::Result<()> {
    let team = Team::new("cut").await?;
    team.receiver.answer("/orders", Answer::ok().cut_after("half"));
    team.webhook("orders", json!({"maxRetries": 0})).await?;
    team.publish("order.created", &json!({})).await?;
    let webhook =
        team.await_webhook("orders", "an end", |webhook| newest(webhook)["durationMs"].is_number()).await?;
    let newest = newest(&webhook);
    assert_eq!((&newest["state"], &newest["responseStatus"]), (&json!("Success"), &json!(200)), "{newest}");
    assert_eq!(team.receiver.count("/orders"), 1);
    Ok(())
}
