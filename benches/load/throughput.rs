//! One endpoint, and one event for a hundred, beside the ceiling; and how long a lone event travels.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hookwright_harness::publisher::Publisher;
use serde_json::json;

use super::figures::{Figures, Goal, per_second, percentile};
use super::usage::{cpu, memory, on_disk, written};
use super::world::{CONNECTIONS, PAYLOAD, Team, World, event, in_parallel, sized_event};

const FAN: usize = 100;
/// Bytes of an event of which is asked how often it is stored.
const LARGE: usize = 64 << 10;

pub(crate) async fn measure(world: &Arc<World>, figures: &mut Figures) -> anyhow::Result<()> {
    let events = super::size("EVENTS", 20_000);
    let team = Team::of(world, "throughput").await?;
    let spec = json!({"maxInFlight": CONNECTIONS});
    let all = json!({"eventTypes": ["fan"], "url": world.receiver.url("hooks", "/fan")});
    let fan = (0..FAN).map(|n| team.webhook(&format!("fan{n}"), &all));
    team.apply(fan.chain([team.webhook("one", &spec)]).collect()).await?;

    // First, since nothing else is on the disk yet, nor leaves it.
    let copies = copies(&team, 20).await?;
    // Once unmeasured, so that every run finds warm caches and open connections.
    ceiling(world, events / 4, CONNECTIONS).await?;
    batches(&team, "warm", events / 4).await?;
    let before = per_second(events, ceiling(world, events, CONNECTIONS).await?);
    let multiplexed = per_second(events, ceiling(world, events, 1).await?);
    let (wrote, from) = (written(world.process().await)?, team.count(&["/one"]));
    let spent = cpu(world.process().await)?;
    let (accepted, delivered) = batches(&team, "batch", events).await?;
    let spent = cpu(world.process().await)?.saturating_sub(spent);
    let loaded = latencies_under_load(&team, events).await?;
    let (single_accepted, single_delivered) = singles(&team, events / 2).await?;
    let wrote = written(world.process().await)? - wrote;
    let received = team.count(&["/one"]) - from;
    let fanned = fan_out(&team, events / FAN).await?;
    let lone = team.latencies("lone", 300, Duration::from_millis(20), |_| "one").await?;
    let after = per_second(events, ceiling(world, events, CONNECTIONS).await?);
    let ceiling = f64::midpoint(before, after);

    figures.add("ceiling: 64 connections straight to the receiver", ceiling, "/s", Goal::None);
    figures.add("the same over a single HTTP/2 connection", multiplexed, "/s", Goal::None);
    let speeds = [
        ("batches of 100: accepted", per_second(events, accepted), None),
        ("batches of 100: delivered", per_second(events, delivered), Some(0.6)),
        ("single publishes, 64 connections: accepted", per_second(events / 2, single_accepted), None),
        ("single publishes, 64 connections: delivered", per_second(events / 2, single_delivered), Some(0.35)),
        ("1 event → 100 Webhooks: delivered", per_second(events / FAN * FAN, fanned), Some(0.7)),
    ];
    for (what, speed, goal) in speeds {
        figures.add(what, speed, "/s", Goal::None);
        let goal = goal.map_or(Goal::None, Goal::AtLeast);
        figures.add(format!("{what}, of the ceiling"), speed / ceiling, "", goal);
    }
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let per_thousand = spent.as_secs_f64() / (events as f64 / 1000.0);
    figures.add("operator's CPU for 1,000 deliveries in batches", per_thousand, " s", Goal::AtMost(0.15));
    figures.add(
        "published → received under half load, p50",
        percentile(&loaded, 0.5),
        " ms",
        Goal::AtMost(10.0),
    );
    figures.add(
        "published → received under half load, p99",
        percentile(&loaded, 0.99),
        " ms",
        Goal::AtMost(50.0),
    );
    figures.add("published → received, a lone event, p50", percentile(&lone, 0.5), " ms", Goal::AtMost(3.0));
    figures.add(
        "published → received, a lone event, p99",
        percentile(&lone, 0.99),
        " ms",
        Goal::AtMost(10.0),
    );
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let amplified = wrote / (received * PAYLOAD) as f64;
    // Nothing at all is not a figure: then the directory is on no disk.
    let amplified = if amplified > 0.0 { amplified } else { f64::NAN };
    let what = "written to disk for each byte of event, batches and singles";
    figures.add(what, amplified, " bytes", Goal::AtMost(6.0));
    let what = "on the disk for each byte of an event of 64 KiB for 100 Webhooks";
    figures.add(what, copies, " bytes", Goal::AtMost(10.0));
    let peak = memory(world.process().await, "VmHWM")?;
    figures.add("peak memory of the operator", peak, " MB", Goal::None);
    Ok(())
}

/// How long it takes to post events straight to the receiver, over so many connections.
async fn ceiling(world: &Arc<World>, events: usize, connections: usize) -> anyhow::Result<Duration> {
    let address = ([127, 0, 0, 1], world.receiver.port()).into();
    let direct = (0..connections)
        .map(|_| Publisher::new(address, "hooks.localhost", world.receiver.ca_pem(), "as long as a token"))
        .collect::<Result<Arc<[_]>, _>>()?;
    let begun = Instant::now();
    in_parallel(events, move |task, number| {
        let direct = Arc::clone(&direct);
        async move {
            let event = event(&format!("direct-{number}"), "one");
            let publisher = direct.get(task % direct.len()).context("a publisher")?;
            let (headers, body) = (event.binary_headers(), event.data.to_string());
            let answer = publisher.send(http::Method::POST, "/ceiling", &headers, body).await?;
            anyhow::ensure!(answer.status == 200, "the receiver answered {}", answer.status);
            Ok(())
        }
    })
    .await?;
    Ok(begun.elapsed())
}

/// Times until all batches are accepted, and until all their events are received.
async fn batches(team: &Arc<Team>, run: &'static str, events: usize) -> anyhow::Result<(Duration, Duration)> {
    let target = team.count(&["/one"]) + events;
    let begun = Instant::now();
    team.batches(run, events, |_| "one").await?;
    let accepted = begun.elapsed();
    team.await_count(&["/one"], target).await?;
    Ok((accepted, begun.elapsed()))
}

async fn singles(team: &Arc<Team>, events: usize) -> anyhow::Result<(Duration, Duration)> {
    let target = team.count(&["/one"]) + events;
    let begun = Instant::now();
    let publishing = Arc::clone(team);
    in_parallel(events, move |task, number| {
        let team = Arc::clone(&publishing);
        async move {
            let event = event(&format!("single-{number}"), "one");
            team.publisher(task)?.publish_binary(team.namespace, &event).await?.accepted()?;
            Ok(())
        }
    })
    .await?;
    let accepted = begun.elapsed();
    team.await_count(&["/one"], target).await?;
    Ok((accepted, begun.elapsed()))
}

/// Bytes by which the data directory has grown for each byte of large events, each for [`FAN`] Webhooks: a hundred and
/// more if each delivery had a body of its own. Journal, tables and the log's lines are in it, before any compaction.
#[expect(clippy::cast_precision_loss, reason = "counts are small")]
async fn copies(team: &Arc<Team>, events: usize) -> anyhow::Result<f64> {
    let directory = team.world.operator.lock().await.data_dir();
    let (_, before) = on_disk(&directory)?;
    for number in 0..events {
        let event = sized_event(&format!("large-{number}"), "fan", LARGE);
        team.publisher(0)?.publish_binary(team.namespace, &event).await?.accepted()?;
        // One at a time: the peak of memory, which is asked for at the end, is not to be that of these.
        team.await_count(&["/fan"], (number + 1) * FAN).await?;
    }
    let (_, after) = on_disk(&directory)?;
    Ok((after as f64 - before as f64) / (events * LARGE) as f64)
}

async fn fan_out(team: &Arc<Team>, events: usize) -> anyhow::Result<Duration> {
    // Connections are opened once.
    let target = team.count(&["/fan"]) + 100 * FAN;
    team.batches("fan-warm", 100, |_| "fan").await?;
    team.await_count(&["/fan"], target).await?;
    let target = team.count(&["/fan"]) + events * FAN;
    let begun = Instant::now();
    let publishing = Arc::clone(team);
    in_parallel(events, move |task, number| {
        let team = Arc::clone(&publishing);
        async move {
            let event = event(&format!("fan-{number}"), "fan");
            team.publisher(task)?.publish_binary(team.namespace, &event).await?.accepted()?;
            Ok(())
        }
    })
    .await?;
    team.await_count(&["/fan"], target).await?;
    Ok(begun.elapsed())
}

/// Of one event every 5 ms, while batches keep the system about half busy.
async fn latencies_under_load(team: &Arc<Team>, events: usize) -> anyhow::Result<Vec<Duration>> {
    let pace = Instant::now();
    batches(team, "paced", events / 4).await?;
    // Twice the time that a batch takes at full speed.
    let pause = pace.elapsed() * 2 / u32::try_from(events / 4 / super::world::BATCH)?.max(1);
    let stop = tokio_util::sync::CancellationToken::new();
    let loading = {
        let (team, stop) = (Arc::clone(team), stop.clone());
        tokio_util::task::TaskTracker::new().spawn(async move {
            let mut tick = tokio::time::interval(pause);
            for number in 0.. {
                if stop.run_until_cancelled(tick.tick()).await.is_none() {
                    break;
                }
                let ids = 0..super::world::BATCH;
                let batch: Vec<_> = ids.map(|n| event(&format!("half-{number}-{n}"), "one")).collect();
                team.publisher(1)?.publish_batch(team.namespace, &batch).await?.accepted()?;
            }
            anyhow::Ok(())
        })
    };
    let took = team.latencies("loaded", 600, Duration::from_millis(5), |_| "one").await?;
    stop.cancel();
    loading.await??;
    Ok(took)
}
