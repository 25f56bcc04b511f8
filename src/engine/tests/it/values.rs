//! Values that are read from the files.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use sharded_etcd_engine::Engine;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;
use sharded_etcd_testkit::wait_until;
use tonic::Code;

use crate::support::*;

/// More than stays in memory for being new.
const KEYS: usize = 2500;
const VALUE_BYTES: usize = 4000;

fn value(n: usize) -> String {
    let mut value = format!("value-{n:06}-");
    value.extend(std::iter::repeat_n((b'a' + (n % 26) as u8) as char, VALUE_BYTES - value.len()));
    value
}

async fn fill(engine: &Engine, from: usize) {
    let puts = (0..KEYS).map(|n| async move {
        engine.put(put(&format!("k{n:06}"), &value(from + n))).await.unwrap();
    });
    futures::stream::iter(puts).buffer_unordered(64).for_each(|()| async {}).await;
}

async fn compare(engine: &Engine, from: usize) {
    let found = engine.range(span("k", "l")).await.unwrap().kvs;
    assert_eq!(found.len(), KEYS);
    for (n, kv) in found.iter().enumerate() {
        assert!(kv.value == value(from + n), "key {n}");
    }
}

/// Files that are open and have no name any more.
fn nameless(dir: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let names = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    names.filter(|name| name.starts_with(dir) && name.to_string_lossy().ends_with(" (deleted)")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_stay_right_through_checkpoints_compactions_and_starts() {
    let fixture = start_with(|config| {
        config.segment_bytes = 256 << 10;
        config.checkpoint_wal_bytes = 2 << 20;
    })
    .await;
    let engine = &fixture.engine;
    fill(engine, 0).await;
    let before = engine.snapshot();
    let first = engine.snapshot().revision();
    compare(engine, 0).await;
    for round in 1..4 {
        fill(engine, round * 10_000).await;
        compare(engine, round * 10_000).await;
    }
    let history = engine.range(pb::RangeRequest { revision: first, ..span("k", "l") }).await.unwrap();
    assert!(history.kvs.iter().enumerate().all(|(n, kv)| kv.value == value(n)));

    let mut watch = engine
        .watch(pb::WatchCreateRequest {
            key: "k".into(),
            range_end: "l".into(),
            start_revision: 2,
            prev_kv: true,
            ..Default::default()
        })
        .await
        .unwrap();
    let mut seen = std::collections::HashMap::new();
    let mut events = 0;
    while events < 4 * KEYS {
        for event in watch.next().await.unwrap().unwrap().events {
            let kv = event.kv.unwrap();
            assert_eq!(event.prev_kv.map(|kv| kv.value), seen.insert(kv.key.clone(), kv.value));
            events += 1;
        }
    }
    assert!((0..KEYS).all(|n| seen[format!("k{n:06}").as_bytes()] == value(30_000 + n)));
    drop(watch);

    let revision = engine.snapshot().revision();
    engine.compact(pb::CompactionRequest { revision, physical: true }).await.unwrap();
    for _ in 0..3 {
        engine.defragment().await.unwrap();
        fill(engine, 50_000).await;
    }
    compare(engine, 50_000).await;
    // What was cut off is readable for who holds it, whatever became of the files.
    for n in (0..KEYS).step_by(97) {
        let old = before.get(format!("k{n:06}").as_bytes()).unwrap().value().unwrap();
        assert!(old == value(n), "key {n}");
    }
    drop(before);
    let revision = engine.snapshot().revision();
    engine.compact(pb::CompactionRequest { revision, physical: true }).await.unwrap();
    wait_until("files without a name are closed", Duration::from_secs(60), || async {
        // Each gives up what the one before has made superfluous.
        engine.defragment().await.unwrap();
        (nameless(fixture.dir.path()) == 0).then_some(())
    })
    .await
    .unwrap();
    compare(engine, 50_000).await;

    engine.close().await;
    let config = config(fixture.dir.path());
    let reopened = Engine::open(config).await.unwrap();
    compare(&reopened, 50_000).await;
}

/// Takes the files out of the page cache, as far as the system does that.
fn evict(dir: &Path) {
    // Segments that a checkpoint made superfluous may go meanwhile.
    let files = fs::read_dir(dir).unwrap().filter_map(|entry| fs::File::open(entry.unwrap().path()).ok());
    for file in files {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

#[tokio::test]
async fn they_are_read_from_the_disk_too() {
    let fixture = start().await;
    let engine = &fixture.engine;
    fill(engine, 0).await;
    engine.defragment().await.unwrap();
    for n in [0, KEYS / 2, KEYS - 1] {
        evict(fixture.dir.path());
        let found = engine.range(get(&format!("k{n:06}"))).await.unwrap().kvs;
        assert!(found.len() == 1 && found[0].value == value(n), "key {n}");
    }
    evict(fixture.dir.path());
    futures::future::join_all((0..4).map(|_| compare(engine, 0))).await;
    evict(fixture.dir.path());
    let request = pb::RangeRequest { limit: 10, ..span("k001000", "l") };
    let found = engine.range(request).await.unwrap();
    assert!(found.more && found.count as usize == KEYS - 1000);
    assert!(found.kvs.iter().zip(1000..1010).all(|(kv, n)| kv.value == value(n)));
}

/// The file of the log that has these bytes, and where.
fn find(dir: &Path, wanted: &str) -> (PathBuf, u64) {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
        let bytes = fs::read(&path).unwrap();
        let mut at = 0;
        while let Some(found) = bytes[at..].iter().position(|byte| *byte == wanted.as_bytes()[0]) {
            at += found;
            if bytes[at..].starts_with(wanted.as_bytes()) {
                return (path, at as u64);
            }
            at += 1;
        }
    }
    panic!("no file has it");
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

async fn refused(engine: &Arc<Engine>, request: pb::RangeRequest, path: &Path, at: u64) {
    let error = engine.range(request).await.unwrap_err();
    assert_eq!(error.code, Code::DataLoss);
    let expected = format!("{} is damaged at byte {at}", path.display());
    assert!(error.message.contains(&expected), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_damaged_while_the_engine_runs_is_an_error_that_names_it() {
    let fixture = start_with(|config| config.lease_tick = Duration::from_millis(10)).await;
    let engine = &fixture.engine;
    fill(engine, 0).await;
    let newest = engine.snapshot().revision();
    let (path, at) = find(fixture.dir.path(), &value(7));
    flip(&path, at + 2000);

    refused(engine, get("k000007"), &path, at).await;
    refused(engine, span("k", "l"), &path, at).await;
    assert_eq!(engine.range(get("k000008")).await.unwrap().kvs[0].value, value(8));
    let keys_only = pb::RangeRequest { keys_only: true, ..span("k", "l") };
    assert_eq!(engine.range(keys_only).await.unwrap().kvs.len(), KEYS);
    wait_until("the alarm goes up", Duration::from_secs(30), || async {
        let errors = engine.status().await.unwrap().errors;
        errors.iter().any(|error| error.ends_with("alarm:CORRUPT")).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(engine.put(put("x", "y")).await.unwrap_err().message, "etcdserver: corrupt cluster");

    // A watcher that comes to it ends.
    let create = pb::WatchCreateRequest {
        key: "k".into(),
        range_end: "l".into(),
        start_revision: 2,
        ..Default::default()
    };
    let mut watch = engine.watch(create).await.unwrap();
    let reason = loop {
        let response = watch.next().await.expect("it ends with a reason").unwrap();
        assert!(response.events.iter().all(|event| event.kv.as_ref().unwrap().key != "k000007"));
        if response.canceled {
            break response.cancel_reason;
        }
    };
    assert!(reason.contains(path.to_str().unwrap()), "{reason}");

    // A transaction that meets it halfway leaves nothing behind.
    let alarm = pb::AlarmRequest {
        action: pb::alarm_request::AlarmAction::Deactivate as i32,
        member_id: engine.member_id(),
        alarm: pb::AlarmType::Corrupt as i32,
    };
    let write = |key: &str| pb::TxnRequest {
        success: vec![op(put(key, "new")), op(get("k000007")), op(put("later", "new"))],
        ..Default::default()
    };
    let error = loop {
        engine.alarm(alarm).await.unwrap();
        // The alarm goes up again for what was read before; then the transaction is not even tried.
        match engine.txn(write("new")).await.unwrap_err() {
            error if error.message == "etcdserver: corrupt cluster" => {}
            error => break error,
        }
    };
    assert!(error.message.contains(path.to_str().unwrap()), "{error:?}");
    let left = engine.range(all()).await;
    assert!(left.is_err());
    assert_eq!(engine.range(get("new")).await.unwrap().count, 0);
    assert_eq!(engine.snapshot().revision(), newest);

    // Whole again, as the file is.
    flip(&path, at + 2000);
    compare(engine, 0).await;
    loop {
        engine.alarm(alarm).await.unwrap();
        match engine.txn(write("new")).await {
            Ok(_) => break,
            Err(error) => assert_eq!(error.message, "etcdserver: corrupt cluster"),
        }
    }
    assert_eq!(engine.range(get("later")).await.unwrap().kvs[0].mod_revision, newest + 1);
}
