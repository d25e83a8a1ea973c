//! The operator on a disk that fills.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hookwright_harness::publisher::{Answer as Answered, Event};
use hookwright_harness::receiver::Answer;
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};

use crate::world::{SOON, Team, World, newest, unique};

fn free(path: &Path) -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Space that nobody else can use, until it is dropped.
struct Ballast {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Ballast {
    fn beside(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("ballast");
        Ok(Self { file: File::create(&path)?, path, bytes: 0 })
    }

    /// Leaves at most so many bytes free, of which others may use or free some meanwhile.
    fn leave(&mut self, most: u64) -> anyhow::Result<()> {
        let more = free(&self.path)?.saturating_sub(most);
        if more > 0 {
            rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), self.bytes, more)?;
            self.bytes += more;
        }
        Ok(())
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// One such test at a time uses the disk of this machine, whoever runs it.
async fn alone_on_the_disk() -> anyhow::Result<File> {
    let wait = || {
        let path = std::env::temp_dir().join("hookwright-full-disk.lock");
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        file.lock()?;
        anyhow::Ok(file)
    };
    tokio::task::spawn_blocking(wait).await?
}

async fn published(team: &Team, data: &Value) -> anyhow::Result<Answered> {
    let event = Event::new(unique("full"), "order.created", data.clone());
    team.publisher.publish_binary(&team.namespace, &event).await
}

/// Publishes until it is refused in these words; answers how many were taken before.
async fn until_refused(team: &Team, words: &str) -> anyhow::Result<usize> {
    let mut taken = 0;
    eventually(SOON, words, async || {
        let answer = published(team, &json!({})).await.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        if answer.status == 503 && text.contains(words) && answer.headers.contains_key("retry-after") {
            return Ok(());
        }
        taken += usize::from(answer.status == 202);
        Err(format!("{} {:?} {text}", answer.status, answer.headers))
    })
    .await?;
    Ok(taken)
}

/// Publishes until it is taken: the store looks at the disk, and at who uses how much, once a second.
async fn until_taken(team: &Team) -> anyhow::Result<()> {
    eventually(Duration::from_secs(15), "an event to be taken", async || {
        let answer = published(team, &json!({})).await.map_err(|error| error.to_string())?;
        answer.accepted().map(drop).map_err(|error| error.to_string())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_refuses_who_publishes_delivers_what_waits_and_heals_by_itself()
-> anyhow::Result<()> {
    let _alone = alone_on_the_disk().await?;
    // The band in which the largest are refused is as wide as what is below it, so the disk is in the band already.
    let free_now = free(&std::env::temp_dir())?;
    let least = free_now - free_now / 5;
    let world = World::alone(&[&format!("--min-free-bytes={least}")]).await?;
    let (large, small) = (Team::of(&world, "large").await?, Team::of(&world, "small").await?);
    small.receiver.answer("/orders", Answer::ok().after(Duration::from_millis(700)));
    large.webhook("orders", json!({})).await?;
    small.webhook("orders", json!({"maxInFlight": 2})).await?;
    let (process, data) = {
        let operator = world.operator.lock().await;
        (operator.id(), operator.data_dir())
    };
    let readiness = async |path| {
        let answer = world.operator.lock().await.get(path).await?;
        anyhow::Ok((answer.status().as_u16(), answer.text().await?))
    };

    published(&large, &json!("x".repeat(900_000))).await?.accepted()?;
    until_refused(&large, &format!("namespace {} uses more of it", large.namespace)).await?;
    for _ in 0..10 {
        until_taken(&small).await?;
    }
    let (status, text) = readiness("/readyz?verbose").await?;
    assert!(status == 200 && text.contains("[+]store ok"), "others are served: {status} {text}");

    let mut ballast = Ballast::beside(data.parent().expect("it has a folder of its own"))?;
    ballast.leave(least - free_now / 32)?;
    let sentence = "too little room on the disk of the data directory";
    let taken = 10 + until_refused(&small, sentence).await?;
    assert!(small.receiver.count("/orders") < taken, "some still wait");
    for path in ["/readyz?verbose", "/readyz"] {
        let (status, text) = readiness(path).await?;
        assert_eq!(status, 200, "{text}");
        assert!(text.contains(&format!("[!]store warns: {sentence}")), "{text}");
        assert!(text.ends_with("readyz check passed\n"), "{text}");
    }
    small.receiver.await_requests("/orders", taken, SOON).await?;
    let done = |webhook: &Value| {
        webhook["status"]["pendingDeliveries"] == 0 && newest(webhook)["state"] == "Success"
    };
    small.await_webhook("orders", "all delivered", done).await?;
    until_refused(&small, sentence).await?;
    assert_eq!(small.receiver.count("/orders"), taken, "each once: all outcomes are on the full disk");

    drop(ballast);
    until_taken(&small).await?;
    let (status, text) = readiness("/readyz?verbose").await?;
    assert!(status == 200 && text.contains("[+]store ok"), "{status} {text}");
    small.receiver.await_requests("/orders", taken + 1, SOON).await?;
    assert_eq!(world.operator.lock().await.id(), process, "nobody had to restart it");
    Ok(())
}
