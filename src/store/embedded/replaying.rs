//! Steps of replays: reading what is taken next, and staging that it waits.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::disk::Disk;
use super::expunge::nothing_of;
use super::group::Group;
use super::keys::meta;
use super::lane::Loaded;
use super::replays::waiting_for;
use super::retain::Oldest;
use crate::model::causes::chain;
use crate::model::ids::{DeliveryName, ReplayId, WebhookUid};
use crate::model::time::UnixMillis;
use crate::store::records::{Asked, Delivery, Next, Outcome, PutByReplay};
use crate::store::replays::{Counts, NewReplay, Part, Replay, Selection};
use crate::store::{Error, Result};

/// Log lines that one advance looks at.
const LOOK: usize = 4096;
/// Deliveries that one step of a cancellation looks at.
const RECALL: usize = 512;
/// What is being recalled cannot be claimed for so long; the commit takes less.
const LEASE: Duration = Duration::from_mins(1);

/// What is asked of the writer.
#[derive(Debug)]
pub(super) enum ReplayStep {
    Begin(Box<Replay>),
    Advance(Advance),
    Finish(ReplayId, UnixMillis),
    /// One step; the answer is how many were recalled.
    Cancel(ReplayId, UnixMillis),
}

impl ReplayStep {
    /// Bytes that it adds to a commit, roughly.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Begin(replay) => 512 + 64 * replay.parts.len(),
            Self::Advance(advance) => 1024 * advance.found.len(),
            Self::Finish(..) => 512,
            Self::Cancel(..) => 512 * RECALL,
        }
    }
}

/// One step at one Webhook.
#[derive(Debug)]
pub(super) struct Advance {
    id: ReplayId,
    webhook: WebhookUid,
    /// Where the replay stood when it was looked for more: another step may have been made since.
    from: Option<DeliveryName>,
    /// What is taken, and when it is due.
    found: Vec<(DeliveryName, UnixMillis)>,
    to: Option<DeliveryName>,
    walked: bool,
}

/// How many deliveries of a Webhook are taken.
pub(super) fn count(disk: &Disk, selection: &Selection, webhook: WebhookUid) -> Result<u64> {
    let mut count = 0;
    walk(disk, selection, webhook, None, |_, line| {
        count += u64::from(line.is_some());
        true
    })?;
    Ok(count)
}

/// Counts all that a new replay takes.
pub(super) fn begin(disk: &Disk, new: NewReplay) -> Result<ReplayStep> {
    let parts = new.webhooks.iter().map(|webhook| {
        let selected = count(disk, &new.selection, *webhook)?;
        let counts = Counts { selected, ..Counts::default() };
        Ok((*webhook, Part { cursor: None, walked: selected == 0, counts }))
    });
    let parts = parts.collect::<Result<BTreeMap<_, _>>>()?;
    Ok(ReplayStep::Begin(Box::new(Replay::new(new, parts))))
}

/// Looks for what is taken next. None: there is nothing more.
pub(super) fn find(
    disk: &Disk,
    replay: &Replay,
    webhook: WebhookUid,
    due: Vec<UnixMillis>,
) -> Result<Option<ReplayStep>> {
    let Some(part) = replay.parts.get(&webhook).filter(|part| !part.walked) else { return Ok(None) };
    let (mut found, mut to, mut looked) = (Vec::with_capacity(due.len()), part.cursor, 0);
    let mut due = due.into_iter();
    let walked = walk(disk, &replay.selection, webhook, part.cursor, |name, line| {
        to = Some(name);
        looked += 1;
        if line.is_some_and(|line| line.expunged.is_none()) {
            found.extend(due.next().map(|due| (name, due)));
        }
        due.len() > 0 && looked < LOOK
    })?;
    let advance = Advance { id: replay.id, webhook, from: part.cursor, found, to, walked };
    Ok(Some(ReplayStep::Advance(advance)))
}

/// Walks over the log lines of a Webhook within a selection's times and states, oldest first, as long as `go_on`
/// says; it is told which of them are taken. Whether the end was reached.
fn walk(
    disk: &Disk,
    selection: &Selection,
    webhook: WebhookUid,
    after: Option<DeliveryName>,
    mut go_on: impl FnMut(DeliveryName, Option<&Delivery>) -> bool,
) -> Result<bool> {
    let judge = selection.judge();
    let from = after.map_or_else(|| Bound::Included(selection.first()), Bound::Excluded);
    let snapshot = disk.db.snapshot();
    let mut oldest = Oldest::new(disk, &snapshot, &[webhook], &selection.states, from)?;
    while let Some((name, ..)) = oldest.next()? {
        let line = readable(name, disk.delivery(name))?;
        if line.as_ref().is_some_and(|line| selection.ends_before(name, line)) {
            break;
        }
        if !go_on(name, line.as_ref().filter(|line| judge.takes(line))) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A log line; one that cannot be decoded is logged and passed over.
fn readable(name: DeliveryName, line: Result<Option<Delivery>>) -> Result<Option<Delivery>> {
    line.or_else(|error| match error {
        Error::Corrupt { .. } => {
            tracing::error!(delivery = %name, error = %chain(&error), "left out of a replay");
            Ok(None)
        }
        other => Err(other),
    })
}

impl Group<'_> {
    /// Stages a step of a replay.
    pub(super) fn replay(&mut self, step: ReplayStep) -> Result<usize> {
        match step {
            ReplayStep::Begin(replay) => {
                self.saw(replay.selection.as_of);
                if self.replays.get(self.hooks.replays(), replay.id).is_none() {
                    let owners = self.hooks.owners(&replay.selection.namespace);
                    let namespace_uid = owners.first().and_then(|owner| owner.uid);
                    self.replays.begin(Replay { namespace_uid, ..*replay });
                }
                Ok(0)
            }
            ReplayStep::Advance(advance) => self.advance(advance),
            ReplayStep::Finish(id, at) => {
                let running = self.running(id);
                let parts = self.replays.parts(self.hooks.replays(), id);
                if let Some(replay) = running.filter(|_| parts.values().all(Part::is_over)) {
                    let replay = Replay { finished_at: Some(at), ..replay };
                    self.replays.finish(self.hooks.replays(), replay);
                }
                Ok(0)
            }
            ReplayStep::Cancel(id, now) => self.cancel(id, now),
        }
    }

    fn running(&self, id: ReplayId) -> Option<Replay> {
        self.replays.get(self.hooks.replays(), id).filter(Replay::runs)
    }

    fn advance(&mut self, advance: Advance) -> Result<usize> {
        let Advance { id, webhook, from, found, to, walked } = advance;
        let Some(replay) = self.running(id) else { return Ok(0) };
        let stands = self.replays.part(self.hooks.replays(), id, webhook);
        if stands.is_none_or(|part| part.walked || part.cursor != from) {
            return Ok(0);
        }
        let (judge, by) = (replay.selection.judge(), Arc::<str>::from(replay.asked_by()));
        let mut put = 0;
        for (name, due) in found {
            let line = self.line(name)?;
            let Some(line) = line.filter(|line| judge.takes(line) && line.expunged.is_none()) else {
                continue;
            };
            let Delivery { state, reason, ended_at, .. } = line;
            let asked = Asked { by: Arc::clone(&by), at: replay.selection.as_of };
            if self.wait_again(&line, asked, due, Some(PutByReplay { id, state, reason, ended_at }))? {
                self.batch.insert(&self.disk.meta, meta::replayed(id, name), b"");
                put += 1;
            }
        }
        self.replays.change(self.hooks.replays(), id, webhook, |part| {
            (part.cursor, part.walked) = (to, walked);
            part.counts.put += put as u64;
            part.counts.selected = part.counts.selected.max(part.counts.put);
        });
        Ok(put)
    }

    /// Stages that the attempt that a replay asked for was made, or will never be.
    pub(super) fn replayed(&mut self, id: ReplayId, line: &Delivery, outcome: &Outcome) {
        self.batch.remove(&self.disk.meta, meta::replayed(id, line.name));
        self.replays.change(self.hooks.replays(), id, line.webhook.uid, |part| {
            let counts = &mut part.counts;
            counts.sent += u64::from(outcome.attempt.is_some());
            match outcome.next {
                Next::Success => counts.succeeded += 1,
                Next::Failed(_) | Next::Retry(_) => counts.failed += 1,
            }
        });
    }

    /// Stages that what a replay has put does not wait any more, and is not counted as put.
    pub(super) fn recall(&mut self, id: ReplayId, line: &Delivery) {
        self.batch.remove(&self.disk.meta, meta::replayed(id, line.name));
        self.replays.change(self.hooks.replays(), id, line.webhook.uid, |part| {
            part.counts.put = part.counts.put.saturating_sub(1);
        });
    }

    /// What others of the same group have put is not on disk yet: it is recalled by the next call.
    fn cancel(&mut self, id: ReplayId, now: UnixMillis) -> Result<usize> {
        let known = self.hooks.replays();
        let Some(replay) = self.replays.get(known, id).filter(|replay| replay.finished_at.is_none()) else {
            return Ok(0);
        };
        let mut recalled = 0;
        for name in waiting_for(self.disk, id)? {
            if recalled == RECALL {
                break;
            }
            recalled += usize::from(self.recall_one(id, name, now)?);
        }
        if self.replays.parts(known, id).values().all(|part| part.counts.waiting() == 0) {
            self.replays.forget(known, id);
        } else if !replay.cancelled {
            self.replays.set(Replay { cancelled: true, ..replay });
        }
        Ok(recalled)
    }

    /// Stages that a delivery is what it was before a replay put it among those that wait. False: its attempt is
    /// under way, or has ended.
    fn recall_one(&mut self, id: ReplayId, name: DeliveryName, now: UnixMillis) -> Result<bool> {
        let Some(before) = self.line(name)? else { return Ok(false) };
        let Some(put) = before.put_by().filter(|put| put.id == id).cloned() else { return Ok(false) };
        let Some(hook) = self.hooks.get(before.webhook.uid) else { return Ok(false) };
        // From here on nobody else can claim it; the commit ends this claim with its place in the queue.
        if !hook.queue().single_out(name, now, LEASE) {
            return Ok(false);
        }
        let bytes = self.event(before.event)?.map_or(0, |event| event.data.len() as u64);
        if let Some(summary) = self.summary(before.webhook.uid) {
            summary.recalls(bytes);
        }
        self.recall(id, &before);
        let PutByReplay { id: _, state, reason, ended_at } = put;
        let after = Delivery { state, reason, ended_at, due: None, redelivery: None, ..before.clone() };
        let nothing = Arc::new(nothing_of(&before));
        self.put(&before, Arc::new(Loaded::new(after, nothing, 1)))?;
        Ok(true)
    }
}
