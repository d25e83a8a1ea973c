//! In which of the three content modes a request is.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};

use super::Error;

/// Content modes of the HTTP binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Attributes in headers, data in the body.
    Binary,
    /// One event as a JSON object.
    Structured,
    /// Events as a JSON array.
    Batch,
}

const NOT_AN_EVENT: &str = "the request is not a CloudEvent: send headers ce-id, ce-source, ce-type and \
     ce-specversion with the data as body, or Content-Type application/cloudevents+json or \
     application/cloudevents-batch+json";

/// The mode, by the media type's prefix in any case, else by the presence of `ce-` headers. With neither, a
/// JSON object is one event and a JSON array a batch: `kubectl create --raw` can set no header.
pub(super) fn of(headers: &HeaderMap, body: &[u8]) -> Result<Mode, Error> {
    let encoded = headers.get_all(CONTENT_ENCODING).iter().any(|value| value != "identity");
    if encoded {
        return Err(Error::Unsupported("the body must not be compressed: send it without Content-Encoding"));
    }
    let mut content_types = headers.get_all(CONTENT_TYPE).iter();
    let media_type =
        content_types.next().map(|value| value.as_bytes().to_ascii_lowercase()).unwrap_or_default();
    if content_types.next().is_some() {
        return Err(Error::invalid("content-type", "must be given once"));
    }
    if let Some(format) = media_type.strip_prefix(b"application/cloudevents-batch") {
        return json_in_utf8(format).map(|()| Mode::Batch);
    }
    if let Some(format) = media_type.strip_prefix(b"application/cloudevents") {
        return json_in_utf8(format).map(|()| Mode::Structured);
    }
    if headers.keys().any(|name| name.as_str().starts_with("ce-")) {
        return Ok(Mode::Binary);
    }
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => Ok(Mode::Structured),
        Some(b'[') => Ok(Mode::Batch),
        _ => Err(Error::Unsupported(NOT_AN_EVENT)),
    }
}

/// Judges what follows the media type's prefix: its format and parameters.
fn json_in_utf8(rest: &[u8]) -> Result<(), Error> {
    let mut parts = rest.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    if parts.next() != Some(b"+json") {
        return Err(Error::Unsupported(
            "the event format must be JSON: application/cloudevents+json or \
             application/cloudevents-batch+json",
        ));
    }
    let foreign = parts.filter_map(|part| part.strip_prefix(b"charset=")).any(|charset| {
        !matches!(
            charset.strip_prefix(b"\"").and_then(|c| c.strip_suffix(b"\"")).unwrap_or(charset),
            b"utf-8" | b"us-ascii"
        )
    });
    if foreign { Err(Error::Unsupported("the charset of a JSON event must be utf-8")) } else { Ok(()) }
}
