//! Wall-clock time as the store keeps it.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use jiff::civil::DateTime;
use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(i64);

impl UnixMillis {
    /// From a count of milliseconds.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// The count of milliseconds.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds, rounded down.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// As jiff's timestamp; times that jiff cannot hold become its nearest bound.
    pub fn to_jiff(self) -> jiff::Timestamp {
        let bound = if self.0 < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        jiff::Timestamp::from_millisecond(self.0).unwrap_or(bound)
    }

    /// From jiff's timestamp, rounded down to a millisecond.
    pub fn from_jiff(at: jiff::Timestamp) -> Self {
        Self(at.as_millisecond())
    }

    /// Reads a time of RFC 3339 as the CRD's rules admit it: in upper case, of the years 1000 to 9999, with at most 9
    /// digits of a fraction and without leap seconds; rounded down to a millisecond. None: anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (date_time, rest) = text.as_bytes().split_at_checked(19)?;
        let &[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T', h1, h2, b':', i1, i2, b':', s1, s2] =
            date_time
        else {
            return None;
        };
        let year = i16::from(number([y1, y2])?) * 100 + i16::from(number([y3, y4])?);
        let (hour, minute, second) = (number([h1, h2])?, number([i1, i2])?, number([s1, s2])?);
        let (fraction, zone) = split_fraction(rest)?;
        let at = DateTime::new(year, number([m1, m2])?, number([d1, d2])?, hour, minute, second, 0).ok()?;
        let seconds = at.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0)).as_secs() - offset(zone)?;
        (year >= 1000).then(|| Self(seconds * 1000 + fraction))
    }

    /// How long after `earlier` this is; zero when it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

fn number([tens, ones]: [u8; 2]) -> Option<i8> {
    let value =
        (tens.is_ascii_digit() && ones.is_ascii_digit()).then(|| (tens - b'0') * 10 + (ones - b'0'))?;
    i8::try_from(value).ok()
}

/// Milliseconds, and what comes after them.
fn split_fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let Some(text) = text.strip_prefix(b".") else { return Some((0, text)) };
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (fraction, rest) = text.split_at_checked(digits)?;
    let digit = |at: usize| fraction.get(at).map_or(0, |byte| i64::from(byte - b'0'));
    (1..=9).contains(&digits).then(|| (digit(0) * 100 + digit(1) * 10 + digit(2), rest))
}

/// Seconds ahead of UTC.
fn offset(zone: &[u8]) -> Option<i64> {
    let (sign, hours, minutes) = match *zone {
        [b'Z'] => return Some(0),
        [b'+', h1, h2, b':', m1, m2] => (1, number([h1, h2])?, number([m1, m2])?),
        [b'-', h1, h2, b':', m1, m2] => (-1, number([h1, h2])?, number([m1, m2])?),
        _ => return None,
    };
    (hours < 24 && minutes < 60).then(|| sign * (i64::from(hours) * 3600 + i64::from(minutes) * 60))
}

impl Add<Duration> for UnixMillis {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for UnixMillis {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// RFC 3339 in UTC with milliseconds, as Kubernetes' `MicroTime` readers take it.
impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.to_jiff())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_the_rules_admit_it_and_nothing_else() {
        for (text, millis) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-11-24T10:00:00Z", Some(1_795_514_400_000)),
            ("2026-11-24T11:00:00.5+01:00", Some(1_795_514_400_500)),
            ("2026-11-24T00:30:00.123456789-09:30", Some(1_795_514_400_123)),
            ("2024-02-29T00:00:00Z", Some(1_709_164_800_000)),
            ("9999-12-31T23:59:59Z", Some(253_402_300_799_000)),
            ("9999-12-31T23:59:59.999-23:59", Some(253_402_300_799_999 + 86_340_000)),
            ("1000-01-01T00:00:00Z", Some(-30_610_224_000_000)),
            ("0999-12-31T23:59:59Z", None),
            ("0000-01-01T00:00:00Z", None),
            ("2026-02-29T00:00:00Z", None),
            ("2100-02-29T00:00:00Z", None),
            ("2026-04-31T00:00:00Z", None),
            ("2026-11-24T23:59:60Z", None),
            ("2026-11-24T24:00:00Z", None),
            ("2026-11-24T10:60:00Z", None),
            ("2026-11-24t10:00:00Z", None),
            ("2026-11-24T10:00:00z", None),
            ("2026-11-24 10:00:00Z", None),
            ("2026-11-24T10:00:00", None),
            ("2026-11-24T10:00Z", None),
            ("2026-11-24T10:00:00,5Z", None),
            ("2026-11-24T10:00:00.Z", None),
            ("2026-11-24T10:00:00.0123456789Z", None),
            ("2026-11-24T10:00:00+24:00", None),
            ("2026-11-24T10:00:00+01:60", None),
            ("2026-11-24T10:00:00+0100", None),
            ("2026-11-24T10:00:00+01", None),
            ("2026-11-24", None),
            ("", None),
            (" 2026-11-24T10:00:00Z", None),
            ("2026-11-24T10:00:00Z ", None),
            ("٢٠٢٦-11-24T10:00:00Z", None),
        ] {
            assert_eq!(UnixMillis::parse(text).map(UnixMillis::as_millis), millis, "{text:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for millis in [0, 1_795_514_400_123, 253_402_207_200_999] {
            let at = UnixMillis::from_millis(millis);
            assert_eq!(UnixMillis::parse(&at.to_string()), Some(at));
        }
    }
}
