//! What the parts of this bench share.

use std::fs;
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
use hookwright::store::{Attempt, ClaimRequest, NewDelivery, NewEvent, Next, Order, Outcome, Store};

pub(crate) const BODY: usize = 1024;

/// `MEMTABLE_MIB` sets the size of the largest memtable; `COMMITS` prints how long commits took.
pub(crate) fn options(dir: &Path) -> Options {
    let mut options = Options::new(dir);
    if let Some(size) = std::env::var("MEMTABLE_MIB").ok().and_then(|size| size.parse::<u64>().ok()) {
        options.memtable_bytes = size << 20;
    }
    options
}

pub(crate) fn webhook(number: usize, namespaces: usize) -> WebhookRef {
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
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
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

pub(crate) struct Maker {
    pub minter: Minter,
    pub clock: Clock,
    pub made: AtomicUsize,
}

impl Maker {
    pub(crate) fn event(&self, webhooks: &[WebhookRef]) -> NewEvent {
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

pub(crate) fn attempt(at: UnixMillis) -> Attempt {
    Attempt {
        at,
        duration: Duration::from_micros(850),
        status: Some(200),
        body: Some("ok".to_owned()),
        content_type: Some("text/plain".to_owned()),
        body_length: 2,
        error: None,
        asked_by: None,
        probe: false,
        retry_after: None,
    }
}

/// What this process has used so far.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    pub at: Instant,
    pub cpu: f64,
    pub written: u64,
}

impl Usage {
    pub(crate) fn now() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse().ok()).unwrap_or(0.0);
        let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
        Self { at: Instant::now(), cpu: (ticks(11) + ticks(12)) / 100.0, written: written.unwrap_or(0) }
    }
}

fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Resident memory in MiB: now.
pub(crate) fn memory() -> u64 {
    status("VmRSS:")
}

/// Resident memory in MiB: the most since this was last called.
pub(crate) fn peak() -> u64 {
    let peak = status("VmHWM:");
    let _ = fs::write("/proc/self/clear_refs", "5");
    peak
}

pub(crate) fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

pub(crate) fn on_disk(path: &Path) -> u64 {
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
pub(crate) async fn drain(
    store: Arc<Embedded>,
    clock: Clock,
    batch: usize,
    total: usize,
    done: Arc<AtomicUsize>,
) {
    while done.load(Ordering::Relaxed) < total {
        for uid in store.work().next().await {
            loop {
                let now = clock.now();
                let request = ClaimRequest {
                    webhook: uid,
                    now,
                    limit: batch,
                    order: Order::LongestDue,
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
                        failing: None,
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
