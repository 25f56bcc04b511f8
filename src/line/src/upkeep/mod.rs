//! What is kept of the past: checkpoints of the fold, compaction of meta and of the shards.
//!
//! The leading shard manager does this, often; where there is none, any proxy does ([`Caretaker`]), rarely. All of it may be
//! done by several processes at once, and by one that is late: what is decided on only ever goes up, and a checkpoint is
//! guarded where it becomes the newest.

mod caretaker;
mod shards;
mod unseen;

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use sharded_etcd_core::{
    keyspace::{KeyRange, ShardIx, successor},
    line::Fold,
    moves::ops,
    records::{MOVES_PREFIX, MoveRecord, Record, RecordError},
    sabotage::Sabotage,
};
use sharded_etcd_etcd_api::messages as pb;
use sharded_etcd_shard::ShardError;
use tokio::time::Instant;

use crate::{CheckpointError, Line, LineError, Shards, write_checkpoint};

pub use caretaker::{Caretaker, CaretakerOptions};
pub use unseen::follow_up;

/// Keys of one page when live revisions are gathered.
const PAGE: i64 = 5000;

/// Why history was not cut off this time. Nothing is lost by that: it is done with the next try.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// Meta failed.
    #[error("meta call failed: {0}")]
    Meta(ShardError),
    /// A stored record cannot be read by this release.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The line failed.
    #[error(transparent)]
    Line(#[from] LineError),
}

/// Where history is cut off.
#[derive(Debug, Clone)]
pub struct UpkeepOptions {
    /// How long a proxy that lags may hold back the compaction of shards. Default 5 min.
    pub lag_max: Duration,
    /// Segments above which those that no live key needs are left out of checkpoints. Default 100,000.
    pub segments_max: usize,
}

impl Default for UpkeepOptions {
    fn default() -> Self {
        Self { lag_max: Duration::from_secs(300), segments_max: 100_000 }
    }
}

/// Cuts history off when it is told to.
pub struct Upkeep {
    line: Arc<Line>,
    shards: Arc<Shards>,
    options: UpkeepOptions,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Segments that the last condensation left.
    condensed_to: usize,
    /// Local revision that each shard was compacted to.
    physical: HashMap<ShardIx, i64>,
    /// Since when proxies hold back a compaction, and which.
    held: Option<(Instant, i64)>,
}

impl Upkeep {
    /// For a line and its shards.
    pub fn new(line: Arc<Line>, shards: Arc<Shards>, options: UpkeepOptions) -> Self {
        Self { line, shards, options, state: Mutex::default() }
    }

    /// Writes a checkpoint of what is folded, if there is none as new, and drops the log's history before the last but one.
    /// Returns the log position and the number of entries that there is a checkpoint of at least.
    ///
    /// Segments that no live key needs are left out if there are many.
    ///
    /// # Errors
    /// If meta fails.
    pub async fn checkpoint(&self) -> Result<(i64, i64), UpkeepError> {
        let mut fold = self.line.with_fold(Fold::clone);
        // Reading all keys is paid for by as many segments as were left the last time.
        let enough = self.options.segments_max.max(self.state.lock().condensed_to.saturating_mul(2));
        if fold.segment_count() > enough
            && let Some(needed) = self.live_revisions(&fold).await?
        {
            let segments = fold.segment_count();
            fold.condense(&needed);
            self.state.lock().condensed_to = fold.segment_count();
            tracing::info!(before = segments, after = fold.segment_count(), "condensed the checkpoint");
        }
        let meta = self.line.meta();
        let replaced = match Sabotage::CutLogTooFar.is_on() {
            true => Some(fold.position),
            false => write_checkpoint(meta.as_ref(), &fold).await?,
        };
        // So that the next checkpoint, and this process, are as small.
        self.line.condense(&fold);
        let written = (fold.position, fold.entries);
        // To the one before and not to the newest, so that who follows closely never has to start over.
        let revision = match replaced {
            Some(position) if position > 0 => position,
            _ => return Ok(written),
        };
        match meta.compact(pb::CompactionRequest { revision, physical: false }).await {
            Err(error) if error.is_compacted() => Ok(written),
            answer => answer.map(|_| written).map_err(UpkeepError::Meta),
        }
    }

    /// For each shard, the local create and mod revisions of all keys that were alive at the compaction revision.
    ///
    /// What was created or modified later has a later revision, and those segments stay anyway. `None` if a shard cannot be
    /// asked: then nothing may be left out.
    async fn live_revisions(&self, fold: &Fold) -> Result<Option<Vec<Vec<i64>>>, UpkeepError> {
        let mut all = Vec::with_capacity(fold.shards().len());
        for (i, shard) in fold.shards().iter().enumerate() {
            let ix = ShardIx(u32::try_from(i).unwrap_or(u32::MAX));
            let at = fold.local_at_most(ix, fold.compacted).unwrap_or(shard.l0);
            let mut needed = Vec::new();
            if !shard.left {
                let Ok(connection) = self.shards.get(ix).await else { return Ok(None) };
                let mut rest = KeyRange::whole().clamped();
                loop {
                    let request = pb::RangeRequest {
                        limit: PAGE,
                        keys_only: true,
                        revision: at,
                        serializable: true,
                        ..ops::range_request(&rest)
                    };
                    let Ok(answer) = connection.range(request).await else { return Ok(None) };
                    needed.extend(answer.kvs.iter().flat_map(|kv| [kv.create_revision, kv.mod_revision]));
                    match answer.kvs.last() {
                        Some(last) if answer.more => rest.start = successor(&last.key),
                        _ => break,
                    }
                }
                needed.sort_unstable();
                needed.dedup();
            }
            all.push(needed);
        }
        Ok(Some(all))
    }
}

/// All moves that are written down.
///
/// # Errors
/// If meta fails, or a record is of a newer release.
pub async fn read_moves(line: &Line) -> Result<Vec<MoveRecord>, UpkeepError> {
    let range = ops::range_request(&KeyRange::prefix(MOVES_PREFIX));
    let answer = line.meta().range(range).await.map_err(UpkeepError::Meta)?;
    answer.kvs.iter().map(|kv| MoveRecord::decode(&kv.value).map_err(UpkeepError::from)).collect()
}
