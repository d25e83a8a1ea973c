//! The resource `deliveries`: the log, by get and list; what can be done to a line is in `change`.

mod change;
mod whole;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::request::Parts;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::negotiate::{Count, Form, form};
use super::object::{Line, Payload, Standing};
use super::options::{Include, ListOptions};
use super::selector::Selection;
use super::table::{partial, row, table};
use super::token::{self, ListId};
use super::usages::Limits;
use super::{API_VERSION, set};
use crate::api::delivery::Delivery as Object;
use crate::clock::Clock;
use crate::model::ids::{DeliveryName, Namespace, WebhookUid};
use crate::model::time::UnixMillis;
use crate::routes::Table;
use crate::routes::coverage::Whole;
use crate::routes::hold::hold;
use crate::server::auth::Action;
use crate::server::quiet::Quiet;
use crate::server::status::{Answer, Failure, Reason, json as answer};
use crate::store::records::Delivery;
use crate::store::{Error, Query, Store};

pub(in crate::server) use change::{Change, nothing};

/// Its name in paths and in RBAC.
pub(in crate::server) const RESOURCE: &str = "deliveries";

/// Lines that one page looks at, and how long it does so. A page that needs more answers what it has found, with
/// a token to go on: clients do so by themselves.
const WORK: usize = 5000;
const WORKS_FOR: Duration = Duration::from_millis(10);
/// Lines that are read at once when each is looked at, at first and at most.
const FIRST_BATCH: usize = 100;
const BATCH: usize = 500;
/// For one call to the store.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The right that an operation needs.
pub(in crate::server) fn action(
    verb: &'static str,
    subresource: Option<&'static str>,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Action {
    Action {
        verb,
        resource: RESOURCE,
        subresource,
        namespace: namespace.map(ToOwned::to_owned),
        name: name.map(ToOwned::to_owned),
    }
}

/// The delivery log as clients see it.
pub struct Log {
    store: Arc<dyn Store>,
    routes: Arc<Table>,
    clock: Clock,
    limits: Limits,
    bounds: whole::Bounds,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

/// The answer to a list.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct List<T> {
    pub(super) kind: &'static str,
    pub(super) api_version: &'static str,
    pub(super) metadata: Value,
    pub(super) items: Vec<T>,
}

impl Log {
    /// Reads this store, and derives from these routes what is Held.
    pub fn new(store: Arc<dyn Store>, routes: Arc<Table>, clock: Clock) -> Self {
        Self { store, routes, clock, limits: Limits::NONE, bounds: whole::Bounds::default() }
    }

    /// Says that these are the limits of each namespace.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Namespaces that have a Webhook.
    pub(super) fn namespaces(&self) -> Vec<Namespace> {
        self.routes.namespaces()
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// The log, of one namespace or of all: a page when the client says how many lines it wants, else all of it.
    ///
    /// # Errors
    ///
    /// When the request cannot be understood, the store or the routes are not ready, or all of it would be too much.
    pub async fn list(&self, namespace: Option<&str>, parts: &Parts) -> Result<Answer, Failure> {
        let form = form(&parts.headers, Count::Many)?;
        let options = ListOptions::parse(parts.uri.query().unwrap_or_default())?;
        let selection = Selection::parse(&options.fields, &options.labels)?;
        let id = ListId::of(&[namespace.unwrap_or_default(), &options.fields, &options.labels]);
        let from = if options.from.is_empty() { None } else { Some(token::read(id, &options.from)?) };
        match namespace {
            Some(namespace) => self.ready(namespace)?,
            None => self.any_ready()?,
        }

        let now = self.clock.now();
        let mut metadata = json!({"resourceVersion": now.as_millis().to_string()});
        let mut lines = Lines::new(self, selection);
        let Some(limit) = options.limit else {
            let asked = whole::Asked { namespace, from, form, include: options.include, metadata };
            return self.whole(lines, asked).await;
        };
        let last = lines.read(namespace, from, limit).await?;
        if let Some(last) = last {
            set(&mut metadata, "continue", token::write(id, last));
        }
        let lines = lines.found;
        Ok(match form {
            Form::Table => {
                let rows = lines.iter().map(|line| row(line, options.include, now)).collect();
                answer(StatusCode::OK, &table(rows, metadata))
            }
            Form::Metadata => {
                let (kind, api_version) = ("PartialObjectMetadataList", "meta.k8s.io/v1");
                let items: Vec<Value> = lines.iter().map(partial).collect();
                answer(StatusCode::OK, &List { kind, api_version, metadata, items })
            }
            Form::Whole => {
                let items: Vec<Object> = lines.iter().map(Line::object).collect();
                let (kind, api_version) = ("DeliveryList", API_VERSION);
                answer(StatusCode::OK, &List { kind, api_version, metadata, items })
            }
        })
    }

    /// One line of the log.
    pub(in crate::server) async fn get(
        &self,
        namespace: &str,
        name: &str,
        parts: &Parts,
    ) -> Result<Answer, Failure> {
        let form = form(&parts.headers, Count::One)?;
        let include = include(parts.uri.query(), form)?;
        self.ready(namespace)?;
        let line = self.line(namespace, name).await?;
        Ok(match form {
            Form::Table => {
                let metadata = json!({"resourceVersion": line.metadata().resource_version});
                answer(StatusCode::OK, &table(vec![row(&line, include, self.clock.now())], metadata))
            }
            Form::Metadata => answer(StatusCode::OK, &partial(&line)),
            Form::Whole => answer(StatusCode::OK, &line.object()),
        })
    }

    /// What was sent and what came back.
    pub(in crate::server) async fn payload(
        &self,
        namespace: &str,
        name: &str,
        parts: &Parts,
    ) -> Result<Answer, Failure> {
        crate::server::accept::json(&parts.headers)?;
        self.ready(namespace)?;
        let line = self.line(namespace, name).await?;
        if let Some(by) = &line.delivery.expunged {
            let failure = Failure::new(Reason::Gone, change::erased(by));
            return Err(failure.of(RESOURCE).named(name));
        }
        let event = asked(self.store.event(line.delivery.event)).await?;
        Ok(answer(StatusCode::OK, &Payload::new(&line, event.as_deref())))
    }

    /// What waits cannot be told from what is Held before the routes of its namespace are known.
    pub(super) fn ready(&self, namespace: &str) -> Result<(), Failure> {
        self.routes.check(namespace).map_err(|why| {
            let message = format!("namespace {namespace} is not served now: {why}: try again");
            Failure::later(Reason::ServiceUnavailable, message, RETRY_AFTER)
        })
    }

    /// The log of all namespaces is shown when it is known of each whether it is served.
    pub(super) fn any_ready(&self) -> Result<(), Failure> {
        match self.routes.coverage().whole() {
            Whole::Served | Whole::Partly(_) => Ok(()),
            Whole::Not(why) => {
                Err(Failure::later(Reason::ServiceUnavailable, format!("{why}: try again"), RETRY_AFTER))
            }
        }
    }

    async fn line(&self, namespace: &str, name: &str) -> Result<Line, Failure> {
        let missing = || Failure::no_such_object(RESOURCE, name);
        // Names have one spelling.
        let parsed: DeliveryName = name.parse().map_err(|_| missing())?;
        if parsed.to_string() != name {
            return Err(missing());
        }
        let found = asked(self.store.delivery(parsed)).await?;
        let here = |found: &Delivery| &*found.webhook.namespace == namespace && self.is_seen(found);
        let delivery = found.filter(here).ok_or_else(missing)?;
        let mut lines = Lines::new(self, Selection::default());
        Ok(lines.line(delivery))
    }

    /// Whether its Webhook is there: what the store has not been told yet to hide is hidden all the same.
    fn is_seen(&self, delivery: &Delivery) -> bool {
        self.routes.get(delivery.webhook.uid).is_some()
    }
}

/// For one object, `includeObject` alone means something.
fn include(query: Option<&str>, form: Form) -> Result<Include, Failure> {
    match form {
        Form::Table => ListOptions::parse(query.unwrap_or_default()).map(|options| options.include),
        Form::Whole | Form::Metadata => Ok(Include::default()),
    }
}

/// Lines that were found so far.
struct Lines {
    store: Arc<dyn Store>,
    routes: Arc<Table>,
    clock: Clock,
    selection: Selection,
    webhooks: HashMap<WebhookUid, Standing>,
    found: Vec<Line>,
}

impl Lines {
    /// None yet, of a log.
    fn new(log: &Log, selection: Selection) -> Self {
        let (store, routes, clock) = (Arc::clone(&log.store), Arc::clone(&log.routes), log.clock.clone());
        Self { store, routes, clock, selection, webhooks: HashMap::new(), found: Vec::new() }
    }

    /// Reads at most `limit` lines that are wanted, looking at a bounded number; answers the last line that it
    /// looked at when there may be more.
    async fn read(
        &mut self,
        namespace: Option<&str>,
        from: Option<DeliveryName>,
        limit: usize,
    ) -> Result<Option<DeliveryName>, Failure> {
        if let Some(name) = self.selection.name().map(ToOwned::to_owned) {
            self.read_one(namespace, &name).await?;
            return Ok(None);
        }
        let Some(mut query) = self.query(namespace, from) else { return Ok(None) };
        let looks_closer = self.selection.looks_closer();
        query.limit = if looks_closer { limit.clamp(FIRST_BATCH, BATCH) } else { limit };
        let (mut looked_at, until) = (0, Instant::now() + WORKS_FOR);
        loop {
            let page = asked(self.store.query(query.clone())).await?;
            // A page that the store gave up early took as much work as a full one.
            looked_at += page.deliveries.len().max(query.limit);
            for delivery in page.deliveries {
                if self.found.len() >= limit {
                    return Ok(query.before);
                }
                query.before = Some(delivery.name);
                self.take(delivery);
            }
            if page.next.is_none() {
                return Ok(None);
            }
            query.before = page.next;
            if self.found.len() >= limit || looked_at >= WORK || Instant::now() >= until {
                return Ok(query.before);
            }
            query.limit = if looks_closer { BATCH } else { limit };
        }
    }

    async fn read_one(&mut self, namespace: Option<&str>, name: &str) -> Result<(), Failure> {
        let Ok(name) = name.parse() else { return Ok(()) };
        let found = asked(self.store.delivery(name)).await?;
        let here =
            |found: &Delivery| namespace.is_none_or(|namespace| &*found.webhook.namespace == namespace);
        if let Some(delivery) = found.filter(here) {
            self.take(delivery);
        }
        Ok(())
    }

    /// What the store is asked for; none: nothing can be found.
    fn query(&self, namespace: Option<&str>, before: Option<DeliveryName>) -> Option<Query> {
        let namespace = match (namespace, self.selection.namespace()) {
            (Some(here), Some(wanted)) if here != wanted => return None,
            (here, wanted) => here.or(wanted),
        };
        let webhook = match (namespace, self.selection.webhook()) {
            (Some(namespace), Some(name)) => {
                let routes = self.routes.namespace(namespace);
                Some(routes.iter().find(|route| &*route.webhook.name == name)?.webhook.uid)
            }
            _ => None,
        };
        let mut states = self.selection.stored_states();
        if states.is_empty() {
            return None;
        }
        if states.len() == crate::store::State::ALL.len() {
            states.clear();
        }
        Some(Query {
            namespace: namespace.map(Into::into),
            webhook,
            states,
            event_id: self.selection.event_id().map(Into::into),
            event_type: self.selection.event_type().map(Into::into),
            test: self.selection.test(),
            before,
            limit: 0,
        })
    }

    /// A line with what is derived at this moment.
    fn line(&mut self, delivery: Delivery) -> Line {
        let uid = delivery.webhook.uid;
        let standing = *self.webhooks.entry(uid).or_insert_with(|| match self.routes.get(uid) {
            Some(route) => {
                Standing { hold: hold(&route, self.store.summary(uid).as_deref()), ..Standing::default() }
            }
            None => Standing { is_gone: true, ..Standing::default() },
        });
        let is_sending = !delivery.state.is_final() && self.store.is_under_way(uid, delivery.name);
        Line::new(delivery, Standing { is_sending, ..standing }, self.clock.now())
    }

    /// Keeps a line that is wanted. That of a Webhook that is gone is wanted by nobody.
    fn take(&mut self, delivery: Delivery) {
        let webhook = delivery.webhook.uid;
        let line = self.line(delivery);
        let is_gone = self.webhooks.get(&webhook).is_none_or(|standing| standing.is_gone);
        if !is_gone && self.selection.admits(&line.delivery, line.state, &line.labels) {
            self.found.push(line);
        }
    }
}

/// The store's answer, within a bounded time.
async fn asked<T>(question: impl Future<Output = crate::store::Result<T>>) -> Result<T, Failure> {
    let late = "the store takes too long: try again, with a namespace or spec.webhook if without";
    answered(question, late).await
}

/// The store's answer, within a bounded time; after it, what is said.
async fn answered<T>(
    question: impl Future<Output = crate::store::Result<T>>,
    late: &str,
) -> Result<T, Failure> {
    static FAILED: Quiet = Quiet::new(Duration::from_mins(1));
    let error = match timeout(PATIENCE, question).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => error,
        Err(_) => {
            return Err(Failure::later(Reason::ServiceUnavailable, late, RETRY_AFTER));
        }
    };
    if let Some(silent) = FAILED.speak() {
        warn!(error = crate::cli::chain(&error), silent, "the delivery log cannot be read or changed");
    }
    match &error {
        Error::Closed
        | Error::Poisoned
        | Error::Full
        | Error::NearlyFull { .. }
        | Error::OverQuota { .. } => {
            Err(Failure::later(Reason::ServiceUnavailable, error.to_string(), RETRY_AFTER))
        }
        Error::Unusable(_) | Error::Corrupt { .. } | Error::Engine { .. } => {
            Err(Failure::new(Reason::InternalError, error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests;
