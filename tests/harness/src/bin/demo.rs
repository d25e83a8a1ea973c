//! `make demo`: from `kubectl apply` to a signed, durable delivery, on a real control plane.
//!
//! Environment: `HOOKWRIGHT_BIN`, the program; `KUBECONFIG`, a cluster to use in place of a control
//! plane of its own; `KEEP=1`, wait for Ctrl-C before everything is taken down.
#![allow(clippy::print_stdout, reason = "a demo is there to print")]
#![allow(clippy::indexing_slicing, reason = "a JSON value that is missing is null, and the demo fails")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use hookwright_harness::{
    control_plane::ControlPlane,
    kubectl::Kubectl,
    operator::{Operator, OperatorOptions},
    publisher::{Event, Publisher},
    receiver::{Answer, Receiver},
    signature::{verify_v1, verify_v1a},
};
use serde_json::{Value, json};

const NAMESPACE: &str = "team-a";
const SOON: Duration = Duration::from_mins(1);

/// Prints what is done next, with the seconds since the beginning.
struct Progress(Instant);

impl Progress {
    fn step(&self, what: &str) {
        println!("==> [{:>5.1} s] {what}", self.0.elapsed().as_secs_f32());
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let progress = Progress(Instant::now());
    let program =
        PathBuf::from(env::var_os("HOOKWRIGHT_BIN").context("set HOOKWRIGHT_BIN, or run `make demo`")?);
    let plane = start_plane(&progress).await?;
    progress.step(
        "installing charts/hookwright with helm, starting the operator with its ServiceAccount's token",
    );
    let operator = Operator::start(&plane, program, &OperatorOptions::default()).await?;
    progress.step("starting a receiver with a certificate of its own authority");
    let receiver = Receiver::start().await?;
    let kubectl = plane.kubectl();

    let result = show(&progress, &plane, &operator, &receiver, &kubectl).await;
    if result.is_ok() && env::var("KEEP").is_ok_and(|keep| keep == "1") {
        keep(&plane, &receiver, &kubectl).await?;
    }
    if env::var_os("KUBECONFIG").is_some() {
        progress.step("removing what was made in your cluster");
        clean(&plane, &kubectl).await?;
    }
    progress.step("taking everything down");
    drop((operator, receiver));
    plane.stop();
    result?;
    progress.step("done: published, retried, delivered, verified; nothing is left behind");
    Ok(())
}

async fn start_plane(progress: &Progress) -> anyhow::Result<ControlPlane> {
    if let Some(file) = env::var_os("KUBECONFIG") {
        progress.step("using the cluster of KUBECONFIG");
        return ControlPlane::connect(Path::new(&file)).await;
    }
    progress.step(
        "starting a control plane: etcd, kube-apiserver, kube-controller-manager (built first, if need be)",
    );
    ControlPlane::start().await
}

/// Prints a kubectl command and what it answers.
async fn run(kubectl: &Kubectl, arguments: &[&str]) -> anyhow::Result<String> {
    println!("$ kubectl {}", arguments.join(" "));
    let output = kubectl.ok(arguments).await?;
    println!("{}", output.trim_end());
    Ok(output)
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
    path.canonicalize().unwrap_or(path).display().to_string()
}

async fn show(
    progress: &Progress,
    plane: &ControlPlane,
    operator: &Operator,
    receiver: &Receiver,
    kubectl: &Kubectl,
) -> anyhow::Result<()> {
    progress.step("applying examples/");
    for file in
        ["namespace.yaml", "publisher.yaml", "webhook.yaml", "webhook-signed.yaml", "webhook-tuned.yaml"]
    {
        println!("$ kubectl apply -f examples/{file}");
        println!("{}", kubectl.ok(&["apply", "-f", &example(file)]).await?.trim_end());
    }
    progress.step("pointing them at the receiver here, with short waits between attempts");
    point_at(receiver, kubectl).await?;
    run(kubectl, &["wait", "-n", NAMESPACE, "--for=condition=Ready", "hook", "--all", "--timeout=60s"])
        .await?;

    progress.step("sending a test delivery");
    println!("$ kubectl apply -f examples/webhooktest.yaml");
    println!("{}", kubectl.ok(&["apply", "-f", &example("webhooktest.yaml")]).await?.trim_end());
    let succeeded =
        ["wait", "-n", NAMESPACE, "--for=condition=Succeeded", "hooktest/orders-1", "--timeout=60s"];
    run(kubectl, &succeeded).await?;
    run(kubectl, &["get", "hooktest", "-n", NAMESPACE, "-o", "wide"]).await?;

    progress.step("publishing as the producer shop would; billing's receiver answers 503 first");
    receiver.set_script("/billing", vec![Answer::status(503)], Answer::ok());
    let publisher = Publisher::with_account(plane, operator, NAMESPACE, "shop").await?;
    for (id, kind) in [("1", "order.created"), ("2", "invoice.paid")] {
        let event = Event::new(id, kind, json!({ "number": id, "total": "49.90" }));
        let receipt = publisher.publish_binary(NAMESPACE, &event).await?.accepted()?;
        println!("POST …/namespaces/{NAMESPACE}/cloudevents  ce-type: {kind}\n202 {receipt}");
    }
    let attempts = receiver.await_requests("/billing", 2, SOON).await?;
    let object = ("webhooks.hookwright.dev", NAMESPACE, "billing");
    let done = |webhook: &Value| webhook["status"]["deliveries"][0]["state"] == "Success";
    let webhook = kubectl.wait_for(object, SOON, "the delivery in billing's history", done).await?;

    progress.step("what became of it");
    run(kubectl, &["get", "hook", "-n", NAMESPACE]).await?;
    history(kubectl).await?;

    progress.step("verifying the signatures of the second attempt with other libraries");
    let delivery = &webhook["status"]["deliveries"][0];
    anyhow::ensure!(delivery["retryCount"] == 1, "one retry expected: {delivery}");
    let request = attempts.last().context("two attempts")?;
    let key = webhook["status"]["publicKey"].as_str().context("status.publicKey")?;
    verify_v1a(request, key).context("v1a")?;
    println!("v1a: valid for status.publicKey {key}");
    let secret = fs::read_to_string(example("webhook-signed.yaml"))?;
    let secret =
        secret.split_whitespace().find(|word| word.starts_with("whsec_")).context("a whsec_ secret")?;
    verify_v1(request, secret).context("v1")?;
    println!("v1:  valid for the secret of examples/webhook-signed.yaml");
    anyhow::ensure!(verify_v1a(&attempts[0], key).is_ok(), "the first attempt was signed as well");
    Ok(())
}

async fn point_at(receiver: &Receiver, kubectl: &Kubectl) -> anyhow::Result<()> {
    let trust = json!({"apiVersion": "v1", "kind": "ConfigMap",
                       "metadata": {"name": "demo-receiver-ca", "namespace": NAMESPACE},
                       "data": {"ca.crt": receiver.ca_pem()}});
    kubectl.apply(&trust.to_string()).await?;
    for name in ["orders", "billing", "audit"] {
        let patch = json!({"spec": {
            "url": receiver.url("hooks", &format!("/{name}")),
            "backoff": {"initial": "1s", "factor": 2, "max": "1m"},
            "tls": {"caRef": {"kind": "ConfigMap", "name": "demo-receiver-ca", "key": "ca.crt"}},
        }});
        let object = format!("hook/{name}");
        kubectl.ok(&["patch", "-n", NAMESPACE, &object, "--type=merge", "-p", &patch.to_string()]).await?;
    }
    Ok(())
}

async fn history(kubectl: &Kubectl) -> anyhow::Result<()> {
    let rows = "{range .status.deliveries[*]}{.eventType}{\"\\t\"}{.state}{\"\\t\"}{.responseStatus}{\"\\t\"}\
                retries={.retryCount}{\"\\t\"}{.id}{\"\\n\"}{end}";
    for name in ["orders", "billing"] {
        run(kubectl, &["get", "hook", name, "-n", NAMESPACE, "-o", &format!("jsonpath={rows}")]).await?;
    }
    Ok(())
}

async fn keep(plane: &ControlPlane, receiver: &Receiver, kubectl: &Kubectl) -> anyhow::Result<()> {
    println!("\nEverything keeps running. In another terminal:\n");
    println!("  export KUBECONFIG={}", plane.kubeconfig_path().display());
    println!("  export PATH={}:$PATH", plane.programs().display());
    println!("  kubectl get hook,hooktest,hookreplay -A");
    println!("\nThe receiver is at {} (its CA: ConfigMap demo-receiver-ca).", receiver.url("hooks", "/"));
    println!("Ctrl-C takes everything down.");
    kubectl.ok(&["get", "hook", "-n", NAMESPACE]).await?;
    Ok(tokio::signal::ctrl_c().await?)
}

async fn clean(plane: &ControlPlane, kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.ok(&["delete", "namespace", NAMESPACE, "--ignore-not-found"]).await?;
    plane.helm().await?.uninstall("hookwright", "hookwright-system").await?;
    for object in ["webhooks.hookwright.dev", "webhooktests.hookwright.dev", "webhookreplays.hookwright.dev"]
    {
        kubectl.ok(&["delete", "crd", object, "--ignore-not-found"]).await?;
    }
    kubectl.ok(&["delete", "namespace", "hookwright-system", "--ignore-not-found"]).await?;
    Ok(())
}
