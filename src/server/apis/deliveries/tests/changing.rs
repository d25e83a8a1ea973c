//! What can be done to a line, through the door.

use super::*;
use crate::store::records::{Asked, Redelivered};

const SHOP: &str = "system:serviceaccount:team-a:shop";

async fn post(world: &World, path: &str, body: &str) -> (u16, Value) {
    let peer = Peer { address: ([127, 0, 0, 1], 1).into(), certificates: Arc::new([]) };
    let request = Request::post(format!("{BASE}/namespaces/{path}")).header("authorization", "Bearer good");
    let request = request.body(Full::new(bytes::Bytes::from(body.to_owned()))).unwrap();
    let (parts, body) = world.door.answer(&peer, request).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), serde_json::from_slice(&body).unwrap())
}

fn path(n: u8, change: &str) -> String {
    format!("team-a/deliveries/{}/{change}", name(n))
}

fn says(status: &Value, part: &str) -> bool {
    status["message"].as_str().is_some_and(|message| message.contains(part))
}

/// The world of the log; there may be changed what is in team-a. 8 was erased, 9 is of a Webhook that is gone.
fn changeable() -> World {
    let world = world();
    let mut log = world.store.log.lock().unwrap();
    let orders = log[1].clone();
    let by = Asked { by: "jane".into(), at: START };
    log.push(Delivery { name: delivery("", "", 8).name, expunged: Some(by), ..orders.clone() });
    log.push(failed(delivery("team-a", "gone", 9)));
    let arrived = Delivery { name: delivery("", "", 10).name, state: State::Success, reason: None, ..orders };
    log.push(arrived);
    drop(log);
    allow(&world, &["create deliveries/redeliver team-a", "create deliveries/expunge team-a"]);
    world
}

#[tokio::test]
async fn what_is_finished_is_redelivered_in_the_users_name() {
    let world = changeable();
    for (n, held) in [(2, json!("NotReady")), (6, json!("Paused")), (10, json!("NotReady"))] {
        let (code, done) = post(&world, &path(n, "redeliver"), "").await;
        let expected = json!({
            "apiVersion": API_VERSION, "kind": "DeliveryRedelivery",
            "metadata": {"name": name(n), "namespace": "team-a"},
            "requestedBy": SHOP, "requestedAt": START.to_string(), "held": held,
        });
        assert_eq!((code, done), (201, expected), "{n}");
    }
    let asked = world.store.asked.lock().unwrap();
    let of: Vec<_> =
        asked.iter().map(|one| (one.name.to_string(), &*one.namespace, &*one.by, one.at)).collect();
    assert_eq!(of, [2, 6, 10].map(|n| (name(n), "team-a", SHOP, START)));
}

#[tokio::test]
async fn what_cannot_be_redelivered_is_refused_with_why_and_what_to_do() {
    let world = changeable();
    for (n, code, reason, part) in [
        (1, 409, "Conflict", "it is Held (NotReady), and is attempted by itself once Webhook orders lets it"),
        (4, 409, "Conflict", "create another WebhookTest"),
        (5, 409, "Conflict", "it is Held (Paused)"),
        (7, 404, "NotFound", "not found"),
        (
            8,
            409,
            "Conflict",
            "erased by jane at 2027-01-15T08:00:00.000Z: publish it once more as an event with another id",
        ),
        (9, 404, "NotFound", "not found"),
        (99, 404, "NotFound", "not found"),
    ] {
        for query in ["", "?dryRun=All"] {
            let (is, status) = post(&world, &format!("{}{query}", path(n, "redeliver")), "{}").await;
            assert_eq!((is, &status["reason"]), (code, &json!(reason)), "{n}: {status}");
            assert!(says(&status, part), "{n}: {status}");
            assert_eq!(status["details"]["name"], name(n));
        }
    }
    assert!(world.store.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_store_has_the_last_word_on_a_redelivery() {
    let world = changeable();
    for (answer, code, part) in [
        (Redelivered::NotFinished, 409, "it is not finished"),
        (Redelivered::NotFound, 404, "not found"),
        (Redelivered::Expunged, 409, "erased, just now"),
        (Redelivered::Test, 409, "create another WebhookTest"),
    ] {
        *world.store.redelivered.lock().unwrap() = Some(answer);
        let (is, status) = post(&world, &path(2, "redeliver"), "").await;
        assert!(is == code && says(&status, part), "{answer:?}: {status}");
    }
    world.store.refuses.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(post(&world, &path(2, "redeliver"), "").await.0, 503);
}

#[tokio::test(start_paused = true)]
async fn a_redelivery_that_the_store_does_not_answer_may_have_been_made() {
    let world = changeable();
    world.store.hangs.store(true, std::sync::atomic::Ordering::SeqCst);
    let (code, status) = post(&world, &path(2, "redeliver"), "").await;
    assert!(code == 503 && says(&status, "may still do it"), "{status}");
}

#[tokio::test]
async fn an_event_is_erased_in_the_users_name_and_again_in_the_firsts() {
    let world = changeable();
    for (n, by) in [(1, SHOP), (4, SHOP), (8, "jane"), (10, SHOP)] {
        let (code, done) = post(&world, &path(n, "expunge"), "").await;
        let expected = json!({
            "apiVersion": API_VERSION, "kind": "DeliveryExpunge",
            "metadata": {"name": name(n), "namespace": "team-a"},
            "requestedBy": by, "requestedAt": START.to_string(), "deliveries": 3, "ended": 1,
        });
        assert_eq!((code, done), (201, expected), "{n}");
    }
    assert_eq!(post(&world, &path(7, "expunge"), "").await.0, 404, "of another namespace");
    assert_eq!(post(&world, &path(9, "expunge"), "").await.0, 404, "of a Webhook that is gone");
    let erased = world.store.erased.lock().unwrap();
    assert_eq!(erased.len(), 4);
    assert!(erased.iter().all(|one| &*one.namespace == "team-a" && &*one.by == SHOP && one.at == START));
}

#[tokio::test]
async fn a_payload_that_was_erased_says_by_whom_and_when() {
    let world = changeable();
    let one = format!("/namespaces/team-a/deliveries/{}", name(8));
    let (code, status) = get_as(&world, &format!("{one}/payload"), "application/json").await;
    assert_eq!((code, &status["reason"]), (410, &json!("Gone")));
    assert!(says(&status, "erased by jane at 2027-01-15T08:00:00.000Z"), "{status}");
    assert_eq!(get(&world, &one).await["status"]["expunged"]["by"], "jane", "the line is still there");
}

#[tokio::test]
async fn a_dry_run_does_nothing() {
    let world = changeable();
    for change in ["redeliver", "expunge"] {
        let (code, done) = post(&world, &format!("{}?dryRun=All", path(2, change)), "").await;
        assert_eq!((code, &done["dryRun"]), (200, &json!(true)), "{done}");
        assert_eq!(done.get("deliveries"), None);
        let (code, status) = post(&world, &format!("{}?dryRun=Some", path(2, change)), "").await;
        assert!(code == 400 && says(&status, "dryRun must be All"), "{status}");
    }
    assert!(world.store.asked.lock().unwrap().is_empty() && world.store.erased.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_says_nothing() {
    let world = World::with(Settings { max_body_bytes: 20, namespaces: Vec::new() });
    let webhook = world.webhook("team-a", "orders", &["*"], true);
    *world.store.log.lock().unwrap() = vec![Delivery { webhook, ..delivery("", "", 1) }];
    allow(&world, &["create deliveries/expunge team-a"]);
    for (body, code) in [
        ("", 201),
        ("{}", 201),
        (" { }\n", 201),
        ("[]", 400),
        ("null", 400),
        ("{\"by\":\"joe\"}", 400),
        ("{}{}", 400),
        ("{", 400),
        ("{                       }", 413),
    ] {
        let (is, status) = post(&world, &path(1, "expunge"), body).await;
        assert_eq!(is, code, "{body:?}: {status}");
    }
}

#[tokio::test]
async fn each_change_needs_its_own_right() {
    for (right, allowed) in [
        ("", [false, false]),
        ("create deliveries team-a", [false, false]),
        ("get deliveries/redeliver team-a", [false, false]),
        ("create deliveries/redeliver team-b", [false, false]),
        ("create deliveries/redeliver team-a", [true, false]),
        ("create deliveries/expunge team-a", [false, true]),
    ] {
        let world = changeable();
        *world.api.readable.lock().unwrap() = [right.to_owned()].into();
        for (change, allowed) in ["redeliver", "expunge"].into_iter().zip(allowed) {
            let (code, status) = post(&world, &path(2, change), "").await;
            assert_eq!(code, if allowed { 201 } else { 403 }, "{right:?} {change}: {status}");
        }
    }
    let scoped = World::with(Settings { max_body_bytes: 1, namespaces: vec!["team-b".to_owned()] });
    allow(&scoped, &["create deliveries/redeliver team-a"]);
    assert_eq!(post(&scoped, &path(2, "redeliver"), "").await.0, 404, "a namespace that is not served");
}
