//! The seam: [`Store`] as this engine keeps it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, TryFutureExt as _};

use super::disk::Disk;
use super::group::Prepared;
use super::keys::Slot;
use super::lane::LaneId;
use super::purge::Cursor;
use super::query;
use super::queue::Queue;
use super::replaying::{self, ReplayStep};
use super::replays;
use super::retain::Position;
use super::space::{Admits, Used};
use super::usage::Owner;
use super::writer::Command;
use super::{Embedded, Shared};
use crate::model::causes::chain;
use crate::model::ids::{DeliveryName, EventUid, ReplayId, WebhookRef, WebhookUid};
use crate::model::time::UnixMillis;
use crate::store::records::{
    DedupKey, Delivery, Event, Expunge, Expunged, NewEvent, Outcome, Redelivered, Redelivery, Summary, Usage,
};
use crate::store::{
    Appended, Change, ClaimRequest, Claims, Error, NewReplay, Page, Query, Replay, Replays, Result,
    Selection, Store, Wakes,
};

/// How often a call that waits for tables to be written looks again.
const CATCHING_UP: Duration = Duration::from_millis(5);

impl Embedded {
    async fn append_all(&self, mut events: Vec<NewEvent>) -> Result<Vec<Appended>> {
        let admits = self.admits()?;
        events.iter().try_for_each(|event| self.within_quota(event, admits))?;
        let Some(first) = events.first() else { return Ok(vec![]) };
        let bytes = events.iter().map(|event| event.data.len() + 512 * event.deliveries.len()).sum();
        let room = &self.shared.room;
        let place = room.enter(&Arc::clone(&first.namespace), bytes, self.caught_up(bytes)).await?;
        for delivery in events.iter_mut().flat_map(|event| &mut event.deliveries) {
            delivery.webhook.uid = self.shared.hooks.key(delivery.webhook.uid);
        }
        // Encoded by the caller's thread: the writer is one for all.
        let events = events.into_iter().map(Prepared::new).collect::<Result<Vec<_>>>()?;
        self.ask(|reply| Command::Append(events, place, reply)).await
    }

    /// Waits until tables have caught up, as far as a call of so many bytes has to.
    async fn caught_up(&self, bytes: usize) -> Result<()> {
        while self.shared.disk()?.is_behind(bytes) {
            tokio::time::sleep(CATCHING_UP).await;
            self.admits()?;
        }
        Ok(())
    }

    /// Asked before the call waits its turn: those that come at the same time may exceed the limit together.
    fn within_quota(&self, event: &NewEvent, admits: Admits) -> Result<()> {
        if event.deliveries.iter().all(|delivery| delivery.test) {
            return Ok(());
        }
        let limit = self.shared.quota_pending_bytes;
        let used = self.shared.hooks.usage(&event.namespace);
        let namespace = || Arc::clone(&event.namespace);
        if used.pending_bytes >= limit {
            return Err(Error::OverQuota { namespace: namespace(), limit });
        }
        if !admits.admits(used.bytes) {
            return Err(Error::NearlyFull { namespace: namespace() });
        }
        Ok(())
    }

    /// Whose events are taken now.
    fn admits(&self) -> Result<Admits> {
        let shared = &self.shared;
        if shared.is_poisoned() {
            return Err(Error::Poisoned);
        }
        if shared.closed.load(Ordering::SeqCst) {
            return Err(Error::Closed);
        }
        let admits = shared.space.admits(|| {
            // Flushes and compactions fail in threads of the engine, which then takes no more writes.
            if let Ok(disk) = shared.disk()
                && let Err(error) = disk.check()
            {
                shared.poison(&error);
            }
            let waiting = u64::try_from(shared.pending.load(Ordering::SeqCst)).unwrap_or(0);
            Used { waiting, largest: shared.hooks.usages().largest() }
        });
        match admits {
            _ if shared.is_poisoned() => Err(Error::Poisoned),
            Admits::Nobody => Err(Error::Full),
            admits => Ok(admits),
        }
    }

    async fn expunge_all(&self, expunge: Expunge) -> Result<Expunged> {
        let name = expunge.name;
        let found = self
            .read(move |_, disk| {
                let Some(delivery) = disk.delivery(name)? else { return Ok(None) };
                disk.deliveries_of(&delivery).map(Some)
            })
            .await?;
        let Some(names) = found else { return Ok(Expunged::NotFound) };
        self.ask(|reply| Command::Expunge(expunge, names, reply)).await
    }

    async fn retain_all(&self, now: UnixMillis) -> Result<u64> {
        let mut gone = 0;
        for owner in self.shared.hooks.usages().to_look_at(&self.shared.retention, now) {
            let mut position = Some(Position::default());
            while let Some(from) = position {
                let owner = owner.clone();
                let step = self.ask(|reply| Command::Retain(owner, now, from, reply)).await?;
                gone += step.gone;
                position = step.next;
            }
        }
        if self.shared.hooks.usages().much_is_gone()
            && let Err(error) = self.rewrite(Disk::give_back).await
        {
            tracing::warn!(error = %chain(&error), "erased events still take room");
        }
        Ok(gone)
    }

    async fn purge_all(&self, webhook: WebhookUid) -> Result<u64> {
        let (mut cursor, mut discarded) = (Some(Cursor::default()), 0);
        while let Some(from) = cursor {
            let step = self.ask(|reply| Command::Purge(webhook, from, reply)).await?;
            discarded += step.discarded;
            cursor = step.next;
        }
        self.shared.changes.add([webhook]);
        Ok(discarded)
    }

    async fn page(&self, mut query: Query) -> Result<Page> {
        if let Some(webhook) = query.webhook {
            let Some(hook) = self.shared.hooks.seen(webhook) else { return Ok(Page::default()) };
            query.webhook = Some(hook.key());
        }
        self.read(move |shared, disk| query::page(disk, &shared.hooks, &query)).await
    }

    /// What those of these Webhooks are kept under that are not gone.
    fn keys(&self, webhooks: &[WebhookUid]) -> Vec<WebhookUid> {
        webhooks.iter().filter_map(|webhook| Some(self.shared.hooks.seen(*webhook)?.key())).collect()
    }

    /// A replay as others know its Webhooks.
    fn as_known(&self, mut replay: Arc<Replay>) -> Arc<Replay> {
        let uids: Vec<_> = replay.parts.keys().map(|key| self.shared.hooks.uid(*key)).collect();
        if !uids.iter().eq(replay.parts.keys()) {
            let parts = replay.parts.values().copied();
            Arc::make_mut(&mut replay).parts = uids.into_iter().zip(parts.collect::<Vec<_>>()).collect();
        }
        replay
    }

    async fn begin(&self, mut new: NewReplay) -> Result<()> {
        new.webhooks = self.keys(&new.webhooks);
        if self.shared.hooks.replays().get(new.id).is_some() {
            return Ok(());
        }
        let step = self.read(move |_, disk| replaying::begin(disk, new)).await?;
        self.ask(|reply| Command::Replay(step, reply)).await.map(drop)
    }

    async fn advance(&self, id: ReplayId, webhook: WebhookUid, due: Vec<UnixMillis>) -> Result<usize> {
        let replay = self.shared.hooks.replays().get(id).filter(|replay| replay.runs());
        let Some(replay) = replay.filter(|_| !due.is_empty()) else { return Ok(0) };
        let Some(webhook) = self.shared.hooks.seen(webhook).map(|hook| hook.key()) else { return Ok(0) };
        match self.read(move |_, disk| replaying::find(disk, &replay, webhook, due)).await? {
            Some(step) => self.ask(|reply| Command::Replay(step, reply)).await,
            None => Ok(0),
        }
    }

    /// In steps, so that the commits of others go between; until nothing more could be recalled.
    async fn cancel(&self, id: ReplayId, now: UnixMillis) -> Result<()> {
        while self.ask(|reply| Command::Replay(ReplayStep::Cancel(id, now), reply)).await? > 0 {}
        Ok(())
    }

    fn oldest(&self, webhook: WebhookUid) -> Option<UnixMillis> {
        let hook = self.shared.hooks.seen(webhook)?;
        let key = hook.key();
        let disk = self.shared.disk().ok()?;
        let mut queue = hook.queue();
        let mut oldest = queue.oldest_claim();
        for lane in LaneId::ALL {
            let first = queue.first(lane).or_else(|from| {
                // One seek, once after the opening.
                let first = disk.next_queued(key, lane, from)?;
                queue.found_first(lane, from, first);
                Ok(first)
            });
            match first {
                Ok(first) => {
                    let due = first.map(|slot| due(&disk, &mut queue, lane, slot));
                    oldest = oldest.into_iter().chain(due).min();
                }
                Err::<_, Error>(error) => {
                    tracing::error!(%webhook, error = %chain(&error), "cannot look up the oldest delivery");
                }
            }
        }
        oldest
    }

    async fn shut(&self) -> Result<()> {
        if self.shared.closed.swap(true, Ordering::SeqCst) {
            return Err(Error::Closed);
        }
        let result = self.ask(Command::Close).await;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let shared = Arc::clone(&self.shared);
        let end = tokio::task::spawn_blocking(move || {
            if let Some(thread) = thread {
                let _ = thread.join();
            }
            shared.let_go();
        });
        end.await.map_err(|error| Error::Engine { what: "close the store", source: error.into() })?;
        result
    }
}

/// Since when what waits at a place is due. What is not in memory is read, once.
fn due(disk: &Disk, queue: &mut Queue, lane: LaneId, slot: Slot) -> UnixMillis {
    let since = queue.since(lane, slot).unwrap_or_else(|| {
        let delivery = disk.delivery(slot.name).ok().flatten();
        let since = slot.since(delivery.and_then(|delivery| delivery.due));
        queue.looked_up(lane, slot, since);
        since
    });
    since.due
}

impl Shared {
    /// Lets go of the disk, once nobody reads from it any more, and of the lock. Who rewrites files is not waited for: it
    /// does the same when it is done.
    fn let_go(&self) {
        let Some(disk) = self.disk.swap(None) else { return };
        disk.stopping.store(true, Ordering::SeqCst);
        while Arc::strong_count(&disk) > 1 + self.rewriting.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.let_go_if_last(disk);
    }

    /// Lets go of the disk and of the lock, if nobody else has it.
    pub(super) fn let_go_if_last(&self, disk: Arc<Disk>) {
        if let Some(last) = Arc::into_inner(disk) {
            drop::<Disk>(last);
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        drop(self.commands.take());
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
            self.shared.let_go();
        }
    }
}

impl Replays for Embedded {
    fn count_replay(&self, selection: Selection, webhooks: Vec<WebhookUid>) -> BoxFuture<'_, Result<u64>> {
        let webhooks = self.keys(&webhooks);
        self.read(move |_, disk| {
            webhooks.iter().map(|webhook| replaying::count(disk, &selection, *webhook)).sum()
        })
        .boxed()
    }

    fn begin_replay(&self, new: NewReplay) -> BoxFuture<'_, Result<()>> {
        self.begin(new).boxed()
    }

    fn advance_replay(
        &self,
        id: ReplayId,
        webhook: WebhookUid,
        due: Vec<UnixMillis>,
    ) -> BoxFuture<'_, Result<usize>> {
        self.advance(id, webhook, due).boxed()
    }

    fn finish_replay(&self, id: ReplayId, at: UnixMillis) -> BoxFuture<'_, Result<()>> {
        self.ask(move |reply| Command::Replay(ReplayStep::Finish(id, at), reply)).map_ok(drop).boxed()
    }

    fn cancel_replay(&self, id: ReplayId, now: UnixMillis) -> BoxFuture<'_, Result<()>> {
        self.cancel(id, now).boxed()
    }

    fn replay(&self, id: ReplayId) -> Option<Arc<Replay>> {
        self.shared.hooks.replays().get(id).map(|replay| self.as_known(replay))
    }

    fn replays(&self) -> Vec<Arc<Replay>> {
        let hooks = &self.shared.hooks;
        let is_told = |replay: &Arc<Replay>| {
            let of = || replays::owner(hooks, replay);
            replay.finished_at.is_none() || hooks.owners(&replay.selection.namespace).contains(&of())
        };
        let told = hooks.replays().all().into_iter().filter(is_told);
        told.map(|replay| self.as_known(replay)).collect()
    }
}

impl Store for Embedded {
    fn append(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Appended>>> {
        self.append_all(events).boxed()
    }

    fn accepting(&self) -> Result<()> {
        self.admits().map(drop)
    }

    fn duplicate_of(&self, namespace: &str, key: DedupKey, now: UnixMillis) -> Result<Option<EventUid>> {
        let disk = self.shared.disk()?;
        let owners = self.shared.hooks.owners(namespace);
        let seen = |owner: &Owner| disk.seen(owner.dedup_key(key), now, self.shared.window).transpose();
        owners.iter().find_map(seen).transpose()
    }

    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claims>> {
        self.claims(request).boxed()
    }

    fn release(&self, claims: Vec<(WebhookUid, DeliveryName)>) -> BoxFuture<'_, Result<()>> {
        for (webhook, name) in claims {
            let Some(hook) = self.shared.hooks.get(webhook) else { continue };
            if hook.queue().release(name) {
                self.shared.work.add([self.shared.hooks.uid(hook.key())]);
            }
        }
        std::future::ready(self.shared.disk().map(drop)).boxed()
    }

    fn record(&self, mut outcomes: Vec<Outcome>) -> BoxFuture<'_, Result<()>> {
        for outcome in &mut outcomes {
            outcome.webhook = self.shared.hooks.key(outcome.webhook);
        }
        self.ask(|reply| Command::Record(outcomes, reply)).boxed()
    }

    fn redeliver(&self, redeliveries: Vec<Redelivery>) -> BoxFuture<'_, Result<Vec<Redelivered>>> {
        self.ask(|reply| Command::Redeliver(redeliveries, reply)).boxed()
    }

    fn expunge(&self, expunge: Expunge) -> BoxFuture<'_, Result<Expunged>> {
        self.expunge_all(expunge).boxed()
    }

    fn redate(&self, now: UnixMillis) -> BoxFuture<'_, Result<()>> {
        self.redate_all(now).boxed()
    }

    fn retain(&self, now: UnixMillis) -> BoxFuture<'_, Result<u64>> {
        self.retain_all(now).boxed()
    }

    fn usage(&self, namespace: &str) -> Usage {
        self.shared.hooks.usage(namespace)
    }

    fn adopt(&self, summary: Summary) -> BoxFuture<'_, Result<()>> {
        self.ask(|reply| Command::Adopt(summary, reply)).boxed()
    }

    fn update(&self, webhook: WebhookUid, change: Change) -> BoxFuture<'_, Result<()>> {
        let key = self.shared.hooks.key(webhook);
        self.ask(move |reply| Command::Update(key, change, reply)).boxed()
    }

    fn set_gone(&self, webhook: WebhookUid, is_gone: bool) {
        let more = self.shared.hooks.set_gone(webhook, is_gone);
        self.shared.pending_changed(more);
        self.shared.work.add([webhook]);
        self.shared.changes.add([webhook]);
    }

    fn summary(&self, webhook: WebhookUid) -> Option<Arc<Summary>> {
        self.shared.hooks.known_as(webhook).map(|hook| hook.summary())
    }

    fn known(&self) -> Vec<WebhookRef> {
        self.shared.hooks.known()
    }

    fn purge(&self, webhook: WebhookUid) -> BoxFuture<'_, Result<u64>> {
        self.purge_all(webhook).boxed()
    }

    fn query(&self, query: Query) -> BoxFuture<'_, Result<Page>> {
        self.page(query).boxed()
    }

    fn delivery(&self, name: DeliveryName) -> BoxFuture<'_, Result<Option<Delivery>>> {
        self.read(move |shared, disk| {
            let line = disk.delivery(name)?;
            Ok(line.and_then(|mut line| shared.hooks.show(&mut line).then_some(line)))
        })
        .boxed()
    }

    fn is_under_way(&self, webhook: WebhookUid, name: DeliveryName) -> bool {
        self.shared.hooks.get(webhook).is_some_and(|hook| hook.queue().is_under_way(name))
    }

    fn event(&self, uid: EventUid) -> BoxFuture<'_, Result<Option<Arc<Event>>>> {
        self.read(move |_, disk| Ok(disk.event(uid)?.map(Arc::new))).boxed()
    }

    fn oldest_due(&self, webhook: WebhookUid) -> Option<UnixMillis> {
        self.oldest(webhook)
    }

    fn work(&self) -> &Wakes {
        &self.shared.work
    }

    fn changes(&self) -> &Wakes {
        &self.shared.changes
    }

    fn owes_erasure(&self) -> bool {
        self.shared.debt.count() > 0
    }

    fn erase(&self) -> BoxFuture<'_, Result<()>> {
        self.erase_all().boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.shut().boxed()
    }
}
