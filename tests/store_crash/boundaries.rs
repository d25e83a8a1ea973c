//! Kills at the system calls between which the engine's files change: flushes, compactions, rotated journals, and the
//! making of the store itself.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;

use hookwright::store::Store as _;
use tempfile::TempDir;

use super::ledger::{Gone, Ledger, check_agreement};
use super::load::{Mode, run_to_its_end};
use super::strace::strace;
use super::{PURGED, Random, as_it_is, copy, open, options, scratch, webhook};

/// At which call of a kind, of a thread, the process is killed, before the call does anything.
#[derive(Clone, Debug)]
struct Kill {
    calls: &'static str,
    when: u64,
    /// Counted are only calls on these files.
    on: On,
}

#[derive(Clone, Copy, Debug)]
enum On {
    Any,
    Tables,
    Journal(u8),
}

impl On {
    /// Files of a store; none: all.
    fn files(self) -> Vec<String> {
        match self {
            Self::Any => vec![],
            // Of some keyspaces, as many as there will be.
            Self::Tables => (1..=4)
                .flat_map(|keyspace| (0..60).map(move |table| format!("keyspaces/{keyspace}/tables/{table}")))
                .collect(),
            Self::Journal(number) => vec![format!("{number}.jnl")],
        }
    }
}

/// A directory, and what is known of it.
struct Bench {
    dir: TempDir,
    ledger: Ledger,
    /// How often the process was killed at which call on which kind of file.
    struck: BTreeMap<String, usize>,
}

impl Bench {
    fn new() -> Self {
        Self { dir: scratch(), ledger: Ledger::default(), struck: BTreeMap::new() }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Begins with an empty directory.
    fn renew(&mut self) {
        (self.dir, self.ledger) = (scratch(), Ledger::default());
    }

    /// Runs the load until it is killed, or ends before there was such a call; whether it was killed.
    fn run(&mut self, kill: &Kill, seed: u64) -> bool {
        let log = self.dir.path().join("calls");
        let mut program = strace("kills at system calls").unwrap();
        program.args(["-y", "-s", "0", "-e", &format!("trace={}", kill.calls)]);
        program.args(["-e", &format!("inject={}:signal=KILL:when={}", kill.calls, kill.when)]);
        for file in kill.on.files() {
            program.arg("-P").arg(self.data().join("store").join(file));
        }
        program.arg("-o").arg(&log);
        let (status, said) = run_to_its_end(Some(program), Mode::OneByOne, &self.data(), seed);
        self.ledger.read(&said);
        eprintln!("{kill:?}: {status}");
        let killed = status.signal() == Some(9);
        if killed {
            let log = fs::read_to_string(&log).unwrap();
            for call in interrupted(&log) {
                *self.struck.entry(kind(call)).or_default() += 1;
            }
        }
        killed
    }

    async fn check(&mut self) {
        let store = open(&options(&self.data()));
        self.ledger.check(&store).await;
        // A purge that was cut off has discarded what waited, and is made again.
        store.purge(webhook(PURGED).uid).await.unwrap();
        self.ledger.deliveries.retain(|_, known| known.hook != PURGED);
        check_agreement(&store, Gone::Perhaps).await;
        store.close().await.unwrap();
    }

    /// Whether it was killed at one of these calls on this kind of files.
    fn was_struck(&self, calls: &str, file: &str) -> bool {
        calls.split(',').any(|call| self.struck.contains_key(&format!("{call} {file}")))
    }
}

/// The calls that did not return, as `strace -f` has them.
fn interrupted(log: &str) -> Vec<&str> {
    let (mut begun, mut interrupted) = (HashMap::new(), Vec::new());
    for line in log.lines() {
        let Some((process, call)) = line.split_once(' ') else { continue };
        let call = if call.contains(" resumed>") { begun.remove(process).unwrap_or(call) } else { call };
        if line.ends_with("= ?") {
            interrupted.push(call);
        } else if line.ends_with("<unfinished ...>") {
            begun.insert(process, call);
        }
    }
    interrupted.extend(begun.into_values());
    interrupted
}

/// The name of a call and the kind of its last file.
fn kind(call: &str) -> String {
    let name = call.split_once('(').map_or(call, |(name, _)| name).trim();
    let mut files = call.split(['<', '>', '"']).filter(|part| part.starts_with('/'));
    let file = files.next_back().unwrap_or_default();
    let kinds = ["/tables", "/blobs", "/current", ".jnl", "/lock", "/store", "/keyspaces"];
    let known = kinds.into_iter().find(|kind| file.contains(&format!("{kind}/")) || file.ends_with(kind));
    format!("{name} {}", known.unwrap_or("other"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_before_any_call_that_changes_files_loses_nothing() {
    if strace("a_kill_before_any_call_that_changes_files_loses_nothing").is_none() {
        return;
    }
    let (mut bench, random, mut killed) = (Bench::new(), Random::seeded(), 0);
    let renames = "rename,renameat,renameat2";
    for round in 0..21 {
        if round % 7 == 0 {
            bench.renew();
        }
        // Up to so many there surely are, of one thread.
        let (calls, on, most) = [
            (renames, On::Any, 30),
            ("unlink,unlinkat", On::Any, 16),
            ("fsync", On::Any, 60),
            ("fdatasync", On::Any, 80),
            ("write", On::Any, 200),
            ("fsync", On::Tables, 3),
            ("unlink,unlinkat", On::Tables, 2),
        ][round % 7];
        let kill = Kill { calls, when: 1 + random.next(most), on };
        killed += usize::from(bench.run(&kill, random.next(u64::MAX)));
        bench.check().await;
    }
    let struck = &bench.struck;
    assert!(killed >= 15, "it was killed only {killed} times: {struck:?}");
    // A flush or a compaction, before it is known; when it becomes known; and what was compacted is removed.
    for (calls, file) in [("fsync", "/tables"), (renames, "/current"), ("unlink,unlinkat", "/tables")] {
        assert!(bench.was_struck(calls, file), "not {calls} {file}, but {struck:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_the_journal_gives_way_to_the_next_loses_nothing() {
    if strace("a_kill_while_the_journal_gives_way_to_the_next_loses_nothing").is_none() {
        return;
    }
    let (template, random) = (Bench::new(), Random::seeded());
    let (_, ballast) = run_to_its_end(None, Mode::Ballast, &template.data(), random.next(u64::MAX));
    let mut bench = Bench::new();
    for (calls, journal) in [("ftruncate", 1), ("write", 1), ("unlink,unlinkat", 0)] {
        bench.renew();
        copy(&template.data(), &bench.data(), &as_it_is);
        bench.ledger.read(&ballast);
        let kill = Kill { calls, when: 1, on: On::Journal(journal) };
        // The load may end before all that the journal has is flushed: the next goes on with it.
        let comes = (0..5).any(|_| bench.run(&kill, random.next(u64::MAX)));
        assert!(comes, "there was no such call: {kill:?}");
        bench.check().await;
    }
}
