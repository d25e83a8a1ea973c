//! Decoding of published events: `CloudEvents` 1.0 over HTTP in binary, structured and batch mode.
//!
//! A request is either wholly good, or an [`Error`] that names what to mend: of each bad event the attributes,
//! in a batch with the event's index. Nothing is altered: `data` of a JSON event is the very slice of the
//! request's body, attribute values are kept as their canonical strings.

mod attributes;
mod binary;
mod json;
mod mode;
mod syntax;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use super::event::Attributes;
use mode::Mode;

/// Most events in one batch.
pub const MAX_BATCH: usize = 1_000;
/// Longest value of an attribute, in bytes of UTF-8.
pub const MAX_VALUE_BYTES: usize = 2_048;
/// Longest name of an attribute. `CloudEvents` recommends at most 20.
pub const MAX_NAME_BYTES: usize = 64;
/// Most extension attributes of one event.
pub const MAX_EXTENSIONS: usize = 64;
/// All names and values of one event's attributes together, in bytes: they become request headers, of which
/// common receivers take 8 KiB.
pub const MAX_ATTRIBUTES_BYTES: usize = 8_192;
/// Most violations that one answer names.
const MAX_VIOLATIONS: usize = 20;

/// An event that was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Its context attributes.
    pub attributes: Arc<Attributes>,
    /// Its data, byte for byte; where it could be, a slice of the request's body.
    pub data: Bytes,
}

/// What a request publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publication {
    /// One event, by binary or structured mode.
    One(Decoded),
    /// A batch, in the order sent; may be empty.
    Batch(Vec<Decoded>),
}

/// Something that must be otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The header, the JSON member, in a batch with the index: `ce-source`, `source`, `[3].source`.
    pub field: String,
    /// What must be; never any part of a value.
    pub message: Cow<'static, str>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Why a request is not a publication.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Its content type is none that events come in.
    #[error("{0}")]
    Unsupported(&'static str),
    /// It has events that are not valid; at least one violation, at most 20 are told.
    #[error("not a valid CloudEvent: {}", list(.0))]
    Invalid(Vec<Violation>),
}

fn list(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    fn invalid(field: impl Into<String>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::Invalid(vec![Violation { field: field.into(), message: message.into() }])
    }
}

/// Decodes the request that has these headers and this body.
///
/// # Errors
/// The content type is none of events, or an event is not valid.
pub fn decode(headers: &HeaderMap, body: &Bytes) -> Result<Publication, Error> {
    match mode::of(headers, body)? {
        Mode::Binary => binary::decode(headers, body.clone()).map(Publication::One),
        Mode::Structured => json::structured(body).map(Publication::One),
        Mode::Batch => json::batch(body).map(Publication::Batch),
    }
}

/// Whether a content type says that whole events are in the data. Such data is not published, and what was stored of it
/// before that was so is not sent under this type.
pub fn is_envelope(content_type: &str) -> bool {
    syntax::is_envelope(content_type)
}

/// What is wrong with the type of an event; none: it can be published.
pub fn type_violation(event_type: &str) -> Option<Cow<'static, str>> {
    attributes::type_violation(event_type)
}

#[cfg(test)]
mod tests;
