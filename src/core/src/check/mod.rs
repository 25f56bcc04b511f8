//! What is refused before a request is run: what [`etcd`] refuses, with its texts, and what the hidden space adds.

pub mod etcd;

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

pub use self::etcd::{delete, range};
use crate::keyspace::{Printable, RESERVED};

/// Why a request is refused. All are gRPC `InvalidArgument`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// etcd's `ErrEmptyKey`.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// etcd's `ErrKeyNotFound`: an operation of a transaction without a request.
    #[error("etcdserver: key not found")]
    EmptyOperation,
    /// etcd's `ErrValueProvided`.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// etcd's `ErrLeaseProvided`.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// etcd's `ErrTooManyOps`.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// etcd's `ErrDuplicateKey`.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// etcd's `ErrInvalidSortOption`.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// etcd's `ErrRequestTooLarge`.
    #[error("etcdserver: request is too large")]
    TooLarge,
    /// A put into the hidden space.
    #[error(
        "key {} is reserved: keys at or above \"\\xff\\xff\\xff\\xff\" belong to the topology, choose a smaller key",
        Printable(.0)
    )]
    Reserved(Bytes),
}

/// Checks a client's put: etcd's rules, and that the key is below the hidden space.
///
/// # Errors
/// See [`Refusal`].
pub fn put(r: &pb::PutRequest) -> Result<(), Refusal> {
    etcd::put(r)?;
    below_reserved(r)
}

/// Checks a client's transaction as [`etcd::txn`] does, and that what it puts is below the hidden space.
///
/// # Errors
/// See [`Refusal`].
pub fn txn(r: &pb::TxnRequest, ops_max: usize) -> Result<(), Refusal> {
    etcd::txn(r, ops_max)?;
    all_below_reserved(r)
}

fn below_reserved(r: &pb::PutRequest) -> Result<(), Refusal> {
    if r.key.as_ref() >= RESERVED { Err(Refusal::Reserved(r.key.clone())) } else { Ok(()) }
}

fn all_below_reserved(r: &pb::TxnRequest) -> Result<(), Refusal> {
    for op in r.success.iter().chain(&r.failure) {
        match &op.request {
            Some(pb::Request::RequestPut(put)) => below_reserved(put)?,
            Some(pb::Request::RequestTxn(inner)) => all_below_reserved(inner)?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_into_the_hidden_space_are_refused_at_any_depth() {
        let put_at = |key: &'static [u8]| pb::PutRequest { key: key.into(), ..Default::default() };
        assert_eq!(put(&pb::PutRequest::default()), Err(Refusal::EmptyKey));
        assert_eq!(put(&put_at(b"\xff\xff\xff")), Ok(()));
        assert!(put(&put_at(b"\xff\xff\xff\xff")).unwrap_err().to_string().contains("reserved"));
        let op = |request| pb::RequestOp { request: Some(request) };
        let inner = pb::TxnRequest {
            failure: vec![op(pb::Request::RequestPut(put_at(b"\xff\xff\xff\xff/x")))],
            ..Default::default()
        };
        let outer =
            pb::TxnRequest { success: vec![op(pb::Request::RequestTxn(inner))], ..Default::default() };
        assert!(matches!(txn(&outer, 128), Err(Refusal::Reserved(_))));
        assert_eq!(etcd::txn(&outer, 128), Ok(()));
    }
}
