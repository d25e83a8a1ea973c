//! The door, from a request to its answer; what is behind it is of `testing`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::request::Builder;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use super::testing::{START, World, event};
use super::*;

const PATH: &str = "/apis/delivery.hookwright.dev/v1alpha1/namespaces/team-a/cloudevents";
const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

fn post(path: &str) -> Builder {
    Request::post(path).header("authorization", "Bearer good")
}

async fn send(world: &World, request: Builder, body: impl Into<Bytes>) -> (http::response::Parts, Value) {
    let peer = Peer { address: ([127, 0, 0, 1], 1).into(), certificates: Arc::new([]) };
    let answer = world.door.answer(&peer, request.body(Full::new(body.into())).unwrap()).await;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn structured(world: &World, path: &str, body: String) -> (u16, Value) {
    let (parts, answer) = send(world, post(path).header("content-type", STRUCTURED), body).await;
    (parts.status.as_u16(), answer)
}

fn stored(world: &World) -> usize {
    world.store.events.lock().unwrap().len()
}

#[tokio::test]
async fn an_event_is_stored_with_a_delivery_for_each_webhook_of_the_namespace_that_wants_it() {
    let world = World::new();
    let orders = world.webhook("team-a", "orders", &["order.*"], true);
    let paused = world.webhook("team-a", "all", &["*"], false);
    world.webhook("team-a", "invoices", &["invoice.*"], true);
    world.webhook("team-b", "theirs", &["*"], true);

    world.hand.advance(Duration::from_secs(1));
    let (code, answer) = structured(&world, PATH, event("7", "order.created")).await;
    let events = world.store.events.lock().unwrap();
    let stored = &events[0];
    assert_eq!((code, answer), (202, json!({"id": stored.uid.to_string(), "matched": 2})));
    assert_eq!(
        (&*stored.namespace, &*stored.attributes.id, &*stored.data),
        ("team-a", "7", &br#"{"n":1}"#[..])
    );
    assert_eq!(stored.accepted_at, START + Duration::from_secs(1));
    let webhooks: Vec<_> = stored.deliveries.iter().map(|delivery| &delivery.webhook).collect();
    assert_eq!(webhooks, [&orders, &paused]);
    assert!(stored.deliveries.iter().all(|delivery| !delivery.test));
    assert!(stored.deliveries[0].name < stored.deliveries[1].name);
    assert_eq!(stored.deliveries[0].name.accepted_at(), stored.accepted_at);
    assert_eq!(world.counted("accepted"), 1);
}

#[tokio::test]
async fn the_same_event_again_is_a_duplicate_of_the_first() {
    let world = World::new();
    world.webhook("team-a", "all", &["*"], true);
    let (_, first) = structured(&world, PATH, event("7", "a")).await;
    let (code, again) = structured(&world, PATH, event("7", "b")).await;
    assert_eq!((code, again), (202, json!({"id": first["id"], "matched": 0, "duplicate": true})));
    assert_eq!((stored(&world), world.counted("accepted"), world.counted("duplicate")), (1, 1, 1));
}

#[tokio::test]
async fn a_batch_is_answered_in_order_also_with_duplicates_inside() {
    let world = World::new();
    world.webhook("team-a", "orders", &["order.*"], true);
    let batch = format!("[{},{},{}]", event("1", "order.a"), event("2", "other"), event("1", "order.a"));
    let (parts, answer) = send(&world, post(PATH).header("content-type", BATCH), batch).await;
    let id = |n: usize| world.store.events.lock().unwrap()[n].uid.to_string();
    assert_eq!(parts.status, 202);
    assert_eq!(
        answer,
        json!({"items": [
            {"id": id(0), "matched": 1},
            {"id": id(1), "matched": 0},
            {"id": id(0), "matched": 0, "duplicate": true},
        ]})
    );
    let (parts, answer) = send(&world, post(PATH).header("content-type", BATCH), "[]").await;
    assert_eq!((parts.status.as_u16(), answer), (202, json!({"items": []})));
}

#[tokio::test]
async fn a_batch_of_one_is_answered_as_a_batch() {
    let world = World::new();
    let (parts, answer) = send(&world, post(PATH), format!("[{}]", event("1", "a"))).await;
    assert_eq!((parts.status.as_u16(), answer["items"].as_array().unwrap().len()), (202, 1));
}

#[tokio::test]
async fn binary_mode_keeps_the_body_as_it_is() {
    let world = World::new();
    let request = post(PATH)
        .header("ce-specversion", "1.0")
        .header("ce-id", "7")
        .header("ce-source", "/shop")
        .header("ce-type", "a")
        .header("content-type", "application/octet-stream");
    let body = Bytes::from_static(b"\x00\x01\xff");
    let (parts, _) = send(&world, request, body.clone()).await;
    assert_eq!(parts.status, 202);
    let events = world.store.events.lock().unwrap();
    assert_eq!(events[0].data.as_ptr(), body.as_ptr(), "from the socket to the store without a copy");
}

#[tokio::test]
async fn bad_input_is_a_status_that_names_the_field_and_nothing_of_a_batch_is_stored() {
    let world = World::new();
    let batch = format!("[{},{}]", event("1", "a"), event("2", "a").replace("/shop", "my shop"));
    let (parts, answer) = send(&world, post(PATH).header("content-type", BATCH), batch).await;
    assert_eq!(
        (parts.status.as_u16(), &answer["kind"], &answer["reason"]),
        (400, &json!("Status"), &json!("BadRequest"))
    );
    assert_eq!(answer["details"]["causes"][0]["field"], "[1].source");
    assert_eq!(answer["details"]["causes"].as_array().unwrap().len(), 1);
    let message = answer["message"].as_str().unwrap();
    assert!(message.starts_with("not a valid CloudEvent: [1].source: must be a URI reference"), "{message}");
    assert_eq!((stored(&world), world.counted("invalid")), (0, 1));
}

#[tokio::test]
async fn each_refusal_has_its_code_reason_and_metric() {
    let world = World::with(Settings { max_body_bytes: 100, namespaces: vec!["team-a".to_owned()] });
    let rights = |namespace: &str| ("system:serviceaccount:team-a:shop".to_owned(), namespace.to_owned());
    world.api.rights.lock().unwrap().insert(rights("team-c"));
    let elsewhere = |namespace: &str| PATH.replace("team-a", namespace);
    let good = || Bytes::from(event("1", "a"));
    for (what, request, body, code, reason, metric) in [
        ("no token", Request::post(PATH), good(), 401, "Unauthorized", "unauthenticated"),
        (
            "bad token",
            Request::post(PATH).header("authorization", "Bearer bad"),
            good(),
            401,
            "Unauthorized",
            "unauthenticated",
        ),
        ("no right", post(&elsewhere("team-b")), good(), 403, "Forbidden", "forbidden"),
        ("namespace not served", post(&elsewhere("team-c")), good(), 404, "NotFound", "invalid"),
        ("too large", post(PATH), Bytes::from(vec![b'x'; 101]), 413, "RequestEntityTooLarge", "too_large"),
        ("no event", post(PATH), Bytes::from("hello"), 415, "UnsupportedMediaType", "invalid"),
        ("no JSON taken", post(PATH).header("accept", "text/html"), good(), 406, "NotAcceptable", "invalid"),
        ("dryRun", post(&format!("{PATH}?dryRun=yes")), good(), 400, "BadRequest", "invalid"),
    ] {
        let before = world.counted(metric);
        let (parts, answer) = send(&world, request, body).await;
        assert_eq!((parts.status.as_u16(), &answer["reason"]), (code, &json!(reason)), "{what}: {answer}");
        assert_eq!((&answer["kind"], &answer["code"]), (&json!("Status"), &json!(code)), "{what}");
        assert_eq!(world.counted(metric) - before, 1, "{what} counts as {metric}");
    }
    assert_eq!(stored(&world), 0);
}

#[tokio::test]
async fn what_is_not_there_is_a_404_and_a_wrong_method_a_405() {
    let world = World::new();
    let (parts, answer) = send(&world, Request::get("/metrics"), "").await;
    assert_eq!((parts.status.as_u16(), &answer["reason"]), (404, &json!("NotFound")));
    let (parts, answer) = send(&world, Request::get(PATH).header("authorization", "Bearer good"), "").await;
    assert_eq!((parts.status.as_u16(), &answer["reason"]), (405, &json!("MethodNotAllowed")));
    assert_eq!(parts.headers["allow"], "POST, OPTIONS");
}

#[tokio::test]
async fn who_may_not_publish_is_told_before_his_body_is_read() {
    let world = World::new();
    let body = http_body_util::StreamBody::new(futures::stream::pending::<
        std::result::Result<http_body::Frame<Bytes>, std::convert::Infallible>,
    >());
    let peer = Peer { address: ([127, 0, 0, 1], 1).into(), certificates: Arc::new([]) };
    let answer = world.door.answer(&peer, Request::post(PATH).body(body).unwrap()).await;
    assert_eq!(answer.status(), 401);
}

#[tokio::test]
async fn while_store_or_routes_are_not_ready_publishing_is_a_503_with_a_time_to_come_again() {
    let world = World::new();
    world.store.refuses.store(true, Ordering::SeqCst);
    let (parts, answer) = send(&world, post(PATH), event("1", "a")).await;
    assert_eq!((parts.status.as_u16(), &parts.headers["retry-after"]), (503, &"30".parse().unwrap()));
    let message = answer["message"].as_str().unwrap();
    assert!(
        message.contains("too little room on the disk") && message.contains("nothing was stored"),
        "{message}"
    );
    assert_eq!(answer["details"]["retryAfterSeconds"], 30);
    world.store.refuses.store(false, Ordering::SeqCst);
    assert_eq!(structured(&world, PATH, event("1", "a")).await.0, 202);
    assert_eq!(world.counted("unavailable"), 1);
}

#[tokio::test]
async fn when_kubernetes_cannot_be_asked_publishing_is_a_503() {
    let world = World::new();
    world.api.broken.store(true, Ordering::SeqCst);
    let (parts, _) = send(&world, post(PATH), event("1", "a")).await;
    assert_eq!((parts.status.as_u16(), &parts.headers["retry-after"]), (503, &"5".parse().unwrap()));
}

#[tokio::test]
async fn a_dry_run_says_who_would_get_it_and_who_not_and_why_and_stores_nothing() {
    let world = World::new();
    world.webhook("team-a", "orders", &["order.*"], true);
    world.webhook("team-a", "all", &["*"], false);
    let gone = world.webhook("team-a", "gone", &["order.created"], true);
    world.store.disable(&gone);
    world.webhook("team-a", "invoices", &["invoice.*"], true);
    let path = format!("{PATH}?dryRun=All&fieldManager=kubectl");
    let (code, answer) = structured(&world, &path, event("7", "order.created")).await;
    let expected = json!({
        "dryRun": true,
        "matched": 3,
        "webhooks": [
            {"name": "all", "matches": true, "held": "Paused"},
            {"name": "gone", "matches": true, "held": "Disabled"},
            {
                "name": "invoices",
                "matches": false,
                "reason": "none of its spec.eventTypes is this event's type",
                "held": "NotReady",
            },
            {"name": "orders", "matches": true, "held": "NotReady"},
        ],
    });
    assert_eq!((code, &answer), (200, &expected));
    assert_eq!((stored(&world), world.counted("accepted")), (0, 0));

    structured(&world, PATH, event("7", "order.created")).await;
    let (_, answer) = structured(&world, &path, event("7", "order.created")).await;
    assert_eq!((&answer["matched"], &answer["duplicate"]), (&json!(0), &json!(true)));

    let (_, answer) = structured(&world, &path, event("8", "x")).await;
    assert_eq!(answer["matched"], 1);
    let batch = format!("[{},{}]", event("9", "x"), event("10", "order.a"));
    let (parts, answer) = send(&world, post(&path).header("content-type", BATCH), batch).await;
    let matched: Vec<_> =
        answer["items"].as_array().unwrap().iter().map(|item| item["matched"].clone()).collect();
    assert_eq!((parts.status.as_u16(), matched), (200, vec![json!(1), json!(2)]));
    let (_, answer) = structured(&world, &path, event("11", "a").replace("/shop", "")).await;
    assert_eq!(answer["reason"], "BadRequest", "a dry run judges the event as well");
}

#[tokio::test]
async fn the_validation_handshake_is_answered_to_anybody() {
    let world = World::new();
    let options = |origin: Option<&str>| {
        let request = Request::options(PATH);
        origin.into_iter().fold(request, |request, origin| request.header("WebHook-Request-Origin", origin))
    };
    let (parts, _) = send(&world, options(Some("events.example")), "").await;
    assert_eq!((parts.status.as_u16(), &parts.headers["allow"]), (200, &"POST, OPTIONS".parse().unwrap()));
    assert_eq!(parts.headers["webhook-allowed-origin"], "*");
    assert_eq!(parts.headers["webhook-allowed-rate"], "*");
    let (parts, _) = send(&world, options(None), "").await;
    assert!(!parts.headers.contains_key("webhook-allowed-origin"), "nobody asked");
}

#[tokio::test]
async fn no_answer_has_a_token_or_a_payload_in_it() {
    let world = World::new();
    let canary = "canary-4711";
    let request = Request::post(PATH).header("authorization", format!("Bearer {canary}"));
    let (_, answer) = send(&world, request, "").await;
    assert!(!answer.to_string().contains(canary), "{answer}");
    let body = event("1", "a").replace("/shop", &format!("{canary} x"));
    let (_, answer) = send(&world, post(PATH), body).await;
    assert!(answer["reason"] == "BadRequest" && !answer.to_string().contains(canary), "{answer}");
}
