//! The whole path on a real control plane: one control plane and one operator for all tests of this binary, a
//! namespace, a receiver and a producer of its own for each test.
#![allow(clippy::indexing_slicing, reason = "a JSON value that is missing is null, and the test fails")]

mod canary;
mod deliveries;
mod delivering;
mod doors;
mod front;
mod holding;
mod limits;
mod publishing;
mod references;
mod replaying;
mod restarting;
mod rotation;
mod scoped;
mod testing;
#[allow(dead_code, reason = "the same ground as the other tests, of which these use a part")]
mod world;
