//! For the tests of this folder: a fake of the few Kubernetes calls that the door makes (the real ones are
//! tried against a real control plane elsewhere), and a store that remembers what it was given.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::apis::deliveries::Log;
use super::auth::{FrontProxy, Gate};
use super::publish::Publisher;
use super::{Door, Settings};
use crate::clock::{Clock, Hand};
use crate::metrics::Metrics;
use crate::model::filter::Filter;
use crate::model::ids::{DeliveryName, EventUid, Minter, WebhookRef, WebhookUid};
use crate::model::time::UnixMillis;
use crate::routes::{Route, Table, Unready};
use crate::store::records::{DedupKey, DisableReason, Disabled};
use crate::store::*;

/// When the clock of tests starts.
pub(super) const START: UnixMillis = UnixMillis::from_millis(1_800_000_000_000);

/// A fake Kubernetes API: reviews of tokens and of access, Secrets and config maps.
#[derive(Default)]
pub(super) struct FakeApi {
    /// By token: the user's name and the audiences that the answer says.
    pub(super) tokens: Mutex<HashMap<String, (String, Vec<String>)>>,
    /// User and namespace of each right to publish.
    pub(super) rights: Mutex<HashSet<(String, String)>>,
    /// What everybody may do with the log: `verb resource/subresource namespace`.
    pub(super) readable: Mutex<HashSet<String>>,
    /// By path: objects.
    pub(super) objects: Mutex<HashMap<String, Value>>,
    /// Every call: method and path.
    pub(super) calls: Mutex<Vec<String>>,
    /// The last review's spec.
    pub(super) reviewed: Mutex<Value>,
    /// Answers every call with 500.
    pub(super) broken: AtomicBool,
    /// Answers no call.
    pub(super) hangs: AtomicBool,
    versions: AtomicUsize,
}

impl FakeApi {
    /// With the token `good` of `system:serviceaccount:team-a:shop`, who may publish into `team-a`.
    pub(super) fn with_shop() -> Arc<Self> {
        let api = Self::default();
        let shop = "system:serviceaccount:team-a:shop".to_owned();
        api.tokens.lock().unwrap().insert("good".to_owned(), (shop.clone(), vec!["hookwright".to_owned()]));
        api.rights.lock().unwrap().insert((shop, "team-a".to_owned()));
        Arc::new(api)
    }

    pub(super) fn client(self: &Arc<Self>) -> Client {
        let api = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = Arc::clone(&api);
            async move { Ok::<_, std::convert::Infallible>(api.call(request).await) }
        });
        Client::new(service, "default")
    }

    /// How many calls had this in their method and path.
    pub(super) fn count(&self, part: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| call.contains(part)).count()
    }

    async fn call(&self, request: Request<Body>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        self.calls.lock().unwrap().push(format!("{} {path}", parts.method));
        if self.hangs.load(Ordering::SeqCst) {
            futures::future::pending::<()>().await;
        }
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (code, answer) = if self.broken.load(Ordering::SeqCst) {
            failure(500, "InternalError")
        } else if path.ends_with("/tokenreviews") {
            (201, self.token_review(body))
        } else if path.ends_with("/subjectaccessreviews") {
            (201, self.access_review(body))
        } else {
            self.object(parts.method.as_str(), &path, body)
        };
        Response::builder().status(code).body(Full::from(answer.to_string())).unwrap()
    }

    fn token_review(&self, mut review: Value) -> Value {
        *self.reviewed.lock().unwrap() = review["spec"].clone();
        let tokens = self.tokens.lock().unwrap();
        review["status"] = match review["spec"]["token"].as_str().and_then(|token| tokens.get(token)) {
            Some((user, audiences)) => json!({
                "authenticated": true,
                "audiences": audiences,
                "user": {
                    "username": user,
                    "uid": "u-1",
                    "groups": ["system:serviceaccounts"],
                    "extra": {"pod": ["p-1"]},
                },
            }),
            None => json!({"authenticated": false, "error": "invalid bearer token"}),
        };
        review["metadata"] = json!({});
        review
    }

    fn access_review(&self, mut review: Value) -> Value {
        let spec = &review["spec"];
        *self.reviewed.lock().unwrap() = spec.clone();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let attributes = &spec["resourceAttributes"];
        let publishing = attributes["verb"] == "create"
            && attributes["group"] == "delivery.hookwright.dev"
            && attributes["resource"] == "cloudevents";
        let right = (text(&spec["user"]), text(&attributes["namespace"]));
        let resource = match attributes["subresource"].as_str() {
            Some(subresource) => format!("{}/{subresource}", text(&attributes["resource"])),
            None => text(&attributes["resource"]),
        };
        let reading = format!("{} {resource} {}", text(&attributes["verb"]), text(&attributes["namespace"]));
        let allowed = publishing && self.rights.lock().unwrap().contains(&right)
            || self.readable.lock().unwrap().contains(&reading);
        review["status"] = json!({"allowed": allowed});
        review["metadata"] = json!({});
        review
    }

    fn object(&self, method: &str, path: &str, mut body: Value) -> (u16, Value) {
        let mut objects = self.objects.lock().unwrap();
        let version = self.versions.fetch_add(1, Ordering::SeqCst).to_string();
        let path = match method {
            "POST" => format!("{path}/{}", body["metadata"]["name"].as_str().unwrap()),
            _ => path.to_owned(),
        };
        let found = objects.get(&path);
        match (method, found) {
            ("GET", Some(found)) => return (200, found.clone()),
            ("GET" | "PUT", None) => return failure(404, "NotFound"),
            ("POST", Some(_)) => return failure(409, "AlreadyExists"),
            ("PUT", Some(found))
                if found["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] =>
            {
                return failure(409, "Conflict");
            }
            _ => {}
        }
        body["metadata"]["resourceVersion"] = json!(version);
        objects.insert(path, body.clone());
        (200, body)
    }
}

fn failure(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
        "reason": reason, "code": code});
    (code, status)
}

/// A store that remembers what is appended and does nothing else.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) events: Mutex<Vec<NewEvent>>,
    pub(super) refuses: AtomicBool,
    pub(super) over_quota: AtomicBool,
    pub(super) hangs: AtomicBool,
    pub(super) summaries: Mutex<HashMap<WebhookUid, Arc<Summary>>>,
    /// The log, in any order.
    pub(super) log: Mutex<Vec<Delivery>>,
    /// Stored events, for payloads.
    pub(super) stored: Mutex<HashMap<EventUid, Arc<Event>>>,
    /// Queries that were asked.
    pub(super) queries: Mutex<Vec<Query>>,
    /// What was to be redelivered.
    pub(super) asked: Mutex<Vec<Redelivery>>,
    /// What becomes of it; none: it is queued.
    pub(super) redelivered: Mutex<Option<Redelivered>>,
    /// Deliveries whose attempt is under way.
    pub(super) sending: Mutex<HashSet<DeliveryName>>,
    /// What was to be erased.
    pub(super) erased: Mutex<Vec<Expunge>>,
    seen: Mutex<HashMap<[u8; 16], EventUid>>,
    wakes: Wakes,
}

impl Recorder {
    /// Says that this Webhook is disabled.
    pub(super) fn disable(&self, webhook: &WebhookRef) {
        let mut summary = Summary::new(webhook.clone());
        summary.disabled = Some(Disabled { generation: 1, at: START, reason: DisableReason::Gone });
        self.summaries.lock().unwrap().insert(webhook.uid, Arc::new(summary));
    }
}

crate::store::replays::without_replays!(Recorder);

impl Store for Recorder {
    fn append(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Appended>>> {
        async move {
            if self.hangs.load(Ordering::SeqCst) {
                futures::future::pending::<()>().await;
            }
            self.accepting()?;
            if self.over_quota.load(Ordering::SeqCst) {
                return Err(Error::OverQuota { namespace: "shop".into(), limit: 7 });
            }
            let (mut seen, mut kept) = (self.seen.lock().unwrap(), self.events.lock().unwrap());
            let append = |event: NewEvent| {
                let key = event.dedup.as_ref().map(|DedupKey(key)| *key);
                if let Some(first) = key.and_then(|key| seen.get(&key)) {
                    return Appended::Duplicate(*first);
                }
                seen.extend(key.map(|key| (key, event.uid)));
                kept.push(event);
                Appended::New
            };
            Ok(events.into_iter().map(append).collect())
        }
        .boxed()
    }

    fn accepting(&self) -> Result<()> {
        if self.refuses.load(Ordering::SeqCst) { Err(Error::Full) } else { Ok(()) }
    }

    fn duplicate_of(&self, _: &str, key: DedupKey, _: UnixMillis) -> Result<Option<EventUid>> {
        Ok(self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&key.0).copied())
    }

    fn summary(&self, webhook: WebhookUid) -> Option<Arc<Summary>> {
        self.summaries.lock().unwrap().get(&webhook).cloned()
    }

    fn claim(&self, _: ClaimRequest) -> BoxFuture<'_, Result<Claims>> {
        unreachable!("the door claims nothing")
    }

    fn release(&self, _: Vec<(WebhookUid, DeliveryName)>) -> BoxFuture<'_, Result<()>> {
        unreachable!("the door releases nothing")
    }

    fn record(&self, _: Vec<Outcome>) -> BoxFuture<'_, Result<()>> {
        unreachable!("the door records nothing")
    }

    fn redeliver(&self, asked: Vec<Redelivery>) -> BoxFuture<'_, Result<Vec<Redelivered>>> {
        async move {
            if self.hangs.load(Ordering::SeqCst) {
                futures::future::pending::<()>().await;
            }
            self.accepting()?;
            let answers = vec![self.redelivered.lock().unwrap().unwrap_or(Redelivered::Queued); asked.len()];
            self.asked.lock().unwrap().extend(asked);
            Ok(answers)
        }
        .boxed()
    }

    fn expunge(&self, asked: Expunge) -> BoxFuture<'_, Result<Expunged>> {
        async move {
            self.accepting()?;
            self.erased.lock().unwrap().push(asked);
            Ok(Expunged::Done { deliveries: 3, ended: 1 })
        }
        .boxed()
    }

    fn redate(&self, _: UnixMillis) -> BoxFuture<'_, Result<()>> {
        unreachable!("the door does not look after times")
    }

    fn retain(&self, _: UnixMillis) -> BoxFuture<'_, Result<u64>> {
        unreachable!("the door lets nothing go")
    }

    fn usage(&self, namespace: &str) -> Usage {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let deliveries = log.iter().filter(|line| &*line.webhook.namespace == namespace).count() as u64;
        Usage { bytes: 100 * deliveries, deliveries, pending_bytes: 0 }
    }

    fn adopt(&self, _: Summary) -> BoxFuture<'_, Result<()>> {
        unreachable!("the door adopts nothing")
    }

    fn set_gone(&self, _: WebhookUid, _: bool) {
        unreachable!("the door tells nobody gone")
    }

    fn update(&self, _: WebhookUid, _: Change) -> BoxFuture<'_, Result<()>> {
        unreachable!("the door updates nothing")
    }

    fn known(&self) -> Vec<WebhookRef> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().map(|line| line.webhook.clone()).collect()
    }

    fn purge(&self, _: WebhookUid) -> BoxFuture<'_, Result<u64>> {
        unreachable!("the door purges nothing")
    }

    fn query(&self, query: Query) -> BoxFuture<'_, Result<Page>> {
        async move {
            self.accepting()?;
            self.queries.lock().unwrap().push(query.clone());
            let Query { namespace, webhook, states, event_id, event_type, test, before, limit } = query;
            let mut found: Vec<_> = self.log.lock().unwrap().clone();
            found.retain(|line| {
                namespace.as_ref().is_none_or(|is| *is == line.webhook.namespace)
                    && webhook.is_none_or(|is| is == line.webhook.uid)
                    && (states.is_empty() || states.contains(&line.state))
                    && event_id.as_ref().is_none_or(|is| *is == line.event_id)
                    && event_type.as_ref().is_none_or(|is| *is == line.event_type)
                    && test.is_none_or(|is| is == line.test)
                    && before.is_none_or(|before| line.name < before)
            });
            found.sort_by_key(|line| std::cmp::Reverse(line.name));
            let more = found.len() > limit;
            found.truncate(limit);
            let next = found.last().map(|last| last.name).filter(|_| more);
            Ok(Page { deliveries: found, next })
        }
        .boxed()
    }

    fn delivery(&self, name: DeliveryName) -> BoxFuture<'_, Result<Option<Delivery>>> {
        async move {
            self.accepting()?;
            Ok(self.log.lock().unwrap().iter().find(|line| line.name == name).cloned())
        }
        .boxed()
    }

    fn is_under_way(&self, _: WebhookUid, name: DeliveryName) -> bool {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner).contains(&name)
    }

    fn event(&self, uid: EventUid) -> BoxFuture<'_, Result<Option<Arc<Event>>>> {
        async move { Ok(self.stored.lock().unwrap().get(&uid).cloned()) }.boxed()
    }

    fn oldest_due(&self, _: WebhookUid) -> Option<UnixMillis> {
        None
    }

    fn work(&self) -> &Wakes {
        &self.wakes
    }

    fn changes(&self) -> &Wakes {
        &self.wakes
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        async { Ok(()) }.boxed()
    }
}

/// Everything behind a door, and the door.
pub(super) struct World {
    pub(super) api: Arc<FakeApi>,
    pub(super) store: Arc<Recorder>,
    pub(super) table: Arc<Table>,
    pub(super) metrics: Metrics,
    pub(super) hand: Hand,
    pub(super) front_proxy: Arc<FrontProxy>,
    pub(super) door: Arc<Door>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Settings { max_body_bytes: 1 << 20, namespaces: Vec::new() })
    }

    pub(super) fn with(settings: Settings) -> Self {
        let (api, store, table) =
            (FakeApi::with_shop(), Arc::new(Recorder::default()), Arc::new(Table::default()));
        table.set_synced();
        let (clock, hand) = Clock::manual(START);
        let metrics = Metrics::default();
        let publisher = Publisher::new(
            Arc::clone(&store) as Arc<dyn Store>,
            Arc::clone(&table),
            Arc::new(Minter::default()),
            clock.clone(),
            metrics.clone(),
        );
        let front_proxy = Arc::new(FrontProxy::new(clock.clone()));
        let gate = Gate::new(&api.client(), Arc::clone(&front_proxy));
        let log = Log::new(Arc::clone(&store) as Arc<dyn Store>, Arc::clone(&table), clock);
        let door = Arc::new(Door::new(gate, publisher, log, metrics.clone(), settings));
        Self { api, store, table, metrics, hand, front_proxy, door }
    }

    /// Puts a Webhook in force.
    pub(super) fn webhook(&self, namespace: &str, name: &str, types: &[&str], active: bool) -> WebhookRef {
        let route = route(namespace, name, types, active);
        let webhook = route.webhook.clone();
        self.table.upsert(route);
        webhook
    }

    /// How many events were counted under a result.
    pub(super) fn counted(&self, result: &'static str) -> u64 {
        self.metrics.events_received.get_or_create(&crate::metrics::Received { result }).get()
    }
}

fn route(namespace: &str, name: &str, types: &[&str], active: bool) -> Route {
    Route {
        webhook: WebhookRef {
            uid: WebhookUid::from_uuid(uuid::Uuid::now_v7()),
            namespace: namespace.into(),
            name: name.into(),
        },
        generation: 1,
        filter: Filter::compile(types),
        active,
        endpoint: Err(Unready {
            reason: "SecretNotFound",
            message: "Secret is not there".to_owned(),
            stalled: true,
        }),
        public_key: "whpk_".into(),
        gives_up_after: Some(Duration::from_secs(1)),
        requested_at: None,
    }
}

/// A structured event with this id and type.
pub(super) fn event(id: &str, event_type: &str) -> String {
    json!({"specversion": "1.0", "id": id, "source": "/shop", "type": event_type, "data": {"n": 1}})
        .to_string()
}
