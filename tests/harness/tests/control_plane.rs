//! The harness itself: what it starts works, and nothing of it is left behind.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use hookwright_harness::{
    control_plane::{ControlPlane, shared},
    wait::eventually,
};

/// Set for the copy of this program that is to be killed.
const VICTIM: &str = "HOOKWRIGHT_HARNESS_VICTIM";

#[tokio::test]
async fn two_control_planes_at_once_are_two_clusters() {
    let begun = Instant::now();
    let (one, other) = tokio::join!(ControlPlane::start(), ControlPlane::start());
    let (one, other) = (one.unwrap(), other.unwrap());
    eprintln!("two control planes started in {:?}", begun.elapsed());
    one.kubectl().ok(&["create", "configmap", "here"]).await.unwrap();
    let elsewhere = other.kubectl().get_json("configmap", "default", "here").await.unwrap_err();
    assert!(elsewhere.to_string().contains("NotFound"), "{elsewhere}");

    let folder = one.folder().to_owned();
    let processes = one.process_ids().await;
    one.stop();
    assert!(!folder.exists());
    assert_eq!(processes.iter().filter(|id| runs(**id)).count(), 0);
}

#[tokio::test]
async fn an_applied_config_map_is_read_back_and_watched() {
    let plane = shared().await;
    let namespace = plane.namespace("harness").await.unwrap();
    let kubectl = plane.kubectl();
    let write = async |colour: &str| {
        let yaml = format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: paint, namespace: {namespace}}}, data: {{colour: {colour}}}}}"
        );
        kubectl.apply(&yaml).await.unwrap();
    };
    let object = ("configmap", namespace.as_str(), "paint");
    let turns_red =
        kubectl.wait_for(object, Duration::from_secs(20), "red", |seen| seen["data"]["colour"] == "red");
    let paint = async {
        write("blue").await;
        write("red").await;
    };
    let (seen, ()) = tokio::join!(turns_red, paint);
    assert_eq!(seen.unwrap()["metadata"]["name"], "paint");
    let read = kubectl.get_json("configmap", &namespace, "paint").await.unwrap();
    assert_eq!(read["data"]["colour"], "red");
}

#[tokio::test]
async fn an_aggregated_api_finds_the_front_proxy_authority() {
    let map = shared()
        .await
        .kubectl()
        .get_json("configmap", "kube-system", "extension-apiserver-authentication")
        .await
        .unwrap();
    let data = &map["data"];
    assert!(data["requestheader-client-ca-file"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE"));
    assert_eq!(data["requestheader-allowed-names"], r#"["front-proxy-client"]"#);
}

#[tokio::test]
async fn a_namespace_with_something_in_it_is_deleted_to_the_end() {
    let plane = shared().await;
    let namespace = plane.namespace("goes").await.unwrap();
    let kubectl = plane.kubectl();
    kubectl.ok(&["create", "configmap", "inside", "-n", &namespace]).await.unwrap();
    kubectl.delete("namespace", "", &namespace).await.unwrap();
}

#[tokio::test]
async fn a_service_account_token_has_the_rights_it_was_given_and_no_more() {
    let plane = shared().await;
    let namespace = plane.namespace("rights").await.unwrap();
    let kubectl = plane.kubectl();
    kubectl.ok(&["create", "serviceaccount", "reader", "-n", &namespace]).await.unwrap();
    let subject = format!("--serviceaccount={namespace}:reader");
    let binding = ["create", "rolebinding", "view", "--clusterrole=view", &subject, "-n", &namespace];
    kubectl.ok(&binding).await.unwrap();
    let token = plane.token(&namespace, "reader", None).await.unwrap();
    let reader = kubectl.with_kubeconfig(plane.kubeconfig_for_token(&token).unwrap());
    eventually(Duration::from_secs(10), "the role to be in force", async || {
        reader.list_json("configmap", &namespace, "").await.map_err(|error| error.to_string())
    })
    .await
    .unwrap();
    let refused = reader.list_json("secret", &namespace, "").await.unwrap_err();
    assert!(refused.to_string().contains("Forbidden"), "{refused}");
}

#[tokio::test]
async fn an_apiserver_that_was_away_comes_back_with_everything() {
    let plane = ControlPlane::start().await.unwrap();
    let namespace = plane.namespace("stays").await.unwrap();
    plane.stop_apiserver().await.unwrap();
    plane.kubectl().ok(&["get", "namespaces"]).await.unwrap_err();
    plane.start_apiserver().await.unwrap();
    plane.kubectl().get_json("namespace", "", &namespace).await.unwrap();
}

#[tokio::test]
async fn a_cluster_that_is_given_by_its_kubeconfig_is_used_and_left_alone() {
    let plane = shared().await;
    let given = ControlPlane::connect(plane.kubeconfig_path()).await.unwrap();
    assert_eq!((given.server_url(), given.ca_pem()), (plane.server_url(), plane.ca_pem()));
    let namespace = given.namespace("given").await.unwrap();
    given.stop_apiserver().await.unwrap_err();
    given.stop();
    plane.kubectl().get_json("namespace", "", &namespace).await.unwrap();
}

/// Not a test by itself: the next one runs it in a process of its own, and kills that.
#[tokio::test]
async fn victim_of_the_next_test() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let plane = ControlPlane::start().await.unwrap();
    let processes: Vec<_> = plane.process_ids().await.iter().map(ToString::to_string).collect();
    eprintln!("victim {} {}", plane.folder().display(), processes.join(" "));
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_test_process_leaves_nothing_behind() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim_of_the_next_test", "--nocapture"])
        .env(VICTIM, "yes")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stderr.take().unwrap());
    let line = tokio::task::spawn_blocking(move || {
        lines.lines().map_while(Result::ok).find_map(|line| Some(line.split_once("victim /")?.1.to_owned()))
    });
    let line = line.await.unwrap().expect("the victim says what it started");
    let mut words = line.split(' ');
    let folder = format!("/{}", words.next().unwrap());
    let processes: Vec<u32> = words.map(|word| word.parse().unwrap()).collect();
    assert_eq!(processes.iter().filter(|id| runs(**id)).count(), 3);
    assert!(Path::new(&folder).exists());

    victim.kill().unwrap();
    victim.wait().unwrap();
    eventually(Duration::from_secs(10), "processes and folder to be gone", async || {
        let left: Vec<_> = processes.iter().filter(|id| runs(**id)).collect();
        let folder_left = Path::new(&folder).exists();
        if left.is_empty() && !folder_left { Ok(()) } else { Err(format!("{left:?}, folder: {folder_left}")) }
    })
    .await
    .unwrap();
}

/// Whether a process is there and more than a zombie.
fn runs(id: u32) -> bool {
    let output = Command::new("ps").args(["-o", "stat=", "-p", &id.to_string()]).output().unwrap();
    let state = String::from_utf8_lossy(&output.stdout);
    !state.trim().is_empty() && !state.trim().starts_with('Z')
}
