//! Structured and batch mode: events as JSON objects. The body is read once, and data stays a slice of it as
//! long as it needs no decoding.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::attributes::{Collector, is_standard};
use super::{Decoded, Error, MAX_BATCH, MAX_EXTENSIONS, MAX_VIOLATIONS, Violation, syntax};

/// Most members of one event: room for every attribute of the standard and all extensions, and so few that
/// looking for one given twice is cheap.
const MAX_MEMBERS: usize = 2 * MAX_EXTENSIONS;
/// Content type of data without one.
const JSON: &str = "application/json";

/// Decodes a body that is one event.
pub(super) fn structured(body: &Bytes) -> Result<Decoded, Error> {
    match serde_json::from_slice::<Element<'_>>(body) {
        Ok(element) => event(body, &element, "").map_err(Error::Invalid),
        Err(error) => Err(Error::invalid("body", not_json(&error))),
    }
}

/// Decodes a body that is an array of events.
pub(super) fn batch(body: &Bytes) -> Result<Vec<Decoded>, Error> {
    let elements = read_array(body)?;
    let mut events = Vec::with_capacity(elements.len());
    let mut violations = Vec::new();
    for (index, element) in elements.iter().enumerate() {
        match event(body, element, &format!("[{index}].")) {
            Ok(event) => events.push(event),
            Err(more) => violations.extend(more),
        }
        if violations.len() >= MAX_VIOLATIONS {
            break;
        }
    }
    violations.truncate(MAX_VIOLATIONS);
    if violations.is_empty() { Ok(events) } else { Err(Error::Invalid(violations)) }
}

fn read_array(body: &[u8]) -> Result<Vec<Element<'_>>, Error> {
    let reached = Cell::new(None);
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = json.deserialize_any(ArrayVisitor(&reached)).and_then(|array| json.end().map(|()| array));
    match read {
        Ok(Some(array)) if array.count <= MAX_BATCH => Ok(array.elements),
        Ok(Some(array)) => {
            let message = format!("must be at most {MAX_BATCH} events, are {}", array.count);
            Err(Error::invalid("body", message))
        }
        Ok(None) => Err(Error::invalid("body", "must be a JSON array of events")),
        Err(error) => {
            let field = reached.get().map_or_else(|| "body".to_owned(), |index: usize| format!("[{index}]"));
            Err(Error::invalid(field, not_json(&error)))
        }
    }
}

/// The parser's word: what it expected and where; it never tells a value.
fn not_json(error: &serde_json::Error) -> String {
    format!("must be JSON: {error}")
}

/// Decodes one event; `prefix` is before each of its fields.
fn event(body: &Bytes, element: &Element<'_>, prefix: &str) -> Result<Decoded, Vec<Violation>> {
    let mut event = Collector::new(prefix);
    let members = match element {
        Element::Object { members, count } if *count <= MAX_MEMBERS => members,
        Element::Object { count, .. } => {
            return Err(whole(prefix, format!("must have at most {MAX_MEMBERS} members, has {count}")));
        }
        Element::Other => return Err(whole(prefix, "must be a JSON object".to_owned())),
    };
    let (mut data, mut data_base64) = (None, None);
    for (index, (name, value)) in members.iter().enumerate() {
        if members.iter().take(index).any(|(earlier, _)| earlier == name) {
            event.refuse(name, "must be given once");
            continue;
        }
        match &**name {
            "data" => data = Some(*value),
            "data_base64" => data_base64 = Some(*value).filter(|value| value.get() != "null"),
            name => attribute(&mut event, name, value),
        }
    }
    let data = content(&mut event, body, data, data_base64);
    event.finish().map(|attributes| Decoded { attributes, data })
}

/// A violation of the event as a whole: field `[3]`, or `body` when it is alone.
fn whole(prefix: &str, message: String) -> Vec<Violation> {
    let field = prefix.strip_suffix('.').unwrap_or("body").to_owned();
    vec![Violation { field, message: message.into() }]
}

/// Takes a member that is an attribute: string, boolean, 32-bit integer, or null for none.
fn attribute(event: &mut Collector<'_>, name: &str, value: &RawValue) {
    let text = value.get();
    match text.as_bytes().first() {
        Some(b'"') => match serde_json::from_str(text) {
            Ok(value) => event.take_named(name, value),
            Err(_) => event.refuse(name, "must be a string of whole Unicode characters"),
        },
        Some(b'n') => {}
        _ if is_standard(name) => event.refuse(name, "must be a JSON string"),
        Some(b't' | b'f') => event.take_named(name, text.to_owned()),
        Some(b'-' | b'0'..=b'9') => match text.parse::<i32>() {
            Ok(number) => event.take_named(name, number.to_string()),
            Err(_) => event.refuse(name, "must be an integer from -2147483648 to 2147483647, or a string"),
        },
        _ => event.refuse(name, "must be a string, an integer, a boolean or null, not an object or array"),
    }
}

/// The data as bytes: what `data_base64` says; of a JSON content type the JSON text of `data` as it stands;
/// of another the content of the string that `data` is.
fn content(
    event: &mut Collector<'_>,
    body: &Bytes,
    data: Option<&RawValue>,
    data_base64: Option<&RawValue>,
) -> Bytes {
    let decoded = match (data, data_base64) {
        (None, None) => Ok(Bytes::new()),
        (Some(_), Some(_)) => Err(("data_base64", "must not be given together with data")),
        (None, Some(value)) => {
            base64_content(value).ok_or(("data_base64", "must be a string of padded base64"))
        }
        (Some(value), None) if event.data_content_type().is_none_or(syntax::is_json) => {
            event.imply_content_type(JSON);
            Ok(body.slice_ref(value.get().as_bytes()))
        }
        (Some(value), None) => string_content(body, value)
            .ok_or(("data", "must be a JSON string, since datacontenttype says that the data is not JSON")),
    };
    decoded.unwrap_or_else(|(name, message)| {
        event.refuse(name, message);
        Bytes::new()
    })
}

fn base64_content(value: &RawValue) -> Option<Bytes> {
    let text: Text<'_> = serde_json::from_str(value.get()).ok()?;
    STANDARD.decode(text.0.as_bytes()).ok().map(Bytes::from)
}

fn string_content(body: &Bytes, value: &RawValue) -> Option<Bytes> {
    let text: Text<'_> = serde_json::from_str(value.get()).ok()?;
    Some(match text.0 {
        Cow::Borrowed(text) => body.slice_ref(text.as_bytes()),
        Cow::Owned(text) => Bytes::from(text),
    })
}

/// One element of the JSON, its values unread.
enum Element<'a> {
    Object {
        /// The first [`MAX_MEMBERS`].
        members: Vec<(Cow<'a, str>, &'a RawValue)>,
        count: usize,
    },
    Other,
}

/// An array's first [`MAX_BATCH`] elements.
struct Array<'a> {
    elements: Vec<Element<'a>>,
    count: usize,
}

/// A string, borrowed if it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

impl<'de> Deserialize<'de> for Element<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

/// Visits what is none of what is wanted, so that the parser goes on and only broken JSON is its error.
macro_rules! visit_others_as {
    ($other:expr) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("JSON")
        }

        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($other)
        }

        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($other)
        }

        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($other)
        }

        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($other)
        }

        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok($other)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($other)
        }
    };
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element<'de>;

    visit_others_as!(Element::Other);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(16);
        let mut count = 0;
        while count < MAX_MEMBERS
            && let Some((name, value)) = map.next_entry::<Text<'de>, &'de RawValue>()?
        {
            members.push((name.0, value));
            count += 1;
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Element::Object { members, count })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Element::Other)
    }
}

/// Tells the index of the element that it is reading.
struct ArrayVisitor<'c>(&'c Cell<Option<usize>>);

impl<'de> Visitor<'de> for ArrayVisitor<'_> {
    type Value = Option<Array<'de>>;

    visit_others_as!(None);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut array = Array { elements: Vec::new(), count: 0 };
        self.0.set(Some(0));
        while array.count < MAX_BATCH
            && let Some(element) = seq.next_element()?
        {
            array.elements.push(element);
            array.count += 1;
            self.0.set(Some(array.count));
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {
            array.count += 1;
            self.0.set(Some(array.count));
        }
        Ok(Some(array))
    }
}
