//! A name server on loopback.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::delivery::egress::Guard;
use crate::model::address::Policy;

/// What it says of a name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Says {
    Addresses(&'static [&'static str]),
    Alias(&'static str),
    Code(ResponseCode),
    Nothing,
}

type Zone = HashMap<&'static str, Says>;

/// A running name server; ends when dropped.
pub(crate) struct NameServer {
    port: u16,
    zone: Arc<Mutex<Zone>>,
    asked: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

impl NameServer {
    pub(crate) async fn start(zone: impl IntoIterator<Item = (&'static str, Says)>) -> Self {
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

    pub(crate) fn guard(&self, policy: Policy) -> Guard {
        let mut connection = ConnectionConfig::udp();
        connection.port = self.port;
        let mut server = NameServerConfig::udp(IpAddr::V4(Ipv4Addr::LOCALHOST));
        server.connections = vec![connection];
        let search = vec![Name::from_ascii("cluster.local.").unwrap()];
        let config = ResolverConfig::from_parts(None, search, vec![server]);
        Guard::new(policy, config, ResolverOpts::default()).unwrap()
    }

    /// From now on it says this of a name.
    pub(crate) fn says(&self, name: &'static str, says: Says) {
        self.zone.lock().unwrap().insert(name, says);
    }

    pub(crate) fn asked(&self) -> Vec<String> {
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
