//! The gRPC service `etcdserverpb.KV`.

use std::sync::Arc;

use futures::{StreamExt, stream::BoxStream};
use sharded_etcd_core::translate::{has_revision_filters, is_default_order};
use sharded_etcd_etcd_api::{etcdserverpb::kv_server, messages as pb};
use tonic::{Request, Response, Status};

use crate::{context::Context, kv::Kv, metrics::Call};

/// Bytes of one chunk of a range stream, roughly.
const CHUNK_BYTES: usize = 1 << 20;

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
    /// etcd 3.7's RangeStream: the keys in chunks; the last one carries header, count and `more`
    /// (server/etcdserver/v3_server.go, `rangeStream`).
    async fn stream(
        &self,
        request: pb::RangeRequest,
    ) -> Result<BoxStream<'static, Result<pb::RangeStreamResponse, Status>>, Status> {
        sharded_etcd_core::check::range(&request).map_err(crate::kv::refused)?;
        if !is_default_order(&request) {
            return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
        }
        if has_revision_filters(&request) {
            return Err(Status::unimplemented("RangeStream does not support revision filters"));
        }
        let answer = self.kv.range(request).await?;
        Ok(futures::stream::iter(chunks(answer)).map(Ok).boxed())
    }
}

fn chunks(answer: pb::RangeResponse) -> Vec<pb::RangeStreamResponse> {
    let mut chunks = vec![Vec::new()];
    let mut bytes = 0;
    for kv in answer.kvs {
        let size = prost::Message::encoded_len(&kv);
        if bytes > 0 && bytes + size > CHUNK_BYTES {
            chunks.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(kv);
        }
    }
    let last = chunks.len() - 1;
    chunks
        .into_iter()
        .enumerate()
        .map(|(i, kvs)| {
            let range = if i == last {
                pb::RangeResponse { header: answer.header, kvs, more: answer.more, count: answer.count }
            } else {
                pb::RangeResponse { kvs, ..Default::default() }
            };
            pb::RangeStreamResponse { range_response: Some(range) }
        })
        .collect()
}
