//! What the leader cuts off of the past, and what must stay.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::{sync::Arc, time::Duration};

use sharded_etcd_core::{
    keyspace::ShardIx,
    line::Entry,
    records::{self, CheckpointHead, Record, lease_shadow_key},
    topology::{Draft, Topology, validate},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{Line, LineOptions};
use sharded_etcd_manager::{HistoryOptions, Manager, ManagerOptions};
use tokio::sync::watch;
use world::{Client, World};

fn topology(shards: u32) -> Arc<Topology> {
    Arc::new(validate(Draft::new("demo", shards)).unwrap())
}

fn start(world: &World, wanted: &watch::Sender<Arc<Topology>>, history: HistoryOptions) -> Arc<Manager> {
    let (line, shards) = (Arc::clone(&world.line), Arc::clone(&world.shards));
    Manager::start(ManagerOptions {
        interval: Duration::from_millis(50),
        drain_history_max: Duration::from_millis(100),
        history,
        ..ManagerOptions::new(line, shards, wanted.subscribe(), "one")
    })
}

fn eager() -> HistoryOptions {
    HistoryOptions {
        checkpoint_entries: 1,
        checkpoint_interval: Duration::from_millis(10),
        compact_interval: Duration::from_millis(10),
        segments_max: 0,
        ..HistoryOptions::default()
    }
}

async fn until<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    for _ in 0..600 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not come");
}

async fn head(world: &World) -> Option<CheckpointHead> {
    let get = pb::RangeRequest { key: records::CHECKPOINT_HEAD.into(), ..Default::default() };
    world.meta.range(get).await.unwrap().kvs.first().map(|kv| CheckpointHead::decode(&kv.value).unwrap())
}

/// A process that starts from a condensed checkpoint sees every live key with the same revisions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn condensed_checkpoints_keep_the_revisions_of_live_keys() {
    let world = World::new(2).await;
    let client = Client::new(&world);
    // Writes that alternate between the shards make a segment each.
    for i in 0..120 {
        client.put(&format!("a{i:03}"), "v", 0).await;
        client.put(&format!("x{i:03}"), "v", 0).await;
    }
    for i in 0..120 {
        if i % 10 != 0 {
            client.delete(&format!("a{i:03}")).await;
            client.delete(&format!("x{i:03}")).await;
        }
    }
    let revision = world.line.refresh().await.unwrap().revision;
    world.line.append(&Entry::Compact(revision)).await.unwrap();
    let full = world.line.with_fold(|f| f.segment_count());
    let (wanted, _) = watch::channel(topology(2));
    let manager = start(&world, &wanted, eager());
    let position = world.line.cut().position;
    until("a checkpoint", || async { head(&world).await.filter(|h| h.position >= position) }).await;
    manager.close().await;
    let line = Line::start(Arc::clone(&world.meta), LineOptions::default()).await.unwrap();
    let condensed = line.with_fold(|f| f.segment_count());
    assert!(condensed < full / 2, "{condensed} of {full} segments are left");
    let revisions = |line: &Line, kv: &pb::KeyValue| {
        let shard = line.cut().map.owner(&kv.key).shard;
        line.with_fold(|f| (f.global(shard, kv.create_revision), f.global(shard, kv.mod_revision)))
    };
    for ix in 0..2 {
        let all = pb::RangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() };
        let kvs = world.shard(ix).await.range(all).await.unwrap().kvs;
        assert!(!kvs.is_empty());
        for kv in kvs {
            assert_eq!(revisions(&line, &kv), revisions(&world.line, &kv));
            assert!(revisions(&line, &kv).0.is_some());
        }
    }
    line.close().await;
}

/// Compaction of the line reaches the shards and meta, and not what a move still has to read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_compacted_up_to_what_a_move_needs() {
    let world = World::new(3).await;
    let client = Client::new(&world);
    for i in 0..30 {
        client.put(&format!("a{i:03}"), "v", 0).await;
        client.put(&format!("x{i:03}"), "v", 0).await;
    }
    let rid = world.plan("a", 2, "held").await;
    let opened = sharded_etcd_manager::Failpoints::new(|at| {
        use sharded_etcd_manager::{Proceed, When};
        if at.step == "open" && at.when == When::After { Proceed::Die } else { Proceed::Go }
    });
    assert!(sharded_etcd_manager::run_move(&world.context(opened), &rid, None).await.is_err());
    let copy_at = world.line.cut().v(ShardIx(0));
    for i in 0..30 {
        client.put(&format!("a{i:03}"), "again", 0).await;
        client.put(&format!("x{i:03}"), "again", 0).await;
    }
    let cut = world.line.refresh().await.unwrap();
    world.line.append(&Entry::Compact(cut.revision)).await.unwrap();
    let (wanted, _) = watch::channel(topology(3));
    // The executors die before they copy, so that the move stays where it is.
    let manager = Manager::start(ManagerOptions {
        interval: Duration::from_millis(50),
        history: eager(),
        failpoints: sharded_etcd_manager::Failpoints::new(|at| {
            use sharded_etcd_manager::Proceed;
            if at.step == "copy" { Proceed::Die } else { Proceed::Go }
        }),
        ..ManagerOptions::new(Arc::clone(&world.line), Arc::clone(&world.shards), wanted.subscribe(), "one")
    });
    let readable = |ix: u32, revision: i64| {
        let world = &world;
        async move {
            let get = pb::RangeRequest { key: "a000".into(), revision, ..Default::default() };
            world.shard(ix).await.range(get).await.is_ok()
        }
    };
    until("the compaction of shard 1", || async {
        (!readable(1, cut.v(ShardIx(1)) - 1).await).then_some(())
    })
    .await;
    assert!(readable(1, cut.v(ShardIx(1))).await, "what the compaction revision shows stays");
    until("the compaction of shard 0", || async { (!readable(0, copy_at - 1).await).then_some(()) }).await;
    assert!(readable(0, copy_at).await, "what the move copies stays");
    manager.close().await;
    let moved = sharded_etcd_manager::run_move(&world.context(Default::default()), &rid, None).await.unwrap();
    assert_eq!(moved, sharded_etcd_manager::Outcome::Moved);
    client.check().await;
}

/// A drained shard leaves once its history is compacted, and no lease is registered there any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_12_a_drained_shard_leaves_with_its_leases_registered_elsewhere() {
    let world = World::new(2).await;
    let client = Client::new(&world);
    for i in 0..50 {
        client.put(&format!("x{i:03}"), "v", 0).await;
    }
    world.grant(41).await;
    world.shadow(41, 1).await;
    client.put("x-leased", "v", 41).await;
    let (wanted, _) = watch::channel(topology(1));
    let manager = start(&world, &wanted, HistoryOptions::default());
    until("the leave", || async { world.line.cut().left[1].then_some(()) }).await;
    manager.close().await;
    let fold = world.line.with_fold(|f| (f.compacted, f.shard(ShardIx(1)).unwrap().last_flip_away));
    assert!(fold.0 >= fold.1, "its readable history went with it");
    let registered = |ix| {
        let get = pb::RangeRequest { key: lease_shadow_key(41, ShardIx(ix)), ..Default::default() };
        let meta = Arc::clone(&world.meta);
        async move { meta.range(get).await.unwrap().kvs.len() }
    };
    assert_eq!((registered(0).await, registered(1).await), (1, 0));
    client.check().await;
}

/// With a retention the line is compacted by itself, at a revision of the past, not at the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retention_compacts_what_is_older() {
    let world = World::new(2).await;
    let client = Client::new(&world);
    client.put("a", "first", 0).await;
    let old = world.line.refresh().await.unwrap().revision;
    let mut retaining = Topology::clone(&topology(2));
    retaining.compaction_retention = Some(Duration::from_millis(400));
    let (wanted, _) = watch::channel(Arc::new(retaining));
    let manager = start(&world, &wanted, HistoryOptions::default());
    let compacted = until("a compaction", || async {
        client.put("a", "again", 0).await;
        let cut = world.line.cut();
        (cut.compacted >= old).then_some((cut.compacted, cut.revision))
    })
    .await;
    assert!(compacted.0 < compacted.1, "the newest revision is not compacted: {compacted:?}");
    manager.close().await;
    client.check().await;
}
