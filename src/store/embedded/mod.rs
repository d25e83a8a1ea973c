//! The embedded engine, on fjall: one process, one directory.
//!
//! One thread writes ([`writer`]): it makes one synced commit of all calls that have come meanwhile, brings
//! memory up to date, and answers. What memory knows ([`hooks`], [`queue`]) is what the hot path needs: the
//! numbers of each Webhook and the beginning of its queue. All else is on disk ([`disk`]) and is read where it
//! is asked for.

#[cfg(test)]
mod ahead_tests;
mod check;
#[cfg(test)]
mod damage_tests;
mod dedup;
mod disk;
mod erase;
mod erasing;
#[cfg(test)]
mod erasing_tests;
mod expunge;
#[cfg(test)]
mod fairness_tests;
mod format;
#[cfg(test)]
mod format_tests;
mod group;
mod hooks;
mod journal;
mod keys;
mod lane;
mod line;
mod manifest;
mod newest;
mod open;
mod purge;
mod query;
mod queue;
#[cfg(test)]
mod queue_tests;
mod rebuild;
mod redate;
mod redeliver;
pub mod repair;
#[cfg(test)]
mod repair_tests;
mod replaying;
#[cfg(test)]
mod replaying_tests;
mod replays;
mod retain;
mod room;
mod seam;
mod sound;
mod space;
#[cfg(test)]
mod tests;
mod torn;
mod unflushed;
mod upgrade;
mod usage;
mod writer;

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::metrics::Metrics;
use crate::model::ids::{Minter, WebhookUid};
use crate::store::records::Retention;
use crate::store::{ClaimRequest, Claims, Error, Result, Wakes};
use disk::{Disk, engine};
use erasing::Debt;
use hooks::{Hook, Hooks};
use lane::Refill;
use queue::Queue;
use room::Room;
use space::Space;
use writer::{Command, Reply};

/// Calls that may wait for the writer; more callers wait for their turn.
const COMMANDS: usize = 1024;

/// Webhooks whose queues are read ahead at the same time.
const AHEAD: usize = 2;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its directory, made if it is not there. One process at a time uses it.
    pub dir: PathBuf,
    /// UID of the namespace kube-system. The first opening binds the store to it, another is refused. None: not
    /// looked at.
    pub cluster: Option<String>,
    /// Commits and pending deliveries are counted here.
    pub metrics: Metrics,
    /// With less free space on the file system, beside a kibibyte for each delivery that waits,
    /// [`append`](crate::store::Store::append) is refused; with less than twice as much, to the namespaces that use
    /// most.
    pub min_free_bytes: u64,
    /// How long the same `source` and `id` are a duplicate. It may differ from one opening to the next: a shorter
    /// one counts at once, a longer one has forgotten already what the former did not need.
    pub dedup_window: Duration,
    /// Size of tables, in bytes, that counts when the store is made. Memtables are sealed at half of it, and with
    /// three sealed ones in a keyspace large calls wait, so it bounds memory.
    pub memtable_bytes: u64,
    /// What of the log is kept for each namespace; see [`retain`](crate::store::Store::retain).
    pub retention: Retention,
    /// While the events of what waits in a namespace have so many bytes, counted for each delivery, no more is
    /// accepted there.
    pub quota_pending_bytes: u64,
}

impl Options {
    /// For a directory, with everything else as usual.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            cluster: None,
            metrics: Metrics::default(),
            min_free_bytes: 256 << 20,
            dedup_window: Duration::from_hours(1),
            memtable_bytes: 8 << 20,
            retention: Retention::FOREVER,
            quota_pending_bytes: u64::MAX,
        }
    }
}

/// What callers and the writer share.
#[derive(Debug)]
struct Shared {
    hooks: Hooks,
    /// None once it is closed.
    disk: ArcSwapOption<Disk>,
    window: Duration,
    retention: Retention,
    quota_pending_bytes: u64,
    metrics: Metrics,
    pending: AtomicI64,
    work: Wakes,
    changes: Wakes,
    poisoned: AtomicBool,
    closed: AtomicBool,
    room: Room,
    /// Reads ahead of all Webhooks: what is read is counted once it is there.
    ahead: Arc<Semaphore>,
    /// Held while times are set right.
    redating: tokio::sync::Mutex<()>,
    debt: Debt,
    /// Threads that rewrite files; see [`Embedded::rewrite`].
    rewriting: AtomicUsize,
    space: Space,
    lock: Mutex<Option<File>>,
}

impl Shared {
    fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::SeqCst)
    }

    fn poison(&self, error: &Error) {
        if !self.poisoned.swap(true, Ordering::SeqCst) {
            tracing::error!(error = %crate::model::causes::chain(error), "the store stops writing");
        }
    }

    fn pending_changed(&self, by: i64) {
        let pending = self.pending.fetch_add(by, Ordering::SeqCst) + by;
        self.metrics.pending_deliveries.set(pending);
    }

    /// Brings the metric of what is used up to date.
    fn usage_changed(&self) {
        self.metrics.store_bytes.set(self.hooks.usages().total());
    }

    fn disk(&self) -> Result<Arc<Disk>> {
        self.disk.load_full().ok_or(Error::Closed)
    }
}

/// A store in a directory of this machine. Clones of its `Arc` are the same store.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    /// None only while it is dropped.
    commands: Option<mpsc::Sender<Command>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Embedded {
    /// Opens the store of a directory, or makes one. Reads for as long as the last journals take to replay;
    /// call it where blocking is allowed.
    ///
    /// # Errors
    ///
    /// [`Error::Unusable`] when another process has it open, it belongs to another cluster, or a newer program
    /// wrote it; [`Error::Damaged`] when files are not what was written; [`Error::Engine`] or [`Error::Corrupt`] when
    /// it cannot be read.
    pub fn open(options: Options) -> Result<Arc<Self>> {
        let open::Opened { shared, writer, commands, suspects } = open::open(options)?;
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| Error::Engine { what: "start the writer", source: error.into() })?;
        suspects.look_at_in_the_background(&shared);
        Ok(Arc::new(Self { shared, commands: Some(commands), thread: Mutex::new(Some(thread)) }))
    }

    /// Where commits and pending deliveries are counted.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// What makes names for this store: they sort after those that it has.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is closed.
    pub async fn minter(&self) -> Result<Minter> {
        let newest = self.read(|_, disk| disk.newest_name()).await?;
        Ok(newest.map_or_else(Minter::default, Minter::after))
    }

    /// Fingerprint of the key that deliveries are signed with, as it was remembered.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn signing_key(&self) -> Result<Option<String>> {
        let value =
            self.read(|_, disk| disk.meta.get(keys::meta::SIGNING).map_err(engine("read from the store")));
        Ok(value.await?.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    /// Remembers the fingerprint of the key that deliveries are signed with.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn remember_signing_key(&self, fingerprint: String) -> Result<()> {
        self.read(move |_, disk| {
            let mut batch = disk.db.batch();
            batch.insert(&disk.meta, keys::meta::SIGNING, fingerprint.as_bytes());
            disk.commit(batch).map_err(engine("remember the signing key"))
        })
        .await
    }

    /// Asks the writer, and waits for the commit.
    async fn ask<T: Send + 'static>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or(Error::Closed)?;
        if commands.send(command(reply)).await.is_err() {
            return Err(self.ended());
        }
        arrived(answer).await.unwrap_or_else(|()| Err(self.ended()))
    }

    /// Why the writer does not answer.
    fn ended(&self) -> Error {
        if self.shared.is_poisoned() { Error::Poisoned } else { Error::Closed }
    }

    /// Reads from disk without holding up the tasks of this thread.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared, &Disk) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        let task = tokio::task::spawn_blocking(move || {
            let disk = shared.disk()?;
            read(&shared, &disk)
        });
        task.await.map_err(|error| Error::Engine { what: "read from the store", source: error.into() })?
    }

    async fn claims(&self, request: ClaimRequest) -> Result<Claims> {
        self.shared.disk()?;
        self.shared.hooks.newest().saw(request.now);
        let Some(hook) = self.shared.hooks.seen(request.webhook) else { return Ok(Claims::default()) };
        let request = ClaimRequest { webhook: hook.key(), ..request };
        let mut claims = self.claim_from(Arc::clone(&hook), request).await?;
        claims.deliveries.iter_mut().for_each(|claimed| hook.as_known(&mut claimed.delivery));
        Ok(claims)
    }

    async fn claim_from(&self, hook: Arc<Hook>, request: ClaimRequest) -> Result<Claims> {
        {
            let mut queue = hook.queue();
            if queue.needs(request.now, request.limit, request.order).is_none() {
                let claims = take(&mut queue, &request);
                let is_low = queue.ahead().is_some();
                drop(queue);
                if is_low {
                    self.read_ahead(&hook, request.webhook);
                }
                return Ok(claims);
            }
        }
        let turn = Arc::clone(&hook.refilling).lock_owned().await;
        let taken = self.read(move |_, disk| {
            let _turn = turn;
            refill_and_take(disk, &hook, &request)
        });
        Ok(taken.await?.keep())
    }

    /// Fills a queue that is nearly empty in memory, so that no claim waits for the disk. Nothing while another reads.
    fn read_ahead(&self, hook: &Arc<Hook>, webhook: WebhookUid) {
        let Ok(ahead) = Arc::clone(&self.shared.ahead).try_acquire_owned() else { return };
        let Ok(turn) = Arc::clone(&hook.refilling).try_lock_owned() else { return };
        let (shared, hook) = (Arc::clone(&self.shared), Arc::clone(hook));
        tokio::task::spawn_blocking(move || {
            // In this order, so that whose turn is next finds room to read ahead.
            let _until_read = (ahead, turn);
            let Ok(disk) = shared.disk() else { return };
            let ahead = hook.queue().ahead();
            if let Some(refill) = ahead {
                // What cannot be read is said by the claim that needs it.
                drop(fill(&disk, &hook, webhook, refill));
            }
        });
    }
}

/// Claims that go back if nobody takes them: the caller may have gone while they were read.
struct Taken {
    hook: Arc<Hook>,
    claims: Option<Claims>,
}

impl Taken {
    fn keep(mut self) -> Claims {
        self.claims.take().unwrap_or_default()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        for claimed in self.claims.take().into_iter().flat_map(|claims| claims.deliveries) {
            self.hook.queue().release(claimed.delivery.name);
        }
    }
}

fn take(queue: &mut Queue, request: &ClaimRequest) -> Claims {
    let deliveries = queue.claim(request.now, request.limit, request.order, request.lease);
    Claims { next_due: queue.next_due(request.now), deliveries }
}

/// Reads what is missing in memory; what was read is claimed before anything can push it out again.
fn refill_and_take(disk: &Disk, hook: &Arc<Hook>, request: &ClaimRequest) -> Result<Taken> {
    let mut queue = hook.queue();
    while let Some(refill) = queue.needs(request.now, request.limit, request.order) {
        drop(queue);
        queue = fill(disk, hook, request.webhook, refill)?;
    }
    Ok(Taken { hook: Arc::clone(hook), claims: Some(take(&mut queue, request)) })
}

/// Reads a part of the queue, by whose turn it is.
fn fill<'a>(
    disk: &Disk,
    hook: &'a Hook,
    webhook: WebhookUid,
    refill: Refill,
) -> Result<MutexGuard<'a, Queue>> {
    hook.queue().reading(refill);
    let mut reading = Reading { hook, refill, is_over: false };
    let found = disk.refill(webhook, refill)?;
    reading.is_over = true;
    let mut queue = hook.queue();
    queue.refilled(refill, found);
    Ok(queue)
}

/// A refill that is given up unless it is over, also when reading panics.
struct Reading<'a> {
    hook: &'a Hook,
    refill: Refill,
    is_over: bool,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.hook.queue().gave_up(self.refill);
        }
    }
}

/// Waits for the writer. In unit tests on a thread of its own, since tokio's paused time would otherwise run
/// ahead while the writer works.
async fn arrived<T: Send + 'static>(answer: oneshot::Receiver<T>) -> std::result::Result<T, ()> {
    if cfg!(test) {
        let wait = tokio::task::spawn_blocking(move || answer.blocking_recv());
        return wait.await.map_err(drop)?.map_err(drop);
    }
    answer.await.map_err(drop)
}
