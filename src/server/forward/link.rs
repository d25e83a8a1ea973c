//! The connection to the pod with the store: one, of HTTP/2, made when it is needed, shared by all requests.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use crate::config::Address;
use crate::server::listener::Tracked;

/// For looking up the name, connecting and both handshakes.
const CONNECT: Duration = Duration::from_secs(2);
/// After a failure nobody tries for this long; then one does, and the others are told of the failure meanwhile.
const COOL: Duration = Duration::from_millis(500);
/// A connection that is older is not used for new requests: names may lead elsewhere by now, and certificates are
/// shown when connections are made.
const OLDEST: Duration = Duration::from_mins(5);
/// A connection whose other end does not answer for two of these is given up.
const ALIVE: Duration = Duration::from_secs(5);
/// Of HTTP/2: bytes that may be under way to us without having been read, of one answer and of all. All answers that are
/// passed on as they come fit into half of it: clients that read slowly hold up nobody else's.
const WINDOWS: (u32, u32) = (256 << 10, 16 << 20);
/// Largest head of an answer, in bytes.
const HEAD: u32 = 64 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// No connection could be made.
    #[error("cannot connect: {0}")]
    Away(Arc<str>),
    /// The connection ended before the request went out: it certainly did not arrive.
    #[error("the connection ended before the request was sent: {0}")]
    NotSent(String),
    /// It may have arrived.
    #[error("the connection ended before the answer: {0}")]
    Lost(String),
    /// It may have arrived.
    #[error("no answer came in time")]
    Late,
    /// The other end does not take our certificate, and did nothing.
    #[error("the pod with the store does not take this front's client certificate")]
    Unknown,
    /// Too many are under way.
    #[error("too many requests are under way")]
    Busy,
}

impl Trouble {
    /// Label of the metric.
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::Away(_) | Self::NotSent(_) => "away",
            Self::Lost(_) => "lost",
            Self::Late => "late",
            Self::Unknown => "unknown",
            Self::Busy => "busy",
        }
    }
}

type Sender = SendRequest<Full<Bytes>>;

/// The way to the pod with the store.
pub struct Link {
    address: Address,
    name: ServerName<'static>,
    tls: TlsConnector,
    tasks: TaskTracker,
    /// Locked while a connection is made, so that all who need it wait for the same one.
    open: tokio::sync::Mutex<Option<(Sender, Instant)>>,
    failed: Mutex<Option<(Instant, Arc<str>)>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("address", &self.address).finish_non_exhaustive()
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

impl Link {
    /// To this address, whose certificate must be for `name`. Nothing is connected before the first request.
    pub fn new(
        address: Address,
        name: ServerName<'static>,
        tls: Arc<ClientConfig>,
        tasks: TaskTracker,
    ) -> Self {
        let tls = TlsConnector::from(tls);
        Self { address, name, tls, tasks, open: tokio::sync::Mutex::default(), failed: Mutex::default() }
    }

    /// Whether there is hope: no connection has failed just now.
    pub(super) fn expected(&self) -> Result<(), Trouble> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match &*failed {
            Some((at, why)) if at.elapsed() < COOL => Err(Trouble::Away(Arc::clone(why))),
            _ => Ok(()),
        }
    }

    /// Why the last attempt failed, until one succeeds.
    fn failing(&self) -> Option<Arc<str>> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().map(|(_, why)| Arc::clone(why))
    }

    /// Where a path is at the other end.
    pub(super) fn uri(&self, path_and_query: &str) -> Option<Uri> {
        Uri::builder()
            .scheme(Scheme::HTTPS)
            .authority(&*self.name.to_str())
            .path_and_query(path_and_query)
            .build()
            .ok()
    }

    /// Sends a request, and returns when the head of the answer is here.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Trouble> {
        let mut sender = self.sender().await?;
        let sent = sender.try_send_request(request).await;
        sent.map_err(|mut error| match error.take_message() {
            Some(_) => Trouble::NotSent(error.into_error().to_string()),
            None => Trouble::Lost(crate::cli::chain(error.error())),
        })
    }

    /// Lets the next request make a new connection, with the certificate of that moment.
    pub(super) async fn forget(&self) {
        *self.open.lock().await = None;
    }

    #[cfg(test)]
    pub(super) async fn is_open(&self) -> bool {
        self.open.lock().await.as_ref().is_some_and(|(sender, _)| !sender.is_closed())
    }

    /// The connection that is open, or a new one.
    async fn sender(&self) -> Result<Sender, Trouble> {
        let mut open = match self.open.try_lock() {
            Ok(open) => open,
            Err(_) => match self.failing() {
                Some(why) => return Err(Trouble::Away(why)),
                None => self.open.lock().await,
            },
        };
        if let Some((sender, since)) = &*open
            && !sender.is_closed()
            && since.elapsed() < OLDEST
        {
            return Ok(sender.clone());
        }
        self.expected()?;
        // Requests under way on the last one go on: it ends with the last of them.
        *open = None;
        let made = timeout(CONNECT, self.connect()).await;
        let made = made.unwrap_or_else(|_| Err(format!("no answer within {} s", CONNECT.as_secs())));
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match made {
            Ok(sender) => {
                if failed.take().is_some() {
                    info!(backend = %self.address, "the pod with the store is there again");
                }
                *open = Some((sender.clone(), Instant::now()));
                Ok(sender)
            }
            Err(why) => {
                let why: Arc<str> = why.into();
                *failed = Some((Instant::now(), Arc::clone(&why)));
                Err(Trouble::Away(why))
            }
        }
    }

    async fn connect(&self) -> Result<Sender, String> {
        let Address { host, port } = &self.address;
        let socket = TcpStream::connect((&**host, *port)).await.map_err(|error| error.to_string())?;
        let _ = socket.set_nodelay(true);
        let socket = self.tls.connect(self.name.clone(), socket).await.map_err(|error| error.to_string())?;
        let (sender, connection) = http2::Builder::new(Tracked::on(&self.tasks))
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .max_header_list_size(HEAD)
            .keep_alive_interval(ALIVE)
            .keep_alive_timeout(ALIVE)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| crate::cli::chain(&error))?;
        debug!(backend = %self.address, "connected to the pod with the store");
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                debug!(error = crate::cli::chain(&error), "the connection to the pod with the store ended");
            }
        });
        Ok(sender)
    }
}
