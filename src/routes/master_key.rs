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
         it (all public keys change) and restart"
    )]
    Malformed {
        /// The operator's namespace.
        namespace: String,
    },
    /// The system's random generator failed.
    #[error("the random generator of the system failed")]
    NoRandomness,
}

/// Reads the master key, and makes it first if there is none. Of several that make one at the same time, one wins, and
/// all have its key.
pub async fn load_or_create(client: &Client, namespace: &str) -> Result<MasterKey, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |what, why| Error::Api { what, namespace: namespace.to_owned(), why };
    let read = || async {
        let read = tokio::time::timeout(TIMEOUT, api.get_opt(NAME)).await;
        read.map_err(|_| failed("read", "no answer".to_owned()))?.map_err(|error| failed("read", why(&error)))
    };
    if let Some(secret) = read().await? {
        return key(&secret, namespace);
    }
    let fresh = fresh()?;
    match tokio::time::timeout(TIMEOUT, api.create(&PostParams::default(), &fresh)).await {
        Ok(Ok(secret)) => return key(&secret, namespace),
        Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => {}
        Ok(Err(error)) => return Err(failed("create", why(&error))),
        Err(_) => return Err(failed("create", "no answer".to_owned())),
    }
    let theirs =
        read().await?.ok_or_else(|| failed("read", "it was created and deleted again".to_owned()))?;
    key(&theirs, namespace)
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
    fn a_fresh_key_is_whole_random_and_never_printed() {
        let (a, b) = (fresh().unwrap(), fresh().unwrap());
        let (a, b) = (key(&a, "ns").unwrap(), key(&b, "ns").unwrap());
        assert_ne!(a.0, b.0);
        assert_eq!(format!("{a:?}"), "MasterKey");
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
