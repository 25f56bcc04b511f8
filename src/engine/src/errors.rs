//! etcd's errors as clients see them: code and text of api/v3rpc/rpctypes/error.go (etcd 3.7).

use sharded_etcd_shard::{ShardError, with_causes};
use tonic::Code;

use crate::values::ValueError;
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

/// `ErrKeyNotFound`: a put that keeps the value or the lease of a key that does not exist.
pub fn key_not_found() -> ShardError {
    ShardError::refused(Code::InvalidArgument, "etcdserver: key not found")
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

/// A value cannot be read. etcd has no error for it, as it ends then.
impl From<ValueError> for ShardError {
    fn from(error: ValueError) -> Self {
        let code = match error {
            ValueError::Damaged { .. } => Code::DataLoss,
            ValueError::Io { .. } => Code::Unavailable,
        };
        tracing::error!(error = with_causes(&error), "a value cannot be read");
        ShardError::refused(code, format!("etcdserver: {}", with_causes(&error)))
    }
}
