//! Invariant "one etcd": random requests over three shards are answered as one etcd answers them.
//!
//! The same requests go to the proxy and to one plain engine, or one real etcd. The line's numbers differ from a single etcd's only by an
//! order-preserving renaming, which the headers of writes give; after renaming, every answer must be equal.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, ShardError};
use sharded_etcd_testkit::{EtcdProcess, EtcdProcessOptions};
use tonic::Status;

/// Revisions of the reference ↔ revisions of the line.
struct Renaming {
    to_line: BTreeMap<i64, i64>,
}

impl Renaming {
    fn note(&mut self, reference: i64, line: i64) {
        if let Some((_, &last)) = self.to_line.last_key_value()
            && self.to_line.last_key_value().is_some_and(|(&r, _)| r < reference)
        {
            assert!(last < line, "revision went back from {last} to {line}");
            self.to_line.insert(reference, line);
        }
    }

    fn line(&self, reference: i64) -> i64 {
        if reference <= 0 {
            reference
        } else {
            *self.to_line.get(&reference).unwrap_or(&(reference + 1_000_000))
        }
    }

    fn kv(&self, mut kv: pb::KeyValue) -> pb::KeyValue {
        kv.create_revision = self.line(kv.create_revision);
        kv.mod_revision = self.line(kv.mod_revision);
        kv
    }

    fn response(&self, op: pb::ResponseOp) -> pb::ResponseOp {
        let response = op.response.map(|r| match r {
            pb::Response::ResponseRange(r) => pb::Response::ResponseRange(self.range(r)),
            pb::Response::ResponsePut(p) => pb::Response::ResponsePut(pb::PutResponse {
                header: None,
                prev_kv: p.prev_kv.map(|kv| self.kv(kv)),
            }),
            pb::Response::ResponseDeleteRange(d) => pb::Response::ResponseDeleteRange(self.delete(d)),
            pb::Response::ResponseTxn(t) => pb::Response::ResponseTxn(self.txn(t)),
        });
        pb::ResponseOp { response }
    }

    fn range(&self, r: pb::RangeResponse) -> pb::RangeResponse {
        pb::RangeResponse { header: None, kvs: r.kvs.into_iter().map(|kv| self.kv(kv)).collect(), ..r }
    }

    fn delete(&self, d: pb::DeleteRangeResponse) -> pb::DeleteRangeResponse {
        let prev_kvs = d.prev_kvs.into_iter().map(|kv| self.kv(kv)).collect();
        pb::DeleteRangeResponse { header: None, deleted: d.deleted, prev_kvs }
    }

    fn txn(&self, t: pb::TxnResponse) -> pb::TxnResponse {
        pb::TxnResponse {
            header: None,
            succeeded: t.succeeded,
            responses: t.responses.into_iter().map(|op| self.response(op)).collect(),
        }
    }
}

/// Takes the headers out of an answer of the line, as the reference's are not comparable.
fn plain() -> Renaming {
    Renaming { to_line: (1..200_000).map(|i| (i, i)).collect() }
}

struct Generator {
    rng: StdRng,
    /// Sort targets with equal values: etcd's order of such keys is its sort's, and not stable.
    ties: bool,
}

impl Generator {
    fn key(&mut self) -> Bytes {
        let dir = ["/a/", "/b/", "/c/", "/d/", ""].choose(&mut self.rng).unwrap();
        format!("{dir}{}", self.rng.random_range(0..6)).into()
    }

    fn bounds(&mut self) -> (Bytes, Bytes) {
        let key = self.key();
        match self.rng.random_range(0..6) {
            0 => (key, Bytes::from_static(b"\0")),
            1 => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            2 => (Bytes::from_static(b"/"), Bytes::from_static(b"0")),
            3 => (key, self.key()),
            _ => (key, Bytes::new()),
        }
    }

    fn range(&mut self, newest: i64) -> pb::RangeRequest {
        let (key, range_end) = self.bounds();
        let mut r = pb::RangeRequest { key, range_end, ..Default::default() };
        if self.rng.random_bool(0.3) {
            r.limit = self.rng.random_range(1..8);
        }
        if self.rng.random_bool(0.3) {
            r.sort_target = self.sort_target();
            r.sort_order = self.rng.random_range(0..3);
        }
        r.keys_only = self.rng.random_bool(0.2);
        r.count_only = self.rng.random_bool(0.1);
        r.serializable = self.rng.random_bool(0.2);
        if self.rng.random_bool(0.2) {
            r.revision = self.rng.random_range(1..=newest);
        }
        if self.rng.random_bool(0.2) {
            r.min_mod_revision = self.rng.random_range(0..=newest);
            r.max_create_revision = self.rng.random_range(0..=newest);
        }
        r
    }

    fn sort_target(&mut self) -> i32 {
        use pb::SortTarget::{Create, Key, Mod, Value, Version};
        let targets: &[pb::SortTarget] = if self.ties { &[Key, Version, Create, Mod, Value] } else { &[Key] };
        (*targets.choose(&mut self.rng).unwrap()).into()
    }

    fn put(&mut self, key: Bytes) -> pb::PutRequest {
        let value = Bytes::from(format!("{}", self.rng.random_range(0..4)));
        pb::PutRequest { key, value, prev_kv: self.rng.random_bool(0.5), ..Default::default() }
    }

    /// Keys of one directory, so that the transaction has one shard.
    fn txn(&mut self, newest: i64, depth: u32) -> pb::TxnRequest {
        let dir = *["/a/", "/b/", "/c/"].choose(&mut self.rng).unwrap();
        self.txn_in(dir, newest, depth)
    }

    fn txn_in(&mut self, dir: &str, newest: i64, depth: u32) -> pb::TxnRequest {
        let key = |g: &mut Self| Bytes::from(format!("{dir}{}", g.rng.random_range(0..6)));
        let compare = (0..self.rng.random_range(0..3))
            .map(|_| {
                let k = key(self);
                let g = self.rng.random_range(0..=newest);
                let (target, union) = match self.rng.random_range(0..5) {
                    0 => (pb::CompareTarget::Version, pb::TargetUnion::Version(self.rng.random_range(0..4))),
                    1 => (pb::CompareTarget::Create, pb::TargetUnion::CreateRevision(g)),
                    2 => (pb::CompareTarget::Value, pb::TargetUnion::Value(Bytes::from_static(b"1"))),
                    3 => (pb::CompareTarget::Lease, pb::TargetUnion::Lease(0)),
                    _ => (pb::CompareTarget::Mod, pb::TargetUnion::ModRevision(g)),
                };
                let range_end =
                    if self.rng.random_bool(0.2) { format!("{dir}9").into() } else { Bytes::new() };
                pb::Compare {
                    result: self.rng.random_range(0..4),
                    target: target.into(),
                    key: k,
                    range_end,
                    target_union: Some(union),
                }
            })
            .collect();
        let mut branch = || {
            (0..self.rng.random_range(0..4))
                .map(|_| {
                    let k = key(self);
                    let request = match self.rng.random_range(0..if depth > 0 { 5 } else { 4 }) {
                        0 => pb::Request::RequestRange(pb::RangeRequest {
                            key: dir.to_owned().into(),
                            range_end: format!("{dir}9").into(),
                            limit: self.rng.random_range(0..4),
                            sort_order: self.rng.random_range(0..3),
                            sort_target: self.sort_target(),
                            min_mod_revision: if self.rng.random_bool(0.3) { newest / 2 } else { 0 },
                            revision: if self.rng.random_bool(0.2) {
                                self.rng.random_range(1..=newest)
                            } else {
                                0
                            },
                            ..Default::default()
                        }),
                        1 => pb::Request::RequestDeleteRange(pb::DeleteRangeRequest {
                            key: k,
                            range_end: if self.rng.random_bool(0.3) {
                                format!("{dir}9").into()
                            } else {
                                Bytes::new()
                            },
                            prev_kv: self.rng.random_bool(0.5),
                        }),
                        4 => pb::Request::RequestTxn(self.txn_in(dir, newest, depth - 1)),
                        _ => pb::Request::RequestPut(self.put(k)),
                    };
                    pb::RequestOp { request: Some(request) }
                })
                .collect()
        };
        let success = branch();
        let failure = branch();
        pb::TxnRequest { compare, success, failure }
    }
}

/// The reference's request has the reference's numbers in it.
fn renamed_txn(r: &Renaming, mut txn: pb::TxnRequest) -> pb::TxnRequest {
    for c in &mut txn.compare {
        if let Some(pb::TargetUnion::ModRevision(g) | pb::TargetUnion::CreateRevision(g)) =
            &mut c.target_union
        {
            *g = r.line(*g);
        }
    }
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut op.request {
            Some(pb::Request::RequestRange(range)) => *range = renamed_range(r, range.clone()),
            Some(pb::Request::RequestTxn(inner)) => *inner = renamed_txn(r, inner.clone()),
            _ => {}
        }
    }
    txn
}

fn renamed_range(r: &Renaming, mut range: pb::RangeRequest) -> pb::RangeRequest {
    for g in [
        &mut range.revision,
        &mut range.min_mod_revision,
        &mut range.max_mod_revision,
        &mut range.min_create_revision,
        &mut range.max_create_revision,
    ] {
        *g = r.line(*g);
    }
    range
}

fn same_error(reference: &ShardError, line: &Status, what: &str) {
    assert_eq!((reference.code, reference.message.as_str()), (line.code(), line.message()), "{what}");
}

fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed}");
    seed
}

const BOUNDARIES: &[&str] = &["/b/", "/c/", "0"];

#[tokio::test]
async fn random_requests_are_answered_as_by_one_engine() {
    let topology = support::Topology::start(3, BOUNDARIES).await;
    let dir = tempfile::tempdir().unwrap();
    let reference = support::engine(&dir, "reference").await;
    compare(&topology, reference.as_ref(), 1_500, true).await;
}

#[tokio::test]
async fn random_requests_over_real_etcds_are_answered_as_by_one_etcd() {
    let topology = support::Topology::start_etcd(3, BOUNDARIES).await;
    let options = EtcdProcessOptions { fsync: false, ..Default::default() };
    let reference = EtcdProcess::start(options).await.unwrap();
    compare(&topology, &reference.shard(), 800, false).await;
}

async fn compare(topology: &support::Topology, reference: &dyn Shard, steps: u32, ties: bool) {
    let proxies = [topology.kv("p0").await, topology.kv("p1").await];
    let mut g = Generator { rng: StdRng::seed_from_u64(seed()), ties };
    let mut renaming = Renaming { to_line: BTreeMap::from([(1, 1)]) };
    let plain = plain();
    let mut newest = 1;
    for step in 0..steps {
        let kv = &proxies[g.rng.random_range(0..2)];
        match g.rng.random_range(0..10) {
            0..3 => {
                let key = g.key();
                let put = g.put(key);
                let want = reference.put(put.clone()).await.unwrap();
                let got = kv.put(put.clone()).await.unwrap();
                newest = want.header.unwrap().revision;
                renaming.note(newest, got.header.unwrap().revision);
                assert_eq!(got.prev_kv, want.prev_kv.map(|kv| renaming.kv(kv)), "step {step} {put:?}");
            }
            3 => {
                let (key, range_end) = g.bounds();
                // Over shards a delete takes a revision a shard: not comparable, tested elsewhere.
                let prev_kv = g.rng.random_bool(0.5);
                let delete = pb::DeleteRangeRequest { range_end: Bytes::new(), key, prev_kv };
                let _ = range_end;
                let op = |d| pb::RequestOp { request: Some(pb::Request::RequestDeleteRange(d)) };
                let want = reference
                    .txn(pb::TxnRequest { success: vec![op(delete.clone())], ..Default::default() })
                    .await
                    .unwrap();
                let got = kv.delete_range(delete.clone()).await.unwrap();
                let line = got.header.unwrap().revision;
                let Some(pb::Response::ResponseDeleteRange(d)) = want.responses[0].response.clone() else {
                    panic!()
                };
                if d.deleted > 0 {
                    newest = want.header.unwrap().revision;
                    renaming.note(newest, line);
                } else {
                    assert!(line >= renaming.line(newest));
                }
                assert_eq!(plain.delete(got), renaming.delete(d), "step {step} {delete:?}");
            }
            4..7 => {
                let range = g.range(newest);
                let want = reference.range(range.clone()).await;
                let got = kv.range(renamed_range(&renaming, range.clone())).await;
                match (want, got) {
                    (Ok(want), Ok(got)) => {
                        if !range.serializable {
                            assert_eq!(got.header.unwrap().revision, renaming.line(newest), "step {step}");
                            assert_eq!(plain.range(got), renaming.range(want), "step {step} {range:?}");
                        }
                    }
                    (Err(want), Err(got)) => same_error(&want, &got, "range"),
                    (want, got) => panic!("step {step} {range:?}\n{want:?}\n{got:?}"),
                }
            }
            _ => {
                let txn = g.txn(newest, 2);
                let want = reference.txn(txn.clone()).await;
                let got = kv.txn(renamed_txn(&renaming, txn.clone())).await;
                match (want, got) {
                    (Ok(want), Ok(got)) => {
                        let (r, l) = (want.header.unwrap().revision, got.header.unwrap().revision);
                        if r > newest {
                            newest = r;
                            renaming.note(r, l);
                        } else {
                            assert_eq!(
                                l,
                                renaming.line(newest),
                                "step {step}: header of a transaction that wrote nothing"
                            );
                        }
                        assert_eq!(plain.txn(got), renaming.txn(want), "step {step} {txn:?}");
                    }
                    (Err(want), Err(got)) => same_error(&want, &got, "txn"),
                    (want, got) => panic!("step {step} {txn:?}\n{want:?}\n{got:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn transactions_over_shards_are_refused_and_name_keys_and_shards() {
    let topology = support::Topology::start(2, &["/b/"]).await;
    let kv = topology.kv("p").await;
    let put = |key: &'static str| pb::RequestOp {
        request: Some(pb::Request::RequestPut(pb::PutRequest { key: key.into(), ..Default::default() })),
    };
    let txn = pb::TxnRequest { success: vec![put("/a/1"), put("/b/1")], ..Default::default() };
    let status = kv.txn(txn).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    for part in ["\"/a/1\" is on shard-0", "\"/b/1\" is on shard-1"] {
        assert!(status.message().contains(part), "{status:?}");
    }
    // Nothing of it was applied.
    let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    assert_eq!(kv.range(all).await.unwrap().count, 0);
}

#[tokio::test]
async fn deletes_over_shards_merge_counts_and_previous_values() {
    let topology = support::Topology::start(3, &["/b/", "/c/"]).await;
    let kv = topology.kv("p").await;
    for key in ["/a/1", "/b/1", "/b/2", "/c/1"] {
        kv.put(pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() }).await.unwrap();
    }
    let delete = pb::DeleteRangeRequest { key: "/a/".into(), range_end: "/c/9".into(), prev_kv: true };
    let answer = kv.delete_range(delete).await.unwrap();
    assert_eq!(answer.deleted, 4);
    let keys: Vec<_> = answer.prev_kvs.iter().map(|kv| kv.key.clone()).collect();
    assert_eq!(keys, ["/a/1", "/b/1", "/b/2", "/c/1"]);
    let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let left = kv.range(all).await.unwrap();
    assert_eq!((left.count, left.header.unwrap().revision), (0, answer.header.unwrap().revision));
}
