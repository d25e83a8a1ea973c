//! The syntaxes that attribute values must have: URI references, times, media types, characters.

/// Whether this is a `URI-reference` of RFC 3986: ASCII, escapes well formed, and no colon in the first
/// segment unless a scheme is before it.
pub(super) fn is_uri_reference(text: &str) -> bool {
    split_scheme(text).is_some_and(|(_, rest)| is_after_scheme(rest))
}

/// Whether this is a URI with a scheme. A fragment is accepted, as JSON schemas have them.
pub(super) fn is_uri(text: &str) -> bool {
    matches!(split_scheme(text), Some((Some(_), rest)) if is_after_scheme(rest))
}

/// The scheme, if any, and what comes after it; none when the part before the first colon can be neither a
/// scheme nor a path.
fn split_scheme(text: &str) -> Option<(Option<&str>, &str)> {
    match text.find([':', '/', '?', '#']).and_then(|at| text.split_at_checked(at)) {
        Some((scheme, rest)) if rest.starts_with(':') => {
            is_scheme(scheme).then_some((Some(scheme), rest.get(1..)?))
        }
        _ => Some((None, text)),
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

fn is_after_scheme(text: &str) -> bool {
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = match path.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", path),
    };
    is_authority(authority)
        && is_made_of(path, b":@/")
        && is_made_of(query, b":@/?")
        && is_made_of(fragment, b":@/?")
}

fn is_authority(text: &str) -> bool {
    let (user, host) = text.rsplit_once('@').unwrap_or(("", text));
    let (host_ok, port) = if let Some(rest) = host.strip_prefix('[') {
        let Some((literal, port)) = rest.split_once(']') else { return false };
        (!literal.is_empty() && is_made_of(literal, b":"), port)
    } else {
        let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
        (is_made_of(name, b""), port)
    };
    let port = port.strip_prefix(':').unwrap_or(port);
    is_made_of(user, b":") && host_ok && port.bytes().all(|b| b.is_ascii_digit())
}

/// Whether the text has only unreserved characters, sub-delimiters, whole percent escapes, and these.
fn is_made_of(text: &str, also: &[u8]) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let ok = match byte {
            b'%' => [bytes.next(), bytes.next()].iter().all(|hex| hex.is_some_and(|b| b.is_ascii_hexdigit())),
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b','
            | b';' | b'=' => true,
            _ => byte.is_ascii_alphanumeric() || also.contains(&byte),
        };
        if !ok {
            return false;
        }
    }
    true
}

/// Whether this is a date and time of RFC 3339 that exists (a leap second does).
pub(super) fn is_timestamp(text: &str) -> bool {
    read_timestamp(text.as_bytes()).is_some()
}

fn read_timestamp(text: &[u8]) -> Option<()> {
    let (date_time, rest) = text.split_at_checked(19)?;
    let &[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T' | b't', h1, h2, b':', i1, i2, b':', s1, s2] =
        date_time
    else {
        return None;
    };
    let year = i16::from(number(y1, y2)?) * 100 + i16::from(number(y3, y4)?);
    jiff::civil::Date::new(year, number(m1, m2)?, number(d1, d2)?).ok()?;
    let in_range = number(h1, h2)? < 24 && number(i1, i2)? < 60 && number(s1, s2)? <= 60;
    let zone = match rest.strip_prefix(b".") {
        None => rest,
        Some(fraction) => {
            let digits = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
            fraction.get(digits..).filter(|_| digits > 0)?
        }
    };
    let zone_ok = match *zone {
        [b'Z' | b'z'] => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => number(h1, h2)? < 24 && number(m1, m2)? < 60,
        _ => false,
    };
    (in_range && zone_ok).then_some(())
}

fn number(tens: u8, ones: u8) -> Option<i8> {
    (tens.is_ascii_digit() && ones.is_ascii_digit())
        .then(|| (tens - b'0') * 10 + (ones - b'0'))
        .and_then(|value| i8::try_from(value).ok())
}

/// Whether this is a media type of RFC 2046, parameters included: `text/plain; charset="utf-8"`.
pub(super) fn is_media_type(text: &str) -> bool {
    let (essence, mut parameters) = text.split_at(text.find(';').unwrap_or(text.len()));
    let essence_ok =
        essence.trim_end_matches(BLANK).split_once('/').is_some_and(|(a, b)| is_token(a) && is_token(b));
    while let Some(rest) = parameters.strip_prefix(';') {
        let Some(after) = after_parameter(rest.trim_start_matches(BLANK)) else { return false };
        parameters = after.trim_start_matches(BLANK);
    }
    essence_ok && parameters.is_empty()
}

const BLANK: [char; 2] = [' ', '\t'];

/// What follows one `name=value`; an empty parameter, as in `text/plain;`, is let pass.
fn after_parameter(text: &str) -> Option<&str> {
    if text.is_empty() {
        return Some(text);
    }
    let (name, value) = text.split_once('=')?;
    if !is_token(name) {
        return None;
    }
    if let Some(quoted) = value.strip_prefix('"') {
        return after_quoted(quoted);
    }
    let end = value.find(|c: char| c == ';' || BLANK.contains(&c)).unwrap_or(value.len());
    let (token, rest) = value.split_at(end);
    is_token(token).then_some(rest)
}

fn after_quoted(text: &str) -> Option<&str> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' if !escaped => return text.get(at + 1..),
            ' '..='~' | '\t' => escaped = c == '\\' && !escaped,
            _ => return None,
        }
    }
    None
}

fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| {
            b.is_ascii_alphanumeric()
                || matches!(
                    b,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                )
        })
}

/// Whether a media type says that its content is JSON: `*/json` or `*/*+json`.
pub(super) fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.split_once('/').is_some_and(|(_, subtype)| subtype == "json" || subtype.ends_with("+json"))
}

/// Whether a media type says that whole events are in the content, in any form: receivers tell by this beginning in which
/// mode an event comes to them, and would take one that is inside for the one that was sent.
pub(super) fn is_envelope(media_type: &str) -> bool {
    const BEGINNING: &[u8] = b"application/cloudevents";
    let essence = media_type.trim_start().as_bytes();
    essence.get(..BEGINNING.len()).is_some_and(|start| start.eq_ignore_ascii_case(BEGINNING))
}

/// The first character that no attribute may have: a control, or one that Unicode calls a noncharacter.
pub(super) fn forbidden_character(text: &str) -> Option<char> {
    text.chars().find(|&c| {
        c.is_control() || ('\u{FDD0}'..='\u{FDEF}').contains(&c) || u32::from(c) & 0xFFFE == 0xFFFE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_reference_is_what_rfc_3986_says() {
        for good in [
            "/orders",
            "1-555-123-4567",
            "https://github.com/cloudevents",
            "mailto:cncf-wg-serverless@lists.cncf.io",
            "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
            "//host:8080/a?b=c#d",
            "http://[2001:db8::1]:80/x",
            "http://user:pw@host/",
            "./10.0.0.1:8080",
            "a/b:c",
            "?q",
            "#f",
            "%20",
            "x:",
        ] {
            assert!(is_uri_reference(good), "{good}");
        }
        for bad in [
            "a b",
            "Zoë",
            "%2",
            "%zz",
            "10.0.0.1:8080/x",
            ":x",
            "a\\b",
            "<x>",
            "a[b]",
            "http://[::1",
            "http://h:port/",
            "a#b#c",
            "http://[]/",
            "\"",
        ] {
            assert!(!is_uri_reference(bad), "{bad}");
        }
    }

    #[test]
    fn a_uri_has_a_scheme() {
        for (text, expected) in
            [("https://x/s.json#/defs/a", true), ("urn:x", true), ("/x", false), ("", false), ("1x:y", false)]
        {
            assert_eq!(is_uri(text), expected, "{text}");
        }
    }

    #[test]
    fn a_timestamp_is_what_rfc_3339_says_and_exists() {
        for good in [
            "2018-04-05T17:31:00Z",
            "2018-04-05t17:31:00z",
            "2018-04-05T17:31:00.123456789123+23:59",
            "1996-12-19T16:39:57-08:00",
            "1990-12-31T23:59:60Z",
            "2024-02-29T00:00:00-00:00",
            "9999-12-31T23:59:59-12:00",
            "0000-01-01T00:00:00Z",
        ] {
            assert!(is_timestamp(good), "{good}");
        }
        for bad in [
            "2018-04-05 17:31:00Z",
            "2018-04-05T17:31:00",
            "2018-04-05T17:31Z",
            "2018-4-5T17:31:00Z",
            "2023-02-29T00:00:00Z",
            "2018-13-05T17:31:00Z",
            "2018-04-05T24:00:00Z",
            "2018-04-05T17:60:00Z",
            "2018-04-05T17:31:61Z",
            "2018-04-05T17:31:00.Z",
            "2018-04-05T17:31:00+0100",
            "2018-04-05T17:31:00+24:00",
            "2018-04-05T17:31:00ZZ",
            "1700000000",
            "",
            "２018-04-05T17:31:00Z",
        ] {
            assert!(!is_timestamp(bad), "{bad}");
        }
    }

    #[test]
    fn a_media_type_has_a_type_a_subtype_and_whole_parameters() {
        for good in [
            "application/json",
            "text/plain; charset=utf-8",
            "text/plain;charset=\"utf \\\"8\"; x=y",
            "application/vnd.acme+json ; a=b",
            "text/plain;",
        ] {
            assert!(is_media_type(good), "{good}");
        }
        for bad in [
            "json",
            "/json",
            "a/",
            "a/b/c",
            "a/b; c",
            "a/b; c=",
            "a/b;c=\"d",
            "a b/c",
            "a/b; c=d e",
            "ä/b",
            "a/b x",
        ] {
            assert!(!is_media_type(bad), "{bad}");
        }
    }

    #[test]
    fn json_is_known_by_its_subtype() {
        for (text, expected) in [
            ("application/json", true),
            ("Text/JSON; charset=utf-8", true),
            ("application/vnd.acme.v1+json", true),
            ("application/jsonx", false),
            ("application/xml", false),
            ("json", false),
        ] {
            assert_eq!(is_json(text), expected, "{text}");
        }
    }

    #[test]
    fn the_media_types_of_whole_events_are_known_by_their_beginning() {
        for (text, expected) in [
            ("application/cloudevents+json", true),
            ("Application/CloudEvents-Batch+JSON; charset=utf-8", true),
            ("application/cloudevents", true),
            ("application/cloudevents+avro", true),
            ("application/cloudeventsx", true),
            (" application/cloudevents+json", true),
            ("application/cloudevent", false),
            ("application/vnd.cloudevents+json", false),
            ("text/plain; a=\"application/cloudevents+json\"", false),
            ("", false),
        ] {
            assert_eq!(is_envelope(text), expected, "{text}");
        }
    }

    #[test]
    fn controls_and_noncharacters_are_found() {
        for (text, expected) in [
            ("Zoë 東京 😀", None),
            ("a\tb", Some('\t')),
            ("\u{7f}", Some('\u{7f}')),
            ("\u{85}", Some('\u{85}')),
            ("\u{FDD0}", Some('\u{FDD0}')),
            ("\u{1FFFE}", Some('\u{1FFFE}')),
            ("\u{FFFF}", Some('\u{FFFF}')),
            ("\u{FFFD}", None),
        ] {
            assert_eq!(forbidden_character(text), expected, "{text:?}");
        }
    }
}
