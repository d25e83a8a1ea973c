//! The feed and the controllers on a real control plane, with the embedded store and a scripted sender.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    reason = "a helper of a test fails the test"
)]

mod replays;
mod status;
mod testing;
mod webhooks;
mod world;
