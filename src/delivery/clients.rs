//! Open connections, by Webhook: each has its own, so that none waits for another's connections or streams.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use url::Position;

use super::connection::{self, Error, Line, Outgoing, Unanswered};
use super::egress::Guard;
use super::tls;
use crate::model::address::Policy;
use crate::model::ids::WebhookUid;
use crate::model::target::Target;
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
    streams: Vec<Arc<Streams>>,
    /// HTTP/1.1, not in use, the one used last at the end.
    idle: Vec<(http1::SendRequest<Full<Bytes>>, Instant)>,
    speaks_http1: bool,
    /// Until it is known that it speaks HTTP/1.1, one attempt opens a connection, which may do for all.
    opening: Arc<tokio::sync::Mutex<()>>,
}

/// Where requests go, in the forms that HTTP wants.
#[derive(Debug)]
struct Address {
    target: Target,
    absolute: Uri,
    path: Uri,
    host: HeaderValue,
}

/// An HTTP/2 connection.
#[derive(Debug)]
struct Streams {
    sender: http2::SendRequest<Full<Bytes>>,
    /// Streams that the receiver allows, as far as it was heard when the last request went out.
    allowed: Arc<AtomicUsize>,
    in_use: AtomicUsize,
    used: Mutex<Instant>,
}

/// A connection for one attempt.
#[derive(Debug)]
pub(super) struct Lease {
    line: Line,
    /// Of HTTP/2: its place among the streams.
    _place: Option<Place>,
    at: Arc<Address>,
    webhook: WebhookUid,
    made: Instant,
    /// It was there before: its peer may have closed it meanwhile.
    is_reused: bool,
}

/// One attempt on an HTTP/2 connection.
#[derive(Debug)]
struct Place(Arc<Streams>);

impl Place {
    fn on(streams: &Arc<Streams>) -> Self {
        streams.in_use.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(streams))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.in_use.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) fn connect_timeout(endpoint: &Endpoint) -> Duration {
    endpoint.timeout.min(CONNECT_TIMEOUT)
}

impl Address {
    fn of(target: &Target) -> Result<Self, Error> {
        let url = target.url();
        let uri = |text: &str| Uri::try_from(text).map_err(|error| Error::Url(error.into()));
        let host = HeaderValue::from_str(&url[Position::BeforeHost..Position::AfterPort]);
        Ok(Self {
            target: target.clone(),
            absolute: uri(url.as_str())?,
            path: uri(&url[Position::BeforePath..Position::AfterQuery])?,
            host: host.map_err(|error| Error::Url(error.into()))?,
        })
    }
}

impl Clients {
    pub(super) fn new(guard: Arc<Guard>) -> Self {
        Self(Arc::new(Shared {
            guard,
            configs: tls::Configs::default(),
            kept: Mutex::default(),
            tasks: TaskTracker::new(),
            sweeping: AtomicBool::new(false),
        }))
    }

    /// Posts, and waits for the head of the answer. A request of which nothing was sent, because an open
    /// connection turned out to be closed, goes over another; what may have been received is never sent again.
    pub(super) async fn post(
        &self,
        webhook: WebhookUid,
        endpoint: &Endpoint,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(Response<Incoming>, Lease), Error> {
        // Of an empty body, too: HTTP/1.1 would go without, and some servers want it (RFC 9110, section 8.6).
        let length = HeaderValue::from(body.len());
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.headers_mut() = headers;
        request.headers_mut().insert(CONTENT_LENGTH, length);
        request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        loop {
            let connecting = self.lease(webhook, endpoint);
            let connecting = timeout(connect_timeout(endpoint), connecting);
            let mut lease = connecting.await.map_err(|_| Error::TooSlow)??;
            lease.address(&mut request);
            match lease.line.send(request).await {
                Ok(response) => return Ok((response, lease)),
                Err(Unanswered::NotSent(unsent, _)) if lease.is_reused => request = *unsent,
                Err(Unanswered::NotSent(_, error) | Unanswered::Failed(error)) => return Err(error.into()),
            }
        }
    }

    /// Takes a connection back whose answer was read to its end.
    pub(super) fn give_back(&self, lease: Lease) {
        let mut kept = self.0.kept();
        let entry = kept.get_mut(&lease.webhook).filter(|entry| entry.made == lease.made);
        if let Some(entry) = entry {
            entry.keep(lease.line);
        }
    }

    /// A connection of this Webhook: one that is there, or a new one.
    async fn lease(&self, webhook: WebhookUid, endpoint: &Endpoint) -> Result<Lease, Error> {
        Shared::sweep_on(&self.0);
        // As it was before the look-up: what is opened under an older policy is not used under a newer one.
        let policy = self.0.guard.policy();
        let opening = match self.0.take(webhook, endpoint, &policy)? {
            Taken::Lease(lease) => return Ok(lease),
            Taken::Open(opening) => opening,
        };
        let mut turn = None;
        if let Some(opening) = &opening {
            turn = timeout(TURN, opening.lock()).await.ok();
            match self.0.take(webhook, endpoint, &policy)? {
                Taken::Lease(lease) => return Ok(lease),
                // Meanwhile it is known to speak HTTP/1.1: each opens its own.
                Taken::Open(None) => turn = None,
                Taken::Open(Some(_)) => {}
            }
        }
        let config = self.0.configs.get(&endpoint.tls)?;
        let line = connection::open(&self.0.guard, &endpoint.target, config, &self.0.tasks).await?;
        let lease = self.0.add(webhook, endpoint, &policy, line);
        drop(turn);
        lease
    }
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
    fn with_entry<T>(
        &self,
        webhook: WebhookUid,
        endpoint: &Endpoint,
        policy: &Arc<Policy>,
        act: impl FnOnce(&mut Entry) -> T,
    ) -> Result<T, Error> {
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
        kept.insert(webhook, entry);
        Ok(done)
    }

    fn take(&self, webhook: WebhookUid, endpoint: &Endpoint, policy: &Arc<Policy>) -> Result<Taken, Error> {
        self.with_entry(webhook, endpoint, policy, |entry| match entry.take(webhook) {
            Some(lease) => Taken::Lease(lease),
            None if entry.speaks_http1 => Taken::Open(None),
            None => Taken::Open(Some(Arc::clone(&entry.opening))),
        })
    }

    fn add(
        &self,
        webhook: WebhookUid,
        endpoint: &Endpoint,
        policy: &Arc<Policy>,
        line: Line,
    ) -> Result<Lease, Error> {
        self.with_entry(webhook, endpoint, policy, |entry| entry.add(webhook, line))
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
        let mut kept = shared.kept();
        kept.retain(|_, entry| entry.is_wanted());
        if kept.is_empty() {
            // Whoever adds one now finds no task, and starts another.
            shared.sweeping.store(false, Ordering::SeqCst);
            return;
        }
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
            streams: Vec::new(),
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
    fn take(&mut self, webhook: WebhookUid) -> Option<Lease> {
        self.streams.retain(|streams| !streams.sender.is_closed());
        let has_room = |streams: &&Arc<Streams>| streams.in_use.load(Ordering::Relaxed) < streams.room();
        if let Some(streams) = self.streams.iter().find(has_room) {
            return Some(self.share(webhook, streams, true));
        }
        while let Some((sender, _)) = self.idle.pop() {
            if !sender.is_closed() {
                let (line, at) = (Line::Http1(sender), Arc::clone(&self.at));
                return Some(Lease { line, _place: None, at, webhook, made: self.made, is_reused: true });
            }
        }
        None
    }

    fn share(&self, webhook: WebhookUid, streams: &Arc<Streams>, is_reused: bool) -> Lease {
        let line = Line::Http2(streams.sender.clone(), Arc::clone(&streams.allowed));
        let at = Arc::clone(&self.at);
        Lease { line, _place: Some(Place::on(streams)), at, webhook, made: self.made, is_reused }
    }

    fn add(&mut self, webhook: WebhookUid, line: Line) -> Lease {
        let (made, at) = (self.made, Arc::clone(&self.at));
        match line {
            Line::Http1(_) => {
                self.speaks_http1 = true;
                Lease { line, _place: None, at, webhook, made, is_reused: false }
            }
            Line::Http2(sender, allowed) => {
                let used = Mutex::new(Instant::now());
                let streams = Arc::new(Streams { sender, allowed, in_use: AtomicUsize::new(0), used });
                self.speaks_http1 = false;
                self.streams.push(Arc::clone(&streams));
                self.share(webhook, &streams, false)
            }
        }
    }

    /// Takes a connection that serves one request at a time, and has served it.
    fn keep(&mut self, line: Line) {
        if let Line::Http1(sender) = line
            && !sender.is_closed()
        {
            self.idle.push((sender, Instant::now()));
        }
    }

    /// Closes what is idle; whether anything is left that may be used again.
    fn is_wanted(&mut self) -> bool {
        if self.made.elapsed() >= MAX_AGE {
            // Attempts under way hold their connections themselves.
            return false;
        }
        self.idle.retain(|(sender, since)| since.elapsed() < IDLE && !sender.is_closed());
        self.streams.retain(|streams| !streams.is_idle() && !streams.sender.is_closed());
        !self.idle.is_empty() || !self.streams.is_empty() || self.used.elapsed() < IDLE
    }
}

impl Streams {
    /// Attempts that it has room for, at least one.
    fn room(&self) -> usize {
        self.allowed.load(Ordering::Relaxed).clamp(1, PER_CONNECTION)
    }

    fn is_idle(&self) -> bool {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.in_use.load(Ordering::Relaxed) == 0 && used.elapsed() >= IDLE
    }
}

impl Lease {
    /// HTTP/2 wants the whole URL; HTTP/1.1 a path and the host as a header (RFC 9112, section 3.2.1).
    fn address(&self, request: &mut Outgoing) {
        match &self.line {
            Line::Http1(_) => {
                *request.uri_mut() = self.at.path.clone();
                request.headers_mut().insert(HOST, self.at.host.clone());
            }
            Line::Http2(..) => {
                *request.uri_mut() = self.at.absolute.clone();
                request.headers_mut().remove(HOST);
            }
        }
    }
}
