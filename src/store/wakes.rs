//! A set of Webhooks to look at, filled by many, emptied by one.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::model::ids::WebhookUid;

/// Remembers which Webhooks to look at. Holds each once, so it is bounded by their number.
#[derive(Debug, Default)]
pub struct Wakes {
    set: Mutex<HashSet<WebhookUid>>,
    notify: Notify,
}

impl Wakes {
    /// Adds Webhooks.
    pub fn add(&self, webhooks: impl IntoIterator<Item = WebhookUid>) {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        set.extend(webhooks);
        let any = !set.is_empty();
        drop(set);
        if any {
            self.notify.notify_one();
        }
    }

    /// Waits until there are some, and takes them all. One consumer at a time; cancel safe.
    pub async fn next(&self) -> Vec<WebhookUid> {
        loop {
            let taken = self.take();
            if !taken.is_empty() {
                return taken;
            }
            self.notify.notified().await;
        }
    }

    /// Takes what is there.
    pub fn take(&self) -> Vec<WebhookUid> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner).drain().collect()
    }
}
