//! The kinds, as a real kube-apiserver and kubectl see them. No operator runs here.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper of a test fails the test")]

#[path = "api/admission.rs"]
mod admission;
#[path = "api/grammar.rs"]
mod grammar;
#[path = "api/spellings.rs"]
mod spellings;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hookwright_harness::control_plane::{ControlPlane, shared};
use hookwright_harness::kubectl::Kubectl;
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds");

fn folder(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {name}");
    files
}

/// The shared control plane with the CRDs, which both ways of applying have put there.
async fn plane() -> &'static ControlPlane {
    static READY: OnceCell<()> = OnceCell::const_new();
    let plane = shared().await;
    READY
        .get_or_init(async || {
            let kubectl = plane.kubectl();
            for way in ["--server-side=true", "--server-side=false"] {
                kubectl.ok(&["apply", way, "--warnings-as-errors", "-f", CRDS]).await.unwrap();
                kubectl
                    .ok(&["wait", "--for=condition=Established", "-f", CRDS, "--timeout=60s"])
                    .await
                    .unwrap();
                if way == "--server-side=true" {
                    // kube-apiserver looks for objects of the kind first. If it does not serve the kind yet, it looks
                    // again later, each time after a longer wait: so this waits until it does.
                    let kinds = "webhooks.hookwright.dev,webhooktests,webhookreplays";
                    let served = eventually(Duration::from_mins(1), "the kinds to be served", async || {
                        let listed = kubectl.ok(&["get", kinds, "-A"]).await;
                        listed.map(drop).map_err(|error| error.to_string())
                    });
                    served.await.unwrap();
                    kubectl.ok(&["delete", "-f", CRDS, "--timeout=180s"]).await.unwrap();
                }
            }
            // Discovery follows a moment later, and kubectl keeps what it has read of it: this makes it read anew.
            let kinds = ["api-resources", "--api-group=hookwright.dev", "-o", "name"];
            let served = eventually(Duration::from_mins(1), "the kinds to be discovered", async || {
                let seen = kubectl.ok(&kinds).await.map_err(|error| error.to_string())?;
                if seen.lines().count() == 3 { Ok(()) } else { Err(seen) }
            });
            served.await.unwrap();
        })
        .await;
    plane
}

fn webhook(namespace: &str, name: &str, spec: Value) -> String {
    let mut spec = spec;
    spec["url"] = json!("https://hooks.example.com/orders");
    spec["eventTypes"] = json!(["order.created", "invoice.*"]);
    json!({
        "apiVersion": "hookwright.dev/v1alpha1",
        "kind": "Webhook",
        "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    })
    .to_string()
}

fn replay(namespace: &str, name: &str, changes: &Value) -> String {
    let mut spec = json!({ "select": { "from": "2026-11-24T22:00:00Z", "to": "2026-11-25T06:00:00Z" } });
    for (key, value) in changes.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let (version, kind) = ("hookwright.dev/v1alpha1", "WebhookReplay");
    let metadata = json!({ "name": name, "namespace": namespace });
    json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec }).to_string()
}

/// The words of a header line.
async fn columns(kubectl: &Kubectl, arguments: &[&str]) -> String {
    let printed = kubectl.ok(arguments).await.unwrap();
    printed.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn the_definitions_are_taken_without_a_warning_both_ways_and_stay_as_they_are() {
    let kubectl = plane().await.kubectl();
    let again = kubectl.ok(&["apply", "--warnings-as-errors", "-f", CRDS]).await.unwrap();
    assert_eq!(again.lines().filter(|line| line.ends_with(" unchanged")).count(), 3, "{again}");
    kubectl.ok(&["diff", "-f", CRDS]).await.unwrap();
}

#[tokio::test]
async fn what_is_invalid_is_refused_with_a_message_that_says_what_must_be() {
    let kubectl = plane().await.kubectl();
    let check = async |file: PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        let wanted: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# want: ")).collect();
        assert!(!wanted.is_empty(), "{}: no `# want:`", file.display());
        let answer = kubectl.run_with_input(&["create", "--dry-run=server", "-f", "-"], &text).await.unwrap();
        assert!(!answer.status.success(), "{}: it was taken", file.display());
        let message = answer.stderr;
        for want in wanted {
            assert!(message.contains(want), "{}: wanted {want:?} in {message}", file.display());
        }
    };
    for file in folder("tests/invalid") {
        check(file).await;
    }
}

#[tokio::test]
async fn the_examples_are_taken_in_one_go_and_again_without_a_change() {
    let kubectl = plane().await.kubectl();
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    kubectl.ok(&["apply", "--warnings-as-errors", "-f", examples]).await.unwrap();
    let again = kubectl.ok(&["apply", "--warnings-as-errors", "-f", examples]).await.unwrap();
    // kubectl says of every Secret with stringData that it is configured, also when nothing has changed.
    let mut others = again.lines().filter(|line| !line.starts_with("secret/"));
    assert!(others.all(|line| line.ends_with(" unchanged")), "{again}");
    let hooks = kubectl.list_json("hook", "team-a", "").await.unwrap();
    assert_eq!(hooks.len(), folder("examples").iter().filter(|file| is_webhook(file)).count());
}

fn is_webhook(file: &Path) -> bool {
    fs::read_to_string(file).unwrap().lines().any(|line| line == "kind: Webhook")
}

#[tokio::test]
async fn what_is_not_said_gets_the_documented_defaults_and_a_status_in_progress() {
    let plane = plane().await;
    let (kubectl, namespace) = (plane.kubectl(), plane.namespace("defaults").await.unwrap());
    kubectl
        .apply(&webhook(&namespace, "orders", json!({ "rateLimit": { "requests": 10 }, "active": null })))
        .await
        .unwrap();
    let object = kubectl.get_json("hook", &namespace, "orders").await.unwrap();
    let expected = json!({
        "url": "https://hooks.example.com/orders",
        "eventTypes": ["order.created", "invoice.*"],
        "active": true,
        "maxRetries": 3,
        "backoff": { "initial": "10s", "factor": 6, "max": "24h" },
        "timeout": "15s",
        "maxInFlight": 64,
        "rateLimit": { "requests": 10, "per": "1s", "burst": 1 },
        "historyLimit": 10,
    });
    assert_eq!(object["spec"], expected);
    assert_eq!(object["status"], json!({ "observedGeneration": -1 }));
}

#[tokio::test]
async fn the_columns_are_those_of_the_documents() {
    let plane = plane().await;
    let (kubectl, namespace) = (plane.kubectl(), plane.namespace("columns").await.unwrap());
    kubectl.apply(&webhook(&namespace, "orders", json!({}))).await.unwrap();
    let test = json!({ "apiVersion": "hookwright.dev/v1alpha1", "kind": "WebhookTest",
        "metadata": { "name": "orders-1", "namespace": namespace }, "spec": { "webhookRef": { "name": "orders" } } });
    kubectl.apply(&test.to_string()).await.unwrap();
    kubectl.apply(&replay(&namespace, "night", &json!({}))).await.unwrap();
    for (arguments, expected) in [
        (&["get", "webhooks.hookwright.dev"][..], "NAME URL READY STATE HEALTHY FAILURES LAST TRIGGERED AGE"),
        (
            &["get", "hook", "-o", "wide"],
            "NAME URL READY STATE HEALTHY FAILURES LAST TRIGGERED AGE EVENT TYPES PENDING STATUS",
        ),
        (&["get", "hooktest"], "NAME WEBHOOK SUCCEEDED CODE AGE"),
        (&["get", "hooktest", "-o", "wide"], "NAME WEBHOOK SUCCEEDED CODE AGE MESSAGE DELIVERY"),
        (&["get", "hookreplay"], "NAME WEBHOOK SUCCEEDED SELECTED SENT FAILED AGE"),
        (
            &["get", "hookreplay", "-o", "wide"],
            "NAME WEBHOOK SUCCEEDED SELECTED SENT FAILED AGE SKIPPED DRY RUN MESSAGE",
        ),
    ] {
        let arguments = [arguments, &["-n", &namespace]].concat();
        assert_eq!(columns(&kubectl, &arguments).await, expected);
    }
}

#[tokio::test]
async fn the_paused_ones_are_found_by_field_selector() {
    let plane = plane().await;
    let (kubectl, namespace) = (plane.kubectl(), plane.namespace("selector").await.unwrap());
    kubectl.apply(&webhook(&namespace, "runs", json!({}))).await.unwrap();
    kubectl.apply(&webhook(&namespace, "rests", json!({ "active": false }))).await.unwrap();
    let arguments = ["get", "hook", "-n", &namespace, "--field-selector", "spec.active=false", "-o", "name"];
    let found = kubectl.ok(&arguments).await.unwrap();
    assert_eq!(found.trim(), "webhook.hookwright.dev/rests");
}

#[tokio::test]
async fn the_short_names_are_ours_beside_another_kind_of_the_same_name() {
    let plane = plane().await;
    let (kubectl, namespace) = (plane.kubectl(), plane.namespace("names").await.unwrap());
    let other = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": "webhooks.generators.external-secrets.io" },
        "spec": {
            "group": "generators.external-secrets.io",
            "scope": "Namespaced",
            "names": { "kind": "Webhook", "plural": "webhooks", "singular": "webhook" },
            "versions": [{ "name": "v1alpha1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }],
        },
    });
    kubectl.apply(&other.to_string()).await.unwrap();
    kubectl.wait("crd/webhooks.generators.external-secrets.io", "", "condition=Established").await.unwrap();
    kubectl.apply(&webhook(&namespace, "orders", json!({}))).await.unwrap();
    for name in ["hook", "webhooks.hookwright.dev", "hookwright"] {
        let found = kubectl.ok(&["get", name, "-n", &namespace, "-o", "name"]).await.unwrap();
        assert_eq!(found.trim(), "webhook.hookwright.dev/orders", "{name}");
    }
    let kinds = kubectl.ok(&["api-resources", "--api-group=hookwright.dev", "-o", "wide"]).await.unwrap();
    for (kind, short) in
        [("webhooks", "hook"), ("webhooktests", "hooktest"), ("webhookreplays", "hookreplay")]
    {
        let line = kinds.lines().find(|line| line.starts_with(&format!("{kind} "))).unwrap();
        assert!(line.split_whitespace().any(|word| word == short), "{line}");
        assert!(line.trim_end().ends_with("hookwright"), "the category: {line}");
        assert!(line.contains("deletecollection"), "{line}");
    }
}

#[tokio::test]
async fn kubectl_explains_every_field() {
    let kubectl = plane().await.kubectl();
    let published = eventually(Duration::from_mins(1), "the schemas to be published", async || {
        let path = ["get", "--raw", "/openapi/v3/apis/hookwright.dev/v1alpha1"];
        let document = kubectl.ok(&path).await.map_err(|error| error.to_string())?;
        let document: Value = serde_json::from_str(&document).map_err(|error| error.to_string())?;
        let schemas = document["components"]["schemas"].clone();
        let has = |kind: &str| schemas[format!("dev.hookwright.v1alpha1.{kind}")].is_object();
        if ["Webhook", "WebhookTest", "WebhookReplay"].into_iter().all(has) {
            Ok(schemas)
        } else {
            Err(document["info"].to_string())
        }
    });
    let schemas = published.await.unwrap();
    for kind in ["Webhook", "WebhookTest", "WebhookReplay"] {
        let schema = &schemas[format!("dev.hookwright.v1alpha1.{kind}")]["properties"];
        let mut missing = Vec::new();
        for part in ["spec", "status"] {
            undescribed(&schema[part], &format!("{kind}.{part}"), &mut missing);
        }
        assert!(missing.is_empty(), "{missing:#?}");
    }
    // The schemas of several CRDs are merged one after the other, and kubectl keeps what it saw for a while.
    let explained = eventually(Duration::from_mins(1), "kubectl to know the schemas", async || {
        for kind in ["hooktest", "hookreplay", "webhooks.hookwright.dev"] {
            kubectl.ok(&["explain", kind]).await.map_err(|error| error.to_string())?;
        }
        let url = ["explain", "webhooks.hookwright.dev.spec.url"];
        kubectl.ok(&url).await.map_err(|error| error.to_string())
    });
    let url = explained.await.unwrap();
    assert!(url.contains("https") && url.contains("2048"), "{url}");
    // As the README says it: each field of a level with its text and its default.
    let spec = kubectl.ok(&["explain", "hook.spec"]).await.unwrap();
    let words = spec.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "Retries after the first attempt",
        "Default: 3.",
        "Default: 15s.",
        "Default: true.",
        "exact (`order.created`)",
    ] {
        assert!(words.contains(part), "{part} in {spec}");
    }
    let initial = kubectl.ok(&["explain", "hook.spec.backoff.initial"]).await.unwrap();
    assert!(initial.contains("Default: 10s."), "{initial}");
    for path in [
        "hook.spec.signing.secretRefs.key",
        "hook.status.deliveries.state",
        "hooktest.status.conditions.reason",
        "hookreplay.spec.select.states",
    ] {
        let text = kubectl.ok(&["explain", path]).await.unwrap();
        assert!(!text.contains("no description") && text.contains("DESCRIPTION"), "{text}");
    }
}

fn undescribed(schema: &Value, path: &str, missing: &mut Vec<String>) {
    if schema["description"].as_str().is_none_or(str::is_empty) && !path.ends_with("[]") {
        missing.push(path.to_owned());
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        undescribed(property, &format!("{path}.{name}"), missing);
    }
    if schema["items"].is_object() {
        undescribed(&schema["items"], &format!("{path}[]"), missing);
    }
}

#[tokio::test]
async fn the_spec_of_a_test_cannot_be_changed_and_its_payload_is_any_json() {
    let plane = plane().await;
    let (kubectl, namespace) = (plane.kubectl(), plane.namespace("immutable").await.unwrap());
    let test = |name: &str, payload: Value| {
        json!({ "apiVersion": "hookwright.dev/v1alpha1", "kind": "WebhookTest",
            "metadata": { "name": name, "namespace": namespace, "labels": { "n": name } },
            "spec": { "webhookRef": { "name": "orders" }, "payload": payload } })
        .to_string()
    };
    for (name, payload) in [
        ("object", json!({ "order": { "id": 1, "lines": [1, 2] } })),
        ("list", json!([1, "a", true])),
        ("text", json!("text")),
        ("number", json!(1.5)),
    ] {
        kubectl.apply(&test(name, payload.clone())).await.unwrap();
        assert_eq!(kubectl.get_json("hooktest", &namespace, name).await.unwrap()["spec"]["payload"], payload);
        kubectl.apply(&test(name, payload)).await.unwrap();
    }
    for (name, payload) in
        [("object", json!({ "order": { "id": 2, "lines": [1, 2] } })), ("list", json!([1, "a"]))]
    {
        let message = kubectl.refused(&test(name, payload)).await.unwrap();
        assert!(
            message.contains("spec is immutable and must not be changed: create another object"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn the_spec_of_a_replay_cannot_be_changed_and_has_its_defaults() {
    let plane = plane().await;
    let (kubectl, namespace) = (plane.kubectl(), plane.namespace("replays").await.unwrap());
    kubectl.apply(&replay(&namespace, "night", &json!({ "rateLimit": { "requests": 20 } }))).await.unwrap();
    let object = kubectl.get_json("hookreplay", &namespace, "night").await.unwrap();
    let expected = json!({
        "select": { "states": ["Failed"], "from": "2026-11-24T22:00:00Z", "to": "2026-11-25T06:00:00Z" },
        "dryRun": false,
        "rateLimit": { "requests": 20, "per": "1s", "burst": 1 },
    });
    assert_eq!(object["spec"], expected);
    assert_eq!(object["status"], json!({ "observedGeneration": -1 }));
    for changes in [json!({ "rateLimit": { "requests": 21 } }), json!({}), json!({ "dryRun": true })] {
        let message = kubectl.refused(&replay(&namespace, "night", &changes)).await.unwrap();
        assert!(message.contains("spec is immutable and must not be changed"), "{message}");
    }
}

#[tokio::test]
async fn conditions_of_two_owners_stand_side_by_side() {
    let plane = plane().await;
    let (kubectl, namespace) = (plane.kubectl(), plane.namespace("conditions").await.unwrap());
    kubectl.apply(&webhook(&namespace, "orders", json!({}))).await.unwrap();
    for (manager, kind) in [("one", "Ready"), ("two", "Reviewed")] {
        let status = json!({
            "apiVersion": "hookwright.dev/v1alpha1", "kind": "Webhook",
            "metadata": { "name": "orders", "namespace": namespace },
            "status": { "conditions": [{ "type": kind, "status": "True", "reason": "Because", "message": "m",
                "lastTransitionTime": "2026-11-24T10:00:00Z", "observedGeneration": 1 }] },
        });
        let manager = format!("--field-manager={manager}");
        let arguments = ["apply", "--server-side", "--subresource=status", &manager, "-f", "-"];
        kubectl.run_with_input(&arguments, &status.to_string()).await.unwrap().ok("apply a status").unwrap();
    }
    let object = kubectl.get_json("hook", &namespace, "orders").await.unwrap();
    assert_eq!(object["status"]["conditions"].as_array().unwrap().len(), 2, "{object}");
    kubectl.wait("hook/orders", &namespace, "condition=Ready").await.unwrap();
}
