//! Reads the body of a request: bounded in size, in time, and over all requests together.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::status::{Failure, Reason};
use crate::model::ids::Namespace;
use crate::per_namespace::PerNamespace;

/// For one body from its first byte to its last.
const PATIENCE: Duration = super::rest::PATIENCE;
/// How long a body waits for room to go on.
const FOR_ROOM: Duration = Duration::from_secs(2);
/// Bodies of the largest size that may be in memory at once.
const LARGEST_AT_ONCE: usize = 64;
/// And so many of one namespace: who sends more than that waits for itself.
const OF_ONE: usize = 16;
/// Of all: so many of them have room to their ends, whatever the others do, each of another namespace. Without them,
/// bodies that have come half could fill the room, each waiting for the others.
const TO_THE_END: usize = 16;
/// Unit of the room, so that its count fits a semaphore.
const UNIT: usize = 1024;

/// Room in memory for the bodies of all requests. It is taken as bytes come.
#[derive(Debug)]
pub(super) struct Bodies {
    limit: usize,
    open: Semaphore,
    of_one: PerNamespace,
    to_the_end: Semaphore,
    /// One of each namespace has room to its end.
    one_of_one: PerNamespace,
}

/// A body that was read, and the room that it takes until it is dropped.
#[derive(Debug)]
pub(super) struct Read<'a> {
    pub(super) bytes: Bytes,
    _room: Room<'a>,
}

/// Room of one body.
#[derive(Debug)]
struct Room<'a> {
    bodies: &'a Bodies,
    namespace: Namespace,
    /// In units.
    taken: usize,
    held: Option<Held<'a>>,
    is_whole: bool,
}

/// Of its namespace, and of all.
type Held<'a> = (OwnedSemaphorePermit, SemaphorePermit<'a>);

impl Bodies {
    /// Each at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.max(1);
        let largest = limit.div_ceil(UNIT);
        Self {
            limit,
            open: Semaphore::new(largest * (LARGEST_AT_ONCE - TO_THE_END)),
            of_one: PerNamespace::new(largest * (OF_ONE - 1)),
            to_the_end: Semaphore::new(TO_THE_END),
            one_of_one: PerNamespace::new(1),
        }
    }

    /// Reads a body whole, for a namespace. It is not copied when it comes in one piece. One that is announced as too
    /// large is refused unread.
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
            headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > self.limit as u64) {
            return Err(self.too_large());
        }
        let mut room =
            Room { bodies: self, namespace: namespace.into(), taken: 0, held: None, is_whole: false };
        let Ok(bytes) = timeout(PATIENCE, self.collect(&mut room, body)).await else {
            let message = format!("the body must arrive within {} s", PATIENCE.as_secs());
            return Err(Failure::new(Reason::RequestTimeout, message));
        };
        Ok(Read { bytes: bytes?, _room: room })
    }

    async fn collect<B>(&self, room: &mut Room<'_>, mut body: B) -> Result<Bytes, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let first = next(&mut body).await?.unwrap_or_default();
        if first.len() > self.limit {
            return Err(self.too_large());
        }
        room.grow(first.len()).await?;
        let Some(second) = next(&mut body).await? else { return Ok(first) };
        let mut all = BytesMut::new();
        let mut pieces = [Some(first), Some(second)].into_iter().flatten();
        while let Some(bytes) = match pieces.next() {
            Some(piece) => Some(piece),
            None => next(&mut body).await?,
        } {
            let length = all.len() + bytes.len();
            if length > self.limit {
                return Err(self.too_large());
            }
            if length > all.capacity() {
                // Doubled, so that a body of many pieces is not copied many times.
                let capacity = length.max(2 * all.len()).min(self.limit);
                room.grow(capacity).await?;
                all.reserve(capacity - all.len());
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }

    fn too_large(&self) -> Failure {
        let message = format!("the body must be at most {} bytes (--max-body-bytes)", self.limit);
        Failure::new(Reason::RequestEntityTooLarge, message)
    }
}

impl Room<'_> {
    /// Takes room for so many bytes in all.
    async fn grow(&mut self, bytes: usize) -> Result<(), Failure> {
        let wanted = bytes.div_ceil(UNIT);
        let Some(more) = wanted.checked_sub(self.taken).filter(|more| *more > 0 && !self.is_whole) else {
            return Ok(());
        };
        self.taken = wanted;
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let Ok(()) = timeout(FOR_ROOM, self.take(more)).await else {
            let message = "too many requests are being read at once: try again";
            return Err(Failure::later(Reason::ServiceUnavailable, message, Duration::from_secs(1)));
        };
        Ok(())
    }

    /// Takes so many units more, or, if there are none, room for the whole body.
    async fn take(&mut self, units: u32) {
        let bodies = self.bodies;
        // First among its own: who waits there must not be in the way of others.
        let more = async {
            let own = bodies.of_one.of(&self.namespace).acquire_many_owned(units).await;
            own.ok().zip(bodies.open.acquire_many(units).await.ok())
        };
        let whole = async {
            let own = bodies.one_of_one.of(&self.namespace).acquire_owned().await;
            own.ok().zip(bodies.to_the_end.acquire().await.ok())
        };
        let (taken, is_whole) = tokio::select! {
            biased;
            more = more => (more, false),
            whole = whole => (whole, true),
        };
        self.is_whole = is_whole;
        match (&mut self.held, taken) {
            (Some((own, all)), Some((more_own, more_all))) if !is_whole => {
                own.merge(more_own);
                all.merge(more_all);
            }
            // What was held for a part of it is given back.
            (held, taken) => *held = taken,
        }
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{StreamExt as _, stream};
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};
    use tokio::time::Instant;

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

    /// A body that is the first piece for ever.
    fn endless(piece: &'static [u8]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let first = stream::iter([Ok(Frame::data(Bytes::from_static(piece)))]);
        StreamBody::new(first.chain(stream::pending()))
    }

    fn full() -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        const WHOLES: &[&[u8]] = &[&[0; 1 << 20]];
        pieces(WHOLES)
    }

    #[tokio::test(start_paused = true)]
    async fn all_bodies_together_have_a_bounded_room_that_is_given_back() {
        let (bodies, none) = (Bodies::new(1 << 20), HeaderMap::new());
        let mut held = Vec::new();
        for number in 0..LARGEST_AT_ONCE {
            let namespace = format!("team-{}", number % TO_THE_END);
            held.push(bodies.read(&namespace, &none, full()).await.unwrap());
        }
        let failure = bodies.read("team-a", &length(1), pieces(&[b"x"])).await.map(drop);
        assert_eq!(failure.unwrap_err().reason, Reason::ServiceUnavailable);
        held.remove(0);
        assert!(bodies.read("team-a", &length(1), pieces(&[b"x"])).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_namespace_takes_a_part_of_the_room_and_others_do_not_wait_behind_it() {
        use futures::FutureExt as _;
        let bodies = Bodies::new(1 << 20);
        let headers = length(1 << 20);
        let read = |namespace| bodies.read(namespace, &headers, full());
        let held: Vec<_> = (0..OF_ONE).map(|_| read("flood").now_or_never().unwrap().unwrap()).collect();
        let mut waiting: Vec<_> = (0..LARGEST_AT_ONCE).map(|_| read("flood").boxed_local()).collect();
        assert!(waiting.iter_mut().all(|next| next.now_or_never().is_none()));
        assert!(read("other").now_or_never().unwrap().is_ok());
        drop((held, waiting));
        assert!(read("flood").now_or_never().unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_senders_of_a_few_bytes_take_the_room_of_a_few_bytes() {
        use futures::FutureExt as _;
        let (bodies, unknown, whole) = (Bodies::new(1 << 20), HeaderMap::new(), length(1 << 20));
        // A task gives way after so many steps otherwise, and that looks as if it waited.
        let unconstrained = tokio::task::unconstrained(async {
            let slow = |headers| bodies.read("team-a", headers, endless(b"7 bytes")).boxed_local();
            let mut slow: Vec<_> = (0..1000).flat_map(|_| [slow(&unknown), slow(&whole)]).collect();
            assert!(slow.iter_mut().all(|slow| slow.now_or_never().is_none()));
            let read = || bodies.read("team-a", &whole, full()).now_or_never().unwrap().unwrap();
            let held: Vec<_> = (0..OF_ONE - 3).map(|_| read()).collect();
            assert_eq!(
                held.len(),
                13,
                "2,000 KiB are taken of 15 MiB, beside the one that has room to its end"
            );
        });
        unconstrained.await;
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_have_come_half_do_not_wait_for_each_other() {
        let bodies = Bodies::new(1 << 20);
        let sent = |_| async {
            let pieces = stream::iter(0..64).then(|_| async move {
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0; 16 << 10])))
            });
            let read = bodies.read("team-a", &HeaderMap::new(), StreamBody::new(Box::pin(pieces))).await;
            read.map(|read| read.bytes.len())
        };
        for read in futures::future::join_all((0..10 * OF_ONE).map(sent)).await {
            assert_eq!(read, Ok(1 << 20));
        }
    }
}
