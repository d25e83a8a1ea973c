//! Log lines, with fields, as JSON or text, on standard error: each one clean of what a URL may say of its user, and each
//! kind limited, whoever writes it.

mod limited;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::TryInitError;

use crate::config::LogFormat;
use limited::Limited;

/// Why no log line can be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not understood.
    #[error("--log (or RUST_LOG) must be a tracing filter such as `info` or `hookwright=debug,kube=warn`")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Something else in this process writes log lines already.
    #[error("cannot set up logging")]
    Set(#[from] TryInitError),
}

/// Unless somebody says otherwise. A failed watch is said by us, with what it is of.
const DEFAULT: &str = "warn,kube_runtime::watcher=error,hookwright=info";

/// Libraries that would write headers and tokens at finer levels than this; no filter opens them.
const WIRE: [&str; 6] = ["h2", "hyper", "hyper_util", "kube_client", "reqwest", "rustls"];

/// Starts logging for this process. Without a filter that of `RUST_LOG` counts, and without that the default one.
pub fn start(format: LogFormat, filter: Option<&str>) -> Result<(), Error> {
    use tracing_subscriber::util::SubscriberInitExt as _;
    let environment = std::env::var("RUST_LOG").ok();
    let filter = self::filter(filter, environment.as_deref())?;
    match format {
        LogFormat::Json => json(filter, std::io::stderr).try_init()?,
        LogFormat::Text => text(filter, std::io::stderr).try_init()?,
    }
    Ok(())
}

/// The first that says something.
fn filter(flag: Option<&str>, environment: Option<&str>) -> Result<EnvFilter, Error> {
    let given = [flag, environment].into_iter().flatten().find(|filter| !filter.trim().is_empty());
    let mut filter = EnvFilter::try_new(given.unwrap_or(DEFAULT))?;
    for library in WIRE {
        filter = filter.add_directive(format!("{library}=warn").parse()?);
    }
    Ok(filter)
}

fn json<W>(filter: EnvFilter, to: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(to);
    let lines = lines.json().flatten_event(true).with_current_span(false);
    lines.map_event_format(|format| Limited::new(format, limited::Style::Json)).finish()
}

fn text<W>(filter: EnvFilter, to: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(to).with_ansi(false);
    lines.map_event_format(|format| Limited::new(format, limited::Style::Text)).finish()
}

#[cfg(test)]
mod tests;
