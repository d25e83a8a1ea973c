//! A receiver over TLS on loopback that does what it is told, byte by byte.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::routes::TlsMaterial;

/// A certificate authority.
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

type Pem = (Arc<[u8]>, Arc<[u8]>);

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Pem {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem().into_bytes().into(), key.serialize_pem().into_bytes().into())
    }

    pub(crate) fn trusted(&self) -> TlsMaterial {
        TlsMaterial { ca: Some(self.pem.as_bytes().into()), client: None }
    }

    pub(crate) fn client(&self) -> Pem {
        self.issue("client", ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub(crate) fn server(&self, name: &str, clients: Option<&Self>) -> ServerConfig {
        let (chain, key) = self.issue(name, ExtendedKeyUsagePurpose::ServerAuth);
        let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
            None => builder.with_no_client_auth(),
        };
        builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(&key).unwrap()).unwrap()
    }
}

/// What to do with a request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Write(Vec<u8>),
    /// Again and again, until nobody reads.
    Endlessly(Vec<u8>),
    /// One byte after the other, with a pause before each.
    Drip(Vec<u8>, Duration),
    Hang,
    /// Ends TCP, and not TLS.
    Close,
    /// Resets TCP.
    Reset,
}

/// An answer with a body of known length.
pub(crate) fn answer(status: &str, headers: &str, body: &str) -> Vec<Act> {
    vec![Act::Write(
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()).into(),
    )]
}

type Script = Arc<dyn Fn(&str) -> Vec<Act> + Send + Sync>;

/// How its connections are.
#[derive(Clone, Copy, Default)]
struct Pace {
    together: usize,
    hangs_first: bool,
    streams: u32,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    resumed: AtomicUsize,
    requests: Mutex<Vec<String>>,
    /// Bytes that were taken of bodies without end.
    streamed: AtomicUsize,
    /// How many of those nobody wants any more.
    unwanted: watch::Sender<usize>,
}

/// A body without end, as long as somebody takes it.
struct Endless(Arc<Seen>);

impl Endless {
    const CHUNK: usize = 16 << 10;

    fn body(seen: &Arc<Seen>) -> BoxBody<Bytes, Infallible> {
        let next = |this: Self| async {
            this.0.streamed.fetch_add(Self::CHUNK, Ordering::SeqCst);
            Some((Ok(Frame::data(Bytes::from_static(&[b'x'; Self::CHUNK]))), this))
        };
        StreamBody::new(stream::unfold(Self(Arc::clone(seen)), next)).boxed()
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.unwanted.send_modify(|count| *count += 1);
    }
}

/// A running receiver; ends when dropped.
pub(crate) struct Receiver {
    pub(crate) port: u16,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

impl Receiver {
    /// Does what the script says for each request, as `x.localhost`.
    pub(crate) async fn start(
        authority: &Authority,
        script: impl Fn(&str) -> Vec<Act> + Send + Sync + 'static,
    ) -> Self {
        Self::run(authority.server("x.localhost", None), Arc::new(script), Pace::default()).await
    }

    /// Answers 200, once so many have connected: until then the first gets no answer, and the others no handshake.
    pub(crate) async fn start_together(authority: &Authority, together: usize) -> Self {
        Self::paced(authority, Pace { together, ..Pace::default() }).await
    }

    /// Answers 200, but the first connection's handshake never ends.
    pub(crate) async fn start_hanging(authority: &Authority) -> Self {
        Self::paced(authority, Pace { hangs_first: true, ..Pace::default() }).await
    }

    async fn paced(authority: &Authority, pace: Pace) -> Self {
        Self::run(authority.server("x.localhost", None), Arc::new(|_: &str| answer("200 OK", "", "")), pace)
            .await
    }

    /// Wants a client certificate of `clients`.
    pub(crate) async fn start_mutual(authority: &Authority, clients: &Authority) -> Self {
        let config = authority.server("x.localhost", Some(clients));
        Self::run(config, Arc::new(|_: &str| answer("200 OK", "", "")), Pace::default()).await
    }

    /// Speaks HTTP/2 when asked, and answers with the version and the body it got.
    pub(crate) async fn start_http2(authority: &Authority) -> Self {
        Self::start_http2_with(authority, 100).await
    }

    /// The same, with so many streams on a connection.
    pub(crate) async fn start_http2_with(authority: &Authority, streams: u32) -> Self {
        let mut config = authority.server("x.localhost", None);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self::run(config, Arc::new(|_: &str| Vec::new()), Pace { streams, ..Pace::default() }).await
    }

    /// Answers 200 to all that comes here, as this host, and closes the connection after each.
    pub(crate) fn start_on(listener: TcpListener, authority: &Authority, name: &str) -> Self {
        let script = |_: &str| answer("200 OK", "connection: close\r\n", "");
        Self::run_on(listener, authority.server(name, None), Arc::new(script), Pace::default())
    }

    async fn run(config: ServerConfig, script: Script, pace: Pace) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        Self::run_on(listener, config, script, pace)
    }

    fn run_on(listener: TcpListener, config: ServerConfig, script: Script, pace: Pace) -> Self {
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen::default());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut tasks = JoinSet::new();
        let counted = Arc::clone(&seen);
        let (connected, _) = watch::channel(0);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let is_first = counted.connections.fetch_add(1, Ordering::SeqCst) == 0;
                connected.send_modify(|connected| *connected += 1);
                let mut connected = connected.subscribe();
                let (acceptor, script, seen) = (acceptor.clone(), Arc::clone(&script), Arc::clone(&counted));
                connections.spawn(async move {
                    let all = connected.wait_for(|connected| *connected >= pace.together);
                    if is_first && pace.hangs_first {
                        return std::future::pending().await;
                    }
                    let accepted = if is_first {
                        let accepted = acceptor.accept(stream).await;
                        let _ = all.await;
                        accepted
                    } else {
                        let _ = all.await;
                        acceptor.accept(stream).await
                    };
                    if let Ok(stream) = &accepted
                        && stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
                    {
                        seen.resumed.fetch_add(1, Ordering::SeqCst);
                    }
                    match accepted {
                        Ok(stream) if stream.get_ref().1.alpn_protocol().is_some() => {
                            serve_http2(stream, seen, pace.streams).await;
                        }
                        Ok(stream) => serve(stream, &script, &seen).await,
                        Err(_) => {}
                    }
                });
            }
        });
        Self { port, seen, _tasks: tasks }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://x.localhost:{}{path}", self.port)
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn resumed(&self) -> usize {
        self.seen.resumed.load(Ordering::SeqCst)
    }

    /// Bytes that were taken of bodies without end.
    pub(crate) fn streamed(&self) -> usize {
        self.seen.streamed.load(Ordering::SeqCst)
    }

    /// Waits until so many bodies without end are not wanted any more.
    pub(crate) async fn unwanted(&self, count: usize) {
        self.seen.unwanted.subscribe().wait_for(|unwanted| *unwanted >= count).await.unwrap();
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.requests.lock().unwrap().clone()
    }
}

/// Allows so many streams, never answers requests for `/hang`, and never ends its answer to those for `/endless`.
async fn serve_http2(stream: TlsStream<TcpStream>, seen: Arc<Seen>, streams: u32) {
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let seen = Arc::clone(&seen);
        seen.requests.lock().unwrap().push(request.uri().path().to_owned());
        async move {
            match request.uri().path() {
                "/hang" => std::future::pending().await,
                "/endless" => Ok::<_, Infallible>(http::Response::new(Endless::body(&seen))),
                _ => {
                    let version = request.version();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let text = format!("{version:?} {}", String::from_utf8_lossy(&body));
                    Ok(http::Response::new(Full::from(text).boxed()))
                }
            }
        }
    });
    let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    server.max_concurrent_streams(streams);
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn serve(mut stream: TlsStream<TcpStream>, script: &Script, seen: &Seen) {
    while let Some(request) = read_request(&mut stream).await {
        seen.requests.lock().unwrap().push(request.clone());
        for act in script(&request) {
            if act_on(&mut stream, act).await.is_none() {
                return;
            }
        }
    }
}

async fn act_on(stream: &mut TlsStream<TcpStream>, act: Act) -> Option<()> {
    match act {
        Act::Write(bytes) => stream.write_all(&bytes).await.ok()?,
        Act::Endlessly(bytes) => while stream.write_all(&bytes).await.is_ok() {},
        Act::Drip(bytes, pause) => {
            for byte in bytes {
                tokio::time::sleep(pause).await;
                stream.write_all(&[byte]).await.ok()?;
                stream.flush().await.ok()?;
            }
        }
        Act::Hang => std::future::pending().await,
        Act::Close => return None,
        Act::Reset => {
            stream.flush().await.ok()?;
            // What was written arrives before the reset only when it is read.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let linger = socket2::SockRef::from(stream.get_ref().0).set_linger(Some(Duration::ZERO));
            return linger.ok().and(None);
        }
    }
    stream.flush().await.ok()
}

pub(crate) async fn read_request(stream: &mut TlsStream<TcpStream>) -> Option<String> {
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        text.extend_from_slice(&buffer[..read]);
        let shown = String::from_utf8_lossy(&text);
        if let Some((head, body)) = shown.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return Some(shown.into_owned());
            }
        }
    }
}
