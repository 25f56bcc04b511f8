//! The gRPC service `etcdserverpb.KV`.

use std::sync::Arc;

use futures::stream::BoxStream;
use sharded_etcd_core::range_stream::RangeStream;
use sharded_etcd_etcd_api::{etcdserverpb::kv_server, messages as pb};
use sharded_etcd_serve::in_parts;
use tonic::{Request, Response, Status};

use crate::{context::Context, kv::Kv, metrics::Call};

/// See the module.
pub struct KvService {
    ctx: Arc<Context>,
    kv: Arc<Kv>,
}

impl KvService {
    /// The service over the proxy's key-value calls.
    pub fn new(ctx: Arc<Context>, kv: Arc<Kv>) -> Self {
        Self { ctx, kv }
    }

    fn count<T>(&self, method: &'static str, result: Result<T, Status>) -> Result<Response<T>, Status> {
        let code = result.as_ref().err().map_or("ok", |status| status.code().description());
        self.ctx.metrics.requests.get_or_create(&Call { method, code }).inc();
        result.map(Response::new)
    }
}

#[tonic::async_trait]
impl kv_server::Kv for KvService {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.count("Range", self.kv.range(request.into_inner()).await)
    }

    type RangeStreamStream = BoxStream<'static, Result<pb::RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        self.count("RangeStream", self.stream(request.into_inner()).await)
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        self.count("Put", self.kv.put(request.into_inner()).await)
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        self.count("DeleteRange", self.kv.delete_range(request.into_inner()).await)
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        self.count("Txn", self.kv.txn(request.into_inner()).await)
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        self.count("Compact", self.kv.compact(request.into_inner()).await)
    }
}

impl KvService {
    /// etcd 3.7's RangeStream; a failure of the first chunk is one of the call.
    async fn stream(
        &self,
        request: pb::RangeRequest,
    ) -> Result<BoxStream<'static, Result<pb::RangeStreamResponse, Status>>, Status> {
        sharded_etcd_core::check::range(&request).map_err(crate::kv::refused)?;
        let stream = RangeStream::new(request, self.ctx.limits.request_bytes_max)
            .map_err(|e| Status::unimplemented(e.to_string()))?;
        let kv = Arc::clone(&self.kv);
        let range = move |request| {
            let kv = Arc::clone(&kv);
            async move { kv.range(request).await }
        };
        in_parts(stream, move |stream| stream.next(range.clone())).await
    }
}
