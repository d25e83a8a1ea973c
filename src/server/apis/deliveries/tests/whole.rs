//! Lists without a limit.

use super::*;

/// A log of so many lines of one Webhook; every tenth failed.
fn log_of(count: usize) -> (World, Log) {
    let world = World::new();
    let orders = world.webhook("team-a", "orders", &["*"], true);
    *world.store.log.lock().unwrap() = (0..count).map(|n| line(&orders, n)).collect();
    allow(&world, &["list deliveries team-a", "list deliveries "]);
    let log = Log::new(Arc::clone(&world.store) as _, Arc::clone(&world.table), Clock::manual(START).0);
    (world, log)
}

/// The larger the number, the newer.
fn line(webhook: &crate::model::ids::WebhookRef, n: usize) -> Delivery {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(n as u64 + 1).to_be_bytes());
    let line = delivery("team-a", "orders", 1);
    let line = if n.is_multiple_of(10) { failed(line) } else { line };
    Delivery { name: DeliveryName::from_bytes(bytes), webhook: webhook.clone(), ..line }
}

async fn listed(log: &Log, query: &str, accept: &str) -> Result<Answer, Failure> {
    let request = Request::get(format!("/?{query}")).header("accept", accept).body(()).unwrap();
    log.list(Some("team-a"), &request.into_parts().0).await
}

/// The parts of a body, and whether it came to its end.
async fn parts(answer: Answer) -> (Vec<bytes::Bytes>, bool) {
    let (mut body, mut parts) = (answer.into_body(), Vec::new());
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => parts.push(frame.into_data().unwrap()),
            Err(_) => return (parts, false),
        }
    }
    (parts, true)
}

async fn json_of(answer: Answer) -> Value {
    let (parts, is_whole) = parts(answer).await;
    assert!(is_whole);
    serde_json::from_slice(&parts.concat()).unwrap()
}

#[tokio::test]
async fn without_a_limit_it_is_whole_in_each_form_and_says_the_same_as_pages() {
    let (world, _) = log_of(1234);
    let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    for (accept, items) in [("application/json", "items"), (TABLE, "rows"), (metadata, "items")] {
        for selector in ["", "&labelSelector=hookwright.dev/webhook%3Dorders"] {
            let path = format!("/namespaces/team-a/deliveries?includeObject=Object{selector}");
            let (code, whole) = get_as(&world, &path, accept).await;
            let mut paged = json!(null);
            let mut token = String::new();
            loop {
                let (_, page) = get_as(&world, &format!("{path}&limit=500&continue={token}"), accept).await;
                page["metadata"]["continue"].as_str().unwrap_or_default().clone_into(&mut token);
                if paged.is_null() {
                    paged = page;
                    paged["metadata"] = json!({"resourceVersion": paged["metadata"]["resourceVersion"]});
                } else {
                    let more = page[items].as_array().unwrap().clone();
                    paged[items].as_array_mut().unwrap().extend(more);
                }
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!((code, whole[items].as_array().unwrap().len()), (200, 1234), "{accept}");
            assert_eq!(whole, paged, "{accept} {selector}");
        }
    }
}

#[tokio::test]
async fn what_it_holds_in_memory_does_not_grow_with_it() {
    let mut largest = Vec::new();
    for count in [500, 5000] {
        let (_world, log) = log_of(count);
        let answer = listed(&log, "", "application/json").await.unwrap();
        assert!(answer.body().is_made());
        let (parts, is_whole) = parts(answer).await;
        assert!(is_whole && parts.len() == count / 100, "{}", parts.len());
        largest.push(parts.iter().map(bytes::Bytes::len).max().unwrap());
    }
    assert!(largest[1] <= largest[0] + 100, "{largest:?}");
    let (_world, log) = log_of(99);
    assert!(
        !listed(&log, "", "application/json").await.unwrap().body().is_made(),
        "what is short has a length"
    );
}

#[tokio::test]
async fn more_than_the_bound_is_refused_with_what_to_do_and_never_cut() {
    let (_world, mut log) = log_of(101);
    log.bounds.most = 100;
    for query in
        ["", "limit=0", "fieldSelector=spec.webhook%3Dorders", "labelSelector=hookwright.dev/webhook"]
    {
        let failure = listed(&log, query, TABLE).await.unwrap_err();
        assert_eq!(failure.reason, Reason::BadRequest, "{query}");
        for part in ["more than 100 lines", "use limit and continue", "--field-selector"] {
            assert!(failure.message.contains(part), "{query}: {}", failure.message);
        }
    }
    let page = json_of(listed(&log, "limit=500", "application/json").await.unwrap()).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 101, "a page may be asked for");
    for (query, count) in [
        ("fieldSelector=status.state%3DFailed", 11),
        ("fieldSelector=spec.webhook%3Dnobody", 0),
        ("labelSelector=none", 0),
    ] {
        let list = json_of(listed(&log, query, "application/json").await.unwrap()).await;
        assert_eq!(list["items"].as_array().unwrap().len(), count, "{query}");
    }
    log.bounds.most = 101;
    let all = json_of(listed(&log, "", "application/json").await.unwrap()).await;
    assert_eq!(all["items"].as_array().unwrap().len(), 101);
}

#[tokio::test]
async fn what_comes_after_it_was_counted_is_not_in_it() {
    let (world, mut log) = log_of(300);
    log.bounds.most = 299;
    let query = "fieldSelector=status.state!%3DFailed";
    let list = json_of(listed(&log, query, "application/json").await.unwrap()).await;
    let newest: DeliveryName = list["items"][0]["metadata"]["name"].as_str().unwrap().parse().unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 270);
    let queries = world.store.queries.lock().unwrap();
    let sent = queries.iter().find(|query| query.limit == 100).unwrap();
    let next = u128::from_be_bytes(*newest.as_bytes()) + 1;
    assert_eq!(sent.before, Some(DeliveryName::from_bytes(next.to_be_bytes())));
    assert_eq!(queries[0].before, None, "what is counted first");
}

#[tokio::test]
async fn what_fails_half_way_ends_without_an_end() {
    let (world, log) = log_of(1000);
    let answer = listed(&log, "", "application/json").await.unwrap();
    let mut body = answer.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    world.store.refuses.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(body.frame().await.unwrap().is_err());
    assert!(body.frame().await.is_none());
    let failure = listed(&log, "", "application/json").await.unwrap_err();
    assert_eq!(failure.reason, Reason::ServiceUnavailable, "what fails at once is told so");
}

#[tokio::test(start_paused = true)]
async fn lists_that_one_namespace_leaves_lying_keep_no_other_from_its_own() {
    let (_world, log) = log_of(1000);
    let asked = async |namespace| {
        let request = Request::get("/").header("accept", "application/json").body(()).unwrap();
        log.list(namespace, &request.into_parts().0).await
    };
    for namespace in [Some("team-a"), None] {
        let mut held = Vec::new();
        let failure = loop {
            match asked(namespace).await {
                Ok(answer) => held.push(answer),
                Err(failure) => break failure,
            }
        };
        assert_eq!((failure.reason, held.len()), (Reason::ServiceUnavailable, 2), "{namespace:?}");
        assert!(asked(Some("team-b")).await.is_ok());
        held.pop();
        assert!(asked(namespace).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_it_too_slowly_is_cut_off() {
    let (_world, log) = log_of(1000);
    let mut body = listed(&log, "", "application/json").await.unwrap().into_body();
    for _ in 0..4 {
        assert!(body.frame().await.unwrap().is_ok());
        tokio::time::advance(Duration::from_secs(70)).await;
    }
    tokio::time::advance(Duration::from_mins(1)).await;
    assert!(body.frame().await.unwrap().is_err());
}
