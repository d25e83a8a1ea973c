//! The guard against a name server on loopback.

use std::net::IpAddr;

use hickory_resolver::proto::op::ResponseCode;

use super::egress::Error;
use super::testing::name_server::{NameServer, Says};
use crate::model::address::{Policy, Why};

fn shown(result: Result<Vec<IpAddr>, Error>) -> Result<Vec<String>, String> {
    let addresses = result.map_err(|error| error.to_string())?;
    Ok(addresses.iter().map(ToString::to_string).collect())
}

#[tokio::test]
async fn denied_addresses_are_dropped_and_none_left_is_denied() {
    let server = NameServer::start([
        ("good.example.", Says::Addresses(&["8.8.8.8", "2606:4700::1"])),
        ("mixed.example.", Says::Addresses(&["10.0.0.1", "8.8.8.8", "::1", "64:ff9b::10.0.0.1"])),
        ("bad.example.", Says::Addresses(&["10.0.0.1", "fd00::1"])),
        ("meta.example.", Says::Addresses(&["64:ff9b::169.254.169.254"])),
        ("alias.example.", Says::Alias("inside.example.")),
    ])
    .await;
    let guard = server.guard(Policy::default());
    assert_eq!(
        shown(guard.addresses("good.example").await),
        Ok(vec!["8.8.8.8".into(), "2606:4700::1".into()])
    );
    assert_eq!(shown(guard.addresses("mixed.example").await), Ok(vec!["8.8.8.8".into()]));
    for name in ["bad.example", "alias.example"] {
        assert!(matches!(guard.addresses(name).await, Err(Error::Denied(_))), "{name}");
    }
    let Err(Error::Denied(denied)) = guard.addresses("meta.example").await else { panic!("not denied") };
    assert_eq!(denied.why, Why::Metadata);
}

#[tokio::test]
async fn names_are_absolute_and_localhost_is_never_asked() {
    let server = NameServer::start([]).await;
    let guard = server.guard(Policy::new(["127.0.0.0/8".parse().unwrap()], []));
    assert!(matches!(guard.addresses("kubernetes.default.svc").await, Err(Error::NoSuchName)));
    assert!(server.asked().iter().all(|name| name == "kubernetes.default.svc."), "{:?}", server.asked());
    let before = server.asked().len();
    assert_eq!(shown(guard.addresses("x.localhost").await), Ok(vec!["127.0.0.1".into()]));
    assert_eq!(server.asked().len(), before);
}

#[tokio::test]
async fn failures_of_the_name_servers_are_no_denials() {
    let server = NameServer::start([
        ("empty.example.", Says::Addresses(&[])),
        ("failing.example.", Says::Code(ResponseCode::ServFail)),
        ("refused.example.", Says::Code(ResponseCode::Refused)),
    ])
    .await;
    let guard = server.guard(Policy::default());
    for (name, sentence) in [
        ("missing.example", "the host name does not exist"),
        ("empty.example", "the host name has no address"),
        ("failing.example", "the host name could not be resolved"),
        ("refused.example", "the host name could not be resolved"),
    ] {
        assert_eq!(shown(guard.addresses(name).await), Err(sentence.to_owned()), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_name_server_takes_five_seconds_at_most() {
    let server = NameServer::start([("silent.example.", Says::Nothing)]).await;
    let guard = server.guard(Policy::default());
    let began = tokio::time::Instant::now();
    assert!(matches!(guard.addresses("silent.example").await, Err(Error::TimedOut)));
    assert!(began.elapsed() <= std::time::Duration::from_secs(5));
}

#[tokio::test]
async fn at_most_sixteen_addresses_are_taken() {
    const MANY: [&str; 20] = [
        "8.0.0.1", "8.0.0.2", "8.0.0.3", "8.0.0.4", "8.0.0.5", "8.0.0.6", "8.0.0.7", "8.0.0.8", "8.0.0.9",
        "8.0.0.10", "8.0.0.11", "8.0.0.12", "8.0.0.13", "8.0.0.14", "8.0.0.15", "8.0.0.16", "8.0.0.17",
        "8.0.0.18", "8.0.0.19", "8.0.0.20",
    ];
    let server = NameServer::start([("many.example.", Says::Addresses(&MANY))]).await;
    assert_eq!(server.guard(Policy::default()).addresses("many.example").await.unwrap().len(), 16);
}

#[tokio::test]
async fn an_answer_that_changes_is_judged_anew_and_a_failed_name_is_asked_for_again() {
    let server =
        NameServer::start([("moving.example.", Says::Addresses(&["8.8.8.8", "2606:4700::1"]))]).await;
    let guard = server.guard(Policy::default());
    assert!(guard.addresses("moving.example").await.is_ok());
    server.says("moving.example.", Says::Addresses(&["169.254.169.254"]));
    let asked = server.asked().len();
    assert!(guard.addresses("moving.example").await.is_ok(), "kept for its TTL");
    assert_eq!(server.asked().len(), asked);
    guard.forget("moving.example");
    assert!(matches!(guard.addresses("moving.example").await, Err(Error::Denied(_))));
}

#[test]
fn without_a_name_server_it_is_said_what_to_mount() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolv.conf");
    let read = |text: Option<&str>| {
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let read = super::egress::read(path.to_str().unwrap());
        read.map(|conf| conf.servers).map_err(|error| crate::model::causes::chain(&error))
    };
    for (text, why) in [
        (None, "cannot read"),
        (Some(""), "no address in it"),
        (Some("search a.example\nnameserver dns.example\n"), "no address in it"),
        (Some("nameserver fe80::1%eth0\n"), "only addresses with a zone"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(why) && error.contains("a line such as `nameserver 10.96.0.10`"), "{error}");
    }
    let servers = read(Some("search -bad.example\noptions what:ever\nnameserver 10.96.0.10\n")).unwrap();
    assert_eq!(servers, [IpAddr::from([10, 96, 0, 10])]);
}
