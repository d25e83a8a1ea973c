//! The only place that asks the wall clock.
//!
//! Everything that decides takes a [`UnixMillis`]; everything that acts asks a [`Clock`], so that a test can
//! set the time or let it follow tokio's paused time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use crate::model::time::UnixMillis;

/// Tells the time. Cheap to clone; clones tell the same time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> UnixMillis + Send + Sync>);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

impl Clock {
    /// The system's wall clock.
    pub fn system() -> Self {
        Self(Arc::new(|| {
            #[expect(clippy::disallowed_methods, reason = "the one place that may ask the wall clock")]
            let now = std::time::SystemTime::now();
            let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
            UnixMillis::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
        }))
    }

    /// A clock that stands at `start` until its [`Hand`] is moved.
    pub fn manual(start: UnixMillis) -> (Self, Hand) {
        let hand = Hand(Arc::new(AtomicI64::new(start.as_millis())));
        let read = hand.clone();
        (Self(Arc::new(move || UnixMillis::from_millis(read.0.load(Ordering::SeqCst)))), hand)
    }

    /// A clock that shows `start` now and moves with tokio's time, also while that is paused.
    pub fn following_tokio(start: UnixMillis) -> Self {
        let origin = tokio::time::Instant::now();
        Self(Arc::new(move || start + origin.elapsed()))
    }

    /// The same clock, set by as much as its [`Hand`] shows: zero at first.
    pub fn that_can_be_set(&self) -> (Self, Hand) {
        let hand = Hand(Arc::default());
        let (clock, by) = (self.clone(), hand.clone());
        let now = move || {
            let by = by.0.load(Ordering::SeqCst);
            UnixMillis::from_millis(clock.now().as_millis().saturating_add(by))
        };
        (Self(Arc::new(now)), hand)
    }

    /// The time now.
    pub fn now(&self) -> UnixMillis {
        (self.0)()
    }
}

/// Moves a [`Clock::manual`] or a [`Clock::that_can_be_set`].
#[derive(Clone, Debug)]
pub struct Hand(Arc<AtomicI64>);

impl Hand {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    /// Moves the clock back.
    pub fn set_back(&self, by: Duration) {
        self.0.fetch_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    /// Sets the clock, backwards too.
    pub fn set(&self, to: UnixMillis) {
        self.0.store(to.as_millis(), Ordering::SeqCst);
    }
}
