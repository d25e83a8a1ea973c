//! Whether the disk has room for more.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Milliseconds for which an answer is used.
const FRESH: u64 = 1000;

/// Watches the free space of a file system.
#[derive(Debug)]
pub(super) struct Space {
    path: PathBuf,
    least: u64,
    began: Instant,
    /// When the answer is too old, in milliseconds since the beginning.
    expires: AtomicU64,
    enough: AtomicBool,
}

impl Space {
    /// Of the file system of `path`, which should keep `least` bytes free.
    pub(super) fn new(path: PathBuf, least: u64) -> Self {
        let space = Self {
            path,
            least,
            began: Instant::now(),
            expires: AtomicU64::new(0),
            enough: AtomicBool::new(true),
        };
        space.enough.store(space.ask(), Ordering::Relaxed);
        space
    }

    /// Whether more may be accepted. Once a second, one caller asks the file system, and does `also`; the others
    /// get the last answer meanwhile.
    pub(super) fn enough(&self, also: impl FnOnce()) -> bool {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let expires = self.expires.load(Ordering::Relaxed);
        let mine = || {
            let next = now.saturating_add(FRESH);
            self.expires.compare_exchange(expires, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        if now >= expires && mine() {
            self.enough.store(self.ask(), Ordering::Relaxed);
            also();
        }
        self.enough.load(Ordering::Relaxed)
    }

    /// When the file system does not answer, the writes themselves will tell.
    fn ask(&self) -> bool {
        match rustix::fs::statvfs(&self.path) {
            Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize) >= self.least,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot ask for free space");
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_when_as_much_as_asked_for_is_free() {
        let path = std::env::temp_dir();
        assert!(Space::new(path.clone(), 0).enough(|| {}));
        assert!(!Space::new(path, u64::MAX).enough(|| {}));
    }

    #[test]
    fn of_many_callers_one_looks() {
        let space = Space::new(std::env::temp_dir(), 0);
        let looked = AtomicU64::new(0);
        for _ in 0..100 {
            space.enough(|| {
                looked.fetch_add(1, Ordering::Relaxed);
            });
        }
        let seconds = space.began.elapsed().as_secs();
        assert!((1..=seconds + 1).contains(&looked.into_inner()));
    }
}
