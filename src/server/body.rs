//! Reads the body of a request: bounded in size, in time, and over all requests together.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use super::status::{Failure, Reason};
use crate::per_namespace::PerNamespace;

/// For one body from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a request waits for room among the bodies that are being read.
const FOR_ROOM: Duration = Duration::from_secs(2);
/// Bodies of the largest size that may be in memory at once.
const LARGEST_AT_ONCE: usize = 64;
/// And so many of one namespace: who sends more than that waits for itself.
const OF_ONE: usize = 16;
/// Of a body that is too large, so much is read and thrown away, for so long: a client that is still sending
/// does not read the answer.
const THROWN_AWAY: (usize, Duration) = (16 << 20, Duration::from_secs(5));
/// Unit of the room, so that its count fits a semaphore.
const UNIT: usize = 1024;

/// Room in memory for the bodies of all requests.
#[derive(Debug)]
pub(super) struct Bodies {
    limit: usize,
    room: Semaphore,
    of_one: PerNamespace,
}

/// A body that was read, and the room that it takes until it is dropped.
#[derive(Debug)]
pub(super) struct Read<'a> {
    pub(super) bytes: Bytes,
    _room: (OwnedSemaphorePermit, SemaphorePermit<'a>),
}

impl Bodies {
    /// Each at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.max(1);
        let largest = limit.div_ceil(UNIT);
        let room = Semaphore::new(largest * LARGEST_AT_ONCE);
        Self { limit, room, of_one: PerNamespace::new(largest * OF_ONE) }
    }

    /// Reads a body whole, for a namespace. It is not copied when it comes in one piece.
    pub(super) async fn read<B>(
        &self,
        namespace: &str,
        headers: &HeaderMap,
        body: B,
    ) -> Result<Read<'_>, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let announced =
            headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > self.limit) {
            throw_away(body).await;
            return Err(self.too_large());
        }
        let room = self.room_for(namespace, announced.unwrap_or(self.limit)).await?;
        let Ok(bytes) = timeout(PATIENCE, self.collect(body, announced)).await else {
            let message = format!("the body must arrive within {} s", PATIENCE.as_secs());
            return Err(Failure::new(Reason::RequestTimeout, message));
        };
        Ok(Read { bytes: bytes?, _room: room })
    }

    async fn room_for(
        &self,
        namespace: &str,
        length: usize,
    ) -> Result<(OwnedSemaphorePermit, SemaphorePermit<'_>), Failure> {
        let units = u32::try_from(length.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let own = self.of_one.of(&namespace.into());
        let room = async {
            // First among its own: who waits there must not be in the way of others.
            let own = own.acquire_many_owned(units).await?;
            Ok::<_, AcquireError>((own, self.room.acquire_many(units).await?))
        };
        let Ok(Ok(room)) = timeout(FOR_ROOM, room).await else {
            let message = "too many requests are being read at once: try again";
            return Err(Failure::later(Reason::ServiceUnavailable, message, Duration::from_secs(1)));
        };
        Ok(room)
    }

    async fn collect<B>(&self, mut body: B, announced: Option<usize>) -> Result<Bytes, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let first = next(&mut body).await?.unwrap_or_default();
        let Some(second) = next(&mut body).await? else {
            return if first.len() > self.limit { Err(self.too_large()) } else { Ok(first) };
        };
        let mut all = BytesMut::with_capacity(announced.unwrap_or(first.len() + second.len()));
        all.extend_from_slice(&first);
        let mut piece = Some(second);
        while let Some(bytes) = piece {
            if all.len() + bytes.len() > self.limit {
                throw_away(body).await;
                return Err(self.too_large());
            }
            all.extend_from_slice(&bytes);
            piece = next(&mut body).await?;
        }
        Ok(all.freeze())
    }

    fn too_large(&self) -> Failure {
        let message = format!("the body must be at most {} bytes (--max-body-bytes)", self.limit);
        Failure::new(Reason::RequestEntityTooLarge, message)
    }
}

/// The next piece of data that is not empty; none at the end.
async fn next<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Result<Option<Bytes>, Failure> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Failure::new(Reason::BadRequest, "the body broke off"))?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

async fn throw_away<B: Body<Data = Bytes> + Unpin>(mut body: B) {
    let (mut left, until) = (THROWN_AWAY.0, Instant::now() + THROWN_AWAY.1);
    while let Ok(Ok(Some(bytes))) = timeout_at(until, next(&mut body)).await {
        left = left.saturating_sub(bytes.len());
        if left == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{StreamExt as _, stream};
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};

    use super::*;

    fn pieces(list: &'static [&'static [u8]]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        StreamBody::new(stream::iter(list).map(|piece| Ok(Frame::data(Bytes::from_static(piece)))))
    }

    fn length(length: usize) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_LENGTH, length.into())])
    }

    #[tokio::test]
    async fn a_body_in_one_piece_is_not_copied_and_in_several_it_is_joined() {
        let bodies = Bodies::new(10);
        let whole = Bytes::from_static(b"0123456789");
        let read = bodies.read("team-a", &HeaderMap::new(), Full::new(whole.clone())).await.unwrap();
        assert_eq!(read.bytes.as_ptr(), whole.as_ptr());
        let read = bodies.read("team-a", &length(5), pieces(&[b"ab", b"", b"cde"])).await.unwrap();
        assert_eq!(&*read.bytes, b"abcde");
        let read = bodies.read("team-a", &HeaderMap::new(), pieces(&[])).await.unwrap();
        assert_eq!(&*read.bytes, b"");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_by_its_length_and_by_its_bytes() {
        let bodies = Bodies::new(10);
        for (headers, body) in [
            (length(11), pieces(&[])),
            (HeaderMap::new(), pieces(&[b"0123456789a"])),
            (HeaderMap::new(), pieces(&[b"0123456789", b"a", b"b"])),
            (length(3), pieces(&[b"01234", b"56789a"])),
        ] {
            let failure = bodies.read("team-a", &headers, body).await.unwrap_err();
            assert_eq!(failure.reason, Reason::RequestEntityTooLarge);
            assert_eq!(failure.message, "the body must be at most 10 bytes (--max-body-bytes)");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_is_waited_for_30_seconds() {
        let bodies = Bodies::new(10);
        let started = Instant::now();
        let body = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let failure = bodies.read("team-a", &HeaderMap::new(), body).await.unwrap_err();
        assert_eq!((failure.reason, started.elapsed()), (Reason::RequestTimeout, Duration::from_secs(30)));
    }

    #[tokio::test(start_paused = true)]
    async fn all_bodies_together_have_a_bounded_room_that_is_given_back() {
        let bodies = Bodies::new(1 << 20);
        let mut held = Vec::new();
        for number in 0..LARGEST_AT_ONCE {
            let namespace = format!("team-{}", number / OF_ONE);
            held.push(bodies.read(&namespace, &length(1 << 20), pieces(&[b"x"])).await.unwrap());
        }
        let failure = bodies.read("team-a", &length(1), pieces(&[b"x"])).await.unwrap_err();
        assert_eq!(failure.reason, Reason::ServiceUnavailable);
        held.pop();
        assert!(bodies.read("team-a", &length(1), pieces(&[b"x"])).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_namespace_takes_a_part_of_the_room_and_others_do_not_wait_behind_it() {
        use futures::FutureExt as _;
        let bodies = Bodies::new(1 << 20);
        let headers = length(1 << 20);
        let read = |namespace| bodies.read(namespace, &headers, pieces(&[b"x"]));
        let held: Vec<_> = (0..OF_ONE).map(|_| read("flood").now_or_never().unwrap().unwrap()).collect();
        let mut waiting: Vec<_> = (0..LARGEST_AT_ONCE).map(|_| read("flood").boxed_local()).collect();
        assert!(waiting.iter_mut().all(|next| next.now_or_never().is_none()));
        assert!(read("other").now_or_never().unwrap().is_ok());
        drop((held, waiting));
        assert!(read("flood").now_or_never().unwrap().is_ok());
    }
}
