//! What an answer means. One answer, one verdict.

use std::time::Duration;

/// How an attempt ended, as far as the network is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The receiver answered.
    Status {
        /// HTTP status.
        code: u16,
        /// What `Retry-After` asked for, already made a wait.
        retry_after: Option<Duration>,
    },
    /// No whole answer within the time limit.
    TimedOut,
    /// No connection, no TLS, a reset, a broken answer.
    Broken,
    /// The guard denied every address; nothing was sent.
    Denied,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It arrived.
    Delivered,
    /// Try again, not before the time that the receiver asked for.
    Retry {
        /// What the receiver asked for.
        after: Option<Duration>,
    },
    /// Never sent: this address may not be reached.
    Refused,
    /// The receiver wants no more of these.
    Gone,
}

impl Verdict {
    /// Metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry { .. } => "retry",
            Self::Refused => "refused",
            Self::Gone => "gone",
        }
    }
}

/// Judges an answer. Every failure but 410 and a denied address is retried, redirects and client errors too:
/// receivers are mended while we wait.
pub const fn judge(answer: &Answer) -> Verdict {
    match answer {
        Answer::Status { code: 200..=299, .. } => Verdict::Delivered,
        Answer::Status { code: 410, .. } => Verdict::Gone,
        Answer::Status { retry_after, .. } => Verdict::Retry { after: *retry_after },
        Answer::TimedOut | Answer::Broken => Verdict::Retry { after: None },
        Answer::Denied => Verdict::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_the_verdict_of_the_table() {
        for code in 100..=599 {
            let expected = match code {
                200..=299 => Verdict::Delivered,
                410 => Verdict::Gone,
                _ => Verdict::Retry { after: None },
            };
            assert_eq!(judge(&Answer::Status { code, retry_after: None }), expected, "{code}");
        }
        assert_eq!(judge(&Answer::TimedOut), Verdict::Retry { after: None });
        assert_eq!(judge(&Answer::Broken), Verdict::Retry { after: None });
        assert_eq!(judge(&Answer::Denied), Verdict::Refused);
    }

    #[test]
    fn what_the_receiver_asked_for_is_kept() {
        let after = Some(Duration::from_secs(7));
        assert_eq!(judge(&Answer::Status { code: 503, retry_after: after }), Verdict::Retry { after });
    }
}
