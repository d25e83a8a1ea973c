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
/// A client that has sent nothing for so long is not about to: it has its answer then. One that has begun may pause for
/// longer, as those do that send slowly on purpose.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// What is still to come once the answer is out is taken in for so long.
pub(super) const AFTERWARDS: Duration = Duration::from_secs(5);
/// So much of one body is taken in, in bytes.
const MOST: usize = 64 << 20;

/// The body of a request, read by whoever answers it.
#[derive(Debug)]
pub struct RequestBody {
    body: Incoming,
    /// How it ended; none: more of it can be read.
    end: Option<End>,
    /// Something of it has come.
    began: bool,
    /// The client sends nothing before it is told to go on, and has not been told.
    waits: bool,
    left: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, parts: &Parts) -> Self {
        let waits = parts.version == Version::HTTP_11 && expects(&parts.headers);
        Self { body, end: None, began: false, waits, left: MOST }
    }

    /// Whether nothing of it is to come.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some() || self.body.is_end_stream()
    }

    /// Whether it ended in an error: what comes after it, nobody can tell.
    pub(super) fn is_broken(&self) -> bool {
        self.end == Some(End::Broken)
    }

    /// Takes in what remains, as long as it keeps coming, at most until then.
    pub(super) async fn take_in(&mut self, until: Instant) {
        while !self.is_over() && !self.waits && self.left > 0 {
            let pause = if self.began { PAUSES.1 } else { PAUSES.0 };
            match timeout_at(until.min(Instant::now() + pause), self.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    self.left = self.left.saturating_sub(length);
                }
                // It is over.
                Ok(None | Some(Err(_))) => {}
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
        match &polled {
            Poll::Ready(Some(Ok(_))) => self.began = true,
            Poll::Ready(None) => self.end = Some(End::Whole),
            Poll::Ready(Some(Err(_))) => self.end = Some(End::Broken),
            Poll::Pending => {}
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
