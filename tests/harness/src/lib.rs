//! What tests, demo and benches of Hookwright share: a real control plane, the operator as its
//! pod would run it, receivers and publishers. Everything here is taken down again, whatever
//! happens to the process that started it.
//!
//! - [`control_plane`]: etcd, kube-apiserver and kube-controller-manager, started in seconds
//! - [`kubectl`], [`helm`]: the real programs, as users run them
//! - [`operator`]: Hookwright itself, from the chart that helm installed
//! - [`receiver`]: a TLS endpoint that records what it gets and answers by script
//! - [`publisher`]: a producer of events
//! - [`wait`]: for what only asking again can see
//! - [`binaries`], [`ports`], [`pki`], [`process`], [`scratch`](mod@scratch): the ground they stand on

#![allow(
    clippy::expect_used,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    reason = "development only: a broken machine ends the test with its message, and every error says what was tried"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "the harness stands outside the product: it has the real clock and tasks that end with their runtime"
)]

pub mod binaries;
pub mod control_plane;
pub mod helm;
pub mod kubectl;
pub mod operator;
pub mod pki;
pub mod ports;
pub mod process;
pub mod publisher;
pub mod receiver;
pub mod scratch;
pub mod signature;
pub mod wait;

/// Installs the one TLS provider of this workspace; calling it again is harmless.
pub fn ensure_crypto_provider() {
    // An error says that a provider is installed already, and there is only this one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
