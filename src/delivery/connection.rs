//! One connection to a receiver: dialled to addresses that the guard allows, TLS, HTTP/2 or HTTP/1.1 by ALPN.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

use super::egress::{self, Guard};
use super::tls;
use crate::model::target::{Host, Target};

/// The next address is tried when the one before has not answered for so long (RFC 8305, section 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// What one answer may make us buffer before it is read: the window of one HTTP/2 stream.
const STREAM_WINDOW: u32 = 64 << 10;

/// Headers of an answer over HTTP/1.1.
const MAX_HEADERS: usize = 64;

/// A connection ends after this at the latest. Nothing begins on one after five minutes, no attempt takes longer than
/// one, and the rest is ample: what is cut is a peer that keeps a connection from ending.
const MAX_LIFE: Duration = Duration::from_mins(10);

/// A connection on which nothing happens is probed this often; three times without an answer end it.
const PROBE: Duration = Duration::from_secs(15);

/// A peer that takes none of what was sent for so long is gone.
const UNTAKEN: Duration = Duration::from_secs(30);

/// A peer that is gone must not take every stream of its connection along until their time is up.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Why there is no connection, or no answer on it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The trust material can't be used.
    #[error(transparent)]
    Material(#[from] tls::Error),
    /// The host's name gave no address.
    #[error(transparent)]
    Resolve(#[from] egress::Error),
    /// Look-up, TCP and TLS together took too long.
    #[error("no connection in time")]
    TooSlow,
    /// TCP or TLS failed.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// What the URL says cannot be requested.
    #[error("the URL cannot be requested")]
    Url(#[source] http::Error),
    /// The exchange failed.
    #[error("the exchange failed")]
    Http(#[from] hyper::Error),
}

/// A request as hyper takes it.
pub(super) type Outgoing = Request<Full<Bytes>>;

/// One end of an open connection.
#[derive(Debug)]
pub(super) enum Line {
    /// One request at a time.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// Many, as many as the receiver allows; a clone is the same connection.
    Http2(http2::SendRequest<Full<Bytes>>, Arc<AtomicUsize>),
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// No byte of it was sent: it may be sent on another connection.
    NotSent(Box<Outgoing>, hyper::Error),
    /// It may have been received.
    Failed(hyper::Error),
}

impl Line {
    /// Sends one request, and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Outgoing) -> Result<Response<Incoming>, Unanswered> {
        let answer = match self {
            Self::Http1(sender) => {
                if let Err(error) = sender.ready().await {
                    return Err(Unanswered::NotSent(Box::new(request), error));
                }
                sender.try_send_request(request).await
            }
            Self::Http2(sender, _) => sender.try_send_request(request).await,
        };
        answer.map_err(|mut error| match error.take_message() {
            Some(request) => Unanswered::NotSent(Box::new(request), error.into_error()),
            None => Unanswered::Failed(error.into_error()),
        })
    }
}

/// Opens a connection. What drives it runs as a task, and ends when its [`Line`]s are dropped or its peer closes.
pub(super) async fn open(
    guard: &Guard,
    target: &Target,
    config: Arc<ClientConfig>,
    tasks: &TaskTracker,
) -> Result<Line, Error> {
    let stream = match target.host() {
        Host::Address(address) => {
            guard.policy().judge(*address).map_err(egress::Error::Denied)?;
            dial(&[*address], target.port()).await
        }
        Host::Name(name) => dial(&guard.addresses(name).await?, target.port()).await,
    };
    let stream = stream.map_err(Error::Connect)?;
    let connector = TlsConnector::from(config);
    let stream = connector.connect(server_name(target)?, stream).await.map_err(Error::Connect)?;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        speak_http2(stream, tasks).await
    } else {
        speak_http1(stream, tasks).await
    }
}

fn server_name(target: &Target) -> Result<ServerName<'static>, Error> {
    match target.host() {
        Host::Address(address) => Ok(ServerName::IpAddress((*address).into())),
        Host::Name(name) => ServerName::try_from(String::from(name.as_ref()))
            .map_err(|error| Error::Connect(io::Error::new(io::ErrorKind::InvalidInput, error))),
    }
}

/// Connects to the first address that answers; each gets a head start before the next.
async fn dial(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut rest = addresses.iter().map(|address| SocketAddr::new(*address, port));
    let mut attempts: FuturesUnordered<_> = rest.next().map(TcpStream::connect).into_iter().collect();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        let next = async {
            if rest.len() == 0 {
                std::future::pending::<()>().await;
            }
            sleep(NEXT_ADDRESS).await;
        };
        tokio::select! {
            tried = attempts.next() => match tried {
                Some(Ok(stream)) => return settled(stream),
                Some(Err(error)) => failure = error,
                None if rest.len() == 0 => return Err(failure),
                None => {}
            },
            () = next => {}
        }
        attempts.extend(rest.next().map(TcpStream::connect));
    }
}

/// A peer that takes nothing more, or is gone, must not keep a connection for ever that nobody uses.
fn settled(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let alive = TcpKeepalive::new().with_time(PROBE).with_interval(PROBE).with_retries(3);
    socket.set_tcp_keepalive(&alive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNTAKEN))?;
    Ok(stream)
}

async fn speak_http1(stream: TlsStream<TcpStream>, tasks: &TaskTracker) -> Result<Line, Error> {
    let mut builder = http1::Builder::new();
    let (sender, connection) = builder.max_headers(MAX_HEADERS).handshake(TokioIo::new(stream)).await?;
    // How it ends is told to who waits for an answer.
    tasks.spawn(async move { timeout(MAX_LIFE, connection).await.map(Result::unwrap_or_default) });
    Ok(Line::Http1(sender))
}

async fn speak_http2(stream: TlsStream<TcpStream>, tasks: &TaskTracker) -> Result<Line, Error> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(16 * STREAM_WINDOW)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let allowed = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
    let told = Arc::clone(&allowed);
    tasks.spawn(timeout(MAX_LIFE, async move {
        let mut connection = std::pin::pin!(connection);
        std::future::poll_fn(|context| {
            let done = connection.as_mut().poll(context);
            told.store(connection.current_max_send_streams(), Ordering::Relaxed);
            done
        })
        .await
        .unwrap_or_default();
    }));
    Ok(Line::Http2(sender, allowed))
}
