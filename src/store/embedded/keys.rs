//! The binary keys. Integers are big-endian, so that keys sort as what they stand for.
//!
//! | keyspace | key | value |
//! | --- | --- | --- |
//! | `meta` | tag, and an id | see [`meta`] |
//! | `events` | event uid | header and body |
//! | `log` | delivery name | the delivery |
//! | `index` | Webhook uid, [`Tag`], delivery name | empty; [`TEST`] for a test |
//! | `retries` | Webhook uid, due, delivery name | empty |
//! | `terms` | hash of namespace and [`Term`], delivery name | empty |
//! | `dedup-0`, `dedup-1` | dedup key | event uid, time of acceptance |
//!
//! The part of `index` with state Pending is also the queue of first attempts: a delivery that was never
//! attempted is due since its acceptance, and its name sorts by that. A redelivery is Pending too, but has a tag
//! of its own and waits in `retries`.

use xxhash_rust::xxh3::Xxh3;

use super::usage::Owner;
use crate::model::ids::{DeliveryName, EventUid, Namespace, NamespaceUid, ReplayId, WebhookUid};
use crate::model::time::UnixMillis;
use crate::store::records::{Delivery, State};

/// Value in `index` that marks a test, which is never claimed.
pub(super) const TEST: &[u8] = &[1];

/// A key that means nothing, in any keyspace.
pub(super) const TOUCH: &[u8] = b"touch";

/// Keys of `meta`.
pub(super) mod meta {
    use super::{DeliveryName, EventUid, Namespace, NamespaceUid, Owner, ReplayId, WebhookUid};

    /// Version of the format of all the rest.
    pub(in super::super) const FORMAT: &[u8] = b"format";
    /// In each commit: the sequence number of the commit before.
    pub(in super::super) const BEFORE: &[u8] = b"before";
    /// There when something was erased that may still stand in files.
    pub(in super::super) const DEBT: &[u8] = b"debt";
    /// Fingerprint of the key that deliveries are signed with.
    pub(in super::super) const SIGNING: &[u8] = b"signing";
    /// UID of the cluster that the store belongs to.
    pub(in super::super) const CLUSTER: &[u8] = b"cluster";
    /// Which generation of dedup keys is current, and since when.
    pub(in super::super) const DEDUP: &[u8] = b"dedup";
    /// The newest time that was written.
    pub(in super::super) const NEWEST: &[u8] = b"newest";
    /// Prefix of summaries.
    pub(in super::super) const SUMMARIES: &[u8] = b"s:";
    /// Prefix of what namespaces use.
    pub(in super::super) const USAGES: &[u8] = b"u:";
    /// Prefix of to whom belongs what was stored before namespaces were told apart.
    pub(in super::super) const HEIRS: &[u8] = b"h:";
    /// Prefix of tests under way.
    pub(in super::super) const TESTS: &[u8] = b"t:";

    /// Prefix of replays.
    pub(in super::super) const REPLAYS: &[u8] = b"p:";
    /// Prefix of where replays stand at Webhooks.
    pub(in super::super) const REPLAY_PARTS: &[u8] = b"q:";
    /// Prefix of what replays have put among those that wait.
    pub(in super::super) const REPLAYED: &[u8] = b"w:";

    /// A replay, without its parts.
    pub(in super::super) fn replay(id: ReplayId) -> Vec<u8> {
        [REPLAYS, id.as_bytes()].concat()
    }

    /// Where a replay stands at a Webhook.
    pub(in super::super) fn replay_part(id: ReplayId, webhook: WebhookUid) -> Vec<u8> {
        [REPLAY_PARTS, id.as_bytes(), webhook.as_bytes()].concat()
    }

    /// All that a replay has put among those that wait.
    pub(in super::super) fn replayed_by(id: ReplayId) -> Vec<u8> {
        [REPLAYED, id.as_bytes()].concat()
    }

    /// A delivery that a replay has put among those that wait; the value is empty.
    pub(in super::super) fn replayed(id: ReplayId, name: DeliveryName) -> Vec<u8> {
        [REPLAYED, id.as_bytes(), name.as_bytes()].concat()
    }

    /// The summary of a Webhook.
    pub(in super::super) fn summary(webhook: WebhookUid) -> Vec<u8> {
        [SUMMARIES, webhook.as_bytes()].concat()
    }

    /// Under what a Webhook is kept, given the key of its summary.
    pub(in super::super) fn summary_of(key: &[u8]) -> Option<WebhookUid> {
        let uid = key.strip_prefix(SUMMARIES)?.try_into().ok()?;
        Some(WebhookUid::from_bytes(uid))
    }

    /// A test whose attempt is under way; the value is the Webhook's uid.
    pub(in super::super) fn test(name: DeliveryName) -> Vec<u8> {
        [TESTS, name.as_bytes()].concat()
    }

    /// What a namespace uses.
    pub(in super::super) fn usage(Owner { namespace, uid }: &Owner) -> Vec<u8> {
        let mut key = [USAGES, namespace.as_bytes()].concat();
        if let Some(uid) = uid {
            key.push(0);
            key.extend_from_slice(uid.as_bytes());
        }
        key
    }

    /// Whose a key is, given what follows its prefix: a name, and unless it is of format 3 or of the heir, a zero and
    /// a uid.
    pub(in super::super) fn owner(key: &[u8]) -> Owner {
        let end = key.iter().position(|byte| *byte == 0).unwrap_or(key.len());
        let (name, uid) = key.split_at(end);
        let uid = uid.get(1..).and_then(|uid| uid.try_into().ok()).map(NamespaceUid::from_bytes);
        Owner { namespace: Namespace::from(String::from_utf8_lossy(name)), uid }
    }

    /// To whom belongs what was stored under a namespace's name before namespaces were told apart.
    pub(in super::super) fn heir(namespace: &str) -> Vec<u8> {
        [HEIRS, namespace.as_bytes()].concat()
    }

    /// Which deliveries need an event, when more than one; see `References`.
    pub(in super::super) fn references(event: EventUid) -> Vec<u8> {
        [b"r:".as_slice(), event.as_bytes()].concat()
    }
}

/// A place in one Webhook's queue: what is due longer comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot {
    /// When it is due.
    pub due: UnixMillis,
    /// Which delivery.
    pub name: DeliveryName,
}

impl Slot {
    /// Before every other.
    pub(super) const FIRST: Self =
        Self { due: UnixMillis::from_millis(i64::MIN), name: DeliveryName::from_bytes([0; 16]) };

    /// A delivery that was never attempted, by when it is due.
    pub(super) fn since(self, due: Option<UnixMillis>) -> Self {
        Self { due: due.map_or(self.due, |due| due.min(self.due)), ..self }
    }

    /// The place of a delivery that was never attempted.
    pub(super) fn fresh(name: DeliveryName) -> Self {
        Self { due: name.accepted_at(), name }
    }
}

/// A part of `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u8);

impl Tag {
    /// Deliveries in state Pending that wait for an attempt that somebody asked for.
    pub(super) const REDELIVERY: Self = Self(4);

    /// Where a delivery is.
    pub(super) fn of(delivery: &Delivery) -> Self {
        if delivery.redelivery.is_some() { Self::REDELIVERY } else { delivery.state.into() }
    }
}

impl From<State> for Tag {
    fn from(state: State) -> Self {
        Self(state as u8)
    }
}

/// All of a Webhook in `index`.
pub(super) fn index_of(webhook: WebhookUid) -> [u8; 16] {
    *webhook.as_bytes()
}

/// All of a Webhook in one part.
pub(super) fn index_in(webhook: WebhookUid, tag: impl Into<Tag>) -> [u8; 17] {
    let mut key = [0; 17];
    key[..16].copy_from_slice(webhook.as_bytes());
    let Tag(tag) = tag.into();
    key[16] = tag;
    key
}

/// One delivery in `index`.
pub(super) fn index(webhook: WebhookUid, tag: impl Into<Tag>, name: DeliveryName) -> [u8; 33] {
    let mut key = [0; 33];
    key[..17].copy_from_slice(&index_in(webhook, tag));
    key[17..].copy_from_slice(name.as_bytes());
    key
}

/// The delivery of a key of `index`.
pub(super) fn name_in_index(key: &[u8]) -> Option<DeliveryName> {
    key.get(17..).and_then(|name| name.try_into().ok()).map(DeliveryName::from_bytes)
}

/// One retry.
pub(super) fn retry(webhook: WebhookUid, slot: Slot) -> [u8; 40] {
    let mut key = [0; 40];
    key[..16].copy_from_slice(webhook.as_bytes());
    key[16..24].copy_from_slice(&sortable(slot.due).to_be_bytes());
    key[24..].copy_from_slice(slot.name.as_bytes());
    key
}

/// The place of a key of `retries`.
pub(super) fn slot_of_retry(key: &[u8]) -> Option<Slot> {
    let due = key.get(16..24)?.try_into().ok()?;
    let name = key.get(24..)?.try_into().ok()?;
    Some(Slot { due: from_sortable(u64::from_be_bytes(due)), name: DeliveryName::from_bytes(name) })
}

/// What deliveries are found by, beside Webhook and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Term<'a> {
    /// The `CloudEvents` id.
    EventId(&'a str),
    /// The `CloudEvents` type.
    EventType(&'a str),
    /// It is a test.
    Test,
}

impl<'a> Term<'a> {
    /// Those of a delivery, which never change.
    pub(super) fn of(delivery: &'a Delivery) -> impl Iterator<Item = Self> {
        let always = [Self::EventId(&delivery.event_id), Self::EventType(&delivery.event_type)];
        always.into_iter().chain(delivery.test.then_some(Self::Test))
    }
}

/// All deliveries in `terms` that a namespace has for one, and perhaps others: the lines must be looked at. The
/// namespace is in it so that no other's deliveries stand between.
pub(super) fn terms_of(namespace: &str, term: Term<'_>) -> [u8; 8] {
    let (tag, text) = match term {
        Term::EventId(id) => (0xff, id),
        Term::EventType(event_type) => (0xfe, event_type),
        Term::Test => (0xfd, ""),
    };
    let mut hash = Xxh3::new();
    hash.update(namespace.as_bytes());
    hash.update(&[tag]);
    hash.update(text.as_bytes());
    hash.digest().to_be_bytes()
}

/// One delivery in `terms`.
pub(super) fn term(namespace: &str, term: Term<'_>, name: DeliveryName) -> [u8; 24] {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&terms_of(namespace, term));
    key[8..].copy_from_slice(name.as_bytes());
    key
}

/// The keys of a delivery in `terms`.
pub(super) fn terms(delivery: &Delivery) -> impl Iterator<Item = [u8; 24]> {
    Term::of(delivery).map(|of| term(&delivery.webhook.namespace, of, delivery.name))
}

/// The delivery of a key of `terms`.
pub(super) fn name_in_terms(key: &[u8]) -> Option<DeliveryName> {
    key.get(8..).and_then(|name| name.try_into().ok()).map(DeliveryName::from_bytes)
}

/// The name of a key of `log`; none for a key that means nothing.
pub(super) fn name_in_log(key: &[u8]) -> Option<DeliveryName> {
    key.try_into().ok().map(DeliveryName::from_bytes)
}

const SIGN: u64 = 1 << 63;

fn sortable(at: UnixMillis) -> u64 {
    at.as_millis().cast_unsigned() ^ SIGN
}

fn from_sortable(bits: u64) -> UnixMillis {
    UnixMillis::from_millis((bits ^ SIGN).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_sort_by_due_time_then_by_name() {
        let webhook = WebhookUid::from_bytes([7; 16]);
        let slots: Vec<_> = [(i64::MIN, 9), (-1, 1), (0, 0), (0, 1), (1_700_000_000_000, 0), (i64::MAX, 0)]
            .map(|(due, name)| Slot {
                due: UnixMillis::from_millis(due),
                name: DeliveryName::from_bytes([name; 16]),
            })
            .into();
        let keys: Vec<_> = slots.iter().map(|slot| retry(webhook, *slot)).collect();
        assert!(keys.is_sorted_by(|a, b| a < b));
        assert!(slots.is_sorted_by(|a, b| a < b));
        for (key, slot) in keys.iter().zip(&slots) {
            assert_eq!(slot_of_retry(key), Some(*slot));
        }
        assert!(Slot::FIRST < slots[0]);
    }

    #[test]
    fn the_index_sorts_by_webhook_then_state_then_name() {
        let (a, b) = (WebhookUid::from_bytes([1; 16]), WebhookUid::from_bytes([2; 16]));
        let (one, two) = (DeliveryName::from_bytes([1; 16]), DeliveryName::from_bytes([2; 16]));
        let keys = [
            index(a, State::Pending, one),
            index(a, State::Pending, two),
            index(a, State::Failed, one),
            index(b, State::Pending, one),
        ];
        assert!(keys.is_sorted_by(|a, b| a < b));
        assert_eq!(name_in_index(&keys[1]), Some(two));
        assert_eq!(name_in_index(b"touch"), None);
    }

    #[test]
    fn deliveries_of_one_term_are_together_and_those_of_another_or_of_another_namespace_are_not() {
        let (id, names) = (Term::EventId("order-1"), [1, 2].map(|name| DeliveryName::from_bytes([name; 16])));
        let keys = names.map(|name| term("team-a", id, name));
        assert!(keys[0] < keys[1]);
        assert!(keys.iter().all(|key| key.starts_with(&terms_of("team-a", id))));
        let others = [
            ("team-b", id),
            ("team-a", Term::EventId("order-2")),
            ("team-ao", Term::EventId("rder-1")),
            ("team-a", Term::EventType("order-1")),
            ("team-a", Term::Test),
        ];
        for (namespace, other) in others {
            assert_ne!(terms_of(namespace, other), terms_of("team-a", id), "{namespace} {other:?}");
        }
        assert_eq!(keys.map(|key| name_in_terms(&key)), names.map(Some));
        assert_eq!(name_in_terms(TOUCH), None);
        // What is on disks already: the hash must not change.
        assert_eq!(terms_of("team-a", id), 0x31bb_5aa7_302c_35a7_u64.to_be_bytes());
    }
}
