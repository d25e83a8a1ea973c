//! A front's answers: what needs the store is asked of the pod that has it, in the user's name, as kube-apiserver asks an
//! aggregated API: over mutual TLS, with the user in `X-Remote-*` headers.
//!
//! Requests and answers are read whole (both are bounded) before they go on: a client that is slow to send or to read
//! holds a place here, never one at the pod with the store, and what certainly did not arrive can be sent anew. Only an
//! answer whose length is not known, as a list without limit, goes on as it comes.

mod headers;
mod link;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::apis::deliveries;
use super::auth::User;
use super::body::Bodies;
use super::events;
use super::paths::Target;
use super::quiet::Quiet;
use super::reply::Reply;
use super::status::{Answer, Failure, Reason};
use crate::metrics::{Forwarded, Metrics};
use crate::model::ids::Namespace;
use crate::per_namespace::PerNamespace;
pub use link::Link;
use link::Trouble;

/// Requests at once to the pod with the store, of those that read and of the others, so that who reads much does not
/// keep others from publishing: together fewer than its listener takes on one connection.
const AT_ONCE: (usize, usize) = (64, 136);
/// Answers at once that are passed on as they come, of all and of one namespace: their clients decide how long they take.
const LISTING: usize = 32;
const LISTING_OF_ONE: usize = 2;
/// How long a request waits for its turn among them.
const TURN: Duration = Duration::from_secs(2);
/// For one answer, from sending to its last byte: a little more than the pod with the store takes for anything.
const PATIENCE: Duration = Duration::from_secs(35);
/// Largest answer that is passed on, in bytes. A page of the log has a few megabytes at most.
const LARGEST: usize = 64 << 20;
/// When to come again while the pod with the store is away.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Asks the pod with the store.
#[derive(Debug)]
pub struct Forwarder {
    link: Arc<Link>,
    bodies: Bodies,
    reading: Arc<Semaphore>,
    listing: Arc<Listing>,
    writing: Arc<Semaphore>,
    tasks: TaskTracker,
    metrics: Metrics,
}

/// Turns of answers that are passed on as they come.
#[derive(Debug)]
struct Listing {
    all: Arc<Semaphore>,
    of_one: PerNamespace,
}

impl Listing {
    /// A turn, unless none is free for too long. Who waits for one of its namespace takes none of all.
    async fn turn(&self, namespace: &Namespace) -> Option<ListingTurn> {
        let own = self.of_one.of(namespace);
        let turn = async {
            Some((own.acquire_owned().await.ok()?, Arc::clone(&self.all).acquire_owned().await.ok()?))
        };
        timeout(TURN, turn).await.ok().flatten()
    }
}

/// Of its namespace, and of all.
type ListingTurn = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// A request as it goes on.
struct Onward {
    /// Empty: all of them.
    namespace: Namespace,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Onward {
    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().clone_from(&self.headers);
        request
    }

    /// Whether asking again does nothing twice.
    fn is_safe(&self) -> bool {
        self.method == Method::GET
    }
}

impl Forwarder {
    /// Asks over this link; a body has at most so many bytes.
    pub fn new(link: Link, max_body_bytes: usize, tasks: TaskTracker, metrics: Metrics) -> Self {
        let turns = |at_once| Arc::new(Semaphore::new(at_once));
        Self {
            link: Arc::new(link),
            bodies: Bodies::new(max_body_bytes),
            reading: turns(AT_ONCE.0),
            listing: Arc::new(Listing { all: turns(LISTING), of_one: PerNamespace::new(LISTING_OF_ONE) }),
            writing: turns(AT_ONCE.1),
            tasks,
            metrics,
        }
    }

    /// What the pod with the store answers to a request that was let through.
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
        // Before the body is read: who is to come again need not have sent it.
        self.link.expected().map_err(|trouble| self.refuse(target, &trouble))?;
        let headers = headers::request(&parts.headers, user)?;
        let uri = self.link.uri(parts.uri.path_and_query().map_or("/", |path| path.as_str()));
        let uri = uri.ok_or_else(|| Failure::no_such_path(parts.uri.path()))?;
        let read = match parts.method {
            Method::GET => None,
            _ => Some(self.bodies.read(target.namespace().unwrap_or_default(), &parts.headers, body).await?),
        };
        let body = read.as_ref().map_or_else(Bytes::new, |read| read.bytes.clone());
        let namespace = target.namespace().unwrap_or_default().into();
        let onward = Onward { namespace, method: parts.method.clone(), uri, headers, body };
        let turn = self.turn(&onward).await.ok_or_else(|| self.refuse(target, &Trouble::Busy))?;
        let answer = self.asked(onward, turn).await.map_err(|trouble| self.refuse(target, &trouble))?;
        self.count("answered");
        Ok(answer)
    }

    async fn turn(&self, onward: &Onward) -> Option<OwnedSemaphorePermit> {
        let turns = Arc::clone(if onward.is_safe() { &self.reading } else { &self.writing });
        timeout(TURN, turns.acquire_owned()).await.ok()?.ok()
    }

    /// Asks to the end, also when the client goes meanwhile: the connection is shared, and whoever takes back many
    /// requests on it has it closed for all.
    async fn asked(&self, onward: Onward, turn: OwnedSemaphorePermit) -> Result<Answer, Trouble> {
        let (link, listing) = (Arc::clone(&self.link), Arc::clone(&self.listing));
        let asking = self.tasks.spawn(async move {
            let answered = timeout(PATIENCE, ask(&link, &onward, &listing)).await;
            drop(turn);
            answered.unwrap_or(Err(Trouble::Late))
        });
        asking.await.unwrap_or_else(|error| Err(Trouble::Lost(error.to_string())))
    }

    fn refuse(&self, target: Target<'_>, trouble: &Trouble) -> Failure {
        static FAILED: Quiet = Quiet::new(Duration::from_mins(1));
        self.count(trouble.result());
        if let Some(silent) = FAILED.speak() {
            warn!(backend = %self.link, error = %trouble, silent, "the pod with the store does not answer");
        }
        refusal(target, trouble)
    }

    fn count(&self, result: &'static str) {
        self.metrics.forwarded.get_or_create(&Forwarded { result }).inc();
    }
}

/// Asks, and once more if that can do nothing twice: a connection may have ended without our knowing, or have been made
/// with a certificate of a CA that is no more.
async fn ask(link: &Link, onward: &Onward, listing: &Listing) -> Result<Answer, Trouble> {
    match ask_once(link, onward, listing).await {
        Err(Trouble::NotSent(_) | Trouble::Unknown) => ask_once(link, onward, listing).await,
        Err(Trouble::Lost(_)) if onward.is_safe() => ask_once(link, onward, listing).await,
        answered => answered,
    }
}

async fn ask_once(link: &Link, onward: &Onward, listing: &Listing) -> Result<Answer, Trouble> {
    let (parts, body): (_, Incoming) = link.send(onward.request()).await?.into_parts();
    // The client is known here, so it is this front that is not known there.
    if parts.status == StatusCode::UNAUTHORIZED {
        link.forget().await;
        return Err(Trouble::Unknown);
    }
    let reply = if body.size_hint().exact().is_some() {
        let whole = Limited::new(body, LARGEST).collect().await;
        Reply::from(whole.map_err(|error| Trouble::Lost(error.to_string()))?.to_bytes())
    } else {
        let turn = listing.turn(&onward.namespace).await;
        as_it_comes(body, turn.ok_or(Trouble::Busy)?)
    };
    let mut answer = Response::new(reply);
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = headers::answer(&parts.headers);
    Ok(answer)
}

/// A body whose parts are asked for as the client takes them.
fn as_it_comes(body: Incoming, turn: ListingTurn) -> Reply {
    let parts = stream::try_unfold((body, turn), async |(mut body, turn)| {
        loop {
            let frame = timeout(PATIENCE, body.frame()).await;
            let frame = frame.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?;
            let Some(frame) = frame.transpose().map_err(std::io::Error::other)? else { return Ok(None) };
            if let Some(part) = frame.into_data().ok().filter(|part| !part.is_empty()) {
                return Ok(Some((part, (body, turn))));
            }
        }
    });
    Reply::made(parts)
}

/// What a client is told, who may not see addresses and errors of the inside.
fn refusal(target: Target<'_>, trouble: &Trouble) -> Failure {
    let publishes = matches!(target, Target::CloudEvents { .. });
    let changes = matches!(target, Target::Change { .. });
    let message = match trouble {
        Trouble::Away(_) | Trouble::NotSent(_) if publishes => {
            "the pod with the store is away; nothing was stored: try again"
        }
        Trouble::Away(_) | Trouble::NotSent(_) => "the pod with the store is away: try again",
        Trouble::Unknown => "the pod with the store does not know this front: try again",
        Trouble::Busy => "too many requests wait for the pod with the store: try again",
        Trouble::Lost(_) | Trouble::Late if publishes => {
            "the pod with the store did not answer: publish again with the same source and id, nothing is sent twice"
        }
        Trouble::Lost(_) | Trouble::Late if changes => {
            "the pod with the store did not answer, and may still do it: look at the delivery before asking again"
        }
        Trouble::Lost(_) | Trouble::Late => "the pod with the store did not answer: try again",
    };
    let resource = if publishes { events::RESOURCE } else { deliveries::RESOURCE };
    Failure::later(Reason::ServiceUnavailable, message, RETRY_AFTER).of(resource)
}
