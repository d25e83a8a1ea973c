//! Reads what a Webhook refers to.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::core::ObjectMeta;
use kube::{Api, Client};

use crate::api::USE_LABEL;
use crate::routes::references::{Data, Found, Kind, Reference, References};
use crate::routes::watch::why;

/// No answer within this is a failure.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Reads each reference. A Secret's data is read only when it carries the label: of one that is not `known` to, the
/// metadata comes first.
pub(super) async fn references(
    client: &Client,
    namespace: &str,
    references: Vec<(Reference, bool)>,
) -> References {
    let reads = references.into_iter().map(|(reference, known)| async move {
        let found = match reference.kind {
            Kind::Secret => limited(secret(client, namespace, &reference.name, known)).await,
            Kind::ConfigMap => limited(config_map(client, namespace, &reference.name)).await,
        };
        (reference, found)
    });
    futures::future::join_all(reads).await.into_iter().collect()
}

async fn limited(read: impl Future<Output = kube::Result<Found>>) -> Found {
    match tokio::time::timeout(TIMEOUT, read).await {
        Ok(Ok(found)) => found,
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Found::Unreadable(status.message.clone()),
        Ok(Err(error)) => Found::NoAnswer(why(&error)),
        Err(_) => Found::NoAnswer(format!("no answer within {}s", TIMEOUT.as_secs())),
    }
}

async fn secret(client: &Client, namespace: &str, name: &str, known: bool) -> kube::Result<Found> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if !known {
        match api.get_metadata_opt(name).await? {
            None => return Ok(Found::Nothing),
            Some(object) if !is_labelled(&object.metadata) => return Ok(Found::NotLabelled),
            Some(_) => {}
        }
    }
    Ok(match api.get_opt(name).await? {
        None => Found::Nothing,
        Some(secret) if !is_labelled(&secret.metadata) => Found::NotLabelled,
        Some(secret) => {
            let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
            Found::Object(Data(data.collect()), version(secret.metadata))
        }
    })
}

async fn config_map(client: &Client, namespace: &str, name: &str) -> kube::Result<Found> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let Some(object) = api.get_opt(name).await? else { return Ok(Found::Nothing) };
    let text = object.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
    let binary = object.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
    let data: BTreeMap<_, _> = text.chain(binary).collect();
    Ok(Found::Object(Data(data), version(object.metadata)))
}

fn is_labelled(meta: &ObjectMeta) -> bool {
    meta.labels.as_ref().and_then(|labels| labels.get(USE_LABEL)).is_some_and(|value| value == "true")
}

fn version(meta: ObjectMeta) -> String {
    meta.resource_version.unwrap_or_default()
}
