//! The store after a crash: a process with a random load is killed at random moments, and what it had
//! acknowledged is looked for.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test: what is unexpected ends it"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hookwright::clock::Clock;
use hookwright::model::event::Attributes;
use hookwright::model::ids::{DeliveryName, EventUid, Minter, WebhookRef, WebhookUid};
use hookwright::model::time::UnixMillis;
use hookwright::store::embedded::{Embedded, Options};
use hookwright::store::records::{DedupKey, Delivery, Redelivered, Redelivery};
use hookwright::store::{
    Appended, Attempt, ClaimRequest, EndReason, NewDelivery, NewEvent, Next, Outcome, Query, State, Store,
};
use tempfile::{NamedTempFile, TempDir};

const HOOKS: u8 = 5;
/// Is purged again and again.
const PURGED: u8 = 4;
const DIRECTORY: &str = "STORE_CRASH_DIRECTORY";
const SEED: &str = "STORE_CRASH_SEED";
const MEMTABLE: &str = "STORE_CRASH_MEMTABLE";
/// Small, so that the crashes meet flushes and compactions too.
const SMALL: u64 = 128 << 10;
/// More than a load writes: nothing is flushed, everything is in the one journal.
const LARGE: u64 = 64 << 20;
const LEASE: Duration = Duration::from_mins(1);

/// In memory where the system has a place for that: a killed process leaves the same there.
fn scratch() -> TempDir {
    // A container has 64 MiB there, which is not enough.
    let is_roomy = |stat: rustix::fs::StatVfs| stat.f_bavail.saturating_mul(stat.f_frsize) >= 1 << 30;
    let memory = Path::new("/dev/shm");
    let place = rustix::fs::statvfs(memory).is_ok_and(is_roomy).then_some(memory);
    place.and_then(|place| tempfile::tempdir_in(place).ok()).unwrap_or_else(|| tempfile::tempdir().unwrap())
}

fn options(dir: &Path) -> Options {
    Options { memtable_bytes: SMALL, min_free_bytes: 0, ..Options::new(dir) }
}

fn webhook(number: u8) -> WebhookRef {
    WebhookRef {
        uid: WebhookUid::from_bytes([number; 16]),
        namespace: "team".into(),
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
    /// The same in every run, so that a failure can be repeated; as of the generated cases, SEED=n explores others.
    fn of_this_run() -> Self {
        let seed = std::env::var("PROPTEST_RNG_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or(20_261_125);
        eprintln!("seed {seed}");
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
    let uid = minter.event(now);
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
    };
    Outcome { name, webhook, attempt: Some(attempt), next, disable: None, at: now }
}

/// The process that is killed. It says what it is about to do (small letters) and what was acknowledged
/// (capital letters):
/// - `a`/`A`: append: delivery, webhook, event, 1 for a test
/// - `k`/`K`: the event of a dedup key
/// - `r`/`R`: record: delivery, `s`uccess, `f`ailure or re`t`ry
/// - `d`/`D`: redelivery of one that has failed: delivery
/// - `p`/`P`: purge: webhook
mod load {
    use super::*;

    pub(super) struct Load {
        pub store: Arc<Embedded>,
        pub clock: Clock,
        pub minter: Minter,
        pub random: Random,
    }

    fn say(lines: &[String]) {
        if lines.is_empty() {
            return;
        }
        let mut text = lines.join("\n");
        text.push('\n');
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).unwrap();
    }

    impl Load {
        pub(super) async fn run(self: Arc<Self>) {
            say(&["ready".to_owned()]);
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..3 {
                let load = Arc::clone(&self);
                tasks.spawn(async move {
                    loop {
                        load.publish().await;
                    }
                });
            }
            for hook in 0..HOOKS {
                let load = Arc::clone(&self);
                tasks.spawn(async move {
                    loop {
                        load.deliver(hook).await;
                    }
                });
            }
            let load = Arc::clone(&self);
            tasks.spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(load.random.next(60))).await;
                    say(&[format!("p {PURGED}")]);
                    load.store.purge(webhook(PURGED).uid).await.unwrap();
                    say(&[format!("P {PURGED}")]);
                }
            });
            tasks.join_all().await;
        }

        async fn publish(&self) {
            if self.random.next(20) == 0 {
                return self.test().await;
            }
            let now = self.clock.now();
            let events: Vec<_> = (0..=self.random.next(8))
                .map(|_| {
                    let hooks: Vec<_> = (0..HOOKS).filter(|_| self.random.next(3) == 0).collect();
                    let mut event = event(&self.minter, now, &hooks, false);
                    event.dedup = (self.random.next(4) == 0).then(|| key(self.random.next(1 << 20)));
                    event
                })
                .collect();
            let lines: Vec<_> = events.iter().flat_map(describe).collect();
            say(&lines);
            let keys: Vec<_> = events.iter().map(|event| (event.dedup, describe(event))).collect();
            let answers = self.store.append(events).await.unwrap();
            let mut lines = Vec::new();
            for (answer, (key, described)) in answers.iter().zip(keys) {
                match answer {
                    Appended::New => lines.extend(described.iter().map(|line| capital(line))),
                    Appended::Duplicate(first) => lines.push(format!("K {} {first}", number(key.unwrap()))),
                }
            }
            say(&lines);
            tokio::time::sleep(Duration::from_millis(self.random.next(3))).await;
        }

        async fn test(&self) {
            let hook = u8::try_from(self.random.next(u64::from(HOOKS))).unwrap();
            let event = event(&self.minter, self.clock.now(), &[hook], true);
            let name = event.deliveries[0].name;
            let lines = describe(&event);
            say(&lines);
            self.store.append(vec![event]).await.unwrap();
            say(&lines.iter().map(|line| capital(line)).collect::<Vec<_>>());
            tokio::time::sleep(Duration::from_millis(self.random.next(20))).await;
            self.record(vec![(name, webhook(hook).uid, 's', Next::Success)]).await;
        }

        /// Asks for one attempt more for one that has failed.
        async fn redeliver(&self, hook: u8) {
            let webhook = Some(webhook(hook).uid);
            let query = Query { webhook, states: vec![State::Failed], limit: 9, ..Query::default() };
            let mut failed = self.store.query(query).await.unwrap().deliveries;
            failed.retain(|line| !line.test);
            let Some(line) = failed.last() else { return };
            let (name, namespace) = (line.name, Arc::clone(&line.webhook.namespace));
            say(&[format!("d {name}")]);
            let asked = Redelivery { name, namespace, by: "jane".into(), at: self.clock.now() };
            if self.store.redeliver(vec![asked]).await.unwrap() == [Redelivered::Queued] {
                say(&[format!("D {name}")]);
            }
        }

        async fn deliver(&self, hook: u8) {
            if self.random.next(4) == 0 {
                self.redeliver(hook).await;
            }
            let now = self.clock.now();
            let webhook = webhook(hook).uid;
            let limit = 1 + usize::try_from(self.random.next(20)).unwrap();
            let request = ClaimRequest { webhook, now, limit, only: None, lease: LEASE };
            let claimed = self.store.claim(request).await.unwrap().deliveries;
            if claimed.is_empty() {
                return tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let mut outcomes = Vec::new();
            for claimed in claimed {
                assert_eq!(claimed.event.data, body(claimed.event.uid));
                let name = claimed.delivery.name;
                match self.random.next(10) {
                    0 => self.store.release(vec![(webhook, name)]).await.unwrap(),
                    1..5 => outcomes.push((name, webhook, 's', Next::Success)),
                    5..7 => outcomes.push((name, webhook, 'f', Next::Failed(EndReason::RetriesExhausted))),
                    _ => {
                        let at = now + Duration::from_millis(self.random.next(100));
                        outcomes.push((name, webhook, 't', Next::Retry(at)));
                    }
                }
            }
            self.record(outcomes).await;
        }

        async fn record(&self, outcomes: Vec<(DeliveryName, WebhookUid, char, Next)>) {
            let line = |letter: char| {
                let line = move |(name, _, verdict, _): &(_, _, _, _)| format!("{letter} {name} {verdict}");
                outcomes.iter().map(line).collect::<Vec<_>>()
            };
            say(&line('r'));
            let now = self.clock.now();
            let records =
                outcomes.iter().map(|(name, hook, _, next)| outcome(now, *hook, *name, next.clone()));
            self.store.record(records.collect()).await.unwrap();
            say(&line('R'));
        }
    }

    fn number(key: DedupKey) -> u64 {
        u64::from_be_bytes(key.0[..8].try_into().unwrap())
    }

    fn describe(event: &NewEvent) -> Vec<String> {
        let deliveries = event.deliveries.iter().map(|delivery| {
            let hook = delivery.webhook.uid.as_bytes()[0];
            format!("a {} {hook} {} {}", delivery.name, event.uid, u8::from(delivery.test))
        });
        let key = event.dedup.map(|key| format!("k {} {}", number(key), event.uid));
        deliveries.chain(key).collect()
    }

    fn capital(line: &str) -> String {
        let (letter, rest) = line.split_at(1);
        letter.to_uppercase() + rest
    }
}

/// Is the load, in the process that [`run_and_kill`] started for it.
async fn be_the_load(dir: &str) {
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let memtable_bytes = std::env::var(MEMTABLE).unwrap().parse().unwrap();
    let store = Embedded::open(Options { memtable_bytes, ..options(Path::new(dir)) }).unwrap();
    let load = load::Load {
        store,
        clock: Clock::system(),
        minter: Minter::default(),
        random: Random(AtomicU64::new(seed)),
    };
    // Nobody may be left to kill it.
    let _ = tokio::time::timeout(Duration::from_mins(10), Arc::new(load).run()).await;
}

/// The load in a process of its own.
struct Running {
    child: Child,
    /// What it says, where it is at once when it is said.
    said: NamedTempFile,
}

impl Running {
    fn start(dir: &Path, seed: u64, memtable: u64) -> Self {
        let said = NamedTempFile::new_in(dir.parent().unwrap()).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "what_was_acknowledged_is_there_after_each_of_many_kills"])
            .args(["--nocapture", "--test-threads=1"])
            .env(DIRECTORY, dir)
            .env(SEED, seed.to_string())
            .env(MEMTABLE, memtable.to_string())
            .stdout(said.reopen().unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut running = Self { child, said };
        while !running.text().contains("ready\n") {
            running.must_run();
            std::thread::sleep(Duration::from_millis(1));
        }
        running
    }

    fn must_run(&mut self) {
        if self.child.try_wait().unwrap().is_some() {
            let mut errors = String::new();
            self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            panic!("the load ended by itself: {errors}");
        }
    }

    fn text(&self) -> String {
        fs::read_to_string(self.said.path()).unwrap()
    }

    fn lines(&self) -> Vec<String> {
        let text = self.text();
        let said = text.split_once("ready\n").map_or("", |(_, said)| said);
        // The last line may be cut.
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(str::to_owned).collect()
    }

    /// Waits until so many more calls were acknowledged.
    fn go_on(&mut self, more: u64) {
        let acknowledged = |running: &Self| {
            let lines = running.lines();
            lines.iter().filter(|line| line.starts_with(char::is_uppercase)).count() as u64
        };
        let enough = acknowledged(self) + more;
        loop {
            self.must_run();
            if acknowledged(self) >= enough {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops it where it is, or lets it go on.
    fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    fn has_stopped(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the load until so many calls were acknowledged, and kills it; what it said.
fn run_and_kill(dir: &Path, seed: u64, memtable: u64, acknowledged: u64) -> Vec<String> {
    let mut running = Running::start(dir, seed, memtable);
    running.go_on(acknowledged);
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    running.lines()
}

#[derive(Clone, Debug)]
struct Known {
    hook: u8,
    event: EventUid,
    test: bool,
    acknowledged: bool,
    /// Of attempts that were acknowledged.
    recorded: Vec<char>,
    /// Of attempts that may have been recorded.
    tried: Vec<char>,
    /// Attempts after which a redelivery may have been asked for, and after which one was acknowledged.
    asked: BTreeSet<usize>,
    queued: Option<usize>,
}

#[derive(Default)]
struct Ledger {
    deliveries: BTreeMap<DeliveryName, Known>,
    /// First event of a key: acknowledged or perhaps.
    keys: HashMap<u64, EventUid>,
    tried_keys: HashMap<u64, BTreeSet<EventUid>>,
    /// A purge may have happened since.
    purging: bool,
    redeliveries: usize,
    acknowledged: usize,
}

impl Ledger {
    fn read(&mut self, lines: &[String]) {
        for line in lines {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["a", name, hook, event, test] => {
                    let known = Known {
                        hook: hook.parse().unwrap(),
                        event: event.parse().unwrap(),
                        test: test == "1",
                        acknowledged: false,
                        recorded: vec![],
                        tried: vec![],
                        asked: BTreeSet::new(),
                        queued: None,
                    };
                    self.deliveries.insert(name.parse().unwrap(), known);
                }
                ["A", name, ..] => {
                    self.deliveries.get_mut(&name.parse().unwrap()).unwrap().acknowledged = true;
                    self.acknowledged += 1;
                }
                ["k", key, event] => {
                    let tried = self.tried_keys.entry(key.parse().unwrap()).or_default();
                    tried.insert(event.parse().unwrap());
                }
                ["K", key, event] => {
                    let (key, event) = (key.parse().unwrap(), event.parse().unwrap());
                    let first = *self.keys.entry(key).or_insert(event);
                    assert_eq!(first, event, "two events are the first of a key");
                    self.acknowledged += 1;
                }
                ["r", name, verdict] => {
                    if let Some(known) = self.deliveries.get_mut(&name.parse().unwrap()) {
                        known.tried.extend(verdict.chars());
                    }
                }
                ["R", name, verdict] => {
                    if let Some(known) = self.deliveries.get_mut(&name.parse().unwrap()) {
                        known.recorded.extend(verdict.chars());
                    }
                    self.acknowledged += 1;
                }
                ["d", name] => {
                    if let Some(known) = self.deliveries.get_mut(&name.parse().unwrap()) {
                        known.asked.insert(known.tried.len());
                    }
                }
                ["D", name] => {
                    if let Some(known) = self.deliveries.get_mut(&name.parse().unwrap()) {
                        known.queued = Some(known.tried.len());
                        self.redeliveries += 1;
                    }
                }
                ["p", _] => self.purging = true,
                ["P", _] => {}
                _ => panic!("{line}"),
            }
        }
    }

    /// Checks what is there against what was said, and takes it as known from now on.
    async fn check(&mut self, store: &Embedded) {
        let lines = everything(store).await;
        for (name, known) in &self.deliveries {
            let purged = known.hook == PURGED && self.purging;
            if let Some(line) = lines.get(name) {
                check_line(known, line);
            } else {
                assert!(purged || !known.acknowledged, "{name} was acknowledged and is lost: {known:?}");
            }
        }
        for (name, line) in &lines {
            assert!(self.deliveries.contains_key(name), "{name} is invented");
            let event = store.event(line.event).await.unwrap().unwrap();
            assert_eq!(event.data, body(line.event));
        }
        self.deliveries.retain(|name, _| lines.contains_key(name));
        for (name, known) in &mut self.deliveries {
            known.acknowledged = true;
            // What was tried in vain may have been recorded without being acknowledged.
            let attempts = lines[name].attempts.len();
            known.tried.truncate(attempts);
            known.recorded = known.tried.clone();
        }
        let now = Clock::system().now();
        for (key_number, tried) in std::mem::take(&mut self.tried_keys) {
            let first = store.duplicate_of(key(key_number), now).unwrap();
            if let Some(known) = self.keys.get(&key_number) {
                assert_eq!(first, Some(*known));
            } else {
                assert!(first.is_none_or(|first| tried.contains(&first)));
                self.keys.extend(first.map(|first| (key_number, first)));
            }
        }
        self.purging = false;
    }
}

fn check_line(known: &Known, line: &Delivery) {
    let name = line.name;
    assert_eq!((line.webhook.uid, line.event, line.test), (webhook(known.hook).uid, known.event, known.test));
    let attempts = line.attempts.len();
    assert!(
        (known.recorded.len()..=known.tried.len()).contains(&attempts),
        "{name}: {attempts} of {known:?}"
    );
    assert!(
        line.redelivery.is_some() || known.queued != Some(attempts),
        "{name}: its redelivery is lost: {known:?}"
    );
    if line.redelivery.is_some() {
        assert!(known.asked.contains(&attempts), "{name}: nobody asked for it: {known:?}");
        assert_eq!(line.state, State::Pending, "{name}");
        return;
    }
    let last = attempts.checked_sub(1).map(|last| known.tried[last]);
    let was_asked_for = line.attempts.last().is_some_and(|last| last.asked_by.is_some());
    let expected = match last {
        Some('s') => State::Success,
        Some('f') => State::Failed,
        Some('t') if was_asked_for => State::Failed,
        Some(_) => State::Retrying,
        None if known.test => State::Failed,
        None => State::Pending,
    };
    assert_eq!(line.state, expected, "{name}: {known:?}");
    if known.test && attempts == 0 {
        assert_eq!(line.reason, Some(EndReason::Interrupted));
    }
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
    assert_eq!(store.usage("team").deliveries, lines.len() as u64);
    check_usage(store, &lines);
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
        // One that has failed and was asked for again stays counted, once.
        let has_failed = |line: &&&Delivery| {
            let asked = line.attempts.iter().any(|attempt| attempt.asked_by.is_some());
            line.state == State::Failed || line.redelivery.is_some() || asked
        };
        assert_eq!(summary.failure_count, of_hook.iter().filter(has_failed).count() as u64);
        let mut bytes = 0;
        for line in of_hook.iter().filter(|line| !line.state.is_final()) {
            bytes += body(line.event).len() as u64;
        }
        assert_eq!(summary.pending_bytes, bytes);
    }
}

/// What is used is what log lines and events have, and what is stored beside an event's data.
fn check_usage(store: &Embedded, lines: &BTreeMap<DeliveryName, Delivery>) {
    let events: BTreeSet<_> = lines.values().map(|line| line.event).collect();
    let of_lines: u64 = lines.values().map(Delivery::weight).sum();
    let of_events: u64 = events.iter().map(|event| body(*event).len() as u64).sum();
    let used = store.usage("team").bytes;
    let beside = used.checked_sub(of_lines + of_events).unwrap();
    // The same for each event here: its namespace, its time and its attributes.
    let of_each = beside.checked_div(events.len() as u64).unwrap_or(50);
    assert!((50..400).contains(&of_each), "{of_each} bytes beside the data of each event");
    assert_eq!(beside, of_each * events.len() as u64, "of {} events", events.len());
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
    let (mut acknowledged, mut redeliveries) = (0, 0);
    let random = Random::of_this_run();
    for round in 0..24 {
        if round % 6 == 0 {
            acknowledged += ledger.acknowledged;
            redeliveries += ledger.redeliveries;
            (dir, ledger) = (scratch(), Ledger::default());
        }
        let calls = random.next(400);
        let lines = run_and_kill(dir.path(), random.next(u64::MAX), SMALL, calls);
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
    let random = Random::of_this_run();
    let (dir, mut copies) = (scratch(), Vec::new());
    let mut running = Running::start(dir.path(), random.next(u64::MAX), SMALL);
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
        let store = Embedded::open(options(taken.path())).unwrap();
        ledger.check(&store).await;
        acknowledged = ledger.acknowledged;
        store.purge(webhook(PURGED).uid).await.unwrap();
        check_agreement(&store).await;
        store.close().await.unwrap();
    }
    assert!(acknowledged > 300, "only {acknowledged} calls were acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_is_cut_anywhere_loses_its_tail_and_nothing_else() {
    let dir = scratch();
    let random = Random::of_this_run();
    let mut ledger = Ledger::default();
    ledger.read(&run_and_kill(dir.path(), random.next(u64::MAX), LARGE, 1000));
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
        let store = Embedded::open(options(copy.path())).unwrap();
        let lines = everything(&store).await;
        let lasting = lines.values().filter(|line| line.webhook != webhook(PURGED)).count();
        assert!(lasting >= last, "a later cut has less");
        last = lasting;
        for (name, line) in &lines {
            let known = Known { recorded: vec![], queued: None, ..ledger.deliveries[name].clone() };
            check_line(&known, line);
        }
        store.purge(webhook(PURGED).uid).await.unwrap();
        check_agreement(&store).await;
        store.close().await.unwrap();
    }
    assert!(last > 0, "the cuts were all too early");
}
