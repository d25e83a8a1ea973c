//! A sliding window: so many starts within a time, without a clock.

use std::time::Duration;

use super::time::UnixMillis;

/// At most `limit` starts within any `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// At least 1.
    pub limit: usize,
    /// The length of the window.
    pub per: Duration,
}

impl Window {
    /// How many more may start now, after these starts (in any order). Starts in the future, which a clock that was
    /// set back leaves behind, do not count: they would hold everybody up.
    pub fn free(&self, starts: &[UnixMillis], now: UnixMillis) -> usize {
        self.limit.saturating_sub(self.within(starts, now).count())
    }

    /// When the next may start: now, or when enough of the starts have left the window.
    pub fn next(&self, starts: &[UnixMillis], now: UnixMillis) -> UnixMillis {
        let mut within: Vec<UnixMillis> = self.within(starts, now).collect();
        within.sort_unstable();
        let leaving = within.len().checked_sub(self.limit.max(1)).and_then(|leaving| within.get(leaving));
        leaving.map_or(now, |start| *start + self.per)
    }

    fn within(&self, starts: &[UnixMillis], now: UnixMillis) -> impl Iterator<Item = UnixMillis> {
        let per = self.per;
        starts.iter().copied().filter(move |start| *start <= now && now.since(*start) < per)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE_A_MINUTE: Window = Window { limit: 5, per: Duration::from_mins(1) };

    fn at(secs: i64) -> UnixMillis {
        UnixMillis::from_millis(1_700_000_000_000 + secs * 1000)
    }

    #[test]
    fn the_sixth_waits_until_the_first_is_a_minute_ago() {
        let starts = [at(0), at(1), at(2), at(3), at(4)];
        assert_eq!(FIVE_A_MINUTE.free(&[], at(0)), 5);
        assert_eq!(FIVE_A_MINUTE.free(&starts[..3], at(5)), 2);
        assert_eq!(FIVE_A_MINUTE.free(&starts, at(59)), 0);
        assert_eq!(FIVE_A_MINUTE.next(&starts, at(59)), at(60));
        assert_eq!(FIVE_A_MINUTE.free(&starts, at(60)), 1);
        assert_eq!(FIVE_A_MINUTE.next(&starts, at(60)), at(60));
    }

    #[test]
    fn more_starts_than_the_limit_wait_for_enough_of_them_to_leave() {
        let starts = [at(6), at(0), at(1), at(2), at(3), at(4), at(5)];
        assert_eq!(FIVE_A_MINUTE.free(&starts, at(10)), 0);
        assert_eq!(FIVE_A_MINUTE.next(&starts, at(10)), at(62));
    }

    #[test]
    fn no_minute_sees_more_than_the_limit() {
        let mut starts: Vec<UnixMillis> = Vec::new();
        for second in 0..600 {
            for _ in 0..FIVE_A_MINUTE.free(&starts, at(second)).min(2) {
                starts.push(at(second));
            }
        }
        assert_eq!(starts.len(), 50);
        for window in starts.windows(6) {
            assert!(window[5].since(window[0]) >= Duration::from_mins(1), "{window:?}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_holds_nobody_up() {
        let starts = [at(1000); 5];
        assert_eq!(FIVE_A_MINUTE.free(&starts, at(0)), 5);
        assert_eq!(FIVE_A_MINUTE.next(&starts, at(0)), at(0));
    }
}
