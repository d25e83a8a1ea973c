//! Cutting and masking of what receivers answer.
//!
//! Masking comes before cutting, so a secret that straddles a cut is masked too.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, STANDARD};

/// What stands in place of a secret.
pub const MASK: &str = "***";

/// Shorter values are not masked: that would shred the answer and hide nothing that can't be guessed.
pub const SHORTEST_MASKED: usize = 4;

/// Shortest word of a longer value, and shortest piece of base64, that is masked by itself.
const SHORTEST_PART: usize = 8;

/// Byte comparisons for one text; what is beyond is dropped, not shown. Keeps a text that was made to be slow
/// (64 KiB of one letter against a Secret of the same letter) from costing more than some milliseconds.
const BUDGET: usize = 4 << 20;

/// Values that must never be kept of an answer: every Secret value that is sent.
///
/// Found as they are, with JSON, percent and HTML escapes (also mixed), and inside base64 of either alphabet.
/// Not found: double escapes, hexadecimal, compression, a value in pieces.
#[derive(Clone, Default)]
pub struct Masks(Arc<[Box<[u8]>]>);

impl fmt::Debug for Masks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Masks")
    }
}

impl Masks {
    /// Masks these values, the words of those with a space (`Bearer TOKEN`), and user and password of `Basic`
    /// credentials.
    pub fn new<V: AsRef<[u8]>>(values: impl IntoIterator<Item = V>) -> Self {
        let mut all = Vec::new();
        for value in values {
            let value = value.as_ref().trim_ascii();
            let mut plain = vec![value.to_vec()];
            plain.extend(words(value));
            plain.extend(credentials(value));
            for value in plain.into_iter().filter(|value| value.len() >= SHORTEST_MASKED) {
                all.extend(in_base64(&value));
                all.push(value.into_boxed_slice());
            }
        }
        all.sort_unstable();
        all.dedup();
        Self(all.into())
    }

    /// The whole text, masked, as UTF-8 in any case.
    pub fn apply<'a>(&self, text: &'a [u8]) -> Cow<'a, str> {
        if self.0.is_empty() {
            return String::from_utf8_lossy(text);
        }
        Cow::Owned(self.first_characters(&[], text, false, usize::MAX))
    }

    /// At most `limit` characters of the text, masked, as UTF-8 in any case. `more` is masked besides, such as
    /// the signatures of one attempt. `is_cut` says that the text went on: then its last characters are masked
    /// when a secret could begin there.
    pub fn first_characters(&self, more: &[&str], text: &[u8], is_cut: bool, limit: usize) -> String {
        let mut values: Vec<&[u8]> = self.0.iter().map(|value| &**value).collect();
        values
            .extend(more.iter().map(|value| value.as_bytes()).filter(|value| value.len() >= SHORTEST_MASKED));
        let mut finder = Finder { values, text, is_cut, budget: BUDGET };
        let (mut kept, mut characters) = (String::new(), 0);
        let (mut start, mut at) = (0, 0);
        let enough = limit.saturating_mul(4);
        while at < text.len() && at - start < enough {
            let Some(end) = finder.masked_until(at) else {
                at += 1;
                continue;
            };
            keep(&mut kept, &mut characters, limit, text.get(start..at).unwrap_or_default());
            keep(&mut kept, &mut characters, limit, MASK.as_bytes());
            (start, at) = (end, end);
            if characters >= limit || finder.budget == 0 {
                return kept;
            }
        }
        keep(&mut kept, &mut characters, limit, text.get(start..at).unwrap_or_default());
        kept
    }
}

fn keep(kept: &mut String, characters: &mut usize, limit: usize, bytes: &[u8]) {
    for character in String::from_utf8_lossy(bytes).chars() {
        if *characters >= limit {
            return;
        }
        kept.push(character);
        *characters += 1;
    }
}

fn words(value: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let several = value.iter().any(u8::is_ascii_whitespace);
    value
        .split(u8::is_ascii_whitespace)
        .filter(move |word| several && word.len() >= SHORTEST_PART)
        .map(<[u8]>::to_vec)
}

fn credentials(value: &[u8]) -> Vec<Vec<u8>> {
    let Some((scheme, encoded)) = value.split_at_checked(6) else { return Vec::new() };
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return Vec::new();
    }
    let Ok(pair) = STANDARD.decode(encoded.trim_ascii()) else { return Vec::new() };
    let colon = pair.iter().position(|byte| *byte == b':');
    let password = colon.and_then(|at| pair.get(at + 1..)).unwrap_or_default().to_vec();
    vec![pair, password]
}

/// The characters of base64 that depend on this value alone, for each of the three places at which it may begin
/// in a group, in both alphabets.
fn in_base64(value: &[u8]) -> impl Iterator<Item = Box<[u8]>> {
    let alphabets = [&alphabet::STANDARD, &alphabet::URL_SAFE];
    let padded: Vec<_> = (0..3).map(|shift| [vec![0; shift], value.to_vec()].concat()).collect();
    let pieces = padded.into_iter().zip([0, 2, 3]).flat_map(move |(bytes, first)| {
        alphabets.map(|alphabet| {
            let text = GeneralPurpose::new(alphabet, NO_PAD).encode(&bytes).into_bytes();
            Box::<[u8]>::from(text.get(first..bytes.len() * 8 / 6).unwrap_or_default())
        })
    });
    pieces.filter(|piece| piece.len() >= SHORTEST_PART)
}

struct Finder<'a> {
    values: Vec<&'a [u8]>,
    text: &'a [u8],
    is_cut: bool,
    budget: usize,
}

impl Finder<'_> {
    /// Where the masked part that begins at `at` ends: that of the longest value there, and of those that
    /// overlap it. None: nothing is masked here. With the budget used up the rest of the text counts as masked.
    fn masked_until(&mut self, at: usize) -> Option<usize> {
        let mut end = self.longest(at)?;
        let mut inside = at + 1;
        while inside < end && end < self.text.len() {
            end = end.max(self.longest(inside).unwrap_or(end));
            inside += 1;
        }
        Some(end)
    }

    fn longest(&mut self, at: usize) -> Option<usize> {
        let (text, is_cut) = (self.text.get(at..)?, self.is_cut);
        let mut longest = None;
        for value in &self.values {
            if self.budget == 0 {
                return Some(self.text.len());
            }
            let (found, compared) = spelled(text, value, is_cut);
            self.budget = self.budget.saturating_sub(compared);
            longest = longest.max(found);
        }
        longest.map(|length| at + length)
    }
}

/// How much of the beginning of `text` spells `value` (or, at the end of the text, the beginning of it), and
/// how many comparisons it took to know.
fn spelled(text: &[u8], value: &[u8], is_cut: bool) -> (Option<usize>, usize) {
    let Some(first) = value.first() else { return (None, 0) };
    if !text.first().is_some_and(|byte| byte == first || matches!(byte, b'\\' | b'%' | b'&' | b'+')) {
        return (None, 1);
    }
    let common = text.iter().zip(value).take_while(|(a, b)| a == b).count();
    if common == value.len() {
        return (Some(common), common);
    }
    let shortest_beginning = if is_cut { 1 } else { SHORTEST_MASKED };
    let mut at = 0;
    for (matched, byte) in value.iter().enumerate() {
        let rest = text.get(at..).unwrap_or_default();
        let Some(length) = unit(rest, *byte) else {
            let ends_here = rest.is_empty() || (is_cut && is_broken_escape(rest));
            let found = (ends_here && matched >= shortest_beginning).then_some(text.len());
            return (found, common + matched + 1);
        };
        at += length;
    }
    (Some(at), common + value.len())
}

/// How many bytes of `text` spell this one byte, escaped or not.
fn unit(text: &[u8], byte: u8) -> Option<usize> {
    let length = match text {
        [b'\\', b'u', digits @ ..] => (hexadecimal(digits.get(..4)?)? == u32::from(byte)).then_some(6),
        [b'\\', escaped, ..] => {
            let meant = match escaped {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'b' => 8,
                b'f' => 12,
                other => *other,
            };
            (meant == byte).then_some(2)
        }
        [b'%', digits @ ..] => {
            let meant = digits.get(..2).and_then(hexadecimal);
            (meant == Some(u32::from(byte))).then_some(3)
        }
        [b'&', ..] => entity(text).and_then(|(meant, length)| (meant == u32::from(byte)).then_some(length)),
        [b'+', ..] if byte == b' ' => Some(1),
        _ => None,
    };
    length.or_else(|| (text.first() == Some(&byte)).then_some(1))
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, digit| Some(value * 16 + char::from(*digit).to_digit(16)?))
}

fn entity(text: &[u8]) -> Option<(u32, usize)> {
    let length = text.iter().take(8).position(|byte| *byte == b';')?;
    let meant = match text.get(1..length)? {
        b"quot" => u32::from(b'"'),
        b"amp" => u32::from(b'&'),
        b"lt" => u32::from(b'<'),
        b"gt" => u32::from(b'>'),
        b"apos" => u32::from(b'\''),
        [b'#', b'x' | b'X', digits @ ..] => hexadecimal(digits)?,
        [b'#', digits @ ..] => std::str::from_utf8(digits).ok()?.parse().ok()?,
        _ => return None,
    };
    Some((meant, length + 1))
}

/// Whether an escape begins here and the text ends before it does.
fn is_broken_escape(text: &[u8]) -> bool {
    match text {
        [b'\\' | b'%'] | [b'%', _] => true,
        [b'\\', b'u', ..] => text.len() < 6,
        [b'&', ..] => text.len() < 8 && !text.contains(&b';'),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "s3cr/t+\"k=&y\\";

    fn masks() -> Masks {
        Masks::new([SECRET])
    }

    #[test]
    fn a_secret_is_masked_however_it_is_spelled() {
        let json = serde_json::to_string(SECRET).unwrap();
        let percent =
            percent_encoding::utf8_percent_encode(SECRET, percent_encoding::NON_ALPHANUMERIC).to_string();
        let url_safe = base64::engine::general_purpose::URL_SAFE;
        for spelling in [
            SECRET,
            json.trim_matches('"'),
            r#"s3cr\/t+\"k=&y\\"#,
            r"s3cr\/t+\u0022k\u003d\u0026y\u005C",
            &percent,
            &percent.to_lowercase(),
            "s3cr/t+&quot;k=&amp;y\\",
            "s3cr&#x2F;t+&#34;k=&amp;y&#92;",
        ] {
            let text = format!("<{spelling}> {spelling}");
            assert_eq!(masks().apply(text.as_bytes()), format!("<{MASK}> {MASK}"), "{spelling}");
        }
        for before in ["", "a", "ab", "abc", "user:"] {
            let whole = format!("{before}{SECRET} and more");
            for encoded in [STANDARD.encode(&whole), url_safe.encode(&whole)] {
                let kept = masks().apply(encoded.as_bytes()).into_owned();
                assert!(kept.contains(MASK), "{kept}");
                let hidden = encoded.len() + MASK.len() - kept.len();
                assert!(hidden * 6 / 8 >= SECRET.len() - 2, "{encoded} {kept}");
            }
        }
    }

    #[test]
    fn what_is_no_secret_stays_as_it_is() {
        for text in ["", "s3cr", "100% sure\\n", "&amp;&#x;&#xzz;%zz\\u12", "Zoë 東京 😀", "s3crXt"] {
            assert_eq!(masks().apply(format!("{text} .").as_bytes()), format!("{text} ."));
        }
        assert_eq!(masks().apply(b"\xff\xfe ok \xf0\x9f"), "\u{fffd}\u{fffd} ok \u{fffd}");
        assert!(matches!(Masks::default().apply(b"plain"), Cow::Borrowed("plain")));
    }

    #[test]
    fn words_of_a_value_and_basic_credentials_are_masked_and_short_values_are_not() {
        let basic = format!("Basic {}", STANDARD.encode("user:hunter22"));
        let masks = Masks::new(["Bearer abcdefgh1234", &basic, "abc", "true dat"]);
        for (text, masked) in [
            ("token=abcdefgh1234;", "token=***;"),
            ("Bearer abcdefgh1234", "***"),
            ("Bearer", "***"),
            ("Bearer x", "Bearer x"),
            ("password hunter22", "password ***"),
            ("user:hunter22", "***"),
            ("abc is true", "abc is ***"),
            ("abc is true.", "abc is true."),
        ] {
            assert_eq!(masks.apply(text.as_bytes()), masked);
        }
    }

    #[test]
    fn overlapping_secrets_are_masked_whole() {
        let masks = Masks::new(["abcdef", "defghi", "hijk"]);
        assert_eq!(masks.apply(b"-abcdefghijk-"), "-***-");
        assert_eq!(masks.apply(b"-abcdefabcdef-"), "-******-");
    }

    #[test]
    fn a_secret_that_straddles_a_cut_is_masked() {
        let first = |text: &str, is_cut, limit| masks().first_characters(&[], text.as_bytes(), is_cut, limit);
        for length in 1..SECRET.len() {
            let cut = format!("x {}", &SECRET[..length]);
            assert_eq!(first(&cut, true, 500), "x ***", "{cut}");
            assert_eq!(first(&cut, false, 500).contains(MASK), length >= SHORTEST_MASKED, "{cut}");
        }
        for cut in ["x s3cr\\", "x s3cr\\u00", "x s3cr%2", "x s3cr%", "x s3cr&#x2"] {
            assert_eq!(first(cut, true, 500), "x ***", "{cut}");
        }
        let filler = "é".repeat(495);
        let long = format!("{filler}{SECRET} tail");
        assert_eq!(first(&long, false, 500), format!("{filler}*** t"));
        assert_eq!(first(&long, false, 497), format!("{filler}**"));
    }

    #[test]
    fn signatures_of_the_attempt_are_masked_besides() {
        let text = br#"{"sig":"v1,AAAA\/BBBB+CC="}"#;
        assert_eq!(masks().first_characters(&["AAAA/BBBB+CC="], text, false, 500), r#"{"sig":"v1,***"}"#);
    }

    #[test]
    fn a_text_made_to_be_slow_is_dropped_and_never_shown() {
        let masks = Masks::new([format!("{}b", "a".repeat(8000)), "a".repeat(8000)]);
        let kept = masks.first_characters(&[], "a".repeat(65_536).as_bytes(), true, 500);
        assert!(!kept.contains('a'), "{kept}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_and_no_secret_is_left(
            before in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
            after in ".{0,40}",
            limit in 0_usize..60,
            is_cut: bool,
        ) {
            let text = [before.as_slice(), SECRET.as_bytes(), after.as_bytes()].concat();
            let kept = masks().first_characters(&[], &text, is_cut, limit);
            proptest::prop_assert!(kept.chars().count() <= limit);
            proptest::prop_assert!(!kept.contains(&SECRET[..8]), "{}", kept);
        }
    }
}
