//! A long run at half load, with `kill -9` every 30 s.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hookwright_harness::wait::eventually;
use serde_json::json;
use tokio_util::task::TaskTracker;

use super::figures::{Figures, Goal, per_second};
use super::world::{BATCH, CONNECTIONS, LONG, Team, World, event, memory};

/// Between two kills.
const KILL: Duration = Duration::from_secs(30);

/// Arguments of the operator for a scenario: a soak must show that space is given back.
pub(crate) fn arguments(scenario: &str) -> &'static [&'static str] {
    match scenario {
        "soak" => &["--retention-age=2m", "--retention-bytes=128000000"],
        _ => &[],
    }
}

/// How often each batch was acknowledged and each of its events arrived, by number.
#[derive(Default)]
struct Books {
    acknowledged: Vec<usize>,
    arrived: Vec<u8>,
}

pub(crate) async fn measure(world: &Arc<World>, figures: &mut Figures) -> anyhow::Result<()> {
    let time = Duration::from_secs(60 * u64::try_from(super::size("MINUTES", 5))?);
    let team = Team::of(world, "soak").await?;
    team.apply(vec![team.webhook("soak", &json!({"maxRetries": 20, "maxInFlight": CONNECTIONS}))]).await?;
    let pause = half_load(&team).await?;
    let books = Arc::new(Mutex::new(Books::default()));
    note_arrivals(world, &books);

    let end = Arc::new(AtomicBool::new(false));
    let publishing = {
        let (team, books, end) = (Arc::clone(&team), Arc::clone(&books), Arc::clone(&end));
        TaskTracker::new().spawn(async move { publish(&team, &books, &end, pause).await })
    };
    let kills = kill_until(world, Instant::now() + time).await?;
    end.store(true, Ordering::SeqCst);
    publishing.await??;

    let lost = || {
        let books = books.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |number: &usize| books.arrived.get(*number).copied().unwrap_or_default() == 0;
        let lost =
            books.acknowledged.iter().flat_map(|batch| batch * BATCH..(batch + 1) * BATCH).filter(missing);
        (lost.count(), books.acknowledged.len() * BATCH)
    };
    let _ = eventually(LONG, "all to arrive", async || match lost() {
        (0, _) => Ok(()),
        (lost, _) => Err(format!("{lost} are missing")),
    })
    .await;
    let (lost, acknowledged) = lost();
    let twice = {
        let books = books.lock().unwrap_or_else(PoisonError::into_inner);
        books.arrived.iter().map(|count| usize::from(count.saturating_sub(1))).sum::<usize>()
    };
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    for (what, count, goal) in [
        ("soak: kill -9", kills, Goal::None),
        ("soak: events acknowledged", acknowledged, Goal::None),
        ("soak: of these lost", lost, Goal::AtMost(0.0)),
        ("soak: arrived once more than once (an attempt under way when killed)", twice, Goal::None),
    ] {
        figures.add(what, count as f64, "", goal);
    }
    Ok(())
}

/// How long to wait between two batches for about half of what one endpoint takes.
async fn half_load(team: &Arc<Team>) -> anyhow::Result<Duration> {
    let events = 10_000;
    team.batches("warm", events, |_| "soak").await?;
    team.await_count(&["/soak"], events).await?;
    let begun = Instant::now();
    team.batches("full", events, |_| "soak").await?;
    team.await_count(&["/soak"], 2 * events).await?;
    eprintln!("    full speed {:.0}/s", per_second(events, begun.elapsed()));
    Ok(begun.elapsed() * 2 / u32::try_from(events / BATCH)?)
}

fn note_arrivals(world: &World, books: &Arc<Mutex<Books>>) {
    let books = Arc::clone(books);
    world.watch(move |request| {
        let number = request.header("ce-id").and_then(|id| id.strip_prefix("soak-")?.parse::<usize>().ok());
        let Some(number) = number else { return };
        let mut books = books.lock().unwrap_or_else(PoisonError::into_inner);
        if books.arrived.len() <= number {
            books.arrived.resize(number + 10_000, 0);
        }
        if let Some(count) = books.arrived.get_mut(number) {
            *count = count.saturating_add(1);
        }
    });
}

/// A batch after each pause; one that was not acknowledged is published again, with the same ids.
async fn publish(team: &Team, books: &Mutex<Books>, end: &AtomicBool, pause: Duration) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(pause);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let next = AtomicUsize::new(0);
    while !end.load(Ordering::SeqCst) {
        tick.tick().await;
        let batch = next.fetch_add(1, Ordering::Relaxed);
        let numbers = batch * BATCH..(batch + 1) * BATCH;
        let events: Vec<_> = numbers.map(|n| event(&format!("soak-{n}"), "soak")).collect();
        loop {
            let answer = team.publisher(batch)?.publish_batch(team.namespace, &events).await;
            if answer.is_ok_and(|answer| answer.accepted().is_ok()) {
                books.lock().unwrap_or_else(PoisonError::into_inner).acknowledged.push(batch);
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// Kills again and again, and prints what the operator uses before each.
async fn kill_until(world: &World, until: Instant) -> anyhow::Result<usize> {
    let begun = Instant::now();
    let mut kills = 0;
    println!("\n| minute | memory | files | disk |\n| --- | --- | --- | --- |");
    while Instant::now() < until {
        tokio::time::sleep(KILL).await;
        let mut operator = world.operator.lock().await;
        let (files, bytes) = usage(&operator.data_dir())?;
        let memory = memory(operator.id().unwrap_or_default(), "VmRSS")?;
        let minute = begun.elapsed().as_secs_f64() / 60.0;
        println!("| {minute:.1} | {memory:.0} MB | {files} | {} MB |", bytes / 1_000_000);
        operator.kill9();
        operator.start_process().await?;
        kills += 1;
    }
    Ok(kills)
}

/// Files under a directory, and their bytes on the disk.
fn usage(directory: &std::path::Path) -> anyhow::Result<(usize, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let (mut files, mut bytes) = (0, 0);
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // What a compaction removes meanwhile is not counted.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            let (more, size) = usage(&entry.path())?;
            (files, bytes) = (files + more, bytes + size);
        } else {
            (files, bytes) = (files + 1, bytes + 512 * metadata.blocks());
        }
    }
    Ok((files, bytes))
}
