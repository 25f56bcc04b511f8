//! The same over real etcd.
#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use sharded_etcd_manager::{Failpoints, Outcome, run_move};
use sharded_etcd_shard::Shard;
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions};
use world::{Client, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_moves_between_real_etcds_under_writes() {
    let mut etcds = Vec::new();
    for _ in 0..3 {
        etcds.push(EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap());
    }
    let connections: Vec<Arc<dyn Shard>> =
        etcds.iter().map(|e| Arc::new(e.shard()) as Arc<dyn Shard>).collect();
    let dir = tempfile::tempdir().unwrap();
    let meta = Arc::clone(&connections[2]);
    let world = World::over(dir, meta, connections[..2].to_vec(), Vec::new()).await;
    let client = Client::new(&world);
    for i in 0..700 {
        client.put(&format!("a{i:05}"), &"v".repeat(200), 0).await;
    }
    world.grant(31).await;
    world.shadow(31, 0).await;
    client.put("a-leased", "v", 31).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = ["a", "b", "x"]
        .into_iter()
        .enumerate()
        .map(|(i, prefix)| {
            tokio::spawn(Arc::clone(&client).run(prefix, i as u64 + 1, 700, Arc::clone(&stop)))
        })
        .collect();
    for (n, to) in [1, 0, 1].into_iter().enumerate() {
        let rid = world.plan("a", to, &format!("m{n}")).await;
        let context = world.context(Failpoints::default());
        assert_eq!(run_move(&context, &rid, None).await.unwrap(), Outcome::Moved);
        println!("stall: {:?}", context.progress.counters.take_stalls());
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    client.check().await;
    world.assert_clean(2).await;
}
