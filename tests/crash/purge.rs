//! Deleting never waits for the operator, what was deleted meanwhile is purged when it is back, and nothing of it is
//! anybody's who comes after.

use hookwright::store::Store as _;
use hookwright::store::embedded::{Embedded, Options};
use hookwright_harness::publisher::{Event, Publisher, create_account};
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};

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
    team.webhook("paused", json!({"active": false, "eventTypes": ["paused"]})).await?;
    for n in 0..3 {
        team.publish("paused", &json!({ "n": n })).await?;
    }
    for team in [&team, &other] {
        team.publish("order.created", &json!({})).await?;
        let done = |webhook: &serde_json::Value| newest(webhook)["state"] == "Success";
        team.await_webhook("orders", "Success", done).await?;
    }
    world.operator.lock().await.kill9();
    team.kubectl
        .ok(&["delete", "hook/orders", "hook/paused", "-n", &team.namespace, "--timeout=20s"])
        .await?;
    // Whoever takes the operator away takes its APIService with it: kube-apiserver deletes no namespace while
    // an API does not answer, and notices within half a minute that this one doesn't.
    team.kubectl.ok(&["delete", API_SERVICE]).await?;
    team.kubectl.ok(&["delete", "namespace", &other.namespace, "--timeout=60s"]).await?;

    world.operator.lock().await.start_process().await?;
    eventually(SOON, "all three purged, as the log says", async || {
        let log = world.operator.lock().await.log();
        let erased: Vec<_> = log.lines().filter(|line| line.contains("erased the data")).collect();
        let sums =
            ["webhooks", "discarded"].map(|field| erased.iter().map(|line| number(line, field)).sum::<u64>());
        if sums == [3, 3] { Ok(()) } else { Err(format!("{sums:?}: {erased:?}")) }
    })
    .await?;
    team.await_one_event("DeliveriesDiscarded").await?;
    let event = team.events("DeliveriesDiscarded").await?.remove(0);
    assert_eq!(event["regarding"]["name"], "paused", "{event:#}");
    assert!(event["note"].as_str().is_some_and(|note| note.contains("3 deliveries")), "{event:#}");
    let counted = world.operator.lock().await.metric("hookwright_discarded_deliveries_total", &[]).await?;
    assert!((counted - 3.0).abs() < f64::EPSILON, "{counted}");
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

/// The number of a field in a line of the log.
fn number(line: &str, field: &str) -> u64 {
    let value =
        line.split(&format!("{field}=")).nth(1).or_else(|| line.split(&format!("\"{field}\":")).nth(1));
    let digits: String = value.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// The deliveries that kubectl shows.
async fn deliveries(team: &Team) -> anyhow::Result<Vec<Value>> {
    team.kubectl.list_json("deliveries.delivery.hookwright.dev", &team.namespace, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_replaced_by_force_keeps_what_was_held() -> anyhow::Result<()> {
    let world = World::alone(&["--purge-grace=30s"]).await?;
    let team = Team::of(&world, "forced").await?;
    team.through_kube_apiserver().await?;
    team.webhook("orders", json!({})).await?;
    team.publish("order.created", &json!({ "n": -1 })).await?;
    let done = |webhook: &Value| newest(webhook)["state"] == "Success";
    let before = team.await_webhook("orders", "Success", done).await?;
    team.patch("orders", json!({"active": false})).await?;
    let events: Vec<_> =
        (0..100).map(|n| Event::new(format!("held-{n}"), "order.created", json!({ "n": n }))).collect();
    team.batch(&events).await?;
    team.await_webhook("orders", "100 Held", |webhook| webhook["status"]["heldDeliveries"] == 100).await?;

    let paused = team.manifest("orders", &json!({"active": false})).to_string();
    let replace = ["replace", "--force", "--grace-period=0", "-f", "-"];
    team.kubectl.run_with_input(&replace, &paused).await?.ok("replace")?;
    let held = |webhook: &Value| webhook["status"]["heldDeliveries"] == 100;
    let after = team.await_webhook("orders", "100 Held again", held).await?;
    let uid = &after["metadata"]["uid"];
    assert_ne!(uid, &before["metadata"]["uid"]);
    assert_eq!(after["status"]["lastSuccess"], before["status"]["lastSuccess"], "its numbers go on");
    let log = deliveries(&team).await?;
    assert_eq!(log.len(), 101);
    assert!(log.iter().all(|delivery| &delivery["spec"]["webhookRef"]["uid"] == uid), "{:#}", log[0]);

    // Once more while the operator is gone, which was killed.
    world.operator.lock().await.kill9();
    let active = team.manifest("orders", &json!({})).to_string();
    team.kubectl.run_with_input(&replace, &active).await?.ok("replace")?;
    world.operator.lock().await.start_process().await?;
    team.receiver.await_requests("/orders", 101, SOON).await?;
    let all = |webhook: &Value| {
        webhook["status"]["pendingDeliveries"] == 0 && newest(webhook)["state"] == "Success"
    };
    team.await_webhook("orders", "all Success", all).await?;
    let log = deliveries(&team).await?;
    assert_eq!(log.len(), 101);
    assert!(log.iter().all(|delivery| delivery["status"]["state"] == "Success"), "{:#}", log[0]);
    assert_eq!(team.receiver.count("/orders"), 101, "none twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_made_anew_knows_nothing_of_the_former_tenant() -> anyhow::Result<()> {
    let world = World::alone(&["--purge-grace=1h"]).await?;
    let mut team = Team::of(&world, "again").await?;
    team.through_kube_apiserver().await?;
    let event = Event::new("order-1", "order.created", json!({ "secret": "of the former" }));
    for (name, spec) in [("orders", json!({})), ("paused", json!({"active": false}))] {
        team.webhook(name, spec).await?;
    }
    let receipt = team.publisher.publish_binary(&team.namespace, &event).await?.accepted()?;
    assert_eq!(receipt["matched"], 2);
    team.await_webhook("orders", "Success", |webhook| newest(webhook)["state"] == "Success").await?;
    let former = deliveries(&team).await?;
    assert_eq!(former.len(), 2);

    let namespace = team.namespace.clone();
    team.kubectl.ok(&["delete", "namespace", &namespace, "--timeout=60s"]).await?;
    let nobody = team.publisher.publish_binary(&namespace, &event).await?;
    // The account is gone as well; what it may is remembered for seconds.
    assert!([401, 403, 404].contains(&nobody.status), "{:?}", nobody.body);
    team.kubectl.ok(&["create", "namespace", &namespace]).await?;
    create_account(&world.plane, &namespace, "tenant").await?;
    let operator = world.operator.lock().await;
    team.publisher = Publisher::with_account(&world.plane, &operator, &namespace, "tenant").await?;
    drop(operator);

    let base = format!("/apis/delivery.hookwright.dev/v1alpha1/namespaces/{namespace}");
    let receipt = team.publisher.publish_binary(&namespace, &event).await?.accepted()?;
    assert_eq!((&receipt["matched"], &receipt["duplicate"]), (&json!(0), &Value::Null), "{receipt}");
    for before_the_webhook in [true, false] {
        assert_eq!(deliveries(&team).await?, [] as [Value; 0]);
        for delivery in &former {
            let name = delivery["metadata"]["name"].as_str().unwrap_or_default();
            for below in ["", "/payload"] {
                let raw = format!("{base}/deliveries/{name}{below}");
                let answer = team.kubectl.run(&["get", "--raw", &raw]).await?;
                assert!(answer.stderr.contains("not found"), "{raw}: {} {}", answer.stdout, answer.stderr);
            }
        }
        let raw = team.kubectl.ok(&["get", "--raw", &format!("{base}/usages")]).await?;
        let usages: Value = serde_json::from_str(&raw)?;
        if before_the_webhook {
            assert_eq!(usages["items"], json!([]));
            let trust = json!({"apiVersion": "v1", "kind": "ConfigMap",
                               "metadata": {"name": "receiver-ca", "namespace": namespace},
                               "data": {"ca.crt": team.receiver.ca_pem()}});
            team.kubectl.apply(&trust.to_string()).await?;
            team.webhook("orders", json!({})).await?;
        } else {
            let used = json!({"deliveries": 0, "logBytes": 0, "pendingBytes": 0});
            assert_eq!(usages["items"][0]["status"], used, "{usages:#}");
        }
    }
    let webhook = team.kubectl.get_json("hook", &namespace, "orders").await?;
    assert!(newest(&webhook).is_null() && webhook["status"]["lastTriggered"].is_null(), "{webhook:#}");
    let receipt = team.publisher.publish_binary(&namespace, &event).await?.accepted()?;
    assert_eq!((&receipt["matched"], &receipt["duplicate"]), (&json!(1), &Value::Null), "{receipt}");
    team.receiver.await_requests("/orders", 2, SOON).await?;
    let again = team.publisher.publish_binary(&namespace, &event).await?.accepted()?;
    assert_eq!((&again["matched"], &again["duplicate"]), (&json!(0), &json!(true)), "{again}");

    let nowhere = team.publisher.publish_binary("no-such-namespace", &event).await?;
    assert_eq!(nowhere.status, 403, "who may not publish there learns nothing: {:?}", nowhere.body);
    Ok(())
}
