//! HTTP clients: one for each Webhook, so that no Webhook waits for another's connections or streams.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
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
    client: Client,
    tls: TlsMaterial,
    connect_timeout: Duration,
    policy: Arc<Policy>,
    made: Instant,
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

    /// A client for this Webhook.
    pub(super) fn get(&self, webhook: WebhookUid, endpoint: &Endpoint) -> Result<Client, Error> {
        let policy = self.guard.policy();
        let fitting = |kept: &Kept| {
            kept.by_webhook
                .get(&webhook)
                .filter(|entry| entry.fits(endpoint, &policy))
                .map(|e| e.client.clone())
        };
        if let Some(client) = fitting(&self.kept.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(client);
        }
        let connect_timeout = connect_timeout(endpoint);
        let client = self.build(&endpoint.tls, connect_timeout)?;
        let entry = Entry {
            client: client.clone(),
            tls: endpoint.tls.clone(),
            connect_timeout,
            policy: Arc::clone(&policy),
            made: Instant::now(),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Another attempt may have been quicker: its connections are worth more than ours.
        if let Some(client) = fitting(&kept) {
            return Ok(client);
        }
        kept.by_webhook.insert(webhook, entry);
        kept.sweep();
        Ok(client)
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
    /// Drops clients that are too old to be used again, at most once in a while.
    fn sweep(&mut self) {
        if self.swept.elapsed() >= IDLE {
            self.by_webhook.retain(|_, entry| entry.made.elapsed() < MAX_AGE);
            self.swept = Instant::now();
        }
    }
}
