//! The log through the door.

mod changing;
mod using;
mod whole;

use http::Request;
use http_body_util::{BodyExt as _, Full};

use super::super::object::tests::{delivery, failed};
use super::*;
use crate::model::event::Attributes;
use crate::server::Settings;
use crate::server::listener::Peer;
use crate::server::testing::{START, World};
use crate::store::records::{Event, State};

const BASE: &str = "/apis/delivery.hookwright.dev/v1alpha1";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

async fn get_as(world: &World, path: &str, accept: &str) -> (u16, Value) {
    let peer = Peer { address: ([127, 0, 0, 1], 1).into(), certificates: Arc::new([]) };
    let request = Request::get(format!("{BASE}{path}")).header("authorization", "Bearer good");
    let request = request.header("accept", accept).body(Full::new(bytes::Bytes::new())).unwrap();
    let (parts, body) = world.door.answer(&peer, request).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), serde_json::from_slice(&body).unwrap())
}

async fn get(world: &World, path: &str) -> Value {
    let (code, answer) = get_as(world, path, "application/json").await;
    assert_eq!(code, 200, "{path}: {answer}");
    answer
}

/// What the delivery with this number is called.
fn name(n: u8) -> String {
    delivery("", "", n).name.to_string()
}

/// The numbers of the deliveries in a list.
fn numbers(list: &Value) -> Vec<u8> {
    let items = list["items"].as_array().unwrap();
    let number =
        |item: &Value| u8::from_str_radix(&item["metadata"]["name"].as_str().unwrap()[..2], 16).unwrap();
    items.iter().map(number).collect()
}

fn allow(world: &World, rights: &[&str]) {
    world.api.readable.lock().unwrap().extend(rights.iter().map(|right| (*right).to_owned()));
}

/// team-a: orders (active, not ready), 1 to 4, of which 2 failed and 4 is a test; bills, 5 and 6 (failed).
/// team-b: theirs, 7. May be read: team-a, and all.
fn world() -> World {
    let world = World::new();
    let orders = world.webhook("team-a", "orders", &["*"], true);
    let bills = world.webhook("team-a", "bills", &["*"], false);
    let theirs = world.webhook("team-b", "theirs", &["*"], true);
    let line = |webhook: &crate::model::ids::WebhookRef, n| Delivery {
        webhook: webhook.clone(),
        ..delivery("", "", n)
    };
    let mut log = vec![
        line(&orders, 1),
        failed(line(&orders, 2)),
        line(&orders, 3),
        Delivery { test: true, ..line(&orders, 4) },
        line(&bills, 5),
        failed(line(&bills, 6)),
        line(&theirs, 7),
    ];
    log[2].event_type = "order.paid".into();
    *world.store.log.lock().unwrap() = log;
    allow(
        &world,
        &[
            "list deliveries team-a",
            "list deliveries ",
            "get deliveries team-a",
            "get deliveries/payload team-a",
        ],
    );
    world
}

#[tokio::test]
async fn a_list_is_of_a_namespace_or_of_all_and_newest_first() {
    let world = world();
    let list = get(&world, "/namespaces/team-a/deliveries").await;
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("DeliveryList"), &json!(API_VERSION)));
    assert_eq!(list["metadata"], json!({"resourceVersion": START.as_millis().to_string()}));
    assert_eq!(list["items"][0]["kind"], "Delivery");
    assert_eq!(numbers(&list), [6, 5, 4, 3, 2, 1]);
    assert_eq!(numbers(&get(&world, "/deliveries").await), [7, 6, 5, 4, 3, 2, 1]);
}

#[tokio::test]
async fn selectors_choose_also_by_what_is_derived() {
    let world = world();
    let selected =
        async |query: &str| numbers(&get(&world, &format!("/namespaces/team-a/deliveries?{query}")).await);
    for (query, expected) in [
        ("fieldSelector=spec.webhook%3Dorders", vec![4, 3, 2, 1]),
        ("fieldSelector=spec.webhook%3Dorders,status.state%3DFailed", vec![2]),
        ("fieldSelector=spec.webhook!%3Dorders", vec![6, 5]),
        ("fieldSelector=spec.webhook%3Dnone", vec![]),
        ("fieldSelector=status.state%3DHeld", vec![5, 3, 1]),
        ("fieldSelector=status.state%3DPending", vec![4]),
        ("fieldSelector=status.state%3DRetrying", vec![]),
        ("fieldSelector=status.state!%3DFailed", vec![5, 4, 3, 1]),
        ("fieldSelector=status.state%3DHeld,status.state%3DFailed", vec![]),
        ("fieldSelector=spec.test%3Dtrue", vec![4]),
        ("fieldSelector=spec.eventType%3Dorder.paid", vec![3]),
        ("fieldSelector=spec.eventId%3D5%5C,%5C%3D%5C%5C", vec![5]),
        ("fieldSelector=metadata.namespace%3Dteam-b", vec![]),
        ("labelSelector=hookwright.dev/webhook%3Dbills", vec![6, 5]),
        ("labelSelector=hookwright.dev/event-type+in+(order.paid)", vec![3]),
    ] {
        assert_eq!(selected(query).await, expected, "{query}");
    }
    let one = format!("fieldSelector=metadata.name%3D{}", name(3));
    assert_eq!(selected(&one).await, [3]);
    let theirs = format!("fieldSelector=metadata.name%3D{}", name(7));
    assert_eq!(selected(&theirs).await, [0; 0], "of another namespace");
    let all = get(&world, "/deliveries?fieldSelector=metadata.namespace%3Dteam-b").await;
    assert_eq!(numbers(&all), [7]);
    let all = get(&world, "/deliveries?fieldSelector=spec.webhook%3Dorders").await;
    assert_eq!(numbers(&all), [4, 3, 2, 1], "a name in any namespace");
}

#[tokio::test]
async fn the_store_is_asked_for_no_more_than_is_wanted() {
    let world = world();
    get(&world, "/namespaces/team-a/deliveries?limit=2&fieldSelector=spec.webhook%3Dorders").await;
    get(&world, "/namespaces/team-a/deliveries?limit=2&fieldSelector=status.state%3DFailed").await;
    get(&world, "/namespaces/team-a/deliveries?limit=2&fieldSelector=spec.eventId%3D7").await;
    get(&world, "/namespaces/team-a/deliveries?limit=2&fieldSelector=status.state%3DHeld").await;
    let queries = world.store.queries.lock().unwrap();
    let limits: Vec<_> = queries.iter().map(|query| query.limit).collect();
    assert_eq!(limits, [2, 2, 2, FIRST_BATCH], "what the store finds by itself, and what must be looked at");
    assert!(queries[0].webhook.is_some() && queries[0].states.is_empty());
    assert_eq!(queries[1].states, [State::Failed]);
    assert_eq!(queries[2].event_id.as_deref(), Some("7"));
    assert_eq!(queries[3].states, [State::Pending, State::Retrying]);
}

#[tokio::test]
async fn pages_go_on_where_the_last_ended_and_end() {
    let world = world();
    for (query, expected) in [
        ("limit=4", vec![vec![6, 5, 4, 3], vec![2, 1]]),
        ("limit=3", vec![vec![6, 5, 4], vec![3, 2, 1]]),
        ("limit=2&fieldSelector=status.state%3DHeld", vec![vec![5, 3], vec![1]]),
        ("limit=1&fieldSelector=status.state%3DFailed", vec![vec![6], vec![2]]),
    ] {
        let (mut pages, mut from) = (Vec::new(), String::new());
        loop {
            let path = format!("/namespaces/team-a/deliveries?{query}&continue={from}");
            let list = get(&world, &path).await;
            pages.push(numbers(&list));
            match list["metadata"]["continue"].as_str() {
                Some(token) => token.clone_into(&mut from),
                None => break,
            }
        }
        assert_eq!(pages, expected, "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_search_that_finds_little_answers_after_a_bounded_work_with_a_token_to_go_on() {
    let world = world();
    let template = world.store.log.lock().unwrap()[2].clone();
    let rare = |n: usize| n == 6000;
    *world.store.log.lock().unwrap() = (0..7000_usize)
        .map(|n| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&(u64::MAX - n as u64).to_be_bytes());
            let event_type = if rare(n) { "rare" } else { "common" };
            Delivery {
                name: DeliveryName::from_bytes(bytes),
                event_type: event_type.into(),
                ..template.clone()
            }
        })
        .collect();
    let path = "/namespaces/team-a/deliveries?limit=500&fieldSelector=spec.eventType!%3Dcommon";
    let first = get(&world, path).await;
    assert_eq!(first["items"], json!([]));
    assert_eq!(world.store.queries.lock().unwrap().len(), WORK / BATCH);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = get(&world, &format!("{path}&continue={token}")).await;
    assert_eq!((second["items"].as_array().unwrap().len(), second["metadata"].get("continue")), (1, None));
}

#[tokio::test]
async fn each_form_is_served_and_no_other() {
    let world = world();
    let (_, table) = get_as(&world, "/namespaces/team-a/deliveries?limit=1", TABLE).await;
    assert_eq!(
        (&table["kind"], &table["rows"][0]["object"]["kind"]),
        (&json!("Table"), &json!("PartialObjectMetadata"))
    );
    assert!(table["metadata"]["continue"].is_string());
    let one = format!("/namespaces/team-a/deliveries/{}", name(2));
    let (_, table) = get_as(&world, &format!("{one}?includeObject=Object"), TABLE).await;
    assert_eq!(table["rows"][0]["object"]["status"]["state"], "Failed");
    let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let (_, list) = get_as(&world, "/namespaces/team-a/deliveries", metadata).await;
    assert_eq!((&list["kind"], list["items"][0].get("spec")), (&json!("PartialObjectMetadataList"), None));
    for path in ["/namespaces/team-a/deliveries", &one, &format!("{one}/payload")] {
        let (code, status) = get_as(&world, path, "application/yaml").await;
        assert_eq!((code, &status["reason"]), (406, &json!("NotAcceptable")), "{path}");
    }
}

#[tokio::test]
async fn one_line_is_found_by_its_name_in_its_namespace() {
    let world = world();
    allow(&world, &["get deliveries team-b"]);
    let one = get(&world, &format!("/namespaces/team-a/deliveries/{}", name(1))).await;
    assert_eq!((&one["status"]["state"], &one["status"]["reason"]), (&json!("Held"), &json!("NotReady")));
    let test = get(&world, &format!("/namespaces/team-a/deliveries/{}", name(4))).await;
    assert_eq!(test["status"]["state"], "Pending", "a test is sent also when the Webhook is not ready");
    let elsewhere = format!("/namespaces/team-b/deliveries/{}", name(1));
    for path in [
        "/namespaces/team-a/deliveries/orders-1",
        &elsewhere,
        &format!("/namespaces/team-a/deliveries/{}", name(1).replace('-', "")),
    ] {
        let (code, status) = get_as(&world, path, "application/json").await;
        let asked = path.rsplit('/').next().unwrap();
        assert_eq!((code, &status["reason"]), (404, &json!("NotFound")), "{path}");
        let details = json!({"group": "delivery.hookwright.dev", "kind": "deliveries", "name": asked});
        assert_eq!(status["details"], details);
        assert_eq!(status["message"], format!("deliveries.delivery.hookwright.dev \"{asked}\" not found"));
    }
}

#[tokio::test]
async fn bodies_are_in_the_payload_alone() {
    let world = world();
    let event = Event {
        uid: world.store.log.lock().unwrap()[1].event,
        namespace: "team-a".into(),
        accepted_at: START,
        attributes: Arc::new(Attributes {
            id: "2".into(),
            source: "/shop".into(),
            event_type: "order.created".into(),
            data_content_type: None,
            data_schema: None,
            subject: None,
            time: None,
            extensions: Vec::new(),
        }),
        data: bytes::Bytes::from_static(b"canary-data"),
    };
    world.store.stored.lock().unwrap().insert(event.uid, Arc::new(event));
    let one = format!("/namespaces/team-a/deliveries/{}", name(2));
    let payload = get(&world, &format!("{one}/payload")).await;
    assert_eq!(
        (&payload["data"], &payload["answers"][1]["body"]),
        (&json!("canary-data"), &json!("canary-body"))
    );
    for path in [&one, "/namespaces/team-a/deliveries", "/namespaces/team-a/deliveries?includeObject=Object"]
    {
        for accept in ["application/json", TABLE] {
            let (_, answer) = get_as(&world, path, accept).await;
            assert!(!answer.to_string().contains("canary"), "{path} {accept}");
        }
    }
}

#[tokio::test]
async fn each_operation_needs_its_own_right() {
    let one = format!("/namespaces/team-a/deliveries/{}", name(2));
    let payload = format!("{one}/payload");
    let paths = ["/namespaces/team-a/deliveries", "/deliveries", &one, &payload];
    for (right, allowed) in [
        ("", [false, false, false, false]),
        ("list deliveries team-a", [true, false, false, false]),
        ("list deliveries team-b", [false, false, false, false]),
        ("list deliveries ", [false, true, false, false]),
        ("get deliveries team-a", [false, false, true, false]),
        ("get deliveries/payload team-a", [false, false, false, true]),
    ] {
        let world = world();
        *world.api.readable.lock().unwrap() = [right.to_owned()].into();
        for (path, allowed) in paths.iter().zip(allowed) {
            let (code, status) = get_as(&world, path, "application/json").await;
            assert_eq!(code, if allowed { 200 } else { 403 }, "{right:?} {path}: {status}");
        }
    }
}

#[tokio::test]
async fn each_refusal_of_the_log_has_its_code_and_reason() {
    let world = world();
    let path = "/namespaces/team-a/deliveries";
    for (query, code, says) in [
        ("fieldSelector=status.outcome%3DFailed", 400, "must be one of metadata.name"),
        ("labelSelector=a+of+b", 400, "labelSelector"),
        ("continue=abc", 400, "continue"),
        ("continue=0QID", 410, "another version"),
        ("limit=-1", 400, "limit"),
        ("watch=true", 405, "cannot be watched"),
    ] {
        let (is, status) = get_as(&world, &format!("{path}?{query}"), "application/json").await;
        assert_eq!((is, &status["kind"]), (code, &json!("Status")), "{query}");
        assert!(status["message"].as_str().unwrap().contains(says), "{query}: {status}");
    }
    let scoped = World::with(Settings { max_body_bytes: 1, namespaces: vec!["team-b".to_owned()] });
    allow(&scoped, &["list deliveries team-a"]);
    let (code, status) = get_as(&scoped, path, "application/json").await;
    assert_eq!((code, &status["details"]["kind"]), (404, &json!("deliveries")));
}

#[tokio::test]
async fn while_the_store_or_the_routes_are_not_ready_the_log_is_a_503_and_discovery_is_there() {
    let world = world();
    world.store.refuses.store(true, std::sync::atomic::Ordering::SeqCst);
    let one = format!("/namespaces/team-a/deliveries/{}", name(2));
    for path in ["/namespaces/team-a/deliveries", &one] {
        let (code, status) = get_as(&world, path, "application/json").await;
        assert_eq!((code, &status["details"]["retryAfterSeconds"]), (503, &json!(5)), "{path}");
    }
    assert_eq!(get(&world, "").await["kind"], "APIResourceList");

    let log = Log::new(Arc::clone(&world.store) as _, Arc::default(), Clock::system());
    let (parts, ()) = Request::get("/").body(()).unwrap().into_parts();
    let failure = log.list(None, &parts).await.unwrap_err();
    assert_eq!(failure.reason, Reason::ServiceUnavailable, "routes that are not known yet");
}
