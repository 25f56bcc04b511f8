//! Checkpoints of the fold in meta, so that a start reads little and the log's history can be compacted.

use bytes::Bytes;
use rand::RngCore;
use sharded_etcd_core::{
    keyspace::KeyRange,
    line::Fold,
    moves::ops,
    records::{self, CheckpointHead, Record},
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::{Shard, ShardError};

use crate::random;

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

/// How often the head is read anew because somebody else changed it meanwhile.
const HEAD_TRIES: u32 = 3;

/// Writes a checkpoint of `fold`, makes it the newest, and drops the chunks of all older ones, also of those that were
/// never finished. Any number of processes may do this at once: chunks are of one writer, and the head only goes forward.
///
/// Returns the log position of the checkpoint that it replaced, 0 if there was none: meta may be compacted to there, as
/// everybody who starts from now on reads the new one. `None` if one at least as new was there already.
///
/// # Errors
/// If meta fails; a half-written checkpoint is never pointed to, and goes with the next one that is.
pub async fn write_checkpoint(meta: &dyn Shard, fold: &Fold) -> Result<Option<i64>, CheckpointError> {
    if read_head(meta).await?.position() >= fold.position {
        return Ok(None);
    }
    let body = fold.encode();
    // Two writers of one position may have left out different segments. Ascending with the position.
    let id = format!("{:016x}-{:016x}", fold.position, random::rng().next_u64());
    let mut chunks = 0;
    let mut rest = body.clone();
    while !rest.is_empty() {
        let value = rest.split_to(rest.len().min(CHUNK_BYTES_MAX));
        meta.put(pb::PutRequest { key: records::checkpoint_chunk(&id, chunks), value, ..Default::default() })
            .await?;
        chunks += 1;
    }
    let newest = CheckpointHead { position: fold.position, id: id.clone(), chunks, bytes: body.len() as u64 };
    // The chunks of a newer one under way stay. Those of an older one may go: it will not become the head.
    let older = KeyRange::new(records::CHECKPOINTS_PREFIX, records::checkpoint_prefix(&id));
    let key = Bytes::from_static(records::CHECKPOINT_HEAD);
    for _ in 0..HEAD_TRIES {
        let old = read_head(meta).await?;
        if old.position() >= fold.position {
            return Ok(None);
        }
        let success = vec![ops::put(key.clone(), newest.encode()), ops::delete_range(&older)];
        if meta.txn(ops::txn(vec![ops::modified_at(key.clone(), old.modified)], success)).await?.succeeded {
            return Ok(Some(old.position()));
        }
    }
    Ok(None)
}

/// What meta says about the newest checkpoint.
pub(crate) struct Head {
    newest: Option<CheckpointHead>,
    modified: i64,
    /// Meta's revision.
    pub(crate) meta: i64,
}

impl Head {
    /// Log position of the newest checkpoint; 0 if there is none.
    pub(crate) fn position(&self) -> i64 {
        self.newest.as_ref().map_or(0, |head| head.position)
    }
}

/// Reads which checkpoint is the newest.
pub(crate) async fn read_head(meta: &dyn Shard) -> Result<Head, CheckpointError> {
    let key = Bytes::from_static(records::CHECKPOINT_HEAD);
    let answer = meta.range(pb::RangeRequest { key, ..Default::default() }).await?;
    let kv = answer.kvs.first();
    let newest = kv.map(|kv| CheckpointHead::decode(&kv.value)).transpose();
    Ok(Head {
        newest: newest.map_err(|e| damaged("head", e.to_string()))?,
        modified: kv.map_or(0, |kv| kv.mod_revision),
        meta: answer.header.map_or(0, |h| h.revision),
    })
}

fn damaged(id: &str, reason: String) -> CheckpointError {
    CheckpointError::Damaged { id: id.to_owned(), reason }
}

/// The newest checkpoint, if there is one.
pub(crate) async fn read_checkpoint(meta: &dyn Shard) -> Result<Option<Fold>, CheckpointError> {
    let Head { newest: Some(head), meta: revision, .. } = read_head(meta).await? else { return Ok(None) };
    let mut body = Vec::new();
    // At one revision, so that a newer checkpoint cannot take the chunks away in between.
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
