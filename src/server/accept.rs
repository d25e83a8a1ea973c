//! Whether a client takes JSON.

use http::HeaderMap;
use http::header::ACCEPT;

use super::status::{Failure, Reason};

/// Lets a client through that takes JSON, or says nothing of what it takes.
pub(super) fn json(headers: &HeaderMap) -> Result<(), Failure> {
    let mut values = headers.get_all(ACCEPT).iter().peekable();
    if values.peek().is_none() {
        return Ok(());
    }
    let takes =
        values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(takes_json);
    if takes { Ok(()) } else { Err(Failure::new(Reason::NotAcceptable, "Accept must have application/json")) }
}

/// Whether one range of an `Accept` header has JSON in it, with a quality other than zero.
fn takes_json(range: &str) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let ours =
        ["application/json", "application/*", "*/*"].iter().any(|ours| media.eq_ignore_ascii_case(ours));
    let refused = parts
        .filter_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
        .any(|quality| quality.trim().parse::<f32>().is_ok_and(|quality| quality <= 0.0));
    ours && !refused
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let headers: HeaderMap =
                accept.map(|accept| (ACCEPT, accept.parse().unwrap())).into_iter().collect();
            assert_eq!(json(&headers).is_ok(), expected, "{accept:?}");
        }
    }
}
