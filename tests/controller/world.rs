//! The feed and the controllers on a real control plane, with the embedded store and a scripted sender.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use hookwright::clock::Clock;
use hookwright::controller::trust::Trust;
use hookwright::controller::{Controllers, Deps};
use hookwright::delivery::{Job, Sender, Sent};
use hookwright::metrics::Metrics;
use hookwright::model::address::Policy;
use hookwright::model::event::Attributes;
use hookwright::model::ids::{DeliveryName, Minter, WebhookRef};
use hookwright::model::verdict::{Answer, judge};
use hookwright::routes::Table;
use hookwright::routes::compile::{Compiler, MasterKey};
use hookwright::routes::feed::Feed;
use hookwright::routes::watch::Scope;
use hookwright::store::embedded::{Embedded, Options};
use hookwright::store::{Attempt, NewDelivery, NewEvent, Next, Outcome, Store};
use hookwright_harness::control_plane::{ControlPlane, shared};
use hookwright_harness::kubectl::Kubectl;
use hookwright_harness::wait::eventually;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::sync::{Notify, OnceCell, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) const SOON: Duration = Duration::from_secs(30);

/// The shared control plane, with the CRDs.
pub(crate) async fn plane() -> &'static ControlPlane {
    static READY: OnceCell<()> = OnceCell::const_new();
    let plane = shared().await;
    READY.get_or_init(async || install(plane).await).await;
    plane
}

pub(crate) async fn install(plane: &ControlPlane) {
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/crds");
    plane.kubectl().ok(&["apply", "--server-side", "-f", crds]).await.unwrap();
    plane.kubectl().ok(&["wait", "--for=condition=Established", "-f", crds, "--timeout=60s"]).await.unwrap();
}

/// Answers by script, and remembers what it was asked to send.
#[derive(Default)]
pub(crate) struct Script {
    answers: Mutex<VecDeque<Option<u16>>>,
    pub(crate) jobs: Mutex<Vec<Job>>,
    pub(crate) asked: Notify,
}

impl Script {
    /// The next answers: a status, or none for no answer ever. Afterwards 200.
    pub(crate) fn answers(&self, answers: impl IntoIterator<Item = Option<u16>>) {
        self.answers.lock().unwrap().extend(answers);
    }

    pub(crate) fn count(&self) -> usize {
        self.jobs.lock().unwrap().len()
    }
}

impl Sender for Script {
    fn send(&self, job: Job) -> BoxFuture<'_, Sent> {
        self.jobs.lock().unwrap().push(job);
        self.asked.notify_one();
        let answer = self.answers.lock().unwrap().pop_front().unwrap_or(Some(200));
        Box::pin(async move {
            let Some(code) = answer else { return std::future::pending().await };
            Sent { attempt: attempt(code), verdict: judge(&Answer::Status { code, retry_after: None }) }
        })
    }
}

pub(crate) fn attempt(code: u16) -> Attempt {
    Attempt {
        at: Clock::system().now(),
        duration: Duration::from_millis(3),
        status: Some(code),
        body: Some("canary-body".to_owned()),
        content_type: Some("text/plain".to_owned()),
        body_length: 11,
        error: (!(200..300).contains(&code)).then(|| format!("answered {code}")),
        asked_by: None,
        probe: false,
        retry_after: None,
    }
}

/// One namespace with its own operator.
pub(crate) struct World {
    pub(crate) kubectl: Kubectl,
    pub(crate) namespace: String,
    pub(crate) store: Arc<Embedded>,
    pub(crate) table: Arc<Table>,
    pub(crate) sender: Arc<Script>,
    pub(crate) minter: Minter,
    client: Client,
    scope: Scope,
    folder: tempfile::TempDir,
    stop: CancellationToken,
    tasks: TaskTracker,
}

pub(crate) async fn client(plane: &ControlPlane) -> Client {
    let kubeconfig = Kubeconfig::read_from(plane.kubeconfig_path()).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

impl World {
    pub(crate) async fn new(prefix: &str) -> Self {
        let plane = plane().await;
        let namespace = plane.namespace(prefix).await.unwrap();
        let scope = Scope::from_list(&[&namespace]);
        Self::on(plane, namespace, scope).await
    }

    pub(crate) async fn on(plane: &ControlPlane, namespace: String, scope: Scope) -> Self {
        // Shown when a test fails.
        let log = tracing_subscriber::fmt().with_test_writer().with_env_filter("hookwright=debug,kube=info");
        let _ = log.try_init();
        let folder = tempfile::tempdir().unwrap();
        let mut world = Self {
            kubectl: plane.kubectl(),
            namespace,
            store: Embedded::open(Options::new(folder.path().join("store"))).unwrap(),
            table: Arc::default(),
            sender: Arc::default(),
            minter: Minter::default(),
            client: client(plane).await,
            scope,
            folder,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        world.start();
        world
    }

    fn start(&mut self) {
        self.stop = CancellationToken::new();
        self.tasks = TaskTracker::new();
        self.table = Arc::default();
        let store: Arc<dyn Store> = Arc::clone(&self.store) as _;
        let compiler = Compiler::new(MasterKey::new([7; 32]), Policy::default());
        let (feed, webhooks) = Feed::new(
            self.client.clone(),
            self.scope.clone(),
            compiler,
            Arc::clone(&self.table),
            Arc::clone(&store),
        );
        let controllers = Controllers::new(Deps {
            client: self.client.clone(),
            scope: self.scope.clone(),
            table: Arc::clone(&self.table),
            store,
            webhooks,
            sender: Arc::clone(&self.sender) as _,
            clock: Clock::system(),
            minter: Arc::default(),
            metrics: Metrics::default(),
            status_interval: Duration::from_secs(5),
            purge_grace: Duration::from_secs(1),
            shutdown_grace: Duration::from_millis(100),
            max_body_bytes: 1 << 20,
        });
        self.tasks.spawn(feed.run(self.stop.clone()));
        self.tasks.spawn(controllers.run(self.stop.clone()));
        self.tasks.close();
    }

    /// Publishes this CA bundle into the namespaces with Webhooks, as the operator of the namespace `own`.
    pub(crate) fn publish_ca(&self, bundle: &str, own: &str) -> watch::Sender<Option<String>> {
        let (sender, bundles) = watch::channel(Some(bundle.to_owned()));
        let trust = Trust {
            client: self.client.clone(),
            scope: self.scope.clone(),
            table: Arc::clone(&self.table),
            bundles,
            own: own.into(),
        };
        self.tasks.spawn(trust.run(self.stop.clone()));
        sender
    }

    /// Stops, closes the store, and begins anew; `with` happens in between.
    pub(crate) async fn restart(&mut self, with: impl AsyncFnOnce(&mut Self)) {
        self.stop.cancel();
        tokio::time::timeout(SOON, self.tasks.wait()).await.unwrap();
        self.store.close().await.unwrap();
        with(self).await;
        // A program that another test starts at this moment has our files open, until it runs.
        let open = async || {
            let options = Options::new(self.folder.path().join("store"));
            Embedded::open(options).map_err(|error| error.to_string())
        };
        self.store = eventually(SOON, "the data directory to be free", open).await.unwrap();
        self.start();
    }

    /// Forgets the data directory, while stopped.
    pub(crate) fn lose_the_volume(&mut self) {
        self.folder = tempfile::tempdir().unwrap();
    }

    pub(crate) async fn apply(&self, kind: &str, name: &str, body: Value) {
        let mut object = json!({
            "apiVersion": "hookwright.dev/v1alpha1", "kind": kind,
            "metadata": { "name": name, "namespace": self.namespace },
        });
        for (key, value) in body.as_object().unwrap() {
            object[key] = value.clone();
        }
        self.kubectl.apply(&object.to_string()).await.unwrap();
    }

    pub(crate) async fn webhook(&self, name: &str, changes: Value) {
        let mut spec = json!({ "url": "https://hooks.example.com/orders", "eventTypes": ["order.created"] });
        for (key, value) in changes.as_object().unwrap() {
            spec[key] = value.clone();
        }
        self.apply("Webhook", name, json!({ "spec": spec })).await;
    }

    pub(crate) async fn test(&self, name: &str, changes: Value) {
        let mut spec = json!({ "webhookRef": { "name": "orders" } });
        for (key, value) in changes.as_object().unwrap() {
            spec[key] = value.clone();
        }
        self.apply("WebhookTest", name, json!({ "spec": spec })).await;
    }

    pub(crate) async fn secret(&self, name: &str, labelled: bool, data: Value) {
        let labels = if labelled { json!({ "hookwright.dev/use": "true" }) } else { json!({}) };
        let secret = json!({ "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": name, "namespace": self.namespace, "labels": labels }, "stringData": data });
        self.kubectl.apply(&secret.to_string()).await.unwrap();
    }

    /// Waits until a condition of a Webhook or test is like `Ready=False/SecretNotFound`.
    pub(crate) async fn until(&self, kind: &str, name: &str, condition: &str) -> Value {
        let seen = |object: &Value| short(object).iter().any(|one| one == condition);
        self.wait(kind, name, condition, seen).await
    }

    pub(crate) async fn wait(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        enough: impl FnMut(&Value) -> bool,
    ) -> Value {
        self.kubectl.wait_for((kind, &self.namespace, name), SOON, what, enough).await.unwrap()
    }

    pub(crate) async fn get(&self, kind: &str, name: &str) -> Value {
        self.kubectl.get_json(kind, &self.namespace, name).await.unwrap()
    }

    pub(crate) async fn events(&self, reason: &str) -> Vec<Value> {
        let all = self.kubectl.list_json("events.events.k8s.io", &self.namespace, "").await.unwrap();
        all.into_iter().filter(|event| event["reason"] == reason).collect()
    }

    pub(crate) fn route(&self, name: &str) -> WebhookRef {
        let routes = self.table.namespace(&self.namespace);
        routes.iter().find(|route| &*route.webhook.name == name).unwrap().webhook.clone()
    }

    /// Accepts events for a Webhook, as the publishing door does.
    pub(crate) async fn publish(&self, webhook: &WebhookRef, count: usize) -> Vec<DeliveryName> {
        let now = Clock::system().now();
        let names: Vec<_> = (0..count).map(|_| self.minter.delivery(now)).collect();
        let event = |name: &DeliveryName| NewEvent {
            uid: self.minter.event(now),
            namespace: Arc::clone(&webhook.namespace),
            attributes: Arc::new(Attributes {
                id: name.to_string().into(),
                source: "/tests".into(),
                event_type: "order.created".into(),
                data_content_type: None,
                data_schema: None,
                subject: None,
                time: None,
                extensions: Vec::new(),
            }),
            data: Bytes::from_static(b"canary-payload"),
            accepted_at: now,
            dedup: None,
            deliveries: vec![NewDelivery { name: *name, webhook: webhook.clone(), test: false }],
        };
        self.store.append(names.iter().map(event).collect()).await.unwrap();
        names
    }

    /// Records an attempt, as the engine does.
    pub(crate) async fn record(&self, webhook: &WebhookRef, name: DeliveryName, code: u16, next: Next) {
        let attempt = attempt(code);
        let at = attempt.at;
        let outcome = Outcome {
            name,
            webhook: webhook.uid,
            attempt: Some(attempt),
            next,
            disable: None,
            failing: None,
            at,
        };
        self.store.record(vec![outcome]).await.unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// `Type=Status/Reason` of each condition.
pub(crate) fn short(object: &Value) -> Vec<String> {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    conditions
        .map(|one| format!("{}={}/{}", text(&one["type"]), text(&one["status"]), text(&one["reason"])))
        .collect()
}

pub(crate) fn message<'a>(object: &'a Value, kind: &str) -> &'a str {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|one| one["type"] == kind).and_then(|one| one["message"].as_str()).unwrap_or_default()
}
