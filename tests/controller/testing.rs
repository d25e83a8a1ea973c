//! Tests on request: one attempt each, in turn, never twice unsaid.

use std::time::Duration;

use hookwright::store::{EndReason, Store as _};
use hookwright_harness::wait::eventually;
use serde_json::json;

use crate::world::{SOON, World, message, short};

#[tokio::test]
async fn a_test_is_one_attempt_in_the_log_and_says_what_came_of_it() {
    let world = World::new("test").await;
    world.webhook("orders", json!({ "active": false })).await;
    world.until("hook", "orders", "Ready=True/Paused").await;
    world.test("good", json!({ "eventType": "order.created", "payload": { "n": 7 } })).await;
    let test = world.until("hooktest", "good", "Succeeded=True/Delivered").await;
    assert_eq!(short(&test), ["Succeeded=True/Delivered", "Ready=True/Delivered"]);
    let status = &test["status"];
    assert_eq!((&status["responseStatus"], &status["responseLength"]), (&json!(200), &json!(11)));
    assert_eq!((&status["responseContentType"], &status["durationMs"]), (&json!("text/plain"), &json!(3)));
    assert!(!test.to_string().contains("canary"), "{test}");
    {
        let jobs = world.sender.jobs.lock().unwrap();
        assert_eq!(jobs.len(), 1);
        assert!(jobs[0].test);
        assert_eq!(&jobs[0].event.data[..], br#"{"n":7}"#);
        assert_eq!(status["deliveryId"], jobs[0].name.to_string());
    }

    world.sender.answers([Some(500)]);
    world.test("bad", json!({})).await;
    let test = world.until("hooktest", "bad", "Stalled=True/UnexpectedAnswer").await;
    assert_eq!(test["status"]["errorMessage"], "the endpoint answered 500, not 2xx");

    let hook = world.wait("hook", "orders", "both in the history", |hook| {
        hook["status"]["deliveries"].as_array().is_some_and(|all| all.len() == 2)
            && hook["status"]["testPayloadSent"] == true
    });
    let hook = hook.await;
    assert_eq!(hook["status"]["failureCount"], 0, "tests are not counted");
    assert_eq!(world.sender.count(), 2);
}

#[tokio::test]
async fn a_test_waits_for_its_webhook() {
    let world = World::new("waits").await;
    world.test("early", json!({})).await;
    let test = world.until("hooktest", "early", "Reconciling=True/WebhookNotFound").await;
    assert!(short(&test).contains(&"Succeeded=Unknown/WebhookNotFound".to_owned()));
    world.webhook("orders", json!({ "signing": { "secretRefs": [{ "name": "s", "key": "k" }] } })).await;
    world.until("hooktest", "early", "Reconciling=True/SecretNotFound").await;
    world.webhook("orders", json!({})).await;
    world.until("hooktest", "early", "Succeeded=True/Delivered").await;

    world.webhook("orders", json!({ "url": "https://10.0.0.1/" })).await;
    world.until("hook", "orders", "Stalled=True/AddressDenied").await;
    world.test("denied", json!({})).await;
    let test = world.until("hooktest", "denied", "Succeeded=False/AddressDenied").await;
    assert!(message(&test, "Succeeded").contains("10.0.0.1"), "{test}");
    assert_eq!(world.sender.count(), 1);
}

#[tokio::test]
async fn the_sixth_in_a_minute_waits_its_turn_also_across_a_restart() {
    let mut world = World::new("turns").await;
    world.webhook("orders", json!({})).await;
    world.until("hook", "orders", "Ready=True/RouteLive").await;
    // At once, for all that follows is to happen within a minute.
    let tests = (0..5).map(|number| {
        json!({ "apiVersion": "hookwright.dev/v1alpha1", "kind": "WebhookTest",
            "metadata": { "name": format!("t{number}"), "namespace": world.namespace },
            "spec": { "webhookRef": { "name": "orders" } } })
    });
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": tests.collect::<Vec<_>>() });
    world.kubectl.apply(&list.to_string()).await.unwrap();
    let names = (0..5).map(|number| format!("t{number}"));
    let done = async |name: String| world.until("hooktest", &name, "Succeeded=True/Delivered").await;
    futures::future::join_all(names.map(done)).await;
    world.test("t5", json!({})).await;
    world.until("hooktest", "t5", "Reconciling=True/RateLimited").await;
    world.restart(async |_| ()).await;
    world.test("t6", json!({})).await;
    world.until("hooktest", "t6", "Reconciling=True/RateLimited").await;
    assert_eq!(world.sender.count(), 5);
    world.webhook("other", json!({})).await;
    world.test("free", json!({ "webhookRef": { "name": "other" } })).await;
    world.until("hooktest", "free", "Succeeded=True/Delivered").await;
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_no_other_test() {
    let world = World::new("hangs").await;
    for name in ["orders", "other"] {
        world.webhook(name, json!({})).await;
        world.until("hook", name, "Ready=True/RouteLive").await;
    }
    world.sender.answers([None, None]);
    world.test("one", json!({})).await;
    world.test("two", json!({})).await;
    eventually(SOON, "both to hang", async || match world.sender.count() {
        2 => Ok(()),
        count => Err(count.to_string()),
    })
    .await
    .unwrap();
    world.test("three", json!({ "webhookRef": { "name": "other" } })).await;
    world.until("hooktest", "three", "Succeeded=True/Delivered").await;
    assert!(short(&world.get("hooktest", "one").await).contains(&"Reconciling=True/Sending".to_owned()));
}

#[tokio::test]
async fn a_restart_in_the_middle_never_sends_twice_and_says_so() {
    let mut world = World::new("crash").await;
    world.webhook("orders", json!({})).await;
    world.until("hook", "orders", "Ready=True/RouteLive").await;
    world.sender.answers([None]);
    world.test("cut", json!({})).await;
    let begun = world.until("hooktest", "cut", "Reconciling=True/Sending").await;
    world.sender.asked.notified().await;
    world.restart(async |_| ()).await;
    let test = world.until("hooktest", "cut", "Succeeded=False/Interrupted").await;
    assert!(message(&test, "Succeeded").contains("may have been sent or not"));
    assert_eq!(test["status"]["deliveryId"], begun["status"]["deliveryId"]);
    assert_eq!(world.sender.count(), 1);
    let name = test["status"]["deliveryId"].as_str().unwrap().parse().unwrap();
    let log = world.store.delivery(name).await.unwrap().unwrap();
    assert_eq!(log.reason, Some(EndReason::Interrupted));
    // A while later still.
    world.test("next", json!({})).await;
    world.until("hooktest", "next", "Succeeded=True/Delivered").await;
    assert_eq!(world.sender.count(), 2);
}

#[tokio::test]
async fn a_finished_test_is_deleted_after_its_time() {
    let world = World::new("ttl").await;
    world.webhook("orders", json!({})).await;
    world.test("short", json!({ "ttlSecondsAfterFinished": 1 })).await;
    world.test("kept", json!({})).await;
    let gone = ["wait", "--for=delete", "hooktest/short", "-n", &world.namespace, "--timeout=30s"];
    world.kubectl.ok(&gone).await.unwrap();
    world.until("hooktest", "kept", "Succeeded=True/Delivered").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.sender.count(), 2, "the deleted one was not made anew");
}
