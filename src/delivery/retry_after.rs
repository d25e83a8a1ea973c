//! `Retry-After`: a number of seconds or a date (RFC 9110, sections 10.2.3 and 5.6.7).

use std::time::Duration;

use jiff::fmt::strtime::BrokenDownTime;

use crate::model::time::UnixMillis;

/// The three forms of a date, the preferred one first.
const DATES: [&str; 3] = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];

/// How long to wait from `now`; a date that has passed is no wait. None: neither a number nor a date.
pub(super) fn parse(value: &str, now: UnixMillis) -> Option<Duration> {
    let value = value.trim_ascii();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a u64 holds is a very long wait, not none.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    DATES.iter().find_map(|format| date(format, value)).map(|at| at.since(now))
}

fn date(format: &str, value: &str) -> Option<UnixMillis> {
    let date = BrokenDownTime::parse(format, value).ok()?.to_datetime().ok()?;
    Some(UnixMillis::from_jiff(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_all_three_dates_are_understood() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = UnixMillis::from_millis(784_111_777_000) - Duration::from_secs(90);
        for (value, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(90)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(90)),
            ("Sun Nov  6 08:49:37 1994", Some(90)),
            ("Sun, 06 Nov 1994 08:48:06 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(parse(value, now).map(|wait| wait.as_secs()), seconds, "{value:?}");
        }
    }
}
