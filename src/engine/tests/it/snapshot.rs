//! Snapshots: from an engine to an etcd and back, with etcd's own tools.

use std::path::Path;

use futures::StreamExt;
use sharded_etcd_engine::{
    Engine,
    snapshot::{RestoreOptions, Restored, restore},
};
use sharded_etcd_etcd_api::{etcdserverpb::maintenance_client::MaintenanceClient, messages as pb};
use sharded_etcd_shard::Shard;
use sharded_etcd_testkit::{
    EtcdProcess, EtcdProcessOptions, etcdctl,
    tools::{Tools, program},
};
use tokio::process::Command;

use crate::{
    serve::{Server, serve_fixture, server},
    support::*,
};

async fn save(endpoint: &str, path: &Path) {
    let saved = etcdctl(endpoint, &["snapshot", "save", path.to_str().unwrap()]).await.unwrap();
    saved.success().unwrap();
}

async fn etcdutl(arguments: &[&str]) -> String {
    let mut command = Command::new(program(Tools::Etcd, "etcdutl").await.unwrap());
    let output = command.args(arguments).kill_on_drop(true).output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "etcdutl {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn options(dir: &Path) -> RestoreOptions {
    RestoreOptions {
        data_dir: dir.to_owned(),
        name: "restored".to_owned(),
        skip_hash_check: false,
        bump_revision: 0,
    }
}

/// An etcd on a data directory that is there.
async fn etcd_on(dir: &Path) -> EtcdProcess {
    let arguments = vec![format!("--data-dir={}", dir.display())];
    EtcdProcess::start(EtcdProcessOptions { arguments, ..Default::default() }).await.unwrap()
}

/// Everything that clients see of a store that goes on from revision `from`.
async fn contents(store: &dyn Shard, from: i64) -> String {
    let newest = revision(&store.range(get("x")).await.unwrap().header);
    let mut text = format!("revision {newest}\n");
    for at in from - 1..=newest {
        let answer = store.range(pb::RangeRequest { revision: at, ..all() }).await;
        let answer = answer.map(|answer| answer.kvs).map_err(|error| error.message);
        text += &format!("at {at}: {answer:?}\n");
    }
    let request = pb::WatchCreateRequest { start_revision: from, prev_kv: true, ..watch_all() };
    let mut watch = store.watch(request).await.unwrap();
    assert!(next(&mut watch).await.created);
    // Until the newest one, which is never a revision without a change after the compaction.
    let mut seen = from - 1;
    while seen < newest {
        let response = watch.next().await.unwrap().unwrap();
        assert!(!response.canceled, "{response:?}");
        for event in response.events {
            seen = event.kv.as_ref().unwrap().mod_revision;
            text += &format!("{event:?}\n");
        }
    }
    for lease in store.lease_leases().await.unwrap().leases {
        let request = pb::LeaseTimeToLiveRequest { id: lease.id, keys: true };
        let lease = store.lease_time_to_live(request).await.unwrap();
        text += &format!("lease {} of {} s: {:?}\n", lease.id, lease.granted_ttl, lease.keys);
    }
    let alarms = store.alarm(pb::AlarmRequest::default()).await.unwrap().alarms;
    text + &format!("alarms {:?}\n", alarms.iter().map(|alarm| alarm.alarm).collect::<Vec<_>>())
}

async fn hash_kv(endpoint: &str, revision: i64) -> u32 {
    let mut client = MaintenanceClient::connect(endpoint.to_owned()).await.unwrap();
    client.hash_kv(pb::HashKvRequest { revision }).await.unwrap().into_inner().hash
}

/// A history with everything in it: compacted at a delete, keys deleted and made again, several changes in a revision,
/// a value of many pages, leases, an alarm. Returns the compaction.
async fn write_history(server: &Server) -> i64 {
    let fixture = &server.fixture;
    for n in 0..300 {
        fixture.put(&format!("key/{:03}", n % 120), &format!("value {n}")).await;
    }
    fixture.grant(11, 1000).await;
    fixture.grant(-12, 2000).await;
    fixture.engine.put(pb::PutRequest { lease: 11, ..put("leased", "1") }).await.unwrap();
    fixture.delete("key/001").await;
    let compacted = fixture.delete("key/002").await;
    fixture.put("key/002", "again").await;
    fixture.put("large", &"v".repeat(1_000_000)).await;
    let ops = vec![op(put("t/1", "x")), op(delete("key/03", "key/04")), op(put("t/2", ""))];
    fixture.engine.txn(txn(vec![], ops, vec![])).await.unwrap();
    fixture.engine.lease_grant(pb::LeaseGrantRequest { id: 13, ttl: 500 }).await.unwrap();
    fixture.engine.put(pb::PutRequest { lease: -12, ..put("leased", "2") }).await.unwrap();
    fixture.delete("key/004").await;
    fixture.compact(compacted).await;
    compacted
}

#[tokio::test]
async fn etcd_goes_on_from_an_engine_and_an_engine_from_etcd() {
    let engine = server().await;
    let compacted = write_history(&engine).await;
    let alarm = pb::AlarmRequest { action: 1, member_id: 0, alarm: pb::AlarmType::Nospace as i32 };
    engine.fixture.engine.alarm(alarm).await.unwrap();
    let expected = contents(engine.fixture.engine.as_ref(), compacted).await;
    assert!(expected.contains("alarms [1]") && expected.contains("lease -12 of 2000 s: [b\"leased\"]"));
    let hash = hash_kv(&engine.endpoint, 0).await;

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    save(&engine.endpoint, &path("of-engine")).await;
    let status: serde_json::Value =
        serde_json::from_str(&etcdutl(&["snapshot", "status", &text("of-engine"), "-w", "json"]).await)
            .unwrap();
    let newest = engine.fixture.engine.snapshot().revision();
    let keys = engine.fixture.engine.range(all()).await.unwrap().count;
    assert_eq!(
        (status["revision"].as_i64(), status["totalKey"].as_i64(), status["version"].as_str()),
        (Some(newest), Some(keys), Some("3.7.0"))
    );

    etcdutl(&[
        "snapshot",
        "restore",
        &text("of-engine"),
        "--data-dir",
        &text("etcd"),
        "--name",
        "m0",
        "--initial-cluster",
        "m0=http://127.0.0.1:1",
        "--initial-advertise-peer-urls",
        "http://127.0.0.1:1",
    ])
    .await;
    let mut etcd = etcd_on(&path("etcd")).await;
    assert_eq!(contents(&etcd.shard(), compacted).await, expected);
    assert_eq!(hash_kv(&etcd.endpoint(), 0).await, hash);
    // It is a whole etcd.
    let disarm = pb::AlarmRequest { action: 2, member_id: 0, alarm: pb::AlarmType::Nospace as i32 };
    let alarms = etcd.shard().alarm(pb::AlarmRequest::default()).await.unwrap().alarms;
    let member_id = alarms[0].member_id;
    etcd.shard().alarm(pb::AlarmRequest { member_id, ..disarm }).await.unwrap();
    assert_eq!(revision(&etcd.shard().put(put("of etcd", "1")).await.unwrap().header), newest + 1);
    etcd.shard().compact(pb::CompactionRequest { revision: newest, physical: false }).await.unwrap();
    etcd.shard().lease_revoke(pb::LeaseRevokeRequest { id: -12 }).await.unwrap();
    let expected = contents(&etcd.shard(), newest).await;
    let hash = hash_kv(&etcd.endpoint(), 0).await;

    save(&etcd.endpoint(), &path("of-etcd")).await;
    let restored = restore(&path("of-etcd"), &options(&path("engine"))).unwrap();
    assert_eq!((restored.revision, restored.compact_revision, restored.leases), (newest + 2, newest, 2));
    let again = serve_fixture(reopen(&path("engine"), folder).await).await;
    assert_eq!(contents(again.fixture.engine.as_ref(), newest).await, expected);
    assert_eq!(hash_kv(&again.endpoint, 0).await, hash);
    assert_eq!(again.fixture.put("of the engine", "1").await, newest + 3);

    // A copy of the file of an etcd that does not run has no checksum.
    etcd.stop().await.unwrap();
    let db = again.fixture.dir.path().join("etcd/member/snap/db");
    let copied = again.fixture.dir.path().join("copied");
    let error = restore(&db, &options(&copied)).unwrap_err().to_string();
    assert!(error.contains("--skip-hash-check"), "{error}");
    let options = RestoreOptions { skip_hash_check: true, ..options(&copied) };
    assert_eq!(restore(&db, &options).unwrap(), restored);
    let engine = Engine::open(config(&copied)).await.unwrap();
    assert_eq!(contents(engine.as_ref(), newest).await, expected);
}

async fn reopen(dir: &Path, folder: tempfile::TempDir) -> Fixture {
    Fixture { engine: Engine::open(config(dir)).await.unwrap(), dir: folder }
}

/// An engine that was never written to, and one that was only compacted at its first revision.
#[tokio::test]
async fn an_empty_engine_has_a_snapshot_too() {
    for compacted in [None, Some(0), Some(1)] {
        let engine = server().await;
        if let Some(revision) = compacted {
            engine.fixture.compact(revision).await;
        }
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("snapshot");
        save(&engine.endpoint, &snapshot).await;
        etcdutl(&["snapshot", "status", snapshot.to_str().unwrap()]).await;
        let restored = restore(&snapshot, &options(&folder.path().join("data"))).unwrap();
        let compact_revision = compacted.unwrap_or(-1);
        assert_eq!(restored, Restored { revision: 1, compact_revision, keys: 0, leases: 0 });
        let again = reopen(&folder.path().join("data"), folder).await;
        assert_eq!(again.put("a", "1").await, 2);
    }
}

/// Reads a snapshot part by part, with something in between.
async fn receive(server: &Server, mut between: impl AsyncFnMut()) -> Vec<u8> {
    let mut client = MaintenanceClient::connect(server.endpoint.clone()).await.unwrap();
    let mut parts = client.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
    let (mut file, mut left) = (Vec::new(), u64::MAX);
    while let Some(part) = parts.message().await.unwrap() {
        if left != u64::MAX && left > 0 {
            assert_eq!(left - part.remaining_bytes, part.blob.len() as u64);
        }
        left = part.remaining_bytes;
        file.extend_from_slice(&part.blob);
        between().await;
    }
    assert_eq!((left, file.len() % 512), (0, 32));
    file
}

#[tokio::test]
async fn a_snapshot_is_one_state_whatever_is_written_and_compacted_meanwhile() {
    const KEYS: i64 = 40;
    let server = server().await;
    let value = |n: i64| format!("{n} {}", "v".repeat(20_000));
    let key = |n: i64| format!("k/{:02}", n % KEYS);
    let mut n = 0;
    for _ in 0..200 {
        server.fixture.put(&key(n), &value(n)).await;
        n += 1;
    }
    let file = receive(&server, async || {
        for _ in 0..10 {
            server.fixture.put(&key(n), &value(n)).await;
            n += 1;
        }
        server.fixture.compact(server.fixture.engine.snapshot().revision()).await;
    })
    .await;
    assert!(n > 300, "it came in {} parts", (n - 200) / 10);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    std::fs::write(&path, file).unwrap();
    let restored = restore(&path, &options(&folder.path().join("data"))).unwrap();
    // Put n got revision n + 2.
    let newest = restored.revision - 2;
    assert!(newest >= 199 && restored.compact_revision < restored.revision, "{restored:?}");
    let again = reopen(&folder.path().join("data"), folder).await;
    for at in [restored.compact_revision.max(KEYS + 2), restored.revision] {
        let answer = again.engine.range(pb::RangeRequest { revision: at, ..all() }).await.unwrap();
        assert_eq!(answer.count, KEYS);
        for kv in answer.kvs {
            let n = kv.mod_revision - 2;
            assert!(n > at - 2 - KEYS && n <= at - 2);
            assert!(kv.key == key(n) && kv.value == value(n));
        }
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_does_not_keep_others_from_a_snapshot() {
    let server = server().await;
    for n in 0..40 {
        server.fixture.put(&format!("k{n}"), &"v".repeat(200_000)).await;
    }
    let mut client = MaintenanceClient::connect(server.endpoint.clone()).await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(client.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner());
    }
    let refused = client.snapshot(pb::SnapshotRequest {}).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: too many requests");
    // Nothing else waits for them, a compaction neither.
    let newest = server.fixture.put("x", "1").await;
    server.fixture.compact(newest).await;
    drop(waiting);
    sharded_etcd_testkit::wait_until("there is a place", std::time::Duration::from_secs(20), || {
        let mut client = client.clone();
        async move { client.snapshot(pb::SnapshotRequest {}).await.ok() }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_is_damaged_or_would_be_lost_is_refused() {
    let server = server().await;
    server.fixture.put("a", "1").await;
    server.fixture.put("b", "2").await;
    let good = receive(&server, async || {}).await;
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("snapshot");
    let dir = folder.path().join("data");
    let refused = |file: &[u8], options: &RestoreOptions| {
        std::fs::write(&snapshot, file).unwrap();
        let error = restore(&snapshot, options).unwrap_err().to_string();
        assert!(!dir.exists(), "nothing is left behind");
        error
    };
    let mut damaged = good.clone();
    damaged[5 * 4096 + 30] ^= 1;
    assert!(refused(&damaged, &options(&dir)).contains("its SHA-256 is wrong"));
    assert!(refused(&good[..good.len() - 32], &options(&dir)).contains("has no checksum"));
    assert!(refused(b"", &options(&dir)).contains("has no checksum"));
    let unchecked = RestoreOptions { skip_hash_check: true, ..options(&dir) };
    assert!(refused(b"nothing", &unchecked).contains("no etcd database or snapshot"));
    assert!(refused(&good[..4 * 4096], &unchecked).contains("damaged at page 4: the file ends before it"));
    let huge = RestoreOptions { bump_revision: u64::MAX, ..options(&dir) };
    assert!(refused(&good, &huge).contains("--bump-revision"));

    std::fs::write(&snapshot, &good).unwrap();
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("mine"), "x").unwrap();
    let error = restore(&snapshot, &options(&dir)).unwrap_err().to_string();
    assert!(error.contains("is not empty") && error.contains("mine"), "{error}");
    std::fs::remove_file(dir.join("mine")).unwrap();

    restore(&snapshot, &options(&dir)).unwrap();
    let error = restore(&snapshot, &options(&dir)).unwrap_err().to_string();
    assert!(error.contains("is not empty"), "{error}");
    // As if the restore had been interrupted: the data are there, and who they belong to is not.
    std::fs::remove_file(dir.join("identity.json")).unwrap();
    let error = Engine::open(config(&dir)).await.err().unwrap().to_string();
    assert!(error.contains("identity.json") && error.contains("it is missing"), "{error}");
}

#[tokio::test]
async fn revisions_go_on_behind_what_clients_may_have_seen() {
    let server = server().await;
    for n in 0..10 {
        server.fixture.put(&format!("k{}", n % 3), &n.to_string()).await;
    }
    let file = receive(&server, async || {}).await;
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("snapshot");
    std::fs::write(&snapshot, file).unwrap();
    let dir = folder.path().join("data");
    let options = RestoreOptions { bump_revision: 1_000_000_000, ..options(&dir) };
    let restored = restore(&snapshot, &options).unwrap();
    let expected = Restored { revision: 1_000_000_011, compact_revision: 1_000_000_011, keys: 3, leases: 0 };
    assert_eq!(restored, expected);
    let again = reopen(&dir, folder).await;
    let answer = again.engine.range(all()).await.unwrap();
    assert_eq!(answer.kvs.iter().map(|kv| kv.mod_revision).collect::<Vec<_>>(), [11, 9, 10]);
    let old = again.engine.range(pb::RangeRequest { revision: 11, ..all() }).await.unwrap_err();
    assert!(old.is_compacted());
    assert_eq!(again.put("k0", "x").await, 1_000_000_012);
}
