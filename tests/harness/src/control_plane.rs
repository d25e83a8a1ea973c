//! A real control plane, started in seconds: etcd, kube-apiserver, kube-controller-manager.

mod flags;
mod kubeconfig;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use tokio::sync::{Mutex, OnceCell};

use crate::{
    binaries, ensure_crypto_provider,
    helm::Helm,
    kubectl::Kubectl,
    pki::Authority,
    ports::free_port,
    process::{Group, Process},
};
use flags::{Files, Ports};

/// Tests run against the cluster of this kubeconfig, if it is set, where they share one.
pub const TEST_KUBECONFIG: &str = "HOOKWRIGHT_TEST_KUBECONFIG";

const START_TIMEOUT: Duration = Duration::from_secs(90);

/// A control plane, gone with all it left on disk when dropped, and also when the process that
/// started it is killed.
#[derive(Debug)]
pub struct ControlPlane {
    programs: PathBuf,
    server: String,
    ca_pem: String,
    kubeconfig: PathBuf,
    created: AtomicU32,
    // Before the group: first the processes end, then their folder goes.
    own: Option<Own>,
    group: Group,
}

/// What runs only in a control plane that we started.
#[derive(Debug)]
struct Own {
    apiserver: Mutex<Process>,
    controllers: Process,
    etcd: Process,
    files: Files,
    ports: Ports,
}

/// The control plane that all tests of one test program share, each with namespaces of its own:
/// the cluster of `HOOKWRIGHT_TEST_KUBECONFIG`, or one that is started by the first who asks.
///
/// # Panics
/// When there is none to be had: no test is skipped silently.
pub async fn shared() -> &'static ControlPlane {
    static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
    let start = async || match ControlPlane::from_env().await {
        Ok(Some(given)) => Ok(given),
        Ok(None) => ControlPlane::start().await,
        Err(error) => Err(error),
    };
    SHARED.get_or_init(async || start().await.expect("the shared control plane starts")).await
}

impl ControlPlane {
    /// Starts a control plane of one's own and waits until it is ready to work.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(true).await
    }

    /// One whose kube-apiserver has no `--requestheader-client-ca-file`: it serves no aggregated API.
    pub async fn start_without_aggregation() -> anyhow::Result<Self> {
        Self::start_with(false).await
    }

    async fn start_with(aggregation: bool) -> anyhow::Result<Self> {
        ensure_crypto_provider();
        let programs = binaries::folder_with(binaries::CONTROL_PLANE).await?;
        let group = Group::new("control-plane")?;
        let ports = Ports { etcd: free_port()?, peers: free_port()?, apiserver: free_port()? };
        let server = format!("https://{}", ports.apiserver.address());
        let mut files = Files::write(&group, &server)?;
        files.aggregation = aggregation;

        let etcd = group.spawn("etcd", &mut flags::etcd(&programs, &group, &ports))?;
        let mut apiserver =
            group.spawn("kube-apiserver", &mut flags::apiserver(&programs, &group, &files, &ports))?;
        await_ready(&mut apiserver, &server, &files.ca_pem).await?;
        let controllers =
            group.spawn("kube-controller-manager", &mut flags::controllers(&programs, &group, &files))?;

        let started = Self {
            programs,
            server,
            ca_pem: files.ca_pem.clone(),
            kubeconfig: files.admin_kubeconfig.clone(),
            created: AtomicU32::new(0),
            own: Some(Own { apiserver: Mutex::new(apiserver), controllers, etcd, files, ports }),
            group,
        };
        started.await_controllers().await?;
        Ok(started)
    }

    /// The cluster that `HOOKWRIGHT_TEST_KUBECONFIG` names, if it is set.
    pub async fn from_env() -> anyhow::Result<Option<Self>> {
        match std::env::var_os(TEST_KUBECONFIG) {
            Some(path) => Self::connect(Path::new(&path)).await.map(Some),
            None => Ok(None),
        }
    }

    /// A cluster that is there already, with the rights of this kubeconfig.
    pub async fn connect(kubeconfig: &Path) -> anyhow::Result<Self> {
        ensure_crypto_provider();
        let programs = binaries::folder_with(&["kubectl"]).await?;
        let group = Group::new("cluster")?;
        let kubectl =
            Kubectl::new(programs.join("kubectl"), kubeconfig.to_owned(), group.folder().join("cache"));
        let given = kubectl.ok(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]).await?;
        let (server, ca_pem) = kubeconfig::server_and_ca(&given)?;
        // A copy: what the caller does with the original does not change the run.
        let kubeconfig = group.write("admin.kubeconfig", &given)?;
        Ok(Self { programs, server, ca_pem, kubeconfig, created: AtomicU32::new(0), own: None, group })
    }

    /// Whether it was started here, and so runs on this machine.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// `https://host:port` of kube-apiserver.
    pub fn server_url(&self) -> &str {
        &self.server
    }

    /// The authority of kube-apiserver's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig_path(&self) -> &Path {
        &self.kubeconfig
    }

    /// A folder that goes with this instance.
    pub fn folder(&self) -> &Path {
        self.group.folder()
    }

    /// The authority of the certificate by which kube-apiserver is known to aggregated APIs.
    pub fn front_proxy_authority(&self) -> anyhow::Result<Authority> {
        let file =
            |name: &str| std::fs::read_to_string(self.folder().join(name)).context("read the front-proxy CA");
        Authority::from_pem(&file("front-proxy-ca.crt")?, &file("front-proxy-ca.key")?)
    }

    /// Writes a file of the folder anew, as an administrator who rotates certificates. kube-apiserver reads those of
    /// its front proxy again by itself.
    pub fn rewrite(&self, name: &str, content: &str) -> anyhow::Result<()> {
        let new = self.group.write(&format!("{name}.new"), content)?;
        std::fs::rename(new, self.folder().join(name)).with_context(|| format!("replace {name}"))
    }

    /// The folder with kubectl and its like.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(
            self.programs.join("kubectl"),
            self.kubeconfig.clone(),
            self.folder().join("kubectl-cache"),
        )
    }

    /// helm as the administrator; built first if need be.
    pub async fn helm(&self) -> anyhow::Result<Helm> {
        let program = binaries::folder_with(&["helm"]).await?.join("helm");
        Ok(Helm::new(program, self.kubeconfig.clone(), self.folder().join("helm")))
    }

    /// A kubeconfig whose only right is this token; the path is new on each call.
    pub fn kubeconfig_for_token(&self, token: &str) -> anyhow::Result<PathBuf> {
        let content = kubeconfig::with_token(&self.server, &self.ca_pem, token);
        self.group.write(&format!("token-{}.kubeconfig", self.next()), &content)
    }

    /// A token of a ServiceAccount (`kubectl create token`), for this audience or for the apiserver.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: Option<&str>,
    ) -> anyhow::Result<String> {
        let audience = audience.map(|audience| format!("--audience={audience}"));
        let mut arguments = vec!["create", "token", account, "-n", namespace, "--duration=24h"];
        arguments.extend(audience.as_deref());
        Ok(self.kubectl().ok(&arguments).await?.trim().to_owned())
    }

    /// Creates a namespace with a name of its own that begins with `prefix`.
    pub async fn namespace(&self, prefix: &str) -> anyhow::Result<String> {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let name = format!("{prefix}-{:x}-{}", since_epoch.subsec_micros(), self.next());
        self.kubectl().ok(&["create", "namespace", &name]).await?;
        Ok(name)
    }

    /// Kills kube-apiserver, as an outage: nothing else is told.
    pub async fn stop_apiserver(&self) -> anyhow::Result<()> {
        self.own()?.apiserver.lock().await.kill();
        Ok(())
    }

    /// Starts kube-apiserver again, at the same address, and waits until it is ready.
    pub async fn start_apiserver(&self) -> anyhow::Result<()> {
        let own = self.own()?;
        let mut apiserver = own.apiserver.lock().await;
        apiserver.kill();
        let mut command = flags::apiserver(&self.programs, &self.group, &own.files, &own.ports);
        *apiserver = self.group.spawn("kube-apiserver", &mut command)?;
        await_ready(&mut apiserver, &self.server, &self.ca_pem).await
    }

    /// Process ids of etcd, kube-apiserver and kube-controller-manager, for tests of the harness.
    pub async fn process_ids(&self) -> Vec<u32> {
        match &self.own {
            Some(own) => vec![own.etcd.id(), own.apiserver.lock().await.id(), own.controllers.id()],
            None => Vec::new(),
        }
    }

    /// Leaves everything running when this process ends; answers the shell command that ends it.
    pub fn leak(self) -> String {
        if let Some(Own { apiserver, controllers, etcd, .. }) = self.own {
            for process in [apiserver.into_inner(), controllers, etcd] {
                process.leave();
            }
        }
        self.group.leave()
    }

    /// Stops it now, rather than when the value goes out of scope.
    pub fn stop(self) {
        drop(self);
    }

    fn own(&self) -> anyhow::Result<&Own> {
        self.own.as_ref().context("this cluster was given: its apiserver is not ours to stop")
    }

    fn next(&self) -> u32 {
        self.created.fetch_add(1, Ordering::Relaxed)
    }

    /// The controllers work once they have given the namespace `default` its ServiceAccount.
    async fn await_controllers(&self) -> anyhow::Result<()> {
        self.kubectl().wait("serviceaccount/default", "default", "create").await.with_context(|| {
            let log = self.own.as_ref().map(|own| own.controllers.log()).unwrap_or_default();
            format!("kube-controller-manager does not work:\n{}", crate::process::last_lines(&log, 25))
        })
    }
}

/// Ready when `/readyz` says so, or failed when the process has ended.
async fn await_ready(apiserver: &mut Process, server: &str, ca_pem: &str) -> anyhow::Result<()> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(ca_pem.as_bytes())?])
        .build()?;
    apiserver.await_ready(&client, &format!("{server}/readyz"), START_TIMEOUT).await
}

fn program(programs: &Path, name: &str) -> Command {
    Command::new(programs.join(name))
}
