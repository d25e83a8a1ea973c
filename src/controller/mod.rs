//! Acts on the cluster: writes the statuses of Webhooks, makes the attempts that tests ask for, carries out replays,
//! erases the data of Webhooks that are gone, and publishes the CA where there are Webhooks. No finalizer anywhere.

mod apply;
mod conditions;
#[cfg(test)]
mod fixtures;
mod memory;
mod once;
mod purge;
mod reporter;
mod status;
pub mod trust;
mod webhook;
mod webhook_replay;
mod webhook_test;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::delivery::Sender;
use crate::metrics::{KindError, Metrics};
use crate::model::ids::Minter;
use crate::routes::Table;
use crate::routes::feed::Webhooks;
use crate::routes::watch::Scope;
use crate::store::{self, Store};

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The apiserver refused, or did not answer.
    #[error("cannot {what}: {why}")]
    Api {
        /// What was attempted.
        what: &'static str,
        /// What it said.
        why: String,
    },
    /// The object was changed since it was read.
    #[error("the object has changed meanwhile")]
    Conflict,
    /// The store does not know the Webhook yet.
    #[error("the store does not know the Webhook yet")]
    Unknown,
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] store::Error),
}

impl Error {
    /// Metric label.
    fn category(&self) -> &'static str {
        match self {
            Self::Api { .. } => "api",
            Self::Conflict => "conflict",
            Self::Unknown => "unknown",
            Self::Store(error) => error.category(),
        }
    }
}

/// What the controllers act with.
pub struct Deps {
    /// The cluster.
    pub client: Client,
    /// Which namespaces are served.
    pub scope: Scope,
    /// The routes in force.
    pub table: Arc<Table>,
    /// The queue and log.
    pub store: Arc<dyn Store>,
    /// The Webhooks that the feed sees.
    pub webhooks: Webhooks,
    /// Makes the attempts of tests.
    pub sender: Arc<dyn Sender>,
    /// The time.
    pub clock: Clock,
    /// Makes the ids of test events and deliveries.
    pub minter: Arc<Minter>,
    /// The metrics.
    pub metrics: Metrics,
    /// Shortest time between two writes of one Webhook's status.
    pub status_interval: Duration,
    /// How long data of a deleted Webhook is kept after its deletion was seen.
    pub purge_grace: Duration,
    /// On stop, tests under way get this long to end.
    pub shutdown_grace: Duration,
    /// Largest data of a test event, in bytes: that of a published one.
    pub max_body_bytes: usize,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl Deps {
    fn failed(&self, kind: &'static str, error: &Error) {
        let label = KindError { kind, category: error.category() };
        self.metrics.reconcile_errors.get_or_create(&label).inc();
    }
}

/// All controllers of one process.
#[derive(Debug)]
pub struct Controllers(Arc<Deps>);

impl Controllers {
    /// Controllers that act with these.
    pub fn new(deps: Deps) -> Self {
        Self(Arc::new(deps))
    }

    /// Runs until told to stop; returns when what is under way has ended, after [`Deps::shutdown_grace`] at the latest.
    pub async fn run(self, stop: CancellationToken) {
        let Self(deps) = self;
        let purge = purge::run(Arc::clone(&deps), stop.clone());
        let tests = webhook_test::run(Arc::clone(&deps), stop.clone());
        let replays = webhook_replay::run(Arc::clone(&deps), stop.clone());
        tokio::join!(webhook::run(deps, stop), tests, replays, purge);
    }
}
