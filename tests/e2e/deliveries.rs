//! The delivery log and publishing through kube-apiserver, with kubectl, as people see them.

use hookwright::api::delivery::Delivery;
use hookwright::api::webhook::DeliveryState;
use hookwright_harness::kubectl::Output;
use hookwright_harness::process::direct;
use hookwright_harness::publisher::Event;
use hookwright_harness::receiver::{Answer, Gate};
use hookwright_harness::wait::eventually;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use crate::world::{SOON, Team, door};

const RESOURCE: &str = "deliveries.delivery.hookwright.dev";
const API_SERVICE: &str = "v1alpha1.delivery.hookwright.dev";
const BASE: &str = "/apis/delivery.hookwright.dev/v1alpha1";

/// `kubectl get ARGUMENTS` in the team's namespace: what it printed.
async fn get(team: &Team, arguments: &[&str]) -> anyhow::Result<String> {
    team.kubectl.ok(&[&["get", "-n", &team.namespace], arguments].concat()).await
}

/// The error that `kubectl ARGUMENTS` printed.
async fn refused(team: &Team, arguments: &[&str]) -> anyhow::Result<String> {
    let output = team.kubectl.run(arguments).await?;
    assert!(!output.status.success(), "{arguments:?}: {}", output.stdout);
    Ok(output.stderr)
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim().is_empty()).collect()
}

/// A team whose kubectl knows the delivery API.
async fn team(prefix: &str) -> anyhow::Result<Team> {
    let team = Team::new(prefix).await?;
    let api_service = format!("apiservice/{API_SERVICE}");
    team.kubectl.ok(&["wait", &api_service, "--for=condition=Available", "--timeout=60s"]).await?;
    eventually(SOON, "kubectl to know dlv", async || {
        let output = team.kubectl.run(&["get", "dlv", "-n", &team.namespace]).await;
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() { Ok(()) } else { Err(output.stderr) }
    })
    .await?;
    Ok(team)
}

/// Two events, each for a Webhook that takes it, one that fails and one that is paused: six lines in the log.
async fn with_log(prefix: &str) -> anyhow::Result<Team> {
    let team = team(prefix).await?;
    team.receiver.answer("/broken", Answer::status(503));
    team.webhook("orders", json!({})).await?;
    team.webhook("broken", json!({"maxRetries": 0})).await?;
    team.webhook("paused", json!({"active": false})).await?;
    team.publish("order.created", &json!({"canary": "payload"})).await?;
    team.publish("order.paid", &json!({"n": 2})).await?;
    eventually(SOON, "six lines at rest", async || {
        let list = get(&team, &["dlv", "-o", "json"]).await.map_err(|error| error.to_string())?;
        let list: Value = serde_json::from_str(&list).unwrap_or_default();
        let states = list["items"].as_array().into_iter().flatten().map(|line| &line["status"]["state"]);
        let at_rest = states.filter(|state| ["Success", "Failed", "Held"].iter().any(|is| *state == is));
        if at_rest.count() == 6 { Ok(()) } else { Err(list.to_string()) }
    })
    .await?;
    Ok(team)
}

#[tokio::test]
async fn kubectl_shows_what_failed_when_why_and_what_happens_next() -> anyhow::Result<()> {
    let team = with_log("dlv").await?;
    let table = get(&team, &["dlv"]).await?;
    let rows = lines(&table);
    let head: Vec<_> = rows[0].split_whitespace().collect();
    assert_eq!(head, ["NAME", "WEBHOOK", "EVENT", "TYPE", "STATE", "CODE", "RETRIES", "NEXT", "AGE"]);
    assert_eq!(rows.len(), 7, "{table}");
    assert!(rows.iter().all(|row| row.trim_end().len() <= 120), "{table}");
    let row = |webhook: &str| {
        let words = rows.iter().map(|row| row.split_whitespace().collect::<Vec<_>>());
        words.filter(|words| words[1] == webhook).map(|words| words[2..7].join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(
        row("orders"),
        ["order.paid Success 200 0 -", "order.created Success 200 0 -"],
        "newest first"
    );
    assert_eq!(row("broken"), ["order.paid Failed 503 0 -", "order.created Failed 503 0 -"]);
    assert_eq!(row("paused"), ["order.paid Held - 0 on", "order.created Held - 0 on"]);

    let wide = get(&team, &["dlv", "-o", "wide"]).await?;
    let head = lines(&wide)[0].split_whitespace().skip(9).collect::<Vec<_>>().join(" ");
    assert_eq!(head, "EVENT ID DURATION ERROR");
    let failed = lines(&wide).into_iter().find(|row| row.contains("Failed")).unwrap_or_default().to_owned();
    assert!(failed.contains("503") && failed.contains("event-") && failed.contains("ms "), "{failed}");

    let names = get(&team, &["dlv", "-o", "name"]).await?;
    assert!(
        lines(&names).iter().all(|name| name.starts_with("delivery.delivery.hookwright.dev/")),
        "{names}"
    );
    let selector = "spec.webhook=orders,spec.eventType=order.paid";
    let name = get(&team, &["dlv", "-o", "name", "--field-selector", selector]).await?;
    let name = name.trim().split('/').nth(1).unwrap_or_default().to_owned();
    let one = get(&team, &["dlv", &name]).await?;
    assert!(lines(&one).len() == 2 && lines(&one)[1].starts_with(&name), "{one}");
    let yaml = get(&team, &["dlv", &name, "-o", "yaml"]).await?;
    for part in
        ["apiVersion: delivery.hookwright.dev/v1alpha1", "kind: Delivery", "webhookRef:", "  attempts:"]
    {
        assert!(yaml.contains(part), "{part} in {yaml}");
    }
    assert!(!yaml.contains("canary"), "{yaml}");
    let everywhere = get(&team, &["dlv", "-A"]).await?;
    assert!(lines(&everywhere)[0].starts_with("NAMESPACE"), "{everywhere}");
    assert_eq!(everywhere.matches(&team.namespace).count(), 6, "{everywhere}");

    let usages = get(&team, &["usages"]).await?;
    let words: Vec<Vec<_>> = usages.lines().map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["NAME", "PENDING", "RATE", "LOG", "DELIVERIES", "KEPT"]);
    let (pending, log) = (words[1][1], words[1][3]);
    assert!(pending.ends_with("/1Gi") && !pending.starts_with("0/"), "what is Held waits: {usages}");
    assert!(log.ends_with("/1Gi"), "{usages}");
    assert_eq!(
        (words.len(), &words[1][..1], words[1][2], &words[1][4..]),
        (2, &["current"][..], "1000/s", &["6", "168h"][..])
    );

    let all = get(&team, &["all"]).await?;
    assert!(!all.contains("delivery"), "the log is not in `all`: {all}");
    let missing = refused(&team, &["get", "dlv", "-n", &team.namespace, "nobody"]).await?;
    assert_eq!(missing.trim(), format!("Error from server (NotFound): {RESOURCE} \"nobody\" not found"));
    Ok(())
}

#[tokio::test]
async fn kubectl_selects_and_pages() -> anyhow::Result<()> {
    let team = with_log("select").await?;
    let names = async |arguments: &[&str]| {
        get(&team, &[&["dlv", "-o", "name"], arguments].concat()).await.map(|text| lines(&text).len())
    };
    for (arguments, count) in [
        (&["--field-selector", "status.state=Failed"][..], 2),
        (&["--field-selector", "spec.webhook=broken,status.state=Failed"], 2),
        (&["--field-selector", "spec.webhook=orders,status.state!=Success"], 0),
        (&["--field-selector", "status.state=Held"], 2),
        (&["--field-selector", "status.state=Pending"], 0),
        (&["--field-selector", "spec.eventType=order.paid"], 3),
        (&["--field-selector", "spec.test=true"], 0),
        (&["-l", "hookwright.dev/webhook=paused"], 2),
        (&["-l", "hookwright.dev/webhook in (orders,broken),hookwright.dev/event-type=order.created"], 2),
        (&["--chunk-size=1"], 6),
        (&["--chunk-size=4"], 6),
        (&["--chunk-size=1", "--field-selector", "status.state=Held"], 2),
    ] {
        assert_eq!(names(arguments).await?, count, "{arguments:?}");
    }
    let nothing = team
        .kubectl
        .run(&["get", "dlv", "-n", &team.namespace, "--field-selector", "spec.webhook=nobody"])
        .await?;
    assert!(nothing.stderr.contains("No resources found"), "{} {}", nothing.stdout, nothing.stderr);
    let unknown =
        refused(&team, &["get", "dlv", "-n", &team.namespace, "--field-selector", "status.outcome=x"])
            .await?;
    assert!(unknown.contains("BadRequest") && unknown.contains("spec.webhook, spec.eventId"), "{unknown}");
    Ok(())
}

#[tokio::test]
async fn kubectl_explains_and_announces_it() -> anyhow::Result<()> {
    let team = team("explain").await?;
    let explained = eventually(SOON, "kubectl explain", async || {
        let output = team.kubectl.run(&["explain", "deliveries.status.attempts"]).await;
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() { Ok(output.stdout) } else { Err(output.stderr) }
    })
    .await?;
    for part in [
        "KIND:       Delivery",
        "errorMessage",
        "Why it failed.",
        "durationMs",
        "Every attempt, oldest first",
    ] {
        assert!(explained.contains(part), "{part} in {explained}");
    }
    let event = team.kubectl.ok(&["explain", "cloudevents"]).await?;
    assert!(event.contains("specversion"), "{event}");

    let group = "--api-group=delivery.hookwright.dev";
    let announced = team.kubectl.ok(&["api-resources", group, "-o", "wide"]).await?;
    let row = |name: &str| {
        let rows = lines(&announced).into_iter().map(|row| row.split_whitespace().collect::<Vec<_>>());
        rows.into_iter().find(|words| words[0] == name).map(|words| words.join(" ")).unwrap_or_default()
    };
    assert_eq!(row("deliveries"), "deliveries dlv delivery.hookwright.dev/v1alpha1 true Delivery get,list");
    assert_eq!(row("usages"), "usages delivery.hookwright.dev/v1alpha1 true Usage get,list");
    let usage = team.kubectl.ok(&["explain", "usages.spec.quota.pendingBytes"]).await?;
    assert!(usage.contains("Most bytes of events that wait"), "{usage}");
    assert_eq!(row("cloudevents"), "cloudevents delivery.hookwright.dev/v1alpha1 true CloudEvent create");
    Ok(())
}

#[tokio::test]
async fn the_api_service_trusts_our_certificate_and_stands_in_nobodys_way() -> anyhow::Result<()> {
    let team = team("apiservice").await?;
    let object =
        team.kubectl.ok(&["get", "apiservice", API_SERVICE, "-o", "json", "--show-managed-fields"]).await?;
    let object: Value = serde_json::from_str(&object)?;
    assert!(object["spec"]["caBundle"].as_str().is_some_and(|bundle| !bundle.is_empty()), "{object}");
    assert_ne!(object["spec"]["insecureSkipTLSVerify"], true);
    let managers = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let ours =
        managers.iter().find(|manager| manager["manager"] == "hookwright").cloned().unwrap_or_default();
    assert_eq!(ours["fieldsV1"], json!({"f:spec": {"f:caBundle": {}}}), "nothing but the bundle is ours");

    let doomed = team.world.plane.namespace("doomed").await?;
    team.kubectl.ok(&["delete", "namespace", &doomed, "--timeout=60s"]).await?;
    Ok(())
}

#[tokio::test]
async fn kubectl_publishes_and_reads_a_payload() -> anyhow::Result<()> {
    let team = team("raw").await?;
    team.receiver.answer("/orders", Answer::status(200).body("thanks"));
    team.webhook("orders", json!({})).await?;
    let event = json!({"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.created", "data": {"n": 1}});
    let path = door(&team.namespace);
    let receipt =
        team.kubectl.run_with_input(&["create", "--raw", &path, "-f", "-"], &event.to_string()).await?;
    let receipt: Value = serde_json::from_str(&receipt.ok("kubectl create --raw")?)?;
    assert_eq!(receipt["matched"], 1);
    let sent = team.receiver.await_requests("/orders", 1, SOON).await?.remove(0);
    assert_eq!(sent.json()?, json!({"n": 1}));
    let name = sent.header("webhook-id").unwrap_or_default().to_owned();
    let path = format!("{BASE}/namespaces/{}/deliveries/{name}/payload", team.namespace);
    let payload = eventually(SOON, "the answer in the payload", async || {
        let text = team.kubectl.ok(&["get", "--raw", &path]).await.map_err(|error| error.to_string())?;
        let payload: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        if payload["answers"][0]["body"] == "thanks" { Ok(payload) } else { Err(text) }
    })
    .await?;
    assert_eq!((&payload["data"], &payload["attributes"]["source"]), (&json!("{\"n\":1}"), &json!("/shop")));
    let bad = event.to_string().replace("/shop", "my shop");
    let path = door(&team.namespace);
    let bad = team.kubectl.run_with_input(&["create", "--raw", &path, "-f", "-"], &bad).await?;
    assert!(!bad.status.success() && bad.stderr.contains("source"), "{}", bad.stderr);
    Ok(())
}

/// An account of the team with a role in its namespace, as kubectl's `--as` takes it.
async fn account(team: &Team, name: &str, role: &str) -> anyhow::Result<String> {
    let namespace = &*team.namespace;
    team.kubectl.ok(&["create", "serviceaccount", name, "-n", namespace]).await?;
    let (role, subject) = (format!("--clusterrole={role}"), format!("--serviceaccount={namespace}:{name}"));
    team.kubectl.ok(&["create", "rolebinding", name, &role, &subject, "-n", namespace]).await?;
    let account = format!("system:serviceaccount:{namespace}:{name}");
    let user = format!("--as={account}");
    eventually(SOON, "the role to be in force", async || {
        let output = team.kubectl.run(&["get", "dlv", "-n", namespace, &user]).await;
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() { Ok(()) } else { Err(output.stderr) }
    })
    .await?;
    Ok(account)
}

/// `kubectl create --raw …/deliveries/NAME/CHANGE` with an empty object, as this account: what it printed.
async fn change(team: &Team, user: &str, name: &str, change: &str) -> anyhow::Result<Result<String, String>> {
    let path = format!("{BASE}/namespaces/{}/deliveries/{name}/{change}", team.namespace);
    let user = format!("--as={user}");
    let output = team.kubectl.run_with_input(&["create", "--raw", &path, "-f", "-", &user], "{}").await?;
    Ok(if output.status.success() { Ok(output.stdout) } else { Err(output.stderr) })
}

/// The delivery of an event type to a Webhook, once it is in this state.
async fn in_state(team: &Team, selector: &str, state: &str) -> anyhow::Result<Value> {
    eventually(SOON, "the delivery in its state", async || {
        let list = get(team, &["dlv", "-o", "json", "--field-selector", selector]).await;
        let list: Value = serde_json::from_str(&list.map_err(|error| error.to_string())?).unwrap_or_default();
        let line = &list["items"][0];
        if line["status"]["state"] == state { Ok(line.clone()) } else { Err(list.to_string()) }
    })
    .await
}

#[tokio::test]
async fn what_failed_is_redelivered_once_its_receiver_is_mended_until_it_is_erased() -> anyhow::Result<()> {
    let team = with_log("redeliver").await?;
    let mender = account(&team, "mender", "hookwright-admin").await?;
    let viewer = account(&team, "viewer", "hookwright-viewer").await?;
    let selector = "spec.webhook=broken,spec.eventType=order.created";
    let failed = in_state(&team, selector, "Failed").await?;
    let name = failed["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    team.await_webhook("broken", "both counted", |webhook| webhook["status"]["failureCount"] == 2).await?;
    for what in ["redeliver", "expunge"] {
        let refusal = change(&team, &viewer, &name, what).await?.unwrap_err();
        assert!(refusal.contains("Forbidden"), "{refusal}");
    }

    team.receiver.answer("/broken", Answer::ok());
    let queued: Value = serde_json::from_str(&change(&team, &mender, &name, "redeliver").await?.unwrap())?;
    assert_eq!((&queued["kind"], &queued["requestedBy"]), (&json!("DeliveryRedelivery"), &json!(mender)));
    let sent = team.receiver.await_requests("/broken", 3, SOON).await?.remove(2);
    assert_eq!(sent.header("webhook-id"), Some(&*name));
    assert_eq!(sent.json()?, json!({"canary": "payload"}));
    let done = in_state(&team, selector, "Success").await?;
    assert_eq!(done["metadata"]["name"], json!(name));
    let attempts = &done["status"]["attempts"];
    assert_eq!((&attempts[0]["requestedBy"], &attempts[1]["requestedBy"]), (&Value::Null, &json!(mender)));
    assert_eq!(done["status"].get("redelivery"), None, "it waits no more");
    let webhook = team
        .await_webhook("broken", "the success", |webhook| {
            webhook["status"]["deliveries"].as_array().is_some_and(|all| {
                all.iter().any(|one| one["id"] == json!(name) && one["state"] == "Success")
            })
        })
        .await?;
    assert_eq!(webhook["status"]["failureCount"], 2, "it has failed, and was mended");

    let held = in_state(&team, "spec.webhook=paused,spec.eventType=order.created", "Held").await?;
    let held = held["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let refusal = change(&team, &mender, &held, "redeliver").await?.unwrap_err();
    assert!(refusal.contains("(Conflict)") && refusal.contains("it is Held (Paused)"), "{refusal}");

    let erased: Value = serde_json::from_str(&change(&team, &mender, &name, "expunge").await?.unwrap())?;
    assert_eq!((&erased["deliveries"], &erased["ended"]), (&json!(3), &json!(1)), "of all three Webhooks");
    let path = format!("{BASE}/namespaces/{}/deliveries/{name}/payload", team.namespace);
    let gone = refused(&team, &["get", "--raw", &path]).await?;
    assert!(gone.contains(&format!("erased by {mender}")), "{gone}");
    let refusal = change(&team, &mender, &name, "redeliver").await?.unwrap_err();
    assert!(refusal.contains("(Conflict)") && refusal.contains("erased by"), "{refusal}");
    let ended = get(&team, &["dlv", &held, "-o", "json"]).await?;
    let ended: Value = serde_json::from_str(&ended)?;
    let status = &ended["status"];
    assert_eq!((&status["state"], &status["reason"]), (&json!("Failed"), &json!("Expunged")));
    assert_eq!(status["expunged"]["by"], json!(mender));
    Ok(())
}

#[tokio::test]
async fn kubectl_says_what_is_sent_and_what_cannot_be_deleted() -> anyhow::Result<()> {
    let team = team("says").await?;
    let gate = Gate::closed();
    team.receiver.answer("/slow", Answer::ok().behind(&gate));
    team.receiver.answer("/broken", Answer::status(503));
    team.webhook("slow", json!({"eventTypes": ["slow.*"]})).await?;
    team.webhook("broken", json!({"eventTypes": ["broken.*"], "maxRetries": 0})).await?;
    let strange = format!("slow.\u{202e}{}", "x".repeat(180));
    team.publish("slow.one", &json!({})).await?;
    team.batch(&[Event::new("strange", &strange, json!({}))]).await?;
    team.publish("broken.one", &json!({})).await?;
    let words = |text: &str| -> Vec<Vec<String>> {
        lines(text).iter().map(|row| row.split_whitespace().map(ToOwned::to_owned).collect()).collect()
    };
    let sending = eventually(SOON, "both to be sent", async || {
        let table = get(&team, &["dlv", "--no-headers", "--field-selector", "spec.webhook=slow"]).await;
        let table = table.map_err(|error| error.to_string())?;
        let rows = words(&table);
        if rows.iter().filter(|row| row[6] == "sending").count() == 2 { Ok(rows) } else { Err(table) }
    })
    .await?;
    assert!(sending.iter().all(|row| row[3] == "Pending" && row.len() == 8), "{sending:?}");
    let shown = format!(r"slow.\u{{202e}}{}…", "x".repeat(26));
    assert!(sending.iter().any(|row| row[2] == shown), "{sending:?}");
    gate.open();

    let failed = in_state(&team, "spec.webhook=broken", "Failed").await?;
    assert_eq!(
        (&failed["spec"]["eventSource"], &failed["status"]["reason"]),
        (&json!("/harness"), &json!("RetriesExhausted"))
    );
    let name = failed["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let mender = account(&team, "mender", "hookwright-admin").await?;
    change(&team, &mender, &name, "redeliver").await?.unwrap();
    let again = eventually(SOON, "the redelivery to fail", async || {
        let line = get(&team, &["dlv", &name, "-o", "json"]).await.map_err(|error| error.to_string())?;
        let line: Value = serde_json::from_str(&line).unwrap_or_default();
        let is_done = line["status"]["attempts"].as_array().is_some_and(|all| all.len() == 2);
        if is_done { Ok(line) } else { Err(line.to_string()) }
    })
    .await?;
    let status = &again["status"];
    assert_eq!(
        (&status["state"], &status["reason"], &status["retryCount"]),
        (&json!("Failed"), &json!("RedeliveryFailed"), &json!(0))
    );

    for what in [&["delete", "dlv", &name][..], &["delete", "dlv", "--all"]] {
        let told = refused(&team, &[what, &["-n", &team.namespace]].concat()).await?;
        assert!(told.contains("deliveries are a log") && told.contains("deliveries/NAME/expunge"), "{told}");
    }
    let collection = format!("{BASE}/namespaces/{}/deliveries", team.namespace);
    let told = refused(&team, &["delete", "--raw", &collection]).await?;
    assert_eq!(told.matches("deliveries are a log").count(), 1, "{told}");

    team.webhook("paused", json!({"active": false})).await?;
    team.apply("waits", json!({"signing": {"secretRefs": [{"name": "none", "key": "secret"}]}})).await?;
    for (webhook, state) in [("slow", "Active"), ("paused", "Paused"), ("waits", "NotReady")] {
        team.await_webhook(webhook, state, |webhook| webhook["status"]["state"] == state).await?;
        let rows = words(&get(&team, &["hook", webhook, "--no-headers"]).await?);
        assert_eq!(rows[0][3], state, "{rows:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_typed_client_lists_pages_and_gets() -> anyhow::Result<()> {
    let team = with_log("typed").await?;
    let kubeconfig = Kubeconfig::read_from(team.world.plane.kubeconfig_path())?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = kube::Client::try_from(config)?;
    let api = kube::Api::<Delivery>::namespaced(client, &team.namespace);
    let (mut found, mut params) = (Vec::new(), ListParams::default().limit(4));
    loop {
        let page = api.list(&params).await?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(found.len(), 6);
    let first = &found[0];
    let one = api.get(first.metadata.name.as_deref().unwrap_or_default()).await?;
    assert_eq!(&one, first);
    let held = api.list(&ListParams::default().fields("status.state=Held")).await?;
    assert!(held.items.iter().all(|line| line.spec.webhook_ref.name == "paused"));
    let state = held.items[0].status.as_ref().map(|status| (status.state, status.reason.as_deref()));
    assert_eq!(state, Some((DeliveryState::Held, Some("Paused"))));
    Ok(())
}

#[tokio::test]
async fn the_dynamic_client_of_client_go_lists_pages_and_gets() -> anyhow::Result<()> {
    let team = with_log("dynamic").await?;
    let run = async |program: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(program);
        direct(&mut command).args(arguments);
        let output = tokio::process::Command::from(command).output().await?;
        Output::from(output).ok(program)
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/control-plane/client.sh");
    let program = run("bash", &[script]).await?;
    let kubeconfig = team.world.plane.kubeconfig_path().to_str().unwrap_or_default();
    let read = run(program.trim(), &[kubeconfig, &team.namespace]).await?;
    let names = get(&team, &["dlv", "-o", "name"]).await?;
    let names: Vec<_> = lines(&names).into_iter().filter_map(|name| name.split('/').nth(1)).collect();
    assert_eq!(names.len(), 6);
    assert_eq!(lines(&read), names);
    Ok(())
}
