//! A cluster of real processes under load, in which one range moves while something goes wrong.

use std::{
    fmt,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use sharded_etcd_core::{
    keyspace::{KeyRange, RESERVED},
    moves::ops,
    orders::{Order, OrderRecord, order_key},
    records::{MOVES_PREFIX, Record},
};
use sharded_etcd_crd::{KeyspaceSpec, RebalanceModeSpec, RebalanceSpec};
use sharded_etcd_e2e::cluster::{Cluster, ClusterOptions, SHARDS};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, etcd::EtcdShard};
use sharded_etcd_testkit::{
    Dice, Process,
    tools::{self, Tools},
    wait_until,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// What moves; the load works on it and on what stays.
const MOVING: &str = "/mv/";
/// How long a move may take to come to a step, and to end after the fault is over: on a busy machine, and with a move that was
/// given up in between.
const MOVE_MAX: Duration = Duration::from_secs(90);
/// Time between two looks at a gate: writers wait while it is shut.
const GATE_POLL: Duration = Duration::from_millis(2);
/// Time between two looks at whether a move has ended without coming to its gate.
const ORDER_POLL: Duration = Duration::from_millis(200);
/// Moves that may end without coming to the gate.
const MOVES_MAX: usize = 5;

/// Where a move is held when something goes wrong: between each two of its steps.
pub const STEPS: [&str; 12] = [
    "before open",
    "before copy",
    "before tail",
    "before verify",
    "before close",
    "before drain",
    "before seal",
    "before flip",
    "after flip",
    "after purge-source",
    "after purged-source",
    "before forget",
];

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and started again.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Freeze,
    /// Nothing gets through to it, or from it to the etcds.
    CutOff,
}

impl Fault {
    pub const ALL: [Self; 3] = [Self::Kill, Self::Freeze, Self::CutOff];
}

/// Whom it happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Manager,
    Source,
    Destination,
    Meta,
    Proxy,
}

impl Victim {
    pub const ALL: [Self; 5] = [Self::Manager, Self::Source, Self::Destination, Self::Meta, Self::Proxy];
}

/// One thing that may go wrong at one place.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub step: &'static str,
    pub fault: Fault,
    pub victim: Victim,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.step, self.fault, self.victim)
    }
}

/// The cluster, and the load on it.
pub struct World {
    cluster: Cluster,
    /// Meta and the shards, by a way that is never cut.
    etcds: Vec<EtcdShard>,
    load: Process,
    folder: TempDir,
    orders: AtomicU64,
}

impl World {
    /// - `fault_max`: how long a fault lasts.
    pub async fn start(fault_max: Duration) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("sharded-etcd-moves-").tempdir()?;
        std::fs::create_dir(folder.path().join("gates"))?;
        let gates = folder.path().join("gates").display().to_string();
        let cluster = Cluster::start_with(ClusterOptions {
            keyspace: KeyspaceSpec {
                presplit: [MOVING, "/mv0"].map(str::to_owned).into(),
                ..KeyspaceSpec::default()
            },
            rebalance: RebalanceSpec { mode: RebalanceModeSpec::Manual, ..RebalanceSpec::default() },
            relayed: true,
            of_manager: vec![("SHARDED_ETCD_MOVE_GATES".to_owned(), gates)],
        })
        .await?;
        let etcds = cluster.etcds.iter().map(|etcd| etcd.shard()).collect();
        let endpoints: Vec<_> = cluster.proxies.iter().map(|proxy| proxy.endpoint.clone()).collect();
        let mut command = Command::new(tools::program(Tools::Workload, "workload").await?);
        command.args(["run", "--quiet", "--tolerate-unavailable", "--duration", "2h", "--final-wait", "60s"]);
        // While writers of the range wait, a lease with keys there cannot end, and nobody sees an outage.
        command.arg(format!("--fault-max={}ms", fault_max.as_millis()));
        // Gentle enough for two cores that also build.
        command.args(["--rate", "15", "--writers", "6", "--watchers", "3"]);
        command.args([
            "--prefixes",
            &format!("{MOVING}a/,{MOVING}b/,/stays/"),
            "--lock-prefix",
            &format!("{MOVING}locks/"),
        ]);
        command.args(["--endpoints", &endpoints.join(",")]);
        command.arg("--until-file").arg(folder.path().join("stop"));
        let load = Process::start("workload", &mut command, &folder.path().join("load.log"))?;
        Ok(Self { cluster, etcds, load, folder, orders: AtomicU64::new(1) })
    }

    /// Ends the load, which must have found nothing wrong.
    pub async fn judge(mut self) -> Result<()> {
        std::fs::write(self.folder.path().join("stop"), "")?;
        let status = self.load.wait(Duration::from_secs(240)).await?;
        let log = self.load.log();
        ensure!(status.success() && log.contains("0 failed"), "the judge:\n{log}");
        println!("{log}");
        Ok(())
    }

    /// Moves the range, lets it go wrong, and waits until all is well; says what came of it.
    pub async fn play(&mut self, cell: Cell, lasts: Duration, dice: &mut Dice) -> Result<String> {
        self.load.check_running()?;
        let (from, to, order) = self.held_move(cell.step, dice).await?;
        let reached = self.reached(cell.step);
        let at = match cell.victim {
            Victim::Source => Some(1 + from),
            Victim::Destination => Some(1 + to),
            Victim::Meta => Some(0),
            Victim::Manager | Victim::Proxy => None,
        };
        self.harm(cell, at).await?;
        std::fs::remove_file(&reached)?;
        sleep(lasts).await;
        self.heal(cell, at).await?;
        let healed = Instant::now();
        self.moved(&order, to).await?;
        let took = healed.elapsed().as_secs_f64();
        self.cluster.serves().await?;
        self.is_clean(to).await?;
        Ok(format!("shard-{from} to shard-{to}, done {took:.1} s after the fault was over"))
    }

    /// A move that is held at the step: from where, to where, and its order.
    async fn held_move(&self, step: &str, dice: &mut Dice) -> Result<(usize, usize, String)> {
        std::fs::write(self.gate(step), "")?;
        for _ in 0..MOVES_MAX {
            let from = self.owner().await?;
            let to = (from + 1 + dice.below(u64::from(SHARDS) - 1) as usize) % SHARDS as usize;
            let order = self.give(to).await?;
            if self.comes_to(step, &order).await? {
                return Ok((from, to, order));
            }
        }
        bail!("{MOVES_MAX} moves ended without coming there:\n{}", self.manager_says())
    }

    /// True once the move of an order is held at the step; false if it ends without. That can be: on a busy machine the answer
    /// to a flip may come too late, and what came of it is then read from meta.
    async fn comes_to(&self, step: &str, order: &str) -> Result<bool> {
        let reached = self.reached(step);
        let limit = Instant::now() + MOVE_MAX;
        let mut looked = Instant::now();
        while !reached.exists() {
            ensure!(Instant::now() < limit, "the move does not come there:\n{}", self.manager_says());
            sleep(GATE_POLL).await;
            if looked.elapsed() < ORDER_POLL {
                continue;
            }
            looked = Instant::now();
            match self.order(order).await {
                // The gate may have been reached since it was looked at, and then holds the end of the move.
                Some(order) if order.is_over() && self.moves().await == Some(0) => {
                    return Ok(reached.exists());
                }
                _ => {}
            }
        }
        Ok(true)
    }

    fn reached(&self, step: &str) -> PathBuf {
        self.gate(&format!("at {step}"))
    }

    fn gate(&self, name: &str) -> PathBuf {
        self.folder.path().join("gates").join(name)
    }

    fn manager_says(&self) -> String {
        self.cluster.manager.process.log_tail()
    }

    fn process(&mut self, victim: Victim, at: Option<usize>) -> &mut Process {
        match (victim, at) {
            (_, Some(at)) => self.cluster.etcds[at].process(),
            (Victim::Manager, _) => &mut self.cluster.manager.process,
            _ => &mut self.cluster.proxies[0].process,
        }
    }

    async fn harm(&mut self, cell: Cell, at: Option<usize>) -> Result<()> {
        match cell.fault {
            Fault::Kill => self.process(cell.victim, at).kill(),
            Fault::Freeze => self.process(cell.victim, at).pause().await?,
            Fault::CutOff => self.cut(cell.victim, at, true),
        }
        Ok(())
    }

    async fn heal(&mut self, cell: Cell, at: Option<usize>) -> Result<()> {
        match (cell.fault, cell.victim, at) {
            (Fault::CutOff, ..) => self.cut(cell.victim, at, false),
            (Fault::Freeze, ..) => self.process(cell.victim, at).resume(),
            (Fault::Kill, _, Some(at)) => {
                self.cluster.etcds[at].spawn_again()?;
                self.cluster.etcds[at].wait_ready().await?;
            }
            (Fault::Kill, Victim::Manager, _) => self.cluster.manager.spawn_again()?,
            (Fault::Kill, ..) => self.cluster.proxies[0].spawn_again()?,
        }
        Ok(())
    }

    /// One etcd from all programs, or one program from all etcds.
    fn cut(&self, victim: Victim, at: Option<usize>, cut: bool) {
        let program = match victim {
            Victim::Manager => "manager",
            _ => "proxy-a",
        };
        for (name, relays) in &self.cluster.relays {
            for (to, relay) in relays.iter().enumerate() {
                if at.map_or(name == program, |at| at == to) {
                    relay.cut(cut);
                }
            }
        }
    }

    /// The shard that holds the range open: its index.
    async fn owner(&self) -> Result<usize> {
        let held = wait_until("one shard has the range", MOVE_MAX, || async {
            let mut with_keys = Vec::new();
            for at in 0..SHARDS as usize {
                if self.keys(at).await.ok()? > 0 {
                    with_keys.push(at);
                }
            }
            match with_keys[..] {
                [one] => Some(one),
                _ => None,
            }
        });
        held.await.with_context(|| self.manager_says())
    }

    /// Keys of the range that are stored on a shard, visible or not.
    async fn keys(&self, at: usize) -> Result<i64> {
        let moving = KeyRange::prefix(MOVING.as_bytes());
        let request = pb::RangeRequest { count_only: true, ..ops::range_request(&moving) };
        Ok(self.etcds[1 + at].range(request).await?.count)
    }

    async fn give(&self, to: usize) -> Result<String> {
        let id = format!("{:016x}", self.orders.fetch_add(1, Ordering::Relaxed));
        let range = KeyRange::prefix(MOVING.as_bytes());
        let order = OrderRecord::new(Order::Move { range, to: format!("shard-{to}") });
        let put = pb::PutRequest { key: order_key(&id), value: order.encode(), ..Default::default() };
        self.etcds[0].put(put).await?;
        Ok(id)
    }

    /// An order as it is; `None` if meta does not answer.
    async fn order(&self, id: &str) -> Option<OrderRecord> {
        let request = pb::RangeRequest { key: order_key(id), ..Default::default() };
        let kv = self.etcds[0].range(request).await.ok()?.kvs.pop()?;
        OrderRecord::decode(&kv.value).ok()
    }

    /// How many moves are written down; `None` if meta does not answer.
    async fn moves(&self) -> Option<usize> {
        let moves = ops::range_request(&KeyRange::prefix(MOVES_PREFIX));
        Some(self.etcds[0].range(moves).await.ok()?.kvs.len())
    }

    /// Waits until the order is done and its move is over.
    async fn moved(&self, id: &str, to: usize) -> Result<()> {
        let over = wait_until("the move is over", MOVE_MAX, || async {
            let order = self.order(id).await?;
            if order.is_over() && order.state != sharded_etcd_core::orders::OrderState::Done {
                return Some(Err(order.message));
            }
            (self.moves().await? == 0 && order.is_over()).then_some(Ok(()))
        });
        match over.await.with_context(|| self.manager_says())? {
            Ok(()) => ensure!(self.owner().await? == to, "the keys are not on shard-{to}"),
            Err(why) => bail!("the order is refused: {why}"),
        }
        Ok(())
    }

    /// Nothing of the move is left, and no key of the range where it was.
    async fn is_clean(&self, to: usize) -> Result<()> {
        for at in 0..SHARDS as usize {
            ensure!(at == to || self.keys(at).await? == 0, "shard-{at} has keys of the range");
            for kind in ["M/", "P/"] {
                let hidden = KeyRange::prefix(&[RESERVED, kind.as_bytes()].concat());
                let left = self.etcds[1 + at].range(ops::range_request(&hidden)).await?.kvs;
                ensure!(left.is_empty(), "shard-{at} has records of moves: {left:?}");
            }
        }
        Ok(())
    }
}
