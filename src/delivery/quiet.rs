//! Log lines that repeat, limited.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::ids::WebhookUid;

/// One line about the failures of one Webhook in this time.
const EVERY: Duration = Duration::from_mins(1);

/// Webhooks remembered at most; beyond, the oldest lines are forgotten.
const MAX_REMEMBERED: usize = 4096;

/// Limits lines about failures to one a minute for a Webhook: a receiver that is down for an hour costs tens of
/// lines, not thousands.
#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<HashMap<WebhookUid, (Instant, u64)>>);

impl Quiet {
    /// Whether a line may be written now; how many were not written since the last one.
    pub(super) fn may_speak(&self, webhook: WebhookUid) -> Option<u64> {
        let mut spoken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((since, unlogged)) = spoken.get_mut(&webhook) {
            if now.duration_since(*since) < EVERY {
                *unlogged += 1;
                return None;
            }
            *since = now;
            return Some(std::mem::take(unlogged));
        }
        if spoken.len() >= MAX_REMEMBERED {
            spoken.retain(|_, (since, _)| now.duration_since(*since) < EVERY);
        }
        if spoken.len() < MAX_REMEMBERED {
            spoken.insert(webhook, (now, 0));
        }
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_webhook_speaks_once_a_minute_and_says_how_often_it_was_silent() {
        let quiet = Quiet::default();
        let (one, other) = (WebhookUid::from_bytes([1; 16]), WebhookUid::from_bytes([2; 16]));
        assert_eq!(quiet.may_speak(one), Some(0));
        assert_eq!((quiet.may_speak(one), quiet.may_speak(one)), (None, None));
        assert_eq!(quiet.may_speak(other), Some(0));
        tokio::time::advance(EVERY).await;
        assert_eq!(quiet.may_speak(one), Some(2));
        assert_eq!(quiet.may_speak(one), None);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let quiet = Quiet::default();
        for number in 0..(MAX_REMEMBERED as u128 + 10) {
            assert_eq!(quiet.may_speak(WebhookUid::from_bytes(number.to_be_bytes())), Some(0));
        }
        assert_eq!(quiet.0.lock().unwrap().len(), MAX_REMEMBERED);
    }
}
