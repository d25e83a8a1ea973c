//! What a receiver answers: built by the test, turned into bytes or trouble by the connection.

use std::{
    collections::HashSet,
    convert::Infallible,
    fmt::Display,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderName, HeaderValue, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use tokio::sync::watch;

use super::Request;

pub(super) type Body = BoxBody<Bytes, io::Error>;

/// One answer of a script.
#[derive(Clone, Debug)]
pub struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    delay: Duration,
    gate: Option<Gate>,
    firsts: Option<Firsts>,
    content: Content,
}

/// Another status for the first request with each `webhook-id`.
#[derive(Clone, Debug)]
struct Firsts {
    status: StatusCode,
    seen: Arc<Mutex<HashSet<String>>>,
}

impl Firsts {
    fn status(&self, request: &Request) -> Option<StatusCode> {
        let id = request.header("webhook-id").unwrap_or_default().to_owned();
        let is_first = self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        is_first.then_some(self.status)
    }
}

#[derive(Clone, Debug)]
enum Content {
    Whole(Bytes),
    Echo,
    Endless,
    Drip { bytes: Bytes, every: Duration },
    Cut(Bytes),
    Hang,
    Close,
    Reset,
}

/// What the connection is to do.
pub(super) enum Act {
    Send(Box<hyper::Response<Body>>),
    Hang,
    Close,
    Reset,
}

/// Holds answers back until the test opens it.
#[derive(Clone, Debug)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    /// A closed gate.
    pub fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Lets everything through, from now on.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn pass(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

impl Answer {
    /// An empty answer with this status.
    ///
    /// # Panics
    /// When there is no such status.
    pub fn status(status: u16) -> Self {
        let status = StatusCode::from_u16(status).expect("a status is between 100 and 999");
        let content = Content::Whole(Bytes::new());
        Self { status, headers: Vec::new(), delay: Duration::ZERO, gate: None, firsts: None, content }
    }

    /// An empty 200.
    pub fn ok() -> Self {
        Self::status(200)
    }

    /// A redirect.
    pub fn redirect(status: u16, location: &str) -> Self {
        Self::status(status).header("location", location)
    }

    /// Reads the request, and never answers.
    pub fn hang() -> Self {
        Self { content: Content::Hang, ..Self::ok() }
    }

    /// Reads the request, and closes the connection without an answer.
    pub fn close() -> Self {
        Self { content: Content::Close, ..Self::ok() }
    }

    /// Reads the request, and resets the connection (with HTTP/2: all requests on it).
    pub fn reset() -> Self {
        Self { content: Content::Reset, ..Self::ok() }
    }

    /// The request's headers and body, as the answer's body.
    #[must_use]
    pub fn echo(self) -> Self {
        Self { content: Content::Echo, ..self }
    }

    /// A body that never ends, as fast as it is read.
    #[must_use]
    pub fn endless(self) -> Self {
        Self { content: Content::Endless, ..self }
    }

    /// This body.
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        Self { content: Content::Whole(body.into()), ..self }
    }

    /// This body, a byte at a time.
    #[must_use]
    pub fn drip(self, body: impl Into<Bytes>, every: Duration) -> Self {
        Self { content: Content::Drip { bytes: body.into(), every }, ..self }
    }

    /// This body, and then the connection breaks off where more should come.
    #[must_use]
    pub fn cut_after(self, body: impl Into<Bytes>) -> Self {
        Self { content: Content::Cut(body.into()), ..self }
    }

    /// One more header.
    ///
    /// # Panics
    /// When HTTP does not allow it.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Display) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("the header's name is valid");
        let value = HeaderValue::from_str(&value.to_string()).expect("the header's value is valid");
        self.headers.push((name, value));
        self
    }

    /// `Retry-After`, seconds or a date.
    #[must_use]
    pub fn retry_after(self, when: impl Display) -> Self {
        self.header("retry-after", when)
    }

    /// Only after this long.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// Only when the gate is open.
    #[must_use]
    pub fn behind(self, gate: &Gate) -> Self {
        Self { gate: Some(gate.clone()), ..self }
    }

    /// This status instead, for the first request with each `webhook-id`.
    ///
    /// # Panics
    /// When there is no such status.
    #[must_use]
    pub fn but_first(self, status: u16) -> Self {
        let status = StatusCode::from_u16(status).expect("a status is between 100 and 999");
        Self { firsts: Some(Firsts { status, seen: Arc::default() }), ..self }
    }

    pub(super) fn wants_request(&self) -> bool {
        self.firsts.is_some() || matches!(self.content, Content::Echo)
    }

    /// Waits as long as the answer says, and then says what to do.
    pub(super) async fn perform(self, request: Option<Request>) -> Act {
        let Self { status, headers, delay, gate, firsts, content } = self;
        let of_first = firsts.zip(request.as_ref()).and_then(|(firsts, request)| firsts.status(request));
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if let Some(gate) = gate {
            gate.pass().await;
        }
        let body = match content {
            Content::Whole(bytes) => whole(bytes),
            Content::Echo => whole(request.map(|request| echo_of(&request)).unwrap_or_default()),
            Content::Endless => streamed(stream::repeat(Bytes::from(vec![b'x'; 16 * 1024])).map(Ok)),
            Content::Drip { bytes, every } => streamed(drip(bytes, every)),
            Content::Cut(bytes) => streamed(cut(bytes)),
            Content::Hang => return Act::Hang,
            Content::Close => return Act::Close,
            Content::Reset => return Act::Reset,
        };
        let mut response = hyper::Response::new(body);
        *response.status_mut() = of_first.unwrap_or(status);
        for (name, value) in headers {
            response.headers_mut().append(name, value);
        }
        Act::Send(Box::new(response))
    }
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()
}

fn streamed(chunks: impl futures::Stream<Item = io::Result<Bytes>> + Send + Sync + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(chunks.map_ok(Frame::data)))
}

fn drip(bytes: Bytes, every: Duration) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + Sync {
    stream::iter(0..bytes.len()).then(move |index| {
        let one = bytes.slice(index..=index);
        async move {
            tokio::time::sleep(every).await;
            Ok(one)
        }
    })
}

/// The pause lets the bytes reach the client before the connection breaks.
fn cut(bytes: Bytes) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + Sync {
    let broken = stream::once(async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(io::Error::other("cut off by the script"))
    });
    stream::iter([Ok(bytes)]).chain(broken)
}

fn echo_of(request: &Request) -> Bytes {
    let mut text = Vec::new();
    for (name, value) in &request.headers {
        text.extend_from_slice(format!("{name}: {value}\n").as_bytes());
    }
    text.push(b'\n');
    text.extend_from_slice(&request.body);
    text.into()
}
