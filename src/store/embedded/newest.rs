//! The newest time that was written, by which a clock that was set back is noticed, also after a restart.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::disk::{Disk, engine};
use super::keys::meta;
use crate::model::time::UnixMillis;
use crate::store::{Result, SLACK};

/// On disk it is so much older at most: it is written with commits, and not with each.
const COARSE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Newest {
    seen: AtomicI64,
    saved: AtomicI64,
}

impl Newest {
    /// As it was left. Where a program wrote that did not keep it, the clock may have been ahead by any time.
    pub(super) fn load(disk: &Disk) -> Result<Self> {
        let value = disk.meta.get(meta::NEWEST).map_err(engine("read from the store"))?;
        let value =
            value.and_then(|value| value.as_ref().try_into().ok()).map_or(i64::MAX, i64::from_be_bytes);
        Ok(Self { seen: value.into(), saved: value.into() })
    }

    /// The newest time.
    pub(super) fn get(&self) -> UnixMillis {
        UnixMillis::from_millis(self.seen.load(Ordering::Relaxed))
    }

    /// This was the time at some moment.
    pub(super) fn saw(&self, at: UnixMillis) {
        self.seen.fetch_max(at.as_millis(), Ordering::Relaxed);
    }

    /// Whether something may have been written by a clock that was ahead of `now`.
    pub(super) fn is_ahead_of(&self, now: UnixMillis) -> bool {
        self.get() > now + SLACK
    }

    /// Begins anew; what it was before. On disk that stays until [`Newest::save`], so that a crash in between is
    /// another beginning.
    pub(super) fn begin(&self, now: UnixMillis) -> UnixMillis {
        UnixMillis::from_millis(self.seen.swap(now.as_millis(), Ordering::Relaxed))
    }

    /// A commit has a time in it.
    pub(super) fn add(&self, at: UnixMillis, disk: &Disk, batch: &mut fjall::OwnedWriteBatch) {
        self.saw(at);
        let saved = UnixMillis::from_millis(self.saved.load(Ordering::Relaxed));
        if at > saved + COARSE {
            self.save(disk, batch);
        }
    }

    /// Adds itself to a commit as it is.
    pub(super) fn save(&self, disk: &Disk, batch: &mut fjall::OwnedWriteBatch) {
        let newest = self.get().as_millis();
        batch.insert(&disk.meta, meta::NEWEST, newest.to_be_bytes());
        // If the commit fails, nothing more is written.
        self.saved.store(newest, Ordering::Relaxed);
    }
}
