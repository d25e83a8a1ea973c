//! The guard against a name server on loopback.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::egress::{Error, Guard};
use crate::model::address::{Policy, Why};

#[derive(Clone, Copy, Debug)]
enum Says {
    Addresses(&'static [&'static str]),
    Alias(&'static str),
    Code(ResponseCode),
    Nothing,
}

type Zone = HashMap<&'static str, Says>;

struct NameServer {
    port: u16,
    zone: Arc<Mutex<Zone>>,
    asked: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

impl NameServer {
    async fn start(zone: impl IntoIterator<Item = (&'static str, Says)>) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let zone = Arc::new(Mutex::new(zone.into_iter().collect::<Zone>()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (served, log) = (Arc::clone(&zone), Arc::clone(&asked));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let name = query.queries[0].name().to_string();
                let says = served.lock().unwrap().get(&*name).copied();
                log.lock().unwrap().push(name);
                if let Some(reply) = reply(&query, says.unwrap_or(Says::Code(ResponseCode::NXDomain))) {
                    socket.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
                }
            }
        });
        Self { port, zone, asked, _task: task }
    }

    fn guard(&self, policy: Policy) -> Guard {
        let mut connection = ConnectionConfig::udp();
        connection.port = self.port;
        let mut server = NameServerConfig::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
        server.connections = vec![connection];
        let search = vec![Name::from_ascii("cluster.local.").unwrap()];
        let config = ResolverConfig::from_parts(None, search, vec![server]);
        Guard::new(policy, config, ResolverOpts::default()).unwrap()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn reply(query: &Message, says: Says) -> Option<Message> {
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    let question = query.queries[0].clone();
    let (name, wanted) = (question.name().clone(), question.query_type());
    reply.queries.push(question);
    let mut answer = |name: &Name, data: RData| {
        reply.answers.push(Record::from_rdata(name.clone(), 3600, data));
    };
    match says {
        Says::Nothing => return None,
        Says::Code(code) => reply.metadata.response_code = code,
        Says::Alias(to) => {
            let to = Name::from_ascii(to).unwrap();
            answer(&name, RData::CNAME(hickory_resolver::proto::rr::rdata::CNAME(to.clone())));
            if wanted == RecordType::A {
                answer(&to, RData::A("10.0.0.1".parse().unwrap()));
            }
        }
        Says::Addresses(addresses) => {
            for address in addresses.iter().map(|address| address.parse().unwrap()) {
                match (address, wanted) {
                    (IpAddr::V4(v4), RecordType::A) => answer(&name, RData::A(v4.into())),
                    (IpAddr::V6(v6), RecordType::AAAA) => answer(&name, RData::AAAA(v6.into())),
                    _ => {}
                }
            }
        }
    }
    Some(reply)
}

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
    server.zone.lock().unwrap().insert("moving.example.", Says::Addresses(&["169.254.169.254"]));
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
