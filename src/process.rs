//! What the process asks of the system for itself.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Files that it opens at most, whatever the system would allow: each attempt under way has a connection.
const OPEN_FILES: u64 = 1 << 16;

/// How far threads that step back do so: of a core that others want, too, one has about a quarter of an equal share.
#[cfg(target_os = "linux")]
const BACK: i32 = 5;

/// Raises the soft limit of open files to what the hard one allows. It is low for the sake of programs that use
/// `select(2)`, which this is not.
pub(crate) fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    if let Some(wanted) = wanted(limit.current, limit.maximum) {
        limit.current = Some(wanted);
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, wanted, "cannot raise the limit of open files; fewer attempts are made at once");
        }
    }
}

/// The soft limit to set; none: the one that is there will do. No limit at all is none.
fn wanted(soft: Option<u64>, hard: Option<u64>) -> Option<u64> {
    let most = hard.map_or(OPEN_FILES, |hard| hard.min(OPEN_FILES));
    soft.filter(|soft| *soft < most).map(|_| most)
}

/// Does something on a thread that steps back (nice 5). The threads that it starts do so, too, for as long as they live:
/// on Linux, a thread has the priority of who started it. Where it is refused they work as all do.
pub(crate) fn stepped_back<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("steps-back".to_owned());
        let thread = thread.spawn_scoped(scope, || {
            // setpriority(2): of the calling thread, on Linux, though POSIX says of its process.
            #[cfg(target_os = "linux")]
            if rustix::process::getpriority_process(None).is_ok_and(|now| now < BACK) {
                let _ = rustix::process::setpriority_process(None, BACK);
            }
            work()
        })?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_raised_as_far_as_allowed_and_never_lowered() {
        for (soft, hard, expected) in [
            (Some(1024), Some(524_288), Some(OPEN_FILES)),
            (Some(1024), Some(4096), Some(4096)),
            (Some(1024), None, Some(OPEN_FILES)),
            (Some(4096), Some(4096), None),
            (Some(1_048_576), Some(1_048_576), None),
            (None, None, None),
        ] {
            assert_eq!(wanted(soft, hard), expected, "{soft:?} of {hard:?}");
        }
        raise_open_files();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(wanted(now.current, now.maximum), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn whoever_is_started_by_a_thread_that_steps_back_does_so_and_no_other() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // After the name, which may have blanks: field 19 of proc_pid_stat(5).
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = nice();
        let started = stepped_back(|| std::thread::spawn(nice)).unwrap().join().unwrap();
        assert_eq!((started, nice()), (BACK.max(before), before));
        let panicked = std::panic::catch_unwind(|| stepped_back(|| panic!("within")));
        assert!(panicked.is_err());
    }
}
