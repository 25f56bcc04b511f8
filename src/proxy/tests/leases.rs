//! Leases over two shards and several proxies: etcd's answers, and invariant 6 (never early, nothing attaches after a
//! revoke, no orphans), also when a proxy dies at any step.
#![allow(clippy::unwrap_used)]

mod lease_support;
mod support;

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use lease_support::{Fate, LIMIT, Proxy, left_of_leases, nothing_left, put, quick, shadows, stored, unswept};
use sharded_etcd_core::{
    keyspace::{KeyRange, Rid, ShardIx},
    lease::{Marker, MarkerView, NEVER_GRANTED, Over, marker_txn, read_marker_txn},
    records::{
        Claim, ClaimState, Claims, FENCE_OPEN, Record, claims_key, fence_closed_by, fence_key, lease_key,
        lease_marker_key, lease_shadow_key,
    },
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_testkit::wait_until;
use support::Topology;
use tokio::time::Instant;
use tonic::Code;

/// Shard 0 has what is below "m", shard 1 the rest.
async fn two_shards() -> Topology {
    Topology::start(2, &["m"]).await
}

fn pairs(keys: &[&str], lease: i64) -> Vec<(String, i64)> {
    keys.iter().map(|key| ((*key).to_owned(), lease)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_as_etcd_does() {
    let topology = two_shards().await;
    let proxy = Proxy::start(&topology, "a", unswept()).await;
    let granted = proxy.leases.grant(60, 0).await.unwrap();
    assert!(granted.id > 0 && granted.ttl == 60 && granted.error.is_empty());
    assert!(granted.header.unwrap().revision >= 1);
    assert!((50..=60).contains(&proxy.ttl(granted.id).await));
    // etcd raises what is too short, also 0 and less (server/lease/lessor.go, Grant).
    for ttl in [-5, 0, 1] {
        assert_eq!(proxy.leases.grant(ttl, 0).await.unwrap().ttl, 2);
    }
    let chosen = proxy.leases.grant(60, -77).await.unwrap();
    assert_eq!(chosen.id, -77);
    let twice = proxy.leases.grant(60, -77).await.unwrap_err();
    assert_eq!(
        (twice.code(), twice.message()),
        (Code::FailedPrecondition, "etcdserver: lease already exists")
    );
    assert_eq!(proxy.leases.grant(60, NEVER_GRANTED).await.unwrap_err().message(), twice.message());
    let long = proxy.leases.grant(9_000_000_001, 0).await.unwrap_err();
    assert_eq!((long.code(), long.message()), (Code::OutOfRange, "etcdserver: too large lease TTL"));
    assert_eq!(proxy.leases.grant(9_000_000_000, 0).await.unwrap().ttl, 9_000_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_on_two_shards_go_with_a_revoke() {
    let topology = two_shards().await;
    let (a, b) =
        (Proxy::start(&topology, "a", unswept()).await, Proxy::start(&topology, "b", unswept()).await);
    let id = a.grant(60).await;
    for key in ["z", "a", "b"] {
        a.put(key, id).await.unwrap();
    }
    b.put("q", id).await.unwrap();
    a.put("kept", 0).await.unwrap();
    a.put("detached", id).await.unwrap();
    a.put("detached", 0).await.unwrap();
    assert_eq!(b.keys_of(id).await, ["a", "b", "q", "z"]);
    assert!(b.keys().await.contains(&("q".to_owned(), id)));

    let revoked = b.leases.revoke(id).await.unwrap();
    assert_eq!(a.keys().await, pairs(&["detached", "kept"], 0), "seen on the other proxy at once");
    assert_eq!((a.ttl(id).await, b.ttl(id).await), (-1, -1));
    assert_eq!(a.leases.keep_alive(id).await.unwrap().ttl, 0);
    assert_eq!(a.ids().await, Vec::<i64>::new());
    let newest = a.put("later", 0).await.unwrap();
    let revision = revoked.header.unwrap().revision;
    assert!(revision < newest, "the revoke's revision covers its deletes, and is not above what follows");

    for proxy in [&a, &b] {
        let late = proxy.put("late", id).await.unwrap_err();
        assert_eq!((late.code(), late.message()), (Code::NotFound, "etcdserver: requested lease not found"));
    }
    let again = a.leases.revoke(id).await.unwrap_err();
    assert_eq!((again.code(), again.message()), (Code::NotFound, "etcdserver: requested lease not found"));
    assert_eq!(a.keys().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_keys_of_one_shard_go_in_one_revision() {
    let topology = two_shards().await;
    let proxy = Proxy::start(&topology, "a", unswept()).await;
    let id = proxy.grant(60).await;
    let keys: Vec<String> = (0..300).map(|i| format!("a/{i:04}")).collect();
    for result in join_all(keys.iter().map(|key| proxy.put(key, id))).await {
        result.unwrap();
    }
    let before = topology.shards[0].range(pb::RangeRequest { key: "x".into(), ..Default::default() }).await;
    let before = before.unwrap().header.unwrap().revision;
    proxy.leases.revoke(id).await.unwrap();
    let events = pb::WatchCreateRequest {
        key: "a/".into(),
        range_end: "a0".into(),
        start_revision: before + 1,
        ..Default::default()
    };
    let mut events = topology.shards[0].watch(events).await.unwrap();
    let mut deletes = Vec::new();
    while deletes.len() < keys.len() {
        let response = futures::StreamExt::next(&mut events).await.unwrap().unwrap();
        deletes.extend(response.events.into_iter().filter_map(|e| e.kv).map(|kv| kv.mod_revision));
    }
    deletes.dedup();
    assert_eq!(deletes.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_lease_counts_only_in_the_branch_that_runs() {
    let topology = two_shards().await;
    let proxy = Proxy::start(&topology, "a", unswept()).await;
    let txn = |version| pb::TxnRequest {
        compare: vec![pb::Compare {
            target: pb::CompareTarget::Version.into(),
            key: "k".into(),
            target_union: Some(pb::TargetUnion::Version(version)),
            ..Default::default()
        }],
        success: vec![pb::RequestOp {
            request: Some(pb::Request::RequestPut(pb::PutRequest { lease: 4711, ..put("k", "v") })),
        }],
        ..Default::default()
    };
    assert!(!proxy.kv.txn(txn(1)).await.unwrap().succeeded);
    let error = proxy.kv.txn(txn(0)).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "etcdserver: requested lease not found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn expires_in_time_and_never_before_it() {
    let topology = two_shards().await;
    let (a, b) =
        (Proxy::start(&topology, "a", unswept()).await, Proxy::start(&topology, "b", unswept()).await);
    let id = a.grant(2).await;
    a.put("a", id).await.unwrap();
    b.put("z", id).await.unwrap();
    // Renewed on any proxy, it outlives its TTL by far.
    let mut renewed = Instant::now();
    for i in 0..5 {
        // What is measured is the time itself.
        tokio::time::sleep(Duration::from_millis(900)).await;
        let before = Instant::now();
        let answer = [&a, &b][i % 2].leases.keep_alive(id).await.unwrap();
        assert_eq!((answer.id, answer.ttl), (id, 2));
        assert_eq!(a.keys().await.len(), 2);
        renewed = before;
    }
    let gone = wait_until("the keys are gone", LIMIT, async || a.keys().await.is_empty().then(Instant::now));
    let gone = gone.await.unwrap() - renewed;
    assert!(gone >= Duration::from_secs(2), "after {gone:?}");
    assert_eq!(b.leases.keep_alive(id).await.unwrap().ttl, 0);
    wait_until("it is no more", LIMIT, async || (b.ttl(id).await == -1).then_some(())).await.unwrap();
    assert!(b.put("late", id).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_revoke_at_once() {
    let topology = two_shards().await;
    let (a, b) = (Proxy::start(&topology, "a", quick()).await, Proxy::start(&topology, "b", quick()).await);
    for _ in 0..5 {
        let id = a.grant(60).await;
        a.put("a", id).await.unwrap();
        b.put("z", id).await.unwrap();
        let both = futures::future::join(a.leases.revoke(id), b.leases.revoke(id)).await;
        let codes =
            [both.0.map_or_else(|e| e.code(), |_| Code::Ok), both.1.map_or_else(|e| e.code(), |_| Code::Ok)];
        assert!(codes.contains(&Code::Ok) && codes.contains(&Code::NotFound), "{codes:?}");
        assert_eq!(a.keys().await, []);
    }
    nothing_left(&topology).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_comes_back_without_its_past() {
    let topology = two_shards().await;
    let (a, b) = (Proxy::start(&topology, "a", quick()).await, Proxy::start(&topology, "b", quick()).await);
    for round in 0..4 {
        // Its shadows may be on their way out for a moment.
        let granted = wait_until("the id is free", LIMIT, async || a.leases.grant(60, 7).await.ok()).await;
        assert_eq!(granted.unwrap().id, 7);
        // Both remember the epoch before.
        a.put("a", 7).await.unwrap();
        b.put("z", 7).await.unwrap();
        b.put("b", 7).await.unwrap();
        assert_eq!(a.keys_of(7).await, ["a", "b", "z"], "round {round}");
        b.leases.revoke(7).await.unwrap();
        assert_eq!(a.keys().await, []);
    }
    nothing_left(&topology).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_attach_brings_nothing_back() {
    let topology = two_shards().await;
    let proxy = Proxy::start(&topology, "a", quick()).await;
    let shard = &topology.shards[0];
    let id = proxy.grant(60).await;
    let answer = topology.meta.range(pb::RangeRequest { key: lease_key(id), ..Default::default() }).await;
    let epoch = answer.unwrap().kvs[0].create_revision;
    // Another proxy has got this far: it is registered, and about to put its marker.
    let floor = MarkerView::from_answer(&shard.txn(read_marker_txn(id)).await.unwrap()).floor;
    let late = marker_txn(id, Marker::Live(epoch), Over::Nothing, Some(floor));
    topology
        .meta
        .put(pb::PutRequest { key: lease_shadow_key(id, ShardIx(0)), ..Default::default() })
        .await
        .unwrap();
    proxy.leases.revoke(id).await.unwrap();
    assert!(!shard.txn(late.clone()).await.unwrap().succeeded, "the marker says that it is over");
    nothing_left(&topology).await;
    assert!(!shard.txn(late).await.unwrap().succeeded, "nor once the marker is removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn metas_own_leases_are_not_clients() {
    let topology = two_shards().await;
    let proxy = Proxy::start(&topology, "a", quick()).await;
    topology.meta.lease_grant(pb::LeaseGrantRequest { id: 99, ttl: 3 }).await.unwrap();
    let own = pb::PutRequest { key: "proxies/x".into(), lease: 99, ..Default::default() };
    topology.meta.put(own).await.unwrap();
    assert_eq!(proxy.ids().await, Vec::<i64>::new());
    assert_eq!(proxy.ttl(99).await, -1);
    assert_eq!(proxy.put("k", 99).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(proxy.leases.revoke(99).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(proxy.leases.grant(60, 99).await.unwrap_err().code(), Code::FailedPrecondition);
    let renewed = Instant::now();
    wait_until("it expires, as clients cannot renew it, and nobody else ends it", LIMIT, async || {
        assert_eq!(proxy.leases.keep_alive(99).await.unwrap().ttl, 0);
        stored(topology.meta.as_ref(), &KeyRange::key(b"proxies/x")).await.is_empty().then_some(())
    })
    .await
    .unwrap();
    assert!(renewed.elapsed() > Duration::from_millis(2500));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failures_left_behind_is_swept() {
    let topology = two_shards().await;
    // A grant that stopped half-way, for ever; a shadow that nobody knows of, with a key.
    topology.meta.lease_grant(pb::LeaseGrantRequest { id: 5, ttl: 9_000_000_000 }).await.unwrap();
    let shard = &topology.shards[1];
    shard.lease_grant(pb::LeaseGrantRequest { id: 6, ttl: 9_000_000_000 }).await.unwrap();
    shard.put(pb::PutRequest { lease: 6, ..put("z", "orphan") }).await.unwrap();
    // A marker of a lease that has ended.
    let marker = pb::PutRequest {
        key: lease_marker_key(8),
        value: Marker::Revoking(3).encode(),
        ..Default::default()
    };
    shard.put(marker).await.unwrap();
    let proxy = Proxy::start(&topology, "a", quick()).await;
    let living = proxy.grant(60).await;
    proxy.put("a", living).await.unwrap();
    let granted = wait_until("the id is free", LIMIT, async || proxy.leases.grant(60, 5).await.ok()).await;
    assert_eq!(granted.unwrap().id, 5);
    wait_until("the orphan is gone", LIMIT, async || {
        let gone = shadows(&topology, ShardIx(1)).await.is_empty()
            && stored(shard.as_ref(), &KeyRange::key(&lease_marker_key(8))).await.is_empty();
        gone.then_some(())
    })
    .await
    .unwrap();
    assert_eq!(proxy.keys().await, pairs(&["a"], living), "what lives is left alone");
    proxy.leases.revoke(5).await.unwrap();
    proxy.leases.revoke(living).await.unwrap();
    nothing_left(&topology).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_fence_holds_a_revoke_up_and_nothing_else() {
    let topology = two_shards().await;
    let proxy = Proxy::start(&topology, "a", quick()).await;
    let id = proxy.grant(60).await;
    proxy.put("a", id).await.unwrap();
    proxy.put("z", id).await.unwrap();
    let fence = |value| pb::PutRequest { key: fence_key(&Rid::new("b-0")), value, ..Default::default() };
    topology.shards[0].put(fence(fence_closed_by("m"))).await.unwrap();
    let leases = std::sync::Arc::clone(&proxy.leases);
    let revoke = tokio::spawn(async move { leases.revoke(id).await });
    wait_until("the open range is cleared", LIMIT, async || {
        (proxy.keys().await == pairs(&["a"], id)).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(proxy.ttl(id).await, 0, "not gone before its keys are");
    assert_eq!(proxy.keys_of(id).await, ["a"]);
    assert!(!revoke.is_finished());
    topology.shards[0].put(fence(Bytes::from_static(FENCE_OPEN))).await.unwrap();
    revoke.await.unwrap().unwrap();
    assert_eq!(proxy.keys().await, []);
    nothing_left(&topology).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_import_keeps_its_copies() {
    let topology = two_shards().await;
    let proxy = Proxy::start(&topology, "a", quick()).await;
    let id = proxy.grant(60).await;
    proxy.put("a", id).await.unwrap();
    // A move is bringing "a" to shard 1, with its lease.
    let shard = &topology.shards[1];
    let mut claims =
        Claims::decode(&stored(shard.as_ref(), &KeyRange::key(&claims_key())).await[0].value).unwrap();
    let owned = claims.clone();
    let state = ClaimState::Importing("m".into());
    claims.claims.push(Claim { range: KeyRange::new("", "m"), rid: Rid::new("m"), state });
    let claim =
        |claims: &Claims| pb::PutRequest { key: claims_key(), value: claims.encode(), ..Default::default() };
    shard.put(claim(&claims)).await.unwrap();
    let register = pb::PutRequest { key: lease_shadow_key(id, ShardIx(1)), ..Default::default() };
    topology.meta.put(register).await.unwrap();
    shard.lease_grant(pb::LeaseGrantRequest { id, ttl: 9_000_000_000 }).await.unwrap();
    shard.put(pb::PutRequest { lease: id, ..put("a", "copy") }).await.unwrap();

    assert_eq!(proxy.keys_of(id).await, ["a"]);
    proxy.leases.revoke(id).await.unwrap();
    assert_eq!((proxy.keys().await, proxy.ttl(id).await), (vec![], -1));
    assert_eq!(proxy.ids().await, Vec::<i64>::new());
    wait_until("the other shadow is dropped", LIMIT, async || {
        shadows(&topology, ShardIx(0)).await.is_empty().then_some(())
    })
    .await
    .unwrap();
    assert_eq!(stored(shard.as_ref(), &KeyRange::key(b"a")).await.len(), 1);
    assert_eq!(shadows(&topology, ShardIx(1)).await, [id]);
    shard.put(claim(&owned)).await.unwrap();
    nothing_left(&topology).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_away_delays_only_its_own_keys() {
    let topology = two_shards().await;
    let proxy = Proxy::start(&topology, "a", quick()).await;
    let id = proxy.grant(60).await;
    proxy.put("a", id).await.unwrap();
    proxy.put("z", id).await.unwrap();
    let away = topology.directory.remove("shard-1").unwrap();
    let error = proxy.leases.revoke(id).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("shard-1"), "{}", error.message());
    assert_eq!(stored(topology.shards[0].as_ref(), &KeyRange::key(b"a")).await, []);
    assert_eq!(proxy.leases.keep_alive(id).await.unwrap().ttl, 0, "there is no way back");
    topology.directory.insert("shard-1", away);
    wait_until("the rest follows", LIMIT, async || proxy.keys().await.is_empty().then_some(()))
        .await
        .unwrap();
    nothing_left(&topology).await;
}

/// A proxy dies at each of its changes in turn, before and after it is applied; another one brings everything to its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoke_that_stops_anywhere_is_finished() {
    let topology = two_shards().await;
    let survivor = Proxy::start(&topology, "survivor", quick()).await;
    let mut deaths = 0;
    for applied in [false, true] {
        for step in 0.. {
            let id = if step % 2 == 0 { survivor.grant(60).await } else { 1000 + step };
            if step % 2 != 0 {
                wait_until("the id is free", LIMIT, async || survivor.leases.grant(60, id).await.ok())
                    .await
                    .unwrap();
            }
            survivor.put("a", id).await.unwrap();
            survivor.put("z", id).await.unwrap();
            let fate = Fate::new(step, applied);
            let doomed = Proxy::doomed(&topology, "doomed", &fate).await;
            let revoked = tokio::select! {
                result = doomed.leases.revoke(id) => { result.unwrap(); true }
                () = fate.died() => false,
            };
            if revoked {
                assert_eq!(survivor.keys().await, [], "answered at step {step}");
            } else {
                deaths += 1;
                if survivor.ttl(id).await > 0 {
                    assert!(step == 0 && !applied, "only a revoke that has not begun leaves a lease alone");
                    assert_eq!(survivor.keys_of(id).await, ["a", "z"]);
                    survivor.leases.revoke(id).await.unwrap();
                }
            }
            // The shadows may still be being dropped, by whoever lives.
            wait_until("it is over", LIMIT, async || (survivor.ttl(id).await == -1).then_some(()))
                .await
                .unwrap();
            assert_eq!(survivor.keys().await, [], "step {step}");
            assert!(survivor.put("late", id).await.is_err());
            let died = fate.died();
            let finished = revoked && futures::FutureExt::now_or_never(died).is_none() && {
                wait_until("nothing of it is left", LIMIT, async || {
                    (!left_of_leases(&topology).await.iter().any(|l| l.contains(&format!("lease/{id:016x}"))))
                        .then_some(())
                })
                .await
                .unwrap();
                futures::FutureExt::now_or_never(fate.died()).is_none()
            };
            doomed.ctx.shutdown.cancel();
            if finished {
                assert!(step >= 7, "a revoke over two shards takes more than {step} changes");
                break;
            }
        }
    }
    assert!(deaths >= 10, "{deaths}");
    nothing_left(&topology).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_or_attach_that_stops_anywhere_leaves_nothing() {
    let topology = two_shards().await;
    let survivor = Proxy::start(&topology, "survivor", quick()).await;
    for applied in [false, true] {
        for step in 0.. {
            let id = 500 + step;
            let fate = Fate::new(step, applied);
            let doomed = Proxy::doomed(&topology, "doomed", &fate).await;
            let work = async {
                doomed.leases.grant(600, id).await.unwrap();
                doomed.put("a", id).await.unwrap();
            };
            let done = tokio::select! {
                () = work => true,
                () = fate.died() => false,
            };
            doomed.ctx.shutdown.cancel();
            // Either it is a lease with which everything works, or the id is free.
            wait_until("the id works", LIMIT, async || {
                if survivor.ttl(id).await > 0 {
                    return Some(());
                }
                // Also a moment of 0: what was left is being ended.
                survivor.leases.grant(600, id).await.ok().map(|_| ())
            })
            .await
            .unwrap();
            survivor.put("a", id).await.unwrap();
            survivor.put("z", id).await.unwrap();
            assert_eq!(survivor.keys_of(id).await, ["a", "z"], "step {step}");
            survivor.leases.revoke(id).await.unwrap();
            assert_eq!(survivor.keys().await, [], "step {step}");
            if done {
                assert!(step >= 6, "a grant and a first attach take more than {step} changes");
                break;
            }
        }
    }
    nothing_left(&topology).await;
}
