//! The real helm, with a home of its own: nothing of the user's is read or written.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Context as _;
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::{kubectl::Output, process::direct};

/// helm with one kubeconfig.
#[derive(Clone, Debug)]
pub struct Helm {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

/// Our chart, in the source tree.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/hookwright")
}

impl Helm {
    /// helm at `program`; what it keeps for itself goes into the folder `home`.
    pub fn new(program: PathBuf, kubeconfig: PathBuf, home: PathBuf) -> Self {
        Self { program, kubeconfig, home }
    }

    /// Installs or upgrades a release, and makes its namespace. It does not wait for pods: where
    /// there are no nodes there are none.
    pub async fn install(
        &self,
        release: &str,
        namespace: &str,
        chart: &Path,
        values: &Value,
    ) -> anyhow::Result<String> {
        let path = chart.to_str().context("the chart's path is not UTF-8")?;
        let arguments =
            ["upgrade", "--install", release, path, "-n", namespace, "--create-namespace", "--values", "-"];
        self.run(&arguments, &values.to_string()).await?.ok("helm upgrade --install")
    }

    /// The objects of a release as YAML, without a cluster.
    pub async fn template(
        &self,
        release: &str,
        namespace: &str,
        chart: &Path,
        values: &Value,
    ) -> anyhow::Result<String> {
        let path = chart.to_str().context("the chart's path is not UTF-8")?;
        let arguments = ["template", release, path, "-n", namespace, "--values", "-"];
        self.run(&arguments, &values.to_string()).await?.ok("helm template")
    }

    /// Uninstalls a release and waits until its objects are gone.
    pub async fn uninstall(&self, release: &str, namespace: &str) -> anyhow::Result<()> {
        let arguments = ["uninstall", release, "-n", namespace, "--wait", "--ignore-not-found"];
        self.run(&arguments, "").await?.ok("helm uninstall").map(drop)
    }

    /// Runs it with something to read, and gives back what it answered, whatever that is.
    pub async fn run(&self, arguments: &[&str], input: &str) -> anyhow::Result<Output> {
        let mut command = std::process::Command::new(&self.program);
        direct(&mut command)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HELM_CACHE_HOME", self.home.join("cache"))
            .env("HELM_CONFIG_HOME", self.home.join("config"))
            .env("HELM_DATA_HOME", self.home.join("data"))
            .args(arguments);
        let mut child = Command::from(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("run {}", self.program.display()))?;
        let mut pipe = child.stdin.take().context("helm has no stdin")?;
        let write = async move {
            // It may end without reading, and then says why itself.
            let _ = pipe.write_all(input.as_bytes()).await;
        };
        let ((), output) = tokio::join!(write, child.wait_with_output());
        output.map(Output::from).context("wait for helm")
    }
}
