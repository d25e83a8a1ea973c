//! Attempts over the real client.

use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{ResolverConfig, ResolverOpts};

use super::{START, endpoint, event, webhook};
use crate::clock::Clock;
use crate::delivery::client::HttpSender;
use crate::delivery::egress::Guard;
use crate::delivery::{Job, Sender as _, Sent};
use crate::model::address::Policy;
use crate::model::verdict::{Fault, Verdict};
use crate::routes::{Endpoint, TlsMaterial};

pub(crate) const UNREACHABLE: Verdict = Verdict::Retry { fault: Fault::Unreachable, after: None };
pub(crate) const TIMED_OUT: Verdict = Verdict::Retry { fault: Fault::TimedOut, after: None };
pub(crate) const DENIED: Verdict = Verdict::Retry { fault: Fault::Denied, after: None };

pub(crate) fn retry_after(fault: Fault, seconds: u64) -> Verdict {
    Verdict::Retry { fault, after: Some(Duration::from_secs(seconds)) }
}

/// A guard without name servers: only names under localhost resolve.
pub(crate) fn guard(allow: &[&str]) -> Arc<Guard> {
    let policy = Policy::new(allow.iter().map(|net| net.parse().unwrap()), []);
    let nowhere = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
    Arc::new(Guard::new(policy, nowhere, ResolverOpts::default()).unwrap())
}

pub(crate) fn sender() -> HttpSender {
    HttpSender::new(guard(&["127.0.0.0/8"]), Clock::manual(START).0)
}

pub(crate) fn to(url: &str, tls: TlsMaterial) -> Endpoint {
    Endpoint { tls, timeout: Duration::from_secs(5), ..endpoint(url) }
}

pub(crate) fn job(endpoint: impl Into<Arc<Endpoint>>) -> Job {
    Job {
        name: "018bcfe5-687b-7000-8000-000000000001".parse().unwrap(),
        webhook: webhook("orders"),
        endpoint: endpoint.into(),
        event: Arc::new(event(br#"{"a":1}"#)),
        test: false,
    }
}

pub(crate) async fn send(endpoint: Endpoint) -> Sent {
    sender().send(job(endpoint)).await
}

pub(crate) fn all_at_once(
    sender: &HttpSender,
    endpoint: impl Into<Arc<Endpoint>>,
    count: usize,
) -> impl Future<Output = Vec<Sent>> {
    let endpoint = endpoint.into();
    let one = |_| sender.send(job(Arc::clone(&endpoint)));
    futures::future::join_all((0..count).map(one).collect::<Vec<_>>())
}

pub(crate) fn error(sent: &Sent) -> &str {
    sent.attempt.error.as_deref().unwrap_or_default()
}
