//! Where the programs of the control plane are: built once by `tests/control-plane/build.sh`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

/// What a control plane needs.
pub const CONTROL_PLANE: &[&str] = &["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];

/// The folder with these programs, built first if they are missing. The first build takes minutes
/// and tells its progress on stderr; it fails with a sentence that says what to install.
pub async fn folder_with(names: &'static [&'static str]) -> anyhow::Result<PathBuf> {
    tokio::task::spawn_blocking(move || build(names)).await?
}

fn build(names: &[&str]) -> anyhow::Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control-plane/build.sh");
    let output = Command::new("bash")
        .arg(&script)
        .args(names)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {}: bash is needed", script.display()))?;
    ensure!(output.status.success(), "{} could not provide {names:?}: see above", script.display());
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
