//! A URL that was judged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::Url;

use super::address::{Denied, Policy};

/// Longest URL, in bytes.
pub const MAX_URL: usize = 2048;

/// Longest host name, in bytes (RFC 1035, without the final dot).
const MAX_NAME: usize = 253;

/// Why a URL is no target. Never says any part of the URL: it may hold a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another scheme, or none.
    #[error("spec.url must start with https:// in lower case")]
    NotHttps,
    /// Longer than [`MAX_URL`].
    #[error("spec.url must have at most 2048 bytes")]
    TooLong,
    /// `user:password@`.
    #[error("spec.url must not hold a user or password; send an Authorization header from a Secret")]
    Userinfo,
    /// Neither of the accepted forms.
    #[error(
        "the host of spec.url must be a lower-case DNS name with a dot (punycode for other letters), an IPv4 \
         address of four decimal numbers, or an IPv6 address in brackets"
    )]
    Host,
    /// A name longer than DNS allows.
    #[error("the host of spec.url must have at most 253 bytes")]
    HostTooLong,
    /// `xn--…` that does not decode.
    #[error("the host of spec.url is not valid punycode")]
    Punycode,
    /// Not 1 to 65535.
    #[error("the port of spec.url must be a number from 1 to 65535 without leading zeros")]
    Port,
    /// A character that must be percent-encoded, a broken escape, or a fragment.
    #[error(
        "path and query of spec.url must be ASCII, percent-encoded where URLs ask for it, without a fragment"
    )]
    PathOrQuery,
}

/// Host of a [`Target`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A lower-case DNS name with at least one dot and none at the end.
    Name(Box<str>),
    /// A literal address, which no resolver ever sees.
    Address(IpAddr),
}

/// Where a delivery goes: an `https` URL with a host that can be sent to. Made by parsing only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    url: Url,
    host: Host,
    port: u16,
}

impl Target {
    /// Takes the forms about whose host no two parsers disagree, which are those that the CRD admits, and
    /// refuses all others.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let rest = text.strip_prefix("https://").ok_or(Error::NotHttps)?;
        if text.len() > MAX_URL {
            return Err(Error::TooLong);
        }
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(Error::Userinfo);
        }
        check_tail(tail)?;
        let (host, port) = split_port(authority)?;
        let host = parse_host(host)?;
        let port = port.map_or(Ok(443), parse_port)?;
        // The parser that the client uses has the last word, and must have read the same host.
        let url = Url::parse(text).map_err(|_| Error::Punycode)?;
        if !agrees(&url, &host, port) {
            return Err(Error::Host);
        }
        Ok(Self { url, host, port })
    }

    /// The URL as it is requested.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port; 443 when the URL has none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, when the host is a literal.
    pub fn literal(&self) -> Option<IpAddr> {
        match &self.host {
            Host::Address(address) => Some(*address),
            Host::Name(_) => None,
        }
    }

    /// Judges what can be judged without a resolver: literals, and names under `localhost`, which are this
    /// machine (RFC 6761). Other names are judged by each address they resolve to.
    pub fn judge(&self, policy: &Policy) -> Result<(), Denied> {
        match &self.host {
            Host::Address(address) => policy.judge(*address),
            Host::Name(name) if is_localhost(name) => {
                let [v4, v6] = LOCALHOST.map(|address| policy.judge(address));
                v4.or_else(|denied| v6.map_err(|_| denied))
            }
            Host::Name(_) => Ok(()),
        }
    }
}

/// What names under `localhost` resolve to.
pub const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Whether a name is `localhost` or under it.
pub fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let Some(at) = name.len().checked_sub("localhost".len()) else { return false };
    name.get(at..).is_some_and(|end| end.eq_ignore_ascii_case("localhost"))
        && name.get(..at).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), Error> {
    let end = if authority.starts_with('[') {
        authority.find(']').ok_or(Error::Host)? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, rest) = authority.split_at(end);
    match rest.strip_prefix(':') {
        Some(port) => Ok((host, Some(port))),
        None if rest.is_empty() => Ok((host, None)),
        None => Err(Error::Host),
    }
}

fn parse_port(text: &str) -> Result<u16, Error> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain).ok_or(Error::Port)
}

fn parse_host(text: &str) -> Result<Host, Error> {
    if let Some(literal) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let plain = literal.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b':'));
        let address = literal.parse::<Ipv6Addr>().ok().filter(|_| plain).ok_or(Error::Host)?;
        return Ok(Host::Address(address.into()));
    }
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(Host::Address(address.into()));
    }
    let labels = || text.split('.');
    // A last label that starts with a letter is never taken for a number of an IPv4 address.
    let is_name = labels().count() >= 2
        && labels().all(is_label)
        && labels()
            .next_back()
            .is_some_and(|last| last.starts_with(|first: char| first.is_ascii_lowercase()));
    match is_name {
        true if text.len() > MAX_NAME => Err(Error::HostTooLong),
        true => Ok(Host::Name(text.into())),
        false => Err(Error::Host),
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn check_tail(tail: &str) -> Result<(), Error> {
    if !(tail.is_empty() || tail.starts_with(['/', '?'])) {
        return Err(Error::PathOrQuery);
    }
    let mut bytes = tail.bytes();
    while let Some(byte) = bytes.next() {
        let allowed = match byte {
            b'%' => (0..2).all(|_| bytes.next().is_some_and(|digit| digit.is_ascii_hexdigit())),
            other => other.is_ascii_alphanumeric() || b"._~!$&'()*+,;=:@/-?".contains(&other),
        };
        if !allowed {
            return Err(Error::PathOrQuery);
        }
    }
    Ok(())
}

fn agrees(url: &Url, host: &Host, port: u16) -> bool {
    let same_host = match (url.host(), host) {
        (Some(url::Host::Domain(read)), Host::Name(name)) => read == &**name,
        (Some(url::Host::Ipv4(read)), Host::Address(IpAddr::V4(address))) => read == *address,
        (Some(url::Host::Ipv6(read)), Host::Address(IpAddr::V6(address))) => read == *address,
        _ => false,
    };
    same_host
        && url.scheme() == "https"
        && url.username().is_empty()
        && url.password().is_none()
        && url.port_or_known_default() == Some(port)
        && http::Uri::try_from(url.as_str()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(String, u16), Error> {
        let target = Target::parse(text)?;
        assert_eq!(target.url().port_or_known_default(), Some(target.port()));
        let host = match target.host() {
            Host::Name(name) => name.to_string(),
            Host::Address(address) => address.to_string(),
        };
        Ok((host, target.port()))
    }

    #[test]
    fn a_name_or_a_literal_with_port_path_and_query_is_a_target() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}.com", "b".repeat(57));
        assert_eq!(longest.len(), 253);
        for (url, host, port) in [
            ("https://hooks.example.com", "hooks.example.com", 443),
            ("https://hooks.example.com/", "hooks.example.com", 443),
            ("https://hooks.example.com:8443/a/b?c=d&e=%20", "hooks.example.com", 8443),
            ("https://hooks.example.com:443?x", "hooks.example.com", 443),
            ("https://e.xn--p1ai/@user:x;y,~!$'()*+=", "e.xn--p1ai", 443),
            ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443),
            ("https://a-b.1c.d/", "a-b.1c.d", 443),
            ("https://x.localhost:1/", "x.localhost", 1),
            ("https://kubernetes.default.svc/", "kubernetes.default.svc", 443),
            ("https://127.0.0.1.nip.io/", "127.0.0.1.nip.io", 443),
            ("https://127.0.0.1:65535/", "127.0.0.1", 65535),
            ("https://0.0.0.0/", "0.0.0.0", 443),
            ("https://[::1]/", "::1", 443),
            ("https://[::ffff:7f00:1]:8443/", "::ffff:127.0.0.1", 8443),
            ("https://[2606:4700:0:0:0:0:0:1]/", "2606:4700::1", 443),
            (&format!("https://{longest}/"), &longest, 443),
        ] {
            assert_eq!(parse(url), Ok((host.to_owned(), port)), "{url}");
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn every_spelling_that_parsers_read_differently_is_refused() {
        for (error, urls) in [
            (
                Error::NotHttps,
                &[
                    "",
                    "http://example.com/",
                    "HTTPS://example.com/",
                    "ftp://example.com/",
                    "//example.com/",
                    "/path",
                    "*",
                    "https:127.0.0.1",
                    "https:/127.0.0.1/",
                    "https:\\\\127.0.0.1\\",
                    "https:example.com",
                    " https://example.com/",
                    "\0https://example.com/",
                    "ht\ttps://example.com/",
                    "\u{feff}https://example.com/",
                    "https",
                ][..],
            ),
            (
                Error::Userinfo,
                &[
                    "https://good@127.0.0.1/",
                    "https://good.com:443@127.0.0.1/",
                    "https://a@b@127.0.0.1/",
                    "https://good.com%23@127.0.0.1/",
                    "https://@127.0.0.1/",
                    "https://:@127.0.0.1/",
                    "https://a:b@example.com/",
                    "https://@/",
                    "https://a@[::1]/",
                ],
            ),
            (
                Error::PathOrQuery,
                &[
                    "https://127.0.0.1\\@good.com/",
                    "https://good.com#@127.0.0.1/",
                    "https://example.com/#x",
                    "https://example.com/a b",
                    "https://example.com/\t",
                    "https://example.com/%",
                    "https://example.com/%4",
                    "https://example.com/%zz",
                    "https://example.com/é",
                    "https://example.com/ ",
                    "https://example.com/\n",
                    "https://example.com/a\\b",
                    "https://example.com/?a={b}",
                    "https://example.com/?a=\"",
                    "https://example.com/\0",
                    "https://example.com/[",
                ],
            ),
            (
                Error::Port,
                &[
                    "https://example.com:/",
                    "https://example.com:0443/",
                    "https://example.com:0/",
                    "https://example.com:65536/",
                    "https://example.com:99999/",
                    "https://example.com:+443/",
                    "https://example.com:-1/",
                    "https://example.com:4 43/",
                    "https://example.com:x/",
                    "https://example.com:443:443/",
                    "https://127.0.0.1:/",
                    "https://[::1]:/",
                ],
            ),
            (Error::Punycode, &["https://xn--a.com/", "https://a.xn--a/"]),
            (
                Error::Host,
                &[
                    // Other ways to write an IPv4 address, and numbers that are none.
                    "https://2130706433/",
                    "https://0x7f000001/",
                    "https://017700000001/",
                    "https://0177.0.0.1/",
                    "https://0x7f.0.0.1/",
                    "https://127.1/",
                    "https://127.0.1/",
                    "https://127.0.0.01/",
                    "https://127/",
                    "https://0/",
                    "https://0x/",
                    "https://4294967296/",
                    "https://256.0.0.1/",
                    "https://1.2.3.4.5/",
                    "https://08.0.0.1/",
                    "https://foo.1/",
                    "https://foo.0x7f/",
                    "https://127.0.0.1./",
                    "https://127.0.0.1../",
                    // Other letters.
                    "https://１２７.0.0.1/",
                    "https://127。0．0｡1/",
                    "https://①②⑦.0.0.1/",
                    "https://%31%32%37.0.0.1/",
                    "https://127%2e0.0.1/",
                    "https://%6c%6fcalhost/",
                    "https://ex%41mple.com/",
                    "https://Ⓛocalhost/",
                    "https://loc\u{ad}alhost/",
                    "https://loca\u{200b}lhost.com/",
                    "https://bücher.example/",
                    "https://XN--BCHER-KVA.example/",
                    "https://Example.com/",
                    "https://a_b.com/",
                    "https://a*b.com/",
                    "https://a;b.com/",
                    "https://a{b}.com/",
                    "https://a\"b.com/",
                    "https://exam ple.com/",
                    "https://exam\tple.com/",
                    // Labels.
                    "https://-a.com/",
                    "https://xn--.com/",
                    "https://xn--a-.com/",
                    "https://a-.com/",
                    "https://example..com/",
                    "https://.example.com/",
                    "https://./",
                    "https://example.com./",
                    "https://localhost/",
                    "https://localhost./",
                    "https://kubernetes/",
                    "https://metadata/",
                    "https://a.b.1c/",
                    // Brackets.
                    "https://[fe80::1%25eth0]/",
                    "https://[::ffff:127.1]/",
                    "https://[::ffff:0177.0.0.1]/",
                    "https://[::1]x/",
                    "https://[]/",
                    "https://[127.0.0.1]/",
                    "https://[v1.a]/",
                    "https://[00000::1]/",
                    "https://[::1",
                    "https://::1/",
                    "https://[::FFFF:7F00:1]/",
                    "https://[::ffff:127.0.0.1]/",
                    "https://[::1]]/",
                    // No host.
                    "https://",
                    "https:///",
                    "https:///127.0.0.1/",
                    "https://:443/",
                    "https://?x",
                ],
            ),
        ] {
            for url in urls {
                assert_eq!(parse(url), Err(error), "{url:?}");
            }
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let label = |letter: &str, length: usize| letter.repeat(length);
        assert_eq!(parse(&format!("https://{}.com/", label("a", 64))), Err(Error::Host));
        let long = [label("a", 63), label("b", 63), label("c", 63), label("d", 58)].join(".") + ".com";
        assert_eq!(parse(&format!("https://{long}/")), Err(Error::HostTooLong));
        let fits = format!("https://example.com/{}", label("p", MAX_URL - 20));
        assert!(parse(&fits).is_ok());
        assert_eq!(parse(&(fits + "p")), Err(Error::TooLong));
    }

    #[test]
    fn literals_and_localhost_are_judged_without_a_resolver() {
        let (closed, open) = (Policy::default(), Policy::new(["127.0.0.0/8".parse().unwrap()], []));
        for (url, literal, by_default, with_loopback) in [
            ("https://127.0.0.1/", true, false, true),
            ("https://[::ffff:7f00:1]/", true, false, true),
            ("https://[::1]/", true, false, false),
            ("https://10.0.0.1/", true, false, false),
            ("https://8.8.8.8/", true, true, true),
            ("https://x.localhost/", false, false, true),
            ("https://x.localhost.example.com/", false, true, true),
            ("https://xlocalhost.com/", false, true, true),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!(target.literal().is_some(), literal, "{url}");
            assert_eq!(target.judge(&closed).is_ok(), by_default, "{url}");
            assert_eq!(target.judge(&open).is_ok(), with_loopback, "{url}");
        }
        for (name, local) in
            [("localhost", true), ("LOCALHOST.", true), ("a.b.localhost", true), ("notlocalhost", false)]
        {
            assert_eq!(is_localhost(name), local, "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_what_is_accepted_has_the_host_that_was_read(
            text in "https://[a-z0-9.:@%\\[\\]/?#\\\\é-]{0,40}",
        ) {
            if let Ok(target) = Target::parse(&text) {
                let authority = text["https://".len()..].split(['/', '?']).next().unwrap();
                let written = target.url().host_str().unwrap();
                let same = authority.starts_with(written) || target.literal().is_some_and(|ip| ip.is_ipv6());
                proptest::prop_assert!(same, "{text}");
            }
        }
    }
}
