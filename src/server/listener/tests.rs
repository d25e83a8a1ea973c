//! What is about time runs in memory with paused time; what is about places and stopping, over real sockets.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;

/// In which everything that should happen has happened, also on a machine that is busy.
const IN_TIME: Duration = Duration::from_mins(5);

#[derive(Default)]
struct Echo {
    entered: Notify,
    go_on: Notify,
    answered: AtomicUsize,
    trusts: tokio::sync::watch::Sender<bool>,
}

impl Handler for Echo {
    async fn handle<'a>(&'a self, peer: Peer, request: Request<&'a mut RequestBody>) -> Answer {
        assert!(peer.address.ip().is_loopback());
        if request.uri().path() == "/wait" {
            self.entered.notify_one();
            self.go_on.notified().await;
        }
        let length = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
        self.answered.fetch_add(1, Ordering::SeqCst);
        Response::new(Bytes::from(length.to_string()).into())
    }

    fn trusts(&self, _: &Peer) -> bool {
        *self.trusts.borrow()
    }

    async fn comes_to_trust(&self, _: &Peer) {
        self.trusts.subscribe().wait_for(|trusts| *trusts).await.unwrap();
    }
}

struct Running {
    echo: Arc<Echo>,
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

async fn start(limits: Limits) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, echo, shutdown) =
        (listener.local_addr().unwrap(), Arc::default(), CancellationToken::new());
    let serving = serve(listener, None, Arc::clone(&echo), limits, shutdown.clone());
    Running { echo, address, shutdown, serving: TaskTracker::new().spawn(serving) }
}

impl Running {
    async fn connect(&self) -> Client<TcpStream> {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    async fn stopped(self) -> Duration {
        let started = Instant::now();
        self.shutdown.cancel();
        timeout(IN_TIME, self.serving).await.unwrap().unwrap();
        started.elapsed()
    }
}

struct Client<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    async fn ask(&mut self, path: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
        self.answer().await
    }

    /// What comes next; empty at the end of the connection.
    async fn answer(&mut self) -> String {
        let mut buffer = vec![0; 4096];
        let read = timeout(IN_TIME, self.0.read(&mut buffer)).await.expect("in time").unwrap_or(0);
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }

    /// How long until the server ends the connection.
    async fn closed(&mut self) -> Duration {
        let started = Instant::now();
        while !self.answer().await.is_empty() {}
        started.elapsed()
    }
}

fn is_ok(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 OK\r\n")
}

/// A connection in memory, so that time can be paused.
fn in_memory(protocol: &'static [u8]) -> (Arc<Echo>, Client<DuplexStream>) {
    let echo = Arc::default();
    let client = in_memory_of(protocol, &echo);
    (echo, client)
}

fn in_memory_of(protocol: &'static [u8], echo: &Arc<Echo>) -> Client<DuplexStream> {
    let (client, socket) = tokio::io::duplex(64 << 10);
    let (echo, activity) = (Arc::clone(echo), Arc::new(Activity::new()));
    let server = Server::new(None, Arc::clone(&echo), Limits::default(), CancellationToken::new());
    let peer = Peer { address: ([127, 0, 0, 1], 1).into(), certificates: Arc::new([]) };
    TaskTracker::new().spawn(async move {
        match protocol {
            b"h2" => server.http2(socket, peer, &activity).await,
            _ => server.http1(socket, peer, &activity).await,
        }
    });
    Client(client)
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_nothing_is_let_go_after_10_seconds() {
    let (_, mut client) = in_memory(b"http/1.1");
    assert_eq!(client.closed().await.as_secs(), 10);
    let (_, mut client) = in_memory(b"h2");
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    client.send("\0\0\0\x04\0\0\0\0\0").await;
    assert_eq!(client.closed().await.as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_head_has_10_seconds_in_all_however_it_trickles_in_also_the_second_one() {
    for requests_before in [0, 1] {
        let (_, mut client) = in_memory(b"http/1.1");
        for _ in 0..requests_before {
            assert!(is_ok(&client.ask("/").await));
            sleep(Duration::from_secs(100)).await;
        }
        let started = Instant::now();
        client.send("GET / HTTP/1.1\r\nhost: ").await;
        while client.0.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(500)).await;
        }
        let lasted = started.elapsed().as_secs();
        assert!((10..=11).contains(&lasted), "{lasted} s after {requests_before} requests");
    }
}

#[tokio::test(start_paused = true)]
async fn between_two_requests_a_connection_may_be_idle_for_2_minutes() {
    let (_, mut client) = in_memory(b"http/1.1");
    for _ in 0..3 {
        assert!(is_ok(&client.ask("/").await));
        sleep(Duration::from_secs(119)).await;
    }
    assert!(is_ok(&client.ask("/").await));
    assert_eq!(client.closed().await.as_secs(), 120);
}

#[tokio::test(start_paused = true)]
async fn who_comes_to_be_trusted_has_his_connection_ended_between_two_requests() {
    for under_way in [false, true] {
        let (echo, mut client) = in_memory(b"http/1.1");
        assert!(is_ok(&client.ask("/").await));
        let large = format!("GET / HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "b".repeat(100_000));
        if under_way {
            client.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await;
            echo.entered.notified().await;
        }
        echo.trusts.send_replace(true);
        if under_way {
            echo.go_on.notify_one();
            assert!(is_ok(&client.answer().await));
        }
        assert_eq!(client.closed().await.as_secs(), 0);
        let mut client = in_memory_of(b"http/1.1", &echo);
        client.send(&large).await;
        assert!(is_ok(&client.answer().await));
        sleep(Duration::from_mins(1)).await;
        assert!(is_ok(&client.ask("/").await), "and stays then");
    }
    let (echo, mut client) = in_memory(b"h2");
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    assert!(!client.answer().await.is_empty(), "the connection is made");
    echo.trusts.send_replace(true);
    assert!(client.closed().await.as_secs() < 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_may_take_longer_than_all_waiting() {
    let (echo, mut client) = in_memory(b"http/1.1");
    client.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await;
    sleep(Duration::from_hours(1)).await;
    echo.go_on.notify_one();
    assert!(is_ok(&client.answer().await));
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let running = start(Limits { heads: Heads { bytes: 8 << 10, headers: 100 }, ..Limits::default() }).await;
    for head in [format!("x: {}\r\n", "y".repeat(9 << 10)), "x: y\r\n".repeat(200)] {
        let mut client = running.connect().await;
        client.send(&format!("GET / HTTP/1.1\r\nhost: x\r\n{head}\r\n")).await;
        let answer = client.answer().await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    assert_eq!(running.echo.answered.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn when_all_places_are_taken_the_one_idle_for_longest_gives_way() {
    let running = start(Limits { connections: 2, ..Limits::default() }).await;
    let (mut first, mut second) = (running.connect().await, running.connect().await);
    assert!(is_ok(&first.ask("/").await));
    assert!(is_ok(&second.ask("/").await));
    assert!(is_ok(&first.ask("/").await), "so the second is idle for longer");
    let mut third = running.connect().await;
    assert!(is_ok(&third.ask("/").await));
    second.closed().await;
    assert!(is_ok(&first.ask("/").await));
    // One that has not even said what it wants gives way too.
    let mut silent = running.connect().await;
    third.closed().await;
    assert!(is_ok(&first.ask("/").await));
    let mut fifth = running.connect().await;
    assert!(is_ok(&fifth.ask("/").await));
    silent.closed().await;
}

#[tokio::test]
async fn when_all_places_are_at_work_a_new_connection_is_refused_and_none_is_cut() {
    let running = start(Limits { connections: 1, ..Limits::default() }).await;
    let mut at_work = running.connect().await;
    at_work.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await;
    running.echo.entered.notified().await;
    let mut refused = running.connect().await;
    assert_eq!(refused.ask("/").await, "");
    running.echo.go_on.notify_one();
    assert!(is_ok(&at_work.answer().await));
    let mut next = running.connect().await;
    assert!(is_ok(&next.ask("/").await));
}

#[tokio::test]
async fn stopping_lets_requests_end_and_takes_no_new_ones() {
    let running = start(Limits::default()).await;
    let (mut idle, mut fresh, mut at_work) =
        (running.connect().await, running.connect().await, running.connect().await);
    assert!(is_ok(&idle.ask("/").await));
    at_work.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await;
    running.echo.entered.notified().await;
    running.shutdown.cancel();
    idle.closed().await;
    fresh.closed().await;
    assert!(TcpStream::connect(running.address).await.is_err(), "nobody listens");
    running.echo.go_on.notify_one();
    let answer = at_work.answer().await;
    assert!(is_ok(&answer) && answer.contains("connection: close"), "{answer}");
    assert!(running.stopped().await < IN_TIME);
}

#[tokio::test]
async fn what_does_not_end_within_the_drain_time_is_cut() {
    let running = start(Limits { drain: Duration::from_millis(150), ..Limits::default() }).await;
    let mut stuck = running.connect().await;
    stuck.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await;
    running.echo.entered.notified().await;
    assert!(running.stopped().await.as_millis() >= 150);
    stuck.closed().await;
}

/// Heads that are almost right.
fn mutations() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: [&str; 24] = [
        "GET / HTTP/1.1",
        "POST /a?b HTTP/1.1",
        "\r\n",
        "\n",
        "\r",
        "host: x",
        "Host:",
        ":",
        " ",
        "\t",
        "a: b",
        "\0",
        "content-length: 3",
        "content-length: 99999999999999999999",
        "transfer-encoding: chunked",
        "chunked",
        "abc",
        "GET https://x/ HTTP/1.0",
        "HTTP/1.1",
        "{",
        "\u{e9}",
        "connection: close",
        "expect: 100-continue",
        "upgrade: h2c",
    ];
    let lines = "GET / HTTP/1.1\r\nhost: x\r\na: b\r\n\r\n";
    let pieces = proptest::collection::vec(proptest::sample::select(&PIECES[..]), 1..8);
    (pieces, 0..lines.len(), 0..lines.len(), any::<bool>()).prop_map(move |(pieces, from, to, alone)| {
        let (from, to) = (from.min(to), from.max(to));
        let (before, after) = if alone { ("", "\r\n\r\n") } else { (&lines[..from], &lines[to..]) };
        [before, &pieces.concat(), after].concat().into_bytes()
    })
}

proptest! {
    #[test]
    fn no_head_is_refused_without_a_word(head in mutations()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let answer = runtime.block_on(async {
            let (echo, mut client) = in_memory(b"http/1.1");
            echo.go_on.notify_one();
            client.0.write_all(&head).await.unwrap();
            client.0.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.0.read_to_end(&mut answer).await.unwrap();
            String::from_utf8(answer).unwrap()
        });
        prop_assert!(!answer.contains("content-length: 0"), "{answer}");
        prop_assert!(!answer.contains("HTTP/1.1 4") || answer.contains("\"kind\":\"Status\""), "{answer}");
    }
}
