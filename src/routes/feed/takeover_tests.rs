//! Webhooks that are made anew, while the Kubernetes API answers or not which namespace they are in.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use hookwright_harness::scratch::scratch;
use http::{Request, Response};
use http_body_util::Full;
use kube::client::Body;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::model::address::Policy;
use crate::model::ids::{Minter, NamespaceUid};
use crate::model::time::UnixMillis;
use crate::routes::compile::MasterKey;
use crate::store::embedded::{Embedded, Options};
use crate::store::testing::event;
use crate::store::{Query, Summary};

const NAMESPACE: &str = "7d9f4d0e-5c1b-4d3e-9b53-6d2f5f2c0a11";

/// An API server that has a namespace `team-a`.
#[derive(Default)]
struct Api {
    /// It fails.
    broken: AtomicBool,
    /// So many answers are failures first.
    failures: Mutex<usize>,
}

impl Api {
    fn client(self: &Arc<Self>) -> Client {
        let api = Arc::clone(self);
        let service = tower::service_fn(move |_: Request<Body>| {
            let mut failures = api.failures.lock().unwrap();
            let fails = *failures > 0 || api.broken.load(Ordering::SeqCst);
            *failures = failures.saturating_sub(1);
            let (code, body) = if fails {
                (
                    500,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no",
                    "reason": "InternalError", "code": 500}),
                )
            } else {
                (
                    200,
                    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata":
                    {"name": "team-a", "uid": NAMESPACE, "creationTimestamp": "2026-11-24T10:00:00Z"}}),
                )
            };
            let answer = Response::builder().status(code).body(Full::from(body.to_string())).unwrap();
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        Client::new(service, "default")
    }
}

fn uid(number: u8) -> WebhookUid {
    WebhookUid::from_bytes([number; 16])
}

fn reference(number: u8) -> WebhookRef {
    WebhookRef { uid: uid(number), namespace: "team-a".into(), name: "orders".into() }
}

/// Another Webhook called `orders` for each number.
fn orders(number: u8) -> DeserializeGuard<Webhook> {
    serde_json::from_value(json!({
        "apiVersion": "hookwright.dev/v1alpha1",
        "kind": "Webhook",
        "metadata": { "name": "orders", "namespace": "team-a", "generation": 1, "uid": uid(number).to_string(),
            "creationTimestamp": "2026-11-25T10:00:00Z" },
        "spec": { "url": "https://hooks.example.com/", "eventTypes": ["*"] },
    }))
    .unwrap()
}

struct World {
    api: Arc<Api>,
    store: Arc<Embedded>,
    table: Arc<Table>,
    feed: Feed,
    _dir: TempDir,
}

impl World {
    /// The store knows the first Webhook, which has failed seven times.
    async fn new() -> Self {
        let (api, table, dir) = (Arc::new(Api::default()), Arc::new(Table::default()), scratch());
        let store = Embedded::open(Options { min_free_bytes: 0, ..Options::new(dir.path()) }).unwrap();
        let namespace_uid: Option<NamespaceUid> = Some(NAMESPACE.parse().unwrap());
        store.adopt(Summary { failure_count: 7, namespace_uid, ..Summary::new(reference(1)) }).await.unwrap();
        let compiler = Compiler::new(MasterKey::new([7; 32]), Policy::default());
        let (feed, _) = Feed::new(
            api.client(),
            Scope::All,
            compiler,
            Arc::clone(&table),
            Arc::clone(&store) as Arc<dyn Store>,
        );
        Self { api, store, table, feed, _dir: dir }
    }

    /// The first complete list has these.
    async fn list(&mut self, numbers: &[u8]) {
        self.feed.on_webhook((0, Event::Init)).await;
        for number in numbers {
            self.feed.on_webhook((0, Event::InitApply(orders(*number)))).await;
        }
        self.feed.on_webhook((0, Event::InitDone)).await;
    }

    async fn made(&mut self, number: u8) {
        self.feed.on_webhook((0, Event::Apply(orders(number)))).await;
        self.read().await;
    }

    async fn deleted(&mut self, number: u8) {
        self.feed.on_webhook((0, Event::Delete(orders(number)))).await;
    }

    /// Until nothing is to be read any more.
    async fn read(&mut self) {
        loop {
            while let Some(key) = self.feed.work.start(READINGS) {
                self.feed.read(key);
            }
            let Some(reading) = self.feed.readings.next().await else { return };
            self.feed.on_reading(reading);
        }
    }

    async fn pass(&mut self, time: Duration) {
        tokio::time::advance(time).await;
        self.feed.tick(Instant::now());
        self.read().await;
    }

    /// How often it has failed, as far as the store knows it, and whether it is in force.
    fn state(&self, number: u8) -> (Option<u64>, bool) {
        let failures = self.store.summary(uid(number)).map(|summary| summary.failure_count);
        (failures, self.table.get(uid(number)).is_some())
    }
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_question_loses_nothing_of_the_former_webhook() {
    let mut world = World::new().await;
    world.list(&[1]).await;
    world.deleted(1).await;
    world.api.broken.store(true, Ordering::SeqCst);
    world.made(2).await;
    for _ in 0..9 {
        assert_eq!(world.state(2), (None, false), "it could not take over later");
        assert_eq!(world.store.known(), [reference(1)]);
        world.pass(Duration::from_secs(10)).await;
    }
    world.api.broken.store(false, Ordering::SeqCst);
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(world.state(2), (Some(7), true));
    assert_eq!(world.store.known(), [reference(2)]);
}

#[tokio::test(start_paused = true)]
async fn the_first_list_asks_again_before_events_are_taken() {
    let mut world = World::new().await;
    *world.api.failures.lock().unwrap() = 2;
    world.list(&[2]).await;
    assert_eq!(world.state(2), (Some(7), true));
}

#[tokio::test(start_paused = true)]
async fn the_first_list_ends_though_nobody_answers() {
    let mut world = World::new().await;
    world.api.broken.store(true, Ordering::SeqCst);
    world.list(&[2]).await;
    assert!(world.table.serves("team-a"), "others are not held up");
    world.read().await;
    assert_eq!(world.state(2), (None, false));
    world.api.broken.store(false, Ordering::SeqCst);
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(world.state(2), (Some(7), true));
}

#[tokio::test(start_paused = true)]
async fn without_a_former_webhook_it_is_in_force_at_once_and_placed_later() {
    for at_start in [false, true] {
        let mut world = World::new().await;
        world.store.purge(uid(1)).await.unwrap();
        world.api.broken.store(true, Ordering::SeqCst);
        if at_start {
            world.list(&[3]).await;
        } else {
            world.list(&[]).await;
            world.made(3).await;
        }
        let place = |world: &World| world.store.summary(uid(3)).unwrap().namespace_uid;
        for _ in 0..3 {
            assert_eq!((world.state(3), place(&world)), ((Some(0), true), None));
            world.pass(ASK_AGAIN).await;
        }
        world.api.broken.store(false, Ordering::SeqCst);
        world.pass(ASK_AGAIN).await;
        assert_eq!((world.state(3), place(&world)), ((Some(0), true), Some(NAMESPACE.parse().unwrap())));
        // So one that replaces it goes on with what it leaves.
        assert!(world.feed.unanswered.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn one_whose_erasing_was_interrupted_gets_events_when_it_is_there_again() {
    for at_start in [false, true] {
        let mut world = World::new().await;
        let (minter, now) = (Minter::default(), UnixMillis::from_millis(1_800_000_000_000));
        let event = |count: usize| event(&minter, now, &vec![&reference(1); count]);
        world.store.append(vec![event(2000)]).await.unwrap();
        let is_erasing = |world: &World| world.store.summary(uid(1)).is_some_and(|known| known.erasing);
        tokio::select! {
            biased;
            purged = world.store.purge(uid(1)) => panic!("it was not interrupted: {purged:?}"),
            () = async { while !is_erasing(&world) { tokio::task::yield_now().await } } => {}
        }
        if at_start {
            world.list(&[1]).await;
        } else {
            world.list(&[]).await;
            world.made(1).await;
        }
        assert_eq!(world.state(1), (Some(0), true), "it begins anew");
        assert_eq!(world.store.metrics().discarded_deliveries.get(), 2000);
        world.store.append(vec![event(1)]).await.unwrap();
        let known = world.store.summary(uid(1)).unwrap();
        assert_eq!((known.pending, known.erasing), (1, false));
        let page = world.store.query(Query { limit: 9, ..Query::default() }).await.unwrap();
        assert_eq!(page.deliveries.len(), 1);
    }
}
