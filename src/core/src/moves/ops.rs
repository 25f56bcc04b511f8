//! Compares and operations of etcd Txns, in few words.

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use crate::keyspace::{KeyRange, successor};

/// `mod(key) == revision`; revision 0: the key does not exist.
pub fn modified_at(key: Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: pb::CompareResult::Equal.into(),
        target: pb::CompareTarget::Mod.into(),
        key,
        range_end: Bytes::new(),
        target_union: Some(pb::TargetUnion::ModRevision(revision)),
    }
}

/// `value(key) == value`; false if the key does not exist.
pub fn value_is(key: Bytes, value: impl Into<Bytes>) -> pb::Compare {
    pb::Compare {
        result: pb::CompareResult::Equal.into(),
        target: pb::CompareTarget::Value.into(),
        key,
        range_end: Bytes::new(),
        target_union: Some(pb::TargetUnion::Value(value.into())),
    }
}

/// `create(key) == revision`: the same life of the key; revision 0: it does not exist.
pub fn created_at(key: Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: pb::CompareResult::Equal.into(),
        target: pb::CompareTarget::Create.into(),
        key,
        range_end: Bytes::new(),
        target_union: Some(pb::TargetUnion::CreateRevision(revision)),
    }
}

/// True exactly if no key lives in `range`, which must not be empty (etcd: an empty range compares as true).
pub fn is_empty(range: &KeyRange) -> pb::Compare {
    let (key, range_end) = bounds(range);
    pb::Compare { range_end, ..created_at(key, 0) }
}

/// Puts a key without a lease.
pub fn put(key: Bytes, value: impl Into<Bytes>) -> pb::RequestOp {
    put_leased(key, value.into(), 0)
}

/// Puts a key with a lease (0: none).
pub fn put_leased(key: Bytes, value: Bytes, lease: i64) -> pb::RequestOp {
    let put = pb::PutRequest { key, value, lease, ..Default::default() };
    pb::RequestOp { request: Some(pb::Request::RequestPut(put)) }
}

/// Deletes one key; one that is not there is no error.
pub fn delete(key: Bytes) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest { key, ..Default::default() };
    pb::RequestOp { request: Some(pb::Request::RequestDeleteRange(delete)) }
}

/// Deletes all keys of a range.
pub fn delete_range(range: &KeyRange) -> pb::RequestOp {
    let (key, range_end) = bounds(range);
    let delete = pb::DeleteRangeRequest { key, range_end, ..Default::default() };
    pb::RequestOp { request: Some(pb::Request::RequestDeleteRange(delete)) }
}

/// A Range over all keys of `range`.
pub fn range_request(range: &KeyRange) -> pb::RangeRequest {
    let (key, range_end) = bounds(range);
    pb::RangeRequest { key, range_end, ..Default::default() }
}

/// A Txn: `If compare Then success`.
pub fn txn(compare: Vec<pb::Compare>, success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { compare, success, failure: Vec::new() }
}

fn bounds(range: &KeyRange) -> (Bytes, Bytes) {
    if range.end == successor(&range.start) {
        (range.request_key(), Bytes::new())
    } else {
        (range.request_key(), range.request_end())
    }
}
