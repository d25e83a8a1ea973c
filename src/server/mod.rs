//! The HTTPS door: what producers and kube-apiserver talk to; and the plain one for probes and metrics.
//!
//! Made of small parts that know little of each other:
//!
//! | part | question |
//! | --- | --- |
//! | [`listener`], `connection` | who may hold a place for how long |
//! | [`certificates`], `ca`, `tls` | by what certificate are we known |
//! | `paths`, `accept`, `body` | what is asked for, is the form one we speak, is the body within bounds |
//! | [`auth`] | who asks, and may he |
//! | `events`, [`publish`] | what publishing does; publishing as a library call |
//! | [`apis`] | what makes it an API of Kubernetes: discovery, and the delivery log as a resource |
//! | [`status`] | how it is answered |
//! | [`ops`] | probes and metrics |

mod accept;
pub mod apis;
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

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request};
use http_body::Body;
use hyper::body::Incoming;

use crate::metrics::{Metrics, Received};
use apis::deliveries::{self, Change, Log};
use apis::discovery::Documents;
use apis::usages;
use auth::{Action, Gate, User};
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
    log: Log,
    documents: Documents,
    bodies: Bodies,
    namespaces: Vec<String>,
    metrics: Metrics,
}

impl Door {
    /// Asks this gate for identity and rights, publishes by this publisher and shows this log.
    pub fn new(gate: Gate, publisher: Publisher, log: Log, metrics: Metrics, settings: Settings) -> Self {
        let Settings { max_body_bytes, namespaces } = settings;
        let (documents, bodies) = (Documents::new(), Bodies::new(max_body_bytes));
        Self { gate, publisher, log, documents, bodies, namespaces, metrics }
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
            Target::Document(document) => {
                self.gate.identify(peer, &parts.headers).await?;
                self.documents.answer(document, &parts.headers)
            }
            Target::Deliveries { namespace } => {
                self.admit(deliveries::action("list", None, namespace, None), peer, parts).await?;
                self.log.list(namespace, parts).await
            }
            Target::Delivery { namespace, name } => {
                let action = deliveries::action("get", None, Some(namespace), Some(name));
                self.admit(action, peer, parts).await?;
                self.log.get(namespace, name, parts).await
            }
            Target::Payload { namespace, name } => {
                let action = deliveries::action("get", Some("payload"), Some(namespace), Some(name));
                self.admit(action, peer, parts).await?;
                self.log.payload(namespace, name, parts).await
            }
            Target::Usages { namespace, name } => {
                self.admit(usages::action(namespace, name), peer, parts).await?;
                self.log.usages(namespace, name, parts)
            }
            Target::Change { change, namespace, name } => {
                let action = deliveries::action("create", Some(change.as_str()), Some(namespace), Some(name));
                let user = self.admit(action, peer, parts).await?;
                self.change(change, (namespace, name), &user, parts, body).await
            }
        }
    }

    /// Lets a request for the log through, and says whose it is.
    async fn admit(&self, action: Action, peer: &Peer, parts: &Parts) -> Result<Arc<User>, Failure> {
        let user = self.gate.identify(peer, &parts.headers).await?;
        self.gate.authorize(&user, &action).await?;
        if let Some(namespace) = &action.namespace {
            self.in_scope(namespace, action.resource)?;
        }
        Ok(user)
    }

    async fn change<B>(
        &self,
        change: Change,
        line: (&str, &str),
        user: &User,
        parts: &Parts,
        body: B,
    ) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        accept::json(&parts.headers)?;
        let dry_run = apis::dry_run(parts.uri.query().unwrap_or_default(), deliveries::RESOURCE)?;
        let read = self.bodies.read(&parts.headers, body).await?;
        deliveries::nothing(&read.bytes)?;
        drop(read);
        self.log.change(change, line, &user.username, dry_run).await
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
        self.in_scope(namespace, events::RESOURCE)?;
        events::create(&self.publisher, &self.bodies, &user, namespace, parts, body).await
    }

    /// In scoped mode, other namespaces have no Webhook here: taking an event for them would lose it, and a log
    /// that is empty would say that nothing happened.
    fn in_scope(&self, namespace: &str, resource: &'static str) -> Result<(), Failure> {
        if self.namespaces.is_empty() || self.namespaces.iter().any(|served| served == namespace) {
            return Ok(());
        }
        let message = format!("namespace {namespace:?} is not served by this installation (--namespace)");
        Err(Failure::new(Reason::NotFound, message).of(resource))
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
