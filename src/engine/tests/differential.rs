//! The same random requests to the engine and to a real etcd: every answer and every error must be the same.
//!
//! The seed of a failing run is in its message; `ENGINE_DIFFERENTIAL_SEED` runs that one again, and
//! `ENGINE_DIFFERENTIAL_RUNS` sets how many runs there are.
#![allow(clippy::unwrap_used)]

use std::env;

use bytes::Bytes;
use futures::StreamExt;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sharded_etcd_engine::{Engine, EngineConfig};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Result, Shard};
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions};

const RUNS: u64 = 12;
const REQUESTS: usize = 250;
/// Few keys, so that requests meet; at most twelve, up to which etcd's unstable sort is stable.
const KEYS: [&[u8]; 9] = [b"a", b"aa", b"ab", b"b", b"c/1", b"c/2", b"\0", b"\xff", b"\xff\xff"];
const ENDS: [&[u8]; 8] = [b"", b"", b"\0", b"b", b"c0", b"aa\0", b"\xff\xff", b"a"];

/// One request and what may be compared of its answer.
#[derive(Debug, Clone)]
enum Step {
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    KeepAlive(i64),
    TimeToLive(pb::LeaseTimeToLiveRequest),
    Leases,
}

struct Generator {
    rng: StdRng,
    /// About where the store is, for revisions that make sense.
    revision: i64,
}

impl Generator {
    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn key(&mut self) -> Bytes {
        if self.chance(1) {
            Bytes::new()
        } else {
            Bytes::from_static(KEYS[self.rng.random_range(0..KEYS.len())])
        }
    }

    fn end(&mut self) -> Bytes {
        Bytes::from_static(ENDS[self.rng.random_range(0..ENDS.len())])
    }

    fn lease(&mut self) -> i64 {
        if self.chance(70) { 0 } else { self.rng.random_range(1..5) }
    }

    fn value(&mut self) -> Bytes {
        Bytes::from_static([&b""[..], b"1", b"2", b"22"][self.rng.random_range(0..4)])
    }

    fn at(&mut self) -> i64 {
        if self.chance(60) { 0 } else { self.rng.random_range(-2..self.revision + 3) }
    }

    fn range(&mut self) -> pb::RangeRequest {
        let filter = |generator: &mut Self| {
            if generator.chance(90) { 0 } else { generator.rng.random_range(0..generator.revision + 2) }
        };
        pb::RangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: if self.chance(60) { 0 } else { self.rng.random_range(-1..6) },
            revision: self.at(),
            sort_order: self.rng.random_range(0..3),
            sort_target: if self.chance(50) { 0 } else { self.rng.random_range(0..5) },
            serializable: self.chance(50),
            keys_only: self.chance(20),
            count_only: self.chance(20),
            min_mod_revision: filter(self),
            max_mod_revision: filter(self),
            min_create_revision: filter(self),
            max_create_revision: filter(self),
        }
    }

    fn put(&mut self) -> pb::PutRequest {
        let (ignore_value, ignore_lease) = (self.chance(10), self.chance(10));
        pb::PutRequest {
            key: self.key(),
            value: if ignore_value && self.chance(90) { Bytes::new() } else { self.value() },
            lease: if ignore_lease && self.chance(90) { 0 } else { self.lease() },
            prev_kv: self.chance(30),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        pb::DeleteRangeRequest { key: self.key(), range_end: self.end(), prev_kv: self.chance(50) }
    }

    fn compare(&mut self) -> pb::Compare {
        let near = self.rng.random_range(0..self.revision + 2);
        let union = match self.rng.random_range(0..6) {
            0 => Some(pb::TargetUnion::Version(self.rng.random_range(0..3))),
            1 => Some(pb::TargetUnion::CreateRevision(if self.chance(50) { 0 } else { near })),
            2 => Some(pb::TargetUnion::ModRevision(near)),
            3 => Some(pb::TargetUnion::Value(self.value())),
            4 => Some(pb::TargetUnion::Lease(self.lease())),
            _ => None,
        };
        let target = match &union {
            Some(pb::TargetUnion::Version(_)) => 0,
            Some(pb::TargetUnion::CreateRevision(_)) => 1,
            Some(pb::TargetUnion::ModRevision(_)) => 2,
            Some(pb::TargetUnion::Value(_)) => 3,
            Some(pb::TargetUnion::Lease(_)) => 4,
            None => self.rng.random_range(0..5),
        };
        // Now and then the operand does not belong to the target.
        let target = if self.chance(3) { self.rng.random_range(0..5) } else { target };
        let result = self.rng.random_range(0..4);
        pb::Compare { result, target, key: self.key(), range_end: self.end(), target_union: union }
    }

    /// Without puts that keep a value or lease: after a nested delete those make etcd panic.
    fn txn(&mut self, depth: usize) -> pb::TxnRequest {
        let ops = |generator: &mut Self| -> Vec<pb::RequestOp> {
            let count = generator.rng.random_range(0..4);
            (0..count)
                .map(|_| {
                    let request = match generator.rng.random_range(0..10) {
                        0..3 => pb::Request::RequestRange(generator.range()),
                        3..6 => {
                            let put = generator.put();
                            pb::Request::RequestPut(pb::PutRequest {
                                ignore_value: false,
                                ignore_lease: false,
                                ..put
                            })
                        }
                        6..8 => pb::Request::RequestDeleteRange(generator.delete()),
                        _ if depth > 0 => pb::Request::RequestTxn(generator.txn(depth - 1)),
                        _ => pb::Request::RequestRange(generator.range()),
                    };
                    pb::RequestOp { request: Some(request) }
                })
                .collect()
        };
        let (success, failure) = (ops(self), ops(self));
        let compares = self.rng.random_range(0..3);
        pb::TxnRequest { compare: (0..compares).map(|_| self.compare()).collect(), success, failure }
    }

    fn step(&mut self) -> Step {
        match self.rng.random_range(0..100) {
            0..25 => Step::Range(self.range()),
            25..50 => Step::Put(self.put()),
            50..60 => {
                let request = Some(pb::Request::RequestDeleteRange(self.delete()));
                Step::Txn(pb::TxnRequest { success: vec![pb::RequestOp { request }], ..Default::default() })
            }
            60..84 => Step::Txn(self.txn(2)),
            84..86 => {
                let revision = self.revision - self.rng.random_range(-1..30);
                Step::Compact(pb::CompactionRequest { revision, physical: self.chance(50) })
            }
            86..91 => {
                let ttl = [60, 1, 0, -3, 9_000_000_000, 9_000_000_001][self.rng.random_range(0..6)];
                // Short ones would expire at different moments.
                let ttl = if (-3..60).contains(&ttl) { 1000 } else { ttl };
                Step::Grant(pb::LeaseGrantRequest { ttl, id: self.rng.random_range(1..5) })
            }
            91..93 => Step::Revoke(pb::LeaseRevokeRequest { id: self.rng.random_range(1..5) }),
            93..95 => Step::KeepAlive(self.rng.random_range(1..5)),
            95..98 => {
                Step::TimeToLive(pb::LeaseTimeToLiveRequest { id: self.rng.random_range(1..5), keys: true })
            }
            _ => Step::Leases,
        }
    }
}

/// The answer as text, without what legitimately differs: ids in headers, order and time left of leases.
async fn run(shard: &dyn Shard, step: Step) -> (String, i64) {
    fn show<T: std::fmt::Debug>(
        result: Result<T>,
        header: impl Fn(&mut T) -> &mut Option<pb::ResponseHeader>,
    ) -> (String, i64) {
        match result {
            Ok(mut response) => {
                let header = header(&mut response).as_mut().expect("every answer has a header");
                assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term > 0);
                *header = pb::ResponseHeader { revision: header.revision, ..Default::default() };
                let revision = header.revision;
                (format!("{response:?}"), revision)
            }
            Err(error) => (format!("{:?} {}", error.code, error.message), 0),
        }
    }
    match step {
        Step::Range(request) => show(shard.range(request).await, |response| &mut response.header),
        Step::Put(request) => show(shard.put(request).await, |response| &mut response.header),
        Step::Txn(request) => show(shard.txn(request).await, |response| &mut response.header),
        Step::Compact(request) => show(shard.compact(request).await, |response| &mut response.header),
        Step::Grant(request) => show(shard.lease_grant(request).await, |response| &mut response.header),
        Step::Revoke(request) => show(shard.lease_revoke(request).await, |response| &mut response.header),
        Step::KeepAlive(id) => show(shard.lease_keep_alive(id).await, |response| &mut response.header),
        Step::TimeToLive(request) => {
            let result = shard.lease_time_to_live(request).await.map(|mut response| {
                response.keys.sort_unstable();
                response.ttl = response.ttl.signum();
                response
            });
            show(result, |response| &mut response.header)
        }
        Step::Leases => {
            let result = shard.lease_leases().await.map(|mut response| {
                response.leases.sort_unstable_by_key(|lease| lease.id);
                response
            });
            show(result, |response| &mut response.header)
        }
    }
}

/// All events from a revision to the last one, or what ended the watch.
async fn history(
    shard: &dyn Shard,
    request: pb::WatchCreateRequest,
    last: i64,
) -> (Vec<pb::Event>, Option<i64>) {
    let mut stream = shard.watch(request).await.unwrap();
    let mut events: Vec<pb::Event> = Vec::new();
    loop {
        let response = stream.next().await.unwrap().unwrap();
        if response.canceled {
            return (events, Some(response.compact_revision));
        }
        events.extend(response.events);
        if events.last().is_some_and(|event| event.kv.as_ref().unwrap().mod_revision == last) {
            return (events, None);
        }
    }
}

async fn compare(seed: u64) {
    let etcd = EtcdProcess::start(EtcdProcessOptions {
        max_txn_ops: 128,
        max_request_bytes: 3 * 512 * 1024,
        ..Default::default()
    })
    .await
    .unwrap();
    let real = etcd.shard();
    let dir = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::new(dir.path(), "differential");
    config.segment_bytes = 1 << 20;
    let mut engine = Engine::open(config.clone()).await.unwrap();
    let mut generator = Generator { rng: StdRng::seed_from_u64(seed), revision: 1 };
    let mut trace = Vec::new();
    for number in 0..REQUESTS {
        let step = generator.step();
        trace.push(format!("{step:?}"));
        let (expected, revision) = run(&real, step.clone()).await;
        let (actual, _) = run(engine.as_ref(), step).await;
        if expected != actual {
            let before = trace[trace.len().saturating_sub(12)..].join("\n");
            panic!("seed {seed}, request {number}\n{before}\netcd:   {expected}\nengine: {actual}");
        }
        generator.revision = generator.revision.max(revision);
        if number % 100 == 99 {
            engine.close().await;
            drop(engine);
            engine = Engine::open(config.clone()).await.unwrap();
        }
    }
    let end = pb::PutRequest { key: "z".into(), ..Default::default() };
    let last = real.put(end.clone()).await.unwrap().header.unwrap().revision;
    engine.put(end).await.unwrap();
    for start_revision in [1, 2, last / 3, last / 2, last - 20, last] {
        let start_revision = start_revision.max(1);
        for (key, range_end) in [("\0", "\0"), ("a", "z\0")] {
            let request = pb::WatchCreateRequest {
                key: key.into(),
                range_end: range_end.into(),
                start_revision,
                prev_kv: true,
                ..Default::default()
            };
            let expected = history(&real, request.clone(), last).await;
            let actual = history(engine.as_ref(), request, last).await;
            assert_eq!(expected, actual, "seed {seed}, watch from {start_revision}");
        }
    }
    for revision in 1..=last {
        let request = pb::RangeRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            revision,
            ..Default::default()
        };
        let expected = run(&real, Step::Range(request.clone())).await;
        assert_eq!(
            expected,
            run(engine.as_ref(), Step::Range(request)).await,
            "seed {seed}, revision {revision}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_answers_as_etcd_does() {
    let variable = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = variable("ENGINE_DIFFERENTIAL_SEED") {
        return compare(seed).await;
    }
    for seed in 0..variable("ENGINE_DIFFERENTIAL_RUNS").unwrap_or(RUNS) {
        compare(seed).await;
    }
}
