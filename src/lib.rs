//! Hookwright: a Kubernetes operator that is a complete webhook delivery system.
//!
//! Knowledge flows one way: [`api`] and [`model`] know nobody, [`store`] and [`routes`] hold state,
//! [`delivery`], [`server`] and [`controller`] act, [`run`] and [`front`] wire them.

pub mod api;
mod bind;
pub mod cli;
mod client;
pub mod clock;
pub mod config;
pub mod controller;
pub mod delivery;
mod front;
pub mod metrics;
pub mod model;
mod per_namespace;
mod process;
mod role;
pub mod routes;
mod run;
pub mod server;
pub mod store;
pub mod telemetry;

pub use front::front;
pub use run::{Error, run};
