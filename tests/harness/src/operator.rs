//! Hookwright as its pod would run it: the arguments and environment of the workload that helm
//! installed, and the rights of the chart's ServiceAccount, never an administrator's.

mod front;
mod pod;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    control_plane::ControlPlane,
    helm,
    kubectl::Kubectl,
    ports::{Port, free_port},
    process::{Group, Process},
};
pub use front::Front;
use pod::Pod;

const READY_TIMEOUT: Duration = Duration::from_mins(1);
const END_TIMEOUT: Duration = Duration::from_mins(1);

/// How the chart is installed.
#[derive(Clone, Debug)]
pub struct OperatorOptions {
    /// The name of the release.
    pub release: String,
    /// The namespace of the release.
    pub namespace: String,
    /// Values for the chart, beyond `extraArgs`.
    pub values: Value,
    /// More arguments of `hookwright run`, given by the chart's `extraArgs`.
    pub extra_args: Vec<String>,
    /// How many fronts there are; none: everything is in one process.
    pub fronts: usize,
}

impl Default for OperatorOptions {
    /// The release `hookwright` in `hookwright-system`, that may deliver to receivers on loopback.
    fn default() -> Self {
        Self {
            release: "hookwright".to_owned(),
            namespace: "hookwright-system".to_owned(),
            values: json!({ "egress": { "allowCidrs": ["127.0.0.0/8", "::1/128"] } }),
            extra_args: Vec::new(),
            fronts: 0,
        }
    }
}

impl OperatorOptions {
    /// One more argument, like `--purge-grace=1s`.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.extra_args.push(argument.into());
        self
    }

    /// With so many fronts.
    #[must_use]
    pub fn fronts(mut self, fronts: usize) -> Self {
        self.fronts = fronts;
        self
    }

    /// With a Service by which a kube-apiserver on this machine reaches the door on loopback. One elsewhere can't,
    /// and an APIService that does not answer would stop its namespace deletions.
    fn chart_values(&self, plane: &ControlPlane, door: &Port) -> Value {
        let mut values = self.values.clone();
        if let Value::Object(fields) = &mut values {
            fields.entry("front").or_insert(json!({ "enabled": self.fronts > 0 }));
            let service =
                json!({ "type": "ExternalName", "externalName": "localhost", "port": door.number() });
            if plane.is_own() {
                fields.entry("service").or_insert(service);
            } else {
                fields.entry("apiService").or_insert(json!({ "enabled": false }));
            }
        }
        if let (Value::Object(fields), false) = (&mut values, self.extra_args.is_empty()) {
            fields.insert("extraArgs".to_owned(), json!(self.extra_args));
        }
        values
    }
}

/// A running operator; killed, and its data gone, when dropped.
#[derive(Debug)]
pub struct Operator {
    program: PathBuf,
    pod: Pod,
    service: String,
    namespace: String,
    kubeconfig: PathBuf,
    kubectl: Kubectl,
    door: Port,
    metrics: Port,
    fronts: Vec<Front>,
    // Before the group: first the process ends, then its folder goes.
    process: Option<Process>,
    group: Group,
}

impl Operator {
    /// Installs the chart, starts `program` as its pods, all at the same moment, and waits until they are ready.
    pub async fn start(
        plane: &ControlPlane,
        program: impl Into<PathBuf>,
        options: &OperatorOptions,
    ) -> anyhow::Result<Self> {
        let mut operator = Self::install(plane, program, options).await?;
        for front in &mut operator.fronts {
            front.spawn()?;
        }
        operator.start_process().await?;
        for front in &mut operator.fronts {
            front.await_ready(READY_TIMEOUT).await?;
        }
        Ok(operator)
    }

    /// Installs the chart and prepares everything, but starts no process yet.
    pub async fn install(
        plane: &ControlPlane,
        program: impl Into<PathBuf>,
        options: &OperatorOptions,
    ) -> anyhow::Result<Self> {
        let OperatorOptions { release, namespace, values: _, extra_args: _, fronts } = options;
        let (program, door) = (program.into(), free_port()?);
        let ports = (0..*fronts).map(|_| free_port()).collect::<anyhow::Result<Vec<_>>>()?;
        let values = options.chart_values(plane, ports.first().unwrap_or(&door));
        plane.helm().await?.install(release, namespace, &helm::chart(), &values).await?;
        let kubectl = plane.kubectl();
        let pod = Pod::of_release(&kubectl, release, namespace, "run").await?;
        let token = plane.token(namespace, &pod.service_account, None).await?;
        let mut fronts = Vec::new();
        for port in ports {
            let pod = Pod::of_release(&kubectl, release, namespace, "front").await?;
            fronts.push(Front::of_pod(plane, &program, pod, namespace, port, door.address()).await?);
        }
        Ok(Self {
            program,
            fronts,
            service: pod.service()?,
            pod,
            namespace: namespace.clone(),
            kubeconfig: plane.kubeconfig_for_token(&token)?,
            kubectl,
            door,
            metrics: free_port()?,
            process: None,
            group: Group::new("operator")?,
        })
    }

    /// Where the HTTPS door for producers is: the first front's, if there are any.
    pub fn address(&self) -> SocketAddr {
        self.fronts.first().map_or_else(|| self.store_address(), Front::address)
    }

    /// Where the HTTPS door of the process with the store is.
    pub fn store_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.door.number()))
    }

    /// The fronts.
    pub fn fronts(&self) -> &[Front] {
        &self.fronts
    }

    /// The fronts, to start and end them.
    pub fn fronts_mut(&mut self) -> &mut [Front] {
        &mut self.fronts
    }

    /// The name in its serving certificate: `<service>.<namespace>.svc`.
    pub fn server_name(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    /// The namespace of the release.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name of the ServiceAccount whose rights it has.
    pub fn service_account(&self) -> &str {
        &self.pod.service_account
    }

    /// Its store. It stays over a restart.
    pub fn data_dir(&self) -> PathBuf {
        self.group.folder().join("data")
    }

    /// The kubeconfig it runs with.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Everything that it has logged, over all restarts.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.group.folder().join("operator.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The process's id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// What `/metrics` says.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        Ok(self.get("/metrics").await?.error_for_status()?.text().await?)
    }

    /// The sum of a metric's samples that have all of these labels (`state="Failed"`).
    pub async fn metric(&self, name: &str, labels: &[&str]) -> anyhow::Result<f64> {
        let text = self.metrics().await?;
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (inside, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let all = labels.iter().all(|label| inside.split(',').any(|each| each == *label));
            all.then(|| value.split(' ').next()?.parse::<f64>().ok()).flatten()
        });
        Ok(samples.sum())
    }

    /// `GET` at the metrics listener: `/readyz?verbose`, `/livez`, `/metrics`.
    pub async fn get(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(client.get(format!("http://{}{path}", self.metrics.address())).send().await?)
    }

    /// `kill -9`: returns when the process is gone.
    pub fn kill9(&mut self) {
        // Dropping kills, and waits.
        self.process = None;
    }

    /// SIGTERM, as the kubelet does it, and how the process ended.
    pub async fn sigterm(&mut self) -> anyhow::Result<ExitStatus> {
        let mut process = self.process.take().context("the operator does not run")?;
        process.signal(Signal::TERM);
        process.wait(END_TIMEOUT).await
    }

    /// Waits for the process to end by itself.
    pub async fn ended(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let status = self.process.as_mut().context("the operator does not run")?.wait(timeout).await?;
        self.process = None;
        Ok(status)
    }

    /// Starts it again with the same data and ports (first killing it, if it runs), and waits
    /// until it is ready.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.kill9();
        self.start_process().await
    }

    /// Starts it, and waits until it is ready.
    pub async fn start_process(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        self.await_ready(READY_TIMEOUT).await
    }

    /// Sets a variable of the environment, from the next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.pod.environment.retain(|(other, _)| other != name);
        self.pod.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts it, and does not wait.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.data_dir())?;
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("RUST_BACKTRACE", "1")
            .envs(self.pod.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.group.folder())
            .args(self.arguments());
        self.process = Some(self.group.spawn("operator", &mut command)?);
        Ok(())
    }

    /// Waits until `/readyz` says 200; fails at once when the process ends.
    pub async fn await_ready(&mut self, timeout: Duration) -> anyhow::Result<()> {
        await_ready(&mut self.process, &self.metrics, timeout).await
    }

    /// The authority of its serving certificate, from the ConfigMap that it publishes.
    pub async fn ca_pem(&self) -> anyhow::Result<String> {
        let object = ("configmap", self.namespace.as_str(), "hookwright-ca");
        let has_authority = |map: &Value| map.pointer("/data/ca.crt").is_some_and(Value::is_string);
        let map = self.kubectl.wait_for(object, READY_TIMEOUT, "data ca.crt", has_authority).await?;
        Ok(map.pointer("/data/ca.crt").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// Leaves it running when this process ends; answers the shell command that ends it.
    pub fn leak(self) -> String {
        if let Some(process) = self.process {
            process.leave();
        }
        let fronts = self.fronts.into_iter().map(Front::leak);
        fronts.chain([self.group.leave()]).collect::<Vec<_>>().join(" ; ")
    }

    /// The chart's arguments, where what belongs to a pod is replaced by what belongs to this run.
    fn arguments(&self) -> Vec<String> {
        let ours = [
            ("--data-dir", self.data_dir().display().to_string()),
            ("--listen", self.door.address()),
            ("--metrics-listen", self.metrics.address()),
            ("--kubeconfig", self.kubeconfig.display().to_string()),
        ];
        replace(&self.pod.arguments, &ours)
    }
}

/// Arguments in which those of these flags are replaced.
fn replace(arguments: &[String], ours: &[(&str, String)]) -> Vec<String> {
    let stays = |argument: &&String| {
        let flag = argument.split_once('=').map_or(argument.as_str(), |(flag, _)| flag);
        !ours.iter().any(|(name, _)| *name == flag)
    };
    let mut arguments: Vec<String> = arguments.iter().filter(stays).cloned().collect();
    arguments.extend(ours.iter().map(|(name, value)| format!("{name}={value}")));
    arguments
}

/// Waits until `/readyz` at this port says 200; fails at once when the process ends.
async fn await_ready(process: &mut Option<Process>, port: &Port, timeout: Duration) -> anyhow::Result<()> {
    let url = format!("http://{}/readyz?verbose", port.address());
    let client = reqwest::Client::builder().no_proxy().build()?;
    process.as_mut().context("it does not run")?.await_ready(&client, &url, timeout).await
}
