//! The whole door over real TLS on loopback; Kubernetes and the store are those of `testing`.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use reqwest::Version;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::clock::{Clock, Hand};
use crate::config::ServiceName;
use crate::model::time::UnixMillis;
use crate::server::certificates::Certificates;
use crate::server::listener::{Limits, serve};
use crate::server::testing::{START, World, event};

mod answers;

const DAY: Duration = Duration::from_hours(24);
const IN_TIME: Duration = Duration::from_mins(1);
const HTTP_1: &[&[u8]] = &[b"http/1.1"];
const HTTP_2: &[&[u8]] = &[b"h2"];

#[derive(Debug)]
struct ByClock(Clock);

impl rustls::time_provider::TimeProvider for ByClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.now().since(UnixMillis::from_millis(0))))
    }
}

type Identity = (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>);

struct Running {
    world: World,
    certificates: Arc<Certificates>,
    clock: Clock,
    hand: Hand,
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
    /// Told of each request that was answered.
    progress: Notify,
}

async fn start(limits: Limits) -> Running {
    let world = World::new();
    let (clock, hand) = Clock::manual(START);
    let service = ServiceName { namespace: "hook".to_owned(), name: "door".to_owned() };
    let certificates = Arc::new(Certificates::new(world.api.client(), &service, clock.clone()));
    certificates.refresh().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
    let tls = Some(certificates.server_config().unwrap());
    let serving = serve(listener, tls, Arc::clone(&world.door), limits, shutdown.clone());
    let serving = TaskTracker::new().spawn(serving);
    Running { world, certificates, clock, hand, address, shutdown, serving, progress: Notify::new() }
}

/// A client that trusts this bundle at the time of this clock.
fn client(bundle: &str, clock: &Clock, protocols: &[&[u8]], address: SocketAddr) -> reqwest::Client {
    client_with(None, bundle, clock, protocols, address)
}

/// One that shows a certificate.
fn client_with(
    identity: Option<Identity>,
    bundle: &str,
    clock: &Clock,
    protocols: &[&[u8]],
    address: SocketAddr,
) -> reqwest::Client {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_details(provider, Arc::new(ByClock(clock.clone())))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((certificate, key)) => config.with_client_auth_cert(vec![certificate], key.into()).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .no_proxy()
        .resolve("door.hook.svc", address)
        .timeout(IN_TIME)
        .build()
        .unwrap()
}

impl Running {
    fn client(&self, protocols: &[&[u8]]) -> reqwest::Client {
        client(&self.certificates.bundle().unwrap(), &self.clock, protocols, self.address)
    }

    fn post(&self, client: &reqwest::Client, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        post(client, self.address).body(body)
    }
}

fn post(client: &reqwest::Client, address: SocketAddr) -> reqwest::RequestBuilder {
    let path = "apis/delivery.hookwright.dev/v1alpha1/namespaces/team-a/cloudevents";
    client.post(format!("https://door.hook.svc:{}/{path}", address.port())).bearer_auth("good")
}

#[tokio::test]
async fn events_are_published_by_http_1_and_http_2_with_the_published_ca() {
    let running = start(Limits::default()).await;
    for (protocols, version) in [(HTTP_1, Version::HTTP_11), (HTTP_2, Version::HTTP_2)] {
        let client = running.client(protocols);
        let answer = running.post(&client, event("1", "a")).send().await.unwrap();
        assert_eq!((answer.version(), answer.status().as_u16()), (version, 202));
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(answer["duplicate"] == true, version == Version::HTTP_2, "{answer}");
    }
    running.shutdown.cancel();
    timeout(IN_TIME, running.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn many_requests_share_one_http_2_connection() {
    let running = start(Limits { connections: 1, ..Limits::default() }).await;
    let client = running.client(HTTP_2);
    assert_eq!(running.post(&client, event("first", "a")).send().await.unwrap().status(), 202);
    let requests = (0..200).map(|n| {
        let data = "x".repeat(64 << 10);
        running
            .post(&client, event(&n.to_string(), "a").replace("\"n\":1", &format!("\"n\":\"{data}\"")))
            .send()
    });
    for answer in futures::future::join_all(requests).await {
        assert_eq!(answer.unwrap().status(), 202);
    }
    let events = running.world.store.events.lock().unwrap();
    assert_eq!(events.len(), 201);
    assert!(events.iter().skip(1).all(|event| event.data.len() > 64 << 10));
}

#[tokio::test]
async fn a_client_that_trusts_another_ca_does_not_come_in() {
    let (running, other) = (start(Limits::default()).await, start(Limits::default()).await);
    let stranger = client(&other.certificates.bundle().unwrap(), &running.clock, HTTP_1, running.address);
    let error = running.post(&stranger, event("1", "a")).send().await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
    assert_eq!(running.world.api.count("tokenreviews"), 0);
}

#[tokio::test]
async fn a_body_that_is_too_large_gets_its_answer_although_the_client_is_still_sending() {
    let running = start(Limits::default()).await;
    for protocols in [HTTP_1, HTTP_2] {
        let client = running.client(protocols);
        let answer = running.post(&client, vec![b' '; 6 << 20]).send().await.unwrap();
        assert_eq!(answer.status(), 413);
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(answer["message"], "the body must be at most 1048576 bytes (--max-body-bytes)");
        let pieces = std::iter::repeat_n(bytes::Bytes::from(vec![b' '; 64 << 10]), 64);
        let pieces = pieces.map(|piece| Ok::<_, std::io::Error>(http_body::Frame::data(piece)));
        let body = reqwest::Body::wrap(http_body_util::StreamBody::new(futures::stream::iter(pieces)));
        let answer = running.post(&client, body).send().await.unwrap();
        assert_eq!(answer.status(), 413, "a length that is not announced is counted");
        let answer = running.post(&client, event("1", "a")).send().await.unwrap();
        assert_eq!(answer.status(), 202);
    }
}

#[tokio::test]
async fn who_does_not_finish_a_handshake_is_let_go() {
    let running = start(Limits { handshake: Duration::from_secs(1), ..Limits::default() }).await;
    let hellos = [&b""[..], b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\n\r\n"];
    futures::future::join_all(hellos.map(async |hello| {
        let mut socket = TcpStream::connect(running.address).await.unwrap();
        socket.write_all(hello).await.unwrap();
        let mut rest = Vec::new();
        let _ = timeout(IN_TIME, socket.read_to_end(&mut rest)).await.expect("closed");
    }))
    .await;
    let client = running.client(HTTP_1);
    assert_eq!(running.post(&client, event("1", "a")).send().await.unwrap().status(), 202);
}

/// A CA of a front proxy, and a certificate that it signed.
fn front_proxy() -> (String, Identity) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "front-proxy-client");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap().der().clone();
    (ca.pem(), (certificate, key.serialize_der().into()))
}

fn trusted(ca: &str) -> std::collections::BTreeMap<String, String> {
    [
        ("requestheader-client-ca-file", ca),
        ("requestheader-allowed-names", r#"["front-proxy-client"]"#),
        ("requestheader-username-headers", r#"["X-Remote-User"]"#),
        ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

#[tokio::test]
async fn a_client_certificate_is_welcome_and_judged_for_each_request_also_when_the_ca_changes() {
    let running = start(Limits::default()).await;
    let (old, new) = (front_proxy(), front_proxy());
    let bundle = running.certificates.bundle().unwrap();
    let client = |(certificate, key): &Identity, protocols| {
        let identity = Some((certificate.clone(), key.clone_key()));
        client_with(identity, &bundle, &running.clock, protocols, running.address)
    };
    let shop = "system:serviceaccount:team-a:shop";
    for protocols in [HTTP_1, HTTP_2] {
        let clients = [client(&old.1, protocols), client(&new.1, protocols)];
        let plain = running.client(protocols);
        for (what, cas, expected) in [
            ("the old CA", old.0.clone(), [202, 401]),
            ("both", format!("{}{}", old.0, new.0), [202, 202]),
            ("the new one, over the same connections", new.0.clone(), [401, 202]),
        ] {
            running.world.front_proxy.trust(&trusted(&cas));
            for (client, expected) in clients.iter().zip(expected) {
                let request = running.post(client, event(what, "a")).header("x-remote-user", shop);
                let (request, forgery) = without_token(request);
                assert_eq!(client.execute(request).await.unwrap().status(), expected, "{what}");
                assert_eq!(plain.execute(forgery).await.unwrap().status(), 401, "{what}, without one");
            }
            let with_token = running.post(&clients[0], event(what, "a")).send().await.unwrap();
            assert_eq!(with_token.status(), 202, "{what}: a certificate beside a token is in nobody's way");
        }
    }
}

#[tokio::test]
async fn a_client_certificate_of_version_1_is_taken_as_kubernetes_libraries_take_it() {
    let running = start(Limits::default()).await;
    running.world.front_proxy.trust(&trusted(include_str!("../auth/version1/ca.pem")));
    let bundle = running.certificates.bundle().unwrap();
    for pem in [include_str!("../auth/version1/ec.pem"), include_str!("../auth/version1/rsa.pem")] {
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
            let key = provider.key_provider.load_private_key(key).unwrap();
            let shown = Served::default();
            shown.set(CertifiedKey::new(vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()], key));
            let config =
                ClientConfig::builder_with_details(provider, Arc::new(ByClock(running.clock.clone())))
                    .with_protocol_versions(&[version])
                    .unwrap()
                    .with_root_certificates(crate::server::mutual::roots(&bundle))
                    .with_client_cert_resolver(Arc::new(shown));
            let client = reqwest::Client::builder()
                .tls_backend_preconfigured(config)
                .no_proxy()
                .resolve("door.hook.svc", running.address)
                .build()
                .unwrap();
            let shop = "system:serviceaccount:team-a:shop";
            let request = running.post(&client, event("1", "a")).header("x-remote-user", shop);
            let (request, _) = without_token(request);
            assert_eq!(client.execute(request).await.unwrap().status(), 202, "{version:?}");
        }
    }
}

/// The request without its token, twice.
fn without_token(request: reqwest::RequestBuilder) -> (reqwest::Request, reqwest::Request) {
    let mut request = request.build().unwrap();
    request.headers_mut().remove("authorization");
    (request.try_clone().unwrap(), request)
}

/// Publishes over and over on new connections, each with the bundle that is published at that moment, until
/// told to stop; counts its requests.
async fn publish_all_the_time(
    running: Arc<Running>,
    name: usize,
    stop: CancellationToken,
    done: Arc<AtomicU32>,
) {
    let protocols = [HTTP_1, HTTP_2][name % 2];
    while !stop.is_cancelled() {
        let client = running.client(protocols);
        for _ in 0..2 {
            let n = done.fetch_add(1, Ordering::SeqCst);
            let answer = running.post(&client, event(&format!("{name}-{n}"), "a")).send().await.unwrap();
            assert_eq!(answer.status(), 202);
            running.progress.notify_one();
        }
    }
}

/// Lets days go by while several publish. Each publishes at least once a day, so none is in one handshake for
/// longer than that.
async fn live(running: &Arc<Running>, days: u32, mut observe: impl FnMut(&Certificates)) {
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let done: [Arc<AtomicU32>; 4] = std::array::from_fn(|_| Arc::default());
    let publishers: Vec<_> = done
        .iter()
        .enumerate()
        .map(|(name, done)| {
            tasks.spawn(publish_all_the_time(Arc::clone(running), name, stop.clone(), Arc::clone(done)))
        })
        .collect();
    for _ in 0..days {
        running.hand.advance(DAY);
        running.certificates.refresh().await.unwrap();
        observe(&running.certificates);
        let before = done.each_ref().map(|done| done.load(Ordering::SeqCst));
        let all_went_on =
            || done.iter().zip(before).all(|(done, before)| done.load(Ordering::SeqCst) > before + 1);
        timeout(IN_TIME, async {
            while !all_went_on() {
                running.progress.notified().await;
            }
        })
        .await
        .expect("requests go on");
    }
    stop.cancel();
    for publisher in publishers {
        publisher.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_certificates_and_ca_are_renewed_no_request_fails() {
    let running = Arc::new(start(Limits::default()).await);
    let (mut shown, mut bundles) = (HashSet::new(), HashSet::new());
    let mut observe = |certificates: &Certificates| {
        shown.insert(certificates.shown());
        bundles.insert(certificates.bundle());
    };
    live(&running, 20, &mut observe).await;
    // A successor is announced on day 245, signs from day 275 on, and is alone from day 365 on.
    for (until, days) in [(242, 36), (362, 6)] {
        let today = u32::try_from(running.clock.now().since(START).as_secs() / DAY.as_secs()).unwrap();
        running.hand.advance(DAY * (until - today));
        running.certificates.refresh().await.unwrap();
        live(&running, days, &mut observe).await;
    }
    assert!(shown.len() >= 12, "{} certificates were shown", shown.len());
    assert_eq!(bundles.len(), 3, "the first CA, both, the second");
}
