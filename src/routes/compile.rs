//! From a Webhook and what it refers to, to a [`Route`]: everything that only the operator can judge.
//!
//! Pure. Each part of an endpoint is made by a function that either makes it or says what is wrong, with what, and
//! which command mends it. Nothing here repeats any part of a Secret's value.

mod parts;
mod pem;

/// A rate limit as a spec has it; none: its time cannot be read, or is not within its bounds. A number that the schema
/// would refuse counts as one.
pub fn rate_limit(limit: &api::webhook::RateLimit) -> Option<RateLimit> {
    let per = duration::within(&limit.per, Duration::from_secs(1)..=Duration::from_hours(24))?;
    let number = |number: i32| u32::try_from(number).unwrap_or(1).max(1);
    Some(RateLimit { requests: number(limit.requests), per, burst: number(limit.burst) })
}

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt as _;

use super::references::References;
use super::{Endpoint, Route, TlsMaterial, Unready};
use crate::api::{self, REQUESTED_AT, Webhook, WebhookSpec};
use crate::model::address::Policy;
use crate::model::duration;
use crate::model::filter::Filter;
use crate::model::ids::{WebhookRef, WebhookUid};
use crate::model::rate::RateLimit;
use crate::model::retry;
use crate::model::signature::{Signer, SigningKey};
use crate::model::text::Masks;

/// `Ready` reason while what a Webhook refers to is being read for the first time: lasts milliseconds, and no status
/// is written for it.
pub const READING: &str = "ReadingReferences";
/// `Ready` reason when something that a Webhook refers to could not be read; tried again.
pub const REFERENCE_UNREADABLE: &str = "ReferenceUnreadable";

/// The key from which every Webhook's own signing key is derived.
#[derive(Clone)]
pub struct MasterKey(pub(super) Arc<[u8; 32]>);

impl MasterKey {
    /// From its 32 bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Arc::new(bytes))
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey")
    }
}

/// Compiles Webhooks for one installation.
#[derive(Clone, Debug)]
pub struct Compiler {
    master_key: MasterKey,
    policy: Policy,
}

/// Which Webhook an object is; none when the apiserver has not given it an identity.
pub fn identity(webhook: &Webhook) -> Option<WebhookRef> {
    Some(WebhookRef {
        uid: webhook.uid()?.parse::<WebhookUid>().ok()?,
        namespace: webhook.namespace()?.into(),
        name: webhook.name_any().into(),
    })
}

impl Compiler {
    /// Compiles with this master key and these rules about addresses.
    pub fn new(master_key: MasterKey, policy: Policy) -> Self {
        Self { master_key, policy }
    }

    /// The route of a Webhook, given what was found at its references. It is there whatever is wrong, so that events
    /// match; what is wrong is in `endpoint`. None only without an identity.
    pub fn compile(&self, webhook: &Webhook, references: &References) -> Option<Route> {
        let identity = identity(webhook)?;
        let input = parts::Input {
            namespace: &identity.namespace,
            name: &identity.name,
            spec: &webhook.spec,
            references,
            policy: &self.policy,
        };
        let key = SigningKey::derive(&self.master_key.0, &identity.namespace, &identity.name);
        let public_key = key.public_key().into();
        let endpoint = endpoint(&input, key).map(Arc::new);
        Some(route(webhook, identity, public_key, endpoint))
    }

    /// The route of a Webhook whose references are being read: it matches, and is not ready yet.
    pub fn reading(&self, webhook: &Webhook) -> Option<Route> {
        let identity = identity(webhook)?;
        let key = SigningKey::derive(&self.master_key.0, &identity.namespace, &identity.name);
        let message = "what this Webhook refers to is being read".to_owned();
        let unready = Unready { reason: READING, message, stalled: false };
        Some(route(webhook, identity, key.public_key().into(), Err(unready)))
    }

    /// The route of a Webhook whose object does not fit its kind: it matches what it matched before, and waits.
    pub fn broken(&self, webhook: &WebhookRef, generation: i64, before: Option<&Route>) -> Route {
        let key = SigningKey::derive(&self.master_key.0, &webhook.namespace, &webhook.name);
        let message = format!(
            "the object does not fit the definition of its kind: apply the CRDs of this version of Hookwright, or \
             write the object anew (kubectl -n {} edit hook {})",
            webhook.namespace, webhook.name
        );
        Route {
            webhook: webhook.clone(),
            generation,
            filter: before.map(|route| route.filter.clone()).unwrap_or_default(),
            active: before.is_none_or(|route| route.active),
            endpoint: Err(Unready { reason: "ObjectInvalid", message, stalled: true }),
            public_key: key.public_key().into(),
            gives_up_after: None,
            requested_at: before.and_then(|route| route.requested_at.clone()),
        }
    }
}

fn route(
    webhook: &Webhook,
    identity: WebhookRef,
    public_key: Arc<str>,
    endpoint: Result<Arc<Endpoint>, Unready>,
) -> Route {
    let gives_up_after = gives_up_after(&webhook.spec);
    Route {
        webhook: identity,
        generation: webhook.metadata.generation.unwrap_or(0),
        filter: Filter::compile(&webhook.spec.event_types),
        active: webhook.spec.active,
        endpoint,
        public_key,
        gives_up_after,
        requested_at: webhook.annotations().get(REQUESTED_AT).map(|value| value.as_str().into()),
    }
}

fn gives_up_after(spec: &WebhookSpec) -> Option<Duration> {
    parts::retry(spec).ok().map(|policy| retry::Policy::gives_up_after(&policy))
}

/// Makes every part, so that everything that is wrong is said at once.
fn endpoint(input: &parts::Input<'_>, key: SigningKey) -> Result<Endpoint, Unready> {
    let mut wrong = Vec::new();
    let mut masks = Vec::new();
    let target = note(parts::target(input), &mut wrong);
    let types = note(parts::event_types(input.spec), &mut wrong);
    let denied = target.as_ref().and_then(|target| parts::denied(input, target));
    let timeout = note(parts::timeout(input.spec), &mut wrong);
    let retry = note(parts::retry(input.spec), &mut wrong);
    let rate_limit = note(parts::rate_limit(input.spec), &mut wrong);
    let headers: Vec<_> =
        parts::headers(input, &mut masks).into_iter().filter_map(|header| note(header, &mut wrong)).collect();
    let keys: Vec<_> =
        parts::hmac_keys(input, &mut masks).into_iter().filter_map(|key| note(key, &mut wrong)).collect();
    let ca = note(parts::ca(input), &mut wrong);
    let client = note(parts::client_certificate(input), &mut wrong);
    let (Some(target), Some(()), Some(timeout), Some(retry), Some(rate_limit), Some(ca), Some(client), true) =
        (target, types, timeout, retry, rate_limit, ca, client, wrong.is_empty())
    else {
        return Err(summary(denied.into_iter().chain(wrong).collect()));
    };
    Ok(Endpoint {
        target,
        timeout,
        max_in_flight: usize::try_from(input.spec.max_in_flight).unwrap_or(1).max(1),
        rate_limit,
        retry,
        headers,
        signer: Signer::new(key, keys),
        tls: TlsMaterial { ca, client },
        masks: Masks::new(masks),
        denied,
    })
}

fn note<T>(part: Result<T, Unready>, wrong: &mut Vec<Unready>) -> Option<T> {
    part.map_err(|unready| wrong.push(unready)).ok()
}

/// At most so many of the things that are wrong are told.
const TOLD: usize = 3;

/// One reason, that of what only a change of the spec or of a reference can help when there is such, and what is
/// wrong in the order of the spec.
fn summary(wrong: Vec<Unready>) -> Unready {
    let stalled = wrong.iter().any(|unready| unready.stalled);
    let reason =
        wrong.iter().find(|unready| unready.stalled == stalled).map_or(READING, |first| first.reason);
    let more = wrong.len().saturating_sub(TOLD);
    let mut messages: Vec<String> = Vec::new();
    for unready in wrong.into_iter().take(TOLD) {
        if !messages.contains(&unready.message) {
            messages.push(unready.message);
        }
    }
    if more > 0 {
        messages.push(format!("and {more} more"));
    }
    Unready { reason, message: messages.join("; "), stalled }
}
