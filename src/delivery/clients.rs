//! HTTP clients: each Webhook has its own, so that none waits for another's connections or streams.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::Client;
use tokio::time::Instant;

use super::egress::{Guard, Names};
use super::tls;
use crate::model::address::Policy;
use crate::model::ids::WebhookUid;
use crate::routes::{Endpoint, TlsMaterial};

/// A client is used for so long; then its connections end with their last request.
const MAX_AGE: Duration = Duration::from_mins(5);

/// A connection without a request is closed after this.
const IDLE: Duration = Duration::from_secs(30);

/// Time to connect (look-up, TCP and TLS together), when the endpoint's own limit is not shorter. Several
/// addresses share it, so that one that does not answer leaves time for the next.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Attempts that share one client: fewer than the streams that HTTP/2 servers usually allow on a connection (100
/// and more), or the time of those beyond would run while they wait for a stream.
const PER_CLIENT: usize = 64;

/// What one answer may make us buffer before it is read: the window of one HTTP/2 stream.
const STREAM_WINDOW: u32 = 64 << 10;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The trust material can't be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The client library refused our settings.
    #[error("cannot set up a client")]
    Build(#[source] reqwest::Error),
}

/// Clients by Webhook, each at most five minutes old and made for the endpoint and policy as they are now.
#[derive(Debug)]
pub(super) struct Clients {
    guard: Arc<Guard>,
    configs: tls::Configs,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    by_webhook: HashMap<WebhookUid, Entry>,
    swept: Instant,
}

#[derive(Debug)]
struct Entry {
    shards: Vec<Shard>,
    tls: TlsMaterial,
    connect_timeout: Duration,
    policy: Arc<Policy>,
    made: Instant,
}

#[derive(Clone, Debug)]
struct Shard {
    client: Client,
    in_use: Arc<AtomicUsize>,
}

/// A client, in use by one attempt until this is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) client: Client,
    in_use: Arc<AtomicUsize>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.in_use.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shard {
    fn new(client: Client) -> Self {
        Self { client, in_use: Arc::default() }
    }

    fn lease(&self) -> Lease {
        self.in_use.fetch_add(1, Ordering::Relaxed);
        Lease { client: self.client.clone(), in_use: Arc::clone(&self.in_use) }
    }
}

impl Entry {
    fn fits(&self, endpoint: &Endpoint, policy: &Arc<Policy>) -> bool {
        self.made.elapsed() < MAX_AGE
            && self.tls == endpoint.tls
            && self.connect_timeout == connect_timeout(endpoint)
            && Arc::ptr_eq(&self.policy, policy)
    }
}

pub(super) fn connect_timeout(endpoint: &Endpoint) -> Duration {
    endpoint.timeout.min(CONNECT_TIMEOUT)
}

impl Clients {
    pub(super) fn new(guard: Arc<Guard>) -> Self {
        let kept = Kept { by_webhook: HashMap::new(), swept: Instant::now() };
        Self { guard, configs: tls::Configs::default(), kept: Mutex::new(kept) }
    }

    /// A client for one attempt of this Webhook.
    pub(super) fn lease(&self, webhook: WebhookUid, endpoint: &Endpoint) -> Result<Lease, Error> {
        let policy = self.guard.policy();
        if let Some(lease) = self.kept().lease(webhook, endpoint, &policy) {
            return Ok(lease);
        }
        let connect_timeout = connect_timeout(endpoint);
        let shard = Shard::new(self.build(&endpoint.tls, connect_timeout)?);
        let mut kept = self.kept();
        // Another attempt may have been quicker: its connections are worth more than ours.
        if let Some(lease) = kept.lease(webhook, endpoint, &policy) {
            return Ok(lease);
        }
        let lease = shard.lease();
        let entry = kept.by_webhook.get_mut(&webhook).filter(|entry| entry.fits(endpoint, &policy));
        if let Some(entry) = entry {
            entry.shards.push(shard);
        } else {
            let (tls, made) = (endpoint.tls.clone(), Instant::now());
            let entry = Entry { shards: vec![shard], tls, connect_timeout, policy, made };
            kept.by_webhook.insert(webhook, entry);
        }
        kept.sweep();
        Ok(lease)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn build(&self, material: &TlsMaterial, connect_timeout: Duration) -> Result<Client, Error> {
        Client::builder()
            .tls_backend_preconfigured(self.configs.get(material)?)
            .dns_resolver(Arc::new(Names(Arc::clone(&self.guard))))
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .connect_timeout(connect_timeout)
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE)
            .http1_max_headers(64)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(16 * STREAM_WINDOW)
            // A peer that is gone must not take every stream of its connection along until their time is up.
            .http2_keep_alive_interval(Duration::from_secs(10))
            .http2_keep_alive_timeout(Duration::from_secs(10))
            .build()
            .map_err(Error::Build)
    }
}

impl Kept {
    /// Of the first client that has room, so that few attempts keep few connections warm.
    fn lease(&self, webhook: WebhookUid, endpoint: &Endpoint, policy: &Arc<Policy>) -> Option<Lease> {
        let entry = self.by_webhook.get(&webhook).filter(|entry| entry.fits(endpoint, policy))?;
        let has_room = |shard: &&Shard| shard.in_use.load(Ordering::Relaxed) < PER_CLIENT;
        entry.shards.iter().find(has_room).map(Shard::lease)
    }

    /// Drops clients that are too old to be used again, at most once in a while.
    fn sweep(&mut self) {
        if self.swept.elapsed() >= IDLE {
            self.by_webhook.retain(|_, entry| entry.made.elapsed() < MAX_AGE);
            self.swept = Instant::now();
        }
    }
}
