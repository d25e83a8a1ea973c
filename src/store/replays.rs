//! Replays: many finished deliveries sent once more, in order of acceptance, a few at a time.
//!
//! What a replay takes is fixed when it begins, without a list: a delivery belongs to it if it was accepted within
//! its times and had ended, in one of its states, before it began. What ends later, by the replay itself or
//! otherwise, is not what it was then, and is never taken (again). For each Webhook the store keeps where the replay
//! stands in the log, and moves it in the same commit that puts deliveries back among those that wait: a crash
//! neither loses nor repeats one. The counts are kept with every outcome, so that nobody ever scans for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::records::{Delivery, State};
use super::{Result, SLACK};
use crate::model::filter::Filter;
use crate::model::ids::{DeliveryName, Namespace, NamespaceUid, ReplayId, WebhookUid};
use crate::model::time::UnixMillis;

/// Which deliveries a replay takes. Tests never.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Of this namespace.
    #[serde(rename = "n")]
    pub namespace: Namespace,
    /// Success, Failed or both.
    #[serde(rename = "s")]
    pub states: Vec<State>,
    /// Accepted at this time or later.
    #[serde(rename = "f")]
    pub from: UnixMillis,
    /// Accepted before this time.
    #[serde(rename = "t")]
    pub to: UnixMillis,
    /// Of these event types, as in a Webhook; empty: of all.
    #[serde(rename = "e", default)]
    pub event_types: Vec<String>,
    /// When it begins: a delivery had ended by then, and has not ended anew since.
    #[serde(rename = "a")]
    pub as_of: UnixMillis,
}

impl Selection {
    /// What judges one delivery after the other.
    pub fn judge(&self) -> Judge<'_> {
        let filter = (!self.event_types.is_empty()).then(|| Filter::compile(&self.event_types));
        Judge { selection: self, filter }
    }

    /// No delivery that it takes has a name before this.
    pub fn first(&self) -> DeliveryName {
        DeliveryName::first_at(self.from)
    }

    /// Whether no delivery behind this one is taken: they go by acceptance, but for those that came at the same time.
    pub fn ends_before(&self, name: DeliveryName, line: &Delivery) -> bool {
        name >= DeliveryName::first_at(self.to) && line.accepted_at >= self.to + SLACK
    }
}

/// Says which deliveries a [`Selection`] takes.
#[derive(Debug)]
pub struct Judge<'a> {
    selection: &'a Selection,
    filter: Option<Filter>,
}

impl Judge<'_> {
    /// Whether this one is taken.
    pub fn takes(&self, line: &Delivery) -> bool {
        let Selection { namespace, states, from, to, event_types: _, as_of } = self.selection;
        !line.test
            && (*from..*to).contains(&line.accepted_at)
            && states.contains(&line.state)
            && line.webhook.namespace == *namespace
            && line.quiet_since() <= *as_of
            && self.filter.as_ref().is_none_or(|filter| filter.wants(&line.event_type))
    }
}

/// A replay to begin.
#[derive(Clone, Debug)]
pub struct NewReplay {
    /// Made by the caller.
    pub id: ReplayId,
    /// What people call it.
    pub name: Arc<str>,
    /// Of all that decides what is sent: by it and the name, a finished one is known again.
    pub digest: Vec<u8>,
    /// What it takes.
    pub selection: Selection,
    /// Of these Webhooks.
    pub webhooks: Vec<WebhookUid>,
}

/// Numbers of deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Taken when it began.
    #[serde(rename = "l", default)]
    pub selected: u64,
    /// Put among those that wait.
    #[serde(rename = "p", default)]
    pub put: u64,
    /// Of those: attempts that were recorded.
    #[serde(rename = "n", default)]
    pub sent: u64,
    /// Of those that were put: arrived.
    #[serde(rename = "s", default)]
    pub succeeded: u64,
    /// Of those that were put: failed again, or ended without an attempt.
    #[serde(rename = "f", default)]
    pub failed: u64,
}

impl Counts {
    /// Those that wait, or are under way.
    pub const fn waiting(&self) -> u64 {
        self.put.saturating_sub(self.succeeded).saturating_sub(self.failed)
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            selected: self.selected + other.selected,
            put: self.put + other.put,
            sent: self.sent + other.sent,
            succeeded: self.succeeded + other.succeeded,
            failed: self.failed + other.failed,
        }
    }
}

/// Where a replay stands at one Webhook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The last delivery that was looked at; none: it begins.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<DeliveryName>,
    /// All were looked at.
    #[serde(rename = "w", default)]
    pub walked: bool,
    /// Its numbers.
    #[serde(rename = "n", default)]
    pub counts: Counts,
}

impl Part {
    /// Whether all were looked at and nothing waits.
    pub const fn is_over(&self) -> bool {
        self.walked && self.counts.waiting() == 0
    }

    /// Those that could not be put: gone, erased, or waiting already when it was their turn.
    pub const fn skipped(&self) -> u64 {
        if self.walked { self.counts.selected.saturating_sub(self.counts.put) } else { 0 }
    }
}

/// A replay as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Which.
    #[serde(rename = "i")]
    pub id: ReplayId,
    /// What people call it.
    #[serde(rename = "n")]
    pub name: Arc<str>,
    /// See [`NewReplay::digest`].
    #[serde(rename = "d")]
    pub digest: Vec<u8>,
    /// What it takes.
    #[serde(rename = "s")]
    pub selection: Selection,
    /// In which namespace of that name, if the store has to tell them apart.
    #[serde(rename = "nu", default, skip_serializing_if = "Option::is_none")]
    pub namespace_uid: Option<NamespaceUid>,
    /// Nothing more is put.
    #[serde(rename = "x", default)]
    pub cancelled: bool,
    /// When it was finished: only its numbers are kept then.
    #[serde(rename = "z", default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<UnixMillis>,
    /// The numbers of what is not among `parts` any more.
    #[serde(rename = "c", default)]
    pub rest: Counts,
    /// Where it stands at each Webhook.
    #[serde(skip)]
    pub parts: BTreeMap<WebhookUid, Part>,
}

impl Replay {
    /// One that begins.
    pub fn new(new: NewReplay, parts: BTreeMap<WebhookUid, Part>) -> Self {
        let NewReplay { id, name, digest, selection, webhooks: _ } = new;
        Self {
            id,
            name,
            digest,
            selection,
            namespace_uid: None,
            cancelled: false,
            finished_at: None,
            rest: Counts::default(),
            parts,
        }
    }

    /// Its numbers.
    pub fn counts(&self) -> Counts {
        self.parts.values().fold(self.rest, |sum, part| sum.plus(part.counts))
    }

    /// Those that could not be put, so far.
    pub fn skipped(&self) -> u64 {
        let rest = self.rest.selected.saturating_sub(self.rest.put);
        self.parts.values().fold(rest, |sum, part| sum + part.skipped())
    }

    /// Whether all were looked at and nothing waits.
    pub fn is_over(&self) -> bool {
        self.parts.values().all(Part::is_over)
    }

    /// Whether more may be put.
    pub fn runs(&self) -> bool {
        !self.cancelled && self.finished_at.is_none()
    }

    /// Who asked, as each attempt says.
    pub fn asked_by(&self) -> String {
        format!("WebhookReplay/{}", self.name)
    }
}

/// Sends many finished deliveries once more. Part of [`super::Store`]; what changes something returns after the
/// sync, and may be called again after a crash or by another process.
pub trait Replays {
    /// How many deliveries of these Webhooks a selection takes. Reads every log line within its times.
    fn count_replay(&self, selection: Selection, webhooks: Vec<WebhookUid>) -> BoxFuture<'_, Result<u64>>;

    /// Begins a replay, with all that it takes counted; one that is known stays as it is.
    fn begin_replay(&self, new: NewReplay) -> BoxFuture<'_, Result<()>>;

    /// Goes on at one Webhook: the next that are taken wait for one attempt, each due at one of these times, and
    /// the replay stands behind them; answers how many. It may be fewer, also none when it has far to look, since
    /// one call looks at a bounded part of the log. Nothing happens when the replay does not run. One call holds the events of all
    /// it puts in memory: a hundred at most.
    fn advance_replay(
        &self,
        id: ReplayId,
        webhook: WebhookUid,
        due: Vec<UnixMillis>,
    ) -> BoxFuture<'_, Result<usize>>;

    /// Finishes a replay that is over: its numbers are remembered, up to [`REMEMBERED`] of a namespace.
    fn finish_replay(&self, id: ReplayId, at: UnixMillis) -> BoxFuture<'_, Result<()>>;

    /// Cancels a replay: nothing more is put, and what waits is what it was before, but for attempts under way.
    /// It is forgotten once nothing waits: call it again until [`Replays::replay`] does not know it any more.
    fn cancel_replay(&self, id: ReplayId, now: UnixMillis) -> BoxFuture<'_, Result<()>>;

    /// One that runs, is being cancelled, or was finished. From memory.
    fn replay(&self, id: ReplayId) -> Option<Arc<Replay>>;

    /// All of them, but for finished ones of a namespace that none of the Webhooks is in that are known and not gone:
    /// what another namespace of the same name has sent says nothing about this one. From memory.
    fn replays(&self) -> Vec<Arc<Replay>>;
}

/// So many finished replays of a namespace are remembered; the oldest go first, and all when the last Webhook of
/// the namespace is purged.
pub const REMEMBERED: usize = 1000;

/// For stores of tests that nobody asks for a replay.
#[cfg(test)]
macro_rules! without_replays {
    ($store:ty) => {
        impl $crate::store::Replays for $store {
            fn count_replay(
                &self,
                _: $crate::store::Selection,
                _: Vec<$crate::model::ids::WebhookUid>,
            ) -> futures::future::BoxFuture<'_, $crate::store::Result<u64>> {
                unreachable!("nobody replays")
            }

            fn begin_replay(
                &self,
                _: $crate::store::NewReplay,
            ) -> futures::future::BoxFuture<'_, $crate::store::Result<()>> {
                unreachable!("nobody replays")
            }

            fn advance_replay(
                &self,
                _: $crate::model::ids::ReplayId,
                _: $crate::model::ids::WebhookUid,
                _: Vec<$crate::model::time::UnixMillis>,
            ) -> futures::future::BoxFuture<'_, $crate::store::Result<usize>> {
                unreachable!("nobody replays")
            }

            fn finish_replay(
                &self,
                _: $crate::model::ids::ReplayId,
                _: $crate::model::time::UnixMillis,
            ) -> futures::future::BoxFuture<'_, $crate::store::Result<()>> {
                unreachable!("nobody replays")
            }

            fn cancel_replay(
                &self,
                _: $crate::model::ids::ReplayId,
                _: $crate::model::time::UnixMillis,
            ) -> futures::future::BoxFuture<'_, $crate::store::Result<()>> {
                unreachable!("nobody replays")
            }

            fn replay(
                &self,
                _: $crate::model::ids::ReplayId,
            ) -> Option<std::sync::Arc<$crate::store::Replay>> {
                None
            }

            fn replays(&self) -> Vec<std::sync::Arc<$crate::store::Replay>> {
                Vec::new()
            }
        }
    };
}
#[cfg(test)]
pub(crate) use without_replays;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_put_is_skipped_once_all_were_looked_at() {
        let counts = Counts { selected: 10, put: 7, sent: 5, succeeded: 4, failed: 1 };
        assert_eq!(counts.waiting(), 2);
        for (walked, skipped) in [(false, 0), (true, 3)] {
            assert_eq!(Part { cursor: None, walked, counts }.skipped(), skipped);
        }
    }
}
