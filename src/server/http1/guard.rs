//! Stands between a socket and the HTTP/1 parser: hands on whole heads that are good, and bodies as they come.
//!
//! In place of a head that is refused it hands on a request of its own, so that the refusal is answered as every other
//! request is, after those before it; and nothing after it. Once the connection has been closed for writing, what the
//! client still sends is taken in for a while: closing a socket with bytes unread would make the client's machine throw
//! the answer away.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::flow::{Flow, Look, Then};
use super::head::Heads;
use crate::server::status::{Failure, Reason};

/// The request in place of a refused one. Its method is nobody's; who sends it all the same gets what is due to it.
const IN_ITS_PLACE: &str = "MALFORMED / HTTP/1.1\r\nhost: x\r\n\r\n";
pub(in crate::server) const METHOD: &str = "MALFORMED";

/// What a client still sends after the end is taken in for so long, and so much of it.
const LINGER: (Duration, usize) = (Duration::from_secs(5), 16 << 20);

/// What a guard and those who answer tell each other.
#[derive(Debug, Default)]
pub(in crate::server) struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    refused: Option<Failure>,
    lingers: bool,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a head was refused, once.
    pub(in crate::server) fn refused(&self) -> Option<Failure> {
        self.lock().refused.take()
    }

    /// Has the connection take in what comes after its end.
    pub(in crate::server) fn linger(&self) {
        self.lock().lingers = true;
    }
}

/// A socket whose requests are judged.
#[derive(Debug)]
pub(in crate::server) struct Guard<S> {
    socket: S,
    flow: Flow,
    /// A head that has not come whole.
    held: Vec<u8>,
    /// What goes on next.
    out: Bytes,
    end: End,
    shared: Arc<Shared>,
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

/// Why nothing goes on after `out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    NotYet,
    Refused,
    Broken,
}

impl<S> Guard<S> {
    pub(in crate::server) fn new(socket: S, limits: Heads, shared: Arc<Shared>) -> Self {
        let flow = Flow::new(limits);
        Self { socket, flow, held: Vec::new(), out: Bytes::new(), end: End::NotYet, shared, linger: None }
    }

    /// Sorts what came after the first `start` bytes of the buffer: what may go on stays there, or comes after what is
    /// held back.
    fn sort(&mut self, buffer: &mut ReadBuf<'_>, start: usize) {
        let came = buffer.filled().get(start..).unwrap_or_default();
        if !self.held.is_empty() {
            self.held.extend_from_slice(came);
            buffer.set_filled(start);
            return self.sort_held();
        }
        let Look { passes, then } = self.flow.look(came);
        if matches!(then, Then::Partial | Then::Blank(_)) {
            self.held.extend_from_slice(came.get(passes..).unwrap_or_default());
        }
        buffer.set_filled(start + passes);
        if matches!(then, Then::Blank(_)) {
            return self.sort_held();
        }
        self.stop(then);
    }

    fn sort_held(&mut self) {
        let held = std::mem::take(&mut self.held);
        let (mut rest, mut out) = (&*held, Vec::new());
        let then = loop {
            let Look { passes, then } = self.flow.look(rest);
            let (goes_on, after) = rest.split_at_checked(passes).unwrap_or((rest, &[]));
            out.extend_from_slice(goes_on);
            match then {
                Then::Blank(length) => rest = after.get(length..).unwrap_or_default(),
                then => {
                    self.held = after.to_vec();
                    break then;
                }
            }
        };
        self.out = out.into();
        self.stop(then);
    }

    fn stop(&mut self, then: Then) {
        match then {
            Then::End | Then::Partial | Then::Blank(_) => {}
            Then::Broken => {
                self.end = End::Broken;
                self.shared.linger();
            }
            Then::Refused(failure) => self.refuse(failure),
        }
    }

    fn refuse(&mut self, failure: Failure) {
        self.held = Vec::new();
        self.end = End::Refused;
        let mut state = self.shared.lock();
        state.refused = Some(failure);
        state.lingers = true;
        drop(state);
        self.out = [&*self.out, IN_ITS_PLACE.as_bytes()].concat().into();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.out.is_empty() {
                let length = this.out.len().min(buffer.remaining());
                buffer.put_slice(this.out.get(..length).unwrap_or_default());
                this.out.advance(length);
                return Poll::Ready(Ok(()));
            }
            match this.end {
                End::NotYet => {}
                // The request in its place ends the connection.
                End::Refused => return Poll::Pending,
                End::Broken => return Poll::Ready(Err(std::io::ErrorKind::InvalidData.into())),
            }
            let start = buffer.filled().len();
            ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
            if buffer.filled().len() == start {
                if this.held.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.refuse(Failure::new(Reason::BadRequest, "the head of the request broke off"));
                continue;
            }
            this.sort(buffer, start);
            if buffer.filled().len() > start {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
            if !this.shared.lock().lingers {
                return Poll::Ready(Ok(()));
            }
        }
        let (time, most) = LINGER;
        let (alarm, left) =
            this.linger.get_or_insert_with(|| (Box::pin(sleep_until(Instant::now() + time)), most));
        let mut scratch = [0; 8 << 10];
        while alarm.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut this.socket).poll_read(cx, &mut buffer));
            *left = left.saturating_sub(buffer.filled().len());
            if read.is_err() || buffer.filled().is_empty() || *left == 0 {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}
