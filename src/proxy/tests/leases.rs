//! Leases over two shards and several proxies: etcd's answers, and invariant 6 (never early, nothing attaches after a
//! revoke, no orphans), also when a proxy dies at any step.
#![allow(clippy::unwrap_used)]

mod lease_support;
mod support;

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use lease_support::{Fate, LIMIT, Proxy, left_of_leases, nothing_left, put, quick, shadows, stored, unswept};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sharded_etcd_core::{
    keyspace::{KeyRange, Rid, ShardIx},
    lease::{Marker, MarkerView, NEVER_GRANTED, Over, adopt_txn, marker_txn, read_marker_txn},
    line::{Entry, Flip},
    records::{
        CUT_LATEST, Claim, ClaimState, Claims, FENCE_OPEN, LeaseRecord, LeaseState, MAP, MapRecord, Override,
        Record, claims_key, fence_closed_by, fence_key, lease_key, lease_marker_key, lease_shadow_key,
        override_key,
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
    keys_go_with_a_revoke(two_shards().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_on_two_etcds_go_with_a_revoke() {
    keys_go_with_a_revoke(Topology::start_etcd(2, &["m"]).await).await;
}

async fn keys_go_with_a_revoke(topology: Topology) {
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
        let next = futures::StreamExt::next(&mut events);
        let response =
            tokio::time::timeout(LIMIT, next).await.expect("all keys are deleted").unwrap().unwrap();
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
    expires_in_time(two_shards().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expires_in_time_over_etcd() {
    expires_in_time(Topology::start_etcd(2, &["m"]).await).await;
}

async fn expires_in_time(topology: Topology) {
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
async fn trap_05_an_id_comes_back_without_its_past() {
    comes_back(two_shards().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_05_an_id_comes_back_without_its_past_over_etcd() {
    comes_back(Topology::start_etcd(2, &["m"]).await).await;
}

async fn comes_back(topology: Topology) {
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
async fn trap_05_a_delayed_attach_brings_nothing_back() {
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
async fn what_a_sweep_adopts_is_no_lease_for_clients() {
    let topology = two_shards().await;
    let proxy = Proxy::start(&topology, "a", unswept()).await;
    let id = proxy.grant(60).await;
    proxy.put("a", id).await.unwrap();
    proxy.leases.revoke(id).await.unwrap();
    wait_until("the record is gone", LIMIT, async || {
        stored(topology.meta.as_ref(), &KeyRange::key(&lease_key(id))).await.is_empty().then_some(())
    })
    .await
    .unwrap();
    // A sweep that had seen the shadow before it was dropped; somebody else's attempt, so that it stays for a while.
    let state = LeaseState::Revoking;
    let adopted = LeaseRecord { ttl: 0, state, chosen: true, helper: Some(1), uncertain: false };
    let txn = adopt_txn(id, &adopted, &[ShardIx(0)]);
    assert!(topology.meta.txn(txn).await.unwrap().succeeded);
    assert_eq!(proxy.ttl(id).await, -1, "its end was answered");
    assert!(proxy.leases.leases().await.unwrap().leases.is_empty());
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
async fn trap_05_keys_that_move_during_a_revoke_are_deleted_where_they_went() {
    let topology = two_shards().await;
    let proxy = Proxy::start(&topology, "a", quick()).await;
    let id = proxy.grant(60).await;
    proxy.put("a", id).await.unwrap();
    proxy.put("z", id).await.unwrap();
    let put_on = async |shard: usize, put: pb::PutRequest| {
        topology.shards[shard].put(put).await.unwrap().header.unwrap().revision
    };
    let fence =
        |rid: &str, value| pb::PutRequest { key: fence_key(&Rid::new(rid)), value, ..Default::default() };
    // A move from shard 0 to shard 1 has closed its source …
    let from_local = put_on(0, fence("b-0", fence_closed_by("m"))).await;
    let leases = std::sync::Arc::clone(&proxy.leases);
    let revoke = tokio::spawn(async move { leases.revoke(id).await });
    wait_until("the open range is cleared", LIMIT, async || {
        (proxy.keys().await == pairs(&["a"], id)).then_some(())
    })
    .await
    .unwrap();
    // … brings the rest, and flips.
    let brought = Override { create: 2, modified: 2, version: 1 };
    put_on(1, pb::PutRequest { lease: id, ..put("a", "v") }).await;
    put_on(1, pb::PutRequest { key: override_key(b"a"), value: brought.encode(), ..Default::default() })
        .await;
    let to_local = put_on(1, fence("m", Bytes::from_static(FENCE_OPEN))).await;
    let flip = Entry::Flip(Flip {
        id: "m".into(),
        range: KeyRange::new("", "m"),
        rid: Rid::new("b-0"),
        new_rid: Rid::new("m"),
        from: ShardIx(0),
        to: ShardIx(1),
        from_local,
        to_local,
    });
    let put_op = |key: &'static [u8], value| pb::RequestOp {
        request: Some(pb::Request::RequestPut(pb::PutRequest {
            key: key.into(),
            value,
            ..Default::default()
        })),
    };
    let success = vec![put_op(MAP, MapRecord { generation: 2 }.encode()), put_op(CUT_LATEST, flip.encode())];
    topology.meta.txn(pb::TxnRequest { success, ..Default::default() }).await.unwrap();
    revoke.await.unwrap().unwrap();
    assert_eq!((proxy.keys().await, proxy.ttl(id).await), (vec![], -1));
    nothing_left(&topology).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_05_an_open_import_keeps_its_copies() {
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
    // On its present shard it was brought by a move, too.
    let brought = pb::PutRequest { key: override_key(b"a"), value: "o".into(), ..Default::default() };
    topology.shards[0].put(brought).await.unwrap();

    assert_eq!(proxy.keys_of(id).await, ["a"]);
    proxy.leases.revoke(id).await.unwrap();
    assert_eq!((proxy.keys().await, proxy.ttl(id).await), (vec![], -1));
    assert_eq!(stored(topology.shards[0].as_ref(), &KeyRange::key(&override_key(b"a"))).await, []);
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

/// Clients of three proxies, one of which dies every now and then, while fences close and open: what a client was told
/// holds for each of its leases, and nothing is left in the end. The seed is printed; `LEASE_SEED` replays its choices.
#[tokio::test(flavor = "multi_thread")]
async fn what_clients_were_told_holds_under_faults() {
    let seed = std::env::var("LEASE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("LEASE_SEED={seed}");
    let topology = two_shards().await;
    let proxies = [Proxy::start(&topology, "a", quick()).await, Proxy::start(&topology, "b", quick()).await];
    let stop = tokio_util::sync::CancellationToken::new();
    let fences = async {
        let mut rng = StdRng::seed_from_u64(seed);
        while !stop.is_cancelled() {
            let i = rng.random_range(0..2);
            let fence = fence_key(&Rid::new(format!("b-{i}")));
            for value in [fence_closed_by("m"), Bytes::from_static(FENCE_OPEN)] {
                let put = pb::PutRequest { key: fence.clone(), value, ..Default::default() };
                topology.shards[i].put(put).await.unwrap();
                tokio::time::sleep(Duration::from_millis(rng.random_range(1..60))).await;
            }
        }
    };
    let clients = (0..24).map(|n| client(&topology, &proxies, n, seed.wrapping_add(n)));
    let clients = async {
        join_all(clients).await;
        stop.cancel();
    };
    futures::future::join(clients, fences).await;
    assert_eq!(proxies[0].keys().await, []);
    nothing_left(&topology).await;
}

/// One client with its own keys on both shards: grants, attaches, renews, and revokes or lets go, some rounds long.
async fn client(topology: &Topology, proxies: &[Proxy; 2], n: u64, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mine = [format!("a{n}"), format!("z{n}")];
    let held = |proxy: usize, id: i64| {
        let (mine, proxy) = (&mine, &proxies[proxy]);
        async move {
            proxy.keys().await.into_iter().filter(|(key, lease)| mine.contains(key) && *lease == id).count()
        }
    };
    for round in 0..4 {
        let (ttl, chosen) = (if rng.random_bool(0.3) { 2 } else { 3600 }, rng.random_bool(0.5));
        let wanted = if chosen { 10_000 + n as i64 } else { 0 };
        let granting = || proxies[round % 2].leases.grant(ttl, wanted);
        let begin = Instant::now();
        let id = wait_until("the id is free", LIMIT, async || granting().await.ok()).await.unwrap().id;
        for (i, key) in mine.iter().enumerate() {
            // A put is held while the fence is closed; an expired lease says so.
            match proxies[i].put(key, id).await {
                Ok(_) => {}
                Err(status) if status.code() == Code::NotFound => {
                    assert!(begin.elapsed() > Duration::from_secs(2))
                }
                Err(status) => panic!("{status}"),
            }
        }
        if ttl == 3600 {
            assert_eq!(
                held(round % 2, id).await,
                2,
                "client {n} round {round}: nothing takes a living lease's keys"
            );
        }
        match rng.random_range(0..3) {
            // Expires, or is left to a proxy that dies while it revokes.
            0 if ttl == 2 => {}
            0 | 1 => {
                let fate = Fate::new(rng.random_range(0..12), rng.random_bool(0.5));
                let doomed = Proxy::doomed(topology, "doomed", &fate).await;
                let answered = tokio::select! {
                    // An error is one of: expired, or still going on.
                    result = doomed.leases.revoke(id) => result.is_ok(),
                    () = fate.died() => false,
                };
                doomed.ctx.shutdown.cancel();
                if !answered && ttl == 3600 {
                    let revoke = || proxies[0].leases.revoke(id);
                    wait_until("somebody ends it", LIMIT, async || match revoke().await {
                        Err(status) if status.code() != Code::NotFound => None,
                        _ => Some(()),
                    })
                    .await
                    .unwrap();
                }
            }
            _ => match proxies[(round + 1) % 2].leases.revoke(id).await {
                Ok(_) => {}
                Err(status) => assert!(ttl == 2 && status.code() == Code::NotFound, "{status}"),
            },
        }
        let looking = rng.random_range(0..2);
        wait_until("its keys are gone", LIMIT, async || (held(looking, id).await == 0).then_some(()))
            .await
            .unwrap();
        if ttl == 3600 {
            assert_eq!(proxies[looking].ttl(id).await, -1, "client {n} round {round}");
        }
    }
}

/// What it costs; run by hand: `cargo test -p sharded-etcd-proxy --test leases -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn cost_of_grant_attach_revoke_and_expiry() {
    for (what, topology) in
        [("embedded", two_shards().await), ("etcd", Topology::start_etcd(2, &["m"]).await)]
    {
        let proxy = Proxy::start(&topology, "a", unswept()).await;
        let proxies =
            [Proxy::start(&topology, "b", unswept()).await, Proxy::start(&topology, "c", unswept()).await];
        let (mut grants, mut attaches, mut puts, mut revokes) = (vec![], vec![], vec![], vec![]);
        for i in 0..200 {
            let begin = Instant::now();
            let id = proxy.grant(60).await;
            grants.push(begin.elapsed());
            let begin = Instant::now();
            proxy.put("a", id).await.unwrap();
            attaches.push(begin.elapsed());
            let begin = Instant::now();
            proxy.put(&format!("b{i}"), id).await.unwrap();
            puts.push(begin.elapsed());
            let begin = Instant::now();
            proxy.leases.revoke(id).await.unwrap();
            revokes.push(begin.elapsed());
        }
        for (step, mut times) in
            [("grant", grants), ("first attach", attaches), ("attach", puts), ("revoke", revokes)]
        {
            times.sort_unstable();
            println!(
                "{what}: {step}: p50 {:?} p99 {:?}",
                times[times.len() / 2],
                times[times.len() * 99 / 100]
            );
        }
        let granting = (0..1000).map(|i| {
            let proxy = &proxy;
            async move {
                let id = proxy.grant(5).await;
                proxy.put(&format!("e{i}"), id).await.unwrap();
            }
        });
        join_all(granting).await;
        let begin = Instant::now();
        wait_until("all have expired", LIMIT, async || proxy.keys().await.is_empty().then_some(()))
            .await
            .unwrap();
        println!(
            "{what}: 1000 leases of 5 s, three proxies: gone {:?} after the last attach",
            begin.elapsed()
        );
        drop(proxies);
    }
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
