//! Requests over connections that end just then, against a receiver on loopback.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::client::HttpSender;
use super::testing::attempts::{TIMED_OUT, UNREACHABLE, all_at_once, error, job, sender, to};
use super::testing::event;
use super::testing::frames::{FrameReceiver, INTERNAL_ERROR, NO_ERROR, Reply, data, go_away, head};
use super::testing::receiver::{Authority, read_request};
use super::{Job, Sender as _, Sent};
use crate::model::ids::DeliveryName;
use crate::model::verdict::Verdict;
use crate::routes::Endpoint;

const CLOSED: &str = "the connection was closed before the answer was complete";

/// What it does with a request.
#[derive(Clone, Copy, Debug)]
enum Does {
    /// Reads it, and answers 200.
    Answers,
    /// The same, and takes no other request and no other connection.
    AnswersLast,
    /// Answers 200 to a request of which it takes no more than the first byte.
    AnswersEarly,
    /// Closes the connection at the first byte of it.
    Closes,
    /// The same, when the whole of it has come.
    ReadsAndCloses,
    /// Answers with these bytes, and closes.
    Begins(&'static str),
    Hangs,
}

/// A receiver over HTTP/1.1 that does by the numbers of connection and request, both from 0.
struct Fickle {
    endpoint: Arc<Endpoint>,
    sender: HttpSender,
    connections: Arc<AtomicUsize>,
    answered: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Fickle {
    async fn start(does: impl Fn(usize, usize) -> Does + Send + Sync + Copy + 'static) -> Self {
        let authority = Authority::new("ours");
        let acceptor = TlsAcceptor::from(Arc::new(authority.server("x.localhost", None)));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("https://x.localhost:{}/", listener.local_addr().unwrap().port());
        let connections = Arc::<AtomicUsize>::default();
        let answered = Arc::<Mutex<Vec<String>>>::default();
        let (count, log) = (Arc::clone(&connections), Arc::clone(&answered));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (acceptor, log) = (acceptor.clone(), Arc::clone(&log));
                let is_last = matches!(does(number, 0), Does::AnswersLast);
                open.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    for request in 0.. {
                        match does(number, request) {
                            Does::Closes => {
                                let _ = stream.read(&mut [0; 1]).await;
                                return;
                            }
                            Does::ReadsAndCloses => {
                                read_request(&mut stream).await;
                                return;
                            }
                            Does::Begins(text) => {
                                read_request(&mut stream).await;
                                let _ = stream.write_all(text.as_bytes()).await;
                                return;
                            }
                            Does::Hangs => std::future::pending().await,
                            Does::AnswersLast => {
                                read_request(&mut stream).await;
                                let answer =
                                    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                                let _ = stream.write_all(answer).await;
                                return;
                            }
                            Does::AnswersEarly => {
                                let _ = stream.read(&mut [0; 1]).await;
                                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                                let _ = stream.write_all(answer).await;
                                std::future::pending::<()>().await;
                            }
                            Does::Answers => {
                                let Some(request) = read_request(&mut stream).await else { return };
                                let id = request.lines().find_map(|line| line.strip_prefix("webhook-id: "));
                                log.lock().unwrap().push(id.unwrap().to_owned());
                                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                                stream.write_all(answer).await.unwrap();
                            }
                        }
                    }
                });
                if is_last {
                    break;
                }
            }
            drop(listener);
            while open.join_next().await.is_some() {}
        });
        let endpoint = Endpoint { timeout: Duration::from_secs(2), ..to(&url, authority.trusted()) };
        Self { endpoint: Arc::new(endpoint), sender: sender(), connections, answered, _tasks: tasks }
    }

    async fn send(&self) -> Sent {
        self.sender.send(job(Arc::clone(&self.endpoint))).await
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn delivered(sent: &Sent) {
    assert_eq!((sent.verdict, error(sent)), (Verdict::Delivered, ""), "{:?}", sent.attempt);
}

#[tokio::test]
async fn a_receiver_that_closes_what_is_idle_costs_no_attempt_of_a_thousand() {
    const SERVES: usize = 4;
    for last in [Does::Closes, Does::ReadsAndCloses] {
        let receiver = match last {
            Does::Closes => Fickle::start(|_, n| if n < SERVES { Does::Answers } else { Does::Closes }).await,
            _ => Fickle::start(|_, n| if n < SERVES { Does::Answers } else { Does::ReadsAndCloses }).await,
        };
        for number in 0..500_u128 {
            let name = DeliveryName::from_bytes(number.to_be_bytes());
            delivered(&receiver.sender.send(Job { name, ..job(Arc::clone(&receiver.endpoint)) }).await);
        }
        let answered = receiver.answered.lock().unwrap().clone();
        assert_eq!(answered.len(), 500, "once each");
        assert_eq!(answered.into_iter().collect::<HashSet<_>>().len(), 500);
        assert_eq!(receiver.connections(), 500 / SERVES);
    }
}

#[tokio::test]
async fn a_request_is_made_up_for_once_and_only_where_nothing_was_answered() {
    let cut = "HTTP/1.1 20";
    let first = |number, request| (number, request) == (0, 0);
    // What the second request of the first connection meets, and the first of the second connection.
    for (second, fresh, verdict, sentence, connections) in [
        (Does::Closes, Does::Answers, Verdict::Delivered, "", 2),
        (Does::Closes, Does::Closes, UNREACHABLE, CLOSED, 2),
        (Does::Closes, Does::Hangs, TIMED_OUT, "no answer within 2s", 2),
        (Does::Begins(cut), Does::Answers, UNREACHABLE, CLOSED, 1),
        (Does::Begins("x"), Does::Answers, UNREACHABLE, "the answer is not HTTP", 1),
        (Does::Hangs, Does::Answers, TIMED_OUT, "no answer within 2s", 1),
    ] {
        let receiver = Fickle::start(move |number, request| match number {
            _ if first(number, request) => Does::Answers,
            0 => second,
            _ => fresh,
        })
        .await;
        delivered(&receiver.send().await);
        let began = std::time::Instant::now();
        let sent = receiver.send().await;
        assert!(began.elapsed() < Duration::from_secs(4), "{second:?} {fresh:?}");
        assert_eq!((sent.verdict, error(&sent)), (verdict, sentence), "{second:?} {fresh:?}");
        assert_eq!(receiver.connections(), connections, "{second:?} {fresh:?}");
    }
}

#[tokio::test]
async fn an_event_that_was_never_sent_is_no_success() {
    // Of the first the connection is still busy when the second is to go out, or just gone.
    const MORE_THAN_SOCKETS_HOLD: usize = 16 << 20;
    for (does, size, verdict) in
        [(Does::AnswersEarly, MORE_THAN_SOCKETS_HOLD, TIMED_OUT), (Does::AnswersLast, 1, UNREACHABLE)]
    {
        let receiver = Fickle::start(move |_, _| does).await;
        let sized = crate::store::Event { data: vec![b'x'; size].into(), ..event(b"") };
        let first = Job { event: Arc::new(sized), ..job(Arc::clone(&receiver.endpoint)) };
        delivered(&receiver.sender.send(first).await);
        let sent = receiver.send().await;
        assert_eq!((sent.verdict, sent.attempt.status), (verdict, None), "{does:?} {:?}", sent.attempt);
    }
}

#[tokio::test]
async fn a_request_on_a_new_connection_is_not_sent_twice() {
    let receiver = Fickle::start(|_, _| Does::ReadsAndCloses).await;
    let sent = receiver.send().await;
    assert_eq!((sent.verdict, error(&sent)), (UNREACHABLE, CLOSED));
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn a_body_that_was_sent_in_part_is_sent_again_whole() {
    let receiver = Fickle::start(
        |number, request| if (number, request) == (0, 1) { Does::Closes } else { Does::Answers },
    )
    .await;
    delivered(&receiver.send().await);
    let large = crate::store::Event { data: vec![b'x'; 1 << 20].into(), ..event(b"") };
    let job = Job { event: Arc::new(large), ..job(Arc::clone(&receiver.endpoint)) };
    delivered(&receiver.sender.send(job).await);
    assert_eq!(receiver.connections(), 2);
}

/// A receiver over HTTP/2 whose first connection ends so at its second request.
async fn ending(end: fn() -> Vec<Reply>, others_end: bool) -> (FrameReceiver, Arc<Endpoint>, HttpSender) {
    let authority = Authority::new("ours");
    let receiver = FrameReceiver::start(&authority, &[], move |frame| {
        match (frame.connection, frame.ends_request(), frame.stream) {
            (0, true, 1) => vec![head(1, 200, true)],
            (0, true, _) => end(),
            (_, true, _) if others_end => vec![Reply::Close],
            (_, true, stream) => vec![head(stream, 200, false), data(stream, "thanks", true)],
            _ => Vec::new(),
        }
    })
    .await;
    let endpoint = Arc::new(to(&receiver.url(), authority.trusted()));
    (receiver, endpoint, sender())
}

#[tokio::test]
async fn over_http2_a_connection_that_ends_is_made_up_for_once() {
    let ends: [fn() -> Vec<Reply>; 3] = [
        || vec![Reply::Close],
        || vec![go_away(3, NO_ERROR), Reply::Close],
        || vec![go_away(3, INTERNAL_ERROR), Reply::Close],
    ];
    for end in ends {
        for others_end in [false, true] {
            let (receiver, endpoint, sender) = ending(end, others_end).await;
            delivered(&sender.send(job(Arc::clone(&endpoint))).await);
            let sent = sender.send(job(endpoint)).await;
            let expected = if others_end { (UNREACHABLE, CLOSED) } else { (Verdict::Delivered, "") };
            assert_eq!((sent.verdict, error(&sent)), expected);
            assert_eq!(receiver.begun(), [(0, 1), (0, 3), (1, 1)]);
            assert_eq!(receiver.head(0, 1), receiver.head(1, 1), "it is made again as it was");
        }
    }
}

#[tokio::test]
async fn all_requests_of_a_connection_that_ends_go_over_one_that_is_new() {
    const COUNT: usize = 30;
    let authority = Authority::new("ours");
    let came = AtomicUsize::new(0);
    let receiver = FrameReceiver::start(&authority, &[], move |frame| {
        match (frame.connection, frame.ends_request(), frame.stream) {
            (0, true, 1) => vec![head(1, 200, true)],
            (0, true, _) if came.fetch_add(1, Ordering::SeqCst) + 1 == COUNT => vec![Reply::Close],
            (1, true, stream) => vec![head(stream, 200, true)],
            _ => Vec::new(),
        }
    })
    .await;
    let (endpoint, sender) = (Arc::new(to(&receiver.url(), authority.trusted())), sender());
    delivered(&sender.send(job(Arc::clone(&endpoint))).await);
    all_at_once(&sender, endpoint, COUNT).await.iter().for_each(delivered);
    assert_eq!(receiver.connections(), 2);
    assert_eq!(receiver.begun().len(), 1 + 2 * COUNT);
}
