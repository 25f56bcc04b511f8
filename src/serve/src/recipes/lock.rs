//! `v3lockpb.Lock`: who created a key below the lock's name first holds it.

use bytes::Bytes;
use sharded_etcd_etcd_api::{
    etcdserverpb::{kv_server::Kv, lease_server::Lease, watch_server::Watch},
    messages as pb,
    v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock},
};
use tonic::{Request, Response, Status};

use super::{OnDrop, Recipes, by_creation, created_at, first_of, get, key_of, op, prefix_of, put, revision};

#[tonic::async_trait]
impl<K: Kv, W: Watch, L: Lease> Lock for Recipes<K, W, L> {
    /// Answers once the lock is held. A client that does not wait so long leaves nothing behind.
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let LockRequest { name, lease } = request.into_inner();
        let lease = self.lease(lease).await?;
        let prefix = prefix_of(&name);
        let key = key_of(&prefix, lease);
        let owner = op(pb::Request::RequestRange(by_creation(&prefix, pb::SortOrder::Ascend)));
        let enter = pb::TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![put(&key, Bytes::new(), lease), owner.clone()],
            failure: vec![get(&key), owner],
        };
        let answer = self.txn(enter).await?;
        let entered = match first_of(&answer, 0) {
            Some(there) if !answer.succeeded => there.create_revision,
            _ => revision(&answer.header),
        };
        let is_first = first_of(&answer, 1).is_none_or(|first| first.create_revision == entered);
        if is_first {
            return Ok(Response::new(LockResponse { header: answer.header, key }));
        }
        let (recipes, mine) = (self.clone(), key.clone());
        let mut left = OnDrop::new(async move {
            // What cannot be deleted now goes with its lease.
            let _ = recipes.delete(mine).await;
        });
        self.until_deleted(&prefix, entered - 1).await?;
        let answer = self.range(pb::RangeRequest { key: key.clone(), ..Default::default() }).await?;
        left.disarm();
        if answer.kvs.is_empty() {
            return Err(Status::unknown("mutex: session is expired"));
        }
        Ok(Response::new(LockResponse { header: answer.header, key }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let answer = self.delete(request.into_inner().key).await?;
        Ok(Response::new(UnlockResponse { header: answer.header }))
    }
}
