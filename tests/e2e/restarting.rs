//! What holds over a restart of the operator, and while it is away: each test has a control plane of its own.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::{join_all, try_join_all};
use hookwright_harness::pki::{Authority, Pair};
use hookwright_harness::publisher::{Event, Publisher};
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};

use crate::world::{SOON, Team, World, condition};

const BASE: &str = "/apis/delivery.hookwright.dev/v1alpha1";
const API_SERVICE: &str = "apiservice/v1alpha1.delivery.hookwright.dev";

/// Publishes to both doors and to each twice, all at once; answers the four receipts.
async fn everywhere_at_once(
    doors: &[(&'static str, Publisher); 2],
    namespace: &str,
    event: &Event,
) -> anyhow::Result<Vec<Value>> {
    let [(_, straight), (_, through)] = doors;
    let publish = [straight, through, straight, through]
        .map(async |door: &Publisher| door.publish_structured(namespace, event).await?.accepted());
    try_join_all(publish).await
}

/// Publishes until the door answers again; answers the receipt.
async fn once_back(door: &Publisher, namespace: &str, event: &Event) -> anyhow::Result<Value> {
    eventually(SOON, "the door to answer again", async || {
        let answer = door.publish_structured(namespace, event).await.map_err(|error| format!("{error:#}"))?;
        answer.accepted().map_err(|error| format!("{error:#}"))
    })
    .await
}

/// The names and events of the log, newest first, page by page from a token on.
async fn pages(team: &Team, mut token: String) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    loop {
        let page = page(team, 3, &token).await?;
        found.extend(page.0);
        match page.1 {
            Some(next) => token = next,
            None => return Ok(found),
        }
    }
}

async fn page(
    team: &Team,
    limit: usize,
    token: &str,
) -> anyhow::Result<(Vec<(String, String)>, Option<String>)> {
    let path = format!("{BASE}/namespaces/{}/deliveries?limit={limit}&continue={token}", team.namespace);
    let list: Value = serde_json::from_str(&team.kubectl.ok(&["get", "--raw", &path]).await?)?;
    let lines = list["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let lines =
        lines.iter().map(|line| (text(&line["metadata"]["name"]), text(&line["spec"]["eventId"]))).collect();
    let next = list["metadata"]["continue"].as_str().filter(|next| !next.is_empty());
    Ok((lines, next.map(ToOwned::to_owned)))
}

/// Kills the operator and starts it again, with kube-apiserver passing requests on to it.
async fn restart(team: &Team) -> anyhow::Result<()> {
    team.world.operator.lock().await.restart().await?;
    eventually(SOON, "the log behind kube-apiserver", async || {
        page(team, 1, "").await.map(drop).map_err(|error| error.to_string())
    })
    .await
}

#[tokio::test]
async fn an_event_is_delivered_once_however_often_it_is_published_also_across_a_restart() -> anyhow::Result<()>
{
    const ROUNDS: usize = 50;
    let team = Team::of(&World::alone(&[]).await?, "once").await?;
    team.webhook("orders", json!({})).await?;
    team.webhook("paused", json!({"active": false})).await?;
    team.through_kube_apiserver().await?;
    let doors = team.both_doors("producer").await?;
    let namespace = &*team.namespace;
    let event = |n: usize| Event::new(format!("e{n}"), "order.created", json!({ "n": n }));

    let rounds = join_all((0..ROUNDS).map(async |n| {
        let receipts = everywhere_at_once(&doors, namespace, &event(n)).await?;
        let first = receipts.iter().filter(|receipt| receipt["duplicate"] != true).count();
        assert_eq!(first, 1, "{receipts:?}");
        let ids: BTreeSet<_> = receipts.iter().map(|receipt| receipt["id"].to_string()).collect();
        assert_eq!(ids.len(), 1, "all are told of the same: {receipts:?}");
        anyhow::Ok(receipts[0]["id"].clone())
    }));
    let ids = rounds.await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;

    let twice = [event(ROUNDS), event(0), event(ROUNDS)];
    let receipts = team.batch(&twice).await?;
    let duplicates: Vec<_> = receipts.iter().map(|receipt| receipt["duplicate"] == true).collect();
    assert_eq!(duplicates, [false, true, true], "{receipts:?}");
    assert_eq!(receipts[1]["id"], ids[0]);

    team.receiver.await_requests("/orders", ROUNDS + 1, SOON).await?;
    restart(&team).await?;
    for (n, id) in ids.iter().enumerate().step_by(7) {
        for (what, door) in &doors {
            let receipt = once_back(door, namespace, &event(n)).await?;
            assert_eq!((&receipt["duplicate"], &receipt["id"]), (&json!(true), id), "{what}: {receipt}");
        }
    }
    let receipts = team.batch(&twice).await?;
    assert!(receipts.iter().all(|receipt| receipt["duplicate"] == true), "{receipts:?}");
    // What is new still goes out, after whatever else would have.
    once_back(&doors[0].1, namespace, &event(ROUNDS + 1)).await?;
    team.receiver.await_requests("/orders", ROUNDS + 2, SOON).await?;

    let mut of_event: BTreeMap<String, usize> = BTreeMap::new();
    for (_, event) in pages(&team, String::new()).await? {
        *of_event.entry(event).or_default() += 1;
    }
    assert_eq!(of_event.len(), ROUNDS + 2);
    assert!(of_event.values().all(|lines| *lines == 2), "one delivery for each Webhook: {of_event:?}");
    let sent: BTreeSet<_> = team
        .receiver
        .requests("/orders")
        .iter()
        .filter_map(|request| request.header("webhook-id").map(ToOwned::to_owned))
        .collect();
    assert_eq!(sent.len(), ROUNDS + 2);
    Ok(())
}

#[tokio::test]
async fn a_list_goes_on_where_it_stood_before_the_restart() -> anyhow::Result<()> {
    let team = Team::of(&World::alone(&[]).await?, "token").await?;
    team.webhook("paused", json!({"active": false})).await?;
    team.through_kube_apiserver().await?;
    for n in 0..10 {
        team.publish("order.created", &json!({ "n": n })).await?;
    }
    let whole = pages(&team, String::new()).await?;
    assert_eq!(whole.len(), 10);
    let (first, token) = page(&team, 4, "").await?;
    let token = token.unwrap_or_default();

    restart(&team).await?;
    let again = eventually(SOON, "publishing", async || {
        team.publish("order.paid", &json!({})).await.map_err(|error| format!("{error:#}"))
    })
    .await?;
    assert_eq!(again["matched"], 1);
    let rest = pages(&team, token).await?;
    assert_eq!([first, rest].concat(), whole, "no line twice, none missing, and nothing that came later");
    for size in ["1", "4", "11"] {
        let chunk = format!("--chunk-size={size}");
        let names = team.kubectl.ok(&["get", "dlv", "-n", &team.namespace, "-o", "name", &chunk]).await?;
        let names: Vec<_> = names.lines().filter_map(|name| name.split('/').nth(1)).collect();
        let old: Vec<_> = whole.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[1..], old, "{chunk}");
    }
    let path = format!("{BASE}/namespaces/{}/deliveries?limit=4&continue=nonsense", team.namespace);
    let refused = team.kubectl.run(&["get", "--raw", &path]).await?;
    assert!(!refused.status.success() && refused.stderr.contains("continue"), "{}", refused.stderr);
    Ok(())
}

#[tokio::test]
async fn without_the_operator_namespaces_go_once_its_api_service_has_gone() -> anyhow::Result<()> {
    let team = Team::of(&World::alone(&[]).await?, "kept").await?;
    team.webhook("orders", json!({})).await?;
    team.through_kube_apiserver().await?;
    team.publish("order.created", &json!({})).await?;
    team.receiver.await_requests("/orders", 1, SOON).await?;
    let kubectl = &team.kubectl;
    let all = ["get", "all", "-n", &*team.namespace, "-o", "name"];
    let untouched = kubectl.run(&all).await?;
    assert!(untouched.status.success() && untouched.stdout.is_empty(), "{untouched:?}");

    let doomed = team.world.plane.namespace("doomed").await?;
    team.world.operator.lock().await.kill9();
    let unavailable = "--for=condition=Available=false";
    kubectl.ok(&["wait", API_SERVICE, unavailable, "--timeout=90s"]).await?;
    kubectl.ok(&["delete", "namespace", &doomed, "--wait=false"]).await?;
    let stuck = |namespace: &Value| {
        let discovery = condition(namespace, "NamespaceDeletionDiscoveryFailure");
        let message = discovery["message"].as_str().unwrap_or_default();
        discovery["status"] == "True" && message.contains("delivery.hookwright.dev/v1alpha1")
    };
    kubectl.wait_for(("namespace", "", &doomed), SOON, "stuck, and says by whom", stuck).await?;
    let config = kubectl.ok(&["get", "configmaps,webhooks.hookwright.dev", "-n", &team.namespace]).await?;
    assert!(config.contains("webhook.hookwright.dev/orders"), "all else is as it was: {config}");

    kubectl.ok(&["delete", API_SERVICE]).await?;
    let gone = format!("namespace/{doomed}");
    kubectl.ok(&["wait", &gone, "--for=delete", "--timeout=120s"]).await?;
    let untouched = kubectl.run(&all).await?;
    assert!(untouched.status.success() && untouched.stdout.is_empty(), "{untouched:?}");

    // Without it the operator works all the same; producers come straight.
    team.world.operator.lock().await.start_process().await?;
    let [(_, straight), (_, through)] = team.both_doors("producer").await?;
    let event = Event::new("straight", "order.paid", json!({}));
    once_back(&straight, &team.namespace, &event).await?;
    team.receiver.await_requests("/orders", 2, SOON).await?;
    assert_eq!(through.publish_structured(&team.namespace, &event).await?.status, 404);
    Ok(())
}

/// Lays a CA into the Secret of the operator, which may not be changed or may.
async fn put_authority(team: &Team, authority: &Authority, immutable: bool) -> anyhow::Result<()> {
    let namespace = team.world.operator.lock().await.namespace().to_owned();
    let Pair { certificate, key } = authority.pair();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "immutable": immutable,
        "metadata": {"name": "hookwright-ca", "namespace": namespace},
        "stringData": {"tls.crt": certificate, "tls.key": key, "ca.crt": certificate}});
    team.kubectl.ok(&["delete", "secret", "hookwright-ca", "-n", &namespace]).await?;
    team.kubectl.apply(&secret.to_string()).await.map(drop)
}

async fn readiness(team: &Team) -> anyhow::Result<String> {
    Ok(team.world.operator.lock().await.get("/readyz?verbose").await?.text().await?)
}

#[tokio::test]
async fn a_ca_that_is_not_valid_yet_is_made_anew() -> anyhow::Result<()> {
    let team = Team::of(&World::alone(&[]).await?, "ahead").await?;
    team.webhook("orders", json!({})).await?;
    team.through_kube_apiserver().await?;
    let in_two_days = std::time::SystemTime::now() + std::time::Duration::from_hours(48);
    let ahead = Authority::made_at("hookwright-ca@ahead", in_two_days)?;

    // While the Secret cannot be written, it says why it is not ready.
    team.world.operator.lock().await.kill9();
    put_authority(&team, &ahead, true).await?;
    team.world.operator.lock().await.spawn()?;
    eventually(SOON, "it to say so", async || {
        let text = readiness(&team).await.map_err(|error| format!("{error:#}"))?;
        let says = text.contains("the CA in Secret hookwright-system/hookwright-ca is not valid before");
        if says { Ok(()) } else { Err(text) }
    })
    .await?;

    team.world.operator.lock().await.kill9();
    put_authority(&team, &ahead, false).await?;
    team.world.operator.lock().await.start_process().await?;
    team.kubectl.ok(&["wait", API_SERVICE, "--for=condition=Available", "--timeout=90s"]).await?;
    let ready = readiness(&team).await?;
    assert!(ready.contains("certificate ok"), "{ready}");
    assert!(team.world.operator.lock().await.log().contains("another one takes its place"));
    let doomed = team.world.plane.namespace("doomed").await?;
    team.kubectl.ok(&["delete", "namespace", &doomed, "--timeout=60s"]).await?;
    let bundle = team.world.operator.lock().await.ca_pem().await?;
    assert!(bundle.contains(ahead.pem().trim()), "who still shows the old one is trusted");
    let token = team.world.plane.token(&team.namespace, "producer", Some("hookwright")).await?;
    let operator = team.world.operator.lock().await;
    let door = Publisher::new(operator.address(), &operator.server_name(), &bundle, &token)?;
    drop(operator);
    once_back(&door, &team.namespace, &Event::new("straight", "order.created", json!({}))).await?;
    team.receiver.await_requests("/orders", 1, SOON).await.map(drop)
}
