//! A topology with the leases of one or more proxies over it.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx},
    records::{LEASE_PREFIX, lease_marker_range},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{Line, LineOptions, Shards};
use sharded_etcd_proxy::{
    context::{Context, Identity, Limits},
    kv::Kv,
    lease::{LeaseOptions, Leases},
    metrics::Metrics,
};
use sharded_etcd_shard::{Result, Shard, ShardDirectory, WatchStream};
use sharded_etcd_testkit::wait_until;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::Topology;

/// No test waits longer for anything.
pub const LIMIT: Duration = Duration::from_secs(60);

/// One proxy's leases and writes.
pub struct Proxy {
    pub ctx: Arc<Context>,
    pub kv: Arc<Kv>,
    pub leases: Arc<Leases>,
}

/// Timings that make tests short.
pub fn quick() -> LeaseOptions {
    LeaseOptions {
        attempt_max: Duration::from_secs(10),
        silence_max: Duration::from_millis(800),
        sweep_interval: Duration::from_millis(200),
        rest: Duration::from_millis(500),
    }
}

/// No sweeps: what is seen is the work of the calls themselves.
pub fn unswept() -> LeaseOptions {
    LeaseOptions { sweep_interval: Duration::from_secs(3600), ..LeaseOptions::default() }
}

impl Proxy {
    pub async fn start(topology: &Topology, name: &str, options: LeaseOptions) -> Self {
        Self::over(name, Arc::clone(&topology.meta), topology.directory.clone(), options).await
    }

    /// A proxy whose changes stop at some call, as if it was killed there.
    pub async fn doomed(topology: &Topology, name: &str, fate: &Arc<Fate>) -> Self {
        let doomed = |inner: &Arc<dyn Shard>| -> Arc<dyn Shard> {
            Arc::new(Doomed { inner: Arc::clone(inner), fate: Arc::clone(fate) })
        };
        let directory = ShardDirectory::new();
        for name in topology.directory.names() {
            directory.insert(name.clone(), doomed(&topology.directory.get(&name).unwrap()));
        }
        Self::over(name, doomed(&topology.meta), directory, unswept()).await
    }

    async fn over(
        name: &str,
        meta: Arc<dyn Shard>,
        directory: ShardDirectory,
        options: LeaseOptions,
    ) -> Self {
        let line = Line::start(meta, LineOptions::default()).await.unwrap();
        let ctx = Arc::new(Context {
            shards: Shards::new(Arc::clone(&line), directory),
            line,
            identity: Identity::new(name, vec![]),
            limits: Limits::default(),
            metrics: Arc::new(Metrics::new()),
            draining: CancellationToken::new(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            raft_term: 2,
        });
        let leases = Leases::start_with(Arc::clone(&ctx), options);
        let kv = Kv::start(Arc::clone(&ctx), Arc::clone(&leases) as Arc<_>);
        Self { ctx, kv, leases }
    }

    pub async fn grant(&self, ttl: i64) -> i64 {
        self.leases.grant(ttl, 0).await.unwrap().id
    }

    pub async fn put(&self, key: &str, lease: i64) -> std::result::Result<i64, tonic::Status> {
        let put = pb::PutRequest { lease, ..put(key, "v") };
        Ok(self.kv.put(put).await?.header.unwrap().revision)
    }

    /// All keys that clients see, with their leases.
    pub async fn keys(&self) -> Vec<(String, i64)> {
        let all = pb::RangeRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            ..Default::default()
        };
        let kvs = self.kv.range(all).await.unwrap().kvs;
        kvs.into_iter().map(|kv| (String::from_utf8(kv.key.to_vec()).unwrap(), kv.lease)).collect()
    }

    pub async fn ttl(&self, id: i64) -> i64 {
        self.leases.time_to_live(pb::LeaseTimeToLiveRequest { id, keys: false }).await.unwrap().ttl
    }

    /// The keys of a lease as LeaseTimeToLive tells them.
    pub async fn keys_of(&self, id: i64) -> Vec<String> {
        let answer = self.leases.time_to_live(pb::LeaseTimeToLiveRequest { id, keys: true }).await.unwrap();
        answer.keys.into_iter().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect()
    }

    pub async fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> =
            self.leases.leases().await.unwrap().leases.into_iter().map(|lease| lease.id).collect();
        ids.sort_unstable();
        ids
    }
}

pub fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    }
}

/// The keys of a range, as stored.
pub async fn stored(shard: &dyn Shard, range: &KeyRange) -> Vec<pb::KeyValue> {
    let request =
        pb::RangeRequest { key: range.request_key(), range_end: range.request_end(), ..Default::default() };
    shard.range(request).await.unwrap().kvs
}

/// Everything that is stored about leases: keys in meta, real leases, and of each shard markers and shadows.
pub async fn left_of_leases(topology: &Topology) -> Vec<String> {
    let mut left = Vec::new();
    let name = |kv: &pb::KeyValue| String::from_utf8_lossy(&kv.key).into_owned();
    left.extend(stored(topology.meta.as_ref(), &KeyRange::prefix(LEASE_PREFIX)).await.iter().map(name));
    for lease in topology.meta.lease_leases().await.unwrap().leases {
        left.push(format!("real lease {:016x}", lease.id));
    }
    for (i, shard) in topology.shards.iter().enumerate() {
        for marker in stored(shard.as_ref(), &lease_marker_range()).await {
            left.push(format!("marker {} on shard {i}", name(&marker)));
        }
        for lease in shard.lease_leases().await.unwrap().leases {
            left.push(format!("shadow {:016x} on shard {i}", lease.id));
        }
    }
    left
}

/// Waits until nothing is stored about leases any more.
pub async fn nothing_left(topology: &Topology) {
    let empty = async || left_of_leases(topology).await.is_empty().then_some(());
    if wait_until("no lease is left", LIMIT, empty).await.is_err() {
        panic!("left: {:#?}", left_of_leases(topology).await);
    }
}

pub async fn shadows(topology: &Topology, shard: ShardIx) -> Vec<i64> {
    let leases = topology.shards[shard.index()].lease_leases().await.unwrap().leases;
    leases.into_iter().map(|lease| lease.id).collect()
}

/// When a proxy dies: at its n-th change, before it reaches the shard or after it was applied.
pub struct Fate {
    left: AtomicI64,
    applied: bool,
    dead: watch::Sender<bool>,
}

impl Fate {
    pub fn new(changes: i64, applied: bool) -> Arc<Self> {
        Arc::new(Self { left: AtomicI64::new(changes), applied, dead: watch::Sender::new(false) })
    }

    /// Waits until it has died.
    pub async fn died(&self) {
        self.dead.subscribe().wait_for(|dead| *dead).await.unwrap();
    }
}

/// A shard whose changes hang for ever once the proxy has died.
struct Doomed {
    inner: Arc<dyn Shard>,
    fate: Arc<Fate>,
}

impl Doomed {
    fn change<'a, T: Send + 'a>(&'a self, call: BoxFuture<'a, Result<T>>) -> BoxFuture<'a, Result<T>> {
        async move {
            let left = self.fate.left.fetch_sub(1, Ordering::SeqCst);
            if left > 0 {
                return call.await;
            }
            if left == 0 && self.fate.applied {
                // The answer never comes.
                let _ = call.await;
            }
            self.fate.dead.send_replace(true);
            std::future::pending().await
        }
        .boxed()
    }
}

/// Puts are the line's own (cuts), which go on: only what leases do is counted.
impl Shard for Doomed {
    fn range(&self, request: pb::RangeRequest) -> BoxFuture<'_, Result<pb::RangeResponse>> {
        self.inner.range(request)
    }
    fn put(&self, request: pb::PutRequest) -> BoxFuture<'_, Result<pb::PutResponse>> {
        self.inner.put(request)
    }
    fn txn(&self, request: pb::TxnRequest) -> BoxFuture<'_, Result<pb::TxnResponse>> {
        let writes = |op: &pb::RequestOp| !matches!(op.request, Some(pb::Request::RequestRange(_)));
        if request.success.iter().chain(&request.failure).any(writes) {
            self.change(self.inner.txn(request))
        } else {
            self.inner.txn(request)
        }
    }
    fn compact(&self, request: pb::CompactionRequest) -> BoxFuture<'_, Result<pb::CompactionResponse>> {
        self.inner.compact(request)
    }
    fn watch(&self, request: pb::WatchCreateRequest) -> BoxFuture<'_, Result<WatchStream>> {
        self.inner.watch(request)
    }
    fn lease_grant(&self, request: pb::LeaseGrantRequest) -> BoxFuture<'_, Result<pb::LeaseGrantResponse>> {
        self.change(self.inner.lease_grant(request))
    }
    fn lease_revoke(
        &self,
        request: pb::LeaseRevokeRequest,
    ) -> BoxFuture<'_, Result<pb::LeaseRevokeResponse>> {
        self.change(self.inner.lease_revoke(request))
    }
    fn lease_keep_alive(&self, id: i64) -> BoxFuture<'_, Result<pb::LeaseKeepAliveResponse>> {
        self.inner.lease_keep_alive(id)
    }
    fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> BoxFuture<'_, Result<pb::LeaseTimeToLiveResponse>> {
        self.inner.lease_time_to_live(request)
    }
    fn lease_leases(&self) -> BoxFuture<'_, Result<pb::LeaseLeasesResponse>> {
        self.inner.lease_leases()
    }
    fn status(&self) -> BoxFuture<'_, Result<pb::StatusResponse>> {
        self.inner.status()
    }
    fn defragment(&self) -> BoxFuture<'_, Result<pb::DefragmentResponse>> {
        self.inner.defragment()
    }
    fn alarm(&self, request: pb::AlarmRequest) -> BoxFuture<'_, Result<pb::AlarmResponse>> {
        self.inner.alarm(request)
    }
}
