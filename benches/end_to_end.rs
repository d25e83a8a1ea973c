//! End-to-end speed on loopback, with a real control plane, real TLS on both sides and synced commits, beside the
//! ceiling of the same run: the same client posting the same payloads to the same receiver, with no store.
//!
//! `cargo bench --bench end_to_end` (or `make bench`) prints one table. `EVENTS=n` sets the size.
#![allow(clippy::print_stdout, reason = "a bench is there to print")]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hookwright_harness::control_plane::ControlPlane;
use hookwright_harness::operator::{Operator, OperatorOptions};
use hookwright_harness::publisher::{Event, Publisher, create_account};
use hookwright_harness::receiver::Receiver;
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

const NAMESPACE: &str = "bench";
const BATCH: usize = 100;
/// Connections that post at the same time.
const CONNECTIONS: usize = 64;
const LONG: Duration = Duration::from_mins(5);
/// Bytes of data in each event.
const PAYLOAD: usize = 1024;

struct Bench {
    operator: Mutex<Operator>,
    publisher: Publisher,
    receiver: Receiver,
    direct: reqwest::Client,
    plane: ControlPlane,
}

fn main() -> anyhow::Result<()> {
    let events: usize = std::env::var("EVENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let bench = Arc::new(Bench::start().await?);
        bench.measure(events).await
    })
}

/// CPU time of a process so far, from /proc.
fn cpu(process: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// A memory figure of a process, in MB.
fn memory(process: u32, what: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with(what)).context("no such figure")?;
    let kib: f64 =
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).context("a number")?;
    Ok(kib * 1024.0 / 1e6)
}

fn percentile(sorted: &[Duration], part: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1000.0)
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn per_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        let plane = ControlPlane::start().await?;
        let options = OperatorOptions::default().arg("--log=warn");
        let operator = Operator::start(&plane, env!("CARGO_BIN_EXE_hookwright"), &options).await?;
        let receiver = Receiver::start().await?;
        let kubectl = plane.kubectl();
        kubectl.ok(&["create", "namespace", NAMESPACE]).await?;
        create_account(&plane, NAMESPACE, "producer").await?;
        let publisher = Publisher::with_account(&plane, &operator, NAMESPACE, "producer").await?;
        let trust = json!({"apiVersion": "v1", "kind": "ConfigMap",
                           "metadata": {"name": "receiver-ca", "namespace": NAMESPACE},
                           "data": {"ca.crt": receiver.ca_pem()}});
        kubectl.apply(&trust.to_string()).await?;
        let webhook = json!({"apiVersion": "hookwright.dev/v1alpha1", "kind": "Webhook",
            "metadata": {"name": "bench", "namespace": NAMESPACE},
            "spec": {"url": receiver.url("hooks", "/bench"), "eventTypes": ["bench"],
                     "maxInFlight": CONNECTIONS,
                     "tls": {"caRef": {"kind": "ConfigMap", "name": "receiver-ca", "key": "ca.crt"}}}});
        kubectl.apply(&webhook.to_string()).await?;
        kubectl.wait("hook/bench", NAMESPACE, "condition=Ready").await?;
        let direct = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(receiver.ca_pem().as_bytes())?)
            .resolve("hooks.localhost", ([127, 0, 0, 1], receiver.port()).into())
            .build()?;
        Ok(Self { operator: Mutex::new(operator), publisher, receiver, direct, plane })
    }

    async fn process(&self) -> u32 {
        self.operator.lock().await.id().unwrap_or_default()
    }

    async fn measure(self: &Arc<Self>, events: usize) -> anyhow::Result<()> {
        let singles = events / 2;
        self.receiver.keep_requests(false);
        // Once unmeasured, so that every run finds warm caches and open connections.
        self.ceiling(events / 10).await?;
        self.batches("warm", events / 10).await?;

        let ceiling = per_second(events, self.ceiling(events).await?);
        let before = cpu(self.process().await)?;
        let (accepted, delivered) = self.batches("batch", events).await?;
        let spent = cpu(self.process().await)?.saturating_sub(before);
        let (single_accepted, single_delivered) = self.singles(singles).await?;
        let loaded = self.latencies(events / 10, Duration::from_millis(2)).await?;
        let lone = self.latencies(300, Duration::from_millis(20)).await?;
        let peak = memory(self.process().await, "VmHWM")?;
        let ceiling_after = per_second(events, self.ceiling(events).await?);
        let ceiling = f64::midpoint(ceiling, ceiling_after);
        let idle = self.idle(1000).await?;

        let rate = |took: Duration, count: usize| per_second(count, took);
        #[expect(clippy::cast_precision_loss, reason = "counts are small")]
        let per_thousand = spent.as_secs_f64() / (events as f64 / 1000.0);
        println!(
            "\nevents of {PAYLOAD} bytes, {CONNECTIONS} connections, {} cores, one machine for all\n",
            cores()
        );
        println!("| figure | value | of the ceiling |\n| --- | --- | --- |");
        println!("| ceiling: posted straight to the receiver, per second | {ceiling:.0} | 1.00 |");
        for (what, value) in [
            ("batches of 100: accepted/s", rate(accepted, events)),
            ("batches of 100: delivered/s", rate(delivered, events)),
            ("single publishes: accepted/s", rate(single_accepted, singles)),
            ("single publishes: delivered/s", rate(single_delivered, singles)),
        ] {
            println!("| {what} | {value:.0} | {:.2} |", value / ceiling);
        }
        for (what, sorted) in [("one every 2 ms", &loaded), ("a lone event", &lone)] {
            let (p50, p99) = (percentile(sorted, 0.5), percentile(sorted, 0.99));
            println!("| published → received, {what}: p50 / p99 | {p50:.1} / {p99:.1} ms | |");
        }
        println!("| CPU of the operator for 1,000 deliveries in batches | {per_thousand:.3} s | |");
        println!("| peak memory of the operator | {peak:.0} MB | |");
        println!("| memory with 1,000 idle Webhooks, restarted | {idle:.0} MB | |");
        Ok(())
    }

    /// How long it takes to post events straight to the receiver.
    async fn ceiling(self: &Arc<Self>, events: usize) -> anyhow::Result<Duration> {
        let url = self.receiver.url("hooks", "/ceiling");
        let body = json!({"pad": "x".repeat(PAYLOAD - 10)}).to_string();
        let begun = Instant::now();
        self.in_parallel(events, move |bench, _| {
            let (url, body) = (url.clone(), body.clone());
            async move {
                bench.direct.post(url).body(body).send().await?.error_for_status()?;
                Ok(())
            }
        })
        .await?;
        Ok(begun.elapsed())
    }

    /// Runs one call for each number, on as many tasks as there are connections.
    async fn in_parallel<F, W>(self: &Arc<Self>, count: usize, call: F) -> anyhow::Result<()>
    where
        F: Fn(Arc<Self>, usize) -> W + Clone + Send + 'static,
        W: Future<Output = anyhow::Result<()>> + Send,
    {
        let next = Arc::new(AtomicUsize::new(0));
        let tracker = TaskTracker::new();
        let tasks: Vec<_> = (0..CONNECTIONS.min(count))
            .map(|_| {
                let (bench, next, call) = (Arc::clone(self), Arc::clone(&next), call.clone());
                tracker.spawn(async move {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return anyhow::Ok(());
                        }
                        call(Arc::clone(&bench), number).await?;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    }

    /// Times until all batches are accepted, and until all their events are received.
    async fn batches(
        self: &Arc<Self>,
        run: &'static str,
        events: usize,
    ) -> anyhow::Result<(Duration, Duration)> {
        let target = self.receiver.count("/bench") + events;
        let begun = Instant::now();
        self.in_parallel(events / BATCH, move |bench, number| async move {
            let batch: Vec<_> = (0..BATCH).map(|n| event(&format!("{run}-{number}-{n}"))).collect();
            bench.publisher.publish_batch(NAMESPACE, &batch).await?.accepted()?;
            Ok(())
        })
        .await?;
        let accepted = begun.elapsed();
        self.await_count(target).await?;
        Ok((accepted, begun.elapsed()))
    }

    async fn singles(self: &Arc<Self>, events: usize) -> anyhow::Result<(Duration, Duration)> {
        let target = self.receiver.count("/bench") + events;
        let begun = Instant::now();
        self.in_parallel(events, |bench, number| async move {
            let event = event(&format!("single-{number}"));
            bench.publisher.publish_binary(NAMESPACE, &event).await?.accepted()?;
            Ok(())
        })
        .await?;
        let accepted = begun.elapsed();
        self.await_count(target).await?;
        Ok((accepted, begun.elapsed()))
    }

    async fn await_count(&self, target: usize) -> anyhow::Result<()> {
        eventually(LONG, "all to be received", async || match self.receiver.count("/bench") {
            count if count >= target => Ok(()),
            count => Err(format!("{count} of {target}")),
        })
        .await
    }

    /// From just before an event is posted to its arrival at the receiver; one event every `pause`.
    async fn latencies(&self, events: usize, pause: Duration) -> anyhow::Result<Vec<Duration>> {
        self.receiver.forget();
        self.receiver.keep_requests(true);
        let mut sent = Vec::with_capacity(events);
        let mut tick = tokio::time::interval(pause);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for number in 0..events {
            tick.tick().await;
            let event = event(&format!("latency-{}-{number}", pause.as_millis()));
            sent.push((event.id.clone(), Instant::now()));
            self.publisher.publish_binary(NAMESPACE, &event).await?.accepted()?;
        }
        let requests = self.receiver.await_requests("/bench", events, LONG).await?;
        self.receiver.keep_requests(false);
        let arrived: std::collections::HashMap<_, _> = requests
            .iter()
            .filter_map(|request| Some((request.header("ce-id")?.to_owned(), request.at)))
            .collect();
        let mut took: Vec<_> = sent
            .iter()
            .filter_map(|(id, at)| Some(arrived.get(id)?.saturating_duration_since(*at)))
            .collect();
        anyhow::ensure!(took.len() == events, "{} of {events} arrived", took.len());
        took.sort_unstable();
        Ok(took)
    }

    /// Memory of the operator that was started anew with so many more Webhooks that have nothing to do.
    async fn idle(&self, webhooks: usize) -> anyhow::Result<f64> {
        let list: Vec<Value> = (0..webhooks)
            .map(|number| {
                json!({"apiVersion": "hookwright.dev/v1alpha1", "kind": "Webhook",
                    "metadata": {"name": format!("idle-{number}"), "namespace": NAMESPACE},
                    "spec": {"url": format!("https://hooks.example.com/{number}"), "eventTypes": ["idle.*"]}})
            })
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": list});
        self.plane.kubectl().apply(&list.to_string()).await?;
        self.plane
            .kubectl()
            .ok(&["wait", "hook", "--all", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=120s"])
            .await?;
        let mut operator = self.operator.lock().await;
        operator.sigterm().await?;
        operator.start_process().await?;
        // Long enough for the first look at everything to be over.
        tokio::time::sleep(Duration::from_secs(10)).await;
        memory(operator.id().context("no process")?, "VmRSS")
    }
}

fn event(id: &str) -> Event {
    Event::new(id, "bench", json!({"pad": "x".repeat(PAYLOAD - 10)}))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}
