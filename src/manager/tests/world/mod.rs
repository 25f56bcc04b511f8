//! Meta and shards on the embedded engine, a client that keeps the protocol, and a model of what it was told.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use sharded_etcd_core::{
    keyspace::{KeyRange, RESERVED, RangeEntry, Rid, ShardIx},
    moves::{ops, plan_txn},
    records::{
        self, FENCE_OPEN, LeaseRecord, LeaseState, MovePhase, MoveRecord, Record, TopologyId, fence_key,
        lease_key, move_key, overridden_key, override_key, override_range,
    },
    translate::{StoredOverride, client_kv},
};
use sharded_etcd_engine::{Engine, EngineConfig};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{
    Line, LineOptions, Shards,
    bootstrap::{NewShard, bootstrap, join},
};
use sharded_etcd_manager::{Failpoints, MoverContext, MoverOptions, Progress, Throttle};
use sharded_etcd_shard::{Result, Shard, ShardDirectory, WatchStream};
use tempfile::TempDir;

/// A shard whose transactions go through a function; all else is passed on to it.
pub struct OnTxn<F> {
    inner: Arc<dyn Shard>,
    txn: F,
}

impl<F> OnTxn<F>
where
    F: Fn(&Arc<dyn Shard>, pb::TxnRequest) -> BoxFuture<'static, Result<pb::TxnResponse>>
        + Send
        + Sync
        + 'static,
{
    pub fn over(inner: &Arc<dyn Shard>, txn: F) -> Arc<dyn Shard> {
        Arc::new(Self { inner: Arc::clone(inner), txn })
    }
}

macro_rules! passed_on {
    ($($method:ident($($arg:ident: $request:ty)?) -> $response:ty;)*) => {$(
        fn $method(&self, $($arg: $request)?) -> BoxFuture<'_, Result<$response>> {
            self.inner.$method($($arg)?)
        }
    )*};
}

impl<F> Shard for OnTxn<F>
where
    F: Fn(&Arc<dyn Shard>, pb::TxnRequest) -> BoxFuture<'static, Result<pb::TxnResponse>>
        + Send
        + Sync
        + 'static,
{
    fn txn(&self, request: pb::TxnRequest) -> BoxFuture<'_, Result<pb::TxnResponse>> {
        (self.txn)(&self.inner, request)
    }

    passed_on! {
        range(request: pb::RangeRequest) -> pb::RangeResponse;
        put(request: pb::PutRequest) -> pb::PutResponse;
        compact(request: pb::CompactionRequest) -> pb::CompactionResponse;
        watch(request: pb::WatchCreateRequest) -> WatchStream;
        lease_grant(request: pb::LeaseGrantRequest) -> pb::LeaseGrantResponse;
        lease_revoke(request: pb::LeaseRevokeRequest) -> pb::LeaseRevokeResponse;
        lease_keep_alive(id: i64) -> pb::LeaseKeepAliveResponse;
        lease_time_to_live(request: pb::LeaseTimeToLiveRequest) -> pb::LeaseTimeToLiveResponse;
        lease_leases() -> pb::LeaseLeasesResponse;
        status() -> pb::StatusResponse;
        defragment() -> pb::DefragmentResponse;
        alarm(request: pb::AlarmRequest) -> pb::AlarmResponse;
    }
}

/// Runs a transaction on a shard.
pub fn run_txn(
    shard: &Arc<dyn Shard>,
    request: pb::TxnRequest,
) -> BoxFuture<'static, Result<pb::TxnResponse>> {
    let shard = Arc::clone(shard);
    Box::pin(async move { shard.txn(request).await })
}

pub struct World {
    pub dir: TempDir,
    pub meta: Arc<dyn Shard>,
    pub engines: Mutex<Vec<Arc<Engine>>>,
    pub line: Arc<Line>,
    pub shards: Arc<Shards>,
    pub directory: ShardDirectory,
}

pub async fn engine(dir: &TempDir, name: &str) -> Arc<Engine> {
    let mut config = EngineConfig::new(dir.path().join(name), name);
    config.max_txn_ops = 10_000;
    config.max_request_bytes = 16 << 20;
    config.segment_bytes = 1 << 20;
    Engine::open(config).await.unwrap()
}

impl World {
    /// Shard 0 owns everything below "m", shard 1 the rest, the others nothing.
    pub async fn new(shards: usize) -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let meta: Arc<dyn Shard> = engine(&dir, "meta").await;
        let mut engines: Vec<Arc<Engine>> = Vec::new();
        for i in 0..shards {
            engines.push(engine(&dir, &format!("shard-{i}")).await);
        }
        let connections = engines.iter().map(|e| Arc::clone(e) as Arc<dyn Shard>).collect();
        Self::over(dir, meta, connections, engines).await
    }

    /// The same over any shards.
    pub async fn over(
        dir: TempDir,
        meta: Arc<dyn Shard>,
        connections: Vec<Arc<dyn Shard>>,
        engines: Vec<Arc<Engine>>,
    ) -> Arc<Self> {
        let shards = connections.len();
        let directory = ShardDirectory::new();
        for (i, shard) in connections.iter().enumerate() {
            directory.insert(format!("shard-{i}"), Arc::clone(shard));
        }
        let names: Vec<String> = (0..shards).map(|i| format!("shard-{i}")).collect();
        let new: Vec<NewShard<'_>> = connections
            .iter()
            .zip(&names)
            .map(|(e, name)| NewShard { name, incarnation: 0, shard: e.as_ref() })
            .collect();
        let range = |s: &'static str, e: &'static str, rid: &str, ix| RangeEntry {
            range: KeyRange::new(s, e),
            rid: Rid::new(rid),
            shard: ShardIx(ix),
            imported_at: 0,
        };
        let ranges = if shards > 1 {
            vec![range("", "m", "b-0", 0), range("m", "", "b-1", 1)]
        } else {
            vec![range("", "", "b-0", 0)]
        };
        let id = TopologyId { uid: "test".into(), cluster_id: 7 };
        bootstrap(meta.as_ref(), &id, &new, &ranges).await.unwrap();
        let line = Line::start(Arc::clone(&meta), LineOptions::default()).await.unwrap();
        let shards = Shards::new(Arc::clone(&line), directory.clone());
        Arc::new(Self { dir, meta, engines: Mutex::new(engines), line, shards, directory })
    }

    /// Opens an engine that is not part of the line yet.
    pub async fn add_engine(&self, name: &str) -> Arc<Engine> {
        let e = engine(&self.dir, name).await;
        self.directory.insert(name, Arc::clone(&e) as Arc<dyn Shard>);
        self.engines.lock().push(Arc::clone(&e));
        e
    }

    pub async fn join(&self, name: &str) {
        let e = self.add_engine(name).await;
        join(&self.line, &NewShard { name, incarnation: 0, shard: e.as_ref() }).await.unwrap();
    }

    pub fn context(&self, failpoints: Failpoints) -> MoverContext {
        MoverContext {
            line: Arc::clone(&self.line),
            shards: Arc::clone(&self.shards),
            // Tests count on moves that happen, on machines however busy.
            options: MoverOptions { stall_max: Duration::from_secs(30), ..MoverOptions::default() },
            throttle: Arc::new(Throttle::new(None)),
            progress: Arc::new(Progress::default()),
            failpoints,
        }
    }

    pub async fn shard(&self, ix: u32) -> Arc<dyn Shard> {
        self.shards.get(ShardIx(ix)).await.unwrap()
    }

    /// Writes a move of the range that holds `key` down, as the manager does.
    pub async fn plan(&self, key: &str, to: u32, id: &str) -> Rid {
        let map =
            self.meta.range(pb::RangeRequest { key: Bytes::from_static(records::MAP), ..Default::default() });
        let modified = map.await.unwrap().kvs[0].mod_revision;
        let cut = self.line.at_position(modified).await.unwrap();
        let entry = cut.map.owner(key.as_bytes());
        let record = MoveRecord {
            id: id.into(),
            rid: entry.rid.clone(),
            new_rid: Rid::new(format!("m-{id}")),
            range: entry.range.clone(),
            from: entry.shard,
            to: ShardIx(to),
            phase: MovePhase::Copying,
            reason: "a test wants it".into(),
        };
        assert!(self.meta.txn(plan_txn(&record, modified)).await.unwrap().succeeded);
        entry.rid.clone()
    }

    pub async fn record(&self, rid: &Rid) -> Option<MoveRecord> {
        let get = pb::RangeRequest { key: move_key(rid), ..Default::default() };
        self.meta.range(get).await.unwrap().kvs.first().map(|kv| MoveRecord::decode(&kv.value).unwrap())
    }

    pub fn owner(&self, key: &str) -> (u32, Rid) {
        let cut = self.line.cut();
        let entry = cut.map.owner(key.as_bytes());
        (entry.shard.0, entry.rid.clone())
    }

    /// All keys of clients at the newest cut, as clients know them.
    pub async fn read_all(&self) -> Vec<pb::KeyValue> {
        let cut = self.line.refresh().await.unwrap();
        let mut all = Vec::new();
        for entry in cut.map.entries() {
            let shard = self.shards.get(entry.shard).await.unwrap();
            let revision = cut.v(entry.shard);
            let at = |range: &KeyRange| pb::RangeRequest { revision, ..ops::range_request(range) };
            let kvs = shard.range(at(&entry.range.clamped())).await.unwrap().kvs;
            let os = shard.range(at(&override_range(&entry.range))).await.unwrap().kvs;
            let os: BTreeMap<Bytes, StoredOverride> = os
                .iter()
                .map(|kv| (overridden_key(&kv.key).unwrap(), StoredOverride::from_kv(kv).unwrap()))
                .collect();
            for kv in kvs {
                let o = os.get(&kv.key).copied();
                all.push(self.line.with_fold(|f| client_kv(f, entry.shard, kv, o.as_ref())));
            }
        }
        all
    }

    /// Hidden records of one kind (`F/`, `M/`, `P/`, `O/`) on a shard.
    pub async fn hidden(&self, ix: u32, kind: &str) -> Vec<pb::KeyValue> {
        let mut prefix = RESERVED.to_vec();
        prefix.extend_from_slice(kind.as_bytes());
        let shard = self.shard(ix).await;
        shard.range(ops::range_request(&KeyRange::prefix(&prefix))).await.unwrap().kvs
    }

    /// Number of clients' keys stored on a shard, visible or not.
    pub async fn stored(&self, ix: u32) -> i64 {
        let all = KeyRange::whole().clamped();
        let request = pb::RangeRequest { count_only: true, ..ops::range_request(&all) };
        self.shard(ix).await.range(request).await.unwrap().count
    }

    /// Grants a client's lease: the record, without a real lease behind it.
    pub async fn grant(&self, id: i64) {
        let record =
            LeaseRecord { ttl: 60, state: LeaseState::Live, chosen: false, helper: None, uncertain: false };
        let put = pb::PutRequest { key: lease_key(id), value: record.encode(), ..Default::default() };
        self.meta.put(put).await.unwrap();
    }

    /// Shadow of a lease on a shard, as the first attach makes it.
    pub async fn shadow(&self, id: i64, ix: u32) {
        let key = records::lease_shadow_key(id, ShardIx(ix));
        self.meta.put(pb::PutRequest { key, ..Default::default() }).await.unwrap();
        let _ = self.shard(ix).await.lease_grant(pb::LeaseGrantRequest { id, ttl: 9_000_000_000 }).await;
    }

    /// The end of a lease whose keys are deleted.
    pub async fn end_lease(&self, id: i64) {
        let mut success = vec![ops::delete(lease_key(id))];
        success.push(ops::delete_range(&KeyRange::prefix(&records::lease_shadow_prefix(id))));
        self.meta.txn(ops::txn(vec![], success)).await.unwrap();
    }

    /// Nothing of moves, splits and merges is left anywhere.
    pub async fn assert_clean(&self, shards: u32) {
        let moves = KeyRange::prefix(records::MOVES_PREFIX);
        let left = self.meta.range(ops::range_request(&moves)).await.unwrap().kvs;
        assert!(left.is_empty(), "moves are left: {left:?}");
        let cut = self.line.refresh().await.unwrap();
        let mut visible = 0;
        for ix in 0..shards {
            assert!(self.hidden(ix, "M/").await.is_empty(), "shard {ix} has cursors");
            assert!(self.hidden(ix, "P/").await.is_empty(), "shard {ix} has purges");
            let mut fences: Vec<Bytes> = self.hidden(ix, "F/").await.into_iter().map(|kv| kv.key).collect();
            let mut owned: Vec<Bytes> = cut
                .map
                .entries()
                .iter()
                .filter(|e| e.shard.0 == ix && !cut.left[ix as usize])
                .map(|e| fence_key(&e.rid))
                .collect();
            fences.sort();
            owned.sort();
            assert_eq!(fences, owned, "fences of shard {ix}");
            visible += self.stored(ix).await;
        }
        assert_eq!(visible, self.read_all().await.len() as i64, "keys are stored twice");
    }
}

/// A client that writes by the protocol and knows what it was answered.
pub struct Client {
    world: Arc<World>,
    pub model: Mutex<BTreeMap<Bytes, pb::KeyValue>>,
    pub writes: AtomicU64,
    pub held: AtomicU64,
}

impl Client {
    pub fn new(world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            model: Mutex::default(),
            writes: AtomicU64::new(0),
            held: AtomicU64::new(0),
        })
    }

    pub async fn put(&self, key: &str, value: &str, lease: i64) {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let value = Bytes::copy_from_slice(value.as_bytes());
        let op = ops::put_leased(key.clone(), value.clone(), lease);
        let revision = self.write(&key, vec![op]).await;
        let mut model = self.model.lock();
        let new = pb::KeyValue { key: key.clone(), create_revision: revision, ..Default::default() };
        let kv = model.entry(key).or_insert(new);
        (kv.value, kv.mod_revision, kv.lease) = (value, revision, lease);
        kv.version += 1;
    }

    pub async fn delete(&self, key: &str) {
        let key = Bytes::copy_from_slice(key.as_bytes());
        if self.model.lock().contains_key(&key) {
            self.write(&key, vec![ops::delete(key.clone()), ops::delete(override_key(&key))]).await;
            self.model.lock().remove(&key);
        }
    }

    /// Writes until a shard takes it; the revision of the line.
    async fn write(&self, key: &[u8], success: Vec<pb::RequestOp>) -> i64 {
        loop {
            let cut = self.world.line.refresh().await.unwrap();
            let entry = cut.map.owner(key);
            let shard = self.world.shards.get(entry.shard).await.unwrap();
            let guard = vec![ops::value_is(fence_key(&entry.rid), FENCE_OPEN)];
            let answer = shard.txn(ops::txn(guard, success.clone())).await.unwrap();
            if answer.succeeded {
                let local = answer.header.unwrap().revision;
                self.world.line.cover(entry.shard, local).await.unwrap();
                self.writes.fetch_add(1, Ordering::Relaxed);
                return self.world.line.with_fold(|f| f.global(entry.shard, local)).unwrap();
            }
            self.held.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    }

    /// Everything acknowledged is there with the same revisions, version and lease, and nothing else is.
    pub async fn check(&self) {
        let all = self.world.read_all().await;
        let model: Vec<pb::KeyValue> = self.model.lock().values().cloned().collect();
        for (found, expected) in all.iter().zip(&model) {
            assert_eq!(found, expected);
        }
        assert_eq!(all.len(), model.len());
    }

    /// Puts and deletes in a fixed pseudo-random order until `stop`.
    pub async fn run(self: Arc<Self>, prefix: &'static str, seed: u64, keys: u64, stop: Arc<AtomicBool>) {
        let mut state = seed;
        while !stop.load(Ordering::Relaxed) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = format!("{prefix}{:05}", (state >> 33) % keys);
            if (state >> 20).is_multiple_of(5) {
                self.delete(&key).await;
            } else {
                self.put(&key, &format!("{state:x}"), 0).await;
            }
        }
    }
}
