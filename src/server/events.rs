//! The resource `cloudevents`: publishing by `POST`, and the validation handshake of CloudEvents webhooks.

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Body;
use serde::Serialize;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::apis::dry_run;
use super::auth::{Action, User};
use super::body::Bodies;
use super::publish::{Error, Match, Preview, Publisher, Receipt};
use super::quiet::Quiet;
use super::reply::Reply;
use super::status::{Answer, Failure, Reason, json};
use crate::model::cloudevents::{self, Decoded, Publication};
use crate::model::ids::Namespace;

/// Its name in paths and in RBAC.
pub(super) const RESOURCE: &str = "cloudevents";

/// The right that publishing into a namespace needs.
pub(super) fn action(namespace: &str) -> Action {
    Action {
        verb: "create",
        resource: RESOURCE,
        subresource: None,
        namespace: Some(namespace.to_owned()),
        name: None,
    }
}

/// Publishes what a request of an authorized user has.
pub(super) async fn create<B>(
    publisher: &Publisher,
    bodies: &Bodies,
    user: &User,
    namespace: &str,
    parts: &Parts,
    body: B,
) -> Result<Answer, Failure>
where
    B: Body<Data = Bytes> + Unpin,
{
    let dry_run = dry_run(parts.uri.query().unwrap_or_default(), RESOURCE)?;
    // Before the body is read: who is to come again need not have sent it.
    let namespace = Namespace::from(namespace);
    publisher.ready(&namespace).map_err(|error| later(&error))?;
    if !publisher.exists(&namespace).await {
        return Err(Failure::no_such_namespace(&namespace));
    }
    let body = bodies.read(&namespace, &parts.headers, body).await?;
    let started = Instant::now();
    let turn = publisher.turn(&namespace, body.bytes.len()).await;
    let publication = cloudevents::decode(&parts.headers, &body.bytes).map_err(refusal)?;
    if dry_run {
        return preview(publisher, &namespace, publication);
    }
    let (events, is_batch) = in_a_list(publication);
    let prepared = publisher.prepare(&namespace, events).map_err(|error| later(&error))?;
    drop(turn);
    let receipts = publisher.store(prepared).await.map_err(|error| later(&error))?;
    debug!(
        namespace = &*namespace,
        user = user.username,
        events = receipts.len(),
        deliveries = receipts.iter().map(|receipt| receipt.matched).sum::<usize>(),
        elapsed_us = started.elapsed().as_micros(),
        "published"
    );
    Ok(answer(StatusCode::ACCEPTED, receipts.iter().map(Item::from).collect(), is_batch))
}

/// Answers the validation handshake of the CloudEvents webhook specification: any origin may send here, at any
/// rate; whether an event is taken is decided by its token.
pub(super) fn options(headers: &HeaderMap, allow: &'static str) -> Answer {
    let mut answer = Response::new(Reply::default());
    answer.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static(allow));
    if headers.contains_key("webhook-request-origin") {
        answer.headers_mut().insert("webhook-allowed-origin", HeaderValue::from_static("*"));
        answer.headers_mut().insert("webhook-allowed-rate", HeaderValue::from_static("*"));
    }
    answer
}

fn refusal(error: cloudevents::Error) -> Failure {
    let message = error.to_string();
    match error {
        cloudevents::Error::Unsupported(_) => {
            Failure::new(Reason::UnsupportedMediaType, message).of(RESOURCE)
        }
        cloudevents::Error::Invalid(violations) => violations
            .into_iter()
            .fold(Failure::new(Reason::BadRequest, message).of(RESOURCE), |failure, violation| {
                failure.cause("FieldValueInvalid", violation.field, violation.message)
            }),
    }
}

fn later(error: &Error) -> Failure {
    static REFUSED: Quiet = Quiet::new(Duration::from_mins(1));
    if !error.is_quota()
        && let Some(silent) = REFUSED.speak()
    {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        warn!(%error, cause, silent, "publishing is refused");
    }
    let message = match error {
        Error::Store(cause) => format!("{error}: {cause}; nothing was stored"),
        Error::Unserved { source, .. } => format!("{error}: {source}; nothing was stored"),
        Error::TooFast { .. } => format!("{error}; nothing was stored"),
        Error::Timeout => {
            format!("{error}: publish again with the same source and id, nothing is sent twice")
        }
    };
    let reason = if error.is_quota() { Reason::TooManyRequests } else { Reason::ServiceUnavailable };
    Failure::later(reason, message, error.retry_after())
}

/// A receipt as it is answered.
#[derive(Serialize)]
struct Item {
    id: String,
    matched: usize,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
}

#[derive(Serialize)]
struct Items<T> {
    items: Vec<T>,
}

impl From<&Receipt> for Item {
    fn from(receipt: &Receipt) -> Self {
        Self { id: receipt.id.to_string(), matched: receipt.matched, duplicate: receipt.duplicate }
    }
}

fn in_a_list(publication: Publication) -> (Vec<Decoded>, bool) {
    match publication {
        Publication::One(event) => (vec![event], false),
        Publication::Batch(events) => (events, true),
    }
}

/// One item as it is, a batch as `items` in order.
fn answer<T: Serialize>(code: StatusCode, mut items: Vec<T>, is_batch: bool) -> Answer {
    match items.pop() {
        Some(item) if !is_batch => json(code, &item),
        last => {
            items.extend(last);
            json(code, &Items { items })
        }
    }
}

/// What a dry run says of one event.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    dry_run: bool,
    matched: usize,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
    webhooks: Vec<ShownMatch<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownMatch<'a> {
    name: &'a str,
    matches: bool,
    /// Why it does not match.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// Why deliveries to it wait; it matches all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<&'static str>,
}

fn preview(
    publisher: &Publisher,
    namespace: &Namespace,
    publication: Publication,
) -> Result<Answer, Failure> {
    let (events, is_batch) = in_a_list(publication);
    let previews = publisher.preview(namespace, &events).map_err(|error| later(&error))?;
    Ok(answer(StatusCode::OK, previews.iter().map(show).collect(), is_batch))
}

fn show(preview: &Preview) -> Shown<'_> {
    let wanted = preview.webhooks.iter().filter(|met| met.wanted).count();
    Shown {
        dry_run: true,
        matched: if preview.duplicate { 0 } else { wanted },
        duplicate: preview.duplicate,
        webhooks: preview.webhooks.iter().map(show_match).collect(),
    }
}

fn show_match(met: &Match) -> ShownMatch<'_> {
    ShownMatch {
        name: &met.route.webhook.name,
        matches: met.wanted,
        reason: (!met.wanted).then_some("none of its spec.eventTypes is this event's type"),
        held: met.hold.map(crate::routes::hold::Hold::as_str),
    }
}

/// Label of the metric for a request that was refused.
pub(super) fn result_of(reason: Reason) -> &'static str {
    match reason {
        Reason::Unauthorized => "unauthenticated",
        Reason::Forbidden => "forbidden",
        Reason::RequestEntityTooLarge | Reason::RequestHeaderFieldsTooLarge => "too_large",
        Reason::TooManyRequests => "throttled",
        Reason::ServiceUnavailable | Reason::InternalError => "unavailable",
        Reason::BadRequest
        | Reason::NotFound
        | Reason::MethodNotAllowed
        | Reason::NotAcceptable
        | Reason::RequestTimeout
        | Reason::Conflict
        | Reason::Expired
        | Reason::Gone
        | Reason::UnsupportedMediaType => "invalid",
    }
}
