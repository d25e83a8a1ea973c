//! What follows from an attempt. Pure.

use std::time::Duration;

use super::schedule::Ended;
use crate::model::ids::{DeliveryName, WebhookUid};
use crate::model::retry::Policy;
use crate::model::time::UnixMillis;
use crate::model::trouble::{Failing, Kind};
use crate::model::verdict::{Fault, Verdict};
use crate::routes::hold::UNHEALTHY_AFTER;
use crate::store::records::{DisableReason, Disabled};
use crate::store::{Attempt, EndReason, Next, Outcome, Summary};

/// An attempt with what is needed to tell what follows.
#[derive(Clone, Debug)]
pub(super) struct Made<'a> {
    pub(super) name: DeliveryName,
    pub(super) webhook: WebhookUid,
    /// Generation of the spec that it was made by.
    pub(super) generation: i64,
    pub(super) retry: &'a Policy,
    /// Attempts of this delivery, this one counted, probes not.
    pub(super) attempts: u32,
    /// Set when it was made before its time: when that is.
    pub(super) own_time: Option<UnixMillis>,
    /// Somebody asked for it: it is the last, whatever the retry budget.
    pub(super) is_redelivery: bool,
    /// Made while attempts were spaced, at the time of one.
    pub(super) is_look: bool,
    /// It was a first attempt, where those are bound to fail.
    pub(super) is_usual: bool,
    /// How many attempts might be under way when it began.
    pub(super) window: usize,
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
    let next = match made.verdict {
        Verdict::Delivered => Next::Success,
        Verdict::Retry { fault, after } => made.retry_or_fail(fault, after),
        Verdict::Gone => Next::Failed(EndReason::Gone),
    };
    let failing = made.failing();
    let is_of_endpoint = failing.as_ref().is_some_and(|failing| failing.kind.is_of_endpoint());
    let ended = match next {
        Next::Success => Ended::Success,
        Next::Retry(at) => Ended::Failure { is_of_endpoint, retry: Some(at) },
        Next::Failed(_) => Ended::Failure { is_of_endpoint, retry: None },
    };
    let disable = made.disable();
    let Made { name, webhook, retry, mut attempt, verdict, own_time, now, .. } = made;
    attempt.probe = own_time.is_some();
    if let Verdict::Retry { after, .. } = verdict {
        attempt.retry_after = after.map(|after| after.min(retry.max));
    }
    (Outcome { name, webhook, attempt: Some(attempt), next, disable, failing, at: now }, ended)
}

impl Made<'_> {
    fn retry_or_fail(&self, fault: Fault, after: Option<Duration>) -> Next {
        if let Some(own_time) = self.own_time {
            // Nothing is taken from its retries, and its time stays, or it might be put off for ever.
            return Next::Retry(own_time);
        }
        let wait = self.retry.next(self.attempts, after, self.dice()).filter(|_| !self.is_redelivery);
        match wait {
            Some(wait) => Next::Retry(self.now + wait),
            None if fault == Fault::Denied => Next::Failed(EndReason::AddressDenied),
            None if self.is_redelivery => Next::Failed(EndReason::RedeliveryFailed),
            None => Next::Failed(EndReason::RetriesExhausted),
        }
    }

    /// None: it arrived, or Hookwright itself failed.
    fn failing(&self) -> Option<Failing> {
        let (kind, after) = match self.verdict {
            Verdict::Delivered | Verdict::Retry { fault: Fault::Internal, .. } => return None,
            Verdict::Retry { fault, after } => (Kind::of(fault), after),
            Verdict::Gone => (Kind::Rejects, None),
        };
        let is_asked = matches!(self.attempt.status, Some(429 | 503));
        Some(Failing {
            kind,
            generation: self.generation,
            window: u32::try_from(self.window).unwrap_or(u32::MAX),
            is_look: self.is_look,
            is_usual: self.is_usual,
            retry_after: after.filter(|_| is_asked),
            initial: self.retry.initial,
            dice: self.dice(),
        })
    }

    fn dice(&self) -> u8 {
        dice(self.name, self.attempts, self.own_time.map(|_| self.now))
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
                && summary.consecutive_failures + 1 >= UNHEALTHY_AFTER
        })
    }
}

/// For jitter: differs between deliveries and attempts, and needs no source of chance.
fn dice(name: DeliveryName, attempts: u32, early: Option<UnixMillis>) -> u8 {
    let [.., last] = *name.as_bytes();
    let [early, ..] = early.map_or(0, UnixMillis::as_millis).to_le_bytes();
    last ^ attempts.to_le_bytes()[0].wrapping_mul(157) ^ early
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
            probe: false,
            retry_after: None,
        };
        Made {
            name: DeliveryName::from_bytes([(2_u8).wrapping_mul(157); 16]),
            webhook: webhook("orders").uid,
            generation: 4,
            retry,
            attempts: 2,
            own_time: None,
            is_redelivery: false,
            is_look: false,
            is_usual: false,
            window: 7,
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
        for (verdict, attempts, next) in [
            (Verdict::Delivered, 1, Next::Success),
            (retry_after(None), 2, Next::Retry(at(MINUTE))),
            (after(5), 2, Next::Retry(at(MINUTE))),
            (after(600), 2, Next::Retry(at(600))),
            (after(100 * DAY), 2, Next::Retry(at(DAY))),
            (retry_after(None), 4, Next::Failed(EndReason::RetriesExhausted)),
            (after(600), 4, Next::Failed(EndReason::RetriesExhausted)),
            (DENIED, 2, Next::Retry(at(MINUTE))),
            (DENIED, 4, Next::Failed(EndReason::AddressDenied)),
        ] {
            let (outcome, ended) = conclude(Made { attempts, verdict, ..made(&retry) });
            assert_eq!(outcome.next, next, "{verdict:?} {attempts}");
            let retry = if let Next::Retry(at) = next { Some(at) } else { None };
            let expected = match next {
                Next::Success => Ended::Success,
                Next::Retry(_) | Next::Failed(_) => Ended::Failure { is_of_endpoint: true, retry },
            };
            assert_eq!(ended, expected, "{verdict:?} {attempts}");
            assert_eq!(outcome.attempt.map(|attempt| attempt.probe), Some(false));
            assert_eq!(outcome.failing.is_some(), next != Next::Success, "{verdict:?}");
        }
    }

    #[test]
    fn what_somebody_asked_for_is_attempted_once() {
        let retry = endpoint("https://x.localhost/").retry;
        for (verdict, is_look, next) in [
            (Verdict::Delivered, false, Next::Success),
            (retry_after(None), false, Next::Failed(EndReason::RedeliveryFailed)),
            (retry_after(Some(5)), true, Next::Failed(EndReason::RedeliveryFailed)),
            (DENIED, false, Next::Failed(EndReason::AddressDenied)),
            (Verdict::Gone, false, Next::Failed(EndReason::Gone)),
        ] {
            let made = Made { attempts: 1, is_redelivery: true, is_look, verdict, ..made(&retry) };
            assert_eq!(conclude(made).0.next, next, "{verdict:?} {is_look}");
        }
    }

    #[test]
    fn an_attempt_before_its_time_takes_nothing_and_changes_no_time() {
        let retry = endpoint("https://x.localhost/").retry;
        let own_time = Some(at(3600));
        for (after, attempts) in [(None, 4), (Some(90), 4), (Some(7200), 99)] {
            let verdict = retry_after(after);
            let (outcome, _) = conclude(Made { attempts, own_time, verdict, ..made(&retry) });
            assert_eq!(outcome.next, Next::Retry(at(3600)));
            assert!(outcome.attempt.unwrap().probe);
        }
        for (verdict, next) in
            [(Verdict::Delivered, Next::Success), (Verdict::Gone, Next::Failed(EndReason::Gone))]
        {
            assert_eq!(conclude(Made { own_time, verdict, ..made(&retry) }).0.next, next);
        }
    }

    #[test]
    fn only_what_speaks_of_the_endpoint_counts_against_it() {
        let retry = endpoint("https://x.localhost/").retry;
        let asked = Some(Duration::from_secs(5));
        for (fault, status, kind, wait) in [
            (Fault::Unreachable, None, Kind::Unreachable, None),
            (Fault::Denied, None, Kind::Unreachable, None),
            (Fault::TimedOut, None, Kind::TimesOut, None),
            (Fault::TimedOut, Some(408), Kind::TimesOut, None),
            (Fault::ServerError, Some(500), Kind::ServerErrors, None),
            (Fault::ServerError, Some(503), Kind::ServerErrors, asked),
            (Fault::Throttled, Some(429), Kind::ServerErrors, asked),
            (Fault::Rejected, Some(301), Kind::Rejects, None),
            (Fault::Rejected, Some(400), Kind::Rejects, None),
            (Fault::Rejected, Some(425), Kind::Rejects, None),
        ] {
            let mut made = made(&retry);
            made.attempt.status = status;
            let (outcome, ended) = conclude(Made { verdict: Verdict::Retry { fault, after: asked }, ..made });
            let failing = outcome.failing.unwrap();
            assert_eq!((failing.kind, failing.retry_after), (kind, wait), "{fault:?}");
            assert_eq!((failing.generation, failing.window), (4, 7));
            assert_eq!(outcome.attempt.unwrap().retry_after, asked);
            let Ended::Failure { is_of_endpoint, .. } = ended else { panic!("{ended:?}") };
            assert_eq!((is_of_endpoint, kind.is_of_endpoint()), (fault.is_of_endpoint(), is_of_endpoint));
        }
        let verdict = Verdict::Retry { fault: Fault::Internal, after: None };
        let (outcome, ended) = conclude(Made { verdict, ..made(&retry) });
        assert_eq!(
            (outcome.failing, ended),
            (None, Ended::Failure { is_of_endpoint: false, retry: Some(at(MINUTE)) })
        );
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
            .flat_map(|name| {
                (1..5).map(move |attempts| dice(DeliveryName::from_bytes([name; 16]), attempts, None))
            })
            .collect();
        assert!(rolls.len() > 20, "{rolls:?}");
    }
}
