use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::*;
use crate::clock::Hand;
use crate::model::time::UnixMillis;
use crate::server::testing::{FakeApi, START};

const SECRET: &str = "/api/v1/namespaces/hook/secrets/hookwright-ca";
const MAP: &str = "/api/v1/namespaces/hook/configmaps/hookwright-ca";
const DAY: Duration = Duration::from_hours(24);

fn service() -> ServiceName {
    ServiceName { namespace: "hook".to_owned(), name: "door".to_owned() }
}

fn certificates(api: &Arc<FakeApi>) -> (Certificates, Hand) {
    let (clock, hand) = Clock::manual(START);
    (Certificates::new(api.client(), &service(), clock), hand)
}

fn object(api: &FakeApi, path: &str) -> Value {
    api.objects.lock().unwrap()[path].clone()
}

fn expiry(certificates: &Certificates) -> UnixMillis {
    certificates.lock().leaf.as_ref().unwrap().validity.to
}

#[tokio::test]
async fn the_first_start_makes_a_ca_and_publishes_it() {
    let api = Arc::new(FakeApi::default());
    let (certificates, _) = certificates(&api);
    assert_eq!(certificates.check(), Err("the serving certificate is not made yet".to_owned()));
    certificates.refresh().await.unwrap();
    assert_eq!(certificates.check(), Ok(()));

    let secret = object(&api, SECRET);
    assert_eq!(secret["type"], "kubernetes.io/tls");
    let mut keys: Vec<_> = secret["data"].as_object().unwrap().keys().cloned().collect();
    keys.sort();
    assert_eq!(keys, ["ca.crt", "tls.crt", "tls.key"]);
    let map = object(&api, MAP);
    assert_eq!(map["data"], json!({"ca.crt": certificates.bundle().unwrap()}));
    assert_eq!(map["metadata"]["labels"]["app.kubernetes.io/managed-by"], "hookwright");
    assert!(!map.to_string().contains("PRIVATE KEY"));
}

#[tokio::test]
async fn a_refresh_without_change_writes_nothing() {
    let api = Arc::new(FakeApi::default());
    let (certificates, _) = certificates(&api);
    certificates.refresh().await.unwrap();
    let before = (object(&api, SECRET), object(&api, MAP), expiry(&certificates));
    api.calls.lock().unwrap().clear();
    certificates.refresh().await.unwrap();
    assert_eq!((object(&api, SECRET), object(&api, MAP), expiry(&certificates)), before);
    assert_eq!(*api.calls.lock().unwrap(), [format!("GET {SECRET}"), format!("GET {MAP}")]);
}

#[tokio::test]
async fn a_bundle_that_somebody_changed_or_deleted_is_written_again() {
    let api = Arc::new(FakeApi::default());
    let (certificates, _) = certificates(&api);
    certificates.refresh().await.unwrap();
    for spoilt in
        [Some(json!({"metadata": {}, "data": {"ca.crt": "x"}})), Some(json!({"metadata": {}})), None]
    {
        match spoilt {
            Some(value) => api.objects.lock().unwrap().insert(MAP.to_owned(), value),
            None => api.objects.lock().unwrap().remove(MAP),
        };
        certificates.refresh().await.unwrap();
        assert_eq!(object(&api, MAP)["data"]["ca.crt"], certificates.bundle().unwrap());
    }
}

#[tokio::test]
async fn several_replicas_agree_on_one_ca() {
    let api = Arc::new(FakeApi::default());
    let replicas = [certificates(&api), certificates(&api), certificates(&api)];
    let refreshed = futures::future::join_all(replicas.iter().map(|(replica, _)| replica.refresh())).await;
    refreshed.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    let bundles: Vec<_> = replicas.iter().map(|(replica, _)| replica.bundle().unwrap()).collect();
    assert!(bundles.iter().all(|bundle| *bundle == bundles[0]));
    assert!(api.count("POST") > 1, "they really were at it at the same time");

    // When it is time for a successor, they agree on that one as well, and everybody's bundle has both.
    for (_, hand) in &replicas {
        hand.advance(DAY * 250);
    }
    let refreshed = futures::future::join_all(replicas.iter().map(|(replica, _)| replica.refresh())).await;
    refreshed.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    for (replica, _) in &replicas {
        replica.refresh().await.unwrap();
        assert_eq!(replica.bundle().unwrap(), object(&api, MAP)["data"]["ca.crt"]);
        assert_eq!(replica.bundle().unwrap().matches("BEGIN").count(), 2);
    }
}

#[tokio::test]
async fn the_whole_life_of_a_ca_survives_the_secret() {
    let api = Arc::new(FakeApi::default());
    let mut bundles = Vec::new();
    for day in [0, 244, 246, 280, 366, 530] {
        // A new process each time: all that is known is in the Secret.
        let (certificates, hand) = certificates(&api);
        hand.advance(DAY * day);
        certificates.refresh().await.unwrap();
        assert_eq!(expiry(&certificates), START + DAY * (day + 7));
        bundles.push(certificates.bundle().unwrap().matches("BEGIN").count());
    }
    assert_eq!(bundles, [1, 1, 2, 2, 1, 2]);
}

#[tokio::test]
async fn a_leaf_is_renewed_after_two_thirds_of_its_life_also_when_kubernetes_is_away() {
    let api = Arc::new(FakeApi::default());
    let (certificates, hand) = certificates(&api);
    certificates.refresh().await.unwrap();
    let first = expiry(&certificates);
    hand.advance(DAY * 4);
    certificates.refresh().await.unwrap();
    assert_eq!(expiry(&certificates), first, "not yet");

    api.broken.store(true, Ordering::SeqCst);
    hand.advance(DAY);
    let error = certificates.refresh().await.unwrap_err();
    assert_eq!(error.to_string(), "cannot get Secret hook/hookwright-ca");
    assert_eq!(expiry(&certificates), first + DAY * 5);
    assert_eq!(certificates.check(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_kubernetes_that_does_not_answer_is_waited_for_5_seconds() {
    let api = Arc::new(FakeApi::default());
    api.hangs.store(true, Ordering::SeqCst);
    let (certificates, _) = certificates(&api);
    let started = tokio::time::Instant::now();
    let error = certificates.refresh().await.unwrap_err();
    assert_eq!(error.to_string(), "cannot get Secret hook/hookwright-ca: the Kubernetes API does not answer");
    assert_eq!(started.elapsed(), CALL);
}

#[tokio::test]
async fn a_secret_without_a_usable_ca_is_told_and_left_alone_and_a_deleted_one_is_made_anew() {
    let api = Arc::new(FakeApi::default());
    let (certificates, _) = certificates(&api);
    certificates.refresh().await.unwrap();
    let first = certificates.bundle().unwrap();
    let spoilt = json!({"metadata": {"resourceVersion": "1"}, "data": {"tls.crt": "eA=="}});
    api.objects.lock().unwrap().insert(SECRET.to_owned(), spoilt.clone());
    let error = certificates.refresh().await.unwrap_err();
    assert_eq!(
        chain(&error),
        "Secret hook/hookwright-ca holds no usable CA: delete it, and a new one is made: \
         there is no certificate or key in the PEM text"
    );
    assert_eq!(object(&api, SECRET), spoilt);
    assert_eq!(certificates.check(), Ok(()), "the certificate in memory is still good");

    api.objects.lock().unwrap().remove(SECRET);
    certificates.refresh().await.unwrap();
    assert_ne!(certificates.bundle().unwrap(), first);
    assert_eq!(object(&api, MAP)["data"]["ca.crt"], certificates.bundle().unwrap());
}

#[test]
fn the_names_are_those_by_which_clients_in_the_cluster_call_a_service() {
    assert_eq!(
        names(&service()),
        ["door.hook.svc", "door.hook.svc.cluster.local", "door.hook", "door", "localhost"]
    );
}

#[tokio::test(start_paused = true)]
async fn it_runs_every_quarter_of_a_minute_and_after_a_failure_sooner() {
    let api = Arc::new(FakeApi::default());
    let (certificates, _) = certificates(&api);
    let (certificates, shutdown) = (Arc::new(certificates), CancellationToken::new());
    let (task, stop) = (Arc::clone(&certificates), shutdown.clone());
    let running = tokio_util::task::TaskTracker::new().spawn(async move { task.run(stop).await });
    let ticks = async |seconds| {
        let before = api.count(&format!("GET {SECRET}"));
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        api.count(&format!("GET {SECRET}")) - before
    };
    assert_eq!(ticks(1).await, 1);
    assert_eq!(ticks(15).await, 1);
    api.broken.store(true, Ordering::SeqCst);
    assert_eq!(ticks(15).await, 1);
    assert_eq!(ticks(50).await, 10);
    shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_front_has_a_client_certificate_too_and_renews_both() {
    let api = Arc::new(FakeApi::default());
    let (plain, hand) = certificates(&api);
    plain.refresh().await.unwrap();
    assert!(plain.client_config().is_err(), "who has the store asks nobody");
    assert_eq!(plain.check_client(), Err("the client certificate is not made yet".to_owned()));
    let front = Certificates::new(api.client(), &service(), plain.clock.clone()).of_front();
    assert!(front.client_config().is_ok());
    assert!(front.check_client().is_err());
    front.refresh().await.unwrap();
    assert_eq!((front.check(), front.check_client()), (Ok(()), Ok(())));
    let shown = || front.mutual.as_ref().unwrap().shown.shown().unwrap();
    let (first, serving) = (shown(), front.shown().unwrap());
    front.refresh().await.unwrap();
    assert_eq!(shown(), first);
    hand.advance(DAY * 5);
    front.refresh().await.unwrap();
    assert!(shown() != first && front.shown().unwrap() != serving);
    hand.advance(DAY * 8);
    assert_eq!(front.check_client(), Err("the client certificate has expired".to_owned()));
}

#[tokio::test]
async fn who_trusts_the_bundle_hears_of_each_change_and_of_nothing_else() {
    let api = Arc::new(FakeApi::default());
    let (certificates, hand) = certificates(&api);
    let mut bundles = certificates.bundles();
    assert_eq!(*bundles.borrow_and_update(), None);
    for (days, has_changed) in [(0, true), (1, false), (250, true), (1, false)] {
        hand.advance(DAY * days);
        certificates.refresh().await.unwrap();
        assert_eq!(bundles.has_changed().unwrap(), has_changed, "{days} days later");
        assert_eq!(*bundles.borrow_and_update(), certificates.bundle());
    }
}

/// What certificates of the CA are in a bundle, by the CA's own names.
fn count(bundle: &str) -> usize {
    bundle.matches("BEGIN CERTIFICATE").count()
}

#[tokio::test]
async fn what_a_clock_that_was_ahead_has_made_is_made_anew_once_it_is_right() {
    // By how much, and whether the process is another when it is set right.
    for (ahead, restarts) in [(DAY * 2, false), (DAY * 2, true), (DAY / 24, true), (DAY * 4000, false)] {
        let api = Arc::new(FakeApi::default());
        let (before, hand) = certificates(&api);
        let before = before.of_front();
        hand.advance(ahead);
        before.refresh().await.unwrap();
        let (first, shown) = (before.bundle().unwrap(), before.shown().unwrap());
        hand.set(START);
        let not_yet = |told: Result<(), String>| {
            let told = told.unwrap_err();
            assert!(told.contains("is not valid before 20") && told.contains("clock"), "{told}");
        };
        not_yet(before.check());
        not_yet(before.check_client());

        let after = if restarts { certificates(&api).0.of_front() } else { before };
        after.refresh().await.unwrap();
        assert_eq!(
            (after.check(), after.check_client()),
            (Ok(()), Ok(())),
            "{ahead:?}, restarts: {restarts}"
        );
        let bundle = after.bundle().unwrap();
        assert!(
            bundle.contains(first.trim()) && count(&bundle) == 2,
            "who has shown the old one is still trusted"
        );
        assert_ne!(after.shown().unwrap(), shown);
        let client = after.mutual.as_ref().unwrap().shown.shown().unwrap();
        for leaf in [after.shown().unwrap(), client] {
            let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
            assert!(leaf.validity().not_before.timestamp() <= START.as_secs());
        }
        assert_eq!(object(&api, MAP)["data"]["ca.crt"], bundle);
        let secret = object(&api, SECRET);
        after.refresh().await.unwrap();
        assert_eq!(object(&api, SECRET), secret, "once");
    }
}

#[tokio::test]
async fn readiness_says_that_the_ca_is_not_valid_yet_while_kubernetes_is_away() {
    let api = Arc::new(FakeApi::default());
    let (certificates, hand) = certificates(&api);
    hand.advance(DAY * 2);
    certificates.refresh().await.unwrap();
    hand.set(START);
    api.broken.store(true, Ordering::SeqCst);
    certificates.refresh().await.unwrap_err();
    let told = certificates.check().unwrap_err();
    assert!(told.starts_with("the CA in Secret hook/hookwright-ca is not valid before 2027-01-17"), "{told}");
    api.broken.store(false, Ordering::SeqCst);
    certificates.refresh().await.unwrap();
    assert_eq!(certificates.check(), Ok(()));
}

#[tokio::test]
async fn what_a_clock_that_was_behind_has_made_is_made_anew_once_it_is_right() {
    for behind in [DAY * 30, DAY * 400] {
        let api = Arc::new(FakeApi::default());
        let (certificates, hand) = certificates(&api);
        hand.set(START - behind);
        certificates.refresh().await.unwrap();
        hand.set(START);
        assert_eq!(certificates.check(), Err("the serving certificate has expired".to_owned()));
        certificates.refresh().await.unwrap();
        assert_eq!(certificates.check(), Ok(()), "{behind:?}");
    }
}
