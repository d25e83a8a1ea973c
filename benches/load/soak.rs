//! A long run at half load, with `kill -9` every 30 s.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hookwright_harness::wait::eventually;
use serde_json::json;
use tokio_util::task::TaskTracker;

use super::figures::{Figures, Goal, per_second};
use super::usage::{memory, on_disk};
use super::world::{BATCH, CONNECTIONS, LONG, Team, World, event};

/// Between two kills.
const KILL: Duration = Duration::from_secs(30);

/// What grows without end is beyond this in half an hour: 64 bytes for each event would be 600 MB by then. Below it is
/// how far a sample moves with where the log, its tables and the keys of duplicates just are between two cleanings.
const FLAT: f64 = 1.25;

/// What the operator uses.
struct Sample {
    at: Duration,
    /// In MB.
    memory: f64,
    files: f64,
    /// In MB.
    disk: f64,
}

/// Arguments of the operator for a scenario: a soak must show that space is given back.
pub(crate) fn arguments(scenario: &str) -> &'static [&'static str] {
    match scenario {
        "soak" => &["--retention-age=2m", "--retention-bytes=128000000", "--dedup-window=2m"],
        // What fills the log stays there.
        "backlog" => &["--retention-bytes=100000000000"],
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
    let samples = kill_until(world, Instant::now() + time).await?;
    let kills = samples.len();
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
        (
            "soak: arrived once more than once (an attempt under way when killed)",
            twice,
            Goal::AtMost((CONNECTIONS * kills) as f64),
        ),
    ] {
        figures.add(what, count as f64, "", goal);
    }
    for (what, growth) in [
        ("memory", growth(&samples, |sample| sample.memory)),
        ("number of files", growth(&samples, |sample| sample.files)),
        ("bytes on the disk", growth(&samples, |sample| sample.disk)),
    ] {
        let what = format!("soak: {what}, at most at the end beside earlier, times");
        figures.add(what, growth, "", Goal::AtMost(FLAT));
    }
    Ok(())
}

/// The largest of the last third beside the largest of minutes 5 to 10; in a run whose last third begins before minute
/// 10, beside that of the middle third.
fn growth(samples: &[Sample], of: fn(&Sample) -> f64) -> f64 {
    let largest = |from: Duration, to: Duration| {
        let within = samples.iter().filter(|sample| from <= sample.at && sample.at <= to);
        within.map(of).fold(f64::NAN, f64::max)
    };
    let end = samples.last().map_or(Duration::ZERO, |sample| sample.at);
    let last = end * 2 / 3;
    let earlier = if last >= Duration::from_mins(10) {
        largest(Duration::from_mins(5), Duration::from_mins(10))
    } else {
        largest(end / 3, last)
    };
    largest(last, end) / earlier
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

/// Kills again and again; notes, and prints, what the operator uses before each.
#[expect(clippy::cast_precision_loss, reason = "counts are small")]
async fn kill_until(world: &World, until: Instant) -> anyhow::Result<Vec<Sample>> {
    let begun = Instant::now();
    let mut samples = Vec::new();
    println!("\n| minute | memory | files | disk |\n| --- | --- | --- | --- |");
    while Instant::now() < until {
        tokio::time::sleep(KILL).await;
        let mut operator = world.operator.lock().await;
        let (files, bytes) = on_disk(&operator.data_dir())?;
        let memory = memory(operator.id().unwrap_or_default(), "VmRSS")?;
        let sample =
            Sample { at: begun.elapsed(), memory, files: files as f64, disk: bytes as f64 / 1_000_000.0 };
        let minute = sample.at.as_secs_f64() / 60.0;
        println!("| {minute:.1} | {memory:.0} MB | {files} | {:.0} MB |", sample.disk);
        samples.push(sample);
        operator.kill9();
        operator.start_process().await?;
    }
    Ok(samples)
}
