//! What is wrong with one namespace, or with one thing of the cluster, stops nobody else. One control plane, without an
//! aggregation layer, and an operator that serves two namespaces and has a proxy in its environment.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use hookwright_harness::control_plane::ControlPlane;
use hookwright_harness::publisher::{Answer, Event};
use hookwright_harness::wait::eventually;
use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::world::{SOON, Team, World, condition, unique};

const SERVED: &str = "hookwright-served";
/// A name of kube-apiserver's certificate that nothing here resolves: only a proxy leads to it.
const ELSEWHERE: &str = "kubernetes.default.svc";

/// A proxy on loopback that connects whoever asks to one port, and remembers what was asked.
struct Proxy {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

impl Proxy {
    async fn start(to: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (port, asked) = (listener.local_addr()?.port(), Arc::<Mutex<Vec<String>>>::default());
        let (heard, mut task) = (Arc::clone(&asked), JoinSet::new());
        task.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                open.spawn(tunnel(client, to, Arc::clone(&heard)));
            }
        });
        Ok(Self { port, asked, _task: task })
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn tunnel(mut client: TcpStream, to: u16, heard: Arc<Mutex<Vec<String>>>) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(client.read_u8().await?);
    }
    heard.lock().unwrap_or_else(PoisonError::into_inner).push(String::from_utf8_lossy(&request).into_owned());
    let mut server = TcpStream::connect(("127.0.0.1", to)).await?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// The objects of the chart in a namespace, without what the apiserver adds.
async fn rights(team: &Team) -> anyhow::Result<String> {
    let mut items = Vec::new();
    for kind in ["role", "rolebinding"] {
        let mut object = team.kubectl.get_json(kind, &team.namespace, SERVED).await?;
        object["metadata"] = json!({"name": SERVED, "namespace": team.namespace});
        items.push(object);
    }
    Ok(json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())
}

async fn publish(team: &Team) -> anyhow::Result<Answer> {
    let event = Event::new(unique("event"), "order.created", json!({"n": 1}));
    team.publisher.publish_binary(&team.namespace, &event).await
}

/// Publishes, and waits until the receiver has it.
async fn delivers(team: &Team, count: usize) -> anyhow::Result<()> {
    assert_eq!(publish(team).await?.accepted()?["matched"], 1);
    team.receiver.await_requests("/orders", count, SOON).await.map(drop)
}

/// Waits until publishing is taken again.
async fn is_served_again(team: &Team) -> anyhow::Result<()> {
    let before = std::time::Instant::now();
    eventually(SOON, "the namespace to be served again", async || {
        let answer = publish(team).await.map_err(|error| format!("{error:#}"))?;
        let accepted = answer.accepted().map_err(|error| format!("{error:#}"))?;
        if accepted["matched"] == 1 { Ok(()) } else { Err(accepted.to_string()) }
    })
    .await?;
    assert!(before.elapsed().as_secs() < 20, "within seconds: {:?}", before.elapsed());
    Ok(())
}

/// What readiness says of the process with the store, which is ready.
async fn readiness(team: &Team) -> anyhow::Result<String> {
    let answer = team.world.operator.lock().await.get("/readyz?verbose").await?;
    assert_eq!(answer.status(), 200);
    Ok(answer.text().await?)
}

async fn log_of(team: &Team) -> anyhow::Result<Answer> {
    let path = format!("/apis/delivery.hookwright.dev/v1alpha1/namespaces/{}/deliveries", team.namespace);
    team.publisher.send(Method::GET, &path, &[], "").await
}

/// A restart with one namespace that is not served: the other one is as if there were none.
async fn restart_without(b: &Team, a: &Team, count: usize) -> anyhow::Result<()> {
    let mut operator = a.world.operator.lock().await;
    let before = operator.log().lines().count();
    operator.restart().await?;
    drop(operator);
    delivers(a, count).await?;
    assert_eq!(log_of(a).await?.status, 200);

    let refused = publish(b).await?;
    let message = refused.json()["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!((refused.status, refused.headers.contains_key("retry-after")), (503, true), "{message}");
    for part in [b.namespace.as_str(), "its Webhooks cannot be read", "forbidden", "nothing was stored"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert_eq!(log_of(b).await?.status, 503, "not an empty log");
    let ready = readiness(a).await?;
    let warns = format!("[!]routes warns: 1 of 2 not served: {} (its Webhooks cannot be read: ", b.namespace);
    assert!(ready.contains(&warns), "{ready}");

    let operator = a.world.operator.lock().await;
    eventually(SOON, "the metric of namespaces that are not served", async || {
        let unserved = operator.metric("hookwright_namespaces_unserved", &[]).await;
        let failing = operator.metric("hookwright_watches_failing", &["kind=\"Webhook\""]).await;
        match (unserved, failing) {
            (Ok(1.0), Ok(1.0)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    let log = operator.log();
    let about: Vec<_> =
        log.lines().skip(before).filter(|line| line.contains("cannot list resource")).collect();
    assert!((1..=8).contains(&about.len()), "one for each kind of watch: {about:#?}");
    Ok(())
}

/// The right that a role in the namespace gives is enough to tell it from a former one of its name: a Webhook that is
/// replaced by force takes over what waits.
async fn a_replacement_takes_over(a: &Team, count: usize) -> anyhow::Result<()> {
    a.patch("orders", json!({"active": false})).await?;
    a.await_webhook("orders", "paused", |webhook| {
        webhook["metadata"]["generation"] == webhook["status"]["observedGeneration"]
    })
    .await?;
    assert_eq!(publish(a).await?.accepted()?["matched"], 1);
    let active = a.manifest("orders", &json!({})).to_string();
    a.kubectl.run_with_input(&["replace", "--force", "-f", "-"], &active).await?.ok("replace")?;
    a.receiver.await_requests("/orders", count, SOON).await.map(drop)
}

/// The front is ready for producers, and says what kube-apiserver lacks.
async fn a_front_without_an_aggregation_layer(a: &Team) -> anyhow::Result<()> {
    let operator = a.world.operator.lock().await;
    let front = operator.fronts().first().context("there is a front")?;
    let answer = front.get("/readyz").await?;
    let (status, text) = (answer.status(), answer.text().await?);
    assert_eq!(status, 200, "{text}");
    for part in ["[!]kube-apiserver warns: ", "--requestheader-client-ca-file", "apiService.enabled=false"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let log = front.log();
    let said: Vec<_> = log.lines().filter(|line| line.contains("kube-apiserver is not known")).collect();
    assert!(said.len() == 1 && said[0].contains("apiService.enabled=false"), "once: {said:#?}");
    Ok(())
}

/// The Kubernetes API is reached through the environment's proxy; receivers never are.
async fn through_a_proxy(a: &Team, proxy: &Proxy, count: usize) -> anyhow::Result<()> {
    assert_eq!(proxy.asked(), Vec::<String>::new(), "loopback is never asked through a proxy");
    let port = a.world.plane.server_url().rsplit(':').next().unwrap_or_default().to_owned();
    let mut operator = a.world.operator.lock().await;
    let kubeconfig = std::fs::read_to_string(operator.kubeconfig())?;
    let elsewhere = kubeconfig.replace(a.world.plane.server_url(), &format!("https://{ELSEWHERE}:{port}"));
    assert_ne!(elsewhere, kubeconfig);
    std::fs::write(operator.kubeconfig(), elsewhere)?;
    operator.restart().await?;
    drop(operator);
    delivers(a, count).await?;
    let asked = proxy.asked();
    let connects = format!("CONNECT {ELSEWHERE}:{port} HTTP/1.1\r\n");
    assert!(!asked.is_empty() && asked.iter().all(|head| head.starts_with(&connects)), "{asked:#?}");
    let authorization = "proxy-authorization: basic dxnlcjpjyw5hcnk=";
    assert!(asked.iter().all(|head| head.to_ascii_lowercase().contains(authorization)), "{asked:#?}");
    let log = a.world.operator.lock().await.log();
    assert!(log.contains("through a proxy") && !log.contains("canary"), "the password of the proxy");
    Ok(())
}

#[tokio::test]
async fn what_one_lacks_stops_nobody_else() -> anyhow::Result<()> {
    let plane = ControlPlane::start_without_aggregation().await?;
    let (one, other) = (plane.namespace("team-a").await?, plane.namespace("team-b").await?);
    let port = plane.server_url().rsplit(':').next().context("a port")?.parse()?;
    let proxy = Proxy::start(port).await?;
    let environment = json!([
        {"name": "HTTPS_PROXY", "value": format!("http://user:canary@127.0.0.1:{}", proxy.port)},
        {"name": "NO_PROXY", "value": "10.0.0.0/8, ,.example,"},
    ]);
    let values = json!({"namespaces": [one, other], "extraEnv": environment});
    // As by default, and unlike in other tests.
    let log = "--log=warn,kube_runtime::watcher=error,hookwright=info";
    let world = World::on(plane, &[log], values, 1).await?;
    let (a, b) = (Team::within(&world, one).await?, Team::within(&world, other.clone()).await?);
    for team in [&a, &b] {
        viewer(team).await?;
        team.webhook("orders", json!({})).await?;
        delivers(team, 1).await?;
    }
    a_front_without_an_aggregation_layer(&a).await?;
    assert!(readiness(&a).await?.contains("[+]routes ok"));

    a_replacement_takes_over(&a, 2).await?;
    let rights = rights(&b).await?;
    b.kubectl.delete("rolebinding", &other, SERVED).await?;
    restart_without(&b, &a, 3).await?;
    b.kubectl.apply(&rights).await?;
    is_served_again(&b).await?;
    assert!(readiness(&a).await?.contains("[+]routes ok"));
    let ready = b.kubectl.get_json("webhooks.hookwright.dev", &other, "orders").await?;
    assert_eq!(condition(&ready, "Ready")["status"], "True");

    b.kubectl.ok(&["delete", "namespace", &other, "--timeout=60s"]).await?;
    restart_without(&b, &a, 4).await?;
    b.kubectl.ok(&["create", "namespace", &other]).await?;
    b.kubectl.apply(&rights).await?;
    let b = Team::within(&world, other).await?;
    b.webhook("orders", json!({})).await?;
    is_served_again(&b).await?;

    through_a_proxy(&a, &proxy, 5).await
}

/// The team's producer may read the log, too.
async fn viewer(team: &Team) -> anyhow::Result<()> {
    let subject = format!("--serviceaccount={}:producer", team.namespace);
    let role = "--clusterrole=hookwright-viewer";
    team.kubectl.ok(&["create", "rolebinding", "viewer", role, &subject, "-n", &team.namespace]).await?;
    eventually(SOON, "the role to be in force", async || {
        let answer = log_of(team).await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.json().to_string()) }
    })
    .await
}
