//! In and out: events are appended in batches, claimed and recorded, beside the ceiling of the disk.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hookwright::clock::Clock;
use hookwright::model::ids::Minter;
use hookwright::store::Store;
use hookwright::store::embedded::Embedded;

use crate::common::{BODY, Maker, Usage, drain, memory, noise, options, print, webhook};

#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub batch: usize,
    pub publishers: usize,
    pub webhooks: usize,
    pub events: usize,
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

pub(crate) async fn table(rows: Vec<Row>) {
    print(
        "batch  pubs hooks  events/s ceiling/s  ratio  us CPU/e  p50 ms  p99 ms  e/commit written  MiB\n\
         (ceiling: the same bytes and syncs on one file; written: bytes on disk for each byte of event; \
         latency of append)",
    );
    for row in rows {
        print(&in_and_out(&row).await);
    }
}

pub(crate) const ROWS: [Row; 7] = [
    Row { batch: 1, publishers: 1, webhooks: 1, events: 3_000 },
    Row { batch: 1, publishers: 64, webhooks: 1, events: 60_000 },
    Row { batch: 1, publishers: 64, webhooks: 100, events: 60_000 },
    Row { batch: 50, publishers: 8, webhooks: 1, events: 200_000 },
    Row { batch: 50, publishers: 8, webhooks: 100, events: 200_000 },
    Row { batch: 100, publishers: 8, webhooks: 10, events: 400_000 },
    Row { batch: 500, publishers: 4, webhooks: 10, events: 400_000 },
];
