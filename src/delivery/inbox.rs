//! What a worker is told, and the guard that tells it how an attempt ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::limits::Permit;
use super::schedule::Ended;
use crate::store::Tried;

/// Something that a worker has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happening {
    /// There may be work, the route may be another, or the wall clock was set.
    Woken,
    /// It arrived: the slot is free, though the outcome is not recorded yet.
    Arrived {
        /// Size of its event.
        bytes: usize,
        /// Which it was.
        ticket: Ticket,
    },
    /// The outcome is in the store, or never will be. Frees the slot of an attempt that did not arrive: its
    /// failure may change what may be sent next.
    Recorded(Record),
}

/// What the schedule has to know again when an attempt ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ticket {
    /// The round of attempts that it belongs to.
    pub(super) round: u64,
    /// Whether its delivery had been attempted before.
    pub(super) tried: Tried,
}

/// The end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// How it ended.
    pub(super) ended: Ended,
    /// Its slot was freed before.
    pub(super) had_arrived: bool,
    /// Size of its event.
    pub(super) bytes: usize,
    /// Which it was.
    pub(super) ticket: Ticket,
    /// The second since the engine started in which its claim ends, and it with it.
    pub(super) ends_by: u64,
}

/// The inbox of one worker. Holds at most one wake and two happenings for each attempt under way.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    queue: Mutex<Vec<Happening>>,
    notify: Notify,
    /// Milliseconds since the engine started, by which the worker moves again.
    pub(super) moves_by: AtomicU64,
    /// Milliseconds since the engine started, from which on the store has not let it work; 0: it has.
    pub(super) stuck_since: AtomicU64,
}

impl Inbox {
    /// Tells the worker.
    pub(super) fn push(&self, happening: Happening) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if happening != Happening::Woken || queue.last() != Some(&Happening::Woken) {
            queue.push(happening);
        }
        drop(queue);
        self.notify.notify_one();
    }

    /// Takes everything that happened, in order.
    pub(super) fn take(&self) -> Vec<Happening> {
        std::mem::take(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether nothing happened since the last [`Inbox::take`].
    pub(super) fn is_empty(&self) -> bool {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Waits until something may have happened. Cancel safe.
    pub(super) async fn changed(&self) {
        self.notify.notified().await;
    }

    /// When the worker moves again, for those who watch that it does.
    pub(super) fn expect(&self, moves_by: u64) {
        self.moves_by.store(moves_by, Ordering::Relaxed);
    }
}

/// One attempt under way. However it ends, also by a panic, its worker learns it, once.
#[derive(Debug)]
pub(super) struct Slot {
    inbox: Arc<Inbox>,
    record: Record,
    /// Until the attempt ends; its record needs none.
    permit: Option<Permit>,
}

impl Slot {
    pub(super) fn new(inbox: Arc<Inbox>, ticket: Ticket, bytes: usize, ends_by: u64, permit: Permit) -> Self {
        let record = Record { ended: Ended::Unknown, had_arrived: false, bytes, ticket, ends_by };
        Self { inbox, record, permit: Some(permit) }
    }

    /// The answer is in, and it is a success.
    pub(super) fn arrived(&mut self) {
        self.permit = None;
        if !std::mem::replace(&mut self.record.had_arrived, true) {
            self.inbox.push(Happening::Arrived { bytes: self.record.bytes, ticket: self.record.ticket });
        }
    }

    /// The outcome is in the store.
    pub(super) fn recorded(mut self, ended: Ended) {
        self.record.ended = ended;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.permit = None;
        self.inbox.push(Happening::Recorded(self.record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::limits::Ceiling;

    const TICKET: Ticket = Ticket { round: 2, tried: Tried::Never };

    #[test]
    fn a_slot_tells_once_how_it_ended_also_in_a_panic() {
        let recorded = |ended, had_arrived| {
            Happening::Recorded(Record { ended, had_arrived, bytes: 9, ticket: TICKET, ends_by: 3 })
        };
        let inbox = Arc::new(Inbox::default());
        let permit = || Ceiling::new(9, 9).reserve(1, 0).unwrap().start(9);
        let slot = || Slot::new(Arc::clone(&inbox), TICKET, 9, 3, permit());
        let mut whole = slot();
        whole.arrived();
        whole.recorded(Ended::Success);
        assert_eq!(
            inbox.take(),
            [Happening::Arrived { bytes: 9, ticket: TICKET }, recorded(Ended::Success, true)]
        );
        drop(slot());
        assert_eq!(inbox.take(), [recorded(Ended::Unknown, false)]);
        let mut half = slot();
        half.arrived();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _half = half;
            panic!("in an attempt");
        }));
        assert!(panicked.is_err());
        assert_eq!(
            inbox.take(),
            [Happening::Arrived { bytes: 9, ticket: TICKET }, recorded(Ended::Unknown, true)]
        );
    }

    #[tokio::test]
    async fn wakes_are_kept_once_and_none_is_lost_between_take_and_changed() {
        let inbox = Inbox::default();
        for _ in 0..3 {
            inbox.push(Happening::Woken);
        }
        assert_eq!(inbox.take(), [Happening::Woken]);
        inbox.push(Happening::Woken);
        inbox.changed().await;
        assert!(!inbox.is_empty());
    }
}
