//! The body of an answer: whole in memory, or made while it is sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt as _};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

/// A part of a body, or why there are no more: whoever reads it then sees that it ended early.
pub type Part = std::io::Result<Bytes>;

/// The body of an answer.
pub struct Reply(Kind);

enum Kind {
    Whole(Full<Bytes>),
    /// Its length is not known. Each part is made when the last one has been taken.
    Made(BoxStream<'static, Part>),
}

impl Reply {
    /// One that is made while it is sent.
    pub fn made(parts: impl Stream<Item = Part> + Send + 'static) -> Self {
        Self(Kind::Made(parts.boxed()))
    }

    /// Whether it is made while it is sent.
    pub(super) fn is_made(&self) -> bool {
        matches!(self.0, Kind::Made(_))
    }
}

impl From<Bytes> for Reply {
    fn from(whole: Bytes) -> Self {
        Self(Kind::Whole(Full::new(whole)))
    }
}

impl Default for Reply {
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("is_made", &self.is_made()).finish_non_exhaustive()
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        match &mut self.0 {
            Kind::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Kind::Made(parts) => parts.poll_next_unpin(cx).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(body) => body.is_end_stream(),
            Kind::Made(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(body) => body.size_hint(),
            Kind::Made(_) => SizeHint::default(),
        }
    }
}
