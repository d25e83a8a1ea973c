//! Writes statuses by server-side apply.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Error;
use crate::routes::watch::why;

/// Who owns the status fields.
pub(super) const FIELD_MANAGER: &str = "hookwright";
/// No answer within this is a failure.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Writes the status of this very object, not of another of the same name; with `version`, only if it has not changed
/// since. Returns its new resource version; none when the object is gone.
pub(super) async fn status<K>(
    client: &Client,
    object: &K,
    status: &impl Serialize,
    version: Option<&str>,
) -> Result<Option<String>, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let mut meta = json!({ "name": name, "uid": object.uid() });
    if let (Some(meta), Some(version)) = (meta.as_object_mut(), version) {
        meta.insert("resourceVersion".to_owned(), json!(version));
    }
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": meta,
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&patch);
    let write = api.patch_status(&name, &params, &patch);
    match tokio::time::timeout(TIMEOUT, write).await {
        Ok(Ok(object)) => Ok(Some(object.resource_version().unwrap_or_default())),
        Ok(Err(kube::Error::Api(answer))) if answer.is_not_found() => Ok(None),
        Ok(Err(kube::Error::Api(answer))) if answer.is_conflict() => Err(Error::Conflict),
        Ok(Err(error)) => Err(Error::Api { what: "write the status", why: why(&error) }),
        Err(_) => Err(Error::Api { what: "write the status", why: "no answer".to_owned() }),
    }
}
