//! Acceptance 5, requests: what etcd refuses is refused with etcd's own code and text, compared with a real etcd that is
//! asked the same; what only a topology can refuse says what to do instead; nothing is half applied.

use std::future::Future;

use bytes::Bytes;
use sharded_etcd_etcd_api::{
    etcdserverpb::{
        auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient,
        lease_client::LeaseClient, maintenance_client::MaintenanceClient, watch_client::WatchClient,
    },
    messages as pb,
};
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions};
use tonic::{Code, Request, Status, transport::Channel};

use crate::harness::{Engine, Up};

/// Every service of one endpoint.
#[derive(Clone)]
struct Api {
    kv: KvClient<Channel>,
    watch: WatchClient<Channel>,
    lease: LeaseClient<Channel>,
    cluster: ClusterClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    auth: AuthClient<Channel>,
}

impl Api {
    async fn connect(endpoint: &str) -> Self {
        let address = endpoint.trim_start_matches("http://");
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self {
            kv: KvClient::new(channel.clone()),
            watch: WatchClient::new(channel.clone()),
            lease: LeaseClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            auth: AuthClient::new(channel),
        }
    }

    /// What a refused request must not change: all keys and the revision.
    async fn state(&mut self) -> (Vec<pb::KeyValue>, i64) {
        let all = pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
        let answer = self.kv.range(all).await.unwrap().into_inner();
        (answer.kvs, answer.header.unwrap().revision)
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(key), ..Default::default() }
}

fn delete(key: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: bytes(key), ..Default::default() }
}

fn op(request: pb::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn put_op(key: &str) -> pb::RequestOp {
    op(pb::Request::RequestPut(put(key, "x")))
}

fn txn(success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { success, ..Default::default() }
}

fn exists(key: &str) -> pb::Compare {
    pb::Compare {
        result: pb::CompareResult::Greater.into(),
        target: pb::CompareTarget::Version.into(),
        key: bytes(key),
        target_union: Some(pb::TargetUnion::Version(0)),
        ..Default::default()
    }
}

/// How a request ended: a text that both sides must agree on.
async fn outcome<T: std::fmt::Debug>(answer: impl Future<Output = Result<T, Status>>) -> String {
    match answer.await {
        Ok(_) => "accepted".to_owned(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// Opens a watch and gives what its first answers say of it.
async fn watch_outcome(api: &mut Api, requests: Vec<pb::WatchCreateRequest>, answers: usize) -> String {
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    for create in requests {
        let request_union = Some(pb::RequestUnion::CreateRequest(create));
        sender.send(pb::WatchRequest { request_union }).await.unwrap();
    }
    let mut stream = match api.watch.watch(tokio_stream::wrappers::ReceiverStream::new(receiver)).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return format!("{:?}: {}", status.code(), status.message()),
    };
    let mut seen = Vec::new();
    while seen.len() < answers {
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), stream.message());
        match next.await.unwrap_or_else(|_| panic!("only {seen:?} came")) {
            Ok(Some(answer)) => seen.push(format!(
                "id {} created {} canceled {} compacted {} because {:?}",
                answer.watch_id,
                answer.created,
                answer.canceled,
                answer.compact_revision,
                answer.cancel_reason
            )),
            end => seen.push(format!("{end:?}")),
        }
    }
    seen.join("; ")
}

/// Revisions that requests speak of: both sides must be at the same one.
struct Revisions {
    compacted: i64,
    newest: i64,
}

/// Some history with a compacted part, the same on both sides.
async fn prepare(api: &mut Api) -> Revisions {
    let mut revisions = Vec::new();
    for n in 0..10 {
        let answer = api.kv.put(put("/a/k", &n.to_string())).await.unwrap().into_inner();
        revisions.push(answer.header.unwrap().revision);
    }
    api.lease.lease_grant(pb::LeaseGrantRequest { ttl: 600, id: 77 }).await.unwrap();
    let compacted = revisions[5];
    api.kv.compact(pb::CompactionRequest { revision: compacted, physical: false }).await.unwrap();
    Revisions { compacted, newest: revisions[9] }
}

/// Requests that etcd refuses, or accepts where one would not expect it, by name.
async fn of_etcd(api: &mut Api, at: &Revisions) -> Vec<(&'static str, String)> {
    let mut seen = Vec::new();
    macro_rules! ask {
        ($name:literal, $service:ident . $method:ident ($request:expr)) => {
            seen.push(($name, outcome(api.$service.$method($request)).await))
        };
    }
    let large = "x".repeat(2_000_000 - 400_000);
    ask!("put without a key", kv.put(put("", "x")));
    ask!("put of a value to be ignored", kv.put(pb::PutRequest { ignore_value: true, ..put("/a/k", "x") }));
    ask!(
        "put with a lease to be ignored",
        kv.put(pb::PutRequest { ignore_lease: true, lease: 77, ..put("/a/k", "x") })
    );
    ask!("put that keeps no value", kv.put(pb::PutRequest { ignore_value: true, ..put("/a/none", "") }));
    ask!("put that keeps no lease", kv.put(pb::PutRequest { ignore_lease: true, ..put("/a/none", "x") }));
    ask!("put with an unknown lease", kv.put(pb::PutRequest { lease: 4711, ..put("/a/k", "x") }));
    ask!("put that is too large", kv.put(put("/a/k", &large)));
    ask!("range without a key", kv.range(get("")));
    ask!("range in the future", kv.range(pb::RangeRequest { revision: at.newest + 1000, ..get("/a/k") }));
    ask!(
        "range at a compacted revision",
        kv.range(pb::RangeRequest { revision: at.compacted - 1, ..get("/a/k") })
    );
    ask!("range at a negative revision", kv.range(pb::RangeRequest { revision: -5, ..get("/a/k") }));
    ask!("range with an unknown order", kv.range(pb::RangeRequest { sort_order: 9, ..get("/a/k") }));
    ask!(
        "range with an unknown sort target",
        kv.range(pb::RangeRequest { sort_order: 1, sort_target: 9, ..get("/a/k") })
    );
    ask!(
        "range that ends before it starts",
        kv.range(pb::RangeRequest { range_end: bytes("/a/a"), ..get("/a/k") })
    );
    ask!("range with a negative limit", kv.range(pb::RangeRequest { limit: -1, ..get("/a/k") }));
    ask!("delete without a key", kv.delete_range(delete("")));
    ask!(
        "delete that ends before it starts",
        kv.delete_range(pb::DeleteRangeRequest { range_end: bytes("/a/a"), ..delete("/a/k") })
    );
    ask!(
        "compact in the future",
        kv.compact(pb::CompactionRequest { revision: at.newest + 1000, physical: false })
    );
    ask!("compact again", kv.compact(pb::CompactionRequest { revision: at.compacted, physical: false }));
    ask!("compact below", kv.compact(pb::CompactionRequest { revision: at.compacted - 2, physical: false }));
    ask!(
        "compact at a negative revision",
        kv.compact(pb::CompactionRequest { revision: -1, physical: false })
    );

    ask!("txn with a key twice", kv.txn(txn(vec![put_op("/a/k"), put_op("/a/k")])));
    let overlapping = op(pb::Request::RequestDeleteRange(pb::DeleteRangeRequest {
        range_end: bytes("/a/z"),
        ..delete("/a/a")
    }));
    ask!("txn that puts what it deletes", kv.txn(txn(vec![put_op("/a/k"), overlapping])));
    let nested = op(pb::Request::RequestTxn(txn(vec![put_op("/a/k")])));
    ask!("txn with a key twice, nested", kv.txn(txn(vec![put_op("/a/k"), nested])));
    ask!("txn with too many operations", kv.txn(txn((0..129).map(|n| put_op(&format!("/a/{n}"))).collect())));
    ask!(
        "txn with too many compares",
        kv.txn(pb::TxnRequest { compare: vec![exists("/a/k"); 129], ..txn(vec![]) })
    );
    ask!("txn with a put without a key", kv.txn(txn(vec![put_op("")])));
    ask!(
        "txn with a compare without a key",
        kv.txn(pb::TxnRequest { compare: vec![exists("")], ..txn(vec![put_op("/a/k")]) })
    );
    ask!(
        "txn with an unknown lease",
        kv.txn(txn(vec![op(pb::Request::RequestPut(pb::PutRequest { lease: 4711, ..put("/a/k", "x") }))]))
    );
    let unknown = op(pb::Request::RequestPut(pb::PutRequest { lease: 4711, ..put("/a/k", "x") }));
    ask!(
        "txn with an unknown lease on the other branch",
        kv.txn(pb::TxnRequest { compare: vec![exists("/a/none")], success: vec![unknown], failure: vec![] })
    );
    let future =
        op(pb::Request::RequestRange(pb::RangeRequest { revision: at.newest + 1000, ..get("/a/k") }));
    ask!("txn that reads the future", kv.txn(txn(vec![put_op("/a/other"), future])));
    let past = op(pb::Request::RequestRange(pb::RangeRequest { revision: at.compacted - 1, ..get("/a/k") }));
    ask!("txn that reads what is compacted", kv.txn(txn(vec![put_op("/a/other"), past])));
    ask!("txn that is too large", kv.txn(txn(vec![op(pb::Request::RequestPut(put("/a/k", &large)))])));

    ask!("grant of a lease that is there", lease.lease_grant(pb::LeaseGrantRequest { ttl: 10, id: 77 }));
    ask!("grant for too long", lease.lease_grant(pb::LeaseGrantRequest { ttl: 10_000_000_000, id: 0 }));
    ask!("revoke of an unknown lease", lease.lease_revoke(pb::LeaseRevokeRequest { id: 4711 }));
    let left =
        api.lease.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 4711, keys: true }).await.unwrap();
    seen.push(("time to live of an unknown lease", left.into_inner().ttl.to_string()));
    let beats = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: 4711 }]);
    let beat =
        api.lease.lease_keep_alive(Request::new(beats)).await.unwrap().into_inner().message().await.unwrap();
    seen.push(("keep-alive of an unknown lease", beat.unwrap().ttl.to_string()));

    let watch = |key: &str| pb::WatchCreateRequest { key: bytes(key), ..Default::default() };
    let compacted = pb::WatchCreateRequest { start_revision: at.compacted - 1, ..watch("/a/k") };
    seen.push(("watch of what is compacted", watch_outcome(api, vec![compacted], 2).await));
    let backwards = pb::WatchCreateRequest { range_end: bytes("/a/a"), ..watch("/a/k") };
    seen.push(("watch that ends before it starts", watch_outcome(api, vec![backwards], 1).await));
    let twice = pb::WatchCreateRequest { watch_id: 5, ..watch("/a/k") };
    seen.push(("watch with an id twice", watch_outcome(api, vec![twice.clone(), twice], 2).await));
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn are_refused_as_etcd_does() {
    let etcd = EtcdProcess::start(EtcdProcessOptions {
        max_txn_ops: 128,
        max_request_bytes: 3 << 19,
        ..Default::default()
    })
    .await
    .unwrap();
    let up = Up::file(Engine::Embedded, "shards: 3\nkeyspace: {presplit: [/b/, /c/]}").await;
    let (mut real, mut ours) = (Api::connect(&etcd.endpoint()).await, Api::connect(&up.endpoint()).await);
    let (real_at, our_at) = (prepare(&mut real).await, prepare(&mut ours).await);
    assert_eq!(
        (real_at.newest, real_at.compacted),
        (our_at.newest, our_at.compacted),
        "revisions are as etcd's"
    );
    let (real_before, ours_before) = (real.state().await, ours.state().await);
    let expected = of_etcd(&mut real, &real_at).await;
    let found = of_etcd(&mut ours, &our_at).await;
    assert!(expected.len() >= 40, "{}", expected.len());
    let differing: Vec<_> =
        expected.iter().zip(&found).filter(|(expected, found)| expected != found).collect();
    assert!(differing.is_empty(), "etcd's answers and ours:\n{differing:#?}");
    let after = ours.state().await;
    assert_eq!(real.state().await.0, real_before.0, "etcd applied one of them: the list above is wrong");
    assert_eq!(after, ours_before, "nothing is half applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_topologies_say_what_to_do() {
    let up = Up::file(Engine::Embedded, "shards: 3\nkeyspace: {presplit: [/b/, /c/]}").await;
    let mut api = Api::connect(&up.endpoint()).await;
    api.kv.put(put("/a/k", "v")).await.unwrap();
    let before = api.state().await;
    let mut refused: Vec<(&str, Status, &[&str])> = Vec::new();
    macro_rules! refuse {
        ($name:literal, $service:ident . $method:ident ($request:expr), $expected:expr) => {
            match api.$service.$method($request).await {
                Ok(answer) => panic!("{}: {:?}", $name, answer.into_inner()),
                Err(status) => refused.push(($name, status, $expected)),
            }
        };
    }
    let both = txn(vec![put_op("/a/k"), put_op("/c/k")]);
    refuse!("txn over shards", kv.txn(both), &["/a/k", "/c/k", "shard-0", "shard-2"]);
    let compared = pb::TxnRequest { compare: vec![exists("/a/k")], ..txn(vec![put_op("/b/k")]) };
    refuse!("compare on another shard", kv.txn(compared), &["/a/k", "/b/k", "shard-0", "shard-1"]);
    let hidden = Bytes::from_static(b"\xff\xff\xff\xffC");
    let hide = pb::PutRequest { key: hidden.clone(), value: bytes("x"), ..Default::default() };
    refuse!("put into the hidden space", kv.put(hide.clone()), &["\\xff\\xff\\xff\\xff"]);
    refuse!(
        "the same in a txn",
        kv.txn(txn(vec![op(pb::Request::RequestPut(hide))])),
        &["\\xff\\xff\\xff\\xff"]
    );
    refuse!("member add", cluster.member_add(pb::MemberAddRequest::default()), &["spec."]);
    refuse!("member remove", cluster.member_remove(pb::MemberRemoveRequest::default()), &["spec."]);
    refuse!("member update", cluster.member_update(pb::MemberUpdateRequest::default()), &["spec."]);
    refuse!("member promote", cluster.member_promote(pb::MemberPromoteRequest::default()), &["spec."]);
    refuse!("move leader", maintenance.move_leader(pb::MoveLeaderRequest::default()), &[]);
    refuse!("downgrade", maintenance.downgrade(pb::DowngradeRequest::default()), &[]);
    refuse!("hash", maintenance.hash(pb::HashRequest::default()), &[]);
    refuse!("auth enable", auth.auth_enable(pb::AuthEnableRequest::default()), &[]);
    refuse!("user add", auth.user_add(pb::AuthUserAddRequest::default()), &[]);
    refuse!("authenticate", auth.authenticate(pb::AuthenticateRequest::default()), &[]);
    for (name, status, expected) in &refused {
        assert_ne!(status.code(), Code::Unavailable, "{name}: clients would try again: {status:?}");
        assert!(status.message().len() > 20, "{name} says nothing: {status:?}");
        for part in *expected {
            assert!(status.message().contains(part), "{name}: {part:?} is missing in {:?}", status.message());
        }
    }
    let read = pb::RangeRequest { key: hidden.clone(), range_end: vec![0].into(), ..Default::default() };
    assert_eq!(
        api.kv.range(read).await.unwrap().into_inner().count,
        0,
        "the hidden space is empty to clients"
    );
    let delete = pb::DeleteRangeRequest { key: hidden, range_end: vec![0].into(), ..Default::default() };
    assert_eq!(api.kv.delete_range(delete).await.unwrap().into_inner().deleted, 0);
    assert_eq!(api.state().await, before, "nothing is half applied");
}
