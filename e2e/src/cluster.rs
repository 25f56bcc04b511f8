//! A topology of real processes: three shards and meta are etcds, with two proxies and a shard manager over them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;
use sharded_etcd_core::records::Record;
use sharded_etcd_crd::{
    KeyspaceSpec, PinSpec, RebalanceSpec, ShardedEtcd,
    routing::{Engine, RoutedShard, Routing},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{
    Shard,
    etcd::{EtcdOptions, EtcdShard},
};
use sharded_etcd_testkit::{
    EtcdProcess, EtcdProcessOptions, Process, command::finish, free_port, wait_until,
};
use tempfile::TempDir;

use crate::{program, relay::TcpRelay};

/// How long everything may take to serve, at the start and after the last fault.
const SERVES_MAX: Duration = Duration::from_secs(90);

/// How long `status` may take.
const STATUS_MAX: Duration = Duration::from_secs(20);

/// How many shards there are.
pub const SHARDS: u32 = 3;

/// One of our programs, which can be started again with the same arguments.
pub struct Program {
    /// `--name`, and the name of its log.
    pub name: String,
    /// `127.0.0.1:PORT`.
    pub endpoint: String,
    /// The process.
    pub process: Process,
    arguments: Vec<String>,
    variables: Variables,
    log: PathBuf,
}

/// What is set in the environment of a program.
type Variables = Vec<(String, String)>;

impl Program {
    fn start(folder: &TempDir, command: &str, name: &str, variables: Variables) -> Result<Self> {
        let endpoint = format!("127.0.0.1:{}", free_port()?);
        let routing = folder.path().join(routing_file(name)).display().to_string();
        let arguments: Vec<_> =
            [command, "--routing", &routing, "--listen", &endpoint, "--name", name].map(str::to_owned).into();
        let log = folder.path().join(format!("{name}.log"));
        let process = spawn(name, &arguments, &variables, &log)?;
        Ok(Self { name: name.to_owned(), endpoint, process, arguments, variables, log })
    }

    /// Kills it if it runs, and starts it again.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn spawn_again(&mut self) -> Result<()> {
        self.process.kill();
        self.process = spawn(&self.name, &self.arguments, &self.variables, &self.log)?;
        Ok(())
    }
}

fn spawn(name: &str, arguments: &[String], variables: &Variables, log: &Path) -> Result<Process> {
    let mut command = Command::new(program()?);
    for (variable, _) in std::env::vars_os().filter(|(variable, _)| {
        variable == "RUST_LOG" || variable.as_encoded_bytes().starts_with(b"SHARDED_ETCD_")
    }) {
        command.env_remove(variable);
    }
    command.args(arguments).envs(variables.iter().cloned());
    Process::start(name, &mut command, log)
}

/// All of it. Whatever runs is killed when dropped.
pub struct Cluster {
    /// Meta, then the shards.
    pub etcds: Vec<EtcdProcess>,
    /// Two proxies.
    pub proxies: Vec<Program>,
    /// The shard manager.
    pub manager: Program,
    /// What a program dials, where that is not the etcds themselves: its name, and a relay to each of them.
    pub relays: Vec<(String, Vec<TcpRelay>)>,
    folder: TempDir,
    options: ClusterOptions,
    generation: i64,
}

/// How a cluster is started.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// The keyspace of the resource.
    pub keyspace: KeyspaceSpec,
    /// What the shard manager does on its own.
    pub rebalance: RebalanceSpec,
    /// Whether there are relays between the programs and the etcds.
    pub relayed: bool,
    /// What is set in the environment of the shard manager.
    pub of_manager: Vec<(String, String)>,
}

/// The programs, manager first.
const PROGRAMS: [&str; 3] = ["manager", "proxy-a", "proxy-b"];

impl Cluster {
    /// Starts everything and waits until both proxies serve.
    ///
    /// # Errors
    /// If something does not start, or does not serve in time.
    pub async fn start(keyspace: KeyspaceSpec) -> Result<Self> {
        Self::start_with(ClusterOptions { keyspace, ..ClusterOptions::default() }).await
    }

    /// As [`Cluster::start`].
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_with(options: ClusterOptions) -> Result<Self> {
        let mut etcds = Vec::new();
        for _ in 0..=SHARDS {
            etcds.push(EtcdProcess::start(EtcdProcessOptions::default()).await?);
        }
        let mut relays = Vec::new();
        for name in PROGRAMS.iter().filter(|_| options.relayed) {
            let to = futures::future::try_join_all(etcds.iter().map(|etcd| TcpRelay::start(etcd.endpoint())));
            relays.push(((*name).to_owned(), to.await?));
        }
        let folder = tempfile::Builder::new().prefix("sharded-etcd-e2e-").tempdir()?;
        save_routing(&folder, &etcds, &relays, 1, &options)?;
        let [manager, proxies @ ..] = PROGRAMS;
        let manager = Program::start(&folder, "shard-manager", manager, options.of_manager.clone())?;
        let proxies = proxies
            .map(|name| Program::start(&folder, "proxy", name, Vec::new()))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let mut this = Self { etcds, proxies, manager, relays, folder, options, generation: 1 };
        this.serves().await?;
        Ok(this)
    }

    /// Asks for ranges to be on these shards; the shard manager moves them.
    ///
    /// # Errors
    /// If the routing file cannot be replaced.
    pub fn pin(&mut self, pins: &[(&str, u32)]) -> Result<()> {
        self.generation += 1;
        self.options.keyspace.pins = pins.iter().map(|&(prefix, shard)| pin(prefix, shard)).collect();
        save_routing(&self.folder, &self.etcds, &self.relays, self.generation, &self.options)
    }

    /// Waits until every pinned prefix lies where it was asked to be; at once if nothing is pinned.
    ///
    /// # Errors
    /// If it does not in time, with the end of the shard manager's log.
    pub async fn obeys_pins(&mut self) -> Result<()> {
        let (pins, endpoint) = (&self.options.keyspace.pins, &self.proxies[0].endpoint);
        let obeyed = wait_until("ranges are where they are pinned", SERVES_MAX, || async {
            let map = range_map(endpoint).await.ok()?;
            let there = |pin: &PinSpec| owner(&map, &pin.prefix) == Some(format!("shard-{}", pin.shard));
            pins.iter().all(there).then_some(())
        });
        obeyed.await.with_context(|| format!("the shard manager says:\n{}", self.manager.process.log_tail()))
    }

    /// Waits until both proxies serve what lies on every shard.
    ///
    /// # Errors
    /// If they do not in time, or have ended.
    pub async fn serves(&mut self) -> Result<()> {
        for proxy in &mut self.proxies {
            let client = EtcdShard::connect_lazy(vec![proxy.endpoint.clone()], EtcdOptions::default())?;
            let all = pb::RangeRequest {
                key: "\0".into(),
                range_end: "\0".into(),
                count_only: true,
                ..Default::default()
            };
            let asks = || async { client.range(all.clone()).await.ok() };
            let served = wait_until(&format!("{} serves", proxy.name), SERVES_MAX, asks).await;
            proxy.process.check_running()?;
            served.map_err(|error| error.context(proxy.process.log_tail()))?;
        }
        Ok(())
    }
}

/// The ranges of the newest map, as `status` tells them.
async fn range_map(endpoint: &str) -> Result<Value> {
    let mut command = tokio::process::Command::new(program()?);
    command.args(["status", "-o", "json", "--endpoint", endpoint]);
    let mut status: Value =
        serde_json::from_str(&finish(command, "status", "", STATUS_MAX).await?.success()?)?;
    Ok(status["rangeMap"]["ranges"].take())
}

/// The shard that owns a key.
fn owner(ranges: &Value, key: &str) -> Option<String> {
    let text = |range: &Value, part: &str| range[part].as_str().unwrap_or_default().to_owned();
    let holds = |range: &&Value| {
        let end = text(range, "end");
        text(range, "start").as_str() <= key && (end.is_empty() || key < end.as_str())
    };
    Some(text(ranges.as_array()?.iter().find(holds)?, "shard"))
}

fn routing_file(program: &str) -> String {
    format!("routing-{program}.json")
}

/// Replaces the routing files, of which each program has its own.
fn save_routing(
    folder: &TempDir,
    etcds: &[EtcdProcess],
    relays: &[(String, Vec<TcpRelay>)],
    generation: i64,
    options: &ClusterOptions,
) -> Result<()> {
    let mut resource = ShardedEtcd::with_shards("e2e", SHARDS);
    resource.metadata.generation = Some(generation);
    resource.metadata.uid = Some("e2e".to_owned());
    resource.spec.keyspace = options.keyspace.clone();
    resource.spec.rebalance = options.rebalance.clone();
    for program in PROGRAMS {
        let relays = relays.iter().find(|(name, _)| name == program).map(|(_, relays)| relays);
        let endpoint = |at: usize| relays.map_or_else(|| etcds[at].endpoint(), |r| r[at].endpoint.clone());
        let shards = (1..etcds.len()).map(|at| {
            (format!("shard-{}", at - 1), RoutedShard { incarnation: 0, endpoints: vec![endpoint(at)] })
        });
        let routing = Routing {
            uid: "e2e".to_owned(),
            bootstrap: true,
            engine: Engine::Etcd,
            meta: vec![endpoint(0)],
            shards: shards.collect(),
            resource: resource.clone(),
        };
        let beside = folder.path().join("routing.new");
        std::fs::write(&beside, routing.encode())?;
        std::fs::rename(beside, folder.path().join(routing_file(program)))?;
    }
    Ok(())
}

fn pin(prefix: &str, shard: u32) -> PinSpec {
    PinSpec { prefix: prefix.to_owned(), shard: shard.into() }
}
