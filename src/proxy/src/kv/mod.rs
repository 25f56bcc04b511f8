//! Range, Put, DeleteRange, Txn and Compact over all shards.

mod compact;
mod delete;
mod held;
mod quota;
mod read;
mod read_txn;
mod write;

use std::sync::Arc;

use futures::future::BoxFuture;
use sharded_etcd_core::{check::Refusal, keyspace::ShardIx};
use sharded_etcd_etcd_api::messages as pb;
use tokio::sync::broadcast;
use tonic::{Code, Status};

use crate::context::Context;

/// What the write path asks of the leases.
pub trait AttachLeases: Send + Sync + 'static {
    /// Makes a lease attachable on a shard. Gives the epoch of its marker there, `None` if there is no such lease.
    fn attach(&self, id: i64, shard: ShardIx) -> BoxFuture<'_, Result<Option<i64>, Status>>;
    /// Forgets what is known of a lease on a shard: its marker was another.
    fn forget(&self, id: i64, shard: ShardIx);
}

/// The key-value calls of one proxy.
pub struct Kv {
    ctx: Arc<Context>,
    leases: Arc<dyn AttachLeases>,
    held: held::Held,
    quota: Arc<quota::Quota>,
}

impl Kv {
    /// The calls over a context; watches the shards' sizes in the background if there is a quota.
    pub fn start(ctx: Arc<Context>, leases: Arc<dyn AttachLeases>) -> Arc<Self> {
        Self::start_with(ctx, leases, None)
    }

    /// As [`Kv::start`]; `fences` tells whose fences were written, which held writes wait for, see
    /// [`Hub::fence_events`](crate::hub::Hub::fence_events).
    pub fn start_with(
        ctx: Arc<Context>,
        leases: Arc<dyn AttachLeases>,
        fences: Option<broadcast::Receiver<ShardIx>>,
    ) -> Arc<Self> {
        let quota = quota::Quota::start(&ctx);
        Arc::new(Self { held: held::Held::new(&ctx, fences), quota, leases, ctx })
    }

    /// etcd's `KV.Put`.
    ///
    /// # Errors
    /// etcd's; Unavailable naming the shard if it cannot be reached.
    pub async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        sharded_etcd_core::check::put(&request).map_err(refused)?;
        self.check_size(prost::Message::encoded_len(&request))?;
        let op = pb::RequestOp { request: Some(pb::Request::RequestPut(request)) };
        let mut answer = self.write(pb::TxnRequest { success: vec![op], ..Default::default() }).await?;
        match answer.responses.pop().and_then(|op| op.response) {
            Some(pb::Response::ResponsePut(put)) => Ok(pb::PutResponse { header: answer.header, ..put }),
            _ => Err(Status::internal("the shard answered a put with something else")),
        }
    }

    /// etcd's `KV.Txn`: on one shard; one that only reads, over any number.
    ///
    /// # Errors
    /// etcd's; FailedPrecondition naming keys and shards if it spans shards; Unavailable naming the shard.
    pub async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        sharded_etcd_core::check::txn(&request, self.ctx.limits.txn_ops_max).map_err(refused)?;
        self.check_size(prost::Message::encoded_len(&request))?;
        if sharded_etcd_core::translate::is_read_only(&request)
            || sharded_etcd_core::translate::touched(&request).is_empty()
        {
            return self.read_txn(request).await;
        }
        self.write(request).await
    }

    fn check_size(&self, bytes: usize) -> Result<(), Status> {
        if bytes > self.ctx.limits.request_bytes_max { Err(refused(Refusal::TooLarge)) } else { Ok(()) }
    }
}

/// A refusal as a client sees it.
pub(crate) fn refused(refusal: Refusal) -> Status {
    Status::new(Code::InvalidArgument, refusal.to_string())
}

/// etcd's `ErrCompacted`.
pub(crate) fn compacted() -> Status {
    Status::new(Code::OutOfRange, sharded_etcd_shard::ERR_COMPACTED)
}

/// etcd's `ErrFutureRev`.
pub(crate) fn future_revision() -> Status {
    Status::new(Code::OutOfRange, sharded_etcd_shard::ERR_FUTURE_REV)
}
