//! What clients see while a part of the topology is away: errors that name it, and nothing half done.
#![allow(clippy::unwrap_used)]

mod support;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::LineOptions;
use sharded_etcd_proxy::kv::Kv;
use sharded_etcd_testkit::wait_until;
use tonic::{Code, Status};

async fn put(kv: &Kv, key: &str) -> Result<pb::PutResponse, Status> {
    kv.put(pb::PutRequest { key: Bytes::from(key.to_owned()), value: "v".into(), ..Default::default() }).await
}

fn all(serializable: bool) -> pb::RangeRequest {
    pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), serializable, ..Default::default() }
}

#[tokio::test]
async fn a_shard_that_is_away_fails_what_needs_it_and_nothing_else() {
    let mut topology = support::Topology::start_etcd(2, &["m"]).await;
    let kv = topology.kv("p").await;
    put(&kv, "a").await.unwrap();
    put(&kv, "z").await.unwrap();
    topology.processes[2].kill();
    for result in [
        put(&kv, "z").await.map(|_| ()),
        kv.range(all(false)).await.map(|_| ()),
        kv.range(all(true)).await.map(|_| ()),
        kv.range(pb::RangeRequest { count_only: true, ..all(false) }).await.map(|_| ()),
        kv.range(pb::RangeRequest { limit: 1, ..all(false) }).await.map(|_| ()),
        kv.delete_range(pb::DeleteRangeRequest { key: "x".into(), range_end: "zz".into(), prev_kv: false })
            .await
            .map(|_| ()),
    ] {
        let status = result.unwrap_err();
        assert!(matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded), "{status:?}");
        assert!(status.message().contains("shard-1"), "{status:?}");
    }
    put(&kv, "b").await.unwrap();
    let get = pb::RangeRequest { key: "a".into(), ..Default::default() };
    assert_eq!(kv.range(get).await.unwrap().count, 1);
    let midway = kv
        .delete_range(pb::DeleteRangeRequest { key: "a".into(), range_end: "\0".into(), prev_kv: false })
        .await
        .unwrap_err();
    assert!(midway.message().starts_with("deleted 2 keys"), "{midway:?}");
    topology.processes[2].restart().await.unwrap();
    wait_until("the shard to serve again", Duration::from_secs(20), || async { put(&kv, "z").await.ok() })
        .await
        .unwrap();
    assert_eq!(kv.range(all(false)).await.unwrap().count, 1);
}

/// Trap 11: while meta is away, writes are refused before they are sent; serializable reads go on.
#[tokio::test]
async fn trap_11_while_meta_is_away_writes_are_refused_before_they_are_sent() {
    let mut topology = support::Topology::start_etcd(1, &[]).await;
    let options = LineOptions {
        wait_max: Duration::from_millis(600),
        stuck_max: Duration::from_millis(200),
        ..LineOptions::default()
    };
    let kv = Kv::start(topology.context_with("p", options).await, Arc::new(support::NoLeases));
    put(&kv, "before").await.unwrap();
    topology.processes[0].pause().await.unwrap();
    let sent = put(&kv, "sent").await.unwrap_err();
    assert!(!sent.message().starts_with("not sent"), "the first one could not know: {sent:?}");
    let refused = put(&kv, "refused").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().starts_with("not sent"), "{refused:?}");
    assert_eq!(kv.range(all(true)).await.unwrap().count, 1, "serializable reads go on, at the last cut");
    topology.processes[0].resume();
    wait_until("writes again", Duration::from_secs(20), || async { put(&kv, "after").await.ok() })
        .await
        .unwrap();
    let keys: Vec<_> = kv.range(all(false)).await.unwrap().kvs.into_iter().map(|kv| kv.key).collect();
    assert_eq!(keys, ["after", "before", "sent"], "what was sent is there, what was refused is not");
}
