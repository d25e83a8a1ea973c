//! A large log: filling it, opening it, listing it, sending what waits, and memory all along.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use hookwright::clock::Clock;
use hookwright::model::event::Attributes;
use hookwright::model::ids::{DeliveryName, Minter, WebhookRef};
use hookwright::store::embedded::Embedded;
use hookwright::store::{ClaimRequest, EndReason, NewEvent, Next, Order, Outcome, Store};

use crate::common::{BODY, Maker, Usage, attempt, drain, memory, on_disk, options, peak, print, webhook};
use crate::lists;

const HOOKS: usize = 200;
const NAMESPACES: usize = 20;
const BATCH: usize = 500;
/// Webhooks of one batch.
const SPREAD: usize = 10;
/// What is rare is so often in the log.
pub(crate) const RARE: usize = 10;
pub(crate) const RARE_TYPE: &str = "order.refunded";

/// The Webhook whose deliveries wait.
fn paused() -> WebhookRef {
    webhook(HOOKS, NAMESPACES)
}

fn of_type(event: NewEvent, event_type: &str) -> NewEvent {
    let attributes = Attributes { event_type: event_type.into(), ..(*event.attributes).clone() };
    NewEvent { attributes: Arc::new(attributes), ..event }
}

/// Fills the log with what is done: all arrived, but for ten that failed, ten of a rare type and ten tests.
async fn done(store: &Arc<Embedded>, maker: &Maker, hooks: &[WebhookRef], count: usize) {
    let every = (count / RARE).max(1);
    for batch in 0..count / BATCH {
        let first = batch * SPREAD % hooks.len();
        let hooks = &hooks[first..first + SPREAD];
        let mut of_hook: Vec<Vec<(DeliveryName, Next)>> = vec![Vec::new(); SPREAD];
        let mut events = Vec::with_capacity(BATCH);
        for place in 0..BATCH {
            let hook = place % SPREAD;
            let mut event = maker.event(&hooks[hook..=hook]);
            let mut next = Next::Success;
            match (batch * BATCH + place) % every {
                0 => next = Next::Failed(EndReason::RetriesExhausted),
                1 => event = of_type(event, RARE_TYPE),
                2 => event.deliveries[0].test = true,
                _ => {}
            }
            of_hook[hook].push((event.deliveries[0].name, next));
            events.push(event);
        }
        store.append(events).await.unwrap();
        let now = maker.clock.now();
        let mut outcomes = Vec::with_capacity(BATCH);
        for (hook, finished) in hooks.iter().zip(of_hook) {
            let (webhook, lease) = (hook.uid, Duration::from_mins(1));
            let request = ClaimRequest { webhook, now, limit: BATCH, order: Order::LongestDue, lease };
            store.claim(request).await.unwrap();
            outcomes.extend(finished.into_iter().map(|(name, next)| Outcome {
                name,
                webhook,
                attempt: Some(attempt(now)),
                next,
                disable: None,
                failing: None,
                at: now,
            }));
        }
        store.record(outcomes).await.unwrap();
    }
}

async fn waiting(store: &Arc<Embedded>, maker: &Maker, hook: &WebhookRef, count: usize) {
    for _ in 0..count / BATCH {
        let events = (0..BATCH).map(|_| maker.event(std::slice::from_ref(hook))).collect();
        store.append(events).await.unwrap();
    }
}

async fn fill(dir: &Path, hooks: &[WebhookRef], finished: usize, pending: usize) {
    let maker = Maker { minter: Minter::default(), clock: Clock::system(), made: AtomicUsize::new(0) };
    let store = Embedded::open(options(dir)).unwrap();
    print(&format!("empty: {} MiB of memory", memory()));
    peak();
    let before = Usage::now();
    done(&store, &maker, hooks, finished).await;
    let after = Usage::now();
    if finished > 0 {
        print(&format!(
            "filled with {finished} that are done: {:.0}/s, {} MiB of memory, at most {} MiB",
            finished as f64 / (after.at - before.at).as_secs_f64(),
            memory(),
            peak()
        ));
    }
    if pending > 0 {
        waiting(&store, &maker, &paused(), pending).await;
        let waited = Usage::now();
        print(&format!(
            "filled with {pending} that wait for one Webhook: {:.0}/s, {} MiB of memory, at most {} MiB",
            pending as f64 / (waited.at - after.at).as_secs_f64(),
            memory(),
            peak()
        ));
    }
    store.close().await.unwrap();
    drop(store);
    let bytes = ((finished + pending) * BODY) as f64;
    print(&format!(
        "closed: {} MiB of memory; {:.2} bytes written and {:.2} on disk for each byte of event",
        memory(),
        (Usage::now().written - before.written) as f64 / bytes,
        on_disk(dir) as f64 / bytes,
    ));
}

fn open(dir: &Path) -> Arc<Embedded> {
    peak();
    let began = Instant::now();
    let store = Embedded::open(options(dir)).unwrap();
    print(&format!(
        "opened in {:.2} s, {} MiB of memory, at most {} MiB",
        began.elapsed().as_secs_f64(),
        memory(),
        peak()
    ));
    store
}

pub(crate) async fn run(done_millions: f64, pending_millions: f64, dir: Option<String>) {
    let scratch = tempfile::tempdir().unwrap();
    let dir = dir.map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    let (finished, pending) = ((done_millions * 1e6) as usize, (pending_millions * 1e6) as usize);
    let mut hooks: Vec<_> = (0..HOOKS).map(|number| webhook(number, NAMESPACES)).collect();
    if !dir.join("store").exists() {
        fill(&dir, &hooks, finished, pending).await;
    }
    let store = open(&dir);
    if pending > 0 {
        hooks.push(paused());
    }
    lists::table(&store, &hooks).await;
    print(&format!("after the lists: {} MiB of memory, at most {} MiB", memory(), peak()));
    if pending > 0 {
        send(&store, &paused(), pending).await;
        lists::table(&store, &hooks).await;
    }
    store.close().await.unwrap();
}

/// What waited is sent: the Webhook was resumed.
async fn send(store: &Arc<Embedded>, hook: &WebhookRef, pending: usize) {
    let began = Instant::now();
    let oldest = store.oldest_due(hook.uid).is_some();
    print(&format!("oldest due known ({oldest}) in {:.2} ms", began.elapsed().as_secs_f64() * 1e3));
    let began = Instant::now();
    store.work().add([hook.uid]);
    drain(Arc::clone(store), Clock::system(), BATCH, pending, Arc::new(AtomicUsize::new(0))).await;
    print(&format!(
        "sent {pending} that waited: {:.0}/s, {} MiB of memory, at most {} MiB",
        pending as f64 / began.elapsed().as_secs_f64(),
        memory(),
        peak()
    ));
}
