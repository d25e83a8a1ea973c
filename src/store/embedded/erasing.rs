//! Making erased bytes go from the files. What is erased is out of reach at once, but stands in journals until all that
//! they hold is in tables, in tables until they are rewritten, and in files of bodies until most of one is dead.
//!
//! That something was erased is kept in the store, in the same commit, until it has gone from all files.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fjall::{AbstractTree as _, Keyspace, UserKey};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use super::check;
use super::disk::{Disk, engine};
use super::keys::{self, meta};
use super::manifest::{self, Manifest};
use super::writer::Command;
use super::{Embedded, Shared};
use crate::process::stepped_back;
use crate::store::{Error, Result};

/// Times that files of bodies are rewritten: what was moved may have died meanwhile.
const ROUNDS: usize = 4;
/// Events that are moved in one commit, at most.
const KEYS: usize = 64;
/// Their bytes.
const BYTES: usize = 1 << 20;
/// The engine begins another journal when one has grown to 64 MB; so much more than it is written at a time.
const FILLER: usize = 512 << 10;
/// At most so often.
const FILLERS: usize = 160;
/// The engine's thread has so long for what is asked of it.
const PATIENCE: Duration = Duration::from_mins(5);
const WHAT: &str = "make erased bytes go from the files";

/// How often something was erased since all of it was gone from the files.
#[derive(Debug)]
pub(super) struct Debt {
    count: AtomicU64,
    /// One at a time pays it.
    turn: tokio::sync::Mutex<()>,
}

impl Debt {
    /// As it was left.
    pub(super) fn load(disk: &Disk) -> Result<Self> {
        let owed = disk.meta.contains_key(meta::DEBT).map_err(engine("read from the store"))?;
        Ok(Self { count: u64::from(owed).into(), turn: tokio::sync::Mutex::default() })
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Something was erased. Only the writer calls it.
    pub(super) fn owe(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }
}

fn io_error(source: io::Error) -> Error {
    Error::Engine { what: WHAT, source: source.into() }
}

fn late(what: &'static str) -> Error {
    Error::Engine { what: WHAT, source: what.into() }
}

impl Embedded {
    /// Makes what was erased until now go from the files.
    pub(super) async fn erase_all(&self) -> Result<()> {
        let _turn = self.shared.debt.turn.lock().await;
        let count = self.shared.debt.count();
        if count == 0 {
            return Ok(());
        }
        let trees = self.read(|_, disk| disk.bytes_of_trees()).await?;
        self.shared.space.has_room_to(WHAT, trees)?;
        self.rewrite(Disk::rewrite_trees).await?;
        for _ in 0..ROUNDS {
            let holed = self.read(|_, disk| Ok(disk.holed())).await?;
            if holed.is_empty() {
                break;
            }
            let bytes = holed.iter().flat_map(fs::metadata).map(|file| file.len()).sum();
            self.shared.space.has_room_to(WHAT, bytes)?;
            for file in holed {
                self.move_events(file).await?;
            }
            self.rewrite(Disk::rewrite_events).await?;
        }
        self.rewrite(Disk::renew_journals).await?;
        self.ask(|reply| Command::Erased(count, reply)).await
    }

    /// As [`Embedded::read`], for what may take minutes: closing the store does not wait for it.
    pub(super) async fn rewrite(
        &self,
        work: impl FnOnce(&Disk) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let rewriting = Rewriting::begin(&self.shared)?;
        let work = move || {
            let result = rewriting.disk.as_deref().map_or(Err(Error::Closed), work);
            drop(rewriting);
            let _ = reply.send(result);
        };
        std::thread::Builder::new().name("store-rewrite".to_owned()).spawn(work).map_err(io_error)?;
        super::arrived(answer).await.unwrap_or_else(|()| Err(late("the rewriting thread has ended")))
    }

    /// Writes the events of a file of bodies that are still there once more, so that all of it is dead.
    pub(super) async fn move_events(&self, file: PathBuf) -> Result<()> {
        let keys = self.read(move |_, _| {
            let bytes = match fs::read(&file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
                bytes => bytes.map_err(io_error)?,
            };
            Ok(manifest::keys_of_bodies(&bytes).into_iter().map(UserKey::from).collect::<Vec<_>>())
        });
        let mut left = &keys.await?[..];
        while !left.is_empty() {
            let some: Vec<_> = left.iter().take(KEYS).cloned().collect();
            let moved = self.ask(|reply| Command::Move(some, reply)).await?;
            left = left.get(moved.max(1)..).unwrap_or_default();
        }
        Ok(())
    }
}

/// The disk, while a thread rewrites some of it. Who is the last lets go of it.
struct Rewriting {
    shared: Arc<Shared>,
    /// None only while it is dropped.
    disk: Option<Arc<Disk>>,
}

impl Rewriting {
    fn begin(shared: &Arc<Shared>) -> Result<Self> {
        let disk = Some(shared.disk()?);
        shared.rewriting.fetch_add(1, Ordering::SeqCst);
        Ok(Self { shared: Arc::clone(shared), disk })
    }
}

impl Drop for Rewriting {
    fn drop(&mut self) {
        self.shared.rewriting.fetch_sub(1, Ordering::SeqCst);
        if let Some(disk) = self.disk.take() {
            self.shared.let_go_if_last(disk);
        }
    }
}

/// Writes some events once more, those that are still there. How many of the keys are done.
pub(super) fn move_some(disk: &Disk, keys: &[UserKey]) -> Result<usize> {
    let (mut batch, mut bytes, mut done) = (disk.db.batch(), 0, 0);
    for key in keys {
        if bytes >= BYTES {
            break;
        }
        done += 1;
        if let Some(value) = disk.events.get(key).map_err(engine("read from the store"))? {
            bytes += value.len();
            batch.insert(&disk.events, key.clone(), value);
        }
    }
    if !batch.is_empty() {
        disk.commit(batch).map_err(engine("commit"))?;
    }
    Ok(done)
}

/// Everything that was erased before it was counted so often has gone.
pub(super) fn paid(disk: &Disk, shared: &Shared, count: u64) -> Result<()> {
    if shared.debt.count() != count {
        return Ok(());
    }
    let mut batch = disk.db.batch();
    batch.remove(&disk.meta, meta::DEBT);
    disk.commit(batch).map_err(engine("commit"))?;
    shared.debt.count.store(0, Ordering::SeqCst);
    Ok(())
}

impl Disk {
    /// Those with what people sent or were answered. The others have names of deliveries and hashes.
    fn with_content(&self) -> [&Keyspace; 3] {
        [&self.events, &self.log, &self.meta]
    }

    pub(super) fn rewrite_trees(&self) -> Result<()> {
        self.flush_and_wait()?;
        self.with_content().into_iter().try_for_each(|keyspace| self.rewrite(keyspace))
    }

    /// Bytes of the tables that [`Disk::rewrite_trees`] writes once more, before those that they replace go.
    pub(super) fn bytes_of_trees(&self) -> Result<u64> {
        let mut sum = 0;
        for keyspace in self.with_content() {
            for table in fs::read_dir(keyspace.path().join("tables")).map_err(io_error)? {
                // One that has gone meanwhile takes no room.
                sum += table.and_then(|table| table.metadata()).map_or(0, |table| table.len());
            }
        }
        Ok(sum)
    }

    /// Rewrites a tree. The engine's one thread waits for it before it compacts the same tree, and flushes nothing
    /// meanwhile: so that is done here.
    pub(super) fn rewrite(&self, keyspace: &Keyspace) -> Result<()> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(Error::Closed);
        }
        self.flushing(|| stepped_back(|| keyspace.major_compact()))?.map_err(io_error)?.map_err(engine(WHAT))
    }

    /// Does some work, and writes sealed memtables to tables meanwhile, so that publishing need not wait for the engine.
    pub(super) fn flushing<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let flush = || {
                while !is_over.load(Ordering::SeqCst) {
                    self.flush_sealed()?;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            };
            let thread = std::thread::Builder::new().name("store-flush".to_owned());
            let flusher = thread.spawn_scoped(scope, flush).map_err(io_error)?;
            let done = work();
            is_over.store(true, Ordering::SeqCst);
            flusher.join().unwrap_or_else(|_| Err(late("the flushing thread has ended")))?;
            Ok(done)
        })
    }

    /// Writes the sealed memtables of keyspaces that have several to tables: before publishing waits for it, and as few
    /// tables as can be, since the engine stands still when a tree has many that are not sorted in.
    fn flush_sealed(&self) -> Result<()> {
        let behind = self.keyspaces().into_iter().filter(|keyspace| keyspace.sealed_memtable_count() > 1);
        for keyspace in behind {
            let turn = keyspace.tree.get_flush_lock();
            // Snapshots may be open: no version of anything is dropped.
            keyspace.tree.flush(&turn, 0).map_err(|error| engine("flush")(error.into()))?;
        }
        Ok(())
    }

    pub(super) fn rewrite_events(&self) -> Result<()> {
        self.flush_and_wait()?;
        self.rewrite(&self.events)
    }

    /// Files of bodies with dead ones among those that live.
    pub(super) fn holed(&self) -> Vec<PathBuf> {
        let version = self.events.tree.current_version();
        let folder = self.events.path().join("blobs");
        version.gc_stats().keys().map(|number| folder.join(number.to_string())).collect()
    }

    /// Until all that is committed is in tables.
    pub(super) fn flush_and_wait(&self) -> Result<()> {
        self.flush_all()?;
        self.wait("the tables are not written", || {
            let is_flushed = |keyspace: &&Keyspace| keyspace.sealed_memtable_count() == 0;
            Ok(self.keyspaces().iter().all(is_flushed))
        })
    }

    fn wait(&self, what: &'static str, mut is_over: impl FnMut() -> Result<bool>) -> Result<()> {
        let limit = Instant::now() + PATIENCE;
        while !is_over()? {
            if Instant::now() > limit {
                return Err(late(what));
            }
            if self.stopping.load(Ordering::SeqCst) {
                return Err(Error::Closed);
            }
            self.check()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn journals(&self) -> Result<Vec<u64>> {
        let store = self.meta.path().ancestors().nth(2).unwrap_or_else(|| self.meta.path());
        Ok(check::journals_of(store).map_err(io_error)?.into_keys().collect())
    }

    /// Until the journals that were there have gone, and files of the trees before.
    pub(super) fn renew_journals(&self) -> Result<()> {
        let newest = self.journals()?.last().copied().unwrap_or(0);
        let is_renewed = || Ok(self.journals()?.last().is_some_and(|last| *last > newest));
        for number in 0..FILLERS {
            if is_renewed()? {
                break;
            }
            let mut batch = self.db.batch();
            batch.insert(&self.meta, keys::TOUCH, filler(number));
            self.commit(batch).map_err(engine("commit"))?;
            // Where the engine writes a memtable, it looks how long its journal is.
            self.meta.rotate_memtable().map_err(engine("flush"))?;
            self.wait("the tables are not written", || Ok(self.meta.sealed_memtable_count() == 0))?;
        }
        self.wait("the engine does not begin a new journal", is_renewed)?;
        self.wait("files are not let go", || {
            self.flush_and_wait()?;
            let is_gone = self.journals()?.first().is_some_and(|first| *first > newest);
            Ok(is_gone && self.with_content().into_iter().all(has_no_other_files))
        })
    }
}

/// What does not compress.
fn filler(number: usize) -> Vec<u8> {
    (0..FILLER / 8).flat_map(|word| xxh3_64(&(number * FILLER + word).to_le_bytes()).to_le_bytes()).collect()
}

/// Whether a keyspace has no files but those of its manifest.
fn has_no_other_files(keyspace: &Keyspace) -> bool {
    let path = keyspace.path();
    let current = fs::read(path.join("current")).ok().and_then(|bytes| manifest::current(&bytes));
    let bytes = current.and_then(|(number, _)| fs::read(path.join(format!("v{number}"))).ok());
    let Some(manifest) = bytes.and_then(|bytes| Manifest::decode(&bytes)) else { return false };
    [("tables", manifest.tables), ("blobs", manifest.blobs)].into_iter().all(|(folder, known)| {
        let Ok(files) = fs::read_dir(path.join(folder)) else { return known.is_empty() };
        files.flatten().all(|file| {
            let number = file.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            known.iter().any(|(known, _)| Some(*known) == number)
        })
    })
}
