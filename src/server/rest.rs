//! The body of a request, and what becomes of it when the answer is known before its end.
//!
//! Many clients read no answer while they send, and some take one that comes meanwhile for a broken connection. So what
//! remains of a body is taken in and dropped before the answer goes out, within limits; who waits for `100 Continue`
//! has sent nothing, and is answered at once.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::request::Parts;
use http::{HeaderMap, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

/// What remains is taken in until this long after the request began: as long as a body that is wanted may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// A client that sends nothing for so long is not about to: it has its answer then.
const PAUSE: Duration = Duration::from_secs(1);
/// What is still to come once the answer is out is taken in for so long.
pub(super) const AFTERWARDS: Duration = Duration::from_secs(5);
/// So much of one body is taken in, in bytes.
const MOST: usize = 64 << 20;

/// The body of a request, read by whoever answers it.
#[derive(Debug)]
pub struct RequestBody {
    body: Incoming,
    /// It has been read to its end, or cannot be read any more.
    over: bool,
    /// The client sends nothing before it is told to go on, and has not been told.
    waits: bool,
    left: usize,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, parts: &Parts) -> Self {
        let waits = parts.version == Version::HTTP_11 && expects(&parts.headers);
        Self { body, over: false, waits, left: MOST }
    }

    /// Whether nothing of it is to come.
    pub(super) fn is_over(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    /// Takes in what remains, as long as it keeps coming, at most until then.
    pub(super) async fn take_in(&mut self, until: Instant) {
        while !self.is_over() && !self.waits && self.left > 0 {
            let pause = until.min(Instant::now() + PAUSE);
            match timeout_at(pause, self.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    self.left = self.left.saturating_sub(length);
                }
                Ok(None | Some(Err(_))) => self.over = true,
                Err(_) => return,
            }
        }
    }

    /// As [`RequestBody::take_in`], also when it pauses.
    pub(super) async fn wait_out(mut self, until: Instant) {
        while !self.is_over() && self.left > 0 && Instant::now() < until {
            self.take_in(until).await;
        }
    }
}

fn expects(headers: &HeaderMap) -> bool {
    headers.get_all(EXPECT).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // By reading, the parser says that the client is to go on.
        self.waits = false;
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = &polled {
            self.over = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
