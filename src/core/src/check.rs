//! What etcd refuses before it runs a request, with its texts and codes (server/etcdserver/api/v3rpc/key.go), and
//! what the hidden space adds to it.

use std::collections::HashSet;

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use crate::keyspace::{Printable, RESERVED};

/// Why a request is refused. All are gRPC `InvalidArgument`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// etcd's `ErrEmptyKey`.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// etcd's `ErrKeyNotFound`: an operation without a request.
    #[error("etcdserver: key not found")]
    EmptyOperation,
    /// etcd's `ErrValueProvided`.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// etcd's `ErrLeaseProvided`.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// etcd's `ErrTooManyOps`.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// etcd's `ErrDuplicateKey`.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// etcd's `ErrInvalidSortOption`.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// etcd's `ErrRequestTooLarge`.
    #[error("etcdserver: request is too large")]
    TooLarge,
    /// A put into the hidden space.
    #[error(
        "key {} is reserved: keys at or above \"\\xff\\xff\\xff\\xff\" belong to the topology, choose a smaller key",
        Printable(.0)
    )]
    Reserved(Bytes),
}

/// Checks a range.
///
/// # Errors
/// See [`Refusal`].
pub fn range(r: &pb::RangeRequest) -> Result<(), Refusal> {
    if r.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if pb::SortOrder::try_from(r.sort_order).is_err() || pb::SortTarget::try_from(r.sort_target).is_err() {
        return Err(Refusal::InvalidSortOption);
    }
    Ok(())
}

/// Checks a put.
///
/// # Errors
/// See [`Refusal`].
pub fn put(r: &pb::PutRequest) -> Result<(), Refusal> {
    if r.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if r.ignore_value && !r.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if r.ignore_lease && r.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    if r.key.as_ref() >= RESERVED {
        return Err(Refusal::Reserved(r.key.clone()));
    }
    Ok(())
}

/// Checks a delete.
///
/// # Errors
/// See [`Refusal`].
pub fn delete(r: &pb::DeleteRangeRequest) -> Result<(), Refusal> {
    if r.key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

/// Checks a transaction of at most `ops_max` operations on each list, nested ones counted as etcd does.
///
/// # Errors
/// See [`Refusal`].
pub fn txn(r: &pb::TxnRequest, ops_max: usize) -> Result<(), Refusal> {
    operations(r, ops_max)?;
    overlaps(&r.success)?;
    overlaps(&r.failure)?;
    Ok(())
}

fn operations(r: &pb::TxnRequest, ops_max: usize) -> Result<(), Refusal> {
    let widest = r.compare.len().max(r.success.len()).max(r.failure.len());
    let left = ops_max.checked_sub(widest).ok_or(Refusal::TooManyOps)?;
    if r.compare.iter().any(|c| c.key.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    for op in r.success.iter().chain(&r.failure) {
        match &op.request {
            Some(pb::Request::RequestRange(r)) => range(r)?,
            Some(pb::Request::RequestPut(r)) => put(r)?,
            Some(pb::Request::RequestDeleteRange(r)) => delete(r)?,
            Some(pb::Request::RequestTxn(r)) => operations(r, left)?,
            None => return Err(Refusal::EmptyOperation),
        }
    }
    Ok(())
}

/// Keys put and intervals deleted by a list of operations.
#[derive(Default)]
struct Writes {
    puts: HashSet<Bytes>,
    deletes: Vec<(Bytes, Bytes)>,
}

impl Writes {
    fn deleted(&self, key: &Bytes) -> bool {
        self.deletes.iter().any(|(start, end)| {
            if end.is_empty() { start == key } else { start <= key && (end.as_ref() == [0] || key < end) }
        })
    }
}

/// No key may be put twice, or put and deleted, by operations that can run together (etcd: `checkIntervals`).
fn overlaps(ops: &[pb::RequestOp]) -> Result<Writes, Refusal> {
    let mut all = Writes::default();
    for op in ops {
        if let Some(pb::Request::RequestDeleteRange(d)) = &op.request {
            all.deletes.push((d.key.clone(), d.range_end.clone()));
        }
    }
    for op in ops {
        let Some(pb::Request::RequestTxn(inner)) = &op.request else { continue };
        let then = overlaps(&inner.success)?;
        let otherwise = overlaps(&inner.failure)?;
        for key in &then.puts {
            if all.puts.contains(key) || all.deleted(key) {
                return Err(Refusal::DuplicateKey);
            }
        }
        for key in &otherwise.puts {
            // The branches exclude each other, so the same key in both is fine.
            if (all.puts.contains(key) && !then.puts.contains(key)) || all.deleted(key) {
                return Err(Refusal::DuplicateKey);
            }
        }
        all.puts.extend(then.puts);
        all.puts.extend(otherwise.puts);
        all.deletes.extend(then.deletes);
        all.deletes.extend(otherwise.deletes);
    }
    for op in ops {
        let Some(pb::Request::RequestPut(p)) = &op.request else { continue };
        if all.deleted(&p.key) || !all.puts.insert(p.key.clone()) {
            return Err(Refusal::DuplicateKey);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: pb::Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn put_op(key: &'static str) -> pb::RequestOp {
        op(pb::Request::RequestPut(pb::PutRequest { key: key.into(), ..Default::default() }))
    }

    fn delete_op(key: &'static str, end: &'static str) -> pb::RequestOp {
        let delete = pb::DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: false };
        op(pb::Request::RequestDeleteRange(delete))
    }

    fn txn_of(success: Vec<pb::RequestOp>) -> pb::TxnRequest {
        pb::TxnRequest { success, ..Default::default() }
    }

    #[test]
    fn duplicates_are_refused_as_etcd_does() {
        let check = |ops| txn(&txn_of(ops), 128);
        assert_eq!(check(vec![put_op("a"), put_op("b"), delete_op("c", "")]), Ok(()));
        assert_eq!(check(vec![put_op("a"), put_op("a")]), Err(Refusal::DuplicateKey));
        assert_eq!(check(vec![put_op("b"), delete_op("a", "c")]), Err(Refusal::DuplicateKey));
        assert_eq!(check(vec![delete_op("a", "c"), delete_op("a", "c")]), Ok(()));
        let branches =
            pb::TxnRequest { success: vec![put_op("a")], failure: vec![put_op("a")], ..Default::default() };
        assert_eq!(check(vec![op(pb::Request::RequestTxn(branches.clone()))]), Ok(()));
        let nested = op(pb::Request::RequestTxn(branches));
        assert_eq!(check(vec![nested.clone(), put_op("a")]), Err(Refusal::DuplicateKey));
        assert_eq!(check(vec![nested, delete_op("\0", "\0")]), Err(Refusal::DuplicateKey));
    }

    #[test]
    fn operations_are_counted_with_their_nesting() {
        let nested = |n: usize| {
            let inner = txn_of((0..n).map(|_| delete_op("x", "")).collect());
            txn_of(vec![op(pb::Request::RequestTxn(inner)), put_op("a")])
        };
        assert_eq!(txn(&nested(2), 4), Ok(()));
        assert_eq!(txn(&nested(3), 4), Err(Refusal::TooManyOps));
        assert_eq!(txn(&txn_of(vec![pb::RequestOp::default()]), 4), Err(Refusal::EmptyOperation));
    }

    #[test]
    fn keys_and_options() {
        assert_eq!(put(&pb::PutRequest::default()), Err(Refusal::EmptyKey));
        let reserved = pb::PutRequest { key: Bytes::from_static(b"\xff\xff\xff\xff"), ..Default::default() };
        assert!(put(&reserved).unwrap_err().to_string().contains("reserved"));
        let sort = pb::RangeRequest { key: "a".into(), sort_order: 9, ..Default::default() };
        assert_eq!(range(&sort), Err(Refusal::InvalidSortOption));
        let both = pb::PutRequest { key: "a".into(), ignore_lease: true, lease: 4, ..Default::default() };
        assert_eq!(put(&both), Err(Refusal::LeaseProvided));
    }
}
