use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::*;
use crate::server::testing::{Recorder, START};

fn attributes(source: &str, id: &str) -> Attributes {
    Attributes {
        id: id.into(),
        source: source.into(),
        event_type: "order.created".into(),
        data_content_type: None,
        data_schema: None,
        subject: None,
        time: None,
        extensions: Vec::new(),
    }
}

fn decoded(id: &str) -> Decoded {
    Decoded { attributes: Arc::new(attributes("/shop", id)), data: Bytes::from_static(b"{}") }
}

fn publisher() -> (Arc<Recorder>, Arc<Table>, Publisher) {
    let (store, table) = (Arc::new(Recorder::default()), Arc::new(Table::default()));
    let (clock, _) = Clock::manual(START);
    let publisher = Publisher::new(
        Arc::clone(&store) as Arc<dyn Store>,
        Arc::clone(&table),
        Arc::new(Minter::default()),
        clock,
        Metrics::default(),
    );
    (store, table, publisher)
}

#[test]
fn two_publications_are_the_same_by_namespace_source_and_id_and_nothing_else() {
    let key = |namespace, source, id| dedup_key(namespace, &attributes(source, id));
    let same = Attributes { event_type: "other".into(), ..attributes("/s", "1") };
    assert_eq!(key("a", "/s", "1"), dedup_key("a", &same));
    for (namespace, source, id) in [("b", "/s", "1"), ("a", "/s1", ""), ("a", "/", "s1"), ("a/", "s", "1")] {
        assert_ne!(key("a", "/s", "1"), key(namespace, source, id), "{namespace} {source} {id}");
    }
    assert_eq!(
        key("team-a", "/shop", "7").0,
        [0x31, 0xe3, 0xd9, 0x5f, 0x3e, 0x81, 0x4d, 0x4d, 0x7c, 0xb4, 0x8e, 0x89, 0x73, 0x49, 0xeb, 0x6c],
        "kept by stores: must not change"
    );
}

#[tokio::test]
async fn before_the_routes_are_complete_nothing_is_taken() {
    let (store, table, publisher) = publisher();
    let namespace = Namespace::from("team-a");
    let error = publisher.publish(&namespace, vec![decoded("1")]).await.unwrap_err();
    assert!(matches!(error, Error::Unserved { .. }), "{error:?}");
    assert!(publisher.preview(&namespace, &[decoded("1")]).is_err());
    assert_eq!(store.events.lock().unwrap().len(), 0);
    table.set_synced();
    assert_eq!(publisher.publish(&namespace, vec![decoded("1")]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_store_that_takes_nothing_is_not_asked() {
    let (store, table, publisher) = publisher();
    table.set_synced();
    store.refuses.store(true, Ordering::SeqCst);
    let error = publisher.publish(&Namespace::from("team-a"), vec![decoded("1")]).await.unwrap_err();
    assert!(matches!(error, Error::Store(store::Error::Full)), "{error:?}");
    assert_eq!(error.retry_after(), Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_waited_for_30_seconds() {
    let (store, table, publisher) = publisher();
    table.set_synced();
    store.hangs.store(true, Ordering::SeqCst);
    let started = tokio::time::Instant::now();
    let error = publisher.publish(&Namespace::from("team-a"), vec![decoded("1")]).await.unwrap_err();
    assert!(matches!(error, Error::Timeout), "{error:?}");
    assert_eq!(started.elapsed(), PATIENCE);
}

#[tokio::test]
async fn a_namespace_that_publishes_too_fast_is_told_when_to_come_again_and_others_are_taken() {
    let (store, table, publisher) = publisher();
    let rate = RateLimit { requests: 2, per: Duration::from_secs(1), burst: 4 };
    let publisher = publisher.with_rate(rate);
    table.set_synced();
    let [fast, other] = ["team-a", "team-b"].map(Namespace::from);
    publisher.publish(&fast, vec![decoded("1"), decoded("2"), decoded("3")]).await.unwrap();
    let error =
        publisher.publish(&fast, (4..8).map(|id| decoded(&id.to_string())).collect()).await.unwrap_err();
    assert!(matches!(error, Error::TooFast { .. }) && error.is_quota(), "{error:?}");
    assert_eq!(error.retry_after(), Duration::from_secs(2), "three are missing, two come in a second");
    assert_eq!(store.events.lock().unwrap().len(), 3, "nothing of it was stored");
    publisher.publish(&fast, vec![decoded("4")]).await.unwrap();
    assert!(publisher.publish(&fast, vec![decoded("5")]).await.is_err());
    let many = (0..9).map(|id| decoded(&id.to_string())).collect();
    publisher.publish(&other, many).await.expect("more than a burst can be published at once");
}

#[tokio::test]
async fn of_a_namespace_one_large_body_at_a_time_is_decoded_and_nobody_else_waits_for_it() {
    use futures::FutureExt as _;
    let (_, _, publisher) = publisher();
    let turn = |namespace: &str, bytes| publisher.turn(&namespace.into(), bytes).now_or_never();
    let first = turn("team-a", 100 << 10).unwrap();
    assert!(turn("team-a", 100 << 10).is_none());
    assert!(turn("team-a", 2 << 10).is_some(), "a single event");
    assert!(turn("team-b", 100 << 10).is_some());
    drop(first);
    assert!(turn("team-a", 100 << 10).is_some());
}
