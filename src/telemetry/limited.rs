//! A format of log lines that leaves out what repeats, and cleans what is written.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, callsite};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::model::causes::clean;
use crate::model::rate::{Meter, RateLimit};
use crate::model::time::UnixMillis;

/// Lines that one place of the code may write: about eighty an hour, twenty of them at once.
const LIMIT: RateLimit = RateLimit { requests: 1, per: Duration::from_mins(1), burst: 20 };

/// Fields of lines that count by themselves how often they were not written: those are limited where they are made, by
/// what they are about.
const COUNTED: [&str; 2] = ["unlogged", "silent"];

/// How lines look.
#[derive(Clone, Copy, Debug)]
pub(super) enum Style {
    /// An object a line.
    Json,
    /// For people.
    Text,
}

/// Writes lines as another format does, but at most about a hundred an hour from one place of the code, its own or a
/// library's; `unlogged` in a line says how many from there were not written before it. Lines at `debug` and `trace`
/// are not limited: somebody has asked for them. What URLs say of their user goes from every line.
pub(super) struct Limited<F> {
    format: F,
    style: Style,
    since: Instant,
    places: Mutex<HashMap<Place, (Meter, u64)>>,
}

/// Of the code. Lines that come through the crate `log` share one callsite for each level.
type Place = (callsite::Identifier, Option<(String, u64)>);

impl<F> Limited<F> {
    pub(super) fn new(format: F, style: Style) -> Self {
        Self { format, style, since: Instant::now(), places: Mutex::default() }
    }

    /// Whether a line may be written now; how many from there were not, since the last one.
    fn may_speak(&self, event: &Event<'_>) -> Option<u64> {
        let metadata = event.metadata();
        if !is_limited(metadata) {
            return Some(0);
        }
        let mut from_log = FromLog::default();
        event.record(&mut from_log);
        let place = (metadata.callsite(), from_log.target.map(|target| (target, from_log.line)));
        let now = i64::try_from(self.since.elapsed().as_millis()).unwrap_or(i64::MAX);
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let (meter, unlogged) = places.entry(place).or_default();
        let (taken, _) = meter.take(&LIMIT, UnixMillis::from_millis(now), 1);
        if taken == 0 {
            *unlogged += 1;
            return None;
        }
        Some(std::mem::take(unlogged))
    }
}

fn is_limited(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO && !COUNTED.iter().any(|field| metadata.fields().field(field).is_some())
}

/// Where a line that came through the crate `log` was written.
#[derive(Default)]
struct FromLog {
    target: Option<String>,
    line: u64,
}

impl Visit for FromLog {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            self.target = Some(value.to_owned());
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "log.line" {
            self.line = value;
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(unlogged) = self.may_speak(event) else { return Ok(()) };
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        let (whole, end) = match self.style {
            Style::Json => (line.trim_end().strip_suffix('}'), "}\n"),
            Style::Text => (Some(line.trim_end()), "\n"),
        };
        let Some(whole) = whole.filter(|_| unlogged > 0) else { return writer.write_str(&clean(&line)) };
        let count = match self.style {
            Style::Json => format!(",\"unlogged\":{unlogged}"),
            Style::Text => format!(" unlogged={unlogged}"),
        };
        write!(writer, "{}{count}{end}", clean(whole))
    }
}
