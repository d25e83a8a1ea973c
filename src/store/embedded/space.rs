//! Whether the disk has room for more: two marks.
//!
//! With less free than the lower limit, nobody may publish. In the band above it, as wide as that limit, the
//! namespaces that use most are refused, and the more of them the less is free. Whatever waits has room for its
//! outcome set aside, so that what was accepted can be delivered and recorded on a disk that takes no more.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::store::{Error, Result};

/// Milliseconds for which an answer is used.
const FRESH: u64 = 1000;
/// Bytes set aside for the outcome of each delivery that waits.
const OUTCOME: u64 = 1 << 10;

/// Who may store more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Admits {
    /// Nobody.
    Nobody,
    /// Namespaces that use at most so many bytes.
    UpTo(u64),
    /// Everybody.
    All,
}

impl Admits {
    /// Whether a namespace that uses so many bytes may store more.
    pub(super) fn admits(self, used: u64) -> bool {
        match self {
            Self::Nobody => false,
            Self::UpTo(most) => used <= most,
            Self::All => true,
        }
    }

    fn of(free: u64, used: Used, least: u64) -> Self {
        let full = least.saturating_add(used.waiting.saturating_mul(OUTCOME));
        let Some(left) = free.checked_sub(full) else { return Self::Nobody };
        if left >= least {
            return Self::All;
        }
        let most = u128::from(used.largest) * u128::from(left) / u128::from(least);
        Self::UpTo(u64::try_from(most).unwrap_or(u64::MAX))
    }

    /// In one word: [`u64::MAX`] is everybody, 0 nobody.
    fn pack(self) -> u64 {
        match self {
            Self::Nobody => 0,
            Self::UpTo(most) => most.saturating_add(1).min(u64::MAX - 1),
            Self::All => u64::MAX,
        }
    }

    fn unpack(word: u64) -> Self {
        match word {
            0 => Self::Nobody,
            u64::MAX => Self::All,
            more => Self::UpTo(more - 1),
        }
    }
}

/// What of the store counts here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// Deliveries that wait for an outcome.
    pub waiting: u64,
    /// Bytes of the namespace that uses most.
    pub largest: u64,
}

/// Watches the free space of a file system.
#[derive(Debug)]
pub(super) struct Space {
    path: PathBuf,
    least: u64,
    began: Instant,
    /// When the answer is too old, in milliseconds since the beginning.
    expires: AtomicU64,
    admits: AtomicU64,
}

impl Space {
    /// Of the file system of `path`, which should keep `least` bytes free.
    pub(super) fn new(path: PathBuf, least: u64) -> Self {
        let space = Self {
            path,
            least,
            began: Instant::now(),
            expires: AtomicU64::new(0),
            admits: AtomicU64::new(0),
        };
        space.look(Used::default());
        space
    }

    /// Who may store more. Once a second, one caller asks the file system, and what is used; the others get the
    /// last answer meanwhile.
    pub(super) fn admits(&self, used: impl FnOnce() -> Used) -> Admits {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let expires = self.expires.load(Ordering::Relaxed);
        let mine = || {
            let next = now.saturating_add(FRESH);
            self.expires.compare_exchange(expires, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        if now >= expires && mine() {
            self.look(used());
        }
        Admits::unpack(self.admits.load(Ordering::Relaxed))
    }

    /// Whether so many bytes can be written beside what is to stay free.
    pub(super) fn has_room_to(&self, what: &'static str, bytes: u64) -> Result<()> {
        let needed = bytes.saturating_add(self.least);
        let stat = rustix::fs::statvfs(&self.path);
        let stat = stat.map_err(|error| Error::Engine { what, source: Box::new(error) })?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free >= needed {
            return Ok(());
        }
        let why = format!(
            "it needs {needed} bytes, {free} are free on the disk of {}: free some or enlarge the volume",
            self.path.display()
        );
        Err(Error::Engine { what, source: why.into() })
    }

    /// When the file system does not answer, the writes themselves will tell.
    fn look(&self, used: Used) {
        let admits = match rustix::fs::statvfs(&self.path) {
            Ok(stat) => Admits::of(stat.f_bavail.saturating_mul(stat.f_frsize), used, self.least),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot ask for free space");
                Admits::All
            }
        };
        self.admits.store(admits.pack(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_less_is_free_the_fewer_may_store_more_and_those_that_use_most_go_first() {
        let used = |waiting| Used { waiting, largest: 1000 };
        for (free, waiting, least, admits) in [
            (99, 0, 100, Admits::Nobody),
            (100, 0, 100, Admits::UpTo(0)),
            (150, 0, 100, Admits::UpTo(500)),
            (199, 0, 100, Admits::UpTo(990)),
            (200, 0, 100, Admits::All),
            // What waits has its kibibyte.
            (4195, 4, 100, Admits::Nobody),
            (4246, 4, 100, Admits::UpTo(500)),
            (4296, 4, 100, Admits::All),
            (0, 0, 0, Admits::All),
            (0, 1, 0, Admits::Nobody),
            (u64::MAX, 0, u64::MAX, Admits::UpTo(0)),
            (u64::MAX, u64::MAX, 1, Admits::UpTo(0)),
        ] {
            assert_eq!(Admits::of(free, used(waiting), least), admits, "{free} {waiting} {least}");
            assert_eq!(Admits::unpack(admits.pack()), admits);
        }
        assert!(Admits::UpTo(500).admits(500) && !Admits::UpTo(500).admits(501));
        assert!(Admits::All.admits(u64::MAX) && !Admits::Nobody.admits(0));
    }

    #[test]
    fn there_is_room_when_as_much_as_asked_for_is_free() {
        let path = std::env::temp_dir();
        assert_eq!(Space::new(path.clone(), 0).admits(Used::default), Admits::All);
        assert_eq!(Space::new(path, u64::MAX).admits(Used::default), Admits::Nobody);
    }

    #[test]
    fn of_many_callers_one_looks() {
        let space = Space::new(std::env::temp_dir(), 0);
        let looked = AtomicU64::new(0);
        for _ in 0..100 {
            space.admits(|| {
                looked.fetch_add(1, Ordering::Relaxed);
                Used::default()
            });
        }
        let seconds = space.began.elapsed().as_secs();
        assert!((1..=seconds + 1).contains(&looked.into_inner()));
    }
}
