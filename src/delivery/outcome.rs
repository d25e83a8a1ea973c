//! What follows from an attempt. Pure.

use std::time::Duration;

use super::schedule::Ended;
use crate::model::ids::{DeliveryName, WebhookUid};
use crate::model::retry::Policy;
use crate::model::time::UnixMillis;
use crate::model::verdict::{Fault, Verdict};
use crate::routes::hold::PROBE_AFTER;
use crate::store::records::{DisableReason, Disabled};
use crate::store::{Attempt, EndReason, Next, Outcome, Summary};

/// While an endpoint is probed, it is tried at least this often.
pub(super) const PROBE_WAIT: Duration = Duration::from_mins(1);

/// An attempt with what is needed to tell what follows.
#[derive(Clone, Debug)]
pub(super) struct Made<'a> {
    pub(super) name: DeliveryName,
    pub(super) webhook: WebhookUid,
    /// Generation of the spec that it was made by.
    pub(super) generation: i64,
    pub(super) retry: &'a Policy,
    /// Attempts of this delivery, this one counted.
    pub(super) attempts: u32,
    /// Somebody asked for it: it is the last, whatever the retry budget.
    pub(super) is_redelivery: bool,
    /// Made as the probe of an unhealthy endpoint.
    pub(super) is_probe: bool,
    pub(super) attempt: Attempt,
    pub(super) verdict: Verdict,
    /// The Webhook's numbers before this attempt.
    pub(super) summary: Option<&'a Summary>,
    /// A Webhook that fails without a break for this long is disabled.
    pub(super) disable_after: Duration,
    pub(super) now: UnixMillis,
}

/// What is recorded, and what the schedule makes of it.
pub(super) fn conclude(made: Made<'_>) -> (Outcome, Ended) {
    let (next, ended) = match made.verdict {
        Verdict::Delivered => (Next::Success, Ended::Success),
        Verdict::Retry { fault, after } => made.retry_or_fail(fault, after),
        Verdict::Gone => made.fail(EndReason::Gone, None),
    };
    let disable = made.disable();
    let Made { name, webhook, attempt, now, .. } = made;
    (Outcome { name, webhook, attempt: Some(attempt), next, disable, at: now }, ended)
}

impl Made<'_> {
    fn retry_or_fail(&self, fault: Fault, after: Option<Duration>) -> (Next, Ended) {
        let dice = dice(self.name, self.attempts);
        let wait = self.retry.next(self.attempts, after, dice).filter(|_| !self.is_redelivery);
        let Some(wait) = wait else {
            let reason = match fault {
                Fault::Denied => EndReason::AddressDenied,
                _ if self.is_redelivery => EndReason::RedeliveryFailed,
                _ => EndReason::RetriesExhausted,
            };
            return self.fail(reason, after);
        };
        let pace = self.now + self.pace(after);
        let at = if self.is_probe { pace } else { self.now + wait };
        (Next::Retry(at), Ended::Failure { pace, retry: Some(at) })
    }

    fn fail(&self, reason: EndReason, after: Option<Duration>) -> (Next, Ended) {
        let pace = self.now + self.pace(after);
        (Next::Failed(reason), Ended::Failure { pace, retry: None })
    }

    /// Before the next probe: the backoff of this delivery, at most a minute, or what the receiver asked for.
    fn pace(&self, after: Option<Duration>) -> Duration {
        let asked = after.unwrap_or_default().min(self.retry.max);
        self.retry.delay(self.attempts).min(PROBE_WAIT).max(asked)
    }

    fn disable(&self) -> Option<Disabled> {
        let reason = match self.verdict {
            Verdict::Gone => DisableReason::Gone,
            Verdict::Retry { .. } if self.has_failed_for_too_long() => DisableReason::Failing,
            Verdict::Retry { .. } | Verdict::Delivered => return None,
        };
        Some(Disabled { generation: self.generation, at: self.now, reason })
    }

    /// Several failures are needed beside the time: a Webhook that got one event, and after a long pause another,
    /// has not failed for all that time.
    fn has_failed_for_too_long(&self) -> bool {
        self.summary.is_some_and(|summary| {
            let since = summary.failing_since.map(|since| self.now.since(since));
            since.is_some_and(|since| since >= self.disable_after)
                && summary.consecutive_failures + 1 >= PROBE_AFTER
        })
    }
}

/// For jitter: differs between deliveries and attempts, and needs no source of chance.
fn dice(name: DeliveryName, attempts: u32) -> u8 {
    let [.., last] = *name.as_bytes();
    last ^ attempts.to_le_bytes()[0].wrapping_mul(157)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::testing::{START, endpoint, webhook};

    const MINUTE: u64 = 60;
    const DAY: u64 = 24 * 3600;

    fn at(seconds: u64) -> UnixMillis {
        START + Duration::from_secs(seconds)
    }

    const DENIED: Verdict = Verdict::Retry { fault: Fault::Denied, after: None };

    fn retry_after(seconds: Option<u64>) -> Verdict {
        Verdict::Retry { fault: Fault::ServerError, after: seconds.map(Duration::from_secs) }
    }

    /// The second of three retries is to come; no jitter.
    fn made(retry: &Policy) -> Made<'_> {
        let attempt = Attempt {
            at: START,
            duration: Duration::from_millis(3),
            status: Some(503),
            body: None,
            content_type: None,
            body_length: 0,
            error: None,
            asked_by: None,
        };
        Made {
            name: DeliveryName::from_bytes([(2_u8).wrapping_mul(157); 16]),
            webhook: webhook("orders").uid,
            generation: 4,
            retry,
            attempts: 2,
            is_redelivery: false,
            is_probe: false,
            attempt,
            verdict: retry_after(None),
            summary: None,
            disable_after: Duration::from_secs(5 * DAY),
            now: START,
        }
    }

    #[test]
    fn each_verdict_has_one_consequence() {
        let retry = endpoint("https://x.localhost/").retry;
        let after = |seconds| retry_after(Some(seconds));
        for (verdict, attempts, next, pace) in [
            (Verdict::Delivered, 1, Next::Success, None),
            (retry_after(None), 2, Next::Retry(at(MINUTE)), Some(MINUTE)),
            (after(5), 2, Next::Retry(at(MINUTE)), Some(MINUTE)),
            (after(600), 2, Next::Retry(at(600)), Some(600)),
            (after(100 * DAY), 2, Next::Retry(at(DAY)), Some(DAY)),
            (retry_after(None), 4, Next::Failed(EndReason::RetriesExhausted), Some(MINUTE)),
            (after(600), 4, Next::Failed(EndReason::RetriesExhausted), Some(600)),
            (DENIED, 2, Next::Retry(at(MINUTE)), Some(MINUTE)),
            (DENIED, 4, Next::Failed(EndReason::AddressDenied), Some(MINUTE)),
            (Verdict::Gone, 1, Next::Failed(EndReason::Gone), Some(10)),
        ] {
            let (outcome, ended) = conclude(Made { attempts, verdict, ..made(&retry) });
            assert_eq!(outcome.next, next, "{verdict:?} {attempts}");
            let due = if let Next::Retry(at) = next { Some(at) } else { None };
            let expected = pace.map_or(Ended::Success, |pace| Ended::Failure { pace: at(pace), retry: due });
            assert_eq!(ended, expected, "{verdict:?} {attempts}");
            assert!(outcome.attempt.is_some());
        }
    }

    #[test]
    fn what_somebody_asked_for_is_attempted_once() {
        let retry = endpoint("https://x.localhost/").retry;
        for (verdict, is_probe, next) in [
            (Verdict::Delivered, false, Next::Success),
            (retry_after(None), false, Next::Failed(EndReason::RedeliveryFailed)),
            (retry_after(Some(5)), true, Next::Failed(EndReason::RedeliveryFailed)),
            (DENIED, false, Next::Failed(EndReason::AddressDenied)),
            (Verdict::Gone, false, Next::Failed(EndReason::Gone)),
        ] {
            let made = Made { attempts: 1, is_redelivery: true, is_probe, verdict, ..made(&retry) };
            assert_eq!(conclude(made).0.next, next, "{verdict:?} {is_probe}");
        }
    }

    #[test]
    fn a_probe_is_tried_again_within_a_minute() {
        let retry = Policy { max_retries: 8, ..endpoint("https://x.localhost/").retry };
        for (attempts, after, seconds) in [(1, None, 10), (2, None, 60), (5, None, 60), (5, Some(90), 90)] {
            let verdict = retry_after(after);
            let (outcome, _) = conclude(Made { attempts, verdict, is_probe: true, ..made(&retry) });
            assert_eq!(outcome.next, Next::Retry(at(seconds)), "{attempts}");
        }
    }

    #[test]
    fn gone_and_a_long_failure_disable_and_nothing_else_does() {
        let retry = endpoint("https://x.localhost/").retry;
        let failing = |days: u64, failures| Summary {
            failing_since: Some(START - Duration::from_secs(days * DAY)),
            consecutive_failures: failures,
            ..Summary::new(webhook("orders"))
        };
        for (verdict, summary, disabled) in [
            (Verdict::Gone, None, Some(DisableReason::Gone)),
            (retry_after(None), None, None),
            (retry_after(None), Some(failing(4, 100)), None),
            (retry_after(None), Some(failing(5, 3)), None),
            (retry_after(None), Some(failing(5, 4)), Some(DisableReason::Failing)),
            (Verdict::Delivered, Some(failing(6, 100)), None),
            (DENIED, Some(failing(6, 100)), Some(DisableReason::Failing)),
        ] {
            let (outcome, _) = conclude(Made { verdict, summary: summary.as_ref(), ..made(&retry) });
            let expected = disabled.map(|reason| Disabled { generation: 4, at: START, reason });
            assert_eq!(outcome.disable, expected, "{verdict:?} {summary:?}");
        }
    }

    #[test]
    fn jitter_differs_between_deliveries_and_attempts() {
        let rolls: std::collections::HashSet<u8> = (0..8)
            .flat_map(|name| (1..5).map(move |attempts| dice(DeliveryName::from_bytes([name; 16]), attempts)))
            .collect();
        assert!(rolls.len() > 20, "{rolls:?}");
    }
}
