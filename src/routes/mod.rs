//! What the hot path reads: for each namespace its compiled Webhooks.
//!
//! [`table`] is plain state; `compile` makes a [`Route`] from a Webhook and what it refers to; `feed` keeps
//! the table like the cluster.

pub mod compile;
pub mod coverage;
pub mod feed;
pub mod hold;
pub mod master_key;
pub mod namespaces;
pub mod references;
mod subscribers;
pub mod table;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::model::filter::Filter;
use crate::model::ids::WebhookRef;
use crate::model::rate::RateLimit;
use crate::model::retry;
use crate::model::signature::Signer;
use crate::model::target::Target;
use crate::model::text::Masks;
pub use table::Table;

/// A compiled Webhook. Matching needs the filter alone; sending needs the endpoint.
#[derive(Clone, Debug)]
pub struct Route {
    /// Which Webhook.
    pub webhook: WebhookRef,
    /// Generation of the spec that this was compiled from.
    pub generation: i64,
    /// Which events it gets, whether it can be sent to or not.
    pub filter: Filter,
    /// `spec.active`.
    pub active: bool,
    /// How to send, or why that can't be said.
    pub endpoint: Result<Arc<Endpoint>, Unready>,
    /// `status.publicKey`: of the key that signs.
    pub public_key: Arc<str>,
    /// What maxRetries and backoff add up to, when the spec says something valid.
    pub gives_up_after: Option<Duration>,
    /// The annotation `hookwright.dev/requestedAt`, as it stands.
    pub requested_at: Option<Arc<str>>,
}

/// Everything one attempt needs, with the secrets already read.
#[derive(Debug)]
pub struct Endpoint {
    /// Where to.
    pub target: Target,
    /// For one attempt, from connecting to the last byte read.
    pub timeout: Duration,
    /// Attempts under way at once.
    pub max_in_flight: usize,
    /// At most so many attempts in a time.
    pub rate_limit: Option<RateLimit>,
    /// How often and when again.
    pub retry: retry::Policy,
    /// The user's headers, values from Secrets marked sensitive.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The keys that sign.
    pub signer: Signer,
    /// Trust and identity towards the receiver.
    pub tls: TlsMaterial,
    /// What must never be kept of an answer.
    pub masks: Masks,
    /// The URL spells out an address that is denied: the Webhook is not ready, and its attempts fail by the same rule as
    /// those for a name that resolves to one.
    pub denied: Option<Unready>,
}

impl Route {
    /// Why the Webhook is not ready, if it is not.
    pub fn unready(&self) -> Option<&Unready> {
        match &self.endpoint {
            Ok(endpoint) => endpoint.denied.as_ref(),
            Err(unready) => Some(unready),
        }
    }
}

/// A certificate chain and its private key.
pub type ClientCertificate = (Arc<[u8]>, Arc<[u8]>);

/// Trust and identity towards a receiver, as PEM. Endpoints with equal material share connections.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsMaterial {
    /// CA certificates in place of the public ones.
    pub ca: Option<Arc<[u8]>>,
    /// Certificate chain and private key shown to the receiver.
    pub client: Option<ClientCertificate>,
}

impl std::fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsMaterial")
            .field("ca", &self.ca.is_some())
            .field("client", &self.client.is_some())
            .finish()
    }
}

/// Why a Webhook can't be sent to: reason and message of its `Ready` condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unready {
    /// CamelCase.
    pub reason: &'static str,
    /// What is wrong, with what, and what to do; never a secret value.
    pub message: String,
    /// Whether only a change of the spec or of a reference can help.
    pub stalled: bool,
}
