//! The programs that tests run against, built by `e2e/tools/build.sh` when they are not there yet.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{process::Command, sync::OnceCell};

/// How long a cold build may take: kube-apiserver takes about ten minutes on two cores.
const BUILD_LIMIT: Duration = Duration::from_secs(40 * 60);

/// A group of programs that is built together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tools {
    /// `etcd`, `etcdctl`, `etcdutl`.
    Etcd,
    /// `benchmark`, etcd's own load generator.
    Bench,
    /// `kube-apiserver` and `kubectl`.
    Kube,
    /// `workload`, this project's Go client workload.
    Workload,
}

impl Tools {
    /// The name of the group as `build.sh` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Tools::Etcd => "etcd",
            Tools::Bench => "bench",
            Tools::Kube => "kube",
            Tools::Workload => "workload",
        }
    }

    /// The folder that holds the programs; builds them first if needed, once for this process.
    ///
    /// # Errors
    ///
    /// When the build fails, with the end of what it printed.
    pub async fn folder(self) -> Result<&'static Path> {
        static BUILT: [OnceCell<PathBuf>; 4] =
            [OnceCell::const_new(), OnceCell::const_new(), OnceCell::const_new(), OnceCell::const_new()];
        let folder = BUILT[self as usize].get_or_try_init(|| build(self.name())).await?;
        Ok(folder)
    }
}

/// The path of `program`, which must be in the group `tools`; builds the group if needed.
///
/// # Errors
///
/// When the build fails or makes no such program.
pub async fn program(tools: Tools, program: &str) -> Result<PathBuf> {
    let path = tools.folder().await?.join(program);
    if !path.exists() {
        bail!("e2e/tools/build.sh {} makes no {program}", tools.name());
    }
    Ok(path)
}

async fn build(group: &'static str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/tools/build.sh");
    let output = Command::new(&script).arg(group).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(BUILD_LIMIT, output)
        .await
        .with_context(|| format!("{} {group} took longer than {BUILD_LIMIT:?}", script.display()))?
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stderr);
        bail!("{} {group} failed ({}):\n{}", script.display(), output.status, last_lines(&printed, 30));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The last `count` lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
