//! Mending the end of the newest journal after a crash.
//!
//! The last commit before a power loss may be on disk in parts: without its end, or with its end and a hole in the
//! middle. Nobody was told of it, so it is dropped. See [`journal`](super::journal) for what is torn and what is damage.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::journal::Tail;

/// What was mended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mended {
    /// The journal.
    pub path: PathBuf,
    /// Where it ends now.
    pub end: u64,
    /// Bytes that were dropped.
    pub dropped: u64,
}

/// Brings a journal to the end of its last whole commit. None: that is where it ends.
pub(super) fn mend(path: &Path, tail: Tail, written: usize) -> io::Result<Option<Mended>> {
    let open = || File::options().write(true).open(path);
    match tail {
        Tail::Whole => Ok(None),
        Tail::Torn(end) => {
            let file = open()?;
            file.set_len(end as u64)?;
            file.sync_all()?;
            let dropped = written.saturating_sub(end) as u64;
            Ok(Some(Mended { path: path.to_owned(), end: end as u64, dropped }))
        }
        Tail::Unsealed(from) => {
            let file = open()?;
            file.write_all_at(super::journal::MAGIC, from as u64)?;
            file.sync_all()?;
            Ok(None)
        }
    }
}
