//! HTTP/2 with a receiver: one connection, many requests at once, and no task or channel for any of them.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::FutureExt as _;
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;

use super::connection::{Error, MAX_LIFE, Unanswered};

/// What one answer may make us buffer before it is read: the window of one stream.
const STREAM_WINDOW: u32 = 64 << 10;

/// Bytes of an answer's headers, as RFC 9113 counts them.
const MAX_HEADERS: u32 = 16 << 10;

/// Streams on a connection whose peer has not said yet how many it allows: no less than what the RFC recommends
/// to it.
const UNTOLD_STREAMS: usize = 100;

/// A peer that is gone must not take every stream of its connection along until their time is up.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What a connection goes over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// A peer gets so long to take what nobody waits for, such as the end of the connection.
const LINGER: Duration = Duration::from_secs(5);

/// An open connection. It ends with its last request after this was dropped.
#[derive(Debug)]
pub(super) struct Connection(Arc<Ends>);

/// A place on a connection for one request at a time.
#[derive(Debug)]
pub(super) struct Place(Arc<Ends>);

/// What makes requests. To use it takes a lock of the connection, which a peer can keep busy: nobody does so who holds
/// a lock that others want.
#[derive(Debug)]
struct Ends {
    sender: SendRequest<Piece>,
    state: Arc<State>,
}

/// What those who use a connection and the task that drives it tell each other.
#[derive(Debug)]
struct State {
    opened: Instant,
    /// Places taken.
    in_use: AtomicUsize,
    /// Streams that the peer allows, as far as it was heard when anything last happened.
    allowed: AtomicUsize,
    /// Milliseconds after `opened` when something of an answer last came.
    heard: AtomicU64,
    /// Milliseconds after `opened` when a place was last left.
    left: AtomicU64,
    /// It takes no more requests.
    is_over: AtomicBool,
    /// It has brought an answer.
    has_answered: AtomicBool,
    /// No place will be taken any more.
    is_left: AtomicBool,
    /// Told when the first place is taken, and when the last is left for good.
    busy: Notify,
    deserted: Notify,
    /// It ended because the peer did not answer a ping.
    is_silent: AtomicBool,
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    body: RecvStream,
    request: SendStream<Piece>,
    /// Shared with the request's body while something of that is unsent.
    unsent: Arc<()>,
    state: Arc<State>,
}

/// A request's body, as it waits to be sent.
#[derive(Debug)]
struct Piece {
    rest: Bytes,
    _unsent: Arc<()>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.rest.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.rest.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.rest.advance(count);
    }
}

impl Connection {
    /// Speaks HTTP/2 over this. What drives it runs as a task.
    pub(super) async fn open(stream: impl Stream, tasks: &TaskTracker) -> Result<Self, h2::Error> {
        let mut builder = Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(16 * STREAM_WINDOW)
            .initial_max_send_streams(UNTOLD_STREAMS)
            .max_header_list_size(MAX_HEADERS)
            .enable_push(false);
        let (sender, connection) = builder.handshake(stream).await?;
        let state = Arc::new(State::new());
        tasks.spawn(drive(connection, Arc::clone(&state)));
        Ok(Self(Arc::new(Ends { sender, state })))
    }

    /// A place on it, whether or not there is room.
    pub(super) fn place(&self) -> Place {
        let Self(ends) = self;
        if ends.state.in_use.fetch_add(1, Ordering::SeqCst) == 0 {
            ends.state.busy.notify_one();
        }
        Place(Arc::clone(ends))
    }

    /// Whether the peer allows another place on it, when at most so many are wanted.
    pub(super) fn has_room(&self, most: usize) -> bool {
        let state = &self.0.state;
        state.in_use.load(Ordering::Relaxed) < state.allowed.load(Ordering::Relaxed).min(most)
    }

    /// Whether it is to be left. Also when its peer allows no stream: what was given up while it waited for one
    /// stays in its queue.
    pub(super) fn is_over(&self) -> bool {
        let state = &self.0.state;
        state.is_over.load(Ordering::Relaxed) || state.allowed.load(Ordering::Relaxed) == 0
    }

    /// Whether it has brought an answer.
    pub(super) fn has_answered(&self) -> bool {
        self.0.state.has_answered.load(Ordering::Relaxed)
    }

    /// Whether it was opened after this.
    pub(super) fn is_newer_than(&self, moment: Instant) -> bool {
        self.0.state.opened > moment
    }

    /// For how long nobody has used it; none while somebody does.
    pub(super) fn idle(&self) -> Option<Duration> {
        let state = &self.0.state;
        let is_idle = state.in_use.load(Ordering::SeqCst) == 0;
        is_idle.then(|| Duration::from_millis(state.age().saturating_sub(state.left.load(Ordering::Relaxed))))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.state.is_left.store(true, Ordering::SeqCst);
        self.0.state.deserted.notify_one();
    }
}

impl State {
    fn new() -> Self {
        Self {
            opened: Instant::now(),
            in_use: AtomicUsize::new(0),
            allowed: AtomicUsize::new(UNTOLD_STREAMS),
            heard: AtomicU64::new(0),
            left: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            has_answered: AtomicBool::new(false),
            is_left: AtomicBool::new(false),
            busy: Notify::new(),
            deserted: Notify::new(),
            is_silent: AtomicBool::new(false),
        }
    }

    /// Milliseconds since it was opened: it lives for minutes.
    fn age(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn hear(&self) {
        self.heard.store(self.age(), Ordering::Relaxed);
    }

    fn explain(&self, error: h2::Error) -> Error {
        if self.is_silent.load(Ordering::Relaxed) { Error::Silent } else { error.into() }
    }
}

impl Place {
    /// Sends one request, and waits for the head of its answer. The body is not copied: it waits here as long as
    /// the peer gives no window for it. Dropped before the answer, this resets the stream.
    pub(super) async fn send(&mut self, request: Request<Bytes>) -> Result<Response<Answer>, Unanswered> {
        let (head, body) = request.into_parts();
        let mut sender = self.0.sender.clone();
        let sent = sender.send_request(Request::from_parts(head, ()), body.is_empty());
        let (answer, mut request) = sent.map_err(|error| self.not_sent(error))?;
        let unsent = Arc::new(());
        if !body.is_empty() {
            let piece = Piece { rest: body, _unsent: Arc::clone(&unsent) };
            // Refused when the stream has ended meanwhile: the answer says how.
            let _ = request.send_data(piece, true);
        }
        let answer = answer.await.map_err(|error| self.unanswered(error))?;
        let state = Arc::clone(&self.0.state);
        state.has_answered.store(true, Ordering::Relaxed);
        state.hear();
        Ok(answer.map(|body| Answer { body, request, unsent, state }))
    }

    fn not_sent(&self, error: h2::Error) -> Unanswered {
        self.0.state.is_over.store(true, Ordering::Relaxed);
        Unanswered::NotSent(self.0.state.explain(error))
    }

    /// A peer that goes away says up to which stream it may have acted, and fails those beyond (RFC 9113, section
    /// 6.8). A stream that it refuses counts neither as unsent nor as cut: it would be sent to a peer that is
    /// overloaded. Nor does what a silent peer has: it is probably frozen, and would get all requests of the connection
    /// again at once.
    fn unanswered(&self, error: h2::Error) -> Unanswered {
        if error.is_go_away() && error.is_remote() {
            return self.not_sent(error);
        }
        let has_ended = error.is_io();
        match self.0.state.explain(error) {
            error @ Error::Silent => Unanswered::Failed(error),
            error if has_ended => Unanswered::Cut(error),
            error => Unanswered::Failed(error),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let state = &self.0.state;
        state.left.store(state.age(), Ordering::Relaxed);
        if state.in_use.fetch_sub(1, Ordering::SeqCst) == 1 {
            state.deserted.notify_one();
        }
    }
}

impl Answer {
    /// The next part of the body; none at its end. Trailers say nothing to us.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match self.body.data().await {
            Some(Ok(chunk)) => {
                // It fails only for more than what came.
                let _ = self.body.flow_control().release_capacity(chunk.len());
                self.state.hear();
                Ok(Some(chunk))
            }
            Some(Err(error)) => Err(self.state.explain(error)),
            None => Ok(None),
        }
    }
}

impl Drop for Answer {
    /// What was answered before the peer took the whole request would wait for a window that may never come, and
    /// hold its stream. (A stream whose answer did not end is reset without this.)
    fn drop(&mut self) {
        if Arc::strong_count(&self.unsent) > 1 {
            self.request.send_reset(Reason::CANCEL);
            if Arc::strong_count(&self.unsent) > 1 {
                // It is just being written: then its stream is neither reset nor forgotten, and would count for ever.
                self.state.is_over.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// However the task ends that drives a connection, nobody begins anything on it.
struct Over(Arc<State>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

/// Drives a connection until it ends, is silent, nobody wants it, or it has lived for long enough. Those who wait for
/// an answer hear how it ended.
async fn drive(mut connection: h2::client::Connection<impl Stream, Piece>, state: Arc<State>) {
    let pings = connection.ping_pong();
    let over = Over(Arc::clone(&state));
    let ended = poll_fn(|context| {
        let ended = connection.poll_unpin(context);
        state.allowed.store(connection.max_concurrent_send_streams(), Ordering::Relaxed);
        ended
    });
    tokio::select! {
        biased;
        _ = timeout(MAX_LIFE, ended) => {}
        () = silence(pings, &state) => state.is_silent.store(true, Ordering::Relaxed),
        () = deserted(&state) => {}
    }
    drop(over);
}

/// Returns a while after the last who could want something of it has gone: what is unsent by then, its peer will not
/// take, and it would be kept for as long as the peer likes.
async fn deserted(state: &State) {
    while !state.is_left.load(Ordering::SeqCst) || state.in_use.load(Ordering::SeqCst) > 0 {
        state.deserted.notified().await;
    }
    sleep(LINGER).await;
}

/// Returns when somebody waits for an answer, nothing has come for a while, and a ping gets no answer either.
async fn silence(pings: Option<PingPong>, state: &State) {
    let Some(mut pings) = pings else { return pending().await };
    loop {
        while state.in_use.load(Ordering::SeqCst) == 0 {
            state.busy.notified().await;
        }
        let due = state.opened + Duration::from_millis(state.heard.load(Ordering::Relaxed)) + KEEP_ALIVE;
        if Instant::now() < due {
            sleep_until(due).await;
            continue;
        }
        match timeout(KEEP_ALIVE, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => state.hear(),
            // The connection has ended, which is told by itself.
            Ok(Err(_)) => pending().await,
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::DuplexStream;

    use super::*;

    type Server = h2::server::Connection<DuplexStream, Bytes>;

    async fn connect() -> (Connection, Server, TaskTracker) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let tasks = TaskTracker::new();
        let (connection, server) =
            tokio::join!(Connection::open(ours, &tasks), h2::server::handshake(theirs));
        (connection.unwrap(), server.unwrap(), tasks)
    }

    fn request() -> Request<Bytes> {
        Request::post("https://a.b/").body(Bytes::from_static(b"hello")).unwrap()
    }

    /// Answers each request after so long.
    async fn answer_after(mut server: Server, pause: Duration) {
        let mut answers = tokio::task::JoinSet::new();
        while let Some(Ok((_, mut respond))) = server.accept().await {
            answers.spawn(async move {
                sleep(pause).await;
                respond.send_response(Response::new(()), true).unwrap();
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_no_ping_is_given_up_after_twenty_seconds() {
        let (connection, mut server, _tasks) = connect().await;
        let mut place = connection.place();
        let began = Instant::now();
        let arrived = async {
            // It reads, and then nothing more.
            let request = server.accept().await;
            pending::<()>().await;
            drop(request);
        };
        let sent = tokio::select! {
            sent = place.send(request()) => sent,
            () = arrived => unreachable!("it waits for ever"),
        };
        assert!(matches!(sent, Err(Unanswered::Failed(Error::Silent))), "{sent:?}");
        assert_eq!(began.elapsed().as_secs(), 20);
        assert!(connection.is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_that_answers_pings_is_waited_for() {
        let (connection, server, _tasks) = connect().await;
        let mut place = connection.place();
        tokio::select! {
            () = answer_after(server, Duration::from_mins(2)) => panic!("the connection ended"),
            answer = place.send(request()) => assert_eq!(answer.unwrap().status(), 200),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_and_nothing_is_probed() {
        let (connection, server, _tasks) = connect().await;
        let mut serving = std::pin::pin!(answer_after(server, Duration::ZERO));
        tokio::select! {
            () = &mut serving => panic!("the connection ended"),
            answer = async { connection.place().send(request()).await } => drop(answer.unwrap()),
        }
        // Nobody serves any more, and nobody hears of it.
        sleep(Duration::from_mins(1)).await;
        assert!(!connection.is_over());
        assert!(connection.idle() >= Some(Duration::from_mins(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_for_a_peer_that_allows_no_stream() {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let tasks = TaskTracker::new();
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(0);
        let (connection, server) =
            tokio::join!(Connection::open(ours, &tasks), builder.handshake::<_, Bytes>(theirs));
        let (connection, mut server) = (connection.unwrap(), server.unwrap());
        tasks.spawn(async move { assert!(server.accept().await.is_none(), "a stream began") });
        while connection.has_room(1) {
            tokio::task::yield_now().await;
        }
        let mut place = connection.place();
        let body = Bytes::from(b"hello".to_vec());
        let request = Request::post("https://a.b/").body(body.clone()).unwrap();
        assert!(timeout(Duration::from_secs(1), place.send(request)).await.is_err());
        assert!(connection.is_over() && !body.is_unique());
        drop((connection, place));
        tasks.close();
        tasks.wait().await;
        assert!(body.is_unique());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_peer_does_not_take_is_not_kept_when_nobody_wants_it() {
        let (ours, theirs) = tokio::io::duplex(16 << 10);
        let tasks = TaskTracker::new();
        let (connection, server) = tokio::join!(
            Connection::open(ours, &tasks),
            h2::server::Builder::new()
                .initial_window_size(1 << 20)
                .initial_connection_window_size(1 << 20)
                .handshake::<_, Bytes>(theirs)
        );
        let (connection, server) = (connection.unwrap(), server.unwrap());
        let body = Bytes::from(vec![b'x'; 1 << 19]);
        let mut place = connection.place();
        let large = Request::post("https://a.b/").body(body.clone()).unwrap();
        timeout(Duration::from_secs(1), place.send(large)).await.unwrap_err();
        let began = Instant::now();
        drop((place, connection));
        tasks.close();
        tasks.wait().await;
        assert_eq!(began.elapsed().as_secs(), LINGER.as_secs());
        assert!(body.is_unique(), "its event is still in memory");
        drop(server);
    }

    #[tokio::test]
    async fn a_connection_that_is_dropped_ends_with_its_last_request() {
        let (connection, server, tasks) = connect().await;
        let mut place = connection.place();
        drop(connection);
        tasks.close();
        assert!(tasks.wait().now_or_never().is_none());
        let serving = answer_after(server, Duration::ZERO);
        let answer = async {
            place.send(request()).await.unwrap();
            drop(place);
            tasks.wait().await;
        };
        tokio::join!(serving, answer);
    }
}
