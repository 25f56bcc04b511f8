//! The transactions on leases, in meta and on shards.

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use super::{DeleteBatch, LeaseFacts, Marker, Over};
use crate::{
    keyspace::{KeyRange, Rid, ShardIx},
    records::{
        CUT_LATEST, FENCE_OPEN, LeaseRecord, MAP, Record, fence_key, lease_alive_key, lease_floor_key,
        lease_key, lease_marker_key, lease_shadow_key, lease_shadow_prefix, override_key,
    },
};

/// Meta: everything about a lease at one moment, with the map's key and the log's end. See [`LeaseFacts`].
pub fn read_txn(id: i64) -> pb::TxnRequest {
    pb::TxnRequest { success: read_ops(id), ..Default::default() }
}

fn read_ops(id: i64) -> Vec<pb::RequestOp> {
    let prefix = KeyRange::prefix(&lease_shadow_prefix(id));
    let shadows = pb::RangeRequest {
        key: prefix.request_key(),
        range_end: prefix.request_end(),
        keys_only: true,
        ..Default::default()
    };
    let modified = |key: &'static [u8]| pb::RangeRequest {
        key: Bytes::from_static(key),
        keys_only: true,
        ..Default::default()
    };
    let ranges = [get(lease_key(id)), get(lease_alive_key(id)), shadows, modified(MAP), modified(CUT_LATEST)];
    ranges.into_iter().map(range_op).collect()
}

/// Meta: the records of several leases, one Range each.
pub fn records_txn(ids: &[i64]) -> pb::TxnRequest {
    let ranges = ids.iter().map(|&id| range_op(pb::RangeRequest { keys_only: true, ..get(lease_key(id)) }));
    pb::TxnRequest { success: ranges.collect(), ..Default::default() }
}

/// Meta: makes the real lease `id` a client's.
pub fn grant_txn(id: i64, record: &LeaseRecord) -> pb::TxnRequest {
    let alive = pb::PutRequest { key: lease_alive_key(id), lease: id, ..Default::default() };
    txn(
        vec![created(lease_key(id), 0)],
        vec![put(lease_key(id), record.encode()), op(pb::Request::RequestPut(alive))],
    )
}

/// Meta: a record for what was found without one, so that it is ended like any lease.
pub fn adopt_txn(id: i64, record: &LeaseRecord, shadows: &[ShardIx]) -> pb::TxnRequest {
    let mut success = vec![put(lease_key(id), record.encode())];
    success.extend(shadows.iter().map(|&shard| put(lease_shadow_key(id, shard), Bytes::new())));
    txn(vec![created(lease_key(id), 0)], success)
}

/// Meta: registers the shadow of a live lease on a shard, before anything of it is made there.
pub fn register_txn(id: i64, epoch: i64, shard: ShardIx) -> pb::TxnRequest {
    txn(
        vec![modified(lease_key(id), epoch), created(lease_alive_key(id), epoch)],
        vec![put(lease_shadow_key(id, shard), Bytes::new())],
    )
}

/// Meta: changes the record that was read; with `if_expired` only if the real lease is gone. Whatever happens, the answer
/// tells the facts after it, as do those of [`gone_txn`] and [`end_txn`].
pub fn record_txn(facts: &LeaseFacts, record: &LeaseRecord, if_expired: bool) -> pb::TxnRequest {
    let mut compare = vec![modified(lease_key(facts.id), facts.modified)];
    if if_expired {
        compare.push(created(lease_alive_key(facts.id), 0));
    }
    then_read(facts.id, compare, vec![put(lease_key(facts.id), record.encode())])
}

/// Meta: the keys are gone from all shards that were registered, and no range changed its owner meanwhile.
pub fn gone_txn(facts: &LeaseFacts, record: &LeaseRecord) -> pb::TxnRequest {
    let map = modified(Bytes::from_static(MAP), facts.map_modified);
    let compare = vec![modified(lease_key(facts.id), facts.modified), map, no_newer_shadow(facts)];
    then_read(facts.id, compare, vec![put(lease_key(facts.id), record.encode())])
}

/// Meta: removes everything about a lease, unless a shadow was registered since the read.
pub fn end_txn(facts: &LeaseFacts) -> pb::TxnRequest {
    let mut below = lease_key(facts.id).to_vec();
    below.push(b'/');
    let below = KeyRange::prefix(&below);
    let below = pb::DeleteRangeRequest {
        key: below.request_key(),
        range_end: below.request_end(),
        ..Default::default()
    };
    then_read(
        facts.id,
        vec![modified(lease_key(facts.id), facts.modified), no_newer_shadow(facts)],
        vec![delete(lease_key(facts.id)), op(pb::Request::RequestDeleteRange(below))],
    )
}

/// Shard: puts a marker over what is there. Otherwise reads marker and floor.
///
/// `floor` is the mod revision of the floor, for attaches: read before the registration in meta.
pub fn marker_txn(id: i64, marker: Marker, over: Over, floor: Option<i64>) -> pb::TxnRequest {
    let key = lease_marker_key(id);
    let mut compare = vec![match over {
        Over::Nothing => modified(key.clone(), 0),
        Over::Marker(marker) => value_is(key.clone(), marker.encode()),
        Over::Revision(seen) => modified(key.clone(), seen),
    }];
    compare.extend(floor.map(|floor| modified(lease_floor_key(), floor)));
    pb::TxnRequest { compare, success: vec![put(key, marker.encode())], failure: marker_ops(id) }
}

/// Shard: the marker of a lease and the floor of all markers.
pub fn read_marker_txn(id: i64) -> pb::TxnRequest {
    pb::TxnRequest { success: marker_ops(id), ..Default::default() }
}

fn marker_ops(id: i64) -> Vec<pb::RequestOp> {
    vec![range_op(get(lease_marker_key(id))), range_op(get(lease_floor_key()))]
}

/// Shard: deletes a batch of the keys of a lease that is being revoked; those that are no longer attached stay.
///
/// `v` is the local revision that is known of the shard: one that has lost history refuses, as it does for every write.
pub fn delete_txn(id: i64, epoch: i64, batch: &DeleteBatch, v: i64) -> pb::TxnRequest {
    let mut compare: Vec<_> =
        batch.rids.iter().map(|rid| value_is(fence_key(rid), Bytes::from_static(FENCE_OPEN))).collect();
    compare.push(value_is(lease_marker_key(id), Marker::Revoking(epoch).encode()));
    let fence = batch.rids.first().map(fence_key).unwrap_or_default();
    let history = pb::RangeRequest { key: fence, revision: v, count_only: true, ..Default::default() };
    let mut success = vec![range_op(history)];
    success.extend(batch.keys.iter().map(|key| {
        let attached = pb::Compare {
            result: pb::CompareResult::Equal.into(),
            target: pb::CompareTarget::Lease.into(),
            key: key.clone(),
            target_union: Some(pb::TargetUnion::Lease(id)),
            ..Default::default()
        };
        let inner = txn(vec![attached], vec![delete(key.clone()), delete(override_key(key))]);
        op(pb::Request::RequestTxn(inner))
    }));
    let fences = batch.rids.iter().map(|rid: &Rid| range_op(get(fence_key(rid))));
    let failure = fences.chain([range_op(get(lease_marker_key(id)))]).collect();
    pb::TxnRequest { compare, success, failure }
}

/// Shard: removes markers of leases that have ended (id, mod revision), those that are unchanged. The floor is rewritten
/// in the same transaction, so that no attach of theirs which is still on its way can bring one back.
pub fn remove_markers_txn(markers: &[(i64, i64)]) -> pb::TxnRequest {
    let mut success = vec![put(lease_floor_key(), Bytes::from_static(b"1"))];
    success.extend(markers.iter().map(|&(id, seen)| {
        let key = lease_marker_key(id);
        op(pb::Request::RequestTxn(txn(vec![modified(key.clone(), seen)], vec![delete(key)])))
    }));
    txn(Vec::new(), success)
}

/// `If compare Then success`, and the facts about lease `id` in any case.
fn then_read(id: i64, compare: Vec<pb::Compare>, mut success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    success.extend(read_ops(id));
    pb::TxnRequest { compare, success, failure: read_ops(id) }
}

/// No registration of a shadow is newer than the read. True if there is none at all (etcd: an empty range compares as
/// a key of zeros).
fn no_newer_shadow(facts: &LeaseFacts) -> pb::Compare {
    let prefix = KeyRange::prefix(&lease_shadow_prefix(facts.id));
    pb::Compare {
        result: pb::CompareResult::Less.into(),
        target: pb::CompareTarget::Mod.into(),
        key: prefix.request_key(),
        range_end: prefix.request_end(),
        target_union: Some(pb::TargetUnion::ModRevision(facts.revision + 1)),
    }
}

fn txn(compare: Vec<pb::Compare>, success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { compare, success, failure: Vec::new() }
}

fn op(request: pb::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn get(key: Bytes) -> pb::RangeRequest {
    pb::RangeRequest { key, ..Default::default() }
}

fn range_op(range: pb::RangeRequest) -> pb::RequestOp {
    op(pb::Request::RequestRange(range))
}

fn put(key: Bytes, value: Bytes) -> pb::RequestOp {
    op(pb::Request::RequestPut(pb::PutRequest { key, value, ..Default::default() }))
}

fn delete(key: Bytes) -> pb::RequestOp {
    op(pb::Request::RequestDeleteRange(pb::DeleteRangeRequest { key, ..Default::default() }))
}

fn compare(key: Bytes, target: pb::CompareTarget, union: pb::TargetUnion) -> pb::Compare {
    pb::Compare {
        result: pb::CompareResult::Equal.into(),
        target: target.into(),
        key,
        target_union: Some(union),
        ..Default::default()
    }
}

fn modified(key: Bytes, revision: i64) -> pb::Compare {
    compare(key, pb::CompareTarget::Mod, pb::TargetUnion::ModRevision(revision))
}

fn created(key: Bytes, revision: i64) -> pb::Compare {
    compare(key, pb::CompareTarget::Create, pb::TargetUnion::CreateRevision(revision))
}

fn value_is(key: Bytes, value: Bytes) -> pb::Compare {
    compare(key, pb::CompareTarget::Value, pb::TargetUnion::Value(value))
}
