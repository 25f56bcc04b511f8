//! Checkpoints of the fold in meta, so that a start reads little and the log's history can be compacted.

use bytes::Bytes;
use sharded_etcd_core::{
    line::Fold,
    records::{self, CheckpointHead, Record},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, ShardError};

/// Bytes of one chunk at most: etcd's request limit is 1.5 MiB.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Why a checkpoint could not be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Meta failed.
    #[error("meta cannot be reached")]
    Meta(#[from] ShardError),
    /// What is stored is not what was written.
    #[error("checkpoint {id} is damaged: {reason}")]
    Damaged {
        /// Its id.
        id: String,
        /// What is wrong.
        reason: String,
    },
}

/// Writes a checkpoint of `fold`, makes it the newest unless a newer one is there, and drops the chunks of the one
/// before. Returns true if it became the newest.
///
/// The caller may then compact meta to `fold.position`, not beyond.
///
/// # Errors
/// If meta fails; a half-written checkpoint is never pointed to, and overwritten by the next try with the same id.
pub async fn write_checkpoint(meta: &dyn Shard, fold: &Fold) -> Result<bool, CheckpointError> {
    let body = fold.encode();
    let id = format!("{:016x}", fold.position);
    let mut chunks = 0;
    let mut rest = body.clone();
    while !rest.is_empty() {
        let value = rest.split_to(rest.len().min(CHUNK_BYTES_MAX));
        meta.put(pb::PutRequest { key: records::checkpoint_chunk(&id, chunks), value, ..Default::default() })
            .await?;
        chunks += 1;
    }
    let head = Bytes::from_static(records::CHECKPOINT_HEAD);
    let before = meta.range(pb::RangeRequest { key: head.clone(), ..Default::default() }).await?.kvs.pop();
    let newest = CheckpointHead { position: fold.position, id: id.clone(), chunks, bytes: body.len() as u64 };
    let old = before.as_ref().and_then(|kv| CheckpointHead::decode(&kv.value).ok());
    if old.as_ref().is_some_and(|old| old.position >= fold.position) {
        return Ok(false);
    }
    let compare = pb::Compare {
        result: pb::CompareResult::Equal.into(),
        target: pb::CompareTarget::Mod.into(),
        key: head.clone(),
        target_union: Some(pb::TargetUnion::ModRevision(before.map_or(0, |kv| kv.mod_revision))),
        ..Default::default()
    };
    let put = pb::PutRequest { key: head, value: newest.encode(), ..Default::default() };
    let mut success = vec![pb::RequestOp { request: Some(pb::Request::RequestPut(put)) }];
    if let Some(old) = old {
        let prefix = records::checkpoint_prefix(&old.id);
        let range_end = sharded_etcd_core::keyspace::prefix_end(&prefix);
        let delete = pb::DeleteRangeRequest { key: prefix, range_end, ..Default::default() };
        success.push(pb::RequestOp { request: Some(pb::Request::RequestDeleteRange(delete)) });
    }
    let answer = meta.txn(pb::TxnRequest { compare: vec![compare], success, failure: Vec::new() }).await?;
    Ok(answer.succeeded)
}

/// The newest checkpoint, if there is one.
pub(crate) async fn read_checkpoint(meta: &dyn Shard) -> Result<Option<Fold>, CheckpointError> {
    let head = Bytes::from_static(records::CHECKPOINT_HEAD);
    let answer = meta.range(pb::RangeRequest { key: head, ..Default::default() }).await?;
    let Some(kv) = answer.kvs.first() else { return Ok(None) };
    let damaged = |id: &str, reason: String| CheckpointError::Damaged { id: id.to_owned(), reason };
    let head = CheckpointHead::decode(&kv.value).map_err(|e| damaged("head", e.to_string()))?;
    // At one revision, so that a newer checkpoint cannot take the chunks away in between.
    let revision = answer.header.map_or(0, |h| h.revision);
    let mut body = Vec::new();
    for n in 0..head.chunks {
        let key = records::checkpoint_chunk(&head.id, n);
        let answer = meta.range(pb::RangeRequest { key, revision, ..Default::default() }).await?;
        match answer.kvs.first() {
            Some(chunk) => body.extend_from_slice(&chunk.value),
            None => return Err(damaged(&head.id, format!("chunk {n} of {} is not there", head.chunks))),
        }
    }
    if body.len() as u64 != head.bytes {
        return Err(damaged(&head.id, format!("{} bytes instead of {}", body.len(), head.bytes)));
    }
    Fold::decode(&body).map(Some).map_err(|e| damaged(&head.id, e.to_string()))
}
