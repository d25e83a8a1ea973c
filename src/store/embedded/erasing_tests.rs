//! Erased means erased: its bytes are in no file.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fjall::AbstractTree as _;
use hookwright_harness::scratch::scratch;
use tempfile::TempDir;

use super::damage_tests::noise;
use super::tests::{NOW, copy_all, event, options, outcome};
use super::{Embedded, Options};
use crate::model::ids::{DeliveryName, Minter, WebhookRef};
use crate::store::behaviour::webhook;
use crate::store::records::{Attempt, Expunge};
use crate::store::{EndReason, NewEvent, Next, Store as _};

const BODY: &str = "the-body-0x9c1e4f7ab3";
const SMALL: &str = "small-0x51d2e6c8";
const ANSWER: &str = "Zq7Wk9Vx3Ry5Bn1Gt8";
const ID: &str = "the-id-0x2b90ce";
const NAME: &str = "the-hook-0xd41f";

/// Where a text stands.
pub(crate) fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_with(&path, text));
        } else {
            let bytes = fs::read(&path).unwrap();
            let first = text.as_bytes()[0];
            let is_there =
                (0..bytes.len()).any(|at| bytes[at] == first && bytes[at..].starts_with(text.as_bytes()));
            files.extend(is_there.then(|| path.display().to_string()));
        }
    }
    files
}

fn attempt(body: &str) -> Attempt {
    Attempt {
        at: NOW,
        duration: Duration::from_millis(3),
        status: Some(500),
        body: Some(body.to_owned()),
        content_type: None,
        body_length: body.len() as u64,
        error: None,
        asked_by: None,
        probe: false,
        retry_after: None,
    }
}

/// Publishes an event that fails, with an answer.
async fn publish(
    store: &Embedded,
    minter: &Minter,
    hook: &WebhookRef,
    body: &[u8],
    answer: &str,
) -> DeliveryName {
    let one = event(minter, &[hook]);
    let name = one.deliveries[0].name;
    store.append(vec![NewEvent { data: body.to_vec().into(), ..one }]).await.unwrap();
    let next = Next::Failed(EndReason::RetriesExhausted);
    let failed = crate::store::Outcome { attempt: Some(attempt(answer)), ..outcome(hook, name, next) };
    store.record(vec![failed]).await.unwrap();
    name
}

fn body(minter: &Minter, length: usize, canary: &str) -> Vec<u8> {
    [&*noise(minter.event(NOW), length), canary.as_bytes(), &*noise(minter.event(NOW), 80)].concat()
}

/// A store in which some is to be erased, and some stays.
struct Case {
    dir: TempDir,
    store: Arc<Embedded>,
    stays: Vec<(DeliveryName, Vec<u8>)>,
}

impl Case {
    async fn new() -> Self {
        let (dir, minter) = (scratch(), Minter::default());
        let store = Embedded::open(Options { memtable_bytes: 1 << 20, ..options(&dir) }).unwrap();
        let hook = webhook("team-a", 1);
        let purged = WebhookRef { name: NAME.into(), ..webhook("team-a", 2) };
        let mut stays = Vec::new();
        let stay = async |stays: &mut Vec<_>, count: u8| {
            for _ in 0..count {
                let body = body(&minter, 2000, "stays");
                stays.push((publish(&store, &minter, &hook, &body, "an answer").await, body));
            }
        };
        stay(&mut stays, 20).await;
        let large = publish(&store, &minter, &hook, &body(&minter, 3000, BODY), ANSWER).await;
        let small = publish(&store, &minter, &hook, SMALL.as_bytes(), "no").await;
        publish(&store, &minter, &purged, &body(&minter, 900, BODY), ANSWER).await;
        let with_id = event(&minter, &[&purged]);
        let attributes = crate::model::event::Attributes { id: ID.into(), ..(*with_id.attributes).clone() };
        store.append(vec![NewEvent { attributes: attributes.into(), ..with_id }]).await.unwrap();
        stay(&mut stays, 20).await;
        // In tables and files of bodies, too.
        store.shared.disk().unwrap().flush_and_wait().unwrap();
        stay(&mut stays, 3).await;
        assert!(!store.owes_erasure());
        for name in [large, small] {
            let expunge = Expunge { name, namespace: "team-a".into(), by: "jane".into(), at: NOW };
            store.expunge(expunge).await.unwrap();
        }
        store.purge(purged.uid).await.unwrap();
        assert!(store.owes_erasure());
        stay(&mut stays, 3).await;
        Self { dir, store, stays }
    }

    fn canaries(&self) -> Vec<(&'static str, Vec<String>)> {
        let all = [BODY, SMALL, ANSWER, ID, NAME];
        all.into_iter().map(|text| (text, files_with(self.dir.path(), text))).collect()
    }

    async fn check(&self) {
        for (text, files) in self.canaries() {
            assert_eq!(files, Vec::<String>::new(), "{text}");
        }
        assert!(!self.store.owes_erasure());
        for (name, body) in &self.stays {
            let line = self.store.delivery(*name).await.unwrap().unwrap();
            let event = self.store.event(line.event).await.unwrap().unwrap();
            assert!(event.data == *body, "{name}");
            assert_eq!(line.attempts[0].body.as_deref(), Some("an answer"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_expunged_or_purged_goes_from_all_files() {
    let case = Case::new().await;
    for (text, files) in case.canaries() {
        assert!(!files.is_empty(), "{text} stands nowhere: the test shows nothing");
    }
    for text in [BODY, SMALL, ANSWER] {
        let files = files_with(&case.dir.path().join("store/keyspaces"), text);
        assert!(!files.is_empty(), "{text} is in journals only: the test shows little");
    }
    case.store.erase().await.unwrap();
    case.check().await;
    let journals = fs::read_dir(case.dir.path().join("store")).unwrap();
    assert_eq!(journals.filter(|entry| entry.as_ref().unwrap().path().extension().is_some()).count(), 1);
    case.store.close().await.unwrap();
    // And it all opens again.
    let store = Embedded::open(options(&case.dir)).unwrap();
    assert!(!store.owes_erasure());
    let case = Case { store, ..case };
    case.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_is_known_after_a_kill_at_any_step_and_is_paid_then() {
    let case = Case::new().await;
    let after_kill = async || {
        let dir = scratch();
        copy_all(case.dir.path(), dir.path());
        let store = Embedded::open(options(&dir)).unwrap();
        assert!(store.owes_erasure());
        store.erase().await.unwrap();
        Case { dir, store, stays: case.stays.clone() }.check().await;
    };
    after_kill().await;
    let disk = case.store.shared.disk().unwrap();
    disk.rewrite_trees().unwrap();
    after_kill().await;
    let holed = disk.holed();
    assert!(!holed.is_empty(), "what was expunged stands among what stays");
    for file in holed {
        case.store.move_events(file).await.unwrap();
    }
    after_kill().await;
    disk.rewrite_events().unwrap();
    after_kill().await;
    disk.renew_journals().unwrap();
    after_kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_while_others_are_is_owed_on() {
    let case = Case::new().await;
    let count = case.store.shared.debt.count();
    let (name, _) = case.stays[0];
    let expunge = Expunge { name, namespace: "team-a".into(), by: "jane".into(), at: NOW };
    case.store.expunge(expunge).await.unwrap();
    let paid = case.store.ask(|reply| super::Command::Erased(count, reply));
    paid.await.unwrap();
    assert!(case.store.owes_erasure());
    case.store.close().await.unwrap();
    assert!(Embedded::open(options(&case.dir)).unwrap().owes_erasure());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_to_rewrite_nothing_is_and_it_stays_owed() {
    let case = Case::new().await;
    case.store.close().await.unwrap();
    let full = Options { min_free_bytes: u64::MAX, ..options(&case.dir) };
    let store = Embedded::open(full).unwrap();
    let tables = || fs::read_dir(case.dir.path().join("store/keyspaces/3/tables")).unwrap().count();
    let before = tables();
    let error = crate::model::causes::chain(&store.erase().await.unwrap_err());
    assert!(error.contains("bytes, ") && error.contains("enlarge the volume"), "{error}");
    assert!(store.owes_erasure());
    assert_eq!(tables(), before);
    store.close().await.unwrap();
    let store = Embedded::open(options(&case.dir)).unwrap();
    store.erase().await.unwrap();
    Case { store, ..case }.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_goes_on_while_a_tree_is_rewritten() {
    let (dir, minter, hook) = (scratch(), Minter::default(), webhook("team-a", 1));
    let store = Embedded::open(Options { memtable_bytes: 256 << 10, ..options(&dir) }).unwrap();
    let runtime = tokio::runtime::Handle::current();
    let publish = || {
        let publish = async {
            for _ in 0..100 {
                let one = event(&minter, &[&hook]);
                let data = body(&minter, 32 << 10, "x").into();
                store.append(vec![NewEvent { data, ..one }]).await.unwrap();
            }
        };
        tokio::task::block_in_place(|| {
            runtime.block_on(tokio::time::timeout(Duration::from_mins(1), publish))
        })
    };
    {
        let disk = store.shared.disk().unwrap();
        // The engine's thread waits, as for a tree that is being rewritten: this keyspace is not written to otherwise.
        let _busy = disk.dedup[1].tree.get_flush_lock();
        disk.dedup[1].insert("x", "").unwrap();
        disk.dedup[1].rotate_memtable().unwrap();
        disk.flushing(publish).unwrap().unwrap();
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_files_that_are_rewritten() {
    let dir = scratch();
    let store = Embedded::open(options(&dir)).unwrap();
    let (began, begins) = tokio::sync::oneshot::channel();
    let (end, ends) = std::sync::mpsc::channel::<()>();
    let rewriter = Arc::clone(&store);
    let rewriting = tokio_util::task::TaskTracker::new().spawn(async move {
        let work = move |_: &super::Disk| {
            began.send(()).unwrap();
            ends.recv().unwrap();
            Ok(())
        };
        rewriter.rewrite(work).await
    });
    begins.await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), store.close()).await.unwrap().unwrap();
    assert!(Embedded::open(options(&dir)).is_err(), "its files are still written");
    end.send(()).unwrap();
    rewriting.await.unwrap().unwrap();
    Embedded::open(options(&dir)).unwrap().close().await.unwrap();
}
