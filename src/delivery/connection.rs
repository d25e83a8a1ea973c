//! One connection to a receiver: dialled to addresses that the guard allows, TLS, HTTP/2 or HTTP/1.1 by ALPN.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use super::dial::Failed;
use super::egress::{self, Guard};
use super::{dial, http1, http2, tls};
use crate::model::target::{Host, Target};

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
    /// TCP failed.
    #[error("cannot connect")]
    Dial(#[source] io::Error),
    /// TLS failed.
    #[error("no TLS")]
    Handshake(#[source] io::Error),
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
    Http1(http1::Connection),
    /// Many, as many as the receiver allows.
    Http2(http2::Connection),
}

/// A connection as one attempt has it.
#[derive(Debug)]
pub(super) enum Line {
    /// All of it.
    Http1(http1::Connection),
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
    /// The connection ended before the first byte of an answer: it may have been received or not.
    Cut(Error),
    /// It may have been received, and more than the end of the connection was the answer.
    Failed(Error),
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Dial(error) => Self::Dial(error),
            Failed::Handshake(error) => Self::Handshake(error),
        }
    }
}

impl Line {
    /// Sends one request, and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Request<Bytes>) -> Result<Response<Body>, Unanswered> {
        match self {
            Self::Http1(connection) => Ok(connection.send(request).await?.map(Body::Http1)),
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

/// The addresses of a host that may be connected to.
pub(super) async fn addresses(guard: &Guard, target: &Target) -> Result<Vec<IpAddr>, egress::Error> {
    match target.host() {
        Host::Address(address) => {
            guard.policy().judge(*address).map_err(egress::Error::Denied)?;
            Ok(vec![*address])
        }
        Host::Name(name) => guard.addresses(name).await,
    }
}

/// Opens a connection to one of these addresses, in their order; which one is told. What drives it runs as a task, and
/// ends when all who use it are gone or its peer closes. `time` is what is left for it.
pub(super) async fn open(
    addresses: &[IpAddr],
    target: &Target,
    config: Arc<ClientConfig>,
    time: Duration,
    tasks: &TaskTracker,
) -> Result<(Opened, IpAddr), Error> {
    let (name, port) = (server_name(target)?, target.port());
    let connector = TlsConnector::from(config);
    let dial =
        |address| async move { TcpStream::connect(SocketAddr::new(address, port)).await.and_then(settled) };
    let shake = |stream| connector.connect(name.clone(), stream);
    let (address, stream) = dial::race(addresses, time, dial, shake).await?;
    let opened = if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        Opened::Http2(http2::Connection::open(stream, tasks).await?)
    } else {
        Opened::Http1(http1::Connection::open(stream, tasks).await?)
    };
    Ok((opened, address))
}

fn server_name(target: &Target) -> Result<ServerName<'static>, Error> {
    match target.host() {
        Host::Address(address) => Ok(ServerName::IpAddress((*address).into())),
        Host::Name(name) => ServerName::try_from(String::from(name.as_ref()))
            .map_err(|error| Error::Dial(io::Error::new(io::ErrorKind::InvalidInput, error))),
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
