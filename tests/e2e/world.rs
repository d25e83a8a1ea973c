//! What every test here stands on.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hookwright_harness::control_plane::{self, ControlPlane};
use hookwright_harness::kubectl::Kubectl;
use hookwright_harness::operator::{Operator, OperatorOptions};
use hookwright_harness::publisher::{AUDIENCE, Event, Publisher, create_account};
use hookwright_harness::receiver::Receiver;
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};

/// Longest wait for what should take a second or two; generous, since machines are shared.
pub(crate) const SOON: Duration = Duration::from_mins(1);

/// A control plane with an operator.
pub(crate) struct World {
    pub(crate) plane: Plane,
    pub(crate) operator: Mutex<Operator>,
}

/// One that the tests of this binary share, or one of a test's own.
pub(crate) enum Plane {
    Shared(&'static ControlPlane),
    Own(Box<ControlPlane>),
}

impl Deref for Plane {
    type Target = ControlPlane;
    fn deref(&self) -> &ControlPlane {
        match self {
            Self::Shared(plane) => plane,
            Self::Own(plane) => plane,
        }
    }
}

impl World {
    /// The one that the tests of this binary share.
    pub(crate) async fn shared() -> Arc<Self> {
        static WORLD: OnceCell<Arc<World>> = OnceCell::const_new();
        let start = async || {
            let plane = Plane::Shared(control_plane::shared().await);
            let operator = operator(&plane, &[], json!({}), 0).await.expect("the operator starts");
            Arc::new(Self { plane, operator })
        };
        Arc::clone(WORLD.get_or_init(start).await)
    }

    /// One of a test's own, with further arguments for the operator.
    pub(crate) async fn alone(arguments: &[&str]) -> anyhow::Result<Arc<Self>> {
        Self::own(arguments, json!({})).await
    }

    /// One of a test's own, with further values for the chart.
    pub(crate) async fn with_values(values: Value) -> anyhow::Result<Arc<Self>> {
        Self::own(&[], values).await
    }

    async fn own(arguments: &[&str], values: Value) -> anyhow::Result<Arc<Self>> {
        Self::on(ControlPlane::start().await?, arguments, values, 0).await
    }

    /// One on this control plane, with so many fronts.
    pub(crate) async fn on(
        plane: ControlPlane,
        arguments: &[&str],
        values: Value,
        fronts: usize,
    ) -> anyhow::Result<Arc<Self>> {
        let plane = Plane::Own(Box::new(plane));
        let operator = operator(&plane, arguments, values, fronts).await?;
        Ok(Arc::new(Self { plane, operator }))
    }

    /// The one, shared too, in which two fronts stand before the process with the store.
    pub(crate) async fn with_fronts() -> Arc<Self> {
        static WORLD: OnceCell<Arc<World>> = OnceCell::const_new();
        let start = async || {
            let plane = ControlPlane::start().await.expect("a control plane starts");
            let plane = Plane::Own(Box::new(plane));
            let operator =
                operator(&plane, &[], json!({}), 2).await.expect("the operator and its fronts start");
            Arc::new(Self { plane, operator })
        };
        Arc::clone(WORLD.get_or_init(start).await)
    }
}

async fn operator(
    plane: &ControlPlane,
    arguments: &[&str],
    values: Value,
    fronts: usize,
) -> anyhow::Result<Mutex<Operator>> {
    let mut options = OperatorOptions::default().fronts(fronts).arg("--log=info,hookwright=debug");
    if let (Value::Object(all), Value::Object(values)) = (&mut options.values, values) {
        all.extend(values);
    }
    let options = arguments.iter().fold(options, |options, argument| options.arg(*argument));
    Ok(Mutex::new(Operator::start(plane, env!("CARGO_BIN_EXE_hookwright"), &options).await?))
}

/// A namespace with a receiver, and a producer that may publish there.
pub(crate) struct Team {
    pub(crate) world: Arc<World>,
    pub(crate) namespace: String,
    pub(crate) kubectl: Kubectl,
    pub(crate) receiver: Receiver,
    pub(crate) publisher: Publisher,
}

impl Team {
    /// One in the shared world.
    pub(crate) async fn new(prefix: &str) -> anyhow::Result<Self> {
        Self::of(&World::shared().await, prefix).await
    }

    /// One in this world.
    pub(crate) async fn of(world: &Arc<World>, prefix: &str) -> anyhow::Result<Self> {
        let namespace = world.plane.namespace(prefix).await?;
        Self::within(world, namespace).await
    }

    /// One in this namespace, which is there.
    pub(crate) async fn within(world: &Arc<World>, namespace: String) -> anyhow::Result<Self> {
        let kubectl = world.plane.kubectl();
        let receiver = Receiver::start().await?;
        let trust = json!({"apiVersion": "v1", "kind": "ConfigMap",
                           "metadata": {"name": "receiver-ca", "namespace": namespace},
                           "data": {"ca.crt": receiver.ca_pem()}});
        kubectl.apply(&trust.to_string()).await?;
        create_account(&world.plane, &namespace, "producer").await?;
        let operator = world.operator.lock().await;
        let publisher = Publisher::with_account(&world.plane, &operator, &namespace, "producer").await?;
        drop(operator);
        Ok(Self { world: Arc::clone(world), namespace, kubectl, receiver, publisher })
    }

    /// Waits until kube-apiserver passes on what is asked of the delivery API.
    pub(crate) async fn through_kube_apiserver(&self) -> anyhow::Result<()> {
        let api_service = "apiservice/v1alpha1.delivery.hookwright.dev";
        self.kubectl.ok(&["wait", api_service, "--for=condition=Available", "--timeout=60s"]).await.map(drop)
    }

    /// Clients of both doors with the rights of an account of the team, each with what it is called.
    pub(crate) async fn both_doors(&self, account: &str) -> anyhow::Result<[(&'static str, Publisher); 2]> {
        let plane = &self.world.plane;
        let token = plane.token(&self.namespace, account, Some(AUDIENCE)).await?;
        let straight = self.publisher.with_token(&token);
        let server = plane.server_url().trim_start_matches("https://").parse()?;
        let token = plane.token(&self.namespace, account, None).await?;
        let through = Publisher::new(server, "localhost", plane.ca_pem(), &token)?;
        Ok([("straight", straight), ("through kube-apiserver", through)])
    }

    /// The manifest of a Webhook to the receiver's `/name`, with `changes` laid over its spec.
    pub(crate) fn manifest(&self, name: &str, changes: &Value) -> Value {
        let mut spec = json!({
            "url": self.receiver.url("hooks", &format!("/{name}")),
            "eventTypes": ["*"],
            "backoff": {"initial": "1s", "factor": 1, "max": "60s"},
            "tls": {"caRef": {"kind": "ConfigMap", "name": "receiver-ca"}},
        });
        if let (Some(spec), Some(changes)) = (spec.as_object_mut(), changes.as_object()) {
            spec.extend(changes.clone());
        }
        json!({"apiVersion": "hookwright.dev/v1alpha1", "kind": "Webhook",
               "metadata": {"name": name, "namespace": self.namespace}, "spec": spec})
    }

    /// Applies a Webhook without waiting.
    pub(crate) async fn apply(&self, name: &str, changes: Value) -> anyhow::Result<()> {
        self.kubectl.apply(&self.manifest(name, &changes).to_string()).await.map(drop)
    }

    /// Applies a Webhook and waits until its newest generation is Ready.
    pub(crate) async fn webhook(&self, name: &str, changes: Value) -> anyhow::Result<()> {
        self.apply(name, changes).await?;
        self.await_webhook(name, "Ready at its newest generation", |webhook| {
            webhook["metadata"]["generation"] == webhook["status"]["observedGeneration"]
                && condition(webhook, "Ready")["status"] == "True"
        })
        .await
        .map(drop)
    }

    /// Changes a Webhook's spec by a merge patch.
    pub(crate) async fn patch(&self, name: &str, spec: Value) -> anyhow::Result<()> {
        let patch = json!({ "spec": spec }).to_string();
        let object = format!("hook/{name}");
        self.kubectl
            .ok(&["patch", "-n", &self.namespace, &object, "--type=merge", "-p", &patch])
            .await
            .map(drop)
    }

    /// Watches a Webhook until it is as it should be.
    pub(crate) async fn await_webhook(
        &self,
        name: &str,
        what: &str,
        enough: impl FnMut(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let object = ("webhooks.hookwright.dev", &*self.namespace, name);
        let waited = self.kubectl.wait_for(object, SOON, what, enough).await;
        let log = self.world.operator.lock().await.log();
        waited.with_context(|| {
            let lines: Vec<_> = log.lines().filter(|line| line.contains(&self.namespace)).collect();
            format!("the operator's log on it:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
        })
    }

    /// Publishes `data` as an event of this type, and answers the receipt.
    pub(crate) async fn publish(&self, event_type: &str, data: &Value) -> anyhow::Result<Value> {
        let event = Event::new(unique("event"), event_type, data.clone());
        self.publisher.publish_binary(&self.namespace, &event).await?.accepted()
    }

    /// Publishes events of these ids and types in one batch, and answers the receipts.
    pub(crate) async fn batch(&self, events: &[Event]) -> anyhow::Result<Vec<Value>> {
        let answer = self.publisher.publish_batch(&self.namespace, events).await?.accepted()?;
        answer["items"].as_array().cloned().with_context(|| format!("no items in {answer}"))
    }

    /// Asks who would get an event of this type.
    pub(crate) async fn dry_run(&self, event_type: &str) -> anyhow::Result<Value> {
        let event = Event::new(unique("event"), event_type, json!({}));
        let path = format!("{}?dryRun=All", door(&self.namespace));
        let headers = event.binary_headers();
        Ok(self.publisher.send(http::Method::POST, &path, &headers, "{}").await?.json())
    }

    /// Waits for exactly one Event with this reason: it is posted after the status is written.
    pub(crate) async fn await_one_event(&self, reason: &str) -> anyhow::Result<()> {
        eventually(SOON, reason, async || {
            let events = self.events(reason).await.map_err(|error| error.to_string())?;
            if events.len() == 1 { Ok(()) } else { Err(format!("{events:#?}")) }
        })
        .await
    }

    /// The namespace's Events with this reason.
    pub(crate) async fn events(&self, reason: &str) -> anyhow::Result<Vec<Value>> {
        let events = self.kubectl.list_json("events.events.k8s.io", &self.namespace, "").await?;
        Ok(events.into_iter().filter(|event| event["reason"] == reason).collect())
    }
}

/// The path of the publishing door of a namespace.
pub(crate) fn door(namespace: &str) -> String {
    format!("/apis/delivery.hookwright.dev/v1alpha1/namespaces/{namespace}/cloudevents")
}

/// A condition of an object, or null.
pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    static NONE: Value = Value::Null;
    object["status"]["conditions"]
        .as_array()
        .and_then(|all| all.iter().find(|condition| condition["type"] == kind))
        .unwrap_or(&NONE)
}

/// The newest delivery in a Webhook's history.
pub(crate) fn newest(webhook: &Value) -> &Value {
    &webhook["status"]["deliveries"][0]
}

/// A name that no other call of this process has answered.
pub(crate) fn unique(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
