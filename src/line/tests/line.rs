//! Lines of several processes over one meta: they agree, whoever appends, starts late, or starts from a checkpoint.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::{KeyRange, RangeEntry, Rid, ShardIx},
    line::{Entry, Fold},
    records::TopologyId,
};
use sharded_etcd_engine::{Engine, EngineConfig};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{
    Line, LineError, LineOptions,
    bootstrap::{BootstrapError, NewShard, bootstrap, join, topology_id},
    write_checkpoint,
};
use sharded_etcd_shard::{Certainty, Shard, ShardDirectory};

struct Cluster {
    meta: Arc<Engine>,
    shards: Vec<Arc<Engine>>,
    _dirs: Vec<tempfile::TempDir>,
}

async fn engine() -> (Arc<Engine>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::new(dir.path(), "test");
    config.segment_bytes = 1 << 20;
    (Engine::open(config).await.unwrap(), dir)
}

fn id(uid: &str) -> TopologyId {
    TopologyId { uid: uid.into(), cluster_id: 7 }
}

impl Cluster {
    async fn start(shards: usize) -> Self {
        let (meta, dir) = engine().await;
        let mut dirs = vec![dir];
        let mut list = Vec::new();
        for _ in 0..shards {
            let (shard, dir) = engine().await;
            list.push(shard);
            dirs.push(dir);
        }
        let cluster = Self { meta, shards: list, _dirs: dirs };
        cluster.bootstrap("a").await.unwrap();
        cluster
    }

    async fn bootstrap(&self, uid: &str) -> Result<TopologyId, BootstrapError> {
        let names: Vec<String> = (0..self.shards.len()).map(|i| format!("shard-{i}")).collect();
        let new: Vec<NewShard<'_>> = names
            .iter()
            .zip(&self.shards)
            .map(|(name, shard)| NewShard { name, incarnation: 0, shard: shard.as_ref() })
            .collect();
        let all =
            RangeEntry { range: KeyRange::whole(), rid: Rid::new("b-0"), shard: ShardIx(0), imported_at: 0 };
        bootstrap(self.meta.as_ref(), &id(uid), &new, &[all]).await
    }

    async fn line(&self) -> Arc<Line> {
        Line::start(Arc::clone(&self.meta) as Arc<dyn Shard>, LineOptions::default()).await.unwrap()
    }

    async fn write(&self, shard: usize, key: &str) -> i64 {
        let put = pb::PutRequest { key: Bytes::from(key.to_owned()), ..Default::default() };
        self.shards[shard].put(put).await.unwrap().header.unwrap().revision
    }
}

fn fold(line: &Line) -> Fold {
    line.with_fold(Clone::clone)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_append_at_once_fold_the_same_line() {
    let cluster = Arc::new(Cluster::start(3).await);
    let lines = [cluster.line().await, cluster.line().await];
    let mut writers = Vec::new();
    for writer in 0..6_usize {
        let (cluster, line) = (Arc::clone(&cluster), Arc::clone(&lines[writer % 2]));
        writers.push(tokio::spawn(async move {
            let mut last = 0;
            for i in 0..50 {
                let shard = (writer + i) % 3;
                let local = cluster.write(shard, &format!("{writer}/{i}")).await;
                line.cover(ShardIx(shard as u32), local).await.unwrap();
                let revision = line.with_fold(|f| f.global(ShardIx(shard as u32), local)).unwrap();
                assert!(revision > last, "a later write of one writer has a higher revision");
                last = revision;
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let end = lines[0].refresh().await.unwrap().position;
    lines[1].at_position(end).await.unwrap();
    assert_eq!(fold(&lines[0]), fold(&lines[1]));
    let late = cluster.line().await;
    assert_eq!(fold(&late), fold(&lines[0]), "one that starts late reads the same");
    let written: i64 = fold(&lines[0]).shards().iter().map(|s| s.v - s.l0).sum();
    assert_eq!((written, lines[0].cut().revision), (300, 301), "every write has one number");
}

#[tokio::test]
async fn what_nobody_waits_for_is_covered_too() {
    let cluster = Cluster::start(1).await;
    let line = cluster.line().await;
    let local = cluster.write(0, "k").await;
    line.observe(ShardIx(0), local);
    let mut cuts = line.subscribe();
    let wait = cuts.wait_for(|cut| cut.covers(ShardIx(0), local));
    tokio::time::timeout(std::time::Duration::from_secs(5), wait).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_line_starts_from_a_checkpoint_and_a_compacted_log() {
    let cluster = Cluster::start(2).await;
    let line = cluster.line().await;
    for i in 0..20 {
        let local = cluster.write(i % 2, &format!("{i}")).await;
        line.cover(ShardIx((i % 2) as u32), local).await.unwrap();
    }
    let checkpoint = fold(&line);
    assert_eq!(write_checkpoint(cluster.meta.as_ref(), &checkpoint).await.unwrap(), Some(0));
    assert_eq!(write_checkpoint(cluster.meta.as_ref(), &checkpoint).await.unwrap(), None, "not newer");
    let compact = pb::CompactionRequest { revision: checkpoint.position, physical: true };
    cluster.meta.compact(compact).await.unwrap();
    let local = cluster.write(0, "after").await;
    line.cover(ShardIx(0), local).await.unwrap();
    let late = cluster.line().await;
    assert_eq!(fold(&late), fold(&line));
}

/// Two who write a checkpoint of one position may have left out different segments; what the second one writes must not
/// damage what the first one's readers read, and nothing of it may stay for ever.
#[tokio::test]
async fn a_second_checkpoint_of_a_position_does_not_damage_the_first() {
    let cluster = Cluster::start(2).await;
    let line = cluster.line().await;
    for i in 0..20 {
        let local = cluster.write(i % 2, "k").await;
        line.cover(ShardIx((i % 2) as u32), local).await.unwrap();
    }
    line.append(&Entry::Compact(line.cut().revision)).await.unwrap();
    let full = fold(&line);
    let mut condensed = full.clone();
    condensed.condense(&[]);
    assert_ne!(full, condensed);
    assert!(write_checkpoint(cluster.meta.as_ref(), &condensed).await.unwrap().is_some());
    assert_eq!(write_checkpoint(cluster.meta.as_ref(), &full).await.unwrap(), None, "not newer");
    let late = cluster.line().await;
    assert_eq!(fold(&late), condensed, "what was written first is read");

    // As if one had died after its chunks.
    let left = Bytes::from_static(b"ckpt/0000000000000001-00000000000000ff/00000000");
    cluster.meta.put(pb::PutRequest { key: left, ..Default::default() }).await.unwrap();
    line.append(&Entry::Adv(Vec::new())).await.unwrap();
    let written = write_checkpoint(cluster.meta.as_ref(), &fold(&line)).await.unwrap();
    assert_eq!(written, Some(condensed.position), "it says which one it replaced");
    let chunks = pb::RangeRequest { key: "ckpt/".into(), range_end: "ckpt/g".into(), ..Default::default() };
    assert_eq!(cluster.meta.range(chunks).await.unwrap().count, 1, "only the newest one's chunk is left");
}

/// Memory follows the checkpoints: what they leave out, running processes forget too, and go on as if nothing happened.
#[tokio::test]
async fn a_running_line_forgets_what_a_checkpoint_leaves_out() {
    let cluster = Cluster::start(2).await;
    let (line, plain) = (cluster.line().await, cluster.line().await);
    let options = LineOptions {
        segments_max: 0,
        condense_interval: std::time::Duration::from_millis(10),
        ..LineOptions::default()
    };
    let eager = Line::start(Arc::clone(&cluster.meta) as Arc<dyn Shard>, options).await.unwrap();
    let mut locals = Vec::new();
    for i in 0..40 {
        let local = cluster.write(i % 2, "k").await;
        line.cover(ShardIx((i % 2) as u32), local).await.unwrap();
        locals.push(local);
    }
    line.append(&Entry::Compact(line.cut().revision)).await.unwrap();
    let mut checkpoint = fold(&line);
    let segments = checkpoint.segment_count();
    assert!(segments >= 40, "writes that alternate make a segment each: {segments}");
    // The one live key of each shard was created by its first write and changed by its last.
    checkpoint.condense(&[vec![locals[0], locals[38]], vec![locals[1], locals[39]]]);
    let condensed = checkpoint.segment_count();
    assert!(condensed <= 6, "{condensed} of {segments} segments are left");
    assert!(write_checkpoint(cluster.meta.as_ref(), &checkpoint).await.unwrap().is_some());

    let mut tries = 0;
    while eager.with_fold(Fold::segment_count) > condensed {
        tries += 1;
        assert!(tries < 1000, "{} segments are still there", eager.with_fold(Fold::segment_count));
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    for (shard, local) in [(0, locals[0]), (1, locals[1]), (0, locals[38]), (1, locals[39])] {
        let number = |line: &Line| line.with_fold(|f| f.global(ShardIx(shard), local));
        assert_eq!(number(&eager), number(&line));
        assert!(number(&eager).is_some());
    }
    assert_eq!(eager.with_fold(|f| f.global(ShardIx(0), locals[2])), None);

    let local = cluster.write(1, "k").await;
    let cut = eager.cover(ShardIx(1), local).await.unwrap();
    assert_eq!(plain.at_position(cut.position).await.unwrap().revision, cut.revision);
    let (small, full) = (fold(&eager), fold(&plain));
    assert_eq!((small.vector(), small.revision, small.map()), (full.vector(), full.revision, full.map()));
    // A checkpoint that leaves out nothing, or is newer than what is folded, changes nothing.
    assert_eq!(eager.condense(&full), 0);
    let mut newer = checkpoint.clone();
    newer.position = full.position + 1;
    assert_eq!((plain.condense(&newer), fold(&plain)), (0, full));
}

#[tokio::test]
async fn bootstrap_is_idempotent_and_refuses_what_is_not_its_own() {
    let cluster = Cluster::start(2).await;
    assert_eq!(cluster.bootstrap("a").await.unwrap(), id("a"), "repeated");
    assert!(matches!(cluster.bootstrap("b").await, Err(BootstrapError::OtherTopology { .. })));
    assert_eq!(topology_id(cluster.meta.as_ref()).await.unwrap(), Some(id("a")));

    let line = cluster.line().await;
    let (fresh, _dir) = engine().await;
    let new = NewShard { name: "shard-2", incarnation: 0, shard: fresh.as_ref() };
    join(&line, &new).await.unwrap();
    join(&line, &new).await.unwrap();
    assert_eq!(line.cut().names.len(), 3);
    let (used, _dir) = engine().await;
    used.put(pb::PutRequest { key: "old".into(), ..Default::default() }).await.unwrap();
    let error =
        join(&line, &NewShard { name: "shard-3", incarnation: 0, shard: used.as_ref() }).await.unwrap_err();
    assert!(error.to_string().contains("shard-3 is not empty"), "{error}");

    let (empty, _dir) = engine().await;
    let nothing = Line::start(empty as Arc<dyn Shard>, LineOptions::default()).await;
    assert_eq!(nothing.err(), Some(LineError::NotBootstrapped));
}

#[tokio::test]
async fn a_log_of_a_newer_release_stops_the_line() {
    let cluster = Cluster::start(1).await;
    let line = cluster.line().await;
    let value = Bytes::from_static(br#"{"v":2,"e":{"adv":[[0,5]]}}"#);
    let key = Bytes::from_static(sharded_etcd_core::records::CUT_LATEST);
    cluster.meta.put(pb::PutRequest { key, value, ..Default::default() }).await.unwrap();
    let error = line.refresh().await.unwrap_err();
    assert!(error.to_string().contains("newer") || line.broken().is_some(), "{error}");
    assert!(line.broken().unwrap().contains("format version 2"), "{:?}", line.broken());
    assert!(matches!(line.cover(ShardIx(0), 1_000).await, Err(LineError::Broken(_))));
}

/// Trap 6: a shard that lost history is not served, and nothing was sent to it.
#[tokio::test]
async fn trap_06_a_shard_that_is_not_the_one_that_joined_is_quarantined() {
    let cluster = Cluster::start(1).await;
    let line = cluster.line().await;
    let directory = ShardDirectory::new();
    directory.insert("shard-0", Arc::clone(&cluster.shards[0]) as Arc<dyn Shard>);
    let shards = sharded_etcd_line::Shards::new(Arc::clone(&line), directory.clone());
    shards.get(ShardIx(0)).await.unwrap();
    let (other, _dir) = engine().await;
    directory.insert("shard-0", other as Arc<dyn Shard>);
    for _ in 0..2 {
        let error = shards.get(ShardIx(0)).await.err().unwrap();
        assert_eq!(error.certainty, Certainty::NotSent);
        assert!(error.message.contains("shard-0 is quarantined"), "{error}");
    }
    assert_eq!(shards.quarantined().len(), 1);
    directory.insert("shard-0", Arc::clone(&cluster.shards[0]) as Arc<dyn Shard>);
    shards.get(ShardIx(0)).await.unwrap();
}

#[tokio::test]
async fn late_and_repeated_appends_change_nothing() {
    let cluster = Cluster::start(1).await;
    let line = cluster.line().await;
    let local = cluster.write(0, "k").await;
    line.cover(ShardIx(0), local).await.unwrap();
    let revision = line.cut().revision;
    let cut = line.append(&Entry::Adv(vec![(ShardIx(0), local - 1)])).await.unwrap();
    assert_eq!(cut.revision, revision);
}
