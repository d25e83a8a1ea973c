//! What a process and a directory use, from /proc and the file system.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

/// CPU time of a process so far, from /proc.
pub(crate) fn cpu(process: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// A memory figure of a process (`VmRSS`, `VmHWM`), in MB.
pub(crate) fn memory(process: u32, what: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with(what)).context("no such figure")?;
    let kib: f64 =
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).context("a number")?;
    Ok(kib * 1024.0 / 1e6)
}

/// Bytes that a process has had written to disks so far. None on a file system in memory.
pub(crate) fn written(process: u32) -> anyhow::Result<f64> {
    let io = fs::read_to_string(format!("/proc/{process}/io"))?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:")).context("no such figure")?;
    Ok(line.trim().parse()?)
}

/// Files under a directory, and their bytes on the disk.
pub(crate) fn on_disk(directory: &Path) -> anyhow::Result<(usize, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // What a compaction removes meanwhile is not counted.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            let (more, size) = on_disk(&entry.path())?;
            (files, bytes) = (files + more, bytes + size);
        } else {
            (files, bytes) = (files + 1, bytes + 512 * metadata.blocks());
        }
    }
    Ok((files, bytes))
}
