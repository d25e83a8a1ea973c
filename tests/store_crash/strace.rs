//! Programs under `strace`: what they ask of the kernel, and with answers that the kernel seldom gives.

use std::process::Command;

/// The beginning of a command line that runs a program under `strace`. Where it is not installed or may not trace,
/// what needs it cannot be tried, and says so.
pub(crate) fn strace(test: &str) -> Option<Command> {
    let follow = || {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq"]);
        command
    };
    let tried = follow().args(["-o", "/dev/null", "true"]).output();
    if tried.as_ref().is_ok_and(|output| output.status.success()) {
        return Some(follow());
    }
    eprintln!("NOT TRIED: {test}: `strace` is not installed or may not trace here: {tried:?}");
    None
}
