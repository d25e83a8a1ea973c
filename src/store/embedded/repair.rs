//! Making a store that opens out of one whose files are damaged: what can be read is written to another one, and what
//! follows from log and events is made anew. The damaged store is kept as it was.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fjall::PersistMode;

use super::check::{self, Found};
use super::disk::{Disk, engine};
use super::journal::{self, Gap};
use super::manifest::{self, Manifest};
use super::open::{lock, sync_tree};
use super::rebuild::{Lost, rebuild};
use crate::model::time::UnixMillis;
use crate::store::{Damage, Error, Result};

/// Where it is worked; what an interrupted repair left is of no use.
const WORK: &str = "repair.work";
/// Size of tables.
const MEMTABLE: u64 = 8 << 20;

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// Where the damaged store and the report are.
    pub kept: PathBuf,
    /// For people.
    pub report: String,
}

fn io_error(source: io::Error) -> Error {
    Error::Engine { what: "repair the store", source: source.into() }
}

/// Repairs the store of a data directory that no process uses. None: nothing is damaged.
///
/// The damaged store is copied first, and kept whole in `damaged-` and the time. Nothing erases what is in there.
///
/// # Errors
///
/// It cannot be repaired, or there is no room for two copies. Nothing was changed then.
pub fn repair(dir: &Path, now: UnixMillis) -> Result<Option<Repaired>> {
    let _lock = lock(dir)?;
    let Some(ready) = prepare(dir, now)? else { return Ok(None) };
    exchange(dir, &ready.kept).inspect_err(|_| drop(fs::remove_dir_all(&ready.kept)))?;
    Ok(Some(ready))
}

/// Makes the store that is to take the place of the damaged one, with the report, where the damaged one will be kept.
/// The damaged one stays in its place: after a crash here, a repair begins anew.
pub(super) fn prepare(dir: &Path, now: UnixMillis) -> Result<Option<Repaired>> {
    let (store, work) = (dir.join("store"), dir.join(WORK));
    if !store.try_exists().map_err(io_error)? {
        return Err(Error::Unusable(format!("there is no store in {}", dir.display())));
    }
    let found = check::look(&store, None, None).map_err(io_error)?;
    if found.damage.is_empty() {
        return Ok(None);
    }
    has_room(dir, &store)?;
    let repaired = save(&store, &work, &found, now).inspect_err(|_| drop(fs::remove_dir_all(&work)))?;
    let kept = dir.join(format!("damaged-{}", stamp(now)));
    let report = format!(
        "{repaired}\nThe damaged store is kept in {0}, with this report. It holds whatever was erased since it was\n\
         damaged, too: delete {0} when it is no longer needed.\n",
        kept.display()
    );
    let write = || {
        fs::write(work.join("REPORT"), &report)?;
        sync_tree(&work)?;
        fs::rename(&work, &kept)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(io_error).inspect_err(|_| drop(fs::remove_dir_all(&work)))?;
    Ok(Some(Repaired { kept, report }))
}

/// Puts the prepared store and the damaged one each in the other's place, at once: in between, a start would make an
/// empty store.
fn exchange(dir: &Path, kept: &Path) -> Result<()> {
    let (here, prepared, store) = (rustix::fs::CWD, kept.join("store"), dir.join("store"));
    rustix::fs::renameat_with(here, &prepared, here, &store, rustix::fs::RenameFlags::EXCHANGE)
        .map_err(|error| io_error(error.into()))?;
    [dir, kept].into_iter().try_for_each(|folder| File::open(folder)?.sync_all()).map_err(io_error)
}

/// Of a time, in the name of a directory.
fn stamp(now: UnixMillis) -> String {
    now.to_string().chars().filter(char::is_ascii_alphanumeric).collect()
}

fn has_room(dir: &Path, store: &Path) -> Result<()> {
    let needed = size(store).map_err(io_error)?.saturating_mul(2);
    let stat = rustix::fs::statvfs(dir).map_err(|error| io_error(error.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= needed {
        return Ok(());
    }
    Err(Error::Unusable(format!(
        "a repair writes two copies of the store and needs {needed} bytes, {free} are free on the disk of {}: enlarge \
         the volume, or copy the directory to a larger one and repair it there. Nothing was changed",
        dir.display()
    )))
}

/// Bytes on the disk: journals have room for more than they hold.
fn size(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut sum = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { size(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(sum)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() { copy(&path, &target)? } else { fs::copy(&path, &target).map(drop)? }
    }
    Ok(())
}

/// Makes the new store in `work/store`; what is to be said of it.
fn save(store: &Path, work: &Path, found: &Found, now: UnixMillis) -> Result<String> {
    match fs::remove_dir_all(work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(error)),
        _ => {}
    }
    let (copied, fresh) = (work.join("copy"), work.join("store"));
    copy(store, &copied).map_err(io_error)?;
    let gaps = mend(&copied).map_err(io_error)?;
    let old = open(&copied, found)?;
    let new = Disk::make(&fresh, MEMTABLE)?;
    let lost = rebuild(&old, &new, now)?;
    new.db.persist(PersistMode::SyncAll).map_err(engine("sync"))?;
    drop((old, new));
    sync_tree(&fresh).map_err(io_error)?;
    fs::remove_dir_all(&copied).map_err(io_error)?;
    Ok(report(&found.damage, &gaps, &lost, now))
}

/// Opens the copy, after it was mended. The engine may panic over what it does not expect.
fn open(copied: &Path, found: &Found) -> Result<Disk> {
    let opened = catch_unwind(AssertUnwindSafe(|| Disk::open(copied, MEMTABLE, 0)));
    let why = match opened {
        Ok(Ok(disk)) => return Ok(disk),
        Ok(Err(error)) => crate::model::causes::chain(&error),
        Err(_) => "the engine gave up".to_owned(),
    };
    let what = found.damage.first().map(ToString::to_string).unwrap_or_default();
    Err(Error::Unusable(format!(
        "this damage cannot be repaired ({what}; {why}): restore a backup. Nothing was changed"
    )))
}

/// Makes the engine open a copy: journals of whole commits only, and manifests that are named.
fn mend(copied: &Path) -> io::Result<Vec<(PathBuf, Gap)>> {
    fs::write(copied.join("version"), check::VERSION)?;
    let (mut gaps, mut last) = (Vec::new(), 0);
    let journals = check::journals_of(copied)?;
    let newest = journals.last_key_value().map(|(number, _)| *number);
    for (number, path) in journals {
        let read = journal::read(&path, Some(number) == newest)?;
        let (whole, missing) = journal::salvage(&read.written, &mut last);
        fs::write(&path, whole)?;
        let name = PathBuf::from(path.file_name().unwrap_or_default());
        gaps.extend(missing.into_iter().map(|gap| (name.clone(), gap)));
    }
    for entry in fs::read_dir(copied.join("keyspaces"))? {
        let path = entry?.path();
        if path.is_dir() {
            name_manifest(&path)?;
        }
    }
    Ok(gaps)
}

/// Names the newest manifest that can be read, where another is named.
fn name_manifest(keyspace: &Path) -> io::Result<()> {
    let current = keyspace.join("current");
    let named = fs::read(&current).ok().and_then(|bytes| manifest::current(&bytes));
    let read = |number: u64| fs::read(keyspace.join(format!("v{number}"))).ok();
    if named.is_some_and(|(number, sum)| read(number).is_some_and(|bytes| check::sum_of(&bytes) == sum)) {
        return Ok(());
    }
    let mut numbers = Vec::new();
    for entry in fs::read_dir(keyspace)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_prefix('v')?.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    let readable = numbers.into_iter().rev().find_map(|number| {
        let bytes = read(number)?;
        let manifest = Manifest::decode(&bytes)?;
        let are_there = |folder: &str, files: Vec<(u64, u128)>| {
            files.iter().all(|(number, _)| keyspace.join(folder).join(number.to_string()).exists())
        };
        let is_whole = are_there("tables", manifest.tables) && are_there("blobs", manifest.blobs);
        is_whole.then(|| (number, check::sum_of(&bytes)))
    });
    let Some((number, sum)) = readable else { return Ok(()) };
    fs::write(current, [&number.to_le_bytes(), sum.to_le_bytes().as_slice(), &[0]].concat())
}

fn report(damage: &[Damage], gaps: &[(PathBuf, Gap)], lost: &Lost, now: UnixMillis) -> String {
    let mut lines = vec![format!("hookwright repair, {now}\n\nDamaged:")];
    lines.extend(damage.iter().map(|damage| format!("- {damage}")));
    lines.push("\nLost:".to_owned());
    lines.extend(
        gaps.iter().map(|(journal, gap)| {
            format!("- {}, bytes {} to {}: {gap}", journal.display(), gap.from, gap.to)
        }),
    );
    for (what, times) in [
        ("deliveries of which nothing is left", &lost.deliveries),
        ("payloads (their deliveries are shown as erased, and are not sent)", &lost.payloads),
    ] {
        if let (Some(first), Some(last)) = (times.iter().min(), times.iter().max()) {
            lines.push(format!("- {} {what}, accepted from {first} to {last}", times.len()));
        }
    }
    lines.extend(lost.keyspaces.iter().map(|keyspace| {
        format!("- parts of \"{keyspace}\" cannot be read; what follows from the log is made anew")
    }));
    lines.push(format!("\nSaved: {} deliveries, {} of them wait to be sent.\n", lost.saved, lost.waiting));
    lines.join("\n")
}
