//! Watch: from now, from the past, filters, compaction, slow watchers.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;

use crate::support::*;

#[tokio::test]
async fn from_now_over_one_key_a_span_and_everything() {
    let fixture = start().await;
    fixture.put("b", "before").await;
    let one = pb::WatchCreateRequest { key: "b".into(), ..Default::default() };
    let span = pb::WatchCreateRequest { key: "b".into(), range_end: "c".into(), ..Default::default() };
    let (mut one, mut span, mut all) =
        (fixture.watch(one).await, fixture.watch(span).await, fixture.watch(watch_all()).await);
    let highest = pb::PutRequest { key: vec![0xff, 0xff, 0xff, 0xff].into(), ..put("", "") };
    for request in [put("a", ""), put("b", ""), put("ba", ""), put("\0", ""), highest] {
        fixture.engine.put(request).await.unwrap();
    }
    fixture.delete("b").await;
    assert_eq!(events(&mut one, 2).await, ["+b@4", "-b@8"]);
    assert_eq!(events(&mut span, 3).await, ["+b@4", "+ba@5", "-b@8"]);
    assert_eq!(
        events(&mut all, 6).await,
        ["+a@3", "+b@4", "+ba@5", "+\0@6", "+\u{fffd}\u{fffd}\u{fffd}\u{fffd}@7", "-b@8"]
    );
    assert!(one.next().now_or_never().is_none());
}

#[tokio::test]
async fn from_the_past_and_on_into_the_present() {
    let fixture = start().await;
    for n in 0..5 {
        fixture.put("a", &n.to_string()).await;
    }
    let mut watch = fixture.watch(pb::WatchCreateRequest { start_revision: 4, ..watch_all() }).await;
    assert_eq!(events(&mut watch, 3).await, ["+a@4", "+a@5", "+a@6"]);
    fixture.put("a", "new").await;
    assert_eq!(events(&mut watch, 1).await, ["+a@7"]);
}

#[tokio::test]
async fn from_the_revision_of_the_empty_store() {
    let fixture = start().await;
    fixture.put("a", "1").await;
    let mut watch = fixture.watch(pb::WatchCreateRequest { start_revision: 1, ..watch_all() }).await;
    assert_eq!(events(&mut watch, 1).await, ["+a@2"]);
    fixture.put("a", "2").await;
    assert_eq!(events(&mut watch, 1).await, ["+a@3"]);
}

#[tokio::test]
async fn from_a_revision_to_come() {
    let fixture = start().await;
    let mut watch = fixture.watch(pb::WatchCreateRequest { start_revision: 4, ..watch_all() }).await;
    for n in 0..4 {
        fixture.put("a", &n.to_string()).await;
    }
    assert_eq!(events(&mut watch, 2).await, ["+a@4", "+a@5"]);
}

#[tokio::test]
async fn one_revision_is_one_response() {
    let fixture = start().await;
    let mut watch = fixture.watch(watch_all()).await;
    let puts = (0..100).map(|n| op(put(&format!("k{n:03}"), &"v".repeat(20_000)))).collect();
    fixture.engine.txn(txn(vec![], puts, vec![])).await.unwrap_err();
    let puts: Vec<_> = (0..100).map(|n| op(put(&format!("k{n:03}"), &"v".repeat(14_000)))).collect();
    fixture.engine.txn(txn(vec![], puts, vec![])).await.unwrap();
    fixture.engine.delete_range(delete("k", "l")).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 200 {
        let response = next(&mut watch).await;
        for revision in [2, 3] {
            let count = response
                .events
                .iter()
                .filter(|event| event.kv.as_ref().unwrap().mod_revision == revision)
                .count();
            assert!(count == 0 || count == 100, "{count} events of revision {revision}");
        }
        seen.extend(response.events.iter().map(event));
    }
    assert!(seen[..100].iter().all(|event| event.ends_with("@2")));
    assert_eq!(seen[100], "-k000@3");
}

#[tokio::test]
async fn a_large_revision_is_fragmented_on_request() {
    let fixture = start_with(|config| {
        config.max_request_bytes = 200_000;
        config.max_txn_ops = 10_000;
    })
    .await;
    for n in 0..400 {
        fixture.put(&format!("k{n:03}"), &"v".repeat(4000)).await;
    }
    let request = pb::WatchCreateRequest { fragment: true, prev_kv: true, ..watch_all() };
    let mut watch = fixture.watch(request).await;
    fixture.engine.delete_range(delete("k", "l")).await.unwrap();
    let (mut fragments, mut seen) = (0, 0);
    loop {
        let response = next(&mut watch).await;
        assert!(prost::Message::encoded_len(&response) < 200_000 + 512 * 1024);
        seen += response.events.len();
        if !response.fragment {
            break;
        }
        fragments += 1;
    }
    assert_eq!(seen, 400);
    assert!(fragments >= 2);
}

#[tokio::test]
async fn filters_and_previous_values() {
    let fixture = start().await;
    let filtered =
        |filter: pb::FilterType| pb::WatchCreateRequest { filters: vec![filter as i32], ..watch_all() };
    let mut no_put = fixture.watch(filtered(pb::FilterType::Noput)).await;
    let mut no_delete = fixture.watch(filtered(pb::FilterType::Nodelete)).await;
    let mut previous = fixture.watch(pb::WatchCreateRequest { prev_kv: true, ..watch_all() }).await;
    fixture.put("a", "1").await;
    fixture.put("a", "2").await;
    fixture.delete("a").await;
    fixture.put("a", "3").await;
    assert_eq!(events(&mut no_put, 1).await, ["-a@4"]);
    assert_eq!(events(&mut no_delete, 3).await, ["+a@2", "+a@3", "+a@5"]);
    let mut befores = Vec::new();
    while befores.len() < 4 {
        for event in next(&mut previous).await.events {
            befores.push(event.prev_kv.map(|kv| (kv.value, kv.mod_revision)));
        }
    }
    assert_eq!(befores, [None, Some(("1".into(), 2)), Some(("2".into(), 3)), None]);
}

#[tokio::test]
async fn a_deleted_key_has_only_its_name_and_revision() {
    let fixture = start().await;
    fixture.put("a", "1").await;
    let mut watch = fixture.watch(watch_all()).await;
    fixture.delete("a").await;
    let kv = next(&mut watch).await.events.remove(0).kv.unwrap();
    assert_eq!(kv, pb::KeyValue { key: "a".into(), mod_revision: 3, ..Default::default() });
}

#[tokio::test]
async fn a_start_below_the_compaction_is_cancelled() {
    let fixture = start().await;
    for n in 0..5 {
        fixture.put("a", &n.to_string()).await;
    }
    fixture.compact(4).await;
    let mut watch = fixture.watch(pb::WatchCreateRequest { start_revision: 3, ..watch_all() }).await;
    let response = next(&mut watch).await;
    assert_eq!((response.canceled, response.compact_revision, revision(&response.header)), (true, 4, 0));
    assert!(watch.next().await.is_none());
    // At the compaction itself everything is there.
    let mut watch = fixture.watch(pb::WatchCreateRequest { start_revision: 4, ..watch_all() }).await;
    assert_eq!(events(&mut watch, 3).await, ["+a@4", "+a@5", "+a@6"]);
}

#[tokio::test]
async fn a_watcher_that_is_a_moment_behind_a_compaction_still_gets_its_events() {
    let fixture = start().await;
    fixture.put("a", "0").await;
    let mut watch = fixture.watch(pb::WatchCreateRequest { prev_kv: true, ..watch_all() }).await;
    for n in 1..=100 {
        fixture.put("a", &n.to_string()).await;
    }
    fixture.compact(102).await;
    let mut seen = Vec::new();
    while seen.len() < 100 {
        let response = next(&mut watch).await;
        assert!(!response.canceled);
        seen.extend(response.events);
    }
    assert!(seen.iter().all(|event| event.prev_kv.is_some()));
}

#[tokio::test]
async fn a_slow_watcher_holds_nobody_up_and_catches_up() {
    let fixture = start().await;
    let mut slow = fixture.watch(watch_all()).await;
    let mut fast = fixture.watch(watch_all()).await;
    for n in 0..3000 {
        fixture.put("a", &n.to_string()).await;
        if n % 100 == 0 {
            while fast.next().now_or_never().is_some() {}
        }
    }
    let mut last = 1;
    let mut responses = 0;
    while last < 3001 {
        let response = next(&mut slow).await;
        for event in &response.events {
            assert_eq!(event.kv.as_ref().unwrap().mod_revision, last + 1);
            last += 1;
        }
        // As etcd's `syncWatchers`: how far the store is, not the watcher.
        assert_eq!(revision(&response.header), 3001);
        responses += 1;
    }
    assert!(responses >= 3, "at most 1000 revisions in one response");
}

#[tokio::test]
async fn a_watcher_far_behind_a_compaction_is_cancelled_and_holds_nothing() {
    let fixture = start().await;
    let mut stuck = fixture.watch(watch_all()).await;
    for n in 0..1500 {
        fixture.put("a", &n.to_string()).await;
    }
    fixture.compact(1501).await;
    let response = next(&mut stuck).await;
    assert_eq!((response.canceled, response.compact_revision), (true, 1501));
    assert_eq!(fixture.engine.status().await.unwrap().db_size_in_use, 1 + 4 + 128);
}

#[tokio::test]
async fn requests_that_cannot_be_watched() {
    let fixture = start().await;
    let refuse = |request: pb::WatchCreateRequest| async {
        let mut stream = fixture.engine.watch(request).await.unwrap();
        let response = next(&mut stream).await;
        assert!(response.created && response.canceled);
        assert_eq!(response.watch_id, -1);
        assert!(stream.next().await.is_none());
        response.cancel_reason
    };
    let negative = pb::WatchCreateRequest { start_revision: -1, ..watch_all() };
    assert_eq!(refuse(negative).await, "etcdserver: mvcc: required revision has been compacted");
    let empty = pb::WatchCreateRequest { key: "b".into(), range_end: "a".into(), ..Default::default() };
    assert_eq!(refuse(empty).await, "mvcc: watcher range is empty");
}

#[tokio::test]
async fn progress_is_told_when_nothing_happens() {
    let fixture = start_with(|config| config.progress_interval = Duration::from_millis(300)).await;
    fixture.put("b", "").await;
    let request = pb::WatchCreateRequest { key: "a".into(), progress_notify: true, ..Default::default() };
    let mut watch = fixture.watch(request).await;
    fixture.put("b", "").await;
    let started = tokio::time::Instant::now();
    let response = next(&mut watch).await;
    assert!(response.events.is_empty() && !response.canceled && !response.created);
    assert_eq!(revision(&response.header), 3);
    let waited = started.elapsed();
    assert!(waited >= Duration::from_millis(250), "{waited:?}");
    // And again.
    assert_eq!(revision(&next(&mut watch).await.header), 3);
}

#[tokio::test]
async fn watches_end_when_the_engine_closes() {
    let fixture = start().await;
    let mut watch = fixture.watch(watch_all()).await;
    fixture.put("a", "").await;
    fixture.engine.close().await;
    assert_eq!(events(&mut watch, 1).await, ["+a@2"]);
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_delete_at_the_compaction_is_seen_from_there_after_a_restart_too() {
    let fixture = start().await;
    for key in ["a", "b"] {
        fixture.put(key, "1").await;
    }
    fixture.delete("b").await;
    let compacted = fixture.delete("a").await;
    fixture.put("c", "1").await;
    fixture.compact(compacted).await;
    // Into a checkpoint.
    fixture.engine.defragment().await.unwrap();
    fixture.engine.close().await;
    let (config, dir) = (config(fixture.dir.path()), fixture.dir);
    drop(fixture.engine);
    let fixture = Fixture { engine: sharded_etcd_engine::Engine::open(config).await.unwrap(), dir };
    let start_revision = compacted;
    let mut watch = fixture.watch(pb::WatchCreateRequest { start_revision, ..watch_all() }).await;
    assert_eq!(events(&mut watch, 2).await, ["-a@5", "+c@6"]);
    assert_eq!(fixture.engine.snapshot().keys(), 2, "b is gone, a until the next compaction");
    fixture.compact(compacted + 1).await;
    assert_eq!(fixture.engine.snapshot().keys(), 1);
}
