//! What every role does alike: probes, certificates, and knowing kube-apiserver.

use std::sync::Arc;

use kube::Client;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bind::bind;
use crate::clock::Clock;
use crate::config::Common;
use crate::metrics::Metrics;
use crate::run::Error;
use crate::server::apis::registration;
use crate::server::auth::FrontProxy;
use crate::server::certificates::Certificates;
use crate::server::listener;
use crate::server::ops::{self, Health, Ops};

/// Probes and metrics, which are answered from the first moment to the last.
pub(crate) struct Probes {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Probes {
    pub(crate) async fn start(
        config: &Common,
        health: &Health,
        metrics: &Metrics,
        tasks: &TaskTracker,
    ) -> Result<Self, Error> {
        let ops = Arc::new(Ops::new(health.clone(), metrics.clone()));
        let listener = bind("the metrics address", config.metrics_listen).await?;
        let stop = CancellationToken::new();
        let task = tasks.spawn(listener::serve(listener, None, ops, ops::limits(), stop.clone()));
        Ok(Self { task, stop })
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// Who may ask for others, by what the settings say.
pub(crate) fn front_proxy(config: &Common, clock: &Clock) -> FrontProxy {
    let front_proxy = FrontProxy::new(clock.clone());
    if config.api_service { front_proxy } else { front_proxy.without_kube_apiserver() }
}

/// The tasks that keep certificates, and what makes kube-apiserver and us know each other.
pub(crate) fn identity(
    config: &Common,
    client: &Client,
    certificates: &Arc<Certificates>,
    front_proxy: &Arc<FrontProxy>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Vec<JoinHandle<()>> {
    let (kept, until) = (Arc::clone(certificates), stop.clone());
    let mut running = vec![tasks.spawn(async move { kept.run(until).await })];
    if config.api_service {
        let (client, stop) = (client.clone(), stop.clone());
        let (certificates, front_proxy) = (Arc::clone(certificates), Arc::clone(front_proxy));
        running.push(tasks.spawn(async move {
            tokio::join!(
                front_proxy.run(client.clone(), stop.clone()),
                registration::run(client, &certificates, stop)
            );
        }));
    }
    running
}
