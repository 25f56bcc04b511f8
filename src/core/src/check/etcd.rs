//! What etcd refuses, with its texts and codes (server/etcdserver/api/v3rpc/key.go).

use std::collections::{BTreeMap, HashSet};

use sharded_etcd_etcd_api::messages as pb;

use super::Refusal;

/// Refuses an empty key and unknown sort options.
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

/// Refuses an empty key, and a value or lease beside the flag that ignores it.
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
    Ok(())
}

/// Refuses an empty key.
///
/// # Errors
/// See [`Refusal`].
pub fn delete(r: &pb::DeleteRangeRequest) -> Result<(), Refusal> {
    if r.key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

/// Refuses too many operations (more than `ops_max` on one list, nested ones counted as etcd does), what is wrong with
/// one of them, and keys that are written twice.
///
/// # Errors
/// See [`Refusal`].
pub fn txn(r: &pb::TxnRequest, ops_max: usize) -> Result<(), Refusal> {
    operations(r, ops_max)?;
    intervals(&r.success)?;
    intervals(&r.failure)?;
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
            // What is left of the limit goes down a level: depth counts too.
            Some(pb::Request::RequestTxn(r)) => operations(r, left)?,
            None => return Err(Refusal::EmptyOperation),
        }
    }
    Ok(())
}

/// The deletes of a branch: a union of half-open intervals, kept disjoint.
///
/// An interval whose end is not behind its start never matches. That is how etcd's interval tree treats the range
/// end "\0" (everything from the key on), which therefore never collides with a put; see `checkIntervals`.
#[derive(Default)]
struct Deletes {
    by_start: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Deletes {
    fn insert(&mut self, start: &[u8], end: &[u8]) {
        if end <= start {
            return;
        }
        let (mut start, mut end) = (start.to_vec(), end.to_vec());
        if let Some((left, left_end)) = self.by_start.range(..=start.clone()).next_back()
            && *left_end >= start
        {
            end = end.max(left_end.clone());
            start = left.clone();
        }
        let swallowed: Vec<Vec<u8>> =
            self.by_start.range(start.clone()..=end.clone()).map(|(key, _)| key.clone()).collect();
        for key in swallowed {
            if let Some(other) = self.by_start.remove(&key) {
                end = end.max(other);
            }
        }
        self.by_start.insert(start, end);
    }

    fn insert_request(&mut self, request: &pb::DeleteRangeRequest) {
        if request.range_end.is_empty() {
            self.insert(&request.key, &[request.key.as_ref(), &[0]].concat());
        } else {
            self.insert(&request.key, &request.range_end);
        }
    }

    fn merge(&mut self, other: Deletes) {
        for (start, end) in other.by_start {
            self.insert(&start, &end);
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.by_start
            .range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(key)))
            .next_back()
            .is_some_and(|(_, end)| key < end.as_slice())
    }
}

/// The puts and deletes of one branch with all that is nested in it, or `ErrDuplicateKey` where they overlap.
///
/// As in etcd, a delete in one nested transaction and a put of the same key in an earlier one pass.
fn intervals(ops: &[pb::RequestOp]) -> Result<(HashSet<&[u8]>, Deletes), Refusal> {
    let mut deletes = Deletes::default();
    for op in ops {
        if let Some(pb::Request::RequestDeleteRange(request)) = &op.request {
            deletes.insert_request(request);
        }
    }
    let mut puts: HashSet<&[u8]> = HashSet::new();
    for op in ops {
        let Some(pb::Request::RequestTxn(request)) = &op.request else { continue };
        let (puts_then, deletes_then) = intervals(&request.success)?;
        let (puts_else, deletes_else) = intervals(&request.failure)?;
        for key in &puts_then {
            if puts.contains(key) || deletes.contains(key) {
                return Err(Refusal::DuplicateKey);
            }
        }
        for key in &puts_else {
            // A key in both branches is fine: only one of them runs. It was not in `puts` before, checked above.
            let elsewhere = puts.contains(key) && !puts_then.contains(key);
            if elsewhere || deletes.contains(key) {
                return Err(Refusal::DuplicateKey);
            }
        }
        puts.extend(puts_then);
        puts.extend(puts_else);
        deletes.merge(deletes_then);
        deletes.merge(deletes_else);
    }
    for op in ops {
        let Some(pb::Request::RequestPut(request)) = &op.request else { continue };
        if deletes.contains(&request.key) || !puts.insert(&request.key) {
            return Err(Refusal::DuplicateKey);
        }
    }
    Ok((puts, deletes))
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
        assert_eq!(check(vec![nested, delete_op("a", "b")]), Err(Refusal::DuplicateKey));
        // Everything from a key on: an interval that ends before it begins, for etcd's check.
        assert_eq!(check(vec![put_op("b"), delete_op("a", "\0")]), Ok(()));
        let deletes = vec![delete_op("a", "c"), delete_op("b", "e"), delete_op("g", "h"), put_op("f")];
        assert_eq!(check(deletes.clone()), Ok(()));
        let more = [deletes, vec![put_op("d")]].concat();
        assert_eq!(check(more), Err(Refusal::DuplicateKey));
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
        let sort = pb::RangeRequest { key: "a".into(), sort_order: 9, ..Default::default() };
        assert_eq!(range(&sort), Err(Refusal::InvalidSortOption));
        let both = pb::PutRequest { key: "a".into(), ignore_lease: true, lease: 4, ..Default::default() };
        assert_eq!(put(&both), Err(Refusal::LeaseProvided));
    }
}
