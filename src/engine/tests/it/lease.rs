//! Leases: grant, attach, revoke, renew, expire, restart.

use std::time::Duration;

use sharded_etcd_engine::Engine;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Shard;
use tonic::Code;

use crate::support::*;

fn leased(key: &str, lease: i64) -> pb::PutRequest {
    pb::PutRequest { lease, ..put(key, "") }
}

async fn time_to_live(engine: &Engine, id: i64) -> (i64, i64, Vec<String>) {
    let answer = engine.lease_time_to_live(pb::LeaseTimeToLiveRequest { id, keys: true }).await.unwrap();
    let keys = answer.keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
    (answer.ttl, answer.granted_ttl, keys)
}

#[tokio::test]
async fn grant_chooses_an_id_and_keeps_to_the_limits() {
    let fixture = start().await;
    let grant = |id, ttl| fixture.engine.lease_grant(pb::LeaseGrantRequest { id, ttl });
    let chosen = grant(0, 60).await.unwrap();
    assert!(chosen.id > 0 && chosen.ttl == 60);
    assert_eq!(revision(&chosen.header), 1);
    // etcd raises short times to what its election timeout needs.
    assert_eq!(grant(7, 1).await.unwrap().ttl, 2);
    assert_eq!(grant(8, -5).await.unwrap().ttl, 2);
    assert_eq!(
        text(&grant(7, 9).await.unwrap_err()),
        (Code::FailedPrecondition, "etcdserver: lease already exists")
    );
    assert_eq!(grant(9, 9_000_000_000).await.unwrap().ttl, 9_000_000_000);
    let error = grant(10, 9_000_000_001).await.unwrap_err();
    assert_eq!(text(&error), (Code::OutOfRange, "etcdserver: too large lease TTL"));
    let listed = fixture.engine.lease_leases().await.unwrap().leases;
    assert_eq!(listed.len(), 4);
    assert_eq!(listed[3].id, 9, "by the time they have left");
    let (left, granted, _) = time_to_live(&fixture.engine, 9).await;
    assert!(left >= 8_999_999_990 && granted == 9_000_000_000);
}

#[tokio::test]
async fn revoke_deletes_all_keys_in_one_revision() {
    let fixture = start().await;
    fixture.grant(5, 60).await;
    fixture.grant(6, 60).await;
    for key in ["c", "a", "b"] {
        fixture.engine.put(leased(key, 5)).await.unwrap();
    }
    // Moves to another lease, so 5 no longer has it.
    fixture.engine.put(leased("b", 6)).await.unwrap();
    assert_eq!(time_to_live(&fixture.engine, 5).await.2, ["a", "c"]);
    assert_eq!(time_to_live(&fixture.engine, 6).await.2, ["b"]);
    let mut watch = fixture.watch(watch_all()).await;
    let response = fixture.engine.lease_revoke(pb::LeaseRevokeRequest { id: 5 }).await.unwrap();
    assert_eq!(revision(&response.header), 6);
    assert_eq!(events(&mut watch, 2).await, ["-a@6", "-c@6"]);
    let error = fixture.engine.lease_revoke(pb::LeaseRevokeRequest { id: 5 }).await.unwrap_err();
    assert_eq!(text(&error), (Code::NotFound, "etcdserver: requested lease not found"));
    assert_eq!(time_to_live(&fixture.engine, 5).await.0, -1);
    assert_eq!(fixture.engine.lease_keep_alive(5).await.unwrap().ttl, 0);
    assert!(fixture.engine.put(leased("d", 5)).await.unwrap_err().is_lease_not_found());
    // Without keys a revocation is no revision.
    fixture.delete("b").await;
    let response = fixture.engine.lease_revoke(pb::LeaseRevokeRequest { id: 6 }).await.unwrap();
    assert_eq!(revision(&response.header), 7);
}

#[tokio::test]
async fn a_lease_expires_with_its_keys_and_not_before_its_time() {
    let fixture = start_with(|config| config.lease_tick = Duration::from_millis(20)).await;
    let mut watch = fixture.watch(watch_all()).await;
    let started = std::time::Instant::now();
    fixture.grant(5, 2).await;
    fixture.engine.put(leased("a", 5)).await.unwrap();
    assert_eq!(events(&mut watch, 2).await, ["+a@2", "-a@3"]);
    let lived = started.elapsed();
    assert!(lived >= Duration::from_secs(2), "{lived:?}");
    assert_eq!(fixture.engine.lease_keep_alive(5).await.unwrap().ttl, 0);
}

#[tokio::test]
async fn a_renewed_lease_lives_on() {
    let fixture = start_with(|config| config.lease_tick = Duration::from_millis(20)).await;
    let mut watch = fixture.watch(watch_all()).await;
    fixture.grant(5, 2).await;
    fixture.engine.put(leased("a", 5)).await.unwrap();
    let started = std::time::Instant::now();
    let mut renewals = tokio::time::interval(Duration::from_millis(500));
    for _ in 0..6 {
        renewals.tick().await;
        assert_eq!(fixture.engine.lease_keep_alive(5).await.unwrap().ttl, 2);
    }
    assert_eq!(events(&mut watch, 2).await, ["+a@2", "-a@3"]);
    assert!(started.elapsed() >= Duration::from_millis(4500));
}

/// The tick is for other things: an hour would be seen.
#[tokio::test]
async fn a_lease_ends_at_its_deadline_and_not_at_a_tick() {
    let fixture = start_with(|config| config.lease_tick = Duration::from_secs(3600)).await;
    let mut watch = fixture.watch(watch_all()).await;
    let started = std::time::Instant::now();
    // The later one first: an earlier deadline counts also when somebody waits for another one.
    fixture.grant(6, 600).await;
    fixture.grant(5, 2).await;
    fixture.engine.put(leased("a", 5)).await.unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(60), events(&mut watch, 2)).await.unwrap();
    assert_eq!(seen, ["+a@2", "-a@3"]);
    assert!(started.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn a_lease_goes_on_after_a_restart_with_the_time_that_was_left() {
    let fixture = start().await;
    for id in [5, 6, 7] {
        fixture.grant(id, 1000).await;
    }
    let config = crate::support::config(fixture.dir.path());
    sharded_etcd_testkit::wait_until("a second is over", Duration::from_secs(20), || {
        let engine = std::sync::Arc::clone(&fixture.engine);
        async move { (time_to_live(&engine, 5).await.0 < 999).then_some(()) }
    })
    .await
    .unwrap();
    assert_eq!(fixture.engine.lease_keep_alive(7).await.unwrap().ttl, 1000);
    fixture.engine.close().await;
    drop(fixture.engine);

    let engine = Engine::open(config.clone()).await.unwrap();
    let (left, granted, _) = time_to_live(&engine, 5).await;
    assert!((900..=999).contains(&left) && granted == 1000, "{left} of {granted}");
    // Renewed, it has its full time again, after a crash too.
    assert_eq!(engine.lease_keep_alive(6).await.unwrap().ttl, 1000);
    drop(engine);
    let engine = Engine::open(config.clone()).await.unwrap();
    assert!(time_to_live(&engine, 6).await.0 >= 999, "it was renewed");
    assert!(time_to_live(&engine, 5).await.0 <= 999, "it was not");
    // In a checkpoint as well.
    engine.defragment().await.unwrap();
    engine.close().await;
    drop(engine);
    let engine = Engine::open(config).await.unwrap();
    assert!(time_to_live(&engine, 5).await.0 <= 999);
}

#[tokio::test]
async fn what_a_lease_has_left_is_written_down_from_time_to_time() {
    let fixture = start_with(|config| {
        config.lease_checkpoint_interval = Duration::from_secs(1);
        config.lease_tick = Duration::from_millis(50);
    })
    .await;
    fixture.grant(5, 1000).await;
    sharded_etcd_testkit::wait_until("it is written down", Duration::from_secs(30), || {
        let left = fixture.engine.snapshot().lease(5).unwrap().remaining;
        std::future::ready((left > 0 && left < 1000).then_some(()))
    })
    .await
    .unwrap();
    let config = crate::support::config(fixture.dir.path());
    // As in a crash: without closing.
    drop(fixture.engine);
    let engine = Engine::open(config).await.unwrap();
    assert!(time_to_live(&engine, 5).await.0 < 1000);
    let kept = engine.lease_keep_alive(5).await.unwrap();
    assert_eq!((kept.ttl, engine.snapshot().lease(5).unwrap().remaining), (1000, 0));
}

#[tokio::test]
async fn leases_and_what_is_attached_survive_a_crash_with_their_full_time() {
    let fixture = start().await;
    fixture.grant(5, 100).await;
    fixture.grant(6, 9_000_000_000).await;
    fixture.engine.put(leased("a", 5)).await.unwrap();
    fixture.grant(7, 100).await;
    fixture.engine.lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await.unwrap();
    let support = crate::support::config(fixture.dir.path());
    drop(fixture.engine);
    let engine = Engine::open(support).await.unwrap();
    let (left, granted, keys) = time_to_live(&engine, 5).await;
    assert!(left >= 99 && granted == 100);
    assert_eq!(keys, ["a"]);
    assert_eq!(engine.lease_leases().await.unwrap().leases.len(), 2);
    engine.lease_revoke(pb::LeaseRevokeRequest { id: 5 }).await.unwrap();
    assert_eq!(engine.range(get("a")).await.unwrap().count, 0);
}
