//! Who asks, and whether he may. Identity comes through one of two doors: [`front_proxy`] through kube-apiserver,
//! [`token`] straight. The right is asked of Kubernetes by a SubjectAccessReview, whichever door it was.

mod access;
mod cache;
mod front_proxy;
mod token;
pub(super) mod version1;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use http::HeaderMap;
use k8s_openapi::api::authentication::v1::UserInfo;
use kube::Client;
use tokio::sync::Semaphore;
use tracing::warn;

use super::listener::Peer;
use super::quiet::Quiet;
use super::status::{Failure, Reason};
pub use access::Action;
pub use front_proxy::FrontProxy;

/// A positive answer of the Kubernetes API is believed for this long.
pub(super) const KEEP_YES: Duration = Duration::from_secs(10);
/// A negative answer is believed for this long.
pub(super) const KEEP_NO: Duration = Duration::from_secs(3);
/// Answers kept of each kind.
const KEEP_MOST: usize = 4096;
/// For one question, the wait for its turn included.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions asked at once, so that a flood of made-up tokens is not passed on to the Kubernetes API.
const AT_ONCE: usize = 64;
/// When to come again after a question had no answer.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Somebody whom Kubernetes knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// As RBAC names him.
    pub username: String,
    /// Tells one from another of the same name at another time.
    pub uid: Option<String>,
    /// His groups.
    pub groups: Vec<String>,
    /// What else the authenticator says.
    pub extra: BTreeMap<String, Vec<String>>,
    fingerprint: [u8; 32],
}

impl User {
    /// From what an authenticator says; none without a name.
    pub fn new(info: UserInfo) -> Option<Self> {
        let UserInfo { username, uid, groups, extra } = info;
        let username = username.filter(|name| !name.is_empty())?;
        let (groups, extra) = (groups.unwrap_or_default(), extra.unwrap_or_default());
        let fingerprint = fingerprint(&username, uid.as_deref(), &groups, &extra);
        Some(Self { username, uid, groups, extra, fingerprint })
    }
}

/// Equal for two users exactly if a SubjectAccessReview cannot tell them apart.
fn fingerprint(
    username: &str,
    uid: Option<&str>,
    groups: &[String],
    extra: &BTreeMap<String, Vec<String>>,
) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    let mut add = |text: &str| {
        hash.update(&text.len().to_be_bytes());
        hash.update(text.as_bytes());
    };
    add(username);
    add(uid.unwrap_or_default());
    add(&groups.len().to_string());
    for group in groups {
        add(group);
    }
    for (key, values) in extra {
        add(key);
        add(&values.len().to_string());
        for value in values {
            add(value);
        }
    }
    digest(hash)
}

fn digest(hash: Context) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash.finish().as_ref());
    bytes
}

/// Decides who may come in.
#[derive(Debug)]
pub struct Gate {
    front_proxy: Arc<FrontProxy>,
    tokens: token::Tokens,
    access: access::Access,
}

impl Gate {
    /// Asks this Kubernetes, and believes what this front proxy says.
    pub fn new(client: &Client, front_proxy: Arc<FrontProxy>) -> Self {
        let questions = Arc::new(Questions::default());
        Self {
            front_proxy,
            tokens: token::Tokens::new(client.clone(), Arc::clone(&questions)),
            access: access::Access::new(client.clone(), questions),
        }
    }

    /// Who sends a request with these headers over this connection.
    ///
    /// # Errors
    /// 401 when he is not known, 503 when that can't be found out.
    pub async fn identify(&self, peer: &Peer, headers: &HeaderMap) -> Result<Arc<User>, Failure> {
        match self.front_proxy.identify(peer, headers)? {
            Some(user) => Ok(user),
            None => self.tokens.identify(headers).await,
        }
    }

    /// Whether this is somebody who may ask for others; nobody is before it is known whom that is.
    pub fn vouches(&self, peer: &Peer) -> bool {
        self.front_proxy.vouches(peer)
    }

    /// Returns when this has come to be somebody who may ask for others.
    pub async fn comes_to_vouch(&self, peer: &Peer) {
        self.front_proxy.comes_to_vouch(peer).await;
    }

    /// Lets a user do something, or says that he may not.
    ///
    /// # Errors
    /// 403 when he has no right to, 503 when that can't be found out.
    pub async fn authorize(&self, user: &User, action: &Action) -> Result<(), Failure> {
        self.access.authorize(user, action).await
    }
}

/// Asks the Kubernetes API, a bounded number of questions at once, each for a bounded time.
#[derive(Debug)]
struct Questions(Semaphore);

impl Default for Questions {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Questions {
    async fn ask<T>(
        &self,
        what: &'static str,
        question: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Failure> {
        static FAILED: Quiet = Quiet::new(Duration::from_mins(1));
        let asked = tokio::time::timeout(PATIENCE, async {
            let _turn = self.0.acquire().await;
            question.await
        });
        let error = match asked.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        if let Some(silent) = FAILED.speak() {
            warn!(question = what, error, silent, "cannot ask the Kubernetes API");
        }
        let message = format!("the {what} that this request needs could not be made: try again");
        Err(Failure::later(Reason::ServiceUnavailable, message, RETRY_AFTER))
    }
}

#[cfg(test)]
mod tests;
