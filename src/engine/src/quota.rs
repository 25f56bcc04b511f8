//! What a request counts against the quota, as etcd's server/storage/quota.go charges it.

use sharded_etcd_etcd_api::messages as pb;

/// etcd's default quota, used when the configuration says 0.
pub const DEFAULT_QUOTA_BYTES: i64 = 2 * 1024 * 1024 * 1024;

/// The charge for granting a lease.
pub const LEASE_COST_BYTES: u64 = 64;

const KEY_COST_BYTES: u64 = 256;

/// The charge for a put.
pub fn put_cost(request: &pb::PutRequest) -> u64 {
    KEY_COST_BYTES + request.key.len() as u64 + request.value.len() as u64
}

/// The charge for a transaction: that of its dearer branch. 0 when no branch has a put.
pub fn txn_cost(request: &pb::TxnRequest) -> u64 {
    let branch = |ops: &[pb::RequestOp]| -> u64 {
        ops.iter()
            .map(|op| match &op.request {
                Some(pb::Request::RequestPut(put)) => put_cost(put),
                Some(pb::Request::RequestTxn(inner)) => txn_cost(inner),
                _ => 0,
            })
            .sum()
    };
    branch(&request.success).max(branch(&request.failure))
}
