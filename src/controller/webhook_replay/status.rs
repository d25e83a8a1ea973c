//! The status of a WebhookReplay. Pure.

use std::fmt::Write as _;

use kube::Resource as _;

use super::step::status_of;
use crate::api::{WebhookReplay, WebhookReplayStatus};
use crate::controller::conditions::Maker;
use crate::controller::once::{self, Reason, closed, open};
use crate::model::time::UnixMillis;
use crate::routes::hold::Hold;
use crate::store::Replay;

/// Why a Webhook of a replay does not take its deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// It holds them.
    Held(Hold),
    /// It is gone.
    Gone,
}

/// It waits, and for what.
pub(super) fn waiting(replay: &WebhookReplay, why: &Reason, now: UnixMillis) -> WebhookReplayStatus {
    with(replay, now, |status, maker| {
        status.conditions = open(maker, why.word, &why.message);
    })
}

/// How far it is; with what its Webhooks wait for, when all of those that have something left do.
pub(super) fn running(
    replay: &WebhookReplay,
    record: &Replay,
    waits: Option<&(String, Waits)>,
    now: UnixMillis,
) -> WebhookReplayStatus {
    with(replay, now, |status, maker| {
        count(status, record);
        status.conditions = match waits {
            Some((webhook, waits)) => open(maker, "Held", &held(webhook, *waits)),
            None => open(maker, "Sending", "deliveries are being sent again"),
        };
    })
}

fn held(webhook: &str, waits: Waits) -> String {
    let why = match waits {
        Waits::Held(Hold::Paused) => "is paused (active: false)",
        Waits::Held(Hold::Disabled(_)) => "is disabled",
        Waits::Held(Hold::NotReady) => "is not ready",
        Waits::Held(Hold::EndpointUnhealthy) => {
            "has an unhealthy endpoint, which one delivery at a time probes"
        }
        Waits::Gone => "is deleted; what waits for it goes with its data",
    };
    format!("waits: Webhook {webhook:?} {why}")
}

/// It failed before it began, or nobody knows how far it is.
pub(super) fn failed(
    replay: &WebhookReplay,
    reason: &str,
    message: &str,
    now: UnixMillis,
) -> WebhookReplayStatus {
    with(replay, now, |status, maker| {
        status.completed_at = Some(now.to_string());
        status.conditions = closed(maker, false, reason, message);
    })
}

/// What a dry run has counted.
pub(super) fn counted(replay: &WebhookReplay, selected: u64, now: UnixMillis) -> WebhookReplayStatus {
    with(replay, now, |status, maker| {
        status.selected = Some(number(selected));
        status.started_at = Some(now.to_string());
        status.completed_at = Some(now.to_string());
        let message = format!("{} would be sent again; nothing was sent", deliveries(selected));
        status.conditions = closed(maker, true, "DryRun", &message);
    })
}

/// What came of it, or of an earlier one of the same name and spec.
pub(super) fn ended(
    replay: &WebhookReplay,
    record: &Replay,
    is_former: bool,
    now: UnixMillis,
) -> WebhookReplayStatus {
    with(replay, now, |status, maker| {
        count(status, record);
        let ended = record.finished_at.unwrap_or(now);
        status.completed_at = Some(ended.to_string());
        let (succeeded, reason, message) = outcome(record);
        status.conditions = if is_former {
            let message = format!(
                "a WebhookReplay of this name and spec was completed at {ended}, so nothing is sent again (another \
                 name would): {message}"
            );
            closed(maker, succeeded, "CompletedBefore", &message)
        } else {
            closed(maker, succeeded, reason, &message)
        };
    })
}

/// As it is, with no time that is still to come.
pub(super) fn redated(replay: &WebhookReplay, now: UnixMillis) -> WebhookReplayStatus {
    let mut status = status_of(replay);
    once::redated(&mut status.started_at, now);
    once::redated(&mut status.completed_at, now);
    status
}

/// Whether it succeeded, and how it is said.
fn outcome(record: &Replay) -> (bool, &'static str, String) {
    let (counts, skipped) = (record.counts(), record.skipped());
    if counts.selected == 0 {
        return (true, "NothingSelected", "no delivery is selected: nothing was sent".to_owned());
    }
    let mut message = format!("{} of {} arrived", counts.succeeded, deliveries(counts.selected));
    if counts.failed > 0 {
        let _ = write!(message, ", {} failed again", counts.failed);
    }
    if skipped > 0 {
        let _ = write!(
            message,
            ", {skipped} could not be sent again (gone, erased, or sent again by somebody else)"
        );
    }
    let reason = match (counts.failed, counts.succeeded) {
        (0, 0) => "NothingSent",
        (0, _) => "Completed",
        _ => "DeliveriesFailed",
    };
    (reason == "Completed", reason, message)
}

fn deliveries(count: u64) -> String {
    if count == 1 { "1 delivery".to_owned() } else { format!("{count} deliveries") }
}

fn count(status: &mut WebhookReplayStatus, record: &Replay) {
    let counts = record.counts();
    status.started_at = Some(record.selection.as_of.to_string());
    status.selected = Some(number(counts.selected));
    status.sent = Some(number(counts.sent));
    status.succeeded = Some(number(counts.succeeded));
    status.failed = Some(number(counts.failed));
    status.skipped = Some(number(record.skipped()));
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn with(
    replay: &WebhookReplay,
    now: UnixMillis,
    change: impl FnOnce(&mut WebhookReplayStatus, &Maker<'_>),
) -> WebhookReplayStatus {
    let mut status = status_of(replay);
    let before = std::mem::take(&mut status.conditions);
    let generation = replay.meta().generation.unwrap_or(0);
    status.observed_generation = generation;
    change(&mut status, &Maker { before: &before, generation, now });
    status
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controller::fixtures::{at, replay_record, uid, webhook_replay};
    use crate::store::replays::{Counts, Part};

    fn record(selected: u64, succeeded: u64, failed: u64, walked: bool) -> Replay {
        let sent = succeeded + failed;
        let counts = Counts { selected, put: sent, sent, succeeded, failed };
        replay_record([(uid(), Part { cursor: None, walked, counts })])
    }

    fn short(status: &WebhookReplayStatus) -> Vec<String> {
        let conditions = status.conditions.iter();
        conditions.map(|one| format!("{}={}/{}", one.type_, one.status, one.reason)).collect()
    }

    #[test]
    fn a_replay_under_way_says_how_far_it_is() {
        let replay = webhook_replay("night", &json!({}), &json!({ "observedGeneration": -1 }));
        let status = running(&replay, &record(10, 3, 1, false), None, at(9));
        assert_eq!(
            short(&status),
            ["Succeeded=Unknown/Sending", "Ready=Unknown/Sending", "Reconciling=True/Sending"]
        );
        let counts = [status.selected, status.sent, status.succeeded, status.failed, status.skipped];
        assert_eq!(counts, [10, 4, 3, 1, 0].map(Some));
        assert_eq!(status.started_at.as_deref(), Some("2026-11-24T10:00:00.000Z"));
        assert_eq!((status.completed_at, status.observed_generation), (None, 1));
    }

    #[test]
    fn a_replay_that_is_held_says_by_whom() {
        let replay = webhook_replay("night", &json!({}), &json!({}));
        for (waits, words) in [
            (Waits::Held(Hold::Paused), "is paused"),
            (Waits::Held(Hold::NotReady), "is not ready"),
            (Waits::Held(Hold::EndpointUnhealthy), "unhealthy endpoint"),
            (Waits::Gone, "is deleted"),
        ] {
            let status =
                running(&replay, &record(10, 0, 0, false), Some(&("orders".to_owned(), waits)), at(9));
            assert_eq!(short(&status)[0], "Succeeded=Unknown/Held");
            let message = &status.conditions[0].message;
            assert!(message.contains("\"orders\"") && message.contains(words), "{message}");
        }
    }

    #[test]
    fn what_came_of_it_is_said_with_numbers() {
        let replay = webhook_replay("night", &json!({}), &json!({ "observedGeneration": -1 }));
        for (record, condition, message) in [
            (
                record(0, 0, 0, true),
                "Succeeded=True/NothingSelected",
                "no delivery is selected: nothing was sent",
            ),
            (record(1, 1, 0, true), "Succeeded=True/Completed", "1 of 1 delivery arrived"),
            (
                record(3, 0, 0, true),
                "Succeeded=False/NothingSent",
                "0 of 3 deliveries arrived, 3 could not be sent again (gone, erased, or sent again by somebody else)",
            ),
            (
                record(3, 2, 0, true),
                "Succeeded=True/Completed",
                "2 of 3 deliveries arrived, 1 could not be sent again (gone, erased, or sent again by somebody else)",
            ),
            (
                record(10, 7, 2, true),
                "Succeeded=False/DeliveriesFailed",
                "7 of 10 deliveries arrived, 2 failed again, 1 could not be sent again (gone, erased, or sent again \
                 by somebody else)",
            ),
        ] {
            let record = Replay { finished_at: Some(at(20)), ..record };
            let status = ended(&replay, &record, false, at(21));
            assert_eq!(short(&status)[0], condition);
            assert_eq!(status.conditions[0].message, message);
            assert_eq!(status.completed_at.as_deref(), Some("2026-11-24T10:00:20.000Z"));
            assert_eq!(short(&status).len(), if condition.contains("True") { 2 } else { 3 });
        }
    }

    #[test]
    fn one_that_was_completed_before_says_so_with_the_former_result() {
        let replay = webhook_replay("night", &json!({}), &json!({ "observedGeneration": -1 }));
        let record = Replay { finished_at: Some(at(20)), ..record(10, 10, 0, true) };
        let status = ended(&replay, &record, true, at(99));
        assert_eq!(short(&status), ["Succeeded=True/CompletedBefore", "Ready=True/CompletedBefore"]);
        assert!(status.conditions[0].message.contains("2026-11-24T10:00:20.000Z"));
        assert!(status.conditions[0].message.ends_with("10 of 10 deliveries arrived"));
        assert_eq!((status.selected, status.sent), (Some(10), Some(10)));
    }

    #[test]
    fn a_dry_run_only_counts() {
        let replay =
            webhook_replay("night", &json!({ "dryRun": true }), &json!({ "observedGeneration": -1 }));
        let status = counted(&replay, 12, at(1));
        assert_eq!(short(&status), ["Succeeded=True/DryRun", "Ready=True/DryRun"]);
        assert_eq!(status.conditions[0].message, "12 deliveries would be sent again; nothing was sent");
        assert_eq!((status.selected, status.sent), (Some(12), None));
    }
}
