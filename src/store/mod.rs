//! The durable queue and log: what is accepted is here before it is answered, and stays until it is done.
//!
//! [`Store`] is the seam between the engines. It assumes neither one process nor one machine: ids are made by
//! the caller, time is given by the caller, a claim expires. What an engine promises:
//!
//! 1. [`Store::append`], [`Store::record`], [`Store::redeliver`], [`Store::expunge`], [`Store::update`],
//!    [`Store::adopt`] and what [`Replays`] changes return after their effect is synced to disk (one sync serves the
//!    group of callers that came together). It then survives `kill -9` and power loss. Each call is atomic: all of
//!    it is there after a crash, or nothing.
//! 2. A delivery is claimed by one claimant at a time until the claim is recorded, released or expired.
//! 3. After a failed sync nothing more is written ([`Error::Poisoned`]): the process must end.
//! 4. What is read ([`Store::summary`], [`Store::query`]) reflects every call that has returned.
//! 5. Times are wall-clock. After [`Store::redate`], none that is kept is later than the time that it was given, and
//!    what waits is due no later than after its own wait from then.
//!
//! `Held` is not stored: it is derived from the Webhook's live state by whoever reads.

#[cfg(test)]
mod behaviour;
pub mod embedded;
pub mod records;
mod redate;
pub mod replays;
#[cfg(test)]
pub(crate) mod testing;
pub mod wakes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::model::ids::{DeliveryName, EventUid, Namespace, WebhookRef, WebhookUid};
use crate::model::time::UnixMillis;
pub use records::{
    Asked, Attempt, Claimed, Delivery, EndReason, Event, Expunge, Expunged, NewDelivery, NewEvent, Next,
    Outcome, Purpose, Redelivered, Redelivery, Retention, State, Summary, Usage,
};
pub use replays::{NewReplay, Replay, Replays, Selection};
pub use wakes::Wakes;

/// What can go wrong in a store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A write or sync failed earlier; nothing is written until the process is started anew.
    #[error("the store stopped writing after a failed write or sync; restart the process")]
    Poisoned,
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
    /// The disk has too little room to accept more; outcomes are still recorded.
    #[error("too little room on the disk of the data directory: free some or enlarge the volume")]
    Full,
    /// The disk has little room, and this namespace uses more of it than others, which are not affected.
    #[error(
        "little room is left on the disk of the data directory, and namespace {namespace} uses more of it than \
             others: free some, enlarge the volume, or shorten the retention"
    )]
    NearlyFull {
        /// Which namespace.
        namespace: Namespace,
    },
    /// What waits in a namespace is more than it may be; other namespaces are not affected.
    #[error(
        "what waits to be delivered in namespace {namespace} has reached its limit of {limit} bytes: mend, resume \
             or delete the Webhooks that hold deliveries back"
    )]
    OverQuota {
        /// Which namespace.
        namespace: Namespace,
        /// How much may wait, in bytes.
        limit: u64,
    },
    /// What the directory holds cannot be used by this program.
    #[error("{0}")]
    Unusable(String),
    /// Files are not what was written. Nothing was changed.
    #[error("{0}")]
    Damaged(Damaged),
    /// What was read is not what was written.
    #[error("cannot read {what}")]
    Corrupt {
        /// Which record.
        what: String,
        /// The decoder's word.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine failed.
    #[error("cannot {what}")]
    Engine {
        /// What was attempted.
        what: &'static str,
        /// The engine's word.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Metric label.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Poisoned => "poisoned",
            Self::Closed => "closed",
            Self::Full | Self::NearlyFull { .. } => "full",
            Self::OverQuota { .. } => "over_quota",
            Self::Unusable(_) => "unusable",
            Self::Damaged(_) => "damaged",
            Self::Corrupt { .. } => "corrupt",
            Self::Engine { .. } => "engine",
        }
    }
}

/// A clock that was set back by less is taken for the same: nothing waits for longer than this because of it.
pub const SLACK: Duration = Duration::from_secs(2);

/// A file that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Which.
    pub path: PathBuf,
    /// From which byte on; none: not known.
    pub at: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(at) = self.at {
            write!(f, ", byte {at}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Damage, and what can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// The data directory.
    pub dir: PathBuf,
    /// What was found.
    pub files: Vec<Damage>,
}

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("files are damaged: ")?;
        for (number, damage) in self.files.iter().take(3).enumerate() {
            write!(f, "{}{damage}", if number == 0 { "" } else { "; " })?;
        }
        if let Some(more @ 1..) = self.files.len().checked_sub(3) {
            write!(f, "; and {more} more")?;
        }
        let dir = self.dir.display();
        write!(
            f,
            ". Nothing was changed. Restore a backup of {dir}, or run `hookwright repair --data-dir {dir}`, which keeps a \
             copy, saves what can be read and says what is lost"
        )
    }
}

/// A store's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What became of one appended event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Stored, with all its deliveries.
    New,
    /// The same `source` and `id` came within the window: nothing stored; the first one's id.
    Duplicate(EventUid),
}

/// Whether a delivery was attempted before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tried {
    /// It waits for its first attempt.
    Never,
    /// It has failed, or somebody asked for it to be sent again.
    #[default]
    Before,
}

impl Tried {
    /// Of a delivery as it was claimed.
    pub fn of(delivery: &Delivery) -> Self {
        if delivery.state == State::Pending && delivery.redelivery.is_none() {
            Self::Never
        } else {
            Self::Before
        }
    }

    /// The other.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Never => Self::Before,
            Self::Before => Self::Never,
        }
    }
}

/// Which deliveries a claim takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The longest due first.
    #[default]
    LongestDue,
    /// One that was never attempted and one that was, in turn, of each the longest due first.
    InTurn {
        /// The first of them.
        first: Tried,
    },
    /// The same, and before its time one that was attempted, when none of these is due: the one whose last attempt
    /// is longest ago, of those that memory holds. Neither what somebody asked for is claimed before its time, nor
    /// that whose receiver asked for more time.
    Look {
        /// The first of them.
        first: Tried,
    },
    /// Before their time, those that memory holds whose last attempt was between these times, longest ago first,
    /// without those that a look leaves out.
    Early {
        /// At or after.
        from: UnixMillis,
        /// Before.
        to: UnixMillis,
    },
}

/// Asks for deliveries that are due.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// Of which Webhook.
    pub webhook: WebhookUid,
    /// Due at or before this.
    pub now: UnixMillis,
    /// At most so many.
    pub limit: usize,
    /// Which of them.
    pub order: Order,
    /// The claim is void after this, and the delivery may be claimed by another.
    pub lease: Duration,
}

/// The answer to a [`ClaimRequest`].
#[derive(Debug, Default)]
pub struct Claims {
    /// Claimed, longest due first.
    pub deliveries: Vec<Claimed>,
    /// When the next unclaimed delivery is due (may be in the past when the limit cut the list);
    /// none: nothing else waits.
    pub next_due: Option<UnixMillis>,
}

/// Which part of the log.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// One namespace; none: all.
    pub namespace: Option<Namespace>,
    /// One Webhook by identity.
    pub webhook: Option<WebhookUid>,
    /// Only these stored states; empty: all.
    pub states: Vec<State>,
    /// Only of events with this `CloudEvents` id.
    pub event_id: Option<Arc<str>>,
    /// Only of events of this type.
    pub event_type: Option<Arc<str>>,
    /// Only tests, or none of them.
    pub test: Option<bool>,
    /// Only older than this name (exclusive), for paging newest first.
    pub before: Option<DeliveryName>,
    /// At most so many.
    pub limit: usize,
}

/// A page of the log, newest first. A look at it takes a bounded time: it may have fewer than were asked for, or
/// none, and still say where the next begins.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The deliveries.
    pub deliveries: Vec<Delivery>,
    /// Where the next page begins; none: this was the last.
    pub next: Option<DeliveryName>,
}

/// A change of a Webhook's summary that no delivery causes.
#[derive(Clone, Debug)]
pub enum Change {
    /// A disabled Webhook is enabled again, and its failures in a row are forgotten.
    Enable,
    /// A disabled or enabled state is set, as when it failed without a break for too long.
    Disable(records::Disabled),
}

/// A durable queue and log. See the module for what each engine promises.
pub trait Store: Replays + Send + Sync + 'static {
    /// Stores the events with their deliveries, all or nothing, in the order given; returns after the sync.
    /// Two events with the same dedup key within the window, also within one call, give one and a duplicate; keys of
    /// namespaces that have the same name, one after the other, never meet. Of an event without deliveries nothing
    /// is kept, its key neither.
    /// [`Error::OverQuota`] when too much waits in a namespace already, [`Error::NearlyFull`] when the disk has
    /// little room and it uses more than others; tests are taken all the same.
    fn append(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Appended>>>;

    /// Whether [`Store::append`] would be taken now.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`], [`Error::Full`] or [`Error::Closed`] say why not.
    fn accepting(&self) -> Result<()>;

    /// The first id under a dedup key of a namespace within the window, if any (for a dry run; [`Store::append`]
    /// decides).
    ///
    /// # Errors
    ///
    /// When it cannot be read, or the store is closed.
    fn duplicate_of(
        &self,
        namespace: &str,
        key: records::DedupKey,
        now: UnixMillis,
    ) -> Result<Option<EventUid>>;

    /// Claims due deliveries of one Webhook. Tests (`test: true`) are never claimed: who appends a test makes
    /// its one attempt and records it.
    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claims>>;

    /// Gives claims back unused: no attempt was made.
    fn release(&self, claims: Vec<(WebhookUid, DeliveryName)>) -> BoxFuture<'_, Result<()>>;

    /// Records attempts and what follows from them; returns after the sync. An outcome whose delivery is gone
    /// (its Webhook was purged meanwhile) is dropped.
    fn record(&self, outcomes: Vec<Outcome>) -> BoxFuture<'_, Result<()>>;

    /// Puts finished deliveries back as Pending, each for exactly one attempt outside the retry budget, due at
    /// the given time; the name and with it the `webhook-id` stay. After the attempt it is Success or Failed
    /// again, and the attempt says who asked. Returns after the sync, with an answer for each in order. One call
    /// holds the events of all it names in memory: give it a few hundred at most.
    fn redeliver(&self, redeliveries: Vec<Redelivery>) -> BoxFuture<'_, Result<Vec<Redelivered>>>;

    /// Erases an event and every answer that was kept of its deliveries; those that are unfinished end as Failed,
    /// [`EndReason::Expunged`]. What remains is the log line with its attempts: times, status, error. Nothing
    /// reads or sends the payload after this has returned, but for an attempt that is under way, whose outcome
    /// is dropped. On the disk, the bytes stand in files until [`Store::erase`].
    fn expunge(&self, expunge: Expunge) -> BoxFuture<'_, Result<Expunged>>;

    /// Tells what time it is. If the clock was set back by more than [`SLACK`] since anything was written, also by an
    /// earlier process, times that are kept and later than `now` become `now`, and what waits for a retry waits as
    /// long as it was to, at most, from now on. In bounded steps, what waits first; [`Store::work`] names the
    /// Webhooks of what is due sooner. Otherwise it costs nothing. One at a time: a second call does nothing.
    fn redate(&self, now: UnixMillis) -> BoxFuture<'_, Result<()>>;

    /// Lets go what [`Retention`] does not keep at `now`, in bounded steps, oldest first; the number of deliveries
    /// that went. An event goes with its last delivery; that it is a duplicate stays known. When much has gone, also by
    /// purges, it gives the space back to the disk before it returns.
    fn retain(&self, now: UnixMillis) -> BoxFuture<'_, Result<u64>>;

    /// What a namespace uses: of those that had the same name, the one that has a Webhook which is not gone. From
    /// memory.
    fn usage(&self, namespace: &str) -> Usage;

    /// Makes a Webhook known, with counters to start from if it is not known yet. One that has the same name, in the
    /// very same namespace (by [`Summary::namespace_uid`]), as one that is gone takes over all that the store still
    /// has of that one: its queue, its log and its numbers. Outcomes and claims of attempts that began
    /// before still name the former uid.
    fn adopt(&self, summary: Summary) -> BoxFuture<'_, Result<()>>;

    /// Says whether a Webhook is gone. Of one that is, nothing is found, read, claimed, redelivered, expunged or
    /// counted, from when this returns; outcomes of attempts under way are still recorded, for a successor (see
    /// [`Store::adopt`]). From memory: after an opening nobody is gone until it is said again.
    fn set_gone(&self, webhook: WebhookUid, is_gone: bool);

    /// Applies a change to a known Webhook.
    fn update(&self, webhook: WebhookUid, change: Change) -> BoxFuture<'_, Result<()>>;

    /// The numbers of one Webhook. From memory.
    fn summary(&self, webhook: WebhookUid) -> Option<Arc<Summary>>;

    /// Every known Webhook, those that are gone too: with the feed's list, this tells which are. From memory.
    fn known(&self) -> Vec<WebhookRef>;

    /// Erases everything of one Webhook: log, pending deliveries, summary, and events that no other needs. Answers
    /// how many deliveries waited, which nobody gets now, and counts them; one that ends what was interrupted answers
    /// for both. Nothing happens if another has taken over meanwhile.
    fn purge(&self, webhook: WebhookUid) -> BoxFuture<'_, Result<u64>>;

    /// A page of the log.
    fn query(&self, query: Query) -> BoxFuture<'_, Result<Page>>;

    /// One delivery.
    fn delivery(&self, name: DeliveryName) -> BoxFuture<'_, Result<Option<Delivery>>>;

    /// Whether an attempt of a delivery is under way, as far as this process knows: it is claimed, or a test that has
    /// not been recorded. From memory.
    fn is_under_way(&self, webhook: WebhookUid, name: DeliveryName) -> bool;

    /// One event with its body.
    fn event(&self, uid: EventUid) -> BoxFuture<'_, Result<Option<Arc<Event>>>>;

    /// Earliest due time among all pending deliveries of a Webhook, claimed or not.
    fn oldest_due(&self, webhook: WebhookUid) -> Option<UnixMillis>;

    /// Webhooks that may have something to claim, set by append, record (a retry), release, update and at
    /// opening.
    /// One consumer: the delivery engine.
    fn work(&self) -> &Wakes;

    /// Webhooks whose summary or log has changed. One consumer: the controller's reporter.
    fn changes(&self) -> &Wakes;

    /// Whether something was expunged or purged that still stands in files. Remembered over restarts.
    fn owes_erasure(&self) -> bool;

    /// Makes everything that was expunged or purged until now go from the files. Takes a while, and rewrites the log.
    fn erase(&self) -> BoxFuture<'_, Result<()>>;

    /// Syncs and closes; further calls fail with [`Error::Closed`].
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}
