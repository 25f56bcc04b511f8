//! The servers that the suite runs against.

mod moving;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sharded_etcd_conformance::{Lack, Need, Target};
use sharded_etcd_core::{
    keyspace::{KeyRange, RangeEntry, Rid, ShardIx},
    records::TopologyId,
};
use sharded_etcd_engine::{Engine, EngineConfig, serve::serve};
use sharded_etcd_line::{
    Line, LineOptions, Shards,
    bootstrap::{NewShard, bootstrap},
};
use sharded_etcd_proxy::{Drain, Proxy, ProxyOptions, context::Limits};
use sharded_etcd_shard::{Shard, ShardDirectory};
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use moving::Moving;

/// How often watchers that asked for it are told their progress: cases wait for it.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

const ENGINE_ALONE: &str = "an embedded engine is one member without peers";
const NO_USERS: &str = "not there yet: authentication, users and roles";
const ONE_FILE: &str = "hashes and snapshots are of one member's file: take them on the shards' own \
endpoints";
const OWN_REVISIONS: &str = "the topology's own writes (fences, lease markers, moves) take numbers too; clients \
may rely on revisions that grow";
const BY_SHARD: &str = "a delete, and the end of a lease, over several shards take one revision a shard \
(docs/consistency.md)";
const ONE_SHARD: &str = "a transaction that writes has its keys on one shard (docs/consistency.md)";
const RAISED_BY_SHARDS: &str = "alarms are raised by the shards; clients see and disarm them";
const SEVERAL: &str = "requests go to either member";
const PROXIES: &str = "members are the proxies, which have no peers and are declared in the spec";
const BOUNDED: &str = "a delete of everything ends at `FF FF FF FF`, so that a put in the same Txn clashes with it (docs/limits.md)";
const NO_SUCH_ID: &str = "the lease id 2^63 - 1 is refused (docs/limits.md)";
const RESERVED: &str = "keys at and above `FF FF FF FF` belong to the topology (docs/limits.md)";

fn lacks(list: &[(Need, &'static str)]) -> Vec<Lack> {
    // Nothing else may happen to be written while such a case runs; the same member may happen to answer.
    let is_fickle = |need| matches!(need, Need::ConsecutiveRevisions | Need::OneMember);
    list.iter().map(|&(need, reason)| Lack { need, reason, is_fickle: is_fickle(need) }).collect()
}

/// etcd itself, which is what the suite is about.
pub fn etcd_target() -> Target {
    Target { name: "etcd 3.7", lacks: Vec::new() }
}

/// One embedded engine.
pub fn engine_target() -> Target {
    let list = [(Need::Users, NO_USERS), (Need::Peers, ENGINE_ALONE)];
    Target { name: "embedded engine", lacks: lacks(&list) }
}

const OF_PROXIES: [(Need, &str); 10] = [
    (Need::ConsecutiveRevisions, OWN_REVISIONS),
    (Need::Hashes, ONE_FILE),
    (Need::Snapshot, ONE_FILE),
    (Need::Users, NO_USERS),
    (Need::RaiseAlarms, RAISED_BY_SHARDS),
    (Need::RaftMembers, PROXIES),
    (Need::Peers, PROXIES),
    (Need::HighestKeys, RESERVED),
    (Need::HighestLeaseId, NO_SUCH_ID),
    (Need::UnboundedDeleteBesidePut, BOUNDED),
];
const OF_SHARDS: [(Need, &str); 2] =
    [(Need::OneRevisionOverShards, BY_SHARD), (Need::TxnOverShards, ONE_SHARD)];

/// A proxy over embedded engines.
pub fn engines_target() -> Target {
    Target { name: "proxy over 3 embedded shards", lacks: lacks(&[&OF_PROXIES[..], &OF_SHARDS].concat()) }
}

/// Two proxies over embedded engines; each request of a case goes to any of them.
pub fn two_proxies_target() -> Target {
    let of_several = [(Need::OneMember, SEVERAL)];
    Target {
        name: "2 proxies over 3 embedded shards",
        lacks: lacks(&[&OF_PROXIES[..], &OF_SHARDS, &of_several].concat()),
    }
}

/// What holds only while the directories of a case happen to be on one shard: a case that needs it may pass.
fn moving_target(name: &'static str) -> Target {
    let mut lacks = lacks(&[&OF_PROXIES[..], &OF_SHARDS].concat());
    for lack in &mut lacks {
        lack.is_fickle |= OF_SHARDS.iter().any(|(need, _)| *need == lack.need);
    }
    Target { name, lacks }
}

/// A proxy over embedded engines while ranges move, split and merge.
pub fn moving_engines_target() -> Target {
    moving_target("proxy over 3 embedded shards, ranges moving")
}

/// A proxy over etcds while ranges move, split and merge.
pub fn moving_etcds_target() -> Target {
    moving_target("proxy over 3 etcd shards, ranges moving")
}

/// A proxy over one etcd.
pub fn etcd_shard_target() -> Target {
    Target { name: "proxy over 1 etcd shard", lacks: lacks(&OF_PROXIES) }
}

/// A proxy over etcds.
pub fn etcd_shards_target() -> Target {
    Target { name: "proxy over 3 etcd shards", lacks: lacks(&[&OF_PROXIES[..], &OF_SHARDS].concat()) }
}

/// All of them, as the document lists them.
pub fn all() -> Vec<Target> {
    vec![
        etcd_target(),
        engine_target(),
        engines_target(),
        two_proxies_target(),
        etcd_shard_target(),
        etcd_shards_target(),
        moving_engines_target(),
        moving_etcds_target(),
    ]
}

/// A server; it ends when this is dropped.
pub struct Served {
    /// `http://HOST:PORT` of each.
    pub endpoints: Vec<String>,
    /// Meta and shards, for who moves ranges; only of proxies.
    below: Option<(Arc<dyn Shard>, ShardDirectory)>,
    _guard: Option<DropGuard>,
    _tasks: Vec<JoinHandle<()>>,
    _processes: Vec<EtcdProcess>,
    _folders: Vec<TempDir>,
}

impl Served {
    /// Moves, splits and merges ranges without pause from now on.
    pub async fn start_moving(&self) -> Moving {
        let (meta, directory) = self.below.as_ref().unwrap();
        Moving::start(meta, directory, &self.endpoints[0]).await
    }
}

/// Starts etcd with its own limits.
pub async fn etcd() -> Served {
    let options = EtcdProcessOptions {
        max_txn_ops: 128,
        max_request_bytes: 3 << 19,
        arguments: vec![format!("--watch-progress-notify-interval={}s", PROGRESS_INTERVAL.as_secs())],
        ..Default::default()
    };
    let process = EtcdProcess::start(options).await.unwrap();
    let endpoint = process.endpoint();
    Served {
        endpoints: vec![endpoint],
        below: None,
        _guard: None,
        _tasks: Vec::new(),
        _processes: vec![process],
        _folders: Vec::new(),
    }
}

/// Starts an engine with etcd's limits, behind gRPC.
pub async fn engine() -> Served {
    let folder = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::new(folder.path(), "engine");
    config.segment_bytes = 4 << 20;
    config.progress_interval = PROGRESS_INTERVAL;
    let engine = Engine::open(config).await.unwrap();
    let (listener, endpoint) = listen().await;
    let shutdown = CancellationToken::new();
    let serving = serve(engine, listener, shutdown.clone());
    let task = tokio::spawn(async move { serving.await.unwrap() });
    Served {
        endpoints: vec![endpoint],
        below: None,
        _guard: Some(shutdown.drop_guard()),
        _tasks: vec![task],
        _processes: Vec::new(),
        _folders: vec![folder],
    }
}

/// Starts proxies over that many embedded engines, and one for meta.
pub async fn proxies_over_engines(proxies: usize, shards: usize, boundaries: &[Bytes]) -> Served {
    let (mut folders, mut engines) = (Vec::new(), Vec::new());
    for n in 0..=shards {
        let folder = tempfile::tempdir().unwrap();
        let mut config = EngineConfig::new(folder.path(), format!("engine-{n}"));
        (config.max_txn_ops, config.max_request_bytes) = (10_000, 32 << 20);
        config.segment_bytes = 4 << 20;
        engines.push(Engine::open(config).await.unwrap() as Arc<dyn Shard>);
        folders.push(folder);
    }
    Served { _folders: folders, ..serve_proxies(proxies, engines, boundaries).await }
}

/// Starts a proxy over that many etcds of one member, and one for meta.
pub async fn proxy_over_etcds(shards: usize, boundaries: &[Bytes]) -> Served {
    let (mut processes, mut etcds) = (Vec::new(), Vec::new());
    for _ in 0..=shards {
        let process = EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap();
        etcds.push(Arc::new(process.shard()) as Arc<dyn Shard>);
        processes.push(process);
    }
    Served { _processes: processes, ..serve_proxies(1, etcds, boundaries).await }
}

/// The first is meta; ranges are dealt out to the others in turn.
async fn serve_proxies(proxies: usize, mut shards: Vec<Arc<dyn Shard>>, boundaries: &[Bytes]) -> Served {
    let meta = shards.remove(0);
    let directory = ShardDirectory::new();
    let names: Vec<String> = (0..shards.len()).map(|n| format!("shard-{n}")).collect();
    for (name, shard) in names.iter().zip(&shards) {
        directory.insert(name.clone(), Arc::clone(shard));
    }
    let starts: Vec<Bytes> = [Bytes::new()].into_iter().chain(boundaries.iter().cloned()).collect();
    let ranges: Vec<RangeEntry> = starts
        .iter()
        .enumerate()
        .map(|(n, start)| RangeEntry {
            range: KeyRange::new(start.clone(), starts.get(n + 1).cloned().unwrap_or_default()),
            rid: Rid::new(format!("b-{n}")),
            shard: ShardIx((n % shards.len()) as u32),
            imported_at: 0,
        })
        .collect();
    let new: Vec<NewShard<'_>> = names
        .iter()
        .zip(&shards)
        .map(|(name, shard)| NewShard { name, incarnation: 0, shard: shard.as_ref() })
        .collect();
    let id = TopologyId { uid: "conformance".into(), cluster_id: 77 };
    bootstrap(meta.as_ref(), &id, &new, &ranges).await.unwrap();
    let shutdown = CancellationToken::new();
    let (mut endpoints, mut tasks) = (Vec::new(), Vec::new());
    for n in 0..proxies {
        let line = Line::start(Arc::clone(&meta), LineOptions::default()).await.unwrap();
        let (listener, endpoint) = listen().await;
        let options = ProxyOptions {
            shards: Shards::new(Arc::clone(&line), directory.clone()),
            line,
            name: format!("proxy-{n}"),
            client_urls: vec![endpoint.clone()],
            limits: Limits { progress_interval: PROGRESS_INTERVAL, ..Limits::default() },
            generation: None,
            drain: Drain::default(),
        };
        let proxy = Proxy::start(options).await.unwrap();
        let stop = shutdown.clone();
        tasks.push(tokio::spawn(
            async move { proxy.serve(listener, Default::default(), stop).await.unwrap() },
        ));
        endpoints.push(endpoint);
    }
    Served {
        endpoints,
        below: Some((meta, directory)),
        _guard: Some(shutdown.drop_guard()),
        _tasks: tasks,
        _processes: Vec::new(),
        _folders: Vec::new(),
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    (listener, endpoint)
}
