//! Certificates change while requests come, up to 200 a second, and none of them fails.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hookwright_harness::operator::Front;
use hookwright_harness::pki::{Authority, Pair};
use hookwright_harness::publisher::{Event, Publisher};
use hookwright_harness::wait::eventually;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::front::{addresses, admin, own_authority, producer, team_alone};
use crate::world::{Team, unique};

const BASE: &str = "/apis/delivery.hookwright.dev/v1alpha1";
/// Between two requests.
const PACE: Duration = Duration::from_millis(5);
/// Under way at once: a machine that is slower than the pace gets fewer requests, not a backlog of them.
const UNDER_WAY: u32 = 32;
/// Answered in all before a test ends.
const ENOUGH: usize = 2000;
/// Every so often one makes a connection of its own.
const ALONE: usize = 10;
const SOON: Duration = Duration::from_mins(2);

/// Who asks, and how it went.
struct Load {
    /// Straight to each front.
    straight: Mutex<Vec<Publisher>>,
    /// Through kube-apiserver.
    through: Publisher,
    namespace: String,
    answered: AtomicUsize,
    failures: Mutex<Vec<String>>,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with it")
}

impl Load {
    async fn start(team: &Team) -> anyhow::Result<Arc<Self>> {
        let plane = &team.world.plane;
        let server = plane.server_url().trim_start_matches("https://").parse()?;
        let (fronts, _) = addresses(team).await;
        let account = unique("caller");
        let namespace = &*team.namespace;
        team.kubectl.ok(&["create", "serviceaccount", &account, "-n", namespace]).await?;
        let subject = format!("--serviceaccount={namespace}:{account}");
        let role = "--clusterrole=hookwright-admin";
        team.kubectl.ok(&["create", "rolebinding", &account, role, &subject, "-n", namespace]).await?;
        // Until the role is in force.
        admin(team, fronts[0]).await?;
        let through = Publisher::new(
            server,
            "localhost",
            plane.ca_pem(),
            &plane.token(namespace, &account, None).await?,
        )?;
        let load = Arc::new(Self {
            straight: Mutex::new(vec![producer(team, fronts[0]).await?, producer(team, fronts[1]).await?]),
            through,
            namespace: team.namespace.clone(),
            answered: AtomicUsize::new(0),
            failures: Mutex::default(),
            permits: Arc::new(Semaphore::new(UNDER_WAY as usize)),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        load.tasks.spawn(Arc::clone(&load).run());
        Ok(load)
    }

    async fn run(self: Arc<Self>) {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0.. {
            let turn = async {
                pace.tick().await;
                Arc::clone(&self.permits).acquire_owned().await
            };
            let permit = tokio::select! {
                () = self.stop.cancelled() => return,
                permit = turn => permit,
            };
            let load = Arc::clone(&self);
            self.tasks.spawn(async move {
                match load.ask(number).await {
                    Ok(()) => drop(load.answered.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => locked(&load.failures).push(format!("request {number}: {error:#}")),
                }
                drop(permit);
            });
        }
    }

    async fn ask(&self, number: usize) -> anyhow::Result<()> {
        let mut client = match number % 4 {
            0 => self.through.clone(),
            _ => locked(&self.straight)[number % 2].clone(),
        };
        if number.is_multiple_of(ALONE) {
            client = client.with_new_connection()?;
        }
        let answer = if number.is_multiple_of(8) {
            client
                .send(Method::GET, &format!("{BASE}/namespaces/{}/deliveries", self.namespace), &[], "")
                .await?
        } else {
            client
                .publish_structured(&self.namespace, &Event::new(unique("e"), "nobody.wants", json!({})))
                .await?
        };
        anyhow::ensure!(matches!(answer.status, 200 | 202), "{} {}", answer.status, answer.json());
        Ok(())
    }

    /// Other clients of the fronts from now on; returns when what the former ones have begun has ended.
    async fn go_straight_with(&self, clients: Vec<Publisher>) -> anyhow::Result<()> {
        *locked(&self.straight) = clients;
        drop(self.permits.acquire_many(UNDER_WAY).await?);
        Ok(())
    }

    /// Waits until so many more were answered.
    async fn more(&self, count: usize) -> anyhow::Result<()> {
        self.until(self.answered.load(Ordering::Relaxed) + count).await
    }

    /// Waits until so many were answered in all.
    async fn until(&self, count: usize) -> anyhow::Result<()> {
        eventually(SOON, "many more requests", async || {
            let answered = self.answered.load(Ordering::Relaxed);
            if answered >= count { Ok(()) } else { Err(format!("{answered} of {count}")) }
        })
        .await
    }

    /// That none of enough has failed; ends it.
    async fn end(&self) -> anyhow::Result<()> {
        self.until(ENOUGH).await?;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let failures = locked(&self.failures);
        let (answered, shown) =
            (self.answered.load(Ordering::Relaxed), failures.iter().take(5).collect::<Vec<_>>());
        assert!(
            failures.is_empty(),
            "{} of {} failed: {shown:#?}",
            failures.len(),
            failures.len() + answered
        );
        Ok(())
    }
}

/// Lays entries over the Secret with the CA; none: takes it out.
async fn change_secret(team: &Team, entries: &[(&str, Option<String>)]) -> anyhow::Result<()> {
    let namespace = team.world.operator.lock().await.namespace().to_owned();
    let data: serde_json::Map<String, Value> = entries
        .iter()
        .map(|(key, text)| {
            ((*key).to_owned(), text.as_ref().map_or(Value::Null, |text| json!(STANDARD.encode(text))))
        })
        .collect();
    let patch = json!({ "data": data }).to_string();
    let arguments = ["patch", "secret", "hookwright-ca", "-n", &namespace, "--type=merge", "-p", &patch];
    team.kubectl.ok(&arguments).await.map(drop)
}

/// Waits until all three processes have said so often that a bundle of so many certificates is in force.
async fn in_force(team: &Team, certificates: usize, times: usize) -> anyhow::Result<()> {
    let said = format!("\"certificates\":{certificates}");
    eventually(SOON, "all processes to have the bundle", async || {
        let operator = team.world.operator.lock().await;
        let logs = operator.fronts().iter().map(Front::log).chain([operator.log()]);
        let counts: Vec<_> = logs.map(|log| log.matches(&said).count()).collect();
        if counts.iter().all(|count| *count >= times) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await
}

/// Waits until the published bundle has so many certificates, everywhere.
async fn published(team: &Team, certificates: usize) -> anyhow::Result<String> {
    let count = |text: &str| text.matches("BEGIN CERTIFICATE").count();
    let map = ("configmap", &*team.namespace, "hookwright-ca");
    let is_right = |map: &Value| map["data"]["ca.crt"].as_str().is_some_and(|pem| count(pem) == certificates);
    let map = team.kubectl.wait_for(map, SOON, "the bundle for producers", is_right).await?;
    let service = ("apiservice", "", "v1alpha1.delivery.hookwright.dev");
    let is_right = |service: &Value| {
        let pem =
            STANDARD.decode(service["spec"]["caBundle"].as_str().unwrap_or_default()).unwrap_or_default();
        count(&String::from_utf8_lossy(&pem)) == certificates
    };
    team.kubectl.wait_for(service, SOON, "the bundle for kube-apiserver", is_right).await?;
    Ok(map["data"]["ca.crt"].as_str().unwrap_or_default().to_owned())
}

/// Clients of both fronts with this bundle.
async fn with_bundle(team: &Team, bundle: &str) -> anyhow::Result<Vec<Publisher>> {
    let (fronts, _) = addresses(team).await;
    let name = team.world.operator.lock().await.server_name();
    let token = team.world.plane.token(&team.namespace, "producer", Some("hookwright")).await?;
    fronts.iter().map(|address| Publisher::new(*address, &name, bundle, &token)).collect()
}

#[tokio::test]
async fn no_request_fails_while_our_own_ca_is_replaced() -> anyhow::Result<()> {
    let (team, _store) = team_alone("rotation").await?;
    team.webhook("orders", json!({"eventTypes": ["order.created"]})).await?;
    published(&team, 1).await?;
    let (old, new) = (own_authority(&team).await?, Authority::new("hookwright-ca@next")?);
    let Pair { certificate, key } = new.pair();
    let load = Load::start(&team).await?;

    let next = [("next.crt", Some(certificate.clone())), ("next.key", Some(key.clone()))];
    change_secret(&team, &next).await?;
    in_force(&team, 2, 1).await?;
    let both = published(&team, 2).await?;
    load.go_straight_with(with_bundle(&team, &both).await?).await?;

    let signs = [
        ("tls.crt", Some(certificate.clone())),
        ("tls.key", Some(key)),
        ("former.crt", Some(old.pem())),
        ("next.crt", None),
        ("next.key", None),
    ];
    change_secret(&team, &signs).await?;
    let (fronts, store) = addresses(&team).await;
    let name = team.world.operator.lock().await.server_name();
    let token = team.world.plane.token(&team.namespace, "producer", Some("hookwright")).await?;
    for address in fronts.into_iter().chain([store]) {
        let client = Publisher::new(address, &name, &certificate, &token)?;
        eventually(SOON, "a certificate of the new CA", async || {
            let answer =
                client.send(Method::GET, BASE, &[], "").await.map_err(|error| format!("{error:#}"))?;
            if answer.status == 200 { Ok(()) } else { Err(answer.json().to_string()) }
        })
        .await?;
    }

    // The old CA expires: what was made with it is no good any more, the connections of the fronts too.
    change_secret(&team, &[("former.crt", None)]).await?;
    in_force(&team, 1, 2).await?;
    assert_eq!(published(&team, 1).await?.trim(), certificate.trim());
    load.more(500).await?;
    load.end().await
}

/// Waits until each count is more than before.
async fn all_more(count: &impl AsyncFn() -> Vec<usize>, before: &[usize]) -> anyhow::Result<()> {
    eventually(SOON, "each front to have read it", async || {
        let now = count().await;
        if now.iter().zip(before).all(|(now, before)| now > before) {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await
}

#[tokio::test]
async fn no_request_fails_while_kube_apiservers_front_proxy_ca_is_replaced() -> anyhow::Result<()> {
    let (team, _store) = team_alone("front-proxy").await?;
    let plane = &team.world.plane;
    let (old, new) = (plane.front_proxy_authority()?, Authority::new("front-proxy-next")?);
    let load = Load::start(&team).await?;
    let said = "kube-apiserver is known by its client certificate";
    let known = async || {
        let operator = team.world.operator.lock().await;
        operator.fronts().iter().map(|front| front.log().matches(said).count()).collect::<Vec<_>>()
    };
    let before = known().await;

    plane.rewrite("front-proxy-ca.crt", &format!("{}{}", old.pem(), new.pem()))?;
    eventually(SOON, "the fronts to know the new CA", async || {
        let now = known().await;
        if now.iter().zip(&before).all(|(now, before)| now > before) {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await?;
    let Pair { certificate, key } = new.client("front-proxy-client", None)?;
    plane.rewrite("front-proxy.key", &key)?;
    plane.rewrite("front-proxy.crt", &certificate)?;
    eventually(SOON, "kube-apiserver to have its new certificate", async || {
        let log = std::fs::read_to_string(plane.folder().join("kube-apiserver.log")).unwrap_or_default();
        let has = log
            .lines()
            .any(|line| line.contains("new cert/key pair") && line.contains("aggregator-proxy-cert"));
        if has { Ok(()) } else { Err("not in its log".to_owned()) }
    })
    .await?;
    load.more(500).await?;

    // Nothing of the old one is trusted any more: only the new certificate is good now.
    plane.rewrite("front-proxy-ca.crt", &new.pem())?;
    plane.rewrite("front-proxy-ca.key", &new.pair().key)?;
    let before = known().await;
    let patch = json!({"data": {"requestheader-client-ca-file": new.pem()}}).to_string();
    let object = ["patch", "configmap", "extension-apiserver-authentication", "-n", "kube-system"];
    team.kubectl.ok(&[&object[..], &["--type=merge", "-p", &patch]].concat()).await?;
    all_more(&known, &before).await?;
    load.more(1000).await?;
    load.end().await
}
