//! Keeps the table like the cluster: watches Webhooks and the metadata of labelled Secrets, reads what Webhooks refer
//! to on demand, compiles, and puts routes in force.
//!
//! Every existing Webhook has a route as soon as the store knows it, so that no event misses it; until its references are
//! read it is not ready. One that the store does not know may go on with what a former one of its name has left: which of
//! the namespaces of that name it is in is asked for first. What no watch tells (of a `ConfigMap`, or of a Secret without the label) is read again
//! from time to time.

mod adopt;
mod index;
mod read;
mod work;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use k8s_openapi::api::core::v1::Secret;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::Event;
use kube::{Client, Resource as _, ResourceExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::compile::{Compiler, identity};
use super::namespaces::Namespaces;
use super::references::{self, Kind, Reference, References};
use super::watch::{self, Change, Key, Mirror, Scope, Watched};
use super::{Route, Table};
use crate::api::{REQUESTED_AT, USE_LABEL, Webhook};
use crate::model::ids::{Namespace, WebhookRef, WebhookUid};
use crate::store::Store;
use adopt::{Unknown, adopt};
use index::Index;
use work::Work;

/// Readings of references under way at once.
const READINGS: usize = 64;
/// How often what is due to be read again is looked for.
const TICK: Duration = Duration::from_secs(1);
/// A namespace of which there was no answer is asked for again after this.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// How often a namespace is asked for at the first list, where what a former Webhook has left depends on it: events are
/// taken only after that.
const TRIES: u32 = 3;

/// The last objects that were whole, by namespace and name.
pub type Webhooks = reflector::Store<Webhook>;

/// What of a Webhook decides whether it is compiled anew.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    webhook: WebhookRef,
    generation: i64,
    requested_at: Option<String>,
    whole: bool,
}

/// A reading that has ended.
struct Reading {
    key: Key,
    uid: WebhookUid,
    what: Read,
}

/// What was read.
enum Read {
    /// Which namespace it is in, to make it known to the store first.
    Namespace {
        /// There was no answer.
        unanswered: bool,
    },
    /// What it refers to.
    References(References),
}

/// The task that keeps the table.
pub struct Feed {
    client: Client,
    namespaces: Arc<Namespaces>,
    scope: Scope,
    compiler: Compiler,
    table: Arc<Table>,
    store: Arc<dyn Store>,
    objects: Webhooks,
    writer: reflector::store::Writer<Webhook>,
    webhooks: Mirror<Seen>,
    secrets: Mirror<String>,
    index: Index,
    work: Work,
    readings: FuturesUnordered<BoxFuture<'static, Reading>>,
    /// Webhooks whose namespace was asked for, once.
    placed: HashSet<WebhookUid>,
    /// Those of them for which it is to be asked for again, and when.
    unanswered: HashMap<WebhookUid, (Key, Instant)>,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl Feed {
    /// A feed, and the objects it sees, for the controller.
    pub fn new(
        client: Client,
        scope: Scope,
        compiler: Compiler,
        table: Arc<Table>,
        store: Arc<dyn Store>,
    ) -> (Self, Webhooks) {
        let (objects, mut writer) = reflector::store();
        table.coverage().expect(&scope);
        // What is in it is kept by this feed's own lists: the reader is never to wait for it.
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitDone);
        let feed = Self {
            namespaces: Arc::new(Namespaces::new(client.clone())),
            client,
            compiler,
            table,
            store,
            objects: objects.clone(),
            writer,
            webhooks: Mirror::new(&scope),
            secrets: Mirror::new(&scope),
            index: Index::default(),
            work: Work::default(),
            readings: FuturesUnordered::new(),
            placed: HashSet::new(),
            unanswered: HashMap::new(),
            scope,
        };
        (feed, objects)
    }

    /// Keeps the table until it is told to stop. After the first complete list of a namespace its Webhooks are in the
    /// table, known to the store, and [`Table::serves`] it, whatever becomes of other namespaces.
    pub async fn run(mut self, stop: CancellationToken) {
        let coverage = Arc::clone(self.table.coverage());
        let mut webhooks = watch::objects::<Webhook>(&self.client, &self.scope, &coverage);
        let label = format!("{USE_LABEL}=true");
        let mut secrets = watch::labelled_metadata::<Secret>(&self.client, &self.scope, &coverage, &label);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(watched) = webhooks.next() => self.on_webhook(watched).await,
                Some(watched) = secrets.next() => self.on_secret(watched),
                Some(reading) = self.readings.next(), if !self.readings.is_empty() => self.on_reading(reading),
                _ = tick.tick() => self.tick(Instant::now()),
            }
            while let Some(key) = self.work.start(READINGS) {
                self.read(key);
            }
        }
    }

    /// Adds what is due to be read.
    fn tick(&mut self, now: Instant) {
        for (uid, (key, _)) in self.unanswered.extract_if(|_, (_, at)| *at <= now) {
            self.placed.remove(&uid);
            self.work.add(&key);
        }
        self.work.tick(now);
    }

    async fn on_webhook(&mut self, (number, event): Watched<DeserializeGuard<Webhook>>) {
        if let Event::Apply(object) | Event::InitApply(object) = &event {
            self.keep(object);
        }
        let Some(event) = seen(event) else { return };
        for change in self.webhooks.apply(number, event) {
            match change {
                Change::Put { key, old } => self.put(number, &key, old.as_ref()),
                Change::Gone { key, old } => self.gone(&key, old.webhook.uid),
            }
        }
        if self.webhooks.is_listed(number) && !self.table.coverage().was_listed(self.place(number)) {
            self.sync(number).await;
        }
    }

    /// Remembers an object that is whole, and says of one that is not that it is passed over.
    fn keep(&mut self, object: &DeserializeGuard<Webhook>) {
        match &object.0 {
            Ok(webhook) => self.writer.apply_watcher_event(&Event::Apply(webhook.clone())),
            // The decoder's words may repeat values of the spec, so they are not logged.
            Err(invalid) => warn!(
                namespace = invalid.metadata.namespace,
                webhook = invalid.metadata.name,
                "this Webhook does not fit the definition of its kind, nothing is sent to it"
            ),
        }
    }

    fn put(&mut self, number: usize, key: &Key, old: Option<&Seen>) {
        let Some(seen) = self.webhooks.get(key).cloned() else { return };
        let before = old.map(|old| old.webhook.uid);
        if before != Some(seen.webhook.uid) {
            if let Some(uid) = before {
                self.left(uid);
                self.index.remove(key);
            }
            self.store.set_gone(seen.webhook.uid, false);
        }
        if self.webhooks.is_listed(number) && old != Some(&seen) {
            self.compile(key, &seen);
        }
    }

    /// A Webhook is gone: from now on nothing of it is shown or sent.
    fn left(&mut self, uid: WebhookUid) {
        self.table.remove(uid);
        self.store.set_gone(uid, true);
        self.placed.remove(&uid);
        self.unanswered.remove(&uid);
    }

    fn gone(&mut self, key: &Key, uid: WebhookUid) {
        self.left(uid);
        self.index.remove(key);
        self.work.remove(key);
        if let Some(object) = self.object(key) {
            self.writer.apply_watcher_event(&Event::Delete((*object).clone()));
        }
    }

    /// The first complete list of a watch: all of it is made known to the store and put in force, and what it lacks is
    /// gone.
    async fn sync(&mut self, number: usize) {
        self.hide_unlisted(number);
        let keys: Vec<Key> = self.webhooks.keys_of(number).cloned().collect();
        let mut unknown: HashMap<Namespace, Vec<Unknown>> = HashMap::new();
        let mut asked = HashSet::new();
        for one in keys.iter().filter_map(|key| self.unknown(key)).collect::<Vec<_>>() {
            self.placed.insert(one.webhook().uid);
            asked.insert(one.webhook().uid);
            unknown.entry(Arc::clone(&one.webhook().namespace)).or_default().push(one);
        }
        let (store, namespaces) = (&*self.store, &*self.namespaces);
        let adoptions = unknown.into_values().map(|unknown| adopt(store, namespaces, unknown, TRIES));
        let unanswered = futures::stream::iter(adoptions).buffer_unordered(READINGS).concat().await;
        for key in &keys {
            match self.webhooks.get(key).cloned() {
                Some(seen) if asked.contains(&seen.webhook.uid) => {
                    self.adopted(key, &seen, unanswered.contains(&seen.webhook.uid));
                }
                Some(seen) => self.compile(key, &seen),
                None => {}
            }
        }
        let place = self.place(number);
        self.table.coverage().listed(place);
        info!(
            namespace = place.map(|namespace| &**namespace),
            webhooks = keys.len(),
            "all Webhooks are listed"
        );
    }

    /// What a watch is of: a namespace, or none for all.
    fn place(&self, number: usize) -> Option<&Namespace> {
        match &self.scope {
            Scope::All => None,
            Scope::Namespaces(list) => list.get(number),
        }
    }

    /// What the store knows of the place of a watch and its list lacks is gone; what nobody serves is as good as that.
    fn hide_unlisted(&self, number: usize) {
        let place = self.place(number);
        let is_there = |webhook: &WebhookRef| {
            place.is_none_or(|place| webhook.namespace == *place) || !self.scope.serves(&webhook.namespace)
        };
        for WebhookRef { uid, namespace, name } in self.store.known().into_iter().filter(is_there) {
            let listed = self.webhooks.get(&Key { namespace, name });
            self.store.set_gone(uid, listed.is_none_or(|seen| seen.webhook.uid != uid));
        }
    }

    /// A Webhook that the store does not know, or not where it is.
    fn unknown(&self, key: &Key) -> Option<Unknown> {
        let object = self.object(key)?;
        let webhook = identity(&object).filter(|webhook| !self.placed.contains(&webhook.uid))?;
        Unknown::of(webhook, &object, &*self.store)
    }

    fn is_known(&self, uid: WebhookUid) -> bool {
        self.store.summary(uid).is_some_and(|known| !known.erasing)
    }

    /// Puts a Webhook in force that changed: at once when there is nothing to read, else as soon as it is read.
    fn compile(&mut self, key: &Key, seen: &Seen) {
        let uid = seen.webhook.uid;
        if !seen.whole {
            self.index.remove(key);
            self.work.remove(key);
            let before = self.table.get(uid);
            self.table.upsert(self.compiler.broken(&seen.webhook, seen.generation, before.as_deref()));
            return;
        }
        let Some(webhook) = self.object(key) else { return };
        let references = references::of(&webhook.spec);
        self.index.refers(key, &references);
        let is_known = self.is_known(uid);
        if references.is_empty() && is_known && self.unknown(key).is_none() {
            self.work.remove(key);
            self.upsert(self.compiler.compile(&webhook, &References::default()));
            return;
        }
        if self.table.get(uid).is_none() && is_known {
            self.upsert(self.compiler.reading(&webhook));
        }
        self.work.add(key);
    }

    fn upsert(&self, route: Option<Route>) {
        if let Some(route) = route {
            self.table.upsert(route);
        }
    }

    /// Begins to read what a Webhook refers to.
    fn read(&mut self, key: Key) {
        let webhook = self.object(&key).and_then(|object| Some((identity(&object)?, object)));
        let Some((WebhookRef { uid, .. }, object)) = webhook else {
            self.work.done(&key);
            return;
        };
        if let Some(unknown) = self.unknown(&key) {
            self.placed.insert(uid);
            let (store, namespaces) = (Arc::clone(&self.store), Arc::clone(&self.namespaces));
            self.readings.push(Box::pin(async move {
                let unanswered = !adopt(&*store, &namespaces, vec![unknown], 1).await.is_empty();
                Reading { key, uid, what: Read::Namespace { unanswered } }
            }));
            return;
        }
        let client = self.client.clone();
        let references = references::of(&object.spec).into_iter().map(|reference| {
            let place = Key { namespace: key.namespace.clone(), name: reference.name.clone() };
            let labelled = self.secrets.get(&place).is_some();
            (reference, labelled)
        });
        let references: Vec<_> = references.collect();
        self.readings.push(Box::pin(async move {
            let references = read::references(&client, &key.namespace, references).await;
            Reading { key, uid, what: Read::References(references) }
        }));
    }

    fn on_reading(&mut self, reading: Reading) {
        let Reading { key, uid, what } = reading;
        let is_newest = self.work.done(&key);
        let references = match what {
            Read::Namespace { unanswered } => return self.on_adopted(&key, uid, unanswered),
            Read::References(references) => references,
        };
        if !is_newest {
            return;
        }
        let is_same = |object: &Arc<Webhook>| identity(object).is_some_and(|webhook| webhook.uid == uid);
        let is_whole = self.webhooks.get(&key).is_some_and(|seen| seen.whole && seen.webhook.uid == uid);
        let Some(webhook) = self.object(&key).filter(is_same).filter(|_| is_whole) else { return };
        let in_force = self.table.get(uid);
        if references.lacks_an_answer() && serves_on(in_force.as_deref(), &webhook) {
            self.work.retry(&key, Instant::now());
            return;
        }
        let changed = self.index.found(&key, &references);
        let Some(route) = self.compiler.compile(&webhook, &references) else { return };
        match &route.endpoint {
            Err(unready) if !unready.stalled => self.work.retry(&key, Instant::now()),
            Ok(_) | Err(_) => self.work.well(&key, Instant::now(), self.index.polls(&key)),
        }
        if changed || !in_force.is_some_and(|before| is_equal(&before, &route)) {
            self.table.upsert(route);
        }
    }

    fn on_adopted(&mut self, key: &Key, uid: WebhookUid, unanswered: bool) {
        match self.webhooks.get(key).cloned() {
            Some(seen) if seen.webhook.uid == uid => self.adopted(key, &seen, unanswered),
            // It went meanwhile, when the store could not be told.
            _ => self.left(uid),
        }
    }

    /// The store knows a Webhook now, and it can be put in force.
    fn adopted(&mut self, key: &Key, seen: &Seen, unanswered: bool) {
        let (uid, now) = (seen.webhook.uid, Instant::now());
        if !self.is_known(uid) {
            // The store has failed, or it waits for an answer; both were said.
            self.placed.remove(&uid);
            self.work.retry(key, now);
            return;
        }
        if unanswered {
            self.unanswered.insert(uid, (key.clone(), now + ASK_AGAIN));
        }
        self.compile(key, seen);
    }

    fn on_secret(&mut self, (number, event): Watched<PartialObjectMeta<Secret>>) {
        let event = watch::map(event, |object| {
            (Key::of(&object.metadata), object.metadata.resource_version.unwrap_or_default())
        });
        for change in self.secrets.apply(number, event) {
            let (Change::Put { key, .. } | Change::Gone { key, .. }) = change;
            let reference = Reference { kind: Kind::Secret, name: key.name.clone() };
            let version = self.secrets.get(&key).map(String::as_str);
            for webhook in self.index.outdated(&key.namespace, &reference, version) {
                self.work.add(&webhook);
            }
        }
    }

    fn object(&self, key: &Key) -> Option<Arc<Webhook>> {
        self.objects.get(&ObjectRef::new(&key.name).within(&key.namespace))
    }
}

/// Whether what is in force stays so while the API server does not answer: an absence of it holds up no delivery. A
/// spec that has changed meanwhile waits, since its old URL may be wrong.
fn serves_on(in_force: Option<&Route>, webhook: &Webhook) -> bool {
    let generation = webhook.metadata.generation.unwrap_or(0);
    in_force.is_some_and(|route| route.endpoint.is_ok() && route.generation == generation)
}

/// Whether two routes of one Webhook do the same, given that what they refer to has not changed.
fn is_equal(a: &Route, b: &Route) -> bool {
    let endpoints = match (&a.endpoint, &b.endpoint) {
        (Ok(a), Ok(b)) => a.denied == b.denied,
        (Err(a), Err(b)) => a == b,
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
    };
    endpoints && a.generation == b.generation && a.requested_at == b.requested_at
}

/// What an event says; none when it is about an object without an identity, which the apiserver never makes.
fn seen(event: Event<DeserializeGuard<Webhook>>) -> Option<Event<(Key, Seen)>> {
    let of = |object: &DeserializeGuard<Webhook>| {
        let meta = object.meta();
        let key = Key::of(meta);
        let webhook = WebhookRef {
            uid: meta.uid.as_deref()?.parse().ok()?,
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        let requested_at = object.annotations().get(REQUESTED_AT).cloned();
        let generation = meta.generation.unwrap_or(0);
        Some((key, Seen { webhook, generation, requested_at, whole: object.0.is_ok() }))
    };
    Some(match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(of(&object)?),
        Event::Apply(object) => Event::Apply(of(&object)?),
        Event::Delete(object) => Event::Delete(of(&object)?),
    })
}

#[cfg(test)]
mod takeover_tests;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::address::Policy;
    use crate::routes::compile::MasterKey;
    use crate::routes::references::Found;

    fn webhook(generation: i64) -> Webhook {
        serde_json::from_value(json!({
            "apiVersion": "hookwright.dev/v1alpha1",
            "kind": "Webhook",
            "metadata": { "name": "orders", "namespace": "team-a", "generation": generation,
                "uid": "7d9f4d0e-5c1b-4d3e-9b53-6d2f5f2c0a11" },
            "spec": { "url": "https://hooks.example.com/", "eventTypes": ["*"],
                "tls": { "caRef": { "kind": "ConfigMap", "name": "ca" } } },
        }))
        .unwrap()
    }

    fn found(found: Found) -> References {
        [(Reference::config_map("ca"), found)].into_iter().collect()
    }

    #[test]
    fn an_api_server_that_does_not_answer_takes_no_route_out_of_force() {
        assert!(found(Found::NoAnswer("connection refused".to_owned())).lacks_an_answer());
        for answer in [Found::Nothing, Found::NotLabelled, Found::Unreadable("forbidden".to_owned())] {
            assert!(!found(answer).lacks_an_answer());
        }
        let compiler = Compiler::new(MasterKey::new([7; 32]), Policy::default());
        let unready = compiler.reading(&webhook(3)).unwrap();
        let mut spec = webhook(3);
        spec.spec.tls = None;
        let ready = compiler.compile(&spec, &References::default()).unwrap();
        assert!(serves_on(Some(&ready), &webhook(3)));
        assert!(!serves_on(Some(&ready), &webhook(4)), "a changed spec waits");
        assert!(!serves_on(Some(&unready), &webhook(3)), "it was never ready");
        assert!(!serves_on(None, &webhook(3)));
    }
}
