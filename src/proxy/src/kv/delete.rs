//! DeleteRange, over shards too: one transaction a shard, in key order.

use bytes::Bytes;
use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx},
    translate::is_read_only,
};
use sharded_etcd_etcd_api::messages as pb;
use tonic::Status;

use super::{Kv, read::bounds, refused, write::WriteError};

/// How often the parts are laid out anew as ranges moved meanwhile.
const LAYOUTS_MAX: u32 = 64;

impl Kv {
    /// etcd's `KV.DeleteRange`. Over several shards it is one revision a shard, not one in all; the header has the
    /// highest.
    ///
    /// # Errors
    /// etcd's; if it fails midway, the error says what was deleted until then.
    pub async fn delete_range(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Status> {
        sharded_etcd_core::check::delete(&request).map_err(refused)?;
        let mut left = KeyRange::of_request(&request.key, &request.range_end);
        if left.is_empty() {
            let cut = self.newest(false).await?;
            return Ok(pb::DeleteRangeResponse {
                header: Some(self.ctx.header(cut.revision)),
                ..Default::default()
            });
        }
        let mut total = pb::DeleteRangeResponse::default();
        let mut layouts = 0;
        while !left.is_empty() {
            let (shard, part) = self.first_part(&left);
            let answer = match self.try_write(delete_txn(&part, request.prev_kv)).await {
                Ok(answer) => answer,
                Err(WriteError::Spans(_)) if layouts < LAYOUTS_MAX => {
                    layouts += 1;
                    continue;
                }
                Err(error) => return Err(self.midway(shard, &total, &part, error.into())),
            };
            let revision = answer.header.as_ref().map_or(0, |h| h.revision);
            for op in answer.responses {
                if let Some(pb::Response::ResponseDeleteRange(deleted)) = op.response {
                    total.deleted += deleted.deleted;
                    total.prev_kvs.extend(deleted.prev_kvs);
                }
            }
            let highest = total.header.as_ref().map_or(0, |h| h.revision).max(revision);
            total.header = Some(self.ctx.header(highest));
            left.start = if part.end.is_empty() { left.end.clone() } else { part.end };
        }
        Ok(total)
    }

    /// The first keys of `range` that lie on one shard without a gap.
    fn first_part(&self, range: &KeyRange) -> (ShardIx, KeyRange) {
        let cut = self.ctx.line.cut();
        let mut part: Option<(ShardIx, KeyRange)> = None;
        for entry in cut.map.overlapping(range) {
            let own = entry.range.intersect(range);
            match &mut part {
                None => part = Some((entry.shard, own)),
                Some((shard, part)) if *shard == entry.shard => part.end = own.end,
                Some(_) => break,
            }
        }
        part.unwrap_or_else(|| (ShardIx(0), range.clone()))
    }

    fn midway(
        &self,
        shard: ShardIx,
        total: &pb::DeleteRangeResponse,
        part: &KeyRange,
        status: Status,
    ) -> Status {
        let Some(header) = &total.header else { return status };
        let name = self.ctx.line.cut().name(shard).to_owned();
        Status::new(
            status.code(),
            format!(
                "deleted {} keys before {part} (up to revision {}), then {name} failed: {}",
                total.deleted,
                header.revision,
                status.message()
            ),
        )
    }
}

fn delete_txn(part: &KeyRange, prev_kv: bool) -> pb::TxnRequest {
    let (key, range_end): (Bytes, Bytes) = bounds(part);
    let delete = pb::DeleteRangeRequest { key, range_end, prev_kv };
    let op = pb::RequestOp { request: Some(pb::Request::RequestDeleteRange(delete)) };
    let txn = pb::TxnRequest { success: vec![op], ..Default::default() };
    debug_assert!(!is_read_only(&txn));
    txn
}
