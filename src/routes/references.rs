//! What a Webhook refers to, and what was found there.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::api::WebhookSpec;
use crate::api::webhook::CaKind;

/// What can be referred to, always in the Webhook's own namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A Secret, which must carry the label.
    Secret,
    /// A ConfigMap.
    ConfigMap,
}

impl From<CaKind> for Kind {
    fn from(kind: CaKind) -> Self {
        match kind {
            CaKind::ConfigMap => Self::ConfigMap,
            CaKind::Secret => Self::Secret,
        }
    }
}

/// One object of the Webhook's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
}

impl Reference {
    /// A Secret.
    pub fn secret(name: &str) -> Self {
        Self { kind: Kind::Secret, name: name.into() }
    }

    /// A ConfigMap.
    pub fn config_map(name: &str) -> Self {
        Self { kind: Kind::ConfigMap, name: name.into() }
    }
}

/// The objects that a spec refers to, each once.
pub fn of(spec: &WebhookSpec) -> Vec<Reference> {
    let headers = spec.headers.iter().filter_map(|header| header.value_from.as_ref());
    let keys = spec.signing.iter().flat_map(|signing| &signing.secret_refs);
    let ca = spec.tls.iter().filter_map(|tls| tls.ca_ref.as_ref());
    let client = spec.tls.iter().filter_map(|tls| tls.client_certificate_ref.as_ref());
    let mut all: Vec<Reference> = headers
        .map(|source| Reference::secret(&source.secret_key_ref.name))
        .chain(keys.map(|key| Reference::secret(&key.name)))
        .chain(ca.map(|ca| Reference { kind: ca.kind.into(), name: ca.name.as_str().into() }))
        .chain(client.map(|client| Reference::secret(&client.name)))
        .collect();
    all.sort();
    all.dedup();
    all
}

/// What an object holds. Never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Data(pub BTreeMap<String, Vec<u8>>);

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Data")
    }
}

/// What was found at a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The object, and its resource version.
    Object(Data, String),
    /// A Secret that lacks the label: its data was not read.
    NotLabelled,
    /// Nothing.
    Nothing,
    /// Reading it is refused, and why.
    Unreadable(String),
    /// The API server gave no answer, and why: what was read before still counts.
    NoAnswer(String),
}

impl Found {
    /// The resource version of an object that may be used.
    pub fn version(&self) -> Option<&str> {
        match self {
            Self::Object(_, version) => Some(version),
            Self::NotLabelled | Self::Nothing | Self::Unreadable(_) | Self::NoAnswer(_) => None,
        }
    }
}

/// What was found at each reference of one Webhook.
#[derive(Clone, Debug, Default)]
pub struct References(HashMap<Reference, Found>);

impl References {
    /// What was found there; nothing when nobody looked.
    pub fn get(&self, reference: &Reference) -> &Found {
        self.0.get(reference).unwrap_or(&Found::Nothing)
    }

    /// Whether the API server gave no answer to at least one of them.
    pub fn lacks_an_answer(&self) -> bool {
        self.0.values().any(|found| matches!(found, Found::NoAnswer(_)))
    }
}

impl FromIterator<(Reference, Found)> for References {
    fn from_iter<I: IntoIterator<Item = (Reference, Found)>>(found: I) -> Self {
        Self(found.into_iter().collect())
    }
}
