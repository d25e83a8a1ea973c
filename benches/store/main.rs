//! How fast the embedded store is, and what it costs.
//!
//! `cargo bench --bench store` prints one table for each question:
//! - in and out: events of 1 KiB are appended in batches, claimed and recorded, beside the ceiling of the disk
//!   (the same bytes appended to one file with the same number of syncs);
//! - `-- row BATCH PUBLISHERS WEBHOOKS EVENTS [TIMES]`: one row of it;
//! - `-- log [DONE [PENDING [DIRECTORY]]]`: filling the log with so many millions, memory, opening, and each kind of
//!   list at the server. A directory is kept, and used as it is when it is there;
//! - `-- disk [THOUSANDS]`: bytes written and kept for each byte of event, and given back by retention.
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

mod common;
mod disk;
mod lists;
mod log;
mod rows;

use rows::Row;

/// The program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let kind = args.next();
    let mut number = || args.next().and_then(|number| number.parse::<f64>().ok());
    match kind.as_deref() {
        Some("log") => {
            let (done, pending) = (number().unwrap_or(1.0), number().unwrap_or(0.0));
            runtime.block_on(log::run(done, pending, args.next()));
        }
        Some("disk") => runtime.block_on(disk::run(number().unwrap_or(200.0))),
        Some("row") => {
            let mut count = || number().unwrap_or(1.0) as usize;
            let row = Row { batch: count(), publishers: count(), webhooks: count(), events: count() };
            let times = count();
            runtime.block_on(rows::table(vec![row; times]));
        }
        _ => runtime.block_on(rows::table(rows::ROWS.into())),
    }
}
