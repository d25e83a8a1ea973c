//! The delivery engine: wakes a worker for each Webhook that has work, and looks after them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::Sender;
use super::inbox::{Happening, Inbox};
use super::limits::{Ceiling, attempts_for_open_files};
use super::patrol::{PATROL, Rounds};
use super::quiet::Quiet;
use super::worker::Worker;
use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::model::ids::WebhookUid;
use crate::model::time::UnixMillis;
use crate::routes::Table;
use crate::store::Store;

/// What is held is looked through for what was held too long this often.
const SWEEP: Duration = Duration::from_hours(1);

/// After the grace, what remains gets this long to be given back.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Settings of the engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What was held for longer ends as Failed.
    pub held_limit: Duration,
    /// A Webhook that fails without a break for so long is disabled.
    pub disable_after: Duration,
    /// When stopping, attempts under way get so long to end and be recorded.
    pub shutdown_grace: Duration,
    /// A claim holds for the endpoint's timeout and this, the time in which its outcome must be recorded.
    pub lease_margin: Duration,
    /// Attempts under way in the whole process, about: see `delivery::limits`.
    pub max_attempts: usize,
    /// Bytes of events that attempts under way hold in memory, about.
    pub max_bytes: usize,
    /// A worker that has not moved for so long, though it should have, stands still.
    pub stall_after: Duration,
}

impl Default for Settings {
    /// What the documents say, and as many attempts as the limit of open files has room for.
    fn default() -> Self {
        let limits = std::fs::read_to_string("/proc/self/limits").ok();
        Self {
            held_limit: Duration::from_hours(7 * 24),
            disable_after: Duration::from_hours(5 * 24),
            shutdown_grace: Duration::from_secs(20),
            lease_margin: Duration::from_mins(2),
            max_attempts: attempts_for_open_files(limits.as_deref()),
            max_bytes: 256 << 20,
            stall_after: Duration::from_mins(1),
        }
    }
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            held_limit: config.held_limit,
            disable_after: config.disable_after,
            shutdown_grace: config.common.shutdown_grace,
            ..Self::default()
        }
    }
}

/// That something is due and nothing moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deliveries stand still: {what} for {}s", .time.as_secs())]
pub struct Stalled {
    /// What does not move.
    pub what: &'static str,
    /// For how long.
    pub time: Duration,
}

/// What workers and attempts share.
pub(super) struct Shared {
    pub(super) store: Arc<dyn Store>,
    pub(super) table: Arc<Table>,
    pub(super) sender: Arc<dyn Sender>,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) settings: Settings,
    pub(super) ceiling: Arc<Ceiling>,
    pub(super) quiet: Quiet,
    pub(super) expiring: tokio::sync::Mutex<()>,
    pub(super) tasks: TaskTracker,
    /// Nothing more is claimed.
    pub(super) stop: CancellationToken,
    /// Nothing more is waited for.
    pub(super) abort: CancellationToken,
    pub(super) rounds: Mutex<Rounds>,
    workers: Mutex<HashMap<WebhookUid, Arc<Inbox>>>,
    started: Instant,
    /// The same, by the wall clock.
    pub(super) began: UnixMillis,
    /// Milliseconds from the start to the last look.
    pub(super) looked: AtomicU64,
}

/// Delivers what is due, to each Webhook at its own pace: no Webhook waits for another.
///
/// A Webhook has a worker only while something is under way or waits for a time. Every attempt uses the route
/// and the summary as they are at that moment.
pub struct Engine(Arc<Shared>);

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("workers", &self.0.workers().len()).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine that does nothing until [`Engine::run`].
    pub fn new(
        store: Arc<dyn Store>,
        table: Arc<Table>,
        sender: Arc<dyn Sender>,
        clock: Clock,
        metrics: Metrics,
        settings: Settings,
    ) -> Self {
        Self(Arc::new(Shared {
            store,
            table,
            sender,
            metrics,
            ceiling: Ceiling::new(settings.max_attempts, settings.max_bytes),
            settings,
            quiet: Quiet::default(),
            expiring: tokio::sync::Mutex::default(),
            began: clock.now(),
            clock,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            rounds: Mutex::default(),
            workers: Mutex::default(),
            started: Instant::now(),
            looked: AtomicU64::new(0),
        }))
    }

    /// Delivers until `stop`. Then nothing more is claimed; what is under way gets the grace to end and to be
    /// recorded, and what remains is given back. Returns when all of that is done. Once only.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let shared = &self.0;
        let sweeper = Arc::clone(shared);
        shared.tasks.spawn(async move { sweeper.sweep().await });
        shared.dispatch(&stop).await;
        shared.stop.cancel();
        shared.tasks.close();
        if timeout(shared.settings.shutdown_grace, shared.tasks.wait()).await.is_err() {
            warn!("attempts did not end within the grace; they are given back and repeated with the same id");
        }
        shared.abort.cancel();
        if timeout(LAST_WORDS, shared.tasks.wait()).await.is_err() {
            warn!("claims were not given back in time; they expire");
        }
    }

    /// Whether what is due moves, for a liveness probe. From memory.
    pub fn progress(&self) -> Result<(), Stalled> {
        let now = self.0.millis(Instant::now());
        let late = |what, since: u64| {
            let time = Duration::from_millis(now.saturating_sub(since));
            (time > self.0.settings.stall_after).then_some(Stalled { what, time })
        };
        let looked = self.0.looked.load(Ordering::Relaxed);
        let stalled = (looked > 0).then(|| late("the dispatcher has not looked", looked)).flatten();
        let stalled = stalled.or_else(|| {
            self.0.workers().values().find_map(|inbox| {
                let refused = inbox.stuck_since.load(Ordering::Relaxed);
                let refused = (refused > 0).then(|| late("the store gave no work", refused)).flatten();
                refused.or_else(|| late("a worker has not moved", inbox.moves_by.load(Ordering::Relaxed)))
            })
        });
        stalled.map_or(Ok(()), Err)
    }
}

impl Shared {
    async fn dispatch(self: &Arc<Self>, stop: &CancellationToken) {
        let mut patrol = interval(PATROL);
        patrol.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut clocks = (self.clock.now(), Instant::now());
        loop {
            let woken = tokio::select! {
                () = stop.cancelled() => return,
                webhooks = self.store.work().next() => webhooks,
                webhooks = self.table.for_engine().next() => webhooks,
                _ = patrol.tick() => {
                    self.look(&mut clocks);
                    continue;
                }
            };
            for webhook in woken {
                self.wake(webhook);
            }
        }
    }

    /// Sees to it that a Webhook's worker looks for work.
    pub(super) fn wake(self: &Arc<Self>, webhook: WebhookUid) {
        self.rounds().woken(webhook);
        let mut workers = self.workers();
        if let Some(inbox) = workers.get(&webhook) {
            return inbox.push(Happening::Woken);
        }
        let inbox = Arc::new(Inbox::default());
        inbox.expect(self.millis(Instant::now()));
        workers.insert(webhook, Arc::clone(&inbox));
        drop(workers);
        let entry = Entry { shared: Arc::clone(self), webhook, inbox: Arc::clone(&inbox) };
        let worker = Worker::new(Arc::clone(self), webhook, inbox);
        self.tasks.spawn(async move {
            let _entry = entry;
            worker.run().await;
        });
    }

    /// A worker ends, unless it was told something that it has not heard.
    pub(super) fn retire(&self, webhook: WebhookUid, inbox: &Arc<Inbox>) -> bool {
        let mut workers = self.workers();
        let may_go = inbox.is_empty();
        if may_go && workers.get(&webhook).is_some_and(|other| Arc::ptr_eq(other, inbox)) {
            workers.remove(&webhook);
        }
        may_go
    }

    pub(super) fn workers(&self) -> MutexGuard<'_, HashMap<WebhookUid, Arc<Inbox>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sweep(&self) {
        let mut hourly = interval(SWEEP);
        hourly.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.stop.run_until_cancelled(hourly.tick()).await.is_some() {
            self.expire_all().await;
        }
    }

    /// Milliseconds from the start of the engine to `at`.
    pub(super) fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// The store refused a claim of this worker.
    pub(super) fn is_stuck(&self, inbox: &Inbox) {
        let now = self.millis(Instant::now()).max(1);
        let _ = inbox.stuck_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// A worker's entry; goes with it, also when it panics, so that the next look finds it missing.
struct Entry {
    shared: Arc<Shared>,
    webhook: WebhookUid,
    inbox: Arc<Inbox>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut workers = self.shared.workers();
        if workers.get(&self.webhook).is_some_and(|other| Arc::ptr_eq(other, &self.inbox)) {
            workers.remove(&self.webhook);
        }
    }
}
