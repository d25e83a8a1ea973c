//! Rate limits as arithmetic: the generic cell rate algorithm (ITU-T I.371), without a clock.

use std::time::Duration;

use super::time::UnixMillis;

/// At most `requests` in each `per`, `burst` of them at once after a pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// At least 1.
    pub requests: u32,
    /// In this time.
    pub per: Duration,
    /// At least 1.
    pub burst: u32,
}

/// Where a limit stands: when the next request would be exactly on schedule.
/// Counted in microseconds, since a limit may be finer than a millisecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    on_schedule: i128,
}

impl Meter {
    /// How many requests may start now, at most `wanted`; counts them as started. When it is fewer than wanted,
    /// the time from which the next may start.
    pub fn take(&mut self, limit: &RateLimit, now: UnixMillis, wanted: usize) -> (usize, Option<UnixMillis>) {
        let now = i128::from(now.as_millis()) * 1000;
        let requests = i128::from(limit.requests.max(1));
        let per = i128::try_from(limit.per.as_micros()).unwrap_or(i128::MAX / 1_000_000);
        let tolerance = per * i128::from(limit.burst.max(1) - 1) / requests;
        // A clock set back must not stop the flow for longer than a full burst takes.
        let latest = now + tolerance + per / requests;
        let mut schedule = (self.on_schedule.min(latest)).max(now) * requests;
        let (now, tolerance) = (now * requests, tolerance * requests);
        let mut taken = 0;
        while taken < wanted && schedule - tolerance <= now {
            schedule += per;
            taken += 1;
        }
        self.on_schedule = schedule / requests;
        let next = (taken < wanted).then(|| {
            let micros = (schedule - tolerance) / requests;
            UnixMillis::from_millis(i64::try_from((micros + 999) / 1000).unwrap_or(i64::MAX))
        });
        (taken, next)
    }

    /// From when on nothing that was taken matters any more: a meter that is forgotten then loses nothing.
    pub fn rested_at(&self) -> UnixMillis {
        UnixMillis::from_millis(i64::try_from((self.on_schedule + 999) / 1000).unwrap_or(i64::MAX))
    }

    /// Gives back what [`Meter::take`] counted and was not used.
    pub fn give_back(&mut self, limit: &RateLimit, unused: usize) {
        let per = i128::try_from(limit.per.as_micros()).unwrap_or(0);
        let unused = i128::try_from(unused).unwrap_or(0);
        self.on_schedule -= per * unused / i128::from(limit.requests.max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> UnixMillis {
        UnixMillis::from_millis(1_700_000_000_000 + millis)
    }

    #[test]
    fn a_burst_then_the_rate() {
        let limit = RateLimit { requests: 10, per: Duration::from_secs(1), burst: 3 };
        let mut meter = Meter::default();
        assert_eq!(meter.take(&limit, at(0), 100), (3, Some(at(100))));
        assert_eq!(meter.rested_at(), at(300));
        assert_eq!(meter.take(&limit, at(99), 1), (0, Some(at(100))));
        assert_eq!(meter.take(&limit, at(100), 1), (1, None));
        assert_eq!(meter.take(&limit, at(1000), 100), (3, Some(at(1100))));
    }

    #[test]
    fn a_minute_never_sees_more_than_rate_and_burst() {
        let limit = RateLimit { requests: 7, per: Duration::from_secs(3), burst: 2 };
        let mut meter = Meter::default();
        let taken: usize = (0..60_000).step_by(13).map(|ms| meter.take(&limit, at(ms), 5).0).sum();
        assert!((139..=142).contains(&taken), "{taken}");
    }

    #[test]
    fn a_clock_set_back_stops_nothing_for_long() {
        let limit = RateLimit { requests: 1, per: Duration::from_secs(1), burst: 1 };
        let mut meter = Meter::default();
        assert_eq!(meter.take(&limit, at(3_600_000), 1).0, 1);
        let (taken, next) = meter.take(&limit, at(0), 1);
        assert!(taken == 1 || next <= Some(at(1000)), "{taken} {next:?}");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let limit = RateLimit { requests: 1, per: Duration::from_secs(1), burst: 4 };
        let mut meter = Meter::default();
        assert_eq!(meter.take(&limit, at(0), 4).0, 4);
        meter.give_back(&limit, 2);
        assert_eq!(meter.take(&limit, at(0), 4).0, 2);
    }
}
