use std::sync::atomic::Ordering;

use http::header::AUTHORIZATION;
use serde_json::json;
use tokio::time::advance;

use super::*;
use crate::server::testing::FakeApi;

fn gate(api: &Arc<FakeApi>) -> Gate {
    Gate::new(&api.client(), Arc::new(FrontProxy::new(crate::clock::Clock::system())))
}

fn peer() -> Peer {
    Peer { address: ([127, 0, 0, 1], 1).into(), certificates: Arc::new([]) }
}

fn bearer(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, format!("Bearer {token}").parse().unwrap())])
}

fn publish(namespace: &str) -> Action {
    Action {
        verb: "create",
        resource: "cloudevents",
        subresource: None,
        namespace: Some(namespace.to_owned()),
        name: None,
    }
}

async fn identify(gate: &Gate, token: &str) -> Result<Arc<User>, Failure> {
    gate.identify(&peer(), &bearer(token)).await
}

#[tokio::test]
async fn a_token_for_our_audience_is_a_user_with_all_that_is_said_of_him() {
    let api = FakeApi::with_shop();
    let gate = gate(&api);
    let user = identify(&gate, "good").await.unwrap();
    assert_eq!(user.username, "system:serviceaccount:team-a:shop");
    assert_eq!(
        (user.uid.as_deref(), &*user.groups),
        (Some("u-1"), &["system:serviceaccounts".to_owned()][..])
    );
    assert_eq!(*api.reviewed.lock().unwrap(), json!({"token": "good", "audiences": ["hookwright"]}));

    gate.authorize(&user, &publish("team-a")).await.unwrap();
    let reviewed = api.reviewed.lock().unwrap().clone();
    assert_eq!(
        reviewed,
        json!({
            "user": "system:serviceaccount:team-a:shop",
            "uid": "u-1",
            "groups": ["system:serviceaccounts"],
            "extra": {"pod": ["p-1"]},
            "resourceAttributes": {
                "verb": "create",
                "group": "delivery.hookwright.dev",
                "version": "v1alpha1",
                "resource": "cloudevents",
                "namespace": "team-a",
            },
        })
    );
}

#[tokio::test]
async fn without_a_good_token_for_our_audience_nobody_is_known() {
    let api = FakeApi::with_shop();
    for (token, audiences) in
        [("elsewhere", vec!["https://kubernetes.default".to_owned()]), ("unaware", vec![])]
    {
        api.tokens.lock().unwrap().insert(token.to_owned(), ("somebody".to_owned(), audiences));
    }
    api.tokens.lock().unwrap().insert("nameless".to_owned(), (String::new(), vec!["hookwright".to_owned()]));
    let gate = gate(&api);
    let header = |value: &str| HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
    let mut twice = bearer("good");
    twice.append(AUTHORIZATION, "Bearer good".parse().unwrap());
    let mut forged = HeaderMap::new();
    forged.insert("x-remote-user", "system:admin".parse().unwrap());
    forged.insert("x-remote-group", "system:masters".parse().unwrap());
    for (what, headers, asked) in [
        ("none", HeaderMap::new(), 0),
        ("a forged front proxy", forged, 0),
        ("another scheme", header("Basic Z29vZDo="), 0),
        ("empty", header("Bearer "), 0),
        ("two words", header("Bearer a b"), 0),
        ("two headers", twice, 0),
        ("too long", bearer(&"x".repeat(20_000)), 0),
        ("unknown", bearer("unknown"), 1),
        ("for another audience", bearer("elsewhere"), 1),
        ("from an authenticator that knows no audiences", bearer("unaware"), 1),
        ("of nobody", bearer("nameless"), 1),
    ] {
        let before = api.count("tokenreviews");
        let failure = gate.identify(&peer(), &headers).await.unwrap_err();
        assert_eq!(failure.reason, Reason::Unauthorized, "{what}");
        let says = if what == "a forged front proxy" { "kube-apiserver" } else { "--audience hookwright" };
        assert!(failure.message.contains(says), "{what}: {}", failure.message);
        assert_eq!(api.count("tokenreviews") - before, asked, "{what}");
    }
}

#[tokio::test]
async fn the_scheme_is_read_in_any_case() {
    let gate = gate(&FakeApi::with_shop());
    let headers = HeaderMap::from_iter([(AUTHORIZATION, "bearer good".parse().unwrap())]);
    assert!(gate.identify(&peer(), &headers).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_kubernetes_says_is_believed_for_seconds() {
    let api = FakeApi::with_shop();
    let gate = gate(&api);
    for _ in 0..3 {
        let user = identify(&gate, "good").await.unwrap();
        gate.authorize(&user, &publish("team-a")).await.unwrap();
        gate.authorize(&user, &publish("team-b")).await.unwrap_err();
        identify(&gate, "bad").await.unwrap_err();
    }
    assert_eq!((api.count("tokenreviews"), api.count("subjectaccessreviews")), (2, 2));

    // The right is taken away, and one is given; the token is revoked.
    let shop = "system:serviceaccount:team-a:shop".to_owned();
    let user = identify(&gate, "good").await.unwrap();
    *api.rights.lock().unwrap() = [(shop, "team-b".to_owned())].into();
    let token = api.tokens.lock().unwrap().remove("good").unwrap();
    api.tokens.lock().unwrap().insert("bad".to_owned(), token);

    advance(KEEP_NO).await;
    gate.authorize(&user, &publish("team-b")).await.unwrap();
    identify(&gate, "bad").await.unwrap();
    gate.authorize(&user, &publish("team-a")).await.unwrap();
    identify(&gate, "good").await.unwrap();

    advance(KEEP_YES.saturating_sub(KEEP_NO)).await;
    gate.authorize(&user, &publish("team-a")).await.unwrap_err();
    identify(&gate, "good").await.unwrap_err();
}

#[tokio::test]
async fn a_refusal_says_who_may_not_do_what_where() {
    let gate = gate(&FakeApi::with_shop());
    let user = identify(&gate, "good").await.unwrap();
    let failure = gate.authorize(&user, &publish("team-b")).await.unwrap_err();
    assert_eq!(failure.reason, Reason::Forbidden);
    assert_eq!(
        failure.message,
        "cloudevents.delivery.hookwright.dev is forbidden: User \"system:serviceaccount:team-a:shop\" cannot create \
         resource \"cloudevents\" in API group \"delivery.hookwright.dev\" in the namespace \"team-b\""
    );
}

#[tokio::test(start_paused = true)]
async fn when_kubernetes_cannot_be_asked_the_client_is_to_come_again_and_nothing_is_remembered() {
    let api = FakeApi::with_shop();
    let gate = gate(&api);
    let known = identify(&gate, "good").await.unwrap();
    for (what, switch, waits) in [("broken", &api.broken, 0), ("hanging", &api.hangs, 5)] {
        switch.store(true, Ordering::SeqCst);
        let started = tokio::time::Instant::now();
        let failure = identify(&gate, "another").await.unwrap_err();
        assert_eq!(
            (failure.reason, started.elapsed().as_secs()),
            (Reason::ServiceUnavailable, waits),
            "{what}"
        );
        assert!(failure.into_answer().headers().contains_key("retry-after"));
        let failure = gate.authorize(&known, &publish("team-a")).await.unwrap_err();
        assert_eq!(failure.reason, Reason::ServiceUnavailable, "{what}");
        switch.store(false, Ordering::SeqCst);
    }
    gate.authorize(&known, &publish("team-a")).await.unwrap();
    assert_eq!(identify(&gate, "another").await.unwrap_err().reason, Reason::Unauthorized);
}

#[test]
fn two_users_have_one_fingerprint_only_if_they_are_the_same() {
    let user = |name: &str, groups: &[&str], extra: &[(&str, &[&str])]| {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        User::new(UserInfo {
            username: Some(name.to_owned()),
            uid: None,
            groups: Some(owned(groups)),
            extra: Some(extra.iter().map(|(key, values)| ((*key).to_owned(), owned(values))).collect()),
        })
        .unwrap()
        .fingerprint
    };
    let all = [
        user("a", &[], &[]),
        user("a", &["b"], &[]),
        user("ab", &[], &[]),
        user("a", &["b", "c"], &[]),
        user("a", &["bc"], &[]),
        user("a", &[], &[("b", &[])]),
        user("a", &[], &[("b", &["c"])]),
        user("a", &["b"], &[("c", &[])]),
    ];
    for (i, one) in all.iter().enumerate() {
        assert!(all.iter().skip(i + 1).all(|other| other != one), "{i}");
    }
    assert_eq!(user("a", &["b"], &[("c", &["d"])]), user("a", &["b"], &[("c", &["d"])]));
}
