//! Fronts: kube-apiserver and producers talk to them, and are answered while the process with the store is away.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hookwright_harness::kubectl::Kubectl;
use hookwright_harness::operator::Front;
use hookwright_harness::pki::{Authority, Pair};
use hookwright_harness::publisher::{AUDIENCE, Answer, Event, Publisher};
use hookwright_harness::wait::eventually;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::doors;
use crate::world::{SOON, Team, World, condition, door, unique};

const BASE: &str = "/apis/delivery.hookwright.dev/v1alpha1";
const API: &str = "v1alpha1.delivery.hookwright.dev";
const API_SERVICE: &str = "apiservice/v1alpha1.delivery.hookwright.dev";

/// Held while the process with the store may be away (for writing), or must not be (for reading).
static STORE: RwLock<()> = RwLock::const_new(());

async fn team(prefix: &str) -> anyhow::Result<(Team, RwLockReadGuard<'static, ()>)> {
    let guard = STORE.read().await;
    Ok((ready(prefix).await?, guard))
}

pub(crate) async fn team_alone(prefix: &str) -> anyhow::Result<(Team, RwLockWriteGuard<'static, ()>)> {
    let guard = STORE.write().await;
    Ok((ready(prefix).await?, guard))
}

async fn ready(prefix: &str) -> anyhow::Result<Team> {
    let team = Team::of(&World::with_fronts().await, prefix).await?;
    team.kubectl.ok(&["wait", API_SERVICE, "--for=condition=Available", "--timeout=60s"]).await?;
    Ok(team)
}

/// Where everybody listens: the two fronts, and the process with the store.
pub(crate) async fn addresses(team: &Team) -> (Vec<SocketAddr>, SocketAddr) {
    let operator = team.world.operator.lock().await;
    (operator.fronts().iter().map(Front::address).collect(), operator.store_address())
}

/// The team's producer at another address.
pub(crate) async fn producer(team: &Team, address: SocketAddr) -> anyhow::Result<Publisher> {
    let operator = team.world.operator.lock().await;
    let token = team.world.plane.token(&team.namespace, "producer", Some(AUDIENCE)).await?;
    Publisher::new(address, &operator.server_name(), &operator.ca_pem().await?, &token)
}

/// One who may do everything in the team's namespace.
pub(crate) async fn admin(team: &Team, address: SocketAddr) -> anyhow::Result<Publisher> {
    let (name, namespace) = (unique("admin"), &*team.namespace);
    team.kubectl.ok(&["create", "serviceaccount", &name, "-n", namespace]).await?;
    let subject = format!("--serviceaccount={namespace}:{name}");
    let role = "--clusterrole=hookwright-admin";
    team.kubectl.ok(&["create", "rolebinding", &name, role, &subject, "-n", namespace]).await?;
    let user = format!("system:serviceaccount:{namespace}:{name}");
    doors::in_force(&team.kubectl, &user, namespace, "list", "deliveries").await?;
    let token = team.world.plane.token(namespace, &name, Some(AUDIENCE)).await?;
    Ok(producer(team, address).await?.with_token(&token))
}

fn event() -> Event {
    Event::new(unique("event"), "order.created", json!({"n": 1}))
}

#[tokio::test]
async fn publishing_and_the_log_are_the_same_through_a_front() -> anyhow::Result<()> {
    let (team, _store) = team("fronted").await?;
    team.webhook("orders", json!({})).await?;
    let (fronts, store) = addresses(&team).await;
    let event = event();
    let first =
        producer(&team, fronts[0]).await?.publish_binary(&team.namespace, &event).await?.accepted()?;
    assert_eq!(first["matched"], 1, "{first}");
    for address in [fronts[0], fronts[1], store] {
        let again = producer(&team, address).await?.publish_structured(&team.namespace, &event).await?;
        let again = again.accepted()?;
        assert_eq!((&again["duplicate"], &again["id"]), (&json!(true), &first["id"]), "{address}");
    }
    let sent = team.receiver.await_requests("/orders", 1, SOON).await?.remove(0);
    assert_eq!((sent.json()?, sent.header("ce-id")), (json!({"n": 1}), Some(&*event.id)));
    assert_eq!(team.dry_run("order.created").await?["matched"], 1);

    let name = sent.header("webhook-id").unwrap_or_default().to_owned();
    let path = format!("{BASE}/namespaces/{}/deliveries/{name}", team.namespace);
    let admin = admin(&team, fronts[1]).await?;
    let done = eventually(SOON, "the delivery to be done", async || {
        let answer = admin.send(Method::GET, &path, &[], "").await.map_err(|error| error.to_string())?;
        let line = answer.json();
        if line["status"]["state"] == "Success" { Ok(line) } else { Err(line.to_string()) }
    })
    .await?;
    assert_eq!(done["metadata"]["name"], json!(name));
    let by_kubectl = team.kubectl.ok(&["get", "dlv", &name, "-n", &team.namespace, "-o", "json"]).await?;
    assert_eq!(serde_json::from_str::<Value>(&by_kubectl)?, done, "through kube-apiserver too");
    let payload = admin.send(Method::GET, &format!("{path}/payload"), &[], "").await?;
    assert_eq!((payload.status, payload.json()["data"].clone()), (200, json!("{\"n\":1}")));
    let changed = admin.send(Method::POST, &format!("{path}/redeliver"), &[], "{}").await?;
    let by = changed.json()["requestedBy"].as_str().unwrap_or_default().to_owned();
    assert_eq!(changed.status, 201);
    assert!(by.starts_with(&format!("system:serviceaccount:{}:admin", team.namespace)), "{by}");
    team.receiver.await_requests("/orders", 2, SOON).await?;

    let large = admin.publish(&team.namespace, &[("content-type", "a/b")], vec![b'x'; (1 << 20) + 1]).await?;
    assert_eq!((large.status, &large.json()["reason"]), (413, &json!("RequestEntityTooLarge")));
    let bad =
        admin.publish(&team.namespace, &[("content-type", "application/cloudevents+json")], "{}").await?;
    assert_eq!((bad.status, &bad.json()["reason"]), (400, &json!("BadRequest")), "{}", bad.json());
    Ok(())
}

/// Webhooks and events of a log with one line for each of both.
const CROWD: (usize, usize) = (10, 1500);

/// A log of many lines that stay as they are.
async fn crowd(team: &Team) -> anyhow::Result<usize> {
    for number in 0..CROWD.0 {
        team.webhook(&format!("paused-{number}"), json!({"active": false})).await?;
    }
    let events: Vec<_> = (0..CROWD.1)
        .map(|n| Event::new(format!("event-{n:05}"), format!("order.{}", n % 7), json!({"n": n})))
        .collect();
    for batch in events.chunks(500) {
        team.batch(batch).await?;
    }
    Ok(CROWD.0 * CROWD.1)
}

/// Resident memory of a process in KiB now, or at most since it was last asked with `reset`.
fn memory(id: u32, what: &str) -> anyhow::Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default();
    Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
}

#[tokio::test]
async fn a_list_without_limit_is_whole_and_costs_little_memory() -> anyhow::Result<()> {
    let (team, _alone) = team_alone("whole").await?;
    let count = crowd(&team).await?;
    let namespace = &*team.namespace;
    let sorted = ["get", "dlv", "-n", namespace, "--no-headers", "--sort-by=.spec.eventId"];
    let printed = team.kubectl.ok(&sorted).await?;
    assert_eq!(printed.lines().count(), count, "kubectl sorts all of them");
    let all = ["get", "dlv", "-n", namespace, "-o", "json", "--chunk-size=0"];
    let all: Value = serde_json::from_str(&team.kubectl.ok(&all).await?)?;
    assert_eq!(all["items"].as_array().map(Vec::len), Some(count));
    let some = ["get", "dlv", "-n", namespace, "--no-headers", "--chunk-size=0", "--field-selector"];
    let one =
        team.kubectl.ok(&[&some[..], &["spec.webhook=paused-3,spec.eventType=order.0"]].concat()).await?;
    assert_eq!(one.lines().count(), CROWD.1.div_ceil(7), "{one}");

    let (fronts, store) = addresses(&team).await;
    let processes = {
        let operator = team.world.operator.lock().await;
        [operator.id(), operator.fronts()[0].id()].map(Option::unwrap_or_default)
    };
    let path = format!("{BASE}/namespaces/{namespace}/deliveries");
    let reader = admin(&team, fronts[0]).await?;
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    // The first time also fills what the store keeps in memory of its tables.
    for (round, accept) in [&[][..], &[], &table[..]].into_iter().enumerate() {
        let mut before = [0; 2];
        for (process, before) in processes.iter().zip(&mut before) {
            std::fs::write(format!("/proc/{process}/clear_refs"), "5")?;
            *before = memory(*process, "VmRSS:")?;
        }
        let answer = reader.send(Method::GET, &path, accept, "").await?;
        let list = answer.json();
        let lines = list["items"].as_array().or_else(|| list["rows"].as_array()).map(Vec::len);
        assert_eq!((answer.status, lines, &list["metadata"]["continue"]), (200, Some(count), &Value::Null));
        let size = answer.body.len() / 1024;
        assert!(size > 7000, "{size} KiB");
        for (process, before) in processes.iter().zip(before) {
            let more = memory(*process, "VmHWM:")?.saturating_sub(before);
            assert!(
                round == 0 || more < size / 2,
                "{more} KiB more for an answer of {size} KiB, of {process}"
            );
        }
    }
    let straight = producer(&team, store).await?;
    let refused = straight.send(Method::GET, &path, &[], "").await?;
    assert_eq!(refused.status, 403, "a producer may not read");
    Ok(())
}

#[tokio::test]
async fn a_user_in_3000_groups_is_answered_through_a_front() -> anyhow::Result<()> {
    let (team, _store) = team("groups").await?;
    doors::many_groups(&team).await
}

#[tokio::test]
async fn each_role_may_do_the_same_through_a_front() -> anyhow::Result<()> {
    let (team, _store) = team("roles").await?;
    let other = Team::of(&team.world, "others").await?;
    doors::matrix(&team, &other).await
}

/// The CA of the installation, with its key.
pub(crate) async fn own_authority(team: &Team) -> anyhow::Result<Authority> {
    use base64::Engine as _;
    let namespace = team.world.operator.lock().await.namespace().to_owned();
    let secret = team.kubectl.get_json("secret", &namespace, "hookwright-ca").await?;
    let entry = |key: &str| {
        let text = secret["data"][key].as_str().unwrap_or_default();
        let bytes = base64::engine::general_purpose::STANDARD.decode(text)?;
        anyhow::Ok(String::from_utf8(bytes)?)
    };
    Authority::from_pem(&entry("tls.crt")?, &entry("tls.key")?)
}

#[tokio::test]
async fn only_a_front_may_tell_the_store_for_whom_it_asks() -> anyhow::Result<()> {
    let (team, _store) = team("forged").await?;
    let (fronts, store) = addresses(&team).await;
    let own = own_authority(&team).await?;
    let file = |name: &str| std::fs::read_to_string(team.world.plane.folder().join(name));
    let front_proxy = Pair { certificate: file("front-proxy.crt")?, key: file("front-proxy.key")? };
    let others = team.world.plane.front_proxy_authority()?.client("somebody", None)?;
    let front = own.client("hookwright-front", None)?;
    for (what, address, identity, expected) in [
        ("nobody at the store", store, None, 401),
        ("of another CA", store, Some(Authority::new("ca")?.client("hookwright-front", None)?), 401),
        ("of our CA, with another name", store, Some(own.client("hookwright", None)?), 401),
        ("of kube-apiserver's CA, with another name", fronts[0], Some(others), 401),
        ("of our CA, a server's", store, Some(own.server(&["hookwright-front"])?), 401),
        ("kube-apiserver's, that asks fronts", store, Some(front_proxy.clone()), 401),
        ("a front", store, Some(front.clone()), 200),
        ("nobody at a front", fronts[0], None, 401),
        ("a front at a front", fronts[0], Some(front), 401),
        ("kube-apiserver at a front", fronts[1], Some(front_proxy), 200),
    ] {
        let identity = identity.map(|pair| format!("{}{}", pair.certificate, pair.key));
        let asked = doors::with_certificate(&team, address, identity.as_deref(), "admin", "system:masters");
        let (code, answer) = asked.await?;
        assert_eq!(code, expected, "{what}: {answer}");
    }
    Ok(())
}

#[tokio::test]
async fn the_front_of_the_chart_has_few_rights() -> anyhow::Result<()> {
    let (team, _store) = team("rights").await?;
    let kubeconfig = team.world.operator.lock().await.fronts()[0].kubeconfig().to_owned();
    let kubectl: Kubectl = team.kubectl.with_kubeconfig(kubeconfig);
    let own = "hookwright-system";
    for (verb, object, namespace, expected) in [
        ("get", "secret/hookwright-ca", own, "yes"),
        ("get", "secret/hookwright-signing", own, "no"),
        ("list", "secrets", own, "no"),
        ("get", "secrets", &*team.namespace, "no"),
        ("list", "webhooks.hookwright.dev", &*team.namespace, "no"),
        ("list", "deliveries.delivery.hookwright.dev", &*team.namespace, "no"),
        ("delete", "apiservices/v1alpha1.delivery.hookwright.dev", "", "no"),
        ("patch", "apiservices/v1alpha1.delivery.hookwright.dev", "", "yes"),
        ("patch", "apiservices/v1.apps", "", "no"),
    ] {
        let output = kubectl.run(&["auth", "can-i", verb, object, "-n", namespace]).await?;
        assert_eq!(output.stdout.trim(), expected, "{verb} {object} in {namespace}");
    }
    Ok(())
}

#[tokio::test]
async fn the_chart_has_fronts_or_everything_in_one_process() -> anyhow::Result<()> {
    let (team, _store) = team("chart").await?;
    let helm = team.world.plane.helm().await?;
    let chart = hookwright_harness::helm::chart();
    for (values, selects, is_door) in [
        (json!({}), "front", false),
        (json!({"namespaces": ["team-a"], "publishCa": false}), "front", false),
        (json!({"front": {"enabled": false}}), "operator", true),
        (json!({"front": {"enabled": false}, "apiService": {"enabled": false}}), "operator", false),
    ] {
        let text = helm.template("hookwright", "hooks", &chart, &values).await?;
        let has = |line: &str| text.lines().any(|is| is.trim_start_matches([' ', '-']) == line);
        for kind in ["Deployment", "PodDisruptionBudget"] {
            assert_eq!(has(&format!("kind: {kind}")), selects == "front", "{values}: {kind}");
        }
        assert!(has(&format!("api-service={is_door}")), "{values}");
        let service = text
            .split("\n---")
            .find(|part| part.contains("kind: Service\n") && part.contains("name: hookwright\n"));
        let service = service.unwrap_or_default();
        assert!(service.contains(&format!("app.kubernetes.io/component: {selects}\n  ports")), "{service}");
        assert_eq!(text.contains("verbs: [patch, delete]"), values["publishCa"] != false, "{values}");
    }
    Ok(())
}

/// Connects anew again and again, and asks each front for discovery, until told to stop: how often it was answered.
async fn ask_again_and_again(clients: Vec<Publisher>, stop: CancellationToken) -> anyhow::Result<usize> {
    let mut answered = 0;
    while !stop.is_cancelled() {
        for client in &clients {
            let answer = client.with_new_connection()?.send(Method::GET, BASE, &[], "").await?;
            anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.json());
            answered += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(answered)
}

/// That an answer says to come again, in the words of Kubernetes.
fn assert_later(answer: &Answer, what: &str) {
    let status = answer.json();
    assert_eq!((answer.status, &status["reason"]), (503, &json!("ServiceUnavailable")), "{what}: {status}");
    assert!(answer.headers.contains_key("retry-after"), "{what}: {:?}", answer.headers);
    let message = status["message"].as_str().unwrap_or_default();
    assert!(message.contains("pod with the store"), "{what}: {message}");
}

async fn namespaces_are_deleted(team: &Team) -> anyhow::Result<Duration> {
    let doomed = team.world.plane.namespace("doomed").await?;
    let begun = Instant::now();
    team.kubectl.ok(&["delete", "namespace", &doomed, "--timeout=60s"]).await?;
    Ok(begun.elapsed())
}

async fn announced(team: &Team) -> anyhow::Result<String> {
    let fresh = team.kubectl.ok(&["api-resources", "--cached=false", "-o", "wide"]).await?;
    Ok(fresh.lines().filter(|line| line.contains("delivery.hookwright.dev")).collect::<Vec<_>>().join("\n"))
}

#[tokio::test]
async fn while_the_store_is_away_the_cluster_works_on_and_publishing_says_when_to_come_again()
-> anyhow::Result<()> {
    let (team, _store) = team_alone("outage").await?;
    team.webhook("orders", json!({})).await?;
    let (fronts, _) = addresses(&team).await;
    let clients = vec![producer(&team, fronts[0]).await?, producer(&team, fronts[1]).await?];
    team.publish("order.created", &json!({"before": true})).await?;
    team.receiver.await_requests("/orders", 1, SOON).await?;
    let before = announced(&team).await?;
    assert_eq!(before.lines().count(), 3, "{before}");

    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let asking = tasks.spawn(ask_again_and_again(clients.clone(), stop.clone()));
    team.world.operator.lock().await.kill9();

    // Whoever waited for the store would wait longer than these clients do.
    for client in &clients {
        let published = client.publish_binary(&team.namespace, &event()).await?;
        assert_later(&published, "publishing");
        let dry =
            client.send(Method::POST, &format!("{}?dryRun=All", door(&team.namespace)), &[], "{}").await?;
        assert_later(&dry, "a dry run");
    }
    // Nor does one wait behind another, each for a connection to be refused in its turn.
    let many = (0..200).map(|_| {
        let client = clients[0].clone();
        let namespace = team.namespace.clone();
        tasks.spawn(async move { client.publish_binary(&namespace, &event()).await })
    });
    for published in futures::future::join_all(many).await {
        assert_later(&published??, "one of many");
    }

    let list = team.kubectl.run(&["get", "dlv", "-n", &team.namespace]).await?;
    assert!(!list.status.success() && list.stderr.contains("pod with the store is away"), "{}", list.stderr);
    assert_eq!(announced(&team).await?, before, "discovery is as it was");
    let took = namespaces_are_deleted(&team).await?;
    let service = team.kubectl.get_json("apiservice", "", API).await?;
    assert_eq!(condition(&service, "Available")["status"], "True", "{service:#}");
    for front in team.world.operator.lock().await.fronts() {
        assert_eq!(front.get("/readyz").await?.status(), 200);
        let metrics = front.get("/metrics").await?.text().await?;
        assert!(metrics.contains("hookwright_forwarded_requests_total{result=\"away\"}"), "{metrics}");
    }

    team.world.operator.lock().await.start_process().await?;
    eventually(SOON, "publishing to work again", async || {
        let answer = clients[1].publish_binary(&team.namespace, &event()).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status == 202 { Ok(()) } else { Err(answer.json().to_string()) }
    })
    .await?;
    team.receiver.await_requests("/orders", 2, SOON).await?;
    let list = team.kubectl.ok(&["get", "dlv", "-n", &team.namespace, "-o", "name"]).await?;
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(took < Duration::from_secs(30), "a namespace took {took:?}");

    stop.cancel();
    let answered = asking.await??;
    assert!(answered > 50, "every one of {answered} connections was answered, with the same CA");
    Ok(())
}

#[tokio::test]
async fn a_producer_finds_the_ca_in_its_own_namespace_as_long_as_there_is_a_webhook() -> anyhow::Result<()> {
    let (team, _store) = team("published").await?;
    team.webhook("orders", json!({})).await?;
    let object = ("configmap", &*team.namespace, "hookwright-ca");
    let ca = team.world.operator.lock().await.ca_pem().await?;
    let is_right = |map: &Value| map["data"]["ca.crt"] == ca;
    team.kubectl.wait_for(object, SOON, "the CA", is_right).await?;
    team.kubectl.delete("configmap", &team.namespace, "hookwright-ca").await?;
    let found = team.kubectl.wait_for(object, SOON, "the CA again", is_right).await?;
    let (fronts, _) = addresses(&team).await;
    let name = team.world.operator.lock().await.server_name();
    let token = team.world.plane.token(&team.namespace, "producer", Some(AUDIENCE)).await?;
    let bundle = found["data"]["ca.crt"].as_str().unwrap_or_default();
    let producer = Publisher::new(fronts[1], &name, bundle, &token)?;
    producer.publish_binary(&team.namespace, &event()).await?.accepted()?;
    team.kubectl.delete("hook", &team.namespace, "orders").await?;
    let gone = ["wait", "--for=delete", "configmap/hookwright-ca", "-n", &team.namespace, "--timeout=60s"];
    team.kubectl.ok(&gone).await?;

    let doomed = ready("published-doomed").await?;
    doomed.webhook("orders", json!({})).await?;
    let object = ("configmap", &*doomed.namespace, "hookwright-ca");
    doomed.kubectl.wait_for(object, SOON, "the CA", is_right).await?;
    doomed.kubectl.ok(&["delete", "namespace", &doomed.namespace, "--timeout=60s"]).await?;
    let log = team.world.operator.lock().await.log();
    let mut of_doomed = log.lines().filter(|line| line.contains(&*doomed.namespace));
    let complaint = of_doomed.find(|line| line.contains("cannot publish the CA"));
    assert_eq!(complaint, None, "a namespace that goes is no trouble");
    Ok(())
}

#[tokio::test]
async fn processes_that_start_at_once_agree_on_one_authority() -> anyhow::Result<()> {
    let (team, _store) = team("authority").await?;
    let (fronts, store) = addresses(&team).await;
    let bundle = team.world.operator.lock().await.ca_pem().await?;
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1, "{bundle}");
    for address in fronts.into_iter().chain([store]) {
        let answer = producer(&team, address).await?.send(Method::GET, BASE, &[], "").await?;
        assert_eq!(answer.status, 200, "{address}");
    }
    let operator = team.world.operator.lock().await;
    let logs: Vec<_> = operator.fronts().iter().map(Front::log).collect();
    let made = |log: &str| log.matches("wrote the certificate authority").count();
    let makers = logs.iter().map(|log| made(log)).sum::<usize>() + made(&operator.log());
    assert_eq!(makers, 1, "one has made it, the others took it");
    Ok(())
}
