//! What is written to the disk and kept there, and what retention gives back.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookwright::clock::Clock;
use hookwright::model::ids::{Minter, WebhookRef};
use hookwright::store::embedded::{Embedded, Options};
use hookwright::store::records::Retention;
use hookwright::store::{NewEvent, Store};

use crate::common::{BODY, Maker, Usage, drain, memory, noise, on_disk, options, print, webhook};

const AGE: Duration = Duration::from_hours(1);
const BATCH: usize = 100;

fn with_retention(dir: &Path) -> Options {
    Options { retention: Retention { max_age: AGE, max_bytes: u64::MAX }, ..options(dir) }
}

/// Until the engine has written nothing for a while.
async fn settled(dir: &Path) -> u64 {
    let (mut written, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_secs(3) {
        let now = Usage::now().written;
        if now != written {
            (written, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    on_disk(dir)
}

/// Publishes and delivers.
async fn through(store: &Arc<Embedded>, hooks: &[WebhookRef], body: usize, count: usize) {
    let maker = Maker { minter: Minter::default(), clock: Clock::system(), made: AtomicUsize::new(0) };
    for batch in 0..count.div_ceil(BATCH) {
        let of_batch = BATCH.min(count - batch * BATCH);
        let events = (0..of_batch).map(|place| {
            let data = Bytes::from(noise((batch * BATCH + place) as u64, body));
            NewEvent { data, ..maker.event(hooks) }
        });
        store.append(events.collect()).await.unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        store.work().add(hooks.iter().map(|hook| hook.uid));
        drain(Arc::clone(store), Clock::system(), BATCH, of_batch * hooks.len(), done).await;
    }
}

async fn one(name: &str, hooks: usize, body: usize, count: usize) {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(with_retention(dir.path())).unwrap();
    let hooks: Vec<_> = (0..hooks).map(|number| webhook(number, 1)).collect();
    let (before, deliveries) = (Usage::now().written, count * hooks.len());
    through(&store, &hooks, body, count).await;
    let kept = settled(dir.path()).await;
    let written = Usage::now().written - before;
    let later = Clock::system().now() + AGE + Duration::from_mins(1);
    let began = Instant::now();
    assert_eq!(store.retain(later).await.unwrap(), deliveries as u64);
    let took = began.elapsed().as_secs_f64();
    let left = settled(dir.path()).await;
    let all = (count * body) as f64;
    print(&format!(
        "{name:<26} {count:>8} {deliveries:>10} {:>9.2} {:>9.2} {:>9.3} {:>9.1} {:>9.1} {:>9}",
        written as f64 / all,
        kept as f64 / all,
        kept as f64 / deliveries as f64 / 1024.0,
        left as f64 / f64::from(1 << 20),
        took,
        memory(),
    ));
    store.close().await.unwrap();
}

pub(crate) async fn run(thousands: f64) {
    let count = (thousands * 1e3) as usize;
    print(&format!(
        "{:<26} {:>8} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n\
         (written, kept: bytes for each byte of event; KiB/d: kept for each delivery; MiB left and seconds: after \
         retention of all)",
        "", "events", "deliveries", "written", "kept", "KiB/d", "MiB left", "s", "MiB RSS"
    ));
    one("1 KiB to 1 Webhook", 1, BODY, count).await;
    one("1 KiB to 10 Webhooks", 10, BODY, count / 10).await;
    one("64 KiB to 1 Webhook", 1, 64 << 10, count / 50).await;
    one("64 KiB to 100 Webhooks", 100, 64 << 10, count / 500).await;
}
