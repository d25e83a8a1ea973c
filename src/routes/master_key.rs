//! The master key of the installation: 32 random bytes in a Secret of the operator's own namespace.

use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};

use super::compile::MasterKey;
use super::watch::why;

/// The Secret's name.
pub const NAME: &str = "hookwright-signing";
/// The key in its data.
pub const DATA_KEY: &str = "master.key";
/// No answer within this is a failure.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no master key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The apiserver would not say or take it.
    #[error("cannot {what} Secret {namespace}/{NAME}, which holds the master key of all signing keys: {why}")]
    Api {
        /// What was attempted.
        what: &'static str,
        /// The operator's namespace.
        namespace: String,
        /// What the apiserver said.
        why: String,
    },
    /// Something else is in it.
    #[error(
        "Secret {namespace}/{NAME} must hold 32 bytes at {DATA_KEY}: restore it from a backup; if there is none, delete \
         it and restart with --accept-new-signing-key (all public keys change)"
    )]
    Malformed {
        /// The operator's namespace.
        namespace: String,
    },
    /// The system's random generator failed.
    #[error("the random generator of the system failed")]
    NoRandomness,
}

/// What the store knows of the master key.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Of the key that deliveries were signed with so far; none: a new store, or one of a program that did not keep it.
    pub fingerprint: Option<String>,
    /// Whether the store knows Webhooks, so that there was a key.
    pub has_webhooks: bool,
    /// Whether another key is accepted.
    pub accepts_new: bool,
}

/// The master key is not the one that deliveries were signed with so far.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "Secret {namespace}/{NAME} {found}: the store knows Webhooks whose deliveries were signed with the former master \
     key. With another one, every Webhook's public key changes, and receivers that verify v1a signatures refuse what \
     they are sent. Restore the Secret from a backup and restart. If there is none, restart once with \
     --accept-new-signing-key, and give the receivers the new public keys (.status.publicKey of each Webhook)"
)]
pub struct Changed {
    namespace: String,
    found: String,
}

impl Known {
    /// Whether another key would be accepted, though the one that was found is known already.
    pub fn is_guard_off_for_nothing(&self, found: &str) -> bool {
        self.accepts_new && self.fingerprint.as_deref() == Some(found)
    }

    /// Whether a key, or none, may be used; none: one may then be made.
    fn allows(&self, found: Option<&MasterKey>, namespace: &str) -> Result<(), Changed> {
        let found = match (found.map(MasterKey::fingerprint), &self.fingerprint) {
            _ if self.accepts_new => return Ok(()),
            (Some(found), Some(known)) if found != *known => {
                format!("holds another key than before (its fingerprint is {found}, it was {known})")
            }
            (None, Some(known)) => format!("is missing (the fingerprint of its key was {known})"),
            (None, None) if self.has_webhooks => "is missing".to_owned(),
            (Some(_), _) | (None, None) => return Ok(()),
        };
        Err(Changed { namespace: namespace.to_owned(), found })
    }
}

/// Reads the master key, and makes it first if there is none and the store knows none. Of several that make one at the
/// same time, one wins, and all have its key. The inner error is final; the outer one may pass.
pub async fn load(
    client: &Client,
    namespace: &str,
    known: &Known,
) -> Result<Result<MasterKey, Changed>, Error> {
    let judge = |found: MasterKey| known.allows(Some(&found), namespace).map(|()| found);
    let read = || read(client, namespace);
    if let Some(found) = read().await? {
        return Ok(judge(found));
    }
    if let Err(missing) = known.allows(None, namespace) {
        return Ok(Err(missing));
    }
    if let Some(made) = create(client, namespace).await? {
        return Ok(Ok(made));
    }
    let theirs = read().await?.ok_or_else(|| Error::Api {
        what: "read",
        namespace: namespace.to_owned(),
        why: "it was created and deleted again".to_owned(),
    })?;
    Ok(judge(theirs))
}

async fn read(client: &Client, namespace: &str) -> Result<Option<MasterKey>, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |why| Error::Api { what: "read", namespace: namespace.to_owned(), why };
    let read = tokio::time::timeout(TIMEOUT, api.get_opt(NAME)).await;
    let read = read.map_err(|_| failed("no answer".to_owned()))?.map_err(|error| failed(why(&error)))?;
    read.map(|secret| key(&secret, namespace)).transpose()
}

/// None: somebody else was first.
async fn create(client: &Client, namespace: &str) -> Result<Option<MasterKey>, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |why| Error::Api { what: "create", namespace: namespace.to_owned(), why };
    let fresh = fresh()?;
    match tokio::time::timeout(TIMEOUT, api.create(&PostParams::default(), &fresh)).await {
        Ok(Ok(secret)) => key(&secret, namespace).map(Some),
        Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => Ok(None),
        Ok(Err(error)) => Err(failed(why(&error))),
        Err(_) => Err(failed("no answer".to_owned())),
    }
}

fn key(secret: &Secret, namespace: &str) -> Result<MasterKey, Error> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(DATA_KEY)).map(|value| value.0.as_slice());
    let bytes: Option<[u8; 32]> = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.map(MasterKey::new).ok_or_else(|| Error::Malformed { namespace: namespace.to_owned() })
}

/// Immutable: an edit would change every public key.
fn fresh() -> Result<Secret, Error> {
    let mut bytes = [0_u8; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::NoRandomness)?;
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some([("app.kubernetes.io/managed-by".to_owned(), "hookwright".to_owned())].into()),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        type_: Some("Opaque".to_owned()),
        data: Some([(DATA_KEY.to_owned(), ByteString(bytes.to_vec()))].into()),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acceptance_that_is_left_set_is_noticed() {
        let known = |fingerprint: Option<&str>, accepts_new| Known {
            fingerprint: fingerprint.map(str::to_owned),
            has_webhooks: true,
            accepts_new,
        };
        assert!(known(Some("a"), true).is_guard_off_for_nothing("a"));
        assert!(!known(Some("a"), true).is_guard_off_for_nothing("b"), "it is what it was set for");
        assert!(!known(None, true).is_guard_off_for_nothing("a"));
        assert!(!known(Some("a"), false).is_guard_off_for_nothing("a"));
    }

    #[test]
    fn a_fresh_key_is_whole_random_and_never_printed() {
        let (a, b) = (fresh().unwrap(), fresh().unwrap());
        let (a, b) = (key(&a, "ns").unwrap(), key(&b, "ns").unwrap());
        assert_ne!(a.0, b.0);
        assert_eq!(format!("{a:?}"), "MasterKey");
    }

    #[test]
    fn another_key_or_none_is_refused_unless_it_is_accepted_or_nobody_knew_one() {
        let (first, second) = (MasterKey::new([1; 32]), MasterKey::new([2; 32]));
        let known = |key: Option<&MasterKey>, has_webhooks, accepts_new| Known {
            fingerprint: key.map(MasterKey::fingerprint),
            has_webhooks,
            accepts_new,
        };
        for (known, found, refused) in [
            (known(None, false, false), None, None),
            (known(None, false, false), Some(&first), None),
            // Of a program that did not keep it.
            (known(None, true, false), Some(&first), None),
            (known(None, true, false), None, Some("is missing")),
            (known(Some(&first), false, false), None, Some("is missing")),
            (known(Some(&first), true, false), Some(&first), None),
            (known(Some(&first), true, false), Some(&second), Some("holds another key")),
            (known(Some(&first), true, true), Some(&second), None),
            (known(Some(&first), true, true), None, None),
        ] {
            let allowed = known.allows(found, "hookwright-system");
            let Some(refused) = refused else {
                assert_eq!(allowed, Ok(()), "{known:?}");
                continue;
            };
            let sentence = allowed.unwrap_err().to_string();
            let start = format!("Secret hookwright-system/hookwright-signing {refused}");
            assert!(sentence.starts_with(&start), "{sentence}");
            assert!(sentence.contains("Restore the Secret from a backup"), "{sentence}");
            assert!(sentence.contains("--accept-new-signing-key"), "{sentence}");
        }
        assert_eq!(first.fingerprint().len(), 32);
        // What stores remember: it must not change.
        assert_eq!(first.fingerprint(), "7a219516784119f9622f3831fc0cac2e");
    }

    #[test]
    fn a_secret_that_holds_something_else_is_refused_with_what_to_do() {
        let mut secret = fresh().unwrap();
        secret.data = Some([(DATA_KEY.to_owned(), ByteString(vec![1; 31]))].into());
        let error = key(&secret, "hookwright-system").unwrap_err().to_string();
        assert!(error.contains("hookwright-system/hookwright-signing must hold 32 bytes"), "{error}");
        secret.data = None;
        assert!(key(&secret, "hookwright-system").is_err());
    }
}
