//! What can go wrong on the way to a shard, and whether the request may have been applied.

use tonic::Code;

/// An error with its causes, on one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Result of a call to a shard.
pub type Result<T> = std::result::Result<T, ShardError>;

/// Whether a failed request may have changed the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// The shard answered with an error: not applied.
    Refused,
    /// The request never left this process: not applied, and may be sent again.
    NotSent,
    /// No answer, or one that leaves it open (time-out, lost leader): may or may not be applied; never send again.
    Ambiguous,
}

/// A failed call to a shard, with etcd's own code and text where etcd gave one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ShardError {
    /// The gRPC code a client of etcd would see.
    pub code: Code,
    /// etcd's text (for example `etcdserver: requested lease not found`), or what happened to the connection.
    pub message: String,
    /// Whether the request may have been applied.
    pub certainty: Certainty,
}

impl ShardError {
    /// An error that the shard answered with: the request was not applied.
    pub fn refused(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), certainty: Certainty::Refused }
    }

    /// An error before the request was sent.
    pub fn not_sent(message: impl Into<String>) -> Self {
        Self { code: Code::Unavailable, message: message.into(), certainty: Certainty::NotSent }
    }

    /// An error after the request was sent and before an answer came.
    pub fn ambiguous(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), certainty: Certainty::Ambiguous }
    }

    /// True for etcd's `ErrCompacted`.
    pub fn is_compacted(&self) -> bool {
        self.code == Code::OutOfRange && self.message == ERR_COMPACTED
    }

    /// True for etcd's `ErrFutureRev`.
    pub fn is_future_rev(&self) -> bool {
        self.code == Code::OutOfRange && self.message == ERR_FUTURE_REV
    }

    /// True for etcd's `ErrLeaseNotFound`.
    pub fn is_lease_not_found(&self) -> bool {
        self.code == Code::NotFound && self.message == ERR_LEASE_NOT_FOUND
    }

    /// True for etcd's `ErrLeaseExist`.
    pub fn is_lease_exist(&self) -> bool {
        self.code == Code::FailedPrecondition && self.message == ERR_LEASE_EXIST
    }
}

/// Text of `ErrCompacted` (code OutOfRange; etcd api/v3rpc/rpctypes/error.go, as are all below).
pub const ERR_COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
/// Text of `ErrFutureRev` (code OutOfRange).
pub const ERR_FUTURE_REV: &str = "etcdserver: mvcc: required revision is a future revision";
/// Text of `ErrLeaseNotFound` (code NotFound).
pub const ERR_LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";
/// Text of `ErrLeaseExist` (code FailedPrecondition).
pub const ERR_LEASE_EXIST: &str = "etcdserver: lease already exists";
/// Text of `ErrRequestTooLarge` (code InvalidArgument).
pub const ERR_REQUEST_TOO_LARGE: &str = "etcdserver: request is too large";
