//! What the process as a whole can have under way, and each endpoint's share of it.
//!
//! There is no permit that endpoints wait for: one that hangs would keep it. Each may use its share, which is
//! the whole divided by those that have something under way, and never less than one attempt.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Used when the limit of open files is not known; the usual soft limit.
const USUAL_OPEN_FILES: usize = 1024;

/// Attempts under way in the whole process: a quarter of the files that it may open, since each attempt has a
/// connection, pools keep some more, and store and server need theirs.
pub(super) fn attempts_for_open_files(limits: Option<&str>) -> usize {
    let line = limits.and_then(|text| text.lines().find_map(|line| line.strip_prefix("Max open files")));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    (soft.unwrap_or(USUAL_OPEN_FILES) / 4).clamp(64, 1 << 16)
}

/// The whole, shared by endpoints that have something under way.
#[derive(Debug)]
pub(super) struct Ceiling {
    attempts: usize,
    bytes: usize,
    busy: AtomicUsize,
}

/// While it lives, its endpoint counts as one with something under way.
#[derive(Debug)]
pub(super) struct Busy(Arc<Ceiling>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Ceiling {
    /// At most so many attempts, with so many bytes of events.
    pub(super) fn new(attempts: usize, bytes: usize) -> Arc<Self> {
        Arc::new(Self { attempts, bytes, busy: AtomicUsize::new(0) })
    }

    /// Counts an endpoint.
    pub(super) fn enter(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// How many attempts an endpoint may have under way, of which so many, with so many bytes, are.
    pub(super) fn share(&self, in_flight: usize, bytes: usize) -> usize {
        let others = self.busy.load(Ordering::Relaxed).saturating_sub(usize::from(in_flight > 0));
        let share = (self.attempts / (others + 1)).max(1);
        if in_flight > 0 && bytes >= self.bytes / (others + 1) { share.min(in_flight) } else { share }
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
            [("1024", 256), ("1048576", 65_536), ("unlimited", 256), ("16", 64), ("8192", 2048)]
        {
            assert_eq!(attempts_for_open_files(Some(&limits(soft))), attempts, "{soft}");
        }
        assert_eq!(attempts_for_open_files(None), 256);
    }

    #[test]
    fn busy_endpoints_share_and_none_is_left_with_nothing() {
        let ceiling = Ceiling::new(100, 1000);
        assert_eq!(ceiling.share(0, 0), 100);
        let hanging = ceiling.enter();
        assert_eq!((ceiling.share(100, 0), ceiling.share(0, 0)), (100, 50));
        let others: Vec<_> = (0..199).map(|_| ceiling.enter()).collect();
        assert_eq!((ceiling.share(1, 0), ceiling.share(0, 0)), (1, 1));
        drop((hanging, others));
        assert_eq!(ceiling.share(0, 0), 100);
    }

    #[test]
    fn large_events_take_no_more_than_their_share_of_memory() {
        let ceiling = Ceiling::new(100, 1000);
        assert_eq!(ceiling.share(3, 999), 100);
        assert_eq!(ceiling.share(3, 1000), 3);
        assert_eq!(ceiling.share(0, 5000), 100, "one is always possible");
        let _other = (ceiling.enter(), ceiling.enter());
        assert_eq!(ceiling.share(3, 500), 3);
    }
}
