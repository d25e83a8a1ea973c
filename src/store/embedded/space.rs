//! Whether the disk has room for more.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(1);

/// Watches the free space of a file system.
#[derive(Debug)]
pub(super) struct Space {
    path: PathBuf,
    least: u64,
    last: Mutex<Option<(Instant, bool)>>,
}

impl Space {
    /// Of the file system of `path`, which should keep `least` bytes free.
    pub(super) fn new(path: PathBuf, least: u64) -> Self {
        Self { path, least, last: Mutex::new(None) }
    }

    /// Whether more may be accepted; asks the file system at most once a second. When that does not answer,
    /// the writes themselves will tell.
    pub(super) fn enough(&self) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, enough)) = *last
            && at.elapsed() < FRESH
        {
            return enough;
        }
        let enough = match rustix::fs::statvfs(&self.path) {
            Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize) >= self.least,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot ask for free space");
                true
            }
        };
        *last = Some((Instant::now(), enough));
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_when_as_much_as_asked_for_is_free() {
        let path = std::env::temp_dir();
        assert!(Space::new(path.clone(), 0).enough());
        assert!(!Space::new(path, u64::MAX).enough());
    }
}
