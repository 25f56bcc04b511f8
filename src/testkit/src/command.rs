//! Commands that end by themselves.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{io::AsyncWriteExt, process::Command};

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

/// Runs a command with `input` on its standard input and waits for its end; `name` is for messages.
///
/// # Errors
///
/// When it cannot be run, or runs longer than `limit`; it is killed then.
pub async fn finish(mut command: Command, name: &str, input: &str, limit: Duration) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let mut stdin = child.stdin.take().context("a child was started with a pipe for its input")?;
    let write = async move {
        // A command that does not read its input may have closed it. Dropping the pipe ends the input.
        let _ = stdin.write_all(input.as_bytes()).await;
    };
    // At the same time: a command that prints before it has read everything would wait for us.
    let finished = async { tokio::join!(write, child.wait_with_output()).1 };
    let output = tokio::time::timeout(limit, finished)
        .await
        .with_context(|| format!("{name} took longer than {limit:?}"))?
        .with_context(|| format!("cannot read what {name} printed"))?;
    Ok(Output {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code(),
    })
}
