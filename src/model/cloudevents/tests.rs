use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::model::ce_header;

const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
const MINIMAL: [(&str, &str); 4] =
    [("ce-specversion", "1.0"), ("ce-id", "7"), ("ce-source", "/shop"), ("ce-type", "order.created")];

fn headers(list: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in list {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn decode_text(list: &[(&str, &str)], body: &str) -> Result<Publication, Error> {
    decode(&headers(list), &Bytes::copy_from_slice(body.as_bytes()))
}

fn one(publication: Result<Publication, Error>) -> Decoded {
    match publication {
        Ok(Publication::One(event)) => event,
        other => panic!("one event, not {other:?}"),
    }
}

fn structured(body: &str) -> Result<Publication, Error> {
    decode_text(&[("content-type", STRUCTURED)], body)
}

/// A structured event with these members beside the required ones.
fn with(members: &str) -> String {
    format!(r#"{{"specversion":"1.0","id":"7","source":"/shop","type":"order.created"{members}}}"#)
}

fn violations(result: Result<Publication, Error>) -> Vec<(String, String)> {
    match result {
        Err(Error::Invalid(list)) => list.into_iter().map(|v| (v.field, v.message.into_owned())).collect(),
        other => panic!("violations, not {other:?}"),
    }
}

/// Asserts exactly one violation, of this field and with this in its message.
fn assert_refused(what: &str, result: Result<Publication, Error>, field: &str, message: &str) {
    let list = violations(result);
    assert_eq!(list.len(), 1, "{what}: {list:?}");
    assert_eq!(list[0].0, field, "{what}");
    assert!(list[0].1.contains(message), "{what}: {:?} has {message:?}", list[0].1);
}

#[test]
fn a_binary_event_is_its_headers_and_its_body() {
    let mut list = MINIMAL.to_vec();
    list.extend([
        ("content-type", "text/plain; charset=utf-8"),
        ("CE-Subject", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
        ("ce-time", "2018-04-05T17:31:00Z"),
        ("ce-dataschema", "https://shop.example/order.json#/v1"),
        ("ce-zeta", "\"a \\\"b\\\"\""),
        ("ce-alpha", ""),
        ("ce-n", "5"),
        ("traceparent", "not ours"),
        ("authorization", "Bearer x"),
    ]);
    let body = Bytes::from_static(b"\x00\xffany bytes");
    let event = one(decode(&headers(&list), &body));
    assert_eq!(event.data.as_ptr(), body.as_ptr(), "the body is not copied");
    assert_eq!(
        *event.attributes,
        Attributes {
            id: "7".into(),
            source: "/shop".into(),
            event_type: "order.created".into(),
            data_content_type: Some("text/plain; charset=utf-8".into()),
            data_schema: Some("https://shop.example/order.json#/v1".into()),
            subject: Some("Euro € 😀".into()),
            time: Some("2018-04-05T17:31:00Z".into()),
            extensions: vec![
                ("alpha".into(), "".into()),
                ("n".into(), "5".into()),
                ("zeta".into(), "a \"b\"".into())
            ],
        }
    );
}

#[test]
fn a_binary_event_may_have_neither_data_nor_content_type() {
    let event = one(decode_text(&MINIMAL, ""));
    assert_eq!((event.attributes.data_content_type.as_deref(), event.data.len()), (None, 0));
}

#[test]
fn a_bad_binary_event_is_refused_by_the_name_of_its_header() {
    let long = "x".repeat(MAX_VALUE_BYTES + 1);
    let long_name = format!("ce-{}", "n".repeat(MAX_NAME_BYTES + 1));
    let table: &[(&str, &str, &str, &str)] = &[
        ("ce-specversion", "0.3", "ce-specversion", "must be 1.0"),
        ("ce-specversion", "1.0.2", "ce-specversion", "must be 1.0"),
        ("ce-id", "", "ce-id", "must not be empty"),
        ("ce-id", "a%09b", "ce-id", "U+0009"),
        ("ce-id", "%C0%A0", "ce-id", "UTF-8"),
        ("ce-id", "%ED%A0%80", "ce-id", "UTF-8"),
        ("ce-id", "%FF", "ce-id", "UTF-8"),
        ("ce-id", "%zz", "ce-id", "hexadecimal"),
        ("ce-id", "\"abc", "ce-id", "quote"),
        ("ce-id", "Zoë", "ce-id", "ASCII"),
        ("ce-id", &long, "ce-id", "must be at most 2048 bytes, is 2049"),
        ("ce-source", "", "ce-source", "URI reference"),
        ("ce-source", "my%20shop", "ce-source", "URI reference"),
        ("ce-type", "", "ce-type", "must not be empty"),
        ("ce-type", "%EF%BF%BF", "ce-type", "U+FFFF"),
        ("ce-time", "yesterday", "ce-time", "RFC 3339"),
        ("ce-subject", "", "ce-subject", "must not be empty"),
        ("ce-dataschema", "/relative", "ce-dataschema", "absolute URI"),
        ("ce-datacontenttype", "text/plain", "ce-datacontenttype", "Content-Type"),
        ("ce-data", "x", "ce-data", "body of the request"),
        ("ce-data_base64", "eA==", "ce-data_base64", "a to z and 0 to 9"),
        ("ce-my-ext", "x", "ce-my-ext", "a to z and 0 to 9"),
        ("ce-", "x", "ce-", "a to z and 0 to 9"),
        (&long_name, "x", &long_name[..3 + MAX_NAME_BYTES], "at most 64 characters"),
        ("content-type", "plain", "content-type", "media type"),
        ("content-type", "text/plain; ä=b", "content-type", "media type"),
    ];
    for (name, value, field, message) in table {
        let mut list: Vec<_> = MINIMAL.into_iter().filter(|(known, _)| known != name).collect();
        list.push((name, value));
        assert_refused(&format!("{name}: {value}"), decode_text(&list, ""), field, message);
    }
}

#[test]
fn a_header_given_twice_is_refused() {
    for name in ["ce-id", "ce-ext", "content-type"] {
        let mut list: Vec<_> = MINIMAL.into_iter().filter(|(known, _)| *known != name).collect();
        list.extend([(name, "text/plain"), (name, "text/html")]);
        assert_refused(name, decode_text(&list, ""), name, "must be given once");
    }
}

#[test]
fn everything_that_is_missing_or_wrong_is_told_at_once() {
    let result = decode_text(&[("ce-id", ""), ("ce-time", "x")], "");
    let fields: Vec<_> = violations(result).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["ce-id", "ce-time", "ce-specversion", "ce-source", "ce-type"]);
}

#[test]
fn there_is_a_limit_to_extensions_and_to_all_attributes_together() {
    let names: Vec<_> = (0..=MAX_EXTENSIONS).map(|i| format!("ce-x{i}")).collect();
    let mut list = MINIMAL.to_vec();
    list.extend(names.iter().map(|name| (&**name, "v")));
    assert_refused("65 extensions", decode_text(&list, ""), "ce-extensions", "must be at most 64, are 65");
    list.pop();
    one(decode_text(&list, ""));

    let value = "v".repeat(MAX_VALUE_BYTES);
    let mut list = MINIMAL.to_vec();
    list.extend(names.iter().take(4).map(|name| (&**name, &*value)));
    assert_refused(
        "over 8 KiB",
        decode_text(&list, ""),
        "ce-attributes",
        "must be at most 8192 bytes together",
    );
}

#[test]
fn the_mode_is_chosen_by_content_type_then_headers_then_the_first_byte() {
    let event = with("");
    let list = format!("[{event},{event}]");
    let typed = |content_type| vec![("content-type", content_type)];
    let binary = |content_type| [&MINIMAL[..], &[("content-type", content_type)]].concat();
    for (what, headers, body, expected) in [
        ("structured", typed(STRUCTURED), &*event, Mode::Structured),
        ("in any case", typed("Application/CloudEvents+JSON; charset=UTF-8"), &event, Mode::Structured),
        (
            "charset in quotes",
            typed("application/cloudevents+json;charset=\"utf-8\""),
            &event,
            Mode::Structured,
        ),
        ("structured wins over headers", binary(STRUCTURED), &event, Mode::Structured),
        ("batch", typed(BATCH), &list, Mode::Batch),
        (
            "batch in any case",
            typed("APPLICATION/cloudevents-BATCH+json ; charset=utf-8"),
            &list,
            Mode::Batch,
        ),
        ("binary, whatever the body looks like", binary("application/json"), &list, Mode::Binary),
        ("binary by any ce- header", vec![("ce-id", "7")], &event, Mode::Binary),
        ("neither, an object", typed("application/json"), &event, Mode::Structured),
        ("neither, an array", vec![], &list, Mode::Batch),
        ("neither, blanks first", typed("application/x-www-form-urlencoded"), " \r\n\t{", Mode::Structured),
    ] {
        assert_eq!(mode::of(&self::headers(&headers), body.as_bytes()), Ok(expected), "{what}");
    }
}

#[test]
fn what_is_no_event_is_an_unsupported_media_type() {
    let event = with("");
    for (what, headers, body, message) in [
        ("no body", vec![], "", "ce-id, ce-source"),
        ("text", vec![("content-type", "text/plain")], "hello", "application/cloudevents+json"),
        ("avro", vec![("content-type", "application/cloudevents+avro")], &*event, "must be JSON"),
        ("no format", vec![("content-type", "application/cloudevents")], &event, "must be JSON"),
        (
            "batch of avro",
            vec![("content-type", "application/cloudevents-batch+avro")],
            &event,
            "must be JSON",
        ),
        ("charset", vec![("content-type", "application/cloudevents+json; charset=latin1")], &event, "utf-8"),
        ("gzip", vec![("content-type", STRUCTURED), ("content-encoding", "gzip")], &event, "compressed"),
    ] {
        match decode_text(&headers, body) {
            Err(Error::Unsupported(text)) => assert!(text.contains(message), "{what}: {text}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn data_of_a_json_event_is_its_exact_text_as_a_slice_of_the_body() {
    for data in [
        r#"{ "b" : 1.50,  "a":[1e2, "\u00e9\/"], "b":2 }"#,
        "[ ]",
        "1.0",
        "\"a string\"",
        "null",
        "true",
        "123456789012345678901234567890",
    ] {
        for content_type in ["", r#","datacontenttype":"application/vnd.x+json; v=1""#] {
            let body = Bytes::from(with(&format!("{content_type},\"data\" : {data} ,\"after\":\"x\"")));
            let event = one(decode(&headers(&[("content-type", STRUCTURED)]), &body));
            assert_eq!(event.data, data.as_bytes());
            let offset = event.data.as_ptr() as usize - body.as_ptr() as usize;
            assert!(offset < body.len(), "a slice of the body");
            let expected = if content_type.is_empty() { JSON } else { "application/vnd.x+json; v=1" };
            assert_eq!(event.attributes.data_content_type.as_deref(), Some(expected));
        }
    }
}

const JSON: &str = "application/json";

#[test]
fn a_string_of_another_content_type_is_its_content() {
    for (data, content) in [
        (r#""<a b=\"c\"/>\n""#, "<a b=\"c\"/>\n"),
        (r#""plain""#, "plain"),
        (r#""""#, ""),
        (r#""\u20ac""#, "€"),
    ] {
        let body = with(&format!(r#","data":{data},"datacontenttype":"application/xml""#));
        let event = one(structured(&body));
        assert_eq!(event.data, content.as_bytes());
        assert_eq!(event.attributes.data_content_type.as_deref(), Some("application/xml"));
    }
}

#[test]
fn data_base64_is_decoded_and_implies_no_content_type() {
    let event = one(structured(&with(r#","data_base64":"AAH\/""#)));
    assert_eq!((&*event.data, event.attributes.data_content_type.as_deref()), (&[0u8, 1, 255][..], None));
    let event = one(structured(&with(r#","data_base64":"","datacontenttype":"image/png""#)));
    assert_eq!((event.data.len(), event.attributes.data_content_type.as_deref()), (0, Some("image/png")));
}

#[test]
fn an_event_without_data_has_no_content_type_of_ours() {
    let event = one(structured(&with(r#","data_base64":null"#)));
    assert_eq!((event.data.len(), event.attributes.data_content_type.as_deref()), (0, None));
}

#[test]
fn json_attributes_become_their_canonical_strings_and_null_is_absent() {
    let event = one(structured(&with(
        r#","subject":null,"time":null,"yes":true,"no":false,"n":-2147483648,"zero":-0,"none":null,"text":"\u00e9\"","empty":"""#,
    )));
    let extensions: Vec<_> = event.attributes.extensions.iter().map(|(n, v)| (&**n, &**v)).collect();
    assert_eq!(
        extensions,
        [
            ("empty", ""),
            ("n", "-2147483648"),
            ("no", "false"),
            ("text", "é\""),
            ("yes", "true"),
            ("zero", "0")
        ]
    );
    assert_eq!((&event.attributes.subject, &event.attributes.time), (&None, &None));
}

#[test]
fn a_bad_json_event_is_refused_by_the_name_of_its_member() {
    let table: &[(&str, &str, &str)] = &[
        (r#","id":"8""#, "id", "must be given once"),
        (r#","ext":"a","ext":"b""#, "ext", "must be given once"),
        (r#","data":1,"data":2"#, "data", "must be given once"),
        (r#","data":1,"data_base64":"""#, "data_base64", "together with data"),
        (r#","data_base64":"x""#, "data_base64", "padded base64"),
        (r#","data_base64":"eA""#, "data_base64", "padded base64"),
        (r#","data_base64":5"#, "data_base64", "padded base64"),
        (r#","data":{"a":1},"datacontenttype":"text/plain""#, "data", "must be a JSON string"),
        (r#","data":null,"datacontenttype":"text/plain""#, "data", "must be a JSON string"),
        (r#","datacontenttype":"plain""#, "datacontenttype", "media type"),
        (r#","datacontenttype":5"#, "datacontenttype", "must be a JSON string"),
        (r#","datacontenttype":"application/cloudevents+json","data":{}"#, "datacontenttype", "whole events"),
        (
            r#","datacontenttype":"Application/CloudEvents-BATCH+json; a=b","data":[]"#,
            "datacontenttype",
            "whole events",
        ),
        (
            r#","datacontenttype":"application/cloudevents","data_base64":"""#,
            "datacontenttype",
            "whole events",
        ),
        (r#","datacontenttype":"a/b\r\nx-a: b""#, "datacontenttype", "U+000D"),
        (r#","datacontenttype":"a/b, application/cloudevents+json""#, "datacontenttype", "media type"),
        (r#","datacontenttype":" application/cloudevents+json""#, "datacontenttype", "media type"),
        (r#","time":1700000000"#, "time", "must be a JSON string"),
        (r#","time":"2023-02-29T00:00:00Z""#, "time", "RFC 3339"),
        (r#","subject":"""#, "subject", "must not be empty"),
        (r#","subject":"\u0000""#, "subject", "U+0000"),
        (r#","subject":"\ud800""#, "subject", "whole Unicode"),
        (r#","dataschema":"x""#, "dataschema", "absolute URI"),
        (r#","n":2147483648"#, "n", "integer from -2147483648"),
        (r#","n":1.0"#, "n", "integer"),
        (r#","n":1e3"#, "n", "integer"),
        (r#","o":{}"#, "o", "not an object or array"),
        (r#","o":[1]"#, "o", "not an object or array"),
        (r#","dataContentType":"text/plain""#, "dataContentType", "a to z and 0 to 9"),
        (r#","my_ext":1"#, "my_ext", "a to z and 0 to 9"),
        (r#","\u001b[31m":1"#, "\u{FFFD}[31m", "a to z and 0 to 9"),
        (r#","":1"#, "", "a to z and 0 to 9"),
    ];
    for (members, field, message) in table {
        assert_refused(members, structured(&with(members)), field, message);
        let batch = format!("[{},{},{}]", with(""), with(members), with(""));
        let result = decode_text(&[("content-type", BATCH)], &batch);
        assert_refused(members, result, &format!("[1].{field}"), message);
    }
}

#[test]
fn a_required_attribute_that_is_missing_or_null_is_named() {
    for name in ["specversion", "id", "source", "type"] {
        let event: serde_json::Value = serde_json::from_str(&with("")).unwrap();
        for value in [None, Some(serde_json::Value::Null)] {
            let mut event = event.clone();
            event.as_object_mut().unwrap().remove(name);
            if let Some(value) = value {
                event[name] = value;
            }
            assert_refused(name, structured(&event.to_string()), name, "must be given");
            let batch = format!("[{event}]");
            let result = decode_text(&[("content-type", BATCH)], &batch);
            assert_refused(name, result, &format!("[0].{name}"), "must be given");
        }
    }
}

#[test]
fn a_body_that_is_not_the_json_of_its_mode_is_refused_as_a_whole() {
    let event = with("");
    for (content_type, body, field, message) in [
        (STRUCTURED, String::new(), "body", "must be JSON: EOF"),
        (STRUCTURED, "{".to_owned(), "body", "must be JSON"),
        (STRUCTURED, format!("{event} x"), "body", "trailing characters"),
        (STRUCTURED, with(r#","data":{"a":}"#), "body", "must be JSON"),
        (STRUCTURED, with(",\"data\":\"\u{1}\""), "body", "must be JSON"),
        (STRUCTURED, format!("[{event}]"), "body", "must be a JSON object"),
        (STRUCTURED, "\"text\"".to_owned(), "body", "must be a JSON object"),
        (BATCH, event.clone(), "body", "must be a JSON array"),
        (BATCH, "true".to_owned(), "body", "must be a JSON array"),
        (BATCH, "nope".to_owned(), "body", "must be JSON"),
        (BATCH, format!("[{event},5]"), "[1]", "must be a JSON object"),
        (BATCH, format!("[{event},[{event}]]"), "[1]", "must be a JSON object"),
        (BATCH, format!("[{event},{event},{{\"a\":]"), "[2]", "must be JSON"),
        (BATCH, format!("[{event}"), "[1]", "must be JSON"),
    ] {
        assert_refused(&body, decode_text(&[("content-type", content_type)], &body), field, message);
    }
    let body = Bytes::from_static(b"{\"data\":\"\xff\"}");
    assert_refused("not UTF-8", decode(&headers(&[("content-type", STRUCTURED)]), &body), "body", "unicode");
}

#[test]
fn an_event_has_at_most_so_many_members() {
    let members: Vec<_> = (0..=2 * MAX_EXTENSIONS).map(|i| format!(",\"x{i}\":null")).collect();
    assert_refused("members", structured(&with(&members.concat())), "body", "at most 128 members, has 133");
}

#[test]
fn a_batch_keeps_its_order_and_may_be_empty_and_has_a_limit() {
    let batch = |n: usize| {
        let events: Vec<_> = (0..n).map(|i| with(&format!(",\"data\":{i}"))).collect();
        decode_text(&[("content-type", BATCH)], &format!("[{}]", events.join(" , ")))
    };
    for n in [0, 3, MAX_BATCH] {
        let Ok(Publication::Batch(events)) = batch(n) else { panic!("a batch of {n}") };
        let data: Vec<_> =
            events.iter().map(|event| String::from_utf8_lossy(&event.data).into_owned()).collect();
        assert_eq!(data, (0..n).map(|i| i.to_string()).collect::<Vec<_>>());
    }
    assert_refused("1001", batch(MAX_BATCH + 1), "body", "must be at most 1000 events, are 1001");
}

#[test]
fn of_a_batch_with_many_bad_events_the_first_violations_are_told() {
    let events = vec!["{}"; 100].join(",");
    let list = violations(decode_text(&[("content-type", BATCH)], &format!("[{events}]")));
    assert_eq!(list.len(), MAX_VIOLATIONS);
    assert_eq!((&*list[0].0, &*list[19].0), ("[0].specversion", "[4].type"));
}

#[test]
fn no_answer_tells_a_value_back() {
    let canary = "canary-0815";
    let body = with(&format!(
        r#","time":"{canary}","subject":"{canary}\u0000","datacontenttype":"{canary}","dataschema":"{canary} ","n":"{canary}\u007f""#
    ));
    let Err(error) = structured(&body) else { panic!("refused") };
    assert_eq!(violations(Err(error.clone())).len(), 5);
    assert!(!format!("{error} {error:?}").contains(canary), "{error}");
}

#[test]
fn deep_nesting_in_data_is_only_bytes() {
    let data = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(one(structured(&with(&format!(",\"data\":{data}")))).data.len(), 200_000);
}

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 1..40)
        .prop_map(|chars| {
            chars.into_iter().filter(|c| syntax::forbidden_character(&c.to_string()).is_none()).collect()
        })
        .prop_filter("not empty", |text: &String| !text.is_empty())
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let extensions = proptest::collection::btree_map("x[a-z0-9]{1,10}", text(), 0..5);
    let content_type = proptest::option::of(Just("text/plain; charset=utf-8"));
    (text(), "/[a-z/?=&']{0,20}", text(), content_type, proptest::option::of(text()), extensions).prop_map(
        |(id, source, event_type, content_type, subject, extensions)| Attributes {
            id: id.into(),
            source: source.into(),
            event_type: event_type.into(),
            data_content_type: content_type.map(Into::into),
            data_schema: None,
            subject: subject.map(Into::into),
            time: None,
            extensions: extensions.into_iter().map(|(n, v)| (n.into(), v.into())).collect(),
        },
    )
}

/// Every attribute by name but the content type.
fn named(attributes: &Attributes) -> Vec<(&str, &str)> {
    let mut list = vec![
        ("specversion", "1.0"),
        ("id", &*attributes.id),
        ("source", &*attributes.source),
        ("type", &*attributes.event_type),
    ];
    list.extend(attributes.subject.as_deref().map(|subject| ("subject", subject)));
    list.extend(attributes.extensions.iter().map(|(name, value)| (&**name, &**value)));
    list
}

proptest! {
    #[test]
    fn what_is_sent_in_binary_mode_is_read_back(attributes in attributes(), data: Vec<u8>) {
        let mut headers = HeaderMap::new();
        for (name, value) in named(&attributes) {
            let name = HeaderName::try_from(format!("ce-{name}")).unwrap();
            headers.insert(name, HeaderValue::from_str(&ce_header::encode(value)).unwrap());
        }
        if let Some(content_type) = &attributes.data_content_type {
            headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
        }
        let event = one(decode(&headers, &Bytes::from(data.clone())));
        prop_assert_eq!(&*event.attributes, &attributes);
        prop_assert_eq!(&*event.data, &*data);
    }

    #[test]
    fn what_is_sent_in_structured_mode_is_read_back(attributes in attributes(), data: Vec<u8>) {
        use base64::Engine as _;
        let mut event = serde_json::Map::new();
        for (name, value) in named(&attributes) {
            event.insert(name.to_owned(), value.into());
        }
        if let Some(content_type) = &attributes.data_content_type {
            event.insert("datacontenttype".to_owned(), (&**content_type).into());
        }
        event.insert("data_base64".to_owned(), base64::engine::general_purpose::STANDARD.encode(&data).into());
        let event = one(structured(&serde_json::Value::Object(event).to_string()));
        prop_assert_eq!(&*event.attributes, &attributes);
        prop_assert_eq!(&*event.data, &*data);
    }

    #[test]
    fn no_input_makes_the_decoder_panic(body: Vec<u8>, content_type in "(application/cloudevents(-batch)?\\+json)?") {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::try_from(content_type).unwrap());
        let _ = decode(&headers, &Bytes::from(body));
    }

    #[test]
    fn no_text_makes_the_syntaxes_panic(text in "\\PC{0,40}|[-0-9TZ:.+%a-z/?#@\\[\\];=\" ]{0,40}") {
        let _ = (syntax::is_uri(&text), syntax::is_uri_reference(&text), syntax::is_timestamp(&text));
        let _ = (syntax::is_media_type(&text), syntax::is_json(&text));
    }
}
