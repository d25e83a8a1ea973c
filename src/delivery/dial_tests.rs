//! Hosts of several addresses, against real TLS on loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::client::HttpSender;
use super::testing::START;
use super::testing::attempts::{DENIED, TIMED_OUT, error, job, to};
use super::testing::name_server::{NameServer, Says};
use super::testing::receiver::{Authority, Receiver};
use super::{Sender as _, Sent};
use crate::clock::Clock;
use crate::model::address::Policy;
use crate::model::verdict::Verdict;
use crate::routes::{Endpoint, TlsMaterial};

const BOTH: Says = Says::Addresses(&["127.0.0.1", "127.0.0.2"]);

/// What the first address does before it hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hangs {
    Tcp,
    Tls,
    Request,
}

/// `two.example`: its first address hangs, its second answers each request and closes.
struct Two {
    url: String,
    tls: TlsMaterial,
    sender: HttpSender,
    first: Arc<AtomicUsize>,
    second: Receiver,
    servers: NameServer,
    _tasks: JoinSet<()>,
}

impl Two {
    async fn start(hangs: Hangs) -> Self {
        let authority = Authority::new("ours");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let other = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
        let second = Receiver::start_on(other, &authority, "two.example");
        let acceptor = TlsAcceptor::from(Arc::new(authority.server("two.example", None)));
        let first = Arc::<AtomicUsize>::default();
        let (count, mut tasks) = (Arc::clone(&first), JoinSet::new());
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let acceptor = acceptor.clone();
                open.spawn(async move {
                    if hangs == Hangs::Tcp {
                        let _stream = stream;
                        return std::future::pending::<()>().await;
                    }
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    if hangs == Hangs::Request {
                        let _ = stream.read(&mut [0; 4096]).await;
                    }
                    std::future::pending::<()>().await;
                });
            }
        });
        let servers = NameServer::start([("two.example.", BOTH)]).await;
        let guard = servers.guard(Policy::new(["127.0.0.0/8".parse().unwrap()], []));
        let sender = HttpSender::new(Arc::new(guard), Clock::manual(START).0);
        let url = format!("https://two.example:{port}/");
        Self { url, tls: authority.trusted(), sender, first, second, servers, _tasks: tasks }
    }

    fn within(&self, seconds: u64) -> Arc<Endpoint> {
        let timeout = Duration::from_secs(seconds);
        Arc::new(Endpoint { timeout, ..to(&self.url, self.tls.clone()) })
    }

    async fn send(&self, endpoint: &Arc<Endpoint>) -> Sent {
        self.sender.send(job(Arc::clone(endpoint))).await
    }

    fn first(&self) -> usize {
        self.first.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn an_address_that_hangs_in_tls_costs_no_attempt_and_is_tried_last_after() {
    let two = Two::start(Hangs::Tcp).await;
    let endpoint = two.within(5);
    let sent = two.send(&endpoint).await;
    assert_eq!((sent.verdict, error(&sent)), (Verdict::Delivered, ""));
    assert_eq!((two.first(), two.second.connections()), (1, 1));
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(two.send(&endpoint).await.verdict, Verdict::Delivered);
    }
    assert!(began.elapsed() < Duration::from_secs(1), "they begin with the one that answers");
    assert_eq!((two.first(), two.second.connections()), (1, 4));
}

#[tokio::test]
async fn a_short_time_still_has_room_for_the_second_address() {
    let two = Two::start(Hangs::Tcp).await;
    let endpoint = two.within(1);
    let sent = two.send(&endpoint).await;
    assert_eq!((sent.verdict, error(&sent)), (Verdict::Delivered, ""));
}

#[tokio::test]
async fn after_an_address_that_does_not_answer_the_next_attempt_begins_with_another() {
    for hangs in [Hangs::Tls, Hangs::Request] {
        let two = Two::start(hangs).await;
        let endpoint = two.within(1);
        let sent = two.send(&endpoint).await;
        assert_eq!((sent.verdict, error(&sent)), (TIMED_OUT, "no answer within 1s"), "{hangs:?}");
        assert_eq!(two.second.connections(), 0, "what may have been received is not sent to another");
        for _ in 0..3 {
            assert_eq!(two.send(&endpoint).await.verdict, Verdict::Delivered, "{hangs:?}");
        }
        assert_eq!((two.first(), two.second.connections()), (1, 3), "{hangs:?}");
    }
}

#[tokio::test]
async fn a_name_that_once_resolves_wrongly_fails_one_attempt() {
    let two = Two::start(Hangs::Tcp).await;
    let endpoint = two.within(5);
    two.servers.says("two.example.", Says::Addresses(&["10.0.0.1"]));
    let sent = two.send(&endpoint).await;
    let sentence = "the host name resolves to addresses that deliveries may not reach";
    assert_eq!((sent.verdict, error(&sent)), (DENIED, sentence));
    two.servers.says("two.example.", Says::Addresses(&["127.0.0.2"]));
    assert_eq!(two.send(&endpoint).await.verdict, Verdict::Delivered, "it is asked for again");
    assert_eq!(two.first(), 0);
}
