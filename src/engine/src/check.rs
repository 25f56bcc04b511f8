//! Checks of requests before they are queued: what etcd checks in its gRPC layer (the rules are `core`'s) and in
//! `raftRequest` (the size limit).

use prost::{Message, encoding::encoded_len_varint};
use sharded_etcd_core::check::{Refusal, etcd};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Result, ShardError};
use tonic::Code;

/// Bytes that etcd's raft envelope adds to a request: the header with a request id and the tag of the request.
const ENVELOPE_BYTES: usize = 15;

/// Refuses an empty key and unknown sort options.
pub fn range(request: &pb::RangeRequest) -> Result<()> {
    etcd::range(request).map_err(refused)
}

/// Refuses an empty key, and a value or lease beside the flag that ignores it.
pub fn put(request: &pb::PutRequest) -> Result<()> {
    etcd::put(request).map_err(refused)
}

/// Refuses an empty key.
pub fn delete_range(request: &pb::DeleteRangeRequest) -> Result<()> {
    etcd::delete(request).map_err(refused)
}

/// Refuses too many operations, empty keys and keys that are written twice.
pub fn txn(request: &pb::TxnRequest, max_ops: usize) -> Result<()> {
    etcd::txn(request, max_ops).map_err(refused)
}

/// Refuses a request whose encoded form, with etcd's envelope, is larger than `max_bytes`.
pub fn size<M: Message>(request: &M, max_bytes: usize) -> Result<()> {
    let body = request.encoded_len();
    let total = body + encoded_len_varint(body as u64) + ENVELOPE_BYTES;
    if total > max_bytes { Err(refused(Refusal::TooLarge)) } else { Ok(()) }
}

fn refused(refusal: Refusal) -> ShardError {
    ShardError::refused(Code::InvalidArgument, refusal.to_string())
}
