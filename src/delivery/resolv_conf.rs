//! What `/etc/resolv.conf` says, as libc reads it: a line or a word that is not understood is passed over and stops
//! nothing. Search domains mean nothing here, since names are taken as absolute. Pure.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Name servers that are asked; libc asks no more either.
const MOST: usize = 3;

/// What matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    /// To be asked, in this order, at most three.
    pub(super) servers: Vec<IpAddr>,
    /// Named, and not asked: beyond the third, or in the zone of one interface (`fe80::1%eth0`).
    pub(super) unasked: Vec<IpAddr>,
    /// Whether a name server is named in a way that is not understood.
    pub(super) passed_over: bool,
    /// For one query, at most 30 seconds.
    pub(super) timeout: Duration,
    /// Rounds over the servers, at most 5.
    pub(super) attempts: usize,
    /// Whether queries have the extension EDNS.
    pub(super) edns0: bool,
}

impl Default for ResolvConf {
    fn default() -> Self {
        let (timeout, attempts) = (Duration::from_secs(5), 2);
        Self { servers: Vec::new(), unasked: Vec::new(), passed_over: false, timeout, attempts, edns0: false }
    }
}

impl ResolvConf {
    /// Reads a file's bytes. Never fails: whether there is a server at all is for the caller to judge.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut conf = Self::default();
        for line in text.trim_start_matches('\u{feff}').split(['\n', '\r']) {
            let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
            match words.next() {
                Some("nameserver") => conf.server(words.next()),
                Some("options") => words.for_each(|word| conf.option(word)),
                _ => {}
            }
        }
        conf
    }

    /// Every name server that is named.
    pub(super) fn named(&self) -> impl Iterator<Item = IpAddr> {
        self.servers.iter().chain(&self.unasked).copied()
    }

    fn server(&mut self, word: Option<&str>) {
        let Some(word) = word else { return };
        let zoned = word.split_once('%').and_then(|(address, _)| address.parse::<Ipv6Addr>().ok());
        match (word.parse::<IpAddr>(), zoned) {
            (Ok(address), _) if self.named().any(|known| known == address) => {}
            (Ok(address), _) if self.servers.len() < MOST => self.servers.push(address),
            (Ok(address), _) => self.unasked.push(address),
            (Err(_), Some(address)) => self.unasked.push(address.into()),
            (Err(_), None) => self.passed_over = true,
        }
    }

    fn option(&mut self, word: &str) {
        let number = |most: u64| {
            let (_, number) = word.split_once(':')?;
            // As C's atoi reads it: digits, whatever follows.
            let digits = number.find(|each: char| !each.is_ascii_digit()).unwrap_or(number.len());
            let number = number.get(..digits).filter(|digits| !digits.is_empty())?;
            Some(number.parse::<u64>().unwrap_or(most).clamp(1, most))
        };
        match word.split(':').next() {
            Some("timeout") => self.timeout = number(30).map_or(self.timeout, Duration::from_secs),
            Some("attempts") => {
                self.attempts = number(5).and_then(|it| it.try_into().ok()).unwrap_or(self.attempts);
            }
            Some("edns0") => self.edns0 = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn servers(text: &str) -> Vec<String> {
        ResolvConf::parse(text.as_bytes()).servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn files_of_real_machines_name_their_servers() {
        for (of, text, expected) in [
            (
                "a pod",
                "search team-a.svc.cluster.local svc.cluster.local cluster.local\n\
                 nameserver 10.96.0.10\noptions ndots:5\n",
                &["10.96.0.10"][..],
            ),
            (
                "a pod with a bad search domain",
                "search -bad.example\nnameserver 10.96.0.10\n",
                &["10.96.0.10"],
            ),
            (
                "search domains that are no names",
                "search . .. a..b _x.example \u{fc}.example 'q' -- $DOMAIN *.example 300.300.300.300\n\
                 nameserver 10.96.0.10\n",
                &["10.96.0.10"],
            ),
            (
                "an endless search list",
                &format!("search {}\nnameserver 10.0.0.1", "a.example ".repeat(9999)),
                &["10.0.0.1"],
            ),
            (
                "a domain and no value",
                "domain\nsearch\nsortlist\noptions\nnameserver 10.0.0.1\n",
                &["10.0.0.1"],
            ),
            (
                "systemd-resolved",
                "# This is /run/systemd/resolve/stub-resolv.conf managed by man:systemd-resolved(8).\n\
                 # Do not edit.\n\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n",
                &["127.0.0.53"],
            ),
            (
                "NetworkManager",
                "# Generated by NetworkManager\nsearch lan\nnameserver 192.168.1.1\nnameserver fe80::1%wlan0\n",
                &["192.168.1.1"],
            ),
            (
                "Docker",
                "nameserver 127.0.0.11\nsearch example.com\noptions edns0 trust-ad ndots:0\n\n\
                 # Based on host file: '/etc/resolv.conf' (internal resolver)\n# ExtServers: [host(10.0.0.2)]\n",
                &["127.0.0.11"],
            ),
            (
                "WSL",
                "# [network]\r\n# generateResolvConf = false\r\nnameserver 172.22.0.1\r\n",
                &["172.22.0.1"],
            ),
            ("old Mac ends", "search a\rnameserver 10.0.0.1\r", &["10.0.0.1"]),
            (
                "macOS",
                "#\n# macOS Notice\n#\nsearch home\nnameserver 2001:db8::1\nnameserver 192.168.0.1\n",
                &["2001:db8::1", "192.168.0.1"],
            ),
            (
                "OpenBSD",
                "lookup file bind\nnameserver 10.0.0.1 # resolvd: em0\nfamily inet6 inet4\n",
                &["10.0.0.1"],
            ),
            (
                "comments",
                "; nameserver 10.0.0.9\n#nameserver 10.0.0.8\nnameserver 10.0.0.1 ; of eth0\n",
                &["10.0.0.1"],
            ),
            (
                "tabs and blanks",
                "nameserver\t\t10.0.0.1  \n  nameserver 10.0.0.2\n",
                &["10.0.0.1", "10.0.0.2"],
            ),
            ("no end of line", "nameserver 10.0.0.1", &["10.0.0.1"]),
            ("a byte order mark", "\u{feff}nameserver 10.0.0.1\n", &["10.0.0.1"]),
            (
                "too many servers",
                "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n",
                &["10.0.0.1", "10.0.0.2", "10.0.0.3"],
            ),
            ("one server twice", "nameserver 10.0.0.1\nnameserver 10.0.0.1\n", &["10.0.0.1"]),
            ("two servers in a line", "nameserver 10.0.0.1 10.0.0.2\n", &["10.0.0.1"]),
            ("a name as a server", "nameserver dns.example\nnameserver 10.0.0.1\n", &["10.0.0.1"]),
            ("a port", "nameserver 10.0.0.1:5353\nnameserver [::1]:53\nnameserver ::1\n", &["::1"]),
            ("another case", "NAMESERVER 10.0.0.9\nnameservers 10.0.0.8\nnameserver=10.0.0.7\n", &[]),
            ("an address too many digits", "nameserver 10.0.0.256\nnameserver 010.0.0.1\n", &[]),
            ("nothing", "", &[]),
            ("no server", "search example.com\noptions rotate\n", &[]),
        ] {
            assert_eq!(servers(text), expected, "{of}");
        }
        let mut latin1 = b"search caf\xe9.example\nnameserver 10.0.0.1\n\0\xff\xfe".to_vec();
        assert_eq!(ResolvConf::parse(&latin1).servers.len(), 1);
        latin1.clear();
        assert_eq!(ResolvConf::parse(&latin1), ResolvConf::default());
    }

    #[test]
    fn options_are_read_as_libc_does_and_unknown_ones_mean_nothing() {
        let of = |options: &str| {
            let conf = ResolvConf::parse(format!("options {options}\n").as_bytes());
            (conf.timeout.as_secs(), conf.attempts, conf.edns0)
        };
        for (options, expected) in [
            ("", (5, 2, false)),
            ("timeout:1 attempts:4 edns0", (1, 4, true)),
            ("timeout:99 attempts:99", (30, 5, false)),
            ("timeout:0 attempts:0", (1, 1, false)),
            ("timeout: attempts:x timeout attempts", (5, 2, false)),
            ("timeout:3x attempts:-1", (3, 2, false)),
            ("timeout:99999999999999999999", (30, 2, false)),
            (
                "ndots:5 rotate use-vc inet6 no-tld-query single-request-reopen trust-ad no-aaaa debug nope:x:y :",
                (5, 2, false),
            ),
        ] {
            assert_eq!(of(options), expected, "{options:?}");
        }
    }

    #[test]
    fn a_server_that_is_not_asked_is_named_all_the_same() {
        let text = "nameserver fe80::1%eth0\nnameserver fe80::2%3\nnameserver 10.0.0.1\n\
                    nameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\nnameserver x%eth0\n";
        let conf = ResolvConf::parse(text.as_bytes());
        let unasked: Vec<_> = conf.unasked.iter().map(ToString::to_string).collect();
        assert_eq!(unasked, ["fe80::1", "fe80::2", "10.0.0.4"]);
        assert_eq!((conf.servers.len(), conf.named().count(), conf.passed_over), (3, 6, true));
    }

    proptest! {
        #[test]
        fn no_line_keeps_another_from_being_read(
            lines in proptest::collection::vec("[^\\n\\r]{0,40}", 0..6),
            at in 0..6_usize,
        ) {
            let is_server = |line: &String| line.trim_start_matches('\u{feff}').split([' ', '\t']).any(|word| word == "nameserver");
            prop_assume!(!lines.iter().any(is_server));
            let mut lines = lines;
            lines.insert(at.min(lines.len()), "nameserver 10.0.0.1".to_owned());
            prop_assert_eq!(servers(&lines.join("\n")), ["10.0.0.1"]);
        }
    }
}
