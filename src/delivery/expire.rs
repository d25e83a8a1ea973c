//! Deliveries that were held for too long end as Failed, reason `Expired`.

use std::time::Duration;

use tokio::time::timeout;
use tracing::{info, warn};

use super::engine::Shared;
use super::quiet::Line;
use crate::metrics::Ended as EndedLabel;
use crate::model::causes::chain;
use crate::model::ids::WebhookUid;
use crate::routes::hold::hold;
use crate::store::{ClaimRequest, Claimed, EndReason, Next, Order, Outcome, Result};

/// Ended in one commit.
const BATCH: usize = 128;

/// Who waits for his turn says so this often.
const TURN: Duration = Duration::from_secs(5);

impl Shared {
    /// Ends what a held Webhook holds for longer than the limit, oldest first, in batches. A delivery is held
    /// since it was due. However long that takes, `moves` is called again and again.
    pub(super) async fn expire(&self, webhook: WebhookUid, moves: impl Fn()) {
        if !self.may_expire(webhook) {
            return;
        }
        // One at a time: a second one would claim what is young, and give it back, over and over.
        let _turn = loop {
            moves();
            if let Ok(turn) = timeout(TURN, self.expiring.lock()).await {
                break turn;
            }
        };
        let mut expired = 0;
        while !self.stop.is_cancelled() && self.may_expire(webhook) {
            moves();
            match self.expire_batch(webhook).await {
                Ok(0) => break,
                Ok(count) => expired += count,
                Err(error) => {
                    if let Some(unlogged) = self.quiet.may_speak(Line::NotExpired, webhook) {
                        warn!(%webhook, error = chain(&error), unlogged, "held deliveries were not ended; the next sweep does");
                    }
                    break;
                }
            }
        }
        if expired > 0
            && let Some(unlogged) = self.quiet.may_speak(Line::Expired, webhook)
        {
            info!(%webhook, expired, unlogged, "held for too long");
        }
    }

    fn may_expire(&self, webhook: WebhookUid) -> bool {
        let limit = self.clock.now() - self.settings.held_limit;
        let is_old = self.store.oldest_due(webhook).is_some_and(|due| due <= limit);
        let is_held = || {
            let route = self.table.get(webhook)?;
            hold(&route, self.store.summary(webhook).as_deref())
        };
        is_old && is_held().is_some()
    }

    async fn expire_batch(&self, webhook: WebhookUid) -> Result<usize> {
        let limit = self.settings.held_limit;
        let at = self.clock.now();
        let since = at - limit;
        let request = ClaimRequest {
            webhook,
            now: since,
            limit: BATCH,
            order: Order::LongestDue,
            // Counted from the time that is asked for, which is so long ago.
            lease: limit + self.settings.lease_margin,
        };
        let claims = self.store.claim(request).await?;
        let is_old = |claimed: &Claimed| claimed.delivery.due.is_some_and(|due| due <= since);
        let (old, young): (Vec<_>, Vec<_>) = claims.deliveries.iter().partition(|claimed| is_old(claimed));
        let outcomes: Vec<_> = old
            .into_iter()
            .map(|claimed| Outcome {
                name: claimed.delivery.name,
                webhook,
                attempt: None,
                next: Next::Failed(EndReason::Expired),
                disable: None,
                failing: None,
                at,
            })
            .collect();
        if !young.is_empty() {
            self.store
                .release(young.iter().map(|claimed| (webhook, claimed.delivery.name)).collect())
                .await?;
        }
        let count = outcomes.len();
        if count > 0 {
            self.store.record(outcomes).await?;
            let outcome = EndReason::Expired.as_str();
            self.metrics.deliveries.get_or_create(&EndedLabel { outcome }).inc_by(count as u64);
        }
        Ok(count)
    }

    /// Looks at every Webhook that has something pending, one after the other.
    pub(super) async fn expire_all(&self) {
        let pending = self.rounds().pending();
        for webhook in pending {
            self.expire(webhook, || {}).await;
        }
    }
}
