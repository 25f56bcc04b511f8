//! The unmodified command line client of etcd.

use std::time::Duration;

use anyhow::Result;
use tokio::process::Command;

use crate::{
    command::{Output, finish},
    tools::{self, Tools},
};

/// How long one call may take; etcdctl's own limits are shorter, except for commands that wait (`watch`, `lock`).
const CALL_LIMIT: Duration = Duration::from_secs(60);

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
    command.args(arguments);
    finish(command, "etcdctl", input, CALL_LIMIT).await
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
