//! Room in the line before the writer.
//!
//! What waits to be written is in memory, so it is bounded; and it is bounded for each namespace, so that one
//! that publishes without end waits for itself, while another's single event goes into the next commit.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::ids::Namespace;
use crate::per_namespace::PerNamespace;
use crate::store::{Error, Result};

/// Bytes of all namespaces together.
const ALL: usize = 32 << 20;
/// Bytes of one namespace. More than one commit takes, so that it can fill them all when it is alone.
const EACH: usize = 1 << 20;
/// Bytes for which there is one permit.
const UNIT: usize = 1 << 10;

/// The line.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    each: PerNamespace,
}

/// A place in the line; dropping it makes room.
#[derive(Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "held until it is dropped")] [OwnedSemaphorePermit; 2]);

impl Room {
    pub(super) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(ALL / UNIT)), each: PerNamespace::new(EACH / UNIT) }
    }

    /// Waits for room for so many bytes, and in its own line until `ready`. More than fits takes all there is.
    pub(super) async fn enter(
        &self,
        namespace: &Namespace,
        bytes: usize,
        ready: impl Future<Output = Result<()>>,
    ) -> Result<Place> {
        let permits = |most: usize| u32::try_from(bytes.div_ceil(UNIT).clamp(1, most / UNIT)).unwrap_or(1);
        let own = self.each.of(namespace);
        // First one's own line: who waits there must not hold room that others need.
        let own = own.acquire_many_owned(permits(EACH)).await.map_err(|_| Error::Closed)?;
        ready.await?;
        let all = Arc::clone(&self.all).acquire_many_owned(permits(ALL)).await.map_err(|_| Error::Closed)?;
        Ok(Place([own, all]))
    }

    /// Bytes that a namespace has left.
    #[cfg(test)]
    pub(super) fn left(&self, namespace: &Namespace) -> usize {
        self.each.of(namespace).available_permits() * UNIT
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn enter(room: &Room, namespace: &str, bytes: usize) -> Option<Place> {
        room.enter(&namespace.into(), bytes, async { Ok(()) }).now_or_never().map(|place| place.unwrap())
    }

    #[test]
    fn a_namespace_that_fills_its_room_waits_and_others_do_not() {
        let room = Room::new();
        let places: Vec<_> = std::iter::from_fn(|| enter(&room, "flood", 100 << 10)).collect();
        assert_eq!(places.len(), EACH / UNIT / 100);
        assert!(enter(&room, "other", 1 << 20).is_some());
        drop(places);
        assert!(enter(&room, "flood", 1 << 20).is_some());
    }

    #[test]
    fn all_together_are_bounded_and_one_call_of_any_size_fits() {
        let room = Room::new();
        let places: Vec<_> =
            (0..100).map_while(|number| enter(&room, &format!("ns-{number}"), EACH)).collect();
        assert_eq!(places.len(), ALL / EACH);
        drop(places);
        assert!(enter(&room, "large", usize::MAX / 2).is_some());
    }
}
