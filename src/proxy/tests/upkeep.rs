//! Without a shard manager the proxies keep meta's log and the shards' history short.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::{Line, LineOptions, Shards, upkeep::CaretakerOptions};
use sharded_etcd_proxy::{Drain, Proxy, ProxyOptions, context::Limits};
use sharded_etcd_shard::Shard;
use sharded_etcd_testkit::wait_until;

const WAIT: Duration = Duration::from_secs(60);

async fn proxy(topology: &support::Topology, name: &str, caretaker: CaretakerOptions) -> Arc<Proxy> {
    proxy_with(topology, name, LineOptions { caretaker, segments_max: 8, ..LineOptions::default() }).await
}

async fn proxy_with(topology: &support::Topology, name: &str, options: LineOptions) -> Arc<Proxy> {
    let line = Line::start(Arc::clone(&topology.meta), options).await.unwrap();
    let shards = Shards::new(Arc::clone(&line), topology.directory.clone());
    let options = ProxyOptions {
        line,
        shards,
        name: name.into(),
        client_urls: vec![],
        limits: Limits::default(),
        generation: None,
        drain: Drain::default(),
    };
    Proxy::start(options).await.unwrap()
}

fn quick() -> CaretakerOptions {
    CaretakerOptions { patience: Duration::from_millis(200), ..CaretakerOptions::default() }
}

async fn put(proxy: &Proxy, key: String) -> i64 {
    let put = pb::PutRequest { key: Bytes::from(key), value: "v".into(), ..Default::default() };
    proxy.kv().put(put).await.unwrap().header.unwrap().revision
}

/// True if `etcd` can no longer be read at `revision`.
async fn is_compacted(etcd: &Arc<dyn Shard>, revision: i64) -> bool {
    let get = pb::RangeRequest { key: "t/id".into(), revision, ..Default::default() };
    matches!(etcd.range(get).await, Err(error) if error.is_compacted())
}

/// A checkpoint needs something new, as there is wherever a log grows.
async fn more(proxy: &Proxy) {
    put(proxy, "b".into()).await;
    put(proxy, "y".into()).await;
}

/// Two proxies over real etcds, no manager: history goes, again and again, on meta and on the shards, and a proxy that starts
/// then sees what the others see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_manager_proxies_keep_the_log_short() {
    let topology = support::Topology::start_etcd(2, &["m"]).await;
    let proxies = [proxy(&topology, "p-0", quick()).await, proxy(&topology, "p-1", quick()).await];
    let mut revision = 0;
    for round in 0..3 {
        for i in 0..20 {
            put(&proxies[i % 2], format!("a/{}", i % 5)).await;
            revision = put(&proxies[i % 2], format!("x/{}", i % 5)).await;
        }
        let end = proxies[0].context().line.refresh().await.unwrap().position;
        let compact = pb::CompactionRequest { revision, physical: false };
        proxies[round % 2].kv().compact(compact).await.unwrap();
        wait_until("the log to be cut off after what was written", WAIT, || async {
            more(&proxies[0]).await;
            is_compacted(&topology.meta, end - 1).await.then_some(())
        })
        .await
        .unwrap();
        let locals = proxies[0].context().line.with_fold(|fold| {
            [0, 1].map(|i| fold.local_at_most(sharded_etcd_core::keyspace::ShardIx(i), revision).unwrap())
        });
        for (shard, local) in topology.shards.iter().zip(locals) {
            wait_until("the shards' history to go", WAIT, || async {
                more(&proxies[0]).await;
                is_compacted(shard, local - 1).await.then_some(())
            })
            .await
            .unwrap();
            assert!(!is_compacted(shard, local).await, "what the compaction revision shows stays");
        }
    }
    wait_until("segments to be left out", WAIT, || async {
        more(&proxies[0]).await;
        let left_out = |proxy: &Arc<Proxy>| proxy.context().line.stats.condensed.load(Ordering::Relaxed);
        (proxies.iter().map(left_out).sum::<i64>() > 0).then_some(())
    })
    .await
    .unwrap();
    let late = proxy(&topology, "late", CaretakerOptions::default()).await;
    let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let mine = late.kv().range(all.clone()).await.unwrap();
    let theirs = proxies[0].kv().range(all).await.unwrap();
    assert_eq!((mine.count, mine.kvs), (12, theirs.kvs));
    for proxy in proxies.iter().chain([&late]) {
        proxy.stop().await;
        proxy.context().line.close().await;
    }
}

/// A write that nobody told anybody of is part of the line after a while, though nothing else is written on its shard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_saw_is_found() {
    let topology = support::Topology::start(2, &["m"]).await;
    let line = LineOptions { unseen_max: Duration::from_millis(50), ..LineOptions::default() };
    let proxy = proxy_with(&topology, "p-0", line).await;
    // As a proxy that dies before it hears of it.
    let put = pb::PutRequest { key: "x".into(), ..Default::default() };
    topology.shards[1].put(put).await.unwrap();
    let get = pb::RangeRequest { key: "x".into(), serializable: true, ..Default::default() };
    wait_until("the write to be seen", WAIT, || async {
        (proxy.kv().range(get.clone()).await.unwrap().count == 1).then_some(())
    })
    .await
    .unwrap();
    proxy.stop().await;
    proxy.context().line.close().await;
}

/// What else is written into meta goes, too, where the log stands still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_stands_still_does_not_hold_up_the_rest() {
    let topology = support::Topology::start(1, &[]).await;
    let proxy = proxy(&topology, "p-0", CaretakerOptions { grown_max: 50, ..quick() }).await;
    let noise = async || {
        let put = pb::PutRequest { key: "noise".into(), ..Default::default() };
        topology.meta.put(put).await.unwrap().header.unwrap().revision
    };
    let first = noise().await;
    wait_until("noise to be compacted", WAIT, || async {
        noise().await;
        is_compacted(&topology.meta, first + 100).await.then_some(())
    })
    .await
    .unwrap();
    proxy.stop().await;
    proxy.context().line.close().await;
}
