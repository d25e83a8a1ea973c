//! Publishing as a library call: what the door does once it knows who asks and what the events are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use crate::clock::Clock;
use crate::metrics::{Metrics, Received};
use crate::model::cloudevents::Decoded;
use crate::model::event::Attributes;
use crate::model::ids::{EventUid, Minter, Namespace};
use crate::model::rate::{Meter, RateLimit};
use crate::model::time::UnixMillis;
use crate::per_namespace::PerNamespace;
use crate::routes::coverage::Unserved;
use crate::routes::hold::{Hold, hold};
use crate::routes::namespaces::{Found, Namespaces};
use crate::routes::{Route, Table};
use crate::store::records::DedupKey;
use crate::store::{self, Appended, NewDelivery, NewEvent, Store};

/// For one append, the sync to disk included.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Who would receive is not known yet.
    #[error("nothing can be published into namespace {namespace} now")]
    Unserved {
        /// Which namespace.
        namespace: Namespace,
        /// Why.
        source: Unserved,
    },
    /// The store does not take it.
    #[error("the store takes no events")]
    Store(#[from] store::Error),
    /// The namespace has published too much of late.
    #[error(
        "namespace {namespace} may publish {limit} events a second: send fewer, or ask for a higher limit"
    )]
    TooFast {
        /// Which namespace.
        namespace: Namespace,
        /// How many a second.
        limit: u32,
        /// When these would be taken.
        retry_after: Duration,
    },
    /// The store did not answer. The events may have been stored: the same `source` and `id` again is safe.
    #[error("the store did not answer within {} s", PATIENCE.as_secs())]
    Timeout,
}

impl Error {
    /// When to try again.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Unserved { source: Unserved::NotRead, .. } => Duration::from_secs(1),
            Self::TooFast { retry_after, .. } => *retry_after,
            Self::Store(
                store::Error::Full | store::Error::NearlyFull { .. } | store::Error::OverQuota { .. },
            ) => Duration::from_secs(30),
            Self::Unserved { source: Unserved::Refused(_), .. } | Self::Store(_) | Self::Timeout => {
                Duration::from_secs(5)
            }
        }
    }

    /// Whether one namespace alone is refused, for what it does itself.
    pub fn is_quota(&self) -> bool {
        matches!(self, Self::TooFast { .. } | Self::Store(store::Error::OverQuota { .. }))
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Ours for the event; of a duplicate, the first one's.
    pub id: EventUid,
    /// Webhooks that it goes to by this publication: none by a duplicate.
    pub matched: usize,
    /// Whether the same `source` and `id` came before within the window.
    pub duplicate: bool,
}

/// What would become of an event.
#[derive(Clone, Debug)]
pub struct Preview {
    /// Whether it would be a duplicate, to which nothing is sent.
    pub duplicate: bool,
    /// Every Webhook of the namespace, by name.
    pub webhooks: Vec<Match>,
}

/// How a Webhook and an event meet.
#[derive(Clone, Debug)]
pub struct Match {
    /// The Webhook.
    pub route: Arc<Route>,
    /// Whether it wants the event.
    pub wanted: bool,
    /// Why deliveries to it wait, if they do.
    pub hold: Option<Hold>,
}

/// Publishes events into namespaces.
pub struct Publisher {
    store: Arc<dyn Store>,
    table: Arc<Table>,
    minter: Arc<Minter>,
    clock: Clock,
    metrics: Metrics,
    rate: Option<RateLimit>,
    /// Asked for those without a Webhook; none: all exist.
    namespaces: Option<Namespaces>,
    /// Of namespaces that have published of late.
    meters: Mutex<HashMap<Namespace, Meter>>,
    /// What the meters count from: a wall clock that is set changes nothing.
    since: Instant,
    turns: PerNamespace,
}

/// A body of so many bytes waits for its turn to be decoded.
const LARGE_BODY: usize = 16 << 10;

/// Until it is dropped, no other large body of its namespace is decoded.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held until it is dropped")] Option<OwnedSemaphorePermit>);

/// Events with their deliveries, not stored yet.
#[derive(Debug)]
pub struct Prepared(Vec<NewEvent>);

/// With more meters than this, those that matter no more are forgotten.
const METERS: usize = 1024;

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Publisher")
    }
}

impl Publisher {
    /// Into this store, by these routes.
    pub fn new(
        store: Arc<dyn Store>,
        table: Arc<Table>,
        minter: Arc<Minter>,
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let turns = PerNamespace::new(1);
        Self {
            store,
            table,
            minter,
            clock,
            metrics,
            rate: None,
            namespaces: None,
            meters: Mutex::default(),
            since: Instant::now(),
            turns,
        }
    }

    /// Each namespace may publish so many events.
    #[must_use]
    pub fn with_rate(self, rate: RateLimit) -> Self {
        Self { rate: Some(rate), ..self }
    }

    /// Refuses namespaces that do not exist.
    #[must_use]
    pub fn with_namespaces(self, namespaces: Namespaces) -> Self {
        Self { namespaces: Some(namespaces), ..self }
    }

    /// Whether a namespace exists. One that cannot be asked for, because the right is missing or the API server is
    /// away, is taken to exist: its producers can do nothing about that.
    pub async fn exists(&self, namespace: &Namespace) -> bool {
        let Some(namespaces) = &self.namespaces else { return true };
        self.table.has_webhook(namespace) || namespaces.look_up(namespace).await != Found::Nothing
    }

    /// Counts events of a namespace. More at once than a burst are taken as a burst: they would never be taken
    /// otherwise.
    fn meter(&self, namespace: &Namespace, events: usize) -> Result<(), Error> {
        let Some(rate) = &self.rate else { return Ok(()) };
        let now = UnixMillis::default() + self.since.elapsed();
        let wanted = events.min(usize::try_from(rate.burst).unwrap_or(usize::MAX));
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if meters.len() >= METERS {
            meters.retain(|_, meter| meter.rested_at() > now);
        }
        let meter = meters.entry(Arc::clone(namespace)).or_default();
        let (taken, _) = meter.take(rate, now, wanted);
        if taken == wanted {
            return Ok(());
        }
        meter.give_back(rate, taken);
        let missing = u32::try_from(wanted - taken).unwrap_or(u32::MAX);
        let seconds = rate.per.saturating_mul(missing).as_secs_f64() / f64::from(rate.requests.max(1));
        let retry_after = Duration::from_secs_f64(seconds.ceil().max(1.0));
        Err(Error::TooFast { namespace: Arc::clone(namespace), limit: rate.requests, retry_after })
    }

    /// Whether publishing into a namespace would be tried now.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self, namespace: &str) -> Result<(), Error> {
        let unserved = |source| Error::Unserved { namespace: namespace.into(), source };
        self.table.check(namespace).map_err(unserved)?;
        Ok(self.store.accepting()?)
    }

    /// Stores the events, each with one delivery for each Webhook of the namespace that wants it now, all or
    /// none. Returns after the sync to disk, with a receipt for each event in order.
    ///
    /// # Errors
    /// Nothing was stored, but for [`Error::Timeout`].
    pub async fn publish(&self, namespace: &Namespace, events: Vec<Decoded>) -> Result<Vec<Receipt>, Error> {
        self.store(self.prepare(namespace, events)?).await
    }

    /// Waits until a body of so many bytes may be decoded and prepared. Of each namespace one large one at a time is:
    /// a hundred events take a thread for a millisecond, and with many connections that send such batches, others'
    /// single events would wait for all of them, each time that they wait for a thread.
    pub async fn turn(&self, namespace: &Namespace, bytes: usize) -> Turn {
        if bytes < LARGE_BODY {
            return Turn(None);
        }
        Turn(self.turns.of(namespace).acquire_owned().await.ok())
    }

    /// Makes deliveries of events, which are stored by [`Publisher::store`].
    ///
    /// # Errors
    /// They would not be stored.
    pub fn prepare(&self, namespace: &Namespace, events: Vec<Decoded>) -> Result<Prepared, Error> {
        self.ready(namespace)?;
        let now = self.clock.now();
        self.meter(namespace, events.len())?;
        Ok(Prepared(events.into_iter().map(|event| self.prepare_one(namespace, event, now)).collect()))
    }

    /// Stores what was prepared; see [`Publisher::publish`].
    ///
    /// # Errors
    /// Nothing was stored, but for [`Error::Timeout`].
    pub async fn store(&self, Prepared(new): Prepared) -> Result<Vec<Receipt>, Error> {
        let prepared: Vec<_> = new.iter().map(|event| (event.uid, event.deliveries.len())).collect();
        let appended = timeout(PATIENCE, self.store.append(new)).await.map_err(|_| Error::Timeout)??;
        let receipts: Vec<_> = prepared.into_iter().zip(appended).map(receipt).collect();
        self.count(&receipts);
        Ok(receipts)
    }

    /// What would become of the events; stores nothing.
    ///
    /// # Errors
    /// It can't be said now.
    pub fn preview(&self, namespace: &Namespace, events: &[Decoded]) -> Result<Vec<Preview>, Error> {
        self.ready(namespace)?;
        let now = self.clock.now();
        events.iter().map(|event| self.preview_one(namespace, &event.attributes, now)).collect()
    }

    fn preview_one(
        &self,
        namespace: &Namespace,
        event: &Attributes,
        now: UnixMillis,
    ) -> Result<Preview, Error> {
        let mut webhooks: Vec<_> =
            self.table.namespace(namespace).into_iter().map(|r| self.meet(r, event)).collect();
        webhooks.sort_unstable_by(|a, b| a.route.webhook.name.cmp(&b.route.webhook.name));
        let duplicate = self.store.duplicate_of(namespace, dedup_key(namespace, event), now)?.is_some();
        Ok(Preview { duplicate, webhooks })
    }

    fn meet(&self, route: Arc<Route>, event: &Attributes) -> Match {
        let summary = self.store.summary(route.webhook.uid);
        let (wanted, hold) = (route.filter.wants(&event.event_type), hold(&route, summary.as_deref()));
        Match { route, wanted, hold }
    }

    fn prepare_one(&self, namespace: &Namespace, event: Decoded, now: UnixMillis) -> NewEvent {
        let Decoded { attributes, data } = event;
        let uid = self.minter.event(now);
        let delivery = |route: Arc<Route>| NewDelivery {
            name: self.minter.delivery(now),
            webhook: route.webhook.clone(),
            test: false,
        };
        NewEvent {
            uid,
            namespace: Arc::clone(namespace),
            deliveries: self.table.matching(namespace, &attributes).into_iter().map(delivery).collect(),
            dedup: Some(dedup_key(namespace, &attributes)),
            attributes,
            data,
            accepted_at: now,
        }
    }

    fn count(&self, receipts: &[Receipt]) {
        let duplicates = receipts.iter().filter(|receipt| receipt.duplicate).count();
        for (result, n) in [("accepted", receipts.len() - duplicates), ("duplicate", duplicates)] {
            if n > 0 {
                let counter = self.metrics.events_received.get_or_create(&Received { result });
                counter.inc_by(u64::try_from(n).unwrap_or(u64::MAX));
            }
        }
    }
}

fn receipt(((id, matched), appended): ((EventUid, usize), Appended)) -> Receipt {
    match appended {
        Appended::New => Receipt { id, matched, duplicate: false },
        Appended::Duplicate(first) => Receipt { id: first, matched: 0, duplicate: true },
    }
}

/// What makes two publications the same: namespace, `source` and `id`, each with its length, so that no two
/// triples run into the same bytes.
fn dedup_key(namespace: &str, event: &Attributes) -> DedupKey {
    let mut hash = Context::new(&SHA256);
    for part in [namespace, &event.source, &event.id] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let mut key = [0; 16];
    key.iter_mut().zip(hash.finish().as_ref()).for_each(|(to, from)| *to = *from);
    DedupKey(key)
}

#[cfg(test)]
mod tests;
