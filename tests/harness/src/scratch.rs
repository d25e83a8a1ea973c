//! Directories for tests of which nothing depends on how long a sync takes.

use std::path::Path;

use tempfile::TempDir;

/// A directory that goes when it is dropped: in memory where the system has a place for that, since syncs take no time
/// there, else where temporary files are.
pub fn scratch() -> TempDir {
    // A container has 64 MiB there, which is not enough.
    let is_roomy = |stat: rustix::fs::StatVfs| stat.f_bavail.saturating_mul(stat.f_frsize) >= 1 << 30;
    let memory = Path::new("/dev/shm");
    if rustix::fs::statvfs(memory).is_ok_and(is_roomy)
        && let Ok(directory) = tempfile::tempdir_in(memory)
    {
        return directory;
    }
    tempfile::tempdir().expect("a temporary directory can be made")
}
