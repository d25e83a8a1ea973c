//! Waiting for what only asking again can see. Where something can be watched, watch it instead
//! (`Kubectl::wait`, `Receiver::await_requests`).

use std::time::{Duration, Instant};

use anyhow::bail;

const STEP: Duration = Duration::from_millis(30);

/// What one look saw: either it is there, or what there is instead.
pub type Seen<T> = Result<T, String>;

/// Looks every 30 ms until `look` answers `Ok`, and answers that. After `timeout` the error says
/// `what` was awaited and what the last look saw.
pub async fn eventually<T, F>(timeout: Duration, what: &str, mut look: F) -> anyhow::Result<T>
where
    F: AsyncFnMut() -> Seen<T>,
{
    let begun = Instant::now();
    let mut last = "nothing: the first look did not come back".to_owned();
    while begun.elapsed() < timeout {
        match tokio::time::timeout(timeout.saturating_sub(begun.elapsed()), look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(seen)) => last = seen,
            Err(_elapsed) => break,
        }
        tokio::time::sleep(STEP).await;
    }
    bail!("waited {timeout:?} for {what}; last seen: {last}")
}
