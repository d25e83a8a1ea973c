//! The pure domain: what an event, a target, a retry, a verdict and a signature are.
//!
//! Nothing here knows tokio, kube, reqwest or hyper, asks a clock or opens a socket.

pub mod address;
pub mod causes;
pub mod ce_header;
pub mod cloudevents;
pub mod duration;
pub mod event;
pub mod filter;
pub mod ids;
pub mod legible;
pub mod rate;
pub mod retry;
pub mod signature;
pub mod size;
pub mod target;
pub mod text;
pub mod time;
pub mod trouble;
pub mod verdict;
pub mod window;
