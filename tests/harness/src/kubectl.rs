//! kubectl as users run it, for the tests that speak of kubectl.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
};

use crate::process::direct;

/// kubectl with one kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

/// What a program answered.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it warned and complained about.
    pub stderr: String,
}

impl From<std::process::Output> for Output {
    fn from(output: std::process::Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Output {
    /// The output, or an error with what the program complained about.
    pub fn ok(self, what: &str) -> anyhow::Result<String> {
        if !self.status.success() {
            bail!("{what}: {}: {}", self.status, self.stderr.trim());
        }
        Ok(self.stdout)
    }
}

impl Kubectl {
    /// kubectl at `program`; its discovery cache is kept in the folder `cache`.
    pub fn new(program: PathBuf, kubeconfig: PathBuf, cache: PathBuf) -> Self {
        Self { program, kubeconfig, cache }
    }

    /// The same kubectl as someone else.
    #[must_use]
    pub fn with_kubeconfig(&self, kubeconfig: impl Into<PathBuf>) -> Self {
        Self { kubeconfig: kubeconfig.into(), ..self.clone() }
    }

    /// The kubeconfig it uses.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs it and gives back what it answered, whatever that is.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.run_with_input(arguments, "").await
    }

    /// Runs it with something to read.
    pub async fn run_with_input(&self, arguments: &[&str], input: &str) -> anyhow::Result<Output> {
        let mut child = self.spawn(arguments)?;
        let mut pipe = child.stdin.take().context("kubectl has no stdin")?;
        let write = async move {
            // It may end without reading, and then says why itself.
            let _ = pipe.write_all(input.as_bytes()).await;
        };
        let ((), output) = tokio::join!(write, child.wait_with_output());
        output.map(Output::from).context("wait for kubectl")
    }

    /// What it printed; anything but success is an error.
    pub async fn ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run(arguments).await?.ok(&format!("kubectl {}", arguments.join(" ")))
    }

    /// `kubectl apply --server-side -f -`; what it printed.
    pub async fn apply(&self, yaml: &str) -> anyhow::Result<String> {
        self.run_with_input(&["apply", "--server-side", "--force-conflicts", "-f", "-"], yaml)
            .await?
            .ok("kubectl apply")
    }

    /// Applies what must be refused; the message of the refusal.
    pub async fn refused(&self, yaml: &str) -> anyhow::Result<String> {
        let output = self.run_with_input(&["apply", "--server-side", "-f", "-"], yaml).await?;
        if output.status.success() {
            bail!("applied, and should have been refused: {}", output.stdout.trim());
        }
        Ok(output.stderr)
    }

    /// One object. The namespace is empty for what has none.
    pub async fn get_json(&self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<Value> {
        let text = self.ok(&["get", kind, name, "-n", namespace, "-o", "json"]).await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The objects of a kind in a namespace, by a label selector (may be empty).
    pub async fn list_json(&self, kind: &str, namespace: &str, labels: &str) -> anyhow::Result<Vec<Value>> {
        let text = self.ok(&["get", kind, "-n", namespace, "-l", labels, "-o", "json"]).await?;
        let mut list: Value = serde_json::from_str(&text)?;
        match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            other => bail!("kubectl get {kind} printed no list of items, but {other:?}"),
        }
    }

    /// Deletes an object and waits until it is gone; fine when there is none.
    pub async fn delete(&self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        let arguments = ["delete", kind, name, "-n", namespace, "--ignore-not-found", "--timeout=60s"];
        self.ok(&arguments).await.map(drop)
    }

    /// `kubectl wait --for=<condition>` for an object like `hook/orders`.
    pub async fn wait(&self, object: &str, namespace: &str, condition: &str) -> anyhow::Result<()> {
        let condition = format!("--for={condition}");
        self.ok(&["wait", object, "-n", namespace, &condition, "--timeout=60s"]).await.map(drop)
    }

    /// Watches one object until `enough` says so, and answers the object as it was then. The error
    /// says `what` was awaited and how the object looked last. It need not exist yet.
    pub async fn wait_for(
        &self,
        object: (&str, &str, &str),
        timeout: Duration,
        what: &str,
        mut enough: impl FnMut(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let (kind, namespace, name) = object;
        let mut last = Value::Null;
        let watch = async {
            loop {
                self.watch_once(object, &mut last, &mut enough).await?;
                if enough(&last) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(timeout, watch).await {
            Ok(result) => result.map(|()| last),
            Err(_elapsed) => {
                bail!("waited {timeout:?} for {kind} {namespace}/{name}: {what}; last seen: {last:#}")
            }
        }
    }

    /// Ends when `enough` is, or with the watch (also because there is no such object).
    async fn watch_once(
        &self,
        (kind, namespace, name): (&str, &str, &str),
        last: &mut Value,
        enough: &mut impl FnMut(&Value) -> bool,
    ) -> anyhow::Result<()> {
        // As a list of one: of a single object kubectl misses what changes between its look and its watch.
        let one = format!("--field-selector=metadata.name={name}");
        let mut child = self.spawn(&["get", kind, &one, "-n", namespace, "-o", "json", "--watch"])?;
        let mut lines = BufReader::new(child.stdout.take().context("kubectl has no stdout")?).lines();
        let mut document = String::new();
        while let Some(line) = lines.next_line().await? {
            document.push_str(&line);
            // Printed with indentation, so only the end of the whole document is in column 0.
            if line == "}" {
                *last = serde_json::from_str(&document)?;
                document.clear();
                if enough(last) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn spawn(&self, arguments: &[&str]) -> anyhow::Result<Child> {
        let mut command = std::process::Command::new(&self.program);
        direct(&mut command)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", &self.cache)
            .args(arguments);
        Command::from(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("run {}", self.program.display()))
    }
}
