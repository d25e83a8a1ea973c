//! Ports that nobody else takes between the asking and the listening.
//!
//! A port that the kernel hands out for `:0` and that is closed again may be given to the next
//! caller, or to any outgoing connection. These come from below the range of outgoing connections,
//! and a lock file holds each one against other test processes for as long as [`Port`] lives.

use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Context as _, bail};

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port on loopback, ours until dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// The number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:<number>`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

/// A port that nothing listens on and that no other harness process was given.
pub fn free_port() -> anyhow::Result<Port> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let folder = lock_folder()?;
    // Each process begins elsewhere, so that they do not try the same locks one after the other.
    let begin = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap_or(0);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let number = FIRST + begin.wrapping_add(step) % COUNT;
        let path = folder.join(number.to_string());
        let lock = File::create(&path).with_context(|| format!("open {}", path.display()))?;
        if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
            return Ok(Port { number, _lock: lock });
        }
    }
    bail!("no port between {FIRST} and {} is free", FIRST + COUNT)
}

fn lock_folder() -> anyhow::Result<PathBuf> {
    let user = rustix::process::getuid().as_raw();
    let folder = std::env::temp_dir().join(format!("hookwright-ports-{user}"));
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}
