//! The engine through its public port: what is written is read, watched, kept over a restart.
#![allow(clippy::unwrap_used)]

use futures::StreamExt;
use sharded_etcd_engine::{Engine, EngineConfig};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;

fn config(dir: &std::path::Path) -> EngineConfig {
    let mut config = EngineConfig::new(dir, "test");
    config.segment_bytes = 1 << 20;
    config
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

#[tokio::test]
async fn writes_are_read_watched_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(config(dir.path())).await.unwrap();
    let everything =
        pb::WatchCreateRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let mut watch = engine.watch(everything).await.unwrap();
    assert!(watch.next().await.unwrap().unwrap().created);
    for n in 1..=3 {
        let response = engine.put(put("a", &n.to_string())).await.unwrap();
        assert_eq!(response.header.unwrap().revision, n + 1);
    }
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let response = watch.next().await.unwrap().unwrap();
        seen.extend(response.events.into_iter().map(|event| event.kv.unwrap().mod_revision));
    }
    assert_eq!(seen, [2, 3, 4]);
    let old = pb::RangeRequest { revision: 3, ..get("a") };
    assert_eq!(engine.range(old.clone()).await.unwrap().kvs[0].value, "2");

    // Once closed cleanly, once just dropped.
    engine.close().await;
    drop(engine);
    let engine = Engine::open(config(dir.path())).await.unwrap();
    assert_eq!(engine.range(old.clone()).await.unwrap().kvs[0].value, "2");
    engine.put(put("b", "x")).await.unwrap();
    drop(engine);
    let engine = Engine::open(config(dir.path())).await.unwrap();
    assert_eq!(engine.range(get("b")).await.unwrap().kvs[0].mod_revision, 5);
    assert_eq!(engine.range(old).await.unwrap().header.unwrap().revision, 5);
}
