//! What the process as a whole can have under way, and each endpoint's share of it.
//!
//! There is no permit that endpoints wait for: those that hang would keep all. Each may use its share, which is the
//! whole divided by those that have something under way. What it took when it was alone stays with it until it ends,
//! so of twice the whole each takes at most half of what the others leave: endpoints that begin to hang one after the
//! other never have more than twice the whole, and one attempt for each beyond that, since none is left with nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Used when the limit of open files is not known; the usual soft limit.
const USUAL_OPEN_FILES: usize = 1024;

/// Attempts under way in the whole process at most, however many files it may open: with HTTP/1.1 each has a connection
/// of its own, with TLS and buffers some 50 KiB.
const MOST: usize = 4096;

/// Attempts under way in the whole process: a quarter of the files that it may open, since each attempt has a
/// connection, pools keep some more, and store and server need theirs.
pub(super) fn attempts_for_open_files(limits: Option<&str>) -> usize {
    let line = limits.and_then(|text| text.lines().find_map(|line| line.strip_prefix("Max open files")));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    (soft.unwrap_or(USUAL_OPEN_FILES) / 4).clamp(64, MOST)
}

/// Each endpoint may have this part of the whole's bytes under way, whatever others have.
const FLOOR: usize = 1024;

/// The whole, shared by endpoints that have something under way.
#[derive(Debug)]
pub(super) struct Ceiling {
    attempts: usize,
    bytes: usize,
    busy: AtomicUsize,
    taken: AtomicUsize,
    taken_bytes: AtomicUsize,
}

/// While it lives, its endpoint counts as one with something under way.
#[derive(Debug)]
pub(super) struct Busy(Arc<Ceiling>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Attempts that are about to start.
#[derive(Debug)]
pub(super) struct Reserved {
    ceiling: Arc<Ceiling>,
    count: usize,
}

/// One attempt under way.
#[derive(Debug)]
pub(super) struct Permit {
    ceiling: Arc<Ceiling>,
    bytes: usize,
}

impl Reserved {
    /// How many.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// One of them starts, with so many bytes.
    pub(super) fn start(&mut self, bytes: usize) -> Permit {
        let ceiling = Arc::clone(&self.ceiling);
        ceiling.taken_bytes.fetch_add(bytes, Ordering::Relaxed);
        match self.count.checked_sub(1) {
            Some(count) => self.count = count,
            None => _ = ceiling.taken.fetch_add(1, Ordering::Relaxed),
        }
        Permit { ceiling, bytes }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.ceiling.taken.fetch_sub(self.count, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.ceiling.taken.fetch_sub(1, Ordering::Relaxed);
        self.ceiling.taken_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Half of what others leave of twice the whole.
fn left(whole: usize, taken: &AtomicUsize, own: usize) -> usize {
    let others = taken.load(Ordering::Relaxed).saturating_sub(own);
    whole.saturating_mul(2).saturating_sub(others) / 2
}

impl Ceiling {
    /// About so many attempts, with so many bytes of events; twice as many at most, and one attempt for each endpoint
    /// that comes when they are taken. What a claim brings is counted once it is there.
    pub(super) fn new(attempts: usize, bytes: usize) -> Arc<Self> {
        let zero = || AtomicUsize::new(0);
        Arc::new(Self { attempts, bytes, busy: zero(), taken: zero(), taken_bytes: zero() })
    }

    /// Counts an endpoint.
    pub(super) fn enter(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// How many attempts an endpoint may have under way, of which so many, with so many bytes, are.
    pub(super) fn share(&self, in_flight: usize, bytes: usize) -> usize {
        let others = self.busy.load(Ordering::Relaxed).saturating_sub(usize::from(in_flight > 0));
        let share = (self.attempts / (others + 1)).min(left(self.attempts, &self.taken, in_flight)).max(1);
        let enough = (self.bytes / (others + 1)).min(left(self.bytes, &self.taken_bytes, bytes));
        if bytes < enough {
            return share;
        }
        // However large the events of others are: small ones of its own go on.
        let few = (self.bytes / FLOOR).saturating_mul(in_flight) / bytes.max(1);
        share.min(in_flight.max(few)).max(1)
    }

    /// Takes so many attempts of an endpoint's share, or what is left of it; none: somebody was quicker. Who has none
    /// under way always gets one.
    pub(super) fn reserve(self: &Arc<Self>, wanted: usize, in_flight: usize) -> Option<Reserved> {
        let granted = |taken| {
            let left = self.attempts.saturating_mul(2).saturating_sub(taken);
            wanted.min(left.max(usize::from(in_flight == 0)))
        };
        let take = |taken| Some(taken + granted(taken));
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).unwrap_or_default();
        let count = granted(taken);
        (count > 0).then(|| Reserved { ceiling: Arc::clone(self), count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_the_open_files_is_for_attempts() {
        let limits = |soft: &str| {
            format!("Max processes  1 1 processes\nMax open files            {soft} 4096  files\n")
        };
        for (soft, attempts) in
            [("1024", 256), ("1048576", MOST), ("unlimited", 256), ("16", 64), ("8192", 2048)]
        {
            assert_eq!(attempts_for_open_files(Some(&limits(soft))), attempts, "{soft}");
        }
        assert_eq!(attempts_for_open_files(None), 256);
    }

    /// An endpoint that takes what it may, 32 at a time, and gives nothing back.
    struct Hanging {
        permits: Vec<Permit>,
        _busy: Option<Busy>,
    }

    fn hang(ceiling: &Arc<Ceiling>, bytes: usize) -> Hanging {
        let (mut permits, mut busy) = (Vec::new(), None);
        loop {
            let in_flight = permits.len();
            let room = ceiling.share(in_flight, in_flight * bytes).saturating_sub(in_flight).min(32);
            if room == 0 {
                return Hanging { permits, _busy: busy };
            }
            let mut reserved = ceiling.reserve(room, in_flight).unwrap();
            let count = reserved.count();
            permits.extend((0..count).map(|_| reserved.start(bytes)));
            busy.get_or_insert_with(|| ceiling.enter());
        }
    }

    fn taken(ceiling: &Ceiling) -> (usize, usize) {
        (ceiling.taken.load(Ordering::Relaxed), ceiling.taken_bytes.load(Ordering::Relaxed))
    }

    #[test]
    fn busy_endpoints_share_and_none_is_left_with_nothing() {
        let ceiling = Ceiling::new(100, 1000);
        assert_eq!(ceiling.share(0, 0), 100);
        let first = ceiling.enter();
        assert_eq!((ceiling.share(60, 0), ceiling.share(0, 0)), (100, 50));
        let others: Vec<_> = (0..199).map(|_| ceiling.enter()).collect();
        assert_eq!((ceiling.share(1, 0), ceiling.share(0, 0)), (1, 1));
        drop((first, others));
        assert_eq!(ceiling.share(0, 0), 100);
    }

    #[test]
    fn endpoints_that_hang_one_after_the_other_take_twice_the_whole_and_the_next_gets_its_slot() {
        let ceiling = Ceiling::new(64, 1 << 20);
        let mut all: Vec<_> = (0..200).map(|_| hang(&ceiling, 0)).collect();
        let counts: Vec<_> = all.iter().map(|one| one.permits.len()).collect();
        assert_eq!(counts[..8], [64, 32, 16, 8, 4, 2, 1, 1]);
        assert!(counts[8..].iter().all(|count| *count == 1));
        assert_eq!(taken(&ceiling).0, 127 + 193);
        assert!(taken(&ceiling).0 <= 2 * 64 + 200, "what the module says");
        assert_eq!(hang(&ceiling, 0).permits.len(), 1, "the next one, at once");
        // As their time is up, the rest share what there is.
        all.drain(..190);
        assert_eq!(hang(&ceiling, 0).permits.len(), 64 / 11);
        all.clear();
        assert_eq!((taken(&ceiling), ceiling.share(0, 0)), ((0, 0), 64));
    }

    #[test]
    fn large_events_take_no_more_than_their_share_of_memory() {
        let ceiling = Ceiling::new(100, 1000);
        assert_eq!((ceiling.share(3, 999), ceiling.share(3, 1000)), (100, 3));
        let _others = (ceiling.enter(), ceiling.enter());
        assert_eq!(ceiling.share(3, 500), 3);
    }

    #[test]
    fn large_events_of_endpoints_that_hang_one_after_the_other_take_twice_the_memory_and_one_claim_each() {
        let ceiling = Ceiling::new(1 << 16, 1000);
        let all: Vec<_> = (0..200).map(|_| hang(&ceiling, 10)).collect();
        let (attempts, bytes) = taken(&ceiling);
        assert!(all.iter().all(|one| !one.permits.is_empty()));
        assert!(bytes <= 2 * 1000 + 32 * 10 + 200 * 10, "{bytes} bytes of {attempts} attempts");
    }

    #[test]
    fn small_events_go_on_beside_large_ones_that_hang() {
        let ceiling = Ceiling::new(1 << 12, 256 << 20);
        let _hanging: Vec<_> = (0..20).map(|_| hang(&ceiling, 1 << 20)).collect();
        assert!(taken(&ceiling).1 >= 512 << 20, "nothing is left");
        assert_eq!(hang(&ceiling, 1 << 20).permits.len(), 1);
        let (first, tenth) = (ceiling.share(1, 1 << 10), ceiling.share(10, 10 << 10));
        assert!(first >= 64 && tenth >= 64, "{first}, {tenth}");
    }

    #[test]
    fn what_was_left_goes_to_who_is_quicker_but_for_the_first_attempt_of_each() {
        let ceiling = Ceiling::new(8, 1000);
        let most = ceiling.reserve(10, 0).unwrap();
        let rest = ceiling.reserve(32, 1).unwrap();
        assert_eq!((most.count(), rest.count()), (10, 6));
        assert!(ceiling.reserve(1, 1).is_none());
        let mut first = ceiling.reserve(32, 0).unwrap();
        assert_eq!(first.count(), 1);
        let permit = first.start(5);
        drop((most, rest, first));
        assert_eq!(taken(&ceiling), (1, 5));
        drop(permit);
        assert_eq!(taken(&ceiling), (0, 0));
    }
}
