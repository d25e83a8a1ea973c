//! Open connections, by Webhook: each has its own, so that none waits for another's connections or streams.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use http::Response;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use super::connection::{self, Body, Error, Line, Opened, Unanswered};
use super::dial::Failures;
use super::egress::Guard;
use super::lease::{Address, Lease, Peer, outgoing};
use super::request::Request as Posted;
use super::{http1, http2, tls};
use crate::model::address::Policy;
use crate::model::ids::WebhookUid;
use crate::routes::{Endpoint, TlsMaterial};

/// A connection is used for so long; then it ends with its last request.
const MAX_AGE: Duration = Duration::from_mins(5);

/// A connection without a request is closed after this, and a little.
const IDLE: Duration = Duration::from_secs(30);

/// Time to connect (look-up, TCP and TLS together), when the endpoint's own limit is not shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An attempt waits so long for the connection that another opens, which may do for both; then it opens its own.
const TURN: Duration = Duration::from_secs(1);

/// Attempts that share one HTTP/2 connection: fewer than the streams that servers usually allow on one (100 and
/// more), or the time of those beyond would run while they wait for a stream.
const PER_CONNECTION: usize = 64;

/// Connections by Webhook, each at most five minutes old and made for the endpoint and policy as they are now.
#[derive(Debug)]
pub(super) struct Clients(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    guard: Arc<Guard>,
    configs: tls::Configs,
    kept: Mutex<HashMap<WebhookUid, Entry>>,
    failures: Failures,
    tasks: TaskTracker,
    /// A task looks for what is idle.
    sweeping: AtomicBool,
}

/// The connections of one Webhook.
#[derive(Debug)]
struct Entry {
    at: Arc<Address>,
    tls: TlsMaterial,
    policy: Arc<Policy>,
    made: Instant,
    used: Instant,
    /// HTTP/2, in use or not.
    shared: Vec<(http2::Connection, Peer)>,
    /// HTTP/1.1, not in use, the one used last at the end.
    idle: Vec<(http1::Connection, Peer, Instant)>,
    speaks_http1: bool,
    /// Until it is known that it speaks HTTP/1.1, one attempt opens a connection, which may do for all.
    opening: Arc<tokio::sync::Mutex<()>>,
}

/// An address that has to give an answer. Dropped before it did, it counts as failed: the Webhook's next connection goes
/// to another first, and those to this one take no more requests.
#[derive(Debug)]
struct Trial<'a> {
    shared: &'a Shared,
    webhook: WebhookUid,
    peer: Peer,
}

impl Trial<'_> {
    fn passed(&mut self) {
        self.peer = None;
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if let Some(peer) = self.peer {
            self.shared.failures.note(self.webhook, peer);
            self.shared.leave(self.webhook, peer);
        }
    }
}

pub(super) fn connect_timeout(endpoint: &Endpoint) -> Duration {
    endpoint.timeout.min(CONNECT_TIMEOUT)
}

impl Clients {
    pub(super) fn new(guard: Arc<Guard>) -> Self {
        Self(Arc::new(Shared {
            guard,
            configs: tls::Configs::default(),
            kept: Mutex::default(),
            failures: Failures::default(),
            tasks: TaskTracker::new(),
            sweeping: AtomicBool::new(false),
        }))
    }

    /// Posts, and waits for the head of the answer. What came of an answer without a whole head is told by `heard`.
    ///
    /// A request on which the receiver has not acted, because an open connection turned out to be closed, goes over
    /// another, made `again`. What may have been received is sent again once, and only if its connection had brought an
    /// answer before and ended before the first byte of this one: receivers close connections that are idle just as a
    /// request goes out. It goes over one that was opened since.
    pub(super) async fn post(
        &self,
        webhook: WebhookUid,
        endpoint: &Endpoint,
        began: Instant,
        first: Posted,
        again: impl Fn() -> Posted,
        heard: &mut Option<Arc<http1::Heard>>,
    ) -> Result<(Response<Body>, Lease), Error> {
        let (mut request, mut since, mut cut) = (outgoing(first), began, None);
        loop {
            let mut lease = self.lease(webhook, endpoint, since, cut).await?;
            let mut trial = Trial { shared: &self.0, webhook, peer: lease.peer };
            lease.address(&mut request);
            *heard = lease.heard();
            let unanswered = match lease.line.send(request).await {
                Ok(response) => {
                    trial.passed();
                    return Ok((response, lease));
                }
                Err(unanswered) => unanswered,
            };
            if !matches!(unanswered, Unanswered::Failed(_)) {
                // Nothing came in answer to this request. What that connection heard must not count for it, also
                // when there is no other connection.
                *heard = None;
            }
            match unanswered {
                Unanswered::NotSent(_) if lease.is_reused => trial.passed(),
                Unanswered::Cut(_) if lease.has_answered && cut.is_none() => cut = Some(Instant::now()),
                Unanswered::NotSent(error) | Unanswered::Cut(error) | Unanswered::Failed(error) => {
                    return Err(error);
                }
            }
            request = outgoing(again());
            since = Instant::now();
        }
    }

    /// Takes a connection back that serves one request at a time, and whose answer was read to its end.
    pub(super) fn give_back(&self, lease: Lease) {
        let Lease { line: Line::Http1(connection), webhook, made, peer, .. } = lease else { return };
        let mut kept = self.0.kept();
        if let Some(entry) = kept.get_mut(&webhook).filter(|entry| entry.made == made)
            && !connection.is_closed()
        {
            entry.idle.push((connection, peer, Instant::now()));
        }
    }

    /// A connection of this Webhook: one that is there (after a `cut`, one that was opened since), or a new one, which
    /// is given up when the time to connect is over.
    async fn lease(
        &self,
        webhook: WebhookUid,
        endpoint: &Endpoint,
        since: Instant,
        cut: Option<Instant>,
    ) -> Result<Lease, Error> {
        Shared::sweep_on(&self.0);
        // As it was before the look-up: what is opened under an older policy is not used under a newer one.
        let policy = self.0.guard.policy();
        let wanted = Wanted { webhook, endpoint, policy: &policy, cut };
        match self.0.take(&wanted)? {
            Taken::Lease(lease) => Ok(lease),
            Taken::Open(opening) => {
                let limit = since + connect_timeout(endpoint);
                // Rare, and large: what the others are is moved about at each attempt.
                let opened = timeout_at(limit, self.open(&wanted, limit, opening)).boxed();
                opened.await.map_err(|_| Error::TooSlow)?
            }
        }
    }

    /// A new connection, or the one that another attempt opened meanwhile.
    async fn open(
        &self,
        wanted: &Wanted<'_>,
        limit: Instant,
        opening: Option<Arc<tokio::sync::Mutex<()>>>,
    ) -> Result<Lease, Error> {
        let mut turn = None;
        if let Some(opening) = &opening {
            turn = timeout(TURN, opening.lock()).await.ok();
            match self.0.take(wanted)? {
                Taken::Lease(lease) => return Ok(lease),
                // Meanwhile it is known to speak HTTP/1.1: each opens its own.
                Taken::Open(None) => turn = None,
                Taken::Open(Some(_)) => {}
            }
        }
        let (opened, peer) = self.dial(wanted, limit).await?;
        let lease = self.0.add(wanted, opened, peer);
        drop(turn);
        lease
    }

    /// A new connection, to the address that was the first to give one.
    async fn dial(&self, wanted: &Wanted<'_>, limit: Instant) -> Result<(Opened, Peer), Error> {
        let Wanted { webhook, endpoint, .. } = *wanted;
        let config = self.0.configs.get(&endpoint.tls)?;
        let mut addresses = connection::addresses(&self.0.guard, &endpoint.target).await?;
        self.0.failures.order(webhook, &mut addresses);
        let first = addresses.first().copied().filter(|_| addresses.len() > 1);
        let mut trial = Trial { shared: &self.0, webhook, peer: first };
        let time = limit.saturating_duration_since(Instant::now());
        let opened = connection::open(&addresses, &endpoint.target, config, time, &self.0.tasks);
        let (opened, address) = opened.await?;
        let peer = first.map(|_| address);
        if peer == first {
            trial.passed();
        }
        Ok((opened, peer))
    }
}

/// What an attempt wants a connection for.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    webhook: WebhookUid,
    endpoint: &'a Endpoint,
    policy: &'a Arc<Policy>,
    /// When a request was cut: a connection that is older may end in the same way.
    cut: Option<Instant>,
}

/// What there is for an attempt.
enum Taken {
    Lease(Lease),
    /// Nothing: a connection is to be opened; by one at a time who holds this.
    Open(Option<Arc<tokio::sync::Mutex<()>>>),
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, HashMap<WebhookUid, Entry>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of a Webhook, made anew when it is of another endpoint or too old.
    fn with_entry<T>(&self, wanted: &Wanted<'_>, act: impl FnOnce(&mut Entry) -> T) -> Result<T, Error> {
        let Wanted { webhook, endpoint, policy, .. } = *wanted;
        let mut kept = self.kept();
        if let Some(entry) = kept.get_mut(&webhook)
            && entry.fits(endpoint, policy)
        {
            entry.used = Instant::now();
            if entry.at.target != endpoint.target {
                entry.at = Arc::new(Address::of(&endpoint.target)?);
            }
            return Ok(act(entry));
        }
        let mut entry = Entry::new(endpoint, Arc::clone(policy))?;
        let done = act(&mut entry);
        let before = kept.insert(webhook, entry);
        drop(kept);
        drop(before);
        Ok(done)
    }

    fn take(&self, wanted: &Wanted<'_>) -> Result<Taken, Error> {
        // Dropped at the end, when nobody waits for this: to end a connection takes its lock.
        let mut gone = Vec::new();
        self.with_entry(wanted, |entry| match entry.take(wanted, &mut gone) {
            Some(lease) => Taken::Lease(lease),
            None if entry.speaks_http1 => Taken::Open(None),
            None => Taken::Open(Some(Arc::clone(&entry.opening))),
        })
    }

    fn add(&self, wanted: &Wanted<'_>, opened: Opened, peer: Peer) -> Result<Lease, Error> {
        self.with_entry(wanted, |entry| entry.add(wanted.webhook, opened, peer))
    }

    /// Nothing more is sent over the Webhook's connections to this address; what is under way goes on.
    fn leave(&self, webhook: WebhookUid, peer: IpAddr) {
        let mut kept = self.kept();
        let left = kept.get_mut(&webhook).map(|entry| entry.leave(peer));
        drop(kept);
        drop(left);
    }

    /// Sees to it that a task closes what is idle, as long as there is something.
    fn sweep_on(shared: &Arc<Self>) {
        if !shared.sweeping.swap(true, Ordering::SeqCst) {
            let weak = Arc::downgrade(shared);
            shared.tasks.spawn(sweep(weak));
        }
    }
}

async fn sweep(shared: Weak<Shared>) {
    loop {
        sleep(IDLE / 3).await;
        let Some(shared) = shared.upgrade() else { return };
        let mut gone = Vec::new();
        let mut kept = shared.kept();
        kept.retain(|_, entry| entry.is_wanted(&mut gone));
        if kept.is_empty() {
            // Whoever adds one now finds no task, and starts another.
            shared.sweeping.store(false, Ordering::SeqCst);
            return;
        }
        drop(kept);
        drop(gone);
    }
}

impl Entry {
    fn new(endpoint: &Endpoint, policy: Arc<Policy>) -> Result<Self, Error> {
        Ok(Self {
            at: Arc::new(Address::of(&endpoint.target)?),
            tls: endpoint.tls.clone(),
            policy,
            made: Instant::now(),
            used: Instant::now(),
            shared: Vec::new(),
            idle: Vec::new(),
            speaks_http1: false,
            opening: Arc::default(),
        })
    }

    fn fits(&self, endpoint: &Endpoint, policy: &Arc<Policy>) -> bool {
        self.made.elapsed() < MAX_AGE
            && self.at.target.host() == endpoint.target.host()
            && self.at.target.port() == endpoint.target.port()
            && self.tls == endpoint.tls
            && Arc::ptr_eq(&self.policy, policy)
    }

    /// Of HTTP/2 the first that has room, so that few attempts keep few connections warm; of HTTP/1.1 the one
    /// that was used last.
    fn take(&mut self, wanted: &Wanted<'_>, gone: &mut Vec<(http2::Connection, Peer)>) -> Option<Lease> {
        gone.extend(self.shared.extract_if(.., |(connection, _)| connection.is_over()));
        let is_wanted = |connection: &http2::Connection| {
            wanted.cut.is_none_or(|cut| connection.is_newer_than(cut)) && connection.has_room(PER_CONNECTION)
        };
        if let Some((connection, peer)) = self.shared.iter().find(|(connection, _)| is_wanted(connection)) {
            let has_answered = connection.has_answered();
            let lease = self.lease(wanted.webhook, Line::Http2(connection.place()), *peer);
            return Some(Lease { is_reused: true, has_answered, ..lease });
        }
        while wanted.cut.is_none()
            && let Some((connection, peer, _)) = self.idle.pop()
        {
            if !connection.is_closed() {
                let lease = self.lease(wanted.webhook, Line::Http1(connection), peer);
                return Some(Lease { is_reused: true, has_answered: true, ..lease });
            }
        }
        None
    }

    fn lease(&self, webhook: WebhookUid, line: Line, peer: Peer) -> Lease {
        let (at, made) = (Arc::clone(&self.at), self.made);
        Lease { line, at, webhook, made, peer, is_reused: false, has_answered: false }
    }

    fn add(&mut self, webhook: WebhookUid, opened: Opened, peer: Peer) -> Lease {
        let line = match opened {
            Opened::Http1(connection) => {
                self.speaks_http1 = true;
                Line::Http1(connection)
            }
            Opened::Http2(connection) => {
                self.speaks_http1 = false;
                let place = connection.place();
                self.shared.push((connection, peer));
                Line::Http2(place)
            }
        };
        self.lease(webhook, line, peer)
    }

    /// Its connections to this address.
    fn leave(&mut self, peer: IpAddr) -> (Vec<(http2::Connection, Peer)>, Vec<http1::Connection>) {
        let shared = self.shared.extract_if(.., |(_, other)| *other == Some(peer)).collect();
        let idle = self.idle.extract_if(.., |(_, other, _)| *other == Some(peer));
        (shared, idle.map(|(connection, ..)| connection).collect())
    }

    /// Closes what is idle; whether anything is left that may be used again.
    fn is_wanted(&mut self, gone: &mut Vec<(http2::Connection, Peer)>) -> bool {
        if self.made.elapsed() >= MAX_AGE {
            // Attempts under way hold their connections themselves.
            gone.append(&mut self.shared);
            return false;
        }
        self.idle.retain(|(connection, _, since)| since.elapsed() < IDLE && !connection.is_closed());
        let is_idle = |connection: &http2::Connection| connection.idle().is_some_and(|idle| idle >= IDLE);
        gone.extend(
            self.shared.extract_if(.., |(connection, _)| is_idle(connection) || connection.is_over()),
        );
        !self.idle.is_empty() || !self.shared.is_empty() || self.used.elapsed() < IDLE
    }
}
