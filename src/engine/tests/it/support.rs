//! Requests in few words.

use std::sync::Arc;

use futures::StreamExt;
use sharded_etcd_engine::{Engine, EngineConfig};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, ShardError, WatchStream};

/// An engine in a directory of its own that is removed at the end.
pub struct Fixture {
    pub engine: Arc<Engine>,
    pub dir: tempfile::TempDir,
}

pub fn config(dir: &std::path::Path) -> EngineConfig {
    let mut config = EngineConfig::new(dir, "test");
    config.segment_bytes = 1 << 20;
    config
}

pub async fn start() -> Fixture {
    start_with(|_| {}).await
}

pub async fn start_with(change: impl FnOnce(&mut EngineConfig)) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    change(&mut config);
    let engine = Engine::open(config).await.unwrap();
    Fixture { engine, dir }
}

pub fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

pub fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

pub fn span(key: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest { range_end: end.to_owned().into(), ..get(key) }
}

pub fn all() -> pb::RangeRequest {
    span("\0", "\0")
}

pub fn delete(key: &str, end: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), prev_kv: false }
}

pub fn op(request: impl Into<Op>) -> pb::RequestOp {
    pb::RequestOp { request: Some(request.into().0) }
}

pub struct Op(pb::Request);

impl From<pb::PutRequest> for Op {
    fn from(request: pb::PutRequest) -> Self {
        Op(pb::Request::RequestPut(request))
    }
}

impl From<pb::RangeRequest> for Op {
    fn from(request: pb::RangeRequest) -> Self {
        Op(pb::Request::RequestRange(request))
    }
}

impl From<pb::DeleteRangeRequest> for Op {
    fn from(request: pb::DeleteRangeRequest) -> Self {
        Op(pb::Request::RequestDeleteRange(request))
    }
}

impl From<pb::TxnRequest> for Op {
    fn from(request: pb::TxnRequest) -> Self {
        Op(pb::Request::RequestTxn(request))
    }
}

pub fn txn(
    compare: Vec<pb::Compare>,
    success: Vec<pb::RequestOp>,
    failure: Vec<pb::RequestOp>,
) -> pb::TxnRequest {
    pb::TxnRequest { compare, success, failure }
}

pub fn compare(key: &str, result: pb::CompareResult, wanted: pb::TargetUnion) -> pb::Compare {
    let target = match wanted {
        pb::TargetUnion::Version(_) => pb::CompareTarget::Version,
        pb::TargetUnion::CreateRevision(_) => pb::CompareTarget::Create,
        pb::TargetUnion::ModRevision(_) => pb::CompareTarget::Mod,
        pb::TargetUnion::Value(_) => pb::CompareTarget::Value,
        pb::TargetUnion::Lease(_) => pb::CompareTarget::Lease,
    };
    pb::Compare {
        result: result as i32,
        target: target as i32,
        key: key.to_owned().into(),
        target_union: Some(wanted),
        range_end: Default::default(),
    }
}

pub fn keys(response: &pb::RangeResponse) -> Vec<String> {
    response.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

pub fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().unwrap().revision
}

/// What a client sees of an error.
pub fn text(error: &ShardError) -> (tonic::Code, &str) {
    (error.code, &error.message)
}

impl Fixture {
    pub async fn put(&self, key: &str, value: &str) -> i64 {
        revision(&self.engine.put(put(key, value)).await.unwrap().header)
    }

    pub async fn delete(&self, key: &str) -> i64 {
        revision(&self.engine.delete_range(delete(key, "")).await.unwrap().header)
    }

    pub async fn compact(&self, revision: i64) {
        let request = pb::CompactionRequest { revision, physical: true };
        self.engine.compact(request).await.unwrap();
    }

    pub async fn grant(&self, id: i64, ttl: i64) {
        self.engine.lease_grant(pb::LeaseGrantRequest { id, ttl }).await.unwrap();
    }

    pub async fn watch(&self, request: pb::WatchCreateRequest) -> WatchStream {
        let mut stream = self.engine.watch(request).await.unwrap();
        let created = stream.next().await.unwrap().unwrap();
        assert!(created.created && !created.canceled, "{created:?}");
        stream
    }
}

pub fn watch_all() -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() }
}

pub async fn next(stream: &mut WatchStream) -> pb::WatchResponse {
    stream.next().await.unwrap().unwrap()
}

/// Reads until there are `count` events: `+key@revision` or `-key@revision`.
pub async fn events(stream: &mut WatchStream, count: usize) -> Vec<String> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let response = next(stream).await;
        assert!(!response.canceled, "{response:?}");
        seen.extend(response.events.iter().map(event));
    }
    seen
}

pub fn event(event: &pb::Event) -> String {
    let kv = event.kv.as_ref().unwrap();
    let sign = if event.r#type == pb::EventType::Put as i32 { '+' } else { '-' };
    format!("{sign}{}@{}", String::from_utf8_lossy(&kv.key), kv.mod_revision)
}
