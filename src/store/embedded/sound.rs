//! Whether the files of a store are what was written: looked at before the engine opens them, and what that takes too
//! long for, afterwards in the background.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Shared;
use super::check::{self, Vouched};
use super::torn::{self, Mended};
use crate::process::stepped_back;
use crate::store::{Damage, Damaged, Error, Result};

/// For so long, tables and files of bodies are read before the store opens.
const BEFORE: Duration = Duration::from_secs(2);
/// In the data directory: the file in which damage was found while the store was open.
const SUSPECT: &str = "suspect";

/// A store that may be opened.
#[derive(Debug)]
pub(super) struct Sound {
    /// The number of the last commit.
    pub last: u64,
    pub suspects: Suspects,
}

/// Files that nobody has looked at since the start.
#[derive(Debug)]
pub(super) struct Suspects {
    dir: PathBuf,
    files: Vec<Vouched>,
}

fn io(source: io::Error) -> Error {
    Error::Engine { what: "look at the files of the store", source: source.into() }
}

/// Looks at the files, and drops the end of a commit that was never acknowledged. Changes nothing if anything is damaged.
pub(super) fn look(dir: &Path, store: &Path) -> Result<Sound> {
    let suspect = match fs::read_to_string(dir.join(SUSPECT)) {
        Ok(path) => Some(store.join(path)),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(io(error)),
    };
    let until = Some(Instant::now() + BEFORE);
    let found = check::look(store, suspect.as_deref(), until).map_err(io)?;
    if !found.damage.is_empty() {
        return Err(Error::Damaged(Damaged { dir: dir.to_owned(), files: found.damage }));
    }
    if suspect.is_some() {
        fs::remove_file(dir.join(SUSPECT)).map_err(io)?;
    }
    mention_copies(dir);
    if let Some(newest) = &found.newest
        && let Some(Mended { path, end, dropped }) =
            torn::mend(&newest.path, newest.tail, newest.written).map_err(io)?
    {
        tracing::warn!(journal = %path.display(), end, dropped,
            "dropped a last commit that was written in parts; nobody was told that it was stored");
    }
    Ok(Sound { last: found.last, suspects: Suspects { dir: dir.to_owned(), files: found.unread } })
}

/// What repairs keep is out of the reach of erasing.
fn mention_copies(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("damaged-") {
            tracing::warn!(path = %entry.path().display(),
                "a repair kept this copy, and nothing is erased in it: delete it when it is no longer needed");
        }
    }
}

impl Suspects {
    /// These of a data directory.
    #[cfg(test)]
    pub(super) fn of(dir: &Path, files: Vec<Vouched>) -> Self {
        Self { dir: dir.to_owned(), files }
    }

    /// Looks at them one after the other, with pauses. The store stops writing when one is damaged, and the next opening
    /// begins with that one.
    pub(super) fn look_at_in_the_background(self, shared: &Arc<Shared>) {
        let shared = Arc::downgrade(shared);
        if self.files.is_empty() {
            return;
        }
        tracing::info!(files = self.files.len(), "checksums of files are looked at in the background");
        let work = move || stepped_back(|| self.look_at(&shared));
        if let Err(error) = std::thread::Builder::new().name("store-check".to_owned()).spawn(work) {
            tracing::warn!(%error, "checksums of files are not looked at");
        }
    }

    fn look_at(&self, shared: &Weak<Shared>) {
        for file in &self.files {
            let began = Instant::now();
            let read = check::read(file);
            let Some(shared) = shared.upgrade() else { return };
            if shared.closed.load(Ordering::SeqCst) || shared.is_poisoned() {
                return;
            }
            match read {
                Ok(None) => {}
                Ok(Some(damage)) => return self.stop(&shared, damage),
                // It was not needed any more.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(path = %file.path.display(), %error, "cannot be looked at"),
            }
            drop(shared);
            std::thread::sleep(began.elapsed());
        }
        tracing::info!(files = self.files.len(), "the checksums of all files are right");
    }

    fn stop(&self, shared: &Shared, damage: Damage) {
        let path = damage.path.strip_prefix(self.dir.join("store")).unwrap_or(&damage.path);
        if let Err(error) = fs::write(self.dir.join(SUSPECT), path.to_string_lossy().as_bytes()) {
            tracing::warn!(%error, "cannot note which file is damaged");
        }
        shared.poison(&Error::Damaged(Damaged { dir: self.dir.clone(), files: vec![damage] }));
    }
}
