//! A connection that can be replaced under whoever holds it.

use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::RwLock;
use sharded_etcd_etcd_api::messages as pb;

use crate::{Member, Result, Shard, WatchStream};

/// Passes every call on to the connection that it has at that moment. Calls and watches under way stay with the one that
/// they began on, and end with it.
pub struct Relay {
    connection: RwLock<Arc<dyn Shard>>,
}

impl Relay {
    /// A relay to this connection.
    pub fn new(connection: Arc<dyn Shard>) -> Self {
        Self { connection: RwLock::new(connection) }
    }

    /// Uses another connection from now on. It must lead to the same cluster.
    pub fn replace(&self, connection: Arc<dyn Shard>) {
        *self.connection.write() = connection;
    }

    fn now(&self) -> Arc<dyn Shard> {
        Arc::clone(&self.connection.read())
    }
}

macro_rules! relayed {
    ($($method:ident($($arg:ident: $request:ty)?) -> $response:ty;)*) => {$(
        fn $method(&self, $($arg: $request)?) -> BoxFuture<'_, $response> {
            let connection = self.now();
            Box::pin(async move { connection.$method($($arg)?).await })
        }
    )*};
}

impl Shard for Relay {
    relayed! {
        range(request: pb::RangeRequest) -> Result<pb::RangeResponse>;
        put(request: pb::PutRequest) -> Result<pb::PutResponse>;
        txn(request: pb::TxnRequest) -> Result<pb::TxnResponse>;
        compact(request: pb::CompactionRequest) -> Result<pb::CompactionResponse>;
        watch(request: pb::WatchCreateRequest) -> Result<WatchStream>;
        lease_grant(request: pb::LeaseGrantRequest) -> Result<pb::LeaseGrantResponse>;
        lease_revoke(request: pb::LeaseRevokeRequest) -> Result<pb::LeaseRevokeResponse>;
        lease_keep_alive(id: i64) -> Result<pb::LeaseKeepAliveResponse>;
        lease_time_to_live(request: pb::LeaseTimeToLiveRequest) -> Result<pb::LeaseTimeToLiveResponse>;
        lease_leases() -> Result<pb::LeaseLeasesResponse>;
        status() -> Result<pb::StatusResponse>;
        defragment() -> Result<pb::DefragmentResponse>;
        alarm(request: pb::AlarmRequest) -> Result<pb::AlarmResponse>;
        members() -> Vec<Member>;
    }
}
