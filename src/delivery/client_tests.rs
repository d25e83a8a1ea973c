//! The client against real TLS on loopback.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;

use super::client::HttpSender;
use super::testing::attempts::{
    DENIED, TIMED_OUT, UNREACHABLE, all_at_once, error, guard, job, retry_after, send, sender, to,
};
use super::testing::receiver::{Act, Authority, Receiver, answer};
use super::testing::{START, event, webhook};
use super::{Job, Sender as _, Sent};
use crate::clock::Clock;
use crate::model::address::Policy;
use crate::model::signature::{HmacKey, Signer, SigningKey};
use crate::model::text::Masks;
use crate::model::verdict::{Fault, Verdict};
use crate::routes::{Endpoint, TlsMaterial};

/// One attempt at a receiver that answers so.
async fn answered(acts: Vec<Act>) -> Sent {
    answered_within(acts, Duration::from_secs(10)).await
}

async fn answered_within(acts: Vec<Act>, timeout: Duration) -> Sent {
    let authority = Authority::new("ours");
    let receiver = Receiver::start(&authority, move |_| acts.clone()).await;
    let endpoint = Endpoint { timeout, ..to(&receiver.url("/"), authority.trusted()) };
    send(endpoint).await
}

#[tokio::test]
async fn a_delivery_arrives_with_its_bytes_and_headers_and_the_answer_is_kept() {
    let authority = Authority::new("ours");
    let receiver =
        Receiver::start(&authority, |_| answer("201 Created", "content-type: text/plain\r\n", "thanks"))
            .await;
    let sent = send(to(&receiver.url("/a?b=c"), authority.trusted())).await;
    assert_eq!(sent.verdict, Verdict::Delivered, "{:?}", sent.attempt);
    let attempt = &sent.attempt;
    assert_eq!((attempt.at, attempt.status, attempt.error.as_ref()), (START, Some(201), None));
    assert_eq!((attempt.body.as_deref(), attempt.body_length), (Some("thanks"), 6));
    assert_eq!(attempt.content_type.as_deref(), Some("text/plain"));
    let request = receiver.requests().remove(0);
    assert!(request.starts_with("POST /a?b=c HTTP/1.1\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\n{\"a\":1}"), "{request}");
    for header in [
        &format!("host: x.localhost:{}\r\n", receiver.port),
        "webhook-id: 018bcfe5-687b-7000-8000-000000000001\r\n",
        "webhook-timestamp: 1700000000\r\n",
        "webhook-signature: v1a,",
        "content-length: 7\r\n",
        "ce-type: order.created\r\n",
    ] {
        assert!(request.contains(header), "{header} in {request}");
    }
    for header in ["accept-encoding", "referer", "transfer-encoding", "proxy"] {
        assert!(!request.contains(header), "{header} in {request}");
    }
}

#[tokio::test]
async fn statuses_become_verdicts_and_redirects_are_not_followed() {
    let authority = Authority::new("ours");
    let receiver = Receiver::start(&authority, |request| {
        let status = request.split(['/', ' ']).nth(2).unwrap();
        let location = "location: https://x.localhost:1/elsewhere\r\nretry-after: 7\r\n";
        answer(&format!("{status} Whatever"), location, "")
    })
    .await;
    let sender = sender();
    for (status, verdict, complaint) in [
        (200, Verdict::Delivered, ""),
        (204, Verdict::Delivered, ""),
        (
            301,
            retry_after(Fault::Rejected, 7),
            "answered 301 (Moved Permanently); redirects are not followed",
        ),
        (
            307,
            retry_after(Fault::Rejected, 7),
            "answered 307 (Temporary Redirect); redirects are not followed",
        ),
        (404, retry_after(Fault::Rejected, 7), "answered 404 (Not Found)"),
        (410, Verdict::Gone, "answered 410 (Gone)"),
        (503, retry_after(Fault::ServerError, 7), "answered 503 (Service Unavailable)"),
        (599, retry_after(Fault::ServerError, 7), "answered 599"),
    ] {
        let sent = sender.send(job(to(&receiver.url(&format!("/{status}")), authority.trusted()))).await;
        assert_eq!((sent.verdict, error(&sent), sent.attempt.status), (verdict, complaint, Some(status)));
    }
    assert_eq!(receiver.requests().len(), 8);
    assert_eq!(receiver.connections(), 1, "one connection serves a Webhook's attempts");
}

#[tokio::test]
async fn a_retry_after_date_is_taken_from_our_clock() {
    // 30 seconds after START.
    let sent = answered(answer("429 Slow", "retry-after: Tue, 14 Nov 2023 22:13:50 GMT\r\n", "")).await;
    assert_eq!(sent.verdict, retry_after(Fault::Throttled, 30));
}

#[tokio::test]
async fn at_most_64_kib_of_an_answer_are_read_and_500_characters_kept() {
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let chunk = [b"4000\r\n".as_slice(), "é".repeat(0x2000).as_bytes(), b"\r\n"].concat();
    let sent = answered(vec![Act::Write(head), Act::Endlessly(chunk)]).await;
    assert_eq!(sent.verdict, Verdict::Delivered, "{:?}", sent.attempt);
    assert_eq!(sent.attempt.body_length, 65_536);
    assert_eq!(sent.attempt.body, Some("é".repeat(500)));
}

#[tokio::test]
async fn an_answer_of_exactly_64_kib_leaves_the_connection_in_use() {
    let authority = Authority::new("ours");
    let body = "x".repeat(65_536);
    let receiver = Receiver::start(&authority, move |_| answer("200 OK", "", &body)).await;
    let sender = sender();
    for _ in 0..2 {
        let sent = sender.send(job(to(&receiver.url("/"), authority.trusted()))).await;
        assert_eq!((sent.attempt.body_length, sent.verdict), (65_536, Verdict::Delivered));
    }
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn time_is_up_whether_the_receiver_hangs_or_drips() {
    let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n".to_vec();
    let limit = Duration::from_millis(1500);
    let mut cases = Vec::new();
    for acts in [
        vec![Act::Hang],
        vec![Act::Drip(ok.clone(), Duration::from_millis(100))],
        vec![write("HTTP/1.1 100 Continue\r\n\r\n"), Act::Hang],
        vec![write("HTTP/1.1 200 OK"), Act::Hang],
    ] {
        cases.push(async move {
            let sent = answered_within(acts, limit).await;
            assert_eq!((sent.verdict, sent.attempt.status), (TIMED_OUT, None));
            assert_eq!(error(&sent), "no answer within 1.5s");
            assert!(sent.attempt.duration >= limit);
        });
    }
    futures::future::join_all(cases).await;
}

fn write(text: &str) -> Act {
    Act::Write(text.as_bytes().to_vec())
}

#[tokio::test]
async fn the_status_line_decides_whatever_becomes_of_the_rest() {
    const CLOSED: &str = "the connection was closed before the answer was complete";
    const LATE: &str = "the answer did not end within 1.5s";
    const LARGE: &str = "the head of the answer is too large";
    const BROKEN: &str = "the answer is not HTTP";
    let many_headers = format!("\r\n{}\r\n", "x: y\r\n".repeat(65));
    let rests: Vec<(&str, Vec<Act>, &str)> = vec![
        // By the end of the connection, which is not the end of TLS.
        ("\r\n\r\nhalf", vec![Act::Close], CLOSED),
        ("\r\ncontent-length: 9\r\n\r\nhalf", vec![Act::Close], CLOSED),
        ("\r\ncontent-length: 9\r\n\r\nhalf", vec![Act::Reset], "connection reset by"),
        ("\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf", vec![Act::Close], CLOSED),
        ("\r\ntransfer-encoding: chunked\r\n\r\nnot a size\r\n", vec![Act::Hang], "the connection to"),
        ("\r\ncontent-length: 9\r\n\r\nhalf", vec![Act::Hang], LATE),
        ("\r\ncontent-length: 99\r\n\r\n", vec![Act::Drip(vec![b'x'; 99], Duration::from_millis(100))], LATE),
        ("\r\nx: y\r\n", vec![Act::Close], CLOSED),
        ("\r\nx: y\r\n", vec![Act::Hang], LATE),
        (&many_headers, vec![Act::Hang], LARGE),
        ("\r\nno header\r\n\r\n", vec![Act::Hang], BROKEN),
    ];
    let mut cases = Vec::new();
    for (status, verdict, answered) in [
        (200, Verdict::Delivered, "answered 200 (OK)"),
        (410, Verdict::Gone, "answered 410 (Gone)"),
        (
            503,
            Verdict::Retry { fault: Fault::ServerError, after: None },
            "answered 503 (Service Unavailable)",
        ),
    ] {
        for (rest, then, sentence) in rests.clone() {
            cases.push(async move {
                let text = format!("HTTP/1.1 {status} Whatever{rest}");
                let sent =
                    answered_within([vec![write(&text)], then].concat(), Duration::from_millis(1500)).await;
                assert_eq!((sent.verdict, sent.attempt.status), (verdict, Some(status)), "{text:?}");
                let expected = format!("{answered}; {sentence}");
                assert!(error(&sent).starts_with(&expected), "{text:?}: {}", error(&sent));
                let kept = sent.attempt.body.as_deref();
                if !rest.contains("99") {
                    assert_eq!(kept, rest.ends_with("half").then_some("half"), "{text:?}");
                }
            });
        }
    }
    futures::future::join_all(cases).await;
}

#[tokio::test]
async fn an_answer_before_the_whole_request_counts() {
    let authority = Authority::new("ours");
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(authority.server("x.localhost", None)));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            // It reads some of it, answers, and is gone: what comes then resets the connection.
            tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 100]).await.unwrap();
            let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n";
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
        }
    });
    let event = crate::store::Event { data: vec![b'x'; 1 << 20].into(), ..event(b"") };
    for _ in 0..20 {
        let endpoint = to(&format!("https://x.localhost:{port}/"), authority.trusted());
        let sent = sender().send(Job { event: Arc::new(event.clone()), ..job(endpoint) }).await;
        assert_eq!((sent.attempt.status, error(&sent)), (Some(413), "answered 413 (Payload Too Large)"));
    }
}

#[tokio::test]
async fn broken_answers_are_failures_with_a_sentence() {
    for (acts, verdict, sentence) in [
        (vec![Act::Close], UNREACHABLE, "the connection was closed before the answer was complete"),
        (vec![write("hello, I am no HTTP\r\n\r\n"), Act::Close], UNREACHABLE, "the answer is not HTTP"),
        (vec![write("HTTP/1.1 2000 OK\r\n\r\n"), Act::Close], UNREACHABLE, "the answer is not HTTP"),
        (
            vec![
                write("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"),
                Act::Hang,
            ],
            Verdict::Retry { fault: Fault::ServerError, after: None },
            "answered 101 (Switching Protocols)",
        ),
    ] {
        let sent = answered(acts.clone()).await;
        assert_eq!((sent.verdict, error(&sent)), (verdict, sentence), "{acts:?}");
    }
}

#[tokio::test]
async fn nobody_there_and_no_tls_are_failures_with_a_sentence() {
    let authority = Authority::new("ours");
    let free = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let sent = send(to(&format!("https://127.0.0.1:{port}/secret?token=1"), authority.trusted())).await;
    assert_eq!(
        (sent.verdict, error(&sent)),
        (UNREACHABLE, &*format!("connection refused by 127.0.0.1:{port}"))
    );

    let plain = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = plain.local_addr().unwrap().port();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let sent = send(to(&format!("https://127.0.0.1:{port}/"), authority.trusted())).await;
    assert_eq!(
        (sent.verdict, error(&sent)),
        (UNREACHABLE, "TLS: the receiver does not speak TLS; is plain HTTP on this port?")
    );
}

#[tokio::test]
async fn certificates_are_verified_against_the_ca_and_the_name() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let receiver = Receiver::start(&authority, |_| answer("200 OK", "", "")).await;
    let unknown = "unknown issuer, and no other certificate is sent (UnknownIssuer); let the receiver send its whole \
                   chain, or tls.caRef";
    let elsewhere = "it is not valid for this host (NotValidForName); have it issued with subjectAltName";
    for (url, tls, sentence) in [
        (
            receiver.url("/"),
            other.trusted(),
            format!("{unknown} must name its CA, in place of the public ones"),
        ),
        (receiver.url("/"), TlsMaterial::default(), format!("{unknown} can name its CA")),
        (
            receiver.url("/").replace("x.localhost", "y.localhost"),
            authority.trusted(),
            format!("{elsewhere} y.localhost"),
        ),
        (
            receiver.url("/").replace("x.localhost", "127.0.0.1"),
            authority.trusted(),
            format!("{elsewhere} 127.0.0.1"),
        ),
    ] {
        let sent = send(to(&url, tls)).await;
        let expected = format!("TLS: the receiver's certificate is not trusted: {sentence}");
        assert_eq!((sent.verdict, error(&sent)), (UNREACHABLE, &*expected), "{url}");
    }
    assert!(receiver.requests().is_empty());
}

#[tokio::test]
async fn mutual_tls_shows_the_client_certificate() {
    let (authority, clients) = (Authority::new("ours"), Authority::new("clients"));
    let receiver = Receiver::start_mutual(&authority, &clients).await;
    let with = |client| TlsMaterial { client, ..authority.trusted() };
    let sent = send(to(&receiver.url("/"), with(Some(clients.client())))).await;
    assert_eq!(sent.verdict, Verdict::Delivered, "{:?}", sent.attempt);
    for (client, sentence) in [
        (
            None,
            "the receiver wants a client certificate (alert CertificateRequired); tls.clientCertificateRef can name one",
        ),
        (
            Some(authority.client()),
            "the receiver refused the client certificate (alert UnknownCA); renew that of tls.clientCertificateRef, or let \
             the receiver trust its CA",
        ),
    ] {
        let sent = send(to(&receiver.url("/"), with(client))).await;
        assert_eq!(error(&sent), format!("TLS: {sentence}"));
    }
    let (chain, _) = clients.client();
    let (_, key) = clients.issue("other", ExtendedKeyUsagePurpose::ClientAuth);
    let sent = send(to(&receiver.url("/"), with(Some((chain, key))))).await;
    assert_eq!(error(&sent), "TLS: the client certificate and its key cannot be used together");
}

#[tokio::test]
async fn a_denied_literal_or_name_is_never_dialled() {
    let authority = Authority::new("ours");
    let receiver = Receiver::start(&authority, |_| answer("200 OK", "", "")).await;
    let sender = HttpSender::new(guard(&[]), Clock::manual(START).0);
    for host in ["127.0.0.1", "x.localhost", "[::ffff:7f00:1]"] {
        let url = receiver.url("/").replace("x.localhost", host);
        let sent = sender.send(job(to(&url, authority.trusted()))).await;
        assert_eq!(sent.verdict, DENIED, "{host}");
        assert!(
            error(&sent).contains("127.0.0.0/8 (loopback), which deliveries may not reach"),
            "{}",
            error(&sent)
        );
    }
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn a_changed_policy_ends_the_use_of_open_connections() {
    let authority = Authority::new("ours");
    let receiver = Receiver::start(&authority, |_| answer("200 OK", "", "")).await;
    let guard = guard(&["127.0.0.0/8"]);
    let sender = HttpSender::new(Arc::clone(&guard), Clock::manual(START).0);
    let attempt = || sender.send(job(to(&receiver.url("/"), authority.trusted())));
    assert_eq!(attempt().await.verdict, Verdict::Delivered);
    guard.set_policy(Policy::default());
    assert_eq!(attempt().await.verdict, DENIED);
    assert_eq!(receiver.requests().len(), 1);
}

#[tokio::test]
async fn what_a_receiver_echoes_of_secrets_and_signatures_is_masked() {
    let authority = Authority::new("ours");
    let receiver = Receiver::start(&authority, |request| {
        let echo = serde_json::to_string(request).unwrap();
        answer("500 Oops", &format!("content-type: text/{}\r\n", "tok3n-of-mine"), &echo)
    })
    .await;
    let key = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    let parsed = HmacKey::parse(key.as_bytes()).unwrap();
    let mut values: Vec<Vec<u8>> = parsed.secrets().iter().map(|secret| secret.to_vec()).collect();
    values.push(b"Bearer tok3n-of-mine".to_vec());
    let sent = send(Endpoint {
        headers: vec![(http::header::AUTHORIZATION, "Bearer tok3n-of-mine".parse().unwrap())],
        signer: Signer::new(SigningKey::derive(&[7; 32], "team-a", "orders"), vec![parsed]),
        masks: Masks::new(values),
        ..to(&receiver.url("/"), authority.trusted())
    })
    .await;
    let request = receiver.requests().remove(0);
    let signatures = request.lines().find_map(|line| line.strip_prefix("webhook-signature: ")).unwrap();
    let kept = format!("{:?}", sent.attempt);
    assert!(request.contains("tok3n-of-mine") && kept.contains("authorization: ***"), "{kept}");
    for secret in
        signatures.split([' ', ',']).filter(|part| part.len() > 3).chain(["tok3n-of-mine", &key[6..]])
    {
        assert!(!kept.contains(secret), "{secret} in {kept}");
    }
}

#[tokio::test]
async fn webhooks_do_not_share_connections() {
    let authority = Authority::new("ours");
    let receiver = Receiver::start(&authority, |_| answer("200 OK", "", "")).await;
    let sender = sender();
    for name in ["one", "two", "one", "two"] {
        let job = Job { webhook: webhook(name), ..job(to(&receiver.url("/"), authority.trusted())) };
        assert_eq!(sender.send(job).await.verdict, Verdict::Delivered);
    }
    assert_eq!(receiver.connections(), 2);
    assert_eq!(receiver.resumed(), 1, "but they share what makes a handshake cheap");
}

#[tokio::test]
async fn many_attempts_at_once_do_not_wait_for_the_streams_of_one_connection() {
    let authority = Authority::new("ours");
    let receiver = Receiver::start_http2(&authority).await;
    let patient =
        Endpoint { timeout: Duration::from_mins(1), ..to(&receiver.url("/hang"), authority.trusted()) };
    let endpoint = Arc::new(patient);
    let sender = sender();
    let attempts = (0..200).map(|_| {
        sender
            .send(Job { endpoint: Arc::clone(&endpoint), ..job(to("https://a.b/", TlsMaterial::default())) })
    });
    let all = futures::future::join_all(attempts);
    let arrived = async {
        while receiver.requests().len() < 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = all => panic!("the receiver answered"),
        () = arrived => {}
    }
}

#[tokio::test]
async fn attempts_at_once_do_not_connect_one_after_the_other() {
    let authority = Authority::new("ours");
    // It answers nobody before all have connected.
    let receiver = Receiver::start_together(&authority, 30).await;
    let sender = sender();
    let patient = Endpoint { timeout: Duration::from_mins(1), ..to(&receiver.url("/"), authority.trusted()) };
    let sent = all_at_once(&sender, patient, 30).await;
    assert!(sent.iter().all(|sent| sent.verdict == Verdict::Delivered), "{sent:?}");
}

#[tokio::test]
async fn a_handshake_that_hangs_fails_one_attempt_and_no_other() {
    let authority = Authority::new("ours");
    let receiver = Receiver::start_hanging(&authority).await;
    let sender = sender();
    let sent = all_at_once(&sender, to(&receiver.url("/"), authority.trusted()), 10).await;
    let failed: Vec<_> = sent.iter().filter(|sent| sent.verdict != Verdict::Delivered).map(error).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
}

#[tokio::test]
async fn a_receiver_that_allows_few_streams_gets_more_connections() {
    let authority = Authority::new("ours");
    let receiver = Receiver::start_http2_with(&authority, 4).await;
    let sender = sender();
    // The first hears how many streams it allows, the second sees it noted.
    for _ in 0..2 {
        let sent = sender.send(job(to(&receiver.url("/"), authority.trusted()))).await;
        assert_eq!(sent.verdict, Verdict::Delivered);
    }
    let endpoint = to(&receiver.url("/hang"), authority.trusted());
    let arrived = async {
        while receiver.requests().len() < 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = all_at_once(&sender, endpoint, 8) => {
            panic!("{} arrived over {} connections", receiver.requests().len(), receiver.connections())
        }
        () = arrived => {}
    }
}

#[tokio::test]
async fn an_empty_body_has_a_length_and_the_users_accept_is_kept() {
    let authority = Authority::new("ours");
    let receiver = Receiver::start(&authority, |_| answer("200 OK", "", "")).await;
    let mut endpoint = to(&receiver.url("/"), authority.trusted());
    endpoint.headers = vec![(http::header::ACCEPT, "text/plain".parse().unwrap())];
    let mut job = job(endpoint);
    job.event = Arc::new(event(b""));
    assert_eq!(sender().send(job).await.verdict, Verdict::Delivered);
    let request = receiver.requests().remove(0);
    assert!(request.contains("content-length: 0\r\n"), "{request}");
    assert!(request.contains("accept: text/plain\r\n") && !request.contains("*/*"), "{request}");
}

#[tokio::test]
async fn http2_is_spoken_with_receivers_that_offer_it() {
    let authority = Authority::new("ours");
    let receiver = Receiver::start_http2(&authority).await;
    let sender = sender();
    for _ in 0..2 {
        let sent = sender.send(job(to(&receiver.url("/"), authority.trusted()))).await;
        assert_eq!(sent.attempt.body.as_deref(), Some("HTTP/2.0 {\"a\":1}"), "{:?}", sent.attempt);
    }
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn an_answer_without_end_over_http2_is_cut_and_its_connection_serves_on() {
    const KIB: usize = 1 << 10;
    /// More than what the connection as a whole may bring unread, if what is cut were not given back.
    const COUNT: usize = 40;
    let authority = Authority::new("ours");
    let receiver = Receiver::start_http2(&authority).await;
    let sender = sender();
    for number in 1..=COUNT {
        let sent = sender.send(job(to(&receiver.url("/endless"), authority.trusted()))).await;
        let attempt = &sent.attempt;
        assert_eq!((sent.verdict, attempt.body_length), (Verdict::Delivered, 65_536), "{attempt:?}");
        assert_eq!(attempt.body.as_ref().map(String::len), Some(500));
        let ended = tokio::time::timeout(Duration::from_secs(5), receiver.unwanted(number));
        assert!(ended.await.is_ok(), "the receiver still sends answer {number}");
    }
    // What is read, what may come before it is, and a chunk begun at the end of each.
    let most = COUNT * (64 + 64 + 2 * 16) * KIB;
    assert!((COUNT * 64 * KIB..=most).contains(&receiver.streamed()), "{}", receiver.streamed());
    let sent = sender.send(job(to(&receiver.url("/"), authority.trusted()))).await;
    assert_eq!(sent.attempt.body.as_deref(), Some("HTTP/2.0 {\"a\":1}"), "{:?}", sent.attempt);
    assert_eq!(receiver.connections(), 1);
}

/// Runs another test of this file in a process whose environment names a proxy that nobody serves.
#[test]
fn a_proxy_in_the_environment_is_ignored() {
    let test = "delivery::client_tests::a_delivery_arrives_with_its_bytes_and_headers_and_the_answer_is_kept";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .envs(
            ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].map(|name| (name, "http://127.0.0.1:1")),
        )
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
