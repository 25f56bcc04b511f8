//! Requests that only a topology refuses, as one etcd cannot have them or would do something that makes no sense here:
//! the message says what to do instead.

use bytes::Bytes;
use sharded_etcd_e2e::Up;
use sharded_etcd_etcd_api::messages as pb;
use tonic::{Code, Status};

use crate::{
    api::{Api, Ask, bytes, exists, get, get_op, nested, op, put, put_op, refusal, txn},
    folder, resource, text,
};

/// Start of the space that belongs to the topology.
const HIDDEN: &[u8] = b"\xff\xff\xff\xff";

fn hidden_put() -> pb::PutRequest {
    pb::PutRequest { key: [HIDDEN, b"C"].concat().into(), value: bytes("x"), ..Default::default() }
}

/// Requests to the key-value service: name, request, code, and what its message has to say.
fn kv_cases() -> Vec<(&'static str, Ask, Code, &'static [&'static str])> {
    let over = Code::FailedPrecondition;
    let compared = pb::TxnRequest { compare: vec![exists("/a/k")], ..txn(vec![put_op("/b/k")]) };
    let otherwise = pb::TxnRequest {
        compare: vec![exists("/a/k")],
        success: vec![put_op("/a/k")],
        failure: vec![put_op("/c/k")],
    };
    let read = txn(vec![put_op("/a/k"), get_op(get("/c/k"))]);
    let everything =
        pb::DeleteRangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let deleted = txn(vec![put_op("/a/k"), op(pb::Request::RequestDeleteRange(everything))]);
    let hidden_op = op(pb::Request::RequestPut(hidden_put()));
    vec![
        (
            "txn over shards",
            Ask::Txn(txn(vec![put_op("/a/k"), put_op("/c/k")])),
            over,
            &["/a/k", "/c/k", "shard-0", "shard-2"],
        ),
        ("compare on another shard", Ask::Txn(compared), over, &["/a/k", "/b/k", "shard-0", "shard-1"]),
        ("branch on another shard", Ask::Txn(otherwise), over, &["/a/k", "/c/k", "shard-0", "shard-2"]),
        ("read on another shard", Ask::Txn(read), over, &["/a/k", "/c/k", "shard-0", "shard-2"]),
        (
            "txn over shards, nested",
            Ask::Txn(nested(3, vec![put_op("/a/k"), put_op("/b/k")])),
            over,
            &["/a/k", "/b/k", "shard-0", "shard-1"],
        ),
        (
            "txn that deletes all",
            Ask::Txn(deleted),
            Code::FailedPrecondition,
            &["spans shards", "shard-0", "shard-1"],
        ),
        (
            "put into the hidden space",
            Ask::Put(hidden_put()),
            Code::InvalidArgument,
            &["\\xff\\xff\\xff\\xff", "reserved", "choose a smaller key"],
        ),
        (
            "put at its start",
            Ask::Put(pb::PutRequest { key: Bytes::from_static(HIDDEN), ..Default::default() }),
            Code::InvalidArgument,
            &["reserved"],
        ),
        ("the same in a txn", Ask::Txn(txn(vec![hidden_op.clone()])), Code::InvalidArgument, &["reserved"]),
        ("the same, nested", Ask::Txn(nested(2, vec![hidden_op])), Code::InvalidArgument, &["reserved"]),
    ]
}

/// Calls to services that are about one etcd: name, and how it ended.
async fn service_cases(api: &mut Api) -> Vec<(&'static str, Result<(), Status>, &'static [&'static str])> {
    let mut ended: Vec<(&'static str, Result<(), Status>, &'static [&'static str])> = Vec::new();
    macro_rules! call {
        ($service:ident . $method:ident ($request:ident), $expected:expr) => {
            let answer = api.$service.$method(pb::$request::default()).await;
            ended.push((stringify!($method), answer.map(drop), $expected));
        };
    }
    call!(cluster.member_add(MemberAddRequest), &["spec.proxy.replicas", "spec.shards"]);
    call!(cluster.member_remove(MemberRemoveRequest), &["spec.proxy.replicas", "spec.shards"]);
    call!(cluster.member_update(MemberUpdateRequest), &["spec.proxy.replicas"]);
    call!(cluster.member_promote(MemberPromoteRequest), &["spec.proxy.replicas"]);
    call!(maintenance.move_leader(MoveLeaderRequest), &["on the shard's own endpoint"]);
    call!(maintenance.downgrade(DowngradeRequest), &["the spec"]);
    call!(maintenance.hash(HashRequest), &["own endpoints"]);
    call!(maintenance.hash_kv(HashKvRequest), &["own endpoints"]);
    call!(maintenance.snapshot(SnapshotRequest), &["etcdctl snapshot save"]);
    call!(auth.auth_enable(AuthEnableRequest), &["NetworkPolicy"]);
    call!(auth.user_add(AuthUserAddRequest), &["NetworkPolicy"]);
    call!(auth.user_list(AuthUserListRequest), &["NetworkPolicy"]);
    call!(auth.role_add(AuthRoleAddRequest), &["NetworkPolicy"]);
    call!(auth.role_grant_permission(AuthRoleGrantPermissionRequest), &["NetworkPolicy"]);
    let activate = pb::AlarmRequest { action: 1, ..Default::default() };
    let answer = api.maintenance.alarm(activate).await.map(drop);
    ended.push(("activate an alarm", answer, &["shard's own endpoint"]));
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn say_what_to_do_instead() {
    let folder = folder();
    let file = folder.path().join("demo.yaml");
    std::fs::write(&file, resource("shards: 3\nkeyspace: {presplit: [/b/, /c/]}")).unwrap();
    let mut up = Up::start(&folder.path().join("data"), &["-f", text(&file)]).await.unwrap();
    let mut api = Api::connect(&up.endpoint).await;
    api.kv.put(put("/a/k", "v")).await.unwrap();
    api.kv.put(put("/c/k", "v")).await.unwrap();
    let before = api.state().await;

    let mut wrong = Vec::new();
    for (name, ask, code, parts) in kv_cases() {
        let answer = api.ask(ask).await;
        if !answer.starts_with(&format!("{code:?}: ")) {
            wrong.push(format!("{name}: {code:?} expected: {answer}"));
        }
        let missing = parts.iter().filter(|part| !answer.contains(*part));
        wrong.extend(missing.map(|part| format!("{name}: {part:?} is not in: {answer}")));
    }
    for (name, ended, parts) in service_cases(&mut api).await {
        let Err(status) = ended else {
            wrong.push(format!("{name}: accepted"));
            continue;
        };
        if !matches!(status.code(), Code::Unimplemented | Code::FailedPrecondition) {
            wrong.push(format!("{name}: clients may try it again: {}", refusal(&status)));
        }
        let missing = parts.iter().filter(|part| !status.message().contains(*part));
        wrong.extend(missing.map(|part| format!("{name}: {part:?} is not in: {}", refusal(&status))));
    }
    // Messages that are no request any more: refused before they are looked at, on a connection that goes on.
    let huge = api.ask(Ask::Put(put("/a/k", &"x".repeat(5 << 20)))).await;
    if !huge.contains("larger than max") && !huge.contains("too large") {
        wrong.push(format!("a message of 5 MiB: {huge}"));
    }
    let deep = api.ask(Ask::Txn(nested(3000, vec![put_op("/a/k")]))).await;
    if deep.starts_with("ok") || deep.starts_with("Unavailable") {
        wrong.push(format!("3000 transactions in each other: {deep}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // What is hidden is not there: neither seen nor deleted.
    let key = Bytes::from_static(HIDDEN);
    let read = pb::RangeRequest { key: key.clone(), range_end: vec![0].into(), ..Default::default() };
    assert_eq!(api.ask(Ask::Range(read)).await, "ok 0 keys");
    let delete = pb::DeleteRangeRequest { key, range_end: vec![0].into(), ..Default::default() };
    assert_eq!(api.ask(Ask::Delete(delete)).await, "ok 0 deleted");
    assert_eq!(api.state().await, before, "nothing is half applied");
    api.kv.put(put("/b/after", "v")).await.unwrap();
    up.process.check_running().unwrap();
    assert!(!up.process.log().contains("panicked"), "{}", up.process.log());
}
