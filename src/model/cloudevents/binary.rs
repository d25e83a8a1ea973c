//! Binary mode: attributes in headers, data in the body.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName};

use super::attributes::{Collector, MEDIA_TYPE};
use super::{Decoded, Error};
use crate::model::ce_header;

/// Decodes an event whose attributes are headers.
pub(super) fn decode(headers: &HeaderMap, body: Bytes) -> Result<Decoded, Error> {
    let mut event = Collector::new("ce-");
    for name in headers.keys() {
        if let Some(attribute) = name.as_str().strip_prefix("ce-") {
            take(&mut event, headers, name, attribute);
        }
    }
    if let Some(value) = headers.get(CONTENT_TYPE) {
        match value.to_str() {
            Ok(value) => event.take("datacontenttype", value.to_owned(), "content-type".to_owned()),
            Err(_) => event.refuse_field("content-type".to_owned(), MEDIA_TYPE),
        }
    }
    Ok(Decoded { attributes: event.finish().map_err(Error::Invalid)?, data: body })
}

fn take(event: &mut Collector<'_>, headers: &HeaderMap, header: &HeaderName, attribute: &str) {
    if attribute == "datacontenttype" {
        return event.refuse(attribute, "must not be given: Content-Type is the content type of the data");
    }
    let mut values = headers.get_all(header).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return event.refuse(attribute, "must be given once");
    };
    match ce_header::decode(value.as_bytes()) {
        Ok(value) => event.take_named(attribute, value),
        Err(error) => event.refuse(attribute, error.to_string()),
    }
}
