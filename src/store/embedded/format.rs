//! The values. Each begins with a byte that says how the rest is encoded.

use std::sync::Arc;

use bytes::Bytes;
use fjall::Slice;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::event::Attributes;
use crate::model::ids::{DeliveryName, EventUid, Namespace};
use crate::model::time::UnixMillis;
use crate::store::records::{DedupKey, Event, NewEvent};
use crate::store::{Error, Result};

/// Version of the format as a whole: keyspaces, keys, values. A program opens what is no newer than itself, and
/// brings what is older up to it. Version 2 has what namespaces use, redeliveries, and the names of an event's
/// deliveries; version 3 has deliveries by id and type of their event; version 4 tells namespaces
/// of the same name apart, and a Webhook can be kept under the uid of one that it took over from.
pub(super) const VERSION: u32 = 4;

/// `MessagePack`, structs as maps of short names, so that fields can be added.
const MSGPACK: u8 = 1;

#[derive(thiserror::Error, Debug)]
enum Malformed {
    #[error("it is too short")]
    Short,
    #[error("its encoding {0} is unknown")]
    Encoding(u8),
}

fn corrupt(what: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Corrupt { what: what.to_owned(), source: source.into() }
}

/// Encodes a record.
pub(super) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(256);
    bytes.push(MSGPACK);
    rmp_serde::encode::write_named(&mut bytes, record)
        .map_err(|error| Error::Engine { what: "encode a record", source: error.into() })?;
    Ok(bytes)
}

/// Decodes a record; `what` is for the error.
pub(super) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    match bytes.split_first() {
        Some((&MSGPACK, rest)) => rmp_serde::from_slice(rest).map_err(|error| corrupt(what, error)),
        Some((&other, _)) => Err(corrupt(what, Malformed::Encoding(other))),
        None => Err(corrupt(what, Malformed::Short)),
    }
}

/// All of an event but its data.
#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "n")]
    namespace: Namespace,
    #[serde(rename = "a")]
    accepted_at: UnixMillis,
    #[serde(rename = "e")]
    attributes: Arc<Attributes>,
}

/// Encoding byte, length of the header as u32, header, data as it is.
const PREFIX: usize = 5;

/// Encodes an event. The event that is returned shares the value's memory, so that neither the request's buffer
/// nor a second copy stays in memory.
pub(super) fn encode_event(event: NewEvent) -> Result<(Slice, Event)> {
    let NewEvent { uid, namespace, attributes, data, accepted_at, dedup: _, deliveries: _ } = event;
    let header = Header { namespace, accepted_at, attributes };
    let mut value = Vec::with_capacity(PREFIX + 256 + data.len());
    value.extend_from_slice(&[MSGPACK, 0, 0, 0, 0]);
    rmp_serde::encode::write_named(&mut value, &header)
        .map_err(|error| Error::Engine { what: "encode an event", source: error.into() })?;
    let body = value.len();
    let length = u32::try_from(body - PREFIX).unwrap_or(u32::MAX).to_be_bytes();
    if let Some(field) = value.get_mut(1..PREFIX) {
        field.copy_from_slice(&length);
    }
    value.extend_from_slice(&data);
    let value = Slice::from(value);
    let Header { namespace, accepted_at, attributes } = header;
    let data = Bytes::from_owner(value.clone()).slice(body..);
    let event = Event { uid, namespace, accepted_at, attributes, data };
    Ok((value, event))
}

/// Decodes an event; its data shares the memory of `value`.
pub(super) fn decode_event(uid: EventUid, value: &Slice) -> Result<Event> {
    let what = || format!("event {uid}");
    let length = match value.first() {
        Some(&MSGPACK) => value.get(1..PREFIX).and_then(|length| length.try_into().ok()),
        Some(&other) => return Err(corrupt(&what(), Malformed::Encoding(other))),
        None => None,
    };
    let body = length
        .and_then(|length| usize::try_from(u32::from_be_bytes(length)).ok())
        .and_then(|length| length.checked_add(PREFIX));
    let Some((body, header)) = body.and_then(|body| value.get(PREFIX..body).map(|header| (body, header)))
    else {
        return Err(corrupt(&what(), Malformed::Short));
    };
    let Header { namespace, accepted_at, attributes } =
        rmp_serde::from_slice(header).map_err(|error| corrupt(&what(), error))?;
    let data = Bytes::from_owner(value.clone()).slice(body..);
    Ok(Event { uid, namespace, accepted_at, attributes, data })
}

/// The value of the deliveries that need an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct References {
    /// How many are left.
    pub left: u32,
    /// Their names and of those that are gone; empty when a program wrote it that did not keep them.
    pub names: Vec<DeliveryName>,
}

impl References {
    /// Count, and 16 bytes for each name.
    pub(super) fn encode(&self) -> Vec<u8> {
        let names = self.names.iter().flat_map(DeliveryName::as_bytes).copied();
        self.left.to_be_bytes().into_iter().chain(names).collect()
    }

    /// None: malformed.
    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let (left, names) = value.split_first_chunk()?;
        let names =
            names.chunks_exact(16).filter_map(|name| Some(DeliveryName::from_bytes(name.try_into().ok()?)));
        Some(Self { left: u32::from_be_bytes(*left), names: names.collect() })
    }
}

/// The value under a [`DedupKey`]: the first event's uid and when it was accepted.
pub(super) fn encode_seen(uid: EventUid, at: UnixMillis) -> [u8; 24] {
    let mut value = [0; 24];
    value[..16].copy_from_slice(uid.as_bytes());
    value[16..].copy_from_slice(&at.as_millis().to_be_bytes());
    value
}

/// Decodes the value under a [`DedupKey`].
pub(super) fn decode_seen(key: DedupKey, value: &[u8]) -> Result<(EventUid, UnixMillis)> {
    let parts = value.split_first_chunk::<16>().and_then(|(uid, at)| Some((uid, at.try_into().ok()?)));
    let (uid, at) = parts.ok_or_else(|| corrupt(&format!("dedup key {:x?}", key.0), Malformed::Short))?;
    Ok((EventUid::from_bytes(*uid), UnixMillis::from_millis(i64::from_be_bytes(at))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_event(data: &'static [u8]) -> NewEvent {
        NewEvent {
            uid: EventUid::from_bytes([3; 16]),
            namespace: "team-a".into(),
            attributes: Arc::new(Attributes {
                id: "1".into(),
                source: "/shop".into(),
                event_type: "order.created".into(),
                data_content_type: Some("application/json".into()),
                data_schema: None,
                subject: None,
                time: None,
                extensions: vec![("tenant".into(), "a".into())],
            }),
            data: Bytes::from_static(data),
            accepted_at: UnixMillis::from_millis(1_700_000_000_000),
            dedup: None,
            deliveries: vec![],
        }
    }

    #[test]
    fn an_event_comes_back_as_it_was_and_shares_its_data_with_the_value() {
        for data in [b"".as_slice(), b"{}", &[0xff; 3000]] {
            let (value, event) = encode_event(new_event(data)).unwrap();
            assert_eq!(event.data, data);
            let range = value.as_ptr_range();
            assert!(range.contains(&event.data.as_ptr()) || data.is_empty());
            assert_eq!(decode_event(event.uid, &value).unwrap(), event);
        }
    }

    #[test]
    fn a_value_that_is_cut_or_of_an_unknown_encoding_is_an_error_that_names_it() {
        let (value, event) = encode_event(new_event(b"abc")).unwrap();
        for cut in [0, 1, 4, 5, 20] {
            let error = decode_event(event.uid, &Slice::from(&value[..cut])).unwrap_err();
            assert!(error.to_string().contains(&event.uid.to_string()), "{error}");
        }
        let mut other = value.to_vec();
        other[0] = 9;
        let error = decode_event(event.uid, &other.into()).unwrap_err();
        assert!(matches!(error, Error::Corrupt { source, .. } if source.to_string().contains('9')));
    }

    #[test]
    fn what_was_seen_comes_back() {
        let (uid, at) = (EventUid::from_bytes([5; 16]), UnixMillis::from_millis(-7));
        assert_eq!(decode_seen(DedupKey([0; 16]), &encode_seen(uid, at)).unwrap(), (uid, at));
        assert!(decode_seen(DedupKey([0; 16]), &[0; 23]).is_err());
    }
}
