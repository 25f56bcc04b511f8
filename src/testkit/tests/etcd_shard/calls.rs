//! Every call of the port, and the errors that etcd answers with.

use std::time::Duration;

use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{
    Certainty, Shard,
    etcd::{EtcdOptions, EtcdShard},
};
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions, etcdctl, etcdctl_with_input, wait_until};
use tonic::Code;

use super::{all, etcd, get, operation, parts, put};

#[tokio::test]
async fn keys_are_written_read_and_deleted() {
    let etcd = etcd().await;
    let shard = etcd.shard();
    let first = shard.put(put("a", "1")).await.unwrap().header.unwrap();
    let answer = shard.put(pb::PutRequest { prev_kv: true, ..put("a", "2") }).await.unwrap();
    assert_eq!(answer.prev_kv.unwrap().value, "1");
    assert_eq!(answer.header.unwrap().revision, first.revision + 1);

    let compare = pb::Compare {
        key: "a".into(),
        target: pb::CompareTarget::Value.into(),
        result: pb::CompareResult::Equal.into(),
        target_union: Some(pb::TargetUnion::Value("2".into())),
        ..Default::default()
    };
    let delete = pb::DeleteRangeRequest { key: "a".into(), prev_kv: true, ..Default::default() };
    let answer = shard
        .txn(pb::TxnRequest {
            compare: vec![compare],
            success: vec![
                operation(pb::Request::RequestDeleteRange(delete)),
                operation(pb::Request::RequestPut(put("b", "3"))),
            ],
            failure: vec![],
        })
        .await
        .unwrap();
    assert!(answer.succeeded);
    assert!(matches!(
        &answer.responses[0].response,
        Some(pb::Response::ResponseDeleteRange(deleted)) if deleted.deleted == 1 && deleted.prev_kvs[0].value == "2"
    ));

    let now = shard.range(all()).await.unwrap();
    assert_eq!(
        now.kvs.iter().map(|kv| (&kv.key[..], &kv.value[..])).collect::<Vec<_>>(),
        [(&b"b"[..], &b"3"[..])]
    );
    let before = shard.range(pb::RangeRequest { revision: first.revision, ..all() }).await.unwrap();
    assert_eq!(before.kvs[0].value, "1");
    // The official client sees the same.
    let shown = etcdctl(&etcd.endpoint(), &["get", "--prefix", ""]).await.unwrap().success().unwrap();
    assert_eq!(shown, "b\n3\n");
    let answer = etcdctl_with_input(&etcd.endpoint(), &["put", "c"], "from stdin").await.unwrap().success();
    assert_eq!(answer.unwrap(), "OK\n");
    assert_eq!(shard.range(get("c")).await.unwrap().kvs[0].value, "from stdin");
}

#[tokio::test]
async fn leases_are_granted_renewed_listed_and_revoked() {
    let etcd = etcd().await;
    let shard = etcd.shard();
    let granted = shard.lease_grant(pb::LeaseGrantRequest { id: 77, ttl: 1000 }).await.unwrap();
    assert_eq!((granted.id, granted.ttl), (77, 1000));
    shard.put(pb::PutRequest { lease: 77, ..put("attached", "x") }).await.unwrap();
    assert_eq!(shard.lease_keep_alive(77).await.unwrap().ttl, 1000);
    let asked = shard.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 77, keys: true }).await.unwrap();
    assert_eq!((asked.granted_ttl, asked.keys.len()), (1000, 1));
    assert_eq!(
        shard.lease_leases().await.unwrap().leases.iter().map(|lease| lease.id).collect::<Vec<_>>(),
        [77]
    );

    let error = shard.lease_grant(pb::LeaseGrantRequest { id: 77, ttl: 10 }).await.unwrap_err();
    assert!(error.is_lease_exist(), "{error:?}");
    assert_eq!(error.certainty, Certainty::Refused);

    shard.lease_revoke(pb::LeaseRevokeRequest { id: 77 }).await.unwrap();
    assert_eq!(shard.range(get("attached")).await.unwrap().count, 0);
    assert_eq!(shard.lease_keep_alive(77).await.unwrap().ttl, 0, "an unknown lease is renewed for no time");
    let asked = shard.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 77, keys: false }).await.unwrap();
    assert_eq!(asked.ttl, -1);
    for error in [
        shard.lease_revoke(pb::LeaseRevokeRequest { id: 77 }).await.unwrap_err(),
        shard.put(pb::PutRequest { lease: 77, ..put("attached", "x") }).await.unwrap_err(),
    ] {
        assert!(error.is_lease_not_found(), "{error:?}");
        assert_eq!(error.certainty, Certainty::Refused);
    }
}

#[tokio::test]
async fn maintenance_calls_reach_etcd() {
    let etcd = etcd().await;
    let shard = etcd.shard();
    let status = shard.status().await.unwrap();
    assert!(status.version.starts_with("3."), "{}", status.version);
    assert_ne!(status.leader, 0);
    assert!(status.db_size > 0);
    shard.defragment().await.unwrap();
    let alarms = shard.alarm(pb::AlarmRequest::default()).await.unwrap();
    assert!(alarms.alarms.is_empty());
}

#[tokio::test]
async fn revisions_that_cannot_be_read_are_refused() {
    let etcd = etcd().await;
    let shard = etcd.shard();
    for value in ["1", "2", "3"] {
        shard.put(put("a", value)).await.unwrap();
    }
    let newest = shard.range(get("a")).await.unwrap().header.unwrap().revision;
    shard.compact(pb::CompactionRequest { revision: newest, physical: true }).await.unwrap();
    let at = |revision| pb::RangeRequest { revision, ..get("a") };
    let error = shard.range(at(newest - 1)).await.unwrap_err();
    assert!(error.is_compacted(), "{error:?}");
    assert_eq!(error.certainty, Certainty::Refused);
    let error = shard.range(at(newest + 1)).await.unwrap_err();
    assert!(error.is_future_rev(), "{error:?}");
    let again = pb::CompactionRequest { revision: newest, physical: false };
    assert!(shard.compact(again).await.unwrap_err().is_compacted());
}

#[tokio::test]
async fn bad_requests_are_refused_with_the_text_of_etcd() {
    let options = EtcdProcessOptions { max_txn_ops: 4, max_request_bytes: 1 << 20, ..Default::default() };
    let etcd = EtcdProcess::start(options).await.unwrap();
    let shard = etcd.shard();
    let txn = |keys: Vec<String>| pb::TxnRequest {
        success: keys.iter().map(|key| operation(pb::Request::RequestPut(put(key, "")))).collect(),
        ..Default::default()
    };
    let refused = |text| (Code::InvalidArgument, text, Certainty::Refused);

    let error = shard.put(put("", "x")).await.unwrap_err();
    assert_eq!(parts(&error), refused("etcdserver: key is not provided"));
    let error = shard.txn(txn((0..5).map(|n| n.to_string()).collect())).await.unwrap_err();
    assert_eq!(parts(&error), refused("etcdserver: too many operations in txn request"));
    let error = shard.txn(txn(vec!["a".into(), "a".into()])).await.unwrap_err();
    assert_eq!(parts(&error), refused("etcdserver: duplicate key given in txn request"));
    // Over the limit, but within the 512 KiB that gRPC has on top: etcd itself says so.
    let error = shard.put(put("a", vec![b'x'; 1_200_000])).await.unwrap_err();
    assert_eq!(parts(&error), refused("etcdserver: request is too large"));
    // Beyond that gRPC does.
    let error = shard.put(put("a", vec![b'x'; 4 << 20])).await.unwrap_err();
    assert_eq!((error.code, error.certainty), (Code::ResourceExhausted, Certainty::Refused), "{error}");
    assert_eq!(shard.range(all()).await.unwrap().count, 0, "nothing of it was applied");
}

#[tokio::test]
async fn a_full_database_refuses_writes_and_answers_reads() {
    let options = EtcdProcessOptions { quota_bytes: Some(1 << 20), ..Default::default() };
    let etcd = EtcdProcess::start(options).await.unwrap();
    let shard = etcd.shard();
    // etcd looks at the size of its file, which grows only when a batch is committed.
    let error = wait_until("a write is refused", Duration::from_secs(20), || async {
        shard.put(put("key", vec![b'x'; 100_000])).await.err()
    });
    let error = error.await.unwrap();
    let expected = (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Certainty::Refused);
    assert_eq!(parts(&error), expected);
    assert_eq!(shard.range(get("key")).await.unwrap().count, 1);
    // etcd refuses first and raises the alarm after that.
    let alarms = wait_until("the alarm is raised", Duration::from_secs(20), || async {
        let alarms = shard.alarm(pb::AlarmRequest::default()).await.unwrap().alarms;
        (!alarms.is_empty()).then_some(alarms)
    });
    let alarms: Vec<_> = alarms.await.unwrap().iter().map(|alarm| alarm.alarm()).collect();
    assert_eq!(alarms, [pb::AlarmType::Nospace]);
}

#[tokio::test]
async fn large_messages_pass_up_to_the_limit() {
    let etcd = etcd().await;
    let shard = etcd.shard();
    let value = vec![b'x'; 10 << 20];
    for key in ["a", "b", "c"] {
        shard.put(put(key, value.clone())).await.unwrap();
    }
    let everything = shard.range(all()).await.unwrap();
    assert_eq!(everything.kvs.iter().map(|kv| kv.value.len()).sum::<usize>(), 30 << 20);

    let small = etcd.shard_with(EtcdOptions { message_bytes_max: 1 << 20, ..EtcdOptions::default() });
    let error = small.range(all()).await.unwrap_err();
    assert_eq!((error.code, error.certainty), (Code::ResourceExhausted, Certainty::Ambiguous), "{error}");
    let error = small.put(put("d", vec![b'x'; 2 << 20])).await.unwrap_err();
    let expected = (Code::InvalidArgument, "etcdserver: request is too large", Certainty::Refused);
    assert_eq!(parts(&error), expected);
    assert_eq!(small.range(get("d")).await.unwrap().count, 0);
}

#[tokio::test]
async fn endpoints_are_checked_before_anything_is_sent() {
    for endpoints in [vec![], vec!["https://127.0.0.1:2379".to_owned()], vec!["nonsense".to_owned()]] {
        let error = EtcdShard::connect_lazy(endpoints, EtcdOptions::default()).unwrap_err();
        assert_eq!((error.code, error.certainty), (Code::InvalidArgument, Certainty::NotSent), "{error}");
    }
}
