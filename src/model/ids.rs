//! Names of things: Webhooks, events, deliveries.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::time::UnixMillis;

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID.
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// The 16 bytes, which sort as the text does.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// From 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_newtype! {
    /// `metadata.uid` of a Webhook: one of the same name made later has another.
    WebhookUid
}
uuid_newtype! {
    /// `metadata.uid` of a namespace: one of the same name made later has another, and nothing of what belonged to the
    /// former.
    NamespaceUid
}
uuid_newtype! {
    /// Ours, for one accepted event: a `UUIDv7`, answered to the publisher as `id`. Not the `CloudEvents` id.
    EventUid
}
uuid_newtype! {
    /// One event for one Webhook: a `UUIDv7`, its name in the log and the `webhook-id` of every attempt.
    /// Sorts by acceptance. The time in it is that of acceptance, or later (see [`Minter`]).
    DeliveryName
}

uuid_newtype! {
    /// `metadata.uid` of a WebhookReplay: one of the same name made later has another.
    ReplayId
}

/// A namespace's name. Cheap to clone.
pub type Namespace = Arc<str>;

/// Which Webhook, by identity and by the name that people use.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WebhookRef {
    /// `metadata.uid`.
    pub uid: WebhookUid,
    /// `metadata.namespace`.
    pub namespace: Namespace,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl fmt::Display for WebhookRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Makes `UUIDv7`s that grow within one process, also within a millisecond and when the clock is set back
/// (then they go on from the last time seen). So they sort by acceptance, while the time in them may be ahead: that of
/// acceptance is a field of its own.
#[derive(Debug, Default)]
pub struct Minter(Mutex<uuid::ContextV7>);

impl Minter {
    /// Goes on after this name, also when the clock is behind the time in it.
    pub fn after(newest: DeliveryName) -> Self {
        let minter = Self::default();
        // Within one millisecond each process begins somewhere.
        minter.mint(newest.accepted_at() + Duration::from_millis(1));
        minter
    }

    /// A new event's id.
    pub fn event(&self, now: UnixMillis) -> EventUid {
        EventUid(self.mint(now))
    }

    /// A new delivery's name.
    pub fn delivery(&self, now: UnixMillis) -> DeliveryName {
        DeliveryName(self.mint(now))
    }

    fn mint(&self, now: UnixMillis) -> Uuid {
        let millis = u64::try_from(now.as_millis()).unwrap_or(0);
        let nanos = u32::try_from(millis % 1000).unwrap_or(0) * 1_000_000;
        let context = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Uuid::new_v7(uuid::Timestamp::from_unix(&*context, millis / 1000, nanos))
    }
}

impl DeliveryName {
    /// No delivery that was accepted at this time or later has a name before this, and, unless the clock was set
    /// back, none that was accepted earlier has one after it.
    pub fn first_at(time: UnixMillis) -> Self {
        let mut bytes = [0; 16];
        let [_, _, millis @ ..] = time.as_millis().clamp(0, (1 << 48) - 1).to_be_bytes();
        bytes[..6].copy_from_slice(&millis);
        Self::from_bytes(bytes)
    }

    /// The time in the name: when the delivery was accepted, or later.
    pub fn accepted_at(self) -> UnixMillis {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&self.as_bytes()[..6]);
        UnixMillis::from_millis(i64::from_be_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_grow_within_a_millisecond_and_when_the_clock_is_set_back() {
        let minter = Minter::default();
        let now = UnixMillis::from_millis(1_700_000_000_123);
        let names: Vec<_> =
            [now, now, now, UnixMillis::from_millis(1_600_000_000_000)].map(|at| minter.delivery(at)).into();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        assert_eq!(names[0].accepted_at(), now);
    }

    #[test]
    fn names_go_on_after_those_of_an_earlier_process_whose_clock_was_ahead() {
        let (now, day) = (UnixMillis::from_millis(1_700_000_000_123), Duration::from_hours(24));
        for newest in [now - day, now, now + day] {
            let newest = Minter::default().delivery(newest);
            let minter = Minter::after(newest);
            let names = [0, 0, 1, 100_000].map(|millis| minter.delivery(now + Duration::from_millis(millis)));
            assert!(newest < names[0] && names.is_sorted_by(|a, b| a < b), "{newest} {names:?}");
        }
        let minter = Minter::after(Minter::default().delivery(now - day));
        assert_eq!(minter.delivery(now).accepted_at(), now, "no later than need be");
    }

    #[test]
    fn the_first_name_of_a_time_parts_before_from_after() {
        let (minter, at) = (Minter::default(), UnixMillis::from_millis(1_700_000_000_123));
        let [before, then] =
            [1, 0].map(|earlier| minter.delivery(UnixMillis::from_millis(at.as_millis() - earlier)));
        let first = DeliveryName::first_at(at);
        assert!(before < first && first < then, "{before} {first} {then}");
        assert_eq!(first.accepted_at(), at);
        assert_eq!(DeliveryName::first_at(UnixMillis::from_millis(-5)), DeliveryName::from_bytes([0; 16]));
    }
}
