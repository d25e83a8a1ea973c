//! What is to be done about the `ConfigMap` of a namespace.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use tokio::time::Instant;

use crate::model::ids::Namespace;
use crate::server::certificates::{BUNDLE_KEY, FIELD_MANAGER};

/// Label by which objects of ours are known.
pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// A namespace without a Webhook keeps its `ConfigMap` for this long: a Webhook is often made anew.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// After a write, until the watch has told of it.
const SETTLE: Duration = Duration::from_secs(2);
/// After a first and after a many times repeated failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(2));

/// What is known of a `ConfigMap` with our name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its `ca.crt`.
    pub(super) bundle: Option<String>,
    /// It has the label.
    pub(super) labelled: bool,
    /// Some of its fields were written by us.
    pub(super) written: bool,
    pub(super) uid: Option<String>,
    pub(super) version: Option<String>,
}

impl Found {
    pub(super) fn of(map: &ConfigMap) -> Self {
        let meta = &map.metadata;
        let label = meta.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY));
        let managers = meta.managed_fields.iter().flatten();
        Self {
            bundle: map.data.as_ref().and_then(|data| data.get(BUNDLE_KEY)).cloned(),
            labelled: label.is_some_and(|manager| manager == FIELD_MANAGER),
            written: managers.filter_map(|entry| entry.manager.as_ref()).any(|name| name == FIELD_MANAGER),
            uid: meta.uid.clone(),
            version: meta.resource_version.clone(),
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is right, or not ours.
    Leave,
    /// Make it, or make it right.
    Write,
    /// It is ours, and of no use any more.
    Delete,
}

/// Judges by what there is. What somebody else made under our name is his.
pub(super) fn step(is_wanted: bool, bundle: &str, found: Option<&Found>) -> Step {
    match found {
        None if is_wanted => Step::Write,
        None => Step::Leave,
        Some(found) if !found.labelled && !found.written => Step::Leave,
        Some(_) if !is_wanted => Step::Delete,
        Some(found) if found.labelled && found.bundle.as_deref() == Some(bundle) => Step::Leave,
        Some(_) => Step::Write,
    }
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Failed,
}

/// When each namespace is to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Pace {
    unwanted: HashMap<Namespace, Instant>,
    waits: HashMap<Namespace, (Instant, u32)>,
}

impl Pace {
    /// Whether a step is taken now.
    pub(super) fn lets(&mut self, namespace: &Namespace, step: Step, now: Instant) -> bool {
        if step == Step::Delete {
            let since = *self.unwanted.entry(Namespace::clone(namespace)).or_insert(now);
            if now.duration_since(since) < GRACE {
                return false;
            }
        } else {
            self.unwanted.remove(namespace);
        }
        if step == Step::Leave {
            self.waits.remove(namespace);
            return false;
        }
        self.waits.get(namespace).is_none_or(|(until, _)| now >= *until)
    }

    /// Remembers what became of one.
    pub(super) fn took(&mut self, namespace: &Namespace, outcome: Outcome, now: Instant) {
        let failures = self.waits.get(namespace).map_or(0, |(_, failures)| *failures);
        let (wait, failures) = match outcome {
            Outcome::Done => (SETTLE, 0),
            Outcome::Failed => {
                let doubled = BACKOFF.0.saturating_mul(1 << failures.min(10));
                (doubled.min(BACKOFF.1), failures.saturating_add(1))
            }
        };
        self.waits.insert(Namespace::clone(namespace), (now + wait, failures));
    }

    /// Forgets namespaces of which nothing is left.
    pub(super) fn retain(&mut self, is_known: impl Fn(&Namespace) -> bool) {
        self.unwanted.retain(|namespace, _| is_known(namespace));
        self.waits.retain(|namespace, _| is_known(namespace));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_config_map_is_ours_by_its_label_or_by_who_wrote_it() {
        let found = |meta: serde_json::Value| {
            let map = json!({"metadata": meta, "data": {"ca.crt": "pem"}});
            Found::of(&serde_json::from_value(map).unwrap())
        };
        let ours = json!({"labels": {"app.kubernetes.io/managed-by": "hookwright"}});
        let written = json!({"managedFields": [{"manager": "kubectl"}, {"manager": "hookwright"}]});
        let theirs = json!({"labels": {"app.kubernetes.io/managed-by": "Helm"},
                            "managedFields": [{"manager": "helm"}]});
        for (meta, labelled, is_written) in
            [(ours, true, false), (written, false, true), (theirs, false, false)]
        {
            let found = found(meta.clone());
            assert_eq!((found.labelled, found.written), (labelled, is_written), "{meta}");
            assert_eq!(found.bundle.as_deref(), Some("pem"));
        }
    }

    #[test]
    fn what_is_missing_is_made_what_was_edited_is_mended_and_what_is_not_ours_is_left() {
        let found = |bundle: Option<&str>, labelled, written| Found {
            bundle: bundle.map(ToOwned::to_owned),
            labelled,
            written,
            uid: None,
            version: None,
        };
        for (what, found, wanted, unwanted) in [
            ("there is none", None, Step::Write, Step::Leave),
            ("right", Some(found(Some("new"), true, true)), Step::Leave, Step::Delete),
            ("of an older CA", Some(found(Some("old"), true, true)), Step::Write, Step::Delete),
            ("emptied", Some(found(None, true, false)), Step::Write, Step::Delete),
            ("its label taken", Some(found(Some("new"), false, true)), Step::Write, Step::Delete),
            ("somebody else's", Some(found(Some("mine"), false, false)), Step::Leave, Step::Leave),
        ] {
            assert_eq!(step(true, "new", found.as_ref()), wanted, "{what}, wanted");
            assert_eq!(step(false, "new", found.as_ref()), unwanted, "{what}, unwanted");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deletion_waits_for_a_webhook_to_come_back() {
        let (mut pace, namespace) = (Pace::default(), Namespace::from("team-a"));
        let mut lets = |step| pace.lets(&namespace, step, Instant::now());
        assert!(!lets(Step::Delete));
        tokio::time::advance(GRACE / 2).await;
        assert!(!lets(Step::Leave), "there is a Webhook again");
        tokio::time::advance(GRACE).await;
        assert!(!lets(Step::Delete), "so the time begins anew");
        tokio::time::advance(GRACE).await;
        assert!(lets(Step::Delete));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_repeated_ever_more_seldom_and_a_write_is_given_time_to_be_seen() {
        let (mut pace, namespace) = (Pace::default(), Namespace::from("team-a"));
        let mut waits = Vec::new();
        for _ in 0..9 {
            pace.took(&namespace, Outcome::Failed, Instant::now());
            let begun = Instant::now();
            while !pace.lets(&namespace, Step::Write, Instant::now()) {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            waits.push(begun.elapsed().as_secs());
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 120, 120, 120]);
        pace.took(&namespace, Outcome::Done, Instant::now());
        assert!(!pace.lets(&namespace, Step::Write, Instant::now()));
        tokio::time::advance(SETTLE).await;
        assert!(pace.lets(&namespace, Step::Write, Instant::now()));
        pace.retain(|_| false);
        assert!(pace.waits.is_empty());
    }
}
