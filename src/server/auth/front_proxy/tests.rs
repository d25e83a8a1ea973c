use http::HeaderValue;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

use super::*;
use crate::clock::Hand;

const NOW: UnixMillis = UnixMillis::from_millis(1_800_000_000_000);
const DAY: Duration = Duration::from_hours(24);

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
        until: UnixMillis,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let at = |time: UnixMillis| std::time::UNIX_EPOCH + time.since(UnixMillis::from_millis(0));
        params.not_before = at(NOW - DAY).into();
        params.not_after = at(until).into();
        params.signed_by(&KeyPair::generate().unwrap(), &self.0).unwrap().der().clone()
    }

    fn client(&self, name: &str) -> CertificateDer<'static> {
        self.issue(name, ExtendedKeyUsagePurpose::ClientAuth, NOW + DAY)
    }
}

fn data(ca: &str, allowed: &str) -> BTreeMap<String, String> {
    [
        ("client-ca-file", "not of interest"),
        ("requestheader-client-ca-file", ca),
        ("requestheader-allowed-names", allowed),
        ("requestheader-username-headers", r#"["X-Remote-User","X-Other-User"]"#),
        ("requestheader-uid-headers", r#"["X-Remote-Uid"]"#),
        ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
        ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn front_proxy() -> (FrontProxy, Hand) {
    let (clock, hand) = Clock::manual(NOW);
    (FrontProxy::new(clock), hand)
}

fn peer(certificates: &[&CertificateDer<'static>]) -> Peer {
    Peer {
        address: ([127, 0, 0, 1], 1).into(),
        certificates: certificates.iter().map(|certificate| (*certificate).clone()).collect(),
    }
}

fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in all {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

#[test]
fn only_the_front_proxys_certificate_may_say_for_whom_it_asks() {
    let (authority, other) = (Authority::new(), Authority::new());
    let good = authority.client("front-proxy-client");
    let foreign = other.client("front-proxy-client");
    let server = authority.issue("front-proxy-client", ExtendedKeyUsagePurpose::ServerAuth, NOW + DAY);
    let expired = authority.issue("front-proxy-client", ExtendedKeyUsagePurpose::ClientAuth, NOW - DAY / 2);
    let (proxy, _) = front_proxy();
    proxy.trust(&data(&authority.0.pem(), r#"["front-proxy-client"]"#));
    let alice = || headers(&[("x-remote-user", "alice")]);
    for (what, certificates, headers, known) in [
        ("the front proxy", vec![&good], alice(), true),
        ("nobody", vec![], alice(), false),
        ("of another CA", vec![&foreign], alice(), false),
        ("of another CA, with the right one behind", vec![&foreign, &good], alice(), false),
        ("with a name that is not allowed", vec![&authority.client("admin")], alice(), false),
        ("a server's", vec![&server], alice(), false),
        ("expired", vec![&expired], alice(), false),
        ("no certificate", vec![&CertificateDer::from(vec![1, 2, 3])], alice(), false),
        ("without a user", vec![&good], headers(&[("x-remote-group", "system:masters")]), false),
        ("with an empty user", vec![&good], headers(&[("x-remote-user", "")]), false),
        ("a group alone", vec![], headers(&[("x-remote-group", "system:masters")]), false),
        ("a uid alone", vec![], headers(&[("x-remote-uid", "1")]), false),
        ("more alone", vec![], headers(&[("x-remote-extra-scopes", "all")]), false),
        ("a header of this cluster's alone", vec![], headers(&[("x-other-user", "alice")]), false),
    ] {
        match proxy.identify(&peer(&certificates), &headers) {
            Ok(user) => assert!(known && user.unwrap().username == "alice", "{what}"),
            Err(failure) => {
                assert!(!known, "{what}: {}", failure.message);
                assert_eq!(failure.reason, Reason::Unauthorized, "{what}");
            }
        }
    }
}

#[test]
fn who_says_nothing_is_left_to_the_other_door() {
    let authority = Authority::new();
    let certificate = authority.client("front-proxy-client");
    let (proxy, _) = front_proxy();
    for _ in 0..2 {
        let plain = headers(&[("authorization", "Bearer x"), ("x-forwarded-for", "192.0.2.1")]);
        assert_eq!(proxy.identify(&peer(&[&certificate]), &plain), Ok(None));
        proxy.trust(&data(&authority.0.pem(), "[]"));
    }
}

#[test]
fn a_user_has_all_that_the_headers_say() {
    let authority = Authority::new();
    let (proxy, _) = front_proxy();
    proxy.trust(&data(&authority.0.pem(), "null"));
    let headers = headers(&[
        ("x-remote-user", "älice"),
        ("x-other-user", "somebody"),
        ("x-remote-uid", "u-1"),
        ("x-remote-group", "devs"),
        ("x-remote-group", "system:authenticated"),
        ("x-remote-extra-authentication.kubernetes.io%2fpod-name", "p-1"),
        ("x-remote-extra-scopes", "a"),
        ("x-remote-extra-scopes", "b"),
    ]);
    let any_name = authority.client("whoever");
    let user = proxy.identify(&peer(&[&any_name]), &headers).unwrap().unwrap();
    assert_eq!((user.username.as_str(), user.uid.as_deref()), ("älice", Some("u-1")));
    assert_eq!(user.groups, ["devs", "system:authenticated"]);
    let extra = |key: &str| user.extra.get(key).cloned().unwrap_or_default();
    assert_eq!(extra("authentication.kubernetes.io/pod-name"), ["p-1"]);
    assert_eq!(extra("scopes"), ["a", "b"]);
}

#[test]
fn a_ca_that_changes_and_a_certificate_that_expires_count_at_once() {
    let (old, new) = (Authority::new(), Authority::new());
    let (with_old, with_new) = (old.client("p"), new.client("p"));
    let (proxy, hand) = front_proxy();
    let known =
        |certificate| proxy.identify(&peer(&[certificate]), &headers(&[("x-remote-user", "a")])).is_ok();
    proxy.trust(&data(&old.0.pem(), "[]"));
    assert_eq!((known(&with_old), known(&with_new)), (true, false));
    proxy.trust(&data(&format!("{}{}", old.0.pem(), new.0.pem()), "[]"));
    assert_eq!((known(&with_old), known(&with_new)), (true, true));
    proxy.trust(&data(&new.0.pem(), "[]"));
    assert_eq!((known(&with_old), known(&with_new)), (false, true));
    hand.advance(DAY * 2);
    assert!(!known(&with_new));
}

#[test]
fn before_it_is_known_whom_to_trust_a_certificate_is_to_come_again() {
    let (proxy, _) = front_proxy();
    let certificate = Authority::new().client("p");
    let alice = headers(&[("x-remote-user", "alice")]);
    assert_eq!(proxy.identify(&peer(&[]), &alice).unwrap_err().reason, Reason::Unauthorized);
    let failure = proxy.identify(&peer(&[&certificate]), &alice).unwrap_err();
    assert_eq!(failure.reason, Reason::ServiceUnavailable);
    assert!(failure.into_answer().headers().contains_key("retry-after"));
}

#[tokio::test]
async fn nobody_vouches_before_it_is_known_who_may_and_who_waits_is_told() {
    use futures::FutureExt as _;
    let (kube, ours) = (Authority::new(), Authority::new());
    let (proxy, _) = front_proxy();
    let proxy = Arc::new(proxy);
    let [stranger, front_proxy, front] = [Authority::new().client("p"), kube.client("p"), ours.client(FRONT)]
        .map(|certificate| peer(&[&certificate]));
    let mut waiting = [&stranger, &front_proxy, &front].map(|peer| proxy.comes_to_vouch(peer).boxed());
    let mut told = || waiting.each_mut().map(|waiting| waiting.now_or_never().is_some());
    let vouch = || [&stranger, &front_proxy, &front].map(|peer| proxy.vouches(peer));
    assert_eq!((vouch(), told()), ([false; 3], [false; 3]), "anybody can show a certificate");
    proxy.trust(&data(&kube.0.pem(), "[]"));
    assert_eq!(vouch(), [false, true, false]);
    assert_eq!(told(), [false, true, false]);
    known_by(&proxy, &watch::Sender::new(None), &ours.0.pem()).await;
    assert_eq!(vouch(), [false, true, true]);
    assert!(proxy.comes_to_vouch(&front).now_or_never().is_some());
    assert!(proxy.comes_to_vouch(&peer(&[])).now_or_never().is_none());
}

/// What is known of a front's certificate after each of these bundles came.
async fn known_by(proxy: &Arc<FrontProxy>, bundles: &watch::Sender<Option<String>>, bundle: &str) {
    bundles.send_replace(Some(bundle.to_owned()));
    let (stop, receiver) = (CancellationToken::new(), bundles.subscribe());
    stop.cancel();
    proxy.trust_fronts(receiver, stop).await;
}

#[tokio::test]
async fn a_front_of_ours_is_known_by_our_ca_and_its_name_and_a_rotation_counts_at_once() {
    let (old, new, kube) = (Authority::new(), Authority::new(), Authority::new());
    let (proxy, _) = front_proxy();
    let (proxy, bundles) = (Arc::new(proxy), watch::Sender::new(None));
    let alice = headers(&[("x-remote-user", "alice"), ("x-remote-group", "devs")]);
    let known = |certificate: &CertificateDer<'static>| {
        proxy.identify(&peer(&[certificate]), &alice).map(|user| user.unwrap().username.clone()).ok()
    };
    let (with_old, with_new) = (old.client(FRONT), new.client(FRONT));
    assert_eq!(known(&with_old), None, "before the CA is read");
    known_by(&proxy, &bundles, &old.0.pem()).await;
    for (what, certificate, is_known) in [
        ("a front", &with_old, true),
        ("the same again", &with_old, true),
        ("with another name", &old.client("hookwright"), false),
        ("a server's", &old.issue(FRONT, ExtendedKeyUsagePurpose::ServerAuth, NOW + DAY), false),
        ("expired", &old.issue(FRONT, ExtendedKeyUsagePurpose::ClientAuth, NOW - DAY / 2), false),
        ("of another CA", &with_new, false),
        ("of kube-apiserver's CA", &kube.client(FRONT), false),
    ] {
        assert_eq!(known(certificate).is_some(), is_known, "{what}");
    }
    known_by(&proxy, &bundles, &format!("{}{}", old.0.pem(), new.0.pem())).await;
    assert!(known(&with_old).is_some() && known(&with_new).is_some(), "in a rotation both are");
    known_by(&proxy, &bundles, &new.0.pem()).await;
    assert!(known(&with_old).is_none() && known(&with_new).is_some());
    proxy.trust(&data(&kube.0.pem(), r#"["front-proxy-client"]"#));
    assert!(known(&kube.client("front-proxy-client")).is_some(), "kube-apiserver beside them");
    assert!(known(&new.client("front-proxy-client")).is_none(), "not by our CA");
}

#[test]
fn where_kube_apiserver_does_not_come_nobody_is_to_come_again() {
    let (proxy, _) = front_proxy();
    assert!(matches!(proxy.check(), Check::Failed(_)));
    let proxy = proxy.without_kube_apiserver();
    assert_eq!(proxy.check(), Check::Passed);
    let (certificate, alice) = (Authority::new().client("p"), headers(&[("x-remote-user", "alice")]));
    let failure = proxy.identify(&peer(&[&certificate]), &alice).unwrap_err();
    assert_eq!(failure.reason, Reason::Unauthorized);
}

#[test]
fn a_config_map_that_is_not_kube_apiservers_is_refused_and_says_why() {
    let ca = Authority::new().0.pem();
    let good = data(&ca, "[]");
    let with = |key: &str, value: Option<&str>| {
        let mut data = good.clone();
        data.remove(key);
        data.extend(value.map(|value| (key.to_owned(), value.to_owned())));
        data
    };
    assert!(Trust::read(&good).is_ok());
    for (data, says) in [
        (with("requestheader-client-ca-file", None), "aggregation layer"),
        (with("requestheader-client-ca-file", Some("no PEM")), "no usable certificate"),
        (with("requestheader-username-headers", None), "requestheader-username-headers"),
        (with("requestheader-group-headers", Some("X-Remote-Group")), "JSON list"),
        (with("requestheader-uid-headers", Some(r#"["a b"]"#)), "no header can have"),
    ] {
        let error = Trust::read(&data).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_cluster_that_cannot_be_known_is_a_warning_and_not_a_failure() {
    let proxy = FrontProxy::new(Clock::system());
    assert_eq!(proxy.learn(Unread::NoAnswer("no answer".to_owned())), "no answer");
    assert!(matches!(proxy.check(), Check::Failed(_)), "it may be known in a moment");
    let absent = Trust::read(&BTreeMap::new()).unwrap_err().to_string();
    proxy.learn(Unread::Absent(absent));
    let Check::Warns(why) = proxy.check() else { panic!() };
    for part in
        ["--requestheader-client-ca-file", "apiService.enabled=false", "kube-system", "kubectl get dlv"]
    {
        assert!(why.contains(part), "{part} in {why}");
    }
    assert!(proxy.is_unknown(), "whoever claims to be it now is a forger");
}
