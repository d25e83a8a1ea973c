//! The operator on a disk whose writes fail.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hookwright_harness::control_plane::ControlPlane;
use hookwright_harness::operator::{Operator, OperatorOptions};
use hookwright_harness::publisher::Event;
use serde_json::{Value, json};

use crate::world::{Plane, SOON, Team, World, newest, unique};

/// A program that runs ours with a limit on the size of files, while there is a file `limit` beside it; a write beyond
/// the limit fails, and does not kill.
fn wrapper(folder: &Path) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = folder.join("hookwright");
    let program = env!("CARGO_BIN_EXE_hookwright");
    let script = format!(
        "#!/bin/bash\nif [ -e '{}' ]; then trap '' XFSZ; ulimit -f 6000; fi\nexec '{program}' \"$@\"\n",
        folder.join("limit").display()
    );
    let mut file = File::options().write(true).create_new(true).mode(0o700).open(&path)?;
    std::io::Write::write_all(&mut file, script.as_bytes())?;
    Ok(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_ends_the_process_and_its_next_start_loses_nothing() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let plane = ControlPlane::start().await?;
    let options = OperatorOptions::default().arg("--log=info");
    let operator = Operator::start(&plane, wrapper(folder.path())?, &options).await?;
    let world = Arc::new(World { plane: Plane::Own(Box::new(plane)), operator: operator.into() });
    let team = Team::of(&world, "fails").await?;
    team.webhook("live", json!({})).await?;
    team.webhook("paused", json!({"active": false})).await?;
    // The store makes its files larger than the limit, and empty.
    assert!(world.operator.lock().await.sigterm().await?.success());
    fs::write(folder.path().join("limit"), "")?;
    world.operator.lock().await.start_process().await?;

    let mut acknowledged = HashSet::new();
    let refusal = loop {
        anyhow::ensure!(acknowledged.len() < 10_000, "the disk has no end");
        let event = |_| Event::new(unique("fails"), "order.created", json!("x".repeat(1000)));
        let batch: Vec<_> = (0..100).map(event).collect();
        let answer = team.publisher.publish_batch(&team.namespace, &batch).await?;
        match answer.status {
            202 => acknowledged.extend(batch.into_iter().map(|event| event.id)),
            _ => break answer,
        }
    };
    assert_eq!(refusal.status, 503, "{}", refusal.json());
    assert!(refusal.headers.contains_key("retry-after"), "{:?}", refusal.headers);
    assert!(acknowledged.len() > 500, "the load was real: {} acknowledged", acknowledged.len());
    let status = world.operator.lock().await.ended(SOON).await?;
    assert_eq!(status.code(), Some(1), "a write that failed ends it: {status}");
    let log = world.operator.lock().await.log();
    assert!(log.contains("the store stopped writing"), "{log}");

    fs::remove_file(folder.path().join("limit"))?;
    world.operator.lock().await.start_process().await?;
    team.patch("paused", json!({"active": true})).await?;
    for name in ["live", "paused"] {
        let drained = |webhook: &Value| {
            webhook["status"]["pendingDeliveries"] == 0 && newest(webhook)["state"] == "Success"
        };
        team.await_webhook(name, "all delivered", drained).await?;
        let requests = team.receiver.requests(&format!("/{name}"));
        let arrived: HashSet<_> =
            requests.iter().filter_map(|request| request.header("ce-id").map(str::to_owned)).collect();
        let lost = acknowledged.difference(&arrived).count();
        assert_eq!(lost, 0, "of {} acknowledged never arrived at {name}", acknowledged.len());
    }
    Ok(())
}
