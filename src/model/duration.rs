//! Durations as people write them in a spec and read them in a status: `1h30m`, `15s`, `500ms`.

use std::fmt::Write as _;
use std::time::Duration;

/// Reads whole numbers with the units `h`, `m`, `s` and `ms`, added up, as the CRD's rules admit them.
/// None: anything else, a number of more digits than they admit, or more than a century.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut millis: u64 = 0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let (unit, digits) = match unit {
            "h" => (3_600_000, 6),
            "m" => (60_000, 7),
            "s" => (1000, 7),
            "ms" => (1, 7),
            _ => return None,
        };
        if number.len() > digits {
            return None;
        }
        millis = number.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(millis)?;
        rest = after;
    }
    (!text.is_empty() && millis <= 100 * 366 * 86_400_000).then(|| Duration::from_millis(millis))
}

/// Longest duration in a spec, in characters.
const LONGEST: usize = 16;

/// Reads a duration of a spec that is within these bounds, as the CRD's rules admit it.
pub fn within(text: &str, bounds: std::ops::RangeInclusive<Duration>) -> Option<Duration> {
    parse(text).filter(|duration| text.len() <= LONGEST && bounds.contains(duration))
}

/// Writes a duration so that [`parse`] and Go read it: `7m10s`, `24h`, `1s500ms`; parts that are zero are left
/// out, less than a millisecond is `0s`.
pub fn format(duration: Duration) -> String {
    let (secs, millis) = (duration.as_secs(), duration.subsec_millis());
    let mut text = String::new();
    for (number, unit) in
        [(secs / 3600, "h"), (secs / 60 % 60, "m"), (secs % 60, "s"), (u64::from(millis), "ms")]
    {
        if number > 0 {
            let _ = write!(text, "{number}{unit}");
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_rules_admit_is_read_and_nothing_else() {
        for (text, millis) in [
            ("15s", Some(15_000)),
            ("1h30m", Some(5_400_000)),
            ("100ms", Some(100)),
            ("1m500ms", Some(60_500)),
            ("30m1h", Some(5_400_000)),
            ("168h", Some(604_800_000)),
            ("0s", Some(0)),
            ("", None),
            ("15", None),
            ("s", None),
            ("-1s", None),
            ("1.5s", None),
            ("1d", None),
            ("1 s", None),
            ("1S", None),
            ("99999999999999999999s", None),
            ("9999999h9999999h", None),
            ("9999999h", None),
            ("0000001h", None),
            ("00000001s", None),
            ("1h ", None),
            ("١s", None),
            ("1μs", None),
        ] {
            assert_eq!(parse(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn bounds_are_exact() {
        let minute = Duration::from_secs(1)..=Duration::from_mins(1);
        for (text, fits) in [
            ("1s", true),
            ("999ms", false),
            ("60s", true),
            ("1m", true),
            ("60s1ms", false),
            ("1s0000000000000ms", false),
        ] {
            assert_eq!(within(text, minute.clone()).is_some(), fits, "{text}");
        }
        assert_eq!(within("0s0s0s0s0s0s0s1m", minute.clone()), Some(Duration::from_mins(1)));
        assert_eq!(within("0s0s0s0s0s0s0s01m", minute), None, "17 characters");
    }

    #[test]
    fn what_is_written_is_short_and_can_be_read_again() {
        for (millis, text) in
            [(430_000, "7m10s"), (86_400_000, "24h"), (1500, "1s500ms"), (0, "0s"), (334_990_000, "93h3m10s")]
        {
            let duration = Duration::from_millis(millis);
            assert_eq!(format(duration), text);
            assert_eq!(parse(text), Some(duration), "{text}");
        }
    }
}
