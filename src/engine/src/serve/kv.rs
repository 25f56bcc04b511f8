//! `etcdserverpb.KV`.

use futures::{StreamExt, stream};
use prost::Message;
use sharded_etcd_core::translate::{has_revision_filters, is_default_order};
use sharded_etcd_etcd_api::{etcdserverpb::kv_server::Kv, messages as pb};
use sharded_etcd_shard::Shard;
use tonic::{Request, Response, Status};

use super::{Service, status};
use crate::metrics::{InFlight, Method};

/// About how large one part of a streamed range is.
const CHUNK_BYTES: usize = 1 << 20;

impl Service {
    async fn parts(&self, request: pb::RangeRequest) -> Result<Vec<pb::RangeStreamResponse>, Status> {
        crate::check::range(&request).map_err(status)?;
        if !is_default_order(&request) {
            return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
        }
        if has_revision_filters(&request) {
            return Err(Status::unimplemented("RangeStream does not support revision filters"));
        }
        let whole = self.engine.range(request).await.map_err(status)?;
        let part = |part| pb::RangeStreamResponse { range_response: Some(part) };
        Ok(chunks(whole).into_iter().map(part).collect())
    }
}

#[tonic::async_trait]
impl Kv for Service {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.answer(Method::Range, self.engine.range(request.into_inner()).await.map_err(status))
    }

    type RangeStreamStream = stream::BoxStream<'static, Result<pb::RangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let mut call = InFlight::new(&self.engine.shared, Method::RangeStream);
        let parts = call.see(self.parts(request.into_inner()).await)?;
        Ok(Response::new(stream::iter(parts).map(move |part| call.see(Ok(part))).boxed()))
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

/// Splits an answer; header, `more` and `count` are in the last part only, as etcd has it.
fn chunks(whole: pb::RangeResponse) -> Vec<pb::RangeResponse> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), pb::RangeResponse::default(), 0);
    for kv in whole.kvs {
        if bytes >= CHUNK_BYTES {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += kv.encoded_len();
        part.kvs.push(kv);
    }
    parts.push(pb::RangeResponse {
        header: whole.header,
        more: whole.more,
        count: whole.count,
        kvs: part.kvs,
    });
    parts
}
