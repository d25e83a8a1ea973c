//! What an answer means. One answer, one verdict.

use std::time::Duration;

/// How an attempt ended, as far as the network is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The receiver answered: its status line has arrived, whatever became of the rest.
    Status {
        /// HTTP status.
        code: u16,
        /// What `Retry-After` asked for, already made a wait.
        retry_after: Option<Duration>,
    },
    /// No status within the time limit.
    TimedOut,
    /// No connection, no TLS, a reset, no HTTP: no status came.
    Broken,
    /// The guard denied every address; nothing was sent.
    Denied,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It arrived.
    Delivered,
    /// It failed. Try again, not before the time that the receiver asked for.
    Retry {
        /// What kind of failure it was.
        fault: Fault,
        /// What the receiver asked for.
        after: Option<Duration>,
    },
    /// The receiver wants no more of these.
    Gone,
}

/// What kind of failure an attempt was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// No connection, no TLS, a reset, an answer that is not HTTP.
    Unreachable,
    /// No status in time, or the receiver said that it took too long itself (408).
    TimedOut,
    /// The receiver failed (5xx), or answered what no receiver should (1xx, 600 and more).
    ServerError,
    /// The receiver asked for fewer (429).
    Throttled,
    /// The receiver does not want this event as it was sent: every other status.
    Rejected,
    /// The guard denied every address; nothing was sent.
    Denied,
    /// Hookwright itself failed; whether anything was sent is not known.
    Internal,
}

impl Fault {
    /// Whether it speaks of the endpoint, so that another event would probably meet the same. What does not is
    /// about its own event.
    pub const fn is_of_endpoint(self) -> bool {
        match self {
            Self::Unreachable | Self::TimedOut | Self::ServerError | Self::Throttled | Self::Denied => true,
            Self::Rejected | Self::Internal => false,
        }
    }

    /// By the status of an answer that is neither a success nor 410.
    const fn of_status(code: u16) -> Self {
        match code {
            408 => Self::TimedOut,
            429 => Self::Throttled,
            300..=499 => Self::Rejected,
            0..=299 | 500.. => Self::ServerError,
        }
    }
}

impl Verdict {
    /// Metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry { fault: Fault::Denied, .. } => "refused",
            Self::Retry { .. } => "retry",
            Self::Gone => "gone",
        }
    }
}

/// Judges an answer. Every failure but 410 is retried, redirects, client errors and denied addresses too: receivers,
/// names and rules are mended while we wait.
pub const fn judge(answer: &Answer) -> Verdict {
    let (fault, after) = match answer {
        Answer::Status { code: 200..=299, .. } => return Verdict::Delivered,
        Answer::Status { code: 410, .. } => return Verdict::Gone,
        Answer::Status { code, retry_after } => (Fault::of_status(*code), *retry_after),
        Answer::TimedOut => (Fault::TimedOut, None),
        Answer::Broken => (Fault::Unreachable, None),
        Answer::Denied => (Fault::Denied, None),
    };
    Verdict::Retry { fault, after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_the_verdict_of_the_table() {
        for code in 100..=699 {
            let fault = match code {
                200..=299 => None,
                408 => Some(Fault::TimedOut),
                429 => Some(Fault::Throttled),
                100..=199 | 500..=699 => Some(Fault::ServerError),
                _ => Some(Fault::Rejected),
            };
            let expected = match (code, fault) {
                (410, _) => Verdict::Gone,
                (_, Some(fault)) => Verdict::Retry { fault, after: None },
                (_, None) => Verdict::Delivered,
            };
            assert_eq!(judge(&Answer::Status { code, retry_after: None }), expected, "{code}");
        }
        for (answer, fault) in [
            (Answer::TimedOut, Fault::TimedOut),
            (Answer::Broken, Fault::Unreachable),
            (Answer::Denied, Fault::Denied),
        ] {
            assert_eq!(judge(&answer), Verdict::Retry { fault, after: None });
        }
    }

    #[test]
    fn rejections_and_our_own_failures_say_nothing_of_the_endpoint() {
        let of_event = |fault: &Fault| !fault.is_of_endpoint();
        let all = [
            Fault::Unreachable,
            Fault::TimedOut,
            Fault::ServerError,
            Fault::Throttled,
            Fault::Rejected,
            Fault::Denied,
            Fault::Internal,
        ];
        let event: Vec<_> = all.into_iter().filter(of_event).collect();
        assert_eq!(event, [Fault::Rejected, Fault::Internal]);
    }

    #[test]
    fn what_the_receiver_asked_for_is_kept() {
        let after = Some(Duration::from_secs(7));
        let expected = Verdict::Retry { fault: Fault::ServerError, after };
        assert_eq!(judge(&Answer::Status { code: 503, retry_after: after }), expected);
    }
}
