//! The `hookwright` program.
fn main() {}
