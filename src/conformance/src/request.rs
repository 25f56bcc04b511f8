//! Short ways to write requests.

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

/// Reads one key.
pub fn get(key: Bytes) -> pb::RangeRequest {
    pb::RangeRequest { key, ..Default::default() }
}

/// Puts a key.
pub fn put(key: Bytes, value: &str) -> pb::PutRequest {
    pb::PutRequest { key, value: Bytes::copy_from_slice(value.as_bytes()), ..Default::default() }
}

/// Deletes one key.
pub fn delete(key: Bytes) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key, ..Default::default() }
}

/// Deletes `[key, range_end)`.
pub fn delete_range((key, range_end): (Bytes, Bytes)) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key, range_end, ..Default::default() }
}

/// An operation of a transaction.
pub trait Op {
    /// As the message has it.
    fn op(self) -> pb::RequestOp;
}

macro_rules! ops {
    ($($message:ident => $variant:ident;)*) => {$(
        impl Op for pb::$message {
            fn op(self) -> pb::RequestOp {
                pb::RequestOp { request: Some(pb::Request::$variant(self)) }
            }
        }
    )*};
}

ops! {
    RangeRequest => RequestRange;
    PutRequest => RequestPut;
    DeleteRangeRequest => RequestDeleteRange;
    TxnRequest => RequestTxn;
}

impl Op for Txn {
    fn op(self) -> pb::RequestOp {
        self.0.op()
    }
}

impl Op for pb::RequestOp {
    fn op(self) -> pb::RequestOp {
        self
    }
}

/// A transaction under construction.
#[derive(Debug, Clone, Default)]
pub struct Txn(pb::TxnRequest);

/// A transaction without anything.
pub fn txn() -> Txn {
    Txn::default()
}

impl Txn {
    /// Adds a compare.
    pub fn when(mut self, compare: pb::Compare) -> Self {
        self.0.compare.push(compare);
        self
    }

    /// Adds an operation for success.
    pub fn then(mut self, op: impl Op) -> Self {
        self.0.success.push(op.op());
        self
    }

    /// Adds an operation for failure.
    pub fn or(mut self, op: impl Op) -> Self {
        self.0.failure.push(op.op());
        self
    }
}

impl From<Txn> for pb::TxnRequest {
    fn from(txn: Txn) -> Self {
        txn.0
    }
}

/// The kind of a compare.
pub use pb::CompareResult::{Equal, Greater, Less, NotEqual};

/// A compare of a key with a value of the target's kind.
pub fn compare(key: Bytes, operand: pb::TargetUnion, result: pb::CompareResult) -> pb::Compare {
    let target = match operand {
        pb::TargetUnion::Version(_) => pb::CompareTarget::Version,
        pb::TargetUnion::CreateRevision(_) => pb::CompareTarget::Create,
        pb::TargetUnion::ModRevision(_) => pb::CompareTarget::Mod,
        pb::TargetUnion::Value(_) => pb::CompareTarget::Value,
        pb::TargetUnion::Lease(_) => pb::CompareTarget::Lease,
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key,
        target_union: Some(operand),
        range_end: Bytes::new(),
    }
}

/// True if the key has that version; 0 if it does not exist.
pub fn version_is(key: Bytes, version: i64) -> pb::Compare {
    compare(key, pb::TargetUnion::Version(version), Equal)
}

/// True if the key has that value.
pub fn value_is(key: Bytes, value: &str) -> pb::Compare {
    compare(key, pb::TargetUnion::Value(Bytes::copy_from_slice(value.as_bytes())), Equal)
}

/// A compare of which it is known that it holds, whatever is in the store.
pub fn always(key: Bytes) -> pb::Compare {
    compare(key, pb::TargetUnion::Version(-1), Greater)
}

/// One that never holds.
pub fn never(key: Bytes) -> pb::Compare {
    compare(key, pb::TargetUnion::Version(-1), Equal)
}

/// The answer to a range in a transaction.
pub fn ranged(response: Option<&pb::ResponseOp>) -> Option<&pb::RangeResponse> {
    match response?.response.as_ref()? {
        pb::Response::ResponseRange(range) => Some(range),
        _ => None,
    }
}

/// The answer to a put in a transaction.
pub fn put_in(response: Option<&pb::ResponseOp>) -> Option<&pb::PutResponse> {
    match response?.response.as_ref()? {
        pb::Response::ResponsePut(put) => Some(put),
        _ => None,
    }
}

/// The answer to a delete in a transaction.
pub fn deleted(response: Option<&pb::ResponseOp>) -> Option<&pb::DeleteRangeResponse> {
    match response?.response.as_ref()? {
        pb::Response::ResponseDeleteRange(delete) => Some(delete),
        _ => None,
    }
}

/// The answer to a nested transaction.
pub fn nested(response: Option<&pb::ResponseOp>) -> Option<&pb::TxnResponse> {
    match response?.response.as_ref()? {
        pb::Response::ResponseTxn(txn) => Some(txn),
        _ => None,
    }
}
