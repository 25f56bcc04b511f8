//! The unmodified command line client of etcd.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::tools::{self, Tools};

/// How long one call may take; etcdctl's own limits are shorter, except for commands that wait (`watch`, `lock`).
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// What a finished command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
}

impl Output {
    /// Standard output of a command that succeeded.
    ///
    /// # Errors
    ///
    /// When it failed, with what it printed.
    pub fn success(self) -> Result<String> {
        if self.code != Some(0) {
            bail!("command ended with {:?}; stdout: {}; stderr: {}", self.code, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

/// Runs `etcdctl --endpoints=ENDPOINT ARGUMENTS` and waits for its end.
///
/// # Errors
///
/// When it cannot be built or run, or takes longer than a minute. A failure of the command itself is in [`Output`].
pub async fn etcdctl(endpoint: &str, arguments: &[&str]) -> Result<Output> {
    etcdctl_with_input(endpoint, arguments, "").await
}

/// As [`etcdctl`], with text on standard input (`etcdctl txn` and `etcdctl put KEY` read it).
///
/// # Errors
///
/// As [`etcdctl`].
pub async fn etcdctl_with_input(endpoint: &str, arguments: &[&str], input: &str) -> Result<Output> {
    let mut command = command(endpoint).await?;
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run etcdctl")?;
    let mut stdin = child.stdin.take().context("etcdctl was started with a pipe for its input")?;
    let finished = async {
        // A command that does not read its input may have closed it.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(CALL_LIMIT, finished)
        .await
        .with_context(|| format!("etcdctl {} took longer than {CALL_LIMIT:?}", arguments.join(" ")))?
        .context("cannot read what etcdctl printed")?;
    Ok(Output {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code(),
    })
}

/// `etcdctl --endpoints=ENDPOINT`, to be given arguments and run by the caller; killed when its handle is dropped.
///
/// # Errors
///
/// When it cannot be built.
pub async fn command(endpoint: &str) -> Result<Command> {
    let mut command = Command::new(tools::program(Tools::Etcd, "etcdctl").await?);
    command.arg(format!("--endpoints={endpoint}")).kill_on_drop(true);
    // Variables such as ETCDCTL_USER would set flags that are not given.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ETCDCTL_"))
    {
        command.env_remove(name);
    }
    Ok(command)
}
