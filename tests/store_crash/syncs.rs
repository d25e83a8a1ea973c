//! What is acknowledged is synced: in the engine's own words, and as the kernel saw it.

use std::collections::{BTreeSet, HashMap};
use std::fs;

use super::load::{Mode, run_to_its_end};
use super::strace::strace;
use super::{Random, scratch};

/// Whether a line of the load acknowledges something.
fn acknowledges(line: &str) -> bool {
    let mut letters = line.chars();
    letters.next().is_some_and(char::is_uppercase) && letters.next().is_none_or(|second| second == ' ')
}

/// Goes through what the load said, with what the engine said about its writer's commits between; how many
/// acknowledgements came after a commit of their own that was synced. Panics at one that was not.
fn acknowledged_after_a_sync(said: &[String]) -> usize {
    let (mut committed, mut synced, mut checked) = (false, false, 0);
    for line in said {
        if line.contains("store-writer") && line.contains("Acquiring journal writer") {
            (committed, synced) = (true, false);
        } else if line.contains("store-writer") && line.contains("Persisting journal") {
            synced |= line.ends_with("mode=SyncData") || line.ends_with("mode=SyncAll");
        } else if acknowledges(line) && std::mem::take(&mut committed) {
            assert!(synced, "{line}: acknowledged, and its commit is not synced");
            checked += 1;
        }
    }
    checked
}

/// A system call as `strace -f -y` has it: its process, name, the path of its file, and its result once it is there.
struct Call<'a> {
    process: &'a str,
    name: &'a str,
    path: &'a str,
    data: &'a str,
    result: Option<&'a str>,
}

/// None: something else, such as a signal.
fn call<'a>(
    line: &'a str,
    under_way: &mut HashMap<&'a str, (&'a str, &'a str, &'a str)>,
) -> Option<Call<'a>> {
    let (process, rest) = line.split_once(' ')?;
    let rest = rest.trim_start();
    let result = rest.rsplit_once(" = ").map(|(_, result)| result);
    if rest.starts_with("<...") {
        let (name, path, data) = under_way.remove(process)?;
        return Some(Call { process, name, path, data, result });
    }
    let (name, arguments) = rest.split_once('(')?;
    let (path, data) = arguments.split_once('<')?.1.split_once('>')?;
    let result = result.filter(|_| !rest.ends_with("<unfinished ...>"));
    if result.is_none() {
        under_way.insert(process, (name, path, data));
    }
    Some(Call { process, name, path, data, result })
}

/// Goes through the log of the kernel's calls; how many acknowledgements were written while no journal had writes
/// behind its last sync. Panics at one where a journal had.
fn written_after_a_sync(log: &str) -> usize {
    let (mut under_way, mut unsynced, mut checked) = (HashMap::new(), BTreeSet::new(), 0);
    let mut any_written = false;
    for call in log.lines().filter_map(|line| call(line, &mut under_way)) {
        let is_journal = call.path.rsplit_once('.').is_some_and(|(_, extension)| extension == "jnl");
        match call.name {
            "write" | "pwrite64" | "writev" if is_journal => {
                any_written = true;
                unsynced.insert(call.path);
            }
            "fdatasync" | "fsync" if is_journal && call.result == Some("0") => {
                unsynced.remove(call.path);
            }
            "write" if acknowledges(call.data.trim_start_matches(", \"")) => {
                assert!(
                    unsynced.is_empty(),
                    "process {} acknowledges while {unsynced:?} is not synced",
                    call.process
                );
                checked += usize::from(std::mem::take(&mut any_written));
            }
            _ => {}
        }
    }
    checked
}

#[tokio::test]
async fn what_is_acknowledged_was_synced_before() {
    let (dir, seed) = (scratch(), Random::seeded().next(u64::MAX));
    let log = dir.path().join("calls");
    // Of what is written, the letter and what follows it.
    let program = strace("what_is_acknowledged_was_synced_before, as the kernel saw it").map(|mut strace| {
        strace.args(["--seccomp-bpf", "-y", "-s", "2", "-e", "trace=write,pwrite64,writev,fdatasync,fsync"]);
        strace.arg("-o").arg(&log);
        strace
    });
    let traced = program.is_some();
    let (_, said) = run_to_its_end(program, Mode::OneByOne, &dir.path().join("data"), seed);
    let checked = acknowledged_after_a_sync(&said);
    assert!(checked > 50, "only {checked} acknowledgements followed a commit");
    if traced {
        let checked = written_after_a_sync(&fs::read_to_string(&log).unwrap());
        assert!(checked > 50, "only {checked} acknowledgements followed a write");
    }
}
