//! What a crash, a full disk and a foreign directory do.

use std::{
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{FutureExt, StreamExt, future::join_all};
use sharded_etcd_engine::{
    Engine, EngineError,
    wal::{IoHook, IoStep, WalError},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Certainty, Shard};
use tonic::Code;

use crate::support::*;

/// Fails at a step while the switch is on.
fn switch(step: IoStep, kind: ErrorKind) -> (Arc<AtomicBool>, IoHook) {
    let on = Arc::new(AtomicBool::new(false));
    let is_on = Arc::clone(&on);
    (
        on,
        Arc::new(
            move |at| if at == step && is_on.load(Ordering::SeqCst) { Err(kind.into()) } else { Ok(()) },
        ),
    )
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_crash_and_a_clean_end() {
    let fixture = start().await;
    let (cluster, member) = (fixture.engine.cluster_id(), fixture.engine.member_id());
    let writers = (0..20).map(|writer| {
        let engine = Arc::clone(&fixture.engine);
        async move {
            for n in 0..50 {
                engine.put(put(&format!("w{writer}/{n}"), &n.to_string())).await.unwrap();
            }
        }
    });
    join_all(writers).await;
    let status = fixture.engine.status().await.unwrap();
    for round in 0..2 {
        let config = config(fixture.dir.path());
        if round == 0 {
            // Somebody may still hold the engine: the close gives the directory free all the same.
            fixture.engine.close().await;
        }
        let engine = Engine::open(config).await.unwrap();
        assert_eq!((engine.cluster_id(), engine.member_id()), (cluster, member));
        let range = engine.range(all()).await.unwrap();
        assert_eq!((range.count, revision(&range.header)), (1000, 1001));
        assert_eq!(engine.status().await.unwrap().raft_index, status.raft_index);
    }
}

#[tokio::test]
async fn alarms_survive_a_restart_until_they_are_disarmed() {
    let fixture = start().await;
    let alarm = |action: pb::alarm_request::AlarmAction| pb::AlarmRequest {
        action: action as i32,
        member_id: 9,
        alarm: pb::AlarmType::Nospace as i32,
    };
    use pb::alarm_request::AlarmAction::*;
    fixture.engine.alarm(alarm(Activate)).await.unwrap();
    let config = config(fixture.dir.path());
    drop(fixture.engine);
    let engine = Engine::open(config.clone()).await.unwrap();
    assert_eq!(engine.alarm(alarm(Get)).await.unwrap().alarms.len(), 1);
    assert_eq!(engine.put(put("a", "")).await.unwrap_err().code, Code::ResourceExhausted);
    engine.alarm(alarm(Deactivate)).await.unwrap();
    assert!(engine.alarm(alarm(Deactivate)).await.unwrap().alarms.is_empty());
    drop(engine);
    let engine = Engine::open(config).await.unwrap();
    engine.put(put("a", "")).await.unwrap();
}

#[tokio::test]
async fn a_closed_engine_refuses_writes_and_still_reads() {
    let fixture = start().await;
    fixture.put("a", "1").await;
    fixture.engine.close().await;
    fixture.engine.close().await;
    let error = fixture.engine.put(put("a", "2")).await.unwrap_err();
    assert_eq!((error.code, error.certainty), (Code::Unavailable, Certainty::NotSent));
    assert_eq!(fixture.engine.range(get("a")).await.unwrap().kvs[0].value, "1");
}

#[tokio::test]
async fn checkpoints_bound_the_log_and_lose_nothing() {
    let fixture = start_with(|config| {
        config.segment_bytes = 64 * 1024;
        config.checkpoint_wal_bytes = 128 * 1024;
    })
    .await;
    for n in 0..2000 {
        fixture.put(&format!("k{}", n % 100), &"v".repeat(500)).await;
        if n == 1000 {
            fixture.compact(900).await;
        }
    }
    let config = config(fixture.dir.path());
    fixture.engine.close().await;
    let files: Vec<String> = std::fs::read_dir(fixture.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files.iter().filter(|name| name.starts_with("checkpoint-")).count(), 1, "{files:?}");
    let engine = Engine::open(config).await.unwrap();
    let range = engine.range(all()).await.unwrap();
    assert_eq!((range.count, revision(&range.header)), (100, 2001));
    let old = pb::RangeRequest { revision: 900, ..all() };
    assert_eq!(engine.range(old.clone()).await.unwrap().count, 100);
    let older = pb::RangeRequest { revision: 899, ..old };
    assert!(engine.range(older).await.unwrap_err().is_compacted());
    let mut watch =
        engine.watch(pb::WatchCreateRequest { start_revision: 900, ..watch_all() }).await.unwrap();
    assert!(next(&mut watch).await.created);
    assert_eq!(events(&mut watch, 1102).await.len(), 1102);
}

#[tokio::test]
async fn a_failed_sync_acknowledges_nothing_shows_nothing_and_stops_writes() {
    let (on, hook) = switch(IoStep::Sync, ErrorKind::Other);
    let fixture = start_with(|config| config.io_hook = Some(hook)).await;
    fixture.put("a", "1").await;
    let mut watch = fixture.watch(watch_all()).await;
    on.store(true, Ordering::SeqCst);
    let error = fixture.engine.put(put("a", "2")).await.unwrap_err();
    assert_eq!((error.code, error.certainty), (Code::Unavailable, Certainty::Ambiguous));
    assert!(error.message.contains("wal-"), "names the file: {error}");
    on.store(false, Ordering::SeqCst);
    // The disk is fine again, but what the failed sync lost is unknown: no write until the next start.
    let error = fixture.engine.put(put("a", "3")).await.unwrap_err();
    assert_eq!((error.code, error.certainty), (Code::Unavailable, Certainty::Refused));
    let kept = fixture.engine.range(get("a")).await.unwrap();
    assert_eq!((kept.kvs[0].value.as_ref(), revision(&kept.header)), (b"1".as_ref(), 2));
    assert!(watch.next().now_or_never().is_none());
    assert_eq!(fixture.engine.status().await.unwrap().errors.len(), 1);
    assert_eq!(fixture.engine.lease_keep_alive(1).await.unwrap_err().code, Code::Unavailable);
    let config = config(fixture.dir.path());
    drop(watch);
    drop(fixture.engine);
    // It was ambiguous: the write may be there now, the refused one may not.
    let engine = Engine::open(config).await.unwrap();
    let value = engine.range(get("a")).await.unwrap().kvs.remove(0).value;
    assert!(value == "1" || value == "2", "{value:?}");
    assert_eq!(revision(&engine.put(put("a", "4")).await.unwrap().header), if value == "1" { 3 } else { 4 });
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    let (on, hook) = switch(IoStep::Roll, ErrorKind::StorageFull);
    let fixture = start_with(|config| {
        config.segment_bytes = 16 * 1024;
        config.io_hook = Some(hook);
    })
    .await;
    on.store(true, Ordering::SeqCst);
    let mut written = 0;
    let error = loop {
        match fixture.engine.put(put(&format!("k{written}"), &"v".repeat(1000))).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error.code, error.certainty), (Code::Unavailable, Certainty::Refused));
    assert_eq!(fixture.engine.range(all()).await.unwrap().count, written);
    on.store(false, Ordering::SeqCst);
    fixture.put("more", "").await;
    let config = config(fixture.dir.path());
    drop(fixture.engine);
    let engine = Engine::open(config).await.unwrap();
    assert_eq!(engine.range(all()).await.unwrap().count, written + 1);
}

#[tokio::test]
async fn directories_that_cannot_be_used_are_named() {
    let fixture = start().await;
    let config = config(fixture.dir.path());
    let locked = Engine::open(config.clone()).await.err().unwrap();
    assert!(matches!(&locked, EngineError::Locked { dir } if dir == fixture.dir.path()));
    fixture.engine.close().await;

    let mut other = config.clone();
    other.cluster_id = Some(fixture.engine.cluster_id() ^ 1);
    assert!(matches!(Engine::open(other).await.err(), Some(EngineError::Files(WalError::Foreign { .. }))));

    let identity = fixture.dir.path().join("identity.json");
    let text = std::fs::read_to_string(&identity).unwrap();
    std::fs::write(&identity, text.replace("\"format\": 2", "\"format\": 3")).unwrap();
    assert!(matches!(
        Engine::open(config.clone()).await.err(),
        Some(EngineError::Files(WalError::Newer { found: 3, .. }))
    ));
    std::fs::write(&identity, "{").unwrap();
    assert!(matches!(Engine::open(config).await.err(), Some(EngineError::Identity { .. })));

    std::fs::write(&identity, &text).unwrap();
    for entry in std::fs::read_dir(fixture.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "log") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let config = crate::support::config(fixture.dir.path());
    let lost = Engine::open(config).await.err();
    assert!(matches!(lost, Some(EngineError::LogMissing { .. })), "{lost:?}");

    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("notes.txt"), "mine").unwrap();
    let refused = Engine::open(crate::support::config(foreign.path())).await.err().unwrap();
    assert!(refused.to_string().contains("notes.txt"), "{refused}");
}

#[tokio::test]
async fn a_reader_never_sees_a_revision_twice_with_different_content() {
    let fixture = start().await;
    let engine = Arc::clone(&fixture.engine);
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    let reader = std::thread::spawn(move || {
        let mut last = 1;
        while !is_done.load(Ordering::SeqCst) {
            let response = engine.range(all()).now_or_never().unwrap().unwrap();
            let revision = revision(&response.header);
            assert!(revision >= last);
            last = revision;
            // Two keys are always written together.
            let values: Vec<_> = response.kvs.iter().map(|kv| (kv.value.clone(), kv.mod_revision)).collect();
            if let [a, b] = values.as_slice() {
                assert_eq!(a, b);
                assert_eq!(a.1, revision);
            }
        }
    });
    for n in 0..2000 {
        let value = n.to_string();
        let request = txn(vec![], vec![op(put("a", &value)), op(put("b", &value))], vec![]);
        fixture.engine.txn(request).await.unwrap();
        if n % 100 == 0 {
            fixture.engine.compact(pb::CompactionRequest { revision: n + 2, physical: false }).await.unwrap();
        }
    }
    done.store(true, Ordering::SeqCst);
    reader.join().unwrap();
}
