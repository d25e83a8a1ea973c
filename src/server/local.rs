//! Answers of the process that has the store, to a sender who is known and has the right.

use bytes::Bytes;
use http::request::Parts;
use http_body::Body;

use super::accept;
use super::apis::deliveries::{self, Change, Log};
use super::apis::{dry_run, usages};
use super::auth::User;
use super::body::Bodies;
use super::events;
use super::paths::Target;
use super::publish::Publisher;
use super::status::{Answer, Failure, Reason};

/// Publishes, and shows and changes the log.
#[derive(Debug)]
pub(super) struct Local {
    publisher: Publisher,
    log: Log,
    bodies: Bodies,
    namespaces: Vec<String>,
}

impl Local {
    pub(super) fn new(publisher: Publisher, log: Log, bodies: Bodies, namespaces: Vec<String>) -> Self {
        Self { publisher, log, bodies, namespaces }
    }

    /// Answers a request that was let through.
    pub(super) async fn answer<B>(
        &self,
        target: Target<'_>,
        user: &User,
        parts: &Parts,
        body: B,
    ) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        match target {
            Target::CloudEvents { namespace } => {
                self.in_scope(namespace, events::RESOURCE)?;
                events::create(&self.publisher, &self.bodies, user, namespace, parts, body).await
            }
            Target::Deliveries { namespace } => {
                if let Some(namespace) = namespace {
                    self.in_scope(namespace, deliveries::RESOURCE)?;
                }
                self.log.list(namespace, parts).await
            }
            Target::Delivery { namespace, name } => {
                self.in_scope(namespace, deliveries::RESOURCE)?;
                self.log.get(namespace, name, parts).await
            }
            Target::Payload { namespace, name } => {
                self.in_scope(namespace, deliveries::RESOURCE)?;
                self.log.payload(namespace, name, parts).await
            }
            Target::Usages { namespace, name } => {
                if let Some(namespace) = namespace {
                    self.in_scope(namespace, usages::RESOURCE)?;
                }
                self.log.usages(namespace, name, parts)
            }
            Target::Change { change, namespace, name } => {
                self.in_scope(namespace, deliveries::RESOURCE)?;
                self.change(change, (namespace, name), user, parts, body).await
            }
            Target::Document(_) => Err(Failure::no_such_path(parts.uri.path())),
        }
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
        let dry_run = dry_run(parts.uri.query().unwrap_or_default(), deliveries::RESOURCE)?;
        let read = self.bodies.read(line.0, &parts.headers, body).await?;
        deliveries::nothing(&read.bytes)?;
        drop(read);
        self.log.change(change, line, &user.username, dry_run).await
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
}
