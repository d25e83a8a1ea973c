//! How fast the embedded store is, and what it costs.
//!
//! `cargo bench --bench store` prints one table for each question:
//! - in and out: events of 1 KiB are appended in batches, claimed and recorded, beside the ceiling of the disk
//!   (the same bytes appended to one file with the same number of syncs);
//! - `-- row BATCH PUBLISHERS WEBHOOKS EVENTS [TIMES]`: one row of it;
//! - `-- large [MILLIONS]`: opening, memory and queries with so many pending deliveries and five times as many
//!   done.
//!
//! The data is in a directory under `TMPDIR`: set that to the disk that is meant.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bench: what is unexpected ends it, and figures are rounded"
)]

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookwright::clock::Clock;
use hookwright::model::event::Attributes;
use hookwright::model::ids::{Minter, WebhookRef, WebhookUid};
use hookwright::model::time::UnixMillis;
use hookwright::store::embedded::{Embedded, Options};
use hookwright::store::records::DedupKey;
use hookwright::store::{
    Attempt, ClaimRequest, EndReason, NewDelivery, NewEvent, Next, Outcome, Query, State, Store,
};

const BODY: usize = 1024;

/// `MEMTABLE_MIB` sets the size of the largest memtable; `COMMITS` prints how long commits took.
fn options(dir: &Path) -> Options {
    let mut options = Options::new(dir);
    if let Some(size) = std::env::var("MEMTABLE_MIB").ok().and_then(|size| size.parse::<u64>().ok()) {
        options.memtable_bytes = size << 20;
    }
    options
}

fn webhook(number: usize, namespaces: usize) -> WebhookRef {
    let mut uid = [0; 16];
    uid[..8].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    uid[8..].copy_from_slice(&(number as u64).to_be_bytes());
    WebhookRef {
        uid: WebhookUid::from_bytes(uid),
        namespace: format!("team-{}", number % namespaces).into(),
        name: format!("hook-{number}").into(),
    }
}

/// Bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

struct Maker {
    minter: Minter,
    clock: Clock,
    made: AtomicUsize,
}

impl Maker {
    fn event(&self, webhooks: &[WebhookRef]) -> NewEvent {
        let number = self.made.fetch_add(1, Ordering::Relaxed) as u64;
        let now = self.clock.now();
        let uid = self.minter.event(now);
        let mut key = [0; 16];
        key.copy_from_slice(&noise(number, 16));
        NewEvent {
            uid,
            namespace: Arc::clone(&webhooks[0].namespace),
            attributes: Arc::new(Attributes {
                id: uid.to_string().into(),
                source: "/bench/store".into(),
                event_type: "order.created".into(),
                data_content_type: Some("application/json".into()),
                data_schema: None,
                subject: None,
                time: Some(now.to_string().into()),
                extensions: vec![],
            }),
            data: Bytes::from(noise(number, BODY)),
            accepted_at: now,
            dedup: Some(DedupKey(key)),
            deliveries: webhooks
                .iter()
                .map(|webhook| NewDelivery {
                    name: self.minter.delivery(now),
                    webhook: webhook.clone(),
                    test: false,
                })
                .collect(),
        }
    }
}

fn attempt(at: UnixMillis) -> Attempt {
    Attempt {
        at,
        duration: Duration::from_micros(850),
        status: Some(200),
        body: Some("ok".to_owned()),
        content_type: Some("text/plain".to_owned()),
        body_length: 2,
        error: None,
        asked_by: None,
    }
}

/// What this process has used so far.
#[derive(Clone, Copy)]
struct Usage {
    at: Instant,
    cpu: f64,
    written: u64,
}

impl Usage {
    fn now() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse().ok()).unwrap_or(0.0);
        let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
        Self { at: Instant::now(), cpu: (ticks(11) + ticks(12)) / 100.0, written: written.unwrap_or(0) }
    }
}

fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => on_disk(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Claims and records everything of some Webhooks until `total` are done, in calls of up to `batch`.
async fn drain(store: Arc<Embedded>, clock: Clock, batch: usize, total: usize, done: Arc<AtomicUsize>) {
    while done.load(Ordering::Relaxed) < total {
        for uid in store.work().next().await {
            loop {
                let now = clock.now();
                let request = ClaimRequest {
                    webhook: uid,
                    now,
                    limit: batch,
                    only: None,
                    lease: Duration::from_mins(1),
                };
                let claims = store.claim(request).await.unwrap();
                if claims.deliveries.is_empty() {
                    break;
                }
                let outcomes: Vec<_> = claims
                    .deliveries
                    .iter()
                    .map(|claimed| Outcome {
                        name: claimed.delivery.name,
                        webhook: uid,
                        attempt: Some(attempt(now)),
                        next: Next::Success,
                        disable: None,
                        at: now,
                    })
                    .collect();
                let store = Arc::clone(&store);
                let done = Arc::clone(&done);
                #[expect(clippy::disallowed_methods, reason = "the bench waits for all by counting")]
                tokio::spawn(async move {
                    let count = outcomes.len();
                    store.record(outcomes).await.unwrap();
                    if done.fetch_add(count, Ordering::Relaxed) + count >= total {
                        store.work().add([uid]);
                    }
                });
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Row {
    batch: usize,
    publishers: usize,
    webhooks: usize,
    events: usize,
}

async fn in_and_out(row: &Row) -> String {
    let Row { batch, publishers, webhooks, events } = *row;
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(options(dir.path())).unwrap();
    let clock = Clock::system();
    let maker =
        Arc::new(Maker { minter: Minter::default(), clock: clock.clone(), made: AtomicUsize::new(0) });
    let hooks: Arc<Vec<_>> = Arc::new((0..webhooks).map(|number| webhook(number, 4)).collect());
    let done = Arc::new(AtomicUsize::new(0));
    let left = Arc::new(AtomicUsize::new(events / batch));
    let before = Usage::now();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(drain(Arc::clone(&store), clock.clone(), batch.max(64), events, Arc::clone(&done)));
    let latencies = Arc::new(std::sync::Mutex::new(Vec::with_capacity(events / batch)));
    for publisher in 0..publishers {
        let (store, maker, left, hooks) = (store.clone(), maker.clone(), left.clone(), hooks.clone());
        let latencies = latencies.clone();
        tasks.spawn(async move {
            let mut turn = publisher;
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                turn += 1;
                let hook = &hooks[turn % hooks.len()..=turn % hooks.len()];
                let batch = (0..batch).map(|_| maker.event(hook)).collect();
                let began = Instant::now();
                store.append(batch).await.unwrap();
                latencies.lock().unwrap().push(began.elapsed());
            }
        });
    }
    tasks.join_all().await;
    let after = Usage::now();
    let commits = commits(&store);
    if std::env::var_os("COMMITS").is_some() {
        let text = store.metrics().encode();
        let lines = text.lines().filter(|line| line.contains("store_commit_duration_seconds_bucket"));
        lines.for_each(print);
    }
    store.close().await.unwrap();
    let closed = Usage::now();
    let seconds = (after.at - before.at).as_secs_f64();
    let mut latencies = std::mem::take(&mut *latencies.lock().unwrap());
    latencies.sort_unstable();
    let quantile = |q: usize| latencies[(latencies.len() - 1) * q / 100].as_secs_f64() * 1e3;
    let ceiling = ceiling(dir.path(), events, commits);
    format!(
        "{batch:>5} {publishers:>5} {webhooks:>5} {:>9.0} {:>9.0} {:>6.2} {:>8.1} {:>8.2} {:>8.2} {:>7.1} {:>7.2} {:>6}",
        events as f64 / seconds,
        ceiling,
        events as f64 / seconds / ceiling,
        (after.cpu - before.cpu) * 1e6 / events as f64,
        quantile(50),
        quantile(99),
        events as f64 / commits as f64,
        (closed.written - before.written) as f64 / (events * BODY) as f64,
        memory(),
    )
}

/// How many commits were made.
fn commits(store: &Embedded) -> usize {
    let text = store.metrics().encode();
    let count =
        text.lines().find_map(|line| line.strip_prefix("hookwright_store_commit_duration_seconds_count "));
    count.and_then(|count| count.parse().ok()).unwrap_or(1)
}

/// Events a second when the bodies alone are appended to one file, with as many syncs.
fn ceiling(dir: &Path, events: usize, syncs: usize) -> f64 {
    let path = dir.join("ceiling");
    let mut file = File::create(&path).unwrap();
    let chunk = noise(1, events * BODY / syncs.max(1));
    let syncs = syncs.min(20_000);
    let began = Instant::now();
    for _ in 0..syncs {
        file.write_all(&chunk).unwrap();
        file.sync_data().unwrap();
    }
    let seconds = began.elapsed().as_secs_f64();
    fs::remove_file(&path).unwrap();
    (syncs * chunk.len() / BODY) as f64 / seconds
}

fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

async fn table(rows: Vec<Row>) {
    print(
        "batch  pubs hooks  events/s ceiling/s  ratio  us CPU/e  p50 ms  p99 ms  e/commit written  MiB\n\
         (ceiling: the same bytes and syncs on one file; written: bytes on disk for each byte of event; \
         latency of append)",
    );
    for row in rows {
        print(&in_and_out(&row).await);
    }
}

const ROWS: [Row; 7] = [
    Row { batch: 1, publishers: 1, webhooks: 1, events: 3_000 },
    Row { batch: 1, publishers: 64, webhooks: 1, events: 60_000 },
    Row { batch: 1, publishers: 64, webhooks: 100, events: 60_000 },
    Row { batch: 50, publishers: 8, webhooks: 1, events: 200_000 },
    Row { batch: 50, publishers: 8, webhooks: 100, events: 200_000 },
    Row { batch: 100, publishers: 8, webhooks: 10, events: 400_000 },
    Row { batch: 500, publishers: 4, webhooks: 10, events: 400_000 },
];

async fn timed<T>(times: usize, mut call: impl AsyncFnMut() -> T) -> String {
    let mut took = VecDeque::new();
    for _ in 0..times {
        let began = Instant::now();
        call().await;
        took.push_back(began.elapsed());
    }
    took.make_contiguous().sort_unstable();
    let at = |q: usize| took[(took.len() - 1) * q / 100].as_secs_f64() * 1e3;
    format!("p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", at(50), at(99), at(100))
}

async fn fill(store: &Arc<Embedded>, maker: &Maker, hooks: &[WebhookRef], count: usize, finish: bool) {
    for batch in 0..count / 500 {
        let hook = &hooks[batch % hooks.len()];
        let events: Vec<_> = (0..500).map(|_| maker.event(std::slice::from_ref(hook))).collect();
        let names: Vec<_> = events.iter().map(|event| event.deliveries[0].name).collect();
        store.append(events).await.unwrap();
        if !finish {
            continue;
        }
        let now = maker.clock.now();
        let request =
            ClaimRequest { webhook: hook.uid, now, limit: 500, only: None, lease: Duration::from_mins(1) };
        store.claim(request).await.unwrap();
        let outcomes = names.iter().enumerate().map(|(place, name)| Outcome {
            name: *name,
            webhook: hook.uid,
            attempt: Some(attempt(now)),
            // One of a hundred thousand fails: the rare selector.
            next: match (batch * 500 + place) % 100_000 {
                0 => Next::Failed(EndReason::RetriesExhausted),
                _ => Next::Success,
            },
            disable: None,
            at: now,
        });
        store.record(outcomes.collect()).await.unwrap();
    }
}

async fn large(millions: f64) {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let maker = Maker { minter: Minter::default(), clock: clock.clone(), made: AtomicUsize::new(0) };
    let hooks: Vec<_> = (0..200).map(|number| webhook(number, 20)).collect();
    let million = (millions * 1e6) as usize;
    let store = Embedded::open(options(dir.path())).unwrap();
    let before = Usage::now();
    fill(&store, &maker, &hooks, 5 * million, true).await;
    fill(&store, &maker, &hooks[..1], million, false).await;
    let after = Usage::now();
    print(&format!(
        "{millions} million pending, {} million done: filled in {:.0} s, {} MiB of memory, {:.2} bytes written and \
         {:.2} on disk for each byte of event",
        5.0 * millions,
        (after.at - before.at).as_secs_f64(),
        memory(),
        (after.written - before.written) as f64 / (6 * million * BODY) as f64,
        on_disk(dir.path()) as f64 / (6 * million * BODY) as f64,
    ));
    store.close().await.unwrap();
    drop(store);
    let began = Instant::now();
    let store = Embedded::open(options(dir.path())).unwrap();
    print(&format!("opened in {:.2} s, {} MiB of memory", began.elapsed().as_secs_f64(), memory()));
    queries(&store, &hooks).await;
    let began = Instant::now();
    let oldest = store.oldest_due(hooks[0].uid);
    print(&format!("oldest due {oldest:?} in {:.2} ms", began.elapsed().as_secs_f64() * 1e3));
    let began = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    store.work().add([hooks[0].uid]);
    drain(Arc::clone(&store), clock, 500, million, done).await;
    print(&format!(
        "a million drained at {:.0} deliveries/s, {} MiB of memory",
        million as f64 / began.elapsed().as_secs_f64(),
        memory()
    ));
    queries(&store, &hooks).await;
    let began = Instant::now();
    store.purge(hooks[0].uid).await.unwrap();
    print(&format!("purged {} in {:.1} s", hooks[0], began.elapsed().as_secs_f64()));
    store.close().await.unwrap();
}

async fn queries(store: &Arc<Embedded>, hooks: &[WebhookRef]) {
    let mut text = String::new();
    let all = |query: Query| Query { limit: 100, ..query };
    let cases = [
        ("everything", all(Query::default())),
        ("a namespace", all(Query { namespace: Some(hooks[3].namespace.clone()), ..Query::default() })),
        ("a webhook", all(Query { webhook: Some(hooks[7].uid), ..Query::default() })),
        ("pending", all(Query { states: vec![State::Pending], ..Query::default() })),
        ("failed, rare", all(Query { states: vec![State::Failed], ..Query::default() })),
        ("succeeded", all(Query { states: vec![State::Success], ..Query::default() })),
        (
            "failed of a namespace",
            all(Query {
                namespace: Some(hooks[0].namespace.clone()),
                states: vec![State::Failed],
                ..Query::default()
            }),
        ),
    ];
    for (name, query) in cases {
        let mut found = 0;
        let mut before = None;
        let took = timed(200, async || {
            // Walks deeper and deeper, from the top again at the end.
            let page = store.query(Query { before, ..query.clone() }).await.unwrap();
            found = found.max(page.deliveries.len());
            before = page.next;
        })
        .await;
        let _ = writeln!(text, "  {name:<22} {took} ({found} found)");
    }
    print(text.trim_end());
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let kind = args.next();
    let mut number = move || args.next().and_then(|number| number.parse::<f64>().ok());
    match kind.as_deref() {
        Some("large") => runtime.block_on(large(number().unwrap_or(1.0))),
        Some("row") => {
            let mut count = || number().unwrap_or(1.0) as usize;
            let row = Row { batch: count(), publishers: count(), webhooks: count(), events: count() };
            let times = count();
            runtime.block_on(table(vec![row; times]));
        }
        _ => runtime.block_on(table(ROWS.into())),
    }
}
