//! One request, from an event and its endpoint. Pure: the same input gives the same bytes.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};

use super::Job;
use crate::model::event::Attributes;
use crate::model::{ce_header, cloudevents};

/// What is sent: always a `POST`.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// Every header but those that HTTP itself needs.
    pub(super) headers: HeaderMap,
    /// The event's data, not copied.
    pub(super) body: Bytes,
    /// The signatures in the headers, without their `v1,`: an answer must not keep them.
    pub(super) signatures: Vec<String>,
}

const SPEC_VERSION: HeaderName = HeaderName::from_static("ce-specversion");
const ID: HeaderName = HeaderName::from_static("ce-id");
const SOURCE: HeaderName = HeaderName::from_static("ce-source");
const TYPE: HeaderName = HeaderName::from_static("ce-type");
const TIME: HeaderName = HeaderName::from_static("ce-time");
const SUBJECT: HeaderName = HeaderName::from_static("ce-subject");
const DATA_SCHEMA: HeaderName = HeaderName::from_static("ce-dataschema");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const TEST: HeaderName = HeaderName::from_static("hookwright-test");

/// The request of one attempt that starts at `timestamp_secs`: each attempt is signed anew.
pub(super) fn build(job: &Job, timestamp_secs: i64) -> Request {
    let Job { name, webhook: _, endpoint, event, test } = job;
    let id = name.to_string();
    let signature = endpoint.signer.sign(&id, timestamp_secs, &event.data);
    let mut headers = HeaderMap::with_capacity(24 + endpoint.headers.len());
    for (name, value) in &endpoint.headers {
        headers.append(name, value.clone());
    }
    // After the user's, so that none of them can take their place.
    describe(&mut headers, &event.attributes);
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("Hookwright/", env!("CARGO_PKG_VERSION"))));
    set_once(&mut headers, WEBHOOK_ID, &id);
    headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(timestamp_secs));
    set_once(&mut headers, WEBHOOK_SIGNATURE, &signature);
    if *test {
        headers.insert(TEST, HeaderValue::from_static("true"));
    }
    let signatures =
        signature.split(' ').filter_map(|one| one.split_once(',')).map(|(_, one)| one.to_owned());
    Request { headers, body: event.data.clone(), signatures: signatures.collect() }
}

/// The CloudEvents attributes, in the binary mode of the HTTP binding.
fn describe(headers: &mut HeaderMap, attributes: &Attributes) {
    let Attributes { id, source, event_type, data_content_type, data_schema, subject, time, extensions } =
        attributes;
    headers.insert(SPEC_VERSION, HeaderValue::from_static("1.0"));
    set_once(headers, ID, &ce_header::encode(id));
    set(headers, SOURCE, &ce_header::encode(source));
    set(headers, TYPE, &ce_header::encode(event_type));
    if let Some(time) = time {
        set_once(headers, TIME, &ce_header::encode(time));
    }
    for (name, value) in [(SUBJECT, subject), (DATA_SCHEMA, data_schema)] {
        if let Some(value) = value {
            set(headers, name, &ce_header::encode(value));
        }
    }
    for (name, value) in extensions {
        // The publishing door took only names of lower-case letters and digits.
        if let Ok(name) = HeaderName::try_from(format!("ce-{name}")) {
            set(headers, name, &ce_header::encode(value));
        }
    }
    // An event that was stored before the publishing door refused such types goes out without one.
    if let Some(content_type) = data_content_type.as_deref().filter(|kind| !cloudevents::is_envelope(kind)) {
        set(headers, CONTENT_TYPE, content_type);
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // Only a content type that the publishing door should not have taken is no header value.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// A value that no other request has: kept out of the tables of HPACK (RFC 7541, section 7.1.3), where a few
/// requests' worth of them would push out what every request has.
fn set_once(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(mut value) = HeaderValue::from_str(value) {
        value.set_sensitive(true);
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::testing;

    const EXPECTED: &[(&str, &str)] = &[
        ("authorization", "Bearer abc"),
        ("ce-id", "A%20234"),
        ("ce-partitionkey", "k%C3%A9y"),
        ("ce-source", "/orders"),
        ("ce-specversion", "1.0"),
        ("ce-subject", "%22x%22"),
        ("ce-time", "2026-11-24T10:00:00Z"),
        ("ce-type", "order.created"),
        ("content-type", "application/json; charset=utf-8"),
        ("user-agent", concat!("Hookwright/", env!("CARGO_PKG_VERSION"))),
        ("webhook-id", "018bcfe5-687b-7000-8000-000000000001"),
        ("webhook-timestamp", "1700000000"),
    ];

    fn job() -> Job {
        let mut event = testing::event(br#"{"a":1}"#);
        event.attributes = Attributes {
            id: "A 234".into(),
            source: "/orders".into(),
            event_type: "order.created".into(),
            data_content_type: Some("application/json; charset=utf-8".into()),
            data_schema: None,
            subject: Some("\"x\"".into()),
            time: Some("2026-11-24T10:00:00Z".into()),
            extensions: vec![("partitionkey".into(), "kéy".into())],
        }
        .into();
        let mut endpoint = testing::endpoint("https://x.localhost/");
        endpoint.headers = vec![
            (HeaderName::from_static("authorization"), HeaderValue::from_static("Bearer abc")),
            (HeaderName::from_static("webhook-id"), HeaderValue::from_static("forged")),
        ];
        Job {
            name: "018bcfe5-687b-7000-8000-000000000001".parse().unwrap(),
            webhook: testing::webhook("orders"),
            endpoint: endpoint.into(),
            event: event.into(),
            test: false,
        }
    }

    fn shown(request: &Request) -> Vec<(&str, &str)> {
        let mut headers: Vec<_> =
            request.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        headers.sort_unstable();
        headers
    }

    #[test]
    fn a_request_has_the_headers_of_the_documents_and_the_users_own() {
        let job = job();
        let request = build(&job, 1_700_000_000);
        let mut shown = shown(&request);
        let signature = shown.iter().position(|(name, _)| *name == "webhook-signature").unwrap();
        let (_, signature) = shown.remove(signature);
        assert_eq!(shown, EXPECTED);
        let expected = job.endpoint.signer.sign(&job.name.to_string(), 1_700_000_000, br#"{"a":1}"#);
        assert_eq!(signature, expected);
        assert_eq!(request.signatures, [expected.strip_prefix("v1a,").unwrap()]);
        assert_eq!(request.body.as_ptr(), job.event.data.as_ptr(), "copied");
    }

    #[test]
    fn a_test_says_so() {
        let request = build(&Job { test: true, ..job() }, 0);
        assert_eq!(request.headers.get("hookwright-test").unwrap(), "true");
    }

    #[test]
    fn an_event_without_a_content_type_or_with_one_of_whole_events_is_sent_without_one() {
        for content_type in [None, Some("application/CloudEvents+json; charset=utf-8")] {
            let mut job = job();
            let mut event = (*job.event).clone();
            let mut attributes = (*event.attributes).clone();
            attributes.data_content_type = content_type.map(Into::into);
            event.attributes = attributes.into();
            job.event = event.into();
            assert!(!build(&job, 0).headers.contains_key("content-type"), "{content_type:?}");
        }
    }

    #[test]
    fn each_attempt_is_signed_anew() {
        let job = job();
        assert_ne!(build(&job, 1).signatures, build(&job, 2).signatures);
    }
}
