//! A `CloudEvent`: its context attributes, apart from the encodings.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Context attributes of a `CloudEvents` 1.0 event, each as its canonical string
/// (`CloudEvents` 1.0.2, "Type System"). `specversion` is always `1.0`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// `id`.
    #[serde(rename = "i")]
    pub id: Arc<str>,
    /// `source`.
    #[serde(rename = "s")]
    pub source: Arc<str>,
    /// `type`.
    #[serde(rename = "t")]
    pub event_type: Arc<str>,
    /// `datacontenttype`: the content type of the data.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub data_content_type: Option<Box<str>>,
    /// `dataschema`.
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    pub data_schema: Option<Box<str>>,
    /// `subject`.
    #[serde(rename = "j", default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Box<str>>,
    /// `time`, as it came.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Box<str>>,
    /// Extension attributes, sorted by name.
    #[serde(rename = "e", default, skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<(Box<str>, Box<str>)>,
}
