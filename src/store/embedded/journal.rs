//! Reading the engine's journals, without the engine: it cuts what it does not understand, and says nothing.
//!
//! Layout (format 3 of fjall): each commit is a start (tag 1, count of items, sequence number), items (tag 2, type,
//! compression, keyspace, three lengths, key, value; or tag 4, keyspace) and an end (tag 3, XXH3 of the items, four
//! magic bytes). A journal is made with 64 MiB of zeros, over which commits are written.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
/// Tag, count of items, sequence number.
const HEAD: usize = 13;
/// Bytes of an item before its key, with its tag.
const ITEM_HEAD: usize = 21;
/// Bytes of the end of a commit.
const TAIL: usize = 13;
pub(super) const MAGIC: &[u8] = b"FJL\x03";
/// What a disk writes as a whole is never smaller.
const SECTOR: usize = 512;
/// No two commits are so far apart: flushes and compactions take a few numbers in between.
const FAR: u64 = 1 << 32;
/// More keyspaces than any store has.
const KEYSPACES: u64 = 64;

/// The keyspace that every commit of ours writes to: the first that is made.
pub(super) const META: u64 = 1;

/// One commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    /// Where it begins.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    pub seqno: u64,
    /// The sequence number of the commit before, as it says itself.
    pub before: Option<u64>,
    /// One bit for each keyspace that it writes to.
    pub keyspaces: u64,
}

/// Why there is no whole commit at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// It goes on behind what was written.
    Cut,
    /// As [`Broken::Cut`], but what is missing are magic bytes only, from this position on.
    Unsealed(usize),
    /// It is not what was written.
    Wrong,
}

/// How a journal ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// With a whole commit.
    Whole,
    /// With a commit that is there in parts, from this position on, and nothing behind it. Nobody was told of it.
    Torn(usize),
    /// With a commit that is all there but for its magic bytes, from this position on: its checksum says so. They were
    /// never written, or were changed to zeros.
    Unsealed(usize),
}

/// What is wrong with a journal, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub at: usize,
    pub what: &'static str,
}

/// What a journal holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Journal {
    /// All but the zeros at its end.
    pub written: Vec<u8>,
    /// How many zeros these are.
    pub zeros: usize,
    /// No other was begun after it.
    pub is_newest: bool,
}

/// Reads a journal.
pub(super) fn read(path: &Path, is_newest: bool) -> io::Result<Journal> {
    let mut file = File::open(path)?;
    let mut written = Vec::new();
    let (mut chunk, mut zeros) = (vec![0; 1 << 18], 0);
    loop {
        let count = file.read(&mut chunk)?;
        let read = chunk.get(..count).unwrap_or_default();
        match read.iter().rposition(|byte| *byte != 0) {
            _ if count == 0 => return Ok(Journal { written, zeros, is_newest }),
            None => zeros += count,
            Some(last) => {
                written.resize(written.len() + zeros, 0);
                written.extend_from_slice(read.get(..=last).unwrap_or_default());
                zeros = count - last - 1;
            }
        }
    }
}

/// Reads a journal to its end, commit by commit.
///
/// A tail is torn only where nothing valid follows, and where it is as a crash leaves it: cut off, or with a sector or
/// more that was never written. All else is a fault. The end of a journal that is not the newest was synced before the
/// next was made: there, nothing is torn.
pub(super) fn walk(
    journal: &Journal,
    mut each: impl FnMut(&Commit) -> Result<(), Fault>,
) -> Result<Tail, Fault> {
    let (mut at, mut highest, written) = (0, 0, &journal.written);
    while at < written.len() {
        match commit(written, at) {
            Ok(commit) => {
                each(&commit)?;
                (at, highest) = (commit.end, commit.seqno);
            }
            Err(broken) => return tail(journal, at, broken, highest),
        }
    }
    Ok(Tail::Whole)
}

fn tail(journal: &Journal, at: usize, broken: Broken, highest: u64) -> Result<Tail, Fault> {
    let Journal { written, zeros, is_newest } = journal;
    if next(written, at + 1, highest).is_some() {
        return Err(Fault { at, what: "a commit cannot be read, and whole ones follow it" });
    }
    if !is_newest {
        return Err(Fault {
            at,
            what: "its end cannot be read, though it was synced before the next one was begun",
        });
    }
    let has_end = written.ends_with(MAGIC);
    match broken {
        Broken::Unsealed(from) if *zeros > 0 => Ok(Tail::Unsealed(from)),
        Broken::Unsealed(_) => Ok(Tail::Torn(at)),
        Broken::Cut if !has_end => Ok(Tail::Torn(at)),
        Broken::Cut | Broken::Wrong if has_hole(written, at) => Ok(Tail::Torn(at)),
        Broken::Cut | Broken::Wrong => {
            Err(Fault { at, what: "its last commit was written to its end, and is not what was written" })
        }
    }
}

/// Whether a sector or more was never written, from a position on.
fn has_hole(written: &[u8], from: usize) -> bool {
    let first = from.div_ceil(SECTOR) * SECTOR;
    let sectors = written.get(first..).unwrap_or_default().chunks_exact(SECTOR);
    sectors.into_iter().any(|sector| sector.iter().all(|byte| *byte == 0))
}

/// The first whole commit that begins at or behind a position and comes after one with this number.
pub(super) fn next(written: &[u8], from: usize, highest: u64) -> Option<Commit> {
    (from..written.len()).filter(|at| may_begin(written, *at)).find_map(|at| {
        let commit = commit(written, at).ok()?;
        (commit.seqno > highest && commit.seqno - highest < FAR).then_some(commit)
    })
}

/// Spares us most of the reading: what an event's data holds is anything.
fn may_begin(written: &[u8], at: usize) -> bool {
    written.get(at) == Some(&START) && matches!(written.get(at + HEAD), Some(&(ITEM | CLEAR)))
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Broken> {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.copied().ok_or(Broken::Cut)
}

/// The commit at a position.
fn commit(written: &[u8], start: usize) -> Result<Commit, Broken> {
    let [tag] = number(written, start)?;
    if tag != START {
        return Err(Broken::Wrong);
    }
    let count = u32::from_le_bytes(number(written, start + 1)?);
    let seqno = u64::from_le_bytes(number(written, start + 5)?);
    let (mut at, mut before, mut keyspaces) = (start + HEAD, None, 0);
    for _ in 0..count {
        let item = item(written, at)?;
        if item.keyspace == META && item.key == super::keys::meta::BEFORE {
            before = item.value.try_into().ok().map(u64::from_be_bytes);
        }
        keyspaces |= 1 << item.keyspace;
        at = item.end;
    }
    let [tag] = number(written, at)?;
    let sum = u64::from_le_bytes(number(written, at + 1)?);
    let items = written.get(start + HEAD..at).unwrap_or_default();
    if tag != END || sum != xxh3_64(items) || count == 0 {
        return Err(Broken::Wrong);
    }
    let magic = written.get(at + TAIL - MAGIC.len()..).unwrap_or_default();
    if magic.starts_with(MAGIC) {
        Ok(Commit { start, end: at + TAIL, seqno, before, keyspaces })
    } else if magic.len() < MAGIC.len() && MAGIC.starts_with(magic) {
        Err(Broken::Unsealed(at + TAIL - MAGIC.len()))
    } else {
        Err(Broken::Wrong)
    }
}

struct Item<'a> {
    keyspace: u64,
    key: &'a [u8],
    value: &'a [u8],
    end: usize,
}

fn item(written: &[u8], at: usize) -> Result<Item<'_>, Broken> {
    let [tag] = number(written, at)?;
    let keyspace_at = match tag {
        CLEAR => at + 1,
        ITEM => at + 3,
        _ => return Err(Broken::Wrong),
    };
    let keyspace = u64::from_le_bytes(number(written, keyspace_at)?);
    if keyspace >= KEYSPACES {
        return Err(Broken::Wrong);
    }
    if tag == CLEAR {
        return Ok(Item { keyspace, key: &[], value: &[], end: at + 9 });
    }
    let key = usize::from(u16::from_le_bytes(number(written, at + 11)?));
    let value = usize::try_from(u32::from_le_bytes(number(written, at + 17)?)).map_err(|_| Broken::Wrong)?;
    let data = written.get(at + ITEM_HEAD..).unwrap_or_default();
    match data.split_at_checked(key).and_then(|(key, rest)| Some((key, rest.get(..value)?))) {
        Some((key_bytes, value_bytes)) => {
            Ok(Item { keyspace, key: key_bytes, value: value_bytes, end: at + ITEM_HEAD + key + value })
        }
        None => Err(Broken::Cut),
    }
}

/// Whether commits follow each other, over all journals: the checksum of a commit does not cover its number, by which
/// the engine knows what is in tables already, and leaves it out.
#[derive(Debug, Default)]
pub(super) struct Order {
    last: Option<u64>,
    /// Numbers since the last commit that named the one before, and its own.
    since: Vec<u64>,
    is_linked: bool,
}

impl Order {
    /// The number of the last commit; 0: there is none.
    pub(super) fn last(&self) -> u64 {
        self.last.unwrap_or(0)
    }

    /// The next commit.
    pub(super) fn follows(&mut self, commit: &Commit) -> Result<(), Fault> {
        let fault = |what| Fault { at: commit.start, what };
        match self.last {
            Some(last) if commit.seqno <= last || commit.seqno - last >= FAR => {
                return Err(fault("the number of a commit does not follow that of the one before"));
            }
            _ => self.last = Some(commit.seqno),
        }
        match commit.before.filter(|before| *before != 0) {
            Some(before) => {
                let is_here = self.since.contains(&before);
                // Where journals begin, the one before may be in one that is no longer needed.
                let is_earlier = !self.is_linked && self.since.first().is_none_or(|first| before < *first);
                if before >= commit.seqno || !(is_here || is_earlier) {
                    return Err(fault("the commit before is not the one that this one follows"));
                }
                self.since.clear();
                self.is_linked = true;
            }
            // Those of older programs do not say, nor does the first after an opening of an empty journal.
            None if self.since.len() > 1 << 16 => {
                self.since.clear();
                self.is_linked = false;
            }
            None => {}
        }
        self.since.push(commit.seqno);
        Ok(())
    }
}

/// What of a journal is no whole commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub from: usize,
    pub to: usize,
    /// The numbers of the commits before and behind it.
    pub between: (u64, Option<u64>),
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.between {
            (before, Some(behind)) => write!(f, "what was committed between number {before} and {behind}"),
            (before, None) => write!(f, "what was committed after number {before}"),
        }
    }
}

/// The whole commits of a journal, with numbers that rise above `last`, and what is between them.
pub(super) fn salvage(written: &[u8], last: &mut u64) -> (Vec<u8>, Vec<Gap>) {
    let (mut whole, mut gaps, mut at) = (Vec::with_capacity(written.len()), Vec::new(), 0);
    while at < written.len() {
        let found = commit(written, at).ok();
        let is_gap = found.is_none();
        let found = found.or_else(|| next(written, at + 1, *last));
        if is_gap {
            let to = found.as_ref().map_or(written.len(), |next| next.start);
            gaps.push(Gap { from: at, to, between: (*last, found.as_ref().map(|next| next.seqno)) });
        }
        let Some(commit) = found else { break };
        let follows = commit.seqno > *last && (*last == 0 || commit.seqno - *last < FAR);
        let lowest = commit.before.unwrap_or(0).max(*last) + 1;
        *last = if follows && commit.seqno >= lowest { commit.seqno } else { lowest };
        whole.extend_from_slice(written.get(commit.start..commit.start + 5).unwrap_or_default());
        whole.extend_from_slice(&last.to_le_bytes());
        whole.extend_from_slice(written.get(commit.start + HEAD..commit.end).unwrap_or_default());
        at = commit.end;
    }
    (whole, gaps)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// What does not compress, as a larger value would be in the journal.
    fn noise(commit: u8, item: u8) -> Vec<u8> {
        let seed = u64::from(commit) << 32 | u64::from(item) << 40;
        (0..250_u64).flat_map(|word| xxh3_64(&(seed + word).to_be_bytes()).to_be_bytes()).collect()
    }

    /// A journal of five commits, as the engine writes it.
    fn written(dir: &Path) -> (PathBuf, Vec<u8>) {
        let db = fjall::Database::builder(dir).open().unwrap();
        let keyspace = db.keyspace("meta", fjall::KeyspaceCreateOptions::default).unwrap();
        let mut last = 0_u64;
        for commit in 0..5_u8 {
            let mut batch = db.batch().durability(Some(fjall::PersistMode::SyncData));
            for item in 0..3_u8 {
                batch.insert(&keyspace, [commit, item], noise(commit, item));
            }
            batch.remove(&keyspace, [commit, 1]);
            batch.insert(&keyspace, super::super::keys::meta::BEFORE, last.to_be_bytes());
            last = db.seqno();
            batch.commit().unwrap();
        }
        let path = dir.join("0.jnl");
        (path.clone(), read(&path, true).unwrap().written)
    }

    /// What the journal is found to be, and its whole commits.
    fn judge(written: &[u8], is_newest: bool) -> (Result<Tail, Fault>, usize) {
        let (mut order, mut count) = (Order::default(), 0);
        let journal = Journal { written: written.to_vec(), zeros: 9, is_newest };
        let tail = walk(&journal, |commit| {
            order.follows(commit)?;
            count += 1;
            Ok(())
        });
        (tail, count)
    }

    fn starts(written: &[u8]) -> Vec<usize> {
        let mut starts = Vec::new();
        walk(&Journal { written: written.to_vec(), zeros: 0, is_newest: true }, |commit| {
            starts.push(commit.start);
            Ok(())
        })
        .unwrap();
        starts
    }

    #[test]
    fn the_journals_of_the_engine_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let (path, journal) = written(dir.path());
        assert!(fs::metadata(path).unwrap().len() >= 64 << 20, "zeros follow");
        assert_eq!(judge(&journal, true), (Ok(Tail::Whole), 5));
        assert_eq!(judge(&journal, false), (Ok(Tail::Whole), 5));
        let mut befores = Vec::new();
        walk(&Journal { written: journal, zeros: 0, is_newest: true }, |commit| {
            befores.push((commit.before.unwrap(), commit.seqno, commit.keyspaces));
            Ok(())
        })
        .unwrap();
        assert!(befores.windows(2).all(|two| two[1].0 == two[0].1 && two[0].2 == 1 << META), "{befores:?}");
    }

    #[test]
    fn a_last_commit_that_is_cut_anywhere_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let (_, journal) = written(dir.path());
        let start = starts(&journal)[4];
        for cut in start + 1..journal.len() {
            let mut cut = journal[..cut].to_vec();
            cut.truncate(cut.iter().rposition(|byte| *byte != 0).unwrap() + 1);
            let expected = match journal.len() - cut.len() {
                // The checksum is there, and right.
                missing @ 1..=4 => Tail::Unsealed(cut.len() + missing - 4),
                _ if cut.len() <= start => Tail::Whole,
                _ => Tail::Torn(start),
            };
            assert_eq!(judge(&cut, true), (Ok(expected), 4), "{} bytes", cut.len());
            if let Tail::Unsealed(_) = expected {
                let ends = Journal { written: cut, zeros: 0, is_newest: true };
                assert_eq!(walk(&ends, |_| Ok(())), Ok(Tail::Torn(start)), "the file ends there");
            }
        }
        assert!(judge(&journal[..start + 9], false).0.is_err(), "the older one was synced");
    }

    #[test]
    fn a_last_commit_with_a_hole_is_torn_and_one_before_it_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (_, journal) = written(dir.path());
        for (commit, start) in starts(&journal).into_iter().enumerate() {
            for length in [SECTOR, 4096] {
                let mut holed = journal.clone();
                let hole = (start + 700).div_ceil(SECTOR) * SECTOR;
                holed[hole..hole + length].fill(0);
                let (tail, whole) = judge(&holed, true);
                assert_eq!(whole, commit);
                match commit {
                    4 => assert_eq!(tail, Ok(Tail::Torn(start))),
                    _ => assert_eq!(tail.unwrap_err().at, start),
                }
                assert!(judge(&holed, false).0.is_err());
            }
        }
    }

    #[test]
    fn a_changed_byte_anywhere_is_damage_or_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut journal) = written(dir.path());
        let starts = starts(&journal);
        for at in 0..journal.len() {
            // All of what frames, some of what is framed.
            let of_commit = at - starts.iter().rfind(|start| **start <= at).unwrap();
            if (100..1900).contains(&of_commit) && at % 37 != 0 {
                continue;
            }
            for change in [1, 0x80, 0xff, journal[at]] {
                journal[at] ^= change;
                match judge(&journal, true) {
                    _ if change == 0 => {}
                    // Its number is judged by what follows it, too.
                    (Err(fault), _) if of_commit < HEAD => {
                        let next = starts.iter().find(|start| **start > at).unwrap_or(&0);
                        assert!(fault.at <= at || fault.at == *next, "{at}: {fault:?}");
                    }
                    (Err(fault), _) => assert!(fault.at <= at, "{at}: {fault:?}"),
                    (Ok(Tail::Whole | Tail::Unsealed(_)), whole @ 4..) => {
                        let is_last_number = whole == 5 && of_commit < HEAD && at > starts[4];
                        let is_last_byte = whole == 4 && at == journal.len() - 1;
                        assert!(is_last_number || is_last_byte, "{at} of commit {of_commit}, {whole}");
                    }
                    other => panic!("{at} by {change}: {other:?}"),
                }
                journal[at] ^= change;
                if change == journal[at] {
                    break;
                }
            }
        }
    }

    #[test]
    fn what_an_event_holds_is_no_commit() {
        let dir = tempfile::tempdir().unwrap();
        let (_, inner) = written(dir.path());
        let db = fjall::Database::builder(dir.path().join("outer")).open().unwrap();
        let keyspace = db.keyspace("meta", fjall::KeyspaceCreateOptions::default).unwrap();
        for number in 0..20_u8 {
            keyspace.insert([number], "").unwrap();
        }
        // Commits with numbers that have passed.
        keyspace.insert("event", inner).unwrap();
        let outer = read(&dir.path().join("outer/0.jnl"), true).unwrap().written;
        let start = *starts(&outer).last().unwrap();
        assert_eq!(judge(&outer[..outer.len() - 20], true).0, Ok(Tail::Torn(start)));
    }
}
