//! Which proxy leads to the Kubernetes API: the one of the kubeconfig, else the environment's, by the rules of Go's
//! programs (kubectl among them) and curl. Pure.

use std::net::IpAddr;

use http::Uri;
use ipnet::IpNet;

/// Why a proxy cannot be used. None of these repeats its URL, which may have a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "{0} is not the URL of a proxy: write http://HOST:PORT, with what is special in a password as %40"
    )]
    NotAUrl(&'static str),
    #[error("{0} must begin with http://, https:// or socks5://")]
    Scheme(&'static str),
    #[error("{0} has a name and password for a SOCKS proxy, which is not supported: use an http:// proxy")]
    SocksPassword(&'static str),
}

/// The proxy to use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) url: Uri,
    /// Where it was found.
    pub(super) named_by: &'static str,
}

/// What the environment says of proxies: each variable by its name, in capitals or not, with its value.
#[derive(Default)]
pub(super) struct Environment(Vec<(&'static str, String)>);

/// In capitals first, as Go has it.
const VARIABLES: [&str; 8] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

impl Environment {
    pub(super) fn of_process() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let set = VARIABLES.into_iter().filter_map(|name| Some((name, get(name)?.trim().to_owned())));
        Self(set.filter(|(_, value)| !value.is_empty()).collect())
    }

    fn first(&self, name: &str) -> Option<(&'static str, &str)> {
        let found = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(name, value)| (*name, value.as_str()))
    }
}

/// The proxy by which this URL is asked: the one that the kubeconfig names, wherever the URL leads; else the
/// environment's, unless `NO_PROXY` or loopback says otherwise.
pub(super) fn proxy(
    url: &Uri,
    named: Option<&str>,
    environment: &Environment,
) -> Result<Option<Used>, Error> {
    if let Some(named) = named {
        return parse("the proxy-url of the kubeconfig's cluster", named).map(Some);
    }
    let own = if url.scheme_str() == Some("http") { "HTTP_PROXY" } else { "HTTPS_PROXY" };
    let Some((name, value)) = environment.first(own).or_else(|| environment.first("ALL_PROXY")) else {
        return Ok(None);
    };
    if is_direct(url, environment.first("NO_PROXY").map_or("", |(_, list)| list)) {
        return Ok(None);
    }
    parse(name, value).map(Some)
}

fn parse(named_by: &'static str, value: &str) -> Result<Used, Error> {
    // Without a scheme, it is one of HTTP.
    let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
    let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
        "http" => ("http", 80),
        "https" => ("https", 443),
        // Names are resolved at the proxy in either case.
        "socks5" | "socks5h" => ("socks5", 1080),
        _ => return Err(Error::Scheme(named_by)),
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let url: Uri = format!("{scheme}://{authority}").parse().map_err(|_| Error::NotAUrl(named_by))?;
    let host = url.host().filter(|host| !host.is_empty()).ok_or(Error::NotAUrl(named_by))?;
    // What would be taken for a host, or be cut off, may be the end of a password.
    if rest.contains('@') != authority.contains('@') || host.contains(':') && !host.starts_with('[') {
        return Err(Error::NotAUrl(named_by));
    }
    if scheme == "socks5" && authority.contains('@') {
        return Err(Error::SocksPassword(named_by));
    }
    let url = if url.port().is_some() {
        url
    } else {
        format!("{scheme}://{authority}:{default_port}").parse().map_err(|_| Error::NotAUrl(named_by))?
    };
    Ok(Used { url, named_by })
}

/// Whether a URL is asked without a proxy. An entry that is not understood means nothing.
fn is_direct(url: &Uri, no_proxy: &str) -> bool {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || address.is_some_and(|address| address.to_canonical().is_loopback()) {
        return true;
    }
    let default_port = if url.scheme_str() == Some("http") { 80 } else { 443 };
    let port = url.port_u16().unwrap_or(default_port);
    let mut entries = no_proxy.split([',', ' ', '\t', '\n', ';']).filter(|entry| !entry.is_empty());
    entries.any(|entry| entry == "*" || is_meant(entry, &host, address, port))
}

/// Whether an entry of `NO_PROXY` means this host: a range, an address or a domain, each maybe with a port; a domain
/// stands for all below it, too, and alone for those with a dot before it.
fn is_meant(entry: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    let of_address = |text: &str| text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    let address = address.map(|address| address.to_canonical());
    if let Ok(range) = entry.parse::<IpNet>() {
        return address.is_some_and(|address| range.contains(&address));
    }
    if let Some(meant) = of_address(entry.trim_start_matches('[').trim_end_matches(']')) {
        return address == Some(meant);
    }
    let (name, wanted) = match entry.rsplit_once(':') {
        Some((name, number)) => (name, number.parse::<u16>().ok()),
        None => (entry, None),
    };
    if entry.contains(':') && wanted != Some(port) {
        return false;
    }
    let name = name.trim_start_matches('[').trim_end_matches(']');
    if let Some(meant) = of_address(name) {
        return address == Some(meant);
    }
    let name = name.strip_prefix('*').unwrap_or(name).trim_end_matches('.').to_ascii_lowercase();
    if address.is_some() || name.trim_matches('.').is_empty() {
        return false;
    }
    match name.strip_prefix('.') {
        Some(domain) => host.strip_suffix(domain).is_some_and(|before| before.ends_with('.')),
        None => host == name || host.strip_suffix(name.as_str()).is_some_and(|before| before.ends_with('.')),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment(set: &[(&str, &str)]) -> Environment {
        Environment::read(|name| set.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned()))
    }

    fn used(url: &'static str, named: Option<&str>, set: &[(&str, &str)]) -> Result<Option<String>, Error> {
        let used = proxy(&Uri::from_static(url), named, &environment(set));
        used.map(|used| used.map(|used| format!("{} by {}", used.url, used.named_by)))
    }

    #[test]
    fn the_environment_is_read_as_go_and_curl_do() {
        const API: &str = "https://10.96.0.1:443";
        for (set, expected) in [
            (&[][..], None),
            (&[("HTTPS_PROXY", "http://p:3128")][..], Some("http://p:3128/ by HTTPS_PROXY")),
            (&[("https_proxy", "http://p:3128")], Some("http://p:3128/ by https_proxy")),
            (
                &[("HTTPS_PROXY", "http://a:1"), ("https_proxy", "http://b:1")],
                Some("http://a:1/ by HTTPS_PROXY"),
            ),
            (&[("HTTPS_PROXY", ""), ("https_proxy", "http://b:1")], Some("http://b:1/ by https_proxy")),
            (&[("ALL_PROXY", "socks5h://p")], Some("socks5://p:1080/ by ALL_PROXY")),
            (&[("all_proxy", "p:3128")], Some("http://p:3128/ by all_proxy")),
            (&[("ALL_PROXY", "a:1"), ("https_proxy", "b:1")], Some("http://b:1/ by https_proxy")),
            (&[("HTTP_PROXY", "http://p:3128")], None),
            (&[("HTTPS_PROXY", "p")], Some("http://p:80/ by HTTPS_PROXY")),
            (&[("HTTPS_PROXY", "HTTPS://p/path?q")], Some("https://p:443/ by HTTPS_PROXY")),
            (&[("HTTPS_PROXY", "http://[::1]:3128")], Some("http://[::1]:3128/ by HTTPS_PROXY")),
            (&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", "10.96.0.0/12")], None),
            (&[("HTTPS_PROXY", "http://p:1"), ("no_proxy", " , 10.96.0.1 ,")], None),
            (&[("HTTPS_PROXY", "not a proxy"), ("NO_PROXY", "*")], None),
        ] {
            assert_eq!(used(API, None, set).unwrap().as_deref(), expected, "{set:?}");
        }
        let plain = &[("HTTP_PROXY", "a:1"), ("HTTPS_PROXY", "b:1")];
        assert_eq!(used("http://api:80", None, plain).unwrap().as_deref(), Some("http://a:1/ by HTTP_PROXY"));
    }

    #[test]
    fn the_kubeconfigs_proxy_wins_wherever_it_leads() {
        let set = &[("HTTPS_PROXY", "http://other:1"), ("NO_PROXY", "*")];
        let used = used("https://127.0.0.1:6443", Some("http://user:pw@p:3128"), set).unwrap().unwrap();
        assert!(used.starts_with("http://user:pw@p:3128/ by the proxy-url"), "{used}");
    }

    #[test]
    fn no_proxy_means_hosts_domains_ranges_and_ports() {
        for (host, list, direct) in [
            ("https://127.0.0.1:6443", "", true),
            ("https://[::1]:6443", "", true),
            ("https://localhost:6443", "", true),
            ("https://api.example.com", "", false),
            ("https://api.example.com", "*", true),
            ("https://api.example.com", "example.com", true),
            ("https://api.example.com", ".example.com", true),
            ("https://api.example.com", "*.example.com", true),
            ("https://api.example.com", "EXAMPLE.com.", true),
            ("https://API.example.com.", "api.example.com", true),
            ("https://example.com", "example.com", true),
            ("https://example.com", ".example.com", false),
            ("https://badexample.com", "example.com", false),
            ("https://badexample.com", ".example.com", false),
            ("https://api.example.com:6443", "example.com:6443", true),
            ("https://api.example.com:6443", "example.com:443", false),
            ("https://api.example.com", "example.com:443", true),
            ("https://api.example.com", "a.test, ,,api.example.com", true),
            ("https://api.example.com", "a.test api.example.com", true),
            ("https://kubernetes.default.svc", ".svc,.cluster.local", true),
            ("https://10.96.0.1", "10.96.0.0/12", true),
            ("https://10.96.0.1", "10.96.0.1", true),
            ("https://10.96.0.1:6443", "10.96.0.1:6443", true),
            ("https://10.96.0.1:6443", "10.96.0.1:443", false),
            ("https://10.96.0.1", "10.96.0.10,10.97.0.0/16", false),
            ("https://10.96.0.1", "0.1", false),
            ("https://10.96.0.1", ".1", false),
            ("https://[fd00::1]:6443", "fd00::/8", true),
            ("https://[fd00::1]:6443", "fd00::1", true),
            ("https://[fd00::1]:6443", "[fd00::1]:6443", true),
            ("https://[fd00::1]:6443", "fd00::2", false),
            ("https://api.example.com", "10.0.0.0/99,:,.,*.,[,http://api.example.com,%", false),
        ] {
            let set = &[("HTTPS_PROXY", "http://p:3128"), ("NO_PROXY", list)];
            assert_eq!(used(host, None, set).unwrap().is_none(), direct, "{host} with {list:?}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_said_by_the_name_of_what_says_it() {
        for (value, expected) in [
            ("http://", Error::NotAUrl("HTTPS_PROXY")),
            ("http://user:can ary@p", Error::NotAUrl("HTTPS_PROXY")),
            ("http://user:can/ary@p", Error::NotAUrl("HTTPS_PROXY")),
            ("http://user:can#ary@p", Error::NotAUrl("HTTPS_PROXY")),
            ("http://p:canary", Error::NotAUrl("HTTPS_PROXY")),
            ("ftp://user:canary@p", Error::Scheme("HTTPS_PROXY")),
            ("socks4://p", Error::Scheme("HTTPS_PROXY")),
            ("socks5://user:canary@p", Error::SocksPassword("HTTPS_PROXY")),
        ] {
            let error = used("https://a.example", None, &[("HTTPS_PROXY", value)]).unwrap_err();
            assert_eq!(error, expected, "{value}");
            assert!(!error.to_string().contains("canary"));
        }
    }

    proptest! {
        #[test]
        fn whatever_the_variables_say_nothing_panics_or_leaks(value in "\\PC{0,30}", list in "\\PC{0,30}") {
            let value = format!("http://u:canary@{value}");
            let set = [("HTTPS_PROXY", value.as_str()), ("NO_PROXY", list.as_str())];
            if let Err(error) = proxy(&"https://a.example".parse().unwrap(), None, &environment(&set)) {
                prop_assert!(!error.to_string().contains("canary"));
            }
        }
    }
}
