//! What a client takes, by its header `Accept`.

use http::HeaderMap;
use http::header::ACCEPT;

use super::status::{Failure, Reason};

/// One media range, with its parameters but for the quality.
#[derive(Debug, PartialEq)]
pub(super) struct Range<'h> {
    media: &'h str,
    parameters: Vec<(&'h str, &'h str)>,
}

impl<'h> Range<'h> {
    /// With its quality; none when it is refused or empty.
    fn read(text: &'h str) -> Option<(f32, Self)> {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().filter(|media| !media.is_empty())?;
        let (mut quality, mut parameters) = (1.0, Vec::new());
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            let (key, value) = (key.trim(), value.trim());
            if key.eq_ignore_ascii_case("q") {
                quality = value.parse().unwrap_or(1.0);
            } else {
                parameters.push((key, value));
            }
        }
        (quality > 0.0).then_some((quality, Self { media, parameters }))
    }

    /// Whether JSON is in it.
    pub(super) fn has_json(&self) -> bool {
        ["application/json", "application/*", "*/*"].iter().any(|ours| self.media.eq_ignore_ascii_case(ours))
    }

    /// A parameter, such as the `as`, `g` and `v` of Kubernetes.
    pub(super) fn parameter(&self, key: &str) -> Option<&'h str> {
        self.parameters.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    /// Whether it asks for an object in the form of this kind of this group.
    pub(super) fn is_as(&self, kind: &str, group: &str, version: &str) -> bool {
        self.has_json()
            && self.parameter("as") == Some(kind)
            && self.parameter("g") == Some(group)
            && self.parameter("v") == Some(version)
    }

    /// Whether it asks for JSON in its plain form.
    pub(super) fn is_plain_json(&self) -> bool {
        self.has_json() && self.parameter("as").is_none()
    }
}

/// What is taken, best first; none: anything.
pub(super) fn ranges(headers: &HeaderMap) -> Option<Vec<Range<'_>>> {
    let mut values = headers.get_all(ACCEPT).iter().peekable();
    values.peek()?;
    let texts = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let mut ranges: Vec<_> = texts.filter_map(Range::read).collect();
    ranges.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    Some(ranges.into_iter().map(|(_, range)| range).collect())
}

/// 406, with what there is.
pub(super) fn refusal(has: &str) -> Failure {
    Failure::new(Reason::NotAcceptable, format!("Accept must have {has}"))
}

/// Lets a client through that takes JSON, or says nothing of what it takes.
pub(super) fn json(headers: &HeaderMap) -> Result<(), Failure> {
    let takes = ranges(headers).is_none_or(|ranges| ranges.iter().any(Range::has_json));
    if takes { Ok(()) } else { Err(refusal("application/json")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(accept: Option<&str>) -> HeaderMap {
        accept.map(|accept| (ACCEPT, accept.parse().unwrap())).into_iter().collect()
    }

    #[test]
    fn json_is_taken_by_name_by_range_or_by_silence() {
        for (accept, expected) in [
            (None, true),
            (Some("application/json"), true),
            (Some("application/json, */*"), true),
            (Some("text/html, Application/JSON;q=0.5"), true),
            (Some("application/*"), true),
            (Some("application/json;q=0"), false),
            (Some("application/yaml"), false),
            (Some("text/*, application/xml"), false),
            (Some(""), false),
        ] {
            assert_eq!(json(&headers(accept)).is_ok(), expected, "{accept:?}");
        }
    }

    #[test]
    fn what_is_taken_comes_best_first_and_in_its_order() {
        let headers = headers(Some("a/b;q=0.1, c/d;as=Table;v=v1, e/f;q=0, g/h;Q=0.9;x=y, i/j"));
        let ranges = ranges(&headers).unwrap();
        let media: Vec<_> = ranges.iter().map(|range| range.media).collect();
        assert_eq!(media, ["c/d", "i/j", "g/h", "a/b"]);
        assert_eq!((ranges[0].parameter("as"), ranges[2].parameter("x")), (Some("Table"), Some("y")));
    }
}
