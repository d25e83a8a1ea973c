//! What HTTP/1 needs before its parser: heads that mean one thing only, and refusals that arrive.

mod flow;
mod guard;
mod head;

pub(super) use guard::{Guard, METHOD, Shared};
pub use head::Heads;
pub(super) use head::{MAX_NAME, MAX_TARGET, long_name, long_target};
