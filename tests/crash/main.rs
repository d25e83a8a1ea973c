//! What survives `kill -9`, a stop and a deletion while nobody looks. Each test has a control plane of its own.
#![allow(clippy::indexing_slicing, reason = "a JSON value that is missing is null, and the test fails")]

mod fails;
mod full;
mod kill;
mod purge;
mod replay;
mod signing;
mod stop;
#[path = "../e2e/world.rs"]
#[allow(dead_code, reason = "the same ground as the other tests, of which these use a part")]
mod world;
