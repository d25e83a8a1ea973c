//! What the kubelet would make of a workload's pod template: arguments, environment, account.

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::kubectl::Kubectl;

/// Addresses that no receiver of a test has (RFC 5737).
const POD_IP: &str = "192.0.2.10";
const HOST_IP: &str = "192.0.2.1";

/// The one container of a pod that runs Hookwright.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) service_account: String,
}

impl Pod {
    /// Reads from the cluster the workload of a release that runs this role: `run` or `front`.
    pub(super) async fn of_release(
        kubectl: &Kubectl,
        release: &str,
        namespace: &str,
        role: &str,
    ) -> anyhow::Result<Self> {
        let labels = format!("app.kubernetes.io/instance={release}");
        let workloads = kubectl.list_json("statefulset,deployment", namespace, &labels).await?;
        let runs = |workload: &&Value| {
            workload.pointer("/spec/template/spec/containers/0/args/0").is_some_and(|first| first == role)
        };
        let workload = workloads
            .iter()
            .find(runs)
            .with_context(|| format!("release {release} has no workload that runs `hookwright {role}`"))?;
        Self::from_workload(workload)
    }

    fn from_workload(workload: &Value) -> anyhow::Result<Self> {
        let text = |from: &Value, pointer: &str| {
            from.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let container =
            workload.pointer("/spec/template/spec/containers/0").context("the pod has no container")?;
        let service_account = text(workload, "/spec/template/spec/serviceAccountName");
        let fields = [
            ("metadata.name", format!("{}-0", text(workload, "/metadata/name"))),
            ("metadata.namespace", text(workload, "/metadata/namespace")),
            ("spec.serviceAccountName", service_account.clone()),
            ("spec.nodeName", "node".to_owned()),
            ("status.podIP", POD_IP.to_owned()),
            ("status.hostIP", HOST_IP.to_owned()),
        ];
        let mut environment: Vec<(String, String)> = Vec::new();
        for variable in array(container, "env") {
            let name = text(variable, "/name");
            let value = match variable.get("valueFrom") {
                None => expand(&text(variable, "/value"), &environment),
                Some(from) => {
                    let path = text(from, "/fieldRef/fieldPath");
                    match fields.iter().find(|(field, _)| *field == path) {
                        Some((_, value)) => value.clone(),
                        None => bail!("the harness cannot fill the pod's variable {name} from {from}"),
                    }
                }
            };
            environment.push((name, value));
        }
        let arguments = array(container, "args")
            .filter_map(Value::as_str)
            .map(|argument| expand(argument, &environment))
            .collect();
        Ok(Self { arguments, environment, service_account })
    }

    /// The name of the Service in front, from `--service=NAMESPACE/NAME`.
    pub(super) fn service(&self) -> anyhow::Result<String> {
        let service = self.arguments.iter().find_map(|argument| argument.strip_prefix("--service="));
        let name = service.and_then(|service| service.split_once('/')).map(|(_, name)| name.to_owned());
        name.context("the workload has no argument --service=NAMESPACE/NAME")
    }
}

fn array<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    object.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// `$(NAME)`, as Kubernetes expands it.
fn expand(text: &str, environment: &[(String, String)]) -> String {
    environment.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}
