//! `/metrics`, beside a real etcd's.

use std::collections::{BTreeMap, BTreeSet};

use sharded_etcd_etcd_api::{
    etcdserverpb::{kv_client::KvClient, lease_client::LeaseClient, watch_client::WatchClient},
    messages as pb,
};
use sharded_etcd_shard::Shard;
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions, wait_until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{serve::server, support::*};

/// Values by name with labels.
fn values(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect()
}

/// Names without labels, and without what a histogram adds.
fn names(text: &str) -> BTreeSet<String> {
    let plain = |name: &str| {
        let name = name.split('{').next().unwrap_or_default();
        let name = name.strip_suffix("_bucket").or(name.strip_suffix("_sum")).unwrap_or(name);
        name.strip_suffix("_count").unwrap_or(name).to_owned()
    };
    values(text).into_keys().map(plain).collect()
}

async fn of_etcd() -> String {
    let etcd = EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap();
    etcd.shard().put(put("a", "1")).await.unwrap();
    let endpoint = etcd.endpoint();
    let address = endpoint.strip_prefix("http://").unwrap();
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(b"GET /metrics HTTP/1.0\r\nHost: etcd\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[tokio::test]
async fn metrics_have_the_names_that_etcd_has_for_them() {
    let server = server().await;
    let mut kv = KvClient::connect(server.endpoint.clone()).await.unwrap();
    kv.put(put("a", "1")).await.unwrap();
    let ours = names(&server.fixture.engine.metrics());
    let etcds = names(&of_etcd().await);
    let unknown: Vec<_> = ours.difference(&etcds).filter(|name| !name.starts_with("sharded_etcd_")).collect();
    assert!(unknown.is_empty(), "etcd has no {unknown:?}");
    assert!(ours.len() > 30, "{ours:?}");
}

#[tokio::test]
async fn what_happens_is_counted() {
    let server = server().await;
    let engine = &server.fixture.engine;
    let mut kv = KvClient::connect(server.endpoint.clone()).await.unwrap();
    for n in 0..5 {
        kv.put(put(&format!("k{n}"), "1")).await.unwrap();
    }
    kv.delete_range(delete("k3", "k5")).await.unwrap();
    kv.range(all()).await.unwrap();
    kv.range(pb::RangeRequest { revision: 99, ..all() }).await.unwrap_err();
    kv.compact(pb::CompactionRequest { revision: 4, physical: true }).await.unwrap();
    let mut lease = LeaseClient::connect(server.endpoint.clone()).await.unwrap();
    for id in [1, 2] {
        lease.lease_grant(pb::LeaseGrantRequest { id, ttl: 100 }).await.unwrap();
    }
    lease.lease_revoke(pb::LeaseRevokeRequest { id: 2 }).await.unwrap();
    engine.lease_keep_alive(1).await.unwrap();
    let mut watch = WatchClient::connect(server.endpoint.clone()).await.unwrap();
    let (requests, outgoing) = mpsc::channel(4);
    let mut responses = watch.watch(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let create = pb::RequestUnion::CreateRequest(watch_all());
    requests.try_send(pb::WatchRequest { request_union: Some(create) }).unwrap();
    responses.message().await.unwrap().unwrap();
    kv.put(put("k0", "2")).await.unwrap();
    responses.message().await.unwrap().unwrap();

    let text = engine.metrics();
    let values = values(&text);
    let status = engine.status().await.unwrap();
    for (name, expected) in [
        ("etcd_server_has_leader", 1),
        ("etcd_mvcc_put_total", 6),
        ("etcd_mvcc_delete_total", 2),
        ("etcd_mvcc_txn_total", 1),
        ("etcd_mvcc_range_total", 1),
        ("etcd_debugging_mvcc_current_revision", 8),
        ("etcd_debugging_mvcc_compact_revision", 4),
        ("etcd_debugging_mvcc_watcher_total", 1),
        ("etcd_debugging_mvcc_watch_stream_total", 1),
        ("etcd_debugging_mvcc_events_total", 1),
        ("etcd_debugging_lease_granted_total", 2),
        ("etcd_debugging_lease_revoked_total", 1),
        ("etcd_debugging_lease_renewed_total", 1),
        ("sharded_etcd_leases", 1),
        ("etcd_mvcc_db_total_size_in_bytes", status.db_size),
        ("etcd_mvcc_db_total_size_in_use_in_bytes", status.db_size_in_use),
        ("etcd_server_quota_backend_bytes", status.db_size_quota),
    ] {
        assert_eq!(values.get(name), Some(&(expected as f64)), "{name} in\n{text}");
    }
    let handled = |method: &str, kind: &str, service: &str, code: &str| {
        let name = format!(
            "grpc_server_handled_total{{grpc_code=\"{code}\",grpc_method=\"{method}\",\
             grpc_service=\"etcdserverpb.{service}\",grpc_type=\"{kind}\"}}"
        );
        values.get(name.as_str()).copied()
    };
    assert_eq!(handled("Put", "unary", "KV", "OK"), Some(6.0));
    assert_eq!(handled("Range", "unary", "KV", "OK"), Some(1.0));
    assert_eq!(handled("Range", "unary", "KV", "OutOfRange"), Some(1.0));
    assert_eq!(handled("Watch", "bidi_stream", "Watch", "OK"), None, "it has not ended");
    // A batch for each of the writes, as nobody else wrote.
    assert!(values["etcd_disk_wal_fsync_duration_seconds_count"] >= 9.0);
    assert!(values["process_resident_memory_bytes"] > 1e6);

    drop((requests, responses, watch));
    let ended = "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Watch\"";
    wait_until("the watch has ended", std::time::Duration::from_secs(20), || {
        std::future::ready(engine.metrics().contains(ended).then_some(()))
    })
    .await
    .unwrap();
}
