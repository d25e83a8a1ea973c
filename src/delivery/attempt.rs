//! One attempt, from its claim to its record.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use super::engine::Shared;
use super::inbox::Slot;
use super::outcome::{Made, conclude};
use super::quiet::Line;
use super::schedule::Ended;
use super::{Job, Sent};
use crate::metrics::{Attempted, Ended as EndedLabel};
use crate::model::causes::chain;
use crate::model::time::UnixMillis;
use crate::model::verdict::{Fault, Verdict};
use crate::routes::{Endpoint, Route};
use crate::store::{self, Attempt, Claimed, Next, Outcome};

/// Between two tries to record an outcome, at first and at most.
const RECORD_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A claimed delivery with what it is sent by.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) claimed: Claimed,
    pub(super) route: Arc<Route>,
    pub(super) endpoint: Arc<Endpoint>,
    /// Made while attempts are spaced, at the time of one.
    pub(super) is_look: bool,
    /// Set when it is made before its time: when that is.
    pub(super) own_time: Option<UnixMillis>,
    /// A first attempt, where those are bound to fail.
    pub(super) is_usual: bool,
    /// How many attempts may be under way.
    pub(super) window: usize,
    /// Until when the claim holds.
    pub(super) lease_ends: Instant,
}

/// Makes the attempt and records it. On abort, what has no answer yet is given back.
pub(super) async fn run(shared: Arc<Shared>, task: Task, mut slot: Slot) {
    let sending = send(&shared, &task);
    let sent = tokio::select! {
        sent = sending => sent,
        () = shared.abort.cancelled() => {
            let claim = vec![(task.route.webhook.uid, task.claimed.delivery.name)];
            if let Err(error) = shared.store.release(claim).await
                && let Some(unlogged) = shared.quiet.may_speak(Line::NotReleased, task.route.webhook.uid)
            {
                warn!(webhook = %task.route.webhook, error = chain(&error), unlogged, "a claim was not given back; it expires");
            }
            return;
        }
    };
    if sent.verdict == Verdict::Delivered {
        slot.arrived();
    }
    let (outcome, ended) = judge(&shared, &task, sent);
    if record(&shared, &task, &outcome).await {
        report(&shared, &task, &outcome);
        slot.recorded(ended);
    }
}

async fn send(shared: &Shared, task: &Task) -> Sent {
    let Task { claimed, route, endpoint, .. } = task;
    let job = Job {
        name: claimed.delivery.name,
        webhook: route.webhook.clone(),
        endpoint: Arc::clone(endpoint),
        event: Arc::clone(&claimed.event),
        test: false,
    };
    let (at, began) = (shared.clock.now(), Instant::now());
    let sent = AssertUnwindSafe(shared.sender.send(job)).catch_unwind().await;
    sent.unwrap_or_else(|_| {
        if let Some(unlogged) = shared.quiet.may_speak(Line::Panicked, route.webhook.uid) {
            error!(webhook = %route.webhook, delivery = %claimed.delivery.name, unlogged, "an attempt panicked");
        }
        let attempt = Attempt {
            at,
            duration: began.elapsed(),
            status: None,
            body: None,
            content_type: None,
            body_length: 0,
            error: Some("Hookwright failed in this attempt; its log says where".to_owned()),
            asked_by: None, probe: false,
retry_after: None,
        };
        Sent { attempt, verdict: Verdict::Retry { fault: Fault::Internal, after: None } }
    })
}

fn judge(shared: &Shared, task: &Task, sent: Sent) -> (Outcome, Ended) {
    let Task { claimed, route, endpoint, is_look, own_time, is_usual, window, .. } = task;
    let Sent { attempt, verdict } = sent;
    shared.metrics.attempts.get_or_create(&Attempted { verdict: verdict.as_str() }).inc();
    shared.metrics.attempt_duration.observe(attempt.duration.as_secs_f64());
    if matches!(verdict, Verdict::Retry { fault: Fault::Denied, .. }) {
        shared.metrics.egress_denied.inc();
    }
    let summary = shared.store.summary(route.webhook.uid);
    conclude(Made {
        name: claimed.delivery.name,
        webhook: route.webhook.uid,
        generation: route.generation,
        retry: &endpoint.retry,
        attempts: u32::try_from(claimed.delivery.attempts_made()).unwrap_or(u32::MAX).saturating_add(1),
        own_time: *own_time,
        is_redelivery: claimed.delivery.redelivery.is_some(),
        is_look: *is_look,
        is_usual: *is_usual,
        window: *window,
        attempt,
        verdict,
        summary: summary.as_deref(),
        disable_after: shared.settings.disable_after,
        now: shared.clock.now(),
    })
}

/// Records until the store takes it. False: it will not, or another may hold the claim by now; then the delivery
/// is attempted again.
async fn record(shared: &Shared, task: &Task, outcome: &Outcome) -> bool {
    let (mut wait, longest) = RECORD_AGAIN;
    let (webhook, delivery) = (&task.route.webhook, outcome.name);
    let may_speak = |line| shared.quiet.may_speak(line, webhook.uid);
    loop {
        let Err(error) = shared.store.record(vec![outcome.clone()]).await else { return true };
        let is_final = matches!(error, store::Error::Poisoned | store::Error::Closed);
        if is_final || Instant::now() + wait >= task.lease_ends {
            if let Some(unlogged) = may_speak(Line::NotRecorded) {
                error!(%webhook, %delivery, error = chain(&error), unlogged, "an outcome was not recorded; the attempt is repeated");
            }
            return false;
        }
        if let Some(unlogged) = may_speak(Line::NotYetRecorded) {
            warn!(%webhook, %delivery, error = chain(&error), unlogged, "an outcome is recorded later");
        }
        tokio::select! {
            () = sleep(wait) => {}
            () = shared.abort.cancelled() => return false,
        }
        wait = (wait * 2).min(longest);
    }
}

fn report(shared: &Shared, task: &Task, outcome: &Outcome) {
    let webhook = &task.route.webhook;
    let delivery = &task.claimed.delivery;
    let Some(attempt) = &outcome.attempt else { return };
    let elapsed_ms = u64::try_from(attempt.duration.as_millis()).unwrap_or(u64::MAX);
    let number = delivery.attempts.len() + 1;
    let ended = |outcome| shared.metrics.deliveries.get_or_create(&EndedLabel { outcome }).inc();
    match outcome.next {
        Next::Success => {
            ended("success");
            let latency = shared.clock.now().since(delivery.accepted_at);
            shared.metrics.delivery_latency.observe(latency.as_secs_f64());
            debug!(%webhook, delivery = %delivery.name, attempt = number, status = attempt.status, elapsed_ms, "delivered");
        }
        Next::Retry(at) => {
            if let Some(unlogged) = shared.quiet.may_speak(Line::Failure, webhook.uid) {
                let (status, error) = (attempt.status, attempt.error.as_deref());
                info!(%webhook, delivery = %delivery.name, attempt = number, status, error, elapsed_ms, retry_at = %at, unlogged, "attempt failed");
            }
        }
        Next::Failed(reason) => {
            ended(reason.as_str());
            if let Some(unlogged) = shared.quiet.may_speak(Line::Failure, webhook.uid) {
                let (status, error) = (attempt.status, attempt.error.as_deref());
                warn!(%webhook, delivery = %delivery.name, attempts = number, status, error, reason = reason.as_str(), unlogged, "delivery failed");
            }
        }
    }
    if let Some(disabled) = &outcome.disable
        && let Some(unlogged) = shared.quiet.may_speak(Line::Disabled, webhook.uid)
    {
        warn!(%webhook, generation = disabled.generation, reason = ?disabled.reason, unlogged, "disabled");
    }
}
