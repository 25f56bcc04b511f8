//! The traps that docs/consistency.md numbers and that show at the key-value calls of a proxy.
#![allow(clippy::unwrap_used)]

mod support;
mod watch_support;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::{Rid, ShardIx},
    records::{FENCE_OPEN, fence_closed_by, fence_key},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_proxy::{
    context::{Context, Limits},
    hub::HubOptions,
    kv::Kv,
};
use sharded_etcd_shard::Shard;
use sharded_etcd_testkit::{EtcdProcessOptions, wait_until};
use support::{NoLeases, Topology};
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use watch_support::{Gate, Served, create, everything as watch_everything};

const SOON: Duration = Duration::from_secs(20);

/// The topology's own keys begin here.
const HIDDEN: &[u8] = b"\xff\xff\xff\xff";

fn put(key: &str, value: impl Into<Bytes>) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() }
}

fn put_op(key: &str, value: impl Into<Bytes>) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::Request::RequestPut(put(key, value))) }
}

fn get_op(key: &str) -> pb::RequestOp {
    let get = pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
    pb::RequestOp { request: Some(pb::Request::RequestRange(get)) }
}

fn delete(key: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn everything() -> pb::RangeRequest {
    pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

/// `If mod(key) == revision Then put Else get`.
fn if_modified_at(key: &str, revision: i64) -> pb::TxnRequest {
    let compare = pb::Compare {
        result: pb::CompareResult::Equal.into(),
        target: pb::CompareTarget::Mod.into(),
        key: key.to_owned().into(),
        target_union: Some(pb::TargetUnion::ModRevision(revision)),
        ..Default::default()
    };
    pb::TxnRequest { compare: vec![compare], success: vec![put_op(key, "x")], failure: vec![get_op(key)] }
}

fn revision(header: Option<pb::ResponseHeader>) -> i64 {
    header.unwrap().revision
}

/// Key `a` lies on shard 0, which stays idle, and key `z` on shard 1.
#[tokio::test]
async fn trap_01_answers_that_wrote_nothing_are_not_older_than_what_was_acknowledged() {
    let topology = Topology::start(2, &["m"]).await;
    let (one, two) = (topology.kv("one").await, topology.kv("two").await);
    one.put(put("a", "0")).await.unwrap();
    let mut newest = 0;
    for round in 0..50 {
        let written = revision(one.put(put("z", round.to_string())).await.unwrap().header);
        // The other proxy has heard of it only by the log.
        let failed = two.txn(if_modified_at("a", 999_999)).await.unwrap();
        assert!(!failed.succeeded);
        let empty = two.delete_range(delete("a-nothing")).await.unwrap();
        assert_eq!(empty.deleted, 0);
        for header in [failed.header, empty.header] {
            let told = revision(header);
            assert!(told >= written && told >= newest, "{told} after {written} and {newest}");
            newest = told;
        }
        // What was read at that revision is what is there at that revision.
        let then = two.range(pb::RangeRequest { revision: newest, ..everything() }).await.unwrap();
        assert_eq!(then.kvs.len(), 2);
        assert_eq!(then.kvs[1].value, round.to_string());
    }
}

/// A restored shard has the same cluster id, member id, term and fences; only its history is shorter.
#[tokio::test(flavor = "multi_thread")]
async fn trap_06_a_shard_restored_from_the_past_takes_no_write() {
    let mut topology = Topology::start_etcd(1, &[]).await;
    let kv = topology.kv("p").await;
    kv.put(put("a", "before the backup")).await.unwrap();
    let shard = &mut topology.processes[1];
    shard.stop().await.unwrap();
    let backup = tempfile::tempdir().unwrap();
    copy(&shard.data_dir(), backup.path());
    shard.restart().await.unwrap();
    let after = wait_until("the shard takes writes again", SOON, || async {
        kv.put(put("a", "after the backup")).await.ok()
    });
    let after = revision(after.await.unwrap().header);

    let shard = &mut topology.processes[1];
    shard.kill();
    std::fs::remove_dir_all(shard.data_dir()).unwrap();
    copy(backup.path(), &shard.data_dir());
    shard.restart().await.unwrap();
    let raw = shard.shard();
    // By the proxy that knew the history, and by one that starts now and knows the log.
    let late = topology.kv("late").await;
    for kv in [&kv, &late] {
        let what = "the shard is found to have lost history";
        wait_until(what, SOON, || async {
            let refused = kv.put(put("b", "must not be there")).await;
            let refused = refused.expect_err("a restored shard was written to");
            refused.message().contains("quarantined").then_some(())
        })
        .await
        .unwrap();
        let refused = kv.range(everything()).await.expect_err("a restored shard was read");
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    }
    let stored = raw.range(pb::RangeRequest { key: "b".into(), ..Default::default() }).await.unwrap();
    assert_eq!(stored.count, 0, "no write reached it, or revision {after} would have been given out twice");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The guard takes operations and bytes of the transaction that a shard sees; what clients may send is as with etcd.
#[tokio::test(flavor = "multi_thread")]
async fn trap_07_limits_are_those_of_etcd_in_spite_of_the_guard() {
    let topology = Topology::start_etcd(1, &["m"]).await;
    let kv = topology.kv("p").await;
    // Two ranges on the one shard, so that the guard has two fences.
    let keys = |count: usize| (0..count).map(|n| format!("{}{n:03}", ["a", "z"][n % 2]));
    let puts = |count| keys(count).map(|key| put_op(&key, "v")).collect::<Vec<_>>();
    let reads = |count| keys(count).map(|key| get_op(&key)).collect::<Vec<_>>();
    let compares =
        |count| keys(count).map(|key| if_modified_at(&key, 0).compare.remove(0)).collect::<Vec<_>>();
    let txn = |compares, success, failure| pb::TxnRequest { compare: compares, success, failure };
    let most = kv.txn(txn(compares(128), puts(128), reads(128))).await.unwrap();
    assert!(most.succeeded && most.responses.len() == 128);
    let else_branch = kv.txn(txn(compares(128), puts(128), reads(128))).await.unwrap();
    assert!(!else_branch.succeeded && else_branch.responses.len() == 128);
    for one_more in [txn(vec![], puts(129), vec![]), txn(compares(129), vec![], vec![])] {
        let refused = kv.txn(one_more).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: too many operations in txn request");
    }
    // etcd's limit is 1.5 MiB for the request; 12 bytes of it are not the value.
    let limit = Limits::default().request_bytes_max;
    kv.put(put("a", vec![b'v'; limit - 12])).await.unwrap();
    let refused = kv.put(put("a", vec![b'v'; limit + 1])).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: request is too large");
    // An answer may be larger than what gRPC libraries take unless they are told to.
    for key in ["b", "c", "d", "x"] {
        kv.put(put(key, vec![b'v'; limit - 12])).await.unwrap();
    }
    let all = kv.range(everything()).await.unwrap();
    assert!(all.kvs.iter().map(|kv| kv.value.len()).sum::<usize>() > 4 << 20);
}

/// A new etcd is at revision 1 and reads revision 0 as "now": its part of the line begins at its join instead.
#[tokio::test]
async fn trap_08_a_shard_without_a_number_is_read_at_its_join_and_not_as_it_is_now() {
    let topology = Topology::start(2, &["m"]).await;
    let context = topology.context("p").await;
    let kv = Kv::start(Arc::clone(&context), Arc::new(NoLeases));
    // Written, and part of no cut yet: nobody here watches the shard.
    let local = revision(topology.shards[1].put(put("z", "not part of the line")).await.unwrap().header);
    for round in 0..3 {
        let read = kv.range(everything()).await.unwrap();
        assert_eq!(read.kvs, [], "round {round}");
        let pinned = pb::RangeRequest { revision: revision(read.header), ..everything() };
        assert_eq!(kv.range(pinned).await.unwrap().kvs, []);
    }
    context.line.cover(ShardIx(1), local).await.unwrap();
    assert_eq!(kv.range(everything()).await.unwrap().count, 1);
}

/// A full etcd refuses every transaction with a put in any branch. Clients meet the smaller quota of the proxy before.
#[tokio::test(flavor = "multi_thread")]
async fn trap_13_a_shard_that_is_full_for_clients_can_be_emptied_and_drained() {
    let options = EtcdProcessOptions { quota_bytes: Some(512 << 20), ..Default::default() };
    let topology = Topology::start_etcd_with(1, &[], options).await;
    let context = Arc::into_inner(topology.context("p").await).unwrap();
    let limits = Limits { quota_bytes: 4 << 20, ..Limits::default() };
    let context = Arc::new(Context { limits, ..context });
    let kv = Kv::start(Arc::clone(&context), Arc::new(NoLeases));
    // More than the quota at once; the proxy looks at the size every two seconds.
    let written = AtomicI64::new(0);
    let write = || async {
        let key = format!("k{:04}", written.load(Ordering::SeqCst));
        let refused = kv.put(put(&key, vec![b'v'; 256 << 10])).await.err();
        written.fetch_add(i64::from(refused.is_none()), Ordering::SeqCst);
        refused
    };
    for _ in 0..32 {
        if write().await.is_some() {
            break;
        }
    }
    let refused = wait_until("clients are refused", SOON, write).await.unwrap();
    let written = written.load(Ordering::SeqCst);
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(refused.message(), "etcdserver: mvcc: database space exceeded");
    // In any branch, as etcd has it.
    let refused = kv.txn(if_modified_at("k0000", 999_999)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    // Reads and deletes go on, and so do the Txns of a move, which all put.
    assert_eq!(kv.range(pb::RangeRequest { count_only: true, ..everything() }).await.unwrap().count, written);
    for value in [fence_closed_by("m"), Bytes::from_static(FENCE_OPEN)] {
        let put = pb::PutRequest { key: fence_key(&Rid::new("b-0")), value, ..Default::default() };
        topology.shards[0].put(put).await.unwrap();
    }
    let most = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: false };
    let deleted = kv.delete_range(most).await.unwrap();
    assert_eq!(deleted.deleted, written);
    // With the history gone there is room again.
    let local = context.line.cut().v(ShardIx(0));
    topology.shards[0].compact(pb::CompactionRequest { revision: local, physical: true }).await.unwrap();
    // etcd counts what a commit freed from the next one on: the proxy sees to it that there is one.
    wait_until("clients may write again", SOON, || async { kv.put(put("new", "v")).await.ok() })
        .await
        .unwrap();
}

/// Once a write's own revision is compacted, what was before it may have no numbers any more: none are made up.
#[tokio::test]
async fn a_write_whose_answer_is_late_shows_nothing_of_what_is_compacted() {
    let topology = Topology::start(1, &[]).await;
    let gate = Gate::new(Arc::clone(&topology.shards[0]));
    topology.directory.insert("shard-0", Arc::clone(&gate) as Arc<dyn Shard>);
    let context = topology.context("p").await;
    let kv = Kv::start(Arc::clone(&context), Arc::new(NoLeases));
    kv.put(put("k", "0")).await.unwrap();
    for (value, prev_kv) in [("1", true), ("2", false)] {
        gate.set_late(true);
        let request = pb::PutRequest { prev_kv, ..put("k", value) };
        let late = tokio::spawn({
            let kv = Arc::clone(&kv);
            async move { kv.put(request).await }
        });
        let local = wait_until("the shard to run the write", SOON, || async {
            let get = pb::RangeRequest { key: "k".into(), ..Default::default() };
            let read = topology.shards[0].range(get).await.unwrap().kvs;
            read.iter().find(|kv| kv.value == value).map(|kv| kv.mod_revision)
        });
        let local = local.await.unwrap();
        context.line.cover(ShardIx(0), local).await.unwrap();
        let at = context.line.with_fold(|fold| fold.global(ShardIx(0), local)).unwrap();
        kv.compact(pb::CompactionRequest { revision: at, physical: false }).await.unwrap();
        gate.set_late(false);
        match (late.await.unwrap(), prev_kv) {
            (Ok(answer), false) => assert_eq!(revision(answer.header), at),
            (Err(status), true) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(status.message().contains("was applied"), "{status:?}");
            }
            (answer, _) => panic!("{answer:?}"),
        }
    }
}

/// What a proxy takes from a shard does not grow with its watchers, and has no previous values in it.
#[tokio::test]
async fn trap_15_a_proxy_takes_the_events_of_a_shard_once_for_all_watchers() {
    let topology = Topology::start(2, &["m"]).await;
    let gates: Vec<_> = topology.shards.iter().map(|shard| Gate::new(Arc::clone(shard))).collect();
    for (gate, name) in gates.iter().zip(["shard-0", "shard-1"]) {
        topology.directory.insert(name, Arc::clone(gate) as Arc<dyn Shard>);
    }
    let served = Served::start(topology.context("p").await, HubOptions::default()).await;
    let mut clients = Vec::new();
    for n in 0..30 {
        let mut client = served.client().await;
        let request = if n % 2 == 0 { watch_everything(0) } else { create("z", b"", 0) };
        client.create(pb::WatchCreateRequest { prev_kv: true, ..request }).await;
        clients.push(client);
    }
    for round in 0..5 {
        let local = revision(topology.shards[1].put(put("z", round.to_string())).await.unwrap().header);
        served.ctx.line.cover(ShardIx(1), local).await.unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.events(5).await.len(), 5);
    }
    for gate in &gates {
        let watched = gate.watched();
        // One over everything, and one over the topology's own keys, which are few.
        let over_all = watched.iter().filter(|watch| watch.key.as_ref() < HIDDEN);
        assert_eq!((over_all.count(), watched.len()), (1, 2), "{watched:?}");
        assert!(watched.iter().all(|watch| !watch.prev_kv), "previous values are fetched for those that ask");
    }
    served.stop().await;
}

#[tokio::test]
async fn trap_16_answers_inside_a_transaction_have_revisions_of_the_line() {
    let topology = Topology::start(2, &["m"]).await;
    let kv = topology.kv("p").await;
    // Many local revisions on the other shard, so that local and global ones are far apart.
    for round in 0..30 {
        kv.put(put("a", round.to_string())).await.unwrap();
    }
    let before = revision(kv.put(put("z", "1")).await.unwrap().header);
    let inner = pb::TxnRequest { success: vec![put_op("z", "2"), get_op("z")], ..Default::default() };
    let nested = pb::RequestOp { request: Some(pb::Request::RequestTxn(inner)) };
    let txn = pb::TxnRequest { success: vec![get_op("z"), nested], ..Default::default() };
    let answer = kv.txn(txn).await.unwrap();
    let told = revision(answer.header);
    assert!(told > before);
    let mut answers = answer.responses.into_iter().map(|op| op.response.unwrap());
    let Some(pb::Response::ResponseRange(read)) = answers.next() else { panic!("no read") };
    // What is read before the first write is of the revision before it, and says so.
    assert_eq!((read.kvs[0].mod_revision, revision(read.header)), (before, before));
    let Some(pb::Response::ResponseTxn(inner)) = answers.next() else { panic!("no transaction") };
    assert_eq!(inner.header.map_or(0, |header| header.revision), 0, "etcd leaves it empty");
    let mut answers = inner.responses.into_iter().map(|op| op.response.unwrap());
    let Some(pb::Response::ResponsePut(put)) = answers.next() else { panic!("no put") };
    assert_eq!(revision(put.header), told);
    let Some(pb::Response::ResponseRange(read)) = answers.next() else { panic!("no read") };
    assert_eq!((read.kvs[0].mod_revision, revision(read.header)), (told, told));
}

/// A proxy over one shard, where the fence of the only range is closed, as in a move that hangs.
struct Held {
    topology: Topology,
    context: Arc<Context>,
    kv: Arc<Kv>,
}

impl Held {
    async fn with(limits: Limits) -> Self {
        let topology = Topology::start(1, &[]).await;
        let context = Arc::into_inner(topology.context("p").await).unwrap();
        let context = Arc::new(Context { limits, ..context });
        let kv = Kv::start(Arc::clone(&context), Arc::new(NoLeases));
        let this = Self { topology, context, kv };
        this.set_fence(fence_closed_by("m")).await;
        this
    }

    async fn set_fence(&self, value: Bytes) {
        let put = pb::PutRequest { key: fence_key(&Rid::new("b-0")), value, ..Default::default() };
        self.topology.shards[0].put(put).await.unwrap();
    }

    fn spawn(&self, key: &str, bytes: usize) -> JoinHandle<Result<pb::PutResponse, Status>> {
        let (kv, put) = (Arc::clone(&self.kv), put(key, vec![b'v'; bytes]));
        tokio::spawn(async move { kv.put(put).await })
    }

    async fn waiting(&self, writes: i64) {
        let now = || async { (self.context.metrics.held_writes.get() == writes).then_some(()) };
        wait_until(&format!("{writes} writes wait"), SOON, now).await.unwrap();
    }
}

/// clientv3 sends a mutation again for exactly this text, so it must be true that nothing was sent.
#[track_caller]
fn is_never_sent(refused: Result<pb::PutResponse, Status>) {
    let refused = refused.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "there is no connection available"));
}

#[tokio::test]
async fn trap_17_held_writes_are_bounded_in_number_and_time() {
    let limits = Limits { held_requests_max: 3, held_max: Duration::from_secs(3), ..Limits::default() };
    let held = Held::with(limits).await;
    let writes: Vec<_> = (0..3).map(|n| held.spawn(&format!("k{n}"), 10)).collect();
    held.waiting(3).await;
    is_never_sent(held.kv.put(put("one more", "v")).await);
    for write in writes {
        is_never_sent(write.await.unwrap());
    }
    held.waiting(0).await;
    held.set_fence(Bytes::from_static(FENCE_OPEN)).await;
    assert_eq!(held.kv.range(everything()).await.unwrap().count, 0, "none was sent");
}

#[tokio::test]
async fn trap_17_held_writes_are_bounded_in_bytes() {
    let limits = Limits { held_bytes_max: 100_000, held_max: Duration::from_secs(60), ..Limits::default() };
    let held = Held::with(limits).await;
    let large = held.spawn("large", 60_000);
    held.waiting(1).await;
    is_never_sent(held.kv.put(put("also large", vec![b'v'; 60_000])).await);
    let small = held.spawn("small", 10);
    held.waiting(2).await;
    held.set_fence(Bytes::from_static(FENCE_OPEN)).await;
    large.await.unwrap().unwrap();
    small.await.unwrap().unwrap();
    let keys: Vec<_> = held.kv.range(everything()).await.unwrap().kvs.into_iter().map(|kv| kv.key).collect();
    assert_eq!(keys, ["large", "small"]);
    // What has left makes room.
    held.set_fence(fence_closed_by("m")).await;
    let again = held.spawn("again", 60_000);
    held.waiting(1).await;
    held.set_fence(Bytes::from_static(FENCE_OPEN)).await;
    again.await.unwrap().unwrap();
}
