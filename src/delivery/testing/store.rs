//! A store in memory, for tests of the engine alone: keeps nothing, can be told to fail or to be slow.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::model::ids::{DeliveryName, EventUid, WebhookRef, WebhookUid};
use crate::model::time::UnixMillis;
use crate::store::records::{Asked, DedupKey, Expunge, Expunged, Redelivered, Redelivery, Usage, Waiting};
use crate::store::{
    Appended, Change, ClaimRequest, Claimed, Claims, Delivery, Error, Event, NewEvent, Next, Order, Outcome,
    Page, Query, Result, State, Store, Summary, Tried, Wakes,
};

struct Row {
    delivery: Delivery,
    event: Arc<Event>,
}

type Place = (UnixMillis, DeliveryName);

/// What waits for one Webhook and is not claimed, and what is claimed until when.
#[derive(Default)]
struct Queue {
    fresh: BTreeSet<Place>,
    retry: BTreeSet<Place>,
    claimed: BTreeMap<DeliveryName, UnixMillis>,
}

#[derive(Default)]
struct Rows {
    by_name: BTreeMap<DeliveryName, Row>,
    queues: HashMap<WebhookUid, Queue>,
    summaries: HashMap<WebhookUid, Summary>,
    released: Vec<DeliveryName>,
    claims: usize,
}

/// See the module.
#[derive(Default)]
pub(crate) struct FakeStore {
    rows: Mutex<Rows>,
    work: Wakes,
    changes: Wakes,
    pub(crate) refuses_claims: AtomicBool,
    pub(crate) refuses_records: AtomicBool,
    record_takes: Mutex<Duration>,
    looks: AtomicUsize,
}

impl FakeStore {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap()
    }

    pub(crate) fn record_takes(&self, time: Duration) {
        *self.record_takes.lock().unwrap() = time;
    }

    pub(crate) fn get(&self, name: DeliveryName) -> Delivery {
        self.rows().by_name[&name].delivery.clone()
    }

    pub(crate) fn all(&self) -> Vec<Delivery> {
        self.rows().by_name.values().map(|row| row.delivery.clone()).collect()
    }

    pub(crate) fn released(&self) -> Vec<DeliveryName> {
        self.rows().released.clone()
    }

    pub(crate) fn claims(&self) -> usize {
        self.rows().claims
    }

    /// How often it was asked for the oldest due delivery.
    pub(crate) fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }

    fn broken(what: &'static str) -> Error {
        Error::Engine { what, source: "told to fail".into() }
    }
}

impl Rows {
    fn append(&mut self, new: &NewEvent) {
        let event = Arc::new(Event {
            uid: new.uid,
            namespace: Arc::clone(&new.namespace),
            accepted_at: new.accepted_at,
            attributes: Arc::clone(&new.attributes),
            data: new.data.clone(),
        });
        for delivery in &new.deliveries {
            let summary = self.summaries.entry(delivery.webhook.uid);
            summary.or_insert_with(|| Summary::new(delivery.webhook.clone())).pending += 1;
            let line = Delivery {
                name: delivery.name,
                webhook: delivery.webhook.clone(),
                event: new.uid,
                event_id: Arc::clone(&new.attributes.id),
                event_type: Arc::clone(&new.attributes.event_type),
                test: delivery.test,
                accepted_at: new.accepted_at,
                state: State::Pending,
                due: Some(new.accepted_at),
                reason: None,
                attempts: Vec::new(),
                ended_at: None,
                redelivery: None,
                expunged: None,
                event_source: None,
            };
            let row = Row { delivery: line, event: Arc::clone(&event) };
            self.by_name.insert(delivery.name, row);
            self.enqueue(delivery.name);
        }
    }

    fn enqueue(&mut self, name: DeliveryName) {
        let delivery = &self.by_name[&name].delivery;
        let queue = self.queues.entry(delivery.webhook.uid).or_default();
        queue.claimed.remove(&name);
        let Some(due) = delivery.due.filter(|_| !delivery.test) else { return };
        match Tried::of(delivery) {
            Tried::Never => queue.fresh.insert((due, name)),
            Tried::Before => queue.retry.insert((due, name)),
        };
    }

    fn claim(&mut self, request: &ClaimRequest) -> Claims {
        self.claims += 1;
        let queue = self.queues.entry(request.webhook).or_default();
        let over: Vec<_> =
            queue.claimed.iter().filter(|(_, until)| **until <= request.now).map(|(name, _)| *name).collect();
        for name in over {
            self.enqueue(name);
        }
        let (mut deliveries, mut order) = (Vec::new(), request.order);
        while deliveries.len() < request.limit
            && let Some((due, name)) = self.next(request, order)
        {
            let queue = self.queues.get_mut(&request.webhook).unwrap();
            queue.fresh.remove(&(due, name));
            queue.retry.remove(&(due, name));
            queue.claimed.insert(name, request.now + request.lease);
            let Row { delivery, event } = &self.by_name[&name];
            if let Order::InTurn { first } | Order::Look { first } = &mut order {
                *first = Tried::of(delivery).other();
            }
            deliveries.push(Claimed { delivery: delivery.clone(), event: Arc::clone(event) });
        }
        let queue = &self.queues[&request.webhook];
        let next_due = queue.fresh.first().into_iter().chain(queue.retry.first()).map(|(due, _)| *due).min();
        Claims { deliveries, next_due }
    }

    fn next(&self, request: &ClaimRequest, order: Order) -> Option<Place> {
        let queue = &self.queues[&request.webhook];
        let due = |set: &BTreeSet<Place>| set.first().copied().filter(|(due, _)| *due <= request.now);
        let (fresh, retry) = (|| due(&queue.fresh), || due(&queue.retry));
        let early = |from, to| {
            let last = |(_, name): &&Place| {
                let delivery = &self.by_name[name].delivery;
                let last = delivery.attempts.last().unwrap();
                (delivery.redelivery.is_none() && last.allows_another_at(request.now)).then_some(last.at)
            };
            let known = queue.retry.iter().take(128);
            let open = known.filter(|place| last(place).is_some_and(|at| at >= from && at < to));
            open.min_by_key(|place| (last(place), **place)).copied()
        };
        let any = || early(UnixMillis::from_millis(i64::MIN), UnixMillis::from_millis(i64::MAX));
        match order {
            Order::LongestDue => fresh().into_iter().chain(retry()).min(),
            Order::InTurn { first: Tried::Never } => fresh().or_else(retry),
            Order::InTurn { first: Tried::Before } => retry().or_else(fresh),
            Order::Look { first: Tried::Never } => fresh().or_else(retry).or_else(any),
            Order::Look { first: Tried::Before } => retry().or_else(any).or_else(fresh),
            Order::Early { from, to } => early(from, to),
        }
    }

    fn record(&mut self, outcome: &Outcome) -> bool {
        let Some(row) = self.by_name.get_mut(&outcome.name) else { return false };
        let delivery = &mut row.delivery;
        assert!(!delivery.state.is_final(), "recorded twice: {delivery:?}");
        let purpose = delivery.purpose();
        delivery.redelivery = None;
        outcome.attempt.clone().into_iter().for_each(|attempt| delivery.attempted(attempt));
        (delivery.state, delivery.due, delivery.reason) = match outcome.next {
            Next::Success => (State::Success, None, None),
            Next::Retry(at) => (State::Retrying, Some(at), None),
            Next::Failed(reason) => (State::Failed, None, Some(reason)),
        };
        self.enqueue(outcome.name);
        self.summaries.get_mut(&outcome.webhook).unwrap().apply(outcome, purpose, 0);
        matches!(outcome.next, Next::Retry(_))
    }
}

crate::store::replays::without_replays!(FakeStore);

impl Store for FakeStore {
    fn append(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Appended>>> {
        let webhooks: Vec<_> = events
            .iter()
            .flat_map(|event| event.deliveries.iter().map(|delivery| delivery.webhook.uid))
            .collect();
        for event in &events {
            self.rows().append(event);
        }
        self.work.add(webhooks);
        async move { Ok(vec![Appended::New; events.len()]) }.boxed()
    }

    fn accepting(&self) -> Result<()> {
        Ok(())
    }

    fn duplicate_of(&self, _: &str, _: DedupKey, _: UnixMillis) -> Result<Option<EventUid>> {
        Ok(None)
    }

    fn claim(&self, request: ClaimRequest) -> BoxFuture<'_, Result<Claims>> {
        async move {
            tokio::task::yield_now().await;
            if self.refuses_claims.load(Ordering::SeqCst) {
                return Err(Self::broken("claim"));
            }
            Ok(self.rows().claim(&request))
        }
        .boxed()
    }

    fn release(&self, claims: Vec<(WebhookUid, DeliveryName)>) -> BoxFuture<'_, Result<()>> {
        async move {
            for (webhook, name) in claims {
                let mut rows = self.rows();
                rows.released.push(name);
                rows.enqueue(name);
                drop(rows);
                self.work.add([webhook]);
            }
            Ok(())
        }
        .boxed()
    }

    fn record(&self, outcomes: Vec<Outcome>) -> BoxFuture<'_, Result<()>> {
        async move {
            let takes = *self.record_takes.lock().unwrap();
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            if self.refuses_records.load(Ordering::SeqCst) {
                return Err(Self::broken("record"));
            }
            for outcome in outcomes {
                let is_retry = self.rows().record(&outcome);
                if is_retry {
                    self.work.add([outcome.webhook]);
                }
                self.changes.add([outcome.webhook]);
            }
            Ok(())
        }
        .boxed()
    }

    fn redeliver(&self, redeliveries: Vec<Redelivery>) -> BoxFuture<'_, Result<Vec<Redelivered>>> {
        let redeliver = |asked: Redelivery| {
            let Redelivery { name, by, at, .. } = asked;
            let mut rows = self.rows();
            let delivery = &mut rows.by_name.get_mut(&name).unwrap().delivery;
            delivery.redelivery =
                Some(Waiting { asked: Asked { by, at }, had_arrived: delivery.has_arrived(), replay: None });
            (delivery.state, delivery.due, delivery.reason) = (State::Pending, Some(at), None);
            let webhook = delivery.webhook.uid;
            rows.enqueue(name);
            rows.summaries.get_mut(&webhook).unwrap().redelivers(0);
            self.work.add([webhook]);
            Redelivered::Queued
        };
        let redelivered = redeliveries.into_iter().map(redeliver).collect();
        async { Ok(redelivered) }.boxed()
    }

    fn expunge(&self, _: Expunge) -> BoxFuture<'_, Result<Expunged>> {
        unreachable!("the engine expunges nothing")
    }

    fn redate(&self, _: UnixMillis) -> BoxFuture<'_, Result<()>> {
        async { Ok(()) }.boxed()
    }

    fn retain(&self, _: UnixMillis) -> BoxFuture<'_, Result<u64>> {
        unreachable!("the engine lets nothing go")
    }

    fn usage(&self, _: &str) -> Usage {
        Usage::default()
    }

    fn adopt(&self, summary: Summary) -> BoxFuture<'_, Result<()>> {
        self.rows().summaries.entry(summary.webhook.uid).or_insert(summary);
        async { Ok(()) }.boxed()
    }

    fn update(&self, webhook: WebhookUid, change: Change) -> BoxFuture<'_, Result<()>> {
        if let Some(summary) = self.rows().summaries.get_mut(&webhook) {
            match change {
                Change::Enable => summary.enable(),
                Change::Disable(disabled) => summary.disabled = Some(disabled),
            }
        }
        self.work.add([webhook]);
        async { Ok(()) }.boxed()
    }

    fn summary(&self, webhook: WebhookUid) -> Option<Arc<Summary>> {
        self.rows().summaries.get(&webhook).cloned().map(Arc::new)
    }

    fn known(&self) -> Vec<WebhookRef> {
        self.rows().summaries.values().map(|summary| summary.webhook.clone()).collect()
    }

    fn purge(&self, webhook: WebhookUid) -> BoxFuture<'_, Result<u64>> {
        let mut rows = self.rows();
        rows.by_name.retain(|_, row| row.delivery.webhook.uid != webhook);
        rows.queues.remove(&webhook);
        drop(rows);
        async { Ok(0) }.boxed()
    }

    fn set_gone(&self, _: WebhookUid, _: bool) {}

    fn query(&self, _: Query) -> BoxFuture<'_, Result<Page>> {
        async { Ok(Page { deliveries: self.all(), next: None }) }.boxed()
    }

    fn delivery(&self, name: DeliveryName) -> BoxFuture<'_, Result<Option<Delivery>>> {
        async move { Ok(Some(self.get(name))) }.boxed()
    }

    fn is_under_way(&self, _: WebhookUid, name: DeliveryName) -> bool {
        self.rows().queues.values().any(|queue| queue.claimed.contains_key(&name))
    }

    fn event(&self, _: EventUid) -> BoxFuture<'_, Result<Option<Arc<Event>>>> {
        async { Ok(None) }.boxed()
    }

    fn oldest_due(&self, webhook: WebhookUid) -> Option<UnixMillis> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        let rows = self.rows();
        let queue = rows.queues.get(&webhook)?;
        let waits = queue.fresh.first().into_iter().chain(queue.retry.first()).map(|(due, _)| *due);
        waits.chain(queue.claimed.keys().filter_map(|name| rows.by_name[name].delivery.due)).min()
    }

    fn work(&self) -> &Wakes {
        &self.work
    }

    fn changes(&self) -> &Wakes {
        &self.changes
    }

    fn owes_erasure(&self) -> bool {
        false
    }

    fn erase(&self) -> BoxFuture<'_, Result<()>> {
        std::future::ready(Ok(())).boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        async { Ok(()) }.boxed()
    }
}
