//! Accepts connections, with TLS or without, and serves HTTP/1 and HTTP/2 on them within limits.
//!
//! Nothing a client does or leaves undone holds more than one of a bounded number of places, for a bounded
//! time. When all places are taken, the connection that has been idle for longest gives way to the new one;
//! only when every one is at work is the new one refused.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{CONNECTION, HOST};
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::connection::{Activity, Answering, InRequest, Patience, Watched};
use super::http1::{Guard, Heads, MAX_NAME, MAX_TARGET, METHOD, Shared, long_name, long_target};
use super::quiet::Quiet;
use super::rest::{self, RequestBody};
use super::status::{Answer, Failure, Reason};

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The client certificates that it proved to possess, leaf first; nobody has judged their chain.
    pub certificates: Arc<[CertificateDer<'static>]>,
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request; never fails. What it does not read of the body is taken in afterwards.
    fn handle<'a>(
        &'a self,
        peer: Peer,
        request: Request<&'a mut RequestBody>,
    ) -> impl Future<Output = Answer> + Send + 'a;

    /// Whether this is somebody whose requests may have the large heads of [`Limits::trusted`].
    fn trusts(&self, _: &Peer) -> bool {
        false
    }

    /// Returns when this has come to be somebody trusted.
    fn comes_to_trust(&self, _: &Peer) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// What a listener allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// For a TLS handshake.
    pub handshake: Duration,
    /// To the first request of a connection, and from the first byte of a request's head to its end.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// Size of a request's head.
    pub heads: Heads,
    /// Of those whom the handler trusts. They are few, so what they may have in memory is bounded, too.
    pub trusted: Heads,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// For requests under way when the listener is told to stop.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            idle: Duration::from_mins(2),
            heads: Heads { bytes: 64 << 10, headers: 100 },
            // As much as an API server of Kubernetes takes itself, since it sends on what it was sent.
            trusted: Heads { bytes: 1 << 20, headers: 10_000 },
            streams: 256,
            drain: Duration::from_secs(20),
        }
    }
}

/// How long a new connection waits for a place that another gives up.
const GIVE_WAY: Duration = Duration::from_secs(1);
/// How long a connection that must end may take to say so, when no request is under way on it.
const FAREWELL: Duration = Duration::from_millis(500);
/// Of HTTP/2: bytes that may be under way to us without having been read, of one request and of a connection.
const WINDOWS: (u32, u32) = (256 << 10, 1 << 20);
/// Of HTTP/1: the buffer of a connection that is being read.
const BUFFER: usize = 128 << 10;
/// So much larger than our limits are those of the libraries, which refuse without a word: theirs are never met before
/// ours, but for a head of HTTP/2 that is beyond all measure.
const ABOVE: usize = 96 << 10;

/// Serves until told to stop; returns when the last connection has ended, or after [`Limits::drain`].
pub async fn serve<H: Handler>(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    handler: Arc<H>,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let server = Arc::new(Server::new(tls, handler, limits, shutdown));
    let mut number = 0;
    while let Some((socket, address)) = server.accept(&listener).await {
        if let Some(place) = server.place().await {
            number += 1;
            server.tasks.spawn(Arc::clone(&server).connection(number, place, socket, address));
        }
    }
    drop(listener);
    server.tasks.close();
    if timeout(limits.drain, server.tasks.wait()).await.is_err() {
        server.kill.cancel();
        server.tasks.wait().await;
    }
}

struct Server<H> {
    tls: Option<TlsAcceptor>,
    handler: Arc<H>,
    limits: Limits,
    places: Arc<Semaphore>,
    open: Open,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Ends what has not ended within the drain time.
    kill: CancellationToken,
}

impl<H: Handler> Server<H> {
    fn new(
        tls: Option<Arc<ServerConfig>>,
        handler: Arc<H>,
        limits: Limits,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            tls: tls.map(TlsAcceptor::from),
            handler,
            limits,
            places: Arc::new(Semaphore::new(limits.connections)),
            open: Open::default(),
            tasks: TaskTracker::new(),
            shutdown,
            kill: CancellationToken::new(),
        }
    }

    /// The next connection; none when it is time to stop.
    async fn accept(&self, listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
        static FAILED: Quiet = Quiet::new(Duration::from_mins(1));
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return None,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(connection) => return Some(connection),
                Err(error) => {
                    if let Some(silent) = FAILED.speak() {
                        warn!(%error, silent, "cannot accept a connection");
                    }
                    // Mostly no file descriptors are left; trying at once would only burn time.
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// A place for a new connection, if need be that of the one idle for longest.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        static FULL: Quiet = Quiet::new(Duration::from_mins(1));
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        self.open.make_one_give_way();
        let place = timeout(GIVE_WAY, Arc::clone(&self.places).acquire_owned()).await;
        if let Ok(Ok(place)) = place {
            return Some(place);
        }
        if let Some(silent) = FULL.speak() {
            let connections = self.limits.connections;
            warn!(connections, silent, "refused a connection: all places are at work");
        }
        None
    }

    async fn connection(
        self: Arc<Self>,
        number: u64,
        _place: OwnedSemaphorePermit,
        socket: TcpStream,
        address: SocketAddr,
    ) {
        let activity = Arc::new(Activity::new());
        let _listed = self.open.list(number, &activity);
        tokio::select! {
            () = self.kill.cancelled() => {}
            () = self.greet(socket, address, &activity) => {}
        }
    }

    /// Shakes hands, and serves the protocol that was agreed on.
    async fn greet(&self, socket: TcpStream, address: SocketAddr, activity: &Arc<Activity>) {
        let _ = socket.set_nodelay(true);
        let Some(tls) = &self.tls else {
            let peer = Peer { address, certificates: Arc::new([]) };
            return self.http1(socket, peer, activity).await;
        };
        let socket = tokio::select! {
            () = activity.give_way.cancelled() => return,
            () = self.shutdown.cancelled() => return,
            shaken = timeout(self.limits.handshake, tls.accept(socket)) => match shaken {
                Ok(Ok(socket)) => socket,
                Ok(Err(error)) => return debug!(%address, %error, "no TLS handshake"),
                Err(_) => return debug!(%address, "the TLS handshake took too long"),
            },
        };
        let (_, session) = socket.get_ref();
        let certificates = session.peer_certificates().unwrap_or_default();
        let peer =
            Peer { address, certificates: certificates.iter().map(|c| c.clone().into_owned()).collect() };
        if session.alpn_protocol() == Some(b"h2") {
            self.http2(socket, peer, activity).await;
        } else {
            self.http1(socket, peer, activity).await;
        }
    }

    async fn http1<S>(&self, socket: S, peer: Peer, activity: &Arc<Activity>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (heads, shared) = (self.heads(&peer), Arc::<Shared>::default());
        let watched = Watched { socket, activity: Some(Arc::clone(activity)) };
        let io = TokioIo::new(Guard::new(watched, heads, Arc::clone(&shared)));
        let mut builder = http1::Builder::new();
        if heads.headers > self.limits.heads.headers {
            builder.max_headers(heads.headers);
        }
        let connection = builder
            .max_header_size(heads.bytes + ABOVE)
            .max_buf_size(BUFFER.max(heads.bytes + ABOVE))
            // The patience of `drive` is finer: it tells an idle connection from a slow head.
            .header_read_timeout(None)
            .timer(TokioTimer::new())
            .serve_connection(io, self.service(peer.clone(), heads, activity, Protocol::Http1(shared)));
        self.drive(connection, http1::Connection::graceful_shutdown, activity, self.outgrows(&peer, heads))
            .await;
    }

    async fn http2<S>(&self, socket: S, peer: Peer, activity: &Arc<Activity>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(Watched { socket, activity: None });
        let heads = self.heads(&peer);
        let most = u32::try_from(heads.bytes + ABOVE).unwrap_or(u32::MAX);
        let connection = http2::Builder::new(Tracked(self.tasks.clone()))
            .max_header_list_size(most)
            .max_concurrent_streams(self.limits.streams)
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .timer(TokioTimer::new())
            .serve_connection(io, self.service(peer.clone(), heads, activity, Protocol::Http2));
        self.drive(connection, http2::Connection::graceful_shutdown, activity, self.outgrows(&peer, heads))
            .await;
    }

    fn heads(&self, peer: &Peer) -> Heads {
        if self.handler.trusts(peer) { self.limits.trusted } else { self.limits.heads }
    }

    /// Returns when larger heads are due to somebody than his connection, which is made for these, can take.
    async fn outgrows(&self, peer: &Peer, heads: Heads) {
        if heads == self.limits.trusted {
            std::future::pending::<()>().await;
        }
        self.handler.comes_to_trust(peer).await;
    }

    fn service(
        &self,
        peer: Peer,
        heads: Heads,
        activity: &Arc<Activity>,
        protocol: Protocol,
    ) -> impl hyper::service::Service<
        Request<Incoming>,
        Response = Response<Answering>,
        Error = std::convert::Infallible,
        Future: Send + 'static,
    > + Send
    + use<H> {
        let requests = Arc::new(Requests {
            handler: Arc::clone(&self.handler),
            peer,
            heads,
            activity: Arc::clone(activity),
            protocol,
            tasks: self.tasks.clone(),
            shutdown: self.shutdown.clone(),
        });
        service_fn(move |request| {
            let (requests, under_way) = (Arc::clone(&requests), requests.activity.request());
            async move {
                let activity = Arc::clone(&requests.activity);
                let answer = requests.answer(request, under_way).await;
                Ok(answer.map(|body| Answering::new(body, &activity, &requests.tasks)))
            }
        })
    }

    /// Runs a connection to its end: its own, or a farewell when patience ends, its place is needed, its client is due
    /// a better one or the server stops. A farewell lets requests under way end; the server's drain time limits that.
    async fn drive<C, E>(
        &self,
        connection: C,
        farewell: fn(Pin<&mut C>),
        activity: &Activity,
        outgrown: impl Future<Output = ()>,
    ) where
        C: Future<Output = Result<(), E>>,
    {
        let patience = Patience { head: self.limits.head, idle: self.limits.idle };
        let mut connection = pin!(connection);
        tokio::select! {
            // In this order, so that patience is judged by what the connection has just read.
            biased;
            _ = connection.as_mut() => return,
            () = self.shutdown.cancelled() => {}
            () = activity.give_way.cancelled() => {}
            () = outgrown => {}
            () = impatience(activity, &patience) => {}
        }
        farewell(connection.as_mut());
        while timeout(FAREWELL, connection.as_mut()).await.is_err() && !activity.is_over(&patience) {}
    }
}

/// What a connection speaks.
enum Protocol {
    /// HTTP/1, behind a guard.
    Http1(Arc<Shared>),
    Http2,
}

/// Answers the requests of one connection.
struct Requests<H> {
    handler: Arc<H>,
    heads: Heads,
    peer: Peer,
    activity: Arc<Activity>,
    protocol: Protocol,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl<H: Handler> Requests<H> {
    /// Answers one request, when what remains of its body has been taken in.
    async fn answer(&self, request: Request<Incoming>, under_way: InRequest) -> Answer {
        let began = Instant::now();
        let (parts, body) = request.into_parts();
        let mut body = RequestBody::new(body, &parts);
        let refused = self.refused(&parts);
        let ends = refused.is_some();
        let mut answer = match refused {
            Some(failure) => failure.into_answer(),
            None => self.handler.handle(self.peer.clone(), Request::from_parts(parts, &mut body)).await,
        };
        if !body.is_over() {
            self.rest(&mut answer, body, under_way, began).await;
        } else if ends || body.is_broken() {
            self.end_with(&mut answer);
        }
        answer
    }

    /// Why a request is not even looked at.
    fn refused(&self, parts: &Parts) -> Option<Failure> {
        if let Protocol::Http1(shared) = &self.protocol
            && parts.method.as_str() == METHOD
            && let Some(failure) = shared.refused()
        {
            return Some(failure);
        }
        if size(parts) > self.heads.bytes || parts.headers.len() > self.heads.headers {
            return Some(self.heads.refusal());
        }
        if parts.uri.path_and_query().is_some_and(|path| path.as_str().len() > MAX_TARGET) {
            return Some(long_target());
        }
        if parts.headers.keys().any(|name| name.as_str().len() > MAX_NAME) {
            return Some(long_name());
        }
        // What says so of HTTP/1 is the guard.
        let host = matches!(self.protocol, Protocol::Http1(_)) || has_one_host(parts);
        (!host)
            .then(|| Failure::new(Reason::BadRequest, "the host must be given, and once: :authority or Host"))
    }

    /// Takes in what remains of a body. Whoever needs the connection's place, or has the server stop, does not wait for it.
    async fn rest(&self, answer: &mut Answer, mut body: RequestBody, under_way: InRequest, began: Instant) {
        let remains = under_way.remains();
        tokio::select! {
            () = body.take_in(began + rest::PATIENCE) => {}
            () = self.activity.give_way.cancelled() => {}
            () = self.shutdown.cancelled() => {}
        }
        if body.is_over() && !body.is_broken() {
            return;
        }
        self.end_with(answer);
        if matches!(self.protocol, Protocol::Http2) && !body.is_over() {
            let (give_way, shutdown) = (self.activity.give_way.clone(), self.shutdown.clone());
            self.tasks.spawn(async move {
                let _remains = remains;
                tokio::select! {
                    () = body.wait_out(Instant::now() + rest::AFTERWARDS) => {}
                    () = give_way.cancelled() => {}
                    () = shutdown.cancelled() => {}
                }
            });
        }
    }

    /// Of HTTP/1: the connection ends with this answer, and in such a way that it arrives.
    fn end_with(&self, answer: &mut Answer) {
        if let Protocol::Http1(shared) = &self.protocol {
            shared.linger();
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Of a head, as [`Heads`] counts it.
fn size(parts: &Parts) -> usize {
    let headers: usize =
        parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    let path = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    headers + path + parts.method.as_str().len()
}

/// Whether it is said once for whom a request of HTTP/2 is (RFC 9113, section 8.3.1).
fn has_one_host(parts: &Parts) -> bool {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    match (authority, host) {
        _ if more.is_some() => false,
        (Some(authority), Some(host)) => authority.eq_ignore_ascii_case(host.as_bytes()),
        (authority, host) => authority.is_some() || host.is_some(),
    }
}

/// The connections that are open, by number.
#[derive(Default)]
struct Open(Mutex<HashMap<u64, Arc<Activity>>>);

impl Open {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Activity>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a connection until the guard is dropped.
    fn list(&self, number: u64, activity: &Arc<Activity>) -> Listed<'_> {
        self.lock().insert(number, Arc::clone(activity));
        Listed(self, number)
    }

    fn make_one_give_way(&self) {
        let open = self.lock();
        let staying = open.values().filter(|activity| !activity.give_way.is_cancelled());
        let idle = staying.filter_map(|activity| Some((activity.idle_since()?, activity)));
        if let Some((_, longest)) = idle.min_by_key(|(since, _)| *since) {
            longest.give_way.cancel();
        }
    }
}

struct Listed<'a>(&'a Open, u64);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

/// Returns when the connection has been waited for long enough. Polled with its connection, so that what a
/// connection's bytes change is seen at once.
async fn impatience(activity: &Activity, patience: &Patience) {
    let mut alarm = pin!(sleep_until(Instant::now() + patience.head));
    std::future::poll_fn(|cx| {
        let Some(deadline) = activity.deadline(patience) else { return std::task::Poll::Pending };
        if alarm.deadline() != deadline {
            alarm.as_mut().reset(deadline);
        }
        alarm.as_mut().poll(cx)
    })
    .await;
}

/// Spawns the tasks of HTTP/2 streams where shutdown waits for them.
#[derive(Clone)]
pub(super) struct Tracked(TaskTracker);

impl Tracked {
    pub(super) fn on(tasks: &TaskTracker) -> Self {
        Self(tasks.clone())
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tracked {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

#[cfg(test)]
mod tests;
