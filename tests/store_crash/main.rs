//! The store after a crash: a process with a random load is killed at random moments, and what it had
//! acknowledged is looked for.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test: what is unexpected ends it"
)]

mod boundaries;
mod ledger;
mod load;
mod strace;
mod syncs;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookwright::model::event::Attributes;
use hookwright::model::ids::{DeliveryName, EventUid, Minter, WebhookRef, WebhookUid};
use hookwright::model::time::UnixMillis;
use hookwright::store::embedded::{Embedded, Options};
use hookwright::store::records::DedupKey;
use hookwright::store::{Attempt, Error, NewDelivery, NewEvent, Next, Outcome, Store as _};
use hookwright_harness::scratch::scratch;

use ledger::{Gone, Known, Ledger, check_agreement, check_line, everything};
use load::{Mode, Running, be_the_load, run_and_kill};

const HOOKS: u8 = 5;
/// Is purged again and again.
const PURGED: u8 = 4;
const DIRECTORY: &str = "STORE_CRASH_DIRECTORY";
const SEED: &str = "STORE_CRASH_SEED";
const MODE: &str = "STORE_CRASH_MODE";
const LEASE: Duration = Duration::from_mins(1);

fn options(dir: &Path) -> Options {
    // Small, so that the crashes meet flushes and compactions too.
    Options { memtable_bytes: 128 << 10, min_free_bytes: 0, ..Options::new(dir) }
}

/// Opens a store that nobody uses any more. Processes that other tests are just starting hold what this one has open,
/// the lock too, for the moment until they are programs of their own.
fn open(options: &Options) -> Arc<Embedded> {
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        match Embedded::open(options.clone()) {
            Err(Error::Unusable(sentence))
                if sentence.contains("another process") && Instant::now() < limit =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            opened => return opened.unwrap(),
        }
    }
}

fn webhook(number: u8) -> WebhookRef {
    WebhookRef {
        uid: WebhookUid::from_bytes([number; 16]),
        namespace: "team".into(),
        name: format!("hook-{number}").into(),
    }
}

/// Of any event's body: up to 70 KiB, mostly little.
fn size(uid: EventUid) -> usize {
    let bytes = uid.as_bytes();
    match bytes[15] % 8 {
        0 => usize::from(bytes[14]) * 280,
        1 => 0,
        _ => usize::from(bytes[14]) * 4,
    }
}

/// Any event's body follows from its uid, and cannot be compressed.
fn body(uid: EventUid) -> Bytes {
    let mut word = u64::from_be_bytes(uid.as_bytes()[8..].try_into().unwrap()) | 1;
    let mut body = Vec::with_capacity(size(uid) + 8);
    while body.len() < size(uid) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        body.extend_from_slice(&word.to_be_bytes());
    }
    body.truncate(size(uid));
    body.into()
}

/// One key for every 16 events or so.
fn key(seed: u64) -> DedupKey {
    let mut key = [7; 16];
    key[..8].copy_from_slice(&seed.to_be_bytes());
    DedupKey(key)
}

struct Random(AtomicU64);

impl Random {
    /// The same in every run, so that a failure can be repeated as far as it depends on it; another with the
    /// environment variable `STORE_CRASH_SEED`.
    fn seeded() -> Self {
        let seed = std::env::var(SEED).map_or(20_261_125, |seed| seed.parse().unwrap());
        eprintln!("{SEED}={seed}");
        Self(AtomicU64::new(seed))
    }

    fn next(&self, below: u64) -> u64 {
        let step = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut mixed = (step ^ (step >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

fn event(minter: &Minter, now: UnixMillis, hooks: &[u8], test: bool) -> NewEvent {
    event_with(minter.event(now), minter, now, hooks, test)
}

fn event_with(uid: EventUid, minter: &Minter, now: UnixMillis, hooks: &[u8], test: bool) -> NewEvent {
    NewEvent {
        uid,
        namespace: "team".into(),
        attributes: Arc::new(Attributes {
            id: uid.to_string().into(),
            source: "/crash".into(),
            event_type: "order.created".into(),
            data_content_type: None,
            data_schema: None,
            subject: None,
            time: None,
            extensions: vec![],
        }),
        data: body(uid),
        accepted_at: now,
        dedup: None,
        deliveries: hooks
            .iter()
            .map(|hook| NewDelivery { name: minter.delivery(now), webhook: webhook(*hook), test })
            .collect(),
    }
}

fn outcome(now: UnixMillis, webhook: WebhookUid, name: DeliveryName, next: Next) -> Outcome {
    let attempt = Attempt {
        at: now,
        duration: Duration::from_millis(3),
        status: Some(if next == Next::Success { 200 } else { 503 }),
        body: Some("x".repeat(usize::from(name.as_bytes()[15]) * 2)),
        content_type: None,
        body_length: 0,
        error: None,
        asked_by: None,
        probe: false,
        retry_after: None,
    };
    Outcome { name, webhook, attempt: Some(attempt), next, disable: None, failing: None, at: now }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_each_of_many_kills() {
    if let Ok(dir) = std::env::var(DIRECTORY) {
        return be_the_load(&dir).await;
    }
    let (mut dir, mut ledger) = (scratch(), Ledger::default());
    let (mut acknowledged, mut redeliveries) = (0, 0);
    let random = Random::seeded();
    for round in 0..24 {
        if round % 6 == 0 {
            acknowledged += ledger.acknowledged;
            redeliveries += ledger.redeliveries;
            (dir, ledger) = (scratch(), Ledger::default());
        }
        let calls = random.next(400);
        let lines = run_and_kill(Mode::AtOnce, dir.path(), random.next(u64::MAX), calls);
        ledger.read(&lines);
        let store = open(&options(dir.path()));
        ledger.check(&store).await;
        // A purge that was cut off has discarded what waited, and is made again.
        store.purge(webhook(PURGED).uid).await.unwrap();
        ledger.deliveries.retain(|_, known| known.hook != PURGED);
        check_agreement(&store, Gone::Nothing).await;
        match round % 2 {
            0 => store.close().await.unwrap(),
            _ => drop(store),
        }
    }
    acknowledged += ledger.acknowledged;
    redeliveries += ledger.redeliveries;
    assert!(redeliveries > 20, "only {redeliveries} redeliveries were acknowledged");
    assert!(acknowledged > 1000, "only {acknowledged} calls were acknowledged");
}

fn journals(store: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "jnl")).collect()
}

/// The tables of all keyspaces, but the engine's own one, which has their names.
fn tables(store: &Path) -> Vec<PathBuf> {
    let inside = |folder: PathBuf| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let keyspaces: Vec<_> =
        inside(store.join("keyspaces")).filter(|keyspace| !keyspace.ends_with("0")).collect();
    assert!(keyspaces.len() > 5, "{keyspaces:?}");
    keyspaces.iter().flat_map(|keyspace| inside(keyspace.join("tables"))).collect()
}

/// Copies a store, with what `file` makes of each of its files.
fn copy(from: &Path, to: &Path, file: &dyn Fn(&Path, &Path)) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target, file);
        } else {
            file(&path, &target);
        }
    }
}

fn as_it_is(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
}

/// Copies a store that nobody has open, but of its journal only the beginning, with zeros behind it or nothing.
fn copy_cut(from: &Path, to: &Path, journal: &[u8], zeros: u64) {
    copy(from, to, &|from, to| {
        as_it_is(from, to);
        if from.extension().is_some_and(|extension| extension == "jnl") {
            fs::write(to, journal).unwrap();
            let file = fs::File::options().write(true).open(to).unwrap();
            file.set_len(journal.len() as u64 + zeros).unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_taken_at_any_moment_has_what_was_acknowledged_until_then() {
    let random = Random::seeded();
    let (dir, mut copies) = (scratch(), Vec::new());
    let mut running = Running::start(Mode::AtOnce, dir.path(), random.next(u64::MAX));
    for _ in 0..10 {
        running.go_on(random.next(250));
        running.signal("STOP");
        while !running.has_stopped() {
            std::thread::yield_now();
        }
        let taken = scratch();
        copy(dir.path(), taken.path(), &as_it_is);
        copies.push((taken, running.lines()));
        running.signal("CONT");
    }
    drop(running);
    let mut acknowledged = 0;
    for (taken, lines) in copies {
        let mut ledger = Ledger::default();
        ledger.read(&lines);
        let store = open(&options(taken.path()));
        ledger.check(&store).await;
        acknowledged = ledger.acknowledged;
        store.purge(webhook(PURGED).uid).await.unwrap();
        check_agreement(&store, Gone::Nothing).await;
        store.close().await.unwrap();
    }
    assert!(acknowledged > 300, "only {acknowledged} calls were acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_is_cut_anywhere_loses_its_tail_and_nothing_else() {
    let dir = scratch();
    let random = Random::seeded();
    let mut ledger = Ledger::default();
    ledger.read(&run_and_kill(Mode::Unflushed, dir.path(), random.next(u64::MAX), 1000));
    assert_eq!(tables(&dir.path().join("store")), Vec::<PathBuf>::new(), "everything is in the journal");
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
        let store = open(&options(copy.path()));
        let lines = everything(&store).await;
        let lasting = lines.values().filter(|line| line.webhook != webhook(PURGED)).count();
        assert!(lasting >= last, "a later cut has less");
        last = lasting;
        for (name, line) in &lines {
            let known = Known { recorded: vec![], queued: None, ..ledger.deliveries[name].clone() };
            check_line(&known, line);
        }
        store.purge(webhook(PURGED).uid).await.unwrap();
        check_agreement(&store, Gone::Nothing).await;
        store.close().await.unwrap();
    }
    assert!(last > 0, "the cuts were all too early");
}
