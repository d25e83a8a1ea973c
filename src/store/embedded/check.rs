//! Looking at the files of a store before the engine opens it. The engine drops, cuts and deletes by itself what it does
//! not understand; here that is found, said, and left as it is.
//!
//! Each file is vouched for by another: `current` has the checksum of the manifest (`vN`), which has those of all tables
//! and files of bodies; journals have checksums of their own ([`journal`](super::journal)).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use xxhash_rust::xxh3::Xxh3;

use super::journal::{self, Order, Tail};
use super::manifest::{self, Manifest};
use crate::store::Damage;

/// Keyspaces that every store has, with the engine's own one.
const LEAST: u64 = 8;
/// What the engine writes to the file `version`.
pub(super) const VERSION: &[u8] = b"FJL\x03";

/// A file whose checksum is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vouched {
    pub path: PathBuf,
    pub sum: u128,
}

/// The end of the newest journal.
#[derive(Clone, Debug)]
pub(super) struct Newest {
    pub path: PathBuf,
    pub tail: Tail,
    /// Bytes up to the last that is not zero.
    pub written: usize,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// What is damaged.
    pub damage: Vec<Damage>,
    pub newest: Option<Newest>,
    /// The number of the last commit.
    pub last: u64,
    /// Tables and files of bodies that were not read for want of time.
    pub unread: Vec<Vouched>,
}

impl Found {
    fn damaged(&mut self, path: &Path, at: Option<u64>, what: &str) {
        self.damage.push(Damage { path: path.to_owned(), at, what: what.to_owned() });
    }
}

/// Looks at all files of a store. Journals and manifests are read whole; tables and files of bodies until a time, and
/// `first` is read before others, and always.
pub(super) fn look(store: &Path, first: Option<&Path>, until: Option<Instant>) -> io::Result<Found> {
    let mut found = Found::default();
    version(store, &mut found)?;
    let written_to = journals(store, &mut found)?;
    let mut vouched = keyspaces(store, written_to, &mut found)?;
    vouched.sort_by_key(|file| Some(&*file.path) != first);
    let mut files = vouched.into_iter();
    for file in files.by_ref() {
        if Some(&*file.path) != first && until.is_some_and(|until| Instant::now() >= until) {
            found.unread.push(file);
            break;
        }
        if let Some(damage) = read(&file)? {
            found.damage.push(damage);
        }
    }
    found.unread.extend(files);
    Ok(found)
}

fn version(store: &Path, found: &mut Found) -> io::Result<()> {
    let path = store.join("version");
    match fs::read(&path) {
        Ok(bytes) if bytes == VERSION => {}
        Ok(_) => found.damaged(&path, Some(0), "it does not say that this is a store"),
        Err(error) if error.kind() == ErrorKind::NotFound => found.damaged(&path, None, "it is missing"),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The journals by number.
pub(super) fn journals_of(store: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut journals = BTreeMap::new();
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jnl")
            && let Some(number) = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok())
        {
            journals.insert(number, path);
        }
    }
    Ok(journals)
}

/// One bit for each keyspace that they write to.
fn journals(store: &Path, found: &mut Found) -> io::Result<u64> {
    let journals = journals_of(store)?;
    let Some((&newest, _)) = journals.last_key_value() else {
        found.damaged(&store.join("*.jnl"), None, "there is no journal");
        return Ok(0);
    };
    let (mut order, mut written_to, mut expected) = (Order::default(), 0, None);
    for (number, path) in journals {
        if let Some(missing) = expected.filter(|expected| *expected != number) {
            found.damaged(&store.join(format!("{missing}.jnl")), None, "it is missing");
        }
        expected = Some(number + 1);
        let journal = journal::read(&path, number == newest)?;
        if journal.written.is_empty() && !journal.is_newest {
            found.damaged(&path, Some(0), "it is empty, though another was begun after it");
        }
        let walked = journal::walk(&journal, |commit| {
            written_to |= commit.keyspaces;
            order.follows(commit)
        });
        match walked {
            Ok(tail) if number == newest => {
                found.newest = Some(Newest { path, tail, written: journal.written.len() });
            }
            Ok(_) => {}
            Err(fault) => {
                found.damaged(&path, Some(fault.at as u64), fault.what);
                // What follows it cannot be judged by it.
                order = Order::default();
            }
        }
    }
    found.last = order.last();
    Ok(written_to)
}

fn keyspaces(store: &Path, written_to: u64, found: &mut Found) -> io::Result<Vec<Vouched>> {
    let (folder, mut vouched) = (store.join("keyspaces"), Vec::new());
    let mut numbers = Vec::new();
    match fs::read_dir(&folder) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
                match number {
                    _ if !entry.file_type()?.is_dir() => {}
                    Some(number) => numbers.push(number),
                    None => found.damaged(&entry.path(), None, "it is not of a store"),
                }
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    numbers.sort_unstable();
    // The engine's own one alone: not a store of ours. The engine opens it without harm, and it is refused then.
    if numbers == [0] && written_to == 0 {
        return Ok(vouched);
    }
    let written_up_to = u64::from(u64::BITS - written_to.leading_zeros());
    let count = numbers.last().map_or(0, |last| last + 1).max(LEAST).max(written_up_to);
    for number in 0..count {
        let path = folder.join(number.to_string());
        let is_made = path.join("current").try_exists()?;
        // The last one may have been in the making.
        let is_needed = number < LEAST || number + 1 < count || written_to & (1 << number.min(63)) != 0;
        if is_made {
            tree(&path, found, &mut vouched)?;
        } else if is_needed || has_files(&path.join("tables"))? || has_files(&path.join("blobs"))? {
            found.damaged(&path.join("current"), None, "it is missing");
        }
    }
    Ok(vouched)
}

fn has_files(folder: &Path) -> io::Result<bool> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The files of one keyspace.
fn tree(path: &Path, found: &mut Found, vouched: &mut Vec<Vouched>) -> io::Result<()> {
    let current = path.join("current");
    let Some((number, sum)) = manifest::current(&fs::read(&current)?) else {
        found.damaged(&current, Some(0), "it does not name a manifest");
        return Ok(());
    };
    let path_of_manifest = path.join(format!("v{number}"));
    let bytes = match fs::read(&path_of_manifest) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            found.damaged(&current, Some(0), &format!("it names the manifest v{number}, which is missing"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let manifest = (sum == sum_of(&bytes)).then(|| Manifest::decode(&bytes)).flatten();
    let Some(manifest) = manifest else {
        found.damaged(&path_of_manifest, None, "its checksum is wrong, or that which the file `current` has");
        return Ok(());
    };
    for (folder, files) in [("tables", manifest.tables), ("blobs", manifest.blobs)] {
        for (number, sum) in files {
            let path = path.join(folder).join(number.to_string());
            if path.try_exists()? {
                vouched.push(Vouched { path, sum });
            } else {
                found.damaged(&path, None, "it is missing");
            }
        }
    }
    Ok(())
}

pub(super) fn sum_of(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}

/// Reads a file whose checksum is known. None: it is as it was written.
pub(super) fn read(file: &Vouched) -> io::Result<Option<Damage>> {
    let Vouched { path, sum } = file;
    let (mut input, mut hash, mut chunk) = (File::open(path)?, Xxh3::new(), vec![0; 1 << 18]);
    loop {
        match input.read(&mut chunk)? {
            0 => break,
            count => hash.update(chunk.get(..count).unwrap_or_default()),
        }
    }
    if hash.digest128() == *sum {
        return Ok(None);
    }
    let at = manifest::first_wrong(&fs::read(path)?).map(|at| at as u64);
    Ok(Some(Damage { path: path.clone(), at, what: "its checksum is wrong".to_owned() }))
}
