//! What is next for a WebhookTest. Pure.

use std::sync::Arc;
use std::time::Duration;

use kube::Resource as _;

use crate::api::{WebhookTest, WebhookTestStatus};
use crate::controller::once::{self, Afterwards, LOOK, PATIENCE, Reason, afterwards, age, is_ahead, time};
use crate::model::cloudevents;
use crate::model::ids::DeliveryName;
use crate::model::time::UnixMillis;
use crate::routes::compile::READING;
use crate::routes::{Route, Unready};

/// How often a test under way is looked at: only to find one whose last status could not be written.
const CHECK: Duration = Duration::from_secs(5);
/// An attempt that nobody knows of any more has ended after this: longer than the longest timeout.
const LOST: Duration = Duration::from_secs(90);

/// The Webhook of a test.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// It does not exist.
    Missing,
    /// It was just seen, and is not in force yet.
    Coming,
    /// It is there.
    Route(Arc<Route>),
}

/// What is known of a test.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) test: &'a WebhookTest,
    /// For how long this process knows it.
    pub(super) known_for: Duration,
    /// Whether this process is making its attempt.
    pub(super) is_running: bool,
    pub(super) target: Target,
    /// Whether the store knows the delivery that the status names.
    pub(super) is_stored: bool,
    /// Largest data of an event, in bytes.
    pub(super) largest: usize,
    pub(super) now: UnixMillis,
}

/// What is next.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing, until it changes.
    Rest,
    /// Look again after this time.
    Later(Duration),
    /// Its time after the end is over: delete it.
    Delete,
    /// Its status has a time that is still to come: write it anew.
    Redate,
    /// It waits for its Webhook: say so, and look again.
    Wait(Reason),
    /// It has failed without an attempt.
    Fail(Reason),
    /// Its attempt was begun by a process that has ended: the store says what came of it.
    Resume(DeliveryName),
    /// Its attempt was begun, and nobody knows what came of it.
    Lost,
    /// All is there: make the attempt, when it is its turn.
    Ready(Arc<Route>),
}

/// What is next for this test.
pub(super) fn step(view: &View<'_>) -> Step {
    let status = status_of(view.test);
    if is_finished(&status) {
        return after_the_end(view, &status);
    }
    if view.is_running {
        return Step::Later(CHECK);
    }
    if let Some(delivery) = &status.delivery_id {
        return begun(view, &status, delivery);
    }
    not_begun(view)
}

fn after_the_end(view: &View<'_>, status: &WebhookTestStatus) -> Step {
    let ttl = view.test.spec.ttl_seconds_after_finished;
    match afterwards(ttl, status.completed_at.as_deref(), view.now) {
        Afterwards::Rest => Step::Rest,
        Afterwards::Later(wait) => Step::Later(wait),
        Afterwards::Delete => Step::Delete,
        Afterwards::Redate => Step::Redate,
    }
}

fn begun(view: &View<'_>, status: &WebhookTestStatus, delivery: &str) -> Step {
    let Ok(delivery) = delivery.parse() else { return Step::Lost };
    if view.is_stored {
        return Step::Resume(delivery);
    }
    if is_ahead(status.started_at.as_deref(), view.now) {
        return Step::Redate;
    }
    // Another process may be at it, or this one has ended between its claim and the store.
    let lost_at = time(status.started_at.as_deref()).map(|started| started + LOST);
    match lost_at.filter(|lost_at| *lost_at > view.now) {
        Some(lost_at) => Step::Later(lost_at.since(view.now).min(LOST)),
        None => Step::Lost,
    }
}

/// Why nobody could publish such an event, and so no test sends it.
fn unpublishable(view: &View<'_>) -> Option<(&'static str, String)> {
    let (spec, largest) = (&view.test.spec, view.largest);
    if let Some(violation) = cloudevents::type_violation(&spec.event_type) {
        return Some(("InvalidEventType", format!("spec.eventType {violation}")));
    }
    let length = spec.payload.as_ref().map_or(0, |payload| payload.to_string().len());
    (length > largest).then(|| {
        let message =
            format!("spec.payload must be at most {largest} bytes of JSON (--max-body-bytes), is {length}");
        ("PayloadTooLarge", message)
    })
}

fn not_begun(view: &View<'_>) -> Step {
    if let Some((word, message)) = unpublishable(view) {
        return Step::Fail(Reason {
            word,
            message: format!("{message}; create another WebhookTest"),
            again: LOOK,
        });
    }
    let name = &view.test.spec.webhook_ref.name;
    let wait = |reason, message: String| {
        let given_up = age(view.test, view.known_for, view.now) >= PATIENCE;
        if given_up {
            let message = format!("{message} (waited 5 minutes; create another WebhookTest)");
            return Step::Fail(Reason { word: reason, message, again: LOOK });
        }
        Step::Wait(Reason { word: reason, message, again: LOOK })
    };
    match &view.target {
        Target::Missing => {
            let namespace = view.test.meta().namespace.as_deref().unwrap_or_default();
            wait("WebhookNotFound", format!("Webhook {name:?} does not exist in namespace {namespace}"))
        }
        Target::Coming => Step::Later(LOOK),
        Target::Route(route) => match route.unready() {
            None => Step::Ready(Arc::clone(route)),
            Some(Unready { reason: READING, .. }) => Step::Later(LOOK),
            Some(Unready { reason, message, stalled: true }) => Step::Fail(Reason {
                word: reason,
                message: format!("Webhook {name:?} is not ready: {message}"),
                again: LOOK,
            }),
            Some(Unready { reason, message, stalled: false }) => {
                wait(reason, format!("Webhook {name:?} is not ready: {message}"))
            }
        },
    }
}

/// The status, or that from birth.
pub(super) fn status_of(test: &WebhookTest) -> WebhookTestStatus {
    test.status.clone().unwrap_or_default()
}

/// Whether there is a result, which is for good.
pub(super) fn is_finished(status: &WebhookTestStatus) -> bool {
    once::is_finished(&status.conditions)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::fixtures::{at, route, unready, webhook_test};

    fn condition(status: &str) -> Value {
        json!([{ "type": "Succeeded", "status": status, "reason": "R", "message": "m",
            "lastTransitionTime": "2026-11-24T10:00:00Z" }])
    }

    fn next(status: &Value, target: Target, now: i64, change: impl FnOnce(&mut View<'_>)) -> String {
        let test = webhook_test("orders-1", 0, status);
        let known_for = Duration::ZERO;
        let mut view = View {
            test: &test,
            known_for,
            is_running: false,
            target,
            is_stored: false,
            largest: 100,
            now: at(now),
        };
        change(&mut view);
        match step(&view) {
            Step::Wait(reason) => format!("Wait({})", reason.word),
            Step::Fail(reason) => format!("Fail({})", reason.word),
            Step::Later(wait) => format!("Later({}s)", wait.as_secs()),
            Step::Ready(_) => "Ready".to_owned(),
            Step::Resume(_) => "Resume".to_owned(),
            step @ (Step::Rest | Step::Delete | Step::Redate | Step::Lost) => format!("{step:?}"),
        }
    }

    fn is(changes: &Value) -> Target {
        Target::Route(Arc::new(route(changes)))
    }

    #[test]
    fn a_test_waits_for_its_webhook_for_five_minutes() {
        let born = json!({ "observedGeneration": -1 });
        let same = |_: &mut View<'_>| ();
        assert_eq!(next(&born, Target::Missing, 299, same), "Wait(WebhookNotFound)");
        assert_eq!(next(&born, Target::Missing, 300, same), "Fail(WebhookNotFound)");
        assert_eq!(
            next(&born, Target::Missing, -86_400, |view| view.known_for = PATIENCE),
            "Fail(WebhookNotFound)",
            "kube-apiserver's clock is ahead"
        );
        assert_eq!(next(&born, Target::Coming, 300, same), "Later(1s)");
        assert_eq!(next(&born, is(&unready()), 299, same), "Wait(SecretNotFound)");
        assert_eq!(next(&born, is(&unready()), 300, same), "Fail(SecretNotFound)");
        assert_eq!(next(&born, is(&json!({ "url": "https://10.0.0.1/" })), 0, same), "Fail(AddressDenied)");
    }

    #[test]
    fn a_test_of_a_webhook_that_is_there_is_ready_also_when_that_is_paused() {
        let born = json!({ "observedGeneration": -1 });
        assert_eq!(next(&born, is(&json!({})), 1000, |_| ()), "Ready");
        assert_eq!(next(&born, is(&json!({ "active": false })), 0, |_| ()), "Ready");
        assert_eq!(next(&json!({ "conditions": condition("Unknown") }), is(&json!({})), 0, |_| ()), "Ready");
    }

    #[test]
    fn a_test_sends_nothing_that_nobody_could_publish() {
        let of = |event_type: &str, payload: Value| {
            let mut test = (*webhook_test("orders-1", 0, &json!({ "observedGeneration": -1 }))).clone();
            test.spec.event_type = event_type.to_owned();
            test.spec.payload = Some(payload);
            let target = is(&json!({}));
            let (known_for, now) = (Duration::ZERO, at(0));
            let view = View {
                test: &test,
                known_for,
                is_running: false,
                target,
                is_stored: false,
                largest: 100,
                now,
            };
            match step(&view) {
                Step::Ready(_) => "Ready".to_owned(),
                Step::Fail(reason) => format!("{}: {}", reason.word, reason.message),
                other => format!("{other:?}"),
            }
        };
        let text = |length: usize| json!("x".repeat(length - 2));
        assert_eq!(of("order.created", text(100)), "Ready");
        assert_eq!(
            of("order.created", text(101)),
            "PayloadTooLarge: spec.payload must be at most 100 bytes of JSON (--max-body-bytes), is 101; create \
             another WebhookTest"
        );
        for event_type in ["a\u{85}", "a\u{1}", "a\u{7f}b", "\u{FFFE}", "", &"x".repeat(2049)] {
            let said = of(event_type, json!(1));
            assert!(said.starts_with("InvalidEventType: spec.eventType must "), "{event_type:?}: {said}");
        }
    }

    #[test]
    fn a_test_that_was_begun_is_never_begun_again() {
        let delivery = "0190163d-8694-739b-aea5-966c26f8ad91";
        let begun = json!({ "deliveryId": delivery, "startedAt": "2026-11-24T10:00:00.000Z",
            "conditions": condition("Unknown") });
        assert_eq!(next(&begun, is(&json!({})), 3, |view| view.is_running = true), "Later(5s)");
        assert_eq!(next(&begun, is(&json!({})), 3, |view| view.is_stored = true), "Resume");
        assert_eq!(next(&begun, is(&json!({})), 30, |_| ()), "Later(60s)");
        assert_eq!(next(&begun, is(&json!({})), 90, |_| ()), "Lost");
        assert_eq!(next(&begun, Target::Missing, 90, |_| ()), "Lost");
        assert_eq!(next(&begun, is(&json!({})), -1, |_| ()), "Later(90s)", "a clock may be behind a little");
        assert_eq!(next(&begun, is(&json!({})), -86_400, |_| ()), "Redate");
        let torn = json!({ "deliveryId": delivery, "conditions": condition("Unknown") });
        assert_eq!(next(&torn, is(&json!({})), 0, |_| ()), "Lost");
        let odd = json!({ "deliveryId": "mine" });
        assert_eq!(next(&odd, is(&json!({})), 0, |_| ()), "Lost");
    }

    #[test]
    fn a_finished_test_rests_until_its_time_is_over() {
        for result in ["True", "False"] {
            let done = json!({ "conditions": condition(result), "completedAt": "2026-11-24T10:00:00.000Z" });
            assert_eq!(next(&done, Target::Missing, 30, |_| ()), "Later(30s)");
            assert_eq!(next(&done, Target::Missing, 60, |_| ()), "Delete");
            assert_eq!(next(&done, Target::Missing, -86_400, |_| ()), "Redate");
            assert_eq!(next(&done, Target::Missing, -1, |_| ()), "Later(60s)");
        }
        let test = webhook_test("orders-1", 0, &json!({ "conditions": condition("True") }));
        let mut test = (*test).clone();
        test.spec.ttl_seconds_after_finished = None;
        let view = View {
            known_for: Duration::ZERO,
            test: &test,
            is_running: false,
            target: Target::Missing,
            is_stored: false,
            largest: 100,
            now: at(9999),
        };
        assert!(matches!(step(&view), Step::Rest));
    }
}
