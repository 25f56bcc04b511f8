//! Transactions that only read: evaluated here, at one cut, over any number of shards.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use sharded_etcd_core::translate::evaluate;
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_line::Cut;
use tonic::Status;

use super::{
    Kv,
    read::{ReadError, View},
};

const STALE_TRIES: u32 = 10;

impl Kv {
    pub(super) async fn read_txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        let serializable = all_serializable(&request);
        for _ in 0..STALE_TRIES {
            let cut = self.newest(serializable).await?;
            let view = self.view(&cut, 0, serializable).await?;
            match self.evaluate_txn(&cut, &view, &request).await {
                Ok(mut answer) => {
                    answer.header = Some(self.ctx.header(view.revision));
                    return Ok(answer);
                }
                Err(ReadError::Stale) => {
                    self.ctx.line.refresh().await.map_err(crate::context::line_status)?;
                }
                Err(ReadError::Status(status)) => return Err(status),
            }
        }
        Err(Status::unavailable("compaction overtook the transaction again and again; try again"))
    }

    fn evaluate_txn<'a>(
        &'a self,
        cut: &'a Arc<Cut>,
        view: &'a View,
        txn: &'a pb::TxnRequest,
    ) -> BoxFuture<'a, Result<pb::TxnResponse, ReadError>> {
        async move {
            let mut succeeded = true;
            for compare in &txn.compare {
                // An answer without values has no leases either.
                let whole = matches!(compare.target(), pb::CompareTarget::Value | pb::CompareTarget::Lease);
                let range = pb::RangeRequest {
                    key: compare.key.clone(),
                    range_end: compare.range_end.clone(),
                    keys_only: !whole,
                    ..Default::default()
                };
                if !evaluate(compare, &self.range_in(view, &range).await?.kvs) {
                    succeeded = false;
                    break;
                }
            }
            let branch = if succeeded { &txn.success } else { &txn.failure };
            let mut responses = Vec::with_capacity(branch.len());
            let header = Some(pb::ResponseHeader { revision: view.revision, ..Default::default() });
            for op in branch {
                let response = match &op.request {
                    Some(pb::Request::RequestRange(range)) => {
                        let answer = if range.revision > 0 {
                            let own = self.view(cut, range.revision, range.serializable).await?;
                            self.range_in(&own, range).await?
                        } else {
                            self.range_in(view, range).await?
                        };
                        Some(pb::Response::ResponseRange(pb::RangeResponse { header, ..answer }))
                    }
                    Some(pb::Request::RequestTxn(inner)) => {
                        let mut answer = self.evaluate_txn(cut, view, inner).await?;
                        answer.header = Some(pb::ResponseHeader::default());
                        Some(pb::Response::ResponseTxn(answer))
                    }
                    // Only of keys that nobody can have, else the transaction would not be evaluated here.
                    Some(pb::Request::RequestDeleteRange(_)) => {
                        Some(pb::Response::ResponseDeleteRange(pb::DeleteRangeResponse {
                            header,
                            ..Default::default()
                        }))
                    }
                    Some(pb::Request::RequestPut(_)) | None => None,
                };
                responses.push(pb::ResponseOp { response });
            }
            Ok(pb::TxnResponse { header: None, succeeded, responses })
        }
        .boxed()
    }
}

/// etcd runs a read-only transaction serializably if all of its operations are serializable ranges (v3_server.go). One
/// without operations is linearizable here: its compares are all that it is for.
fn all_serializable(txn: &pb::TxnRequest) -> bool {
    let mut ops = txn.success.iter().chain(&txn.failure).peekable();
    ops.peek().is_some()
        && ops.all(|op| matches!(&op.request, Some(pb::Request::RequestRange(range)) if range.serializable))
}
