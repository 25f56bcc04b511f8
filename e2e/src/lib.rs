//! Starts and stops `sharded-etcd` as a user would, for the tests beside this crate.

pub mod cluster;
pub mod relay;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use sharded_etcd_testkit::{Process, free_port, wait_until};

/// How long the program may take to serve.
const START_MAX: Duration = Duration::from_secs(60);

/// The program, built with the same profile and in the same folder as the tests.
///
/// # Errors
/// If it is not there: the tests are run with `--workspace`, which builds it.
pub fn program() -> Result<PathBuf> {
    // …/<profile>/deps/<test> → …/<profile>/sharded-etcd
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("the test runs from an odd place")?;
    let program = folder.join("sharded-etcd");
    if !program.exists() {
        bail!(
            "{} is not built: run the tests with `cargo test --workspace` or `make test`",
            program.display()
        );
    }
    Ok(program)
}

/// A running `sharded-etcd up`.
pub struct Up {
    /// The process.
    pub process: Process,
    /// What clients dial, `127.0.0.1:PORT`.
    pub endpoint: String,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Up {
    /// Starts `up` with these arguments on a free port, with data in `dir`, and waits until it serves.
    ///
    /// # Errors
    /// If it does not serve; the error has the end of its log.
    pub async fn start(dir: &Path, arguments: &[&str]) -> Result<Self> {
        let endpoint = format!("127.0.0.1:{}", free_port()?);
        let mut all: Vec<String> = ["up", "--listen", &endpoint, "--data-dir"].map(str::to_owned).into();
        all.push(dir.display().to_string());
        all.extend(arguments.iter().map(|&a| a.to_owned()));
        let log = dir.with_extension("log");
        let process = spawn(&all, &log)?;
        let mut up = Self { process, endpoint, arguments: all, log };
        up.ready().await?;
        Ok(up)
    }

    /// Starts it again with the same arguments, after it was stopped or killed.
    ///
    /// # Errors
    /// As [`Up::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.arguments, &self.log)?;
        self.ready().await
    }

    async fn ready(&mut self) -> Result<()> {
        let endpoint = self.endpoint.clone();
        let serves = wait_until("the endpoint to serve", START_MAX, || {
            let endpoint = endpoint.clone();
            async move {
                let health = sharded_etcd_testkit::etcdctl(&endpoint, &["endpoint", "health"]).await.ok()?;
                health.success().ok()
            }
        });
        let served = serves.await;
        self.process.check_running()?;
        served.map(|_| ()).with_context(|| self.process.log_tail())
    }
}

fn spawn(arguments: &[String], log: &Path) -> Result<Process> {
    let mut command = Command::new(program()?);
    command.args(arguments);
    Process::start("sharded-etcd up", &mut command, log)
}
