//! Real etcd, as processes on loopback.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{
    Shard,
    etcd::{EtcdOptions, EtcdShard},
};
use tempfile::TempDir;

use crate::{
    Process, free_port,
    tools::{self, Tools},
    wait_until,
};

/// How long etcd may take until it serves; a busy machine makes it slow.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// What a test may want different about an etcd.
#[derive(Debug, Clone)]
pub struct EtcdProcessOptions {
    /// `--max-txn-ops`. Default 10,000, as shards run with.
    pub max_txn_ops: u32,
    /// `--max-request-bytes`. Default 32 MiB.
    pub max_request_bytes: u32,
    /// `--quota-backend-bytes`; etcd's default of 2 GiB when absent.
    pub quota_bytes: Option<u64>,
    /// Whether etcd waits for the disk. Default false: a killed process loses nothing either way, only a machine does,
    /// and tests are much faster.
    pub fsync: bool,
    /// `--initial-cluster-token`. Default: one that no other start uses.
    pub token: Option<String>,
    /// Further arguments, last.
    pub arguments: Vec<String>,
}

impl Default for EtcdProcessOptions {
    fn default() -> Self {
        Self {
            max_txn_ops: 10_000,
            max_request_bytes: 32 << 20,
            quota_bytes: None,
            fsync: false,
            token: None,
            arguments: Vec::new(),
        }
    }
}

/// One etcd member. Killed, and its data removed, when dropped.
#[derive(Debug)]
pub struct EtcdProcess {
    process: Process,
    program: PathBuf,
    arguments: Vec<String>,
    client_port: u16,
    folder: TempDir,
}

impl EtcdProcess {
    /// Starts an etcd of one member on free ports and an empty data directory, and waits until it serves.
    ///
    /// # Errors
    ///
    /// When etcd cannot be built or run, or does not serve in time, with the end of its log.
    pub async fn start(options: EtcdProcessOptions) -> Result<Self> {
        let mut members = Self::start_cluster(1, options).await?;
        members.pop().context("a cluster of one has a member")
    }

    /// Starts an etcd of several members and waits until each of them serves.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub async fn start_cluster(members: usize, options: EtcdProcessOptions) -> Result<Vec<Self>> {
        static STARTS: AtomicU64 = AtomicU64::new(0);
        let program = tools::program(Tools::Etcd, "etcd").await?;
        let start = STARTS.fetch_add(1, Ordering::Relaxed);
        let token = options.token.clone().unwrap_or_else(|| format!("test-{}-{start}", std::process::id()));
        let plans: Vec<_> = (0..members).map(Plan::new).collect::<Result<_>>()?;
        let cluster: Vec<_> =
            plans.iter().map(|plan| format!("{}=http://127.0.0.1:{}", plan.name, plan.peer_port)).collect();
        let cluster = cluster.join(",");
        let mut started = Vec::with_capacity(members);
        for plan in plans {
            let arguments = plan.arguments(&cluster, &token, &options);
            let process = spawn(&program, &arguments, plan.folder.path())?;
            let Plan { client_port, folder, .. } = plan;
            started.push(Self { process, program: program.clone(), arguments, client_port, folder });
        }
        for member in &mut started {
            member.wait_ready().await?;
        }
        Ok(started)
    }

    /// `http://127.0.0.1:PORT` of the client API.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// A new connection with default options.
    pub fn shard(&self) -> EtcdShard {
        self.shard_with(EtcdOptions::default())
    }

    /// A new connection.
    pub fn shard_with(&self, options: EtcdOptions) -> EtcdShard {
        EtcdShard::connect_lazy(vec![self.endpoint()], options).expect("an endpoint of ours is well formed")
    }

    /// The process, to signal it or read its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// etcd's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Ends etcd at once, as `kill -9` does.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Freezes etcd: connections stay open, nothing answers.
    ///
    /// # Errors
    ///
    /// When its threads do not stand still within 10 s.
    pub async fn pause(&mut self) -> Result<()> {
        self.process.pause().await
    }

    /// Lets a frozen etcd go on.
    pub fn resume(&mut self) {
        self.process.resume();
    }

    /// Ends etcd in an orderly way.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop().await.map(drop)
    }

    /// Ends etcd at once if it runs, starts it again on the same data and ports, and waits until it serves.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.spawn_again()?;
        self.wait_ready().await
    }

    /// Starts a killed or stopped etcd again without waiting until it serves.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    pub fn spawn_again(&mut self) -> Result<()> {
        self.process.kill();
        self.process = spawn(&self.program, &self.arguments, self.folder.path())?;
        Ok(())
    }

    /// Waits until a linearizable read succeeds.
    ///
    /// # Errors
    ///
    /// When etcd has ended or does not serve in time, with the end of its log.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let shard = self.shard();
        let process = &mut self.process;
        let ready = wait_until("etcd serves", READY_LIMIT, || {
            let gone = process.check_running().err();
            let shard = &shard;
            async move {
                match gone {
                    Some(error) => Some(Err(error)),
                    None => {
                        let probe = pb::RangeRequest { key: "ready".into(), ..Default::default() };
                        shard.range(probe).await.is_ok().then_some(Ok(()))
                    }
                }
            }
        });
        match ready.await {
            Ok(outcome) => outcome,
            Err(error) => Err(error.context(format!("etcd's log ends:\n{}", self.process.log_tail()))),
        }
    }
}

/// A member before it runs.
struct Plan {
    name: String,
    client_port: u16,
    peer_port: u16,
    folder: TempDir,
}

impl Plan {
    fn new(index: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("sharded-etcd-test-").tempdir();
        Ok(Self {
            name: format!("m{index}"),
            client_port: free_port()?,
            peer_port: free_port()?,
            folder: folder.context("cannot make a temporary folder for etcd's data")?,
        })
    }

    fn arguments(&self, cluster: &str, token: &str, options: &EtcdProcessOptions) -> Vec<String> {
        let client = format!("http://127.0.0.1:{}", self.client_port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let data = self.folder.path().join("data");
        let mut arguments = vec![
            format!("--name={}", self.name),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={cluster}"),
            format!("--initial-cluster-token={token}"),
            "--initial-cluster-state=new".to_owned(),
            format!("--max-txn-ops={}", options.max_txn_ops),
            format!("--max-request-bytes={}", options.max_request_bytes),
        ];
        if !cluster.contains(',') {
            // A single member has nobody to disagree with; several on a busy machine would hold elections all day.
            arguments.extend(["--heartbeat-interval=50".to_owned(), "--election-timeout=500".to_owned()]);
        }
        arguments.extend(options.quota_bytes.map(|bytes| format!("--quota-backend-bytes={bytes}")));
        if !options.fsync {
            arguments.push("--unsafe-no-fsync".to_owned());
        }
        arguments.extend(options.arguments.iter().cloned());
        arguments
    }
}

fn spawn(program: &Path, arguments: &[String], folder: &Path) -> Result<Process> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder);
    // Variables such as ETCD_NAME would set flags that are not given.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ETCD_")) {
        command.env_remove(name);
    }
    Process::start("etcd", &mut command, &folder.join("etcd.log"))
}
