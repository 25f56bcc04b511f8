//! Topologies that shard managers start: by several at once, and by the next one when one is killed at any step.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sharded_etcd_core::{
    records::TopologyId,
    topology::{Draft, Topology, validate},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{Line, LineOptions, bootstrap};
use sharded_etcd_manager::{StartError, start_topology};
use sharded_etcd_shard::{Shard, ShardDirectory};
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions};
use tempfile::TempDir;
use world::{OnTxn, engine, run_txn};

const UID: &str = "0c5f";

fn topology(shards: u32, presplit: &[&'static str]) -> Topology {
    let mut draft = Draft::new("demo", shards);
    draft.presplit = presplit.iter().map(|p| Bytes::from_static(p.as_bytes())).collect();
    validate(draft).unwrap()
}

/// Passes so many transactions on; then the process that sends them is no more.
fn mortal(inner: &Arc<dyn Shard>, life: &Arc<AtomicUsize>) -> Arc<dyn Shard> {
    let life = Arc::clone(life);
    OnTxn::over(inner, move |inner, request| {
        let lives = life.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if lives.is_ok() { run_txn(inner, request) } else { Box::pin(std::future::pending()) }
    })
}

/// Empty engines.
struct Empty {
    meta: Arc<dyn Shard>,
    shards: Vec<Arc<dyn Shard>>,
    _dir: TempDir,
}

impl Empty {
    async fn new(shards: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let meta: Arc<dyn Shard> = engine(&dir, "meta").await;
        let mut list: Vec<Arc<dyn Shard>> = Vec::new();
        for i in 0..shards {
            list.push(engine(&dir, &format!("shard-{i}")).await);
        }
        Self { meta, shards: list, _dir: dir }
    }

    fn directory(&self) -> ShardDirectory {
        self.directory_of(Arc::clone)
    }

    fn directory_of(&self, connection: impl Fn(&Arc<dyn Shard>) -> Arc<dyn Shard>) -> ShardDirectory {
        let directory = ShardDirectory::new();
        for (i, shard) in self.shards.iter().enumerate() {
            directory.insert_incarnation(format!("shard-{i}"), 0, connection(shard));
        }
        directory
    }

    /// The boundaries of the topology that is there, once every range is seen to be served.
    async fn boundaries(&self) -> Vec<String> {
        let line = Line::start(Arc::clone(&self.meta), LineOptions::default()).await.unwrap();
        let cut = line.cut();
        assert_eq!(cut.cluster_id, TopologyId::of_uid(UID).cluster_id);
        for entry in cut.map.entries() {
            let fence = sharded_etcd_core::records::fence_key(&entry.rid);
            let get = pb::RangeRequest { key: fence, ..Default::default() };
            let fence = self.shards[entry.shard.index()].range(get).await.unwrap();
            assert_eq!(fence.kvs[0].value, "open", "{entry:?}");
        }
        let starts = cut.map.entries().iter().skip(1);
        let starts = starts.map(|e| String::from_utf8(e.range.start.to_vec()).unwrap()).collect();
        assert_eq!(bootstrap::first(self.meta.as_ref()).await.unwrap(), None, "it is taken away again");
        line.close().await;
        starts
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_step_and_finished_by_the_next() {
    let shards = 3;
    // One Txn each: the first record, three claims, the log.
    for life in 0..=shards + 2 {
        let empty = Empty::new(shards).await;
        let left = Arc::new(AtomicUsize::new(life));
        let meta = mortal(&empty.meta, &left);
        let directory = empty.directory_of(|shard| mortal(shard, &left));
        let wanted = topology(3, &["b", "d"]);
        let dying = start_topology(meta.as_ref(), &directory, UID, &wanted);
        let died = tokio::time::timeout(Duration::from_millis(500), dying).await;
        assert_eq!(died.is_err(), life < shards + 2, "life {life}");
        // By now the spec is another one.
        let newer = topology(2, &["x"]);
        let id = start_topology(empty.meta.as_ref(), &empty.directory(), UID, &newer).await.unwrap();
        assert_eq!(id, TopologyId::of_uid(UID));
        let expected: &[&str] = if life == 0 { &["x"] } else { &["b", "d"] };
        assert_eq!(empty.boundaries().await, expected, "life {life}");
        let again = start_topology(empty.meta.as_ref(), &empty.directory(), UID, &newer).await.unwrap();
        assert_eq!(again, id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_with_different_specs_start_one_topology() {
    for _ in 0..20 {
        let empty = Arc::new(Empty::new(3).await);
        let starts = ["b", "d", "f", "h"].map(|boundary| {
            let empty = Arc::clone(&empty);
            tokio::spawn(async move {
                let wanted = topology(3, &[boundary, "x"]);
                start_topology(empty.meta.as_ref(), &empty.directory(), UID, &wanted).await.unwrap()
            })
        });
        let ids: BTreeSet<u64> =
            futures::future::join_all(starts).await.into_iter().map(|id| id.unwrap().cluster_id).collect();
        assert_eq!(ids.len(), 1);
        assert_eq!(empty.boundaries().await.len(), 2, "one of the specs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_race_over_real_etcd_and_wait_for_a_shard_that_hangs() {
    let mut etcds = Vec::new();
    for _ in 0..3 {
        let options = EtcdProcessOptions { fsync: false, ..Default::default() };
        etcds.push(EtcdProcess::start(options).await.unwrap());
    }
    let mut shards: Vec<_> = etcds.iter().map(|e| Arc::new(e.shard()) as Arc<dyn Shard>).collect();
    let meta = shards.remove(0);
    let empty = Empty { meta, shards, _dir: tempfile::tempdir().unwrap() };
    let wanted = topology(2, &["m"]);
    etcds[2].pause().await.unwrap();
    let waits = start_topology(empty.meta.as_ref(), &empty.directory(), UID, &wanted).await.unwrap_err();
    let text = waits.to_string();
    assert!(text.contains("shard-1 (no answer") && !text.contains("shard-0"), "{text}");
    assert_eq!(bootstrap::first(empty.meta.as_ref()).await.unwrap(), None, "nothing is begun");
    etcds[2].resume();
    let start = || async { start_topology(empty.meta.as_ref(), &empty.directory(), UID, &wanted).await };
    let (one, two) = tokio::join!(start(), start());
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(empty.boundaries().await, ["m"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_started_is_told() {
    let empty = Empty::new(2).await;
    let start = |shards, uid: &'static str| {
        let (meta, directory) = (Arc::clone(&empty.meta), empty.directory());
        async move { start_topology(meta.as_ref(), &directory, uid, &topology(shards, &[])).await }
    };
    let waits = start(9, UID).await.unwrap_err();
    assert!(matches!(waits, StartError::Waits(_)));
    let text = waits.to_string();
    assert!(text.contains("shard-2 (not in the routing file)") && text.ends_with("and 2 more"), "{text}");
    start(2, UID).await.unwrap();
    let text = start(2, "other").await.unwrap_err().to_string();
    assert!(text.contains("meta belongs to topology 0c5f, not other"), "{text}");

    // An earlier attempt, over a meta that is gone, had other ranges.
    let meta: Arc<dyn Shard> = engine(&empty._dir, "meta-2").await;
    let wanted = topology(2, &["m"]);
    let error = start_topology(meta.as_ref(), &empty.directory(), UID, &wanted).await.unwrap_err();
    assert!(error.to_string().contains("was claimed by an earlier start of this topology"), "{error}");
}
