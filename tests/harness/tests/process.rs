//! Process groups of the harness: they end with their owner, however that ends, unless left alone.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use hookwright_harness::{
    ports::free_port,
    process::{Group, Process},
};

/// A program with a child of its own, which a kill of the program alone would leave behind.
fn parent_and_child(group: &Group) -> Process {
    group.spawn("parent", Command::new("sh").args(["-c", "sleep 600 & echo started $!; wait"])).unwrap()
}

fn child_of(parent: &Process) -> u32 {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        if let Some(child) = parent.log().strip_prefix("started ") {
            return child.trim().parse().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    unreachable!("the parent never spoke: {}", parent.log())
}

/// Whether a process is there and more than a zombie, within the second that dying may take.
fn gone(id: u32) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        let output = Command::new("ps").args(["-o", "stat=", "-p", &id.to_string()]).output().unwrap();
        let state = String::from_utf8_lossy(&output.stdout);
        if state.trim().is_empty() || state.trim().starts_with('Z') {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

#[test]
fn a_panic_ends_the_whole_group_and_removes_its_folder() {
    let (sender, receiver) = std::sync::mpsc::channel::<(PathBuf, u32, u32)>();
    let panicked = std::thread::spawn(move || {
        let group = Group::new("panics").unwrap();
        let parent = parent_and_child(&group);
        sender.send((group.folder().to_owned(), parent.id(), child_of(&parent))).unwrap();
        panic!("as a test does");
    });
    panicked.join().unwrap_err();
    let (folder, parent, child) = receiver.recv().unwrap();
    assert!(gone(parent) && gone(child) && !folder.exists());
}

#[test]
fn a_group_that_is_left_lives_on_until_the_command_that_it_gave_is_run() {
    let group = Group::new("left").unwrap();
    let parent = parent_and_child(&group);
    let (folder, id, child) = (group.folder().to_owned(), parent.id(), child_of(&parent));
    parent.leave();
    let command = group.leave();
    assert!(folder.exists() && !gone(id) && !gone(child));
    let status = Command::new("sh").args(["-c", &command]).stdin(Stdio::null()).status().unwrap();
    assert!(status.success() && gone(id) && gone(child) && !folder.exists());
}

#[test]
fn a_port_is_given_to_one_owner_at_a_time() {
    let ports: Vec<_> = (0..50).map(|_| free_port().unwrap()).collect();
    let mut numbers: Vec<_> = ports.iter().map(hookwright_harness::ports::Port::number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 50);
}
