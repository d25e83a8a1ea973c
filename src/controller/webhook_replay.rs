//! The controller of each `WebhookReplay`.
//!
//! A reconcile decides (`step`), puts a few more deliveries among those that wait, and comes back soon. The store knows
//! how far a replay is, so any process may do the next step, also after a crash. What was deleted is stopped beside it
//! (`cancel`), since no reconcile tells of it.

mod cancel;
mod pace;
mod status;
mod step;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::StreamExt as _;
use kube::ResourceExt as _;
use kube::runtime::Controller;
use kube::runtime::controller::{Action, Config, Error as ControllerError};
use kube::runtime::reflector::{ObjectRef, Store as Objects};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::memory::{Cadence, Memory};
use super::once::{self, Reason};
use super::{Deps, Error, apply};
use crate::api::{WebhookReplay, WebhookReplayStatus};
use crate::cli::chain;
use crate::metrics::Kind;
use crate::model::ids::{ReplayId, WebhookUid};
use crate::routes::compile::{identity, rate_limit};
use crate::routes::hold::hold;
use crate::routes::watch::reflect;
use crate::store::replays::Part;
use crate::store::{NewReplay, Replay, Selection};
use pace::{Lane, Pace};
use status::Waits;
use step::{Step, Target, View, spec_digest, status_of, step};

const KIND: Kind = Kind { kind: "WebhookReplay" };
/// Reconciles under way at once.
const CONCURRENCY: u16 = 16;
/// Deliveries that one call puts among those that wait; their events are in memory together.
const BATCH: usize = 64;
/// Until the next look at a replay that has put something; that has not; whose Webhooks all hold.
const BUSY: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_millis(250);
const HELD: Duration = Duration::from_secs(1);

struct Context {
    deps: Arc<Deps>,
    replays: Objects<WebhookReplay>,
    paces: Mutex<HashMap<ReplayId, Pace>>,
    memory: Memory<String, WebhookReplayStatus>,
}

/// Runs until it is told to stop, and reconciles under way have ended.
pub(super) async fn run(deps: Arc<Deps>, stop: CancellationToken) {
    let (replays, touched) = reflect::<WebhookReplay>(&deps.client, &deps.scope, deps.table.coverage());
    let (paces, memory) =
        (Mutex::default(), Memory::new(Cadence { interval: deps.status_interval, burst: 1 }));
    let context = Arc::new(Context { deps, replays: replays.clone(), paces, memory });
    let controller = Controller::for_stream(touched.map(Ok), replays)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(reconcile, error_policy, Arc::clone(&context))
        .for_each(|result| async {
            if let Err(ControllerError::QueueError(error)) = result {
                warn!(error = chain(&error), "the queue of the WebhookReplay controller failed");
            }
        });
    tokio::join!(controller, cancel::run(&context, stop));
}

async fn reconcile(replay: Arc<WebhookReplay>, context: Arc<Context>) -> Result<Action, Error> {
    context.deps.metrics.reconciles.get_or_create(&KIND).inc();
    let id = replay.uid().and_then(|uid| Some((uid.parse::<ReplayId>().ok()?, uid)));
    let Some((id, uid)) = id else { return Ok(Action::await_change()) };
    if once::is_early(&context.deps.table, &*replay) {
        return Ok(Action::requeue(once::LOOK));
    }
    let replay = context.newest(&replay, &uid);
    let now = context.deps.clock.now();
    let action = match step(&context.view(&replay, &uid, id)) {
        Step::Rest => {
            context.memory.forget(&uid);
            context.forget(id);
            return Ok(Action::await_change());
        }
        Step::Later(wait) => Action::requeue(wait),
        Step::Delete => {
            once::delete(&context.deps.client, &*replay).await?;
            context.memory.forget(&uid);
            return Ok(Action::await_change());
        }
        Step::Redate => context.write(&replay, status::redated(&replay, now)).await?,
        Step::Cancel => {
            context.deps.store.cancel_replay(id, now).await?;
            Action::requeue(IDLE)
        }
        Step::Wait(why) => context.wait(&replay, &why).await?,
        Step::Fail(Reason { word, message, .. }) => {
            context.write(&replay, status::failed(&replay, word, &message, now)).await?
        }
        Step::Repeat(former) => context.write(&replay, status::ended(&replay, &former, true, now)).await?,
        Step::Count(selection, webhooks) => {
            let selected = context.deps.store.count_replay(selection, webhooks).await?;
            context.write(&replay, status::counted(&replay, selected, now)).await?
        }
        Step::Begin(selection, webhooks) => context.begin(&replay, id, selection, webhooks).await?,
        Step::GoOn(record) => context.go_on(&replay, &record).await?,
        Step::Finish => {
            context.deps.store.finish_replay(id, now).await?;
            Action::requeue(Duration::ZERO)
        }
        Step::Tell(record) => {
            context.forget(id);
            context.write(&replay, status::ended(&replay, &record, false, now)).await?
        }
    };
    context.memory.succeeded(uid);
    Ok(action)
}

impl Context {
    /// The replay with the status that was written last, if the watch has not told of it yet.
    fn newest(&self, replay: &Arc<WebhookReplay>, uid: &str) -> Arc<WebhookReplay> {
        let version = replay.resource_version();
        match self.memory.newer_than(uid.to_owned(), version.as_deref()) {
            None => Arc::clone(replay),
            Some(status) => Arc::new(WebhookReplay { status: Some(status), ..(**replay).clone() }),
        }
    }

    fn view<'a>(&self, replay: &'a WebhookReplay, uid: &str, id: ReplayId) -> View<'a> {
        let record = self.deps.store.replay(id);
        let (namespace, name) = (replay.namespace().unwrap_or_default(), replay.name_any());
        let (mut former, mut is_succeeding) = (None, false);
        if record.is_none() {
            let digest = spec_digest(&replay.spec);
            let same = |other: &Arc<Replay>| *other.selection.namespace == *namespace && *other.name == *name;
            for other in self.deps.store.replays().into_iter().filter(same) {
                match other.finished_at {
                    Some(_) if other.digest == digest => former = Some(other),
                    Some(_) => {}
                    None => is_succeeding = true,
                }
            }
        }
        let target = self.target(replay, &namespace);
        let (known_for, now) = (self.memory.known_for(uid.to_owned()), self.deps.clock.now());
        View { replay, known_for, record, former, is_succeeding, target, now }
    }

    fn target(&self, replay: &WebhookReplay, namespace: &str) -> Target {
        let Some(webhook) = &replay.spec.webhook_ref else {
            let routes = self.deps.table.namespace(namespace);
            return Target::Webhooks(routes.iter().map(|route| route.webhook.uid).collect());
        };
        let object = self.deps.webhooks.get(&ObjectRef::new(&webhook.name).within(namespace));
        let Some(webhook) = object.and_then(|object| identity(&object)) else { return Target::Missing };
        match self.deps.table.get(webhook.uid) {
            Some(_) => Target::Webhooks(vec![webhook.uid]),
            None => Target::Coming,
        }
    }

    async fn wait(&self, replay: &WebhookReplay, why: &Reason) -> Result<Action, Error> {
        self.write(replay, status::waiting(replay, why, self.deps.clock.now())).await?;
        Ok(Action::requeue(why.again))
    }

    async fn begin(
        &self,
        replay: &WebhookReplay,
        id: ReplayId,
        selection: Selection,
        webhooks: Vec<WebhookUid>,
    ) -> Result<Action, Error> {
        let (name, digest) = (replay.name_any(), spec_digest(&replay.spec));
        let namespace = selection.namespace.to_string();
        let new = NewReplay { id, name: name.as_str().into(), digest, selection, webhooks };
        self.deps.store.begin_replay(new).await?;
        let selected = self.deps.store.replay(id).map_or(0, |record| record.counts().selected);
        info!(namespace, replay = name, selected, "a replay begins");
        Ok(Action::requeue(Duration::ZERO))
    }

    /// Puts more among those that wait, and says how far it is, if it is time to.
    async fn go_on(&self, replay: &WebhookReplay, record: &Replay) -> Result<Action, Error> {
        let lanes = self.lanes(record);
        let put = self.put(replay, record, &lanes).await?;
        let waits = self.waits(record, &lanes);
        let uid = replay.uid().unwrap_or_default();
        let is_first = status_of(replay).started_at.is_none();
        if is_first || self.memory.wait(uid, Instant::now()).is_none() {
            let record = self.deps.store.replay(record.id);
            let now = self.deps.clock.now();
            if let Some(status) = record.map(|record| status::running(replay, &record, waits.as_ref(), now)) {
                self.write(replay, status).await?;
            }
        }
        Ok(Action::requeue(match (put, waits) {
            (0, Some(_)) => HELD,
            (0, None) => IDLE,
            (_, _) => BUSY,
        }))
    }

    /// The Webhooks that have something left.
    fn lanes(&self, record: &Replay) -> Vec<Lane> {
        let lane = |(webhook, part): (&WebhookUid, &Part)| {
            let waits = self.holds(*webhook);
            Lane {
                webhook: *webhook,
                waiting: usize::try_from(part.counts.waiting()).unwrap_or(usize::MAX),
                is_held: waits.is_some(),
                // Of one that the store has forgotten, too, there is nothing more: it is told so by trying.
                has_more: !part.walked
                    && (waits != Some(Waits::Gone) || self.deps.store.summary(*webhook).is_none()),
            }
        };
        record.parts.iter().filter(|(_, part)| !part.is_over()).map(lane).collect()
    }

    fn holds(&self, webhook: WebhookUid) -> Option<Waits> {
        let Some(route) = self.deps.table.get(webhook) else { return Some(Waits::Gone) };
        hold(&route, self.deps.store.summary(webhook).as_deref()).map(Waits::Held)
    }

    /// What it waits for, when every Webhook that has something left holds it.
    fn waits(&self, record: &Replay, lanes: &[Lane]) -> Option<(String, Waits)> {
        if lanes.iter().any(|lane| !lane.is_held) {
            return None;
        }
        let webhook = lanes.first()?.webhook;
        let name = match (self.deps.table.get(webhook), self.deps.store.summary(webhook)) {
            (Some(route), _) => route.webhook.name.to_string(),
            (None, Some(summary)) => summary.webhook.name.to_string(),
            (None, None) => record.name.to_string(),
        };
        Some((name, self.holds(webhook)?))
    }

    async fn put(&self, replay: &WebhookReplay, record: &Replay, lanes: &[Lane]) -> Result<usize, Error> {
        let rate = replay.spec.rate_limit.as_ref().and_then(rate_limit);
        let now = self.deps.clock.now();
        let plan = self.pace(record.id, |pace| pace.plan(lanes, rate.as_ref(), now));
        let mut put = 0;
        for (webhook, dues) in plan {
            let mut unused = dues.len();
            for batch in dues.chunks(BATCH) {
                let count = self.deps.store.advance_replay(record.id, webhook, batch.to_vec()).await?;
                unused -= count.min(unused);
                put += count;
            }
            self.pace(record.id, |pace| pace.give_back(rate.as_ref(), unused));
        }
        Ok(put)
    }

    fn pace<T>(&self, id: ReplayId, with: impl FnOnce(&mut Pace) -> T) -> T {
        with(self.paces.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default())
    }

    fn forget(&self, id: ReplayId) {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Writes a status that is different.
    async fn write(&self, replay: &WebhookReplay, status: WebhookReplayStatus) -> Result<Action, Error> {
        if status_of(replay) == status {
            return Ok(Action::await_change());
        }
        let version = apply::status(&self.deps.client, replay, &status, None).await?;
        if let (Some(uid), Some(version)) = (replay.uid(), version) {
            self.deps.metrics.status_writes.get_or_create(&KIND).inc();
            self.memory.count(uid.clone(), Instant::now());
            self.memory.wrote(uid, Some(&version), status);
        }
        Ok(Action::requeue(Duration::from_secs(1)))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that the controller asks for")]
fn error_policy(replay: Arc<WebhookReplay>, error: &Error, context: Arc<Context>) -> Action {
    let Some(uid) = replay.uid() else { return Action::await_change() };
    let wait = context.memory.failed(uid);
    context.deps.failed(KIND.kind, error);
    let (namespace, name) = (replay.namespace(), replay.name_any());
    warn!(namespace, replay = name, error = chain(error), "reconcile failed");
    Action::requeue(wait)
}
