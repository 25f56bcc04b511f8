//! Evaluation of Put, DeleteRange and Txn against the store, as etcd's server/etcdserver/txn does.

use std::cmp::Ordering;

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::Result;

use crate::{
    errors,
    mvcc::{Changes, Store, Version, WriteTxn},
};

/// An answer and what it changed, if anything.
pub type Outcome<T> = (T, Option<Changes>);

/// Puts one key.
pub fn put(store: &mut Store, request: &pb::PutRequest) -> Result<Outcome<pb::PutResponse>> {
    check_put(store, request)?;
    let mut txn = store.write();
    let response = execute_put(&mut txn, request);
    Ok((response, txn.end()))
}

/// Deletes a range.
pub fn delete_range(store: &mut Store, request: &pb::DeleteRangeRequest) -> Outcome<pb::DeleteRangeResponse> {
    let mut txn = store.write();
    let response = execute_delete(&mut txn, request);
    (response, txn.end())
}

/// Runs a transaction.
///
/// As etcd, first decides all compares, nested ones too, on the state before it; then checks the operations of the
/// branches taken on that state; then executes, where reads see the writes before them.
pub fn txn(store: &mut Store, request: &pb::TxnRequest) -> Result<Outcome<pb::TxnResponse>> {
    let path = compare_to_path(store, request);
    check(store, request, &mut path.iter())?;
    let mut txn = store.write();
    let mut response = execute(&mut txn, request, &mut path.iter())?;
    response.header = header(txn.revision());
    Ok((response, txn.end()))
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
fn compare_to_path(store: &Store, request: &pb::TxnRequest) -> Vec<bool> {
    fn walk(store: &Store, request: &pb::TxnRequest, path: &mut Vec<bool>) {
        let succeeded = request.compare.iter().all(|compare| holds(store, compare));
        path.push(succeeded);
        for op in branch(request, succeeded) {
            if let Some(pb::Request::RequestTxn(inner)) = &op.request {
                walk(store, inner, path);
            }
        }
    }
    let mut path = Vec::with_capacity(1);
    walk(store, request, &mut path);
    path
}

fn branch(request: &pb::TxnRequest, succeeded: bool) -> &[pb::RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// Whether a compare holds for every key of its range. No key counts as one of zeros, but never for a VALUE.
fn holds(store: &Store, compare: &pb::Compare) -> bool {
    let target = pb::CompareTarget::try_from(compare.target).ok();
    store
        .all(&compare.key, &compare.range_end, |version| holds_for(compare, target, Some(version)))
        .unwrap_or_else(|| target != Some(pb::CompareTarget::Value) && holds_for(compare, target, None))
}

fn holds_for(compare: &pb::Compare, target: Option<pb::CompareTarget>, version: Option<&Version>) -> bool {
    use pb::{CompareTarget, TargetUnion};
    let number = |actual: Option<i64>, wanted: Option<i64>| actual.unwrap_or(0).cmp(&wanted.unwrap_or(0));
    // A target without its operand compares with zero or with the empty value, as in etcd.
    let operand = compare.target_union.as_ref();
    let ordering = match target {
        Some(CompareTarget::Value) => {
            let actual = version.map_or(&[] as &[u8], |version| &version.value);
            match operand {
                Some(TargetUnion::Value(wanted)) => actual.cmp(wanted.as_ref()),
                _ => actual.cmp(&[]),
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
    match pb::CompareResult::try_from(compare.result) {
        Ok(pb::CompareResult::Equal) => ordering == Ordering::Equal,
        Ok(pb::CompareResult::NotEqual) => ordering != Ordering::Equal,
        Ok(pb::CompareResult::Greater) => ordering == Ordering::Greater,
        Ok(pb::CompareResult::Less) => ordering == Ordering::Less,
        Err(_) => true,
    }
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
            Some(pb::Request::RequestPut(put)) => Some(pb::Response::ResponsePut(execute_put(txn, put))),
            Some(pb::Request::RequestDeleteRange(delete)) => {
                Some(pb::Response::ResponseDeleteRange(execute_delete(txn, delete)))
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

fn execute_put(txn: &mut WriteTxn<'_>, request: &pb::PutRequest) -> pb::PutResponse {
    let previous = if request.prev_kv || request.ignore_value || request.ignore_lease {
        txn.store().get(&request.key).cloned()
    } else {
        None
    };
    // `check_put` saw the key. If a nested transaction before this one deleted it, etcd crashes; here what is to be
    // kept is empty.
    let (kept_value, kept_lease) =
        previous.as_ref().map_or((Bytes::new(), 0), |version| (version.value.clone(), version.lease));
    let value = if request.ignore_value { &kept_value } else { &request.value };
    let lease = if request.ignore_lease { kept_lease } else { request.lease };
    let revision = txn.put(&request.key, value, lease);
    let prev_kv = if request.prev_kv { previous.map(|version| version.to_key_value()) } else { None };
    pb::PutResponse { header: header(revision), prev_kv }
}

fn execute_delete(txn: &mut WriteTxn<'_>, request: &pb::DeleteRangeRequest) -> pb::DeleteRangeResponse {
    let mut prev_kvs = Vec::new();
    if request.prev_kv {
        txn.visit(&request.key, &request.range_end, |version| prev_kvs.push(version.to_key_value()));
    }
    let (deleted, revision) = txn.delete_range(&request.key, &request.range_end);
    pb::DeleteRangeResponse { header: header(revision), deleted, prev_kvs }
}
