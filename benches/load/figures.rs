//! The table that is printed.

use std::fmt;
use std::time::Duration;

/// What a figure is to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// Nothing: it explains others.
    None,
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Debug)]
struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    goal: Goal,
}

/// Figures in the order in which they were measured.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<Row>);

impl Figures {
    /// Adds a figure, and says it at once.
    pub(crate) fn add(&mut self, what: impl Into<String>, value: f64, unit: &'static str, goal: Goal) {
        // A sum of nothing is minus zero.
        let row = Row { what: what.into(), value: value + 0.0, unit, goal };
        eprintln!("    {row}");
        self.0.push(row);
    }

    /// How many figures miss their goals.
    pub(crate) fn missed(&self) -> usize {
        self.0.iter().filter(|row| !row.goal.is_reached(row.value)).count()
    }
}

impl Goal {
    fn is_reached(self, value: f64) -> bool {
        match self {
            Self::None => true,
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, value, unit, goal } = self;
        let digits = if *value >= 100.0 || value.fract() == 0.0 { 0 } else { 2 };
        let reached = match goal {
            Goal::None => "",
            goal if goal.is_reached(*value) => "yes",
            _ => "**no**",
        };
        write!(f, "| {what} | {value:.digits$}{unit} | {goal} | {reached} |")
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        writeln!(
            f,
            "{cores} cores, all parties on one machine, events of {} bytes\n",
            super::world::PAYLOAD
        )?;
        writeln!(f, "| figure | value | to reach | reached |\n| --- | --- | --- | --- |")?;
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

/// So many in a time, per second.
#[expect(clippy::cast_precision_loss, reason = "counts are small")]
pub(crate) fn per_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64().max(f64::EPSILON)
}

/// A percentile of sorted durations, in milliseconds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an index"
)]
pub(crate) fn percentile(sorted: &[Duration], part: f64) -> f64 {
    let at = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1000.0)
}
