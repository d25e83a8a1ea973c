//! Whatever is answered before a body has come whole, the client reads it: with the curl of this machine, and with
//! clients that write everything before they read anything.

use std::process::Stdio;

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::*;
use crate::config::Address;
use crate::metrics::Metrics;
use crate::server::Door;
use crate::server::auth::Gate;
use crate::server::forward::{Forwarder, Link};
use crate::server::http1::Heads;

const BASE: &str = "/apis/delivery.hookwright.dev/v1alpha1/namespaces/team-a";

/// What curl says of one request.
#[derive(Debug)]
struct Curled {
    exit: i32,
    code: String,
    body: Value,
    said: String,
}

/// None where there is no curl.
async fn curl(address: SocketAddr, path: &str, options: &[&str], body: Vec<u8>) -> Option<Curled> {
    let url = format!("https://127.0.0.1:{}{path}", address.port());
    let mut child = Command::new("curl")
        .args(["-sS", "-k", "--noproxy", "*", "--max-time", "60", "-w", "\n%{http_code}"])
        .args(["--data-binary", "@-", "-H", "Expect:"])
        .args(options)
        .arg(url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let mut input = child.stdin.take().unwrap();
    let write = async move {
        let _ = input.write_all(&body).await;
        drop(input);
    };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap_or_default();
    Some(Curled {
        exit: output.status.code().unwrap_or(-1),
        code: code.to_owned(),
        body: serde_json::from_str(body).unwrap_or_default(),
        said: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A front whose store is away, on the certificates of this one.
async fn front(running: &Running) -> (SocketAddr, CancellationToken) {
    let address = Address { host: "127.0.0.1".to_owned(), port: 1 };
    let tasks = TaskTracker::new();
    let name = rustls::pki_types::ServerName::try_from("door.hook.svc").unwrap();
    let service = ServiceName { namespace: "hook".to_owned(), name: "door".to_owned() };
    let certificates =
        Certificates::new(running.world.api.client(), &service, running.clock.clone()).of_front();
    let link = Link::new(address, name, certificates.client_config().unwrap(), tasks.clone());
    let forwarder = Forwarder::new(link, 4 << 20, tasks.clone(), Metrics::default());
    let gate = Gate::new(&running.world.api.client(), Arc::clone(&running.world.front_proxy));
    let door = Arc::new(Door::front(gate, forwarder, Metrics::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let tls = Some(running.certificates.server_config().unwrap());
    tasks.spawn(serve(listener, tls, door, Limits::default(), stop.clone()));
    (address, stop)
}

/// Path, options, and the code of each refusal that needs no body.
fn refusals() -> Vec<(String, Vec<&'static str>, &'static str)> {
    let publish = || format!("{BASE}/cloudevents");
    vec![
        (publish(), vec!["-H", "authorization: Bearer wrong"], "401"),
        (publish(), vec![], "401"),
        (format!("{}/cloudevents", BASE.replace("team-a", "team-b")), vec!["-H", GOOD], "403"),
        ("/nothing".to_owned(), vec![], "404"),
        (publish(), vec!["-X", "PUT", "-H", GOOD], "405"),
        (publish(), vec!["-X", "DELETE", "-H", GOOD], "405"),
        (publish(), vec!["-X", "PATCH"], "405"),
        (publish(), vec!["-H", GOOD, "-H", "accept: text/html"], "406"),
    ]
}

const GOOD: &str = "authorization: Bearer good";

#[tokio::test]
async fn curl_reads_every_early_answer_by_both_versions_in_both_roles() {
    let running = start(Limits::default()).await;
    let (front, _stop) = front(&running).await;
    let store = refusals().into_iter().chain([
        (format!("{BASE}/cloudevents?dryRun=maybe"), vec!["-H", GOOD], "400"),
        ("/apis/delivery.hookwright.dev/v1alpha1".to_owned(), vec!["-X", "GET", "-H", GOOD], "200"),
        (format!("{BASE}/cloudevents"), vec!["-X", "OPTIONS"], "200"),
    ]);
    let away = refusals().into_iter().chain([(format!("{BASE}/cloudevents"), vec!["-H", GOOD], "503")]);
    let cases: Vec<_> =
        store.map(|case| (running.address, case)).chain(away.map(|case| (front, case))).collect();
    for (address, (path, options, code)) in cases {
        for version in ["--http1.1", "--http2"] {
            for (size, times) in [(12, 4), (100_000, 1), (3_000_000, 1)] {
                for _ in 0..times {
                    let options: Vec<_> = options.iter().copied().chain([version]).collect();
                    let body = vec![b'x'; size];
                    let Some(curled) = curl(address, &path, &options, body).await else {
                        return eprintln!("NOT TRIED: there is no curl");
                    };
                    let told = (curled.exit, &*curled.code);
                    assert_eq!(told, (0, code), "{options:?} {path} of {size}: {}", curled.said);
                    if code != "200" {
                        assert_eq!(curled.body["kind"], "Status", "{options:?} {path}: {curled:?}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn curl_reads_an_early_answer_to_much_to_slow_and_to_endless_bodies() {
    let running = start(Limits::default()).await;
    let path = format!("{BASE}/cloudevents");
    for version in ["--http1.1", "--http2"] {
        for (what, size, options, code) in [
            ("too large, announced", 20_000_000, vec!["-H", GOOD], "413"),
            (
                "too large, not announced",
                20_000_000,
                vec!["-H", GOOD, "-H", "transfer-encoding: chunked"],
                "413",
            ),
            ("slow", 300_000, vec!["--limit-rate", "100K"], "401"),
            ("slow and in bursts", 100_000, vec!["--limit-rate", "30K"], "401"),
            ("who waits to be told", 3_000_000, vec!["-H", GOOD, "-H", "Expect: 100-continue"], "413"),
        ] {
            let options: Vec<_> = options.into_iter().chain([version]).collect();
            let Some(curled) = curl(running.address, &path, &options, vec![b' '; size]).await else {
                return eprintln!("NOT TRIED: there is no curl");
            };
            assert_eq!((curled.exit, &*curled.code), (0, code), "{what} {version}: {}", curled.said);
            assert_eq!(curled.body["kind"], "Status", "{what} {version}: {curled:?}");
        }
    }
}

/// The door without TLS, for what is said byte by byte.
async fn plain(running: &Running, limits: Limits) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    TaskTracker::new().spawn(serve(listener, None, Arc::clone(&running.world.door), limits, stop.clone()));
    (address, stop)
}

/// Sends all of it, then reads until the connection ends.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    timeout(IN_TIME, socket.read_to_end(&mut answer)).await.expect("it ends").unwrap();
    String::from_utf8(answer).unwrap()
}

/// Its status line and its body.
fn parts(answer: &str) -> (&str, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    (head.lines().next().unwrap_or_default(), serde_json::from_str(body).unwrap_or_default())
}

#[tokio::test]
async fn a_head_that_is_refused_is_answered_with_a_status_and_the_connection_ends() {
    let running = start(Limits::default()).await;
    let (address, _stop) = plain(&running, Limits::default()).await;
    let with = |headers: &str| format!("POST {BASE}/cloudevents HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    let big = format!("x-a: {}\r\n", "y".repeat(66_000));
    for (what, head, code) in [
        ("no Host", format!("GET {BASE} HTTP/1.1\r\n\r\n"), "400 Bad Request"),
        ("two Hosts", with("host: y\r\n"), "400 Bad Request"),
        ("chunked, chunked", with("transfer-encoding: chunked, chunked\r\n"), "400 Bad Request"),
        ("both", with("content-length: 3\r\ntransfer-encoding: chunked\r\n"), "400 Bad Request"),
        ("both, turned", with("transfer-encoding: chunked\r\ncontent-length: 3\r\n"), "400 Bad Request"),
        ("bare LF", with("x-a: b\nx-c: d\r\n"), "400 Bad Request"),
        ("no request", "hello\r\n\r\n".to_owned(), "400 Bad Request"),
        ("a method that is none", "G@T / HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), "400 Bad Request"),
        ("HTTP/2 unasked", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "400 Bad Request"),
        ("large", with(&big), "431 Request Header Fields Too Large"),
        ("endless", big.repeat(40), "431 Request Header Fields Too Large"),
        ("many", with(&"a: b\r\n".repeat(100)), "431 Request Header Fields Too Large"),
    ] {
        // Something is still to come: it takes no answer away, and is no request.
        let sent = format!("{head}0\r\n\r\nGET /hidden HTTP/1.1\r\nhost: x\r\n\r\n{}", "z".repeat(100_000));
        let answer = exchange(address, sent.as_bytes()).await;
        let (line, status) = parts(&answer);
        assert_eq!(line, format!("HTTP/1.1 {code}"), "{what}: {answer}");
        assert_eq!((&status["kind"], &status["apiVersion"]), (&json!("Status"), &json!("v1")), "{what}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{what}: {answer}");
        assert_eq!(answer.matches("\r\ncontent-type: ").count(), 1, "{what}: {answer}");
    }
}

#[tokio::test]
async fn a_body_whose_chunks_are_none_is_answered_with_a_status_and_the_connection_ends() {
    let running = start(Limits::default()).await;
    let (address, _stop) = plain(&running, Limits::default()).await;
    let head = format!(
        "POST {BASE}/cloudevents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer good\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    for body in ["x\r\n", "5\nabcde\r\n0\r\n\r\n", "3\r\nabcd\r\n", "1\r\na\r\n0\r\nx: y\n\r\n"] {
        // What is still to come takes no answer away, and is no request.
        let after = format!("GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n{}", "z".repeat(1_000_000));
        let answer = exchange(address, format!("{head}{body}{after}").as_bytes()).await;
        let (line, status) = parts(&answer);
        assert_eq!(line, "HTTP/1.1 400 Bad Request", "{body:?}: {answer}");
        assert_eq!((&status["kind"], &status["message"]), (&json!("Status"), &json!("the body broke off")));
        assert!(!answer.contains("/hidden"), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{body:?}: {answer}");
    }
}

#[tokio::test]
async fn requests_before_a_refused_one_are_answered_first() {
    let running = start(Limits::default()).await;
    let (address, _stop) = plain(&running, Limits::default()).await;
    let good =
        "GET /a HTTP/1.1\r\nhost: x\r\n\r\nPOST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc";
    let answer = exchange(address, format!("{good}GET /c HTTP/1.1\r\n\r\n").as_bytes()).await;
    let messages =
        answer.split("\"message\":").skip(1).map(|rest| rest.split('"').nth(1).unwrap_or_default());
    let messages: Vec<_> = messages.collect();
    assert_eq!(
        messages,
        ["there is nothing at /a", "there is nothing at /b", "Host must be given"],
        "{answer}"
    );
    let answer = exchange_half(address, "GET / HTTP/1.1\r\nhost: x").await;
    assert_eq!(parts(&answer).1["message"], "the head of the request broke off");
}

/// Sends all of it, says that nothing follows, and reads.
async fn exchange_half(address: SocketAddr, text: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(text.as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(IN_TIME, socket.read_to_string(&mut answer)).await.expect("it ends").unwrap();
    answer
}

#[tokio::test]
async fn who_announces_too_much_is_refused_before_he_is_told_to_go_on() {
    let running = start(Limits::default()).await;
    let (address, _stop) = plain(&running, Limits::default()).await;
    let post = |token: &str, length: usize| {
        format!(
            "POST {BASE}/cloudevents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nexpect: 100-Continue\r\n\
             content-length: {length}\r\n\r\n"
        )
    };
    for (head, code) in [(post("good", 1_048_577), 413), (post("wrong", 12), 401)] {
        let answer = exchange(address, head.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{answer}");
        assert_eq!(parts(&answer).1["code"], code);
        // One who does not wait reads it all the same.
        let impatient = [head.as_bytes(), &vec![b' '; 8 << 20]].concat();
        assert!(exchange(address, &impatient).await.starts_with(&format!("HTTP/1.1 {code} ")));
    }
    let mut socket = TcpStream::connect(address).await.unwrap();
    let body = event("1", "a");
    socket.write_all(post("good", body.len()).as_bytes()).await.unwrap();
    let mut told = vec![0; 25];
    timeout(IN_TIME, socket.read_exact(&mut told)).await.unwrap().unwrap();
    assert_eq!(told, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(body.as_bytes()).await.unwrap();
    timeout(IN_TIME, socket.read_exact(&mut told)).await.unwrap().unwrap();
    assert!(told.starts_with(b"HTTP/1.1 202 Accepted"));
}

#[tokio::test]
async fn who_writes_all_before_he_reads_has_his_answer_and_keeps_his_connection() {
    let running = start(Limits::default()).await;
    let (address, _stop) = plain(&running, Limits::default()).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    for size in [12, 100_000, 8 << 20] {
        let head = format!("POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n");
        socket.write_all(&[head.as_bytes(), &vec![b'x'; size]].concat()).await.unwrap();
        let mut answer = vec![0; 22];
        timeout(IN_TIME, socket.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, b"HTTP/1.1 404 Not Found");
        answer.resize(4096, 0);
        let more = socket.read(&mut answer).await.unwrap();
        assert!(more > 0);
    }
}

#[tokio::test]
async fn one_limit_of_heads_holds_for_both_versions() {
    let limits = Limits { heads: Heads { bytes: 2_000, headers: 20 }, ..Limits::default() };
    let running = start(limits).await;
    for protocols in [HTTP_1, HTTP_2] {
        let client = running.client(protocols);
        let answered = async |request: reqwest::RequestBuilder| {
            let answer = request.send().await.unwrap();
            let (code, body) = (answer.status().as_u16(), answer.bytes().await.unwrap());
            (code, serde_json::from_slice::<Value>(&body).unwrap()["reason"].clone())
        };
        let get = |length: usize| {
            let request = client.get(format!("https://door.hook.svc:{}/nothing", running.address.port()));
            request.header("x-a", "y".repeat(length))
        };
        let too_large = (431, json!("RequestHeaderFieldsTooLarge"));
        assert_eq!(answered(get(1_700)).await, (404, json!("NotFound")), "{protocols:?}");
        assert_eq!(answered(get(2_000)).await, too_large, "{protocols:?}");
        assert_eq!(answered(get(60_000)).await, too_large, "{protocols:?}");
        let many = |n: usize| (0..n).fold(get(1), |request, i| request.header(format!("x-{i}"), "y"));
        assert_eq!(answered(many(15)).await, (404, json!("NotFound")), "{protocols:?}");
        assert_eq!(answered(many(21)).await, too_large, "{protocols:?}");
    }
}

#[tokio::test]
async fn one_limit_of_paths_and_names_holds_for_both_versions() {
    let running = start(Limits::default()).await;
    for protocols in [HTTP_1, HTTP_2] {
        let client = running.client(protocols);
        let get = |path: usize, name: usize| {
            let path = "p".repeat(path);
            let url = format!("https://door.hook.svc:{}/{path}", running.address.port());
            client.get(url).header("n".repeat(name), "y")
        };
        for (path, name, code, says) in [
            ((60 << 10) - 1, 1, 404, "there is nothing"),
            (60 << 10, 1, 431, "the path must be at most 61440 bytes"),
            (1, 8 << 10, 404, "there is nothing"),
            (1, (8 << 10) + 1, 431, "the name of a header must be at most 8192 bytes"),
        ] {
            let answer = get(path, name).send().await.unwrap();
            let told = answer.status().as_u16();
            let status: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
            assert_eq!((told, &status["kind"]), (code, &json!("Status")), "{protocols:?}: {path} {name}");
            assert!(status["message"].as_str().unwrap().starts_with(says), "{protocols:?}: {path} {name}");
        }
    }
}

#[tokio::test]
async fn empty_lines_before_a_request_cost_it_nothing() {
    let running = start(Limits::default()).await;
    let (address, _stop) = plain(&running, Limits::default()).await;
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n{more}\r\n");
    let blank = "\r\n".repeat(100_000);
    let sent = [&*blank, &get("/a", ""), "\r\n", &get("/b", ""), &blank, &get("/c", "connection: close\r\n")];
    let answer = exchange(address, sent.concat().as_bytes()).await;
    for path in ["/a", "/b", "/c"] {
        assert!(answer.contains(&format!("there is nothing at {path}\"")), "{path}: {answer}");
    }
}

/// HTTP/2 by hand: what curl does not do.
#[tokio::test]
async fn of_http_2_a_body_that_never_comes_does_not_keep_its_answer() {
    let running = start(Limits::default()).await;
    let client = running.client(HTTP_2);
    let never = http_body_util::StreamBody::new(futures::stream::pending::<
        Result<http_body::Frame<bytes::Bytes>, std::io::Error>,
    >());
    let path = format!("https://door.hook.svc:{}/nothing", running.address.port());
    let answer = client.post(&path).body(reqwest::Body::wrap(never)).send().await.unwrap();
    assert_eq!(answer.status(), 404);
    let answer = client.post(&path).body("x").send().await.unwrap();
    assert_eq!(answer.status(), 404, "and the connection goes on");
}
