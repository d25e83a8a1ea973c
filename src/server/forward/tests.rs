//! A forwarder before a scripted pod with the store, over real TLS on loopback.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::UserInfo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::*;
use crate::clock::Clock;
use crate::config::{Address, ServiceName};
use crate::server::certificates::Certificates;
use crate::server::listener::Tracked;
use crate::server::testing::FakeApi;

const PUBLISH: Target<'static> = Target::CloudEvents { namespace: "team-a" };
const LIST: Target<'static> = Target::Deliveries { namespace: Some("team-a") };
const PATH: &str = "/apis/delivery.hookwright.dev/v1alpha1/namespaces/team-a/cloudevents?dryRun=All";

/// What the pod with the store does with a request.
#[derive(Clone, Copy)]
enum Act {
    Answer(u16),
    /// Ends it without an answer.
    Break,
    /// Waits to be let go.
    Hang,
}

#[derive(Default)]
struct Script {
    acts: Mutex<VecDeque<Act>>,
    seen: Mutex<Vec<(http::request::Parts, Bytes)>>,
    /// The body of the next answer.
    parts: Mutex<Option<Reply>>,
    peers: Mutex<HashSet<SocketAddr>>,
    came: Notify,
    go_on: CancellationToken,
}

impl Script {
    async fn answer(&self, peer: SocketAddr, request: Request<Incoming>) -> Result<Answer, std::io::Error> {
        let act = self.acts.lock().unwrap().pop_front().unwrap_or(Act::Answer(200));
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        self.seen.lock().unwrap().push((parts, body));
        self.peers.lock().unwrap().insert(peer);
        self.came.notify_one();
        let code = match act {
            Act::Answer(code) => code,
            Act::Break => return Err(std::io::ErrorKind::BrokenPipe.into()),
            Act::Hang => {
                self.go_on.cancelled().await;
                200
            }
        };
        let answer = Response::builder().status(code).header("x-kept", "yes");
        let body = Bytes::from_static(b"{\"from\":\"the store\"}");
        Ok(answer.body(self.parts.lock().unwrap().take().unwrap_or_else(|| Reply::from(body))).unwrap())
    }

    fn seen(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

/// A front and a pod with the store that have the same CA.
struct World {
    api: Arc<FakeApi>,
    script: Arc<Script>,
    front: Arc<Certificates>,
    store: Arc<Certificates>,
    forwarder: Arc<Forwarder>,
    address: SocketAddr,
    tasks: TaskTracker,
    metrics: Metrics,
}

impl World {
    async fn new() -> Self {
        let api = Arc::new(FakeApi::default());
        let service = ServiceName { namespace: "hook".to_owned(), name: "door".to_owned() };
        let certificates = || Certificates::new(api.client(), &service, Clock::system());
        let (front, store) = (Arc::new(certificates().of_front()), Arc::new(certificates()));
        front.refresh().await.unwrap();
        store.refresh().await.unwrap();
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (tasks, metrics) = (TaskTracker::new(), Metrics::default());
        let to = Address { host: "127.0.0.1".to_owned(), port: address.port() };
        let name = ServerName::try_from(front.server_name().to_owned()).unwrap();
        let link = Link::new(to, name, front.client_config().unwrap(), tasks.clone());
        let forwarder = Arc::new(Forwarder::new(link, 1000, tasks.clone(), metrics.clone()));
        Self { api, script: Arc::default(), front, store, forwarder, address, tasks, metrics }
    }

    /// Brings the pod with the store up, until the guard is dropped.
    async fn up(&self) -> DropGuard {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let tls = tokio_rustls::TlsAcceptor::from(self.store.server_config().unwrap());
        let (script, tasks, stop) = (Arc::clone(&self.script), self.tasks.clone(), CancellationToken::new());
        let stopped = stop.clone();
        self.tasks.spawn(async move {
            loop {
                let (socket, peer) = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap(),
                };
                let (tls, script, stopped) = (tls.clone(), Arc::clone(&script), stopped.clone());
                let tracked = Tracked::on(&tasks);
                tasks.spawn(async move {
                    let Ok(socket) = tls.accept(socket).await else { return };
                    assert!(socket.get_ref().1.peer_certificates().is_some(), "a front shows who it is");
                    let service = service_fn(move |request| {
                        let script = Arc::clone(&script);
                        async move { script.answer(peer, request).await }
                    });
                    let connection =
                        http2::Builder::new(tracked).serve_connection(TokioIo::new(socket), service);
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        _ = connection => {}
                    }
                });
            }
        });
        stop.drop_guard()
    }

    async fn ask(&self, target: Target<'_>, body: &'static [u8]) -> (u16, Value) {
        let user = User::new(UserInfo { username: Some("alice".to_owned()), ..UserInfo::default() }).unwrap();
        let method = if target == PUBLISH { Method::POST } else { Method::GET };
        let request = Request::builder().method(method).uri(PATH).header("authorization", "Bearer good");
        let (parts, body) = request.body(Full::from(body)).unwrap().into_parts();
        let answer = self.forwarder.answer(target, &user, &parts, body).await;
        let (parts, body) = answer.unwrap_or_else(Failure::into_answer).into_parts();
        if parts.status == StatusCode::SERVICE_UNAVAILABLE {
            assert!(parts.headers.contains_key("retry-after"));
        } else if parts.status.is_success() {
            assert_eq!(parts.headers["x-kept"], "yes");
        }
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), serde_json::from_slice(&body).unwrap())
    }

    /// Asks for the log, and answers the body before it has come.
    async fn list(&self) -> Reply {
        self.list_of("team-a").await.unwrap()
    }

    async fn list_of(&self, namespace: &str) -> Result<Reply, Failure> {
        let user = User::new(UserInfo { username: Some("alice".to_owned()), ..UserInfo::default() }).unwrap();
        let (parts, body) = Request::get(PATH).body(Full::<Bytes>::default()).unwrap().into_parts();
        let target = Target::Deliveries { namespace: Some(namespace) };
        Ok(self.forwarder.answer(target, &user, &parts, body).await?.into_body())
    }

    /// Answers the next request with parts that are given one by one.
    fn will_answer_in_parts(&self) -> tokio::sync::mpsc::UnboundedSender<std::io::Result<Bytes>> {
        let (sender, mut parts) = tokio::sync::mpsc::unbounded_channel();
        let parts = stream::poll_fn(move |cx| parts.poll_recv(cx));
        *self.script.parts.lock().unwrap() = Some(Reply::made(parts));
        sender
    }

    /// Asks until the answer is this.
    async fn ask_until(&self, target: Target<'_>, code: u16) {
        while self.ask(target, b"").await.0 != code {
            tokio::task::yield_now().await;
        }
    }

    fn counted(&self, result: &'static str) -> u64 {
        self.metrics.forwarded.get_or_create(&Forwarded { result }).get()
    }
}

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_request_goes_on_whole_in_the_users_name_over_one_connection() {
    let world = World::new().await;
    let _up = world.up().await;
    for _ in 0..10 {
        let (code, answer) = world.ask(PUBLISH, b"hello").await;
        assert_eq!((code, &answer["from"]), (200, &Value::from("the store")));
    }
    let seen = world.script.seen.lock().unwrap();
    let (parts, body) = &seen[9];
    assert_eq!(
        (&parts.method, parts.uri.path_and_query().unwrap().as_str(), &**body),
        (&Method::POST, PATH, &b"hello"[..])
    );
    assert_eq!(parts.uri.host(), Some("door.hook.svc"));
    assert_eq!(
        (&parts.headers["x-remote-user"], parts.headers.get("authorization")),
        (&"alice".parse().unwrap(), None)
    );
    assert_eq!((world.script.peers.lock().unwrap().len(), world.counted("answered")), (1, 10));
}

#[tokio::test]
async fn what_may_have_arrived_is_not_sent_again_unless_it_only_reads() {
    let world = World::new().await;
    let _up = world.up().await;
    world.script.acts.lock().unwrap().push_back(Act::Break);
    let (code, answer) = world.ask(PUBLISH, b"once").await;
    assert_eq!((code, world.script.seen(), world.counted("lost")), (503, 1, 1));
    assert!(message(&answer).contains("publish again with the same source and id"), "{answer}");
    world.script.acts.lock().unwrap().push_back(Act::Break);
    assert_eq!((world.ask(LIST, b"").await.0, world.script.seen()), (200, 3));
    world.script.acts.lock().unwrap().extend([Act::Break, Act::Break]);
    let (code, answer) = world.ask(LIST, b"").await;
    assert_eq!((code, world.script.seen()), (503, 5), "once more, not for ever");
    assert_eq!(message(&answer), "the pod with the store did not answer: try again");
}

#[tokio::test]
async fn a_connection_that_ended_while_nothing_was_sent_costs_no_request() {
    let world = World::new().await;
    let up = world.up().await;
    assert_eq!(world.ask(PUBLISH, b"").await.0, 200);
    drop(up);
    while world.forwarder.link.is_open().await {
        tokio::task::yield_now().await;
    }
    let (code, answer) = world.ask(PUBLISH, b"").await;
    assert_eq!(code, 503);
    assert!(message(&answer).contains("nothing was stored"), "{answer}");
    let seen = world.script.seen();
    let _up = world.up().await;
    world.ask_until(PUBLISH, 200).await;
    assert_eq!(world.script.seen(), seen + 1, "each that was refused did not arrive");
    assert_eq!(world.script.peers.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_does_not_answer_is_waited_for_once_by_all_and_for_two_seconds() {
    let world = Arc::new(World::new().await);
    // Takes connections, and says nothing on them.
    let listener = TcpListener::bind(world.address).await.unwrap();
    let begun = Instant::now();
    let asked = (0..50).map(|_| world.ask(PUBLISH, b""));
    let answers = futures::future::join_all(asked).await;
    assert!(answers.iter().all(|(code, _)| *code == 503));
    assert_eq!(begun.elapsed().as_secs(), 2);
    let taken = std::iter::from_fn(|| futures::FutureExt::now_or_never(listener.accept()));
    assert_eq!(taken.count(), 1);
    assert_eq!(world.ask(LIST, b"").await.0, 503);
    assert_eq!(begun.elapsed().as_secs(), 2, "just after a failure nobody waits");
    tokio::time::advance(Duration::from_secs(1)).await;
    let begun = Instant::now();
    let waits = async || {
        world.ask(PUBLISH, b"").await;
        begun.elapsed().as_secs()
    };
    let waits = futures::join!(waits(), waits(), waits());
    assert_eq!(waits, (2, 0, 0), "later one tries again, and the others do not wait for it");
}

#[tokio::test]
async fn a_client_that_goes_takes_nothing_back_and_costs_others_nothing() {
    let world = World::new().await;
    let _up = world.up().await;
    world.script.acts.lock().unwrap().push_back(Act::Hang);
    {
        let mut asking = std::pin::pin!(world.ask(PUBLISH, b""));
        while world.script.seen() == 0 {
            assert!(futures::poll!(asking.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(world.forwarder.writing.available_permits(), AT_ONCE.1 - 1, "it is still asked");
    world.script.go_on.cancel();
    while world.forwarder.writing.available_permits() < AT_ONCE.1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.ask(PUBLISH, b"").await.0, 200);
    assert_eq!((world.script.seen(), world.script.peers.lock().unwrap().len()), (2, 1));
}

#[tokio::test]
async fn an_answer_without_a_known_length_goes_on_as_it_comes() {
    let world = World::new().await;
    let _up = world.up().await;
    let parts = world.will_answer_in_parts();
    parts.send(Ok(Bytes::from_static(b"[1,"))).unwrap();
    let mut body = world.list().await;
    let next = async |body: &mut Reply| body.frame().await.map(|frame| frame.unwrap().into_data().unwrap());
    assert_eq!(next(&mut body).await.as_deref(), Some(&b"[1,"[..]), "though the rest is not there");
    assert_eq!(world.forwarder.reading.available_permits(), AT_ONCE.0, "it keeps no other reader out");
    assert_eq!(world.forwarder.listing.all.available_permits(), LISTING - 1);
    parts.send(Ok(Bytes::from_static(b"2]"))).unwrap();
    drop(parts);
    assert_eq!(next(&mut body).await.as_deref(), Some(&b"2]"[..]));
    assert_eq!(next(&mut body).await, None);
    drop(body);
    assert_eq!(world.forwarder.listing.all.available_permits(), LISTING);

    let parts = world.will_answer_in_parts();
    parts.send(Ok(Bytes::from_static(b"[1,"))).unwrap();
    let mut body = world.list().await;
    assert!(next(&mut body).await.is_some());
    parts.send(Err(std::io::ErrorKind::BrokenPipe.into())).unwrap();
    assert!(body.frame().await.unwrap().is_err(), "what ends early is not taken for whole");
}

#[tokio::test]
async fn clients_that_do_not_read_hold_up_nobody_else() {
    let world = World::new().await;
    let _up = world.up().await;
    let mut unread = Vec::new();
    for number in 0..LISTING {
        let parts = world.will_answer_in_parts();
        for _ in 0..16 {
            parts.send(Ok(Bytes::from(vec![b' '; 64 << 10]))).unwrap();
        }
        unread.push((world.list_of(&format!("team-{}", number / LISTING_OF_ONE)).await.unwrap(), parts));
    }
    assert_eq!(world.ask(PUBLISH, b"").await.0, 200);
    assert_eq!(world.ask(LIST, b"").await.0, 200, "one that is whole");
}

#[tokio::test]
async fn lists_that_one_namespace_leaves_lying_keep_no_other_from_its_own() {
    let world = World::new().await;
    let _up = world.up().await;
    let mut unread = Vec::new();
    let mut list = async |namespace| {
        let parts = world.will_answer_in_parts();
        parts.send(Ok(Bytes::from_static(b"[1,"))).unwrap();
        unread.push((world.list_of(namespace).await?, parts));
        Ok::<_, Failure>(())
    };
    for _ in 0..LISTING_OF_ONE {
        list("flood").await.unwrap();
    }
    assert_eq!(list("flood").await.unwrap_err().reason, Reason::ServiceUnavailable);
    list("other").await.unwrap();
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_here() {
    let world = World::new().await;
    let _up = world.up().await;
    let (code, answer) = world.ask(PUBLISH, &[b'x'; 1001]).await;
    assert_eq!(
        (code, &answer["reason"], world.script.seen()),
        (413, &Value::from("RequestEntityTooLarge"), 0)
    );
}

#[tokio::test]
async fn only_so_many_are_asked_at_once_and_the_others_are_told_to_come_again() {
    let world = Arc::new(World::new().await);
    let _up = world.up().await;
    world.script.acts.lock().unwrap().extend(vec![Act::Hang; AT_ONCE.0]);
    let asking: Vec<_> = (0..AT_ONCE.0)
        .map(|_| {
            let world = Arc::clone(&world);
            world.tasks.clone().spawn(async move { world.ask(LIST, b"").await.0 })
        })
        .collect();
    while world.script.seen() < AT_ONCE.0 {
        world.script.came.notified().await;
    }
    let (code, answer) = world.ask(LIST, b"").await;
    assert_eq!((code, world.counted("busy")), (503, 1));
    assert!(message(&answer).contains("too many requests"), "{answer}");
    assert_eq!(world.ask(PUBLISH, b"").await.0, 200, "who publishes is not held up by who reads");
    world.script.go_on.cancel();
    for answered in futures::future::join_all(asking).await {
        assert_eq!(answered.unwrap(), 200);
    }
}

#[tokio::test]
async fn a_front_that_is_not_known_any_more_shows_its_new_certificate_and_no_client_gets_a_401() {
    let world = World::new().await;
    let _up = world.up().await;
    assert_eq!(world.ask(PUBLISH, b"").await.0, 200);
    // Somebody deleted the Secret: both have another CA now, and the connection is of the old one.
    let path = "/api/v1/namespaces/hook/secrets/hookwright-ca";
    world.api.objects.lock().unwrap().remove(path);
    world.store.refresh().await.unwrap();
    world.front.refresh().await.unwrap();
    world.script.acts.lock().unwrap().push_back(Act::Answer(401));
    assert_eq!(world.ask(PUBLISH, b"").await.0, 200);
    assert_eq!(world.script.peers.lock().unwrap().len(), 2, "over a new connection");
    world.script.acts.lock().unwrap().extend([Act::Answer(401), Act::Answer(401)]);
    let (code, answer) = world.ask(PUBLISH, b"").await;
    assert_eq!((code, world.counted("unknown")), (503, 1), "{answer}");
}

#[tokio::test]
async fn a_pod_with_a_certificate_of_another_ca_is_told_nothing() {
    let world = World::new().await;
    let _up = world.up().await;
    let path = "/api/v1/namespaces/hook/secrets/hookwright-ca";
    world.api.objects.lock().unwrap().remove(path);
    world.store.refresh().await.unwrap();
    assert_eq!((world.ask(PUBLISH, b"secret").await.0, world.script.seen()), (503, 0));
    world.front.refresh().await.unwrap();
    world.ask_until(PUBLISH, 200).await;
}
