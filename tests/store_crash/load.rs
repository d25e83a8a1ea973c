//! The process that is killed. It says what it is about to do (small letters) and what was acknowledged
//! (capital letters):
//! - `a`/`A`: append: delivery, webhook, event, 1 for a test
//! - `k`/`K`: the event of a dedup key
//! - `r`/`R`: record: delivery, `s`uccess, `f`ailure or re`t`ry
//! - `d`/`D`: redelivery of one that has failed: delivery
//! - `p`/`P`: purge: webhook
//! - `t`: retention, which is not synced
//! - `y`/`Y`: a replay begins: its id; `c`: it is cancelled

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hookwright::clock::Clock;
use hookwright::model::ids::{DeliveryName, Minter, ReplayId, WebhookUid};
use hookwright::model::time::UnixMillis;
use hookwright::store::embedded::{Embedded, Options};
use hookwright::store::records::{DedupKey, Redelivered, Redelivery, Retention};
use hookwright::store::{
    Appended, ClaimRequest, EndReason, NewEvent, NewReplay, Next, Order, Query, Replays as _, Selection,
    State, Store as _,
};
use tempfile::NamedTempFile;
use tracing_subscriber::EnvFilter;

use super::{
    DIRECTORY, HOOKS, LEASE, MODE, PURGED, Random, SEED, body, event, event_with, key, open, options,
    outcome, size, webhook,
};

/// How the load goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Many calls at once, until it is killed.
    AtOnce,
    /// The same, and nothing is flushed.
    Unflushed,
    /// One call after the other, with what the engine says about its journal, and then it ends.
    OneByOne,
    /// Only events with much data, more than the engine keeps in one journal, and nothing is flushed.
    Ballast,
}

impl Mode {
    const ALL: [Self; 4] = [Self::AtOnce, Self::Unflushed, Self::OneByOne, Self::Ballast];

    fn name(self) -> &'static str {
        match self {
            Self::AtOnce => "at-once",
            Self::Unflushed => "unflushed",
            Self::OneByOne => "one-by-one",
            Self::Ballast => "ballast",
        }
    }
}

struct Load {
    store: Arc<Embedded>,
    clock: Clock,
    minter: Minter,
    random: Random,
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

/// Rounds of one that goes one by one: some hundred calls.
const ROUNDS: usize = 40;
/// What goes into one journal at most, and a little.
const BALLAST: usize = 65 << 20;

impl Load {
    async fn run(self: Arc<Self>, mode: Mode) {
        say(&["ready".to_owned()]);
        match mode {
            Mode::AtOnce | Mode::Unflushed => self.at_once().await,
            Mode::OneByOne => self.one_by_one().await,
            Mode::Ballast => self.ballast().await,
        }
    }

    async fn one_by_one(&self) {
        for round in 0..ROUNDS {
            self.publish().await;
            for hook in 0..HOOKS {
                self.deliver(hook).await;
            }
            match self.random.next(8) {
                _ if round == 5 => self.retain().await,
                0 => self.purge().await,
                1 => self.retain().await,
                2 => self.replay().await,
                _ => {}
            }
        }
    }

    async fn ballast(&self) {
        let (now, mut bytes) = (self.clock.now(), 0);
        while bytes < BALLAST {
            let large = std::iter::repeat_with(|| self.minter.event(now)).filter(|uid| size(*uid) > 50 << 10);
            let event = |uid| event_with(uid, &self.minter, now, &[0], false);
            let events: Vec<_> = large.take(30).map(event).collect();
            bytes += events.iter().map(|event| event.data.len()).sum::<usize>();
            let names: Vec<_> = events.iter().map(|event| event.deliveries[0].name).collect();
            self.append(events).await;
            let done = |name| (name, webhook(0).uid, 's', Next::Success);
            self.record(names.into_iter().map(done).collect()).await;
        }
    }

    async fn at_once(self: Arc<Self>) {
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
                load.purge().await;
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
                // What nobody wants leaves nothing.
                let is_keyed = self.random.next(4) == 0 && !hooks.is_empty();
                event.dedup = is_keyed.then(|| key(self.random.next(1 << 20)));
                event
            })
            .collect();
        self.append(events).await;
        tokio::time::sleep(Duration::from_millis(self.random.next(3))).await;
    }

    async fn append(&self, events: Vec<NewEvent>) {
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
    }

    async fn purge(&self) {
        say(&[format!("p {PURGED}")]);
        self.store.purge(webhook(PURGED).uid).await.unwrap();
        say(&[format!("P {PURGED}")]);
    }

    /// Lets go what ended a while ago.
    async fn retain(&self) {
        say(&["t".to_owned()]);
        self.store.retain(self.clock.now() - Duration::from_millis(300)).await.unwrap();
    }

    /// Asks for one attempt more for some of what has failed, and half the time takes it back.
    async fn replay(&self) {
        let now = self.clock.now();
        let hook = u8::try_from(self.random.next(u64::from(PURGED))).unwrap();
        let uid = webhook(hook).uid;
        let query = Query { webhook: Some(uid), states: vec![State::Failed], limit: 500, ..Query::default() };
        let failed = self.store.query(query).await.unwrap().deliveries;
        say(&failed.iter().map(|line| format!("d {}", line.name)).collect::<Vec<_>>());
        let id = ReplayId::from_bytes(*self.minter.event(now).as_bytes());
        let selection = Selection {
            namespace: "team".into(),
            states: vec![State::Failed],
            from: UnixMillis::default(),
            to: now + LEASE,
            event_types: vec![],
            as_of: now,
        };
        let new = NewReplay { id, name: "again".into(), digest: vec![], selection, webhooks: vec![uid] };
        say(&[format!("y {id}")]);
        self.store.begin_replay(new).await.unwrap();
        say(&[format!("Y {id}")]);
        self.store.advance_replay(id, uid, vec![now; 20]).await.unwrap();
        if self.random.next(2) == 0 {
            say(&[format!("c {id}")]);
            self.store.cancel_replay(id, now).await.unwrap();
        }
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
        let request = ClaimRequest { webhook, now, limit, order: Order::LongestDue, lease: LEASE };
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
        let records = outcomes.iter().map(|(name, hook, _, next)| outcome(now, *hook, *name, next.clone()));
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

/// Is the load, in the process that [`Running::start`] or [`run_to_its_end`] started for it.
pub(super) async fn be_the_load(dir: &str) {
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let mode = std::env::var(MODE).unwrap();
    let mode = Mode::ALL.into_iter().find(|known| known.name() == mode).unwrap();
    let options = options(Path::new(dir));
    let options = match mode {
        Mode::AtOnce => options,
        Mode::OneByOne => {
            say_what_the_journal_does();
            let retention = Retention { max_age: Duration::ZERO, max_bytes: u64::MAX };
            Options { retention, ..options }
        }
        Mode::Unflushed | Mode::Ballast => Options { memtable_bytes: 1 << 30, ..options },
    };
    let store = open(&options);
    let random = Random(AtomicU64::new(seed));
    let load = Load { store, clock: Clock::system(), minter: Minter::default(), random };
    // So that it does not stay for ever when nobody kills it; those that end by themselves get the time.
    let limit = match mode {
        Mode::AtOnce | Mode::Unflushed => Duration::from_mins(2),
        Mode::OneByOne | Mode::Ballast => Duration::from_mins(3),
    };
    let _ = tokio::time::timeout(limit, Arc::new(load).run(mode)).await;
}

/// Between the lines of the load, those of the engine: which thread begins a commit, and which syncs the journal.
fn say_what_the_journal_does() {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("fjall::batch=trace,fjall::journal::writer=trace"))
        .with_thread_names(true)
        .with_ansi(false)
        .without_time()
        .init();
}

/// A process that will be the load, begun with `program`, if any.
fn process(program: Option<Command>, mode: Mode, dir: &Path, seed: u64) -> Command {
    let this = std::env::current_exe().unwrap();
    let mut command = match program {
        None => Command::new(this),
        Some(mut program) => {
            program.arg(this);
            program
        }
    };
    command
        .args(["--exact", "what_was_acknowledged_is_there_after_each_of_many_kills"])
        .args(["--nocapture", "--test-threads=1"])
        .env(DIRECTORY, dir)
        .env(SEED, seed.to_string())
        .env(MODE, mode.name());
    command
}

/// Runs a load that ends by itself, or is killed by `program`: how it ended, and what it said.
pub(super) fn run_to_its_end(
    program: Option<Command>,
    mode: Mode,
    dir: &Path,
    seed: u64,
) -> (ExitStatus, Vec<String>) {
    let output = process(program, mode, dir, seed).output().unwrap();
    let said = whole_lines(&String::from_utf8_lossy(&output.stdout));
    let killed = output.status.code().is_none();
    assert!(
        killed || output.status.success(),
        "the load failed: {}\n{}",
        String::from_utf8_lossy(&output.stderr),
        said.join("\n")
    );
    (output.status, said)
}

/// What was said after `ready`; the last line may be cut.
fn whole_lines(text: &str) -> Vec<String> {
    let said = text.split_once("ready\n").map_or("", |(_, said)| said);
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(str::to_owned).collect()
}

/// The load in a process of its own.
pub(super) struct Running {
    pub(super) child: Child,
    /// What it says, where it is at once when it is said.
    said: NamedTempFile,
}

impl Running {
    pub(super) fn start(mode: Mode, dir: &Path, seed: u64) -> Self {
        let said = NamedTempFile::new_in(dir.parent().unwrap()).unwrap();
        let child = process(None, mode, dir, seed)
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

    pub(super) fn must_run(&mut self) {
        if self.child.try_wait().unwrap().is_some() {
            let mut errors = String::new();
            self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            panic!("the load ended by itself: {errors}");
        }
    }

    pub(super) fn text(&self) -> String {
        fs::read_to_string(self.said.path()).unwrap()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        whole_lines(&self.text())
    }

    /// Waits until so many more calls were acknowledged.
    pub(super) fn go_on(&mut self, more: u64) {
        let acknowledged = |running: &Self| {
            let lines = running.lines();
            lines.iter().filter(|line| line.starts_with(char::is_uppercase)).count() as u64
        };
        let enough = acknowledged(self) + more;
        while acknowledged(self) < enough {
            self.must_run();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops it where it is, or lets it go on.
    pub(super) fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    pub(super) fn has_stopped(&self) -> bool {
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
pub(super) fn run_and_kill(mode: Mode, dir: &Path, seed: u64, acknowledged: u64) -> Vec<String> {
    let mut running = Running::start(mode, dir, seed);
    running.go_on(acknowledged);
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    running.lines()
}
