//! From a Webhook in the cluster to a route in the table, and away again.

use std::time::{Duration, Instant};

use hookwright::model::address::Policy;
use hookwright::routes::compile::{Compiler, MasterKey};
use hookwright::routes::master_key;
use hookwright::routes::references::References;
use hookwright::routes::watch::Scope;
use hookwright::store::Store as _;
use hookwright_harness::control_plane::ControlPlane;
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};

use crate::world::{SOON, World, client, install, message, plane, short};

const KEY: &str = "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

/// A key and a certificate that it signs itself, in PEM.
fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
    (key.serialize_pem(), params.self_signed(&key).unwrap().pem())
}

fn config_map(world: &World, pem: &str) -> String {
    json!({ "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "ca", "namespace": world.namespace }, "data": { "ca.crt": pem } })
    .to_string()
}

#[tokio::test]
async fn a_webhook_is_ready_and_says_so_once() {
    let world = World::new("ready").await;
    world.webhook("orders", json!({})).await;
    let webhook = world.until("hook", "orders", "Ready=True/RouteLive").await;
    let generation = &webhook["metadata"]["generation"];
    assert_eq!(&webhook["status"]["observedGeneration"], generation);
    for condition in webhook["status"]["conditions"].as_array().unwrap() {
        assert_eq!(&condition["observedGeneration"], generation);
        assert!(!condition["message"].as_str().unwrap().is_empty());
    }
    assert_eq!(webhook["status"]["givesUpAfter"], "7m10s");
    assert!(webhook["status"]["publicKey"].as_str().unwrap().starts_with("whpk_"));
    let arguments = ["get", "hook/orders", "-n", &world.namespace, "-o", "json", "--show-managed-fields"];
    let owners = world.kubectl.ok(&arguments).await.unwrap();
    let owners: Value = serde_json::from_str(&owners).unwrap();
    let ours = owners["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["manager"] == "hookwright");
    for entry in ours {
        assert_eq!(entry["fieldsV1"].as_object().unwrap().keys().collect::<Vec<_>>(), ["f:status"]);
    }
    let ready = eventually(SOON, "the Event", async || match &world.events("Ready").await[..] {
        [one] => Ok(one.clone()),
        others => Err(format!("{others:?}")),
    });
    assert_eq!(ready.await.unwrap()["reportingController"], "hookwright");
}

#[tokio::test]
async fn a_webhook_of_the_longest_name_has_its_events_too() {
    let world = World::new("long").await;
    // The Event's name is cut after a dot, which no name may have there.
    let name = format!("{}z", "a.".repeat(126));
    assert_eq!(name.len(), 253);
    world.webhook(&name, json!({})).await;
    let told = eventually(SOON, "the Event", async || match &world.events("Ready").await[..] {
        [one] => Ok(one.clone()),
        others => Err(format!("{others:?}")),
    });
    let told = told.await.unwrap();
    assert_eq!((&told["regarding"]["name"], &told["type"]), (&json!(name), &json!("Normal")));
    assert_eq!((&told["reportingController"], &told["action"]), (&json!("hookwright"), &json!("RouteLive")));
}

#[tokio::test]
async fn a_changed_webhook_is_in_force_within_a_second() {
    let world = World::new("force").await;
    for number in 0..50 {
        world.webhook(&format!("other-{number}"), json!({})).await;
    }
    world.webhook("orders", json!({})).await;
    world.until("hook", "orders", "Ready=True/RouteLive").await;
    // A machine that is busy may hold up one of them.
    let mut took = Vec::new();
    for (kind, active) in [("invoice", false), ("refund", true), ("payment", false)] {
        let patch = json!({ "spec": { "eventTypes": [format!("{kind}.*")], "active": active } }).to_string();
        world
            .kubectl
            .ok(&["patch", "hook/orders", "-n", &world.namespace, "--type=merge", "-p", &patch])
            .await
            .unwrap();
        let begun = Instant::now();
        let changed = eventually(SOON, "the route to change", async || {
            let route = world.table.get(world.route("orders").uid).unwrap();
            if route.filter.wants(&format!("{kind}.paid")) && route.active == active {
                Ok(())
            } else {
                Err(format!("{:?}", route.filter))
            }
        });
        changed.await.unwrap();
        took.push(begun.elapsed());
    }
    assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
    world.until("hook", "orders", "Ready=True/Paused").await;
}

#[tokio::test]
async fn what_a_webhook_misses_is_named_and_heals_by_itself() {
    let world = World::new("heals").await;
    world
        .webhook("orders", json!({ "signing": { "secretRefs": [{ "name": "signing", "key": "key" }] } }))
        .await;
    let webhook = world.until("hook", "orders", "Ready=False/SecretNotFound").await;
    assert!(short(&webhook).contains(&"Reconciling=True/SecretNotFound".to_owned()));
    assert!(
        message(&webhook, "Ready").contains("create secret generic signing"),
        "{}",
        message(&webhook, "Ready")
    );
    let waits = ["wait", "--for=condition=Ready", "hook/orders", "-n", &world.namespace, "--timeout=1s"];
    assert!(world.kubectl.ok(&waits).await.is_err());

    world.secret("signing", false, json!({ "key": KEY })).await;
    let webhook = world.until("hook", "orders", "Ready=False/SecretNotLabelled").await;
    assert!(message(&webhook, "Ready").contains("label secret signing hookwright.dev/use=true"));

    let label = ["label", "secret", "signing", "-n", &world.namespace, "hookwright.dev/use=true"];
    world.kubectl.ok(&label).await.unwrap();
    world.until("hook", "orders", "Ready=True/RouteLive").await;

    world.secret("signing", true, json!({ "key": "canary" })).await;
    let webhook = world.until("hook", "orders", "Ready=False/SecretMalformed").await;
    assert!(short(&webhook).contains(&"Stalled=True/SecretMalformed".to_owned()));
    assert!(!webhook["status"].to_string().contains("canary"), "{webhook}");

    world.kubectl.delete("secret", &world.namespace, "signing").await.unwrap();
    let webhook = world.until("hook", "orders", "Ready=False/SecretNotFound").await;
    assert!(!short(&webhook).iter().any(|one| one.starts_with("Stalled")));
    world.secret("signing", true, json!({ "key": KEY })).await;
    world.until("hook", "orders", "Ready=True/RouteLive").await;
}

#[tokio::test]
async fn a_ca_comes_from_a_config_map_and_follows_it() {
    let world = World::new("ca").await;
    world.webhook("orders", json!({ "tls": { "caRef": { "kind": "ConfigMap", "name": "ca" } } })).await;
    world.until("hook", "orders", "Ready=False/CaNotFound").await;
    let (_, pem) = certificate();
    world.kubectl.apply(&config_map(&world, &pem)).await.unwrap();
    world.until("hook", "orders", "Ready=True/RouteLive").await;
    world.kubectl.apply(&config_map(&world, "no certificate")).await.unwrap();
    world.until("hook", "orders", "Stalled=True/CaMalformed").await;
}

#[tokio::test]
async fn a_deleted_webhook_is_purged_and_one_of_the_same_name_starts_from_nothing() {
    let mut world = World::new("purge").await;
    world.webhook("orders", json!({})).await;
    world.until("hook", "orders", "Ready=True/RouteLive").await;
    let first = world.route("orders");
    world.publish(&first, 3).await;
    world.wait("hook", "orders", "three pending", |hook| hook["status"]["pendingDeliveries"] == 3).await;
    let key = world.get("hook", "orders").await["status"]["publicKey"].clone();

    // With the operator gone, deleting does not wait for it.
    let namespace = world.namespace.clone();
    world.restart(async |world| world.kubectl.delete("hook", &namespace, "orders").await.unwrap()).await;
    let purged = eventually(SOON, "the data to be purged", async || match world.store.known() {
        known if known.is_empty() => Ok(()),
        known => Err(format!("{known:?}")),
    });
    purged.await.unwrap();
    world.webhook("orders", json!({})).await;
    let webhook = world.until("hook", "orders", "Ready=True/RouteLive").await;
    assert_ne!(world.route("orders").uid, first.uid);
    assert_eq!(webhook["status"]["pendingDeliveries"], 0);
    assert_eq!(webhook["status"]["publicKey"], key, "receivers know it");
}

#[tokio::test]
async fn one_broken_object_never_stops_the_watch() {
    let plane = ControlPlane::start().await.unwrap();
    install(&plane).await;
    // A definition that lets through what the type cannot hold.
    let weaker = r#"[{"op":"remove","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/maxInFlight/maximum"},
        {"op":"remove","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/maxInFlight/format"}]"#;
    let crd = "crd/webhooks.hookwright.dev";
    plane.kubectl().ok(&["patch", crd, "--type=json", "-p", weaker]).await.unwrap();
    let namespace = plane.namespace("broken").await.unwrap();
    let world = World::on(&plane, namespace, Scope::All).await;
    let broken = json!({ "maxInFlight": 99_999_999_999_i64 });
    let made = eventually(SOON, "the weaker definition to be in force", async || {
        let spec = json!({ "apiVersion": "hookwright.dev/v1alpha1", "kind": "Webhook",
            "metadata": { "name": "broken", "namespace": world.namespace },
            "spec": { "url": "https://hooks.example.com/", "eventTypes": ["*"], "maxInFlight": broken["maxInFlight"] } });
        world.kubectl.apply(&spec.to_string()).await.map(drop).map_err(|error| error.to_string())
    });
    made.await.unwrap();
    world.webhook("orders", json!({})).await;
    world.until("hook", "orders", "Ready=True/RouteLive").await;
    let broken = world.route("broken");
    assert!(world.table.get(broken.uid).unwrap().endpoint.is_err());

    // A good one that breaks matches what it matched, and heals when it is whole again.
    world.webhook("mended", json!({})).await;
    world.until("hook", "mended", "Ready=True/RouteLive").await;
    world.webhook("mended", json!({ "maxInFlight": 99_999_999_999_i64 })).await;
    let webhook = world.until("hook", "mended", "Stalled=True/ObjectInvalid").await;
    assert_eq!(webhook["status"]["observedGeneration"], webhook["metadata"]["generation"]);
    let mended = world.route("mended");
    assert!(world.table.get(mended.uid).unwrap().filter.wants("order.created"));
    world.webhook("mended", json!({ "maxInFlight": 2 })).await;
    world.until("hook", "mended", "Ready=True/RouteLive").await;
}

#[tokio::test]
async fn an_apiserver_that_is_away_stops_no_deliveries() {
    let plane = ControlPlane::start().await.unwrap();
    install(&plane).await;
    let namespace = plane.namespace("outage").await.unwrap();
    let world = World::on(&plane, namespace, Scope::All).await;
    let (_, pem) = certificate();
    world.kubectl.apply(&config_map(&world, &pem)).await.unwrap();
    world.webhook("orders", json!({ "tls": { "caRef": { "kind": "ConfigMap", "name": "ca" } } })).await;
    world.until("hook", "orders", "Ready=True/RouteLive").await;
    let webhook = world.route("orders");
    plane.stop_apiserver().await.unwrap();
    // The ConfigMap is looked at every 10 s, and no answer takes 5 s.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        assert!(world.table.get(webhook.uid).unwrap().endpoint.is_ok(), "after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    plane.start_apiserver().await.unwrap();
    world.kubectl.apply(&config_map(&world, "no certificate")).await.unwrap();
    world.until("hook", "orders", "Stalled=True/CaMalformed").await;
}

#[tokio::test]
async fn the_master_key_is_made_once_by_whoever_comes_first() {
    let plane = plane().await;
    let (client, namespace) = (client(plane).await, plane.namespace("key").await.unwrap());
    let known = master_key::Known::default();
    let load = || master_key::load(&client, &namespace, &known);
    let (a, b, c) = tokio::join!(load(), load(), load());
    let webhook = serde_json::from_value(json!({
        "apiVersion": "hookwright.dev/v1alpha1", "kind": "Webhook",
        "metadata": { "name": "orders", "namespace": "team-a", "uid": "7d9f4d0e-5c1b-4d3e-9b53-6d2f5f2c0a11" },
        "spec": { "url": "https://hooks.example.com/", "eventTypes": ["*"] },
    }))
    .unwrap();
    let public = |key: MasterKey| {
        Compiler::new(key, Policy::default()).compile(&webhook, &References::default()).unwrap().public_key
    };
    let fingerprint = Some(a.as_ref().unwrap().as_ref().unwrap().fingerprint());
    let first = public(a.unwrap().unwrap());
    assert_eq!(first, public(b.unwrap().unwrap()));
    assert_eq!(first, public(c.unwrap().unwrap()));
    assert_eq!(first, public(load().await.unwrap().unwrap()), "after a restart");
    let secret = plane.kubectl().get_json("secret", &namespace, "hookwright-signing").await.unwrap();
    assert_eq!(secret["immutable"], true);

    plane.kubectl().delete("secret", &namespace, "hookwright-signing").await.unwrap();
    let known = master_key::Known { fingerprint, ..known.clone() };
    let missing = master_key::load(&client, &namespace, &known).await.unwrap().unwrap_err().to_string();
    assert!(missing.contains("hookwright-signing is missing"), "{missing}");
    let secret = plane.kubectl().get_json("secret", &namespace, "hookwright-signing").await;
    assert!(secret.is_err(), "none is made: {secret:?}");
}
