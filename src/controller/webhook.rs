//! The controller of Webhooks: observe → judge → write.
//!
//! It owns nothing but the status. It looks when a route comes into force and when the store's numbers change, and
//! writes only what is different: what somebody has done at once, the rest twice at once and then once in an interval.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt as _};
use kube::runtime::Controller;
use kube::runtime::controller::{Action, Config, Error as ControllerError};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource as _, ResourceExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::conditions::find;
use super::memory::{Cadence, Memory};
use super::reporter::{Reporter, changes};
use super::status::{Known, handled, is_same, status};
use super::{Deps, Error, apply};
use crate::api::conditions::READY;
use crate::api::{Webhook, WebhookStatus};
use crate::cli::chain;
use crate::metrics::Kind;
use crate::model::ids::WebhookUid;
use crate::routes::Route;
use crate::routes::compile::{READING, identity};
use crate::routes::hold::{Hold, hold};
use crate::store::{Change, Delivery, Query, State, Summary};

/// Writes that may come at once after a pause: a delivery's beginning and its end, say.
const BURST: u32 = 2;
/// Reconciles under way at once.
const CONCURRENCY: u16 = 32;
/// Changes of the store's numbers are looked at in batches that are so far apart.
const BATCH: Duration = Duration::from_millis(200);
/// While an endpoint is probed, so many unfinished deliveries are looked at to say how many of them are Held.
const UNFINISHED: usize = 100;

const KIND: Kind = Kind { kind: "Webhook" };

struct Context {
    deps: Arc<Deps>,
    reporter: Reporter,
    memory: Memory<WebhookUid, WebhookStatus>,
}

/// Runs until it is told to stop, and reconciles under way have ended.
pub(super) async fn run(deps: Arc<Deps>, stop: CancellationToken) {
    let reporter = Reporter::new(deps.client.clone(), deps.clock.clone());
    let memory = Memory::new(Cadence { interval: deps.status_interval, burst: BURST });
    let context = Arc::new(Context { deps: Arc::clone(&deps), reporter, memory });
    Controller::for_stream(stream::pending(), deps.webhooks.clone())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(routes(Arc::clone(&context)))
        .reconcile_on(numbers(Arc::clone(&context)))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, error_policy, context)
        .for_each(|result| async {
            if let Err(ControllerError::QueueError(error)) = result {
                warn!(error = chain(&error), "the queue of the Webhook controller failed");
            }
        })
        .await;
}

/// Webhooks whose route changed.
fn routes(context: Arc<Context>) -> impl Stream<Item = ObjectRef<Webhook>> {
    let batches = stream::unfold(context, |context| async {
        let uids = context.deps.table.for_controller().next().await;
        Some((objects(&context, uids), context))
    });
    batches.flat_map(stream::iter)
}

/// Webhooks whose numbers changed.
fn numbers(context: Arc<Context>) -> impl Stream<Item = ObjectRef<Webhook>> {
    let batches = stream::unfold(context, |context| async {
        let uids = context.deps.store.changes().next().await;
        let objects = objects(&context, uids);
        tokio::time::sleep(BATCH).await;
        Some((objects, context))
    });
    batches.flat_map(stream::iter)
}

fn objects(context: &Context, uids: Vec<WebhookUid>) -> Vec<ObjectRef<Webhook>> {
    let known = uids.into_iter().filter_map(|uid| {
        let Some(route) = context.deps.table.get(uid) else {
            context.memory.forget(&uid);
            return None;
        };
        Some(ObjectRef::new(&route.webhook.name).within(&route.webhook.namespace))
    });
    known.collect()
}

async fn reconcile(webhook: Arc<Webhook>, context: Arc<Context>) -> Result<Action, Error> {
    context.deps.metrics.reconciles.get_or_create(&KIND).inc();
    let Some(mut observed) = observe(&webhook, &context) else { return Ok(Action::await_change()) };
    let uid = observed.route.webhook.uid;
    if is_asked(&observed) {
        context.deps.store.update(uid, Change::Enable).await?;
        observed.summary = context.deps.store.summary(uid).ok_or(Error::Unknown)?;
    }
    let is_urgent = is_urgent(&observed);
    if let Some(wait) = context.memory.wait(uid, Instant::now()).filter(|_| !is_urgent) {
        return Ok(Action::requeue(wait));
    }
    let judged = judge(&observed, &context).await?;
    if !is_same(&observed.before, &judged) {
        write(&webhook, &observed, judged, &context).await?;
        if !is_urgent {
            context.memory.count(uid, Instant::now());
        }
    }
    context.memory.succeeded(uid);
    Ok(Action::await_change())
}

/// What the apiserver, the table and the store say.
struct Observed {
    route: Arc<Route>,
    summary: Arc<Summary>,
    before: WebhookStatus,
    history_limit: usize,
}

/// None: there is nothing to say yet, and what is to come will wake this object again.
fn observe(webhook: &Webhook, context: &Context) -> Option<Observed> {
    let uid = identity(webhook)?.uid;
    let route = context.deps.table.get(uid)?;
    let is_reading = route.endpoint.as_ref().is_err_and(|unready| unready.reason == READING);
    if is_reading || route.generation < webhook.metadata.generation.unwrap_or(0) {
        return None;
    }
    let summary = context.deps.store.summary(uid)?;
    let written = context.memory.newer_than(uid, webhook.resource_version().as_deref());
    let before = written.or_else(|| webhook.status.clone()).unwrap_or_default();
    let history_limit = usize::try_from(webhook.spec.history_limit).unwrap_or(0);
    Some(Observed { route, summary, before, history_limit })
}

/// Whether the annotation asks, with a new value, to enable the Webhook.
fn is_asked(observed: &Observed) -> bool {
    let Observed { route, before, .. } = observed;
    handled(route).is_some_and(|value| Some(value) != before.last_handled_reconcile_at)
}

/// Whether there is something that a person has just done: that is told at once, and does not count.
fn is_urgent(observed: &Observed) -> bool {
    let Observed { route, before, .. } = observed;
    let ready = find(&before.conditions, READY).map(|ready| ready.status == "True");
    before.observed_generation != route.generation
        || ready != Some(route.unready().is_none())
        || is_asked(observed)
}

async fn judge(observed: &Observed, context: &Context) -> Result<WebhookStatus, Error> {
    let Observed { route, summary, before, history_limit } = observed;
    let is_fresh = summary.pending + summary.success_count + summary.failure_count == 0 && !summary.test_sent;
    let recent = if is_fresh { Vec::new() } else { page(context, route, *history_limit, &[]).await? };
    let unfinished = match hold(route, Some(summary)) {
        Some(Hold::EndpointUnhealthy) => {
            page(context, route, UNFINISHED, &[State::Pending, State::Retrying]).await?
        }
        Some(Hold::Paused | Hold::Disabled(_) | Hold::NotReady) | None => Vec::new(),
    };
    let now = context.deps.clock.now();
    Ok(status(&Known { route, summary, recent: &recent, unfinished: &unfinished, before, now }))
}

async fn page(
    context: &Context,
    route: &Route,
    limit: usize,
    states: &[State],
) -> Result<Vec<Delivery>, Error> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let query = Query {
        namespace: Some(Arc::clone(&route.webhook.namespace)),
        webhook: Some(route.webhook.uid),
        states: states.to_vec(),
        limit,
        ..Query::default()
    };
    Ok(context.deps.store.query(query).await?.deliveries)
}

/// Writes the status, and tells what has changed in it.
async fn write(
    webhook: &Webhook,
    observed: &Observed,
    judged: WebhookStatus,
    context: &Context,
) -> Result<(), Error> {
    let uid = observed.route.webhook.uid;
    let Some(version) = apply::status(&context.deps.client, webhook, &judged, None).await? else {
        debug!(webhook = %observed.route.webhook, "gone before its status was written");
        return Ok(());
    };
    context.deps.metrics.status_writes.get_or_create(&KIND).inc();
    let notes = changes(&observed.before, &judged);
    context.memory.wrote(uid, Some(&version), judged);
    context.reporter.publish(notes, &webhook.object_ref(&())).await;
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that the controller asks for")]
fn error_policy(webhook: Arc<Webhook>, error: &Error, context: Arc<Context>) -> Action {
    let Some(identity) = identity(&webhook) else { return Action::await_change() };
    let wait = context.memory.failed(identity.uid);
    context.deps.failed("Webhook", error);
    warn!(webhook = %identity, error = chain(error), wait_ms = wait.as_millis(), "reconcile failed");
    Action::requeue(wait)
}
