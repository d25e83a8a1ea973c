//! The store on a disk that is full, or fails: a small file system of its own, a limit on the size of files, and syncs
//! that fail.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test: what is unexpected ends it"
)]

#[path = "store_crash/strace.rs"]
mod strace;

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookwright::clock::Clock;
use hookwright::model::event::Attributes;
use hookwright::model::ids::{DeliveryName, EventUid, Minter, WebhookRef, WebhookUid};
use hookwright::store::embedded::{Embedded, Options};
use hookwright::store::records::Retention;
use hookwright::store::{
    ClaimRequest, Error, NewDelivery, NewEvent, Next, Order, Outcome, Page, Query, State, Store,
};
use hookwright_harness::scratch::scratch;

const DIRECTORY: &str = "STORE_FULL_DIRECTORY";
/// Takes room on a small disk, until it is taken away.
const BALLAST: &str = "ballast";
const LEASE: Duration = Duration::from_mins(1);
const MIB: u64 = 1 << 20;

fn options(dir: &Path) -> Options {
    Options { memtable_bytes: 512 << 10, min_free_bytes: 0, ..Options::new(dir) }
}

fn webhook(namespace: &str) -> WebhookRef {
    let uid = WebhookUid::from_bytes([namespace.as_bytes()[0]; 16]);
    WebhookRef { uid, namespace: namespace.into(), name: "orders".into() }
}

/// Any event's body follows from its uid.
fn body(uid: EventUid) -> Bytes {
    let seed = uid.as_bytes();
    let noise = (0..64_u64).flat_map(|word| {
        let low = u64::from_be_bytes(seed[8..].try_into().unwrap());
        (low ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_be_bytes()
    });
    noise.collect::<Vec<_>>().repeat(8).into()
}

fn events(minter: &Minter, hook: &WebhookRef, count: usize) -> Vec<NewEvent> {
    let now = Clock::system().now();
    let event = |_| {
        let uid = minter.event(now);
        NewEvent {
            uid,
            namespace: Arc::clone(&hook.namespace),
            attributes: Arc::new(Attributes {
                id: uid.to_string().into(),
                source: "/full".into(),
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
            deliveries: vec![NewDelivery { name: minter.delivery(now), webhook: hook.clone(), test: false }],
        }
    };
    (0..count).map(event).collect()
}

async fn claim(store: &Embedded, hook: &WebhookRef, limit: usize) -> Vec<DeliveryName> {
    let now = Clock::system().now();
    let request = ClaimRequest { webhook: hook.uid, now, limit, order: Order::LongestDue, lease: LEASE };
    let claims = store.claim(request).await.unwrap().deliveries;
    for claimed in &claims {
        assert_eq!(claimed.event.data, body(claimed.event.uid));
    }
    claims.into_iter().map(|claimed| claimed.delivery.name).collect()
}

async fn succeed(store: &Embedded, hook: &WebhookRef, names: &[DeliveryName]) -> Result<(), Error> {
    let at = Clock::system().now();
    let outcome = |name: &DeliveryName| Outcome {
        name: *name,
        webhook: hook.uid,
        attempt: None,
        next: Next::Success,
        disable: None,
        failing: None,
        at,
    };
    store.record(names.iter().map(outcome).collect()).await
}

/// What was said about each delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// It may be there.
    Appending,
    Appended,
    /// It may be done.
    Recording,
    Recorded,
}

type Ledger = BTreeMap<DeliveryName, Said>;

/// Grows a file until the disk has no more.
fn fill(ballast: &Path) {
    let mut file = fs::File::options().append(true).open(ballast).unwrap();
    let block = vec![1; 64 << 10];
    let mut bytes = &block[..];
    // Whole pages, then what is left of the last one.
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => bytes = &bytes[..bytes.len() / 2],
            Err(error) => panic!("{error}"),
        }
    }
}

/// Publishes and delivers until the disk fails.
async fn until_it_fails(dir: &Path) -> Ledger {
    let (minter, hook, mut ledger) = (Minter::default(), webhook("team"), Ledger::new());
    let store = Embedded::open(options(dir)).unwrap();
    for round in 0.. {
        assert!(round < 10_000, "the disk has no end");
        let events = events(&minter, &hook, 20);
        let names: Vec<_> = events.iter().map(|event| event.deliveries[0].name).collect();
        ledger.extend(names.iter().map(|name| (*name, Said::Appending)));
        match store.append(events).await {
            Ok(_) => ledger.extend(names.iter().map(|name| (*name, Said::Appended))),
            Err(Error::Full) => {
                // It has looked before it wrote anything: what waits has its room. So take that.
                ledger.retain(|name, _| !names.contains(name));
                fill(&dir.join(BALLAST));
            }
            Err(_) => break,
        }
        let claimed = claim(&store, &hook, 10).await;
        ledger.extend(claimed.iter().map(|name| (*name, Said::Recording)));
        if succeed(&store, &hook, &claimed).await.is_err() {
            break;
        }
        ledger.extend(claimed.iter().map(|name| (*name, Said::Recorded)));
    }
    // From now on it says that it does not write, and serves what it has.
    assert!(matches!(store.accepting(), Err(Error::Poisoned)), "{:?}", store.accepting());
    assert!(matches!(store.append(events(&minter, &hook, 1)).await, Err(Error::Poisoned)));
    assert!(matches!(succeed(&store, &hook, &[]).await, Err(Error::Poisoned)));
    check(&store, &ledger).await;
    drop(store);
    ledger
}

async fn everything(store: &Embedded) -> BTreeMap<DeliveryName, State> {
    let (mut query, mut lines) = (Query { limit: 500, ..Query::default() }, BTreeMap::new());
    loop {
        let Page { deliveries, next } = store.query(query.clone()).await.unwrap();
        for line in deliveries {
            let event = store.event(line.event).await.unwrap().unwrap();
            assert_eq!(event.data, body(line.event), "{} has half of its event", line.name);
            lines.insert(line.name, line.state);
        }
        if next.is_none() {
            return lines;
        }
        query.before = next;
    }
}

/// Everything acknowledged is there, and nothing is that was not asked for.
async fn check(store: &Embedded, ledger: &Ledger) {
    let lines = everything(store).await;
    assert!(lines.keys().all(|name| ledger.contains_key(name)), "something is invented");
    for (name, said) in ledger {
        let expected: &[Option<State>] = match said {
            Said::Appending => &[None, Some(State::Pending)],
            Said::Appended => &[Some(State::Pending)],
            Said::Recording => &[Some(State::Pending), Some(State::Success)],
            Said::Recorded => &[Some(State::Success)],
        };
        let state = lines.get(name).copied();
        assert!(expected.contains(&state), "{name}: {said:?}, and is {state:?}");
    }
    // The last call is there as a whole or not at all.
    let appending = ledger.iter().filter(|(_, said)| **said == Said::Appending);
    let there = appending.clone().filter(|(name, _)| lines.contains_key(name)).count();
    assert!(there == 0 || there == appending.count(), "{there} of the last call");
}

/// Once there is room again, everything is there, and goes on.
async fn check_healed(dir: &Path, ledger: &Ledger) {
    let (minter, hook) = (Minter::default(), webhook("team"));
    let store = Embedded::open(options(dir)).unwrap();
    check(&store, ledger).await;
    store.append(events(&minter, &hook, 20)).await.unwrap();
    let lines = everything(&store).await;
    let waiting: Vec<_> =
        lines.iter().filter(|(_, state)| **state == State::Pending).map(|(name, _)| *name).collect();
    let mut claimed = claim(&store, &hook, usize::MAX).await;
    claimed.sort_unstable();
    assert_eq!(claimed, waiting, "what can be claimed is what is not done");
    succeed(&store, &hook, &claimed).await.unwrap();
    assert!(everything(&store).await.values().all(|state| *state == State::Success));
    assert_eq!(store.summary(hook.uid).unwrap().success_count, lines.len() as u64);
    store.close().await.unwrap();
}

/// Runs a test of this file anew, in a process that a shell has prepared.
fn in_a_shell(mut shell: Command, prepare: &str, test: &str, dir: &Path) {
    let script = format!("{prepare}; exec \"$0\" --exact {test} --nocapture --test-threads=1");
    succeeds(shell.arg("-ec").arg(script).arg(std::env::current_exe().unwrap()).env(DIRECTORY, dir));
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A shell with mounts of its own. Some sandboxes forbid that, root or not: then what needs a small disk cannot be
/// tried there, and says so.
fn with_own_mounts(test: &str) -> Option<Command> {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh"]);
        command
    };
    let tried = unshare().args(["-ec", "mount -t tmpfs none /mnt"]).output();
    if tried.as_ref().is_ok_and(|output| output.status.success()) {
        return Some(unshare());
    }
    eprintln!("NOT TRIED: {test}: `unshare` with a mount is not allowed here: {tried:?}");
    None
}

/// Runs a test of this file anew, on a file system of so many MiB.
fn on_a_small_disk(mib: u64, test: &str) {
    let Some(shell) = with_own_mounts(test) else { return };
    let dir = scratch();
    in_a_shell(shell, &format!("mount -t tmpfs -o size={mib}m none \"${DIRECTORY}\""), test, dir.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_and_room_heals_it() {
    let Ok(dir) = std::env::var(DIRECTORY) else {
        return on_a_small_disk(40, "a_full_disk_loses_nothing_and_room_heals_it");
    };
    let dir = Path::new(&dir);
    let ballast = dir.join(BALLAST);
    fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    let ledger = until_it_fails(dir).await;
    assert!(ledger.len() > 1000, "only {}", ledger.len());
    // It may open or say why not, but nothing is lost by trying.
    if let Ok(store) = Embedded::open(options(dir)) {
        check(&store, &ledger).await;
        drop(store);
    }
    fs::remove_file(ballast).unwrap();
    check_healed(dir, &ledger).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_loses_nothing_and_a_restart_heals_it() {
    if let Ok(dir) = std::env::var(DIRECTORY) {
        return until_it_fails_and_tells(Path::new(&dir)).await;
    }
    let dir = scratch();
    // The engine makes its journal larger than the limit, and empty.
    drop(Embedded::open(options(dir.path())).unwrap());
    // A write beyond the limit fails, and does not kill.
    let prepare = "trap '' XFSZ; ulimit -f 6000";
    in_a_shell(
        Command::new("bash"),
        prepare,
        "a_write_that_fails_loses_nothing_and_a_restart_heals_it",
        dir.path(),
    );
    let ledger = told(dir.path());
    assert!(ledger.len() > 100, "only {}", ledger.len());
    check_healed(dir.path(), &ledger).await;
}

/// Leaves the ledger to the process that has begun this one.
async fn until_it_fails_and_tells(dir: &Path) {
    let ledger = until_it_fails(dir).await;
    let line = |(name, said): (&DeliveryName, &Said)| format!("{name} {said:?}\n");
    fs::write(dir.join("ledger"), ledger.iter().map(line).collect::<String>()).unwrap();
}

fn told(dir: &Path) -> Ledger {
    let mut ledger = Ledger::new();
    for line in fs::read_to_string(dir.join("ledger")).unwrap().lines() {
        let (name, said) = line.split_once(' ').unwrap();
        let all = [Said::Appending, Said::Appended, Said::Recording, Said::Recorded];
        let said = all.into_iter().find(|known| format!("{known:?}") == said).unwrap();
        ledger.insert(name.parse().unwrap(), said);
    }
    ledger
}

/// One that fails, and only one: the next would succeed, and say nothing of what the disk has dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_loses_nothing_and_a_restart_heals_it() {
    const TEST: &str = "a_sync_that_fails_loses_nothing_and_a_restart_heals_it";
    if let Ok(dir) = std::env::var(DIRECTORY) {
        return until_it_fails_and_tells(Path::new(&dir)).await;
    }
    // That of a commit, then one of a flush.
    for (call, when) in [("fdatasync", 40), ("fsync", 20)] {
        let Some(mut program) = strace::strace(TEST) else { return };
        let dir = scratch();
        drop(Embedded::open(options(dir.path())).unwrap());
        program.args(["-o", "/dev/null", "-e", &format!("trace={call}")]);
        program.args(["-e", &format!("inject={call}:error=EIO:when={when}")]);
        program.arg(std::env::current_exe().unwrap()).args([
            "--exact",
            TEST,
            "--nocapture",
            "--test-threads=1",
        ]);
        succeeds(program.env(DIRECTORY, dir.path()));
        let ledger = told(dir.path());
        assert!(ledger.len() > 100, "only {}", ledger.len());
        check_healed(dir.path(), &ledger).await;
    }
}

/// Appends until it is refused.
async fn publish(store: &Embedded, minter: &Minter, hook: &WebhookRef) -> (usize, Error) {
    for round in 0..10_000 {
        if let Err(error) = store.append(events(minter, hook, 60)).await {
            return (round * 60, error);
        }
        // Who is taken is asked once a second.
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    panic!("the disk has no end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_disk_is_full_the_largest_are_refused_then_all_and_outcomes_have_room() {
    let Ok(dir) = std::env::var(DIRECTORY) else {
        let test = "before_the_disk_is_full_the_largest_are_refused_then_all_and_outcomes_have_room";
        return on_a_small_disk(96, test);
    };
    let retention = Retention { max_age: Duration::from_hours(1), max_bytes: u64::MAX };
    let options = Options { min_free_bytes: 24 * MIB, retention, ..options(Path::new(&dir)) };
    let store = Embedded::open(options).unwrap();
    let (minter, large, small) = (Minter::default(), webhook("large"), webhook("small"));
    store.append(events(&minter, &small, 20)).await.unwrap();
    let (first, error) = publish(&store, &minter, &large).await;
    assert!(
        matches!(&error, Error::NearlyFull { namespace } if **namespace == *large.namespace),
        "{error:?}"
    );
    store.append(events(&minter, &small, 20)).await.unwrap();
    let (second, error) = publish(&store, &minter, &small).await;
    assert!(matches!(error, Error::Full | Error::NearlyFull { .. }), "{error:?}");
    assert!(first > second, "{first} {second}");

    let mut done = 0;
    for hook in [&large, &small] {
        loop {
            let claimed = claim(&store, hook, 100).await;
            if claimed.is_empty() {
                break;
            }
            succeed(&store, hook, &claimed).await.unwrap();
            done += claimed.len();
        }
    }
    assert_eq!(done, first + second + 40);
    // What is done can go, and then there is room again.
    let later = Clock::system().now() + Duration::from_hours(2);
    assert_eq!(store.retain(later).await.unwrap(), done as u64);
    let limit = Instant::now() + Duration::from_mins(1);
    while store.append(events(&minter, &large, 1)).await.is_err() {
        assert!(Instant::now() < limit, "retention gives no room back");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    store.close().await.unwrap();
}
