//! Erases the data of Webhooks that are gone.
//!
//! Gone is who is missing from a complete list of what is served, by identity, for the whole grace. Nothing is written
//! down for that: after a restart the complete list says it again, and the grace begins anew. No finalizer is needed,
//! so no deletion ever waits for the operator.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::cli::chain;
use crate::model::ids::{WebhookRef, WebhookUid};
use crate::routes::Table;
use crate::routes::watch::Scope;
use crate::store::Store;

/// Since when Webhooks of the store are missing from the table.
#[derive(Debug, Default)]
struct Absences(HashMap<WebhookUid, Instant>);

impl Absences {
    /// Those that were missing at each look of the last `grace`.
    fn look(
        &mut self,
        known: Vec<WebhookRef>,
        exists: impl Fn(WebhookUid) -> bool,
        grace: Duration,
        now: Instant,
    ) -> Vec<WebhookRef> {
        let missing: Vec<WebhookRef> = known.into_iter().filter(|webhook| !exists(webhook.uid)).collect();
        let uids: HashSet<WebhookUid> = missing.iter().map(|webhook| webhook.uid).collect();
        self.0.retain(|uid, _| uids.contains(uid));
        let gone = missing.into_iter().filter(|webhook| {
            let since = *self.0.entry(webhook.uid).or_insert(now);
            now.duration_since(since) >= grace
        });
        gone.collect()
    }
}

/// Looks from time to time, until it is told to stop.
pub(super) async fn run(
    table: Arc<Table>,
    store: Arc<dyn Store>,
    scope: Scope,
    grace: Duration,
    stop: CancellationToken,
) {
    let mut absences = Absences::default();
    let mut tick = tokio::time::interval((grace / 10).clamp(Duration::from_secs(1), Duration::from_secs(30)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let mut known = store.known();
        // Of a namespace that cannot be read, nobody knows what is missing.
        known.retain(|webhook| scope.serves(&webhook.namespace) && table.serves(&webhook.namespace));
        for webhook in absences.look(known, |uid| table.get(uid).is_some(), grace, Instant::now()) {
            match store.purge(webhook.uid).await {
                Ok(()) => info!(%webhook, "erased the data of a deleted Webhook"),
                Err(error) => {
                    error!(%webhook, error = chain(&error), "cannot erase the data of a deleted Webhook");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_mins(10);

    fn webhook(number: u8) -> WebhookRef {
        WebhookRef {
            uid: WebhookUid::from_bytes([number; 16]),
            namespace: "team-a".into(),
            name: "orders".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_missing_for_the_whole_grace_is_gone() {
        let mut absences = Absences::default();
        let mut look = |present: &[u8]| {
            let exists = |uid: WebhookUid| present.iter().any(|number| uid == webhook(*number).uid);
            absences.look(vec![webhook(1), webhook(2)], exists, GRACE, Instant::now())
        };
        assert_eq!(look(&[1, 2]), []);
        assert_eq!(look(&[1]), []);
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(look(&[1, 2]), [], "it is there again");
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(look(&[1]), [], "so the grace begins anew");
        tokio::time::advance(GRACE).await;
        assert_eq!(look(&[1]), [webhook(2)]);
        assert_eq!(look(&[1]), [webhook(2)], "until the store forgets it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_webhook_made_anew_under_the_same_name_does_not_keep_the_old_one_alive() {
        let mut absences = Absences::default();
        let exists = |uid: WebhookUid| uid == webhook(2).uid;
        assert_eq!(absences.look(vec![webhook(1), webhook(2)], exists, GRACE, Instant::now()), []);
        tokio::time::advance(GRACE).await;
        assert_eq!(absences.look(vec![webhook(1), webhook(2)], exists, GRACE, Instant::now()), [webhook(1)]);
    }
}
