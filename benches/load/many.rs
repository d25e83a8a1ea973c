//! A great many Webhooks that have nothing to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hookwright_harness::wait::eventually;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DynamicObject, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::figures::{Figures, Goal};
use super::usage::memory;
use super::world::{Team, World, event};

/// Requests to kube-apiserver under way at once.
const AT_ONCE: usize = 16;

pub(crate) async fn measure(world: &Arc<World>, figures: &mut Figures) -> anyhow::Result<()> {
    let (webhooks, namespaces) = (super::size("WEBHOOKS", 1000), super::size("NAMESPACES", 50));
    let team = Team::of(world, "many").await?;
    team.apply(vec![team.webhook("live", &json!({}))]).await?;
    let kubeconfig = Kubeconfig::read_from(world.plane.kubectl().kubeconfig())?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    create(&client, webhooks, namespaces).await?;
    all_ready(&client, webhooks).await?;
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    figures.add(format!("Webhooks in {namespaces} namespaces"), webhooks as f64, "", Goal::None);
    figures.add("a change is in force after", change(&team).await?.as_secs_f64(), " s", Goal::AtMost(1.0));

    // What the deliveries changed is in the status by then: it is written at most every 5 s.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let mut operator = world.operator.lock().await;
    operator.sigterm().await?;
    let begun = Instant::now();
    operator.start_process().await?;
    figures.add("start to ready", begun.elapsed().as_secs_f64(), " s", Goal::AtMost(30.0));
    // Long enough for the first look at everything to be over; nothing tells that nothing comes.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let writes = operator.metric("hookwright_status_writes_total", &[]).await?;
    figures.add("status writes after a restart without change", writes, "", Goal::AtMost(0.0));
    let idle = memory(operator.id().context("no process")?, "VmRSS")?;
    figures.add("memory when idle", idle, " MB", Goal::AtMost(150.0));
    Ok(())
}

fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("hookwright.dev", "v1alpha1", "Webhook"))
}

async fn create(client: &Client, webhooks: usize, namespaces: usize) -> anyhow::Result<()> {
    let name = |number: usize| format!("many-{}", number % namespaces);
    let make = |number: usize| {
        let client = client.clone();
        async move {
            let namespace = json!({"metadata": {"name": name(number)}});
            let api = Api::<Namespace>::all(client);
            api.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
            anyhow::Ok(())
        }
    };
    stream::iter((0..namespaces).map(make)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let make = |number: usize| {
        let client = client.clone();
        async move {
            let object: Value = json!({"apiVersion": "hookwright.dev/v1alpha1", "kind": "Webhook",
                "metadata": {"name": format!("idle-{number}")},
                "spec": {"url": format!("https://hooks.example.com/{number}"), "eventTypes": ["idle.*"]}});
            let api = Api::<DynamicObject>::namespaced_with(client, &name(number), &resource());
            api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
            anyhow::Ok(())
        }
    };
    stream::iter((0..webhooks).map(make)).buffer_unordered(AT_ONCE).try_collect::<()>().await
}

async fn all_ready(client: &Client, webhooks: usize) -> anyhow::Result<()> {
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource());
    let is_ready = |object: &DynamicObject| {
        let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
        conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
    };
    eventually(super::world::LONG, "all to be ready", async || {
        let list = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        match list.items.iter().filter(|object| is_ready(object)).count() {
            ready if ready > webhooks => Ok(()),
            ready => Err(format!("{ready} of {webhooks}")),
        }
    })
    .await
}

/// From a change of a Webhook's URL to the first delivery there.
async fn change(team: &Arc<Team>) -> anyhow::Result<Duration> {
    let url = team.world.receiver.url("hooks", "/changed");
    let begun = Instant::now();
    let patch = json!({"spec": {"url": url}}).to_string();
    let kubectl = team.world.plane.kubectl();
    kubectl.ok(&["patch", "hook", "live", "-n", team.namespace, "--type=merge", "-p", &patch]).await?;
    for number in 0.. {
        if team.count(&["/changed"]) > 0 {
            break;
        }
        let event = event(&format!("change-{number}"), "live");
        team.publisher(0)?.publish_binary(team.namespace, &event).await?.accepted()?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(begun.elapsed())
}
