//! Opening a store, or making one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use fjall::PersistMode;
use tokio::sync::Semaphore;

use super::dedup::Generations;
use super::disk::{Disk, engine};
use super::erasing::Debt;
use super::format;
use super::group::Group;
use super::hooks::Hooks;
use super::keys::meta;
use super::line::Line;
use super::newest::Newest;
use super::queue::Budgets;
use super::replays::Replays;
use super::room::Room;
use super::sound::{self, Suspects};
use super::space::Space;
use super::upgrade;
use super::usage::Usages;
use super::writer::Writer;
use super::{AHEAD, Options, Shared};
use crate::model::ids::{DeliveryName, WebhookUid};
use crate::model::time::UnixMillis;
use crate::store::records::{EndReason, Next, Outcome, Summary};
use crate::store::{Error, Result, Wakes};

/// Memory for the windows of all Webhooks on their queues.
const FRESH_BUDGET: usize = 24 << 20;
const RETRY_BUDGET: usize = 8 << 20;

const READ: &str = "read from the store";

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Engine { what, source: source.into() }
}

/// What an opened store is made of.
pub(super) struct Opened {
    pub shared: Arc<Shared>,
    pub writer: Writer,
    pub commands: tokio::sync::mpsc::Sender<super::writer::Command>,
    /// Files that are yet to be looked at.
    pub suspects: Suspects,
}

/// Opens the store of a directory.
pub(super) fn open(options: Options) -> Result<Opened> {
    let Options {
        dir,
        cluster,
        metrics,
        min_free_bytes,
        dedup_window,
        memtable_bytes,
        retention,
        quota_pending_bytes,
    } = options;
    fs::create_dir_all(&dir).map_err(io("make the data directory"))?;
    let lock = lock(&dir)?;
    let path = dir.join("store");
    if !path.try_exists().map_err(io("look into the data directory"))? {
        make(&dir, &path, memtable_bytes)?;
    }
    let sound = sound::look(&dir, &path)?;
    let disk = Arc::new(Disk::open(&path, memtable_bytes, sound.last)?);
    check_format(&disk)?;
    bind(&disk, cluster.as_deref())?;

    let budgets = Budgets::new(FRESH_BUDGET, RETRY_BUDGET);
    let (usages, replays, newest) = (Usages::load(&disk)?, Replays::load(&disk)?, Newest::load(&disk)?);
    let hooks = Hooks::new(summaries(&disk)?, budgets, usages, replays, newest);
    let mut generations = Generations::load(&disk)?;
    interrupt_tests(&disk, &hooks, dedup_window, &mut generations)?;

    let pending = hooks.waiting();
    let work = Wakes::default();
    work.add(hooks.pick(|summary| (summary.pending > 0 && !summary.erasing).then_some(summary.webhook.uid)));
    let shared = Shared {
        hooks,
        disk: arc_swap::ArcSwapOption::new(Some(Arc::clone(&disk))),
        window: dedup_window,
        retention,
        quota_pending_bytes,
        metrics,
        pending: std::sync::atomic::AtomicI64::new(0),
        work,
        changes: Wakes::default(),
        poisoned: false.into(),
        closed: false.into(),
        room: Room::new(),
        ahead: Arc::new(Semaphore::new(AHEAD)),
        redating: tokio::sync::Mutex::default(),
        debt: Debt::load(&disk)?,
        rewriting: 0.into(),
        space: Space::new(dir, min_free_bytes),
        lock: std::sync::Mutex::new(Some(lock)),
    };
    shared.pending_changed(pending.cast_signed());
    shared.usage_changed();
    let shared = Arc::new(shared);
    let (commands, receiver) = tokio::sync::mpsc::channel(super::COMMANDS);
    let writer = Writer {
        shared: Arc::clone(&shared),
        disk,
        commands: receiver,
        generations,
        tidied: Instant::now(),
        shared_memory: Instant::now(),
        line: Line::new(),
        began: Instant::now(),
        together: 0,
    };
    Ok(Opened { shared, writer, commands, suspects: sound.suspects })
}

/// Keeps other processes out for as long as the file is open.
pub(super) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(io("open the lock of the data directory"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Unusable(format!(
            "another process uses the data directory {}: stop it, or give this one a directory of its own",
            dir.display()
        ))),
        Err(fs::TryLockError::Error(error)) => Err(io("lock the data directory")(error)),
    }
}

/// Makes an empty store, under another name until it is whole: a crash in between leaves nothing half made.
fn make(dir: &Path, path: &Path, memtable: u64) -> Result<()> {
    let unfinished: PathBuf = dir.join("store.new");
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io("remove what an interrupted start left")(error));
        }
        _ => {}
    }
    let disk = Disk::make(&unfinished, memtable)?;
    disk.meta
        .insert(meta::FORMAT, format::VERSION.to_be_bytes())
        .map_err(engine("write the format version"))?;
    disk.db.persist(PersistMode::SyncAll).map_err(engine("sync"))?;
    drop(disk);
    sync_tree(&unfinished).map_err(io("sync the new store"))?;
    fs::rename(&unfinished, path).map_err(io("name the new store"))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync the data directory"))
}

/// Syncs all files and directories below a directory, and itself.
pub(super) fn sync_tree(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(path)?.sync_all()
}

fn check_format(disk: &Disk) -> Result<()> {
    let value = disk.meta.get(meta::FORMAT).map_err(engine(READ))?;
    match value.and_then(|value| value.as_ref().try_into().ok()).map(u32::from_be_bytes) {
        Some(format::VERSION) => Ok(()),
        Some(older @ 1..format::VERSION) => upgrade::upgrade(disk, older),
        Some(other) => Err(Error::Unusable(format!(
            "the data directory has format {other}, this program knows {}: start the program that wrote it, or a \
             newer one",
            format::VERSION
        ))),
        None => Err(Error::Unusable(
            "the data directory has no format version: it is not a store of this program".to_owned(),
        )),
    }
}

/// A store belongs to the cluster that it was first opened in: in another, every Webhook would seem deleted.
fn bind(disk: &Disk, cluster: Option<&str>) -> Result<()> {
    let Some(cluster) = cluster else { return Ok(()) };
    match disk.meta.get(meta::CLUSTER).map_err(engine(READ))? {
        Some(bound) if &*bound == cluster.as_bytes() => Ok(()),
        Some(bound) => Err(Error::Unusable(format!(
            "the data directory belongs to the cluster {}, this is {cluster} (UIDs of the namespace kube-system): \
             give this installation a directory of its own",
            String::from_utf8_lossy(&bound)
        ))),
        None => {
            disk.meta.insert(meta::CLUSTER, cluster).map_err(engine("bind the store to the cluster"))?;
            disk.db.persist(PersistMode::SyncAll).map_err(engine("sync"))
        }
    }
}

/// What is known of each Webhook, and under what it is kept.
fn summaries(disk: &Disk) -> Result<Vec<(WebhookUid, Summary)>> {
    let entries = disk.meta.prefix(meta::SUMMARIES);
    let summaries = entries.map(|entry| {
        let (key, value) = entry.into_inner().map_err(engine(READ))?;
        let summary: Summary = format::decode("a Webhook's numbers", &value)?;
        Ok((meta::summary_of(&key).unwrap_or(summary.webhook.uid), summary))
    });
    summaries.collect()
}

/// Tests whose attempt was under way when the process ended are never made again: they end here, and say so.
fn interrupt_tests(
    disk: &Disk,
    hooks: &Hooks,
    window: std::time::Duration,
    generations: &mut Generations,
) -> Result<()> {
    let mut outcomes = Vec::new();
    for entry in disk.meta.prefix(meta::TESTS) {
        let (key, value) = entry.into_inner().map_err(engine(READ))?;
        let name = key.get(meta::TESTS.len()..).and_then(|name| name.try_into().ok());
        let (Some(name), Ok(webhook)) = (name, value.as_ref().try_into()) else { continue };
        outcomes.push(Outcome {
            name: DeliveryName::from_bytes(name),
            webhook: WebhookUid::from_bytes(webhook),
            attempt: None,
            next: Next::Failed(EndReason::Interrupted),
            disable: None,
            failing: None,
            at: UnixMillis::default(),
        });
    }
    if outcomes.is_empty() {
        return Ok(());
    }
    let mut group = Group::new(disk, hooks, window, generations);
    group.record(outcomes)?;
    group.commit()?.apply(hooks);
    Ok(())
}
