//! The rooms stay apart: what a lower room must not name.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources(room: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(room)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {room}");
    found
}

/// Lines of code (not comments) that use one of `names` as a path, such as `tokio::`.
fn uses(room: &str, names: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, text) in sources(room) {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let line = line.trim_start();
            if !line.starts_with("//") && names.iter().any(|name| names_crate(line, name)) {
                lines.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    lines
}

fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(&format!("{name}::")).any(|(at, _)| {
        !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
    })
}

#[test]
fn the_model_names_no_runtime_client_or_socket() {
    let found =
        uses("src/model", &["tokio", "kube", "k8s_openapi", "reqwest", "hyper", "h2", "axum", "fjall"]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_store_knows_no_kubernetes_and_no_http() {
    let found = uses("src/store", &["kube", "k8s_openapi", "reqwest", "hyper", "h2", "axum"]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_kinds_know_no_behaviour() {
    let found = uses("src/api", &["tokio", "reqwest", "hyper", "h2", "axum", "fjall"]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn lower_rooms_do_not_know_higher_ones() {
    let higher = ["crate::delivery", "crate::server", "crate::controller"];
    for room in ["src/api", "src/model", "src/store", "src/routes"] {
        let found: Vec<_> = sources(room)
            .into_iter()
            .flat_map(|(path, text)| {
                let code = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
                let name = path.display().to_string();
                code.lines()
                    .filter(|line| !line.trim_start().starts_with("//"))
                    .filter(|line| higher.iter().any(|other| line.contains(other)))
                    .map(|line| format!("{name}: {line}"))
                    .collect::<Vec<_>>()
            })
            .collect();
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn only_the_clock_asks_the_wall_clock() {
    let found: Vec<_> = uses("src", &["SystemTime"])
        .into_iter()
        .chain(uses("src", &["Timestamp"]).into_iter().filter(|line| line.contains("Timestamp::now")))
        .filter(|line| line.contains("::now(") && !line.contains("src/clock.rs"))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}
