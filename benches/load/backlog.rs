//! A great many deliveries that wait for a paused Webhook, and a restart with them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::figures::{Figures, Goal, per_second, percentile};
use super::world::{BATCH, CONNECTIONS, Team, World, memory};

/// After the flood: deliveries wait for hours, their flood lasts a minute.
const SETTLE: Duration = Duration::from_secs(15);

pub(crate) async fn measure(world: &Arc<World>, figures: &mut Figures) -> anyhow::Result<()> {
    let waiting = super::size("BACKLOG", 100_000) / BATCH * BATCH;
    let team = Team::of(world, "backlog").await?;
    let paused =
        |active: bool| team.webhook("paused", &json!({"active": active, "maxInFlight": CONNECTIONS}));
    team.apply(vec![paused(false), team.webhook("other", &json!({}))]).await?;
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
        "killed and started with them: ready after",
        begun.elapsed().as_secs_f64(),
        " s",
        Goal::AtMost(5.0),
    );
    drop(operator);

    let begun = Instant::now();
    team.apply(vec![paused(true)]).await?;
    team.await_count(&["/paused"], waiting).await?;
    let drained = per_second(waiting, begun.elapsed());
    figures.add("resumed: drained", drained, "/s", Goal::None);
    figures.add("memory throughout, at most", peak.end().await?, " MB", Goal::AtMost(200.0));
    Ok(())
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
