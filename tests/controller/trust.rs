//! The CA in each namespace that has a Webhook.

use hookwright::clock::Clock;
use hookwright::config::ServiceName;
use hookwright::routes::watch::Scope;
use hookwright::server::certificates::Certificates;
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};

use crate::world::{SOON, World, client, plane};

const NAME: &str = "hookwright-ca";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

async fn published(world: &World, bundle: &str) -> Value {
    let is_right = |map: &Value| {
        map["data"]["ca.crt"] == bundle && map["metadata"]["labels"][MANAGED_BY] == "hookwright"
    };
    world.wait("configmap", NAME, bundle, is_right).await
}

async fn gone(world: &World) {
    let arguments =
        ["wait", "--for=delete", "configmap/hookwright-ca", "-n", &world.namespace, "--timeout=60s"];
    world.kubectl.ok(&arguments).await.unwrap();
}

async fn maps(world: &World) -> Vec<Value> {
    let all = world.kubectl.list_json("configmap", &world.namespace, "").await.unwrap();
    all.into_iter().filter(|map| map["metadata"]["name"] == NAME).collect()
}

#[tokio::test]
async fn the_ca_comes_with_a_webhook_is_kept_right_and_goes_with_the_last() {
    let world = World::new("trust").await;
    let bundles = world.publish_ca("one", "elsewhere");
    world.webhook("orders", json!({})).await;
    let map = published(&world, "one").await;
    assert!(map["metadata"]["annotations"]["kubernetes.io/description"].is_string());

    let patch = |patch: Value| {
        let (kubectl, namespace) = (world.kubectl.clone(), world.namespace.clone());
        async move {
            let patch = patch.to_string();
            let arguments = ["patch", "configmap", NAME, "-n", &namespace, "--type=merge", "-p", &patch];
            kubectl.ok(&arguments).await.unwrap();
        }
    };
    patch(json!({"data": {"ca.crt": "forged"}})).await;
    published(&world, "one").await;
    patch(json!({"metadata": {"labels": {MANAGED_BY: null}}})).await;
    published(&world, "one").await;
    patch(json!({"data": null})).await;
    published(&world, "one").await;
    world.kubectl.delete("configmap", &world.namespace, NAME).await.unwrap();
    published(&world, "one").await;

    // In a rotation old and new are in the bundle.
    bundles.send_replace(Some("one and two".to_owned()));
    published(&world, "one and two").await;

    world.webhook("more", json!({})).await;
    world.kubectl.delete("hook", &world.namespace, "orders").await.unwrap();
    bundles.send_replace(Some("two".to_owned()));
    published(&world, "two").await;
    world.kubectl.delete("hook", &world.namespace, "more").await.unwrap();
    gone(&world).await;
}

#[tokio::test]
async fn what_somebody_else_made_under_our_name_is_his() {
    let world = World::new("trust-theirs").await;
    let theirs = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": world.namespace}, "data": {"ca.crt": "mine"}});
    world.kubectl.apply(&theirs.to_string()).await.unwrap();
    world.webhook("orders", json!({})).await;
    let other = World::new("trust-ours").await;
    for world in [&world, &other] {
        world.publish_ca("ours", "elsewhere");
    }
    other.webhook("orders", json!({})).await;
    published(&other, "ours").await;
    assert_eq!(maps(&world).await[0]["data"], json!({"ca.crt": "mine"}));
    world.kubectl.delete("hook", &world.namespace, "orders").await.unwrap();
    other.kubectl.delete("hook", &other.namespace, "orders").await.unwrap();
    gone(&other).await;
    assert_eq!(maps(&world).await[0]["data"], json!({"ca.crt": "mine"}));
    world.kubectl.delete("configmap", &world.namespace, NAME).await.unwrap();
    world.webhook("orders", json!({})).await;
    published(&world, "ours").await;
}

#[tokio::test]
async fn the_operators_own_namespace_is_left_to_the_ca_itself() {
    let plane = plane().await;
    let (own, served) =
        (plane.namespace("trust-own").await.unwrap(), plane.namespace("trust").await.unwrap());
    let scope = Scope::from_list(&[&own, &served]);
    let mut world = World::on(plane, own.clone(), scope).await;
    world.publish_ca("ours", &own);
    world.webhook("orders", json!({})).await;
    world.namespace = served;
    world.webhook("orders", json!({})).await;
    published(&world, "ours").await;
    world.namespace = own;
    assert_eq!(maps(&world).await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_namespace_that_is_being_deleted_is_deleted() {
    let world = World::new("trust-doomed").await;
    world.publish_ca("ours", "elsewhere");
    world.webhook("orders", json!({})).await;
    published(&world, "ours").await;
    world.kubectl.ok(&["delete", "namespace", &world.namespace, "--timeout=60s"]).await.unwrap();
    eventually(SOON, "no Webhook to be left", async || match world.table.webhooks() {
        none if none.is_empty() => Ok(()),
        some => Err(format!("{some:?}")),
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn processes_that_make_the_ca_at_the_same_moment_agree_on_one() {
    let plane = plane().await;
    for round in 0..5 {
        let namespace = plane.namespace("authority").await.unwrap();
        let service = ServiceName { namespace: namespace.clone(), name: "door".to_owned() };
        let mut processes = Vec::new();
        for number in 0..8 {
            let certificates = Certificates::new(client(plane).await, &service, Clock::system());
            processes.push(if number % 2 == 0 { certificates } else { certificates.of_front() });
        }
        let refreshed = futures::future::join_all(processes.iter().map(Certificates::refresh)).await;
        refreshed.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        let bundles: Vec<_> = processes.iter().map(|process| process.bundle().unwrap()).collect();
        assert!(bundles.iter().all(|bundle| *bundle == bundles[0]), "round {round}");
        let map = plane.kubectl().get_json("configmap", &namespace, NAME).await.unwrap();
        assert_eq!(map["data"]["ca.crt"], json!(bundles[0]), "round {round}");
    }
}
