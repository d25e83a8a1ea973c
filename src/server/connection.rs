//! When a connection is at work, when it is idle, and until when it may stay so.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::reply::{Part, Reply};

/// How long a connection may wait for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// From being accepted to its first request, and from the first byte of a request's head to its end.
    pub(super) head: Duration,
    /// Between two requests. Longer than the 90 s after which common clients let a connection go, so that it
    /// is them who close it and no request meets a closing server.
    pub(super) idle: Duration,
}

/// What a connection is doing; shared by its socket, its requests and the listener.
#[derive(Debug)]
pub(super) struct Activity {
    state: Mutex<State>,
    /// Cancelled when the place is needed for another connection.
    pub(super) give_way: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Under way.
    requests: usize,
    /// Answered, but for what remains of their bodies.
    remaining: usize,
    /// Answers that are made while they are sent.
    answers: usize,
    waits_for: Wait,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Head,
    Anything,
}

impl Activity {
    /// Of a connection that was accepted now.
    pub(super) fn new() -> Self {
        let state =
            State { requests: 0, remaining: 0, answers: 0, waits_for: Wait::Head, since: Instant::now() };
        Self { state: Mutex::new(state), give_way: CancellationToken::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request began; it ends when the guard is dropped.
    pub(super) fn request(self: &Arc<Self>) -> InRequest {
        self.lock().requests += 1;
        InRequest(Arc::clone(self))
    }

    /// Counts an answer that is made while it is sent, until the guard is dropped.
    pub(super) fn answer(self: &Arc<Self>) -> InAnswer {
        self.lock().answers += 1;
        InAnswer(Arc::clone(self))
    }

    /// Since when no request or answer is under way, if none is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.requests + state.answers == 0).then_some(state.since)
    }

    /// Whether nothing is under way that could still end: an answer of which nothing has been taken for as long as a
    /// connection may be idle is given up.
    pub(super) fn is_over(&self, patience: &Patience) -> bool {
        let state = self.lock();
        state.requests == 0 && (state.answers == 0 || state.since + patience.idle <= Instant::now())
    }

    /// When the connection has been waited for long enough; none while a request is under way. An answer has time from
    /// each of its parts on.
    pub(super) fn deadline(&self, patience: &Patience) -> Option<Instant> {
        let state = self.lock();
        let limit = match state.waits_for {
            Wait::Head => patience.head,
            Wait::Anything => patience.idle,
        };
        (state.requests + state.remaining == 0).then(|| state.since + limit)
    }

    /// While nothing is under way, bytes are the head of a request.
    fn bytes_came(&self) {
        let mut state = self.lock();
        if state.requests + state.remaining == 0 && state.waits_for == Wait::Anything {
            state.waits_for = Wait::Head;
            state.since = Instant::now();
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct InRequest(Arc<Activity>);

impl InRequest {
    /// It is answered, and what remains of its body is awaited: as long as that, the connection is in nobody's way, and
    /// may be asked for its place.
    pub(super) fn remains(self) -> Remains {
        self.0.lock().remaining += 1;
        Remains(Arc::clone(&self.0))
    }
}

impl Drop for InRequest {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.requests = state.requests.saturating_sub(1);
        state.waits_for = Wait::Anything;
        state.since = Instant::now();
    }
}

/// What remains of the body of an answered request.
#[derive(Debug)]
pub(super) struct Remains(Arc<Activity>);

impl Drop for Remains {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.remaining = state.remaining.saturating_sub(1);
        state.since = Instant::now();
    }
}

/// An answer that is made while it is sent.
#[derive(Debug)]
pub(super) struct InAnswer(Arc<Activity>);

impl InAnswer {
    /// A part of it was taken.
    fn moves(&self) {
        self.0.lock().since = Instant::now();
    }
}

impl Drop for InAnswer {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.answers = state.answers.saturating_sub(1);
        state.since = Instant::now();
    }
}

/// So long a part of an answer that is made while it is sent may lie without being taken.
const LIES: Duration = Duration::from_mins(1);

/// The body of an answer on its connection.
#[derive(Debug)]
pub(super) enum Answering {
    /// It costs nothing more.
    Whole(Reply),
    /// The parts that [`make`] makes.
    Made(mpsc::Receiver<Option<Part>>, InAnswer),
}

impl Answering {
    /// What is made is made by a task of its own: the connection does not ask for a part while a client leaves no room
    /// for it, and so would never see that the time for it is over.
    pub(super) fn new(body: Reply, activity: &Arc<Activity>, tasks: &TaskTracker) -> Self {
        if !body.is_made() {
            return Self::Whole(body);
        }
        let (sender, parts) = mpsc::channel(1);
        let give_way = activity.give_way.clone();
        tasks.spawn(async move {
            if make(body, &sender).await.is_err() {
                give_way.cancel();
            }
        });
        Self::Made(parts, activity.answer())
    }
}

/// Makes the parts of a body, and none after its end. Lets go of the body when its client has gone, or, with an error,
/// when its client takes no part for too long: its connection is to end then, since what is sent on it stays in memory.
async fn make(mut body: Reply, to: &mpsc::Sender<Option<Part>>) -> Result<(), Elapsed> {
    loop {
        let Ok(room) = timeout(LIES, to.reserve()).await? else { return Ok(()) };
        let frame = tokio::select! {
            () = to.closed() => return Ok(()),
            frame = body.frame() => frame,
        };
        let part = frame.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()));
        let goes_on = matches!(part, Some(Ok(_)));
        room.send(part);
        if !goes_on {
            return Ok(());
        }
    }
}

impl Body for Answering {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Made(parts, under_way) => {
                under_way.moves();
                let late = || Some(Err(std::io::ErrorKind::TimedOut.into()));
                parts.poll_recv(cx).map(|part| part.unwrap_or_else(late)).map_ok(Frame::data)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(body) if body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Made(..) => SizeHint::default(),
        }
    }
}

/// A socket that tells when bytes come.
#[derive(Debug)]
pub(super) struct Watched<S> {
    pub(super) socket: S,
    /// Whom to tell; none for HTTP/2, where bytes also come as pings and windows, and mean nothing.
    pub(super) activity: Option<Arc<Activity>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buffer);
        if buffer.filled().len() > before
            && let Some(activity) = &self.activity
        {
            activity.bytes_came();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
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

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::advance;

    use super::*;

    const PATIENCE: Patience = Patience { head: Duration::from_secs(10), idle: Duration::from_mins(2) };

    fn left(activity: &Activity) -> Option<u64> {
        activity.deadline(&PATIENCE).map(|at| at.duration_since(Instant::now()).as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_time_from_each_part_and_is_given_up_when_none_is_taken() {
        let activity = Arc::new(Activity::new());
        let parts = futures::stream::repeat_with(|| Ok(Bytes::from_static(b"part")));
        let request = activity.request();
        let mut body = Answering::new(Reply::made(parts), &activity, &TaskTracker::new());
        drop(request);
        for _ in 0..3 {
            advance(Duration::from_secs(50)).await;
            assert_eq!((activity.idle_since(), activity.is_over(&PATIENCE)), (None, false));
            body.frame().await.unwrap().unwrap();
            assert_eq!(left(&activity), Some(120));
        }
        advance(Duration::from_mins(2)).await;
        assert_eq!((left(&activity), activity.is_over(&PATIENCE)), (Some(0), true));
        drop(body);
        assert!(activity.idle_since().is_some());

        let all = Reply::from(Bytes::from_static(b"all"));
        let whole = Answering::new(all, &activity, &TaskTracker::new());
        assert!(activity.idle_since().is_some(), "a whole one is the connection's business: {whole:?}");
    }

    /// Endless parts, and what is closed once nobody makes them any more.
    fn endless() -> (Reply, tokio::sync::oneshot::Receiver<()>) {
        let (kept, gone) = tokio::sync::oneshot::channel();
        let parts = futures::stream::unfold(kept, async |kept| Some((Ok(Bytes::from_static(b"part")), kept)));
        (Reply::made(parts), gone)
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_let_go_though_its_connection_is_busy() {
        let activity = Arc::new(Activity::new());
        let (reply, gone) = endless();
        let mut body = Answering::new(reply, &activity, &TaskTracker::new());
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            assert!(body.frame().await.unwrap().is_ok(), "slow is not stalled");
        }
        let begun = Instant::now();
        let _busy = activity.request();
        gone.await.unwrap_err();
        assert_eq!(begun.elapsed().as_secs(), LIES.as_secs());
        activity.give_way.cancelled().await;
        assert!(body.frame().await.unwrap().is_ok(), "what was made already");
        assert!(body.frame().await.unwrap().is_err(), "nobody takes it for whole");
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_has_his_answer_made_no_further() {
        let activity = Arc::new(Activity::new());
        let (reply, gone) = endless();
        drop(Answering::new(reply, &activity, &TaskTracker::new()));
        gone.await.unwrap_err();
        assert!(!activity.give_way.is_cancelled());
        let never = Reply::made(futures::stream::pending());
        let tasks = TaskTracker::new();
        drop(Answering::new(never, &activity, &tasks));
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_less_time_than_an_idle_connection_and_a_request_has_its_own() {
        let activity = Arc::new(Activity::new());
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = Watched { socket: server, activity: Some(Arc::clone(&activity)) };
        let mut byte = [0];

        advance(Duration::from_secs(3)).await;
        assert_eq!(left(&activity), Some(7), "the first request, from the start");
        client.write_all(b"G").await.unwrap();
        server.read_exact(&mut byte).await.unwrap();
        assert_eq!(left(&activity), Some(7), "a byte gives the first head no more time");

        let request = activity.request();
        assert_eq!((left(&activity), activity.idle_since()), (None, None));
        advance(Duration::from_secs(1000)).await;
        drop(request);
        assert_eq!(left(&activity), Some(120));

        advance(Duration::from_secs(50)).await;
        client.write_all(b"P").await.unwrap();
        server.read_exact(&mut byte).await.unwrap();
        assert_eq!(left(&activity), Some(10), "a next head, from its first byte");
        advance(Duration::from_secs(4)).await;
        client.write_all(b"O").await.unwrap();
        server.read_exact(&mut byte).await.unwrap();
        assert_eq!(left(&activity), Some(6), "not from its last");
    }
}
