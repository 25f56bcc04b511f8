//! Whole shard managers over real (embedded) shards.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sharded_etcd_core::topology::{Draft, DraftPin, Topology, validate};
use sharded_etcd_manager::{Manager, ManagerOptions, ManagerStatus};
use tokio::sync::watch;
use world::{Client, World};

fn topology(shards: u32, pins: &[(&str, i64)]) -> Arc<Topology> {
    let mut draft = Draft::new("demo", shards);
    draft.pins = pins
        .iter()
        .map(|(prefix, shard)| DraftPin {
            prefix: bytes::Bytes::copy_from_slice(prefix.as_bytes()),
            shard: *shard,
        })
        .collect();
    Arc::new(validate(draft).unwrap())
}

fn options(world: &World, topology: &watch::Sender<Arc<Topology>>, name: &str) -> ManagerOptions {
    let mut options =
        ManagerOptions::new(Arc::clone(&world.line), Arc::clone(&world.shards), topology.subscribe(), name);
    options.interval = Duration::from_millis(50);
    options.drain_history_max = Duration::from_millis(200);
    options.settle = Duration::ZERO;
    options
}

async fn until(manager: &Manager, what: &str, holds: impl Fn(&ManagerStatus) -> bool) -> Arc<ManagerStatus> {
    let mut status = manager.status();
    let reached = tokio::time::timeout(Duration::from_secs(90), status.wait_for(|s| holds(s))).await;
    match reached {
        Ok(Ok(status)) => Arc::clone(&status),
        _ => panic!("{what} was not reached: {:#?}", manager.status().borrow()),
    }
}

/// Number of shards in the line, and nothing to be done.
fn settled(shards: usize) -> impl Fn(&ManagerStatus) -> bool {
    move |s| s.leading && s.complete && s.settled && s.balanced && s.shards.len() == shards
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_come_and_go_under_writes() {
    let world = World::new(3).await;
    let client = Client::new(&world);
    for i in 0..1500 {
        client.put(&format!("a{i:05}"), &"v".repeat(100), 0).await;
    }
    let (wanted, _) = watch::channel(topology(3, &[]));
    let manager = Manager::start(options(&world, &wanted, "one"));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = ["a", "b", "x"]
        .into_iter()
        .enumerate()
        .map(|(i, prefix)| {
            tokio::spawn(Arc::clone(&client).run(prefix, i as u64 + 1, 1500, Arc::clone(&stop)))
        })
        .collect();
    until(&manager, "three balanced shards", settled(3)).await;
    for shard in 0..3 {
        assert!(
            world.line.cut().map.owns_any(sharded_etcd_core::keyspace::ShardIx(shard)),
            "shard {shard} is empty"
        );
    }
    world.add_engine("shard-3").await;
    world.add_engine("shard-4").await;
    wanted.send_replace(topology(5, &[("a000", 4)]));
    until(&manager, "five balanced shards", settled(5)).await;
    assert_eq!(world.owner("a00012").0, 4);
    wanted.send_replace(topology(2, &[]));
    let status = until(&manager, "two shards", settled(2)).await;
    assert_eq!(status.shards.len(), 2);
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let failed: Vec<_> = status.finished.iter().filter_map(|f| f.failure.clone()).collect();
    assert_eq!(failed, Vec::<String>::new());
    assert!(world.line.cut().left.iter().filter(|left| **left).count() == 3);
    client.check().await;
    world.assert_clean(5).await;
    manager.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over() {
    let world = World::new(2).await;
    let client = Client::new(&world);
    for i in 0..600 {
        client.put(&format!("a{i:05}"), "v", 0).await;
    }
    let (wanted, _) = watch::channel(topology(2, &[]));
    let first = Manager::start(options(&world, &wanted, "first"));
    until(&first, "leadership", |s| s.leading).await;
    let second = Manager::start(options(&world, &wanted, "second"));
    assert!(!second.status().borrow().leading);
    first.close().await;
    assert!(!first.status().borrow().leading);
    until(&second, "balance", settled(2)).await;
    client.check().await;
    world.assert_clean(2).await;
    second.close().await;
}

/// History counts, too: the data alone would fit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_waits_for_room_in_the_quota() {
    let world = World::new(2).await;
    let client = Client::new(&world);
    for i in 0..500 {
        client.put(&format!("a{i:05}"), &"v".repeat(400), 0).await;
    }
    for _ in 0..400 {
        client.put("x", &"v".repeat(1000), 0).await;
    }
    assert_eq!((world.owner("a00000").0, world.owner("x").0), (0, 1));
    let within = |quota_bytes| {
        let pinned = Topology::clone(&topology(2, &[("a", 1)]));
        Arc::new(Topology { quota_bytes, ..pinned })
    };
    let (wanted, _) = watch::channel(within(Some(500_000)));
    let manager = Manager::start(options(&world, &wanted, "one"));
    let waits =
        |s: &ManagerStatus| s.waits.iter().any(|w| w.reason.contains("would take shard-1 over its quota"));
    until(&manager, "a reason", |s| s.complete && waits(s)).await;
    assert_eq!(world.owner("a00000").0, 0);
    wanted.send_replace(within(Some(5_000_000)));
    until(&manager, "the pin", |s| s.settled && !waits(s)).await;
    assert_eq!(world.owner("a00000").0, 1);
    client.check().await;
    manager.close().await;
}
