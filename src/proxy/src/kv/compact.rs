//! Compact: logical first, for everybody at once; the shard manager follows with the shards' own compaction.

use sharded_etcd_core::line::Entry;
use sharded_etcd_etcd_api::messages as pb;
use tonic::Status;

use super::{Kv, compacted, future_revision};
use crate::context::line_status;

impl Kv {
    /// etcd's `KV.Compact`. Once it is answered, every proxy refuses revisions below with ErrCompacted.
    ///
    /// # Errors
    /// ErrCompacted if that revision is compacted already, ErrFutureRev if it is not there yet.
    pub async fn compact(&self, request: pb::CompactionRequest) -> Result<pb::CompactionResponse, Status> {
        let line = &self.ctx.line;
        let cut = line.refresh().await.map_err(line_status)?;
        if request.revision <= cut.compacted {
            return Err(compacted());
        }
        if request.revision > cut.revision {
            return Err(future_revision());
        }
        let cut = line.append(&Entry::Compact(request.revision)).await.map_err(line_status)?;
        Ok(pb::CompactionResponse { header: Some(self.ctx.header(cut.revision)) })
    }
}
