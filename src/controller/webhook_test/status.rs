//! The status of a WebhookTest. Pure.

use kube::Resource as _;

use super::step::status_of;
use crate::api::{WebhookTest, WebhookTestStatus};
use crate::controller::conditions::Maker;
use crate::controller::once::{self, Reason, closed, open};
use crate::model::ids::DeliveryName;
use crate::model::legible::legible;
use crate::model::time::UnixMillis;
use crate::store::{Attempt, Delivery, EndReason, State};

/// It waits, and for what.
pub(super) fn waiting(test: &WebhookTest, why: &Reason, now: UnixMillis) -> WebhookTestStatus {
    with(test, now, |status, maker| {
        status.conditions = open(maker, why.word, &why.message);
    })
}

/// Its attempt begins: from here on it is never begun again.
pub(super) fn begun(test: &WebhookTest, delivery: DeliveryName, now: UnixMillis) -> WebhookTestStatus {
    with(test, now, |status, maker| {
        status.delivery_id = Some(delivery.to_string());
        status.started_at = Some(now.to_string());
        status.conditions = open(maker, "Sending", "the test event is being sent");
    })
}

/// It failed without an attempt.
pub(super) fn failed(test: &WebhookTest, reason: &str, message: &str, now: UnixMillis) -> WebhookTestStatus {
    with(test, now, |status, maker| {
        status.error_message = Some(legible(message, 512));
        status.completed_at = Some(now.to_string());
        status.conditions = closed(maker, false, reason, message);
    })
}

/// What the log says of its attempt.
pub(super) fn ended(test: &WebhookTest, delivery: &Delivery, now: UnixMillis) -> WebhookTestStatus {
    let attempt = delivery.attempts.last();
    let succeeded = delivery.state == State::Success;
    let (reason, message) = outcome(attempt, succeeded, delivery.reason);
    with(test, now, |status, maker| {
        status.delivery_id = Some(delivery.name.to_string());
        if let Some(Attempt { at, duration, status: code, content_type, body_length, .. }) = attempt {
            status.started_at = Some(at.to_string());
            status.duration_ms = i64::try_from(duration.as_millis()).ok();
            status.response_status = code.map(i32::from);
            status.response_content_type = content_type.as_deref().map(|text| legible(text, 128));
            status.response_length = code.and_then(|_| i64::try_from(*body_length).ok());
        }
        status.error_message = (!succeeded).then(|| legible(&message, 512));
        let ended = attempt.map_or(now, |attempt| attempt.at + attempt.duration);
        status.completed_at = Some(ended.to_string());
        status.conditions = closed(maker, succeeded, reason, &message);
    })
}

/// As it is, with no time that is still to come.
pub(super) fn redated(test: &WebhookTest, now: UnixMillis) -> WebhookTestStatus {
    let mut status = status_of(test);
    once::redated(&mut status.started_at, now);
    once::redated(&mut status.completed_at, now);
    status
}

/// Nobody knows what came of its attempt.
pub(super) fn interrupted(test: &WebhookTest, now: UnixMillis) -> WebhookTestStatus {
    failed(test, EndReason::Interrupted.as_str(), INTERRUPTED, now)
}

const INTERRUPTED: &str = "the operator stopped during the attempt: the test event may have been sent or not, and is not \
                           sent again; create another WebhookTest";

fn outcome(attempt: Option<&Attempt>, succeeded: bool, reason: Option<EndReason>) -> (&'static str, String) {
    let code = attempt.and_then(|attempt| attempt.status);
    let error = attempt.and_then(|attempt| attempt.error.clone());
    match (succeeded, reason, code) {
        (true, _, Some(code)) => ("Delivered", format!("the endpoint answered {code}")),
        (true, _, None) => ("Delivered", "the endpoint took the test event".to_owned()),
        (false, Some(EndReason::Interrupted), _) => (EndReason::Interrupted.as_str(), INTERRUPTED.to_owned()),
        (false, Some(EndReason::AddressDenied), _) => (
            EndReason::AddressDenied.as_str(),
            error.unwrap_or_else(|| "the address is not allowed".to_owned()),
        ),
        (false, _, Some(code)) => ("UnexpectedAnswer", format!("the endpoint answered {code}, not 2xx")),
        (false, _, None) => ("NoAnswer", error.unwrap_or_else(|| "the endpoint gave no answer".to_owned())),
    }
}

fn with(
    test: &WebhookTest,
    now: UnixMillis,
    change: impl FnOnce(&mut WebhookTestStatus, &Maker<'_>),
) -> WebhookTestStatus {
    let mut status = status_of(test);
    let before = std::mem::take(&mut status.conditions);
    let generation = test.meta().generation.unwrap_or(0);
    status.observed_generation = generation;
    change(&mut status, &Maker { before: &before, generation, now });
    status
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::controller::fixtures::{at, delivery, webhook_test};

    fn short(status: &WebhookTestStatus) -> Vec<String> {
        let conditions = status.conditions.iter();
        conditions.map(|one| format!("{}={}/{}", one.type_, one.status, one.reason)).collect()
    }

    #[test]
    fn a_test_that_waits_is_in_progress() {
        let test = webhook_test("orders-1", 0, &json!({ "observedGeneration": -1 }));
        let why = Reason {
            word: "RateLimited",
            message: "its turn comes".to_owned(),
            again: Duration::from_secs(1),
        };
        let status = waiting(&test, &why, at(1));
        assert_eq!(
            short(&status),
            ["Succeeded=Unknown/RateLimited", "Ready=Unknown/RateLimited", "Reconciling=True/RateLimited"]
        );
        assert_eq!((status.observed_generation, status.delivery_id), (1, None));
    }

    #[test]
    fn what_the_endpoint_answered_is_the_result() {
        let test = webhook_test("orders-1", 0, &json!({ "observedGeneration": -1 }));
        let mut log = delivery(1, State::Success, &[(204, 2)]);
        log.attempts[0].error = None;
        log.attempts[0].content_type = Some("text/plain".to_owned());
        let status = ended(&test, &log, at(9));
        assert_eq!(short(&status), ["Succeeded=True/Delivered", "Ready=True/Delivered"]);
        assert_eq!(status.conditions[0].message, "the endpoint answered 204");
        assert_eq!(
            (status.response_status, status.response_length, status.duration_ms),
            (Some(204), Some(11), Some(12))
        );
        assert_eq!(status.response_content_type.as_deref(), Some("text/plain"));
        assert_eq!(status.started_at.as_deref(), Some("2026-11-24T10:00:02.000Z"));
        assert_eq!(status.completed_at.as_deref(), Some("2026-11-24T10:00:02.012Z"));
        assert_eq!(status.error_message, None);
        assert!(!serde_json::to_string(&status).unwrap().contains("canary"), "no body");
    }

    #[test]
    fn a_failure_is_stalled_and_says_why() {
        let test = webhook_test("orders-1", 0, &json!({ "observedGeneration": -1 }));
        let mut log = delivery(1, State::Failed, &[(500, 2)]);
        log.reason = Some(EndReason::TestFailed);
        let status = ended(&test, &log, at(9));
        assert_eq!(
            short(&status),
            [
                "Succeeded=False/UnexpectedAnswer",
                "Ready=False/UnexpectedAnswer",
                "Stalled=True/UnexpectedAnswer"
            ]
        );
        assert_eq!(status.error_message.as_deref(), Some("the endpoint answered 500, not 2xx"));
        log.attempts[0].status = None;
        log.attempts[0].error = Some("no whole answer within 15s".to_owned());
        let status = ended(&test, &log, at(9));
        assert_eq!(short(&status)[0], "Succeeded=False/NoAnswer");
        assert_eq!(status.error_message.as_deref(), Some("no whole answer within 15s"));
        assert_eq!(status.response_length, None);
        log.reason = Some(EndReason::AddressDenied);
        assert_eq!(short(&ended(&test, &log, at(9)))[0], "Succeeded=False/AddressDenied");
    }

    #[test]
    fn an_interrupted_test_says_that_it_may_have_been_sent() {
        let begun = begun(&webhook_test("orders-1", 0, &json!({})), DeliveryName::from_bytes([1; 16]), at(3));
        let test = webhook_test("orders-1", 0, &serde_json::to_value(&begun).unwrap());
        let status = interrupted(&test, at(200));
        assert_eq!(short(&status)[0], "Succeeded=False/Interrupted");
        assert_eq!(status.delivery_id, begun.delivery_id);
        assert_eq!(status.started_at, begun.started_at);
        let mut log = delivery(1, State::Failed, &[]);
        log.reason = Some(EndReason::Interrupted);
        assert_eq!(short(&ended(&test, &log, at(200)))[0], "Succeeded=False/Interrupted");
    }

    #[test]
    fn times_that_are_still_to_come_become_now() {
        let times =
            json!({ "startedAt": "2026-11-24T09:59:00.000Z", "completedAt": "2026-11-25T10:00:00.000Z" });
        let status = redated(&webhook_test("orders-1", 0, &times), at(0));
        assert_eq!(status.started_at.as_deref(), Some("2026-11-24T09:59:00.000Z"));
        assert_eq!(status.completed_at.as_deref(), Some("2026-11-24T10:00:00.000Z"));
    }

    #[test]
    fn the_same_wait_is_the_same_status() {
        let why = Reason { word: "R", message: "m".to_owned(), again: Duration::ZERO };
        let first = waiting(&webhook_test("orders-1", 0, &json!({})), &why, at(1));
        let test = webhook_test("orders-1", 0, &serde_json::to_value(&first).unwrap());
        assert_eq!(waiting(&test, &why, at(60)), first);
    }
}
