//! The egress guard: names become addresses here and nowhere else, and each address is judged.
//!
//! A connection is made to exactly the addresses that were judged; nothing resolves a name a second time.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use tracing::warn;

use super::resolv_conf::ResolvConf;
use crate::model::address::{Denied, Policy};
use crate::model::target::{LOCALHOST, is_localhost};

/// Where the system says who knows names.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Time for one look-up, all queries and retries together.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// More addresses than this of one name are ignored: each would be given a share of the time to connect.
const MAX_ADDRESSES: usize = 16;

/// An address is asked for again after this, whatever its TTL.
const POSITIVE_TTL: Duration = Duration::from_mins(1);

/// That a name does not exist is asked again after this, whatever its TTL.
const NEGATIVE_TTL: Duration = Duration::from_secs(10);

/// Why a name gives no address to connect to, or why no name can be resolved at all.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The system's resolver configuration can't be used: there is no safe guess in its place.
    #[error(
        "no name server is known; mount an /etc/resolv.conf that has a line such as `nameserver 10.96.0.10`"
    )]
    Unconfigured(#[source] NetError),
    /// Every address is denied; one of them.
    #[error("{0}")]
    Denied(Denied),
    /// The name does not exist.
    #[error("the host name does not exist")]
    NoSuchName,
    /// The name exists and has no address.
    #[error("the host name has no address")]
    NoAddress,
    /// The name servers took too long.
    #[error("the host name could not be resolved within {}s", LOOKUP_TIMEOUT.as_secs())]
    TimedOut,
    /// A name server refused or failed, or its answer is broken.
    #[error("the host name could not be resolved")]
    Failed(#[source] NetError),
}

/// Decides what deliveries may connect to.
#[derive(Debug)]
pub struct Guard {
    policy: ArcSwap<Policy>,
    resolver: TokioResolver,
}

/// The name servers of the system, to be denied like the rest of the cluster.
pub fn name_servers() -> Result<Vec<IpAddr>, Error> {
    Ok(read(RESOLV_CONF)?.named().collect())
}

/// What the file says, which names at least one server that can be asked.
pub(super) fn read(path: &str) -> Result<ResolvConf, Error> {
    let unusable = |why: std::io::Error| Error::Unconfigured(why.into());
    let bytes = std::fs::read(path).map_err(|error| {
        unusable(std::io::Error::new(error.kind(), format!("cannot read {path}: {error}")))
    })?;
    let conf = ResolvConf::parse(&bytes);
    if conf.servers.is_empty() {
        let only = if conf.unasked.is_empty() { "no address in it" } else { "only addresses with a zone" };
        let why = format!("{path} has {only} that can be asked");
        return Err(unusable(std::io::Error::other(why)));
    }
    Ok(conf)
}

fn system() -> Result<(ResolverConfig, ResolverOpts), Error> {
    let ResolvConf { servers, unasked, passed_over, timeout, attempts, edns0 } = read(RESOLV_CONF)?;
    if passed_over || !unasked.is_empty() {
        let asked = &servers;
        warn!(
            ?asked,
            ?unasked,
            "not every name server is asked: at most three are, by addresses without a zone"
        );
    }
    let servers = servers.into_iter().map(NameServerConfig::udp_and_tcp).collect();
    let mut options = ResolverOpts::default();
    (options.timeout, options.attempts, options.edns0) = (timeout, attempts, edns0);
    Ok((ResolverConfig::from_parts(None, Vec::new(), servers), options))
}

impl Guard {
    /// A guard that asks the name servers of the system. Fails when they can't be read.
    pub fn from_system(policy: Policy) -> Result<Self, Error> {
        let (config, options) = system()?;
        Self::new(policy, config, options)
    }

    /// A guard that asks these name servers.
    pub fn new(policy: Policy, servers: ResolverConfig, options: ResolverOpts) -> Result<Self, Error> {
        let mut builder = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let options = builder.options_mut();
        options.use_hosts_file = ResolveHosts::Never;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.positive_max_ttl = Some(POSITIVE_TTL);
        options.negative_max_ttl = Some(NEGATIVE_TTL);
        options.try_tcp_on_error = true;
        options.max_active_requests = 512;
        // So that a server that does not answer leaves time for the next try within the look-up's time.
        options.timeout = options.timeout.min(Duration::from_secs(2));
        options.attempts = options.attempts.max(2);
        let resolver = builder.build().map_err(Error::Unconfigured)?;
        Ok(Self { policy: ArcSwap::from_pointee(policy), resolver })
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Puts another policy in force: for connections made from now on. Whoever keeps connections compares
    /// [`Guard::policy`] to know when to drop them.
    pub fn set_policy(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
    }

    /// The addresses of a name that may be connected to: at least one, at most 16. Denied ones are dropped.
    ///
    /// The name is taken as absolute: no search domain is tried. Names under `localhost` are this machine.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Error> {
        if is_localhost(name) {
            return self.allowed(LOCALHOST);
        }
        let name = absolute(name)?;
        let lookup = tokio::time::timeout(LOOKUP_TIMEOUT, self.resolver.lookup_ip(name)).await;
        let found = lookup.map_err(|_| Error::TimedOut)?.map_err(explain)?;
        self.allowed(found.iter())
    }

    fn allowed(&self, found: impl IntoIterator<Item = IpAddr>) -> Result<Vec<IpAddr>, Error> {
        let policy = self.policy.load();
        let (mut allowed, mut denied) = (Vec::new(), None);
        for address in found.into_iter().take(MAX_ADDRESSES) {
            match policy.judge(address) {
                Ok(()) => allowed.push(address),
                Err(error) => denied = denied.or(Some(error)),
            }
        }
        match (allowed.is_empty(), denied) {
            (false, _) => Ok(allowed),
            (true, Some(denied)) => Err(Error::Denied(denied)),
            (true, None) => Err(Error::NoAddress),
        }
    }

    /// Forgets what is known of a name, so that the next connection asks anew.
    pub fn forget(&self, name: &str) {
        if let Ok(name) = absolute(name) {
            self.resolver.clear_lookup_cache(name.clone(), RecordType::A);
            self.resolver.clear_lookup_cache(name, RecordType::AAAA);
        }
    }
}

fn absolute(name: &str) -> Result<Name, Error> {
    let mut name = Name::from_ascii(name).map_err(|error| Error::Failed(error.into()))?;
    name.set_fqdn(true);
    Ok(name)
}

fn explain(error: NetError) -> Error {
    match &error {
        NetError::Timeout => Error::TimedOut,
        NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code == ResponseCode::NXDomain => {
            Error::NoSuchName
        }
        NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code == ResponseCode::NoError => {
            Error::NoAddress
        }
        _ => Error::Failed(error),
    }
}
