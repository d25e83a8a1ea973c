//! What is read before a claim needs it.

use std::time::Duration;

use bytes::Bytes;
use hookwright_harness::scratch::scratch;

use super::Embedded;
use super::tests::{event, options};
use crate::model::ids::Minter;
use crate::model::time::UnixMillis;
use crate::store::behaviour::webhook;
use crate::store::{ClaimRequest, NewEvent, Order, Store as _};

const LATER: UnixMillis = UnixMillis::from_millis(i64::MAX / 2);

#[tokio::test]
async fn while_what_is_in_memory_is_sent_the_next_is_read_and_no_claim_waits_for_the_disk() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    let names: Vec<_> = (0..20)
        .flat_map(|_| {
            let events: Vec<_> = (0..50).map(|_| event(&minter, &[&hook])).collect();
            let names: Vec<_> = events.iter().map(|event| event.deliveries[0].name).collect();
            futures::executor::block_on(store.append(events)).unwrap();
            names
        })
        .collect();
    store.close().await.unwrap();
    drop(store);

    let store = Embedded::open(options(&dir)).unwrap();
    let known = store.shared.hooks.get(hook.uid).unwrap();
    let claim = || ClaimRequest {
        webhook: hook.uid,
        now: LATER,
        limit: 32,
        order: Order::LongestDue,
        lease: Duration::from_secs(1),
    };
    let mut claimed = Vec::new();
    for number in 0.. {
        let must_read = known.queue().needs(LATER, 32, Order::LongestDue).is_some();
        // At first nothing is in memory; at the end nothing is left.
        assert!(!must_read || number == 0, "claim {number} has to read");
        let claims = store.claim(claim()).await.unwrap();
        if claims.deliveries.is_empty() {
            break;
        }
        claimed.extend(claims.deliveries.iter().map(|claimed| claimed.delivery.name));
        // Whoever reads has this; the turn was taken before the claim was answered.
        drop(known.refilling.lock().await);
    }
    assert_eq!(claimed, names);
    store.close().await.unwrap();
}

#[tokio::test]
async fn of_large_events_fewer_are_read() {
    let dir = scratch();
    let (minter, hook) = (Minter::default(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    let body = Bytes::from(vec![b'x'; 64 << 10]);
    for _ in 0..40 {
        let large = NewEvent { data: body.clone(), ..event(&minter, &[&hook]) };
        store.append(vec![large]).await.unwrap();
    }
    store.close().await.unwrap();
    drop(store);

    let store = Embedded::open(options(&dir)).unwrap();
    let known = store.shared.hooks.get(hook.uid).unwrap();
    let disk = store.shared.disk().unwrap();
    let read = |limit| {
        let refill = known.queue().needs(LATER, limit, Order::LongestDue).unwrap();
        disk.refill(hook.uid, refill).unwrap().loaded.len()
    };
    // Half a megabyte, or what was asked for.
    assert_eq!([read(1), read(20)], [8, 20]);
    drop(disk);
    store.close().await.unwrap();
}
