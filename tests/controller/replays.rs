//! Replays: many finished deliveries sent once more, a few at a time, never again unsaid.

use std::time::Duration;

use hookwright::clock::Clock;
use hookwright::model::ids::{DeliveryName, WebhookRef};
use hookwright::store::replays::Replays as _;
use hookwright::store::{ClaimRequest, EndReason, Next, Order, State, Store as _};
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};

use crate::world::{SOON, World, message, short};

const GIVEN_UP: Next = Next::Failed(EndReason::RetriesExhausted);

impl World {
    async fn replay(&self, name: &str, changes: Value) {
        let mut spec = json!({ "webhookRef": { "name": "orders" },
            "select": { "from": "2000-01-01T00:00:00Z", "to": "2100-01-01T00:00:00Z" } });
        for (key, value) in changes.as_object().unwrap() {
            spec[key] = value.clone();
        }
        self.apply("WebhookReplay", name, json!({ "spec": spec })).await;
    }

    async fn orders(&self, changes: Value) -> WebhookRef {
        self.webhook("orders", changes).await;
        self.wait("hook", "orders", "Ready", |hook| {
            short(hook).iter().any(|one| one.starts_with("Ready=True"))
        })
        .await;
        self.route("orders")
    }

    /// Deliveries that were given up; the last one arrived, so that the endpoint is well.
    async fn night(&self, webhook: &WebhookRef, failed: usize) -> Vec<DeliveryName> {
        let mut names = self.publish(webhook, failed + 1).await;
        for name in &names[..failed] {
            self.record(webhook, *name, 500, GIVEN_UP).await;
        }
        self.record(webhook, names[failed], 200, Next::Success).await;
        names.truncate(failed);
        names
    }

    /// Claims what is due, as the engine does.
    async fn claim(&self, webhook: &WebhookRef) -> Vec<DeliveryName> {
        let request = ClaimRequest {
            webhook: webhook.uid,
            now: Clock::system().now(),
            limit: 1000,
            order: Order::LongestDue,
            lease: Duration::from_mins(1),
        };
        let claims = self.store.claim(request).await.unwrap();
        claims.deliveries.iter().map(|claimed| claimed.delivery.name).collect()
    }

    async fn await_claims(&self, webhook: &WebhookRef, count: usize) -> Vec<DeliveryName> {
        let mut claimed = Vec::new();
        while claimed.len() < count {
            let some = eventually(SOON, "more to claim", async || {
                let some = self.claim(webhook).await;
                if some.is_empty() { Err(format!("{} so far", claimed.len())) } else { Ok(some) }
            });
            claimed.extend(some.await.unwrap());
        }
        claimed
    }

    async fn states(&self, names: &[DeliveryName]) -> Vec<State> {
        let mut states = Vec::new();
        for name in names {
            states.push(self.store.delivery(*name).await.unwrap().unwrap().state);
        }
        states
    }

    async fn await_forgotten(&self) {
        eventually(SOON, "the replay to be forgotten", async || {
            let left = self.store.replays();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await
        .unwrap();
    }
}

fn counts(replay: &Value) -> [i64; 5] {
    ["selected", "sent", "succeeded", "failed", "skipped"]
        .map(|field| replay["status"][field].as_i64().unwrap_or(-1))
}

#[tokio::test]
async fn a_replay_sends_once_more_what_failed_and_counts() {
    let world = World::new("replay").await;
    let webhook = world.orders(json!({})).await;
    let names = world.night(&webhook, 3).await;
    world.replay("night", json!({})).await;
    let replay = world.until("hookreplay", "night", "Reconciling=True/Sending").await;
    assert_eq!(counts(&replay), [3, 0, 0, 0, 0]);
    assert_eq!(world.await_claims(&webhook, 3).await, names);
    world.record(&webhook, names[0], 200, Next::Success).await;
    world.record(&webhook, names[1], 200, Next::Success).await;
    world.record(&webhook, names[2], 503, Next::Retry(Clock::system().now())).await;
    let replay = world.until("hookreplay", "night", "Succeeded=False/DeliveriesFailed").await;
    assert_eq!(counts(&replay), [3, 3, 2, 1, 0]);
    assert_eq!(
        short(&replay),
        ["Succeeded=False/DeliveriesFailed", "Ready=False/DeliveriesFailed", "Stalled=True/DeliveriesFailed"]
    );
    assert_eq!(message(&replay, "Succeeded"), "2 of 3 deliveries arrived, 1 failed again");
    assert!(replay["status"]["completedAt"].is_string());
    let line = world.store.delivery(names[0]).await.unwrap().unwrap();
    assert_eq!(line.attempts[1].asked_by.as_deref(), Some("WebhookReplay/night"));

    world.replay("rest", json!({})).await;
    assert_eq!(world.await_claims(&webhook, 1).await, names[2..]);
    world.record(&webhook, names[2], 200, Next::Success).await;
    let replay = world.until("hookreplay", "rest", "Succeeded=True/Completed").await;
    assert_eq!(counts(&replay), [1, 1, 1, 0, 0]);
    world.replay("nothing", json!({})).await;
    let replay = world.until("hookreplay", "nothing", "Succeeded=True/NothingSelected").await;
    assert_eq!(counts(&replay), [0, 0, 0, 0, 0]);
}

#[tokio::test]
async fn a_completed_replay_that_is_created_anew_sends_nothing_and_shows_the_former_result() {
    let mut world = World::new("anew").await;
    let webhook = world.orders(json!({})).await;
    let names = world.night(&webhook, 1).await;
    world.replay("night", json!({ "ttlSecondsAfterFinished": 0 })).await;
    world.await_claims(&webhook, 1).await;
    world.record(&webhook, names[0], 503, GIVEN_UP).await;
    let gone = ["wait", "--for=delete", "hookreplay/night", "-n", &world.namespace.clone(), "--timeout=30s"];
    world.kubectl.ok(&gone).await.unwrap();
    world.restart(async |_| ()).await;
    world.replay("night", json!({})).await;
    let replay = world.until("hookreplay", "night", "Succeeded=False/CompletedBefore").await;
    assert_eq!(counts(&replay), [1, 1, 0, 1, 0]);
    assert!(message(&replay, "Succeeded").contains("another name would"), "{replay}");
    assert_eq!(world.claim(&webhook).await, []);
    world.replay("other", json!({})).await;
    assert_eq!(world.await_claims(&webhook, 1).await, names);
}

#[tokio::test]
async fn a_dry_run_counts_and_sends_nothing() {
    let world = World::new("dry").await;
    let webhook = world.orders(json!({})).await;
    let names = world.night(&webhook, 2).await;
    world.replay("dry", json!({ "dryRun": true })).await;
    let replay = world.until("hookreplay", "dry", "Succeeded=True/DryRun").await;
    assert_eq!(replay["status"]["selected"], 2);
    let select = json!({ "states": ["Failed", "Success"], "eventTypes": ["order.*"], "from": "2000-01-01T00:00:00Z",
        "to": "2100-01-01T00:00:00Z" });
    world.apply("WebhookReplay", "all", json!({ "spec": { "dryRun": true, "select": select } })).await;
    let replay = world.until("hookreplay", "all", "Succeeded=True/DryRun").await;
    assert_eq!(replay["status"]["selected"], 3, "of every Webhook, and what arrived too");
    assert_eq!(world.claim(&webhook).await, []);
    assert_eq!(world.states(&names).await, [State::Failed; 2]);
}

#[tokio::test]
async fn a_replay_waits_for_its_webhook_and_says_that_it_is_paused() {
    let world = World::new("paused").await;
    world.replay("night", json!({})).await;
    let replay = world.until("hookreplay", "night", "Reconciling=True/WebhookNotFound").await;
    assert!(message(&replay, "Ready").contains("\"orders\" does not exist"), "{replay}");
    let webhook = world.orders(json!({ "active": false })).await;
    world.until("hookreplay", "night", "Succeeded=True/NothingSelected").await;

    let names = world.night(&webhook, 30).await;
    world.replay("later", json!({})).await;
    let replay = world.until("hookreplay", "later", "Succeeded=Unknown/Held").await;
    assert!(message(&replay, "Succeeded").contains("is paused"), "{replay}");
    let waiting = world.await_claims(&webhook, 16).await;
    assert_eq!(waiting, names[..16], "a few wait, and no more are put");
    for name in &waiting {
        world.record(&webhook, *name, 200, Next::Success).await;
    }
    assert_eq!(world.await_claims(&webhook, 14).await, names[16..]);
}

#[tokio::test]
async fn deleting_a_replay_gives_back_what_was_not_sent_also_while_nobody_looks() {
    let mut world = World::new("deleted").await;
    let webhook = world.orders(json!({ "active": false })).await;
    let names = world.night(&webhook, 3).await;
    for is_away in [false, true] {
        world.replay("night", json!({})).await;
        world.until("hookreplay", "night", "Succeeded=Unknown/Held").await;
        assert_eq!(world.states(&names).await, [State::Pending; 3]);
        if is_away {
            let delete = async |world: &mut World| {
                world.kubectl.delete("hookreplay", &world.namespace, "night").await.unwrap();
            };
            world.restart(delete).await;
        } else {
            world.kubectl.delete("hookreplay", &world.namespace, "night").await.unwrap();
        }
        world.await_forgotten().await;
        assert_eq!(world.states(&names).await, [State::Failed; 3]);
        assert_eq!(world.store.summary(webhook.uid).unwrap().pending, 0);
    }
    world.replay("night", json!({})).await;
    let replay = world.until("hookreplay", "night", "Succeeded=Unknown/Held").await;
    assert_eq!(counts(&replay), [3, 0, 0, 0, 0], "one that was stopped is not remembered");
}

#[tokio::test]
async fn a_replay_goes_on_after_a_restart_and_under_its_rate() {
    let mut world = World::new("rate").await;
    let webhook = world.orders(json!({})).await;
    let names = world.night(&webhook, 3).await;
    world.replay("night", json!({ "rateLimit": { "requests": 1, "per": "2s" } })).await;
    assert_eq!(world.await_claims(&webhook, 1).await, names[..1]);
    let began = tokio::time::Instant::now();
    world.record(&webhook, names[0], 200, Next::Success).await;
    assert_eq!(world.await_claims(&webhook, 1).await, names[1..2]);
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    world.restart(async |_| ()).await;
    assert_eq!(world.await_claims(&webhook, 2).await, names[1..], "the claim of before is released");
    for name in &names[1..] {
        world.record(&webhook, *name, 200, Next::Success).await;
    }
    let replay = world.until("hookreplay", "night", "Succeeded=True/Completed").await;
    assert_eq!(counts(&replay), [3, 3, 3, 0, 0]);
}

#[tokio::test]
async fn a_webhook_that_is_deleted_takes_its_part_of_a_replay_along() {
    let world = World::new("taken").await;
    let webhook = world.orders(json!({ "active": false })).await;
    world.night(&webhook, 20).await;
    world.replay("night", json!({})).await;
    world.until("hookreplay", "night", "Succeeded=Unknown/Held").await;
    world.kubectl.delete("hook", &world.namespace, "orders").await.unwrap();
    let replay = world.until("hookreplay", "night", "Succeeded=False/NothingSent").await;
    assert_eq!(counts(&replay), [20, 0, 0, 0, 20]);
    assert!(message(&replay, "Succeeded").contains("20 could not be sent again"), "{replay}");
}
