//! A topology of embedded engines with the proxy's key-value calls over it.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use sharded_etcd_core::{
    keyspace::{KeyRange, RangeEntry, Rid, ShardIx},
    records::TopologyId,
};
use sharded_etcd_engine::{Engine, EngineConfig};
use sharded_etcd_line::{
    Line, LineOptions, Shards,
    bootstrap::{NewShard, bootstrap},
};
use sharded_etcd_proxy::{
    context::{Context, Identity, Limits},
    kv::{AttachLeases, Kv},
    metrics::Metrics,
};
use sharded_etcd_shard::{Shard, ShardDirectory};
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;

/// No lease exists.
pub struct NoLeases;

impl AttachLeases for NoLeases {
    fn attach(&self, _: i64, _: ShardIx) -> BoxFuture<'_, Result<Option<i64>, Status>> {
        async { Ok(None) }.boxed()
    }
    fn forget(&self, _: i64, _: ShardIx) {}
}

pub struct Topology {
    pub meta: Arc<dyn Shard>,
    pub shards: Vec<Arc<dyn Shard>>,
    pub directory: ShardDirectory,
    pub processes: Vec<EtcdProcess>,
    _dirs: Vec<tempfile::TempDir>,
}

pub async fn engine(dir: &tempfile::TempDir, name: &str) -> Arc<Engine> {
    let mut config = EngineConfig::new(dir.path(), name);
    config.max_txn_ops = 10_000;
    config.segment_bytes = 1 << 20;
    Engine::open(config).await.unwrap()
}

impl Topology {
    /// Embedded shards with ranges that begin at the empty key and at `boundaries`, dealt out in turn.
    pub async fn start(shards: usize, boundaries: &[&'static str]) -> Self {
        let mut dirs = Vec::new();
        let mut engines: Vec<Arc<dyn Shard>> = Vec::new();
        for i in 0..=shards {
            let dir = tempfile::tempdir().unwrap();
            engines.push(engine(&dir, &format!("engine-{i}")).await);
            dirs.push(dir);
        }
        Self { _dirs: dirs, ..Self::over(engines, boundaries).await }
    }

    /// As [`Topology::start`], over real etcds.
    pub async fn start_etcd(shards: usize, boundaries: &[&'static str]) -> Self {
        Self::start_etcd_with(shards, boundaries, EtcdProcessOptions::default()).await
    }

    pub async fn start_etcd_with(
        shards: usize,
        boundaries: &[&'static str],
        options: EtcdProcessOptions,
    ) -> Self {
        let mut processes = Vec::new();
        for _ in 0..=shards {
            processes.push(EtcdProcess::start(options.clone()).await.unwrap());
        }
        let etcds = processes.iter().map(|p| Arc::new(p.shard()) as Arc<dyn Shard>).collect();
        Self { processes, ..Self::over(etcds, boundaries).await }
    }

    /// The first is meta.
    async fn over(mut shards: Vec<Arc<dyn Shard>>, boundaries: &[&'static str]) -> Self {
        let meta = shards.remove(0);
        let directory = ShardDirectory::new();
        let names: Vec<String> = (0..shards.len()).map(|i| format!("shard-{i}")).collect();
        for (name, shard) in names.iter().zip(&shards) {
            directory.insert(name.clone(), Arc::clone(shard));
        }
        let mut starts = vec![Bytes::new()];
        starts.extend(boundaries.iter().map(|b| Bytes::from_static(b.as_bytes())));
        let ranges: Vec<RangeEntry> = starts
            .iter()
            .enumerate()
            .map(|(i, start)| RangeEntry {
                range: KeyRange::new(start.clone(), starts.get(i + 1).cloned().unwrap_or_default()),
                rid: Rid::new(format!("b-{i}")),
                shard: ShardIx((i % shards.len()) as u32),
                imported_at: 0,
            })
            .collect();
        let new: Vec<NewShard<'_>> = names
            .iter()
            .zip(&shards)
            .map(|(name, shard)| NewShard { name, incarnation: 0, shard: shard.as_ref() })
            .collect();
        let id = TopologyId { uid: "test".into(), cluster_id: 77 };
        bootstrap(meta.as_ref(), &id, &new, &ranges).await.unwrap();
        Self { meta, shards, directory, processes: Vec::new(), _dirs: Vec::new() }
    }

    /// One more proxy's view of it.
    pub async fn context(&self, name: &str) -> Arc<Context> {
        self.context_with(name, LineOptions::default()).await
    }

    pub async fn context_with(&self, name: &str, options: LineOptions) -> Arc<Context> {
        let line = Line::start(Arc::clone(&self.meta), options).await.unwrap();
        let shards = Shards::new(Arc::clone(&line), self.directory.clone());
        Arc::new(Context {
            line,
            shards,
            identity: Identity::new(name, vec![]),
            limits: Limits::default(),
            metrics: Arc::new(Metrics::new()),
            draining: CancellationToken::new(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            raft_term: 2,
        })
    }

    pub async fn kv(&self, name: &str) -> Arc<Kv> {
        Kv::start(self.context(name).await, Arc::new(NoLeases))
    }
}
