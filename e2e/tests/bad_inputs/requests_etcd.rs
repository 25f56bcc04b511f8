//! Requests that a real etcd answers too: the same request goes to both, and code and text are the same.

use sharded_etcd_e2e::Up;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions};

use crate::{
    api::{Api, Ask, bytes, delete, exists, get, get_all, get_op, nested, op, put, put_op, txn},
    folder, resource, text,
};

const NO_KEY: &str = "InvalidArgument: etcdserver: key is not provided";
const NO_LEASE: &str = "NotFound: etcdserver: requested lease not found";
const NOT_FOUND: &str = "InvalidArgument: etcdserver: key not found";
const VALUE: &str = "InvalidArgument: etcdserver: value is provided";
const LEASE: &str = "InvalidArgument: etcdserver: lease is provided";
const SORT: &str = "InvalidArgument: etcdserver: invalid sort option";
const COMPACTED: &str = "OutOfRange: etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "OutOfRange: etcdserver: mvcc: required revision is a future revision";
const TWICE: &str = "InvalidArgument: etcdserver: duplicate key given in txn request";
const MANY: &str = "InvalidArgument: etcdserver: too many operations in txn request";
const LARGE: &str = "InvalidArgument: etcdserver: request is too large";

/// A lease that both sides have.
const LEASE_ID: i64 = 77;
/// One that neither has.
const UNKNOWN: i64 = 4711;
/// A value above the limit of a request (1.5 MiB) and below that of a message (2 MiB).
const LARGE_BYTES: usize = 1_600_000;

/// Revisions that requests speak of; both sides are at the same ones.
#[derive(Debug, PartialEq, Eq)]
struct Revisions {
    compacted: i64,
    newest: i64,
}

/// Some history with a compacted part.
async fn prepare(api: &mut Api) -> Revisions {
    let mut revisions = Vec::new();
    for n in 0..10 {
        let answer = api.kv.put(put("/a/k", &n.to_string())).await.unwrap().into_inner();
        revisions.push(answer.header.unwrap().revision);
    }
    api.lease.lease_grant(pb::LeaseGrantRequest { ttl: 600, id: LEASE_ID }).await.unwrap();
    api.kv.compact(pb::CompactionRequest { revision: revisions[5], physical: true }).await.unwrap();
    Revisions { compacted: revisions[5], newest: revisions[9] }
}

type Case = (&'static str, Ask, &'static str);

fn ranges(at: &Revisions) -> Vec<Case> {
    let past = |request: pb::RangeRequest| pb::RangeRequest { revision: at.compacted - 1, ..request };
    let future = |request: pb::RangeRequest| pb::RangeRequest { revision: at.newest + 1000, ..request };
    let range = Ask::Range;
    vec![
        ("range without a key", range(get("")), NO_KEY),
        (
            "range without a key to the end",
            range(pb::RangeRequest { range_end: vec![0].into(), ..get("") }),
            NO_KEY,
        ),
        ("range in the future", range(future(get("/a/k"))), FUTURE),
        ("range of all in the future", range(future(get_all())), FUTURE),
        (
            "range at the largest revision",
            range(pb::RangeRequest { revision: i64::MAX, ..get_all() }),
            FUTURE,
        ),
        (
            "serializable range in the future",
            range(pb::RangeRequest { serializable: true, ..future(get("/a/k")) }),
            FUTURE,
        ),
        ("range at a compacted revision", range(past(get("/a/k"))), COMPACTED),
        ("range of all at a compacted revision", range(past(get_all())), COMPACTED),
        (
            "count at a compacted revision",
            range(pb::RangeRequest { count_only: true, ..past(get_all()) }),
            COMPACTED,
        ),
        (
            "range at a negative revision",
            range(pb::RangeRequest { revision: -5, ..get("/a/k") }),
            "ok 1 keys",
        ),
        ("unknown sort order", range(pb::RangeRequest { sort_order: 9, ..get("/a/k") }), SORT),
        ("negative sort order", range(pb::RangeRequest { sort_order: -1, ..get_all() }), SORT),
        ("unknown sort target", range(pb::RangeRequest { sort_target: 9, ..get_all() }), SORT),
        (
            "range that ends before it starts",
            range(pb::RangeRequest { range_end: bytes("/a/a"), ..get("/a/k") }),
            "ok 0 keys",
        ),
        ("negative limit", range(pb::RangeRequest { limit: -1, ..get_all() }), "ok 1 keys"),
        ("stream without a key", Ask::RangeStream(get("")), NO_KEY),
        ("stream in the future", Ask::RangeStream(future(get_all())), FUTURE),
        (
            "stream in another order",
            Ask::RangeStream(pb::RangeRequest { sort_order: 2, sort_target: 4, ..get_all() }),
            "Unimplemented: RangeStream does not support custom sort orders",
        ),
        (
            "stream with a filter",
            Ask::RangeStream(pb::RangeRequest { min_mod_revision: 2, ..get_all() }),
            "Unimplemented: RangeStream does not support revision filters",
        ),
    ]
}

fn writes(at: &Revisions) -> Vec<Case> {
    let large = "x".repeat(LARGE_BYTES);
    let keep_value = |request| pb::PutRequest { ignore_value: true, ..request };
    let keep_lease = |request| pb::PutRequest { ignore_lease: true, ..request };
    vec![
        ("put without a key", Ask::Put(put("", "x")), NO_KEY),
        ("put of a value to be ignored", Ask::Put(keep_value(put("/a/k", "x"))), VALUE),
        (
            "put with a lease to be ignored",
            Ask::Put(keep_lease(pb::PutRequest { lease: LEASE_ID, ..put("/a/k", "x") })),
            LEASE,
        ),
        ("put that keeps no value", Ask::Put(keep_value(put("/a/none", ""))), NOT_FOUND),
        ("put that keeps no lease", Ask::Put(keep_lease(put("/b/none", "x"))), NOT_FOUND),
        ("put that keeps nothing", Ask::Put(keep_value(keep_lease(put("/c/none", "")))), NOT_FOUND),
        (
            "put with an unknown lease",
            Ask::Put(pb::PutRequest { lease: UNKNOWN, ..put("/a/k", "x") }),
            NO_LEASE,
        ),
        ("put with a negative lease", Ask::Put(pb::PutRequest { lease: -1, ..put("/b/k", "x") }), NO_LEASE),
        ("put that is too large", Ask::Put(put("/a/k", &large)), LARGE),
        ("put with a key that is too large", Ask::Put(put(&large, "x")), LARGE),
        ("delete without a key", Ask::Delete(delete("")), NO_KEY),
        (
            "delete that ends before it starts",
            Ask::Delete(pb::DeleteRangeRequest { range_end: bytes("/a/a"), ..delete("/a/k") }),
            "ok 0 deleted",
        ),
        ("compact at 0", Ask::Compact(0), COMPACTED),
        ("compact at a negative revision", Ask::Compact(-1), COMPACTED),
        ("compact in the future", Ask::Compact(at.newest + 1000), FUTURE),
        ("compact one above the newest", Ask::Compact(at.newest + 1), FUTURE),
        ("compact again", Ask::Compact(at.compacted), COMPACTED),
        ("compact below", Ask::Compact(at.compacted - 2), COMPACTED),
    ]
}

fn txns(at: &Revisions) -> Vec<Case> {
    let large = "x".repeat(LARGE_BYTES);
    let overlapping = op(pb::Request::RequestDeleteRange(pb::DeleteRangeRequest {
        range_end: bytes("/a/z"),
        ..delete("/a/a")
    }));
    let inner = op(pb::Request::RequestTxn(txn(vec![put_op("/a/k")])));
    let unknown = op(pb::Request::RequestPut(pb::PutRequest { lease: UNKNOWN, ..put("/a/k", "x") }));
    let reading =
        |revision| txn(vec![put_op("/a/other"), get_op(pb::RangeRequest { revision, ..get("/a/k") })]);
    let keeping = op(pb::Request::RequestPut(pb::PutRequest { ignore_value: true, ..put("/a/none", "") }));
    let provided = op(pb::Request::RequestPut(pb::PutRequest { ignore_value: true, ..put("/a/k", "x") }));
    let many = |n: usize| (0..n).map(|i| get_op(get(&format!("/a/{i}")))).collect::<Vec<_>>();
    let compared = |compare| pb::TxnRequest { compare: vec![compare], ..txn(vec![]) };
    vec![
        ("txn with a key twice", Ask::Txn(txn(vec![put_op("/a/k"), put_op("/a/k")])), TWICE),
        ("txn that puts what it deletes", Ask::Txn(txn(vec![put_op("/a/k"), overlapping])), TWICE),
        ("txn with a key twice, nested", Ask::Txn(txn(vec![put_op("/a/k"), inner])), TWICE),
        (
            "txn with a key twice on the other branch",
            Ask::Txn(pb::TxnRequest { failure: vec![put_op("/b/k"), put_op("/b/k")], ..txn(vec![]) }),
            TWICE,
        ),
        ("txn with an empty operation", Ask::Txn(txn(vec![pb::RequestOp::default()])), NOT_FOUND),
        ("txn with too many operations", Ask::Txn(txn(many(129))), MANY),
        ("txn with too many nested operations", Ask::Txn(nested(1, many(128))), MANY),
        (
            "txn with too many compares",
            Ask::Txn(pb::TxnRequest { compare: vec![exists("/a/k"); 129], ..txn(vec![]) }),
            MANY,
        ),
        ("txn with a put without a key", Ask::Txn(txn(vec![put_op("")])), NO_KEY),
        ("txn with a read without a key", Ask::Txn(txn(vec![put_op("/a/k"), get_op(get(""))])), NO_KEY),
        ("txn with a put without a key, nested", Ask::Txn(nested(3, vec![put_op("")])), NO_KEY),
        ("txn with a compare without a key", Ask::Txn(compared(exists(""))), NO_KEY),
        (
            "txn with a read in no order",
            Ask::Txn(txn(vec![get_op(pb::RangeRequest { sort_order: 9, ..get("/a/k") })])),
            SORT,
        ),
        ("txn with a value to be ignored", Ask::Txn(txn(vec![provided])), VALUE),
        ("txn that keeps no value", Ask::Txn(txn(vec![put_op("/a/other"), keeping])), NOT_FOUND),
        ("txn with an unknown lease", Ask::Txn(txn(vec![put_op("/a/other"), unknown])), NO_LEASE),
        ("txn that reads the future", Ask::Txn(reading(at.newest + 1000)), FUTURE),
        ("txn that reads what is compacted", Ask::Txn(reading(at.compacted - 1)), COMPACTED),
        (
            "txn that is too large",
            Ask::Txn(txn(vec![op(pb::Request::RequestPut(put("/a/k", &large)))])),
            LARGE,
        ),
        (
            "compare of an unknown kind",
            Ask::Txn(compared(pb::Compare { result: 9, ..exists("/a/k") })),
            "ok succeeded true",
        ),
        (
            "compare of an unknown target",
            Ask::Txn(compared(pb::Compare { target: 9, ..exists("/a/k") })),
            "ok succeeded false",
        ),
        (
            "compare with nothing",
            Ask::Txn(compared(pb::Compare { target_union: None, ..exists("/a/k") })),
            "ok succeeded true",
        ),
    ]
}

fn leases() -> Vec<Case> {
    vec![
        (
            "grant of a lease that is there",
            Ask::Grant { id: LEASE_ID, ttl: 10 },
            "FailedPrecondition: etcdserver: lease already exists",
        ),
        (
            "grant for too long",
            Ask::Grant { id: 0, ttl: 9_000_000_001 },
            "OutOfRange: etcdserver: too large lease TTL",
        ),
        (
            "grant for the longest time there is",
            Ask::Grant { id: 0, ttl: i64::MAX },
            "OutOfRange: etcdserver: too large lease TTL",
        ),
        ("grant for a negative time", Ask::Grant { id: 78, ttl: -1 }, "ok ttl raised true"),
        ("revoke of it", Ask::Revoke(78), "ok"),
        ("grant for no time", Ask::Grant { id: 79, ttl: 0 }, "ok ttl raised true"),
        ("revoke of that one", Ask::Revoke(79), "ok"),
        ("revoke of an unknown lease", Ask::Revoke(UNKNOWN), NO_LEASE),
        ("revoke of no lease", Ask::Revoke(0), NO_LEASE),
        ("revoke of a negative lease", Ask::Revoke(-1), NO_LEASE),
        ("revoke again", Ask::Revoke(78), NO_LEASE),
        ("time to live of an unknown lease", Ask::TimeToLive(UNKNOWN), "ok id 4711 ttl -1 granted 0 keys 0"),
        ("time to live of no lease", Ask::TimeToLive(0), "ok id 0 ttl -1 granted 0 keys 0"),
        ("keep-alive of an unknown lease", Ask::KeepAlive(UNKNOWN), "ok id 4711 ttl 0"),
        ("keep-alive of no lease", Ask::KeepAlive(0), "ok id 0 ttl 0"),
        (
            "password without authentication",
            Ask::Authenticate(pb::AuthenticateRequest { name: "root".into(), password: "x".into() }),
            "FailedPrecondition: etcdserver: authentication is not enabled",
        ),
    ]
}

fn watches(at: &Revisions) -> Vec<Case> {
    let watch = |key: &str| pb::WatchCreateRequest { key: bytes(key), ..Default::default() };
    let create = pb::RequestUnion::CreateRequest;
    let twice = create(pb::WatchCreateRequest { watch_id: 5, ..watch("/a/k") });
    let empty = "id -1 created canceled (mvcc: watcher range is empty)";
    vec![
        (
            "watch of what is compacted",
            Ask::Watch(
                vec![create(pb::WatchCreateRequest { start_revision: at.compacted - 1, ..watch("/a/k") })],
                2,
            ),
            "id 0 created; id 0 canceled compacted",
        ),
        (
            "watch of all that is compacted",
            Ask::Watch(
                vec![create(pb::WatchCreateRequest {
                    start_revision: 1,
                    range_end: vec![0].into(),
                    ..watch("")
                })],
                2,
            ),
            "id 0 created; id 0 canceled compacted",
        ),
        (
            "watch from a negative revision",
            Ask::Watch(vec![create(pb::WatchCreateRequest { start_revision: -1, ..watch("/a/k") })], 1),
            "id -1 created canceled (etcdserver: mvcc: required revision has been compacted)",
        ),
        (
            "watch that ends before it starts",
            Ask::Watch(vec![create(pb::WatchCreateRequest { range_end: bytes("/a/a"), ..watch("/a/k") })], 1),
            empty,
        ),
        (
            "watch that ends where it starts",
            Ask::Watch(vec![create(pb::WatchCreateRequest { range_end: bytes("/a/k"), ..watch("/a/k") })], 1),
            empty,
        ),
        (
            "watch with an id twice",
            Ask::Watch(vec![twice.clone(), twice], 2),
            "id 5 created; id -1 created canceled (mvcc: duplicate watch ID provided on the WatchStream)",
        ),
        (
            "a bad watch beside a good one",
            Ask::Watch(
                vec![
                    create(pb::WatchCreateRequest { range_end: bytes("/a/a"), ..watch("/a/k") }),
                    create(watch("/a/k")),
                ],
                2,
            ),
            "id -1 created canceled (mvcc: watcher range is empty); id 0 created",
        ),
        (
            "cancel of an unknown watch",
            Ask::Watch(
                vec![
                    pb::RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 99 }),
                    create(watch("/a/k")),
                ],
                1,
            ),
            "id 0 created",
        ),
        (
            "watch with an unknown filter",
            Ask::Watch(vec![create(pb::WatchCreateRequest { filters: vec![9, -1], ..watch("/a/k") })], 1),
            "id 0 created",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn are_answered_as_etcd_does() {
    let options = EtcdProcessOptions { max_txn_ops: 128, max_request_bytes: 3 << 19, ..Default::default() };
    let etcd = EtcdProcess::start(options).await.unwrap();
    let folder = folder();
    let file = folder.path().join("demo.yaml");
    std::fs::write(&file, resource("shards: 3\nkeyspace: {presplit: [/b/, /c/]}")).unwrap();
    let mut up = Up::start(&folder.path().join("data"), &["-f", text(&file)]).await.unwrap();
    let (mut real, mut ours) = (Api::connect(&etcd.endpoint()).await, Api::connect(&up.endpoint).await);
    let at = prepare(&mut real).await;
    assert_eq!(prepare(&mut ours).await, at, "revisions are as etcd's");
    let before = (real.state().await, ours.state().await);

    let cases: Vec<_> = [ranges(&at), writes(&at), txns(&at), leases(), watches(&at)].concat();
    let mut wrong = Vec::new();
    for (name, ask, expected) in cases {
        let (theirs, answer) = (real.ask(ask.clone()).await, ours.ask(ask).await);
        if answer != expected || theirs != expected {
            wrong.push(format!("{name}\n  expected: {expected}\n  etcd:     {theirs}\n  ours:     {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(real.state().await, before.0, "etcd applied one of them: the tables are wrong");
    assert_eq!(ours.state().await, before.1, "nothing is half applied");
    ours.kv.put(put("/c/after", "v")).await.unwrap();
    assert_eq!(ours.ask(Ask::Range(get("/c/after"))).await, "ok 1 keys");
    up.process.check_running().unwrap();
    assert!(!up.process.log().contains("panicked"), "{}", up.process.log());
}
