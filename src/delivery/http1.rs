//! HTTP/1.1 with a receiver, one request at a time. It is spoken by hyper, and watched below it: whether an answer has
//! begun, and with which status, is known also when hyper has no answer to show.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::connection::{Error, MAX_LIFE, Unanswered};

/// Headers of an answer.
const MAX_HEADERS: usize = 64;

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    heard: Arc<Heard>,
}

/// What has come of the answer to the request under way, or to the last one.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Requests that were begun.
    requests: AtomicU32,
    has_begun: AtomicBool,
    /// None: 0.
    status: AtomicU16,
}

impl Heard {
    fn expect_answer(&self) {
        self.has_begun.store(false, Ordering::Relaxed);
        self.status.store(0, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Release);
    }

    /// The status of the answer, from when its whole line has come.
    pub(super) fn status(&self) -> Option<u16> {
        Some(self.status.load(Ordering::Relaxed)).filter(|status| *status != 0)
    }
}

impl Connection {
    /// Speaks HTTP/1.1 over this. What drives it runs as a task.
    pub(super) async fn open(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        tasks: &TaskTracker,
    ) -> Result<Self, hyper::Error> {
        let heard = Arc::<Heard>::default();
        let watched = Watched {
            stream,
            heard: Arc::clone(&heard),
            request: 0,
            line: StatusLine::default(),
            is_deaf: false,
        };
        let mut builder = http1::Builder::new();
        let (sender, connection) = builder.max_headers(MAX_HEADERS).handshake(TokioIo::new(watched)).await?;
        // How it ends is told to who waits for an answer.
        tasks.spawn(async move { timeout(MAX_LIFE, connection).await.map(Result::unwrap_or_default) });
        Ok(Self { sender, heard })
    }

    /// Whether it takes no more requests.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// What comes of answers.
    pub(super) fn heard(&self) -> &Arc<Heard> {
        &self.heard
    }

    /// Sends one request, and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Request<Bytes>) -> Result<Response<Incoming>, Unanswered> {
        // First: what came of the answer before is none to this request, also when it is never sent.
        self.heard.expect_answer();
        self.sender.ready().await.map_err(|error| Unanswered::NotSent(error.into()))?;
        let answer = self.sender.try_send_request(request.map(Full::new)).await;
        answer.map_err(|mut error| {
            // What comes back was not sent.
            let is_unsent = error.take_message().is_some();
            let error = Error::from(error.into_error());
            if is_unsent {
                Unanswered::NotSent(error)
            } else if self.heard.has_begun.load(Ordering::Relaxed) {
                Unanswered::Failed(error)
            } else {
                Unanswered::Cut(error)
            }
        })
    }
}

/// The status of an answer, found in the bytes that it begins with.
#[derive(Debug, Default)]
struct StatusLine {
    at: At,
    /// The start of the line: more of it says nothing.
    line: [u8; 13],
    length: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum At {
    #[default]
    Line,
    /// In the headers of an interim answer (1xx), which another follows.
    Interim,
    /// The status was found, or there is none.
    End,
}

impl StatusLine {
    /// Takes the bytes that come next. The status, once: when its line ends.
    fn take(&mut self, bytes: &[u8]) -> Option<u16> {
        let mut bytes = bytes.iter();
        while !matches!(self.at, At::End) {
            let byte = *bytes.next()?;
            match (self.at, byte) {
                (At::Line, b'\n') => {
                    let status = self.status();
                    (self.length, self.at) = (0, At::End);
                    match status {
                        Some(100 | 102..=199) => self.at = At::Interim,
                        _ => return status,
                    }
                }
                (At::Interim, b'\n') if self.length == 0 => self.at = At::Line,
                (At::Interim, b'\n') => self.length = 0,
                (At::Interim, b'\r') | (At::End, _) => {}
                (At::Line | At::Interim, byte) => {
                    if let Some(place) = self.line.get_mut(self.length) {
                        *place = byte;
                        self.length += 1;
                    }
                }
            }
        }
        None
    }

    fn status(&self) -> Option<u16> {
        let line = self.line.get(..self.length)?;
        let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', a, b, c, rest @ ..] = line else {
            return None;
        };
        let status = [a, b, c].iter().try_fold(0, |status: u16, digit| {
            digit.is_ascii_digit().then(|| status * 10 + u16::from(**digit - b'0'))
        });
        status.filter(|status| *status >= 100 && matches!(rest, [] | [b' ' | b'\r']))
    }
}

/// A stream to a receiver, and what is heard on it.
struct Watched<S> {
    stream: S,
    heard: Arc<Heard>,
    /// Whose answer comes.
    request: u32,
    line: StatusLine,
    /// The receiver takes nothing more.
    is_deaf: bool,
}

impl<S> Watched<S> {
    fn hear(&mut self, bytes: &[u8]) {
        let request = self.heard.requests.load(Ordering::Acquire);
        if request != self.request {
            (self.request, self.line) = (request, StatusLine::default());
        }
        self.heard.has_begun.store(true, Ordering::Relaxed);
        if let Some(status) = self.line.take(bytes) {
            self.heard.status.store(status, Ordering::Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if let Some(new) = buffer.filled().get(before..).filter(|new| !new.is_empty()) {
            self.hear(new);
        }
        Poll::Ready(Ok(()))
    }
}

/// A receiver may answer and take nothing more, in the middle of a request. What it answered is still to be read, and
/// is lost if the connection ends by a failed write: so writing fails in silence, and reading says how it ended.
impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unless_deaf(bytes.len(), |stream| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = slices.iter().map(|slice| slice.len()).sum();
        self.unless_deaf(all, |stream| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unless_deaf((), |stream| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: Unpin> Watched<S> {
    fn unless_deaf<T>(
        &mut self,
        silent: T,
        act: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.is_deaf {
            return Poll::Ready(Ok(silent));
        }
        match act(Pin::new(&mut self.stream)) {
            Poll::Ready(Err(_)) => {
                self.is_deaf = true;
                Poll::Ready(Ok(silent))
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_request_that_was_not_sent_has_no_status() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let mut connection = Connection::open(ours, &TaskTracker::new()).await.unwrap();
        let request = || Request::post("/").header("host", "a.b").body(Bytes::from_static(b"hello")).unwrap();
        let answers = async {
            let mut seen = Vec::new();
            while !seen.ends_with(b"hello") {
                assert_ne!(theirs.read_buf(&mut seen).await.unwrap(), 0);
            }
            theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        };
        let (answer, ()) = tokio::join!(connection.send(request()), answers);
        answer.unwrap().into_body().collect().await.unwrap();
        assert_eq!(connection.heard().status(), Some(200));
        drop(theirs);
        while !connection.is_closed() {
            tokio::task::yield_now().await;
        }
        let sent = connection.send(request()).await;
        assert!(matches!(sent, Err(Unanswered::NotSent(_))), "{sent:?}");
        assert_eq!(connection.heard().status(), None);
    }

    /// What was found, and after how many bytes.
    fn found(text: &str) -> Option<(u16, usize)> {
        let mut line = StatusLine::default();
        text.bytes().enumerate().find_map(|(at, byte)| Some((line.take(&[byte])?, at + 1)))
    }

    #[test]
    fn a_status_counts_from_the_end_of_its_line() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\nx: y\r\n\r\n", Some((200, 17))),
            ("HTTP/1.0 410\r\n", Some((410, 14))),
            ("HTTP/1.1 599 A very long reason, longer than a line\n", Some((599, 52))),
            ("HTTP/1.1 200 OK", None),
            ("HTTP/1.1 20\r\n\r\n", None),
            ("HTTP/1.1 2000 OK\r\n\r\n", None),
            ("HTTP/1.1 200\n", Some((200, 13))),
            ("HTTP/1.1 +20 OK\r\n", None),
            ("HTTP/1.1 099 OK\r\n", None),
            ("HTTP/2 200 OK\r\n", None),
            ("ICY 200 OK\r\n", None),
            ("220 mail.example ESMTP\r\nHTTP/1.1 200 OK\r\n", None),
            ("HTTP/1.1 101 Switching Protocols\r\n", Some((101, 34))),
            ("HTTP/1.1 100 Continue\r\n\r\n", None),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n", Some((204, 50))),
            ("HTTP/1.1 103 Early Hints\r\nlink: a\r\nlink: b\r\n\r\nHTTP/1.1 200 OK\r\n", Some((200, 63))),
        ] {
            assert_eq!(found(text), expected, "{text:?}");
            let mut line = StatusLine::default();
            assert_eq!(line.take(text.as_bytes()), expected.map(|(status, _)| status), "{text:?} at once");
        }
    }

    #[test]
    fn each_request_has_a_status_of_its_own() {
        let heard = Arc::<Heard>::default();
        let mut watched = Watched {
            stream: (),
            heard: Arc::clone(&heard),
            request: 0,
            line: StatusLine::default(),
            is_deaf: false,
        };
        heard.expect_answer();
        watched.hear(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n");
        watched.hear(b"HTTP/1.1 500 this is the body");
        assert_eq!(heard.status(), Some(200));
        heard.expect_answer();
        assert_eq!((heard.status(), heard.has_begun.load(Ordering::Relaxed)), (None, false));
        watched.hear(b"HTTP/1.1 5");
        assert_eq!((heard.status(), heard.has_begun.load(Ordering::Relaxed)), (None, true));
        watched.hear(b"03 Unavailable\r\n");
        assert_eq!(heard.status(), Some(503));
    }
}
