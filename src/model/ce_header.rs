//! Values of `ce-*` headers: the encoding of the CloudEvents HTTP binding 1.0.2, section 3.1.3.2.

use std::borrow::Cow;

/// Why a header value is no attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A byte that HTTP allows but the binding does not.
    #[error("must be printable ASCII; percent-encode everything else")]
    NotPrintable,
    /// `%` without two hexadecimal digits.
    #[error("has a % that is not followed by two hexadecimal digits")]
    BrokenEscape,
    /// A double quote that is not closed, or something after it.
    #[error("has a double quote that is not closed, or something after the closed one")]
    BrokenQuote,
    /// What is percent-encoded is not UTF-8.
    #[error("is not UTF-8 after percent-decoding")]
    NotUtf8,
}

/// The header value of an attribute: space, `"`, `%` and everything outside printable ASCII is percent-encoded.
pub fn encode(value: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'%';
    if value.bytes().all(plain) {
        return Cow::Borrowed(value);
    }
    let mut encoded = String::with_capacity(value.len() * 3);
    for byte in value.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(hex(byte >> 4));
            encoded.push(hex(byte & 15));
        }
    }
    Cow::Owned(encoded)
}

fn hex(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0').to_ascii_uppercase()
}

/// The attribute in a header value: double quotes are undone first, then one round of percent-decoding.
pub fn decode(value: &[u8]) -> Result<String, Error> {
    if value.iter().any(|byte| !(b' '..=b'~').contains(byte)) {
        return Err(Error::NotPrintable);
    }
    let unquoted = match value.strip_prefix(b"\"") {
        Some(quoted) => Cow::Owned(unquote(quoted)?),
        None => Cow::Borrowed(value),
    };
    String::from_utf8(percent_decode(&unquoted)?).map_err(|_| Error::NotUtf8)
}

fn unquote(quoted: &[u8]) -> Result<Vec<u8>, Error> {
    let mut plain = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' if bytes.len() == 0 => return Ok(plain),
            b'"' => return Err(Error::BrokenQuote),
            b'\\' => plain.push(bytes.next().ok_or(Error::BrokenQuote)?),
            other => plain.push(other),
        }
    }
    Err(Error::BrokenQuote)
}

fn percent_decode(text: &[u8]) -> Result<Vec<u8>, Error> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            plain.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(Error::BrokenEscape) };
        plain.push(u8::try_from(high * 16 + low).unwrap_or_default());
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_become_the_header_values_of_the_binding() {
        for (attribute, header) in [
            ("Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
            ("say \"hi\"", "say%20%22hi%22"),
            ("100%", "100%25"),
            ("%41", "%2541"),
            ("Zoë", "Zo%C3%AB"),
            ("東京", "%E6%9D%B1%E4%BA%AC"),
            ("a/b?c=d&e", "a/b?c=d&e"),
            ("it's", "it's"),
            ("a\\b", "a\\b"),
            ("~", "~"),
            (" lead", "%20lead"),
            ("\t", "%09"),
            ("\u{7f}", "%7F"),
            ("\u{a0}", "%C2%A0"),
            ("", ""),
        ] {
            assert_eq!(encode(attribute), header);
            assert_eq!(decode(header.as_bytes()).as_deref(), Ok(attribute));
        }
    }

    #[test]
    fn header_values_are_unquoted_then_decoded_once() {
        for (header, attribute) in [
            ("%41", "A"),
            ("%e2%82%ac", "€"),
            ("%2541", "%41"),
            ("\"a b\"", "a b"),
            (r#""a\"b""#, "a\"b"),
            (r#""a\\b""#, "a\\b"),
            ("\"%22\"", "\""),
            ("a+b", "a+b"),
            ("a\"b", "a\"b"),
            ("\"\"", ""),
        ] {
            assert_eq!(decode(header.as_bytes()).as_deref(), Ok(attribute), "{header}");
        }
    }

    #[test]
    fn what_is_no_attribute_is_refused() {
        let cases: [(&[u8], Error); 12] = [
            (b"%C0%A0", Error::NotUtf8),
            (b"%ED%A0%80", Error::NotUtf8),
            (b"%FF", Error::NotUtf8),
            (b"%", Error::BrokenEscape),
            (b"%4", Error::BrokenEscape),
            (b"%zz", Error::BrokenEscape),
            (b"\"abc", Error::BrokenQuote),
            (b"\"abc\\\"", Error::BrokenQuote),
            (b"\"abc\"d", Error::BrokenQuote),
            (b"\"", Error::BrokenQuote),
            ("€".as_bytes(), Error::NotPrintable),
            (b"a\tb", Error::NotPrintable),
        ];
        for (header, error) in cases {
            assert_eq!(decode(header), Err(error), "{}", String::from_utf8_lossy(header));
        }
    }

    proptest::proptest! {
        #[test]
        fn every_text_survives_the_way_there_and_back(text in ".*") {
            let header = encode(&text);
            proptest::prop_assert!(header.bytes().all(|byte| byte.is_ascii_graphic()));
            proptest::prop_assert_eq!(decode(header.as_bytes()), Ok(text.clone()));
        }
    }
}
