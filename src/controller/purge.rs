//! Erases the data of Webhooks that are gone.
//!
//! Gone is who was seen to go, or is missing from a complete list of its namespace, by identity. From then on nothing of it is shown, sent
//! or counted (see [`crate::store::Store::set_gone`]); it is erased after the whole grace, unless a Webhook of the same
//! name in the very same namespace has taken over. Nothing is written down for that: after a restart the complete list
//! says it again, and the grace begins anew. No finalizer is needed, so no deletion ever waits for the operator.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource as _;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Deps;
use super::reporter::{self, Reporter};
use crate::api::Webhook;
use crate::cli::chain;
use crate::model::ids::{WebhookRef, WebhookUid};
use crate::store::Store;

/// An Event that takes longer is not waited for.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Events that may wait to be published; of more, the log alone tells.
const WAITING: usize = 256;
/// Events that are published at once.
const AT_ONCE: usize = 8;

/// A Webhook whose data was erased, and how many deliveries waited for it.
type Discarded = (WebhookRef, u64);

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

/// Looks from time to time, until it is told to stop. Events are published beside it: erasing waits for none.
pub(super) async fn run(deps: Arc<Deps>, stop: CancellationToken) {
    let reporter = Reporter::new(deps.client.clone(), deps.clock.clone());
    let (discarded, to_tell) = mpsc::channel(WAITING);
    let telling = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = tell_all(&reporter, to_tell) => {}
        }
    };
    tokio::join!(look(&deps, discarded, &stop), telling);
}

async fn look(deps: &Deps, discarded: Sender<Discarded>, stop: &CancellationToken) {
    let Deps { table, store, scope, purge_grace: grace, .. } = deps;
    let mut absences = Absences::default();
    let mut tick =
        tokio::time::interval((*grace / 10).clamp(Duration::from_secs(1), Duration::from_secs(30)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let mut known = store.known();
        // Of a namespace that cannot be read, nobody knows what is missing, but for what was seen to go.
        table.keep_left(&known);
        known.retain(|webhook| {
            let namespace = &webhook.namespace;
            scope.serves(namespace) && (table.serves(namespace) || table.has_left(webhook.uid))
        });
        let gone = absences.look(known, |uid| table.get(uid).is_some(), *grace, Instant::now());
        tokio::select! {
            () = stop.cancelled() => return,
            () = erase(&**store, &discarded, gone) => {}
        }
    }
}

/// Erases the data of these. One line says of all of them how many deliveries waited, which nobody gets now.
async fn erase(store: &dyn Store, to_tell: &Sender<Discarded>, gone: Vec<WebhookRef>) {
    let (mut erased, mut discarded, mut failed) = (Vec::new(), 0, Vec::new());
    for webhook in gone {
        match store.purge(webhook.uid).await {
            Ok(waited) => {
                discarded += waited;
                if waited > 0 && to_tell.try_send((webhook.clone(), waited)).is_err() {
                    warn!(%webhook, discarded = waited, "too many Events wait: none tells what was discarded");
                }
                erased.push(webhook);
            }
            Err(error) => failed.push((webhook, error)),
        }
    }
    if let Some(first) = erased.first() {
        let webhooks = erased.len();
        info!(webhooks, %first, discarded, "erased the data of deleted Webhooks");
    }
    if let Some((first, error)) = failed.first() {
        let webhooks = failed.len();
        error!(webhooks, %first, error = chain(error), "cannot erase the data of deleted Webhooks; trying again");
    }
}

/// Publishes an Event for each, some at once, until no more can come.
async fn tell_all(reporter: &Reporter, mut to_tell: Receiver<Discarded>) {
    let each = futures::stream::poll_fn(|context| to_tell.poll_recv(context));
    each.for_each_concurrent(AT_ONCE, async |(webhook, waited)| tell(reporter, &webhook, waited).await).await;
}

/// Says where the Webhook was what became of its deliveries; where its namespace is gone as well, nobody is left to
/// be told.
async fn tell(reporter: &Reporter, webhook: &WebhookRef, discarded: u64) {
    let about = ObjectReference {
        api_version: Some(Webhook::api_version(&()).into_owned()),
        kind: Some(Webhook::kind(&()).into_owned()),
        namespace: Some(webhook.namespace.to_string()),
        name: Some(webhook.name.to_string()),
        uid: Some(webhook.uid.to_string()),
        ..ObjectReference::default()
    };
    let told = reporter.publish(vec![reporter::discarded(discarded)], &about);
    let _ = tokio::time::timeout(TIMEOUT, told).await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hookwright_harness::scratch::scratch;

    use super::*;
    use crate::clock::Clock;
    use crate::model::ids::Minter;
    use crate::model::time::UnixMillis;
    use crate::store::Summary;
    use crate::store::embedded::{Embedded, Options};
    use crate::store::testing::event;

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

    #[tokio::test]
    async fn erasing_waits_for_no_event_to_be_published() {
        let dir = scratch();
        let store = Embedded::open(Options { min_free_bytes: 0, ..Options::new(dir.path()) }).unwrap();
        let gone: Vec<WebhookRef> = (1..=9).map(webhook).collect();
        for webhook in &gone {
            store.adopt(Summary::new(webhook.clone())).await.unwrap();
            store.append(vec![event(&Minter::default(), UnixMillis::default(), &[webhook])]).await.unwrap();
        }
        // Nobody takes what is to be told.
        let (discarded, mut to_tell) = mpsc::channel(4);
        erase(&*store, &discarded, gone.clone()).await;
        assert_eq!(store.known(), []);
        drop(discarded);
        for webhook in &gone[..4] {
            assert_eq!(to_tell.recv().await, Some((webhook.clone(), 1)));
        }
        assert_eq!(to_tell.recv().await, None, "of more than may wait, the log alone tells");
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_hangs_holds_up_a_few_events_at_once() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<Result<http::Response<kube::client::Body>, std::convert::Infallible>>()
        });
        let reporter = Reporter::new(kube::Client::new(service, "default"), Clock::system());
        let (discarded, to_tell) = mpsc::channel(WAITING);
        for number in 0..200 {
            discarded.try_send((webhook(number), 1)).unwrap();
        }
        drop(discarded);
        let began = Instant::now();
        tell_all(&reporter, to_tell).await;
        assert_eq!(began.elapsed().as_secs(), 5 * 200 / AT_ONCE as u64);
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
