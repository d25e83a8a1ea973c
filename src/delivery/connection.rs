//! One connection to a receiver: dialled to addresses that the guard allows, TLS, HTTP/2 or HTTP/1.1 by ALPN.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

use super::egress::{self, Guard};
use super::{http2, tls};
use crate::model::target::{Host, Target};

/// The next address is tried when the one before has not answered for so long (RFC 8305, section 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Headers of an answer over HTTP/1.1.
const MAX_HEADERS: usize = 64;

/// A connection ends after this at the latest. Nothing begins on one after five minutes, no attempt takes longer than
/// one, and the rest is ample: what is cut is a peer that keeps a connection from ending.
pub(super) const MAX_LIFE: Duration = Duration::from_mins(10);

/// A connection on which nothing happens is probed this often; three times without an answer end it.
const PROBE: Duration = Duration::from_secs(15);

/// A peer that takes none of what was sent for so long is gone.
const UNTAKEN: Duration = Duration::from_secs(30);

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
    /// The exchange failed over HTTP/1.1.
    #[error("the exchange failed")]
    Http1(#[from] hyper::Error),
    /// The exchange failed over HTTP/2.
    #[error("the exchange failed")]
    Http2(#[from] h2::Error),
    /// The receiver answered nothing, not even a ping.
    #[error("the receiver is silent")]
    Silent,
}

/// A new connection.
#[derive(Debug)]
pub(super) enum Opened {
    /// One request at a time.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// Many, as many as the receiver allows.
    Http2(http2::Connection),
}

/// A connection as one attempt has it.
#[derive(Debug)]
pub(super) enum Line {
    /// All of it.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// One place of many.
    Http2(http2::Place),
}

/// The body of an answer. Dropped before its end, it ends its exchange.
#[derive(Debug)]
pub(super) enum Body {
    /// Over HTTP/1.1.
    Http1(Incoming),
    /// Over HTTP/2.
    Http2(http2::Answer),
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// The receiver has not acted on it: it may be sent on another connection.
    NotSent(Error),
    /// It may have been received.
    Failed(Error),
}

impl Line {
    /// Sends one request, and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Request<Bytes>) -> Result<Response<Body>, Unanswered> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await.map_err(|error| Unanswered::NotSent(error.into()))?;
                let answer = sender.try_send_request(request.map(Full::new)).await;
                answer.map(|response| response.map(Body::Http1)).map_err(|mut error| {
                    // What comes back was not sent.
                    if error.take_message().is_some() {
                        Unanswered::NotSent(error.into_error().into())
                    } else {
                        Unanswered::Failed(error.into_error().into())
                    }
                })
            }
            Self::Http2(place) => Ok(place.send(request).await?.map(Body::Http2)),
        }
    }
}

impl Body {
    /// The next part of it; none at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Http1(body) => {
                while let Some(frame) = body.frame().await.transpose()? {
                    // Trailers say nothing to us.
                    if let Ok(chunk) = frame.into_data() {
                        return Ok(Some(chunk));
                    }
                }
                Ok(None)
            }
            Self::Http2(answer) => answer.chunk().await,
        }
    }
}

/// Opens a connection. What drives it runs as a task, and ends when all who use it are gone or its peer closes.
pub(super) async fn open(
    guard: &Guard,
    target: &Target,
    config: Arc<ClientConfig>,
    tasks: &TaskTracker,
) -> Result<Opened, Error> {
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
        Ok(Opened::Http2(http2::Connection::open(stream, tasks).await?))
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

async fn speak_http1(stream: TlsStream<TcpStream>, tasks: &TaskTracker) -> Result<Opened, Error> {
    let mut builder = http1::Builder::new();
    let (sender, connection) = builder.max_headers(MAX_HEADERS).handshake(TokioIo::new(stream)).await?;
    // How it ends is told to who waits for an answer.
    tasks.spawn(async move { timeout(MAX_LIFE, connection).await.map(Result::unwrap_or_default) });
    Ok(Opened::Http1(sender))
}
