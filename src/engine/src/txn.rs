//! Evaluation of Put, DeleteRange and Txn against the store, as etcd's server/etcdserver/txn does.

use std::cmp::Ordering;

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Result;

use crate::{
    errors,
    mvcc::{Changes, Store, Version, VersionRef, WriteTxn},
    values::read_all,
};

/// An answer and what it changed, if anything.
pub type Outcome<T> = (T, Option<Changes>);

/// Puts one key.
pub fn put(store: &mut Store, request: &pb::PutRequest) -> Result<Outcome<pb::PutResponse>> {
    check_put(store, request)?;
    let mut txn = store.write();
    let response = execute_put(&mut txn, request)?;
    Ok((response, txn.end()))
}

/// Deletes a range.
///
/// # Errors
/// If a value that is asked for cannot be read; nothing is deleted then.
pub fn delete_range(
    store: &mut Store,
    request: &pb::DeleteRangeRequest,
) -> Result<Outcome<pb::DeleteRangeResponse>> {
    let mut txn = store.write();
    let response = execute_delete(&mut txn, request)?;
    Ok((response, txn.end()))
}

/// Runs a transaction.
///
/// As etcd, first decides all compares, nested ones too, on the state before it; then checks the operations of the
/// branches taken on that state; then executes, where reads see the writes before them.
pub fn txn(store: &mut Store, request: &pb::TxnRequest) -> Result<Outcome<pb::TxnResponse>> {
    let path = compare_to_path(store, request)?;
    check(store, request, &mut path.iter())?;
    // A value that cannot be read may be met after a write. Most transactions do only one of the two.
    let before = may_fail_halfway(request).then(|| store.clone());
    let mut txn = store.write();
    match execute(&mut txn, request, &mut path.iter()) {
        Ok(mut response) => {
            response.header = header(txn.revision());
            Ok((response, txn.end()))
        }
        Err(error) => {
            if let Some(before) = before {
                *store = before;
            }
            Err(error)
        }
    }
}

/// Whether an operation that reads a value may come behind one that writes.
fn may_fail_halfway(request: &pb::TxnRequest) -> bool {
    let is_mixed = |ops: &[pb::RequestOp]| {
        ops.len() > 1
            && ops.iter().any(|op| match &op.request {
                Some(pb::Request::RequestRange(range)) => !range.count_only,
                Some(pb::Request::RequestPut(put)) => put.prev_kv || put.ignore_value || put.ignore_lease,
                Some(pb::Request::RequestDeleteRange(delete)) => delete.prev_kv,
                Some(pb::Request::RequestTxn(_)) => true,
                None => false,
            })
    };
    !is_read_only(request) && (is_mixed(&request.success) || is_mixed(&request.failure) || has_inner(request))
}

fn has_inner(request: &pb::TxnRequest) -> bool {
    let ops = request.success.iter().chain(&request.failure);
    ops.into_iter().any(|op| matches!(op.request, Some(pb::Request::RequestTxn(_))))
}

/// Runs a transaction that has no writes in any branch, on a snapshot.
pub fn read_only_txn(store: &Store, request: &pb::TxnRequest) -> Result<pb::TxnResponse> {
    // A clone is a few reference counts, and nothing is written to it.
    let mut snapshot = store.clone();
    txn(&mut snapshot, request).map(|(response, _)| response)
}

/// Whether no branch, nested ones included, has a put or delete.
pub fn is_read_only(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| match &op.request {
        Some(pb::Request::RequestRange(_)) | None => true,
        Some(pb::Request::RequestTxn(inner)) => is_read_only(inner),
        Some(pb::Request::RequestPut(_) | pb::Request::RequestDeleteRange(_)) => false,
    })
}

fn header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..Default::default() })
}

/// Which branch each transaction of the tree takes, in the order in which they are met.
fn compare_to_path(store: &Store, request: &pb::TxnRequest) -> Result<Vec<bool>> {
    fn walk(store: &Store, request: &pb::TxnRequest, path: &mut Vec<bool>) -> Result<()> {
        let mut succeeded = true;
        for compare in &request.compare {
            succeeded = succeeded && holds(store, compare)?;
        }
        path.push(succeeded);
        for op in branch(request, succeeded) {
            if let Some(pb::Request::RequestTxn(inner)) = &op.request {
                walk(store, inner, path)?;
            }
        }
        Ok(())
    }
    let mut path = Vec::with_capacity(1);
    walk(store, request, &mut path)?;
    Ok(path)
}

fn branch(request: &pb::TxnRequest, succeeded: bool) -> &[pb::RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// Whether a compare holds for every key of its range. No key counts as one of zeros, but never for a VALUE.
fn holds(store: &Store, compare: &pb::Compare) -> Result<bool> {
    let target = pb::CompareTarget::try_from(compare.target).ok();
    match store.all(&compare.key, &compare.range_end, |version| holds_for(compare, target, Some(version)))? {
        Some(holds) => Ok(holds),
        None if target == Some(pb::CompareTarget::Value) => Ok(false),
        None => holds_for(compare, target, None),
    }
}

fn holds_for(
    compare: &pb::Compare,
    target: Option<pb::CompareTarget>,
    version: Option<&Version>,
) -> Result<bool> {
    use pb::{CompareTarget, TargetUnion};
    let number = |actual: Option<i64>, wanted: Option<i64>| actual.unwrap_or(0).cmp(&wanted.unwrap_or(0));
    // A target without its operand compares with zero or with the empty value, as in etcd.
    let operand = compare.target_union.as_ref();
    let ordering = match target {
        Some(CompareTarget::Value) => {
            let actual = version.map(Version::value).transpose()?.unwrap_or_default();
            match operand {
                Some(TargetUnion::Value(wanted)) => actual.cmp(wanted),
                _ => actual.cmp(&Bytes::new()),
            }
        }
        Some(CompareTarget::Create) => number(
            version.map(|version| version.create_revision),
            operand
                .and_then(|union| if let TargetUnion::CreateRevision(n) = union { Some(*n) } else { None }),
        ),
        Some(CompareTarget::Mod) => number(
            version.map(|version| version.mod_revision),
            operand.and_then(|union| if let TargetUnion::ModRevision(n) = union { Some(*n) } else { None }),
        ),
        Some(CompareTarget::Version) => number(
            version.map(|version| version.version),
            operand.and_then(|union| if let TargetUnion::Version(n) = union { Some(*n) } else { None }),
        ),
        Some(CompareTarget::Lease) => number(
            version.map(|version| version.lease),
            operand.and_then(|union| if let TargetUnion::Lease(n) = union { Some(*n) } else { None }),
        ),
        None => Ordering::Equal,
    };
    Ok(match pb::CompareResult::try_from(compare.result) {
        Ok(pb::CompareResult::Equal) => ordering == Ordering::Equal,
        Ok(pb::CompareResult::NotEqual) => ordering != Ordering::Equal,
        Ok(pb::CompareResult::Greater) => ordering == Ordering::Greater,
        Ok(pb::CompareResult::Less) => ordering == Ordering::Less,
        Err(_) => true,
    })
}

fn check(store: &Store, request: &pb::TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> Result<()> {
    let succeeded = path.next().copied().unwrap_or(false);
    for op in branch(request, succeeded) {
        match &op.request {
            Some(pb::Request::RequestRange(range)) => store.check_revision(range.revision)?,
            Some(pb::Request::RequestPut(put)) => check_put(store, put)?,
            Some(pb::Request::RequestDeleteRange(_)) | None => {}
            Some(pb::Request::RequestTxn(inner)) => check(store, inner, path)?,
        }
    }
    Ok(())
}

fn check_put(store: &Store, request: &pb::PutRequest) -> Result<()> {
    if request.lease != 0 && store.lease(request.lease).is_none() {
        return Err(errors::lease_not_found());
    }
    if (request.ignore_value || request.ignore_lease) && store.get(&request.key).is_none() {
        return Err(errors::key_not_found());
    }
    Ok(())
}

fn execute(
    txn: &mut WriteTxn<'_>,
    request: &pb::TxnRequest,
    path: &mut std::slice::Iter<'_, bool>,
) -> Result<pb::TxnResponse> {
    let succeeded = path.next().copied().unwrap_or(false);
    let ops = branch(request, succeeded);
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let response = match &op.request {
            Some(pb::Request::RequestRange(range)) => Some(pb::Response::ResponseRange(txn.range(range)?)),
            Some(pb::Request::RequestPut(put)) => Some(pb::Response::ResponsePut(execute_put(txn, put)?)),
            Some(pb::Request::RequestDeleteRange(delete)) => {
                Some(pb::Response::ResponseDeleteRange(execute_delete(txn, delete)?))
            }
            Some(pb::Request::RequestTxn(inner)) => {
                Some(pb::Response::ResponseTxn(execute(txn, inner, path)?))
            }
            None => None,
        };
        responses.push(pb::ResponseOp { response });
    }
    // A nested answer carries an empty header; the outermost one is filled by the caller.
    Ok(pb::TxnResponse { header: Some(pb::ResponseHeader::default()), succeeded, responses })
}

fn execute_put(txn: &mut WriteTxn<'_>, request: &pb::PutRequest) -> Result<pb::PutResponse> {
    let previous = if request.prev_kv || request.ignore_value || request.ignore_lease {
        txn.store().get(&request.key).cloned()
    } else {
        None
    };
    // `check_put` saw the key. If a nested transaction before this one deleted it, etcd crashes; here what is to be
    // kept is empty.
    let kept = match &previous {
        Some(version) if request.prev_kv || request.ignore_value => version.value()?,
        _ => Bytes::new(),
    };
    let value = if request.ignore_value { &kept } else { &request.value };
    let kept_lease = previous.as_ref().map_or(0, |version| version.lease);
    let lease = if request.ignore_lease { kept_lease } else { request.lease };
    let revision = txn.put(&request.key, value, lease);
    let prev_kv = if request.prev_kv { previous.map(|version| version.with_value(kept)) } else { None };
    Ok(pb::PutResponse { header: header(revision), prev_kv })
}

fn execute_delete(
    txn: &mut WriteTxn<'_>,
    request: &pb::DeleteRangeRequest,
) -> Result<pb::DeleteRangeResponse> {
    let mut doomed = Vec::new();
    if request.prev_kv {
        txn.visit(&request.key, &request.range_end, |version| doomed.push(VersionRef::clone(version)));
    }
    let values = read_all(doomed.iter().map(|version| &**version))?;
    let prev_kvs = doomed.iter().zip(values).map(|(version, value)| version.with_value(value)).collect();
    let (deleted, revision) = txn.delete_range(&request.key, &request.range_end);
    Ok(pb::DeleteRangeResponse { header: header(revision), deleted, prev_kvs })
}
