//! The operator of the harness: it runs with the chart's arguments and the chart's account. A shell
//! script stands in for Hookwright here, because the harness is built before it.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{
    os::unix::fs::PermissionsExt as _, os::unix::process::ExitStatusExt as _, path::PathBuf, time::Duration,
};

use hookwright_harness::{
    control_plane::shared,
    operator::{Operator, OperatorOptions},
    publisher,
    wait::eventually,
};

const STAND_IN: &str = "#!/bin/sh
echo \"arguments: $*\"
env | sed 's/^/environment: /'
trap 'echo terminated; exit 7' TERM
echo trapped
while :; do sleep 0.05; done
";

fn stand_in() -> PathBuf {
    let path = shared_file("stand-in");
    std::fs::write(&path, STAND_IN).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn shared_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Waits until so many stand-ins have said everything and would hear a signal; what they said.
async fn trapped(operator: &Operator, count: usize) -> String {
    let spoken = eventually(Duration::from_mins(1), "the stand-in to speak", async || {
        let log = operator.log();
        if log.lines().filter(|line| *line == "trapped").count() == count { Ok(log) } else { Err(log) }
    });
    spoken.await.unwrap()
}

#[tokio::test]
async fn the_operator_runs_as_the_chart_says_and_with_no_other_rights() {
    let plane = shared().await;
    let options = OperatorOptions::default().arg("--purge-grace=1s");
    let mut operator = Operator::install(plane, stand_in(), &options).await.unwrap();
    operator.spawn().unwrap();
    let log = trapped(&operator, 1).await;
    assert!(log.contains("environment: POD_IP="), "{log}");
    let arguments = log.lines().find(|line| line.starts_with("arguments: run ")).unwrap();
    for expected in [
        "--service=hookwright-system/hookwright",
        "--allow-cidr=127.0.0.0/8",
        "--purge-grace=1s",
        "--kubeconfig=",
        &format!("--listen={}", operator.address()),
        &format!("--data-dir={}", operator.data_dir().display()),
    ] {
        assert!(arguments.contains(expected), "{expected} in {arguments}");
    }
    assert_eq!(arguments.matches("--listen=").count(), 1, "{arguments}");
    assert!(!log.contains("HOME="), "{log}");
    assert_eq!(operator.server_name(), "hookwright.hookwright-system.svc");

    let as_operator = plane.kubectl().with_kubeconfig(operator.kubeconfig());
    as_operator.ok(&["get", "webhooks.hookwright.dev", "-A"]).await.unwrap();
    let refused = as_operator.ok(&["create", "namespace", "more"]).await.unwrap_err();
    assert!(refused.to_string().contains("Forbidden"), "{refused}");

    let namespace = plane.namespace("producer").await.unwrap();
    publisher::create_account(plane, &namespace, "producer").await.unwrap();

    assert_eq!(operator.sigterm().await.unwrap().code(), Some(7));
    operator.spawn().unwrap();
    trapped(&operator, 2).await;
    assert!(operator.id().is_some());
    operator.kill9();
    assert!(operator.id().is_none());
    operator.spawn().unwrap();
    trapped(&operator, 3).await;
    let not_ready = operator.await_ready(Duration::from_millis(200)).await.unwrap_err();
    assert!(not_ready.to_string().contains("arguments: run"), "{not_ready}");
    assert_eq!(operator.sigterm().await.unwrap().signal(), None);
    plane.helm().await.unwrap().uninstall("hookwright", "hookwright-system").await.unwrap();
}
