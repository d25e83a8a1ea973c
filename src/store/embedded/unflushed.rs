//! What is committed but in no table yet: it is in memory, so it is bounded here.
//!
//! The engine seals a memtable that has grown to its size, and writes it to a table, in one thread that also
//! compacts. While that is at a compaction, memtables would grow by all that is written. So the writer seals them
//! itself, but never a fourth of a keyspace, with which the engine would hold the writer up, and with it the outcomes of
//! deliveries; and publishing waits before it reaches the writer, large calls first.

use fjall::{AbstractTree as _, Keyspace};

use super::disk::{Disk, engine};
use crate::store::Result;

/// With so many sealed memtables in one keyspace, no more are sealed and large calls wait.
const SEALED: usize = 3;
/// Calls of so many bytes are large: a single event goes into the next commit.
const LARGE: usize = 16 << 10;
/// With a memtable of so many times its size, all calls wait.
const OVERFULL: u64 = 4;

impl Disk {
    /// Seals the memtables that have grown to their size.
    pub(super) fn seal_full(&self) -> Result<()> {
        let is_full = |(keyspace, size): &(&Keyspace, u64)| {
            active(keyspace) >= *size && keyspace.sealed_memtable_count() < SEALED
        };
        self.memtables()
            .filter(is_full)
            .try_for_each(|(keyspace, _)| keyspace.rotate_memtable().map(drop))
            .map_err(engine("seal a memtable"))
    }

    /// Whether a call of so many bytes is to wait until the tables have caught up.
    pub(super) fn is_behind(&self, bytes: usize) -> bool {
        let is_behind = |(keyspace, size): (&Keyspace, u64)| {
            keyspace.sealed_memtable_count() >= SEALED
                && (bytes >= LARGE || active(keyspace) >= size.saturating_mul(OVERFULL))
        };
        self.memtables().any(is_behind)
    }

    /// Each with the size at which its memtable is sealed: half of a table, or a quarter of those with small entries.
    /// In keyspaces that an older program made the engine asks for the same beyond these sizes.
    fn memtables(&self) -> impl Iterator<Item = (&Keyspace, u64)> {
        let (half, quarter) = (self.memtable / 2, self.memtable / 4);
        let Self { meta, events, log, index, retries, terms, dedup: [first, second], .. } = self;
        let large = [events, log, index].into_iter().map(move |keyspace| (keyspace, half));
        large
            .chain([meta, retries, terms, first, second].into_iter().map(move |keyspace| (keyspace, quarter)))
    }
}

/// Bytes that are written to a keyspace and not sealed.
fn active(keyspace: &Keyspace) -> u64 {
    keyspace.tree.active_memtable().size()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use hookwright_harness::scratch::scratch;

    use super::*;
    use crate::model::ids::Minter;
    use crate::store::behaviour::webhook;
    use crate::store::embedded::tests::{event, options};
    use crate::store::embedded::{Embedded, Options};
    use crate::store::{NewEvent, Store as _};

    #[test]
    fn while_no_table_is_written_memory_is_bounded_and_single_events_go_on() {
        const MEMTABLE: u64 = 256 << 10;
        let dir = scratch();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let _inside = runtime.enter();
        let store = Embedded::open(Options { memtable_bytes: MEMTABLE, ..options(&dir) }).unwrap();
        let (minter, hook) = (Minter::default(), webhook("team-a", 1));
        let body = Bytes::from(vec![b'x'; 32 << 10]);
        let large = || vec![NewEvent { data: body.clone(), ..event(&minter, &[&hook]) }];
        let disk = store.shared.disk().unwrap();

        let busy = disk.events.tree.get_flush_lock();
        let mut calls: u64 = 0;
        while !disk.is_behind(LARGE) {
            runtime.block_on(store.append(large())).unwrap();
            calls += 1;
            assert!(
                calls * (32 << 10) <= 4 * MEMTABLE,
                "sealed at half of its size, three of them are sealed"
            );
        }
        assert!(!disk.is_behind(LARGE - 1));
        let mut waiting = store.append(large());
        let while_it_waits = async { tokio::time::timeout(Duration::from_millis(200), &mut waiting).await };
        runtime.block_on(while_it_waits).unwrap_err();
        runtime.block_on(store.append(vec![event(&minter, &[&hook])])).unwrap();

        // Many single ones fill the memtable beyond its size, and then they wait, too; outcomes never do.
        let small = || vec![NewEvent { data: body.slice(..8 << 10), ..event(&minter, &[&hook]) }];
        while !disk.is_behind(1) {
            runtime.block_on(store.append(small())).unwrap();
            calls += 1;
            assert_eq!(disk.events.sealed_memtable_count(), SEALED, "a fourth holds the writer up");
            assert!(calls < 200, "{calls} calls");
        }
        let mut small_one = store.append(small());
        let while_it_waits = async { tokio::time::timeout(Duration::from_millis(200), &mut small_one).await };
        runtime.block_on(while_it_waits).unwrap_err();
        runtime.block_on(store.record(vec![])).unwrap();
        drop(busy);
        runtime.block_on(waiting).unwrap();
        runtime.block_on(small_one).unwrap();
        let limit = Instant::now() + Duration::from_mins(1);
        while disk.events.sealed_memtable_count() > 0 {
            assert!(Instant::now() < limit, "tables are not written");
            std::thread::yield_now();
        }
    }
}
