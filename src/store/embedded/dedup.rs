//! Which dedup keys are still remembered.

use std::time::Duration;

use fjall::{Keyspace, OwnedWriteBatch};

use super::disk::{Disk, engine};
use super::keys;
use crate::model::time::UnixMillis;
use crate::store::{Error, Result};

/// Which of the two generations is written, and since when. Each lasts as long as the window: then the other,
/// which holds nothing but older keys, is emptied and becomes the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generations {
    current: usize,
    /// None: nothing was written yet.
    since: Option<UnixMillis>,
    /// Not yet on disk as it is here.
    changed: bool,
}

impl Generations {
    /// As they were left.
    pub(super) fn load(disk: &Disk) -> Result<Self> {
        let value = disk.meta.get(keys::meta::DEDUP).map_err(engine("read from the store"))?;
        let Some(value) = value else { return Ok(Self { current: 0, since: None, changed: false }) };
        Self::decode(&value).ok_or_else(|| Error::Corrupt {
            what: "which dedup keys are current".to_owned(),
            source: "it is malformed".into(),
        })
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let (&current, since) = value.split_first()?;
        let since = Some(UnixMillis::from_millis(i64::from_be_bytes(since.try_into().ok()?)));
        (current < 2).then(|| Self { current: usize::from(current), since, changed: false })
    }

    fn encode(self) -> Vec<u8> {
        let since = self.since.unwrap_or_default().as_millis();
        [&[u8::try_from(self.current).unwrap_or(0)], since.to_be_bytes().as_slice()].concat()
    }

    /// The generation that takes a key at `now`. A crash in the middle of a change leaves an empty generation
    /// and the current one as it was, so that the change is made again.
    pub(super) fn current<'a>(
        &mut self,
        disk: &'a Disk,
        now: UnixMillis,
        window: Duration,
    ) -> Result<&'a Keyspace> {
        let [first, second] = &disk.dedup;
        match self.since {
            // A clock that was ahead and was set back must not keep this generation for long.
            Some(since) if since.since(now) > window => (self.since, self.changed) = (Some(now), true),
            Some(since) if now.since(since) < window => {}
            Some(_) => {
                let emptied = if self.current == 0 { second } else { first };
                emptied.clear().map_err(engine("forget old dedup keys"))?;
                *self = Self { current: 1 - self.current, since: Some(now), changed: true };
            }
            None => (self.since, self.changed) = (Some(now), true),
        }
        Ok(if self.current == 0 { first } else { second })
    }

    /// The current one began no later than `now`.
    pub(super) fn redate(&mut self, now: UnixMillis) {
        if self.since.is_some_and(|since| since > now) {
            (self.since, self.changed) = (Some(now), true);
        }
    }

    /// Adds itself to a commit, if it has changed.
    pub(super) fn save(&self, disk: &Disk, batch: &mut OwnedWriteBatch) {
        if self.changed {
            batch.insert(&disk.meta, keys::meta::DEDUP, self.encode());
        }
    }

    /// The commit was made.
    pub(super) fn saved(&mut self) {
        self.changed = false;
    }
}
