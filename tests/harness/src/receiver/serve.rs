//! The receiver's connections: TLS, HTTP/1.1 or HTTP/2, and the ways to end them badly.

use std::{
    future::pending,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use http_body_util::BodyExt as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Request, Shared,
    answer::{Act, Body},
};

/// Accepts until it is aborted, which closes the listener and every connection.
pub(super) async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, tls.clone(), Arc::clone(&shared)));
                }
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// What a request can do to the connection it came on.
struct Line {
    socket: Option<OwnedFd>,
    end: Notify,
    client_certificate: bool,
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>) {
    if shared.mute.load(Ordering::Relaxed) {
        let _held_open = stream;
        return pending().await;
    }
    let _ = stream.set_nodelay(true);
    let socket = stream.as_fd().try_clone_to_owned().ok();
    // A client that does not trust us, or goes away, is the client's business.
    let Ok(stream) = tls.accept(stream).await else { return };
    let client_certificate = stream.get_ref().1.peer_certificates().is_some();
    let line = Arc::new(Line { socket, end: Notify::new(), client_certificate });
    let service = service_fn(|request| answer(request, Arc::clone(&shared), Arc::clone(&line)));
    let builder = Builder::new(TokioExecutor::new());
    tokio::select! {
        _served = builder.serve_connection(TokioIo::new(stream), service) => {}
        () = line.end.notified() => {}
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    shared: Arc<Shared>,
    line: Arc<Line>,
) -> Result<hyper::Response<Body>, hyper::Error> {
    let request = read(request, line.client_certificate).await?;
    let _present = Presence { path: request.path.clone(), shared: Arc::clone(&shared) };
    let (answer, request) = shared.arrived(request);
    match answer.perform(request).await {
        Act::Send(response) => return Ok(*response),
        Act::Hang => {}
        Act::Close => line.end.notify_one(),
        Act::Reset => {
            // Closing with this set throws away what is unsent, and sends RST.
            if let Some(socket) = &line.socket {
                let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
            }
            line.end.notify_one();
        }
    }
    pending().await
}

async fn read(request: hyper::Request<Incoming>, client_certificate: bool) -> Result<Request, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let host = head.headers.get(http::header::HOST).map(text);
    Ok(Request {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(str::to_owned),
        version: format!("{:?}", head.version),
        authority: head.uri.authority().map(ToString::to_string).or(host).unwrap_or_default(),
        headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body,
        client_certificate,
        at: Instant::now(),
        time: SystemTime::now(),
    })
}

/// A request under way; gone when it is answered or the client is.
struct Presence {
    path: String,
    shared: Arc<Shared>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.shared.left(&self.path);
    }
}
