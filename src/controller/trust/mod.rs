//! Publishes the CA of the door as `ConfigMap` `hookwright-ca` into each namespace that has a Webhook, as Kubernetes does
//! with `kube-root-ca.crt`: its producers mount it. It is kept right, follows a rotation (old and new CA are in it), and
//! goes with the last Webhook of its namespace, if it is ours.

mod plan;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, Preconditions};
use kube::core::Status;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::model::ids::Namespace;
use crate::routes::Table;
use crate::routes::watch::{Key, Mirror, Scope, map, named, why};
use crate::server::certificates::{BUNDLE_KEY, CA_NAME, FIELD_MANAGER};
use plan::{Found, MANAGED_BY, Outcome, Pace, Step, step};

/// How often it is compared what is and what should be.
const TICK: Duration = Duration::from_secs(1);
/// For one call to the Kubernetes API.
const CALL: Duration = Duration::from_secs(5);
/// Calls at once.
const AT_ONCE: usize = 8;
/// What people read who find it.
const DESCRIPTION: &str =
    "CA bundle by which producers verify the certificate of Hookwright's door. Kept by Hookwright.";

/// What is published where.
pub struct Trust {
    /// The cluster.
    pub client: Client,
    /// Which namespaces are served.
    pub scope: Scope,
    /// Which of them have Webhooks.
    pub table: Arc<Table>,
    /// The CA bundle, and each change of it.
    pub bundles: watch::Receiver<Option<String>>,
    /// The operator's own namespace, whose `ConfigMap` is kept with the CA itself.
    pub own: Namespace,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl Trust {
    /// Publishes until told to stop. What is there stays.
    pub async fn run(self, stop: CancellationToken) {
        let mut maps = named::<ConfigMap>(&self.client, &self.scope, self.table.coverage(), CA_NAME);
        let (mut mirror, mut pace) = (Mirror::new(&self.scope), Pace::default());
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some((number, event)) = maps.next() => {
                    mirror.apply(number, map(event, |object| (Key::of(&object.metadata), Found::of(&object))));
                }
                _ = tick.tick() => {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = self.look(&mirror, &mut pace) => {}
                    }
                }
            }
        }
    }

    /// Compares what is and what should be, and does what is to be done.
    async fn look(&self, mirror: &Mirror<Found>, pace: &mut Pace) {
        let bundle = self.bundles.borrow().clone();
        let Some(bundle) = bundle else { return };
        let wanted: HashSet<Namespace> = self.table.namespaces().into_iter().collect();
        let found = mirror.keys().map(|key| Namespace::clone(&key.namespace));
        let mut all: HashSet<Namespace> = wanted.iter().cloned().chain(found).collect();
        all.remove(&self.own);
        // Where it is not known what there is, or what should be, nothing is done yet.
        let is_listed =
            |namespace: &str| self.scope.watch_of(namespace).is_some_and(|it| mirror.is_listed(it));
        all.retain(|namespace| self.table.serves(namespace) && is_listed(namespace));
        pace.retain(|namespace| all.contains(namespace));
        let mut steps = Vec::new();
        for namespace in all {
            let key = Key { namespace, name: CA_NAME.into() };
            let found = mirror.get(&key);
            let step = step(wanted.contains(&key.namespace), &bundle, found);
            if pace.lets(&key.namespace, step, Instant::now()) {
                steps.push((key.namespace, step, found.cloned()));
            }
        }
        let taken =
            steps.into_iter().map(|(namespace, step, found)| self.take(namespace, step, found, &bundle));
        let mut taken = stream::iter(taken).buffer_unordered(AT_ONCE);
        while let Some((namespace, outcome)) = taken.next().await {
            pace.took(&namespace, outcome, Instant::now());
        }
    }

    async fn take(
        &self,
        namespace: Namespace,
        step: Step,
        found: Option<Found>,
        bundle: &str,
    ) -> (Namespace, Outcome) {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &namespace);
        let call = async {
            match (step, &found) {
                (Step::Write, _) => write(&maps, bundle).await,
                (Step::Delete, Some(found)) => delete(&maps, found).await,
                (Step::Leave, _) | (Step::Delete, None) => Ok(()),
            }
        };
        let outcome = match timeout(CALL, call).await {
            Ok(Ok(())) => {
                info!(%namespace, config_map = CA_NAME, ?step, "the published CA is as it should be");
                Outcome::Done
            }
            Ok(Err(kube::Error::Api(status))) if is_going(&status) => {
                debug!(%namespace, config_map = CA_NAME, "the namespace is going, and its CA with it");
                Outcome::Failed
            }
            Ok(Err(error)) => complain(&namespace, &why(&error)),
            Err(_) => complain(&namespace, "the Kubernetes API does not answer"),
        };
        (namespace, outcome)
    }
}

fn complain(namespace: &str, error: &str) -> Outcome {
    warn!(namespace, config_map = CA_NAME, error, "cannot publish the CA, or take it back");
    Outcome::Failed
}

async fn write(maps: &Api<ConfigMap>, bundle: &str) -> kube::Result<()> {
    let text = |pair: (&str, &str)| (pair.0.to_owned(), pair.1.to_owned());
    let labels = [(MANAGED_BY, FIELD_MANAGER), ("app.kubernetes.io/part-of", "hookwright")];
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(CA_NAME.to_owned()),
            labels: Some(labels.map(text).into()),
            annotations: Some([("kubernetes.io/description", DESCRIPTION)].map(text).into()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([text((BUNDLE_KEY, bundle))])),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    maps.patch(CA_NAME, &params, &Patch::Apply(&map)).await.map(drop)
}

/// Deletes this very object as it was seen: one that has changed since is looked at again.
async fn delete(maps: &Api<ConfigMap>, found: &Found) -> kube::Result<()> {
    let preconditions = Preconditions { uid: found.uid.clone(), resource_version: found.version.clone() };
    let params = DeleteParams::default().preconditions(preconditions);
    match maps.delete(CA_NAME, &params).await {
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        deleted => deleted.map(drop),
    }
}

/// Whether a namespace is being deleted, or is gone: nothing can be made in it.
fn is_going(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.is_not_found() || causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}
