//! Wires the rooms together and takes them apart again.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::bind::bind;
use crate::client;
use crate::clock::Clock;
use crate::config::Config;
use crate::controller::trust::Trust;
use crate::controller::{self, Controllers};
use crate::delivery::client::HttpSender;
use crate::delivery::egress::{self, Guard};
use crate::delivery::engine::{self, Engine};
use crate::erasing::erase;
use crate::metrics::{Metrics, Watched};
use crate::model::address::Policy;
use crate::model::ids::Minter;
use crate::model::rate::RateLimit;
use crate::role::{Probes, front_proxy, identity};
use crate::routes::compile::{Compiler, MasterKey};
use crate::routes::coverage::Whole;
use crate::routes::feed::Feed;
use crate::routes::namespaces::Namespaces;
use crate::routes::watch::Scope;
use crate::routes::{Table, master_key};
use crate::server::apis::deliveries::Log;
use crate::server::apis::usages;
use crate::server::auth::{FrontProxy, Gate};
use crate::server::certificates::Certificates;
use crate::server::http1::Heads;
use crate::server::listener::{self, Limits};
use crate::server::ops::{Check, Health};
use crate::server::publish::Publisher;
use crate::server::{self, Door};
use crate::store::embedded::{Embedded, Options};
use crate::store::{Retention, Store};

/// Why the program cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something it needs could not be made.
    #[error("cannot start {what}")]
    Start {
        /// Which part.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A failed write or sync: what was acknowledged is on disk, nothing more may be.
    #[error("the store stopped writing; a restart goes on with what is on disk")]
    Poisoned,
}

impl Error {
    pub(crate) fn start(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Start { what: what.into(), source: source.into() }
    }
}

/// The largest head of kube-apiserver and of fronts: more than a front takes, for what it says of the user.
const TRUSTED: Heads = Heads { bytes: 2 << 20, headers: 20_000 };
/// Between two looks for deliveries that are too old to be kept.
const RETAIN: Duration = Duration::from_secs(10);
/// Between two attempts to reach the Kubernetes API at start.
const RETRY: Duration = Duration::from_secs(1);
const MASTER_KEY: &str = "with the master key of all signing keys";
/// For one request to the Kubernetes API at start.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start, or the store failed; the process should end and be started anew.
pub async fn run(config: Config) -> Result<(), Error> {
    // Somebody else (a test) may have chosen already, the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let stop = stop_on_signal()?;
    let (clock, metrics, health) = (Clock::system(), Metrics::default(), Health::default());
    let tasks = TaskTracker::new();

    let started = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = Arc::clone(&started);
    health.ready("started", move || {
        if flag.load(std::sync::atomic::Ordering::Acquire) {
            Ok(())
        } else {
            Err("still starting".to_owned())
        }
    });
    let probes = Probes::start(&config.common, &health, &metrics, &tasks).await?;

    let client = client::connect(config.common.kubeconfig.as_deref())?;
    let Some(cluster) = until(&stop, || cluster_uid(&client)).await else { return Ok(()) };
    // Before the master key: the store knows which one it was.
    let store = open_store(&config, cluster, &metrics).await?;
    let minter = store.minter().await.map_err(|error| Error::start("names of deliveries", error))?;
    let Some(master_key) = signing_key(&config, &client, &store, &stop).await? else { return Ok(()) };
    let policy = policy(&config)?;
    let guard = Guard::from_system(policy.clone())
        .map_err(|error| Error::start("the resolver of host names", error))
        .map(Arc::new)?;

    let parts = Parts {
        table: Arc::new(Table::default()),
        store: Arc::clone(&store) as Arc<dyn Store>,
        minter: Arc::new(minter),
        sender: Arc::new(HttpSender::new(guard, clock.clone())),
        scope: Scope::from_list(&config.namespace),
        client,
        clock,
        metrics,
        health,
    };
    let compiler = Compiler::new(master_key, policy);
    let running = parts.start(&config, compiler, &tasks, &stop).await?;
    started.store(true, std::sync::atomic::Ordering::Release);
    info!(version = env!("CARGO_PKG_VERSION"), listen = %config.common.listen, "started");

    let retaining = tasks.spawn(retain(Arc::clone(&parts.store), parts.clock.clone(), stop.clone()));
    let erasing = tasks.spawn(erase(Arc::clone(&parts.store), config.erase_within, stop.clone()));
    let poisoned = parts.watch(&stop).await;
    stop.cancel();
    running.end().await;
    let _ = tokio::join!(retaining, erasing);
    if let Err(error) = store.close().await
        && !poisoned
    {
        warn!(error = crate::cli::chain(&error), "the store did not close well");
    }
    probes.end().await;
    info!("stopped");
    if poisoned { Err(Error::Poisoned) } else { Ok(()) }
}

/// What most rooms need.
struct Parts {
    table: Arc<Table>,
    store: Arc<dyn Store>,
    minter: Arc<Minter>,
    sender: Arc<HttpSender>,
    scope: Scope,
    client: Client,
    clock: Clock,
    metrics: Metrics,
    health: Health,
}

/// What was started, in the order in which it ends.
struct Running {
    door: tokio::task::JoinHandle<()>,
    engine: tokio::task::JoinHandle<()>,
    rest: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    /// Waits until all have ended. They were told to.
    async fn end(self) {
        let Self { door, engine, rest } = self;
        let _ = tokio::join!(door, engine, futures::future::join_all(rest));
    }
}

impl Parts {
    async fn start(
        &self,
        config: &Config,
        compiler: Compiler,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Running, Error> {
        let certificates =
            Arc::new(Certificates::new(self.client.clone(), &config.common.service, self.clock.clone()));
        let tls = certificates.server_config().map_err(|error| Error::start("TLS", error))?;
        let front_proxy = Arc::new(front_proxy(&config.common, &self.clock));
        let door = Arc::new(self.door(config, &front_proxy));
        let listener = bind("the HTTPS door", config.common.listen).await?;
        let (feed, webhooks) = Feed::new(
            self.client.clone(),
            self.scope.clone(),
            compiler,
            Arc::clone(&self.table),
            Arc::clone(&self.store),
        );
        let engine = Arc::new(Engine::new(
            Arc::clone(&self.store),
            Arc::clone(&self.table),
            Arc::clone(&self.sender) as _,
            self.clock.clone(),
            self.metrics.clone(),
            engine::Settings::from(config),
        ));
        self.checks(&certificates, &engine);
        let known = Arc::clone(&front_proxy);
        self.health.ready("kube-apiserver", move || known.check());
        let trust = Trust {
            client: self.client.clone(),
            scope: self.scope.clone(),
            table: Arc::clone(&self.table),
            bundles: certificates.bundles(),
            own: config.common.service.namespace.as_str().into(),
        };
        let controllers = Controllers::new(self.controller(config, webhooks));

        let limits = Limits { drain: config.common.shutdown_grace, trusted: TRUSTED, ..Limits::default() };
        let mut rest = vec![tasks.spawn(feed.run(stop.clone())), tasks.spawn(controllers.run(stop.clone()))];
        if config.publish_ca {
            rest.push(tasks.spawn(trust.run(stop.clone())));
        }
        let (fronts, bundles, until) = (Arc::clone(&front_proxy), certificates.bundles(), stop.clone());
        rest.push(tasks.spawn(async move { fronts.trust_fronts(bundles, until).await }));
        rest.extend(identity(&config.common, &self.client, &certificates, &front_proxy, tasks, stop));
        Ok(Running {
            door: tasks.spawn(listener::serve(listener, Some(tls), door, limits, stop.clone())),
            engine: tasks.spawn(engine.run(stop.clone())),
            rest,
        })
    }

    fn door(&self, config: &Config, front_proxy: &Arc<FrontProxy>) -> Door {
        let publisher = Publisher::new(
            Arc::clone(&self.store),
            Arc::clone(&self.table),
            Arc::clone(&self.minter),
            self.clock.clone(),
            self.metrics.clone(),
        );
        let publisher = publisher.with_rate(RateLimit {
            requests: config.quota_events_per_second,
            per: Duration::from_secs(1),
            burst: config.quota_events_per_second.saturating_mul(10),
        });
        let publisher = publisher.with_namespaces(Namespaces::new(self.client.clone()));
        let settings = server::Settings {
            max_body_bytes: config.common.max_body_bytes,
            namespaces: config.namespace.clone(),
        };
        let gate = Gate::new(&self.client, Arc::clone(front_proxy));
        let log = Log::new(Arc::clone(&self.store), Arc::clone(&self.table), self.clock.clone());
        let log = log.with_limits(usages::Limits {
            retention: retention(config),
            pending_bytes: config.quota_pending_bytes,
            events_per_second: config.quota_events_per_second,
        });
        Door::new(gate, publisher, log, self.metrics.clone(), settings)
    }

    fn controller(&self, config: &Config, webhooks: crate::routes::feed::Webhooks) -> controller::Deps {
        controller::Deps {
            client: self.client.clone(),
            scope: self.scope.clone(),
            table: Arc::clone(&self.table),
            store: Arc::clone(&self.store),
            webhooks,
            sender: Arc::clone(&self.sender) as _,
            clock: self.clock.clone(),
            minter: Arc::clone(&self.minter),
            metrics: self.metrics.clone(),
            status_interval: config.status_interval,
            purge_grace: config.purge_grace,
            shutdown_grace: config.common.shutdown_grace,
            max_body_bytes: config.common.max_body_bytes,
        }
    }

    fn checks(&self, certificates: &Arc<Certificates>, engine: &Arc<Engine>) {
        let store = Arc::clone(&self.store);
        self.health.ready("store", move || match store.accepting() {
            Ok(()) => Check::Passed,
            // Who publishes then should get a 503 that says so, not a closed door.
            Err(full @ crate::store::Error::Full) => Check::Warns(full.to_string()),
            Err(error) => Check::Failed(error.to_string()),
        });
        let table = Arc::clone(&self.table);
        self.health.ready("routes", move || match table.coverage().whole() {
            Whole::Served => Check::Passed,
            // The others are: what is said of one namespace must not take the whole away.
            Whole::Partly(unserved) => Check::Warns(unserved),
            Whole::Not(why) => Check::Failed(why),
        });
        let table = Arc::clone(&self.table);
        self.health.ready("watches", move || match table.coverage().failing() {
            None => Check::Passed,
            Some(failing) => Check::Warns(failing),
        });
        let certificates = Arc::clone(certificates);
        self.health.ready("certificate", move || certificates.check());
        let engine = Arc::clone(engine);
        self.health.live("deliveries", move || engine.progress().map_err(|stalled| stalled.to_string()));
    }

    fn measure_watches(&self) {
        let coverage = self.table.coverage();
        self.metrics.namespaces_unserved.set(i64::try_from(coverage.unserved()).unwrap_or(i64::MAX));
        for (kind, failing) in coverage.failing_by_kind() {
            self.metrics.watches_failing.get_or_create(&Watched { kind }).set(failing);
        }
    }

    /// Says how it stands with the watches, and returns when told to stop, or (true) when the store is poisoned.
    async fn watch(&self, stop: &CancellationToken) -> bool {
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                () = stop.cancelled() => return false,
                _ = tick.tick() => {
                    self.measure_watches();
                    if matches!(self.store.accepting(), Err(crate::store::Error::Poisoned)) {
                        return true;
                    }
                }
            }
        }
    }
}

/// Lets old deliveries go, again and again.
async fn retain(store: Arc<dyn Store>, clock: Clock, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETAIN) => {}
        }
        let kept = tokio::select! {
            () = stop.cancelled() => return,
            kept = store.retain(clock.now()) => kept,
        };
        match kept {
            Ok(0) => {}
            Ok(gone) => debug!(gone, "old deliveries went from the log"),
            Err(error) => warn!(error = crate::cli::chain(&error), "old deliveries stay in the log for now"),
        }
    }
}

pub(crate) fn stop_on_signal() -> Result<CancellationToken, Error> {
    let stop = CancellationToken::new();
    let signals = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    for received in signals {
        let mut received = received.map_err(|error| Error::start("the signal handler", error))?;
        let stop = stop.clone();
        #[expect(clippy::disallowed_methods, reason = "listens for the whole life of the process")]
        tokio::spawn(async move {
            received.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

/// Tries until it succeeds; none: told to stop. Each failure is logged: at start somebody looks.
async fn until<T, E, F>(stop: &CancellationToken, mut attempt: impl FnMut() -> F) -> Option<T>
where
    E: std::error::Error,
    F: Future<Output = Result<T, E>>,
{
    loop {
        let outcome = tokio::select! {
            () = stop.cancelled() => return None,
            outcome = tokio::time::timeout(PATIENCE, attempt()) => outcome,
        };
        match outcome {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => warn!(error = crate::cli::chain(&error), "waiting for the Kubernetes API"),
            Err(_elapsed) => warn!(waited = ?PATIENCE, "the Kubernetes API does not answer"),
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// The master key, if it is the one that the store knows, or a new one is accepted. None: told to stop.
async fn signing_key(
    config: &Config,
    client: &Client,
    store: &Embedded,
    stop: &CancellationToken,
) -> Result<Option<MasterKey>, Error> {
    let failed = |error: crate::store::Error| Error::start(MASTER_KEY, error);
    let fingerprint = store.signing_key().await.map_err(failed)?;
    let known = master_key::Known {
        fingerprint,
        has_webhooks: !store.known().is_empty(),
        accepts_new: config.accept_new_signing_key,
    };
    let namespace = &config.common.service.namespace;
    let Some(loaded) = until(stop, || master_key::load(client, namespace, &known)).await else {
        return Ok(None);
    };
    let master_key = loaded.map_err(|changed| Error::start(MASTER_KEY, changed))?;
    let found = master_key.fingerprint();
    if known.fingerprint.as_ref().is_some_and(|known| *known != found) {
        warn!(
            fingerprint = found,
            "a new master key is accepted: the public key of every Webhook has changed"
        );
    }
    if known.is_guard_off_for_nothing(&found) {
        warn!(
            "--accept-new-signing-key is set, though the master key is the known one: remove it, or another key that \
             replaces this one by mistake is accepted, too"
        );
    }
    if known.fingerprint.as_ref() != Some(&found) {
        store.remember_signing_key(found).await.map_err(failed)?;
    }
    Ok(Some(master_key))
}

async fn cluster_uid(client: &Client) -> Result<String, kube::Error> {
    let namespace = Api::<Namespace>::all(client.clone()).get("kube-system").await?;
    Ok(namespace.uid().unwrap_or_default())
}

fn retention(config: &Config) -> Retention {
    Retention { max_age: config.retention_age, max_bytes: config.retention_bytes }
}

async fn open_store(config: &Config, cluster: String, metrics: &Metrics) -> Result<Arc<Embedded>, Error> {
    let options = Options {
        cluster: Some(cluster),
        metrics: metrics.clone(),
        min_free_bytes: config.min_free_bytes,
        dedup_window: config.dedup_window,
        retention: retention(config),
        quota_pending_bytes: config.quota_pending_bytes,
        ..Options::new(&config.data_dir)
    };
    let what = format!("the store in {}", config.data_dir.display());
    let opened = tokio::task::spawn_blocking(|| Embedded::open(options)).await;
    match opened {
        Ok(Ok(store)) => Ok(store),
        Ok(Err(error)) => Err(Error::start(what, error)),
        Err(error) => Err(Error::start(what, error)),
    }
}

/// The built-in table, what the platform team added, and what belongs to this cluster as far as the pod sees it.
fn policy(config: &Config) -> Result<Policy, Error> {
    let own = ["KUBERNETES_SERVICE_HOST", "POD_IP", "HOST_IP"];
    let own = own.into_iter().filter_map(|name| std::env::var(name).ok()?.parse::<std::net::IpAddr>().ok());
    let servers =
        egress::name_servers().map_err(|error| Error::start("the resolver of host names", error))?;
    let policy = Policy::new(config.allow_cidr.iter().copied(), config.deny_cidr.iter().copied());
    Ok(policy.with_cluster(own.chain(servers)))
}
