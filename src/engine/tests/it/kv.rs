//! Range, Put, DeleteRange, Txn, Compact, limits.

use sharded_etcd_etcd_api::messages::{self as pb, CompareResult::*, TargetUnion};
use sharded_etcd_shard::Shard;
use tonic::Code;

use crate::support::*;

#[tokio::test]
async fn an_empty_store_is_at_revision_one() {
    let fixture = start().await;
    let response = fixture.engine.range(get("a")).await.unwrap();
    let header = response.header.unwrap();
    assert_eq!((header.revision, header.raft_term), (1, 2));
    assert_eq!(
        (header.cluster_id, header.member_id),
        (fixture.engine.cluster_id(), fixture.engine.member_id())
    );
    assert_eq!((response.count, response.kvs.len(), response.more), (0, 0, false));
    assert_eq!(fixture.delete("a").await, 1);
    assert_eq!(fixture.put("a", "1").await, 2);
}

#[tokio::test]
async fn revisions_and_versions_of_a_key() {
    let fixture = start().await;
    fixture.put("a", "1").await;
    fixture.put("a", "2").await;
    fixture.delete("a").await;
    fixture.put("a", "3").await;
    let kv = |revision: i64| {
        let request = pb::RangeRequest { revision, ..get("a") };
        async { fixture.engine.range(request).await.unwrap().kvs.pop() }
    };
    let numbers = |kv: Option<pb::KeyValue>| kv.map(|kv| (kv.create_revision, kv.mod_revision, kv.version));
    assert_eq!(numbers(kv(1).await), None);
    assert_eq!(numbers(kv(2).await), Some((2, 2, 1)));
    assert_eq!(numbers(kv(3).await), Some((2, 3, 2)));
    assert_eq!(numbers(kv(4).await), None);
    assert_eq!(numbers(kv(5).await), Some((5, 5, 1)));
    assert_eq!(numbers(kv(0).await), Some((5, 5, 1)));
    assert_eq!(numbers(kv(-7).await), Some((5, 5, 1)));
    let future = fixture.engine.range(pb::RangeRequest { revision: 6, ..get("a") }).await.unwrap_err();
    assert_eq!(text(&future), (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"));
}

#[tokio::test]
async fn forms_of_a_range() {
    let fixture = start().await;
    for key in ["a", "b", "ba", "c", "\u{7f}"] {
        fixture.put(key, key).await;
    }
    let found = |request: pb::RangeRequest| async { keys(&fixture.engine.range(request).await.unwrap()) };
    assert_eq!(found(get("b")).await, ["b"]);
    assert_eq!(found(span("b", "c")).await, ["b", "ba"]);
    assert_eq!(found(span("b", "\0")).await, ["b", "ba", "c", "\u{7f}"]);
    assert_eq!(found(all()).await, ["a", "b", "ba", "c", "\u{7f}"]);
    assert_eq!(found(span("c", "b")).await, [] as [&str; 0]);
    assert_eq!(found(span("b", "b")).await, [] as [&str; 0]);
}

#[tokio::test]
async fn limit_sort_filters_and_count() {
    let fixture = start().await;
    for (key, value) in [("c", "1"), ("a", "3"), ("b", "2"), ("a", "9")] {
        fixture.put(key, value).await;
    }
    let answer = |request: pb::RangeRequest| async { fixture.engine.range(request).await.unwrap() };

    let page = answer(pb::RangeRequest { limit: 2, ..all() }).await;
    assert_eq!((keys(&page), page.more, page.count), (vec!["a".into(), "b".into()], true, 3));
    let page = answer(pb::RangeRequest { limit: 3, ..all() }).await;
    assert_eq!((page.more, page.count), (false, 3));

    let count = answer(pb::RangeRequest { count_only: true, limit: 1, ..all() }).await;
    assert_eq!((count.kvs.len(), count.more, count.count), (0, false, 3));

    let sorted = |target: pb::SortTarget, order: pb::SortOrder| pb::RangeRequest {
        sort_target: target as i32,
        sort_order: order as i32,
        ..all()
    };
    use pb::{SortOrder, SortTarget};
    assert_eq!(keys(&answer(sorted(SortTarget::Key, SortOrder::Descend)).await), ["c", "b", "a"]);
    assert_eq!(keys(&answer(sorted(SortTarget::Create, SortOrder::Ascend)).await), ["c", "a", "b"]);
    assert_eq!(keys(&answer(sorted(SortTarget::Mod, SortOrder::Descend)).await), ["a", "b", "c"]);
    assert_eq!(keys(&answer(sorted(SortTarget::Version, SortOrder::Descend)).await), ["a", "b", "c"]);
    // No order with another target than the key means ascending.
    assert_eq!(keys(&answer(sorted(SortTarget::Value, SortOrder::None)).await), ["c", "b", "a"]);

    // A sort looks at all keys before the limit cuts.
    let first = answer(pb::RangeRequest { limit: 1, ..sorted(SortTarget::Create, SortOrder::Descend) }).await;
    assert_eq!((keys(&first), first.more, first.count), (vec!["b".into()], true, 3));

    // Filters leave `count` alone and come before the limit.
    let filtered = answer(pb::RangeRequest { min_mod_revision: 4, limit: 1, ..all() }).await;
    assert_eq!((keys(&filtered), filtered.more, filtered.count), (vec!["a".into()], true, 3));
    let filtered = answer(pb::RangeRequest { max_mod_revision: 3, ..all() }).await;
    assert_eq!(keys(&filtered), ["c"] as [&str; 1]);
    let filtered = answer(pb::RangeRequest { min_create_revision: 3, max_create_revision: 3, ..all() }).await;
    assert_eq!(keys(&filtered), ["a"]);
}

#[tokio::test]
async fn a_large_range_is_one_snapshot() {
    let fixture = start_with(|config| config.max_txn_ops = 10_000).await;
    for part in 0..5 {
        let puts = (0..2000).map(|n| op(put(&format!("k{part}/{n:04}"), "1"))).collect();
        fixture.engine.txn(txn(vec![], puts, vec![])).await.unwrap();
    }
    fixture.delete("k2/1000").await;
    let mut range = fixture.engine.range(all());
    // Not done at once: others have their turn, and write.
    assert!(futures::poll!(&mut range).is_pending());
    fixture.engine.delete_range(delete("\0", "\0")).await.unwrap();
    let response = range.await.unwrap();
    assert_eq!((response.count, response.kvs.len(), revision(&response.header)), (9999, 9999, 7));
    assert!(response.kvs.is_sorted_by(|a, b| a.key < b.key));
    let old = pb::RangeRequest { revision: 6, limit: 3, ..span("k1", "k4") };
    let response = fixture.engine.range(old.clone()).await.unwrap();
    assert_eq!((response.count, response.kvs.len(), response.more), (6000, 3, true));
    // Compacted on the way.
    let mut range = fixture.engine.range(old);
    assert!(futures::poll!(&mut range).is_pending());
    fixture.compact(8).await;
    assert!(range.await.unwrap_err().is_compacted());
}

#[tokio::test]
async fn keys_only_leaves_out_what_etcd_leaves_out() {
    let fixture = start().await;
    fixture.grant(5, 100).await;
    fixture.engine.put(pb::PutRequest { lease: 5, ..put("a", "1") }).await.unwrap();
    let request = pb::RangeRequest { keys_only: true, ..get("a") };
    let kv = fixture.engine.range(request.clone()).await.unwrap().kvs.pop().unwrap();
    assert_eq!((kv.value.len(), kv.lease, kv.mod_revision, kv.version), (0, 0, 2, 1));
    // Sorted by value etcd reads the whole key, lease included.
    let request = pb::RangeRequest { sort_target: pb::SortTarget::Value as i32, ..request };
    let kv = fixture.engine.range(request).await.unwrap().kvs.pop().unwrap();
    assert_eq!((kv.value.len(), kv.lease), (0, 5));
}

#[tokio::test]
async fn put_with_previous_and_ignored_fields() {
    let fixture = start().await;
    fixture.grant(5, 100).await;
    let missing =
        fixture.engine.put(pb::PutRequest { ignore_value: true, ..put("a", "") }).await.unwrap_err();
    assert_eq!(text(&missing), (Code::InvalidArgument, "etcdserver: key not found"));
    let first =
        fixture.engine.put(pb::PutRequest { lease: 5, prev_kv: true, ..put("a", "1") }).await.unwrap();
    assert_eq!(first.prev_kv, None);
    let second = fixture
        .engine
        .put(pb::PutRequest { ignore_value: true, ignore_lease: true, prev_kv: true, ..put("a", "") })
        .await
        .unwrap();
    assert_eq!(second.prev_kv.unwrap().mod_revision, 2);
    let kv = fixture.engine.range(get("a")).await.unwrap().kvs.pop().unwrap();
    assert_eq!((kv.value.as_ref(), kv.lease, kv.version), (b"1".as_ref(), 5, 2));
    // Without ignore_lease the key is detached.
    fixture.put("a", "2").await;
    let lease = pb::LeaseTimeToLiveRequest { id: 5, keys: true };
    assert!(fixture.engine.lease_time_to_live(lease).await.unwrap().keys.is_empty());
}

#[tokio::test]
async fn a_transaction_reads_its_own_writes_and_makes_one_revision() {
    let fixture = start().await;
    fixture.put("a", "0").await;
    let request = txn(
        vec![compare("a", Equal, TargetUnion::Value("0".into()))],
        vec![
            op(get("a")),
            op(put("a", "1")),
            op(get("a")),
            op(pb::DeleteRangeRequest { prev_kv: true, ..delete("b", "c") }),
            op(put("d", "1")),
            op(all()),
        ],
        vec![op(put("x", "never"))],
    );
    let response = fixture.engine.txn(request).await.unwrap();
    assert!(response.succeeded);
    let header = response.header.unwrap();
    assert_eq!((header.revision, header.cluster_id, header.raft_term), (3, fixture.engine.cluster_id(), 2));
    let mut inner = response.responses.into_iter().map(|response| response.response.unwrap());
    let mut range = || match inner.next().unwrap() {
        pb::Response::ResponseRange(range) => {
            let header = range.header.unwrap();
            assert_eq!((header.cluster_id, header.member_id, header.raft_term), (0, 0, 0));
            (
                header.revision,
                range.kvs.iter().map(|kv| (kv.key.clone(), kv.mod_revision)).collect::<Vec<_>>(),
            )
        }
        pb::Response::ResponsePut(put) => (revision(&put.header), vec![]),
        pb::Response::ResponseDeleteRange(delete) => (revision(&delete.header), vec![]),
        pb::Response::ResponseTxn(_) => unreachable!(),
    };
    assert_eq!(range(), (2, vec![("a".into(), 2)]));
    assert_eq!(range(), (3, vec![]));
    assert_eq!(range(), (3, vec![("a".into(), 3)]));
    // Deletes nothing, but something was written before it.
    assert_eq!(range(), (3, vec![]));
    assert_eq!(range(), (3, vec![]));
    assert_eq!(range(), (3, vec![("a".into(), 3), ("d".into(), 3)]));
    assert_eq!(fixture.put("e", "").await, 4);
}

#[tokio::test]
async fn a_transaction_that_writes_nothing_makes_no_revision() {
    let fixture = start().await;
    fixture.put("a", "0").await;
    let request = txn(
        vec![compare("a", Equal, TargetUnion::Value("1".into()))],
        vec![op(put("a", "1"))],
        vec![op(delete("b", "")), op(get("a"))],
    );
    let response = fixture.engine.txn(request).await.unwrap();
    assert!(!response.succeeded);
    assert_eq!(revision(&response.header), 2);
    assert_eq!(fixture.put("b", "").await, 3);
}

#[tokio::test]
async fn compares() {
    let fixture = start().await;
    fixture.grant(9, 100).await;
    fixture.put("a", "5").await;
    fixture.engine.put(pb::PutRequest { lease: 9, ..put("a", "5") }).await.unwrap();
    fixture.put("b", "7").await;
    let holds = |compare: pb::Compare| async {
        fixture.engine.txn(txn(vec![compare], vec![], vec![])).await.unwrap().succeeded
    };
    let ranged = |mut compare: pb::Compare, end: &str| {
        compare.range_end = end.to_owned().into();
        compare
    };
    use TargetUnion::*;
    // The key has create 2, mod 3, version 2, value 5, lease 9.
    for (wanted, holds_for) in [
        (CreateRevision(2), Equal),
        (CreateRevision(1), Greater),
        (ModRevision(3), Equal),
        (ModRevision(4), Less),
        (Version(2), Equal),
        (Version(1), NotEqual),
        (Value("5".into()), Equal),
        (Value("4".into()), Greater),
        (Lease(9), Equal),
    ] {
        assert!(holds(compare("a", holds_for, wanted.clone())).await, "{wanted:?} {holds_for:?}");
        let opposite = if holds_for == Equal { NotEqual } else { Equal };
        assert!(!holds(compare("a", opposite, wanted.clone())).await, "{wanted:?} {opposite:?}");
    }
    // A key that is not there has zeros, and no value at all.
    assert!(holds(compare("x", Equal, Version(0))).await);
    assert!(holds(compare("x", Equal, CreateRevision(0))).await);
    assert!(!holds(compare("x", Equal, Value("".into()))).await);
    assert!(!holds(compare("x", NotEqual, Value("5".into()))).await);
    // Ranges: for every key; an empty range as a key that is not there.
    assert!(holds(ranged(compare("a", Greater, ModRevision(2)), "c")).await);
    assert!(!holds(ranged(compare("a", Greater, ModRevision(3)), "c")).await);
    assert!(!holds(ranged(compare("a", Greater, ModRevision(3)), "b")).await);
    assert!(holds(ranged(compare("m", Equal, CreateRevision(0)), "z")).await);
    assert!(!holds(ranged(compare("a", Equal, CreateRevision(0)), "\0")).await);
    // A target without its operand compares with zero.
    let mut bare = compare("x", Equal, ModRevision(0));
    bare.target_union = None;
    assert!(holds(bare).await);
}

#[tokio::test]
async fn nested_compares_are_decided_before_anything_is_written() {
    let fixture = start().await;
    let nested = txn(vec![compare("a", Equal, TargetUnion::Version(0))], vec![op(put("b", "then"))], vec![]);
    let request = txn(vec![], vec![op(put("a", "1")), op(nested), op(get("b"))], vec![]);
    let response = fixture.engine.txn(request).await.unwrap();
    let pb::Response::ResponseTxn(inner) = response.responses[1].response.clone().unwrap() else { panic!() };
    assert!(inner.succeeded);
    assert_eq!(inner.header, Some(pb::ResponseHeader::default()));
    let pb::Response::ResponseRange(range) = response.responses[2].response.clone().unwrap() else {
        panic!()
    };
    assert_eq!(range.kvs[0].value, "then");
}

#[tokio::test]
async fn one_key_may_be_put_and_then_deleted_by_nested_transactions() {
    let fixture = start().await;
    let nested = |request: pb::RequestOp| op(txn(vec![], vec![request], vec![]));
    let mut watch = fixture.watch(watch_all()).await;
    let request = txn(vec![], vec![nested(op(put("a", "1"))), nested(op(delete("a", "")))], vec![]);
    assert_eq!(revision(&fixture.engine.txn(request).await.unwrap().header), 2);
    assert_eq!(events(&mut watch, 2).await, ["+a@2", "-a@2"]);
    assert_eq!(fixture.engine.range(get("a")).await.unwrap().count, 0);
}

#[tokio::test]
async fn a_failing_operation_leaves_no_trace() {
    let fixture = start().await;
    let bad = pb::PutRequest { lease: 404, ..put("b", "") };
    let error =
        fixture.engine.txn(txn(vec![], vec![op(put("a", "")), op(bad.clone())], vec![])).await.unwrap_err();
    assert_eq!(text(&error), (Code::NotFound, "etcdserver: requested lease not found"));
    // Not an error on the branch that is not taken.
    let response = fixture.engine.txn(txn(vec![], vec![op(put("c", ""))], vec![op(bad)])).await.unwrap();
    assert_eq!(revision(&response.header), 2);
    let future = pb::RangeRequest { revision: 3, ..get("c") };
    let error =
        fixture.engine.txn(txn(vec![], vec![op(put("a", "")), op(future)], vec![])).await.unwrap_err();
    assert!(error.is_future_rev());
    assert_eq!(keys(&fixture.engine.range(all()).await.unwrap()), ["c"]);
}

#[tokio::test]
async fn bad_requests_get_etcds_errors() {
    let fixture = start().await;
    let engine = &fixture.engine;
    let run = |request: pb::TxnRequest| async move { engine.txn(request).await.unwrap_err() };
    let ok = |request: pb::TxnRequest| async move { engine.txn(request).await.unwrap() };
    let nested = |requests: Vec<pb::RequestOp>| op(txn(vec![], requests, vec![]));
    let duplicate = (Code::InvalidArgument, "etcdserver: duplicate key given in txn request");
    let empty = (Code::InvalidArgument, "etcdserver: key is not provided");

    assert_eq!(text(&engine.range(get("")).await.unwrap_err()), empty);
    assert_eq!(text(&engine.put(put("", "")).await.unwrap_err()), empty);
    assert_eq!(text(&engine.delete_range(delete("", "")).await.unwrap_err()), empty);
    assert_eq!(
        text(&run(txn(vec![compare("", Equal, TargetUnion::Version(0))], vec![], vec![])).await),
        empty
    );
    assert_eq!(text(&run(txn(vec![], vec![], vec![op(put("", ""))])).await), empty);
    let sort = engine.range(pb::RangeRequest { sort_order: 9, ..get("a") }).await.unwrap_err();
    assert_eq!(text(&sort), (Code::InvalidArgument, "etcdserver: invalid sort option"));
    let value = engine.put(pb::PutRequest { ignore_value: true, ..put("a", "1") }).await.unwrap_err();
    assert_eq!(text(&value), (Code::InvalidArgument, "etcdserver: value is provided"));
    let lease =
        engine.put(pb::PutRequest { ignore_lease: true, lease: 1, ..put("a", "1") }).await.unwrap_err();
    assert_eq!(text(&lease), (Code::InvalidArgument, "etcdserver: lease is provided"));
    let nothing = run(txn(vec![], vec![pb::RequestOp { request: None }], vec![])).await;
    assert_eq!(text(&nothing), (Code::InvalidArgument, "etcdserver: key not found"));

    assert_eq!(text(&run(txn(vec![], vec![op(put("a", "")), op(put("a", ""))], vec![])).await), duplicate);
    assert_eq!(
        text(&run(txn(vec![], vec![op(put("b", "")), op(delete("a", "c"))], vec![])).await),
        duplicate
    );
    assert_eq!(
        text(&run(txn(vec![], vec![op(put("b", "")), nested(vec![op(put("b", ""))])], vec![])).await),
        duplicate
    );
    assert_eq!(
        text(&run(txn(vec![], vec![nested(vec![op(delete("b", ""))]), op(put("b", ""))], vec![])).await),
        duplicate
    );
    // Allowed: deletes that overlap, the same key in both branches, a put outside what is deleted.
    ok(txn(vec![], vec![op(delete("a", "c")), op(delete("b", "d"))], vec![])).await;
    ok(txn(vec![], vec![op(put("a", ""))], vec![op(put("a", ""))])).await;
    ok(txn(vec![], vec![op(put("c", "")), op(delete("a", "c")), op(delete("d", "e"))], vec![])).await;
    // etcd does not see that "everything from a on" overlaps.
    ok(txn(vec![], vec![op(put("b", "")), op(delete("a", "\0"))], vec![])).await;

    let many = (0..129).map(|n| op(get(&n.to_string()))).collect();
    assert_eq!(
        text(&run(txn(vec![], many, vec![])).await),
        (Code::InvalidArgument, "etcdserver: too many operations in txn request")
    );
    let inner: Vec<_> = (0..127).map(|n| op(get(&n.to_string()))).collect();
    ok(txn(vec![], vec![nested(inner.clone())], vec![])).await;
    let two_deep = run(txn(vec![], vec![nested(inner), op(get("a"))], vec![])).await;
    assert_eq!(two_deep.code, Code::InvalidArgument);
}

#[tokio::test]
async fn a_request_as_large_as_the_limit_passes_and_a_larger_one_does_not() {
    let fixture = start().await;
    let sized = |bytes: usize| pb::PutRequest { value: vec![1; bytes].into(), ..put("k", "") };
    // As measured on etcd 3.7: 1.5 MiB less the envelope.
    fixture.engine.put(sized(1_572_804)).await.unwrap();
    let error = fixture.engine.put(sized(1_572_864)).await.unwrap_err();
    assert_eq!(text(&error), (Code::InvalidArgument, "etcdserver: request is too large"));
}

#[tokio::test]
async fn compaction_hides_history_at_once() {
    let fixture = start().await;
    for n in 2..=6 {
        fixture.put("a", &n.to_string()).await;
    }
    let compact = |revision: i64| fixture.engine.compact(pb::CompactionRequest { revision, physical: false });
    assert!(compact(7).await.unwrap_err().is_future_rev());
    assert_eq!(revision(&compact(4).await.unwrap().header), 6);
    assert!(compact(4).await.unwrap_err().is_compacted());
    let at = |revision: i64| fixture.engine.range(pb::RangeRequest { revision, ..get("a") });
    let error = at(3).await.unwrap_err();
    assert_eq!(text(&error), (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"));
    assert_eq!(at(4).await.unwrap().kvs[0].value, "4");
    let inner = pb::RangeRequest { revision: 3, ..get("a") };
    let txn = fixture.engine.txn(txn(vec![], vec![op(put("b", "")), op(inner)], vec![])).await;
    assert!(txn.unwrap_err().is_compacted());
}

#[tokio::test]
async fn compaction_and_deletes_give_space_back() {
    let fixture = start().await;
    let sizes = || async {
        let status = fixture.engine.status().await.unwrap();
        (status.db_size, status.db_size_in_use)
    };
    for _ in 0..100 {
        fixture.put("a", &"x".repeat(1000)).await;
    }
    let (full, in_use) = sizes().await;
    assert_eq!(full, in_use);
    assert!(in_use > 100_000);
    fixture.delete("a").await;
    fixture.compact(102).await;
    let (size, in_use) = sizes().await;
    assert!(size >= full, "freed pages stay in the file: {size}");
    // The tombstone: a watch from the compaction sees it.
    assert!(in_use > 0 && in_use < 1000, "{in_use}");
    fixture.engine.defragment().await.unwrap();
    assert_eq!(sizes().await, (in_use, in_use));
    let newest = fixture.put("b", "").await;
    fixture.compact(newest).await;
    assert_eq!(sizes().await.1, in_use, "of b, in place of the tombstone");
}

#[tokio::test]
async fn the_quota_refuses_puts_and_lets_deletes_pass() {
    let fixture = start_with(|config| config.quota_bytes = 100_000).await;
    let engine = &fixture.engine;
    let mut written = 0;
    let error = loop {
        match engine.put(put(&format!("k{written}"), &"x".repeat(1000))).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(text(&error), (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"));
    assert!(written > 50);
    let alarms = engine.alarm(pb::AlarmRequest::default()).await.unwrap().alarms;
    let alarm = pb::AlarmMember { member_id: engine.member_id(), alarm: pb::AlarmType::Nospace as i32 };
    assert_eq!(alarms, [alarm]);
    assert_eq!(engine.status().await.unwrap().errors.len(), 1);
    // Small ones too now, also inside a Txn and for a lease; reads and deletes go on.
    assert_eq!(engine.put(put("s", "")).await.unwrap_err().code, Code::ResourceExhausted);
    let guarded = txn(vec![], vec![], vec![op(put("s", ""))]);
    assert_eq!(engine.txn(guarded).await.unwrap_err().code, Code::ResourceExhausted);
    let grant = engine.lease_grant(pb::LeaseGrantRequest { id: 1, ttl: 5 }).await;
    assert_eq!(grant.unwrap_err().code, Code::ResourceExhausted);
    assert_eq!(engine.range(all()).await.unwrap().count, written);
    let deleted = engine.delete_range(delete("k", "l")).await.unwrap();
    assert_eq!(deleted.deleted, written);
    fixture.compact(revision(&deleted.header)).await;
    engine.defragment().await.unwrap();
    let disarm = pb::AlarmRequest {
        action: pb::alarm_request::AlarmAction::Deactivate as i32,
        member_id: alarm.member_id,
        alarm: alarm.alarm,
    };
    assert_eq!(engine.alarm(disarm).await.unwrap().alarms, [alarm]);
    fixture.put("s", "").await;
}

/// Checked with etcd 3.7.3.
#[tokio::test]
async fn a_negative_quota_is_none_and_is_shown_as_it_is() {
    let fixture = start_with(|config| config.quota_bytes = -5).await;
    fixture.put("a", "1").await;
    assert_eq!(fixture.engine.status().await.unwrap().db_size_quota, -5);
    let metrics = fixture.engine.metrics();
    assert!(metrics.contains("\netcd_server_quota_backend_bytes -5\n"), "{metrics}");
}

#[tokio::test]
async fn status_says_what_kube_apiserver_reads() {
    let fixture = start().await;
    fixture.put("a", "1").await;
    let status = fixture.engine.status().await.unwrap();
    assert_eq!(status.version, "3.7.3");
    assert_eq!(status.leader, fixture.engine.member_id());
    assert!(status.raft_term >= 1 && status.db_size > 0);
    let before = status.raft_index;
    fixture.put("a", "2").await;
    assert!(fixture.engine.status().await.unwrap().raft_index > before);
}
