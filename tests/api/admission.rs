//! What a real kube-apiserver says of a spec, beside what the operator says of it.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt as _};
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plane;

/// Generated strings of one kind, beside those that are listed.
const GENERATED: usize = 120;
/// Requests under way at once.
pub(crate) const AT_ONCE: usize = 16;

/// A spec to be judged, and what it is called when it is judged differently.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) what: String,
    pub(crate) spec: Value,
}

/// What kube-apiserver says.
pub(crate) enum Verdict {
    /// The object as it would be stored.
    Taken(Value),
    Refused(String),
}

pub(crate) struct Admission {
    client: Client,
    namespace: String,
}

impl Admission {
    pub(crate) async fn new() -> Self {
        let plane = plane().await;
        let kubeconfig = Kubeconfig::read_from(plane.kubeconfig_path()).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let namespace = plane.namespace("grammar").await.unwrap();
        Self { client: Client::try_from(config).unwrap(), namespace }
    }

    /// Would it be stored?
    pub(crate) async fn judge(&self, kind: &str, spec: &Value) -> Verdict {
        let (plural, version) = (format!("{}s", kind.to_lowercase()), "v1alpha1".to_owned());
        let group = "hookwright.dev".to_owned();
        let api_version = format!("{group}/{version}");
        let resource =
            ApiResource { group, version, api_version: api_version.clone(), kind: kind.to_owned(), plural };
        let object =
            json!({ "apiVersion": api_version, "kind": kind, "metadata": { "name": "one" }, "spec": spec });
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
        match api.create(&PostParams { dry_run: true, field_manager: None }, &object).await {
            Ok(object) => Verdict::Taken(serde_json::to_value(object).unwrap()),
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
                Verdict::Refused(status.message)
            }
            Err(error) => unreachable!("{spec}: {error}"),
        }
    }

    /// Sets both verdicts beside each other. `operator` says what is wrong with an object as the operator sees it, and
    /// `meaning` what it means otherwise than it says.
    pub(crate) async fn compare<K: DeserializeOwned>(
        &self,
        kind: &str,
        cases: Vec<Case>,
        operator: impl Fn(&K) -> Result<(), String>,
    ) {
        let verdicts = stream::iter(cases).map(async |case| {
            let verdict = self.judge(kind, &case.spec).await;
            (case, verdict)
        });
        let verdicts: Vec<_> = verdicts.buffer_unordered(AT_ONCE).collect().await;
        let (mut wrong, mut counts) = (Vec::new(), BTreeMap::<_, usize>::new());
        for (case, verdict) in verdicts {
            let (taken, object) = match verdict {
                Verdict::Taken(object) => (Ok(()), object),
                Verdict::Refused(why) => (Err(why), raw(kind, &case.spec)),
            };
            let read = serde_json::from_value::<K>(object).map_err(|error| error.to_string());
            let judged = read.and_then(|object| operator(&object));
            *counts.entry(taken.is_ok()).or_default() += 1;
            if taken.is_ok() != judged.is_ok() {
                wrong.push(format!("{}: admission {taken:?}, operator {judged:?}", case.what));
            }
        }
        assert!(wrong.is_empty(), "{} of {counts:?}:\n{}", wrong.len(), wrong.join("\n"));
        let both = [true, false].map(|taken| counts.get(&taken).copied().unwrap_or_default());
        assert!(
            both.iter().all(|count| *count >= 10),
            "too few that are taken, or too few that are refused: {both:?}"
        );
    }
}

/// As the operator would read it if it were stored.
pub(crate) fn raw(kind: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "hookwright.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": { "name": "one", "namespace": "grammar", "uid": "7d9f4d0e-5c1b-4d3e-9b53-6d2f5f2c0a11" } })
}

/// Listed and generated strings, the same in every run unless the seed is another.
pub(crate) fn strings(listed: &[&str], generated: &[BoxedStrategy<String>]) -> Vec<String> {
    let mut runner = TestRunner::default();
    let mut all: Vec<String> = listed.iter().map(|text| (*text).to_owned()).collect();
    for strategy in generated {
        let of_each = GENERATED / generated.len();
        all.extend((0..of_each).map(|_| strategy.new_tree(&mut runner).unwrap().current()));
    }
    all
}

pub(crate) fn cases(texts: &[String], spec: impl Fn(&str) -> Value) -> Vec<Case> {
    texts.iter().map(|text| Case { what: format!("{text:?}"), spec: spec(text) }).collect()
}
