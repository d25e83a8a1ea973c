//! What is committed but in no table yet: it is in memory, so it is bounded here.
//!
//! The engine seals a memtable that has grown to its size, and writes it to a table, in one thread that also
//! compacts. While that is at a compaction, memtables would grow by all that is written, and only four sealed ones
//! of a keyspace would hold the writer up, and with it the outcomes of deliveries. So the writer seals them itself,
//! and large calls wait before they reach it.

use fjall::AbstractTree as _;

use super::disk::{Disk, engine};
use crate::store::Result;

/// With so many sealed memtables in one keyspace, large calls wait. One fewer than hold the writer up.
const SEALED: usize = 3;
/// Calls of so many bytes are large: a single event goes into the next commit.
const LARGE: usize = 16 << 10;

impl Disk {
    /// Seals the memtables that have grown to their size.
    pub(super) fn seal_full(&self) -> Result<()> {
        let full = |keyspace: &&fjall::Keyspace| keyspace.tree.active_memtable().size() >= self.memtable / 2;
        self.keyspaces()
            .into_iter()
            .filter(full)
            .try_for_each(|keyspace| keyspace.rotate_memtable().map(drop))
            .map_err(engine("seal a memtable"))
    }

    /// Whether a call of so many bytes is to wait until the tables have caught up.
    pub(super) fn is_behind(&self, bytes: usize) -> bool {
        let behind = |keyspace: &fjall::Keyspace| keyspace.sealed_memtable_count() >= SEALED;
        bytes >= LARGE && self.keyspaces().into_iter().any(behind)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::model::ids::Minter;
    use crate::store::behaviour::webhook;
    use crate::store::embedded::tests::{event, options, scratch};
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
        drop(busy);
        runtime.block_on(waiting).unwrap();
    }
}
