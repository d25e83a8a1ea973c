//! The receiver of the harness: it records what arrives, and misbehaves exactly as told.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::time::{Duration, Instant};

use hookwright_harness::{
    pki::Authority,
    receiver::{Answer, Gate, Options, Receiver},
};

const SOON: Duration = Duration::from_secs(5);

fn client_of(receiver: &Receiver) -> reqwest::Client {
    builder_for(receiver).build().unwrap()
}

fn builder_for(receiver: &Receiver) -> reqwest::ClientBuilder {
    let authority = reqwest::Certificate::from_pem(receiver.ca_pem().as_bytes()).unwrap();
    let address = ([127, 0, 0, 1], receiver.port()).into();
    reqwest::Client::builder().no_proxy().tls_certs_only([authority]).resolve("orders.localhost", address)
}

#[tokio::test]
async fn requests_are_recorded_and_answered_in_the_order_of_the_script() {
    let receiver = Receiver::start().await.unwrap();
    receiver.set_script("/in", vec![Answer::status(503).retry_after(2), Answer::status(500)], Answer::ok());
    let client = client_of(&receiver);
    let mut statuses = Vec::new();
    for number in 0..3 {
        let body = format!("body {number}");
        let answer = client
            .post(receiver.url("orders", "/in?x=1"))
            .header("x-team", "a")
            .body(body)
            .send()
            .await
            .unwrap();
        statuses.push((answer.status().as_u16(), answer.headers().contains_key("retry-after")));
    }
    assert_eq!(statuses, [(503, true), (500, false), (200, false)]);

    let requests = receiver.await_requests("/in", 3, SOON).await.unwrap();
    let second = &requests[1];
    assert_eq!((second.body.as_ref(), second.header("X-Team")), (&b"body 1"[..], Some("a")));
    assert_eq!((second.version.as_str(), second.query.as_deref()), ("HTTP/2.0", Some("x=1")));
    assert_eq!(second.authority, format!("orders.localhost:{}", receiver.port()));
}

#[tokio::test]
async fn http1_is_spoken_with_those_who_want_it() {
    let receiver = Receiver::start_with(Options { only_http1: true, ..Options::default() }).await.unwrap();
    client_of(&receiver).get(receiver.url("orders", "/")).send().await.unwrap();
    let by_address = format!("https://127.0.0.1:{}/address", receiver.port());
    client_of(&receiver).get(by_address).send().await.unwrap();
    assert_eq!(receiver.requests("/")[0].version, "HTTP/1.1");
    assert_eq!(receiver.count("/address"), 1);
}

#[tokio::test]
async fn misbehaviour_is_what_the_client_sees() {
    let receiver = Receiver::start().await.unwrap();
    receiver.answer("/hang", Answer::hang());
    receiver.answer("/reset", Answer::reset());
    receiver.answer("/close", Answer::close());
    receiver.answer("/cut", Answer::ok().cut_after("half"));
    receiver.answer("/drip", Answer::ok().drip("slowly", Duration::from_millis(5)));
    receiver.answer("/echo", Answer::status(400).echo());
    receiver.answer("/endless", Answer::ok().endless());
    let client = client_of(&receiver);
    let get = async |path: &str| client.get(receiver.url("orders", path)).send().await;
    // For what never comes, whatever the machine does.
    let never = Duration::from_millis(300);

    let hanging = client.get(receiver.url("orders", "/hang")).timeout(never).send();
    assert!(hanging.await.unwrap_err().is_timeout());
    assert!(!get("/reset").await.unwrap_err().is_timeout());
    assert!(!get("/close").await.unwrap_err().is_timeout());
    assert!(get("/cut").await.unwrap().bytes().await.is_err());
    assert_eq!(get("/drip").await.unwrap().text().await.unwrap(), "slowly");
    let mut endless = get("/endless").await.unwrap();
    assert!(endless.chunk().await.unwrap().is_some());
    assert!(tokio::time::timeout(never, endless.bytes()).await.is_err());
    let echo = client.post(receiver.url("orders", "/echo")).header("x-secret", "s3").body("b").send().await;
    let echo = echo.unwrap().text().await.unwrap();
    assert!(echo.contains("x-secret: s3") && echo.ends_with("\n\nb"), "{echo}");
}

#[tokio::test]
async fn a_closed_gate_holds_answers_back() {
    let receiver = Receiver::start().await.unwrap();
    let gate = Gate::closed();
    receiver.answer("/", Answer::ok().behind(&gate));
    let client = client_of(&receiver);
    let begun = Instant::now();
    let ask = async || client.get(receiver.url("orders", "/")).send().await.unwrap();
    let open = async {
        receiver.await_requests("/", 2, SOON).await.unwrap();
        receiver.expect_silence("/", Duration::from_millis(50)).await.unwrap();
        gate.open();
    };
    tokio::join!(ask(), ask(), open);
    assert!(begun.elapsed() >= Duration::from_millis(50));
    assert_eq!(receiver.peak_in_flight("/"), 2);
}

#[tokio::test]
async fn a_receiver_that_is_down_refuses_and_comes_back_at_the_same_port() {
    let receiver = Receiver::start().await.unwrap();
    let client = client_of(&receiver);
    let url = receiver.url("orders", "/");
    client.get(&url).send().await.unwrap();
    receiver.go_down().await.unwrap();
    assert!(client.get(&url).send().await.unwrap_err().is_connect());
    receiver.come_up().await.unwrap();
    client.get(&url).send().await.unwrap();
    assert_eq!(receiver.count("/"), 2);
}

#[tokio::test]
async fn mutual_tls_admits_only_the_clients_of_its_authority() {
    let clients = Authority::new("clients").unwrap();
    let options = Options { client_ca: Some(clients.pem()), ..Options::default() };
    let receiver = Receiver::start_with(options).await.unwrap();
    client_of(&receiver).get(receiver.url("orders", "/")).send().await.unwrap_err();
    let pair = clients.client("orders", None).unwrap();
    let identity = reqwest::Identity::from_pem((pair.certificate + &pair.key).as_bytes()).unwrap();
    let client = builder_for(&receiver).identity(identity).build().unwrap();
    client.get(receiver.url("orders", "/")).send().await.unwrap();
    assert!(receiver.requests("/")[0].client_certificate);
}

#[tokio::test]
async fn what_does_not_arrive_is_said_with_what_did() {
    let receiver = Receiver::start().await.unwrap();
    client_of(&receiver).get(receiver.url("orders", "/other")).send().await.unwrap();
    let error = receiver.await_requests("/in", 1, Duration::from_millis(20)).await.unwrap_err();
    assert!(error.to_string().contains(r#"("/other", 1)"#), "{error}");
}
