//! The store after a crash: a process with a random load is killed at random moments, and what it had
//! acknowledged is looked for.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test: what is unexpected ends it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hookwright::clock::Clock;
use hookwright::model::ids::{DeliveryName, EventUid, Minter, WebhookRef, WebhookUid};
use hookwright::store::embedded::{Embedded, Options};
use hookwright::store::records::{DedupKey, Delivery};
use hookwright::store::{ClaimRequest, Query, State, Store};
use tempfile::TempDir;

use ledger::{Ledger, check_line};

mod ledger;
mod load;

const HOOKS: u8 = 5;
/// Is purged again and again.
const PURGED: u8 = 4;
const DIRECTORY: &str = "STORE_CRASH_DIRECTORY";
const SEED: &str = "STORE_CRASH_SEED";
const LEASE: Duration = Duration::from_mins(1);

/// In memory where the system has a place for that: a killed process leaves the same there.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn options(dir: &Path) -> Options {
    // Small, so that the crashes meet flushes and compactions too.
    Options { memtable_bytes: 128 << 10, min_free_bytes: 0, ..Options::new(dir) }
}

fn webhook(number: u8) -> WebhookRef {
    WebhookRef {
        uid: WebhookUid::from_bytes([number; 16]),
        namespace: format!("team-{}", number % 2).into(),
        name: format!("hook-{number}").into(),
    }
}

/// Any event's body follows from its uid: up to 70 KiB, mostly little.
fn body(uid: EventUid) -> Bytes {
    let bytes = uid.as_bytes();
    let length = match bytes[15] % 8 {
        0 => usize::from(bytes[14]) * 280,
        1 => 0,
        _ => usize::from(bytes[14]) * 4,
    };
    bytes.iter().copied().cycle().take(length).collect::<Vec<_>>().into()
}

/// One key for every 16 events or so.
fn key(seed: u64) -> DedupKey {
    let mut key = [7; 16];
    key[..8].copy_from_slice(&seed.to_be_bytes());
    DedupKey(key)
}

struct Random(AtomicU64);

impl Random {
    fn next(&self, below: u64) -> u64 {
        let step = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut mixed = (step ^ (step >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

/// Is the load, in the process that [`run_and_kill`] started for it.
async fn be_the_load(dir: &str) {
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let store = Embedded::open(options(Path::new(dir))).unwrap();
    let load = load::Load {
        store,
        clock: Clock::system(),
        minter: Minter::default(),
        random: Random(AtomicU64::new(seed)),
    };
    let _ = tokio::time::timeout(Duration::from_secs(20), Arc::new(load).run()).await;
}

/// Runs the load for a while and kills it; what it said.
fn run_and_kill(dir: &Path, seed: u64, after: Duration) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_was_acknowledged_is_there_after_each_of_many_kills"])
        .args(["--nocapture", "--test-threads=1"])
        .env(DIRECTORY, dir)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    while !first.ends_with("ready\n") {
        first.clear();
        if said.read_line(&mut first).unwrap() == 0 {
            let output = child.wait_with_output().unwrap();
            panic!("the load does not start: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        said.read_to_string(&mut text).unwrap();
        text
    });
    std::thread::sleep(after);
    let early = child.try_wait().unwrap();
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let text = reader.join().unwrap();
    assert!(early.is_none(), "the load ended by itself: {}", String::from_utf8_lossy(&output.stderr));
    // The last line may be cut.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(str::to_owned).collect()
}

async fn page_through(store: &Embedded, query: Query) -> Vec<Delivery> {
    let mut query = Query { limit: 200, ..query };
    let mut lines = Vec::new();
    loop {
        let page = store.query(query.clone()).await.unwrap();
        lines.extend(page.deliveries);
        match page.next {
            Some(next) => query.before = Some(next),
            None => return lines,
        }
    }
}

async fn everything(store: &Embedded) -> BTreeMap<DeliveryName, Delivery> {
    page_through(store, Query::default()).await.into_iter().map(|line| (line.name, line)).collect()
}

/// Log, index, queue and numbers say the same. Claims everything.
async fn check_agreement(store: &Embedded) {
    let lines = everything(store).await;
    for state in State::ALL {
        let by_state = page_through(store, Query { states: vec![state], ..Query::default() }).await;
        let expected: Vec<_> = lines.values().rev().filter(|line| line.state == state).cloned().collect();
        assert_eq!(by_state, expected, "{state:?}");
    }
    for reference in store.known() {
        let uid = reference.uid;
        let of_hook: Vec<_> = lines.values().filter(|line| line.webhook.uid == uid && !line.test).collect();
        let waiting: BTreeSet<_> =
            of_hook.iter().filter(|line| !line.state.is_final()).map(|line| line.name).collect();
        let claimed = claim_everything(store, uid).await;
        assert_eq!(claimed, waiting, "what can be claimed is what is not done");
        let summary = store.summary(uid).unwrap();
        let count = |state| of_hook.iter().filter(|line| line.state == state).count() as u64;
        assert_eq!(summary.pending, waiting.len() as u64);
        assert_eq!(summary.success_count, count(State::Success));
        assert_eq!(summary.failure_count, count(State::Failed));
        let mut bytes = 0;
        for line in of_hook.iter().filter(|line| !line.state.is_final()) {
            bytes += body(line.event).len() as u64;
        }
        assert_eq!(summary.pending_bytes, bytes);
    }
}

async fn claim_everything(store: &Embedded, webhook: WebhookUid) -> BTreeSet<DeliveryName> {
    let now = Clock::system().now() + Duration::from_mins(1);
    let mut all = BTreeSet::new();
    loop {
        let request = ClaimRequest { webhook, now, limit: 50, only: None, lease: LEASE };
        let claimed = store.claim(request).await.unwrap().deliveries;
        if claimed.is_empty() {
            return all;
        }
        for claimed in claimed {
            assert_eq!(claimed.event.data, body(claimed.delivery.event));
            assert!(all.insert(claimed.delivery.name), "{} is claimed twice", claimed.delivery.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_each_of_many_kills() {
    if let Ok(dir) = std::env::var(DIRECTORY) {
        return be_the_load(&dir).await;
    }
    let (mut dir, mut ledger) = (scratch(), Ledger::default());
    let mut acknowledged = 0;
    let seed = std::process::id();
    let random = Random(AtomicU64::new(u64::from(seed)));
    for round in 0..24 {
        if round % 6 == 0 {
            acknowledged += ledger.acknowledged;
            (dir, ledger) = (scratch(), Ledger::default());
        }
        let after = Duration::from_millis(random.next(100));
        let lines = run_and_kill(dir.path(), random.next(u64::MAX), after);
        ledger.read(&lines);
        let store = Embedded::open(options(dir.path())).unwrap();
        ledger.check(&store).await;
        // A purge that was cut off has discarded what waited, and is made again.
        store.purge(webhook(PURGED).uid).await.unwrap();
        ledger.deliveries.retain(|_, known| known.hook != PURGED);
        check_agreement(&store).await;
        match round % 2 {
            0 => store.close().await.unwrap(),
            _ => drop(store),
        }
    }
    acknowledged += ledger.acknowledged;
    assert!(acknowledged > 1000, "only {acknowledged} calls were acknowledged (seed {seed})");
}

fn journals(store: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "jnl")).collect()
}

/// Copies a store that nobody has open, but of its journal only the beginning, with zeros behind it or nothing.
fn copy_cut(from: &Path, to: &Path, journal: &[u8], zeros: u64) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_cut(&path, &target, journal, zeros);
        } else if path.extension().is_some_and(|extension| extension == "jnl") {
            fs::write(&target, journal).unwrap();
            let file = fs::File::options().write(true).open(&target).unwrap();
            file.set_len(journal.len() as u64 + zeros).unwrap();
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_is_cut_anywhere_loses_its_tail_and_nothing_else() {
    let dir = scratch();
    // Nothing is flushed yet: everything is in the one journal.
    Embedded::open(Options { memtable_bytes: 64 << 20, ..options(dir.path()) }).unwrap();
    let random = Random(AtomicU64::new(u64::from(std::process::id())));
    let mut ledger = Ledger::default();
    ledger.read(&run_and_kill(dir.path(), random.next(u64::MAX), Duration::from_millis(150)));
    let [journal] = &journals(&dir.path().join("store"))[..] else { panic!("several journals") };
    let mut journal = fs::read(journal).unwrap();
    journal.truncate(journal.iter().rposition(|byte| *byte != 0).unwrap() + 1);

    let mut cuts: Vec<_> =
        (0..12).map(|_| usize::try_from(random.next(journal.len() as u64)).unwrap()).collect();
    cuts.sort_unstable();
    let mut last = 0;
    for (number, cut) in cuts.into_iter().enumerate() {
        let copy = scratch();
        let zeros = if number % 2 == 0 { 0 } else { 1 << 20 };
        copy_cut(dir.path(), copy.path(), &journal[..cut], zeros);
        let store = Embedded::open(options(copy.path())).unwrap();
        let lines = everything(&store).await;
        let lasting = lines.values().filter(|line| line.webhook != webhook(PURGED)).count();
        assert!(lasting >= last, "a later cut has less");
        last = lasting;
        for (name, line) in &lines {
            let mut known = ledger.deliveries[name].clone();
            known.recorded.clear();
            check_line(&known, line);
        }
        store.purge(webhook(PURGED).uid).await.unwrap();
        check_agreement(&store).await;
        store.close().await.unwrap();
    }
    assert!(last > 0, "the cuts were all too early");
}
