//! The `hookwright` program: parses its arguments, runs, and tells how it ended.

use std::process::ExitCode;

use clap::Parser as _;
use hookwright::cli::Cli;

fn main() -> ExitCode {
    hookwright::cli::execute(Cli::parse())
}
