//! Directories that older programs wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::Embedded;
use super::keys::meta;
use super::tests::{NOW, copy_all, options};
use crate::model::ids::{NamespaceUid, WebhookRef};
use crate::store::behaviour::webhook;
use crate::store::records::{
    DedupKey, Delivery, Event, Expunge, Expunged, Redelivered, Redelivery, Summary, Usage,
};
use crate::store::{ClaimRequest, Order, Query, Replays as _, State, Store as _};

/// Deliveries that are Pending, Retrying, Success and Failed.
type Counts = [u64; 4];
/// At which Webhooks.
type Expected = [(&'static str, u8, Counts); 3];

/// What is at the Webhooks `hook-NUMBER` of these namespaces in a directory that the last program with format 1
/// wrote. The Webhooks of `team-a` share their events, and all have the same id.
const FORMAT_1: Expected =
    [("team-a", 1, [1, 1, 1, 1]), ("team-a", 2, [4, 0, 0, 0]), ("team-b", 3, [1, 1, 1, 1])];
/// In one that the last program with format 2 wrote, which was killed meanwhile.
const FORMAT_2: Expected =
    [("team-0", 0, [1, 0, 3, 0]), ("team-1", 1, [0, 0, 4, 0]), ("team-2", 2, [0, 0, 4, 0])];
/// In one that the last program with format 3 wrote, which was killed meanwhile. The Webhooks of `team-0` share their
/// events, and `hook-1` is disabled. The key of each event is its number, from 1 on. Two replays of what has failed in
/// `team-1` are there: `night`, finished, and `day`, just begun.
const FORMAT_3: Expected =
    [("team-0", 0, [1, 1, 1, 1]), ("team-0", 1, [4, 0, 0, 0]), ("team-1", 2, [1, 0, 1, 2])];
/// Which directories there are, and what is in them.
const FORMATS: [(u32, Expected); 3] = [(1, FORMAT_1), (2, FORMAT_2), (3, FORMAT_3)];

fn fixture(format: u32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    copy_all(&fixtures.join(format!("store-format-{format}")), dir.path());
    dir
}

/// Everything that can be read.
#[derive(Debug, PartialEq)]
struct Content {
    /// With their events.
    lines: Vec<(Delivery, Arc<Event>)>,
    usages: BTreeMap<String, Usage>,
    summaries: Vec<Arc<Summary>>,
    terms: Vec<Vec<u8>>,
}

async fn content(store: &Embedded) -> Content {
    let mut lines = Vec::new();
    for line in store.query(Query { limit: 100, ..Query::default() }).await.unwrap().deliveries {
        let event = store.event(line.event).await.unwrap().unwrap();
        lines.push((line, event));
    }
    let mut known = store.known();
    known.sort_unstable_by_key(|webhook| webhook.uid);
    let summaries = known.iter().map(|webhook| store.summary(webhook.uid).unwrap()).collect();
    let usages = known.iter().map(|webhook| (webhook.namespace.to_string(), store.usage(&webhook.namespace)));
    let disk = store.shared.disk().unwrap();
    let terms = disk.terms.iter().map(|entry| entry.key().unwrap().to_vec()).collect();
    Content { lines, usages: usages.collect(), summaries, terms }
}

/// Lines, bodies, numbers, queues and indexes are there and say the same.
async fn check(store: &Embedded, expected: &[(&str, u8, Counts)]) {
    let content = content(store).await;
    let name = |number: &u8| format!("hook-{number}");
    let hooks = expected.iter().map(|(namespace, number, _)| ((*namespace).to_owned(), name(number)));
    let known = content.summaries.iter().map(|summary| &summary.webhook);
    let known: BTreeSet<_> = known.map(|hook| (hook.namespace.to_string(), hook.name.to_string())).collect();
    assert_eq!(known, hooks.collect());
    for (_, number, counts) in expected {
        let is_it = |summary: &&Arc<Summary>| *summary.webhook.name == *name(number);
        check_hook(store, &content, content.summaries.iter().find(is_it).unwrap(), *counts).await;
    }
    check_usages(&content);
    assert_eq!(content.terms.len(), 2 * content.lines.len(), "by the id and by the type of their event");
    for (line, _) in &content.lines {
        let (event_id, event_type) = (Some(line.event_id.clone()), Some(line.event_type.clone()));
        for query in [
            Query { event_id, limit: 100, ..Query::default() },
            Query { event_type, limit: 100, ..Query::default() },
        ] {
            assert!(
                store.query(query).await.unwrap().deliveries.contains(line),
                "{} is not found",
                line.name
            );
        }
    }
}

async fn check_hook(store: &Embedded, content: &Content, summary: &Summary, counts: Counts) {
    let uid = summary.webhook.uid;
    let of_hook: Vec<_> = content.lines.iter().filter(|(line, _)| line.webhook.uid == uid).collect();
    let states = [State::Pending, State::Retrying, State::Success, State::Failed];
    let count = |state| of_hook.iter().filter(|(line, _)| line.state == state).count() as u64;
    assert_eq!(states.map(count), counts, "{}", summary.webhook.name);
    let [pending, retrying, success, failed] = counts;
    assert_eq!(
        (summary.pending, summary.success_count, summary.failure_count),
        (pending + retrying, success, failed)
    );
    let now = NOW + Duration::from_hours(1);
    let claim = ClaimRequest {
        webhook: uid,
        now,
        limit: 100,
        order: Order::LongestDue,
        lease: Duration::from_secs(9),
    };
    let claimed = store.claim(claim).await.unwrap().deliveries.into_iter();
    let mut claimed: Vec<_> = claimed.map(|claimed| (claimed.delivery, claimed.event)).collect();
    claimed.sort_unstable_by_key(|(line, _)| std::cmp::Reverse(line.name));
    let waiting: Vec<_> = of_hook.into_iter().filter(|(line, _)| !line.state.is_final()).cloned().collect();
    assert_eq!(claimed, waiting);
    assert_eq!(summary.pending_bytes, waiting.iter().map(|(_, event)| event.data.len() as u64).sum::<u64>());
}

fn check_usages(content: &Content) {
    for (namespace, usage) in &content.usages {
        let of_namespace = || content.lines.iter().filter(|(_, event)| *event.namespace == **namespace);
        assert_eq!(usage.deliveries, of_namespace().count() as u64, "{namespace}");
        let bodies: BTreeMap<_, _> =
            of_namespace().map(|(_, event)| (event.uid, event.data.len() as u64)).collect();
        let bytes = of_namespace().map(|(line, _)| line.weight()).sum::<u64>() + bodies.values().sum::<u64>();
        // And what is stored beside the data of each event.
        let beside = 50 * bodies.len() as u64..400 * bodies.len() as u64;
        assert!(beside.contains(&usage.bytes.checked_sub(bytes).unwrap()), "{namespace}: {usage:?}, {bytes}");
        let of_hooks = content.summaries.iter().filter(|summary| *summary.webhook.namespace == **namespace);
        assert_eq!(usage.pending_bytes, of_hooks.map(|summary| summary.pending_bytes).sum::<u64>());
    }
}

#[tokio::test]
async fn a_store_of_an_older_format_opens_with_everything() {
    for (format, expected) in FORMATS {
        let dir = fixture(format);
        for _ in 0..2 {
            let store = Embedded::open(options(&dir)).unwrap();
            check(&store, &expected).await;
            store.close().await.unwrap();
        }
    }
}

/// The version is written last: by then, an upgrade may have done all else, or a part of what it does last.
#[tokio::test]
async fn an_upgrade_that_was_interrupted_is_made_again_and_leaves_the_same() {
    for (format, expected) in FORMATS {
        let dir = fixture(format);
        let store = Embedded::open(options(&dir)).unwrap();
        let whole = content(&store).await;
        store.close().await.unwrap();
        // Format 3 has them.
        let dones =
            [whole.terms.len(), whole.terms.len() / 2, 0].into_iter().take(if format < 3 { 3 } else { 1 });
        for done in dones {
            let store = Embedded::open(options(&dir)).unwrap();
            let disk = store.shared.disk().unwrap();
            for term in whole.terms.iter().skip(done) {
                disk.terms.remove(term.as_slice()).unwrap();
            }
            disk.meta.insert(meta::FORMAT, format.to_be_bytes()).unwrap();
            drop(disk);
            store.close().await.unwrap();

            let store = Embedded::open(options(&dir)).unwrap();
            assert_eq!(content(&store).await, whole);
            check(&store, &expected).await;
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_a_store_of_format_1_has_can_be_redelivered_expunged_and_purged() {
    let dir = fixture(1);
    let store = Embedded::open(options(&dir)).unwrap();
    let failed = Query { states: vec![State::Failed], limit: 100, ..Query::default() };
    let failed = store.query(failed).await.unwrap().deliveries;
    let of_a = failed.iter().find(|line| &*line.webhook.namespace == "team-a").unwrap();
    let (name, namespace) = (of_a.name, Arc::clone(&of_a.webhook.namespace));
    let asked = Redelivery { name, namespace: Arc::clone(&namespace), by: "jane".into(), at: NOW };
    assert_eq!(store.redeliver(vec![asked]).await.unwrap(), [Redelivered::Queued]);
    // Format 1 did not keep which deliveries belong to an event.
    let expunge = Expunge { name, namespace, by: "jane".into(), at: NOW };
    assert_eq!(store.expunge(expunge).await.unwrap(), Expunged::Done { deliveries: 2, ended: 2 });
    for number in 1..=3 {
        let namespace = if number == 3 { "team-b" } else { "team-a" };
        store.purge(webhook(namespace, number).uid).await.unwrap();
    }
    assert_eq!([store.usage("team-a"), store.usage("team-b")], [Usage::default(); 2]);
}

fn namespace(number: u8) -> NamespaceUid {
    NamespaceUid::from_bytes([number; 16])
}

/// Says that these Webhooks live, and where.
async fn adopt(store: &Embedded, hooks: &[WebhookRef], namespace_uid: NamespaceUid) {
    let namespace_uid = Some(namespace_uid);
    for hook in hooks {
        store.adopt(Summary { namespace_uid, ..Summary::new(hook.clone()) }).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_store_of_format_3_remembers_is_the_living_namespaces() {
    let dir = fixture(3);
    let [a, b, c] = [("team-0", 0), ("team-0", 1), ("team-1", 2)].map(|(name, number)| webhook(name, number));
    for _ in 0..2 {
        let store = Embedded::open(options(&dir)).unwrap();
        let before = content(&store).await;
        adopt(&store, &[a.clone(), b.clone()], namespace(1)).await;
        adopt(&store, std::slice::from_ref(&c), namespace(2)).await;
        let known = Content { summaries: content(&store).await.summaries, ..before };
        assert_eq!(content(&store).await, known);
        check(&store, &FORMAT_3).await;
        for key in 1..=8 {
            let namespace = if key <= 4 { "team-0" } else { "team-1" };
            let first = store.duplicate_of(namespace, DedupKey([key; 16]), NOW).unwrap();
            assert!(first.is_some(), "{key}");
        }
        assert!(store.summary(b.uid).unwrap().disabled.is_some());
        let mut replays: Vec<_> = store.replays();
        replays.sort_unstable_by_key(|replay| replay.id);
        let replays: Vec<_> =
            replays.iter().map(|it| (&*it.name, it.finished_at.is_some(), it.is_over())).collect();
        assert_eq!(replays, [("night", true, true), ("day", false, false)]);
        store.close().await.unwrap();
    }
    let store = Embedded::open(options(&dir)).unwrap();
    store.set_gone(b.uid, true);
    let heir = WebhookRef { name: b.name.clone(), ..webhook("team-0", 9) };
    adopt(&store, std::slice::from_ref(&heir), namespace(1)).await;
    assert_eq!(store.summary(heir.uid).unwrap().pending, 4);
    assert_eq!(store.usage("team-0").deliveries, 8);
}

#[tokio::test]
async fn what_a_store_of_format_3_remembers_is_not_another_namespaces() {
    let dir = fixture(3);
    let store = Embedded::open(options(&dir)).unwrap();
    let [a, b, c] = [("team-0", 0), ("team-0", 1), ("team-1", 2)].map(|(name, number)| webhook(name, number));
    for hook in [&a, &b, &c] {
        store.set_gone(hook.uid, true);
    }
    let heirs =
        [(&a, 7), (&c, 8)].map(|(of, number)| WebhookRef { uid: webhook("", number).uid, ..of.clone() });
    for (heir, number) in heirs.iter().zip([0x91, 0x92]) {
        adopt(&store, std::slice::from_ref(heir), namespace(number)).await;
        assert_eq!(store.summary(heir.uid).unwrap().pending, 0);
        assert_eq!(store.usage(&heir.namespace), Usage::default());
        for key in 1..=8 {
            assert_eq!(store.duplicate_of(&heir.namespace, DedupKey([key; 16]), NOW).unwrap(), None);
        }
    }
    assert!(store.query(Query { limit: 9, ..Query::default() }).await.unwrap().deliveries.is_empty());
    assert!(store.replays().iter().all(|replay| replay.finished_at.is_none()));
    for hook in [&a, &b, &c] {
        store.purge(hook.uid).await.unwrap();
    }
    assert_eq!(store.shared.hooks.usages().total(), 0);
}
