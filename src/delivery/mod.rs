//! Delivering: what is due is claimed, sent, judged and recorded.

mod attempt;
pub mod client;
#[cfg(test)]
mod client_tests;
mod clients;
#[cfg(test)]
mod clock_tests;
mod congestion;
#[cfg(test)]
mod congestion_tests;
mod connection;
mod dial;
#[cfg(test)]
mod dial_tests;
pub mod egress;
#[cfg(test)]
mod egress_tests;
pub mod engine;
#[cfg(test)]
mod engine_on_disk_tests;
#[cfg(test)]
mod engine_tests;
mod expire;
mod failure;
mod http1;
mod http2;
#[cfg(test)]
mod http2_tests;
mod inbox;
mod lease;
mod limits;
#[cfg(test)]
mod lines_tests;
#[cfg(test)]
mod liveness_tests;
mod outcome;
mod patrol;
#[cfg(test)]
mod patrol_tests;
mod quiet;
#[cfg(test)]
mod receivers_tests;
mod request;
#[cfg(test)]
mod resend_tests;
mod resolv_conf;
mod retry_after;
mod schedule;
#[cfg(test)]
mod schedule_tests;
#[cfg(test)]
mod testing;
pub mod tls;
mod tls_failure;
#[cfg(test)]
mod tls_tests;
mod verifier;
mod worker;

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::model::ids::{DeliveryName, WebhookRef};
use crate::model::verdict::Verdict;
use crate::routes::Endpoint;
use crate::store::{Attempt, Event};

/// One attempt to make.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name is the `webhook-id`.
    pub name: DeliveryName,
    /// For which Webhook. Two Webhooks never share a connection, or one that hangs could fill it.
    pub webhook: WebhookRef,
    /// Where to and how.
    pub endpoint: Arc<Endpoint>,
    /// What.
    pub event: Arc<Event>,
    /// Marked as a test in the request (`hookwright-test: true`).
    pub test: bool,
}

/// An attempt that was made, and judged.
#[derive(Clone, Debug)]
pub struct Sent {
    /// As it is recorded, already masked and cut.
    pub attempt: Attempt,
    /// What follows.
    pub verdict: Verdict,
}

/// Makes attempts. One implementation talks HTTPS; tests script another.
pub trait Sender: Send + Sync + 'static {
    /// Makes one attempt; never fails, never takes longer than the endpoint's timeout (and a little).
    fn send(&self, job: Job) -> BoxFuture<'_, Sent>;
}
