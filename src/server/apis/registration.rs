//! Makes kube-apiserver trust our certificate: the CA bundle of the APIService is ours to write, by server-side
//! apply under our own field manager, so that what a chart or GitOps renders never fights with it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::server::certificates::{Certificates, FIELD_MANAGER};
use crate::server::quiet::Quiet;

/// Name of the APIService.
pub const API_SERVICE: &str = "v1alpha1.delivery.hookwright.dev";

/// How soon a bundle that is new, or could not be written, is.
const SOON: Duration = Duration::from_secs(1);
/// How often an APIService that may have been created anew or changed by others is looked at.
const EVERY: Duration = Duration::from_secs(30);
/// For one call to the Kubernetes API.
const CALL: Duration = Duration::from_secs(5);

/// Keeps the CA bundle of the APIService as the certificates have it, until told to stop.
pub async fn run(client: Client, certificates: &Certificates, shutdown: CancellationToken) {
    static FAILED: Quiet = Quiet::new(Duration::from_mins(5));
    let services = Api::all(client);
    let mut written: Option<(String, Instant)> = None;
    loop {
        let bundle = certificates.bundle();
        let is_fresh =
            |bundle: &String| written.as_ref().is_some_and(|(is, at)| is == bundle && at.elapsed() < EVERY);
        if let Some(bundle) = bundle.filter(|bundle| !is_fresh(bundle)) {
            match timeout(CALL, write(&services, certificates, bundle)).await {
                Ok(Ok(bundle)) => written = Some((bundle, Instant::now())),
                Ok(Err(error)) => warn_quietly(&FAILED, &error.to_string()),
                Err(_) => warn_quietly(&FAILED, "the Kubernetes API does not answer"),
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep(SOON) => {}
        }
    }
}

fn warn_quietly(quiet: &Quiet, error: &str) {
    if let Some(silent) = quiet.speak() {
        warn!(api_service = API_SERVICE, error, silent, "cannot write the CA bundle");
    }
}

/// Writes the bundle when it is not there as it should be, and answers what is there. Without an APIService there is
/// nothing to do.
async fn write(
    services: &Api<APIService>,
    certificates: &Certificates,
    bundle: String,
) -> kube::Result<String> {
    let Some(found) = services.get_opt(API_SERVICE).await? else { return Ok(bundle) };
    let is = found.spec.and_then(|spec| spec.ca_bundle).unwrap_or_default();
    if is.0 == bundle.as_bytes() {
        return Ok(bundle);
    }
    // Another process of this installation may know of a newer CA than we do: what it wrote must not be undone.
    if let Err(error) = certificates.refresh().await {
        debug!(%error, "certificates are not in order");
    }
    let bundle = certificates.bundle().unwrap_or(bundle);
    if is.0 == bundle.as_bytes() {
        return Ok(bundle);
    }
    let patch = json!({
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": API_SERVICE},
        "spec": {"caBundle": STANDARD.encode(&bundle)},
    });
    services.patch(API_SERVICE, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(patch)).await?;
    info!(api_service = API_SERVICE, "wrote the CA bundle");
    Ok(bundle)
}
