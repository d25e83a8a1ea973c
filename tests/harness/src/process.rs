//! Processes that never outlive the test that started them.
//!
//! All processes of one instance are in one process group and have one folder. Three things end
//! them: [`Group`]'s `Drop`; a panic, which drops; and, when the test process itself is killed or
//! exits without dropping (a `static`), a watchdog: a small shell that waits for the end of a pipe
//! which only the test process holds open, then kills the group and removes the folder.

use std::{
    fs::File,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait::eventually;

/// Keeps the folders (never the processes) for reading logs afterwards.
const KEEP_FOLDERS: &str = "HOOKWRIGHT_KEEP_FOLDERS";

/// Leads the process group; it ends by itself with the test process.
const ANCHOR: &str = "read -r word";

/// `$1` is the process group, `$2` the folder. Zombies count as alive where nobody reaps orphans,
/// so it stops looking after two seconds.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
read -r word && [ "$word" = done ] && exit
kill -s KILL -- "-$1" 2>/dev/null
tries=0
while kill -s 0 -- "-$1" 2>/dev/null && [ $tries -lt 100 ]; do tries=$((tries + 1)); sleep 0.02; done
[ -n "$2" ] && rm -rf -- "$2"
"#;

/// A process group with a folder of its own; both are gone after `Drop`.
#[derive(Debug)]
pub struct Group {
    anchor: Child,
    watchdog: Child,
    folder: PathBuf,
    state: State,
}

#[derive(Debug, PartialEq)]
enum State {
    Ours,
    Left,
}

impl Group {
    /// A group without members, and an empty folder whose name says what it is for.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("hookwright-{name}-"))
            .tempdir()
            .context("make a temporary folder")?
            .keep();
        let anchor = shell(ANCHOR, &[])?;
        let kept = std::env::var_os(KEEP_FOLDERS).is_some();
        let doomed = if kept { "".as_ref() } else { folder.as_os_str() };
        let watchdog = shell(WATCHDOG, &[anchor.id().to_string().as_ref(), doomed])?;
        Ok(Self { anchor, watchdog, folder, state: State::Ours })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The process group's id.
    pub fn id(&self) -> u32 {
        self.anchor.id()
    }

    /// Writes a file into the folder, readable by its owner only.
    pub fn write(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.folder.join(name);
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content.as_bytes()))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Starts a program as a member; its output is appended to `<name>.log` in the folder.
    pub fn spawn(&self, name: &str, command: &mut Command) -> anyhow::Result<Process> {
        let log = self.folder.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let child = direct(command)
            .process_group(i32::try_from(self.id())?)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {name}: {}", command.get_program().display()))?;
        Ok(Process { name: name.to_owned(), child, log, ended: None })
    }

    /// Lets the members live on, and says how to end them.
    pub fn leave(mut self) -> String {
        self.state = State::Left;
        format!("kill -s KILL -- -{} ; rm -rf {}", self.id(), self.folder.display())
    }

    fn dismiss_watchdog(&mut self) {
        if let Some(mut pipe) = self.watchdog.stdin.take() {
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.watchdog.wait();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.state == State::Left {
            return self.dismiss_watchdog();
        }
        if let Some(group) = pid(self.id()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.anchor.wait();
        self.dismiss_watchdog();
        if std::env::var_os(KEEP_FOLDERS).is_some() {
            eprintln!("kept: {}", self.folder.display());
            return;
        }
        // A member that is still dying may create a last file while we delete.
        for _ in 0..50 {
            match std::fs::remove_dir_all(&self.folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => break,
            }
        }
    }
}

/// A member of a [`Group`]; killed and waited for when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until `url` answers with success; fails at once when the process ends.
    pub async fn await_ready(
        &mut self,
        client: &reqwest::Client,
        url: &str,
        timeout: Duration,
    ) -> anyhow::Result<()> {
        let what = format!("{} to be ready", self.name);
        let ready = eventually(timeout, &what, async || {
            if let Err(ended) = self.expect_running() {
                return Ok(Err(ended));
            }
            match client.get(url).send().await {
                Ok(answer) if answer.status().is_success() => Ok(Ok(())),
                Ok(answer) => Err(format!("{} {}", answer.status(), answer.text().await.unwrap_or_default())),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await;
        match ready {
            Ok(ready) => ready,
            Err(timeout) => bail!("{timeout}\n{}", last_lines(&self.log(), 25)),
        }
    }

    /// The exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Fails with the end of the log if the process is no longer running.
    pub fn expect_running(&mut self) -> anyhow::Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, last_lines(&self.log(), 25)),
        }
    }

    /// Sends a signal; nothing happens when it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if let (None, Some(pid)) = (self.ended(), pid(self.id())) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for its end. (Asked again every few milliseconds: a child belongs to no runtime here,
    /// because one instance serves tests that each have a runtime of their own.)
    pub async fn wait(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if begun.elapsed() > timeout {
                bail!("{} still runs after {timeout:?}:\n{}", self.name, last_lines(&self.log(), 25));
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }

    /// Lets it live on.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The proxies of the environment are for the way out: everything here is on loopback. One that the command was given
/// stays.
pub fn direct(command: &mut Command) -> &mut Command {
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        if !command.get_envs().any(|(given, value)| given == name && value.is_some()) {
            command.env_remove(name);
        }
    }
    command
}

/// The last `count` lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

fn shell(script: &str, arguments: &[&std::ffi::OsStr]) -> anyhow::Result<Child> {
    Command::new("sh")
        .args(["-c", script, "hookwright-harness"])
        .args(arguments)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start sh")
}
