//! The controller of each `WebhookTest`.
//!
//! A reconcile decides (`step`), the attempt itself is made beside it, so that a receiver that hangs holds up no other
//! test. What a test waits for is looked at from time to time, in memory.

mod attempt;
mod status;
mod step;
mod turns;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::StreamExt as _;
use kube::ResourceExt as _;
use kube::runtime::Controller;
use kube::runtime::controller::{Action, Config, Error as ControllerError};
use kube::runtime::reflector::{ObjectRef, Store as Objects};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::memory::{Cadence, Memory};
use super::once::{self, LOOK, Reason, created, time};
use super::{Deps, Error, apply};
use crate::api::{WebhookTest, WebhookTestStatus};
use crate::cli::chain;
use crate::model::ids::DeliveryName;
use crate::routes::compile::identity;
use crate::routes::watch::reflect;
use crate::routes::{Endpoint, Route};
use crate::store::{EndReason, Next, Outcome, State};
use attempt::{KIND, Used};
use step::{Step, Target, View, is_finished, status_of, step};
use turns::Turns;

/// Reconciles under way at once.
const CONCURRENCY: u16 = 16;
/// Attempts under way at once. Each Webhook has at most a few, since turns are limited.
const ATTEMPTS: usize = 512;
struct Context {
    deps: Arc<Deps>,
    tests: Objects<WebhookTest>,
    turns: Turns,
    /// Uids of tests whose attempt this process is making.
    running: Mutex<HashSet<String>>,
    attempts: Arc<Semaphore>,
    tasks: TaskTracker,
    memory: Memory<String, WebhookTestStatus>,
}

/// Runs until it is told to stop, and what is under way has ended.
pub(super) async fn run(deps: Arc<Deps>, stop: CancellationToken) {
    let (tests, touched) = reflect::<WebhookTest>(&deps.client, &deps.scope, deps.table.coverage());
    let grace = deps.shutdown_grace.max(attempt::SHORTEST_GRACE);
    let tasks = TaskTracker::new();
    let memory = Memory::new(Cadence { interval: deps.status_interval, burst: 1 });
    let context = Arc::new(Context {
        deps,
        tests: tests.clone(),
        turns: Turns::default(),
        running: Mutex::default(),
        attempts: Arc::new(Semaphore::new(ATTEMPTS)),
        tasks: tasks.clone(),
        memory,
    });
    Controller::for_stream(touched.map(Ok), tests)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, error_policy, context)
        .for_each(|result| async {
            if let Err(ControllerError::QueueError(error)) = result {
                warn!(error = chain(&error), "the queue of the WebhookTest controller failed");
            }
        })
        .await;
    tasks.close();
    if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
        warn!(tests = tasks.len(), "tests were interrupted by the stop");
    }
}

async fn reconcile(test: Arc<WebhookTest>, context: Arc<Context>) -> Result<Action, Error> {
    context.deps.metrics.reconciles.get_or_create(&KIND).inc();
    let Some(uid) = test.uid() else { return Ok(Action::await_change()) };
    if once::is_early(&context.deps.table, &*test) {
        return Ok(Action::requeue(LOOK));
    }
    let test = context.newest(&test, &uid);
    let now = context.deps.clock.now();
    let next = step(&context.view(&test, &uid).await?);
    let action = match next {
        Step::Rest => {
            context.memory.forget(&uid);
            return Ok(Action::await_change());
        }
        Step::Later(wait) => Action::requeue(wait),
        Step::Delete => context.delete(&test, &uid).await?,
        Step::Redate => context.write(&test, status::redated(&test, now)).await?,
        Step::Wait(why) => context.wait(&test, &why).await?,
        Step::Fail(Reason { word, message, .. }) => {
            context.write(&test, status::failed(&test, word, &message, now)).await?
        }
        Step::Lost => context.write(&test, status::interrupted(&test, now)).await?,
        Step::Resume(delivery) => context.resume(&test, delivery).await?,
        Step::Ready(route) => context.start(&test, uid.clone(), route).await?,
    };
    context.memory.succeeded(uid);
    Ok(action)
}

impl Context {
    /// The test with the status that was written last, if the watch has not told of it yet.
    fn newest(&self, test: &Arc<WebhookTest>, uid: &str) -> Arc<WebhookTest> {
        let version = test.resource_version();
        match self.memory.newer_than(uid.to_owned(), version.as_deref()) {
            None => Arc::clone(test),
            Some(status) => Arc::new(WebhookTest { status: Some(status), ..(**test).clone() }),
        }
    }

    async fn view<'a>(&self, test: &'a WebhookTest, uid: &str) -> Result<View<'a>, Error> {
        let status = status_of(test);
        let delivery = status.delivery_id.as_deref().and_then(|name| name.parse::<DeliveryName>().ok());
        let is_running = self.is_running(uid);
        let is_stored = match delivery.filter(|_| !is_running && !is_finished(&status)) {
            Some(name) => self.deps.store.delivery(name).await?.is_some(),
            None => false,
        };
        let largest = self.deps.max_body_bytes;
        let (known_for, now) = (self.memory.known_for(uid.to_owned()), self.deps.clock.now());
        Ok(View { test, known_for, is_running, target: self.target(test), is_stored, largest, now })
    }

    fn target(&self, test: &WebhookTest) -> Target {
        let namespace = test.namespace().unwrap_or_default();
        let webhook = ObjectRef::new(&test.spec.webhook_ref.name).within(&namespace);
        let Some(webhook) = self.deps.webhooks.get(&webhook) else { return Target::Missing };
        let route = identity(&webhook).and_then(|webhook| self.deps.table.get(webhook.uid));
        let is_current = |route: &Arc<Route>| route.generation >= webhook.metadata.generation.unwrap_or(0);
        route.filter(is_current).map_or(Target::Coming, Target::Route)
    }

    fn is_running(&self, uid: &str) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).contains(uid)
    }

    async fn wait(&self, test: &WebhookTest, why: &Reason) -> Result<Action, Error> {
        self.write(test, status::waiting(test, why, self.deps.clock.now())).await?;
        Ok(Action::requeue(why.again))
    }

    /// Writes a status that is different.
    async fn write(&self, test: &WebhookTest, status: WebhookTestStatus) -> Result<Action, Error> {
        if status_of(test) == status {
            return Ok(Action::await_change());
        }
        self.apply(test, status, None).await?;
        Ok(Action::requeue(Duration::from_secs(1)))
    }

    /// Writes a status; with `version`, only if the object has not changed since. False: the object is gone.
    async fn apply(
        &self,
        test: &WebhookTest,
        status: WebhookTestStatus,
        version: Option<&str>,
    ) -> Result<bool, Error> {
        let (Some(uid), Some(version)) =
            (test.uid(), apply::status(&self.deps.client, test, &status, version).await?)
        else {
            return Ok(false);
        };
        self.deps.metrics.status_writes.get_or_create(&KIND).inc();
        self.memory.wrote(uid, Some(&version), status);
        Ok(true)
    }

    /// An earlier process has begun the attempt: the log says what came of it, and is closed if it is open.
    async fn resume(&self, test: &WebhookTest, name: DeliveryName) -> Result<Action, Error> {
        let Some(mut delivery) = self.deps.store.delivery(name).await? else {
            return Ok(Action::requeue(Duration::from_secs(1)));
        };
        if !delivery.state.is_final() {
            let next = Next::Failed(EndReason::Interrupted);
            let (webhook, at) = (delivery.webhook.uid, self.deps.clock.now());
            self.deps
                .store
                .record(vec![Outcome {
                    name,
                    webhook,
                    attempt: None,
                    next,
                    disable: None,
                    failing: None,
                    at,
                }])
                .await?;
            delivery.state = State::Failed;
            delivery.reason = Some(EndReason::Interrupted);
        }
        self.write(test, status::ended(test, &delivery, self.deps.clock.now())).await
    }

    /// Makes the attempt beside the reconcile, if it is this test's turn.
    async fn start(
        self: &Arc<Self>,
        test: &Arc<WebhookTest>,
        uid: String,
        route: Arc<Route>,
    ) -> Result<Action, Error> {
        let Ok(endpoint) = route.endpoint.clone() else { return Ok(Action::requeue(Duration::from_secs(1))) };
        let (started, older) = self.others(test);
        let webhook = route.webhook.uid;
        let now = self.deps.clock.now();
        if let Err(next) = self.turns.take(webhook, &uid, started, older, now) {
            let again = next.since(now).max(Duration::from_millis(100));
            let message =
                "at most 5 tests a minute are sent to one Webhook; this one waits its turn".to_owned();
            return self.wait(test, &Reason { word: "RateLimited", message, again }).await;
        }
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone());
        let (context, test) = (Arc::clone(self), Arc::clone(test));
        self.tasks.spawn(async move { context.attempt(&test, uid, &route, endpoint).await });
        Ok(Action::requeue(Duration::from_secs(1)))
    }

    async fn attempt(&self, test: &WebhookTest, uid: String, route: &Route, endpoint: Arc<Endpoint>) {
        let _running = Running(&self.running, uid.clone());
        let permit = self.attempts.acquire().await;
        let made = attempt::make(self, test, route, endpoint).await;
        drop(permit);
        match made {
            Ok(Used::Yes) => {}
            Ok(Used::No) | Err(Error::Conflict) => self.turns.give_back(route.webhook.uid, &uid),
            Err(error) => {
                self.deps.failed(KIND.kind, &error);
                let name = test.name_any();
                warn!(webhook = %route.webhook, test = name, error = chain(&error), "a test could not be carried out");
            }
        }
    }

    /// When other tests of the same Webhook were started, and how many older ones wait.
    fn others(&self, test: &WebhookTest) -> (Vec<(String, crate::model::time::UnixMillis)>, usize) {
        let same = |other: &WebhookTest| {
            other.namespace() == test.namespace() && other.spec.webhook_ref == test.spec.webhook_ref
        };
        let others = self.tests.state_filter(|other| same(other));
        let age = |test: &WebhookTest| (created(test), test.name_any());
        let (mut started, mut older) = (Vec::new(), 0);
        for other in others {
            let Some(uid) = other.uid() else { continue };
            let status = status_of(&other);
            if let Some(at) = time(status.started_at.as_deref()) {
                started.push((uid, at));
            } else if !is_finished(&status) && !self.is_running(&uid) && age(&other) < age(test) {
                older += 1;
            }
        }
        (started, older)
    }

    async fn delete(&self, test: &WebhookTest, uid: &str) -> Result<Action, Error> {
        once::delete(&self.deps.client, test).await?;
        self.memory.forget(&uid.to_owned());
        Ok(Action::await_change())
    }
}

/// That a test's attempt is under way; ends with it, also when it panics: then the store tells what came of it.
struct Running<'a>(&'a Mutex<HashSet<String>>, String);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that the controller asks for")]
fn error_policy(test: Arc<WebhookTest>, error: &Error, context: Arc<Context>) -> Action {
    let Some(uid) = test.uid() else { return Action::await_change() };
    let wait = context.memory.failed(uid);
    context.deps.failed(KIND.kind, error);
    let (namespace, name) = (test.namespace(), test.name_any());
    warn!(namespace, test = name, error = chain(error), "reconcile failed");
    Action::requeue(wait)
}
