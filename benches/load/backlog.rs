//! A great many deliveries that wait for a paused Webhook, a long log beside them, and a restart with both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::figures::{Figures, Goal, per_second, percentile};
use super::usage::memory;
use super::world::{BATCH, CONNECTIONS, Team, World};

/// After the flood: deliveries wait for hours, their flood lasts a minute.
const SETTLE: Duration = Duration::from_secs(15);

pub(crate) async fn measure(world: &Arc<World>, figures: &mut Figures) -> anyhow::Result<()> {
    let waiting = super::size("BACKLOG", 100_000) / BATCH * BATCH;
    let team = Team::of(world, "backlog").await?;
    let paused =
        |active: bool| team.webhook("paused", &json!({"active": active, "maxInFlight": CONNECTIONS}));
    let plain = team.webhook("plain", &json!({"maxInFlight": CONNECTIONS}));
    team.apply(vec![paused(false), team.webhook("other", &json!({})), plain]).await?;
    let finished = super::log::fill(world, super::size("LOG", 0)).await?;
    let usual = plain_batches(&team, super::size("EVENTS", 20_000) / BATCH * BATCH).await?;
    let pause = Duration::from_millis(4);
    team.latencies("warm", 300, pause, |_| "other").await?;
    let before = team.latencies("before", 1500, pause, |_| "other").await?;

    let peak = Peak::watch(world);
    team.batches("held", waiting, |_| "paused").await?;
    // What was taken in at full speed is still being put in order on the disk.
    tokio::time::sleep(SETTLE).await;
    let during = team.latencies("during", 1500, pause, |_| "other").await?;
    let slower = percentile(&during, 0.99) / percentile(&before, 0.99);
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    figures.add("deliveries that wait for a paused Webhook", waiting as f64, "", Goal::None);
    figures.add("another's p99 while they wait, times", slower, "", Goal::AtMost(1.5));

    let mut operator = world.operator.lock().await;
    operator.kill9();
    let begun = Instant::now();
    operator.start_process().await?;
    figures.add(
        format!("killed, and started with {waiting} pending and {finished} log entries: ready after"),
        begun.elapsed().as_secs_f64(),
        " s",
        Goal::AtMost(5.0),
    );
    drop(operator);

    let begun = Instant::now();
    team.apply(vec![paused(true)]).await?;
    let (drained, draining) = tokio::try_join!(
        async {
            team.await_count(&["/paused"], waiting).await?;
            Ok(per_second(waiting, begun.elapsed()))
        },
        // Few: what is measured beside them is how fast the rest goes.
        team.latencies("draining", 500, Duration::from_millis(10), |_| "other"),
    )?;
    figures.add("batches for a Webhook that is not paused: delivered", usual, "/s", Goal::None);
    figures.add("resumed: drained", drained, "/s", Goal::None);
    figures.add(
        "resumed: drained, of what batches are delivered at",
        drained / usual,
        "",
        Goal::AtLeast(0.9),
    );
    figures.add("another's p99 while they drain", percentile(&draining, 0.99), " ms", Goal::None);
    figures.add("memory throughout, at most", peak.end().await?, " MB", Goal::AtMost(200.0));
    Ok(())
}

/// How many events a second are delivered when nothing has waited: published, stored and sent at the same time.
async fn plain_batches(team: &Arc<Team>, events: usize) -> anyhow::Result<f64> {
    // Connections are opened once.
    team.batches("plain-warm", events / 4 / BATCH * BATCH, |_| "plain").await?;
    team.await_count(&["/plain"], events / 4 / BATCH * BATCH).await?;
    let (begun, target) = (Instant::now(), team.count(&["/plain"]) + events);
    team.batches("plain", events, |_| "plain").await?;
    team.await_count(&["/plain"], target).await?;
    Ok(per_second(events, begun.elapsed()))
}

/// The largest memory that is seen, over restarts.
struct Peak {
    stop: CancellationToken,
    watching: tokio::task::JoinHandle<f64>,
}

impl Peak {
    fn watch(world: &Arc<World>) -> Self {
        let (world, stop) = (Arc::clone(world), CancellationToken::new());
        let stopped = stop.clone();
        let watching = TaskTracker::new().spawn(async move {
            let mut peak: f64 = 0.0;
            let mut tick = tokio::time::interval(Duration::from_millis(200));
            while stopped.run_until_cancelled(tick.tick()).await.is_some() {
                // While it is being started anew there is none to look at.
                let process = world.operator.try_lock().ok().and_then(|operator| operator.id());
                let now = process.and_then(|process| memory(process, "VmRSS").ok());
                peak = peak.max(now.unwrap_or_default());
            }
            peak
        });
        Self { stop, watching }
    }

    async fn end(self) -> anyhow::Result<f64> {
        self.stop.cancel();
        Ok(self.watching.await?)
    }
}
