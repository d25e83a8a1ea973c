use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::api::webhook::DeliveryState::{Failed, Held, Pending, Retrying, Success};
use crate::controller::fixtures::{at, delivery, route, unready, webhook_ref};
use crate::model::ids::DeliveryName;
use crate::model::trouble::{Failing, Failure, Kind, Trouble};
use crate::store::records::{Disabled, State};

/// The status of a Webhook at 60 seconds, to which nothing has happened before.
fn judged(route: &Route, summary: &Summary, recent: &[Delivery]) -> WebhookStatus {
    let before = WebhookStatus::default();
    status(&Known { route, summary, recent, unfinished: recent, before: &before, now: at(60) })
}

fn summary(change: impl FnOnce(&mut Summary)) -> Summary {
    let mut summary = Summary::new(webhook_ref());
    change(&mut summary);
    summary
}

fn disable(generation: i64, reason: DisableReason) -> impl FnOnce(&mut Summary) {
    move |summary| summary.disabled = Some(Disabled { generation, at: at(30), reason })
}

/// Nine attempts have failed, one each second, and attempts are spaced.
fn nothing_arrives(summary: &mut Summary) {
    let says = Failing {
        kind: Kind::TimesOut,
        generation: 3,
        window: 1,
        is_look: false,
        is_usual: false,
        retry_after: None,
        initial: std::time::Duration::from_secs(10),
        dice: 0,
    };
    let mut trouble = None;
    for number in 0..9_u8 {
        let (name, at) = (DeliveryName::from_bytes([number; 16]), at(number.into()));
        let failure = Failure { name, began: at, ended: at, last_success: None, says: &says };
        trouble = Trouble::after_failure(trouble, &failure);
    }
    summary.trouble = trouble.map(Box::new);
    summary.consecutive_failures = 9;
    let error = Some("no answer within 15s".to_owned());
    summary.last_failure = Some(Box::new(LastFailure { kind: Kind::TimesOut, error }));
}

#[test]
fn an_unhealthy_endpoint_says_why_and_when_it_is_tried_next() {
    let summary = summary(|summary| {
        summary.pending = 12;
        nothing_arrives(summary);
    });
    let status = judged(&route(&json!({})), &summary, &[]);
    let healthy = status.conditions.iter().find(|one| one.type_ == "EndpointHealthy").unwrap();
    assert_eq!((healthy.status.as_str(), healthy.reason.as_str()), ("False", "TimesOut"));
    for said in ["no answer within 15s", "12 deliveries wait", "one attempt at a time, the next at "] {
        assert!(healthy.message.contains(said), "{said} in {}", healthy.message);
    }
}

/// `Type=Status/Reason` of each condition.
fn short(status: &WebhookStatus) -> Vec<String> {
    let conditions = status.conditions.iter();
    conditions.map(|one| format!("{}={}/{}", one.type_, one.status, one.reason)).collect()
}

#[test]
fn a_new_webhook_is_ready_and_its_health_unknown() {
    let status = judged(&route(&json!({})), &summary(|_| ()), &[]);
    assert_eq!(short(&status), ["Ready=True/RouteLive", "EndpointHealthy=Unknown/NoDeliveries"]);
    assert_eq!(status.observed_generation, 3);
    assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(3)));
    assert!(status.conditions.iter().all(|condition| !condition.message.is_empty()));
    assert_eq!(status.gives_up_after.as_deref(), Some("7m10s"));
    assert!(status.public_key.unwrap().starts_with("whpk_"));
}

#[test]
fn the_state_says_whether_deliveries_are_sent() {
    let (live, paused, waiting) = (route(&json!({})), route(&json!({ "active": false })), route(&unready()));
    let denied = route(&json!({ "url": "https://10.0.0.1/" }));
    for (route, summary, state) in [
        (&live, summary(|_| ()), WebhookState::Active),
        (&paused, summary(|_| ()), WebhookState::Paused),
        (&live, summary(disable(3, DisableReason::Gone)), WebhookState::Disabled),
        (&paused, summary(disable(3, DisableReason::Failing)), WebhookState::Disabled),
        (&live, summary(disable(2, DisableReason::Gone)), WebhookState::Active),
        (&waiting, summary(|_| ()), WebhookState::NotReady),
        (&denied, summary(|_| ()), WebhookState::NotReady),
        (&denied, summary(nothing_arrives), WebhookState::NotReady),
        (&live, summary(nothing_arrives), WebhookState::Probing),
    ] {
        assert_eq!(judged(route, &summary, &[]).state, Some(state));
    }
}

#[test]
fn what_strangers_write_is_legible() {
    let mut line = delivery(1, State::Failed, &[(503, 1)]);
    line.event_type = "a\u{202e}b".into();
    line.event_id = format!("{}\n", "i".repeat(63)).into();
    line.attempts[0].error = Some("a\u{1b}[2J".to_owned());
    let status = judged(&route(&json!({})), &summary(|_| ()), &[line]);
    let line = &status.deliveries[0];
    assert_eq!((&*line.event_type, &*line.event_id), (r"a\u{202e}b", &*format!("{}…", "i".repeat(63))));
    assert_eq!(line.error_message.as_deref(), Some(r"RetriesExhausted: a\u{1b}[2J"));
}

#[test]
fn conditions_say_how_it_stands() {
    let (live, paused, waiting) = (route(&json!({})), route(&json!({ "active": false })), route(&unready()));
    let denied = route(&json!({ "url": "https://10.0.0.1/" }));
    let succeeded = |summary: &mut Summary| {
        summary.last_triggered = Some(at(9));
        summary.last_success = Some(at(9));
    };
    let healthy = "EndpointHealthy=Unknown/NoDeliveries";
    for (sentence, route, summary, expected) in [
        ("paused", &paused, summary(|_| ()), vec!["Ready=True/Paused", healthy]),
        (
            "what may come by itself is in progress",
            &waiting,
            summary(|_| ()),
            vec!["Ready=False/SecretNotFound", healthy, "Reconciling=True/SecretNotFound"],
        ),
        (
            "what somebody has to change is stalled",
            &denied,
            summary(|_| ()),
            vec!["Ready=False/AddressDenied", healthy, "Stalled=True/AddressDenied"],
        ),
        (
            "a success",
            &live,
            summary(succeeded),
            vec!["Ready=True/RouteLive", "EndpointHealthy=True/Delivering"],
        ),
        (
            "four failures after a success say nothing yet",
            &live,
            summary(|summary| {
                succeeded(summary);
                summary.consecutive_failures = 4;
            }),
            vec!["Ready=True/RouteLive", "EndpointHealthy=True/Delivering"],
        ),
        (
            "four failures before any success",
            &live,
            summary(|summary| {
                summary.last_triggered = Some(at(9));
                summary.consecutive_failures = 4;
            }),
            vec!["Ready=True/RouteLive", "EndpointHealthy=Unknown/FirstRetries"],
        ),
        (
            "the fifth failure in a row",
            &live,
            summary(|summary| {
                succeeded(summary);
                summary.consecutive_failures = 5;
            }),
            vec!["Ready=True/RouteLive", "EndpointHealthy=False/AttemptsFail"],
        ),
        (
            "a delivery that was given up",
            &live,
            summary(|summary| {
                succeeded(summary);
                summary.failed_since_success = true;
            }),
            vec!["Ready=True/RouteLive", "EndpointHealthy=False/DeliveryFailed"],
        ),
        (
            "410",
            &live,
            summary(disable(3, DisableReason::Gone)),
            vec!["Ready=True/RouteLive", healthy, "Disabled=True/Gone"],
        ),
        (
            "failing for too long",
            &live,
            summary(disable(3, DisableReason::Failing)),
            vec!["Ready=True/RouteLive", healthy, "Disabled=True/Failing"],
        ),
        (
            "disabled in an earlier generation",
            &live,
            summary(disable(2, DisableReason::Gone)),
            vec!["Ready=True/RouteLive", healthy],
        ),
    ] {
        assert_eq!(short(&judged(route, &summary, &[])), expected, "{sentence}");
    }
}

#[test]
fn what_is_disabled_says_the_command_that_enables_it() {
    let status = judged(&route(&json!({})), &summary(disable(3, DisableReason::Gone)), &[]);
    let message = &status.conditions[2].message;
    let command = "kubectl -n team-a annotate hook orders hookwright.dev/requestedAt=";
    assert!(message.contains("410 Gone (2026-11-24T10:00:30Z)") && message.contains(command), "{message}");
}

#[test]
fn transition_times_are_kept_and_an_equal_status_is_the_same() {
    let (route, summary) = (route(&json!({})), summary(|_| ()));
    let first = judged(&route, &summary, &[]);
    let known = Known {
        route: &route,
        summary: &summary,
        recent: &[],
        unfinished: &[],
        before: &first,
        now: at(3600),
    };
    let mut second = status(&known);
    assert_eq!(first, second);
    second.conditions.reverse();
    assert!(is_same(&first, &second), "whatever their order");
    second.conditions[0].message.push('!');
    assert!(!is_same(&first, &second));
}

#[test]
fn the_history_shows_every_state() {
    let recent = [
        delivery(5, State::Pending, &[]),
        delivery(4, State::Retrying, &[(503, 1)]),
        delivery(3, State::Success, &[(503, 1), (200, 11)]),
        delivery(2, State::Failed, &[(503, 1), (503, 11)]),
    ];
    let before_due = |route: &Route, summary: &Summary| {
        let before = WebhookStatus::default();
        let known =
            Known { route, summary, recent: &recent, unfinished: &recent[..2], before: &before, now: at(5) };
        status(&known)
    };
    let live = before_due(&route(&json!({})), &summary(|summary| summary.pending = 2));
    let retrying = &live.deliveries[1];
    assert_eq!(retrying.state, DeliveryState::Retrying);
    assert_eq!(
        (retrying.response_status, retrying.retry_count, retrying.duration_ms),
        (Some(503), 0, Some(12))
    );
    assert_eq!(retrying.next_retry_at.as_deref(), Some("2026-11-24T10:00:10.000Z"));
    assert_eq!(retrying.started_at.as_deref(), Some("2026-11-24T10:00:01.000Z"));
    assert_eq!(retrying.error_message.as_deref(), Some("answered 503"));
    let states: Vec<_> = live.deliveries.iter().map(|line| line.state).collect();
    assert_eq!(states, [Pending, Retrying, Success, Failed]);
    assert_eq!((live.pending_deliveries, live.held_deliveries), (2, 0));
    assert_eq!(live.deliveries[2].retry_count, 1);
    assert_eq!(live.deliveries[2].error_message, None);
    assert_eq!(live.deliveries[3].error_message.as_deref(), Some("RetriesExhausted: answered 503"));

    let paused = before_due(&route(&json!({ "active": false })), &summary(|summary| summary.pending = 2));
    let states: Vec<_> = paused.deliveries.iter().map(|line| line.state).collect();
    assert_eq!(states, [Held, Held, Success, Failed]);
    assert_eq!(paused.held_deliveries, 2);
    assert_eq!(paused.deliveries[0].error_message.as_deref(), Some("Held: Paused"));
    assert_eq!(paused.deliveries[1].next_retry_at, None);
}

#[test]
fn while_an_endpoint_is_probed_what_is_not_due_is_not_held() {
    let unhealthy = summary(|summary| {
        summary.pending = 5;
        nothing_arrives(summary);
    });
    let mut due = delivery(1, State::Pending, &[]);
    due.due = Some(at(-5));
    let later = delivery(2, State::Retrying, &[(503, 1)]);
    let (route, before) = (route(&json!({})), WebhookStatus::default());
    let known = Known {
        route: &route,
        summary: &unhealthy,
        recent: &[],
        unfinished: &[due, later],
        before: &before,
        now: at(5),
    };
    assert_eq!(status(&known).held_deliveries, 4, "all but the one that waits for its time");
}

#[test]
fn times_are_seconds_and_numbers_those_of_the_store() {
    let status = judged(
        &route(&json!({})),
        &summary(|summary| {
            summary.failure_count = 2;
            summary.consecutive_failures = 1;
            summary.last_triggered = Some(UnixMillis::from_millis(at(5).as_millis() + 999));
            summary.last_success = Some(at(4));
            summary.test_sent = true;
        }),
        &[],
    );
    assert_eq!((status.failure_count, status.consecutive_failures), (2, 1));
    assert_eq!(status.last_triggered.as_deref(), Some("2026-11-24T10:00:05Z"));
    assert_eq!(status.last_success.as_deref(), Some("2026-11-24T10:00:04Z"));
    assert!(status.test_payload_sent);
}

#[test]
fn the_annotation_is_echoed_and_stays_when_it_is_taken_away() {
    let mut with = route(&json!({}));
    with.requested_at = Some("x".repeat(200).into());
    let echoed = judged(&with, &summary(|_| ()), &[]).last_handled_reconcile_at.unwrap();
    assert_eq!(echoed.chars().count(), 128);
    let before =
        WebhookStatus { last_handled_reconcile_at: Some("t1".to_owned()), ..WebhookStatus::default() };
    let (route, summary) = (route(&json!({})), summary(|_| ()));
    let known =
        Known { route: &route, summary: &summary, recent: &[], unfinished: &[], before: &before, now: at(0) };
    assert_eq!(status(&known).last_handled_reconcile_at.as_deref(), Some("t1"));
}

#[test]
fn the_worst_strings_fit_into_8_kib_and_into_the_schema() {
    let mut worst = delivery(1, State::Failed, &[(503, 1)]);
    worst.event_id = "\u{1}€\"".repeat(4000).into();
    worst.event_type = "\u{10ffff}".repeat(256).into();
    worst.attempts[0].error = Some("\\\u{7}".repeat(9000));
    let recent = vec![worst; 25];
    let mut unready = route(&unready());
    let message = "\u{2}\u{10ffff}".repeat(5000);
    if let Err(unready) = &mut unready.endpoint {
        unready.message = message;
    }
    unready.requested_at = Some("\u{3}".repeat(5000).into());
    let status = judged(&unready, &summary(disable(3, DisableReason::Gone)), &recent);
    let json = serde_json::to_string(&status).unwrap();
    assert!(json.len() < 8192, "{}", json.len());
    let longest = |text: &str| text.chars().count();
    for line in &status.deliveries {
        assert!(longest(&line.event_id) <= 64 && longest(&line.event_type) <= 64);
        assert!(longest(line.error_message.as_deref().unwrap()) <= 160);
    }
    assert!(status.conditions.iter().all(|condition| !condition.message.is_empty()));
    assert_eq!(status.conditions.len(), 4, "conditions are never left out");
}

#[test]
fn the_oldest_deliveries_are_left_out_first() {
    let mut recent: Vec<_> =
        (0..25).rev().map(|number| delivery(number, State::Failed, &[(503, 1)])).collect();
    for delivery in &mut recent {
        delivery.event_id = "x".repeat(64).into();
        delivery.attempts[0].error = Some("e".repeat(160));
    }
    let status = judged(&route(&json!({})), &summary(|_| ()), &recent);
    let kept = status.deliveries.len();
    assert!((10..25).contains(&kept), "{kept}");
    assert!(status.deliveries[0].id.ends_with("18"), "the newest stays: {}", status.deliveries[0].id);
}

#[test]
fn no_part_of_an_answer_is_in_the_status() {
    let recent = [delivery(1, State::Failed, &[(503, 1)])];
    let json = serde_json::to_string(&judged(&route(&json!({})), &summary(|_| ()), &recent)).unwrap();
    assert!(!json.contains("canary"), "{json}");
}

#[test]
fn kstatus_sees_what_the_documents_say() {
    // The generic rules of kstatus: a stale generation, Reconciling, Stalled, then Ready.
    let kstatus = |status: &WebhookStatus, generation: i64| {
        let conditions: BTreeMap<_, _> =
            status.conditions.iter().map(|one| (one.type_.as_str(), one.status.as_str())).collect();
        let is = |kind: &str| conditions.get(kind) == Some(&"True");
        if status.observed_generation != generation || is("Reconciling") {
            "InProgress"
        } else if is("Stalled") {
            "Failed"
        } else if is("Ready") {
            "Current"
        } else {
            "InProgress"
        }
    };
    assert_eq!(kstatus(&WebhookStatus::default(), 1), "InProgress", "from birth");
    assert_eq!(kstatus(&judged(&route(&json!({})), &summary(|_| ()), &[]), 3), "Current");
    assert_eq!(kstatus(&judged(&route(&json!({})), &summary(|_| ()), &[]), 4), "InProgress");
    assert_eq!(kstatus(&judged(&route(&unready()), &summary(|_| ()), &[]), 3), "InProgress");
    let denied = route(&json!({ "url": "https://10.0.0.1/" }));
    assert_eq!(kstatus(&judged(&denied, &summary(|_| ()), &[]), 3), "Failed");
    let gone = summary(disable(3, DisableReason::Gone));
    assert_eq!(kstatus(&judged(&route(&json!({})), &gone, &[]), 3), "Current");
}
