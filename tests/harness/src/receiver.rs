//! A real TLS endpoint on loopback that records what it gets and answers by script.
//!
//! Any name is served: the certificate for it is made at the handshake, signed by the receiver's
//! own authority, so `https://orders.localhost:<port>/path` and `https://127.0.0.1:<port>/` both
//! work for a client that trusts [`Receiver::ca_pem`].

mod answer;
mod serve;
mod tls;

use std::{
    collections::{HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::bail;
use bytes::Bytes;
use tokio::{net::TcpListener, sync::watch, task::AbortHandle};

pub use answer::{Answer, Gate};

use crate::ports::{Port, free_port};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, without the question mark.
    pub query: Option<String>,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// Whom it was sent to: the `host` header or the `:authority`.
    pub authority: String,
    /// The headers in order of arrival (those of one name stand together), names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, byte for byte.
    pub body: Bytes,
    /// Whether the client proved possession of a certificate.
    pub client_certificate: bool,
    /// When all of it had arrived, by the monotonic clock.
    pub at: Instant,
    /// When all of it had arrived, by the wall clock.
    pub time: SystemTime,
}

impl Request {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(each, _)| each.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

/// What a receiver asks of its clients.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Clients must show a certificate of this authority (PEM).
    pub client_ca: Option<String>,
    /// Only HTTP/1.1 is offered.
    pub only_http1: bool,
}

/// A running receiver; it stops and closes its connections when dropped.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    tls: Arc<rustls::ServerConfig>,
    ca_pem: String,
    port: Port,
    accepting: Mutex<Option<AbortHandle>>,
}

/// Sees each request as it arrives.
type Observer = Box<dyn Fn(&Request) + Send + Sync>;

/// What the connections and the test both see.
struct Shared {
    endpoints: Mutex<HashMap<String, Endpoint>>,
    observer: OnceLock<Observer>,
    arrivals: watch::Sender<u64>,
    keep: AtomicBool,
    mute: AtomicBool,
}

/// One path: its script and its past.
#[derive(Debug)]
struct Endpoint {
    script: VecDeque<Answer>,
    default: Answer,
    requests: Vec<Request>,
    count: usize,
    in_flight: usize,
    peak: usize,
}

impl Default for Endpoint {
    fn default() -> Self {
        let (script, requests) = (VecDeque::new(), Vec::new());
        Self { script, default: Answer::ok(), requests, count: 0, in_flight: 0, peak: 0 }
    }
}

impl Receiver {
    /// A receiver that answers 200 to everything, over HTTP/1.1 and HTTP/2.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// A receiver that asks more of its clients.
    pub async fn start_with(options: Options) -> anyhow::Result<Self> {
        let (tls, ca_pem) = tls::config(&options)?;
        let shared = Shared {
            endpoints: Mutex::default(),
            observer: OnceLock::new(),
            arrivals: watch::Sender::new(0),
            keep: AtomicBool::new(true),
            mute: AtomicBool::new(false),
        };
        let accepting = Mutex::default();
        let receiver = Self { shared: Arc::new(shared), tls, ca_pem, port: free_port()?, accepting };
        receiver.come_up().await?;
        Ok(receiver)
    }

    /// The authority to trust, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// `https://<name>.localhost:<port><path>`; the path begins with a slash.
    pub fn url(&self, name: &str, path: &str) -> String {
        format!("https://{name}.localhost:{}{path}", self.port())
    }

    /// The next requests for `path` get these answers in turn, all after them `default`.
    pub fn set_script(&self, path: &str, script: Vec<Answer>, default: Answer) {
        let mut endpoints = self.shared.endpoints();
        let endpoint = endpoints.entry(path.to_owned()).or_default();
        endpoint.script = script.into();
        endpoint.default = default;
    }

    /// Every request for `path` gets this answer.
    pub fn answer(&self, path: &str, answer: Answer) {
        self.set_script(path, Vec::new(), answer);
    }

    /// The requests for `path` so far, in order of arrival.
    pub fn requests(&self, path: &str) -> Vec<Request> {
        self.shared.endpoints().get(path).map(|endpoint| endpoint.requests.clone()).unwrap_or_default()
    }

    /// All requests so far, in order of arrival.
    pub fn all_requests(&self) -> Vec<Request> {
        let mut all: Vec<_> =
            self.shared.endpoints().values().flat_map(|endpoint| endpoint.requests.clone()).collect();
        all.sort_by_key(|request| request.at);
        all
    }

    /// How many requests for `path` have arrived.
    pub fn count(&self, path: &str) -> usize {
        self.shared.endpoints().get(path).map_or(0, |endpoint| endpoint.count)
    }

    /// The most requests for `path` that were ever under way at once.
    pub fn peak_in_flight(&self, path: &str) -> usize {
        self.shared.endpoints().get(path).map_or(0, |endpoint| endpoint.peak)
    }

    /// Waits until `count` requests for `path` have arrived in all, and answers all of them.
    pub async fn await_requests(
        &self,
        path: &str,
        count: usize,
        timeout: Duration,
    ) -> anyhow::Result<Vec<Request>> {
        let mut arrivals = self.shared.arrivals.subscribe();
        let enough = arrivals.wait_for(|_| self.count(path) >= count);
        if tokio::time::timeout(timeout, enough).await.is_err() {
            let seen: Vec<_> = self
                .shared
                .endpoints()
                .iter()
                .map(|(path, endpoint)| (path.clone(), endpoint.count))
                .collect();
            bail!("waited {timeout:?} for {count} requests at {path}; arrived: {seen:?}");
        }
        Ok(self.requests(path))
    }

    /// Fails if another request for `path` arrives within `quiet`.
    pub async fn expect_silence(&self, path: &str, quiet: Duration) -> anyhow::Result<()> {
        let before = self.count(path);
        let mut arrivals = self.shared.arrivals.subscribe();
        let more = arrivals.wait_for(|_| self.count(path) > before);
        if tokio::time::timeout(quiet, more).await.is_ok() {
            let last = self.requests(path).pop();
            bail!("a request for {path} arrived, and none should: {last:?}");
        }
        Ok(())
    }

    /// Forgets all requests and counts; the scripts stay.
    pub fn forget(&self) {
        for endpoint in self.shared.endpoints().values_mut() {
            endpoint.requests.clear();
            (endpoint.count, endpoint.peak) = (0, endpoint.in_flight);
        }
    }

    /// Whether requests are kept (they are) or only counted, for benches.
    pub fn keep_requests(&self, keep: bool) {
        self.shared.keep.store(keep, Ordering::Relaxed);
    }

    /// Shows each request to `observer` as it arrives, also when requests are not kept. Once only: a second one is
    /// not asked.
    pub fn observe(&self, observer: impl Fn(&Request) + Send + Sync + 'static) {
        let _ = self.shared.observer.set(Box::new(observer));
    }

    /// Whether new connections are accepted and then hear nothing, not even the TLS handshake.
    pub fn mute(&self, mute: bool) {
        self.shared.mute.store(mute, Ordering::Relaxed);
    }

    /// Closes all connections, and refuses new ones until [`Receiver::come_up`].
    pub async fn go_down(&self) -> anyhow::Result<()> {
        let running = self.accepting().take();
        if let Some(task) = running {
            task.abort();
            while !task.is_finished() {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Listens (again), at the same port.
    pub async fn come_up(&self) -> anyhow::Result<()> {
        self.go_down().await?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port()));
        let listener = TcpListener::bind(address).await?;
        let serving = serve::accept(listener, Arc::clone(&self.tls).into(), Arc::clone(&self.shared));
        *self.accepting() = Some(tokio::spawn(serving).abort_handle());
        Ok(())
    }

    fn accepting(&self) -> MutexGuard<'_, Option<AbortHandle>> {
        self.accepting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(task) = self.accepting().take() {
            task.abort();
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("endpoints", &self.endpoints().len()).finish_non_exhaustive()
    }
}

impl Shared {
    fn endpoints(&self) -> MutexGuard<'_, HashMap<String, Endpoint>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an arrival, and takes the answer that is its turn and what that needs of the request.
    fn arrived(&self, request: Request) -> (Answer, Option<Request>) {
        if let Some(observer) = self.observer.get() {
            observer(&request);
        }
        let taken = {
            let mut endpoints = self.endpoints();
            let endpoint = endpoints.entry(request.path.clone()).or_default();
            endpoint.count += 1;
            endpoint.in_flight += 1;
            endpoint.peak = endpoint.peak.max(endpoint.in_flight);
            let answer = endpoint.script.pop_front().unwrap_or_else(|| endpoint.default.clone());
            let needed = answer.wants_request().then(|| request.clone());
            if self.keep.load(Ordering::Relaxed) {
                endpoint.requests.push(request);
            }
            (answer, needed)
        };
        self.arrivals.send_modify(|arrivals| *arrivals += 1);
        taken
    }

    fn left(&self, path: &str) {
        if let Some(endpoint) = self.endpoints().get_mut(path) {
            endpoint.in_flight = endpoint.in_flight.saturating_sub(1);
        }
    }
}
