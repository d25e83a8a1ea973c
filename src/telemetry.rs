//! Log lines, with fields, as JSON or text, on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::TryInitError;

use crate::config::LogFormat;

/// Why no log line can be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not understood.
    #[error("--log must be a tracing filter such as `info` or `hookwright=debug,kube=warn`")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Something else in this process writes log lines already.
    #[error("cannot set up logging")]
    Set(#[from] TryInitError),
}

/// Libraries that would write headers and tokens at finer levels than this; no filter opens them.
const WIRE: [&str; 6] = ["h2", "hyper", "hyper_util", "kube_client", "reqwest", "rustls"];

/// Starts logging for this process.
pub fn start(format: LogFormat, filter: &str) -> Result<(), Error> {
    use tracing_subscriber::util::SubscriberInitExt as _;
    let mut filter = EnvFilter::try_new(filter)?;
    for library in WIRE {
        filter = filter.add_directive(format!("{library}=warn").parse()?);
    }
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).finish().try_init()?,
        LogFormat::Text => lines.with_ansi(false).finish().try_init()?,
    }
    Ok(())
}
