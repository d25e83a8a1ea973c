//! Who refers to what, and which version of it is in force.

use std::collections::{HashMap, HashSet};

use crate::model::ids::Namespace;
use crate::routes::references::{Kind, Reference, References};
use crate::routes::watch::Key;

/// The references of every Webhook, both ways.
#[derive(Debug, Default)]
pub(super) struct Index {
    used: HashMap<Key, HashMap<Reference, Option<String>>>,
    by_reference: HashMap<(Namespace, Reference), HashSet<Key>>,
}

impl Index {
    /// A Webhook refers to these, of which nothing is read yet; what it referred to before and does still is kept.
    pub(super) fn refers(&mut self, key: &Key, references: &[Reference]) {
        let mut before = self.used.remove(key).unwrap_or_default();
        for gone in before.keys().filter(|reference| !references.contains(reference)) {
            Self::unlink(&mut self.by_reference, key, gone);
        }
        let used = references.iter().map(|reference| {
            let place = (key.namespace.clone(), reference.clone());
            self.by_reference.entry(place).or_default().insert(key.clone());
            (reference.clone(), before.remove(reference).flatten())
        });
        let used: HashMap<_, _> = used.collect();
        if !used.is_empty() {
            self.used.insert(key.clone(), used);
        }
    }

    /// What was found is in force now. Tells whether it is other than before.
    pub(super) fn found(&mut self, key: &Key, references: &References) -> bool {
        let mut changed = false;
        for (reference, used) in self.used.get_mut(key).into_iter().flatten() {
            let version = references.get(reference).version();
            if used.as_deref() != version {
                *used = version.map(str::to_owned);
                changed = true;
            }
        }
        changed
    }

    /// A Webhook is gone.
    pub(super) fn remove(&mut self, key: &Key) {
        for reference in self.used.remove(key).unwrap_or_default().keys() {
            Self::unlink(&mut self.by_reference, key, reference);
        }
    }

    /// The Webhooks that refer to this object and don't have this version of it in force (none: it is gone).
    pub(super) fn outdated(
        &self,
        namespace: &Namespace,
        reference: &Reference,
        version: Option<&str>,
    ) -> Vec<Key> {
        let place = (namespace.clone(), reference.clone());
        let keys = self.by_reference.get(&place).into_iter().flatten();
        let outdated = keys.filter(|key| {
            let used = self.used.get(*key).and_then(|used| used.get(reference));
            used.is_none_or(|used| used.as_deref() != version)
        });
        outdated.cloned().collect()
    }

    /// Whether a Webhook refers to something that is not watched.
    pub(super) fn polls(&self, key: &Key) -> bool {
        let mut references = self.used.get(key).into_iter().flatten();
        references.any(|(reference, _)| reference.kind == Kind::ConfigMap)
    }

    fn unlink(links: &mut HashMap<(Namespace, Reference), HashSet<Key>>, key: &Key, reference: &Reference) {
        let place = (key.namespace.clone(), reference.clone());
        if let Some(keys) = links.get_mut(&place) {
            keys.remove(key);
            if keys.is_empty() {
                links.remove(&place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::references::{Data, Found};

    fn key(name: &str) -> Key {
        Key { namespace: "team-a".into(), name: name.into() }
    }

    fn version(name: &str, version: &str) -> References {
        [(Reference::secret(name), Found::Object(Data::default(), version.to_owned()))].into_iter().collect()
    }

    #[test]
    fn only_webhooks_with_another_version_in_force_are_outdated() {
        let mut index = Index::default();
        let (namespace, secret) = ("team-a".into(), Reference::secret("s"));
        for name in ["a", "b"] {
            index.refers(&key(name), std::slice::from_ref(&secret));
        }
        index.refers(&key("c"), &[Reference::secret("other"), Reference::config_map("s")]);
        assert_eq!(index.outdated(&namespace, &secret, Some("7")).len(), 2);
        assert!(index.found(&key("a"), &version("s", "7")));
        assert!(!index.found(&key("a"), &version("s", "7")));
        assert_eq!(index.outdated(&namespace, &secret, Some("7")), [key("b")]);
        assert_eq!(index.outdated(&namespace, &secret, None), [key("a")], "b has none in force");
        assert!(index.found(&key("a"), &References::default()), "it went");
        assert_eq!(index.outdated(&"team-b".into(), &secret, Some("7")), []);
    }

    #[test]
    fn what_is_no_longer_referred_to_is_forgotten() {
        let mut index = Index::default();
        let secret = Reference::secret("s");
        index.refers(&key("a"), &[secret.clone(), Reference::config_map("ca")]);
        assert!(index.polls(&key("a")));
        index.found(&key("a"), &version("s", "7"));
        index.refers(&key("a"), std::slice::from_ref(&secret));
        assert!(!index.polls(&key("a")));
        assert_eq!(index.outdated(&"team-a".into(), &secret, Some("7")), [], "what is kept stays in force");
        index.remove(&key("a"));
        assert!(index.used.is_empty() && index.by_reference.is_empty());
    }
}
