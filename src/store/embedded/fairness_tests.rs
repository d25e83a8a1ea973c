//! One namespace that publishes without end, and another's single event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use hookwright_harness::scratch::scratch;

use super::Embedded;
use super::tests::{event, options};
use crate::model::ids::{Minter, WebhookRef};
use crate::store::behaviour::webhook;
use crate::store::{NewEvent, Store as _};

/// Publishers of the busy namespace, each with a batch under way at any time: together more than its room.
const PUBLISHERS: usize = 64;
/// Events of a batch, each of 1 KiB: one that is large for the line.
const BATCH: usize = 20;

fn of(hook: &WebhookRef, minter: &Minter, body: &Bytes) -> NewEvent {
    NewEvent { namespace: Arc::clone(&hook.namespace), data: body.clone(), ..event(minter, &[hook]) }
}

/// Commits so far.
fn commits(store: &Embedded) -> u64 {
    let metrics = store.metrics().encode();
    let count = metrics.lines().find_map(|line| line.split_once("store_commit_duration_seconds_count "));
    count.unwrap().1.parse().unwrap()
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_mins(1);
    while !holds() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::yield_now();
    }
}

/// Nothing here depends on how fast threads are. The writer stops where it tells a queue what was committed, and so
/// where this test wants it: at a commit of the busy namespace until the line is full and the single event in it,
/// then at the commit of that event.
#[test]
fn a_single_event_is_in_the_next_commit_however_much_of_a_busy_namespace_waits() {
    let dir = scratch();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _inside = runtime.enter();
    let store = Embedded::open(options(&dir)).unwrap();
    let minter = Arc::new(Minter::default());
    let (busy, quiet) = (webhook("team-a", 1), webhook("team-b", 2));
    let body = Bytes::from(vec![b'x'; 1 << 10]);
    for hook in [&busy, &quiet] {
        runtime.block_on(store.append(vec![of(hook, &minter, &body)])).unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|_| {
            let (store, minter, stop) = (Arc::clone(&store), Arc::clone(&minter), Arc::clone(&stop));
            let (busy, body) = (busy.clone(), body.clone());
            runtime.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let batch = (0..BATCH).map(|_| of(&busy, &minter, &body)).collect();
                    store.append(batch).await.unwrap();
                }
            })
        })
        .collect();

    let busy_namespace = Arc::clone(&busy.namespace);
    let (busy, quiet_hook) =
        (store.shared.hooks.get(busy.uid).unwrap(), store.shared.hooks.get(quiet.uid).unwrap());
    let room = || store.shared.room.left(&busy_namespace);
    let mut most = 0;
    for _ in 0..100 {
        let (of_busy, of_quiet) = (busy.queue(), quiet_hook.queue());
        wait_until("the line does not fill", || room() < BATCH * (1 << 10));
        let (before, known) = (commits(&store), quiet_hook.summary().pending);
        let mut call = store.append(vec![of(&quiet, &minter, &body)]);
        assert!(call.poll_unpin(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
        drop(of_busy);
        wait_until("it is not committed", || quiet_hook.summary().pending > known);
        most = most.max(commits(&store) - before);
        drop(of_quiet);
        runtime.block_on(call).unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    for publisher in publishers {
        runtime.block_on(publisher).unwrap();
    }
    assert!((1..=2).contains(&most), "{most} commits: more than the one under way and its own");
}

#[test]
fn what_waits_in_the_line_keeps_its_room_though_its_caller_has_gone() {
    let dir = scratch();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _inside = runtime.enter();
    let store = Embedded::open(options(&dir)).unwrap();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let body = Bytes::from(vec![b'x'; 64 << 10]);
    let room = || store.shared.room.left(&hook.namespace);
    let whole = room();
    runtime.block_on(store.append(vec![of(&hook, &minter, &body)])).unwrap();
    let known = store.shared.hooks.get(hook.uid).unwrap();
    // The writer stops where it tells the queue.
    let stopped = known.queue();
    for _ in 0..10 {
        let mut call = store.append(vec![of(&hook, &minter, &body)]);
        assert!(call.poll_unpin(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
    }
    assert!(whole - room() >= 9 * (64 << 10), "{} of {whole} are left", room());
    drop(stopped);
    wait_until("room is not made", || room() == whole);
    assert_eq!(known.summary().pending, 11, "it is done all the same");
}
