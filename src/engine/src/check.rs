//! Checks of requests before they are queued: what etcd checks in its gRPC layer
//! (server/etcdserver/api/v3rpc/key.go) and in `raftRequest` (the size limit).

use std::collections::{BTreeMap, HashSet};

use prost::{Message, encoding::encoded_len_varint};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Result;

use crate::errors;

/// Bytes that etcd's raft envelope adds to a request: the header with a request id and the tag of the request.
const ENVELOPE_BYTES: usize = 15;

/// Refuses an empty key and unknown sort options.
pub fn range(request: &pb::RangeRequest) -> Result<()> {
    if request.key.is_empty() {
        return Err(errors::empty_key());
    }
    if pb::SortOrder::try_from(request.sort_order).is_err()
        || pb::SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(errors::invalid_sort_option());
    }
    Ok(())
}

/// Refuses an empty key, and a value or lease beside the flag that ignores it.
pub fn put(request: &pb::PutRequest) -> Result<()> {
    if request.key.is_empty() {
        return Err(errors::empty_key());
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(errors::value_provided());
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(errors::lease_provided());
    }
    Ok(())
}

/// Refuses an empty key.
pub fn delete_range(request: &pb::DeleteRangeRequest) -> Result<()> {
    if request.key.is_empty() {
        return Err(errors::empty_key());
    }
    Ok(())
}

/// Refuses too many operations, empty keys and keys that are written twice.
pub fn txn(request: &pb::TxnRequest, max_ops: usize) -> Result<()> {
    txn_ops(request, max_ops)?;
    intervals(&request.success)?;
    intervals(&request.failure)?;
    Ok(())
}

/// Refuses a request whose encoded form, with etcd's envelope, is larger than `max_bytes`.
pub fn size<M: Message>(request: &M, max_bytes: usize) -> Result<()> {
    let body = request.encoded_len();
    let total = body + encoded_len_varint(body as u64) + ENVELOPE_BYTES;
    if total > max_bytes { Err(errors::request_too_large()) } else { Ok(()) }
}

fn txn_ops(request: &pb::TxnRequest, max_ops: usize) -> Result<()> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(left) = max_ops.checked_sub(ops) else {
        return Err(errors::too_many_ops());
    };
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(errors::empty_key());
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(pb::Request::RequestRange(inner)) => range(inner)?,
            Some(pb::Request::RequestPut(inner)) => put(inner)?,
            Some(pb::Request::RequestDeleteRange(inner)) => delete_range(inner)?,
            // What is left of the limit goes down a level, as in etcd: depth counts too.
            Some(pb::Request::RequestTxn(inner)) => txn_ops(inner, left)?,
            None => return Err(errors::key_not_found()),
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
            self.insert(&request.key, &sharded_etcd_shard::next_key(&request.key));
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
fn intervals(ops: &[pb::RequestOp]) -> Result<(HashSet<&[u8]>, Deletes)> {
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
                return Err(errors::duplicate_key());
            }
        }
        for key in &puts_else {
            // A key in both branches is fine: only one of them runs. It was not in `puts` before, checked above.
            let elsewhere = puts.contains(key) && !puts_then.contains(key);
            if elsewhere || deletes.contains(key) {
                return Err(errors::duplicate_key());
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
            return Err(errors::duplicate_key());
        }
    }
    Ok((puts, deletes))
}
