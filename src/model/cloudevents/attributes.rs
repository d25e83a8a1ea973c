//! Collects the attributes of one event and says what is wrong with them.

use std::borrow::Cow;
use std::sync::Arc;

use super::{
    MAX_ATTRIBUTES_BYTES, MAX_EXTENSIONS, MAX_NAME_BYTES, MAX_VALUE_BYTES, MAX_VIOLATIONS, Violation, syntax,
};
use crate::model::event::Attributes;

/// Attributes of one event as they come in, each as its canonical string.
#[derive(Debug)]
pub(super) struct Collector<'p> {
    /// Before each attribute's name in a violation's field: `ce-`, nothing, `[3].`.
    prefix: &'p str,
    violations: Vec<Violation>,
    bytes: usize,
    has_specversion: bool,
    id: Option<Box<str>>,
    source: Option<Box<str>>,
    event_type: Option<Box<str>>,
    data_content_type: Option<Box<str>>,
    data_schema: Option<Box<str>>,
    subject: Option<Box<str>>,
    time: Option<Box<str>>,
    extensions: Vec<(Box<str>, Box<str>)>,
}

/// What a value must be, as a check and as the sentence that says so.
type Rule = (fn(&str) -> bool, &'static str);

const NOT_EMPTY: Rule = (|value| !value.is_empty(), "must not be empty");
const ANYTHING: Rule = (|_| true, "");
const RULES: [(&str, Rule); 8] = [
    ("specversion", (|value| value == "1.0", "must be 1.0, the one version that is understood")),
    ("id", NOT_EMPTY),
    (
        "source",
        (
            |value| !value.is_empty() && syntax::is_uri_reference(value),
            "must be a URI reference (RFC 3986) that is not empty, such as /shop/orders or https://shop.example/orders",
        ),
    ),
    ("type", NOT_EMPTY),
    ("datacontenttype", (syntax::is_media_type, MEDIA_TYPE)),
    (
        "dataschema",
        (syntax::is_uri, "must be an absolute URI (RFC 3986), such as https://shop.example/order.json"),
    ),
    ("subject", NOT_EMPTY),
    ("time", (syntax::is_timestamp, "must be a time of RFC 3339, such as 2026-11-24T10:00:00Z")),
];
/// What a content type must be.
pub(super) const MEDIA_TYPE: &str = "must be a media type (RFC 2046), such as application/json";

/// Whether the standard defines this attribute; all of them are strings.
pub(super) fn is_standard(name: &str) -> bool {
    RULES.iter().any(|(known, _)| *known == name)
}

impl<'p> Collector<'p> {
    pub(super) fn new(prefix: &'p str) -> Self {
        Self {
            prefix,
            violations: Vec::new(),
            bytes: 0,
            has_specversion: false,
            id: None,
            source: None,
            event_type: None,
            data_content_type: None,
            data_schema: None,
            subject: None,
            time: None,
            extensions: Vec::new(),
        }
    }

    /// Notes what is wrong with an attribute.
    pub(super) fn refuse(&mut self, name: &str, message: impl Into<Cow<'static, str>>) {
        self.refuse_field(format!("{}{}", self.prefix, shortened(name)), message);
    }

    /// Notes what is wrong with a field that is named as it stands.
    pub(super) fn refuse_field(&mut self, field: String, message: impl Into<Cow<'static, str>>) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(Violation { field, message: message.into() });
        }
    }

    /// Takes an attribute, or notes what is wrong with it. `field` is where it stands.
    pub(super) fn take(&mut self, name: &str, value: String, field: String) {
        let rule = RULES.iter().find(|(known, _)| *known == name).map_or(ANYTHING, |(_, rule)| *rule);
        let message = name_violation(name).or_else(|| value_violation(&value, rule));
        let message = message.or_else(|| (name == "datacontenttype").then(|| envelope_violation(&value))?);
        if let Some(message) = message {
            return self.refuse_field(field, message);
        }
        self.bytes += name.len() + value.len();
        let value = value.into_boxed_str();
        match name {
            "specversion" => self.has_specversion = true,
            "id" => self.id = Some(value),
            "source" => self.source = Some(value),
            "type" => self.event_type = Some(value),
            "datacontenttype" => self.data_content_type = Some(value),
            "dataschema" => self.data_schema = Some(value),
            "subject" => self.subject = Some(value),
            "time" => self.time = Some(value),
            _ => self.extensions.push((name.into(), value)),
        }
    }

    /// As [`Self::take`], for one that stands where its name says.
    pub(super) fn take_named(&mut self, name: &str, value: String) {
        self.take(name, value, format!("{}{}", self.prefix, shortened(name)));
    }

    /// The content type of the data, as far as it is known.
    pub(super) fn data_content_type(&self) -> Option<&str> {
        self.data_content_type.as_deref()
    }

    /// Says the content type that data without one has.
    pub(super) fn imply_content_type(&mut self, media_type: &str) {
        self.data_content_type.get_or_insert_with(|| media_type.into());
    }

    /// The attributes, if nothing is wrong with them.
    pub(super) fn finish(mut self) -> Result<Arc<Attributes>, Vec<Violation>> {
        for (name, missing, example) in [
            ("specversion", !self.has_specversion, "1.0"),
            ("id", self.id.is_none(), "a UUID"),
            ("source", self.source.is_none(), "/shop/orders"),
            ("type", self.event_type.is_none(), "order.created"),
        ] {
            let field = format!("{}{name}", self.prefix);
            if missing && !self.violations.iter().any(|violation| violation.field == field) {
                self.refuse_field(field, format!("must be given, such as {example}"));
            }
        }
        if self.extensions.len() > MAX_EXTENSIONS {
            self.refuse(
                "extensions",
                format!("must be at most {MAX_EXTENSIONS}, are {}", self.extensions.len()),
            );
        }
        if self.bytes > MAX_ATTRIBUTES_BYTES {
            let message =
                format!("must be at most {MAX_ATTRIBUTES_BYTES} bytes together, are {}", self.bytes);
            self.refuse("attributes", message);
        }
        let (Some(id), Some(source), Some(event_type), true) =
            (self.id, self.source, self.event_type, self.violations.is_empty())
        else {
            return Err(self.violations);
        };
        self.extensions.sort_unstable();
        Ok(Arc::new(Attributes {
            id: id.into(),
            source: source.into(),
            event_type: event_type.into(),
            data_content_type: self.data_content_type,
            data_schema: self.data_schema,
            subject: self.subject,
            time: self.time,
            extensions: self.extensions,
        }))
    }
}

fn name_violation(name: &str) -> Option<Cow<'static, str>> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Some("the name of an attribute must be made of a to z and 0 to 9".into());
    }
    if name == "data" {
        return Some("data is no attribute: it is the body of the request".into());
    }
    (name.len() > MAX_NAME_BYTES)
        .then(|| format!("the name of an attribute must be at most {MAX_NAME_BYTES} characters").into())
}

fn value_violation(value: &str, (holds, sentence): Rule) -> Option<Cow<'static, str>> {
    if value.len() > MAX_VALUE_BYTES {
        return Some(format!("must be at most {MAX_VALUE_BYTES} bytes, is {}", value.len()).into());
    }
    if let Some(c) = syntax::forbidden_character(value) {
        return Some(
            format!("must have no control character or noncharacter, has U+{:04X}", u32::from(c)).into(),
        );
    }
    (!holds(value)).then_some(sentence.into())
}

/// What is wrong with the value of the attribute `type`.
pub(super) fn type_violation(value: &str) -> Option<Cow<'static, str>> {
    value_violation(value, NOT_EMPTY)
}

/// Data that are events themselves would be taken for events of their own, with our signature.
fn envelope_violation(content_type: &str) -> Option<Cow<'static, str>> {
    const ENVELOPE: &str = "must not begin with application/cloudevents, by which receivers know whole events: publish \
                            the event that is inside by itself";
    syntax::is_envelope(content_type).then_some(ENVELOPE.into())
}

/// A name as it is told back: cut, and without characters that a terminal would act on.
fn shortened(name: &str) -> String {
    name.chars().take(MAX_NAME_BYTES).map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}
