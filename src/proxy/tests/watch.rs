//! The watch service over real shards: embedded engines, and etcd.
#![allow(clippy::unwrap_used)]

mod support;
mod watch_support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sharded_etcd_core::{
    keyspace::{KeyRange, Rid, ShardIx},
    line::{Entry, Flip},
    records::{self, Override},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_proxy::hub::HubOptions;
use sharded_etcd_shard::Shard;
use sharded_etcd_testkit::wait_until;
use support::Topology;
use watch_support::{Gate, PATIENCE, Served, all_words, create, everything, words};

async fn put(shard: &dyn Shard, key: impl Into<Bytes>, value: &str) -> i64 {
    let put = pb::PutRequest { key: key.into(), value: value.to_owned().into(), ..Default::default() };
    shard.put(put).await.unwrap().header.unwrap().revision
}

fn put_op(key: impl Into<Bytes>, value: impl Into<Bytes>) -> pb::RequestOp {
    let put = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    pb::RequestOp { request: Some(pb::Request::RequestPut(put)) }
}

fn delete_op(key: impl Into<Bytes>) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest { key: key.into(), ..Default::default() };
    pb::RequestOp { request: Some(pb::Request::RequestDeleteRange(delete)) }
}

fn txn_op(ops: Vec<pb::RequestOp>) -> pb::RequestOp {
    let txn = pb::TxnRequest { success: ops, ..Default::default() };
    pb::RequestOp { request: Some(pb::Request::RequestTxn(txn)) }
}

async fn txn(shard: &dyn Shard, ops: Vec<pb::RequestOp>) -> i64 {
    let txn = pb::TxnRequest { success: ops, ..Default::default() };
    shard.txn(txn).await.unwrap().header.unwrap().revision
}

/// Two shards parted at "m"; the line is at revision 1.
async fn two() -> Topology {
    Topology::start(2, &["m"]).await
}

/// Waits until a local revision is part of the line; its number.
async fn number(served: &Served, shard: u32, local: i64) -> i64 {
    served.ctx.line.cover(ShardIx(shard), local).await.unwrap();
    served.ctx.line.with_fold(|f| f.global(ShardIx(shard), local)).unwrap()
}

#[tokio::test]
async fn events_of_all_shards_come_in_the_lines_order_with_previous_pairs() {
    let t = two().await;
    let served = Served::start(t.context("p").await, HubOptions::default()).await;
    let mut client = served.client().await;
    assert_eq!(client.create(everything(0)).await.header.unwrap().revision, 1);
    let (a, b) = (t.shards[0].as_ref(), t.shards[1].as_ref());
    let mut seen = Vec::new();
    for (shard, of, key, value) in [(0, a, "a", "1"), (1, b, "x", "2"), (0, a, "a", "3"), (1, b, "x", "4")] {
        let local = put(of, key, value).await;
        number(&served, shard, local).await;
        seen.extend(client.events(1).await);
    }
    let local = txn(a, vec![delete_op("a"), put_op("b", "5")]).await;
    assert_eq!(number(&served, 0, local).await, 6);
    seen.extend(client.events(2).await);
    let all = [
        "+a=1@2(2,1)",
        "+x=2@3(3,1)",
        "+a=3@4(2,2)<1@2(2,1)",
        "+x=4@5(3,2)<2@3(3,1)",
        "-a@6<3@4(2,2)",
        "+b=5@6(6,1)",
    ];
    assert_eq!(all_words(&seen), all);
    // The same from the past, by a proxy that has it in memory and by one that has to read it.
    let other = Served::start(t.context("q").await, HubOptions::default()).await;
    for served in [&served, &other] {
        let mut client = served.client().await;
        client.create(everything(4)).await;
        assert_eq!(all_words(&client.events(4).await), all[2..]);
    }
    served.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn ids_and_refusals_are_those_of_etcd() {
    let t = two().await;
    let etcd = Served::start(t.context("p").await, HubOptions::default()).await;
    let mut client = etcd.client().await;
    assert_eq!(client.create(create("a", b"", 0)).await.watch_id, 0);
    let named = pb::WatchCreateRequest { watch_id: 1, ..create("a", b"", 0) };
    assert_eq!(client.create(named.clone()).await.watch_id, 1);
    assert_eq!(client.create(create("a", b"", 0)).await.watch_id, 2, "the next that is free");
    let refusals = [
        (named.clone(), "mvcc: duplicate watch ID provided on the WatchStream"),
        (create("b", b"a", 0), "mvcc: watcher range is empty"),
        (create("b", b"b", 0), "mvcc: watcher range is empty"),
        (create("b", b"", -1), "etcdserver: mvcc: required revision has been compacted"),
    ];
    for (request, reason) in refusals {
        let answer = client.create(request).await;
        assert!(answer.canceled && answer.watch_id == -1, "{answer:?}");
        assert_eq!(answer.cancel_reason, reason);
    }
    client.cancel(77).await; // unknown: no answer
    client.cancel(1).await;
    let answer = client.next().await;
    assert!(answer.canceled && answer.watch_id == 1 && answer.cancel_reason.is_empty(), "{answer:?}");
    assert_eq!(client.create(named).await.watch_id, 1, "free again");
    put(t.shards[0].as_ref(), "a", "1").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let answer = client.next().await;
        assert_eq!(answer.events.len(), 1);
        ids.push(answer.watch_id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2]);
    etcd.stop().await;
    assert_eq!(client.end().await.code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn moved_keys_keep_their_revisions_and_copies_and_purges_do_not_show() {
    let t = two().await;
    let (a, b) = (t.shards[0].as_ref(), t.shards[1].as_ref());
    let served = Served::start(t.context("p").await, HubOptions::default()).await;
    let mut client = served.client().await;
    client.create(everything(0)).await;
    for value in ["1", "2"] {
        put(a, "k1", value).await;
    }
    let last = put(a, "k2", "1").await;
    number(&served, 0, last).await; // k1 at 2 and 3, k2 at 4
    let import = |key: &'static str, value: &'static str, o: Override| {
        vec![put_op(key, value), put_op(records::override_key(key.as_bytes()), o.encode())]
    };
    let mut ops = import("k1", "2", Override { create: 2, modified: 3, version: 2 });
    ops.extend(import("k2", "1", Override { create: 4, modified: 4, version: 1 }));
    let to_local = txn(b, ops).await;
    let from_local = put(a, records::fence_key(&Rid::new("b-0")), "closed by m1").await;
    let flip = Entry::Flip(Flip {
        id: "m1".into(),
        range: KeyRange::new("", "m"),
        rid: Rid::new("b-0"),
        new_rid: Rid::new("m1"),
        from: ShardIx(0),
        to: ShardIx(1),
        from_local,
        to_local,
    });
    let flipped = served.ctx.line.append(&flip).await.unwrap().revision;
    let purge = vec![delete_op("k1"), delete_op("k2")];
    txn(a, purge).await;
    put(b, "k1", "3").await;
    let delete = vec![delete_op("k2"), delete_op(records::override_key(b"k2"))];
    txn(b, delete).await;
    let last = put(b, "k2", "new").await;
    let at = number(&served, 1, last).await;
    assert_eq!(flipped, 7);
    let all = [
        "+k1=1@2(2,1)".to_owned(),
        "+k1=2@3(2,2)<1@2(2,1)".to_owned(),
        "+k2=1@4(4,1)".to_owned(),
        format!("+k1=3@{}(2,3)<2@3(2,2)", at - 2),
        format!("-k2@{}<1@4(4,1)", at - 1),
        format!("+k2=new@{at}({at},1)"),
    ];
    assert_eq!(all_words(&client.events(6).await), all);
    let other = Served::start(t.context("q").await, HubOptions::default()).await;
    let mut client = other.client().await;
    client.create(everything(3)).await;
    assert_eq!(all_words(&client.events(5).await), all[1..]);
    served.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn progress_covers_what_was_acknowledged_before_it_was_asked_for() {
    let t = two().await;
    let served = Served::start(t.context("p").await, HubOptions::default()).await;
    let other = t.context("q").await;
    let mut client = served.client().await;
    client.create(create("a", b"", 0)).await;
    for i in 0..20 {
        // Acknowledged by another proxy; this one may not know of it yet.
        let shard = i % 2;
        let local = put(t.shards[shard].as_ref(), ["a", "x"][shard], "v").await;
        let cut = other.line.cover(ShardIx(shard as u32), local).await.unwrap();
        client.ask_progress().await;
        let mut events = 0;
        let progress = loop {
            let answer = client.next().await;
            events += answer.events.len();
            if answer.watch_id == -1 {
                break answer;
            }
        };
        assert!(progress.header.unwrap().revision >= cut.revision);
        assert_eq!(events, 1 - shard, "events come before the progress that covers them");
    }
    served.stop().await;
    other.line.close().await;
}

#[tokio::test]
async fn progress_that_is_asked_for_while_meta_is_away_is_answered_later() {
    let mut t = two().await;
    let meta = Gate::new(Arc::clone(&t.meta));
    t.meta = Arc::clone(&meta) as Arc<dyn Shard>;
    let context = t.context("p").await;
    let line = Arc::clone(&context.line);
    let reads = || line.stats.refreshes.load(Ordering::Relaxed);
    let served = Served::start(context, HubOptions::default()).await;
    let mut client = served.client().await;
    let begun = client.create(create("a", b"", 0)).await.header.unwrap().revision;
    meta.set_open(false);
    let before = reads();
    client.ask_progress().await;
    let tried = || async { (reads() > before + 1).then_some(()) };
    wait_until("two reads that fail", Duration::from_secs(20), tried).await.unwrap();
    meta.set_open(true);
    let answer = client.next().await;
    assert_eq!(answer.watch_id, -1, "{answer:?}");
    assert!(answer.events.is_empty() && answer.header.unwrap().revision >= begun);
    served.stop().await;
}

#[tokio::test]
async fn a_shard_that_cannot_be_reached_holds_up_only_its_own_ranges() {
    let t = two().await;
    let gate = Gate::new(Arc::clone(&t.shards[0]));
    t.directory.insert("shard-0", Arc::clone(&gate) as Arc<dyn Shard>);
    let served = Served::start(t.context("p").await, HubOptions::default()).await;
    let mut on_a = served.client().await;
    on_a.create(everything(0)).await;
    let mut on_b = served.client().await;
    on_b.create(create("x", b"", 0)).await;
    put(t.shards[0].as_ref(), "a", "1").await;
    on_a.events(1).await;
    gate.set_open(false);
    // Another proxy still reaches it, and its writes are acknowledged.
    let other = t.context("q").await;
    let local = put(t.shards[0].as_ref(), "a", "2").await;
    other.line.cover(ShardIx(0), local).await.unwrap();
    for i in 0..3 {
        let local = put(t.shards[1].as_ref(), "x", "v").await;
        number(&served, 1, local).await;
        assert_eq!(all_words(&on_b.events(1).await).len(), 1, "put {i}");
    }
    on_b.ask_progress().await;
    assert_eq!(on_b.next().await.watch_id, -1);
    gate.set_open(true);
    let seen = all_words(&on_a.events(4).await);
    assert_eq!(seen[0], "+a=2@3(2,2)<1@2(2,1)");
    assert_eq!(seen.len(), 4);
    served.stop().await;
    other.line.close().await;
}

#[tokio::test]
async fn compacted_starts_are_refused_exactly() {
    let t = two().await;
    let served = Served::start(t.context("p").await, HubOptions::default()).await;
    let mut last = 0;
    for i in 0..6 {
        last = put(t.shards[0].as_ref(), "a", &i.to_string()).await;
    }
    let newest = number(&served, 0, last).await;
    served.ctx.line.append(&Entry::Compact(5)).await.unwrap();
    let compact = pb::CompactionRequest {
        revision: served.ctx.line.with_fold(|f| f.local_at_most(ShardIx(0), 5)).unwrap(),
        physical: true,
    };
    t.shards[0].compact(compact).await.unwrap();
    let mut client = served.client().await;
    client.create(create("a", b"", 4)).await;
    let answer = client.next().await;
    assert!(answer.canceled && answer.compact_revision == 5 && answer.watch_id == 0, "{answer:?}");
    // From memory and from disk; at the compaction's own revision there is no previous pair, as in etcd.
    let other = Served::start(t.context("q").await, HubOptions::default()).await;
    for served in [&served, &other] {
        let mut client = served.client().await;
        client.create(everything(5)).await;
        let seen = all_words(&client.events(3).await);
        assert_eq!(seen, ["+a=3@5(2,4)", "+a=4@6(2,5)<3@5(2,4)", "+a=5@7(2,6)<4@6(2,5)"]);
    }
    assert_eq!(newest, 7);
    served.stop().await;
    other.stop().await;
}

/// A shard may be compacted before this proxy has heard of it: what is still there is not refused for that.
#[tokio::test]
async fn a_compaction_that_is_not_known_yet_refuses_nobody_at_its_very_revision() {
    let mut t = two().await;
    let other = t.context("q").await;
    let mut last = 0;
    for i in 0..6 {
        last = put(t.shards[0].as_ref(), "a", &i.to_string()).await;
    }
    other.line.cover(ShardIx(0), last).await.unwrap();
    let (meta, shard) = (Gate::new(Arc::clone(&t.meta)), Gate::new(Arc::clone(&t.shards[0])));
    t.meta = Arc::clone(&meta) as Arc<dyn Shard>;
    t.directory.insert("shard-0", Arc::clone(&shard) as Arc<dyn Shard>);
    // It has nothing of that in memory.
    let served = Served::start(t.context("p").await, HubOptions::default()).await;
    assert_eq!(number(&served, 0, last).await, 7);
    meta.set_open(false);
    other.line.append(&Entry::Compact(5)).await.unwrap();
    let at = other.line.with_fold(|f| f.local_at_most(ShardIx(0), 5)).unwrap();
    t.shards[0].compact(pb::CompactionRequest { revision: at, physical: true }).await.unwrap();
    let mut client = served.client().await;
    client.create(everything(5)).await;
    let replays =
        || async { (shard.watched().iter().filter(|w| w.start_revision == at).count() > 1).then_some(()) };
    wait_until("a second try to read history", PATIENCE, replays).await.unwrap();
    meta.set_open(true);
    let seen = all_words(&client.events(3).await);
    assert_eq!(seen, ["+a=3@5(2,4)", "+a=4@6(2,5)<3@5(2,4)", "+a=5@7(2,6)<4@6(2,5)"]);
    served.stop().await;
    other.line.close().await;
}

#[tokio::test]
async fn history_that_is_lost_ends_those_that_need_it() {
    let t = two().await;
    let gate = Gate::new(Arc::clone(&t.shards[0]));
    t.directory.insert("shard-0", Arc::clone(&gate) as Arc<dyn Shard>);
    let served = Served::start(t.context("p").await, HubOptions::default()).await;
    let mut on_a = served.client().await;
    on_a.create(everything(0)).await;
    let mut on_b = served.client().await;
    on_b.create(create("x", b"", 0)).await;
    gate.set_open(false);
    // Compacted while this proxy cannot reach the shard, beyond what it has read.
    let other = t.context("q").await;
    let mut last = 0;
    for i in 0..5 {
        last = put(t.shards[0].as_ref(), "a", &i.to_string()).await;
    }
    let cut = other.line.cover(ShardIx(0), last).await.unwrap();
    let compact = pb::CompactionRequest { revision: last, physical: true };
    t.shards[0].compact(compact).await.unwrap();
    other.line.append(&Entry::Compact(cut.revision)).await.unwrap();
    gate.set_open(true);
    let answer = on_a.next().await;
    assert!(answer.canceled && answer.compact_revision > 0, "{answer:?}");
    let local = put(t.shards[1].as_ref(), "x", "v").await;
    let at = number(&served, 1, local).await;
    assert_eq!(all_words(&on_b.events(1).await), [format!("+x=v@{at}({at},1)")]);
    // Where it was told to start it can start.
    let answer = on_a.create(everything(answer.compact_revision)).await;
    assert!(!answer.canceled, "{answer:?}");
    put(t.shards[0].as_ref(), "a", "new").await;
    // What the compaction left is there, as in etcd.
    let seen = all_words(&on_a.events(3).await);
    assert!(seen[0].starts_with("+a=4@6(") && seen[1].starts_with("+x=v@"), "{seen:?}");
    assert!(seen[2].starts_with("+a=new@") && seen[2].contains("<4@6("), "{seen:?}");
    served.stop().await;
    other.line.close().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_and_misses_nothing() {
    let t = two().await;
    let small = HubOptions { window_bytes_max: 4 << 20, ..HubOptions::default() };
    let served = Served::start(t.context("p").await, small).await;
    let mut slow = served.client().await;
    slow.create(everything(0)).await;
    let mut quick = served.client().await;
    quick.create(create("a", b"", 0)).await;
    // More than the room of a stream, the connection's window and the hub's memory hold together.
    let value = "v".repeat(200 << 10);
    let puts = 150;
    for i in 0..puts {
        put(t.shards[0].as_ref(), "a", &value).await;
        assert_eq!(quick.events(1).await.len(), 1, "put {i}");
    }
    let seen = slow.events(puts).await;
    let revisions: Vec<_> = seen.iter().map(|e| e.kv.as_ref().unwrap().mod_revision).collect();
    assert_eq!(revisions, (2..2 + puts as i64).collect::<Vec<_>>());
    assert!(seen[1..].iter().all(|e| e.prev_kv.is_some()));
    served.stop().await;
}

#[tokio::test]
async fn fences_are_told_of_as_soon_as_they_are_written() {
    let t = two().await;
    let served = Served::start(t.context("p").await, HubOptions::default()).await;
    let mut fences = served.hub.fence_events();
    put(t.shards[0].as_ref(), "a", "1").await;
    put(t.shards[1].as_ref(), records::fence_key(&Rid::new("b-1")), "closed by m1").await;
    let told = tokio::time::timeout(watch_support::PATIENCE, fences.recv()).await.unwrap().unwrap();
    assert_eq!(told, ShardIx(1));
    served.stop().await;
}

#[tokio::test]
async fn a_hub_that_slept_misses_nothing() {
    let t = two().await;
    let options = HubOptions { sleep_after: std::time::Duration::ZERO, ..HubOptions::default() };
    let served = Served::start(t.context("p").await, options).await;
    let mut next = 2;
    for round in 0..4 {
        wait_until("the hub sleeps", watch_support::PATIENCE, async || served.hub.is_asleep().then_some(()))
            .await
            .unwrap();
        let local = put(t.shards[0].as_ref(), "a", "while it slept").await;
        number(&served, 0, local).await;
        let mut now = served.client().await;
        let mut past = served.client().await;
        // Now comes first in half of the rounds: it wakes the hub.
        if round % 2 == 0 {
            now.create(everything(0)).await;
            past.create(everything(next)).await;
        } else {
            past.create(everything(next)).await;
            now.create(everything(0)).await;
        }
        let local = put(t.shards[1].as_ref(), "x", "while it was awake").await;
        let at = number(&served, 1, local).await;
        let revision = |e: &pb::Event| e.kv.as_ref().unwrap().mod_revision;
        assert_eq!(past.events(2).await.iter().map(revision).collect::<Vec<_>>(), [next, next + 1]);
        assert_eq!(now.events(1).await.iter().map(revision).collect::<Vec<_>>(), [at]);
        next += 2;
    }
    served.stop().await;
}

#[tokio::test]
async fn progress_notifications_come_when_nothing_else_does() {
    let t = two().await;
    let mut ctx = Arc::into_inner(t.context("p").await).unwrap();
    ctx.limits.progress_interval = std::time::Duration::from_millis(100);
    let served = Served::start(Arc::new(ctx), HubOptions::default()).await;
    let mut client = served.client().await;
    client.create(pb::WatchCreateRequest { progress_notify: true, watch_id: 9, ..create("a", b"", 0) }).await;
    client.create(pb::WatchCreateRequest { watch_id: 10, ..create("b", b"", 0) }).await;
    let local = put(t.shards[1].as_ref(), "x", "v").await;
    let at = number(&served, 1, local).await;
    loop {
        let answer = client.next().await;
        assert!(answer.watch_id == 9 && answer.events.is_empty(), "{answer:?}");
        if answer.header.unwrap().revision == at {
            break;
        }
    }
    served.stop().await;
}

/// Random writes to two shards and to one engine; then all watchers must have seen the same, however they read it.
///
/// With `flaps`, the proxy loses and regains its shards on the way, while writes go on past it.
async fn as_one_etcd(t: &Topology, reference: &dyn Shard, seed: u64, steps: usize, flaps: f64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut gates = Vec::new();
    for (i, shard) in t.shards.iter().enumerate() {
        let gate = Gate::new(Arc::clone(shard));
        t.directory.insert(format!("shard-{i}"), Arc::clone(&gate) as Arc<dyn Shard>);
        gates.push(gate);
    }
    let mut early = Vec::new();
    let small = HubOptions { window_revisions_max: 16, ..HubOptions::default() };
    let served = Served::start(t.context("p").await, small).await;
    let mut live = served.client().await;
    live.create(everything(0)).await;
    let first = reference.range(pb::RangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    let start = first.header.unwrap().revision + 1;
    let mut starts = vec![2];
    for step in 0..steps {
        let shard = rng.random_range(0..2_usize);
        let mut key = || format!("{}{}", ["a", "x"][shard], rng.random_range(0..5));
        let keys = [key(), key(), key()];
        let value = step.to_string();
        let ops = match rng.random_range(0..6) {
            0 => vec![delete_op(keys[0].clone())],
            1 => vec![put_op(keys[0].clone(), value.clone()), txn_op(vec![delete_op(keys[0].clone())])],
            2 => {
                let mut ops: Vec<_> = keys[..2].iter().map(|k| put_op(k.clone(), value.clone())).collect();
                ops.truncate(if keys[0] == keys[1] { 1 } else { 2 });
                ops
            }
            3 => vec![delete_op(keys[0].clone()), txn_op(vec![put_op(keys[0].clone(), value.clone())])],
            _ => vec![put_op(keys[0].clone(), value.clone())],
        };
        let of = |ops| pb::TxnRequest { success: ops, ..Default::default() };
        let here = t.shards[shard].txn(of(ops.clone())).await;
        let there = reference.txn(of(ops)).await;
        match (here, there) {
            (Ok(here), Ok(_)) => {
                let local = here.header.unwrap().revision;
                // One after the other, so that both have one order.
                served.ctx.line.cover(ShardIx(shard as u32), local).await.unwrap();
            }
            (Err(here), Err(there)) => assert_eq!(here, there),
            other => panic!("seed {seed}: {other:?}"),
        }
        if rng.random_bool(0.05) {
            starts.push(served.ctx.line.cut().revision + 1);
        }
        if rng.random_bool(0.05) {
            let start = rng.random_range(2..served.ctx.line.cut().revision + 3);
            let mut client = served.client().await;
            client.create(everything(start)).await;
            early.push((start, client));
        }
        for gate in &gates {
            if rng.random_bool(flaps) {
                gate.set_open(rng.random_bool(0.5));
            }
        }
    }
    for gate in &gates {
        gate.set_open(true);
    }
    let end = put(reference, "end", "").await;
    let local = put(t.shards[0].as_ref(), "end", "").await;
    served.ctx.line.cover(ShardIx(0), local).await.unwrap();
    // What the one etcd's watcher says, with the line's numbers in place of its own.
    let mut stream = reference.watch(everything(start)).await.unwrap();
    let mut expected = Vec::new();
    while expected.last().is_none_or(|e: &pb::Event| e.kv.as_ref().unwrap().mod_revision != end) {
        expected.extend(futures::StreamExt::next(&mut stream).await.unwrap().unwrap().events);
    }
    // A Txn that changes nothing is no revision on either, so numbers are consecutive here and there.
    let rename = |mut kv: pb::KeyValue| {
        kv.create_revision = (kv.create_revision - start + 2).max(0);
        kv.mod_revision = kv.mod_revision - start + 2;
        kv
    };
    let expected: Vec<_> = expected
        .into_iter()
        .map(|e| {
            let delete = e.r#type() == pb::EventType::Delete;
            let mut kv = rename(e.kv.unwrap());
            kv.create_revision *= i64::from(!delete);
            pb::Event { kv: Some(kv), prev_kv: e.prev_kv.map(rename), ..e }
        })
        .collect();
    let seen = live.events(expected.len()).await;
    assert_eq!(all_words(&seen), all_words(&expected), "seed {seed}");
    for start in starts {
        let mut client = served.client().await;
        client.create(everything(start)).await;
        early.push((start, client));
    }
    for (start, mut client) in early {
        let from = expected.partition_point(|e| e.kv.as_ref().unwrap().mod_revision < start);
        let seen = client.events(expected.len() - from).await;
        assert_eq!(all_words(&seen), all_words(&expected[from..]), "seed {seed}, from {start}");
        // One key of it, without previous pairs.
        let mut client = served.client().await;
        client.create(create("x1", b"", start)).await;
        let one: Vec<_> = expected[from..]
            .iter()
            .filter(|e| e.kv.as_ref().unwrap().key == "x1")
            .map(|e| words(&pb::Event { prev_kv: None, ..e.clone() }))
            .collect();
        assert_eq!(all_words(&client.events(one.len()).await), one, "seed {seed}, from {start}");
    }
    served.stop().await;
}

#[tokio::test]
async fn watchers_of_two_engines_see_what_a_watcher_of_one_sees() {
    for seed in 1..=5 {
        let dir = tempfile::tempdir().unwrap();
        let reference = support::engine(&dir, "reference").await;
        as_one_etcd(&two().await, reference.as_ref(), seed, 150, 0.0).await;
    }
}

#[tokio::test]
async fn watchers_of_engines_that_come_and_go_see_what_a_watcher_of_one_sees() {
    for seed in 11..=15 {
        let dir = tempfile::tempdir().unwrap();
        let reference = support::engine(&dir, "reference").await;
        as_one_etcd(&two().await, reference.as_ref(), seed, 200, 0.05).await;
    }
}

#[tokio::test]
async fn watchers_of_two_etcds_see_what_a_watcher_of_one_sees() {
    let options = sharded_etcd_testkit::EtcdProcessOptions { fsync: false, ..Default::default() };
    let reference = sharded_etcd_testkit::EtcdProcess::start(options).await.unwrap();
    let t = Topology::start_etcd(2, &["m"]).await;
    as_one_etcd(&t, &reference.shard(), 6, 150, 0.05).await;
}
