//! The adapter for real etcd, against real etcd.
#![allow(clippy::unwrap_used)]

#[path = "etcd_shard/calls.rs"]
mod calls;
#[path = "etcd_shard/faults.rs"]
mod faults;
#[path = "etcd_shard/watches.rs"]
mod watches;

use std::time::Duration;

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{ShardError, etcd::EtcdOptions};
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions};

async fn etcd() -> EtcdProcess {
    EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap()
}

/// Options with which a call that hangs fails soon.
fn impatient() -> EtcdOptions {
    EtcdOptions { request_timeout: Duration::from_millis(1500), ..EtcdOptions::default() }
}

fn put(key: &str, value: impl Into<Bytes>) -> pb::PutRequest {
    pb::PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), value: value.into(), ..Default::default() }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() }
}

fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() }
}

fn operation(request: pb::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

/// The code, text and certainty of an error, to compare at once.
fn parts(error: &ShardError) -> (tonic::Code, &str, sharded_etcd_shard::Certainty) {
    (error.code, &error.message, error.certainty)
}
