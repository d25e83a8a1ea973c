//! The one thread that writes: it takes what has come, makes one synced commit of it, and answers everybody.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::dedup::Generations;
use super::disk::Disk;
use super::erasing;
use super::group::{Group, Prepared};
use super::line::{Kind, Line, Turn};
use super::purge::{self, Cursor};
use super::redate;
use super::replaying::ReplayStep;
use super::retain::{self, Position};
use super::room::Place;
use super::usage::Owner;
use crate::model::causes::chain;
use crate::model::ids::{DeliveryName, WebhookUid};
use crate::model::time::UnixMillis;
use crate::store::records::{Expunge, Expunged, Outcome, Redelivered, Redelivery, Summary};
use crate::store::{Appended, Change, Error, Result};

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// What is asked of the writer.
pub(super) enum Command {
    /// The place is left when it is answered, or the caller's going would make room for more while it waits.
    Append(Vec<Prepared>, Place, Reply<Vec<Appended>>),
    Record(Vec<Outcome>, Reply<()>),
    Redeliver(Vec<Redelivery>, Reply<Vec<Redelivered>>),
    /// The names are those of all deliveries of the event.
    Expunge(Expunge, Vec<DeliveryName>, Reply<Expunged>),
    Replay(ReplayStep, Reply<usize>),
    Adopt(Summary, Reply<()>),
    Update(WebhookUid, Change, Reply<()>),
    /// One step.
    Purge(WebhookUid, Cursor, Reply<purge::Step>),
    /// One step.
    Redate(redate::Step, UnixMillis, Reply<()>),
    /// One step.
    Retain(Owner, UnixMillis, Position, Reply<retain::Step>),
    /// Events to write once more; how many of the keys are done.
    Move(Vec<fjall::UserKey>, Reply<usize>),
    /// What was erased until it was counted so often has gone from the files.
    Erased(u64, Reply<()>),
    Close(Reply<()>),
}

impl Command {
    /// Bytes that it adds to a commit, roughly.
    fn weight(&self) -> usize {
        match self {
            Self::Append(events, ..) => events.iter().map(Prepared::weight).sum(),
            Self::Record(outcomes, _) => 1024 * outcomes.len(),
            Self::Redeliver(redeliveries, _) => 1024 * redeliveries.len(),
            Self::Expunge(_, names, _) => 1024 * names.len(),
            Self::Replay(step, _) => step.weight(),
            Self::Adopt(..)
            | Self::Update(..)
            | Self::Purge(..)
            | Self::Redate(..)
            | Self::Retain(..)
            | Self::Move(..)
            | Self::Erased(..)
            | Self::Close(_) => 256,
        }
    }

    fn kind(&self) -> Kind {
        let small = match self {
            Self::Purge(..) | Self::Redate(..) | Self::Retain(..) | Self::Move(..) | Self::Erased(..) => {
                return Kind::Step;
            }
            Self::Close(_) => return Kind::Last,
            Self::Append(events, ..) if events.len() == 1 => SMALL_EVENT,
            _ => SMALL,
        };
        let weight = self.weight();
        if weight < small { Kind::Small(weight) } else { Kind::Large(weight) }
    }

    fn refuse(self, error: Error) {
        match self {
            Self::Append(_, _, reply) => answer(reply, Err(error)),
            Self::Record(_, reply)
            | Self::Adopt(_, reply)
            | Self::Update(_, _, reply)
            | Self::Redate(_, _, reply)
            | Self::Erased(_, reply)
            | Self::Close(reply) => {
                answer(reply, Err(error));
            }
            Self::Redeliver(_, reply) => answer(reply, Err(error)),
            Self::Expunge(_, _, reply) => answer(reply, Err(error)),
            Self::Replay(_, reply) | Self::Move(_, reply) => answer(reply, Err(error)),
            Self::Purge(_, _, reply) => answer(reply, Err(error)),
            Self::Retain(_, _, _, reply) => answer(reply, Err(error)),
        }
    }
}

/// The caller may have gone; what it asked for is done all the same.
fn answer<T>(reply: Reply<T>, result: Result<T>) {
    let _ = reply.send(result);
}

/// An answer that waits for the commit.
enum Waiting {
    Appended(Reply<Vec<Appended>>, Vec<Appended>, Place),
    Redelivered(Reply<Vec<Redelivered>>, Vec<Redelivered>),
    Expunged(Reply<Expunged>, Expunged),
    Replayed(Reply<usize>, usize),
    Done(Reply<()>),
}

impl Waiting {
    fn erased(&self) -> bool {
        matches!(self, Self::Expunged(_, Expunged::Done { deliveries: 1.., .. }))
    }

    fn answer(self, result: std::result::Result<(), Error>) {
        match self {
            Self::Appended(reply, appended, place) => {
                drop(place);
                answer(reply, result.map(|()| appended));
            }
            Self::Redelivered(reply, redelivered) => answer(reply, result.map(|()| redelivered)),
            Self::Expunged(reply, expunged) => answer(reply, result.map(|()| expunged)),
            Self::Replayed(reply, count) => answer(reply, result.map(|()| count)),
            Self::Done(reply) => answer(reply, result),
        }
    }
}

/// Calls of fewer bytes go before larger ones.
const SMALL: usize = 16 << 10;
/// And so does a single event of fewer, for a hundred Webhooks, too.
const SMALL_EVENT: usize = 64 << 10;

/// While calls come from many at once, commits begin so far apart: each costs a sync and wakes everybody who waits for
/// it, so fewer and larger ones cost less. What comes one after the other, and not after such a rush, waits for nothing.
const PACE: Duration = Duration::from_millis(2);
/// So many calls in one commit come from many at once.
const SEVERAL: usize = 4;

/// How long to wait before the next commit: `since` the last one began, with so many calls `together`.
const fn pause(together: usize, since: Duration) -> Duration {
    if together < SEVERAL { Duration::ZERO } else { PACE.saturating_sub(since) }
}

/// How often the journals are looked at.
const TIDY: Duration = Duration::from_secs(10);
/// How often memory is shared anew, when it is short.
const SHARE: Duration = Duration::from_millis(200);

/// The state of the thread.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub disk: Arc<Disk>,
    pub commands: mpsc::Receiver<Command>,
    pub generations: Generations,
    pub tidied: Instant,
    pub shared_memory: Instant,
    /// What was taken in.
    pub line: Line<Command>,
    /// When the last commit of a group began.
    pub began: Instant,
    /// How many calls were in it.
    pub together: usize,
}

/// Poisons the store when the thread panics, so that nobody waits for it.
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poisoned.store(true, Ordering::SeqCst);
        }
    }
}

impl Writer {
    /// Works until the store is closed or dropped.
    pub(super) fn run(mut self) {
        let _guard = Guard(Arc::clone(&self.shared));
        while let Some(turn) = self.take_in() {
            match turn {
                Turn::Group(commands) => self.group(commands),
                Turn::Apart(Command::Close(reply)) => {
                    self.commands.close();
                    let result = self.sync();
                    while let Some(late) = self.commands.blocking_recv() {
                        late.refuse(Error::Closed);
                    }
                    drop(self.disk);
                    return answer(reply, result);
                }
                Turn::Apart(command) => self.step(command),
            }
            self.seal();
            self.tidy();
        }
        if let Err(error) = self.sync() {
            tracing::error!(error = %chain(&error), "the store could not be synced at its end");
        }
    }

    /// Waits until there is something to do, and takes in what has come. None: nobody is left to ask.
    fn take_in(&mut self) -> Option<Turn<Command>> {
        if self.line.is_empty() {
            let first = self.commands.blocking_recv()?;
            self.enter(first);
        }
        if !self.line.is_urgent() {
            std::thread::sleep(pause(self.together, self.began.elapsed()));
        }
        while self.line.has_room()
            && let Ok(command) = self.commands.try_recv()
        {
            self.enter(command);
        }
        self.line.next()
    }

    fn enter(&mut self, command: Command) {
        let kind = command.kind();
        self.line.push(command, kind);
    }

    /// Commits what goes together.
    fn group(&mut self, commands: Vec<Command>) {
        (self.began, self.together) = (Instant::now(), commands.len());
        if self.shared.is_poisoned() {
            for command in commands {
                command.refuse(Error::Poisoned);
            }
        } else {
            self.commit(commands);
        }
    }

    /// Does one step of something long.
    fn step(&mut self, command: Command) {
        match command {
            Command::Purge(webhook, cursor, reply) => answer(reply, self.purge(webhook, &cursor)),
            Command::Retain(owner, now, position, reply) => {
                answer(reply, self.retain(&owner, now, position));
            }
            command @ Command::Redate(..) => self.group(vec![command]),
            Command::Move(keys, reply) => {
                answer(reply, self.poisoning(|it| erasing::move_some(&it.disk, &keys)));
            }
            Command::Erased(count, reply) => {
                answer(reply, self.poisoning(|it| erasing::paid(&it.disk, &it.shared, count)));
            }
            other => other.refuse(Error::Closed),
        }
    }

    fn commit(&mut self, commands: Vec<Command>) {
        let shared = Arc::clone(&self.shared);
        let mut group = Group::new(&self.disk, &shared.hooks, shared.window, &mut self.generations);
        let mut waiting = Vec::with_capacity(commands.len());
        let mut failure = None;
        for command in commands {
            if let Err(error) = stage(&mut group, command, &mut waiting) {
                failure.get_or_insert(error);
            }
        }
        let began = Instant::now();
        let commit = || {
            let committed = group.commit();
            committed
                .inspect(|_| shared.metrics.committed(began.elapsed()))
                .inspect_err(|error| shared.poison(error))
        };
        let result = failure.map_or_else(commit, Err);
        match result {
            Ok(mut committed) => {
                let (changed, more) = committed.apply(&shared.hooks);
                shared.pending_changed(more);
                shared.usage_changed();
                shared.work.add(shared.hooks.uids(committed.woken));
                shared.changes.add(shared.hooks.uids(changed));
                if waiting.iter().any(Waiting::erased) {
                    shared.debt.owe();
                }
                for waiting in waiting {
                    waiting.answer(Ok(()));
                }
            }
            Err(error) => {
                let error = Repeated::of(error);
                for waiting in waiting {
                    waiting.answer(Err(error.again()));
                }
            }
        }
    }

    /// After the answers: what is committed stays so, whether or not it can be sealed, and sealing takes time.
    fn seal(&self) {
        if !self.shared.is_poisoned()
            && let Err(error) = self.disk.seal_full()
        {
            self.shared.poison(&error);
        }
    }

    /// A failed commit poisons the store.
    fn poisoning<T>(&self, step: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        if self.shared.is_poisoned() {
            return Err(Error::Poisoned);
        }
        step(self).inspect_err(|error| {
            if matches!(error, Error::Engine { what: "commit", .. } | Error::Poisoned) {
                self.shared.poison(error);
            }
        })
    }

    fn purge(&mut self, webhook: WebhookUid, cursor: &Cursor) -> Result<purge::Step> {
        if self.shared.is_poisoned() {
            return Err(Error::Poisoned);
        }
        let began = Instant::now();
        let step = purge::step(&self.disk, &self.shared.hooks, webhook, cursor).inspect_err(|error| {
            if matches!(error, Error::Engine { what: "commit", .. } | Error::Poisoned) {
                self.shared.poison(error);
            }
        })?;
        self.shared.debt.owe();
        self.shared.metrics.committed(began.elapsed());
        self.shared.metrics.discarded_deliveries.inc_by(step.discarded);
        self.shared.pending_changed(step.more);
        self.shared.usage_changed();
        Ok(step)
    }

    fn retain(&mut self, owner: &Owner, now: UnixMillis, position: Position) -> Result<retain::Step> {
        if self.shared.is_poisoned() {
            return Err(Error::Poisoned);
        }
        let Shared { hooks, retention, .. } = &*self.shared;
        let step = retain::step(&self.disk, hooks, retention, owner, now, position).inspect_err(|error| {
            if matches!(error, Error::Engine { what: "commit", .. } | Error::Poisoned) {
                self.shared.poison(error);
            }
        })?;
        self.shared.usage_changed();
        self.shared.changes.add(hooks.uids(step.changed.iter().copied()));
        Ok(step)
    }

    fn sync(&self) -> Result<()> {
        self.disk.db.persist(fjall::PersistMode::SyncAll).map_err(super::disk::engine("sync"))
    }

    /// An old journal is kept until every keyspace that it has data of was flushed. One that is rarely written
    /// would keep all journals since, and the next opening would have to replay them: so it is flushed now.
    fn tidy(&mut self) {
        if self.shared_memory.elapsed() >= SHARE {
            self.shared_memory = Instant::now();
            self.shared.hooks.share_memory();
        }
        if self.tidied.elapsed() < TIDY {
            return;
        }
        self.tidied = Instant::now();
        if self.shared.is_poisoned() || self.disk.db.journal_count() <= super::disk::JOURNALS {
            return;
        }
        if let Err(error) = self.disk.flush_all() {
            tracing::warn!(error = %chain(&error), "old journals cannot be dropped now");
        }
    }
}

/// Stages one command. An error is one of reading; nothing of the whole group is then written.
fn stage(group: &mut Group<'_>, command: Command, waiting: &mut Vec<Waiting>) -> Result<()> {
    match command {
        Command::Append(events, place, reply) => match group.append(events) {
            Ok(appended) => waiting.push(Waiting::Appended(reply, appended, place)),
            Err(error) => {
                waiting.push(Waiting::Appended(reply, vec![], place));
                return Err(error);
            }
        },
        Command::Record(outcomes, reply) => {
            waiting.push(Waiting::Done(reply));
            group.record(outcomes)?;
        }
        Command::Redeliver(redeliveries, reply) => {
            let staged = group.redeliver(redeliveries);
            let (redelivered, error) = staged.map_or_else(|error| (vec![], Some(error)), |all| (all, None));
            waiting.push(Waiting::Redelivered(reply, redelivered));
            error.map_or(Ok(()), Err)?;
        }
        Command::Expunge(expunge, names, reply) => {
            let staged = group.expunge(&expunge, &names);
            let (expunged, error) =
                staged.map_or_else(|error| (Expunged::NotFound, Some(error)), |done| (done, None));
            waiting.push(Waiting::Expunged(reply, expunged));
            error.map_or(Ok(()), Err)?;
        }
        Command::Replay(step, reply) => {
            let staged = group.replay(step);
            let (count, error) = staged.map_or_else(|error| (0, Some(error)), |count| (count, None));
            waiting.push(Waiting::Replayed(reply, count));
            error.map_or(Ok(()), Err)?;
        }
        Command::Adopt(summary, reply) => {
            group.adopt(summary);
            waiting.push(Waiting::Done(reply));
        }
        Command::Update(webhook, change, reply) => {
            group.update(webhook, change);
            waiting.push(Waiting::Done(reply));
        }
        Command::Redate(step, now, reply) => {
            waiting.push(Waiting::Done(reply));
            group.redate(step, now)?;
        }
        command @ (Command::Purge(..)
        | Command::Retain(..)
        | Command::Move(..)
        | Command::Erased(..)
        | Command::Close(_)) => {
            command.refuse(Error::Closed);
        }
    }
    Ok(())
}

/// One error for many callers.
enum Repeated {
    Poisoned,
    Engine { what: &'static str, source: Arc<Error> },
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Of(Arc<Error>);

impl Repeated {
    fn of(error: Error) -> Self {
        match error {
            Error::Poisoned => Self::Poisoned,
            error @ Error::Engine { what, .. } => Self::Engine { what, source: Arc::new(error) },
            other => Self::Engine { what: "write a group of calls", source: Arc::new(other) },
        }
    }

    fn again(&self) -> Error {
        match self {
            Self::Poisoned => Error::Poisoned,
            Self::Engine { what, source } => Error::Engine { what, source: Box::new(Of(Arc::clone(source))) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_for_many_begin_apart_and_a_lone_call_waits_for_nothing() {
        let ms = Duration::from_millis;
        for (together, since, expected) in
            [(0, 0, 0), (3, 0, 0), (4, 0, 2), (64, 1, 1), (64, 2, 0), (64, 500, 0)]
        {
            assert_eq!(pause(together, ms(since)), ms(expected), "{together} calls, {since} ms ago");
        }
    }
}
