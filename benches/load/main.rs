//! Load on the whole system: a real control plane, real TLS on both sides, synced commits. Prints one table, in which
//! throughputs stand beside the ceiling of the same run: the same publishers posting the same events straight to the
//! same receiver.
//!
//! `make bench` runs all but `soak` in their short form; `SCENARIOS=neighbours,many` runs only those. The size is
//! set by `EVENTS` (20,000), `BACKLOG` (100,000), `LOG` (0), `WEBHOOKS` (1,000), `NAMESPACES` (50) and `ROUNDS` (1, of
//! `neighbours`); `MINUTES` is for
//! `soak`. With `STRICT=1` it ends with status 1 when a figure misses its goal.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench is there to print")]

mod backlog;
mod figures;
mod log;
mod many;
mod neighbours;
mod soak;
mod throughput;
mod usage;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use figures::{Figures, Goal};
use world::World;

/// A number from the environment.
fn size(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What makes a run another than the short form.
const LONGER: [&str; 7] = ["SCENARIOS", "EVENTS", "BACKLOG", "LOG", "WEBHOOKS", "NAMESPACES", "ROUNDS"];

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

fn main() -> anyhow::Result<ExitCode> {
    let wanted = std::env::var("SCENARIOS").unwrap_or_default();
    let wanted = if wanted.is_empty() { "throughput,neighbours,backlog,many".to_owned() } else { wanted };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut figures, whole) = (Figures::default(), Instant::now());
        for scenario in wanted.split(',') {
            eprintln!("==> {scenario}");
            let begun = Instant::now();
            let world = Arc::new(World::start(soak::arguments(scenario)).await?);
            match scenario {
                "throughput" => throughput::measure(&world, &mut figures).await?,
                "neighbours" => neighbours::measure(&world, &mut figures).await?,
                "backlog" => backlog::measure(&world, &mut figures).await?,
                "many" => many::measure(&world, &mut figures).await?,
                "soak" => soak::measure(&world, &mut figures).await?,
                other => anyhow::bail!("no scenario {other}"),
            }
            eprintln!("    {:.0} s", begun.elapsed().as_secs_f64());
        }
        let goal = if LONGER.into_iter().any(is_set) { Goal::None } else { Goal::AtMost(300.0) };
        figures.add("all of this took", whole.elapsed().as_secs_f64(), " s", goal);
        println!("\n{figures}");
        let missed = figures.missed();
        let is_strict = std::env::var("STRICT").is_ok_and(|value| value == "1");
        if is_strict && missed > 0 {
            eprintln!("{missed} figures miss their goals");
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    })
}
