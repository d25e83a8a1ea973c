//! Settings of `hookwright run` and `hookwright front`. Each flag is also an environment variable; the chart names them
//! once. Sizes are quantities as Kubernetes writes them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::model::size;

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// `NAMESPACE/NAME` of the Service in front of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// Its namespace, which is the operator's own.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::str::FromStr for ServiceName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("must be NAMESPACE/NAME, is {text:?}")),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<jiff::SignedDuration>()
        .map_err(|error| error.to_string())
        .and_then(|duration| Duration::try_from(duration).map_err(|_| "must not be negative".to_owned()))
}

/// A time within which an event is known again.
fn dedup_window(text: &str) -> Result<Duration, String> {
    let (least, most) = (Duration::from_mins(1), Duration::from_hours(24));
    let window = duration(text)?;
    if (least..=most).contains(&window) { Ok(window) } else { Err("must be from 1m to 24h".to_owned()) }
}

/// A size of what is held in memory.
fn size_in_memory(text: &str) -> Result<usize, String> {
    let bytes = size::parse(text).map_err(|error| error.to_string())?;
    usize::try_from(bytes).map_err(|_| "is more than the memory of this machine".to_owned())
}

/// Where another process listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address.
    pub host: String,
    /// TCP.
    pub port: u16,
}

impl std::str::FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        match parts {
            Some((host, port)) if !host.is_empty() && port != 0 => {
                let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
                Ok(Self { host: host.to_owned(), port })
            }
            _ => Err(format!("must be HOST:PORT, is {text:?}")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Settings of every role.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Kubeconfig file; none: the pod's ServiceAccount, else the user's own kubeconfig.
    #[arg(long, env = "HOOKWRIGHT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Address of the HTTPS door.
    #[arg(long, env = "HOOKWRIGHT_LISTEN", value_name = "ADDRESS:PORT", default_value = "[::]:8443")]
    pub listen: SocketAddr,

    /// Address of /metrics, /livez and /readyz (plain HTTP).
    #[arg(long, env = "HOOKWRIGHT_METRICS_LISTEN", value_name = "ADDRESS:PORT", default_value = "[::]:8080")]
    pub metrics_listen: SocketAddr,

    /// The Service in front: names in the serving certificate, and the operator's own namespace.
    #[arg(
        long,
        env = "HOOKWRIGHT_SERVICE",
        value_name = "NAMESPACE/NAME",
        default_value = "hookwright-system/hookwright"
    )]
    pub service: ServiceName,

    /// Whether kube-apiserver is a door, too: the APIService v1alpha1.delivery.hookwright.dev is given our CA bundle,
    /// and kube-apiserver is believed for whom it asks.
    #[arg(
        long,
        env = "HOOKWRIGHT_API_SERVICE",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub api_service: bool,

    /// How log lines are written.
    #[arg(long, env = "HOOKWRIGHT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,

    /// Which log lines: a tracing filter such as `info` or `hookwright=debug,kube=warn`. Without it `RUST_LOG` counts, and
    /// without that: `info` of Hookwright itself, and `warn` of the libraries that it is made of.
    #[arg(long, env = "HOOKWRIGHT_LOG", value_name = "FILTER")]
    pub log: Option<String>,

    /// Largest body of one publishing request.
    #[arg(long, env = "HOOKWRIGHT_MAX_BODY_BYTES", value_name = "SIZE", default_value = "1Mi", value_parser = size_in_memory)]
    pub max_body_bytes: usize,

    /// On SIGTERM, attempts and requests under way get this long to end.
    #[arg(long, env = "HOOKWRIGHT_SHUTDOWN_GRACE", value_name = "DURATION", default_value = "20s", value_parser = duration)]
    pub shutdown_grace: Duration,
}

/// Settings of `hookwright front`.
#[derive(Args, Clone, Debug)]
pub struct FrontConfig {
    /// What every role has.
    #[command(flatten)]
    pub common: Common,

    /// The HTTPS door of the pod with the store, mostly by its Service.
    #[arg(long, env = "HOOKWRIGHT_BACKEND", value_name = "HOST:PORT")]
    pub backend: Address,
}

/// Settings of `hookwright run`.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// What every role has.
    #[command(flatten)]
    pub common: Common,

    /// Directory of the store. One process at a time uses it.
    #[arg(long, env = "HOOKWRIGHT_DATA_DIR", value_name = "DIR", default_value = "/var/lib/hookwright")]
    pub data_dir: PathBuf,

    /// Range that deliveries may reach although the built-in table denies it. Repeatable.
    #[arg(long, env = "HOOKWRIGHT_ALLOW_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub allow_cidr: Vec<IpNet>,

    /// Range that deliveries may not reach; wins over --allow-cidr. Repeatable.
    #[arg(long, env = "HOOKWRIGHT_DENY_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub deny_cidr: Vec<IpNet>,

    /// Serve only this namespace. Repeatable; none: all.
    #[arg(long, env = "HOOKWRIGHT_NAMESPACE", value_name = "NAMESPACE", value_delimiter = ',')]
    pub namespace: Vec<String>,

    /// How long data of a deleted Webhook is kept after its deletion was seen.
    #[arg(long, env = "HOOKWRIGHT_PURGE_GRACE", value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub purge_grace: Duration,

    /// A Webhook whose every attempt failed for this long is disabled.
    #[arg(long, env = "HOOKWRIGHT_DISABLE_AFTER", value_name = "DURATION", default_value = "120h", value_parser = duration)]
    pub disable_after: Duration,

    /// A delivery that was held for longer ends as Failed, reason Expired.
    #[arg(long, env = "HOOKWRIGHT_HELD_LIMIT", value_name = "DURATION", default_value = "168h", value_parser = duration)]
    pub held_limit: Duration,

    /// Shortest time between two writes of one Webhook's status.
    #[arg(long, env = "HOOKWRIGHT_STATUS_INTERVAL", value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub status_interval: Duration,

    /// A finished delivery goes from the log so long after its end.
    #[arg(long, env = "HOOKWRIGHT_RETENTION_AGE", value_name = "DURATION", default_value = "168h", value_parser = duration)]
    pub retention_age: Duration,

    /// While a namespace's events and log use more, its oldest finished deliveries go. What waits never goes.
    #[arg(long, env = "HOOKWRIGHT_RETENTION_BYTES", value_name = "SIZE", default_value = "1Gi", value_parser = size::parse)]
    pub retention_bytes: u64,

    /// How long an event of the same source and id is a duplicate: answered 202, and not sent again. What is
    /// remembered for it costs about 50 bytes on the disk for each event of the last two such times.
    #[arg(long, env = "HOOKWRIGHT_DEDUP_WINDOW", value_name = "DURATION", default_value = "1h", value_parser = dedup_window)]
    pub dedup_window: Duration,

    /// While so much waits to be delivered in a namespace, publishing there is refused (429). An event
    /// counts once for each Webhook that it waits for.
    #[arg(long, env = "HOOKWRIGHT_QUOTA_PENDING_BYTES", value_name = "SIZE", default_value = "1Gi", value_parser = size::parse)]
    pub quota_pending_bytes: u64,

    /// Events a second that one namespace may publish (429 beyond), ten times as many at once after a pause.
    #[arg(
        long,
        env = "HOOKWRIGHT_QUOTA_EVENTS_PER_SECOND",
        value_name = "NUMBER",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..=100_000_000)
    )]
    pub quota_events_per_second: u32,

    /// Free space in the data directory's file system below which publishing is refused (503); beside a
    /// kibibyte for each delivery that waits, so that outcomes have room. With less than twice as much free, the
    /// namespaces that use most are refused.
    #[arg(long, env = "HOOKWRIGHT_MIN_FREE_BYTES", value_name = "SIZE", default_value = "256Mi", value_parser = size::parse)]
    pub min_free_bytes: u64,

    /// Whether the CA of the door is published as ConfigMap `hookwright-ca` into each namespace that has a Webhook.
    #[arg(
        long,
        env = "HOOKWRIGHT_PUBLISH_CA",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub publish_ca: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dedup_window_has_bounds_and_an_error_says_them() {
        let wrong = || Err("must be from 1m to 24h".to_owned());
        for (text, expected) in [
            ("1m", Ok(Duration::from_mins(1))),
            ("1h", Ok(Duration::from_hours(1))),
            ("24h", Ok(Duration::from_hours(24))),
            ("59s", wrong()),
            ("0s", wrong()),
            ("24h 1s", wrong()),
        ] {
            assert_eq!(dedup_window(text), expected, "{text}");
        }
        assert_eq!(dedup_window("-1h"), Err("must not be negative".to_owned()));
        assert!(dedup_window("soon").is_err());
    }
}
