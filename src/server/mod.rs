//! The HTTPS door: what producers and kube-apiserver talk to; and the plain one for probes and metrics.
//!
//! Made of small parts that know little of each other:
//!
//! | part | question |
//! | --- | --- |
//! | [`listener`], `connection` | who may hold a place for how long |
//! | [`http1`], [`rest`] | does a head mean one thing only, and does a client read the answer while it sends |
//! | [`certificates`], `ca`, `tls`, `mutual` | by what certificate are we known |
//! | `paths`, `accept`, `body` | what is asked for, is the form one we speak, is the body within bounds |
//! | [`auth`] | who asks, and may he |
//! | `local` | answers from this process's store |
//! | [`forward`] | a front's answers: what the pod with the store says |
//! | `events`, [`publish`] | what publishing does; publishing as a library call |
//! | [`apis`] | what makes it an API of Kubernetes: discovery, and the delivery log as a resource |
//! | [`status`], [`reply`] | how it is answered |
//! | [`ops`] | probes and metrics |

mod accept;
pub mod apis;
pub mod auth;
mod body;
mod ca;
pub mod certificates;
mod connection;
mod events;
pub mod forward;
pub mod http1;
pub mod listener;
mod local;
mod mutual;
pub mod ops;
mod paths;
pub mod publish;
mod quiet;
pub mod reply;
pub mod rest;
pub mod status;
pub mod tls;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request};
use http_body::Body;

use crate::metrics::{Metrics, Received};
use apis::deliveries::{self, Log};
use apis::discovery::Documents;
use apis::usages;
use auth::{Action, Gate};
use body::Bodies;
use forward::Forwarder;
use listener::{Handler, Peer};
use local::Local;
use paths::Target;
use publish::Publisher;
use rest::RequestBody;
use status::{Answer, Failure};

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
    behind: Behind,
    documents: Documents,
    metrics: Metrics,
}

/// Who answers what needs the store.
#[derive(Debug)]
enum Behind {
    /// This process.
    Store(Box<Local>),
    /// The pod with the store: this process is a front.
    Backend(Box<Forwarder>),
}

impl Door {
    /// Asks this gate for identity and rights, publishes by this publisher and shows this log.
    pub fn new(gate: Gate, publisher: Publisher, log: Log, metrics: Metrics, settings: Settings) -> Self {
        let Settings { max_body_bytes, namespaces } = settings;
        let local = Local::new(publisher, log, Bodies::new(max_body_bytes), namespaces);
        Self { gate, behind: Behind::Store(Box::new(local)), documents: Documents::new(), metrics }
    }

    /// Of a front: asks this gate for identity and rights, and forwards what needs the store.
    pub fn front(gate: Gate, forwarder: Forwarder, metrics: Metrics) -> Self {
        Self { gate, behind: Behind::Backend(Box::new(forwarder)), documents: Documents::new(), metrics }
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
            Target::CloudEvents { .. } => {
                let answered = self.publish(target, peer, parts, body).await;
                answered.inspect_err(|failure| self.count(events::result_of(failure.reason)))
            }
            Target::Document(document) => {
                self.gate.identify(peer, &parts.headers).await?;
                self.documents.answer(document, &parts.headers)
            }
            Target::Deliveries { .. }
            | Target::Delivery { .. }
            | Target::Payload { .. }
            | Target::Usages { .. }
            | Target::Change { .. } => self.admit(target, peer, parts, body).await,
        }
    }

    async fn publish<B>(
        &self,
        target: Target<'_>,
        peer: &Peer,
        parts: &Parts,
        body: B,
    ) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        accept::json(&parts.headers)?;
        self.admit(target, peer, parts, body).await
    }

    /// Lets a request through whose sender has the right that it needs.
    async fn admit<B>(
        &self,
        target: Target<'_>,
        peer: &Peer,
        parts: &Parts,
        body: B,
    ) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let user = self.gate.identify(peer, &parts.headers).await?;
        if let Some(right) = target.right() {
            self.gate.authorize(&user, &right).await?;
        }
        match &self.behind {
            Behind::Store(local) => local.answer(target, &user, parts, body).await,
            Behind::Backend(forwarder) => forwarder.answer(target, &user, parts, body).await,
        }
    }

    fn count(&self, result: &'static str) {
        self.metrics.events_received.get_or_create(&Received { result }).inc();
    }
}

impl Target<'_> {
    /// The right that it needs; none: everybody who is known may.
    fn right(self) -> Option<Action> {
        Some(match self {
            Self::Document(_) => return None,
            Self::CloudEvents { namespace } => events::action(namespace),
            Self::Deliveries { namespace } => deliveries::action("list", None, namespace, None),
            Self::Delivery { namespace, name } => {
                deliveries::action("get", None, Some(namespace), Some(name))
            }
            Self::Payload { namespace, name } => {
                deliveries::action("get", Some("payload"), Some(namespace), Some(name))
            }
            Self::Usages { namespace, name } => usages::action(namespace, name),
            Self::Change { change, namespace, name } => {
                deliveries::action("create", Some(change.as_str()), Some(namespace), Some(name))
            }
        })
    }
}

impl Handler for Door {
    async fn handle<'a>(&'a self, peer: Peer, request: Request<&'a mut RequestBody>) -> Answer {
        self.answer(&peer, request).await
    }

    fn trusts(&self, peer: &Peer) -> bool {
        self.gate.vouches(peer)
    }

    async fn comes_to_trust(&self, peer: &Peer) {
        self.gate.comes_to_vouch(peer).await;
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
