//! `etcdserverpb.KV`.

use std::sync::Arc;

use futures::{StreamExt, stream};
use sharded_etcd_core::range_stream::RangeStream;
use sharded_etcd_etcd_api::{etcdserverpb::kv_server::Kv, messages as pb};
use sharded_etcd_serve::in_parts;
use sharded_etcd_shard::Shard;
use tonic::{Request, Response, Status};

use super::{Service, status};
use crate::metrics::{InFlight, Method};

type Parts = stream::BoxStream<'static, Result<pb::RangeStreamResponse, Status>>;

impl Service {
    /// A failure of the first part is one of the call.
    async fn parts(&self, request: pb::RangeRequest) -> Result<Parts, Status> {
        crate::check::range(&request).map_err(status)?;
        let stream = RangeStream::new(request, self.engine.config.max_request_bytes)
            .map_err(|e| Status::unimplemented(e.to_string()))?;
        let engine = Arc::clone(&self.engine);
        let range = move |request| {
            let engine = Arc::clone(&engine);
            async move { engine.range(request).await.map_err(status) }
        };
        in_parts(stream, move |stream| stream.next(range.clone())).await
    }
}

#[tonic::async_trait]
impl Kv for Service {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.answer(Method::Range, self.engine.range(request.into_inner()).await.map_err(status))
    }

    type RangeStreamStream = Parts;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let mut call = InFlight::new(&self.engine.shared, Method::RangeStream);
        let parts = call.see(self.parts(request.into_inner()).await)?;
        Ok(Response::new(parts.map(move |part| call.see(part)).boxed()))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        self.answer(Method::Put, self.engine.put(request.into_inner()).await.map_err(status))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        self.answer(Method::DeleteRange, self.engine.delete_range(request.into_inner()).await.map_err(status))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        self.answer(Method::Txn, self.engine.txn(request.into_inner()).await.map_err(status))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        self.answer(Method::Compact, self.engine.compact(request.into_inner()).await.map_err(status))
    }
}
