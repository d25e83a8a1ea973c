//! What can be done to a line of the log: one attempt more, and erasing what was sent.

use std::sync::Arc;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;

use super::{Log, RESOURCE, answered};
use crate::model::legible::legible;
use crate::model::time::UnixMillis;
use crate::routes::hold::{Hold, hold};
use crate::server::apis::API_VERSION;
use crate::server::apis::object::Line;
use crate::server::status::{Answer, Failure, Reason, json as answer};
use crate::store::records::{Asked, Delivery, Expunge, Expunged, Redelivered, Redelivery};

/// Of a user's name, so many characters are kept: it is stored with each attempt.
const NAME_CHARS: usize = 256;
/// Said when the store has not answered in time.
const LATE: &str = "the store takes too long, and may still do it: look at the delivery before asking again";

/// A subresource that changes its line, by `POST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Change {
    /// One attempt more.
    Redeliver,
    /// Erases the event's payload and answers.
    Expunge,
}

impl Change {
    const ALL: [Self; 2] = [Self::Redeliver, Self::Expunge];

    /// Its name in paths and in RBAC.
    pub(in crate::server) const fn as_str(self) -> &'static str {
        match self {
            Self::Redeliver => "redeliver",
            Self::Expunge => "expunge",
        }
    }

    /// The one with this name.
    pub(in crate::server) fn called(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|change| change.as_str() == name)
    }
}

/// Takes a body that says nothing: an empty one, or an empty object.
pub(in crate::server) fn nothing(body: &[u8]) -> Result<(), Failure> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}

    let body = body.trim_ascii();
    let is_object = body.first() == Some(&b'{');
    if body.is_empty() || is_object && serde_json::from_slice::<Nothing>(body).is_ok() {
        return Ok(());
    }
    let message = "the body must be empty, or the empty object {}: there is nothing to say in it";
    Err(Failure::new(Reason::BadRequest, message).of(RESOURCE))
}

/// Says that there is no payload any more.
pub(super) fn erased(by: &Asked) -> String {
    format!("the payload was erased by {} at {}", legible(&by.by, NAME_CHARS), by.at)
}

/// What is answered.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Done<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Value,
    requested_by: &'a str,
    requested_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliveries: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<usize>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
}

impl<'a> Done<'a> {
    fn new(kind: &'static str, delivery: &Delivery, by: &'a str, at: UnixMillis) -> Self {
        let name = delivery.name.to_string();
        Self {
            api_version: API_VERSION,
            kind,
            metadata: json!({"name": name, "namespace": &*delivery.webhook.namespace}),
            requested_by: by,
            requested_at: at.to_string(),
            held: None,
            deliveries: None,
            ended: None,
            dry_run: false,
        }
    }

    /// 201, and 200 when nothing was done.
    fn answer(self) -> Answer {
        answer(if self.dry_run { StatusCode::OK } else { StatusCode::CREATED }, &self)
    }
}

impl Log {
    /// Does something to the line with this namespace and name, in a user's name. A dry run judges by the line as
    /// it stands, and does nothing.
    pub(in crate::server) async fn change(
        &self,
        change: Change,
        (namespace, name): (&str, &str),
        user: &str,
        dry_run: bool,
    ) -> Result<Answer, Failure> {
        self.ready(namespace)?;
        let line = self.line(namespace, name).await?;
        let by: Arc<str> = user.chars().take(NAME_CHARS).collect::<String>().into();
        match change {
            Change::Redeliver => self.redeliver(&line, by, dry_run).await,
            Change::Expunge => self.expunge(&line, by, dry_run).await,
        }
    }

    async fn redeliver(&self, line: &Line, by: Arc<str>, dry_run: bool) -> Result<Answer, Failure> {
        let (delivery, at) = (&line.delivery, self.clock.now());
        judge(line)?;
        if !dry_run {
            let namespace = Arc::clone(&delivery.webhook.namespace);
            let asked = Redelivery { name: delivery.name, namespace, by: Arc::clone(&by), at };
            let queued = answered(self.store.redeliver(vec![asked]), LATE).await?;
            // The line may have become another since it was judged.
            outcome(queued.first().copied().unwrap_or(Redelivered::NotFound), line)?;
            let (name, webhook) = (delivery.name.to_string(), &delivery.webhook);
            info!(
                user = &*by,
                delivery = name,
                namespace = &*webhook.namespace,
                webhook = &*webhook.name,
                "redelivery was asked for"
            );
        }
        let route = self.routes.get(delivery.webhook.uid);
        let held = route.and_then(|route| hold(&route, self.store.summary(delivery.webhook.uid).as_deref()));
        let held = held.map(Hold::as_str);
        Ok(Done { held, dry_run, ..Done::new("DeliveryRedelivery", delivery, &by, at) }.answer())
    }

    async fn expunge(&self, line: &Line, by: Arc<str>, dry_run: bool) -> Result<Answer, Failure> {
        let delivery = &line.delivery;
        let asked = Asked { by, at: self.clock.now() };
        let first = delivery.expunged.as_ref().unwrap_or(&asked);
        let done = Done::new("DeliveryExpunge", delivery, &first.by, first.at);
        if dry_run {
            return Ok(Done { dry_run, ..done }.answer());
        }
        let (name, webhook) = (delivery.name.to_string(), &delivery.webhook);
        let namespace = Arc::clone(&webhook.namespace);
        let expunge = Expunge { name: delivery.name, namespace, by: Arc::clone(&asked.by), at: asked.at };
        match answered(self.store.expunge(expunge), LATE).await? {
            Expunged::NotFound => Err(Failure::no_such_object(RESOURCE, &name)),
            Expunged::Done { deliveries, ended } => {
                info!(
                    user = &*asked.by,
                    delivery = name,
                    namespace = &*webhook.namespace,
                    webhook = &*webhook.name,
                    deliveries,
                    ended,
                    "an event was erased"
                );
                Ok(Done { deliveries: Some(deliveries), ended: Some(ended), ..done }.answer())
            }
        }
    }
}

/// Whether a line, as it was read, can be attempted once more.
fn judge(line: &Line) -> Result<(), Failure> {
    let delivery = &line.delivery;
    let judged = match delivery {
        Delivery { expunged: Some(_), .. } => Redelivered::Expunged,
        Delivery { test: true, .. } => Redelivered::Test,
        Delivery { state, .. } if !state.is_final() => Redelivered::NotFinished,
        _ => Redelivered::Queued,
    };
    outcome(judged, line)
}

/// What became of asking, as a refusal unless it is queued.
fn outcome(redelivered: Redelivered, line: &Line) -> Result<(), Failure> {
    let why = match redelivered {
        Redelivered::Queued => return Ok(()),
        Redelivered::NotFound => {
            return Err(Failure::no_such_object(RESOURCE, &line.delivery.name.to_string()));
        }
        Redelivered::Expunged => line.delivery.expunged.as_ref().map_or_else(
            || "the payload was erased, just now".to_owned(),
            |by| {
                format!(
                    "{}: publish it once more as an event with another id, the former one is a duplicate",
                    erased(by)
                )
            },
        ),
        Redelivered::Test => "it is a test, which is attempted once: create another WebhookTest".to_owned(),
        Redelivered::NotFinished => unfinished(line),
    };
    Err(conflict(line, &why))
}

/// Why a line that is attempted anyway is not redelivered.
fn unfinished(line: &Line) -> String {
    let webhook = &line.delivery.webhook.name;
    if let Some(hold) = line.held() {
        let hold = hold.as_str();
        return format!("it is Held ({hold}), and is attempted by itself once Webhook {webhook} lets it");
    }
    // Final when it was read, and asked for by somebody else since.
    let due = line.due().map_or_else(String::new, |due| format!(", next at {due}"));
    format!("it is not finished, and is attempted by itself{due}: ask again when it is Success or Failed")
}

fn conflict(line: &Line, why: &str) -> Failure {
    let name = line.delivery.name.to_string();
    let message = format!("delivery {name} cannot be redelivered: {why}");
    Failure::new(Reason::Conflict, message).of(RESOURCE).named(name)
}
