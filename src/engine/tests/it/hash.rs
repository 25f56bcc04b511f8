//! Hash and HashKV, beside a real etcd.

use rand::{Rng, SeedableRng, rngs::StdRng};
use sharded_etcd_etcd_api::{etcdserverpb::maintenance_client::MaintenanceClient, messages as pb};
use sharded_etcd_shard::Shard;
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions};
use tonic::transport::Channel;

use crate::{
    serve::{Server, server},
    support::*,
};

const STEPS: usize = 120;
const KEYS: [&str; 7] = ["a", "a/1", "a/2", "b", "b/1", "c", "\u{7f}"];

async fn maintenance(endpoint: &str) -> MaintenanceClient<Channel> {
    MaintenanceClient::connect(endpoint.to_owned()).await.unwrap()
}

/// What HashKV answers: hash, compaction, revision hashed, newest revision; or the error.
async fn hash_kv(
    client: &mut MaintenanceClient<Channel>,
    revision: i64,
) -> Result<(u32, i64, i64, i64), String> {
    match client.hash_kv(pb::HashKvRequest { revision }).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let newest = answer.header.unwrap().revision;
            Ok((answer.hash, answer.compact_revision, answer.hash_revision, newest))
        }
        Err(status) => Err(format!("{:?} {}", status.code(), status.message())),
    }
}

/// One request, the same to both; their answers are compared by other tests.
async fn step(rng: &mut StdRng, stores: [&dyn Shard; 2]) {
    let key = |rng: &mut StdRng| KEYS[rng.random_range(0..KEYS.len())];
    let some = (key(rng), rng.random_range(0..1000).to_string(), rng.random_range(0..3i64));
    let other = key(rng);
    let (kind, back) = (rng.random_range(0..100), rng.random_range(0..8));
    let mut outcomes = Vec::new();
    for store in stores {
        outcomes.push(match kind {
            0..50 => {
                let request = pb::PutRequest { lease: some.2, ..put(some.0, &some.1) };
                store.put(request).await.map(|answer| revision(&answer.header))
            }
            50..65 => {
                let ops = vec![op(delete(some.0, ""))];
                store.txn(txn(vec![], ops, vec![])).await.map(|answer| revision(&answer.header))
            }
            65..80 => {
                let end = if other == some.0 { "z" } else { other };
                let ops = vec![op(put("t/1", &some.1)), op(delete(some.0, end)), op(put("t/2", &some.1))];
                store.txn(txn(vec![], ops, vec![])).await.map(|answer| revision(&answer.header))
            }
            80..90 => {
                let request = pb::LeaseGrantRequest { id: some.2, ttl: 1000 };
                store.lease_grant(request).await.map(|answer| revision(&answer.header))
            }
            90..94 => {
                let request = pb::LeaseRevokeRequest { id: some.2 };
                store.lease_revoke(request).await.map(|answer| revision(&answer.header))
            }
            _ => {
                let newest = revision(&store.range(get("a")).await.unwrap().header);
                let request = pb::CompactionRequest { revision: newest - back, physical: true };
                store.compact(request).await.map(|answer| revision(&answer.header))
            }
        });
    }
    let outcomes: Vec<_> = outcomes.into_iter().map(|outcome| outcome.map_err(|e| e.to_string())).collect();
    assert_eq!(outcomes[0], outcomes[1]);
}

#[tokio::test]
async fn an_etcd_with_the_same_history_has_the_same_hash_at_every_revision() {
    let seed = std::env::var("ENGINE_HASH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| rand::rng().random());
    println!("ENGINE_HASH_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let etcd = EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap();
    let engine = server().await;
    let (shard, of_etcd, of_engine) =
        (etcd.shard(), &mut maintenance(&etcd.endpoint()).await, &mut maintenance(&engine.endpoint).await);
    let (mut hashes, mut compactions) = (0, std::collections::BTreeSet::new());
    for n in 0..STEPS {
        step(&mut rng, [engine.fixture.engine.as_ref(), &shard]).await;
        let newest = engine.fixture.engine.snapshot().revision();
        // All of them at times, which is a lot; else those that are hashed most often.
        let all = n % 20 == 19;
        let revisions = if all { -1..=newest + 1 } else { newest - 3..=newest + 1 };
        for revision in revisions.chain([0]) {
            let expected = hash_kv(of_etcd, revision).await;
            assert_eq!(hash_kv(of_engine, revision).await, expected, "at {revision}, seed {seed}");
            hashes += i32::from(expected.is_ok());
            compactions.extend(expected.ok().map(|answer| answer.1));
        }
    }
    assert!(hashes > 200 && compactions.len() > 2, "{hashes} hashes, compactions {compactions:?}");
}

/// With all keys gone, and compacted where the last one went.
#[tokio::test]
async fn an_empty_store_has_the_hash_of_an_empty_etcd() {
    let etcd = EtcdProcess::start(EtcdProcessOptions::default()).await.unwrap();
    let engine = server().await;
    let (shard, of_etcd, of_engine) =
        (etcd.shard(), &mut maintenance(&etcd.endpoint()).await, &mut maintenance(&engine.endpoint).await);
    let stores: [&dyn Shard; 2] = [engine.fixture.engine.as_ref(), &shard];
    for store in stores {
        store.put(put("a", "1")).await.unwrap();
        store.put(put("b", "1")).await.unwrap();
        store.txn(txn(vec![], vec![op(delete("a", "z"))], vec![])).await.unwrap();
    }
    for compacted in [0, 2, 3, 4] {
        for revision in -1..=5 {
            let expected = hash_kv(of_etcd, revision).await;
            assert_eq!(hash_kv(of_engine, revision).await, expected, "compacted at {compacted}: {revision}");
        }
        if compacted > 0 {
            for store in stores {
                let request = pb::CompactionRequest { revision: compacted, physical: true };
                store.compact(request).await.unwrap();
            }
        }
    }
    let expected = hash_kv(of_etcd, 4).await;
    assert_eq!(hash_kv(of_engine, 4).await, expected);
    assert_eq!(expected.unwrap().1, 3, "what the compaction at 4 hashed begins at the one before");
}

async fn hash(server: &Server) -> u32 {
    maintenance(&server.endpoint).await.hash(pb::HashRequest {}).await.unwrap().into_inner().hash
}

#[tokio::test]
async fn the_hash_of_everything_changes_with_everything() {
    let server = server().await;
    let mut hashes = vec![hash(&server).await];
    server.fixture.put("a", "1").await;
    hashes.push(hash(&server).await);
    server.fixture.grant(7, 100).await;
    hashes.push(hash(&server).await);
    server.fixture.put("a", "1").await;
    hashes.push(hash(&server).await);
    server.fixture.compact(3).await;
    hashes.push(hash(&server).await);
    let alarm = pb::AlarmRequest { action: 1, member_id: 0, alarm: pb::AlarmType::Corrupt as i32 };
    server.fixture.engine.alarm(alarm).await.unwrap();
    hashes.push(hash(&server).await);
    for (n, hash) in hashes.iter().enumerate() {
        assert!(!hashes[..n].contains(hash), "{hashes:?}");
    }
    assert_eq!(hash(&server).await, hashes[5], "nothing changed");
}
