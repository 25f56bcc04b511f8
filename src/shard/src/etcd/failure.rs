//! What a failed gRPC call says about whether the request was applied.

use std::error::Error;

use tonic::{Code, Status};

use crate::{Certainty, ShardError};

/// How sending failed below gRPC; tonic carries it as the source of its `Status`.
///
/// It has no source of its own on purpose: tonic would make its own guess from a hyper error underneath.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendFailure {
    /// No connection took the request.
    #[error("{0}")]
    NotSent(String),
    /// A connection took the request and broke before an answer came.
    #[error("{0}")]
    Lost(String),
}

/// etcd's errors (api/v3rpc/rpctypes/error.go) that leave open whether a proposal is applied: it gave up waiting for
/// one that may still be committed. Each is a prefix.
const AMBIGUOUS: [&str; 6] = [
    // Three variants of ErrTimeout follow this text with a reason.
    "etcdserver: request timed out",
    "etcdserver: leader changed",
    "etcdserver: server stopped",
    // "canceled" on the wire, "cancelled" inside etcd.
    "etcdserver: request cancel",
    "etcdserver: context deadline exceeded",
    "etcdserver: watch canceled",
];

/// Translates the outcome of a call.
pub(super) fn shard_error(status: &Status) -> ShardError {
    let message = status.message();
    match send_failure(status) {
        Some(SendFailure::NotSent(text)) => return ShardError::not_sent(text.clone()),
        Some(SendFailure::Lost(text)) => return ShardError::ambiguous(Code::Unavailable, text.clone()),
        None => {}
    }
    if message.starts_with("etcdserver: ") {
        let ambiguous = AMBIGUOUS.iter().any(|prefix| message.starts_with(prefix));
        let certainty = if ambiguous { Certainty::Ambiguous } else { Certainty::Refused };
        return ShardError { code: status.code(), message: message.to_owned(), certainty };
    }
    match status.code() {
        // Only a server that did not run the handler answers so.
        Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied => {
            ShardError::refused(status.code(), message)
        }
        // grpc-go: the request was larger than --max-request-bytes and its overhead; it was not decoded.
        Code::ResourceExhausted if message.starts_with("grpc: received message larger than max") => {
            ShardError::refused(status.code(), message)
        }
        // tonic: the answer is larger than our limit. OutOfRange would read as one of etcd's revision errors.
        Code::OutOfRange => ShardError::ambiguous(Code::ResourceExhausted, message),
        // tonic found no gRPC status: the connection broke in the middle of an answer, or it is no gRPC server.
        _ if status.source().is_some() => {
            ShardError::ambiguous(Code::Unavailable, format!("etcd's answer was cut off: {message}"))
        }
        code => ShardError::ambiguous(code, message),
    }
}

fn send_failure(status: &Status) -> Option<&SendFailure> {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(failure) = error.downcast_ref() {
            return Some(failure);
        }
        source = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certainty(code: Code, message: &str) -> Certainty {
        let error = shard_error(&Status::new(code, message));
        assert_eq!(error.message, message);
        error.certainty
    }

    #[test]
    fn definite_answers_of_etcd_are_refused() {
        for (code, message) in [
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
            (Code::InvalidArgument, "etcdserver: key is not provided"),
            (Code::InvalidArgument, "etcdserver: too many operations in txn request"),
            (Code::InvalidArgument, "etcdserver: request is too large"),
            (Code::NotFound, "etcdserver: requested lease not found"),
            (Code::FailedPrecondition, "etcdserver: lease already exists"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            (Code::DataLoss, "etcdserver: corrupt cluster"),
            (Code::Unavailable, "etcdserver: no leader"),
            // etcd maps this one to its client-side error, so grpc-go sends it with code Unknown.
            (Code::Unknown, "etcdserver: too many requests"),
            (Code::Unimplemented, "unknown method RangeStream for service etcdserverpb.KV"),
            (Code::ResourceExhausted, "grpc: received message larger than max (2097670 vs. 2097664)"),
        ] {
            assert_eq!(certainty(code, message), Certainty::Refused, "{message}");
        }
    }

    #[test]
    fn answers_that_leave_it_open_are_ambiguous() {
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"),
            (Code::Unavailable, "etcdserver: request timed out, possibly due to connection lost"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Cancelled, "etcdserver: request canceled"),
            (Code::DeadlineExceeded, "etcdserver: context deadline exceeded"),
            (Code::DeadlineExceeded, "context deadline exceeded"),
            (Code::Unknown, "raft: stopped"),
            (Code::Unavailable, "transport is closing"),
        ] {
            assert_eq!(certainty(code, message), Certainty::Ambiguous, "{message}");
        }
    }

    #[test]
    fn failures_below_grpc_keep_what_is_known() {
        let not_sent = Status::from_error(Box::new(SendFailure::NotSent("connection refused".into())));
        let error = shard_error(&not_sent);
        assert_eq!((error.code, error.certainty), (Code::Unavailable, Certainty::NotSent));
        let lost = Status::from_error(Box::new(SendFailure::Lost("connection reset".into())));
        let error = shard_error(&lost);
        assert_eq!((error.code, error.certainty), (Code::Unavailable, Certainty::Ambiguous));
    }

    #[test]
    fn an_answer_over_our_limit_is_no_revision_error() {
        let error =
            shard_error(&Status::out_of_range("Error, decoded message length too large: found 70 bytes"));
        assert_eq!((error.code, error.certainty), (Code::ResourceExhausted, Certainty::Ambiguous));
        assert!(!error.is_compacted() && !error.is_future_rev());
    }
}
