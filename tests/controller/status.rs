//! The status of a Webhook follows the store, calmly.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hookwright::clock::Clock;
use hookwright::store::records::{DisableReason, Disabled};
use hookwright::store::{EndReason, Next, Outcome, Store as _};
use hookwright_harness::wait::eventually;
use serde_json::json;

use crate::world::{SOON, World, attempt, short};

#[tokio::test]
async fn a_delivery_is_followed_to_its_end() {
    let world = World::new("follows").await;
    world.webhook("orders", json!({})).await;
    world.until("hook", "orders", "EndpointHealthy=Unknown/NoDeliveries").await;
    let webhook = world.route("orders");
    let name = world.publish(&webhook, 1).await.remove(0);
    let seen = world
        .wait("hook", "orders", "pending", |hook| hook["status"]["deliveries"][0]["state"] == "Pending")
        .await;
    assert_eq!(seen["status"]["deliveries"][0]["id"], name.to_string());

    let later = Clock::system().now() + Duration::from_mins(1);
    world.record(&webhook, name, 503, Next::Retry(later)).await;
    let seen = world
        .wait("hook", "orders", "retrying", |hook| hook["status"]["deliveries"][0]["state"] == "Retrying")
        .await;
    let line = &seen["status"]["deliveries"][0];
    assert_eq!((&line["responseStatus"], &line["errorMessage"]), (&json!(503), &json!("answered 503")));
    assert!(line["nextRetryAt"].is_string());
    assert_eq!(seen["status"]["consecutiveFailures"], 1);

    world.record(&webhook, name, 200, Next::Success).await;
    let seen = world.until("hook", "orders", "EndpointHealthy=True/Delivering").await;
    let status = &seen["status"];
    assert_eq!(status["deliveries"][0]["state"], "Success");
    assert_eq!((&status["pendingDeliveries"], &status["consecutiveFailures"]), (&json!(0), &json!(0)));
    assert!(status["lastTriggered"].is_string() && status["lastSuccess"].is_string());
    assert!(!seen.to_string().contains("canary"), "{seen}");
    let printed = world.kubectl.ok(&["get", "hook", "orders", "-n", &world.namespace]).await.unwrap();
    let row: Vec<_> = printed.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(&row[..6], ["orders", "https://hooks.example.com/orders", "True", "Active", "True", "0"]);
}

#[tokio::test]
async fn a_first_success_is_shown_at_once() {
    let world = World::new("first").await;
    world.webhook("orders", json!({})).await;
    world.until("hook", "orders", "EndpointHealthy=Unknown/NoDeliveries").await;
    let webhook = world.route("orders");
    let name = world.publish(&webhook, 1).await.remove(0);
    world
        .wait("hook", "orders", "pending", |hook| hook["status"]["deliveries"][0]["state"] == "Pending")
        .await;
    let begun = Instant::now();
    world.record(&webhook, name, 200, Next::Success).await;
    world.until("hook", "orders", "EndpointHealthy=True/Delivering").await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}, though two writes may come at once");
}

#[tokio::test]
async fn a_webhook_with_the_longest_name_has_its_events() {
    let world = World::new("long").await;
    let name = format!("{}orders", "orders.".repeat(35));
    world.webhook(&name, json!({ "active": false })).await;
    let hook = world.until("hook", &name, "Ready=True/Paused").await;
    assert_eq!(hook["status"]["state"], "Paused");
    let told = eventually(SOON, "the Event", async || match world.events("Ready").await.pop() {
        Some(event) => Ok(event),
        None => Err("none".to_owned()),
    });
    let event = told.await.unwrap();
    assert_eq!((&event["regarding"]["name"], &event["type"]), (&json!(name), &json!("Normal")), "{event}");
    let described = world.kubectl.ok(&["describe", "hook", &name, "-n", &world.namespace]).await.unwrap();
    assert!(described.contains("the route is live and paused"), "{described}");
}

#[tokio::test]
async fn a_flood_of_deliveries_writes_once_in_an_interval_and_stays_small() {
    let world = World::new("flood").await;
    world.webhook("orders", json!({ "historyLimit": 25 })).await;
    world.until("hook", "orders", "Ready=True/RouteLive").await;
    let webhook = world.route("orders");
    let begun = Instant::now();
    let (sent, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let flood = async {
        while begun.elapsed() < Duration::from_secs(16) {
            for name in world.publish(&webhook, 50).await {
                world.record(&webhook, name, 500, Next::Failed(EndReason::RetriesExhausted)).await;
                sent.fetch_add(1, Ordering::SeqCst);
            }
        }
        is_over.store(true, Ordering::SeqCst);
        tokio::time::sleep(SOON).await;
    };
    let mut versions = BTreeSet::new();
    let mut largest = 0;
    let object = ("hook", &*world.namespace, "orders");
    let watch = world.kubectl.wait_for(object, 10 * SOON, "all of them", |hook| {
        versions.insert(hook["metadata"]["resourceVersion"].to_string());
        largest = largest.max(hook["status"].to_string().len());
        is_over.load(Ordering::SeqCst) && hook["status"]["failureCount"] == sent.load(Ordering::SeqCst)
    });
    let seen = tokio::select! {
        seen = watch => seen.unwrap(),
        () = flood => panic!("{} were sent, and are not shown", sent.load(Ordering::SeqCst)),
    };
    // What was there before, one at once, then one in 5 s.
    let most = 3 + usize::try_from(begun.elapsed().as_secs() / 5).unwrap();
    assert!((3..=most).contains(&versions.len()), "{versions:?}, at most {most}");
    assert!(largest < 8192, "{largest}");
    assert!(seen["status"]["failureCount"].as_u64().unwrap() > 100, "{}", seen["status"]["failureCount"]);
    let unhealthy =
        eventually(SOON, "the Event", async || match world.events("EndpointUnhealthy").await.len() {
            1 => Ok(()),
            others => Err(others.to_string()),
        });
    unhealthy.await.unwrap();
}

#[tokio::test]
async fn a_restart_without_change_writes_nothing_and_shows_the_same_numbers() {
    let mut world = World::new("restart").await;
    for name in ["orders", "other", "third"] {
        world.webhook(name, json!({})).await;
        world.until("hook", name, "Ready=True/RouteLive").await;
    }
    let webhook = world.route("orders");
    let names = world.publish(&webhook, 2).await;
    world.record(&webhook, names[0], 200, Next::Success).await;
    world
        .wait("hook", "orders", "one success, one pending", |hook| {
            hook["status"]["pendingDeliveries"] == 1 && hook["status"]["deliveries"][1]["state"] == "Success"
        })
        .await;
    let versions = async |world: &World| {
        let hooks = world.kubectl.list_json("hook", &world.namespace, "").await.unwrap();
        hooks.iter().map(|hook| hook["metadata"]["resourceVersion"].to_string()).collect::<Vec<_>>()
    };
    let before = versions(&world).await;
    world.restart(async |_| ()).await;
    // Something that is written after all of them were looked at.
    world.webhook("last", json!({})).await;
    world.until("hook", "last", "Ready=True/RouteLive").await;
    world.kubectl.delete("hook", &world.namespace, "last").await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(versions(&world).await, before);
}

#[tokio::test]
async fn an_empty_store_takes_its_counters_from_the_status() {
    let mut world = World::new("adopts").await;
    world.webhook("orders", json!({})).await;
    world.until("hook", "orders", "Ready=True/RouteLive").await;
    let webhook = world.route("orders");
    for name in world.publish(&webhook, 3).await {
        world.record(&webhook, name, 500, Next::Failed(EndReason::RetriesExhausted)).await;
    }
    world.wait("hook", "orders", "three failures", |hook| hook["status"]["failureCount"] == 3).await;
    world.restart(async |world| world.lose_the_volume()).await;
    world.wait("hook", "orders", "an empty history", |hook| hook["status"]["deliveries"].is_null()).await;
    let seen = world.get("hook", "orders").await;
    assert_eq!(seen["status"]["failureCount"], 3, "no counter goes backwards");
    assert!(short(&seen).contains(&"EndpointHealthy=False/DeliveryFailed".to_owned()), "{:?}", short(&seen));
}

#[tokio::test]
async fn gone_disables_until_somebody_asks_or_the_spec_changes() {
    let world = World::new("gone").await;
    world.webhook("orders", json!({})).await;
    world.until("hook", "orders", "Ready=True/RouteLive").await;
    let webhook = world.route("orders");
    let gone = async || {
        let name = world.publish(&webhook, 1).await.remove(0);
        let generation = world.table.get(webhook.uid).unwrap().generation;
        let at = Clock::system().now();
        let disable = Some(Disabled { generation, at, reason: DisableReason::Gone });
        let next = Next::Failed(EndReason::Gone);
        let outcome = Outcome {
            name,
            webhook: webhook.uid,
            attempt: Some(attempt(410)),
            next,
            disable,
            failing: None,
            at,
        };
        world.store.record(vec![outcome]).await.unwrap();
    };
    gone().await;
    let seen = world.until("hook", "orders", "Disabled=True/Gone").await;
    assert!(short(&seen).contains(&"Ready=True/RouteLive".to_owned()));
    world.publish(&webhook, 1).await;
    world.wait("hook", "orders", "Held", |hook| hook["status"]["deliveries"][0]["state"] == "Held").await;

    let annotate = ["annotate", "hook/orders", "-n", &world.namespace, "hookwright.dev/requestedAt=now"];
    world.kubectl.ok(&annotate).await.unwrap();
    let seen = world
        .wait("hook", "orders", "echoed", |hook| hook["status"]["lastHandledReconcileAt"] == "now")
        .await;
    assert!(!short(&seen).iter().any(|one| one.starts_with("Disabled")), "{:?}", short(&seen));
    assert_eq!(world.store.summary(webhook.uid).unwrap().disabled, None);

    gone().await;
    world.until("hook", "orders", "Disabled=True/Gone").await;
    world.webhook("orders", json!({ "maxRetries": 4 })).await;
    let seen = world.wait("hook", "orders", "enabled by the new spec", |hook| {
        hook["status"]["observedGeneration"] == 2
            && !short(hook).iter().any(|one| one.starts_with("Disabled"))
    });
    seen.await;
    assert_eq!(world.events("Disabled").await.len(), 1, "two, merged into one by the recorder");
}
