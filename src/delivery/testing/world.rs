//! An engine with a store in memory, a scripted sender and tokio's paused time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::store::FakeStore;
use super::{START, endpoint, event, webhook};
use crate::clock::Clock;
use crate::delivery::engine::{Engine, Settings};
use crate::delivery::{Job, Sender, Sent};
use crate::metrics::{Metrics, Waiting};
use crate::model::filter::Filter;
use crate::model::ids::{DeliveryName, EventUid};
use crate::model::time::UnixMillis;
use crate::model::verdict::{Answer, judge};
use crate::routes::{Endpoint, Route, Table};
use crate::store::{Attempt, Delivery, NewDelivery, NewEvent, Store};

/// What a receiver does with an attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Does {
    /// Answers, at once.
    Status(u16),
    /// Answers after a while.
    Slowly(u16, Duration),
    /// Answers with `Retry-After`.
    Asks(u16, Duration),
    /// Never answers; the sender's time is up.
    Hangs,
    /// Our own code never returns, whatever the time.
    IsLost,
    /// Refuses the connection.
    IsDown,
    /// Has an address that is denied.
    IsDenied,
    /// Brings our own code to panic.
    Panics,
}

/// How many attempts are under way, and were at most, by Webhook.
#[derive(Clone, Copy, Debug, Default)]
struct UnderWay {
    now: usize,
    peak: usize,
}

/// One attempt: when it began, of which delivery, where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) at: Duration,
    pub(crate) name: DeliveryName,
    pub(crate) host: String,
}

/// What a receiver knows of an attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Try {
    /// Counts the attempts at this receiver, from 0.
    pub(crate) count: usize,
    /// Of which delivery.
    pub(crate) name: DeliveryName,
    /// Counts the attempts of this delivery, from 0.
    pub(crate) again: usize,
    /// Since the start.
    pub(crate) at: Duration,
}

impl Try {
    /// Counts the deliveries of the world, from 1.
    pub(crate) fn number(&self) -> u64 {
        number(self.name)
    }

    /// Differs between attempts, and is the same in each run: 0..1000.
    pub(crate) fn chance(&self) -> u64 {
        let mut mix = (self.number() << 8 | self.again as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mix = (mix ^ (mix >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mix = (mix ^ (mix >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mix ^ (mix >> 31)) % 1000
    }
}

/// See [`Try::number`].
pub(crate) fn number(name: DeliveryName) -> u64 {
    let bytes = name.as_bytes();
    u64::from_be_bytes([0, 0, 0, 0, bytes[12], bytes[13], bytes[14], bytes[15]])
}

type Behaviour = Arc<dyn Fn(&Try) -> Does + Send + Sync>;

#[derive(Default)]
struct Log {
    seen: Vec<Seen>,
    by_host: HashMap<String, usize>,
    by_delivery: HashMap<DeliveryName, usize>,
}

fn count<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) -> usize {
    let count = counts.entry(key).or_default();
    *count += 1;
    *count - 1
}

/// Sends nothing, does what the script says, and remembers.
pub(crate) struct Script {
    clock: Clock,
    does: Mutex<HashMap<String, Behaviour>>,
    log: Mutex<Log>,
    under_way: Mutex<HashMap<String, UnderWay>>,
}

impl Script {
    fn enter(&self, webhook: &str) -> Leave<'_> {
        let mut all = self.under_way.lock().unwrap();
        let one = all.entry(webhook.to_owned()).or_default();
        one.now += 1;
        one.peak = one.peak.max(one.now);
        Leave(self, webhook.to_owned())
    }

    async fn attempt(&self, job: Job) -> Sent {
        let webhook = job.webhook.name.to_string();
        let _leave = self.enter(&webhook);
        let (at, began) = (self.clock.now(), tokio::time::Instant::now());
        let host = job.endpoint.target.url().host_str().unwrap().to_owned();
        let attempt = {
            let (mut log, at) = (self.log.lock().unwrap(), at.since(START));
            log.seen.push(Seen { at, name: job.name, host: host.clone() });
            let (count, again) =
                (count(&mut log.by_host, host.clone()), count(&mut log.by_delivery, job.name));
            Try { count, name: job.name, again, at }
        };
        let behaviour = self.does.lock().unwrap().get(&host).cloned();
        let does = behaviour.map_or(Does::Status(200), |does| does(&attempt));
        let status = |code| Answer::Status { code, retry_after: None };
        let answer = match does {
            Does::Status(code) => status(code),
            Does::Slowly(code, time) => {
                tokio::time::sleep(time).await;
                status(code)
            }
            Does::Asks(code, wait) => Answer::Status { code, retry_after: Some(wait) },
            Does::Hangs => {
                tokio::time::sleep(job.endpoint.timeout).await;
                Answer::TimedOut
            }
            Does::IsLost => std::future::pending().await,
            Does::IsDown => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Answer::Broken
            }
            Does::IsDenied => Answer::Denied,
            Does::Panics => panic!("as the script says"),
        };
        let status = if let Answer::Status { code, .. } = answer { Some(code) } else { None };
        let attempt = Attempt {
            at,
            duration: began.elapsed(),
            status,
            body: None,
            content_type: None,
            body_length: 0,
            error: None,
            asked_by: None,
            probe: false,
            retry_after: None,
        };
        Sent { attempt, verdict: judge(&answer) }
    }
}

struct Leave<'a>(&'a Script, String);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.under_way.lock().unwrap().get_mut(&self.1).unwrap().now -= 1;
    }
}

impl Sender for Script {
    fn send(&self, job: Job) -> BoxFuture<'_, Sent> {
        self.attempt(job).boxed()
    }
}

/// See the module.
pub(crate) struct World {
    pub(crate) store: Arc<dyn Store>,
    /// The same store, unless another was given.
    pub(crate) fake: Arc<FakeStore>,
    pub(crate) table: Arc<Table>,
    pub(crate) script: Arc<Script>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) metrics: Metrics,
    pub(crate) stop: CancellationToken,
    clock: Clock,
    is_frozen: Arc<AtomicBool>,
    running: Option<JoinHandle<()>>,
    tasks: TaskTracker,
    names: AtomicU64,
}

impl World {
    /// Starts an engine whose clock follows tokio's.
    pub(crate) fn start() -> Self {
        Self::start_with(Settings::default(), Clock::following_tokio(START))
    }

    pub(crate) fn start_with(settings: Settings, clock: Clock) -> Self {
        let fake = Arc::new(FakeStore::default());
        Self { fake: Arc::clone(&fake), ..Self::start_on(fake, settings, clock) }
    }

    /// Starts an engine on another store.
    pub(crate) fn start_on(store: Arc<dyn Store>, settings: Settings, clock: Clock) -> Self {
        let table = Arc::new(Table::default());
        let script = Arc::new(Script {
            clock: clock.clone(),
            does: Mutex::default(),
            log: Mutex::default(),
            under_way: Mutex::default(),
        });
        let metrics = Metrics::default();
        let engine = Arc::new(Engine::new(
            Arc::clone(&store),
            Arc::clone(&table),
            Arc::clone(&script) as _,
            clock.clone(),
            metrics.clone(),
            settings,
        ));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let is_frozen = Arc::new(AtomicBool::new(false));
        let running =
            Some(tasks.spawn(unless(Arc::clone(&is_frozen), Arc::clone(&engine).run(stop.clone()))));
        let (fake, names) = (Arc::default(), AtomicU64::new(1));
        Self { store, fake, table, script, engine, metrics, stop, clock, is_frozen, running, tasks, names }
    }

    /// A Webhook whose host is `NAME.localhost`.
    pub(crate) fn route(&self, name: &str) -> Route {
        self.route_to(name, endpoint(&format!("https://{name}.localhost/")))
    }

    pub(crate) fn route_to(&self, name: &str, endpoint: Endpoint) -> Route {
        let route = Route {
            webhook: webhook(name),
            generation: 1,
            filter: Filter::compile(&["*"]),
            active: true,
            endpoint: Ok(Arc::new(endpoint)),
            public_key: "whpk_".into(),
            gives_up_after: None,
            requested_at: None,
        };
        self.table.upsert(route.clone());
        route
    }

    /// What the receiver at `NAME.localhost` does with its attempts, counted from 0.
    pub(crate) fn does(&self, name: &str, does: impl Fn(usize) -> Does + Send + Sync + 'static) {
        self.does_by(name, move |attempt| does(attempt.count));
    }

    /// What it does with them, by what it knows of each.
    pub(crate) fn does_by(&self, name: &str, does: impl Fn(&Try) -> Does + Send + Sync + 'static) {
        self.script.does.lock().unwrap().insert(format!("{name}.localhost"), Arc::new(does));
    }

    /// Accepts events for a Webhook; their deliveries' names, in order.
    pub(crate) async fn publish(&self, name: &str, count: usize) -> Vec<DeliveryName> {
        let now = self.now();
        let names: Vec<_> = (0..count)
            .map(|_| {
                let number = u128::from(self.names.fetch_add(1, Ordering::SeqCst));
                let millis = u128::from(now.as_millis().unsigned_abs());
                DeliveryName::from_bytes((millis << 80 | number).to_be_bytes())
            })
            .collect();
        let sample = event(b"{}");
        let events = names.iter().map(|delivery| NewEvent {
            uid: EventUid::from_bytes(*delivery.as_bytes()),
            namespace: Arc::clone(&sample.namespace),
            attributes: Arc::clone(&sample.attributes),
            data: sample.data.clone(),
            accepted_at: now,
            dedup: None,
            deliveries: vec![NewDelivery { name: *delivery, webhook: webhook(name), test: false }],
        });
        self.store.append(events.collect()).await.unwrap();
        names
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    pub(crate) async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Lets what can happen at this moment happen.
    pub(crate) async fn settle(&self) {
        self.pass(Duration::from_millis(1)).await;
    }

    /// What `hookwright_oldest_pending_seconds` says, by what is waited for.
    pub(crate) fn oldest(&self, waits_for: &'static str) -> f64 {
        self.metrics.oldest_pending.get_or_create(&Waiting { waits_for }).get()
    }

    /// Attempts at `NAME.localhost`, in order.
    pub(crate) fn seen(&self, name: &str) -> Vec<Seen> {
        let host = format!("{name}.localhost");
        self.script.log.lock().unwrap().seen.iter().filter(|seen| seen.host == host).cloned().collect()
    }

    /// Their times, in whole seconds.
    pub(crate) fn seconds(&self, name: &str) -> Vec<u64> {
        self.seen(name).iter().map(|seen| seen.at.as_secs()).collect()
    }

    pub(crate) fn peak(&self, name: &str) -> usize {
        self.script.under_way.lock().unwrap().get(name).map_or(0, |one| one.peak)
    }

    pub(crate) fn forget_peak(&self, name: &str) {
        if let Some(one) = self.script.under_way.lock().unwrap().get_mut(name) {
            one.peak = one.now;
        }
    }

    pub(crate) fn get(&self, name: DeliveryName) -> Delivery {
        self.fake.get(name)
    }

    /// Brings the engine to a standstill; what it has started goes on.
    pub(crate) fn freeze(&self) {
        self.is_frozen.store(true, Ordering::SeqCst);
    }

    /// Stops the engine and waits until it has ended.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        self.running.take().unwrap().await.unwrap();
        self.tasks.close();
    }
}

/// Goes on as long as it is not frozen.
fn unless(is_frozen: Arc<AtomicBool>, task: impl Future<Output = ()>) -> impl Future<Output = ()> {
    let mut task = Box::pin(task);
    std::future::poll_fn(move |context| {
        if is_frozen.load(Ordering::SeqCst) { Poll::Pending } else { task.as_mut().poll(context) }
    })
}
