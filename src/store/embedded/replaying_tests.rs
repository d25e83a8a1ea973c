//! Replays on disk.

use hookwright_harness::scratch::scratch;

use super::keys::meta;
use super::tests::{NOW, event, options, outcome};
use super::{Embedded, replaying};
use crate::model::ids::{DeliveryName, Minter, ReplayId, WebhookRef};
use crate::store::behaviour::webhook;
use crate::store::records::{EndReason, Next, State};
use crate::store::{NewReplay, Replays as _, Selection, Store as _};

const ID: ReplayId = ReplayId::from_bytes([7; 16]);

/// So many deliveries that were given up, and a replay of them that has begun.
async fn begun(store: &Embedded, hook: &WebhookRef, count: usize) -> Vec<DeliveryName> {
    let minter = Minter::default();
    let events: Vec<_> = (0..count).map(|_| event(&minter, &[hook])).collect();
    let names: Vec<_> = events.iter().map(|event| event.deliveries[0].name).collect();
    let failed = |name: &DeliveryName| outcome(hook, *name, Next::Failed(EndReason::RetriesExhausted));
    store.append(events).await.unwrap();
    store.record(names.iter().map(failed).collect()).await.unwrap();
    let selection = Selection {
        namespace: "team-a".into(),
        states: vec![State::Failed],
        from: NOW,
        to: NOW + std::time::Duration::from_secs(1),
        event_types: vec![],
        as_of: NOW,
    };
    let (name, webhooks) = ("night".into(), vec![hook.uid]);
    store.begin_replay(NewReplay { id: ID, name, digest: vec![], selection, webhooks }).await.unwrap();
    names
}

fn keys(store: &Embedded, prefixes: &[&[u8]]) -> usize {
    let disk = store.shared.disk().unwrap();
    prefixes.iter().map(|prefix| disk.meta.prefix(prefix).count()).sum()
}

#[tokio::test]
async fn a_finished_replay_keeps_its_numbers_and_a_cancelled_one_nothing() {
    for cancels in [false, true] {
        let (dir, hook) = (scratch(), webhook("team-a", 1));
        let store = Embedded::open(options(&dir)).unwrap();
        let names = begun(&store, &hook, 3).await;
        assert_eq!(store.advance_replay(ID, hook.uid, vec![NOW; 9]).await.unwrap(), 3);
        assert_eq!(keys(&store, &[meta::REPLAYS, meta::REPLAY_PARTS, meta::REPLAYED]), 5);
        if cancels {
            store.cancel_replay(ID, NOW).await.unwrap();
        } else {
            let arrived = names.iter().map(|name| outcome(&hook, *name, Next::Success)).collect();
            store.record(arrived).await.unwrap();
            store.finish_replay(ID, NOW).await.unwrap();
        }
        assert_eq!(keys(&store, &[meta::REPLAYS]), usize::from(!cancels));
        assert_eq!(keys(&store, &[meta::REPLAY_PARTS, meta::REPLAYED]), 0);
    }
}

#[tokio::test]
async fn a_step_that_another_was_faster_with_does_nothing() {
    let (dir, hook) = (scratch(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    begun(&store, &hook, 3).await;
    let (disk, replay) = (store.shared.disk().unwrap(), store.replay(ID).unwrap());
    let steps =
        [1, 2].map(|count| replaying::find(&disk, &replay, hook.uid, vec![NOW; count]).unwrap().unwrap());
    drop(disk);
    let mut put = Vec::new();
    for step in steps {
        put.push(store.ask(|reply| super::writer::Command::Replay(step, reply)).await.unwrap());
    }
    assert_eq!(put, [1, 0]);
    assert_eq!(store.replay(ID).unwrap().counts().put, 1);
}

#[tokio::test]
async fn a_replay_does_not_wait_for_a_line_that_cannot_be_read() {
    let (dir, hook) = (scratch(), webhook("team-a", 1));
    let store = Embedded::open(options(&dir)).unwrap();
    let names = begun(&store, &hook, 3).await;
    store.advance_replay(ID, hook.uid, vec![NOW; 9]).await.unwrap();
    store.record(vec![outcome(&hook, names[0], Next::Success)]).await.unwrap();
    store.shared.disk().unwrap().log.insert(names[1].as_bytes(), b"\x01nonsense").unwrap();
    store.close().await.unwrap();

    let store = Embedded::open(options(&dir)).unwrap();
    let counts = store.replay(ID).unwrap().counts();
    assert_eq!((counts.waiting(), counts.put), (1, 2));
    assert_eq!(store.advance_replay(ID, hook.uid, vec![NOW; 9]).await.unwrap(), 0);
    store.record(vec![outcome(&hook, names[2], Next::Success)]).await.unwrap();
    let replay = store.replay(ID).unwrap();
    assert!(replay.is_over());
    assert_eq!((replay.counts().succeeded, replay.skipped()), (2, 1));
}
