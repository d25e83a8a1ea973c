//! Mending the end of the journal after a power loss.
//!
//! The last commit before a power loss may be on disk in parts. Where its end is missing, fjall means to drop it, as
//! it should: nobody was told of it. But the disk may also have written the end and not the middle: then fjall
//! finds a wrong checksum and does not open the store at all. This drops such commits, and only at the very end:
//! a wrong checksum before others is real damage, which must be seen by a person.
//!
//! Layout of a journal (format 3 of fjall): each commit is a start (tag 1, count of items, sequence number),
//! items (tag 2, type, compression, keyspace, three lengths, key, value; or tag 4, keyspace) and an end (tag 3,
//! XXH3 of the items, four magic bytes).

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
/// Bytes between an item's tag and its key.
const ITEM_HEADER: usize = 20;
const MAGIC: &[u8] = b"FJL\x03";

/// How a journal ends.
#[derive(Debug, PartialEq, Eq)]
enum Tail {
    /// With something that fjall copes with.
    Fine,
    /// With a commit that is there in parts, from this position on.
    Torn(u64),
    /// There is a wrong checksum at this position, and whole commits behind it.
    Damaged(u64),
}

/// What was mended.
#[derive(Debug)]
pub(super) struct Mended {
    /// The journal.
    pub path: PathBuf,
    /// Where it ends now.
    pub end: u64,
}

/// Drops the last commit of the newest journal, if it is there in parts.
pub(super) fn mend(store: &Path) -> io::Result<Option<Mended>> {
    if !store.try_exists()? {
        return Ok(None);
    }
    let Some(path) = newest(store)? else { return Ok(None) };
    let file = File::options().read(true).write(true).open(&path)?;
    let Tail::Torn(end) = tail(&file, file.metadata()?.len())? else { return Ok(None) };
    file.set_len(end)?;
    file.sync_all()?;
    Ok(Some(Mended { path, end }))
}

/// The journal with the highest number.
fn newest(store: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        let journal = path.extension().is_some_and(|extension| extension == "jnl");
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| journal) {
            newest = newest.max(Some((number, path)));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// What one commit turned out to be.
enum Commit {
    Whole,
    Broken,
    /// It begins and does not end. fjall ends its reading there, but builds with debug assertions panic when it is
    /// cut within a length.
    Cut,
    /// Not one at all: the journal ends before it.
    Ends,
}

fn tail(file: impl Read, length: u64) -> io::Result<Tail> {
    let mut journal = Journal { input: BufReader::new(file), position: 0, length };
    let mut broken = None;
    loop {
        let start = journal.position;
        match journal.commit()? {
            Commit::Whole if broken.is_none() => {}
            Commit::Broken if broken.is_none() => broken = Some(start),
            Commit::Whole | Commit::Broken => return Ok(broken.map_or(Tail::Fine, Tail::Damaged)),
            Commit::Cut => return Ok(Tail::Torn(broken.unwrap_or(start))),
            Commit::Ends => return Ok(broken.map_or(Tail::Fine, Tail::Torn)),
        }
    }
}

struct Journal<R> {
    input: BufReader<R>,
    position: u64,
    length: u64,
}

impl<R: Read> Journal<R> {
    fn read<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        match self.input.read_exact(&mut bytes) {
            Ok(()) => {
                self.position += N as u64;
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn commit(&mut self) -> io::Result<Commit> {
        let Some([START]) = self.read()? else { return Ok(Commit::Ends) };
        let (Some(count), Some(_seqno)) = (self.read::<4>()?, self.read::<8>()?) else {
            return Ok(Commit::Cut);
        };
        let mut left = i64::from(u32::from_le_bytes(count));
        let mut hash = Xxh3::new();
        loop {
            match self.read()? {
                Some([ITEM]) => {
                    hash.update(&[ITEM]);
                    if !self.item(&mut hash)? {
                        return Ok(Commit::Cut);
                    }
                }
                Some([CLEAR]) => {
                    let Some(keyspace) = self.read::<8>()? else { return Ok(Commit::Cut) };
                    hash.update(&[CLEAR]);
                    hash.update(&keyspace);
                }
                Some([END]) => {
                    let (Some(sum), Some(magic)) = (self.read::<8>()?, self.read::<4>()?) else {
                        return Ok(Commit::Cut);
                    };
                    if magic != MAGIC {
                        return Ok(Commit::Cut);
                    }
                    let whole = left == 0 && hash.digest() == u64::from_le_bytes(sum);
                    return Ok(if whole { Commit::Whole } else { Commit::Broken });
                }
                Some(_) | None => return Ok(Commit::Cut),
            }
            left -= 1;
        }
    }

    /// False: it is cut.
    fn item(&mut self, hash: &mut Xxh3) -> io::Result<bool> {
        let Some(header) = self.read::<ITEM_HEADER>()? else { return Ok(false) };
        let [.., k0, k1, _, _, _, _, v0, v1, v2, v3] = header;
        let key = u64::from(u16::from_le_bytes([k0, k1]));
        let value = u64::from(u32::from_le_bytes([v0, v1, v2, v3]));
        if self.position + key + value > self.length {
            return Ok(false);
        }
        hash.update(&header);
        let mut data = Vec::new();
        self.input.by_ref().take(key + value).read_to_end(&mut data)?;
        self.position += data.len() as u64;
        hash.update(&data);
        Ok(data.len() as u64 == key + value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where each commit begins, and the end.
    fn commits(journal: &[u8]) -> Vec<u64> {
        let mut reader =
            Journal { input: BufReader::new(journal), position: 0, length: journal.len() as u64 };
        let mut starts = vec![0];
        while matches!(reader.commit().unwrap(), Commit::Whole) {
            starts.push(reader.position);
        }
        starts
    }

    /// What does not compress, as a larger value would be in the journal.
    fn noise(commit: u8, item: u8) -> Vec<u8> {
        let seed = u64::from(commit) << 32 | u64::from(item) << 40;
        (0..1250_u64)
            .flat_map(|word| xxhash_rust::xxh3::xxh3_64(&(seed + word).to_be_bytes()).to_be_bytes())
            .collect()
    }

    fn store_with_commits(dir: &Path) -> PathBuf {
        let db = fjall::Database::builder(dir).open().unwrap();
        let keyspace = db.keyspace("events", fjall::KeyspaceCreateOptions::default).unwrap();
        for commit in 0..5_u8 {
            let mut batch = db.batch().durability(Some(fjall::PersistMode::SyncData));
            for item in 0..3_u8 {
                batch.insert(&keyspace, [commit, item], noise(commit, item));
            }
            batch.remove(&keyspace, [commit, 1]);
            batch.commit().unwrap();
        }
        drop((keyspace, db));
        newest(dir).unwrap().unwrap()
    }

    #[test]
    fn the_journals_of_the_engine_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let path = store_with_commits(dir.path());
        let journal = fs::read(&path).unwrap();
        assert_eq!(commits(&journal).len(), 6, "five commits and the end");
        assert_eq!(tail(&journal[..], journal.len() as u64).unwrap(), Tail::Fine);
        assert!(mend(dir.path()).unwrap().is_none());
    }

    #[test]
    fn a_last_commit_that_is_cut_anywhere_is_dropped_also_with_zeros_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = store_with_commits(dir.path());
        let whole = fs::read(&path).unwrap();
        let start = commits(&whole)[4];
        // Within the head of the commit and of its first item, byte by byte.
        for cut in 1..64 {
            for zeros in [0, 4096] {
                let end = usize::try_from(start).unwrap() + cut;
                let torn = [&whole[..end], &vec![0; zeros]].concat();
                fs::write(&path, &torn).unwrap();
                assert_eq!(mend(dir.path()).unwrap().unwrap().end, start, "{cut} bytes, {zeros} zeros");
                let db = fjall::Database::builder(dir.path()).open().unwrap();
                let keyspace = db.keyspace("events", fjall::KeyspaceCreateOptions::default).unwrap();
                assert_eq!(keyspace.len().unwrap(), 4 * 2, "{cut} bytes, {zeros} zeros");
            }
        }
    }

    #[test]
    fn a_last_commit_with_a_hole_is_dropped_and_one_before_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = store_with_commits(dir.path());
        let whole = fs::read(&path).unwrap();
        let starts = commits(&whole);
        for commit in 0..5_usize {
            let mut holed = whole.clone();
            let hole = usize::try_from(starts[commit]).unwrap() + 12_000;
            holed[hole..hole + 4096].fill(0);
            fs::write(&path, &holed).unwrap();
            let error = fjall::Database::builder(dir.path()).open().err();
            assert!(matches!(error, Some(fjall::Error::JournalRecovery(_))), "{error:?}");
            fs::write(&path, &holed).unwrap();
            let mended = mend(dir.path()).unwrap();
            if commit < 4 {
                assert!(mended.is_none(), "{mended:?}");
                continue;
            }
            assert_eq!(mended.unwrap().end, starts[4]);
            let db = fjall::Database::builder(dir.path()).open().unwrap();
            let keyspace = db.keyspace("events", fjall::KeyspaceCreateOptions::default).unwrap();
            assert_eq!(keyspace.len().unwrap(), 4 * 2);
        }
    }
}
