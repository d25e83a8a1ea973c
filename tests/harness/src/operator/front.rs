//! A front as its pod would run it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{await_ready, pod::Pod, replace};
use crate::{
    control_plane::ControlPlane,
    ports::{Port, free_port},
    process::{Group, Process},
};

/// One `hookwright front`; killed when dropped.
#[derive(Debug)]
pub struct Front {
    program: PathBuf,
    pod: Pod,
    kubeconfig: PathBuf,
    backend: String,
    door: Port,
    metrics: Port,
    // Before the group: first the process ends, then its folder goes.
    process: Option<Process>,
    group: Group,
}

impl Front {
    pub(super) async fn of_pod(
        plane: &ControlPlane,
        program: &Path,
        pod: Pod,
        namespace: &str,
        door: Port,
        backend: String,
    ) -> anyhow::Result<Self> {
        let token = plane.token(namespace, &pod.service_account, None).await?;
        Ok(Self {
            program: program.to_owned(),
            pod,
            kubeconfig: plane.kubeconfig_for_token(&token)?,
            backend,
            door,
            metrics: free_port()?,
            process: None,
            group: Group::new("front")?,
        })
    }

    /// Where its HTTPS door is.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.door.number()))
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The kubeconfig it runs with.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Everything that it has logged, over all restarts.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.group.folder().join("front.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
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

    /// Starts it, and does not wait.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        let ours = [
            ("--listen", self.door.address()),
            ("--metrics-listen", self.metrics.address()),
            ("--kubeconfig", self.kubeconfig.display().to_string()),
            ("--backend", self.backend.clone()),
        ];
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("RUST_BACKTRACE", "1")
            .envs(self.pod.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.group.folder())
            .args(replace(&self.pod.arguments, &ours));
        self.process = Some(self.group.spawn("front", &mut command)?);
        Ok(())
    }

    /// Waits until `/readyz` says 200; fails at once when the process ends.
    pub async fn await_ready(&mut self, timeout: Duration) -> anyhow::Result<()> {
        await_ready(&mut self.process, &self.metrics, timeout).await
    }

    /// Leaves it running when this process ends; answers the shell command that ends it.
    pub(super) fn leak(self) -> String {
        if let Some(process) = self.process {
            process.leave();
        }
        self.group.leave()
    }
}
