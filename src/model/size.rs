//! Sizes as Kubernetes writes quantities: `1Gi`, `512Mi`, `1.5G`, `1073741824`, `1e9`.

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is none in any way.
    #[error("{0:?} is not a size: write bytes, such as 1Gi, 512Mi or 1073741824")]
    Unreadable(String),
    /// It nearly is one.
    #[error("{given:?} is not a size: write {better}, as Kubernetes does")]
    Unit {
        /// What was given.
        given: String,
        /// What was probably meant.
        better: String,
    },
    /// It does not fit into 64 bits.
    #[error("{0:?} is too large: it must be less than 16Ei")]
    TooLarge(String),
}

const UNITS: [(&str, u128); 13] = [
    ("", 1),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
];

/// Reads a size in bytes; part of a byte counts as one, as in Kubernetes. Exponents are read since Helm writes large
/// numbers with them.
pub fn parse(text: &str) -> Result<u64, Error> {
    let unreadable = || Error::Unreadable(text.to_owned());
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    // More digits than these would be more than 16Ei, or less than a byte of it.
    let digits = [whole, part].concat();
    if digits.is_empty() || digits.len() > 20 || part.contains('.') {
        return Err(unreadable());
    }
    let Some(factor) = factor(unit) else { return Err(meant(text, number, unit).unwrap_or_else(unreadable)) };
    let scale = u32::try_from(part.len()).ok().and_then(|places| 10_u128.checked_pow(places));
    let digits: u128 = digits.parse().map_err(|_| unreadable())?;
    let bytes = digits.checked_mul(factor).zip(scale).map(|(digits, scale)| digits.div_ceil(scale));
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).ok_or_else(|| Error::TooLarge(text.to_owned()))
}

/// What a unit or an exponent multiplies by.
fn factor(unit: &str) -> Option<u128> {
    if let Some((_, factor)) = UNITS.into_iter().find(|(known, _)| *known == unit) {
        return Some(factor);
    }
    let exponent = unit.strip_prefix(['e', 'E'])?;
    let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
    let valid = exponent.len() <= 2 && exponent.bytes().all(|b| b.is_ascii_digit());
    let exponent = if valid { exponent.parse::<u32>().ok()? } else { return None };
    (exponent <= 18).then(|| 10_u128.pow(exponent))
}

/// The unit that comes to mind: `GiB`, `gi`, `GB`, `m` (which is a thousandth in Kubernetes).
fn meant(text: &str, number: &str, unit: &str) -> Option<Error> {
    let unit = unit.trim_start();
    let bare = unit.strip_suffix(['b', 'B']).unwrap_or(unit);
    let (known, _) = UNITS.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(bare))?;
    Some(Error::Unit { given: text.to_owned(), better: format!("{number}{known}") })
}

/// Writes a size in at most six characters, for people: `0`, `980`, `1Ki`, `1.5Gi`, `312Mi`. Rounded down, so that
/// what is under a limit looks so.
pub fn format(bytes: u64) -> String {
    let units = [("Ei", 60_u32), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let Some((unit, bits)) = units.into_iter().find(|(_, bits)| bytes >> bits > 0) else {
        return bytes.to_string();
    };
    let tenths = (u128::from(bytes) * 10) >> bits;
    match (tenths / 10, tenths % 10) {
        (whole @ 0..10, tenth @ 1..) => format!("{whole}.{tenth}{unit}"),
        (whole, _) => format!("{whole}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_reads_quantities() {
        for (text, bytes) in [
            ("0", 0),
            ("1073741824", 1 << 30),
            ("1Ki", 1024),
            ("512Mi", 512 << 20),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            ("0.5Ki", 512),
            (".5Ki", 512),
            ("1.Ki", 1024),
            ("1.1", 2),
            ("10k", 10_000),
            ("1M", 1_000_000),
            ("2T", 2_000_000_000_000),
            ("1e9", 1_000_000_000),
            ("1.073741824e+09", 1 << 30),
            ("1E", 1_000_000_000_000_000_000),
            ("1E3", 1000),
            ("15Ei", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_what_is() {
        for (text, message) in [
            ("1GiB", "\"1GiB\" is not a size: write 1Gi, as Kubernetes does"),
            ("1GB", "\"1GB\" is not a size: write 1G, as Kubernetes does"),
            ("1.5gib", "\"1.5gib\" is not a size: write 1.5Gi, as Kubernetes does"),
            ("1 Gi", "\"1 Gi\" is not a size: write 1Gi, as Kubernetes does"),
            ("512m", "\"512m\" is not a size: write 512M, as Kubernetes does"),
            ("64K", "\"64K\" is not a size: write 64k, as Kubernetes does"),
            ("100B", "\"100B\" is not a size: write 100, as Kubernetes does"),
            ("", "\"\" is not a size: write bytes, such as 1Gi, 512Mi or 1073741824"),
            ("Gi", "\"Gi\" is not a size: write bytes, such as 1Gi, 512Mi or 1073741824"),
            (".", "\".\" is not a size: write bytes, such as 1Gi, 512Mi or 1073741824"),
            ("-1", "\"-1\" is not a size: write bytes, such as 1Gi, 512Mi or 1073741824"),
            ("1.2.3Gi", "\"1.2.3Gi\" is not a size: write bytes, such as 1Gi, 512Mi or 1073741824"),
            ("1Zi", "\"1Zi\" is not a size: write bytes, such as 1Gi, 512Mi or 1073741824"),
            ("1e-3", "\"1e-3\" is not a size: write bytes, such as 1Gi, 512Mi or 1073741824"),
            ("1e", "\"1e\" is not a size: write 1E, as Kubernetes does"),
            ("1e++3", "\"1e++3\" is not a size: write bytes, such as 1Gi, 512Mi or 1073741824"),
            ("much", "\"much\" is not a size: write bytes, such as 1Gi, 512Mi or 1073741824"),
            ("16Ei", "\"16Ei\" is too large: it must be less than 16Ei"),
            ("18446744073709551616", "\"18446744073709551616\" is too large: it must be less than 16Ei"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn sizes_are_written_short_and_never_as_more_than_they_are() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1Ki"),
            (1536, "1.5Ki"),
            (10 << 20, "10Mi"),
            ((10 << 20) + (1 << 19), "10Mi"),
            ((1 << 30) - 1, "1023Mi"),
            (1 << 30, "1Gi"),
            (3 << 29, "1.5Gi"),
            (u64::MAX, "15Ei"),
        ] {
            assert_eq!(format(bytes), text);
            assert!(parse(text).unwrap() <= bytes);
        }
    }
}
