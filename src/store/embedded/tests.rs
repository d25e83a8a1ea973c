//! The sentences of every engine, and those of this one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hookwright_harness::scratch::scratch;
use tempfile::TempDir;

use super::keys::{TOUCH, meta};
use super::{Embedded, Options};
use crate::metrics::Metrics;
use crate::model::ids::{DeliveryName, EventUid, Minter, NamespaceUid, WebhookRef};
use crate::model::time::UnixMillis;
use crate::store::behaviour::{Crashing, Engine, QUOTA, RETENTION, suite, webhook};
use crate::store::records::{DedupKey, EndReason, Next, Outcome, Retention, Summary};
use crate::store::{Appended, ClaimRequest, Error, NewEvent, Order, Query, State, Store};

struct InDirectory(TempDir);

impl InDirectory {
    fn new() -> Self {
        Self(scratch())
    }
}

impl Engine for InDirectory {
    fn open(&self) -> Arc<dyn Store> {
        let options = Options { retention: RETENTION, quota_pending_bytes: QUOTA, ..options(&self.0) };
        Embedded::open(options).unwrap()
    }
}

mod every_engine {
    use super::*;
    suite!(InDirectory::new());
}

/// Nothing is flushed, so that what was written is in the one journal, commit after commit.
struct Unflushed(TempDir);

impl Unflushed {
    fn journal(&self) -> std::path::PathBuf {
        self.0.path().join("store/0.jnl")
    }
}

impl Engine for Unflushed {
    fn open(&self) -> Arc<dyn Store> {
        let options = Options { memtable_bytes: 64 << 20, ..options(&self.0) };
        Embedded::open(Options { retention: RETENTION, quota_pending_bytes: QUOTA, ..options }).unwrap()
    }
}

impl Crashing for Unflushed {
    fn written(&self) -> u64 {
        // A commit does not end with a zero.
        let journal = std::fs::read(self.journal()).unwrap();
        journal.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
    }

    fn crash(&self, written: Option<u64>) -> Box<dyn Engine> {
        let crashed = Unflushed(scratch());
        copy_all(self.0.path(), crashed.0.path());
        if let Some(written) = written {
            let journal = std::fs::File::options().write(true).open(crashed.journal()).unwrap();
            journal.set_len(written).unwrap();
        }
        Box::new(crashed)
    }
}

#[test]
fn every_crash_leaves_what_the_model_has() {
    crate::store::behaviour::model::every_crash_leaves_what_the_model_has(|| Unflushed(scratch()));
}

#[tokio::test]
async fn a_crash_while_a_webhook_takes_over_leaves_the_one_or_the_other() {
    let unflushed = Unflushed(scratch());
    let minter = Minter::default();
    let [former, heir] =
        [1, 2].map(|number| WebhookRef { name: "orders".into(), ..webhook("team-a", number) });
    let namespace_uid = Some(NamespaceUid::from_bytes([1; 16]));
    let seed = |hook: &WebhookRef| Summary { namespace_uid, ..Summary::new(hook.clone()) };
    let claim = |hook: &WebhookRef| ClaimRequest {
        webhook: hook.uid,
        now: NOW,
        limit: 99,
        order: Order::LongestDue,
        lease: Duration::from_secs(9),
    };
    let store = unflushed.open();
    store.adopt(seed(&former)).await.unwrap();
    store.append((0..20).map(|_| event(&minter, &[&former])).collect()).await.unwrap();
    let before = unflushed.written();
    store.set_gone(former.uid, true);
    store.adopt(seed(&heir)).await.unwrap();
    let after = unflushed.written();
    assert!((100..1000).contains(&(after - before)), "{} bytes", after - before);
    let mut met = [false; 2];
    for written in (before..after).step_by(7).chain([after]) {
        let crashed = unflushed.crash(Some(written));
        let store = crashed.open();
        let known = store.known();
        let is_heir = known == std::slice::from_ref(&heir);
        assert!(is_heir || known == std::slice::from_ref(&former), "{known:?}");
        assert!(is_heir || written < after, "it was acknowledged");
        met[usize::from(is_heir)] = true;
        if !is_heir {
            store.set_gone(former.uid, true);
            store.adopt(seed(&heir)).await.unwrap();
        }
        assert_eq!(store.claim(claim(&heir)).await.unwrap().deliveries.len(), 20);
        let log = store.query(Query { limit: 99, ..Query::default() }).await.unwrap().deliveries;
        assert!(log.len() == 20 && log.iter().all(|line| line.webhook == heir));
        store.close().await.unwrap();
    }
    assert_eq!(met, [true; 2]);
}

#[tokio::test]
async fn the_body_of_one_event_for_a_hundred_webhooks_is_on_disk_once() {
    let unflushed = Unflushed(scratch());
    let minter = Minter::default();
    let hooks: Vec<_> = (0..100).map(|number| webhook("team-a", number)).collect();
    let body: Vec<u8> =
        (0..32).flat_map(|_| [(); 128].map(|()| *minter.event(NOW).as_bytes())).flatten().collect();
    assert_eq!(body.len(), 64 << 10);
    let store = unflushed.open();
    let before = unflushed.written();
    let event = NewEvent { data: body.into(), ..event(&minter, &hooks.iter().collect::<Vec<_>>()) };
    store.append(vec![event]).await.unwrap();
    let grown = unflushed.written() - before;
    assert!(((64 << 10)..(64 << 10) + 100 * (1 << 10)).contains(&grown), "{grown} bytes were written");
    for hook in hooks {
        let claim = ClaimRequest {
            webhook: hook.uid,
            now: NOW,
            limit: 9,
            order: Order::LongestDue,
            lease: Duration::from_secs(9),
        };
        assert_eq!(store.claim(claim).await.unwrap().deliveries.len(), 1);
    }
}

pub(super) const NOW: UnixMillis = UnixMillis::from_millis(1_800_000_000_000);

pub(super) fn options(dir: &TempDir) -> Options {
    Options { min_free_bytes: 0, ..Options::new(dir.path()) }
}

pub(super) fn event(minter: &Minter, hooks: &[&WebhookRef]) -> NewEvent {
    crate::store::testing::event(minter, NOW, hooks)
}

pub(super) fn outcome(hook: &WebhookRef, name: DeliveryName, next: Next) -> Outcome {
    Outcome { name, webhook: hook.uid, attempt: None, next, disable: None, failing: None, at: NOW }
}

fn unusable<T: std::fmt::Debug>(result: crate::store::Result<T>) -> String {
    match result.unwrap_err() {
        Error::Unusable(sentence) => sentence,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_second_opening_is_refused_until_the_first_is_gone() {
    let dir = scratch();
    let first = Embedded::open(options(&dir)).unwrap();
    let sentence = unusable(Embedded::open(options(&dir)));
    assert!(sentence.contains("another process uses the data directory"), "{sentence}");
    drop(first);
    Embedded::open(options(&dir)).unwrap();
}

#[test]
fn a_store_belongs_to_the_cluster_that_it_was_first_opened_in() {
    let dir = scratch();
    let of = |cluster: Option<&str>| Options { cluster: cluster.map(str::to_owned), ..options(&dir) };
    Embedded::open(of(None)).unwrap();
    Embedded::open(of(Some("first"))).unwrap();
    Embedded::open(of(Some("first"))).unwrap();
    let sentence = unusable(Embedded::open(of(Some("second"))));
    assert!(sentence.contains("belongs to the cluster first, this is second"), "{sentence}");
    Embedded::open(of(None)).unwrap();
}

#[test]
fn a_format_of_the_future_or_none_is_refused() {
    let dir = scratch();
    let store = Embedded::open(options(&dir)).unwrap();
    store.shared.disk().unwrap().meta.insert(meta::FORMAT, 7_u32.to_be_bytes()).unwrap();
    drop(store);
    let sentence = unusable(Embedded::open(options(&dir)));
    assert!(sentence.contains("has format 7, this program knows 4"), "{sentence}");

    let other = scratch();
    drop(fjall::Database::builder(other.path().join("store")).open().unwrap());
    let sentence = unusable(Embedded::open(options(&other)));
    assert!(sentence.contains("is not a store of this program"), "{sentence}");
}

#[test]
fn what_an_interrupted_first_start_left_is_made_anew() {
    let dir = scratch();
    let unfinished = dir.path().join("store.new");
    std::fs::create_dir(&unfinished).unwrap();
    std::fs::write(unfinished.join("0.jnl"), b"half").unwrap();
    Embedded::open(options(&dir)).unwrap();
    assert!(!unfinished.exists());
}

#[tokio::test]
async fn with_too_little_room_appends_are_refused_and_outcomes_are_not() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let event = event(&minter, &[&hook]);
    let name = event.deliveries[0].name;
    let store = Embedded::open(options(&dir)).unwrap();
    store.append(vec![event.clone()]).await.unwrap();
    store.close().await.unwrap();
    let store = Embedded::open(Options { min_free_bytes: u64::MAX, ..options(&dir) }).unwrap();
    assert!(matches!(store.accepting(), Err(Error::Full)));
    assert!(matches!(store.append(vec![event]).await, Err(Error::Full)));
    store.record(vec![outcome(&hook, name, Next::Success)]).await.unwrap();
    assert_eq!(store.summary(hook.uid).unwrap().success_count, 1);
}

#[tokio::test]
async fn with_little_room_the_namespace_that_uses_most_is_refused_and_the_other_is_not() {
    let dir = scratch();
    let (minter, [a, b]) = (Minter::default(), [webhook("team-a", 1), webhook("team-b", 2)]);
    let of_b = || NewEvent { namespace: "team-b".into(), ..event(&minter, &[&b]) };
    let store = Embedded::open(options(&dir)).unwrap();
    store.append(vec![event(&minter, &[&a]), event(&minter, &[&a]), event(&minter, &[&a])]).await.unwrap();
    store.append(vec![of_b()]).await.unwrap();
    store.close().await.unwrap();
    // A third of what is free is beyond the limit, so half of what the largest uses is too much.
    let disk = rustix::fs::statvfs(dir.path()).unwrap();
    let least = disk.f_bavail * disk.f_frsize / 3 * 2;
    let store = Embedded::open(Options { min_free_bytes: least, ..options(&dir) }).unwrap();
    store.accepting().unwrap();
    let error = store.append(vec![event(&minter, &[&a])]).await.unwrap_err();
    assert!(matches!(&error, Error::NearlyFull { namespace } if &**namespace == "team-a"), "{error:?}");
    store.append(vec![of_b()]).await.unwrap();
    let mut test = event(&minter, &[&a]);
    test.deliveries[0].test = true;
    store.append(vec![test]).await.unwrap();
}

#[tokio::test]
async fn a_poisoned_store_says_so_to_everybody() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    store.shared.poison(&Error::Poisoned);
    assert!(matches!(store.accepting(), Err(Error::Poisoned)));
    assert!(matches!(store.append(vec![event(&minter, &[&hook])]).await, Err(Error::Poisoned)));
    assert!(matches!(store.record(vec![]).await, Err(Error::Poisoned)));
    assert!(matches!(store.purge(hook.uid).await, Err(Error::Poisoned)));
}

/// What is always there, and that something is to go from the files.
const META: [&[u8]; 3] = [meta::BEFORE, meta::DEBT, meta::FORMAT];

#[tokio::test]
async fn a_purge_leaves_no_key_behind() {
    let dir = scratch();
    let (minter, hooks) = (Minter::default(), [1, 2].map(|number| webhook("team-a", number)));
    let store = Embedded::open(options(&dir)).unwrap();
    for next in [Next::Success, Next::Failed(EndReason::RetriesExhausted), Next::Retry(NOW)] {
        let event = event(&minter, &[&hooks[0], &hooks[1]]);
        let name = event.deliveries[0].name;
        store.append(vec![event]).await.unwrap();
        store.record(vec![outcome(&hooks[0], name, next)]).await.unwrap();
    }
    let mut test = event(&minter, &[&hooks[0]]);
    test.deliveries[0].test = true;
    store.append(vec![test]).await.unwrap();
    for hook in &hooks {
        store.purge(hook.uid).await.unwrap();
    }
    let disk = store.shared.disk().unwrap();
    for keyspace in disk.keyspaces() {
        let left: Vec<_> = keyspace.iter().map(|entry| entry.key().unwrap()).collect();
        let expected: Vec<&[u8]> = if &**keyspace.name() == "meta" { META.to_vec() } else { vec![] };
        assert_eq!(left, expected, "{}", &**keyspace.name());
    }
    assert_eq!(store.metrics().pending_deliveries.get(), 0);
}

#[tokio::test]
async fn a_purge_that_was_interrupted_is_known_and_can_be_made_again() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    store.append((0..600).map(|_| event(&minter, &[&hook])).collect()).await.unwrap();
    let (reply, answer) = tokio::sync::oneshot::channel();
    let step = super::writer::Command::Purge(hook.uid, super::purge::Cursor::default(), reply);
    store.commands.as_ref().unwrap().send(step).await.unwrap();
    assert!(super::arrived(answer).await.unwrap().unwrap().next.is_some(), "more is left");
    store.close().await.unwrap();
    let store = Embedded::open(options(&dir)).unwrap();
    assert_eq!(store.known(), std::slice::from_ref(&hook));
    assert_eq!(store.metrics().pending_deliveries.get(), 0, "nothing waits any more");
    assert_eq!(store.usage("team-a").pending_bytes, 0);
    assert_eq!(store.work().take(), []);
    assert!(!store.shared.disk().unwrap().log.is_empty().unwrap());
    assert!(
        store.query(Query { limit: 10, ..Query::default() }).await.unwrap().deliveries.is_empty(),
        "hidden"
    );
    assert_eq!(store.purge(hook.uid).await.unwrap(), 600, "all that waited, also before it was interrupted");
    assert_eq!(store.metrics().discarded_deliveries.get(), 600);
    assert_eq!(store.known(), []);
    assert!(store.shared.disk().unwrap().log.is_empty().unwrap());
}

#[tokio::test]
async fn a_purge_that_goes_on_leaves_one_that_was_made_anew_alone() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    store.append((0..600).map(|_| event(&minter, &[&hook])).collect()).await.unwrap();
    let step = async |cursor| {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let step = super::writer::Command::Purge(hook.uid, cursor, reply);
        store.commands.as_ref().unwrap().send(step).await.unwrap();
        super::arrived(answer).await.unwrap().unwrap()
    };
    let first = step(super::purge::Cursor::default()).await;
    assert_eq!(store.purge(hook.uid).await.unwrap(), 600);
    store.adopt(Summary::new(hook.clone())).await.unwrap();
    store.append(vec![event(&minter, &[&hook])]).await.unwrap();
    let late = step(first.next.unwrap()).await;
    assert_eq!((late.discarded, late.next.is_none()), (0, true));
    assert_eq!(store.summary(hook.uid).unwrap().pending, 1);
}

#[tokio::test]
async fn a_line_whose_webhook_is_not_known_is_not_shown() {
    let dir = scratch();
    let (minter, hooks) = (Minter::default(), [1, 2].map(|number| webhook("team-a", number)));
    let store = Embedded::open(options(&dir)).unwrap();
    let events = hooks.each_ref().map(|hook| event(&minter, &[hook]));
    let [unknown, known] = events.each_ref().map(|event| event.deliveries[0].name);
    store.append(events.to_vec()).await.unwrap();
    store.shared.hooks.remove(hooks[0].uid);
    assert_eq!(store.delivery(unknown).await.unwrap(), None);
    let page = store.query(Query { limit: 9, ..Query::default() }).await.unwrap();
    assert_eq!(page.deliveries.iter().map(|line| line.name).collect::<Vec<_>>(), [known]);
}

#[tokio::test]
async fn pending_deliveries_are_a_metric_from_the_opening_on() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    store.append(vec![event(&minter, &[&hook]), event(&minter, &[&hook])]).await.unwrap();
    assert_eq!(store.metrics().pending_deliveries.get(), 2);
    store.close().await.unwrap();
    let metrics = Metrics::default();
    let store = Embedded::open(Options { metrics: metrics.clone(), ..options(&dir) }).unwrap();
    assert_eq!(metrics.pending_deliveries.get(), 2);
    let claims = store
        .claim(ClaimRequest {
            webhook: hook.uid,
            now: NOW,
            limit: 1,
            order: Order::LongestDue,
            lease: Duration::from_secs(9),
        })
        .await
        .unwrap();
    let name = claims.deliveries[0].delivery.name;
    store.record(vec![outcome(&hook, name, Next::Failed(EndReason::Expired))]).await.unwrap();
    assert_eq!(metrics.pending_deliveries.get(), 1);
    assert!(metrics.encode().contains("store_commit_duration_seconds_count 1"), "{}", metrics.encode());
}

#[tokio::test]
async fn dedup_keys_are_forgotten_at_once_when_both_generations_are_old() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    let mut now = NOW;
    for round in 0..4_u8 {
        for key in 0..50 {
            let event =
                NewEvent { dedup: Some(DedupKey([key; 16])), accepted_at: now, ..event(&minter, &[&hook]) };
            assert_eq!(store.append(vec![event]).await.unwrap(), [Appended::New], "{round}");
        }
        let disk = store.shared.disk().unwrap();
        let kept: usize = disk.dedup.iter().map(|generation| generation.len().unwrap()).sum();
        assert!(kept <= 100, "{kept}");
        now = now + Duration::from_hours(1);
    }
}

#[tokio::test]
async fn a_clock_that_was_ahead_does_not_keep_dedup_keys_for_long() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    let keyed =
        |key, at| NewEvent { dedup: Some(DedupKey([key; 16])), accepted_at: at, ..event(&minter, &[&hook]) };
    store.append(vec![keyed(1, NOW + Duration::from_hours(1000))]).await.unwrap();
    store.append(vec![keyed(2, NOW)]).await.unwrap();
    store.append(vec![keyed(3, NOW + Duration::from_hours(1))]).await.unwrap();
    let disk = store.shared.disk().unwrap();
    assert_eq!(disk.dedup[1].len().unwrap(), 1, "an hour later the next generation has begun");
}

#[tokio::test]
async fn a_store_that_is_opened_with_another_dedup_window_keeps_to_it_from_then_on() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let open = |minutes| {
        let options = Options { dedup_window: Duration::from_mins(minutes), ..options(&dir) };
        Embedded::open(options).unwrap()
    };
    let at = |minute| NOW + Duration::from_mins(minute);
    let keyed =
        |key, at| NewEvent { dedup: Some(DedupKey([key; 16])), accepted_at: at, ..event(&minter, &[&hook]) };
    let count = |store: &Embedded| -> Vec<usize> {
        store.shared.disk().unwrap().dedup.iter().map(|generation| generation.len().unwrap()).collect()
    };
    let store = open(60);
    store.append(vec![keyed(1, at(0)), keyed(2, at(29))]).await.unwrap();
    store.close().await.unwrap();

    // Shorter: what is older than two minutes is new again, what is younger is not.
    let store = open(2);
    let answers = store.append(vec![keyed(1, at(30)), keyed(2, at(30))]).await.unwrap();
    assert!(matches!(answers[..], [Appended::New, Appended::Duplicate(_)]), "{answers:?}");
    // And the keys go from the disk two windows later, not two hours.
    store.append(vec![keyed(3, at(32))]).await.unwrap();
    assert_eq!(count(&store), [1, 1], "the first two minutes, and the next");
    store.close().await.unwrap();

    // Longer: what is still there counts for an hour from when it came.
    let store = open(60);
    let answers = store.append(vec![keyed(3, at(91)), keyed(2, at(91))]).await.unwrap();
    assert!(matches!(answers[..], [Appended::Duplicate(_), Appended::New]), "{answers:?}");
    let answers = store.append(vec![keyed(3, at(92))]).await.unwrap();
    assert_eq!(answers, [Appended::New]);
}

#[tokio::test]
async fn a_corrupt_log_line_is_left_out_and_harms_no_other() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    let events: Vec<_> = (0..3).map(|_| event(&minter, &[&hook])).collect();
    let names: Vec<_> = events.iter().map(|event| event.deliveries[0].name).collect();
    store.append(events).await.unwrap();
    store.shared.disk().unwrap().log.insert(names[1].as_bytes(), b"\x01nonsense").unwrap();
    store.close().await.unwrap();

    let store = Embedded::open(options(&dir)).unwrap();
    let error = store.delivery(names[1]).await.unwrap_err();
    assert!(error.to_string().contains(&names[1].to_string()), "{error}");
    let page = store.query(Query { limit: 10, ..Query::default() }).await.unwrap();
    assert_eq!(page.deliveries.iter().map(|line| line.name).collect::<Vec<_>>(), [names[2], names[0]]);
    let outcomes = names.iter().map(|name| outcome(&hook, *name, Next::Success)).collect();
    store.record(outcomes).await.unwrap();
    assert_eq!(store.summary(hook.uid).unwrap().success_count, 2);
    store.purge(hook.uid).await.unwrap();
    assert!(store.shared.disk().unwrap().log.is_empty().unwrap());
}

#[tokio::test]
async fn old_journals_go_when_every_keyspace_is_flushed() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    store.append(vec![event(&minter, &[&hook])]).await.unwrap();
    let disk = store.shared.disk().unwrap();
    disk.flush_all().unwrap();
    let flushed = || disk.keyspaces().iter().all(|keyspace| keyspace.table_count() > 0);
    let limit = std::time::Instant::now() + Duration::from_mins(1);
    while !flushed() {
        assert!(std::time::Instant::now() < limit, "not flushed");
        tokio::task::yield_now().await;
    }
    assert!(disk.log.contains_key(TOUCH).unwrap());
    let page = store.query(Query { limit: 10, ..Query::default() }).await.unwrap();
    assert_eq!(page.deliveries.len(), 1, "the keys that mean nothing are not seen");
    let pending = Query { limit: 10, states: vec![State::Pending], ..Query::default() };
    assert_eq!(store.query(pending).await.unwrap().deliveries.len(), 1);
}

#[tokio::test]
async fn an_event_that_is_read_does_not_share_memory_with_the_request() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    let request = Bytes::from(vec![b'x'; 1 << 20]);
    let sent = NewEvent { data: request.slice(100..200), ..event(&minter, &[&hook]) };
    let uid: EventUid = sent.uid;
    store.append(vec![sent]).await.unwrap();
    let claim = ClaimRequest {
        webhook: hook.uid,
        now: NOW,
        limit: 1,
        order: Order::LongestDue,
        lease: Duration::from_secs(9),
    };
    let claims = store.claim(claim).await.unwrap();
    let claimed = &claims.deliveries[0].event;
    assert_eq!((claimed.uid, claimed.data.len()), (uid, 100));
    assert!(!request.as_ptr_range().contains(&claimed.data.as_ptr()));
    assert!(request.is_unique(), "the request's buffer is free");
}

pub(super) fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_all(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[tokio::test]
async fn retention_goes_in_steps_and_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let retention = Retention { max_age: Duration::from_hours(1), max_bytes: u64::MAX };
    let store = Embedded::open(Options { retention, ..options(&dir) }).unwrap();
    let events: Vec<_> = (0..1500).map(|_| event(&minter, &[&hook])).collect();
    let names: Vec<_> = events.iter().map(|event| event.deliveries[0].name).collect();
    store.append(events).await.unwrap();
    let ends = |name: &DeliveryName, at| Outcome { at, ..outcome(&hook, *name, Next::Success) };
    // The third ends late, the fifth never.
    let now = NOW + Duration::from_hours(1);
    let others = names.iter().enumerate().filter(|(place, _)| ![2, 4].contains(place));
    store.record(others.map(|(_, name)| ends(name, NOW)).collect()).await.unwrap();
    store.record(vec![ends(&names[2], now)]).await.unwrap();
    assert_eq!(store.retain(now).await.unwrap(), 1498);
    assert_eq!((store.usage("team-a").deliveries, store.retain(now).await.unwrap()), (2, 0));
    let owner = super::usage::Owner { namespace: "team-a".into(), uid: None };
    assert_eq!(store.shared.hooks.usages().begin_look(&owner), Some(names[2]));
    let later = now + Duration::from_hours(1);
    assert_eq!(store.retain(later).await.unwrap(), 1);
    let disk = store.shared.disk().unwrap();
    assert_eq!((disk.log.len().unwrap(), disk.events.len().unwrap(), disk.index.len().unwrap()), (1, 1, 1));
    let bytes = i64::try_from(store.usage("team-a").bytes).unwrap();
    assert_eq!(store.metrics().store_bytes.get(), bytes);
}

/// Bytes of all files below a directory; some may go meanwhile.
fn size(path: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size(&entry.path()),
        meta => meta.map_or(0, |meta| meta.len()),
    };
    entries.map(size).sum()
}

#[tokio::test]
async fn space_is_given_back_when_much_has_gone() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let retention = Retention { max_age: Duration::from_hours(1), max_bytes: u64::MAX };
    let store = Embedded::open(Options { retention, ..options(&dir) }).unwrap();
    let body = Bytes::from(vec![b'x'; 64 << 10]);
    let mut last = None;
    for _ in 0..24 {
        let events = (0..50).map(|_| NewEvent { data: body.clone(), ..event(&minter, &[&hook]) });
        let events: Vec<_> = events.collect();
        let names: Vec<_> = events.iter().map(|event| event.deliveries[0].name).collect();
        store.append(events).await.unwrap();
        last = names.last().copied();
        let done = names.into_iter().filter(|name| Some(*name) != last);
        store.record(done.map(|name| outcome(&hook, name, Next::Success)).collect()).await.unwrap();
    }
    let files = dir.path().join("store/keyspaces");
    // Memtables are flushed by a thread of the engine, which takes its time on a busy machine.
    let limit = std::time::Instant::now() + Duration::from_mins(1);
    while size(&files) <= 48 << 20 {
        assert!(std::time::Instant::now() < limit, "{} bytes are on disk", size(&files));
        tokio::task::yield_now().await;
    }
    let before = size(&files);
    let gone = store.retain(NOW + Duration::from_hours(2)).await.unwrap();
    assert_eq!(gone, 24 * 49);
    let limit = std::time::Instant::now() + Duration::from_mins(1);
    while size(&files) > before / 4 {
        assert!(std::time::Instant::now() < limit, "{} of {before} bytes are left", size(&files));
        tokio::task::yield_now().await;
    }
    let kept = store.delivery(last.unwrap()).await.unwrap().unwrap();
    assert_eq!(store.event(kept.event).await.unwrap().unwrap().data, body);
}
