//! The port through which everything else speaks to a shard or to meta, and the adapter for real etcd.
//!
//! A *shard* is one etcd cluster, or one embedded engine that answers as one. Both implement [`Shard`] with the
//! messages of the etcd v3 API, so nothing above this port knows which one it talks to.

mod directory;
mod error;
pub mod etcd;
mod relay;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use sharded_etcd_etcd_api::messages as pb;

pub use directory::ShardDirectory;
pub use error::{
    Certainty, ERR_COMPACTED, ERR_FUTURE_REV, ERR_LEASE_EXIST, ERR_LEASE_NOT_FOUND, Result, ShardError,
    with_causes,
};
pub use relay::Relay;

/// A stream of watch responses of one watcher, as etcd's `Watch` gives them for one watch id.
///
/// The first item is the answer with `created == true` (or an error). Responses with `canceled == true` end the
/// stream; `compact_revision > 0` there means that the start revision is compacted. Dropping the stream cancels.
pub type WatchStream = BoxStream<'static, Result<pb::WatchResponse>>;

/// One member of an etcd cluster, as it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name: the first part of its host's name, or its address where that is one.
    pub name: String,
    /// It answers, and knows a leader.
    pub ready: bool,
    /// It leads.
    pub leads: bool,
}

/// One etcd cluster, or an engine that answers as one.
///
/// Every call has etcd's semantics, error codes and error texts (api/v3rpc/rpctypes/error.go). Implementations
/// bound their own waiting: a call that got no answer within the implementation's request timeout fails with
/// [`Certainty::Ambiguous`] if it may have been applied.
pub trait Shard: Send + Sync + 'static {
    /// Reads a key or a range, etcd's `KV.Range`.
    fn range(&self, request: pb::RangeRequest) -> BoxFuture<'_, Result<pb::RangeResponse>>;
    /// Writes one key, etcd's `KV.Put`.
    fn put(&self, request: pb::PutRequest) -> BoxFuture<'_, Result<pb::PutResponse>>;
    /// Runs a transaction, etcd's `KV.Txn`.
    fn txn(&self, request: pb::TxnRequest) -> BoxFuture<'_, Result<pb::TxnResponse>>;
    /// Drops history below a local revision, etcd's `KV.Compact`.
    fn compact(&self, request: pb::CompactionRequest) -> BoxFuture<'_, Result<pb::CompactionResponse>>;
    /// Opens one watcher, etcd's `Watch.Watch` with one create request.
    fn watch(&self, request: pb::WatchCreateRequest) -> BoxFuture<'_, Result<WatchStream>>;
    /// Grants a lease, etcd's `Lease.LeaseGrant`.
    fn lease_grant(&self, request: pb::LeaseGrantRequest) -> BoxFuture<'_, Result<pb::LeaseGrantResponse>>;
    /// Revokes a lease and deletes its keys, etcd's `Lease.LeaseRevoke`.
    fn lease_revoke(&self, request: pb::LeaseRevokeRequest)
    -> BoxFuture<'_, Result<pb::LeaseRevokeResponse>>;
    /// Renews a lease once, one round of etcd's `Lease.LeaseKeepAlive`. An unknown lease answers TTL 0, as etcd does.
    fn lease_keep_alive(&self, id: i64) -> BoxFuture<'_, Result<pb::LeaseKeepAliveResponse>>;
    /// Remaining time and keys of a lease, etcd's `Lease.LeaseTimeToLive`. An unknown lease answers TTL -1, as etcd does.
    fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> BoxFuture<'_, Result<pb::LeaseTimeToLiveResponse>>;
    /// All leases, etcd's `Lease.LeaseLeases`.
    fn lease_leases(&self) -> BoxFuture<'_, Result<pb::LeaseLeasesResponse>>;
    /// Version, size, leader and term, etcd's `Maintenance.Status`.
    fn status(&self) -> BoxFuture<'_, Result<pb::StatusResponse>>;
    /// Gives free space back to the file system, etcd's `Maintenance.Defragment`.
    fn defragment(&self) -> BoxFuture<'_, Result<pb::DefragmentResponse>>;
    /// Reads, raises or disarms alarms, etcd's `Maintenance.Alarm`.
    fn alarm(&self, request: pb::AlarmRequest) -> BoxFuture<'_, Result<pb::AlarmResponse>>;
    /// Asks every member for its state, all at once; one that does not answer within a second is not ready. An engine has
    /// no members: it counts as one without a name.
    fn members(&self) -> BoxFuture<'_, Vec<Member>> {
        Box::pin(async {
            let ready = self.status().await.is_ok();
            vec![Member { name: String::new(), ready, leads: false }]
        })
    }
}

/// The key right after `key` in byte order: `key` followed by a zero byte.
pub fn next_key(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}
