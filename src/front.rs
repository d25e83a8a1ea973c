//! Wires a front: TLS, identity, rights, discovery and OpenAPI from memory; the rest is asked of the pod with the
//! store. It keeps nothing, so there can be several.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::bind::bind;
use crate::client;
use crate::clock::Clock;
use crate::config::FrontConfig;
use crate::metrics::Metrics;
use crate::role::{Probes, front_proxy, identity};
use crate::run::{Error, stop_on_signal};
use crate::server::Door;
use crate::server::auth::Gate;
use crate::server::certificates::Certificates;
use crate::server::forward::{Forwarder, Link};
use crate::server::listener::{self, Limits};
use crate::server::ops::Health;

/// Runs a front until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start. Once it has started, nothing that is away ends it.
pub async fn front(config: FrontConfig) -> Result<(), Error> {
    let FrontConfig { common, backend } = config;
    // Somebody else (a test) may have chosen already, the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let stop = stop_on_signal()?;
    let (clock, metrics, health) = (Clock::system(), Metrics::default(), Health::default());
    let tasks = TaskTracker::new();

    let client = client::connect(common.kubeconfig.as_deref())?;
    let certificates = Certificates::new(client.clone(), &common.service, clock.clone()).of_front();
    let certificates = Arc::new(certificates);
    let tls = certificates.server_config().map_err(|error| Error::start("TLS", error))?;
    let front_proxy = Arc::new(front_proxy(&common, &clock));
    checks(&health, &certificates, &front_proxy);
    let probes = Probes::start(&common, &health, &metrics, &tasks).await?;

    let name = ServerName::try_from(certificates.server_name().to_owned())
        .map_err(|error| Error::start("TLS to the pod with the store: --service is no name", error))?;
    let to_store = certificates.client_config().map_err(|error| Error::start("TLS", error))?;
    let link = Link::new(backend, name, to_store, tasks.clone());
    let forwarder = Forwarder::new(link, common.max_body_bytes, tasks.clone(), metrics.clone());
    let door = Door::front(Gate::new(&client, Arc::clone(&front_proxy)), forwarder, metrics);
    let listener = bind("the HTTPS door", common.listen).await?;
    let limits = Limits { drain: common.shutdown_grace, ..Limits::default() };
    let keeping = identity(&common, &client, &certificates, &front_proxy, &tasks, &stop);
    info!(version = env!("CARGO_PKG_VERSION"), listen = %common.listen, "front started");

    listener::serve(listener, Some(tls), Arc::new(door), limits, stop.clone()).await;
    futures::future::join_all(keeping).await;
    probes.end().await;
    info!("stopped");
    Ok(())
}

/// Certificates and who is trusted; not whether the pod with the store answers: a front that is there without it says
/// so, one that is not stands in the way of every namespace's deletion.
fn checks(
    health: &Health,
    certificates: &Arc<Certificates>,
    front_proxy: &Arc<crate::server::auth::FrontProxy>,
) {
    let shown = Arc::clone(certificates);
    health.ready("certificate", move || shown.check());
    let shown = Arc::clone(certificates);
    health.ready("client-certificate", move || shown.check_client());
    let known = Arc::clone(front_proxy);
    health.ready("kube-apiserver", move || known.check());
}
