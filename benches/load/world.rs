//! What the scenarios share: a control plane, the operator, a receiver, and teams that publish.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex as StdMutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hookwright_harness::control_plane::ControlPlane;
use hookwright_harness::operator::{Operator, OperatorOptions};
use hookwright_harness::publisher::{Event, Publisher, create_account};
use hookwright_harness::receiver::{Receiver, Request};
use hookwright_harness::wait::eventually;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

/// Bytes of data in each event.
pub(crate) const PAYLOAD: usize = 1024;
/// Connections that post at the same time.
pub(crate) const CONNECTIONS: usize = 64;
/// Events in a batch.
pub(crate) const BATCH: usize = 100;
/// For what ends by itself.
pub(crate) const LONG: Duration = Duration::from_mins(15);

/// When each event was seen first, by its id.
type Arrivals = Arc<StdMutex<HashMap<String, Instant>>>;

/// Sees each request that arrives.
type Watcher = Box<dyn Fn(&Request) + Send + Sync>;

pub(crate) struct World {
    pub(crate) operator: Mutex<Operator>,
    pub(crate) receiver: Receiver,
    pub(crate) plane: ControlPlane,
    /// Ids that begin with `timed-` are noted as they arrive.
    arrivals: Arrivals,
    watcher: Arc<OnceLock<Watcher>>,
}

/// A namespace with its publishers.
pub(crate) struct Team {
    pub(crate) world: Arc<World>,
    pub(crate) namespace: &'static str,
    /// Each with a connection of its own to the operator's door.
    publishers: Vec<Publisher>,
}

impl World {
    pub(crate) async fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let plane = ControlPlane::start().await?;
        // What is measured is the system, not how it holds one namespace back.
        let mut options = OperatorOptions::default()
            .arg("--log=warn")
            .arg("--quota-events-per-second=1000000")
            .arg("--quota-pending-bytes=8000000000");
        for argument in arguments {
            options = options.arg(*argument);
        }
        let operator = Operator::start(&plane, env!("CARGO_BIN_EXE_hookwright"), &options).await?;
        let receiver = Receiver::start().await?;
        receiver.keep_requests(false);
        let arrivals = Arrivals::default();
        let watcher = Arc::new(OnceLock::<Watcher>::new());
        let (seen, watching) = (Arc::clone(&arrivals), Arc::clone(&watcher));
        receiver.observe(move |request| {
            if let Some(watcher) = watching.get() {
                watcher(request);
            }
            let Some(id) = request.header("ce-id").filter(|id| id.starts_with("timed-")) else { return };
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.entry(id.to_owned()).or_insert(request.at);
        });
        Ok(Self { operator: Mutex::new(operator), receiver, plane, arrivals, watcher })
    }

    /// Shows each request that arrives to one more, once.
    pub(crate) fn watch(&self, watcher: impl Fn(&Request) + Send + Sync + 'static) {
        let _ = self.watcher.set(Box::new(watcher));
    }

    /// The operator's process.
    pub(crate) async fn process(&self) -> u32 {
        self.operator.lock().await.id().unwrap_or_default()
    }
}

impl Team {
    /// Makes a namespace in which a producer may publish and the receiver is trusted.
    pub(crate) async fn of(world: &Arc<World>, namespace: &'static str) -> anyhow::Result<Arc<Self>> {
        let kubectl = world.plane.kubectl();
        kubectl.ok(&["create", "namespace", namespace]).await?;
        create_account(&world.plane, namespace, "producer").await?;
        let trust = json!({"apiVersion": "v1", "kind": "ConfigMap",
                           "metadata": {"name": "receiver-ca", "namespace": namespace},
                           "data": {"ca.crt": world.receiver.ca_pem()}});
        kubectl.apply(&trust.to_string()).await?;
        let operator = world.operator.lock().await;
        let publisher = Publisher::with_account(&world.plane, &operator, namespace, "producer").await?;
        drop(operator);
        let publishers =
            (0..CONNECTIONS).map(|_| publisher.with_new_connection()).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { world: Arc::clone(world), namespace, publishers }))
    }

    /// A Webhook that wants the events of the type that is its name, at the path that is its name.
    pub(crate) fn webhook(&self, name: &str, more: &Value) -> Value {
        let mut spec = json!({"url": self.world.receiver.url("hooks", &format!("/{name}")), "eventTypes": [name],
                              "tls": {"caRef": {"kind": "ConfigMap", "name": "receiver-ca", "key": "ca.crt"}}});
        if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
            spec.extend(more.clone());
        }
        json!({"apiVersion": "hookwright.dev/v1alpha1", "kind": "Webhook",
               "metadata": {"name": name, "namespace": self.namespace}, "spec": spec})
    }

    /// Applies Webhooks, and waits until all of the namespace are ready.
    pub(crate) async fn apply(&self, webhooks: Vec<Value>) -> anyhow::Result<()> {
        let kubectl = self.world.plane.kubectl();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": webhooks});
        kubectl.apply(&list.to_string()).await?;
        let wait = ["--for=condition=Ready", "--timeout=120s"];
        kubectl.ok(&[&["wait", "hook", "--all", "-n", self.namespace], wait.as_slice()].concat()).await?;
        Ok(())
    }

    pub(crate) fn publisher(&self, task: usize) -> anyhow::Result<&Publisher> {
        self.publishers.get(task % CONNECTIONS).context("a publisher")
    }

    /// Publishes so many events in batches, the type of each by its number; answers when all are accepted.
    pub(crate) async fn batches(
        self: &Arc<Self>,
        run: &'static str,
        events: usize,
        kind: fn(usize) -> &'static str,
    ) -> anyhow::Result<()> {
        let team = Arc::clone(self);
        in_parallel(events / BATCH, move |task, number| {
            let team = Arc::clone(&team);
            async move {
                let numbers = number * BATCH..(number + 1) * BATCH;
                let batch: Vec<_> = numbers.map(|n| event(&format!("{run}-{n}"), kind(n))).collect();
                team.publisher(task)?.publish_batch(team.namespace, &batch).await?.accepted()?;
                Ok(())
            }
        })
        .await
    }

    /// From just before an event is posted to its arrival at the receiver, sorted; one event every `pause`.
    pub(crate) async fn latencies(
        &self,
        run: &str,
        events: usize,
        pause: Duration,
        kind: fn(usize) -> &'static str,
    ) -> anyhow::Result<Vec<Duration>> {
        let mut sent = Vec::with_capacity(events);
        let mut tick = tokio::time::interval(pause);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for number in 0..events {
            tick.tick().await;
            let event = event(&format!("timed-{run}-{number}"), kind(number));
            sent.push((event.id.clone(), Instant::now()));
            self.publisher(0)?.publish_binary(self.namespace, &event).await?.accepted()?;
        }
        let arrived =
            |id: &String| self.world.arrivals.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied();
        eventually(LONG, "all timed events to arrive", async || {
            let missing = sent.iter().filter(|(id, _)| arrived(id).is_none()).count();
            if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing")) }
        })
        .await?;
        let took = |(id, at): &(String, Instant)| Some(arrived(id)?.saturating_duration_since(*at));
        let mut took: Vec<_> = sent.iter().filter_map(took).collect();
        took.sort_unstable();
        Ok(took)
    }

    /// Waits until the paths have so many requests together.
    pub(crate) async fn await_count(&self, paths: &[&str], target: usize) -> anyhow::Result<()> {
        eventually(LONG, "all to be received", async || match self.count(paths) {
            count if count >= target => Ok(()),
            count => Err(format!("{count} of {target}")),
        })
        .await
    }

    /// Requests that the paths have got.
    pub(crate) fn count(&self, paths: &[&str]) -> usize {
        paths.iter().map(|path| self.world.receiver.count(path)).sum()
    }
}

/// An event of this type with data of [`PAYLOAD`] bytes.
pub(crate) fn event(id: &str, kind: &str) -> Event {
    sized_event(id, kind, PAYLOAD)
}

/// An event of this type with data of so many bytes, up to 64 KiB.
pub(crate) fn sized_event(id: &str, kind: &str, bytes: usize) -> Event {
    Event::new(id, kind, json!({"pad": noise(id, bytes - 10)}))
}

/// Letters that no compression makes fewer, others for each id: what is said of the disk is to hold for such data, too.
fn noise(id: &str, bytes: usize) -> &'static str {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    static POOL: LazyLock<String> = LazyLock::new(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let letter = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            LETTERS
                .get(usize::try_from(state % 64).unwrap_or_default())
                .map_or('-', |letter| char::from(*letter))
        };
        (0..4 << 20).map(letter).collect()
    });
    let hash = id.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(0x0100_0193) ^ usize::from(byte));
    let from = hash.wrapping_mul(0x9e37_79b1) % (POOL.len() - (64 << 10));
    POOL.get(from..from + bytes).unwrap_or_default()
}

/// Calls once for each number, on as many tasks as there are connections.
pub(crate) async fn in_parallel<F, W>(count: usize, call: F) -> anyhow::Result<()>
where
    F: Fn(usize, usize) -> W + Clone + Send + 'static,
    W: Future<Output = anyhow::Result<()>> + Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let tracker = TaskTracker::new();
    let tasks: Vec<_> = (0..CONNECTIONS.min(count))
        .map(|task| {
            let (next, call) = (Arc::clone(&next), call.clone());
            tracker.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return anyhow::Ok(());
                    }
                    call(task, number).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}
