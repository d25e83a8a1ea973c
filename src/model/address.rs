//! Which addresses a delivery may reach.
//!
//! The address decides, never the spelling of a name: names are judged by each address they resolve to,
//! literals when the URL is parsed and again at each attempt.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Why an address may not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address {address} is {why}")]
pub struct Denied {
    /// As it was given, not its canonical form.
    pub address: IpAddr,
    /// Which rule denied it.
    pub why: Why,
}

/// The rule that denied an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A metadata or credential service of a cloud; only an allow of exactly this address opens it.
    Metadata,
    /// The platform team denied this range.
    DeniedRange(IpNet),
    /// Part of the cluster: its API server, a nameserver, the operator's own pod or host.
    Cluster(IpNet),
    /// A special-purpose range of the built-in table, and what it is for.
    Special(IpNet, &'static str),
    /// An IPv6 address outside the space that is assigned to hosts (`2000::/3`).
    Unassigned,
    /// An ISATAP address, which carries an IPv4 address in disguise.
    Isatap,
}

impl Denied {
    /// What the platform team can do so that it may be reached, to be read after "to".
    pub fn remedy(&self) -> String {
        let exactly = IpNet::from(canonical(self.address));
        match self.why {
            Why::Metadata => {
                format!("allow exactly this address (--allow-cidr {exactly}): no wider range opens it")
            }
            Why::DeniedRange(net) => format!("take {net} out of --deny-cidr, which wins over --allow-cidr"),
            Why::Cluster(_) | Why::Special(..) | Why::Unassigned | Why::Isatap => {
                format!("allow it (--allow-cidr {exactly}) or its range")
            }
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metadata => f.write_str("a cloud's metadata service"),
            Self::DeniedRange(net) => write!(f, "in {net}, which --deny-cidr denies"),
            Self::Cluster(net) => write!(f, "in {net}, which belongs to the cluster"),
            Self::Special(net, what) => write!(f, "in {net} ({what}), which deliveries may not reach"),
            Self::Unassigned => f.write_str("outside 2000::/3, which deliveries may not reach"),
            Self::Isatap => f.write_str("an ISATAP address, which deliveries may not reach"),
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
}

const fn v6(groups: [u16; 8], prefix: u8) -> IpNet {
    let mut bits = 0;
    let mut at = 0;
    while at < groups.len() {
        #[expect(clippy::indexing_slicing, reason = "at is below the length; iterators are not const")]
        let group = groups[at] as u128;
        bits = bits << 16 | group;
        at += 1;
    }
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), prefix))
}

/// Special-purpose ranges by the IANA registries and beyond; the first that matches is named.
const SPECIAL: &[(IpNet, &str)] = &[
    (v4(0, 0, 0, 0, 8), "this network"),
    (v4(10, 0, 0, 0, 8), "private"),
    (v4(100, 64, 0, 0, 10), "shared"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    (v4(169, 254, 0, 0, 16), "link-local"),
    (v4(172, 16, 0, 0, 12), "private"),
    (v4(192, 0, 0, 0, 24), "protocol assignments"),
    (v4(192, 0, 2, 0, 24), "documentation"),
    (v4(192, 31, 196, 0, 24), "AS112"),
    (v4(192, 52, 193, 0, 24), "AMT"),
    (v4(192, 88, 99, 0, 24), "6to4 relay"),
    (v4(192, 168, 0, 0, 16), "private"),
    (v4(192, 175, 48, 0, 24), "AS112"),
    (v4(198, 18, 0, 0, 15), "benchmarking"),
    (v4(198, 51, 100, 0, 24), "documentation"),
    (v4(203, 0, 113, 0, 24), "documentation"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(240, 0, 0, 0, 4), "reserved"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "unspecified"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 96), "IPv4-compatible"),
    (v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), "IPv4-translated"),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "local NAT64"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 8), "reserved"),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discard only"),
    (v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64), "dummy prefix"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), "Teredo"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "protocol assignments"),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "documentation"),
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "6to4"),
    (v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48), "AS112"),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "documentation"),
    (v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), "segment routing"),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "unique local"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
];

/// Metadata and credential services of the clouds.
const METADATA: &[IpAddr] = &[
    // AWS and most others; ECS; EKS pod identity.
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    // Google; Oracle; Akamai.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    // Scaleway; Tencent; Alibaba; Oracle Classic; Azure.
    IpAddr::V4(Ipv4Addr::new(169, 254, 42, 42)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 0, 23)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

const ASSIGNED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
const NAT64: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// What deliveries may reach: the built-in table, and what the platform team adds to it.
///
/// In order: metadata services are denied unless exactly that address is allowed; what is denied is denied;
/// what is allowed is allowed; then the cluster's own addresses, the table, and IPv6 outside `2000::/3` are
/// denied. Deny wins over allow, so no order is to be learned and an allow that is too wide opens nothing that
/// was closed on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
    cluster: Vec<IpNet>,
}

impl Policy {
    /// The table with ranges that are opened and closed beside it.
    pub fn new(allow: impl IntoIterator<Item = IpNet>, deny: impl IntoIterator<Item = IpNet>) -> Self {
        Self {
            allow: allow.into_iter().map(canonical_net).collect(),
            deny: deny.into_iter().map(canonical_net).collect(),
            cluster: Vec::new(),
        }
    }

    /// Adds the cluster's own addresses or ranges, denied as if they were in the table: not every cluster is on
    /// private ones. An allow opens them.
    #[must_use]
    pub fn with_cluster(mut self, own: impl IntoIterator<Item = impl Into<IpNet>>) -> Self {
        self.cluster.extend(own.into_iter().map(|net| canonical_net(net.into())));
        self
    }

    /// Whether a delivery may connect to this address.
    pub fn judge(&self, address: IpAddr) -> Result<(), Denied> {
        self.why_denied(address).map_or(Ok(()), |why| Err(Denied { address, why }))
    }

    fn why_denied(&self, address: IpAddr) -> Option<Why> {
        let judged = canonical(address);
        let exactly = IpNet::from(judged);
        if METADATA.contains(&judged) && !self.allow.contains(&exactly) {
            return Some(Why::Metadata);
        }
        // The form that was given, too: it is how a range of NAT64 is closed as such.
        if let Some(net) = first(&self.deny, judged).or_else(|| first(&self.deny, address)) {
            return Some(Why::DeniedRange(net));
        }
        if first(&self.allow, judged).is_some() {
            return None;
        }
        if let Some(net) = first(&self.cluster, judged) {
            return Some(Why::Cluster(net));
        }
        let special = SPECIAL.iter().find(|(net, _)| net.contains(&judged));
        if let Some((net, what)) = special {
            return Some(Why::Special(*net, what));
        }
        match judged {
            IpAddr::V6(v6) if !ASSIGNED.contains(&v6) => Some(Why::Unassigned),
            IpAddr::V6(v6) if is_isatap(v6) => Some(Why::Isatap),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }
}

fn first(nets: &[IpNet], address: IpAddr) -> Option<IpNet> {
    nets.iter().find(|net| net.contains(&address)).copied()
}

/// IPv4-mapped and well-known NAT64 addresses connect to the IPv4 address in them.
fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    if NAT64.contains(&v6) {
        let [.., a, b, c, d] = v6.octets();
        return IpAddr::V4(Ipv4Addr::new(a, b, c, d));
    }
    v6.to_ipv4_mapped().map_or(address, IpAddr::V4)
}

/// A range of IPv4-mapped addresses is the range of those IPv4 addresses.
fn canonical_net(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net.trunc() else { return net.trunc() };
    let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    let net = mapped.and_then(|(v4, prefix)| Ipv4Net::new(v4, prefix).ok());
    net.map_or(IpNet::V6(v6), IpNet::V4)
}

fn is_isatap(address: Ipv6Addr) -> bool {
    let [.., high, low, _, _] = address.segments();
    low == 0x5efe && (high == 0 || high == 0x200)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn the_table_denies_first_and_last_of_each_range_and_not_their_neighbours() {
        let policy = Policy::default();
        for (net, _) in SPECIAL {
            for address in [net.network(), net.broadcast()] {
                assert!(policy.judge(address).is_err(), "{address} of {net}");
            }
        }
        for allowed in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "191.255.255.255",
            "192.0.1.0",
            "192.0.3.0",
            "192.31.195.255",
            "192.31.197.0",
            "192.52.192.255",
            "192.52.194.0",
            "192.88.98.255",
            "192.88.100.0",
            "192.167.255.255",
            "192.169.0.0",
            "192.175.47.255",
            "192.175.49.0",
            "198.17.255.255",
            "198.20.0.0",
            "198.51.99.255",
            "198.51.101.0",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "168.63.129.15",
            "168.63.129.17",
            "8.8.8.8",
            "2001:200::1",
            "2001:db7:ffff::",
            "2001:db9::",
            "2003::1",
            "2606:4700::1111",
            "2620:4f:7fff::1",
            "2620:4f:8001::1",
            "3ffe:ffff::1",
            "3fff:1000::",
            "2a00:1450::1",
        ] {
            assert_eq!(policy.judge(ip(allowed)), Ok(()), "{allowed}");
        }
    }

    #[test]
    fn what_reaches_an_ipv4_by_another_form_is_judged_as_that_or_refused() {
        let policy = Policy::default();
        for denied in [
            "0.0.0.0",
            "127.0.0.1",
            "10.1.2.3",
            "169.254.1.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:0:8.8.8.8",
            "64:ff9b::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::8.8.8.8",
            "64:ff9b:0:0:1::8.8.8.8",
            "::5efe:8.8.8.8",
            "100::1",
            "100:0:0:1::1",
            "2001::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:30::1",
            "2001:1ff:ffff::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "2620:4f:8000::1",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2606:4700::5efe:808:808",
            "2606:4700::200:5efe:808:808",
        ] {
            assert!(policy.judge(ip(denied)).is_err(), "{denied}");
        }
        for allowed in ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2606:4700::300:5efe:808:808"] {
            assert_eq!(policy.judge(ip(allowed)), Ok(()), "{allowed}");
        }
    }

    #[test]
    fn metadata_opens_to_exactly_its_address_only() {
        let wide = Policy::new(nets(&["0.0.0.0/0", "::/0", "169.254.169.254/31", "fd00::/8"]), []);
        for address in METADATA {
            assert_eq!(wide.judge(*address).unwrap_err().why, Why::Metadata, "{address}");
            let exact = Policy::new([IpNet::from(*address)], []);
            assert_eq!(exact.judge(*address), Ok(()), "{address}");
            let closed = Policy::new([IpNet::from(*address)], nets(&["0.0.0.0/0", "::/0"]));
            assert!(matches!(closed.judge(*address).unwrap_err().why, Why::DeniedRange(_)), "{address}");
        }
        let azure = "64:ff9b::168.63.129.16";
        assert_eq!(wide.judge(ip(azure)).unwrap_err().why, Why::Metadata);
    }

    #[test]
    fn deny_beats_allow_and_allow_beats_table_and_cluster() {
        let policy = Policy::new(
            nets(&["10.0.0.0/8", "127.0.0.0/8", "fd00::/8", "1.1.1.1/32"]),
            nets(&["10.96.0.0/12", "1.1.1.0/24"]),
        )
        .with_cluster(nets(&["34.118.224.0/20", "10.0.0.1/32"]))
        .with_cluster([ip("2606:4700::1")]);
        for (address, denied) in [
            ("10.0.0.1", false),
            ("10.96.0.1", true),
            ("::ffff:10.96.0.1", true),
            ("127.0.0.1", false),
            ("::ffff:127.0.0.1", false),
            ("::1", true),
            ("fd12::1", false),
            ("1.1.1.1", true),
            ("34.118.224.1", true),
            ("64:ff9b::34.118.224.1", true),
            ("2606:4700::1", true),
            ("2606:4700::2", false),
            ("192.168.0.1", true),
        ] {
            assert_eq!(policy.judge(ip(address)).is_err(), denied, "{address}");
        }
    }

    #[test]
    fn ranges_may_be_written_as_mapped_addresses_or_with_host_bits() {
        let policy = Policy::new(
            nets(&["::ffff:10.0.0.0/104", "192.168.7.7/16"]),
            nets(&["::ffff:8.8.8.8/128", "64:ff9b::/96"]),
        );
        for (address, denied) in [
            ("10.9.9.9", false),
            ("192.168.0.1", false),
            ("8.8.8.8", true),
            ("9.9.9.9", false),
            ("64:ff9b::9.9.9.9", true),
        ] {
            assert_eq!(policy.judge(ip(address)).is_err(), denied, "{address}");
        }
    }

    #[test]
    fn what_the_remedy_says_opens_the_address() {
        let base = || Policy::new(nets(&["1.1.1.1/32", "169.254.0.0/16"]), nets(&["1.1.1.0/24"]));
        for (address, remedy) in [
            ("10.1.2.3", "allow it (--allow-cidr 10.1.2.3/32) or its range"),
            ("::1", "allow it (--allow-cidr ::1/128) or its range"),
            ("4000::1", "allow it (--allow-cidr 4000::1/128) or its range"),
            ("2606:4700::5efe:808:808", "allow it (--allow-cidr 2606:4700::5efe:808:808/128) or its range"),
            ("8.8.8.8", "allow it (--allow-cidr 8.8.8.8/32) or its range"),
            (
                "169.254.169.254",
                "allow exactly this address (--allow-cidr 169.254.169.254/32): no wider range opens it",
            ),
            (
                "64:ff9b::169.254.169.254",
                "allow exactly this address (--allow-cidr 169.254.169.254/32): no wider range opens it",
            ),
            (
                "fd00:ec2::254",
                "allow exactly this address (--allow-cidr fd00:ec2::254/128): no wider range opens it",
            ),
            ("1.1.1.1", "take 1.1.1.0/24 out of --deny-cidr, which wins over --allow-cidr"),
        ] {
            let denied = base().with_cluster([ip("8.8.8.8")]).judge(ip(address)).unwrap_err();
            assert_eq!(denied.remedy(), remedy, "{address}");
            let opened = match remedy.split_once("--allow-cidr ") {
                Some((_, rest)) if rest.contains('/') => {
                    let net = rest.split([')', ' ']).next().unwrap();
                    Policy::new(nets(&[net, "169.254.0.0/16"]), nets(&["1.1.1.0/24"]))
                        .with_cluster([ip("8.8.8.8")])
                }
                _ => Policy::new(nets(&["1.1.1.1/32"]), []),
            };
            assert_eq!(opened.judge(ip(address)), Ok(()), "{address}");
        }
    }

    #[test]
    fn the_sentence_names_the_address_and_the_rule() {
        let policy = Policy::new([], nets(&["1.1.1.0/24"])).with_cluster([ip("8.8.8.8")]);
        for (address, sentence) in [
            (
                "::ffff:10.0.0.1",
                "address ::ffff:10.0.0.1 is in 10.0.0.0/8 (private), which deliveries may not reach",
            ),
            ("169.254.169.254", "address 169.254.169.254 is a cloud's metadata service"),
            ("1.1.1.1", "address 1.1.1.1 is in 1.1.1.0/24, which --deny-cidr denies"),
            ("8.8.8.8", "address 8.8.8.8 is in 8.8.8.8/32, which belongs to the cluster"),
            ("4000::1", "address 4000::1 is outside 2000::/3, which deliveries may not reach"),
        ] {
            assert_eq!(policy.judge(ip(address)).unwrap_err().to_string(), sentence);
        }
    }
}
