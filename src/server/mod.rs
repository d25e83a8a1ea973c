//! The HTTPS door: what producers, and later kube-apiserver, talk to; and the plain one for probes and metrics.
//!
//! Made of small parts that know little of each other:
//!
//! | part | question |
//! | --- | --- |
//! | [`listener`], `connection` | who may hold a place for how long |
//! | [`certificates`], `ca`, `tls` | by what certificate are we known |
//! | `paths`, `accept`, `body` | what is asked for, is the form one we speak, is the body within bounds |
//! | [`auth`] | who asks, and may he |
//! | `events`, [`publish`] | what the resource does; publishing as a library call |
//! | [`status`] | how it is answered |
//! | [`ops`] | probes and metrics |

mod accept;
pub mod auth;
mod body;
mod ca;
pub mod certificates;
mod connection;
mod events;
pub mod listener;
pub mod ops;
mod paths;
pub mod publish;
mod quiet;
pub mod status;
pub mod tls;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request};
use http_body::Body;
use hyper::body::Incoming;
use kube::Client;

use crate::metrics::{Metrics, Received};
use auth::Gate;
use body::Bodies;
use listener::{Handler, Peer};
use paths::Target;
use publish::Publisher;
use status::{Answer, Failure, Reason};

/// Settings of a [`Door`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest body of a request, in bytes.
    pub max_body_bytes: usize,
    /// The namespaces that are served; empty: all.
    pub namespaces: Vec<String>,
}

/// Answers what comes in by HTTPS: finds the resource, asks who it is and whether he may, and lets the
/// resource answer. Every refusal is a Kubernetes `Status`.
#[derive(Debug)]
pub struct Door {
    gate: Gate,
    publisher: Publisher,
    bodies: Bodies,
    namespaces: Vec<String>,
    metrics: Metrics,
}

impl Door {
    /// Asks this Kubernetes for identity and rights, and publishes by this publisher.
    pub fn new(client: &Client, publisher: Publisher, metrics: Metrics, settings: Settings) -> Self {
        let Settings { max_body_bytes, namespaces } = settings;
        Self { gate: Gate::new(client), publisher, bodies: Bodies::new(max_body_bytes), namespaces, metrics }
    }

    /// Answers one request, whatever its body comes from.
    pub async fn answer<B>(&self, peer: &Peer, request: Request<B>) -> Answer
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let (parts, body) = request.into_parts();
        let answered = match paths::find(&parts.method, parts.uri.path()) {
            Ok(target) => self.serve(target, peer, &parts, body).await,
            Err(failure) => Err(failure),
        };
        answered.unwrap_or_else(Failure::into_answer)
    }

    async fn serve<B>(
        &self,
        target: Target<'_>,
        peer: &Peer,
        parts: &Parts,
        body: B,
    ) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        match target {
            Target::CloudEvents { .. } if parts.method == Method::OPTIONS => {
                Ok(events::options(&parts.headers, target.allow()))
            }
            Target::CloudEvents { namespace } => {
                let answered = self.publish(namespace, peer, parts, body).await;
                answered.inspect_err(|failure| self.count(events::result_of(failure.reason)))
            }
        }
    }

    async fn publish<B>(
        &self,
        namespace: &str,
        peer: &Peer,
        parts: &Parts,
        body: B,
    ) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        accept::json(&parts.headers)?;
        let user = self.gate.identify(peer, &parts.headers).await?;
        self.gate.authorize(&user, &events::action(namespace)).await?;
        self.in_scope(namespace)?;
        events::create(&self.publisher, &self.bodies, &user, namespace, parts, body).await
    }

    /// In scoped mode, other namespaces have no Webhook here: taking an event for them would lose it.
    fn in_scope(&self, namespace: &str) -> Result<(), Failure> {
        if self.namespaces.is_empty() || self.namespaces.iter().any(|served| served == namespace) {
            return Ok(());
        }
        let message = format!("namespace {namespace:?} is not served by this installation (--namespace)");
        Err(Failure::new(Reason::NotFound, message).of(events::RESOURCE))
    }

    fn count(&self, result: &'static str) {
        self.metrics.events_received.get_or_create(&Received { result }).inc();
    }
}

impl Handler for Door {
    async fn handle(&self, peer: Peer, request: Request<Incoming>) -> Answer {
        self.answer(&peer, request).await
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
