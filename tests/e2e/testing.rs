//! `WebhookTest`: exactly one attempt, shown.

use hookwright_harness::receiver::Answer;
use serde_json::{Value, json};

use crate::world::{SOON, Team, condition};

async fn create(team: &Team, name: &str, spec: Value) -> anyhow::Result<()> {
    let test = json!({"apiVersion": "hookwright.dev/v1alpha1", "kind": "WebhookTest",
                      "metadata": {"name": name, "namespace": team.namespace}, "spec": spec});
    team.kubectl.apply(&test.to_string()).await.map(drop)
}

async fn finished(team: &Team, name: &str) -> anyhow::Result<Value> {
    let object = ("webhooktests.hookwright.dev", &*team.namespace, name);
    team.kubectl.wait_for(object, SOON, "finished", |test| !test["status"]["completedAt"].is_null()).await
}

#[tokio::test]
async fn a_test_makes_one_attempt_on_an_inactive_webhook_too_and_says_what_came_of_it() -> anyhow::Result<()>
{
    let team = Team::new("testing").await?;
    team.webhook("orders", json!({"active": false})).await?;
    create(&team, "good", json!({"webhookRef": {"name": "orders"}, "payload": {"n": 7}})).await?;
    team.kubectl.wait("hooktest/good", &team.namespace, "condition=Succeeded").await?;
    let test = finished(&team, "good").await?;
    let request = team.receiver.await_requests("/orders", 1, SOON).await?.remove(0);
    assert_eq!(request.json()?, json!({"n": 7}));
    assert_eq!(request.header("ce-type"), Some("webhook.test"));
    assert_eq!(request.header("hookwright-test"), Some("true"));
    assert!(request.header("webhook-signature").is_some_and(|all| all.starts_with("v1a,")));
    assert_eq!(test["status"]["deliveryId"], request.header("webhook-id").unwrap_or_default());
    assert_eq!(test["status"]["responseStatus"], 200);
    assert_eq!(condition(&test, "Ready")["status"], "True");
    assert!(condition(&test, "Stalled").is_null());

    team.receiver.answer("/orders", Answer::status(500));
    create(&team, "bad", json!({"webhookRef": {"name": "orders"}})).await?;
    team.kubectl.wait("hooktest/bad", &team.namespace, "condition=Succeeded=false").await?;
    let test = finished(&team, "bad").await?;
    assert_eq!(condition(&test, "Stalled")["status"], "True");
    assert_eq!(test["status"]["responseStatus"], 500);

    let webhook = team
        .await_webhook("orders", "both in the history", |webhook| {
            webhook["status"]["deliveries"].as_array().is_some_and(|all| all.len() == 2)
                && webhook["status"]["testPayloadSent"] == true
        })
        .await?;
    assert_eq!(webhook["status"]["failureCount"], 0, "tests do not count");
    assert!(
        webhook["status"]["deliveries"]
            .as_array()
            .is_some_and(|all| all.iter().all(|one| one["test"] == true))
    );
    assert_eq!(team.receiver.count("/orders"), 2, "exactly one attempt each");
    Ok(())
}

#[tokio::test]
async fn more_than_five_in_a_minute_wait_their_turn() -> anyhow::Result<()> {
    let team = Team::new("turns").await?;
    team.webhook("orders", json!({})).await?;
    for n in 0..6 {
        create(&team, &format!("t{n}"), json!({"webhookRef": {"name": "orders"}})).await?;
    }
    let requests = team.receiver.await_requests("/orders", 5, SOON).await?;
    let waiting = hookwright_harness::wait::eventually(SOON, "one that waits", async || {
        let tests = team
            .kubectl
            .list_json("webhooktests.hookwright.dev", &team.namespace, "")
            .await
            .map_err(|error| error.to_string())?;
        let waits = |test: &&Value| condition(test, "Reconciling")["reason"] == "RateLimited";
        tests.iter().find(waits).cloned().ok_or_else(|| format!("{tests:?}"))
    })
    .await?;
    assert_eq!(condition(&waiting, "Succeeded")["status"], "Unknown");
    let name = waiting["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let object = ("webhooktests.hookwright.dev", &*team.namespace, &*name);
    let turn = std::time::Duration::from_secs(90);
    team.kubectl.wait_for(object, turn, "its turn", |test| test["status"]["responseStatus"] == 200).await?;
    let sixth = team.receiver.await_requests("/orders", 6, SOON).await?.remove(5);
    let wait = sixth.at - requests[0].at;
    assert!(wait >= std::time::Duration::from_secs(55), "{wait:?}");
    Ok(())
}

#[tokio::test]
async fn a_test_is_immutable_and_its_time_to_live_deletes_it() -> anyhow::Result<()> {
    let team = Team::new("ttl").await?;
    team.webhook("orders", json!({})).await?;
    create(&team, "kept", json!({"webhookRef": {"name": "orders"}})).await?;
    let patch = r#"{"spec":{"eventType":"other"}}"#;
    let output = team
        .kubectl
        .run(&["patch", "-n", &team.namespace, "hooktest/kept", "--type=merge", "-p", patch])
        .await?;
    assert!(!output.status.success() && output.stderr.contains("must not be changed"), "{}", output.stderr);
    create(&team, "short", json!({"webhookRef": {"name": "orders"}, "ttlSecondsAfterFinished": 1})).await?;
    team.kubectl
        .ok(&["wait", "--for=delete", "hooktest/short", "-n", &team.namespace, "--timeout=60s"])
        .await?;
    finished(&team, "kept").await?;
    Ok(())
}

#[tokio::test]
async fn a_test_sends_nothing_that_the_door_would_refuse() -> anyhow::Result<()> {
    let team = Team::new("unpublishable").await?;
    team.webhook("orders", json!({})).await?;
    let spec = json!({"webhookRef": {"name": "orders"}, "payload": "x".repeat(1_200_000)});
    let test = json!({"apiVersion": "hookwright.dev/v1alpha1", "kind": "WebhookTest",
                      "metadata": {"name": "large", "namespace": team.namespace}, "spec": spec});
    let created = team.kubectl.run_with_input(&["create", "-f", "-"], &test.to_string()).await?;
    anyhow::ensure!(created.stdout.contains("created"), "{}", created.stderr);
    let test = finished(&team, "large").await?;
    assert_eq!(condition(&test, "Succeeded")["reason"], "PayloadTooLarge", "{}", test["status"]);
    assert_eq!(team.receiver.count("/orders"), 0);
    Ok(())
}
