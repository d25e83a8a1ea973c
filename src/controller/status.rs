//! The status of a Webhook, from what is known. Pure.

#[cfg(test)]
mod tests;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::conditions::{MAX_MESSAGE, Maker, Status, cut_bytes, cut_chars};
use crate::api::WebhookStatus;
use crate::api::conditions::{DISABLED, ENDPOINT_HEALTHY, READY, RECONCILING, STALLED};
use crate::api::webhook::{DeliveryState, DeliverySummary, WebhookState};
use crate::model::duration;
use crate::model::legible::legible;
use crate::model::time::UnixMillis;
use crate::model::trouble::LastFailure;
use crate::routes::Route;
use crate::routes::hold::{Hold, UNHEALTHY_AFTER, hold, shown, trouble};
use crate::store::records::DisableReason;
use crate::store::{Delivery, Summary};

/// The status is smaller than this as JSON: 8 KiB, less what names and quoting of the request add.
pub(super) const MAX_STATUS: usize = 8000;

/// What is known of a Webhook at one moment.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// Its route.
    pub(super) route: &'a Route,
    /// Its numbers.
    pub(super) summary: &'a Summary,
    /// Its newest deliveries, newest first.
    pub(super) recent: &'a [Delivery],
    /// Its unfinished deliveries, as many as were asked for; only looked at while its endpoint is probed.
    pub(super) unfinished: &'a [Delivery],
    /// Its status as it stands.
    pub(super) before: &'a WebhookStatus,
    /// The moment.
    pub(super) now: UnixMillis,
}

/// The status that says it.
pub(super) fn status(known: &Known<'_>) -> WebhookStatus {
    let Known { route, summary, recent, before, now, .. } = known;
    let hold = hold(route, Some(summary));
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    fit(WebhookStatus {
        observed_generation: route.generation,
        state: Some(state(route, hold)),
        conditions: conditions(known),
        failure_count: number(summary.failure_count),
        consecutive_failures: number(summary.consecutive_failures),
        pending_deliveries: number(summary.pending),
        held_deliveries: number(held(known, hold)),
        gives_up_after: route.gives_up_after.map(duration::format),
        last_triggered: summary.last_triggered.map(seconds),
        last_success: summary.last_success.map(seconds),
        test_payload_sent: summary.test_sent,
        public_key: Some(route.public_key.to_string()),
        last_handled_reconcile_at: handled(route).or_else(|| before.last_handled_reconcile_at.clone()),
        deliveries: recent.iter().map(|delivery| line(delivery, hold, *now)).collect(),
    })
}

/// Whether deliveries are sent, or why not.
fn state(route: &Route, hold: Option<Hold>) -> WebhookState {
    match hold {
        None | Some(Hold::EndpointUnhealthy) if route.unready().is_some() => WebhookState::NotReady,
        None => WebhookState::Active,
        Some(Hold::Paused) => WebhookState::Paused,
        Some(Hold::Disabled(_)) => WebhookState::Disabled,
        Some(Hold::NotReady) => WebhookState::NotReady,
        Some(Hold::EndpointUnhealthy) => WebhookState::Probing,
    }
}

/// The annotation as `status.lastHandledReconcileAt` has it.
pub(super) fn handled(route: &Route) -> Option<String> {
    route.requested_at.as_deref().map(|value| cut_chars(value, 128))
}

fn conditions(known: &Known<'_>) -> Vec<Condition> {
    let Known { route, before, now, .. } = known;
    let maker = Maker { before: &before.conditions, generation: route.generation, now: *now };
    let mut conditions = vec![ready(known, &maker), healthy(known, &maker)];
    if let Some(unready) = route.unready() {
        let kind = if unready.stalled { STALLED } else { RECONCILING };
        conditions.push(maker.make(kind, Status::True, unready.reason, &unready.message));
    }
    conditions.extend(disabled(known, &maker));
    conditions
}

fn ready(known: &Known<'_>, maker: &Maker<'_>) -> Condition {
    let Known { route, summary, .. } = known;
    match (route.unready(), hold(route, Some(summary))) {
        (Some(unready), _) => maker.make(READY, Status::False, unready.reason, &unready.message),
        (None, Some(Hold::Paused)) => maker.make(
            READY,
            Status::True,
            "Paused",
            "the route is live and paused: deliveries are Held until spec.active is true",
        ),
        (None, Some(Hold::Disabled(_))) => maker.make(
            READY,
            Status::True,
            "RouteLive",
            "the route is live, and disabled: see condition Disabled",
        ),
        (None, Some(Hold::NotReady | Hold::EndpointUnhealthy) | None) => {
            maker.make(READY, Status::True, "RouteLive", "the route is live")
        }
    }
}

fn healthy(known: &Known<'_>, maker: &Maker<'_>) -> Condition {
    let summary = known.summary;
    if summary.consecutive_failures >= UNHEALTHY_AFTER || summary.failed_since_success {
        let last = summary.last_failure.as_deref();
        let many = summary.consecutive_failures >= UNHEALTHY_AFTER;
        // A program that did not keep the last failure may have counted it.
        let unknown = if many { "AttemptsFail" } else { "DeliveryFailed" };
        let reason = last.map_or(unknown, |last| last.kind.as_str());
        return maker.make(ENDPOINT_HEALTHY, Status::False, reason, &unhealthy(known, last));
    }
    let (status, reason, message) = if summary.last_success.is_some() {
        (Status::True, "Delivering", "deliveries arrive")
    } else if summary.last_triggered.is_some() {
        (
            Status::Unknown,
            "FirstRetries",
            "nothing has arrived yet; the first attempts failed and are retried",
        )
    } else {
        (Status::Unknown, "NoDeliveries", "nothing has been sent yet")
    };
    maker.make(ENDPOINT_HEALTHY, status, reason, message)
}

/// What is wrong with an endpoint, and what follows: the last failure, what waits, and when it is tried next.
fn unhealthy(known: &Known<'_>, last: Option<&LastFailure>) -> String {
    let Known { route, summary, now, .. } = known;
    let mut message = match last.map(|last| last.error.as_deref()) {
        Some(Some(error)) => format!("nothing has arrived since attempts failed, the last one with: {error}"),
        Some(None) | None => "nothing has arrived since attempts failed".to_owned(),
    };
    let waits = match summary.pending {
        1 => "1 delivery waits".to_owned(),
        pending => format!("{pending} deliveries wait"),
    };
    message.push_str("; ");
    message.push_str(&waits);
    let Some(trouble) = trouble(route, Some(summary)) else { return message };
    match &trouble.spaced {
        Some(spaced) => {
            let next = seconds(spaced.next(*now));
            message.push_str("; one attempt at a time, the next at ");
            message.push_str(&next);
            message.push_str(" or soon after, the others are Held");
        }
        None if trouble.failures > 0 => {
            message.push_str("; attempts at a time: at most ");
            message.push_str(&trouble.window.to_string());
        }
        None => {}
    }
    message
}

fn disabled(known: &Known<'_>, maker: &Maker<'_>) -> Option<Condition> {
    let Known { route, summary, .. } = known;
    let disabled = summary.disabled.as_ref().filter(|disabled| disabled.generation >= route.generation)?;
    let (reason, why) = match disabled.reason {
        DisableReason::Gone => ("Gone", "the endpoint answered 410 Gone"),
        DisableReason::Failing => ("Failing", "every attempt failed for too long"),
    };
    let message = format!(
        "{why} ({}); nothing is sent until the spec is changed or this is run: kubectl -n {} annotate hook {} \
         hookwright.dev/requestedAt=\"$(date -u +%FT%TZ)\" --overwrite",
        seconds(disabled.at),
        route.webhook.namespace,
        route.webhook.name,
    );
    Some(maker.make(DISABLED, Status::True, reason, &message))
}

/// How many unfinished deliveries wait for the Webhook. While an endpoint is probed, those that are not due wait for
/// their time, not for the Webhook.
fn held(known: &Known<'_>, hold: Option<Hold>) -> u64 {
    let pending = known.summary.pending;
    match hold {
        None => 0,
        Some(Hold::EndpointUnhealthy) => {
            let is_held = |delivery: &&Delivery| shown(delivery, hold, known.now) == DeliveryState::Held;
            let real = known.unfinished.iter().filter(|delivery| !delivery.test);
            let not_held = real.clone().count() - real.filter(is_held).count();
            pending.saturating_sub(u64::try_from(not_held).unwrap_or(u64::MAX))
        }
        Some(Hold::Paused | Hold::Disabled(_) | Hold::NotReady) => pending,
    }
}

/// A delivery as the status shows it.
fn line(delivery: &Delivery, hold: Option<Hold>, now: UnixMillis) -> DeliverySummary {
    let state = shown(delivery, hold, now);
    let last = delivery.attempts.last();
    let next = delivery.due.filter(|_| state == DeliveryState::Retrying);
    DeliverySummary {
        id: delivery.name.to_string(),
        event_id: legible(&delivery.event_id, 64),
        event_type: legible(&delivery.event_type, 64),
        state,
        test: delivery.test,
        response_status: last.and_then(|attempt| attempt.status).map(i32::from),
        retry_count: i32::try_from(delivery.retry_count()).unwrap_or(i32::MAX),
        next_retry_at: next.map(|due| due.to_string()),
        error_message: error(delivery, state, hold).map(|text| legible(&text, 160)),
        started_at: last.map(|attempt| attempt.at.to_string()),
        duration_ms: last.map(|attempt| i64::try_from(attempt.duration.as_millis()).unwrap_or(i64::MAX)),
    }
}

fn error(delivery: &Delivery, state: DeliveryState, hold: Option<Hold>) -> Option<String> {
    let last = delivery.attempts.last().and_then(|attempt| attempt.error.clone());
    match state {
        DeliveryState::Success => None,
        DeliveryState::Pending | DeliveryState::Retrying => last,
        DeliveryState::Held => hold.map(|hold| format!("Held: {}", hold.as_str())),
        DeliveryState::Failed => match (delivery.reason, last) {
            (Some(reason), Some(last)) => Some(format!("{}: {last}", reason.as_str())),
            (Some(reason), None) => Some(reason.as_str().to_owned()),
            (None, last) => last,
        },
    }
}

/// Leaves out the oldest deliveries, and then the ends of messages, until the status is small enough.
fn fit(mut status: WebhookStatus) -> WebhookStatus {
    let size = |status: &WebhookStatus| serde_json::to_vec(status).map_or(0, |json| json.len());
    while size(&status) > MAX_STATUS && status.deliveries.pop().is_some() {}
    let mut longest = MAX_MESSAGE;
    while size(&status) > MAX_STATUS && longest > 64 {
        longest /= 2;
        for condition in &mut status.conditions {
            condition.message = cut_bytes(&condition.message, longest).to_owned();
        }
    }
    status
}

/// RFC 3339 in whole seconds.
fn seconds(at: UnixMillis) -> String {
    format!("{:.0}", at.to_jiff())
}

/// Whether two statuses say the same, whatever the order of their conditions.
pub(super) fn is_same(a: &WebhookStatus, b: &WebhookStatus) -> bool {
    let sorted = |status: &WebhookStatus| {
        let mut status = status.clone();
        status.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        status
    };
    sorted(a) == sorted(b)
}
