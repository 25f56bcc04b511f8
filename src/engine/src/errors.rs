//! etcd's errors as clients see them: code and text of api/v3rpc/rpctypes/error.go (etcd 3.7).

use sharded_etcd_shard::ShardError;
use tonic::Code;

pub use sharded_etcd_shard::ERR_COMPACTED;
use sharded_etcd_shard::{ERR_FUTURE_REV, ERR_LEASE_EXIST, ERR_LEASE_NOT_FOUND};

/// `ErrCompacted`: the revision asked for is below the compaction.
pub fn compacted() -> ShardError {
    ShardError::refused(Code::OutOfRange, ERR_COMPACTED)
}

/// `ErrFutureRev`: the revision asked for does not exist yet.
pub fn future_revision() -> ShardError {
    ShardError::refused(Code::OutOfRange, ERR_FUTURE_REV)
}

/// `ErrEmptyKey`: a request without a key.
pub fn empty_key() -> ShardError {
    ShardError::refused(Code::InvalidArgument, "etcdserver: key is not provided")
}

/// `ErrKeyNotFound`: a put that keeps the value or the lease of a key that does not exist, or an empty operation.
pub fn key_not_found() -> ShardError {
    ShardError::refused(Code::InvalidArgument, "etcdserver: key not found")
}

/// `ErrValueProvided`: a put that ignores its value and has one.
pub fn value_provided() -> ShardError {
    ShardError::refused(Code::InvalidArgument, "etcdserver: value is provided")
}

/// `ErrLeaseProvided`: a put that ignores its lease and has one.
pub fn lease_provided() -> ShardError {
    ShardError::refused(Code::InvalidArgument, "etcdserver: lease is provided")
}

/// `ErrTooManyOps`: more compares or operations than the limit, counted as etcd does over nested transactions.
pub fn too_many_ops() -> ShardError {
    ShardError::refused(Code::InvalidArgument, "etcdserver: too many operations in txn request")
}

/// `ErrDuplicateKey`: one transaction writes one key twice.
pub fn duplicate_key() -> ShardError {
    ShardError::refused(Code::InvalidArgument, "etcdserver: duplicate key given in txn request")
}

/// `ErrInvalidSortOption`: an unknown sort order or target.
pub fn invalid_sort_option() -> ShardError {
    ShardError::refused(Code::InvalidArgument, "etcdserver: invalid sort option")
}

/// `ErrRequestTooLarge`: the encoded request is larger than the limit.
pub fn request_too_large() -> ShardError {
    ShardError::refused(Code::InvalidArgument, "etcdserver: request is too large")
}

/// `ErrNoSpace`: the quota is reached or the NOSPACE alarm is up.
pub fn no_space() -> ShardError {
    ShardError::refused(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
}

/// `ErrCorrupt`: the CORRUPT alarm is up.
pub fn corrupt() -> ShardError {
    ShardError::refused(Code::DataLoss, "etcdserver: corrupt cluster")
}

/// `ErrLeaseNotFound`.
pub fn lease_not_found() -> ShardError {
    ShardError::refused(Code::NotFound, ERR_LEASE_NOT_FOUND)
}

/// `ErrLeaseExist`.
pub fn lease_exists() -> ShardError {
    ShardError::refused(Code::FailedPrecondition, ERR_LEASE_EXIST)
}

/// `ErrLeaseTTLTooLarge`.
pub fn lease_ttl_too_large() -> ShardError {
    ShardError::refused(Code::OutOfRange, "etcdserver: too large lease TTL")
}

/// `ErrTooManyRequests`: no place in the writer's queue in time. Nothing was applied.
pub fn too_many_requests() -> ShardError {
    ShardError::refused(Code::ResourceExhausted, "etcdserver: too many requests")
}

/// `ErrStopped`, for calls that were not sent because the engine is closed.
pub fn stopped() -> ShardError {
    ShardError::not_sent("etcdserver: server stopped")
}
