//! Keeps the table like the cluster: watches Webhooks and the metadata of labelled Secrets, reads what Webhooks refer
//! to on demand, compiles, and puts routes in force.
//!
//! Every existing Webhook has a route from the moment it is seen, so that no event misses it; until its references are
//! read it is not ready. What no watch tells (of a `ConfigMap`, or of a Secret without the label) is read again
//! from time to time.

mod adopt;
mod index;
mod read;
mod work;

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
use tracing::{error, info, warn};

use super::compile::{Compiler, identity};
use super::references::{self, Kind, Reference, References};
use super::watch::{self, Change, Key, Mirror, Scope, Watched};
use super::{Route, Table};
use crate::api::{REQUESTED_AT, USE_LABEL, Webhook};
use crate::cli::chain;
use crate::model::ids::{Namespace, WebhookRef, WebhookUid};
use crate::store::Store;
use index::Index;
use work::Work;

/// Readings of references under way at once.
const READINGS: usize = 64;
/// How often what is due to be read again is looked for.
const TICK: Duration = Duration::from_secs(1);

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
    references: References,
}

/// The task that keeps the table.
pub struct Feed {
    client: Client,
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
                _ = tick.tick() => self.work.tick(Instant::now()),
            }
            while let Some(key) = self.work.start(READINGS) {
                self.read(key);
            }
        }
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
        if let Some(old) = old
            && old.webhook.uid != seen.webhook.uid
        {
            self.table.remove(old.webhook.uid);
            self.index.remove(key);
        }
        if self.webhooks.is_listed(number) && old != Some(&seen) {
            self.compile(key, &seen);
        }
    }

    fn gone(&mut self, key: &Key, uid: WebhookUid) {
        self.table.remove(uid);
        self.index.remove(key);
        self.work.remove(key);
        if let Some(object) = self.object(key) {
            self.writer.apply_watcher_event(&Event::Delete((*object).clone()));
        }
    }

    /// The first complete list of a watch: all of it is made known to the store and put in force.
    async fn sync(&mut self, number: usize) {
        let keys: Vec<Key> = self.webhooks.keys_of(number).cloned().collect();
        let unknown = keys.iter().filter_map(|key| self.adoption(key));
        let adoptions: Vec<_> = unknown.collect();
        futures::stream::iter(adoptions).for_each_concurrent(READINGS, std::convert::identity).await;
        for key in &keys {
            if let Some(seen) = self.webhooks.get(key).cloned() {
                self.compile(key, &seen);
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

    /// Makes a Webhook known to the store, if it is not, with the numbers of its status.
    fn adoption(&self, key: &Key) -> Option<BoxFuture<'static, ()>> {
        let object = self.object(key)?;
        let webhook = identity(&object).filter(|webhook| self.store.summary(webhook.uid).is_none())?;
        let summary = adopt::summary(webhook, object.status.as_ref());
        let store = Arc::clone(&self.store);
        Some(Box::pin(async move {
            if let Err(error) = store.adopt(summary).await {
                error!(error = chain(&error), "cannot make a Webhook known to the store");
            }
        }))
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
        if references.is_empty() && self.store.summary(uid).is_some() {
            self.work.remove(key);
            self.upsert(self.compiler.compile(&webhook, &References::default()));
            return;
        }
        if self.table.get(uid).is_none() {
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
        let adoption = self.adoption(&key);
        let client = self.client.clone();
        let references = references::of(&object.spec).into_iter().map(|reference| {
            let place = Key { namespace: key.namespace.clone(), name: reference.name.clone() };
            let labelled = self.secrets.get(&place).is_some();
            (reference, labelled)
        });
        let references: Vec<_> = references.collect();
        self.readings.push(Box::pin(async move {
            if let Some(adoption) = adoption {
                adoption.await;
            }
            let references = read::references(&client, &key.namespace, references).await;
            Reading { key, uid, references }
        }));
    }

    fn on_reading(&mut self, reading: Reading) {
        let Reading { key, uid, references } = reading;
        if !self.work.done(&key) {
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
